//! Restoration, and classification of what it restored: what a guard does with every image.

use talion_core::Classifier;
use talion_defenses::{Defended, GradientMode};

use super::repeated;
use crate::{
    error::Result,
    loaded::Loaded,
    protocol::{Repeated, Report},
};

/// Restores and classifies the first images.
///
/// # Errors
/// If a network is missing, or there are not so many images.
pub fn run(job: &Repeated, loaded: &Loaded) -> Result<Report> {
    let samples = loaded.first(job.batch)?;
    // every view that knows the defence answers alike, and nobody differentiates here
    let defended = Defended::new(loaded.model()?, loaded.trn()?, GradientMode::Detached)?;
    repeated(job, || drop(tch::no_grad(|| defended.logits(&samples.images))))
}
