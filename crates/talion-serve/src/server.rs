//! From a configuration to a server that runs until it is asked to stop.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Sender, channel},
    },
    task::{Context, Poll},
    thread::JoinHandle,
    time::Duration,
};

use axum_server::{
    Handle,
    accept::Accept,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use talion_data::Dataset;
use talion_eval::Calibration;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::{
    Error, Result, ServeConfig, TlsFiles,
    app::{App, Sample},
    guard::{Guard, ModelFacts, Networks, Yardstick},
    http,
    metrics::Metrics,
    playground::{self, Playground},
    queue::Queue,
    worker::{Batching, work},
};

/// Loads the networks; each thread that uses some calls it once.
pub type Loader = Arc<dyn Fn() -> talion_core::Result<Networks> + Send + Sync>;

/// What is served.
pub struct Served {
    /// The networks.
    pub networks: Loader,
    /// Scores of clean images, to judge suspicion by, and the file that is named where they do not fit.
    pub calibration: Option<(Calibration, PathBuf)>,
    /// Test images that visitors of the page may pick: the first of them, if the networks take images of their kind.
    pub samples: Option<Dataset>,
}

/// Test images that visitors are offered.
const SAMPLES: usize = 24;
/// What accepted work may take beyond its deadline before the server stops all the same.
const GRACE: Duration = Duration::from_secs(5);

/// Serves until `stop`, then finishes what has been accepted. `listening` is told the address.
///
/// # Errors
/// If a setting, the networks, the calibration, the certificate or the address cannot be used, or the server breaks down.
pub async fn serve(
    config: ServeConfig,
    served: Served,
    stop: impl Future<Output = ()> + Send + 'static,
    listening: impl FnOnce(SocketAddr),
) -> Result<()> {
    config.validate()?;
    let address = config.address;
    let listen = |source| Error::Listen { address, source };
    // before the networks are loaded, so that a taken port is known at once
    let listener = std::net::TcpListener::bind(address).map_err(listen)?;
    let bound = listener.local_addr().map_err(listen)?;
    let tls = match &config.tls {
        Some(files) => Some(certified(files).await?),
        None => None,
    };
    let House { app, threads, stopping } = House::open(config, served)?;
    let handle = Handle::new();
    tokio::spawn(stop_when_asked(stop, handle.clone(), Arc::clone(&app), Arc::clone(&stopping)));
    let service = http::router(Arc::clone(&app)).into_make_service();
    let mut server = axum_server::from_tcp(listener).map_err(listen)?.handle(handle).http1_only();
    server.http_builder().http1().header_read_timeout(app.config.header_timeout);
    let doorman = Doorman(Arc::new(Semaphore::new(app.config.max_connections)));
    listening(bound);
    let result = match tls {
        Some(tls) => {
            let patience = app.config.header_timeout;
            let secured = RustlsAcceptor::new(tls).handshake_timeout(patience).acceptor(doorman);
            server.acceptor(secured).serve(service).await
        }
        None => server.acceptor(doorman).serve(service).await,
    };
    stopping.store(true, Ordering::Relaxed);
    app.queue.close();
    drop(app);
    // what was accepted is answered by now; the threads end when their queues do
    let joined =
        tokio::task::spawn_blocking(move || threads.into_iter().try_for_each(|thread| thread.join()));
    let ended = matches!(joined.await, Ok(Ok(())));
    result.map_err(Error::Broken)?;
    if ended { Ok(()) } else { Err(Error::Broken(io::Error::other("a worker thread panicked"))) }
}

async fn certified(files: &TlsFiles) -> Result<RustlsConfig> {
    // a provider may have been installed by whoever embeds the server; then that one is used
    let _ = rustls::crypto::ring::default_provider().install_default();
    let read = RustlsConfig::from_pem_chain_file(&files.certificate, &files.key).await;
    let config = read.map_err(|source| Error::Tls {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        source,
    })?;
    // what is offered has to be what is spoken: a client that may choose would choose HTTP/2
    let mut inner = rustls::ServerConfig::clone(&config.get_inner());
    inner.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(RustlsConfig::from_config(Arc::new(inner)))
}

async fn stop_when_asked(
    stop: impl Future<Output = ()>,
    handle: Handle<SocketAddr>,
    app: Arc<App>,
    stopping: Arc<AtomicBool>,
) {
    stop.await;
    app.ready.store(false, Ordering::Relaxed);
    tracing::info!(queued = app.queue.images(), "asked to stop");
    // whoever balances load learns from /readyz that nothing should come here any more, before anything is refused
    tokio::time::sleep(app.config.drain).await;
    app.open.store(false, Ordering::Relaxed);
    stopping.store(true, Ordering::Relaxed);
    // a body that is being read may take its time, and its answer, too
    handle.graceful_shutdown(Some(app.config.body_timeout + app.config.deadline + GRACE));
}

/// What requests share, and the threads that work for them.
struct House {
    app: Arc<App>,
    threads: Vec<JoinHandle<()>>,
    /// Tells attacks that are being watched to end.
    stopping: Arc<AtomicBool>,
}

/// What a worker says when it has loaded its networks.
type Loaded = talion_core::Result<ModelFacts>;

impl House {
    fn open(config: ServeConfig, served: Served) -> Result<Self> {
        let queue = Arc::new(Queue::new(config.queue));
        let metrics = Arc::new(Metrics::new());
        let (loaded, ready) = channel();
        let mut threads: Vec<_> = (0..config.workers)
            .map(|_| worker(&config, Arc::clone(&served.networks), &queue, &metrics, loaded.clone()))
            .collect();
        drop(loaded);
        let mut facts = None;
        for _ in 0..config.workers {
            let told =
                ready.recv().map_err(|_| talion_core::Error::Refused("a worker did not start".into()))?;
            match told {
                Ok(told) => facts = Some(told),
                Err(error) => {
                    queue.close();
                    return Err(error.into());
                }
            }
        }
        let facts = facts.ok_or_else(|| talion_core::Error::Refused("no worker started".into()))?;
        let yardstick = yardstick(served.calibration, &facts, config.false_alarm_rate)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let playground = config.playground.then(|| {
            let (playground, thread) = attacker(served.networks, &facts, yardstick.clone(), &stopping);
            threads.push(thread);
            playground
        });
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let app = App {
            samples: samples(served.samples.as_ref(), &facts)?,
            room: Arc::new(Semaphore::new(config.max_in_flight.div_ceil(1024))),
            decoders: Arc::new(Semaphore::new(processors)),
            ready: AtomicBool::new(true),
            open: AtomicBool::new(true),
            config,
            facts,
            yardstick,
            queue,
            metrics,
            playground,
        };
        Ok(Self { app: Arc::new(app), threads, stopping })
    }
}

fn worker(
    config: &ServeConfig,
    networks: Loader,
    queue: &Arc<Queue>,
    metrics: &Arc<Metrics>,
    loaded: Sender<Loaded>,
) -> JoinHandle<()> {
    let (queue, metrics) = (Arc::clone(queue), Arc::clone(metrics));
    let batching = Batching { most: config.max_batch, patience: config.max_wait };
    std::thread::spawn(move || {
        // networks cannot be sent between threads, so each thread loads its own
        let guard = networks().and_then(Guard::new);
        let facts = guard.as_ref().map_err(|_| ()).map(ModelFacts::new);
        let told = match (facts, guard) {
            (Ok(Ok(facts)), Ok(guard)) => {
                // whoever does not listen any more has met another worker's error
                let _ = loaded.send(Ok(facts));
                drop(loaded);
                return work(&guard, &queue, batching, &metrics);
            }
            (Ok(Err(error)), _) | (_, Err(error)) => error,
            (Err(()), Ok(_)) => return,
        };
        let _ = loaded.send(Err(told));
    })
}

fn attacker(
    networks: Loader,
    facts: &ModelFacts,
    yardstick: Option<Yardstick>,
    stopping: &Arc<AtomicBool>,
) -> (Playground, JoinHandle<()>) {
    let (playground, sessions) = Playground::new();
    let (facts, stopping) = (facts.clone(), Arc::clone(stopping));
    let thread = std::thread::spawn(move || match networks().and_then(Guard::new) {
        Ok(guard) => playground::attack(&guard, &facts, yardstick.as_ref(), &sessions, &stopping),
        Err(error) => tracing::error!(%error, "attacks cannot be watched"),
    });
    (playground, thread)
}

/// The calibration with the rate in force.
fn yardstick(
    calibration: Option<(Calibration, PathBuf)>,
    facts: &ModelFacts,
    rate: Option<f64>,
) -> talion_core::Result<Option<Yardstick>> {
    let Some((calibration, origin)) = calibration else { return Ok(None) };
    calibration.check_networks(&facts.classifier.sha256, &facts.trn.sha256, &origin)?;
    let rate = rate.unwrap_or(calibration.false_alarm_rate);
    calibration.threshold(rate)?;
    Ok(Some(Yardstick { calibration: Arc::new(calibration), rate }))
}

/// The first images of `data`, if the networks take such.
fn samples(data: Option<&Dataset>, facts: &ModelFacts) -> talion_core::Result<Vec<Sample>> {
    let shape = facts.input;
    let fits = |data: &&Dataset| {
        (data.channels(), data.height(), data.width(), data.classes())
            == (shape.channels, shape.height, shape.width, facts.classes)
    };
    let Some(data) = data.filter(fits) else { return Ok(Vec::new()) };
    (0..SAMPLES.min(data.len()))
        .map(|index| {
            let (image, _) = data.tensor(&[index]).map_err(talion_core::Error::other)?;
            Ok(Sample {
                id: data.ids()[index],
                label: usize::try_from(data.labels()[index]).unwrap_or_default(),
                values: Vec::try_from(image.contiguous().flatten(0, -1))?,
            })
        })
        .collect()
}

/// Lets so many connections in and closes the others: each costs memory and a file descriptor, however idle.
#[derive(Clone)]
struct Doorman(Arc<Semaphore>);

impl<S> Accept<TcpStream, S> for Doorman {
    type Stream = Admitted;
    type Service = S;
    type Future = std::future::Ready<io::Result<(Admitted, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let admitted = Arc::clone(&self.0)
            .try_acquire_owned()
            .map_err(|_| io::Error::other("too many connections"))
            // answers are small and whole: waiting for more to send costs latency
            .and_then(|place| stream.set_nodelay(true).map(|()| Admitted { stream, _place: place }));
        std::future::ready(admitted.map(|stream| (stream, service)))
    }
}

/// A connection and its place among those allowed.
struct Admitted {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Admitted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Admitted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
