//! Decoded pictures become what the networks take.

use image::{ImageBuffer, Luma, Pixel, Rgb, imageops};

use crate::{
    decode::{Picture, Problem},
    guard::InputShape,
};

/// An image as the networks take it.
#[derive(Debug)]
pub struct Prepared {
    /// `[C, H, W]` in `[0, 1]`.
    pub values: Vec<f32>,
    /// Width and height of the picture, if it had to be resized.
    pub resized_from: Option<[u32; 2]>,
}

/// Makes `picture` an image of `shape`.
///
/// Grey becomes colour by repetition, colour grey by ITU-R BT.709 luma as the `image` crate has it. Other sizes are resized with
/// a triangle filter, which averages over all pixels that fall together: an attack is weakened by that, and one made on the large
/// picture to survive it is not.
///
/// # Errors
/// If a tensor has another size or other channels, or a file cannot be shown to these networks at all.
pub fn prepare(picture: Picture, shape: InputShape) -> Result<Prepared, Problem> {
    let (width, height) = (shape.width as u32, shape.height as u32);
    let fits = (picture.width, picture.height) == (width, height);
    if !picture.resizable {
        if !fits || usize::from(picture.channels) != shape.channels {
            return Err(Problem::Unprocessable(format!(
                "a tensor has to be [{}, {}, {}] an image, and this one is [{}, {}, {}]; image files are resized, tensors are not",
                shape.channels, shape.height, shape.width, picture.channels, picture.height, picture.width
            )));
        }
        return Ok(Prepared { values: planar(&picture.values, shape), resized_from: None });
    }
    let resized_from = (!fits).then_some([picture.width, picture.height]);
    let interleaved = match (picture.channels, shape.channels) {
        (1, 1) => resized(buffer::<Luma<f32>>(picture)?, width, height),
        (3, 3) => resized(buffer::<Rgb<f32>>(picture)?, width, height),
        (1, 3) => {
            let grey = resized(buffer::<Luma<f32>>(picture)?, width, height);
            grey.into_iter().flat_map(|value| [value; 3]).collect()
        }
        (3, 1) => {
            let colour = buffer::<Rgb<f32>>(picture)?;
            let grey: ImageBuffer<Luma<f32>, Vec<f32>> =
                ImageBuffer::from_fn(colour.width(), colour.height(), |x, y| {
                    colour.get_pixel(x, y).to_luma()
                });
            resized(grey, width, height)
        }
        (_, wanted) => {
            return Err(Problem::Unprocessable(format!(
                "these networks take {wanted} channels, which no image file has; send a tensor"
            )));
        }
    };
    Ok(Prepared { values: planar(&interleaved, shape), resized_from })
}

fn buffer<P: Pixel<Subpixel = f32>>(picture: Picture) -> Result<ImageBuffer<P, Vec<f32>>, Problem> {
    ImageBuffer::from_raw(picture.width, picture.height, picture.values)
        .ok_or_else(|| Problem::Malformed("the picture has fewer pixels than it says".into()))
}

fn resized<P: Pixel<Subpixel = f32> + 'static>(
    image: ImageBuffer<P, Vec<f32>>,
    width: u32,
    height: u32,
) -> Vec<f32> {
    if image.dimensions() == (width, height) {
        return image.into_raw();
    }
    let mut values = imageops::resize(&image, width, height, imageops::FilterType::Triangle).into_raw();
    // weights add up to 1 only as far as rounding goes
    values.iter_mut().for_each(|value| *value = value.clamp(0.0, 1.0));
    values
}

/// `[H, W, C]` as `[C, H, W]`.
fn planar(interleaved: &[f32], shape: InputShape) -> Vec<f32> {
    let channel = |channel| interleaved.iter().skip(channel).step_by(shape.channels).copied();
    (0..shape.channels).flat_map(channel).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREY: InputShape = InputShape { channels: 1, height: 2, width: 2 };
    const COLOUR: InputShape = InputShape { channels: 3, height: 2, width: 2 };

    fn file(channels: u8, (width, height): (u32, u32), values: Vec<f32>) -> Picture {
        Picture { width, height, channels, values, resizable: true }
    }

    #[test]
    fn a_picture_of_the_right_size_is_only_rearranged() {
        let values: Vec<f32> = (0..12_u8).map(|value| f32::from(value) / 16.0).collect();
        let prepared = prepare(file(3, (2, 2), values.clone()), COLOUR).unwrap();
        let red: Vec<f32> = [0, 3, 6, 9].map(|index| values[index]).to_vec();
        assert_eq!(prepared.values[..4], red[..]);
        assert_eq!(prepared.resized_from, None);
    }

    #[test]
    fn a_larger_picture_is_averaged_and_says_so() {
        // four quarters, each of one value but for noise around it
        let value = |x: u32, y: u32| {
            f32::from((x / 4 + 2 * (y / 4)) as u8) / 4.0 + if (x + y).is_multiple_of(2) { 0.1 } else { 0.0 }
        };
        let values = (0..64_u32).map(|index| value(index % 8, index / 8)).collect();
        let prepared = prepare(file(1, (8, 8), values), GREY).unwrap();
        assert_eq!(prepared.resized_from, Some([8, 8]));
        for (found, wanted) in prepared.values.iter().zip([0.05, 0.3, 0.55, 0.8]) {
            assert!((found - wanted).abs() < 0.12, "{found} for {wanted}");
        }
        assert!(prepared.values.is_sorted());
    }

    #[test]
    fn colour_and_grey_are_converted() {
        let grey = prepare(file(1, (2, 2), vec![0.0, 0.25, 0.5, 1.0]), COLOUR).unwrap();
        assert_eq!(grey.values, [[0.0, 0.25, 0.5, 1.0]; 3].concat());
        let white_and_green = [1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5];
        let luma = prepare(file(3, (2, 2), white_and_green.to_vec()), GREY).unwrap();
        for (found, wanted) in luma.values.iter().zip([1.0, 0.7152, 0.0, 0.5]) {
            assert!((found - wanted).abs() < 1e-3, "{found} for {wanted}");
        }
    }

    #[test]
    fn tensors_are_never_resized() {
        let tensor = |channels, width| Picture {
            width,
            height: 2,
            channels,
            values: vec![0.5; usize::from(channels) * 2 * width as usize],
            resizable: false,
        };
        assert_eq!(prepare(tensor(3, 2), COLOUR).unwrap().values, [0.5; 12]);
        for wrong in [tensor(1, 2), tensor(3, 3)] {
            let problem = prepare(wrong, COLOUR).unwrap_err();
            assert!(
                matches!(&problem, Problem::Unprocessable(text) if text.contains("[3, 2, 2]")),
                "{problem}"
            );
        }
    }
}
