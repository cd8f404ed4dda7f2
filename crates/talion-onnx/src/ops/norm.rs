//! Normalisations, as arithmetic that can be differentiated twice.

use talion_core::Result;
use tch::{Kind, Tensor};

use super::{
    Call, Kernel,
    arithmetic::{broadcast, floating, grown},
    axis, distinct, product,
};

pub(super) const OPS: &[(&str, Kernel)] = &[
    ("BatchNormalization", batch_norm),
    ("GroupNormalization", group_norm),
    ("InstanceNormalization", instance_norm),
    ("LRN", local_response_norm),
    ("LayerNormalization", layer_norm),
    ("LpNormalization", lp_norm),
    ("MeanVarianceNormalization", mean_variance_norm),
    ("RMSNormalization", rms_norm),
];

/// The most channels that a local response normalisation looks at.
const WIDEST: i64 = 4096;

fn epsilon(call: &Call<'_>) -> Result<f64> {
    call.attributes().float("epsilon", 1e-5)
}

/// The tensor in the precision in which statistics are computed: at least single.
fn wide(x: &Tensor) -> Result<Tensor> {
    let is_short = matches!(x.kind(), Kind::Half | Kind::BFloat16);
    Ok(if is_short { x.f_to_kind(Kind::Float)? } else { x.shallow_clone() })
}

/// A tensor without its mean, that mean, and the inverse of the standard deviation, along `axes`.
fn statistics(x: &Tensor, axes: &[i64], epsilon: f64) -> Result<(Tensor, Tensor, Tensor)> {
    let mean = x.f_mean_dim(axes, true, None)?;
    let centred = x.f_sub(&mean)?;
    let variance = centred.f_square()?.f_mean_dim(axes, true, None)?;
    Ok((centred, mean, variance.f_add_scalar(epsilon)?.f_rsqrt()?))
}

/// A tensor of mean 0 and variance 1 along `axes`.
fn standardised(x: &Tensor, axes: &[i64], epsilon: f64) -> Result<Tensor> {
    let (centred, _, inverse) = statistics(x, axes, epsilon)?;
    Ok(centred.f_mul(&inverse)?)
}

/// Batch and channels of a tensor that has a side behind them, and the axes of those sides.
fn channels(call: &Call<'_>, sides: &[i64]) -> Result<(i64, i64, Vec<i64>)> {
    match sides {
        [batch, channels, _, ..] => Ok((*batch, *channels, (2..sides.len() as i64).collect())),
        _ => Err(call.refuse(format!("the shape {sides:?} has no sides behind the channels"))),
    }
}

/// The input at `place`, one number for each of `count` channels, so that it broadcasts to a tensor with `rank` axes.
fn per_channel(call: &Call<'_>, place: usize, count: i64, rank: usize) -> Result<Tensor> {
    let values = call.input(place)?;
    if values.size() != [count] {
        let shape = values.size();
        return Err(call.refuse(format!("input {place} has shape {shape:?}, expected [{count}]")));
    }
    if rank < 2 {
        return Ok(values.shallow_clone());
    }
    let shape: Vec<i64> = (0..rank).map(|axis| if axis == 1 { count } else { 1 }).collect();
    Ok(values.f_reshape(shape)?)
}

/// `scale * x + shift` with the inputs 1 and 2, one number for each channel.
fn scaled(call: &Call<'_>, x: &Tensor, count: i64) -> Result<Tensor> {
    let [scale, shift] = [per_channel(call, 1, count, x.dim())?, per_channel(call, 2, count, x.dim())?];
    Ok(shift.f_to_kind(x.kind())?.f_addcmul(x, &scale.f_to_kind(x.kind())?)?)
}

fn batch_norm(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let attributes = call.attributes();
    if attributes.int("training_mode", 0)? != 0 || (1..call.outputs()).any(|place| call.wants(place)) {
        return Err(call.refuse("it computes batch statistics; export the model for inference"));
    }
    if attributes.int("spatial", 1)? != 1 {
        return Err(call.refuse("statistics for each place (spatial = 0) are not supported"));
    }
    let x = floating(call)?;
    let rank = x.dim();
    // a single axis is a batch with one channel
    let count = x.size().get(1).copied().unwrap_or(1);
    let of = |place: usize| wide(&per_channel(call, place, count, rank)?);
    let [scale, shift, mean, variance] = [of(1)?, of(2)?, of(3)?, of(4)?];
    let scale = scale.f_mul(&variance.f_add_scalar(epsilon(call)?)?.f_rsqrt()?)?;
    let shift = shift.f_sub(&mean.f_mul(&scale)?)?;
    Ok(vec![shift.f_to_kind(x.kind())?.f_addcmul(x, &scale.f_to_kind(x.kind())?)?])
}

fn instance_norm(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let x = floating(call)?;
    let (_, count, axes) = channels(call, &x.size())?;
    let y = standardised(&wide(x)?, &axes, epsilon(call)?)?.f_to_kind(x.kind())?;
    Ok(vec![scaled(call, &y, count)?])
}

/// Scale and bias are numbers of each group before operator set 21, of each channel since.
fn group_norm(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let x = floating(call)?;
    let sides = x.size();
    let (batch, count, _) = channels(call, &sides)?;
    let groups = call.attributes().required_int("num_groups")?;
    if groups < 1 || count % groups != 0 {
        return Err(call.refuse(format!("{count} channels in {groups} groups")));
    }
    let members = product(call, sides.get(1..).unwrap_or_default())? / groups;
    let grouped = precise(call, x)?.f_reshape([batch, groups, members])?;
    let y = standardised(&grouped, &[2], epsilon(call)?)?.f_to_kind(x.kind())?;
    Ok(vec![if call.opset < 21 {
        scaled(call, &y, groups)?.f_reshape(sides)?
    } else {
        scaled(call, &y.f_reshape(sides)?, count)?
    }])
}

/// The tensor in the precision that the attribute `stash_type` names for statistics, at least single.
fn precise(call: &Call<'_>, x: &Tensor) -> Result<Tensor> {
    match call.attributes().int("stash_type", 1)? {
        1 => wide(x),
        11 => Ok(x.f_to_kind(Kind::Double)?),
        number => Err(call.refuse(format!("statistics of data type {number} are not supported"))),
    }
}

/// The axes from the attribute `axis` on, over which the statistics are taken.
fn trailing(call: &Call<'_>, rank: usize) -> Result<Vec<i64>> {
    let first = axis(call, call.attributes().int("axis", -1)?, rank)?;
    Ok((first..rank as i64).collect())
}

/// Refuses a tensor that would make `x` larger.
fn check_fit(call: &Call<'_>, x: &Tensor, other: &Tensor) -> Result<()> {
    let (sides, shape) = (x.size(), other.size());
    if broadcast(call, &sides, &shape)? == sides {
        Ok(())
    } else {
        Err(call.refuse(format!("a tensor of shape {shape:?} does not broadcast to {sides:?}")))
    }
}

fn layer_norm(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let (x, scale, bias) = (floating(call)?, call.input(1)?, call.optional(2));
    let (axes, epsilon, precise) = (trailing(call, x.dim())?, epsilon(call)?, precise(call, x)?);
    let sides = x.size();
    let shape = sides.get(sides.len() - axes.len()..).unwrap_or_default();
    let is_plain = |other: &Tensor| other.size() == shape && other.kind() == x.kind();
    if is_plain(scale) && bias.is_none_or(is_plain) && call.outputs() == 1 && precise.kind() == x.kind() {
        return Ok(vec![x.f_layer_norm(shape, Some(scale), bias, epsilon, false)?]);
    }
    let (centred, mean, inverse) = statistics(&precise, &axes, epsilon)?;
    check_fit(call, x, scale)?;
    let mut y = centred.f_mul(&inverse)?.f_to_kind(x.kind())?.f_mul(&scale.f_to_kind(x.kind())?)?;
    if let Some(bias) = bias {
        check_fit(call, x, bias)?;
        y = y.f_add(&bias.f_to_kind(x.kind())?)?;
    }
    Ok(vec![y, mean, inverse])
}

fn rms_norm(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let (x, scale) = (floating(call)?, call.input(1)?);
    let axes = trailing(call, x.dim())?;
    let precise = precise(call, x)?;
    let squares = precise.f_square()?.f_mean_dim(axes, true, None)?;
    let y = precise.f_mul(&squares.f_add_scalar(epsilon(call)?)?.f_rsqrt()?)?;
    check_fit(call, x, scale)?;
    Ok(vec![y.f_to_kind(x.kind())?.f_mul(&scale.f_to_kind(x.kind())?)?])
}

/// Zeros stay zeros: where the norm is 0 it is taken as 1, which keeps the gradient finite too.
fn lp_norm(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let x = floating(call)?;
    let axis = axis(call, call.attributes().int("axis", -1)?, x.dim())?;
    let along = [axis];
    let norm = match call.attributes().int("p", 2)? {
        1 => {
            let sum = x.f_abs()?.f_sum_dim_intlist(along.as_slice(), true, None)?;
            sum.f_masked_fill(&sum.f_eq(0.0)?, 1.0)?
        }
        2 => {
            let sum = x.f_square()?.f_sum_dim_intlist(along.as_slice(), true, None)?;
            sum.f_masked_fill(&sum.f_eq(0.0)?, 1.0)?.f_sqrt()?
        }
        p => return Err(call.refuse(format!("p is {p}, expected 1 or 2"))),
    };
    Ok(vec![x.f_div(&norm)?])
}

fn mean_variance_norm(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let x = floating(call)?;
    let axes = distinct(call, call.attributes().ints("axes")?.unwrap_or(&[0, 2, 3]), x.dim())?;
    let precise = wide(x)?;
    let centred = precise.f_sub(&precise.f_mean_dim(axes.as_slice(), true, None)?)?;
    let variance = centred.f_square()?.f_mean_dim(axes.as_slice(), true, None)?;
    // a variance of 0 has no square root that could be differentiated; what it divides is 0
    let deviation = variance.f_masked_fill(&variance.f_eq(0.0)?, 1.0)?.f_sqrt()?;
    // the standard's own small number
    Ok(vec![centred.f_div(&deviation.f_add_scalar(1e-9)?)?.f_to_kind(x.kind())?])
}

fn local_response_norm(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let x = floating(call)?;
    let attributes = call.attributes();
    let size = attributes.required_int("size")?;
    if !(1..=WIDEST).contains(&size) {
        return Err(call.refuse(format!("size is {size}, expected 1 to {WIDEST}")));
    }
    let sides = x.size();
    let (batch, count, _) = channels(call, &sides)?;
    let places = product(call, sides.get(2..).unwrap_or_default())?;
    let (before, after) = ((size - 1) / 2, size / 2);
    let padded = [batch, 1, count.saturating_add(size - 1), places];
    grown(call, &padded, &[x])?;
    // channels along one axis and places along the other, so that neighbouring channels can be pooled
    let squares =
        x.f_square()?.f_reshape([batch, 1, count, places])?.f_constant_pad_nd([0, 0, before, after])?;
    let means = squares.f_avg_pool2d([size, 1], [1, 1], [0, 0], false, true, None)?.f_reshape(sides)?;
    let base = means.f_mul_scalar(attributes.float("alpha", 1e-4)?)?;
    let base = base.f_add_scalar(attributes.float("bias", 1.0)?)?;
    Ok(vec![x.f_div(&base.f_pow_tensor_scalar(attributes.float("beta", 0.75)?)?)?])
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            arithmetic::twice::{assert_gradients, wave},
            testing::{Case, assert_same, case, floats, ramp},
        },
        *,
    };
    use crate::Attribute;

    /// An operator with an `epsilon` that binary fractions hold exactly.
    fn with_epsilon(op: &str, inputs: &[&Tensor]) -> Case {
        let call = inputs.iter().fold(case(op), |call, input| call.input(input));
        call.with("epsilon", Attribute::Float(0.125))
    }

    #[test]
    fn batch_norm_uses_the_given_statistics() {
        let [scale, shift, mean] = [1.0, 2.0, 3.0].map(|offset| wave(&[3]) + offset);
        let variance = wave(&[3]).square() + 0.5;
        for shape in [&[2, 3][..], &[2, 3, 4], &[2, 3, 2, 2], &[1, 3, 2, 1, 2]] {
            let x = wave(shape);
            let ours = |x: &Tensor| {
                with_epsilon("BatchNormalization", &[x, &scale, &shift, &mean, &variance]).first()
            };
            let theirs = x.batch_norm(
                Some(&scale),
                Some(&shift),
                Some(&mean),
                Some(&variance),
                false,
                0.1,
                0.125,
                false,
            );
            assert_same(&ours(&x), &theirs);
            assert_gradients(ours, &x);
        }
        let one = floats(&[2.0], &[1]);
        let line = [&ramp(&[3]), &one, &one, &one, &one];
        let y = with_epsilon("BatchNormalization", &line).with("epsilon", Attribute::Float(2.0)).first();
        assert_same(&y, &floats(&[0., 1., 2.], &[3]));
    }

    #[test]
    fn batch_norm_of_short_floats_keeps_their_kind() {
        let x = ramp(&[1, 2, 2]).to_kind(Kind::Half);
        let numbers = floats(&[1.0, 2.0], &[2]);
        let call = with_epsilon("BatchNormalization", &[&x, &numbers, &numbers, &numbers, &numbers]);
        assert_eq!(call.first().kind(), Kind::Half);
    }

    #[test]
    fn batch_norm_in_training_is_refused() {
        let numbers = floats(&[1.0, 2.0], &[2]);
        let x = ramp(&[1, 2, 2]);
        let call = || with_epsilon("BatchNormalization", &[&x, &numbers, &numbers, &numbers, &numbers]);
        assert!(call().run().is_ok());
        assert!(call().int("training_mode", 1).problem().contains("inference"));
        assert!(call().outputs(3).problem().contains("inference"));
        assert!(call().int("spatial", 0).problem().contains("spatial"));
        let short = floats(&[1.0], &[1]);
        let call = with_epsilon("BatchNormalization", &[&x, &numbers, &short, &numbers, &numbers]);
        assert!(call.problem().contains("[1], expected [2]"));
    }

    #[test]
    fn instances_and_groups_are_normalised_as_libtorch_does() {
        let (x, scale, bias) = (wave(&[2, 4, 3, 2]), wave(&[4]) + 1.5, wave(&[4]));
        let instance = |x: &Tensor| with_epsilon("InstanceNormalization", &[x, &scale, &bias]).first();
        assert_same(&instance(&x), &x.group_norm(4, Some(&scale), Some(&bias), 0.125, false));
        assert_gradients(instance, &x);
        let of = |x: &Tensor, opset: i64, scale: &Tensor, bias: &Tensor| {
            with_epsilon("GroupNormalization", &[x, scale, bias]).int("num_groups", 2).opset(opset)
        };
        let theirs = x.group_norm(2, Some(&scale), Some(&bias), 0.125, false);
        assert_same(&of(&x, 21, &scale, &bias).first(), &theirs);
        assert_gradients(|x| of(x, 21, &scale, &bias).first(), &x);
        // one number for each group is the same number for each of its channels
        let (scale, bias) = (wave(&[2]), wave(&[2]) + 1.0);
        let spread = |numbers: &Tensor| numbers.repeat_interleave_self_int(2, 0_i64, None);
        let theirs = x.group_norm(2, Some(&spread(&scale)), Some(&spread(&bias)), 0.125, false);
        assert_same(&of(&x, 18, &scale, &bias).first(), &theirs);
        assert!(of(&x, 21, &scale, &bias).run().is_err());
        assert!(of(&x, 18, &scale, &bias).int("num_groups", 3).run().is_err());
        assert!(of(&x, 18, &scale, &bias).int("num_groups", 0).run().is_err());
    }

    #[test]
    fn layers_are_normalised_over_their_last_axes() {
        let x = wave(&[2, 3, 4]);
        let table: [(i64, &[i64]); 4] = [(-1, &[4]), (2, &[4]), (1, &[3, 4]), (-3, &[2, 3, 4])];
        for (axis, shape) in table {
            let (scale, bias) = (wave(shape) + 1.5, wave(shape));
            let layer =
                |x: &Tensor| with_epsilon("LayerNormalization", &[x, &scale, &bias]).int("axis", axis);
            let theirs = x.layer_norm(shape, Some(&scale), Some(&bias), 0.125, false);
            assert_same(&layer(&x).first(), &theirs);
            assert_gradients(|x| layer(x).first(), &x);
            let results = layer(&x).outputs(3).run().unwrap();
            assert_same(&results[0], &theirs);
            let axes: Vec<i64> = (3 - shape.len() as i64..3).collect();
            assert_same(&results[1], &x.mean_dim(axes.as_slice(), true, None));
            let variance = x.var_dim(axes.as_slice(), false, true);
            assert_same(&results[2], &(variance + 0.125).rsqrt());
            assert_gradients(|x| layer(x).outputs(3).first(), &x);
        }
    }

    #[test]
    fn scales_of_layers_broadcast() {
        let (x, scale) = (wave(&[2, 3, 4]), wave(&[3, 1]));
        let y = with_epsilon("LayerNormalization", &[&x, &scale]).first();
        let none = None::<&Tensor>;
        assert_same(&y, &(x.layer_norm([4], none, none, 0.125, false) * &scale));
        assert!(with_epsilon("LayerNormalization", &[&x, &wave(&[5, 1, 1, 1])]).run().is_err());
        assert!(with_epsilon("LayerNormalization", &[&x, &scale]).int("axis", 3).run().is_err());
        assert!(with_epsilon("LayerNormalization", &[&x, &scale]).int("stash_type", 10).run().is_err());
        let short = x.to_kind(Kind::Half);
        let results = with_epsilon("LayerNormalization", &[&short, &scale.to_kind(Kind::Half)]);
        let results = results.outputs(2).run().unwrap();
        assert_eq!((results[0].kind(), results[1].kind()), (Kind::Half, Kind::Float));
    }

    #[test]
    fn root_mean_squares_keep_the_mean() {
        let (x, scale) = (wave(&[2, 3, 4]), wave(&[3, 4]));
        let ours = |x: &Tensor| with_epsilon("RMSNormalization", &[x, &scale]).int("axis", 1).first();
        let squares = x.square().mean_dim([1_i64, 2].as_slice(), true, None);
        assert_same(&ours(&x), &(&x / (squares + 0.125).sqrt() * &scale));
        assert_gradients(ours, &x);
    }

    #[test]
    fn vectors_get_length_one_and_zeros_stay() {
        let x = floats(&[3., -4., 0., 0.], &[2, 2]);
        let norm =
            |p: i64, axis: i64| case("LpNormalization").input(&x).int("p", p).int("axis", axis).first();
        assert_same(&norm(2, -1), &floats(&[0.6, -0.8, 0., 0.], &[2, 2]));
        assert_same(&norm(1, 1), &floats(&[3. / 7., -4. / 7., 0., 0.], &[2, 2]));
        assert_same(&norm(2, 0), &floats(&[1., -1., 0., 0.], &[2, 2]));
        assert!(case("LpNormalization").input(&x).int("p", 3).run().is_err());
        let x = wave(&[2, 3]);
        for p in [1, 2] {
            assert_gradients(|x| case("LpNormalization").input(x).int("p", p).first(), &x);
        }
        let zeros = Tensor::zeros([1, 2], (Kind::Double, tch::Device::Cpu)).set_requires_grad(true);
        let sum = case("LpNormalization").input(&zeros).first().sum(Kind::Double);
        let gradient = Tensor::run_backward(&[sum], &[&zeros], false, false).remove(0);
        assert!(bool::try_from(gradient.isfinite().all()).unwrap());
    }

    #[test]
    fn mean_and_variance_are_taken_over_the_named_axes() {
        let x = wave(&[2, 3, 2, 2]);
        let axes = [0_i64, 2, 3];
        let centred = &x - x.mean_dim(axes.as_slice(), true, None);
        let expected = &centred / centred.square().mean_dim(axes.as_slice(), true, None).sqrt();
        assert_same(&case("MeanVarianceNormalization").input(&x).first(), &expected);
        let over = |x: &Tensor| case("MeanVarianceNormalization").ints("axes", &[-1]).input(x).first();
        let pairs = over(&x);
        assert_same(&pairs.abs(), &pairs.ones_like());
        assert_gradients(|x| case("MeanVarianceNormalization").input(x).first(), &x);
        assert_same(&over(&ramp(&[3, 1])), &floats(&[0., 0., 0.], &[3, 1]));
        assert!(case("MeanVarianceNormalization").input(&ramp(&[2, 2])).run().is_err());
    }

    #[test]
    fn neighbouring_channels_inhibit_each_other() {
        let x = floats(&[1., 2., 3., 4.], &[1, 4, 1, 1]);
        let norm = |size: i64| {
            let call = case("LRN").input(&x).int("size", size);
            call.with("alpha", Attribute::Float(size as f32)).with("beta", Attribute::Float(1.0)).first()
        };
        // with alpha = size the sum of squares itself is added to 1
        let expected = |sums: [f32; 4]| {
            let values = [(1., sums[0]), (2., sums[1]), (3., sums[2]), (4., sums[3])];
            floats(&values.map(|(value, sum)| value / (1. + sum)), &[1, 4, 1, 1])
        };
        assert_same(&norm(1), &expected([1., 4., 9., 16.]));
        assert_same(&norm(3), &expected([5., 14., 29., 25.]));
        // one channel more behind than before
        assert_same(&norm(2), &expected([5., 13., 25., 16.]));
        assert_same(&norm(9), &expected([30., 30., 30., 30.]));
        let x = wave(&[2, 5, 2, 3]);
        let ours =
            |x: &Tensor| case("LRN").input(x).int("size", 3).with("alpha", Attribute::Float(0.5)).first();
        assert_gradients(ours, &x);
        assert!(case("LRN").input(&x).run().is_err());
        assert!(case("LRN").input(&x).int("size", 0).run().is_err());
        assert!(case("LRN").input(&x).int("size", i64::MAX).run().is_err());
    }
}
