//! `talion model`: what is in a file, what it needs said beside it, and whether that is right.

mod check;
mod describe;
mod inspect;

pub use check::{accuracy, far_below};
use clap::{Args, Subcommand};
pub use describe::size;
use serde_json::json;

use crate::failure::CommandResult;

/// Look at classifiers, and bring your own.
///
/// Wherever a command takes a classifier (--model), it takes any of: a file of `talion train`; ONNX; TorchScript; PyTorch
/// weights (torch.save or safetensors) of ResNet-18, PreActResNet-18, WideResNet-28 and VGG-16-BN for small images. What
/// such a file does not say itself (standardisation, order of channels, image size, class names) stands in a small file
/// beside it, FILE.toml, which `talion model describe` writes and `talion model check` checks on labelled images.
#[derive(Args)]
pub struct ModelArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Show layers, shapes, weights, what is assumed, what is unsupported, and how fast it is.
    Inspect(inspect::InspectArgs),
    /// State what a file does not say itself, in FILE.toml beside it.
    Describe(describe::DescribeArgs),
    /// Measure a classifier on labelled images, and look for the likely cause if it is worse than stated.
    Check(check::CheckArgs),
    /// List the ONNX operators that can be imported, and those that export can differentiate.
    Operators,
}

/// Runs the command.
pub fn run(args: &ModelArgs, json: bool) -> CommandResult {
    match &args.what {
        What::Inspect(args) => inspect::run(args, json),
        What::Describe(args) => describe::run(args, json),
        What::Check(args) => check::run(args, json),
        What::Operators => operators(json),
    }
}

fn operators(json: bool) -> CommandResult {
    let (supported, differentiable) = (talion_onnx::supported(), talion_onnx::differentiable());
    if json {
        println!("{}", json!({ "supported": supported, "differentiable_in_export": differentiable }));
        return Ok(());
    }
    println!("{} operators can be imported (ONNX operator sets 7 to 25):\n", supported.len());
    println!("{}\n", supported.join(", "));
    println!("{} have a derivative that `talion export` can write out:\n", differentiable.len());
    println!("{}", differentiable.join(", "));
    Ok(())
}
