//! The sample that is compiled in, so that talion can show itself with no download.

use std::path::Path;

use crate::{
    dataset::{Dataset, Split},
    error::{DataError, Result},
    idx,
    names::{DatasetName, DatasetSpec},
};

static IMAGES: &[u8] = include_bytes!("../sample/images-idx3-ubyte.gz");
static LABELS: &[u8] = include_bytes!("../sample/labels-idx1-ubyte.gz");

/// The first 1,000 images of the Fashion-MNIST test split, 1 x 28 x 28, in 10 classes.
///
/// It is named `fashion-mnist-sample`, so that figures on it are not taken for figures on the whole split. The ids of
/// its images are their indices in the official split. Fashion-MNIST is by Zalando Research, under the MIT licence.
///
/// # Errors
/// Those of any loader, though the bytes are fixed at compile time.
pub fn fashion_mnist_sample() -> Result<Dataset> {
    let images = (IMAGES, Path::new("bundled images-idx3-ubyte.gz"));
    let labels = (LABELS, Path::new("bundled labels-idx1-ubyte.gz"));
    Ok(idx::parse(images, labels, DatasetName::FashionMnist, Split::Test)?.renamed(DatasetSpec::SAMPLE))
}

pub(crate) fn load(split: Split) -> Result<Dataset> {
    if split == Split::Train {
        return Err(DataError::Request(format!(
            "{} has test images only: run `talion data fetch fashion-mnist` to train on the whole data set",
            DatasetSpec::SAMPLE
        )));
    }
    fashion_mnist_sample()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_holds_the_first_test_images() {
        let sample = fashion_mnist_sample().unwrap();
        assert_eq!(sample.name(), "fashion-mnist-sample");
        assert_eq!((sample.len(), sample.channels(), sample.height(), sample.width()), (1000, 1, 28, 28));
        // An ankle boot, a pullover and two pairs of trousers open the official test split.
        assert_eq!(sample.labels()[..4], [9, 2, 1, 1]);
        assert!((0..10).all(|class| sample.labels().contains(&class)));
    }

    #[test]
    fn the_sample_has_no_training_split() {
        assert!(load(Split::Train).unwrap_err().to_string().contains("talion data fetch fashion-mnist"));
    }
}
