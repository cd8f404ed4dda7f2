//! Where a run is kept: a folder with a database of outcomes and a file of images a chunk.
//!
//! What is added is there as a whole or not at all, whenever the program is killed: a chunk's file is written first,
//! under a temporary name, then one transaction adds its record and outcomes. A file without a record is overwritten by
//! the next try. Everything carries a checksum, so what is read is what was written, or an error.
//!
//! ```text
//! RUN/run.sqlite       header, chunks, outcomes, alarms
//! RUN/chunks/          safetensors files, named after experiment and first sample
//! RUN/lock             held by the one who writes; those who read need no lock
//! ```

mod check;
mod chunks;
mod diff;
mod digest;
mod fault;
mod folder;
mod header;
mod list;
mod lock;
mod sqlite;
mod tables;

pub use diff::{ChangedField, Compared, Difference, diff};
pub use folder::{Progress, RunFolder};
pub use list::{RunEntry, RunState, list_runs};
pub use lock::Wait;

use std::path::Path;

use talion_attacks::Passes;
use talion_core::{Error, Result};

use crate::{Chunk, Outcome};

/// What a database has to do for a run. Experiments go by their numbers: 0 for clean images, then the configuration's
/// order.
///
/// Whatever is added is there as a whole when the method returns, and not at all if it fails.
trait RunStore: Send {
    /// The chunks of an experiment by their first sample.
    fn chunks(&mut self, experiment: usize) -> Result<Vec<Kept>>;

    /// The chunks of an experiment by their first sample, and its outcomes by contender and row, as they are at one
    /// moment.
    fn read(&mut self, experiment: usize) -> Result<(Vec<Kept>, Vec<Outcome>)>;

    /// Adds a chunk with its outcomes.
    fn add(&mut self, experiment: usize, kept: &Kept, outcomes: &[Outcome]) -> Result<()>;

    /// Removes the chunk with this first sample, and its outcomes.
    fn forget(&mut self, experiment: usize, first: usize) -> Result<()>;

    /// All alarms in the order in which they were added.
    fn alarms(&mut self) -> Result<Vec<String>>;

    /// Adds those alarms that are not there.
    fn add_alarms(&mut self, alarms: &[String]) -> Result<()>;
}

/// A chunk that is about to be kept: all of [`Chunk`] that its maker knows.
#[derive(Clone, Debug, PartialEq)]
pub struct NewChunk {
    /// The experiment's key ([`crate::Experiment::key`]), or [`crate::CLEAN`].
    pub experiment: String,
    /// The place of its first sample in the run.
    pub first: usize,
    /// How many samples.
    pub rows: usize,
    /// Passes spent, summed over samples.
    pub passes: Passes,
    /// Seconds it took.
    pub seconds: f64,
    /// What had to be different from the attack's definition, in words.
    pub adjustments: Vec<String>,
}

/// A chunk's record with the checksums that tell whether it, and its outcomes, are as they were written.
struct Kept {
    chunk: Chunk,
    outcomes_sha256: String,
    sha256: String,
}

impl Kept {
    fn of(chunk: Chunk, outcomes: &[Outcome]) -> Self {
        let outcomes_sha256 = digest::of_outcomes(outcomes.iter());
        let sha256 = digest::of_chunk(&chunk, &outcomes_sha256);
        Self { chunk, outcomes_sha256, sha256 }
    }

    /// Whether the record is as it was written to the database at `path`.
    fn check_record(&self, path: &Path) -> Result<()> {
        if digest::of_chunk(&self.chunk, &self.outcomes_sha256) == self.sha256 {
            return Ok(());
        }
        let what = format!("the record of {} does not have its checksum", describe(&self.chunk));
        Err(Error::file(path, format!("is damaged: {what}; {}", fault::AGAIN)))
    }

    /// Whether the outcomes of this chunk, among all of its experiment, are as they were written to the database at
    /// `path`. Returns how many they are.
    fn check_outcomes(&self, path: &Path, outcomes: &[Outcome]) -> Result<usize> {
        let own = || outcomes.iter().filter(|outcome| (self.chunk.first..self.end()).contains(&outcome.row));
        if digest::of_outcomes(own()) == self.outcomes_sha256 {
            return Ok(own().count());
        }
        let what = format!("the outcomes of {} do not have their checksum", describe(&self.chunk));
        Err(Error::file(path, format!("is damaged: {what}; {}", fault::AGAIN)))
    }

    /// One past the last sample; a damaged record may say anything.
    fn end(&self) -> usize {
        self.chunk.first.saturating_add(self.chunk.rows)
    }
}

/// A chunk in words.
fn describe(chunk: &Chunk) -> String {
    let last = chunk.first.saturating_add(chunk.rows).saturating_sub(1);
    format!("samples {} to {last} of `{}`", chunk.first, chunk.experiment)
}
