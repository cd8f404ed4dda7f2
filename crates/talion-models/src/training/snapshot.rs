//! The state of an unfinished run, so that a killed run goes on as if nothing had happened.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use talion_core::{Archive, Error, Result, Tensors};
use tch::Tensor;

use super::{Optimizer, Parameters};

#[derive(Serialize, Deserialize)]
struct Header {
    kind: String,
    /// The configuration, data checksum included: a snapshot of another run is refused.
    run: serde_json::Value,
    step: u64,
}

const KIND: &str = "training-snapshot";

/// Where a run keeps its state, and which run it is.
pub struct Snapshot {
    path: Option<PathBuf>,
    run: serde_json::Value,
}

impl Snapshot {
    /// Snapshots at `path` (`None`: nowhere) of the run that `run` describes in full.
    pub fn new(path: Option<&Path>, run: serde_json::Value) -> Self {
        Self { path: path.map(Into::into), run }
    }

    /// Saves the state after `step` steps. `extra` tensors (an average of weights, a pool) go with it.
    ///
    /// # Errors
    /// If the file cannot be written; the previous snapshot is then still there.
    pub fn save(
        &self,
        step: u64,
        parameters: &Parameters,
        optimizer: &Optimizer,
        extra: Tensors,
    ) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let mut tensors = extra;
        tensors.insert("parameters".into(), parameters.flat().shallow_clone());
        tensors.extend(optimizer.state());
        for (name, buffer) in parameters.buffers() {
            tensors.insert(format!("buffer/{name}"), buffer.shallow_clone());
        }
        let header = Header { kind: KIND.into(), run: self.run.clone(), step };
        Archive { header, tensors }.save(path)
    }

    /// Restores the state, if there is one. Returns the steps done and the extra tensors.
    ///
    /// # Errors
    /// If the snapshot is damaged or belongs to another run.
    pub fn restore(
        &self,
        parameters: &mut Parameters,
        optimizer: &mut Optimizer,
    ) -> Result<Option<(u64, Tensors)>> {
        let Some(path) = self.path.as_deref().filter(|path| path.exists()) else { return Ok(None) };
        let mut archive = Archive::<Header>::load(path)?;
        if archive.header.kind != KIND || archive.header.run != self.run {
            return Err(Error::file(
                path,
                "is the snapshot of a run with another configuration or other data; \
                 delete it to start over, or give this run another output",
            ));
        }
        let mut take = |name: &str, target: &Tensor| match archive.tensors.remove(name) {
            Some(found) if found.size() == target.size() => Ok(found),
            _ => Err(Error::file(path, format!("lacks a fitting tensor {name}; delete it to start over"))),
        };
        let flat = take("parameters", parameters.flat())?;
        let mut states = Vec::new();
        for (name, target) in optimizer.state() {
            states.push((take(&name, &target)?, name));
        }
        let mut buffers = Vec::new();
        for (name, target) in parameters.buffers() {
            buffers.push((take(&format!("buffer/{name}"), target)?, target.shallow_clone()));
        }
        tch::no_grad(|| {
            parameters.assign(&flat);
            for (name, target) in optimizer.state_mut() {
                if let Some((found, _)) = states.iter().find(|(_, key)| key == name) {
                    target.copy_(found);
                }
            }
            for (found, mut target) in buffers {
                target.copy_(&found);
            }
        });
        Ok(Some((archive.header.step, archive.tensors)))
    }

    /// Removes the snapshot of a finished run.
    ///
    /// # Errors
    /// If it is there and cannot be removed.
    pub fn discard(&self) -> Result<()> {
        match &self.path {
            Some(path) if path.exists() => std::fs::remove_file(path).map_err(Error::io(path)),
            _ => Ok(()),
        }
    }
}
