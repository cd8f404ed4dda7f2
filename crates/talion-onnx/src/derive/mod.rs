/*!
Reverse mode on graphs: a network's gradient with respect to its images, written out as ordinary operators.

A file then computes gradients wherever it runs, without autograd. [`Shapes`] holds the network in the form in which it
is differentiated, with the shape of each of its values; [`differentiate`] copies it into a builder and appends its
vector-Jacobian product, operator by operator, from the logits back to the images. Rules are with their operators'
families; each says what one operator's cotangents make of its inputs.

Values and gradients agree with libtorch's but for rounding, also where a derivative is a matter of convention: the
first maximum of a window takes all, `Clip` lets gradients through at its bounds, a tie of two operands is halved. The
maximum over whole sides is shared equally by all that attain it.
*/

#[cfg(test)]
mod check;
mod linear;
mod norm;
mod pointwise;
mod pooling;
mod shapes;
mod shaping;
mod step;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use talion_core::{Error, Result};

use crate::{
    build::{Builder, Var},
    graph::{Graph, Node, Port, quoted},
    ops::is_floating,
};

pub use shapes::Shapes;
use step::{Gradients, Step};

/// Computes the cotangents of a node's inputs, in the node's order; what is missing at the end is none.
type Rule = fn(&mut Step<'_>) -> Result<Gradients>;

type Table = &'static [(&'static str, Rule)];

const TABLES: [Table; 5] = [linear::RULES, norm::RULES, pointwise::RULES, pooling::RULES, shaping::RULES];

/// Operators that are expressed by others before they are differentiated.
const EXPRESSED: [&str; 7] =
    ["Dropout", "Gelu", "GroupNormalization", "Mish", "RMSNormalization", "Swish", "Upsample"];

const UNRULED: &str = "has no derivative rule; export cannot write its gradient map";

/// The operators through which gradients can be written, sorted.
///
/// Between images and logits there may be others where no gradient passes, such as those that compute with shapes.
pub fn differentiable() -> Vec<&'static str> {
    let rules = TABLES.into_iter().flatten().map(|(op, _)| *op);
    let mut operators: Vec<&'static str> = rules.chain(EXPRESSED).collect();
    operators.sort_unstable();
    operators
}

/// What [`differentiate`] appends.
#[derive(Clone, Debug)]
pub struct Derived {
    /// The network's output at the points, `[N, K]`.
    pub logits: Var,
    /// The cotangent times the derivative of the logits with respect to the points, shaped as the points.
    pub gradient: Var,
}

/// Copies `network`, of one input `[N, C, H, W]` and one output `[N, K]`, into `b` at `points`, and appends its
/// vector-Jacobian product with the cotangent `[N, K]` that `seed` makes of the logits.
///
/// The cotangent itself is not differentiated. The network may be differentiated at several points of one graph: its
/// constants are kept once.
///
/// # Errors
/// If `shapes` were recorded for another network, if `seed` fails, or if there is an operator between images and
/// logits without a derivative rule; it is then named.
pub fn differentiate(
    b: &mut Builder,
    network: &Graph,
    shapes: &Shapes,
    points: &Var,
    seed: &mut dyn FnMut(&mut Builder, &Var) -> Result<Var>,
) -> Result<Derived> {
    let [images, logits] = shapes.ports();
    if [names(&network.inputs), names(&network.outputs)] != [vec![images], vec![logits]] {
        return Err(Error::Refused("the shapes were recorded for another network".into()));
    }
    let mut graph = shapes.graph().clone_shallow();
    let path = dependents(&graph, shapes, images);
    check_rules(&graph, &path)?;
    keep_indices(&mut graph, &path);
    let values = b.scope("network", |b| b.copy(&graph, &[points]))?;
    let missing = || Error::Refused(format!("nothing makes the output {}", quoted(logits)));
    let found = values.get(logits).cloned().ok_or_else(missing)?;
    let cotangent = seed(b, &found)?;
    let walk = Walk { graph: &graph, shapes, values: &values, path: &path };
    let gradient = b.scope("gradient", |b| walk.back(b, images, logits, cotangent))?;
    Ok(Derived { logits: found, gradient })
}

fn names(ports: &[Port]) -> Vec<&str> {
    ports.iter().map(|port| port.name.as_str()).collect()
}

/// The values that change when the images do, as far as a gradient can tell: integers and booleans end it.
fn dependents(graph: &Graph, shapes: &Shapes, images: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::from([images.to_owned()]);
    for node in &graph.nodes {
        if node.inputs.iter().any(|name| found.contains(name)) {
            let floating = |name: &&String| shapes.kind(name).is_none_or(is_floating);
            found.extend(node.outputs.iter().filter(|name| !name.is_empty()).filter(floating).cloned());
        }
    }
    found
}

/// Checks that there is a rule for every operator on the way, before anything is copied.
fn check_rules(graph: &Graph, path: &BTreeSet<String>) -> Result<()> {
    let mut live: HashSet<&str> = graph.outputs.iter().map(|port| port.name.as_str()).collect();
    for node in graph.nodes.iter().rev() {
        let used = node.outputs.iter().any(|name| path.contains(name) && live.contains(name.as_str()));
        if !used || !node.inputs.iter().any(|name| path.contains(name)) {
            continue;
        }
        if rule(&node.op).is_none() {
            return Err(Error::Refused(format!("{} {UNRULED}", node.describe())));
        }
        live.extend(node.inputs.iter().map(String::as_str));
    }
    Ok(())
}

fn rule(op: &str) -> Option<Rule> {
    TABLES.into_iter().flatten().find(|(name, _)| *name == op).map(|(_, rule)| *rule)
}

/// Has every max-pooling on the way say where its maxima are.
fn keep_indices(graph: &mut Graph, path: &BTreeSet<String>) {
    let mut taken: BTreeSet<String> = graph.nodes.iter().flat_map(|node| &node.outputs).cloned().collect();
    taken.extend(graph.constants.keys().cloned());
    for node in &mut graph.nodes {
        let on_the_way = node.op == "MaxPool" && node.inputs.iter().any(|name| path.contains(name));
        if !on_the_way || node.outputs.get(1).is_some_and(|name| !name.is_empty()) {
            continue;
        }
        let Some(output) = node.outputs.first() else { continue };
        let mut name = format!("{output}_indices");
        while !taken.insert(name.clone()) {
            name.push('_');
        }
        node.outputs.truncate(1);
        node.outputs.push(name);
    }
}

/// A network in a builder, to be walked from its output to its input.
struct Walk<'a> {
    graph: &'a Graph,
    shapes: &'a Shapes,
    /// What became of the network's values in the builder.
    values: &'a BTreeMap<String, Var>,
    path: &'a BTreeSet<String>,
}

impl Walk<'_> {
    fn back(&self, b: &mut Builder, images: &str, logits: &str, cotangent: Var) -> Result<Var> {
        let mut cotangents = BTreeMap::from([(logits, cotangent)]);
        for node in self.graph.nodes.iter().rev() {
            let given: Vec<Option<Var>> =
                node.outputs.iter().map(|name| cotangents.get(name.as_str()).cloned()).collect();
            let wanted: Vec<bool> = node.inputs.iter().map(|name| self.path.contains(name)).collect();
            if given.iter().all(Option::is_none) || !wanted.contains(&true) {
                continue;
            }
            let found = self.step(b, node, wanted, given)?;
            for (name, gradient) in node.inputs.iter().zip(found) {
                let Some(gradient) = gradient.filter(|_| self.path.contains(name)) else { continue };
                let sum = match cotangents.remove(name.as_str()) {
                    Some(others) => b.add(&others, &gradient),
                    None => gradient,
                };
                cotangents.insert(name, sum);
            }
        }
        cotangents.remove(images).ok_or_else(|| {
            Error::Refused("no gradient reaches the images: the logits do not change with them".into())
        })
    }

    fn step(
        &self,
        b: &mut Builder,
        node: &Node,
        wanted: Vec<bool>,
        given: Vec<Option<Var>>,
    ) -> Result<Gradients> {
        let mut step = Step::new(b, self.graph, self.shapes, self.values, node, wanted, given)?;
        match rule(&node.op) {
            Some(rule) => rule(&mut step),
            None => Err(step.refuse(UNRULED)),
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::{
        check::{agrees, derived, network, numbers, refusal},
        *,
    };
    use crate::{attributes::Attribute, program::Program};

    fn attribute(values: &[i64]) -> Attribute {
        Attribute::Ints(values.to_vec())
    }

    #[test]
    fn a_small_convolutional_network() {
        let image = [3, 13, 11];
        let network = network(image, |b, x| {
            let y = b.conv(x, &numbers(&[6, 3, 3, 3], 0.1), Some(&numbers(&[6], 0.2)), [2, 1], [1, 1], 1);
            let y = b.relu(&y);
            let y = b.max_pool(&y, [3, 3], [2, 2], [1, 1]);
            let y = b.conv(&y, &numbers(&[8, 3, 3, 3], 0.3), None, [1, 2], [0, 1], 2);
            let y = b.relu(&y);
            let y = b.global_average(&y, false);
            b.linear(&y, &numbers(&[5, 8], 0.4), Some(&numbers(&[5], 0.5)))
        });
        agrees(&network, image);
    }

    #[test]
    fn a_block_with_attention() {
        let image = [3, 8, 4];
        let network = network(image, |b, x| {
            let patches = b.conv(x, &numbers(&[8, 3, 2, 2], 0.1), None, [2, 2], [0, 0], 1);
            let tokens = b.reshape(&patches, &[0, 8, -1]);
            let tokens = b.transpose(&tokens, &[0, 2, 1]);
            let class = b.constant(&numbers(&[1, 1, 8], 0.2));
            let mean = b.reduce_mean(&tokens, &[1], true);
            let class = b.expand_like(&class, &mean);
            let tokens = b.concat(&[&class, &tokens], 1);
            let (scale, bias) = (b.constant(&numbers(&[8], 0.3)), b.constant(&numbers(&[8], 0.4)));
            let normed = b.node("LayerNormalization", &[&tokens, &scale, &bias], vec![]);
            let projection = b.constant(&numbers(&[8, 24], 0.5));
            let together = b.matmul(&normed, &projection);
            let parts = b.split(&together, 2, &[8, 8, 8]);
            let heads: Vec<Var> = parts
                .iter()
                .map(|part| {
                    let part = b.reshape(part, &[0, 0, 2, 4]);
                    b.transpose(&part, &[0, 2, 1, 3])
                })
                .collect();
            let keys = b.transpose(&heads[1], &[0, 1, 3, 2]);
            let scores = b.matmul(&heads[0], &keys);
            let half = b.scalar(0.5);
            let scores = b.mul(&scores, &half);
            let weights = b.softmax(&scores, -1);
            let mixed = b.matmul(&weights, &heads[2]);
            let mixed = b.transpose(&mixed, &[0, 2, 1, 3]);
            let mixed = b.reshape(&mixed, &[0, 0, 8]);
            let tokens = b.add(&tokens, &mixed);
            let (scale, one) = (b.scalar(0.7), b.scalar(1.0));
            let scaled = b.mul(&tokens, &scale);
            let raised = b.erf(&scaled);
            let raised = b.add(&raised, &one);
            let tokens = b.mul(&tokens, &raised);
            let first = b.slice(&tokens, 1, 0, 1);
            let index = b.constant(&tch::Tensor::from(-1_i64));
            let last = b.node("Gather", &[&tokens, &index], vec![("axis", Attribute::Int(1))]);
            let first = b.squeeze(&first, &[1]);
            b.sub(&first, &last)
        });
        agrees(&network, image);
    }

    #[test]
    fn shapes_that_follow_the_batch_are_computed() {
        let image = [4, 3, 3];
        let network = network(image, |b, x| {
            // As exporters write `x.view(x.shape[0] * 2, -1)`: from the shape, not by -1.
            let shape = b.node("Shape", &[x], vec![]);
            let batch = b.slice(&shape, 0, 0, 1);
            let (two, rest) = (b.ints(&[2]), b.ints(&[18]));
            let rows = b.node("Mul", &[&batch, &two], vec![]);
            let size = b.concat(&[&rows, &rest], 0);
            let halves = b.node("Reshape", &[x, &size], vec![]);
            let y = b.tanh(&halves);
            let right = b.constant(&numbers(&[18, 3], 0.2));
            let y = b.matmul(&y, &right);
            b.reshape(&y, &[-1, 6])
        });
        agrees(&network, image);
    }

    #[test]
    fn a_network_at_several_points_keeps_its_constants_once() {
        let image = [2, 6, 6];
        let network = network(image, |b, x| {
            let y = b.conv(x, &numbers(&[9, 2, 3, 3], 0.1), None, [1, 1], [1, 1], 1);
            b.relu(&y)
        });
        let shapes = Shapes::record(&network, image).unwrap();
        let mut b = Builder::new("twice");
        let x = b.input("images", Kind::Float, check::sides(&image));
        let first = derived(&mut b, &network, &shapes, &x).unwrap();
        let points = b.add(&x, &first.gradient);
        let second = derived(&mut b, &network, &shapes, &points).unwrap();
        let graph = b.finish(&[("gradient", &second.gradient, check::sides(&image))]).unwrap();
        let large = graph.constants.values().filter(|tensor| tensor.numel() == 162).count();
        assert_eq!(large, 1);
        let x = numbers(&[2, 2, 6, 6], 0.3);
        let found = Program::new(graph, Device::Cpu).unwrap().run(&[x.shallow_clone()]).unwrap().remove(0);
        assert_eq!(found.size(), x.size());
    }

    #[test]
    fn an_operator_without_a_rule_is_named() {
        let image = [2, 4, 4];
        let equation = vec![("equation", Attribute::Text("nchw,nchw->nc".into()))];
        let einsum = network(image, |b, x| b.node("Einsum", &[x, x], equation));
        let message = refusal(&einsum, image);
        assert!(message.contains("Einsum") && message.contains("no derivative rule"), "{message}");
        let edge = network(image, |b, x| b.pad_edge(x, 1, 1, 1, 1));
        assert!(refusal(&edge, image).contains("edge"));
        let flat = network(image, |b, x| b.sign(x));
        assert!(refusal(&flat, image).contains("no gradient reaches the images"));
    }

    #[test]
    fn operators_beside_the_way_need_no_rule() {
        let image = [2, 4, 4];
        let network = network(image, |b, x| {
            let best =
                b.node("ArgMax", &[x], vec![("axis", Attribute::Int(1)), ("keepdims", Attribute::Int(1))]);
            let best = b.cast(&best, Kind::Float);
            let weight = b.node("Einsum", &[&best], vec![("equation", Attribute::Text("nchw->nchw".into()))]);
            let y = b.mul(x, &weight);
            b.add(&y, x)
        });
        agrees(&network, image);
    }

    #[test]
    fn shapes_of_another_network_are_refused() {
        let image = [1, 4, 4];
        let network = network(image, |b, x| b.relu(x));
        let shapes = Shapes::record(&network, image).unwrap();
        let mut b = Builder::new("other");
        let x = b.input("other", Kind::Float, check::sides(&image));
        let y = b.relu(&x);
        let other = b.finish(&[("logits", &y, check::sides(&image))]).unwrap();
        let mut b = Builder::new("gradient");
        let x = b.input("images", Kind::Float, check::sides(&image));
        assert!(derived(&mut b, &other, &shapes, &x).is_err());
    }

    #[test]
    fn the_list_of_operators_is_sorted_and_without_doubles() {
        let operators = differentiable();
        assert!(operators.is_sorted_by(|a, b| a < b), "{operators:?}");
        assert!(operators.contains(&"Conv") && operators.contains(&"Gelu"));
    }

    #[test]
    fn what_is_expressed_by_others_has_a_gradient() {
        let image = [6, 3, 3];
        for (op, opset) in [("Gelu", 20), ("Mish", 18)] {
            let mut network = network(image, |b, x| b.node(op, &[x], vec![]));
            network.opset = opset;
            agrees(&network, image);
        }
        let mut network = network(image, |b, x| {
            let (scale, bias) = (b.constant(&numbers(&[6], 0.1)), b.constant(&numbers(&[6], 0.2)));
            b.node("GroupNormalization", &[x, &scale, &bias], vec![("num_groups", Attribute::Int(2))])
        });
        network.opset = 21;
        agrees(&network, image);
        let pooled = check::network(image, |b, x| {
            let window = vec![("kernel_shape", attribute(&[2, 2])), ("pads", attribute(&[0, 1, 1, 0]))];
            b.node("MaxPool", &[x], window)
        });
        agrees(&pooled, image);
    }
}
