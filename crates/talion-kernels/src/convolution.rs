//! A convolution whose weights are final, with the derivative that goes back to its input.

use std::sync::OnceLock;

use crate::{
    After, Real, Team,
    few::{Few, Side},
    gemm::{Factors, PANEL},
    padded,
    patches::{Meeting, Patches},
    winograd::{TILE, Winograd},
};

/// How a kernel meets its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Rows and columns of the kernel.
    pub size: [usize; 2],
    /// Steps of the kernel, down and across.
    pub stride: [usize; 2],
    /// Steps between the kernel's weights.
    pub dilation: [usize; 2],
    /// Zeros above and to the left.
    pub before: [usize; 2],
    /// Zeros below and to the right.
    pub after: [usize; 2],
}

impl Geometry {
    /// A kernel with the same number of zeros on all sides.
    pub fn new(size: [usize; 2], stride: [usize; 2], padding: [usize; 2]) -> Self {
        Self { size, stride, dilation: [1, 1], before: padding, after: padding }
    }

    /// Height and width of the output for an input of this height and width; none where the kernel does not fit into it.
    pub fn output(&self, input: [usize; 2]) -> Option<[usize; 2]> {
        let mut sides = [0; 2];
        for axis in 0..2 {
            let covered = self.dilation[axis] * self.size[axis].checked_sub(1)? + 1;
            let room = (input[axis] + self.before[axis] + self.after[axis]).checked_sub(covered)?;
            sides[axis] = room / self.stride[axis].max(1) + 1;
        }
        Some(sides)
    }

    /// Whether an input of this height and width is met at once, every number by one weight an output.
    fn meets_all(&self, input: [usize; 2]) -> bool {
        let plain = self.dilation == [1, 1] && self.before == [0, 0] && self.after == [0, 0];
        plain && self.size == input
    }

    fn meeting(&self) -> Meeting {
        Meeting { size: self.size, stride: self.stride, dilation: self.dilation, padding: self.before }
    }

    /// Whether tiles can be used, forwards and backwards: 3x3, every pixel, at most two zeros before the first.
    pub(crate) fn tiled(&self) -> bool {
        self.size == [3, 3]
            && self.stride == [1, 1]
            && self.dilation == [1, 1]
            && self.before.iter().all(|&zeros| zeros <= 2)
    }
}

#[derive(Debug)]
enum Method<T> {
    Tiles(Winograd<T>),
    Patches(Patches<T>),
    Few(Few<T>),
}

/// A convolution with bias.
#[derive(Debug)]
pub struct Convolution<T> {
    geometry: Geometry,
    /// Channels of input and output, as they are.
    channels: [usize; 2],
    weights: Vec<T>,
    bias: Vec<T>,
    factors: Factors,
    forward: OnceLock<Method<T>>,
    backward: OnceLock<Method<T>>,
    /// The derivative where the kernel meets all of its input at once.
    whole: OnceLock<Patches<T>>,
}

impl<T: Real> Convolution<T> {
    /// # Shapes
    /// `weights` `[outputs, inputs, rows, columns]`, `bias` `[outputs]` or empty. Nothing is prepared before it is needed.
    ///
    /// # Panics
    /// If the numbers of weights do not fit, or a size or a stride is 0.
    pub fn new(geometry: Geometry, [inputs, outputs]: [usize; 2], weights: Vec<T>, bias: &[T]) -> Self {
        assert!(geometry.size.iter().chain(&geometry.stride).chain(&geometry.dilation).all(|&size| size > 0));
        assert_eq!(weights.len(), outputs * inputs * geometry.size[0] * geometry.size[1], "weights");
        assert!(bias.is_empty() || bias.len() == outputs, "bias");
        let mut bias = bias.to_vec();
        if !bias.is_empty() {
            bias.resize(padded(outputs), T::default());
        }
        let (forward, backward, whole) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        let (channels, factors) = ([inputs, outputs], Factors::Full);
        Self { geometry, channels, weights, bias, factors, forward, backward, whole }
    }

    /// The same with factors of this kind wherever many are multiplied; sums stay what they are, and so do layers of few channels.
    /// Any processor can, but only one with [`crate::Level::has_bf16`] gains by it. To be said before the first use.
    ///
    /// # Panics
    /// At the first use: if they are to be bf16 and T is f64.
    #[must_use]
    pub fn with_factors(self, factors: Factors) -> Self {
        Self { factors, ..self }
    }

    /// How the kernel meets its input.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Channels of input and output.
    pub fn channels(&self) -> [usize; 2] {
        self.channels
    }

    fn weight(&self, output: usize, input: usize, row: usize, column: usize) -> f64 {
        let [inputs, outputs] = self.channels;
        if output >= outputs || input >= inputs {
            return 0.0;
        }
        let [rows, columns] = self.geometry.size;
        self.weights[((output * inputs + input) * rows + row) * columns + column].to_f64()
    }

    /// Which side has so few channels that it is worked on without filling them up; none where tiles take fewer
    /// multiplications. Of equally many there is less to do beside them without tiles.
    fn few(&self, [from, to]: [usize; 2]) -> Option<Side> {
        let [rows, columns] = self.geometry.size;
        let (side, multiplications) = Side::of([from, to], rows * columns)?;
        let points = (TILE + 2) * (TILE + 2);
        let tiles = points * padded(from) * to.next_multiple_of(PANEL) / (TILE * TILE);
        (!self.geometry.tiled() || multiplications <= tiles).then_some(side)
    }

    /// Writes the outputs.
    ///
    /// # Shapes
    /// `input` `[N, H, W, padded(inputs)]` for `shape` `[N, H, W]`, `output` `[N, h, w, padded(outputs)]` with the sides of
    /// [`Geometry::output`].
    ///
    /// # Panics
    /// If one of them is too short.
    pub fn forward(
        &self,
        team: &Team<T>,
        input: &[T],
        shape: [usize; 3],
        output: &mut [T],
        after: After<'_, T>,
    ) {
        let channels = self.channels.map(padded);
        let sides = self.sides(shape);
        let method = self.forward.get_or_init(|| {
            let weight = |output, input, row, column| self.weight(output, input, row, column);
            if let Some(side) = self.few(self.channels) {
                Method::Few(Few::new(side, &self.geometry.meeting().ahead(), self.channels, weight))
            } else if self.geometry.tiled() {
                Method::Tiles(Winograd::new(self.factors, channels, self.geometry.before, weight))
            } else {
                Method::Patches(Patches::new(
                    self.factors,
                    &self.geometry.meeting().ahead(),
                    channels,
                    weight,
                ))
            }
        });
        let output = &mut output[..shape[0] * sides[0] * sides[1] * channels[1]];
        let (finish, bits) = after.split(&self.bias);
        match method {
            Method::Tiles(tiles) => tiles.run(team, input, shape, output, sides, &finish, bits),
            Method::Patches(patches) => patches.run(team, input, shape, output, sides, &finish, bits),
            Method::Few(few) => few.run(team, input, shape, output, sides, &finish, bits),
        }
    }

    /// Writes the gradient with respect to the input.
    ///
    /// # Shapes
    /// `shape` `[N, H, W]` is the input's; `gradient` `[N, h, w, padded(outputs)]`, `output` `[N, H, W, padded(inputs)]`.
    ///
    /// # Panics
    /// If one of them is too short.
    pub fn backward(
        &self,
        team: &Team<T>,
        gradient: &[T],
        shape: [usize; 3],
        output: &mut [T],
        after: After<'_, T>,
    ) {
        let [inputs, outputs] = self.channels.map(padded);
        let sides = self.sides(shape);
        if self.geometry.meets_all([shape[1], shape[2]]) {
            return self.backward_whole(team, gradient, shape[0], output, after);
        }
        let method = self.backward.get_or_init(|| {
            let [to, from] = self.channels;
            let weight = |to, from, row, column| self.weight(from, to, row, column);
            if let Some(side) = self.few([from, to]) {
                Method::Few(Few::new(side, &self.geometry.meeting().back(), [from, to], weight))
            } else if self.geometry.tiled() {
                // the derivative of a convolution is one with the kernel turned by half a turn
                let weight = |to, from, row, column| weight(to, from, 2 - row, 2 - column);
                Method::Tiles(Winograd::new(
                    self.factors,
                    [outputs, inputs],
                    self.geometry.before.map(|zeros| 2 - zeros),
                    weight,
                ))
            } else {
                Method::Patches(Patches::new(
                    self.factors,
                    &self.geometry.meeting().back(),
                    [outputs, inputs],
                    weight,
                ))
            }
        });
        let output = &mut output[..shape[0] * shape[1] * shape[2] * inputs];
        let (finish, bits) = after.split(&[]);
        let [images, rows, columns] = shape;
        let from = [images, sides[0], sides[1]];
        match method {
            Method::Tiles(tiles) => tiles.run(team, gradient, from, output, [rows, columns], &finish, bits),
            Method::Patches(patches) => {
                patches.run(team, gradient, from, output, [rows, columns], &finish, bits)
            }
            Method::Few(few) => few.run(team, gradient, from, output, [rows, columns], &finish, bits),
        }
    }

    /// The derivative of a kernel that meets all of its input at once, as that of a linear layer does: one product, with as many
    /// outputs as the input has numbers.
    fn backward_whole(
        &self,
        team: &Team<T>,
        gradient: &[T],
        images: usize,
        output: &mut [T],
        after: After<'_, T>,
    ) {
        let [inputs, outputs] = self.channels.map(padded);
        let [rows, columns] = self.geometry.size;
        let numbers = rows * columns * inputs;
        let product = self.whole.get_or_init(|| {
            let point = Geometry::new([1, 1], [1, 1], [0, 0]);
            Patches::new(self.factors, &point.meeting().ahead(), [outputs, numbers], |to, from, _, _| {
                let (pixel, channel) = (to / inputs, to % inputs);
                self.weight(from, channel, pixel / columns, pixel % columns)
            })
        });
        let (finish, bits) = after.split(&[]);
        let output = &mut output[..images * numbers];
        product.run(team, gradient, [images, 1, 1], output, [1, 1], &finish, bits);
    }

    pub(crate) fn sides(&self, [_, rows, columns]: [usize; 3]) -> [usize; 2] {
        match self.geometry.output([rows, columns]) {
            Some(sides) => sides,
            None => panic!("a kernel of {:?} does not fit into {rows}x{columns}", self.geometry.size),
        }
    }
}
