//! Values become pictures that a browser shows.

use base64::{Engine, engine::general_purpose::STANDARD};
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use talion_core::{Error, Result};

use crate::guard::InputShape;

/// A PNG of an image `[C, H, W]` in `[0, 1]`: grey, or the first three channels as colour.
///
/// # Errors
/// If the image cannot be encoded.
pub fn png(values: &[f32], shape: InputShape) -> Result<Vec<u8>> {
    let plane = shape.height * shape.width;
    let (channels, kind) =
        if shape.channels >= 3 { (3, ExtendedColorType::Rgb8) } else { (1, ExtendedColorType::L8) };
    let level = |value: f32| (value.clamp(0.0, 1.0) * 255.0).round() as u8;
    let bytes: Vec<u8> = (0..plane)
        .flat_map(|pixel| (0..channels).map(move |channel| channel * plane + pixel))
        .map(|index| level(values[index]))
        .collect();
    let mut file = Vec::new();
    PngEncoder::new(&mut file)
        .write_image(&bytes, shape.width as u32, shape.height as u32, kind)
        .map_err(Error::other)?;
    Ok(file)
}

/// A PNG as a `data:` URL.
///
/// # Errors
/// As [`png`].
pub fn data_url(values: &[f32], shape: InputShape) -> Result<String> {
    Ok(format!("data:image/png;base64,{}", STANDARD.encode(png(values, shape)?)))
}

/// Values in `[-1, 1]` as an image: nothing is grey.
pub fn signed(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| 0.5 + 0.5 * value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_come_back_as_they_were() {
        for channels in [1, 3] {
            let shape = InputShape { channels, height: 3, width: 5 };
            let values: Vec<f32> = (0..shape.len()).map(|index| index as f32 / 255.0).collect();
            let picture = image::load_from_memory(&png(&values, shape).unwrap()).unwrap();
            assert_eq!((picture.width(), picture.height()), (5, 3));
            let found =
                if channels == 1 { picture.into_luma8().into_raw() } else { picture.into_rgb8().into_raw() };
            // the second pixel's channels lie a plane apart
            let wanted: Vec<u8> = (0..channels).map(|channel| (channel * 15 + 1) as u8).collect();
            assert_eq!(found[channels..2 * channels], wanted[..]);
        }
        assert_eq!(signed(&[-1.0, 0.0, 1.0]), [0.0, 0.5, 1.0]);
        let shape = InputShape { channels: 1, height: 1, width: 1 };
        assert!(data_url(&[0.5], shape).unwrap().starts_with("data:image/png;base64,iVBOR"));
    }
}
