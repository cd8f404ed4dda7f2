//! Opening the zip archives that PyTorch writes.

use std::io::{Read, Seek};

use zip::{
    ZipArchive,
    read::{ArchiveOffset, Config},
};

use super::pickle::Step;

/// A network has a few entries a layer.
pub(super) const MAX_ENTRIES: usize = 1 << 17;

/// An archive that begins where the file begins, as PyTorch's do. Looking for a later beginning, as the library does by
/// itself for archives behind a program, takes some archives of PyTorch for damaged ones; the test shows which.
pub(super) fn open<R: Read + Seek>(reader: R) -> Step<ZipArchive<R>> {
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let archive = ZipArchive::with_config(config, reader)
        .map_err(|error| format!("is not a whole zip archive ({error}); fetch or save it again"))?;
    if archive.len() > MAX_ENTRIES {
        return Err(format!("is a zip archive of {} entries; {MAX_ENTRIES} are the most", archive.len()));
    }
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::import::testing::zip;

    /// PyTorch puts the records of large archives, 76 bytes, after the directory of every archive. Where the directory's
    /// first entry is as long, its second one stands where a directory right before the end would begin.
    #[test]
    fn the_records_of_large_archives_do_not_hide_an_entry() {
        let records = 76;
        for length in 1..64 {
            let names = ["first", "second", "third"].map(|name| format!("{:a>length$}/{name}", ""));
            let entries: Vec<(&str, &[u8])> =
                names.iter().map(|name| (name.as_str(), &b"weights"[..])).collect();
            let mut bytes = zip(&entries);
            let end = bytes.len() - 22;
            assert!(bytes[end..].starts_with(b"PK\x05\x06"));
            bytes.splice(end..end, vec![0; records]);
            let found = open(Cursor::new(bytes)).map(|archive| archive.len());
            assert_eq!(found, Ok(3), "names of {} letters", names[0].len());
        }
    }
}
