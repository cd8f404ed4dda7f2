//! A data set in numbers.

use serde::Serialize;

use crate::dataset::{Dataset, Split};

/// How many images a class has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClassCount {
    /// The class.
    pub name: String,
    /// Its images.
    pub count: usize,
}

/// A data set in numbers: what `talion data info` shows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DatasetInfo {
    /// The data set's name.
    pub name: String,
    /// The split described.
    pub split: Split,
    /// Number of images.
    pub images: usize,
    /// Colour channels, 1 or 3.
    pub channels: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// Images of each class, in the order of the labels.
    pub classes: Vec<ClassCount>,
    /// Mean of each channel over all pixels, in \[0, 1\].
    pub means: Vec<f64>,
    /// Standard deviation of each channel over all pixels, in \[0, 0.5\].
    pub stds: Vec<f64>,
    /// [`Dataset::sha256`].
    pub sha256: String,
}

impl DatasetInfo {
    /// Describes a data set; reads every pixel once.
    pub fn of(data: &Dataset) -> Self {
        let (means, stds) = channel_statistics(data);
        Self {
            name: data.name().to_owned(),
            split: data.split(),
            images: data.len(),
            channels: data.channels(),
            height: data.height(),
            width: data.width(),
            classes: class_counts(data),
            means,
            stds,
            sha256: data.sha256(),
        }
    }
}

fn class_counts(data: &Dataset) -> Vec<ClassCount> {
    let mut counts: Vec<ClassCount> =
        data.class_names().iter().map(|name| ClassCount { name: name.clone(), count: 0 }).collect();
    // A label is an index into the class names: `Dataset::new` has checked it.
    data.labels().iter().for_each(|&label| counts[label as usize].count += 1);
    counts
}

/// Exact sums in whole numbers, so that the result does not depend on the order of the images.
fn channel_statistics(data: &Dataset) -> (Vec<f64>, Vec<f64>) {
    let plane = data.height() * data.width();
    let mut sums = vec![(0u64, 0u64); data.channels()];
    for image in data.images().chunks_exact(data.image_len()) {
        for (pixels, (sum, squares)) in image.chunks_exact(plane).zip(&mut sums) {
            for &pixel in pixels {
                *sum += u64::from(pixel);
                *squares += u64::from(pixel) * u64::from(pixel);
            }
        }
    }
    let count = (data.len() * plane) as f64;
    let means: Vec<f64> = sums.iter().map(|(sum, _)| *sum as f64 / count / 255.0).collect();
    let spread = |((_, squares), mean): (&(u64, u64), &f64)| {
        (*squares as f64 / count / (255.0 * 255.0) - mean * mean).max(0.0).sqrt()
    };
    let stds = sums.iter().zip(&means).map(spread).collect();
    (means, stds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::DatasetParts;

    #[test]
    fn statistics_are_those_of_the_pixels() {
        let data = Dataset::new(DatasetParts {
            name: "toy".into(),
            split: Split::Test,
            images: vec![0, 255, 51, 51, 51, 51, 255, 0, 51, 51, 51, 51],
            labels: vec![1, 1],
            channels: 3,
            height: 1,
            width: 2,
            class_names: vec!["a".into(), "b".into()],
        })
        .unwrap();
        let info = DatasetInfo::of(&data);
        assert_eq!(info.classes.iter().map(|class| class.count).collect::<Vec<_>>(), [0, 2]);
        for (found, expected) in info.means.iter().zip([0.5, 0.2, 0.2]) {
            assert!((found - expected).abs() < 1e-12);
        }
        for (found, expected) in info.stds.iter().zip([0.5, 0.0, 0.0]) {
            assert!((found - expected).abs() < 1e-7);
        }
        let json = serde_json::to_value(&info).unwrap();
        assert_eq!((&json["split"], &json["images"]), (&"test".into(), &2.into()));
    }
}
