//! `talion runs`: what is kept of evaluations; `talion report`: pages made from it.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;
use talion_core::Error;
use talion_eval::{
    Difference, RunEntry, RunFolder, Subjects, Summary, diff, kept_exhibits, kept_latencies, list_runs,
    report_markdown, summarise, verify, write_report,
};
use tch::Device;

use crate::{
    cast::{Cast, CastArgs},
    failure::CommandResult,
    monitor::{bar, catch_interrupts, go_on},
    samples::Samples,
};

/// List, show, compare and check the runs that `talion evaluate` keeps.
#[derive(Args)]
pub struct RunsArgs {
    #[command(subcommand)]
    command: RunsCommand,
}

#[derive(Subcommand)]
enum RunsCommand {
    /// List the runs in a folder.
    List {
        /// The folder.
        #[arg(default_value = "runs")]
        folder: PathBuf,
    },
    /// Show what a run says so far.
    Show {
        /// The run's folder.
        run: PathBuf,
    },
    /// Compare two runs, outcome by outcome: two runs of one configuration agree in all, on one machine.
    ///
    /// Exits with 1 if they differ.
    Diff {
        /// A run's folder.
        first: PathBuf,
        /// Another run's folder.
        second: PathBuf,
    },
    /// Show the networks the kept images again: every image has to lie inside budget and box, and every network has to say
    /// what was kept.
    ///
    /// Name the files that the run was made with. Exits with 1 if anything does not hold.
    Verify {
        /// The run's folder.
        run: PathBuf,
        #[command(flatten)]
        cast: Box<CastArgs>,
    },
}

/// Make a page from one run, or from several to compare them.
///
/// One HTML file that needs no network, with Markdown, CSV and JSON beside it.
#[derive(Args)]
pub struct ReportArgs {
    /// The runs' folders; the first is the main one.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The page; the other files get its name with other endings.
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    output: PathBuf,
}

/// Runs `talion runs`.
pub fn run(args: &RunsArgs, json: bool) -> CommandResult {
    match &args.command {
        RunsCommand::List { folder } => list(folder, json),
        RunsCommand::Show { run } => show(run, json),
        RunsCommand::Diff { first, second } => compare(first, second, json),
        RunsCommand::Verify { run, cast } => check(run, cast, json),
    }
}

/// Runs `talion report`.
pub fn report(args: &ReportArgs, json: bool) -> CommandResult {
    let summaries = args.runs.iter().map(|run| summary(run)).collect::<Result<Vec<_>, _>>()?;
    let files = write_report(&summaries, &args.output)?;
    if json {
        println!("{}", json!({ "files": files }));
    } else {
        files.iter().for_each(|file| println!("{} written", file.display()));
    }
    Ok(())
}

fn summary(run: &Path) -> Result<Summary, Error> {
    summarise(&RunFolder::read(run)?, kept_latencies(run)?, kept_exhibits(run)?)
}

fn list(folder: &Path, json: bool) -> CommandResult {
    // before the first evaluation there is no folder
    let runs = if folder.exists() { list_runs(folder)? } else { Vec::new() };
    if json {
        let runs: Vec<_> = runs
            .iter()
            .map(|entry| match &entry.state {
                Ok(state) => json!({
                    "path": entry.path, "header": state.header, "done": state.progress.share(),
                    "complete": state.progress.complete(),
                }),
                Err(error) => json!({ "path": entry.path, "error": error.to_string() }),
            })
            .collect();
        println!("{}", serde_json::to_string(&runs)?);
        return Ok(());
    }
    if runs.is_empty() {
        println!("no runs in {}; `talion evaluate` makes one", folder.display());
    }
    for RunEntry { path, state } in runs {
        match state {
            Ok(state) => {
                let config = &state.header.config;
                println!(
                    "{}  {} on {}, {} images, seed {}, {:.0} % done",
                    path.display(),
                    config.protocol,
                    config.data,
                    config.samples,
                    config.seed,
                    100.0 * state.progress.share()
                );
            }
            Err(error) => println!("{}  DAMAGED: {error}", path.display()),
        }
    }
    Ok(())
}

fn show(run: &Path, json: bool) -> CommandResult {
    let summary = summary(run)?;
    if json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        println!("{}", report_markdown(std::slice::from_ref(&summary)));
    }
    Ok(())
}

fn compare(first: &Path, second: &Path, json: bool) -> CommandResult {
    let difference = diff(&RunFolder::read(first)?, &RunFolder::read(second)?)?;
    if json {
        println!("{}", serde_json::to_string(&difference)?);
    } else {
        say(&difference);
    }
    if difference.agrees() { Ok(()) } else { Err(Box::new(Error::Refused("the runs differ".into()))) }
}

fn say(difference: &Difference) {
    let or_none = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".into());
    for field in &difference.fields {
        println!("configuration, {}: {} and {}", field.field, or_none(&field.first), or_none(&field.second));
    }
    for experiment in difference.experiments.iter().filter(|experiment| !experiment.agrees()) {
        let [first, second] = experiment.alone;
        println!(
            "{}: {} of {} outcomes differ, {first} and {second} are in one run only, {} images differ",
            experiment.experiment, experiment.different, experiment.both, experiment.images
        );
        for (one, other) in &experiment.shown {
            println!(
                "  sample {}, {}: class {} and class {}",
                one.row, one.contender, one.predicted, other.predicted
            );
        }
    }
    for (alarms, which) in difference.alarms.iter().zip(["first", "second"]) {
        alarms.iter().for_each(|alarm| println!("only in the {which} run: {alarm}"));
    }
    let outcomes: usize = difference.experiments.iter().map(|experiment| experiment.both).sum();
    if difference.agrees() {
        let experiments = difference.experiments.len();
        println!("the same: {outcomes} outcomes in {experiments} experiments, and every image, bit for bit");
    }
}

fn check(run: &Path, args: &CastArgs, json: bool) -> CommandResult {
    catch_interrupts();
    let folder = RunFolder::read(run)?;
    let config = &folder.header().config;
    let data = args.dataset()?;
    if *data.sha256() != *config.data_sha256 {
        let problem = format!("was made on other images ({}); name them with --data", config.data);
        return Err(Box::new(Error::file(run, problem)));
    }
    let device = Device::cuda_if_available();
    let samples = Samples::first(&data, config.samples, device)?;
    let cast = Cast::load(args, device)?;
    let subjects = Subjects { images: &samples.images, labels: &samples.labels, ids: &samples.ids };
    let progress = bar(0, "verify");
    let wrong = verify(&folder, &cast.entrants()?, subjects, &mut |advance| {
        progress.set_length(advance.experiments as u64);
        progress.set_position(advance.number as u64);
        progress.set_message(advance.what.to_owned());
        go_on()
    });
    progress.finish_and_clear();
    let wrong = wrong?;
    if json {
        println!("{}", json!({ "run": run, "wrong": wrong }));
    } else if wrong.is_empty() {
        println!("every kept image is inside its budget, and every network says what was kept");
    } else {
        wrong.iter().for_each(|line| println!("{line}"));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Box::new(Error::file(run, format!("does not hold in {} places", wrong.len()))))
}
