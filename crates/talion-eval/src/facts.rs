//! A run's outcomes in the shapes that figures are computed from.

use std::collections::BTreeMap;

use talion_attacks::{Passes, Tried};
use talion_core::{Norm, Result};

use crate::{CLEAN, Chunk, Experiment, Outcome, Proportion, RunConfig, Threat, store::RunFolder};

/// Everything that a run has finished.
pub(crate) struct Facts {
    pub config: RunConfig,
    /// Chunks and outcomes by the experiment's key, of finished experiments only.
    done: BTreeMap<String, Done>,
}

struct Done {
    chunks: Vec<Chunk>,
    /// By contender, in the order of the samples.
    outcomes: BTreeMap<String, Vec<Outcome>>,
}

impl Facts {
    pub(crate) fn read(folder: &RunFolder) -> Result<Self> {
        let config = folder.header().config.clone();
        let mut done = BTreeMap::new();
        let keys = std::iter::once(CLEAN.to_owned()).chain(config.experiments.iter().map(Experiment::key));
        for key in keys {
            if folder.finished(&key)? {
                let mut outcomes: BTreeMap<String, Vec<Outcome>> = BTreeMap::new();
                for outcome in folder.outcomes(&key)? {
                    outcomes.entry(outcome.contender.clone()).or_default().push(outcome);
                }
                done.insert(key.clone(), Done { chunks: folder.chunks(&key)?, outcomes });
            }
        }
        Ok(Self { config, done })
    }

    pub(crate) fn complete(&self) -> bool {
        self.done.len() == self.config.experiments.len() + 1
    }

    /// The finished experiments.
    pub(crate) fn experiments(&self) -> impl Iterator<Item = &Experiment> {
        self.config.experiments.iter().filter(|experiment| self.done.contains_key(&experiment.key()))
    }

    /// The name of the bare classifier.
    pub(crate) fn base(&self) -> &str {
        self.config.contenders.first().map_or("", |player| player.name.as_str())
    }

    /// Under which threat model a contender faces an experiment's images.
    pub(crate) fn threat(&self, contender: &str, experiment: &Experiment) -> Threat {
        Threat::of(contender, &experiment.victim, self.base(), experiment.view, &experiment.attack)
    }

    /// A contender's outcomes in an experiment, in the order of the samples; empty if it is not finished.
    pub(crate) fn outcomes(&self, key: &str, contender: &str) -> &[Outcome] {
        self.done.get(key).and_then(|done| done.outcomes.get(contender)).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn passes(&self, key: &str) -> Passes {
        let mut sum = Passes::default();
        self.chunks(key).iter().for_each(|chunk| sum += chunk.passes);
        sum
    }

    pub(crate) fn chunks(&self, key: &str) -> &[Chunk] {
        self.done.get(key).map_or(&[], |done| done.chunks.as_slice())
    }

    /// Which clean samples a contender gets right.
    pub(crate) fn clean(&self, contender: &str) -> Vec<bool> {
        self.outcomes(CLEAN, contender).iter().map(Outcome::right).collect()
    }

    /// Which samples a contender gets right in an experiment, and in those that it goes on from.
    pub(crate) fn right(&self, experiment: &Experiment, contender: &str) -> Vec<bool> {
        let key = experiment.key();
        let mut right: Vec<bool> = self.outcomes(&key, contender).iter().map(Outcome::right).collect();
        for earlier in &experiment.after {
            for (right, outcome) in right.iter_mut().zip(self.outcomes(earlier, contender)) {
                *right &= outcome.right();
            }
        }
        right
    }

    /// Whether an experiment stays within the budget of the headline.
    pub(crate) fn within(&self, experiment: &Experiment) -> bool {
        let (budget, limit) = (experiment.budget, self.config.budget);
        budget.norm() == limit.norm() && budget.epsilon() <= limit.epsilon() * (1.0 + 1e-9)
    }

    /// Which samples survive every one of the experiments that `wanted` picks among those within the budget, clean images
    /// included: the first samples, as many as the smallest of the main ones has. `None` if there is no such experiment.
    pub(crate) fn surviving(&self, contender: &str, wanted: &dyn Fn(Threat) -> bool) -> Option<Vec<bool>> {
        let picked: Vec<&Experiment> = self
            .experiments()
            .filter(|experiment| self.within(experiment) && wanted(self.threat(contender, experiment)))
            .collect();
        let main = picked.iter().filter(|experiment| experiment.part == crate::Part::Main);
        let samples = main.map(|experiment| experiment.samples).min()?;
        let mut right = self.clean(contender);
        right.truncate(samples);
        for experiment in picked.iter().filter(|experiment| experiment.samples >= samples) {
            for (right, now) in right.iter_mut().zip(self.right(experiment, contender)) {
                *right &= now;
            }
        }
        Some(right)
    }

    /// What attacks on a contender itself achieved, each on the same first samples, to be compared with each other. Attacks
    /// that went on from others are left out: what they fooled is not theirs alone.
    pub(crate) fn tried(&self, contender: &str, wanted: &dyn Fn(Threat) -> bool) -> Vec<Tried> {
        let fair = |experiment: &&Experiment| {
            experiment.after.is_empty()
                && experiment.victim == contender
                && wanted(self.threat(contender, experiment))
        };
        let samples = self.experiments().filter(fair).map(|experiment| experiment.samples).min().unwrap_or(0);
        self.experiments()
            .filter(fair)
            .map(|experiment| Tried {
                attack: experiment.attack.clone(),
                budget: experiment.budget,
                fooled: self.right(experiment, contender).iter().take(samples).map(|right| !right).collect(),
            })
            .collect()
    }

    /// Whether a budget's norm is one in which step sizes are compared with the budget.
    pub(crate) fn norm(&self) -> Norm {
        self.config.budget.norm()
    }
}

/// How many of these hold.
pub(crate) fn proportion(right: &[bool]) -> Proportion {
    Proportion { count: right.iter().filter(|&&right| right).count() as u64, total: right.len() as u64 }
}
