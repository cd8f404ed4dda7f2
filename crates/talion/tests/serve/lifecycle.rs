//! From start to end: what cannot be served is said, what was accepted is answered, and what was killed comes back.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::{
    NPY,
    api::results,
    batch,
    server::{Heard, PATIENCE, Server, Wire, refused, request},
};

fn one_image() -> Vec<u8> {
    request("POST", "/v1/classify", &[("content-type", NPY)], &batch(0..1))
}

#[test]
fn what_was_accepted_before_sigterm_is_answered_and_nothing_is_cut_off() {
    let mut server = Server::start(&[]);
    let address = server.address();
    // answered once: the server has accepted these connections
    let mut waiting: Vec<Wire> = (0..5).map(|_| server.wire()).collect();
    for wire in &mut waiting {
        assert!(wire.send(&one_image()));
        results(&wire.answer());
    }
    let asked = AtomicBool::new(false);
    thread::scope(|scope| {
        let crowd: Vec<_> = (0..4).map(|_| scope.spawn(|| come_and_go(address, &asked))).collect();
        let work = request("POST", "/v1/classify", &[("content-type", NPY)], &batch(0..32));
        for wire in &mut waiting {
            assert!(wire.send(&work));
        }
        // when the first is answered, the server has long read the others
        assert_eq!(results(&waiting[0].answer()).len(), 32);
        asked.store(true, Ordering::SeqCst);
        server.signal("TERM");
        for wire in &mut waiting[1..] {
            assert_eq!(results(&wire.answer()).len(), 32);
        }
        let answered: usize = crowd.into_iter().map(|client| client.join().unwrap()).sum();
        assert!(answered > 0, "nobody of the crowd was answered");
    });
    assert_eq!(server.wait(), Some(0), "{}", server.said());
}

/// Asks on one new connection after the other until there is nobody to connect to. Returns how many answers came.
fn come_and_go(address: SocketAddr, asked_to_stop: &AtomicBool) -> usize {
    let work = one_image();
    let mut answered = 0;
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let stopping = || asked_to_stop.load(Ordering::SeqCst);
        let Ok(mut wire) = Wire::open(address) else {
            assert!(stopping(), "refused while nobody had asked the server to stop");
            return answered;
        };
        wire.send(&work);
        match wire.hear() {
            Heard::Answer(answer) if answer.status == 200 => {
                results(&answer);
                answered += 1;
            }
            Heard::Answer(answer) => {
                assert!(answer.status == 503 && stopping(), "{} {}", answer.status, answer.text());
            }
            // never accepted: it came too late
            Heard::Closed => assert!(stopping(), "closed while nobody had asked the server to stop"),
            other => panic!("{other:?}"),
        }
    }
    panic!("the server still takes connections");
}

#[test]
fn clients_that_say_nothing_do_not_keep_the_server_from_stopping() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::start(&["--header-timeout-ms", "2000"]);
        let _silent = server.wire();
        let mut halting = server.wire();
        assert!(halting.send(b"GET /healthz HTTP/1.1\r\nHost:"));
        let mut idle = server.wire();
        assert!(idle.send(&request("GET", "/healthz", &[], &[])));
        assert_eq!(idle.answer().status, 200);
        server.signal(signal);
        assert_eq!(server.wait(), Some(0), "{signal}: {}", server.said());
    }
}

/// A free port that the system gives to no outgoing connection, so that it stays free while its server is dead.
fn quiet_port() -> u16 {
    let first = 10_000 + (std::process::id() % 10_000) as u16;
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (first..32_000).find(free).unwrap()
}

#[test]
fn clients_that_try_again_are_served_after_a_crash() {
    let port = quiet_port().to_string();
    let mut server = Server::start(&["--port", &port]);
    let address = server.address();
    let restarted = AtomicBool::new(false);
    let failures: usize = thread::scope(|scope| {
        let clients: Vec<_> = (0..6).map(|_| scope.spawn(|| try_again(address, &restarted))).collect();
        thread::sleep(Duration::from_millis(700));
        server.signal("KILL");
        assert_eq!(server.wait(), None);
        server = Server::start(&["--port", &port]);
        restarted.store(true, Ordering::SeqCst);
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert!(failures > 0, "nobody met the crash");
    assert_eq!(server.address(), address);
}

/// Asks until ten answers have come, the last of them after the restart. Returns how many requests had none.
fn try_again(address: SocketAddr, restarted: &AtomicBool) -> usize {
    let (mut answered, mut failures) = (0, 0);
    let mut wire = None;
    let begun = Instant::now();
    while begun.elapsed() < 2 * PATIENCE {
        let back = restarted.load(Ordering::SeqCst);
        if wire.is_none() {
            wire = Wire::open(address).ok();
        }
        let heard = wire.as_mut().map(|wire| {
            wire.send(&one_image());
            wire.hear()
        });
        match heard {
            Some(Heard::Answer(answer)) => {
                results(&answer);
                answered += 1;
                if back && answered >= 10 {
                    return failures;
                }
            }
            Some(Heard::Nothing) => panic!("no answer and no end of the connection"),
            // cut off, or nobody there
            _ => {
                failures += 1;
                wire = None;
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
    panic!("{answered} answers and {failures} failures, and no end");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let (code, said) = refused(&["--port", &port]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&port) && !said.contains("panicked"), "{said}");
}

/// Writes a new self-signed certificate for this machine and its key into `folder`.
fn certify(folder: &Path, name: &str) -> (String, String) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let place = |kind: &str| folder.join(format!("{name}-{kind}.pem")).to_str().unwrap().to_owned();
    let (certificate, key) = (place("certificate"), place("key"));
    fs::write(&certificate, cert.pem()).unwrap();
    fs::write(&key, signing_key.serialize_pem()).unwrap();
    (certificate, key)
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let place = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (missing, nonsense, empty) = (place("missing.file"), place("nonsense.file"), place("empty.file"));
    fs::write(&nonsense, "nothing that can be used\n".repeat(40)).unwrap();
    fs::write(&empty, "").unwrap();
    let ((certificate, key), (_, other_key)) = (certify(folder, "one"), certify(folder, "other"));
    let cases: [(&[&str], &str); 10] = [
        (&["--calibration", &missing], "missing.file"),
        (&["--calibration", &nonsense], "nonsense.file"),
        (&["--tokens", &missing], "missing.file"),
        (&["--tokens", &empty], "empty.file"),
        (&["--tls-certificate", &missing, "--tls-key", &key], "missing.file"),
        (&["--tls-certificate", &nonsense, "--tls-key", &key], "nonsense.file"),
        (&["--tls-certificate", &certificate, "--tls-key", &nonsense], "nonsense.file"),
        (&["--tls-certificate", &certificate, "--tls-key", &other_key], "other-key.pem"),
        (&["--model", &missing, "--trn", &missing], "missing.file"),
        (&["--model", &nonsense, "--trn", &nonsense], "nonsense.file"),
    ];
    for (arguments, named) in cases {
        let (code, said) = refused(arguments);
        assert_eq!(code, Some(1), "{arguments:?}: {said}");
        assert!(said.contains(named) && !said.contains("panicked"), "{arguments:?}: {said}");
    }
    // whether these are failures or wrong usage is a matter of taste
    for (arguments, named) in [
        (["--tls-certificate", &certificate], "--tls-key"),
        (["--tls-key", &key], "--tls-certificate"),
        (["--model", &nonsense], "--trn"),
        (["--trn", &nonsense], "--model"),
        (["--samples", "nowhere"], "nowhere"),
    ] {
        let (code, said) = refused(&arguments);
        assert!(matches!(code, Some(1 | 2)), "{arguments:?}: {code:?} {said}");
        assert!(said.contains(named) && !said.contains("panicked"), "{arguments:?}: {said}");
    }
}

#[test]
fn tls_is_served_and_plain_http_on_its_port_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = certify(folder.path(), "own");
    let pem = fs::read_to_string(&certificate).unwrap();
    let mut server =
        Server::start_trusted(&["--tls-certificate", &certificate, "--tls-key", &key], Some(&pem));
    assert!(server.url().starts_with("https://127.0.0.1:"), "{}", server.url());
    assert_eq!(results(&server.post("/v1/classify", NPY, &batch(0..2))).len(), 2);
    // a client that offers more is given what the server speaks
    assert_eq!(agreed_protocol(&server, &certificate).as_deref(), Some(&b"http/1.1"[..]));
    for _ in 0..20 {
        let mut wire = server.wire();
        wire.send(&request("GET", "/healthz", &[], &[]));
        wire.finish();
        // closed, with or without an alert of TLS before; a plain answer may only say that it is wrong
        match wire.hear() {
            Heard::Closed | Heard::Cut(_) => {}
            Heard::Answer(answer) => assert_eq!(answer.status, 400),
            Heard::Nothing => panic!("plain HTTP is waited for"),
        }
    }
    // half a greeting, and silence
    let _half = {
        let mut wire = server.wire();
        wire.send(b"\x16\x03\x01\x00\xc8\x01");
        wire
    };
    assert_eq!(results(&server.post("/v1/classify", NPY, &batch(0..2))).len(), 2);

    // a server that nobody vouches for is not believed
    let stranger = Server::start(&["--tls-certificate", &certificate, "--tls-key", &key]);
    assert!(stranger.try_ask("GET", "/healthz", &[], &[]).is_err());

    server.signal("TERM");
    assert_eq!(server.wait(), Some(0), "{}", server.said());
}

/// What TLS agrees on with a client that would rather speak HTTP/2, as browsers would.
fn agreed_protocol(server: &Server, certificate: &str) -> Option<Vec<u8>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = "127.0.0.1".try_into().unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = std::net::TcpStream::connect(server.url().strip_prefix("https://").unwrap()).unwrap();
    connection.complete_io(&mut stream).unwrap();
    connection.alpn_protocol().map(<[u8]>::to_vec)
}
