//! `talion calibrate`: how suspicious clean images are, and what of attacks stands out from them.

use std::path::PathBuf;

use clap::Args;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use talion_core::{Error, Result};
use talion_data::{Dataset, DatasetInfo, DatasetSpec, Split};
use talion_eval::{
    Adaptive, Calibration, MeasuredDetection, Pair, Plan, Setting, Subjects, conformal_rank, fingerprint,
    measure_detection,
};
use talion_models::ModelCard;
use tch::Device;

use crate::{
    bundled::Networks,
    failure::CommandResult,
    monitor::{bar, catch_interrupts, go_on},
    samples::Samples,
};

/// Learn from clean images what suspicion is common, and measure what of attacks stands out.
///
/// The suspicion of an image says how far the restoration moved the classifier's answer. Scores of clean images that neither
/// network was trained on (those that training set aside) decide which are flagged: at most the stated share of clean images,
/// whatever attack there is. Then false alarms are counted on test images, and attacks, none of which was used before, are
/// run on the first of them. Attacks that the restoration network was trained against are found more easily than others.
#[derive(Args)]
pub struct CalibrateArgs {
    /// The classifier; without it the bundled pair for Fashion-MNIST is used.
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The restoration network trained for that classifier.
    #[arg(long, value_name = "FILE")]
    trn: Option<PathBuf>,
    /// Data set whose training split has the images that were set aside; by default the one that the classifier was trained
    /// on.
    #[arg(long)]
    data: Option<DatasetSpec>,
    /// Data set to take test images from; by default the test split of the same.
    #[arg(long)]
    test: Option<DatasetSpec>,
    /// Number of clean images to calibrate on: the first of those that were set aside.
    #[arg(long, default_value_t = 2000)]
    images: usize,
    /// Number of images to measure on: the first of the test split.
    #[arg(long, value_name = "N", default_value_t = 512)]
    test_images: usize,
    /// Number of these that attacks through the defence are run on, the first of them.
    #[arg(long, value_name = "N", default_value_t = 64)]
    adaptive_images: usize,
    /// What attackers with exact gradients give to stay unsuspicious: so many times the score is taken from their loss. 0 are
    /// attackers who do not know the score.
    #[arg(long, value_name = "WEIGHT", default_value_t = 0.0)]
    evasion: f64,
    /// Share of clean images that may be flagged.
    #[arg(long, value_name = "RATE", default_value_t = 0.05)]
    false_alarm_rate: f64,
    /// An attack to measure: [THREAT:]ATTACK@[NORM:]EPSILON, for instance `pgd-20@8/255` or `exact:pgd-40@8/255` (see
    /// `talion evaluate --help`); may be given several times. By default noise, FGSM, PGD, MIM and Square on the bare
    /// classifier, PGD and APGD through the defence.
    #[arg(long = "attack", value_name = "SETTING")]
    attacks: Vec<Setting>,
    /// Seed of every random start.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the calibration goes (JSON).
    #[arg(short, long, value_name = "FILE", default_value = "calibration.json")]
    output: PathBuf,
}

/// What is measured unless attacks are named: minutes on two cores with the bundled pair.
const ATTACKS: [&str; 9] = [
    "noise@8/255",
    "fgsm@8/255",
    "pgd-20@4/255",
    "pgd-20@8/255",
    "pgd-100@8/255",
    "mim-20@8/255",
    "square-500@8/255",
    "exact:pgd-20@8/255",
    "exact:apgd-ce-20@8/255",
];

/// What has to be said beside figures of detection.
const DETECTION_WARNING: &str = "\
AUC is the chance that an attacked image scores higher than a clean one. The last column counts samples that make the
defended classifier wrong without a flag, of those that make it wrong: the number that hurts. Only attackers whose view says
`evading` try to keep the score low (--evasion). A flag is a hint, not a defence.";

/// Runs the command.
pub fn run(args: &CalibrateArgs, json: bool) -> CommandResult {
    catch_interrupts();
    let device = Device::cuda_if_available();
    let networks = Networks::load(args.model.as_deref(), None, args.trn.as_deref(), device)?;
    let (held_out, test) = data(args, &networks)?;
    let clean = Samples::first(&held_out, args.images, device)?;
    let test = Samples::first(&test, args.test_images, device)?;
    // before minutes are spent on it
    conformal_rank(clean.ids.len(), args.false_alarm_rate)?;
    let plan = Plan { settings: settings(args)?, seed: args.seed };

    let adaptive = Adaptive { images: args.adaptive_images, evasion: args.evasion };
    let mut calibration = calibrated(&networks, &clean, held_out.name(), args.false_alarm_rate)?;
    calibration.measured = Some(measured(&calibration, &networks, &test, &plan, adaptive)?);
    calibration.save(&args.output)?;
    report(args, &calibration, json)
}

fn settings(args: &CalibrateArgs) -> Result<Vec<Setting>> {
    if args.attacks.is_empty() {
        ATTACKS.iter().map(|setting| setting.parse()).collect()
    } else {
        Ok(args.attacks.clone())
    }
}

/// The images that training set aside, and the test images.
fn data(args: &CalibrateArgs, networks: &Networks) -> CommandResult<(Dataset, Dataset)> {
    let card = networks.classifier.card();
    let spec = match &args.data {
        Some(spec) => spec.clone(),
        None => card.dataset.parse()?,
    };
    let train = talion_data::load(&spec, Split::Train, None)?;
    let held_out = held_out(networks, &train)?;
    let test = talion_data::load(args.test.as_ref().unwrap_or(&spec), Split::Test, None)?;
    check_kind(card, &test)?;
    // a folder without `train` and `test` is read whole as either
    if test.len() == train.len() && test.sha256() == train.sha256() {
        let problem =
            format!("the test images of {} are its training images; name others with --test", test.name());
        return Err(Error::Refused(problem).into());
    }
    Ok((held_out, test))
}

/// The training images that neither network was trained on.
fn held_out(networks: &Networks, train: &Dataset) -> CommandResult<Dataset> {
    let card = networks.classifier.card();
    let splits = (split(&card.training, "seed"), split(&networks.trn.card().training, "split_seed"));
    let (images, seed) = match splits {
        (Some(one), Some(other)) if one == other => one,
        (Some(_), Some(_)) => {
            return Err(Error::Refused(
                "classifier and restoration network set different images aside, so each has been trained on some of the \
                 other's; train the network for this classifier with `talion train trn`"
                    .into(),
            )
            .into());
        }
        _ => {
            return Err(Error::Refused(
                "a network's file does not say which images its training set aside, and images that it was trained on say \
                 nothing about others; calibrate networks from `talion train`"
                    .into(),
            )
            .into());
        }
    };
    check_kind(card, train)?;
    let (shown, held_out) = train.split_validation(images, seed)?;
    check_training_images(card, &shown)?;
    Ok(held_out)
}

/// How many images were set aside, and by which seed, as a card's training configuration has it.
fn split(training: &Value, seed: &str) -> Option<(usize, u64)> {
    Some((usize::try_from(training["validation"].as_u64()?).ok()?, training[seed].as_u64()?))
}

/// Other images would make the networks fail in the middle of the work.
fn check_kind(card: &ModelCard, data: &Dataset) -> Result<()> {
    let spec = &card.spec;
    let wanted = [spec.channels, card.image_size[0], card.image_size[1], spec.classes];
    let found = [data.channels(), data.height(), data.width(), data.classes()].map(|size| size as i64);
    if wanted == found {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{} ({}) has channels, rows, columns and classes {found:?}, and the classifier was trained with {wanted:?}",
        data.name(),
        data.split()
    )))
}

/// The classifier standardises by mean and spread of exactly the images that it was trained on, which gives other images
/// away: another data set, or another version of the same.
fn check_training_images(card: &ModelCard, shown: &Dataset) -> Result<()> {
    let info = DatasetInfo::of(shown);
    let near = |(one, other): (&f64, &f64)| (one - other).abs() < 1e-9;
    let spec = &card.spec;
    if spec.mean.iter().zip(&info.means).all(near) && spec.std.iter().zip(&info.stds).all(near) {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "the classifier was trained on {}, and {} has other training images (mean and spread differ), so nobody can say \
         which it has not seen; name the same data with --data",
        card.dataset,
        shown.name()
    )))
}

fn pair(networks: &Networks) -> Pair<'_> {
    Pair { classifier: &networks.classifier, trn: &networks.trn }
}

fn calibrated(networks: &Networks, clean: &Samples, dataset: &str, rate: f64) -> Result<Calibration> {
    let progress = bar(clean.ids.len() as u64, "set aside");
    let examined = pair(networks).examine(&clean.images, &mut |done| {
        progress.set_position(done as u64);
        go_on()
    });
    progress.finish_and_clear();
    let classifier = fingerprint(&[&networks.classifier.identity()])?;
    let trn = fingerprint(&[&networks.trn.tensors()])?;
    Calibration::new(&examined?.scores, (&classifier, &trn), dataset, rate)
}

fn measured(
    calibration: &Calibration,
    networks: &Networks,
    test: &Samples,
    plan: &Plan,
    adaptive: Adaptive,
) -> Result<MeasuredDetection> {
    let subjects = Subjects { images: &test.images, labels: &test.labels, ids: &test.ids };
    let (mut shown, mut progress) = (String::new(), ProgressBar::hidden());
    let found = measure_detection(
        calibration,
        &pair(networks),
        subjects,
        plan,
        adaptive,
        &mut |setting, done, total| {
            let name = setting.map_or("clean".into(), ToString::to_string);
            if shown != name {
                progress.finish_and_clear();
                progress = bar(total as u64, &name);
                shown = name;
            }
            progress.set_position(done as u64);
            go_on()
        },
    );
    progress.finish_and_clear();
    found
}

fn report(args: &CalibrateArgs, calibration: &Calibration, json: bool) -> CommandResult {
    let rate = calibration.false_alarm_rate;
    let threshold = calibration.threshold(rate)?;
    if json {
        let report = json!({
            "output": args.output, "dataset": calibration.dataset, "clean_images": calibration.clean_images,
            "false_alarm_rate": rate, "threshold": threshold, "measured": calibration.measured, "seed": args.seed,
        });
        println!("{report}");
        return Ok(());
    }
    println!(
        "{}: {} clean images that neither network was trained on; above a score of {threshold:.4} an image is flagged",
        calibration.dataset, calibration.clean_images
    );
    if let Some(measured) = &calibration.measured {
        println!("{}\n\n{DETECTION_WARNING}\n", table(measured, rate));
    }
    println!("{} written", args.output.display());
    Ok(())
}

fn table(measured: &MeasuredDetection, rate: f64) -> String {
    let mut text = format!(
        "false alarms on {} test images: {} %, at most {:.1} % promised on average (95 % intervals)\n\n{}",
        measured.false_alarms.total,
        measured.false_alarms,
        100.0 * rate,
        line(
            ["attack", "budget", "view", "images", "AUC", "detected, %", "missed and fooled"]
                .map(str::to_owned)
        ),
    );
    for curve in &measured.curves {
        text += "\n";
        text += &line([
            curve.attack.clone(),
            curve.budget.clone(),
            curve.view.clone(),
            curve.samples.to_string(),
            format!("{:.3}", curve.auc),
            curve.detected.to_string(),
            format!("{} of {}", curve.missed_and_fooled, curve.fooled),
        ]);
    }
    text
}

fn line([attack, budget, view, images, auc, detected, missed]: [String; 7]) -> String {
    format!("{attack:<14} {budget:<11} {view:<18} {images:>6} {auc:>6}  {detected:<18} {missed:>17}")
}
