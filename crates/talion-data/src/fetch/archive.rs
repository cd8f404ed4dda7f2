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

#[cfg(test)]
pub(super) mod tests {
    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;
    use tar::{Builder, Header};

    use super::*;

    /// A gzipped tar archive.
    pub fn pack(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (name, bytes) in files {
            let mut header = Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap()
    }

    fn take_all(packed: &[u8], wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let wanted: Vec<String> = wanted.iter().map(|&name| name.to_owned()).collect();
        let mut taken = Vec::new();
        for_each(packed, Path::new("a.tar.gz"), &wanted, |name, bytes| {
            taken.push((name.to_owned(), bytes));
            Ok(())
        })?;
        Ok(taken)
    }

    #[test]
    fn only_the_files_wanted_are_taken() {
        let packed = pack(&[("d/a", b"1"), ("d/b", b"22"), ("e/a", b"3")]);
        let taken = take_all(&packed, &["e/a", "d/b"]).unwrap();
        assert_eq!(taken, [("d/b".to_owned(), b"22".to_vec()), ("e/a".to_owned(), b"3".to_vec())]);
        let error = take_all(&packed, &["d/a", "d/c"]).unwrap_err().to_string();
        assert!(error.contains("d/c in the archive"), "{error}");
        assert!(take_all(&packed[..20], &["d/a"]).is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            std::io::Write::write_all(&mut encoder, &bytes).unwrap();
            prop_assert!(take_all(&encoder.finish().unwrap(), &["a"]).is_err());
            prop_assert!(take_all(&bytes, &["a"]).is_err());
        }
    }
}
