//! `talion evaluate`: how many images survive which attacker.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use talion_core::{Budget, write_atomically};
use talion_data::{DatasetSpec, Split};
use talion_eval::{Plan, Setting, markdown};
use tch::Device;

use crate::{
    bundled::Networks,
    failure::CommandResult,
    monitor::catch_interrupts,
    samples::Samples,
    show::{OBLIVIOUS_WARNING, ORACLE_WARNING, measured},
};

/// Measure a classifier bare and defended, under attacks that do not see the defence and under ones that do.
///
/// Measures the bundled pair on the bundled images unless files are named. The first images of the test split are taken,
/// so that nobody can choose them.
#[derive(Args)]
pub struct EvaluateArgs {
    /// The classifier.
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The restoration network.
    #[arg(long, value_name = "FILE")]
    trn: Option<PathBuf>,
    /// The one-stream twin, for comparison.
    #[arg(long, value_name = "FILE")]
    one_stream: Option<PathBuf>,
    /// Diagnosis: replace the TRN's map by that of the true label, which no defender has. Only for networks trained with
    /// the estimators predicted and coarse1 to coarse4; every output says so.
    #[arg(long)]
    oracle: bool,
    /// Data set to take test images from; by default the bundled sample.
    #[arg(long)]
    data: Option<DatasetSpec>,
    /// Number of images.
    #[arg(long, default_value_t = 200)]
    images: usize,
    /// An attack: [THREAT:]ATTACK@[NORM:]EPSILON, for instance `pgd-20@8/255`, `exact:pgd-40x2@8/255`,
    /// `oblivious:pgd-20@l2:0.5`; may be given several times. THREAT says what the attacker differentiates: oblivious
    /// (default; the bare classifier), bpda, detached, exact. Without any, the attacks of the paper at 8/255 and
    /// PGD-40 by attackers who know the defence.
    #[arg(long = "attack", value_name = "SETTING")]
    attacks: Vec<Setting>,
    /// Also write the result, with every sample's outcome, as JSON to this file.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Seed of every random start.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs the command.
pub fn run(args: &EvaluateArgs, json: bool) -> CommandResult {
    catch_interrupts();
    let device = Device::cuda_if_available();
    let mut networks =
        Networks::load(args.model.as_deref(), args.one_stream.as_deref(), args.trn.as_deref(), device)?;
    if args.oracle {
        networks.trn = networks.trn.with_oracle()?;
    }
    let data = match &args.data {
        Some(spec) => talion_data::load(spec, Split::Test, None)?,
        None => talion_data::fashion_mnist_sample()?,
    };
    let samples = Samples::first(&data, args.images, device)?;
    let eight = Budget::linf_levels(8.0)?;
    let plan = match args.attacks.as_slice() {
        [] => Plan::oblivious(&[eight], args.seed)?.and_adaptive("pgd-40", eight)?,
        attacks => Plan { settings: attacks.to_vec(), seed: args.seed },
    };
    let rows = measured(&networks, &samples, &plan)?;
    let report = json!({
        "data": data.name(), "images": samples.ids.len(), "seed": args.seed, "rows": rows,
        "adaptive": plan.is_adaptive(), "oracle": args.oracle, "trn": networks.trn.card(), "classifier": networks.classifier.card(),
    });
    if let Some(path) = &args.output {
        write_atomically(path, report.to_string().as_bytes())?;
    }
    if json {
        println!("{report}");
        return Ok(());
    }
    println!("{}, first {} test images, accuracy in % (95 % interval)\n", data.name(), samples.ids.len());
    println!("{}", markdown(&rows));
    if args.oracle {
        println!("{ORACLE_WARNING}\n");
    }
    if plan.is_adaptive() {
        println!("{OBLIVIOUS_WARNING}");
    } else {
        println!(
            "NO ATTACKER HERE KNOWS THE DEFENCE: these figures say nothing about robustness. Add --attack exact:..."
        );
    }
    Ok(())
}
