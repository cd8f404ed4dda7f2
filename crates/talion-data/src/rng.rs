//! Random draws whose values are part of the crate's promise: the same seed gives the same split and the same
//! augmentation in every release. Hence a named generator (ChaCha8) and integer draws of our own: `rand` may change
//! how its helpers turn bits into numbers.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// What a stream is for. Streams of different purposes never share draws, even with the same keys.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    Split = 1,
    Augment = 2,
}

/// A stream of draws that depends on its keys alone.
pub(crate) struct Stream(ChaCha8Rng);

impl Stream {
    pub fn new(purpose: Purpose, keys: [u64; 3]) -> Self {
        let mut seed = [0; 32];
        let words = [purpose as u64, keys[0], keys[1], keys[2]];
        for (bytes, word) in seed.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(seed))
    }

    /// A number below `bound`; 0 if the bound is 0. Multiply-and-shift: the bias is below `bound` / 2^64, and a draw
    /// always consumes exactly one word, which a rejection loop would not.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.0.next_u64()) * bound as u128) >> 64) as usize
    }

    /// Shuffles in place (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_stay_the_same_from_release_to_release() {
        let mut stream = Stream::new(Purpose::Split, [7, 0, 0]);
        let mut order: Vec<usize> = (0..10).collect();
        stream.shuffle(&mut order);
        assert_eq!(order, [7, 4, 8, 2, 0, 1, 5, 9, 3, 6]);
    }

    #[test]
    fn draws_are_below_their_bound_and_reach_all_values() {
        let mut stream = Stream::new(Purpose::Augment, [1, 2, 3]);
        let mut seen = [0; 5];
        (0..1000).for_each(|_| seen[stream.below(5)] += 1);
        assert!(seen.iter().all(|&count| count > 150), "{seen:?}");
        assert_eq!(stream.below(0), 0);
    }
}
