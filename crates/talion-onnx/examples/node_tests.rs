//! Runs the ONNX project's backend node tests, an operator a row, so that operator coverage is measured, not claimed.
//!
//! ```text
//! cargo build --release --workspace --examples
//! target/release/examples/node_tests FOLDER [--json] [--refusals]
//! ```
//!
//! FOLDER holds a folder a test: `model.onnx`, and `test_data_set_K` with `input_N.pb` and `output_N.pb`, serialised
//! tensors. bench/import/nodes.py makes it from the onnx package. A test is covered if all its operators are in
//! [`talion_onnx::supported`], its operator set is read, and its inputs and outputs are tensors of types that libtorch
//! has. Of a covered test the results have to agree in type and shape, and in value: within the tolerances of ONNX's own
//! runner (and two units in the last place of FLOAT16) where they are floating-point numbers, NaN equal to NaN; exactly
//! where they are not. One that is `refused`
//! ended with an error, one that is `wrong` with other results or a panic. Either makes the exit status 1; with
//! `--refusals` only what is wrong does.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
};

use prost::Message;
use serde_json::json;
use talion_onnx::Program;
use tch::{Device, Kind, Tensor};

/// Relative to the expected value, as in the ONNX project's runner.
const RELATIVE: f64 = 1e-3;
/// Absolute, as there.
const ABSOLUTE: f64 = 1e-7;

/// The versions of the default operator set that talion reads.
const OPSETS: std::ops::RangeInclusive<i64> = 7..=25;

/// Types of elements that libtorch has, by their number in the format, among the names of all.
const TYPES: [(&str, bool); 29] = [
    ("UNDEFINED", false),
    ("FLOAT", true),
    ("UINT8", true),
    ("INT8", true),
    ("UINT16", false),
    ("INT16", true),
    ("INT32", true),
    ("INT64", true),
    ("STRING", false),
    ("BOOL", true),
    ("FLOAT16", true),
    ("DOUBLE", true),
    ("UINT32", false),
    ("UINT64", false),
    ("COMPLEX64", false),
    ("COMPLEX128", false),
    ("BFLOAT16", true),
    ("FLOAT8E4M3FN", false),
    ("FLOAT8E4M3FNUZ", false),
    ("FLOAT8E5M2", false),
    ("FLOAT8E5M2FNUZ", false),
    ("UINT4", false),
    ("INT4", false),
    ("FLOAT4E2M1", false),
    ("FLOAT8E8M0", false),
    ("UINT2", false),
    ("INT2", false),
    ("FLOAT6E2M3", false),
    ("FLOAT6E3M2", false),
];

type Fallible<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let (mut folder, mut as_json, mut refusals) = (None, false, false);
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--json" => as_json = true,
            "--refusals" => refusals = true,
            _ if folder.is_none() && !argument.starts_with("--") => folder = Some(PathBuf::from(argument)),
            _ => {
                eprintln!("usage: node_tests FOLDER [--json] [--refusals]");
                return ExitCode::from(2);
            }
        }
    }
    let tests = match folder.ok_or_else(|| "which folder?".into()).and_then(|folder| run_all(&folder)) {
        Ok(tests) => tests,
        Err(error) => {
            eprintln!("node_tests: {error}");
            return ExitCode::from(2);
        }
    };
    if as_json {
        print_json(&tests);
    } else {
        print_table(&tests);
    }
    let failed = tests.iter().any(|test| match test.outcome {
        Outcome::Wrong(_) => true,
        Outcome::Refused(_) => !refusals,
        Outcome::Passed | Outcome::NotCovered(_) => false,
    });
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// A test and what came of it.
struct Test {
    name: String,
    operators: BTreeSet<String>,
    opset: i64,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    Passed,
    Wrong(String),
    Refused(String),
    NotCovered(String),
}

impl Outcome {
    fn name(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Wrong(_) => "wrong",
            Self::Refused(_) => "refused",
            Self::NotCovered(_) => "not covered",
        }
    }

    fn reason(&self) -> Option<&str> {
        match self {
            Self::Passed => None,
            Self::Wrong(reason) | Self::Refused(reason) | Self::NotCovered(reason) => Some(reason),
        }
    }
}

impl Test {
    /// The row it belongs to.
    fn row(&self) -> &str {
        match (self.operators.first(), self.operators.len()) {
            (Some(operator), 1) => operator,
            (None, _) => "(none)",
            _ => "(several)",
        }
    }
}

fn run_all(folder: &Path) -> Fallible<Vec<Test>> {
    let supported: BTreeSet<&str> = talion_onnx::supported().into_iter().collect();
    let mut folders = entries(folder, "test_")?;
    folders.retain(|folder| folder.join("model.onnx").is_file());
    if folders.is_empty() {
        return Err(format!("{}: holds no folder test_*/ with a model.onnx", folder.display()).into());
    }
    // what a kernel panics with is reported as the test's outcome
    std::panic::set_hook(Box::new(|_| {}));
    folders.iter().map(|folder| run_one(folder, &supported)).collect()
}

/// What lies in a folder under names that begin so, in order.
fn entries(folder: &Path, prefix: &str) -> Fallible<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn run_one(folder: &Path, supported: &BTreeSet<&str>) -> Fallible<Test> {
    let path = folder.join("model.onnx");
    let head = Head::decode(fs::read(&path)?.as_slice())
        .map_err(|error| format!("{}: is no ONNX file: {error}", path.display()))?;
    let outcome = match head.obstacle(supported) {
        Some(reason) => Outcome::NotCovered(reason),
        None => match catch_unwind(AssertUnwindSafe(|| check(folder))) {
            Ok(Ok(None)) => Outcome::Passed,
            Ok(Ok(Some(difference))) => Outcome::Wrong(difference),
            Ok(Err(error)) => Outcome::Refused(error.to_string()),
            Err(panic) => Outcome::Wrong(format!("panicked: {}", words(&*panic))),
        },
    };
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Test { name, operators: head.operators(), opset: head.opset(), outcome })
}

fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without words")
}

/// The first difference between what the graph computes and what the test expects.
fn check(folder: &Path) -> Fallible<Option<String>> {
    let graph = talion_onnx::read(&folder.join("model.onnx"))?;
    let wanted: Vec<String> = graph.inputs.iter().map(|port| port.name.clone()).collect();
    let program = Program::new(graph, Device::Cpu)?;
    for set in entries(folder, "test_data_set_")? {
        let inputs = arrange(tensors(&set, "input")?, &wanted)?;
        let found = tch::no_grad(|| program.run(&inputs))?;
        let expected = tensors(&set, "output")?;
        if found.len() != expected.len() {
            return Ok(Some(format!("{} outputs, expected {}", found.len(), expected.len())));
        }
        for ((name, expected), found) in expected.iter().zip(&found) {
            if let Some(difference) = difference(found, expected)? {
                return Ok(Some(format!("output {name}: {difference}")));
            }
        }
    }
    Ok(None)
}

/// `input_0.pb`, `input_1.pb` and so on, with their names.
fn tensors(folder: &Path, role: &str) -> Fallible<Vec<(String, Tensor)>> {
    let mut found = Vec::new();
    loop {
        let path = folder.join(format!("{role}_{}.pb", found.len()));
        if !path.is_file() {
            return Ok(found);
        }
        found.push(talion_onnx::tensor_from_bytes(&fs::read(&path)?, &path)?);
    }
}

/// In the order of the graph's inputs: by name where the tensors have them, else as they come.
fn arrange(tensors: Vec<(String, Tensor)>, wanted: &[String]) -> Fallible<Vec<Tensor>> {
    let named: BTreeMap<&str, &Tensor> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let by_name: Option<Vec<Tensor>> =
        wanted.iter().map(|name| named.get(name.as_str()).map(|tensor| tensor.shallow_clone())).collect();
    match by_name {
        Some(inputs) => Ok(inputs),
        None if tensors.len() == wanted.len() => Ok(tensors.into_iter().map(|(_, tensor)| tensor).collect()),
        None => Err(format!("{} inputs wanted, the test has {}", wanted.len(), tensors.len()).into()),
    }
}

fn difference(found: &Tensor, expected: &Tensor) -> Fallible<Option<String>> {
    if found.f_kind()? != expected.f_kind()? {
        return Ok(Some(format!("type {:?}, expected {:?}", found.f_kind()?, expected.f_kind()?)));
    }
    if found.size() != expected.size() {
        return Ok(Some(format!("shape {:?}, expected {:?}", found.size(), expected.size())));
    }
    let kind = found.f_kind()?;
    let floating = matches!(kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16);
    // whole numbers may be larger than f64 holds exactly
    if !floating && found.f_equal(expected)? {
        return Ok(None);
    }
    let (found, expected) = (found.f_to_kind(Kind::Double)?, expected.f_to_kind(Kind::Double)?);
    let (relative, absolute) = if floating { (tolerance(kind), ABSOLUTE) } else { (0.0, 0.0) };
    let alike = found.f_isclose(&expected, relative, absolute, true)?;
    let count = alike.f_logical_not()?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    if floating && count == 0 {
        return Ok(None);
    }
    let most = found.f_sub(&expected)?.f_abs()?.f_nan_to_num(0.0, None, None)?.f_max()?.f_double_value(&[])?;
    Ok(Some(format!("{count} of {} values differ, by up to {most:.3e}", found.numel())))
}

/// Relative; two units in the last place where that is more. The ONNX project's runner does so for bfloat16, but not for
/// FLOAT16.
fn tolerance(kind: Kind) -> f64 {
    match kind {
        Kind::BFloat16 => 2_f64.powi(-6),
        Kind::Half => 2_f64.powi(-9),
        _ => RELATIVE,
    }
}

fn print_table(tests: &[Test]) {
    let mut rows: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    let mut not_covered: BTreeMap<&str, usize> = BTreeMap::new();
    for test in tests {
        for row in [test.row(), "all"] {
            *rows.entry(row).or_default().entry(test.outcome.name()).or_default() += 1;
        }
        if let Outcome::NotCovered(reason) = &test.outcome {
            *not_covered.entry(reason).or_default() += 1;
        }
    }
    let names = ["passed", "wrong", "refused", "not covered"];
    println!("| {:<28} | {} |", "operator", names.join(" | "));
    println!(
        "|{}|{}",
        "-".repeat(30),
        names.map(|name| format!("{}:|", "-".repeat(name.len() + 1))).concat()
    );
    for (row, counts) in &rows {
        // an operator that is not there at all is named below
        if counts.keys().all(|&name| name == "not covered") {
            continue;
        }
        let cells = names.map(|name| format!("{:>1$}", counts.get(name).unwrap_or(&0), name.len()));
        println!("| {row:<28} | {} |", cells.join(" | "));
    }
    println!("\nNot covered:\n");
    for (reason, count) in &not_covered {
        println!("- {reason}: {count}");
    }
    println!("\nCovered and not passed:\n");
    for test in tests {
        if let Outcome::Wrong(reason) | Outcome::Refused(reason) = &test.outcome {
            println!(
                "- {} ({}, opset {}): {}: {reason}",
                test.name,
                test.row(),
                test.opset,
                test.outcome.name()
            );
        }
    }
}

fn print_json(tests: &[Test]) {
    let tests: Vec<_> = tests
        .iter()
        .map(|test| {
            json!({
                "name": test.name,
                "operators": test.operators,
                "opset": test.opset,
                "outcome": test.outcome.name(),
                "reason": test.outcome.reason(),
            })
        })
        .collect();
    println!("{}", json!({ "tests": tests }));
}

/// What of a model decides whether a test is covered. The reader proper refuses models that it does not take; this
/// only looks, and prost skips the other fields.
#[derive(Clone, PartialEq, prost::Message)]
struct Head {
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphHead>,
    #[prost(message, repeated, tag = "8")]
    opsets: Vec<Opset>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Opset {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GraphHead {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<NodeHead>,
    #[prost(message, repeated, tag = "11")]
    inputs: Vec<ValueHead>,
    #[prost(message, repeated, tag = "12")]
    outputs: Vec<ValueHead>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NodeHead {
    #[prost(string, tag = "4")]
    operator: String,
    #[prost(string, tag = "7")]
    domain: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ValueHead {
    #[prost(message, optional, tag = "2")]
    kind: Option<TypeHead>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TypeHead {
    #[prost(message, optional, tag = "1")]
    tensor: Option<TensorHead>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TensorHead {
    #[prost(int32, tag = "1")]
    element: i32,
}

fn is_default(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

impl Head {
    fn nodes(&self) -> &[NodeHead] {
        self.graph.as_ref().map_or(&[], |graph| graph.nodes.as_slice())
    }

    fn operators(&self) -> BTreeSet<String> {
        self.nodes().iter().map(NodeHead::name).collect()
    }

    /// Version of the default operator set, 0 for none.
    fn opset(&self) -> i64 {
        self.opsets.iter().find(|opset| is_default(&opset.domain)).map_or(0, |opset| opset.version)
    }

    /// Why the test is not covered.
    fn obstacle(&self, supported: &BTreeSet<&str>) -> Option<String> {
        let missing =
            |node: &&NodeHead| !is_default(&node.domain) || !supported.contains(node.operator.as_str());
        if let Some(node) = self.nodes().iter().find(missing) {
            return Some(format!("operator {}", node.name()));
        }
        if !OPSETS.contains(&self.opset()) {
            return Some(format!("operator set {}", self.opset()));
        }
        let graph = self.graph.as_ref()?;
        graph.inputs.iter().chain(&graph.outputs).find_map(ValueHead::obstacle)
    }
}

impl NodeHead {
    fn name(&self) -> String {
        if is_default(&self.domain) {
            self.operator.clone()
        } else {
            format!("{}.{}", self.domain, self.operator)
        }
    }
}

impl ValueHead {
    fn obstacle(&self) -> Option<String> {
        let Some(tensor) = self.kind.as_ref().and_then(|kind| kind.tensor.as_ref()) else {
            return Some("values that are no tensors".into());
        };
        match usize::try_from(tensor.element).ok().and_then(|element| TYPES.get(element)) {
            Some((_, true)) => None,
            Some((name, false)) => Some(format!("type {name}")),
            None => Some(format!("type {}", tensor.element)),
        }
    }
}
