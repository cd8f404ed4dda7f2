//! The structure of an image file: how large the picture is and where the file ends, found without decoding.
//!
//! The decoders trust some lengths more than they should: one allocates what a chunk of four gigabytes would need
//! before it notices that the file ends, and one makes up the rest of a picture when the rest of its file is missing.
//! What passes here is whole, and the decoders see it only up to its end.

use super::{Problem, chunk};

pub(super) struct Outline {
    pub(super) width: u32,
    pub(super) height: u32,
    /// Bytes of the file; what follows is not part of it.
    pub(super) len: usize,
}

impl Outline {
    pub(super) fn png(bytes: &[u8]) -> Result<Self, Problem> {
        const HEADER_AT: usize = 8;
        let mut size = None;
        let mut at = HEADER_AT;
        loop {
            let (length, kind) = chunk(bytes, at).zip(chunk::<4>(bytes, at + 4)).ok_or_else(truncated)?;
            let data = data(bytes, at + 8, u32::from_be_bytes(length))?;
            match &kind {
                b"IHDR" if at == HEADER_AT => {
                    size = chunk(data, 0).map(u32::from_be_bytes).zip(chunk(data, 4).map(u32::from_be_bytes));
                }
                _ if at == HEADER_AT => return Err(Problem::Malformed("a PNG file with no header".into())),
                b"acTL" | b"fcTL" | b"fdAT" => return Err(animated()),
                _ => {}
            }
            at += 8 + data.len();
            chunk::<4>(bytes, at).ok_or_else(truncated)?; // the check sum, which the decoder compares
            at += 4;
            if &kind == b"IEND" {
                return Self::new(size, at);
            }
        }
    }

    pub(super) fn jpeg(bytes: &[u8]) -> Result<Self, Problem> {
        const TEMPORARY: u8 = 0x01;
        const END: u8 = 0xd9;
        let mut size = None;
        let mut at = 2; // behind the marker that starts the file
        loop {
            let (marker, segment) = next_marker(bytes, at).ok_or_else(truncated)?;
            at = segment;
            match marker {
                END => return Self::new(size, at),
                // Restarts, and others that have no length
                TEMPORARY | 0xd0..=0xd8 => continue,
                // A frame; the three left out are a Huffman table, an extension and a table of conditions
                0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                    let height = chunk(bytes, segment + 3).map(u16::from_be_bytes).ok_or_else(truncated)?;
                    let width = chunk(bytes, segment + 5).map(u16::from_be_bytes).ok_or_else(truncated)?;
                    agree(&mut size, (width.into(), height.into()))?;
                }
                _ => {}
            }
            let length = chunk(bytes, segment).map(u16::from_be_bytes).ok_or_else(truncated)?;
            if length < 2 {
                return Err(Problem::Malformed("a JPEG segment shorter than its own length".into()));
            }
            at += usize::from(length);
        }
    }

    pub(super) fn webp(bytes: &[u8]) -> Result<Self, Problem> {
        let length = chunk(bytes, 4).map(u32::from_le_bytes).ok_or_else(truncated)?;
        let len = 8 + data(bytes, 8, length)?.len();
        let bytes = &bytes[..len];
        let mut size = None;
        let mut at = 12;
        while at < len {
            let (kind, length) = chunk::<4>(bytes, at).zip(chunk(bytes, at + 4)).ok_or_else(truncated)?;
            let data = data(bytes, at + 8, u32::from_le_bytes(length))?;
            match &kind {
                b"ANIM" | b"ANMF" => return Err(animated()),
                b"VP8X" if data.first().is_some_and(|flags| flags & 2 != 0) => return Err(animated()),
                b"VP8X" => agree(&mut size, canvas_size(data).ok_or_else(truncated)?)?,
                b"VP8 " => agree(&mut size, lossy_size(data).ok_or_else(truncated)?)?,
                b"VP8L" => agree(&mut size, lossless_size(data).ok_or_else(truncated)?)?,
                _ => {}
            }
            at += 8 + data.len() + data.len() % 2;
        }
        Self::new(size, len)
    }

    fn new(size: Option<(u32, u32)>, len: usize) -> Result<Self, Problem> {
        match size {
            None => Err(Problem::Malformed("an image file that does not say how large it is".into())),
            Some((0, _) | (_, 0)) => Err(Problem::Malformed("an image of no pixels".into())),
            Some((width, height)) => Ok(Self { width, height, len }),
        }
    }
}

/// The next marker of a JPEG file and the place behind it. Entropy-coded data has none but restarts.
fn next_marker(bytes: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += bytes.get(at..)?.iter().position(|&byte| byte == 0xff)?;
        at += bytes[at..].iter().position(|&byte| byte != 0xff)?;
        let marker = bytes[at];
        at += 1;
        // A zero says that the 0xff before it is a value.
        if marker != 0 {
            return Some((marker, at));
        }
    }
}

fn canvas_size(data: &[u8]) -> Option<(u32, u32)> {
    let less_one = |at| chunk::<3>(data, at).map(|[a, b, c]| u32::from_le_bytes([a, b, c, 0]));
    Some((less_one(4)? + 1, less_one(7)? + 1))
}

fn lossy_size(data: &[u8]) -> Option<(u32, u32)> {
    // The upper two bits of each ask for a scaling.
    let side = |at| chunk(data, at).map(|side| u32::from(u16::from_le_bytes(side) & 0x3fff));
    Some((side(6)?, side(8)?))
}

fn lossless_size(data: &[u8]) -> Option<(u32, u32)> {
    let bits = chunk(data, 1).map(u32::from_le_bytes)?;
    Some(((bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1))
}

/// Notes a size. A file that states two is made to be checked by one and decoded by the other.
fn agree(size: &mut Option<(u32, u32)>, found: (u32, u32)) -> Result<(), Problem> {
    if *size.get_or_insert(found) == found {
        Ok(())
    } else {
        Err(Problem::Malformed("an image file that states two sizes".into()))
    }
}

/// The `length` bytes at `at`.
fn data(bytes: &[u8], at: usize, length: u32) -> Result<&[u8], Problem> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    bytes.get(at..).and_then(|rest| rest.get(..length)).ok_or_else(truncated)
}

fn truncated() -> Problem {
    Problem::Malformed("the image file ends too early".into())
}

fn animated() -> Problem {
    Problem::Unsupported("animated images are not read: send the frame to classify".into())
}
