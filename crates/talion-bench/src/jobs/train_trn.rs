//! A round of training of a restoration network like the loaded one: attacking, preparing, one pass of steps.

use std::{ops::ControlFlow, time::Instant};

use talion_core::Tensors;
use talion_data::Augmentation;
use talion_defenses::{
    Trn, TrnCard,
    training::{TrnSources, TrnTraining, train_trn},
};
use talion_models::training::{Event, load_variables};
use tch::Device;

use super::timed;
use crate::{
    error::Result,
    loaded::Loaded,
    protocol::{Report, TrainTrn},
};

/// Trains a fresh network of the loaded one's specification, with its first pass.
///
/// # Errors
/// If a network is missing, there are not so many images, or a setting cannot be used.
pub fn run(job: &TrainTrn, loaded: &Loaded) -> Result<Report> {
    let (model, trn) = (loaded.model()?, loaded.trn()?);
    let data = loaded.training_set(job.pool, loaded.classes())?;
    let first = first_pass(trn)?;
    let config = config(job, trn);
    let sources = TrnSources {
        classifier: model,
        others: &[],
        architecture: model.card().spec.architecture.to_string(),
        data: &data,
        first: first.as_ref(),
        snapshot: None,
        cache: None,
    };
    let mut watch = Watch::default();
    let (seconds, _) = timed(|| Ok(train_trn(&config, &sources, &mut |event| watch.observe(event))?))?;
    let steps = (job.pool / job.batch.max(1)) as u64;
    let without_validation = watch.seconds();
    Ok(Report { seconds, images: job.pool, steps: Some(steps), without_validation, ..Report::default() })
}

fn config(job: &TrainTrn, trn: &Trn) -> TrnTraining {
    TrnTraining {
        mixture: job.attack.clone(),
        pool: job.pool,
        replays: 1,
        rounds: 1,
        batch_size: job.batch,
        augmentation: Augmentation::default(),
        validation_sample: 1,
        seed: job.seed,
        // one image set aside, the fewest that there may be
        ..TrnTraining::new(trn.card().spec.clone(), 1, 1)
    }
}

/// The one-stream network inside of a network that restores twice.
fn first_pass(trn: &Trn) -> Result<Option<Trn>> {
    let Some(spec) = trn.card().spec.first.as_deref() else { return Ok(None) };
    let card = TrnCard { spec: spec.clone(), ..trn.card().clone() };
    let one_stream = Trn::new(card, Device::Cpu)?;
    // on its own it is the main pass, and the only one
    let weights: Tensors = trn
        .tensors()
        .into_iter()
        .filter_map(|(name, tensor)| Some((format!("main.{}", name.strip_prefix("first.")?), tensor)))
        .collect();
    load_variables(one_stream.store(), &weights)?;
    Ok(Some(one_stream.freeze()))
}

/// Tells apart what training takes and what its validation takes, which is prepared before the round and measured after it.
#[derive(Default)]
struct Watch {
    prepared: Option<Instant>,
    trained: Option<Instant>,
}

impl Watch {
    fn observe(&mut self, event: &Event) -> ControlFlow<()> {
        match event {
            Event::Preparing { what, .. } if what.contains("validation") => {
                self.prepared = Some(Instant::now());
            }
            Event::Progress { .. } => self.trained = Some(Instant::now()),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn seconds(&self) -> Option<f64> {
        let (prepared, trained) = (self.prepared?, self.trained?);
        Some(trained.saturating_duration_since(prepared).as_secs_f64())
    }
}
