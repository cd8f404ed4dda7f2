//! Whatever an ONNX file holds: no panic, no hang, no memory without bound; and what is read is folded, or refused.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // no folder: external data is refused, and the fuzzer stays away from the disk
    let Ok(graph) = talion_onnx::from_bytes(data, Path::new("fuzzed.onnx"), None) else { return };
    let _ = talion_onnx::unsupported(&graph);
    let _ = talion_onnx::fold(graph);
});
