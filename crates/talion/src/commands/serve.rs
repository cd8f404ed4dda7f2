//! `talion serve`: the guard in front of a classifier.

use std::{
    io::IsTerminal,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use clap::{Args, ValueEnum};
use serde_json::json;
use talion_core::Error;
use talion_data::{Dataset, DatasetSpec, Split};
use talion_eval::Calibration;
use talion_models::Model;
use talion_serve::{Limits, Loader, ServeConfig, Served, TlsFiles, Tokens};
use tch::Device;
use tokio::signal::unix::{SignalKind, signal};

use crate::{bundled, failure::CommandResult};

/// Serve the guard: answers through the defence, over HTTP, and a page that shows what it does.
///
/// `POST /v1/classify` takes PNG, JPEG, WebP, NPY or JSON and answers with and without the defence; `/openapi.json`
/// describes all there is, and `/` is a page for people. The bundled pair is served when no files are named. SIGTERM
/// and Ctrl-C finish what has been accepted, then stop.
#[derive(Args)]
pub struct ServeArgs {
    /// The classifier; by default the bundled one.
    #[arg(long, value_name = "FILE", requires = "trn")]
    model: Option<PathBuf>,
    /// The restoration network in front of it.
    #[arg(long, value_name = "FILE", requires = "model")]
    trn: Option<PathBuf>,
    /// What suspicion is judged by, from `talion calibrate`; the bundled pair brings its own. Without one there is no
    /// suspicion in the answers.
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// How many clean images may be flagged, instead of the calibration's own rate.
    #[arg(long, value_name = "RATE")]
    false_alarm_rate: Option<f64>,
    /// Data set whose first test images the page offers; by default the bundled sample, if the classifier takes such images.
    #[arg(long, value_name = "DATA")]
    samples: Option<DatasetSpec>,
    /// The folder of `talion evaluate`'s runs, to browse their reports.
    #[arg(long, value_name = "FOLDER", default_value = "runs")]
    runs: PathBuf,
    /// Address to listen on. Anything but a loopback address is reachable from outside: give tokens and a certificate, too.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Most images that the networks are given at once.
    #[arg(long, default_value_t = 32)]
    max_batch: usize,
    /// Milliseconds that the first image of a batch waits for others.
    #[arg(long, default_value_t = 2)]
    max_wait_ms: u64,
    /// Most images that may wait; more are refused with 429.
    #[arg(long, default_value_t = 256)]
    queue: usize,
    /// Milliseconds that a request may take once it has been read; later, it is refused with 504.
    #[arg(long, default_value_t = 5000)]
    deadline_ms: u64,
    /// Milliseconds that a client may take over the head of a request, and that a connection may be idle.
    #[arg(long, default_value_t = 10_000)]
    header_timeout_ms: u64,
    /// Milliseconds that a client may take over the body of a request.
    #[arg(long, default_value_t = 30_000)]
    body_timeout_ms: u64,
    /// Milliseconds that /readyz answers 503 after SIGTERM before new requests are refused.
    #[arg(long, default_value_t = 0)]
    drain_ms: u64,
    /// Largest body of a request, in MiB.
    #[arg(long, default_value_t = 8)]
    max_body_mib: usize,
    /// Most pixels of an image, read from its header before it is decoded.
    #[arg(long, default_value_t = 1 << 22)]
    max_pixels: u64,
    /// Most images of a request.
    #[arg(long, default_value_t = 64)]
    max_images: usize,
    /// Most MiB of all requests that are being read or decoded; more are refused with 429.
    #[arg(long, default_value_t = 256)]
    max_in_flight_mib: usize,
    /// Most connections; more are closed.
    #[arg(long, default_value_t = 1024)]
    max_connections: usize,
    /// Threads with networks of their own.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Threads that libtorch uses for one batch; by default as many as there are processors.
    #[arg(long)]
    threads: Option<u16>,
    /// A file with a token a line; whoever has none of them is refused with 401.
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Serve HTTPS with this certificate chain (PEM).
    #[arg(long, value_name = "PEM", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// The certificate's private key (PEM).
    #[arg(long, value_name = "PEM", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// Whether visitors of the page may run attacks; `auto` allows it on loopback addresses only.
    #[arg(long, value_enum, default_value_t = Playground::Auto)]
    playground: Playground,
    /// How log lines are written to standard error.
    #[arg(long, value_enum, default_value_t = Log::Text)]
    log: Log,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Playground {
    /// They may.
    On,
    /// They may not.
    Off,
    /// They may on loopback addresses.
    Auto,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Log {
    /// For people.
    Text,
    /// For machines: one object a line.
    Json,
}

impl ServeArgs {
    fn config(&self) -> talion_serve::Result<ServeConfig> {
        let playground = match self.playground {
            Playground::On => true,
            Playground::Off => false,
            Playground::Auto => self.host.is_loopback(),
        };
        let tls = self.tls_certificate.clone().zip(self.tls_key.clone());
        Ok(ServeConfig {
            address: SocketAddr::new(self.host, self.port),
            max_batch: self.max_batch,
            max_wait: Duration::from_millis(self.max_wait_ms),
            queue: self.queue,
            deadline: Duration::from_millis(self.deadline_ms),
            header_timeout: Duration::from_millis(self.header_timeout_ms),
            body_timeout: Duration::from_millis(self.body_timeout_ms),
            drain: Duration::from_millis(self.drain_ms),
            workers: self.workers,
            max_connections: self.max_connections,
            max_in_flight: self.max_in_flight_mib.saturating_mul(1 << 20),
            limits: Limits {
                max_body: self.max_body_mib.saturating_mul(1 << 20),
                max_pixels: self.max_pixels,
                max_images: self.max_images,
            },
            tokens: self.tokens.as_deref().map(Tokens::read).transpose()?.unwrap_or_default(),
            tls: tls.map(|(certificate, key)| TlsFiles { certificate, key }),
            playground,
            runs: self.runs.clone(),
            false_alarm_rate: self.false_alarm_rate,
        })
    }

    fn served(&self, device: Device) -> CommandResult<Served> {
        let networks: Loader = match (self.model.clone(), self.trn.clone()) {
            (Some(model), Some(trn)) => Arc::new(move || {
                Ok(talion_serve::Networks {
                    classifier: Model::load(&model, device)?,
                    trn: talion_defenses::Trn::load(&trn, device)?,
                })
            }),
            _ => Arc::new(move || {
                let bundled = bundled::Networks::bundled(device)?;
                Ok(talion_serve::Networks { classifier: bundled.classifier, trn: bundled.trn })
            }),
        };
        let calibration = match &self.calibration {
            Some(path) => Some((Calibration::load(path)?, path.clone())),
            None if self.model.is_none() => Some(bundled::Networks::bundled_calibration()?),
            None => None,
        };
        Ok(Served { networks, calibration, samples: self.offered()? })
    }

    fn offered(&self) -> talion_data::Result<Option<Dataset>> {
        match &self.samples {
            Some(spec) => talion_data::load(spec, Split::Test, None).map(Some),
            None => talion_data::fashion_mnist_sample().map(Some),
        }
    }
}

/// Runs the command.
pub fn run(args: &ServeArgs, json: bool) -> CommandResult {
    begin_log(args.log);
    let device = Device::cuda_if_available();
    if let Some(threads) = args.threads {
        tch::set_num_threads(i32::from(threads.max(1)));
    }
    let config = args.config()?;
    if !args.host.is_loopback() && (config.tokens.is_empty() || config.tls.is_none()) {
        tracing::warn!("reachable from outside without tokens or without TLS; see docs/serve.md");
    }
    let served = args.served(device)?;
    if served.calibration.is_none() {
        tracing::warn!("no calibration: answers have no suspicion; `talion calibrate` makes one");
    }
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Error::other)?;
    runtime.block_on(async {
        let stop = stop_signal()?;
        talion_serve::serve(config, served, stop, |address| {
            let address = format!("{scheme}://{address}");
            if json {
                println!("{}", json!({ "listening": address }));
            } else {
                println!("talion: listening on {address}");
            }
        })
        .await?;
        Ok(())
    })
}

/// Resolves at the first SIGTERM or SIGINT; the second SIGINT ends the program at once.
fn stop_signal() -> CommandResult<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::spawn(async move {
            interrupt.recv().await;
            std::process::exit(130);
        });
    })
}

fn begin_log(log: Log) {
    let lines = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // a subscriber may be set once a process; a second server in it writes to the first one's
    let _ = match log {
        Log::Text => lines.try_init(),
        Log::Json => lines.json().try_init(),
    };
}
