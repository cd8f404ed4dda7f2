//! What program this is and what it runs on, as far as figures depend on it.

use serde::Serialize;

use crate::error::{Error, Result};

/// The release of libtorch that the bindings are made for.
const LIBTORCH: &str = "2.11.0";

/// Instructions that decide how fast convolutions are, by the names that Linux gives them.
const TELLING: [&str; 8] =
    ["avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16"];

/// The program and its machine.
#[derive(Debug, Serialize)]
pub struct About {
    /// The program's name.
    program: &'static str,
    /// Its version.
    version: &'static str,
    /// The version of libtorch.
    libtorch: &'static str,
    /// The processor's name, where the system tells.
    processor: Option<String>,
    /// What the processor can do, of what matters here.
    features: Vec<String>,
    /// Threads that libtorch says it uses inside an operation.
    threads: i32,
    /// Threads that libtorch says it uses between operations.
    interop_threads: i32,
    /// Whether libtorch has oneDNN.
    mkldnn: bool,
    /// Whether libtorch has MKL.
    mkl: bool,
    /// Whether libtorch has OpenMP.
    openmp: bool,
}

impl About {
    /// This process.
    pub fn this() -> Self {
        let told = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            program: "talion-bench",
            version: env!("CARGO_PKG_VERSION"),
            libtorch: LIBTORCH,
            processor: entry(&told, "model name").map(str::to_owned),
            features: features(&told),
            threads: tch::get_num_threads(),
            interop_threads: tch::get_num_interop_threads(),
            mkldnn: tch::utils::has_mkldnn(),
            mkl: tch::utils::has_mkl(),
            openmp: tch::utils::has_openmp(),
        }
    }
}

/// The most memory that this process has had, in KiB.
///
/// # Errors
/// If the system does not tell.
pub fn peak_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|_| Error::NoMemory)?;
    peak(&status).ok_or(Error::NoMemory)
}

/// The first value of a key in a text of `key : value` lines.
fn entry<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
        let fits = name.trim() == key;
        fits.then(|| value.trim())
    })
}

fn features(told: &str) -> Vec<String> {
    let flags: Vec<&str> = entry(told, "flags").unwrap_or_default().split_ascii_whitespace().collect();
    TELLING.into_iter().filter(|name| flags.contains(name)).map(str::to_owned).collect()
}

fn peak(status: &str) -> Option<u64> {
    entry(status, "VmHWM")?.strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_tells_is_read() {
        let told = "processor\t: 0\nmodel name\t: A: B\nflags\t\t: fpu avx2 amx_bf16 avx512f\n";
        assert_eq!(entry(told, "model name"), Some("A: B"));
        assert_eq!(features(told), ["avx2", "avx512f", "amx_bf16"]);
        assert_eq!(peak("VmPeak:\t  900 kB\nVmHWM:\t  1234 kB\n"), Some(1234));
        assert_eq!(peak("VmPeak:\t  900 kB\n"), None);
        assert!(features("").is_empty());
    }
}
