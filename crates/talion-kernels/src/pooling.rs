//! Windows of which the mean or the largest value is kept.

use crate::{Real, Team, team::bands};

/// Which value of a window is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The largest; of several equal ones the first, row by row.
    Largest,
    /// The mean of those inside the image.
    MeanInside,
    /// The mean of all, with zeros around the image.
    Mean,
}

/// Windows over rows and columns: cell i of an axis covers positions `first[i] .. last[i]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pooling {
    window: Window,
    /// First position and the one after the last of each cell, for rows and columns, cut to the image.
    cells: [Vec<[usize; 2]>; 2],
    /// Positions in a whole window.
    whole: usize,
    /// Height and width of the input.
    input: [usize; 2],
}

impl Pooling {
    /// Windows of one size; none if they do not fit into the input, or one of them lies outside.
    pub fn new(
        window: Window,
        input: [usize; 2],
        size: [usize; 2],
        stride: [usize; 2],
        before: [usize; 2],
        after: [usize; 2],
    ) -> Option<Self> {
        let mut cells = [Vec::new(), Vec::new()];
        for axis in 0..2 {
            let room = (input[axis] + before[axis] + after[axis]).checked_sub(size[axis])?;
            for cell in 0..=room / stride[axis].max(1) {
                let start = cell * stride[axis];
                let first = start.saturating_sub(before[axis]);
                let last = (start + size[axis]).saturating_sub(before[axis]).min(input[axis]);
                if first >= last {
                    return None;
                }
                cells[axis].push([first, last]);
            }
        }
        Some(Self { window, cells, whole: size[0] * size[1], input })
    }

    /// Means over a grid of cells, which overlap where the sides are no multiples (PyTorch's adaptive average pooling).
    pub fn grid(input: [usize; 2], grid: [usize; 2]) -> Option<Self> {
        if input.contains(&0) || grid.contains(&0) {
            return None;
        }
        let cells = [0, 1].map(|axis| {
            let (length, parts) = (input[axis], grid[axis]);
            (0..parts).map(|cell| [cell * length / parts, ((cell + 1) * length).div_ceil(parts)]).collect()
        });
        Some(Self { window: Window::MeanInside, cells, whole: 1, input })
    }

    /// Height and width of the output.
    pub fn output(&self) -> [usize; 2] {
        [self.cells[0].len(), self.cells[1].len()]
    }

    /// Writes the outputs, and of [`Window::Largest`] which input each was, among those of its window.
    ///
    /// # Shapes
    /// `input` `[N, H, W, C]`, `output` `[N, h, w, C]`, `chosen` as long, or empty where nobody will ask for a gradient.
    ///
    /// # Panics
    /// If a slice is too short.
    pub fn forward<T: Real>(
        &self,
        team: &Team<T>,
        input: &[T],
        [images, channels]: [usize; 2],
        output: &mut [T],
        chosen: &mut [u16],
    ) {
        let [rows, columns] = self.output();
        let each = self.input[0] * self.input[1] * channels;
        let length = rows * columns * channels;
        let noted = if self.records() && !chosen.is_empty() { length } else { 0 };
        let mut chosen = chosen;
        let tasks: Vec<_> = input[..images * each]
            .chunks_exact(each.max(1))
            .zip(output[..images * length].chunks_exact_mut(length.max(1)))
            .map(|(input, output)| {
                let (part, rest) = std::mem::take(&mut chosen).split_at_mut(noted);
                chosen = rest;
                (input, output, part)
            })
            .collect();
        team.each(tasks, |(input, output, chosen)| self.image(input, channels, output, chosen));
    }

    /// Whether the windows remember what they chose.
    pub fn records(&self) -> bool {
        self.window == Window::Largest
    }

    fn image<T: Real>(&self, input: &[T], channels: usize, output: &mut [T], chosen: &mut [u16]) {
        let columns = self.cells[1].len();
        for (row, &[top, bottom]) in self.cells[0].iter().enumerate() {
            for (column, &[left, right]) in self.cells[1].iter().enumerate() {
                let at = (row * columns + column) * channels;
                let output = &mut output[at..at + channels];
                let mut first = true;
                let mut number = 0_u16;
                for y in top..bottom {
                    for x in left..right {
                        let from = (y * self.input[1] + x) * channels;
                        let input = &input[from..from + channels];
                        if first {
                            output.copy_from_slice(input);
                            if !chosen.is_empty() {
                                chosen[at..at + channels].fill(0);
                            }
                        } else if self.records() && chosen.is_empty() {
                            for (output, &input) in output.iter_mut().zip(input) {
                                if input > *output {
                                    *output = input;
                                }
                            }
                        } else if self.records() {
                            let chosen = &mut chosen[at..at + channels];
                            for ((output, &input), chosen) in output.iter_mut().zip(input).zip(chosen) {
                                if input > *output {
                                    (*output, *chosen) = (input, number);
                                }
                            }
                        } else {
                            output.iter_mut().zip(input).for_each(|(output, &input)| *output += input);
                        }
                        first = false;
                        number = number.saturating_add(1);
                    }
                }
                if let Some(share) = self.share::<T>([bottom - top, right - left]) {
                    output.iter_mut().for_each(|output| *output = *output * share);
                }
            }
        }
    }

    /// What each input of a window counts, if it is a mean.
    fn share<T: Real>(&self, inside: [usize; 2]) -> Option<T> {
        let count = match self.window {
            Window::Largest => return None,
            Window::MeanInside => inside[0] * inside[1],
            Window::Mean => self.whole,
        };
        Some(T::from_f64(1.0 / count as f64))
    }

    /// Writes the gradient with respect to the input.
    ///
    /// # Shapes
    /// `gradient` `[N, h, w, C]`, `output` `[N, H, W, C]`; `chosen` as [`Pooling::forward`] left it.
    ///
    /// # Panics
    /// If a slice is too short.
    pub fn backward<T: Real>(
        &self,
        team: &Team<T>,
        gradient: &[T],
        [images, channels]: [usize; 2],
        output: &mut [T],
        chosen: &[u16],
    ) {
        let each = self.input[0] * self.input[1] * channels;
        let [rows, columns] = self.output();
        let length = rows * columns * channels;
        let parts = bands(&mut output[..images * each], &mut [], [images, 1, each], 1, 1);
        team.each(parts, |band| {
            let (from, to) = (band.units.start * length, band.units.end * length);
            let chosen = if self.records() { &chosen[from..to] } else { &[] };
            self.image_back(&gradient[from..to], channels, band.output, chosen);
        });
    }

    fn image_back<T: Real>(&self, gradient: &[T], channels: usize, output: &mut [T], chosen: &[u16]) {
        output.fill(T::default());
        let columns = self.cells[1].len();
        for (row, &[top, bottom]) in self.cells[0].iter().enumerate() {
            for (column, &[left, right]) in self.cells[1].iter().enumerate() {
                let at = (row * columns + column) * channels;
                let gradient = &gradient[at..at + channels];
                let share = self.share::<T>([bottom - top, right - left]);
                let mut number = 0_u16;
                for y in top..bottom {
                    for x in left..right {
                        let to = (y * self.input[1] + x) * channels;
                        let output = &mut output[to..to + channels];
                        match share {
                            Some(share) => {
                                output
                                    .iter_mut()
                                    .zip(gradient)
                                    .for_each(|(output, &value)| *output += value * share);
                            }
                            None => {
                                let chosen = &chosen[at..at + channels];
                                for ((output, &value), &chosen) in output.iter_mut().zip(gradient).zip(chosen)
                                {
                                    if chosen == number {
                                        *output += value;
                                    }
                                }
                            }
                        }
                        number = number.saturating_add(1);
                    }
                }
            }
        }
    }
}
