//! `talion train restorer`: networks that are trained on clean images alone, to compare with.

use std::path::PathBuf;

use clap::Args;
use talion_data::{Augmentation, DatasetSpec, Split};
use talion_defenses::baselines::{Restorer, RestorerTraining, train_restorer};
use tch::Device;

use crate::{failure::CommandResult, monitor::Monitor};

/// Train a defence to compare with that knows no attacks: a compressor or a denoiser.
///
/// Use it with `talion evaluate --defence FILE`; a denoiser takes settings: `--defence FILE:sigma=0.25,steps=4,votes=8`.
#[derive(Args)]
pub struct RestorerArgs {
    /// `compressor`: to twelve bits a pixel and back (after ComDefend, Jia et al. 2019). `denoiser`: takes Gaussian noise off
    /// (denoised smoothing, Salman et al. 2020, and purification by diffusion).
    #[arg(long)]
    what: Restorer,
    /// Data set: a name (see `talion data --help`), NAME:FOLDER, or folder:FOLDER.
    #[arg(long)]
    data: DatasetSpec,
    /// Where to write the network.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Channels of its narrowest hidden layers.
    #[arg(long, default_value_t = 16)]
    width: i64,
    /// Passes over the training images.
    #[arg(long, default_value_t = 10)]
    epochs: u64,
    /// Images a step.
    #[arg(long, default_value_t = 64)]
    batch_size: usize,
    /// Highest learning rate of the one-cycle schedule.
    #[arg(long, default_value_t = 2e-3)]
    rate: f64,
    /// Training images set aside to measure on; as many as for the classifier, so that neither has seen them.
    #[arg(long, default_value_t = 2000)]
    validation: usize,
    /// Seed of the validation split: the classifier's.
    #[arg(long, default_value_t = 1)]
    split_seed: u64,
    /// Seed of initial weights, order, augmentation and noise.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs the command.
pub fn run(args: &RestorerArgs, json: bool) -> CommandResult {
    let data = talion_data::load(&args.data, Split::Train, None)?;
    let config = RestorerTraining {
        width: args.width,
        epochs: args.epochs,
        batch_size: args.batch_size,
        peak_rate: args.rate,
        augmentation: Augmentation::standard(&args.data, &data),
        seed: args.seed,
        ..RestorerTraining::new(args.what, args.validation, args.split_seed)
    };
    let mut monitor =
        Monitor::new(&args.what.to_string(), Some(&args.output.with_extension("metrics.jsonl")))?;
    let (device, snapshot) = (Device::cuda_if_available(), args.output.with_extension("snapshot"));
    let network =
        train_restorer(&config, &data, device, Some(&snapshot), &mut |event| monitor.observe(event))?;
    network.save(&args.output)?;
    if json {
        println!("{}", serde_json::to_string(network.card())?);
    } else {
        let error = network.card().metrics.get("validation_mean_squared_error").copied().unwrap_or(f64::NAN);
        println!(
            "{} written: {} weights, mean squared error {error:.5} on validation images",
            args.output.display(),
            network.parameters()
        );
    }
    Ok(())
}
