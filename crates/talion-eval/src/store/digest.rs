//! Checksums of what a run keeps. A database finds pages that are torn, not a number that has changed: these do.
//!
//! The bytes that are summed belong to the store's format: whoever changes them raises [`super::header::FORMAT`].

use sha2::{Digest, Sha256};

use crate::{Chunk, Outcome};

/// SHA-256 of `bytes`, in hexadecimal.
pub(super) fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of outcomes in their order.
pub(super) fn of_outcomes<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> String {
    let mut sum = Sum(Sha256::new());
    for outcome in outcomes {
        sum.text(&outcome.contender);
        sum.number(outcome.row as u64);
        sum.number(outcome.id);
        sum.number(outcome.label.cast_unsigned());
        sum.number(outcome.predicted.cast_unsigned());
        sum.real(outcome.confidence);
        sum.real(outcome.margin);
        sum.real(outcome.distance);
        sum.number(u64::from(outcome.attacked));
        sum.maybe(outcome.psnr);
        sum.maybe(outcome.ssim);
    }
    hex(&sum.0.finalize())
}

/// SHA-256 of a chunk's record, the sum of its outcomes included.
pub(super) fn of_chunk(chunk: &Chunk, outcomes_sha256: &str) -> String {
    let mut sum = Sum(Sha256::new());
    sum.text(&chunk.experiment);
    sum.number(chunk.first as u64);
    sum.number(chunk.rows as u64);
    sum.text(&chunk.file);
    sum.text(&chunk.sha256);
    sum.number(chunk.passes.forward);
    sum.number(chunk.passes.backward);
    sum.real(chunk.seconds);
    sum.number(chunk.adjustments.len() as u64);
    chunk.adjustments.iter().for_each(|words| sum.text(words));
    sum.text(outcomes_sha256);
    hex(&sum.0.finalize())
}

struct Sum(Sha256);

impl Sum {
    fn number(&mut self, value: u64) {
        self.0.update(value.to_le_bytes());
    }

    fn real(&mut self, value: f64) {
        self.number(value.to_bits());
    }

    /// None is told apart from any number.
    fn maybe(&mut self, value: Option<f64>) {
        self.number(u64::from(value.is_some()));
        self.real(value.unwrap_or_default());
    }

    /// The length goes first, so that no two lists of texts run together to the same bytes.
    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
