//! `talion attack`: adversarial images from one attack, or from several in turn; `talion attacks`: all there are.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;
use talion_attacks::{
    Alarm, AttackSpec, AutoAttack, Batch, CATALOGUE, Cascade, Entry, Fooled, RunOptions, Stage, Tried,
    autoattack, comparisons,
};
use talion_core::{Archive, Budget, Classifier, Error, Norm, Objective, Result, Tensors, parse_fraction};
use talion_data::{Dataset, DatasetSpec};
use talion_defenses::{Defended, GradientMode};
use talion_eval::Proportion;
use talion_models::SearchPrecision;
use tch::{Device, Tensor};

use crate::{
    bundled::Networks,
    failure::CommandResult,
    monitor::{bar, catch_interrupts, go_on},
    samples::{Samples, fits, test_split},
};

/// Attack a classifier and keep the adversarial images.
///
/// A sample is done as soon as it is fooled; with several attacks each gets the samples that resisted those before, as
/// AutoAttack does. Images are attacked in shards, and what is finished is kept beside the output: after Ctrl-C, or a
/// kill, the same command with --resume goes on. The result of a sample does not depend on shards or on interruptions.
#[derive(Args)]
pub struct AttackArgs {
    /// One attack (`talion attacks` lists all), several separated by commas, or AutoAttack: autoattack,
    /// autoattack-plus, autoattack-rand.
    attack: String,
    /// The classifier; by default the bundled one.
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The restoration network in front of it; the bundled one where the classifier is the bundled one.
    #[arg(long, value_name = "FILE", requires = "model")]
    trn: Option<PathBuf>,
    /// What the attacker differentiates: oblivious (the bare classifier), bpda, detached or exact (through the defence).
    #[arg(long, default_value = "oblivious")]
    threat: GradientMode,
    /// Data set to take test images from; by default the bundled sample.
    #[arg(long)]
    data: Option<DatasetSpec>,
    /// Number of images: the first of the test split.
    #[arg(long, default_value_t = 200)]
    images: usize,
    /// How a change is measured: linf, l2, l1 or l0.
    #[arg(long, default_value = "linf")]
    norm: Norm,
    /// How large a change may be, in units of the [0, 1] image scale, such as 8/255 or 0.5.
    #[arg(long, default_value = "8/255", value_parser = parse_fraction)]
    eps: f64,
    /// Take every sample through the whole attack, instead of leaving it alone as soon as it is fooled: for images that
    /// other classifiers are to face, and for the smallest changes of minimum-norm attacks (with a large --eps).
    #[arg(long)]
    whole: bool,
    /// Make every image look like this class (by its number) instead of any wrong one.
    #[arg(long, value_name = "CLASS")]
    target: Option<i64>,
    /// In what gradients are taken and images are looked for: f32, or bf16 on processors that multiply it faster (AVX-512 BF16; on
    /// others it is f32 all the same). Whatever it is, an image counts only if it fools the classifier in f32, and an image that
    /// fools in bf16 alone is attacked again in f32. For attacks on the classifier itself.
    #[arg(long, default_value_t)]
    precision: SearchPrecision,
    /// Seed of every random draw.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the adversarial images go: safetensors with `adversarial`, `labels`, `ids` and `fooled` (the number of the
    /// attack that fooled each, -1 if it was wrong from the beginning, -2 if nothing fooled it).
    #[arg(short, long, value_name = "FILE", default_value = "adversarial.safetensors")]
    output: PathBuf,
    /// Go on from what an interrupted run left.
    #[arg(long)]
    resume: bool,
}

/// What a file of adversarial images says of itself. Two runs with equal headers are the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Header {
    kind: String,
    attack: String,
    attacks: Vec<AttackSpec>,
    threat: GradientMode,
    budget: Budget,
    target: Option<i64>,
    whole: bool,
    /// That of the search; files of before there was a choice were searched in f32.
    #[serde(default)]
    precision: SearchPrecision,
    seed: u64,
    images: usize,
    data: String,
    data_sha256: String,
    classifier: serde_json::Value,
    trn: Option<serde_json::Value>,
}

/// Samples attacked together; what is finished is kept after each.
const SHARD: usize = 128;
/// What `fooled` says of samples that were wrong from the beginning, and of those that nothing fooled.
const BENIGN: i64 = -1;
const NEVER: i64 = -2;

/// Runs the command.
pub fn run(args: &AttackArgs, json: bool) -> CommandResult {
    catch_interrupts();
    let device = Device::cuda_if_available();
    let budget = Budget::new(args.norm, args.eps)?;
    let which = named(&args.attack)?;
    if args.precision != SearchPrecision::F32 && args.threat != GradientMode::Oblivious {
        return Err(Error::Refused(format!(
            "--precision {} is for attacks on the classifier itself; through a defence attacks search in f32",
            args.precision
        ))
        .into());
    }
    if !args.precision.is_at_hand() {
        eprintln!("this processor does not multiply {} any faster: searching in f32", args.precision);
    }
    let networks = networks(args, device)?;
    let data = test_split(args.data.as_ref())?;
    fits(&networks.classifier, &data)?;
    let mut samples = Samples::first(&data, args.images, device)?;
    if let Some(target) = args.target {
        samples.labels = samples.labels.full_like(target);
    }
    let header = header(args, &which, &networks, &data, budget, samples.ids.len())?;
    let (defended, searcher);
    let victim: &dyn Classifier = match args.threat {
        GradientMode::Oblivious => {
            searcher = networks.classifier.searching_in(header.precision);
            &searcher
        }
        threat => {
            defended = Defended::new(&networks.classifier, &networks.trn, threat)?;
            &defended
        }
    };
    let started = std::time::Instant::now();
    let done = attacked(args, &which, victim, &samples, header)?;
    report(args, &which, &done, started.elapsed().as_secs_f64(), json)
}

fn named(attack: &str) -> Result<AutoAttack> {
    match attack {
        "autoattack" => Ok(AutoAttack::Standard),
        "autoattack-plus" => Ok(AutoAttack::Plus),
        "autoattack-rand" => Ok(AutoAttack::Rand),
        // the bare words would be taken for versions of AutoAttack
        "standard" | "plus" | "rand" => Err(Error::Unknown {
            what: "attack",
            found: attack.into(),
            known: format!("autoattack, autoattack-plus, autoattack-rand, {}", AttackSpec::EXAMPLES),
        }),
        _ => attack.parse(),
    }
}

fn networks(args: &AttackArgs, device: Device) -> Result<Networks> {
    match (&args.model, &args.trn) {
        (Some(model), None) if args.threat == GradientMode::Oblivious => {
            // the network in front is not looked at
            let bundled = Networks::bundled(device)?;
            Ok(Networks { classifier: talion_models::Model::load(model, device)?, ..bundled })
        }
        (model, trn) => Networks::load(model.as_deref(), None, trn.as_deref(), device),
    }
}

fn header(
    args: &AttackArgs,
    which: &AutoAttack,
    networks: &Networks,
    data: &Dataset,
    budget: Budget,
    images: usize,
) -> CommandResult<Header> {
    let trn = (args.threat != GradientMode::Oblivious).then(|| serde_json::to_value(networks.trn.card()));
    Ok(Header {
        kind: "adversarial-images".into(),
        attack: args.attack.clone(),
        attacks: which.attacks(budget.norm()),
        threat: args.threat,
        budget,
        target: args.target,
        whole: args.whole,
        precision: if args.precision.is_at_hand() { args.precision } else { SearchPrecision::F32 },
        seed: args.seed,
        images,
        data: data.name().into(),
        data_sha256: data.sha256().to_string(),
        classifier: serde_json::to_value(networks.classifier.card())?,
        trn: trn.transpose()?,
    })
}

/// What has been attacked so far.
struct Done {
    header: Header,
    images: Vec<Tensor>,
    fooled: Vec<i64>,
    stages: Vec<Stage>,
    adjustments: Vec<String>,
    alarms: Vec<Alarm>,
}

impl Done {
    /// Nothing, or what an interrupted run left.
    fn begin(header: Header, partial: &Path, resume: bool) -> Result<Self> {
        let empty = |header| Self {
            header,
            images: Vec::new(),
            fooled: Vec::new(),
            stages: Vec::new(),
            adjustments: Vec::new(),
            alarms: Vec::new(),
        };
        if !partial.exists() {
            return Ok(empty(header));
        }
        if !resume {
            return Err(Error::file(
                partial,
                "was left by an interrupted run; add --resume to go on from it, or remove it to start over",
            ));
        }
        let mut archive = Archive::<Header>::load(partial)?;
        if archive.header != header {
            return Err(Error::file(
                partial,
                "was left by a run with other settings; repeat those, or remove it to start over",
            ));
        }
        let mut take = |name: &str| {
            archive.tensors.remove(name).ok_or_else(|| {
                Error::file(partial, format!("lacks the tensor {name}; remove it to start over"))
            })
        };
        let (images, fooled) = (take("adversarial")?, Vec::<i64>::try_from(take("fooled")?)?);
        Ok(Self { images: vec![images], fooled, ..empty(header) })
    }

    fn add(&mut self, cascade: Cascade) {
        self.images.push(cascade.adversarial.to_device(Device::Cpu));
        self.fooled.extend(cascade.fooled.iter().map(|fooled| match fooled {
            Fooled::Never => NEVER,
            Fooled::Benign => BENIGN,
            Fooled::By(number) => *number as i64,
        }));
        for stage in cascade.stages {
            match self.stages.iter_mut().find(|other| other.attack == stage.attack) {
                Some(sum) => {
                    sum.given += stage.given;
                    sum.fooled += stage.fooled;
                    sum.passes += stage.passes;
                    sum.seconds += stage.seconds;
                }
                None => self.stages.push(stage),
            }
        }
        for adjustment in cascade.adjustments {
            if !self.adjustments.contains(&adjustment) {
                self.adjustments.push(adjustment);
            }
        }
    }

    fn save(&self, samples: &Samples, path: &Path) -> Result<()> {
        let rows = self.fooled.len();
        let ids: Vec<i64> = samples.ids.iter().take(rows).map(|id| id.cast_signed()).collect();
        let tensors = Tensors::from([
            ("adversarial".to_owned(), Tensor::cat(&self.images, 0)),
            ("labels".to_owned(), samples.labels.narrow(0, 0, rows as i64).to_device(Device::Cpu)),
            ("ids".to_owned(), Tensor::from_slice(&ids)),
            ("fooled".to_owned(), Tensor::from_slice(&self.fooled)),
        ]);
        Archive { header: self.header.clone(), tensors }.save(path)
    }

    /// Whether attacks without gradients fooled what those with gradients had left.
    fn masked(&self) -> Vec<Alarm> {
        let tried: Vec<Tried> = (0..)
            .zip(&self.header.attacks)
            .map(|(number, attack)| Tried {
                attack: attack.clone(),
                budget: self.header.budget,
                fooled: self.fooled.iter().map(|&fooled| fooled == number).collect(),
            })
            .collect();
        let alarms = comparisons(&tried);
        // in turn, an early attack takes what a later one would have fooled, so nothing else can be compared
        alarms.into_iter().filter(|alarm| matches!(alarm, Alarm::BlackBoxBetter { .. })).collect()
    }

    fn robust(&self) -> Proportion {
        let count = self.fooled.iter().filter(|&&fooled| fooled == NEVER).count() as u64;
        Proportion { count, total: self.fooled.len() as u64 }
    }
}

/// Attacks shard by shard, keeping what is done.
fn attacked(
    args: &AttackArgs,
    which: &AutoAttack,
    victim: &dyn Classifier,
    samples: &Samples,
    header: Header,
) -> Result<Done> {
    let partial = args.output.with_extension("partial");
    let (budget, total) = (header.budget, samples.ids.len());
    let mut done = Done::begin(header, &partial, args.resume)?;
    let objective =
        if args.target.is_some() { Objective::TargetedCrossEntropy } else { Objective::CrossEntropy };
    let names: Vec<String> = which.attacks(budget.norm()).iter().map(ToString::to_string).collect();
    let progress = bar(total as u64, "attack");
    let options = RunOptions { until_fooled: !args.whole };
    let first = done.fooled.len();
    for start in (first..total).step_by(SHARD) {
        let rows = SHARD.min(total - start);
        let part = |tensor: &Tensor| tensor.narrow(0, start as i64, rows as i64);
        let batch = Batch {
            images: &part(&samples.images),
            labels: &part(&samples.labels),
            ids: &samples.ids[start..start + rows],
            budget,
            objective,
            seed: args.seed,
            restart: 0,
        };
        if start == first {
            done.alarms = talion_attacks::alarms(victim, &batch)?;
        }
        let (robust, seen) = (done.robust().count as usize, start + rows);
        let cascade = autoattack(which, victim, &batch, &options, &mut |number, stage| {
            let name = names.get(number).map_or("", String::as_str);
            // samples that an earlier attack of this shard fooled are done, too
            progress.set_position((seen - (stage.total - stage.done)) as u64);
            let robust = robust + stage.total - (stage.done - stage.resisted);
            progress.set_message(format!("{name}, robust so far {robust} of {seen}"));
            go_on()
        })?;
        done.add(cascade);
        done.save(samples, &partial)?;
    }
    progress.finish_and_clear();
    done.alarms.extend(done.masked());
    done.save(samples, &args.output)?;
    if partial.exists() {
        std::fs::remove_file(&partial).map_err(Error::io(&partial))?;
    }
    Ok(done)
}

fn report(args: &AttackArgs, which: &AutoAttack, done: &Done, seconds: f64, json: bool) -> CommandResult {
    let robust = done.robust();
    let wrong = done.fooled.iter().filter(|&&fooled| fooled == BENIGN).count() as u64;
    let clean = Proportion { count: robust.total - wrong, total: robust.total };
    if json {
        let report = json!({
            "header": done.header, "clean": clean, "robust": robust, "stages": done.stages,
            "adjustments": done.adjustments, "alarms": done.alarms, "seconds": seconds, "output": args.output,
        });
        println!("{report}");
        return Ok(());
    }
    let budget = done.header.budget;
    println!("{} at {budget}, {} images of {}", args.attack, robust.total, done.header.data);
    println!("attacker: {}\n", args.threat.description());
    for stage in &done.stages {
        println!(
            "  {:<22} fooled {:>5} of {:>5}   {:>7.1} s   {} forward and {} backward passes",
            stage.attack,
            stage.fooled,
            stage.given,
            stage.seconds,
            stage.passes.forward,
            stage.passes.backward
        );
    }
    for adjustment in &done.adjustments {
        println!("  note: {adjustment}");
    }
    for alarm in &done.alarms {
        println!("  ALARM: {alarm}");
    }
    let kept = if args.target.is_some() { "not made to look like the target" } else { "right" };
    println!("\n{kept}: {clean} before, {robust} after {}", which_text(which, &args.attack));
    println!("{} written", args.output.display());
    Ok(())
}

fn which_text(which: &AutoAttack, attack: &str) -> String {
    match which {
        AutoAttack::Custom(_) => attack.to_owned(),
        version => format!("AutoAttack {version}"),
    }
}

/// List all attacks: names, norms, what they see, what they cost, where they come from.
#[derive(Args)]
pub struct AttacksArgs {}

/// Lists the attacks.
pub fn list(_args: &AttacksArgs, json: bool) -> CommandResult {
    let cost =
        |entry: &Entry| entry.kind.parse::<AttackSpec>().map(|spec| talion_attacks::Attack::cost(&spec));
    if json {
        let all = CATALOGUE
            .iter()
            .map(|entry| Ok(json!({ "attack": entry, "cost": cost(entry)? })))
            .collect::<Result<Vec<_>>>()?;
        println!("{}", serde_json::to_string(&all)?);
        return Ok(());
    }
    println!(
        "{:<11} {:<17} {:<10} {:<8} {:>7} {:>7}  paper",
        "name", "norms", "sees", "targets", "forward", "backward"
    );
    for entry in CATALOGUE {
        let norms: Vec<String> = entry.norms.iter().map(ToString::to_string).collect();
        let passes = cost(entry)?;
        println!(
            "{:<11} {:<17} {:<10} {:<8} {:>7} {:>7}  {}",
            entry.kind,
            norms.join(" "),
            format!("{:?}", entry.sees).to_lowercase(),
            if entry.targeted { "yes" } else { "no" },
            passes.forward,
            passes.backward,
            if entry.paper.is_empty() { entry.title } else { entry.paper },
        );
    }
    println!(
        "\nForward and backward: passes a sample that resists to the end, with default settings and one start. A name takes\n\
         steps, restarts and settings: pgd-100x5, pgd-7:step=2/255, apgd-t-50:targets=3, apgd-ce-100:faithful."
    );
    Ok(())
}
