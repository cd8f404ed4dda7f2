//! Comparing files with published checksums.

use std::{fs::File, io::Read, path::Path};

use md5::Md5;
use sha2::{Digest, Sha256};

use crate::{
    error::{DataError, Result},
    read::hex,
};

const BUFFER_LEN: usize = 1 << 16;

/// Length and SHA-256 of a file.
pub(crate) fn sha256_of_file(path: &Path) -> Result<(u64, String)> {
    digest_of_file::<Sha256>(path)
}

/// Compares a file with the MD5 sum that its publisher gives.
pub(crate) fn check_file_md5(path: &Path, expected: &str) -> Result<()> {
    compare(path, "MD5", expected, &digest_of_file::<Md5>(path)?.1)
}

/// Compares bytes with an MD5 sum; the path is for messages.
pub(crate) fn check_md5(bytes: &[u8], path: &Path, expected: &str) -> Result<()> {
    compare(path, "MD5", expected, &hex(&Md5::digest(bytes)))
}

/// Compares bytes with a SHA-256 sum; the path is for messages.
pub(crate) fn check_sha256(bytes: &[u8], path: &Path, expected: &str) -> Result<()> {
    compare(path, "SHA-256", expected, &hex(&Sha256::digest(bytes)))
}

fn digest_of_file<D: Digest>(path: &Path) -> Result<(u64, String)> {
    let mut file = File::open(path).map_err(DataError::io("read", path))?;
    let mut hash = D::new();
    let mut buffer = vec![0; BUFFER_LEN];
    let mut bytes = 0;
    loop {
        let count = file.read(&mut buffer).map_err(DataError::io("read", path))?;
        if count == 0 {
            return Ok((bytes, hex(&hash.finalize())));
        }
        hash.update(&buffer[..count]);
        bytes += count as u64;
    }
}

fn compare(path: &Path, algorithm: &str, expected: &str, found: &str) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    let expected = format!("{algorithm} {expected}");
    Err(DataError::Checksum { path: path.to_owned(), expected, found: found.to_owned() })
}
