//! Products with a matrix that is known long before: it is packed once, in the order in which it will be read.

use crate::{
    LANES, Real,
    simd::{Vector, dispatch},
};

/// Columns of a panel: two vector registers of f32.
pub(crate) const PANEL: usize = 16;
/// Rows that are worked on together: with two vectors each they leave three of sixteen registers free.
const ROWS: usize = 6;

/// A matrix `[K, N]`, packed in panels of 16 columns, the last one filled with zeros.
#[derive(Clone, Debug)]
pub struct Packed<T> {
    values: Vec<T>,
    depth: usize,
    panels: usize,
}

impl<T: Real> Packed<T> {
    /// Packs the matrix of which `value` gives the element in a row and a column.
    pub fn new(depth: usize, columns: usize, value: impl Fn(usize, usize) -> f64) -> Self {
        let panels = columns.div_ceil(PANEL);
        let mut values = Vec::with_capacity(panels * depth * PANEL);
        for panel in 0..panels {
            for row in 0..depth {
                values.extend(
                    (panel * PANEL..(panel + 1) * PANEL)
                        .map(|column| T::from_f64(if column < columns { value(row, column) } else { 0.0 })),
                );
            }
        }
        Self { values, depth, panels }
    }

    /// Rows of the matrix.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Columns of a product: those of the matrix, filled up to a multiple of 16.
    pub fn columns(&self) -> usize {
        self.panels * PANEL
    }

    /// All numbers: `[panels, K, 16]`.
    pub(crate) fn into_values(self) -> Vec<T> {
        self.values
    }

    /// Writes the product of the `rows` rows in `left`, which lie `stride` apart, to `product`, `[rows, columns]`.
    ///
    /// # Panics
    /// If `left` or `product` are too short.
    pub fn multiply(&self, left: &[T], stride: usize, rows: usize, product: &mut [T]) {
        if rows == 0 {
            return;
        }
        assert!(stride >= self.depth && left.len() >= (rows - 1) * stride + self.depth, "rows lie outside");
        assert!(product.len() >= rows * self.columns(), "no room for the product");
        multiply(&self.values, self.depth, left, stride, rows, product);
    }
}

dispatch!(multiply, multiply_in, (packed: &[T], depth: usize, left: &[T], stride: usize, rows: usize, product: &mut [T]));

/// The product, panel by panel and, within one, in blocks of almost equal numbers of rows: a block of few rows would keep the
/// processor waiting for its own sums.
#[inline(always)]
fn multiply_in<V: Vector>(
    packed: &[V::T],
    depth: usize,
    left: &[V::T],
    stride: usize,
    rows: usize,
    product: &mut [V::T],
) {
    if depth == 0 {
        return product.fill(V::T::default());
    }
    let columns = packed.len() / depth;
    let blocks = rows.div_ceil(ROWS);
    for (panel, values) in packed.chunks_exact(depth * PANEL).enumerate() {
        let mut row = 0;
        for block in 0..blocks {
            let height = (rows - row).div_ceil(blocks - block);
            let left = &left[row * stride..];
            let product = &mut product[row * columns + panel * PANEL..];
            match height {
                6 => block_of::<V, 6>(values, depth, left, stride, product, columns),
                5 => block_of::<V, 5>(values, depth, left, stride, product, columns),
                4 => block_of::<V, 4>(values, depth, left, stride, product, columns),
                3 => block_of::<V, 3>(values, depth, left, stride, product, columns),
                2 => block_of::<V, 2>(values, depth, left, stride, product, columns),
                _ => block_of::<V, 1>(values, depth, left, stride, product, columns),
            }
            row += height;
        }
    }
}

/// `R` rows times one panel. Every element is one sum over the depth, from the first to the last.
#[inline(always)]
fn block_of<V: Vector, const R: usize>(
    panel: &[V::T],
    depth: usize,
    left: &[V::T],
    stride: usize,
    product: &mut [V::T],
    columns: usize,
) {
    assert!(left.len() >= (R - 1) * stride + depth);
    let mut sums = [[V::zero(); PANEL / LANES]; R];
    for (place, right) in
        panel.as_chunks::<LANES>().0.as_chunks::<{ PANEL / LANES }>().0.iter().take(depth).enumerate()
    {
        let right = [V::load(&right[0]), V::load(&right[1])];
        // as an iteration this took a tenth longer: the sums did not all stay in registers
        #[allow(clippy::needless_range_loop)]
        for row in 0..R {
            // SAFETY: `place` is below `depth`, `row` below `R`, and `left` was found to be long enough for both.
            let factor = V::splat(unsafe { *left.get_unchecked(row * stride + place) });
            sums[row][0] = factor.times_plus(right[0], sums[row][0]);
            sums[row][1] = factor.times_plus(right[1], sums[row][1]);
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        let (places, _) = product[row * columns..row * columns + PANEL].as_chunks_mut::<LANES>();
        sums.iter().zip(places).for_each(|(sum, place)| sum.store(place));
    }
}
