//! Classifiers as Python holds them, private to the package: `talion.Classifier` and `talion.Defended` are made of these.

use std::{path::PathBuf, sync::Arc};

use pyo3::prelude::*;
use pyo3_tch::PyTensor;
use talion_attacks::predict_all;
use talion_core::{Classifier, Error, Result, check_images};
use talion_defenses::{GradientMode, Trn, gradient_map::MapGraph};
use talion_models::Model;
use tch::{Kind, Tensor};

use crate::{
    bundled,
    error::raise,
    job::{Trouble, graph, outside},
    restorer::PyTrn,
    source::{File, Live, Source},
    values::{device, device_name, plain},
};

#[pyclass(frozen, module = "talion._talion")]
pub(crate) struct Network {
    pub(crate) source: Arc<Source>,
}

#[pymethods]
impl Network {
    /// A function in Python, tensors `[N, C, H, W]` in and `[N, K]` out.
    #[staticmethod]
    fn live(
        py: Python<'_>,
        forward: PyObject,
        classes: i64,
        on: &str,
        mean: Vec<f64>,
        std: Vec<f64>,
    ) -> PyResult<Self> {
        let live = device(on).and_then(|on| Live::new(forward, classes, on, mean, std));
        Ok(Self::of(Source::Live(live.map_err(|error| raise(py, &error))?)))
    }

    /// A file of any format that the library reads.
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf, on: String) -> PyResult<Self> {
        let source = outside(py, move |_| file(Model::load(&path, device(&on)?)))?;
        Ok(Self::of(source))
    }

    /// A classifier that comes with the package.
    #[staticmethod]
    fn bundled(py: Python<'_>, name: String, on: String) -> PyResult<Self> {
        let source = outside(py, move |_| {
            let (bytes, origin) = bundled::classifier(&name)?;
            file(Model::from_bytes(&bytes, &origin, device(&on)?))
        })?;
        Ok(Self::of(source))
    }

    /// This classifier behind a restoration network, differentiated as `mode` says.
    fn defended(&self, py: Python<'_>, trn: &PyTrn, mode: &str) -> PyResult<Self> {
        let refused = |error: Error| raise(py, &error);
        let mode: GradientMode = mode.parse().map_err(refused)?;
        let (found, wanted) = (self.source.classes(), trn.restorer.card().classes);
        if found != wanted {
            let expected = format!("{wanted}, as the TRN was trained with");
            return Err(refused(Error::range("the classifier's number of classes", expected, found)));
        }
        let (base, restorer) = (Arc::clone(&self.source), Arc::clone(&trn.restorer));
        Ok(Self::of(Source::Defended(base, restorer, mode)))
    }

    #[getter]
    fn classes(&self) -> i64 {
        self.source.classes()
    }

    #[getter]
    fn device(&self) -> String {
        device_name(self.source.device())
    }

    /// What a file says of itself; `None` for anything else.
    #[getter]
    fn card<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        match self.source.as_ref() {
            Source::File(file) => plain(py, &file.card).map(Some),
            _ => Ok(None),
        }
    }

    /// What had to be assumed about a file, a sentence each.
    #[getter]
    fn assumed(&self) -> Vec<String> {
        match self.source.as_ref() {
            Source::File(file) => file.assumed.clone(),
            _ => Vec::new(),
        }
    }

    /// Logits `[N, K]`, on the images' device, in the graph if `differentiable`.
    fn logits(&self, py: Python<'_>, images: PyTensor, differentiable: bool) -> PyResult<PyTensor> {
        let source = Arc::clone(&self.source);
        let images = images.0;
        let logits = outside(py, move |trouble| {
            check_nearly(&images)?;
            source.check_channels(&images)?;
            let view = source.view(trouble)?;
            let home = images.device();
            Ok(graph(differentiable, || view.logits(&images.to_device(view.device())).to_device(home)))
        })?;
        Ok(PyTensor(logits))
    }

    /// Logits `[N, K]` and classes `[N]`, in batches of the fixed shape that attacks use, without gradients.
    fn predict(&self, py: Python<'_>, images: PyTensor) -> PyResult<(PyTensor, PyTensor)> {
        let source = Arc::clone(&self.source);
        let images = images.0;
        let (logits, labels) = outside(py, move |trouble| {
            source.check_channels(&images)?;
            let said = predict_all(&source.view(trouble)?, &images)?;
            let home = images.device();
            Ok((said.logits.to_device(home), said.labels.to_device(home)))
        })?;
        Ok((PyTensor(logits), PyTensor(labels)))
    }

    /// The images restored, `[N, C, H, W]`, in the graph if `differentiable`. Only for defended classifiers.
    fn restore(&self, py: Python<'_>, images: PyTensor, differentiable: bool) -> PyResult<PyTensor> {
        let source = Arc::clone(&self.source);
        let images = images.0;
        let restored = outside(py, move |trouble| {
            source.with_defence(&images, trouble, |view, trn, mode, images| {
                let through = differentiable && images.requires_grad() && mode == GradientMode::Exact;
                let maps = if through { MapGraph::Differentiable } else { MapGraph::Constant };
                let restore = || trn.restore(view, &images.to_device(view.device()), maps);
                Ok(graph(differentiable, || restore().to_device(images.device())))
            })
        })?;
        Ok(PyTensor(restored))
    }

    /// The gradient maps, `[N, maps * C, H, W]`; `None` from a network without any. Only for defended classifiers.
    fn gradient_maps(&self, py: Python<'_>, images: PyTensor) -> PyResult<Option<PyTensor>> {
        let source = Arc::clone(&self.source);
        let images = images.0;
        let maps = outside(py, move |trouble| {
            source.with_defence(&images, trouble, |view, trn, _, images| {
                let there = images.detach().to_device(view.device());
                let prepared = trn.prepare(view, &there, MapGraph::Constant, None);
                Ok(prepared.maps.map(|maps| maps.detach().to_device(images.device())))
            })
        })?;
        Ok(maps.map(PyTensor))
    }
}

impl Network {
    fn of(source: Source) -> Self {
        Self { source: Arc::new(source) }
    }
}

/// As [`check_images`], but values may lie a little outside: a classifier that is part of somebody's model is also asked
/// about points that were computed, and computing rounds.
fn check_nearly(images: &Tensor) -> Result<()> {
    let floats = matches!(images.kind(), Kind::Float | Kind::Double);
    if images.dim() == 4 && floats && images.numel() > 0 {
        let beyond = (images - images.clamp(0.0, 1.0)).abs().max().double_value(&[]);
        if beyond <= ROUNDING {
            return Ok(());
        }
    }
    check_images(images)
}

/// How far outside is a little.
const ROUNDING: f64 = 1e-4;

fn file(model: Result<Model>) -> Result<Source> {
    model.map(|model| Source::File(Box::new(File::new(model))))
}

impl Source {
    /// Checks that images have the channels that a file or a restoration network is made for.
    pub(crate) fn check_channels(&self, images: &Tensor) -> Result<()> {
        match self {
            Self::Live(live) => live.check_channels(images),
            Self::File(file) => channels(images, file.card.spec.channels),
            Self::Defended(base, restorer, _) => {
                channels(images, restorer.card().spec.channels)?;
                base.check_channels(images)
            }
        }
    }

    /// Calls `work` with the bare classifier, the restoration network, the mode and the images.
    fn with_defence<T>(
        &self,
        images: &Tensor,
        trouble: &Trouble,
        work: impl FnOnce(&dyn Classifier, &Trn, GradientMode, &Tensor) -> Result<T>,
    ) -> Result<T> {
        let Self::Defended(base, restorer, mode) = self else {
            return Err(Error::Refused("there is no restoration network in front of this classifier".into()));
        };
        check_images(images)?;
        self.check_channels(images)?;
        let view = base.view(trouble)?;
        let trn = restorer.lend(view.device())?;
        work(&view, &trn, *mode, images)
    }
}

fn channels(images: &Tensor, wanted: i64) -> Result<()> {
    let found = images.size();
    match found.get(1) {
        Some(channels) if *channels != wanted => {
            Err(Error::Shape { what: "images", expected: format!("[N, {wanted}, H, W]"), found })
        }
        _ => Ok(()),
    }
}
