//! Tensors as ONNX files hold them: every size is checked against the data before a tensor is made.

use std::{borrow::Cow, fmt::Display, path::Path};

use prost::bytes::Bytes;
use talion_core::Error;
use tch::{Device, Kind, Tensor};

use crate::{
    file::{External, MAX_WRITTEN},
    graph::quoted,
    proto::{self, Checked, EXTERNAL, Schema, TensorProto},
};

/// More sides than libtorch's kernels take.
const MAX_SIDES: usize = 64;

/// The element types that ONNX and libtorch share, with their numbers in the format.
const KINDS: [(i32, Kind); 10] = [
    (1, Kind::Float),
    (2, Kind::Uint8),
    (3, Kind::Int8),
    (5, Kind::Int16),
    (6, Kind::Int),
    (7, Kind::Int64),
    (9, Kind::Bool),
    (10, Kind::Half),
    (11, Kind::Double),
    (16, Kind::BFloat16),
];

/// The format's names of all element types, by their numbers.
const NAMES: [&str; 29] = [
    "UNDEFINED",
    "FLOAT",
    "UINT8",
    "INT8",
    "UINT16",
    "INT16",
    "INT32",
    "INT64",
    "STRING",
    "BOOL",
    "FLOAT16",
    "DOUBLE",
    "UINT32",
    "UINT64",
    "COMPLEX64",
    "COMPLEX128",
    "BFLOAT16",
    "FLOAT8E4M3FN",
    "FLOAT8E4M3FNUZ",
    "FLOAT8E5M2",
    "FLOAT8E5M2FNUZ",
    "UINT4",
    "INT4",
    "FLOAT4E2M1",
    "FLOAT8E8M0",
    "UINT2",
    "INT2",
    "FLOAT6E2M3",
    "FLOAT6E3M2",
];

/// Reads a serialised `TensorProto`, for instance a file of the public backend tests; `origin` is named in errors.
/// The result is the tensor's name, which may be empty, and the tensor, on the CPU.
///
/// # Errors
/// If the bytes are no such message, the type is not one of FLOAT, DOUBLE, FLOAT16, BFLOAT16, INT8, UINT8, INT16,
/// INT32, INT64 and BOOL, the data does not fit the shape, or lies outside the file.
pub fn tensor_from_bytes(bytes: &[u8], origin: &Path) -> talion_core::Result<(String, Tensor)> {
    alone(bytes).map_err(|problem| Error::file(origin, problem))
}

fn alone(bytes: &[u8]) -> Checked<(String, Tensor)> {
    let message: TensorProto = proto::decode(Bytes::copy_from_slice(bytes), Schema::Tensor)?;
    let tensor = decode(&message, &External::new(None))?;
    Ok((message.name().to_owned(), tensor))
}

/// The counterpart of an element type, or what is wrong with it.
pub(crate) fn kind_of(data_type: i32) -> Checked<Kind> {
    match KINDS.iter().find(|(number, _)| *number == data_type) {
        Some((_, kind)) => Ok(*kind),
        None => {
            let name = usize::try_from(data_type).ok().and_then(|number| NAMES.get(number));
            let name = name.map_or_else(|| data_type.to_string(), |name| (*name).to_owned());
            let known: Vec<&str> = KINDS
                .iter()
                .filter_map(|(number, _)| NAMES.get(usize::try_from(*number).ok()?).copied())
                .collect();
            Err(format!("has type {name}; talion reads {}", known.join(", ")))
        }
    }
}

/// The number of an element type in the format, or what is wrong with it.
pub(crate) fn type_of(kind: Kind) -> Checked<i32> {
    let number = KINDS.iter().find(|(_, known)| *known == kind).map(|(number, _)| *number);
    number.ok_or_else(|| format!("has type {kind:?}, which talion does not write to ONNX files"))
}

/// Makes a tensor, on the CPU, of a message; problems name it.
pub(crate) fn decode(proto: &TensorProto, external: &External) -> Checked<Tensor> {
    read(proto, external).map_err(|problem| format!("tensor {} {problem}", quoted(proto.name())))
}

fn read(proto: &TensorProto, external: &External) -> Checked<Tensor> {
    if proto.segment.is_some() {
        return Err("is a segment of a tensor; talion reads whole ones".into());
    }
    let kind = kind_of(proto.data_type())?;
    let count = elements(&proto.dims)?;
    let size = count.checked_mul(kind.elt_size_in_bytes()).ok_or_else(|| too_large(&proto.dims))?;
    let bytes: Cow<'_, [u8]> = match &proto.raw_data {
        _ if proto.data_location() == EXTERNAL => Cow::Owned(external.load(&proto.external_data, size)?),
        Some(raw) if !raw.is_empty() => {
            if typed_values(proto) > 0 {
                return Err("holds its data twice, raw and typed".into());
            }
            Cow::Borrowed(raw)
        }
        _ => Cow::Owned(typed(proto, kind, count)?),
    };
    if bytes.len() != size {
        let shape = &proto.dims;
        return Err(format!("has {} bytes of data, but shape {shape:?} needs {size}", bytes.len()));
    }
    // Another byte would be a boolean that is neither true nor false to libtorch.
    if kind == Kind::Bool && bytes.iter().any(|&byte| byte > 1) {
        return Err("has type BOOL, but holds a byte that is neither 0 nor 1".into());
    }
    Tensor::f_from_data_size(&bytes, &proto.dims, kind).map_err(|error| format!("cannot be made: {error}"))
}

/// The number of elements of a shape.
fn elements(dims: &[i64]) -> Checked<usize> {
    if dims.len() > MAX_SIDES {
        return Err(format!("has {} sides; talion reads up to {MAX_SIDES}", dims.len()));
    }
    if dims.iter().any(|&side| side < 0) {
        return Err(format!("has shape {dims:?}, whose sides cannot be negative"));
    }
    // Sides of 0 count as 1 here: libtorch and tch multiply the others without looking for an overflow.
    let extent = dims.iter().try_fold(1_i64, |extent, &side| extent.checked_mul(side.max(1)));
    let extent = extent.and_then(|extent| usize::try_from(extent).ok()).ok_or_else(|| too_large(dims))?;
    Ok(if dims.contains(&0) { 0 } else { extent })
}

fn too_large(dims: &[i64]) -> String {
    format!("has shape {dims:?}, which is too large")
}

/// The number of values in all the typed fields.
fn typed_values(proto: &TensorProto) -> usize {
    let TensorProto { float_data, int32_data, int64_data, double_data, .. } = proto;
    float_data.len() + int32_data.len() + int64_data.len() + double_data.len()
}

/// The values of the typed field that a type uses, as raw data.
fn typed(proto: &TensorProto, kind: Kind, count: usize) -> Checked<Vec<u8>> {
    let small = &proto.int32_data;
    match kind {
        Kind::Float => pack("float_data", &proto.float_data, count, |value| Some(value.to_le_bytes())),
        Kind::Double => pack("double_data", &proto.double_data, count, |value| Some(value.to_le_bytes())),
        Kind::Int64 => pack("int64_data", &proto.int64_data, count, |value| Some(value.to_le_bytes())),
        Kind::Int => pack("int32_data", small, count, |value| Some(value.to_le_bytes())),
        Kind::Int16 => {
            pack("int32_data", small, count, |value| i16::try_from(value).ok().map(i16::to_le_bytes))
        }
        Kind::Int8 => pack("int32_data", small, count, |value| i8::try_from(value).ok().map(i8::to_le_bytes)),
        // What is neither 0 nor 1 in a boolean is found later.
        Kind::Uint8 | Kind::Bool => {
            pack("int32_data", small, count, |value| u8::try_from(value).ok().map(u8::to_le_bytes))
        }
        // The format keeps the bits of a short float as an unsigned number.
        Kind::Half | Kind::BFloat16 => {
            pack("int32_data", small, count, |value| u16::try_from(value).ok().map(u16::to_le_bytes))
        }
        other => Err(format!("has type {other:?}, which has no typed field")),
    }
}

fn pack<T: Copy + Display, const N: usize>(
    field: &str,
    values: &[T],
    count: usize,
    bytes: impl Fn(T) -> Option<[u8; N]>,
) -> Checked<Vec<u8>> {
    if values.len() != count {
        return Err(format!("has {} values in {field}, but its shape needs {count}", values.len()));
    }
    let mut packed = Vec::with_capacity(count.saturating_mul(N));
    for &value in values {
        let bytes = bytes(value).ok_or_else(|| format!("holds {value}, which its type cannot"))?;
        packed.extend_from_slice(&bytes);
    }
    Ok(packed)
}

/// The bytes that a tensor's data takes.
pub(crate) fn data_size(tensor: &Tensor) -> Checked<usize> {
    let kind = tensor.f_kind().map_err(|error| error.to_string())?;
    tensor.numel().checked_mul(kind.elt_size_in_bytes()).ok_or_else(|| too_large(&tensor.size()))
}

/// Makes a message of a tensor; problems name it.
pub(crate) fn encode(name: &str, tensor: &Tensor) -> Checked<TensorProto> {
    let named = |problem: String| format!("tensor {} {problem}", quoted(name));
    let (data_type, raw) = raw(tensor).map_err(named)?;
    Ok(TensorProto {
        dims: tensor.size(),
        data_type: Some(data_type),
        name: Some(name.to_owned()),
        raw_data: Some(raw.into()),
        ..Default::default()
    })
}

/// The type's number and the data, little-endian, as every machine is that libtorch has a release for.
fn raw(tensor: &Tensor) -> Checked<(i32, Vec<u8>)> {
    let torch = |error: tch::TchError| format!("cannot be read: {error}");
    let data_type = type_of(tensor.f_kind().map_err(torch)?)?;
    let size = data_size(tensor)?;
    if size > MAX_WRITTEN {
        return Err(format!("takes {size} bytes; an ONNX file holds at most {MAX_WRITTEN}"));
    }
    let mut bytes = vec![0; size];
    let tensor = tensor.f_detach().and_then(|tensor| tensor.f_to_device(Device::Cpu)).map_err(torch)?;
    tensor.f_copy_data_u8(&mut bytes, tensor.numel()).map_err(torch)?;
    Ok((data_type, bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    fn proto(data_type: i32, dims: &[i64]) -> TensorProto {
        let name = Some("w".to_owned());
        TensorProto { dims: dims.to_vec(), data_type: Some(data_type), name, ..Default::default() }
    }

    fn decoded(proto: &TensorProto) -> Checked<Tensor> {
        decode(proto, &External::new(None))
    }

    fn problem(proto: &TensorProto) -> String {
        let problem = decoded(proto).unwrap_err();
        assert!(problem.contains("\"w\""), "{problem}");
        problem
    }

    fn same(a: &Tensor, b: &Tensor) -> bool {
        a == b && a.kind() == b.kind()
    }

    #[test]
    fn every_type_is_read_back_as_it_was_written() {
        for (_, kind) in KINDS {
            let values = Tensor::from_slice(&[0_i64, 1, 1, 0, 1, 0]);
            // Negative where the type has negative numbers.
            let (scale, shift) = match kind {
                Kind::Bool => (1_i64, 0_i64),
                Kind::Uint8 => (200, 0),
                _ => (100, 50),
            };
            let values = values * scale - shift;
            // Not contiguous, so that writing has to put it into order.
            let tensor = values.reshape([2, 3]).transpose(0, 1).to_kind(kind);
            let written = encode("w", &tensor).unwrap();
            assert_eq!(written.dims, [3, 2]);
            assert!(same(&decoded(&written).unwrap(), &tensor), "{kind:?}");
            let bytes = written.encode_to_vec();
            let (name, read) = tensor_from_bytes(&bytes, Path::new("t.pb")).unwrap();
            assert!(name == "w" && same(&read, &tensor), "{kind:?}");
        }
    }

    #[test]
    fn raw_data_is_little_endian() {
        let raw = |data_type, dims: &[i64], bytes: &'static [u8]| {
            let raw_data = Some(Bytes::from_static(bytes));
            decoded(&TensorProto { raw_data, ..proto(data_type, dims) }).unwrap()
        };
        assert!(same(&raw(1, &[], &[0, 0, 0x80, 0x3f]), &Tensor::from(1.0_f32)));
        assert!(same(&raw(6, &[1], &[1, 2, 0, 0]), &Tensor::from_slice(&[513_i32])));
        let half = raw(10, &[2], &[0x00, 0x3c, 0x00, 0xc0]);
        assert!(same(&half, &Tensor::from_slice(&[1.0_f32, -2.0]).to_kind(Kind::Half)));
    }

    #[test]
    fn every_typed_field_is_read() {
        let small = |data_type, values: &[i32]| {
            let dims = [i64::try_from(values.len()).unwrap()];
            decoded(&TensorProto { int32_data: values.to_vec(), ..proto(data_type, &dims) }).unwrap()
        };
        assert!(same(&small(2, &[0, 255]), &Tensor::from_slice(&[0_u8, 255])));
        assert!(same(&small(3, &[-128, 127]), &Tensor::from_slice(&[-128_i8, 127])));
        assert!(same(&small(5, &[-32768, 5]), &Tensor::from_slice(&[-32768_i16, 5])));
        assert!(same(&small(6, &[i32::MIN, 5]), &Tensor::from_slice(&[i32::MIN, 5])));
        assert!(same(&small(9, &[0, 1, 1]), &Tensor::from_slice(&[false, true, true])));
        let numbers = Tensor::from_slice(&[1.0_f32, -2.0]);
        assert!(same(&small(10, &[0x3c00, 0xc000]), &numbers.to_kind(Kind::Half)));
        assert!(same(&small(16, &[0x3f80, 0xc000]), &numbers.to_kind(Kind::BFloat16)));
        let floats = TensorProto { float_data: vec![1.0, -2.0], ..proto(1, &[2]) };
        assert!(same(&decoded(&floats).unwrap(), &numbers));
        let doubles = TensorProto { double_data: vec![1.0, -2.0], ..proto(11, &[2]) };
        assert!(same(&decoded(&doubles).unwrap(), &numbers.to_kind(Kind::Double)));
        let longs = TensorProto { int64_data: vec![i64::MAX, -1], ..proto(7, &[2, 1]) };
        assert!(same(&decoded(&longs).unwrap(), &Tensor::from_slice(&[i64::MAX, -1]).reshape([2, 1])));
    }

    #[test]
    fn empty_tensors_need_no_data() {
        assert_eq!(decoded(&proto(1, &[3, 0])).unwrap().size(), [3, 0]);
        let raw_data = Some(Bytes::new());
        assert_eq!(decoded(&TensorProto { raw_data, ..proto(7, &[0]) }).unwrap().size(), [0]);
        let empty = Tensor::zeros([0, 2], (Kind::Float, Device::Cpu));
        assert_eq!(decoded(&encode("w", &empty).unwrap()).unwrap().size(), [0, 2]);
    }

    #[test]
    fn shapes_and_data_that_do_not_fit_are_refused() {
        let with = |data_type, dims: &[i64], len: usize| {
            let raw_data = Some(Bytes::from(vec![1; len]));
            TensorProto { raw_data, ..proto(data_type, dims) }
        };
        assert!(problem(&with(1, &[2, 3], 23)).contains("23 bytes of data, but shape [2, 3] needs 24"));
        assert!(problem(&with(1, &[2, 3], 25)).contains("needs 24"));
        assert!(problem(&with(7, &[], 4)).contains("needs 8"));
        assert!(problem(&with(1, &[0], 4)).contains("needs 0"));
        assert!(problem(&with(1, &[-1], 4)).contains("cannot be negative"));
        assert!(problem(&with(1, &[i64::MIN, 0], 4)).contains("cannot be negative"));
        assert!(problem(&with(1, &[1 << 40, 1 << 40], 4)).contains("too large"));
        assert!(problem(&with(1, &[i64::MAX, i64::MAX, 0], 0)).contains("too large"));
        assert!(problem(&with(11, &[i64::MAX], 8)).contains("too large"));
        assert!(problem(&with(1, &[1 << 50], 4)).contains("bytes of data"));
        assert!(problem(&with(1, &[1; 65], 4)).contains("65 sides"));
        assert!(problem(&proto(1, &[1 << 50])).contains("0 values in float_data"));
        let twice = TensorProto { float_data: vec![1.0], ..with(1, &[1], 4) };
        assert!(problem(&twice).contains("twice"));
        // Values in a field of another type are no data.
        let other = TensorProto { int64_data: vec![1], ..proto(1, &[1]) };
        assert!(problem(&other).contains("0 values in float_data"));
    }

    #[test]
    fn values_that_their_type_cannot_hold_are_refused() {
        for (data_type, value) in [(2, -1), (2, 256), (3, 128), (5, 40_000), (9, 2), (10, -1), (16, 1 << 16)]
        {
            let wrong = TensorProto { int32_data: vec![value], ..proto(data_type, &[1]) };
            assert!(problem(&wrong).contains("holds"), "{data_type} {value}");
        }
        let raw_data = Some(Bytes::from_static(&[1, 2]));
        assert!(problem(&TensorProto { raw_data, ..proto(9, &[2]) }).contains("neither 0 nor 1"));
    }

    #[test]
    fn types_that_libtorch_lacks_are_named() {
        for (data_type, name) in
            [(0, "UNDEFINED"), (8, "STRING"), (13, "UINT64"), (26, "INT2"), (99, "99"), (-1, "-1")]
        {
            let problem = problem(&proto(data_type, &[0]));
            assert!(
                problem.contains(&format!("has type {name};")) && problem.contains("FLOAT, UINT8"),
                "{problem}"
            );
        }
        let complex = Tensor::zeros([1], (Kind::ComplexFloat, Device::Cpu));
        assert!(encode("w", &complex).unwrap_err().contains("ComplexFloat"));
    }

    #[test]
    fn data_outside_of_a_lone_tensor_and_segments_are_refused() {
        let outside = TensorProto { data_location: Some(EXTERNAL), ..proto(1, &[1]) };
        assert!(problem(&outside).contains("outside"));
        let segment = TensorProto { segment: Some(Bytes::new()), ..proto(1, &[0]) };
        assert!(problem(&segment).contains("segment"));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..60),
            data_type in 0..20_i32, dims in proptest::collection::vec(-1..4_i64, 0..4)
        ) {
            let _ = tensor_from_bytes(&bytes, Path::new("t.pb"));
            let _ = decoded(&TensorProto { raw_data: Some(bytes.into()), ..proto(data_type, &dims) });
        }
    }
}
