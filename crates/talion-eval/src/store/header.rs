//! The header of a run as it is kept, and what the parts of a run are called.

use std::{collections::BTreeSet, path::Path};

use talion_core::{Error, Result};

use super::{digest, fault};
use crate::{CLEAN, RunConfig, RunHeader};

/// Which meaning the records of a run folder have. Raise it, with a migration, whenever that changes.
pub(super) const FORMAT: i64 = 1;

/// A header ready to be written.
pub(super) struct Sealed {
    pub(super) json: String,
    pub(super) sha256: String,
}

/// Turns a header into text, and makes sure that the text gives the same header back.
pub(super) fn seal(header: &RunHeader) -> Result<Sealed> {
    let json = serde_json::to_string(header).map_err(Error::other)?;
    let back: RunHeader = serde_json::from_str(&json).map_err(Error::other)?;
    if back != *header {
        let words = "the run's header cannot be kept: read back, it is another one. An attack whose name does not hold \
                     all its settings does that";
        return Err(Error::Refused(words.into()));
    }
    let sha256 = digest::of_bytes(json.as_bytes());
    Ok(Sealed { json, sha256 })
}

/// Reads a header from the database at `path`.
pub(super) fn unseal(path: &Path, sealed: &Sealed) -> Result<RunHeader> {
    if digest::of_bytes(sealed.json.as_bytes()) != sealed.sha256 {
        return Err(fault::damaged(path, "its header does not have the checksum that was kept with it"));
    }
    serde_json::from_str(&sealed.json).map_err(|error| {
        Error::file(path, format!("has a header that this version of talion cannot read: {error}"))
    })
}

/// Only one format is read; a wrong guess would give wrong numbers.
pub(super) fn check_format(path: &Path, format: i64) -> Result<()> {
    if format == FORMAT {
        return Ok(());
    }
    let advice = if format > FORMAT { "use a newer talion" } else { "use the talion that wrote it" };
    Err(Error::file(
        path,
        format!("is a run of format {format}, and this talion reads format {FORMAT}; {advice}"),
    ))
}

/// What the experiments and contenders of a run are called; their places are their numbers in the database.
pub(super) struct Cast {
    /// Keys and numbers of samples, [`CLEAN`] first.
    pub(super) experiments: Vec<(String, usize)>,
    /// Names, in the configuration's order.
    pub(super) contenders: Vec<String>,
}

impl Cast {
    /// The cast of a configuration.
    ///
    /// # Errors
    /// If two experiments or two contenders have the same name, nobody faces the images, or an experiment has no
    /// samples or more than the run.
    pub(super) fn of(config: &RunConfig) -> Result<Self> {
        let mut experiments = vec![(CLEAN.to_owned(), config.samples)];
        experiments
            .extend(config.experiments.iter().map(|experiment| (experiment.key(), experiment.samples)));
        let contenders: Vec<String> = config.contenders.iter().map(|player| player.name.clone()).collect();
        unique("experiments", experiments.iter().map(|(key, _)| key))?;
        unique("contenders", contenders.iter())?;
        if contenders.is_empty() {
            return Err(Error::range("the number of contenders", "at least 1", 0));
        }
        for (key, samples) in &experiments {
            if !(1..=config.samples).contains(samples) {
                let expected = format!("1 to {}, the samples of the run", config.samples);
                return Err(Error::range(format!("the number of samples of `{key}`"), expected, samples));
            }
        }
        Ok(Self { experiments, contenders })
    }

    /// An experiment's number and how many samples it has.
    pub(super) fn experiment(&self, key: &str) -> Result<(usize, usize)> {
        let found = self.experiments.iter().enumerate().find(|(_, (name, _))| name == key);
        found.map(|(number, (_, samples))| (number, *samples)).ok_or_else(|| Error::Unknown {
            what: "experiment",
            found: key.into(),
            known: format!("`{CLEAN}` and the {} experiments of the run", self.experiments.len() - 1),
        })
    }

    /// A contender's number.
    pub(super) fn contender(&self, name: &str) -> Result<usize> {
        self.contenders.iter().position(|contender| contender == name).ok_or_else(|| Error::Unknown {
            what: "contender",
            found: name.into(),
            known: self.contenders.join(", "),
        })
    }
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a String>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(Error::Refused(format!(
                "two {what} of the run are called `{name}`; each needs its own name"
            )));
        }
    }
    Ok(())
}
