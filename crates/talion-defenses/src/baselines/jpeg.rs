//! JPEG, as far as it loses something, as tensor operations.

use talion_core::{Classifier, Error, Result};
use tch::Tensor;

use super::{inside, rounded, straight_through};
use crate::defence::{Defence, Pass};

/// Images coded and decoded by baseline JPEG: frequencies that the eye hardly sees are quantised coarsely.
///
/// Images of three channels are taken as RGB and coded as JFIF's YCbCr with 4:2:0 subsampling (averaged on the way down,
/// replicated on the way up); of any other number, each channel is coded as grey. The lossless part (Huffman codes) is left
/// out. Decoders differ by a level here and there, and many smooth the subsampled colours, which we do not.
///
/// # Source
/// Wallace, "The JPEG Still Picture Compression Standard", 1992; the tables are those of the standard (ITU-T T.81, annex K),
/// scaled by quality as the Independent JPEG Group's program does. As a defence: Das et al., "Keeping the Bad Guys Out:
/// Protecting and Vaccinating Deep Learning with JPEG Compression", 2017; Guo et al., "Countering Adversarial Images using
/// Input Transformations", ICLR 2018.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jpeg {
    quality: u8,
}

impl Jpeg {
    /// JPEG at a quality of 1 (coarsest) to 100.
    ///
    /// # Errors
    /// If `quality` is not in that range.
    pub fn new(quality: u8) -> Result<Self> {
        if !(1..=100).contains(&quality) {
            return Err(Error::range("the quality of JPEG", "1 to 100", quality));
        }
        Ok(Self { quality })
    }

    /// RGB bytes coded and decoded.
    ///
    /// # Shapes
    /// `[N, 3, H, W]` in `[0, 255]`, sides multiples of 16; the result too.
    fn colour(self, bytes: &Tensor) -> Tensor {
        let size = bytes.size();
        let channel = |index| bytes.narrow(1, index, 1);
        let (red, green, blue) = (channel(0), channel(1), channel(2));
        let luma = &red * RED + &green * GREEN + &blue * BLUE;
        let chroma = Tensor::cat(&[(&blue - &luma) / BLUE_SPAN, (&red - &luma) / RED_SPAN], 1) + LEVEL;
        // pure colours would be level 256
        let chroma = inside(&rounded(&chroma), 0.0, 255.0);
        let halved = rounded(&chroma.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None));

        let luma = self.coded(&rounded(&luma), &LUMINANCE);
        let chroma =
            self.coded(&halved, &CHROMINANCE).upsample_nearest2d([size[2], size[3]], None, None) - LEVEL;
        let blue = &luma + chroma.narrow(1, 0, 1) * BLUE_SPAN;
        let red = &luma + chroma.narrow(1, 1, 1) * RED_SPAN;
        let green = (&luma - &red * RED - &blue * BLUE) / GREEN;
        rounded(&Tensor::cat(&[red, green, blue], 1)).clamp(0.0, 255.0)
    }

    /// Planes of samples coded and decoded, each for itself. Backwards the identity, apart from the clamp: with rounding
    /// taken as the identity, the cosine transform and its inverse cancel.
    ///
    /// # Shapes
    /// `[N, C, H, W]`, whole numbers in `[0, 255]`, sides multiples of 8; the result too.
    fn coded(self, planes: &Tensor, table: &[u16; 64]) -> Tensor {
        let size = planes.size();
        let blocks =
            (planes.detach() - LEVEL).reshape([size[0], size[1], size[2] / SIDE, SIDE, size[3] / SIDE, SIDE]);
        let like =
            |values: &[f64; 64]| Tensor::from_slice(values).to_kind(planes.kind()).to_device(planes.device());
        let basis = like(&cosines()).reshape([SIDE, SIDE]);
        let steps = like(&self.steps(table)).reshape([SIDE, 1, SIDE]);
        let coefficients = transformed(&blocks, &basis);
        let kept = (coefficients / &steps).round() * &steps;
        let decoded = transformed(&kept, &basis.tr()).reshape(size) + LEVEL;
        straight_through(planes, &decoded.round()).clamp(0.0, 255.0)
    }

    /// The steps that coefficients are quantised by at this quality, a row after the other.
    fn steps(self, table: &[u16; 64]) -> [f64; 64] {
        let quality = u32::from(self.quality);
        let percent = if quality < 50 { 5000 / quality } else { 200 - 2 * quality };
        table.map(|step| f64::from(((u32::from(step) * percent + 50) / 100).clamp(1, 255)))
    }
}

impl Defence for Jpeg {
    fn description(&self) -> String {
        format!("JPEG at quality {}", self.quality)
    }

    fn restore(&self, _: &dyn Classifier, images: &Tensor, _: Pass) -> Tensor {
        let size = images.size();
        let (channels, height, width) = (size[1], size[2], size[3]);
        let multiple = if channels == 3 { 2 * SIDE } else { SIDE };
        let missing = |side: i64| (multiple - side % multiple) % multiple;
        let bytes = rounded(&(images * 255.0)).replication_pad2d([0, missing(width), 0, missing(height)]);
        let decoded = if channels == 3 { self.colour(&bytes) } else { self.coded(&bytes, &LUMINANCE) };
        decoded.narrow(2, 0, height).narrow(3, 0, width) / 255.0
    }
}

/// Side of a block.
const SIDE: i64 = 8;

/// The level that samples are shifted by, and that of a colour difference of zero.
const LEVEL: f64 = 128.0;

/// Shares of the colours in luma, as in JFIF (ITU-R BT.601).
const RED: f64 = 0.299;
const GREEN: f64 = 0.587;
const BLUE: f64 = 0.114;

/// By what the differences of blue and red to luma are divided, so that they span 256 levels.
const BLUE_SPAN: f64 = 2.0 * (1.0 - BLUE);
const RED_SPAN: f64 = 2.0 * (1.0 - RED);

/// Quantisation of grey and luma at quality 50 (T.81, table K.1).
#[rustfmt::skip]
const LUMINANCE: [u16; 64] = [
    16, 11, 10, 16,  24,  40,  51,  61,
    12, 12, 14, 19,  26,  58,  60,  55,
    14, 13, 16, 24,  40,  57,  69,  56,
    14, 17, 22, 29,  51,  87,  80,  62,
    18, 22, 37, 56,  68, 109, 103,  77,
    24, 35, 55, 64,  81, 104, 113,  92,
    49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103,  99,
];

/// Quantisation of colour differences at quality 50 (T.81, table K.2).
#[rustfmt::skip]
const CHROMINANCE: [u16; 64] = [
    17, 18, 24, 47, 99, 99, 99, 99,
    18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99,
];

/// The orthonormal cosine transform of eight samples, a frequency a row; its inverse is its transpose.
fn cosines() -> [f64; 64] {
    std::array::from_fn(|place| {
        let (frequency, sample) = ((place / 8) as f64, (place % 8) as f64);
        let scale = if place < 8 { 0.125_f64.sqrt() } else { 0.5 };
        scale * ((2.0 * sample + 1.0) * frequency * std::f64::consts::PI / 16.0).cos()
    })
}

/// `matrix` times each block times the transpose of `matrix`.
///
/// # Shapes
/// `blocks` `[N, C, rows, 8, columns, 8]`, `matrix` `[8, 8]`; the result is like `blocks`.
fn transformed(blocks: &Tensor, matrix: &Tensor) -> Tensor {
    multiplied(&multiplied(blocks, matrix, 3, [SIDE, 1, 1]), matrix, 5, [1, 1, SIDE])
}

/// `matrix` times the eight values along `dimension`, where a column of the matrix has the shape `column`.
///
/// Eight multiples added up, not libtorch's product: its order of summation, and so a row's bits, may depend on the number
/// of rows.
fn multiplied(blocks: &Tensor, matrix: &Tensor, dimension: i64, column: [i64; 3]) -> Tensor {
    let term = |k| blocks.narrow(dimension, k, 1) * matrix.select(1, k).reshape(column);
    (1..SIDE).fold(term(0), |sum, k| sum + term(k))
}

#[cfg(test)]
mod tests {
    use image::{ExtendedColorType, codecs::jpeg::JpegEncoder};
    use tch::{Device, Kind};

    use super::{
        super::testing::{
            assert_rows_stand_alone, assert_takes_any_size, largest_difference, picture, restored,
        },
        *,
    };
    use crate::defence::Draw;

    /// A smooth picture: bytes, a pixel's channels together.
    fn smooth(height: i64, width: i64, channels: i64) -> Vec<u8> {
        let level = |y: i64, x: i64, channel: i64| {
            let (y, x) = (y as f64, x as f64);
            let hue = 25.0 * (x / 20.0 + 2.0 * channel as f64).sin();
            (128.0 + 60.0 * (x / 6.0).sin() * (y / 7.0).cos() + hue).round() as u8
        };
        let places = (0..height).flat_map(|y| (0..width).map(move |x| (y, x)));
        places.flat_map(|(y, x)| (0..channels).map(move |channel| level(y, x, channel))).collect()
    }

    fn tensor(bytes: &[u8], height: i64, width: i64, channels: i64) -> Tensor {
        let pixels = Tensor::from_slice(bytes).reshape([1, height, width, channels]);
        pixels.permute([0, 3, 1, 2]).contiguous().to_kind(Kind::Float) / 255.0
    }

    /// The mean absolute difference, in levels, between our restoration and a real encoder's and decoder's.
    fn mean_difference(height: i64, width: i64, channels: i64, quality: u8) -> f64 {
        let bytes = smooth(height, width, channels);
        let colours = if channels == 3 { ExtendedColorType::Rgb8 } else { ExtendedColorType::L8 };
        let mut file = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut file, quality);
        encoder.encode(&bytes, width as u32, height as u32, colours).unwrap();
        let decoded = image::load_from_memory(&file).unwrap();
        let decoded =
            if channels == 3 { decoded.to_rgb8().into_raw() } else { decoded.to_luma8().into_raw() };
        let expected = tensor(&decoded, height, width, channels);
        let images = tensor(&bytes, height, width, channels);
        let found = restored(&Jpeg::new(quality).unwrap(), &images, Draw::OWN);
        // the codec has to have changed something, or the comparison says nothing
        assert!(largest_difference(&expected, &images) > 0.5 / 255.0);
        255.0 * (found - expected).abs().mean(Kind::Double).double_value(&[])
    }

    #[test]
    fn grey_pictures_come_out_as_from_a_real_codec() {
        for quality in [20, 50, 75, 90] {
            for (height, width) in [(32, 48), (28, 28), (19, 37)] {
                let difference = mean_difference(height, width, 1, quality);
                assert!(difference < 1.0, "{height}x{width} at quality {quality}: {difference} levels");
            }
        }
    }

    #[test]
    fn colours_come_out_nearly_as_from_a_real_codec() {
        // that encoder does not subsample colours
        let difference = mean_difference(35, 50, 3, 90);
        assert!(difference < 2.0, "{difference} levels");
    }

    #[test]
    fn the_tables_are_scaled_as_the_independent_jpeg_group_does() {
        let steps = |quality| Jpeg::new(quality).unwrap().steps(&LUMINANCE);
        assert_eq!(steps(50), LUMINANCE.map(f64::from));
        assert_eq!(steps(75)[..4], [8.0, 6.0, 5.0, 8.0]);
        assert_eq!(steps(25)[..2], [32.0, 22.0]);
        assert_eq!((steps(100), steps(1)), ([1.0; 64], [255.0; 64]));
    }

    #[test]
    fn the_transform_is_orthonormal() {
        let basis = Tensor::from_slice(&cosines()).reshape([8, 8]);
        let identity = Tensor::eye(8, (Kind::Double, Device::Cpu));
        assert!(largest_difference(&basis.matmul(&basis.tr()), &identity) < 1e-14);
        let blocks = picture([2, 2, 8, 8], 0.0, 1.0).to_kind(Kind::Double).reshape([2, 2, 1, 8, 1, 8]);
        let expected = basis.matmul(&blocks.reshape([2, 2, 8, 8])).matmul(&basis.tr());
        let found = transformed(&blocks, &basis).reshape([2, 2, 8, 8]);
        assert!(largest_difference(&found, &expected) < 1e-14);
    }

    #[test]
    fn constants_stay_constants() {
        for channels in [1, 3] {
            for level in [0, 1, 77, 128, 200, 255] {
                let value = f64::from(level) / 255.0;
                let images = Tensor::full([1, channels, 21, 18], value, (Kind::Float, Device::Cpu));
                let found = restored(&Jpeg::new(75).unwrap(), &images, Draw::OWN);
                // at this quality the mean of a block is kept to the level
                assert!(largest_difference(&found, &images) < 1e-6, "{level} in {channels} channels");
            }
        }
    }

    /// The derivative of the sum of the restored values times `weights`.
    fn gradient(images: &Tensor, weights: &Tensor) -> Tensor {
        let images = images.detach().set_requires_grad(true);
        let sum = (restored(&Jpeg::new(60).unwrap(), &images, Draw::OWN) * weights).sum(Kind::Double);
        Tensor::run_backward(&[sum], &[&images], false, false).remove(0)
    }

    #[test]
    fn gradients_pass_through_the_rounding() {
        // Without rounding, grey JPEG is the identity, and colour keeps what is even across the picture. Values in the middle
        // of the range stay clear of the clamp.
        let grey = picture([2, 1, 16, 24], 0.4, 0.6).to_kind(Kind::Double);
        let weights = picture([2, 1, 16, 24], -1.0, 1.0).to_kind(Kind::Double);
        assert!(largest_difference(&gradient(&grey, &weights), &weights) < 1e-12);
        let colour = picture([1, 3, 16, 32], 0.4, 0.6).to_kind(Kind::Double);
        let weights = Tensor::from_slice(&[0.3, -1.0, 2.0]).reshape([1, 3, 1, 1]).expand_as(&colour);
        assert!(largest_difference(&gradient(&colour, &weights), &weights) < 1e-12);
    }

    #[test]
    fn rows_stand_alone_and_any_size_is_taken() {
        assert_rows_stand_alone(&Jpeg::new(75).unwrap());
        assert_takes_any_size(&Jpeg::new(75).unwrap());
    }

    #[test]
    fn other_qualities_are_refused() {
        assert!(Jpeg::new(0).is_err());
        assert!(Jpeg::new(101).is_err());
    }
}
