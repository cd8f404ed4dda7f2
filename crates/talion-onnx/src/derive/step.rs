//! What a derivative rule sees of its node, and what many rules need.

use std::{collections::BTreeMap, fmt::Display};

use talion_core::{Error, Result};
use tch::{Kind, Tensor};

use super::shapes::{Extent, Shapes};
use crate::{
    build::{Builder, Var},
    graph::{Graph, Node},
};

/// The cotangents of a node's inputs.
pub(super) type Gradients = Vec<Option<Var>>;

/// A node on the way back from the logits.
///
/// Inputs and outputs are counted as in the node. What a rule appends in vain is left out of the finished graph, so
/// rules need not ask which inputs want a gradient unless it saves them something else.
pub(super) struct Step<'a> {
    /// Where to append.
    pub(super) b: &'a mut Builder,
    pub(super) node: &'a Node,
    graph: &'a Graph,
    shapes: &'a Shapes,
    values: &'a BTreeMap<String, Var>,
    wanted: Vec<bool>,
    cotangents: Gradients,
}

impl<'a> Step<'a> {
    /// `wanted` says which inputs depend on the images, `cotangents` has an entry for each output.
    pub(super) fn new(
        b: &'a mut Builder,
        graph: &'a Graph,
        shapes: &'a Shapes,
        values: &'a BTreeMap<String, Var>,
        node: &'a Node,
        wanted: Vec<bool>,
        cotangents: Gradients,
    ) -> Result<Self> {
        let step = Self { b, node, graph, shapes, values, wanted, cotangents };
        step.check_kinds()?;
        Ok(step)
    }

    /// Rules append `f32` constants.
    fn check_kinds(&self) -> Result<()> {
        let inputs = self.node.inputs.iter().zip(&self.wanted).filter(|(_, wanted)| **wanted);
        let outputs = self.node.outputs.iter().zip(&self.cotangents).filter(|(_, given)| given.is_some());
        let names = inputs.map(|(name, _)| name).chain(outputs.map(|(name, _)| name));
        let other = names.filter_map(|name| self.shapes.kind(name)).find(|kind| *kind != Kind::Float);
        match other {
            Some(kind) if self.node.op != "Cast" => {
                Err(self.refuse(format!("computes in {kind:?}; gradient maps are written in f32 only")))
            }
            _ => Ok(()),
        }
    }

    /// An error that names the node.
    pub(super) fn refuse(&self, problem: impl Display) -> Error {
        Error::Refused(format!("{} {problem}", self.node.describe()))
    }

    /// Refuses if an input depends on the images.
    pub(super) fn only(&self, places: &[usize]) -> Result<()> {
        match (0..self.wanted.len()).find(|place| self.wants(*place) && !places.contains(place)) {
            None => Ok(()),
            Some(place) => {
                Err(self.refuse(format!("has no derivative rule for its input {place}, an image's own")))
            }
        }
    }

    /// Whether an input depends on the images.
    pub(super) fn wants(&self, place: usize) -> bool {
        self.wanted.get(place).copied().unwrap_or(false)
    }

    /// The cotangent of the first output, which has to be the only one that anything reads.
    pub(super) fn cotangent(&self) -> Result<Var> {
        match self.cotangents.split_first() {
            Some((Some(first), others)) if others.iter().all(Option::is_none) => Ok(first.clone()),
            _ => Err(self.refuse("has no derivative rule for its outputs behind the first")),
        }
    }

    /// The cotangent of an output, if anything reads it.
    pub(super) fn cotangent_of(&self, place: usize) -> Option<Var> {
        self.cotangents.get(place).cloned().flatten()
    }

    /// The value of an input.
    pub(super) fn input(&self, place: usize) -> Result<Var> {
        let name = self.input_name(place)?;
        self.values.get(name).cloned().ok_or_else(|| self.refuse(format!("reads input {place} from nowhere")))
    }

    /// The value of an output.
    pub(super) fn output(&self, place: usize) -> Result<Var> {
        let name = self.node.outputs.get(place).filter(|name| !name.is_empty());
        let value = name.and_then(|name| self.values.get(name));
        value.cloned().ok_or_else(|| self.refuse(format!("lacks output {place}")))
    }

    fn input_name(&self, place: usize) -> Result<&'a str> {
        let node: &'a Node = self.node;
        let name = node.inputs.get(place).filter(|name| !name.is_empty());
        name.map(String::as_str).ok_or_else(|| self.refuse(format!("lacks input {place}")))
    }

    /// The shape of an input.
    pub(super) fn extents(&self, place: usize) -> Result<&'a [Extent]> {
        let shapes: &'a Shapes = self.shapes;
        let extents = shapes.extents(self.input_name(place)?);
        extents.ok_or_else(|| self.refuse(format!("has an input {place} whose shape is not understood")))
    }

    /// The shape of an output.
    pub(super) fn output_extents(&self, place: usize) -> Result<&'a [Extent]> {
        let shapes: &'a Shapes = self.shapes;
        let extents = self.node.outputs.get(place).and_then(|name| shapes.extents(name));
        extents.ok_or_else(|| self.refuse("has an output whose shape is not understood"))
    }

    /// The type of an input.
    pub(super) fn kind(&self, place: usize) -> Result<Kind> {
        let kind = self.shapes.kind(self.input_name(place)?);
        kind.ok_or_else(|| self.refuse(format!("has an input {place} of unknown type")))
    }

    /// A constant input.
    pub(super) fn tensor(&self, place: usize) -> Result<&'a Tensor> {
        let graph: &'a Graph = self.graph;
        let tensor = graph.constants.get(self.input_name(place)?);
        tensor.ok_or_else(|| self.refuse(format!("has a derivative rule for a constant input {place} only")))
    }

    /// An integer input that is the same at every batch size, as a list; `None` if the node leaves it out.
    pub(super) fn integers(&self, place: usize) -> Result<Option<Vec<i64>>> {
        let Some(name) = self.node.inputs.get(place).filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        match self.shapes.integers(name) {
            Some(list) => Ok(Some(list.to_vec())),
            None => Err(self.refuse(format!("has an input {place} that changes from batch to batch"))),
        }
    }

    /// [`Step::integers`] that have to be there.
    pub(super) fn required_integers(&self, place: usize) -> Result<Vec<i64>> {
        self.integers(place)?.ok_or_else(|| self.refuse(format!("lacks input {place}")))
    }

    /// An integer attribute.
    pub(super) fn int(&self, name: &str, default: i64) -> Result<i64> {
        self.node.attributes.int(name, default).map_err(|error| self.refuse(error))
    }

    /// A number attribute.
    pub(super) fn float(&self, name: &str, default: f64) -> Result<f64> {
        self.node.attributes.float(name, default).map_err(|error| self.refuse(error))
    }

    /// A text attribute.
    pub(super) fn text(&self, name: &str, default: &'static str) -> Result<&'a str> {
        let node: &'a Node = self.node;
        node.attributes.text(name, default).map_err(|error| self.refuse(error))
    }

    /// An attribute that is a list of integers.
    pub(super) fn ints(&self, name: &str) -> Result<Option<Vec<i64>>> {
        let list = self.node.attributes.ints(name).map_err(|error| self.refuse(error))?;
        Ok(list.map(<[i64]>::to_vec))
    }

    /// An axis that may count from the end, as an index below `rank`.
    pub(super) fn axis(&self, axis: i64, rank: usize) -> Result<usize> {
        let counted = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
        let place = usize::try_from(counted).ok().filter(|&place| place < rank);
        place.ok_or_else(|| self.refuse(format!("has an axis {axis} of {rank}")))
    }

    /// The lengths of sides that all are fixed.
    pub(super) fn fixed(&self, extents: &[Extent]) -> Result<Vec<i64>> {
        let length = |extent: &Extent| match extent {
            Extent::Fixed(length) => Some(*length),
            Extent::PerImage(_) => None,
        };
        let lengths: Option<Vec<i64>> = extents.iter().map(length).collect();
        lengths.ok_or_else(|| self.refuse("works along a side that follows the batch"))
    }

    /// The sides behind batch and channels.
    pub(super) fn spatial(&self, extents: &[Extent]) -> Result<Vec<i64>> {
        self.fixed(extents.get(2..).unwrap_or_default())
    }

    /// A cotangent shaped as the first output, summed over what an input was repeated along; `None` if the input wants
    /// none.
    pub(super) fn like_input(&mut self, cotangent: &Var, place: usize) -> Result<Option<Var>> {
        if !self.wants(place) {
            return Ok(None);
        }
        let (from, to) = (self.output_extents(0)?, self.extents(place)?);
        self.unbroadcast(cotangent, from, to).map(Some)
    }

    /// `x` of shape `from`, summed to the shape `to` that broadcasts to it.
    pub(super) fn unbroadcast(&mut self, x: &Var, from: &[Extent], to: &[Extent]) -> Result<Var> {
        let Some(added) = from.len().checked_sub(to.len()) else {
            return Err(self.refuse("has inputs of shapes that do not fit its output"));
        };
        let (leading, rest) = from.split_at(added);
        let mut repeated = Vec::new();
        for (axis, (from, to)) in rest.iter().zip(to).enumerate() {
            match (from, to) {
                (from, to) if from == to => {}
                (_, Extent::Fixed(1)) => repeated.push(axis as i64),
                _ => return Err(self.refuse("has inputs of shapes that do not fit its output")),
            }
        }
        let mut x = x.clone();
        if !leading.is_empty() {
            let axes: Vec<i64> = (0..leading.len() as i64).collect();
            x = self.b.reduce_sum(&x, &axes, false);
        }
        if !repeated.is_empty() {
            x = self.b.reduce_sum(&x, &repeated, true);
        }
        Ok(x)
    }

    /// `x` in the shape of an input that has as many elements.
    pub(super) fn reshaped(&mut self, x: &Var, place: usize) -> Result<Var> {
        let input = self.input(place)?;
        Ok(match pattern(self.extents(place)?) {
            Some(shape) => self.b.reshape(x, &shape),
            None => self.b.reshape_like(x, &input),
        })
    }

    /// `x` in a shape of which at most one side follows the batch.
    pub(super) fn reshape(&mut self, x: &Var, extents: &[Extent]) -> Result<Var> {
        match pattern(extents) {
            Some(shape) => Ok(self.b.reshape(x, &shape)),
            None => Err(self.refuse("has a shape with several sides that follow the batch")),
        }
    }

    /// `x` of `rank` sides with zeros before and behind one of them.
    pub(super) fn surround(&mut self, x: &Var, rank: usize, axis: usize, before: i64, behind: i64) -> Var {
        if before == 0 && behind == 0 {
            return x.clone();
        }
        let pads: Vec<i64> = (0..2 * rank)
            .map(|place| match place {
                place if place == axis => before,
                place if place == axis + rank => behind,
                _ => 0,
            })
            .collect();
        self.b.pad_zeros(x, &pads)
    }
}

/// A shape for Reshape, with -1 for the side that follows the batch; `None` if there are several such sides, or if a
/// side is empty, because 0 there means another thing.
fn pattern(extents: &[Extent]) -> Option<Vec<i64>> {
    let following = extents.iter().filter(|extent| matches!(extent, Extent::PerImage(_))).count();
    let side = |extent: &Extent| match extent {
        Extent::Fixed(0) => None,
        Extent::Fixed(length) => Some(*length),
        Extent::PerImage(_) => Some(-1),
    };
    if following > 1 { None } else { extents.iter().map(side).collect() }
}
