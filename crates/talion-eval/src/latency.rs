//! How long entrants take to answer.

use std::{path::Path, time::Instant};

use talion_core::{Classifier, Error, Result, write_atomically};
use tch::Tensor;

use crate::{Entrant, Latency};

/// Batch sizes that are timed, and how often.
const TIMED: [(i64, usize); 2] = [(1, 30), (64, 5)];

/// Times every entrant's answer, without padding, after one answer to warm up. The figures are the machine's, and change
/// from run to run; they are no part of a run's results.
///
/// # Shapes
/// `images` `[N, C, H, W]` in `[0, 1]`, at least one.
///
/// # Errors
/// If defence and classifier do not fit each other.
pub fn latencies(entrants: &[Entrant<'_>], images: &Tensor) -> Result<Vec<Latency>> {
    let rows = images.size().first().copied().unwrap_or(0);
    let mut found = Vec::new();
    if rows == 0 {
        return Ok(found);
    }
    for entrant in entrants {
        let seen = entrant.seen(talion_defenses::GradientMode::Exact)?;
        for (batch, repetitions) in TIMED {
            let place: Vec<i64> = (0..batch).map(|row| row % rows).collect();
            let images = images.index_select(0, &Tensor::from_slice(&place).to_device(images.device()));
            let images = images.to_device(seen.device());
            let mut seconds: Vec<f64> = (0..=repetitions).map(|_| answer(seen.as_ref(), &images)).collect();
            seconds.remove(0);
            seconds.sort_by(f64::total_cmp);
            found.push(Latency {
                contender: entrant.player.name.clone(),
                batch: batch as usize,
                median: seconds[seconds.len() / 2],
                slowest: seconds.last().copied().unwrap_or_default(),
            });
        }
    }
    Ok(found)
}

fn answer(classifier: &dyn Classifier, images: &Tensor) -> f64 {
    let started = Instant::now();
    // reading a value waits for the device
    let _ = tch::no_grad(|| classifier.logits(images)).sum(tch::Kind::Float).double_value(&[]);
    started.elapsed().as_secs_f64()
}

const FILE: &str = "latency.json";

/// Keeps latencies beside the run in the folder `run`.
///
/// # Errors
/// If the file cannot be written.
pub fn keep_latencies(run: &Path, latencies: &[Latency]) -> Result<()> {
    write_atomically(&run.join(FILE), serde_json::to_string(latencies).map_err(Error::other)?.as_bytes())
}

/// The latencies that are kept beside the run in the folder `run`; none if there are none.
///
/// # Errors
/// If the file is there and cannot be read.
pub fn kept_latencies(run: &Path) -> Result<Vec<Latency>> {
    let path = run.join(FILE);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read(&path).map_err(Error::io(&path))?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::file(&path, format!("{error}; delete it and evaluate again to time anew")))
}
