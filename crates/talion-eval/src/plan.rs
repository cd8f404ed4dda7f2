//! What to measure.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use talion_attacks::AttackSpec;
use talion_core::{Budget, Error, Result};
use talion_defenses::GradientMode;

/// One attack at one budget by an attacker with one view of the defence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// What the attacker differentiates.
    pub threat: GradientMode,
    /// The attack.
    pub attack: AttackSpec,
    /// How far it may go.
    pub budget: Budget,
}

impl FromStr for Setting {
    type Err = Error;

    /// Reads `pgd-20@8/255`, `exact:pgd-40@8/255`, `oblivious:pgd-20@l2:0.5`.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::range(
                "an attack setting",
                "[THREAT:]ATTACK@[NORM:]EPSILON, such as exact:pgd-20@8/255",
                text,
            )
        };
        let (what, budget) = text.split_once('@').ok_or_else(wrong)?;
        let threat = GradientMode::ALL.into_iter().find_map(|mode| {
            what.strip_prefix(&mode.to_string())?.strip_prefix(':').map(|attack| (mode, attack))
        });
        let (threat, attack) = threat.unwrap_or((GradientMode::Oblivious, what));
        Ok(Self { threat, attack: attack.parse()?, budget: budget.parse()? })
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} at {}", self.threat, self.attack, self.budget)
    }
}

/// Attacks to measure, and their seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The settings, in the order of the table.
    pub settings: Vec<Setting>,
    /// Seed of every random start.
    pub seed: u64,
}

impl Plan {
    /// The attacks of the TRN paper's setting, which do not see the defence, at each of `budgets`.
    ///
    /// # Errors
    /// If an attack's name has changed under this list.
    pub fn oblivious(budgets: &[Budget], seed: u64) -> Result<Self> {
        let mut settings = Vec::new();
        for &budget in budgets {
            for attack in ["fgsm", "bim-20", "pgd-20", "pgd-100", "mim-20"] {
                settings.push(Setting { threat: GradientMode::Oblivious, attack: attack.parse()?, budget });
            }
        }
        Ok(Self { settings, seed })
    }

    /// Adds attacks with `attack` by attackers that know the defence.
    ///
    /// # Errors
    /// If `attack` is no attack.
    pub fn and_adaptive(mut self, attack: &str, budget: Budget) -> Result<Self> {
        for threat in [GradientMode::Bpda, GradientMode::Detached, GradientMode::Exact] {
            self.settings.push(Setting { threat, attack: attack.parse()?, budget });
        }
        Ok(self)
    }

    /// Whether an attacker that differentiates the whole defence is among the settings.
    pub fn is_adaptive(&self) -> bool {
        self.settings.iter().any(|setting| setting.threat == GradientMode::Exact)
    }
}
