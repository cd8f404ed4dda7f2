//! The standard AutoAttack: each attack on the samples that resisted those before, a sample left alone once it is fooled.

use std::ops::ControlFlow;

use talion_attacks::{AutoAttack, Batch, Cascade, Fooled, RunOptions};
use talion_core::{Budget, Norm, Objective};

use super::timed;
use crate::{
    error::Result,
    loaded::Loaded,
    protocol::{Autoattack, Report},
};

/// Attacks the first images.
///
/// # Errors
/// If what it needs is not loaded, or the attack fails.
pub fn run(job: &Autoattack, loaded: &Loaded) -> Result<Report> {
    let samples = loaded.first(job.images)?;
    let batch = Batch {
        images: &samples.images,
        labels: &samples.labels,
        ids: samples.ids,
        budget: Budget::new(Norm::Linf, job.eps)?,
        objective: Objective::CrossEntropy,
        seed: job.seed,
        restart: 0,
    };
    // as `talion attack autoattack` does
    let options = RunOptions { until_fooled: true };
    let (seconds, cascade) = loaded.with_victim(job.defended, job.setting, |victim| {
        timed(|| {
            let which = AutoAttack::Standard;
            Ok(talion_attacks::autoattack(&which, victim, &batch, &options, &mut |_, _| {
                ControlFlow::Continue(())
            })?)
        })
    })?;
    Ok(Report {
        seconds,
        images: job.images,
        robust: Some(cascade.robust_accuracy()),
        clean: Some(clean(&cascade)),
        attack: Some("autoattack-standard".into()),
        stages: Some(cascade.stages),
        ..Report::default()
    })
}

/// The share that was classified right before the attacks.
fn clean(cascade: &Cascade) -> f64 {
    let right = cascade.fooled.iter().filter(|&&fooled| fooled != Fooled::Benign).count();
    right as f64 / cascade.fooled.len().max(1) as f64
}
