//! `talion reproduce`: from data to table in one command, resuming at the stage where it was stopped.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;
use talion_core::{Budget, Error, Norm, write_atomically};
use talion_data::{Augmentation, Dataset, DatasetSpec, Split};
use talion_defenses::{EstimatorSpec, Trn, TrnSpec, training::TrnTraining};
use talion_eval::{Plan, Row, markdown};
use talion_models::{Model, training::ClassifierTraining};
use tch::Device;

use super::train::{plain_classifier_stage, trn_stage};
use crate::{
    bundled::Networks,
    failure::CommandResult,
    monitor::catch_interrupts,
    samples::Samples,
    show::{OBLIVIOUS_WARNING, contenders, draw, measured},
};

/// From data to table: classifier, one-stream twin, TRN, evaluation.
///
/// Every stage writes its result into the output folder; stopped or killed, the same command goes on where it was. The
/// data set has to be there: `talion data fetch NAME`.
#[derive(Args)]
pub struct ReproduceArgs {
    /// Data set: cifar10, cifar100, svhn, mnist, fashion-mnist, NAME:FOLDER or folder:FOLDER.
    dataset: DatasetSpec,
    /// How much computing to spend.
    #[arg(long, value_enum, default_value_t = Profile::Cpu)]
    profile: Profile,
    /// Where results go; by default runs/DATASET-PROFILE-SEED.
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Seed of everything.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Profile {
    /// Half an hour on two cores for 28x28 images: ResNet-18 of width 16, TRN of width 16.
    Cpu,
    /// Hours on one data-centre GPU: ResNet-18 of width 64, TRN of width 32.
    Gpu,
}

/// Weight of the pixel loss on colour images. At the default of 10 the network finds it cheaper to bury every image under the
/// same large change, on which the classifier is unsure, than to restore images on which it is surely wrong
/// (docs/method.md, "What was tried on CIFAR-10").
const COLOUR_PIXEL_WEIGHT: f64 = 100.0;
/// What is shown of colour images: classifiers fall to smaller changes of these than of grey ones.
const COLOUR_MIXTURE: &str = "clean*4,fgsm@4/255*0.5,fgsm@8/255*1.5,pgd-7@2/255,pgd-7@4/255*1.5,pgd-7@8/255*4,pgd-7@12/255*1.5,\
     noise@4/255*0.5,noise@8/255*1.5,noise@12/255*0.5";

impl Profile {
    fn classifier(self, spec: &DatasetSpec, data: &Dataset, seed: u64) -> Result<ClassifierTraining, Error> {
        let standard = Augmentation::standard(spec, data);
        let base = ClassifierTraining { seed, ..ClassifierTraining::default() };
        Ok(match self {
            // Few epochs cannot pay for strong augmentation: shifts of one pixel, and no mirroring.
            Self::Cpu => ClassifierTraining {
                epochs: 6,
                batch_size: 64,
                peak_rate: 0.05,
                augmentation: Augmentation { pad: standard.pad.min(1), flip: false, ..standard },
                // small data sets keep most of their images for training
                validation: 2000.min(data.len() / 8),
                ..base
            },
            Self::Gpu => ClassifierTraining {
                architecture: "resnet18-w64".parse()?,
                epochs: 40,
                augmentation: standard,
                validation: 2000.min(data.len() / 8),
                ..base
            },
        })
    }

    fn trn(
        self,
        spec: TrnSpec,
        classifier: &ClassifierTraining,
        data: &Dataset,
    ) -> Result<TrnTraining, Error> {
        let mut base = TrnTraining {
            augmentation: classifier.augmentation,
            seed: classifier.seed,
            ..TrnTraining::new(spec, classifier.validation, classifier.seed)
        };
        if data.channels() > 1 {
            base.losses.pixel = COLOUR_PIXEL_WEIGHT;
            base.mixture = COLOUR_MIXTURE.parse()?;
        }
        let images = data.len() - classifier.validation;
        Ok(match self {
            Self::Cpu => {
                let validation_sample = 500.min(base.validation);
                // colour images are harder, and what they were seen to need
                let replays = if data.channels() > 1 { 8 } else { 3 };
                TrnTraining { pool: base.pool.min(images), rounds: 2, replays, validation_sample, ..base }
            }
            Self::Gpu => TrnTraining {
                pool: 16_384.min(images),
                replays: 4,
                rounds: 24,
                batch_size: 128,
                validation_sample: base.validation,
                ..base
            },
        })
    }

    fn size(self) -> &'static str {
        match self {
            Self::Cpu => "tiny",
            Self::Gpu => "base",
        }
    }

    /// Images attacked by attackers that do not see the defence, and by ones that do.
    fn images(self) -> (usize, usize) {
        match self {
            Self::Cpu => (320, 64),
            Self::Gpu => (4000, 1000),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
        }
    }
}

/// Runs the command.
pub fn run(args: &ReproduceArgs, json: bool) -> CommandResult {
    catch_interrupts();
    let device = Device::cuda_if_available();
    let train = talion_data::load(&args.dataset, Split::Train, None)?;
    let test = talion_data::load(&args.dataset, Split::Test, None)?;
    let folder = args.output.clone().unwrap_or_else(|| {
        PathBuf::from(format!("runs/{}-{}-{}", train.name(), args.profile.name(), args.seed))
    });
    let networks = networks(args, &train, &folder, device)?;
    let (oblivious, adaptive) = evaluation(args, &networks, &test, &folder, device)?;

    let table = format!(
        "# {} ({} profile, seed {})\n\nAccuracy in % with 95 % intervals, first test images.\n\n{}\n{}\n{OBLIVIOUS_WARNING}\n",
        train.name(),
        args.profile.name(),
        args.seed,
        markdown(&oblivious),
        markdown(&adaptive)
    );
    let report = json!({
        "dataset": train.name(), "data_sha256": test.sha256(), "profile": args.profile.name(), "seed": args.seed,
        "oblivious": oblivious, "adaptive": adaptive,
        "classifier": networks.classifier.card(), "trn": networks.trn.card(),
    });
    write_atomically(&folder.join("report.json"), report.to_string().as_bytes())?;
    write_atomically(&folder.join("report.md"), table.as_bytes())?;
    if json {
        println!("{report}");
    } else {
        println!("{table}\nAll results are in {}.", folder.display());
    }
    Ok(())
}

/// Trains what is not there yet.
fn networks(args: &ReproduceArgs, train: &Dataset, folder: &Path, device: Device) -> Result<Networks, Error> {
    let profile = args.profile;
    let config = profile.classifier(&args.dataset, train, args.seed)?;
    let path = folder.join("classifier.safetensors");
    let classifier = if path.exists() {
        let model = Model::load(&path, device)?;
        same_run(&path, &model.card().training, &config)?;
        model
    } else {
        plain_classifier_stage(&config, train, &path)?
    };
    let cache = folder.join("attacked");
    let one_spec = TrnSpec::one_stream(profile.size(), classifier.card().spec.channels)?;
    let trained = |name: &str, spec: TrnSpec, first: Option<&Trn>| {
        let path = folder.join(format!("{name}.safetensors"));
        let config = profile.trn(spec, &config, train)?;
        if path.exists() {
            let trn = Trn::load(&path, device)?;
            same_run(&path, &trn.card().training, &config)?;
            return Ok(trn);
        }
        trn_stage(&config, (&classifier, &[]), train, first, Some(&cache), &path)
    };
    let one_stream = trained("one-stream", one_spec.clone(), None)?;
    let trn = trained("trn", one_spec.with_estimator(EstimatorSpec::WalkBack), Some(&one_stream))?;
    // The attacked images have served both trainings.
    if cache.exists() {
        std::fs::remove_dir_all(&cache).map_err(Error::io(&cache))?;
    }
    Ok(Networks { classifier, one_stream: Some(one_stream), trn })
}

/// A result of other settings must not pass for this run's.
fn same_run(path: &Path, found: &serde_json::Value, wanted: &impl serde::Serialize) -> Result<(), Error> {
    if serde_json::to_value(wanted).is_ok_and(|wanted| wanted == *found) {
        return Ok(());
    }
    Err(Error::file(path, "was made with other settings; name another folder with -o, or remove it"))
}

fn evaluation(
    args: &ReproduceArgs,
    networks: &Networks,
    test: &Dataset,
    folder: &Path,
    device: Device,
) -> Result<(Vec<Row>, Vec<Row>), Error> {
    let (many, few) = args.profile.images();
    let small = Budget::linf_levels(8.0)?;
    let large = Budget::new(Norm::Linf, 0.1)?;
    let all = contenders(networks);
    let samples = Samples::first(test, many, device)?;
    let oblivious =
        measured(&networks.classifier, &all, &samples, &Plan::oblivious(&[small, large], args.seed)?)?;
    let samples = Samples::first(test, few, device)?;
    let adaptive = Plan { settings: Vec::new(), seed: args.seed }.and_adaptive("pgd-40", small)?;
    let adaptive = measured(&networks.classifier, &all, &samples, &adaptive)?;
    draw(networks, &samples, (&"pgd-20".parse()?, small), 6, args.seed, &folder.join("gallery.png"))?;
    Ok((oblivious, adaptive))
}
