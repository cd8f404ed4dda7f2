//! Writes what `torch.save` writes, and what an attacker might, for the tests of the readers.

use std::io::{Cursor, Write};

use talion_core::Tensors;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

pub(super) fn text(text: &str) -> Vec<u8> {
    [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

/// The shortest instruction that makes the number.
pub(super) fn int(value: i64) -> Vec<u8> {
    if let Ok(small) = u8::try_from(value) {
        vec![b'K', small]
    } else if let Ok(medium) = i32::try_from(value) {
        [&b"J"[..], &medium.to_le_bytes()].concat()
    } else {
        [&b"\x8a\x08"[..], &value.to_le_bytes()].concat()
    }
}

pub(super) fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

pub(super) fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [&b"("[..], &items.concat(), b"t"].concat()
}

/// Calls `callee` with `arguments`.
pub(super) fn reduce(callee: &[u8], arguments: &[Vec<u8>]) -> Vec<u8> {
    [callee, &tuple(arguments), b"R"].concat()
}

fn entries(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let pairs: Vec<u8> =
        entries.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
    [&b"("[..], &pairs, b"u"].concat()
}

pub(super) fn dict(values: &[(&str, Vec<u8>)]) -> Vec<u8> {
    [&b"}"[..], &entries(values)].concat()
}

/// An `OrderedDict` with the `_metadata` that state dicts carry.
pub(super) fn ordered_dict(values: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let metadata = dict(&[("_metadata", dict(&[("", dict(&[("version", int(1))]))]))]);
    [&global("collections", "OrderedDict")[..], b")R", &entries(values), &metadata, b"b"].concat()
}

pub(super) fn storage(class: &str, key: &str, elements: i64) -> Vec<u8> {
    let parts = [text("storage"), global("torch", class), text(key), text("cpu"), int(elements)];
    [&tuple(&parts)[..], b"Q"].concat()
}

pub(super) fn view(storage: Vec<u8>, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let sides = |sides: &[i64]| tuple(&sides.iter().map(|&side| int(side)).collect::<Vec<_>>());
    let hooks = reduce(&global("collections", "OrderedDict"), &[]);
    let arguments = [storage, int(offset), sides(shape), sides(strides), vec![0x89], hooks];
    reduce(&global("torch._utils", "_rebuild_tensor_v2"), &arguments)
}

/// A contiguous `f32` tensor that is its whole storage.
pub(super) fn floats(key: &str, shape: &[i64]) -> Vec<u8> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    view(storage("FloatStorage", key, shape.iter().product()), 0, shape, &strides)
}

/// A whole pickle of protocol 2.
pub(super) fn pickle(value: &[u8]) -> Vec<u8> {
    [&b"\x80\x02"[..], value, b"."].concat()
}

pub(super) fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in entries {
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

pub(super) fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The archive that `torch.save` makes of `value`.
pub(super) fn archive(value: &[u8], storages: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let names: Vec<_> = storages.iter().map(|(key, _)| format!("net/data/{key}")).collect();
    let pickle = pickle(value);
    let mut entries = vec![("net/data.pkl", &pickle[..]), ("net/byteorder", &b"little"[..])];
    entries.extend(names.iter().zip(storages).map(|(name, (_, bytes))| (name.as_str(), bytes.as_slice())));
    entries.push(("net/version", &b"3\n"[..]));
    zip(&entries)
}

/// The archive that `torch.save` makes of a state dict of `f32` tensors.
pub(super) fn saved(tensors: &Tensors) -> Vec<u8> {
    let mut values = Vec::new();
    let mut storages = Vec::new();
    let keys: Vec<_> = (0..tensors.len()).map(|index| index.to_string()).collect();
    for (key, (name, tensor)) in keys.iter().zip(tensors) {
        values.push((name.as_str(), floats(key, &tensor.size())));
        let flat = Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap();
        storages.push((key.as_str(), bytes_of(&flat)));
    }
    archive(&ordered_dict(&values), &storages)
}

/// A TorchScript archive of a module with one parameter `w`, `[2, 3]`, holding 0 to 5; `body` is what `forward` does
/// with its argument `x`, and `result` the type it gives.
pub(super) fn script(result: &str, body: &str) -> Vec<u8> {
    let code = format!(
        "class Net(Module):\n  __parameters__ = [\"w\", ]\n  __buffers__ = []\n  w : Tensor\n  training : bool\n  \
         def forward(self: __torch__.Net,\n    x: Tensor) -> {result}:\n    {body}\n"
    );
    let mut weight = view(storage("FloatStorage", "0", 6), 0, &[2, 3], &[3, 1]);
    // the only flag in it: that it wants a gradient
    weight.iter_mut().filter(|byte| **byte == 0x89).for_each(|byte| *byte = 0x88);
    let state = dict(&[("w", weight), ("training", vec![0x88])]);
    let module = pickle(&[&global("__torch__", "Net")[..], b")\x81", &state, b"b"].concat());
    zip(&[
        ("net/data.pkl", &module[..]),
        ("net/code/__torch__.py", code.as_bytes()),
        ("net/data/0", &bytes_of(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])[..]),
        ("net/constants.pkl", &b"\x80\x02)."[..]),
        ("net/version", &b"3\n"[..]),
    ])
}
