//! Resampling along any axes: by picking the nearest element, or as a weighted sum of two or four.

use talion_core::Result;
use tch::{Kind, Tensor};

use super::{
    Call, Kernel,
    arithmetic::{floating, grown},
    distinct, is_floating, product,
};

pub(super) const OPS: &[(&str, Kernel)] = &[("Resize", resize), ("Upsample", upsample)];

/// The longest side of a result.
const LONGEST: i64 = 1 << 20;

/// The most weights of one axis, as many as take 4096 elements to 4096 others.
const MOST_WEIGHTS: i64 = 1 << 24;

/// The most scales in a list.
const MOST_SCALES: usize = 16;

/// How a place in the result is mapped to a place in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coordinates {
    /// The borders of the images coincide.
    HalfPixel,
    /// The same, but a side of length 1 is the first element.
    PytorchHalfPixel,
    /// The same half a pixel further, for the nearest element.
    ShiftedHalfPixel,
    /// The first elements coincide, and the last.
    AlignCorners,
    /// The first elements coincide.
    Asymmetric,
}

/// How the place of the nearest element becomes a whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rounding {
    HalfDown,
    HalfUp,
    Down,
    Up,
    /// As ONNX Runtime does it before operator set 11, where the standard says nothing: up if the result is smaller.
    UpIfSmaller,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Nearest(Rounding),
    Linear,
    /// With the coefficient of Keys (1981).
    Cubic(f64),
}

/// How an axis is resampled.
#[derive(Clone, Copy, Debug)]
struct Sampling {
    mode: Mode,
    coordinates: Coordinates,
    /// Whether elements outside the input have no weight, rather than the value of the nearest one inside.
    excludes_outside: bool,
}

/// What becomes of an axis.
#[derive(Clone, Copy, Debug)]
struct Axis {
    place: i64,
    from: i64,
    to: i64,
    /// The scale if that is what the node gives, and not the length.
    scale: Option<f32>,
}

impl Axis {
    /// A place of the result divided by the scale.
    fn unscaled(&self, place: f64, is_nearest: bool) -> f64 {
        match self.scale {
            None => place * self.from as f64 / self.to as f64,
            // which element is nearest is decided in the precision of the scale: 0.3 is no more exact than that
            Some(scale) if is_nearest => f64::from(place as f32 / scale),
            Some(scale) => place / f64::from(scale),
        }
    }

    fn is_unchanged(&self) -> bool {
        self.from == self.to && self.scale.is_none_or(|scale| scale == 1.0)
    }
}

impl Sampling {
    fn read(call: &Call<'_>) -> Result<Self> {
        let attributes = call.attributes();
        let mode = match attributes.text("mode", "nearest")? {
            "nearest" => Mode::Nearest(rounding(call)?),
            "linear" => Mode::Linear,
            "cubic" => Mode::Cubic(attributes.float("cubic_coeff_a", -0.75)?),
            _ => return Err(call.refuse("its mode is none of nearest, linear and cubic")),
        };
        let excludes_outside = attributes.int("exclude_outside", 0)? != 0;
        Ok(Self { mode, coordinates: coordinates(call)?, excludes_outside })
    }

    /// The place in the input that a place in the result is taken from.
    fn source(&self, axis: &Axis, place: i64) -> f64 {
        let is_nearest = matches!(self.mode, Mode::Nearest(_));
        let half = place as f64 + 0.5;
        match self.coordinates {
            Coordinates::AlignCorners | Coordinates::PytorchHalfPixel if axis.to == 1 => 0.0,
            Coordinates::HalfPixel | Coordinates::PytorchHalfPixel => axis.unscaled(half, is_nearest) - 0.5,
            Coordinates::ShiftedHalfPixel => axis.unscaled(half, is_nearest),
            Coordinates::AlignCorners => place as f64 * (axis.from - 1) as f64 / (axis.to - 1) as f64,
            Coordinates::Asymmetric => axis.unscaled(place as f64, is_nearest),
        }
    }

    /// The elements around `source` with their weights.
    fn taps(&self, source: f64, length: i64) -> Vec<(i64, f64)> {
        let low = source.floor();
        let part = source - low;
        let steps = if matches!(self.mode, Mode::Cubic(_)) { -1..3 } else { 0..2 };
        let tap = |step: i64| (low as i64 + step, self.weight((part - step as f64).abs()));
        let mut taps: Vec<(i64, f64)> = steps.map(tap).collect();
        if self.excludes_outside {
            taps.retain(|(index, _)| (0..length).contains(index));
            let sum: f64 = taps.iter().map(|(_, weight)| weight).sum();
            for (_, weight) in &mut taps {
                *weight /= sum;
            }
        }
        taps
    }

    /// The weight of an element at a distance.
    fn weight(&self, distance: f64) -> f64 {
        match self.mode {
            Mode::Nearest(_) | Mode::Linear => 1.0 - distance,
            Mode::Cubic(a) if distance <= 1.0 => {
                ((a + 2.0) * distance - (a + 3.0)) * distance * distance + 1.0
            }
            Mode::Cubic(a) => (((distance - 5.0) * distance + 8.0) * distance - 4.0) * a,
        }
    }
}

fn rounding(call: &Call<'_>) -> Result<Rounding> {
    if call.opset < 11 {
        return Ok(Rounding::UpIfSmaller);
    }
    match call.attributes().text("nearest_mode", "round_prefer_floor")? {
        "round_prefer_floor" => Ok(Rounding::HalfDown),
        "round_prefer_ceil" => Ok(Rounding::HalfUp),
        "floor" => Ok(Rounding::Down),
        "ceil" => Ok(Rounding::Up),
        _ => Err(call.refuse("its nearest_mode is unknown")),
    }
}

fn coordinates(call: &Call<'_>) -> Result<Coordinates> {
    if call.opset < 11 {
        return Ok(Coordinates::Asymmetric);
    }
    match call.attributes().text("coordinate_transformation_mode", "half_pixel")? {
        "half_pixel" => Ok(Coordinates::HalfPixel),
        "pytorch_half_pixel" => Ok(Coordinates::PytorchHalfPixel),
        "tf_half_pixel_for_nn" => Ok(Coordinates::ShiftedHalfPixel),
        "align_corners" => Ok(Coordinates::AlignCorners),
        "asymmetric" => Ok(Coordinates::Asymmetric),
        _ => Err(call.refuse("its coordinate_transformation_mode is not supported")),
    }
}

fn upsample(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let scales = match call.attributes().floats("scales")? {
        Some(scales) => Some(scales.to_vec()),
        None => scales(call, 1)?,
    };
    let scales = scales.ok_or_else(|| call.refuse("its scales are missing"))?;
    // whatever operator set calls it: this operator ends with the 9th
    let call = Call { opset: call.opset.min(9), ..*call };
    let x = call.input(0)?;
    let places: Vec<i64> = (0..x.dim() as i64).collect();
    sample(&call, x, &by_scale(&call, &x.size(), &places, &scales)?)
}

fn resize(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let (x, attributes) = (call.input(0)?, call.attributes());
    if attributes.int("antialias", 0)? != 0 {
        return Err(call.refuse("antialiasing is not supported"));
    }
    let places = match attributes.ints("axes")? {
        Some(list) => distinct(call, list, x.dim())?,
        None => (0..x.dim() as i64).collect(),
    };
    let (scales, lengths) = if call.opset < 11 {
        (scales(call, 1)?, None)
    } else {
        // an input that is there but empty counts as absent
        (scales(call, 2)?, call.ints(3)?.filter(|lengths| !lengths.is_empty()))
    };
    let axes = match (scales, lengths) {
        (Some(scales), None) => by_scale(call, &x.size(), &places, &scales)?,
        (None, Some(lengths)) => by_length(call, &x.size(), &places, &lengths)?,
        _ => return Err(call.refuse("it needs either scales or sizes")),
    };
    sample(call, x, &axes)
}

/// The floating-point input at `place` as a list; an empty one counts as absent.
fn scales(call: &Call<'_>, place: usize) -> Result<Option<Vec<f32>>> {
    let Some(scales) = call.optional(place).filter(|scales| scales.numel() > 0) else { return Ok(None) };
    if !is_floating(scales.kind()) || scales.numel() > MOST_SCALES {
        let (count, kind) = (scales.numel(), scales.kind());
        return Err(call.refuse(format!("{count} scales of type {kind:?}")));
    }
    Ok(Some(Vec::<f32>::try_from(&scales.f_to_kind(Kind::Float)?.f_reshape([-1])?)?))
}

fn check_count(call: &Call<'_>, places: &[i64], count: usize) -> Result<()> {
    if count == places.len() {
        Ok(())
    } else {
        Err(call.refuse(format!("{count} scales or sizes for {} axes", places.len())))
    }
}

fn by_scale(call: &Call<'_>, sides: &[i64], places: &[i64], scales: &[f32]) -> Result<Vec<Axis>> {
    check_count(call, places, scales.len())?;
    let mut axes = vec![];
    for (&place, &scale) in places.iter().zip(scales) {
        let from = sides[place as usize];
        let to = (from as f32 * scale).floor();
        if !(1.0..=LONGEST as f32).contains(&to) && scale != 1.0 {
            return Err(call.refuse(format!("a scale of {scale} makes the length {from} unusable")));
        }
        let to = if scale == 1.0 { from } else { to as i64 };
        axes.push(Axis { place, from, to, scale: Some(scale) });
    }
    Ok(axes)
}

fn by_length(call: &Call<'_>, sides: &[i64], places: &[i64], lengths: &[i64]) -> Result<Vec<Axis>> {
    if call.attributes().text("keep_aspect_ratio_policy", "stretch")? != "stretch" {
        return Err(call.refuse("sizes that keep the aspect ratio are not supported"));
    }
    check_count(call, places, lengths.len())?;
    let mut axes = vec![];
    for (&place, &to) in places.iter().zip(lengths) {
        let from = sides[place as usize];
        if to != from && !(1..=LONGEST).contains(&to) {
            return Err(call.refuse(format!("a side of length {to}, expected 1 to 2^20")));
        }
        axes.push(Axis { place, from, to, scale: None });
    }
    Ok(axes)
}

fn sample(call: &Call<'_>, x: &Tensor, axes: &[Axis]) -> Result<Vec<Tensor>> {
    let sampling = Sampling::read(call)?;
    let mut y = x.shallow_clone();
    for axis in axes.iter().filter(|axis| !axis.is_unchanged()) {
        if axis.from < 1 {
            return Err(call.refuse("an axis without elements cannot be resampled"));
        }
        let mut shape = y.size();
        shape[axis.place as usize] = axis.to;
        grown(call, &shape, &[x])?;
        y = match sampling.mode {
            Mode::Nearest(rounding) => pick(&y, axis, &nearest(&sampling, axis, rounding), &shape)?,
            Mode::Linear | Mode::Cubic(_) => {
                let _ = floating(call)?;
                weigh(&y, axis, &weights(call, &sampling, axis)?)?
            }
        };
    }
    Ok(vec![y])
}

/// The element of the input that is nearest to each of the result.
fn nearest(sampling: &Sampling, axis: &Axis, rounding: Rounding) -> Vec<i64> {
    let is_smaller = axis.scale.map_or(axis.to < axis.from, |scale| scale < 1.0);
    let index = |place: i64| {
        let source = sampling.source(axis, place);
        let index = match rounding {
            Rounding::HalfDown => (source - 0.5).ceil(),
            Rounding::HalfUp => (source + 0.5).floor(),
            Rounding::Up => source.ceil(),
            Rounding::UpIfSmaller if is_smaller => source.ceil(),
            Rounding::Down | Rounding::UpIfSmaller => source.floor(),
        };
        (index as i64).clamp(0, axis.from - 1)
    };
    (0..axis.to).map(index).collect()
}

/// The elements with the given indices, of which there are as many as `shape` says.
fn pick(x: &Tensor, axis: &Axis, indices: &[i64], shape: &[i64]) -> Result<Tensor> {
    let times = axis.to / axis.from;
    let is_repeated = axis.to % axis.from == 0
        && indices.iter().zip(0..).all(|(&index, place): (&i64, i64)| index == place / times);
    if !is_repeated {
        let indices = Tensor::f_from_slice(indices)?.f_to_device(x.device())?;
        return Ok(x.f_index_select(axis.place, &indices)?);
    }
    // its gradient is a sum in a fixed order, which that of a selection on a GPU is not
    let mut spread = x.size();
    spread.insert(axis.place as usize + 1, times);
    Ok(x.f_unsqueeze(axis.place + 1)?.f_expand(spread, false)?.f_reshape(shape)?)
}

/// The weights of all elements of the input, `[to, from]`, on the CPU.
fn weights(call: &Call<'_>, sampling: &Sampling, axis: &Axis) -> Result<Tensor> {
    let count = product(call, &[axis.from, axis.to])?;
    if count > MOST_WEIGHTS {
        let Axis { from, to, .. } = axis;
        return Err(call.refuse(format!("from a length of {from} to one of {to} there are too many weights")));
    }
    let mut weights = vec![0.0; count as usize];
    for (row, place) in weights.chunks_exact_mut(axis.from as usize).zip(0..) {
        for (index, weight) in sampling.taps(sampling.source(axis, place), axis.from) {
            row[index.clamp(0, axis.from - 1) as usize] += weight;
        }
    }
    Ok(Tensor::f_from_slice::<f64>(&weights)?.f_reshape([axis.to, axis.from])?)
}

/// The weighted sums along an axis.
fn weigh(x: &Tensor, axis: &Axis, weights: &Tensor) -> Result<Tensor> {
    let weights = weights.f_transpose(0, 1)?.f_to_kind(x.kind())?.f_to_device(x.device())?;
    Ok(x.f_transpose(axis.place, -1)?.f_matmul(&weights)?.f_transpose(axis.place, -1)?)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            arithmetic::twice::{assert_gradients, wave},
            testing::{Case, assert_same, case, floats, ints, ramp},
        },
        *,
    };
    use crate::Attribute;

    fn to_lengths(x: &Tensor, lengths: &[i64]) -> Case {
        case("Resize").input(x).absent().absent().input(&ints(lengths))
    }

    fn by_scales(x: &Tensor, scales: &[f32]) -> Case {
        case("Resize").input(x).absent().input(&Tensor::from_slice(scales))
    }

    #[test]
    fn the_nearest_element_depends_on_the_mode() {
        let x = ramp(&[4]);
        let table: [(&str, &str, &[f32]); 8] = [
            ("half_pixel", "round_prefer_floor", &[0., 0., 1., 2., 2., 3.]),
            ("half_pixel", "round_prefer_ceil", &[0., 1., 1., 2., 3., 3.]),
            ("half_pixel", "floor", &[0., 0., 1., 1., 2., 3.]),
            ("half_pixel", "ceil", &[0., 1., 2., 2., 3., 3.]),
            ("asymmetric", "floor", &[0., 0., 1., 2., 2., 3.]),
            ("asymmetric", "round_prefer_floor", &[0., 1., 1., 2., 3., 3.]),
            ("align_corners", "round_prefer_floor", &[0., 1., 1., 2., 2., 3.]),
            ("tf_half_pixel_for_nn", "floor", &[0., 1., 1., 2., 3., 3.]),
        ];
        for (coordinates, rounding, expected) in table {
            let set = |call: Case| {
                call.text("coordinate_transformation_mode", coordinates).text("nearest_mode", rounding)
            };
            assert_same(&set(to_lengths(&x, &[6])).first(), &floats(expected, &[6]));
            assert_same(&set(by_scales(&x, &[1.5])).first(), &floats(expected, &[6]));
        }
        assert_same(&to_lengths(&ints(&[1, 2]), &[4]).first(), &ints(&[1, 1, 2, 2]));
    }

    #[test]
    fn old_operator_sets_have_their_own_mode() {
        let x = ramp(&[2, 4]) + 1.0;
        let scales = |scales: &[f32]| Tensor::from_slice(scales);
        let small = case("Resize").opset(10).input(&x).input(&scales(&[0.6, 0.6])).first();
        assert_same(&small, &floats(&[1., 3.], &[1, 2]));
        let expected = ramp(&[2, 4]).repeat_interleave_self_int(3, 0_i64, None) + 1.0;
        let upsample = || case("Upsample").input(&x);
        assert_same(&upsample().opset(9).input(&scales(&[3.0, 1.0])).first(), &expected);
        let listed = upsample().opset(7).with("scales", Attribute::Floats(vec![3.0, 1.0]));
        assert_same(&listed.first(), &expected);
        let linear = upsample().opset(9).text("mode", "linear").input(&scales(&[1.0, 2.0])).first();
        let row = [1., 1.5, 2., 2.5, 3., 3.5, 4., 4., 5., 5.5, 6., 6.5, 7., 7.5, 8., 8.];
        assert_same(&linear, &floats(&row, &[2, 8]));
        assert!(upsample().opset(9).run().is_err());
    }

    #[test]
    fn images_are_resized_as_libtorch_does() {
        let x = wave(&[2, 3, 5, 6]);
        for size in [[10, 12], [7, 4], [3, 11], [1, 1], [5, 6]] {
            let to = |mode: &str, coordinates: &str| {
                let call = to_lengths(&x, &[2, 3, size[0], size[1]]).text("mode", mode);
                call.text("coordinate_transformation_mode", coordinates).text("nearest_mode", "floor").first()
            };
            let nearest = x.upsample_nearest2d(size, None, None);
            assert_same(&to("nearest", "asymmetric"), &nearest);
            for (coordinates, are_aligned) in [("half_pixel", false), ("align_corners", true)] {
                let linear = x.upsample_bilinear2d(size, are_aligned, None, None);
                assert_same(&to("linear", coordinates), &linear);
                let cubic = x.upsample_bicubic2d(size, are_aligned, None, None);
                assert_same(&to("cubic", coordinates), &cubic);
            }
        }
    }

    #[test]
    fn scales_are_used_as_they_are() {
        // 5 * 0.7 is 3.5: three elements at distance 1 / 0.7
        let y = by_scales(&ramp(&[5]), &[0.7]).text("mode", "linear").first();
        assert_same(&y, &floats(&[0.5, 1.5, 2.5].map(|place: f32| place / 0.7 - 0.5), &[3]));
        // in double precision 10 * 0.7 would be a little less than 7
        assert_eq!(by_scales(&ramp(&[10]), &[0.7]).first().size(), [7]);
        let third = by_scales(&ramp(&[9]), &[1.0 / 3.0]).text("coordinate_transformation_mode", "asymmetric");
        assert_same(&third.text("nearest_mode", "floor").first(), &floats(&[0., 3., 6.], &[3]));
    }

    #[test]
    fn only_the_named_axes_are_resized() {
        let x = wave(&[2, 3, 4]);
        let y = by_scales(&x, &[2.0, 0.5]).ints("axes", &[-1, 0]).first();
        assert_same(&y, &by_scales(&x, &[0.5, 1.0, 2.0]).first());
        let y = to_lengths(&x, &[6]).ints("axes", &[1]).text("mode", "linear").first();
        assert_eq!(y.size(), [2, 6, 4]);
        assert!(to_lengths(&x, &[6, 6]).ints("axes", &[1, -2]).run().is_err());
        assert!(to_lengths(&x, &[6]).ints("axes", &[3]).run().is_err());
    }

    #[test]
    fn what_lies_outside_can_be_left_out() {
        let x = floats(&[1., 2., 3.], &[3]);
        let ends = |excludes: i64| {
            let call = to_lengths(&x, &[6]).text("mode", "cubic").int("exclude_outside", excludes);
            let y = call.with("cubic_coeff_a", Attribute::Float(-0.5)).first();
            (y.double_value(&[0]), y.double_value(&[5]))
        };
        // The first place lies at -0.25, at distances of 1.75, 0.75, 0.25 and 1.25 from its neighbours. Their weights
        // are -3, 29, 111 and -9 of 128; the first three neighbours are the 1 at the beginning.
        let (first, last) = ends(0);
        assert!((first - (137.0 - 9.0 * 2.0) / 128.0).abs() < 1e-6, "{first}");
        assert!((last - (137.0 * 3.0 - 9.0 * 2.0) / 128.0).abs() < 1e-6, "{last}");
        let (first, last) = ends(1);
        assert!((first - (111.0 - 9.0 * 2.0) / 102.0).abs() < 1e-6, "{first}");
        assert!((last - (111.0 * 3.0 - 9.0 * 2.0) / 102.0).abs() < 1e-6, "{last}");
    }

    #[test]
    fn all_modes_have_two_derivatives() {
        let x = wave(&[1, 2, 3, 4]);
        for mode in ["nearest", "linear", "cubic"] {
            for lengths in [[1, 2, 6, 8], [1, 2, 2, 5]] {
                let of = |x: &Tensor| to_lengths(x, &lengths).text("mode", mode).first().square();
                assert_gradients(of, &x);
            }
        }
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        let x = ramp(&[2, 4]);
        let good = || to_lengths(&x, &[2, 8]);
        assert!(good().run().is_ok());
        let empty = floats(&[], &[0]);
        let old = case("Resize").opset(11).input(&x).input(&empty).input(&empty).input(&ints(&[2, 8]));
        assert!(old.run().is_ok());
        let bad = [
            good().int("antialias", 1),
            good().text("keep_aspect_ratio_policy", "not_larger"),
            good().text("coordinate_transformation_mode", "tf_crop_and_resize"),
            good().text("coordinate_transformation_mode", "half_pixel_symmetric"),
            good().text("mode", "area"),
            good().text("nearest_mode", "simple"),
            case("Resize").input(&x),
            case("Resize").input(&x).absent().input(&floats(&[1., 2.], &[2])).input(&ints(&[2, 8])),
            to_lengths(&x, &[8]),
            to_lengths(&x, &[2, 0]),
            to_lengths(&x, &[2, -8]),
            to_lengths(&x, &[2, i64::MAX]),
            to_lengths(&x, &[1 << 15, 1 << 15]),
            by_scales(&x, &[1.0]),
            by_scales(&x, &[1.0, 0.1]),
            by_scales(&x, &[1.0, -1.0]),
            by_scales(&x, &[1.0, f32::NAN]),
            by_scales(&x, &[1.0, f32::INFINITY]),
            by_scales(&x, &[1.0, 1e30]),
            case("Resize").input(&x).absent().input(&ints(&[1, 2])),
            to_lengths(&ints(&[1, 2]), &[4]).text("mode", "linear"),
            to_lengths(&ramp(&[64]), &[1 << 20]).text("mode", "linear"),
            to_lengths(&ramp(&[2, 0]), &[2, 4]),
        ];
        for (place, case) in bad.iter().enumerate() {
            assert!(case.run().is_err(), "{place}");
        }
    }
}
