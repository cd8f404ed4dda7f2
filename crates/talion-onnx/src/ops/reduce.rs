//! Operators that reduce axes, and those that order or accumulate along one.

use talion_core::Result;
use tch::{Kind, Tensor};

use super::{Call, Kernel, axes, axis, distinct, is_floating, product};

pub(super) const OPS: &[(&str, Kernel)] = &[
    ("ArgMax", arg_max),
    ("ArgMin", arg_min),
    ("CumSum", cum_sum),
    ("Hardmax", hardmax),
    ("ReduceL1", l1),
    ("ReduceL2", l2),
    ("ReduceLogSum", log_sum),
    ("ReduceLogSumExp", log_sum_exp),
    ("ReduceMax", max),
    ("ReduceMean", mean),
    ("ReduceMin", min),
    ("ReduceProd", prod),
    ("ReduceSum", sum),
    ("ReduceSumSquare", sum_square),
    ("TopK", top_k),
];

/// Reduces the axes that the node names, an attribute at first, an input since operator set 13 or 18; all of them if
/// it names none. `reduce` is given the axes, in rising order, and whether they stay as sides of 1.
fn reduced(call: &Call<'_>, reduce: impl Fn(&Tensor, &[i64], bool) -> Result<Tensor>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    let named = axes(call, 1, "axes")?.unwrap_or_default();
    if named.is_empty() && call.attributes().int("noop_with_empty_axes", 0)? != 0 {
        return Ok(vec![data.shallow_clone()]);
    }
    let mut places: Vec<i64> =
        if named.is_empty() { (0..data.dim() as i64).collect() } else { distinct(call, &named, data.dim())? };
    places.sort_unstable();
    Ok(vec![reduce(data, &places, call.attributes().int("keepdims", 1)? != 0)?])
}

/// The same for functions that libtorch has for floating values only: integers are computed in `Double`.
fn reduced_in_float(
    call: &Call<'_>,
    reduce: impl Fn(&Tensor, &[i64], bool) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    reduced(call, |data, axes, keep| {
        if is_floating(data.kind()) {
            return reduce(data, axes, keep);
        }
        Ok(reduce(&data.f_to_kind(Kind::Double)?, axes, keep)?.f_to_kind(data.kind())?)
    })
}

/// The sum in the type of the values; by itself libtorch would sum integers as `i64`.
fn total(data: &Tensor, axes: &[i64], keep: bool) -> Result<Tensor> {
    Ok(data.f_sum_dim_intlist(axes, keep, data.kind())?)
}

fn sum(call: &Call<'_>) -> Result<Vec<Tensor>> {
    reduced(call, total)
}

fn mean(call: &Call<'_>) -> Result<Vec<Tensor>> {
    reduced_in_float(call, |data, axes, keep| Ok(data.f_mean_dim(axes, keep, None::<Kind>)?))
}

// amax and amin share the gradient among equal values and can be differentiated twice
fn max(call: &Call<'_>) -> Result<Vec<Tensor>> {
    reduced(call, |data, axes, keep| Ok(data.f_amax(axes, keep)?))
}

fn min(call: &Call<'_>) -> Result<Vec<Tensor>> {
    reduced(call, |data, axes, keep| Ok(data.f_amin(axes, keep)?))
}

fn prod(call: &Call<'_>) -> Result<Vec<Tensor>> {
    reduced(call, |data, axes, keep| {
        let mut result = data.shallow_clone();
        // from the last to the first, so that the others keep their places
        for &axis in axes.iter().rev() {
            result = result.f_prod_dim_int(axis, keep, data.kind())?;
        }
        Ok(result)
    })
}

fn l1(call: &Call<'_>) -> Result<Vec<Tensor>> {
    reduced(call, |data, axes, keep| total(&data.f_abs()?, axes, keep))
}

// the root of a sum of squares would have an infinite slope at zero, the norm has none
fn l2(call: &Call<'_>) -> Result<Vec<Tensor>> {
    reduced_in_float(call, |data, axes, keep| Ok(data.f_norm_scalaropt_dim(2.0, axes, keep)?))
}

fn log_sum(call: &Call<'_>) -> Result<Vec<Tensor>> {
    reduced_in_float(call, |data, axes, keep| Ok(total(data, axes, keep)?.f_log()?))
}

fn log_sum_exp(call: &Call<'_>) -> Result<Vec<Tensor>> {
    reduced_in_float(call, |data, axes, keep| Ok(data.f_logsumexp(axes, keep)?))
}

fn sum_square(call: &Call<'_>) -> Result<Vec<Tensor>> {
    reduced(call, |data, axes, keep| total(&data.f_mul(data)?, axes, keep))
}

fn arg_max(call: &Call<'_>) -> Result<Vec<Tensor>> {
    arg(call, |data, axis, keep| Ok(data.f_argmax(axis, keep)?))
}

fn arg_min(call: &Call<'_>) -> Result<Vec<Tensor>> {
    arg(call, |data, axis, keep| Ok(data.f_argmin(axis, keep)?))
}

/// The place of an extreme value along an axis: the first one, or the last one if the node asks for that.
fn arg(call: &Call<'_>, find: impl Fn(&Tensor, i64, bool) -> Result<Tensor>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    let axis = axis(call, call.attributes().int("axis", 0)?, data.dim())?;
    let keep = call.attributes().int("keepdims", 1)? != 0;
    if call.attributes().int("select_last_index", 0)? == 0 {
        return Ok(vec![find(data, axis, keep)?]);
    }
    let backwards = find(&data.f_flip([axis])?, axis, keep)?;
    Ok(vec![backwards.f_rsub_scalar(data.size()[axis as usize] - 1)?])
}

fn top_k(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    let axis = axis(call, call.attributes().int("axis", -1)?, data.dim())?;
    let count = match call.attributes().maybe_int("k")? {
        Some(count) => count,
        None => call.list(1)?.first().copied().ok_or_else(|| call.refuse("k is empty"))?,
    };
    let side = data.size()[axis as usize];
    if !(0..=side).contains(&count) {
        return Err(call.refuse(format!("the first {count} of {side}")));
    }
    // of equal values the standard wants those that come first; libtorch's topk promises nothing
    let largest = call.attributes().int("largest", 1)? != 0;
    let (values, places) = data.f_sort_stable(true, axis, largest)?;
    Ok(vec![values.f_narrow(axis, 0, count)?, places.f_narrow(axis, 0, count)?])
}

fn cum_sum(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    let given = call.list(1)?.first().copied().ok_or_else(|| call.refuse("axis is empty"))?;
    let axis = axis(call, given, data.dim())?;
    let reverse = call.attributes().int("reverse", 0)? != 0;
    let exclusive = call.attributes().int("exclusive", 0)? != 0;
    let side = data.size()[axis as usize];
    let turned = |values: &Tensor| if reverse { values.f_flip([axis]) } else { Ok(values.shallow_clone()) };
    let mut sums = turned(data)?.f_cumsum(axis, data.kind())?;
    if exclusive && side > 0 {
        let zero = sums.f_narrow(axis, 0, 1)?.f_zeros_like()?;
        sums = Tensor::f_cat(&[zero, sums.f_narrow(axis, 0, side - 1)?], axis)?;
    }
    Ok(vec![turned(&sums)?])
}

fn hardmax(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    let sides = data.size();
    let old = call.opset < 13;
    let axis = axis(call, call.attributes().int("axis", if old { 1 } else { -1 })?, sides.len())?;
    // at first everything from the axis on was one axis
    let (rows, axis) = if old {
        let (before, after) = sides.split_at(axis as usize);
        (data.f_reshape([product(call, before)?, product(call, after)?])?, 1)
    } else {
        (data.shallow_clone(), axis)
    };
    let largest = rows.f_argmax(axis, true)?;
    Ok(vec![rows.f_zeros_like()?.f_scatter_value(axis, &largest, 1.0)?.f_reshape(&sides)?])
}

#[cfg(test)]
mod tests {
    use super::{super::testing::*, *};

    fn values() -> Tensor {
        floats(&[0.5, -2.0, 1.5, 3.0, 0.25, -1.0, 2.0, -0.75, 4.0, 1.0, -3.0, 0.125], &[2, 3, 2])
    }

    type Reference = fn(&Tensor, &[i64], bool) -> Tensor;

    const REFERENCES: [(&str, Reference); 8] = [
        ("ReduceSum", |x, axes, keep| x.sum_dim_intlist(axes, keep, None::<Kind>)),
        ("ReduceMean", |x, axes, keep| x.mean_dim(axes, keep, None::<Kind>)),
        ("ReduceMax", |x, axes, keep| x.amax(axes, keep)),
        ("ReduceMin", |x, axes, keep| x.amin(axes, keep)),
        ("ReduceL1", |x, axes, keep| x.abs().sum_dim_intlist(axes, keep, None::<Kind>)),
        ("ReduceL2", |x, axes, keep| x.square().sum_dim_intlist(axes, keep, None::<Kind>).sqrt()),
        ("ReduceLogSumExp", |x, axes, keep| x.exp().sum_dim_intlist(axes, keep, None::<Kind>).log()),
        ("ReduceSumSquare", |x, axes, keep| x.square().sum_dim_intlist(axes, keep, None::<Kind>)),
    ];

    #[test]
    fn reductions_take_axes_from_attribute_and_input() {
        let x = values();
        for (op, reference) in REFERENCES {
            let table: [(&[i64], bool); 4] = [(&[0, 2], true), (&[0, 2], false), (&[1], true), (&[1], false)];
            for (axes, keep) in table {
                let expected = reference(&x, axes, keep);
                let reduce = || case(op).input(&x).int("keepdims", i64::from(keep));
                assert_same(&reduce().opset(12).ints("axes", axes).first(), &expected);
                assert_same(&reduce().input(&ints(axes)).first(), &expected);
            }
            assert_same(&case(op).input(&x).first(), &reference(&x, &[0, 1, 2], true));
            let swapped = case(op).input(&x).input(&ints(&[-1, 0])).int("keepdims", 0);
            assert_same(&swapped.first(), &reference(&x, &[0, 2], false));
            assert!(case(op).input(&x).input(&ints(&[3])).run().is_err());
            assert!(case(op).input(&x).input(&ints(&[0, -3])).run().is_err());
        }
    }

    #[test]
    fn products_and_logarithms_of_sums() {
        let x = values();
        let product = case("ReduceProd").input(&x).input(&ints(&[0, 2])).int("keepdims", 0).first();
        assert_same(&product, &floats(&[0.5 * -2.0 * 2.0 * -0.75, 18.0, 0.25 * 3.0 * 0.125], &[3]));
        let kept = case("ReduceProd").input(&x).input(&ints(&[0, 2])).first();
        assert_same(&kept, &product.reshape([1, 3, 1]));
        let logarithm = case("ReduceLogSum").input(&x.abs()).input(&ints(&[1])).int("keepdims", 0).first();
        assert_same(&logarithm, &x.abs().sum_dim_intlist(1_i64, false, Kind::Float).log());
        let large = floats(&[1000.0, 1000.0], &[2]);
        assert_same(
            &case("ReduceLogSumExp").input(&large).int("keepdims", 0).first(),
            &Tensor::from(1000.693_f32),
        );
    }

    #[test]
    fn empty_axes_mean_all_or_none() {
        let x = values();
        let none = ints(&[]);
        let sum = || case("ReduceSum").input(&x).input(&none);
        assert_same(&sum().first(), &x.sum(Kind::Float).reshape([1, 1, 1]));
        assert_same(&sum().int("noop_with_empty_axes", 1).first(), &x);
        assert_same(&case("ReduceMean").input(&Tensor::from(3_f32)).first(), &Tensor::from(3_f32));
    }

    #[test]
    fn integers_stay_integers() {
        let x = Tensor::from_slice(&[3_i32, -4, 2, 6]).reshape([2, 2]);
        let reduce = |op: &str| case(op).input(&x).ints("axes", &[1]).int("keepdims", 0).first();
        let table: [(&str, [i32; 2]); 8] = [
            ("ReduceSum", [-1, 8]),
            ("ReduceMean", [0, 4]),
            ("ReduceMax", [3, 6]),
            ("ReduceMin", [-4, 2]),
            ("ReduceProd", [-12, 12]),
            ("ReduceL1", [7, 8]),
            ("ReduceL2", [5, 6]),
            ("ReduceSumSquare", [25, 40]),
        ];
        for (op, expected) in table {
            assert_same(&reduce(op), &Tensor::from_slice(&expected));
        }
    }

    #[test]
    fn reductions_have_gradients() {
        let x = values().to_kind(Kind::Double);
        for op in REFERENCES.map(|(op, _)| op).into_iter().chain(["ReduceProd"]) {
            assert_gradient(|x| case(op).input(x).input(&ints(&[1])).first(), &x);
        }
        assert_gradient(|x| case("ReduceLogSum").input(x).input(&ints(&[1])).first(), &(x.abs() + 0.1));
        let zero = Tensor::zeros([3], (Kind::Double, tch::Device::Cpu)).set_requires_grad(true);
        let norm = case("ReduceL2").input(&zero).int("keepdims", 0).first();
        let slope = Tensor::run_backward(&[norm], &[&zero], false, false).remove(0);
        assert_eq!(Vec::<f64>::try_from(slope).unwrap(), [0.0; 3]);
    }

    #[test]
    fn extremes_are_found_first_or_last() {
        let x = floats(&[1.0, 3.0, 3.0, 2.0, 2.0, 5.0], &[2, 3]);
        let find = |op: &str, axis: i64| case(op).input(&x).int("axis", axis).int("keepdims", 0);
        assert_same(&find("ArgMax", 1).first(), &ints(&[1, 2]));
        assert_same(&find("ArgMin", -1).first(), &ints(&[0, 0]));
        assert_same(&find("ArgMax", 1).int("select_last_index", 1).first(), &ints(&[2, 2]));
        assert_same(&find("ArgMin", 1).int("select_last_index", 1).first(), &ints(&[0, 1]));
        assert_same(&case("ArgMax").input(&x).first(), &ints(&[1, 0, 1]).reshape([1, 3]));
        assert!(find("ArgMax", 2).run().is_err());
    }

    #[test]
    fn the_top_is_sorted_and_ties_keep_their_order() {
        let x = floats(&[1.0, 4.0, 2.0, 4.0, 3.0, 0.0, 0.0, 5.0], &[2, 4]);
        let top = |case: Case| {
            let mut found = case.run().unwrap();
            let places = found.remove(1);
            (found.remove(0), places)
        };
        let (values, places) = top(case("TopK").input(&x).input(&ints(&[2])));
        assert_same(&values, &floats(&[4.0, 4.0, 5.0, 3.0], &[2, 2]));
        assert_same(&places, &ints(&[1, 3, 3, 0]).reshape([2, 2]));
        let (values, places) = top(case("TopK").opset(9).input(&x).int("k", 3).int("largest", 0));
        assert_same(&values, &floats(&[1.0, 2.0, 4.0, 0.0, 0.0, 3.0], &[2, 3]));
        assert_same(&places, &ints(&[0, 2, 1, 1, 2, 0]).reshape([2, 3]));
        let (values, _) = top(case("TopK").input(&x).input(&ints(&[1])).int("axis", 0));
        assert_same(&values, &floats(&[3.0, 4.0, 2.0, 5.0], &[1, 4]));
        for count in [5, -1, i64::MAX, i64::MIN] {
            assert!(case("TopK").input(&x).input(&ints(&[count])).run().is_err(), "{count}");
        }
        let x = values.reshape([-1]).to_kind(Kind::Double);
        assert_gradient(|x| case("TopK").input(x).input(&ints(&[2])).first(), &x);
    }

    #[test]
    fn sums_accumulate_in_both_directions() {
        let x = floats(&[1.0, 2.0, 3.0], &[1, 3]);
        let sums = |exclusive: i64, reverse: i64| {
            let case = case("CumSum").input(&x).input(&Tensor::from(1_i32));
            case.int("exclusive", exclusive).int("reverse", reverse).first()
        };
        assert_same(&sums(0, 0), &floats(&[1.0, 3.0, 6.0], &[1, 3]));
        assert_same(&sums(1, 0), &floats(&[0.0, 1.0, 3.0], &[1, 3]));
        assert_same(&sums(0, 1), &floats(&[6.0, 5.0, 3.0], &[1, 3]));
        assert_same(&sums(1, 1), &floats(&[5.0, 3.0, 0.0], &[1, 3]));
        let whole = case("CumSum").input(&Tensor::from_slice(&[1_i32, 2])).input(&Tensor::from(-1_i64));
        assert_same(&whole.first(), &Tensor::from_slice(&[1_i32, 3]));
        assert!(case("CumSum").input(&x).input(&Tensor::from(2_i64)).run().is_err());
    }

    #[test]
    fn hardmax_marks_the_first_largest() {
        let x = floats(&[1.0, 3.0, 3.0, 2.0], &[2, 1, 2]);
        assert_same(&case("Hardmax").input(&x).first(), &floats(&[0.0, 1.0, 1.0, 0.0], &[2, 1, 2]));
        let over_all = case("Hardmax").opset(11).input(&x).int("axis", 0).first();
        assert_same(&over_all, &floats(&[0.0, 1.0, 0.0, 0.0], &[2, 1, 2]));
        let first = case("Hardmax").input(&x).int("axis", 0).first();
        assert_same(&first, &floats(&[0.0, 1.0, 1.0, 0.0], &[2, 1, 2]));
    }
}
