//! The networks and images that come with the package.

use std::{borrow::Cow, path::PathBuf};

use pyo3::prelude::*;
use pyo3_tch::PyTensor;
use talion_core::{Error, Result};

use crate::job::outside;

const CLASSIFIER: &[u8] = include_bytes!("../../models/fashion-mnist/classifier.safetensors");
const SURROGATE: &[u8] = include_bytes!("../../models/fashion-mnist/surrogate.safetensors");
const TRN: &[u8] = include_bytes!("../../models/fashion-mnist/trn.safetensors");
const ONE_STREAM: &[u8] = include_bytes!("../../models/fashion-mnist/one-stream.safetensors");

/// A file of the package: its bytes, and the name to give it in errors.
type File = (Cow<'static, [u8]>, PathBuf);

/// The classifier of this name.
pub(crate) fn classifier(name: &str) -> Result<File> {
    pick(name, [("classifier", CLASSIFIER), ("surrogate", SURROGATE)])
}

/// The restoration network of this name.
pub(crate) fn trn(name: &str) -> Result<File> {
    pick(name, [("trn", TRN), ("one-stream", ONE_STREAM)])
}

fn pick(name: &str, all: [(&str, &'static [u8]); 2]) -> Result<File> {
    let found = all.iter().find(|(known, _)| *known == name).ok_or_else(|| Error::Unknown {
        what: "bundled network",
        found: name.into(),
        known: all.map(|(known, _)| known).join(", "),
    })?;
    Ok((Cow::Borrowed(found.1), PathBuf::from(format!("(bundled) fashion-mnist/{name}.safetensors"))))
}

/// The first `count` images of the bundled Fashion-MNIST sample, their labels, and the names of the classes.
#[pyfunction]
pub(crate) fn sample(py: Python<'_>, count: usize) -> PyResult<(PyTensor, PyTensor, Vec<String>)> {
    let (images, labels, names) = outside(py, move |_| {
        let data = talion_data::fashion_mnist_sample().map_err(Error::other)?;
        if !(1..=data.len()).contains(&count) {
            return Err(Error::range("the number of images", format!("1 to {}", data.len()), count));
        }
        let (images, labels) = data.tensor(&(0..count).collect::<Vec<_>>()).map_err(Error::other)?;
        Ok((images, labels, data.class_names().to_vec()))
    })?;
    Ok((PyTensor(images), PyTensor(labels), names))
}
