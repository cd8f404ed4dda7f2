//! Convolutions beside their definition, forwards, backwards and with everything that may come after.

use proptest::prelude::*;
use talion_kernels::{After, Convolution, Factors, Geometry, Real, Rectify, Sum, Team, mask_bytes, padded};

/// Numbers between -1 and 1 that depend on their place alone.
fn numbers<T: Real>(count: usize, seed: u64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    };
    (0..count).map(|_| T::from_f64(next())).collect()
}

/// A map with zeros in the channels that only fill up.
fn map<T: Real>(pixels: usize, channels: usize, seed: u64) -> Vec<T> {
    let mut values = numbers::<T>(pixels * padded(channels), seed);
    for pixel in values.chunks_exact_mut(padded(channels)) {
        pixel[channels..].fill(T::default());
    }
    values
}

#[derive(Clone, Debug)]
struct Case {
    geometry: Geometry,
    channels: [usize; 2],
    shape: [usize; 3],
    seed: u64,
}

impl Case {
    fn sides(&self) -> [usize; 2] {
        self.geometry.output([self.shape[1], self.shape[2]]).unwrap()
    }

    fn pixels(&self) -> [usize; 2] {
        let [images, rows, columns] = self.shape;
        let sides = self.sides();
        [images * rows * columns, images * sides[0] * sides[1]]
    }

    fn weights<T: Real>(&self) -> Vec<T> {
        numbers(
            self.channels[0] * self.channels[1] * self.geometry.size[0] * self.geometry.size[1],
            self.seed,
        )
    }

    fn convolution<T: Real>(&self, bias: &[T]) -> Convolution<T> {
        Convolution::new(self.geometry, self.channels, self.weights(), bias)
    }

    /// Every product in the definition of a convolution: the places of its weight, of its input and of its output.
    fn each_product(&self, mut product: impl FnMut(usize, usize, usize)) {
        let Geometry { size, stride, dilation, before, .. } = self.geometry;
        let ([inputs, outputs], [images, rows, columns]) = (self.channels, self.shape);
        let [down, across] = self.sides();
        let pixels = (0..images * down * across)
            .flat_map(|place| (0..size[0] * size[1]).map(move |tap| (place, [tap / size[1], tap % size[1]])));
        for (place, [row, column]) in pixels {
            let (image, y, x) = (place / (down * across), place / across % down, place % across);
            let y = (y * stride[0] + row * dilation[0]).wrapping_sub(before[0]);
            let x = (x * stride[1] + column * dilation[1]).wrapping_sub(before[1]);
            if y >= rows || x >= columns {
                continue;
            }
            let from = ((image * rows + y) * columns + x) * padded(inputs);
            for output in 0..outputs {
                for channel in 0..inputs {
                    let weight = ((output * inputs + channel) * size[0] + row) * size[1] + column;
                    product(weight, from + channel, place * padded(outputs) + output);
                }
            }
        }
    }

    /// The definition of a convolution, number by number.
    fn defined(&self, input: &[f64], bias: &[f64]) -> Vec<f64> {
        let (weights, width) = (self.weights::<f64>(), padded(self.channels[1]));
        let of_channel = |place: usize| bias.get(place % width).copied().unwrap_or(0.0);
        let mut result: Vec<f64> = (0..self.pixels()[1] * width).map(of_channel).collect();
        self.each_product(|weight, from, to| result[to] += weights[weight] * input[from]);
        result
    }

    /// The definition of its derivative.
    fn defined_back(&self, gradient: &[f64]) -> Vec<f64> {
        let weights = self.weights::<f64>();
        let mut result = vec![0.0; self.pixels()[0] * padded(self.channels[0])];
        self.each_product(|weight, from, to| result[from] += weights[weight] * gradient[to]);
        result
    }

    /// The definition of the gradients of weights and bias.
    fn defined_weights(&self, input: &[f64], gradient: &[f64]) -> [Vec<f64>; 2] {
        let mut weights = vec![0.0; self.weights::<f64>().len()];
        self.each_product(|weight, from, to| weights[weight] += input[from] * gradient[to]);
        let mut bias = vec![0.0; self.channels[1]];
        for pixel in gradient.chunks_exact(padded(self.channels[1])) {
            bias.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value);
        }
        [weights, bias]
    }
}

fn cases() -> impl Strategy<Value = Case> {
    cases_of(prop::array::uniform2(1_usize..20))
}

/// Channels around the number up to which they are few, on one side or on both.
fn few_cases() -> impl Strategy<Value = Case> {
    let few = (1_usize..6, 1_usize..40, any::<bool>());
    cases_of(few.prop_map(|(few, other, first)| if first { [few, other] } else { [other, few] }))
}

fn cases_of(channels: impl Strategy<Value = [usize; 2]>) -> impl Strategy<Value = Case> {
    let tiled =
        (0_usize..3, 0_usize..3).prop_map(|(down, across)| Geometry::new([3, 3], [1, 1], [down, across]));
    let sides = || prop::array::uniform2(1_usize..5);
    let other =
        (sides(), prop::array::uniform2(1_usize..4), prop::array::uniform2(1_usize..3), sides(), sides());
    let other = other.prop_map(|(size, stride, dilation, before, after)| Geometry {
        size,
        stride,
        dilation,
        before: before.map(|zeros| zeros - 1),
        after: after.map(|zeros| zeros - 1),
    });
    let shape =
        (1_usize..4, 1_usize..15, 1_usize..15).prop_map(|(images, rows, columns)| [images, rows, columns]);
    (prop_oneof![tiled, other], channels, shape, any::<u64>())
        .prop_map(|(geometry, channels, shape, seed)| Case { geometry, channels, shape, seed })
        .prop_filter("the kernel fits", |case| {
            case.geometry.output([case.shape[1], case.shape[2]]).is_some()
                // the derivative of a tiled one wants as many zeros on the far side as it has room for
                && case.pixels().iter().all(|&pixels| pixels > 0)
        })
}

fn worst(found: &[f64], expected: &[f64]) -> f64 {
    let scale = expected.iter().fold(1e-300_f64, |scale, value| scale.max(value.abs()));
    found.iter().zip(expected).fold(0.0_f64, |worst, (found, expected)| worst.max((found - expected).abs()))
        / scale
}

fn in_double<T: Real>(values: &[T]) -> Vec<f64> {
    values.iter().map(|value| value.to_f64()).collect()
}

fn backward<T: Real>(case: &Case, threads: usize, gradient: &[T]) -> Vec<T> {
    let mut output = vec![T::from_f64(7.0); case.pixels()[0] * padded(case.channels[0])];
    case.convolution::<T>(&[]).backward(
        &Team::new(threads),
        gradient,
        case.shape,
        &mut output,
        After::nothing(),
    );
    output
}

fn weights_gradient<T: Real>(case: &Case, threads: usize, [input, gradient]: &[Vec<T>; 2]) -> [Vec<T>; 2] {
    let lengths = [case.weights::<T>().len(), case.channels[1]];
    let [mut weights, mut bias] = lengths.map(|length| vec![T::from_f64(7.0); length]);
    let convolution = case.convolution::<T>(&[]);
    convolution.weights_gradient(&Team::new(threads), input, gradient, case.shape, &mut weights, &mut bias);
    [weights, bias]
}

fn forward<T: Real>(case: &Case, threads: usize, bias: &[T], after: After<'_, T>, output: &mut [T]) {
    let input = map::<T>(case.pixels()[0], case.channels[0], case.seed ^ 1);
    case.convolution(bias).forward(&Team::new(threads), &input, case.shape, output, after);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_convolution_is_the_defined_one(case in cases()) {
        let input = map::<f64>(case.pixels()[0], case.channels[0], case.seed ^ 1);
        let bias = numbers::<f64>(case.channels[1], 5);
        let expected = case.defined(&input, &bias);
        let mut output = vec![7.0; expected.len()];
        forward::<f64>(&case, 1, &bias, After::nothing(), &mut output);
        prop_assert!(worst(&output, &expected) < 1e-12, "f64: {}", worst(&output, &expected));

        let bias: Vec<f32> = bias.iter().map(|&value| value as f32).collect();
        let mut single = vec![7.0_f32; expected.len()];
        forward::<f32>(&case, 1, &bias, After::nothing(), &mut single);
        prop_assert!(worst(&in_double(&single), &expected) < 2e-5, "f32: {}", worst(&in_double(&single), &expected));
        let mut threaded = vec![7.0_f32; expected.len()];
        forward::<f32>(&case, 3, &bias, After::nothing(), &mut threaded);
        prop_assert_eq!(&single, &threaded);
    }

    /// `<convolution(x), g> = <x, derivative(g)>` for every x and g determines the derivative: here for every unit vector that
    /// the sum of many random ones has a part in.
    #[test]
    fn the_derivative_is_the_adjoint(case in cases()) {
        let [inputs, outputs] = case.channels;
        let x = map::<f64>(case.pixels()[0], inputs, case.seed ^ 2);
        let g = map::<f64>(case.pixels()[1], outputs, case.seed ^ 3);
        let convolved = case.defined(&x, &[]);
        let convolution = case.convolution::<f64>(&[]);
        let mut back = vec![7.0; x.len()];
        convolution.backward(&Team::new(2), &g, case.shape, &mut back, After::nothing());
        let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (there, here) = (product(&convolved, &g), product(&x, &back));
        let scale = product(&g, &g).sqrt() * product(&convolved, &convolved).sqrt() + 1.0;
        prop_assert!((there - here).abs() < 1e-10 * scale, "{there} and {here}");

        let g: Vec<f32> = g.iter().map(|&value| value as f32).collect();
        let mut single = vec![7.0_f32; x.len()];
        case.convolution::<f32>(&[]).backward(&Team::new(1), &g, case.shape, &mut single, After::nothing());
        prop_assert!(worst(&in_double(&single), &back) < 2e-5, "{}", worst(&in_double(&single), &back));
        let mut threaded = vec![7.0_f32; x.len()];
        case.convolution::<f32>(&[]).backward(&Team::new(3), &g, case.shape, &mut threaded, After::nothing());
        prop_assert_eq!(&single, &threaded);
    }

    /// Forwards and backwards, in both precisions, with one thread and with several.
    #[test]
    fn few_channels_are_convolved_as_defined(case in few_cases()) {
        let input = map::<f64>(case.pixels()[0], case.channels[0], case.seed ^ 1);
        let bias = numbers::<f64>(case.channels[1], 5);
        let expected = case.defined(&input, &bias);
        let mut output = vec![7.0; expected.len()];
        forward::<f64>(&case, 3, &bias, After::nothing(), &mut output);
        prop_assert!(worst(&output, &expected) < 1e-12, "forwards: {}", worst(&output, &expected));

        let bias: Vec<f32> = bias.iter().map(|&value| value as f32).collect();
        let mut single = [vec![7.0_f32; expected.len()], vec![8.0_f32; expected.len()]];
        forward::<f32>(&case, 1, &bias, After::nothing(), &mut single[0]);
        forward::<f32>(&case, 3, &bias, After::nothing(), &mut single[1]);
        prop_assert!(worst(&in_double(&single[0]), &expected) < 1e-4, "forwards, f32");
        prop_assert_eq!(&single[0], &single[1]);

        let gradient = map::<f64>(case.pixels()[1], case.channels[1], case.seed ^ 3);
        let (found, expected) = (backward(&case, 3, &gradient), case.defined_back(&gradient));
        prop_assert!(worst(&found, &expected) < 1e-12, "backwards: {}", worst(&found, &expected));
        let gradient: Vec<f32> = gradient.iter().map(|&value| value as f32).collect();
        let single = backward(&case, 1, &gradient);
        prop_assert!(worst(&in_double(&single), &expected) < 1e-4, "backwards, f32");
        prop_assert_eq!(&single, &backward(&case, 3, &gradient));
    }

    /// Whatever padding channels hold, in both precisions, with one thread and with several.
    #[test]
    fn weights_have_the_defined_gradient(case in prop_oneof![cases(), few_cases()], filled in any::<bool>()) {
        let maps = [0, 1].map(|end| {
            let (pixels, channels, seed) = (case.pixels()[end], case.channels[end], case.seed ^ (1 + end as u64));
            if filled { numbers::<f64>(pixels * padded(channels), seed) } else { map(pixels, channels, seed) }
        });
        let expected = case.defined_weights(&maps[0], &maps[1]);
        let found = weights_gradient(&case, 2, &maps);
        let single = maps.map(|map| map.iter().map(|&value| value as f32).collect::<Vec<_>>());
        let [one, three] = [1, 3].map(|threads| weights_gradient(&case, threads, &single));
        for (part, expected) in expected.iter().enumerate() {
            prop_assert!(worst(&found[part], expected) < 1e-11, "f64: {}", worst(&found[part], expected));
            // what cancels in a sum of few weights leaves its error behind
            let error = worst(&in_double(&one[part]), expected);
            prop_assert!(error < 1e-4, "f32: {error}");
        }
        prop_assert_eq!(one, three);
    }

    /// A linear layer is a kernel as large as its input.
    #[test]
    fn kernels_as_large_as_their_input_are_one_product(
        size in prop::array::uniform2(1_usize..7), channels in prop::array::uniform2(1_usize..40), images in 1_usize..6,
    ) {
        let geometry = Geometry::new(size, [1, 1], [0, 0]);
        let case = Case { geometry, channels, shape: [images, size[0], size[1]], seed: 9 };
        let gradient = map::<f64>(case.pixels()[1], channels[1], 3);
        let (found, expected) = (backward(&case, 3, &gradient), case.defined_back(&gradient));
        prop_assert!(worst(&found, &expected) < 1e-12, "{}", worst(&found, &expected));
        let gradient: Vec<f32> = gradient.iter().map(|&value| value as f32).collect();
        let single = backward(&case, 1, &gradient);
        prop_assert!(worst(&in_double(&single), &expected) < 1e-4);
        prop_assert_eq!(&single, &backward(&case, 3, &gradient));
    }

    /// An image's first layer: alone or with others, by one thread or by three.
    #[test]
    fn images_of_few_channels_do_not_notice_their_batch(
        images in 2_usize..6, first in 0_usize..2, few in 1_usize..5, side in 11_usize..30, strided in any::<bool>(),
    ) {
        let (size, stride) = if strided { ([3, 3], [2, 2]) } else { ([5, 5], [1, 1]) };
        let geometry = Geometry::new(size, stride, [size[0] / 2; 2]);
        let case = Case { geometry, channels: [few, 20], shape: [images, side, side], seed: 3 };
        let alone = Case { shape: [1, side, side], ..case.clone() };
        let convolution = case.convolution::<f32>(&[]);
        let run = |case: &Case, threads: usize, input: &[f32], gradient: &[f32]| {
            let team = Team::new(threads);
            let mut results = [vec![0.0_f32; gradient.len()], vec![0.0_f32; input.len()]];
            convolution.forward(&team, input, case.shape, &mut results[0], After::nothing());
            convolution.backward(&team, gradient, case.shape, &mut results[1], After::nothing());
            results
        };
        let maps = [0, 1].map(|end| map::<f32>(case.pixels()[end], case.channels[end], 1 + end as u64));
        let parts = [0, 1].map(|end| {
            let length = alone.pixels()[end] * padded(case.channels[end]);
            first * length..(first + 1) * length
        });
        let all = run(&case, 3, &maps[0], &maps[1]);
        let one = run(&alone, 1, &maps[0][parts[0].clone()], &maps[1][parts[1].clone()]);
        prop_assert_eq!(&all[0][parts[1].clone()], &one[0][..]);
        prop_assert_eq!(&all[1][parts[0].clone()], &one[1][..]);
        prop_assert_eq!(&all, &run(&case, 1, &maps[0], &maps[1]));
    }

    /// In bf16 what is left of the digits is left, and a row still does not notice its batch or the threads.
    #[test]
    fn factors_in_bf16_give_nearly_the_same(case in cases(), threads in 1_usize..4) {
        let short = || case.convolution::<f32>(&[]).with_factors(Factors::Bf16);
        let run = |convolution: &Convolution<f32>, shape: [usize; 3], threads, input: &[f32], gradient: &[f32]| {
            let team = Team::new(threads);
            let mut results = [vec![7.0_f32; gradient.len()], vec![7.0_f32; input.len()]];
            convolution.forward(&team, input, shape, &mut results[0], After::nothing());
            convolution.backward(&team, gradient, shape, &mut results[1], After::nothing());
            results
        };
        let maps = [0, 1].map(|end| map::<f32>(case.pixels()[end], case.channels[end], case.seed ^ (1 + end as u64)));
        let found = run(&short(), case.shape, threads, &maps[0], &maps[1]);
        let expected = run(&case.convolution::<f32>(&[]), case.shape, 1, &maps[0], &maps[1]);
        for (found, expected) in found.iter().zip(&expected) {
            // beside the largest: tiles multiply the rounding of 1 in 256 by up to ten
            prop_assert!(worst(&in_double(found), &in_double(expected)) < 0.05);
        }
        prop_assert_eq!(&found, &run(&short(), case.shape, 1, &maps[0], &maps[1]));
        let images = case.shape[0];
        let part = |end: usize| (images - 1) * maps[end].len() / images..maps[end].len();
        let shape = [1, case.shape[1], case.shape[2]];
        let alone = run(&short(), shape, 1, &maps[0][part(0)], &maps[1][part(1)]);
        prop_assert_eq!(&found[0][part(1)], &alone[0][..]);
        prop_assert_eq!(&found[1][part(0)], &alone[1][..]);
    }

    #[test]
    fn what_comes_after_comes_after(case in prop_oneof![cases(), few_cases()]) {
        let length = case.pixels()[1] * padded(case.channels[1]);
        let bias = numbers::<f32>(case.channels[1], 5);
        let other = numbers::<f32>(length, 6);
        let mut plain = vec![0.0_f32; length];
        forward(&case, 2, &bias, After::nothing(), &mut plain);

        let mut own = other.clone();
        forward(&case, 2, &bias, After { sum: Sum::Own, rectify: Rectify::No }, &mut own);
        let mut bits = vec![0_u8; mask_bytes(length)];
        let mut rectified = vec![0.0_f32; length];
        let record = After { sum: Sum::Other(&other), rectify: Rectify::Record(&mut bits) };
        forward(&case, 2, &bias, record, &mut rectified);
        let mut quiet = vec![0.0_f32; length];
        forward(&case, 2, &bias, After { sum: Sum::Other(&other), rectify: Rectify::Yes }, &mut quiet);
        let mut masked = vec![0.0_f32; length];
        forward(&case, 2, &bias, After { sum: Sum::Nothing, rectify: Rectify::Masked(&bits) }, &mut masked);

        for place in 0..length {
            let sum = plain[place] + other[place];
            let bit = bits[place / 8] >> (place % 8) & 1 == 1;
            prop_assert_eq!(own[place], sum);
            prop_assert_eq!(bit, sum > 0.0);
            prop_assert_eq!(rectified[place], if bit { sum } else { 0.0 });
            prop_assert_eq!(quiet[place], rectified[place]);
            prop_assert_eq!(masked[place], if bit { plain[place] } else { 0.0 });
        }
    }

    /// Large enough for many tasks a thread, and for weights that all threads share.
    #[test]
    fn rows_do_not_notice_their_batch(images in 2_usize..6, first in 0_usize..2, wide in any::<bool>()) {
        let (channels, side) = if wide { ([176, 168], 6) } else { ([16, 24], 19) };
        let geometry = Geometry::new([3, 3], [1, 1], [1, 1]);
        let case = Case { geometry, channels, shape: [images, side, side], seed: 3 };
        let input = map::<f32>(images * side * side, channels[0], 1);
        let convolution = case.convolution::<f32>(&[]);
        let each = [side * side * padded(channels[0]), side * side * padded(channels[1])];
        let run = |input: &[f32], images: usize, threads: usize| {
            let mut output = vec![0.0_f32; images * each[1]];
            convolution.forward(&Team::new(threads), input, [images, side, side], &mut output, After::nothing());
            output
        };
        let all = run(&input, images, 2);
        let alone = run(&input[first * each[0]..(first + 1) * each[0]], 1, 1);
        prop_assert_eq!(&all[first * each[1]..(first + 1) * each[1]], &alone[..]);
        prop_assert_eq!(&all, &run(&input, images, 1));
    }
}

#[test]
fn kernels_that_do_not_fit_have_no_output() {
    assert_eq!(Geometry::new([5, 5], [1, 1], [0, 0]).output([4, 9]), None);
    assert_eq!(Geometry::new([5, 5], [2, 1], [1, 0]).output([4, 9]), Some([1, 5]));
}
