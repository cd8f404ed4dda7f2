//! Logits and the gradient with respect to the images: the inner step of every attack.

use talion_core::Objective;

use super::repeated;
use crate::{
    error::Result,
    loaded::Loaded,
    protocol::{Repeated, Report},
};

/// Takes the gradient of the first images.
///
/// # Errors
/// If a network is missing, or there are not so many images.
pub fn run(job: &Repeated, loaded: &Loaded) -> Result<Report> {
    let samples = loaded.first(job.batch)?;
    let (images, labels) = (&samples.images, &samples.labels);
    loaded.with_victim(job.defended, job.setting, |victim| {
        repeated(job, || drop(victim.input_gradient(images, labels, Objective::CrossEntropy)))
    })
}
