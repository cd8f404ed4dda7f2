//! Sums of outer products: what the gradient of a matrix of weights is made of.
//!
//! Both sides are read where they lie. A place is a pixel or a tile, and at every place the numbers of a side are at the same
//! distances, whatever these are: nothing has to be laid side by side before.

use crate::{
    LANES, Real,
    bits::{lanes, lanes_mut},
    simd::{Vector, dispatch},
};

/// Rows that are worked on together: with two vectors each they leave three of sixteen registers free.
const ROWS: usize = 6;
/// Vectors that are worked on together where there are one, two or three rows: enough sums to keep the processor from waiting
/// for its own.
const VECTORS: [usize; 3] = [6, 4, 3];

/// One side of the products.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a, T> {
    pub values: &'a [T],
    /// What is read at every place, counted from it: numbers on the left, vectors of eight on the right.
    pub offsets: &'a [usize],
}

/// Where both sides begin at each place.
pub(crate) struct Places {
    pairs: Vec<[usize; 2]>,
    /// The highest of either side.
    last: [usize; 2],
}

impl Places {
    pub(crate) fn new(pairs: Vec<[usize; 2]>) -> Self {
        let last = [0, 1].map(|side| pairs.iter().map(|pair| pair[side]).max().unwrap_or(0));
        Self { pairs, last }
    }
}

/// Adds the outer products of both sides at all places to `sums`, `[left.offsets, right.offsets, 8]`. What is added to an
/// element is one sum from the first place to the last.
///
/// # Panics
/// If something would be read outside of an operand, or there is no room for the sums.
pub(crate) fn add_products<T: Real>(
    left: Operand<'_, T>,
    right: Operand<'_, T>,
    places: &Places,
    sums: &mut [T],
) {
    add(left, right, places, sums);
}

dispatch!(add, add_in, (left: Operand<'_, T>, right: Operand<'_, T>, places: &Places, sums: &mut [T]));

/// Some vectors at a time of blocks of almost equal numbers of rows, as in a product.
#[inline(always)]
fn add_in<V: Vector>(left: Operand<'_, V::T>, right: Operand<'_, V::T>, places: &Places, sums: &mut [V::T]) {
    let (Some(last), Some(last_vector)) = (left.offsets.iter().max(), right.offsets.iter().max()) else {
        return;
    };
    if places.pairs.is_empty() {
        return;
    }
    assert!(left.values.len() > places.last[0] + last, "numbers lie outside");
    assert!(right.values.len() >= places.last[1] + last_vector + LANES, "vectors lie outside");
    let (rows, vectors) = (left.offsets.len(), right.offsets.len());
    let widest = VECTORS.get(rows - 1).copied().unwrap_or(2);
    let blocks = rows.div_ceil(ROWS);
    let mut vector = 0;
    while vector < vectors {
        let width = [widest, 2, 1].into_iter().find(|&width| width <= vectors - vector).unwrap_or(1);
        let mut row = 0;
        for block in 0..blocks {
            let height = (rows - row).div_ceil(blocks - block);
            let sums = &mut sums[(row * vectors + vector) * LANES..];
            let left = Operand { values: left.values, offsets: &left.offsets[row..row + height] };
            let right = Operand { values: right.values, offsets: &right.offsets[vector..vector + width] };
            let stride = vectors * LANES;
            // SAFETY: the highest place with the highest offset was just found to lie inside, on either side.
            unsafe {
                match (height, width) {
                    (6, 2) => block_of::<V, 6, 2>(left, right, &places.pairs, sums, stride),
                    (5, 2) => block_of::<V, 5, 2>(left, right, &places.pairs, sums, stride),
                    (4, 2) => block_of::<V, 4, 2>(left, right, &places.pairs, sums, stride),
                    (3, 2) => block_of::<V, 3, 2>(left, right, &places.pairs, sums, stride),
                    (2, 2) => block_of::<V, 2, 2>(left, right, &places.pairs, sums, stride),
                    (1, 2) => block_of::<V, 1, 2>(left, right, &places.pairs, sums, stride),
                    (6, 1) => block_of::<V, 6, 1>(left, right, &places.pairs, sums, stride),
                    (5, 1) => block_of::<V, 5, 1>(left, right, &places.pairs, sums, stride),
                    (4, 1) => block_of::<V, 4, 1>(left, right, &places.pairs, sums, stride),
                    (3, 1) => block_of::<V, 3, 1>(left, right, &places.pairs, sums, stride),
                    (2, 1) => block_of::<V, 2, 1>(left, right, &places.pairs, sums, stride),
                    (3, _) => block_of::<V, 3, 3>(left, right, &places.pairs, sums, stride),
                    (2, _) => block_of::<V, 2, 4>(left, right, &places.pairs, sums, stride),
                    (_, 1) => block_of::<V, 1, 1>(left, right, &places.pairs, sums, stride),
                    _ => block_of::<V, 1, 6>(left, right, &places.pairs, sums, stride),
                }
            }
            row += height;
        }
        vector += width;
    }
}

/// `R` rows times `W` vectors.
///
/// # Safety
/// At every place there has to be a number for each offset on the left, and a vector on the right.
#[inline(always)]
unsafe fn block_of<V: Vector, const R: usize, const W: usize>(
    left: Operand<'_, V::T>,
    right: Operand<'_, V::T>,
    places: &[[usize; 2]],
    totals: &mut [V::T],
    stride: usize,
) {
    let (Some(rows), Some(vectors)) = (left.offsets.first_chunk::<R>(), right.offsets.first_chunk::<W>())
    else {
        panic!("a block is too small");
    };
    // copies that nothing else can change stay in registers
    let (rows, vectors) = (*rows, *vectors);
    let mut sums = [[V::zero(); W]; R];
    for &[from, to] in places {
        let mut factors = [V::zero(); W];
        for (factor, vector) in factors.iter_mut().zip(vectors) {
            // SAFETY: the caller has made sure that there is a vector; an array is aligned as its elements are.
            *factor = V::load(unsafe { &*right.values.as_ptr().add(to + vector).cast::<[V::T; LANES]>() });
        }
        #[allow(clippy::needless_range_loop)] // as in a product: indices keep the sums in registers
        for row in 0..R {
            // SAFETY: the caller has made sure that there is a number.
            let number = V::splat(unsafe { *left.values.get_unchecked(from + rows[row]) });
            for vector in 0..W {
                sums[row][vector] = number.times_plus(factors[vector], sums[row][vector]);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (vector, sum) in sums.iter().enumerate() {
            let at = row * stride + vector * LANES;
            V::load(lanes(totals, at)).plus(*sum).store(lanes_mut(totals, at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every shape of a block, with offsets and places in no order.
    #[test]
    fn sums_are_those_of_the_products() {
        let numbers: Vec<f64> = (0..500).map(|place| f64::from(place * 37 % 101) - 50.0).collect();
        let places: Vec<[usize; 2]> = (0..9).map(|place| [place * 5 % 9 * 20, place * 7 % 9 * 11]).collect();
        for rows in 1..15_usize {
            for vectors in 1..15_usize {
                let lefts: Vec<usize> = (0..rows).map(|row| row * 11 % rows * 3).collect();
                let rights: Vec<usize> = (0..vectors).map(|vector| (vectors - vector) * 9).collect();
                let mut found = vec![1.0; rows * vectors * LANES];
                let left = Operand { values: &numbers, offsets: &lefts };
                let right = Operand { values: &numbers[7..], offsets: &rights };
                add_products(left, right, &Places::new(places.clone()), &mut found);
                let element = |place: usize| {
                    let (row, vector) = (place / (vectors * LANES), place / LANES % vectors);
                    let product = |&[from, to]: &[usize; 2]| {
                        numbers[from + lefts[row]] * numbers[7 + to + rights[vector] + place % LANES]
                    };
                    1.0 + places.iter().map(product).sum::<f64>()
                };
                let expected: Vec<f64> = (0..found.len()).map(element).collect();
                assert_eq!(found, expected, "{rows} rows, {vectors} vectors");
            }
        }
    }

    #[test]
    fn nothing_is_added_for_no_place() {
        let operand = Operand { values: &[] as &[f32], offsets: &[0] };
        let mut sums = [3.0; LANES];
        add_products(operand, operand, &Places::new(Vec::new()), &mut sums);
        assert_eq!(sums, [3.0; LANES]);
    }

    #[test]
    #[should_panic(expected = "numbers lie outside")]
    fn numbers_behind_the_end_are_not_read() {
        let (left, right) = ([0.0_f32; 10], [0.0_f32; 20]);
        let operands =
            [Operand { values: &left, offsets: &[0, 5] }, Operand { values: &right, offsets: &[8] }];
        add_products(operands[0], operands[1], &Places::new(vec![[5, 0], [0, 4]]), &mut [0.0; 16]);
    }

    #[test]
    #[should_panic(expected = "vectors lie outside")]
    fn vectors_behind_the_end_are_not_read() {
        let (left, right) = ([0.0_f32; 11], [0.0_f32; 19]);
        let operands =
            [Operand { values: &left, offsets: &[0, 5] }, Operand { values: &right, offsets: &[8] }];
        add_products(operands[0], operands[1], &Places::new(vec![[5, 0], [0, 4]]), &mut [0.0; 16]);
    }
}
