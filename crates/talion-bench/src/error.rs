//! What can go wrong, in the words of the answer.

use std::io;

/// Result with [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// talion's libraries refused.
    #[error(transparent)]
    Talion(#[from] talion_core::Error),
    /// A data set could not be read or made.
    #[error(transparent)]
    Data(#[from] talion_data::DataError),
    /// libtorch refused.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// The line is not a request that this worker knows.
    #[error("not a request: {0}")]
    Request(#[from] serde_json::Error),
    /// A job needs what no `load` has named.
    #[error("this needs {0}, and none is loaded: name one in a `load` request")]
    NotLoaded(&'static str),
    /// A job ended in the middle, mostly because libtorch refused where tch has no error to return.
    #[error("the job broke off: {0}")]
    BrokenOff(String),
    /// The system keeps the number to itself.
    #[error("this system does not tell the peak memory of a process: /proc/self/status has no VmHWM")]
    NoMemory,
    /// Standard input or output failed.
    #[error("standard input or output: {0}")]
    Pipe(#[from] io::Error),
}

impl Error {
    /// A value that lies outside what it may be.
    pub fn range(what: &str, expected: impl Into<String>, found: impl ToString) -> Self {
        talion_core::Error::range(what, expected, found).into()
    }
}
