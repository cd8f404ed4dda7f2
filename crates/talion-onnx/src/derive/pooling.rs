//! Derivative rules of pooling and of reductions.

use talion_core::Result;
use tch::{Kind, Tensor};

use super::{
    Rule,
    linear::{Window, slide_back},
    shapes::Extent,
    step::{Gradients, Step},
};
use crate::{attributes::Attribute, build::Var};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("AveragePool", average_pool),
    ("GlobalAveragePool", global_average_pool),
    ("GlobalMaxPool", global_max_pool),
    ("MaxPool", max_pool),
    ("ReduceL1", reduce_l1),
    ("ReduceL2", reduce_l2),
    ("ReduceLogSumExp", reduce_log_sum_exp),
    ("ReduceMax", reduce_extreme),
    ("ReduceMean", reduce_mean),
    ("ReduceMin", reduce_extreme),
    ("ReduceSum", reduce_sum),
    ("ReduceSumSquare", reduce_sum_square),
];

/// The first maximum of a window takes its cotangent. Windows may overlap, so cotangents are added up where the
/// forward pass found the maxima; it counts their places over the whole batch.
fn max_pool(s: &mut Step<'_>) -> Result<Gradients> {
    if s.int("storage_order", 0)? != 0 {
        return Err(s.refuse("has no derivative rule for places counted by columns"));
    }
    let (g, x, places) = (s.cotangent()?, s.input(0)?, s.output(1)?);
    let nothing = s.b.zeros_like(&x);
    let [nothing, places, g] = [&nothing, &places, &g].map(|value| s.b.reshape(value, &[-1]));
    let attributes = vec![("axis", Attribute::Int(0)), ("reduction", Attribute::Text("add".into()))];
    let sum = s.b.node("ScatterElements", &[&nothing, &places, &g], attributes);
    Ok(vec![Some(s.reshaped(&sum, 0)?)])
}

/// Each cotangent is divided by what its window has counted, and spread over the window by a transposed convolution
/// with a kernel of ones.
fn average_pool(s: &mut Step<'_>) -> Result<Gradients> {
    let (sides, windows) = (s.extents(0)?, s.output_extents(0)?);
    let (image, slid) = (s.spatial(sides)?, s.spatial(windows)?);
    let Some(&[Extent::Fixed(channels)]) = sides.get(1..2) else {
        return Err(s.refuse("has channels that follow the batch"));
    };
    let kernel = s.ints("kernel_shape")?.ok_or_else(|| s.refuse("has no kernel_shape"))?;
    let window = Window::of(s, kernel, &image)?;
    let padded = s.int("count_include_pad", 0)? != 0;
    let shares = shares(&window, &image, &slid, padded)?;
    let ones = [vec![1, 1], window.kernel.clone()].concat();
    let ones = Tensor::f_ones(&ones, (Kind::Float, tch::Device::Cpu))?;
    let g = s.cotangent()?;
    let (shares, ones) = (s.b.constant(&shares), s.b.constant(&ones));
    let shared = s.b.mul(&g, &shares);
    // Channels are pooled alike: as further images, they need no kernel each.
    let single = s.b.reshape(&shared, &[vec![-1, 1], slid.clone()].concat());
    let spread = slide_back(s, &single, &ones, &window, &image, &slid, 1)?;
    Ok(vec![Some(s.b.reshape(&spread, &[vec![-1, channels], image].concat()))])
}

/// One over the number of pixels in each window, in the shape of the windows, or as a single number if all are alike.
fn shares(window: &Window, image: &[i64], slid: &[i64], padded: bool) -> Result<Tensor> {
    let mut counts = vec![1_i64];
    for (axis, (&side, &windows)) in image.iter().zip(slid).enumerate() {
        let (before, behind) = (window.before[axis], window.behind[axis]);
        let (low, high) = if padded { (-before, side + behind) } else { (0, side) };
        let along = |index: i64| {
            let start = index * window.strides[axis] - before;
            ((start + window.kernel[axis]).min(high) - start.max(low)).max(1)
        };
        let along: Vec<i64> = (0..windows).map(along).collect();
        counts = counts.iter().flat_map(|count| along.iter().map(move |more| count * more)).collect();
    }
    let share = |count: &i64| (1.0 / *count as f64) as f32;
    Ok(match counts.split_first() {
        Some((first, rest)) if rest.iter().all(|count| count == first) => Tensor::from(share(first)),
        _ => Tensor::f_from_slice(&counts.iter().map(share).collect::<Vec<f32>>())?.f_reshape(slid)?,
    })
}

fn global_average_pool(s: &mut Step<'_>) -> Result<Gradients> {
    let count: i64 = s.spatial(s.extents(0)?)?.iter().product();
    let (g, x, share) = (s.cotangent()?, s.input(0)?, s.b.scalar(1.0 / count as f64));
    let shared = s.b.mul(&g, &share);
    Ok(vec![Some(s.b.expand_like(&shared, &x))])
}

fn global_max_pool(s: &mut Step<'_>) -> Result<Gradients> {
    let axes: Vec<i64> = (2..s.extents(0)?.len() as i64).collect();
    let (g, y) = (s.cotangent()?, s.output(0)?);
    attained(s, &g, &y, &axes)
}

/// The axes of a reduction, none of them negative; `None` if it reduces nothing.
fn axes(s: &Step<'_>) -> Result<Option<Vec<i64>>> {
    let rank = s.extents(0)?.len();
    let given = if s.node.op == "ReduceSum" { s.integers(1)? } else { s.ints("axes")? };
    match given.filter(|axes| !axes.is_empty()) {
        Some(axes) => {
            let place = |axis: &i64| s.axis(*axis, rank).map(|place| place as i64);
            axes.iter().map(place).collect::<Result<_>>().map(Some)
        }
        None if s.int("noop_with_empty_axes", 0)? != 0 => Ok(None),
        None => Ok(Some((0..rank as i64).collect())),
    }
}

/// A value without the reduced axes as one that has them as sides of 1.
fn kept(s: &mut Step<'_>, value: &Var, axes: &[i64]) -> Result<Var> {
    let there = s.int("keepdims", 1)? != 0 || axes.is_empty();
    Ok(if there { value.clone() } else { s.b.unsqueeze(value, axes) })
}

/// A rule of a reduction that makes the gradient of the cotangent and the output, both with the reduced sides.
fn reduction(
    s: &mut Step<'_>,
    rule: impl FnOnce(&mut Step<'_>, &Var, &Var, &[i64]) -> Result<Var>,
) -> Result<Gradients> {
    let g = s.cotangent()?;
    let Some(axes) = axes(s)? else { return Ok(vec![Some(g)]) };
    let y = s.output(0)?;
    let (g, y) = (kept(s, &g, &axes)?, kept(s, &y, &axes)?);
    Ok(vec![Some(rule(s, &g, &y, &axes)?)])
}

fn reduce_sum(s: &mut Step<'_>) -> Result<Gradients> {
    reduction(s, |s, g, _, _| {
        let x = s.input(0)?;
        Ok(s.b.expand_like(g, &x))
    })
}

fn reduce_mean(s: &mut Step<'_>) -> Result<Gradients> {
    reduction(s, |s, g, _, axes| {
        let sides = s.extents(0)?.iter().enumerate();
        let reduced: Vec<Extent> =
            sides.filter(|(axis, _)| axes.contains(&(*axis as i64))).map(|(_, side)| *side).collect();
        let count: i64 = s.fixed(&reduced)?.iter().product();
        let (x, share) = (s.input(0)?, s.b.scalar(1.0 / count as f64));
        let shared = s.b.mul(g, &share);
        Ok(s.b.expand_like(&shared, &x))
    })
}

/// All elements that attain the extreme share the cotangent equally.
fn reduce_extreme(s: &mut Step<'_>) -> Result<Gradients> {
    let g = s.cotangent()?;
    let Some(axes) = axes(s)? else { return Ok(vec![Some(g)]) };
    let y = s.output(0)?;
    let (g, y) = (kept(s, &g, &axes)?, kept(s, &y, &axes)?);
    attained(s, &g, &y, &axes)
}

fn attained(s: &mut Step<'_>, g: &Var, y: &Var, axes: &[i64]) -> Result<Gradients> {
    let x = s.input(0)?;
    let equal = s.b.equal(&x, y);
    let mask = s.b.cast(&equal, Kind::Float);
    let count = s.b.reduce_sum(&mask, axes, true);
    let share = s.b.div(g, &count);
    Ok(vec![Some(s.b.mul(&mask, &share))])
}

fn reduce_l1(s: &mut Step<'_>) -> Result<Gradients> {
    reduction(s, |s, g, _, _| {
        let x = s.input(0)?;
        let sign = s.b.sign(&x);
        Ok(s.b.mul(&sign, g))
    })
}

/// The slope is 0 where the norm is, as in libtorch.
fn reduce_l2(s: &mut Step<'_>) -> Result<Gradients> {
    reduction(s, |s, g, y, _| {
        let (x, zero) = (s.input(0)?, s.b.scalar(0.0));
        let (share, none) = (s.b.div(g, y), s.b.equal(y, &zero));
        let share = s.b.where_(&none, &zero, &share);
        Ok(s.b.mul(&x, &share))
    })
}

fn reduce_sum_square(s: &mut Step<'_>) -> Result<Gradients> {
    reduction(s, |s, g, _, _| {
        let (x, two) = (s.input(0)?, s.b.scalar(2.0));
        let double = s.b.mul(g, &two);
        Ok(s.b.mul(&x, &double))
    })
}

fn reduce_log_sum_exp(s: &mut Step<'_>) -> Result<Gradients> {
    reduction(s, |s, g, y, _| {
        let x = s.input(0)?;
        let below = s.b.sub(&x, y);
        let share = s.b.exp(&below);
        Ok(s.b.mul(&share, g))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::check::{agrees, network, refusal};

    fn ints(name: &'static str, values: &[i64]) -> (&'static str, Attribute) {
        (name, Attribute::Ints(values.to_vec()))
    }

    fn int(name: &'static str, value: i64) -> (&'static str, Attribute) {
        (name, Attribute::Int(value))
    }

    fn check(op: &str, image: [i64; 3], attributes: Vec<(&str, Attribute)>) {
        let network = network(image, |b, x| {
            let y = b.node(op, &[x], attributes);
            b.tanh(&y)
        });
        agrees(&network, image);
    }

    #[test]
    fn maxima_of_overlapping_windows() {
        let image = [3, 9, 8];
        check("MaxPool", image, vec![ints("kernel_shape", &[3, 3]), ints("strides", &[1, 2])]);
        let padded = ints("pads", &[1, 1, 1, 1]);
        check("MaxPool", image, vec![ints("kernel_shape", &[3, 3]), ints("strides", &[2, 2]), padded]);
        let ceiled = int("ceil_mode", 1);
        check("MaxPool", image, vec![ints("kernel_shape", &[2, 3]), ints("strides", &[2, 3]), ceiled]);
        check("MaxPool", image, vec![ints("kernel_shape", &[2, 2]), ints("dilations", &[2, 3])]);
    }

    #[test]
    fn the_first_of_equal_maxima_takes_all() {
        let image = [2, 4, 4];
        let network = network(image, |b, x| {
            // Two and two pixels are equal.
            let small = b.slice(x, 3, 0, 2);
            let equal = b.upsample_nearest(&small, 4, 4);
            let y = b.max_pool(&equal, [2, 3], [2, 1], [0, 1]);
            b.mul(&y, &y)
        });
        agrees(&network, image);
    }

    #[test]
    fn means_of_windows() {
        let image = [3, 9, 8];
        let window = || vec![ints("kernel_shape", &[3, 2]), ints("strides", &[2, 2])];
        check("AveragePool", image, window());
        check("AveragePool", image, vec![ints("kernel_shape", &[3, 3])]);
        check("AveragePool", image, vec![ints("kernel_shape", &[3, 4]), ints("strides", &[3, 4])]);
        for include in [0, 1] {
            let with = |more: Vec<(&'static str, Attribute)>| {
                let include = vec![int("count_include_pad", include)];
                [window(), include, more].into_iter().flatten().collect::<Vec<_>>()
            };
            check("AveragePool", image, with(vec![ints("pads", &[1, 1, 1, 1])]));
            check("AveragePool", image, with(vec![ints("pads", &[0, 1, 1, 0])]));
            check("AveragePool", image, with(vec![int("ceil_mode", 1)]));
        }
        let same = ("auto_pad", Attribute::Text("SAME_UPPER".into()));
        check("AveragePool", image, vec![ints("kernel_shape", &[2, 3]), ints("strides", &[2, 2]), same]);
    }

    #[test]
    fn windows_count_what_is_in_them() {
        let of = |before: i64, behind: i64, padded: bool, slid: i64| {
            let (before, behind) = (vec![before], vec![behind]);
            let window = Window { kernel: vec![3], strides: vec![2], dilations: vec![1], before, behind };
            Vec::<f32>::try_from(shares(&window, &[5], &[slid], padded).unwrap().reshape([-1])).unwrap()
        };
        assert_eq!(of(0, 0, false, 2), [1.0 / 3.0]);
        assert_eq!(of(1, 1, false, 3), [0.5, 1.0 / 3.0, 0.5]);
        assert_eq!(of(1, 1, true, 3), [1.0 / 3.0]);
        // A window that reaches behind the padding counts what is before its end.
        assert_eq!(of(0, 1, true, 3), [1.0 / 3.0, 1.0 / 3.0, 0.5]);
    }

    #[test]
    fn whole_images() {
        let image = [3, 5, 4];
        check("GlobalAveragePool", image, vec![]);
        check("GlobalMaxPool", image, vec![]);
    }

    #[test]
    fn reductions_over_some_and_all_sides() {
        let image = [3, 5, 4];
        for op in [
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceSumSquare",
        ] {
            check(op, image, vec![ints("axes", &[1, -1])]);
            check(op, image, vec![ints("axes", &[2]), int("keepdims", 0)]);
        }
        for keep in [true, false] {
            let network = network(image, |b, x| {
                let y = b.reduce_sum(x, &[-2, 3], keep);
                b.tanh(&y)
            });
            agrees(&network, image);
        }
    }

    #[test]
    fn extremes_that_are_attained_twice_count_once() {
        let image = [2, 3, 4];
        let network = network(image, |b, x| {
            let twice = b.concat(&[x, x], 2);
            let y = b.reduce_max(&twice, &[2], false);
            b.mul(&y, &y)
        });
        agrees(&network, image);
    }

    #[test]
    fn a_mean_over_the_batch_is_refused() {
        let network = network([2, 3, 4], |b, x| {
            let mean = b.reduce_mean(x, &[0], true);
            b.sub(x, &mean)
        });
        let message = refusal(&network, [2, 3, 4]);
        assert!(message.contains("ReduceMean") && message.contains("batch"), "{message}");
    }
}
