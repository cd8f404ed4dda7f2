//! What the networks say of a few images, in a file: workers whose networks differ must not be compared.

use serde::{Deserialize, Serialize};
use talion_core::{Archive, Classifier, Tensors};
use talion_defenses::gradient_map::MapGraph;

use super::timed;
use crate::{
    error::Result,
    loaded::Loaded,
    protocol::{Answers, Report},
};

/// What the file says of itself.
#[derive(Serialize, Deserialize)]
struct Header {
    kind: String,
}

/// Writes the `logits` of the first images; where a TRN is loaded, the `restored` images and the logits of those.
///
/// # Errors
/// If there is no classifier, there are not so many images, or the file cannot be written.
pub fn run(job: &Answers, loaded: &Loaded) -> Result<Report> {
    let (seconds, tensors) = timed(|| tch::no_grad(|| answers(job, loaded)))?;
    Archive { header: Header { kind: "answers".into() }, tensors }.save(&job.output)?;
    Ok(Report { seconds, images: job.count, ..Report::default() })
}

fn answers(job: &Answers, loaded: &Loaded) -> Result<Tensors> {
    let (model, samples) = (loaded.model()?, loaded.first(job.count)?);
    let mut tensors = Tensors::new();
    let mut seen = samples.images;
    if let Some(trn) = loaded.trn_if_any() {
        seen = trn.restore(model, &seen, MapGraph::Constant);
        tensors.insert("restored".to_owned(), seen.shallow_clone());
    }
    tensors.insert("logits".to_owned(), model.logits(&seen));
    Ok(tensors)
}
