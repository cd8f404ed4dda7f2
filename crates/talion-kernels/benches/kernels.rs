//! How fast the kernels are: `cargo bench -p talion-kernels`. The shapes are those of ResNet-18 on images of 32x32,
//! and of the first layer of the small network on images of 28x28; gradients of weights are those of the restoration network.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use talion_kernels::{After, Convolution, Factors, Geometry, Packed, Team, padded};

const IMAGES: usize = 16;

fn convolutions(criterion: &mut Criterion) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let team = Team::<f32>::new(threads);
    // channels in and out, side of the input, kernel, stride
    let layers = [
        (1, 16, 28, 5, 1),
        (3, 64, 32, 3, 1),
        (64, 64, 32, 3, 1),
        (128, 128, 16, 3, 1),
        (512, 512, 4, 3, 1),
        (64, 128, 32, 3, 2),
        (64, 128, 32, 1, 2),
    ];
    for (inputs, outputs, side, kernel, stride) in layers {
        let geometry = Geometry::new([kernel; 2], [stride; 2], [kernel / 2; 2]);
        let weights = (0..inputs * outputs * kernel * kernel).map(|place| (place % 13) as f32 * 0.01 - 0.06);
        let weights: Vec<f32> = weights.collect();
        let layer = Convolution::new(geometry, [inputs, outputs], weights.clone(), &[]);
        let short = Convolution::new(geometry, [inputs, outputs], weights, &[]).with_factors(Factors::Bf16);
        let sides = geometry.output([side, side]).unwrap_or([0, 0]);
        let input = vec![0.5_f32; IMAGES * side * side * padded(inputs)];
        let mut output = vec![0.0_f32; IMAGES * sides[0] * sides[1] * padded(outputs)];
        let mut back = vec![0.0_f32; input.len()];
        let shape = [IMAGES, side, side];
        let mut group = criterion
            .benchmark_group(format!("{kernel}x{kernel} stride {stride}, {inputs} to {outputs} at {side}"));
        group.throughput(Throughput::Elements(IMAGES as u64));
        group.bench_function(BenchmarkId::new("forward", threads), |bencher| {
            bencher.iter(|| layer.forward(&team, &input, shape, &mut output, After::nothing()));
        });
        group.bench_function(BenchmarkId::new("backward", threads), |bencher| {
            bencher.iter(|| layer.backward(&team, &output, shape, &mut back, After::nothing()));
        });
        group.bench_function(BenchmarkId::new("forward, bf16", threads), |bencher| {
            bencher.iter(|| short.forward(&team, &input, shape, &mut output, After::nothing()));
        });
        group.bench_function(BenchmarkId::new("backward, bf16", threads), |bencher| {
            bencher.iter(|| short.backward(&team, &output, shape, &mut back, After::nothing()));
        });
        group.finish();
    }
}

/// The layers of the restoration network, as its training asks for them.
fn weights_gradients(criterion: &mut Criterion) {
    const IMAGES: usize = 64;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let team = Team::<f32>::new(threads);
    // channels in and out, side of the input, kernel, stride
    let layers = [
        (16, 16, 28, 3, 1),
        (32, 16, 28, 3, 1),
        (32, 32, 14, 3, 1),
        (48, 48, 7, 3, 1),
        (16, 32, 28, 3, 2),
        (32, 48, 14, 3, 2),
        (1, 16, 28, 3, 1),
        (3, 16, 32, 3, 1),
        (16, 1, 28, 3, 1),
        (16, 3, 32, 3, 1),
        (32, 32, 14, 1, 1),
    ];
    let mut group = criterion.benchmark_group("gradient of weights");
    for (inputs, outputs, side, kernel, stride) in layers {
        let geometry = Geometry::new([kernel; 2], [stride; 2], [kernel / 2; 2]);
        let taps = kernel * kernel;
        let mut weights = vec![0.0_f32; inputs * outputs * taps];
        let mut bias = vec![0.0_f32; outputs];
        let layer = Convolution::new(geometry, [inputs, outputs], weights.clone(), &[]);
        let [rows, columns] = geometry.output([side, side]).unwrap_or([0, 0]);
        let input = vec![0.5_f32; IMAGES * side * side * padded(inputs)];
        let gradient = vec![0.25_f32; IMAGES * rows * columns * padded(outputs)];
        // floating-point operations of the definition
        group
            .throughput(Throughput::Elements((2 * IMAGES * rows * columns * inputs * outputs * taps) as u64));
        let name = format!("{kernel}x{kernel} stride {stride}, {inputs} to {outputs} at {side}");
        group.bench_function(BenchmarkId::new(name, threads), |bencher| {
            let shape = [IMAGES, side, side];
            bencher.iter(|| layer.weights_gradient(&team, &input, &gradient, shape, &mut weights, &mut bias));
        });
    }
    group.finish();
}

fn products(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("product");
    for (rows, depth, columns) in [(36, 64, 64), (36, 512, 512), (96, 16, 16)] {
        let packed = Packed::<f32>::new(depth, columns, |row, column| (row + column) as f64 * 0.01);
        let left = vec![0.5_f32; rows * depth];
        let mut product = vec![0.0_f32; rows * packed.columns()];
        // floating-point operations
        group.throughput(Throughput::Elements((2 * rows * depth * columns) as u64));
        group.bench_function(format!("{rows}x{depth}x{columns}"), |bencher| {
            bencher.iter(|| packed.multiply(&left, depth, rows, &mut product));
        });
    }
    group.finish();
}

criterion_group!(benches, convolutions, weights_gradients, products);
criterion_main!(benches);
