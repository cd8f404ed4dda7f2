/*!
The worker that times talion's own work for `bench/speed`, and the files that both sides of the comparison read.

Started without a command it reads requests from standard input, one JSON object a line, and answers each with one line
on standard output (protocol.rs has them all). A driver keeps it beside workers of other programs and gives them the
same jobs in turn, so loading, compiling and starting are never a part of what is compared.

`make-model`, `make-data` and `data` write what the workers load: networks of any width and size with fresh weights, random
images, and the first images of a data set.
*/

mod about;
mod error;
mod jobs;
mod loaded;
mod make;
mod protocol;
mod worker;

use std::{io, process::ExitCode};

use clap::{Parser, Subcommand};

const AFTER_HELP: &str = "\
Without a command it is a worker: requests come on standard input and answers go to standard output, a JSON object a line.

Example:
  talion-bench make-model resnet18-w16 -o model.safetensors
  talion-bench make-data --count 64 -o data.safetensors
  printf '%s\\n' '{\"op\":\"load\",\"model\":\"model.safetensors\",\"data\":\"data.safetensors\"}' \\
    '{\"op\":\"run\",\"job\":{\"kind\":\"gradient\",\"batch\":32,\"repeat\":4}}' | talion-bench --threads 2";

/// Times talion's own work, for comparisons with other programs.
#[derive(Parser)]
#[command(version, after_help = AFTER_HELP, max_term_width = 110)]
struct Arguments {
    /// Threads of libtorch.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=1024))]
    threads: i32,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What makes the files that workers load.
#[derive(Subcommand)]
enum Command {
    /// Write a classifier with fresh weights.
    MakeModel(make::ModelArgs),
    /// Write random images with labels.
    MakeData(make::DataArgs),
    /// Write the first images of a data set.
    Data(make::ExportArgs),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // before anything else: libtorch refuses to change the second number once it has worked
    tch::set_num_threads(arguments.threads);
    tch::set_num_interop_threads(arguments.threads);
    let result = match &arguments.command {
        None => worker::serve(arguments.threads, io::stdin().lock(), io::stdout().lock()),
        Some(Command::MakeModel(args)) => make::model(args),
        Some(Command::MakeData(args)) => make::data(args),
        Some(Command::Data(args)) => make::export(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("talion-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
