//! The two precisions.

use std::ops::{Add, AddAssign, Mul, Sub};

use crate::simd::{Portable, Vector};

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

    /// The nearest value of this precision.
    fn from_f64(value: f64) -> Self;

    /// Exactly the same value.
    fn to_f64(self) -> f64;

    /// `self * factor + summand`, rounded once.
    fn fused(self, factor: Self, summand: Self) -> Self;
}

impl Real for f32 {
    #[cfg(target_arch = "x86_64")]
    type Wide = crate::simd::Avx2;
    #[cfg(not(target_arch = "x86_64"))]
    type Wide = Portable<f32>;

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
}

impl Real for f64 {
    // only for checking: the compiler makes of it what it can
    type Wide = Portable<f64>;

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
}
