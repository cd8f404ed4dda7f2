//! Activations: functions that act on each element, and the two softmaxes.

use talion_core::Result;
use tch::Tensor;

use super::{
    Call, Kernel,
    arithmetic::{broadcast, floating, smooth},
    axis, product,
};

pub(super) const OPS: &[(&str, Kernel)] = &[
    ("Celu", celu),
    ("Clip", clip),
    ("Elu", elu),
    ("Erf", |call| smooth(call, Tensor::f_erf)),
    ("Gelu", gelu),
    ("HardSigmoid", hard_sigmoid),
    ("HardSwish", hard_swish),
    ("LeakyRelu", leaky_relu),
    ("LogSoftmax", |call| along(call, |x, axis| x.f_log_softmax(axis, None))),
    ("Mish", |call| smooth(call, Tensor::f_mish)),
    ("PRelu", prelu),
    ("Relu", relu),
    ("Selu", selu),
    ("Shrink", shrink),
    ("Sigmoid", |call| smooth(call, Tensor::f_sigmoid)),
    ("Sign", sign),
    ("Softmax", |call| along(call, |x, axis| x.f_softmax(axis, None))),
    ("Softplus", softplus),
    ("Softsign", softsign),
    ("Swish", swish),
    ("Tanh", |call| smooth(call, Tensor::f_tanh)),
    ("ThresholdedRelu", thresholded_relu),
];

fn relu(call: &Call<'_>) -> Result<Vec<Tensor>> {
    Ok(vec![call.input(0)?.f_relu()?])
}

fn sign(call: &Call<'_>) -> Result<Vec<Tensor>> {
    Ok(vec![call.input(0)?.f_sign()?])
}

fn leaky_relu(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let x = floating(call)?;
    let leaked = x.f_mul_scalar(call.attributes().float("alpha", 0.01)?)?;
    Ok(vec![x.f_where_self(&x.f_gt(0.0)?, &leaked)?])
}

/// The slope broadcasts to the input, never the other way round.
fn prelu(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let (x, slope) = (floating(call)?, call.input(1)?);
    let sides = x.size();
    if broadcast(call, &sides, &slope.size())? != sides {
        let slope = slope.size();
        return Err(call.refuse(format!("a slope of shape {slope:?} does not broadcast to {sides:?}")));
    }
    let leaked = x.f_mul(&slope.f_to_device(x.device())?.f_to_kind(x.kind())?)?;
    Ok(vec![x.f_where_self(&x.f_gt(0.0)?, &leaked)?])
}

/// `x` where it is positive, `amount * (exp(x / width) - 1)` where it is not.
fn exponential(x: &Tensor, amount: f64, width: f64) -> Result<Tensor> {
    // of negative numbers only: the exponential of a large one would make the gradient NaN, chosen or not
    let decay = x.f_clamp_max(0.0)?.f_div_scalar(width)?.f_expm1()?.f_mul_scalar(amount)?;
    Ok(x.f_where_self(&x.f_gt(0.0)?, &decay)?)
}

fn elu(call: &Call<'_>) -> Result<Vec<Tensor>> {
    Ok(vec![exponential(floating(call)?, call.attributes().float("alpha", 1.0)?, 1.0)?])
}

fn selu(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let alpha = call.attributes().float("alpha", 1.673_263_192_176_818_8)?;
    let gamma = call.attributes().float("gamma", 1.050_701_022_148_132_3)?;
    Ok(vec![exponential(floating(call)?, alpha, 1.0)?.f_mul_scalar(gamma)?])
}

fn celu(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let alpha = call.attributes().float("alpha", 1.0)?;
    if alpha == 0.0 {
        return Err(call.refuse("alpha is 0, by which it would divide"));
    }
    Ok(vec![exponential(floating(call)?, alpha, alpha)?])
}

fn hard_sigmoid(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let alpha = call.attributes().float("alpha", 0.2)?;
    let beta = call.attributes().float("beta", 0.5)?;
    Ok(vec![ramp(floating(call)?, alpha, beta)?])
}

fn hard_swish(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let x = floating(call)?;
    Ok(vec![x.f_mul(&ramp(x, 1.0 / 6.0, 0.5)?)?])
}

/// A line, cut off at 0 and 1.
fn ramp(x: &Tensor, slope: f64, offset: f64) -> Result<Tensor> {
    Ok(x.f_mul_scalar(slope)?.f_add_scalar(offset)?.f_clamp(0.0, 1.0)?)
}

fn swish(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let x = floating(call)?;
    let gate = x.f_mul_scalar(call.attributes().float("alpha", 1.0)?)?.f_sigmoid()?;
    Ok(vec![x.f_mul(&gate)?])
}

/// libtorch's own softplus is the identity above 20, a little off in double precision.
fn softplus(call: &Call<'_>) -> Result<Vec<Tensor>> {
    Ok(vec![floating(call)?.f_neg()?.f_log_sigmoid()?.f_neg()?])
}

fn softsign(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let x = floating(call)?;
    Ok(vec![x.f_div(&x.f_abs()?.f_add_scalar(1.0)?)?])
}

fn thresholded_relu(call: &Call<'_>) -> Result<Vec<Tensor>> {
    Ok(vec![floating(call)?.f_threshold(call.attributes().float("alpha", 1.0)?, 0.0)?])
}

fn gelu(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let approximate = call.attributes().text("approximate", "none")?;
    if !["none", "tanh"].contains(&approximate) {
        return Err(call.refuse("approximate is neither \"none\" nor \"tanh\""));
    }
    Ok(vec![floating(call)?.f_gelu(approximate)?])
}

fn shrink(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let bias = call.attributes().float("bias", 0.0)?;
    let width = call.attributes().float("lambd", 0.5)?;
    let inner = x.f_zeros_like()?;
    // integers come back as integers, truncated
    let outer = x.f_sub_scalar(bias)?.f_to_kind(x.kind())?.f_where_self(&x.f_gt(width)?, &inner)?;
    let below = x.f_add_scalar(bias)?.f_to_kind(x.kind())?;
    Ok(vec![below.f_where_self(&x.f_lt(-width)?, &outer)?])
}

/// The bounds are attributes before operator set 11, inputs since.
fn clip(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let (low, high) = if call.opset < 11 {
        (constant_bound(call, x, "min")?, constant_bound(call, x, "max")?)
    } else {
        (bound(call, x, 1)?, bound(call, x, 2)?)
    };
    if low.is_none() && high.is_none() {
        return Ok(vec![x.shallow_clone()]);
    }
    Ok(vec![x.f_clamp_tensor(low.as_ref(), high.as_ref())?])
}

fn constant_bound(call: &Call<'_>, x: &Tensor, name: &str) -> Result<Option<Tensor>> {
    let Some(value) = call.attributes().maybe_float(name)? else { return Ok(None) };
    Ok(Some(Tensor::f_scalar_tensor(value, (x.kind(), x.device()))?))
}

fn bound(call: &Call<'_>, x: &Tensor, place: usize) -> Result<Option<Tensor>> {
    let Some(value) = call.optional(place) else { return Ok(None) };
    if value.numel() != 1 || value.kind() != x.kind() {
        let (kind, elements) = (value.kind(), value.numel());
        return Err(call.refuse(format!("a bound of {elements} elements of type {kind:?}")));
    }
    Ok(Some(value.f_to_device(x.device())?.f_reshape([0_i64; 0])?))
}

/// A function along an axis. Before operator set 13 all axes from the named one on were taken together.
fn along(call: &Call<'_>, function: fn(&Tensor, i64) -> tch::Result<Tensor>) -> Result<Vec<Tensor>> {
    let x = floating(call)?;
    let sides = x.size();
    if call.opset >= 13 {
        let axis = axis(call, call.attributes().int("axis", -1)?, sides.len())?;
        return Ok(vec![function(x, axis)?]);
    }
    let axis = axis(call, call.attributes().int("axis", 1)?, sides.len())?;
    let (rows, columns) = sides.split_at(axis as usize);
    let table = x.f_reshape([product(call, rows)?, product(call, columns)?])?;
    Ok(vec![function(&table, 1)?.f_reshape(sides)?])
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::{
        super::{
            arithmetic::twice::{assert_gradients, wave},
            testing::{Case, assert_same, case, floats, ints},
        },
        *,
    };
    use crate::Attribute;

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    fn elu(x: f64, alpha: f64) -> f64 {
        if x > 0.0 { x } else { alpha * x.exp_m1() }
    }

    fn erf(x: f64) -> f64 {
        Tensor::from(x).erf().double_value(&[])
    }

    type Definition = (&'static str, &'static [(&'static str, f32)], fn(f64) -> f64);

    const DEFINITIONS: [Definition; 25] = [
        ("Relu", &[], |x| x.max(0.0)),
        ("LeakyRelu", &[], |x| x.max(0.01 * x)),
        ("LeakyRelu", &[("alpha", 0.25)], |x| x.max(0.25 * x)),
        ("Elu", &[], |x| elu(x, 1.0)),
        ("Elu", &[("alpha", 0.5)], |x| elu(x, 0.5)),
        ("Selu", &[], |x| 1.0507010221481323 * elu(x, 1.6732631921768188)),
        ("Selu", &[("alpha", 2.0), ("gamma", 3.0)], |x| 3.0 * elu(x, 2.0)),
        ("Celu", &[], |x| elu(x, 1.0)),
        ("Celu", &[("alpha", 2.0)], |x| 2.0 * elu(x / 2.0, 1.0)),
        ("Sigmoid", &[], sigmoid),
        ("HardSigmoid", &[], |x| (0.2 * x + 0.5).clamp(0.0, 1.0)),
        ("HardSigmoid", &[("alpha", 0.5), ("beta", 0.25)], |x| (0.5 * x + 0.25).clamp(0.0, 1.0)),
        ("HardSwish", &[], |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0)),
        ("Swish", &[], |x| x * sigmoid(x)),
        ("Swish", &[("alpha", 2.0)], |x| x * sigmoid(2.0 * x)),
        ("Tanh", &[], f64::tanh),
        ("Softplus", &[], |x| x.exp().ln_1p()),
        ("Softsign", &[], |x| x / (1.0 + x.abs())),
        ("ThresholdedRelu", &[("alpha", 0.5)], |x| if x > 0.5 { x } else { 0.0 }),
        ("Mish", &[], |x| x * x.exp().ln_1p().tanh()),
        ("Gelu", &[], |x| 0.5 * x * (1.0 + erf(x * 0.5_f64.sqrt()))),
        ("Erf", &[], erf),
        ("Sign", &[], f64::signum),
        ("Shrink", &[], |x| if x.abs() > 0.5 { x } else { 0.0 }),
        ("Shrink", &[("bias", 0.25), ("lambd", 1.0)], |x| {
            if x.abs() > 1.0 { x - 0.25 * x.signum() } else { 0.0 }
        }),
    ];

    type Plain = fn(Tensor) -> Tensor;

    #[test]
    fn values_and_derivatives_are_those_of_the_definitions() {
        let points = [-4.1, -2.3, -0.8, -0.3, 0.2, 0.7, 1.4, 3.6];
        let x = Tensor::from_slice(&points);
        for (op, attributes, definition) in DEFINITIONS {
            let on = |x: &Tensor| {
                let set = |case: Case, &(name, value): &(&str, f32)| case.with(name, Attribute::Float(value));
                attributes.iter().fold(case(op).input(x), set).first()
            };
            assert_same(&on(&x), &Tensor::from_slice(&points.map(definition)));
            assert_gradients(on, &x);
        }
    }

    #[test]
    fn the_tanh_form_of_gelu_is_close_to_the_exact_one() {
        let x = wave(&[6]) * 2.0;
        let approximate = |x: &Tensor| case("Gelu").text("approximate", "tanh").input(x).first();
        let inner = (&x + x.pow_tensor_scalar(3) * 0.044715) * (2.0 / std::f64::consts::PI).sqrt();
        assert_same(&approximate(&x), &(&x * 0.5 * (inner.tanh() + 1.0)));
        assert_gradients(approximate, &x);
        assert!(case("Gelu").text("approximate", "fast").input(&x).run().is_err());
    }

    #[test]
    fn large_inputs_have_finite_gradients() {
        for op in ["Elu", "Selu", "Celu", "Softplus", "Swish", "Mish", "Sigmoid"] {
            let x = Tensor::from_slice(&[-800.0, 800.0]).set_requires_grad(true);
            let y = case(op).input(&x).first().sum(Kind::Double);
            let gradient = Tensor::run_backward(&[y], &[&x], false, false).remove(0);
            assert!(bool::try_from(gradient.isfinite().all()).unwrap(), "{op}: {gradient:?}");
        }
        let above = case("Softplus").input(&Tensor::from(25.0)).first().double_value(&[]) - 25.0;
        assert!((above - (-25_f64).exp()).abs() < 1e-14);
    }

    #[test]
    fn slopes_broadcast_from_the_right() {
        let x = floats(&[-1., 2., -3., -4., 5., -6.], &[1, 3, 2]);
        let slope = floats(&[0.5, 1., 2.], &[3, 1]);
        let prelu = |slope: &Tensor| case("PRelu").input(&x).input(slope).run();
        assert_same(&prelu(&slope).unwrap()[0], &floats(&[-0.5, 2., -3., -4., 5., -12.], &[1, 3, 2]));
        let one = floats(&[0.5], &[1]);
        assert_same(&prelu(&one).unwrap()[0], &floats(&[-0.5, 2., -1.5, -2., 5., -3.], &[1, 3, 2]));
        assert!(prelu(&slope.reshape([3])).is_err());
        assert!(prelu(&floats(&[1., 1.], &[2, 1, 1])).is_err());
        let (x, slope) = (wave(&[2, 3]), wave(&[3]));
        assert_gradients(|x| case("PRelu").input(x).input(&slope).first(), &x);
        assert_gradients(|slope| case("PRelu").input(&x).input(slope).first(), &slope);
    }

    #[test]
    fn bounds_are_attributes_and_then_inputs() {
        let x = floats(&[-2., 0.5, 3.], &[3]);
        let old = || case("Clip").opset(10).input(&x);
        assert_same(&old().first(), &x);
        assert_same(&old().with("min", Attribute::Float(0.0)).first(), &floats(&[0., 0.5, 3.], &[3]));
        let both = old().with("min", Attribute::Float(-1.0)).with("max", Attribute::Float(1.0));
        assert_same(&both.first(), &floats(&[-1., 0.5, 1.], &[3]));
        let new = || case("Clip").input(&x);
        let (low, high) = (Tensor::from(-1.0_f32), floats(&[1.0], &[1]));
        assert_same(&new().first(), &x);
        assert_same(&new().input(&low).first(), &floats(&[-1., 0.5, 3.], &[3]));
        assert_same(&new().absent().input(&high).first(), &floats(&[-2., 0.5, 1.], &[3]));
        assert_same(&new().input(&low).input(&high).first(), &floats(&[-1., 0.5, 1.], &[3]));
        assert_same(&new().input(&high).input(&low).first(), &floats(&[-1., -1., -1.], &[3]));
        let whole = case("Clip").input(&ints(&[-5, 5])).input(&Tensor::from(0_i64));
        assert_same(&whole.first(), &ints(&[0, 5]));
        assert!(new().input(&x).run().is_err() && new().input(&Tensor::from(0_i64)).run().is_err());
        let low = Tensor::from(-0.5);
        assert_gradients(|x| case("Clip").input(x).input(&low).first(), &wave(&[5]));
    }

    #[test]
    fn integers_are_shrunk_and_signed() {
        let x = ints(&[-3, -1, 0, 1, 3]);
        assert_same(&case("Sign").input(&x).first(), &ints(&[-1, -1, 0, 1, 1]));
        assert_same(&case("Relu").input(&x).first(), &ints(&[0, 0, 0, 1, 3]));
        let shrunk = case("Shrink").input(&x).with("lambd", Attribute::Float(1.5)).first();
        assert_same(&shrunk, &ints(&[-3, 0, 0, 0, 3]));
        assert!(case("Elu").input(&x).problem().contains("Int64"));
    }

    #[test]
    fn softmax_was_of_a_table_before_operator_set_13() {
        let x = wave(&[2, 3, 4]);
        let flat = |axis: i64, shape: [i64; 2]| x.reshape(shape).softmax(axis, None).reshape([2, 3, 4]);
        let table: [(&str, Plain); 2] = [("Softmax", |y| y), ("LogSoftmax", |y| y.log())];
        for (op, function) in table {
            let soft = |opset: i64| case(op).opset(opset).input(&x);
            assert_same(&soft(12).first(), &function(flat(1, [2, 12])));
            assert_same(&soft(12).int("axis", 2).first(), &function(flat(1, [6, 4])));
            assert_same(&soft(12).int("axis", -3).first(), &function(flat(1, [1, 24])));
            assert_same(&soft(13).first(), &function(x.softmax(2, None)));
            assert_same(&soft(13).int("axis", 1).first(), &function(x.softmax(1, None)));
            assert!(soft(13).int("axis", 3).run().is_err() && soft(12).int("axis", 3).run().is_err());
            for opset in [12, 13] {
                assert_gradients(|x| case(op).opset(opset).input(x).first(), &x);
            }
        }
    }
}
