//! Products with a matrix that is known long before: it is packed once, in the order in which it will be read.

#[cfg(target_arch = "x86_64")]
pub(crate) mod wide;

use crate::{
    LANES, Real,
    simd::{Vector, dispatch},
};

/// Columns of a panel: two vector registers of f32.
pub(crate) const PANEL: usize = 16;
/// Rows that are worked on together: with two vectors each they leave three of sixteen registers free.
const ROWS: usize = 6;

/// In what a product's factors are held. Sums are always in the precision of the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Factors {
    /// In the precision of the whole.
    #[default]
    Full,
    /// In bf16 (8 bits for the digits), two in the place of one f32. Not for f64.
    Bf16,
}

/// A matrix `[K, N]`, packed in panels of 16 columns, the last one filled with zeros.
#[derive(Clone, Debug)]
pub struct Packed<T> {
    /// `[panels, places, 16]`.
    values: Vec<T>,
    /// Places of a column: its numbers, or half as many pairs.
    places: usize,
    panels: usize,
    factors: Factors,
}

/// One product: what [`Packed::multiply`] has looked at.
#[doc(hidden)]
#[derive(Debug)]
pub struct Product<'a, T> {
    packed: &'a [T],
    places: usize,
    left: &'a [T],
    stride: usize,
    rows: usize,
    product: &'a mut [T],
}

impl<T: Real> Packed<T> {
    /// Packs the matrix of which `value` gives the element in a row and a column.
    pub fn new(depth: usize, columns: usize, value: impl Fn(usize, usize) -> f64) -> Self {
        Self::with(Factors::Full, depth, columns, value)
    }

    /// The same with factors of this kind.
    ///
    /// # Panics
    /// If they are to be bf16 and T is f64, or `depth` is odd.
    pub fn with(factors: Factors, depth: usize, columns: usize, value: impl Fn(usize, usize) -> f64) -> Self {
        let per_place = factors.per_place();
        assert!(factors == Factors::Full || T::HOLDS_PAIRS, "no place for pairs of bf16");
        assert!(depth.is_multiple_of(per_place), "an odd depth");
        let (panels, places) = (columns.div_ceil(PANEL), depth / per_place);
        let number = |row, column| T::from_f64(if column < columns { value(row, column) } else { 0.0 });
        let mut values = Vec::with_capacity(panels * places * PANEL);
        for panel in 0..panels {
            for place in 0..places {
                values.extend((panel * PANEL..(panel + 1) * PANEL).map(|column| match factors {
                    Factors::Full => number(place, column),
                    Factors::Bf16 => T::pair([number(2 * place, column), number(2 * place + 1, column)]),
                }));
            }
        }
        Self { values, places, panels, factors }
    }

    /// What the factors are held in.
    pub fn factors(&self) -> Factors {
        self.factors
    }

    /// Places that a row of the left factor takes: its numbers, or half as many pairs.
    pub fn places(&self) -> usize {
        self.places
    }

    /// Columns of a product: those of the matrix, filled up to a multiple of 16.
    pub fn columns(&self) -> usize {
        self.panels * PANEL
    }

    /// All places: `[panels, places, 16]`.
    pub(crate) fn into_values(self) -> Vec<T> {
        self.values
    }

    /// Writes the product of the `rows` rows in `left`, which lie `stride` apart, to `product`, `[rows, columns]`. Rows of a matrix
    /// in bf16 are in bf16 themselves, in pairs.
    ///
    /// # Panics
    /// If `left` or `product` are too short.
    pub fn multiply(&self, left: &[T], stride: usize, rows: usize, product: &mut [T]) {
        if rows == 0 {
            return;
        }
        let places = self.places;
        assert!(stride >= places && left.len() >= (rows - 1) * stride + places, "rows lie outside");
        assert!(product.len() >= rows * self.columns(), "no room for the product");
        let packed = &self.values[..];
        let wide = Product { packed, places, left, stride, rows, product: &mut *product };
        let done = match self.factors {
            Factors::Full => T::multiply_wide::<false>(wide),
            Factors::Bf16 => T::multiply_wide::<true>(wide),
        };
        if done {
            return;
        }
        match self.factors {
            Factors::Full => multiply(packed, places, left, stride, rows, product),
            Factors::Bf16 => multiply_pairs(packed, places, left, stride, rows, product),
        }
    }
}

impl Factors {
    /// How many numbers share a place.
    pub(crate) fn per_place(self) -> usize {
        match self {
            Self::Full => 1,
            Self::Bf16 => 2,
        }
    }
}

dispatch!(multiply, multiply_in[false], (packed: &[T], places: usize, left: &[T], stride: usize, rows: usize, product: &mut [T]));
dispatch!(multiply_pairs, multiply_in[true], (packed: &[T], places: usize, left: &[T], stride: usize, rows: usize, product: &mut [T]));

/// The product, panel by panel and, within one, in blocks of almost equal numbers of rows: a block of few rows would keep the
/// processor waiting for its own sums.
#[inline(always)]
fn multiply_in<V: Vector, const PAIRS: bool>(
    packed: &[V::T],
    places: usize,
    left: &[V::T],
    stride: usize,
    rows: usize,
    product: &mut [V::T],
) {
    if places == 0 {
        return product.fill(V::T::default());
    }
    let columns = packed.len() / places;
    let blocks = rows.div_ceil(ROWS);
    for (panel, values) in packed.chunks_exact(places * PANEL).enumerate() {
        let mut row = 0;
        for block in 0..blocks {
            let height = (rows - row).div_ceil(blocks - block);
            let left = &left[row * stride..];
            let product = &mut product[row * columns + panel * PANEL..];
            match height {
                6 => block_of::<V, 6, PAIRS>(values, places, left, stride, product, columns),
                5 => block_of::<V, 5, PAIRS>(values, places, left, stride, product, columns),
                4 => block_of::<V, 4, PAIRS>(values, places, left, stride, product, columns),
                3 => block_of::<V, 3, PAIRS>(values, places, left, stride, product, columns),
                2 => block_of::<V, 2, PAIRS>(values, places, left, stride, product, columns),
                _ => block_of::<V, 1, PAIRS>(values, places, left, stride, product, columns),
            }
            row += height;
        }
    }
}

/// `R` rows times one panel. Every element is one sum over the depth, from the first to the last.
#[inline(always)]
fn block_of<V: Vector, const R: usize, const PAIRS: bool>(
    panel: &[V::T],
    places: usize,
    left: &[V::T],
    stride: usize,
    product: &mut [V::T],
    columns: usize,
) {
    assert!(left.len() >= (R - 1) * stride + places);
    let mut sums = [[V::zero(); PANEL / LANES]; R];
    for (place, right) in
        panel.as_chunks::<LANES>().0.as_chunks::<{ PANEL / LANES }>().0.iter().take(places).enumerate()
    {
        let right = [V::load(&right[0]), V::load(&right[1])];
        // as an iteration this took a tenth longer: the sums did not all stay in registers
        #[allow(clippy::needless_range_loop)]
        for row in 0..R {
            // SAFETY: `place` is below `places`, `row` below `R`, and `left` was found to be long enough for both.
            let factor = V::splat(unsafe { *left.get_unchecked(row * stride + place) });
            for (sum, right) in sums[row].iter_mut().zip(right) {
                *sum = if PAIRS { factor.pairs_plus(right, *sum) } else { factor.times_plus(right, *sum) };
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        let (places, _) = product[row * columns..row * columns + PANEL].as_chunks_mut::<LANES>();
        sums.iter().zip(places).for_each(|(sum, place)| sum.store(place));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Level, Portable, level};

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// Whatever this processor has, whole blocks and parts of them, even and odd numbers of panels.
    fn each_shape(check: impl Fn([usize; 3])) {
        for rows in (1..15).chain([24, 36, 37]) {
            for columns in [1, 16, 17, 48, 64] {
                check([rows, 2 + 2 * (rows % 7), columns]);
            }
        }
    }

    #[test]
    fn products_of_numbers_are_sums_in_order() {
        each_shape(|[rows, depth, columns]| {
            let (left, right) = (numbers(rows * depth, 1), numbers(depth * columns, 2));
            let packed =
                Packed::<f32>::new(depth, columns, |row, column| f64::from(right[row * columns + column]));
            let mut product = vec![7.0; rows * packed.columns()];
            packed.multiply(&left, depth, rows, &mut product);
            for (place, &found) in product.iter().enumerate() {
                let (row, column) = (place / packed.columns(), place % packed.columns());
                let factors = (0..depth).map(|at| (left[row * depth + at], column < columns, at));
                let expected = factors.fold(0.0_f32, |sum, (factor, inside, at)| {
                    let other = if inside { right[at * columns + column] } else { 0.0 };
                    if level() == Level::Base { sum + factor * other } else { factor.mul_add(other, sum) }
                });
                assert_eq!(found, expected, "{rows} rows, depth {depth}, {columns} columns");
            }
        });
    }

    #[test]
    fn products_of_pairs_have_the_same_bits_on_every_processor() {
        each_shape(|[rows, depth, columns]| {
            let (left, right) = (numbers(rows * depth, 3), numbers(depth * columns, 4));
            let value = |row: usize, column: usize| f64::from(right[row * columns + column]);
            let packed = Packed::<f32>::with(Factors::Bf16, depth, columns, value);
            let mut pairs = vec![0.0_f32; left.len() / 2];
            for (place, pair) in pairs.iter_mut().zip(left.as_chunks::<2>().0) {
                *place = f32::pair(*pair);
            }
            let places = depth / 2;
            let [mut found, mut portable] = [7.0, 8.0].map(|fill| vec![fill; rows * packed.columns()]);
            packed.multiply(&pairs, places, rows, &mut found);
            multiply_in::<Portable<f32>, true>(&packed.values, places, &pairs, places, rows, &mut portable);
            assert_eq!(found, portable, "{rows} rows, depth {depth}, {columns} columns");
            let [mut best, mut plain] = [7.0, 8.0].map(|fill| vec![fill; rows * packed.columns()]);
            multiply_pairs(&packed.values, places, &pairs, places, rows, &mut best);
            assert_eq!(best, portable, "in narrow vectors");
            // and they are what the rounded numbers give
            let exact = Packed::<f32>::new(depth, columns, |row, column| {
                let place = f32::pair([value(row, column) as f32, 0.0]);
                f64::from(f32::from_bits(place.to_bits() << 16))
            });
            let rounded: Vec<f32> =
                left.iter().map(|&value| f32::from_bits(f32::pair([value, 0.0]).to_bits() << 16)).collect();
            exact.multiply(&rounded, depth, rows, &mut plain);
            let worst = found.iter().zip(&plain).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs()));
            assert!(worst < 1e-5, "{worst}");
        });
    }

    #[test]
    fn vectors_round_to_bf16_as_numbers_do() {
        let mut values = numbers(4096, 5);
        values.extend([0.0, -0.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::INFINITY, f32::NEG_INFINITY]);
        values.extend([f32::MAX, f32::NAN]);
        let taps = [[0, 0]];
        let expected: Vec<u32> =
            values.as_chunks::<2>().0.iter().map(|&pair| f32::pair(pair).to_bits()).collect();
        let found = crate::patches::pairs_of(&values, &taps);
        assert_eq!(found.iter().map(|pair| pair.to_bits()).collect::<Vec<_>>(), expected);
        let widened = |pair: u32| [f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000)];
        for (pair, kept) in values.as_chunks::<2>().0.iter().zip(&expected) {
            for (value, kept) in pair.iter().zip(widened(*kept)).filter(|(value, _)| value.is_finite()) {
                assert!((kept - value).abs() <= value.abs() / 256.0 || kept.is_infinite(), "{value}: {kept}");
            }
        }
    }
}
