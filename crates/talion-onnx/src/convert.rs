//! Graphs of other operator sets, rewritten in operators of set 17.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI},
    fmt::Display,
};

use talion_core::{Error, Result};
use tch::Tensor;

use crate::{
    attributes::{Attribute, Attributes},
    build::OPSET,
    fold::fold,
    graph::{Graph, Node, quoted},
};

/// The oldest operator set that is converted.
const OLDEST: i64 = 7;

/// The newest operator set that is converted.
const NEWEST: i64 = 25;

/// The graph that is written for `graph`: folded, so that what shapes it is constant, and in operators of set 17. The
/// names of values that remain are those of the folded graph.
///
/// # Errors
/// Names the first operator that cannot be written.
pub(crate) fn prepare(graph: &Graph) -> Result<Graph> {
    fold(to_17(&fold(graph.clone_shallow())?)?)
}

/// Rewrites each node whose operator set 17 has in another form, or lacks but can express.
fn to_17(graph: &Graph) -> Result<Graph> {
    if !(OLDEST..=NEWEST).contains(&graph.opset) {
        return Err(Error::range("the operator set", format!("{OLDEST} to {NEWEST}"), graph.opset));
    }
    let mut converter = Converter::new(graph);
    for node in &graph.nodes {
        converter.convert(node)?;
        if let Some(rank) = converter.rank_of(node) {
            converter.ranks.extend(node.outputs.iter().map(|name| (name.clone(), rank)));
        }
    }
    let mut converted = graph.clone_shallow();
    converted.opset = OPSET;
    converted.nodes = converter.nodes;
    converted.constants.extend(converter.constants);
    Ok(converted)
}

struct Converter<'a> {
    source: &'a Graph,
    nodes: Vec<Node>,
    /// Those that conversion adds.
    constants: BTreeMap<String, Tensor>,
    taken: BTreeSet<String>,
    /// Of the values of which it is known.
    ranks: HashMap<String, usize>,
}

impl<'a> Converter<'a> {
    fn new(source: &'a Graph) -> Self {
        let mut taken: BTreeSet<String> = source.constants.keys().cloned().collect();
        let mut ranks = HashMap::new();
        for port in &source.inputs {
            taken.insert(port.name.clone());
            if let Some(shape) = &port.shape {
                ranks.insert(port.name.clone(), shape.len());
            }
        }
        taken.extend(source.nodes.iter().flat_map(|node| &node.outputs).cloned());
        Self { source, nodes: Vec::new(), constants: BTreeMap::new(), taken, ranks }
    }

    fn convert(&mut self, node: &Node) -> Result<()> {
        if !node.domain.is_empty() {
            let domain = quoted(&node.domain);
            return Err(refuse(node, format!("operators of the set {domain} cannot be written")));
        }
        let version = self.source.opset;
        match node.op.as_str() {
            "BatchNormalization" => self.batch_normalization(node),
            "Dropout" => self.dropout(node),
            "Clip" if version < 11 => self.clip(node),
            "Pad" if version < 11 => self.pad(node),
            "Pad" if version >= 18 => self.pad_with_axes(node),
            "Slice" if version < 10 => self.inputs_from(node, &["starts", "ends", "axes"]),
            "TopK" if version < 10 => self.inputs_from(node, &["k"]),
            "Split" if version < 13 => self.inputs_from(node, &["split"]),
            "Split" if version >= 18 => self.without(node, &["num_outputs"]),
            "Squeeze" | "Unsqueeze" | "ReduceSum" if version < 13 => self.inputs_from(node, &["axes"]),
            op if version >= 18 && REDUCTIONS.contains(&op) => self.axes_as_attribute(node),
            "Softmax" | "LogSoftmax" | "Hardmax" if version < 13 => self.softmax(node),
            "Upsample" => self.enlarge(node),
            "Resize" if version < 11 => self.enlarge(node),
            "Resize" if version >= 18 => self.resize(node),
            "Scatter" => self.renamed(node, "ScatterElements"),
            "ScatterElements" | "ScatterND" if version >= 18 => self.scatter(node),
            "AveragePool" | "LpPool" if version >= 18 => self.pool(node),
            "GridSample" if version >= 20 => self.grid_sample(node),
            "RoiAlign" if version < 16 => {
                let kind = ("coordinate_transformation_mode", text("output_half_pixel"));
                self.with(node, "RoiAlign", vec![kind])
            }
            "Cast" | "CastLike" => self.without(node, &["saturate", "round_mode"]),
            "QuantizeLinear" | "DequantizeLinear" if version >= 18 => self.quantize(node),
            "DFT" if version >= 20 => Err(unwritable(node)),
            "Gelu" => self.gelu(node),
            "Mish" => self.mish(node),
            "Swish" => self.swish(node),
            "GroupNormalization" => self.group_normalization(node),
            "RMSNormalization" => self.rms_normalization(node),
            op if UNCHANGED.contains(&op) => {
                self.nodes.push(node.clone_shallow());
                Ok(())
            }
            _ => Err(unwritable(node)),
        }
    }
}

/// Writing what comes of a node.
impl Converter<'_> {
    fn fresh(&mut self, base: &str) -> String {
        let mut number = 1_usize;
        loop {
            let name = format!("{base}_{number}");
            if self.taken.insert(name.clone()) {
                return name;
            }
            number += 1;
        }
    }

    fn constant(&mut self, base: &str, tensor: Tensor) -> String {
        let name = self.fresh(base);
        self.constants.insert(name.clone(), tensor);
        name
    }

    fn scalar(&mut self, value: f64) -> String {
        self.constant("number", Tensor::from(value as f32))
    }

    fn ints(&mut self, values: &[i64]) -> Result<String> {
        let tensor = Tensor::f_from_slice(values)?;
        Ok(self.constant("integers", tensor))
    }

    /// A step on the way to the output of `node`.
    fn step(
        &mut self,
        node: &Node,
        op: &str,
        inputs: &[&str],
        attributes: Vec<(&str, Attribute)>,
    ) -> Result<String> {
        let output = self.fresh(first_output(node)?);
        let name = format!("{}/{op}", node.name);
        self.push(op, name, inputs, vec![output.clone()], list_of(attributes));
        Ok(output)
    }

    /// The last step, which makes the output of `node`.
    fn last(&mut self, node: &Node, op: &str, inputs: &[&str], attributes: Attributes) -> Result<()> {
        let output = first_output(node)?.to_owned();
        self.push(op, node.name.clone(), inputs, vec![output], attributes);
        Ok(())
    }

    fn push(
        &mut self,
        op: &str,
        name: String,
        inputs: &[&str],
        outputs: Vec<String>,
        attributes: Attributes,
    ) {
        let mut inputs: Vec<String> = inputs.iter().map(|&name| name.to_owned()).collect();
        while inputs.last().is_some_and(String::is_empty) {
            inputs.pop();
        }
        self.nodes.push(Node { op: op.to_owned(), domain: String::new(), name, inputs, outputs, attributes });
    }

    /// The node under another operator's name.
    fn renamed(&mut self, node: &Node, op: &str) -> Result<()> {
        self.with(node, op, vec![])
    }

    /// The node under an operator's name, with attributes set.
    fn with(&mut self, node: &Node, op: &str, attributes: Vec<(&str, Attribute)>) -> Result<()> {
        let mut changed = node.clone_shallow();
        changed.op = op.to_owned();
        for (name, attribute) in attributes {
            changed.attributes.insert(name, attribute);
        }
        self.nodes.push(changed);
        Ok(())
    }

    /// The node without some attributes.
    fn without(&mut self, node: &Node, names: &[&str]) -> Result<()> {
        let mut changed = node.clone_shallow();
        changed.attributes = remaining(&node.attributes, names);
        self.nodes.push(changed);
        Ok(())
    }

    /// The node with integer attributes as inputs behind its first.
    fn inputs_from(&mut self, node: &Node, names: &[&str]) -> Result<()> {
        let mut changed = node.clone_shallow();
        changed.attributes = remaining(&node.attributes, names);
        changed.inputs.truncate(1);
        for name in names {
            changed.inputs.push(match node.attributes.get(name) {
                None => String::new(),
                Some(Attribute::Int(value)) => self.ints(&[*value])?,
                Some(Attribute::Ints(values)) => self.ints(values)?,
                Some(_) => {
                    return Err(refuse(node, format!("attribute {} holds no integers", quoted(name))));
                }
            });
        }
        while changed.inputs.last().is_some_and(String::is_empty) {
            changed.inputs.pop();
        }
        self.nodes.push(changed);
        Ok(())
    }

    /// The integers of a constant input; `None` where the node leaves it out.
    fn list(&self, node: &Node, place: usize) -> Result<Option<Vec<i64>>> {
        let Some(tensor) = self.constant_input(node, place)? else { return Ok(None) };
        if !crate::ops::is_floating(tensor.kind()) {
            return Ok(Some(Vec::<i64>::try_from(&tensor.f_reshape([-1_i64])?)?));
        }
        Err(refuse(node, format!("input {place} holds {:?}, expected integers", tensor.kind())))
    }

    fn constant_input(&self, node: &Node, place: usize) -> Result<Option<&Tensor>> {
        match node.inputs.get(place).filter(|name| !name.is_empty()) {
            None => Ok(None),
            Some(name) => match self.source.constants.get(name) {
                Some(tensor) => Ok(Some(tensor)),
                None => Err(refuse(node, format!("input {place} is computed; it has to be constant"))),
            },
        }
    }
}

/// Operators that set 17 has in another form.
impl Converter<'_> {
    /// Its outputs behind the first are for training.
    fn batch_normalization(&mut self, node: &Node) -> Result<()> {
        if int(node, "training_mode", 0)? != 0 || int(node, "spatial", 1)? == 0 {
            return Err(refuse(node, "only norms by channel, of given mean and variance, can be written"));
        }
        let mut changed = node.clone_shallow();
        changed.attributes = remaining(&node.attributes, &["spatial"]);
        changed.outputs.truncate(1);
        self.nodes.push(changed);
        Ok(())
    }

    fn dropout(&mut self, node: &Node) -> Result<()> {
        let training = self.constant_input(node, 2)?.map(i64::try_from).transpose()?;
        if training.is_some_and(|training| training != 0) {
            return Err(refuse(node, "it is in training mode"));
        }
        self.last(node, "Identity", &[input(node, 0)?], Attributes::default())
    }

    fn clip(&mut self, node: &Node) -> Result<()> {
        let mut bounds = Vec::new();
        for name in ["min", "max"] {
            let bound = node.attributes.maybe_float(name).map_err(|error| refuse(node, error))?;
            bounds.push(bound.map_or_else(String::new, |value| self.scalar(value)));
        }
        let inputs: Vec<&str> =
            std::iter::once(input(node, 0)?).chain(bounds.iter().map(String::as_str)).collect();
        self.last(node, "Clip", &inputs, Attributes::default())
    }

    fn pad(&mut self, node: &Node) -> Result<()> {
        let pads = ints(node, "pads")?.ok_or_else(|| refuse(node, "attribute `pads` is missing"))?;
        let pads = self.ints(pads)?;
        let value = self.scalar(float(node, "value", 0.0)?);
        let attributes = remaining(&node.attributes, &["pads", "value"]);
        self.last(node, "Pad", &[input(node, 0)?, &pads, &value], attributes)
    }

    /// Set 17 pads all axes.
    fn pad_with_axes(&mut self, node: &Node) -> Result<()> {
        if node.attributes.text("mode", "constant").map_err(|error| refuse(node, error))? == "wrap" {
            return Err(refuse(node, "operator set 17 has no mode `wrap`"));
        }
        let Some(axes) = self.list(node, 3)? else {
            let mut changed = node.clone_shallow();
            changed.inputs.truncate(3);
            self.nodes.push(changed);
            return Ok(());
        };
        let pads = self.list(node, 1)?.ok_or_else(|| refuse(node, "input 1 is missing"))?;
        let rank = self.known_rank(node)?;
        if pads.len() != 2 * axes.len() {
            return Err(refuse(node, format!("{} axes with {} pads", axes.len(), pads.len())));
        }
        let mut all = vec![0; 2 * rank];
        let (before, behind) = pads.split_at(axes.len());
        for ((&axis, &before), &behind) in axes.iter().zip(before).zip(behind) {
            let place = place(node, axis, rank)?;
            (all[place], all[place + rank]) = (before, behind);
        }
        let all = self.ints(&all)?;
        let value = node.inputs.get(2).map_or("", String::as_str);
        self.last(node, "Pad", &[input(node, 0)?, &all, value], node.attributes.clone_shallow())
    }

    fn axes_as_attribute(&mut self, node: &Node) -> Result<()> {
        let axes = self.list(node, 1)?.unwrap_or_default();
        if axes.is_empty() && int(node, "noop_with_empty_axes", 0)? != 0 {
            if ["ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"].contains(&node.op.as_str()) {
                return self.last(node, "Identity", &[input(node, 0)?], Attributes::default());
            }
            return Err(refuse(node, "operator set 17 cannot leave all axes out"));
        }
        let mut attributes = remaining(&node.attributes, &["noop_with_empty_axes"]);
        if !axes.is_empty() {
            attributes.insert("axes", Attribute::Ints(axes));
        }
        self.last(node, &node.op, &[input(node, 0)?], attributes)
    }

    /// Before set 13 all sides from `axis` on count as one.
    fn softmax(&mut self, node: &Node) -> Result<()> {
        let x = input(node, 0)?;
        let axis = int(node, "axis", 1)?;
        let last = axis == -1 || self.rank(x).is_some_and(|rank| axis == rank as i64 - 1);
        if last {
            return self.last(node, &node.op, &[x], list_of(vec![("axis", Attribute::Int(-1))]));
        }
        let rows = self.step(node, "Flatten", &[x], vec![("axis", Attribute::Int(axis))])?;
        let normed = self.step(node, &node.op, &[&rows], vec![("axis", Attribute::Int(-1))])?;
        let shape = self.step(node, "Shape", &[x], vec![])?;
        self.last(node, "Reshape", &[&normed, &shape], Attributes::default())
    }

    /// Upsample, and Resize of set 10, which take scales only and count pixels from their corners.
    fn enlarge(&mut self, node: &Node) -> Result<()> {
        let mode = node.attributes.text("mode", "nearest").map_err(|error| refuse(node, error))?.to_owned();
        let scales = match node.attributes.floats("scales").map_err(|error| refuse(node, error))? {
            Some(scales) => {
                let tensor = Tensor::f_from_slice(scales)?;
                self.constant("scales", tensor)
            }
            None => input(node, 1)?.to_owned(),
        };
        if mode == "nearest" {
            // Where pixels are left out, runtimes do not agree on which.
            let known = self.constants.get(&scales).or_else(|| self.source.constants.get(&scales));
            let known = known.ok_or_else(|| refuse(node, "its scales are computed"))?;
            if known.numel() > 0 && f64::try_from(known.f_min()?)? < 1.0 {
                return Err(refuse(node, "it makes the image smaller"));
            }
        }
        let attributes = vec![
            ("mode", text(&mode)),
            ("coordinate_transformation_mode", text("asymmetric")),
            ("nearest_mode", text("floor")),
        ];
        self.last(node, "Resize", &[input(node, 0)?, "", &scales], list_of(attributes))
    }

    fn resize(&mut self, node: &Node) -> Result<()> {
        let read = |name, default| node.attributes.text(name, default).map_err(|error| refuse(node, error));
        let stretched = read("keep_aspect_ratio_policy", "stretch")? == "stretch";
        let coordinates = read("coordinate_transformation_mode", "half_pixel")?;
        if int(node, "antialias", 0)? != 0 || !stretched || coordinates == "half_pixel_symmetric" {
            let unknown = "antialias, keep_aspect_ratio_policy or half_pixel_symmetric";
            return Err(refuse(node, format!("operator set 17 has no {unknown}")));
        }
        let mut changed = node.clone_shallow();
        changed.attributes = remaining(&node.attributes, &["antialias", "keep_aspect_ratio_policy", "axes"]);
        if let Some(axes) = ints(node, "axes")? {
            self.resize_axes(node, axes, &mut changed)?;
        }
        self.nodes.push(changed);
        Ok(())
    }

    /// Scales of some axes as scales of all of them.
    fn resize_axes(&mut self, node: &Node, axes: &[i64], changed: &mut Node) -> Result<()> {
        let rank = self.known_rank(node)?;
        if axes.iter().copied().eq(0..rank as i64) {
            return Ok(());
        }
        let scales = match self.constant_input(node, 2)? {
            Some(tensor) => Vec::<f32>::try_from(&tensor.f_reshape([-1_i64])?)?,
            None => Vec::new(),
        };
        if scales.len() != axes.len() {
            return Err(refuse(node, "sizes of some axes cannot be written in operator set 17"));
        }
        let mut all = vec![1_f32; rank];
        for (&axis, &scale) in axes.iter().zip(&scales) {
            all[place(node, axis, rank)?] = scale;
        }
        let tensor = Tensor::f_from_slice(&all)?;
        changed.inputs = vec![input(node, 0)?.to_owned(), String::new(), self.constant("scales", tensor)];
        Ok(())
    }

    fn scatter(&mut self, node: &Node) -> Result<()> {
        let reduction = node.attributes.text("reduction", "none").map_err(|error| refuse(node, error))?;
        if ["max", "min"].contains(&reduction) {
            return Err(refuse(node, format!("operator set 17 has no reduction `{reduction}`")));
        }
        self.renamed(node, &node.op)
    }

    fn pool(&mut self, node: &Node) -> Result<()> {
        let dilated =
            ints(node, "dilations")?.is_some_and(|dilations| dilations.iter().any(|&step| step != 1));
        if dilated || (node.op == "LpPool" && int(node, "ceil_mode", 0)? != 0) {
            return Err(refuse(node, "operator set 17 has it without dilations and ceil_mode"));
        }
        let unwritten: &[&str] =
            if node.op == "LpPool" { &["dilations", "ceil_mode"] } else { &["dilations"] };
        self.without(node, unwritten)
    }

    fn grid_sample(&mut self, node: &Node) -> Result<()> {
        let mode = match node.attributes.text("mode", "linear").map_err(|error| refuse(node, error))? {
            "linear" => "bilinear",
            "cubic" => "bicubic",
            other => other,
        };
        self.with(node, "GridSample", vec![("mode", text(mode))])
    }

    fn quantize(&mut self, node: &Node) -> Result<()> {
        let newer = ["block_size", "output_dtype", "precision"];
        for name in newer {
            if int(node, name, 0)? != 0 {
                return Err(refuse(node, format!("operator set 17 has no attribute `{name}`")));
            }
        }
        self.without(node, &["saturate", "block_size", "output_dtype", "precision"])
    }
}

/// Operators that set 17 lacks.
impl Converter<'_> {
    fn gelu(&mut self, node: &Node) -> Result<()> {
        let x = input(node, 0)?;
        let (half, one) = (self.scalar(0.5), self.scalar(1.0));
        let inner = match node.attributes.text("approximate", "none").map_err(|error| refuse(node, error))? {
            "none" => {
                let factor = self.scalar(FRAC_1_SQRT_2);
                let scaled = self.step(node, "Mul", &[x, &factor], vec![])?;
                self.step(node, "Erf", &[&scaled], vec![])?
            }
            "tanh" => {
                let (three, small) = (self.scalar(3.0), self.scalar(0.044715));
                let cube = self.step(node, "Pow", &[x, &three], vec![])?;
                let added = self.step(node, "Mul", &[&cube, &small], vec![])?;
                let sum = self.step(node, "Add", &[x, &added], vec![])?;
                let factor = self.scalar(FRAC_2_PI.sqrt());
                let scaled = self.step(node, "Mul", &[&sum, &factor], vec![])?;
                self.step(node, "Tanh", &[&scaled], vec![])?
            }
            other => return Err(refuse(node, format!("approximation {} is unknown", quoted(other)))),
        };
        let raised = self.step(node, "Add", &[&inner, &one], vec![])?;
        let weighted = self.step(node, "Mul", &[x, &raised], vec![])?;
        self.last(node, "Mul", &[&weighted, &half], Attributes::default())
    }

    fn mish(&mut self, node: &Node) -> Result<()> {
        let x = input(node, 0)?;
        let soft = self.step(node, "Softplus", &[x], vec![])?;
        let gate = self.step(node, "Tanh", &[&soft], vec![])?;
        self.last(node, "Mul", &[x, &gate], Attributes::default())
    }

    fn swish(&mut self, node: &Node) -> Result<()> {
        let x = input(node, 0)?;
        let alpha = self.scalar(float(node, "alpha", 1.0)?);
        let scaled = self.step(node, "Mul", &[x, &alpha], vec![])?;
        let gate = self.step(node, "Sigmoid", &[&scaled], vec![])?;
        self.last(node, "Mul", &[x, &gate], Attributes::default())
    }

    /// Each group is a channel of an instance norm. Scale and bias are those of groups in sets 18 to 20, and those of
    /// channels from 21 on.
    fn group_normalization(&mut self, node: &Node) -> Result<()> {
        let x = input(node, 0)?;
        let groups = node.attributes.required_int("num_groups").map_err(|error| refuse(node, error))?;
        let epsilon = float(node, "epsilon", 1e-5)?;
        let grouped = self.ints(&[0, groups, -1])?;
        let rows = self.step(node, "Reshape", &[x, &grouped], vec![])?;
        let (ones, zeros) = self.identity_norm(node, groups)?;
        let epsilon = vec![("epsilon", Attribute::Float(epsilon as f32))];
        let normed = self.step(node, "InstanceNormalization", &[&rows, &ones, &zeros], epsilon)?;
        let (mut parts, mut affine) = (Vec::new(), Vec::new());
        for index in [1, 2] {
            let tensor = self.constant_input(node, index)?;
            let tensor = tensor.ok_or_else(|| refuse(node, format!("input {index} is missing")))?;
            parts.push(tensor.size().first().copied().unwrap_or(1));
            affine.push(tensor.f_reshape([-1_i64, 1])?);
        }
        let split = self.ints(&[0, parts.first().copied().unwrap_or(groups), -1])?;
        let mut value = self.step(node, "Reshape", &[&normed, &split], vec![])?;
        for (op, tensor) in ["Mul", "Add"].into_iter().zip(affine) {
            let tensor = self.constant("norm", tensor);
            value = self.step(node, op, &[&value, &tensor], vec![])?;
        }
        let shape = self.step(node, "Shape", &[x], vec![])?;
        self.last(node, "Reshape", &[&value, &shape], Attributes::default())
    }

    fn identity_norm(&mut self, node: &Node, channels: i64) -> Result<(String, String)> {
        let count = usize::try_from(channels).ok().filter(|count| (1..=1 << 20).contains(count));
        let count = count.ok_or_else(|| refuse(node, format!("{channels} groups")))?;
        let ones = Tensor::f_from_slice(&vec![1_f32; count])?;
        let zeros = Tensor::f_from_slice(&vec![0_f32; count])?;
        Ok((self.constant("ones", ones), self.constant("zeros", zeros)))
    }

    fn rms_normalization(&mut self, node: &Node) -> Result<()> {
        let (x, scale) = (input(node, 0)?, input(node, 1)?);
        let axis = int(node, "axis", -1)?;
        let axes: Vec<i64> = if axis < 0 {
            (axis.max(-64)..0).collect()
        } else {
            (axis..self.known_rank(node)? as i64).collect()
        };
        let epsilon = self.scalar(float(node, "epsilon", 1e-5)?);
        let squares = self.step(node, "Mul", &[x, x], vec![])?;
        let mean = self.step(node, "ReduceMean", &[&squares], vec![("axes", Attribute::Ints(axes))])?;
        let raised = self.step(node, "Add", &[&mean, &epsilon], vec![])?;
        let root = self.step(node, "Sqrt", &[&raised], vec![])?;
        let normed = self.step(node, "Div", &[x, &root], vec![])?;
        self.last(node, "Mul", &[&normed, scale], Attributes::default())
    }
}

/// Ranks, as far as some conversions need them.
impl Converter<'_> {
    fn rank(&self, name: &str) -> Option<usize> {
        match self.source.constants.get(name) {
            Some(tensor) => Some(tensor.dim()),
            None => self.ranks.get(name).copied(),
        }
    }

    fn known_rank(&self, node: &Node) -> Result<usize> {
        let rank = self.rank(input(node, 0)?);
        rank.ok_or_else(|| refuse(node, "the number of sides of its input is unknown"))
    }

    /// The rank of a node's outputs.
    fn rank_of(&self, node: &Node) -> Option<usize> {
        let of = |place: usize| self.rank(node.inputs.get(place)?);
        let added = || Some(self.axes_of(node)?.len());
        match node.op.as_str() {
            "Flatten" | "Gemm" => Some(2),
            "Reshape" => Some(self.source.constants.get(node.inputs.get(1)?)?.numel()),
            "Gather" => (of(0)? + of(1)?).checked_sub(1),
            "Unsqueeze" => Some(of(0)? + added()?),
            "Squeeze" => of(0)?.checked_sub(added()?),
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Max" | "Min" | "Sum" | "Mean" | "Where" | "MatMul" => {
                node.inputs
                    .iter()
                    .map(|name| self.rank(name))
                    .collect::<Option<Vec<_>>>()?
                    .into_iter()
                    .max()
                    // a product with a vector loses sides
                    .filter(|_| node.op != "MatMul" || (of(0) > Some(1) && of(1) > Some(1)))
            }
            op if SAME_RANK.contains(&op) => of(0),
            _ => None,
        }
    }

    /// The axes of Squeeze or Unsqueeze, in either form.
    fn axes_of(&self, node: &Node) -> Option<Vec<i64>> {
        match node.attributes.get("axes") {
            Some(Attribute::Ints(axes)) => Some(axes.clone()),
            _ => self.list(node, 1).ok()?,
        }
    }
}

fn remaining(attributes: &Attributes, without: &[&str]) -> Attributes {
    let mut kept = Attributes::default();
    for (name, attribute) in attributes.iter().filter(|(name, _)| !without.contains(name)) {
        kept.insert(name, attribute.clone_shallow());
    }
    kept
}

fn list_of(attributes: Vec<(&str, Attribute)>) -> Attributes {
    let mut list = Attributes::default();
    for (name, attribute) in attributes {
        list.insert(name, attribute);
    }
    list
}

fn text(value: &str) -> Attribute {
    Attribute::Text(value.to_owned())
}

fn refuse(node: &Node, problem: impl Display) -> Error {
    Error::Refused(format!("{}: {problem}", node.describe()))
}

fn unwritable(node: &Node) -> Error {
    refuse(node, "operator set 17 has no such operator, and export does not know how to express it")
}

fn input(node: &Node, place: usize) -> Result<&str> {
    let name = node.inputs.get(place).filter(|name| !name.is_empty());
    name.map(String::as_str).ok_or_else(|| refuse(node, format!("input {place} is missing")))
}

fn first_output(node: &Node) -> Result<&str> {
    let name = node.outputs.first().filter(|name| !name.is_empty());
    name.map(String::as_str).ok_or_else(|| refuse(node, "it has no output"))
}

fn int(node: &Node, name: &str, default: i64) -> Result<i64> {
    node.attributes.int(name, default).map_err(|error| refuse(node, error))
}

fn float(node: &Node, name: &str, default: f64) -> Result<f64> {
    node.attributes.float(name, default).map_err(|error| refuse(node, error))
}

fn ints<'a>(node: &'a Node, name: &str) -> Result<Option<&'a [i64]>> {
    node.attributes.ints(name).map_err(|error| refuse(node, error))
}

/// An axis that may count from the end, as an index.
fn place(node: &Node, axis: i64, rank: usize) -> Result<usize> {
    let counted = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
    let place = usize::try_from(counted).ok().filter(|&place| place < rank);
    place.ok_or_else(|| refuse(node, format!("axis {axis} of {rank}")))
}

/// Operators whose axes have been an input since set 18.
const REDUCTIONS: &[&str] = &[
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
];

/// Operators whose output has as many sides as their first input.
#[rustfmt::skip]
const SAME_RANK: &[&str] = &[
    "Abs", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat", "Conv", "ConvTranspose",
    "DepthToSpace", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "GlobalAveragePool", "GlobalMaxPool",
    "GroupNormalization", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "LRN",
    "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "MaxPool", "Mish", "Neg", "PRelu", "Pad", "Relu",
    "Resize", "Selu", "Sigmoid", "Slice", "Softmax", "Softplus", "SpaceToDepth", "Split", "Sqrt", "Tanh",
    "Transpose", "Upsample",
];

/// Operators that mean the same in set 17 as in the sets that get here.
#[rustfmt::skip]
const UNCHANGED: &[&str] = &[
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool",
    "Bernoulli", "BitShift", "BlackmanWindow", "Ceil", "Celu", "Clip", "Compress", "Concat", "Constant",
    "ConstantOfShape", "Conv", "ConvInteger", "ConvTranspose", "Cos", "Cosh", "CumSum", "DFT", "DepthToSpace",
    "DequantizeLinear", "Det", "Div", "DynamicQuantizeLinear", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand",
    "EyeLike", "Flatten", "Floor", "GRU", "Gather", "GatherElements", "GatherND", "Gemm", "GlobalAveragePool",
    "GlobalLpPool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample", "HammingWindow", "HannWindow",
    "HardSigmoid", "HardSwish", "Hardmax", "Identity", "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LSTM",
    "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "LpNormalization", "LpPool",
    "MatMul", "MatMulInteger", "Max", "MaxPool", "MaxRoiPool", "MaxUnpool", "Mean", "MeanVarianceNormalization",
    "MelWeightMatrix", "Min", "Mod", "Mul", "Multinomial", "Neg", "NonMaxSuppression", "NonZero", "Not", "OneHot",
    "Or", "PRelu", "Pad", "Pow", "QLinearConv", "QLinearMatMul", "QuantizeLinear", "RNN", "RandomNormal",
    "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Relu", "Reshape", "Resize", "ReverseSequence", "RoiAlign", "Round", "STFT",
    "ScatterElements", "ScatterND", "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice",
    "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan", "Tanh",
    "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unique", "Unsqueeze", "Where", "Xor",
];

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::{
        graph::Side,
        ops::testing::{batch_of, graph, ints, node, ramp},
        program::Program,
    };

    fn run(graph: Graph, x: &Tensor) -> Vec<Tensor> {
        Program::new(graph, Device::Cpu).unwrap().run(&[x.shallow_clone()]).unwrap()
    }

    /// Numbers in -1..1.
    fn wave(shape: &[i64]) -> Tensor {
        (ramp(shape) * 1.7 + 0.3).sin()
    }

    /// Checks that a graph computes the same in set 17, and returns the operators that it then has.
    #[track_caller]
    fn agree(opset: i64, nodes: Vec<Node>, constants: Vec<(&str, Tensor)>, x: &Tensor) -> Vec<String> {
        let mut old = graph(&[("x", Kind::Float)], &["y"], nodes, constants);
        old.opset = opset;
        old.inputs[0].shape = batch_of(&x.size()[1..]);
        let new = prepare(&old).unwrap();
        assert_eq!(new.opset, 17);
        let operators = new.nodes.iter().map(|node| node.op.clone()).collect();
        for (old, new) in run(old, x).iter().zip(&run(new, x)) {
            assert_eq!(old.size(), new.size());
            assert!(old.allclose(new, 1e-5, 1e-6, false), "{old} is not {new}");
        }
        operators
    }

    fn attribute(values: &[i64]) -> Attribute {
        Attribute::Ints(values.to_vec())
    }

    #[test]
    fn attributes_become_inputs() {
        let x = wave(&[2, 3, 4]);
        let clip = vec![("min", Attribute::Float(-0.5)), ("max", Attribute::Float(0.25))];
        agree(9, vec![node("Clip", "x", "y", clip)], vec![], &x);
        agree(9, vec![node("Clip", "x", "y", vec![("max", Attribute::Float(0.25))])], vec![], &x);
        let pad = vec![("pads", attribute(&[0, 1, 0, 0, 2, 1])), ("value", Attribute::Float(0.5))];
        agree(9, vec![node("Pad", "x", "y", pad)], vec![], &x);
        let slice = vec![
            ("starts", attribute(&[1, -3])),
            ("ends", attribute(&[3, -1])),
            ("axes", attribute(&[1, 2])),
        ];
        agree(9, vec![node("Slice", "x", "y", slice)], vec![], &x);
        let split = vec![("axis", Attribute::Int(2)), ("split", attribute(&[1, 3]))];
        agree(11, vec![node("Split", "x", "a y", split)], vec![], &x);
        agree(11, vec![node("Unsqueeze", "x", "y", vec![("axes", attribute(&[1, 3]))])], vec![], &x);
        agree(11, vec![node("ReduceSum", "x", "y", vec![("axes", attribute(&[2]))])], vec![], &x);
        let squeeze = node("Squeeze", "x", "y", vec![("axes", attribute(&[1]))]);
        agree(11, vec![squeeze], vec![], &wave(&[3, 1, 4]));
        let top = vec![("k", Attribute::Int(2)), ("axis", Attribute::Int(-1))];
        agree(9, vec![node("TopK", "x", "y places", top)], vec![], &x);
    }

    #[test]
    fn inputs_become_attributes() {
        let x = wave(&[2, 3, 4]);
        let mean = vec![node("ReduceMean", "x axes", "y", vec![("keepdims", Attribute::Int(0))])];
        agree(18, mean, vec![("axes", ints(&[-1, 1]))], &x);
        agree(18, vec![node("ReduceMax", "x", "y", vec![])], vec![], &x);
        let noop = vec![
            node("ReduceMin", "x", "a", vec![("noop_with_empty_axes", Attribute::Int(1))]),
            node("Relu", "a", "y", vec![]),
        ];
        agree(18, noop, vec![], &x);
        let pads = vec![("pads", ints(&[1, 2, 0, 3])), ("axes", ints(&[-1, 1]))];
        agree(18, vec![node("Pad", "x pads - axes", "y", vec![])], pads, &x);
        let halves = vec![
            node("Split", "x", "a b", vec![("axis", Attribute::Int(2)), ("num_outputs", Attribute::Int(2))]),
            node("Sub", "a b", "y", vec![]),
        ];
        agree(18, halves, vec![], &x);
    }

    #[test]
    fn softmax_of_old_sets_spans_all_sides_from_its_axis() {
        let x = wave(&[2, 3, 4]);
        let operators = agree(11, vec![node("Softmax", "x", "y", vec![])], vec![], &x);
        assert_eq!(operators, ["Flatten", "Softmax", "Shape", "Reshape"]);
        let last = vec![("axis", Attribute::Int(2))];
        assert_eq!(agree(11, vec![node("LogSoftmax", "x", "y", last)], vec![], &x), ["LogSoftmax"]);
    }

    #[test]
    fn enlarging_is_resizing() {
        let x = wave(&[2, 3, 4, 5]);
        let scales = || vec![("scales", Tensor::from_slice(&[1_f32, 1.0, 2.0, 3.0]))];
        let mode = |mode: &str| vec![("mode", text(mode))];
        agree(9, vec![node("Upsample", "x scales", "y", mode("nearest"))], scales(), &x);
        agree(9, vec![node("Upsample", "x scales", "y", mode("linear"))], scales(), &x);
        agree(10, vec![node("Resize", "x scales", "y", mode("nearest"))], scales(), &x);
        let mut seven = mode("nearest");
        seven.push(("scales", Attribute::Floats(vec![1.0, 1.0, 2.0, 2.0])));
        agree(7, vec![node("Upsample", "x", "y", seven)], vec![], &x);
        let mut some = mode("nearest");
        some.push(("axes", attribute(&[2, 3])));
        some.push(("coordinate_transformation_mode", text("asymmetric")));
        some.push(("nearest_mode", text("floor")));
        let two = vec![("scales", Tensor::from_slice(&[2_f32, 3.0]))];
        agree(18, vec![node("Resize", "x - scales", "y", some)], two, &x);
    }

    #[test]
    fn newer_operators_are_spelt_out() {
        let x = wave(&[2, 6, 4, 3]) * 2.0;
        agree(20, vec![node("Gelu", "x", "y", vec![])], vec![], &x);
        agree(20, vec![node("Gelu", "x", "y", vec![("approximate", text("tanh"))])], vec![], &x);
        agree(18, vec![node("Mish", "x", "y", vec![])], vec![], &x);
        let norm = |size: i64| vec![("scale", wave(&[size]) + 1.5), ("bias", wave(&[size]))];
        let groups = || vec![("num_groups", Attribute::Int(3)), ("epsilon", Attribute::Float(1e-3))];
        agree(21, vec![node("GroupNormalization", "x scale bias", "y", groups())], norm(6), &x);
        agree(18, vec![node("GroupNormalization", "x scale bias", "y", groups())], norm(3), &x);
    }

    #[test]
    fn what_only_training_needs_goes() {
        let x = wave(&[2, 3, 4]);
        let norm = [("scale", 1.5), ("bias", 0.5), ("mean", 0.25), ("variance", 2.0)];
        let norm = norm.map(|(name, value)| (name, Tensor::full([3], value, (Kind::Float, Device::Cpu))));
        let nodes = vec![
            node(
                "BatchNormalization",
                "x scale bias mean variance",
                "a",
                vec![("spatial", Attribute::Int(1))],
            ),
            node("Dropout", "a", "b mask", vec![("ratio", Attribute::Float(0.5))]),
            node("Relu", "b", "y", vec![]),
        ];
        agree(8, nodes, norm.into(), &x);
    }

    #[test]
    fn what_set_17_lacks_is_named() {
        let refusal = |opset: i64, node: Node| {
            let mut graph = graph(&[("x", Kind::Float)], &["y"], vec![node], vec![("scales", ramp(&[4]))]);
            graph.opset = opset;
            graph.inputs[0].shape = Some(vec![Side::Unknown; 4]);
            to_17(&graph).unwrap_err().to_string()
        };
        assert!(refusal(26, node("Relu", "x", "y", vec![])).contains("26"));
        assert!(refusal(24, node("Attention", "x", "y", vec![])).contains("Attention"));
        let smooth = vec![("antialias", Attribute::Int(1))];
        assert!(refusal(18, node("Resize", "x - scales", "y", smooth)).contains("antialias"));
        assert!(refusal(9, node("Upsample", "x scales", "y", vec![])).contains("smaller"));
        let mut foreign = node("Relu", "x", "y", vec![]);
        foreign.domain = "com.example".into();
        assert!(refusal(17, foreign).contains("com.example"));
    }
}
