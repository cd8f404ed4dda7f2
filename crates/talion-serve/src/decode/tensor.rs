//! The shape of a tensor, and its values as pictures.

use super::{Limits, Picture, Problem, brief};

/// Axes of the largest shape, `[N,C,H,W]`.
pub(super) const MAX_RANK: usize = 4;
pub(super) const MAX_CHANNELS: u8 = 16;

/// Which axis of an array moves fastest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// The last one.
    C,
    /// The first one.
    Fortran,
}

/// A shape within the limits.
#[derive(Debug)]
pub(super) struct Shape {
    rank: usize,
    images: usize,
    channels: u8,
    height: u32,
    width: u32,
    /// Values of the whole tensor.
    pub(super) count: usize,
}

impl Shape {
    pub(super) fn new(axes: &[u64], limits: &Limits) -> Result<Self, Problem> {
        let (images, channels, height, width) = match *axes {
            [height, width] => (1, 1, height, width),
            [channels, height, width] => (1, channels, height, width),
            [images, channels, height, width] => (images, channels, height, width),
            _ => return Err(unusable(axes, "expected [H,W], [C,H,W] or [N,C,H,W]")),
        };
        if axes.contains(&0) {
            return Err(unusable(axes, "it has no values"));
        }
        limits.check_images(images)?;
        let few = u8::try_from(channels).ok().filter(|channels| *channels <= MAX_CHANNELS);
        let channels = few.ok_or_else(|| unusable(axes, "it has more than 16 channels"))?;
        let total = limits.check_pixels(width, height)?.saturating_mul(images);
        limits.check_total(total)?;
        let too_large = |_| Problem::TooLarge(format!("a tensor of shape {axes:?}"));
        Ok(Self {
            rank: axes.len(),
            images: usize::try_from(images).map_err(too_large)?,
            channels,
            height: u32::try_from(height).map_err(too_large)?,
            width: u32::try_from(width).map_err(too_large)?,
            count: usize::try_from(total.saturating_mul(channels.into())).map_err(too_large)?,
        })
    }

    /// The pictures, from values that stand in the order of the array. `value` gives the one at a position, or, as its
    /// error, one that is not in [0, 1]; it is asked for positions below [`Shape::count`].
    pub(super) fn pictures(
        &self,
        order: Order,
        value: impl Fn(usize) -> Result<f32, f64>,
    ) -> Result<Vec<Picture>, Problem> {
        let strides = self.strides(order);
        (0..self.images).map(|image| self.picture(image, strides, &value)).collect()
    }

    fn picture(
        &self,
        image: usize,
        strides: [usize; MAX_RANK],
        value: &impl Fn(usize) -> Result<f32, f64>,
    ) -> Result<Picture, Problem> {
        let [_, channels, height, width] = self.sizes();
        let mut values = Vec::with_capacity(channels * height * width);
        for y in 0..height {
            for x in 0..width {
                for channel in 0..channels {
                    let place = [image, channel, y, x];
                    let at: usize = place.iter().zip(strides).map(|(index, stride)| index * stride).sum();
                    let value = value(at).map_err(|refused| outside(&place[MAX_RANK - self.rank..], refused));
                    values.push(value?);
                }
            }
        }
        let Self { channels, height, width, .. } = *self;
        Ok(Picture { width, height, channels, values, resizable: false })
    }

    fn sizes(&self) -> [usize; MAX_RANK] {
        [self.images, usize::from(self.channels), self.height as usize, self.width as usize]
    }

    /// How far apart neighbours along each axis are. The axes that the array lacks have one index, so theirs do not
    /// matter.
    fn strides(&self, order: Order) -> [usize; MAX_RANK] {
        let sizes = self.sizes();
        let mut strides = [1; MAX_RANK];
        match order {
            Order::C => {
                for axis in (1..MAX_RANK).rev() {
                    strides[axis - 1] = strides[axis] * sizes[axis];
                }
            }
            Order::Fortran => {
                for axis in 1..MAX_RANK {
                    strides[axis] = strides[axis - 1] * sizes[axis - 1];
                }
            }
        }
        strides
    }
}

/// A value of a tensor, or the value as the error if it is not in [0, 1].
pub(super) fn unit(value: f64) -> Result<f32, f64> {
    if (0.0..=1.0).contains(&value) { Ok(value as f32) } else { Err(value) }
}

/// The problem of a value that [`unit`] refused.
pub(super) fn outside(place: &[usize], value: f64) -> Problem {
    let hint = if value > 1.0 && value <= 255.0 { "; divide bytes by 255" } else { "" };
    Problem::Unprocessable(format!("{} is {value}, not in [0, 1]{hint}", name(place)))
}

/// An entry of a tensor, as one would write it: `tensor[0][2]`.
pub(super) fn name(place: &[usize]) -> String {
    place.iter().fold("tensor".into(), |name, index| format!("{name}[{index}]"))
}

fn unusable(axes: &[u64], reason: &str) -> Problem {
    Problem::Unprocessable(format!("a tensor of shape {}: {reason}", brief(format_args!("{axes:?}"))))
}
