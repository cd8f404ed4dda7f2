//! What happens to an output before it is written, and the one bit that is kept of an activation.

use crate::{
    LANES, Real,
    simd::{PAIRS, Vector},
};

/// Bytes of the mask of so many elements, which are a multiple of [`LANES`].
pub fn mask_bytes(elements: usize) -> usize {
    elements / LANES
}

/// What is added to an output.
#[derive(Clone, Copy, Debug)]
pub enum Sum<'a, T> {
    /// Nothing.
    Nothing,
    /// What is already there.
    Own,
    /// Another map of the same shape.
    Other(&'a [T]),
}

/// Whether an output goes through a ReLU, or through the derivative of one.
#[derive(Debug)]
pub enum Rectify<'a> {
    /// As it is.
    No,
    /// Negative values become zero.
    Yes,
    /// Negative values become zero, and which were positive is written down.
    Record(&'a mut [u8]),
    /// Values become zero where an earlier one was not positive.
    Masked(&'a [u8]),
}

/// What happens to an output, in this order.
#[derive(Debug)]
pub struct After<'a, T> {
    /// What is added.
    pub sum: Sum<'a, T>,
    /// What is kept.
    pub rectify: Rectify<'a>,
}

impl<T> After<'_, T> {
    /// Nothing happens.
    pub fn nothing() -> Self {
        Self { sum: Sum::Nothing, rectify: Rectify::No }
    }
}

/// [`After`], without the part of it that is written: that one lies with the output.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a, T> {
    pub bias: &'a [T],
    pub sum: Sum<'a, T>,
    pub rectify: Kept<'a>,
}

/// [`Rectify`], without what is written.
#[derive(Clone, Copy)]
pub(crate) enum Kept<'a> {
    All,
    Positive,
    Recorded,
    Masked(&'a [u8]),
}

impl<'a, T> After<'a, T> {
    /// What is read and what is written.
    pub(crate) fn split(self, bias: &'a [T]) -> (Finish<'a, T>, &'a mut [u8]) {
        let (rectify, bits): (_, &mut [u8]) = match self.rectify {
            Rectify::No => (Kept::All, &mut []),
            Rectify::Yes => (Kept::Positive, &mut []),
            Rectify::Record(bits) => (Kept::Recorded, bits),
            Rectify::Masked(bits) => (Kept::Masked(bits), &mut []),
        };
        (Finish { bias, sum: self.sum, rectify }, bits)
    }
}

/// The output of a band, and where it begins among all.
pub(crate) struct Target<'a, T> {
    pub output: &'a mut [T],
    pub bits: &'a mut [u8],
    pub base: usize,
}

impl<T: Real> Finish<'_, T> {
    /// Writes eight channels, from `channel` on, to element `at` of the whole output.
    #[inline(always)]
    pub(crate) fn put<V: Vector<T = T>>(
        &self,
        target: &mut Target<'_, T>,
        at: usize,
        channel: usize,
        value: V,
    ) {
        let local = at - target.base;
        let place = lanes_mut(target.output, local);
        let mut value =
            if self.bias.is_empty() { value } else { value.plus(V::load(lanes(self.bias, channel))) };
        match self.sum {
            Sum::Nothing => {}
            Sum::Own => value = value.plus(V::load(place)),
            Sum::Other(other) => value = value.plus(V::load(lanes(other, at))),
        }
        match self.rectify {
            Kept::All => {}
            Kept::Positive => value = value.rectified().0,
            Kept::Recorded => (value, target.bits[local / LANES]) = value.rectified(),
            Kept::Masked(bits) => value = value.where_set(bits[at / LANES]),
        }
        value.store(place);
    }
}

/// Eight numbers from `at` on.
#[inline(always)]
pub(crate) fn lanes<T>(values: &[T], at: usize) -> &[T; LANES] {
    match values[at..].first_chunk() {
        Some(lanes) => lanes,
        None => panic!("a map is too short"),
    }
}

/// Room for eight numbers from `at` on.
#[inline(always)]
pub(crate) fn lanes_mut<T>(values: &mut [T], at: usize) -> &mut [T; LANES] {
    match values[at..].first_chunk_mut() {
        Some(lanes) => lanes,
        None => panic!("a map is too short"),
    }
}

/// Room for eight numbers as pairs, from `at` on.
#[inline(always)]
pub(crate) fn pairs_mut<T>(values: &mut [T], at: usize) -> &mut [T; PAIRS] {
    match values[at..].first_chunk_mut() {
        Some(pairs) => pairs,
        None => panic!("a map is too short"),
    }
}
