//! `talion model describe`: flags in, a checked sidecar out.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use talion_core::Error;
use talion_data::DatasetName;
use talion_models::{
    Architecture,
    import::{ChannelOrder, Format, InputFacts, Sidecar, detect, open_with},
};
use tch::Device;

use crate::{commands::model::inspect, failure::CommandResult};

/// State what a file does not say itself, in FILE.toml beside it.
///
/// Nothing is written unless the file can be opened as described. Afterwards every command that takes the file finds the
/// description.
#[derive(Args)]
pub struct DescribeArgs {
    /// The classifier: ONNX, TorchScript, or PyTorch weights.
    file: PathBuf,
    /// The architecture of a file of weights, such as resnet18-w64; by default found from the shapes.
    #[arg(long)]
    architecture: Option<Architecture>,
    /// Name of the data set it was trained on; a known one also gives class names and, where the file does not say them,
    /// image size and channels.
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// Names of the classes in the order of the labels, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    classes: Option<Vec<String>>,
    /// The accuracy it is said to have on clean test images, as a share: 0.953.
    #[arg(long, value_name = "SHARE")]
    accuracy: Option<f64>,
    /// Height and width of its images, such as 32x32.
    #[arg(long, value_parser = size, value_name = "HxW")]
    size: Option<[i64; 2]>,
    /// Channels of its images.
    #[arg(long, value_name = "N")]
    channels: Option<i64>,
    /// The order in which it wants the channels.
    #[arg(long, default_value_t)]
    order: ChannelOrder,
    /// What it wants a value of 1.0 (white) to be before standardisation: 1, or 255 for networks of byte values.
    #[arg(long, value_name = "VALUE")]
    scale: Option<f64>,
    /// Mean of each channel that is subtracted, on that scale, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    mean: Option<Vec<f64>>,
    /// What each channel is divided by after that, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    std: Option<Vec<f64>>,
    /// A usual standardisation instead of --mean and --std.
    #[arg(long, conflicts_with_all = ["mean", "std", "scale"])]
    like: Option<Usual>,
    /// Replace a description that is there.
    #[arg(long)]
    force: bool,
}

/// Standardisations that training scripts share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Usual {
    /// Mean 0.485, 0.456, 0.406; standard deviation 0.229, 0.224, 0.225 (torchvision).
    Imagenet,
    /// Values from -1 to 1: mean 0.5, standard deviation 0.5.
    Symmetric,
    /// Values from 0 to 1 as they are.
    None,
}

impl Usual {
    /// Mean and standard deviation of `channels` channels; `None` where it is for colour images only.
    pub fn values(self, channels: i64) -> Option<(Vec<f64>, Vec<f64>)> {
        let all = |value: f64| vec![value; usize::try_from(channels).unwrap_or_default()];
        match self {
            Self::Imagenet if channels == 3 => Some((vec![0.485, 0.456, 0.406], vec![0.229, 0.224, 0.225])),
            Self::Imagenet => None,
            Self::Symmetric => Some((all(0.5), all(0.5))),
            Self::None => Some((all(0.0), all(1.0))),
        }
    }
}

/// Parses `HEIGHTxWIDTH`.
///
/// # Errors
/// Says what is expected.
pub fn size(text: &str) -> Result<[i64; 2], String> {
    let side = |part: &str| part.parse().ok().filter(|side| (1..=16_384_i64).contains(side));
    let parts = text.split_once('x').and_then(|(height, width)| Some([side(height)?, side(width)?]));
    parts.ok_or_else(|| "expected HEIGHTxWIDTH, such as 32x32".to_owned())
}

/// Runs the command.
pub fn run(args: &DescribeArgs, json: bool) -> CommandResult {
    let path = Sidecar::path(&args.file);
    if path.exists() && !args.force {
        return Err(Error::file(path, "is there already; --force replaces it").into());
    }
    let sidecar = sidecar(args)?;
    let model = open_with(&args.file, sidecar.clone(), Device::Cpu)?;
    sidecar.write(&args.file)?;
    if json {
        println!("{}", inspect::summary(&model));
    } else {
        println!("{} written\n", path.display());
        inspect::show(&model);
    }
    Ok(())
}

fn sidecar(args: &DescribeArgs) -> CommandResult<Sidecar> {
    let known: Option<DatasetName> = args.dataset.as_deref().and_then(|name| name.parse().ok());
    let classes = args
        .classes
        .clone()
        .or_else(|| known.map(|name| name.class_names().iter().map(|&name| name.to_owned()).collect()));
    // an ONNX file states its own size, which a data set's need not be
    let states_size = detect(&args.file)? == Format::Onnx;
    let known_size = known.filter(|_| !states_size).map(|name| [name.side() as i64; 2]);
    let channels = args.channels.or(known.map(|name| name.channels() as i64));
    let (mean, std) = match args.like {
        Some(usual) => {
            let channels = channels.unwrap_or(3);
            let values = usual.values(channels).ok_or_else(|| {
                Error::Refused(format!(
                    "--like imagenet is for colour images, and these have {channels} channel(s)"
                ))
            })?;
            (Some(values.0), Some(values.1))
        }
        None => (args.mean.clone(), args.std.clone()),
    };
    Ok(Sidecar {
        architecture: args.architecture,
        dataset: args.dataset.clone(),
        classes,
        accuracy: args.accuracy,
        input: InputFacts {
            size: args.size.or(known_size),
            channels,
            order: args.order,
            scale: args.scale,
            mean,
            std,
        },
    })
}
