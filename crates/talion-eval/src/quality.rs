//! How close a restored image is to the clean one.

use talion_core::Result;
use tch::{Kind, Tensor};

/// What stands for the infinite ratio of two equal images, in dB.
const EQUAL: f64 = 200.0;

/// Peak signal-to-noise ratio of each row, in dB: `-10 log10` of the mean squared difference, as values reach up to 1; 200
/// for equal images, whose ratio is infinite.
///
/// # Shapes
/// Both `[N, C, H, W]` in `[0, 1]`; a number a row.
///
/// # Errors
/// If the shapes differ.
pub fn psnr(images: &Tensor, reference: &Tensor) -> Result<Vec<f64>> {
    let difference = images.to_kind(Kind::Double).f_sub(&reference.to_kind(Kind::Double))?;
    let error = Vec::<f64>::try_from(difference.square().flatten(1, -1).mean_dim(1, false, Kind::Double))?;
    Ok(error.into_iter().map(|error| (-10.0 * error.log10()).min(EQUAL)).collect())
}

/// Structural similarity of each row, at most 1 (Wang et al., "Image Quality Assessment: From Error Visibility to Structural
/// Similarity", IEEE Transactions on Image Processing 2004, section III-B): Gaussian window of 11 x 11 with standard
/// deviation 1.5, constants 0.01 and 0.03, averaged over the places where the window fits, and over channels. Images
/// with a side below 11 get the largest odd window that fits.
///
/// # Shapes
/// Both `[N, C, H, W]` in `[0, 1]`; a number a row.
///
/// # Errors
/// If the shapes differ.
pub fn ssim(images: &Tensor, reference: &Tensor) -> Result<Vec<f64>> {
    let (x, y) = (images.to_kind(Kind::Double), reference.to_kind(Kind::Double));
    let _ = x.f_sub(&y)?; // the shapes have to agree
    let size = x.size();
    let (channels, side) = (size[1], size[2].min(size[3]).min(11));
    let window = window(side - (side + 1) % 2, channels).to_device(x.device());
    let blur = |image: &Tensor| image.conv2d::<Tensor>(&window, None, [1, 1], [0, 0], [1, 1], channels);
    let (mean_x, mean_y) = (blur(&x), blur(&y));
    let variance_x = blur(&x.square()) - mean_x.square();
    let variance_y = blur(&y.square()) - mean_y.square();
    let covariance = blur(&(&x * &y)) - &mean_x * &mean_y;
    let (c1, c2) = (1e-4, 9e-4);
    let above = (&mean_x * &mean_y * 2.0 + c1) * (covariance * 2.0 + c2);
    let below = (mean_x.square() + mean_y.square() + c1) * (variance_x + variance_y + c2);
    Ok(Vec::try_from((above / below).flatten(1, -1).mean_dim(1, false, Kind::Double))?)
}

/// A Gaussian window for each channel by itself, `[C, 1, side, side]`, with sum 1.
fn window(side: i64, channels: i64) -> Tensor {
    let place = Tensor::arange(side, (Kind::Double, tch::Device::Cpu)) - (side - 1) as f64 / 2.0;
    let line = (place.square() / (-2.0 * 1.5 * 1.5)).exp();
    let square = line.outer(&line);
    let sum = square.sum(Kind::Double);
    (square / sum).expand([channels, 1, side, side], false).contiguous()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn equal_images_are_perfect_and_a_known_difference_has_its_ratio() {
        let image = Tensor::arange(3 * 16 * 16, (Kind::Float, Device::Cpu)).view([1, 3, 16, 16]) / 768.0;
        assert_eq!(psnr(&image, &image).unwrap(), [200.0]);
        assert!((ssim(&image, &image).unwrap()[0] - 1.0).abs() < 1e-12);
        let grey = Tensor::full([2, 1, 12, 12], 0.5, (Kind::Double, Device::Cpu));
        for ratio in psnr(&(&grey + 0.1), &grey).unwrap() {
            assert!((ratio - 20.0).abs() < 1e-9, "{ratio}");
        }
        // two flat images: only the first factor differs from 1
        let (a, b) = (0.5, 0.6);
        let expected = (2.0 * a * b + 1e-4) / (a * a + b * b + 1e-4);
        assert!((ssim(&(&grey + 0.1), &grey).unwrap()[1] - expected).abs() < 1e-9);
        assert!(ssim(&grey, &image).is_err() && psnr(&grey, &image).is_err());
        let small = Tensor::full([1, 1, 4, 4], 0.5, (Kind::Float, Device::Cpu));
        assert!((ssim(&small, &small).unwrap()[0] - 1.0).abs() < 1e-12);
    }
}
