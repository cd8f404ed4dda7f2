//! Convolutions from or to the few channels of an image, which multiply what is there and no more.
//!
//! Maps have their channels filled up to eight, and products their columns to sixteen. For an image of one channel that would be
//! eight times the work forwards and sixteen times backwards. Here an input of few channels is read number by number, each of
//! which is multiplied with the weights of sixteen outputs; and an output of few channels is a dot product over vectors of eight
//! channels, whose lanes are added at the end.
//!
//! Nothing is laid side by side for it: some rows of an image are copied with zeros around them, and in this strip the inputs of
//! a pixel's weights are at the same distances for every pixel.

use crate::{
    LANES, Real,
    bits::{Finish, Target},
    gemm::{PANEL, Packed},
    padded,
    patches::{Part, Pattern, units_of_task},
    simd::{Vector, dispatch},
    team::{Band, Team, bands},
};

/// Channels up to which they are few.
const FEW: usize = 4;
/// Numbers of a strip at most, unless one row of pixels needs more: a part of what a core has to itself.
const STRIP: usize = 1 << 15;
/// Pixels that are multiplied with sixteen outputs' weights together: twelve sums, two weights and a factor in sixteen registers.
const SPREAD: usize = 6;
/// Pixels that dot products are taken of together at most.
const DOTS: usize = 8;

/// Which map has the few channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The one that is read.
    Input,
    /// The one that is written.
    Output,
}

impl Side {
    /// The better side for `from` channels that are read, `to` that are written and a kernel of so many weights, and how many
    /// multiplications a pixel takes; none where there are few channels on neither side.
    pub(crate) fn of([from, to]: [usize; 2], kernel: usize) -> Option<(Self, usize)> {
        if from == 0 || to == 0 {
            return None;
        }
        let input = (from <= FEW).then(|| (Self::Input, kernel * from * to.next_multiple_of(PANEL)));
        let output = (to <= FEW).then(|| (Self::Output, kernel * padded(from) * to));
        input.into_iter().chain(output).min_by_key(|&(_, multiplications)| multiplications)
    }

    /// Numbers of the input that are multiplied at once.
    fn grain(self) -> usize {
        match self {
            Self::Input => 1,
            Self::Output => LANES,
        }
    }
}

/// Pixels that are a number of steps apart, and what they are made of.
#[derive(Debug)]
struct Class<T> {
    /// The first row and column, below the steps.
    start: [usize; 2],
    /// Row and column of the input of each weight, counted from the strip's first ones.
    taps: Vec<[usize; 2]>,
    /// From few channels `[panels, taps * from, 16]`, to few channels `[taps * channels / 8, to, 8]`.
    weights: Vec<T>,
}

/// A kernel of which one side has few channels.
#[derive(Debug)]
pub(crate) struct Few<T> {
    side: Side,
    classes: Vec<Class<T>>,
    /// Steps between a class's output pixels, down and across.
    steps: [usize; 2],
    /// Steps between their inputs.
    strides: [usize; 2],
    /// The first row and column that belong to the first pixel of any class; before the image where they are negative.
    first: [isize; 2],
    /// Rows and columns that one pixel of each class needs together.
    covered: [usize; 2],
    /// Channels of the input, padded.
    channels: usize,
    /// How many of them a strip has.
    kept: usize,
    /// Channels of the output, as they are.
    to: usize,
}

/// Where the inputs of a class's weights lie in a strip, counted from a pixel's own place.
struct Offsets {
    places: Vec<usize>,
    /// What is read for one pixel ends here: at least a grain above every place.
    end: usize,
}

impl Offsets {
    fn new(places: Vec<usize>, grain: usize) -> Self {
        let end = places.iter().max().map_or(0, |last| last + grain);
        Self { places, end }
    }
}

/// What is the same for all parts of an output.
struct Call<'a, T> {
    input: &'a [T],
    /// Rows and columns of the input.
    source: [usize; 2],
    /// Rows and columns of the output.
    target: [usize; 2],
    /// Columns of a strip.
    columns: usize,
    /// For every class.
    offsets: Vec<Offsets>,
    finish: &'a Finish<'a, T>,
}

/// Rows of pixels of one class, whose inputs lie in one strip.
struct Lines<'a, T> {
    strip: &'a [T],
    offsets: &'a Offsets,
    weights: &'a [T],
    /// Rows, and pixels of each.
    count: [usize; 2],
    /// Numbers of the strip between two rows, and between two pixels of a row.
    apart: [usize; 2],
    /// The first pixel's first element of the output.
    element: usize,
    /// Elements of the output between two rows, and between two pixels of a row.
    between: [usize; 2],
    /// Channels of the output, as they are.
    to: usize,
}

impl<T: Real> Few<T> {
    /// The kernel for `from` channels that are read and `to` that are written, as many as there are;
    /// `weight(output, input, row, column)` is asked for padded numbers of channels.
    pub(crate) fn new(
        side: Side,
        pattern: &Pattern,
        [from, to]: [usize; 2],
        weight: impl Fn(usize, usize, usize, usize) -> f64,
    ) -> Self {
        let met = || pattern.parts.iter().flat_map(|part| part.met.iter().map(|&(_, at)| at));
        let first = [0, 1].map(|axis| met().map(|at| at[axis]).min().unwrap_or(0));
        let last = [0, 1].map(|axis| met().map(|at| at[axis]).max().unwrap_or(0));
        let in_strip = |at: [isize; 2]| [0, 1].map(|axis| (at[axis] - first[axis]) as usize);
        let classes = pattern.parts.iter().map(|part| Class {
            start: part.start,
            taps: part.met.iter().map(|&(_, at)| in_strip(at)).collect(),
            weights: match side {
                Side::Input => spread_weights(part, [from, to], &weight),
                Side::Output => dotted_weights(part, [from, to], &weight),
            },
        });
        Self {
            side,
            classes: classes.collect(),
            steps: pattern.steps,
            strides: pattern.strides,
            first,
            covered: [0, 1].map(|axis| (last[axis] - first[axis]) as usize + 1),
            channels: padded(from),
            kept: if side == Side::Input { from } else { padded(from) },
            to,
        }
    }

    /// # Shapes
    /// `input` `[N, H, W, padded(from)]`, `output` `[N, h, w, padded(to)]`.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn run(
        &self,
        team: &Team<T>,
        input: &[T],
        [images, rows, columns]: [usize; 3],
        output: &mut [T],
        target: [usize; 2],
        finish: &Finish<'_, T>,
        bits: &mut [u8],
    ) {
        let pixels = target[1].div_ceil(self.steps[1]);
        let width = pixels.saturating_sub(1) * self.strides[1] + self.covered[1];
        let offsets = self.classes.iter().map(|class| self.offsets(class, width)).collect();
        let call = Call { input, source: [rows, columns], target, columns: width, offsets, finish };
        let height = self.steps[0];
        let units = images * target[0].div_ceil(height);
        let several = units_of_task(units, height * target[1], self.classes.len(), team.threads());
        let shape = [images, target[0], target[1] * padded(self.to)];
        team.each(bands(output, bits, shape, height, several), |band| self.band(team, &call, band));
    }

    /// In the order of the weights: tap by tap, and channel by channel or eight by eight.
    fn offsets(&self, class: &Class<T>, columns: usize) -> Offsets {
        let grain = self.side.grain();
        let places = class.taps.iter().flat_map(|[row, column]| {
            let pixel = (row * columns + column) * self.kept;
            (0..self.kept).step_by(grain).map(move |channel| pixel + channel)
        });
        Offsets::new(places.collect(), grain)
    }

    /// All pixels of a band, a strip at a time.
    fn band(&self, team: &Team<T>, call: &Call<'_, T>, band: Band<'_, T>) {
        let per_image = call.target[0].div_ceil(self.steps[0]);
        let line = call.columns * self.kept;
        let rows = |units: usize| (units - 1) * self.strides[0] + self.covered[0];
        let most = (STRIP / line).saturating_sub(self.covered[0]) / self.strides[0] + 1;
        let most = most.min(per_image).min(band.units.len());
        // dot products are taken of some pixels at once, a few of which may lie behind the last one; these are not written
        let behind = DOTS * self.strides[1] * self.kept;
        let mut memory = team.take(rows(most) * line + behind);
        let mut out = Target { output: band.output, bits: band.bits, base: band.base };
        let mut next = band.units.start;
        while next < band.units.end {
            let (image, first) = (next / per_image, next % per_image);
            let units = most.min(per_image - first).min(band.units.end - next);
            self.fill(call, image, first, &mut memory[..rows(units) * line]);
            for (class, offsets) in self.classes.iter().zip(&call.offsets) {
                let lines = self.lines(call, class, offsets, [image, first, units], &memory);
                match self.side {
                    Side::Input => from_few(&lines, call.finish, &mut out),
                    Side::Output => to_few(&lines, call.finish, &mut out),
                }
            }
            next += units;
        }
        team.give(memory);
    }

    /// Copies what an image's units from `first` on need, with zeros where it lies outside the image.
    fn fill(&self, call: &Call<'_, T>, image: usize, first: usize, strip: &mut [T]) {
        let [rows, columns] = call.source;
        // columns of zeros before the image, and those of the image itself
        let left = self.first[1].min(0).unsigned_abs().min(call.columns);
        let start = self.first[1].max(0) as usize;
        let inside = columns.saturating_sub(start).min(call.columns - left);
        for (row, line) in strip.chunks_exact_mut(call.columns * self.kept).enumerate() {
            let y = (first * self.strides[0] + row) as isize + self.first[0];
            if inside == 0 || !(0..rows as isize).contains(&y) {
                line.fill(T::default());
                continue;
            }
            let at = ((image * rows + y as usize) * columns + start) * self.channels;
            let pixels = &call.input[at..at + inside * self.channels];
            lay_line(pixels, self.channels, line, self.kept, left);
        }
    }

    /// The pixels of a class in so many units of an image, whose inputs are in the strip.
    fn lines<'a>(
        &self,
        call: &Call<'_, T>,
        class: &'a Class<T>,
        offsets: &'a Offsets,
        [image, first, units]: [usize; 3],
        strip: &'a [T],
    ) -> Lines<'a, T> {
        let [rows, pixels] = [0, 1].map(|axis| {
            let room = call.target[axis].saturating_sub(class.start[axis]);
            room.div_ceil(self.steps[axis])
        });
        let y = first * self.steps[0] + class.start[0];
        let outputs = padded(self.to);
        Lines {
            strip,
            offsets,
            weights: &class.weights,
            // the last unit of an image may have fewer rows than others
            count: [rows.saturating_sub(first).min(units), pixels],
            apart: [self.strides[0] * call.columns * self.kept, self.strides[1] * self.kept],
            element: ((image * call.target[0] + y) * call.target[1] + class.start[1]) * outputs,
            between: [self.steps[0] * call.target[1] * outputs, self.steps[1] * outputs],
            to: self.to,
        }
    }
}

/// Weights in the order in which numbers are multiplied with sixteen outputs'.
fn spread_weights<T: Real>(
    part: &Part,
    [from, to]: [usize; 2],
    weight: impl Fn(usize, usize, usize, usize) -> f64,
) -> Vec<T> {
    let packed = Packed::new(part.met.len() * from, padded(to), |row, output| {
        let [down, across] = part.met[row / from].0;
        weight(output, row % from, down, across)
    });
    packed.into_values()
}

/// Weights in the order in which dot products are taken.
fn dotted_weights<T: Real>(
    part: &Part,
    [from, to]: [usize; 2],
    weight: impl Fn(usize, usize, usize, usize) -> f64,
) -> Vec<T> {
    let mut values = Vec::with_capacity(part.met.len() * padded(from) * to);
    for &([down, across], _) in &part.met {
        for first in (0..padded(from)).step_by(LANES) {
            for output in 0..to {
                let inputs = first..first + LANES;
                values.extend(inputs.map(|input| T::from_f64(weight(output, input, down, across))));
            }
        }
    }
    values
}

/// Lays the first `kept` channels of each pixel into a line, with `left` zeros before the first one and zeros behind the last.
pub(crate) fn lay_line<T: Real>(pixels: &[T], channels: usize, line: &mut [T], kept: usize, left: usize) {
    let (before, rest) = line.split_at_mut(left * kept);
    let (middle, after) = rest.split_at_mut(pixels.len() / channels * kept);
    before.fill(T::default());
    after.fill(T::default());
    copy(pixels, channels, middle, kept);
}

/// The first `kept` channels of each pixel.
fn copy<T: Real>(from: &[T], channels: usize, to: &mut [T], kept: usize) {
    if kept == channels {
        return to.copy_from_slice(from);
    }
    // channel by channel: for so few at once the compiler would call a function
    for channel in 0..kept {
        for (to, from) in to.chunks_exact_mut(kept).zip(from.chunks_exact(channels)) {
            to[channel] = from[channel];
        }
    }
}

impl<T: Real> Lines<'_, T> {
    /// The strip from the first input of a pixel on.
    #[inline(always)]
    fn inputs(&self, [row, pixel]: [usize; 2]) -> &[T] {
        &self.strip[row * self.apart[0] + pixel * self.apart[1]..]
    }

    /// Writes the sums of pixels that follow one another, from the one at `[row, pixel]` and from `channel` on.
    #[inline(always)]
    fn put<V: Vector<T = T>, const W: usize>(
        &self,
        [row, pixel]: [usize; 2],
        channel: usize,
        sums: &[[T; W]],
        finish: &Finish<'_, T>,
        out: &mut Target<'_, T>,
    ) {
        let first = self.element + row * self.between[0] + pixel * self.between[1];
        for (place, sums) in sums.iter().enumerate() {
            for (part, value) in sums.as_chunks::<LANES>().0.iter().enumerate() {
                let channel = channel + part * LANES;
                // half of the last panel may be nothing
                if channel < self.to {
                    let at = first + place * self.between[1] + channel;
                    finish.put(out, at, channel, V::load(value));
                }
            }
        }
    }
}

dispatch!(from_few, from_few_in, (lines: &Lines<'_, T>, finish: &Finish<'_, T>, out: &mut Target<'_, T>));

/// Sixteen outputs at a time of blocks of almost equal numbers of pixels, as in a product.
#[inline(always)]
fn from_few_in<V: Vector>(lines: &Lines<'_, V::T>, finish: &Finish<'_, V::T>, out: &mut Target<'_, V::T>) {
    let panel_length = lines.offsets.places.len() * PANEL;
    let [rows, pixels] = lines.count;
    let blocks = pixels.div_ceil(SPREAD);
    let mut sums = [[V::T::default(); PANEL]; SPREAD];
    for row in 0..rows {
        for panel in 0..lines.to.div_ceil(PANEL) {
            let weights = &lines.weights[panel * panel_length..(panel + 1) * panel_length];
            let mut pixel = 0;
            for block in 0..blocks {
                let several = (pixels - pixel).div_ceil(blocks - block);
                let inputs = lines.inputs([row, pixel]);
                match several {
                    6 => spread::<V, 6>(lines, inputs, weights, &mut sums),
                    5 => spread::<V, 5>(lines, inputs, weights, &mut sums),
                    4 => spread::<V, 4>(lines, inputs, weights, &mut sums),
                    3 => spread::<V, 3>(lines, inputs, weights, &mut sums),
                    2 => spread::<V, 2>(lines, inputs, weights, &mut sums),
                    _ => spread::<V, 1>(lines, inputs, weights, &mut sums),
                }
                lines.put::<V, PANEL>([row, pixel], panel * PANEL, &sums[..several], finish, out);
                pixel += several;
            }
        }
    }
}

/// `P` pixels times one panel. Every element is one sum over the weights, from the first to the last.
#[inline(always)]
fn spread<V: Vector, const P: usize>(
    lines: &Lines<'_, V::T>,
    inputs: &[V::T],
    weights: &[V::T],
    products: &mut [[V::T; PANEL]; SPREAD],
) {
    let apart = lines.apart[1];
    assert!(inputs.len() >= (P - 1) * apart + lines.offsets.end);
    let mut sums = [[V::zero(); PANEL / LANES]; P];
    let weights = weights.as_chunks::<LANES>().0.as_chunks::<{ PANEL / LANES }>().0;
    for (&offset, right) in lines.offsets.places.iter().zip(weights) {
        let right = [V::load(&right[0]), V::load(&right[1])];
        // as in a product: indices keep the sums in registers
        #[allow(clippy::needless_range_loop)]
        for pixel in 0..P {
            // SAFETY: `offset` is below the offsets' end, `pixel` below `P`, and `inputs` was found to be long enough for both.
            let factor = V::splat(unsafe { *inputs.get_unchecked(offset + pixel * apart) });
            sums[pixel][0] = factor.times_plus(right[0], sums[pixel][0]);
            sums[pixel][1] = factor.times_plus(right[1], sums[pixel][1]);
        }
    }
    for (product, sums) in products.iter_mut().zip(&sums) {
        let (places, _) = product.as_chunks_mut::<LANES>();
        for (sum, place) in sums.iter().zip(places) {
            sum.store(place);
        }
    }
}

dispatch!(to_few, to_few_in, (lines: &Lines<'_, T>, finish: &Finish<'_, T>, out: &mut Target<'_, T>));

/// Blocks of as many pixels as make eight sums or nine: fewer would keep the processor waiting for its own sums, and more would
/// not stay in registers beside the weights.
#[inline(always)]
fn to_few_in<V: Vector>(lines: &Lines<'_, V::T>, finish: &Finish<'_, V::T>, out: &mut Target<'_, V::T>) {
    match lines.to {
        1 => blocks_of_dots::<V, 1, DOTS, 4>(lines, finish, out),
        2 => blocks_of_dots::<V, 2, 4, 2>(lines, finish, out),
        3 => blocks_of_dots::<V, 3, 3, 2>(lines, finish, out),
        _ => blocks_of_dots::<V, FEW, 2, 1>(lines, finish, out),
    }
}

/// `K` outputs of `WIDE` pixels at a time, and of `NARROW` where no more are left.
#[inline(always)]
fn blocks_of_dots<V: Vector, const K: usize, const WIDE: usize, const NARROW: usize>(
    lines: &Lines<'_, V::T>,
    finish: &Finish<'_, V::T>,
    out: &mut Target<'_, V::T>,
) {
    let [rows, pixels] = lines.count;
    // what only fills up stays zero
    let mut sums = [[V::T::default(); LANES]; DOTS];
    for row in 0..rows {
        let mut pixel = 0;
        while pixel < pixels {
            let (inputs, left) = (lines.inputs([row, pixel]), pixels - pixel);
            let several = if left > NARROW { WIDE } else { NARROW };
            if left > NARROW {
                dots::<V, K, WIDE>(lines, inputs, &mut sums);
            } else {
                dots::<V, K, NARROW>(lines, inputs, &mut sums);
            }
            lines.put::<V, LANES>([row, pixel], 0, &sums[..several.min(left)], finish, out);
            pixel += several;
        }
    }
}

/// `K` outputs of `P` pixels. Each lane is one sum over the weights, from the first to the last; then the lanes are added.
#[inline(always)]
fn dots<V: Vector, const K: usize, const P: usize>(
    lines: &Lines<'_, V::T>,
    inputs: &[V::T],
    products: &mut [[V::T; LANES]; DOTS],
) {
    let apart = lines.apart[1];
    assert!(inputs.len() >= (P - 1) * apart + lines.offsets.end);
    let mut sums = [[V::zero(); K]; P];
    let weights = lines.weights.as_chunks::<LANES>().0.as_chunks::<K>().0;
    for (&offset, weights) in lines.offsets.places.iter().zip(weights) {
        let mut right = [V::zero(); K];
        for (right, weights) in right.iter_mut().zip(weights) {
            *right = V::load(weights);
        }
        #[allow(clippy::needless_range_loop)] // it is an index of the inputs too
        for pixel in 0..P {
            // SAFETY: `offset` is a vector below the offsets' end, `pixel` below `P`, and `inputs` was found to be long enough
            // for both; an array is aligned as its elements are.
            let left = unsafe { &*inputs.as_ptr().add(offset + pixel * apart).cast::<[V::T; LANES]>() };
            let left = V::load(left);
            for output in 0..K {
                sums[pixel][output] = left.times_plus(right[output], sums[pixel][output]);
            }
        }
    }
    for (product, sums) in products.iter_mut().zip(&sums) {
        for (place, &sum) in product.iter_mut().zip(sums) {
            *place = total(sum);
        }
    }
}

/// The sum of all lanes, in an order that suits processors.
#[inline(always)]
fn total<V: Vector>(sums: V) -> V::T {
    let mut lanes = [V::T::default(); LANES];
    sums.store(&mut lanes);
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{After, patches::Meeting};

    /// 3x3 ones over images of ones with a zero on each side: every output counts its neighbours.
    fn neighbours(team: &Team<f64>, side: Side, channels: [usize; 2], shape: [usize; 3]) -> Vec<f64> {
        let [from, to] = channels;
        let meeting = Meeting { size: [3, 3], stride: [1, 1], dilation: [1, 1], padding: [1, 1] };
        let weight = |output: usize, input: usize, _: usize, _: usize| {
            if output < to && input < from { 1.0 } else { 0.0 }
        };
        let few = Few::<f64>::new(side, &meeting.ahead(), channels, weight);
        let [images, rows, columns] = shape;
        let input = vec![1.0; images * rows * columns * padded(from)];
        let mut output = vec![7.0; images * rows * columns * padded(to)];
        let (finish, bits) = After::<f64>::nothing().split(&[]);
        few.run(team, &input, shape, &mut output, [rows, columns], &finish, bits);
        output
    }

    fn counted([from, to]: [usize; 2], [images, rows, columns]: [usize; 3]) -> Vec<f64> {
        let along = |at: usize, length: usize| (at + 2).min(length) - at.saturating_sub(1);
        let mut expected = Vec::new();
        for pixel in 0..images * rows * columns {
            let (y, x) = (pixel / columns % rows, pixel % columns);
            let count = (from * along(y, rows) * along(x, columns)) as f64;
            expected.extend((0..padded(to)).map(|channel| if channel < to { count } else { 0.0 }));
        }
        expected
    }

    #[test]
    fn the_side_with_fewer_multiplications_is_taken() {
        assert_eq!(Side::of([1, 16], 25), Some((Side::Input, 25 * 16)));
        assert_eq!(Side::of([3, 20], 9), Some((Side::Input, 9 * 3 * 32)));
        assert_eq!(Side::of([16, 1], 25), Some((Side::Output, 25 * 16)));
        assert_eq!(Side::of([4, 4], 1), Some((Side::Output, 8 * 4)));
        assert_eq!([Side::of([5, 5], 9), Side::of([0, 1], 9), Side::of([1, 0], 9)], [None; 3]);
    }

    /// Widths that leave every remainder of a block, and memory in which anything may have been left.
    #[test]
    fn pixels_count_their_neighbours() {
        let team = Team::new(1);
        for columns in 1..20 {
            for few in 1..=FEW {
                let shape = [2, 3, columns];
                for (side, channels) in [(Side::Input, [few, 17]), (Side::Output, [11, few])] {
                    let mut memory = team.take(1 << 12);
                    memory.fill(f64::NAN);
                    team.give(memory);
                    let found = neighbours(&team, side, channels, shape);
                    assert_eq!(found, counted(channels, shape), "{side:?}, {channels:?}, {columns}");
                }
            }
        }
    }

    /// So wide that a strip has room for one row of pixels only.
    #[test]
    fn strips_join_without_a_seam() {
        let shape = [1, 4, STRIP / FEW + 100];
        for side in [Side::Input, Side::Output] {
            let found = neighbours(&Team::new(2), side, [FEW, 2], shape);
            assert!(found == counted([FEW, 2], shape), "{side:?}");
        }
    }

    #[test]
    fn lanes_are_added_in_one_order() {
        type Eight = crate::simd::Portable<f64>;
        // in another order the small ones would be lost, or the large ones would not cancel before them
        let values = [1e20, 1.0, 0.0, 2.0, -1e20, 0.0, 4.0, 0.0];
        assert_eq!(total(Eight::load(&values)), 7.0);
    }
}
