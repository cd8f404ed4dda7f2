//! Inlines the functions that a model brings along, so that what is left are operators.

use std::collections::{BTreeMap, HashMap, HashSet};

use prost::Message;

use crate::{
    graph::{MAX_NODES, described, plain_domain, quoted, too_many_nodes},
    proto::{AttributeProto, Checked, FunctionProto, GraphProto, NodeProto},
};

/// How deep functions may call each other.
const MAX_DEPTH: usize = 32;

/// The most bytes that the nodes of all calls may take together, so that a small file cannot unfold to a large graph.
const MAX_BYTES: usize = 1 << 28;

/// Domain, name, overload.
type Key<'a> = (&'a str, &'a str, &'a str);

/// Replaces every node of `graph` that calls one of `functions` by the function's nodes, renamed; `opset` is the
/// version of the default operator set that the graph uses.
pub(crate) fn inline(graph: &mut GraphProto, functions: &[FunctionProto], opset: i64) -> Checked<()> {
    if functions.is_empty() {
        return Ok(());
    }
    let mut library = BTreeMap::new();
    for function in functions {
        let key = (plain_domain(function.domain()), function.name(), function.overload());
        if library.insert(key, function).is_some() {
            return Err(format!("defines the function {} twice", quoted(function.name())));
        }
    }
    let mut inliner = Inliner {
        library,
        opset,
        taken: names(graph),
        renamed: 0,
        seen: 0,
        bytes: MAX_BYTES,
        calls: Vec::new(),
        nodes: Vec::new(),
    };
    for node in std::mem::take(&mut graph.node) {
        inliner.place(node)?;
    }
    graph.node = inliner.nodes;
    Ok(())
}

/// All names of values outside functions.
fn names(graph: &GraphProto) -> HashSet<String> {
    let inputs = graph.input.iter().map(|input| input.name());
    let constants = graph.initializer.iter().map(|tensor| tensor.name());
    let computed = graph.node.iter().flat_map(|node| &node.output).map(String::as_str);
    inputs.chain(constants).chain(computed).map(str::to_owned).collect()
}

struct Inliner<'a> {
    library: BTreeMap<Key<'a>, &'a FunctionProto>,
    opset: i64,
    /// Names that a value of a function must not get.
    taken: HashSet<String>,
    /// How many values have been renamed: makes new names different from each other.
    renamed: usize,
    /// How many nodes have been looked at, calls among them: functions without nodes can call each other, too.
    seen: usize,
    /// How many more bytes copies of functions may take.
    bytes: usize,
    /// The functions being inlined, each called by the one before.
    calls: Vec<&'a FunctionProto>,
    nodes: Vec<NodeProto>,
}

impl<'a> Inliner<'a> {
    /// Appends a node, or what it calls.
    fn place(&mut self, node: NodeProto) -> Checked<()> {
        self.count()?;
        let key = (plain_domain(node.domain()), node.op_type(), node.overload());
        match self.library.get(&key).copied() {
            Some(function) => self.call(&node, function),
            None => {
                self.nodes.push(node);
                Ok(())
            }
        }
    }

    fn count(&mut self) -> Checked<()> {
        self.seen += 1;
        if self.seen > MAX_NODES { Err(too_many_nodes()) } else { Ok(()) }
    }

    fn call(&mut self, call: &NodeProto, function: &'a FunctionProto) -> Checked<()> {
        let named = |problem: String| format!("has a function {} that {problem}", quoted(function.name()));
        if self.calls.iter().any(|running| std::ptr::eq(*running, function)) {
            return Err(named("calls itself".into()));
        }
        if self.calls.len() >= MAX_DEPTH {
            return Err(named(format!("is called through {MAX_DEPTH} others, which is too deep")));
        }
        self.check(call, function).map_err(named)?;
        let values = self.bind(call, function).map_err(named)?;
        let attributes: HashMap<&str, &AttributeProto> = function
            .attribute_proto
            .iter()
            .chain(&call.attribute)
            .map(|given| (given.name(), given))
            .collect();
        self.calls.push(function);
        for node in &function.node {
            let node = self.instantiate(node, call, &values, &attributes).map_err(named)?;
            self.place(node)?;
        }
        self.calls.pop();
        // Not placed but pushed: a model may have a function called Identity.
        for node in self.pass_on(call, function, &values).map_err(named)? {
            self.count()?;
            self.nodes.push(node);
        }
        Ok(())
    }

    /// Whether the call fits the function, and the function the graph.
    fn check(&mut self, call: &NodeProto, function: &FunctionProto) -> Checked<()> {
        let sets = function.opset_import.iter().filter(|set| plain_domain(set.domain()).is_empty());
        for version in sets.map(|set| set.version()) {
            if version != self.opset {
                let found =
                    format!("uses version {version} of ONNX's operator set, but the model {}", self.opset);
                return Err(format!(
                    "{found}: inline it before, with onnx.inliner, or export the model again"
                ));
            }
        }
        if call.input.len() > function.input.len() || call.output.len() > function.output.len() {
            let (inputs, outputs) = (function.input.len(), function.output.len());
            let call = described(call);
            return Err(format!(
                "has {inputs} inputs and {outputs} outputs, fewer than the node {call} wants"
            ));
        }
        self.charge(function.attribute_proto.len().saturating_mul(size_of::<AttributeProto>()))
    }

    /// What the function's values are called outside it: inputs and outputs as the call has them, the others anew.
    fn bind(&mut self, call: &NodeProto, function: &'a FunctionProto) -> Checked<HashMap<&'a str, String>> {
        let mut values = HashMap::new();
        let mut actual = call.input.iter();
        for formal in &function.input {
            let actual = actual.next().map_or("", String::as_str);
            self.define(&mut values, formal, actual.to_owned())?;
        }
        let mut results: HashMap<&str, &str> = HashMap::new();
        for (formal, actual) in function.output.iter().zip(&call.output) {
            if !actual.is_empty() {
                results.entry(formal).or_insert(actual);
            }
        }
        for formal in function.node.iter().flat_map(|node| &node.output).filter(|output| !output.is_empty()) {
            let actual = match results.get(formal.as_str()) {
                Some(actual) => (*actual).to_owned(),
                None => self.fresh(formal),
            };
            self.define(&mut values, formal, actual)?;
        }
        Ok(values)
    }

    fn define(
        &mut self,
        values: &mut HashMap<&'a str, String>,
        formal: &'a str,
        actual: String,
    ) -> Checked<()> {
        self.charge(formal.len() + actual.len() + size_of::<(&str, String)>())?;
        match values.insert(formal, actual) {
            None => Ok(()),
            Some(_) => Err(format!("defines {} twice", quoted(formal))),
        }
    }

    /// A name that nothing has yet.
    fn fresh(&mut self, value: &str) -> String {
        loop {
            self.renamed += 1;
            let name = format!("{value}@{}", self.renamed);
            if !self.taken.contains(&name) {
                return name;
            }
        }
    }

    /// A node of a function as the graph has it.
    fn instantiate(
        &mut self,
        node: &NodeProto,
        call: &NodeProto,
        values: &HashMap<&str, String>,
        attributes: &HashMap<&str, &AttributeProto>,
    ) -> Checked<NodeProto> {
        self.charge(node.encoded_len() + call.name().len() + size_of::<NodeProto>())?;
        let name = match (call.name(), node.name()) {
            ("", name) | (name, "") => name.to_owned(),
            (outer, inner) => format!("{outer}/{inner}"),
        };
        Ok(NodeProto {
            input: self.rename(&node.input, values)?,
            output: self.rename(&node.output, values)?,
            name: Some(name),
            op_type: node.op_type.clone(),
            attribute: self.substitute(&node.attribute, attributes)?,
            domain: node.domain.clone(),
            overload: node.overload.clone(),
        })
    }

    fn rename(&mut self, names: &[String], values: &HashMap<&str, String>) -> Checked<Vec<String>> {
        let mut renamed = Vec::with_capacity(names.len());
        for name in names {
            let actual = match values.get(name.as_str()) {
                _ if name.is_empty() => "",
                Some(actual) => actual.as_str(),
                None => return Err(format!("uses {}, which nothing in it computes", quoted(name))),
            };
            self.charge(actual.len() + size_of::<String>())?;
            renamed.push(actual.to_owned());
        }
        Ok(renamed)
    }

    /// Attributes of a node in a function; what stands for an attribute of the call that the call lacks is left out.
    fn substitute(
        &mut self,
        attributes: &[AttributeProto],
        given: &HashMap<&str, &AttributeProto>,
    ) -> Checked<Vec<AttributeProto>> {
        self.charge(attributes.len().saturating_mul(size_of::<AttributeProto>()))?;
        let mut substituted = Vec::with_capacity(attributes.len());
        for attribute in attributes {
            let reference = attribute.ref_attr_name();
            if reference.is_empty() {
                substituted.push(attribute.clone());
            } else if let Some(value) = given.get(reference) {
                self.charge(value.encoded_len())?;
                if attribute.kind() != 0 && attribute.kind() != value.kind() {
                    return Err(format!("is given an attribute {} of a wrong type", quoted(reference)));
                }
                substituted.push(AttributeProto { name: attribute.name.clone(), ..(*value).clone() });
            }
        }
        Ok(substituted)
    }

    /// Nodes that give the call the results that no node of the function computes under the call's name for them: an
    /// input that is an output as well, or an output that is listed twice.
    fn pass_on(
        &mut self,
        call: &NodeProto,
        function: &FunctionProto,
        values: &HashMap<&'a str, String>,
    ) -> Checked<Vec<NodeProto>> {
        let mut nodes = Vec::new();
        for (formal, actual) in function.output.iter().zip(&call.output) {
            let value = values.get(formal.as_str()).filter(|value| !value.is_empty());
            let value =
                value.ok_or_else(|| format!("has an output {}, which nothing computes", quoted(formal)))?;
            if !actual.is_empty() && actual != value {
                self.charge(value.len() + actual.len() + size_of::<NodeProto>())?;
                nodes.push(NodeProto {
                    input: vec![value.clone()],
                    output: vec![actual.clone()],
                    op_type: Some("Identity".into()),
                    ..Default::default()
                });
            }
        }
        Ok(nodes)
    }

    fn charge(&mut self, bytes: usize) -> Checked<()> {
        let left = self.bytes.checked_sub(bytes);
        self.bytes = left
            .ok_or_else(|| format!("unfolds to more than {MAX_BYTES} bytes with what was called before"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        graph::{
            Graph,
            samples::{integer, model, node, opset, read},
        },
        proto::{ModelProto, attribute_type},
    };

    fn function(name: &str, inputs: &[&str], outputs: &[&str], nodes: Vec<NodeProto>) -> FunctionProto {
        let signature = node(name, inputs, outputs);
        FunctionProto {
            name: signature.op_type,
            domain: Some("f".into()),
            input: signature.input,
            output: signature.output,
            opset_import: vec![opset("", 17)],
            node: nodes,
            ..Default::default()
        }
    }

    fn call(name: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
        NodeProto { domain: Some("f".into()), ..node(name, inputs, outputs) }
    }

    fn reference(name: &str, to: &str) -> AttributeProto {
        let (name, ref_attr_name) = (Some(name.into()), Some(to.into()));
        AttributeProto { name, ref_attr_name, kind: Some(attribute_type::INT), ..Default::default() }
    }

    fn with(attributes: Vec<AttributeProto>, node: NodeProto) -> NodeProto {
        NodeProto { attribute: attributes, ..node }
    }

    fn model_with(functions: Vec<FunctionProto>, nodes: Vec<NodeProto>) -> ModelProto {
        ModelProto { functions, ..model(nodes) }
    }

    fn nodes(functions: Vec<FunctionProto>, nodes: Vec<NodeProto>) -> String {
        shown(&read(model_with(functions, nodes)).unwrap())
    }

    fn shown(graph: &Graph) -> String {
        format!("{:#?}", graph.nodes)
    }

    fn by_hand(nodes: Vec<NodeProto>) -> String {
        shown(&read(model(nodes)).unwrap())
    }

    fn problem(functions: Vec<FunctionProto>, nodes: Vec<NodeProto>) -> String {
        read(model_with(functions, nodes)).unwrap_err()
    }

    #[test]
    fn a_call_becomes_the_nodes_of_the_function() {
        let twice = function(
            "Twice",
            &["a"],
            &["b"],
            vec![node("Neg", &["a"], &["h"]), node("Sub", &["a", "h"], &["b"])],
        );
        let calls = vec![call("Twice", &["x"], &["h"]), call("Twice", &["h"], &["y"])];
        let expected = vec![
            node("Neg", &["x"], &["h@1"]),
            node("Sub", &["x", "h@1"], &["h"]),
            node("Neg", &["h"], &["h@2"]),
            node("Sub", &["h", "h@2"], &["y"]),
        ];
        assert_eq!(nodes(vec![twice], calls), by_hand(expected));
    }

    #[test]
    fn attributes_come_from_the_call_the_default_or_not_at_all() {
        let body = with(
            vec![reference("axis", "a"), reference("keepdims", "k"), integer("noop", 1)],
            node("Op", &["v"], &["w"]),
        );
        let mut inner = function("Inner", &["v"], &["w"], vec![body]);
        inner.attribute_proto = vec![integer("a", 5)];
        let nested = with(vec![reference("a", "b")], call("Inner", &["v"], &["w"]));
        let outer = function("Outer", &["v"], &["w"], vec![nested]);
        let calls = vec![
            call("Inner", &["x"], &["p"]),
            with(vec![integer("a", 7), integer("k", 0)], call("Inner", &["p"], &["q"])),
            with(vec![integer("b", 9)], call("Outer", &["q"], &["r"])),
            call("Outer", &["r"], &["y"]),
        ];
        let op = |attributes: &[(&str, i64)], input, output| {
            let attributes = attributes.iter().map(|&(name, value)| integer(name, value)).collect();
            with(attributes, node("Op", &[input], &[output]))
        };
        let expected = vec![
            op(&[("axis", 5), ("noop", 1)], "x", "p"),
            op(&[("axis", 7), ("keepdims", 0), ("noop", 1)], "p", "q"),
            op(&[("axis", 9), ("noop", 1)], "q", "r"),
            op(&[("axis", 5), ("noop", 1)], "r", "y"),
        ];
        assert_eq!(nodes(vec![inner, outer], calls), by_hand(expected));
    }

    #[test]
    fn absent_inputs_and_unused_outputs_stay_away() {
        let body = vec![node("Op", &["a", "b", ""], &["c", "", "d"])];
        let op = function("Op3", &["a", "b"], &["c", "d"], body);
        let calls = vec![call("Op3", &["x"], &["", "y"])];
        let expected = vec![node("Op", &["x", "", ""], &["c@1", "", "y"])];
        assert_eq!(nodes(vec![op], calls), by_hand(expected));
    }

    #[test]
    fn an_output_that_is_an_input_is_passed_on() {
        let both = function("Both", &["a"], &["a", "b", "b"], vec![node("Neg", &["a"], &["b"])]);
        let calls = vec![call("Both", &["x"], &["p", "q", "r"]), node("Sum", &["p", "q", "r"], &["y"])];
        let expected = vec![
            node("Neg", &["x"], &["q"]),
            node("Identity", &["x"], &["p"]),
            node("Identity", &["q"], &["r"]),
            node("Sum", &["p", "q", "r"], &["y"]),
        ];
        assert_eq!(nodes(vec![both], calls), by_hand(expected));
    }

    #[test]
    fn a_function_called_identity_that_passes_on_ends() {
        let mut identity = function("Identity", &["a"], &["a"], vec![]);
        identity.domain = None;
        let expected = by_hand(vec![node("Identity", &["x"], &["y"])]);
        assert_eq!(nodes(vec![identity], vec![node("Identity", &["x"], &["y"])]), expected);
    }

    #[test]
    fn new_names_avoid_those_of_the_model() {
        let body = vec![node("Neg", &["a"], &["h"]), node("Neg", &["h"], &["b"])];
        let function = function("F", &["a"], &["b"], body);
        let calls = vec![node("Neg", &["x"], &["h@1"]), call("F", &["h@1"], &["y"])];
        let expected = vec![
            node("Neg", &["x"], &["h@1"]),
            node("Neg", &["h@1"], &["h@2"]),
            node("Neg", &["h@2"], &["y"]),
        ];
        assert_eq!(nodes(vec![function], calls), by_hand(expected));
    }

    #[test]
    fn overloads_and_names_of_nodes_are_kept_apart() {
        let named = |name: &str, node: NodeProto| NodeProto { name: Some(name.into()), ..node };
        let first = function("F", &["a"], &["b"], vec![named("n", node("Neg", &["a"], &["b"]))]);
        let mut second = function("F", &["a"], &["b"], vec![node("Abs", &["a"], &["b"])]);
        second.overload = Some("o".into());
        let overload = Some("o".to_owned());
        let calls = vec![
            named("c", call("F", &["x"], &["h"])),
            NodeProto { overload, ..named("d", call("F", &["h"], &["y"])) },
        ];
        let expected =
            vec![named("c/n", node("Neg", &["x"], &["h"])), named("d", node("Abs", &["h"], &["y"]))];
        assert_eq!(nodes(vec![first.clone(), second], calls.clone()), by_hand(expected));
        assert!(problem(vec![first.clone(), first], calls).contains("\"F\" twice"));
    }

    #[test]
    fn recursion_is_refused() {
        let body = |callee: &str| vec![call(callee, &["a"], &["b"])];
        let f = function("F", &["a"], &["b"], body("G"));
        let g = function("G", &["a"], &["b"], body("F"));
        let found = problem(vec![f, g], body_of_graph("F"));
        assert!(found.contains("function \"F\" that calls itself"), "{found}");
    }

    fn body_of_graph(callee: &str) -> Vec<NodeProto> {
        vec![call(callee, &["x"], &["y"])]
    }

    /// Functions F0, F1, ..., each of which calls the next `times` times, but the last.
    fn tower(
        height: usize,
        times: usize,
        call: impl Fn(&str) -> NodeProto,
        last: Vec<NodeProto>,
    ) -> Vec<FunctionProto> {
        let callees = (1..height).map(|level| vec![call(&format!("F{level}")); times]);
        let bodies = callees.chain(std::iter::once(last)).enumerate();
        let ports = call("F0");
        let function = |(level, nodes)| FunctionProto {
            input: ports.input.clone(),
            output: ports.output.clone(),
            ..function(&format!("F{level}"), &[], &[], nodes)
        };
        bodies.map(function).collect()
    }

    #[test]
    fn calls_have_a_greatest_depth() {
        let of_height = |height| {
            let last = vec![node("Neg", &["a"], &["b"])];
            let functions = tower(height, 1, |callee| call(callee, &["a"], &["b"]), last);
            read(model_with(functions, body_of_graph("F0")))
        };
        assert!(of_height(MAX_DEPTH).is_ok());
        let found = of_height(MAX_DEPTH + 1).unwrap_err();
        assert!(found.contains("through 32 others"), "{found}");
    }

    #[test]
    fn exponential_unfolding_is_refused() {
        // 3^30 calls that come to nothing.
        let functions = tower(31, 3, |callee| call(callee, &[], &[]), vec![]);
        let found = problem(functions, vec![call("F0", &[], &[]), node("Neg", &["x"], &["y"])]);
        assert!(found.contains("more than 1000000 nodes"), "{found}");
    }

    #[test]
    fn heavy_functions_may_not_be_called_too_often() {
        let heavy = AttributeProto { s: Some(vec![0; 1 << 24].into()), ..integer("x", 0) };
        let heavy = function("F", &["a"], &["b"], vec![with(vec![heavy], node("Neg", &["a"], &["b"]))]);
        let calls = |count: usize| {
            let mut calls: Vec<NodeProto> =
                (1..count).map(|i| call("F", &["x"], &[&format!("y{i}")])).collect();
            calls.push(call("F", &["x"], &["y"]));
            read(model_with(vec![heavy.clone()], calls))
        };
        assert!(calls(15).is_ok());
        let found = calls(16).unwrap_err();
        assert!(found.contains("\"F\" that unfolds to more than"), "{found}");
    }

    #[test]
    fn functions_that_do_not_fit_are_refused() {
        let neg = || vec![node("Neg", &["a"], &["b"])];
        let fits = function("F", &["a"], &["b"], neg());
        let older = FunctionProto { opset_import: vec![opset("ai.onnx", 13)], ..fits.clone() };
        assert!(problem(vec![older], body_of_graph("F")).contains("uses version 13"));
        let without = FunctionProto { opset_import: vec![], ..fits.clone() };
        assert!(read(model_with(vec![without], body_of_graph("F"))).is_ok());
        let wide = vec![call("F", &["x", "w"], &["y"])];
        assert!(problem(vec![fits.clone()], wide).contains("1 inputs and 1 outputs"));
        let captures = function("F", &["a"], &["b"], vec![node("Add", &["a", "w"], &["b"])]);
        assert!(problem(vec![captures], body_of_graph("F")).contains("uses \"w\", which nothing in it"));
        let missing = function("F", &["a"], &["c"], neg());
        assert!(problem(vec![missing], body_of_graph("F")).contains("output \"c\", which nothing computes"));
        let twice = function("F", &["a"], &["b"], [neg(), neg()].concat());
        assert!(problem(vec![twice], body_of_graph("F")).contains("defines \"b\" twice"));
        let inputs = function("F", &["a", "a"], &["b"], neg());
        assert!(problem(vec![inputs], body_of_graph("F")).contains("defines \"a\" twice"));
        let attribute = AttributeProto { kind: Some(attribute_type::FLOAT), ..integer("k", 1) };
        let body = vec![with(vec![reference("axis", "k")], neg().remove(0))];
        let given = vec![with(vec![attribute], call("F", &["x"], &["y"]))];
        let function = function("F", &["a"], &["b"], body);
        assert!(problem(vec![function], given).contains("\"k\" of a wrong type"));
    }

    #[test]
    fn a_function_takes_precedence_over_an_operator_and_unused_ones_do_no_harm() {
        let mut own = function("Relu", &["a"], &["b"], vec![node("Abs", &["a"], &["b"])]);
        own.domain = None;
        let unused = function("G", &["a"], &["b"], vec![call("G", &["a"], &["b"])]);
        let expected = by_hand(vec![node("Abs", &["x"], &["y"])]);
        assert_eq!(nodes(vec![own, unused], vec![node("Relu", &["x"], &["y"])]), expected);
    }
}
