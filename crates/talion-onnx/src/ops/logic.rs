//! Operators that compare, combine truth values and choose by them.

use talion_core::{Error, Result};
use tch::{Device, Kind, Tensor};

use super::{Call, Kernel, axis, bounded, common_device, indices, is_integer};

pub(super) const OPS: &[(&str, Kernel)] = &[
    ("And", and),
    ("Compress", compress),
    ("Equal", equal),
    ("Greater", greater),
    ("GreaterOrEqual", greater_or_equal),
    ("IsInf", is_inf),
    ("IsNaN", is_nan),
    ("Less", less),
    ("LessOrEqual", less_or_equal),
    ("NonZero", non_zero),
    ("Not", not),
    ("OneHot", one_hot),
    ("Or", or),
    ("Range", range),
    ("Where", choose),
    ("Xor", xor),
];

/// A function of two inputs that broadcast.
fn both(call: &Call<'_>, join: impl Fn(&Tensor, &Tensor) -> tch::Result<Tensor>) -> Result<Vec<Tensor>> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let device = common_device(&[a, b]);
    Ok(vec![join(&a.f_to_device(device)?, &b.f_to_device(device)?)?])
}

fn equal(call: &Call<'_>) -> Result<Vec<Tensor>> {
    both(call, Tensor::f_eq_tensor)
}

fn greater(call: &Call<'_>) -> Result<Vec<Tensor>> {
    both(call, Tensor::f_gt_tensor)
}

fn greater_or_equal(call: &Call<'_>) -> Result<Vec<Tensor>> {
    both(call, Tensor::f_ge_tensor)
}

fn less(call: &Call<'_>) -> Result<Vec<Tensor>> {
    both(call, Tensor::f_lt_tensor)
}

fn less_or_equal(call: &Call<'_>) -> Result<Vec<Tensor>> {
    both(call, Tensor::f_le_tensor)
}

fn and(call: &Call<'_>) -> Result<Vec<Tensor>> {
    both(call, Tensor::f_logical_and)
}

fn or(call: &Call<'_>) -> Result<Vec<Tensor>> {
    both(call, Tensor::f_logical_or)
}

fn xor(call: &Call<'_>) -> Result<Vec<Tensor>> {
    both(call, Tensor::f_logical_xor)
}

fn not(call: &Call<'_>) -> Result<Vec<Tensor>> {
    Ok(vec![call.input(0)?.f_logical_not()?])
}

fn choose(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let (condition, yes, no) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let device = common_device(&[condition, yes, no]);
    let condition = condition.f_to_kind(Kind::Bool)?.f_to_device(device)?;
    Ok(vec![yes.f_to_device(device)?.f_where_self(&condition, &no.f_to_device(device)?)?])
}

fn is_nan(call: &Call<'_>) -> Result<Vec<Tensor>> {
    Ok(vec![call.input(0)?.f_isnan()?])
}

fn is_inf(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    let asked = |name| Ok::<_, Error>(call.attributes().int(name, 1)? != 0);
    Ok(vec![match (asked("detect_negative")?, asked("detect_positive")?) {
        (true, true) => data.f_isinf()?,
        (true, false) => data.f_isneginf()?,
        (false, true) => data.f_isposinf()?,
        (false, false) => data.f_zeros_like()?.f_to_kind(Kind::Bool)?,
    }])
}

fn one_hot(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let (labels, values) = (call.input(0)?, call.input(2)?);
    let depth = i64::try_from(call.input(1)?)?;
    let axis = axis(call, call.attributes().int("axis", -1)?, labels.dim() + 1)?;
    let mut shape = labels.size();
    shape.insert(axis as usize, depth);
    bounded(call, &shape)?;
    if values.size() != [2] {
        return Err(call.refuse(format!("values have shape {:?}, expected [2]", values.size())));
    }
    let device = common_device(&[labels, values]);
    let labels = labels.f_to_kind(Kind::Int64)?.f_to_device(device)?;
    // negative labels count from the end; a label outside of the range marks nothing
    let labels =
        labels.f_add_scalar(depth)?.f_where_self(&labels.f_lt(0_i64)?, &labels)?.f_unsqueeze(axis)?;
    let mut line = vec![1; shape.len()];
    line[axis as usize] = depth;
    let classes = Tensor::f_arange(depth, (Kind::Int64, device))?.f_reshape(line)?;
    let values = values.f_to_device(device)?;
    let (off, on) = (values.f_select(0, 0)?, values.f_select(0, 1)?);
    Ok(vec![on.f_where_self(&labels.f_eq_tensor(&classes)?, &off)?])
}

fn non_zero(call: &Call<'_>) -> Result<Vec<Tensor>> {
    Ok(vec![call.input(0)?.f_nonzero()?.f_transpose(0, 1)?])
}

fn range(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let start = call.input(0)?;
    let kind = start.kind();
    if is_integer(kind) {
        let (start, limit, step) = (whole(call, 0)?, whole(call, 1)?, whole(call, 2)?);
        let count = steps(call, i128::from(limit) - i128::from(start), i128::from(step))?;
        let line = Tensor::f_arange(count, (Kind::Int64, Device::Cpu))?;
        return Ok(vec![line.f_mul_scalar(step)?.f_add_scalar(start)?.f_to_kind(kind)?]);
    }
    let (first, limit, step) = (real(call, 0)?, real(call, 1)?, real(call, 2)?);
    let count = ((limit - first) / step).ceil();
    if !count.is_finite() {
        return Err(call.refuse(format!("from {first} to {limit} by {step}")));
    }
    let count = count.clamp(0.0, 1e18) as i64;
    bounded(call, &[count])?;
    let line = Tensor::f_arange(count, (kind, start.device()))?;
    Ok(vec![line.f_mul_scalar(step)?.f_add_scalar(first)?])
}

/// The number of steps of the given length, at least one unit long, that fit into `distance`.
fn steps(call: &Call<'_>, distance: i128, step: i128) -> Result<i64> {
    let count = match step {
        0 => return Err(call.refuse("the step is 0")),
        1.. if distance > 0 => (distance + step - 1) / step,
        ..0 if distance < 0 => (distance + step + 1) / step,
        _ => 0,
    };
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    bounded(call, &[count])?;
    Ok(count)
}

fn whole(call: &Call<'_>, place: usize) -> Result<i64> {
    Ok(i64::try_from(call.input(place)?)?)
}

fn real(call: &Call<'_>, place: usize) -> Result<f64> {
    Ok(f64::try_from(call.input(place)?)?)
}

fn compress(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let (data, condition) = (call.input(0)?, call.input(1)?);
    if condition.dim() != 1 {
        return Err(call.refuse(format!("the condition has shape {:?}, expected one axis", condition.size())));
    }
    let (data, along) = match call.attributes().maybe_int("axis")? {
        Some(value) => (data.shallow_clone(), axis(call, value, data.dim())?),
        None => (data.f_reshape([-1])?, 0),
    };
    let places = condition.f_nonzero()?.f_squeeze_dim(1)?;
    let places = indices(call, &places, data.size()[along as usize], data.device())?;
    Ok(vec![data.f_index_select(along, &places)?])
}

#[cfg(test)]
mod tests {
    use super::{super::testing::*, *};

    fn truths(values: &[bool], shape: &[i64]) -> Tensor {
        Tensor::from_slice(values).reshape(shape)
    }

    #[test]
    fn comparisons_broadcast() {
        let (a, b) = (floats(&[1.0, 2.0, 3.0], &[3]), floats(&[2.0, f32::NAN], &[2, 1]));
        let table = [
            ("Equal", [false, true, false]),
            ("Greater", [false, false, true]),
            ("GreaterOrEqual", [false, true, true]),
            ("Less", [true, false, false]),
            ("LessOrEqual", [true, true, false]),
        ];
        for (op, [x, y, z]) in table {
            let expected = truths(&[x, y, z, false, false, false], &[2, 3]);
            assert_same(&case(op).input(&a).input(&b).first(), &expected);
        }
        assert_same(
            &case("Equal").input(&ints(&[1, 2])).input(&ints(&[2])).first(),
            &truths(&[false, true], &[2]),
        );
        assert!(case("Equal").input(&a).input(&ramp(&[2])).run().is_err());
    }

    #[test]
    fn truth_values_are_combined() {
        let (a, b) = (truths(&[false, false, true, true], &[4]), truths(&[false, true, false, true], &[4]));
        let table = [
            ("And", [false, false, false, true]),
            ("Or", [false, true, true, true]),
            ("Xor", [false, true, true, false]),
        ];
        for (op, expected) in table {
            assert_same(&case(op).input(&a).input(&b).first(), &truths(&expected, &[4]));
        }
        assert_same(&case("Not").input(&a).first(), &truths(&[true, true, false, false], &[4]));
    }

    #[test]
    fn choices_broadcast_and_pass_gradients() {
        let condition = truths(&[true, false], &[2, 1]);
        let (yes, no) = (floats(&[1.0, 2.0, 3.0], &[3]), Tensor::from(-1_f32));
        let chosen = case("Where").input(&condition).input(&yes).input(&no).first();
        assert_same(&chosen, &floats(&[1.0, 2.0, 3.0, -1.0, -1.0, -1.0], &[2, 3]));
        let double = (yes.to_kind(Kind::Double), no.to_kind(Kind::Double));
        let choose = |yes: &Tensor, no: &Tensor| case("Where").input(&condition).input(yes).input(no).first();
        assert_gradient(|yes| choose(yes, &double.1), &double.0);
        assert_gradient(|no| choose(&double.0, no), &double.1);
    }

    #[test]
    fn special_values_are_found() {
        let x = floats(&[1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY], &[4]);
        assert_same(&case("IsNaN").input(&x).first(), &truths(&[false, true, false, false], &[4]));
        for (negative, positive) in [(true, true), (true, false), (false, true), (false, false)] {
            let case = case("IsInf").input(&x).int("detect_negative", i64::from(negative));
            let found = case.int("detect_positive", i64::from(positive)).first();
            assert_same(&found, &truths(&[false, false, positive, negative], &[4]));
        }
        assert_same(&case("IsInf").input(&x).first(), &truths(&[false, false, true, true], &[4]));
    }

    #[test]
    fn one_hot_marks_labels_in_range() {
        let hot = |labels: &Tensor, depth: &Tensor, axis: i64| {
            case("OneHot").input(labels).input(depth).input(&floats(&[-1.0, 2.0], &[2])).int("axis", axis)
        };
        let (labels, depth) = (ints(&[1, -1, 5, -4]), Tensor::from(3_i64));
        let expected = [-1.0, 2.0, -1.0, -1.0, -1.0, 2.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0];
        let expected = floats(&expected, &[4, 3]);
        assert_same(&hot(&labels, &depth, -1).first(), &expected);
        assert_same(&hot(&labels, &depth, 0).first(), &expected.transpose(0, 1));
        assert_same(&hot(&labels.to_kind(Kind::Float), &floats(&[3.0], &[1]), 1).first(), &expected);
        assert!(hot(&labels, &depth, 2).run().is_err());
        for depth in [i64::MAX, i64::MIN, -1, 1 << 30] {
            assert!(hot(&labels, &Tensor::from(depth), -1).run().is_err(), "{depth}");
        }
    }

    #[test]
    fn places_of_true_values_are_listed_and_kept() {
        let x = floats(&[1.0, 0.0, 2.0, 3.0], &[2, 2]);
        assert_same(&case("NonZero").input(&x).first(), &ints(&[0, 1, 1, 0, 0, 1]).reshape([2, 3]));
        let keep = truths(&[false, true], &[2]);
        let compress = |condition: &Tensor| case("Compress").input(&x).input(condition);
        assert_same(&compress(&keep).int("axis", 1).first(), &floats(&[0.0, 3.0], &[2, 1]));
        assert_same(&compress(&keep).first(), &floats(&[0.0], &[1]));
        assert!(compress(&truths(&[false, false, true], &[3])).int("axis", 0).run().is_err());
        assert!(compress(&truths(&[true], &[1, 1])).run().is_err());
    }

    #[test]
    fn ranges_count_up_and_down() {
        let range = |start: i64, limit: i64, step: i64| {
            let case = case("Range").input(&Tensor::from(start)).input(&Tensor::from(limit));
            case.input(&Tensor::from(step)).run().map(|mut y| y.remove(0))
        };
        let table: [(i64, i64, i64, &[i64]); 8] = [
            (0, 4, 1, &[0, 1, 2, 3]),
            (1, 6, 2, &[1, 3, 5]),
            (5, 0, -2, &[5, 3, 1]),
            (4, 0, -2, &[4, 2]),
            (3, 3, 1, &[]),
            (0, 4, -1, &[]),
            (4, 0, 1, &[]),
            (i64::MAX - 1, i64::MAX, i64::MAX, &[i64::MAX - 1]),
        ];
        for (start, limit, step, expected) in table {
            assert_same(&range(start, limit, step).unwrap(), &ints(expected));
        }
        assert!(range(0, 1, 0).is_err() && range(i64::MIN, i64::MAX, 1).is_err());
    }

    #[test]
    fn ranges_of_floats_keep_their_type() {
        let range = |start: f32, limit: f32, step: f32| {
            let case = case("Range").input(&Tensor::from(start)).input(&Tensor::from(limit));
            case.input(&Tensor::from(step)).run().map(|mut y| y.remove(0))
        };
        assert_same(&range(0.5, 2.0, 0.5).unwrap(), &floats(&[0.5, 1.0, 1.5], &[3]));
        assert_same(&range(1.0, -0.1, -0.5).unwrap(), &floats(&[1.0, 0.5, 0.0], &[3]));
        assert_eq!(range(1.0, 0.0, 1.0).unwrap().numel(), 0);
        for (start, limit, step) in
            [(0.0, 1.0, 0.0), (0.0, f32::INFINITY, 1.0), (0.0, 1.0, 1e-30), (0.0, f32::NAN, 1.0)]
        {
            assert!(range(start, limit, step).is_err(), "{start} {limit} {step}");
        }
        assert!(range(0.0, 1.0, f32::NAN).is_err());
    }
}
