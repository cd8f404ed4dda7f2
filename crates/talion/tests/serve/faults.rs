//! What no sound client sends, by the thousand, to one server: each is answered as the table says, or, where it is no
//! HTTP, its connection is closed. Afterwards the server is as it was.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use image::ImageFormat;
use serde_json::json;

use crate::{
    FORM, JSON, NPY, PIXELS,
    api::{refusal, results},
    batch, coded, file, form, gray, labels, npy, picture, pixels, plane, png,
    server::{Answer, Heard, PATIENCE, Server, Wire, request},
};

const CLIENTS: u64 = 4;
/// How much more memory may be in use when all is over, in KiB: what an allocator keeps for later.
const GROWTH: u64 = 256 << 10;
/// How much more may ever have been in use at once, in KiB: a few bodies as large as they may be, parsed.
const PEAK: u64 = 1 << 20;
/// Refusals of sound requests with unsound bodies.
const REFUSALS: [u16; 4] = [400, 413, 415, 422];
/// What may be said to requests that are hardly HTTP; never that the server failed.
const SAID: [u16; 14] = [200, 400, 404, 405, 408, 411, 413, 414, 415, 417, 422, 431, 501, 505];
const HEAD: &str = "POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n";

/// A generator of bytes by Marsaglia's xorshift.
struct Chance(u64);

impl Chance {
    fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.draw() % bound as u64) as usize
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| (self.draw() >> 32) as u8).collect()
    }
}

#[test]
fn thousands_of_bad_requests_leave_no_trace() {
    let server = Server::start(&["--playground", "on"]);
    // as much memory as sound requests take
    by_all_clients(|client| {
        let body = batch(client as usize..client as usize + 16);
        results(&server.post("/v1/classify?restored=true&map=true", NPY, &body));
    });
    let before = ["VmRSS", "VmHWM"].map(|figure| server.memory(figure));

    damaged_bodies(&server);
    bombs(&server);
    by_all_clients(|client| unsound_lengths(&server, client));
    by_all_clients(|client| vanish(&server, client));
    visitors_who_leave(&server);
    by_all_clients(|client| garbage(&server, client));
    deaf_readers(&server);

    let results = results(&server.post("/v1/classify", "image/png", &png(0)));
    assert_eq!(results[0]["label"], labels()[0]);
    assert_eq!(server.get("/readyz").status, 200);
    let metrics = server.get("/metrics").text();
    assert!(!metrics.contains("status=\"500\""), "{metrics}");
    let said = server.said();
    // decoders of others are caught where they fail; what is ours must not
    let ours = said.lines().find(|line| line.contains("panicked at") && line.contains("crates/talion"));
    assert_eq!(ours, None);
    let after = ["VmRSS", "VmHWM"].map(|figure| server.memory(figure));
    for ((before, after), bound) in before.into_iter().zip(after).zip([GROWTH, PEAK]) {
        // a system without such figures has none before and none after
        let grown = after.unwrap_or_default().saturating_sub(before.unwrap_or_default());
        assert!(grown < bound, "memory grew by {grown} KiB, more than {bound}");
    }
}

/// Does it in several threads; each is told its number.
fn by_all_clients(work: impl Fn(u64) + Sync) {
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let work = &work;
            scope.spawn(move || work(client));
        }
    });
}

fn post(server: &Server, kind: &str, body: &[u8]) -> Answer {
    let mut wire = server.wire();
    // the server may answer and close before it has all
    wire.send(&request("POST", "/v1/classify", &[("content-type", kind)], body));
    wire.answer()
}

/// A good body to be damaged.
struct Original {
    kind: &'static str,
    bytes: Vec<u8>,
    /// How many bytes, from the first on, may be changed. The pixels behind a header are good whatever they are.
    open: usize,
    tries: u64,
}

fn originals() -> [Original; 7] {
    let values = pixels(0).iter().flat_map(|&pixel| (f32::from(pixel) / 255.0).to_le_bytes());
    let floats = npy("<f4", "(28, 28)", &values.collect::<Vec<u8>>());
    let tensor = json!({ "tensor": plane(pixels(0)) }).to_string().into_bytes();
    let array = batch(0..1);
    let header = array.len() - PIXELS;
    let whole = |kind: &'static str, bytes: Vec<u8>, tries: u64| {
        let open = bytes.len();
        Original { kind, bytes, open, tries }
    };
    [
        whole("image/png", png(0), 700),
        whole("image/jpeg", file(&picture(0), ImageFormat::Jpeg), 150),
        whole("image/webp", file(&picture(0), ImageFormat::WebP), 150),
        Original { kind: NPY, bytes: array, open: header, tries: 400 },
        whole(NPY, floats, 100),
        whole(JSON, tensor, 400),
        whole(JSON, coded(&[png(0)]), 100),
    ]
}

fn damaged(original: &Original, chance: &mut Chance) -> Vec<u8> {
    let mut bytes = original.bytes.clone();
    let place = chance.below(original.open);
    let end = original.open.min(place + 1 + chance.below(16));
    match chance.below(6) {
        0 => bytes.truncate(place),
        1 => {
            for byte in chance.bytes(4) {
                bytes[chance.below(original.open)] = byte;
            }
        }
        2 => drop(bytes.splice(place..place, chance.bytes(end - place))),
        3 => drop(bytes.drain(place..end)),
        4 => bytes.extend_from_within(place..end),
        _ => bytes[place..end].fill(0xff),
    }
    bytes
}

fn damaged_bodies(server: &Server) {
    let originals = originals();
    let counts: Vec<BTreeMap<(usize, u16), u64>> = thread::scope(|scope| {
        let originals = &originals;
        let start = |client| scope.spawn(move || damage(server, originals, client));
        let clients: Vec<_> = (0..CLIENTS).map(start).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let mut total = BTreeMap::new();
    for ((original, status), count) in counts.into_iter().flatten() {
        *total.entry((originals[original].kind, status != 200)).or_insert(0) += count;
    }
    assert_eq!(total.values().sum::<u64>(), 2000);
    let refused: u64 = total.iter().filter(|((_, refused), _)| *refused).map(|(_, count)| count).sum();
    assert!(refused > 1000, "too little was damaged: {total:?}");
    for original in &originals {
        assert!(total.contains_key(&(original.kind, true)), "no {} was refused", original.kind);
    }
}

/// One client's share of damaged bodies, on a connection that is kept. Returns how often each original had each answer.
fn damage(server: &Server, originals: &[Original], client: u64) -> BTreeMap<(usize, u16), u64> {
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15 ^ client);
    let mut wire = server.wire();
    let mut counts = BTreeMap::new();
    for (index, original) in originals.iter().enumerate() {
        for attempt in 0..original.tries / CLIENTS + u64::from(client < original.tries % CLIENTS) {
            let body = damaged(original, &mut chance);
            let id = format!("{client}-{index}-{attempt}");
            let headers = [("content-type", original.kind), ("x-request-id", id.as_str())];
            assert!(wire.send(&request("POST", "/v1/classify", &headers, &body)), "{id}");
            let answer = wire.answer();
            assert_eq!(answer.header("x-request-id"), Some(id.as_str()), "the answer to something else");
            if answer.status == 200 {
                results(&answer);
            } else {
                let what = format!("{id}, {}", original.kind);
                assert!(REFUSALS.contains(&answer.status), "{what}: {} {}", answer.status, answer.text());
                refusal(&answer, answer.status, &what);
            }
            *counts.entry((index, answer.status)).or_insert(0) += 1;
            if answer.header("connection") == Some("close") {
                wire = server.wire();
            }
        }
    }
    counts
}

/// The check sum of a PNG chunk.
fn crc(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), bit))
}

/// A small PNG that says it is as large as this.
fn large_png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = png(0);
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let sum = crc(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// A small JPEG that says it has 65,535 rows and columns.
fn large_jpeg() -> Vec<u8> {
    let mut bytes = file(&picture(0), ImageFormat::Jpeg);
    let frame = bytes.windows(2).position(|two| two == [0xff, 0xc0]).unwrap();
    // behind the marker: length, precision, height, width
    bytes[frame + 5..frame + 9].fill(0xff);
    bytes
}

/// A lossless WebP that ends after its header, which says 16,384 rows and columns.
fn large_webp() -> Vec<u8> {
    let sides: u32 = 0x3fff | (0x3fff << 14);
    let mut bytes = b"RIFF\x16\0\0\0WEBPVP8L\x0a\0\0\0\x2f".to_vec();
    bytes.extend(sides.to_le_bytes());
    bytes.extend([0; 5]);
    bytes
}

/// Small bodies that would become large, and bodies as large as they may be or larger.
fn bombs(server: &Server) {
    assert_eq!(crc(b"IEND"), 0xae42_6082);
    let most = 8 << 20;
    let text = String::into_bytes;
    let filled = |before: &str, unit: &str, after: &str| {
        let count = (most - before.len() - after.len()) / unit.len();
        format!("{before}{}{after}", unit.repeat(count)).into_bytes()
    };
    let black = file(&gray(8000, 8000, &vec![0; 64_000_000]), ImageFormat::Png);
    assert!(black.len() < most, "the bytes are not what it is refused for");
    let part = "--between-the-images\r\nContent-Disposition: form-data; name=\"image\"\r\n";
    let cases: [(&str, &str, Vec<u8>, &[u16]); 24] = [
        ("a PNG of 60,000 x 60,000", "image/png", large_png(60_000, 60_000), &[413]),
        ("a PNG of one large row", "image/png", large_png(0x7fff_ffff, 1), &[400, 413]),
        ("a PNG larger than PNG allows", "image/png", large_png(u32::MAX, u32::MAX), &[400, 413]),
        ("a PNG of nothing", "image/png", large_png(0, 0), &REFUSALS),
        ("8,000 x 8,000 black pixels", "image/png", black, &[413]),
        ("a large JPEG", "image/jpeg", large_jpeg(), &[400, 413]),
        ("a large WebP", "image/webp", large_webp(), &[400, 413]),
        ("a large PNG in JSON", JSON, coded(&[large_png(60_000, 60_000)]), &[413]),
        ("a large PNG in a form", FORM, form(&[large_png(60_000, 60_000)]), &[413]),
        ("100,000 brackets", JSON, text("[".repeat(100_000)), &[400, 422]),
        ("100,000 pairs of brackets", JSON, text("[".repeat(100_000) + &"]".repeat(100_000)), &[400, 422]),
        (
            "a tensor of 100,000 axes",
            JSON,
            text(format!("{{\"tensor\":{}", "[".repeat(100_000))),
            &[400, 422],
        ),
        ("100,000 objects", JSON, text("{\"tensor\":".repeat(100_000)), &[400, 422]),
        (
            "a list of 10,000,000",
            JSON,
            text(format!("{{\"tensor\":[{}0]}}", "0,".repeat(10_000_000))),
            &[413],
        ),
        ("a list as long as may be", JSON, filled("{\"tensor\":[", "0,", "0]}"), &REFUSALS),
        ("as many small axes as may be", JSON, filled("{\"tensor\":[", "[[[0]]],", "0]}"), &REFUSALS),
        ("as many files as may be", JSON, filled("{\"images\":[", "\"\",", "\"\"]}"), &REFUSALS),
        ("as large a file as may be", JSON, filled("{\"images\":[\"", "AAAA", "\"]}"), &REFUSALS),
        ("as large a key as may be", JSON, filled("{\"", "a", "\":0}"), &REFUSALS),
        ("as many keys as may be", JSON, filled("{", "\"tensor\":0,", "\"tensor\":0}"), &REFUSALS),
        ("as many parts as may be", FORM, filled("", &format!("{part}\r\n\r\n"), ""), &REFUSALS),
        ("as large a part's head as may be", FORM, filled(part, "X: 0\r\n", ""), &REFUSALS),
        ("as large a file in a form as may be", FORM, filled(&format!("{part}\r\n"), "\0", ""), &REFUSALS),
        ("one byte too many", "image/png", vec![0x89; most + 1], &[413]),
    ];
    for (what, kind, body, statuses) in cases {
        let answer = post(server, kind, &body);
        assert!(statuses.contains(&answer.status), "{what}: {} {}", answer.status, answer.text());
        refusal(&answer, answer.status, what);
    }
    strange_arrays(server);
}

/// NPY headers that promise more than there is, or something else.
fn strange_arrays(server: &Server) {
    let zeros = [0; PIXELS];
    let shapes = [
        "(1000000000, 1000000000)",
        "(4294967296, 4294967296)",
        "(18446744073709551615, 2)",
        "(99999999999999999999999, 1)",
        "(-1, 28)",
        "(28, -28)",
        "()",
        "(784,)",
        "(0, 1, 28, 28)",
        "(0, 0)",
        "(1, 1, 1, 28, 28)",
        "(28, 28",
        "28",
        "(28.0, 28)",
    ];
    let kinds = ["<f2", "|O", "<U4", "|b1", "<c8", "|V784", "[('a', '<f4')]", "", "\u{ff}"];
    let shaped = shapes.iter().map(|shape| npy("|u1", shape, &zeros));
    let mut arrays: Vec<Vec<u8>> =
        shaped.chain(kinds.iter().map(|kind| npy(kind, "(28, 28)", &zeros))).collect();
    arrays.extend([
        b"\x93NUMPY".to_vec(),
        b"\x93NUMPY\x01\x00\xff\xff{".to_vec(),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{".to_vec(),
        b"\x93NUMPY\x09\x00\x01\x00{".to_vec(),
        npy("|u1", "(28, 28)", &zeros[1..]),
        npy("|u1", &format!("({}28)", "(".repeat(20_000)), &zeros),
        npy(&"<".repeat(20_000), "(28, 28)", &zeros),
    ]);
    for array in arrays {
        let answer = post(server, NPY, &array);
        let shown = String::from_utf8_lossy(&array[..array.len().min(100)]).into_owned();
        assert!(REFUSALS.contains(&answer.status), "{shown}: {} {}", answer.status, answer.text());
        refusal(&answer, answer.status, &shown);
    }
}

/// Hears everything until the connection ends, which it has to; each answer has to be one for such requests.
#[track_caller]
fn hear_out(wire: &mut Wire, what: &str) {
    loop {
        match wire.hear() {
            Heard::Answer(answer) => assert!(SAID.contains(&answer.status), "{what}: {}", answer.status),
            Heard::Closed => return,
            other => panic!("{what}: {other:?}"),
        }
    }
}

/// Lengths that are no lengths, or not those of the body.
fn unsound_lengths(server: &Server, client: u64) {
    let body = "this is no image";
    let chunked = "Transfer-Encoding: chunked\r\n";
    let long_extension = format!("5;{}\r\nabcde\r\n0\r\n\r\n", "x".repeat(100_000));
    let without_end = "1\r\na\r\n".repeat(10_000);
    let cases: [(&str, &str); 41] = [
        ("Content-Length: 5\r\n", body),
        ("Content-Length: 5000\r\n", body),
        ("Content-Length: 8388608\r\n", body),
        ("Content-Length: 18446744073709551615\r\n", body),
        ("Content-Length: 99999999999999999999999\r\n", body),
        ("Content-Length: -1\r\n", body),
        ("Content-Length: +16\r\n", body),
        ("Content-Length: 0x10\r\n", body),
        ("Content-Length: 1e1\r\n", body),
        ("Content-Length: \r\n", body),
        ("Content-Length: sixteen\r\n", body),
        ("Content-Length: 16, 16\r\n", body),
        ("Content-Length: 16, 17\r\n", body),
        ("Content-Length: 16\r\nContent-Length: 16\r\n", body),
        ("Content-Length: 16\r\nContent-Length: 3\r\n", body),
        ("Content-Length : 16\r\n", body),
        ("", body),
        (chunked, ""),
        (chunked, "\r\n"),
        (chunked, "zz\r\n"),
        (chunked, "-1\r\na\r\n"),
        (chunked, "ffffffffffffffff\r\na"),
        (chunked, "10000000000000000\r\na"),
        (chunked, "5\r\nab"),
        (chunked, "5\r\nabcdefgh\r\n0\r\n\r\n"),
        (chunked, "5\r\nabcde0\r\n\r\n"),
        (chunked, "2\r\nab\r\n"),
        (chunked, "0\r\n"),
        (chunked, "0\r\nno trailer\r\n\r\n"),
        (chunked, &long_extension),
        (chunked, &without_end),
        ("Transfer-Encoding: gzip\r\n", body),
        ("Transfer-Encoding: chunked, gzip\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: \u{b}chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
        ("Content-Length: 50\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("Expect: 100-continue\r\nContent-Length: 16\r\n", body),
        ("Expect: 100-continue\r\nContent-Length: 1600\r\n", body),
        ("Expect: nothing\r\nContent-Length: 16\r\n", body),
    ];
    for round in 0..4 {
        for (headers, body) in cases {
            let mut wire = server.wire();
            wire.send(format!("{HEAD}{headers}\r\n{body}").as_bytes());
            wire.finish();
            hear_out(&mut wire, &format!("client {client}, round {round}, {headers:?} and {body:.40}"));
        }
    }
}

/// Clients that go without a word, in the middle of one, or before the answer.
fn vanish(server: &Server, client: u64) {
    for _ in 0..500 {
        drop(server.wire());
    }
    let whole = request("POST", "/v1/classify", &[("content-type", "image/png")], &png(client as usize));
    let mut chance = Chance(77 + client);
    for _ in 0..200 {
        // the last byte is not sent, so that nothing is to be done
        let some = chance.below(whole.len() - 1);
        server.wire().send(&whole[..some]);
    }
    for _ in 0..5 {
        server.wire().send(&whole);
    }
}

/// Visitors of the page who leave as soon as their attack begins do not keep others from theirs.
fn visitors_who_leave(server: &Server) {
    let wish = |attack: &str| {
        let wish = json!({ "sample": 0, "attack": attack, "epsilon": "8/255" }).to_string();
        request("POST", "/v1/attack", &[("content-type", JSON)], wish.as_bytes())
    };
    for _ in 0..8 {
        server.wire().send(&wish("pgd-400"));
    }
    let begun = Instant::now();
    loop {
        let mut wire = server.wire();
        wire.send(&wish("fgsm"));
        let answer = wire.answer();
        if answer.status == 200 {
            assert!(answer.text().contains("event: done"), "{}", answer.text());
            return;
        }
        refusal(&answer, 429, "an attack while others are watched");
        assert!(begun.elapsed() < PATIENCE, "nobody watches, and there is no place");
        thread::sleep(Duration::from_millis(100));
    }
}

/// What is no HTTP, or hardly.
fn garbage(server: &Server, client: u64) {
    // how a TLS client begins: a record of a handshake, in it a greeting
    let greeting = [&b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03"[..], &[0x5a; 189]].concat();
    let headers: String = (0..1000).map(|number| format!("x-{number}: 0\r\n")).collect();
    let fixed: [Vec<u8>; 20] = [
        greeting,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        vec![0; 1000],
        vec![b'\n'; 1000],
        vec![b'A'; 1_000_000],
        b"GET".to_vec(),
        b"GET /healthz\r\n\r\n".to_vec(),
        b"GET /healthz HTTP/9.9\r\n\r\n".to_vec(),
        b"GET /healthz HTTP/1.1\r\nHost 127.0.0.1\r\n\r\n".to_vec(),
        b"GET /healthz HTTP/1.1\r\n folded: 1\r\n\r\n".to_vec(),
        b"GET /healthz HTTP/1.1\nHost: 127.0.0.1\n\n".to_vec(),
        b"GET /healthz HTTP/1.1\r\nx: \0\r\n\r\n".to_vec(),
        b"get /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".to_vec(),
        b"EHLO mail\r\nMAIL FROM:<a@b>\r\n".to_vec(),
        b"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".to_vec(),
        b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".to_vec(),
        b"GET /v1/model HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n".to_vec(),
        format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000)).into_bytes(),
        format!("GET /healthz HTTP/1.1\r\n{headers}\r\n").into_bytes(),
        format!("GET /healthz HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(1_000_000)).into_bytes(),
    ];
    let mut chance = Chance(0xfeed + client);
    let random = (0..300).map(|number: usize| {
        let count = chance.below(2000);
        let noise = chance.bytes(count);
        // every other comes as far as the headers
        if number.is_multiple_of(2) { noise } else { [HEAD.as_bytes(), &noise].concat() }
    });
    for (number, bytes) in fixed.into_iter().chain(random).enumerate() {
        let mut wire = server.wire();
        wire.send(&bytes);
        wire.finish();
        hear_out(
            &mut wire,
            &format!(
                "client {client}, {number}: {:?}",
                String::from_utf8_lossy(&bytes[..bytes.len().min(60)])
            ),
        );
    }
}

/// Clients that ask and ask and never read an answer do not hold up others.
fn deaf_readers(server: &Server) {
    let description = request("GET", "/openapi.json", &[], &[]).repeat(5000);
    let batch =
        request("POST", "/v1/classify?restored=true&map=true", &[("content-type", NPY)], &batch(0..32));
    let deaf: Vec<Wire> = [&description, &description, &description, &batch]
        .into_iter()
        .map(|bytes| {
            let mut wire = server.wire();
            wire.set_patience(Duration::from_millis(500));
            // the server takes no more when nobody takes what it says
            wire.send(bytes);
            wire
        })
        .collect();
    for index in 0..4 {
        results(&server.post("/v1/classify", "image/png", &png(index)));
    }
    drop(deaf);
}

/// What a slow client gets: the connection's end, or an answer.
enum Slow {
    Closed,
    Answered(Answer),
}

/// Sends `bytes`, then, if it drips, another byte every 50 ms, until the server has had enough.
fn slowly(server: &Server, bytes: &[u8], drips: bool) -> Slow {
    let mut wire = server.wire();
    wire.set_patience(Duration::from_millis(50));
    wire.send(bytes);
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE / 4 {
        if drips {
            wire.send(b"a");
        }
        match wire.hear() {
            Heard::Nothing => {}
            Heard::Answer(answer) => return Slow::Answered(answer),
            Heard::Closed => return Slow::Closed,
            Heard::Cut(said) => panic!("half an answer: {said}"),
        }
    }
    panic!("the server waits without end for what follows {:?}", String::from_utf8_lossy(bytes));
}

#[test]
fn slow_clients_are_not_waited_for() {
    let server = Server::start(&["--header-timeout-ms", "500", "--body-timeout-ms", "500"]);
    let body = format!("{HEAD}Content-Length: 100000\r\n\r\nbegun");
    let chunks = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n1000\r\n");
    let cases: [(&str, bool, bool); 7] = [
        ("", false, false),
        ("GET /healthz HTTP/1.1\r\nHost:", false, false),
        ("GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nx-slow: ", true, false),
        ("GET /", true, false),
        (&body, false, true),
        (&body, true, true),
        (&chunks, true, true),
    ];
    thread::scope(|scope| {
        for (bytes, drips, in_body) in cases.into_iter().cycle().take(6 * cases.len()) {
            let server = &server;
            scope.spawn(move || match slowly(server, bytes.as_bytes(), drips) {
                Slow::Answered(answer) if in_body => refusal(&answer, 408, bytes),
                Slow::Answered(answer) => assert_eq!(answer.status, 408, "{bytes}"),
                Slow::Closed => assert!(!in_body, "no answer to {bytes}"),
            });
        }
        // meanwhile others are served
        for index in 0..4 {
            results(&server.post("/v1/classify", "image/png", &png(index)));
        }
    });
    results(&server.post("/v1/classify", "image/png", &png(0)));
}
