//! Text on pictures.

use std::convert::Infallible;

use embedded_graphics::{
    Drawable, Pixel,
    draw_target::DrawTarget,
    geometry::{OriginDimensions, Point, Size},
    mono_font::{MonoTextStyle, ascii::FONT_6X10},
    pixelcolor::Gray8,
    prelude::GrayColor,
    text::{Baseline, Text},
};
use image::{Rgb, RgbImage};

/// Width of a character.
pub const CHAR_WIDTH: u32 = 6;
/// Height of a line.
pub const LINE_HEIGHT: u32 = 10;

/// Writes `text` in grey level `ink`, its top left corner at (`x`, `y`); what lies outside the picture is cut off.
/// Characters beyond ASCII appear as question marks.
pub fn write(picture: &mut RgbImage, text: &str, (x, y): (u32, u32), ink: u8) {
    let style = MonoTextStyle::new(&FONT_6X10, Gray8::new(ink));
    let position = Point::new(x as i32, y as i32);
    match Text::with_baseline(text, position, style, Baseline::Top).draw(&mut Canvas(picture)) {
        Ok(_) => {}
    }
}

/// A picture as the font's drawing code wants it.
struct Canvas<'a>(&'a mut RgbImage);

impl OriginDimensions for Canvas<'_> {
    fn size(&self) -> Size {
        Size::new(self.0.width(), self.0.height())
    }
}

impl DrawTarget for Canvas<'_> {
    type Color = Gray8;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Gray8>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(at, colour) in pixels {
            // A negative position becomes one far outside the picture.
            if let Some(pixel) = self.0.get_pixel_mut_checked(at.x as u32, at.y as u32) {
                *pixel = Rgb([colour.luma(); 3]);
            }
        }
        Ok(())
    }
}
