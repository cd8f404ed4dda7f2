//! Fashion-MNIST out of the Debian package `dataset-fashion-mnist`.
//!
//! Debian has taken the file name and the time out of the gzip headers, as it does with all its packages, and left the
//! packed data alone. With the two put back the files are the official ones, bit for bit, which their published MD5
//! sums prove.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{Progress, Report, Source, checksum, command, official::FASHION_MNIST};
use crate::{
    error::{DataError, Result},
    read,
    write::replace_file,
};

const PACKAGE: &str = "dataset-fashion-mnist";
const FOLDER: &str = "usr/share/datasets/fashion-mnist";
/// The time in the official headers of the training and the test files: August 31, 2017.
const TRAIN_TIME: u32 = 1_504_176_606;
const TEST_TIME: u32 = 1_504_176_627;
const HEADER_LEN: usize = 10;
/// Start of a gzip file with no optional fields.
const BARE: [u8; 4] = [0x1f, 0x8b, 8, 0];
/// Start of one with a file name.
const NAMED: [u8; 4] = [0x1f, 0x8b, 8, 8];
/// No word on the compression's effort; made on Unix.
const EFFORT_AND_SYSTEM: [u8; 2] = [0, 3];

/// The package as a source, installed or not.
pub(crate) struct FashionMnistPackage;

impl Source for FashionMnistPackage {
    fn describe(&self) -> String {
        format!("Debian package {PACKAGE}")
    }

    fn fetch(&self, folder: &Path, report: Report<'_>) -> Result<()> {
        let installed = Path::new("/").join(FOLDER);
        if installed.is_dir() {
            return install(&installed, folder, report);
        }
        let temporary = TempDir::new_in(folder).map_err(DataError::io("create a folder in", folder))?;
        report(Progress::Downloading { file: PACKAGE, done: 0, total: None });
        let package = download(temporary.path())?;
        let unpacked = temporary.path().join("unpacked");
        let arguments = ["-x".as_ref(), package.as_os_str(), unpacked.as_os_str()];
        command::run("dpkg-deb", &arguments, temporary.path())?;
        install(&unpacked.join(FOLDER), folder, report)
    }
}

/// Has `apt-get` download the package into `folder`, if need be after it has refreshed its lists.
fn download(folder: &Path) -> Result<PathBuf> {
    let quick = ["-q", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=30"];
    let get = || command::run("apt-get", &[&quick[..], &["download", PACKAGE]].concat(), folder);
    if get().is_err() {
        // Only root may refresh the lists; for others the complaint of the second try is the one that helps.
        let _ = command::run("apt-get", &[&quick[..], &["update"]].concat(), folder);
        get()?;
    }
    let entries = std::fs::read_dir(folder).map_err(DataError::io("list", folder))?;
    let mut packages = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    packages.find(|path| path.extension().is_some_and(|extension| extension == "deb")).ok_or_else(|| {
        DataError::Missing {
            path: folder.join(PACKAGE),
            advice: "apt-get reported success, but left no file".into(),
        }
    })
}

/// Restores the official files from those of the package.
fn install(from: &Path, to: &Path, report: Report<'_>) -> Result<()> {
    for (file, md5) in FASHION_MNIST {
        report(Progress::Unpacking { file });
        let source = from.join(file);
        let official = restore(&read::file(&source)?, file, &source)?;
        checksum::check_md5(&official, &source, md5)?;
        replace_file(&to.join(file), |out| out.write_all(&official))?;
    }
    Ok(())
}

fn restore(bytes: &[u8], file: &str, path: &Path) -> Result<Vec<u8>> {
    if bytes.len() < HEADER_LEN || !bytes.starts_with(&BARE) {
        let found = format!("{:02x?}", &bytes[..bytes.len().min(BARE.len())]);
        return Err(DataError::format(path, "a gzip file without a name in its header", found));
    }
    let time = if file.starts_with("train") { TRAIN_TIME } else { TEST_TIME };
    let name = file.trim_end_matches(".gz").as_bytes();
    Ok([&NAMED, &time.to_le_bytes()[..], &EFFORT_AND_SYSTEM, name, &[0], &bytes[HEADER_LEN..]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_and_time_are_put_back() {
        let bare = [&BARE[..], &[1, 2, 3, 4, 0, 3], b"data"].concat();
        let official = restore(&bare, "t10k-x.gz", Path::new("t10k-x.gz")).unwrap();
        assert_eq!(official[..4], NAMED);
        assert_eq!(official[4..8], TEST_TIME.to_le_bytes());
        assert_eq!(&official[8..], b"\x00\x03t10k-x\0data");
        assert!(
            restore(&official, "t10k-x.gz", Path::new("x"))
                .unwrap_err()
                .to_string()
                .contains("without a name")
        );
        assert!(restore(&bare[..9], "t10k-x.gz", Path::new("x")).is_err());
        assert!(restore(&[], "t10k-x.gz", Path::new("x")).is_err());
    }

    #[test]
    fn files_that_are_not_the_official_ones_are_refused() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(from.path().join(FASHION_MNIST[0].0), [&BARE[..], &[0; 20]].concat()).unwrap();
        let error = install(from.path(), to.path(), &mut |_| ()).unwrap_err();
        assert!(matches!(error, DataError::Checksum { .. }), "{error}");
        assert_eq!(std::fs::read_dir(to.path()).unwrap().count(), 0);
    }
}
