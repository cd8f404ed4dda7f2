//! The two precisions.

use std::ops::{Add, AddAssign, Mul, Sub};

use crate::{
    gemm::Product,
    simd::{Portable, Vector},
};

/// `f32` or `f64`.
pub trait Real:
    Copy
    + Default
    + PartialOrd
    + Send
    + Sync
    + std::fmt::Debug
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + AddAssign
    + 'static
{
    /// Eight of them on a processor of [`crate::Level::Avx2`].
    #[doc(hidden)]
    type Wide: Vector<T = Self>;

    /// Eight of them on a processor of [`crate::Level::Avx512Bf16`].
    #[doc(hidden)]
    type Wider: Vector<T = Self>;

    /// Whether two bf16 fit into the place of one.
    #[doc(hidden)]
    const HOLDS_PAIRS: bool;

    /// Two numbers, rounded to bf16, in the place of one: the first in the lower half of its bits.
    #[doc(hidden)]
    fn pair(numbers: [Self; 2]) -> Self;

    /// As [`Vector::pairs_plus`], for one place.
    #[doc(hidden)]
    fn pairs_plus(self, factor: Self, summand: Self) -> Self;

    /// [`crate::Packed::multiply`] in 512-bit vectors, where there are any; false where there are none. A place of `packed` and
    /// `left` is a number or, with `PAIRS`, a pair.
    #[doc(hidden)]
    fn multiply_wide<const PAIRS: bool>(product: Product<'_, Self>) -> bool {
        let _ = product;
        false
    }

    /// The nearest value of this precision.
    fn from_f64(value: f64) -> Self;

    /// Exactly the same value.
    fn to_f64(self) -> f64;

    /// `self * factor + summand`, rounded once.
    fn fused(self, factor: Self, summand: Self) -> Self;

    /// `1 / (1 + exp(-self))`.
    fn sigmoid(self) -> Self;
}

impl Real for f32 {
    #[cfg(target_arch = "x86_64")]
    type Wide = crate::simd::Avx2;
    #[cfg(not(target_arch = "x86_64"))]
    type Wide = Portable<f32>;
    #[cfg(target_arch = "x86_64")]
    type Wider = crate::simd::Avx512;
    #[cfg(not(target_arch = "x86_64"))]
    type Wider = Portable<f32>;
    const HOLDS_PAIRS: bool = true;

    #[inline(always)]
    fn pair(numbers: [Self; 2]) -> Self {
        let [first, second] = numbers.map(to_bf16);
        f32::from_bits(second << 16 | first)
    }

    #[inline(always)]
    fn pairs_plus(self, factor: Self, summand: Self) -> Self {
        let second = |place: f32| f32::from_bits(place.to_bits() & 0xffff_0000);
        let first = |place: f32| f32::from_bits(place.to_bits() << 16);
        // products of two bf16 are exact, so that rounding happens in the sums only
        (summand + second(self) * second(factor)) + first(self) * first(factor)
    }

    #[cfg(target_arch = "x86_64")]
    fn multiply_wide<const PAIRS: bool>(product: Product<'_, Self>) -> bool {
        crate::gemm::wide::multiply::<PAIRS>(product)
    }

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as f32
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn fused(self, factor: Self, summand: Self) -> Self {
        self.mul_add(factor, summand)
    }

    #[inline(always)]
    fn sigmoid(self) -> Self {
        // Adding 1.5 * 2^23 leaves no room for digits behind the point: what stays is rounded, and an integer in its last bits.
        const ROUND: f32 = 12_582_912.0;
        // beyond these the result is 0 or 1 to the last digit
        let exponent = (self * -std::f32::consts::LOG2_E).clamp(-126.0, 126.0);
        let whole = exponent + ROUND;
        let rest = (exponent - (whole - ROUND)) * std::f32::consts::LN_2;
        // exp on -0.35 to 0.35 by its series: what is left out is below 6e-9
        let mut power = 1.0 / 5040.0;
        for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            power = power * rest + factor;
        }
        let scale = f32::from_bits(whole.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
        1.0 / (1.0 + power * scale)
    }
}

impl Real for f64 {
    // only for checking: the compiler makes of it what it can
    type Wide = Portable<f64>;
    type Wider = Portable<f64>;
    const HOLDS_PAIRS: bool = false;

    fn pair([first, _]: [Self; 2]) -> Self {
        first
    }

    fn pairs_plus(self, factor: Self, summand: Self) -> Self {
        summand + self * factor
    }

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }

    #[inline(always)]
    fn fused(self, factor: Self, summand: Self) -> Self {
        self.mul_add(factor, summand)
    }
    #[inline(always)]
    fn sigmoid(self) -> Self {
        1.0 / (1.0 + (-self).exp())
    }
}

/// The nearest bf16, of two the even one, in the lower half. Not a number stays that.
fn to_bf16(value: f32) -> u32 {
    let bits = value.to_bits();
    if value.is_nan() {
        return bits >> 16 | 0x40;
    }
    (bits + 0x7fff + (bits >> 16 & 1)) >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quick_sigmoid_is_the_sigmoid() {
        for step in -4000..=4000 {
            let x = step as f32 / 20.0;
            let (found, expected) = (f64::from(x.sigmoid()), f64::from(x).sigmoid());
            // far out the exponent itself has lost digits, where nobody looks for any
            let bound = (2e-7 + 1e-7 * f64::from(x.abs())) * expected + 1e-37;
            assert!((found - expected).abs() <= bound, "{x}: {found} for {expected}");
        }
        assert_eq!((f32::INFINITY.sigmoid(), f32::NEG_INFINITY.sigmoid() < 1e-30), (1.0, true));
    }
}
