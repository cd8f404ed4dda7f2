//! What two runs have different: the proof that a run that was killed and resumed is the same as one that was not.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Map, Value};
use talion_attacks::Passes;
use talion_core::{Error, Result};
use tch::{Kind, Tensor};

use super::{RunFolder, chunks::bits};
use crate::{Chunk, Outcome, RunConfig};

/// How many outcomes that differ are shown, an experiment.
const SHOWN: usize = 5;

/// What two runs have different. Times, environments and how samples were cut into chunks do not count.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Fields of the configurations that differ.
    pub fields: Vec<ChangedField>,
    /// Clean images and every experiment of both, in the first run's order.
    pub experiments: Vec<Compared>,
    /// Alarms of the first run alone, and of the second alone.
    pub alarms: [Vec<String>; 2],
}

/// A field of a configuration, as JSON; none where a run does not have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChangedField {
    /// Where it is, such as `contenders[1].sha256` or `experiments[KEY].samples`.
    pub field: String,
    /// In the first run.
    pub first: Option<String>,
    /// In the second run.
    pub second: Option<String>,
}

/// One experiment in two runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// Its key.
    pub experiment: String,
    /// Outcomes (of a contender and a sample) that both runs have.
    pub both: usize,
    /// Outcomes of the first run alone, and of the second alone.
    pub alone: [usize; 2],
    /// Of the outcomes that both have, how many differ in anything.
    pub different: usize,
    /// The first of these, from both runs.
    pub shown: Vec<(Outcome, Outcome)>,
    /// Of the samples whose images both have, how many differ in any bit.
    pub images: usize,
    /// Passes spent in each run, summed over samples.
    pub passes: [Passes; 2],
    /// What had to be different from the attack's definition in each run, each thing once.
    pub adjustments: [BTreeSet<String>; 2],
}

impl Compared {
    /// Whether both runs have the same outcomes, images, passes and adjustments.
    pub fn agrees(&self) -> bool {
        let [passes, other_passes] = self.passes;
        let [adjustments, other_adjustments] = &self.adjustments;
        self.alone == [0, 0]
            && self.different == 0
            && self.images == 0
            && passes == other_passes
            && adjustments == other_adjustments
    }
}

impl Difference {
    /// Whether the runs agree bit for bit in everything but times.
    pub fn agrees(&self) -> bool {
        self.fields.is_empty()
            && self.experiments.iter().all(Compared::agrees)
            && self.alarms.iter().all(Vec::is_empty)
    }
}

/// Compares two runs. Chunks that have the same checksum count as the same without being read;
/// [`RunFolder::broken_chunks`] tells whether the files are still what was written.
///
/// # Errors
/// If either run is damaged.
pub fn diff(first: &RunFolder, second: &RunFolder) -> Result<Difference> {
    let shared = first.keys().filter(|key| second.keys().any(|other| other == *key));
    let experiments = shared.map(|key| compare(key, first, second)).collect::<Result<_>>()?;
    let (alarms, other_alarms) = (first.alarms()?, second.alarms()?);
    let alone = |own: &[String], other: &[String]| -> Vec<String> {
        own.iter().filter(|words| !other.contains(words)).cloned().collect()
    };
    Ok(Difference {
        fields: changed_fields(&first.header().config, &second.header().config)?,
        experiments,
        alarms: [alone(&alarms, &other_alarms), alone(&other_alarms, &alarms)],
    })
}

fn compare(key: &str, first: &RunFolder, second: &RunFolder) -> Result<Compared> {
    let chunks = [first.chunks(key)?, second.chunks(key)?];
    let ours = by_place(first.outcomes(key)?);
    let mut theirs = by_place(second.outcomes(key)?);
    let (mut both, mut different, mut shown) = (0, 0, Vec::new());
    for (place, outcome) in &ours {
        let Some(other) = theirs.remove(place) else { continue };
        both += 1;
        // finite numbers, and no -0 among them: equal numbers have equal bits
        if *outcome != other {
            different += 1;
            if shown.len() < SHOWN {
                shown.push((outcome.clone(), other));
            }
        }
    }
    let images = different_images(first, second, &chunks)?;
    Ok(Compared {
        experiment: key.to_owned(),
        both,
        alone: [ours.len() - both, theirs.len()],
        different,
        shown,
        images,
        passes: chunks.each_ref().map(|chunks| passes(chunks)),
        adjustments: chunks.map(|chunks| chunks.into_iter().flat_map(|chunk| chunk.adjustments).collect()),
    })
}

/// Outcomes by row and contender.
fn by_place(outcomes: Vec<Outcome>) -> BTreeMap<(usize, String), Outcome> {
    outcomes.into_iter().map(|outcome| ((outcome.row, outcome.contender.clone()), outcome)).collect()
}

fn passes(chunks: &[Chunk]) -> Passes {
    let mut sum = Passes::default();
    chunks.iter().for_each(|chunk| sum += chunk.passes);
    sum
}

/// How many samples have different images, among those that both runs have.
fn different_images(
    first: &RunFolder,
    second: &RunFolder,
    [ours, theirs]: &[Vec<Chunk>; 2],
) -> Result<usize> {
    let mut different = 0;
    for one in ours {
        for other in theirs {
            let start = one.first.max(other.first);
            let end = (one.first + one.rows).min(other.first + other.rows);
            let same_place = one.first == other.first && one.rows == other.rows;
            if start >= end || (same_place && one.sha256 == other.sha256) {
                continue;
            }
            let ours = part(&first.images(one)?, one.first, start..end)?;
            let theirs = part(&second.images(other)?, other.first, start..end)?;
            different += different_rows(&ours, &theirs)?;
        }
    }
    Ok(different)
}

/// The images of some samples, out of a chunk's.
fn part(images: &Tensor, first: usize, samples: std::ops::Range<usize>) -> Result<Tensor> {
    Ok(images.f_narrow(0, (samples.start - first) as i64, samples.len() as i64)?)
}

fn different_rows(ours: &Tensor, theirs: &Tensor) -> Result<usize> {
    if ours.size() != theirs.size() {
        return Ok(ours.size().first().map_or(0, |&rows| rows as usize));
    }
    let unequal = bits(ours)?.f_ne_tensor(&bits(theirs)?)?.f_flatten(1, -1)?.f_any_dim(1, false)?;
    let count = i64::try_from(unequal.f_sum(Kind::Int64)?)?;
    Ok(usize::try_from(count).unwrap_or_default())
}

/// Where two configurations differ. Experiments are told apart by their keys, all else by its place.
fn changed_fields(first: &RunConfig, second: &RunConfig) -> Result<Vec<ChangedField>> {
    let mut changed = Vec::new();
    let without_experiments = |config: &RunConfig| {
        let bare = RunConfig { experiments: Vec::new(), ..config.clone() };
        serde_json::to_value(bare).map_err(Error::other)
    };
    walk("", Some(&without_experiments(first)?), Some(&without_experiments(second)?), &mut changed);
    let (ours, theirs) = (by_key(first)?, by_key(second)?);
    let order = |own: &Map<String, Value>, config: &RunConfig, other: &Map<String, Value>| -> Vec<String> {
        let keys = config.experiments.iter().map(crate::Experiment::key);
        keys.filter(|key| own.contains_key(key) && other.contains_key(key)).collect()
    };
    let orders = [order(&ours, first, &theirs), order(&theirs, second, &ours)];
    for key in ours.keys().chain(theirs.keys().filter(|key| !ours.contains_key(*key))) {
        walk(&format!("experiments[{key}]"), ours.get(key), theirs.get(key), &mut changed);
    }
    if orders[0] != orders[1] {
        let [first, second] = orders.map(|keys| Some(keys.join("; ")));
        changed.push(ChangedField { field: "the order of experiments".into(), first, second });
    }
    Ok(changed)
}

fn by_key(config: &RunConfig) -> Result<Map<String, Value>> {
    config
        .experiments
        .iter()
        .map(|experiment| Ok((experiment.key(), serde_json::to_value(experiment).map_err(Error::other)?)))
        .collect()
}

/// Adds the places under `field` where two values differ.
fn walk(field: &str, first: Option<&Value>, second: Option<&Value>, changed: &mut Vec<ChangedField>) {
    match (first, second) {
        (Some(Value::Object(ours)), Some(Value::Object(theirs))) => {
            for name in ours.keys().chain(theirs.keys().filter(|name| !ours.contains_key(*name))) {
                let inner = if field.is_empty() { name.clone() } else { format!("{field}.{name}") };
                walk(&inner, ours.get(name), theirs.get(name), changed);
            }
        }
        (Some(Value::Array(ours)), Some(Value::Array(theirs))) => {
            for place in 0..ours.len().max(theirs.len()) {
                walk(&format!("{field}[{place}]"), ours.get(place), theirs.get(place), changed);
            }
        }
        _ if first == second => {}
        _ => changed.push(ChangedField {
            field: field.to_owned(),
            first: first.map(Value::to_string),
            second: second.map(Value::to_string),
        }),
    }
}
