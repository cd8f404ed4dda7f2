//! The same products in 512-bit vectors, whose sums are taken in the same order and so have the same bits.

use std::arch::x86_64::*;

use super::{PANEL, Product};
use crate::simd::{Level, level};

/// Rows that are worked on together: with two panels they leave six of 32 registers for what is multiplied.
const ROWS: usize = 12;

/// A register of a panel's sixteen sums. Made only in [`multiply_in`], whose callers have all features that are used here, which
/// is the SAFETY of every instruction.
#[derive(Clone, Copy)]
struct Wide(__m512);

impl Wide {
    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: see the type.
        Self(unsafe { _mm512_setzero_ps() })
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: see the type.
        Self(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    fn load(values: &[f32; PANEL]) -> Self {
        // SAFETY: see the type; the array has sixteen numbers, and the instruction wants no alignment.
        Self(unsafe { _mm512_loadu_ps(values.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, values: &mut [f32; PANEL]) {
        // SAFETY: see the type; the array has sixteen numbers, and the instruction wants no alignment.
        unsafe { _mm512_storeu_ps(values.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn times_plus<const PAIRS: bool>(self, factor: Self, summand: Self) -> Self {
        // SAFETY: see the type; pairs of bf16 are 512 bits like any others.
        unsafe {
            if PAIRS {
                let pairs = |values: __m512| std::mem::transmute::<__m512, __m512bh>(values);
                Self(_mm512_dpbf16_ps(summand.0, pairs(self.0), pairs(factor.0)))
            } else {
                Self(_mm512_fmadd_ps(self.0, factor.0, summand.0))
            }
        }
    }
}

/// Writes the product, if this processor can.
pub(crate) fn multiply<const PAIRS: bool>(product: Product<'_, f32>) -> bool {
    if level() < Level::Avx512Bf16 {
        return false;
    }
    // SAFETY: `level` has just found these features.
    unsafe { multiply_here::<PAIRS>(product) };
    true
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn multiply_here<const PAIRS: bool>(product: Product<'_, f32>) {
    multiply_in::<PAIRS>(product);
}

/// Two panels at a time, and the last one alone where there is an odd number.
#[inline(always)]
fn multiply_in<const PAIRS: bool>(call: Product<'_, f32>) {
    let Product { packed, places, left, stride, rows, product } = call;
    if places == 0 {
        return product.fill(0.0);
    }
    let panel = places * PANEL;
    let columns = packed.len() / places;
    let blocks = rows.div_ceil(ROWS);
    let mut chunks = packed.chunks(2 * panel);
    for first in (0..columns).step_by(2 * PANEL) {
        let Some(panels) = chunks.next() else { return };
        let two = panels.len() > panel;
        let mut row = 0;
        for block in 0..blocks {
            let height = (rows - row).div_ceil(blocks - block);
            let (left, product) = (&left[row * stride..], &mut product[row * columns + first..]);
            macro_rules! heights {
                ($($height:literal)*) => {
                    match (height, two) {
                        $(($height, true) => block_of::<$height, 2, PAIRS>(panels, places, left, stride, product, columns),
                        ($height, false) => block_of::<$height, 1, PAIRS>(panels, places, left, stride, product, columns),)*
                        _ => unreachable!("a block has 1 to 12 rows"),
                    }
                };
            }
            heights!(1 2 3 4 5 6 7 8 9 10 11 12);
            row += height;
        }
    }
}

/// `R` rows times `P` panels. Every element is one sum over the depth, from the first to the last.
#[inline(always)]
fn block_of<const R: usize, const P: usize, const PAIRS: bool>(
    panels: &[f32],
    places: usize,
    left: &[f32],
    stride: usize,
    product: &mut [f32],
    columns: usize,
) {
    let right: [&[[f32; PANEL]]; P] = std::array::from_fn(|panel| {
        &panels[panel * places * PANEL..(panel + 1) * places * PANEL].as_chunks::<PANEL>().0[..places]
    });
    assert!(left.len() >= (R - 1) * stride + places);
    let mut sums = [[Wide::zero(); P]; R];
    for place in 0..places {
        let right: [Wide; P] = std::array::from_fn(|panel| Wide::load(&right[panel][place]));
        #[allow(clippy::needless_range_loop)] // an iteration would not keep all sums in registers
        for row in 0..R {
            // SAFETY: `place` is below `places`, `row` below `R`, and `left` was found to be long enough for both.
            let factor = Wide::splat(unsafe { *left.get_unchecked(row * stride + place) });
            for panel in 0..P {
                sums[row][panel] = factor.times_plus::<PAIRS>(right[panel], sums[row][panel]);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        let (room, _) = product[row * columns..row * columns + P * PANEL].as_chunks_mut::<PANEL>();
        sums.iter().zip(room).for_each(|(sum, place)| sum.store(place));
    }
}
