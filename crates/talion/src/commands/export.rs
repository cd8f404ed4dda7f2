//! `talion export`: the whole defence as one plain ONNX file.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Args;
use serde::Serialize;
use serde_json::json;
use talion_core::{Archive, Error, Result, Tensors};
use talion_data::{DatasetSpec, Split};
use talion_defenses::{Defended, GradientMode, Trn, export};
use talion_models::Model;
use talion_onnx::{Graph, Program};
use tch::{Device, Kind, Tensor};

use crate::{
    bundled::Networks,
    failure::CommandResult,
    samples::{Samples, fits},
};

/// Write the defended classifier (classifier, gradient maps and TRN) as one plain ONNX file.
///
/// The gradient maps are written out as ordinary operators of operator set 17, so ONNX Runtime, TensorRT, OpenVINO or a
/// browser runs the whole defence without autograd. Input `images` [N, C, H, W], f32 from 0 to 1; outputs `logits` (of the
/// defended classifier), `restored` (the images it saw) and `undefended` (the bare classifier's logits). Batches may have
/// any size; height and width are fixed. The file is run on test images before the command says that it is done.
#[derive(Args)]
pub struct ExportArgs {
    /// The classifier; without it the bundled pair for Fashion-MNIST is exported.
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The restoration network trained for it.
    #[arg(long, value_name = "FILE")]
    trn: Option<PathBuf>,
    /// Export the bare classifier alone.
    #[arg(long, conflicts_with = "trn")]
    bare: bool,
    /// Height and width of the images; by default the classifier's.
    #[arg(long, value_parser = super::model::size, value_name = "HxW")]
    size: Option<[i64; 2]>,
    /// Where to write.
    #[arg(short, long, value_name = "FILE", default_value = "defended.onnx")]
    output: PathBuf,
    /// Test images to compare the file's answers with talion's on; by default the bundled sample where it fits, else grey
    /// noise.
    #[arg(long)]
    data: Option<DatasetSpec>,
    /// How many of them.
    #[arg(long, default_value_t = 64)]
    images: usize,
    /// Also keep these images and talion's own answers, as safetensors, for checks in another runtime.
    #[arg(long, value_name = "FILE")]
    samples: Option<PathBuf>,
}

/// How far the file's answers are from talion's.
#[derive(Serialize)]
struct Compared {
    images: usize,
    /// By output, the largest absolute difference.
    largest: BTreeMap<String, f64>,
    /// By output, the images with a difference above 1e-4.
    above: BTreeMap<String, i64>,
    /// Images whose class differs.
    disagreements: i64,
    seconds_exported: f64,
    seconds_native: f64,
}

/// What a file of samples says of itself.
#[derive(Serialize, serde::Deserialize)]
struct SamplesHeader {
    kind: String,
    model: String,
}

/// Differences up to here are rounding: a graph adds in another order.
const ROUNDING: f64 = 1e-4;
/// The share of images on which rounding may be larger. The gradient of cross-entropy at a label that the classifier is sure
/// of is one minus a probability close to one: in f32 its last digits, and so the map made of it, are rounding themselves.
const SATURATED: f64 = 0.25;
/// The share of images whose class may differ for that reason.
const TORN: f64 = 0.02;

/// Runs the command.
pub fn run(args: &ExportArgs, json: bool) -> CommandResult {
    let device = Device::cuda_if_available();
    let (model, trn) = networks(args, device)?;
    let size = args.size.unwrap_or(model.card().image_size);
    let bare = model.graph(size)?;
    let graph = match &trn {
        Some(trn) => export(&bare, trn, size)?,
        None => bare,
    };
    let images = images(args, &model, size)?;
    talion_onnx::write(&graph, &args.output, &metadata(&model, trn.as_ref()))?;
    let read = talion_onnx::read(&args.output)?;
    let operators = operators(&read);
    let native = native(&model, trn.as_ref(), &images)?;
    let compared = compare(read, &images, &native)?;
    if let Some(path) = &args.samples {
        keep(path, &args.output, &images, &native)?;
    }
    let bytes = std::fs::metadata(&args.output).map_err(Error::io(&args.output))?.len();
    if json {
        let report =
            json!({ "file": args.output, "bytes": bytes, "operators": operators, "compared": compared });
        println!("{report}");
    } else {
        say(args, bytes, &operators, &compared);
    }
    if agrees(&compared) {
        return Ok(());
    }
    Err(Error::file(&args.output, "answers otherwise than talion; do not use it, and report this").into())
}

fn agrees(compared: &Compared) -> bool {
    let share = |count: i64| count as f64 / compared.images.max(1) as f64;
    // NaN is no agreement either
    compared.largest.values().all(|largest| largest.is_finite())
        && compared.above.values().all(|&count| share(count) <= SATURATED)
        && share(compared.disagreements) <= TORN
}

fn networks(args: &ExportArgs, device: Device) -> Result<(Model, Option<Trn>)> {
    if let (true, Some(path)) = (args.bare, &args.model) {
        return Ok((Model::load(path, device)?, None));
    }
    let networks = Networks::load(args.model.as_deref(), None, args.trn.as_deref(), device)?;
    Ok((networks.classifier, (!args.bare).then_some(networks.trn)))
}

fn metadata(model: &Model, trn: Option<&Trn>) -> Vec<(String, String)> {
    let card = model.card();
    let mut facts = vec![
        ("talion.classifier".to_owned(), card.spec.architecture.to_string()),
        ("talion.dataset".to_owned(), card.dataset.clone()),
        ("talion.classes".to_owned(), card.class_names.join(",")),
        ("talion.input".to_owned(), "f32 RGB or grey, 0 to 1, NCHW; standardised inside".to_owned()),
    ];
    if let Some(trn) = trn {
        facts.push(("talion.estimator".to_owned(), trn.card().spec.estimator.to_string()));
    }
    facts
}

/// Images to compare on: of a data set, or noise, the same whenever asked.
fn images(args: &ExportArgs, model: &Model, size: [i64; 2]) -> CommandResult<Tensor> {
    let channels = model.card().spec.channels;
    let sample = || talion_data::fashion_mnist_sample();
    let fitting = channels == 1 && size == [28, 28];
    let data = match &args.data {
        Some(spec) => Some(talion_data::load(spec, Split::Test, None)?),
        None if fitting => Some(sample()?),
        None => None,
    };
    let Some(data) = data else {
        let ids: Vec<u64> = (0..args.images.max(1) as u64).collect();
        let noise = talion_core::uniform_noise(&[channels, size[0], size[1]], &ids, 1, "export", 0);
        return Ok((noise * 0.5 + 0.5).clamp(0.0, 1.0).to_device(talion_core::Classifier::device(model)));
    };
    fits(model, &data)?;
    Ok(Samples::first(&data, args.images, talion_core::Classifier::device(model))?.images)
}

/// talion's own answers, by the names of the file's outputs.
fn native(model: &Model, trn: Option<&Trn>, images: &Tensor) -> Result<Answers> {
    let started = Instant::now();
    let mut outputs = Tensors::new();
    let Some(trn) = trn else {
        outputs.insert("logits".into(), rows(images, &|batch| model.try_logits(batch))?);
        return Ok(Answers { outputs, seconds: started.elapsed().as_secs_f64() });
    };
    let defended = Defended::new(model, trn, GradientMode::Exact)?;
    let restored = rows(images, &|batch| Ok(defended.restore(batch)))?;
    outputs.insert("logits".into(), rows(&restored, &|batch| model.try_logits(batch))?);
    let seconds = started.elapsed().as_secs_f64();
    outputs.insert("restored".into(), restored);
    outputs.insert("undefended".into(), rows(images, &|batch| model.try_logits(batch))?);
    Ok(Answers { outputs, seconds })
}

struct Answers {
    outputs: Tensors,
    seconds: f64,
}

const ROWS: i64 = 32;

fn rows(images: &Tensor, answer: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let total = images.size()[0];
    let mut parts = Vec::new();
    for start in (0..total).step_by(ROWS as usize) {
        parts.push(tch::no_grad(|| answer(&images.narrow(0, start, ROWS.min(total - start))))?);
    }
    Ok(Tensor::cat(&parts, 0))
}

fn compare(graph: Graph, images: &Tensor, native: &Answers) -> Result<Compared> {
    let names: Vec<String> = graph.outputs.iter().map(|port| port.name.clone()).collect();
    let program = Program::new(graph, images.device())?;
    let started = Instant::now();
    let mut parts: Vec<Vec<Tensor>> = names.iter().map(|_| Vec::new()).collect();
    let total = images.size()[0];
    for start in (0..total).step_by(ROWS as usize) {
        let batch = images.narrow(0, start, ROWS.min(total - start));
        for (part, output) in parts.iter_mut().zip(tch::no_grad(|| program.run(&[batch]))?) {
            part.push(output);
        }
    }
    let seconds_exported = started.elapsed().as_secs_f64();
    let (mut largest, mut above, mut disagreements) = (BTreeMap::new(), BTreeMap::new(), 0);
    for (name, part) in names.iter().zip(parts) {
        let found = Tensor::cat(&part, 0);
        let Some(expected) = native.outputs.get(name) else { continue };
        let differences = (&found - expected).abs().flatten(1, -1).amax([1_i64].as_slice(), false);
        largest.insert(name.clone(), differences.max().double_value(&[]));
        above.insert(name.clone(), differences.gt(ROUNDING).sum(Kind::Int64).int64_value(&[]));
        if name == "logits" {
            let differs = found.argmax(1, false).ne_tensor(&expected.argmax(1, false));
            disagreements = differs.sum(Kind::Int64).int64_value(&[]);
        }
    }
    let images = usize::try_from(total).unwrap_or_default();
    Ok(Compared { images, largest, above, disagreements, seconds_exported, seconds_native: native.seconds })
}

fn operators(graph: &Graph) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for node in &graph.nodes {
        *counts.entry(node.op.clone()).or_insert(0) += 1;
    }
    counts
}

fn keep(path: &Path, model: &Path, images: &Tensor, native: &Answers) -> Result<()> {
    let mut tensors = Tensors::from([("images".to_owned(), images.shallow_clone())]);
    for (name, tensor) in &native.outputs {
        tensors.insert(name.clone(), tensor.shallow_clone());
    }
    let header = SamplesHeader { kind: "samples".into(), model: model.display().to_string() };
    Archive { header, tensors }.save(path)
}

fn say(args: &ExportArgs, bytes: u64, operators: &BTreeMap<String, usize>, compared: &Compared) {
    let nodes: usize = operators.values().sum();
    println!(
        "{} written: {:.1} MB, {nodes} nodes of {} operators",
        args.output.display(),
        bytes as f64 / 1e6,
        operators.len()
    );
    let said = |(name, value): (&String, &f64)| {
        let above = compared.above.get(name).copied().unwrap_or_default();
        format!("{name} {value:.1e} ({above} image(s) above {ROUNDING:.0e})")
    };
    let largest: Vec<String> = compared.largest.iter().map(said).collect();
    println!(
        "on {} images, largest differences from talion: {}; {} class(es) differ",
        compared.images,
        largest.join(", "),
        compared.disagreements
    );
    if let Some(path) = &args.samples {
        println!("{} written: the images and talion's answers", path.display());
    }
}
