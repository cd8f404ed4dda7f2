//! Poolings: what sliding windows, or all places of a channel, are summed up to.

use talion_core::Result;
use tch::{Kind, Tensor};

use super::{
    Call, Kernel,
    arithmetic::{floating, grown},
    convolution::{Auto, Window, auto_pad, each, pad, padded, parts, windows},
    indices, product,
};

pub(super) const OPS: &[(&str, Kernel)] = &[
    ("AveragePool", average_pool),
    ("GlobalAveragePool", global_average_pool),
    ("GlobalLpPool", global_lp_pool),
    ("GlobalMaxPool", global_max_pool),
    ("LpPool", lp_pool),
    ("MaxPool", max_pool),
    ("MaxUnpool", max_unpool),
];

/// The windows of a pooling, of which there are two or three: a line is taken as an image of height 1.
struct Pool {
    windows: Vec<Window>,
    /// How often each window stands along its axis.
    counts: Vec<i64>,
    is_line: bool,
}

impl Pool {
    fn read(call: &Call<'_>, x: &Tensor) -> Result<Self> {
        let sides = x.size();
        let (_, _, spatial) = parts(call, &sides)?;
        let auto = auto_pad(call)?;
        let rounds_up = auto == Auto::Not && call.attributes().int("ceil_mode", 0)? != 0;
        let mut pool = Self { windows: vec![], counts: vec![], is_line: spatial.len() == 1 };
        if pool.is_line {
            pool.windows.push(Window { side: 1, kernel: 1, stride: 1, dilation: 1, begin: 0, end: 0 });
            pool.counts.push(1);
        }
        for window in windows(call, spatial, kernel(call)?)? {
            let window = padded(call, window, auto)?;
            pool.counts.push(positions(call, &window, rounds_up)?);
            pool.windows.push(window);
        }
        Ok(pool)
    }

    /// What libtorch pools: the tensor with the two or three axes that it wants.
    fn lift(&self, x: &Tensor) -> Result<Tensor> {
        Ok(if self.is_line { x.f_unsqueeze(2)? } else { x.shallow_clone() })
    }

    fn lower(&self, y: &Tensor) -> Result<Tensor> {
        Ok(if self.is_line { y.f_squeeze_dim(2)? } else { y.shallow_clone() })
    }

    /// Whether libtorch's own padding is what is asked for.
    fn is_plain(&self) -> bool {
        self.windows.iter().zip(&self.counts).all(|(window, &count)| {
            window.begin == window.end && 2 * window.begin <= window.kernel && window.positions() == count
        })
    }

    fn is_dilated(&self) -> bool {
        self.windows.iter().any(|window| window.dilation != 1)
    }

    fn begin(&self) -> Vec<i64> {
        each(&self.windows, |window| window.begin)
    }

    /// How far the last window reaches over the end of each axis, padded or not.
    fn overhang(&self) -> Vec<i64> {
        let over = |(window, &count): (&Window, &i64)| {
            ((count - 1) * window.stride + window.reach() - window.side - window.begin).max(0)
        };
        self.windows.iter().zip(&self.counts).map(over).collect()
    }

    fn kernel(&self) -> Vec<i64> {
        each(&self.windows, |window| window.kernel)
    }

    fn strides(&self) -> Vec<i64> {
        each(&self.windows, |window| window.stride)
    }

    fn dilations(&self) -> Vec<i64> {
        each(&self.windows, |window| window.dilation)
    }

    /// The number of elements that a window sees.
    fn seen(&self) -> f64 {
        self.windows.iter().map(|window| window.kernel as f64).product()
    }
}

fn kernel<'a>(call: &Call<'a>) -> Result<&'a [i64]> {
    call.attributes().ints("kernel_shape")?.ok_or_else(|| call.refuse("kernel_shape is missing"))
}

/// How often a window stands along its axis.
fn positions(call: &Call<'_>, window: &Window, rounds_up: bool) -> Result<i64> {
    if window.begin >= window.reach() || window.end >= window.reach() {
        return Err(call.refuse("its padding is as long as the kernel"));
    }
    let mut count = window.positions();
    if rounds_up {
        count += i64::from(window.room().rem_euclid(window.stride) != 0);
        // a window that would start in the padding at the end is left out
        count -= i64::from((count - 1) * window.stride >= window.side + window.begin);
    }
    if count < 1 {
        let (kernel, side) = (window.kernel, window.side);
        return Err(call.refuse(format!("a kernel of length {kernel} does not fit into {side}")));
    }
    Ok(count)
}

fn max_pool(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let x = floating(call)?;
    let pool = Pool::read(call, x)?;
    let mut image = pool.lift(x)?;
    let (mut begin, mut padding) = (vec![0; pool.windows.len()], pool.begin());
    if !pool.is_plain() {
        image = pad(call, &image, &pool.begin(), &pool.overhang(), f64::NEG_INFINITY)?;
        std::mem::swap(&mut begin, &mut padding);
    }
    let (kernel, strides, dilations) = (pool.kernel(), pool.strides(), pool.dilations());
    let (y, places) = if pool.windows.len() == 2 {
        image.f_max_pool2d_with_indices(kernel, strides, padding, dilations, false)?
    } else {
        image.f_max_pool3d_with_indices(kernel, strides, padding, dilations, false)?
    };
    let mut results = vec![pool.lower(&y)?];
    if call.wants(1) {
        if call.attributes().int("storage_order", 0)? != 0 {
            return Err(call.refuse("indices in column-major order are not supported"));
        }
        let sides = image.size();
        let pooled = sides.get(2..).unwrap_or_default();
        results.push(pool.lower(&numbered(call, &pool, &places, pooled, &begin)?)?);
    }
    Ok(results)
}

/// libtorch numbers the elements of each channel, of the sides `pooled`, of which the first `begin` are padding; ONNX
/// numbers the elements of the whole unpadded tensor.
fn numbered(call: &Call<'_>, pool: &Pool, places: &Tensor, pooled: &[i64], begin: &[i64]) -> Result<Tensor> {
    let (mut rest, mut number, mut step) = (places.shallow_clone(), places.f_zeros_like()?, 1);
    for ((window, &side), &begin) in pool.windows.iter().zip(pooled).zip(begin).rev() {
        let along = rest.f_remainder(side)?.f_sub_scalar(begin)?.f_mul_scalar(step)?;
        number = number.f_add(&along)?;
        rest = rest.f_div_scalar_mode(side, "floor")?;
        step = product(call, &[step, window.side])?;
    }
    let planes = places.size().into_iter().enumerate();
    let planes: Vec<i64> = planes.map(|(axis, side)| if axis < 2 { side } else { 1 }).collect();
    let channels = product(call, &planes)?;
    let first = Tensor::f_arange(channels, (Kind::Int64, places.device()))?.f_mul_scalar(step)?;
    Ok(number.f_add(&first.f_reshape(planes)?)?)
}

/// The means of all windows of an image that is padded already.
fn means(pool: &Pool, image: &Tensor) -> Result<Tensor> {
    let (kernel, strides, none) = (pool.kernel(), pool.strides(), vec![0; pool.windows.len()]);
    if !pool.is_dilated() {
        return Ok(if pool.windows.len() == 2 {
            image.f_avg_pool2d(kernel, strides, none, false, true, None)?
        } else {
            image.f_avg_pool3d(kernel, strides, none, false, true, None)?
        });
    }
    // libtorch has no dilated means, but each channel can be convolved with a constant
    let sides = image.size();
    let (channels, spatial) = sides.split_at(sides.len().min(2));
    let planes = image.f_flatten(0, 1)?.f_unsqueeze(1)?;
    let weight =
        Tensor::f_full([vec![1, 1], kernel].concat(), 1.0 / pool.seen(), (image.kind(), image.device()))?;
    let dilations = pool.dilations();
    let no_bias = None::<&Tensor>;
    let y =
        planes.f_convolution(&weight, no_bias, strides, none, dilations, false, vec![0; spatial.len()], 1)?;
    Ok(y.f_reshape([channels, pool.counts.as_slice()].concat())?)
}

/// The means of all windows, where padding counts as zeros and as elements.
fn means_with_padding(call: &Call<'_>, pool: &Pool, image: &Tensor) -> Result<Tensor> {
    means(pool, &pad(call, image, &pool.begin(), &pool.overhang(), 0.0)?)
}

fn average_pool(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let x = floating(call)?;
    let pool = Pool::read(call, x)?;
    let image = pool.lift(x)?;
    let counts_padding = call.attributes().int("count_include_pad", 0)? != 0;
    if pool.is_plain() && !pool.is_dilated() {
        let (kernel, strides, padding) = (pool.kernel(), pool.strides(), pool.begin());
        let y = if pool.windows.len() == 2 {
            image.f_avg_pool2d(kernel, strides, padding, false, counts_padding, None)?
        } else {
            image.f_avg_pool3d(kernel, strides, padding, false, counts_padding, None)?
        };
        return Ok(vec![pool.lower(&y)?]);
    }
    let sum = means_with_padding(call, &pool, &image)?;
    Ok(vec![pool.lower(&sum.f_div(&share(call, &pool, &image, counts_padding)?)?)?])
}

/// Which share of the elements of each window counts: those that lie on the image and, if asked for, on the padding
/// that the node names, but never those further out.
fn share(call: &Call<'_>, pool: &Pool, image: &Tensor, counts_padding: bool) -> Result<Tensor> {
    let sides = [vec![1, 1], each(&pool.windows, |window| window.side)].concat();
    let ones = Tensor::f_ones(sides, (image.kind(), image.device()))?;
    let (begin, overhang, none) = (pool.begin(), pool.overhang(), vec![0; pool.windows.len()]);
    if !counts_padding {
        return means(pool, &pad(call, &ones, &begin, &overhang, 0.0)?);
    }
    let named = |(window, &over): (&Window, &i64)| window.end.min(over);
    let end: Vec<i64> = pool.windows.iter().zip(&overhang).map(named).collect();
    let beyond: Vec<i64> = overhang.iter().zip(&end).map(|(over, end)| over - end).collect();
    let ones = pad(call, &ones, &begin, &end, 1.0)?;
    means(pool, &pad(call, &ones, &none, &beyond, 0.0)?)
}

/// The attribute `p`.
fn order(call: &Call<'_>) -> Result<i64> {
    match call.attributes().int("p", 2)? {
        p @ 1..=64 => Ok(p),
        p => Err(call.refuse(format!("p is {p}, expected 1 to 64"))),
    }
}

fn power(x: &Tensor, p: i64) -> Result<Tensor> {
    Ok(match p {
        1 => x.f_abs()?,
        2 => x.f_square()?,
        _ => x.f_abs()?.f_pow_tensor_scalar(p)?,
    })
}

/// The root of numbers that are not negative. At zero, where it has no derivative, its gradient is 0 and not NaN.
fn root(x: &Tensor, p: i64) -> Result<Tensor> {
    if p == 1 {
        return Ok(x.shallow_clone());
    }
    let zero = x.f_eq(0.0)?;
    Ok(x.f_masked_fill(&zero, 1.0)?.f_pow_tensor_scalar(1.0 / p as f64)?.f_masked_fill(&zero, 0.0)?)
}

fn lp_pool(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let x = floating(call)?;
    let (pool, p) = (Pool::read(call, x)?, order(call)?);
    let sums = means_with_padding(call, &pool, &power(&pool.lift(x)?, p)?)?.f_mul_scalar(pool.seen())?;
    Ok(vec![pool.lower(&root(&sums, p)?)?])
}

/// The axes behind batch and channels.
fn places(call: &Call<'_>, x: &Tensor) -> Result<Vec<i64>> {
    if x.dim() < 3 {
        return Err(call.refuse(format!("the shape {:?} has no sides behind the channels", x.size())));
    }
    Ok((2..x.dim() as i64).collect())
}

fn global_average_pool(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let x = floating(call)?;
    Ok(vec![x.f_mean_dim(places(call, x)?, true, None)?])
}

fn global_max_pool(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let x = floating(call)?;
    Ok(vec![x.f_amax(places(call, x)?, true)?])
}

fn global_lp_pool(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let (x, p) = (floating(call)?, order(call)?);
    let sums = power(x, p)?.f_sum_dim_intlist(places(call, x)?, true, None)?;
    Ok(vec![root(&sums, p)?])
}

fn max_unpool(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let (x, index) = (floating(call)?, call.input(1)?);
    let sides = x.size();
    let (batch, channels, spatial) = parts(call, &sides)?;
    if index.size() != sides {
        return Err(call.refuse(format!("indices of shape {:?} for {sides:?}", index.size())));
    }
    let length =
        |window: &Window| (window.side - 1) * window.stride - window.begin - window.end + window.kernel;
    let shape = [vec![batch, channels], each(&windows(call, spatial, kernel(call)?)?, length)].concat();
    if shape.iter().skip(2).any(|&side| side < 1) {
        return Err(call.refuse("its padding leaves nothing"));
    }
    if let Some(asked) = call.ints(2)?
        && asked != shape
    {
        // the standard's example numbers the elements of the shape that follows from the attributes, ONNX Runtime
        // those of the one asked for
        return Err(
            call.refuse(format!("the meaning of indices in {asked:?} rather than {shape:?} is unclear"))
        );
    }
    grown(call, &shape, &[x])?;
    let elements = product(call, &shape)?;
    let index = indices(call, &index.f_reshape([-1])?, elements, x.device())?;
    let zeros = Tensor::f_zeros([elements], (x.kind(), x.device()))?;
    Ok(vec![zeros.f_scatter(0, &index, &x.f_reshape([-1])?)?.f_reshape(shape)?])
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

    /// Of 1, 2, 3, ...
    fn along_a_line(op: &str, length: i64, kernel: i64) -> Case {
        case(op).opset(19).input(&(ramp(&[1, 1, length]) + 1.0)).ints("kernel_shape", &[kernel])
    }

    #[track_caller]
    fn assert_lines<const N: usize>(table: [(Case, &[f32]); N]) {
        for (case, expected) in table {
            assert_same(&case.first(), &floats(expected, &[1, 1, expected.len() as i64]));
        }
    }

    #[test]
    fn the_largest_is_found_whatever_the_padding() {
        let line = |length: i64, kernel: i64| along_a_line("MaxPool", length, kernel);
        assert_lines([
            (line(5, 3), &[3., 4., 5.]),
            (line(5, 3).ints("pads", &[1, 1]), &[2., 3., 4., 5., 5.]),
            (line(5, 3).ints("pads", &[2, 0]), &[1., 2., 3., 4., 5.]),
            (line(5, 2).ints("strides", &[2]), &[2., 4.]),
            (line(5, 2).ints("strides", &[2]).int("ceil_mode", 1), &[2., 4., 5.]),
            // the third window would start in the padding
            (line(4, 2).ints("strides", &[2]).ints("pads", &[0, 1]).int("ceil_mode", 1), &[2., 4.]),
            (line(6, 1).ints("strides", &[5]).int("ceil_mode", 1), &[1., 6.]),
            (line(5, 1).ints("strides", &[5]).int("ceil_mode", 1), &[1.]),
            (line(5, 2).ints("dilations", &[3]), &[4., 5.]),
            (line(4, 2).text("auto_pad", "SAME_UPPER"), &[2., 3., 4., 4.]),
            (line(4, 2).text("auto_pad", "SAME_LOWER"), &[1., 2., 3., 4.]),
            (line(5, 2).text("auto_pad", "VALID").ints("strides", &[2]).int("ceil_mode", 1), &[2., 4.]),
        ]);
        let negative = case("MaxPool").input(&-(ramp(&[1, 1, 3]) + 1.0)).ints("kernel_shape", &[2]);
        assert_same(&negative.ints("pads", &[1, 1]).first(), &floats(&[-1., -1., -2., -3.], &[1, 1, 4]));
    }

    #[test]
    fn the_mean_counts_what_it_should() {
        let line = |length: i64, kernel: i64| along_a_line("AveragePool", length, kernel);
        assert_lines([
            (line(4, 2), &[1.5, 2.5, 3.5]),
            (line(4, 3).ints("pads", &[1, 1]), &[1.5, 2., 3., 3.5]),
            (line(4, 3).ints("pads", &[1, 1]).int("count_include_pad", 1), &[1., 2., 3., 7. / 3.]),
            (line(4, 3).ints("pads", &[2, 0]), &[1., 1.5, 2., 3.]),
            (line(4, 3).ints("pads", &[2, 0]).int("count_include_pad", 1), &[1. / 3., 1., 2., 3.]),
            (line(5, 2).ints("strides", &[2]).int("ceil_mode", 1), &[1.5, 3.5, 5.]),
            // what hangs over the end never counts
            (
                line(5, 2).ints("strides", &[2]).int("ceil_mode", 1).int("count_include_pad", 1),
                &[1.5, 3.5, 5.],
            ),
            (line(4, 4).ints("strides", &[3]).ints("pads", &[0, 1]).int("ceil_mode", 1), &[2.5, 4.]),
            (
                line(4, 4)
                    .ints("strides", &[3])
                    .ints("pads", &[0, 1])
                    .int("ceil_mode", 1)
                    .int("count_include_pad", 1),
                &[2.5, 2.],
            ),
            (line(4, 2).text("auto_pad", "SAME_UPPER"), &[1.5, 2.5, 3.5, 4.]),
            (line(4, 2).text("auto_pad", "SAME_LOWER"), &[1., 1.5, 2.5, 3.5]),
            (line(4, 2).text("auto_pad", "SAME_LOWER").int("count_include_pad", 1), &[0.5, 1.5, 2.5, 3.5]),
            (line(5, 2).ints("dilations", &[3]), &[2.5, 3.5]),
            (line(5, 2).ints("dilations", &[3]).ints("pads", &[1, 1]), &[3., 2.5, 3.5, 3.]),
        ]);
    }

    #[test]
    fn images_and_volumes_are_pooled_as_libtorch_does() {
        let (image, cube) = (wave(&[2, 3, 7, 8]), wave(&[1, 2, 5, 4, 5]));
        let on_image =
            |op: &str| case(op).input(&image).ints("kernel_shape", &[3, 2]).ints("strides", &[2, 1]);
        assert_same(&on_image("MaxPool").first(), &image.max_pool2d([3, 2], [2, 1], [0, 0], [1, 1], false));
        let padded = on_image("AveragePool").ints("pads", &[1, 0, 1, 0]);
        assert_same(&padded.first(), &image.avg_pool2d([3, 2], [2, 1], [1, 0], false, false, None));
        // a padding that only one side has takes the other way
        let padded = on_image("AveragePool").ints("pads", &[1, 0, 1, 1]).int("count_include_pad", 1);
        let by_hand =
            image.constant_pad_nd([0, 1, 1, 1]).avg_pool2d([3, 2], [2, 1], [0, 0], false, true, None);
        assert_same(&padded.first(), &by_hand);
        let on_cube = |op: &str| case(op).input(&cube).ints("kernel_shape", &[2, 3, 2]);
        let expected = cube.max_pool3d([2, 3, 2], [1; 3], [0; 3], [1; 3], false);
        assert_same(&on_cube("MaxPool").first(), &expected);
        let expected = cube.avg_pool3d([2, 3, 2], [1; 3], [0; 3], false, false, None);
        assert_same(&on_cube("AveragePool").first(), &expected);
        // ones in a kernel are a sum
        let dilated = on_cube("AveragePool").opset(19).ints("dilations", &[2, 1, 1]);
        let weight = Tensor::full([2, 1, 2, 3, 2], 1.0 / 12.0, (Kind::Double, tch::Device::Cpu));
        let expected = cube.conv3d(&weight, None::<&Tensor>, [1; 3], [0; 3], [2, 1, 1], 2);
        assert_same(&dilated.first(), &expected);
    }

    #[test]
    fn indices_number_the_whole_unpadded_tensor() {
        let x = wave(&[2, 2, 5, 4]);
        let flat = x.reshape([-1]);
        let pool = || case("MaxPool").input(&x).ints("kernel_shape", &[3, 2]).outputs(2);
        let cases = [
            pool(),
            pool().ints("pads", &[1, 1, 1, 1]),
            pool().ints("pads", &[1, 0, 2, 1]),
            pool().ints("strides", &[2, 2]).int("ceil_mode", 1),
            pool().ints("dilations", &[2, 1]).text("auto_pad", "SAME_LOWER"),
        ];
        for case in cases {
            let results = case.run().unwrap();
            let (y, index) = (&results[0], &results[1]);
            assert_eq!((index.kind(), index.size()), (Kind::Int64, y.size()));
            assert_same(&flat.index_select(0, &index.reshape([-1])).reshape(y.size()), y);
        }
        let line = case("MaxPool").input(&floats(&[1., 5., 2., 7.], &[2, 1, 2])).ints("kernel_shape", &[2]);
        assert_same(&line.outputs(2).run().unwrap()[1], &ints(&[1, 3]).reshape([2, 1, 1]));
        assert!(pool().int("storage_order", 1).problem().contains("column-major"));
    }

    #[test]
    fn unpooling_puts_values_back() {
        let x = floats(&[1., 2., 3., 4.], &[1, 1, 2, 2]);
        let index = ints(&[5, 7, 13, 15]).reshape([1, 1, 2, 2]);
        let unpool = |index: &Tensor| {
            let call = case("MaxUnpool").input(&x).input(index);
            call.ints("kernel_shape", &[2, 2]).ints("strides", &[2, 2])
        };
        let mut expected = [0.0_f32; 16];
        for (place, value) in [(5, 1.), (7, 2.), (13, 3.), (15, 4.)] {
            expected[place] = value;
        }
        let expected = floats(&expected, &[1, 1, 4, 4]);
        assert_same(&unpool(&index).first(), &expected);
        assert_same(&unpool(&index).input(&ints(&[1, 1, 4, 4])).first(), &expected);
        assert!(unpool(&index).input(&ints(&[1, 1, 5, 5])).problem().contains("unclear"));
        assert!(unpool(&(&index + 1)).problem().contains("16"));
        assert!(unpool(&index.reshape([4])).run().is_err());
        assert!(unpool(&index).ints("strides", &[1 << 20, 1 << 20]).problem().contains("2^28"));
    }

    #[test]
    fn norms_of_windows_are_roots_of_sums() {
        let line = |p: i64| along_a_line("LpPool", 4, 2).int("p", p);
        assert_lines([
            (line(1), &[3., 5., 7.]),
            (line(2), &[5_f32.sqrt(), 13_f32.sqrt(), 5.]),
            (line(3), &[9_f32.cbrt(), 35_f32.cbrt(), 91_f32.cbrt()]),
            (line(1).ints("pads", &[1, 0]), &[1., 3., 5., 7.]),
            (line(1).ints("strides", &[3]).int("ceil_mode", 1), &[3., 4.]),
            (line(1).ints("dilations", &[2]), &[4., 6.]),
        ]);
        assert!(line(0).run().is_err());
        let x = floats(&[3., -4., 0., 0.], &[1, 2, 2]);
        let global = |p: i64| case("GlobalLpPool").input(&x).int("p", p).first();
        assert_same(&global(2), &floats(&[5., 0.], &[1, 2, 1]));
        assert_same(&global(1), &floats(&[7., 0.], &[1, 2, 1]));
    }

    #[test]
    fn global_poolings_keep_their_axes() {
        let x = ramp(&[1, 2, 2, 2]);
        assert_same(&case("GlobalAveragePool").input(&x).first(), &floats(&[1.5, 5.5], &[1, 2, 1, 1]));
        assert_same(&case("GlobalMaxPool").input(&x).first(), &floats(&[3., 7.], &[1, 2, 1, 1]));
        assert!(case("GlobalMaxPool").input(&ramp(&[2, 2])).run().is_err());
    }

    #[test]
    fn all_have_two_derivatives() {
        let x = wave(&[1, 2, 4, 5]);
        for op in ["MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"] {
            for pads in [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]] {
                let call = |x: &Tensor| {
                    let y = case(op).input(x).ints("kernel_shape", &[2, 2]).ints("pads", &pads).first();
                    &y * &y
                };
                assert_gradients(call, &x);
            }
        }
        let dilated = |x: &Tensor| {
            let call = case("AveragePool").opset(19).input(x).ints("kernel_shape", &[2, 2]);
            call.ints("dilations", &[2, 1]).first()
        };
        assert_gradients(dilated, &x);
        let index = ints(&[0, 3, 9, 14]).reshape([1, 1, 2, 2]);
        let unpool = |x: &Tensor| {
            let call = case("MaxUnpool").input(x).input(&index);
            call.ints("kernel_shape", &[2, 2]).ints("strides", &[2, 2]).first()
        };
        assert_gradients(unpool, &wave(&[1, 1, 2, 2]));
        // a window of zeros has no NaN in its gradient
        let zeros = Tensor::zeros([1, 1, 2, 2], (Kind::Double, tch::Device::Cpu)).set_requires_grad(true);
        let y = case("GlobalLpPool").input(&zeros).first();
        let gradient = Tensor::run_backward(&[y.sum(Kind::Double)], &[&zeros], false, false).remove(0);
        assert_same(&gradient, &zeros.detach());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let x = ramp(&[1, 1, 4, 4]);
        for op in ["MaxPool", "AveragePool", "LpPool"] {
            let pool = || case(op).opset(19).input(&x).ints("kernel_shape", &[2, 2]);
            assert!(pool().run().is_ok());
            let bad = [
                case(op).input(&x),
                case(op).input(&x).ints("kernel_shape", &[2]),
                case(op).input(&x).ints("kernel_shape", &[0, 2]),
                case(op).input(&x).ints("kernel_shape", &[5, 2]),
                case(op).input(&x).ints("kernel_shape", &[1 << 20, 1 << 20]),
                pool().ints("pads", &[2, 0, 0, 0]),
                pool().ints("strides", &[1, 0]),
                pool().ints("dilations", &[4, 4]),
                pool().text("auto_pad", "UPPER"),
                case(op).input(&ints(&[1, 2, 3, 4]).reshape([1, 1, 4])).ints("kernel_shape", &[2]),
            ];
            for case in bad {
                assert!(case.problem().contains(op));
            }
        }
    }
}
