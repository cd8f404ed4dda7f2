//! Whatever a PyTorch archive holds: no panic, no hang, no memory without bound, and nothing is called.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use talion_models::import::{StateDict, map};

fuzz_target!(|data: &[u8]| {
    let path = Path::new("fuzzed.pt");
    let Ok(read) = StateDict::from_bytes(data, path) else { return };
    let _ = map(&read.tensors, None, path);
});
