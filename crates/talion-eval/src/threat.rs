//! What an attacker of a contender knows: the threat models, in words that go into every output.

use std::fmt;

use serde::{Deserialize, Serialize};
use talion_attacks::{AttackSpec, Sees};
use talion_defenses::GradientMode;

/// A threat model. Which one a figure belongs to follows from who was attacked, how, and who then faced the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Threat {
    /// Nobody attacks: clean images.
    Clean,
    /// Random changes: the control that any classifier should stand.
    Noise,
    /// The bare classifier was attacked, the contender defends it: the setting of the TRN paper.
    Oblivious,
    /// Another classifier was attacked, defended or not.
    Transfer,
    /// Attacked as it runs, by its answers alone, without gradients.
    #[serde(rename = "blackbox")]
    BlackBox,
    /// Attacked through the defence; restoration is taken for the identity when differentiating.
    Bpda,
    /// Attacked through the defence; gradient maps are taken for constants when differentiating.
    Detached,
    /// Attacked through the defence and through its gradient maps, with second derivatives. For a classifier without
    /// a defence: its own gradients.
    Exact,
}

impl Threat {
    /// All, from the attacker who knows least.
    pub const ALL: [Self; 8] = [
        Self::Clean,
        Self::Noise,
        Self::Oblivious,
        Self::Transfer,
        Self::BlackBox,
        Self::Bpda,
        Self::Detached,
        Self::Exact,
    ];

    /// The threat model under which a contender faces images made with `attack` from `view` of `victim`. `base` is the
    /// name of the bare classifier.
    pub fn of(contender: &str, victim: &str, base: &str, view: GradientMode, attack: &AttackSpec) -> Self {
        let sees = attack.entry().map_or(Sees::Gradients, |entry| entry.sees);
        if sees == Sees::Nothing {
            return Self::Noise;
        }
        if victim != contender {
            return if victim == base { Self::Oblivious } else { Self::Transfer };
        }
        match (sees, view) {
            (Sees::Scores | Sees::Classes, _) => Self::BlackBox,
            // a bare classifier hides nothing: its own gradients are exact in every view
            (_, _) if victim == base => Self::Exact,
            (_, GradientMode::Exact) => Self::Exact,
            (_, GradientMode::Detached) => Self::Detached,
            (_, GradientMode::Bpda) => Self::Bpda,
            (_, GradientMode::Oblivious) => Self::Oblivious,
        }
    }

    /// Whether the attacker attacks the contender itself, defence and all.
    pub fn is_adaptive(self) -> bool {
        matches!(self, Self::BlackBox | Self::Bpda | Self::Detached | Self::Exact)
    }

    /// What the attacker knows, in plain language.
    pub fn description(self) -> &'static str {
        match self {
            Self::Clean => "nobody attacks",
            Self::Noise => "random changes of the full budget: a control, not an attack",
            Self::Oblivious => "attacks the bare classifier and does not know that there is a defence",
            Self::Transfer => {
                "attacks another classifier, defended or not, and hopes that the images fool this one too"
            }
            Self::BlackBox => "asks the whole defended classifier for answers, and has no gradients",
            Self::Bpda => {
                "runs the defence but pretends that restoration is the identity when differentiating"
            }
            Self::Detached => {
                "knows the defence and differentiates through the restoration, not through the map"
            }
            Self::Exact => {
                "knows the whole pipeline and differentiates through all of it, gradient maps included"
            }
        }
    }
}

impl fmt::Display for Threat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clean => "clean",
            Self::Noise => "noise",
            Self::Oblivious => "oblivious",
            Self::Transfer => "transfer",
            Self::BlackBox => "blackbox",
            Self::Bpda => "bpda",
            Self::Detached => "detached",
            Self::Exact => "exact",
        })
    }
}
