//! What a run keeps: what was asked for, where it ran, and what became of every sample.

use serde::{Deserialize, Serialize};
use talion_attacks::Passes;
use talion_core::Budget;

use crate::Experiment;

/// Everything that decides a run's results. Two runs with equal configurations have equal results (on one machine, CPU,
/// f32), and only with the same configuration can a run be resumed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// The protocol's name.
    pub protocol: String,
    /// The data set's name.
    pub data: String,
    /// SHA-256 of the data set's images and labels.
    pub data_sha256: String,
    /// Names of the classes in label order.
    pub class_names: Vec<String>,
    /// The budget of the headline.
    pub budget: Budget,
    /// How many samples are judged: the first of the test split.
    pub samples: usize,
    /// Seed of every random draw.
    pub seed: u64,
    /// Those who face every image, the bare classifier first.
    pub contenders: Vec<Player>,
    /// Classifiers that are attacked only to see whether their images fool the contenders.
    pub surrogates: Vec<Player>,
    /// The experiments, in their order.
    pub experiments: Vec<Experiment>,
}

/// A classifier that takes part, with or without a defence in front.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Player {
    /// How it is called in tables, unique in the run.
    pub name: String,
    /// What it is, in one line: architecture, defence, files.
    pub description: String,
    /// SHA-256 of its weights (classifier, and defence if it has one), in hexadecimal.
    pub sha256: String,
    /// Whether there is a defence in front of the classifier.
    pub defended: bool,
}

/// Where and when a run was made; not part of what decides its results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// talion's version.
    pub talion: String,
    /// libtorch's version.
    pub libtorch: String,
    /// `cpu` or a GPU's name.
    pub device: String,
    /// The processor's name.
    pub processor: String,
    /// Processors that the program may use.
    pub processors: usize,
    /// Threads that libtorch uses.
    pub threads: i32,
    /// Operating system and architecture.
    pub system: String,
    /// The command line.
    pub command: Vec<String>,
    /// Seconds since 1970 when the run was begun, UTC.
    pub begun: u64,
}

/// The header of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunHeader {
    /// What decides the results.
    pub config: RunConfig,
    /// Where and when.
    pub environment: Environment,
}

/// Consecutive samples of an experiment that were attacked together and are kept together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// The experiment's key ([`Experiment::key`]), or [`CLEAN`].
    pub experiment: String,
    /// The place of its first sample in the run.
    pub first: usize,
    /// How many samples.
    pub rows: usize,
    /// Its file's name inside the run's folder: safetensors with `adversarial` `[rows, C, H, W]`.
    pub file: String,
    /// The file's SHA-256, in hexadecimal.
    pub sha256: String,
    /// Passes spent, summed over samples.
    pub passes: Passes,
    /// Seconds it took.
    pub seconds: f64,
    /// What had to be different from the attack's definition, in words.
    pub adjustments: Vec<String>,
}

/// What the key of clean images is, which are judged like the images of an experiment.
pub const CLEAN: &str = "clean";

/// What one contender made of one sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The contender's name.
    pub contender: String,
    /// The sample's place in the run.
    pub row: usize,
    /// The sample's id.
    pub id: u64,
    /// The true class.
    pub label: i64,
    /// The predicted class.
    pub predicted: i64,
    /// The probability of the predicted class.
    pub confidence: f64,
    /// The margin: the true class's logit minus the largest other; at most 0 where it is wrong.
    pub margin: f64,
    /// How far the image is from its clean original, in the budget's norm.
    pub distance: f64,
    /// Whether this sample was attacked in this experiment, or kept its clean image because an earlier one had already
    /// fooled the victim with it.
    pub attacked: bool,
    /// Peak signal-to-noise ratio of what the defence made of the image, against the clean original, in dB; none
    /// without a defence. Infinite ratios are kept as 200.
    pub psnr: Option<f64>,
    /// Structural similarity of the same two images, at most 1.
    pub ssim: Option<f64>,
}

impl Outcome {
    /// Whether the contender is right.
    pub fn right(&self) -> bool {
        self.predicted == self.label
    }
}
