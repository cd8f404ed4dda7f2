//! Untrusted request bytes to pixels.
//!
//! Everything here assumes that the bytes were made to do harm: sizes are taken from the headers and checked before
//! anything is allocated or decoded, and a file that is not whole is refused. The rules:
//!
//! - The kind of a body is found from its first bytes ([`sniff`]); only `application/json` is taken at its word.
//! - Image files are PNG, JPEG or WebP. Grey stays one channel, everything else becomes red, green and blue. Palettes
//!   are resolved; alpha is composited on black; gamma and colour profiles are ignored. The orientation that a camera
//!   wrote into the EXIF data is applied, so the picture stands as every viewer shows it.
//! - Animated PNG and WebP files are refused: a viewer would show frames that nobody classified.
//! - A file has to reach its own end (`IEND`, the end marker of JPEG, the length in the RIFF header). What stands
//!   behind the end is ignored. Inside a JPEG the decoder is lenient, as browsers are: where the compressed data of an
//!   otherwise whole file has a gap or damage, the rest of the picture is filler.
//! - Tensors, as NPY or JSON, are `[H,W]`, `[C,H,W]` or `[N,C,H,W]` with at most 16 channels, and become one picture
//!   for each of the N. A value outside [0, 1] is refused with its place.
//!
//! The module depends on no other part of the project, so that the fuzz target can include it as it is.

mod file;
mod json;
mod npy;
mod outline;
mod tensor;
#[cfg(test)]
mod tests;

use std::fmt::Display;

pub use file::{base64_file, file, files};

/// What a request may use.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Width times height of one image.
    pub max_pixels: u64,
    /// Width times height of all images of one request together. Small files can unpack to large images, so without
    /// this bound a request could fill the memory with [`Limits::max_images`] of the largest.
    pub max_total_pixels: u64,
    /// Images in one request; also the N of a tensor.
    pub max_images: usize,
    /// Bytes of one image file, after base64, or of one NPY file.
    pub max_bytes: usize,
}

/// One image: its values row by row, the channels of a pixel side by side.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// Pixels in a row, at least one.
    pub width: u32,
    /// Rows, at least one.
    pub height: u32,
    /// 1 or 3 for an image file, 1 to 16 for a tensor.
    pub channels: u8,
    /// `height * width * channels` values in [0, 1].
    pub values: Vec<f32>,
    /// Whether the picture may be brought to another size: an image file may, a tensor is meant as it is.
    pub resizable: bool,
}

/// What bytes are, by their beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A PNG file.
    Png,
    /// A JPEG file.
    Jpeg,
    /// A WebP file.
    Webp,
    /// A NumPy array.
    Npy,
    /// A JSON object.
    Json,
}

/// Why bytes are no pictures.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// More bytes, pixels or images than allowed (status 413).
    #[error("{0}")]
    TooLarge(String),
    /// A format, or a feature of a format, that is not read (status 415).
    #[error("{0}")]
    Unsupported(String),
    /// Bytes that are not what they claim to be (status 400).
    #[error("{0}")]
    Malformed(String),
    /// Well-formed, but no input of a classifier: a wrong shape or a wrong value (status 422).
    #[error("{0}")]
    Unprocessable(String),
}

/// The kind of a body or file. `None` if it is none that is read here.
pub fn sniff(bytes: &[u8]) -> Option<Kind> {
    let first = bytes.iter().find(|byte| !b" \t\r\n".contains(byte));
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        Some(Kind::Png)
    } else if bytes.starts_with(b"\xff\xd8\xff") {
        Some(Kind::Jpeg)
    } else if bytes.starts_with(b"RIFF") && chunk(bytes, 8) == Some(*b"WEBP") {
        Some(Kind::Webp)
    } else if bytes.starts_with(npy::SIGNATURE) {
        Some(Kind::Npy)
    } else {
        (first == Some(&b'{')).then_some(Kind::Json)
    }
}

/// The pictures of a request's body, at least one; `json` if its content type is `application/json`.
pub fn pictures(bytes: &[u8], json: bool, limits: &Limits) -> Result<Vec<Picture>, Problem> {
    if json {
        return json::pictures(bytes, limits);
    }
    match sniff(bytes) {
        Some(Kind::Json) => json::pictures(bytes, limits),
        Some(Kind::Npy) => npy::pictures(bytes, limits),
        Some(Kind::Png | Kind::Jpeg | Kind::Webp) => Ok(vec![file(bytes, limits)?]),
        None if bytes.is_empty() => Err(Problem::Malformed("the body is empty".into())),
        None => Err(Problem::Unsupported("expected a PNG, JPEG, WebP or NPY file, or JSON".into())),
    }
}

impl Limits {
    /// The pixels of one image of this size, which may have that many.
    fn check_pixels(&self, width: u64, height: u64) -> Result<u64, Problem> {
        match width.checked_mul(height) {
            Some(pixels) if pixels <= self.max_pixels => Ok(pixels),
            _ => {
                let most = self.max_pixels;
                Err(Problem::TooLarge(format!("{width} x {height} pixels; an image may have {most}")))
            }
        }
    }

    fn check_total(&self, pixels: u64) -> Result<(), Problem> {
        let most = self.max_total_pixels;
        check(pixels <= most, || format!("{pixels} pixels; the images of a request may have {most} together"))
    }

    fn check_images(&self, images: u64) -> Result<(), Problem> {
        let most = self.max_images;
        check(images <= most as u64, || format!("{images} images or more; a request may have {most}"))
    }

    fn check_bytes(&self, bytes: usize) -> Result<(), Problem> {
        let most = self.max_bytes;
        check(bytes <= most, || format!("a file of {bytes} bytes; it may have {most}"))
    }
}

fn check(allowed: bool, message: impl FnOnce() -> String) -> Result<(), Problem> {
    if allowed { Ok(()) } else { Err(Problem::TooLarge(message())) }
}

impl Problem {
    /// The same problem, with the place it was found in.
    fn within(self, place: impl Display) -> Self {
        let prefixed = |text: String| format!("{place}: {text}");
        match self {
            Self::TooLarge(text) => Self::TooLarge(prefixed(text)),
            Self::Unsupported(text) => Self::Unsupported(prefixed(text)),
            Self::Malformed(text) => Self::Malformed(prefixed(text)),
            Self::Unprocessable(text) => Self::Unprocessable(prefixed(text)),
        }
    }
}

/// The beginning of a message; those of libraries can repeat any part of the input.
fn brief(message: impl Display) -> String {
    const MAX_CHARS: usize = 200;
    let mut text = message.to_string();
    if let Some((end, _)) = text.char_indices().nth(MAX_CHARS) {
        text.truncate(end);
        text.push_str("...");
    }
    text
}

/// The `N` bytes at `at`, if there are as many.
fn chunk<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}
