//! From a run's outcomes to what is said about them.

use std::collections::BTreeMap;

use talion_attacks::Tried;
use talion_core::{Result, parse_fraction};

use crate::{
    CLEAN, Cell, ClassLine, Curve, Exhibit, Experiment, Headline, Latency, Line, Outcome, Part, Proportion,
    Series, Summary, Threat,
    checklist::checklist,
    facts::{Facts, proportion},
    mcnemar,
    runner::LOOKED,
    store::RunFolder,
};

/// What the run in `folder` says so far. `latencies` and `gallery` come from the networks, not from outcomes, and are
/// passed on.
///
/// # Errors
/// If the run cannot be read.
pub fn summarise(folder: &RunFolder, latencies: Vec<Latency>, gallery: Vec<Exhibit>) -> Result<Summary> {
    let facts = Facts::read(folder)?;
    let alarms = folder.alarms()?.into_iter().filter(|alarm| alarm != LOOKED).collect();
    Ok(Summary {
        header: folder.header().clone(),
        complete: facts.complete(),
        headlines: headlines(&facts),
        lines: lines(&facts),
        curves: curves(&facts),
        classes: classes(&facts),
        verdicts: checklist(&facts, &latencies),
        alarms,
        latencies,
        gallery,
    })
}

fn headlines(facts: &Facts) -> Vec<Headline> {
    let contenders = facts.config.contenders.iter();
    contenders
        .map(|player| {
            let name = player.name.as_str();
            let group = |wanted: &dyn Fn(Threat) -> bool| {
                facts.surviving(name, wanted).map(|right| proportion(&right))
            };
            let threats: Vec<(Threat, Proportion)> = Threat::ALL
                .into_iter()
                .filter_map(|threat| group(&|other| other == threat).map(|share| (threat, share)))
                .collect();
            let ran = |threat: Threat| threats.iter().any(|(other, _)| *other == threat);
            // without gradients as well: gradients may be masked
            let thorough = ran(Threat::Exact) && (ran(Threat::BlackBox) || !player.defended);
            let adaptive = if thorough { group(&Threat::is_adaptive) } else { None };
            let clean = proportion(&facts.clean(name));
            let worst = group(&|_| true).unwrap_or(clean);
            let defended = player.defended;
            Headline { contender: player.name.clone(), defended, clean, threats, adaptive, worst }
        })
        .collect()
}

fn lines(facts: &Facts) -> Vec<Line> {
    let main = facts.experiments().filter(|experiment| experiment.part == Part::Main);
    std::iter::once(clean_line(facts)).chain(main.map(|experiment| line(facts, experiment))).collect()
}

fn clean_line(facts: &Facts) -> Line {
    let seconds = facts.chunks(CLEAN).iter().map(|chunk| chunk.seconds).sum();
    let right = |contender: &str| facts.clean(contender);
    Line {
        key: CLEAN.into(),
        attack: "none".into(),
        budget: String::new(),
        victim: String::new(),
        continued: false,
        cells: cells(facts, CLEAN, &right, &|_| Threat::Clean),
        forward: 0.0,
        backward: 0.0,
        seconds,
        adjustments: Vec::new(),
    }
}

fn line(facts: &Facts, experiment: &Experiment) -> Line {
    let key = experiment.key();
    let samples = experiment.samples.max(1) as f64;
    let passes = facts.passes(&key);
    let mut adjustments: Vec<String> = Vec::new();
    for adjustment in facts.chunks(&key).iter().flat_map(|chunk| &chunk.adjustments) {
        if !adjustments.contains(adjustment) {
            adjustments.push(adjustment.clone());
        }
    }
    let right = |contender: &str| facts.right(experiment, contender);
    let threat = |contender: &str| facts.threat(contender, experiment);
    Line {
        attack: experiment.attack.to_string(),
        budget: experiment.budget.to_string(),
        victim: experiment.victim.clone(),
        continued: !experiment.after.is_empty(),
        cells: cells(facts, &key, &right, &threat),
        forward: passes.forward as f64 / samples,
        backward: passes.backward as f64 / samples,
        seconds: facts.chunks(&key).iter().map(|chunk| chunk.seconds).sum(),
        adjustments,
        key,
    }
}

fn cells(
    facts: &Facts,
    key: &str,
    right: &dyn Fn(&str) -> Vec<bool>,
    threat: &dyn Fn(&str) -> Threat,
) -> Vec<Cell> {
    let base = right(facts.base());
    let contenders = facts.config.contenders.iter().enumerate();
    contenders
        .map(|(place, player)| {
            let name = player.name.as_str();
            let own = right(name);
            let pairs = || own.iter().zip(&base);
            let only_own = pairs().filter(|(own, base)| **own && !**base).count() as u64;
            let only_base = pairs().filter(|(own, base)| !**own && **base).count() as u64;
            let outcomes = facts.outcomes(key, name);
            let first = place == 0;
            Cell {
                threat: threat(name),
                accuracy: proportion(&own),
                mcnemar: (!first).then(|| mcnemar(only_own, only_base)),
                difference: (!first).then(|| 100.0 * (proportion(&own).share() - proportion(&base).share())),
                psnr: mean(outcomes.iter().filter_map(|outcome| outcome.psnr)),
                ssim: mean(outcomes.iter().filter_map(|outcome| outcome.ssim)),
                median_distance: median(distances(outcomes)),
            }
        })
        .collect()
}

/// How far the images went that were attacked, and fooled.
fn distances(outcomes: &[Outcome]) -> Vec<f64> {
    let fooled = outcomes.iter().filter(|outcome| outcome.attacked && !outcome.right());
    fooled.map(|outcome| outcome.distance).filter(|&distance| distance > 0.0).collect()
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0_u64), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f64)
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Points of a curve of one contender: x, and which samples it got right there.
type Points = Vec<(f64, Vec<bool>)>;

/// A curve for every attack of which there are several budgets, numbers of steps, or step sizes.
fn curves(facts: &Facts) -> Vec<Curve> {
    let mut found: BTreeMap<(u8, String), BTreeMap<String, Points>> = BTreeMap::new();
    for experiment in facts.experiments().filter(|experiment| experiment.after.is_empty()) {
        let own = facts.threat(&experiment.victim, experiment);
        let right = facts.right(experiment, &experiment.victim);
        if right.is_empty() || experiment.part == Part::Control {
            continue; // a surrogate is judged by nobody, and a control is no point of a curve
        }
        let name = experiment.attack.to_string();
        let budget = experiment.budget;
        let mut add = |kind: u8, title: String, x: f64| {
            let series = found.entry((kind, title)).or_default();
            series.entry(experiment.victim.clone()).or_default().push((x, right.clone()));
        };
        if budget.norm() == facts.norm() {
            add(0, format!("{own} {name}: accuracy against budget"), budget.epsilon());
        }
        if let Some(steps) = experiment.attack.steps().filter(|&steps| steps > 1) {
            let kind = name.replacen(&format!("-{steps}"), "", 1);
            add(1, format!("{own} {kind} at {budget}: accuracy against iterations"), f64::from(steps));
        }
        if let Some((kind, step)) = step_size(&name) {
            let x = step / budget.epsilon().max(1e-12);
            add(2, format!("{own} {kind} at {budget}: accuracy against step size"), x);
        }
    }
    found.into_iter().filter_map(|((kind, title), series)| curve(facts, kind, title, series)).collect()
}

/// An attack's name without its step size, and that.
fn step_size(name: &str) -> Option<(String, f64)> {
    let (head, rest) = name.split_once(":step=")?;
    let (step, tail) = rest.split_once(':').unwrap_or((rest, ""));
    Some((format!("{head}{}{tail}", if tail.is_empty() { "" } else { ":" }), parse_fraction(step).ok()?))
}

fn curve(facts: &Facts, kind: u8, title: String, series: BTreeMap<String, Points>) -> Option<Curve> {
    let (part, axis) = match kind {
        0 => (Part::Budgets, format!("budget ({})", facts.norm())),
        1 => (Part::Iterations, "iterations".to_owned()),
        _ => (Part::Steps, "step size / budget".to_owned()),
    };
    // one point shows nothing, and of a curve over budgets two are there in any case
    let long = series.into_iter().filter(|(_, points)| points.len() >= 2);
    let series: Vec<Series> = long
        .map(|(contender, mut points)| {
            let samples = points.iter().map(|(_, right)| right.len()).min().unwrap_or(0);
            if kind == 0 {
                points.push((0.0, facts.clean(&contender)));
            }
            points.sort_by(|(a, _), (b, _)| a.total_cmp(b));
            let points = points.into_iter().map(|(x, mut right)| {
                right.truncate(samples);
                (x, proportion(&right))
            });
            Series { points: points.collect(), contender }
        })
        .collect();
    (!series.is_empty()).then_some(Curve { part, title, axis, series })
}

fn classes(facts: &Facts) -> Vec<ClassLine> {
    let names = facts.config.class_names.iter().enumerate();
    names
        .map(|(class, name)| {
            let contenders = facts.config.contenders.iter();
            let pair = |name: &str| {
                let outcomes = facts.outcomes(CLEAN, name);
                let of_class = |right: &[bool]| {
                    let pairs = outcomes.iter().zip(right);
                    let mine: Vec<bool> = pairs
                        .filter(|(outcome, _)| outcome.label == class as i64)
                        .map(|(_, right)| *right)
                        .collect();
                    proportion(&mine)
                };
                let clean = facts.clean(name);
                let worst = facts.surviving(name, &|_| true).unwrap_or_else(|| clean.clone());
                (of_class(&clean), of_class(&worst))
            };
            ClassLine {
                class: name.clone(),
                contenders: contenders.map(|player| pair(&player.name)).collect(),
            }
        })
        .collect()
}

/// All attacks on a contender itself, whatever they knew.
pub(crate) fn own_attacks(facts: &Facts, contender: &str) -> Vec<Tried> {
    facts.tried(contender, &|threat| matches!(threat, Threat::Exact | Threat::BlackBox))
}
