//! The IDX format of the MNIST family: a big-endian header, then bytes; plain or gzipped.

use std::path::{Path, PathBuf};

use crate::{
    dataset::{Dataset, DatasetParts, Split},
    error::{DataError, Result},
    load::missing,
    names::DatasetName,
    read::{self, Inflater},
};

/// The first two bytes of an IDX file are 0, the third says that its values are unsigned bytes.
const UNSIGNED_BYTES: [u8; 3] = [0, 0, 8];
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Loads a data set of the MNIST family from its official files, gzipped or not.
pub(crate) fn load(name: DatasetName, split: Split, dir: &Path) -> Result<Dataset> {
    let prefix = if split == Split::Train { "train" } else { "t10k" };
    let images = find(name, dir, &format!("{prefix}-images-idx3-ubyte"))?;
    let labels = find(name, dir, &format!("{prefix}-labels-idx1-ubyte"))?;
    parse((&read::file(&images)?, &images), (&read::file(&labels)?, &labels), name, split)
}

/// Builds a data set from the bytes of an image file and a label file; the paths are for messages.
pub(crate) fn parse(
    (images, images_path): (&[u8], &Path),
    (labels, labels_path): (&[u8], &Path),
    name: DatasetName,
    split: Split,
) -> Result<Dataset> {
    let ([count, height, width], pixels) = decode::<3>(images, images_path)?;
    let ([label_count], labels) = decode::<1>(labels, labels_path)?;
    let side = name.side();
    if count == 0 || (height, width) != (side, side) {
        let expected = format!("{name} images of {side} x {side}, at least one");
        return Err(DataError::format(images_path, expected, format!("{count} of {height} x {width}")));
    }
    if label_count != count {
        let expected = format!("{count} labels, one for each image of {}", images_path.display());
        return Err(DataError::format(labels_path, expected, label_count.to_string()));
    }
    let class_names = name.owned_class_names();
    check_labels(&labels, class_names.len(), labels_path)?;
    Dataset::new(DatasetParts {
        name: name.to_string(),
        split,
        images: pixels,
        labels: labels.into_iter().map(i64::from).collect(),
        channels: 1,
        height,
        width,
        class_names,
    })
}

/// The dimensions and the values of an IDX file of unsigned bytes with `N` dimensions.
fn decode<const N: usize>(bytes: &[u8], path: &Path) -> Result<([usize; N], Vec<u8>)> {
    if bytes.starts_with(&GZIP_MAGIC) {
        let mut inflater = Inflater::gzip(bytes, path);
        let (dimensions, len) = header::<N>(&inflater.take(header_len(N) as u64)?, path)?;
        let values = inflater.take(len)?;
        inflater.finish()?;
        return Ok((dimensions, values));
    }
    let Some((head, values)) = bytes.split_at_checked(header_len(N)) else {
        let expected = format!("an IDX header of {} bytes", header_len(N));
        return Err(DataError::format(
            path,
            expected,
            format!("{} bytes; the file is truncated", bytes.len()),
        ));
    };
    let (dimensions, len) = header::<N>(head, path)?;
    if len != values.len() as u64 {
        let expected = format!("{len} bytes after the header, as the header announces");
        let kind = if len > values.len() as u64 { "truncated" } else { "too long" };
        return Err(DataError::format(path, expected, format!("{}; the file is {kind}", values.len())));
    }
    Ok((dimensions, values.to_vec()))
}

fn header_len(dimensions: usize) -> usize {
    4 + 4 * dimensions
}

/// The dimensions and their product.
fn header<const N: usize>(bytes: &[u8], path: &Path) -> Result<([usize; N], u64)> {
    let [a, b, kind, dimensions] = word(bytes, 0);
    if [a, b, kind] != UNSIGNED_BYTES || usize::from(dimensions) != N {
        let expected = format!("an IDX file of unsigned bytes with {N} dimension(s), so 00 00 08 {N:02x}");
        return Err(DataError::format(
            path,
            expected,
            format!("{a:02x} {b:02x} {kind:02x} {dimensions:02x}"),
        ));
    }
    let sizes: [u32; N] = std::array::from_fn(|i| u32::from_be_bytes(word(bytes, 4 + 4 * i)));
    let len = sizes.iter().try_fold(1u64, |product, &size| product.checked_mul(u64::from(size)));
    let len =
        len.ok_or_else(|| DataError::format(path, "dimensions of a real file", format!("{sizes:?}")))?;
    Ok((sizes.map(|size| size as usize), len))
}

/// The four bytes at `at`; zeros beyond the end, which the callers rule out.
fn word(bytes: &[u8], at: usize) -> [u8; 4] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default()
}

/// Refuses a label that is no class.
pub(crate) fn check_labels(labels: &[u8], classes: usize, path: &Path) -> Result<()> {
    match labels.iter().position(|&label| usize::from(label) >= classes) {
        None => Ok(()),
        Some(index) => {
            let expected = format!("labels below {classes}");
            Err(DataError::format(path, expected, format!("{} at position {index}", labels[index])))
        }
    }
}

fn find(name: DatasetName, dir: &Path, stem: &str) -> Result<PathBuf> {
    let candidates = [dir.join(format!("{stem}.gz")), dir.join(stem)];
    read::first_existing(&candidates).cloned().ok_or_else(|| missing(name, &candidates[0]))
}
