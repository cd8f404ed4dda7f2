//! Evaluations: a run in a folder, and what it says.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use pyo3::prelude::*;
use pyo3_tch::PyTensor;
use talion_core::{Budget, Classifier, Error, Result, Tensors, check_images, check_labels};
use talion_defenses::{EstimatorSpec, GradientMode, Trn};
use talion_eval::{
    Entrant, Environment, Experiment, Part, Player, Protocol, RunConfig, RunFolder, RunHeader, Scope,
    Setting, Subjects, Summary, Wait, carry_out, csv, exhibits, fingerprint, html, keep_exhibits,
    keep_latencies, kept_exhibits, kept_latencies, latencies, report_markdown, summarise, write_report,
};
use tch::Tensor;

use crate::{
    chunked::Chunked,
    error::raise,
    job::{Teller, Trouble, outside},
    network::Network,
    restorer::{PyTrn, Restorer},
    source::{Source, View},
    values::{device_name, plain},
};

/// The bare classifier's name in every table, as on the command line.
const BASE: &str = "undefended";
/// The defended classifier's.
const DEFENDED: &str = "TRN";

/// Images of a piece that is made a checksum at once.
const PIECE: i64 = 64;

/// What is asked for, beside networks and images. Python gives it as a dict.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Request {
    /// A protocol's name; none where `settings` are given.
    protocol: Option<String>,
    /// Attacks as `[VIEW:]ATTACK@[NORM:]EPSILON`.
    settings: Vec<String>,
    norm: String,
    epsilon: f64,
    /// Samples that attacks through the defence are run on; by default the protocol's.
    adaptive: Option<usize>,
    seed: u64,
    ids: Vec<u64>,
    /// What the images are called.
    data: String,
    class_names: Vec<String>,
    /// The folder of the run.
    out: PathBuf,
    libtorch: String,
    command: Vec<String>,
    latency: bool,
    pictures: bool,
    batch: Option<i64>,
}

/// A classifier that takes part, as Python gives it: its name, what it is in words, itself, and what tells Python code
/// from other Python code.
type Given<'py> = (String, String, PyRef<'py, Network>, BTreeMap<String, PyTensor>);

/// The same without anything that belongs to the interpreter.
struct Party {
    name: String,
    description: String,
    source: Arc<Source>,
    known: Tensors,
}

impl Party {
    fn of((name, description, network, known): Given<'_>) -> Self {
        let known = known.into_iter().map(|(name, tensor)| (name, tensor.0)).collect();
        Self { name, description, source: Arc::clone(&network.source), known }
    }

    fn player(&self, defence: Option<&Trn>) -> Result<Player> {
        let weights = self.source.identity(&self.known)?;
        let Some(trn) = defence else {
            return Ok(Player {
                name: self.name.clone(),
                description: self.description.clone(),
                sha256: fingerprint(&[&weights])?,
                defended: false,
            });
        };
        let network = match trn.card().spec.estimator {
            EstimatorSpec::None => "one-stream restoration network".to_owned(),
            EstimatorSpec::Oracle => {
                let words = "a network that is told the true labels is no defence to evaluate";
                return Err(Error::Refused(words.into()));
            }
            estimator => format!("TRN with {estimator} maps"),
        };
        Ok(Player {
            name: DEFENDED.into(),
            description: format!(
                "{network} of {} weights, trained on {}, in front of {}",
                trn.parameters(),
                trn.card().dataset,
                self.description
            ),
            sha256: fingerprint(&[&weights, &trn.tensors()])?,
            defended: true,
        })
    }
}

/// Carries out a run in its folder, or goes on with one, and says what came of it. Also returns what was found damaged
/// in the folder and made anew, in words.
#[pyfunction]
#[pyo3(signature = (party, images, labels, trn, surrogates, request, report = None))]
#[allow(clippy::too_many_arguments)] // they are what an evaluation is made of, and only Python calls it
pub(crate) fn evaluate(
    py: Python<'_>,
    party: Given<'_>,
    images: PyTensor,
    labels: PyTensor,
    trn: Option<PyRef<'_, PyTrn>>,
    surrogates: Vec<Given<'_>>,
    request: Request,
    report: Option<PyObject>,
) -> PyResult<(Results, Vec<String>)> {
    let base = Party::of(party);
    let surrogates: Vec<Party> = surrogates.into_iter().map(Party::of).collect();
    let trn = trn.map(|trn| Arc::clone(&trn.restorer));
    let (images, labels) = (images.0, labels.0);
    outside(py, move |trouble| {
        let work = Work { request, base, trn, surrogates, images, labels };
        let mut told = Vec::new();
        let summary = work.carry_out(report, trouble, &mut told)?;
        Ok((Results { summary }, told))
    })
}

/// Reads the run in a folder, finished or not.
#[pyfunction]
pub(crate) fn read_run(py: Python<'_>, path: PathBuf) -> PyResult<Results> {
    outside(py, move |_| {
        let folder = RunFolder::read(&path)?;
        Ok(Results { summary: summarise(&folder, kept_latencies(&path)?, kept_exhibits(&path)?)? })
    })
}

struct Work {
    request: Request,
    base: Party,
    trn: Option<Arc<Restorer>>,
    surrogates: Vec<Party>,
    images: Tensor,
    labels: Tensor,
}

impl Work {
    fn carry_out(
        &self,
        report: Option<PyObject>,
        trouble: &Trouble,
        told: &mut Vec<String>,
    ) -> Result<Summary> {
        self.check()?;
        let request = &self.request;
        let base = self.base.source.view(trouble)?;
        let base_chunked = Chunked::new(&base, request.batch)?;
        let views: Vec<View<'_>> =
            self.surrogates.iter().map(|party| party.source.view(trouble)).collect::<Result<_>>()?;
        let views: Vec<Chunked<'_>> =
            views.iter().map(|view| Chunked::new(view, request.batch)).collect::<Result<_>>()?;
        let lent = self.trn.as_ref().map(|trn| trn.lend(base.device())).transpose()?;

        let mut entrants =
            vec![Entrant { player: self.base.player(None)?, classifier: &base_chunked, defence: None }];
        if let Some(trn) = lent.as_deref() {
            let player = self.base.player(Some(trn))?;
            entrants.push(Entrant { player, classifier: &base_chunked, defence: Some(trn) });
        }
        for (party, view) in self.surrogates.iter().zip(&views) {
            entrants.push(Entrant { player: party.player(None)?, classifier: view, defence: None });
        }

        let header = self.header(&entrants)?;
        let path = request.out.as_path();
        let mut folder = open(path, &header, told)?;
        let subjects = Subjects { images: &self.images, labels: &self.labels, ids: &request.ids };
        follow(&mut folder, &entrants, subjects, &mut Teller::new(report, trouble))?;
        self.look_closer(path, &folder, &entrants, subjects)?;
        summarise(&folder, kept_latencies(path)?, kept_exhibits(path)?)
    }

    fn check(&self) -> Result<()> {
        check_images(&self.images)?;
        let classes = self.base.source.classes();
        let rows = self.images.size().first().copied().unwrap_or(0);
        check_labels(&self.labels, rows, classes)?;
        if rows < 1 {
            return Err(Error::range("the number of images", "at least 1", rows));
        }
        if self.request.class_names.len() as i64 != classes {
            let found = self.request.class_names.len();
            return Err(Error::range("the number of class names", classes.to_string(), found));
        }
        for party in std::iter::once(&self.base).chain(&self.surrogates) {
            party.source.check_channels(&self.images)?;
            let found = party.source.classes();
            if found != classes {
                let what = format!("the number of classes of {}", party.name);
                return Err(Error::range(what, classes.to_string(), found));
            }
        }
        Ok(())
    }

    /// What decides the results, and where they are made.
    fn header(&self, entrants: &[Entrant<'_>]) -> Result<RunHeader> {
        let request = &self.request;
        let names: Vec<String> = self.surrogates.iter().map(|party| party.name.clone()).collect();
        let players: Vec<Player> = entrants.iter().map(|entrant| entrant.player.clone()).collect();
        if let Some(name) = names.iter().find(|name| players.iter().filter(|one| one.name == **name).count() > 1) {
            return Err(Error::Refused(format!("two models are called `{name}`; give the surrogate another name")));
        }
        let (surrogates, contenders): (Vec<Player>, Vec<Player>) =
            players.into_iter().partition(|player| names.contains(&player.name));
        let config = RunConfig {
            protocol: request.protocol.clone().unwrap_or_else(|| "custom".into()),
            data: request.data.clone(),
            data_sha256: fingerprint(&[&self.data()])?,
            class_names: request.class_names.clone(),
            budget: Budget::new(request.norm.parse()?, request.epsilon)?,
            samples: request.ids.len(),
            seed: request.seed,
            experiments: self.experiments(&contenders, &names)?,
            contenders,
            surrogates,
        };
        Ok(RunHeader { config, environment: self.environment() })
    }

    /// Images and labels by name; the images in pieces, since each is made a list of numbers on the way to its checksum.
    fn data(&self) -> Tensors {
        let mut data = Tensors::from([("labels".to_owned(), self.labels.shallow_clone())]);
        let rows = self.images.size().first().copied().unwrap_or(0);
        for first in (0..rows).step_by(PIECE as usize) {
            let piece = self.images.narrow(0, first, PIECE.min(rows - first));
            data.insert(format!("images {first:010}"), piece);
        }
        data
    }

    fn experiments(&self, contenders: &[Player], surrogates: &[String]) -> Result<Vec<Experiment>> {
        let request = &self.request;
        let defended: Vec<String> =
            contenders.iter().filter(|player| player.defended).map(|player| player.name.clone()).collect();
        let samples = request.ids.len();
        let Some(protocol) = &request.protocol else {
            let adaptive = request.adaptive.unwrap_or(samples).min(samples);
            let all = request.settings.iter().map(|text| setting(text, &defended, (samples, adaptive)));
            return all.collect();
        };
        let protocol: Protocol = protocol.parse()?;
        protocol.experiments(&Scope {
            base: BASE,
            defended: &defended,
            surrogates,
            budget: Budget::new(request.norm.parse()?, request.epsilon)?,
            samples,
            adaptive: request.adaptive.unwrap_or(protocol.samples().1).min(samples),
        })
    }

    fn environment(&self) -> Environment {
        Environment {
            talion: env!("CARGO_PKG_VERSION").into(),
            libtorch: self.request.libtorch.clone(),
            device: device_name(self.base.source.device()),
            processor: processor(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            threads: tch::get_num_threads(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            command: self.request.command.clone(),
            begun: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        }
    }

    /// Pictures and times, which need the networks; kept beside the run if they are not there.
    fn look_closer(
        &self,
        path: &Path,
        folder: &RunFolder,
        entrants: &[Entrant<'_>],
        subjects: Subjects<'_>,
    ) -> Result<()> {
        let drawable = matches!(self.images.size().get(1), Some(1 | 3));
        if self.request.pictures && drawable && kept_exhibits(path)?.is_empty() {
            keep_exhibits(path, &exhibits(folder, entrants, subjects, (4, 2))?)?;
        }
        if self.request.latency && kept_latencies(path)?.is_empty() {
            keep_latencies(path, &latencies(entrants, subjects.images)?)?;
        }
        Ok(())
    }
}

/// An attack that was asked for by itself: on the bare classifier, or on the defended one through its defence.
fn setting(text: &str, defended: &[String], (samples, adaptive): (usize, usize)) -> Result<Experiment> {
    let Setting { threat: view, attack, budget } = text.parse()?;
    let through = view != GradientMode::Oblivious;
    let victim = match (through, defended.first()) {
        (false, _) => BASE.to_owned(),
        (true, Some(name)) => name.clone(),
        (true, None) => {
            let words = format!(
                "{text} attacks through a defence, and there is none: give a TRN, or leave out {view}:"
            );
            return Err(Error::Refused(words));
        }
    };
    let samples = if through { adaptive } else { samples };
    Ok(Experiment {
        victim,
        view,
        attack,
        budget,
        samples,
        until_fooled: through,
        after: Vec::new(),
        part: Part::Main,
    })
}

/// The run in a folder, begun if there is none. What is damaged in it is forgotten, and told.
fn open(path: &Path, header: &RunHeader, told: &mut Vec<String>) -> Result<RunFolder> {
    if !RunFolder::exists(path) {
        return RunFolder::create(path, header, Wait::No);
    }
    let mut folder = RunFolder::open(path, Wait::No)?;
    if folder.header().config != header.config {
        let words = "holds a run with other settings, networks or images; name another folder, or repeat what it was begun \
                     with";
        return Err(Error::file(path, words));
    }
    for (chunk, problem) in folder.broken_chunks()? {
        told.push(format!("{problem}; these {} samples are attacked again", chunk.rows));
        folder.forget(&chunk)?;
    }
    Ok(folder)
}

fn follow(
    folder: &mut RunFolder,
    entrants: &[Entrant<'_>],
    subjects: Subjects<'_>,
    teller: &mut Teller<'_>,
) -> Result<()> {
    let config = &folder.header().config;
    let sizes: Vec<usize> = std::iter::once(config.samples)
        .chain(config.experiments.iter().map(|experiment| experiment.samples))
        .collect();
    let total: usize = sizes.iter().sum();
    carry_out(folder, entrants, subjects, &mut |advance| {
        let before: usize = sizes.iter().take(advance.number).sum();
        teller.tell(before + advance.done, total, advance.what);
        ControlFlow::Continue(())
    })
}

/// The processor's name, where the system tells.
fn processor() -> String {
    let told = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = told.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| "unknown".into(), |(_, name)| name.trim().to_owned())
}

/// What a run says.
#[pyclass(frozen, module = "talion._talion")]
pub(crate) struct Results {
    summary: Summary,
}

#[pymethods]
impl Results {
    /// Everything, as a dict.
    #[getter]
    fn summary<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        plain(py, &self.summary)
    }

    fn markdown(&self) -> String {
        report_markdown(std::slice::from_ref(&self.summary))
    }

    fn csv(&self) -> String {
        csv(std::slice::from_ref(&self.summary))
    }

    fn html(&self, py: Python<'_>) -> PyResult<String> {
        html(std::slice::from_ref(&self.summary)).map_err(|error| raise(py, &error))
    }

    /// Writes the page, and beside it Markdown, CSV and JSON.
    fn write(&self, py: Python<'_>, path: PathBuf) -> PyResult<Vec<PathBuf>> {
        write_report(std::slice::from_ref(&self.summary), &path).map_err(|error| raise(py, &error))
    }
}
