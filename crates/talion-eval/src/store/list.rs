//! The runs in a folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

use talion_core::Result;

use super::{Progress, RunFolder, fault};
use crate::RunHeader;

/// A folder that holds a run, or what is left of one.
#[derive(Debug)]
pub struct RunEntry {
    /// The run's folder.
    pub path: PathBuf,
    /// What the run is and how far it has come, or why it cannot be read.
    pub state: Result<RunState>,
}

/// What a list says of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunState {
    /// What was asked for, and where it runs.
    pub header: RunHeader,
    /// How far it has come.
    pub progress: Progress,
}

/// All runs directly inside `folder`, by their paths; other folders and files are left out. A run that cannot be read
/// is listed with its error. Records are checked, but not every page of the database and no images: opening a run does
/// the first, [`RunFolder::broken_chunks`] both.
///
/// # Errors
/// If `folder` cannot be read.
pub fn list_runs(folder: &Path) -> Result<Vec<RunEntry>> {
    let mut runs = Vec::new();
    for entry in fs::read_dir(folder).map_err(fault::io(folder))? {
        let path = entry.map_err(fault::io(folder))?.path();
        if RunFolder::exists(&path) {
            runs.push(RunEntry { state: state(&path), path });
        }
    }
    runs.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(runs)
}

fn state(path: &Path) -> Result<RunState> {
    let run = RunFolder::glance(path)?;
    Ok(RunState { header: run.header().clone(), progress: run.progress()? })
}
