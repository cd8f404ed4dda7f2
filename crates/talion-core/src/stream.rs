//! Randomness that belongs to a sample, not to a batch.
//!
//! Every draw comes from a ChaCha8 stream keyed by (run seed, purpose, repetition, sample id). A result therefore does
//! not depend on the batch a sample sat in, on the order of the samples, on sharding or on resuming.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use tch::{Kind, Tensor};

/// The random stream of one sample for one purpose.
///
/// Integers and floats are derived here rather than by a distribution crate, because those do not promise the same
/// values from one release to the next and a robustness figure must stay reproducible.
pub struct SampleStream(ChaCha8Rng);

impl SampleStream {
    /// The stream of sample `id` for `purpose` (an attack's name, `"augment"`, ...) at `repetition` (a restart, an epoch).
    #[must_use]
    pub fn new(seed: u64, purpose: &str, repetition: u64, id: u64) -> Self {
        let mut key = [0; 32];
        let words = [seed, fnv1a(purpose.as_bytes()), repetition, id];
        for (slot, word) in key.chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// A float in `[0, 1)` with 24 random bits.
    pub fn uniform(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// An integer in `0..bound` (Lemire's multiply-shift; the bias is below 2^-32 for the bounds used here).
    ///
    /// `bound` 0 gives 0.
    pub fn below(&mut self, bound: u32) -> u32 {
        ((u64::from(self.0.next_u32()) * u64::from(bound)) >> 32) as u32
    }

    /// Two independent standard normal draws (Box and Muller 1958).
    pub fn normal_pair(&mut self) -> (f32, f32) {
        // 1 - u lies in (0, 1], so the logarithm is finite
        let radius = (-2.0 * (1.0 - f64::from(self.uniform())).ln()).sqrt();
        let angle = std::f64::consts::TAU * f64::from(self.uniform());
        ((radius * angle.cos()) as f32, (radius * angle.sin()) as f32)
    }
}

/// Uniform draws in `[-1, 1)`, a row for each sample id.
///
/// # Shapes
/// `row` is the shape of one sample; the result is `[ids.len(), row..]`, `f32`, on the CPU.
pub fn uniform_noise(row: &[i64], ids: &[u64], seed: u64, purpose: &str, repetition: u64) -> Tensor {
    noise(row, ids, |id, values| {
        let mut stream = SampleStream::new(seed, purpose, repetition, id);
        values.iter_mut().for_each(|value| *value = 2.0 * stream.uniform() - 1.0);
    })
}

/// Standard normal draws, a row for each sample id.
///
/// # Shapes
/// `row` is the shape of one sample; the result is `[ids.len(), row..]`, `f32`, on the CPU.
pub fn gaussian_noise(row: &[i64], ids: &[u64], seed: u64, purpose: &str, repetition: u64) -> Tensor {
    noise(row, ids, |id, values| {
        let mut stream = SampleStream::new(seed, purpose, repetition, id);
        for pair in values.chunks_mut(2) {
            let (first, second) = stream.normal_pair();
            pair[0] = first;
            if let Some(slot) = pair.get_mut(1) {
                *slot = second;
            }
        }
    })
}

/// `0..count` in a random order that depends on the key alone (Fisher and Yates).
#[must_use]
pub fn shuffled(count: usize, seed: u64, purpose: &str, repetition: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut stream = SampleStream::new(seed, purpose, repetition, count as u64);
    for last in (1..count).rev() {
        order.swap(last, stream.below(last as u32 + 1) as usize);
    }
    order
}

fn noise(row: &[i64], ids: &[u64], fill: impl Fn(u64, &mut [f32])) -> Tensor {
    let size = row.iter().product::<i64>().max(0) as usize;
    let mut values = vec![0_f32; size * ids.len()];
    if size > 0 {
        values.chunks_mut(size).zip(ids).for_each(|(chunk, &id)| fill(id, chunk));
    }
    let shape: Vec<i64> = std::iter::once(ids.len() as i64).chain(row.iter().copied()).collect();
    Tensor::from_slice(&values).to_kind(Kind::Float).reshape(shape)
}

/// FNV-1a: a fixed hash, since the standard library's may change between releases.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_depends_on_its_id_and_not_on_its_place() {
        let both = uniform_noise(&[3, 4], &[7, 9], 1, "pgd", 0);
        let swapped = uniform_noise(&[3, 4], &[9, 7], 1, "pgd", 0);
        assert_eq!(both.get(0), swapped.get(1));
        assert_eq!(both.get(1), swapped.get(0));
        assert_ne!(both.get(0), both.get(1));
    }

    #[test]
    fn every_part_of_the_key_matters() {
        let base = uniform_noise(&[8], &[1], 1, "pgd", 0);
        assert_ne!(base, uniform_noise(&[8], &[1], 2, "pgd", 0));
        assert_ne!(base, uniform_noise(&[8], &[1], 1, "mim", 0));
        assert_ne!(base, uniform_noise(&[8], &[1], 1, "pgd", 1));
    }

    #[test]
    fn draws_have_the_moments_of_their_distribution() {
        let uniform = uniform_noise(&[100_000], &[3], 5, "moments", 0);
        assert!(uniform.min().double_value(&[]) >= -1.0 && uniform.max().double_value(&[]) < 1.0);
        assert!(uniform.mean(Kind::Double).double_value(&[]).abs() < 0.01);
        let normal = gaussian_noise(&[100_000], &[3], 5, "moments", 0);
        assert!(normal.mean(Kind::Double).double_value(&[]).abs() < 0.015);
        assert!((normal.std(true).double_value(&[]) - 1.0).abs() < 0.01);
    }

    #[test]
    fn values_are_fixed_for_ever() {
        // A figure published with a seed must be reproducible by every later release.
        let mut stream = SampleStream::new(1, "pgd", 2, 3);
        let draws: Vec<u32> = (0..4).map(|_| stream.below(1000)).collect();
        assert_eq!(draws, FIRST_DRAWS);
    }

    const FIRST_DRAWS: [u32; 4] = [455, 219, 884, 936];

    #[test]
    fn shuffling_permutes() {
        let mut order = shuffled(1000, 1, "order", 0);
        assert_ne!(order, shuffled(1000, 1, "order", 1));
        order.sort_unstable();
        assert_eq!(order, (0..1000).collect::<Vec<_>>());
    }
}
