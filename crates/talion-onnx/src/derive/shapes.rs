//! The shapes of a network's values, found by running it at two batch sizes.

use std::collections::BTreeMap;

use talion_core::{Error, Result};
use tch::{Device, Kind, Tensor};

use crate::{convert, graph::Graph, program::Program};

/// The batch sizes that tell which sides follow the batch.
const BATCHES: [i64; 2] = [2, 3];

/// The longest side of an image.
const LONGEST: i64 = 1 << 16;

/// The most elements of an integer value that is kept.
const MOST_INTEGERS: usize = 4096;

/// How long a side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// Always so long.
    Fixed(i64),
    /// So long for each image of the batch.
    PerImage(i64),
}

impl Extent {
    /// From the lengths at both of [`BATCHES`].
    fn of(at_two: i64, at_three: i64) -> Option<Self> {
        if at_two == at_three {
            return Some(Self::Fixed(at_two));
        }
        let each = at_two / 2;
        (each.checked_mul(2)? == at_two && each.checked_mul(3)? == at_three).then_some(Self::PerImage(each))
    }
}

struct Value {
    kind: Kind,
    extents: Vec<Extent>,
    /// Of integers that are the same at both batch sizes.
    integers: Option<Vec<i64>>,
}

/// A network as it is differentiated, and the shape of each of its values for images of one size.
pub struct Shapes {
    graph: Graph,
    values: BTreeMap<String, Value>,
    images: String,
    logits: String,
}

impl Shapes {
    /// Runs `graph`, of one input `[N, C, H, W]` and one output, on images of the given channels, height and width.
    ///
    /// # Errors
    /// If the graph has other inputs or outputs, has an operator that cannot be run or written, or does not run at
    /// every batch size.
    pub fn record(graph: &Graph, images: [i64; 3]) -> Result<Self> {
        if let Some(side) = images.into_iter().find(|side| !(1..=LONGEST).contains(side)) {
            return Err(Error::range("a side of the images", format!("1 to {LONGEST}"), side));
        }
        let graph = convert::prepare(graph)?;
        let ([input], [output]) = (graph.inputs.as_slice(), graph.outputs.as_slice()) else {
            let (inputs, outputs) = (graph.inputs.len(), graph.outputs.len());
            let found = format!("{inputs} and {outputs}");
            return Err(Error::range("the number of inputs and outputs of the network", "1 and 1", found));
        };
        let (input, output) = (input.name.clone(), output.name.clone());
        let program = Program::new(graph.clone_shallow(), Device::Cpu)?;
        let [two, three] = BATCHES.map(|batch| trace(&program, batch, images));
        let (two, mut three) = (two?, three?);
        let mut values = BTreeMap::new();
        for (name, at_two) in two {
            if let Some(value) = three.remove(&name).and_then(|at_three| value(&at_two, &at_three)) {
                values.insert(name, value);
            }
        }
        for (name, tensor) in &graph.constants {
            if let Some(value) = value(tensor, tensor) {
                values.insert(name.clone(), value);
            }
        }
        Ok(Self { graph, values, images: input, logits: output })
    }

    /// The network as it is differentiated: folded, in operators of set 17. Splice this one beside its derivative, and
    /// both share their constants.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The names of input and output.
    pub(super) fn ports(&self) -> [&str; 2] {
        [&self.images, &self.logits]
    }

    /// `None` if a side neither is fixed nor follows the batch.
    pub(super) fn extents(&self, name: &str) -> Option<&[Extent]> {
        self.values.get(name).map(|value| value.extents.as_slice())
    }

    pub(super) fn kind(&self, name: &str) -> Option<Kind> {
        self.values.get(name).map(|value| value.kind)
    }

    /// The integers of a value that does not depend on the batch.
    pub(super) fn integers(&self, name: &str) -> Option<&[i64]> {
        self.values.get(name)?.integers.as_deref()
    }
}

fn trace(
    program: &Program,
    batch: i64,
    [channels, height, width]: [i64; 3],
) -> Result<BTreeMap<String, Tensor>> {
    let images = Tensor::f_zeros([batch, channels, height, width], (Kind::Float, Device::Cpu))?;
    tch::no_grad(|| program.trace(&[images])).map_err(|error| {
        Error::Refused(format!("the network does not run on {batch} images of {height}x{width}: {error}"))
    })
}

fn value(at_two: &Tensor, at_three: &Tensor) -> Option<Value> {
    let (sides, others) = (at_two.size(), at_three.size());
    if sides.len() != others.len() {
        return None;
    }
    let pairs = sides.iter().zip(&others);
    let extents = pairs.map(|(&two, &three)| Extent::of(two, three)).collect::<Option<Vec<Extent>>>()?;
    Some(Value { kind: at_two.kind(), extents, integers: integers(at_two, at_three) })
}

fn integers(at_two: &Tensor, at_three: &Tensor) -> Option<Vec<i64>> {
    let wanted =
        |tensor: &Tensor| matches!(tensor.kind(), Kind::Int | Kind::Int64) && tensor.numel() <= MOST_INTEGERS;
    if !wanted(at_two) || !wanted(at_three) || at_two.size() != at_three.size() {
        return None;
    }
    let list = |tensor: &Tensor| Vec::<i64>::try_from(&tensor.f_reshape([-1_i64]).ok()?).ok();
    let (two, three) = (list(at_two)?, list(at_three)?);
    (two == three).then_some(two)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build::Builder,
        derive::check::{network, sides},
    };

    #[test]
    fn sides_are_fixed_or_follow_the_batch() {
        assert_eq!(Extent::of(7, 7), Some(Extent::Fixed(7)));
        assert_eq!(Extent::of(2, 3), Some(Extent::PerImage(1)));
        assert_eq!(Extent::of(8, 12), Some(Extent::PerImage(4)));
        assert_eq!(Extent::of(3, 4), None);
        assert_eq!(Extent::of(5, 8), None);
    }

    #[test]
    fn shapes_are_recorded_by_name() {
        let graph = network([3, 4, 5], |b, x| {
            let y = b.transpose(x, &[0, 2, 3, 1]);
            b.reshape(&y, &[-1, 15])
        });
        let shapes = Shapes::record(&graph, [3, 4, 5]).unwrap();
        let fixed = |sides: &[i64]| sides.iter().map(|&side| Extent::Fixed(side)).collect::<Vec<_>>();
        let of = |op: &str| {
            let node = shapes.graph().nodes.iter().find(|node| node.op == op).unwrap();
            shapes.extents(&node.outputs[0]).unwrap().to_vec()
        };
        assert_eq!(of("Transpose"), [vec![Extent::PerImage(1)], fixed(&[4, 5, 3])].concat());
        assert_eq!(of("Reshape"), [Extent::PerImage(4), Extent::Fixed(15)]);
        assert_eq!(shapes.kind("images"), Some(Kind::Float));
    }

    #[test]
    fn networks_of_other_forms_are_refused() {
        let mut b = Builder::new("two");
        let x = b.input("x", Kind::Float, sides(&[1, 2, 2]));
        let y = b.relu(&x);
        let two = b.finish(&[("a", &x, sides(&[1, 2, 2])), ("b", &y, sides(&[1, 2, 2]))]).unwrap();
        assert!(Shapes::record(&two, [1, 2, 2]).is_err());
        let one = network([1, 2, 2], |b, x| b.relu(x));
        assert!(Shapes::record(&one, [0, 2, 2]).is_err());
        assert!(Shapes::record(&one, [1, 2, 1 << 40]).is_err());
        let fixed = network([1, 2, 2], |b, x| b.reshape(x, &[1, 4]));
        let problem = Shapes::record(&fixed, [1, 2, 2]).err().unwrap().to_string();
        assert!(problem.contains("2 images"), "{problem}");
    }
}
