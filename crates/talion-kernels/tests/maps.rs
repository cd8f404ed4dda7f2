//! Everything that is done to maps between convolutions.

use talion_kernels::{
    After, Pooling, Rectify, Sum, Team, Window, affine, affine_back, enlarged, enlarged_back, from_planes,
    gated, gated_back, join, mask_bytes, means, means_back, padded, part, side_by_side, to_planes,
};

fn numbers(count: usize, seed: usize) -> Vec<f64> {
    (0..count).map(|place| (((place + 1) * 7919 + seed * 104_729) % 1009) as f64 / 504.5 - 1.0).collect()
}

#[test]
fn planes_become_maps_and_maps_planes() {
    let shape = [2, 3, 5];
    let planes = numbers(30, 1);
    let (shift, scale) = ([0.5, -0.25, 0.0], [2.0, 1.0, 4.0]);
    let mut map = vec![9.0; 2 * 5 * 8];
    from_planes(&planes, shape, &shift, &scale, &mut map);
    for image in 0..2 {
        for channel in 0..8 {
            for pixel in 0..5 {
                let found = map[(image * 5 + pixel) * 8 + channel];
                let expected = if channel < 3 {
                    (planes[(image * 3 + channel) * 5 + pixel] + shift[channel]) * scale[channel]
                } else {
                    0.0
                };
                assert_eq!(found, expected);
            }
        }
    }
    let mut back = vec![9.0; 30];
    to_planes(&map, shape, &[1.0; 3], &mut back);
    let mut again = vec![9.0; 80];
    from_planes(&back, shape, &[0.0; 3], &[1.0; 3], &mut again);
    assert_eq!(map, again);
}

#[test]
fn affine_maps_and_sums_are_by_channel() {
    let team = Team::new(2);
    let (pixels, channels) = (3001, 16);
    let (input, other) = (numbers(pixels * channels, 1), numbers(pixels * channels, 2));
    let (scale, shift) = (numbers(channels, 3), numbers(channels, 4));
    let mut output = vec![0.0; input.len()];
    affine(&team, &input, &scale, &shift, &mut output, After { sum: Sum::Nothing, rectify: Rectify::Yes });
    let mut back = vec![0.0; input.len()];
    affine_back(&team, &input, &scale, &mut back, After { sum: Sum::Other(&other), rectify: Rectify::No });
    let mut joined = vec![0.0; input.len()];
    join(&team, &input, &mut joined, After { sum: Sum::Other(&other), rectify: Rectify::No });
    for place in 0..input.len() {
        let channel = place % channels;
        assert!((output[place] - (input[place] * scale[channel] + shift[channel]).max(0.0)).abs() < 1e-15);
        assert!((back[place] - (input[place] * scale[channel] + other[place])).abs() < 1e-15);
        assert_eq!(joined[place], input[place] + other[place]);
    }
}

/// Windows by their definition, and the derivative as the adjoint.
#[test]
fn windows_take_means_and_largest_values() {
    let team = Team::new(2);
    let (images, sides, channels) = (3, [7, 6], 8);
    let input = numbers(images * 42 * channels, 1);
    for window in [Window::Largest, Window::MeanInside, Window::Mean] {
        let pooling = Pooling::new(window, sides, [3, 2], [2, 2], [1, 0], [1, 0]).unwrap();
        assert_eq!(pooling.output(), [4, 3]);
        let mut output = vec![0.0; images * 12 * channels];
        let mut chosen = vec![0; output.len()];
        pooling.forward(&team, &input, [images, channels], &mut output, &mut chosen);
        let mut unnoted = vec![0.0; output.len()];
        pooling.forward(&team, &input, [images, channels], &mut unnoted, &mut []);
        assert_eq!(output, unnoted);
        for (place, &found) in output.iter().enumerate() {
            let (cell, channel) = (place / channels, place % channels);
            let (image, row, column) = (cell / 12, cell / 3 % 4, cell % 3);
            let inside: Vec<f64> = (0..3)
                .filter_map(|y| (row * 2 + y).checked_sub(1).filter(|&y| y < 7))
                .flat_map(|y| (0..2).map(move |x| (y, column * 2 + x)))
                .map(|(y, x)| input[((image * 7 + y) * 6 + x) * channels + channel])
                .collect();
            let expected = match window {
                Window::Largest => inside.iter().copied().fold(f64::MIN, f64::max),
                Window::MeanInside => inside.iter().sum::<f64>() / inside.len() as f64,
                Window::Mean => inside.iter().sum::<f64>() / 6.0,
            };
            assert!((found - expected).abs() < 1e-14, "{window:?}: {found} for {expected}");
        }
        let gradient = numbers(output.len(), 2);
        let mut back = vec![9.0; input.len()];
        pooling.backward(&team, &gradient, [images, channels], &mut back, &chosen);
        // piecewise linear: the value is the derivative times the input
        let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        assert!((product(&output, &gradient) - product(&input, &back)).abs() < 1e-10, "{window:?}");
    }
    assert!(Pooling::new(Window::Mean, [4, 4], [2, 2], [2, 2], [2, 0], [0, 0]).is_none(), "a window outside");
    let grid = Pooling::grid([5, 4], [2, 4]).unwrap();
    let mut output = vec![0.0; 8 * channels];
    grid.forward(&team, &input[..20 * channels], [1, channels], &mut output, &mut []);
    // rows 0 to 2 and 2 to 4
    let expected = (input[0] + input[4 * channels] + input[8 * channels]) / 3.0;
    assert!((output[0] - expected).abs() < 1e-14);
}

#[test]
fn streams_are_laid_side_by_side_gated_and_enlarged() {
    let team = Team::new(2);
    let (images, rows, columns, width) = (2, 3, 4, 8);
    let pixels = rows * columns;
    let (first, second) = (numbers(images * pixels * width, 1), numbers(images * pixels * width, 2));
    let mut both = vec![0.0; images * pixels * 2 * width];
    side_by_side(&team, [&first, &second], [width, width], &mut both);
    let local = numbers(both.len(), 3);
    let open = numbers(images * width, 4);
    let mut output = vec![0.0; both.len()];
    gated(&team, &both, &local, &open, [images, pixels, 2 * width], &mut output);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    for (place, &found) in output.iter().enumerate() {
        let (pixel, channel) = (place / (2 * width), place % (2 * width));
        let (stream, at) = (channel / width, pixel * width + channel % width);
        assert_eq!(both[place], if stream == 0 { first[at] } else { second[at] });
        let gate = if stream == 0 { 1.0 } else { sigmoid(open[pixel / pixels * width + channel % width]) };
        assert!((found - both[place] * sigmoid(local[place]) * gate).abs() < 1e-14);
    }
    let mut summary = vec![0.0; images * width];
    means(&team, &first, [images, pixels, width], &mut summary);
    let expected = (0..pixels).map(|pixel| first[pixel * width + 3]).sum::<f64>() / pixels as f64;
    assert!((summary[3] - expected).abs() < 1e-14);

    let other = numbers(images * 4 * pixels * width, 5);
    let mut large = vec![0.0; other.len()];
    enlarged(&team, &first, &other, [images, rows, columns, width], &mut large);
    for (place, &found) in large.iter().enumerate() {
        let (pixel, channel) = (place / width, place % width);
        let (image, y, x) = (pixel / (4 * pixels), pixel / (2 * columns) % (2 * rows), pixel % (2 * columns));
        let small = first[((image * rows + y / 2) * columns + x / 2) * width + channel];
        assert_eq!(found, small + other[place]);
    }
    assert_eq!(padded(9), 16);
}

/// The slope of `loss` in every number of `input`, by central differences.
fn slopes(input: &[f64], loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let moved = |place: usize, step: f64| {
        let mut moved = input.to_vec();
        moved[place] += step;
        loss(&moved)
    };
    (0..input.len()).map(|place| (moved(place, STEP) - moved(place, -STEP)) / (2.0 * STEP)).collect()
}

fn product(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn assert_close(found: &[f64], expected: &[f64], bound: f64, what: &str) {
    assert_eq!(found.len(), expected.len());
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= bound, "{what}, {place}: {found} for {expected}");
    }
}

#[test]
fn parts_are_the_way_back_of_side_by_side() {
    let team = Team::new(2);
    let (pixels, first, second) = (7, 8, 16);
    let width = first + second;
    let gradient = numbers(pixels * width, 1);
    let mut output = vec![9.0; pixels * second];
    part(&team, &gradient, width, first..width, &mut output, After::nothing());
    for (place, &found) in output.iter().enumerate() {
        assert_eq!(found, gradient[place / second * width + first + place % second]);
    }
    // with what is there already, and as far as a ReLU let it pass
    let own = numbers(pixels * first, 2);
    let mut mask = vec![0; mask_bytes(own.len())];
    mask.iter_mut().enumerate().for_each(|(place, bits)| *bits = (place * 37 + 5) as u8);
    let mut output = own.clone();
    let after = After { sum: Sum::Own, rectify: Rectify::Masked(&mask) };
    part(&team, &gradient, width, 0..first, &mut output, after);
    for (place, &found) in output.iter().enumerate() {
        let sum = gradient[place / first * width + place % first] + own[place];
        assert_eq!(found, if mask[place / 8] >> (place % 8) & 1 == 1 { sum } else { 0.0 });
    }

    let parts = [numbers(pixels * first, 3), numbers(pixels * second, 4)];
    let loss = |parts: [&[f64]; 2]| {
        let mut both = vec![0.0; pixels * width];
        side_by_side(&team, parts, [first, second], &mut both);
        product(&both, &gradient)
    };
    let mut back = vec![9.0; pixels * first];
    part(&team, &gradient, width, 0..first, &mut back, After::nothing());
    assert_close(&back, &slopes(&parts[0], |moved| loss([moved, &parts[1]])), 1e-7, "the first part");
    let mut back = vec![9.0; pixels * second];
    part(&team, &gradient, width, first..width, &mut back, After::nothing());
    assert_close(&back, &slopes(&parts[1], |moved| loss([&parts[0], moved])), 1e-7, "the second part");
}

#[test]
fn each_pixel_gets_its_share_of_a_mean() {
    let team = Team::new(2);
    let shape = [2, 6, 8];
    let (input, gradient, own) = (numbers(96, 1), numbers(16, 2), numbers(96, 3));
    let mut output = own.clone();
    means_back(&team, &gradient, shape, &mut output);
    let shares: Vec<f64> = (0..96).map(|place| gradient[place / 48 * 8 + place % 8] / 6.0).collect();
    let expected: Vec<f64> = own.iter().zip(&shares).map(|(own, share)| own + share).collect();
    assert_close(&output, &expected, 1e-15, "a share");
    let numeric = slopes(&input, |input| {
        let mut summary = vec![0.0; 16];
        means(&team, input, shape, &mut summary);
        product(&summary, &gradient)
    });
    assert_close(&shares, &numeric, 1e-7, "a slope");
}

#[test]
fn squares_are_summed_on_the_way_back_of_enlarging() {
    let team = Team::new(2);
    let (images, rows, columns, width) = (2, 3, 2, 8);
    let shape = [images, rows, columns, width];
    let pixels = images * rows * columns;
    let (small, other) = (numbers(pixels * width, 1), numbers(4 * pixels * width, 2));
    let gradient = numbers(other.len(), 3);
    let mut output = vec![9.0; small.len()];
    enlarged_back(&team, &gradient, shape, &mut output);
    let mut expected = vec![0.0; small.len()];
    for (place, value) in gradient.iter().enumerate() {
        let (pixel, channel) = (place / width, place % width);
        let (row, column) = (pixel / (2 * columns), pixel % (2 * columns));
        // rows of all images follow one another
        expected[(row / 2 * columns + column / 2) * width + channel] += value;
    }
    assert_close(&output, &expected, 1e-14, "a square");
    let numeric = slopes(&small, |small| {
        let mut large = vec![0.0; other.len()];
        enlarged(&team, small, &other, shape, &mut large);
        product(&large, &gradient)
    });
    assert_close(&output, &numeric, 1e-7, "a slope");
}

#[test]
fn gradients_go_back_through_gates() {
    let team = Team::new(2);
    let (images, pixels, half) = (2, 5, 8);
    let channels = 2 * half;
    let shape = [images, pixels, channels];
    let [both, local, gradient] = [1, 2, 3].map(|seed| numbers(images * pixels * channels, seed));
    let open = numbers(images * half, 4);
    let (mut to_both, mut to_local) = (vec![9.0; both.len()], vec![9.0; both.len()]);
    let mut to_open = vec![9.0; open.len()];
    let outputs = [&mut to_both[..], &mut to_local[..], &mut to_open[..]];
    gated_back(&team, [&both, &local, &open], &gradient, shape, outputs);

    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let mut expected = [vec![0.0; both.len()], vec![0.0; both.len()], vec![0.0; open.len()]];
    for place in 0..both.len() {
        let (image, channel) = (place / (pixels * channels), place % channels);
        let near = sigmoid(local[place]);
        let whole = channel.checked_sub(half).map(|channel| image * half + channel);
        let wide = whole.map_or(1.0, |at| sigmoid(open[at]));
        expected[0][place] = gradient[place] * near * wide;
        expected[1][place] = gradient[place] * both[place] * near * (1.0 - near) * wide;
        if let Some(at) = whole {
            expected[2][at] += gradient[place] * both[place] * near * wide * (1.0 - wide);
        }
    }
    let loss = |both: &[f64], local: &[f64], open: &[f64]| {
        let mut output = vec![0.0; both.len()];
        gated(&team, both, local, open, shape, &mut output);
        product(&output, &gradient)
    };
    let numeric = [
        slopes(&both, |both| loss(both, &local, &open)),
        slopes(&local, |local| loss(&both, local, &open)),
        slopes(&open, |open| loss(&both, &local, open)),
    ];
    for (place, found) in [to_both, to_local, to_open].iter().enumerate() {
        assert_close(found, &expected[place], 1e-14, "the definition");
        assert_close(found, &numeric[place], 1e-7, "a slope");
    }
}

/// The bits of every way back in f32, for images of which each is large enough for tasks of its own.
fn bits_of_ways_back(threads: usize, images: usize) -> Vec<Vec<u32>> {
    let single =
        |count, seed| numbers(count, seed).into_iter().map(|value| value as f32).collect::<Vec<f32>>();
    let team = Team::new(threads);
    let (rows, columns, half) = (64, 40, 8);
    let (pixels, channels) = (rows * columns, 2 * half);
    let length = images * pixels * channels;
    let [both, local, gradient] = [1, 2, 3].map(|seed| single(length, seed));
    let open = single(images * half, 4);
    let (mut to_both, mut to_local) = (vec![9.0; length], vec![9.0; length]);
    let mut to_open = vec![9.0; images * half];
    let outputs = [&mut to_both[..], &mut to_local[..], &mut to_open[..]];
    gated_back(&team, [&both, &local, &open], &gradient, [images, pixels, channels], outputs);
    let mut second = single(images * pixels * half, 5);
    let after = After { sum: Sum::Own, rectify: Rectify::No };
    part(&team, &to_both, channels, half..channels, &mut second, after);
    means_back(&team, &to_open, [images, pixels, half], &mut second);
    let mut squares = vec![9.0; length / 4];
    enlarged_back(&team, &to_local, [images, rows / 2, columns / 2, channels], &mut squares);
    [to_both, to_local, to_open, second, squares]
        .map(|values| values.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        .to_vec()
}

#[test]
fn ways_back_depend_on_neither_threads_nor_batch() {
    let (alone, several) = (bits_of_ways_back(1, 3), bits_of_ways_back(3, 3));
    assert!(alone == several, "other bits with 3 threads");
    for (one, all) in bits_of_ways_back(3, 1).iter().zip(&alone) {
        assert!(!one.is_empty() && all.starts_with(one), "other bits in a batch");
    }
}
