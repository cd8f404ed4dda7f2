//! One attack, every image through all of it, as the driver of talion-attacks does it.

use std::ops::ControlFlow;

use talion_attacks::{AttackSpec, Batch, RunOptions, Seeks};
use talion_core::{Budget, Norm, Objective};
use tch::Kind;

use super::timed;
use crate::{
    error::{Error, Result},
    loaded::Loaded,
    protocol::{Attack, Report},
};

/// Attacks the first images.
///
/// # Errors
/// If the attack is unknown or cannot be used, or what it needs is not loaded.
pub fn run(job: &Attack, loaded: &Loaded) -> Result<Report> {
    let (spec, norm) = spec(job)?;
    let samples = loaded.first(job.images)?;
    let batch = Batch {
        images: &samples.images,
        labels: &samples.labels,
        ids: samples.ids,
        budget: Budget::new(norm, epsilon(job, &spec, loaded)?)?,
        objective: Objective::CrossEntropy,
        seed: job.seed,
        restart: 0,
    };
    let options = RunOptions::default();
    let (seconds, outcome) = loaded.with_victim(job.defended, job.setting, |victim| {
        timed(|| {
            Ok(talion_attacks::run(&spec, victim, &batch, &options, &mut |_| ControlFlow::Continue(()))?)
        })
    })?;
    let fooled = outcome.success.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
    Ok(Report {
        seconds,
        images: job.images,
        robust: Some(1.0 - fooled),
        attack: Some(spec.to_string()),
        ..Report::default()
    })
}

/// The attack and the norm that the job names.
fn spec(job: &Attack) -> Result<(AttackSpec, Norm)> {
    let (head, settings) = job.attack.split_once(':').unwrap_or((job.attack.as_str(), ""));
    let (kind, suffix) = match head.strip_suffix("-l2") {
        Some(kind) => (kind, Some(Norm::L2)),
        None => (head, None),
    };
    let mut name = kind.to_owned();
    if let Some(steps) = job.steps.filter(|_| has_steps(kind)) {
        name += &format!("-{steps}");
    }
    if !settings.is_empty() {
        name += &format!(":{settings}");
    }
    if let Some(search) = job.search.filter(|_| searches(kind)) {
        name += &format!(":search={search}");
    }
    if let Some(step) = job.step.filter(|_| has_step_size(kind)) {
        name += &format!(":step={step}");
    }
    let spec: AttackSpec = name.parse()?;
    let norm = job.norm.or(suffix).unwrap_or_else(|| usual_norm(&spec));
    Ok((spec, norm))
}

/// Whether names of this kind may hold a number of steps.
fn has_steps(kind: &str) -> bool {
    !matches!(kind, "fgsm" | "noise" | "jsma")
}

/// Whether names of this kind, counts and all, may hold a number of searches.
fn searches(kind: &str) -> bool {
    is_one_of(kind, &["cw", "ead"])
}

/// Whether names of this kind, counts and all, may hold the size of a step on the image scale.
fn has_step_size(kind: &str) -> bool {
    is_one_of(kind, &["pgd", "bim", "mim", "eot-pgd"])
}

/// Whether `kind`, without counts such as the `-20` of `pgd-20`, is among the `others`.
fn is_one_of(kind: &str, others: &[&str]) -> bool {
    others.iter().any(|other| {
        let rest = kind.strip_prefix(other);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    })
}

/// The norm that papers and libraries have for a kind of attack.
fn usual_norm(spec: &AttackSpec) -> Norm {
    match spec.entry().map_or("", |entry| entry.kind) {
        "cw" | "ddn" | "ead" | "deepfool" => Norm::L2,
        "jsma" => Norm::L0,
        _ => Norm::Linf,
    }
}

/// The budget's radius. An attack that seeks the smallest change looks at it in the end only; without one, every change of
/// the box counts, for none is larger than its number of values in any norm.
fn epsilon(job: &Attack, spec: &AttackSpec, loaded: &Loaded) -> Result<f64> {
    let seeks_smallest = spec.entry().is_some_and(|entry| entry.seeks == Seeks::SmallestChange);
    match job.eps {
        Some(eps) => Ok(eps),
        None if seeks_smallest => Ok(loaded.size().iter().product::<i64>() as f64),
        None => Err(Error::range("eps", format!("a budget for {spec}"), "none")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Setting;

    fn job(attack: &str, steps: Option<u32>, step: Option<f64>) -> Attack {
        let attack = attack.to_owned();
        Attack {
            attack,
            steps,
            eps: None,
            step,
            search: None,
            norm: None,
            images: 1,
            defended: None,
            setting: Setting::Default,
            seed: 1,
        }
    }

    fn named(attack: &str, steps: Option<u32>, step: Option<f64>) -> (String, Norm) {
        let (spec, norm) = spec(&job(attack, steps, step)).unwrap();
        (spec.to_string(), norm)
    }

    #[test]
    fn names_counts_and_steps_make_an_attack() {
        assert_eq!(named("pgd", Some(20), Some(0.01)), ("pgd-20:step=0.01".into(), Norm::Linf));
        assert_eq!(named("pgd-20", None, Some(0.01)), ("pgd-20:step=0.01".into(), Norm::Linf));
        assert_eq!(named("pgd-20x2:step=2/255", None, None).0, format!("pgd-20x2:step={}", 2.0 / 255.0));
        assert_eq!(named("pgd-l2", Some(7), None), ("pgd-7".into(), Norm::L2));
        // what an attack does not have is left out
        assert_eq!(named("fgsm", Some(1), Some(0.01)), ("fgsm".into(), Norm::Linf));
        assert_eq!(named("apgd-ce", Some(50), Some(0.01)), ("apgd-ce-50".into(), Norm::Linf));
        assert_eq!(named("cw-l2:search=1", Some(9), None), ("cw-9:search=1".into(), Norm::L2));
        assert_eq!(named("deepfool", Some(50), None), ("deepfool-50".into(), Norm::L2));
        let searching = Attack { search: Some(1), ..job("cw-l2", Some(9), Some(0.01)) };
        assert_eq!(spec(&searching).unwrap().0.to_string(), "cw-9:search=1");
        let chosen = Attack { norm: Some(Norm::Linf), ..job("deepfool", None, None) };
        assert_eq!(spec(&chosen).unwrap().1, Norm::Linf);
    }

    #[test]
    fn what_is_no_attack_is_an_error() {
        for (attack, steps) in [("nothing", None), ("pgd-20", Some(20)), ("pgd", Some(0)), ("", None)] {
            assert!(spec(&job(attack, steps, None)).is_err(), "{attack}");
        }
        assert!(spec(&job("pgd", None, Some(-0.1))).is_err());
    }
}
