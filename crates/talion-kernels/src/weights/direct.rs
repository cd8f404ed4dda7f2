//! The gradient of any kernel, product by product.
//!
//! Every weight's gradient is a sum over pixels of an input times the gradient of an output. One of the two is read number by
//! number and multiplies vectors of the other, so that of one side no more is worked on than there is.

use std::ops::Range;

use crate::{
    Geometry, LANES, Real,
    few::lay_line,
    outer::{Operand, Places, add_products},
    padded,
    team::Team,
};

/// Numbers of the input that are worked on together, unless one row of pixels needs more: a part of what a core has to itself.
const STRIP: usize = 1 << 15;

/// Which side is read number by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Single {
    Inputs,
    Outputs,
}

/// A kernel's place between two maps.
pub(super) struct Direct {
    geometry: Geometry,
    /// Channels of input and output, as they are.
    channels: [usize; 2],
    source: [usize; 2],
    target: [usize; 2],
    single: Single,
    /// Rows and columns of the input that a pixel needs.
    covered: [usize; 2],
    /// Whether all inputs lie inside of the image. If not, rows of it are copied with zeros around them.
    inside: bool,
}

/// Rows of pixels that are worked on together, all of one image: the image, its first row, and how many.
struct Segment {
    image: usize,
    first: usize,
    rows: usize,
}

impl Direct {
    /// For maps of these rows and columns.
    pub(super) fn new(
        geometry: Geometry,
        channels: [usize; 2],
        source: [usize; 2],
        target: [usize; 2],
    ) -> Self {
        let covered = [0, 1].map(|axis| geometry.dilation[axis] * (geometry.size[axis] - 1) + 1);
        let needed = |axis: usize| (target[axis] - 1) * geometry.stride[axis] + covered[axis];
        let inside = (0..2).all(|axis| geometry.before[axis] == 0 && needed(axis) <= source[axis]);
        let [inputs, outputs] = products(channels);
        let single = if inputs <= outputs { Single::Inputs } else { Single::Outputs };
        Self { geometry, channels, source, target, single, covered, inside }
    }

    /// Multiplications a pixel of the output.
    pub(super) fn multiplications(geometry: &Geometry, channels: [usize; 2]) -> usize {
        let [inputs, outputs] = products(channels);
        geometry.size[0] * geometry.size[1] * inputs.min(outputs)
    }

    /// Numbers of the sums, and how many of them lie between two outputs, two inputs and two weights of a kernel.
    pub(super) fn layout(&self) -> (usize, [usize; 3]) {
        let taps = self.geometry.size[0] * self.geometry.size[1];
        let [inputs, outputs] = self.channels;
        match self.single {
            Single::Inputs => {
                let width = padded(outputs);
                (taps * inputs * width, [1, width, inputs * width])
            }
            Single::Outputs => {
                let width = padded(inputs);
                (outputs * taps * width, [taps * width, 1, width])
            }
        }
    }

    /// Adds the gradient that these images have a part in to `sums`.
    pub(super) fn add<T: Real>(
        &self,
        team: &Team<T>,
        input: &[T],
        gradient: &[T],
        images: Range<usize>,
        sums: &mut [T],
    ) {
        let inputs: Vec<usize> = self.inputs();
        let rows = self.target[0];
        let line = self.columns() * self.kept();
        let per_row = self.geometry.stride[0] + self.covered[0].div_ceil(rows);
        let most = (STRIP / (line * per_row).max(1)).max(1);
        let several = most.min(images.len() * rows);
        let lines = several * self.geometry.stride[0] + (several.div_ceil(rows) + 1) * self.covered[0];
        let mut memory = team.take(if self.inside { 0 } else { lines * line });
        let mut next = images.start * rows;
        while next < images.end * rows {
            let end = (next + several).min(images.end * rows);
            let segments = segments(next..end, rows);
            let strip = if self.inside { input } else { self.fill(input, &segments, &mut memory) };
            let places = self.places(&segments);
            let read = Operand { values: strip, offsets: &inputs };
            match self.single {
                Single::Inputs => {
                    let offsets: Vec<usize> = (0..padded(self.channels[1])).step_by(LANES).collect();
                    let right = Operand { values: gradient, offsets: &offsets };
                    add_products(read, right, &Places::new(places), sums);
                }
                Single::Outputs => {
                    let offsets: Vec<usize> = (0..self.channels[1]).collect();
                    let left = Operand { values: gradient, offsets: &offsets };
                    let places = places.into_iter().map(|[from, to]| [to, from]).collect();
                    add_products(left, read, &Places::new(places), sums);
                }
            }
            next = end;
        }
        team.give(memory);
    }

    /// Channels of a pixel of the strip: of few that are read number by number no others are kept.
    fn kept(&self) -> usize {
        let inputs = self.channels[0];
        if self.single == Single::Inputs && !self.inside && inputs < LANES { inputs } else { padded(inputs) }
    }

    /// Columns of the strip.
    fn columns(&self) -> usize {
        if self.inside {
            return self.source[1];
        }
        (self.target[1] - 1) * self.geometry.stride[1] + self.covered[1]
    }

    /// What is read of the input for a pixel, counted from its first input.
    fn inputs(&self) -> Vec<usize> {
        let Geometry { size, dilation, .. } = self.geometry;
        let (channels, step) = match self.single {
            Single::Inputs => (self.channels[0], 1),
            Single::Outputs => (padded(self.channels[0]), LANES),
        };
        let taps = (0..size[0] * size[1]).map(|tap| {
            let (row, column) = (tap / size[1] * dilation[0], tap % size[1] * dilation[1]);
            (row * self.columns() + column) * self.kept()
        });
        taps.flat_map(|tap| (0..channels).step_by(step).map(move |channel| tap + channel)).collect()
    }

    /// Copies what the segments need, one after the other, with zeros where it lies outside of the image.
    fn fill<'a, T: Real>(&self, input: &[T], segments: &[Segment], memory: &'a mut [T]) -> &'a [T] {
        let ([rows, columns], channels) = (self.source, padded(self.channels[0]));
        let width = self.columns();
        let left = self.geometry.before[1].min(width);
        let inside = columns.min(width - left);
        let wanted = segments.iter().flat_map(|segment| {
            let first = segment.first * self.geometry.stride[0];
            (first..first + self.lines(segment)).map(|row| (segment.image, row))
        });
        let mut filled = 0;
        for (image, row) in wanted {
            let line = &mut memory[filled..filled + width * self.kept()];
            let y = row.wrapping_sub(self.geometry.before[0]);
            if y < rows {
                let at = (image * rows + y) * columns * channels;
                lay_line(&input[at..at + inside * channels], channels, line, self.kept(), left);
            } else {
                line.fill(T::default());
            }
            filled += line.len();
        }
        &memory[..filled]
    }

    /// Rows of the strip that belong to a segment.
    fn lines(&self, segment: &Segment) -> usize {
        (segment.rows - 1) * self.geometry.stride[0] + self.covered[0]
    }

    /// Where every pixel's first input lies in the strip or in the input, and where its gradient.
    fn places(&self, segments: &[Segment]) -> Vec<[usize; 2]> {
        let [rows, columns] = self.target;
        let [down, across] = self.geometry.stride;
        let mut places = Vec::new();
        let mut filled = 0;
        for segment in segments {
            let start =
                if self.inside { segment.image * self.source[0] + segment.first * down } else { filled };
            for row in 0..segment.rows {
                let from = (start + row * down) * self.columns();
                let to = (segment.image * rows + segment.first + row) * columns;
                let width = padded(self.channels[1]);
                let pixels = 0..columns;
                places.extend(
                    pixels.map(|column| [(from + column * across) * self.kept(), (to + column) * width]),
                );
            }
            filled += self.lines(segment);
        }
        places
    }
}

/// Products a weight of the kernel, where inputs and where outputs are read number by number.
fn products([inputs, outputs]: [usize; 2]) -> [usize; 2] {
    [inputs * padded(outputs), outputs * padded(inputs)]
}

/// Cuts units of rows where images end.
fn segments(units: Range<usize>, rows: usize) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut next = units.start;
    while next < units.end {
        let (image, first) = (next / rows, next % rows);
        let rows = (rows - first).min(units.end - next);
        segments.push(Segment { image, first, rows });
        next += rows;
    }
    segments
}
