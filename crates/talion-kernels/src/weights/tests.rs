//! Gradients of weights beside their definition, geometry by geometry.

use super::*;
use crate::padded;

/// Numbers between -1 and 1 that depend on their place alone.
fn numbers(count: usize, seed: u32) -> Vec<f64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // f32 holds it exactly
        f64::from(state >> 8) / f64::from(1 << 23) - 1.0
    };
    (0..count).map(|_| next()).collect()
}

struct Case {
    geometry: Geometry,
    channels: [usize; 2],
    shape: [usize; 3],
}

impl Case {
    fn sides(&self) -> [usize; 2] {
        self.geometry.output([self.shape[1], self.shape[2]]).unwrap()
    }

    /// Random inputs and gradients, the padding channels too: nobody may read these.
    fn maps(&self) -> [Vec<f64>; 2] {
        let [images, rows, columns] = self.shape;
        let [down, across] = self.sides();
        let [inputs, outputs] = self.channels.map(padded);
        [numbers(images * rows * columns * inputs, 1), numbers(images * down * across * outputs, 2)]
    }

    /// The definition, number by number.
    fn defined(&self, [input, gradient]: &[Vec<f64>; 2]) -> [Vec<f64>; 2] {
        let ([images, rows, columns], [down, across]) = (self.shape, self.sides());
        let ([inputs, outputs], Geometry { size, stride, dilation, before, .. }) =
            (self.channels, self.geometry);
        let pixel = |place: usize| [place / (down * across), place / across % down, place % across];
        let weight = |place: usize| {
            let (tap, channels) = (place % (size[0] * size[1]), place / (size[0] * size[1]));
            let products = (0..images * down * across).filter_map(|place| {
                let [image, y, x] = pixel(place);
                let y = (y * stride[0] + tap / size[1] * dilation[0]).wrapping_sub(before[0]);
                let x = (x * stride[1] + tap % size[1] * dilation[1]).wrapping_sub(before[1]);
                let from = ((image * rows + y) * columns + x) * padded(inputs) + channels % inputs;
                let to = place * padded(outputs) + channels / inputs;
                (y < rows && x < columns).then(|| input[from] * gradient[to])
            });
            products.sum()
        };
        let of_output = |output: usize| gradient.iter().skip(output).step_by(padded(outputs)).sum();
        [
            (0..outputs * inputs * size[0] * size[1]).map(weight).collect(),
            (0..outputs).map(of_output).collect(),
        ]
    }

    fn found<T: Real>(&self, threads: usize, maps: &[Vec<f64>; 2]) -> [Vec<T>; 2] {
        let team = Team::new(threads);
        // memory in which anything may have been left
        let mut memory = team.take(1 << 22);
        memory.fill(T::from_f64(f64::NAN));
        team.give(memory);
        let [input, gradient] =
            maps.each_ref().map(|map| map.iter().map(|&value| T::from_f64(value)).collect::<Vec<_>>());
        let [inputs, outputs] = self.channels;
        let count = inputs * outputs * self.geometry.size[0] * self.geometry.size[1];
        let [mut weights, mut bias] = [count, outputs].map(|count| vec![T::from_f64(7.0); count]);
        let convolution = Convolution::new(self.geometry, self.channels, weights.clone(), &[]);
        convolution.weights_gradient(&team, &input, &gradient, self.shape, &mut weights, &mut bias);
        [weights, bias]
    }

    /// The largest error of weights and of bias, as a part of the largest value.
    fn errors<T: Real>(&self, found: &[Vec<T>; 2], expected: &[Vec<f64>; 2]) -> [f64; 2] {
        [0, 1].map(|part| {
            let scale = expected[part].iter().fold(1e-300_f64, |scale, value| scale.max(value.abs()));
            let pairs = found[part].iter().zip(&expected[part]);
            pairs.fold(0.0_f64, |worst, (found, expected)| worst.max((found.to_f64() - expected).abs()))
                / scale
        })
    }
}

fn table() -> Vec<Case> {
    let plain = |size: usize, stride: usize| Geometry::new([size; 2], [stride; 2], [size / 2; 2]);
    let uneven = Geometry { size: [3, 2], stride: [2, 3], dilation: [2, 1], before: [0, 2], after: [3, 1] };
    let rows: Vec<(Geometry, [usize; 2], [usize; 3])> = vec![
        (plain(3, 1), [16, 16], [9, 7, 7]),
        (plain(3, 1), [16, 16], [64, 28, 28]),
        (plain(3, 1), [32, 16], [3, 5, 9]),
        (plain(3, 1), [48, 48], [5, 7, 7]),
        (plain(3, 1), [20, 9], [2, 11, 6]),
        (plain(3, 1), [8, 16], [4, 12, 12]),
        (plain(3, 1), [1, 16], [6, 28, 28]),
        (plain(3, 1), [3, 16], [2, 32, 32]),
        (plain(3, 1), [16, 1], [7, 14, 14]),
        (plain(3, 1), [16, 3], [8, 9, 5]),
        (plain(3, 1), [1, 1], [1, 1, 1]),
        (plain(3, 2), [16, 32], [4, 28, 28]),
        (plain(3, 2), [32, 48], [3, 7, 7]),
        (plain(3, 2), [48, 64], [1, 15, 4]),
        (plain(1, 1), [32, 32], [5, 14, 14]),
        (plain(1, 2), [32, 16], [3, 9, 9]),
        (plain(5, 1), [1, 16], [2, 28, 28]),
        (plain(5, 1), [2, 3], [3, 6, 10]),
        (uneven, [4, 19], [3, 9, 11]),
        (uneven, [24, 8], [2, 12, 7]),
        // zeros on one side alone
        (Geometry { before: [2, 0], after: [0, 2], ..plain(3, 1) }, [16, 24], [4, 8, 7]),
        (Geometry { before: [4, 4], after: [4, 4], ..plain(3, 1) }, [9, 10], [2, 3, 2]),
        // a kernel that meets all of its input
        (Geometry::new([7, 7], [1, 1], [0, 0]), [48, 10], [9, 7, 7]),
        (Geometry::new([1, 1], [1, 1], [0, 0]), [100, 17], [9, 1, 1]),
        // a row of pixels that no strip has room for
        (plain(3, 1), [4, 2], [1, 3, 9000]),
    ];
    rows.into_iter().map(|(geometry, channels, shape)| Case { geometry, channels, shape }).collect()
}

#[test]
fn weights_have_the_gradient_that_is_defined() {
    for case in table() {
        let maps = case.maps();
        let expected = case.defined(&maps);
        let (double, single) = (case.found::<f64>(1, &maps), case.found::<f32>(1, &maps));
        let (double, single) = (case.errors(&double, &expected), case.errors(&single, &expected));
        let name = format!("{:?} {:?} {:?}", case.geometry, case.channels, case.shape);
        assert!(double.iter().all(|&error| error < 1e-11), "{name}: {double:?}");
        assert!(single.iter().all(|&error| error < 2e-5), "{name}: {single:?}");
    }
}

#[test]
fn gradients_of_weights_do_not_notice_threads() {
    for case in table() {
        let maps = case.maps();
        let one = case.found::<f32>(1, &maps);
        assert_eq!(one, case.found::<f32>(2, &maps), "{:?}", case.shape);
        assert_eq!(one, case.found::<f32>(3, &maps), "{:?}", case.shape);
    }
}

#[test]
fn weights_of_no_images_have_no_gradient_and_no_bias_is_none() {
    for (geometry, channels) in
        [(Geometry::new([3, 3], [1, 1], [1, 1]), [16, 16]), (Geometry::new([3, 3], [2, 2], [1, 1]), [3, 8])]
    {
        let case = Case { geometry, channels, shape: [0, 7, 7] };
        let [weights, bias] = case.found::<f32>(2, &case.maps());
        assert!(weights.iter().chain(&bias).all(|&value| value == 0.0));

        let case = Case { shape: [2, 7, 7], ..case };
        let maps = case.maps();
        let [input, gradient] = maps.each_ref();
        let [expected, _] = case.found::<f64>(1, &maps);
        let mut weights = vec![7.0; expected.len()];
        let convolution = Convolution::new(geometry, channels, weights.clone(), &[]);
        convolution.weights_gradient(&Team::new(1), input, gradient, case.shape, &mut weights, &mut []);
        assert_eq!(weights, expected);
    }
}
