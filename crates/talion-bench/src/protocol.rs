//! Requests and answers: JSON, an object a line.
//!
//! Fields that only other workers read, such as `peer` and the attacks' `batch`, may be there and are ignored,
//! so that a driver sends every worker the same line.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use talion_attacks::Stage;
use talion_core::Norm;
use talion_defenses::{GradientMode, training::Mixture};
use talion_models::{Architecture, training::Precision};

use crate::{about::About, error::Error};

/// What the driver asks for.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// Read files; what was loaded before is forgotten.
    Load(Load),
    /// Do a job with what is loaded, and time it.
    Run {
        /// The job.
        job: Job,
    },
    /// Tell the most memory that this process has had.
    Memory,
    /// End.
    Quit,
}

/// Files to read.
#[derive(Debug, PartialEq, Deserialize)]
pub struct Load {
    /// The classifier; jobs that train one need none.
    #[serde(default)]
    pub model: Option<PathBuf>,
    /// The restoration network in front of it.
    #[serde(default)]
    pub trn: Option<PathBuf>,
    /// Safetensors with `images` and `labels`.
    pub data: PathBuf,
}

/// What is timed.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Job {
    /// Logits and the gradient of cross-entropy with respect to the images.
    Gradient(Repeated),
    /// One attack, every image through all of it.
    Attack(Attack),
    /// The standard AutoAttack.
    Autoattack(Autoattack),
    /// A classifier from scratch.
    TrainClassifier(TrainClassifier),
    /// A round of training of a restoration network.
    TrainTrn(TrainTrn),
    /// Restoration and classification of what it restored.
    Restore(Repeated),
    /// What the networks say of the first images, into a file, to compare with what another worker's say.
    Answers(Answers),
}

/// In what a classifier's gradients are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(from = "String")]
pub enum Setting {
    /// f32; also what every word means that is for other workers.
    #[default]
    Default,
    /// bf16 where the processor multiplies it faster; judged in f32. For the bare classifier.
    Bf16,
}

impl From<String> for Setting {
    fn from(word: String) -> Self {
        if word == "bf16" { Self::Bf16 } else { Self::Default }
    }
}

/// One call, several times.
#[derive(Debug, PartialEq, Deserialize)]
pub struct Repeated {
    /// Images of a call: the first of the data.
    pub batch: usize,
    /// Number of calls.
    #[serde(default = "one")]
    pub repeat: usize,
    /// Which view of the classifier behind the loaded TRN is differentiated; without it, the bare classifier is. Restoring
    /// is the same in every view, so it does not look at this.
    #[serde(default)]
    pub defended: Option<GradientMode>,
    /// In what the bare classifier's gradients are taken.
    #[serde(default)]
    pub setting: Setting,
}

/// An attack on the first images.
#[derive(Debug, PartialEq, Deserialize)]
pub struct Attack {
    /// A name of `talion attacks`, with or without settings, such as `pgd`, `pgd-20`, `cw:search=1`; `-l2` at the end of the
    /// kind, as in `cw-l2`, says the norm.
    pub attack: String,
    /// Number of steps, where the name does not say it. Attacks without steps, such as `fgsm`, ignore it.
    #[serde(default)]
    pub steps: Option<u32>,
    /// The budget on the `[0, 1]` image scale; attacks that seek the smallest change do without.
    #[serde(default)]
    pub eps: Option<f64>,
    /// Size of a step on the `[0, 1]` image scale. Attacks that choose their own steps ignore it.
    #[serde(default)]
    pub step: Option<f64>,
    /// Number of searches for the weight of the loss, for attacks that search.
    #[serde(default)]
    pub search: Option<u32>,
    /// The norm, where neither the name nor the attack's kind says it: `Linf` then.
    #[serde(default)]
    pub norm: Option<Norm>,
    /// Number of images.
    pub images: usize,
    /// What the attacker differentiates behind the loaded TRN; without it the bare classifier is attacked.
    #[serde(default)]
    pub defended: Option<GradientMode>,
    /// In what the bare classifier's gradients are taken.
    #[serde(default)]
    pub setting: Setting,
    /// Seed of the random draws.
    #[serde(default = "first_seed")]
    pub seed: u64,
}

/// AutoAttack on the first images.
#[derive(Debug, PartialEq, Deserialize)]
pub struct Autoattack {
    /// The budget in `Linf`, on the `[0, 1]` image scale.
    pub eps: f64,
    /// Number of images.
    pub images: usize,
    /// What the attacker differentiates behind the loaded TRN; without it the bare classifier is attacked.
    #[serde(default)]
    pub defended: Option<GradientMode>,
    /// In what the bare classifier's gradients are taken.
    #[serde(default)]
    pub setting: Setting,
    /// Seed of the random draws.
    #[serde(default = "first_seed")]
    pub seed: u64,
}

/// Training of a classifier on the first images.
#[derive(Debug, PartialEq, Deserialize)]
pub struct TrainClassifier {
    /// The network.
    pub architecture: Architecture,
    /// Number of training images.
    pub images: usize,
    /// Images a step.
    pub batch: usize,
    /// Passes over the images.
    #[serde(default = "one_epoch")]
    pub epochs: u64,
    /// Number of classes; by default that of the loaded classifier, or else as many as the labels need.
    #[serde(default)]
    pub classes: Option<usize>,
    /// Whether images are shifted and mirrored at random.
    #[serde(default = "yes")]
    pub augment: bool,
    /// Arithmetic of the convolutions: `auto` unless asked for `f32` or `bf16`.
    #[serde(default)]
    pub precision: Precision,
    /// Seed of weights and order.
    #[serde(default = "first_seed")]
    pub seed: u64,
}

/// A round of training of a network like the loaded TRN.
#[derive(Debug, PartialEq, Deserialize)]
pub struct TrainTrn {
    /// Images that are attacked, and then shown once.
    pub pool: usize,
    /// Images a step.
    pub batch: usize,
    /// The attack with its budget, such as `pgd-7@8/255`.
    pub attack: Mixture,
    /// Seed of weights, order and attacks.
    #[serde(default = "first_seed")]
    pub seed: u64,
}

/// The networks' answers for the first images.
#[derive(Debug, PartialEq, Deserialize)]
pub struct Answers {
    /// Number of images.
    pub count: usize,
    /// Where they go: safetensors with `logits`; where a TRN is loaded, `restored` images with the `logits` of those.
    pub output: PathBuf,
}

fn one() -> usize {
    1
}

fn one_epoch() -> u64 {
    1
}

fn first_seed() -> u64 {
    1
}

fn yes() -> bool {
    true
}

/// The first line of a worker.
#[derive(Debug, Serialize)]
pub struct Ready {
    /// Always true.
    pub ready: bool,
    /// Threads that were asked for.
    pub threads: i32,
    /// Program and machine.
    pub about: About,
}

/// The answer to a request.
#[derive(Debug, Serialize)]
pub struct Answer {
    ok: bool,
    #[serde(flatten)]
    body: Body,
}

impl From<Result<Body, Error>> for Answer {
    fn from(result: Result<Body, Error>) -> Self {
        match result {
            Ok(body) => Self { ok: true, body },
            Err(error) => Self { ok: false, body: Body::Failed { error: error.to_string() } },
        }
    }
}

/// What an answer holds beside `ok`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Body {
    /// Of the data that was loaded.
    Loaded {
        /// Number of images.
        images: usize,
        /// Shape of an image: channels, height, width.
        size: [i64; 3],
        /// Number of classes: the classifier's, or without one as many as the labels need.
        classes: usize,
    },
    /// Of a job that was done.
    Report(Report),
    /// Of this process.
    Memory {
        /// The most memory that it has had, in KiB.
        peak_kib: u64,
    },
    /// Of a worker that ends.
    Farewell {},
    /// Of a request that failed.
    Failed {
        /// What was expected, and what was found.
        error: String,
    },
}

/// What a job says of itself.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Wall clock time of the job alone.
    pub seconds: f64,
    /// Images that went through: for repeated calls those of all calls.
    pub images: usize,
    /// Of an attack, the share of images that are still classified right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub robust: Option<f64>,
    /// The share that is classified right without an attack.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clean: Option<f64>,
    /// Seconds of every call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub each: Option<Vec<f64>>,
    /// The full name of the attack, all settings included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attack: Option<String>,
    /// What each attack of a cascade did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stages: Option<Vec<Stage>>,
    /// Steps of the optimiser.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Of a training, the seconds from the end of what prepares the validation to the last step: what a peer without any
    /// validation does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without_validation: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(value: Value) -> Result<Request, serde_json::Error> {
        serde_json::from_str(&value.to_string())
    }

    fn job(value: Value) -> Job {
        match parse(json!({ "op": "run", "job": value })).unwrap() {
            Request::Run { job } => job,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn requests_are_read_as_the_protocol_has_them() {
        let load = Load { model: Some("m".into()), trn: None, data: "d".into() };
        assert_eq!(
            parse(json!({ "op": "load", "model": "m", "trn": null, "data": "d" })).unwrap(),
            Request::Load(load)
        );
        let bare = Load { model: None, trn: None, data: "d".into() };
        assert_eq!(parse(json!({ "op": "load", "data": "d" })).unwrap(), Request::Load(bare));
        assert_eq!(parse(json!({ "op": "memory" })).unwrap(), Request::Memory);
        assert_eq!(parse(json!({ "op": "quit" })).unwrap(), Request::Quit);
    }

    #[test]
    fn jobs_have_their_defaults_and_ignore_what_is_for_peers() {
        let gradient =
            Job::Gradient(Repeated { batch: 4, repeat: 1, defended: None, setting: Setting::Default });
        assert_eq!(job(json!({ "kind": "gradient", "batch": 4 })), gradient);
        let attack = Attack {
            attack: "pgd".into(),
            steps: Some(20),
            eps: Some(0.03),
            step: Some(0.01),
            search: None,
            norm: None,
            images: 9,
            defended: None,
            setting: Setting::Default,
            seed: 1,
        };
        let sent = json!({
            "kind": "attack", "attack": "pgd", "steps": 20, "eps": 0.03, "step": 0.01, "images": 9, "batch": 3,
            "setting": "best", "peer": "foolbox",
        });
        assert_eq!(job(sent), Job::Attack(attack));
        let short = job(json!({ "kind": "gradient", "batch": 4, "setting": "bf16" }));
        assert_eq!(
            short,
            Job::Gradient(Repeated { batch: 4, repeat: 1, defended: None, setting: Setting::Bf16 })
        );
        let sent = json!({ "kind": "autoattack", "eps": 0.1, "images": 2, "defended": "bpda" });
        let expected = Autoattack {
            eps: 0.1,
            images: 2,
            defended: Some(GradientMode::Bpda),
            setting: Setting::Default,
            seed: 1,
        };
        assert_eq!(job(sent), Job::Autoattack(expected));
        let sent =
            json!({ "kind": "train-classifier", "architecture": "cnn-small-w4", "images": 8, "batch": 2 });
        let Job::TrainClassifier(training) = job(sent) else { panic!("another job") };
        assert_eq!((training.epochs, training.augment, training.precision), (1, true, Precision::Auto));
        let sent = json!({ "kind": "train-trn", "pool": 8, "batch": 4, "attack": "pgd-7@8/255" });
        let Job::TrainTrn(training) = job(sent) else { panic!("another job") };
        assert_eq!(training.attack, "pgd-7@8/255".parse().unwrap());
    }

    #[test]
    fn what_is_no_request_is_an_error_that_says_why() {
        let refused = |value: Value| parse(value).unwrap_err().to_string();
        assert!(refused(json!({ "op": "dance" })).contains("dance"));
        assert!(refused(json!({ "op": "run", "job": { "kind": "matmul", "n": 4 } })).contains("matmul"));
        assert!(refused(json!({ "op": "run", "job": { "kind": "gradient" } })).contains("batch"));
        assert!(refused(json!({ "op": "load" })).contains("data"));
        let negative = json!({ "op": "run", "job": { "kind": "gradient", "batch": -1 } });
        assert!(parse(negative).is_err());
        let nonsense = json!({
            "op": "run",
            "job": { "kind": "train-classifier", "architecture": "resnet19", "images": 8, "batch": 2 },
        });
        assert!(refused(nonsense).contains("resnet18-w64"));
    }

    #[test]
    fn answers_are_flat_and_leave_out_what_they_do_not_have() {
        let said = |body: Result<Body, Error>| serde_json::to_value(Answer::from(body)).unwrap();
        let report = Report { seconds: 0.5, images: 3, robust: Some(0.25), ..Report::default() };
        assert_eq!(
            said(Ok(Body::Report(report))),
            json!({ "ok": true, "seconds": 0.5, "images": 3, "robust": 0.25 })
        );
        assert_eq!(said(Ok(Body::Memory { peak_kib: 7 })), json!({ "ok": true, "peak_kib": 7 }));
        assert_eq!(said(Ok(Body::Farewell {})), json!({ "ok": true }));
        let failed = said(Err(Error::NotLoaded("a classifier")));
        assert_eq!(failed["ok"], false);
        assert!(failed["error"].as_str().unwrap().contains("a classifier"));
    }
}
