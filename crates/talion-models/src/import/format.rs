//! Tells from a file's content, never from its name, what kind of model it is.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use serde::{Deserialize, de::IgnoredAny};
use talion_core::{Error, Result};

use super::{archive, pickle::Step};

/// What a model file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// A checkpoint that talion wrote: safetensors with talion's header.
    Talion,
    /// Tensors of another program, with no network.
    Safetensors,
    /// A network with its weights, as a graph of ONNX operators.
    Onnx,
    /// A network with its weights, as a program that libtorch runs.
    TorchScript,
    /// Tensors that PyTorch's `torch.save` wrote, with no network.
    StateDict,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Talion => "talion checkpoint",
            Self::Safetensors => "safetensors",
            Self::Onnx => "ONNX",
            Self::TorchScript => "TorchScript",
            Self::StateDict => "PyTorch state dict",
        })
    }
}

/// What the errors end with.
const READ: &str = "talion reads its own checkpoints, ONNX, TorchScript, and the weights of the built-in \
                    architectures as safetensors or PyTorch state dicts";

/// As many bytes of the beginning as any test needs.
const HEAD: u64 = 512;

/// The limit of the safetensors format.
const MAX_HEADER: u64 = 100_000_000;

/// Which format `path` has.
///
/// # Errors
/// If the file cannot be read, or is of none of the formats; the error names what it looks like instead, where that is
/// known, and what to do about it.
pub fn detect(path: &Path) -> Result<Format> {
    if path.is_dir() {
        let what = if path.join("saved_model.pb").exists() {
            "is a TensorFlow SavedModel; convert it to ONNX with tf2onnx"
        } else {
            "is a folder, not a model file"
        };
        return Err(Error::file(path, what));
    }
    let file = File::open(path).map_err(Error::io(path))?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    let mut reader = BufReader::new(file);
    let mut head = Vec::new();
    reader.by_ref().take(HEAD).read_to_end(&mut head).map_err(Error::io(path))?;
    if let Some(header) = safetensors_header(&head) {
        return safetensors(&mut reader, header, length).map_err(|problem| Error::file(path, problem));
    }
    if head.starts_with(b"PK\x03\x04") {
        return archived(reader).map_err(|problem| Error::file(path, problem));
    }
    if let Some(what) = other(&head) {
        return Err(Error::file(path, what));
    }
    if onnx(&mut reader, length).map_err(Error::io(path))? {
        return Ok(Format::Onnx);
    }
    // the same first field as in ONNX, but no graph
    let what = if head.starts_with(b"\x08\x01\x12") {
        "looks like a TensorFlow SavedModel; convert it to ONNX with tf2onnx".to_owned()
    } else {
        format!("is of no known format; {READ}")
    };
    Err(Error::file(path, what))
}

/// The length of the JSON header that a safetensors file begins with.
fn safetensors_header(head: &[u8]) -> Option<u64> {
    let (length, rest) = head.split_first_chunk::<8>()?;
    let length = u64::from_le_bytes(*length);
    (length <= MAX_HEADER && rest.first() == Some(&b'{')).then_some(length)
}

fn safetensors(reader: &mut (impl Read + Seek), header: u64, length: u64) -> Step<Format> {
    #[derive(Deserialize)]
    struct Header {
        #[serde(rename = "__metadata__", default)]
        metadata: BTreeMap<String, IgnoredAny>,
    }
    let damaged = |why: String| format!("is a damaged safetensors file ({why}); fetch or save it again");
    if header > length.saturating_sub(8) {
        return Err(damaged("it is cut short".into()));
    }
    let mut bytes = Vec::new();
    reader
        .seek(SeekFrom::Start(8))
        .and_then(|_| reader.take(header).read_to_end(&mut bytes))
        .map_err(|error| damaged(error.to_string()))?;
    let header: Header = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    // the key of `talion_core::Archive`
    Ok(if header.metadata.contains_key("talion") { Format::Talion } else { Format::Safetensors })
}

/// Which of PyTorch's archives a zip file is.
fn archived(reader: impl Read + Seek) -> Step<Format> {
    let archive = archive::open(reader)?;
    let names: Vec<_> = archive.file_names().filter_map(std::result::Result::ok).collect();
    let has = |name: &str| names.iter().any(|entry| entry == name);
    let root =
        names.iter().find_map(|name| name.strip_suffix("/data.pkl").filter(|root| !root.contains('/')));
    if let Some(root) = root {
        let code = format!("{root}/code/");
        return match (names.iter().any(|name| name.starts_with(&code)), has(&format!("{root}/constants.pkl")))
        {
            (true, true) => Ok(Format::TorchScript),
            (false, _) => Ok(Format::StateDict),
            (true, false) => Err("is TorchScript without its constants; save it again".into()),
        };
    }
    Err(if has("model.weights.h5") {
        "is a Keras model; convert it to ONNX with tf2onnx".to_owned()
    } else if names.iter().any(|name| name.ends_with(".npy")) {
        "is a NumPy archive of arrays without a network; save the arrays as safetensors".to_owned()
    } else if names.iter().any(|name| name.ends_with("archive_format")) {
        "is a program of torch.export; export the model to ONNX (torch.onnx.export) instead".to_owned()
    } else {
        format!("is a zip archive that holds no model; {READ}")
    })
}

/// The beginnings of files that are taken for models, and what to say of them.
const OTHERS: [(&[u8], &str); 10] = [
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras writes; convert the model to ONNX with tf2onnx"),
    (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", LEGACY),
    (b"GGUF", "is a GGUF file of a language model, not an image classifier"),
    (b"ptrt", "is a TensorRT engine, built for one kind of GPU; use the ONNX file that it was built from"),
    (b"\x93NUMPY", "is a NumPy array without a network"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it first"),
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, not the file itself; run `git lfs pull` where it comes from",
    ),
    (b"<?xml", "is XML, perhaps an OpenVINO network; use the ONNX file that it was converted from"),
    (b"<!", "is a web page, not a model; the download went wrong"),
    (b"<html", "is a web page, not a model; the download went wrong"),
];

const LEGACY: &str = "was written by torch.save of PyTorch before 1.6, or in its format; load it in PyTorch 1.6 or \
                      newer and save it again with torch.save";

/// What to say of a file with this beginning; `None` if it may be a model.
fn other(head: &[u8]) -> Option<String> {
    if head.is_empty() {
        return Some("is empty".into());
    }
    if let Some((_, what)) = OTHERS.iter().find(|(beginning, _)| head.starts_with(beginning)) {
        return Some((*what).into());
    }
    if head.get(4..8) == Some(&b"TFL3"[..]) {
        return Some("is a TensorFlow Lite model; convert the original to ONNX with tf2onnx".into());
    }
    if head.get(257..262) == Some(&b"ustar"[..]) {
        return Some("is a tar archive; unpack it first".into());
    }
    // every pickle since protocol 2 begins so, and the old format of torch.save is several of them
    if let [0x80, 2..=5, ..] = head {
        return Some(format!(
            "is a Python pickle, which may run any code, so talion does not read it. If it {LEGACY}"
        ));
    }
    None
}

/// Whether a file begins as ONNX's `ModelProto` does: a version, and then only fields that it has, of their types.
fn onnx(reader: &mut (impl Read + Seek), length: u64) -> io::Result<bool> {
    let (mut versioned, mut graph) = (false, false);
    reader.seek(SeekFrom::Start(0))?;
    for _ in 0..1000 {
        let Some(key) = varint(reader)? else { break };
        match (key >> 3, key & 7) {
            (1, 0) => versioned = varint(reader)?.is_some_and(|version| (1..=1000).contains(&version)),
            (5, 0) => {
                varint(reader)?;
            }
            (field @ (2..=4 | 6..=8 | 14 | 20 | 25 | 26), 2) => {
                let Some(size) = varint(reader)? else { break };
                graph |= field == 7;
                let end = reader.stream_position()?.checked_add(size).filter(|&end| end <= length);
                // A graph that the file is too short for is still ONNX, and its reader will say what is wrong.
                let Some(end) = end else { return Ok(versioned && graph) };
                reader.seek(SeekFrom::Start(end))?;
            }
            _ => return Ok(false),
        }
    }
    Ok(versioned && graph)
}

/// A number of protobuf; `None` at the end of the file.
fn varint(reader: &mut impl Read) -> io::Result<Option<u64>> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        if reader.read(&mut byte)? == 0 {
            return Ok(None);
        }
        value |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(Some(value));
        }
    }
    // no number of ONNX is longer than 64 bits
    Ok(None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use talion_core::{Archive, Tensors};
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::import::testing::*;

    fn format_of(bytes: &[u8]) -> Result<Format> {
        let folder = tempfile::tempdir().unwrap();
        // a name that says nothing
        let path = folder.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        detect(&path)
    }

    #[track_caller]
    fn refused(bytes: &[u8], words: &str) {
        let error = format_of(bytes).unwrap_err().to_string();
        assert!(error.contains("file: ") && error.contains(words), "{error}");
    }

    fn tensors() -> Tensors {
        Tensors::from([("w".to_owned(), Tensor::ones([2], (Kind::Float, Device::Cpu)))])
    }

    /// `ir_version` 8, producer, a graph of one byte string, the operator set.
    const ONNX: &[u8] = b"\x08\x08\x12\x07pytorch\x3a\x03abcB\x02\x10\x11";

    #[test]
    fn every_format_is_known_by_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        Archive { header: 5_u8, tensors: tensors() }.save(&path).unwrap();
        assert_eq!(detect(&path).unwrap(), Format::Talion);
        Tensor::write_safetensors(&[("w", &tensors()["w"])], &path).unwrap();
        assert_eq!(detect(&path).unwrap(), Format::Safetensors);
        assert_eq!(format_of(&saved(&tensors())).unwrap(), Format::StateDict);
        assert_eq!(format_of(&script("Tensor", "return x")).unwrap(), Format::TorchScript);
        assert_eq!(format_of(ONNX).unwrap(), Format::Onnx);
        // a graph that is cut short
        assert_eq!(format_of(&ONNX[..13]).unwrap(), Format::Onnx);
    }

    #[test]
    fn other_files_are_named() {
        refused(b"", "empty");
        refused(b"\x89HDF\r\n\x1a\nxx", "HDF5");
        refused(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "before 1.6");
        refused(b"\x80\x04\x95abc", "pickle");
        refused(b"\x93NUMPY\x01\x00", "NumPy");
        refused(b"\x1f\x8b\x08", "gzip");
        refused(b"version https://git-lfs.github.com/spec/v1\n", "LFS");
        refused(b"<!DOCTYPE html>", "web page");
        refused(b"\x1c\0\0\0TFL3", "TensorFlow Lite");
        refused(&[&[1; 257][..], b"ustar"].concat(), "tar archive");
        refused(b"\x08\x01\x12\x02ab", "SavedModel");
        refused(b"hello", "talion reads its own checkpoints");
        refused(&[0; 600], "no known format");
        refused(&zip(&[("config.json", b""), ("model.weights.h5", b"")]), "Keras");
        refused(&zip(&[("w.npy", b"")]), "NumPy");
        refused(&zip(&[("m/archive_format", b"pt2")]), "torch.export");
        refused(&zip(&[("a", b"")]), "no model");
        refused(&zip(&[("a/data.pkl", b""), ("a/code/x.py", b"")]), "without its constants");
        refused(b"PK\x03\x04", "whole zip archive");
    }

    #[test]
    fn damaged_safetensors_are_told_from_other_files() {
        refused(b"\x20\0\0\0\0\0\0\0{\"a\":", "cut short");
        refused(b"\x05\0\0\0\0\0\0\0{\"a\":1", "damaged");
        assert_eq!(format_of(b"\x02\0\0\0\0\0\0\0{}").unwrap(), Format::Safetensors);
    }

    #[test]
    fn folders_and_missing_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        assert!(detect(folder.path()).unwrap_err().to_string().contains("folder"));
        assert!(detect(&folder.path().join("none")).is_err());
        std::fs::write(folder.path().join("saved_model.pb"), b"").unwrap();
        assert!(detect(folder.path()).unwrap_err().to_string().contains("SavedModel"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn random_bytes_never_panic(
            start in proptest::sample::select(vec![&b""[..], b"PK\x03\x04", b"\x08\x08", b"\x02\0\0\0\0\0\0\0{"]),
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = format_of(&[start, &bytes].concat());
        }
    }
}
