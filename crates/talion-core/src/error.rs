//! The errors of the library crates: what was expected, what was found, and where.

use std::path::PathBuf;

/// Result with [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in talion's libraries.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor has the wrong shape.
    #[error("{what} has shape {found:?}, expected {expected}")]
    Shape {
        /// The tensor's role, for instance `images`.
        what: &'static str,
        /// The wanted shape in words, for instance `[N, C, H, W]`.
        expected: String,
        /// The shape that was given.
        found: Vec<i64>,
    },
    /// A value lies outside what it may be.
    #[error("{what} is {found}, expected {expected}")]
    Range {
        /// The value's name.
        what: String,
        /// The allowed values in words.
        expected: String,
        /// The value that was given.
        found: String,
    },
    /// A text names nothing that is known.
    #[error("unknown {what} `{found}`; known: {known}")]
    Unknown {
        /// The kind of thing, for instance `architecture`.
        what: &'static str,
        /// The text that was given.
        found: String,
        /// What it could have been.
        known: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The request cannot be carried out as asked.
    #[error("{0}")]
    Refused(String),
    /// Somebody asked the work to stop.
    #[error("interrupted; what was finished is kept")]
    Interrupted,
    /// An error of the data sets, or of another source that keeps its own type.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
    /// libtorch reported an error.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

impl Error {
    /// An [`Error::Io`] for `path`, for use in `map_err`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// An [`Error::File`] for `path`.
    pub fn file(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::File { path: path.into(), problem: problem.into() }
    }

    /// An [`Error::Other`], for use in `map_err`.
    pub fn other(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Other(Box::new(source))
    }

    /// An [`Error::Range`].
    pub fn range(what: impl Into<String>, expected: impl Into<String>, found: impl ToString) -> Self {
        Self::Range { what: what.into(), expected: expected.into(), found: found.to_string() }
    }
}
