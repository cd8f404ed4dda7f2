//! The loop that answers requests.

use std::{
    any::Any,
    io::{self, BufRead, Write},
    panic::{AssertUnwindSafe, catch_unwind},
};

use serde::Serialize;

use crate::{
    about::{About, peak_kib},
    error::{Error, Result},
    jobs,
    loaded::Loaded,
    protocol::{Answer, Body, Ready, Request},
};

/// Says that it is ready, and answers every line of `input` until it ends or is told to quit.
///
/// # Errors
/// If the pipes fail. Requests that fail are answered, and the loop goes on.
pub fn serve(threads: i32, mut input: impl BufRead, mut output: impl Write) -> Result<()> {
    send(&mut output, &Ready { ready: true, threads, about: About::this() })?;
    let mut loaded = None;
    let mut line = Vec::new();
    // bytes, not text: a line that is no UTF-8 is a bad request, not the end of the worker
    while input.read_until(b'\n', &mut line)? > 0 {
        if !line.trim_ascii().is_empty() {
            let request = serde_json::from_slice::<Request>(&line);
            let quits = matches!(request, Ok(Request::Quit));
            let result = request.map_err(Error::from).and_then(|request| answer(&mut loaded, &request));
            send(&mut output, &Answer::from(result))?;
            if quits {
                break;
            }
        }
        line.clear();
    }
    Ok(())
}

fn answer(loaded: &mut Option<Loaded>, request: &Request) -> Result<Body> {
    match request {
        Request::Load(files) => {
            // gone first, so that the two never need memory at once, and a failed load leaves nothing to mistake for it
            *loaded = None;
            let read = guarded(|| Loaded::read(files))?;
            let body = Body::Loaded { images: read.len(), size: read.size(), classes: read.classes() };
            *loaded = Some(read);
            Ok(body)
        }
        Request::Run { job } => {
            let loaded = loaded.as_ref().ok_or(Error::NotLoaded("data"))?;
            guarded(|| jobs::run(job, loaded)).map(Body::Report)
        }
        Request::Memory => Ok(Body::Memory { peak_kib: peak_kib()? }),
        Request::Quit => Ok(Body::Farewell {}),
    }
}

/// Does work that may panic: most functions of tch do where libtorch refuses, for instance for want of memory.
///
/// A panic inside of [`tch::no_grad`] leaves gradients off; [`tch::with_grad`] turns them on again for the next.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(|| tch::with_grad(work)))
        .unwrap_or_else(|cause| Err(Error::BrokenOff(words(cause.as_ref()))))
}

fn words(cause: &(dyn Any + Send)) -> String {
    let owned = cause.downcast_ref::<String>().cloned();
    let text = owned.or_else(|| cause.downcast_ref::<&str>().map(|&text| text.to_owned()));
    text.unwrap_or_else(|| "it does not say why".to_owned())
}

fn send(output: &mut impl Write, message: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(message).map_err(io::Error::from)?;
    line.push(b'\n');
    output.write_all(&line)?;
    Ok(output.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn conversation(input: &[u8]) -> Vec<Value> {
        let mut output = Vec::new();
        serve(1, input, &mut output).unwrap();
        output.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).map(said).collect()
    }

    fn said(line: &[u8]) -> Value {
        serde_json::from_slice(line).unwrap()
    }

    #[test]
    fn bad_lines_are_answered_and_the_worker_goes_on() {
        let input = b"nonsense\n\n\xff\xfe\n{\"op\":\"load\",\"data\":\"/nowhere\"}\n{\"op\":\"memory\"}\n\
            {\"op\":\"run\",\"job\":{\"kind\":\"gradient\",\"batch\":1}}\n{\"op\":\"quit\"}\n{\"op\":\"memory\"}\n";
        let answers = conversation(input);
        assert_eq!((&answers[0]["ready"], &answers[0]["threads"]), (&Value::from(true), &Value::from(1)));
        let ok: Vec<bool> = answers[1..].iter().map(|answer| answer["ok"] == true).collect();
        assert_eq!(ok, [false, false, false, cfg!(target_os = "linux"), false, true]);
        assert!(answers[3]["error"].as_str().unwrap().contains("/nowhere"));
        assert!(answers[5]["error"].as_str().unwrap().contains("load"));
    }

    #[test]
    fn a_worker_ends_with_its_input() {
        assert_eq!(conversation(b"").len(), 1);
        assert_eq!(conversation(b"{\"op\":\"quit\"}").len(), 2);
    }

    #[test]
    fn a_panic_is_an_error_and_leaves_gradients_on() {
        let broken: Result<()> = guarded(|| tch::no_grad(|| panic!("out of memory")));
        assert!(broken.unwrap_err().to_string().contains("out of memory"));
        let on = guarded(|| {
            let x = tch::Tensor::from_slice(&[1.0_f32]).set_requires_grad(true);
            Ok((&x * 2.0).requires_grad())
        });
        assert!(on.unwrap());
    }
}
