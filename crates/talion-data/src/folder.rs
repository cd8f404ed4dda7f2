//! A folder of images, a sub-folder for each class.

use std::{
    fs,
    io::Cursor,
    path::{Path, PathBuf},
};

use image::{DynamicImage, ImageFormat, ImageReader, Limits};

use crate::{
    dataset::{Dataset, DatasetParts, Split},
    error::{DataError, Result},
    read,
};

/// Wider or higher images are no input of an image classifier, and refusing them bounds what a file can allocate.
pub(crate) const MAX_SIDE: u32 = 4096;

/// Loads `dir`/`split` if there is such a sub-folder, else `dir` itself: the first image of every class, then the second of
/// every class, and so on, since what is measured on the first images of a data set should not be measured on one class.
pub(crate) fn load(dir: &Path, split: Split) -> Result<Dataset> {
    if !dir.is_dir() {
        let advice = "give a folder that has a sub-folder of PNG or JPEG images for each class".into();
        return Err(DataError::Missing { path: dir.to_owned(), advice });
    }
    let inner = dir.join(split.to_string());
    let root = if inner.is_dir() { inner } else { dir.to_owned() };
    let classes = class_folders(&root)?;
    let images = decode_all(&classes)?;
    to_dataset(dir, split, &classes, images)
}

/// A class: its name and its image files, both in the order of their names.
struct Class {
    name: String,
    files: Vec<PathBuf>,
}

struct Picture {
    path: PathBuf,
    image: DynamicImage,
    label: i64,
    /// Among the images of its class.
    place: usize,
}

fn class_folders(root: &Path) -> Result<Vec<Class>> {
    let mut classes = Vec::new();
    for path in sorted_entries(root)?.into_iter().filter(|path| path.is_dir()) {
        let files: Vec<PathBuf> =
            sorted_entries(&path)?.into_iter().filter(|file| format_of(file).is_some()).collect();
        if files.is_empty() {
            return Err(DataError::format(
                &path,
                "at least one .png, .jpg or .jpeg file for this class",
                "none",
            ));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        classes.push(Class { name, files });
    }
    if classes.is_empty() {
        return Err(DataError::format(root, "a sub-folder of images for each class", "no sub-folder"));
    }
    Ok(classes)
}

/// The entries of a folder in the order of their names, without hidden ones.
fn sorted_entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(DataError::io("list", folder))? {
        let entry = entry.map_err(DataError::io("list", folder))?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn format_of(path: &Path) -> Option<ImageFormat> {
    let format = ImageFormat::from_extension(path.extension()?)?;
    matches!(format, ImageFormat::Png | ImageFormat::Jpeg).then_some(format)
}

fn decode_all(classes: &[Class]) -> Result<Vec<Picture>> {
    let mut pictures: Vec<Picture> = Vec::new();
    for (label, class) in classes.iter().enumerate() {
        for (place, path) in class.files.iter().enumerate() {
            let image = decode(&read::file(path)?, path)?;
            if let Some(first) = pictures.first() {
                same_size(first, &image, path)?;
            }
            pictures.push(Picture { path: path.clone(), image, label: label as i64, place });
        }
    }
    pictures.sort_by_key(|picture| (picture.place, picture.label));
    Ok(pictures)
}

/// Decodes a PNG or JPEG file to 8 bits a channel.
pub(crate) fn decode(bytes: &[u8], path: &Path) -> Result<DynamicImage> {
    let mut reader = ImageReader::new(Cursor::new(bytes));
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(MAX_SIDE), Some(MAX_SIDE));
    reader.limits(limits);
    // The extension decides, so that a mislabelled file is reported and not guessed at.
    reader.set_format(format_of(path).unwrap_or(ImageFormat::Png));
    let broken = |error| {
        let expected =
            format!("an intact PNG or JPEG image of at most {MAX_SIDE} x {MAX_SIDE}, as its name says");
        DataError::format(path, expected, format!("{error}"))
    };
    let image = reader.decode().map_err(broken)?;
    if image.color().has_alpha() {
        // Dropping the channel would change what the picture shows.
        return Err(DataError::format(
            path,
            "an image with no transparency",
            "an alpha channel: flatten it first",
        ));
    }
    Ok(if image.color().has_color() {
        DynamicImage::ImageRgb8(image.into_rgb8())
    } else {
        DynamicImage::ImageLuma8(image.into_luma8())
    })
}

fn same_size(first: &Picture, image: &DynamicImage, path: &Path) -> Result<()> {
    let (width, height) = (first.image.width(), first.image.height());
    if (image.width(), image.height()) == (width, height) {
        return Ok(());
    }
    let expected = format!("{width} x {height} pixels like {}", first.path.display());
    let found = format!("{} x {}: bring all images to one size first", image.width(), image.height());
    Err(DataError::format(path, expected, found))
}

fn to_dataset(dir: &Path, split: Split, classes: &[Class], pictures: Vec<Picture>) -> Result<Dataset> {
    let Some(first) = pictures.first() else {
        return Err(DataError::format(dir, "at least one image", "none"));
    };
    let (width, height) = (first.image.width() as usize, first.image.height() as usize);
    let gray = pictures.iter().all(|picture| !picture.image.color().has_color());
    let labels = pictures.iter().map(|picture| picture.label).collect();
    let mut images = Vec::new();
    for picture in pictures {
        if gray {
            images.extend_from_slice(&picture.image.into_luma8());
        } else {
            push_planes(&picture.image.into_rgb8(), &mut images);
        }
    }
    Dataset::new(DatasetParts {
        name: format!("folder:{}", dir.display()),
        split,
        images,
        labels,
        channels: if gray { 1 } else { 3 },
        height,
        width,
        class_names: classes.iter().map(|class| class.name.clone()).collect(),
    })
}

/// Appends interleaved red, green and blue as three planes.
pub(crate) fn push_planes(interleaved: &[u8], planes: &mut Vec<u8>) {
    for channel in 0..3 {
        planes.extend(interleaved.iter().skip(channel).step_by(3));
    }
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Rgb, RgbImage, RgbaImage};
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    fn root_with(classes: &[&str]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        classes.iter().for_each(|class| fs::create_dir_all(root.path().join(class)).unwrap());
        root
    }

    fn save(root: &TempDir, file: &str, image: impl Into<DynamicImage>) {
        image.into().save(root.path().join(file)).unwrap();
    }

    fn message(root: &TempDir) -> String {
        load(root.path(), Split::Test).unwrap_err().to_string()
    }

    #[test]
    fn classes_take_turns_with_their_files_in_the_order_of_their_names() {
        let root = root_with(&["dog", "cat"]);
        save(&root, "dog/1.png", RgbImage::from_pixel(3, 2, Rgb([1, 2, 3])));
        save(&root, "cat/b.png", RgbImage::from_pixel(3, 2, Rgb([4, 5, 6])));
        save(&root, "cat/a.png", GrayImage::new(3, 2));
        save(&root, "cat/c.jpg", RgbImage::new(3, 2));
        fs::write(root.path().join("cat/notes.txt"), "not an image").unwrap();
        fs::write(root.path().join(".hidden"), "").unwrap();
        let data = load(root.path(), Split::Test).unwrap();
        assert_eq!(data.class_names(), ["cat", "dog"]);
        assert_eq!(data.labels(), [0, 1, 0, 0]);
        assert_eq!((data.channels(), data.height(), data.width()), (3, 2, 3));
        assert_eq!(data.image_bytes(1).unwrap(), [[1; 6], [2; 6], [3; 6]].concat());
        assert_eq!(data.image_bytes(2).unwrap(), [[4; 6], [5; 6], [6; 6]].concat());
        assert_eq!(data.image_bytes(0).unwrap(), [0; 18]);
    }

    #[test]
    fn gray_images_keep_one_channel_and_splits_have_folders() {
        let root = root_with(&["train/a", "test/a"]);
        save(&root, "train/a/1.png", GrayImage::from_pixel(2, 2, image::Luma([9])));
        save(&root, "test/a/1.png", GrayImage::from_pixel(2, 2, image::Luma([8])));
        let data = load(root.path(), Split::Train).unwrap();
        assert_eq!((data.channels(), data.images()), (1, &[9; 4][..]));
        assert_eq!(load(root.path(), Split::Test).unwrap().images(), [8; 4]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let root = root_with(&["a"]);
        assert!(message(&root).contains("at least one .png"));
        save(&root, "a/1.png", RgbImage::new(3, 2));
        save(&root, "a/2.png", RgbImage::new(2, 3));
        let error = message(&root);
        assert!(error.contains("2.png: expected 3 x 2") && error.contains("1.png, found 2 x 3"), "{error}");
        save(&root, "a/2.png", RgbaImage::new(3, 2));
        assert!(message(&root).contains("transparency"));
        fs::write(root.path().join("a/2.png"), "GIF89a").unwrap();
        assert!(message(&root).contains("2.png: expected an intact PNG"));
        assert!(load(&root.path().join("none"), Split::Test).unwrap_err().to_string().contains("is missing"));
        assert!(message(&root_with(&[])).contains("no sub-folder"));
    }

    #[test]
    fn damaged_images_are_refused() {
        let image = RgbImage::from_fn(9, 7, |x, y| Rgb([x as u8 * 20, y as u8 * 30, 7]));
        let mut png = Vec::new();
        image.write_to(&mut Cursor::new(&mut png), ImageFormat::Png).unwrap();
        let path = Path::new("image.png");
        assert!(decode(&png, path).is_ok());
        // The last chunk (12 bytes) marks the end and holds nothing of the image.
        for cut in 0..png.len() - 12 {
            assert!(decode(&png[..cut], path).is_err(), "cut at {cut}");
        }
        let mut huge = png.clone();
        huge[16..24].fill(0x7f); // width and height
        assert!(decode(&huge, path).is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(at in 0usize..200, bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let image = RgbImage::from_fn(9, 7, |x, y| Rgb([x as u8 * 20, y as u8 * 30, 7]));
            for (format, path) in [(ImageFormat::Png, "image.png"), (ImageFormat::Jpeg, "image.jpg")] {
                let mut file = Vec::new();
                image.write_to(&mut Cursor::new(&mut file), format).unwrap();
                let start = at.min(file.len());
                let end = (start + bytes.len()).min(file.len());
                file[start..end].copy_from_slice(&bytes[..end - start]);
                let _ = decode(&file, Path::new(path));
                let _ = decode(&bytes, Path::new(path));
            }
        }
    }
}
