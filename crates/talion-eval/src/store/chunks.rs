//! Adversarial images on disk: a file a chunk.

use std::{
    fs,
    io::ErrorKind,
    path::{Component, Path},
};

use serde::{Deserialize, Serialize};
use talion_core::{Archive, Error, Result, Tensors};
use tch::{Device, Kind, Tensor};

use super::{
    describe, digest,
    fault::{self, AGAIN},
};
use crate::Chunk;

/// The folder of chunks inside a run's folder.
const FOLDER: &str = "chunks";

/// The name of the one tensor in a chunk's file.
const IMAGES: &str = "adversarial";

/// How the names of `write_atomically`'s temporary files begin.
const TEMPORARY: &str = ".tmp";

/// Longest part of a file's name that is there for people.
const SLUG: usize = 60;

/// What a chunk's file says of itself.
#[derive(Serialize, Deserialize)]
struct Label {
    experiment: String,
    first: usize,
}

/// A chunk's file name inside the run's folder. The experiment's number keeps experiments apart; its key, cut down to
/// what every file system takes, is for people.
pub(super) fn name(number: usize, key: &str, first: usize) -> String {
    let mut slug = String::new();
    for letter in key.chars() {
        if letter.is_ascii_alphanumeric() {
            slug.push(letter.to_ascii_lowercase());
        } else if !slug.ends_with('-') && !slug.is_empty() {
            slug.push('-');
        }
    }
    slug.truncate(SLUG);
    format!("{FOLDER}/{number:03}-{}-{first:06}.safetensors", slug.trim_end_matches('-'))
}

/// Writes the images of a chunk and returns the file's SHA-256. `images` `[N, C, H, W]`, `f32`. The file is read back
/// and compared, so that the checksum is one of the images that were meant.
pub(super) fn write(run: &Path, file: &str, key: &str, first: usize, images: &Tensor) -> Result<String> {
    let path = run.join(file);
    let images = images.f_detach()?.f_to_device(Device::Cpu)?;
    let header = Label { experiment: key.to_owned(), first };
    let tensors = Tensors::from([(IMAGES.to_owned(), images.shallow_clone())]);
    Archive { header, tensors }.save(&path).map_err(fault::explained)?;
    if let Some(folder) = path.parent() {
        fault::sync_folder(folder)?;
    }
    let bytes = fs::read(&path).map_err(fault::io(&path))?;
    let back = Archive::<Label>::from_bytes(&bytes, &path)?;
    let whole = match back.tensors.get(IMAGES) {
        Some(kept) => kept.size() == images.size() && bits(kept)?.f_equal(&bits(&images)?)?,
        None => false,
    };
    if whole {
        Ok(digest::of_bytes(&bytes))
    } else {
        Err(Error::file(
            path,
            "read back, it does not hold what was written; look after the disk, then resume",
        ))
    }
}

/// Reads the images of a chunk, `[rows, C, H, W]`, `f32`, on the CPU.
pub(super) fn read(run: &Path, chunk: &Chunk) -> Result<Tensor> {
    if !Path::new(&chunk.file).components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(Error::file(run, format!("its database names `{}`, which lies outside", chunk.file)));
    }
    let path = run.join(&chunk.file);
    let bytes = fs::read(&path).map_err(|source| unreadable(&path, chunk, source))?;
    let found = digest::of_bytes(&bytes);
    if found != chunk.sha256 {
        return Err(Error::file(
            &path,
            format!(
                "is damaged: its {} bytes have the SHA-256 {found}, expected {} ({}); delete it and {AGAIN}",
                bytes.len(),
                chunk.sha256,
                describe(chunk)
            ),
        ));
    }
    let mut archive = Archive::<Label>::from_bytes(&bytes, &path)?;
    let images = archive.tensors.remove(IMAGES).ok_or_else(|| {
        Error::file(&path, format!("has no tensor `{IMAGES}` ({}); delete it and {AGAIN}", describe(chunk)))
    })?;
    check_shape(&path, chunk, &images)?;
    Ok(images)
}

fn unreadable(path: &Path, chunk: &Chunk, source: std::io::Error) -> Error {
    if source.kind() == ErrorKind::NotFound {
        Error::file(path, format!("is missing, expected the images of {}; {AGAIN}", describe(chunk)))
    } else {
        fault::io(path)(source)
    }
}

fn check_shape(path: &Path, chunk: &Chunk, images: &Tensor) -> Result<()> {
    let size = images.size();
    let fits = size.len() == 4 && usize::try_from(size[0]).is_ok_and(|rows| rows == chunk.rows);
    if fits && images.kind() == Kind::Float {
        return Ok(());
    }
    Err(Error::file(
        path,
        format!(
            "holds images of shape {size:?} and type {:?}, expected [{}, C, H, W] and Float ({}); delete it and {AGAIN}",
            images.kind(),
            chunk.rows,
            describe(chunk)
        ),
    ))
}

/// The bits of `f32` values, as integers: comparing these tells 0 from -0.
pub(super) fn bits(images: &Tensor) -> Result<Tensor> {
    Ok(images.f_view_dtype(Kind::Int)?)
}

/// Removes what a writer that was killed has left: files that never got their name. Only the holder of the lock may.
pub(super) fn sweep(run: &Path) {
    let Ok(entries) = fs::read_dir(run.join(FOLDER)) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            // one that stays costs room, nothing else
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_and_different() {
        let name = name(7, "TRN (wide) exact Pgd-20:step=2/255 @ Linf 8/255 whole", 64);
        assert_eq!(name, "chunks/007-trn-wide-exact-pgd-20-step-2-255-linf-8-255-whole-000064.safetensors");
        assert_eq!(super::name(0, "clean", 0), "chunks/000-clean-000000.safetensors");
        assert_eq!(super::name(1, "ä/../é", 0), "chunks/001--000000.safetensors");
        assert_ne!(super::name(1, "a b", 0), super::name(2, "A/B", 0));
        assert!(super::name(1, &"x".repeat(1000), 0).len() < 100);
    }
}
