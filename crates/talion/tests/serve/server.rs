//! The program as a server, and two clients for it: one that keeps to HTTP, and one that need not.

use std::{
    error::Error,
    fs,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    path::Path,
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, Weak, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;
use ureq::{
    Agent,
    http::Request,
    tls::{Certificate, RootCerts, TlsConfig},
};

/// After so long a test calls something hung. Far more than anything takes, on a busy machine too.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Larger than any answer.
const LARGEST_ANSWER: u64 = 1 << 26;

/// A running server. Dropping it kills it.
pub struct Server {
    child: Child,
    agent: Agent,
    said: Arc<Mutex<String>>,
    url: String,
    /// Where it runs, so that it finds nothing by chance.
    _folder: tempfile::TempDir,
}

impl Server {
    /// Starts `talion serve`; on a free port and with a deadline that a busy machine keeps, unless the arguments say
    /// otherwise.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_trusted(arguments, None)
    }

    /// Starts a server whose certificate, in PEM, its client trusts.
    pub fn start_trusted(arguments: &[&str], certificate: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = command(folder.path(), arguments).spawn().unwrap();
        let said = Arc::default();
        let listener = listen(child.stderr.take().unwrap(), Arc::clone(&said));
        let line = first_line(child.stdout.take().unwrap());
        let agent = agent(certificate);
        let mut server = Self { child, agent, said, url: String::new(), _folder: folder };
        let Some(line) = line else {
            let _ = server.child.kill();
            let _ = listener.join();
            panic!("{arguments:?}: no address; standard error: {}", server.said());
        };
        let line: Value = serde_json::from_str(&line).unwrap();
        server.url = line["listening"].as_str().unwrap().to_owned();
        server
    }

    /// A server with the usual settings that tests share as long as one of them holds it.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        // whoever panicked while starting it left what was there before
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Self::start(&["--playground", "on"]));
            *shared = Arc::downgrade(&server);
            server
        })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn address(&self) -> SocketAddr {
        self.url.split_once("://").unwrap().1.parse().unwrap()
    }

    /// What it wrote on standard error up to now.
    pub fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// An answer to a request that is sound HTTP; an error if there is none.
    pub fn try_ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, Box<dyn Error>> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        for &(name, value) in headers {
            request = request.header(name, value);
        }
        let response = if body.is_empty() && matches!(method, "GET" | "DELETE") {
            self.agent.run(request.body(())?)?
        } else {
            self.agent.run(request.body(body)?)?
        };
        let (parts, body) = response.into_parts();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = parts.headers.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes())));
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: headers.collect(),
            body: body.into_with_config().limit(LARGEST_ANSWER).read_to_vec()?,
        })
    }

    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.try_ask(method, path, headers, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], &[])
    }

    #[track_caller]
    pub fn post(&self, path: &str, kind: &str, body: &[u8]) -> Answer {
        self.ask("POST", path, &[("content-type", kind)], body)
    }

    /// A connection that need not keep to HTTP.
    pub fn wire(&self) -> Wire {
        Wire::open(self.address()).unwrap()
    }

    /// How many requests the server has counted.
    pub fn counted(&self) -> f64 {
        let answer = self.get("/metrics");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let text = answer.text();
        let counters = text.lines().filter(|line| line.starts_with("talion_requests_total"));
        counters.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// A figure of the kernel's account of the process, such as `VmRSS`, in KiB; none where there is no such account.
    pub fn memory(&self, name: &str) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let figure = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        figure.split_whitespace().next()?.parse().ok()
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, signal: &str) {
        let line = format!("kill -s {signal} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success(), "{line}");
    }

    /// The exit code; none if a signal ended it.
    pub fn wait(&mut self) -> Option<i32> {
        let status = wait(&mut self.child);
        status.unwrap_or_else(|| panic!("the server does not end: {}", self.said())).code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // it may have ended before
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `talion serve` with arguments that it has to refuse. Returns the exit code and what it said.
pub fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut child = command(folder.path(), arguments).stdout(Stdio::null()).spawn().unwrap();
    let said = Arc::default();
    let listener = listen(child.stderr.take().unwrap(), Arc::clone(&said));
    let status = wait(&mut child);
    // if it serves instead
    let _ = child.kill();
    let _ = child.wait();
    listener.join().unwrap();
    let said = said.lock().unwrap().clone();
    (status.unwrap_or_else(|| panic!("{arguments:?} were taken: {said}")).code(), said)
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_talion"));
    // tests run side by side: more threads would wait for one another
    command.current_dir(folder).env("OMP_NUM_THREADS", "1").args(["--json", "serve"]).args(arguments);
    for (name, value) in [("--port", "0"), ("--deadline-ms", "120000")] {
        if !arguments.contains(&name) {
            command.args([name, value]);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn agent(certificate: Option<&str>) -> Agent {
    let trusted = certificate.map(|pem| Certificate::from_pem(pem.as_bytes()).unwrap());
    let tls = match trusted {
        Some(certificate) => TlsConfig::builder().root_certs(RootCerts::new_with_certs(&[certificate])),
        None => TlsConfig::builder(),
    };
    Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(PATIENCE))
        .tls_config(tls.build())
        .build()
        .new_agent()
}

/// Keeps what is written on standard error, so that the pipe never fills.
fn listen(stderr: ChildStderr, said: Arc<Mutex<String>>) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            let mut said = said.lock().unwrap();
            said.push_str(&String::from_utf8_lossy(&line));
            said.push('\n');
        }
    })
}

fn first_line(stdout: ChildStdout) -> Option<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let _ = sender.send(lines.next());
        // what else may come must not fill the pipe
        lines.for_each(drop);
    });
    receiver.recv_timeout(PATIENCE).ok().flatten()
}

/// Waits for the end; none if that takes too long.
fn wait(child: &mut Child) -> Option<ExitStatus> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(20));
    }
    None
}

/// An answer, whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// A request as it goes over the wire.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend(format!("{name}: {value}\r\n").into_bytes());
    }
    bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes());
    bytes.extend(body);
    bytes
}

/// What comes back on a connection.
#[derive(Debug)]
pub enum Heard {
    /// A whole answer.
    Answer(Answer),
    /// The end, after nothing or after a whole answer.
    Closed,
    /// The end in the middle of an answer, or after something that is none.
    Cut(String),
    /// Nothing, for as long as the connection's patience lasted.
    Nothing,
}

/// A connection on which anything can be sent.
pub struct Wire {
    stream: TcpStream,
    kept: Vec<u8>,
}

impl Wire {
    pub fn open(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, kept: Vec::new() })
    }

    /// How long to wait for the server to take or to send something.
    pub fn set_patience(&self, patience: Duration) {
        self.stream.set_read_timeout(Some(patience)).unwrap();
        self.stream.set_write_timeout(Some(patience)).unwrap();
    }

    /// Sends these bytes. Whether the server took them all: it may answer and close before.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Tells the server that nothing more will come.
    pub fn finish(&self) {
        // the server may have closed the connection already
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The next answer.
    pub fn hear(&mut self) -> Heard {
        let mut buffer = [0; 1 << 14];
        let mut ended = false;
        loop {
            if let Some((answer, used)) = parse(&self.kept, ended) {
                self.kept.drain(..used);
                // what comes before the answer proper, such as 100
                if answer.status < 200 {
                    continue;
                }
                return Heard::Answer(answer);
            }
            if ended {
                let rest = String::from_utf8_lossy(&self.kept).into_owned();
                return if rest.is_empty() { Heard::Closed } else { Heard::Cut(rest) };
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => ended = true,
                Ok(count) => self.kept.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Heard::Nothing;
                }
                Err(_) => ended = true,
            }
        }
    }

    /// The next answer to a request that has to have one.
    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        match self.hear() {
            Heard::Answer(answer) => answer,
            other => panic!("no answer but {other:?}"),
        }
    }
}

/// The answer that `bytes` begin with, and how many of them it has; none if it is not whole.
fn parse(bytes: &[u8], ended: bool) -> Option<(Answer, usize)> {
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let mut lines = text.lines();
    let status: u16 = lines.next()?.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let header =
        |name: &str| headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str());
    let rest = &bytes[head..];
    let (body, used) = if status < 200 || matches!(status, 204 | 304) {
        (Vec::new(), 0)
    } else if header("transfer-encoding").is_some() {
        chunks(rest)?
    } else if let Some(length) = header("content-length") {
        let length = length.parse().ok()?;
        (rest.get(..length)?.to_vec(), length)
    } else if ended {
        (rest.to_vec(), rest.len())
    } else {
        return None;
    };
    Some((Answer { status, headers, body }, head + used))
}

/// The body in chunks that `bytes` begin with, and how many of them it has; none if it is not whole.
fn chunks(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut place) = (Vec::new(), 0);
    loop {
        let line = bytes[place..].windows(2).position(|two| two == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[place..place + line]).ok()?, 16).ok()?;
        let begin = place + line + 2;
        body.extend_from_slice(bytes.get(begin..begin + size)?);
        // the line break behind the chunk; behind the last, empty one the end of the trailers, of which there are none
        bytes.get(begin + size..begin + size + 2)?;
        place = begin + size + 2;
        if size == 0 {
            return Some((body, place));
        }
    }
}
