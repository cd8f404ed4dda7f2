//! `talion demo`: everything in a minute, without data or network.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use talion_core::Budget;
use talion_eval::{Plan, markdown};
use tch::Device;

use crate::{
    bundled::Networks,
    failure::CommandResult,
    monitor::catch_interrupts,
    samples::Samples,
    show::{OBLIVIOUS_WARNING, contenders, draw, measured},
};

/// Attack and restore bundled images with the pretrained pair, and draw what happened.
///
/// Prints the accuracy of the undefended classifier, of the one-stream twin and of TRN, on clean images and under attacks
/// that do not see the defence, then under attacks that do. Intervals are 95 % (Wilson).
#[derive(Args)]
pub struct DemoArgs {
    /// How many of the bundled test images to attack; the attacks that know the defence get half as many.
    #[arg(long, default_value_t = 64)]
    images: usize,
    /// Where to write the picture.
    #[arg(short, long, value_name = "FILE", default_value = "talion-demo.png")]
    output: PathBuf,
    /// Seed of every random start.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs the command.
pub fn run(args: &DemoArgs, json: bool) -> CommandResult {
    catch_interrupts();
    let started = std::time::Instant::now();
    let device = Device::cuda_if_available();
    let networks = Networks::bundled(device)?;
    let data = talion_data::fashion_mnist_sample()?;
    let small = Budget::linf_levels(8.0)?;
    let large = Budget::new(talion_core::Norm::Linf, 0.1)?;

    let all = contenders(&networks);
    let samples = Samples::first(&data, args.images, device)?;
    let oblivious =
        measured(&networks.classifier, &all, &samples, &Plan::oblivious(&[small, large], args.seed)?)?;
    let fewer = Samples::first(&data, args.images.div_ceil(2), device)?;
    // The strongest view alone: a minute is all there is. `talion evaluate` runs the others.
    let adaptive = Plan { settings: vec!["exact:pgd-20@8/255".parse()?], seed: args.seed };
    let adaptive = measured(&networks.classifier, &all, &fewer, &adaptive)?;
    draw(&networks, &fewer, (&"pgd-20".parse()?, small), 4, args.seed, &args.output)?;

    let seconds = started.elapsed().as_secs_f64();
    if json {
        let report = json!({
            "oblivious": oblivious, "adaptive": adaptive, "picture": args.output, "seconds": seconds,
            "seed": args.seed,
        });
        println!("{report}");
        return Ok(());
    }
    println!("Fashion-MNIST, {} test images, accuracy in % (95 % interval)\n", samples.ids.len());
    println!("{}", markdown(&oblivious));
    println!("{} of them, attacked by somebody who knows the defence:\n", fewer.ids.len());
    println!("{}\n{OBLIVIOUS_WARNING}\n", markdown(&adaptive));
    println!("{} shows it; {seconds:.0} s; seed {}.", args.output.display(), args.seed);
    Ok(())
}
