//! What a score means: how common it is among clean images.

use std::path::Path;

use serde::{Deserialize, Serialize};
use talion_core::{Error, Result, write_atomically};

use super::{MeasuredDetection, Suspicion};

/// The scores of clean images that neither classifier nor TRN was trained on, and what follows from them.
///
/// An image is flagged if its score is above a conformal quantile of these ([`Calibration::threshold`]). A clean image that
/// comes from where they come from is then flagged with a probability of at most the stated rate, whatever the scores'
/// distribution (Vovk, Gammerman and Shafer 2005): on average over draws of the clean images; with 2,000 of them and a rate
/// of 5 %, nine draws in ten lie between 4.2 and 5.8 %. It says nothing about images from elsewhere. (Training does not learn
/// from these images, but may have chosen among its rounds by them: so false alarms are counted on test images, too.)
///
/// Scores are kept and compared in `f32`: as rounding keeps their order, the promise holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    kind: String,
    version: u32,
    /// SHA-256 of the classifier's weights ([`crate::fingerprint`]), in hexadecimal.
    pub classifier: String,
    /// SHA-256 of the TRN's weights, in hexadecimal.
    pub trn: String,
    /// The data set that the clean images come from.
    pub dataset: String,
    /// How many clean images there were.
    pub clean_images: usize,
    /// The share of clean images that may be flagged, unless another is asked for.
    pub false_alarm_rate: f64,
    /// What was found on other images; none if nothing was measured.
    pub measured: Option<MeasuredDetection>,
    /// The clean images' scores, ascending.
    scores: Vec<f32>,
}

/// What a file says of its kind, read before anything else, so that another kind of file is not taken for a damaged one.
#[derive(Deserialize)]
struct Head {
    kind: String,
    version: u32,
}

/// Fewer clean images say nothing about rates that anybody wants.
const FEWEST: usize = 20;

impl Calibration {
    /// The `kind` of a calibration's file.
    pub const KIND: &'static str = "suspicion-calibration";
    /// The version of the file's format.
    pub const VERSION: u32 = 1;

    /// Calibrates on the scores of clean images, in any order. `networks` are the SHA-256 sums of classifier and TRN.
    ///
    /// # Errors
    /// If there are fewer than 20 scores, one is no number or below 0, a sum is none, or so few scores cannot promise this
    /// rate.
    pub fn new(scores: &[f64], networks: (&str, &str), dataset: &str, false_alarm_rate: f64) -> Result<Self> {
        let mut scores: Vec<f32> = scores.iter().map(|&score| rounded(score)).collect();
        scores.sort_by(f32::total_cmp);
        let calibration = Self {
            kind: Self::KIND.into(),
            version: Self::VERSION,
            classifier: networks.0.into(),
            trn: networks.1.into(),
            dataset: dataset.into(),
            clean_images: scores.len(),
            false_alarm_rate,
            measured: None,
            scores,
        };
        match calibration.problem() {
            None => Ok(calibration),
            Some(problem) => Err(Error::Refused(format!("this cannot be calibrated: {problem}"))),
        }
    }

    /// The score above which an image is flagged, so that at most a share of `rate` of clean images is: of n clean scores
    /// the ceil((n + 1)(1 - rate))-th smallest.
    ///
    /// # Errors
    /// If `rate` is not below 1, or smaller than n clean images can promise, which is 1 / (n + 1).
    pub fn threshold(&self, rate: f64) -> Result<f64> {
        let rank = conformal_rank(self.scores.len(), rate)?;
        Ok(f64::from(self.scores[rank - 1]))
    }

    /// The share of clean images with a lower score, those with the same score counted half; 1 for NaN.
    pub fn quantile(&self, score: f64) -> f64 {
        if score.is_nan() {
            return 1.0;
        }
        let score = rounded(score);
        let lower = self.scores.partition_point(|&clean| clean < score);
        let not_higher = self.scores.partition_point(|&clean| clean <= score);
        (lower + not_higher) as f64 / (2 * self.scores.len()) as f64
    }

    /// What is to be said of an image with this score when a share of `rate` of clean images may be flagged. NaN is flagged.
    ///
    /// # Errors
    /// As [`Calibration::threshold`]; never for the calibration's own rate.
    pub fn judge(&self, score: f64, rate: f64) -> Result<Suspicion> {
        let threshold = self.threshold(rate)?;
        let flagged = score.is_nan() || f64::from(rounded(score)) > threshold;
        Ok(Suspicion { score, quantile: self.quantile(score), flagged, false_alarm_rate: rate })
    }

    /// Checks that this was made for the networks with these SHA-256 sums; `origin` is named in the error.
    ///
    /// # Errors
    /// If it was made for others.
    pub fn check_networks(&self, classifier: &str, trn: &str, origin: &Path) -> Result<()> {
        let other = match (self.classifier == classifier, self.trn == trn) {
            (true, true) => return Ok(()),
            (false, true) => "another classifier",
            (true, false) => "another TRN",
            (false, false) => "another classifier and another TRN",
        };
        Err(Error::file(origin, format!("was made for {other}; make one for these with `talion calibrate`")))
    }

    /// Reads a calibration and checks all of it.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, of another kind or version, or does not fit together.
    pub fn load(path: &Path) -> Result<Self> {
        Self::from_bytes(&std::fs::read(path).map_err(Error::io(path))?, path)
    }

    /// As [`Calibration::load`], from memory; `origin` is named in errors.
    ///
    /// # Errors
    /// As [`Calibration::load`].
    pub fn from_bytes(bytes: &[u8], origin: &Path) -> Result<Self> {
        let wrong = |problem: String| {
            Error::file(origin, format!("{problem}; make it again with `talion calibrate`"))
        };
        let damaged = |error: serde_json::Error| wrong(format!("is not a whole calibration ({error})"));
        let head: Head = serde_json::from_slice(bytes).map_err(damaged)?;
        if head.kind != Self::KIND {
            return Err(wrong(format!("holds a {}, not a {}", head.kind, Self::KIND)));
        }
        if head.version != Self::VERSION {
            return Err(wrong(format!(
                "has version {}, and this program reads {}",
                head.version,
                Self::VERSION
            )));
        }
        let calibration: Self = serde_json::from_slice(bytes).map_err(damaged)?;
        match calibration.problem() {
            None => Ok(calibration),
            Some(problem) => Err(wrong(problem)),
        }
    }

    /// Writes the calibration, whole or not at all.
    ///
    /// # Errors
    /// If it does not fit together, or the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        if let Some(problem) = self.problem() {
            return Err(Error::file(path, format!("is not written: {problem}")));
        }
        let mut bytes = serde_json::to_vec(self).map_err(Error::other)?;
        bytes.push(b'\n');
        write_atomically(path, &bytes)
    }

    /// Whether each of these scores is flagged at the calibration's own rate.
    pub(super) fn flags(&self, scores: &[f64]) -> Result<Vec<bool>> {
        scores
            .iter()
            .map(|&score| self.judge(score, self.false_alarm_rate).map(|said| said.flagged))
            .collect()
    }

    /// The first thing that does not fit together.
    fn problem(&self) -> Option<String> {
        let scores = &self.scores;
        let checks = [
            (is_sha256(&self.classifier), "`classifier` is no SHA-256 sum in hexadecimal".to_owned()),
            (is_sha256(&self.trn), "`trn` is no SHA-256 sum in hexadecimal".to_owned()),
            (
                scores.len() >= FEWEST,
                format!("{} clean scores are too few, at least {FEWEST} are needed", scores.len()),
            ),
            (
                scores.len() == self.clean_images,
                format!("`clean_images` is {}, but there are {} scores", self.clean_images, scores.len()),
            ),
            (
                scores.iter().all(|score| score.is_finite() && *score >= 0.0),
                "a clean score is no finite number of at least 0".to_owned(),
            ),
            (scores.is_sorted(), "the clean scores are not in ascending order".to_owned()),
        ];
        let wrong = checks.into_iter().find(|(holds, _)| !holds).map(|(_, problem)| problem);
        let rate =
            || conformal_rank(scores.len(), self.false_alarm_rate).err().map(|error| error.to_string());
        let measured = || self.measured.as_ref().and_then(MeasuredDetection::problem);
        wrong.or_else(rate).or_else(measured)
    }
}

/// Which of so many clean scores, in ascending order and counted from 1, is the threshold for a false-alarm rate:
/// ceil((n + 1)(1 - rate)). One more score from the same source is equally likely to take any place among them, so the
/// chance that it comes after this one is at most `rate`.
///
/// # Errors
/// If `rate` is not below 1, or below 1 / (n + 1), at which no image could ever be flagged.
pub fn conformal_rank(clean_images: usize, rate: f64) -> Result<usize> {
    let places = clean_images as f64 + 1.0;
    // the summand is for rates such as 0.29 of 100 places, whose product is rounded to just below 29
    let above = (places * rate + 1e-9).floor();
    if above >= 1.0 && rate < 1.0 {
        return Ok(clean_images + 1 - (above as usize).min(clean_images));
    }
    let expected =
        format!("at least {:.6} (so much {clean_images} clean images can promise), below 1", 1.0 / places);
    Err(Error::range("the false-alarm rate", expected, rate))
}

/// The precision in which scores are kept and compared.
fn rounded(score: f64) -> f32 {
    score as f32
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests;
