//! `talion train`: a classifier, or a restoration network for one.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use talion_attacks::{Attack, AttackSpec, Batch};
use talion_core::{Budget, Classifier, Error, Objective, parse_fraction};
use talion_data::{Augmentation, Dataset, DatasetSpec, Split};
use talion_defenses::{
    EstimatorSpec, Trn, TrnSpec,
    training::{LossWeights, Mixture, TrnSources, TrnTraining, train_adaptive, train_trn},
};
use talion_models::{
    Architecture, Model,
    training::{
        Adversary, ClassifierTraining, DivergenceAscent, Precision, RobustLoss, Shown,
        train_robust_classifier,
    },
};
use tch::{Device, Tensor};

use super::{
    train_adaptive::AdaptiveArgs,
    train_restorer::{self, RestorerArgs},
};
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
    /// Train a restoration network against attackers who know it.
    Adaptive(AdaptiveArgs),
    /// Train a defence to compare with that knows no attacks.
    Restorer(RestorerArgs),
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
    /// What adversarial training minimises: `madry`, cross-entropy on attacked images; `trades:6`, cross-entropy on clean
    /// images plus 6 times how far the answers to attacked ones diverge from theirs; `mart:5`, boosted cross-entropy on
    /// attacked images plus 5 times that divergence where the network is unsure. TRADES takes pgd only, whose steps then
    /// climb the divergence.
    #[arg(long, value_name = "LOSS", default_value_t = RobustLoss::Madry, requires = "adversarial")]
    loss: RobustLoss,
    /// Adversarial weight perturbation: before each step move the weights against the training by this share of their
    /// length, for instance 0.005, and take the gradient there. With any loss of adversarial training.
    #[arg(long, value_name = "SHARE", value_parser = weight_perturbation, requires = "adversarial")]
    awp: Option<f64>,
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
    /// A further classifier of the same classes to defend at the same time; may be given several times. Every image of a
    /// round is attacked on one of them, drawn at random, and judged by it. Trained on one classifier alone, a network learns
    /// that one's attacks. None of their training may have seen the images that --model's set aside (as with the same
    /// --validation and --seed).
    #[arg(long, value_name = "FILE")]
    also: Vec<PathBuf>,
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

    /// What TRADES takes from the attack: its budget, and the number and size of its steps.
    fn ascent(&self) -> Result<DivergenceAscent, Error> {
        let name = self.attack.name();
        let is_pgd = self.attack.entry().is_some_and(|entry| entry.kind == "pgd");
        let (true, 1, Some(steps)) = (is_pgd, self.attack.restarts(2), self.attack.steps()) else {
            let expected = "pgd with one start, such as pgd-10@8/255 or pgd-10:step=2/255@8/255; \
                            --loss mart:5 and --loss madry go with any attack";
            return Err(Error::range("the attack to train against with TRADES", expected, name));
        };
        let step = name.split(':').find_map(|part| part.strip_prefix("step="));
        DivergenceAscent::new(self.budget, steps, step.map(parse_fraction).transpose()?)
    }
}

/// The attack to train against, and what climbs instead of it while TRADES trains.
struct Opponent<'a> {
    attack: &'a TrainingAttack,
    ascent: Option<DivergenceAscent>,
}

impl<'a> Opponent<'a> {
    fn new(attack: &'a TrainingAttack, loss: RobustLoss) -> Result<Self, Error> {
        let ascent = match loss {
            RobustLoss::Trades(_) => Some(attack.ascent()?),
            RobustLoss::Madry | RobustLoss::Mart(_) => None,
        };
        Ok(Self { attack, ascent })
    }
}

fn weight_perturbation(text: &str) -> Result<f64, Error> {
    let expected = "a share of the weights' length above 0 and below 1, such as 0.005";
    let share = parse_fraction(text).ok().filter(|&share| share > 0.0 && share < 1.0);
    share.ok_or_else(|| Error::range("the size of the weight perturbation", expected, text))
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
        What::Adaptive(args) => adaptive(args, json),
        What::Restorer(args) => train_restorer::run(args, json),
    }
}

fn classifier(args: &ClassifierArgs, json: bool) -> CommandResult {
    let opponent = args.adversarial.as_ref().map(|attack| Opponent::new(attack, args.loss)).transpose()?;
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
        loss: args.loss,
        awp: args.awp,
        precision: if args.f32 { Precision::F32 } else { Precision::Auto },
        validation: args.validation,
        seed: args.seed,
        ..ClassifierTraining::default()
    };
    let model = classifier_stage(&config, opponent.as_ref(), &data, &args.output)?;
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
    let ground = Ground::load(&args.model, args.data.as_ref())?;
    let Ground { classifier, data, training: trained } = &ground;
    let first = args.first.as_deref().map(|path| Trn::load(path, Device::cuda_if_available())).transpose()?;
    let one_stream = TrnSpec::one_stream(&args.size, classifier.card().spec.channels)?;
    let mut spec = TrnSpec { gate: !args.no_gate, ..one_stream }.with_estimator(args.estimator);
    if let (Some(slot), Some(first)) = (&mut spec.first, &first) {
        **slot = first.card().spec.clone();
    }
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
    let others = args.also.iter().map(|path| companion(path, data)).collect::<CommandResult<Vec<_>>>()?;
    let defended = (classifier, &others[..]);
    let trn = trn_stage(&config, defended, data, first.as_ref(), args.cache.as_deref(), &args.output)?;
    say(&trn, &args.output, json)
}

/// A classifier to defend beside the first one.
fn companion(path: &Path, data: &Dataset) -> CommandResult<Model> {
    let classifier = Model::load(path, Device::cuda_if_available())?;
    fits(&classifier, data)?;
    Ok(classifier)
}

fn adaptive(args: &AdaptiveArgs, json: bool) -> CommandResult {
    let ground = Ground::load(&args.model, args.data.as_ref())?;
    let Ground { classifier, data, training } = &ground;
    let device = Device::cuda_if_available();
    let first = args.first.as_deref().map(|path| Trn::load(path, device)).transpose()?;
    let warm = args.warm.as_deref().map(|path| Trn::load(path, device)).transpose()?;
    let config = args.config(classifier, (warm.as_ref(), first.as_ref()), training)?;
    let what = format!("adaptive {}", named(config.spec.estimator));
    let mut monitor = Monitor::new(&what, Some(&args.output.with_extension("metrics.jsonl")))?;
    let snapshot = args.output.with_extension("snapshot");
    let architecture = classifier.card().spec.architecture.to_string();
    let first = first.as_ref();
    let snapshot = Some(&*snapshot);
    let sources = TrnSources { classifier, others: &[], architecture, data, first, snapshot, cache: None };
    let trn = train_adaptive(&config, &sources, warm.as_ref(), &mut |event| monitor.observe(event))?;
    trn.save(&args.output)?;
    say(&trn, &args.output, json)
}

/// What a trained network says of itself.
fn say(trn: &Trn, output: &Path, json: bool) -> CommandResult {
    if json {
        println!("{}", serde_json::to_string(trn.card())?);
    } else {
        let figures: Vec<_> =
            trn.card().metrics.iter().map(|(name, value)| format!("{name} {:.2} %", 100.0 * value)).collect();
        println!("{} written: {} weights, {}", output.display(), trn.parameters(), figures.join(", "));
    }
    Ok(())
}

fn named(estimator: EstimatorSpec) -> String {
    match estimator {
        EstimatorSpec::None => "one-stream".to_owned(),
        estimator => format!("TRN {estimator}"),
    }
}

/// What a restoration network is trained on: a classifier, its images, and how it came to know them.
pub struct Ground {
    /// The classifier to defend.
    pub classifier: Model,
    /// The whole training split.
    pub data: Dataset,
    /// How the classifier was trained.
    pub training: ClassifierTraining,
}

impl Ground {
    /// The classifier in a file, with the data set that is named, or else the one that it was trained on.
    ///
    /// # Errors
    /// If either cannot be read, or they do not fit each other.
    pub fn load(model: &Path, spec: Option<&DatasetSpec>) -> CommandResult<Self> {
        let classifier = Model::load(model, Device::cuda_if_available())?;
        let named = match spec {
            Some(spec) => spec.clone(),
            None => trained_on(&classifier)?,
        };
        let data = talion_data::load(&named, Split::Train, None)?;
        fits(&classifier, &data)?;
        let training = classifier_training(&classifier, spec, &data)?;
        Ok(Self { classifier, data, training })
    }
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

/// Trains a restoration network for one classifier, or with `others` for several, into `output`, going on from a snapshot
/// beside it.
pub fn trn_stage(
    config: &TrnTraining,
    (classifier, others): (&Model, &[Model]),
    data: &Dataset,
    first: Option<&Trn>,
    cache: Option<&Path>,
    output: &Path,
) -> Result<Trn, Error> {
    let what = named(config.spec.estimator);
    let mut monitor = Monitor::new(&what, Some(&output.with_extension("metrics.jsonl")))?;
    let snapshot = output.with_extension("snapshot");
    let architectures =
        std::iter::once(classifier).chain(others).map(|model| model.card().spec.architecture.to_string());
    let architecture = architectures.collect::<Vec<_>>().join(", ");
    let others: Vec<&dyn Classifier> = others.iter().map(|other| other as &dyn Classifier).collect();
    let (others, snapshot) = (&others[..], Some(&*snapshot));
    let sources = TrnSources { classifier, others, architecture, data, first, snapshot, cache };
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
    opponent: Option<&Opponent<'_>>,
    data: &Dataset,
    output: &Path,
) -> Result<Model, Error> {
    let mut monitor = Monitor::new("classifier", Some(&output.with_extension("metrics.jsonl")))?;
    let (device, snapshot) = (Device::cuda_if_available(), output.with_extension("snapshot"));
    let perturb = opponent
        .map(|opponent| move |model: &Model, shown: &Shown<'_>| opponent.attack.perturb(model, shown));
    let adversary = perturb
        .as_ref()
        .zip(opponent)
        .map(|(perturb, opponent)| Adversary { perturb, ascent: opponent.ascent });
    let model =
        train_robust_classifier(adversary.as_ref(), config, data, device, Some(&snapshot), &mut |event| {
            monitor.observe(event)
        })?;
    model.save(output)?;
    Ok(model)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// The options of `talion train classifier`.
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ClassifierArgs,
    }

    fn parsed(options: &[&str]) -> Result<ClassifierArgs, String> {
        let always = ["talion", "--data", "fashion-mnist", "--output", "x.safetensors"];
        let line = Line::try_parse_from(always.iter().chain(options).copied());
        line.map(|line| line.args).map_err(|error| error.to_string())
    }

    #[test]
    fn losses_and_weight_perturbation_are_read() {
        let plain = parsed(&[]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((plain.loss, plain.awp), (RobustLoss::Madry, None));
        let options = ["--adversarial", "pgd-7@8/255", "--loss", "trades:6", "--awp", "0.005"];
        let args = parsed(&options).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((args.loss, args.awp), (RobustLoss::Trades(6.0), Some(0.005)));
    }

    #[test]
    fn wrong_values_are_told_what_to_be() {
        let attack = ["--adversarial", "pgd-7@8/255"];
        let cases = [
            (["--loss", "trades"], "such as trades:6"),
            (["--loss", "mart:0"], "such as mart:5"),
            (["--loss", "kl"], "madry, trades:WEIGHT"),
            (["--awp", "2"], "such as 0.005"),
            (["--awp", "much"], "such as 0.005"),
        ];
        for (options, said) in cases {
            let error = parsed(&[attack, options].concat()).err().unwrap();
            assert!(error.contains(said), "{options:?}: {error}");
        }
        for options in [["--loss", "mart:5"], ["--awp", "0.005"]] {
            let error = parsed(&options).err().unwrap();
            assert!(error.contains("--adversarial"), "{options:?}: {error}");
        }
    }

    #[test]
    fn trades_takes_the_steps_of_pgd_and_of_nothing_else() {
        let trades = RobustLoss::Trades(6.0);
        let ascent = |text: &str| {
            let attack = training_attack(text).unwrap();
            Opponent::new(&attack, trades).map(|opponent| opponent.ascent)
        };
        let budget = Budget::linf_levels(8.0).unwrap();
        let expected = DivergenceAscent::new(budget, 10, Some(2.0 / 255.0)).unwrap();
        assert_eq!(ascent("pgd-10:step=2/255@8/255").unwrap(), Some(expected));
        let usual = DivergenceAscent::new(budget, 7, None).unwrap();
        assert_eq!(ascent("pgd-7@8/255").unwrap(), Some(usual));
        for other in ["fgsm@8/255", "bim-7@8/255", "eot-pgd-7@8/255", "pgd-7x2@8/255"] {
            let error = ascent(other).unwrap_err().to_string();
            assert!(error.contains("such as pgd-10@8/255"), "{error}");
            let attack = training_attack(other).unwrap();
            assert!(Opponent::new(&attack, RobustLoss::Mart(5.0)).unwrap().ascent.is_none());
        }
    }
}
