//! Runs an ONNX file on tensors from a file, with first and second derivatives, so that others can be compared with it.
//!
//! ```text
//! cargo build --release --workspace --examples
//! target/release/examples/run_onnx MODEL.onnx IN.safetensors OUT.safetensors [--double] [--log-softmax] [--time N]
//! ```
//!
//! IN holds a tensor for each of the graph's inputs, by its name, and may hold two more:
//!
//! - `cotangent`, shaped as the first output: OUT then has `gradient`, the derivative of the sum of output times
//!   cotangent with respect to the first input;
//! - `direction`, shaped as the first input: OUT then has `second`, the derivative of the sum of gradient times
//!   direction (a Hessian-vector product). Where libtorch has no second derivative, standard error says so and
//!   `second` is missing.
//!
//! OUT has every output of the graph by its name. With `--double` all is computed in f64. With `--log-softmax` the
//! cotangent is for the logarithm of the softmax of the first output, along its last side: piecewise linear networks
//! have no second derivative without it. `--time N` prints the medians of N repetitions, as JSON.
//!
//! bench/import/architectures.py uses it.

use std::{collections::BTreeMap, error::Error, path::PathBuf, process::ExitCode, time::Instant};

use talion_onnx::Program;
use tch::{Device, Kind, Tensor};

const USAGE: &str =
    "usage: run_onnx MODEL.onnx IN.safetensors OUT.safetensors [--double] [--log-softmax] [--time N]";

/// Repetitions before those that count.
const WARM_UP: usize = 3;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// A second derivative, or why libtorch has none.
type Second = Result<Tensor, tch::TchError>;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("run_onnx: {problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("run_onnx: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    model: PathBuf,
    input: PathBuf,
    output: PathBuf,
    double: bool,
    log_softmax: bool,
    time: Option<usize>,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut files, mut double, mut log_softmax, mut time) = (Vec::new(), false, false, None);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--double" => double = true,
                "--log-softmax" => log_softmax = true,
                "--time" => {
                    let count = arguments
                        .next()
                        .and_then(|text| text.parse::<usize>().ok())
                        .filter(|&count| count > 0);
                    time = Some(count.ok_or("--time wants a number above 0")?);
                }
                option if option.starts_with("--") => return Err(format!("unknown option {option}")),
                file => files.push(PathBuf::from(file)),
            }
        }
        let [model, input, output] = <[PathBuf; 3]>::try_from(files)
            .map_err(|files| format!("3 files wanted, {} given", files.len()))?;
        Ok(Self { model, input, output, double, log_softmax, time })
    }
}

fn run(options: &Options) -> Outcome<()> {
    let case = Case::load(options)?;
    let mut results = BTreeMap::new();
    for (name, output) in case.outputs.iter().zip(case.forward()?) {
        results.insert(name.clone(), output);
    }
    if case.cotangent.is_some() {
        let (gradient, second) = case.derivatives()?;
        add(&mut results, "gradient", gradient)?;
        match second {
            Some(Ok(second)) => add(&mut results, "second", second)?,
            Some(Err(error)) => eprintln!("run_onnx: no second derivative: {error}"),
            None => {}
        }
    }
    let results: Vec<(String, Tensor)> = results
        .into_iter()
        .map(|(name, tensor)| Ok((name, tensor.f_detach()?.f_contiguous()?)))
        .collect::<Result<_, tch::TchError>>()?;
    Tensor::write_safetensors(&results, &options.output)?;
    if let Some(repetitions) = options.time {
        println!("{}", case.time(repetitions)?);
    }
    Ok(())
}

fn add(results: &mut BTreeMap<String, Tensor>, name: &str, tensor: Tensor) -> Outcome<()> {
    match results.insert(name.to_owned(), tensor) {
        None => Ok(()),
        Some(_) => {
            Err(format!("the graph has an output called `{name}` itself; run it without cotangent").into())
        }
    }
}

/// A program with what it is to be run on.
struct Case {
    program: Program,
    inputs: Vec<Tensor>,
    /// Names of the outputs.
    outputs: Vec<String>,
    cotangent: Option<Tensor>,
    direction: Option<Tensor>,
    log_softmax: bool,
}

impl Case {
    fn load(options: &Options) -> Outcome<Self> {
        let mut tensors: BTreeMap<String, Tensor> =
            Tensor::read_safetensors(&options.input)?.into_iter().collect();
        let graph = talion_onnx::read(&options.model)?;
        let wanted: Vec<String> = graph.inputs.iter().map(|port| port.name.clone()).collect();
        let outputs = graph.outputs.iter().map(|port| port.name.clone()).collect();
        let mut program = Program::new(graph, Device::Cpu)?;
        if options.double {
            program = program.to_double();
        }
        let mut take = |name: &str| -> Outcome<Option<Tensor>> {
            let Some(tensor) = tensors.remove(name) else { return Ok(None) };
            let widened = options.double && tensor.f_kind()? == Kind::Float;
            Ok(Some(if widened { tensor.f_to_kind(Kind::Double)? } else { tensor }))
        };
        let mut inputs = Vec::with_capacity(wanted.len());
        for name in &wanted {
            let missing = || format!("{}: holds no tensor `{name}`", options.input.display());
            inputs.push(take(name)?.ok_or_else(missing)?);
        }
        let (cotangent, direction) = (take("cotangent")?, take("direction")?);
        Ok(Self { program, inputs, outputs, cotangent, direction, log_softmax: options.log_softmax })
    }

    fn forward(&self) -> Outcome<Vec<Tensor>> {
        Ok(tch::no_grad(|| self.program.run(&self.inputs))?)
    }

    /// The first derivative and, if there is a direction, the second.
    fn derivatives(&self) -> Outcome<(Tensor, Option<Second>)> {
        let (x, gradient) = self.gradient(self.direction.is_some())?;
        let second = self.direction.as_ref().map(|direction| {
            let product = gradient.f_mul(direction)?.f_sum(gradient.f_kind()?)?;
            derivative(&product, &x, false)
        });
        Ok((gradient, second))
    }

    /// The first input, and the derivative with respect to it.
    fn gradient(&self, differentiable: bool) -> Outcome<(Tensor, Tensor)> {
        let cotangent = self.cotangent.as_ref().ok_or("there is no cotangent")?;
        let first = self.inputs.first().ok_or("the graph has no input")?;
        let x = first.f_detach()?.f_set_requires_grad(true)?;
        let mut inputs: Vec<Tensor> = self.inputs.iter().map(Tensor::shallow_clone).collect();
        inputs[0] = x.shallow_clone();
        let outputs = self.program.run(&inputs)?;
        let mut output = outputs.first().ok_or("the graph has no output")?.shallow_clone();
        if self.log_softmax {
            output = output.f_log_softmax(-1, output.f_kind()?)?;
        }
        if output.size() != cotangent.size() {
            return Err(
                format!("cotangent has shape {:?}, expected {:?}", cotangent.size(), output.size()).into()
            );
        }
        let product = output.f_mul(cotangent)?.f_sum(output.f_kind()?)?;
        let gradient = derivative(&product, &x, differentiable)?;
        Ok((x, gradient))
    }

    /// Medians of `repetitions`, as JSON.
    fn time(&self, repetitions: usize) -> Outcome<String> {
        let forward = median(repetitions, || self.forward().map(drop))?;
        let both = match self.cotangent {
            Some(_) => median(repetitions, || self.gradient(false).map(drop))?.to_string(),
            None => "null".into(),
        };
        let threads = tch::get_num_threads();
        Ok(format!(
            "{{\"threads\":{threads},\"repetitions\":{repetitions},\"forward_ms\":{forward},\
             \"forward_backward_ms\":{both}}}"
        ))
    }
}

/// The derivative of a scalar; zeros where it does not depend on `x`.
fn derivative(scalar: &Tensor, x: &Tensor, differentiable: bool) -> Result<Tensor, tch::TchError> {
    if !scalar.requires_grad() {
        return x.f_zeros_like();
    }
    let found = Tensor::f_run_backward(&[scalar], &[x], differentiable, differentiable)?.remove(0);
    if found.defined() { Ok(found) } else { x.f_zeros_like() }
}

/// Milliseconds.
fn median(repetitions: usize, mut work: impl FnMut() -> Outcome<()>) -> Outcome<f64> {
    for _ in 0..WARM_UP {
        work()?;
    }
    let mut times = Vec::with_capacity(repetitions);
    for _ in 0..repetitions {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    Ok(if times.len() % 2 == 1 { times[middle] } else { (times[middle - 1] + times[middle]) / 2.0 })
}
