//! What every filter has to hold, for the tests of each.

use talion_core::{Classifier, uniform_noise};
use tch::{Device, Kind, Tensor};

use crate::{
    defence::{Defence, Draw, Pass},
    gradient_map::MapGraph,
};

/// A classifier for defences that ask it nothing.
struct Unasked;

impl Classifier for Unasked {
    fn classes(&self) -> i64 {
        1
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        images.flatten(1, -1).narrow(1, 0, 1)
    }
}

/// Images of independent uniform values between `low` and `high`, `f32`.
pub(super) fn picture(size: [i64; 4], low: f64, high: f64) -> Tensor {
    let ids: Vec<u64> = (0..size[0].unsigned_abs()).collect();
    (uniform_noise(&size[1..], &ids, 1, "picture", 0) + 1.0) * (0.5 * (high - low)) + low
}

/// The images restored in a draw.
pub(super) fn restored(defence: &dyn Defence, images: &Tensor, draw: Draw) -> Tensor {
    defence.restore(&Unasked, images, Pass { graph: MapGraph::Constant, draw })
}

/// The sum of the restored values, weighted differently at each place of a row, so that mixed-up places show.
fn weighted(restored: &Tensor) -> Tensor {
    let size = restored.size();
    let values = size[1..].iter().product::<i64>();
    let weights = (Tensor::arange(values, (Kind::Double, Device::Cpu)) + 1.0).sin().to_kind(restored.kind());
    (restored * weights.reshape(&size[1..])).sum(restored.kind())
}

/// The restored images, and the derivative of their [`weighted`] sum with respect to `images`.
pub(super) fn with_gradient(defence: &dyn Defence, images: &Tensor, draw: Draw) -> (Tensor, Tensor) {
    let images = images.detach().set_requires_grad(true);
    let restored = restored(defence, &images, draw);
    let gradient = Tensor::run_backward(&[weighted(&restored)], &[&images], false, false).remove(0);
    (restored.detach(), gradient)
}

/// Checks the gradient of a defence that draws nothing against finite differences at some places of one image.
#[track_caller]
pub(super) fn assert_gradient(defence: &dyn Defence, size: [i64; 4]) {
    let images = picture(size, 0.2, 0.8).to_kind(Kind::Double);
    let (_, gradient) = with_gradient(defence, &images, Draw::OWN);
    let gradient = gradient.reshape([-1]);
    let (values, step) = (images.numel() as i64, 1e-6);
    for place in (0..values).step_by(7) {
        let change = Tensor::zeros([values], (Kind::Double, Device::Cpu));
        let _ = change.narrow(0, place, 1).fill_(step);
        let change = change.reshape(size);
        let at = |moved: Tensor| weighted(&restored(defence, &moved, Draw::OWN)).double_value(&[]);
        let expected = (at(&images + &change) - at(&images - &change)) / (2.0 * step);
        let found = gradient.double_value(&[place]);
        assert!((found - expected).abs() < 1e-5, "{place}: {found}, {expected}");
    }
}

/// Checks that a row's restoration and gradient have the same bits alone and in a batch.
#[track_caller]
pub(super) fn assert_rows_stand_alone(defence: &dyn Defence) {
    for channels in [1, 3] {
        let images = picture([5, channels, 19, 22], 0.0, 1.0);
        let (together, gradients) = with_gradient(defence, &images, Draw::OWN);
        for row in 0..5 {
            let (alone, gradient) = with_gradient(defence, &images.narrow(0, row, 1), Draw::OWN);
            assert!(together.narrow(0, row, 1).equal(&alone), "row {row} of {channels} channels");
            assert!(
                gradients.narrow(0, row, 1).equal(&gradient),
                "gradient of row {row}, {channels} channels"
            );
        }
    }
}

/// Checks that images of awkward sizes come back as images of the same size and type.
#[track_caller]
pub(super) fn assert_takes_any_size(defence: &dyn Defence) {
    for size in
        [[0, 1, 8, 8], [0, 3, 5, 5], [1, 1, 1, 1], [2, 3, 1, 5], [1, 3, 2, 2], [2, 2, 9, 3], [3, 1, 17, 33]]
    {
        for kind in [Kind::Float, Kind::Double] {
            let images = picture(size, 0.0, 1.0).to_kind(kind);
            let restored = restored(defence, &images, Draw::OWN);
            assert_eq!((restored.size(), restored.kind()), (images.size(), images.kind()));
            if restored.numel() > 0 {
                let (low, high) = (restored.min().double_value(&[]), restored.max().double_value(&[]));
                assert!(low >= 0.0 && high <= 1.0, "{low} to {high}");
            }
        }
    }
}

/// The largest absolute difference.
pub(super) fn largest_difference(found: &Tensor, expected: &Tensor) -> f64 {
    (found - expected).abs().max().double_value(&[])
}
