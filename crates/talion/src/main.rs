//! The command line: says what happened, in which file, and what to do.

mod ablation;
mod bundled;
mod cast;
mod commands;
mod failure;
mod fronts;
mod machine;
mod monitor;
mod samples;
mod show;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

const AFTER_HELP: &str = "\
Start with `talion demo`: it needs no data and takes a minute.

Exit codes:
  0    done
  1    failed
  2    wrong usage
  130  interrupted; what was finished is kept, and the same command goes on from there";

/// Defends image classifiers against adversarial examples, and tells the truth about how well.
#[derive(Parser)]
#[command(version, after_help = AFTER_HELP, max_term_width = 110)]
struct Arguments {
    /// Print results as JSON on standard output; progress stays on standard error.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Attack and restore bundled images with the pretrained pair, and draw what happened.
    Demo(commands::demo::DemoArgs),
    /// Fetch and describe data sets.
    Data(commands::data::DataArgs),
    /// Train a classifier, or a restoration network for one.
    Train(commands::train::TrainArgs),
    /// Attack a classifier and keep the adversarial images.
    Attack(commands::attack::AttackArgs),
    /// List all attacks: names, norms, what they see, what they cost, where they come from.
    Attacks(commands::attack::AttacksArgs),
    /// Measure a classifier bare and defended, under attacks that do not see the defence and under ones that do.
    Evaluate(commands::evaluate::EvaluateArgs),
    /// Measure what a network's gradient maps show of attacks, and how much of them it takes away.
    Maps(commands::maps::MapsArgs),
    /// Learn from clean images what suspicion is common, and measure what of attacks stands out.
    Calibrate(commands::calibrate::CalibrateArgs),
    /// List, show, compare and check the runs that `evaluate` keeps.
    Runs(commands::runs::RunsArgs),
    /// Make a page from one run, or from several to compare them.
    Report(commands::runs::ReportArgs),
    /// Look at classifiers, and bring your own: ONNX, TorchScript, PyTorch weights.
    Model(commands::model::ModelArgs),
    /// Write classifier, gradient maps and restoration as one plain ONNX file.
    Export(commands::export::ExportArgs),
    /// Restore image files.
    Restore(commands::restore::RestoreArgs),
    /// Serve the guard over HTTP, with a page that shows what it does.
    Serve(Box<commands::serve::ServeArgs>),
    /// From data to table: classifier, one-stream twin, TRN, evaluation.
    Reproduce(commands::reproduce::ReproduceArgs),
    /// What each part of the restoration network is worth: change one at a time, train, measure.
    Ablate(commands::ablate::AblateArgs),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let json = arguments.json;
    let result = match arguments.command {
        Command::Demo(args) => commands::demo::run(&args, json),
        Command::Data(args) => commands::data::run(&args, json),
        Command::Train(args) => commands::train::run(&args, json),
        Command::Attack(args) => commands::attack::run(&args, json),
        Command::Attacks(args) => commands::attack::list(&args, json),
        Command::Evaluate(args) => commands::evaluate::run(&args, json),
        Command::Maps(args) => commands::maps::run(&args, json),
        Command::Calibrate(args) => commands::calibrate::run(&args, json),
        Command::Runs(args) => commands::runs::run(&args, json),
        Command::Report(args) => commands::runs::report(&args, json),
        Command::Model(args) => commands::model::run(&args, json),
        Command::Export(args) => commands::export::run(&args, json),
        Command::Restore(args) => commands::restore::run(&args, json),
        Command::Serve(args) => commands::serve::run(&args, json),
        Command::Reproduce(args) => commands::reproduce::run(&args, json),
        Command::Ablate(args) => commands::ablate::run(&args, json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(error.as_ref()),
    }
}
