//! Why a server does not start, or stops.

use std::{net::SocketAddr, path::PathBuf};

/// Result with [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a server does not start, or stops.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Networks, calibration or samples cannot be used.
    #[error(transparent)]
    Core(#[from] talion_core::Error),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; name another with --host and --port")]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Certificate and key cannot be used.
    #[error("{certificate} and {key} cannot be used for TLS: {source}")]
    Tls {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong with one of them.
        source: std::io::Error,
    },
    /// A file of tokens holds none that can be used.
    #[error("{path}: {problem}")]
    Tokens {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A setting cannot have this value.
    #[error("{name} is {found}, expected {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What was given.
        found: String,
    },
    /// The server broke down.
    #[error("the server stopped: {0}")]
    Broken(std::io::Error),
}
