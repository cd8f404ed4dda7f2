//! Writing graphs: a builder that appends operators of set 17, which ONNX Runtime, TensorRT and OpenVINO all read.

use std::collections::{BTreeMap, HashMap, HashSet};

use talion_core::{Error, Result};
use tch::{Device, Kind, Tensor};

use crate::{
    attributes::{Attribute, Attributes},
    convert,
    graph::{Graph, Node, Port, Side, quoted},
    tensor,
};

/// The version of the default operator set that is written.
pub(crate) const OPSET: i64 = 17;

/// Constants of at most so many elements are compared by their bytes, larger ones by where they are in memory.
const SMALL: usize = 64;

/// A value of the graph that a [`Builder`] is making.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Var(String);

impl Var {
    /// Its name in the graph.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// An optional input that is left out.
    pub fn absent() -> Self {
        Self(String::new())
    }
}

/// What makes two constants the same.
#[derive(PartialEq, Eq, Hash)]
enum Content {
    /// Few elements: their bytes.
    Bytes(Vec<i64>, Kind, Vec<u8>),
    /// Many: their place in memory, which stays theirs because the builder keeps the tensor.
    Place(Vec<i64>, Kind, usize),
}

impl Content {
    fn of(tensor: &Tensor) -> Self {
        let (shape, kind, numel) = (tensor.size(), tensor.kind(), tensor.numel());
        if numel <= SMALL {
            let mut bytes = vec![0; numel * kind.elt_size_in_bytes()];
            if tensor.f_copy_data_u8(&mut bytes, numel).is_ok() {
                return Self::Bytes(shape, kind, bytes);
            }
        }
        Self::Place(shape, kind, tensor.data_ptr() as usize)
    }
}

/// Appends operators, each named after what it does (`conv_3`, `trn/conv_4`), and makes a [`Graph`] of them.
///
/// Nothing is checked while building: a mistake shows in [`Builder::finish`] if it is one of names, and otherwise when
/// the graph runs. Shapes are those of ONNX: the batch is never written down, so a graph runs at every batch size.
pub struct Builder {
    name: String,
    inputs: Vec<Port>,
    nodes: Vec<Node>,
    constants: BTreeMap<String, Tensor>,
    shared: HashMap<Content, Var>,
    /// Names of values and nodes.
    taken: HashSet<String>,
    counters: HashMap<String, u64>,
    prefix: String,
    /// What [`Builder::finish`] refuses.
    problems: Vec<String>,
}

impl Builder {
    /// An empty graph.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            inputs: Vec::new(),
            nodes: Vec::new(),
            constants: BTreeMap::new(),
            shared: HashMap::new(),
            taken: HashSet::new(),
            counters: HashMap::new(),
            prefix: String::new(),
            problems: Vec::new(),
        }
    }

    /// An input under exactly this name.
    pub fn input(&mut self, name: &str, kind: Kind, shape: Vec<Side>) -> Var {
        if name.is_empty() || !self.taken.insert(name.to_owned()) {
            self.problems.push(format!("the name of the input {} is empty or not new", quoted(name)));
        }
        self.inputs.push(Port { name: name.to_owned(), kind, shape: Some(shape) });
        Var(name.to_owned())
    }

    /// The finished graph, with `f32` outputs under the given names and of the given shapes.
    ///
    /// Operators and constants that no output needs are left out.
    ///
    /// # Errors
    /// If two inputs or outputs have the same name, or an operator reads a value that this builder has not made.
    pub fn finish(mut self, outputs: &[(&str, &Var, Vec<Side>)]) -> Result<Graph> {
        if let Some(problem) = self.problems.first() {
            return Err(Error::Refused(format!("graph {}: {problem}", quoted(&self.name))));
        }
        let mut sources: Vec<String> = outputs.iter().map(|(_, var, _)| var.0.clone()).collect();
        let mut names = HashSet::new();
        for (name, var, _) in outputs {
            if name.is_empty() || !names.insert(*name) || self.inputs.iter().any(|port| port.name == *name) {
                let problem = format!("the name of the output {} is empty or not new", quoted(name));
                return Err(Error::Refused(format!("graph {}: {problem}", quoted(&self.name))));
            }
            if var.0.is_empty() {
                return Err(undefined(&self.name, &format!("the output {}", quoted(name)), ""));
            }
            self.vacate(name, &mut sources);
        }
        self.prefix.clear();
        let mut ports = Vec::new();
        for ((name, _, shape), source) in outputs.iter().zip(sources) {
            let node = self.fresh("output");
            self.push("Identity", node, vec![source], vec![(*name).to_owned()], Attributes::default());
            ports.push(Port { name: (*name).to_owned(), kind: Kind::Float, shape: Some(shape.clone()) });
        }
        let nodes = needed(self.nodes, &ports);
        check_names(&self.name, &self.inputs, &self.constants, &nodes)?;
        let read: HashSet<&str> = nodes.iter().flat_map(|node| &node.inputs).map(String::as_str).collect();
        self.constants.retain(|name, _| read.contains(name.as_str()));
        Ok(Graph {
            name: self.name,
            producer: "talion".into(),
            opset: OPSET,
            inputs: self.inputs,
            outputs: ports,
            nodes,
            constants: self.constants,
        })
    }

    /// Makes a name free for an output, by renaming the value that has it.
    fn vacate(&mut self, name: &str, sources: &mut [String]) {
        if self.taken.insert(name.to_owned()) {
            return;
        }
        let other = self.fresh(name);
        let values = self.nodes.iter_mut().flat_map(|node| node.inputs.iter_mut().chain(&mut node.outputs));
        for value in values.chain(sources).filter(|value| *value == name) {
            value.clone_from(&other);
        }
        if let Some(tensor) = self.constants.remove(name) {
            self.constants.insert(other, tensor);
        }
    }

    /// Puts `name/` before the names of everything that `f` appends.
    pub fn scope<T>(&mut self, name: &str, f: impl FnOnce(&mut Self) -> T) -> T {
        let outer = self.prefix.len();
        self.prefix.push_str(name);
        self.prefix.push('/');
        let result = f(self);
        self.prefix.truncate(outer);
        result
    }

    /// A name that nothing has: `base` with a number behind it.
    fn fresh(&mut self, base: &str) -> String {
        let base = format!("{}{base}", self.prefix);
        let counter = self.counters.entry(base.clone()).or_insert(0);
        loop {
            *counter += 1;
            let name = format!("{base}_{counter}");
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }

    fn push(
        &mut self,
        op: &str,
        name: String,
        mut inputs: Vec<String>,
        outputs: Vec<String>,
        attributes: Attributes,
    ) {
        while inputs.last().is_some_and(String::is_empty) {
            inputs.pop();
        }
        self.nodes.push(Node { op: op.to_owned(), domain: String::new(), name, inputs, outputs, attributes });
    }

    /// A constant. Equal small ones, and large ones that share their memory, are kept once.
    pub fn constant(&mut self, t: &Tensor) -> Var {
        self.named_constant("constant", t)
    }

    fn named_constant(&mut self, base: &str, t: &Tensor) -> Var {
        let tensor = t.detach().to_device(Device::Cpu).contiguous();
        let content = Content::of(&tensor);
        if let Some(var) = self.shared.get(&content) {
            return var.clone();
        }
        let var = Var(self.fresh(base));
        self.constants.insert(var.0.clone(), tensor);
        self.shared.insert(content, var.clone());
        var
    }

    /// A number, `f32` of rank 0.
    pub fn scalar(&mut self, v: f64) -> Var {
        self.constant(&Tensor::from(v as f32))
    }

    /// A list of integers, `i64` of rank 1.
    pub fn ints(&mut self, v: &[i64]) -> Var {
        self.constant(&Tensor::from_slice(v))
    }

    /// An operator with one output.
    pub fn node(&mut self, op: &str, inputs: &[&Var], attributes: Vec<(&str, Attribute)>) -> Var {
        let name = self.fresh(&snake(op));
        self.append(op, name.clone(), inputs, vec![name.clone()], attributes);
        Var(name)
    }

    /// An operator with several outputs.
    pub fn nodes(
        &mut self,
        op: &str,
        inputs: &[&Var],
        attributes: Vec<(&str, Attribute)>,
        outputs: usize,
    ) -> Vec<Var> {
        let base = snake(op);
        let name = self.fresh(&base);
        let names: Vec<String> = (0..outputs).map(|_| self.fresh(&format!("{base}_part"))).collect();
        self.append(op, name, inputs, names.clone(), attributes);
        names.into_iter().map(Var).collect()
    }

    fn append(
        &mut self,
        op: &str,
        name: String,
        inputs: &[&Var],
        outputs: Vec<String>,
        attributes: Vec<(&str, Attribute)>,
    ) {
        let mut all = Attributes::default();
        for (name, attribute) in attributes {
            all.insert(name, attribute);
        }
        let inputs = inputs.iter().map(|var| var.0.clone()).collect();
        self.push(op, name, inputs, outputs, all);
    }

    /// Copies another graph in, its nodes and values renamed, and returns its outputs in order.
    ///
    /// The copy is folded and, where its operator set is another one, rewritten in operators of set 17. Constants that
    /// are in the builder already, because the same graph was copied before, are not copied again.
    ///
    /// # Errors
    /// If the number of inputs is not that of the graph, or the graph has an operator that cannot be written in
    /// operators of set 17, which is then named.
    pub fn splice(&mut self, graph: &Graph, inputs: &[&Var]) -> Result<Vec<Var>> {
        let graph = convert::prepare(graph)?;
        let values = self.copy(&graph, inputs)?;
        let output = |port: &Port| {
            values.get(&port.name).cloned().ok_or_else(|| undefined(&graph.name, "an output", &port.name))
        };
        graph.outputs.iter().map(output).collect()
    }

    /// Copies a graph that [`convert::prepare`] has made, and returns what became of each of its values.
    pub(crate) fn copy(&mut self, graph: &Graph, inputs: &[&Var]) -> Result<BTreeMap<String, Var>> {
        if inputs.len() != graph.inputs.len() {
            let what = format!("the number of inputs of graph {}", quoted(&graph.name));
            return Err(Error::range(what, graph.inputs.len().to_string(), inputs.len()));
        }
        let given = graph.inputs.iter().zip(inputs);
        let mut values: BTreeMap<String, Var> =
            given.map(|(port, var)| (port.name.clone(), (*var).clone())).collect();
        for node in &graph.nodes {
            if let Some(name) = unsupported_attribute(&node.attributes) {
                let problem =
                    format!("{}: the attribute {} cannot be written", node.describe(), quoted(&name));
                return Err(Error::Refused(problem));
            }
            let inputs = node
                .inputs
                .iter()
                .map(|name| self.copied(graph, &mut values, name, &node.describe()))
                .collect::<Result<Vec<String>>>()?;
            let name = self.fresh(&if node.name.is_empty() { snake(&node.op) } else { node.name.clone() });
            let mut outputs = Vec::new();
            for output in &node.outputs {
                let copied = if output.is_empty() { String::new() } else { self.fresh(output) };
                values.insert(output.clone(), Var(copied.clone()));
                outputs.push(copied);
            }
            self.push(&node.op, name, inputs, outputs, node.attributes.clone_shallow());
        }
        for port in &graph.outputs {
            self.copied(graph, &mut values, &port.name, "an output")?;
        }
        Ok(values)
    }

    /// The copy's name for a value of `graph`, whose constants are copied when they are first read.
    fn copied(
        &mut self,
        graph: &Graph,
        values: &mut BTreeMap<String, Var>,
        name: &str,
        reader: &str,
    ) -> Result<String> {
        if name.is_empty() {
            return Ok(String::new());
        }
        if let Some(var) = values.get(name) {
            return Ok(var.0.clone());
        }
        let tensor = graph.constants.get(name).ok_or_else(|| undefined(&graph.name, reader, name))?;
        let var = self.named_constant(name, tensor);
        values.insert(name.to_owned(), var.clone());
        Ok(var.0)
    }
}

/// Methods of one operator on one value.
macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident $op:literal;)*) => {
        $($(#[$doc])* pub fn $name(&mut self, x: &Var) -> Var {
            self.node($op, &[x], vec![])
        })*
    };
}

/// Methods of one operator on two values, which are broadcast against each other.
macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident $op:literal;)*) => {
        $($(#[$doc])* pub fn $name(&mut self, a: &Var, b: &Var) -> Var {
            self.node($op, &[a, b], vec![])
        })*
    };
}

/// Arithmetic, element by element.
impl Builder {
    unary! {
        /// `-x`.
        neg "Neg";
        /// `max(x, 0)`.
        relu "Relu";
        /// `1 / (1 + exp(-x))`.
        sigmoid "Sigmoid";
        /// The hyperbolic tangent.
        tanh "Tanh";
        /// The exponential function.
        exp "Exp";
        /// The natural logarithm.
        log "Log";
        /// The square root.
        sqrt "Sqrt";
        /// The absolute value.
        abs "Abs";
        /// `1 / x`.
        reciprocal "Reciprocal";
        /// -1, 0 or 1.
        sign "Sign";
        /// The error function.
        erf "Erf";
    }

    binary! {
        /// `a + b`.
        add "Add";
        /// `a - b`.
        sub "Sub";
        /// `a * b`.
        mul "Mul";
        /// `a / b`.
        div "Div";
        /// The larger of two.
        maximum "Max";
        /// The smaller of two.
        minimum "Min";
        /// `a > b`, as booleans.
        greater "Greater";
        /// `a == b`, as booleans.
        equal "Equal";
        /// Matrix products over the last two sides.
        matmul "MatMul";
    }

    /// `x` to a constant power.
    pub fn pow(&mut self, x: &Var, exponent: f64) -> Var {
        let exponent = self.scalar(exponent);
        self.node("Pow", &[x, &exponent], vec![])
    }

    /// `x` held between two bounds.
    pub fn clip(&mut self, x: &Var, low: f64, high: f64) -> Var {
        let (low, high) = (self.scalar(low), self.scalar(high));
        self.node("Clip", &[x, &low, &high], vec![])
    }

    /// `a` where `condition`, `b` elsewhere.
    pub fn where_(&mut self, condition: &Var, a: &Var, b: &Var) -> Var {
        self.node("Where", &[condition, a, b], vec![])
    }

    /// The same values in another type, which has to be a plain float, integer or boolean one.
    pub fn cast(&mut self, x: &Var, kind: Kind) -> Var {
        let number = tensor::type_of(kind).unwrap_or_else(|problem| {
            self.problems.push(format!("what a cast makes {problem}"));
            0
        });
        self.node("Cast", &[x], vec![("to", Attribute::Int(number.into()))])
    }

    /// Softmax along one side.
    pub fn softmax(&mut self, x: &Var, axis: i64) -> Var {
        self.node("Softmax", &[x], vec![("axis", Attribute::Int(axis))])
    }

    /// The logarithm of the softmax along one side.
    pub fn log_softmax(&mut self, x: &Var, axis: i64) -> Var {
        self.node("LogSoftmax", &[x], vec![("axis", Attribute::Int(axis))])
    }
}

/// Shapes.
impl Builder {
    /// The values one after the other along one side.
    pub fn concat(&mut self, parts: &[&Var], axis: i64) -> Var {
        self.node("Concat", parts, vec![("axis", Attribute::Int(axis))])
    }

    /// The `len` elements from `start`, which is not negative, along one side.
    pub fn slice(&mut self, x: &Var, axis: i64, start: i64, len: i64) -> Var {
        self.slices(x, &[axis], &[start], &[start.saturating_add(len)])
    }

    /// The elements from `starts` up to `ends` along several sides.
    pub(crate) fn slices(&mut self, x: &Var, axes: &[i64], starts: &[i64], ends: &[i64]) -> Var {
        let (starts, ends, axes) = (self.ints(starts), self.ints(ends), self.ints(axes));
        self.node("Slice", &[x, &starts, &ends, &axes], vec![])
    }

    /// Parts of the given lengths along one side.
    pub fn split(&mut self, x: &Var, axis: i64, sizes: &[i64]) -> Vec<Var> {
        let parts = sizes.len();
        let sizes = self.ints(sizes);
        self.nodes("Split", &[x, &sizes], vec![("axis", Attribute::Int(axis))], parts)
    }

    /// The same elements in another shape, where 0 keeps a side and -1 is what is left.
    pub fn reshape(&mut self, x: &Var, shape: &[i64]) -> Var {
        let shape = self.ints(shape);
        self.node("Reshape", &[x, &shape], vec![])
    }

    /// The same elements in the shape of another value.
    pub(crate) fn reshape_like(&mut self, x: &Var, like: &Var) -> Var {
        let shape = self.shape(like);
        self.node("Reshape", &[x, &shape], vec![])
    }

    /// The shape, `i64` of rank 1.
    pub(crate) fn shape(&mut self, x: &Var) -> Var {
        self.node("Shape", &[x], vec![])
    }

    /// `x` with sides of 1 at `axes` of the result.
    pub fn unsqueeze(&mut self, x: &Var, axes: &[i64]) -> Var {
        let axes = self.ints(axes);
        self.node("Unsqueeze", &[x, &axes], vec![])
    }

    /// `x` without its sides at `axes`, which are 1.
    pub fn squeeze(&mut self, x: &Var, axes: &[i64]) -> Var {
        let axes = self.ints(axes);
        self.node("Squeeze", &[x, &axes], vec![])
    }

    /// `x` with its sides in the order `perm`.
    pub fn transpose(&mut self, x: &Var, perm: &[i64]) -> Var {
        self.node("Transpose", &[x], vec![("perm", Attribute::Ints(perm.to_vec()))])
    }

    /// `x` repeated to the shape of another value.
    pub fn expand_like(&mut self, x: &Var, like: &Var) -> Var {
        let shape = self.shape(like);
        self.node("Expand", &[x, &shape], vec![])
    }

    /// Zeros, `f32`, of the shape of another value.
    pub(crate) fn zeros_like(&mut self, like: &Var) -> Var {
        let shape = self.shape(like);
        self.node("ConstantOfShape", &[&shape], vec![])
    }

    /// All sides but the first as one.
    pub fn flatten(&mut self, x: &Var) -> Var {
        self.node("Flatten", &[x], vec![("axis", Attribute::Int(1))])
    }

    /// Replicates the border of `[N, C, H, W]`.
    pub fn pad_edge(&mut self, x: &Var, top: i64, left: i64, bottom: i64, right: i64) -> Var {
        let pads = self.ints(&[0, 0, top, left, 0, 0, bottom, right]);
        self.node("Pad", &[x, &pads], vec![("mode", Attribute::Text("edge".into()))])
    }

    /// Zeros around `x`: as many as `pads` says before each side, then behind each side.
    pub(crate) fn pad_zeros(&mut self, x: &Var, pads: &[i64]) -> Var {
        let pads = self.ints(pads);
        self.node("Pad", &[x, &pads], vec![])
    }

    /// `[N, C, H, W]` enlarged to a fixed height and width, by the nearest pixel above and to the left.
    pub fn upsample_nearest(&mut self, x: &Var, height: i64, width: i64) -> Var {
        let shape = self.shape(x);
        let kept = self.slice(&shape, 0, 0, 2);
        let asked = self.ints(&[height, width]);
        let sizes = self.concat(&[&kept, &asked], 0);
        let text = |value: &str| Attribute::Text(value.into());
        let attributes = vec![
            ("mode", text("nearest")),
            ("coordinate_transformation_mode", text("asymmetric")),
            ("nearest_mode", text("floor")),
        ];
        self.node("Resize", &[x, &Var::absent(), &Var::absent(), &sizes], attributes)
    }
}

/// Reductions and choices.
impl Builder {
    /// The mean over `axes`, which stay as sides of 1 if `keep`.
    pub fn reduce_mean(&mut self, x: &Var, axes: &[i64], keep: bool) -> Var {
        self.reduce("ReduceMean", x, axes, keep)
    }

    /// The maximum over `axes`, which stay as sides of 1 if `keep`.
    pub fn reduce_max(&mut self, x: &Var, axes: &[i64], keep: bool) -> Var {
        self.reduce("ReduceMax", x, axes, keep)
    }

    fn reduce(&mut self, op: &str, x: &Var, axes: &[i64], keep: bool) -> Var {
        let keep = Attribute::Int(keep.into());
        self.node(op, &[x], vec![("axes", Attribute::Ints(axes.to_vec())), ("keepdims", keep)])
    }

    /// The sum over `axes`, which stay as sides of 1 if `keep`.
    pub fn reduce_sum(&mut self, x: &Var, axes: &[i64], keep: bool) -> Var {
        let axes = self.ints(axes);
        self.node("ReduceSum", &[x, &axes], vec![("keepdims", Attribute::Int(keep.into()))])
    }

    /// Where the first maximum along one side is, `i64`, without that side.
    pub fn arg_max(&mut self, x: &Var, axis: i64) -> Var {
        self.arg("ArgMax", x, axis)
    }

    /// Where the first minimum along one side is, `i64`, without that side.
    pub fn arg_min(&mut self, x: &Var, axis: i64) -> Var {
        self.arg("ArgMin", x, axis)
    }

    fn arg(&mut self, op: &str, x: &Var, axis: i64) -> Var {
        self.node(op, &[x], vec![("axis", Attribute::Int(axis)), ("keepdims", Attribute::Int(0))])
    }

    /// The elements of `x` that `index`, of the same rank, names along one side.
    pub fn gather_elements(&mut self, x: &Var, index: &Var, axis: i64) -> Var {
        self.node("GatherElements", &[x, index], vec![("axis", Attribute::Int(axis))])
    }

    /// 1 at each label and 0 elsewhere, `f32`, `[N, classes]` for labels `[N]`.
    pub fn one_hot(&mut self, labels: &Var, classes: i64) -> Var {
        let depth = self.constant(&Tensor::from(classes));
        let values = self.constant(&Tensor::from_slice(&[0_f32, 1.0]));
        self.node("OneHot", &[labels, &depth, &values], vec![("axis", Attribute::Int(-1))])
    }

    /// The `k` largest along one side, largest first, and where they are (`i64`).
    pub fn top_k(&mut self, x: &Var, k: i64, axis: i64) -> (Var, Var) {
        let count = self.ints(&[k]);
        let attributes = vec![
            ("axis", Attribute::Int(axis)),
            ("largest", Attribute::Int(1)),
            ("sorted", Attribute::Int(1)),
        ];
        let mut outputs = self.nodes("TopK", &[x, &count], attributes, 2).into_iter();
        (outputs.next().unwrap_or_else(Var::absent), outputs.next().unwrap_or_else(Var::absent))
    }
}

/// Layers.
impl Builder {
    /// A two-dimensional convolution, padded by the same number above and below, left and right.
    ///
    /// # Shapes
    /// `x` `[N, C, H, W]`, `weight` `[O, C / groups, h, w]`, `bias` `[O]`.
    pub fn conv(
        &mut self,
        x: &Var,
        weight: &Tensor,
        bias: Option<&Tensor>,
        stride: [i64; 2],
        padding: [i64; 2],
        groups: i64,
    ) -> Var {
        let kernel = weight.size().into_iter().skip(2).collect();
        let mut attributes = window(kernel, stride, padding);
        attributes.push(("dilations", Attribute::Ints(vec![1, 1])));
        attributes.push(("group", Attribute::Int(groups)));
        let (weight, bias) = self.weights(weight, bias);
        self.node("Conv", &[x, &weight, &bias], attributes)
    }

    /// `x` times the transpose of `weight`, plus `bias`.
    ///
    /// # Shapes
    /// `x` `[N, in]`, `weight` `[out, in]`, `bias` `[out]`.
    pub fn gemm(&mut self, x: &Var, weight: &Tensor, bias: Option<&Tensor>) -> Var {
        let (weight, bias) = self.weights(weight, bias);
        self.node("Gemm", &[x, &weight, &bias], vec![("transB", Attribute::Int(1))])
    }

    /// The same as [`Builder::gemm`], under the name that networks call it by.
    pub fn linear(&mut self, x: &Var, weight: &Tensor, bias: Option<&Tensor>) -> Var {
        self.gemm(x, weight, bias)
    }

    fn weights(&mut self, weight: &Tensor, bias: Option<&Tensor>) -> (Var, Var) {
        let weight = self.named_constant("weight", weight);
        (weight, bias.map_or_else(Var::absent, |bias| self.named_constant("bias", bias)))
    }

    /// The maximum of each window of `[N, C, H, W]`.
    pub fn max_pool(&mut self, x: &Var, kernel: [i64; 2], stride: [i64; 2], padding: [i64; 2]) -> Var {
        self.node("MaxPool", &[x], window(kernel.to_vec(), stride, padding))
    }

    /// The mean of each window of `[N, C, H, W]`, none of which reaches over the border.
    pub fn average_pool(&mut self, x: &Var, kernel: [i64; 2], stride: [i64; 2]) -> Var {
        self.node("AveragePool", &[x], window(kernel.to_vec(), stride, [0, 0]))
    }

    /// The mean over height and width: `[N, C, 1, 1]` if `keep`, otherwise `[N, C]`.
    pub fn global_average(&mut self, x: &Var, keep: bool) -> Var {
        let mean = self.node("GlobalAveragePool", &[x], vec![]);
        if keep { mean } else { self.flatten(&mean) }
    }
}

/// The attributes of what slides over an image.
fn window(kernel: Vec<i64>, stride: [i64; 2], padding: [i64; 2]) -> Vec<(&'static str, Attribute)> {
    vec![
        ("kernel_shape", Attribute::Ints(kernel)),
        ("strides", Attribute::Ints(stride.to_vec())),
        ("pads", Attribute::Ints([padding, padding].concat())),
    ]
}

/// `ConvTranspose` as `conv_transpose`.
fn snake(op: &str) -> String {
    let mut name = String::with_capacity(op.len() + 4);
    let mut lower = false;
    for letter in op.chars() {
        if letter.is_ascii_uppercase() && lower {
            name.push('_');
        }
        lower = !letter.is_ascii_uppercase();
        name.push(letter.to_ascii_lowercase());
    }
    name
}

fn unsupported_attribute(attributes: &Attributes) -> Option<String> {
    let unsupported = |attribute: &Attribute| matches!(attribute, Attribute::Unsupported(_));
    attributes.iter().find(|(_, attribute)| unsupported(attribute)).map(|(name, _)| name.to_owned())
}

fn undefined(graph: &str, reader: &str, name: &str) -> Error {
    let (graph, name) = (quoted(graph), quoted(name));
    Error::Refused(format!("graph {graph}: {reader} reads {name}, which nothing before it makes"))
}

/// The nodes that the outputs need.
fn needed(nodes: Vec<Node>, outputs: &[Port]) -> Vec<Node> {
    let mut live: HashSet<String> = outputs.iter().map(|port| port.name.clone()).collect();
    let mut kept = Vec::with_capacity(nodes.len());
    for node in nodes.into_iter().rev() {
        if node.outputs.iter().any(|name| live.contains(name)) {
            live.extend(node.inputs.iter().filter(|name| !name.is_empty()).cloned());
            kept.push(node);
        }
    }
    kept.reverse();
    kept
}

/// Checks that every operator reads what is there before it.
fn check_names(
    graph: &str,
    inputs: &[Port],
    constants: &BTreeMap<String, Tensor>,
    nodes: &[Node],
) -> Result<()> {
    let mut known: HashSet<&str> = inputs.iter().map(|port| port.name.as_str()).collect();
    known.extend(constants.keys().map(String::as_str));
    for node in nodes {
        for name in node.inputs.iter().filter(|name| !name.is_empty()) {
            if !known.contains(name.as_str()) {
                return Err(undefined(graph, &node.describe(), name));
            }
        }
        known.extend(node.outputs.iter().map(String::as_str));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Program;

    /// Numbers in -1..1 that look random.
    fn numbers(shape: &[i64], seed: f64) -> Tensor {
        let count: i64 = shape.iter().product();
        let wild = (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898 + seed).sin() * 43758.5453;
        ((&wild - wild.floor()) * 2.0 - 1.0).to_kind(Kind::Float).reshape(shape)
    }

    fn unknown(rank: usize) -> Vec<Side> {
        vec![Side::Unknown; rank]
    }

    /// What a graph of one input makes of `x`, as `f32`.
    fn run(x: &Tensor, build: impl FnOnce(&mut Builder, &Var) -> Var) -> Tensor {
        let mut b = Builder::new("test");
        let input = b.input("x", Kind::Float, unknown(x.dim()));
        let y = build(&mut b, &input);
        let y = b.cast(&y, Kind::Float);
        let graph = b.finish(&[("y", &y, unknown(x.dim()))]).unwrap();
        Program::new(graph, Device::Cpu).unwrap().run(&[x.shallow_clone()]).unwrap().remove(0)
    }

    #[track_caller]
    fn same(found: &Tensor, expected: &Tensor) {
        assert_eq!(found.size(), expected.size());
        let expected = expected.to_kind(Kind::Float);
        assert!(found.allclose(&expected, 1e-5, 1e-6, false), "{found} is not {expected}");
    }

    #[test]
    fn arithmetic_is_that_of_libtorch() {
        let x = numbers(&[2, 3, 4], 0.1);
        let other = numbers(&[3, 1], 0.2);
        let positive = x.abs() + 0.5;
        same(&run(&x, |b, x| b.neg(x)), &x.neg());
        same(&run(&x, |b, x| b.relu(x)), &x.relu());
        same(&run(&x, |b, x| b.sigmoid(x)), &x.sigmoid());
        same(&run(&x, |b, x| b.tanh(x)), &x.tanh());
        same(&run(&x, |b, x| b.exp(x)), &x.exp());
        same(&run(&positive, |b, x| b.log(x)), &positive.log());
        same(&run(&positive, |b, x| b.sqrt(x)), &positive.sqrt());
        same(&run(&x, |b, x| b.abs(x)), &x.abs());
        same(&run(&x, |b, x| b.reciprocal(x)), &x.reciprocal());
        same(&run(&x, |b, x| b.sign(x)), &x.sign());
        same(&run(&x, |b, x| b.erf(x)), &x.erf());
        same(&run(&positive, |b, x| b.pow(x, 1.5)), &positive.pow_tensor_scalar(1.5));
        same(&run(&x, |b, x| b.clip(x, -0.25, 0.5)), &x.clamp(-0.25, 0.5));
        same(&run(&x, |b, x| b.softmax(x, 1)), &x.softmax(1, None));
        same(&run(&x, |b, x| b.log_softmax(x, -1)), &x.log_softmax(-1, None));
        let with = |op: fn(&mut Builder, &Var, &Var) -> Var| {
            run(&x, |b, x| {
                let other = b.constant(&other);
                op(b, x, &other)
            })
        };
        same(&with(Builder::add), &(&x + &other));
        same(&with(Builder::sub), &(&x - &other));
        same(&with(Builder::mul), &(&x * &other));
        same(&with(Builder::div), &(&x / &other));
        same(&with(Builder::maximum), &x.maximum(&other));
        same(&with(Builder::minimum), &x.minimum(&other));
        same(&with(Builder::greater), &x.gt_tensor(&other));
        same(&with(Builder::equal), &x.eq_tensor(&other));
        let chosen = run(&x, |b, x| {
            let (other, zero) = (b.constant(&other), b.scalar(0.0));
            let condition = b.greater(x, &zero);
            b.where_(&condition, x, &other)
        });
        same(&chosen, &x.where_self(&x.gt(0.0), &other));
    }

    #[test]
    fn shapes_are_those_of_libtorch() {
        let x = numbers(&[2, 3, 4, 5], 0.3);
        same(&run(&x, |b, x| b.concat(&[x, x], 1)), &Tensor::cat(&[&x, &x], 1));
        same(&run(&x, |b, x| b.slice(x, 3, 1, 3)), &x.narrow(3, 1, 3));
        let swapped = run(&x, |b, x| {
            let parts = b.split(x, 2, &[1, 3]);
            b.concat(&[&parts[1], &parts[0]], 2)
        });
        same(&swapped, &Tensor::cat(&[x.narrow(2, 1, 3), x.narrow(2, 0, 1)], 2));
        same(&run(&x, |b, x| b.reshape(x, &[0, 6, -1])), &x.reshape([2, 6, 10]));
        same(&run(&x, |b, x| b.unsqueeze(x, &[0, 5])), &x.unsqueeze(0).unsqueeze(5));
        let both_ways = run(&x, |b, x| {
            let raised = b.unsqueeze(x, &[1]);
            b.squeeze(&raised, &[1])
        });
        same(&both_ways, &x);
        same(&run(&x, |b, x| b.transpose(x, &[0, 2, 3, 1])), &x.permute([0, 2, 3, 1]));
        let expanded = run(&x, |b, x| {
            let row = b.constant(&numbers(&[1, 3, 1, 1], 0.4));
            b.expand_like(&row, x)
        });
        same(&expanded, &numbers(&[1, 3, 1, 1], 0.4).expand([2, 3, 4, 5], false));
        same(&run(&x, |b, x| b.flatten(x)), &x.flatten(1, -1));
        same(&run(&x, |b, x| b.zeros_like(x)), &x.zeros_like());
        same(&run(&x, |b, x| b.pad_edge(x, 1, 2, 0, 3)), &x.replication_pad2d([2, 3, 1, 0]));
        same(&run(&x, |b, x| b.upsample_nearest(x, 8, 15)), &x.upsample_nearest2d([8, 15], None, None));
        same(&run(&x, |b, x| b.upsample_nearest(x, 7, 8)), &x.upsample_nearest2d([7, 8], None, None));
    }

    #[test]
    fn reductions_and_choices_are_those_of_libtorch() {
        let x = numbers(&[3, 4, 5], 0.5);
        let dims: &[i64] = &[0, 2];
        same(&run(&x, |b, x| b.reduce_mean(x, &[0, 2], true)), &x.mean_dim(dims, true, None));
        same(&run(&x, |b, x| b.reduce_sum(x, &[0, 2], false)), &x.sum_dim_intlist(dims, false, None));
        same(&run(&x, |b, x| b.reduce_max(x, &[1], false)), &x.amax([1], false));
        same(&run(&x, |b, x| b.arg_max(x, 1)), &x.argmax(1, false));
        same(&run(&x, |b, x| b.arg_min(x, 2)), &x.argmin(2, false));
        let gathered = run(&x, |b, x| {
            let index = b.arg_max(x, 1);
            let index = b.unsqueeze(&index, &[1]);
            b.gather_elements(x, &index, 1)
        });
        same(&gathered, &x.amax([1], true));
        let rows = numbers(&[6, 4], 0.6);
        let hot = run(&rows, |b, x| {
            let labels = b.arg_max(x, 1);
            b.one_hot(&labels, 4)
        });
        same(&hot, &rows.argmax(1, false).one_hot(4));
        let (values, indices) = rows.topk(2, 1, true, true);
        same(&run(&rows, |b, x| b.top_k(x, 2, 1).0), &values);
        same(&run(&rows, |b, x| b.top_k(x, 2, 1).1), &indices);
    }

    #[test]
    fn layers_are_those_of_libtorch() {
        let x = numbers(&[2, 4, 7, 6], 0.7);
        let (weight, bias) = (numbers(&[6, 2, 3, 3], 0.8), numbers(&[6], 0.9));
        same(
            &run(&x, |b, x| b.conv(x, &weight, Some(&bias), [2, 1], [1, 0], 2)),
            &x.conv2d(&weight, Some(&bias), [2, 1], [1, 0], [1, 1], 2),
        );
        same(
            &run(&x, |b, x| b.conv(x, &weight, None, [1, 1], [1, 1], 2)),
            &x.conv2d(&weight, None::<Tensor>, [1, 1], [1, 1], [1, 1], 2),
        );
        same(
            &run(&x, |b, x| b.max_pool(x, [3, 2], [2, 2], [1, 0])),
            &x.max_pool2d([3, 2], [2, 2], [1, 0], [1, 1], false),
        );
        same(
            &run(&x, |b, x| b.average_pool(x, [3, 2], [2, 2])),
            &x.avg_pool2d([3, 2], [2, 2], [0, 0], false, true, None),
        );
        let dims: &[i64] = &[2, 3];
        same(&run(&x, |b, x| b.global_average(x, true)), &x.mean_dim(dims, true, None));
        same(&run(&x, |b, x| b.global_average(x, false)), &x.mean_dim(dims, false, None));
        let rows = numbers(&[3, 5], 1.0);
        let (weight, bias) = (numbers(&[4, 5], 1.1), numbers(&[4], 1.2));
        same(&run(&rows, |b, x| b.linear(x, &weight, Some(&bias))), &rows.linear(&weight, Some(&bias)));
        same(&run(&rows, |b, x| b.gemm(x, &weight, None)), &rows.matmul(&weight.transpose(0, 1)));
        let right = numbers(&[5, 2], 1.3);
        let product = run(&rows, |b, x| {
            let right = b.constant(&right);
            b.matmul(x, &right)
        });
        same(&product, &rows.matmul(&right));
    }

    #[test]
    fn equal_constants_are_kept_once() {
        let mut b = Builder::new("test");
        assert_eq!(b.scalar(1.0), b.scalar(1.0));
        assert_ne!(b.scalar(1.0), b.scalar(2.0));
        assert_ne!(b.scalar(1.0), b.constant(&Tensor::from_slice(&[1_f32])));
        assert_ne!(b.constant(&Tensor::from(1_i32)), b.scalar(f64::from(f32::from_bits(1))));
        let large = numbers(&[9, 9], 0.0);
        assert_eq!(b.constant(&large), b.constant(&large));
        assert_ne!(b.constant(&large), b.constant(&numbers(&[9, 9], 0.0)));
        assert_ne!(b.constant(&large), b.constant(&large.view([81])));
    }

    #[test]
    fn names_are_unique_scoped_and_pruned() {
        let mut b = Builder::new("test");
        let x = b.input("relu_1", Kind::Float, unknown(2));
        let first = b.relu(&x);
        assert_ne!(first, x);
        let second = b.scope("inner", |b| b.relu(&first));
        assert_eq!(second.name(), "inner/relu_1");
        let _unused = b.linear(&second, &numbers(&[40, 2], 0.0), None);
        let wanted = first.name().to_owned();
        let graph = b.finish(&[(wanted.as_str(), &second, unknown(2)), ("same", &x, unknown(2))]).unwrap();
        assert_eq!(graph.constants.len(), 0);
        assert_eq!(graph.nodes.len(), 4);
        let outputs: Vec<&str> = graph.outputs.iter().map(|port| port.name.as_str()).collect();
        assert_eq!(outputs, [wanted.as_str(), "same"]);
        let x = numbers(&[2, 2], 0.0);
        let y = Program::new(graph, Device::Cpu).unwrap().run(&[x.shallow_clone()]).unwrap();
        same(&y[0], &x.relu());
        same(&y[1], &x);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let mut b = Builder::new("test");
        let _x = b.input("x", Kind::Float, unknown(1));
        let stray = Var("stray".into());
        let y = b.relu(&stray);
        let error = b.finish(&[("y", &y, unknown(1))]).unwrap_err().to_string();
        assert!(error.contains("stray"), "{error}");

        let mut b = Builder::new("test");
        let x = b.input("x", Kind::Float, unknown(1));
        let again = b.input("x", Kind::Float, unknown(1));
        let y = b.add(&x, &again);
        assert!(b.finish(&[("y", &y, unknown(1))]).is_err());

        let mut b = Builder::new("test");
        let x = b.input("x", Kind::Float, unknown(1));
        assert!(b.finish(&[("y", &x, unknown(1)), ("y", &x, unknown(1))]).is_err());
        assert!(Builder::new("test").finish(&[("y", &Var::absent(), unknown(1))]).is_err());
    }

    #[test]
    fn a_graph_spliced_twice_shares_its_constants() {
        let mut inner = Builder::new("inner");
        let x = inner.input("x", Kind::Float, unknown(2));
        let y = inner.linear(&x, &numbers(&[10, 10], 0.1), None);
        let y = inner.relu(&y);
        let inner = inner.finish(&[("y", &y, unknown(2))]).unwrap();

        let mut b = Builder::new("outer");
        let x = b.input("x", Kind::Float, unknown(2));
        let once = b.splice(&inner, &[&x]).unwrap().remove(0);
        let twice = b.splice(&inner, &[&once]).unwrap().remove(0);
        assert!(b.splice(&inner, &[]).is_err());
        let outer = b.finish(&[("y", &twice, unknown(2))]).unwrap();
        assert_eq!(outer.constants.len(), 1);

        let inner = Program::new(inner, Device::Cpu).unwrap();
        let x = numbers(&[3, 10], 0.2);
        let once = inner.run(&[x.shallow_clone()]).unwrap();
        let expected = inner.run(&once).unwrap().remove(0);
        let found = Program::new(outer, Device::Cpu).unwrap().run(&[x]).unwrap().remove(0);
        same(&found, &expected);
    }
}
