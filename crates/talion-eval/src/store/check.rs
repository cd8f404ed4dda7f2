//! What a chunk has to be before it is kept. A store that takes nonsense gives nonsense back, much later.

use std::ops::Range;

use talion_core::{Error, Result};
use tch::{Kind, Tensor};

use super::{NewChunk, header::Cast};
use crate::Outcome;

/// The images have to be `[rows, C, H, W]`, `f32`, every value finite.
pub(super) fn images(new: &NewChunk, images: &Tensor) -> Result<()> {
    let size = images.size();
    let fits = size.len() == 4 && usize::try_from(size[0]).is_ok_and(|rows| rows == new.rows);
    if !fits || images.numel() == 0 {
        let expected = format!("[{}, C, H, W], at least one value", new.rows);
        return Err(Error::Shape { what: "a chunk's images", expected, found: size });
    }
    if images.kind() != Kind::Float {
        return Err(Error::range("the type of a chunk's images", "f32", format!("{:?}", images.kind())));
    }
    if bool::try_from(images.f_isfinite()?.f_all()?)? {
        Ok(())
    } else {
        Err(Error::range("a value of a chunk's images", "finite", "infinite or not a number"))
    }
}

/// The chunk has to begin with the first sample that is missing and to end before the next one that is there.
pub(super) fn place(new: &NewChunk, missing: &[Range<usize>]) -> Result<()> {
    let Some(gap) = missing.first() else {
        return Err(Error::Refused(format!(
            "`{}` is finished: there is no sample left to add",
            new.experiment
        )));
    };
    if new.first != gap.start {
        let what = format!("the first sample of a chunk of `{}`", new.experiment);
        return Err(Error::range(what, format!("{}, the first that is missing", gap.start), new.first));
    }
    let room = gap.end - gap.start;
    if !(1..=room).contains(&new.rows) {
        let what = format!("the number of samples of a chunk of `{}` from {}", new.experiment, new.first);
        return Err(Error::range(what, format!("1 to {room}"), new.rows));
    }
    Ok(())
}

/// The chunk's own figures have to be numbers.
pub(super) fn effort(new: &NewChunk) -> Result<()> {
    if new.seconds.is_finite() && new.seconds >= 0.0 {
        Ok(())
    } else {
        Err(Error::range("the seconds of a chunk", "a finite number, at least 0", new.seconds))
    }
}

/// Every contender has to have exactly one outcome a sample, and contenders have to agree which sample that is. Returns
/// the outcomes as they are kept, by contender and row.
pub(super) fn outcomes(
    cast: &Cast,
    classes: usize,
    new: &NewChunk,
    outcomes: &[Outcome],
) -> Result<Vec<Outcome>> {
    let mut ordered = Vec::with_capacity(outcomes.len());
    for outcome in outcomes {
        let contender = cast.contender(&outcome.contender)?;
        numbers(outcome)?;
        bounds(classes, new, outcome)?;
        ordered.push((contender, settled(outcome)));
    }
    ordered.sort_by_key(|(contender, outcome)| (*contender, outcome.row));
    let expected = cast.contenders.len() * new.rows;
    if ordered.len() != expected {
        let what = format!(
            "the number of outcomes of {} samples and {} contenders",
            new.rows,
            cast.contenders.len()
        );
        return Err(Error::range(what, expected.to_string(), ordered.len()));
    }
    let ordered: Vec<Outcome> = ordered.into_iter().map(|(_, outcome)| outcome).collect();
    // as many as there have to be, all inside: each is there once unless one is there twice
    for pair in ordered.windows(2) {
        if pair[0].contender == pair[1].contender && pair[0].row == pair[1].row {
            let words = format!("{} has two outcomes of sample {}", pair[0].contender, pair[0].row);
            return Err(Error::Refused(words));
        }
    }
    for of_one in ordered.chunks(new.rows) {
        for (outcome, first) in of_one.iter().zip(&ordered) {
            agree(outcome, first)?;
        }
    }
    Ok(ordered)
}

fn numbers(outcome: &Outcome) -> Result<()> {
    let values = [
        ("confidence", Some(outcome.confidence)),
        ("margin", Some(outcome.margin)),
        ("distance", Some(outcome.distance)),
        ("PSNR", outcome.psnr),
        ("SSIM", outcome.ssim),
    ];
    for (name, value) in values {
        if let Some(value) = value
            && !value.is_finite()
        {
            let what = format!("the {name} of {} at sample {}", outcome.contender, outcome.row);
            return Err(Error::range(what, "finite", value));
        }
    }
    Ok(())
}

fn bounds(classes: usize, new: &NewChunk, outcome: &Outcome) -> Result<()> {
    let (first, end) = (new.first, new.first.saturating_add(new.rows));
    if !(first..end).contains(&outcome.row) {
        let what = format!("the sample of an outcome of {}", outcome.contender);
        return Err(Error::range(what, format!("{first} to {}", end.saturating_sub(1)), outcome.row));
    }
    if !usize::try_from(outcome.label).is_ok_and(|label| label < classes) {
        let what = format!("the class of sample {}", outcome.row);
        return Err(Error::range(what, format!("one of the {classes} classes, from 0"), outcome.label));
    }
    if outcome.predicted < 0 {
        let what = format!("the class that {} sees in sample {}", outcome.contender, outcome.row);
        return Err(Error::range(what, "at least 0", outcome.predicted));
    }
    Ok(())
}

fn agree(outcome: &Outcome, first: &Outcome) -> Result<()> {
    if outcome.id == first.id && outcome.label == first.label {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{} says that sample {} is number {} of class {}, {} says that it is number {} of class {}",
        first.contender, first.row, first.id, first.label, outcome.contender, outcome.id, outcome.label
    )))
}

/// The outcome with every -0 made 0: SQLite has no other zero, and none of these numbers means anything by its sign
/// there.
fn settled(outcome: &Outcome) -> Outcome {
    Outcome {
        confidence: outcome.confidence + 0.0,
        margin: outcome.margin + 0.0,
        distance: outcome.distance + 0.0,
        psnr: outcome.psnr.map(|value| value + 0.0),
        ssim: outcome.ssim.map(|value| value + 0.0),
        ..outcome.clone()
    }
}
