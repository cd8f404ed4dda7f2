//! A data set as a folder of pictures, a sub-folder for each class: what `folder:DIR` reads.

use std::{fs, io, path::Path};

use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage, imageops::FilterType};

use crate::{
    dataset::Dataset,
    error::{DataError, Result},
    folder::MAX_SIDE,
    write::create_folder,
};

/// Writes every image as a PNG file into `dir`/SPLIT/CLASS, as it is, or resized (Catmull-Rom, nothing cropped) so that its
/// shorter side has `side` pixels. A number before a class's name keeps its place among the classes, and files are named after
/// the images' ids.
///
/// # Errors
/// [`DataError::Request`] if `dir`/SPLIT is there already or images would become too small or too large, [`DataError::Io`] if
/// something cannot be written. Until the last image is written the folder's name ends with `.unfinished`; what is left of such
/// a folder is removed.
pub fn write_folder(data: &Dataset, dir: &Path, side: Option<u32>) -> Result<()> {
    let size = size_of(data, side)?;
    let place = dir.join(data.split().to_string());
    if place.exists() {
        return Err(DataError::Request(format!(
            "{} is there already, and nothing is overwritten: name another folder",
            place.display()
        )));
    }
    let unfinished = dir.join(format!("{}.unfinished", data.split()));
    // what an interrupted export left may be of other images, or of another size
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(DataError::io("remove", &unfinished))?;
    }
    let names = data.class_names().iter().enumerate();
    let classes: Vec<_> =
        names.map(|(class, name)| unfinished.join(format!("{class:03}-{}", plain(name)))).collect();
    classes.iter().try_for_each(|class| create_folder(class))?;
    for (index, (&label, id)) in data.labels().iter().zip(data.ids()).enumerate() {
        let path = classes[label as usize].join(format!("{id:06}.png"));
        let picture = picture(data, index);
        let picture = match (picture.width(), picture.height()) == size {
            true => picture,
            false => picture.resize_exact(size.0, size.1, FilterType::CatmullRom),
        };
        let written = picture.save_with_format(&path, ImageFormat::Png);
        written.map_err(|error| DataError::io("write", &path)(io::Error::other(error)))?;
    }
    fs::rename(&unfinished, &place).map_err(DataError::io("rename", &unfinished))
}

/// Width and height to write.
fn size_of(data: &Dataset, side: Option<u32>) -> Result<(u32, u32)> {
    let (width, height) = (data.width() as u32, data.height() as u32);
    let Some(side) = side else { return Ok((width, height)) };
    let shorter = u64::from(width.min(height));
    let scaled = |length: u32| (u64::from(length) * u64::from(side) + shorter / 2) / shorter;
    let size = [scaled(width), scaled(height)];
    if size.iter().any(|length| !(1..=u64::from(MAX_SIDE)).contains(length)) {
        return Err(DataError::Request(format!(
            "images of {width} x {height} pixels with a shorter side of {side} would have {} x {}: expected 1 to {MAX_SIDE}",
            size[0], size[1]
        )));
    }
    Ok((size[0] as u32, size[1] as u32))
}

/// A class's name without what means something in a path.
fn plain(name: &str) -> String {
    name.chars().map(|letter| if letter.is_alphanumeric() { letter } else { '-' }).collect()
}

fn picture(data: &Dataset, index: usize) -> DynamicImage {
    let (width, height) = (data.width(), data.height());
    let pixels = &data.images()[index * data.image_len()..][..data.image_len()];
    let value = |channel: usize, x: u32, y: u32| pixels[(channel * height + y as usize) * width + x as usize];
    let (columns, rows) = (width as u32, height as u32);
    if data.channels() == 1 {
        return GrayImage::from_fn(columns, rows, |x, y| Luma([value(0, x, y)])).into();
    }
    RgbImage::from_fn(columns, rows, |x, y| Rgb([0, 1, 2].map(|channel| value(channel, x, y)))).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DatasetParts, Split, fashion_mnist_sample, folder};

    fn colours() -> Dataset {
        Dataset::new(DatasetParts {
            name: "colours".into(),
            split: Split::Train,
            images: (0..3 * 3 * 2 * 4).map(|value| value * 3).collect(),
            labels: vec![1, 0, 1],
            channels: 3,
            height: 2,
            width: 4,
            class_names: vec!["a/b".into(), "..".into()],
        })
        .unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        for data in [colours(), fashion_mnist_sample().unwrap().subset(&(0..40).collect::<Vec<_>>()).unwrap()]
        {
            let place = folder.path().join(data.name());
            write_folder(&data, &place, None).unwrap();
            let read = folder::load(&place, data.split()).unwrap();
            assert_eq!(read.classes(), data.classes());
            let (mut all, mut back) = (Vec::new(), Vec::new());
            for index in 0..data.len() {
                all.push((data.labels()[index], data.image_bytes(index).unwrap()));
                back.push((read.labels()[index], read.image_bytes(index).unwrap()));
            }
            all.sort_unstable();
            back.sort_unstable();
            assert!(all == back);
            let error = write_folder(&data, &place, None).unwrap_err().to_string();
            assert!(error.contains("there already"), "{error}");
        }
    }

    #[test]
    fn nothing_of_an_interrupted_export_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join("train.unfinished/000-a-b");
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("000007.png"), "half a picture").unwrap();
        write_folder(&colours(), folder.path(), None).unwrap();
        assert_eq!(folder::load(folder.path(), Split::Train).unwrap().len(), 3);
    }

    #[test]
    fn class_names_stay_inside_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        write_folder(&colours(), folder.path(), None).unwrap();
        let inside = |name: &str| folder.path().join("train").join(name).is_dir();
        assert!(inside("000-a-b") && inside("001---"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_shorter_side_is_what_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        write_folder(&colours(), folder.path(), Some(6)).unwrap();
        let read = folder::load(folder.path(), Split::Train).unwrap();
        assert_eq!((read.height(), read.width(), read.channels()), (6, 12, 3));
        for wrong in [0, 3000] {
            let error =
                write_folder(&colours(), &folder.path().join("x"), Some(wrong)).unwrap_err().to_string();
            assert!(error.contains("expected 1 to 4096"), "{error}");
        }
    }
}
