//! The files that workers load: networks with fresh weights, random images, the first images of a data set.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use clap::{Args, value_parser};
use serde::{Deserialize, Serialize};
use talion_core::{Archive, Tensors, uniform_noise};
use talion_data::{DatasetSpec, Split};
use talion_models::{Architecture, Mode, Model, ModelCard, ModelSpec};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};

/// Arguments of `make-model`.
#[derive(Args)]
pub struct ModelArgs {
    /// Network: resnet18-w16, preactresnet18-w64, vgg16bn-w64, wrn-28-10, cnn-small-w32, with any width.
    architecture: Architecture,
    /// Image channels.
    #[arg(long, default_value_t = 3, value_parser = value_parser!(i64).range(1..=16))]
    channels: i64,
    /// Number of classes.
    #[arg(long, default_value_t = 10, value_parser = value_parser!(i64).range(2..=100_000))]
    classes: i64,
    /// Side of the images that it is for.
    #[arg(long, default_value_t = 32, value_parser = value_parser!(i64).range(4..=4096))]
    size: i64,
    /// Seed of the weights.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to write.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Arguments of `make-data`.
#[derive(Args)]
pub struct DataArgs {
    /// Image channels.
    #[arg(long, default_value_t = 3, value_parser = value_parser!(i64).range(1..=16))]
    channels: i64,
    /// Side of the images.
    #[arg(long, default_value_t = 32, value_parser = value_parser!(i64).range(4..=4096))]
    size: i64,
    /// Number of classes; the images have them in turn.
    #[arg(long, default_value_t = 10, value_parser = value_parser!(i64).range(2..=100_000))]
    classes: i64,
    /// Number of images.
    #[arg(long, default_value_t = 64, value_parser = value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// Seed of the images.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to write.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Arguments of `data`.
#[derive(Args)]
pub struct ExportArgs {
    /// The data set, as `talion data` takes it: fashion-mnist, cifar10, NAME:DIR, folder:DIR, fashion-mnist-sample.
    #[arg(long)]
    dataset: DatasetSpec,
    /// Which part: train or test.
    #[arg(long, default_value = "test")]
    split: Split,
    /// Number of images: the first in the official order.
    #[arg(long)]
    count: usize,
    /// Where to write.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// What a file of images says of itself.
#[derive(Serialize, Deserialize)]
struct Header {
    kind: String,
    data: String,
    classes: i64,
    /// Of the whole split that the images come from.
    data_sha256: Option<String>,
    seed: Option<u64>,
}

/// Passes over random images that give a fresh network its running statistics.
const SETTLING_PASSES: u64 = 8;
/// Images of such a pass, and their largest side: statistics hardly depend on it, and the time does.
const SETTLING_IMAGES: u64 = 8;
const SETTLING_SIDE: i64 = 32;

/// Writes a classifier with fresh weights.
///
/// # Errors
/// If there is no such network, or the file cannot be written.
pub fn model(args: &ModelArgs) -> Result<()> {
    let channels = usize::try_from(args.channels).unwrap_or_default();
    let card = ModelCard {
        kind: ModelCard::KIND.into(),
        spec: ModelSpec {
            architecture: args.architecture.into(),
            channels: args.channels,
            classes: args.classes,
            mean: vec![0.5; channels],
            std: vec![0.25; channels],
            order: Default::default(),
        },
        dataset: "noise".into(),
        image_size: [args.size; 2],
        class_names: (0..args.classes).map(|class| class.to_string()).collect(),
        seed: args.seed,
        training: serde_json::Value::Null,
        metrics: BTreeMap::new(),
    };
    let model = Model::new(card, Device::Cpu)?;
    settle(&model, args);
    model.freeze().save(&args.output)?;
    println!("{} written", args.output.display());
    Ok(())
}

/// Lets batch norm see images. With the statistics that it is built with it normalises nothing: a deep network's logits
/// then grow so far apart that gradients vanish, and arithmetic on vanishing numbers takes another time.
fn settle(model: &Model, args: &ModelArgs) {
    let side = args.size.min(SETTLING_SIDE);
    for pass in 0..SETTLING_PASSES {
        let ids: Vec<u64> = (pass * SETTLING_IMAGES..(pass + 1) * SETTLING_IMAGES).collect();
        let images = random_images([args.channels, side, side], &ids, args.seed, "bench-settle");
        drop(tch::no_grad(|| model.forward(&images, Mode::Train, Kind::Float)));
    }
}

/// Writes random images with labels.
///
/// # Errors
/// If the file cannot be written.
pub fn data(args: &DataArgs) -> Result<()> {
    let ids: Vec<u64> = (0..u64::from(args.count)).collect();
    let images = random_images([args.channels, args.size, args.size], &ids, args.seed, "bench-images");
    let labels: Vec<i64> = (0..i64::from(args.count)).map(|row| row % args.classes).collect();
    let header = Header {
        kind: "images".into(),
        data: "noise".into(),
        classes: args.classes,
        data_sha256: None,
        seed: Some(args.seed),
    };
    write(&args.output, header, images, Tensor::from_slice(&labels))
}

/// Writes the first images of a data set.
///
/// # Errors
/// If the data set is not there or has not so many images, or the file cannot be written.
pub fn export(args: &ExportArgs) -> Result<()> {
    let data = talion_data::load(&args.dataset, args.split, None)?;
    if !(1..=data.len()).contains(&args.count) {
        return Err(Error::range("the number of images", format!("1 to {}", data.len()), args.count));
    }
    let (images, labels) = data.tensor(&(0..args.count).collect::<Vec<_>>())?;
    let header = Header {
        kind: "images".into(),
        data: data.name().into(),
        classes: data.classes() as i64,
        data_sha256: Some(data.sha256()),
        seed: None,
    };
    write(&args.output, header, images, labels)
}

fn write(output: &Path, header: Header, images: Tensor, labels: Tensor) -> Result<()> {
    let tensors = Tensors::from([("images".to_owned(), images), ("labels".to_owned(), labels)]);
    Archive { header, tensors }.save(output)?;
    println!("{} written", output.display());
    Ok(())
}

/// Uniform noise. Values are whole 255ths, as those of real images are, so that a training set of bytes loses nothing.
///
/// # Shapes
/// `size` is that of an image; the result is `[ids.len(), C, H, W]` in `[0, 1]`.
fn random_images(size: [i64; 3], ids: &[u64], seed: u64, purpose: &str) -> Tensor {
    ((uniform_noise(&size, ids, seed, purpose, 0) + 1.0) * 127.5).round() / 255.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use talion_core::check_images;

    #[test]
    fn random_images_are_bytes_and_belong_to_their_ids() {
        let images = random_images([3, 5, 5], &[4, 9], 1, "test");
        check_images(&images).unwrap();
        let bytes = (&images * 255.0).round().to_kind(Kind::Uint8);
        assert_eq!(bytes.to_kind(Kind::Float) / 255.0, images);
        assert_eq!(random_images([3, 5, 5], &[9], 1, "test").get(0), images.get(1));
        assert!(images.max().double_value(&[]) > 0.9 && images.min().double_value(&[]) < 0.1);
    }
}
