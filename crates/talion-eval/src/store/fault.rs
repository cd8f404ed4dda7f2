//! Words for what can go wrong on a disk: what happened, to which file, and what to do.

use std::{
    io::{self, ErrorKind},
    path::Path,
};

use talion_core::{Error, Result};

/// What to do about a chunk that is gone or damaged.
pub(super) const AGAIN: &str = "resume the run: the chunk is computed again";

/// As [`Error::io`], with advice where the disk is full.
pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| explained(Error::io(path)(source))
}

/// Adds advice to an error that comes of a full disk; all others stay as they are.
pub(super) fn explained(error: Error) -> Error {
    match error {
        Error::Io { path, source }
            if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
        {
            full(&path, &source.to_string())
        }
        other => other,
    }
}

/// The error for a file on a disk that is full.
fn full(path: &Path, reason: &str) -> Error {
    let words = format!("{reason}; make room on the disk, then resume: what was finished is kept");
    Error::io(path)(io::Error::new(ErrorKind::StorageFull, words))
}

/// The error for a database file, made of what the database says.
pub(super) fn database(path: &Path, words: &str) -> Error {
    if words.contains("disk is full") {
        return full(path, words);
    }
    Error::file(path, format!("{words}; {}", advice(words)))
}

/// The error for records that are not as they were written.
pub(super) fn damaged(path: &Path, what: &str) -> Error {
    Error::file(
        path,
        format!("is damaged: {what}; restore it from a copy, or begin the run anew in another folder"),
    )
}

fn advice(words: &str) -> &'static str {
    let says = |part: &str| words.contains(part);
    if says("malformed") || says("not a database") || says("no such table") || says("no such column") {
        "it is damaged or was not written by talion: restore it from a copy, or begin the run anew in another folder"
    } else if says("locked") {
        "another program holds it: close that, then try again"
    } else if says("unable to open") || says("readonly") || says("read-only") {
        "reading, too, needs leave to write in its folder, where the database keeps a journal: copy the folder to a \
         place of your own, with a shorter path if this one is longer than 400 bytes"
    } else {
        "look after the disk, then try again: what was finished is kept"
    }
}

/// Makes sure that a rename in `folder` outlives a power cut.
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(io(folder))?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_says_so_and_what_to_do() {
        for kind in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded] {
            let error = io(Path::new("runs/a/chunk"))(io::Error::from(kind));
            assert!(matches!(&error, Error::Io { source, .. } if source.kind() == ErrorKind::StorageFull));
            let words = error.to_string();
            assert!(words.contains("runs/a/chunk") && words.contains("make room"), "{words}");
        }
        let error = database(Path::new("run.sqlite"), "database or disk is full");
        assert!(matches!(&error, Error::Io { source, .. } if source.kind() == ErrorKind::StorageFull));
    }

    #[test]
    fn other_errors_keep_their_kind() {
        let error = io(Path::new("x"))(io::Error::from(ErrorKind::PermissionDenied));
        assert!(matches!(&error, Error::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied));
        assert!(matches!(explained(Error::Interrupted), Error::Interrupted));
    }
}
