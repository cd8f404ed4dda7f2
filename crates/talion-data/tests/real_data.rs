//! Loads real files where they are at hand: the bundled sample always, the shared SVHN subset where the checkout has it.

use std::path::{Path, PathBuf};

use talion_data::{DataError, DatasetInfo, DatasetSpec, Split, fashion_mnist_sample, load};

/// The folder of the SVHN subset, or `None` with a word to the reader of the test's output.
fn svhn() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/svhn");
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("skipped: no SVHN subset in {}", folder.display());
    None
}

#[test]
fn the_sample_is_what_the_official_split_begins_with() {
    let info = DatasetInfo::of(&fashion_mnist_sample().unwrap());
    assert_eq!(info.sha256, "f223ad25523a089efb7b7c8420534031502c4f4a7f0c6e9f0edac42d97eb2abc");
    assert_eq!(info.images, 1000);
    let by_name = load(&DatasetSpec::SAMPLE.parse().unwrap(), Split::Test, None).unwrap();
    assert_eq!(by_name.sha256(), info.sha256);
}

#[test]
fn the_svhn_subset_loads() {
    let Some(folder) = svhn() else { return };
    let spec: DatasetSpec = format!("svhn:{}", folder.display()).parse().unwrap();
    for (split, images, first_classes) in
        [(Split::Train, 8_000, [543, 1536, 1278]), (Split::Test, 2_000, [141, 432, 312])]
    {
        let info = DatasetInfo::of(&load(&spec, split, None).unwrap());
        assert_eq!((info.images, info.channels, info.height, info.width), (images, 3, 32, 32));
        let counts: Vec<usize> = info.classes.iter().map(|class| class.count).collect();
        assert_eq!(counts[..3], first_classes);
        assert!(info.means.iter().all(|mean| (0.44..0.48).contains(mean)), "{:?}", info.means);
    }
}

#[test]
fn a_damaged_svhn_file_is_refused() {
    let Some(folder) = svhn() else { return };
    let whole = std::fs::read(folder.join("test_32x32.mat")).unwrap();
    let copy = tempfile::tempdir().unwrap();
    let spec: DatasetSpec = format!("svhn:{}", copy.path().display()).parse().unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0x10;
    let longer = [&whole[..], &[0; 8]].concat();
    for damaged in [&whole[..whole.len() - 1], &whole[..whole.len() / 2], &flipped, &longer] {
        std::fs::write(copy.path().join("test_32x32.mat"), damaged).unwrap();
        let error = load(&spec, Split::Test, None).unwrap_err();
        assert!(matches!(error, DataError::Format { .. }), "{error}");
        assert!(error.to_string().contains("test_32x32.mat"), "{error}");
    }
}
