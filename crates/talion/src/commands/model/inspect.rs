//! `talion model inspect`: what is in a file, and what talion makes of it.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use talion_core::{Classifier, Error, Objective, Result};
use talion_models::{
    Model,
    import::{Format, detect},
};
use talion_onnx::Program;
use tch::{Device, Kind, Tensor};

use crate::failure::CommandResult;

/// Show layers, shapes, weights, what is assumed, what is unsupported, and how fast it is.
#[derive(Args)]
pub struct InspectArgs {
    /// The classifier: a file of `talion train`, ONNX, TorchScript, or PyTorch weights.
    file: PathBuf,
    /// List every layer.
    #[arg(long)]
    layers: bool,
    /// Leave the timing out.
    #[arg(long)]
    no_timing: bool,
    /// Rows of the batch that is timed.
    #[arg(long, default_value_t = 16)]
    batch_size: i64,
}

/// A layer as the user sees it.
#[derive(Serialize)]
struct Layer {
    operator: String,
    name: String,
    /// Of its first output for one image; empty where nobody knows.
    shape: Vec<i64>,
    weights: usize,
}

/// Seconds a batch, medians.
#[derive(Serialize)]
struct Timing {
    batch: i64,
    forward: f64,
    forward_and_backward: f64,
}

/// Runs the command.
pub fn run(args: &InspectArgs, json: bool) -> CommandResult {
    let device = Device::cuda_if_available();
    if let Some(problem) = unsupported(&args.file)? {
        return Err(problem.into());
    }
    let model = Model::load(&args.file, device)?;
    let layers = layers(&model)?;
    let second = second_order(&model);
    let engine = model.fast_engine(model.card().image_size);
    let timing = (!args.no_timing).then(|| timing(&model, args.batch_size.clamp(1, 4096))).transpose()?;
    if json {
        let mut all = summary(&model);
        all["layers"] = serde_json::to_value(&layers)?;
        all["timing"] = serde_json::to_value(&timing)?;
        all["second_order_gradients"] = json!(second.is_ok());
        all["fast_engine"] = json!({ "used": engine.is_ok(), "why_not": engine.as_ref().err() });
        println!("{all}");
        return Ok(());
    }
    show(&model);
    match second {
        Ok(()) => println!("gradients    first and second order"),
        Err(problem) => println!("gradients    first order only: {problem}"),
    }
    match &engine {
        Ok(()) => println!("engine       fast: gradients without autograd"),
        Err(reason) => println!("engine       autograd; the fast one is for other networks: {reason}"),
    }
    if let Some(timing) = &timing {
        println!(
            "timing       batch of {}: forward {:.1} ms, forward and backward {:.1} ms (medians of {REPETITIONS}, {} \
             thread(s))",
            timing.batch,
            1e3 * timing.forward,
            1e3 * timing.forward_and_backward,
            tch::get_num_threads()
        );
    }
    print_layers(&layers, args.layers);
    Ok(())
}

/// What of an ONNX file cannot be run, all of it at once and before anything runs.
fn unsupported(file: &Path) -> Result<Option<Error>> {
    if detect(file)? != Format::Onnx {
        return Ok(None);
    }
    let missing = talion_onnx::unsupported(&talion_onnx::read(file)?);
    if missing.is_empty() {
        return Ok(None);
    }
    let all: Vec<String> = missing.iter().map(|one| format!("  {one}")).collect();
    Ok(Some(Error::file(
        file,
        format!(
            "uses {} operator(s) that talion does not have:\n{}\n`talion model operators` lists those it has; try another \
             exporter or operator set, or TorchScript",
            all.len(),
            all.join("\n")
        ),
    )))
}

/// The card and the origin as JSON.
pub fn summary(model: &Model) -> Value {
    let origin = model.origin().map(|origin| {
        json!({
            "path": origin.path, "format": origin.format.to_string(), "sha256": hex(&origin.sha256),
            "sidecar": origin.sidecar, "assumed": origin.assumed,
            "keys": origin.keys.as_ref().map(ToString::to_string),
        })
    });
    json!({ "card": model.card(), "weights": model.parameters(), "origin": origin })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Prints what is known of a model, a line a fact.
pub fn show(model: &Model) {
    let card = model.card();
    let spec = &card.spec;
    let [height, width] = card.image_size;
    println!("network      {}, {} weights", spec.architecture, model.parameters());
    if let Some(origin) = model.origin() {
        println!(
            "file         {} ({}), SHA-256 {}",
            origin.path.display(),
            origin.format,
            hex(&origin.sha256)
        );
        if let Some(keys) = &origin.keys {
            println!("keys         {}", keys.to_string().replace('\n', "\n             "));
        }
    }
    let order = if spec.channels == 3 { format!(", wanted as {}", spec.order) } else { String::new() };
    println!("images       {}x{height}x{width}{order}", spec.channels);
    println!("standardised minus {:?}, divided by {:?} (of values from 0 to 1)", spec.mean, spec.std);
    println!("classes      {}: {}", spec.classes, some(&card.class_names));
    println!("trained on   {}", card.dataset);
    for (name, value) in &card.metrics {
        println!("{name:<12} {:.2} %", 100.0 * value);
    }
    for assumed in model.origin().iter().flat_map(|origin| &origin.assumed) {
        println!("assumed      {assumed}");
    }
}

fn some(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}

/// The layers: of ONNX graphs and built-in networks as they run, of TorchScript the weights, which is all it shows.
fn layers(model: &Model) -> Result<Vec<Layer>> {
    if model.imported() == Some(Format::TorchScript) {
        let weights = |(name, tensor): (String, Tensor)| Layer {
            operator: "weights".into(),
            name,
            shape: tensor.size(),
            weights: tensor.numel(),
        };
        return Ok(model.tensors().into_iter().map(weights).collect());
    }
    let size = model.card().image_size;
    let program = Program::new(model.graph(size)?, model.device())?;
    let images = grey(model, 1);
    let values = tch::no_grad(|| program.trace(&[images]))?;
    let graph = program.graph();
    let layer = |node: &talion_onnx::Node| {
        let first = node.outputs.first().map_or("", String::as_str);
        let constants = node.inputs.iter().filter_map(|name| graph.constants.get(name));
        Layer {
            operator: node.op.clone(),
            name: if node.name.is_empty() { first.to_owned() } else { node.name.clone() },
            shape: values.get(first).map(Tensor::size).unwrap_or_default(),
            weights: constants.filter(|tensor| tensor.kind() != Kind::Int64).map(Tensor::numel).sum(),
        }
    };
    Ok(graph.nodes.iter().map(layer).collect())
}

fn print_layers(layers: &[Layer], all: bool) {
    const SHOWN: usize = 12;
    println!("layers       {}", layers.len());
    let shown = if all { layers.len() } else { SHOWN.min(layers.len()) };
    for layer in &layers[..shown] {
        let shape = layer.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("x");
        println!("  {:<22} {:<44} {:>16} {:>10}", layer.operator, layer.name, shape, layer.weights);
    }
    if shown < layers.len() {
        println!("  ... {} more (--layers)", layers.len() - shown);
    }
}

fn grey(model: &Model, rows: i64) -> Tensor {
    let card = model.card();
    let [height, width] = card.image_size;
    Tensor::full([rows, card.spec.channels, height, width], 0.5, (Kind::Float, model.device()))
}

/// Whether the gradient can be differentiated again, which attackers who know the defence need.
fn second_order(model: &Model) -> std::result::Result<(), String> {
    let taken = || -> std::result::Result<(), tch::TchError> {
        let images = grey(model, 1).set_requires_grad(true);
        let logits = model.logits(&images);
        let loss = logits.f_log_softmax(1, Kind::Float)?.f_select(1, 0)?.f_sum(Kind::Float)?;
        let first = Tensor::f_run_backward(&[&loss], &[&images], true, true)?.swap_remove(0);
        let along = first.f_square()?.f_sum(Kind::Float)?;
        Tensor::f_run_backward(&[&along], &[&images], false, false).map(drop)
    };
    taken().map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())
}

const REPETITIONS: usize = 7;

fn timing(model: &Model, batch: i64) -> Result<Timing> {
    let images = grey(model, batch);
    let labels = Tensor::zeros([batch], (Kind::Int64, model.device()));
    let forward = || {
        let logits = tch::no_grad(|| model.try_logits(&images))?;
        let _ = logits.sum(Kind::Float).double_value(&[]);
        Ok(())
    };
    let both = || {
        let taken = model.input_gradient(&images, &labels, Objective::CrossEntropy);
        let _ = taken.gradient.sum(Kind::Float).double_value(&[]);
        Ok(())
    };
    Ok(Timing { batch, forward: median(&forward)?, forward_and_backward: median(&both)? })
}

fn median(work: &dyn Fn() -> Result<()>) -> Result<f64> {
    work()?;
    let mut seconds = Vec::with_capacity(REPETITIONS);
    for _ in 0..REPETITIONS {
        let started = Instant::now();
        work()?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[REPETITIONS / 2])
}
