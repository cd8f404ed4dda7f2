//! Contact sheets: a look at a data set.

use std::{
    io::{Cursor, Write},
    path::Path,
};

use image::{
    ImageFormat, Rgb, RgbImage,
    imageops::{self, FilterType},
};

use crate::{
    dataset::Dataset,
    error::{DataError, Result},
    label,
};

const BACKGROUND: u8 = 255;
const INK: u8 = 20;
const GAP: u32 = 4;
/// Images are shown with the longer side about this long: smaller ones enlarged by a whole factor, larger ones reduced.
const SHOWN_SIDE: u32 = 64;
/// A sheet with more images in a row or more rows could not be looked at, nor perhaps held in memory.
const MAX_PER_CLASS: usize = 100;
const MAX_ROWS: usize = 1000;
/// Class names are cut to this many characters.
const MAX_NAME: usize = 20;

/// The layout of a contact sheet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SheetOptions {
    /// Images in each row, the first ones of the class; 100 at most.
    pub per_class: usize,
    /// Rows; the classes beyond are left out. 1,000 at most.
    pub max_classes: usize,
}

impl Default for SheetOptions {
    /// Ten images of each of the first 100 classes.
    fn default() -> Self {
        Self { per_class: 10, max_classes: 100 }
    }
}

/// Draws the first images of each class in a row, with the class's name to the left.
pub fn contact_sheet(data: &Dataset, options: SheetOptions) -> RgbImage {
    let (width, height) = shown_size(data.width() as u32, data.height() as u32);
    let rows = options.max_classes.min(data.classes()).min(MAX_ROWS);
    let columns = options.per_class.min(MAX_PER_CLASS);
    let names: Vec<String> = data.class_names()[..rows].iter().map(|name| shorten(name)).collect();
    let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0) as u32;
    let margin = longest * label::CHAR_WIDTH + 2 * GAP;
    let row_height = height.max(label::LINE_HEIGHT) + GAP;
    let size = (margin + columns as u32 * (width + GAP), GAP + rows as u32 * row_height);
    let mut sheet = RgbImage::from_pixel(size.0, size.1, Rgb([BACKGROUND; 3]));
    for (class, name) in names.iter().enumerate() {
        let top = GAP + class as u32 * row_height;
        label::write(&mut sheet, name, (GAP, top + (row_height - GAP - label::LINE_HEIGHT) / 2), INK);
        let of_class = (0..data.len()).filter(|&index| data.labels()[index] == class as i64);
        for (column, index) in of_class.take(columns).enumerate() {
            let left = margin + column as u32 * (width + GAP);
            let shown = imageops::resize(&picture(data, index), width, height, filter(data, width));
            imageops::replace(&mut sheet, &shown, left.into(), top.into());
        }
    }
    sheet
}

/// The size at which images are shown.
fn shown_size(width: u32, height: u32) -> (u32, u32) {
    let longer = width.max(height);
    if longer <= SHOWN_SIDE {
        let scale = SHOWN_SIDE / longer;
        return (width * scale, height * scale);
    }
    let reduce = |side: u32| (u64::from(side) * u64::from(SHOWN_SIDE) / u64::from(longer)).max(1) as u32;
    (reduce(width), reduce(height))
}

/// Enlarged pixels stay squares; reduced ones are averaged.
fn filter(data: &Dataset, shown_width: u32) -> FilterType {
    if shown_width as usize >= data.width() { FilterType::Nearest } else { FilterType::Triangle }
}

/// Draws a contact sheet and writes it to `path` as PNG, in place of any file there.
///
/// # Errors
/// [`DataError::Io`] if the file cannot be written; then a file that was there is left alone.
pub fn write_contact_sheet(data: &Dataset, options: SheetOptions, path: &Path) -> Result<()> {
    let mut png = Vec::new();
    contact_sheet(data, options)
        .write_to(&mut Cursor::new(&mut png), ImageFormat::Png)
        .map_err(|error| DataError::io("draw", path)(std::io::Error::other(error)))?;
    crate::write::replace_file(path, |file| file.write_all(&png))
}

/// An image as a picture, grey ones with equal channels.
fn picture(data: &Dataset, index: usize) -> RgbImage {
    let (width, height) = (data.width(), data.height());
    let pixels = &data.images()[index * data.image_len()..][..data.image_len()];
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let at = y as usize * width + x as usize;
        let channel = |c: usize| pixels[(c % data.channels()) * width * height + at];
        Rgb([channel(0), channel(1), channel(2)])
    })
}

fn shorten(name: &str) -> String {
    if name.chars().count() <= MAX_NAME {
        return name.to_owned();
    }
    name.chars().take(MAX_NAME - 2).chain("..".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fashion_mnist_sample;

    #[test]
    fn a_sheet_has_a_row_for_each_class_and_names_in_the_margin() {
        let data = fashion_mnist_sample().unwrap();
        let sheet = contact_sheet(&data, SheetOptions { per_class: 3, max_classes: 4 });
        let margin = 11 * label::CHAR_WIDTH + 2 * GAP; // `T-shirt/top`
        assert_eq!(sheet.dimensions(), (margin + 3 * 60, GAP + 4 * 60));
        let ink = |x: std::ops::Range<u32>| x.flat_map(|x| (0..64).map(move |y| (x, y)));
        assert!(ink(0..margin - GAP).any(|(x, y)| sheet.get_pixel(x, y)[0] == INK));
        let first = data.labels().iter().position(|&label| label == 0).unwrap();
        let pixel = data.image_bytes(first).unwrap()[14 * 28 + 14];
        assert_eq!(sheet.get_pixel(margin + 28, GAP + 28)[0], pixel);
    }

    #[test]
    fn absurd_options_and_names_are_cut_down() {
        let data = fashion_mnist_sample().unwrap().subset(&[0]).unwrap();
        let sheet = contact_sheet(&data, SheetOptions { per_class: usize::MAX, max_classes: usize::MAX });
        assert_eq!(sheet.height(), GAP + 10 * 60);
        assert_eq!(shorten("a very long name of a class"), "a very long name o..");
        assert_eq!(shown_size(4096, 2), (64, 1));
        assert_eq!(contact_sheet(&data, SheetOptions { per_class: 0, max_classes: 0 }).height(), GAP);
    }

    #[test]
    fn sheets_are_written_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let data = fashion_mnist_sample().unwrap();
        let path = folder.path().join("sheet.png");
        write_contact_sheet(&data, SheetOptions::default(), &path).unwrap();
        assert_eq!(image::open(&path).unwrap().height(), GAP + 10 * 60);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let nowhere = folder.path().join("none/sheet.png");
        assert!(matches!(
            write_contact_sheet(&data, SheetOptions::default(), &nowhere),
            Err(DataError::Io { .. })
        ));
    }
}
