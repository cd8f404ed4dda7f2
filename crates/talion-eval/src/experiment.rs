//! One attack by one attacker: the unit that a run consists of.

use std::fmt;

use serde::{Deserialize, Serialize};
use talion_attacks::AttackSpec;
use talion_core::Budget;
use talion_defenses::GradientMode;

/// What an experiment is for; the report puts each kind in its own place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// A line of the main table.
    Main,
    /// A point of a curve of accuracy against budget.
    Budgets,
    /// A point of a curve of accuracy against iterations.
    Iterations,
    /// A step size tried, to see whether another one does better.
    Steps,
    /// A control of the evaluation itself, such as a budget so large that everything has to fall.
    Control,
}

/// One attack on one victim, whose images every contender then faces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// The name of the attacked contender, or of a surrogate that is no contender.
    pub victim: String,
    /// What the attacker differentiates.
    pub view: GradientMode,
    /// The attack.
    pub attack: AttackSpec,
    /// How far it may go.
    pub budget: Budget,
    /// How many samples are attacked: the run's first. Curves need fewer than the headline.
    pub samples: usize,
    /// Whether a sample is left alone as soon as it fools its victim. Cheaper, and right for images that only have to
    /// fool their victim; images that others have to face are to be the attack's strongest.
    pub until_fooled: bool,
    /// Keys of earlier experiments; a sample that its victim already got wrong in one of them is not attacked again and
    /// keeps its clean image (AutoAttack works so). Empty: every sample is attacked.
    pub after: Vec<String>,
    /// What it is for.
    pub part: Part,
}

impl Experiment {
    /// A name that no other experiment of a run has, made of everything that changes its images.
    pub fn key(&self) -> String {
        let whole = if self.until_fooled { "" } else { " whole" };
        let after =
            if self.after.is_empty() { String::new() } else { format!(" after {}", self.after.len()) };
        format!("{} {} {} @ {}{whole}{after}", self.victim, self.view, self.attack, self.budget)
    }
}

impl fmt::Display for Experiment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {} ({}) at {}", self.attack, self.victim, self.view, self.budget)
    }
}
