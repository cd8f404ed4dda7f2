//! Everything that is done to maps between convolutions.

use talion_kernels::{
    After, Pooling, Rectify, Sum, Team, Window, affine, affine_back, enlarged, from_planes, gated, join,
    means, padded, side_by_side, to_planes,
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
