//! The binary format of CIFAR-10 and CIFAR-100: records of label bytes and 3,072 pixel bytes (red, green and blue
//! planes of 32 x 32), with no header, so that the length is all there is to check besides the labels.

use std::path::Path;

use crate::{
    dataset::{Dataset, DatasetParts, Split},
    error::{DataError, Result},
    load::missing,
    names::DatasetName,
    read,
};

const SIDE: usize = 32;
const PIXELS: usize = 3 * SIDE * SIDE;
/// CIFAR-100 groups its 100 "fine" classes into 20 "coarse" ones.
const COARSE_CLASSES: u8 = 20;

/// How a file's records are laid out, and how many the official file has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub name: DatasetName,
    pub records: usize,
}

impl Layout {
    /// Bytes of label before the pixels: the class, in CIFAR-100 after the coarse class.
    fn label_len(self) -> usize {
        if self.name == DatasetName::Cifar100 { 2 } else { 1 }
    }

    fn record_len(self) -> usize {
        self.label_len() + PIXELS
    }
}

/// The folder that the official archive unpacks to.
pub(crate) fn archive_folder(name: DatasetName) -> &'static str {
    if name == DatasetName::Cifar100 { "cifar-100-binary" } else { "cifar-10-batches-bin" }
}

/// The names of a split's files, in order.
pub(crate) fn file_names(name: DatasetName, split: Split) -> &'static [&'static str] {
    match (name, split) {
        (DatasetName::Cifar100, Split::Test) => &["test.bin"],
        (DatasetName::Cifar100, _) => &["train.bin"],
        (_, Split::Test) => &["test_batch.bin"],
        _ => &[
            "data_batch_1.bin",
            "data_batch_2.bin",
            "data_batch_3.bin",
            "data_batch_4.bin",
            "data_batch_5.bin",
        ],
    }
}

/// Loads a split from `dir`, or from the folder of the official archive inside it.
pub(crate) fn load(name: DatasetName, split: Split, dir: &Path) -> Result<Dataset> {
    let unpacked = dir.join(archive_folder(name));
    let folder = if unpacked.is_dir() { &unpacked } else { dir };
    let records = if name == DatasetName::Cifar100 && split == Split::Train { 50_000 } else { 10_000 };
    let mut batches = Vec::new();
    for file in file_names(name, split) {
        let path = folder.join(file);
        if !path.exists() {
            return Err(missing(name, &path));
        }
        let bytes = read::file(&path)?;
        check_batch(&bytes, &path, Layout { name, records })?;
        batches.push(bytes);
    }
    assemble(&batches, Layout { name, records }, split)
}

/// Checks the length of a file and its labels.
pub(crate) fn check_batch(bytes: &[u8], path: &Path, layout: Layout) -> Result<()> {
    let expected = layout.record_len() * layout.records;
    if bytes.len() != expected {
        let kind = if bytes.len() < expected { "truncated" } else { "too long" };
        let found = format!("{}; the file is {kind}", bytes.len());
        let records = layout.records;
        return Err(DataError::format(
            path,
            format!("{expected} bytes ({records} {} records)", layout.name),
            found,
        ));
    }
    let classes = layout.name.class_names().len();
    for (index, record) in bytes.chunks_exact(layout.record_len()).enumerate() {
        let (labels, _) = record.split_at(layout.label_len());
        let fine = labels[labels.len() - 1];
        if usize::from(fine) >= classes || (labels.len() == 2 && labels[0] >= COARSE_CLASSES) {
            let expected = format!("labels of {classes} classes");
            return Err(DataError::format(path, expected, format!("{labels:?} in record {index}")));
        }
    }
    Ok(())
}

/// Joins checked files into a data set.
pub(crate) fn assemble(batches: &[Vec<u8>], layout: Layout, split: Split) -> Result<Dataset> {
    let total = batches.len() * layout.records;
    let mut images = Vec::with_capacity(total * PIXELS);
    let mut labels = Vec::with_capacity(total);
    for record in batches.iter().flat_map(|bytes| bytes.chunks_exact(layout.record_len())) {
        let (label, pixels) = record.split_at(layout.label_len());
        labels.push(i64::from(label[label.len() - 1]));
        images.extend_from_slice(pixels);
    }
    Dataset::new(DatasetParts {
        name: layout.name.to_string(),
        split,
        images,
        labels,
        channels: 3,
        height: SIDE,
        width: SIDE,
        class_names: layout.name.owned_class_names(),
    })
}
