//! The server as its clients meet it, well-meaning ones and others. All in one program: linking one more takes longer
//! than running it.

mod api;
mod faults;
mod lifecycle;
mod load;
mod server;

use std::{io::Cursor, ops::Range, sync::OnceLock};

use base64::{Engine, engine::general_purpose::STANDARD};
use image::{DynamicImage, GrayImage, ImageFormat};
use serde_json::{Value, json};

/// Pixels along an edge of a bundled image.
const SIDE: usize = 28;
const PIXELS: usize = SIDE * SIDE;
const NPY: &str = "application/x-npy";
const JSON: &str = "application/json";
const FORM: &str = "multipart/form-data; boundary=between-the-images";

/// The pixels of a bundled test image.
fn pixels(index: usize) -> &'static [u8] {
    static ALL: OnceLock<Vec<u8>> = OnceLock::new();
    let all = ALL.get_or_init(|| talion_data::fashion_mnist_sample().unwrap().images().to_vec());
    &all[index * PIXELS..][..PIXELS]
}

/// The true classes of the bundled test images.
fn labels() -> Vec<i64> {
    talion_data::fashion_mnist_sample().unwrap().labels().to_vec()
}

fn gray(width: u32, height: u32, pixels: &[u8]) -> DynamicImage {
    GrayImage::from_raw(width, height, pixels.to_vec()).unwrap().into()
}

/// A bundled test image.
fn picture(index: usize) -> DynamicImage {
    gray(SIDE as u32, SIDE as u32, pixels(index))
}

fn file(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn png(index: usize) -> Vec<u8> {
    file(&picture(index), ImageFormat::Png)
}

/// An NPY file, format 1.0: `kind` and `shape` as Python writes them.
fn npy(kind: &str, shape: &str, values: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}");
    // magic, version, length and header together fill a multiple of 64 bytes
    header.push_str(&" ".repeat(63 - (10 + header.len()) % 64));
    header.push('\n');
    let length = u16::try_from(header.len()).unwrap().to_le_bytes();
    [&b"\x93NUMPY\x01\x00"[..], &length, header.as_bytes(), values].concat()
}

/// Bundled test images as one NPY file of bytes.
fn batch(images: Range<usize>) -> Vec<u8> {
    let shape = format!("({}, 1, {SIDE}, {SIDE})", images.len());
    npy("|u1", &shape, &images.flat_map(pixels).copied().collect::<Vec<u8>>())
}

/// Rows of values in `[0, 1]`.
fn plane(pixels: &[u8]) -> Value {
    let values: Vec<f32> = pixels.iter().map(|&pixel| f32::from(pixel) / 255.0).collect();
    json!(values.chunks(SIDE).collect::<Vec<_>>())
}

/// Files as a form, to be sent as [`FORM`].
fn form(files: &[Vec<u8>]) -> Vec<u8> {
    let mut body = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let head = format!(
            "--between-the-images\r\nContent-Disposition: form-data; name=\"image\"; filename=\"{index}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        body.extend([head.as_bytes(), file, b"\r\n"].concat());
    }
    body.extend(b"--between-the-images--\r\n");
    body
}

/// A file in Base64.
fn coded_file(file: &[u8]) -> String {
    STANDARD.encode(file)
}

/// Files as a JSON body.
fn coded(files: &[Vec<u8>]) -> Vec<u8> {
    let images: Vec<String> = files.iter().map(|file| coded_file(file)).collect();
    json!({ "images": images }).to_string().into_bytes()
}

/// The image in a `data:` URL.
#[track_caller]
fn drawn(url: &Value) -> DynamicImage {
    let code = url.as_str().and_then(|url| url.strip_prefix("data:image/png;base64,"));
    let code = code.unwrap_or_else(|| panic!("no PNG: {url}"));
    image::load_from_memory_with_format(&STANDARD.decode(code).unwrap(), ImageFormat::Png).unwrap()
}
