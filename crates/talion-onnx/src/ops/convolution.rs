//! Convolutions, and the sliding windows that they have in common with the poolings.

use talion_core::Result;
use tch::Tensor;

use super::{Call, Kernel, arithmetic::grown};

pub(super) const OPS: &[(&str, Kernel)] = &[("Conv", conv), ("ConvTranspose", conv_transpose)];

/// The longest stride, dilation or padding.
const FARTHEST: i64 = 1 << 20;

/// The longest side: its product with [`FARTHEST`] stays far inside `i64`.
const LONGEST: i64 = 1 << 28;

/// A window that slides along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// The length of the axis.
    pub side: i64,
    /// The number of elements that the window sees at once.
    pub kernel: i64,
    /// The distance between two positions of the window.
    pub stride: i64,
    /// The distance between two elements that the window sees.
    pub dilation: i64,
    /// Elements added before the first.
    pub begin: i64,
    /// Elements added behind the last.
    pub end: i64,
}

impl Window {
    /// From the first to the last element that the window sees.
    pub(super) fn reach(&self) -> i64 {
        (self.kernel - 1) * self.dilation + 1
    }

    /// The number of steps that the window can move, negative if it does not fit at all.
    pub(super) fn room(&self) -> i64 {
        self.side + self.begin + self.end - self.reach()
    }

    /// The number of positions at which the whole window lies on the padded axis; 0 or less if there is none.
    pub(super) fn positions(&self) -> i64 {
        self.room().div_euclid(self.stride) + 1
    }
}

/// What the attribute `auto_pad` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Auto {
    /// The attribute `pads` says how much.
    Not,
    /// No padding.
    Valid,
    /// One position for each stride; an odd element goes to the end.
    Upper,
    /// The same, but an odd element goes to the beginning.
    Lower,
}

/// The attribute `auto_pad`.
pub(super) fn auto_pad(call: &Call<'_>) -> Result<Auto> {
    match call.attributes().text("auto_pad", "NOTSET")? {
        "NOTSET" | "" => Ok(Auto::Not),
        "VALID" => Ok(Auto::Valid),
        "SAME_UPPER" => Ok(Auto::Upper),
        "SAME_LOWER" => Ok(Auto::Lower),
        _ => Err(call.refuse("auto_pad is none of NOTSET, VALID, SAME_UPPER and SAME_LOWER")),
    }
}

/// An attribute that is a list of `count` integers, each at least `least`.
fn numbers(call: &Call<'_>, name: &str, count: usize, least: i64, default: i64) -> Result<Vec<i64>> {
    let Some(list) = call.attributes().ints(name)? else { return Ok(vec![default; count]) };
    if list.len() != count {
        return Err(call.refuse(format!("{name} has {} entries, expected {count}", list.len())));
    }
    match list.iter().find(|entry| !(least..=FARTHEST).contains(*entry)) {
        Some(entry) => Err(call.refuse(format!("{name} has the entry {entry}, expected {least} to 2^20"))),
        None => Ok(list.to_vec()),
    }
}

/// Batch, channels and the sides behind them, of which there are one to three.
pub(super) fn parts<'s>(call: &Call<'_>, sides: &'s [i64]) -> Result<(i64, i64, &'s [i64])> {
    match sides {
        [batch, channels, spatial @ ..]
            if (1..=3).contains(&spatial.len())
                && spatial.iter().chain([channels]).all(|side| (1..=LONGEST).contains(side)) =>
        {
            Ok((*batch, *channels, spatial))
        }
        _ => Err(call.refuse(format!("the shape {sides:?} is not batch, channels and one to three sides"))),
    }
}

/// The windows of a kernel as the attributes `strides`, `dilations` and `pads` describe them.
pub(super) fn windows(call: &Call<'_>, spatial: &[i64], kernel: &[i64]) -> Result<Vec<Window>> {
    let count = spatial.len();
    if kernel.len() != count {
        return Err(call.refuse(format!("a kernel with {} axes for {count} axes", kernel.len())));
    }
    if let Some(side) = kernel.iter().find(|side| !(1..=FARTHEST).contains(*side)) {
        return Err(call.refuse(format!("the kernel has a side of length {side}, expected 1 to 2^20")));
    }
    let strides = numbers(call, "strides", count, 1, 1)?;
    let dilations = numbers(call, "dilations", count, 1, 1)?;
    let pads = numbers(call, "pads", 2 * count, 0, 0)?;
    let window = |place: usize| Window {
        side: spatial[place],
        kernel: kernel[place],
        stride: strides[place],
        dilation: dilations[place],
        begin: pads[place],
        end: pads[count + place],
    };
    Ok((0..count).map(window).collect())
}

/// The window with the padding that `auto` asks for.
pub(super) fn padded(call: &Call<'_>, window: Window, auto: Auto) -> Result<Window> {
    let (begin, end) = match auto {
        Auto::Not => return Ok(window),
        Auto::Valid => (0, 0),
        Auto::Upper | Auto::Lower => {
            let positions = (window.side + window.stride - 1) / window.stride;
            let total = (positions - 1) * window.stride + window.reach() - window.side;
            let begin = if auto == Auto::Upper { total / 2 } else { total - total / 2 };
            if begin < 0 {
                // ONNX Runtime cuts elements off, TensorFlow, whose idea this is, does not
                return Err(call.refuse("auto_pad with a stride that is longer than the kernel is ambiguous"));
            }
            (begin, (total - begin).max(0))
        }
    };
    Ok(Window { begin, end, ..window })
}

/// One number of each window.
pub(super) fn each(windows: &[Window], number: impl Fn(&Window) -> i64) -> Vec<i64> {
    windows.iter().map(number).collect()
}

/// The last axes of `x`, as many as there are entries in `begin` and `end`, padded with a constant.
pub(super) fn pad(call: &Call<'_>, x: &Tensor, begin: &[i64], end: &[i64], value: f64) -> Result<Tensor> {
    if begin.iter().chain(end).all(|&amount| amount == 0) {
        return Ok(x.shallow_clone());
    }
    let mut shape = x.size();
    for ((side, &begin), &end) in shape.iter_mut().rev().zip(begin.iter().rev()).zip(end.iter().rev()) {
        *side += begin + end;
    }
    grown(call, &shape, &[x])?;
    // libtorch wants the last axis first
    let amounts: Vec<i64> = begin.iter().zip(end).rev().flat_map(|(&begin, &end)| [begin, end]).collect();
    Ok(x.f_pad(amounts, "constant", value)?)
}

/// The attribute `group`, by which `channels` has to be divisible.
fn groups(call: &Call<'_>, channels: i64) -> Result<i64> {
    let groups = call.attributes().int("group", 1)?;
    if groups < 1 || channels % groups != 0 {
        return Err(call.refuse(format!("{channels} channels in {groups} groups")));
    }
    Ok(groups)
}

/// Refuses a `kernel_shape` that is not the weight's.
fn check_kernel(call: &Call<'_>, kernel: &[i64]) -> Result<()> {
    match call.attributes().ints("kernel_shape")? {
        Some(list) if list != kernel => {
            Err(call.refuse(format!("kernel_shape does not match the kernel {kernel:?} of the weight")))
        }
        _ => Ok(()),
    }
}

fn conv(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let (x, weight) = (call.input(0)?, call.input(1)?);
    let (sides, filter) = (x.size(), weight.size());
    let (batch, channels, spatial) = parts(call, &sides)?;
    let (outputs, inputs, kernel) = parts(call, &filter)?;
    let groups = groups(call, channels)?;
    if inputs != channels / groups || outputs % groups != 0 {
        return Err(call.refuse(format!("{channels} channels in {groups} groups with weights {filter:?}")));
    }
    check_kernel(call, kernel)?;
    let auto = auto_pad(call)?;
    let windows = windows(call, spatial, kernel)?;
    let windows: Vec<Window> = windows.into_iter().map(|w| padded(call, w, auto)).collect::<Result<_>>()?;
    if windows.iter().any(|window| window.room() < 0) {
        return Err(call.refuse(format!("the kernel {kernel:?} does not fit into {spatial:?}")));
    }
    grown(call, &[vec![batch, outputs], each(&windows, Window::positions)].concat(), &[x])?;
    let is_symmetric = windows.iter().all(|window| window.begin == window.end);
    let (begin, end) = (each(&windows, |w| w.begin), each(&windows, |w| w.end));
    let none = vec![0; windows.len()];
    let (x, padding) =
        if is_symmetric { (x.shallow_clone(), begin) } else { (pad(call, x, &begin, &end, 0.0)?, none) };
    Ok(vec![x.f_convolution(
        weight,
        call.optional(2),
        each(&windows, |w| w.stride),
        padding,
        each(&windows, |w| w.dilation),
        false,
        vec![0; windows.len()],
        groups,
    )?])
}

/// Along one axis, what a transposed convolution adds behind the last element, and which part of the result is kept.
struct Crop {
    extra: i64,
    begin: i64,
    length: i64,
    /// The length before the crop.
    whole: i64,
}

/// The crop of an axis whose result has the length `wanted`, if a length is asked for.
fn crop(window: &Window, extra: i64, wanted: Option<i64>, auto: Auto) -> Crop {
    let whole = window.stride * (window.side - 1) + window.reach() + extra;
    match (wanted, auto) {
        (Some(length), _) => {
            let total = (whole - length).max(0);
            let begin = if auto == Auto::Upper { total / 2 } else { total - total / 2 };
            let missing = (length - whole).max(0);
            Crop { extra: extra + missing, begin, length, whole: whole + missing }
        }
        (None, Auto::Valid) => Crop { extra, begin: 0, length: whole, whole },
        (None, _) => Crop { extra, begin: window.begin, length: whole - window.begin - window.end, whole },
    }
}

fn crops(call: &Call<'_>, windows: &[Window]) -> Result<Vec<Crop>> {
    let auto = auto_pad(call)?;
    let extra = numbers(call, "output_padding", windows.len(), 0, 0)?;
    let wanted: Vec<Option<i64>> = if call.attributes().get("output_shape").is_some() {
        numbers(call, "output_shape", windows.len(), 1, 1)?.into_iter().map(Some).collect()
    } else if matches!(auto, Auto::Upper | Auto::Lower) {
        windows.iter().map(|window| Some(window.side * window.stride)).collect()
    } else {
        vec![None; windows.len()]
    };
    let crops: Vec<Crop> = windows
        .iter()
        .zip(extra)
        .zip(wanted)
        .map(|((window, extra), wanted)| crop(window, extra, wanted, auto))
        .collect();
    if crops.iter().any(|crop| crop.length < 1) {
        return Err(call.refuse("its padding leaves nothing"));
    }
    let reaches = |(window, crop): (&Window, &Crop)| crop.extra < window.stride.max(window.dilation);
    if !windows.iter().zip(&crops).all(reaches) {
        return Err(call.refuse("its result would be longer than the stride and the dilation explain"));
    }
    Ok(crops)
}

fn conv_transpose(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let (x, weight) = (call.input(0)?, call.input(1)?);
    let (sides, filter) = (x.size(), weight.size());
    let (batch, channels, spatial) = parts(call, &sides)?;
    let (inputs, outputs, kernel) = parts(call, &filter)?;
    let groups = groups(call, channels)?;
    if inputs != channels {
        return Err(call.refuse(format!("{channels} channels with weights {filter:?}")));
    }
    check_kernel(call, kernel)?;
    let windows = windows(call, spatial, kernel)?;
    let crops = crops(call, &windows)?;
    let lengths = crops.iter().map(|crop| crop.whole);
    // neither factor is longer than a side, and so the product fits
    let shape: Vec<i64> = [batch, outputs * groups].into_iter().chain(lengths).collect();
    grown(call, &shape, &[x])?;
    // libtorch crops the same number of elements at both ends
    let is_symmetric = windows
        .iter()
        .zip(&crops)
        .all(|(window, crop)| crop.whole - crop.length == 2 * crop.begin && crop.begin < window.reach());
    let padding = crops.iter().map(|crop| if is_symmetric { crop.begin } else { 0 });
    let mut y = x.f_convolution(
        weight,
        call.optional(2),
        each(&windows, |w| w.stride),
        padding.collect::<Vec<i64>>(),
        each(&windows, |w| w.dilation),
        true,
        crops.iter().map(|crop| crop.extra).collect::<Vec<i64>>(),
        groups,
    )?;
    if !is_symmetric {
        for (axis, crop) in (2..).zip(&crops) {
            y = y.f_narrow(axis, crop.begin, crop.length)?;
        }
    }
    Ok(vec![y])
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::{
        super::{
            arithmetic::twice::{assert_gradients, wave},
            testing::{Case, assert_same, case, floats, ramp},
        },
        *,
    };

    fn ones(shape: &[i64]) -> Tensor {
        Tensor::ones(shape, (Kind::Float, tch::Device::Cpu))
    }

    /// Of 1, 2, 3, 4, ... with a kernel of ones.
    fn along_a_line(op: &str, length: i64, kernel: i64) -> Case {
        case(op).input(&(ramp(&[1, 1, length]) + 1.0)).input(&ones(&[1, 1, kernel]))
    }

    #[test]
    fn padding_is_put_where_it_is_asked_for() {
        let conv = |length: i64, kernel: i64| along_a_line("Conv", length, kernel);
        let table: [(Case, &[f32]); 9] = [
            (conv(4, 3), &[6., 9.]),
            (conv(4, 3).ints("pads", &[1, 1]), &[3., 6., 9., 7.]),
            (conv(4, 3).ints("pads", &[2, 0]), &[1., 3., 6., 9.]),
            (conv(4, 3).ints("pads", &[0, 2]), &[6., 9., 7., 4.]),
            (conv(4, 2).text("auto_pad", "SAME_UPPER"), &[3., 5., 7., 4.]),
            (conv(4, 2).text("auto_pad", "SAME_LOWER"), &[1., 3., 5., 7.]),
            (conv(4, 2).text("auto_pad", "VALID").ints("pads", &[1, 1]), &[3., 5., 7.]),
            (conv(5, 3).text("auto_pad", "SAME_UPPER").ints("strides", &[2]), &[3., 9., 9.]),
            (conv(6, 3).text("auto_pad", "SAME_LOWER").ints("strides", &[2]), &[3., 9., 15.]),
        ];
        for (case, expected) in table {
            assert_same(&case.first(), &floats(expected, &[1, 1, expected.len() as i64]));
        }
        let dilated = conv(6, 2).ints("dilations", &[3]).ints("pads", &[0, 1]).first();
        assert_same(&dilated, &floats(&[5., 7., 9., 4.], &[1, 1, 4]));
        assert!(conv(6, 1).ints("strides", &[3]).text("auto_pad", "SAME_UPPER").problem().contains("stride"));
    }

    #[test]
    fn convolutions_are_those_of_libtorch() {
        let (x, bias) = (wave(&[2, 4, 7, 6]), wave(&[6]));
        let weight = wave(&[6, 2, 3, 2]);
        let ours = case("Conv")
            .input(&x)
            .input(&weight)
            .input(&bias)
            .int("group", 2)
            .ints("kernel_shape", &[3, 2])
            .ints("strides", &[2, 1])
            .ints("dilations", &[1, 2])
            .ints("pads", &[1, 0, 2, 3]);
        let padded = x.constant_pad_nd([0, 3, 1, 2]);
        assert_same(&ours.first(), &padded.conv2d(&weight, Some(&bias), [2, 1], [0, 0], [1, 2], 2));
        let line = (wave(&[2, 3, 8]), wave(&[5, 3, 3]));
        let ours = case("Conv").input(&line.0).input(&line.1).ints("pads", &[1, 1]).first();
        assert_same(&ours, &line.0.conv1d(&line.1, None::<&Tensor>, [1], [1], [1], 1));
        let cube = (wave(&[1, 2, 4, 5, 4]), wave(&[3, 2, 2, 3, 2]));
        let ours = case("Conv").input(&cube.0).input(&cube.1).ints("strides", &[1, 2, 1]).first();
        assert_same(&ours, &cube.0.conv3d(&cube.1, None::<&Tensor>, [1, 2, 1], [0; 3], [1; 3], 1));
    }

    #[test]
    fn transposed_convolutions_are_those_of_libtorch() {
        let (x, weight, bias) = (wave(&[2, 4, 3, 4]), wave(&[4, 2, 3, 2]), wave(&[4]));
        let ours = case("ConvTranspose").input(&x).input(&weight).input(&bias);
        let ours = ours.int("group", 2).ints("strides", &[2, 3]).ints("output_padding", &[1, 0]);
        let theirs =
            |padding: [i64; 2]| x.conv_transpose2d(&weight, Some(&bias), [2, 3], padding, [1, 0], 2, [1, 1]);
        let ours = ours.ints("pads", &[1, 0, 1, 0]);
        assert_same(&ours.first(), &theirs([1, 0]));
        let ours = ours.ints("pads", &[0, 1, 2, 0]);
        assert_same(&ours.first(), &theirs([0, 0]).narrow(2, 0, 6).narrow(3, 1, 10));
    }

    #[test]
    fn the_length_of_a_transposed_convolution_can_be_asked_for() {
        // 1, 2, 3 at distance 2 with a kernel of two ones: 1 1 2 2 3 3; of three: 1 1 3 2 5 3 3
        let line = |kernel: i64| along_a_line("ConvTranspose", 3, kernel).ints("strides", &[2]);
        let table: [(Case, &[f32]); 11] = [
            (line(2), &[1., 1., 2., 2., 3., 3.]),
            (line(3), &[1., 1., 3., 2., 5., 3., 3.]),
            (line(3).ints("pads", &[0, 1]), &[1., 1., 3., 2., 5., 3.]),
            (line(3).ints("pads", &[2, 1]), &[3., 2., 5., 3.]),
            (line(3).ints("pads", &[1, 1]), &[1., 3., 2., 5., 3.]),
            (line(3).text("auto_pad", "SAME_UPPER"), &[1., 1., 3., 2., 5., 3.]),
            (line(3).text("auto_pad", "SAME_LOWER"), &[1., 3., 2., 5., 3., 3.]),
            (line(1).text("auto_pad", "SAME_UPPER"), &[1., 0., 2., 0., 3., 0.]),
            (line(3).text("auto_pad", "VALID"), &[1., 1., 3., 2., 5., 3., 3.]),
            (line(3).ints("output_shape", &[4]), &[3., 2., 5., 3.]),
            (line(3).ints("output_shape", &[8]).ints("pads", &[9, 9]), &[1., 1., 3., 2., 5., 3., 3., 0.]),
        ];
        for (case, expected) in table {
            assert_same(&case.first(), &floats(expected, &[1, 1, expected.len() as i64]));
        }
        assert!(line(3).ints("output_shape", &[9]).problem().contains("longer"));
        assert!(line(3).ints("pads", &[4, 3]).problem().contains("nothing"));
    }

    #[test]
    fn both_have_two_derivatives() {
        let (x, weight) = (wave(&[1, 2, 3, 3]), wave(&[2, 2, 2, 2]));
        for op in ["Conv", "ConvTranspose"] {
            let of = |x: &Tensor, weight: &Tensor| {
                let call = case(op).input(x).input(weight).ints("pads", &[1, 0, 0, 1]);
                let y = call.ints("strides", &[1, 2]).first();
                &y * &y
            };
            assert_gradients(|x| of(x, &weight), &x);
            assert_gradients(|weight| of(&x, weight), &weight);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let x = ramp(&[1, 4, 5, 5]);
        for op in ["Conv", "ConvTranspose"] {
            let good = || case(op).input(&x).input(&ones(&[4, 4, 3, 3]));
            assert!(good().run().is_ok());
            let bad = [
                good().ints("kernel_shape", &[2, 2]),
                good().ints("strides", &[0, 1]),
                good().ints("strides", &[1]),
                good().ints("dilations", &[1, -1]),
                good().ints("pads", &[1, 1]),
                good().ints("pads", &[-1, 0, 0, 0]),
                good().ints("pads", &[i64::MAX, 0, 0, 0]),
                good().int("group", 0),
                good().int("group", 3),
                good().int("group", i64::MIN),
                good().text("auto_pad", "SAME"),
                case(op).input(&x).input(&ones(&[3, 3, 3, 3])),
                case(op).input(&x).input(&ones(&[4, 4, 3])),
                case(op).input(&ramp(&[4, 4])).input(&ones(&[4, 4])),
                case(op).input(&x),
            ];
            for case in bad {
                assert!(case.problem().contains(op));
            }
        }
        let wide = case("Conv").input(&x).input(&ones(&[4, 4, 6, 6]));
        assert!(wide.problem().contains("does not fit"));
        // a padding or stride that would take all memory
        let far = case("Conv").input(&x).input(&ones(&[4, 4, 1, 1])).ints("pads", &[1 << 20, 0, 0, 1 << 20]);
        assert!(far.problem().contains("2^28"));
        let far =
            case("ConvTranspose").input(&x).input(&ones(&[4, 4, 1, 1])).ints("strides", &[1 << 20, 1 << 20]);
        assert!(far.problem().contains("2^28"));
    }
}
