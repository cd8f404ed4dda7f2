//! One source for every processor: kernels are written for eight numbers at a time, and compiled once for what the processor
//! is known to have and once for what it may have.

use crate::{LANES, Real};

/// What the kernels use of this processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every processor of this kind has.
    Base,
    /// 256-bit vectors with fused multiplication and addition.
    Avx2,
    /// The same with twice as many registers, 512-bit vectors for products, and products of bf16 (Intel since Cooper Lake, AMD
    /// since Zen 4). Results in f32 are those of `Avx2`, bit for bit.
    Avx512Bf16,
}

impl Level {
    /// Whether products of bf16 are faster than those of f32.
    pub fn has_bf16(self) -> bool {
        self == Self::Avx512Bf16
    }
}

/// What this processor has.
pub fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        let wider = std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512dq")
            && std::arch::is_x86_feature_detected!("avx512vl")
            && std::arch::is_x86_feature_detected!("avx512bf16");
        return if wider { Level::Avx512Bf16 } else { Level::Avx2 };
    }
    Level::Base
}

/// Eight numbers.
#[doc(hidden)]
pub trait Vector: Copy {
    /// What they are.
    type T: Real;

    /// Eight times the same.
    fn splat(value: Self::T) -> Self;
    /// The first eight of `values`.
    fn load(values: &[Self::T; LANES]) -> Self;
    /// Writes all eight.
    fn store(self, values: &mut [Self::T; LANES]);
    /// The sums.
    fn plus(self, other: Self) -> Self;
    /// The differences.
    fn minus(self, other: Self) -> Self;
    /// The products.
    fn times(self, other: Self) -> Self;
    /// `self * factor + summand`.
    fn times_plus(self, factor: Self, summand: Self) -> Self;
    /// The larger ones of these and of zero, and a bit for each that was above zero, the first one lowest.
    fn rectified(self) -> (Self, u8);
    /// Zero where the bit is not set.
    fn where_set(self, bits: u8) -> Self;

    /// Writes all eight as bf16, rounded to the nearest and of two to the even one, two to a place: see
    /// [`Real::pair`]. Subnormal numbers may become zero, here and in [`Vector::pairs_plus`]: instructions for bf16 know none.
    fn store_pairs(self, places: &mut [Self::T; PAIRS]);
    /// Of eight places with two bf16 each: `summand` plus the product of the second ones, plus that of the first ones, rounded
    /// after each sum.
    fn pairs_plus(self, factor: Self, summand: Self) -> Self;

    /// Eight zeros.
    #[inline(always)]
    fn zero() -> Self {
        Self::splat(Self::T::default())
    }
}

/// Places that eight numbers take as bf16.
pub(crate) const PAIRS: usize = LANES / 2;

/// Eight numbers in an array: works everywhere.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Portable<T>([T; LANES]);

impl<T: Real> Portable<T> {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(T, T) -> T) -> Self {
        Self(std::array::from_fn(|lane| f(self.0[lane], other.0[lane])))
    }
}

impl<T: Real> Vector for Portable<T> {
    type T = T;

    #[inline(always)]
    fn splat(value: T) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    fn load(values: &[T; LANES]) -> Self {
        Self(*values)
    }

    #[inline(always)]
    fn store(self, values: &mut [T; LANES]) {
        *values = self.0;
    }

    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn times(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn times_plus(self, factor: Self, summand: Self) -> Self {
        Self(std::array::from_fn(|lane| {
            if cfg!(target_arch = "aarch64") {
                self.0[lane].fused(factor.0[lane], summand.0[lane])
            } else {
                // where the processor may lack the instruction, rounding once would be a call into a library
                self.0[lane] * factor.0[lane] + summand.0[lane]
            }
        }))
    }

    #[inline(always)]
    fn rectified(self) -> (Self, u8) {
        let zero = T::default();
        let bits = (0..LANES).fold(0, |bits, lane| bits | (u8::from(self.0[lane] > zero) << lane));
        (Self(self.0.map(|value| if value > zero { value } else { zero })), bits)
    }

    #[inline(always)]
    fn where_set(self, bits: u8) -> Self {
        Self(std::array::from_fn(|lane| if bits >> lane & 1 == 1 { self.0[lane] } else { T::default() }))
    }

    #[inline(always)]
    fn store_pairs(self, places: &mut [T; PAIRS]) {
        for (place, pair) in places.iter_mut().zip(self.0.as_chunks::<2>().0) {
            *place = T::pair(*pair);
        }
    }

    #[inline(always)]
    fn pairs_plus(self, factor: Self, summand: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane].pairs_plus(factor.0[lane], summand.0[lane])))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, PAIRS, Portable, Vector};

    /// A register of eight f32. Made only in functions that [`super::dispatch`] calls after it has found AVX2 and FMA, which
    /// is why every instruction below may be used: that is the SAFETY of each.
    #[doc(hidden)]
    #[derive(Clone, Copy, Debug)]
    pub struct Avx2(__m256);

    impl Vector for Avx2 {
        type T = f32;

        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: see the type.
            Self(unsafe { _mm256_set1_ps(value) })
        }

        #[inline(always)]
        fn load(values: &[f32; LANES]) -> Self {
            // SAFETY: see the type; the array has eight numbers, and the instruction wants no alignment.
            Self(unsafe { _mm256_loadu_ps(values.as_ptr()) })
        }

        #[inline(always)]
        fn store(self, values: &mut [f32; LANES]) {
            // SAFETY: see the type; the array has eight numbers, and the instruction wants no alignment.
            unsafe { _mm256_storeu_ps(values.as_mut_ptr(), self.0) }
        }

        #[inline(always)]
        fn plus(self, other: Self) -> Self {
            // SAFETY: see the type.
            Self(unsafe { _mm256_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn minus(self, other: Self) -> Self {
            // SAFETY: see the type.
            Self(unsafe { _mm256_sub_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn times(self, other: Self) -> Self {
            // SAFETY: see the type.
            Self(unsafe { _mm256_mul_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn times_plus(self, factor: Self, summand: Self) -> Self {
            // SAFETY: see the type.
            Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, summand.0) })
        }

        #[inline(always)]
        fn rectified(self) -> (Self, u8) {
            // SAFETY: see the type.
            unsafe {
                let above = _mm256_cmp_ps::<_CMP_GT_OQ>(self.0, _mm256_setzero_ps());
                (Self(_mm256_and_ps(self.0, above)), _mm256_movemask_ps(above) as u8)
            }
        }

        #[inline(always)]
        fn where_set(self, bits: u8) -> Self {
            // SAFETY: see the type.
            unsafe {
                let places = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
                let set = _mm256_and_si256(_mm256_set1_epi32(i32::from(bits)), places);
                let mask = _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, places));
                Self(_mm256_and_ps(self.0, mask))
            }
        }

        // these two only for tests and for completeness: without the instructions bf16 is no faster
        #[inline(always)]
        fn store_pairs(self, places: &mut [f32; PAIRS]) {
            let mut values = [0.0; LANES];
            self.store(&mut values);
            Portable::load(&values).store_pairs(places);
        }

        #[inline(always)]
        fn pairs_plus(self, factor: Self, summand: Self) -> Self {
            // SAFETY: see the type.
            unsafe {
                let second = |values: __m256| {
                    let bits = _mm256_castps_si256(values);
                    _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(0xffff_0000_u32 as i32)))
                };
                let first = |values: __m256| {
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(values)))
                };
                let sum = _mm256_fmadd_ps(second(self.0), second(factor.0), summand.0);
                Self(_mm256_fmadd_ps(first(self.0), first(factor.0), sum))
            }
        }
    }

    /// A register of eight f32 on a processor of [`super::Level::Avx512Bf16`]: what [`Avx2`] is, and SAFETY for the same reason.
    #[doc(hidden)]
    #[derive(Clone, Copy, Debug)]
    pub struct Avx512(__m256);

    impl Vector for Avx512 {
        type T = f32;

        #[inline(always)]
        fn splat(value: f32) -> Self {
            Self(Avx2::splat(value).0)
        }

        #[inline(always)]
        fn load(values: &[f32; LANES]) -> Self {
            Self(Avx2::load(values).0)
        }

        #[inline(always)]
        fn store(self, values: &mut [f32; LANES]) {
            Avx2(self.0).store(values);
        }

        #[inline(always)]
        fn plus(self, other: Self) -> Self {
            Self(Avx2(self.0).plus(Avx2(other.0)).0)
        }

        #[inline(always)]
        fn minus(self, other: Self) -> Self {
            Self(Avx2(self.0).minus(Avx2(other.0)).0)
        }

        #[inline(always)]
        fn times(self, other: Self) -> Self {
            Self(Avx2(self.0).times(Avx2(other.0)).0)
        }

        #[inline(always)]
        fn times_plus(self, factor: Self, summand: Self) -> Self {
            Self(Avx2(self.0).times_plus(Avx2(factor.0), Avx2(summand.0)).0)
        }

        #[inline(always)]
        fn rectified(self) -> (Self, u8) {
            // SAFETY: see the type.
            unsafe {
                let above = _mm256_cmp_ps_mask::<_CMP_GT_OQ>(self.0, _mm256_setzero_ps());
                (Self(_mm256_maskz_mov_ps(above, self.0)), above)
            }
        }

        #[inline(always)]
        fn where_set(self, bits: u8) -> Self {
            // SAFETY: see the type.
            Self(unsafe { _mm256_maskz_mov_ps(bits, self.0) })
        }

        #[inline(always)]
        fn store_pairs(self, places: &mut [f32; PAIRS]) {
            // SAFETY: see the type; the array has 16 bytes, and the instruction wants no alignment.
            unsafe {
                let pairs: __m128i = std::mem::transmute(_mm256_cvtneps_pbh(self.0));
                _mm_storeu_si128(places.as_mut_ptr().cast(), pairs);
            }
        }

        #[inline(always)]
        fn pairs_plus(self, factor: Self, summand: Self) -> Self {
            // SAFETY: see the type; all these types are 256 bits without a meaning of their own.
            unsafe {
                let pairs = |values: __m256| std::mem::transmute::<__m256, __m256bh>(values);
                Self(_mm256_dpbf16_ps(summand.0, pairs(self.0), pairs(factor.0)))
            }
        }
    }
}
#[cfg(target_arch = "x86_64")]
#[doc(hidden)]
pub use x86::{Avx2, Avx512};

/// Makes a function that calls the generic `$body::<V>`, or `$body::<V, FLAG>`, compiled for the best that this processor has.
macro_rules! dispatch {
    ($(#[$doc:meta])* $name:ident, $body:ident $([$flag:literal])?, ($($argument:ident: $type:ty),* $(,)?)) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        fn $name<T: $crate::Real>($($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn wide<T: $crate::Real>($($argument: $type),*) {
                    $body::<T::Wide $(, $flag)?>($($argument),*);
                }
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
                #[allow(clippy::too_many_arguments)]
                fn wider<T: $crate::Real>($($argument: $type),*) {
                    $body::<T::Wider $(, $flag)?>($($argument),*);
                }
                match $crate::simd::level() {
                    // SAFETY: `level` has just found that this processor has all these features.
                    $crate::simd::Level::Avx512Bf16 => return unsafe { wider($($argument),*) },
                    // SAFETY: the same.
                    $crate::simd::Level::Avx2 => return unsafe { wide($($argument),*) },
                    $crate::simd::Level::Base => {}
                }
            }
            $body::<$crate::simd::Portable<T> $(, $flag)?>($($argument),*);
        }
    };
}
pub(crate) use dispatch;
