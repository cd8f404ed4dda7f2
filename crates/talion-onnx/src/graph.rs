//! A graph of operations: what an ONNX file holds once it has been checked.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
};

use tch::{Kind, Tensor};

use crate::{
    attributes::{Attribute, Attributes},
    file::External,
    functions,
    proto::{
        Checked, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto,
        TensorTypeProto, TypeProto, ValueInfoProto,
    },
    tensor,
};

/// The first and last version of the format that are read; 3 is the first that states its operator sets.
const IR_VERSIONS: [i64; 2] = [3, 13];

/// The first and last version of the default operator set that are read.
const OPSETS: [i64; 2] = [7, 25];

/// The version of the format that is written.
const WRITTEN_IR_VERSION: i64 = 8;

/// The most nodes of a graph, functions inlined.
pub(crate) const MAX_NODES: usize = 1_000_000;

/// A graph whose values are tensors.
#[derive(Debug)]
pub struct Graph {
    /// The graph's name, which may be empty.
    pub name: String,
    /// The program that wrote the file, as the file says; may be empty.
    pub producer: String,
    /// Version of the default operator set.
    pub opset: i64,
    /// What has to be given to compute the graph; an input with a default value is among the constants instead.
    pub inputs: Vec<Port>,
    /// What is computed.
    pub outputs: Vec<Port>,
    /// The operations, each behind those whose results it uses.
    pub nodes: Vec<Node>,
    /// Known values by name, on the CPU, contiguous: initializers, and what nodes called `Constant` hold.
    pub constants: BTreeMap<String, Tensor>,
}

/// An input or output of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// The value's name.
    pub name: String,
    /// Type of its elements.
    pub kind: Kind,
    /// Its sides, if the file says how many there are.
    pub shape: Option<Vec<Side>>,
}

/// A side of a shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// Always of this length.
    Fixed(i64),
    /// Of whatever length; sides of the same name are equally long.
    Named(String),
    /// Of whatever length.
    Unknown,
}

/// An operation.
#[derive(Debug)]
pub struct Node {
    /// The operator, for instance `Conv`.
    pub op: String,
    /// The operator's domain; empty for the default, which files may also call `ai.onnx`.
    pub domain: String,
    /// The node's own name, which may be empty.
    pub name: String,
    /// Names of its arguments; an empty name is an optional argument that is absent.
    pub inputs: Vec<String>,
    /// Names of its results; an empty name is a result that nobody uses.
    pub outputs: Vec<String>,
    /// Its attributes.
    pub attributes: Attributes,
}

impl Node {
    /// What messages call the node, for instance `` `Conv` (node "conv1", outputs "x") ``.
    pub fn describe(&self) -> String {
        describe(&self.domain, &self.op, &self.name, &self.outputs)
    }

    /// A copy that shares the tensors of its attributes.
    #[must_use]
    pub fn clone_shallow(&self) -> Self {
        Self {
            op: self.op.clone(),
            domain: self.domain.clone(),
            name: self.name.clone(),
            inputs: self.inputs.clone(),
            outputs: self.outputs.clone(),
            attributes: self.attributes.clone_shallow(),
        }
    }

    fn from_proto(proto: NodeProto, external: &External) -> Checked<Self> {
        let attributes = Attributes::from_proto(&proto.attribute, external)
            .map_err(|problem| format!("has a node {}: {problem}", described(&proto)))?;
        if proto.op_type().is_empty() {
            return Err(format!("has a node without an operator: {}", described(&proto)));
        }
        Ok(Self {
            domain: plain_domain(proto.domain()).to_owned(),
            op: proto.op_type.unwrap_or_default(),
            name: proto.name.unwrap_or_default(),
            inputs: proto.input,
            outputs: proto.output,
            attributes,
        })
    }

    fn to_proto(&self) -> Checked<NodeProto> {
        let attribute =
            self.attributes.to_proto().map_err(|problem| format!("{}: {problem}", self.describe()))?;
        Ok(NodeProto {
            input: self.inputs.clone(),
            output: self.outputs.clone(),
            name: filled(&self.name),
            op_type: filled(&self.op),
            attribute,
            domain: filled(&self.domain),
            overload: None,
        })
    }
}

impl Port {
    fn from_proto(proto: &ValueInfoProto) -> Checked<Self> {
        let name = proto.name();
        let named = |problem: &str| format!("has an input or output {} that {problem}", quoted(name));
        if name.is_empty() {
            return Err(named("has no name"));
        }
        let kind = proto.kind.as_ref().and_then(|kind| kind.tensor_type.as_ref());
        let kind = kind.ok_or_else(|| named("is not a tensor"))?;
        Ok(Self {
            name: name.to_owned(),
            kind: tensor::kind_of(kind.elem_type()).map_err(|problem| named(&problem))?,
            shape: kind.shape.as_ref().map(|shape| shape.dim.iter().map(Side::from_proto).collect()),
        })
    }

    fn to_proto(&self) -> Checked<ValueInfoProto> {
        let elem_type = tensor::type_of(self.kind)
            .map_err(|problem| format!("the input or output {} {problem}", quoted(&self.name)))?;
        let shape = self
            .shape
            .as_ref()
            .map(|sides| TensorShapeProto { dim: sides.iter().map(Side::to_proto).collect() });
        let tensor_type = Some(TensorTypeProto { elem_type: Some(elem_type), shape });
        Ok(ValueInfoProto { name: Some(self.name.clone()), kind: Some(TypeProto { tensor_type }) })
    }
}

impl Side {
    fn from_proto(proto: &DimensionProto) -> Self {
        match (proto.dim_value, proto.dim_param()) {
            (Some(length), _) if length >= 0 => Self::Fixed(length),
            // Some exporters write -1 where they mean any length.
            (Some(_), _) | (None, "") => Self::Unknown,
            (None, name) => Self::Named(name.to_owned()),
        }
    }

    fn to_proto(&self) -> DimensionProto {
        match self {
            Self::Fixed(length) => DimensionProto { dim_value: Some(*length), dim_param: None },
            Self::Named(name) => DimensionProto { dim_value: None, dim_param: Some(name.clone()) },
            Self::Unknown => DimensionProto::default(),
        }
    }
}

impl Graph {
    /// A copy that shares all tensors.
    #[must_use]
    pub fn clone_shallow(&self) -> Self {
        let share = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.shallow_clone());
        Self {
            name: self.name.clone(),
            producer: self.producer.clone(),
            opset: self.opset,
            inputs: self.inputs.clone(),
            outputs: self.outputs.clone(),
            nodes: self.nodes.iter().map(Node::clone_shallow).collect(),
            constants: self.constants.iter().map(share).collect(),
        }
    }

    /// Checks a decoded file and makes a graph of it, functions inlined and nodes in order.
    pub(crate) fn from_proto(model: ModelProto, external: &External) -> Checked<Self> {
        let opset = versions(&model)?;
        let producer = model.producer_name.unwrap_or_default();
        let mut graph = model.graph.ok_or("is not an ONNX file (it holds no graph)")?;
        if !graph.sparse_initializer.is_empty() {
            return Err("has sparse initializers, which talion does not read".into());
        }
        functions::inline(&mut graph, &model.functions, opset)?;
        if graph.node.len() > MAX_NODES {
            return Err(too_many_nodes());
        }
        let GraphProto { node, name, initializer, input, output, .. } = graph;
        let mut constants = BTreeMap::new();
        for proto in initializer {
            let value = tensor::decode(&proto, external)?;
            define(&mut constants, proto.name.unwrap_or_default(), value)?;
        }
        let mut nodes = Vec::with_capacity(node.len());
        for proto in node {
            let node = Node::from_proto(proto, external)?;
            if node.domain.is_empty() && node.op == "Constant" {
                let (name, value) =
                    constant(&node).map_err(|problem| format!("has a node {} {problem}", node.describe()))?;
                define(&mut constants, name, value)?;
            } else {
                nodes.push(node);
            }
        }
        let inputs = input.iter().filter(|proto| !constants.contains_key(proto.name()));
        let inputs = inputs.map(Port::from_proto).collect::<Checked<_>>()?;
        let outputs = output.iter().map(Port::from_proto).collect::<Checked<_>>()?;
        let name = name.unwrap_or_default();
        let mut graph = Self { name, producer, opset, inputs, outputs, nodes, constants };
        let order = graph.order()?;
        if !order.is_sorted() {
            let mut unsorted: Vec<Option<Node>> = graph.nodes.into_iter().map(Some).collect();
            graph.nodes = order
                .into_iter()
                .filter_map(|index| unsorted.get_mut(index).and_then(Option::take))
                .collect();
        }
        Ok(graph)
    }

    /// The graph as a file holds it, but for what the file says of itself.
    pub(crate) fn to_proto(&self) -> Checked<ModelProto> {
        let order = self.order()?;
        let nodes = order.into_iter().filter_map(|index| self.nodes.get(index));
        let constants = self.constants.iter().map(|(name, value)| tensor::encode(name, value));
        let graph = GraphProto {
            node: nodes.map(Node::to_proto).collect::<Checked<_>>()?,
            // The format wants a name.
            name: Some(if self.name.is_empty() { "graph".into() } else { self.name.clone() }),
            initializer: constants.collect::<Checked<_>>()?,
            input: self.inputs.iter().map(Port::to_proto).collect::<Checked<_>>()?,
            output: self.outputs.iter().map(Port::to_proto).collect::<Checked<_>>()?,
            sparse_initializer: Vec::new(),
        };
        let domains: BTreeSet<&str> = self.nodes.iter().map(|node| node.domain.as_str()).collect();
        let others = domains.into_iter().filter(|domain| !domain.is_empty()).map(|domain| (domain, 1));
        let opset_import = std::iter::once(("", self.opset)).chain(others).map(|(domain, version)| {
            OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) }
        });
        Ok(ModelProto {
            ir_version: Some(WRITTEN_IR_VERSION),
            graph: Some(graph),
            opset_import: opset_import.collect(),
            ..Default::default()
        })
    }

    /// Places of the nodes in an order in which each comes behind those whose results it uses; nodes move only where
    /// they have to. Fails unless every value is defined, and defined once.
    fn order(&self) -> Checked<Vec<usize>> {
        let producers = self.producers()?;
        if let Some(port) = self.outputs.iter().find(|port| !producers.contains_key(port.name.as_str())) {
            return Err(format!("has an output {}, which nothing computes", quoted(&port.name)));
        }
        let mut waiting = vec![0_usize; self.nodes.len()];
        let mut users = vec![Vec::new(); self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            for input in node.inputs.iter().filter(|input| !input.is_empty()) {
                match producers.get(input.as_str()) {
                    Some(Some(producer)) => {
                        users[*producer].push(index);
                        waiting[index] += 1;
                    }
                    Some(None) => {}
                    None => {
                        let (node, input) = (node.describe(), quoted(input));
                        return Err(format!("has a node {node} that uses {input}, which nothing computes"));
                    }
                }
            }
        }
        let mut ready: BinaryHeap<Reverse<usize>> =
            (0..self.nodes.len()).filter(|&index| waiting[index] == 0).map(Reverse).collect();
        let mut order = Vec::with_capacity(self.nodes.len());
        while let Some(Reverse(index)) = ready.pop() {
            order.push(index);
            for &user in &users[index] {
                waiting[user] -= 1;
                if waiting[user] == 0 {
                    ready.push(Reverse(user));
                }
            }
        }
        match waiting.iter().zip(&self.nodes).find(|(waiting, _)| **waiting > 0) {
            Some((_, node)) => Err(format!("has nodes in a circle, at or before {}", node.describe())),
            None => Ok(order),
        }
    }

    /// Where each value comes from: a node, by its place, or none if it is known or given.
    fn producers(&self) -> Checked<HashMap<&str, Option<usize>>> {
        let inputs = self.inputs.iter().map(|port| port.name.as_str());
        let known = inputs.chain(self.constants.keys().map(String::as_str)).map(|name| (name, None));
        let computed = self.nodes.iter().enumerate().flat_map(|(index, node)| {
            let outputs = node.outputs.iter().filter(|output| !output.is_empty());
            outputs.map(move |output| (output.as_str(), Some(index)))
        });
        let mut producers = HashMap::new();
        for (name, producer) in known.chain(computed) {
            if producers.insert(name, producer).is_some() {
                return Err(format!("defines {} twice", quoted(name)));
            }
        }
        Ok(producers)
    }
}

/// The version of the default operator set, if that and the format's version can be read.
fn versions(model: &ModelProto) -> Checked<i64> {
    let format = model.ir_version.ok_or("is not an ONNX file (it states no version of the format)")?;
    let [first, last] = IR_VERSIONS;
    if !(first..=last).contains(&format) {
        return Err(format!(
            "has IR version {format}; talion reads {first} to {last}: export it again with another version of onnx"
        ));
    }
    let sets = model.opset_import.iter().filter(|set| plain_domain(set.domain()).is_empty());
    let mut versions: Vec<i64> = sets.map(OperatorSetIdProto::version).collect();
    versions.dedup();
    let [first, last] = OPSETS;
    match versions.as_slice() {
        [version] if (first..=last).contains(version) => Ok(*version),
        [version] => Err(format!(
            "uses version {version} of ONNX's operator set; talion reads {first} to {last}: export it again, for \
             instance with opset_version=17, or convert it with onnx.version_converter"
        )),
        [] => Err("states no version of ONNX's operator set".into()),
        versions => {
            Err(format!("states {} versions of ONNX's operator set; it can have one", versions.len()))
        }
    }
}

/// The value of a node called `Constant`, under the name of its output.
fn constant(node: &Node) -> Checked<(String, Tensor)> {
    let ([], [output]) = (node.inputs.as_slice(), node.outputs.as_slice()) else {
        return Err("that has not one output and no input".into());
    };
    let mut attributes = node.attributes.iter();
    let (Some(attribute), None) = (attributes.next(), attributes.next()) else {
        return Err("that has not exactly one attribute".into());
    };
    let value = match attribute {
        ("value", Attribute::Tensor(value)) => Ok(value.shallow_clone()),
        ("value_float", Attribute::Float(value)) => scalar(&value.to_le_bytes(), Kind::Float),
        ("value_int", Attribute::Int(value)) => scalar(&value.to_le_bytes(), Kind::Int64),
        ("value_floats", Attribute::Floats(values)) => Tensor::f_from_slice(values),
        ("value_ints", Attribute::Ints(values)) => Tensor::f_from_slice(values),
        (name, _) => return Err(format!("whose {} talion does not read", quoted(name))),
    };
    Ok((output.clone(), value.map_err(|error| format!("that cannot be made: {error}"))?))
}

fn scalar(bytes: &[u8], kind: Kind) -> Result<Tensor, tch::TchError> {
    Tensor::f_from_data_size(bytes, &[], kind)
}

fn define(constants: &mut BTreeMap<String, Tensor>, name: String, value: Tensor) -> Checked<()> {
    if name.is_empty() {
        return Err("has a constant without a name".into());
    }
    let shown = quoted(&name);
    match constants.insert(name, value) {
        None => Ok(()),
        Some(_) => Err(format!("defines {shown} twice")),
    }
}

pub(crate) fn too_many_nodes() -> String {
    format!("has more than {MAX_NODES} nodes")
}

/// The default domain has two names.
pub(crate) fn plain_domain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

/// A name from a file for a message: control characters escaped, and not too much of it.
pub(crate) fn quoted(name: &str) -> String {
    match name.char_indices().nth(80) {
        Some((end, _)) => format!("{:?}...", &name[..end]),
        None => format!("{name:?}"),
    }
}

/// As [`Node::describe`].
pub(crate) fn described(proto: &NodeProto) -> String {
    describe(plain_domain(proto.domain()), proto.op_type(), proto.name(), &proto.output)
}

fn describe(domain: &str, op: &str, name: &str, outputs: &[String]) -> String {
    let op = if domain.is_empty() { op.to_owned() } else { format!("{domain}.{op}") };
    let op = quoted(&op);
    let op = op.trim_matches('"');
    let mut shown: Vec<String> = outputs.iter().take(3).map(|output| quoted(output)).collect();
    if outputs.len() > shown.len() {
        shown.push("...".into());
    }
    let outputs = shown.join(", ");
    if name.is_empty() {
        format!("`{op}` (outputs {outputs})")
    } else {
        format!("`{op}` (node {}, outputs {outputs})", quoted(name))
    }
}

/// An optional text: absent if empty.
fn filled(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// Small files, for the tests of all modules that read or write them.
#[cfg(test)]
pub(crate) mod samples {
    use super::*;
    use crate::proto::{AttributeProto, TensorProto, attribute_type};

    pub(crate) fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        NodeProto {
            input: names(inputs),
            output: names(outputs),
            op_type: Some(op.into()),
            ..Default::default()
        }
    }

    pub(crate) fn integer(name: &str, value: i64) -> AttributeProto {
        let (name, kind) = (Some(name.into()), Some(attribute_type::INT));
        AttributeProto { name, kind, i: Some(value), ..Default::default() }
    }

    pub(crate) fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
        let shape = Some(dims.iter().map(|&side| Side::Fixed(side)).collect());
        Port { name: name.into(), kind: Kind::Float, shape }.to_proto().unwrap()
    }

    pub(crate) fn floats(name: &str, values: &[f32]) -> TensorProto {
        tensor::encode(name, &Tensor::from_slice(values)).unwrap()
    }

    pub(crate) fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
        OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) }
    }

    /// A model of operator set 17 with an input `x` of two numbers, an output `y` and a constant `w`.
    pub(crate) fn model(nodes: Vec<NodeProto>) -> ModelProto {
        let graph = GraphProto {
            node: nodes,
            name: Some("g".into()),
            initializer: vec![floats("w", &[1.0, 2.0])],
            input: vec![value("x", &[2])],
            output: vec![value("y", &[2])],
            sparse_initializer: Vec::new(),
        };
        ModelProto {
            ir_version: Some(8),
            opset_import: vec![opset("", 17)],
            graph: Some(graph),
            ..Default::default()
        }
    }

    pub(crate) fn read(model: ModelProto) -> Checked<Graph> {
        Graph::from_proto(model, &External::new(None))
    }
}

#[cfg(test)]
mod tests {
    use super::{samples::*, *};
    use crate::proto::{AttributeProto, attribute_type};

    /// `model` with one change.
    fn changed(change: impl FnOnce(&mut ModelProto, &mut GraphProto)) -> ModelProto {
        let mut model = model(vec![node("Add", &["x", "w"], &["h"]), node("Relu", &["h"], &["y"])]);
        let mut graph = model.graph.take().unwrap();
        change(&mut model, &mut graph);
        model.graph = Some(graph);
        model
    }

    fn problem(change: impl FnOnce(&mut ModelProto, &mut GraphProto)) -> String {
        read(changed(change)).unwrap_err()
    }

    fn ops(graph: &Graph) -> Vec<&str> {
        graph.nodes.iter().map(|node| node.op.as_str()).collect()
    }

    #[test]
    fn a_plain_model_is_read() {
        let graph = read(changed(|model, _| model.producer_name = Some("p".into()))).unwrap();
        assert_eq!((graph.name.as_str(), graph.producer.as_str(), graph.opset), ("g", "p", 17));
        let x = Port { name: "x".into(), kind: Kind::Float, shape: Some(vec![Side::Fixed(2)]) };
        assert_eq!(graph.inputs, std::slice::from_ref(&x));
        assert_eq!(graph.outputs, [Port { name: "y".into(), ..x }]);
        assert_eq!(graph.constants["w"], Tensor::from_slice(&[1.0_f32, 2.0]));
        assert_eq!(ops(&graph), ["Add", "Relu"]);
        assert_eq!(graph.nodes[0].inputs, ["x", "w"]);
        assert_eq!(graph.nodes[0].describe(), r#"`Add` (outputs "h")"#);
    }

    #[test]
    fn a_graph_comes_back_from_its_message() {
        let mut model = changed(|_, graph| {
            graph.node[0].attribute = vec![integer("axis", -1)];
            graph.node[0].name = Some("sum".into());
            graph.node[1].domain = Some("com.example".into());
        });
        model.producer_name = None;
        let mut first = read(model).unwrap();
        first.inputs[0].shape = Some(vec![Side::Named("N".into()), Side::Unknown, Side::Fixed(0)]);
        first.outputs[0].shape = None;
        first.outputs[0].kind = Kind::Half;
        let second = read(first.to_proto().unwrap()).unwrap();
        assert_eq!(format!("{first:?}"), format!("{second:?}"));
        assert_eq!(first.constants, second.constants);
        assert_eq!(format!("{first:?}"), format!("{:?}", second.clone_shallow()));
        assert_eq!(second.nodes[0].describe(), r#"`Add` (node "sum", outputs "h")"#);
        assert_eq!(second.nodes[1].describe(), r#"`com.example.Relu` (outputs "y")"#);
    }

    #[test]
    fn an_input_with_a_default_is_a_constant() {
        let graph = read(changed(|_, graph| graph.input.push(value("w", &[2])))).unwrap();
        assert_eq!(graph.inputs.len(), 1);
        assert!(graph.constants.contains_key("w"));
    }

    #[test]
    fn other_versions_are_refused_by_number() {
        for (version, found) in [(6, "version 6 of"), (26, "version 26 of"), (-1, "version -1 of")] {
            let problem = problem(|model, _| model.opset_import = vec![opset("", version)]);
            assert!(
                problem.contains(found) && problem.contains("reads 7 to 25: export it again"),
                "{problem}"
            );
        }
        for version in [7, 25] {
            let sets = vec![opset("ai.onnx", version), opset("ai.onnx.ml", 3), opset("", version)];
            let graph = read(changed(|model, _| model.opset_import = sets)).unwrap();
            assert_eq!(graph.opset, version);
        }
        let two = problem(|model, _| model.opset_import.push(opset("ai.onnx", 18)));
        assert!(two.contains("2 versions"), "{two}");
        assert!(problem(|model, _| model.opset_import.clear()).contains("no version"));
        assert!(
            problem(|model, _| model.ir_version = Some(2)).contains("IR version 2; talion reads 3 to 13")
        );
        assert!(problem(|model, _| model.ir_version = Some(14)).contains("IR version 14"));
        assert!(problem(|model, _| model.ir_version = None).contains("not an ONNX file"));
        let none = ModelProto { graph: None, ..changed(|_, _| ()) };
        assert!(read(none).unwrap_err().contains("no graph"));
    }

    #[test]
    fn nodes_are_put_into_order_and_otherwise_stay() {
        let nodes = vec![
            node("C", &["b"], &["c"]),
            node("D", &["x"], &["d"]),
            node("B", &["a", ""], &["b"]),
            node("E", &["d"], &["", "e"]),
            node("A", &["x", "w"], &["a"]),
            node("F", &["c", "e"], &["y"]),
        ];
        let graph = read(model(nodes)).unwrap();
        assert_eq!(ops(&graph), ["D", "E", "A", "B", "C", "F"]);
    }

    #[test]
    fn circles_are_refused() {
        let own = problem(|_, graph| graph.node[0].input[0] = "h".into());
        assert!(own.contains("circle") && own.contains("`Add`"), "{own}");
        let two = problem(|_, graph| graph.node[0].input[0] = "y".into());
        assert!(two.contains("circle"), "{two}");
    }

    #[test]
    fn every_value_is_defined_once() {
        assert!(
            problem(|_, graph| graph.node[0].input[0] = "z".into()).contains("uses \"z\", which nothing")
        );
        assert!(
            problem(|_, graph| graph.output.push(value("z", &[]))).contains("output \"z\", which nothing")
        );
        for name in ["x", "w", "h"] {
            let twice = problem(|_, graph| graph.node.push(node("Neg", &["x"], &[name])));
            assert!(twice.contains(&format!("defines \"{name}\" twice")), "{twice}");
        }
        assert!(problem(|_, graph| graph.initializer.push(floats("w", &[0.0]))).contains("\"w\" twice"));
        assert!(problem(|_, graph| graph.input.push(value("x", &[]))).contains("\"x\" twice"));
        assert!(problem(|_, graph| graph.initializer.push(floats("", &[0.0]))).contains("without a name"));
        assert!(problem(|_, graph| graph.input.push(value("", &[]))).contains("has no name"));
        assert!(problem(|_, graph| graph.node[0].op_type = None).contains("without an operator"));
    }

    #[test]
    fn constants_come_in_five_forms() {
        let attribute = |name: &str, kind| AttributeProto {
            name: Some(name.into()),
            kind: Some(kind),
            ..Default::default()
        };
        let tensor = Some(floats("", &[5.0]));
        let forms = [
            AttributeProto { t: tensor, ..attribute("value", attribute_type::TENSOR) },
            AttributeProto { f: Some(0.5), ..attribute("value_float", attribute_type::FLOAT) },
            AttributeProto { floats: vec![1.0, 2.0], ..attribute("value_floats", attribute_type::FLOATS) },
            AttributeProto { i: Some(-3), ..attribute("value_int", attribute_type::INT) },
            AttributeProto { ints: vec![4], ..attribute("value_ints", attribute_type::INTS) },
        ];
        let expected = [
            Tensor::from_slice(&[5.0_f32]),
            Tensor::from(0.5_f32),
            Tensor::from_slice(&[1.0_f32, 2.0]),
            Tensor::from(-3_i64),
            Tensor::from_slice(&[4_i64]),
        ];
        for (form, expected) in forms.into_iter().zip(expected) {
            let constant = NodeProto { attribute: vec![form], ..node("Constant", &[], &["c"]) };
            let graph = read(changed(|_, graph| {
                graph.node.push(constant);
                graph.output.push(value("c", &[]));
            }));
            let graph = graph.unwrap();
            assert_eq!(graph.constants["c"], expected);
            assert_eq!(graph.constants["c"].kind(), expected.kind());
            assert_eq!(graph.nodes.len(), 2);
        }
        let texts = NodeProto {
            attribute: vec![attribute("value_string", attribute_type::STRING)],
            ..node("Constant", &[], &["c"])
        };
        assert!(problem(|_, graph| graph.node.push(texts)).contains("\"value_string\" talion does not read"));
        assert!(problem(|_, graph| graph.node.push(node("Constant", &[], &["c"]))).contains("one attribute"));
        let twice = NodeProto { attribute: vec![integer("value_int", 1)], ..node("Constant", &[], &["w"]) };
        assert!(problem(|_, graph| graph.node.push(twice)).contains("\"w\" twice"));
    }

    #[test]
    fn ports_that_are_no_tensors_are_refused() {
        assert!(problem(|_, graph| graph.input[0].kind = None).contains("\"x\" that is not a tensor"));
        let texts = problem(|_, graph| {
            let kind = graph.output[0].kind.as_mut().unwrap();
            kind.tensor_type.as_mut().unwrap().elem_type = Some(8);
        });
        assert!(texts.contains("\"y\" that has type STRING"), "{texts}");
    }

    #[test]
    fn sides_that_nobody_knows_are_unknown() {
        let sides = [
            (Some(3), Some("N"), Side::Fixed(3)),
            (Some(-1), None, Side::Unknown),
            (None, Some("N"), Side::Named("N".into())),
            (None, Some(""), Side::Unknown),
            (None, None, Side::Unknown),
        ];
        for (dim_value, dim_param, expected) in sides {
            let dim_param = dim_param.map(str::to_owned);
            assert_eq!(Side::from_proto(&DimensionProto { dim_value, dim_param }), expected);
        }
    }

    #[test]
    fn references_outside_functions_and_sparse_constants_are_refused() {
        let reference = AttributeProto { ref_attr_name: Some("a".into()), ..integer("axis", 1) };
        let found = problem(|_, graph| graph.node[0].attribute = vec![reference]);
        assert!(found.contains("`Add`") && found.contains("\"axis\" stands for"), "{found}");
        let sparse = problem(|_, graph| graph.sparse_initializer.push(Default::default()));
        assert!(sparse.contains("sparse"), "{sparse}");
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let mut graph = read(changed(|_, _| ())).unwrap();
        graph.nodes[0].attributes.insert("body", Attribute::Unsupported("graph"));
        assert!(
            graph.to_proto().unwrap_err().contains("`Add` (outputs \"h\"): attribute \"body\" is a graph")
        );
        let mut graph = read(changed(|_, _| ())).unwrap();
        graph.constants.remove("w");
        assert!(graph.to_proto().unwrap_err().contains("uses \"w\", which nothing computes"));
    }

    #[test]
    fn names_in_messages_are_short_and_escaped() {
        assert_eq!(quoted("a\n\"b"), "\"a\\n\\\"b\"");
        assert_eq!(quoted(&"é".repeat(1000)).chars().count(), 85);
        let many = node("Split", &["x"], &["a", "b", "c", "d"]);
        assert_eq!(described(&many), r#"`Split` (outputs "a", "b", "c", ...)"#);
    }
}
