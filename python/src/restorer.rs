//! Restoration networks as Python holds them.

use std::{
    borrow::Cow,
    ops::Deref,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pyo3::prelude::*;
use talion_core::{Result, Tensors};
use talion_defenses::{Trn, TrnCard};
use tch::Device;

use crate::{bundled, job::outside, values::plain};

/// A restoration network that any number of threads may use at once.
///
/// A network of tch cannot be shared by threads, and behind a lock it could not be used again by a model in Python that is
/// asked while it is in use. So whoever needs it is lent one that is idle, or else a new one from the file's bytes: there
/// are as many as were ever in use at the same time, and they are small.
pub(crate) struct Restorer {
    bytes: Cow<'static, [u8]>,
    origin: PathBuf,
    card: TrnCard,
    parameters: usize,
    idle: Mutex<Vec<(Device, Trn)>>,
}

impl Restorer {
    fn read(bytes: Cow<'static, [u8]>, origin: PathBuf) -> Result<Self> {
        let trn = Trn::from_bytes(&bytes, &origin, Device::Cpu)?;
        let (card, parameters) = (trn.card().clone(), trn.parameters());
        Ok(Self { bytes, origin, card, parameters, idle: Mutex::new(vec![(Device::Cpu, trn)]) })
    }

    pub(crate) fn card(&self) -> &TrnCard {
        &self.card
    }

    pub(crate) fn parameters(&self) -> usize {
        self.parameters
    }

    /// A network on this device, until it is dropped.
    pub(crate) fn lend(&self, device: Device) -> Result<Lent<'_>> {
        let found = {
            let mut idle = self.idle();
            let place = idle.iter().position(|(home, _)| *home == device);
            place.map(|place| idle.swap_remove(place).1)
        };
        let trn = match found {
            Some(trn) => trn,
            None => Trn::from_bytes(&self.bytes, &self.origin, device)?,
        };
        Ok(Lent { restorer: self, device, trn: Some(trn) })
    }

    /// The weights by name.
    pub(crate) fn tensors(&self) -> Result<Tensors> {
        Ok(self.lend(Device::Cpu)?.tensors())
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Device, Trn)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A network that goes back when it is dropped.
pub(crate) struct Lent<'a> {
    restorer: &'a Restorer,
    device: Device,
    /// Taken out by `drop` alone.
    trn: Option<Trn>,
}

impl Deref for Lent<'_> {
    type Target = Trn;

    fn deref(&self) -> &Trn {
        match &self.trn {
            Some(trn) => trn,
            None => unreachable!("a network goes back only when its loan is dropped"),
        }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(trn) = self.trn.take() {
            self.restorer.idle().push((self.device, trn));
        }
    }
}

/// A restoration network; see the stub file for what Python is told of it.
#[pyclass(frozen, name = "TRN", module = "talion")]
pub(crate) struct PyTrn {
    pub(crate) restorer: Arc<Restorer>,
}

#[pymethods]
impl PyTrn {
    /// Reads a restoration network from a file that `talion train trn` wrote.
    ///
    /// Raises FileError if the file is missing, damaged, or holds something else.
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let restorer = outside(py, move |_| {
            let bytes = std::fs::read(&path).map_err(talion_core::Error::io(&path))?;
            Restorer::read(Cow::Owned(bytes), path)
        })?;
        Ok(Self { restorer: Arc::new(restorer) })
    }

    /// The restoration network for Fashion-MNIST that comes with the package: "trn", the two-stream network, or
    /// "one-stream", its twin without gradient maps.
    ///
    /// >>> import talion
    /// >>> talion.TRN.bundled().classes
    /// 10
    #[staticmethod]
    #[pyo3(signature = (name = "trn"))]
    fn bundled(py: Python<'_>, name: &str) -> PyResult<Self> {
        let name = name.to_owned();
        let restorer = outside(py, move |_| {
            let (bytes, origin) = bundled::trn(&name)?;
            Restorer::read(bytes, origin)
        })?;
        Ok(Self { restorer: Arc::new(restorer) })
    }

    /// Number of classes of the classifier that it was trained with.
    #[getter]
    fn classes(&self) -> i64 {
        self.restorer.card.classes
    }

    /// Number of channels of the images that it restores, 1 or 3.
    #[getter]
    fn channels(&self) -> i64 {
        self.restorer.card.spec.channels
    }

    /// Number of weights, those of its first pass included.
    #[getter]
    fn parameters(&self) -> usize {
        self.restorer.parameters
    }

    /// What the file says of itself: a dict with `spec`, `dataset`, `classifier`, `seed`, `training`, `metrics`, ...
    #[getter]
    fn card<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        plain(py, &self.restorer.card)
    }

    fn __repr__(&self) -> String {
        let card = &self.restorer.card;
        format!(
            "TRN({} maps, {} weights, for {} classes of {})",
            card.spec.estimator, self.restorer.parameters, card.classes, card.dataset
        )
    }
}
