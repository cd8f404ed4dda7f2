//! Random variations of training images.

use tch::Tensor;

use crate::{
    dataset::Dataset,
    error::{DataError, Result},
    names::DatasetSpec,
    rng::{Purpose, Stream},
};

/// The byte that cutout paints: the middle of the range.
const CUTOUT_FILL: u8 = 128;

/// How to vary training images. The default changes nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augmentation {
    /// Shift each image by up to this many pixels each way: it is padded by reflection, then cropped at random.
    pub pad: usize,
    /// Mirror half of the images left to right. Only for data sets where that keeps the class: see
    /// [`DatasetSpec::flips`].
    pub flip: bool,
    /// Paint a grey square with this side, cut at the image's edges, at a random place. 0 paints none.
    pub cutout: usize,
}

/// What is drawn for one image.
struct Draw {
    top: usize,
    left: usize,
    mirrored: bool,
    cut_row: usize,
    cut_column: usize,
}

impl Augmentation {
    /// The usual choice: shifts by an eighth of the side (4 of 32 pixels), mirroring where it keeps the class, no
    /// cutout.
    pub fn standard(spec: &DatasetSpec, data: &Dataset) -> Self {
        Self { pad: data.height().min(data.width()) / 8, flip: spec.flips(), cutout: 0 }
    }

    /// The images at `indices`, varied: `f32` `[n, C, H, W]` with values in \[0, 1\], on the CPU.
    ///
    /// What happens to an image depends on `seed`, `epoch` and its id alone, so neither the other images of the batch
    /// nor their order change it. Training gives a new `epoch` each time round.
    ///
    /// # Errors
    /// [`DataError::Request`] if an index is out of range, or `pad` is not below the image's height and width (a
    /// reflection reaches no further), [`DataError::Tensor`] if libtorch fails.
    pub fn apply(&self, data: &Dataset, indices: &[usize], seed: u64, epoch: u64) -> Result<Tensor> {
        let (height, width) = (data.height(), data.width());
        if self.pad >= height.min(width) {
            return Err(DataError::Request(format!(
                "cannot shift images of {height} x {width} by {} pixels: a reflection reaches less than the side",
                self.pad
            )));
        }
        let mut pixels = Vec::with_capacity(indices.len() * data.image_len());
        for &index in indices {
            let image = data.image_bytes(index)?;
            let draw = self.draw(height, width, [seed, epoch, data.ids()[index]]);
            let start = pixels.len();
            self.push_shifted(image, height, width, &draw, &mut pixels);
            self.cut(&mut pixels[start..], height, width, &draw);
        }
        data.pixels_to_tensor(&pixels, indices.len())
    }

    /// Draws everything whatever is switched on, so that one option does not change what another does.
    fn draw(&self, height: usize, width: usize, keys: [u64; 3]) -> Draw {
        let mut stream = Stream::new(Purpose::Augment, keys);
        Draw {
            top: stream.below(2 * self.pad + 1),
            left: stream.below(2 * self.pad + 1),
            mirrored: stream.below(2) == 1 && self.flip,
            cut_row: stream.below(height),
            cut_column: stream.below(width),
        }
    }

    fn push_shifted(&self, image: &[u8], height: usize, width: usize, draw: &Draw, into: &mut Vec<u8>) {
        let columns: Vec<usize> = (0..width)
            .map(|x| if draw.mirrored { width - 1 - x } else { x })
            .map(|x| reflect(x + draw.left, self.pad, width))
            .collect();
        for plane in image.chunks_exact(height * width) {
            for y in 0..height {
                let row = &plane[reflect(y + draw.top, self.pad, height) * width..][..width];
                into.extend(columns.iter().map(|&column| row[column]));
            }
        }
    }

    fn cut(&self, image: &mut [u8], height: usize, width: usize, draw: &Draw) {
        let span = |centre: usize, size: usize| {
            let start = centre.saturating_sub(self.cutout / 2);
            // The part that would lie before the edge is cut off, not moved inside.
            let end = centre.saturating_add(self.cutout - self.cutout / 2).min(size);
            start..end
        };
        let (rows, columns) = (span(draw.cut_row, height), span(draw.cut_column, width));
        for plane in image.chunks_exact_mut(height * width) {
            for y in rows.clone() {
                plane[y * width..][columns.clone()].fill(CUTOUT_FILL);
            }
        }
    }
}

/// The source of position `at` of a line that is padded by reflection: `at` counts from the start of the padding, and
/// the edge itself is not repeated. `pad` has to be below `size`.
fn reflect(at: usize, pad: usize, size: usize) -> usize {
    let last = size - 1;
    let distance = at.abs_diff(pad);
    if distance <= last { distance } else { 2 * last - distance }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{DatasetParts, Split};

    fn data(n: usize) -> Dataset {
        Dataset::new(DatasetParts {
            name: "toy".into(),
            split: Split::Train,
            images: (0..n * 3 * 48).map(|i| (i * 7 % 251) as u8).collect(),
            labels: vec![0; n],
            channels: 3,
            height: 6,
            width: 8,
            class_names: vec!["a".into()],
        })
        .unwrap()
    }

    const ALL: Augmentation = Augmentation { pad: 2, flip: true, cutout: 3 };

    #[test]
    fn reflection_does_not_repeat_the_edge() {
        let line: Vec<usize> = (0..8).map(|at| reflect(at, 2, 4)).collect();
        assert_eq!(line, [2, 1, 0, 1, 2, 3, 2, 1]);
        assert_eq!(reflect(0, 0, 1), 0);
    }

    #[test]
    fn an_image_does_not_depend_on_its_batch() {
        let data = data(20);
        let whole = ALL.apply(&data, &(0..20).collect::<Vec<_>>(), 1, 2).unwrap();
        let part = ALL.apply(&data, &[13, 4], 1, 2).unwrap();
        assert_eq!(part.get(0), whole.get(13));
        assert_eq!(part.get(1), whole.get(4));
        // Ids, not positions, key the draws.
        let subset = data.subset(&[13]).unwrap();
        assert_eq!(ALL.apply(&subset, &[0], 1, 2).unwrap().get(0), whole.get(13));
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let data = data(20);
        let indices: Vec<usize> = (0..20).collect();
        let first = ALL.apply(&data, &indices, 1, 2).unwrap();
        assert_eq!(first, ALL.apply(&data, &indices, 1, 2).unwrap());
        assert_ne!(first, ALL.apply(&data, &indices, 1, 3).unwrap());
        assert_ne!(first, ALL.apply(&data, &indices, 2, 2).unwrap());
    }

    #[test]
    fn nothing_switched_on_changes_nothing() {
        let data = data(5);
        let plain = Augmentation::default().apply(&data, &[3, 1], 1, 2).unwrap();
        assert_eq!(plain, data.tensor(&[3, 1]).unwrap().0);
    }

    #[test]
    fn flips_mirror_about_half_of_the_images() {
        let data = data(400);
        let indices: Vec<usize> = (0..400).collect();
        let flip = Augmentation { flip: true, ..Default::default() };
        let (flipped, (plain, _)) =
            (flip.apply(&data, &indices, 5, 0).unwrap(), data.tensor(&indices).unwrap());
        let mirrored = plain.flip([3]);
        let count = (0..400).filter(|&i| flipped.get(i) == mirrored.get(i)).count();
        assert!((150..250).contains(&count), "{count}");
        assert!((0..400).all(|i| flipped.get(i) == mirrored.get(i) || flipped.get(i) == plain.get(i)));
    }

    #[test]
    fn cutout_paints_a_square_of_at_most_its_size() {
        let data = data(100);
        let cut = Augmentation { cutout: 3, ..Default::default() };
        for index in 0..100 {
            let draw = cut.draw(6, 8, [9, 0, index]);
            let mut image = vec![0; 3 * 48];
            cut.cut(&mut image, 6, 8, &draw);
            let painted = image.iter().filter(|&&pixel| pixel == CUTOUT_FILL).count();
            assert!(painted % 3 == 0 && (3 * 4..=3 * 9).contains(&painted), "{painted}");
        }
        let huge = Augmentation { cutout: usize::MAX / 4, ..Default::default() };
        assert!(huge.apply(&data, &[0], 0, 0).is_ok());
    }

    #[test]
    fn too_large_a_shift_is_refused() {
        let wide = Augmentation { pad: 6, ..Default::default() };
        assert!(wide.apply(&data(1), &[0], 0, 0).unwrap_err().to_string().contains("by 6 pixels"));
        assert!(Augmentation { pad: 5, ..Default::default() }.apply(&data(1), &[0], 0, 0).is_ok());
        assert!(ALL.apply(&data(1), &[1], 0, 0).is_err());
    }
}
