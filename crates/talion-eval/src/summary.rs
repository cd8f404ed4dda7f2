//! What a run says, computed from its outcomes: the one thing that every output is made from.

use serde::{Deserialize, Serialize};

use crate::{Part, Proportion, RunHeader, Threat};

/// Everything a report shows of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// What was asked for, and where it ran.
    pub header: RunHeader,
    /// Whether every experiment of the configuration is finished.
    pub complete: bool,
    /// A contender each, in the configuration's order.
    pub headlines: Vec<Headline>,
    /// A line an experiment of the main part, clean images first.
    pub lines: Vec<Line>,
    /// Accuracy against budget, iterations and step size.
    pub curves: Vec<Curve>,
    /// Accuracy class by class.
    pub classes: Vec<ClassLine>,
    /// What was checked of the evaluation itself.
    pub verdicts: Vec<Verdict>,
    /// Signs that the figures flatter, in words.
    pub alarms: Vec<String>,
    /// What defences cost.
    pub latencies: Vec<Latency>,
    /// Samples to look at, failures first.
    pub gallery: Vec<Exhibit>,
}

impl Summary {
    /// Whether every defended contender was attacked by attackers who know it: with exact gradients and without any. A
    /// report of anything less has to say so, and must not call a defence robust.
    pub fn adaptive(&self) -> bool {
        self.headlines.iter().filter(|headline| headline.defended).all(|headline| headline.adaptive.is_some())
    }
}

/// The figures that matter, of one contender.
#[derive(Clone, Debug, Serialize)]
pub struct Headline {
    /// The contender.
    pub contender: String,
    /// Whether it has a defence.
    pub defended: bool,
    /// On clean images.
    pub clean: Proportion,
    /// A sample counts where it survives every attack under this threat model at the headline budget; threat models
    /// that were not run are missing.
    pub threats: Vec<(Threat, Proportion)>,
    /// As above, over all attackers who know the whole contender; none if exact gradients were not tried.
    pub adaptive: Option<Proportion>,
    /// As above, over everything that was run at the headline budget: the number to believe.
    pub worst: Proportion,
}

/// One experiment.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Its key, or `clean`.
    pub key: String,
    /// The attack's name, or `none`.
    pub attack: String,
    /// The budget in words, such as `Linf 8/255`; empty for clean images.
    pub budget: String,
    /// Who was attacked; empty for clean images.
    pub victim: String,
    /// Whether only samples that earlier attacks had left were attacked; the accuracies then count those earlier attacks.
    pub continued: bool,
    /// A cell a contender, in order.
    pub cells: Vec<Cell>,
    /// Forward passes a sample.
    pub forward: f64,
    /// Backward passes a sample.
    pub backward: f64,
    /// Seconds.
    pub seconds: f64,
    /// What had to be different from the attack's definition.
    pub adjustments: Vec<String>,
}

/// How one contender did in one experiment.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// Under which threat model it faced these images.
    pub threat: Threat,
    /// How many it got right.
    pub accuracy: Proportion,
    /// The two-sided p-value of McNemar's test against the first contender on the same images; none for itself.
    pub mcnemar: Option<f64>,
    /// Accuracy minus the first contender's, in points.
    pub difference: Option<f64>,
    /// Mean PSNR of restored against clean images, dB.
    pub psnr: Option<f64>,
    /// Mean SSIM of restored against clean images.
    pub ssim: Option<f64>,
    /// Median distance to the clean image of the images that it got wrong and that were attacked.
    pub median_distance: Option<f64>,
}

/// Accuracy as one thing changes.
#[derive(Clone, Debug, Serialize)]
pub struct Curve {
    /// Which part it belongs to.
    pub part: Part,
    /// What it shows, such as `exact apgd-ce-50, accuracy against budget`.
    pub title: String,
    /// What runs along x: `budget (Linf)`, `iterations`, `step size / budget`.
    pub axis: String,
    /// The lines.
    pub series: Vec<Series>,
}

/// One line of a curve.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    /// The contender.
    pub contender: String,
    /// Points from left to right.
    pub points: Vec<(f64, Proportion)>,
}

/// One class.
#[derive(Clone, Debug, Serialize)]
pub struct ClassLine {
    /// Its name.
    pub class: String,
    /// A contender each: clean and worst.
    pub contenders: Vec<(Proportion, Proportion)>,
}

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    /// It holds.
    Pass,
    /// It does not.
    Fail,
    /// The run has nothing to tell by.
    NotRun,
}

/// One check of the evaluation.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// A short name, such as `iterative-beats-single-step`.
    pub name: String,
    /// What is asked.
    pub question: String,
    /// Where the question comes from.
    pub source: String,
    /// What came of it.
    pub finding: Finding,
    /// The figures that say so.
    pub evidence: String,
}

/// How long a contender takes to answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// The contender.
    pub contender: String,
    /// Images in a batch.
    pub batch: usize,
    /// Median seconds a batch.
    pub median: f64,
    /// The slowest of the repetitions.
    pub slowest: f64,
}

/// A sample to look at.
#[derive(Clone, Debug, Serialize)]
pub struct Exhibit {
    /// The sample's id.
    pub id: u64,
    /// The experiment that made the adversarial image, in words.
    pub experiment: String,
    /// The contender that restored it.
    pub contender: String,
    /// The true class's name.
    pub label: String,
    /// Whether the contender is right in the end.
    pub right: bool,
    /// Pictures from left to right.
    pub tiles: Vec<Tile>,
}

/// One picture of an exhibit.
#[derive(Clone, Debug, Serialize)]
pub struct Tile {
    /// `clean`, `adversarial`, `gradient map`, `restored` or `difference`.
    pub title: String,
    /// A PNG file, pixel for pixel.
    #[serde(skip)]
    pub png: Vec<u8>,
    /// What the bare classifier says of it, and how surely; none for maps and differences.
    pub verdict: Option<(String, f64)>,
    /// Whether that is right.
    pub right: Option<bool>,
}
