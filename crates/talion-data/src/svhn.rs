//! SVHN's "cropped digits": MATLAB files with the images in `X` and the labels in `y`.

use std::path::Path;

use crate::{
    dataset::{Dataset, DatasetParts, Split},
    error::{DataError, Result},
    mat5::{self, Variable},
    names::DatasetName,
    read,
};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
const CHANNELS: usize = 3;
/// The files label the digit zero with 10.
const ZERO: u8 = 10;

/// The name of a split's file.
pub(crate) fn file_name(split: Split) -> &'static str {
    if split == Split::Test { "test_32x32.mat" } else { "train_32x32.mat" }
}

/// Loads a split from `dir`.
pub(crate) fn load(split: Split, dir: &Path) -> Result<Dataset> {
    let path = dir.join(file_name(split));
    if !path.exists() {
        return Err(read::missing(DatasetName::Svhn, &path));
    }
    parse(&read::file(&path)?, &path, split)
}

/// Builds a data set from the bytes of a file; the path is for messages.
pub(crate) fn parse(bytes: &[u8], path: &Path, split: Split) -> Result<Dataset> {
    let (x, y) = images_and_labels(mat5::parse(bytes, path)?, path)?;
    let count = match x.dimensions[..] {
        [SIDE, SIDE, CHANNELS, count] if count > 0 => count,
        _ => {
            let found = format!("{:?}", x.dimensions);
            return Err(DataError::format(path, "`X` of 32 x 32 x 3 x N, N at least 1", found));
        }
    };
    if y.dimensions != [count, 1] {
        let expected = format!("`y` of {count} x 1, a label for each image");
        return Err(DataError::format(path, expected, format!("{:?}", y.dimensions)));
    }
    Dataset::new(DatasetParts {
        name: DatasetName::Svhn.to_string(),
        split,
        images: row_major(&x.values),
        labels: digits(&y.values, path)?,
        channels: CHANNELS,
        height: SIDE,
        width: SIDE,
        class_names: DatasetName::Svhn.owned_class_names(),
    })
}

/// The two arrays, in either order.
fn images_and_labels(variables: Vec<Variable>, path: &Path) -> Result<(Variable, Variable)> {
    let names: Vec<String> = variables.iter().map(|variable| variable.name.clone()).collect();
    match <[Variable; 2]>::try_from(variables) {
        Ok([x, y]) if x.name == "X" && y.name == "y" => Ok((x, y)),
        Ok([y, x]) if x.name == "X" && y.name == "y" => Ok((x, y)),
        _ => Err(DataError::format(path, "the two arrays `X` and `y`", format!("{names:?}"))),
    }
}

/// MATLAB's order has the row vary fastest, then the column; images here are the other way round.
fn row_major(values: &[u8]) -> Vec<u8> {
    let mut images = vec![0; values.len()];
    for (from, to) in values.chunks_exact(PLANE).zip(images.chunks_exact_mut(PLANE)) {
        for (row, out) in to.chunks_exact_mut(SIDE).enumerate() {
            for (column, pixel) in out.iter_mut().enumerate() {
                *pixel = from[row + SIDE * column];
            }
        }
    }
    images
}

fn digits(labels: &[u8], path: &Path) -> Result<Vec<i64>> {
    match labels.iter().position(|label| !(1..=ZERO).contains(label)) {
        Some(index) => {
            let found = format!("{} at position {index}", labels[index]);
            Err(DataError::format(path, "labels from 1 to 10 (10 for the digit zero)", found))
        }
        None => Ok(labels.iter().map(|&label| i64::from(label % ZERO)).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mat5::tests::{array, compressed, header};

    /// Pixel values that tell row, column, channel and image apart.
    fn x(count: usize) -> Vec<u8> {
        let mut values = Vec::new();
        for n in 0..count {
            for c in 0..3 {
                for column in 0..32 {
                    values.extend((0..32).map(|row| (row + 3 * column + 50 * c + 20 * n) as u8));
                }
            }
        }
        array("X", &[32, 32, 3, count as i32], &values)
    }

    fn parse_parts(parts: &[Vec<u8>]) -> Result<Dataset> {
        parse(&[header(), parts.concat()].concat(), Path::new("svhn.mat"), Split::Test)
    }

    fn message(parts: &[Vec<u8>]) -> String {
        parse_parts(parts).unwrap_err().to_string()
    }

    #[test]
    fn images_are_turned_the_right_way_and_ten_is_zero() {
        let y = array("y", &[2, 1], &[10, 7]);
        let data = parse_parts(&[compressed(&x(2)), compressed(&y)]).unwrap();
        assert_eq!(data.labels(), [0, 7]);
        let image = data.image_bytes(1).unwrap();
        assert_eq!(image[1024 + 5 * 32 + 9], 5 + 3 * 9 + 50 + 20);
        let swapped = parse_parts(&[y, x(2)]).unwrap();
        assert_eq!(swapped.sha256(), data.sha256());
    }

    #[test]
    fn labels_and_shapes_have_to_fit() {
        let y = |labels: &[u8]| array("y", &[labels.len() as i32, 1], labels);
        assert!(message(&[x(2), y(&[1, 0])]).contains("0 at position 1"));
        assert!(message(&[x(2), y(&[11, 1])]).contains("11 at position 0"));
        assert!(message(&[x(2), y(&[1])]).contains("`y` of 2 x 1"));
        assert!(message(&[x(2)]).contains("two arrays"));
        assert!(message(&[x(2), y(&[1, 1]), y(&[1, 1])]).contains("two arrays"));
        assert!(message(&[x(0), y(&[])]).contains("32 x 32 x 3 x N"));
        assert!(message(&[array("X", &[32, 32], &[0; 1024]), y(&[1])]).contains("found [32, 32]"));
    }
}
