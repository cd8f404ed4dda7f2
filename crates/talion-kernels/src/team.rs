//! A number of threads, and the memory that they work in.

use std::{
    ops::{Deref, DerefMut},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    LANES, Real,
    threads::{Threads, worker},
};

/// Threads with memory that is kept between calls: fresh memory has to be mapped and zeroed by the system, which costs about
/// as much as what is computed in it.
#[derive(Debug)]
pub struct Team<T> {
    threads: Threads,
    /// What each thread has given back: what one has written is far from the others.
    spare: Vec<Mutex<Vec<Vec<T>>>>,
}

impl<T: Real> Team<T> {
    /// A team of so many threads, at least one.
    pub fn new(threads: usize) -> Self {
        let count = threads.max(1);
        Self { threads: Threads::new(count), spare: (0..count).map(|_| Mutex::default()).collect() }
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.threads.count()
    }

    /// Does all tasks, in any order.
    pub(crate) fn each<I: Send>(&self, tasks: Vec<I>, work: impl Fn(I) + Send + Sync) {
        if tasks.len() <= 1 || self.threads() == 1 {
            return tasks.into_iter().for_each(work);
        }
        let tasks: Vec<Mutex<Option<I>>> = tasks.into_iter().map(|task| Mutex::new(Some(task))).collect();
        self.threads.run(tasks.len(), &|index| {
            let task = tasks[index].lock().unwrap_or_else(PoisonError::into_inner).take();
            task.into_iter().for_each(&work);
        });
    }

    /// Memory for `length` numbers, which may be any.
    pub fn take(&self, length: usize) -> Buffer<T> {
        let found = {
            let mut spare = self.own();
            let fitting = (0..spare.len()).filter(|&place| spare[place].len() >= length);
            let smallest = fitting.min_by_key(|&place| spare[place].len());
            smallest.map(|place| spare.swap_remove(place))
        };
        Buffer { values: found.unwrap_or_else(|| vec![T::default(); length]), length }
    }

    /// Gives memory back for the next one who needs some.
    pub fn give(&self, buffer: Buffer<T>) {
        self.own().push(buffer.values);
    }

    fn own(&self) -> MutexGuard<'_, Vec<Vec<T>>> {
        self.spare[worker() % self.spare.len()].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory of a team.
#[derive(Debug)]
pub struct Buffer<T> {
    /// At least as many as were asked for.
    values: Vec<T>,
    length: usize,
}

impl<T> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values[..self.length]
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values[..self.length]
    }
}

/// A part of an output: rows of images that follow one another.
pub(crate) struct Band<'a, T> {
    /// The first unit of rows, and how many there are.
    pub units: std::ops::Range<usize>,
    /// The first element of `output` among all.
    pub base: usize,
    /// The output of these rows.
    pub output: &'a mut [T],
    /// A bit for each, where bits are recorded.
    pub bits: &'a mut [u8],
}

/// Cuts an output of `images` times `rows` rows of `width` elements into bands of `several` units of `height` rows; the last unit
/// of an image may have fewer rows.
pub(crate) fn bands<'a, T>(
    output: &'a mut [T],
    bits: &'a mut [u8],
    [images, rows, width]: [usize; 3],
    height: usize,
    several: usize,
) -> Vec<Band<'a, T>> {
    let per_image = rows.div_ceil(height);
    let total = images * per_image;
    let start = |unit: usize| {
        let (image, unit) = (unit / per_image, unit % per_image);
        (image * rows + unit * height) * width
    };
    let (mut output, mut bits) = (output, bits);
    let mut bands = Vec::with_capacity(total.div_ceil(several.max(1)));
    let mut first = 0;
    while first < total {
        let last = (first + several.max(1)).min(total);
        let length = start(last) - start(first);
        let (part, rest) = output.split_at_mut(length);
        let (part_bits, rest_bits) = bits.split_at_mut(if bits.is_empty() { 0 } else { length / LANES });
        bands.push(Band { units: first..last, base: start(first), output: part, bits: part_bits });
        (output, bits) = (rest, rest_bits);
        first = last;
    }
    bands
}
