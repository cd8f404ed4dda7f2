//! Running a graph: which operators it needs, and in what order its values come and go.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use talion_core::{Error, Result};
use tch::{Device, Kind, Tensor};

use crate::{
    Graph, Node, Port, Side,
    fold::fold,
    graph::quoted,
    ops::{Call, Kernel, is_floating, kernel, read_on_host},
};

/// A node whose operator cannot be run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// The operator.
    pub op: String,
    /// Its domain, empty for the default.
    pub domain: String,
    /// The node's name, which may be empty.
    pub node: String,
    /// Version of the default operator set.
    pub opset: i64,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domain = if self.domain.is_empty() { "ai.onnx" } else { &self.domain };
        // the names come from a file
        let (op, domain) = (quoted(&self.op), quoted(domain));
        let (op, domain) = (op.trim_matches('"'), domain.trim_matches('"'));
        write!(f, "op {op} ({domain}) at node {}, opset {}", quoted(&self.node), self.opset)
    }
}

/// The nodes whose operators cannot be run here, in the order of the graph.
pub fn unsupported(graph: &Graph) -> Vec<Unsupported> {
    let unknown = graph.nodes.iter().filter(|node| kernel(&node.domain, &node.op).is_none());
    unknown
        .map(|node| Unsupported {
            op: node.op.clone(),
            domain: node.domain.clone(),
            node: node.name.clone(),
            opset: graph.opset,
        })
        .collect()
}

/// A graph that is ready to run, any number of times and on batches of any size.
///
/// Its constants require no gradients; its inputs may, and then its outputs can be differentiated, twice where
/// libtorch can.
pub struct Program {
    graph: Graph,
    device: Device,
    /// What FLOAT is computed in.
    float: Kind,
    /// The values' names; everything else speaks of values by their place in this list.
    names: Vec<String>,
    constants: Vec<Option<Tensor>>,
    /// One a node of the graph.
    steps: Vec<Step>,
    inputs: Vec<usize>,
    outputs: Vec<usize>,
}

/// What a node is when it runs.
struct Step {
    kernel: Kernel,
    inputs: Vec<Option<usize>>,
    outputs: Vec<Option<usize>>,
    /// Values that nobody needs any more afterwards.
    done: Vec<usize>,
}

impl Program {
    /// Simplifies a graph ([`fold`]) and places it on a device. Floating-point constants go there; integers, which are
    /// mostly shapes, stay on the CPU.
    ///
    /// # Errors
    /// If some operators cannot be run, with all their names; if a value is used before it is defined, or defined
    /// twice; if the device has no room.
    pub fn new(graph: Graph, device: Device) -> Result<Self> {
        let graph = fold(graph)?;
        let kernels =
            graph.nodes.iter().map(|node| kernel(&node.domain, &node.op)).collect::<Option<Vec<_>>>();
        let Some(kernels) = kernels else { return Err(refusal(&graph)) };
        let mut names = Names::default();
        for name in graph.constants.keys().chain(graph.inputs.iter().map(|port| &port.name)) {
            names.define(name)?;
        }
        let steps = graph.nodes.iter().zip(kernels).map(|(node, kernel)| names.step(node, kernel));
        let mut steps = steps.collect::<Result<Vec<_>>>()?;
        let find = |port: &Port| names.find(&port.name);
        let inputs = graph.inputs.iter().map(find).collect::<Result<Vec<_>>>()?;
        let outputs = graph.outputs.iter().map(find).collect::<Result<Vec<_>>>()?;
        release(&mut steps, &outputs, names.list.len());
        let constants = placed(&graph, &names, device)?;
        Ok(Self { graph, device, float: Kind::Float, names: names.list, constants, steps, inputs, outputs })
    }

    /// The graph that is run: the one that was given, simplified. [`Program::to_double`] does not change it.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The number of elements of the floating-point constants, after simplification.
    pub fn parameters(&self) -> usize {
        let constants = self.graph.constants.values();
        constants.filter(|tensor| is_floating(tensor.kind())).map(Tensor::numel).sum()
    }

    /// The same program in double precision, for checking gradients: FLOAT constants become `Double`, and so have
    /// inputs that are declared as FLOAT to be. Half precision stays as it is.
    #[must_use]
    pub fn to_double(mut self) -> Self {
        for constant in self.constants.iter_mut().flatten() {
            if constant.kind() == Kind::Float {
                *constant = constant.to_kind(Kind::Double);
            }
        }
        self.float = Kind::Double;
        self
    }

    /// The graph's outputs, in its order.
    ///
    /// # Errors
    /// If number, types, devices or fixed sides of the inputs are not what the graph declares; if a node refuses what
    /// it is given, with the node's name.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let values = self.execute(inputs, true)?;
        self.outputs.iter().map(|&id| self.value(&values, id)).collect()
    }

    /// Every value of the graph by name, constants included.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn trace(&self, inputs: &[Tensor]) -> Result<BTreeMap<String, Tensor>> {
        let values = self.execute(inputs, false)?;
        let known = self.names.iter().enumerate();
        Ok(known.filter_map(|(id, name)| Some((name.clone(), self.value(&values, id).ok()?))).collect())
    }

    /// Runs all nodes; what has been computed stands at its place, or nothing once it has been released.
    fn execute(&self, inputs: &[Tensor], release: bool) -> Result<Vec<Option<Tensor>>> {
        self.check(inputs)?;
        let mut values: Vec<Option<Tensor>> = self.names.iter().map(|_| None).collect();
        for (&id, input) in self.inputs.iter().zip(inputs) {
            values[id] = Some(input.shallow_clone());
        }
        for (step, node) in self.steps.iter().zip(&self.graph.nodes) {
            self.perform(step, node, &mut values)?;
            if release {
                for &id in &step.done {
                    values[id] = None;
                }
            }
        }
        Ok(values)
    }

    fn perform(&self, step: &Step, node: &Node, values: &mut [Option<Tensor>]) -> Result<()> {
        let value = |id: &Option<usize>| id.map(|id| self.value(values, id)).transpose();
        let mut inputs = step.inputs.iter().map(value).collect::<Result<Vec<_>>>()?;
        self.join(node, &mut inputs)?;
        let call = Call { node, opset: self.graph.opset, inputs: &inputs, float: self.float };
        let mut results = (step.kernel)(&call).map_err(|error| located(node, &error))?.into_iter();
        for id in &step.outputs {
            let result = results.next();
            if let Some(id) = *id {
                values[id] = Some(result.ok_or_else(|| call.refuse("names more outputs than it has"))?);
            }
        }
        Ok(())
    }

    /// Moves floating-point values that were computed from shapes, on the CPU, to where the data is.
    fn join(&self, node: &Node, inputs: &mut [Option<Tensor>]) -> Result<()> {
        let away = |tensor: &Tensor| is_floating(tensor.kind()) && tensor.device() == Device::Cpu;
        if self.device == Device::Cpu || inputs.iter().flatten().all(|t| t.device() == Device::Cpu) {
            return Ok(());
        }
        for (place, input) in inputs.iter_mut().enumerate() {
            if let Some(tensor) = input.as_mut()
                && away(tensor)
                && !read_on_host(&node.op, place)
            {
                *tensor = tensor.f_to_device(self.device).map_err(|error| located(node, &error.into()))?;
            }
        }
        Ok(())
    }

    fn value(&self, values: &[Option<Tensor>], id: usize) -> Result<Tensor> {
        let value = values[id].as_ref().or(self.constants[id].as_ref()).map(Tensor::shallow_clone);
        value.ok_or_else(|| Error::Refused(format!("value {} was not computed", quoted(&self.names[id]))))
    }

    fn check(&self, inputs: &[Tensor]) -> Result<()> {
        let ports = &self.graph.inputs;
        if inputs.len() != ports.len() {
            return Err(Error::range("the number of inputs", ports.len().to_string(), inputs.len()));
        }
        ports.iter().zip(inputs).try_for_each(|(port, input)| self.check_input(port, input))
    }

    fn check_input(&self, port: &Port, input: &Tensor) -> Result<()> {
        let name = quoted(&port.name);
        let kind = if port.kind == Kind::Float { self.float } else { port.kind };
        if input.kind() != kind {
            let found = format!("{:?}", input.kind());
            return Err(Error::range(format!("the type of input {name}"), format!("{kind:?}"), found));
        }
        if is_floating(kind) && input.device() != self.device {
            let (expected, found) = (format!("{:?}", self.device), format!("{:?}", input.device()));
            return Err(Error::range(format!("the device of input {name}"), expected, found));
        }
        let found = input.size();
        match &port.shape {
            Some(sides) if !fits(sides, &found) => Err(Error::Shape {
                what: "an input",
                expected: format!("{} for {name}", words(sides)),
                found,
            }),
            _ => Ok(()),
        }
    }
}

/// The values' places by name, while a program is being made.
#[derive(Default)]
struct Names {
    places: HashMap<String, usize>,
    list: Vec<String>,
}

impl Names {
    fn define(&mut self, name: &str) -> Result<usize> {
        let place = self.list.len();
        if self.places.insert(name.into(), place).is_some() {
            return Err(Error::Refused(format!("value {} is defined twice", quoted(name))));
        }
        self.list.push(name.into());
        Ok(place)
    }

    fn find(&self, name: &str) -> Result<usize> {
        let place = self.places.get(name).copied();
        place.ok_or_else(|| Error::Refused(format!("value {} is not defined", quoted(name))))
    }

    fn step(&mut self, node: &Node, kernel: Kernel) -> Result<Step> {
        let inputs = node.inputs.iter().map(|name| named(name).map(|name| self.find(name)).transpose());
        let inputs = inputs.collect::<Result<_>>().map_err(|error| located(node, &error))?;
        let outputs = node.outputs.iter().map(|name| named(name).map(|name| self.define(name)).transpose());
        let outputs = outputs.collect::<Result<_>>().map_err(|error| located(node, &error))?;
        Ok(Step { kernel, inputs, outputs, done: Vec::new() })
    }
}

/// An empty name stands for nothing.
fn named(name: &str) -> Option<&str> {
    (!name.is_empty()).then_some(name)
}

/// Tells each step which values it is the last to need.
fn release(steps: &mut [Step], outputs: &[usize], values: usize) {
    let mut needed = vec![false; values];
    for &id in outputs {
        needed[id] = true;
    }
    for step in steps.iter_mut().rev() {
        for &id in step.inputs.iter().chain(&step.outputs).flatten() {
            if !std::mem::replace(&mut needed[id], true) {
                step.done.push(id);
            }
        }
    }
}

/// The constants, detached and where the program wants them.
fn placed(graph: &Graph, names: &Names, device: Device) -> Result<Vec<Option<Tensor>>> {
    let mut for_data = vec![false; names.list.len()];
    for node in &graph.nodes {
        for (place, name) in node.inputs.iter().enumerate() {
            if let Some(&id) = names.places.get(name)
                && !read_on_host(&node.op, place)
            {
                for_data[id] = true;
            }
        }
    }
    for port in &graph.outputs {
        for_data[names.find(&port.name)?] = true;
    }
    let mut constants: Vec<Option<Tensor>> = names.list.iter().map(|_| None).collect();
    for (name, tensor) in &graph.constants {
        let id = names.find(name)?;
        let there = is_floating(tensor.kind()) && for_data[id];
        let device = if there { device } else { Device::Cpu };
        constants[id] = Some(tensor.f_detach()?.f_to_device(device)?);
    }
    Ok(constants)
}

/// Names every operator that cannot be run, with the first of its nodes and their number.
fn refusal(graph: &Graph) -> Error {
    let mut kinds: Vec<(Unsupported, usize)> = Vec::new();
    for found in unsupported(graph) {
        let known = kinds.iter_mut().find(|(kind, _)| (&kind.op, &kind.domain) == (&found.op, &found.domain));
        match known {
            Some((_, count)) => *count += 1,
            None => kinds.push((found, 1)),
        }
    }
    let listed = kinds.iter().map(|(kind, count)| match count {
        1 => kind.to_string(),
        _ => format!("{kind} and {} more", count - 1),
    });
    Error::Refused(format!("operators that cannot be run: {}", listed.collect::<Vec<_>>().join("; ")))
}

/// The error of a node, with the node's name and without libtorch's own call stack.
fn located(node: &Node, error: &Error) -> Error {
    let (place, text) = (node.describe(), error.to_string());
    if text.starts_with(&place) {
        return Error::Refused(text);
    }
    let problem = text.split("\nException raised from").next().unwrap_or_default();
    Error::Refused(format!("{place}: {problem}"))
}

fn fits(sides: &[Side], found: &[i64]) -> bool {
    let fits = |(side, length): (&Side, &i64)| !matches!(side, Side::Fixed(fixed) if fixed != length);
    sides.len() == found.len() && sides.iter().zip(found).all(fits)
}

/// A declared shape, for instance `[N, 3, 32, 32]`.
fn words(sides: &[Side]) -> String {
    let words = sides.iter().map(|side| match side {
        Side::Fixed(length) => length.to_string(),
        Side::Named(name) => quoted(name).trim_matches('"').to_owned(),
        Side::Unknown => "?".into(),
    });
    format!("[{}]", words.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attribute, ops::testing::*};

    const FLOAT: Kind = Kind::Float;

    /// Convolution, ReLU and a linear layer on `[N, 1, 4, 4]`, three logits.
    fn network() -> Graph {
        let wave = |shape: &[i64], step: f64| (ramp(shape) * step + 0.3).sin();
        let nodes = vec![
            node("Conv", "x w b", "c", vec![("kernel_shape", Attribute::Ints(vec![3, 3]))]),
            node("Relu", "c", "r", vec![]),
            node("Flatten", "r", "f", vec![]),
            node("Gemm", "f v d", "y", vec![("transB", Attribute::Int(1))]),
        ];
        let constants = vec![
            ("w", wave(&[2, 1, 3, 3], 0.7)),
            ("b", wave(&[2], 1.1)),
            ("v", wave(&[3, 8], 0.9)),
            ("d", wave(&[3], 0.4)),
        ];
        let mut graph = graph(&[("x", FLOAT)], &["y"], nodes, constants);
        graph.inputs[0].shape = batch_of(&[1, 4, 4]);
        graph
    }

    /// Flattens as exporters write it: the batch size is taken from the shape.
    fn dynamic_flatten() -> Graph {
        let nodes = vec![
            node("Shape", "x", "s", vec![]),
            node("Gather", "s zero", "n", vec![]),
            node("Unsqueeze", "n axes", "u", vec![]),
            node("Concat", "u rest", "t", vec![("axis", Attribute::Int(0))]),
            node("Reshape", "x t", "y", vec![]),
        ];
        let constants = vec![
            ("zero", Tensor::from(0_i64)),
            ("axes", ints(&[0])),
            ("rest", ints(&[-1])),
            ("idle", ints(&[9])),
        ];
        graph(&[("x", FLOAT)], &["y"], nodes, constants)
    }

    fn program(graph: Graph) -> Program {
        Program::new(graph, Device::Cpu).unwrap()
    }

    fn problem(graph: Graph) -> String {
        Program::new(graph, Device::Cpu).err().unwrap().to_string()
    }

    fn images(batch: i64) -> Tensor {
        (ramp(&[batch, 1, 4, 4]) * 0.37).sin()
    }

    #[test]
    fn a_network_is_run_as_libtorch_would() {
        let (program, constants) = (program(network()), network().constants);
        let x = images(3);
        let features = x.conv2d(&constants["w"], Some(&constants["b"]), [1, 1], [0, 0], [1, 1], 1).relu();
        let expected = features.flatten(1, -1).linear(&constants["v"], Some(&constants["d"]));
        for _ in 0..2 {
            assert_same(&program.run(&[x.shallow_clone()]).unwrap()[0], &expected);
        }
        assert_eq!(program.parameters(), 18 + 2 + 24 + 3);
    }

    #[test]
    fn any_batch_size_runs() {
        let program = program(dynamic_flatten());
        for batch in [1, 2, 5] {
            let x = ramp(&[batch, 2, 3]);
            assert_same(&program.run(&[x.shallow_clone()]).unwrap()[0], &x.reshape([batch, 6]));
        }
    }

    #[test]
    fn a_trace_holds_every_value_and_ends_as_a_run_does() {
        for (graph, x) in [(network(), images(2)), (dynamic_flatten(), ramp(&[2, 3, 4]))] {
            let program = program(graph);
            let trace = program.trace(&[x.shallow_clone()]).unwrap();
            assert_same(&trace["y"], &program.run(&[x.shallow_clone()]).unwrap()[0]);
            assert_same(&trace["x"], &x);
            let nodes = program.graph().nodes.iter().flat_map(|node| &node.outputs);
            for name in nodes.chain(program.graph().constants.keys()) {
                assert!(trace.contains_key(name), "{name}");
            }
        }
    }

    #[test]
    fn values_are_released_after_their_last_use() {
        let program = program(network());
        let values = program.execute(&[images(1)], true).unwrap();
        let left = values.iter().zip(&program.names).filter(|(value, _)| value.is_some());
        assert_eq!(left.map(|(_, name)| name.as_str()).collect::<Vec<_>>(), ["y"]);
        // an input and a constant that are outputs too, and an output that nobody uses
        let nodes = vec![node("TopK", "x k", "values places", vec![])];
        let graph = graph(&[("x", FLOAT)], &["x", "k", "values"], nodes, vec![("k", ints(&[1]))]);
        let outputs = Program::new(graph, Device::Cpu).unwrap().run(&[ramp(&[3])]).unwrap();
        assert_same(&outputs[0], &ramp(&[3]));
        assert_same(&outputs[1], &ints(&[1]));
        assert_same(&outputs[2], &floats(&[2.0], &[1]));
    }

    #[test]
    fn all_unsupported_operators_are_listed() {
        let mut nodes = vec![
            node("Loop", "x", "a", vec![]),
            node("Relu", "a", "b", vec![]),
            node("Loop", "b", "c", vec![]),
            node("Relu", "c", "y", vec![]),
        ];
        nodes[3].domain = "com.example".into();
        let graph = graph(&[("x", FLOAT)], &["y"], nodes, vec![]);
        let found: Vec<String> = unsupported(&graph).iter().map(Unsupported::to_string).collect();
        assert_eq!(
            found,
            [
                "op Loop (ai.onnx) at node \"the Loop\", opset 17",
                "op Loop (ai.onnx) at node \"the Loop\", opset 17",
                "op Relu (com.example) at node \"the Relu\", opset 17",
            ],
        );
        let message = problem(graph);
        assert!(
            message.contains("op Loop (ai.onnx)") && message.contains("and 1 more; op Relu"),
            "{message}"
        );
    }

    #[test]
    fn graphs_that_do_not_hold_together_are_refused() {
        let relu = |from: &str, to: &str| node("Relu", from, to, vec![]);
        let of = |nodes| graph(&[("x", FLOAT)], &["y"], nodes, vec![]);
        assert!(problem(of(vec![relu("z", "y")])).contains("\"z\" is not defined"));
        assert!(problem(of(vec![relu("b", "y"), relu("x", "b")])).contains("\"b\" is not defined"));
        assert!(problem(of(vec![relu("x", "y"), relu("x", "y")])).contains("\"y\" is defined twice"));
        assert!(problem(of(vec![])).contains("\"y\" is not defined"));
    }

    #[test]
    fn inputs_have_to_be_as_declared() {
        let program = program(network());
        let refused = |inputs: &[Tensor]| program.run(inputs).unwrap_err().to_string();
        assert!(refused(&[]).contains("number of inputs"));
        assert!(refused(&[images(1), images(1)]).contains("number of inputs"));
        assert!(refused(&[images(1).to_kind(Kind::Double)]).contains("the type of input \"x\""));
        assert!(refused(&[ramp(&[2, 1, 4, 5])]).contains("[N, 1, 4, 4] for \"x\""));
        assert!(refused(&[ramp(&[1, 4, 4])]).contains("[N, 1, 4, 4]"));
    }

    #[test]
    fn errors_at_run_time_name_the_node_once() {
        let nodes = vec![node("MatMul", "x w", "h", vec![]), node("Reshape", "h s", "y", vec![])];
        let constants = vec![("w", ramp(&[3, 2])), ("s", ints(&[5, -1]))];
        let program = program(graph(&[("x", FLOAT)], &["y"], nodes, constants));
        for (x, node) in [(ramp(&[2, 4]), "`MatMul`"), (ramp(&[2, 3]), "`Reshape`")] {
            let message = program.run(&[x]).unwrap_err().to_string();
            assert!(message.starts_with(node) && message.matches(node).count() == 1, "{message}");
            assert!(!message.contains("Exception raised"), "{message}");
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences_and_can_be_differentiated() {
        let program = program(network()).to_double();
        let logits = |x: &Tensor| program.run(&[x.shallow_clone()]).unwrap().remove(0);
        let x = images(2).to_kind(Kind::Double);
        assert_eq!(logits(&x).kind(), Kind::Double);
        assert!(program.run(&[images(2)]).is_err());
        assert_gradient(logits, &x);

        let x = x.set_requires_grad(true);
        let loss = logits(&x).softmax(1, Kind::Double).select(1, 0).sum(Kind::Double);
        let gradient = Tensor::run_backward(&[loss], &[&x], true, true).remove(0);
        let second =
            Tensor::run_backward(&[gradient.square().sum(Kind::Double)], &[&x], false, false).remove(0);
        let size = second.abs().max().double_value(&[]);
        assert!(size.is_finite() && size > 0.0, "{size}");
    }

    #[test]
    fn constants_need_no_gradients() {
        let mut graph = network();
        let weights = graph.constants.remove("w").unwrap().set_requires_grad(true);
        graph.constants.insert("w".into(), weights);
        let program = program(graph);
        assert!(!program.run(&[images(1)]).unwrap()[0].requires_grad());
        assert!(program.trace(&[images(1)]).unwrap().values().all(|value| !value.requires_grad()));
    }
}
