//! Taking single files out of gzipped tar archives.

use std::{
    io::{self, Read},
    path::Path,
};

use flate2::read::GzDecoder;
use tar::Archive;

use crate::error::{DataError, Result};

/// Larger than any file of the archives talion knows: a bound on what a damaged one can allocate.
const MAX_ENTRY: u64 = 256 << 20;

/// Hands each of the files `wanted` (paths inside the archive) to `take`. Nothing else is unpacked.
pub(crate) fn for_each(
    packed: impl Read,
    path: &Path,
    wanted: &[String],
    mut take: impl FnMut(&str, Vec<u8>) -> Result<()>,
) -> Result<()> {
    let broken = |error: io::Error| DataError::format(path, "an intact .tar.gz archive", error.to_string());
    let mut left: Vec<&String> = wanted.iter().collect();
    let mut archive = Archive::new(GzDecoder::new(packed));
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some(index) = left.iter().position(|wanted| **wanted == name) else { continue };
        if entry.size() > MAX_ENTRY {
            let found = format!("{} bytes", entry.size());
            return Err(DataError::format(path, format!("at most {MAX_ENTRY} bytes in {name}"), found));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(broken)?;
        left.swap_remove(index);
        take(&name, bytes)?;
    }
    match left.first() {
        Some(name) => Err(DataError::format(path, format!("{name} in the archive"), "no such file")),
        None => Ok(()),
    }
}
