//! A picture of what attack and defence do: clean, adversarial, gradient map, restored, difference, with what the
//! classifier says of each.

use image::{Rgb, RgbImage};
use talion_core::{Error, Result};
use talion_data::label;
use tch::{Kind, Tensor};

/// One line of the picture. Images are `[C, H, W]` in `[0, 1]`, of 1 or 3 channels.
pub struct Scene {
    /// The image as it was.
    pub clean: Tensor,
    /// The attacked image.
    pub adversarial: Tensor,
    /// A gradient map, `[C, H, W]` in `[-1, 1]`; none for a one-stream network.
    pub map: Option<Tensor>,
    /// The restored image.
    pub restored: Tensor,
    /// What the classifier says of clean, adversarial and restored image, and how surely: label and confidence.
    pub verdicts: [(String, f64); 3],
    /// Whether each verdict is right.
    pub right: [bool; 3],
    /// The attack.
    pub title: String,
}

const TITLES: [&str; 5] = ["clean", "adversarial", "gradient map", "restored", "adv. - restored"];
/// Side of a tile.
const TILE: u32 = 112;
const GAP: u32 = 10;
/// Room for two lines of text under a tile, and for a title over a line of tiles.
const CAPTION: u32 = 28;
const TITLE: u32 = 18;
/// The largest change that the difference shows at full strength.
const FULL_DIFFERENCE: f64 = 0.1;

const RIGHT: u8 = 30;
const PAPER: [u8; 3] = [250, 250, 248];

/// Draws scenes one below the other.
///
/// # Errors
/// If an image is not `[1 or 3, H, W]`.
pub fn gallery(scenes: &[Scene]) -> Result<RgbImage> {
    let width = GAP + 5 * (TILE + GAP);
    let line = TITLE + TILE + CAPTION + GAP;
    let height = GAP + TITLE + line * scenes.len() as u32;
    let mut picture = RgbImage::from_pixel(width, height, Rgb(PAPER));
    for (column, title) in TITLES.iter().enumerate() {
        label::write(&mut picture, title, (left(column), GAP), RIGHT);
    }
    for (index, scene) in scenes.iter().enumerate() {
        draw(&mut picture, scene, GAP + TITLE + line * index as u32)?;
    }
    Ok(picture)
}

fn left(column: usize) -> u32 {
    GAP + column as u32 * (TILE + GAP)
}

fn draw(picture: &mut RgbImage, scene: &Scene, top: u32) -> Result<()> {
    label::write(picture, &scene.title, (GAP, top + 3), 110);
    let top = top + TITLE;
    // a difference and a map have signs: grey is zero
    let signed = |values: &Tensor, full: f64| (values / (2.0 * full) + 0.5).clamp(0.0, 1.0);
    let difference = signed(&(&scene.adversarial - &scene.restored), FULL_DIFFERENCE);
    let map = scene.map.as_ref().map(|map| signed(map, 1.0));
    let tiles = [
        Some(&scene.clean),
        Some(&scene.adversarial),
        map.as_ref(),
        Some(&scene.restored),
        Some(&difference),
    ];
    for (column, tile) in tiles.into_iter().enumerate() {
        match tile {
            Some(image) => paste(picture, image, left(column), top)?,
            None => label::write(picture, "(one stream)", (left(column), top + TILE / 2), 150),
        }
    }
    for (column, index) in [(0, 0), (1, 1), (3, 2)] {
        let (name, confidence) = &scene.verdicts[index];
        let mark = if scene.right[index] { "right" } else { "WRONG" };
        label::write(picture, name, (left(column), top + TILE + 3), RIGHT);
        let second = format!("{:.1} % {mark}", 100.0 * confidence);
        label::write(
            picture,
            &second,
            (left(column), top + TILE + 15),
            if scene.right[index] { 120 } else { 0 },
        );
    }
    Ok(())
}

/// Copies an image into the picture, enlarged to a tile without smoothing: pixels are what this is about.
fn paste(picture: &mut RgbImage, image: &Tensor, left: u32, top: u32) -> Result<()> {
    let size = image.size();
    let &[channels @ (1 | 3), height, width] = size.as_slice() else {
        return Err(Error::Shape {
            what: "an image to draw",
            expected: "[1 or 3, H, W]".into(),
            found: size,
        });
    };
    let bytes = (image.detach() * 255.0).round().clamp(0.0, 255.0).to_kind(Kind::Uint8);
    let bytes = Vec::<u8>::try_from(bytes.permute([1, 2, 0]).contiguous().flatten(0, -1))?;
    for y in 0..TILE {
        for x in 0..TILE {
            let row = i64::from(y) * height / i64::from(TILE);
            let column = i64::from(x) * width / i64::from(TILE);
            let start = ((row * width + column) * channels) as usize;
            let pixel = if channels == 1 {
                [bytes[start]; 3]
            } else {
                [bytes[start], bytes[start + 1], bytes[start + 2]]
            };
            picture.put_pixel(left + x, top + y, Rgb(pixel));
        }
    }
    Ok(())
}
