//! How to serve: typed, and checked once before anything starts.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use crate::{Error, Result, Tokens};

/// How much one request may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's body, and of one image in it. Default 8 MiB.
    pub max_body: usize,
    /// Width times height of one image, read from its header before it is decoded; all images of a request may have twice as
    /// much together. Default 4,194,304 (2,048 by 2,048).
    pub max_pixels: u64,
    /// Images of one request. Default 64.
    pub max_images: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_body: 8 << 20, max_pixels: 1 << 22, max_images: 64 }
    }
}

/// A certificate chain and its private key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// Where to listen; port 0 takes a free one. Default `127.0.0.1:8080`: nobody outside this machine.
    pub address: SocketAddr,
    /// Images that the networks are given at once, at most. Default 32.
    pub max_batch: usize,
    /// How long the first image of a batch waits for others. Default 2 ms.
    pub max_wait: Duration,
    /// Images that may wait; a request that does not fit is refused with 429. Default 256.
    pub queue: usize,
    /// How long a request may take from its last byte to its answer; later, it is refused with 504. A client may ask for less.
    /// Default 5 s.
    pub deadline: Duration,
    /// How long a client may take over the head of a request, and how long a connection may be idle. Default 10 s.
    pub header_timeout: Duration,
    /// How long a client may take over the body of a request. Default 30 s.
    pub body_timeout: Duration,
    /// How long `/readyz` says 503 before the server takes in nothing more, once it has been asked to stop: as long as whoever
    /// balances load needs to notice. Default 0.
    pub drain: Duration,
    /// Threads with networks of their own, each of which answers batches. Default 1.
    pub workers: usize,
    /// Connections at once; further ones are closed. Default 1,024.
    pub max_connections: usize,
    /// Bytes of all requests that are being read or decoded; a request that does not fit is refused with 429. Default 256 MiB.
    pub max_in_flight: usize,
    /// How much one request may ask for.
    pub limits: Limits,
    /// Who may ask; everybody if there are no tokens.
    pub tokens: Tokens,
    /// Serve HTTPS with these; plain HTTP without.
    pub tls: Option<TlsFiles>,
    /// Whether visitors of the page may run attacks.
    pub playground: bool,
    /// Finished runs to browse.
    pub runs: PathBuf,
    /// How many clean images may be called suspicious, if the networks have a calibration. Default: the calibration's own.
    pub false_alarm_rate: Option<f64>,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080),
            max_batch: 32,
            max_wait: Duration::from_millis(2),
            queue: 256,
            deadline: Duration::from_secs(5),
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            drain: Duration::ZERO,
            workers: 1,
            max_connections: 1024,
            max_in_flight: 256 << 20,
            limits: Limits::default(),
            tokens: Tokens::default(),
            tls: None,
            playground: true,
            runs: PathBuf::from("runs"),
            false_alarm_rate: None,
        }
    }
}

impl ServeConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// Names the first that cannot be used.
    pub fn validate(&self) -> Result<()> {
        let limits = &self.limits;
        let timeout = |name, value: Duration| {
            let possible = Duration::from_millis(1)..=Duration::from_secs(3600);
            (name, possible.contains(&value), "1 to 3600000", value.as_millis().to_string())
        };
        let checks = [
            ("max-batch", (1..=4096).contains(&self.max_batch), "1 to 4096", self.max_batch.to_string()),
            (
                "max-wait-ms",
                self.max_wait <= Duration::from_secs(1),
                "at most 1000",
                self.max_wait.as_millis().to_string(),
            ),
            ("queue", (1..=1 << 20).contains(&self.queue), "1 to 1048576", self.queue.to_string()),
            timeout("deadline-ms", self.deadline),
            timeout("header-timeout-ms", self.header_timeout),
            timeout("body-timeout-ms", self.body_timeout),
            (
                "drain-ms",
                self.drain <= Duration::from_secs(3600),
                "at most 3600000",
                self.drain.as_millis().to_string(),
            ),
            (
                "max-connections",
                (1..=1 << 20).contains(&self.max_connections),
                "1 to 1048576",
                self.max_connections.to_string(),
            ),
            ("workers", (1..=64).contains(&self.workers), "1 to 64", self.workers.to_string()),
            (
                "max-body-mib",
                (1..=1 << 30).contains(&limits.max_body),
                "1 to 1024",
                limits.max_body.to_string(),
            ),
            (
                "max-pixels",
                (1..=1 << 28).contains(&limits.max_pixels),
                "1 to 268435456",
                limits.max_pixels.to_string(),
            ),
            (
                "max-images",
                (1..=4096).contains(&limits.max_images),
                "1 to 4096",
                limits.max_images.to_string(),
            ),
            (
                "max-in-flight-mib",
                self.max_in_flight >= limits.max_body && self.max_in_flight <= 1 << 40,
                "at least the largest body",
                self.max_in_flight.to_string(),
            ),
            (
                "false-alarm-rate",
                self.false_alarm_rate.is_none_or(|rate| rate > 0.0 && rate < 1.0),
                "above 0 and below 1",
                self.false_alarm_rate.unwrap_or_default().to_string(),
            ),
        ];
        match checks.into_iter().find(|(_, holds, ..)| !holds) {
            Some((name, _, expected, found)) => Err(Error::Setting { name, expected, found }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_be_used_are_named() {
        let usual = ServeConfig::default;
        usual().validate().unwrap();
        for (name, config) in [
            ("max-batch", ServeConfig { max_batch: 0, ..usual() }),
            ("max-wait-ms", ServeConfig { max_wait: Duration::from_secs(2), ..usual() }),
            ("queue", ServeConfig { queue: 0, ..usual() }),
            ("deadline-ms", ServeConfig { deadline: Duration::ZERO, ..usual() }),
            ("header-timeout-ms", ServeConfig { header_timeout: Duration::ZERO, ..usual() }),
            ("body-timeout-ms", ServeConfig { body_timeout: Duration::MAX, ..usual() }),
            ("drain-ms", ServeConfig { drain: Duration::MAX, ..usual() }),
            ("max-connections", ServeConfig { max_connections: 0, ..usual() }),
            ("max-connections", ServeConfig { max_connections: usize::MAX, ..usual() }),
            ("workers", ServeConfig { workers: 0, ..usual() }),
            ("max-in-flight-mib", ServeConfig { max_in_flight: 1, ..usual() }),
            ("false-alarm-rate", ServeConfig { false_alarm_rate: Some(f64::NAN), ..usual() }),
        ] {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }
}
