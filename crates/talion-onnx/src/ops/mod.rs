//! The operators: what a kernel is given, where it is found, and what several of them need.

mod activation;
mod arithmetic;
mod attention;
mod convolution;
mod logic;
mod matrix;
mod movement;
mod norm;
mod pooling;
mod reduce;
mod resize;
mod shape;

use std::fmt::Display;

use talion_core::{Error, Result};
use tch::{Device, Kind, Tensor};

use crate::{Attributes, Node};

/// One use of an operator: its node and the values that go in.
pub(crate) struct Call<'a> {
    /// The node, for its attributes and for messages.
    pub node: &'a Node,
    /// Version of the operator set.
    pub opset: i64,
    /// The values in the node's order; `None` where the node leaves an input out.
    pub inputs: &'a [Option<Tensor>],
    /// What FLOAT is computed in: `Float`, or `Double` to check gradients.
    pub float: Kind,
}

/// Computes a node's outputs, in the node's order. It may give more of them than the node names.
pub(crate) type Kernel = fn(&Call<'_>) -> Result<Vec<Tensor>>;

type Table = &'static [(&'static str, Kernel)];

static TABLES: [Table; 12] = [
    activation::OPS,
    arithmetic::OPS,
    attention::OPS,
    convolution::OPS,
    logic::OPS,
    matrix::OPS,
    movement::OPS,
    norm::OPS,
    pooling::OPS,
    reduce::OPS,
    resize::OPS,
    shape::OPS,
];

/// The most entries of an input that is read as a list, such as a shape.
const MOST_ENTRIES: usize = 4096;

/// The most elements of a tensor that is larger than what it is made of.
const MOST_ELEMENTS: i64 = 1 << 28;

/// The kernel of an operator; only the default domain, `""`, has any.
pub(crate) fn kernel(domain: &str, op: &str) -> Option<Kernel> {
    if !domain.is_empty() {
        return None;
    }
    TABLES.iter().copied().flatten().find(|(name, _)| *name == op).map(|(_, kernel)| *kernel)
}

/// The names of all operators that can be run, sorted.
pub fn supported() -> Vec<&'static str> {
    let mut names: Vec<_> = TABLES.iter().copied().flatten().map(|(name, _)| *name).collect();
    names.sort_unstable();
    names
}

/// Whether an input of an operator is read as numbers rather than computed with, so that it is best kept on the CPU.
pub(crate) fn read_on_host(op: &str, place: usize) -> bool {
    matches!((op, place), ("Pad", 1..=3) | ("Pow", 1) | ("Resize", 1..=3) | ("Upsample", 1))
}

impl<'a> Call<'a> {
    /// The input at `place`.
    ///
    /// # Errors
    /// If the node leaves it out.
    pub fn input(&self, place: usize) -> Result<&'a Tensor> {
        self.optional(place).ok_or_else(|| self.refuse(format!("input {place} is missing")))
    }

    /// The input at `place`, if the node has it.
    pub fn optional(&self, place: usize) -> Option<&'a Tensor> {
        self.inputs.get(place)?.as_ref()
    }

    /// The integer input at `place` as a list; a scalar is a list of one. `None` if the node leaves it out.
    ///
    /// # Errors
    /// If it holds no integers, or more than 4096.
    pub fn ints(&self, place: usize) -> Result<Option<Vec<i64>>> {
        let Some(tensor) = self.optional(place) else { return Ok(None) };
        if !is_integer(tensor.kind()) {
            let kind = tensor.kind();
            return Err(self.refuse(format!("input {place} has type {kind:?}, expected integers")));
        }
        if tensor.numel() > MOST_ENTRIES {
            let entries = tensor.numel();
            return Err(self.refuse(format!("input {place} has {entries} entries, at most {MOST_ENTRIES}")));
        }
        Ok(Some(Vec::<i64>::try_from(&tensor.f_reshape([-1])?)?))
    }

    /// As [`Call::ints`], for an input that has to be there.
    ///
    /// # Errors
    /// As [`Call::ints`], and if the node leaves it out.
    pub fn list(&self, place: usize) -> Result<Vec<i64>> {
        self.ints(place)?.ok_or_else(|| self.refuse(format!("input {place} is missing")))
    }

    /// The node's attributes.
    pub fn attributes(&self) -> &'a Attributes {
        &self.node.attributes
    }

    /// The number of outputs that the node names.
    pub fn outputs(&self) -> usize {
        self.node.outputs.len()
    }

    /// Whether the node names its output at `place`.
    pub fn wants(&self, place: usize) -> bool {
        self.node.outputs.get(place).is_some_and(|name| !name.is_empty())
    }

    /// An error that names the operator and the node.
    pub fn refuse(&self, problem: impl Display) -> Error {
        Error::Refused(format!("{}: {problem}", self.node.describe()))
    }
}

/// Refuses a shape with a negative side, or with more than 2^28 elements. Every kernel that makes a tensor larger than
/// its inputs asks first: the shape can be a number in a file.
pub(crate) fn bounded(call: &Call<'_>, shape: &[i64]) -> Result<()> {
    // sides of zero count as one, so that the others cannot overflow the strides either
    let elements = shape.iter().try_fold(1_i64, |product, &side| product.checked_mul(side.max(1)));
    if shape.iter().any(|&side| side < 0) || elements.is_none_or(|elements| elements > MOST_ELEMENTS) {
        return Err(call.refuse(format!("would make a tensor of shape {shape:?}; 2^28 elements are allowed")));
    }
    Ok(())
}

/// An axis as a number in `0..rank`; a negative one counts from the end.
fn axis(call: &Call<'_>, value: i64, rank: usize) -> Result<i64> {
    let sides = rank as i64;
    let place = if value < 0 { value + sides } else { value };
    if (0..sides).contains(&place) {
        Ok(place)
    } else {
        Err(call.refuse(format!("axis {value} of a tensor with {rank} axes")))
    }
}

/// The axes as the node gives them: an attribute in old operator sets, an input in new ones. `None` if it has neither.
fn axes(call: &Call<'_>, place: usize, attribute: &str) -> Result<Option<Vec<i64>>> {
    match call.attributes().ints(attribute)? {
        Some(list) => Ok(Some(list.to_vec())),
        None => call.ints(place),
    }
}

/// [`axis`] for a list in which none may occur twice.
fn distinct(call: &Call<'_>, list: &[i64], rank: usize) -> Result<Vec<i64>> {
    let mut places = Vec::with_capacity(list.len().min(rank));
    for &value in list {
        let place = axis(call, value, rank)?;
        if places.contains(&place) {
            return Err(call.refuse(format!("axis {value} occurs twice in {list:?}")));
        }
        places.push(place);
    }
    Ok(places)
}

/// The number of elements of a shape.
fn product(call: &Call<'_>, sides: &[i64]) -> Result<i64> {
    let product = sides.iter().try_fold(1_i64, |product, &side| product.checked_mul(side));
    product.ok_or_else(|| call.refuse(format!("the shape {sides:?} is too large")))
}

/// Indices into a side of length `side`, as `i64` on `device`; negative ones count from the end.
///
/// They are checked here, because a wrong index in a GPU's kernel would end the whole process's use of the GPU.
fn indices(call: &Call<'_>, index: &Tensor, side: i64, device: Device) -> Result<Tensor> {
    if !is_integer(index.kind()) {
        return Err(call.refuse(format!("indices have type {:?}, expected integers", index.kind())));
    }
    let index = index.f_to_kind(Kind::Int64)?;
    if index.numel() == 0 {
        return Ok(index.f_to_device(device)?);
    }
    let (low, high) = (i64::try_from(index.f_min()?)?, i64::try_from(index.f_max()?)?);
    if low < -side || high >= side {
        return Err(call.refuse(format!("indices from {low} to {high} into a side of length {side}")));
    }
    let index = if low < 0 { index.f_remainder(side)? } else { index };
    Ok(index.f_to_device(device)?)
}

/// Where values that are computed together belong: on the device of the first one that is not on the CPU.
fn common_device(tensors: &[&Tensor]) -> Device {
    tensors.iter().map(|tensor| tensor.device()).find(|&device| device != Device::Cpu).unwrap_or(Device::Cpu)
}

/// A tensor of the file in the precision of the computation.
fn in_precision(call: &Call<'_>, tensor: &Tensor) -> Result<Tensor> {
    Ok(if tensor.kind() == Kind::Float { tensor.f_to_kind(call.float)? } else { tensor.shallow_clone() })
}

fn is_integer(kind: Kind) -> bool {
    matches!(kind, Kind::Uint8 | Kind::Int8 | Kind::Int16 | Kind::Int | Kind::Int64)
}

/// Whether gradients flow through values of this kind.
pub(crate) fn is_floating(kind: Kind) -> bool {
    matches!(kind, Kind::Half | Kind::BFloat16 | Kind::Float | Kind::Double)
}

#[cfg(test)]
pub(crate) mod testing {
    //! Nodes and graphs in few words.

    use super::*;
    use crate::{Attribute, Graph, Port, Side};

    /// A node of the default domain, named after its operator; inputs and outputs are separated by spaces, `-` stands
    /// for one that is left out.
    pub(crate) fn node(op: &str, inputs: &str, outputs: &str, attributes: Vec<(&str, Attribute)>) -> Node {
        let names = |text: &str| -> Vec<String> {
            text.split_whitespace()
                .map(|name| if name == "-" { String::new() } else { name.into() })
                .collect()
        };
        let mut kept = Attributes::default();
        for (name, attribute) in attributes {
            kept.insert(name, attribute);
        }
        Node {
            op: op.into(),
            domain: String::new(),
            name: format!("the {op}"),
            inputs: names(inputs),
            outputs: names(outputs),
            attributes: kept,
        }
    }

    /// A graph of operator set 17 with inputs of any shape, by name and kind.
    pub(crate) fn graph(
        inputs: &[(&str, Kind)],
        outputs: &[&str],
        nodes: Vec<Node>,
        constants: Vec<(&str, Tensor)>,
    ) -> Graph {
        let port = |name: &str, kind| Port { name: name.into(), kind, shape: None };
        Graph {
            name: "test".into(),
            producer: String::new(),
            opset: 17,
            inputs: inputs.iter().map(|&(name, kind)| port(name, kind)).collect(),
            outputs: outputs.iter().map(|&name| port(name, Kind::Float)).collect(),
            nodes,
            constants: constants.into_iter().map(|(name, tensor)| (name.into(), tensor)).collect(),
        }
    }

    /// `[N, ...]` of the given sides.
    pub(crate) fn batch_of(sides: &[i64]) -> Option<Vec<Side>> {
        let fixed = sides.iter().map(|&side| Side::Fixed(side));
        Some(std::iter::once(Side::Named("N".into())).chain(fixed).collect())
    }

    /// An operator with its inputs and attributes, ready to be run by itself.
    pub(crate) struct Case {
        node: Node,
        opset: i64,
        inputs: Vec<Option<Tensor>>,
        float: Kind,
    }

    /// An operator of operator set 18 with one output.
    pub(crate) fn case(op: &str) -> Case {
        Case { node: node(op, "", "y", vec![]), opset: 18, inputs: vec![], float: Kind::Float }
    }

    impl Case {
        pub(crate) fn opset(mut self, opset: i64) -> Self {
            self.opset = opset;
            self
        }

        /// The kind that FLOAT is computed in.
        pub(crate) fn float(mut self, kind: Kind) -> Self {
            self.float = kind;
            self
        }

        pub(crate) fn input(mut self, tensor: &Tensor) -> Self {
            self.inputs.push(Some(tensor.shallow_clone()));
            self
        }

        /// Leaves out the next input.
        pub(crate) fn absent(mut self) -> Self {
            self.inputs.push(None);
            self
        }

        pub(crate) fn with(mut self, name: &str, attribute: Attribute) -> Self {
            self.node.attributes.insert(name, attribute);
            self
        }

        pub(crate) fn int(self, name: &str, value: i64) -> Self {
            self.with(name, Attribute::Int(value))
        }

        pub(crate) fn ints(self, name: &str, values: &[i64]) -> Self {
            self.with(name, Attribute::Ints(values.to_vec()))
        }

        pub(crate) fn text(self, name: &str, value: &str) -> Self {
            self.with(name, Attribute::Text(value.into()))
        }

        /// The number of outputs.
        pub(crate) fn outputs(mut self, outputs: usize) -> Self {
            self.node.outputs = (0..outputs).map(|place| format!("y{place}")).collect();
            self
        }

        pub(crate) fn run(&self) -> Result<Vec<Tensor>> {
            let kernel = kernel("", &self.node.op).expect("the operator is registered");
            kernel(&Call { node: &self.node, opset: self.opset, inputs: &self.inputs, float: self.float })
        }

        /// The first output.
        pub(crate) fn first(&self) -> Tensor {
            self.run().unwrap().remove(0)
        }

        /// The message of the error that running it has to give.
        pub(crate) fn problem(&self) -> String {
            self.run().expect_err("it is refused").to_string()
        }
    }

    pub(crate) fn floats(values: &[f32], shape: &[i64]) -> Tensor {
        Tensor::from_slice(values).reshape(shape)
    }

    pub(crate) fn ints(values: &[i64]) -> Tensor {
        Tensor::from_slice(values)
    }

    /// 0, 1, 2, ... in the given shape.
    pub(crate) fn ramp(shape: &[i64]) -> Tensor {
        Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)).reshape(shape)
    }

    /// Checks kind, shape and values, the latter to 1e-6 of the larger one.
    #[track_caller]
    pub(crate) fn assert_same(found: &Tensor, expected: &Tensor) {
        assert_eq!((found.kind(), found.size()), (expected.kind(), expected.size()));
        let (found, expected) = (found.to_kind(Kind::Double), expected.to_kind(Kind::Double));
        assert!(found.allclose(&expected, 1e-6, 1e-6, true), "found\n{found}\nexpected\n{expected}");
    }

    /// Checks the gradient of `f` at `x`, a `Double` tensor, against finite differences.
    #[track_caller]
    pub(crate) fn assert_gradient(f: impl Fn(&Tensor) -> Tensor, x: &Tensor) {
        // different weights, so that mixed-up elements show
        let weighted = |x: &Tensor| {
            let y = f(x).reshape([-1]);
            (&y * (Tensor::arange(y.size()[0], (Kind::Double, Device::Cpu)) + 1.0).sin()).sum(Kind::Double)
        };
        let x = x.detach().set_requires_grad(true);
        let gradient = Tensor::run_backward(&[weighted(&x)], &[&x], false, false).remove(0).reshape([-1]);
        let (x, step) = (x.detach(), 1e-5);
        for place in 0..x.numel() as i64 {
            let change = Tensor::zeros([x.numel() as i64], (Kind::Double, Device::Cpu));
            let _ = change.narrow(0, place, 1).fill_(step);
            let change = change.reshape(x.size());
            let rise =
                weighted(&(&x + &change)).double_value(&[]) - weighted(&(&x - &change)).double_value(&[]);
            let (found, expected) = (gradient.double_value(&[place]), rise / (2.0 * step));
            assert!(
                (found - expected).abs() < 1e-6 * expected.abs().max(1.0),
                "{place}: {found}, {expected}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::*, *};

    #[test]
    fn operators_are_registered_once_and_in_the_default_domain_only() {
        let names = supported();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
        assert!(kernel("", "Conv").is_some() && kernel("", "Reshape").is_some());
        assert!(kernel("com.example", "Reshape").is_none() && kernel("", "reshape").is_none());
    }

    #[test]
    fn sizes_are_bounded_without_overflow() {
        let node = node("Expand", "x", "y", vec![]);
        let call = Call { node: &node, opset: 17, inputs: &[], float: Kind::Float };
        assert!(bounded(&call, &[1 << 14, 1 << 14]).is_ok() && bounded(&call, &[]).is_ok());
        for shape in [&[1 << 28, 2][..], &[-1], &[i64::MAX, i64::MAX], &[0, i64::MAX], &[i64::MIN]] {
            assert!(bounded(&call, shape).is_err(), "{shape:?}");
        }
    }

    #[test]
    fn axes_count_from_both_ends() {
        let node = node("Squeeze", "x", "y", vec![]);
        let call = Call { node: &node, opset: 17, inputs: &[], float: Kind::Float };
        assert_eq!(distinct(&call, &[-1, 0, 1], 3).unwrap(), [2, 0, 1]);
        for list in [&[3][..], &[-4], &[0, -3], &[i64::MIN], &[i64::MAX]] {
            let message = distinct(&call, list, 3).unwrap_err().to_string();
            assert!(message.starts_with(&node.describe()), "{message}");
        }
        assert!(axis(&call, 0, 0).is_err());
    }

    #[test]
    fn lists_are_integers_and_short() {
        let node = node("Expand", "x", "y", vec![]);
        let inputs = [Some(ints(&[3, -1])), None, Some(Tensor::from(7_i64)), Some(ramp(&[2]))];
        let call = Call { node: &node, opset: 17, inputs: &inputs, float: Kind::Float };
        assert_eq!(call.ints(0).unwrap(), Some(vec![3, -1]));
        assert_eq!((call.ints(1).unwrap(), call.ints(9).unwrap()), (None, None));
        assert_eq!(call.list(2).unwrap(), [7]);
        assert!(call.ints(3).is_err() && call.list(1).is_err());
        let long = [Some(Tensor::zeros([4097], (Kind::Int64, Device::Cpu)))];
        assert!(Call { inputs: &long, ..call }.ints(0).is_err());
    }

    #[test]
    fn indices_are_wrapped_and_checked() {
        let node = node("Gather", "x", "y", vec![]);
        let call = Call { node: &node, opset: 17, inputs: &[], float: Kind::Float };
        let wrapped = indices(&call, &ints(&[-3, -1, 0, 2]), 3, Device::Cpu).unwrap();
        assert_eq!(wrapped, ints(&[0, 2, 0, 2]));
        for (index, side) in [(3, 3), (-4, 3), (0, 0), (i64::MIN, 3), (i64::MAX, 3)] {
            assert!(indices(&call, &ints(&[index]), side, Device::Cpu).is_err(), "{index} of {side}");
        }
        assert!(indices(&call, &ramp(&[2]), 3, Device::Cpu).is_err());
        assert_eq!(indices(&call, &ints(&[]), 0, Device::Cpu).unwrap().numel(), 0);
    }
}
