//! What papers on evaluation ask of one, answered from a run's own outcomes.

use std::collections::BTreeSet;

use talion_attacks::{Alarm, compared, comparisons};

use crate::{
    Experiment, Finding, Latency, Part, Proportion, Threat, Verdict,
    facts::{Facts, proportion},
    summarise::own_attacks,
};

const CARLINI: &str = "Carlini et al. 2019, arXiv 1902.06705";
const CROCE: &str = "Croce et al. 2022, arXiv 2202.13711";
const ATHALYE: &str = "Athalye et al. 2018, arXiv 1802.00420";

/// The checks, each over all contenders that it concerns: one that fails for any of them fails.
pub(crate) fn checklist(facts: &Facts, latencies: &[Latency]) -> Vec<Verdict> {
    let defended: Vec<&str> = facts
        .config
        .contenders
        .iter()
        .filter(|player| player.defended)
        .map(|player| player.name.as_str())
        .collect();
    let mut verdicts = vec![
        views(
            facts,
            &defended,
            "exact-gradients",
            "Was every defence attacked through its exact gradients, end to end?",
            Threat::Exact,
            CARLINI,
        ),
        views(
            facts,
            &defended,
            "without-gradients",
            "Was every defence attacked without gradients, by its answers alone?",
            Threat::BlackBox,
            CARLINI,
        ),
        views(
            facts,
            &defended,
            "straight-through",
            "Was every defence attacked with the identity in place of its derivative (BPDA)?",
            Threat::Bpda,
            ATHALYE,
        ),
        views(
            facts,
            &defended,
            "transfer",
            "Did every defence face images made on another classifier?",
            Threat::Transfer,
            CARLINI,
        ),
        views(
            facts,
            &defended,
            "base-model",
            "Did every defence face the images that fool its own bare classifier?",
            Threat::Oblivious,
            CROCE,
        ),
    ];
    verdicts.push(adaptive_is_stronger(facts, &defended));
    verdicts.push(better_than_base(facts, &defended));
    verdicts.push(unbounded(facts));
    verdicts.extend(compare(facts));
    verdicts.push(noise(facts));
    verdicts.push(step_sizes(facts, &defended));
    verdicts.push(starts(facts, &defended));
    verdicts.push(losses(facts, &defended));
    verdicts.push(enough(facts));
    verdicts.push(cost(latencies, &defended));
    verdicts
}

fn verdict(name: &str, question: &str, source: &str, finding: Finding, evidence: String) -> Verdict {
    Verdict { name: name.into(), question: question.into(), source: source.into(), finding, evidence }
}

/// Whether every defence faced a threat model.
fn views(
    facts: &Facts,
    defended: &[&str],
    name: &str,
    question: &str,
    threat: Threat,
    source: &str,
) -> Verdict {
    let mut parts = Vec::new();
    let mut all = true;
    for contender in defended {
        let attacks: BTreeSet<String> = facts
            .experiments()
            .filter(|experiment| facts.threat(contender, experiment) == threat)
            .map(|experiment| experiment.attack.to_string())
            .collect();
        all &= !attacks.is_empty();
        let said = if attacks.is_empty() { "nothing".into() } else { Vec::from_iter(attacks).join(", ") };
        parts.push(format!("{contender}: {said}"));
    }
    let finding = if all && !defended.is_empty() { Finding::Pass } else { Finding::NotRun };
    verdict(name, question, source, finding, parts.join("; "))
}

/// An attacker who knows the defence and does worse than one who does not has not tried.
fn adaptive_is_stronger(facts: &Facts, defended: &[&str]) -> Verdict {
    let mut parts = Vec::new();
    let mut finding = if defended.is_empty() { Finding::NotRun } else { Finding::Pass };
    for contender in defended {
        let adaptive = facts.surviving(contender, &Threat::is_adaptive);
        let others =
            facts.surviving(contender, &|threat| matches!(threat, Threat::Oblivious | Threat::Transfer));
        let (Some(adaptive), Some(others)) = (adaptive, others) else {
            parts.push(format!("{contender}: not both were run"));
            finding = if finding == Finding::Fail { Finding::Fail } else { Finding::NotRun };
            continue;
        };
        let samples = adaptive.len().min(others.len());
        let (adaptive, others) = (proportion(&adaptive[..samples]), proportion(&others[..samples]));
        if adaptive.count > others.count {
            finding = Finding::Fail;
        }
        parts.push(format!(
            "{contender}: {adaptive} % left by attackers who know it, {others} % by those who do not"
        ));
    }
    verdict(
        "adaptive-is-stronger",
        "Do attackers who know a defence do at least as well as those who do not?",
        CARLINI,
        finding,
        parts.join("; "),
    )
}

fn better_than_base(facts: &Facts, defended: &[&str]) -> Verdict {
    let mut parts = Vec::new();
    let mut finding = Finding::NotRun;
    let base = facts.surviving(facts.base(), &|_| true);
    for contender in defended {
        let (Some(worst), Some(base)) = (facts.surviving(contender, &|_| true), &base) else { continue };
        let samples = worst.len().min(base.len());
        let (worst, base) = (proportion(&worst[..samples]), proportion(&base[..samples]));
        // the intervals have to be apart, or chance may have done it
        let better = worst.interval().0 > base.interval().1;
        finding = if better && finding != Finding::Fail { Finding::Pass } else { Finding::Fail };
        parts.push(format!("{contender}: {worst} % in the worst case, the bare classifier {base} %"));
    }
    verdict(
        "better-than-nothing",
        "Is every defence better than the bare classifier when the worst of all attacks is counted?",
        CROCE,
        finding,
        parts.join("; "),
    )
}

/// With a budget that lets every image become grey, nothing may be left.
fn unbounded(facts: &Facts) -> Verdict {
    let chance = 1.0 / facts.config.class_names.len().max(1) as f64;
    let mut parts = Vec::new();
    let mut finding = Finding::NotRun;
    for experiment in facts.experiments().filter(|experiment| experiment.part == Part::Control) {
        let left = proportion(&facts.right(experiment, &experiment.victim));
        let fallen = left.share() <= chance;
        finding = if fallen && finding != Finding::Fail { Finding::Pass } else { Finding::Fail };
        parts.push(format!(
            "{}: {left} % left by {} at {}",
            experiment.victim, experiment.attack, experiment.budget
        ));
    }
    verdict(
        "unbounded-attacks-succeed",
        "Does accuracy fall below chance when the budget allows any image?",
        CARLINI,
        finding,
        parts.join("; "),
    )
}

/// The comparisons of attacks with each other, as verdicts.
fn compare(facts: &Facts) -> Vec<Verdict> {
    let (mut alarms, mut kinds) = (Vec::new(), BTreeSet::new());
    for player in &facts.config.contenders {
        let tried = own_attacks(facts, &player.name);
        kinds.extend(compared(&tried));
        alarms.extend(comparisons(&tried).into_iter().map(|alarm| (player.name.clone(), alarm)));
    }
    let questions = [
        ("black-box-better", "Do attacks with gradients fool what attacks without them fool?", ATHALYE),
        ("single-step-better", "Do iterative attacks do better than a single step?", CARLINI),
        ("larger-budget-not-better", "Does a larger budget fool more?", CARLINI),
        (
            "not-converged",
            "Have the attacks converged: does doubling the iterations change nothing?",
            CARLINI,
        ),
    ];
    questions
        .into_iter()
        .map(|(kind, question, source)| {
            let said: Vec<String> = alarms
                .iter()
                .filter(|(_, alarm)| kind_of(alarm) == kind)
                .map(|(name, alarm)| format!("{name}: {alarm}"))
                .collect();
            let finding = match (kinds.contains(kind), said.is_empty()) {
                (false, _) => Finding::NotRun,
                (true, true) => Finding::Pass,
                (true, false) => Finding::Fail,
            };
            let evidence = match finding {
                Finding::NotRun => "no two attacks that could be compared".into(),
                Finding::Pass => "in every pair of attacks that could be compared".into(),
                Finding::Fail => said.join("; "),
            };
            let name = match kind {
                "black-box-better" => "gradients-are-not-masked",
                "single-step-better" => "iterations-beat-one-step",
                "larger-budget-not-better" => "larger-budgets-fool-more",
                _ => "converged",
            };
            verdict(name, question, source, finding, evidence)
        })
        .collect()
}

fn kind_of(alarm: &Alarm) -> &'static str {
    match alarm {
        Alarm::BlackBoxBetter { .. } => "black-box-better",
        Alarm::SingleStepBetter { .. } => "single-step-better",
        Alarm::LargerBudgetNotBetter { .. } => "larger-budget-not-better",
        Alarm::NotConverged { .. } => "not-converged",
        _ => "",
    }
}

/// Random changes of the full budget should cost little; a contender that they fool is not to be called anything.
fn noise(facts: &Facts) -> Verdict {
    let mut parts = Vec::new();
    let mut finding = Finding::NotRun;
    for player in &facts.config.contenders {
        let name = player.name.as_str();
        let Some(noisy) = facts.surviving(name, &|threat| threat == Threat::Noise) else { continue };
        let clean = proportion(&facts.clean(name)[..noisy.len().min(facts.clean(name).len())]);
        let noisy = proportion(&noisy);
        let stands = noisy.interval().1 >= clean.interval().0;
        finding = if stands && finding != Finding::Fail { Finding::Pass } else { Finding::Fail };
        parts.push(format!("{name}: {noisy} % right in spite of noise, {clean} % clean"));
    }
    verdict(
        "stands-noise",
        "Do random changes of the full budget leave the accuracy alone?",
        CARLINI,
        finding,
        parts.join("; "),
    )
}

/// Step sizes from small to large, the best inside the range.
fn step_sizes(facts: &Facts, defended: &[&str]) -> Verdict {
    let mut parts = Vec::new();
    let mut finding = Finding::NotRun;
    for contender in defended {
        let swept: Vec<&Experiment> = facts
            .experiments()
            .filter(|experiment| experiment.part == Part::Steps && experiment.victim == *contender)
            .collect();
        let shares: Vec<Proportion> =
            swept.iter().map(|experiment| proportion(&facts.right(experiment, contender))).collect();
        let Some(least) = shares.iter().map(|share| share.count).min() else { continue };
        let best: Vec<usize> = (0..shares.len()).filter(|&place| shares[place].count == least).collect();
        let inside = best.iter().any(|&place| place > 0 && place + 1 < shares.len());
        finding = if inside && finding != Finding::Fail { Finding::Pass } else { Finding::Fail };
        let said: Vec<String> = swept
            .iter()
            .zip(&shares)
            .map(|(experiment, share)| format!("{} {share} %", experiment.attack))
            .collect();
        parts.push(format!("{contender}: {}", said.join(", ")));
    }
    verdict(
        "step-size-was-swept",
        "Were several step sizes tried, the best of them neither the smallest nor the largest?",
        CARLINI,
        finding,
        parts.join("; "),
    )
}

fn starts(facts: &Facts, defended: &[&str]) -> Verdict {
    let several = |experiment: &&Experiment| {
        defended.contains(&experiment.victim.as_str())
            && talion_attacks::Attack::restarts(&experiment.attack, facts.config.class_names.len() as i64) > 1
    };
    let attacks: BTreeSet<String> =
        facts.experiments().filter(several).map(|experiment| experiment.attack.to_string()).collect();
    let finding = if attacks.is_empty() { Finding::NotRun } else { Finding::Pass };
    verdict(
        "several-starts",
        "Were defences attacked from several random starts, or towards several classes?",
        CARLINI,
        finding,
        Vec::from_iter(attacks).join(", "),
    )
}

fn losses(facts: &Facts, defended: &[&str]) -> Verdict {
    let mut kinds = BTreeSet::new();
    for experiment in facts.experiments().filter(|experiment| defended.contains(&experiment.victim.as_str()))
    {
        let name = experiment.attack.to_string();
        kinds.insert(match name.as_str() {
            name if name.starts_with("apgd-t") => "targeted logit ratio (DLR)",
            name if name.starts_with("apgd-dlr") => "logit ratio (DLR)",
            name if name.starts_with("fab") || name.starts_with("fmn") || name.starts_with("deepfool") => {
                "distance to the boundary"
            }
            name if name.starts_with("square") || name.starts_with("cw") => "margin",
            name if name.starts_with("hsj") => "decision",
            name if name.starts_with("noise") => continue,
            _ => "cross-entropy",
        });
    }
    let finding = if kinds.len() >= 3 { Finding::Pass } else { Finding::NotRun };
    verdict(
        "several-losses",
        "Were attacks with at least three different aims run against the defences?",
        CARLINI,
        finding,
        Vec::from_iter(kinds).join(", "),
    )
}

/// Whether the headline's interval is narrow enough to say something.
fn enough(facts: &Facts) -> Verdict {
    let mut parts = Vec::new();
    let mut finding = Finding::Pass;
    for player in &facts.config.contenders {
        let Some(worst) = facts.surviving(&player.name, &|_| true).map(|right| proportion(&right)) else {
            continue;
        };
        let (low, high) = worst.interval();
        if high - low > 0.1 {
            finding = Finding::Fail;
        }
        parts.push(format!("{}: {worst} % of {} samples", player.name, worst.total));
    }
    let finding = if parts.is_empty() { Finding::NotRun } else { finding };
    verdict(
        "enough-samples",
        "Is the 95 % interval of every worst case narrower than ten points?",
        "ours",
        finding,
        parts.join("; "),
    )
}

fn cost(latencies: &[Latency], defended: &[&str]) -> Verdict {
    let timed: Vec<String> = latencies
        .iter()
        .filter(|latency| latency.batch == 1)
        .map(|latency| format!("{}: {:.1} ms an image", latency.contender, 1e3 * latency.median))
        .collect();
    let known = |name: &&str| latencies.iter().any(|latency| latency.contender == **name);
    let finding =
        if defended.iter().all(known) && !timed.is_empty() { Finding::Pass } else { Finding::NotRun };
    verdict(
        "cost-is-stated",
        "Is it said what the defences cost at inference?",
        CROCE,
        finding,
        timed.join("; "),
    )
}
