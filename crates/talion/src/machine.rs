//! What machine this is, as far as figures depend on it.

use std::time::{SystemTime, UNIX_EPOCH};

use talion_eval::Environment;
use tch::Device;

/// The environment of a run that begins now.
pub fn environment(device: Device) -> Environment {
    Environment {
        talion: env!("CARGO_PKG_VERSION").into(),
        libtorch: LIBTORCH.into(),
        device: match device {
            Device::Cuda(number) => format!("cuda:{number}"),
            _ => "cpu".into(),
        },
        processor: processor(),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        threads: tch::get_num_threads(),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        command: std::env::args().collect(),
        begun: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
    }
}

/// The release that the bindings are made for.
const LIBTORCH: &str = "2.11.0";

/// The processor's name, where the system tells.
fn processor() -> String {
    let told = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = told.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| "unknown".into(), |(_, name)| name.trim().to_owned())
}
