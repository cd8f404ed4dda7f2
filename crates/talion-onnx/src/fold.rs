//! Simplifying a graph before it is run or written: known values are computed once, what has no effect goes.

use std::collections::{HashMap, HashSet};

use talion_core::Result;
use tch::{Kind, Tensor};

use crate::{
    Attributes, Graph, Node,
    ops::{Call, kernel},
};

/// The most elements of a constant that is made here.
const MOST_ELEMENTS: usize = 1 << 26;

/// The most elements of all of them together: a small file could ask for any number of large ones.
const MOST_TOGETHER: usize = 1 << 28;

/// A graph of the same inputs, outputs and results, with less to do:
///
/// - nodes whose inputs are all constants are replaced by their results, if these are not too large;
/// - `Identity`, and `Dropout` outside training, are replaced by what they pass on; only a graph output keeps one, so
///   that it keeps its name;
/// - `BatchNormalization` outside training is multiplied into a `Conv` directly before it, if both have constant
///   parameters and nobody else looks at what lies between them;
/// - nodes and constants that no output needs are dropped.
///
/// Nodes of unknown operators stay as they are.
///
/// # Errors
/// If libtorch cannot compute a folded weight, for want of memory.
pub fn fold(mut graph: Graph) -> Result<Graph> {
    tch::no_grad(|| {
        propagate(&mut graph);
        fold_norms(&mut graph)?;
        prune(&mut graph);
        Ok(graph)
    })
}

/// Replaces constant nodes by constants, and nodes that pass on a value by that value's name.
fn propagate(graph: &mut Graph) {
    let outputs: HashSet<String> = graph.outputs.iter().map(|port| port.name.clone()).collect();
    let uses = uses(graph);
    let mut aliases: HashMap<String, String> = HashMap::new();
    let mut room = MOST_TOGETHER;
    for mut node in std::mem::take(&mut graph.nodes) {
        for input in &mut node.inputs {
            if let Some(origin) = aliases.get(input.as_str()) {
                input.clone_from(origin);
            }
        }
        let stays = node.outputs.iter().any(|name| outputs.contains(name));
        if let Some((from, to)) = passes_on(graph, &node, &uses) {
            if stays {
                graph.nodes.push(identity(node.name, from, to));
            } else {
                aliases.insert(to, from);
            }
        } else if !stays && let Some(results) = evaluate(graph, &node, room) {
            room -= results.iter().map(|(_, tensor)| tensor.numel()).sum::<usize>();
            graph.constants.extend(results);
        } else {
            graph.nodes.push(node);
        }
    }
}

/// How often each value is used, by nodes or as an output of the graph.
fn uses(graph: &Graph) -> HashMap<String, usize> {
    let mut uses = HashMap::new();
    let inputs = graph.nodes.iter().flat_map(|node| &node.inputs);
    for name in inputs.chain(graph.outputs.iter().map(|port| &port.name)).filter(|name| !name.is_empty()) {
        *uses.entry(name.clone()).or_insert(0) += 1;
    }
    uses
}

fn is_unused(name: &str, uses: &HashMap<String, usize>) -> bool {
    name.is_empty() || !uses.contains_key(name)
}

fn is(node: &Node, op: &str) -> bool {
    node.domain.is_empty() && node.op == op
}

/// The names of input and output of a node that gives on what it is given.
fn passes_on(graph: &Graph, node: &Node, uses: &HashMap<String, usize>) -> Option<(String, String)> {
    let idle = is(node, "Identity") || (is(node, "Dropout") && is_inference(graph, node));
    let (from, to) = (node.inputs.first()?, node.outputs.first()?);
    let only = node.outputs.iter().skip(1).all(|name| is_unused(name, uses));
    (idle && only && !from.is_empty() && !to.is_empty()).then(|| (from.clone(), to.clone()))
}

/// Whether a `Dropout` is known to drop nothing: its third input turns training on.
fn is_inference(graph: &Graph, node: &Node) -> bool {
    match node.inputs.get(2).map(String::as_str) {
        None | Some("") => true,
        Some(training) => {
            graph.constants.get(training).is_some_and(|on| bool::try_from(on).is_ok_and(|on| !on))
        }
    }
}

fn identity(name: String, from: String, to: String) -> Node {
    Node {
        op: "Identity".into(),
        domain: String::new(),
        name,
        inputs: vec![from],
        outputs: vec![to],
        attributes: Attributes::default(),
    }
}

/// The outputs of a node by name, if all its inputs are constants and the outputs have no more than `room` elements.
fn evaluate(graph: &Graph, node: &Node, room: usize) -> Option<Vec<(String, Tensor)>> {
    let kernel = kernel(&node.domain, &node.op)?;
    if node.inputs.iter().all(String::is_empty) && !is(node, "Constant") {
        return None;
    }
    let known = |name: &String| match name.as_str() {
        "" => Some(None),
        name => graph.constants.get(name).map(|tensor| Some(tensor.shallow_clone())),
    };
    let inputs = node.inputs.iter().map(known).collect::<Option<Vec<_>>>()?;
    let call = Call { node, opset: graph.opset, inputs: &inputs, float: Kind::Float };
    // a node that refuses its inputs says so when the graph is run
    let results = kernel(&call).ok()?;
    let asked = node.outputs.iter().filter(|name| !name.is_empty()).count();
    let named = node.outputs.iter().zip(results).filter(|(name, _)| !name.is_empty());
    let mut left = room;
    let mut kept = Vec::new();
    for (name, tensor) in named {
        let size = Some(tensor.numel()).filter(|&size| size <= MOST_ELEMENTS)?;
        left = left.checked_sub(size)?;
        kept.push((name.clone(), tensor.f_detach().ok()?.f_contiguous().ok()?));
    }
    (kept.len() == asked).then_some(kept)
}

/// Multiplies batch norms into the convolutions before them.
fn fold_norms(graph: &mut Graph) -> Result<()> {
    let uses = uses(graph);
    let mut taken = names(graph);
    let mut makers = HashMap::new();
    let mut gone = HashSet::new();
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        if is(node, "Conv")
            && let Some(output) = node.outputs.first()
        {
            makers.insert(output.clone(), at);
        }
        let Some(pair) = Pair::find(graph, at, &makers, &uses) else { continue };
        let output = pair.norm.outputs[0].clone();
        let conv_at = pair.conv_at;
        let (weight, bias) = pair.folded()?;
        let base = &pair.conv.inputs[1];
        let (weight_name, bias_name) = (fresh(&mut taken, base, "weight"), fresh(&mut taken, base, "bias"));
        graph.constants.insert(weight_name.clone(), weight);
        graph.constants.insert(bias_name.clone(), bias);
        let conv = &mut graph.nodes[conv_at];
        conv.inputs.truncate(1);
        conv.inputs.extend([weight_name, bias_name]);
        conv.outputs = vec![output.clone()];
        // another norm may follow
        makers.insert(output, conv_at);
        gone.insert(at);
    }
    let mut places = 0..;
    graph.nodes.retain(|_| places.next().is_none_or(|place: usize| !gone.contains(&place)));
    Ok(())
}

/// A convolution and the batch norm that can be multiplied into it.
struct Pair<'a> {
    conv_at: usize,
    conv: &'a Node,
    norm: &'a Node,
    weight: &'a Tensor,
    bias: Option<&'a Tensor>,
    /// Scale, shift, mean and variance, one a channel.
    parameters: [&'a Tensor; 4],
    epsilon: f64,
}

impl<'a> Pair<'a> {
    /// The pair that ends with the node at `at`, if there is one.
    fn find(
        graph: &'a Graph,
        at: usize,
        makers: &HashMap<String, usize>,
        uses: &HashMap<String, usize>,
    ) -> Option<Self> {
        let norm = graph.nodes.get(at).filter(|node| is(node, "BatchNormalization"))?;
        let training = norm.attributes.int("training_mode", 0).ok()? != 0;
        let spatial = norm.attributes.int("spatial", 1).ok()? != 0;
        let one_output = norm.outputs.iter().skip(1).all(|name| is_unused(name, uses));
        if training || !spatial || !one_output || norm.outputs.first()?.is_empty() {
            return None;
        }
        let [between, parameters @ ..] = norm.inputs.as_slice() else { return None };
        let conv_at = *makers.get(between).filter(|_| uses.get(between) == Some(&1))?;
        let conv = graph.nodes.get(conv_at)?;
        let weight = graph.constants.get(conv.inputs.get(1)?)?;
        let channels = *weight.size().first()?;
        let vector = |name: &String| graph.constants.get(name).filter(|tensor| tensor.size() == [channels]);
        let bias = match conv.inputs.get(2).filter(|name| !name.is_empty()) {
            Some(name) => Some(vector(name)?),
            None => None,
        };
        let parameters: Vec<&Tensor> = parameters.iter().map(vector).collect::<Option<_>>()?;
        let parameters = <[&Tensor; 4]>::try_from(parameters).ok()?;
        let epsilon = norm.attributes.float("epsilon", 1e-5).ok()?;
        Some(Self { conv_at, conv, norm, weight, bias, parameters, epsilon })
    }

    /// Weight and bias of the convolution that does the work of both, computed in double precision.
    fn folded(&self) -> Result<(Tensor, Tensor)> {
        let double = |tensor: &Tensor| tensor.f_to_kind(Kind::Double);
        let [scale, shift, mean, variance] = self.parameters;
        let factor = double(scale)?.f_div(&double(variance)?.f_add_scalar(self.epsilon)?.f_sqrt()?)?;
        let mut column = vec![1_i64; self.weight.dim()];
        column[0] = -1;
        let weight = double(self.weight)?.f_mul(&factor.f_reshape(column)?)?;
        let centre = match self.bias {
            Some(bias) => double(bias)?.f_sub(&double(mean)?)?,
            None => double(mean)?.f_neg()?,
        };
        let bias = centre.f_mul(&factor)?.f_add(&double(shift)?)?;
        let kind = self.weight.kind();
        Ok((weight.f_to_kind(kind)?, bias.f_to_kind(kind)?))
    }
}

/// The names of all values.
fn names(graph: &Graph) -> HashSet<String> {
    let ports = graph.inputs.iter().map(|port| &port.name);
    let nodes = graph.nodes.iter().flat_map(|node| &node.outputs);
    graph.constants.keys().chain(ports).chain(nodes).cloned().collect()
}

/// A name that no value has yet.
fn fresh(taken: &mut HashSet<String>, base: &str, part: &str) -> String {
    let mut name = format!("{base}.folded_{part}");
    while !taken.insert(name.clone()) {
        name.push('_');
    }
    name
}

/// Drops what no output of the graph needs.
fn prune(graph: &mut Graph) {
    let mut needed: HashSet<String> = graph.outputs.iter().map(|port| port.name.clone()).collect();
    let mut keep = vec![false; graph.nodes.len()];
    for (node, keep) in graph.nodes.iter().zip(&mut keep).rev() {
        if node.outputs.iter().any(|name| needed.contains(name)) {
            needed.extend(node.inputs.iter().filter(|name| !name.is_empty()).cloned());
            *keep = true;
        }
    }
    let mut keep = keep.into_iter();
    graph.nodes.retain(|_| keep.next().unwrap_or(true));
    graph.constants.retain(|name, _| needed.contains(name));
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::{Attribute, Program, ops::testing::*};

    const X: [(&str, Kind); 1] = [("x", Kind::Float)];

    fn ops(graph: &Graph) -> Vec<&str> {
        graph.nodes.iter().map(|node| node.op.as_str()).collect()
    }

    fn outputs_of(graph: Graph, x: &Tensor) -> Vec<Tensor> {
        Program::new(graph, Device::Cpu).unwrap().run(&[x.shallow_clone()]).unwrap()
    }

    fn wave(shape: &[i64], step: f64) -> Tensor {
        (ramp(shape) * step + 0.3).sin()
    }

    /// Values of a norm over four channels; the variance is positive.
    fn statistics() -> Vec<(&'static str, Tensor)> {
        vec![
            ("scale", wave(&[4], 0.7)),
            ("shift", wave(&[4], 1.3)),
            ("mean", wave(&[4], 0.2)),
            ("variance", wave(&[4], 0.5).abs() + 0.1),
        ]
    }

    fn normalised(conv: &str, norm: Vec<(&str, Attribute)>, constants: Vec<(&str, Tensor)>) -> Graph {
        let pads = ("pads", Attribute::Ints(vec![1, 1, 1, 1]));
        let nodes = vec![
            node("Conv", conv, "c", vec![("group", Attribute::Int(2)), pads]),
            node("BatchNormalization", "c scale shift mean variance", "n", norm),
            node("Relu", "n", "y", vec![]),
        ];
        let all = statistics().into_iter().chain(constants).chain([("w", wave(&[4, 1, 3, 3], 0.9))]);
        graph(&X, &["y"], nodes, all.collect())
    }

    #[test]
    fn a_norm_disappears_in_the_convolution_before_it() {
        let x = wave(&[2, 2, 5, 5], 0.37);
        let epsilon = || vec![("epsilon", Attribute::Float(0.01))];
        for (conv, norm, constants) in [
            ("x w", vec![], vec![]),
            ("x w -", epsilon(), vec![]),
            ("x w b", epsilon(), vec![("b", wave(&[4], 2.1))]),
        ] {
            let (bias, eps) = (
                constants.first().map(|(_, b)| b.shallow_clone()),
                if norm.is_empty() { 1e-5 } else { 0.01 },
            );
            let graph = normalised(conv, norm, constants);
            let [scale, shift, mean, variance] =
                ["scale", "shift", "mean", "variance"].map(|name| &graph.constants[name]);
            let expected = x
                .conv2d(&graph.constants["w"], bias.as_ref(), [1, 1], [1, 1], [1, 1], 2)
                .batch_norm(Some(scale), Some(shift), Some(mean), Some(variance), false, 0.0, eps, false)
                .relu();
            let folded = fold(graph).unwrap();
            assert_eq!(ops(&folded), ["Conv", "Relu"]);
            assert_eq!(folded.constants.len(), 2);
            let found = outputs_of(folded, &x).remove(0);
            assert!((found - expected).abs().max().double_value(&[]) < 1e-5);
        }
    }

    #[test]
    fn two_norms_in_a_row_disappear() {
        let mut graph = normalised("x w", vec![], vec![]);
        graph.nodes.insert(2, node("BatchNormalization", "n scale shift mean variance", "m", vec![]));
        graph.nodes[3].inputs = vec!["m".into()];
        let x = wave(&[1, 2, 4, 4], 0.21);
        let statistics =
            ["scale", "shift", "mean", "variance"].map(|name| graph.constants[name].shallow_clone());
        let [scale, shift, mean, variance] = &statistics;
        let norm = |x: Tensor| {
            x.batch_norm(Some(scale), Some(shift), Some(mean), Some(variance), false, 0.0, 1e-5, false)
        };
        let convolved = x.conv2d(&graph.constants["w"], None::<&Tensor>, [1, 1], [1, 1], [1, 1], 2);
        let expected = norm(norm(convolved)).relu();
        let folded = fold(graph).unwrap();
        assert_eq!(ops(&folded), ["Conv", "Relu"]);
        assert!((outputs_of(folded, &x).remove(0) - expected).abs().max().double_value(&[]) < 1e-5);
    }

    #[test]
    fn a_norm_stays_where_folding_would_change_something() {
        let stays = |change: &dyn Fn(&mut Graph)| {
            let mut graph = normalised("x w", vec![], vec![]);
            change(&mut graph);
            ops(&fold(graph).unwrap()).contains(&"BatchNormalization")
        };
        assert!(!stays(&|_| ()));
        // somebody else looks at the convolution
        assert!(stays(&|graph| {
            graph.nodes.push(node("Add", "y c", "z", vec![]));
            graph.outputs[0].name = "z".into();
        }));
        assert!(stays(&|graph| {
            let mut port = graph.outputs[0].clone();
            port.name = "c".into();
            graph.outputs.push(port);
        }));
        assert!(stays(&|graph| graph.nodes[1].attributes.insert("training_mode", Attribute::Int(1))));
        // parameters that are no constants, or of another length
        assert!(stays(&|graph| {
            graph.constants.remove("scale");
            let mut port = graph.inputs[0].clone();
            port.name = "scale".into();
            graph.inputs.push(port);
        }));
        assert!(stays(&|graph| drop(graph.constants.insert("mean".into(), ramp(&[3])))));
        assert!(stays(&|graph| graph.nodes[0].op = "ConvTranspose".into()));
    }

    #[test]
    fn a_shared_weight_is_not_overwritten() {
        let mut graph = normalised("x w", vec![], vec![]);
        let plain = graph.nodes[0].attributes.clone_shallow();
        let mut second = node("Conv", "x w", "d", vec![]);
        second.attributes = plain;
        graph.nodes.push(second);
        graph.nodes.push(node("Add", "y d", "z", vec![]));
        graph.outputs[0].name = "z".into();
        let weight = graph.constants["w"].shallow_clone();
        let before = weight.copy();
        let folded = fold(graph).unwrap();
        assert_eq!(ops(&folded), ["Conv", "Relu", "Conv", "Add"]);
        assert_same(&folded.constants["w"], &before);
        assert_same(&weight, &before);
    }

    #[test]
    fn arithmetic_on_constants_is_done_once() {
        let nodes = vec![
            node("Shape", "w", "s", vec![]),
            node("Gather", "s first", "n", vec![]),
            node("Unsqueeze", "n axes", "u", vec![]),
            node("Concat", "zero u", "t", vec![("axis", Attribute::Int(0))]),
            node("Reshape", "x t", "y", vec![]),
        ];
        let constants = vec![
            ("w", ramp(&[3, 5])),
            ("first", Tensor::from(0_i64)),
            ("axes", ints(&[0])),
            ("zero", ints(&[-1])),
        ];
        let folded = fold(graph(&X, &["y"], nodes, constants)).unwrap();
        assert_eq!(ops(&folded), ["Reshape"]);
        assert_eq!(folded.constants.keys().collect::<Vec<_>>(), ["t"]);
        assert_same(&folded.constants["t"], &ints(&[-1, 3]));
        assert_same(&outputs_of(folded, &ramp(&[2, 6]))[0], &ramp(&[4, 3]));
    }

    #[test]
    fn what_depends_on_an_input_or_is_too_large_is_left() {
        let shape =
            graph(&X, &["y"], vec![node("Shape", "x", "s", vec![]), node("Neg", "s", "y", vec![])], vec![]);
        assert_eq!(ops(&fold(shape).unwrap()), ["Shape", "Neg"]);
        let large = vec![node("ConstantOfShape", "s", "l", vec![]), node("Add", "x l", "y", vec![])];
        let folded = fold(graph(&X, &["y"], large, vec![("s", ints(&[1 << 27]))])).unwrap();
        assert_eq!(ops(&folded), ["ConstantOfShape", "Add"]);
        let wrong = vec![node("Reshape", "a s", "r", vec![]), node("Add", "x r", "y", vec![])];
        let folded = fold(graph(&X, &["y"], wrong, vec![("a", ramp(&[3])), ("s", ints(&[2]))])).unwrap();
        assert_eq!(ops(&folded), ["Reshape", "Add"]);
        let unknown = vec![node("Unknown", "a", "b", vec![]), node("Add", "x b", "y", vec![])];
        let folded = fold(graph(&X, &["y"], unknown, vec![("a", ramp(&[3]))])).unwrap();
        assert_eq!(ops(&folded), ["Unknown", "Add"]);
    }

    #[test]
    fn identities_and_dropout_go_and_outputs_keep_their_names() {
        let nodes = vec![
            node("Identity", "x", "a", vec![]),
            node("Dropout", "a ratio off", "b mask", vec![]),
            node("Relu", "b", "c", vec![]),
            node("Identity", "c", "d", vec![]),
            node("Dropout", "d", "y", vec![]),
        ];
        let constants = vec![("ratio", Tensor::from(0.5_f32)), ("off", Tensor::from(false))];
        let graph = graph(&X, &["y"], nodes, constants);
        let folded = fold(graph).unwrap();
        assert_eq!(ops(&folded), ["Relu", "Identity"]);
        assert_eq!((folded.nodes[0].inputs[0].as_str(), folded.nodes[1].inputs[0].as_str()), ("x", "c"));
        assert_eq!(folded.outputs[0].name, "y");
        assert!(folded.constants.is_empty());
        assert_same(&outputs_of(folded, &ramp(&[3]))[0], &ramp(&[3]));
    }

    #[test]
    fn dropout_stays_if_it_may_train_or_its_mask_is_used() {
        let on = vec![node("Dropout", "x ratio on", "a", vec![]), node("Relu", "a", "y", vec![])];
        let constants = vec![("ratio", Tensor::from(0.5_f32)), ("on", Tensor::from(true))];
        assert_eq!(ops(&fold(graph(&X, &["y"], on, constants)).unwrap()), ["Dropout", "Relu"]);
        let masked = vec![node("Dropout", "x", "a m", vec![]), node("Where", "m a a", "y", vec![])];
        assert_eq!(ops(&fold(graph(&X, &["y"], masked, vec![])).unwrap()), ["Dropout", "Where"]);
    }

    #[test]
    fn what_nobody_needs_is_dropped() {
        let nodes = vec![
            node("Relu", "x", "y", vec![]),
            node("Neg", "x", "idle", vec![]),
            node("Unknown", "idle w", "idler", vec![]),
        ];
        let folded = fold(graph(&X, &["y"], nodes, vec![("w", ramp(&[2]))])).unwrap();
        assert_eq!(ops(&folded), ["Relu"]);
        assert!(folded.constants.is_empty());
    }
}
