//! Samples of a run to look at: what the attack did, and what the defence made of it.

use std::path::{Path, PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use serde::{Deserialize, Serialize};
use talion_core::{Classifier, Error, Result, write_atomically};
use talion_defenses::{Defended, GradientMode};
use tch::{Device, Kind, Tensor};

use crate::{Entrant, Exhibit, Experiment, Subjects, Tile, facts::Facts, store::RunFolder};

/// The largest change that a difference shows at full strength.
const FULL_DIFFERENCE: f64 = 0.1;

/// Picks samples of every defended contender, those that it got wrong first, and draws them: up to `failures` of the most
/// telling attack, and up to `successes` of an attack that does not know the defence.
///
/// # Errors
/// If a chunk cannot be read, or the networks do not fit.
pub fn exhibits(
    folder: &RunFolder,
    entrants: &[Entrant<'_>],
    subjects: Subjects<'_>,
    (failures, successes): (usize, usize),
) -> Result<Vec<Exhibit>> {
    let facts = Facts::read(folder)?;
    let mut shown = Vec::new();
    for entrant in entrants.iter().filter(|entrant| entrant.player.defended) {
        let name = entrant.player.name.as_str();
        let (knows, blind): (Vec<_>, Vec<_>) = facts
            .experiments()
            .filter(|experiment| facts.within(experiment))
            .partition(|experiment| facts.threat(name, experiment).is_adaptive());
        let fallen =
            |experiment: &&Experiment| facts.right(experiment, name).iter().filter(|&&right| !right).count();
        // the attack that fooled most; the first of them, where several did
        let worst = knows.iter().rev().max_by_key(|experiment| fallen(experiment));
        let strongest = blind.iter().rev().filter(|experiment| experiment.victim == facts.base()).max_by_key(
            |experiment| facts.right(experiment, facts.base()).iter().filter(|&&right| !right).count(),
        );
        for (experiment, wanted, count) in [(worst, false, failures), (strongest, true, successes)] {
            let Some(experiment) = experiment else { continue };
            let outcomes = facts.outcomes(&experiment.key(), name);
            let rows = outcomes.iter().filter(|outcome| outcome.attacked && outcome.right() == wanted);
            for outcome in rows.take(count) {
                shown.push(exhibit(folder, entrant, subjects, &facts, (experiment, outcome.row))?);
            }
        }
    }
    shown.sort_by_key(|exhibit| exhibit.right);
    Ok(shown)
}

fn exhibit(
    folder: &RunFolder,
    entrant: &Entrant<'_>,
    subjects: Subjects<'_>,
    facts: &Facts,
    (experiment, row): (&Experiment, usize),
) -> Result<Exhibit> {
    let key = experiment.key();
    let chunk = facts
        .chunks(&key)
        .iter()
        .find(|chunk| (chunk.first..chunk.first + chunk.rows).contains(&row))
        .ok_or_else(|| Error::Refused(format!("the run has no image of sample {row} in {key}")))?;
    let adversarial = folder.images(chunk)?.narrow(0, (row - chunk.first) as i64, 1);
    let clean = subjects.images.narrow(0, row as i64, 1);
    let truth = subjects.labels.int64_value(&[row as i64]);
    let device = entrant.classifier.device();
    // a contender may be a classifier in the place of another one, which restores nothing
    let (map, restored) = match entrant.defence {
        Some(defence) => {
            let images = adversarial.to_device(device);
            let defended = Defended::new(entrant.classifier, defence, GradientMode::Exact)?;
            (defence.gradient_map(entrant.classifier, &images), Some(defended.restore(&images)))
        }
        None => (None, None),
    };
    let names = &facts.config.class_names;
    let name = |class: i64| names.get(class as usize).cloned().unwrap_or_else(|| class.to_string());
    let said = |title: &str, images: &Tensor| -> Result<Tile> {
        let (confidence, class) = answer(entrant.classifier, images);
        let verdict = Some((name(class), confidence));
        Ok(Tile { title: title.into(), png: png(images)?, verdict, right: Some(class == truth) })
    };
    let signed = |title: &str, values: &Tensor, full: f64| -> Result<Tile> {
        // grey is zero
        let grey = (values / (2.0 * full) + 0.5).clamp(0.0, 1.0);
        Ok(Tile { title: title.into(), png: png(&grey)?, verdict: None, right: None })
    };
    let mut tiles = vec![said("clean", &clean)?, said("adversarial", &adversarial)?];
    let mut right = tiles.last().and_then(|tile| tile.right) == Some(true);
    if let Some(map) = &map {
        tiles.push(signed("gradient map", map, 1.0)?);
    }
    if let Some(restored) = &restored {
        let last = said("restored", restored)?;
        right = last.right == Some(true);
        tiles.push(last);
        let difference = adversarial.to_device(Device::Cpu) - restored.to_device(Device::Cpu);
        tiles.push(signed("adversarial - restored", &difference, FULL_DIFFERENCE)?);
    }
    Ok(Exhibit {
        id: subjects.ids.get(row).copied().unwrap_or_default(),
        experiment: format!(
            "{} at {}, {}",
            experiment.attack,
            experiment.budget,
            facts.threat(&entrant.player.name, experiment)
        ),
        contender: entrant.player.name.clone(),
        label: name(truth),
        right,
        tiles,
    })
}

fn answer(classifier: &dyn Classifier, images: &Tensor) -> (f64, i64) {
    let logits = tch::no_grad(|| classifier.logits(&images.to_device(classifier.device())));
    let (confidence, class) = logits.to_kind(Kind::Double).softmax(1, None).max_dim(1, false);
    (confidence.double_value(&[0]), class.int64_value(&[0]))
}

/// The one image of `images`, `[1, C, H, W]` in `[0, 1]`, as a PNG file, pixel for pixel.
fn png(images: &Tensor) -> Result<Vec<u8>> {
    let size = images.size();
    let (colour, channels) = match size.get(1) {
        Some(1) => (ExtendedColorType::L8, 1),
        Some(3) => (ExtendedColorType::Rgb8, 3),
        _ => {
            return Err(Error::Shape {
                what: "an image to draw",
                expected: "[1, 1 or 3, H, W]".into(),
                found: size,
            });
        }
    };
    let bytes =
        (images.detach() * 255.0).round().clamp(0.0, 255.0).to_kind(Kind::Uint8).to_device(Device::Cpu);
    let bytes = Vec::<u8>::try_from(
        bytes.view([channels, size[2], size[3]]).permute([1, 2, 0]).contiguous().flatten(0, -1),
    )?;
    let mut file = Vec::new();
    PngEncoder::new(&mut file)
        .write_image(&bytes, size[3] as u32, size[2] as u32, colour)
        .map_err(|error| Error::Refused(format!("the picture cannot be encoded: {error}")))?;
    Ok(file)
}

/// An exhibit with its pictures in text, as it is kept beside the run.
#[derive(Serialize, Deserialize)]
struct Kept {
    id: u64,
    experiment: String,
    contender: String,
    label: String,
    right: bool,
    tiles: Vec<KeptTile>,
}

#[derive(Serialize, Deserialize)]
struct KeptTile {
    title: String,
    png: String,
    verdict: Option<(String, f64)>,
    right: Option<bool>,
}

fn gallery_file(run: &Path) -> PathBuf {
    run.join("gallery.json")
}

/// Keeps exhibits beside the run in the folder `run`, so that a report needs no networks.
///
/// # Errors
/// If the file cannot be written.
pub fn keep_exhibits(run: &Path, exhibits: &[Exhibit]) -> Result<()> {
    let kept: Vec<Kept> = exhibits
        .iter()
        .map(|exhibit| Kept {
            id: exhibit.id,
            experiment: exhibit.experiment.clone(),
            contender: exhibit.contender.clone(),
            label: exhibit.label.clone(),
            right: exhibit.right,
            tiles: exhibit
                .tiles
                .iter()
                .map(|tile| KeptTile {
                    title: tile.title.clone(),
                    png: STANDARD.encode(&tile.png),
                    verdict: tile.verdict.clone(),
                    right: tile.right,
                })
                .collect(),
        })
        .collect();
    write_atomically(&gallery_file(run), serde_json::to_string(&kept).map_err(Error::other)?.as_bytes())
}

/// The exhibits that are kept beside the run in the folder `run`; none if there are none.
///
/// # Errors
/// If the file is there and cannot be read.
pub fn kept_exhibits(run: &Path) -> Result<Vec<Exhibit>> {
    let path = gallery_file(run);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let damaged =
        |what: String| Error::file(&path, format!("{what}; delete it and evaluate again to draw it anew"));
    let text = std::fs::read(&path).map_err(Error::io(&path))?;
    let kept: Vec<Kept> = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    kept.into_iter()
        .map(|exhibit| {
            let tiles = exhibit.tiles.into_iter().map(|tile| {
                let png = STANDARD.decode(&tile.png).map_err(|error| damaged(error.to_string()))?;
                Ok(Tile { title: tile.title, png, verdict: tile.verdict, right: tile.right })
            });
            Ok(Exhibit {
                id: exhibit.id,
                experiment: exhibit.experiment,
                contender: exhibit.contender,
                label: exhibit.label,
                right: exhibit.right,
                tiles: tiles.collect::<Result<_>>()?,
            })
        })
        .collect()
}
