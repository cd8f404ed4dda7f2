//! The IDX format of the MNIST family: a big-endian header, then bytes; plain or gzipped.

use std::path::{Path, PathBuf};

use crate::{
    dataset::{Dataset, DatasetParts, Split},
    error::{DataError, Result},
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
    read::first_existing(&candidates).cloned().ok_or_else(|| read::missing(name, &candidates[0]))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;

    use super::*;

    const N: usize = 3;

    fn images() -> Vec<u8> {
        let pixels = (0..N * 784).map(|i| (i % 253) as u8);
        [0, 0, 8, 3, 0, 0, 0, N as u8, 0, 0, 0, 28, 0, 0, 0, 28].into_iter().chain(pixels).collect()
    }

    fn labels() -> Vec<u8> {
        vec![0, 0, 8, 1, 0, 0, 0, N as u8, 9, 0, 4]
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn parse_both(images: &[u8], labels: &[u8]) -> Result<Dataset> {
        let (images, labels) = ((images, Path::new("images")), (labels, Path::new("labels")));
        parse(images, labels, DatasetName::Mnist, Split::Test)
    }

    fn message(images: &[u8], labels: &[u8]) -> String {
        parse_both(images, labels).unwrap_err().to_string()
    }

    #[test]
    fn plain_and_gzipped_files_load_alike() {
        let plain = parse_both(&images(), &labels()).unwrap();
        assert_eq!((plain.len(), plain.channels(), plain.height(), plain.width()), (N, 1, 28, 28));
        assert_eq!(plain.labels(), [9, 0, 4]);
        assert_eq!(plain.image_bytes(1).unwrap()[5], ((784 + 5) % 253) as u8);
        let packed = parse_both(&gzip(&images()), &gzip(&labels())).unwrap();
        assert_eq!(packed.sha256(), plain.sha256());
    }

    #[test]
    fn files_of_the_wrong_length_are_refused() {
        for cut in [0, 3, 15, 16, images().len() - 1] {
            assert!(message(&images()[..cut], &labels()).contains("truncated"), "cut at {cut}");
            assert!(
                message(&gzip(&images()[..cut]), &labels()).contains("truncated"),
                "packed, cut at {cut}"
            );
        }
        let packed = gzip(&images());
        for cut in 2..packed.len() {
            assert!(parse_both(&packed[..cut], &labels()).is_err(), "cut at {cut}");
        }
        assert!(message(&[images(), vec![0]].concat(), &labels()).contains("too long"));
        assert!(
            message(&gzip(&[images(), vec![0]].concat()), &labels()).contains("the end of the packed data")
        );
        assert!(message(&[packed, vec![0]].concat(), &labels()).contains("nothing after"));
    }

    #[test]
    fn damage_is_found() {
        let (packed, sum) = (gzip(&images()), parse_both(&images(), &labels()).unwrap().sha256());
        // The gzip header's time and system do not matter, nor do a few bits that deflate leaves unused.
        for at in 10 * 8..packed.len() * 8 {
            let mut bytes = packed.clone();
            bytes[at / 8] ^= 1 << (at % 8);
            let same = |data: Dataset| data.sha256() == sum;
            assert!(parse_both(&bytes, &labels()).map_or(true, same), "bit {at} flipped");
        }
        for at in 0..16 * 8 {
            let mut bytes = images();
            bytes[at / 8] ^= 1 << (at % 8);
            assert!(parse_both(&bytes, &labels()).is_err(), "header bit {at} flipped");
        }
    }

    #[test]
    fn labels_have_to_fit() {
        let mut bad = labels();
        bad[9] = 10;
        assert_eq!(message(&images(), &bad), "labels: expected labels below 10, found 10 at position 1");
        let fewer = [0, 0, 8, 1, 0, 0, 0, 2, 9, 0];
        assert!(message(&images(), &fewer).contains("3 labels, one for each image of images"));
        assert!(message(&[labels(), labels()].concat(), &labels()).contains("3 dimension(s)"));
    }

    #[test]
    fn a_header_that_promises_too_much_allocates_nothing() {
        let head = [0, 0, 8, 3, 255, 255, 255, 255, 0, 0, 0, 28, 0, 0, 0, 28];
        assert!(message(&head, &labels()).contains("truncated"));
        assert!(message(&gzip(&head), &labels()).contains("a header that announces 3367254359280"));
        let most = [&[0, 0, 8, 3][..], &[255; 12]].concat();
        assert!(message(&gzip(&most), &labels()).contains("dimensions of a real file"));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), start in 0..3) {
            let start: &[u8] = [&[][..], &[0, 0, 8, 3, 0, 0], &GZIP_MAGIC][start as usize];
            let len = start.len().min(bytes.len());
            bytes[..len].copy_from_slice(&start[..len]);
            prop_assert!(parse_both(&bytes, &labels()).is_err());
            prop_assert!(parse_both(&images(), &bytes).is_err());
        }
    }
}
