/*!
The messages of ONNX files, as the public format (`onnx.proto`, IR versions 3 to 13) numbers them.

Only the fields that are used here are declared; protobuf skips the others. Graphs inside attributes are among those:
an operator that has one is refused by its name.
*/

use prost::{Message, bytes::Bytes};

/// A result whose error says what is wrong with the thing at hand; who knows the thing's name puts it before that.
pub(crate) type Checked<T> = Result<T, String>;

/// Fields of all messages of a file together: enough for a million nodes, and a bound on what decoding allocates,
/// because an empty message takes two bytes in a file and hundreds in memory.
const MAX_FIELDS: usize = 1 << 24;

/// [`TensorProto::data_location`] of data outside the file.
pub(crate) const EXTERNAL: i32 = 1;

/// Types of attributes.
pub(crate) mod attribute_type {
    pub(crate) const FLOAT: i32 = 1;
    pub(crate) const INT: i32 = 2;
    pub(crate) const STRING: i32 = 3;
    pub(crate) const TENSOR: i32 = 4;
    pub(crate) const GRAPH: i32 = 5;
    pub(crate) const FLOATS: i32 = 6;
    pub(crate) const INTS: i32 = 7;
    pub(crate) const STRINGS: i32 = 8;
    pub(crate) const TENSORS: i32 = 9;
    pub(crate) const GRAPHS: i32 = 10;
    pub(crate) const SPARSE_TENSOR: i32 = 11;
    pub(crate) const SPARSE_TENSORS: i32 = 12;
    pub(crate) const TYPE_PROTO: i32 = 13;
    pub(crate) const TYPE_PROTOS: i32 = 14;
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ModelProto {
    #[prost(int64, optional, tag = "1")]
    pub ir_version: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub producer_name: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub producer_version: Option<String>,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<StringStringEntryProto>,
    #[prost(message, repeated, tag = "25")]
    pub functions: Vec<FunctionProto>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct OperatorSetIdProto {
    #[prost(string, optional, tag = "1")]
    pub domain: Option<String>,
    #[prost(int64, optional, tag = "2")]
    pub version: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct StringStringEntryProto {
    #[prost(string, optional, tag = "1")]
    pub key: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub value: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    #[prost(string, optional, tag = "2")]
    pub name: Option<String>,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
    /// Left encoded: a graph that has one is refused.
    #[prost(bytes = "bytes", repeated, tag = "15")]
    pub sparse_initializer: Vec<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, optional, tag = "3")]
    pub name: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub op_type: Option<String>,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    #[prost(string, optional, tag = "7")]
    pub domain: Option<String>,
    #[prost(string, optional, tag = "8")]
    pub overload: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AttributeProto {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub s: Option<Bytes>,
    #[prost(message, optional, tag = "5")]
    pub t: Option<TensorProto>,
    #[prost(float, repeated, packed = "false", tag = "7")]
    pub floats: Vec<f32>,
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    #[prost(bytes = "bytes", repeated, tag = "9")]
    pub strings: Vec<Bytes>,
    /// The field `type`: one of [`attribute_type`].
    #[prost(int32, optional, tag = "20")]
    pub kind: Option<i32>,
    #[prost(string, optional, tag = "21")]
    pub ref_attr_name: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TensorProto {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, optional, tag = "2")]
    pub data_type: Option<i32>,
    /// Left encoded: a tensor that is a piece of another is refused.
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub segment: Option<Bytes>,
    #[prost(float, repeated, tag = "4")]
    pub float_data: Vec<f32>,
    #[prost(int32, repeated, tag = "5")]
    pub int32_data: Vec<i32>,
    #[prost(int64, repeated, tag = "7")]
    pub int64_data: Vec<i64>,
    #[prost(string, optional, tag = "8")]
    pub name: Option<String>,
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub raw_data: Option<Bytes>,
    #[prost(double, repeated, tag = "10")]
    pub double_data: Vec<f64>,
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<StringStringEntryProto>,
    #[prost(int32, optional, tag = "14")]
    pub data_location: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ValueInfoProto {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// The field `type`.
    #[prost(message, optional, tag = "2")]
    pub kind: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TypeProto {
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorTypeProto>,
}

/// `TypeProto.Tensor`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TensorTypeProto {
    #[prost(int32, optional, tag = "1")]
    pub elem_type: Option<i32>,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShapeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TensorShapeProto {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<DimensionProto>,
}

/// `TensorShapeProto.Dimension`; of its two fields at most one is set.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DimensionProto {
    #[prost(int64, optional, tag = "1")]
    pub dim_value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub dim_param: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct FunctionProto {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(string, repeated, tag = "4")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    pub output: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    pub node: Vec<NodeProto>,
    #[prost(message, repeated, tag = "9")]
    pub opset_import: Vec<OperatorSetIdProto>,
    #[prost(string, optional, tag = "10")]
    pub domain: Option<String>,
    #[prost(message, repeated, tag = "11")]
    pub attribute_proto: Vec<AttributeProto>,
    #[prost(string, optional, tag = "13")]
    pub overload: Option<String>,
}

/// Which message some bytes hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Schema {
    Model,
    OperatorSet,
    Entry,
    Graph,
    Node,
    Attribute,
    Tensor,
    Value,
    Type,
    TensorType,
    Shape,
    Dimension,
    Function,
}

impl Schema {
    /// The message in the field with this number, if it is one that is decoded.
    fn inner(self, field: u64) -> Option<Self> {
        Some(match (self, field) {
            (Self::Model, 7) => Self::Graph,
            (Self::Model, 8) | (Self::Function, 9) => Self::OperatorSet,
            (Self::Model, 14) | (Self::Tensor, 13) => Self::Entry,
            (Self::Model, 25) => Self::Function,
            (Self::Graph, 1) | (Self::Function, 7) => Self::Node,
            (Self::Graph, 5) | (Self::Attribute, 5) => Self::Tensor,
            (Self::Graph, 11 | 12) => Self::Value,
            (Self::Node, 5) | (Self::Function, 11) => Self::Attribute,
            (Self::Value, 2) => Self::Type,
            (Self::Type, 1) => Self::TensorType,
            (Self::TensorType, 2) => Self::Shape,
            (Self::Shape, 1) => Self::Dimension,
            _ => return None,
        })
    }
}

/// Decodes a message once its frame is known to be sound and of bounded size.
pub(crate) fn decode<M: Message + Default>(bytes: Bytes, schema: Schema) -> Checked<M> {
    let mut fields = 0;
    walk(&bytes, schema, &mut fields)?;
    if fields > MAX_FIELDS {
        return Err(format!("has more than {MAX_FIELDS} parts; talion reads no file of so many"));
    }
    M::decode(bytes).map_err(|error| damaged(&error.to_string()))
}

/// Counts the fields of a message and of those inside it, and stops behind [`MAX_FIELDS`].
fn walk(mut rest: &[u8], schema: Schema, fields: &mut usize) -> Checked<()> {
    while !rest.is_empty() && *fields <= MAX_FIELDS {
        *fields += 1;
        let key = varint(&mut rest)?;
        match key & 7 {
            0 => {
                varint(&mut rest)?;
            }
            1 => {
                take(&mut rest, 8)?;
            }
            2 => {
                let len = varint(&mut rest)?;
                let body = take(&mut rest, len)?;
                if let Some(inner) = schema.inner(key >> 3) {
                    walk(body, inner, fields)?;
                }
            }
            5 => {
                take(&mut rest, 4)?;
            }
            other => return Err(damaged(&format!("a field has the wire type {other}"))),
        }
    }
    Ok(())
}

fn varint(rest: &mut &[u8]) -> Checked<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = match take(rest, 1)? {
            [byte] => *byte,
            _ => break,
        };
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(damaged("a number has more than ten bytes"))
}

fn take<'a>(rest: &mut &'a [u8], len: u64) -> Checked<&'a [u8]> {
    let bytes = *rest;
    let parts = usize::try_from(len).ok().and_then(|len| bytes.split_at_checked(len));
    let (taken, left) = parts.ok_or_else(|| damaged("it ends too early, or a length is wrong"))?;
    *rest = left;
    Ok(taken)
}

fn damaged(problem: &str) -> String {
    format!("is not an ONNX file ({problem})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str) -> StringStringEntryProto {
        StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) }
    }

    fn fields(bytes: &[u8], schema: Schema) -> usize {
        let mut fields = 0;
        walk(bytes, schema, &mut fields).unwrap();
        fields
    }

    #[test]
    fn numbers_are_where_the_format_has_them() {
        // A node `Add(a, b) -> c` and the tensor int64[2] {1, -1}, spelt out byte by byte.
        let node = b"\x0a\x01a\x0a\x01b\x12\x01c\x22\x03Add";
        let node: NodeProto = decode(Bytes::from_static(node), Schema::Node).unwrap();
        assert_eq!((node.input, node.output), (vec!["a".into(), "b".into()], vec!["c".to_owned()]));
        assert_eq!(node.op_type.as_deref(), Some("Add"));
        let tensor = b"\x08\x02\x10\x07\x3a\x0b\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x42\x01t";
        let tensor: TensorProto = decode(Bytes::from_static(tensor), Schema::Tensor).unwrap();
        assert_eq!((tensor.dims, tensor.data_type), (vec![2], Some(7)));
        assert_eq!((tensor.int64_data, tensor.name.as_deref()), (vec![1, -1], Some("t")));
    }

    #[test]
    fn every_message_that_is_decoded_is_walked() {
        let tensor = TensorProto { external_data: vec![entry("k", "v")], ..Default::default() };
        let attribute = AttributeProto { t: Some(tensor.clone()), ..Default::default() };
        let node = NodeProto { attribute: vec![attribute.clone()], ..Default::default() };
        let set = OperatorSetIdProto { domain: None, version: Some(17) };
        let shape = TensorShapeProto { dim: vec![DimensionProto { dim_value: Some(1), dim_param: None }] };
        let kind = TypeProto { tensor_type: Some(TensorTypeProto { elem_type: None, shape: Some(shape) }) };
        let value = ValueInfoProto { name: None, kind: Some(kind) };
        let function = FunctionProto {
            node: vec![node.clone()],
            opset_import: vec![set.clone()],
            attribute_proto: vec![attribute],
            ..Default::default()
        };
        let graph = GraphProto {
            node: vec![node],
            initializer: vec![tensor],
            input: vec![value.clone()],
            output: vec![value],
            ..Default::default()
        };
        let model = ModelProto {
            graph: Some(graph),
            opset_import: vec![set],
            metadata_props: vec![entry("k", "v")],
            functions: vec![function],
            ..Default::default()
        };
        // tensor 3, attribute 4, node 5, value 5 fields; each of them is one more where it is held.
        let graph = 6 + 4 + 6 + 6;
        let function = 6 + 2 + 5;
        let expected = (1 + graph) + 2 + 3 + (1 + function);
        assert_eq!(fields(&model.encode_to_vec(), Schema::Model), expected);
        assert_eq!(decode::<ModelProto>(model.encode_to_vec().into(), Schema::Model).unwrap(), model);
    }

    #[test]
    fn lengths_that_lie_are_found_before_anything_is_decoded() {
        // Inside the graph, a node that is longer than the graph but not than the file.
        let bytes = [&b"\x3a\x03\x0a\x05\x0a"[..], &[0; 20]].concat();
        let error = decode::<ModelProto>(bytes.into(), Schema::Model).unwrap_err();
        assert!(error.contains("is not an ONNX file"), "{error}");
        for bytes in [
            &b"\x3a"[..],
            b"\x3a\xff\xff\xff\xff\x0f",
            b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x0b",
        ] {
            assert!(decode::<ModelProto>(Bytes::from_static(bytes), Schema::Model).is_err(), "{bytes:02x?}");
        }
        assert!(decode::<ModelProto>(Bytes::from_static(&[0xff; 12]), Schema::Model).is_err());
    }

    #[test]
    fn a_file_of_nothing_but_empty_nodes_is_refused_undecoded() {
        let nodes = b"\x0a\x00".repeat(MAX_FIELDS + 1);
        let error = decode::<GraphProto>(nodes.into(), Schema::Graph).unwrap_err();
        assert!(error.contains("more than 16777216 parts"), "{error}");
    }
}
