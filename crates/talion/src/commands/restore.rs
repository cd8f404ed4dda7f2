//! `talion restore`: image files in, restored image files out.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use clap::Args;
use image::{DynamicImage, GrayImage, ImageFormat, RgbImage};
use serde::Serialize;
use talion_core::{Error, Result, write_atomically};
use talion_defenses::gradient_map::MapGraph;
use tch::{Device, Kind, Tensor};

use crate::{bundled::Networks, failure::CommandResult, monitor::catch_interrupts};

/// Restore image files.
///
/// Reads PNG and JPEG files of any size, restores each for the classifier, and writes PNG. Says what the classifier saw
/// before and after. JPEG compression on the way in is itself a weak defence and not undone.
#[derive(Args)]
pub struct RestoreArgs {
    /// Images to restore, PNG or JPEG.
    #[arg(required = true, value_name = "IN")]
    inputs: Vec<PathBuf>,
    /// Where to write: a .png file for one image, or a folder for any number.
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// The classifier; without it the bundled pair for Fashion-MNIST (grey images) is used.
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The restoration network trained for that classifier.
    #[arg(long, value_name = "FILE")]
    trn: Option<PathBuf>,
    /// Images restored at once, of equal size.
    #[arg(long, default_value_t = 32)]
    batch_size: usize,
}

#[derive(Serialize)]
struct Restored {
    input: PathBuf,
    output: PathBuf,
    before: String,
    before_confidence: f64,
    after: String,
    after_confidence: f64,
    largest_change: f64,
}

/// Runs the command.
pub fn run(args: &RestoreArgs, json: bool) -> CommandResult {
    catch_interrupts();
    let device = Device::cuda_if_available();
    let networks = Networks::load(args.model.as_deref(), None, args.trn.as_deref(), device)?;
    let targets = targets(&args.inputs, &args.output)?;
    let channels = networks.classifier.card().spec.channels;
    // Everything is read before anything is written: a bad file among the inputs leaves nothing half done.
    let mut by_size: BTreeMap<(u32, u32), Vec<(usize, Tensor)>> = BTreeMap::new();
    for (index, path) in args.inputs.iter().enumerate() {
        let (size, image) = read(path, channels)?;
        by_size.entry(size).or_default().push((index, image));
    }
    let mut results = Vec::new();
    for group in by_size.values() {
        for batch in group.chunks(args.batch_size.max(1)) {
            results.extend(restore(&networks, batch, args, &targets)?);
        }
    }
    results.sort_by_key(|(index, _)| *index);
    for (_, result) in results {
        if json {
            println!("{}", serde_json::to_string(&result)?);
        } else {
            println!(
                "{} -> {}: {} ({:.1} %) before, {} ({:.1} %) after, largest change {:.3}",
                result.input.display(),
                result.output.display(),
                result.before,
                100.0 * result.before_confidence,
                result.after,
                100.0 * result.after_confidence,
                result.largest_change
            );
        }
    }
    Ok(())
}

/// Where each input's result goes.
fn targets(inputs: &[PathBuf], output: &Path) -> Result<Vec<PathBuf>> {
    let is_file = output.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
    if is_file && !output.is_dir() {
        return match inputs {
            [_] => Ok(vec![output.to_owned()]),
            _ => Err(Error::Refused(format!(
                "{} is one file, but there are {} images; name a folder",
                output.display(),
                inputs.len()
            ))),
        };
    }
    if output.is_file() || output.extension().is_some_and(|extension| extension != "d") && !output.is_dir() {
        return Err(Error::file(output, "is not a folder, and results are written as .png"));
    }
    let mut taken = BTreeMap::new();
    inputs
        .iter()
        .map(|input| {
            let stem = input.file_stem().unwrap_or_default();
            let target = output.join(stem).with_extension("png");
            match taken.insert(target.clone(), input) {
                None => Ok(target),
                Some(other) => Err(Error::Refused(format!(
                    "{} and {} would both be written to {}; restore them into different folders",
                    other.display(),
                    input.display(),
                    target.display()
                ))),
            }
        })
        .collect()
}

/// An image as `[C, H, W]` in `[0, 1]`.
fn read(path: &Path, channels: i64) -> Result<((u32, u32), Tensor)> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let format = image::guess_format(&bytes)
        .ok()
        .filter(|format| matches!(format, ImageFormat::Png | ImageFormat::Jpeg))
        .ok_or_else(|| Error::file(path, "is neither PNG nor JPEG"))?;
    let mut reader = image::ImageReader::with_format(std::io::Cursor::new(&bytes), format);
    reader.limits(limits());
    let image = reader.decode().map_err(|error| Error::file(path, format!("cannot be decoded: {error}")))?;
    let size = (image.width(), image.height());
    let pixels = if channels == 1 { image.into_luma8().into_raw() } else { image.into_rgb8().into_raw() };
    let (width, height) = (i64::from(size.0), i64::from(size.1));
    let tensor = Tensor::from_slice(&pixels).to_kind(Kind::Float) / 255.0;
    Ok((size, tensor.view([height, width, channels]).permute([2, 0, 1]).contiguous()))
}

/// What a decoder may use: an image of 8,192 x 8,192 pixels fits, a decompression bomb does not.
fn limits() -> image::Limits {
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(8192);
    limits.max_image_height = Some(8192);
    limits.max_alloc = Some(512 << 20);
    limits
}

fn restore(
    networks: &Networks,
    batch: &[(usize, Tensor)],
    args: &RestoreArgs,
    targets: &[PathBuf],
) -> Result<Vec<(usize, Restored)>> {
    let classifier = &networks.classifier;
    let device = talion_core::Classifier::device(classifier);
    let images: Vec<_> = batch.iter().map(|(_, image)| image).collect();
    let images = Tensor::stack(&images, 0).to_device(device);
    let restored = tch::no_grad(|| networks.trn.restore(classifier, &images, MapGraph::Constant));
    // Rounded first: what is said of the result is said of the file.
    let restored = (restored * 255.0).round() / 255.0;
    let answers = [&images, &restored].map(|images| {
        tch::no_grad(|| {
            talion_core::Classifier::logits(classifier, images).softmax(1, None).max_dim(1, false)
        })
    });
    let change = (&restored - &images).abs().amax([1_i64, 2, 3].as_slice(), false);
    let names = &classifier.card().class_names;
    let mut results = Vec::new();
    for (row, (index, _)) in batch.iter().enumerate() {
        let said = |(confidence, label): &(Tensor, Tensor)| {
            let label = label.int64_value(&[row as i64]);
            let name = names.get(label as usize).cloned().unwrap_or_else(|| label.to_string());
            (name, confidence.double_value(&[row as i64]))
        };
        let output = targets[*index].clone();
        write(&restored.get(row as i64), &output)?;
        let ((before, before_confidence), (after, after_confidence)) = (said(&answers[0]), said(&answers[1]));
        results.push((
            *index,
            Restored {
                input: args.inputs[*index].clone(),
                output,
                before,
                before_confidence,
                after,
                after_confidence,
                largest_change: change.double_value(&[row as i64]),
            },
        ));
    }
    Ok(results)
}

/// Writes `[C, H, W]` in `[0, 1]` as PNG.
fn write(image: &Tensor, path: &Path) -> Result<()> {
    let size = image.size();
    let (channels, height, width) = (size[0], size[1] as u32, size[2] as u32);
    let bytes = (image * 255.0).round().clamp(0.0, 255.0).to_kind(Kind::Uint8).to_device(Device::Cpu);
    let bytes = Vec::<u8>::try_from(bytes.permute([1, 2, 0]).contiguous().flatten(0, -1))?;
    let picture = if channels == 1 {
        GrayImage::from_raw(width, height, bytes).map(DynamicImage::from)
    } else {
        RgbImage::from_raw(width, height, bytes).map(DynamicImage::from)
    };
    let mut file = std::io::Cursor::new(Vec::new());
    picture
        .ok_or_else(|| Error::file(path, "the restored image has an unexpected size"))?
        .write_to(&mut file, ImageFormat::Png)
        .map_err(|error| Error::file(path, format!("cannot be encoded: {error}")))?;
    write_atomically(path, file.get_ref())
}
