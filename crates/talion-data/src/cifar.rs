//! The binary format of CIFAR-10 and CIFAR-100: records of label bytes and 3,072 pixel bytes (red, green and blue
//! planes of 32 x 32), with no header, so that the length is all there is to check besides the labels.

use std::path::Path;

use crate::{
    dataset::{Dataset, DatasetParts, Split},
    error::{DataError, Result},
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
            return Err(read::missing(name, &path));
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

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    const TEN: Layout = Layout { name: DatasetName::Cifar10, records: 2 };
    const HUNDRED: Layout = Layout { name: DatasetName::Cifar100, records: 2 };

    fn record(labels: &[u8], fill: u8) -> Vec<u8> {
        [labels, &[fill; 1024], &[fill + 1; 1024], &[fill + 2; 1024]].concat()
    }

    fn check(bytes: &[u8], layout: Layout) -> Result<()> {
        check_batch(bytes, Path::new("batch.bin"), layout)
    }

    #[test]
    fn records_become_images_and_labels() {
        let first = [record(&[3], 10), record(&[9], 20)].concat();
        let second = [record(&[0], 30), record(&[1], 40)].concat();
        check(&first, TEN).unwrap();
        let data = assemble(&[first, second], TEN, Split::Train).unwrap();
        assert_eq!(data.labels(), [3, 9, 0, 1]);
        let image = data.image_bytes(2).unwrap();
        assert_eq!((image[0], image[1024], image[3071]), (30, 31, 32));
    }

    #[test]
    fn the_fine_label_of_cifar100_counts() {
        let bytes = [record(&[19, 99], 1), record(&[0, 42], 2)].concat();
        check(&bytes, HUNDRED).unwrap();
        assert_eq!(assemble(&[bytes], HUNDRED, Split::Test).unwrap().labels(), [99, 42]);
    }

    #[test]
    fn wrong_lengths_and_labels_are_refused() {
        let whole = [record(&[3], 10), record(&[9], 20)].concat();
        for cut in [0, 1, 3073, whole.len() - 1] {
            assert!(check(&whole[..cut], TEN).unwrap_err().to_string().contains("truncated"), "cut at {cut}");
        }
        for extra in [1, 3073] {
            let bytes = [whole.clone(), vec![0; extra]].concat();
            assert!(check(&bytes, TEN).unwrap_err().to_string().contains("too long"), "{extra} more");
        }
        let damaged = [record(&[3], 10), record(&[10], 20)].concat();
        assert!(check(&damaged, TEN).unwrap_err().to_string().contains("[10] in record 1"));
        let coarse = [record(&[20, 99], 1), record(&[0, 42], 2)].concat();
        assert!(check(&coarse, HUNDRED).is_err());
        let fine = [record(&[19, 100], 1), record(&[0, 42], 2)].concat();
        assert!(check(&fine, HUNDRED).is_err());
    }

    #[test]
    fn files_are_found_with_and_without_the_archive_folder() {
        let root = tempfile::tempdir().unwrap();
        let test = record(&[1], 5).repeat(10_000);
        fs::write(root.path().join("test_batch.bin"), &test).unwrap();
        let bare = load(DatasetName::Cifar10, Split::Test, root.path()).unwrap();
        assert_eq!((bare.len(), bare.labels()[9_999]), (10_000, 1));
        let inner = root.path().join("cifar-10-batches-bin");
        fs::create_dir(&inner).unwrap();
        fs::rename(root.path().join("test_batch.bin"), inner.join("test_batch.bin")).unwrap();
        assert_eq!(load(DatasetName::Cifar10, Split::Test, root.path()).unwrap().sha256(), bare.sha256());
        let error = load(DatasetName::Cifar10, Split::Train, root.path()).unwrap_err().to_string();
        assert!(error.contains("data_batch_1.bin is missing") && error.contains("talion data fetch cifar10"));
        fs::write(inner.join("test_batch.bin"), &test[..test.len() - 1]).unwrap();
        assert!(load(DatasetName::Cifar10, Split::Test, root.path()).is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4), records in 0usize..3) {
            let bytes = bytes.repeat(3073 / 3);
            for name in [DatasetName::Cifar10, DatasetName::Cifar100] {
                let _ = check(&bytes, Layout { name, records });
            }
        }
    }
}
