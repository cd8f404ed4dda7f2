//! A labelled set of images of one size, held as bytes.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

use crate::{
    error::{DataError, Result},
    rng::{Purpose, Stream},
};

/// Which part of a data set the images come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// The official training images.
    Train,
    /// Training images set aside by [`Dataset::split_validation`]; no data set ships such a part.
    Validation,
    /// The official test images.
    Test,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        })
    }
}

impl FromStr for Split {
    type Err = DataError;

    /// Reads `train` or `test`, the splits that can be loaded.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "train" => Ok(Self::Train),
            "test" => Ok(Self::Test),
            _ => Err(DataError::Request(format!("unknown split `{text}`: expected `train` or `test`"))),
        }
    }
}

/// What a [`Dataset`] is made of.
#[derive(Debug, Clone)]
pub struct DatasetParts {
    /// Name of the data set, for people and reports.
    pub name: String,
    /// The split that the images come from.
    pub split: Split,
    /// Pixels, image after image, each channel after channel, each row after row (NCHW).
    pub images: Vec<u8>,
    /// The class of each image, an index into `class_names`.
    pub labels: Vec<i64>,
    /// Colour channels, 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// The names of the classes.
    pub class_names: Vec<String>,
}

/// A labelled set of images of one size: bytes in NCHW order, 0 to 255.
///
/// Each image has an id, its index in the split that it was loaded from, which [`subset`](Self::subset) and
/// [`split_validation`](Self::split_validation) keep.
#[derive(Debug, Clone)]
pub struct Dataset {
    parts: DatasetParts,
    ids: Vec<u64>,
}

impl Dataset {
    /// Builds a data set whose ids count from 0.
    ///
    /// # Errors
    /// [`DataError::Request`] if the parts do not fit together: no image, a dimension of 0, channels other than 1 or
    /// 3, a pixel count that is not images x channels x height x width, or a label without a class name.
    pub fn new(parts: DatasetParts) -> Result<Self> {
        check(&parts)?;
        let ids = (0..parts.labels.len() as u64).collect();
        Ok(Self { parts, ids })
    }

    /// Number of images, at least 1.
    #[allow(clippy::len_without_is_empty)] // never empty: `new` and `subset` see to it
    pub fn len(&self) -> usize {
        self.parts.labels.len()
    }

    /// The data set's name, such as `cifar10`.
    pub fn name(&self) -> &str {
        &self.parts.name
    }

    /// The split that the images come from.
    pub fn split(&self) -> Split {
        self.parts.split
    }

    /// Number of colour channels, 1 or 3.
    pub fn channels(&self) -> usize {
        self.parts.channels
    }

    /// Rows of each image.
    pub fn height(&self) -> usize {
        self.parts.height
    }

    /// Columns of each image.
    pub fn width(&self) -> usize {
        self.parts.width
    }

    /// Number of classes, including those without an image here.
    pub fn classes(&self) -> usize {
        self.parts.class_names.len()
    }

    /// The names of the classes; a label is an index into them.
    pub fn class_names(&self) -> &[String] {
        &self.parts.class_names
    }

    /// The class of each image, below [`classes`](Self::classes).
    pub fn labels(&self) -> &[i64] {
        &self.parts.labels
    }

    /// The id of each image: its index in the split that it was loaded from.
    pub fn ids(&self) -> &[u64] {
        &self.ids
    }

    /// All pixels, NCHW, 0 to 255.
    pub fn images(&self) -> &[u8] {
        &self.parts.images
    }

    /// Bytes of one image: channels x height x width.
    pub fn image_len(&self) -> usize {
        self.parts.channels * self.parts.height * self.parts.width
    }

    /// The pixels of image `index`, CHW, 0 to 255.
    ///
    /// # Errors
    /// [`DataError::Request`] if there is no such image.
    pub fn image_bytes(&self, index: usize) -> Result<&[u8]> {
        self.check_index(index)?;
        let len = self.image_len();
        Ok(&self.parts.images[index * len..(index + 1) * len])
    }

    /// The images at `indices` and their labels: `f32` `[n, C, H, W]` with values in \[0, 1\] (byte / 255), and
    /// `i64` `[n]`, both on the CPU. An index may appear more than once.
    ///
    /// # Errors
    /// [`DataError::Request`] if an index is out of range, [`DataError::Tensor`] if libtorch fails.
    pub fn tensor(&self, indices: &[usize]) -> Result<(Tensor, Tensor)> {
        let images = self.pixels_to_tensor(&self.gather_pixels(indices)?, indices.len())?;
        Ok((images, self.label_tensor(indices)?))
    }

    /// The labels at `indices` as an `i64` tensor `[n]` on the CPU.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn label_tensor(&self, indices: &[usize]) -> Result<Tensor> {
        indices.iter().try_for_each(|&index| self.check_index(index))?;
        let labels: Vec<i64> = indices.iter().map(|&index| self.parts.labels[index]).collect();
        Ok(Tensor::f_from_slice(&labels)?)
    }

    /// The data set of the images at `indices`, in that order, with their ids.
    ///
    /// # Errors
    /// [`DataError::Request`] if `indices` is empty or an index is out of range.
    pub fn subset(&self, indices: &[usize]) -> Result<Self> {
        if indices.is_empty() {
            return Err(DataError::Request(format!("a subset of {} needs at least one image", self.name())));
        }
        let images = self.gather_pixels(indices)?;
        let labels = indices.iter().map(|&index| self.parts.labels[index]).collect();
        let ids = indices.iter().map(|&index| self.ids[index]).collect();
        let parts = DatasetParts {
            name: self.parts.name.clone(),
            split: self.parts.split,
            images,
            labels,
            channels: self.parts.channels,
            height: self.parts.height,
            width: self.parts.width,
            class_names: self.parts.class_names.clone(),
        };
        Ok(Self { parts, ids })
    }

    /// Sets `n` images aside for validation: `(training, validation)`. The choice depends on the number of images, `n`
    /// and `seed` alone; both parts keep the order of the whole.
    ///
    /// # Errors
    /// [`DataError::Request`] unless 0 < `n` < [`len`](Self::len).
    pub fn split_validation(&self, n: usize, seed: u64) -> Result<(Self, Self)> {
        if n == 0 || n >= self.len() {
            return Err(DataError::Request(format!(
                "cannot set {n} images aside for validation: {} ({}) has {}, and both parts need at least one",
                self.name(),
                self.split(),
                self.len()
            )));
        }
        let mut order: Vec<usize> = (0..self.len()).collect();
        Stream::new(Purpose::Split, [seed, 0, 0]).shuffle(&mut order);
        let (held_out, kept) = order.split_at_mut(n);
        held_out.sort_unstable();
        kept.sort_unstable();
        let mut validation = self.subset(held_out)?;
        validation.parts.split = Split::Validation;
        Ok((self.subset(kept)?, validation))
    }

    /// SHA-256, in hexadecimal, over the shape, the class names, the pixels and the labels. It does not depend on the
    /// data set's name, split or ids: the same data under another name has the same sum.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        let parts = &self.parts;
        hash.update(b"talion data set 1\n");
        for number in [self.len(), parts.channels, parts.height, parts.width, parts.class_names.len()] {
            hash.update((number as u64).to_le_bytes());
        }
        for name in &parts.class_names {
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
        }
        hash.update(&parts.images);
        parts.labels.iter().for_each(|label| hash.update(label.to_le_bytes()));
        crate::read::hex(&hash.finalize())
    }

    /// `n` images given as bytes, as an `f32` tensor `[n, C, H, W]` in \[0, 1\].
    pub(crate) fn pixels_to_tensor(&self, pixels: &[u8], n: usize) -> Result<Tensor> {
        let parts = &self.parts;
        let size = [n, parts.channels, parts.height, parts.width].map(|dimension| dimension as i64);
        let bytes = Tensor::f_from_data_size(pixels, &size, Kind::Uint8)?;
        Ok(bytes.f_to_kind(Kind::Float)?.f_div_scalar_(255.0)?)
    }

    /// The same data under another name.
    pub(crate) fn renamed(mut self, name: &str) -> Self {
        self.parts.name = name.to_owned();
        self
    }

    fn check_index(&self, index: usize) -> Result<()> {
        if index < self.len() {
            return Ok(());
        }
        Err(DataError::Request(format!(
            "no image {index} in {} ({}): it has {}, counted from 0",
            self.name(),
            self.split(),
            self.len()
        )))
    }

    fn gather_pixels(&self, indices: &[usize]) -> Result<Vec<u8>> {
        let mut pixels = Vec::with_capacity(indices.len() * self.image_len());
        for &index in indices {
            pixels.extend_from_slice(self.image_bytes(index)?);
        }
        Ok(pixels)
    }
}

fn check(parts: &DatasetParts) -> Result<()> {
    let bad = |what: String| Err(DataError::Request(format!("{} ({}): {what}", parts.name, parts.split)));
    let dimensions = [parts.labels.len(), parts.channels, parts.height, parts.width];
    if dimensions.contains(&0) {
        return bad("a data set needs at least one image, channel, row and column".into());
    }
    if parts.channels != 1 && parts.channels != 3 {
        return bad(format!("expected 1 or 3 channels, found {}", parts.channels));
    }
    let expected = dimensions.iter().try_fold(1usize, |product, &dimension| product.checked_mul(dimension));
    if expected != Some(parts.images.len()) {
        let found = parts.images.len();
        return bad(format!(
            "expected {dimensions:?} (images, channels, rows, columns) bytes, found {found}"
        ));
    }
    let classes = parts.class_names.len();
    match parts.labels.iter().position(|&label| usize::try_from(label).map_or(true, |label| label >= classes))
    {
        Some(index) => bad(format!(
            "image {index} has the label {}, but there are {classes} classes, counted from 0",
            parts.labels[index]
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(n: usize) -> DatasetParts {
        DatasetParts {
            name: "toy".into(),
            split: Split::Train,
            images: (0..n * 12).map(|i| (i % 256) as u8).collect(),
            labels: (0..n as i64).map(|i| i % 2).collect(),
            channels: 3,
            height: 2,
            width: 2,
            class_names: vec!["a".into(), "b".into()],
        }
    }

    #[test]
    fn tensors_have_values_in_the_unit_interval_and_the_images_asked_for() {
        let data = Dataset::new(parts(30)).unwrap();
        let (images, labels) = data.tensor(&[21, 0]).unwrap();
        assert_eq!(images.size(), [2, 3, 2, 2]);
        assert_eq!((images.kind(), labels.kind()), (Kind::Float, Kind::Int64));
        assert_eq!(images.double_value(&[0, 1, 1, 0]), f64::from(((21 * 12 + 6) % 256) as f32 / 255.0));
        assert_eq!(Vec::<i64>::try_from(labels).unwrap(), [1, 0]);
        let (none, _) = data.tensor(&[]).unwrap();
        assert_eq!(none.size(), [0, 3, 2, 2]);
        assert!(data.tensor(&[30]).unwrap_err().to_string().contains("no image 30"));
    }

    #[test]
    fn subsets_keep_ids() {
        let data = Dataset::new(parts(30)).unwrap();
        let twice = data.subset(&[5, 9, 20]).unwrap().subset(&[2, 0]).unwrap();
        assert_eq!(twice.ids(), [20, 5]);
        assert_eq!(twice.image_bytes(1).unwrap(), data.image_bytes(5).unwrap());
        assert!(data.subset(&[]).is_err());
    }

    #[test]
    fn validation_split_is_a_partition_fixed_by_its_seed() {
        let data = Dataset::new(parts(50)).unwrap();
        let (train, validation) = data.split_validation(10, 3).unwrap();
        assert_eq!((train.len(), validation.len()), (40, 10));
        assert_eq!(validation.split(), Split::Validation);
        let mut ids = [train.ids(), validation.ids()].concat();
        ids.sort_unstable();
        assert_eq!(ids, data.ids());
        assert_eq!(data.split_validation(10, 3).unwrap().1.ids(), validation.ids());
        assert_ne!(data.split_validation(10, 4).unwrap().1.ids(), validation.ids());
        assert!(data.split_validation(0, 3).is_err() && data.split_validation(50, 3).is_err());
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let refused = |edit: fn(&mut DatasetParts)| {
            let mut parts = parts(4);
            edit(&mut parts);
            Dataset::new(parts).unwrap_err().to_string()
        };
        assert!(refused(|parts| parts.labels[2] = 2).contains("image 2 has the label 2"));
        assert!(refused(|parts| parts.labels[0] = -1).contains("label -1"));
        assert!(refused(|parts| parts.height = usize::MAX).contains("bytes"));
        assert!(refused(|parts| parts.images.truncate(47)).contains("found 47"));
        assert!(refused(|parts| parts.channels = 2).contains("1 or 3 channels"));
        assert!(refused(|parts| parts.labels.clear()).contains("at least one image"));
    }

    #[test]
    fn the_checksum_follows_the_data() {
        let sum = |edit: fn(&mut DatasetParts)| {
            let mut parts = parts(4);
            edit(&mut parts);
            Dataset::new(parts).unwrap().sha256()
        };
        let plain = sum(|_| ());
        assert_eq!(plain.len(), 64);
        assert_eq!(plain, sum(|parts| parts.name = "other".into()));
        assert_ne!(plain, sum(|parts| parts.images[0] ^= 1));
        assert_ne!(plain, sum(|parts| parts.labels[0] ^= 1));
        assert_ne!(plain, sum(|parts| parts.class_names[0] = "c".into()));
    }
}
