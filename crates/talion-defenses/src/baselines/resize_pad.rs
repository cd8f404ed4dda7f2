//! Images shrunk and moved at random.

use talion_core::{Classifier, Error, Result, SampleStream};
use tch::Tensor;

use super::inside;
use crate::defence::{Defence, Pass, row_streams};

/// Each image shrunk to a random size and put at a random place on black: what was made for certain pixels meets others.
///
/// The paper enlarges images of 299 pixels to 310 to 331 and pads them to 331; a classifier of fixed input size needs them
/// shrunk instead. Sizes keep the proportions and are bilinear.
///
/// # Source
/// Xie et al., "Mitigating Adversarial Effects Through Randomization", ICLR 2018, section 3.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResizePad {
    smallest: f64,
}

/// Where an image is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Placement {
    height: i64,
    width: i64,
    top: i64,
    left: i64,
}

impl ResizePad {
    /// Heights of `smallest` times the full one and more, 0.5 to below 1.
    ///
    /// # Errors
    /// If `smallest` is not in that range.
    pub fn new(smallest: f64) -> Result<Self> {
        if !(0.5..1.0).contains(&smallest) {
            return Err(Error::range("the smallest share of the side", "at least 0.5, below 1", smallest));
        }
        Ok(Self { smallest })
    }

    /// Draws every whole height from the smallest to the full one alike, the width in proportion, and every place alike.
    fn placement(self, stream: &mut SampleStream, full_height: i64, full_width: i64) -> Placement {
        let mut up_to = |most: i64| i64::from(stream.below(u32::try_from(most + 1).unwrap_or(1)));
        let least = ((self.smallest * full_height as f64).ceil() as i64).clamp(1, full_height);
        let height = least + up_to(full_height - least);
        let share = height as f64 / full_height as f64;
        let width = ((share * full_width as f64).round() as i64).clamp(1, full_width);
        Placement { height, width, top: up_to(full_height - height), left: up_to(full_width - width) }
    }
}

impl Defence for ResizePad {
    fn description(&self) -> String {
        format!("random shrinking to a share of {} or more, at a random place", self.smallest)
    }

    fn restore(&self, _: &dyn Classifier, images: &Tensor, pass: Pass) -> Tensor {
        let size = images.size();
        let placed = |(row, mut stream): (i64, SampleStream)| {
            // row by row and in one layout: a row's bits must not depend on its batch
            let image = images.narrow(0, row, 1).contiguous();
            self.placement(&mut stream, size[2], size[3]).apply(&image)
        };
        let rows: Vec<Tensor> = (0..).zip(row_streams(images, "resize-pad", pass.draw)).map(placed).collect();
        if rows.is_empty() {
            return images.shallow_clone();
        }
        Tensor::cat(&rows, 0)
    }

    fn is_random(&self) -> bool {
        true
    }
}

impl Placement {
    /// # Shapes
    /// `image` `[1, C, H, W]`; the result too.
    fn apply(self, image: &Tensor) -> Tensor {
        let size = image.size();
        let (below, beside) = (size[2] - self.height - self.top, size[3] - self.width - self.left);
        let shrunk = image.upsample_bilinear2d([self.height, self.width], false, None, None);
        // weights of pixels may sum to a rounding error above 1
        inside(&shrunk, 0.0, 1.0).constant_pad_nd([self.left, beside, self.top, below])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tch::{Device, Kind};

    use super::{
        super::testing::{
            assert_gradient, assert_rows_stand_alone, assert_takes_any_size, largest_difference, picture,
            restored,
        },
        *,
    };
    use crate::defence::Draw;

    #[test]
    fn every_size_and_place_comes_up_and_no_other() {
        let defence = ResizePad::new(0.85).unwrap();
        let placements: Vec<Placement> =
            (0..2000).map(|id| defence.placement(&mut SampleStream::new(1, "test", 0, id), 28, 32)).collect();
        let heights: BTreeSet<i64> = placements.iter().map(|placement| placement.height).collect();
        assert_eq!(heights, (24..=28).collect::<BTreeSet<i64>>());
        for height in heights {
            let width = (height as f64 / 28.0 * 32.0).round() as i64;
            let same: Vec<&Placement> = placements.iter().filter(|found| found.height == height).collect();
            assert!(same.iter().all(|found| found.width == width));
            let tops: BTreeSet<i64> = same.iter().map(|found| found.top).collect();
            let lefts: BTreeSet<i64> = same.iter().map(|found| found.left).collect();
            assert_eq!(tops, (0..=28 - height).collect::<BTreeSet<i64>>());
            assert_eq!(lefts, (0..=32 - width).collect::<BTreeSet<i64>>());
        }
    }

    #[test]
    fn a_white_image_becomes_a_white_rectangle_on_black() {
        let placement = Placement { height: 3, width: 4, top: 1, left: 2 };
        let found = placement.apply(&Tensor::ones([1, 2, 5, 7], (Kind::Float, Device::Cpu)));
        let expected = Tensor::zeros([1, 2, 5, 7], (Kind::Float, Device::Cpu));
        let _ = expected.narrow(2, 1, 3).narrow(3, 2, 4).fill_(1.0);
        assert!(largest_difference(&found, &expected) < 1e-6);
    }

    #[test]
    fn a_full_size_changes_nothing() {
        let image = picture([1, 3, 5, 7], 0.0, 1.0);
        let placement = Placement { height: 5, width: 7, top: 0, left: 0 };
        assert!(placement.apply(&image).equal(&image));
    }

    #[test]
    fn draws_follow_from_the_image_and_from_who_draws() {
        let defence = ResizePad::new(0.5).unwrap();
        assert!(defence.is_random());
        let images = picture([1, 1, 28, 28], 0.0, 1.0);
        let draw = |draw| restored(&defence, &images, draw);
        assert!(draw(Draw::OWN).equal(&draw(Draw::OWN)));
        assert!(draw(Draw::Attackers(1)).equal(&draw(Draw::Attackers(1))));
        assert!(!draw(Draw::Attackers(1)).equal(&draw(Draw::Attackers(2))));
        assert!(!draw(Draw::OWN).equal(&draw(Draw::Attackers(1))));
        assert!(!draw(Draw::OWN).equal(&draw(Draw::Vote(1))));
    }

    #[test]
    fn gradients_are_right() {
        assert_gradient(&Placement { height: 4, width: 3, top: 2, left: 1 }, [1, 2, 7, 6]);
        assert_gradient(&Placement { height: 8, width: 11, top: 0, left: 1 }, [1, 1, 9, 12]);
    }

    /// Always the same place: an image's own draw changes with it, so that differences would say nothing.
    impl Defence for Placement {
        fn description(&self) -> String {
            format!("{self:?}")
        }

        fn restore(&self, _: &dyn Classifier, images: &Tensor, _: Pass) -> Tensor {
            self.apply(images)
        }
    }

    #[test]
    fn rows_stand_alone_and_any_size_is_taken() {
        assert_rows_stand_alone(&ResizePad::new(0.7).unwrap());
        assert_takes_any_size(&ResizePad::new(0.7).unwrap());
    }

    #[test]
    fn other_shares_are_refused() {
        for share in [0.0, 0.49, 1.0, 1.2, f64::NAN] {
            assert!(ResizePad::new(share).is_err(), "{share}");
        }
    }
}
