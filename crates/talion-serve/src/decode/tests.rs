use std::{io::Cursor, sync::LazyLock};

use base64::{Engine, engine::general_purpose::STANDARD};
use image::{
    DynamicImage, GrayAlphaImage, GrayImage, ImageBuffer, ImageEncoder, ImageFormat, RgbImage, RgbaImage,
    codecs::{jpeg::JpegEncoder, png::PngEncoder, webp::WebPEncoder},
};
use npyz::WriterBuilder;
use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { max_pixels: 4096, max_total_pixels: 6000, max_images: 4, max_bytes: 100_000 };

fn decode(bytes: &[u8]) -> Result<Vec<Picture>, Problem> {
    pictures(bytes, false, &LIMITS)
}

fn decode_json(text: &str) -> Result<Vec<Picture>, Problem> {
    pictures(text.as_bytes(), true, &LIMITS)
}

fn only(result: Result<Vec<Picture>, Problem>) -> Picture {
    let mut pictures = result.unwrap();
    assert_eq!(pictures.len(), 1);
    pictures.remove(0)
}

#[track_caller]
fn refused(result: Result<Vec<Picture>, Problem>, status: u16, words: &str) {
    let (found, text) = match result.unwrap_err() {
        Problem::Malformed(text) => (400, text),
        Problem::TooLarge(text) => (413, text),
        Problem::Unsupported(text) => (415, text),
        Problem::Unprocessable(text) => (422, text),
    };
    assert!(found == status && text.contains(words), "{found}: {text}");
}

/// What has to hold whatever the bytes are.
fn check(result: Result<Vec<Picture>, Problem>) {
    let Ok(pictures) = result else { return };
    assert!((1..=LIMITS.max_images).contains(&pictures.len()));
    for picture in pictures {
        let pixels = picture.width as usize * picture.height as usize;
        assert!((1..=LIMITS.max_pixels as usize).contains(&pixels));
        assert!((1..=16).contains(&picture.channels));
        assert_eq!(picture.values.len(), pixels * usize::from(picture.channels));
        assert!(picture.values.iter().all(|value| (0.0..=1.0).contains(value)));
    }
}

fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut file = Vec::new();
    image.into().write_to(&mut Cursor::new(&mut file), format).unwrap();
    file
}

fn colours() -> RgbImage {
    RgbImage::from_fn(9, 7, |x, y| image::Rgb([x as u8 * 25, y as u8 * 40, (x * y) as u8]))
}

fn scaled(samples: &[u8]) -> Vec<f32> {
    samples.iter().map(|&sample| f32::from(sample) / 255.0).collect()
}

/// A PNG file of these chunks.
fn png(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for &(kind, data) in chunks {
        let body = [&kind[..], data].concat();
        file.extend((data.len() as u32).to_be_bytes());
        file.extend(&body);
        file.extend(crc32(&body).to_be_bytes());
    }
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, &byte| {
        let step = |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        (0..8).fold(crc ^ u32::from(byte), step)
    })
}

/// The header of a PNG file of 8 bits a sample; type 0 is grey, 3 a palette.
fn header(width: u32, height: u32, color_type: u8) -> Vec<u8> {
    [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, color_type, 0, 0, 0]].concat()
}

/// A zlib stream that stores its bytes as they are.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let len = bytes.len() as u16;
    let (a, b) = bytes.iter().fold((1, 0), |(a, b), &byte| {
        let a = (a + u32::from(byte)) % 65521;
        (a, (a + b) % 65521)
    });
    let start = [&[0x78, 1, 1][..], &len.to_le_bytes(), &(!len).to_le_bytes()].concat();
    [&start[..], bytes, &((b << 16) | a).to_be_bytes()].concat()
}

/// A RIFF file of these chunks.
fn webp(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    let mut body = b"WEBP".to_vec();
    for &(kind, data) in chunks {
        body.extend(kind);
        body.extend((data.len() as u32).to_le_bytes());
        body.extend(data);
        body.resize(body.len().next_multiple_of(2), 0);
    }
    [&b"RIFF"[..], &(body.len() as u32).to_le_bytes(), &body].concat()
}

fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let start = [&b"\x93NUMPY\x01\x00"[..], &(header.len() as u16).to_le_bytes()].concat();
    [&start[..], header.as_bytes(), data].concat()
}

fn npy_of(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    npy(&format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n"), data)
}

/// Whole files of each kind.
static FILES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let grey = GrayImage::from_fn(9, 7, |x, y| image::Luma([(x * 20 + y) as u8]));
    let alpha = RgbaImage::from_fn(5, 3, |x, y| image::Rgba([x as u8 * 50, y as u8 * 50, 9, (x * 60) as u8]));
    let zeros = [0; 3 * 8];
    vec![
        encode(colours(), ImageFormat::Png),
        encode(alpha.clone(), ImageFormat::Png),
        encode(colours(), ImageFormat::Jpeg),
        encode(grey, ImageFormat::Jpeg),
        encode(colours(), ImageFormat::WebP),
        encode(alpha, ImageFormat::WebP),
        with_exif(ImageFormat::WebP, 6),
        npy_of(">f8", "(1, 3)", &zeros),
        npy_of("|u1", "(2, 3, 1, 1)", &[1, 2, 3, 4, 5, 6]),
    ]
});

/// A picture of three by two greys, 1 to 6, whose EXIF data ask for a rotation.
fn with_exif(format: ImageFormat, orientation: u8) -> Vec<u8> {
    let start = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0";
    let exif = [&start[..], &[orientation, 0, 0, 0, 0, 0, 0, 0]].concat();
    let image = DynamicImage::from(GrayImage::from_raw(3, 2, vec![1, 2, 3, 4, 5, 6]).unwrap());
    let mut file = Vec::new();
    match format {
        ImageFormat::Png => encode_with(&image, PngEncoder::new(&mut file), exif),
        ImageFormat::Jpeg => encode_with(&image, JpegEncoder::new(&mut file), exif),
        _ => encode_with(&image.to_rgb8().into(), WebPEncoder::new_lossless(&mut file), exif),
    }
    file
}

fn encode_with(image: &DynamicImage, mut encoder: impl ImageEncoder, exif: Vec<u8>) {
    encoder.set_exif_metadata(exif).unwrap();
    image.write_with_encoder(encoder).unwrap();
}

#[test]
fn png_of_8_bits_keeps_its_channels() {
    let grey = GrayImage::from_raw(3, 2, vec![0, 1, 2, 127, 128, 255]).unwrap();
    let picture = only(decode(&encode(grey, ImageFormat::Png)));
    let values = scaled(&[0, 1, 2, 127, 128, 255]);
    assert_eq!(picture, Picture { width: 3, height: 2, channels: 1, values, resizable: true });
    let picture = only(decode(&encode(colours(), ImageFormat::Png)));
    assert_eq!((picture.width, picture.height, picture.channels), (9, 7, 3));
    assert_eq!(picture.values, scaled(colours().as_raw()));
}

#[test]
fn alpha_is_composited_on_black() {
    let image = RgbaImage::from_raw(2, 1, vec![200, 100, 0, 51, 10, 20, 30, 255]).unwrap();
    for format in [ImageFormat::Png, ImageFormat::WebP] {
        let picture = only(decode(&encode(image.clone(), format)));
        assert_eq!(picture.channels, 3);
        for (value, expected) in picture.values.iter().zip([40.0, 20.0, 0.0, 10.0, 20.0, 30.0]) {
            assert!((value * 255.0 - expected).abs() < 1e-4, "{format:?}: {:?}", picture.values);
        }
    }
    let image = GrayAlphaImage::from_raw(2, 1, vec![250, 102, 250, 0]).unwrap();
    let picture = only(decode(&encode(image, ImageFormat::Png)));
    assert_eq!((picture.channels, picture.values[1]), (1, 0.0));
    assert!((picture.values[0] * 255.0 - 100.0).abs() < 1e-4);
}

#[test]
fn png_of_16_bits_loses_nothing() {
    let samples = vec![0_u16, 1, 256, 257, 32768, 65535];
    let expected: Vec<f32> = samples.iter().map(|&sample| f32::from(sample) / 65535.0).collect();
    let grey = ImageBuffer::<image::Luma<u16>, _>::from_raw(3, 2, samples.clone()).unwrap();
    let picture = only(decode(&encode(grey, ImageFormat::Png)));
    assert_eq!((picture.channels, &picture.values), (1, &expected));
    let rgb = ImageBuffer::<image::Rgb<u16>, _>::from_raw(1, 2, samples).unwrap();
    let picture = only(decode(&encode(rgb, ImageFormat::Png)));
    assert_eq!((picture.channels, &picture.values), (3, &expected));
    let half = ImageBuffer::<image::Rgba<u16>, _>::from_raw(1, 1, vec![65535, 6554, 0, 32768]).unwrap();
    let picture = only(decode(&encode(half, ImageFormat::Png)));
    let alpha = 32768.0_f32 / 65535.0;
    assert_eq!(picture.values, [alpha, 6554.0 / 65535.0 * alpha, 0.0]);
}

#[test]
fn palettes_are_resolved() {
    let (head, data) = (header(2, 1, 3), stored(&[0, 1, 0]));
    let palette: (&[u8; 4], &[u8]) = (b"PLTE", &[255, 0, 51, 0, 0, 255]);
    let plain = png(&[(b"IHDR", &head), palette, (b"IDAT", &data), (b"IEND", &[])]);
    assert_eq!(only(decode(&plain)).values, [0.0, 0.0, 1.0, 1.0, 0.0, 0.2]);
    // The second entry, blue, is transparent.
    let clear = png(&[(b"IHDR", &head), palette, (b"tRNS", &[255, 0]), (b"IDAT", &data), (b"IEND", &[])]);
    assert_eq!(only(decode(&clear)).values, [0.0, 0.0, 0.0, 1.0, 0.0, 0.2]);
}

#[test]
fn jpeg_and_webp_are_read() {
    let picture = only(decode(&encode(colours(), ImageFormat::WebP)));
    assert_eq!((picture.width, picture.height, picture.channels), (9, 7, 3));
    assert_eq!(picture.values, scaled(colours().as_raw()));
    let grey = GrayImage::from_pixel(20, 10, image::Luma([200]));
    let picture = only(decode(&encode(grey, ImageFormat::Jpeg)));
    assert_eq!((picture.width, picture.height, picture.channels), (20, 10, 1));
    assert!(picture.values.iter().all(|value| (value * 255.0 - 200.0).abs() < 3.0));
    let red = RgbImage::from_pixel(8, 8, image::Rgb([250, 10, 10]));
    let picture = only(decode(&encode(red, ImageFormat::Jpeg)));
    assert_eq!(picture.channels, 3);
    assert!(picture.values[0] > 0.9 && picture.values[1] < 0.1 && picture.values[2] < 0.1);
}

#[test]
fn pictures_stand_as_the_camera_was_held() {
    let picture = only(decode(&with_exif(ImageFormat::Png, 1)));
    assert_eq!((picture.width, picture.height), (3, 2));
    let picture = only(decode(&with_exif(ImageFormat::Png, 6)));
    assert_eq!((picture.width, picture.height), (2, 3));
    assert_eq!(picture.values, scaled(&[4, 1, 5, 2, 6, 3]));
    let picture = only(decode(&with_exif(ImageFormat::WebP, 6)));
    assert_eq!((picture.width, picture.height, picture.channels), (2, 3, 3));
    assert_eq!(picture.values[..6], scaled(&[4, 4, 4, 1, 1, 1]));
    let picture = only(decode(&with_exif(ImageFormat::Jpeg, 6)));
    assert_eq!((picture.width, picture.height), (2, 3));
}

#[test]
fn large_images_are_refused_before_they_are_decoded() {
    let (head, data) = (header(60_000, 60_000, 0), stored(&[0; 8]));
    let bomb = png(&[(b"IHDR", &head), (b"IDAT", &data), (b"IEND", &[])]);
    refused(decode(&bomb), 413, "60000 x 60000");
    let largest = png(&[(b"IHDR", &header(u32::MAX, u32::MAX, 0)), (b"IDAT", &data), (b"IEND", &[])]);
    refused(decode(&largest), 413, "4294967295");

    let mut jpeg = encode(colours(), ImageFormat::Jpeg);
    let frame = jpeg.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].fill(0xfa);
    refused(decode(&jpeg), 413, "64250 x 64250");

    let lossy = [0x10, 0, 0, 0x9d, 1, 0x2a, 0xff, 0x3f, 0xff, 0x3f];
    refused(decode(&webp(&[(b"VP8 ", &lossy)])), 413, "16383 x 16383");
    refused(decode(&webp(&[(b"VP8L", &[0x2f, 0xff, 0xff, 0xff, 0x0f])])), 413, "16384 x 16384");
    let canvas = [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    refused(decode(&webp(&[(b"VP8X", &canvas)])), 413, "16777216");
    // A canvas of one pixel around the largest picture
    let hidden = webp(&[(b"VP8X", &[0; 10]), (b"VP8 ", &lossy)]);
    refused(decode(&hidden), 400, "two sizes");

    let whole = encode(GrayImage::new(64, 64), ImageFormat::Png);
    assert!(decode(&whole).is_ok());
    refused(decode(&encode(GrayImage::new(65, 64), ImageFormat::Png)), 413, "65 x 64");
    let limits = Limits { max_bytes: whole.len() - 1, ..LIMITS };
    refused(pictures(&whole, false, &limits), 413, "bytes");
    refused(decode(&png(&[(b"IHDR", &header(0, 5, 0)), (b"IEND", &[])])), 400, "no pixels");
}

#[test]
fn a_chunk_that_claims_gigabytes_is_refused() {
    let mut file = with_exif(ImageFormat::WebP, 6);
    let exif = file.windows(4).position(|kind| kind == b"EXIF").unwrap();
    file[exif + 4..exif + 8].copy_from_slice(&0xffff_fff0_u32.to_le_bytes());
    refused(decode(&file), 400, "ends too early");
}

#[test]
fn animations_are_refused() {
    let (head, data) = (header(1, 1, 0), stored(&[0, 7]));
    let still = png(&[(b"IHDR", &head), (b"IDAT", &data), (b"IEND", &[])]);
    assert_eq!(only(decode(&still)).values, scaled(&[7]));
    let control = [0, 0, 0, 2, 0, 0, 0, 0];
    let moving = png(&[(b"IHDR", &head), (b"acTL", &control), (b"IDAT", &data), (b"IEND", &[])]);
    refused(decode(&moving), 415, "animated");
    refused(decode(&webp(&[(b"VP8X", &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0])])), 415, "animated");
    refused(decode(&webp(&[(b"VP8X", &[0; 10]), (b"ANMF", &[0; 24])])), 415, "animated");
}

#[test]
fn truncated_files_are_refused() {
    for file in FILES.iter() {
        assert!(decode(file).is_ok(), "{:?}", sniff(file));
        for end in 0..file.len() {
            assert!(decode(&file[..end]).is_err(), "{:?} cut at {end} of {}", sniff(file), file.len());
        }
        // More behind the end is ignored in image files, but in an array it is an error.
        let longer = [&file[..], &[0]].concat();
        assert_eq!(decode(&longer).is_ok(), sniff(file) != Some(Kind::Npy));
    }
}

/// The decoder reads what browsers would show; this is the one place where a picture may be incomplete.
#[test]
fn a_jpeg_with_a_gap_in_its_data_is_a_picture_of_the_right_size() {
    let noise = GrayImage::from_fn(64, 64, |x, y| image::Luma([(x * 37 + y * 101 + x * y * 13) as u8]));
    let whole = encode(noise, ImageFormat::Jpeg);
    let scan = whole.windows(2).position(|marker| marker == [0xff, 0xda]).unwrap();
    let gap = [&whole[..(scan + whole.len()) / 2], &[0xff, 0xd9]].concat();
    let (whole, gap) = (only(decode(&whole)), only(decode(&gap)));
    assert_eq!((gap.width, gap.height, gap.values.len()), (64, 64, 64 * 64));
    assert_eq!(gap.values[..64], whole.values[..64]);
    assert_ne!(gap.values, whole.values);
    check(Ok(vec![gap]));
}

#[test]
fn several_files_share_the_limits() {
    let file = encode(GrayImage::new(50, 50), ImageFormat::Png);
    assert_eq!(files([&file[..], &file], &LIMITS).unwrap().len(), 2);
    refused(files([&file[..]; 3], &LIMITS), 413, "7500 pixels");
    let small = encode(GrayImage::new(5, 5), ImageFormat::Png);
    assert_eq!(files([&small[..]; 4], &LIMITS).unwrap().len(), 4);
    refused(files([&small[..]; 5], &LIMITS), 413, "5 images");
    refused(files([&small[..], b"GIF89a"], &LIMITS), 415, "image 1");
    refused(files([], &LIMITS), 422, "without an image");
}

#[test]
fn other_bytes_are_no_pictures() {
    refused(decode(b""), 400, "empty");
    refused(decode(b"GIF89a"), 415, "PNG");
    refused(file(b"{}", &LIMITS).map(|picture| vec![picture]), 415, "PNG");
    assert_eq!(sniff(b" \r\n\t{"), Some(Kind::Json));
    assert_eq!(sniff(b"RIFF\0\0\0\0WAVE"), None);
}

#[test]
fn npy_of_each_type_is_read() {
    let expected = [0.0_f32, 0.25, 1.0];
    let single = |bytes: fn(f32) -> [u8; 4]| [0.0, 0.25, 1.0].map(bytes).concat();
    let double = |bytes: fn(f64) -> [u8; 8]| [0.0, 0.25, 1.0].map(bytes).concat();
    let types = [
        ("<f4", single(f32::to_le_bytes)),
        (">f4", single(f32::to_be_bytes)),
        ("<f8", double(f64::to_le_bytes)),
        (">f8", double(f64::to_be_bytes)),
    ];
    for (descr, data) in types {
        let picture = only(decode(&npy_of(descr, "(1, 3)", &data)));
        assert_eq!(picture.values, expected, "{descr}");
        assert_eq!((picture.width, picture.height, picture.channels), (3, 1, 1));
        assert!(!picture.resizable);
    }
    let bytes = only(decode(&npy_of("|u1", "(3, 1)", &[0, 51, 255])));
    assert_eq!((bytes.values, bytes.height), (vec![0.0, 0.2, 1.0], 3));
}

#[test]
fn npy_headers_are_read_as_numpy_writes_them() {
    let data = [10, 20, 30, 40];
    let row = scaled(&data);
    let versions = [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 4), }          \n",
        "{\"shape\":(1,4),\"fortran_order\":False,\"descr\":\"|u1\"}",
        " { 'shape' : ( 1 , 4 , ) , 'descr' : '|u1' , 'fortran_order' : True } ",
    ];
    for header in versions {
        assert_eq!(only(decode(&npy(header, &data))).values, row, "{header}");
    }
    let header = versions[1].as_bytes();
    let start = [&b"\x93NUMPY\x02\x00"[..], &(header.len() as u32).to_le_bytes()].concat();
    let second = [&start[..], header, &data].concat();
    assert_eq!(only(decode(&second)).values, row);
}

#[test]
fn npy_headers_that_lie_are_refused() {
    let data = [0; 16];
    refused(decode(&npy_of("|u1", "(4, 5)", &data)), 400, "expected 20 values of 1 byte(s)");
    refused(decode(&npy_of("<f4", "(1, 3)", &data)), 400, "found 16 bytes");
    for shape in ["(4294967296, 4294967296)", "(18446744073709551615, 2)", "(1, 1, 9000000000, 1)"] {
        refused(decode(&npy_of("|u1", shape, &data)), 413, "");
    }
    refused(decode(&npy_of("|u1", "(5, 1, 2, 2)", &data)), 413, "5 images");
    refused(decode(&npy_of("|u1", "(3, 1, 60, 60)", &data)), 413, "10800 pixels");
    for shape in ["(0, 4)", "(16,)", "()", "(1, 1, 1, 4, 4)", "(17, 1, 1)"] {
        refused(decode(&npy_of("|u1", shape, &data)), 422, "shape");
    }
    assert_eq!(only(decode(&npy_of("|u1", "(16, 1, 1)", &data))).channels, 16);
    for shape in ["(4, -4)", "[4, 4]", "(4, 4", "4", "(99999999999999999999999, 4)", "(4 4)"] {
        refused(decode(&npy_of("|u1", shape, &data)), 400, "header");
    }
    for descr in ["<f2", "<i4", "|b1", "|O", "<c8", ""] {
        refused(decode(&npy_of(descr, "(4, 4)", &data)), 415, "expected f4");
    }
    let records = "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4, 4)}";
    refused(decode(&npy(records, &data)), 415, "records");
    let doubled = "{'descr': '|u1', 'descr': '|u1', 'fortran_order': False, 'shape': (4, 4)}";
    refused(decode(&npy(doubled, &data)), 400, "header");
    refused(decode(&npy("{'descr': '|u1', 'shape': (4, 4)}", &data)), 400, "header");
    refused(decode(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{"), 400, "4294967295");
    refused(decode(b"\x93NUMPY\x09\x00\x00\x00"), 415, "version 9.0");
}

#[test]
fn values_outside_the_unit_interval_are_named() {
    let floats = |values: [f32; 4]| npy_of("<f4", "(1, 2, 1, 2)", &values.map(f32::to_le_bytes).concat());
    refused(decode(&floats([0.0, 0.0, 0.0, f32::NAN])), 422, "tensor[0][1][0][1] is NaN");
    refused(decode(&floats([0.0, f32::INFINITY, 0.0, 0.0])), 422, "tensor[0][0][0][1] is inf");
    refused(decode(&floats([0.0, 0.0, 132.0, 0.0])), 422, "is 132, not in [0, 1]; divide bytes by 255");
    refused(decode(&floats([-0.5, 0.0, 0.0, 0.0])), 422, "tensor[0][0][0][0] is -0.5, not in [0, 1]");
    let plane = npy_of("<f4", "(2, 2)", &[0.0, 0.0, 2.0, 0.0].map(f32::to_le_bytes).concat());
    refused(decode(&plane), 422, "tensor[1][0] is 2");
    refused(decode_json(r#"{"tensor": [[0, 0.5], [1, 132]]}"#), 422, "tensor[1][1] is 132");
    refused(decode_json(r#"{"tensor": [[0, -1]]}"#), 422, "tensor[0][1] is -1");
}

#[test]
fn json_tensors_are_read() {
    let picture = only(decode_json(r#"{"tensor": [[0, 0.5, 1], [0.25, 1e-1, 0.0]]}"#));
    let values = vec![0.0, 0.5, 1.0, 0.25, 0.1, 0.0];
    assert_eq!(picture, Picture { width: 3, height: 2, channels: 1, values, resizable: false });
    let picture = only(decode(br#" {"tensor": [[[0.1, 0.2]], [[0.3, 0.4]], [[0.5, 0.6]]]} "#));
    assert_eq!((picture.width, picture.height, picture.channels), (2, 1, 3));
    assert_eq!(picture.values, [0.1, 0.3, 0.5, 0.2, 0.4, 0.6]);
    let pictures = decode_json(r#"{"tensor": [[[[0.1]], [[0.2]]], [[[0.3]], [[0.4]]]]}"#).unwrap();
    assert_eq!(pictures.len(), 2);
    assert_eq!(pictures[1].values, [0.3, 0.4]);
}

#[test]
fn json_tensors_have_to_be_regular() {
    for tensor in ["[[0, 1], [0]]", "[[0], 1]", "[[0, [1]]]", "[[[0]], [[0], [1]]]", "[[0], [0, 1]]"] {
        refused(decode_json(&format!(r#"{{"tensor": {tensor}}}"#)), 400, "ragged");
    }
    refused(decode_json(r#"{"tensor": [[0, 1], [0]]}"#), 400, "tensor[1] is an array of 1");
    for tensor in ["0.5", "[0.5]", "[]", "[[]]", "[[[[[0.5]]]]]", "[[[[[]]]]]"] {
        refused(decode_json(&format!(r#"{{"tensor": {tensor}}}"#)), 422, "");
    }
    for tensor in ["null", "true", "\"0.5\"", "{}", "[[null]]", "[[NaN]]", "[[1e999]]", "[[0],]", "[[0]", ""]
    {
        refused(decode_json(&format!(r#"{{"tensor": {tensor}}}"#)), 400, "");
    }
    let deep = format!(r#"{{"tensor": {}"#, "[".repeat(100_000));
    refused(decode_json(&deep), 422, "more than 4 axes");
    let row = vec!["0"; 4097].join(",");
    refused(decode_json(&format!(r#"{{"tensor": [[{row}]]}}"#)), 413, "4097 x 1");
    let many = ["[[[0]]]"; 5].join(",");
    refused(decode_json(&format!(r#"{{"tensor": [{many}]}}"#)), 413, "5 images");
    let limits = Limits { max_total_pixels: 1, ..LIMITS };
    let tensor = format!(r#"{{"tensor": [[{}]]}}"#, ["0"; 17].join(","));
    refused(pictures(tensor.as_bytes(), true, &limits), 413, "more than 16 values");
}

#[test]
fn json_images_are_the_files_they_hold() {
    let (first, second) = (encode(colours(), ImageFormat::Png), encode(colours(), ImageFormat::WebP));
    let body = format!(r#"{{"images": ["{}", "{}"]}}"#, STANDARD.encode(&first), STANDARD.encode(&second));
    let pictures = decode_json(&body).unwrap();
    assert_eq!(pictures, files([&first[..], &second], &LIMITS).unwrap());
    assert_eq!(base64_file(&STANDARD.encode(&first), &LIMITS).unwrap(), pictures[0]);
    // JSON may write any character as an escape.
    let escaped = body.replace("iVBOR", r"\u0069VBOR");
    assert_ne!(escaped, body);
    assert_eq!(decode_json(&escaped).unwrap(), pictures);

    refused(decode_json(r#"{"images": []}"#), 422, "without an image");
    refused(decode_json(r#"{"images": ["!"]}"#), 400, "image 0: not base64");
    refused(decode_json(r#"{"images": ["data:image/png;base64,AAAA"]}"#), 400, "data URL");
    refused(decode_json(r#"{"images": ["R0lGODlh"]}"#), 415, "image 0");
    refused(decode_json(r#"{"images": "R0lGODlh"}"#), 400, "array of image files");
    refused(decode_json(r#"{"images": [1]}"#), 400, "");
    let five = vec![format!("\"{}\"", STANDARD.encode(&first)); 5].join(",");
    refused(decode_json(&format!(r#"{{"images": [{five}]}}"#)), 413, "5 images");
    let limits = Limits { max_bytes: first.len() - 1, ..LIMITS };
    refused(pictures_of(&body, &limits), 413, "image 0");
    let limits = Limits { max_bytes: first.len(), ..LIMITS };
    let alone = format!(r#"{{"images": ["{}"]}}"#, STANDARD.encode(&first));
    assert!(pictures_of(&alone, &limits).is_ok());
}

fn pictures_of(json: &str, limits: &Limits) -> Result<Vec<Picture>, Problem> {
    pictures(json.as_bytes(), true, limits)
}

#[test]
fn json_bodies_have_one_field() {
    for body in
        ["", "{", "[]", "1", "{}", r#"{"image": []}"#, r#"{"tensor": [[0]]"#, r#"{"tensor": [[0]]} 1"#]
    {
        refused(decode_json(body), 400, "");
    }
    refused(decode_json(r#"{"tensor": [[0]], "images": []}"#), 400, "a second");
    refused(decode_json(r#"{"tensor": [[0]], "tensor": [[0]]}"#), 400, "a second");
    refused(decode_json(r#"{"tensor": [[0]], "model": 1}"#), 400, "unknown field `model`");
    let long = format!(r#"{{"tensor": "{}"}}"#, "x".repeat(10_000));
    assert!(decode_json(&long).unwrap_err().to_string().len() < 300);
    refused(decode(br#"{"model": 1}"#), 400, "unknown field");
}

/// Text of random tokens, which the argument has between tildes.
fn soup(tokens: &'static str) -> impl Strategy<Value = String> {
    let token = prop::sample::select(tokens.split('~').collect::<Vec<_>>());
    prop::collection::vec(token, 0..30).prop_map(|tokens| tokens.concat())
}

const JSON_TOKENS: &str = r#"{~}~[~[[~]~]]~,~:~"tensor"~"images"~0~0.5~-1~1e400~null~"~ ~{"tensor":[["#;
const NPY_TOKENS: &str = "{~}~'descr'~'fortran_order'~'shape'~:~,~'<f4'~'|u1'~[('a', '<f4')]~True~False~\
    (2, 3)~(~)~18446744073709551615~'~ ";

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), start in 0usize..7) {
        let starts: [&[u8]; 7] = [
            b"",
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff",
            b"RIFF\x40\0\0\0WEBP",
            b"\x93NUMPY\x01\0",
            b"{\"tensor\":",
            b"{",
        ];
        let bytes = [starts[start], &bytes].concat();
        check(decode(&bytes));
        check(pictures(&bytes, true, &LIMITS));
    }

    #[test]
    fn changed_files_never_panic(
        file in 0..FILES.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = FILES[file].clone();
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        check(decode(&bytes));
    }

    #[test]
    fn random_json_never_panics(tokens in soup(JSON_TOKENS)) {
        check(decode_json(&tokens));
        check(decode_json(&format!("{{\"tensor\":[[{tokens}")));
        check(decode_json(&format!("{{\"tensor\":[[{tokens}]]}}")));
    }

    #[test]
    fn random_npy_headers_never_panic(
        tokens in soup(NPY_TOKENS),
        text in prop::collection::vec(any::<u8>(), 0..60),
        data in prop::collection::vec(any::<u8>(), 0..30),
    ) {
        check(decode(&npy(&tokens, &data)));
        check(decode(&npy(&String::from_utf8_lossy(&text), &data)));
        check(decode(&npy_of("<f4", &tokens, &data)));
    }

    /// The arrays are written by another implementation of the format.
    #[test]
    fn tensors_keep_their_values(
        sizes in [1usize..4, 1usize..4, 1usize..4, 1usize..4],
        rank in 2usize..=4,
        fortran in any::<bool>(),
        values in prop::collection::vec(0f32..=1.0, 81),
    ) {
        let mut sizes = sizes;
        sizes[..4 - rank].fill(1);
        let [images, channels, height, width] = sizes;
        // The value at an index; any rule that differs from the code's will do.
        let value = |n: usize, c: usize, y: usize, x: usize| values[n + 3 * (x + 3 * (y + 3 * c))];
        let mut array = Vec::new();
        if fortran {
            for x in 0..width { for y in 0..height { for c in 0..channels { for n in 0..images {
                array.push(value(n, c, y, x));
            }}}}
        } else {
            for n in 0..images { for c in 0..channels { for y in 0..height { for x in 0..width {
                array.push(value(n, c, y, x));
            }}}}
        }
        let shape: Vec<u64> = sizes[4 - rank..].iter().map(|&size| size as u64).collect();
        let order = if fortran { npyz::Order::Fortran } else { npyz::Order::C };
        let mut file = Vec::new();
        let options = npyz::WriteOptions::<f32>::new().default_dtype().shape(&shape).order(order);
        let mut writer = options.writer(&mut file).begin_nd().unwrap();
        writer.extend(array.iter().copied()).unwrap();
        writer.finish().unwrap();

        let pictures = decode(&file).unwrap();
        prop_assert_eq!(pictures.len(), images);
        for (n, picture) in pictures.iter().enumerate() {
            let size = (picture.width as usize, picture.height as usize, usize::from(picture.channels));
            prop_assert_eq!(size, (width, height, channels));
            let mut read = picture.values.iter();
            for y in 0..height { for x in 0..width { for c in 0..channels {
                prop_assert_eq!(read.next(), Some(&value(n, c, y, x)));
            }}}
        }
        if !fortran {
            // The innermost arrays first
            let mut text: Vec<String> = array.iter().map(f32::to_string).collect();
            for size in shape.iter().rev() {
                text = text.chunks(*size as usize).map(|part| format!("[{}]", part.join(","))).collect();
            }
            prop_assert_eq!(decode_json(&format!("{{\"tensor\":{}}}", text[0])).unwrap(), pictures);
        }
    }
}
