//! `talion maps`: what gradient maps show of attacks.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use talion_core::write_atomically;
use talion_data::DatasetSpec;
use talion_eval::{Aligned, Plan, Setting, alignment_markdown, alignments};
use tch::Device;

use crate::{
    bundled::Networks,
    failure::CommandResult,
    monitor::{Bars, catch_interrupts},
    samples::{Samples, fits, test_split},
};

/// Measure what a network's gradient maps show of attacks, and how much of them it takes away.
///
/// Attacks images that the classifier is right about, and compares what the attack added with directions: the gradient for
/// the true label at the attacked image (which no defender has), the one for the label that the classifier gives it, each of
/// the network's own maps, and what its passes take away. A cosine of 1 is the attack's own direction, -1 the opposite one,
/// 0 says nothing. Means over images, with 95 % intervals.
#[derive(Args)]
pub struct MapsArgs {
    /// The classifier; by default the bundled one.
    #[arg(long, value_name = "FILE", requires = "trn")]
    model: Option<PathBuf>,
    /// The restoration network trained for it.
    #[arg(long, value_name = "FILE", requires = "model")]
    trn: Option<PathBuf>,
    /// Data set to take test images from; by default the bundled sample.
    #[arg(long)]
    data: Option<DatasetSpec>,
    /// Number of images: the first of the test split.
    #[arg(long, default_value_t = 200)]
    images: usize,
    /// An attack, [THREAT:]ATTACK@[NORM:]EPSILON (see `talion evaluate --help`); may be given several times.
    #[arg(
        long = "attack",
        value_name = "SETTING",
        default_values = ["fgsm@8/255", "pgd-20@2/255", "pgd-20@8/255", "pgd-20@16/255", "mim-20@8/255", "exact:pgd-20@8/255"]
    )]
    attacks: Vec<Setting>,
    /// Seed of every random start.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Also write the result as JSON to this file.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &MapsArgs, json: bool) -> CommandResult {
    catch_interrupts();
    let device = Device::cuda_if_available();
    let networks = Networks::load(args.model.as_deref(), None, args.trn.as_deref(), device)?;
    let data = test_split(args.data.as_ref())?;
    fits(&networks.classifier, &data)?;
    let samples = Samples::first(&data, args.images, device)?;
    let plan = Plan { settings: args.attacks.clone(), seed: args.seed };
    let mut bars = Bars::default();
    let rows: Vec<Aligned> = alignments(
        &networks.classifier,
        &networks.trn,
        (&samples.images, &samples.labels, &samples.ids),
        &plan,
        &mut |setting, done, total| bars.show(setting, done, total),
    )?;
    drop(bars);
    let report = json!({
        "data": data.name(), "images": samples.ids.len(), "seed": args.seed, "rows": rows,
        "trn": networks.trn.card(), "classifier": networks.classifier.card(),
    });
    if let Some(path) = &args.output {
        write_atomically(path, report.to_string().as_bytes())?;
    }
    if json {
        println!("{report}");
        return Ok(());
    }
    println!(
        "{}, of the first {} test images those that the classifier is right about; means and 95 % intervals over images\n",
        data.name(),
        samples.ids.len()
    );
    println!("{}", alignment_markdown(&rows));
    Ok(())
}
