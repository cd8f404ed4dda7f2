//! The jobs, a kind a file.

mod answers;
mod attack;
mod autoattack;
mod gradient;
mod restore;
mod train_classifier;
mod train_trn;

use std::time::Instant;

use crate::{
    error::{Error, Result},
    loaded::Loaded,
    protocol::{Job, Repeated, Report},
};

/// Does a job with what is loaded.
///
/// # Errors
/// If the job asks for what is not loaded, or cannot be done.
pub fn run(job: &Job, loaded: &Loaded) -> Result<Report> {
    match job {
        Job::Gradient(job) => gradient::run(job, loaded),
        Job::Attack(job) => attack::run(job, loaded),
        Job::Autoattack(job) => autoattack::run(job, loaded),
        Job::TrainClassifier(job) => train_classifier::run(job, loaded),
        Job::TrainTrn(job) => train_trn::run(job, loaded),
        Job::Restore(job) => restore::run(job, loaded),
        Job::Answers(job) => answers::run(job, loaded),
    }
}

/// The seconds that `work` takes, and what it gives.
fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let started = Instant::now();
    let result = work()?;
    Ok((started.elapsed().as_secs_f64(), result))
}

/// Calls `work` as often as the job says, each call timed.
fn repeated(job: &Repeated, mut work: impl FnMut()) -> Result<Report> {
    if job.repeat == 0 {
        return Err(Error::range("repeat", "at least 1", job.repeat));
    }
    let started = Instant::now();
    let call = || {
        let started = Instant::now();
        work();
        started.elapsed().as_secs_f64()
    };
    let each: Vec<f64> = std::iter::repeat_with(call).take(job.repeat).collect();
    let seconds = started.elapsed().as_secs_f64();
    let images = job.batch.saturating_mul(job.repeat);
    Ok(Report { seconds, images, each: Some(each), ..Report::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Setting;

    fn job(repeat: usize) -> Repeated {
        Repeated { batch: 3, repeat, defended: None, setting: Setting::Default }
    }

    #[test]
    fn every_call_is_timed_and_no_calls_are_refused() {
        let mut calls = 0;
        let report = repeated(&job(4), || calls += 1).unwrap();
        assert_eq!((calls, report.images), (4, 12));
        let each = report.each.unwrap();
        assert!(each.len() == 4 && each.iter().sum::<f64>() <= report.seconds + 1e-9);
        assert!(repeated(&job(0), || ()).is_err());
    }
}
