//! A convolution whose weights are final, with the derivative that goes back to its input.

use std::sync::OnceLock;

use crate::{
    After, Real, Team, padded,
    patches::{Meeting, Patches},
    winograd::Winograd,
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

    fn meeting(&self) -> Meeting {
        Meeting { size: self.size, stride: self.stride, dilation: self.dilation, padding: self.before }
    }

    /// Whether tiles can be used, forwards and backwards: 3x3, every pixel, at most two zeros before the first.
    fn tiled(&self) -> bool {
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
}

/// A convolution with bias.
#[derive(Debug)]
pub struct Convolution<T> {
    geometry: Geometry,
    /// Channels of input and output, as they are.
    channels: [usize; 2],
    weights: Vec<T>,
    bias: Vec<T>,
    forward: OnceLock<Method<T>>,
    backward: OnceLock<Method<T>>,
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
        let (forward, backward) = (OnceLock::new(), OnceLock::new());
        Self { geometry, channels: [inputs, outputs], weights, bias, forward, backward }
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
            if self.geometry.tiled() {
                Method::Tiles(Winograd::new(channels, self.geometry.before, weight))
            } else {
                Method::Patches(Patches::forward(channels, self.geometry.meeting(), weight))
            }
        });
        let output = &mut output[..shape[0] * sides[0] * sides[1] * channels[1]];
        let (finish, bits) = after.split(&self.bias);
        match method {
            Method::Tiles(tiles) => tiles.run(team, input, shape, output, sides, &finish, bits),
            Method::Patches(patches) => patches.run(team, input, shape, output, sides, &finish, bits),
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
        let method = self.backward.get_or_init(|| {
            if self.geometry.tiled() {
                // the derivative of a convolution is one with the kernel turned by half a turn
                let weight = |to, from, row, column| self.weight(from, to, 2 - row, 2 - column);
                Method::Tiles(Winograd::new(
                    [outputs, inputs],
                    self.geometry.before.map(|zeros| 2 - zeros),
                    weight,
                ))
            } else {
                let weight = |output, input, row, column| self.weight(output, input, row, column);
                Method::Patches(Patches::backward([outputs, inputs], self.geometry.meeting(), weight))
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
        }
    }

    fn sides(&self, [_, rows, columns]: [usize; 3]) -> [usize; 2] {
        match self.geometry.output([rows, columns]) {
            Some(sides) => sides,
            None => panic!("a kernel of {:?} does not fit into {rows}x{columns}", self.geometry.size),
        }
    }
}
