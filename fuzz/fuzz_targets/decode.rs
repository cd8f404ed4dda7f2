//! Whatever a request holds: no panic, no hang, no memory without bound, and pictures that are what they say.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The decoder alone: the crate it belongs to needs libtorch.
#[path = "../../crates/talion-serve/src/decode/mod.rs"]
mod decode;

use decode::{Limits, Picture, Problem};

const LIMITS: Limits =
    Limits { max_pixels: 1 << 16, max_total_pixels: 1 << 17, max_images: 8, max_bytes: 1 << 20 };

fuzz_target!(|data: &[u8]| {
    check(decode::pictures(data, false, &LIMITS));
    check(decode::pictures(data, true, &LIMITS));
    check(decode::files([data, data], &LIMITS));
    if let Ok(text) = std::str::from_utf8(data) {
        check(decode::base64_file(text, &LIMITS).map(|picture| vec![picture]));
    }
    // A file is one whatever the body is called.
    let alone = decode::file(data, &LIMITS);
    assert!(alone.is_err() || decode::sniff(data).is_some());
});

fn check(result: Result<Vec<Picture>, Problem>) {
    let Ok(pictures) = result else { return };
    assert!((1..=LIMITS.max_images).contains(&pictures.len()));
    let mut total = 0;
    for picture in &pictures {
        let pixels = u64::from(picture.width) * u64::from(picture.height);
        assert!((1..=LIMITS.max_pixels).contains(&pixels));
        total += pixels;
        assert!((1..=16).contains(&picture.channels));
        assert!(!picture.resizable || [1, 3].contains(&picture.channels));
        assert_eq!(picture.values.len() as u64, pixels * u64::from(picture.channels));
        assert!(picture.values.iter().all(|value| (0.0..=1.0).contains(value)));
    }
    assert!(total <= LIMITS.max_total_pixels);
}
