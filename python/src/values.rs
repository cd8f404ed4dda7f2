//! Small values on their way between Python and the library.

use pyo3::prelude::*;
use pyo3_tch::PyTensor;
use serde::Serialize;
use talion_core::{Error, Result};
use tch::Device;

use crate::{error::raise, job::outside};

/// Reads a device's name as PyTorch writes it: `cpu`, `cuda`, `cuda:1`, `mps`.
pub(crate) fn device(name: &str) -> Result<Device> {
    let unknown =
        || Error::Unknown { what: "device", found: name.into(), known: "cpu, cuda, cuda:N, mps".into() };
    match name.split_once(':') {
        None if name == "cuda" => Ok(Device::Cuda(0)),
        Some(("cuda", number)) => number.parse().map(Device::Cuda).map_err(|_| unknown()),
        None if name == "cpu" => Ok(Device::Cpu),
        None if name == "mps" => Ok(Device::Mps),
        Some(("mps", "0")) => Ok(Device::Mps),
        _ => Err(unknown()),
    }
}

/// A device's name as PyTorch writes it.
pub(crate) fn device_name(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".into(),
        Device::Cuda(number) => format!("cuda:{number}"),
        Device::Mps => "mps".into(),
        Device::Vulkan => "vulkan".into(),
    }
}

/// A value as Python's dicts, lists, strings and numbers.
pub(crate) fn plain<'py>(py: Python<'py>, value: &impl Serialize) -> PyResult<Bound<'py, PyAny>> {
    let text = serde_json::to_string(value).map_err(|error| raise(py, &Error::other(error)))?;
    py.import("json")?.call_method1("loads", (text,))
}

/// Checks that images are `[N, C, H, W]`, `f32` or `f64`, finite and in `[0, 1]`.
#[pyfunction]
pub(crate) fn check_images(py: Python<'_>, images: PyTensor) -> PyResult<()> {
    let images = images.0;
    outside(py, move |_| talion_core::check_images(&images))
}

/// Reads `8/255` or `0.03`.
#[pyfunction]
pub(crate) fn fraction(py: Python<'_>, text: &str) -> PyResult<f64> {
    talion_core::parse_fraction(text).map_err(|error| raise(py, &error))
}
