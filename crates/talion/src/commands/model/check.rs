//! `talion model check`: is the classifier as good as stated, and if not, how was it meant to be fed?

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use serde_json::json;
use talion_core::{Error, Result};
use talion_data::{Dataset, DatasetInfo, DatasetSpec, Split};
use talion_eval::Proportion;
use talion_models::{
    Model,
    import::{ChannelOrder, STATED_ACCURACY},
};
use tch::{Device, Kind, Tensor};

use super::describe::Usual;
use crate::{
    failure::CommandResult,
    samples::{Samples, fits},
};

/// Measure a classifier on labelled images, and look for the likely cause if it is worse than stated.
///
/// Takes the first images of the test split. If the classifier is far below the accuracy that its description states (or if
/// asked to with --alternatives), the same images are shown to it as other usual preparations would have it: another order
/// of channels, byte values, other standardisations. What does much better is the likely cause.
#[derive(Args)]
pub struct CheckArgs {
    /// The classifier.
    file: PathBuf,
    /// Labelled images: a data set's name, NAME:FOLDER, or folder:FOLDER; by default what it says it was trained on.
    #[arg(long)]
    data: Option<DatasetSpec>,
    /// Number of images.
    #[arg(long, default_value_t = 500)]
    images: usize,
    /// Try other preparations even if nothing is wrong.
    #[arg(long)]
    alternatives: bool,
}

/// A way of preparing images, and how well the classifier does with it.
#[derive(Serialize)]
struct Tried {
    preparation: String,
    correct: u64,
    images: u64,
}

impl Tried {
    fn share(&self) -> f64 {
        self.correct as f64 / self.images.max(1) as f64
    }
}

/// How far below the stated accuracy the upper end of the measured interval may be before it is called far below.
pub const TOLERATED: f64 = 0.02;

/// Whether `measured` is far below what the model's description states; then what is stated.
pub fn far_below(model: &Model, measured: Proportion) -> Option<f64> {
    let stated = model.card().metrics.get(STATED_ACCURACY).copied()?;
    (measured.interval().1 < stated - TOLERATED).then_some(stated)
}

/// Runs the command.
pub fn run(args: &CheckArgs, json: bool) -> CommandResult {
    let device = Device::cuda_if_available();
    let model = Model::load(&args.file, device)?;
    let card = model.card();
    let spec = match &args.data {
        Some(spec) => spec.clone(),
        None => card.dataset.parse().map_err(|_| {
            Error::Refused(format!(
                "the classifier was trained on {}; name labelled images with --data",
                card.dataset
            ))
        })?,
    };
    let data = talion_data::load(&spec, Split::Test, None)?;
    fits(&model, &data)?;
    let samples = Samples::first(&data, args.images, device)?;
    let measured = accuracy(&samples, &|images| model.try_logits(images))?;
    let stated = card.metrics.get(STATED_ACCURACY).copied();
    let below = far_below(&model, measured);
    let tried = if below.is_some() || args.alternatives {
        alternatives(&model, &data, &samples)?
    } else {
        Vec::new()
    };
    let cause = tried
        .iter()
        .filter(|one| one.share() > measured.share() + 0.05)
        .max_by(|a, b| a.share().total_cmp(&b.share()));
    if json {
        let cause = cause.map(|cause| cause.preparation.clone());
        let report = json!({
            "data": data.name(), "correct": measured.count, "images": measured.total, "interval": measured.interval(),
            "stated": stated, "far_below": below.is_some(), "alternatives": tried, "likely_cause": cause,
        });
        println!("{report}");
        return Ok(());
    }
    let (low, high) = measured.interval();
    println!(
        "{} on the first {} test images of {}: {:.1} % ({:.1} to {:.1}, 95 %){}",
        args.file.display(),
        measured.total,
        data.name(),
        100.0 * measured.share(),
        100.0 * low,
        100.0 * high,
        stated.map(|stated| format!("; stated {:.1} %", 100.0 * stated)).unwrap_or_default()
    );
    if !tried.is_empty() {
        println!();
    }
    for one in &tried {
        println!("  {:>5.1} %  {}", 100.0 * one.share(), one.preparation);
    }
    match (below, cause) {
        (None, _) => {}
        (Some(_), Some(cause)) => eprintln!(
            "warning: far below what is stated. The likely cause: the network wants its images {}. Say so with `talion \
             model describe --force`",
            cause.preparation
        ),
        (Some(_), None) => eprintln!(
            "warning: far below what is stated, and no usual preparation of the images does better. Likely: the labels are \
             in another order, the images are not what it was trained on, or the weights are not those of the figure"
        ),
    }
    Ok(())
}

const ROWS: i64 = 32;

/// How many of the samples are right.
///
/// # Errors
/// If the classifier fails on them.
pub fn accuracy(samples: &Samples, logits: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Proportion> {
    let total = samples.ids.len() as i64;
    let mut count = 0;
    for start in (0..total).step_by(ROWS as usize) {
        let rows = ROWS.min(total - start);
        let answer = tch::no_grad(|| logits(&samples.images.narrow(0, start, rows)))?;
        let right = answer.argmax(1, false).eq_tensor(&samples.labels.narrow(0, start, rows));
        count += right.sum(Kind::Int64).int64_value(&[]);
    }
    Ok(Proportion { count: count.unsigned_abs(), total: total.unsigned_abs() })
}

/// How the classifier does with every usual preparation other than its own.
fn alternatives(model: &Model, data: &Dataset, samples: &Samples) -> Result<Vec<Tried>> {
    let spec = &model.card().spec;
    let own = DatasetInfo::of(data);
    let mut ways: Vec<(String, Vec<f64>, Vec<f64>)> =
        vec![("as described".into(), spec.mean.clone(), spec.std.clone())];
    for (name, usual) in [
        ("as they are, from 0 to 1", Usual::None),
        ("standardised like ImageNet's (--like imagenet)", Usual::Imagenet),
        ("from -1 to 1 (--like symmetric)", Usual::Symmetric),
    ] {
        if let Some((mean, std)) = usual.values(spec.channels) {
            ways.push((name.into(), mean, std));
        }
    }
    ways.push((
        format!(
            "standardised with the data's own statistics (--mean {} --std {})",
            list(&own.means),
            list(&own.stds)
        ),
        own.means.clone(),
        own.stds.clone(),
    ));
    let bytes = |values: &[f64]| values.iter().map(|value| value / 255.0).collect::<Vec<_>>();
    let zeros = vec![0.0; spec.mean.len()];
    ways.push(("as values from 0 to 255 (--scale 255)".into(), zeros, bytes(&vec![1.0; spec.std.len()])));
    let mut tried = Vec::new();
    for (name, mean, std) in ways {
        for order in [ChannelOrder::Rgb, ChannelOrder::Bgr] {
            if order == ChannelOrder::Bgr && spec.channels != 3 {
                continue;
            }
            if name == "as described" && order == spec.order {
                continue;
            }
            let found = accuracy(samples, &|images| model.answer(&prepared(images, order, &mean, &std)))?;
            let colours = if spec.channels == 3 {
                format!(", {}", order.to_string().to_uppercase())
            } else {
                String::new()
            };
            let preparation = format!("{name}{colours}");
            tried.push(Tried { preparation, correct: found.count, images: found.total });
        }
    }
    Ok(tried)
}

fn list(values: &[f64]) -> String {
    values.iter().map(|value| format!("{value:.4}")).collect::<Vec<_>>().join(",")
}

fn prepared(images: &Tensor, order: ChannelOrder, mean: &[f64], std: &[f64]) -> Tensor {
    let row = |values: &[f64]| {
        Tensor::from_slice(values).to_kind(images.kind()).view([1, -1, 1, 1]).to_device(images.device())
    };
    let images = if order == ChannelOrder::Bgr { images.flip([1]) } else { images.shallow_clone() };
    (images - row(mean)) / row(std)
}
