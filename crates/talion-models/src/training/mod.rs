//! What every training loop here shares: parameters as one vector, optimisers over it, schedules, snapshots, events.

mod classifier;
mod optimizer;
mod parameters;
mod robust;
mod snapshot;

use serde::{Deserialize, Serialize};
use tch::Kind;

pub use classifier::{
    ClassifierTraining, Perturb, Shown, train_classifier, train_classifier_against, train_robust_classifier,
};
pub use optimizer::{Optimizer, clip_to_norm, one_cycle};
pub use parameters::{Parameters, initialise, load_variables, variables};
pub use robust::{Adversary, DivergenceAscent, RobustLoss};
pub use snapshot::Snapshot;

/// What a training loop tells whoever watches it.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The run goes on from a snapshot instead of from the start.
    Resumed {
        /// Steps already done.
        step: u64,
    },
    /// Something is being made ready before the next step.
    Preparing {
        /// What, for instance `attacking round-0`.
        what: String,
        /// Images done.
        done: u64,
        /// Images in all.
        total: u64,
    },
    /// Some steps were done.
    Progress {
        /// Steps done.
        step: u64,
        /// Steps in all.
        total: u64,
        /// Loss of the latest step.
        loss: f64,
        /// Training images a second since the last event.
        images_per_second: f64,
    },
    /// An epoch ended and the model was measured on the validation split.
    Validated {
        /// Epochs done.
        epoch: u64,
        /// Steps done.
        step: u64,
        /// Figures by name.
        metrics: std::collections::BTreeMap<String, f64>,
    },
}

/// Watches a training run; `Break` asks it to save and stop.
pub type Observer<'a> = dyn FnMut(&Event) -> std::ops::ControlFlow<()> + 'a;

/// The arithmetic of the convolutions during training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bf16 where the processor multiplies it in hardware (AVX-512 BF16, AMX) or the device is CUDA, else f32.
    #[default]
    Auto,
    /// Always f32.
    F32,
    /// Always bf16, even where that is slow.
    Bf16,
}

impl Precision {
    /// The kind to compute in on `device`.
    pub fn kind(self, device: tch::Device) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::Auto if device.is_cuda() || bf16_in_hardware() => Kind::BFloat16,
            Self::Auto => Kind::Float,
        }
    }
}

fn bf16_in_hardware() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}
