//! Every address and every kind of body, and what is said to those that are refused.

use std::{collections::BTreeSet, fs};

use image::{DynamicImage, GrayAlphaImage, ImageFormat, Luma, LumaA, RgbaImage, imageops};
use serde_json::{Value, json};
use talion_data::DatasetName;

use crate::{
    FORM, JSON, NPY, PIXELS, batch, coded, coded_file, drawn, file, form, gray, labels, npy, picture, pixels,
    plane, png,
    server::{Answer, Heard, Server, request},
};

/// Probabilities of the same image in another batch: rounding.
const ROUNDING: f64 = 1e-4;
const CLASSES: usize = 10;

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn sums_to_one(probabilities: &[f64]) -> bool {
    probabilities.len() == CLASSES && (probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-4
}

/// What is answered for each image, every answer in the documented form.
#[track_caller]
pub fn results(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.header("content-type").unwrap().starts_with(JSON));
    let answered = answer.json();
    assert_eq!(answered["request_id"].as_str(), answer.header("x-request-id"));
    assert_eq!(answered["model"], "fashion-mnist resnet18-w16");
    let results = answered["results"].as_array().unwrap().clone();
    results.iter().for_each(documented);
    results
}

#[track_caller]
fn documented(result: &Value) {
    for opinion in [result, &result["bare"]] {
        let probabilities = numbers(&opinion["probabilities"]);
        assert!(sums_to_one(&probabilities), "{opinion}");
        let label = opinion["label"].as_u64().unwrap() as usize;
        let largest = probabilities.iter().copied().fold(0.0, f64::max);
        assert_eq!(probabilities[label], largest, "{opinion}");
        assert_eq!(opinion["confidence"].as_f64(), Some(largest), "{opinion}");
        assert_eq!(opinion["name"], DatasetName::FashionMnist.class_names()[label], "{opinion}");
    }
    let change = result["largest_change"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&change), "{result}");
    suspicion(&result["suspicion"]);
}

#[track_caller]
fn suspicion(said: &Value) {
    if !said.is_null() {
        let rate = said["false_alarm_rate"].as_f64().unwrap();
        assert!(
            said["score"].is_number() && said["flagged"].is_boolean() && rate > 0.0 && rate < 1.0,
            "{said}"
        );
        assert!((0.0..=1.0).contains(&said["quantile"].as_f64().unwrap()), "{said}");
    }
}

#[track_caller]
fn classify(server: &Server, kind: &str, body: &[u8]) -> Vec<Value> {
    results(&server.post("/v1/classify", kind, body))
}

/// What is answered for the only image.
#[track_caller]
fn single(server: &Server, kind: &str, body: &[u8]) -> Value {
    let mut results = classify(server, kind, body);
    assert_eq!(results.len(), 1);
    results.remove(0)
}

/// The largest difference between the probabilities of two answers.
pub fn apart(one: &Value, other: &Value) -> f64 {
    let both = |result: &Value| {
        [numbers(&result["probabilities"]), numbers(&result["bare"]["probabilities"])].concat()
    };
    both(one).iter().zip(both(other)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn every_kind_of_body_gives_the_same_answer() {
    // alone in its batch, whatever other tests ask
    let server = Server::start(&["--max-batch", "1"]);
    let pixels = pixels(0);
    let expected = single(&server, NPY, &npy("|u1", "(28, 28)", pixels));
    assert_eq!(expected["label"], labels()[0]);
    for absent in ["resized_from", "restored", "gradient_map"] {
        assert!(expected.get(absent).is_none(), "{absent} was not asked for");
    }
    let values: Vec<f32> = pixels.iter().map(|&pixel| f32::from(pixel) / 255.0).collect();
    let floats: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let doubles: Vec<u8> = values.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect();
    let tensor = |tensor: Value| json!({ "tensor": tensor }).to_string().into_bytes();
    let cases: [(&str, &str, Vec<u8>); 17] = [
        ("PNG", "image/png", png(0)),
        ("PNG that says it is a JPEG", "image/jpeg", png(0)),
        ("PNG that says nothing of itself", "application/octet-stream", png(0)),
        ("lossless WebP", "image/webp", file(&picture(0), ImageFormat::WebP)),
        ("NPY u1 [C,H,W]", NPY, npy("|u1", "(1, 28, 28)", pixels)),
        ("NPY u1 [N,C,H,W]", NPY, npy("|u1", "(1, 1, 28, 28)", pixels)),
        ("NPY f4 [H,W]", NPY, npy("<f4", "(28, 28)", &floats)),
        ("NPY f4 [N,C,H,W]", NPY, npy("<f4", "(1, 1, 28, 28)", &floats)),
        ("NPY f8 [C,H,W]", NPY, npy("<f8", "(1, 28, 28)", &doubles)),
        ("NPY that says nothing of itself", "application/octet-stream", npy("<f4", "(28, 28)", &floats)),
        ("JSON [H,W]", JSON, tensor(plane(pixels))),
        ("JSON [C,H,W]", JSON, tensor(json!([plane(pixels)]))),
        ("JSON [N,C,H,W]", JSON, tensor(json!([[plane(pixels)]]))),
        ("JSON with a character set", "application/json; charset=utf-8", tensor(plane(pixels))),
        ("a PNG in JSON", JSON, coded(&[png(0)])),
        ("a WebP in JSON", JSON, coded(&[file(&picture(0), ImageFormat::WebP)])),
        ("a form", FORM, form(&[png(0)])),
    ];
    for (what, kind, body) in cases {
        let found = single(&server, kind, &body);
        assert!(apart(&found, &expected) < 1e-5, "{what} is {} away", apart(&found, &expected));
        assert_eq!(found["label"], expected["label"], "{what}");
        assert!(found.get("resized_from").is_none(), "{what}");
    }

    // JPEG loses something: as much as its decoder says
    let jpeg = file(&picture(0), ImageFormat::Jpeg);
    let decoded = image::load_from_memory(&jpeg).unwrap().to_luma8();
    let expected_of_jpeg = single(&server, NPY, &npy("|u1", "(28, 28)", &decoded));
    let found = single(&server, "image/jpeg", &jpeg);
    assert!(apart(&found, &expected_of_jpeg) < 1e-5);
    assert_eq!(found["label"], expected["label"]);
}

#[test]
fn a_batch_is_answered_as_its_images_alone_and_in_their_order() {
    let server = Server::shared();
    let alone: Vec<Value> = (0..5).map(|index| single(&server, NPY, &batch(index..index + 1))).collect();
    let right = alone.iter().zip(labels()).filter(|(result, label)| result["label"] == *label).count();
    assert!(right >= 4, "{right} of 5 are right");
    let files: Vec<Vec<u8>> = (0..5).map(png).collect();
    let tensor: Vec<Value> = (0..5).map(|index| json!([plane(pixels(index))])).collect();
    for (what, kind, body) in [
        ("NPY", NPY, batch(0..5)),
        ("JSON", JSON, json!({ "tensor": tensor }).to_string().into_bytes()),
        ("files in JSON", JSON, coded(&files)),
        ("a form", FORM, form(&files)),
        ("a form of three", FORM, form(&files[..3])),
    ] {
        let found = classify(&server, kind, &body);
        assert_eq!(found.len(), if what == "a form of three" { 3 } else { 5 }, "{what}");
        for (index, (found, alone)) in found.iter().zip(&alone).enumerate() {
            assert!(apart(found, alone) < ROUNDING, "{what}, image {index}: {}", apart(found, alone));
        }
    }
}

#[test]
fn colour_alpha_depth_and_size_are_converted() {
    let server = Server::shared();
    let known = single(&server, "image/png", &png(0));
    let black = single(&server, NPY, &npy("|u1", "(28, 28)", &[0; PIXELS]));
    let image = picture(0);
    let coverage = pixels(0);
    // white, as opaque as the image is bright: over black it is the image
    let white =
        RgbaImage::from_fn(28, 28, |x, y| image::Rgba([255, 255, 255, coverage[(y * 28 + x) as usize]]));
    let veiled = GrayAlphaImage::from_pixel(28, 28, LumaA([200, 0]));
    let deep = image::ImageBuffer::<Luma<u16>, Vec<u16>>::from_fn(28, 28, |x, y| {
        Luma([u16::from(coverage[(y * 28 + x) as usize]) * 257])
    });
    let cases: [(&str, DynamicImage, &Value); 8] = [
        ("RGB", image.to_rgb8().into(), &known),
        ("RGBA", image.to_rgba8().into(), &known),
        ("grey and alpha", image.to_luma_alpha8().into(), &known),
        ("16-bit grey", deep.into(), &known),
        ("16-bit RGB", image.to_rgb16().into(), &known),
        ("16-bit RGBA", image.to_rgba16().into(), &known),
        ("white behind alpha", white.into(), &known),
        ("nothing but alpha", veiled.into(), &black),
    ];
    for (what, image, expected) in cases {
        let found = single(&server, "image/png", &file(&image, ImageFormat::Png));
        assert!(apart(&found, expected) < ROUNDING, "{what} is {} away", apart(&found, expected));
        assert!(found.get("resized_from").is_none(), "{what}");
    }

    let larger = image.resize_exact(56, 56, imageops::FilterType::Nearest);
    let found = single(&server, "image/png", &file(&larger, ImageFormat::Png));
    assert_eq!((&found["resized_from"], &found["label"]), (&json!([56, 56]), &known["label"]));
    for (width, height) in [(40, 20), (1, 1), (300, 2)] {
        let other = gray(width, height, &vec![128; (width * height) as usize]);
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
            let found = single(&server, "image/png", &file(&other, format));
            assert_eq!(found["resized_from"], json!([width, height]), "{format:?}");
        }
    }
    // one image of a request resized does not make the others so
    let mixed = classify(&server, FORM, &form(&[png(0), file(&larger, ImageFormat::Png)]));
    assert!(mixed[0].get("resized_from").is_none() && mixed[1]["resized_from"] == json!([56, 56]));
}

#[test]
fn restored_images_and_gradient_maps_come_if_asked_for() {
    let server = Server::shared();
    for (query, restored, map) in [
        ("", false, false),
        ("?restored=true", true, false),
        ("?map=true", false, true),
        ("?restored=true&map=true", true, true),
        ("?restored=false&map=false", false, false),
        ("?map=true&something=else", false, true),
    ] {
        let body = form(&[png(0), png(1)]);
        for result in results(&server.post(&format!("/v1/classify{query}"), FORM, &body)) {
            for (name, wanted) in [("restored", restored), ("gradient_map", map)] {
                assert_eq!(result.get(name).is_some(), wanted, "{query}: {name}");
                if wanted {
                    let drawn = drawn(&result[name]);
                    assert_eq!((drawn.width(), drawn.height()), (28, 28), "{query}: {name}");
                }
            }
        }
    }
    // restoration moves values by no more than it says
    let result = &results(&server.post("/v1/classify?restored=true", "image/png", &png(0)))[0];
    let restored = drawn(&result["restored"]).to_luma8();
    let moved = restored.iter().zip(pixels(0)).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    let said = result["largest_change"].as_f64().unwrap() * 255.0;
    assert!((f64::from(moved) - said).abs() <= 1.0, "moved by {moved}, said {said}");
}

/// Checks the form of a refusal.
#[track_caller]
pub fn refusal(answer: &Answer, status: u16, what: &str) {
    assert_eq!(answer.status, status, "{what}: {}", answer.text());
    let code = match status {
        400 => "malformed",
        401 => "unauthorized",
        404 => "not_found",
        405 => "method_not_allowed",
        408 => "timeout",
        413 => "too_large",
        415 => "unsupported_media_type",
        422 => "unprocessable",
        429 => "busy",
        503 => "unavailable",
        504 => "deadline",
        _ => panic!("{what}: {status} is in no table"),
    };
    assert!(answer.header("content-type").unwrap().starts_with(JSON), "{what}");
    let error = &answer.json()["error"];
    assert_eq!(error["code"], code, "{what}");
    assert!(!error["message"].as_str().unwrap().is_empty(), "{what}");
    assert_eq!(error["request_id"].as_str(), answer.header("x-request-id"), "{what}");
}

/// As [`refusal`], where more than one status tells the truth.
#[track_caller]
fn refusal_of(answer: &Answer, statuses: &[u16], what: &str) {
    assert!(statuses.contains(&answer.status), "{what}: {} {}", answer.status, answer.text());
    refusal(answer, answer.status, what);
}

/// An image as NPY floats, the first of them another.
fn floats(first: f32) -> Vec<u8> {
    let values = std::iter::once(first).chain(std::iter::repeat_n(0.5, PIXELS - 1));
    npy("<f4", "(28, 28)", &values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>())
}

#[test]
fn bodies_that_cannot_be_classified_are_refused_with_a_reason() {
    let server = Server::shared();
    let half = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    let text = |text: &str| text.as_bytes().to_vec();
    let wide = json!({ "tensor": vec![vec![0.5; 29]; 28] }).to_string().into_bytes();
    let bright = json!({ "tensor": vec![vec![1.5; 28]; 28] }).to_string().into_bytes();
    let ragged = json!({ "tensor": [[0.5, 0.5], [0.5]] }).to_string().into_bytes();
    let cases: [(&str, &str, Vec<u8>, &[u16]); 31] = [
        ("half a PNG", "image/png", half(png(0)), &[400]),
        ("half a WebP", "image/webp", half(file(&picture(0), ImageFormat::WebP)), &[400]),
        ("half an NPY file", NPY, half(batch(0..1)), &[400]),
        ("half a JSON", JSON, text("{\"tensor\": [[0.5"), &[400]),
        ("no JSON", JSON, text("tensor"), &[400]),
        ("JSON with NaN", JSON, text("{\"tensor\": [[NaN]]}"), &[400]),
        ("JSON with too large a number", JSON, text("{\"tensor\": [[1e999]]}"), &[400, 422]),
        ("empty JSON", JSON, text("{}"), &[400, 422]),
        ("a list in JSON", JSON, text("[]"), &[400, 422]),
        ("a tensor of text", JSON, text("{\"tensor\": \"bright\"}"), &[400, 422]),
        ("a ragged tensor", JSON, ragged, &[400, 422]),
        ("no tensor", JSON, text("{\"tensor\": []}"), &[400, 422]),
        ("no image", JSON, text("{\"images\": []}"), &[400, 422]),
        ("no Base64", JSON, text("{\"images\": [\"!\"]}"), &[400, 422]),
        ("an empty form", FORM, form(&[]), &[400, 422]),
        ("a form without its boundary", "multipart/form-data", form(&[png(0)]), &[400]),
        ("a form cut off", FORM, half(form(&[png(0)])), &[400]),
        ("nothing", "image/png", Vec::new(), &[400, 415]),
        ("text", "text/plain", text("a boot"), &[415]),
        ("a GIF", "image/gif", text("GIF89a\x01\0\x01\0\0\0\0;"), &[415]),
        ("a BMP", "image/bmp", [&b"BM"[..], &[0; 100]].concat(), &[415]),
        ("text in a form", FORM, form(&[text("a boot")]), &[400, 415]),
        ("text in JSON", JSON, coded(&[text("a boot")]), &[400, 415]),
        ("NPY with NaN", NPY, floats(f32::NAN), &[422]),
        ("NPY with infinity", NPY, floats(f32::INFINITY), &[422]),
        ("NPY above 1", NPY, floats(1.01), &[422]),
        ("NPY below 0", NPY, floats(-0.01), &[422]),
        ("JSON above 1", JSON, bright, &[422]),
        ("NPY of another size", NPY, npy("|u1", "(27, 28)", &[0; 27 * 28]), &[422]),
        ("NPY of other channels", NPY, npy("|u1", "(3, 28, 28)", &[0; 3 * PIXELS]), &[422]),
        ("JSON of another size", JSON, wide, &[422]),
    ];
    for (what, kind, body, statuses) in cases {
        refusal_of(&server.post("/v1/classify", kind, &body), statuses, what);
    }
    // one bad image spoils the request, and the message is not that of another
    refusal_of(
        &server.post("/v1/classify", FORM, &form(&[png(0), text("a boot")])),
        &[400, 415],
        "one of two",
    );
    assert_eq!(classify(&server, FORM, &form(&[png(0), png(1)])).len(), 2);
}

#[test]
fn addresses_and_methods_that_are_not_there_are_refused() {
    let server = Server::shared();
    for path in ["/nothing", "/v1", "/v1/nothing", "/assets/nothing.js", "/v1/samples/24", "/v1/samples/-1"] {
        refusal(&server.get(path), 404, path);
    }
    refusal(&server.get("/runs/nothing"), 404, "a run");
    refusal(&server.post("/nothing", JSON, b"{}"), 404, "POST");
    for (method, path) in [
        ("GET", "/v1/classify"),
        ("PUT", "/v1/classify"),
        ("GET", "/v1/attack"),
        ("POST", "/v1/model"),
        ("DELETE", "/v1/samples/0"),
        ("POST", "/healthz"),
        ("POST", "/"),
    ] {
        refusal(&server.ask(method, path, &[], &[]), 405, path);
    }
}

#[test]
fn what_is_too_much_is_refused_and_a_switched_off_playground_is_not_there() {
    let server = Server::start(&[
        "--max-body-mib",
        "1",
        "--max-pixels",
        "4096",
        "--max-images",
        "4",
        "--playground",
        "off",
    ]);
    let model = server.get("/v1/model").json();
    assert_eq!(model["limits"]["max_body_bytes"], 1 << 20);
    assert_eq!((&model["limits"]["max_pixels"], &model["limits"]["max_images"]), (&json!(4096), &json!(4)));

    // up to each limit, and one further
    let square = |side: u32| file(&gray(side, side, &vec![90; (side * side) as usize]), ImageFormat::Png);
    assert_eq!(single(&server, "image/png", &square(64))["resized_from"], json!([64, 64]));
    refusal(&server.post("/v1/classify", "image/png", &square(65)), 413, "pixels");
    let files: Vec<Vec<u8>> = (0..5).map(png).collect();
    let tensor = json!({ "tensor": vec![json!([plane(pixels(0))]); 5] }).to_string().into_bytes();
    assert_eq!(classify(&server, NPY, &batch(0..4)).len(), 4);
    assert_eq!(classify(&server, FORM, &form(&files[..4])).len(), 4);
    for (what, kind, body) in [
        ("images in NPY", NPY, batch(0..5)),
        ("images in a tensor", JSON, tensor),
        ("images in JSON", JSON, coded(&files)),
        ("images in a form", FORM, form(&files)),
        ("pixels in a form", FORM, form(&[square(65)])),
        ("pixels in JSON", JSON, coded(&[square(65)])),
    ] {
        refusal(&server.post("/v1/classify", kind, &body), 413, what);
    }

    // a body announced to be too large is refused before it comes, one that is not announced as soon as it is
    let head = "POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\n";
    let mut wire = server.wire();
    assert!(wire.send(format!("{head}Content-Length: {}\r\n\r\n", (1 << 20) + 1).as_bytes()));
    refusal(&wire.answer(), 413, "announced bytes");
    let mut wire = server.wire();
    wire.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes());
    for _ in 0..40 {
        // the server may have closed before all is sent
        wire.send(&[&b"10000\r\n"[..], &[b'x'; 0x10000], b"\r\n"].concat());
    }
    refusal(&wire.answer(), 413, "bytes that are not announced");

    assert_eq!(model["playground"], Value::Null);
    let wish = json!({ "sample": 0, "attack": "fgsm", "epsilon": "8/255" }).to_string();
    refusal(&server.post("/v1/attack", JSON, wish.as_bytes()), 404, "an attack");
}

/// Whether `id` is one that the server may give.
fn is_id(id: &str) -> bool {
    let sane = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=64).contains(&id.len()) && id.bytes().all(sane)
}

#[test]
fn request_ids_are_echoed_if_they_harm_nowhere() {
    let server = Server::shared();
    for id in ["a", "abc-DEF_1.2", &"x".repeat(64)] {
        for path in ["/", "/healthz", "/v1/model", "/nothing"] {
            let answer = server.ask("GET", path, &[("x-request-id", id)], &[]);
            assert_eq!(answer.header("x-request-id"), Some(id), "{path}");
        }
        let answer = server.ask("POST", "/v1/classify", &[("x-request-id", id)], &png(0));
        assert_eq!(answer.json()["request_id"], id);
    }
    let (mut seen, long) = (BTreeSet::new(), "x".repeat(65));
    for id in [
        "",
        "a b",
        "a\tb",
        "a;b",
        "\"a\"",
        "a%0d%0aSet-Cookie:x",
        "<script>",
        "../../etc/passwd",
        "\u{e4}",
        &long,
    ] {
        let mut wire = server.wire();
        assert!(wire.send(&request("GET", "/healthz", &[("X-Request-Id", id)], &[])));
        let answer = wire.answer();
        let given = answer.header("x-request-id").unwrap();
        assert!(is_id(given) && given != id, "{id} was answered with {given}");
        assert!(seen.insert(given.to_owned()), "{given} was given twice");
    }
    assert!(is_id(server.get("/healthz").header("x-request-id").unwrap()));
}

#[test]
fn with_tokens_only_who_has_one_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    let (first, second) = ("alice-6f1c0e7b9a42d358", "bob-93b7d5e1f0c8a246");
    fs::write(&tokens, format!("{first}\n{second}\n")).unwrap();
    let server = Server::start(&["--tokens", tokens.to_str().unwrap(), "--playground", "on"]);
    let ask = |path: &str, authorization: Option<&str>| {
        let headers: Vec<(&str, &str)> =
            authorization.iter().map(|&value| ("authorization", value)).collect();
        server.ask("GET", path, &headers, &[])
    };
    let right = [format!("Bearer {first}"), format!("Bearer {second}")];
    let wrong = [
        format!("Bearer {}", &first[..first.len() - 1]),
        format!("Bearer {first}x"),
        format!("Bearer {first}{second}"),
        format!("Basic {first}"),
        first.to_owned(),
        "Bearer".to_owned(),
        "Bearer x".to_owned(),
    ];
    for path in ["/v1/model", "/v1/samples", "/v1/samples/0", "/v1/runs", "/metrics", "/runs/nothing"] {
        refusal(&ask(path, None), 401, path);
        for wrong in &wrong {
            refusal(&ask(path, Some(wrong)), 401, path);
        }
        for right in &right {
            let expected = if path == "/runs/nothing" { 404 } else { 200 };
            assert_eq!(ask(path, Some(right)).status, expected, "{path}");
        }
    }
    // before the body is looked at
    refusal(&server.post("/v1/classify", "image/png", b"no image"), 401, "classify");
    refusal(&server.post("/v1/attack", JSON, b"{}"), 401, "attack");
    let headers = [("authorization", right[1].as_str()), ("content-type", "image/png")];
    assert_eq!(results(&server.ask("POST", "/v1/classify", &headers, &png(0))).len(), 1);
    for path in ["/", "/runs", "/assets/app.js", "/assets/style.css", "/healthz", "/readyz", "/openapi.json"]
    {
        assert_eq!(ask(path, None).status, 200, "{path}");
    }
    assert!(!server.said().contains("6f1c0e7b9a42d358"), "a token is in the log");
}

#[test]
fn the_server_says_how_it_is_and_counts() {
    let server = Server::shared();
    assert_eq!(server.get("/healthz").text().trim(), "ok");
    assert_eq!(server.get("/readyz").text().trim(), "ready");
    let before = server.counted();
    for _ in 0..5 {
        assert_eq!(server.get("/v1/model").status, 200);
    }
    // other tests may ask, too
    assert!(server.counted() >= before + 5.0);

    let model = server.get("/v1/model").json();
    assert_eq!(model["name"], "fashion-mnist resnet18-w16");
    assert_eq!((&model["classes"], &model["class_names"][9]), (&json!(10), &json!("Ankle boot")));
    assert_eq!(model["input"], json!({ "channels": 1, "height": 28, "width": 28 }));
    assert_eq!(model["classifier"]["architecture"], "resnet18-w16");
    assert_eq!(model["trn"]["estimator"], "walk-back");
    for network in ["classifier", "trn"] {
        let sum = model[network]["sha256"].as_str().unwrap();
        assert!(sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit()), "{network}: {sum}");
        assert!(model[network]["weights"].as_u64().unwrap() > 100_000, "{network}");
    }
    assert_eq!(model["limits"]["max_batch"], 32);
    assert_eq!(model["playground"]["budgets"].as_array().unwrap().len(), 5);
    let attacks = model["playground"]["attacks"].as_array().unwrap();
    for name in ["pgd-20", "fgsm"] {
        assert!(attacks.iter().any(|attack| attack["name"] == name && attack["title"].is_string()), "{name}");
    }
    // the bundled pair brings a calibration
    let calibration = &model["calibration"];
    let rate = calibration["false_alarm_rate"].as_f64().unwrap();
    assert!(rate > 0.0 && rate < 1.0 && calibration["threshold"].is_number(), "{calibration}");
    assert!(calibration["clean_images"].as_u64().unwrap() > 0, "{calibration}");
    for curve in calibration["measured"]["curves"].as_array().into_iter().flatten() {
        let points: Vec<Vec<f64>> = curve["points"].as_array().unwrap().iter().map(numbers).collect();
        assert!(points.iter().flatten().all(|share| (0.0..=1.0).contains(share)), "{curve}");
        assert!(points.windows(2).all(|two| two[0][0] <= two[1][0] && two[0][1] <= two[1][1]), "{curve}");
    }
    let suspicion = &single(&server, "image/png", &png(0))["suspicion"];
    assert_eq!(suspicion["false_alarm_rate"].as_f64(), Some(rate));
    // no folder of runs is no error
    assert_eq!(server.get("/v1/runs").json(), json!([]));
}

#[test]
fn networks_in_files_answer_as_the_bundled_ones_without_a_calibration() {
    let place =
        |name: &str| format!("{}/../../models/fashion-mnist/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let files = Server::start(&["--model", &place("classifier"), "--trn", &place("trn")]);
    let bundled = Server::shared();
    let (model, bundled_model) = (files.get("/v1/model").json(), bundled.get("/v1/model").json());
    for network in ["classifier", "trn"] {
        assert_eq!(model[network], bundled_model[network]);
    }
    assert_eq!(model["calibration"], Value::Null);
    let (one, other) = (single(&files, "image/png", &png(2)), single(&bundled, "image/png", &png(2)));
    assert!(apart(&one, &other) < ROUNDING && one["suspicion"].is_null(), "{one}");
}

#[test]
fn samples_are_the_bundled_test_images() {
    let server = Server::shared();
    let samples = server.get("/v1/samples").json();
    let samples = samples.as_array().unwrap();
    assert_eq!(samples.len(), 24);
    for sample in samples {
        let id = sample["id"].as_u64().unwrap() as usize;
        assert_eq!(sample["label"], labels()[id], "{sample}");
        let answer = server.get(sample["image"].as_str().unwrap());
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("image/png")), "{sample}");
        let image = image::load_from_memory(&answer.body).unwrap();
        assert_eq!((image.width(), image.height()), (28, 28), "{sample}");
        assert_eq!(image.to_luma8().as_raw(), pixels(id), "{sample}");
    }
}

#[test]
fn the_description_lists_what_there_is() {
    let server = Server::shared();
    let description = server.get("/openapi.json").json();
    assert!(description["openapi"].as_str().unwrap().starts_with('3'));
    let paths = description["paths"].as_object().unwrap();
    for path in ["/v1/classify", "/v1/model", "/v1/samples", "/v1/samples/{id}", "/v1/attack", "/v1/runs"] {
        assert!(paths.contains_key(path), "{path} is missing");
    }
    for (pattern, methods) in paths {
        let path = pattern.replace("{id}", "0");
        for method in
            methods.as_object().unwrap().keys().filter(|key| ["get", "post"].contains(&key.as_str()))
        {
            let status = server.ask(&method.to_uppercase(), &path, &[], &[]).status;
            // there are no runs here
            let missing = status == 404 && pattern != "/runs/{id}";
            assert!(!missing && status != 405 && status != 500, "{method} {pattern}: {status}");
        }
        // an address that is there knows which methods it has
        assert_eq!(server.ask("DELETE", &path, &[], &[]).status, 405, "{pattern}");
    }
}

#[test]
fn pages_let_nothing_foreign_run() {
    let server = Server::shared();
    for path in ["/", "/runs"] {
        let answer = server.get(path);
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.header("content-type").unwrap().starts_with("text/html"), "{path}");
        let policy: BTreeSet<&str> =
            answer.header("content-security-policy").unwrap().split(';').map(str::trim).collect();
        for directive in [
            "default-src 'none'",
            "script-src 'self'",
            // a report that is shown in a frame of /runs has styles inside
            if path == "/runs" { "style-src 'self' 'unsafe-inline'" } else { "style-src 'self'" },
            "img-src 'self' data: blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.contains(directive), "{path}: {directive} is not in {policy:?}");
        }
        let page = answer.text();
        for inline in ["<script>", "<style", " style=\"", " onclick=", "src=\"http"] {
            assert!(!page.contains(inline), "{path} has {inline}");
        }
        // what a page names is there
        for part in page.split(['"', '\'']).filter(|part| part.starts_with("/assets/")) {
            assert_eq!(server.get(part).status, 200, "{path} names {part}");
        }
    }
}

/// The events of a stream, checked for their form.
#[track_caller]
fn events(answer: &Answer) -> Vec<(String, Value)> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.header("content-type").unwrap().starts_with("text/event-stream"));
    let text = answer.text();
    let blocks = text.split("\n\n").map(|block| {
        // lines that begin with a colon keep the connection alive
        block.lines().filter(|line| !line.starts_with(':') && !line.is_empty()).collect::<Vec<_>>()
    });
    let event = |lines: Vec<&str>| {
        let field = |name: &str| -> Vec<String> {
            lines
                .iter()
                .filter_map(|line| line.strip_prefix(name))
                .map(|rest| rest.trim().to_owned())
                .collect()
        };
        let (names, data) = (field("event:"), field("data:"));
        assert_eq!((lines.len(), names.len(), data.len()), (2, 1, 1), "{lines:?}");
        (names[0].clone(), serde_json::from_str(&data[0]).unwrap())
    };
    blocks.filter(|lines| !lines.is_empty()).map(event).collect()
}

#[track_caller]
fn frame(frame: &Value) {
    for part in ["image", "restored", "difference", "gradient_map"] {
        if part != "gradient_map" || !frame[part].is_null() {
            let drawn = drawn(&frame[part]);
            assert_eq!((drawn.width(), drawn.height()), (28, 28), "{part}");
        }
    }
    for who in ["bare", "defended"] {
        let probabilities = numbers(&frame[who]);
        assert!(sums_to_one(&probabilities), "{who}: {probabilities:?}");
        let label = frame[format!("{who}_label")].as_u64().unwrap() as usize;
        assert!(probabilities.iter().all(|&other| other <= probabilities[label]), "{who}");
    }
    suspicion(&frame["suspicion"]);
}

#[test]
fn an_attack_can_be_watched() {
    let server = Server::shared();
    let wish = json!({ "sample": 3, "attack": "fgsm", "epsilon": "8/255" }).to_string();
    let watch = || events(&server.post("/v1/attack", JSON, wish.as_bytes()));
    let told = watch();

    let order: Vec<String> = told
        .iter()
        .map(|(name, data)| match data["target"].as_str() {
            Some(target) => format!("{name} {target}"),
            None => name.clone(),
        })
        .collect();
    let mut stages = order.clone();
    stages.dedup();
    let expected = ["begin", "step bare", "end bare", "step defended", "end defended", "done"];
    assert_eq!(stages, expected, "{order:?}");

    let begin = &told[0].1;
    assert_eq!((&begin["attack"], &begin["budget"]), (&json!("fgsm"), &json!("Linf 8/255")));
    assert_eq!((&begin["label"], &begin["label_from"]), (&json!(labels()[3]), &json!("sample")));
    assert_eq!(begin["label_name"], DatasetName::FashionMnist.class_names()[labels()[3] as usize]);
    frame(&begin["clean"]);
    assert_eq!(begin["clean"]["largest_change"], 0.0);
    let clean = drawn(&begin["clean"]["image"]).to_luma8();
    assert_eq!(clean.as_raw(), pixels(3));
    let difference = drawn(&begin["clean"]["difference"]).to_luma8();
    assert!(
        difference.iter().all(|value| *value == difference.as_raw()[0]),
        "nothing changed, so all is grey"
    );

    let mut last = Value::Null;
    for (name, data) in &told[1..] {
        match name.as_str() {
            "step" => {
                frame(&data["frame"]);
                let image = drawn(&data["frame"]["image"]).to_luma8();
                // half a level of rounding is less than the next whole one
                let change = image.iter().zip(clean.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
                assert!((1..=8).contains(&change), "changed by {change} levels");
                let largest = data["frame"]["largest_change"].as_f64().unwrap();
                assert!(largest > 0.0 && largest <= 8.0 / 255.0 + 1e-6, "{largest}");
                last = data.clone();
            }
            "end" => {
                assert_eq!(data["target"], last["target"]);
                let found = format!("{}_label", data["target"].as_str().unwrap());
                let fooled = last["frame"][found] != begin["label"];
                assert_eq!(data["fooled"], fooled, "{data}");
                assert_eq!(data["first_fooled"].is_null(), !fooled, "{data}");
                assert!(data["gradients"].as_u64().unwrap() > 0 && data["seconds"].is_number(), "{data}");
            }
            _ => assert_eq!((name.as_str(), data), ("done", &json!({}))),
        }
    }

    // the same again is the same
    let frames = |told: &[(String, Value)]| -> Vec<Value> {
        told.iter().filter(|(name, _)| name == "step").map(|(_, data)| data["frame"].clone()).collect()
    };
    let (first, second) = (frames(&told), frames(&watch()));
    assert_eq!(first.len(), second.len());
    for (first, second) in first.iter().zip(&second) {
        for part in ["image", "restored", "bare_label", "defended_label"] {
            assert_eq!(first[part], second[part], "{part}");
        }
    }
}

#[test]
fn attacks_on_other_images_and_attacks_that_are_refused() {
    let server = Server::shared();
    let image = json!(coded_file(&png(1)));
    let ask = |wish: &Value| server.post("/v1/attack", JSON, wish.to_string().as_bytes());
    for (label, from) in [(None, "classifier"), (Some(0), "request")] {
        let mut wish =
            json!({ "image": image, "attack": "noise", "epsilon": "0.1", "norm": "l2", "seed": 7 });
        if let Some(label) = label {
            wish["label"] = json!(label);
        }
        let told = events(&ask(&wish));
        let begin = &told[0].1;
        assert_eq!(begin["label_from"], from);
        let expected = label.map_or(begin["clean"]["bare_label"].clone(), |label| json!(label));
        assert_eq!(begin["label"], expected);
        assert_eq!(told.last().unwrap().0, "done");
    }

    let usual = json!({ "sample": 3, "attack": "fgsm", "epsilon": "8/255" });
    let with = |name: &str, value: Value| {
        let mut wish = usual.clone();
        wish[name] = value;
        wish
    };
    for (what, wish, statuses) in [
        ("an unknown attack", with("attack", json!("pdg-20")), &[422][..]),
        ("too dear an attack", with("attack", json!("pgd-100000")), &[422]),
        ("too dear an attack without gradients", with("attack", json!("square-1000000")), &[422]),
        ("a cost beyond all numbers", with("attack", json!("spsa-4294967295:pairs=4294967295")), &[422]),
        ("a budget below 0", with("epsilon", json!("-1/255")), &[422]),
        ("a budget of text", with("epsilon", json!("much")), &[400, 422]),
        ("an unknown norm", with("norm", json!("l7")), &[400, 422]),
        ("an attack in a norm that it is not for", with("attack", json!("cw-10")), &[422]),
        ("a class that is none", with("label", json!(10)), &[422]),
        ("a sample that is none", with("sample", json!(24)), &[404, 422]),
        ("two images", with("image", image.clone()), &[400, 422]),
        ("no image", json!({ "attack": "fgsm", "epsilon": "8/255" }), &[400, 422]),
        ("no attack", json!({ "sample": 3, "epsilon": "8/255" }), &[400, 422]),
        (
            "an image that is none",
            json!({ "image": "AAAA", "attack": "fgsm", "epsilon": "8/255" }),
            &[400, 415],
        ),
    ] {
        refusal_of(&ask(&wish), statuses, what);
    }
    refusal(&server.post("/v1/attack", JSON, b"{"), 400, "half a JSON");
    refusal(&server.post("/v1/attack", "image/png", &png(0)), 415, "a PNG");
}

#[test]
fn no_path_leads_out_of_the_folder_of_runs() {
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path().join("runs");
    fs::create_dir_all(runs.join("empty")).unwrap();
    const SECRET: &str = "what-nobody-may-read";
    for place in ["secret.txt", "runs/secret.txt", "runs/empty/report.html"] {
        fs::write(folder.path().join(place), SECRET).unwrap();
    }
    let server = Server::start(&["--runs", runs.to_str().unwrap()]);
    let absolute = folder.path().join("secret.txt").to_str().unwrap().to_owned();
    let coded = absolute.replace('/', "%2f");
    let long = format!("/runs/{}", "a".repeat(20_000));
    let deep = format!("/assets/{}secret.txt", "%2e%2e%2f".repeat(1000));
    let mut paths: Vec<String> = [
        "/runs/../../etc/passwd",
        "/runs/../secret.txt",
        "/runs/..%2fsecret.txt",
        "/runs/..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/runs/%2e%2e%2fsecret.txt",
        "/runs/%2e%2e/secret.txt",
        "/runs/%252e%252e%252fsecret.txt",
        "/runs/..%5csecret.txt",
        "/runs/..\\secret.txt",
        "/runs/....//secret.txt",
        "/runs/%c0%ae%c0%ae%c0%afsecret.txt",
        "/runs/%2fetc%2fpasswd",
        "/runs//etc/passwd",
        "/runs/.",
        "/runs/..",
        "/runs/%2e%2e",
        "/runs/%00",
        "/runs/%ff%fe",
        "/runs/secret.txt",
        "/runs/secret.txt%00.html",
        "/runs/empty/report.html",
        "/runs/empty%2freport.html",
        "/runs/empty%2f..%2f..%2fsecret.txt",
        "/assets/../secret.txt",
        "/assets/..%2f..%2f..%2fCargo.toml",
        "/assets/%2e%2e/%2e%2e/etc/passwd",
        "/assets//etc/passwd",
        "/assets/%00",
        "/assets/app.js%00",
        "/assets/",
        "/v1/samples/..%2f..%2fetc%2fpasswd",
        "/v1/samples/%00",
        "/v1/samples/99999999999999999999999",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "file:///etc/passwd",
        "http://127.0.0.1/runs/..%2fsecret.txt",
        "/runs/\0",
    ]
    .map(String::from)
    .to_vec();
    paths.extend([
        format!("/runs/{absolute}"),
        format!("/runs/{coded}"),
        format!("/assets/{coded}"),
        long,
        deep,
    ]);
    for path in paths {
        let mut wire = server.wire();
        wire.send(&request("GET", &path, &[], &[]));
        let shown: String = path.chars().take(80).collect();
        match wire.hear() {
            Heard::Answer(answer) => {
                let text = answer.text();
                assert!((400..500).contains(&answer.status), "{shown}: {}", answer.status);
                assert!(!text.contains(SECRET) && !text.contains("root:"), "{shown}: {text}");
            }
            other => panic!("{shown}: {other:?}"),
        }
    }
    let listed = server.get("/v1/runs");
    assert!(listed.status == 200 && listed.json().is_array() && !listed.text().contains(SECRET));
    assert!(!listed.text().contains(folder.path().to_str().unwrap()), "a path of this machine is told");
}
