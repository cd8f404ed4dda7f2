//! Tensors on disk: safetensors with a typed header, written whole or not at all.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
    path::Path,
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Serialize, de::DeserializeOwned};
use tch::{Kind, Tensor};

use crate::{Error, Result};

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// The one key of the safetensors metadata under which talion keeps its header, as JSON.
const HEADER_KEY: &str = "talion";

/// A file of named tensors with a header of type `H`.
#[derive(Debug)]
pub struct Archive<H> {
    /// What the tensors are, and how they came to be.
    pub header: H,
    /// The tensors, on the CPU.
    pub tensors: Tensors,
}

impl<H: Serialize + DeserializeOwned> Archive<H> {
    /// Writes the archive to a temporary file beside `path` and renames it, so `path` is never half written.
    ///
    /// # Errors
    /// If the file cannot be written or a tensor has a type that safetensors lacks.
    pub fn save(&self, path: &Path) -> Result<()> {
        let header = serde_json::to_string(&self.header)
            .map_err(|error| Error::file(path, format!("its header cannot be written as JSON: {error}")))?;
        let mut parts = Vec::with_capacity(self.tensors.len());
        for (name, tensor) in &self.tensors {
            parts.push((name.clone(), tensor_bytes(tensor)?));
        }
        let mut views = Vec::with_capacity(parts.len());
        for (name, (dtype, shape, bytes)) in &parts {
            let view = TensorView::new(*dtype, shape.clone(), bytes)
                .map_err(|error| Error::file(path, format!("tensor {name}: {error}")))?;
            views.push((name.as_str(), view));
        }
        let metadata = HashMap::from([(HEADER_KEY.to_owned(), header)]);
        let bytes = safetensors::serialize(views, Some(metadata))
            .map_err(|error| Error::file(path, format!("cannot be serialised: {error}")))?;
        write_atomically(path, &bytes)
    }

    /// Reads an archive.
    ///
    /// # Errors
    /// If the file cannot be read, is not a safetensors file, or has no talion header of this type.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        Self::from_bytes(&bytes, path)
    }

    /// Reads an archive held in memory; `origin` is named in errors.
    ///
    /// # Errors
    /// As [`Archive::load`].
    pub fn from_bytes(bytes: &[u8], origin: &Path) -> Result<Self> {
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| damaged(origin, &error))?;
        let header =
            metadata.metadata().as_ref().and_then(|entries| entries.get(HEADER_KEY)).ok_or_else(|| {
                Error::file(origin, "has no talion header; it was not written by `talion train`")
            })?;
        let header = serde_json::from_str(header).map_err(|error| {
            Error::file(origin, format!("has a header of another kind or version: {error}"))
        })?;
        Ok(Self { header, tensors: tensors_of(bytes, origin)? })
    }
}

/// The tensors of any safetensors file, whoever wrote it.
///
/// # Errors
/// If the file cannot be read, is not a safetensors file, or holds a type that talion does not use.
pub fn read_safetensors(path: &Path) -> Result<Tensors> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    tensors_of(&bytes, path)
}

fn damaged(origin: &Path, error: &safetensors::SafeTensorError) -> Error {
    Error::file(origin, format!("is not a whole safetensors file ({error}); fetch or train it again"))
}

fn tensors_of(bytes: &[u8], origin: &Path) -> Result<Tensors> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| damaged(origin, &error))?;
    let mut tensors = Tensors::new();
    for (name, view) in file.tensors() {
        let tensor =
            read_tensor(&view).map_err(|problem| Error::file(origin, format!("tensor {name}: {problem}")))?;
        tensors.insert(name.clone(), tensor);
    }
    Ok(tensors)
}

/// Writes `bytes` to a temporary file beside `path`, then renames it over `path`.
///
/// # Errors
/// If the folder cannot be made or the file cannot be written; `path` is then as it was.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(Error::io(folder))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(Error::io(path))?;
    readable_by_others(file.as_file()).map_err(Error::io(path))?;
    file.persist(path).map_err(|error| Error::Io { path: path.into(), source: error.error })?;
    Ok(())
}

/// Temporary files are private to their owner; results are ordinary files.
fn readable_by_others(file: &std::fs::File) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    #[cfg(not(unix))]
    let _ = file;
    Ok(())
}

type RawTensor = (Dtype, Vec<usize>, Vec<u8>);

fn tensor_bytes(tensor: &Tensor) -> Result<RawTensor> {
    let (dtype, size) = match tensor.kind() {
        Kind::Float => (Dtype::F32, 4),
        Kind::Double => (Dtype::F64, 8),
        Kind::Half => (Dtype::F16, 2),
        Kind::BFloat16 => (Dtype::BF16, 2),
        Kind::Int64 => (Dtype::I64, 8),
        Kind::Uint8 => (Dtype::U8, 1),
        Kind::Bool => (Dtype::BOOL, 1),
        other => {
            return Err(Error::range(
                "the type of a stored tensor",
                "f32, f64, f16, bf16, i64, u8 or bool",
                format!("{other:?}"),
            ));
        }
    };
    let tensor = tensor.detach().to_device(tch::Device::Cpu).contiguous();
    let shape = tensor.size().iter().map(|&side| side as usize).collect();
    let mut bytes = vec![0; tensor.numel() * size];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok((dtype, shape, bytes))
}

fn read_tensor(view: &TensorView<'_>) -> std::result::Result<Tensor, String> {
    let kind = match view.dtype() {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::U8 => Kind::Uint8,
        Dtype::BOOL => Kind::Bool,
        other => return Err(format!("has type {other:?}, which talion does not use")),
    };
    let shape: Vec<i64> = view.shape().iter().map(|&side| side as i64).collect();
    Tensor::f_from_data_size(view.data(), &shape, kind).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Header {
        seed: u64,
    }

    fn example() -> Archive<Header> {
        let mut tensors = Tensors::new();
        for (name, kind) in [("a", Kind::Float), ("b", Kind::Half), ("c", Kind::Int64), ("d", Kind::Bool)] {
            tensors.insert(name.into(), Tensor::from_slice(&[0_i64, 1, 2, 3]).reshape([2, 2]).to_kind(kind));
        }
        Archive { header: Header { seed: 7 }, tensors }
    }

    #[test]
    fn archives_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/a.safetensors");
        example().save(&path).unwrap();
        let back = Archive::<Header>::load(&path).unwrap();
        assert_eq!(back.header, Header { seed: 7 });
        assert_eq!(back.tensors, example().tensors);
    }

    #[test]
    fn damaged_files_are_errors_that_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        example().save(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in [0, 4, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let error = Archive::<Header>::load(&path).unwrap_err().to_string();
            assert!(error.contains("a.safetensors"), "{error}");
        }
        let mut oversized = whole.clone();
        oversized.push(0);
        std::fs::write(&path, oversized).unwrap();
        assert!(Archive::<Header>::load(&path).is_err());
        assert!(Archive::<Header>::load(&folder.path().join("none")).is_err());
    }
}
