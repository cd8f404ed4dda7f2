//! Reads a plan out of a graph.

use std::collections::HashMap;

use talion_kernels::{Convolution, Factors, Geometry, Pooling, Real, Window, padded};
use talion_onnx::{Graph, Node, Side};
use tch::{Kind, Tensor};

use super::plan::{Plan, Shape, Step, Work};

/// The plan of a graph from images of a fixed size to logits. Convolutions of maps have factors of this kind; layers of a vector,
/// which cost nothing and stand before the logits, have them in full.
///
/// # Errors
/// Names the first thing in it that the engine does not know.
pub(crate) fn plan<T: Real>(graph: &Graph, factors: Factors) -> Result<Plan<T>, String> {
    let other = || "the graph is not one from images to logits".to_owned();
    let ([input], [output]) = (&graph.inputs[..], &graph.outputs[..]) else { return Err(other()) };
    let Some([_, Side::Fixed(channels), Side::Fixed(height), Side::Fixed(width)]) = input.shape.as_deref()
    else {
        return Err(other());
    };
    let side = |length: &i64| usize::try_from(*length).ok().filter(|&length| length > 0).ok_or_else(other);
    let shape = Shape { channels: side(channels)?, sides: [side(height)?, side(width)?] };
    let mut uses: HashMap<&str, usize> = HashMap::new();
    for name in graph.nodes.iter().flat_map(|node| &node.inputs).chain([&output.name]) {
        *uses.entry(name).or_insert(0) += 1;
    }
    let mut reader = Reader {
        graph,
        factors,
        uses,
        names: HashMap::from([(input.name.as_str(), Named { value: 0, flat: false })]),
        shift: vec![T::default(); shape.channels],
        scale: vec![T::from_f64(1.0); shape.channels],
        steps: Vec::new(),
        shapes: vec![shape],
        alone: vec![false],
    };
    for node in &graph.nodes {
        reader.node(node).ok_or_else(|| node.describe())?;
    }
    let last = *reader.names.get(output.name.as_str()).ok_or_else(other)?;
    // logits are the last value, and a vector
    let done =
        last.value + 1 == reader.shapes.len() && reader.shapes[last.value].sides == [1, 1] && last.value > 0;
    if !done {
        return Err(other());
    }
    Ok(Plan::new(shape.channels, [reader.shift, reader.scale], reader.steps, reader.shapes))
}

/// The largest value of an image that the engine takes on, and the longest stride, padding or side of a window: a file may state
/// any.
const MOST_ELEMENTS: usize = 1 << 28;
const LONGEST_STEP: usize = 1 << 12;

/// A value of the plan under the name that the graph has for it.
#[derive(Clone, Copy)]
struct Named {
    value: usize,
    /// Whether the graph has laid its channels, rows and columns in one line.
    flat: bool,
}

struct Reader<'a, T> {
    graph: &'a Graph,
    factors: Factors,
    uses: HashMap<&'a str, usize>,
    names: HashMap<&'a str, Named>,
    shift: Vec<T>,
    scale: Vec<T>,
    steps: Vec<Step<T>>,
    shapes: Vec<Shape>,
    /// Whether only one node reads the value, so that it may be done together with that one.
    alone: Vec<bool>,
}

impl<'a, T: Real> Reader<'a, T> {
    fn node(&mut self, node: &'a Node) -> Option<()> {
        if !node.domain.is_empty() {
            return None;
        }
        match node.op.as_str() {
            "Conv" => self.convolution(node),
            "Gemm" => self.gemm(node),
            "MatMul" => self.product(node),
            "Relu" => self.relu(node),
            "Add" | "Sub" | "Mul" | "Div" => self.arithmetic(node),
            "BatchNormalization" => self.norm(node),
            "MaxPool" | "AveragePool" => self.pool(node),
            "GlobalAveragePool" => self.global(node),
            "ReduceMean" => self.mean(node),
            "Flatten" | "Reshape" | "Squeeze" => self.flat(node),
            "Identity" | "Dropout" => self.same(node),
            _ => None,
        }
    }

    /// The value that an argument is.
    fn value(&self, node: &Node, place: usize) -> Option<Named> {
        self.names.get(node.inputs.get(place)?.as_str()).copied()
    }

    /// An argument that is known, as f64.
    fn constant(&self, node: &Node, place: usize) -> Option<Tensor> {
        let tensor = self.graph.constants.get(node.inputs.get(place)?)?;
        matches!(tensor.kind(), Kind::Float | Kind::Double).then(|| tensor.to_kind(Kind::Double))
    }

    fn ints(&self, node: &Node, place: usize) -> Option<Vec<i64>> {
        let tensor = self.graph.constants.get(node.inputs.get(place)?)?;
        Vec::try_from(tensor.to_kind(Kind::Int64).flatten(0, -1)).ok()
    }

    fn name(&mut self, node: &'a Node, value: usize, flat: bool) -> Option<()> {
        let name = node.outputs.first()?.as_str();
        self.names.insert(name, Named { value, flat });
        Some(())
    }

    /// Appends a step whose result has this shape, under the node's name.
    fn step(&mut self, node: &'a Node, work: Work<T>, source: usize, shape: Shape) -> Option<()> {
        let pixels = shape.sides[0].checked_mul(shape.sides[1])?;
        if padded(shape.channels).checked_mul(pixels)? > MOST_ELEMENTS {
            return None;
        }
        self.steps.push(Step { work, source, add: None, relu: false });
        self.shapes.push(shape);
        self.alone.push(self.uses.get(node.outputs.first()?.as_str()) == Some(&1));
        self.name(node, self.shapes.len() - 1, false)
    }

    /// The step that makes a value which nobody else reads, if it can still be extended.
    fn open(&mut self, value: usize) -> Option<&mut Step<T>> {
        let step = self.steps.get_mut(value.checked_sub(1)?)?;
        (self.alone[value] && !step.relu && !matches!(step.work, Work::Pool(_))).then_some(step)
    }

    fn convolution(&mut self, node: &'a Node) -> Option<()> {
        let source = self.value(node, 0).filter(|named| !named.flat)?.value;
        let weights = self.constant(node, 1)?;
        let [outputs, inputs, rows, columns] = weights.size()[..] else { return None };
        let shape = self.shapes[source];
        let attributes = &node.attributes;
        if attributes.int("group", 1).ok()? != 1
            || attributes.text("auto_pad", "NOTSET").ok()? != "NOTSET"
            || inputs as usize != shape.channels
        {
            return None;
        }
        let two = |name: &str, usual: i64| -> Option<[usize; 2]> {
            match attributes.ints(name).ok()? {
                None => Some([usual as usize; 2]),
                Some(&[down, across]) => Some([length(down)?, length(across)?]),
                Some(_) => None,
            }
        };
        let [before, after] = pads(node)?;
        let geometry = Geometry {
            size: [rows as usize, columns as usize],
            stride: two("strides", 1)?,
            dilation: two("dilations", 1)?,
            before,
            after,
        };
        let bias = match node.inputs.get(2).filter(|name| !name.is_empty()) {
            Some(_) => numbers(&self.constant(node, 2)?)?,
            None => Vec::new(),
        };
        self.convolve(node, source, geometry, [inputs, outputs], &weights, &bias)
    }

    fn convolve(
        &mut self,
        node: &'a Node,
        source: usize,
        geometry: Geometry,
        [inputs, outputs]: [i64; 2],
        weights: &Tensor,
        bias: &[T],
    ) -> Option<()> {
        let sides = self.shapes[source].sides;
        let valid =
            geometry.stride.iter().chain(&geometry.dilation).chain(&geometry.size).all(|&size| size > 0);
        if !valid || !(bias.is_empty() || bias.len() == outputs as usize) {
            return None;
        }
        let shape = Shape { channels: outputs as usize, sides: geometry.output(sides)? };
        let channels = [inputs as usize, outputs as usize];
        let factors = if shape.sides == [1, 1] { Factors::Full } else { self.factors };
        let convolution = Convolution::new(geometry, channels, numbers(weights)?, bias).with_factors(factors);
        self.step(node, Work::Convolve(Box::new(convolution)), source, shape)
    }

    /// A linear layer is a convolution whose kernel covers everything.
    fn linear(&mut self, node: &'a Node, source: usize, weights: &Tensor, bias: &[T]) -> Option<()> {
        let Shape { channels, sides } = self.shapes[source];
        let [outputs, inputs] = weights.size()[..] else { return None };
        if inputs as usize != channels * sides[0] * sides[1] {
            return None;
        }
        let kernel = weights.contiguous().view([outputs, channels as i64, sides[0] as i64, sides[1] as i64]);
        let geometry = Geometry::new(sides, [1, 1], [0, 0]);
        self.convolve(node, source, geometry, [channels as i64, outputs], &kernel, bias)
    }

    fn gemm(&mut self, node: &'a Node) -> Option<()> {
        let source = self.vector(node, 0)?;
        let attributes = &node.attributes;
        if attributes.float("alpha", 1.0).ok()? != 1.0
            || attributes.float("beta", 1.0).ok()? != 1.0
            || attributes.int("transA", 0).ok()? != 0
        {
            return None;
        }
        let weights = self.constant(node, 1)?;
        let weights = if attributes.int("transB", 0).ok()? == 1 { weights } else { weights.tr_of_two()? };
        let bias = match node.inputs.get(2).filter(|name| !name.is_empty()) {
            Some(_) => numbers(&self.constant(node, 2)?)?,
            None => Vec::new(),
        };
        self.linear(node, source, &weights, &bias)
    }

    /// A product with a known matrix: a linear layer, or one side of a grid of means.
    fn product(&mut self, node: &'a Node) -> Option<()> {
        if let (Some(source), Some(weights)) = (self.vector(node, 0), self.constant(node, 1)) {
            return self.linear(node, source, &weights.tr_of_two()?, &[]);
        }
        if let (Some(named), Some(columns)) =
            (self.value(node, 0).filter(|named| !named.flat), self.constant(node, 1))
        {
            return self.means(node, named.value, &columns.tr_of_two()?, 1);
        }
        let named = self.value(node, 1).filter(|named| !named.flat)?;
        let rows = self.constant(node, 0)?;
        self.means(node, named.value, &rows, 0)
    }

    /// Rows of a matrix that take the mean of a stretch of positions each, as adaptive pooling has them.
    fn means(&mut self, node: &'a Node, source: usize, matrix: &Tensor, axis: usize) -> Option<()> {
        let [cells, length] = matrix.size()[..] else { return None };
        let Shape { channels, sides } = self.shapes[source];
        if length as usize != sides[axis] || cells < 1 {
            return None;
        }
        let mut grid = sides;
        grid[axis] = cells as usize;
        let pooling = Pooling::grid(sides, grid)?;
        let mut expected = Vec::new();
        for cell in 0..cells {
            let (start, end) = (cell * length / cells, ((cell + 1) * length + cells - 1) / cells);
            let share = 1.0 / (end - start) as f32;
            expected.extend(
                (0..length).map(|at| f64::from(if (start..end).contains(&at) { share } else { 0.0 })),
            );
        }
        if Vec::<f64>::try_from(matrix.contiguous().flatten(0, -1)).ok()? != expected {
            return None;
        }
        self.step(node, Work::Pool(pooling), source, Shape { channels, sides: grid })
    }

    fn relu(&mut self, node: &'a Node) -> Option<()> {
        let Named { value, flat } = self.value(node, 0)?;
        let alone = self.uses.get(node.outputs.first()?.as_str()) == Some(&1);
        if let Some(step) = self.open(value) {
            step.relu = true;
            self.alone[value] = alone;
            return self.name(node, value, flat);
        }
        let shape = self.shapes[value];
        self.step(node, Work::Pass, value, shape)?;
        self.steps.last_mut()?.relu = true;
        self.name(node, self.shapes.len() - 1, flat)
    }

    fn arithmetic(&mut self, node: &'a Node) -> Option<()> {
        match (self.value(node, 0), self.value(node, 1)) {
            (Some(first), Some(second)) if node.op == "Add" => self.sum(node, first, second),
            (Some(named), None) => {
                let constant = self.constant(node, 1)?;
                self.by_channel(node, named, &constant)
            }
            (None, Some(named)) if node.op == "Add" || node.op == "Mul" => {
                let constant = self.constant(node, 0)?;
                self.by_channel(node, named, &constant)
            }
            _ => None,
        }
    }

    /// The sum of two values, done together with the later one where that is possible.
    fn sum(&mut self, node: &'a Node, first: Named, second: Named) -> Option<()> {
        if first.flat != second.flat || self.shapes[first.value] != self.shapes[second.value] {
            return None;
        }
        let (early, late) = (first.value.min(second.value), first.value.max(second.value));
        let alone = self.uses.get(node.outputs.first()?.as_str()) == Some(&1);
        if early != late
            && let Some(step) = self.open(late)
            && step.add.is_none()
        {
            step.add = Some(early);
            self.alone[late] = alone;
            return self.name(node, late, first.flat);
        }
        let shape = self.shapes[late];
        self.step(node, Work::Pass, late, shape)?;
        self.steps.last_mut()?.add = Some(early);
        self.name(node, self.shapes.len() - 1, first.flat)
    }

    /// An operation with one number a channel, or with one number.
    fn by_channel(&mut self, node: &'a Node, named: Named, constant: &Tensor) -> Option<()> {
        let Named { value, flat } = named;
        let Shape { channels, sides } = self.shapes[value];
        let vector = sides == [1, 1];
        let size = constant.size();
        // [1, C, 1, 1] and [C, 1, 1]; of vectors also [C] and [1, C]; or a single number
        let one_a_channel = match &size[..] {
            [rest @ .., count, 1, 1] if !flat => {
                *count as usize == channels && rest.iter().all(|&side| side == 1)
            }
            [rest @ .., count] if vector => *count as usize == channels && rest.iter().all(|&side| side == 1),
            _ => false,
        };
        let factors: Vec<f64> = if constant.numel() == 1 {
            vec![constant.double_value(&vec![0; size.len()]); channels]
        } else if one_a_channel {
            Vec::try_from(constant.flatten(0, -1)).ok()?
        } else {
            return None;
        };
        let (ones, zeros) = (vec![1.0; channels], vec![0.0; channels]);
        let (scale, shift) = match node.op.as_str() {
            "Add" => (ones, factors),
            "Sub" => (ones, factors.iter().map(|value| -value).collect()),
            "Mul" => (factors, zeros),
            _ => (factors.iter().map(|value| 1.0 / value).collect(), zeros),
        };
        self.scaled(node, named, &scale, &shift)
    }

    fn norm(&mut self, node: &'a Node) -> Option<()> {
        let named = self.value(node, 0).filter(|named| !named.flat)?;
        let channels = self.shapes[named.value].channels;
        let [weight, bias, mean, variance]: [Vec<f64>; 4] = {
            let read = |place| Vec::<f64>::try_from(self.constant(node, place)?.flatten(0, -1)).ok();
            [read(1)?, read(2)?, read(3)?, read(4)?]
        };
        if [&weight, &bias, &mean, &variance].iter().any(|values| values.len() != channels)
            || node.attributes.int("training_mode", 0).ok()? != 0
        {
            return None;
        }
        let epsilon = node.attributes.float("epsilon", 1e-5).ok()?;
        let scale: Vec<f64> = weight
            .iter()
            .zip(&variance)
            .map(|(weight, variance)| weight / (variance + epsilon).sqrt())
            .collect();
        let shift: Vec<f64> = bias
            .iter()
            .zip(mean.iter().zip(&scale))
            .map(|(bias, (mean, scale))| bias - mean * scale)
            .collect();
        self.scaled(node, named, &scale, &shift)
    }

    /// `value * scale + shift`: part of how images are prepared, of an earlier step of the kind, or a step.
    fn scaled(&mut self, node: &'a Node, named: Named, scale: &[f64], shift: &[f64]) -> Option<()> {
        let Named { value, flat } = named;
        let shape = self.shapes[value];
        let alone = self.uses.get(node.outputs.first()?.as_str()) == Some(&1);
        if value == 0 && self.prepares(node, scale, shift) {
            return self.name(node, 0, flat);
        }
        if let Some(step) = self.open(value)
            && step.add.is_none()
            && let Work::Affine { scale: earlier_scale, shift: earlier_shift } = &mut step.work
        {
            for (channel, (&scale, &shift)) in scale.iter().zip(shift).enumerate() {
                let (factor, summand) = (earlier_scale[channel].to_f64(), earlier_shift[channel].to_f64());
                earlier_scale[channel] = T::from_f64(factor * scale);
                earlier_shift[channel] = T::from_f64(summand * scale + shift);
            }
            self.alone[value] = alone;
            return self.name(node, value, flat);
        }
        let row = |values: &[f64], rest: f64| {
            let mut row: Vec<T> = values.iter().map(|&value| T::from_f64(value)).collect();
            row.resize(padded(shape.channels), T::from_f64(rest));
            row
        };
        let work = Work::Affine { scale: row(scale, 0.0), shift: row(shift, 0.0) };
        self.step(node, work, value, shape)?;
        self.name(node, self.shapes.len() - 1, flat)
    }

    /// Takes a shift and then a factor of the images into their preparation, in the order in which autograd would.
    fn prepares(&mut self, node: &Node, scale: &[f64], shift: &[f64]) -> bool {
        let only_shift = scale.iter().all(|&scale| scale == 1.0);
        let only_scale = shift.iter().all(|&shift| shift == 0.0);
        let fresh = self.scale.iter().all(|&scale| scale == T::from_f64(1.0));
        // the bare images may have another reader, who must not see this
        let name = node.inputs.iter().find(|name| self.names.contains_key(name.as_str()));
        let alone = name.is_some_and(|name| self.uses.get(name.as_str()) == Some(&1));
        if !alone || !self.steps.is_empty() || !(only_scale || only_shift && fresh) {
            return false;
        }
        for channel in 0..self.scale.len() {
            if only_shift {
                self.shift[channel] += T::from_f64(shift[channel]);
            } else {
                self.scale[channel] = self.scale[channel] * T::from_f64(scale[channel]);
            }
        }
        true
    }

    fn pool(&mut self, node: &'a Node) -> Option<()> {
        let source = self.value(node, 0).filter(|named| !named.flat)?.value;
        let Shape { channels, sides } = self.shapes[source];
        let attributes = &node.attributes;
        let plain = attributes.text("auto_pad", "NOTSET").ok()? == "NOTSET"
            && attributes.int("ceil_mode", 0).ok()? == 0
            && attributes.int("storage_order", 0).ok()? == 0
            && attributes.ints("dilations").ok()?.is_none_or(|steps| steps.iter().all(|&step| step == 1))
            && node.outputs.get(1).is_none_or(String::is_empty);
        let two = |name: &str| -> Option<Option<[usize; 2]>> {
            match attributes.ints(name).ok()? {
                None => Some(None),
                Some(&[down, across]) => Some(Some([length(down)?, length(across)?])),
                Some(_) => None,
            }
        };
        let size = two("kernel_shape")??;
        let stride = two("strides")?.unwrap_or([1, 1]);
        let [before, after] = pads(node)?;
        if !plain || size.contains(&0) || stride.contains(&0) || size[0] * size[1] > usize::from(u16::MAX) {
            return None;
        }
        let window = match (node.op.as_str(), attributes.int("count_include_pad", 0).ok()?) {
            ("MaxPool", _) => Window::Largest,
            (_, 0) => Window::MeanInside,
            _ => Window::Mean,
        };
        let pooling = Pooling::new(window, sides, size, stride, before, after)?;
        let shape = Shape { channels, sides: pooling.output() };
        self.step(node, Work::Pool(pooling), source, shape)
    }

    fn global(&mut self, node: &'a Node) -> Option<()> {
        let source = self.value(node, 0).filter(|named| !named.flat)?.value;
        let Shape { channels, sides } = self.shapes[source];
        let pooling = Pooling::grid(sides, [1, 1])?;
        self.step(node, Work::Pool(pooling), source, Shape { channels, sides: [1, 1] })
    }

    /// A mean over height and width.
    fn mean(&mut self, node: &'a Node) -> Option<()> {
        let axes = match node.attributes.ints("axes").ok()? {
            Some(axes) => axes.to_vec(),
            None => self.ints(node, 1)?,
        };
        let mut axes: Vec<i64> = axes.into_iter().map(|axis| axis.rem_euclid(4)).collect();
        axes.sort_unstable();
        if axes != [2, 3] {
            return None;
        }
        self.global(node)
    }

    /// One line for everything of an image.
    fn flat(&mut self, node: &'a Node) -> Option<()> {
        let named = self.value(node, 0)?;
        let Shape { channels, sides } = self.shapes[named.value];
        let all = (channels * sides[0] * sides[1]) as i64;
        let fits = match node.op.as_str() {
            "Flatten" => node.attributes.int("axis", 1).ok()? == 1,
            "Squeeze" => {
                sides == [1, 1] && {
                    let axes = match node.attributes.ints("axes").ok()? {
                        Some(axes) => axes.to_vec(),
                        None => self.ints(node, 1)?,
                    };
                    axes.iter().all(|axis| [2, 3, -1, -2].contains(axis)) && axes.len() == 2
                }
            }
            _ => {
                let shape = self.ints(node, 1)?;
                // the batch's side is copied or left open; an open second side is everything
                matches!(shape[..], [0 | -1, rest] if rest == all || (rest == -1 && shape[0] == 0))
            }
        };
        fits.then_some(())?;
        let alone = self.uses.get(node.outputs.first()?.as_str()) == Some(&1);
        self.alone[named.value] &= alone;
        self.name(node, named.value, true)
    }

    fn same(&mut self, node: &'a Node) -> Option<()> {
        let named = self.value(node, 0)?;
        // one reader of the copy is one more of the original
        self.alone[named.value] = false;
        self.name(node, named.value, named.flat)
    }

    /// A value that stands in one line: flattened, or the result of a linear layer.
    fn vector(&self, node: &Node, place: usize) -> Option<usize> {
        let named = self.value(node, place)?;
        (named.flat || self.is_line(named.value)).then_some(named.value)
    }

    fn is_line(&self, value: usize) -> bool {
        self.shapes[value].sides == [1, 1]
    }
}

/// A stride, a dilation or a side of a window.
fn length(value: i64) -> Option<usize> {
    usize::try_from(value).ok().filter(|&length| length <= LONGEST_STEP)
}

/// Zeros before and after of height and width.
fn pads(node: &Node) -> Option<[[usize; 2]; 2]> {
    match node.attributes.ints("pads").ok()? {
        None => Some([[0, 0], [0, 0]]),
        Some(&[top, left, bottom, right]) => {
            Some([[length(top)?, length(left)?], [length(bottom)?, length(right)?]])
        }
        Some(_) => None,
    }
}

/// All elements in order.
fn numbers<T: Real>(tensor: &Tensor) -> Option<Vec<T>> {
    let values = Vec::<f64>::try_from(tensor.to_kind(Kind::Double).contiguous().flatten(0, -1)).ok()?;
    Some(values.into_iter().map(T::from_f64).collect())
}

/// A matrix the other way round.
trait Turned: Sized {
    fn tr_of_two(&self) -> Option<Self>;
}

impl Turned for Tensor {
    fn tr_of_two(&self) -> Option<Self> {
        (self.dim() == 2).then(|| self.transpose(0, 1).contiguous())
    }
}
