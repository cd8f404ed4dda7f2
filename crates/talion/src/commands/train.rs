//! `talion train`: a classifier, or a restoration network for one.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use talion_attacks::{Attack, AttackSpec, Batch};
use talion_core::{Budget, Error, Objective};
use talion_data::{Augmentation, Dataset, DatasetSpec, Split};
use talion_defenses::{
    EstimatorSpec, Trn, TrnSpec,
    training::{LossWeights, Mixture, TrnSources, TrnTraining, train_trn},
};
use talion_models::{
    Architecture, Model,
    training::{ClassifierTraining, Perturb, Precision, Shown, train_classifier_against},
};
use tch::{Device, Tensor};

use crate::{
    failure::CommandResult,
    monitor::{Monitor, catch_interrupts},
    samples::fits,
};

/// Train a classifier, or a restoration network for one.
///
/// Training shows its progress, can be stopped with Ctrl-C or killed, and goes on where it was when the same command is
/// run again. Metrics are written beside the output as JSON lines.
#[derive(Args)]
pub struct TrainArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Train a classifier on a data set.
    Classifier(ClassifierArgs),
    /// Train a restoration network for a classifier.
    Trn(TrnArgs),
}

#[derive(Args)]
struct ClassifierArgs {
    /// Data set: a name (see `talion data --help`), NAME:FOLDER, or folder:FOLDER with one sub-folder a class.
    #[arg(long)]
    data: DatasetSpec,
    /// Network: resnet18-w16, preactresnet18-w64, vgg16bn-w64, wrn-28-10, cnn-small-w32, with any width.
    #[arg(long, default_value = "resnet18-w16")]
    architecture: Architecture,
    /// Where to write the checkpoint (safetensors with a header that says everything about it).
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Passes over the training images.
    #[arg(long, default_value_t = 10)]
    epochs: u64,
    /// Images a step.
    #[arg(long, default_value_t = 128)]
    batch_size: usize,
    /// Highest learning rate of the one-cycle schedule.
    #[arg(long, default_value_t = 0.1)]
    rate: f64,
    /// Label smoothing, 0 for none.
    #[arg(long, default_value_t = 0.0)]
    label_smoothing: f64,
    /// Decay a step of an exponential average of the weights, for instance 0.998; without it there is none.
    #[arg(long)]
    average: Option<f64>,
    /// Side of the grey square painted over each training image, 0 for none.
    #[arg(long, default_value_t = 0)]
    cutout: usize,
    /// Pixels that training images are shifted by at most; by default what suits the data set.
    #[arg(long)]
    pad: Option<usize>,
    /// Do not mirror images, whatever the data set allows.
    #[arg(long)]
    no_flip: bool,
    /// Progressive resizing: the share of the side of an image that training starts with, 0.25 to 1 (1: none).
    #[arg(long, default_value_t = 1.0)]
    smallest: f64,
    /// Adversarial training: attack every training image first, such as `pgd-7@0.1` or `pgd-10@l2:0.5` (an attack, and its
    /// budget after @). Takes as many times longer as the attack has steps.
    #[arg(long, value_name = "ATTACK", value_parser = training_attack)]
    adversarial: Option<TrainingAttack>,
    /// Always compute in f32, even where the hardware multiplies bf16.
    #[arg(long)]
    f32: bool,
    /// Training images set aside to measure on.
    #[arg(long, default_value_t = 2000)]
    validation: usize,
    /// Seed of initial weights, order, augmentation and validation split.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Args)]
struct TrnArgs {
    /// The classifier to defend, a checkpoint of `talion train classifier`.
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Data set; by default the one that the classifier was trained on.
    #[arg(long)]
    data: Option<DatasetSpec>,
    /// Where to write the network (safetensors with a header that says everything about it).
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Where the second stream's gradient maps come from: walk-back, predicted, top1 to top16, coarse1 to coarse4,
    /// learned; `restoration` is the control without gradients, `none` the one-stream twin.
    #[arg(long, default_value = "walk-back")]
    estimator: EstimatorSpec,
    /// A trained one-stream network, for estimators that restore twice (walk-back, coarse, restoration).
    #[arg(long, value_name = "FILE")]
    first: Option<PathBuf>,
    /// Width: tiny, small, base or large (16, 24, 32, 64 channels at full resolution).
    #[arg(long, default_value = "tiny")]
    size: String,
    /// What to train on: attacks with budgets (after @) and weights (after *), for instance
    /// `clean*2,fgsm@8/255,pgd-7@8/255*3`.
    #[arg(long)]
    mixture: Option<Mixture>,
    /// Training images attacked in a round.
    #[arg(long, default_value_t = 8192)]
    pool: usize,
    /// How often a round's images are shown.
    #[arg(long, default_value_t = 4)]
    replays: u64,
    /// Rounds.
    #[arg(long, default_value_t = 3)]
    rounds: u64,
    /// Stop after so many rounds without a better validation score; without it all rounds are trained.
    #[arg(long)]
    patience: Option<u64>,
    /// Highest learning rate of the one-cycle schedule.
    #[arg(long, default_value_t = 2e-3)]
    rate: f64,
    /// Weight of the pixel loss.
    #[arg(long, default_value_t = 10.0)]
    pixel: f64,
    /// Weight of the divergence between the classifier's answers on restored and clean image.
    #[arg(long, default_value_t = 1.0)]
    logit: f64,
    /// Weight of the classification loss on the restored image.
    #[arg(long, default_value_t = 0.5)]
    classification: f64,
    /// Weight of the gate's loss: whether it tells attacked from clean images.
    #[arg(long, default_value_t = 0.5)]
    detection: f64,
    /// Build the network without its gate, which leaves images alone that it takes for clean.
    #[arg(long)]
    no_gate: bool,
    /// A folder for attacked images, which trainings of several networks on the same attacks share.
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    /// Seed of initial weights, order and attacks.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What training images go through before they are shown.
#[derive(Clone)]
struct TrainingAttack {
    attack: AttackSpec,
    budget: Budget,
}

impl TrainingAttack {
    fn name(&self) -> String {
        format!("{} at {}", self.attack, self.budget)
    }

    fn perturb(&self, model: &Model, shown: &Shown<'_>) -> Result<Tensor, Error> {
        let batch = Batch {
            images: shown.images,
            labels: shown.labels,
            ids: shown.ids,
            budget: self.budget,
            objective: Objective::CrossEntropy,
            seed: shown.seed,
            restart: shown.epoch,
        };
        self.attack.perturb(model, &batch)
    }
}

fn training_attack(text: &str) -> Result<TrainingAttack, Error> {
    let (attack, budget) = text.split_once('@').ok_or_else(|| {
        Error::range("an attack to train against", "an attack and its budget, such as pgd-7@0.1", text)
    })?;
    Ok(TrainingAttack { attack: attack.parse()?, budget: budget.parse()? })
}

/// Runs the command.
pub fn run(args: &TrainArgs, json: bool) -> CommandResult {
    catch_interrupts();
    match &args.what {
        What::Classifier(args) => classifier(args, json),
        What::Trn(args) => trn(args, json),
    }
}

fn classifier(args: &ClassifierArgs, json: bool) -> CommandResult {
    let data = talion_data::load(&args.data, Split::Train, None)?;
    let standard = Augmentation::standard(&args.data, &data);
    let config = ClassifierTraining {
        architecture: args.architecture,
        epochs: args.epochs,
        batch_size: args.batch_size,
        peak_rate: args.rate,
        label_smoothing: args.label_smoothing,
        average: args.average,
        augmentation: Augmentation {
            cutout: args.cutout,
            pad: args.pad.unwrap_or(standard.pad),
            flip: standard.flip && !args.no_flip,
        },
        smallest: args.smallest,
        adversarial: args.adversarial.as_ref().map(TrainingAttack::name),
        precision: if args.f32 { Precision::F32 } else { Precision::Auto },
        validation: args.validation,
        seed: args.seed,
        ..ClassifierTraining::default()
    };
    let model = classifier_stage(&config, args.adversarial.as_ref(), &data, &args.output)?;
    let card = model.card();
    if json {
        println!("{}", serde_json::to_string(card)?);
    } else {
        println!(
            "{} written: {} weights, validation accuracy {:.2} %",
            args.output.display(),
            model.parameters(),
            100.0 * card.metrics.get("validation_accuracy").copied().unwrap_or(f64::NAN)
        );
    }
    Ok(())
}

fn trn(args: &TrnArgs, json: bool) -> CommandResult {
    let device = Device::cuda_if_available();
    let classifier = Model::load(&args.model, device)?;
    let data = match &args.data {
        Some(data) => data.clone(),
        None => trained_on(&classifier)?,
    };
    let data = talion_data::load(&data, Split::Train, None)?;
    fits(&classifier, &data)?;
    let first = args.first.as_deref().map(|path| Trn::load(path, device)).transpose()?;
    let one_stream = TrnSpec::one_stream(&args.size, classifier.card().spec.channels)?;
    let mut spec = TrnSpec { gate: !args.no_gate, ..one_stream }.with_estimator(args.estimator);
    if let (Some(slot), Some(first)) = (&mut spec.first, &first) {
        **slot = first.card().spec.clone();
    }
    let trained = classifier_training(&classifier, args.data.as_ref(), &data)?;
    let config = TrnTraining {
        mixture: args.mixture.clone().unwrap_or_default(),
        losses: LossWeights {
            pixel: args.pixel,
            logit: args.logit,
            classification: args.classification,
            detection: args.detection,
        },
        pool: args.pool,
        replays: args.replays,
        rounds: args.rounds,
        patience: args.patience,
        peak_rate: args.rate,
        augmentation: trained.augmentation,
        seed: args.seed,
        ..TrnTraining::new(spec, trained.validation, trained.seed)
    };
    let validation_sample = config.validation_sample.min(config.validation);
    let config = TrnTraining { validation_sample, ..config };
    let trn = trn_stage(&config, &classifier, &data, first.as_ref(), args.cache.as_deref(), &args.output)?;
    if json {
        println!("{}", serde_json::to_string(trn.card())?);
    } else {
        let figures: Vec<_> =
            trn.card().metrics.iter().map(|(name, value)| format!("{name} {:.2} %", 100.0 * value)).collect();
        println!("{} written: {} weights, {}", args.output.display(), trn.parameters(), figures.join(", "));
    }
    Ok(())
}

/// The data set that the classifier says it was trained on.
fn trained_on(classifier: &Model) -> Result<DatasetSpec, Error> {
    let name = &classifier.card().dataset;
    name.parse().map_err(|_| {
        Error::Refused(format!("the classifier was trained on {name}; name the data to train on with --data"))
    })
}

/// How the classifier was trained, as far as training a network in front of it depends on that: which images were set
/// aside for validation, and what was done to the others. Of an imported one nobody knows; the usual is assumed.
fn classifier_training(
    classifier: &Model,
    spec: Option<&DatasetSpec>,
    data: &Dataset,
) -> CommandResult<ClassifierTraining> {
    if classifier.origin().is_none() {
        return Ok(serde_json::from_value(classifier.card().training.clone())?);
    }
    let usual = ClassifierTraining::default();
    let augmentation = match spec {
        Some(spec) => Augmentation::standard(spec, data),
        None => Augmentation::standard(&trained_on(classifier)?, data),
    };
    let validation = usual.validation.min(data.len() / 5);
    Ok(ClassifierTraining { augmentation, validation, ..usual })
}

/// Trains a restoration network into `output`, going on from a snapshot beside it.
pub fn trn_stage(
    config: &TrnTraining,
    classifier: &Model,
    data: &Dataset,
    first: Option<&Trn>,
    cache: Option<&Path>,
    output: &Path,
) -> Result<Trn, Error> {
    let what = match config.spec.estimator {
        EstimatorSpec::None => "one-stream".to_owned(),
        estimator => format!("TRN {estimator}"),
    };
    let mut monitor = Monitor::new(&what, Some(&output.with_extension("metrics.jsonl")))?;
    let snapshot = output.with_extension("snapshot");
    let architecture = classifier.card().spec.architecture.to_string();
    let sources = TrnSources { classifier, architecture, data, first, snapshot: Some(&snapshot), cache };
    let trn = train_trn(config, &sources, &mut |event| monitor.observe(event))?;
    trn.save(output)?;
    Ok(trn)
}

/// Trains a classifier on images as they are into `output`, going on from a snapshot beside it.
pub fn plain_classifier_stage(
    config: &ClassifierTraining,
    data: &Dataset,
    output: &Path,
) -> Result<Model, Error> {
    classifier_stage(config, None, data, output)
}

/// Trains a classifier into `output`, going on from a snapshot beside it.
fn classifier_stage(
    config: &ClassifierTraining,
    attack: Option<&TrainingAttack>,
    data: &Dataset,
    output: &Path,
) -> Result<Model, Error> {
    let mut monitor = Monitor::new("classifier", Some(&output.with_extension("metrics.jsonl")))?;
    let (device, snapshot) = (Device::cuda_if_available(), output.with_extension("snapshot"));
    let perturb = attack.map(|attack| |model: &Model, shown: &Shown<'_>| attack.perturb(model, shown));
    let perturb = perturb.as_ref().map(|perturb| perturb as &Perturb<'_>);
    let model = train_classifier_against(perturb, config, data, device, Some(&snapshot), &mut |event| {
        monitor.observe(event)
    })?;
    model.save(output)?;
    Ok(model)
}
