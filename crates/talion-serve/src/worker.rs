//! The thread that owns a guard and answers batches.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use crate::{
    guard::{Guard, Verdict, Wants},
    metrics::Metrics,
    queue::{Job, Queue, Refusal},
};

/// How a worker makes batches.
#[derive(Clone, Copy, Debug)]
pub struct Batching {
    /// Images at once, at most.
    pub most: usize,
    /// How long the first image waits for others.
    pub patience: Duration,
}

/// Answers what comes out of `queue` until it is closed and empty.
pub fn work(guard: &Guard, queue: &Queue, batching: Batching, metrics: &Metrics) {
    while let Some(jobs) = queue.take(batching.most, batching.patience) {
        let (late, jobs): (Vec<Job>, Vec<Job>) =
            jobs.into_iter().partition(|job| job.deadline <= Instant::now());
        for job in late {
            // whoever is gone cannot be told
            let _ = job.answer.send(Err(Refusal::Deadline));
        }
        // nobody waits for those whose connection has been closed
        let jobs: Vec<Job> = jobs.into_iter().filter(|job| !job.answer.is_closed()).collect();
        if !jobs.is_empty() {
            answer(guard, queue, jobs, batching.most, metrics);
        }
    }
}

fn answer(guard: &Guard, queue: &Queue, jobs: Vec<Job>, most: usize, metrics: &Metrics) {
    let begun = Instant::now();
    let images = jobs.iter().map(|job| job.count).sum();
    let values: Vec<f32> = jobs.iter().flat_map(|job| &job.values).copied().collect();
    let wants = Wants {
        restored: jobs.iter().any(|job| job.wants.restored),
        map: jobs.iter().any(|job| job.wants.map),
    };
    let mut verdicts = judged(guard, &values, most, wants, metrics).map(Vec::into_iter);
    for job in jobs {
        let answer = match &mut verdicts {
            Some(verdicts) => Ok(verdicts.take(job.count).map(|verdict| only(verdict, job.wants)).collect()),
            None => Err(Refusal::Failed),
        };
        let _ = job.answer.send(answer);
    }
    queue.note_pace(images, begun.elapsed());
}

/// The verdict less what this client did not want.
fn only(mut verdict: Verdict, wants: Wants) -> Verdict {
    verdict.restored = verdict.restored.filter(|_| wants.restored);
    verdict.map = verdict.map.filter(|_| wants.map);
    verdict
}

fn judged(
    guard: &Guard,
    values: &[f32],
    most: usize,
    wants: Wants,
    metrics: &Metrics,
) -> Option<Vec<Verdict>> {
    let length = guard.shape().len();
    let mut verdicts = Vec::new();
    for part in values.chunks(most * length) {
        let begun = Instant::now();
        let count = part.len() / length;
        // libtorch's errors may be panics; the thread has to outlive them
        let result = catch_unwind(AssertUnwindSafe(|| guard.judge(part, count, wants)));
        match result {
            Ok(Ok(part)) => verdicts.extend(part),
            Ok(Err(error)) => {
                tracing::error!(%error, images = count, "a batch failed");
                return None;
            }
            Err(_) => {
                tracing::error!(images = count, "a batch made libtorch panic");
                return None;
            }
        }
        metrics.batch(count, begun.elapsed());
    }
    Some(verdicts)
}
