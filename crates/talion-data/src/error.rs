//! What can go wrong with a data set, in words that say what to do about it.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// The result of this crate's functions.
pub type Result<T, E = DataError> = std::result::Result<T, E>;

/// One source that [`fetch`](crate::fetch()) tried, and why it gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The address or the package that was tried.
    pub source: String,
    /// Why it failed.
    pub cause: String,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source, self.cause)
    }
}

/// Why a data set could not be fetched, loaded or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused to read or write something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file that the data set needs is not there.
    #[error("{} is missing: {advice}", path.display())]
    Missing {
        /// The first file or folder that was looked for.
        path: PathBuf,
        /// What to do.
        advice: String,
    },
    /// A file is there but does not hold what it should.
    #[error("{}: expected {expected}, found {found}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What the format asks for.
        expected: String,
        /// What the file holds, with the advice where there is any.
        found: String,
    },
    /// A file's contents do not have the published checksum.
    #[error(
        "{}: expected the checksum {expected}, found {found}; the copy is damaged or not the official one: delete it \
         and fetch again",
        path.display()
    )]
    Checksum {
        /// The file.
        path: PathBuf,
        /// The published checksum, with its algorithm.
        expected: String,
        /// The checksum of what was found.
        found: String,
    },
    /// No source of a data set could give it.
    #[error("cannot fetch {name}; tried {} source(s):{}\n{advice}", attempts.len(), list(attempts))]
    NoSource {
        /// The data set.
        name: String,
        /// Every source tried, in order.
        attempts: Vec<Attempt>,
        /// What to do instead.
        advice: String,
    },
    /// A download failed.
    #[error("cannot download {url}: {cause}")]
    Download {
        /// The address.
        url: String,
        /// What went wrong.
        cause: String,
    },
    /// A program of a package manager failed.
    #[error("`{command}` failed: {cause}")]
    Command {
        /// The command line.
        command: String,
        /// Its complaint.
        cause: String,
    },
    /// A request makes no sense for this data set.
    #[error("{0}")]
    Request(String),
    /// libtorch refused to build a tensor.
    #[error("cannot build a tensor from image data: {0}")]
    Tensor(#[from] tch::TchError),
}

impl DataError {
    /// An [`Io`](Self::Io) error, for `map_err`.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// A [`Format`](Self::Format) error.
    pub(crate) fn format(path: &Path, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::Format { path: path.to_owned(), expected: expected.into(), found: found.into() }
    }
}

fn list(attempts: &[Attempt]) -> String {
    attempts.iter().map(|attempt| format!("\n  {attempt}")).collect()
}
