//! What all requests share.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use serde::Serialize;
use tokio::sync::Semaphore;
use utoipa::ToSchema;

use crate::{
    ServeConfig,
    guard::{ModelFacts, Yardstick},
    metrics::Metrics,
    playground::Playground,
    queue::Queue,
};

/// A test image that visitors may pick.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Its place in the official test split.
    pub id: u64,
    /// Its class.
    pub label: usize,
    /// `[C, H, W]` in `[0, 1]`.
    pub values: Vec<f32>,
}

/// What all requests share.
pub struct App {
    pub config: ServeConfig,
    pub facts: ModelFacts,
    pub yardstick: Option<Yardstick>,
    pub queue: Arc<Queue>,
    pub metrics: Arc<Metrics>,
    pub playground: Option<Playground>,
    pub samples: Vec<Sample>,
    /// Cleared when the server is asked to stop, so that others send nothing more here.
    pub ready: AtomicBool,
    /// Cleared when it begins to stop: from then on nothing new is taken in.
    pub open: AtomicBool,
    /// KiB that requests in work may still take.
    pub room: Arc<Semaphore>,
    /// Pictures are decoded on as many threads as there are processors, whatever comes in.
    pub decoders: Arc<Semaphore>,
}

impl App {
    /// Whether the server has not been asked to stop.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Whether new work is taken in.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }
}

/// How suspicious an image is.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct SuspicionFacts {
    /// How far restoration moved the prediction: the Kullback-Leibler divergence between the answers before and after it.
    pub score: f64,
    /// Share of clean validation images with a lower score.
    pub quantile: f64,
    /// Whether the score is above the threshold of the false-alarm rate.
    pub flagged: bool,
    /// Share of clean images that are flagged, at most, as calibrated.
    pub false_alarm_rate: f64,
}

impl SuspicionFacts {
    /// Judges `score`; nothing without a yardstick.
    pub fn new(yardstick: Option<&Yardstick>, score: f64) -> Option<Self> {
        let yardstick = yardstick?;
        // the rate was tried when the server began
        let suspicion = yardstick.calibration.judge(score, yardstick.rate).ok()?;
        Some(Self {
            score: suspicion.score,
            quantile: suspicion.quantile,
            flagged: suspicion.flagged,
            false_alarm_rate: suspicion.false_alarm_rate,
        })
    }
}
