//! A classifier from scratch, as `talion train classifier` trains it.

use std::ops::ControlFlow;

use talion_data::Augmentation;
use talion_models::training::{ClassifierTraining, Event, train_classifier};
use tch::Device;

use super::timed;
use crate::{
    error::Result,
    loaded::Loaded,
    protocol::{Report, TrainClassifier},
};

/// Trains on the first images.
///
/// # Errors
/// If there are not so many images, or a setting cannot be used.
pub fn run(job: &TrainClassifier, loaded: &Loaded) -> Result<Report> {
    let data = loaded.training_set(job.images, job.classes.unwrap_or_else(|| loaded.classes()))?;
    let usual = ClassifierTraining::default();
    let config = ClassifierTraining {
        architecture: job.architecture,
        epochs: job.epochs,
        batch_size: job.batch,
        augmentation: if job.augment { usual.augmentation } else { Augmentation::default() },
        precision: job.precision,
        // the fewest that there may be; it is the image that the training set has more
        validation: 1,
        seed: job.seed,
        ..usual
    };
    let (seconds, _) = timed(|| {
        let go_on = &mut |_: &Event| ControlFlow::Continue(());
        Ok(train_classifier(&config, &data, Device::Cpu, None, go_on)?)
    })?;
    // a last partial batch is left out
    let steps = ((job.images / job.batch.max(1)) as u64).saturating_mul(job.epochs);
    let epochs = usize::try_from(job.epochs).unwrap_or(usize::MAX);
    let images = job.images.saturating_mul(epochs);
    Ok(Report { seconds, images, steps: Some(steps), ..Report::default() })
}
