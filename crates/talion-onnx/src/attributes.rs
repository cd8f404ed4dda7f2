//! The attributes of a node: typed values by name.

use std::collections::BTreeMap;

use talion_core::{Error, Result};
use tch::Tensor;

use crate::{
    file::External,
    graph::quoted,
    proto::{AttributeProto, Checked, attribute_type},
    tensor,
};

/// The value of an attribute.
#[derive(Debug)]
pub enum Attribute {
    /// A number.
    Float(f32),
    /// An integer.
    Int(i64),
    /// A text.
    Text(String),
    /// A tensor, on the CPU.
    Tensor(Tensor),
    /// A list of numbers.
    Floats(Vec<f32>),
    /// A list of integers.
    Ints(Vec<i64>),
    /// A list of texts.
    Texts(Vec<String>),
    /// Something that talion never reads, for instance a graph, named by this noun.
    Unsupported(&'static str),
}

impl Attribute {
    /// A copy that shares its tensor.
    #[must_use]
    pub fn clone_shallow(&self) -> Self {
        match self {
            Self::Float(value) => Self::Float(*value),
            Self::Int(value) => Self::Int(*value),
            Self::Text(text) => Self::Text(text.clone()),
            Self::Tensor(tensor) => Self::Tensor(tensor.shallow_clone()),
            Self::Floats(values) => Self::Floats(values.clone()),
            Self::Ints(values) => Self::Ints(values.clone()),
            Self::Texts(texts) => Self::Texts(texts.clone()),
            Self::Unsupported(noun) => Self::Unsupported(noun),
        }
    }

    fn noun(&self) -> &'static str {
        match self {
            Self::Float(_) => "number",
            Self::Int(_) => "integer",
            Self::Text(_) => "text",
            Self::Tensor(_) => "tensor",
            Self::Floats(_) => "list of numbers",
            Self::Ints(_) => "list of integers",
            Self::Texts(_) => "list of texts",
            Self::Unsupported(noun) => noun,
        }
    }
}

/// The attributes of a node, by name.
#[derive(Debug, Default)]
pub struct Attributes(BTreeMap<String, Attribute>);

impl Attributes {
    /// The attribute of this name, of whatever type.
    pub fn get(&self, name: &str) -> Option<&Attribute> {
        self.0.get(name)
    }

    /// Sets an attribute, whether or not there was one of this name.
    pub fn insert(&mut self, name: impl Into<String>, attribute: Attribute) {
        self.0.insert(name.into(), attribute);
    }

    /// All attributes, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Attribute)> {
        self.0.iter().map(|(name, attribute)| (name.as_str(), attribute))
    }

    /// The number of attributes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// An integer, or `default` if there is no such attribute.
    ///
    /// # Errors
    /// If the attribute is no integer.
    pub fn int(&self, name: &str, default: i64) -> Result<i64> {
        Ok(self.maybe_int(name)?.unwrap_or(default))
    }

    /// An integer, if there is such an attribute.
    ///
    /// # Errors
    /// If the attribute is no integer.
    pub fn maybe_int(&self, name: &str) -> Result<Option<i64>> {
        self.typed(name, "integer", |attribute| match attribute {
            Attribute::Int(value) => Some(*value),
            _ => None,
        })
    }

    /// An integer.
    ///
    /// # Errors
    /// If there is no such attribute, or it is no integer.
    pub fn required_int(&self, name: &str) -> Result<i64> {
        self.maybe_int(name)?.ok_or_else(|| Error::Refused(format!("attribute {} is missing", quoted(name))))
    }

    /// A number, or `default` if there is no such attribute.
    ///
    /// # Errors
    /// If the attribute is no number.
    pub fn float(&self, name: &str, default: f64) -> Result<f64> {
        Ok(self.maybe_float(name)?.unwrap_or(default))
    }

    /// A number, if there is such an attribute.
    ///
    /// # Errors
    /// If the attribute is no number.
    pub fn maybe_float(&self, name: &str) -> Result<Option<f64>> {
        self.typed(name, "number", |attribute| match attribute {
            Attribute::Float(value) => Some(f64::from(*value)),
            _ => None,
        })
    }

    /// A list of integers, if there is such an attribute.
    ///
    /// # Errors
    /// If the attribute is no list of integers.
    pub fn ints(&self, name: &str) -> Result<Option<&[i64]>> {
        self.typed(name, "list of integers", |attribute| match attribute {
            Attribute::Ints(values) => Some(values.as_slice()),
            _ => None,
        })
    }

    /// A list of numbers, if there is such an attribute.
    ///
    /// # Errors
    /// If the attribute is no list of numbers.
    pub fn floats(&self, name: &str) -> Result<Option<&[f32]>> {
        self.typed(name, "list of numbers", |attribute| match attribute {
            Attribute::Floats(values) => Some(values.as_slice()),
            _ => None,
        })
    }

    /// A text, or `default` if there is no such attribute.
    ///
    /// # Errors
    /// If the attribute is no text.
    pub fn text(&self, name: &str, default: &'static str) -> Result<&str> {
        let text = self.typed(name, "text", |attribute| match attribute {
            Attribute::Text(text) => Some(text.as_str()),
            _ => None,
        })?;
        Ok(text.unwrap_or(default))
    }

    /// A list of texts, if there is such an attribute.
    ///
    /// # Errors
    /// If the attribute is no list of texts.
    pub fn texts(&self, name: &str) -> Result<Option<&[String]>> {
        self.typed(name, "list of texts", |attribute| match attribute {
            Attribute::Texts(texts) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// A tensor, if there is such an attribute.
    ///
    /// # Errors
    /// If the attribute is no tensor.
    pub fn tensor(&self, name: &str) -> Result<Option<&Tensor>> {
        self.typed(name, "tensor", |attribute| match attribute {
            Attribute::Tensor(tensor) => Some(tensor),
            _ => None,
        })
    }

    /// A copy that shares its tensors.
    #[must_use]
    pub fn clone_shallow(&self) -> Self {
        Self(self.0.iter().map(|(name, attribute)| (name.clone(), attribute.clone_shallow())).collect())
    }

    fn typed<'a, T>(
        &'a self,
        name: &str,
        expected: &str,
        pick: impl Fn(&'a Attribute) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(attribute) = self.get(name) else { return Ok(None) };
        match pick(attribute) {
            Some(value) => Ok(Some(value)),
            None => Err(Error::range(format!("attribute {}", quoted(name)), expected, attribute.noun())),
        }
    }

    /// The attributes of a node outside any function.
    pub(crate) fn from_proto(protos: &[AttributeProto], external: &External) -> Checked<Self> {
        let mut attributes = Self::default();
        for proto in protos {
            let name = proto.name();
            let named = |problem: String| format!("attribute {} {problem}", quoted(name));
            if !proto.ref_attr_name().is_empty() {
                return Err(named("stands for an attribute of a function, but is not in one".into()));
            }
            let attribute = read(proto, external).map_err(named)?;
            if name.is_empty() || attributes.0.insert(name.to_owned(), attribute).is_some() {
                return Err(named("has a name that is empty or used twice".into()));
            }
        }
        Ok(attributes)
    }

    pub(crate) fn to_proto(&self) -> Checked<Vec<AttributeProto>> {
        let protos = self.iter().map(|(name, attribute)| {
            write(name, attribute).map_err(|problem| format!("attribute {} {problem}", quoted(name)))
        });
        protos.collect()
    }
}

fn read(proto: &AttributeProto, external: &External) -> Checked<Attribute> {
    Ok(match proto.kind() {
        attribute_type::FLOAT => Attribute::Float(proto.f()),
        attribute_type::INT => Attribute::Int(proto.i()),
        attribute_type::STRING => text(proto.s()).map_or(NO_TEXT, Attribute::Text),
        attribute_type::TENSOR => match &proto.t {
            Some(tensor) => Attribute::Tensor(tensor::decode(tensor, external)?),
            None => return Err("is a tensor without data".into()),
        },
        attribute_type::FLOATS => Attribute::Floats(proto.floats.clone()),
        attribute_type::INTS => Attribute::Ints(proto.ints.clone()),
        attribute_type::STRINGS => {
            let texts: Option<Vec<String>> = proto.strings.iter().map(|bytes| text(bytes)).collect();
            texts.map_or(NO_TEXT, Attribute::Texts)
        }
        attribute_type::GRAPH => Attribute::Unsupported("graph"),
        attribute_type::GRAPHS => Attribute::Unsupported("list of graphs"),
        attribute_type::TENSORS => Attribute::Unsupported("list of tensors"),
        attribute_type::SPARSE_TENSOR => Attribute::Unsupported("sparse tensor"),
        attribute_type::SPARSE_TENSORS => Attribute::Unsupported("list of sparse tensors"),
        attribute_type::TYPE_PROTO => Attribute::Unsupported("type"),
        attribute_type::TYPE_PROTOS => Attribute::Unsupported("list of types"),
        _ => Attribute::Unsupported("value of an unknown type"),
    })
}

const NO_TEXT: Attribute = Attribute::Unsupported("text that is not UTF-8");

fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

fn write(name: &str, attribute: &Attribute) -> Checked<AttributeProto> {
    let mut proto = AttributeProto { name: Some(name.to_owned()), ..Default::default() };
    let kind = match attribute {
        Attribute::Float(value) => {
            proto.f = Some(*value);
            attribute_type::FLOAT
        }
        Attribute::Int(value) => {
            proto.i = Some(*value);
            attribute_type::INT
        }
        Attribute::Text(text) => {
            proto.s = Some(text.clone().into());
            attribute_type::STRING
        }
        Attribute::Tensor(tensor) => {
            proto.t = Some(tensor::encode("", tensor)?);
            attribute_type::TENSOR
        }
        Attribute::Floats(values) => {
            proto.floats.clone_from(values);
            attribute_type::FLOATS
        }
        Attribute::Ints(values) => {
            proto.ints.clone_from(values);
            attribute_type::INTS
        }
        Attribute::Texts(texts) => {
            proto.strings = texts.iter().map(|text| text.clone().into()).collect();
            attribute_type::STRINGS
        }
        Attribute::Unsupported(noun) => return Err(format!("is a {noun}, which talion does not write")),
    };
    proto.kind = Some(kind);
    Ok(proto)
}

#[cfg(test)]
mod tests {
    use prost::bytes::Bytes;

    use super::*;

    fn example() -> Attributes {
        let mut attributes = Attributes::default();
        attributes.insert("alpha", Attribute::Float(0.5));
        attributes.insert("axis", Attribute::Int(-1));
        attributes.insert("mode", Attribute::Text("nearest".into()));
        attributes.insert("value", Attribute::Tensor(Tensor::from_slice(&[1_i64, 2])));
        attributes.insert("scales", Attribute::Floats(vec![1.0, 2.0]));
        attributes.insert("pads", Attribute::Ints(vec![]));
        attributes.insert("names", Attribute::Texts(vec!["a".into(), String::new()]));
        attributes
    }

    fn read_back(attributes: &Attributes) -> Attributes {
        Attributes::from_proto(&attributes.to_proto().unwrap(), &External::new(None)).unwrap()
    }

    #[test]
    fn values_come_out_as_they_went_in() {
        for attributes in [example(), read_back(&example()), example().clone_shallow()] {
            assert_eq!(attributes.len(), 7);
            assert_eq!(attributes.float("alpha", 1.0).unwrap(), 0.5);
            assert_eq!(attributes.required_int("axis").unwrap(), -1);
            assert_eq!(attributes.text("mode", "linear").unwrap(), "nearest");
            assert_eq!(attributes.tensor("value").unwrap(), Some(&Tensor::from_slice(&[1_i64, 2])));
            assert_eq!(attributes.floats("scales").unwrap(), Some(&[1.0, 2.0][..]));
            assert_eq!(attributes.ints("pads").unwrap(), Some(&[][..]));
            assert_eq!(attributes.texts("names").unwrap(), Some(&["a".to_owned(), String::new()][..]));
        }
    }

    #[test]
    fn what_is_absent_is_the_default() {
        let attributes = Attributes::default();
        assert!(attributes.is_empty() && attributes.get("axis").is_none());
        assert_eq!(attributes.int("axis", 1).unwrap(), 1);
        assert_eq!(attributes.maybe_int("axis").unwrap(), None);
        assert_eq!(attributes.float("alpha", 0.01).unwrap(), 0.01);
        assert_eq!(attributes.text("mode", "linear").unwrap(), "linear");
        assert_eq!(attributes.ints("pads").unwrap(), None);
        assert!(attributes.required_int("to").unwrap_err().to_string().contains("\"to\" is missing"));
    }

    #[test]
    fn a_wrong_type_is_an_error_that_names_the_attribute() {
        let attributes = example();
        let errors = [
            (attributes.int("alpha", 0).unwrap_err(), "\"alpha\" is number, expected integer"),
            (attributes.maybe_float("axis").unwrap_err(), "\"axis\" is integer, expected number"),
            (attributes.ints("axis").unwrap_err(), "\"axis\" is integer, expected list of integers"),
            (attributes.floats("pads").unwrap_err(), "\"pads\" is list of integers"),
            (attributes.text("names", "").unwrap_err(), "\"names\" is list of texts"),
            (attributes.texts("mode").unwrap_err(), "\"mode\" is text"),
            (attributes.tensor("scales").unwrap_err(), "\"scales\" is list of numbers"),
        ];
        for (error, expected) in errors {
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn what_is_not_read_is_named() {
        let read = |kind, s: &'static [u8]| {
            let s = Some(Bytes::from_static(s));
            let proto = AttributeProto { name: Some("x".into()), kind: Some(kind), s, ..Default::default() };
            Attributes::from_proto(&[proto], &External::new(None)).unwrap()
        };
        let graph = read(attribute_type::GRAPH, b"");
        assert!(matches!(graph.get("x"), Some(Attribute::Unsupported("graph"))));
        assert!(graph.int("x", 0).unwrap_err().to_string().contains("is graph"));
        assert!(graph.to_proto().unwrap_err().contains("\"x\" is a graph"));
        assert!(matches!(read(99, b"").get("x"), Some(Attribute::Unsupported(_))));
        let bytes = read(attribute_type::STRING, b"\xff");
        assert!(matches!(bytes.get("x"), Some(Attribute::Unsupported("text that is not UTF-8"))));
    }

    #[test]
    fn ambiguous_attributes_are_refused() {
        let one = AttributeProto { name: Some("x".into()), kind: Some(2), i: Some(1), ..Default::default() };
        let problem =
            |protos: &[AttributeProto]| Attributes::from_proto(protos, &External::new(None)).unwrap_err();
        assert!(problem(&[one.clone(), one.clone()]).contains("twice"));
        assert!(problem(&[AttributeProto { name: None, ..one.clone() }]).contains("empty"));
        let reference = AttributeProto { ref_attr_name: Some("y".into()), ..one.clone() };
        assert!(problem(&[reference]).contains("function"));
        let tensor = AttributeProto { kind: Some(attribute_type::TENSOR), ..one };
        assert!(problem(&[tensor]).contains("without data"));
    }
}
