//! Reads the tensors of an archive that PyTorch's `torch.save` wrote (version 1.6 or newer).

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, Cursor, Read, Seek},
    path::Path,
};

use talion_core::{Error, Result, Tensors};
use tch::{Device, Kind, Tensor};
use zip::{CompressionMethod, ZipArchive};

use super::{
    archive::{self, MAX_ENTRIES},
    pickle::{self, Heap, Object, Step, Value, View},
};

const MAX_PICKLE: u64 = 64 << 20;
/// The longest name of a tensor, and how deep dicts may lie within each other.
const MAX_NAME: usize = 1024;
const MAX_DEPTH: usize = 64;
/// Of a checkpoint's other values, so many are mentioned.
const MAX_OTHER: usize = 1000;
/// Tensors may share elements, so together they can be larger than the file; tied weights rarely double it.
const MAX_GROWTH: u64 = 4;

/// Where checkpoints keep the state dict among other things, the likeliest first.
const HOLDERS: [&str; 5] = ["state_dict", "model_state_dict", "model", "net", "ema"];

/// The tensors of a PyTorch checkpoint.
#[derive(Debug)]
pub struct StateDict {
    /// The tensors by name, contiguous and on the CPU; dicts within dicts are flattened, their names joined by dots.
    pub tensors: Tensors,
    /// What else the checkpoint holds, each with a word on what it is: `epoch (90)`.
    pub other: Vec<String>,
}

impl StateDict {
    /// Reads a file that `torch.save` wrote: a dict of tensors, or a dict with such a dict under `state_dict`,
    /// `model_state_dict`, `model`, `net` or `ema`. No code from the file is run.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, is compressed, was written on a big-endian machine, or if no tensors
    /// are found in these places. A Python object that tensors would be made into is an error that names its class.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        read(BufReader::new(file), length).map_err(|problem| Error::file(path, problem))
    }

    /// As [`StateDict::read`], from memory; `origin` is named in errors.
    ///
    /// # Errors
    /// As [`StateDict::read`].
    pub fn from_bytes(bytes: &[u8], origin: &Path) -> Result<Self> {
        read(Cursor::new(bytes), bytes.len() as u64).map_err(|problem| Error::file(origin, problem))
    }
}

fn read<R: Read + Seek>(reader: R, length: u64) -> Step<StateDict> {
    let archive = archive::open(reader)?;
    let root = root(&archive)?;
    let mut entries = Entries { archive, root, length };
    match entries.read("byteorder", 16)?.as_deref() {
        // versions before 2.1 did not write it
        None | Some(b"little") => {}
        Some(b"big") => {
            return Err("was saved on a big-endian machine; save it on a little-endian one".into());
        }
        Some(_) => return Err("does not say the order of its bytes".into()),
    }
    let bytes = entries.read("data.pkl", MAX_PICKLE)?.ok_or("lacks data.pkl")?;
    let (heap, value) = pickle::read(&bytes).map_err(|problem| format!("has a data.pkl that {problem}"))?;
    let found = Found::new(&heap, value)?;
    let tensors = entries.load(&found.tensors)?;
    Ok(StateDict { tensors, other: found.other })
}

/// The one folder that all entries of the archive are in.
fn root<R: Read + Seek>(archive: &ZipArchive<R>) -> Step<String> {
    let mut roots = archive.file_names().filter_map(|name| {
        let name = name.ok()?;
        let root = name.strip_suffix("/data.pkl")?;
        (!root.contains('/')).then(|| root.to_owned())
    });
    match (roots.next(), roots.next()) {
        (Some(root), None) => Ok(root),
        (None, _) => Err("is a zip archive without a data.pkl, so not one that torch.save wrote".into()),
        (Some(_), Some(_)) => Err("holds more than one data.pkl".into()),
    }
}

/// What the pickle holds, before any element has been read.
struct Found<'h, 'a> {
    tensors: Vec<(String, &'h View<'a>)>,
    other: Vec<String>,
    /// Entries seen, so that dicts that share their parts come to an end.
    seen: usize,
}

type Entry<'a> = (Value<'a>, Value<'a>);

impl<'h, 'a> Found<'h, 'a> {
    fn new(heap: &'h Heap<'a>, root: Value<'a>) -> Step<Self> {
        let mut found = Self { tensors: Vec::new(), other: Vec::new(), seen: 0 };
        let entries = heap.dict(root).ok_or_else(|| no_dict(heap, root))?;
        let (holder, chosen) = choose(heap, entries, 0).ok_or_else(|| no_tensors(heap, entries))?;
        if let Some(holder) = holder {
            for &(key, value) in entries.iter().filter(|entry| !is(entry.0, holder)).take(MAX_OTHER) {
                found.mention(heap, name(heap, key), value);
            }
        }
        found.flatten(heap, chosen, "", 0)?;
        Ok(found)
    }

    fn mention(&mut self, heap: &Heap<'a>, name: String, value: Value<'a>) {
        self.other.push(format!("{name} ({})", heap.describe(value)));
    }

    fn flatten(
        &mut self,
        heap: &'h Heap<'a>,
        entries: &'h [Entry<'a>],
        folder: &str,
        depth: usize,
    ) -> Step<()> {
        if depth > MAX_DEPTH {
            return Err(format!("holds dicts nested deeper than {MAX_DEPTH}"));
        }
        for &(key, value) in entries {
            self.seen += 1;
            if self.seen > MAX_ENTRIES {
                return Err(format!("holds more than {MAX_ENTRIES} values"));
            }
            let name = format!("{folder}{}", name(heap, key));
            if name.len() > MAX_NAME {
                return Err(format!("holds a name of more than {MAX_NAME} bytes"));
            }
            match heap.get(value) {
                Some(Object::Tensor(view)) => self.tensors.push((name, view.as_ref())),
                Some(Object::Dict(inner)) => self.flatten(heap, inner, &format!("{name}."), depth + 1)?,
                Some(Object::Opaque { class, tensors: true }) => {
                    return Err(format!(
                        "holds {name}, which {class} would make of tensors; talion runs no code from files. \
                         Save plain tensors, or export the model to ONNX"
                    ));
                }
                _ => self.mention(heap, name, value),
            }
        }
        Ok(())
    }
}

/// The dict of tensors, and the key of the outermost dict that holds it, if it is not itself the one.
fn choose<'h, 'a>(
    heap: &'h Heap<'a>,
    entries: &'h [Entry<'a>],
    depth: usize,
) -> Option<(Option<&'static str>, &'h [Entry<'a>])> {
    for holder in HOLDERS {
        // a key may be set twice; as in Python, the last one counts
        let value = entries.iter().rev().find(|entry| is(entry.0, holder)).map(|entry| entry.1);
        if let Some(inner) = value.and_then(|value| heap.dict(value))
            && depth < 2
            && let Some((_, chosen)) = choose(heap, inner, depth + 1)
        {
            return Some((Some(holder), chosen));
        }
    }
    let tensor = |entry: &Entry<'a>| {
        matches!(heap.get(entry.1), Some(Object::Tensor(_) | Object::Opaque { tensors: true, .. }))
    };
    entries.iter().any(tensor).then_some((None, entries))
}

fn is(key: Value<'_>, name: &str) -> bool {
    matches!(key, Value::Text(text) if text == name)
}

fn name<'a>(heap: &Heap<'a>, key: Value<'a>) -> String {
    match key {
        // one sign more than a name may have, so that it is found to be too long
        Value::Text(text) => text.chars().take(MAX_NAME + 1).collect(),
        _ => heap.describe(key),
    }
}

fn no_dict<'a>(heap: &Heap<'a>, root: Value<'a>) -> String {
    let found = heap.describe(root);
    match heap.get(root) {
        Some(Object::Opaque { .. }) => format!(
            "holds {found}, not tensors: its class is code, and talion runs no code from files. Save \
             model.state_dict(), or export the model to ONNX or TorchScript"
        ),
        _ => format!("holds {found}, not a dict of tensors; save model.state_dict()"),
    }
}

fn no_tensors<'a>(heap: &Heap<'a>, entries: &[Entry<'a>]) -> String {
    const SHOWN: usize = 12;
    let show = |(key, value): &Entry<'a>| format!("{} ({})", name(heap, *key), heap.describe(*value));
    let shown: Vec<_> = entries.iter().take(SHOWN).map(show).collect();
    let more = entries.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(
        "holds no tensors, neither itself nor under {}. It holds {}{more}; save the dict of tensors alone",
        HOLDERS.join(", "),
        if shown.is_empty() { "nothing".to_owned() } else { shown.join(", ") },
    )
}

/// The entries of the archive.
struct Entries<R> {
    archive: ZipArchive<R>,
    root: String,
    /// Bytes of the whole file.
    length: u64,
}

impl<R: Read + Seek> Entries<R> {
    /// A whole entry; `None` if there is none of this name.
    fn read(&mut self, name: &str, most: u64) -> Step<Option<Vec<u8>>> {
        let broken = |error: zip::result::ZipError| format!("has a broken entry {name} ({error})");
        let path = format!("{}/{name}", self.root);
        let Some(index) = self.archive.index_for_name_raw(path.as_bytes()) else { return Ok(None) };
        let (size, plain) = {
            let entry = self.archive.by_index_data(index).map_err(broken)?;
            (entry.size(), entry.compression() == CompressionMethod::Stored && !entry.encrypted())
        };
        // PyTorch never compresses, and with that no entry is larger than the file
        if !plain {
            return Err(format!("has a compressed entry {name}; save it again with torch.save"));
        }
        let most = most.min(self.length);
        if size > most {
            return Err(format!("has an entry {name} of {size} bytes; it may have {most}"));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).map_err(|_| "is too large")?);
        let entry = self.archive.by_index(index).map_err(broken)?;
        // one byte more than there should be, so that the reader comes to the end and checks the checksum
        entry
            .take(size.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| format!("has a broken entry {name} ({error})"))?;
        if bytes.len() as u64 != size {
            return Err(format!("has an entry {name} that is cut short"));
        }
        Ok(Some(bytes))
    }

    /// The elements of the tensors. Each storage is read once, and only one at a time is held.
    fn load(&mut self, views: &[(String, &View<'_>)]) -> Step<Tensors> {
        let mut storages = BTreeMap::<&str, Vec<_>>::new();
        for (name, view) in views {
            storages.entry(view.storage.key).or_default().push((name, *view));
        }
        let mut left = self.length.saturating_mul(MAX_GROWTH).saturating_add(1 << 20);
        let mut tensors = Tensors::new();
        for (key, views) in storages {
            // entries may lie over each other, so what is read counts too
            let bytes = self.read(&format!("data/{key}"), left)?;
            let bytes = bytes.ok_or_else(|| format!("lacks data/{key}, which tensors of it need"))?;
            left = left.saturating_sub(bytes.len() as u64);
            for (name, view) in views {
                let problem = |problem: String| format!("has a tensor {name} that {problem}");
                let span = Span::new(view, bytes.len() as u64).map_err(problem)?;
                left = left.checked_sub(span.cost()).ok_or("repeats its elements too often")?;
                let tensor = span.tensor(view, &bytes).map_err(|error| problem(error.to_string()))?;
                tensors.insert(name.clone(), tensor);
            }
        }
        Ok(tensors)
    }
}

/// The part of a storage that a tensor's elements lie in, checked.
struct Span {
    /// Places of the first byte, and of the one behind the last.
    first: usize,
    end: usize,
    /// Elements from the first to the last, and elements of the tensor.
    elements: i64,
    count: i64,
    /// Bytes of an element.
    size: usize,
}

impl Span {
    fn new(view: &View<'_>, available: u64) -> Step<Self> {
        if view.storage.bytes() != Some(available) {
            return Err(format!("names a storage of another size than the {available} bytes there are"));
        }
        if view.shape.len() != view.strides.len() || view.shape.iter().chain(&view.strides).any(|&n| n < 0) {
            return Err(format!("has shape {:?} and strides {:?}", view.shape, view.strides));
        }
        let size = view.kind.elt_size_in_bytes();
        let reach = || format!("reaches beyond its storage of {available} bytes");
        let count = view.shape.iter().try_fold(1_i64, |count, &side| count.checked_mul(side.max(1)));
        let count = count.ok_or_else(reach)?;
        if view.shape.contains(&0) {
            return Ok(Self { first: 0, end: 0, elements: 0, count: 0, size });
        }
        let far = view.shape.iter().zip(&view.strides).try_fold(0_i64, |far, (side, stride)| {
            far.checked_add(side.checked_sub(1)?.checked_mul(*stride)?)
        });
        let place = |element: i64| usize::try_from(element).ok()?.checked_mul(size);
        let bounds = || {
            let elements = far?.checked_add(1)?;
            let first = place(view.offset)?;
            let end = first.checked_add(place(elements)?)?;
            (u64::try_from(end).ok()? <= available).then_some((first, end, elements))
        };
        let (first, end, elements) = bounds().ok_or_else(reach)?;
        Ok(Self { first, end, elements, count, size })
    }

    /// Bytes copied, or held in the end.
    fn cost(&self) -> u64 {
        let elements = u64::try_from(self.elements.max(self.count)).unwrap_or(u64::MAX);
        elements.saturating_mul(self.size as u64)
    }

    fn tensor(&self, view: &View<'_>, bytes: &[u8]) -> std::result::Result<Tensor, tch::TchError> {
        let part = bytes.get(self.first..self.end).unwrap_or_default();
        if part.is_empty() {
            return Tensor::f_zeros(view.shape.as_slice(), (view.kind, Device::Cpu));
        }
        // libtorch takes a truth value that is neither 0 nor 1 for undefined behaviour
        let flat = if view.kind == Kind::Bool {
            let truths: Vec<u8> = part.iter().map(|&byte| u8::from(byte != 0)).collect();
            Tensor::f_from_data_size(&truths, &[self.elements], view.kind)?
        } else {
            Tensor::f_from_data_size(part, &[self.elements], view.kind)?
        };
        flat.f_as_strided(view.shape.as_slice(), view.strides.as_slice(), 0_i64)?.f_contiguous()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::import::testing::*;

    fn state(bytes: &[u8]) -> Result<StateDict> {
        StateDict::from_bytes(bytes, Path::new("net.pt"))
    }

    #[track_caller]
    fn refused(bytes: &[u8], words: &str) {
        let error = state(bytes).unwrap_err().to_string();
        assert!(error.starts_with("net.pt: ") && error.contains(words), "{error}");
    }

    fn range(count: u8) -> Vec<u8> {
        bytes_of(&(0..count).map(f32::from).collect::<Vec<_>>())
    }

    fn numbers(tensor: &Tensor) -> Vec<f64> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    #[test]
    fn tensors_of_any_layout_and_type_are_read() {
        let float = |offset, shape: &[i64], strides: &[i64]| {
            view(storage("FloatStorage", "0", 12), offset, shape, strides)
        };
        let parameter = reduce(
            &global("torch._utils", "_rebuild_parameter"),
            &[float(0, &[2, 6], &[6, 1]), vec![0x88], b"}".to_vec()],
        );
        let third = [
            storage("FloatStorage", "0", 12),
            int(3),
            tuple(&[int(2)]),
            tuple(&[int(1)]),
            vec![0x89],
            b"}".to_vec(),
            global("torch", "float32"),
        ];
        let values = ordered_dict(&[
            ("whole", float(0, &[3, 4], &[4, 1])),
            ("turned", float(0, &[4, 3], &[1, 4])),
            ("part", float(5, &[2, 2], &[4, 2])),
            ("scalar", float(11, &[], &[])),
            ("repeated", float(2, &[2, 2], &[0, 1])),
            ("empty", float(0, &[0, 7], &[7, 1])),
            ("parameter", parameter),
            ("third", reduce(&global("torch._utils", "_rebuild_tensor_v3"), &third)),
            ("long", view(storage("LongStorage", "1", 1), 0, &[], &[])),
            ("bool", view(storage("BoolStorage", "2", 3), 0, &[3], &[1])),
        ]);
        let file = archive(
            &values,
            &[("0", range(12)), ("1", 7_i64.to_le_bytes().to_vec()), ("2", vec![0, 1, 255])],
        );
        let StateDict { tensors, other } = state(&file).unwrap();
        assert!(other.is_empty(), "{other:?}");
        assert_eq!(tensors.len(), 10);
        let whole = Tensor::arange(12_i64, (Kind::Float, Device::Cpu)).view([3, 4]);
        assert_eq!(tensors["whole"], whole);
        assert_eq!(tensors["turned"], whole.tr());
        assert_eq!(numbers(&tensors["part"]), [5.0, 7.0, 9.0, 11.0]);
        assert_eq!((numbers(&tensors["scalar"]), tensors["scalar"].dim()), (vec![11.0], 0));
        assert_eq!(numbers(&tensors["repeated"]), [2.0, 3.0, 2.0, 3.0]);
        assert_eq!(tensors["empty"].size(), [0, 7]);
        assert_eq!(tensors["parameter"], whole.view([2, 6]));
        assert_eq!(numbers(&tensors["third"]), [3.0, 4.0]);
        assert_eq!(tensors["long"], Tensor::from(7_i64));
        assert_eq!(numbers(&tensors["bool"]), [0.0, 1.0, 1.0]);
        assert!(tensors.values().all(|tensor| tensor.is_contiguous() && !tensor.requires_grad()));
    }

    #[test]
    fn a_whole_state_dict_comes_back() {
        let mut tensors = Tensors::new();
        let shapes: [(&str, &[i64]); 3] = [("conv.weight", &[2, 3, 3, 3]), ("bn.bias", &[4]), ("scale", &[])];
        for (name, shape) in shapes {
            tensors.insert(name.into(), Tensor::randn(shape, (Kind::Float, Device::Cpu)));
        }
        assert_eq!(state(&saved(&tensors)).unwrap().tensors, tensors);
    }

    #[test]
    fn checkpoints_hold_the_dict_in_a_known_place() {
        let inner = |key: &str| ordered_dict(&[("w", floats(key, &[2]))]);
        let storages = [("0", range(2)), ("1", range(2))];
        for holder in HOLDERS {
            let value = dict(&[("epoch", int(3)), (holder, inner("0")), ("optimizer", dict(&[]))]);
            let read = state(&archive(&value, &storages)).unwrap();
            assert_eq!(Vec::from_iter(read.tensors.keys()), ["w"]);
            assert_eq!(read.other, ["epoch (3)", "optimizer (a dict of 0, 0 of them tensors)"]);
        }
        // the likelier place first, one within another, and scalars beside it
        let value = dict(&[("ema", inner("0")), ("state_dict", dict(&[("v", floats("1", &[2]))]))]);
        assert_eq!(Vec::from_iter(state(&archive(&value, &storages)).unwrap().tensors.keys()), ["v"]);
        let value = dict(&[("best", floats("0", &[])), ("model", dict(&[("state_dict", inner("1"))]))]);
        let storages = [("0", range(1)), ("1", range(2))];
        assert_eq!(Vec::from_iter(state(&archive(&value, &storages)).unwrap().tensors.keys()), ["w"]);
        // dicts of tensors within the dict of tensors
        let value =
            dict(&[("w", floats("0", &[])), ("head", dict(&[("w", floats("1", &[2])), ("n", int(1))]))]);
        let read = state(&archive(&value, &storages)).unwrap();
        assert_eq!(Vec::from_iter(read.tensors.keys()), ["head.w", "w"]);
        assert_eq!(read.other, ["head.n (1)"]);
    }

    #[test]
    fn what_holds_no_tensors_says_what_it_holds() {
        let storages = [("0", range(2))];
        let generator = dict(&[("generator", dict(&[("w", floats("0", &[2]))])), ("epoch", int(3))]);
        refused(&archive(&generator, &storages), "generator (a dict of 1, 1 of them tensors), epoch (3)");
        let many: Vec<_> = (0..20).map(|index| format!("key{index}")).collect();
        let many: Vec<_> = many.iter().map(|key| (key.as_str(), int(1))).collect();
        refused(&archive(&dict(&many), &[]), "key11 (1) and 8 more");
        refused(&archive(&dict(&[]), &[]), "holds nothing");
        refused(&archive(&int(3), &[]), "holds 3, not a dict of tensors");
        let module =
            [&global("models", "Net")[..], b")\x81", &dict(&[("w", floats("0", &[2]))]), b"b"].concat();
        refused(&archive(&module, &storages), "models.Net, not tensors");
        refused(&archive(&dict(&[("model", module)]), &storages), "model (a Python object, models.Net)");
    }

    #[test]
    fn other_code_is_named_and_never_called() {
        let flag = tempfile::tempdir().unwrap();
        let target = flag.path().join("called");
        let call = reduce(&global("os", "mkdir"), &[text(target.to_str().unwrap())]);
        // beside the tensors it is only mentioned
        let value = dict(&[("w", floats("0", &[2])), ("extra", call.clone())]);
        let read = state(&archive(&value, &[("0", range(2))])).unwrap();
        assert_eq!(read.other, ["extra (a Python object, os.mkdir)"]);
        // as the whole file, or with tensors to make something of, it is refused
        refused(&archive(&call, &[]), "os.mkdir");
        let wrapped = reduce(&global("torch._utils", "_rebuild_qtensor"), &[floats("0", &[2])]);
        let value = dict(&[("v", floats("0", &[2])), ("w", wrapped)]);
        refused(&archive(&value, &[("0", range(2))]), "w, which torch._utils._rebuild_qtensor would make");
        let value = dict(&[("w", view(storage("QInt8Storage", "0", 8), 0, &[8], &[1]))]);
        refused(&archive(&value, &[("0", range(2))]), "torch.QInt8Storage");
        assert!(!target.exists());
    }

    #[test]
    fn tensors_beyond_their_storage_are_refused() {
        let cases: &[(i64, &[i64], &[i64])] = &[
            (0, &[13], &[1]),
            (1, &[12], &[1]),
            (0, &[2, 2], &[11, 1]),
            (-1, &[2], &[1]),
            (12, &[], &[]),
            (0, &[-1], &[1]),
            (0, &[2], &[-1]),
            (0, &[2, 2], &[1]),
            (i64::MAX, &[2], &[1]),
            (0, &[i64::MAX], &[i64::MAX]),
            (0, &[i64::MAX, i64::MAX], &[0, 0]),
            (0, &[0, i64::MAX, i64::MAX], &[1, 1, 1]),
            (1 << 62, &[1], &[1]),
            // no element is out of reach, but they are too many
            (0, &[1 << 40], &[0]),
        ];
        for (offset, shape, strides) in cases {
            let value = dict(&[("w", view(storage("FloatStorage", "0", 12), *offset, shape, strides))]);
            refused(&archive(&value, &[("0", range(12))]), "");
        }
    }

    #[test]
    fn sizes_that_lie_are_refused() {
        let value = dict(&[("w", floats("0", &[12]))]);
        for count in [0, 11, 13] {
            refused(&archive(&value, &[("0", range(count))]), "another size");
        }
        refused(&archive(&value, &[("1", range(12))]), "lacks data/0");
        for elements in [-1, i64::MAX] {
            let value = dict(&[("w", view(storage("FloatStorage", "0", elements), 0, &[1], &[1]))]);
            refused(&archive(&value, &[("0", range(12))]), "another size");
        }
        // many tensors that repeat one storage
        let names: Vec<_> = (0..200).map(|index| format!("w{index}")).collect();
        let values: Vec<_> = names.iter().map(|name| (name.as_str(), floats("0", &[65_536]))).collect();
        let file = archive(&dict(&values), &[("0", vec![0; 65_536 * 4])]);
        refused(&file, "too often");
    }

    /// Every header of the archive with the two bytes at `local` and `central` replaced.
    fn patched(mut file: Vec<u8>, local: usize, central: usize, value: [u8; 2]) -> Vec<u8> {
        for (signature, offset) in [(b"PK\x03\x04", local), (b"PK\x01\x02", central)] {
            let headers = file.windows(4).enumerate().filter(|(_, part)| part == signature);
            for place in headers.map(|(place, _)| place + offset).collect::<Vec<_>>() {
                file[place..place + 2].copy_from_slice(&value);
            }
        }
        file
    }

    #[test]
    fn archives_that_torch_does_not_write_are_refused() {
        let value = dict(&[("w", floats("0", &[2]))]);
        let whole = archive(&value, &[("0", range(2))]);
        assert!(state(&whole).is_ok());
        // compressed with deflate; encrypted
        refused(&patched(whole.clone(), 8, 10, [8, 0]), "compressed entry");
        refused(&patched(whole.clone(), 6, 8, [1, 0]), "compressed entry");
        refused(b"PK\x03\x04", "zip archive");
        refused(b"", "zip archive");
        refused(&zip(&[("a/b.txt", b"")]), "without a data.pkl");
        let pickled = pickle(&value);
        refused(&zip(&[("a/data.pkl", &pickled), ("b/data.pkl", &pickled)]), "more than one");
        refused(&zip(&[("a/data.pkl", &pickled), ("a/byteorder", b"big")]), "big-endian");
        refused(&zip(&[("a/data.pkl", &pickled), ("a/byteorder", b"middle")]), "order of its bytes");
        // a damaged element is noticed by its checksum
        let place = whole.windows(4).position(|part| part == 1.0_f32.to_le_bytes()).unwrap();
        let mut damaged = whole;
        damaged[place] ^= 1;
        refused(&damaged, "broken entry data/0");
    }

    #[test]
    fn cyclic_and_repeating_dicts_end() {
        // a dict that is its own entry, under every name that is looked into
        let mut cyclic = b"}q\x00(".to_vec();
        for key in HOLDERS {
            cyclic.extend([&text(key)[..], b"h\x00"].concat());
        }
        let closed = [&cyclic[..], b"u"].concat();
        refused(&archive(&closed, &[]), "holds no tensors");
        let tensor = [&cyclic[..], &text("w"), &floats("0", &[2]), b"u"].concat();
        refused(&archive(&tensor, &[("0", range(2))]), "");
        // 2^40 paths to one tensor
        let mut doubling = [&dict(&[("w", floats("0", &[2]))])[..], b"q\x000"].concat();
        for level in 0..40_u8 {
            let (inner, outer) = ([b'h', level], [b'q', level + 1]);
            doubling
                .extend([&b"}("[..], &text("a"), &inner, &text("b"), &inner, b"u", &outer, b"0"].concat());
        }
        doubling.extend([&b"}("[..], &text("w"), &floats("0", &[2]), &text("x"), b"h\x28u"].concat());
        refused(&archive(&doubling, &[("0", range(2))]), "");
        let name = "n".repeat(MAX_NAME + 1);
        refused(&archive(&dict(&[(&name, floats("0", &[2]))]), &[("0", range(2))]), "name of more than 1024");
    }

    #[test]
    fn no_cut_and_no_flipped_byte_panics() {
        let value = dict(&[("epoch", int(1)), ("state_dict", ordered_dict(&[("w", floats("0", &[2]))]))]);
        let whole = archive(&value, &[("0", range(2))]);
        for cut in 0..whole.len() {
            assert!(state(&whole[..cut]).is_err(), "cut at {cut}");
        }
        for place in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[place] = !flipped[place];
            let _ = state(&flipped);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn random_pickles_and_sizes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            offset in any::<i64>(), shape in proptest::collection::vec(-2..6_i64, 0..4),
            strides in proptest::collection::vec(-2..9_i64, 0..4), elements in -1..20_i64,
        ) {
            let _ = state(&zip(&[("a/data.pkl", &bytes)]));
            let _ = state(&bytes);
            for offset in [offset, offset % 12] {
                let w = view(storage("FloatStorage", "0", elements), offset, &shape, &strides);
                let file = archive(&dict(&[("w", w)]), &[("0", range(12))]);
                if let Ok(read) = state(&file) {
                    prop_assert_eq!(&read.tensors["w"].size(), &shape);
                }
            }
        }
    }
}
