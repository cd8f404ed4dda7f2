//! Asks a classifier, from whatever file talion reads classifiers from, for logits and their gradient.
//!
//! ```text
//! cargo build --release --workspace --examples
//! target/release/examples/logits MODEL IN.safetensors OUT.safetensors
//! ```
//!
//! IN holds `images` [N, C, H, W] in [0, 1], and `cotangent` [N, K] if the gradient is wanted. OUT has `logits` [N, K]
//! and `gradient` [N, C, H, W], the derivative of the sum of logits times cotangent, taken as every attack takes it.
//! bench/import uses it.

use std::{collections::BTreeMap, error::Error, path::Path, process::ExitCode};

use talion_core::Classifier;
use talion_models::Model;
use tch::{Device, Kind, Tensor};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, input, output] = arguments.as_slice() else {
        eprintln!("usage: logits MODEL IN.safetensors OUT.safetensors");
        return ExitCode::from(2);
    };
    match run(model.as_ref(), input.as_ref(), output.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("logits: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(model: &Path, input: &Path, output: &Path) -> Result<(), Box<dyn Error>> {
    let model = Model::load(model, Device::Cpu)?;
    let tensors: BTreeMap<String, Tensor> = Tensor::read_safetensors(input)?.into_iter().collect();
    let images = tensors.get("images").ok_or_else(|| format!("{}: holds no `images`", input.display()))?;
    talion_core::check_images(images)?;
    let logits = tch::no_grad(|| model.try_logits(images))?;
    let mut results = vec![("logits", logits.contiguous())];
    if let Some(cotangent) = tensors.get("cotangent") {
        if cotangent.size() != logits.size() {
            let (found, wanted) = (cotangent.size(), logits.size());
            return Err(format!("cotangent has shape {found:?}, expected {wanted:?}").into());
        }
        let loss = |logits: &Tensor| (logits * cotangent).sum_dim_intlist(1_i64, false, Kind::Float);
        results.push(("gradient", model.loss_gradient(images, &loss).gradient.contiguous()));
    }
    Tensor::write_safetensors(&results, output)?;
    Ok(())
}
