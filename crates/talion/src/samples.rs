//! The images that a command measures on.

use talion_core::{Error, Result};
use talion_data::{Dataset, DatasetSpec, Split};
use talion_models::Model;
use tch::{Device, Tensor};

/// The test images that a command is to take: of `data`, or the bundled sample.
///
/// # Errors
/// If the data set cannot be read.
pub fn test_split(data: Option<&DatasetSpec>) -> talion_data::Result<Dataset> {
    match data {
        Some(spec) => talion_data::load(spec, Split::Test, None),
        None => talion_data::fashion_mnist_sample(),
    }
}

/// Images with labels and ids.
pub struct Samples {
    /// `[N, C, H, W]` in `[0, 1]`.
    pub images: Tensor,
    /// `[N]`.
    pub labels: Tensor,
    /// The samples' ids.
    pub ids: Vec<u64>,
}

impl Samples {
    /// The first `count` images of `data` (all of them if there are fewer): a choice that nobody can tune.
    ///
    /// # Errors
    /// If there are no images.
    pub fn first(data: &Dataset, count: usize, device: Device) -> Result<Self> {
        let indices: Vec<usize> = (0..count.min(data.len())).collect();
        if indices.is_empty() {
            return Err(Error::range("the number of images", "at least 1", 0));
        }
        let (images, labels) = data.tensor(&indices).map_err(Error::other)?;
        let ids = indices.iter().map(|&index| data.ids()[index]).collect();
        Ok(Self { images: images.to_device(device), labels: labels.to_device(device), ids })
    }
}

/// Checks that a classifier takes the images of a data set and knows its classes.
///
/// # Errors
/// Says what does not fit.
pub fn fits(model: &Model, data: &Dataset) -> Result<()> {
    let whole = |size: usize| i64::try_from(size).unwrap_or(i64::MAX);
    let (classes, known) = (whole(data.classes()), model.card().spec.classes);
    if classes > known {
        return Err(Error::Refused(format!(
            "{} has {classes} classes, and the classifier {} knows {known}",
            data.name(),
            model.card().spec.architecture
        )));
    }
    model.accepts(whole(data.channels()), [whole(data.height()), whole(data.width())])
}
