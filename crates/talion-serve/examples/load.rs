//! Asks a running `talion serve` for classifications as fast as it answers, and says how fast that was.
//!
//! ```text
//! cargo build --release --workspace --examples
//! target/release/examples/load --address http://127.0.0.1:8080 --seconds 10 --clients 1,4,16,64
//! ```
//!
//! Each client is a thread with a connection of its own. It sends the next request when the last is answered (a closed
//! loop), always the same bundled test images as NPY bytes. See bench/serve/README.md.

use std::{
    error::Error,
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use serde::Serialize;
use serde_json::{Value, json};
use talion_data::Dataset;
use ureq::Agent;

/// After so long a request counts as lost.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a client waits that was told that the server is busy, or was told nothing.
const PAUSE: Duration = Duration::from_millis(10);

/// Measures a running `talion serve` and prints a Markdown table.
#[derive(Parser)]
#[command(max_term_width = 110)]
struct Options {
    /// Where the server listens.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    address: String,
    /// Clients at once; each number is a measurement of its own.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16, 64])]
    clients: Vec<usize>,
    /// Seconds of a measurement.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Seconds before a measurement in which the clients ask already.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Images of a request.
    #[arg(long, default_value_t = 1)]
    images: usize,
    /// The token that the server wants, if it wants one.
    #[arg(long)]
    token: Option<String>,
    /// The server's process, to tell its memory.
    #[arg(long)]
    pid: Option<u32>,
    /// Also write everything to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// What came of the requests of a measurement.
#[derive(Serialize)]
struct Measurement {
    clients: usize,
    images_per_request: usize,
    /// From the end of the warm-up to the last answer.
    seconds: f64,
    /// Sent in that time. Each is in one of the next four.
    requests: usize,
    answered: usize,
    busy: usize,
    /// Answered with another status than 200 and 429.
    other: usize,
    /// Sent, or tried to, and never answered.
    lost: usize,
    images_per_second: f64,
    latency_ms: Latency,
    /// Resident memory of the server before and after, in KiB.
    memory_kib: [Option<u64>; 2],
}

/// Of the requests answered with 200, from the first byte sent to the last one received; nearest ranks of all of them.
#[derive(Serialize)]
struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

/// What one client met.
struct Met {
    latencies: Vec<Duration>,
    busy: usize,
    other: usize,
    lost: usize,
    last: Instant,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let span = Duration::try_from_secs_f64;
    let (warm_up, length) = (span(options.warm_up)?, span(options.seconds)?);
    let model = model(&options)?;
    let data = talion_data::fashion_mnist_sample()?;
    eprintln!("{} at {}", model["name"], options.address);
    println!("{}", Measurement::HEAD);
    let mut measurements = Vec::new();
    for &clients in &options.clients {
        let measurement = measure(&options, &data, clients, warm_up, length)?;
        println!("{}", measurement.row());
        measurements.push(measurement);
    }
    if let Some(path) = &options.out {
        let report = json!({
            "model": model["name"],
            "limits": model["limits"],
            "warm_up_seconds": options.warm_up,
            "measurements": measurements,
        });
        talion_core::write_atomically(path, &serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}

/// What the server says of itself; an error if it cannot be asked.
fn model(options: &Options) -> Result<Value, Box<dyn Error>> {
    let mut request = agent().get(format!("{}/v1/model", options.address));
    if let Some(token) = &options.token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let mut response = request.call()?;
    let text = response.body_mut().read_to_string()?;
    if response.status() != 200 {
        return Err(format!("{}: {text}", response.status()).into());
    }
    Ok(serde_json::from_str(&text)?)
}

fn agent() -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(PATIENCE))
        .build()
        .new_agent()
}

fn measure(
    options: &Options,
    data: &Dataset,
    clients: usize,
    warm_up: Duration,
    length: Duration,
) -> Result<Measurement, Box<dyn Error>> {
    let bodies =
        (0..clients).map(|client| body(data, client, options.images)).collect::<Result<Vec<_>, _>>()?;
    let before = memory(options.pid);
    let begin = Instant::now() + warm_up;
    let met: Vec<Met> = thread::scope(|scope| {
        let clients: Vec<_> = bodies
            .iter()
            .map(|body| scope.spawn(move || client(options, body, begin, begin + length)))
            .collect();
        clients.into_iter().map(|client| client.join()).collect::<Result<Vec<Met>, _>>()
    })
    .map_err(|_| "a client panicked")?;
    let sum = |part: fn(&Met) -> usize| met.iter().map(part).sum::<usize>();
    let (busy, other, lost) = (sum(|met| met.busy), sum(|met| met.other), sum(|met| met.lost));
    let mut latencies: Vec<Duration> = met.iter().flat_map(|met| &met.latencies).copied().collect();
    latencies.sort_unstable();
    let answered = latencies.len();
    let last = met.iter().map(|met| met.last).max().unwrap_or(begin);
    let seconds = last.saturating_duration_since(begin).as_secs_f64();
    Ok(Measurement {
        clients,
        images_per_request: options.images,
        seconds,
        requests: answered + busy + other + lost,
        answered,
        busy,
        other,
        lost,
        images_per_second: (answered * options.images) as f64 / seconds,
        latency_ms: Latency::of(&latencies),
        memory_kib: [before, memory(options.pid)],
    })
}

/// Asks from now until `end`, and counts what it asks from `begin` on.
fn client(options: &Options, body: &[u8], begin: Instant, end: Instant) -> Met {
    let agent = agent();
    let url = format!("{}/v1/classify", options.address);
    let mut met = Met { latencies: Vec::new(), busy: 0, other: 0, lost: 0, last: begin };
    loop {
        let sent = Instant::now();
        if sent >= end {
            return met;
        }
        let status = ask(&agent, &url, options.token.as_deref(), body);
        let took = sent.elapsed();
        if sent >= begin {
            met.last = sent + took;
            match status {
                Ok(200) => met.latencies.push(took),
                Ok(429) => met.busy += 1,
                Ok(_) => met.other += 1,
                Err(_) => met.lost += 1,
            }
        }
        if !matches!(status, Ok(200)) {
            thread::sleep(PAUSE);
        }
    }
}

/// The status of the answer, when the answer is whole.
fn ask(agent: &Agent, url: &str, token: Option<&str>, body: &[u8]) -> Result<u16, Box<dyn Error>> {
    let mut request = agent.post(url).content_type("application/x-npy");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let mut response = request.send(body)?;
    // to the last byte, so that the connection can be used again
    response.body_mut().read_to_vec()?;
    Ok(response.status().as_u16())
}

/// `images` test images in one NPY file, other ones for each client.
fn body(data: &Dataset, client: usize, images: usize) -> Result<Vec<u8>, talion_data::DataError> {
    let (channels, height, width) = (data.channels(), data.height(), data.width());
    let mut header = format!(
        "{{'descr': '|u1', 'fortran_order': False, 'shape': ({images}, {channels}, {height}, {width}), }}"
    );
    // magic, version, length and header together fill a multiple of 64 bytes
    header.push_str(&" ".repeat(63 - (10 + header.len()) % 64));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.into_bytes());
    for image in 0..images {
        bytes.extend(data.image_bytes((client * images + image) % data.len())?);
    }
    Ok(bytes)
}

/// Resident memory of a process in KiB, where the system tells.
fn memory(pid: Option<u32>) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid?)).ok()?;
    let figure = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    figure.split_whitespace().next()?.parse().ok()
}

impl Latency {
    fn of(sorted: &[Duration]) -> Self {
        let rank = |percent: usize| {
            let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
            sorted.get(place).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
        };
        Self { p50: rank(50), p90: rank(90), p99: rank(99), max: rank(100) }
    }
}

impl Measurement {
    const HEAD: &'static str = "\
| clients | requests | 200 | 429 | other | lost | images/s | p50 ms | p90 ms | p99 ms | max ms | memory MiB |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |";

    fn row(&self) -> String {
        let Latency { p50, p90, p99, max } = self.latency_ms;
        let memory = self.memory_kib.map(|kib| kib.map_or("?".into(), |kib| (kib / 1024).to_string()));
        format!(
            "| {} | {} | {} | {} | {} | {} | {:.1} | {p50:.1} | {p90:.1} | {p99:.1} | {max:.1} | {} |",
            self.clients,
            self.requests,
            self.answered,
            self.busy,
            self.other,
            self.lost,
            self.images_per_second,
            memory.join(" to ")
        )
    }
}
