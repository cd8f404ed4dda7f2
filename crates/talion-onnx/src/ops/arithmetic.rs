//! Arithmetic element by element, on one, two or many tensors.

use talion_core::Result;
use tch::{Device, Kind, Tensor};

use super::{Call, Kernel, bounded, common_device, is_floating, is_integer, product};

pub(super) const OPS: &[(&str, Kernel)] = &[
    ("Abs", |call| unary(call, Tensor::f_abs)),
    ("Acos", |call| smooth(call, Tensor::f_acos)),
    ("Acosh", |call| smooth(call, Tensor::f_acosh)),
    ("Add", |call| binary(call, Tensor::f_add)),
    ("Asin", |call| smooth(call, Tensor::f_asin)),
    ("Asinh", |call| smooth(call, Tensor::f_asinh)),
    ("Atan", |call| smooth(call, Tensor::f_atan)),
    ("Atanh", |call| smooth(call, Tensor::f_atanh)),
    ("Ceil", |call| smooth(call, Tensor::f_ceil)),
    ("Cos", |call| smooth(call, Tensor::f_cos)),
    ("Cosh", |call| smooth(call, Tensor::f_cosh)),
    ("Div", div),
    ("Exp", |call| smooth(call, Tensor::f_exp)),
    ("Floor", |call| smooth(call, Tensor::f_floor)),
    ("Log", |call| smooth(call, Tensor::f_log)),
    ("Max", |call| variadic(call, Tensor::f_maximum)),
    ("Mean", mean),
    ("Min", |call| variadic(call, Tensor::f_minimum)),
    ("Mod", modulo),
    ("Mul", |call| binary(call, Tensor::f_mul)),
    ("Neg", |call| unary(call, Tensor::f_neg)),
    ("Pow", pow),
    ("Reciprocal", |call| smooth(call, Tensor::f_reciprocal)),
    // libtorch rounds halves to the even neighbour, as ONNX asks
    ("Round", |call| smooth(call, Tensor::f_round)),
    ("Sin", |call| smooth(call, Tensor::f_sin)),
    ("Sinh", |call| smooth(call, Tensor::f_sinh)),
    ("Sqrt", |call| smooth(call, Tensor::f_sqrt)),
    ("Sub", |call| binary(call, Tensor::f_sub)),
    ("Sum", |call| variadic(call, Tensor::f_add)),
    ("Tan", |call| smooth(call, Tensor::f_tan)),
];

/// How many times the elements of its largest input a result may have beyond what [`bounded`] allows.
const MOST_GROWTH: i64 = 64;

/// The most elements of any result.
const MOST_ELEMENTS: i64 = 1 << 31;

type Unary = fn(&Tensor) -> tch::Result<Tensor>;
type Binary = fn(&Tensor, &Tensor) -> tch::Result<Tensor>;

/// A function of any numbers.
fn unary(call: &Call<'_>, function: Unary) -> Result<Vec<Tensor>> {
    Ok(vec![function(call.input(0)?)?])
}

/// A function of floating-point numbers, which libtorch would turn integers into.
pub(super) fn smooth(call: &Call<'_>, function: Unary) -> Result<Vec<Tensor>> {
    Ok(vec![function(floating(call)?)?])
}

/// The first input, which has to hold floating-point numbers.
pub(super) fn floating<'a>(call: &Call<'a>) -> Result<&'a Tensor> {
    let x = call.input(0)?;
    if is_floating(x.kind()) {
        Ok(x)
    } else {
        Err(call.refuse(format!("its input has type {:?}, expected floating-point numbers", x.kind())))
    }
}

fn binary(call: &Call<'_>, function: Binary) -> Result<Vec<Tensor>> {
    let (a, b) = pair(call)?;
    Ok(vec![function(&a, &b)?])
}

fn variadic(call: &Call<'_>, function: Binary) -> Result<Vec<Tensor>> {
    Ok(vec![fold(call, function)?])
}

/// All inputs taken together by `function`, from the first to the last.
fn fold(call: &Call<'_>, function: Binary) -> Result<Tensor> {
    let inputs = (0..call.inputs.len()).map(|place| call.input(place)).collect::<Result<Vec<_>>>()?;
    let Some((first, others)) = inputs.split_first() else { return Err(call.refuse("it has no inputs")) };
    same_kind(call, &inputs)?;
    let device = meeting(call, &inputs)?;
    let mut result = first.f_to_device(device)?;
    for other in others {
        result = function(&result, &other.f_to_device(device)?)?;
    }
    Ok(result)
}

/// The two inputs, of one kind and on one device.
fn pair(call: &Call<'_>) -> Result<(Tensor, Tensor)> {
    let inputs = [call.input(0)?, call.input(1)?];
    same_kind(call, &inputs)?;
    let device = meeting(call, &inputs)?;
    Ok((inputs[0].f_to_device(device)?, inputs[1].f_to_device(device)?))
}

pub(super) fn same_kind(call: &Call<'_>, tensors: &[&Tensor]) -> Result<()> {
    let kinds: Vec<Kind> = tensors.iter().map(|tensor| tensor.kind()).collect();
    match kinds.windows(2).find(|pair| pair[0] != pair[1]) {
        Some(pair) => Err(call.refuse(format!("its inputs have types {:?} and {:?}", pair[0], pair[1]))),
        None => Ok(()),
    }
}

/// The device on which values are computed together, if what they broadcast to may be made.
fn meeting(call: &Call<'_>, tensors: &[&Tensor]) -> Result<Device> {
    let mut shape = vec![];
    for tensor in tensors {
        shape = broadcast(call, &shape, &tensor.size())?;
    }
    grown(call, &shape, tensors)?;
    Ok(common_device(tensors))
}

/// The shape that two shapes broadcast to, as NumPy does it.
pub(super) fn broadcast(call: &Call<'_>, one: &[i64], other: &[i64]) -> Result<Vec<i64>> {
    let (long, short) = if one.len() < other.len() { (other, one) } else { (one, other) };
    let mut shape = long.to_vec();
    // shapes are aligned at their ends
    for (side, &other_side) in shape.iter_mut().rev().zip(short.iter().rev()) {
        if *side == 1 {
            *side = other_side;
        } else if other_side != 1 && other_side != *side {
            return Err(call.refuse(format!("the shapes {one:?} and {other:?} do not broadcast")));
        }
    }
    Ok(shape)
}

/// As [`bounded`], but what is large because the batch is, which is the caller's own choice, is let through: a result
/// may have 64 times as many elements as the largest of `inputs`.
pub(super) fn grown(call: &Call<'_>, shape: &[i64], inputs: &[&Tensor]) -> Result<()> {
    let mut largest = 0;
    for input in inputs {
        largest = product(call, &input.size())?.max(largest);
    }
    let most = largest.saturating_mul(MOST_GROWTH).min(MOST_ELEMENTS);
    if shape.iter().all(|&side| side > 0) && product(call, shape)? <= most {
        return Ok(());
    }
    bounded(call, shape)
}

fn div(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let (a, b) = pair(call)?;
    Ok(vec![if is_integer(a.kind()) { quotient(&a, &b)? } else { a.f_div(&b)? }])
}

/// The quotient of integers, truncated.
fn quotient(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if b.kind() == Kind::Uint8 {
        return Ok(a.f_div_tensor_mode(b, "trunc")?);
    }
    // the lowest integer divided by -1 would end the process, so that -1 never reaches the division
    let turned = b.f_eq(-1)?;
    let result = a.f_div_tensor_mode(&b.f_masked_fill(&turned, 1)?, "trunc")?;
    Ok(result.f_neg()?.f_where_self(&turned, &result)?)
}

/// The remainder, with the sign of the divisor or, as C's `fmod` does it, with that of the dividend.
fn modulo(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let as_in_c = call.attributes().int("fmod", 0)? != 0;
    binary(call, if as_in_c { Tensor::f_fmod_tensor } else { Tensor::f_remainder_tensor })
}

/// Powers of the base's kind, whatever the exponent's.
fn pow(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let (base, exponent) = (call.input(0)?, call.input(1)?);
    let device = meeting(call, &[base, exponent])?;
    let kind = base.kind();
    let is_one_number = exponent.numel() == 1 && exponent.dim() <= base.dim();
    if is_floating(kind) && is_one_number && exponent.device() == Device::Cpu {
        // faster, and exact for squares and roots
        return Ok(vec![base.f_pow_tensor_scalar(f64::try_from(exponent)?)?]);
    }
    let (mut base, mut exponent) = (base.f_to_device(device)?, exponent.f_to_device(device)?);
    if is_integer(kind) && is_floating(exponent.kind()) {
        base = base.f_to_kind(Kind::Double)?;
        exponent = exponent.f_to_kind(Kind::Double)?;
    }
    Ok(vec![base.f_pow(&exponent)?.f_to_kind(kind)?])
}

fn mean(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let _ = floating(call)?;
    Ok(vec![fold(call, Tensor::f_add)?.f_div_scalar(call.inputs.len() as f64)?])
}

#[cfg(test)]
pub(super) mod twice {
    //! What the tests of the numeric operators share: values without symmetries, and second derivatives.

    use super::{super::testing::assert_gradient, *};

    /// Numbers between -1 and 1 that repeat nowhere, as `Double`.
    pub(crate) fn wave(shape: &[i64]) -> Tensor {
        let count = shape.iter().product::<i64>();
        (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 1.7 + 0.3).sin().reshape(shape)
    }

    /// Checks the first and the second derivative of `f` at `x`, a `Double` tensor, against finite differences.
    #[track_caller]
    pub(crate) fn assert_gradients(f: impl Fn(&Tensor) -> Tensor, x: &Tensor) {
        assert_gradient(&f, x);
        let gradient = |x: &Tensor| {
            let x = if x.requires_grad() { x.shallow_clone() } else { x.detach().set_requires_grad(true) };
            let y = f(&x);
            let value = (&y * wave(&y.size())).sum(Kind::Double);
            let gradient = Tensor::run_backward(&[value], &[&x], true, true).remove(0);
            // where the gradient is constant, so that it depends on x nevertheless
            gradient + &x * 0.0
        };
        assert_gradient(gradient, x);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::*,
        twice::{assert_gradients, wave},
        *,
    };

    fn both(op: &str, a: &Tensor, b: &Tensor) -> Tensor {
        case(op).input(a).input(b).first()
    }

    type Plain = fn(f64) -> f64;

    #[test]
    fn functions_of_one_number_have_their_values_and_derivatives() {
        let table: [(&str, Plain, f64); 20] = [
            ("Abs", f64::abs, -2.0),
            ("Acos", f64::acos, -1.0),
            ("Acosh", f64::acosh, 1.5),
            ("Asin", f64::asin, -1.0),
            ("Asinh", f64::asinh, -2.0),
            ("Atan", f64::atan, -2.0),
            ("Atanh", f64::atanh, -1.0),
            ("Ceil", f64::ceil, -2.0),
            ("Cos", f64::cos, -2.0),
            ("Cosh", f64::cosh, -2.0),
            ("Exp", f64::exp, -2.0),
            ("Floor", f64::floor, -2.0),
            ("Log", f64::ln, 0.0),
            ("Neg", |x| -x, -2.0),
            ("Reciprocal", f64::recip, -2.0),
            ("Sin", f64::sin, -2.0),
            ("Sinh", f64::sinh, -2.0),
            ("Sqrt", f64::sqrt, 0.0),
            ("Tan", f64::tan, -1.0),
            ("Round", f64::round_ties_even, -2.0),
        ];
        for (op, function, low) in table {
            let points: Vec<f64> = [0.21, 0.34, 0.63, 0.97].map(|step| low + step).to_vec();
            let x = Tensor::from_slice(&points);
            let expected: Vec<f64> = points.iter().map(|&point| function(point)).collect();
            assert_same(&case(op).input(&x).first(), &Tensor::from_slice(&expected));
            assert_gradients(|x| case(op).input(x).first(), &x);
        }
    }

    #[test]
    fn halves_are_rounded_to_even() {
        let x = floats(&[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 1.2], &[7]);
        assert_same(&case("Round").input(&x).first(), &floats(&[0., 2., 2., -0., -2., -2., 1.], &[7]));
    }

    #[test]
    fn integers_stay_integers_or_are_refused() {
        let x = ints(&[-3, 4]);
        assert_same(&case("Abs").input(&x).first(), &ints(&[3, 4]));
        assert_same(&case("Neg").input(&x).first(), &ints(&[3, -4]));
        for op in ["Sqrt", "Exp", "Floor", "Mean"] {
            assert!(case(op).input(&x).problem().contains("Int64"), "{op}");
        }
    }

    #[test]
    fn two_tensors_broadcast() {
        let (a, b) = (ramp(&[2, 3]), floats(&[1.0, 2.0, 4.0], &[3]));
        let table: [(&str, [f32; 6]); 4] = [
            ("Add", [1., 3., 6., 4., 6., 9.]),
            ("Sub", [-1., -1., -2., 2., 2., 1.]),
            ("Mul", [0., 2., 8., 3., 8., 20.]),
            ("Div", [0., 0.5, 0.5, 3., 2., 1.25]),
        ];
        for (op, expected) in table {
            assert_same(&both(op, &a, &b), &floats(&expected, &[2, 3]));
            let (a, b) = (wave(&[2, 3]), wave(&[2, 1]) + 2.0);
            assert_gradients(|a| both(op, a, &b), &a);
            assert_gradients(|b| both(op, &a, b), &b);
        }
        assert_same(&both("Add", &b, &ramp(&[2, 1, 1])), &floats(&[1., 2., 4., 2., 3., 5.], &[2, 1, 3]));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let x = ramp(&[2, 3]);
        assert!(case("Add").input(&x).input(&ramp(&[2])).problem().contains("[2, 3] and [2]"));
        assert!(case("Mul").input(&x).input(&ints(&[1])).problem().contains("Float and Int64"));
        assert!(case("Max").input(&x).absent().problem().contains("input 1"));
        assert!(case("Sum").problem().contains("no inputs"));
        // a table of 2^40 products
        let long = Tensor::zeros([1 << 20, 1], (Kind::Float, Device::Cpu));
        for op in ["Add", "Max", "Pow"] {
            let problem = case(op).input(&long).input(&long.reshape([1, -1])).problem();
            assert!(problem.contains("2^28"), "{problem}");
        }
    }

    #[test]
    fn a_batch_may_be_large() {
        let node = node("Conv", "x", "y", vec![]);
        let call = Call { node: &node, opset: 17, inputs: &[], float: Kind::Float };
        // one element, so that the test needs no memory
        let batch = Tensor::zeros([1], (Kind::Float, Device::Cpu)).expand([512, 3, 224, 224], false);
        assert!(grown(&call, &[512, 64, 224, 224], &[&batch]).is_ok());
        assert!(grown(&call, &[512, 512, 224, 224], &[&batch]).is_err());
        assert!(grown(&call, &[1 << 14, 1 << 14], &[]).is_ok());
        assert!(grown(&call, &[-1, -1], &[&batch]).is_err());
        assert!(grown(&call, &[i64::MAX, 2], &[&batch]).is_err());
    }

    #[test]
    fn quotients_of_integers_are_truncated() {
        let (a, b) = (ints(&[7, -7, 7, -7, i64::MIN, 5]), ints(&[2, 2, -2, -2, -1, -1]));
        assert_same(&both("Div", &a, &b), &ints(&[3, -3, -3, 3, i64::MIN, -5]));
        assert!(case("Div").input(&a).input(&ints(&[0])).run().is_err());
        let (a, b) = (Tensor::from_slice(&[255_u8]), Tensor::from_slice(&[2_u8]));
        assert_same(&both("Div", &a, &b), &Tensor::from_slice(&[127_u8]));
    }

    #[test]
    fn remainders_have_the_sign_asked_for() {
        let (a, b) = (ints(&[7, -7, 7, -7]), ints(&[3, 3, -3, -3]));
        assert_same(&both("Mod", &a, &b), &ints(&[1, 2, -2, -1]));
        let in_c = |a: &Tensor, b: &Tensor| case("Mod").int("fmod", 1).input(a).input(b).first();
        assert_same(&in_c(&a, &b), &ints(&[1, -1, 1, -1]));
        assert_same(
            &in_c(&floats(&[-4.5, 5.25], &[2]), &floats(&[2.0, -2.0], &[2])),
            &floats(&[-0.5, 1.25], &[2]),
        );
    }

    #[test]
    fn powers_have_the_kind_of_the_base() {
        let x = floats(&[1.0, 4.0, 9.0], &[3]);
        assert_same(&both("Pow", &x, &Tensor::from(0.5_f32)), &floats(&[1., 2., 3.], &[3]));
        assert_same(&both("Pow", &x, &ints(&[2, 1, 0])), &floats(&[1., 4., 1.], &[3]));
        assert_same(&both("Pow", &ints(&[1, 4, 9]), &floats(&[0.5], &[1])), &ints(&[1, 2, 3]));
        assert_same(&both("Pow", &ints(&[2, 3]), &ints(&[3, 2])), &ints(&[8, 9]));
        assert_eq!(both("Pow", &Tensor::from(2.0_f32), &ints(&[1, 2])).size(), [2]);
        let exponents = Tensor::from_slice(&[2.0, 3.0, 0.5]);
        assert_gradients(|x| both("Pow", &(x + 2.0), &exponents), &wave(&[3]));
        // a square has a second derivative at zero
        let square = |x: &Tensor| both("Pow", x, &Tensor::from(2.0_f32));
        assert_gradients(square, &Tensor::from_slice(&[0.0, 1.0, -2.0]));
    }

    #[test]
    fn many_tensors_are_taken_together() {
        let (a, b, c) = (floats(&[1., -2.], &[2]), floats(&[0.5, 0.5], &[2]), floats(&[3.], &[1]));
        let table = [("Max", [3., 3.]), ("Min", [0.5, -2.]), ("Sum", [4.5, 1.5]), ("Mean", [1.5, 0.5])];
        for (op, expected) in table {
            assert_same(&case(op).input(&a).input(&b).input(&c).first(), &floats(&expected, &[2]));
            assert_same(&case(op).input(&a).first(), &a);
            let (one, other) = (wave(&[2, 3]), wave(&[3]) + 0.1);
            assert_gradients(|x| case(op).input(x).input(&other).first(), &one);
        }
        assert_same(&case("Max").input(&ints(&[1, 5])).input(&ints(&[3])).first(), &ints(&[3, 5]));
    }
}
