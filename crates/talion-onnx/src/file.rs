//! ONNX files: reading them from anywhere, and writing them whole or not at all.

use std::{
    cell::Cell,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Component, Path, PathBuf},
};

use prost::{Message, bytes::Bytes};
use talion_core::{Error, Result, write_atomically};

use crate::{
    graph::{Graph, quoted},
    proto::{self, Checked, ModelProto, Schema, StringStringEntryProto},
    tensor,
};

/// The largest file that is read: protobuf readers elsewhere stop at half of it.
const MAX_FILE: u64 = 1 << 32;

/// The most bytes of tensors outside the file.
const MAX_EXTERNAL: u64 = 16 << 30;

/// The most bytes that are written: what every protobuf reader takes.
pub(crate) const MAX_WRITTEN: usize = i32::MAX as usize;

/// How files begin that people take for ONNX files, and what to say of them.
const OTHERS: [(&[u8], &str); 6] = [
    (
        b"PK\x03\x04",
        "is a zip archive, as PyTorch writes for checkpoints and TorchScript; export the network with \
         torch.onnx.export",
    ),
    (
        b"\x80\x02",
        "is a Python pickle, as old PyTorch checkpoints are; export the network with torch.onnx.export",
    ),
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file itself; get it with `git lfs pull`"),
    (b"\x89HDF\r\n", "is an HDF5 file, as Keras writes; convert it with tf2onnx"),
    (b"<?xml", "is an XML file, such as OpenVINO's; export the network to ONNX"),
    (b"<!DOCTYPE", "is a web page; look at where it was downloaded from"),
];

/// As in [`OTHERS`], of the one kind that has no fixed beginning.
const SAFETENSORS: &str = "is a safetensors file: it holds weights, not the network they belong to; export the \
                           network with torch.onnx.export";

/// Reads an ONNX file of operator set 7 to 25, with its external data. The file may come from anywhere: it is checked
/// whole, and sizes before anything is allocated.
///
/// # Errors
/// If the file cannot be read or has more than 4 GiB, is no ONNX file, is of another version, has a value that is not
/// defined once, nodes in a circle, more than a million nodes, a tensor of a type that libtorch lacks or whose data
/// does not fit its shape, functions that call themselves, or external data of more than 16 GiB or outside its folder.
/// Operators that cannot be run are no errors here: see [`unsupported`](crate::unsupported).
pub fn read(path: &Path) -> Result<Graph> {
    let bytes = contents(path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    parse(bytes.into(), Some(folder)).map_err(|problem| Error::file(path, problem))
}

/// As [`read`], from memory: `origin` is named in errors, `folder` is where external data lies, if there may be any.
///
/// # Errors
/// As [`read`]; external data is refused if there is no folder.
pub fn from_bytes(bytes: &[u8], origin: &Path, folder: Option<&Path>) -> Result<Graph> {
    parse(Bytes::copy_from_slice(bytes), folder).map_err(|problem| Error::file(origin, problem))
}

/// Writes a graph as an ONNX file, whole or not at all; `metadata` are keys with their values, which ONNX Runtime and
/// others show.
///
/// # Errors
/// If the file cannot be written or would have 2 GiB or more, a value is not defined once, an input, output or
/// constant has a type that is not read either, or an attribute is one that talion never reads.
pub fn write(graph: &Graph, path: &Path, metadata: &[(String, String)]) -> Result<()> {
    let bytes = serialise(graph, metadata)
        .map_err(|problem| Error::file(path, format!("cannot be written: {problem}")))?;
    write_atomically(path, &bytes)
}

fn serialise(graph: &Graph, metadata: &[(String, String)]) -> Checked<Vec<u8>> {
    let too_large = || format!("the graph takes more than {MAX_WRITTEN} bytes, the most of an ONNX file");
    let mut size = 0_usize;
    for constant in graph.constants.values() {
        size = size.checked_add(tensor::data_size(constant)?).ok_or_else(too_large)?;
    }
    if size > MAX_WRITTEN {
        return Err(too_large());
    }
    let mut model = graph.to_proto()?;
    model.producer_name = Some("talion".into());
    model.producer_version = Some(env!("CARGO_PKG_VERSION").into());
    model.metadata_props = metadata
        .iter()
        .map(|(key, value)| StringStringEntryProto { key: Some(key.clone()), value: Some(value.clone()) })
        .collect();
    if model.encoded_len() > MAX_WRITTEN {
        return Err(too_large());
    }
    Ok(model.encode_to_vec())
}

/// The bytes of a file that is not too large to be read.
fn contents(path: &Path) -> Result<Vec<u8>> {
    let metadata = fs::metadata(path).map_err(Error::io(path))?;
    if !metadata.is_file() {
        return Err(Error::file(path, "is not a file"));
    }
    let len = metadata.len();
    if len > MAX_FILE {
        return Err(Error::file(path, format!("has {len} bytes; talion reads files of up to {MAX_FILE}")));
    }
    let mut file = File::open(path).map_err(Error::io(path))?;
    exactly(&mut file, len).map_err(Error::io(path))
}

/// The next `len` bytes of a file; the memory for them may be too little.
fn exactly(file: &mut File, len: u64) -> std::io::Result<Vec<u8>> {
    let size = usize::try_from(len).map_err(std::io::Error::other)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(size).map_err(std::io::Error::other)?;
    file.take(len).read_to_end(&mut bytes)?;
    if bytes.len() == size { Ok(bytes) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}

fn parse(bytes: Bytes, folder: Option<&Path>) -> Checked<Graph> {
    if let Some((_, problem)) = OTHERS.iter().find(|(start, _)| bytes.starts_with(start)) {
        return Err((*problem).into());
    }
    if is_safetensors(&bytes) {
        return Err(SAFETENSORS.into());
    }
    let model: ModelProto = proto::decode(bytes, Schema::Model)?;
    Graph::from_proto(model, &External::new(folder))
}

/// Whether the file begins with the length of a JSON object, and that object.
fn is_safetensors(bytes: &[u8]) -> bool {
    let Some((len, rest)) = bytes.split_first_chunk::<8>() else { return false };
    let header = usize::try_from(u64::from_le_bytes(*len)).ok().and_then(|len| rest.get(..len));
    header.is_some_and(|header| header.starts_with(b"{"))
}

/// The folder of a model's external data, and how much more of it may be read.
pub(crate) struct External {
    folder: Option<PathBuf>,
    left: Cell<u64>,
}

impl External {
    /// Without a folder, external data is refused.
    pub(crate) fn new(folder: Option<&Path>) -> Self {
        Self { folder: folder.map(Path::to_owned), left: Cell::new(MAX_EXTERNAL) }
    }

    /// The `size` bytes of a tensor that lie where `entries` say.
    pub(crate) fn load(&self, entries: &[StringStringEntryProto], size: usize) -> Checked<Vec<u8>> {
        let entry = |key: &str| entries.iter().find(|entry| entry.key() == key).map(|entry| entry.value());
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(text) => text.parse::<u64>().map(Some).map_err(|_| {
                format!("has external data with the {key} {}, which is no number", quoted(text))
            }),
        };
        let location = entry("location").unwrap_or_default();
        let size = u64::try_from(size).map_err(|error| error.to_string())?;
        let length = number("length")?.unwrap_or(size);
        if length != size {
            return Err(format!("has {length} bytes of external data, but its shape needs {size}"));
        }
        let offset = number("offset")?.unwrap_or(0);
        self.range(location, offset, size)
            .map_err(|problem| format!("has external data in {}, {problem}", quoted(location)))
    }

    fn range(&self, location: &str, offset: u64, size: u64) -> Checked<Vec<u8>> {
        let path = self.locate(location)?;
        let unreadable = |error: std::io::Error| format!("which cannot be read: {error}");
        let metadata = fs::metadata(&path).map_err(unreadable)?;
        if !metadata.is_file() {
            return Err("which is not a file".into());
        }
        let len = metadata.len();
        if offset.checked_add(size).is_none_or(|end| end > len) {
            return Err(format!("{size} bytes from {offset} on, but the file has {len}"));
        }
        let left = self.left.get().checked_sub(size);
        self.left.set(left.ok_or_else(|| format!("which makes more than {MAX_EXTERNAL} bytes together"))?);
        let mut file = File::open(&path).map_err(unreadable)?;
        file.seek(SeekFrom::Start(offset)).map_err(unreadable)?;
        exactly(&mut file, size).map_err(unreadable)
    }

    /// The file at a location inside the folder; neither its name nor a link may lead out.
    fn locate(&self, location: &str) -> Checked<PathBuf> {
        let Some(folder) = &self.folder else {
            return Err("outside the file; read the model from its folder, by its path".into());
        };
        let location = Path::new(location);
        let plain = location.components().all(|component| matches!(component, Component::Normal(_)));
        if !plain || location.as_os_str().is_empty() {
            return Err("which is not a path inside the model's folder".into());
        }
        let unreadable = |error: std::io::Error| format!("which cannot be read: {error}");
        let folder = folder.canonicalize().map_err(unreadable)?;
        let path = folder.join(location).canonicalize().map_err(unreadable)?;
        if !path.starts_with(&folder) {
            return Err("which is a link that leaves the model's folder".into());
        }
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::{Kind, Tensor};

    use super::*;
    use crate::{
        attributes::Attribute,
        graph::{
            Side,
            samples::{floats, integer, model, node, opset},
        },
        proto::{EXTERNAL, FunctionProto, NodeProto, TensorProto},
    };

    /// A model that holds a bit of everything.
    fn example() -> ModelProto {
        let body = vec![node("Neg", &["a"], &["h"]), node("Add", &["a", "h"], &["b"])];
        let function = FunctionProto {
            name: Some("F".into()),
            domain: Some("f".into()),
            input: vec!["a".into()],
            output: vec!["b".into()],
            opset_import: vec![opset("", 17)],
            attribute_proto: vec![integer("k", 1)],
            node: body,
            ..Default::default()
        };
        let constant =
            NodeProto { attribute: vec![integer("value_int", 3)], ..node("Constant", &[], &["c"]) };
        let call = NodeProto { domain: Some("f".into()), ..node("F", &["x"], &["h"]) };
        let mut model = model(vec![constant, call, node("Op", &["h", "w", "c"], &["y"])]);
        model.functions = vec![function];
        model
    }

    fn parsed(model: &ModelProto) -> Result<Graph> {
        from_bytes(&model.encode_to_vec(), Path::new("m.onnx"), None)
    }

    fn problem(bytes: &[u8]) -> String {
        let problem = from_bytes(bytes, Path::new("m.onnx"), None).unwrap_err().to_string();
        assert!(problem.starts_with("m.onnx: "), "{problem}");
        problem
    }

    #[test]
    fn a_graph_comes_back_from_its_file() {
        let mut graph = parsed(&example()).unwrap();
        graph.inputs[0].shape = Some(vec![Side::Named("N".into()), Side::Fixed(3), Side::Unknown]);
        for kind in [Kind::Double, Kind::Half, Kind::Int64, Kind::Bool] {
            let value = Tensor::from_slice(&[1_i64, 0, 1, 0, 1, 0]).reshape([2, 3]).to_kind(kind);
            graph.constants.insert(format!("of {kind:?}"), value);
        }
        let op = graph.nodes.last_mut().unwrap();
        op.attributes.insert("alpha", Attribute::Float(0.5));
        op.attributes.insert("pads", Attribute::Ints(vec![0, -1]));
        op.attributes.insert("mode", Attribute::Text("é".into()));
        op.attributes.insert("value", Attribute::Tensor(Tensor::from(2.5_f32)));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/m.onnx");
        write(&graph, &path, &[("key".into(), "value".into())]).unwrap();
        let back = read(&path).unwrap();
        assert_eq!(back.producer, "talion");
        graph.producer.clone_from(&back.producer);
        assert_eq!(format!("{graph:?}"), format!("{back:?}"));
        assert_eq!(graph.constants, back.constants);
        let bytes = fs::read(&path).unwrap();
        let model: ModelProto = proto::decode(bytes.into(), Schema::Model).unwrap();
        assert_eq!((model.ir_version(), model.producer_version()), (8, env!("CARGO_PKG_VERSION")));
        assert_eq!((model.metadata_props[0].key(), model.metadata_props[0].value()), ("key", "value"));
    }

    #[test]
    fn a_graph_that_cannot_be_written_leaves_the_file_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        fs::write(&path, "before").unwrap();
        let mut graph = parsed(&example()).unwrap();
        // One number, expanded to more than an ONNX file holds.
        let large = Tensor::from_slice(&[1.0_f32]).expand([1_i64 << 30], false);
        graph.constants.insert("large".into(), large);
        let problem = write(&graph, &path, &[]).unwrap_err().to_string();
        assert!(
            problem.contains("m.onnx: cannot be written: the graph takes more than 2147483647"),
            "{problem}"
        );
        graph.constants.clear();
        let problem = write(&graph, &path, &[]).unwrap_err().to_string();
        assert!(problem.contains("which nothing computes"), "{problem}");
        assert_eq!(fs::read(&path).unwrap(), b"before");
    }

    #[test]
    fn other_files_are_recognised() {
        let mut safetensors = 2_u64.to_le_bytes().to_vec();
        safetensors.extend(b"{}");
        let files: [(&[u8], &str); 7] = [
            (b"PK\x03\x04rest", "PyTorch writes for checkpoints and TorchScript"),
            (b"\x80\x02}q\x00.", "pickle"),
            (&safetensors, "safetensors file"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
            (b"<!DOCTYPE html>", "web page"),
            (b"", "not an ONNX file"),
            (b"Hello!", "not an ONNX file"),
        ];
        for (bytes, expected) in files {
            let found = problem(bytes);
            assert!(found.contains(expected), "{found}");
        }
    }

    #[test]
    fn files_that_cannot_be_read_are_named() {
        let folder = tempfile::tempdir().unwrap();
        for (path, expected) in
            [(folder.path().to_owned(), "is not a file"), (folder.path().join("n"), "n: ")]
        {
            let problem = read(&path).unwrap_err().to_string();
            assert!(problem.contains(expected), "{problem}");
        }
        // A hole as large as the limit takes no room on disk.
        let path = folder.path().join("large.onnx");
        File::create(&path).unwrap().set_len(MAX_FILE + 1).unwrap();
        let problem = read(&path).unwrap_err().to_string();
        assert!(problem.contains("has 4294967297 bytes"), "{problem}");
    }

    #[test]
    fn every_cut_is_found_or_harmless() {
        let whole = example().encode_to_vec();
        for cut in 0..whole.len() {
            let _ = from_bytes(&whole[..cut], Path::new("m.onnx"), None);
        }
        // Every part of the graph is cut off in the middle.
        let graph = example().graph.unwrap().encode_to_vec();
        for cut in 1..graph.len() {
            let bytes =
                [&b"\x08\x08\x3a"[..], &[0x80 | (graph.len() % 128) as u8, (graph.len() / 128) as u8]];
            assert!(
                problem(&[&bytes.concat()[..], &graph[..cut]].concat()).contains("not an ONNX file"),
                "{cut}"
            );
        }
    }

    /// A model whose constant `w` (two numbers) lies in `weights.bin`, and the folder of both.
    struct Outside {
        folder: tempfile::TempDir,
        model: ModelProto,
    }

    impl Outside {
        fn new(entries: &[(&str, &str)]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let inner = folder.path().join("model");
            fs::create_dir(&inner).unwrap();
            let weights: Vec<u8> = [9.0_f32, 3.0, 4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
            for place in ["model/weights.bin", "secret.bin"] {
                fs::write(folder.path().join(place), &weights).unwrap();
            }
            let entry = |&(key, value): &(&str, &str)| StringStringEntryProto {
                key: Some(key.into()),
                value: Some(value.into()),
            };
            let mut model = model(vec![node("Add", &["x", "w"], &["y"])]);
            let w = TensorProto {
                raw_data: None,
                data_location: Some(EXTERNAL),
                external_data: entries.iter().map(entry).collect(),
                ..floats("w", &[0.0, 0.0])
            };
            model.graph.as_mut().unwrap().initializer = vec![w];
            Self { folder, model }
        }

        fn read(&self) -> Result<Graph> {
            let path = self.folder.path().join("model/m.onnx");
            fs::write(&path, self.model.encode_to_vec()).unwrap();
            read(&path)
        }

        fn problem(&self) -> String {
            let problem = self.read().unwrap_err().to_string();
            assert!(problem.contains("tensor \"w\" has"), "{problem}");
            problem
        }
    }

    #[test]
    fn external_data_is_read_from_its_place() {
        let whole = [("location", "weights.bin"), ("offset", "4"), ("length", "8"), ("checksum", "x")];
        for entries in [&whole[..], &whole[..2]] {
            let graph = Outside::new(entries).read().unwrap();
            assert_eq!(graph.constants["w"], Tensor::from_slice(&[3.0_f32, 4.0]));
        }
        let graph = Outside::new(&whole[..1]).read().unwrap();
        assert_eq!(graph.constants["w"], Tensor::from_slice(&[9.0_f32, 3.0]));
        let bytes = Outside::new(&whole).model.encode_to_vec();
        assert!(problem(&bytes).contains("outside the file; read the model from its folder"));
    }

    #[test]
    fn external_data_stays_in_the_folder() {
        let outside = Outside::new(&[]);
        let absolute = outside.folder.path().join("secret.bin");
        for location in [
            "../secret.bin",
            "a/../../secret.bin",
            "./weights.bin",
            "..",
            ".",
            "",
            absolute.to_str().unwrap(),
        ] {
            let problem = Outside::new(&[("location", location)]).problem();
            assert!(problem.contains("not a path inside the model's folder"), "{location}: {problem}");
        }
        assert!(outside.problem().contains("not a path inside"));
        assert!(Outside::new(&[("location", "none.bin")]).problem().contains("cannot be read"));
        assert!(Outside::new(&[("location", "a\0b")]).problem().contains("cannot be read"));
    }

    #[cfg(unix)]
    #[test]
    fn links_may_not_leave_the_folder() {
        use std::os::unix::fs::symlink;

        for (location, target) in [
            ("l", "../secret.bin"),
            ("l", "sub/../../secret.bin"),
            ("up/secret.bin", ".."),
            ("l", "/dev/zero"),
        ] {
            let outside = Outside::new(&[("location", location)]);
            let folder = outside.folder.path().join("model");
            fs::create_dir(folder.join("sub")).unwrap();
            symlink(target, folder.join(location.split('/').next().unwrap())).unwrap();
            assert!(outside.problem().contains("link that leaves"), "{location} {target}");
        }
        let inside = Outside::new(&[("location", "l")]);
        symlink("weights.bin", inside.folder.path().join("model/l")).unwrap();
        assert!(inside.read().is_ok());
        let folder = Outside::new(&[("location", "sub")]);
        fs::create_dir(folder.folder.path().join("model/sub")).unwrap();
        assert!(folder.problem().contains("not a file"));
    }

    #[test]
    fn external_ranges_are_checked_against_shape_and_file() {
        let with = |offset, length| {
            Outside::new(&[("location", "weights.bin"), ("offset", offset), ("length", length)]).problem()
        };
        assert!(with("8", "8").contains("8 bytes from 8 on, but the file has 12"));
        assert!(with("18446744073709551615", "8").contains("but the file has 12"));
        assert!(with("0", "12").contains("has 12 bytes of external data, but its shape needs 8"));
        assert!(with("-1", "8").contains("offset \"-1\", which is no number"));
        assert!(with("0", "8x").contains("length \"8x\", which is no number"));
        let mut large = Outside::new(&[("location", "weights.bin")]);
        large.model.graph.as_mut().unwrap().initializer[0].dims = vec![1 << 40];
        assert!(large.problem().contains("4398046511104 bytes from 0 on"));
    }

    #[test]
    fn external_data_is_limited_in_total() {
        let folder = tempfile::tempdir().unwrap();
        File::create(folder.path().join("hole")).unwrap().set_len(MAX_EXTERNAL * 2).unwrap();
        let external = External::new(Some(folder.path()));
        let entries = [StringStringEntryProto { key: Some("location".into()), value: Some("hole".into()) }];
        let most = usize::try_from(MAX_EXTERNAL).unwrap();
        assert!(external.load(&entries, most + 1).unwrap_err().contains("makes more than 17179869184"));
        assert_eq!(external.load(&entries, 1000).unwrap(), [0; 1000]);
        assert!(external.load(&entries, most - 999).unwrap_err().contains("makes more than"));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = from_bytes(&bytes, Path::new("m.onnx"), None);
        }

        #[test]
        fn damaged_files_never_panic(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(), inserted in proptest::collection::vec(any::<u8>(), 0..8)
        ) {
            let mut bytes = example().encode_to_vec();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let _ = from_bytes(&bytes, Path::new("m.onnx"), None);
            let cut = cut.index(bytes.len());
            drop(bytes.splice(cut..cut, inserted));
            if let Ok(graph) = from_bytes(&bytes, Path::new("m.onnx"), None) {
                let _ = serialise(&graph, &[]);
            }
        }
    }
}
