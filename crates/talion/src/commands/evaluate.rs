//! `talion evaluate`: how many images survive which attacker.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use talion_core::{Budget, Error, write_atomically};
use talion_data::Dataset;
use talion_eval::{
    Advance, Plan, Player, Protocol, RunConfig, RunFolder, RunHeader, Scope, Setting, Subjects, Summary,
    Wait, carry_out, exhibits, keep_exhibits, keep_latencies, kept_exhibits, kept_latencies, latencies,
    markdown, report_markdown, summarise, write_report,
};
use talion_models::{Model, import::STATED_ACCURACY};
use tch::Device;

use crate::{
    cast::{BASE, Cast, CastArgs},
    commands::model::{accuracy, far_below},
    failure::CommandResult,
    fronts::Named,
    machine,
    monitor::{bar, catch_interrupts, go_on},
    samples::{Samples, fits},
    show::{OBLIVIOUS_WARNING, ORACLE_WARNING, contenders, measured},
};

/// Measure a classifier bare and defended, under attacks that do not see the defence and under ones that do.
///
/// A protocol decides which attacks are run. Every outcome is kept in a run folder: stopped or killed, the same command
/// goes on where it was. At the end a report is written there. The bundled pair is measured on the bundled images unless
/// files are named; the first images of the test split are taken, so that nobody can choose them.
///
/// With --attack, single attacks are run instead, and nothing is kept.
#[derive(Args)]
pub struct EvaluateArgs {
    #[command(flatten)]
    cast: CastArgs,
    /// quick (minutes), paper (attackers who do not know the defence, as in the TRN paper), standard (AutoAttack in every
    /// view, transfer, black box: hours), full (also curves, restarts, step sizes: more hours).
    #[arg(long, default_value = "quick")]
    protocol: Protocol,
    /// The budget, [NORM:]EPSILON, such as 8/255 or l2:0.5.
    #[arg(long, default_value = "8/255")]
    budget: Budget,
    /// Number of images; by default the protocol's (quick 192, others 1000).
    #[arg(long)]
    images: Option<usize>,
    /// Number of images that attacks through a defence are run on, the first of them; by default the protocol's (quick 32,
    /// standard 128, full 256).
    #[arg(long, value_name = "N")]
    adaptive_images: Option<usize>,
    /// Where the run is kept; by default runs/DATA-PROTOCOL-SEED.
    #[arg(long, value_name = "FOLDER")]
    run: Option<PathBuf>,
    /// If another process works on the same run, wait for it instead of failing.
    #[arg(long)]
    wait: bool,
    /// Instead of a protocol, an attack: [THREAT:]ATTACK@[NORM:]EPSILON, for instance `pgd-20@8/255`,
    /// `exact:pgd-40x2@8/255`, `oblivious:pgd-20@l2:0.5`; may be given several times. THREAT says what the attacker
    /// differentiates: oblivious (default; the bare classifier), bpda, detached, exact.
    #[arg(long = "attack", value_name = "SETTING", conflicts_with_all = ["protocol", "run", "wait"])]
    attacks: Vec<Setting>,
    /// Diagnosis, with --attack: replace the TRN's map by that of the true label, which no defender has. Only for networks
    /// trained with the estimators predicted and coarse1 to coarse4; every output says so.
    #[arg(long, requires = "attacks")]
    oracle: bool,
    /// With --attack: also write the result, with every sample's outcome, as JSON to this file.
    #[arg(short, long, value_name = "FILE", requires = "attacks")]
    output: Option<PathBuf>,
    /// Seed of every random start.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs the command.
pub fn run(args: &EvaluateArgs, json: bool) -> CommandResult {
    catch_interrupts();
    if args.attacks.is_empty() { by_protocol(args, json) } else { by_attacks(args, json) }
}

fn by_protocol(args: &EvaluateArgs, json: bool) -> CommandResult {
    let device = Device::cuda_if_available();
    let data = args.cast.dataset()?;
    let (many, few) = args.protocol.samples();
    let samples = Samples::first(&data, args.images.unwrap_or(many), device)?;
    let cast = Cast::load(&args.cast, device)?;
    fits(&cast.networks.classifier, &data)?;
    warn_if_far_below(&cast.networks.classifier, &samples)?;
    let entrants = cast.entrants()?;
    let players = entrants.iter().map(|entrant| entrant.player.clone()).collect();
    let images = (samples.ids.len(), args.adaptive_images.unwrap_or(few));
    let header = header(args, players, &cast.surrogates(), &data, images)?;
    let path = args
        .run
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("runs/{}-{}-{}", data.name(), args.protocol, args.seed)));
    let mut folder = open(&path, &header, args.wait)?;
    let subjects = Subjects { images: &samples.images, labels: &samples.labels, ids: &samples.ids };
    let progress = bar(0, "evaluate");
    let carried = carry_out(&mut folder, &entrants, subjects, &mut |advance| {
        show(&progress, advance);
        go_on()
    });
    progress.finish_and_clear();
    carried?;
    if kept_exhibits(&path)?.is_empty() {
        keep_exhibits(&path, &exhibits(&folder, &entrants, subjects, (4, 2))?)?;
    }
    if kept_latencies(&path)?.is_empty() {
        keep_latencies(&path, &latencies(&entrants, &samples.images)?)?;
    }
    let summary = summarise(&folder, kept_latencies(&path)?, kept_exhibits(&path)?)?;
    let files = write_report(std::slice::from_ref(&summary), &path.join("report.html"))?;
    say(&summary, &files, json)
}

/// An imported classifier that is fed wrongly looks weak, and whatever defends it looks strong.
fn warn_if_far_below(classifier: &Model, samples: &Samples) -> Result<(), Error> {
    if !classifier.card().metrics.contains_key(STATED_ACCURACY) {
        return Ok(());
    }
    let measured = accuracy(samples, &|images| classifier.try_logits(images))?;
    if let Some(stated) = far_below(classifier, measured) {
        eprintln!(
            "warning: the classifier is right on {:.1} % of these images, far below the {:.1} % that its description states; \
             `talion model check` looks for the cause",
            100.0 * measured.share(),
            100.0 * stated
        );
    }
    Ok(())
}

fn show(progress: &indicatif::ProgressBar, advance: &Advance<'_>) {
    progress.set_length(advance.total as u64);
    progress.set_position(advance.done as u64);
    progress.set_prefix(format!("{}/{}", advance.number + 1, advance.experiments));
    progress.set_message(advance.what.to_owned());
}

/// The run in a folder, begun if there is none.
fn open(path: &Path, header: &RunHeader, wait: bool) -> Result<RunFolder, Error> {
    let mut told = false;
    let mut waiting = || {
        if !told {
            eprintln!("waiting for another process that works on {}", path.display());
            told = true;
        }
        go_on()
    };
    let wait = if wait { Wait::For(&mut waiting) } else { Wait::No };
    if !RunFolder::exists(path) {
        return RunFolder::create(path, header, wait);
    }
    let mut folder = RunFolder::open(path, wait)?;
    if folder.header().config != header.config {
        return Err(Error::file(
            path,
            "holds a run with other settings, networks or data; name another folder with --run, or repeat its command \
             (talion runs show)",
        ));
    }
    for (chunk, problem) in folder.broken_chunks()? {
        eprintln!("{problem}\nthese {} samples are attacked again", chunk.rows);
        folder.forget(&chunk)?;
    }
    Ok(folder)
}

fn header(
    args: &EvaluateArgs,
    players: Vec<Player>,
    names: &[String],
    data: &Dataset,
    (samples, adaptive): (usize, usize),
) -> Result<RunHeader, Error> {
    let (surrogates, contenders): (Vec<_>, Vec<_>) =
        players.into_iter().partition(|player| names.contains(&player.name));
    let defended: Vec<String> =
        contenders.iter().filter(|player| player.defended).map(|player| player.name.clone()).collect();
    let scope = Scope {
        base: BASE,
        defended: &defended,
        surrogates: names,
        budget: args.budget,
        samples,
        adaptive: adaptive.min(samples),
    };
    let config = RunConfig {
        protocol: args.protocol.to_string(),
        data: data.name().into(),
        data_sha256: data.sha256().to_string(),
        class_names: data.class_names().to_vec(),
        budget: args.budget,
        samples,
        seed: args.seed,
        contenders,
        surrogates,
        experiments: args.protocol.experiments(&scope)?,
    };
    Ok(RunHeader { config, environment: machine::environment(Device::cuda_if_available()) })
}

fn say(summary: &Summary, files: &[PathBuf], json: bool) -> CommandResult {
    if json {
        println!("{}", serde_json::to_string(summary)?);
        return Ok(());
    }
    println!("{}", report_markdown(std::slice::from_ref(summary)));
    files.iter().for_each(|file| println!("{} written", file.display()));
    Ok(())
}

/// The attacks of the command line, once, without keeping anything.
fn by_attacks(args: &EvaluateArgs, json: bool) -> CommandResult {
    let device = Device::cuda_if_available();
    let mut cast = Cast::load(&args.cast, device)?;
    if args.oracle {
        cast.networks.trn = cast.networks.trn.with_oracle()?;
    }
    let networks = &cast.networks;
    let data = args.cast.dataset()?;
    fits(&networks.classifier, &data)?;
    let samples = Samples::first(&data, args.images.unwrap_or(200), device)?;
    warn_if_far_below(&networks.classifier, &samples)?;
    let plan = Plan { settings: args.attacks.clone(), seed: args.seed };
    let mut all = contenders(networks);
    all.extend(cast.fronts.iter().map(Named::contender));
    let rows = measured(&networks.classifier, &all, &samples, &plan)?;
    let report = json!({
        "data": data.name(), "images": samples.ids.len(), "seed": args.seed, "rows": rows,
        "adaptive": plan.is_adaptive(), "oracle": args.oracle, "trn": networks.trn.card(), "classifier": networks.classifier.card(),
    });
    if let Some(path) = &args.output {
        write_atomically(path, report.to_string().as_bytes())?;
    }
    if json {
        println!("{report}");
        return Ok(());
    }
    println!("{}, first {} test images, accuracy in % (95 % interval)\n", data.name(), samples.ids.len());
    println!("{}", markdown(&rows));
    if args.oracle {
        println!("{ORACLE_WARNING}\n");
    }
    if plan.is_adaptive() {
        println!("{OBLIVIOUS_WARNING}");
    } else {
        println!(
            "NO ATTACKER HERE KNOWS THE DEFENCE: these figures say nothing about robustness. Add --attack exact:..."
        );
    }
    Ok(())
}
