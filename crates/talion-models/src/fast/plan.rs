//! What the engine does, in which order.

use talion_kernels::{Convolution, Pooling, Real};

/// Channels, height and width of a value; a vector has height and width 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub channels: usize,
    pub sides: [usize; 2],
}

impl Shape {
    /// Numbers of one image, channels padded.
    pub(crate) fn elements(self) -> usize {
        talion_kernels::padded(self.channels) * self.sides[0] * self.sides[1]
    }
}

/// What a step computes of its source.
#[derive(Debug)]
pub(crate) enum Work<T> {
    Convolve(Box<Convolution<T>>),
    /// A factor and a summand a channel, padded.
    Affine {
        scale: Vec<T>,
        shift: Vec<T>,
    },
    Pool(Pooling),
    /// Nothing; for a sum or a ReLU that belongs to no other step.
    Pass,
}

/// One value computed from one or two earlier ones. Values are numbered: 0 is the images, and step i makes value i + 1.
#[derive(Debug)]
pub(crate) struct Step<T> {
    pub work: Work<T>,
    pub source: usize,
    /// Added to what is computed.
    pub add: Option<usize>,
    /// Whether negative results become zero.
    pub relu: bool,
}

impl<T> Step<T> {
    /// The values that it reads.
    pub(crate) fn reads(&self) -> impl Iterator<Item = usize> {
        std::iter::once(self.source).chain(self.add)
    }
}

/// A network: steps from prepared images to logits, which are the last value.
#[derive(Debug)]
pub(crate) struct Plan<T> {
    /// Channels of the images.
    pub channels: usize,
    /// Added to each channel of the images, and multiplied with it afterwards.
    pub shift: Vec<T>,
    pub scale: Vec<T>,
    pub steps: Vec<Step<T>>,
    /// The shape of every value.
    pub shapes: Vec<Shape>,
    /// For every value the last step that reads it, and the first: on the way back that one completes its gradient.
    pub last_reader: Vec<Option<usize>>,
    pub first_reader: Vec<Option<usize>>,
}

impl<T: Real> Plan<T> {
    pub(crate) fn new(
        channels: usize,
        [shift, scale]: [Vec<T>; 2],
        steps: Vec<Step<T>>,
        shapes: Vec<Shape>,
    ) -> Self {
        let (mut first_reader, mut last_reader) = (vec![None; shapes.len()], vec![None; shapes.len()]);
        for (index, step) in steps.iter().enumerate() {
            for value in step.reads() {
                first_reader[value].get_or_insert(index);
                last_reader[value] = Some(index);
            }
        }
        Self { channels, shift, scale, steps, shapes, last_reader, first_reader }
    }

    /// Number of classes.
    pub(crate) fn classes(&self) -> usize {
        self.shapes.last().map_or(0, |shape| shape.channels)
    }

    /// Whether a value went through a ReLU.
    pub(crate) fn rectified(&self, value: usize) -> bool {
        value > 0 && self.steps[value - 1].relu
    }
}
