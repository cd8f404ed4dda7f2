//! More than the server can do: what it takes on it does, what it does not it says at once, and nothing is lost.

use std::{
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    NPY,
    api::{apart, refusal, results},
    batch,
    server::{Server, request},
};

/// What one client met.
#[derive(Default)]
struct Met {
    sent: u64,
    answered: u64,
    refused: u64,
}

#[test]
fn overload_is_refused_and_nothing_is_lost_or_mixed_up() {
    const CLIENTS: usize = 24;
    let server = Server::start(&["--queue", "4", "--max-batch", "4"]);
    // alone, one after the other, before it gets crowded
    let expected: Vec<Value> = (0..CLIENTS)
        .map(|client| results(&server.post("/v1/classify", NPY, &batch(client..client + 1))).remove(0))
        .collect();
    let counted = server.counted();
    let together = Barrier::new(CLIENTS);
    let met: Vec<Met> = thread::scope(|scope| {
        let clients: Vec<_> = expected
            .iter()
            .enumerate()
            .map(|(client, expected)| {
                let (server, together) = (&server, &together);
                scope.spawn(move || {
                    together.wait();
                    ask_and_ask(server, client, expected)
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let total = |part: fn(&Met) -> u64| met.iter().map(part).sum::<u64>();
    let (sent, answered, refused) =
        (total(|met| met.sent), total(|met| met.answered), total(|met| met.refused));
    assert_eq!(sent, answered + refused);
    assert!(answered > 0 && refused > 0, "{answered} answered, {refused} refused");
    // the server has counted them all, and the question after the count before
    assert!(server.counted() >= counted + sent as f64);
    // and is as good as new
    let after = results(&server.post("/v1/classify", NPY, &batch(0..4)));
    for (after, expected) in after.iter().zip(&expected) {
        assert!(apart(after, expected) < 1e-3);
    }
}

/// Asks for the same image again and again for three seconds.
fn ask_and_ask(server: &Server, client: usize, expected: &Value) -> Met {
    let mut wire = server.wire();
    let mut met = Met::default();
    let body = batch(client..client + 1);
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        let id = format!("client-{client}-{}", met.sent);
        let headers = [("content-type", NPY), ("x-request-id", id.as_str())];
        assert!(
            wire.send(&request("POST", "/v1/classify", &headers, &body)),
            "{id}: the connection is closed"
        );
        met.sent += 1;
        let answer = wire.answer();
        assert_eq!(answer.header("x-request-id"), Some(id.as_str()));
        if answer.status == 200 {
            let results = results(&answer);
            assert_eq!(results.len(), 1);
            // other images of the batch belong to others
            assert!(apart(&results[0], expected) < 1e-3, "{id}: the answer to another image");
            met.answered += 1;
        } else {
            refusal(&answer, 429, &id);
            assert!(answer.header("retry-after").unwrap().parse::<u32>().is_ok(), "{id}: {answer:?}");
            met.refused += 1;
            thread::sleep(Duration::from_millis(10));
        }
        if answer.header("connection") == Some("close") {
            wire = server.wire();
        }
    }
    met
}

#[test]
fn a_deadline_that_has_passed_is_said() {
    let server = Server::start(&["--max-batch", "4"]);
    let late: usize = thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|client| {
                let server = &server;
                scope.spawn(move || {
                    let headers = [("content-type", NPY), ("x-timeout-ms", "1")];
                    let ask = |_| server.ask("POST", "/v1/classify", &headers, &batch(client..client + 4));
                    let late = (0..6).map(ask).filter(|answer| answer.status != 200);
                    late.inspect(|answer| refusal(answer, 504, "1 ms")).count()
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert!(late > 0, "48 requests of four images were all answered within a millisecond");
    // whoever gives more time, or more than there is, is served
    for patience in ["100000", "18446744073709551615"] {
        let headers = [("content-type", NPY), ("x-timeout-ms", patience)];
        assert_eq!(results(&server.ask("POST", "/v1/classify", &headers, &batch(0..1))).len(), 1);
    }
}
