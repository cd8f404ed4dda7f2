//! The folder of a run.

use std::{
    fmt, fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use talion_core::{Error, Result};
use tch::Tensor;

use super::{
    Kept, NewChunk, RunStore, check, chunks, fault,
    header::{self, Cast},
    lock::{Lock, Wait},
    sqlite::{Access, SqliteStore},
};
use crate::{Chunk, Outcome, RunConfig, RunHeader};

/// The database's file inside a run's folder: where it is, there is a run.
const DATABASE: &str = "run.sqlite";

/// What the database is called until its header is in it.
const HALF_MADE: &str = "run.sqlite.new";

/// A run on disk, open for writing or for reading.
///
/// Many may read a run while one writes; each answer is of one moment.
pub struct RunFolder {
    path: PathBuf,
    header: RunHeader,
    cast: Arc<Cast>,
    store: Mutex<Box<dyn RunStore>>,
    /// None for those who read. Stands after the store, which is to be closed first.
    lock: Option<Lock>,
}

/// How many samples are finished, summed over clean images and all experiments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Finished.
    pub done: usize,
    /// In all.
    pub total: usize,
}

impl Progress {
    /// The share that is done, 0 to 1.
    pub fn share(self) -> f64 {
        if self.total == 0 { 1.0 } else { self.done as f64 / self.total as f64 }
    }

    /// Whether all is done.
    pub fn complete(self) -> bool {
        self.done == self.total
    }
}

impl RunFolder {
    /// Whether a folder holds a run, sound or not.
    pub fn exists(path: &Path) -> bool {
        path.join(DATABASE).exists()
    }

    /// Begins a run in a folder, which is made if it is not there, and opens it for writing.
    ///
    /// Killed at any moment, this leaves a whole run without outcomes, or a folder that holds no run and in which one
    /// can be begun.
    ///
    /// # Errors
    /// If the folder holds a run, another process is just beginning one there and `wait` says not to wait, the
    /// configuration names two things alike or an experiment with no samples or more than the run has, or the folder
    /// cannot be written.
    pub fn create(path: &Path, header: &RunHeader, wait: Wait<'_>) -> Result<Self> {
        let cast = Cast::of(&header.config)?;
        let sealed = header::seal(header)?;
        refuse_if_taken(path)?;
        fs::create_dir_all(path).map_err(fault::io(path))?;
        let lock = Lock::acquire(path, wait)?;
        // whoever held the lock may have begun a run
        refuse_if_taken(path)?;
        remove_half_made(path)?;
        if let Err(error) = build(path, &sealed, &cast) {
            // the cause is what matters, and what is left the next try removes
            let _ = remove_half_made(path);
            return Err(error);
        }
        Self::with(path, Some(lock), true)
    }

    /// Opens a run for writing, to go on with it.
    ///
    /// # Errors
    /// If the folder holds no run, another process writes to it and `wait` says not to wait, the run has another
    /// format, or its database is damaged.
    pub fn open(path: &Path, wait: Wait<'_>) -> Result<Self> {
        require(path)?;
        let lock = Lock::acquire(path, wait)?;
        chunks::sweep(path);
        Self::with(path, Some(lock), true)
    }

    /// Opens a run for reading, whether or not another process is writing to it.
    ///
    /// # Errors
    /// If the folder holds no run, the run has another format, or its database is damaged.
    pub fn read(path: &Path) -> Result<Self> {
        Self::with(path, None, true)
    }

    /// As [`RunFolder::read`], without reading the whole database to see whether it is damaged.
    pub(super) fn glance(path: &Path) -> Result<Self> {
        Self::with(path, None, false)
    }

    fn with(path: &Path, lock: Option<Lock>, whole: bool) -> Result<Self> {
        require(path)?;
        let access = if lock.is_some() { Access::Write } else { Access::Read };
        let (store, header, cast) = SqliteStore::open(&path.join(DATABASE), access, whole)?;
        Ok(Self { path: path.to_owned(), header, cast, store: Mutex::new(Box::new(store)), lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was asked for, and where it runs.
    pub fn header(&self) -> &RunHeader {
        &self.header
    }

    /// The keys of everything that is kept: [`crate::CLEAN`], then the experiments in the configuration's order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.cast.experiments.iter().map(|(key, _)| key.as_str())
    }

    /// The chunks of an experiment (or of [`crate::CLEAN`]), by their first sample.
    ///
    /// # Errors
    /// If there is no such experiment in the run, or the database is damaged.
    pub fn chunks(&self, experiment: &str) -> Result<Vec<Chunk>> {
        let (number, samples) = self.cast.experiment(experiment)?;
        let kept = self.store().chunks(number)?;
        self.check_records(samples, &kept)?;
        Ok(kept.into_iter().map(|kept| kept.chunk).collect())
    }

    /// All outcomes of an experiment (or of [`crate::CLEAN`]), by contender, in the configuration's order, then by row.
    ///
    /// # Errors
    /// If there is no such experiment in the run, or the database is damaged: every number is as it was written, or
    /// none is returned.
    pub fn outcomes(&self, experiment: &str) -> Result<Vec<Outcome>> {
        let (number, samples) = self.cast.experiment(experiment)?;
        let (kept, outcomes) = self.store().read(number)?;
        self.check_records(samples, &kept)?;
        let mut accounted = 0;
        for kept in &kept {
            accounted += kept.check_outcomes(&self.database(), &outcomes)?;
        }
        if accounted != outcomes.len() {
            let what = format!("`{experiment}` has outcomes that belong to no chunk");
            return Err(fault::damaged(&self.database(), &what));
        }
        Ok(outcomes)
    }

    /// The images of a chunk, `[rows, C, H, W]`, `f32`, on the CPU.
    ///
    /// # Errors
    /// If the chunk's file is missing, or is not what was written.
    pub fn images(&self, chunk: &Chunk) -> Result<Tensor> {
        chunks::read(&self.path, chunk)
    }

    /// The samples of an experiment that are not there yet, from the first. The next chunk has to begin where the first
    /// range begins and to end inside it.
    ///
    /// # Errors
    /// As [`RunFolder::chunks`].
    pub fn missing(&self, experiment: &str) -> Result<Vec<Range<usize>>> {
        let (_, samples) = self.cast.experiment(experiment)?;
        let (mut missing, mut next) = (Vec::new(), 0);
        for chunk in self.chunks(experiment)? {
            if chunk.first > next {
                missing.push(next..chunk.first);
            }
            next = chunk.first + chunk.rows;
        }
        if next < samples {
            missing.push(next..samples);
        }
        Ok(missing)
    }

    /// Whether every sample of an experiment is there.
    ///
    /// # Errors
    /// As [`RunFolder::chunks`].
    pub fn finished(&self, experiment: &str) -> Result<bool> {
        Ok(self.missing(experiment)?.is_empty())
    }

    /// How far the run has come.
    ///
    /// # Errors
    /// If the database is damaged.
    pub fn progress(&self) -> Result<Progress> {
        let mut progress = Progress::default();
        for (key, samples) in &self.cast.experiments {
            progress.done += self.chunks(key)?.iter().map(|chunk| chunk.rows).sum::<usize>();
            progress.total += samples;
        }
        Ok(progress)
    }

    /// All alarms in the order in which they were added.
    ///
    /// # Errors
    /// If the database is damaged.
    pub fn alarms(&self) -> Result<Vec<String>> {
        self.store().alarms()
    }

    /// Adds alarms; one that is there already is not added again.
    ///
    /// # Errors
    /// If the run was opened for reading, or the database cannot be written.
    pub fn add_alarms(&mut self, alarms: &[String]) -> Result<()> {
        self.require_lock()?;
        self.store().add_alarms(alarms)
    }

    /// Keeps a chunk: its images, and exactly one outcome of every contender and sample, in any order. When this
    /// returns, all of it is on the disk; if it fails, or the program is killed, nothing is, and the same chunk can be
    /// added again.
    ///
    /// Numbers come back bit for bit, but -0 comes back as 0.
    ///
    /// # Shapes
    /// `images` `[rows, C, H, W]`, `f32`, on any device.
    ///
    /// # Errors
    /// If the run was opened for reading; experiment, contender, sample or class are not in the configuration; the
    /// chunk does not begin with the first sample that is missing or overlaps one that is there; outcomes are missing
    /// or twice there; a number is not finite; or the folder cannot be written.
    pub fn add(&mut self, new: &NewChunk, images: &Tensor, outcomes: &[Outcome]) -> Result<()> {
        self.require_lock()?;
        let (number, _) = self.cast.experiment(&new.experiment)?;
        check::place(new, &self.missing(&new.experiment)?)?;
        check::images(new, images)?;
        check::effort(new)?;
        let outcomes = check::outcomes(&self.cast, self.config().class_names.len(), new, outcomes)?;
        let file = chunks::name(number, &new.experiment, new.first);
        let chunk = Chunk {
            experiment: new.experiment.clone(),
            first: new.first,
            rows: new.rows,
            sha256: chunks::write(&self.path, &file, &new.experiment, new.first, images)?,
            file,
            passes: new.passes,
            seconds: new.seconds + 0.0,
            adjustments: new.adjustments.clone(),
        };
        self.store().add(number, &Kept::of(chunk, &outcomes), &outcomes)
    }

    /// The chunks whose file is missing or damaged, or whose records are, each with what is wrong. Reads everything.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn broken_chunks(&self) -> Result<Vec<(Chunk, Error)>> {
        let mut broken = Vec::new();
        for number in 0..self.cast.experiments.len() {
            let (kept, outcomes) = self.store().read(number)?;
            for kept in kept {
                if let Err(error) = self.examine(&kept, &outcomes) {
                    broken.push((kept.chunk, error));
                }
            }
        }
        Ok(broken)
    }

    /// Removes a chunk and its outcomes from the database, so that they are computed again; its file is overwritten
    /// then.
    ///
    /// # Errors
    /// If the run was opened for reading, there is no such experiment, or the database cannot be written.
    pub fn forget(&mut self, chunk: &Chunk) -> Result<()> {
        self.require_lock()?;
        let (number, _) = self.cast.experiment(&chunk.experiment)?;
        self.store().forget(number, chunk.first)
    }

    fn examine(&self, kept: &Kept, outcomes: &[Outcome]) -> Result<()> {
        kept.check_record(&self.database())?;
        kept.check_outcomes(&self.database(), outcomes)?;
        chunks::read(&self.path, &kept.chunk).map(drop)
    }

    /// Chunks have to be as they were written, in order, apart from each other and inside their experiment.
    fn check_records(&self, samples: usize, kept: &[Kept]) -> Result<()> {
        let mut next = 0;
        for kept in kept {
            kept.check_record(&self.database())?;
            if kept.chunk.first < next || kept.end() > samples {
                let what = format!("{} overlap others or lie outside", super::describe(&kept.chunk));
                return Err(fault::damaged(&self.database(), &what));
            }
            next = kept.end();
        }
        Ok(())
    }

    fn config(&self) -> &RunConfig {
        &self.header.config
    }

    fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// A panic elsewhere leaves the database as it was: transactions are whole or not there.
    fn store(&self) -> MutexGuard<'_, Box<dyn RunStore>> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn require_lock(&self) -> Result<()> {
        if self.lock.is_some() {
            return Ok(());
        }
        Err(Error::Refused(format!("the run {} is open for reading only", self.path.display())))
    }
}

impl fmt::Debug for RunFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let writable = self.lock.is_some();
        f.debug_struct("RunFolder")
            .field("path", &self.path)
            .field("writable", &writable)
            .finish_non_exhaustive()
    }
}

fn require(path: &Path) -> Result<()> {
    if path.join(DATABASE).is_file() {
        return Ok(());
    }
    let problem = if path.join(HALF_MADE).exists() {
        "holds no run: one was killed here before it had begun; begin it again"
    } else {
        "holds no run; begin one, or name the folder of another"
    };
    Err(Error::file(path, problem))
}

fn refuse_if_taken(path: &Path) -> Result<()> {
    if path.join(DATABASE).try_exists().map_err(fault::io(path))? {
        let words = format!("{} holds a run already; resume it, or begin in another folder", path.display());
        return Err(Error::Refused(words));
    }
    Ok(())
}

/// Makes the database under another name, so that a run is there only with its header.
fn build(path: &Path, sealed: &header::Sealed, cast: &Cast) -> Result<()> {
    let half_made = path.join(HALF_MADE);
    SqliteStore::create(&half_made, sealed, cast)?;
    let journal = path.join(format!("{HALF_MADE}-wal"));
    if journal.exists() {
        // closing moves everything into the one file that is renamed, unless that fails
        return Err(Error::file(half_made, "could not be finished; look after the disk, then begin again"));
    }
    let database = path.join(DATABASE);
    fs::rename(&half_made, &database).map_err(fault::io(&database))?;
    fault::sync_folder(path)
}

fn remove_half_made(path: &Path) -> Result<()> {
    for ending in ["", "-wal", "-shm", "-journal"] {
        let file = path.join(format!("{HALF_MADE}{ending}"));
        match fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(fault::io(&file)(error));
            }
            _ => {}
        }
    }
    Ok(())
}
