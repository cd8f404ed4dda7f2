//! Image files: PNG, JPEG and WebP.

use std::io::Cursor;

use base64::{Engine, engine::general_purpose::STANDARD};
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader};

use super::{Kind, Limits, Picture, Problem, brief, outline::Outline, sniff};

/// The picture of one PNG, JPEG or WebP file.
pub fn file(bytes: &[u8], limits: &Limits) -> Result<Picture, Problem> {
    decode(bytes, limits, &mut 0)
}

/// The pictures of several files of one request, at least one; the limits apply to all of them together.
pub fn files<'a>(
    files: impl IntoIterator<Item = &'a [u8]>,
    limits: &Limits,
) -> Result<Vec<Picture>, Problem> {
    let mut batch = Batch::new(limits);
    files.into_iter().try_for_each(|bytes| batch.add(bytes))?;
    batch.finish()
}

/// The picture of one file in base64.
pub fn base64_file(text: &str, limits: &Limits) -> Result<Picture, Problem> {
    file(&from_base64(text, limits)?, limits)
}

/// The pictures of a request so far.
pub(super) struct Batch<'a> {
    limits: &'a Limits,
    pictures: Vec<Picture>,
    pixels: u64,
}

impl<'a> Batch<'a> {
    pub(super) fn new(limits: &'a Limits) -> Self {
        Self { limits, pictures: Vec::new(), pixels: 0 }
    }

    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        let index = self.pictures.len();
        self.limits.check_images(index as u64 + 1)?;
        let picture = decode(bytes, self.limits, &mut self.pixels);
        self.pictures.push(picture.map_err(|problem| problem.within(format_args!("image {index}")))?);
        Ok(())
    }

    pub(super) fn add_base64(&mut self, text: &str) -> Result<(), Problem> {
        let index = self.pictures.len();
        let bytes = from_base64(text, self.limits);
        self.add(&bytes.map_err(|problem| problem.within(format_args!("image {index}")))?)
    }

    pub(super) fn finish(self) -> Result<Vec<Picture>, Problem> {
        if self.pictures.is_empty() {
            return Err(Problem::Unprocessable("a request without an image".into()));
        }
        Ok(self.pictures)
    }
}

fn from_base64(text: &str, limits: &Limits) -> Result<Vec<u8>, Problem> {
    // Four characters are three bytes, but up to two bytes of the last three can be padding.
    limits.check_bytes((text.len() / 4 * 3).saturating_sub(2))?;
    STANDARD.decode(text).map_err(|error| {
        let hint =
            if text.starts_with("data:") { "; only what follows the comma of a data URL is" } else { "" };
        Problem::Malformed(format!("not base64: {error}{hint}"))
    })
}

/// Decodes one file and adds its pixels to `total`, that of the request.
fn decode(bytes: &[u8], limits: &Limits, total: &mut u64) -> Result<Picture, Problem> {
    limits.check_bytes(bytes.len())?;
    let (format, outline) = match sniff(bytes) {
        Some(Kind::Png) => (ImageFormat::Png, Outline::png(bytes)?),
        Some(Kind::Jpeg) => (ImageFormat::Jpeg, Outline::jpeg(bytes)?),
        Some(Kind::Webp) => (ImageFormat::WebP, Outline::webp(bytes)?),
        Some(Kind::Npy | Kind::Json) | None => {
            return Err(Problem::Unsupported("expected a PNG, JPEG or WebP file".into()));
        }
    };
    let pixels = limits.check_pixels(outline.width.into(), outline.height.into())?;
    *total = total.saturating_add(pixels);
    limits.check_total(*total)?;
    picture(&read(&bytes[..outline.len], format, &outline)?)
}

/// Decodes a file of known size, and turns it the way its EXIF data says.
fn read(bytes: &[u8], format: ImageFormat, outline: &Outline) -> Result<DynamicImage, Problem> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(decoder_limits(outline));
    let mut decoder = reader.into_decoder().map_err(refused)?;
    if decoder.dimensions() != (outline.width, outline.height) {
        return Err(Problem::Malformed("an image file that states two sizes".into()));
    }
    let orientation = decoder.orientation().map_err(refused)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(refused)?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// The second line of defence: what the decoder may use for a picture of this size.
fn decoder_limits(outline: &Outline) -> image::Limits {
    /// The picture itself takes up to eight, the decoder may need as much again.
    const BYTES_PER_PIXEL: u64 = 16;
    /// For what else is in the file: text, and colour profiles, which are packed.
    const METADATA_BYTES: u64 = 16 << 20;
    let pixels = u64::from(outline.width) * u64::from(outline.height);
    let mut limits = image::Limits::no_limits();
    limits.max_image_width = Some(outline.width);
    limits.max_image_height = Some(outline.height);
    limits.max_alloc = Some(pixels.saturating_mul(BYTES_PER_PIXEL).saturating_add(METADATA_BYTES));
    limits
}

fn refused(error: ImageError) -> Problem {
    match error {
        ImageError::Limits(_) => Problem::TooLarge("the image needs too much memory to decode".into()),
        ImageError::Unsupported(_) => Problem::Unsupported(brief(error)),
        _ => Problem::Malformed(brief(error)),
    }
}

fn picture(image: &DynamicImage) -> Result<Picture, Problem> {
    const MOST_8: f32 = u8::MAX as f32;
    const MOST_16: f32 = u16::MAX as f32;
    let (channels, values) = match image {
        DynamicImage::ImageLuma8(pixels) => (1, opaque(pixels.as_raw(), MOST_8)),
        DynamicImage::ImageLuma16(pixels) => (1, opaque(pixels.as_raw(), MOST_16)),
        DynamicImage::ImageRgb8(pixels) => (3, opaque(pixels.as_raw(), MOST_8)),
        DynamicImage::ImageRgb16(pixels) => (3, opaque(pixels.as_raw(), MOST_16)),
        DynamicImage::ImageLumaA8(pixels) => (1, on_black(pixels.as_raw(), 1, MOST_8)),
        DynamicImage::ImageLumaA16(pixels) => (1, on_black(pixels.as_raw(), 1, MOST_16)),
        DynamicImage::ImageRgba8(pixels) => (3, on_black(pixels.as_raw(), 3, MOST_8)),
        DynamicImage::ImageRgba16(pixels) => (3, on_black(pixels.as_raw(), 3, MOST_16)),
        _ => return Err(Problem::Unsupported("samples that are not of 8 or 16 bits".into())),
    };
    Ok(Picture { width: image.width(), height: image.height(), channels, values, resizable: true })
}

fn opaque<T: Copy>(samples: &[T], most: f32) -> Vec<f32>
where
    f32: From<T>,
{
    samples.iter().map(|&sample| f32::from(sample) / most).collect()
}

/// The colours of pixels whose last sample is alpha, composited on black.
fn on_black<T: Copy>(samples: &[T], colours: usize, most: f32) -> Vec<f32>
where
    f32: From<T>,
{
    let pixels = samples.chunks_exact(colours + 1);
    let mut values = Vec::with_capacity(pixels.len() * colours);
    for pixel in pixels {
        let alpha = f32::from(pixel[colours]) / most;
        values.extend(pixel[..colours].iter().map(|&sample| f32::from(sample) / most * alpha));
    }
    values
}
