//! Derivative rules of softmax and of normalisation.

use talion_core::Result;
use tch::{Kind, Tensor};

use super::{
    Rule,
    step::{Gradients, Step},
};
use crate::build::Var;

pub(super) const RULES: &[(&str, Rule)] = &[
    ("BatchNormalization", batch_normalization),
    ("InstanceNormalization", instance_normalization),
    ("LayerNormalization", layer_normalization),
    ("LogSoftmax", log_softmax),
    ("Softmax", softmax),
];

fn softmax(s: &mut Step<'_>) -> Result<Gradients> {
    let (g, y, axis) = (s.cotangent()?, s.output(0)?, s.int("axis", -1)?);
    let product = s.b.mul(&g, &y);
    let sum = s.b.reduce_sum(&product, &[axis], true);
    let rest = s.b.sub(&g, &sum);
    Ok(vec![Some(s.b.mul(&y, &rest))])
}

fn log_softmax(s: &mut Step<'_>) -> Result<Gradients> {
    let (g, y, axis) = (s.cotangent()?, s.output(0)?, s.int("axis", -1)?);
    let sum = s.b.reduce_sum(&g, &[axis], true);
    let shares = s.b.exp(&y);
    let shared = s.b.mul(&shares, &sum);
    Ok(vec![Some(s.b.sub(&g, &shared))])
}

/// With given mean and variance the norm is a scale by channel.
fn batch_normalization(s: &mut Step<'_>) -> Result<Gradients> {
    s.only(&[0])?;
    let epsilon = s.float("epsilon", 1e-5)?;
    let (scale, variance) = (s.tensor(1)?.f_to_kind(Kind::Double)?, s.tensor(4)?.f_to_kind(Kind::Double)?);
    let factor = scale.f_div(&variance.f_add_scalar(epsilon)?.f_sqrt()?)?;
    let factor = by_channel(&factor, s.extents(0)?.len())?;
    let g = s.cotangent()?;
    let factor = s.b.constant(&factor);
    Ok(vec![Some(s.b.mul(&g, &factor))])
}

/// A number a channel in a shape that broadcasts to `rank` sides, `f32`.
fn by_channel(values: &Tensor, rank: usize) -> Result<Tensor> {
    let mut shape = vec![1; rank.saturating_sub(1).max(1)];
    shape[0] = -1;
    Ok(values.f_to_kind(Kind::Float)?.f_reshape(&shape)?)
}

fn layer_normalization(s: &mut Step<'_>) -> Result<Gradients> {
    s.only(&[0])?;
    let rank = s.extents(0)?.len();
    let axis = s.axis(s.int("axis", -1)?, rank)?;
    let axes: Vec<i64> = (axis as i64..rank as i64).collect();
    let (g, scale) = (s.cotangent()?, s.input(1)?);
    let g = s.b.mul(&g, &scale);
    normalised(s, &g, &axes)
}

fn instance_normalization(s: &mut Step<'_>) -> Result<Gradients> {
    s.only(&[0])?;
    let rank = s.extents(0)?.len();
    let axes: Vec<i64> = (2..rank as i64).collect();
    let (g, scale) = (s.cotangent()?, s.input(1)?);
    // [C] as [C, 1, 1]: a side for each of `axes`.
    let behind: Vec<i64> = (1..=axes.len() as i64).collect();
    let scale = if behind.is_empty() { scale } else { s.b.unsqueeze(&scale, &behind) };
    let g = s.b.mul(&g, &scale);
    normalised(s, &g, &axes)
}

/// Through subtracting the mean and dividing by the deviation over `axes`, from the cotangent `g` of the result.
fn normalised(s: &mut Step<'_>, g: &Var, axes: &[i64]) -> Result<Gradients> {
    let (x, epsilon) = (s.input(0)?, s.float("epsilon", 1e-5)?);
    let b = &mut *s.b;
    let mean = b.reduce_mean(&x, axes, true);
    let centred = b.sub(&x, &mean);
    let squares = b.mul(&centred, &centred);
    let variance = b.reduce_mean(&squares, axes, true);
    let epsilon = b.scalar(epsilon);
    let variance = b.add(&variance, &epsilon);
    let deviation = b.sqrt(&variance);
    let normed = b.div(&centred, &deviation);
    let shift = b.reduce_mean(g, axes, true);
    let product = b.mul(g, &normed);
    let stretch = b.reduce_mean(&product, axes, true);
    let stretch = b.mul(&normed, &stretch);
    let rest = b.sub(g, &shift);
    let rest = b.sub(&rest, &stretch);
    Ok(vec![Some(b.div(&rest, &deviation))])
}

#[cfg(test)]
mod tests {

    use crate::{
        attributes::Attribute,
        derive::check::{agrees, network, numbers},
    };

    const IMAGE: [i64; 3] = [4, 3, 5];

    #[test]
    fn softmax_along_every_side() {
        for op in ["Softmax", "LogSoftmax"] {
            for axis in [1, 2, -1] {
                let network = network(IMAGE, |b, x| {
                    let factor = b.scalar(3.0);
                    let x = b.mul(x, &factor);
                    b.node(op, &[&x], vec![("axis", Attribute::Int(axis))])
                });
                agrees(&network, IMAGE);
            }
        }
    }

    #[test]
    fn norms_of_images_and_of_rows() {
        let (scale, shift) = (numbers(&[4], 0.1) + 1.5, numbers(&[4], 0.2));
        let (mean, variance) = (numbers(&[4], 0.3), numbers(&[4], 0.4).abs() + 0.5);
        let batch = |rows: bool| {
            network(IMAGE, |b, x| {
                let x = if rows { b.reduce_max(x, &[2, 3], false) } else { b.tanh(x) };
                let inputs = [&scale, &shift, &mean, &variance].map(|tensor| b.constant(tensor));
                let [scale, shift, mean, variance] = &inputs;
                let epsilon = vec![("epsilon", Attribute::Float(1e-2))];
                b.node("BatchNormalization", &[&x, scale, shift, mean, variance], epsilon)
            })
        };
        agrees(&batch(false), IMAGE);
        agrees(&batch(true), IMAGE);
    }

    #[test]
    fn norms_of_each_channel() {
        let network = network(IMAGE, |b, x| {
            let (scale, shift) = (b.constant(&numbers(&[4], 0.1)), b.constant(&numbers(&[4], 0.2)));
            let epsilon = vec![("epsilon", Attribute::Float(1e-2))];
            let y = b.node("InstanceNormalization", &[x, &scale, &shift], epsilon);
            let row = b.reshape(&y, &[0, 0, -1]);
            b.node("InstanceNormalization", &[&row, &scale, &shift], vec![])
        });
        agrees(&network, IMAGE);
    }

    #[test]
    fn norms_of_the_last_sides() {
        for (axis, sides) in [(-1, vec![5]), (2, vec![3, 5]), (-3, vec![4, 3, 5])] {
            let network = network(IMAGE, |b, x| {
                let (scale, shift) = (b.constant(&numbers(&sides, 0.1)), b.constant(&numbers(&sides, 0.2)));
                let axis = vec![("axis", Attribute::Int(axis)), ("epsilon", Attribute::Float(1e-3))];
                b.node("LayerNormalization", &[x, &scale, &shift], axis)
            });
            agrees(&network, IMAGE);
        }
    }
}
