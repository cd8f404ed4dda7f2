//! Downloads that survive a broken connection: what has arrived stays in a `.part` file, and the next try asks for the
//! rest.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use ureq::{Agent, Body, http::Response};

use super::{Progress, Report, checksum};
use crate::error::{DataError, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// No file of a known data set is larger: a bound on what a wrong server can fill the disk with.
const MAX_BYTES: u64 = 1 << 30;
const BUFFER_LEN: usize = 1 << 16;

/// A client that gives up quickly on an address that does not answer. It goes through the proxy that the environment
/// names, if any.
pub(crate) fn agent() -> Agent {
    agent_with(ureq::Proxy::try_from_env())
}

fn agent_with(proxy: Option<ureq::Proxy>) -> Agent {
    Agent::config_builder()
        .timeout_resolve(Some(CONNECT_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(STALL_TIMEOUT))
        .timeout_per_read(Some(STALL_TIMEOUT))
        .http_status_as_error(false)
        .proxy(proxy)
        .build()
        .new_agent()
}

/// Downloads `url` to `target`, which appears only once its MD5 sum is right.
pub(crate) fn fetch_file(
    agent: &Agent,
    url: &str,
    target: &Path,
    md5: &str,
    report: Report<'_>,
) -> Result<()> {
    let part = part_of(target);
    // A full `.part` file is left over if the program was ended before the renaming.
    let mut checked = checksum::check_file_md5(&part, md5);
    let mut resumed = true;
    while checked.is_err() && resumed {
        // A resumed file may mix two versions, so a wrong sum then means one more try from the start.
        resumed = length(&part) > 0;
        download(agent, url, &part, report)?;
        checked = checksum::check_file_md5(&part, md5);
        if checked.is_err() {
            fs::remove_file(&part).map_err(DataError::io("remove", &part))?;
        }
    }
    checked?;
    fs::rename(&part, target).map_err(DataError::io("move a download to", target))
}

fn part_of(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    target.with_file_name(name)
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Completes `part`.
fn download(agent: &Agent, url: &str, part: &Path, report: Report<'_>) -> Result<()> {
    let (response, have) = answer(agent, url, length(part))?;
    let total = response.body().content_length().map(|rest| have.saturating_add(rest));
    if let Some(total) = total.filter(|&total| total > MAX_BYTES) {
        return Err(failure(url, format!("the server announces {total} bytes, more than {MAX_BYTES}")));
    }
    let file = File::options().create(true).write(true).append(have > 0).truncate(have == 0).open(part);
    let mut file = file.map_err(DataError::io("write", part))?;
    let body = response.into_body().into_with_config().limit(MAX_BYTES).reader();
    let name = url.rsplit('/').next().unwrap_or(url);
    let mut done = have;
    report(Progress::Downloading { file: name, done, total });
    copy(body, url, |bytes| {
        file.write_all(bytes).map_err(DataError::io("write", part))?;
        done += bytes.len() as u64;
        report(Progress::Downloading { file: name, done, total });
        Ok(())
    })?;
    file.sync_all().map_err(DataError::io("write", part))?;
    match total {
        Some(total) if total != done => {
            Err(failure(url, format!("the connection ended after {done} of {total} bytes")))
        }
        _ => Ok(()),
    }
}

/// The server's answer, and how many of the `have` bytes that are there it builds on: all or none.
fn answer(agent: &Agent, url: &str, have: u64) -> Result<(Response<Body>, u64)> {
    let response = request(agent, url, have)?;
    match response.status().as_u16() {
        200 => Ok((response, 0)),
        206 if have > 0 && range_start(&response) == Some(have) => Ok((response, have)),
        // Nothing of the file lies beyond what is there, yet its sum is wrong.
        416 if have > 0 => answer(agent, url, 0),
        status => Err(failure(url, format!("the server answered with status {status}"))),
    }
}

/// Hands all that arrives to `take`.
fn copy(mut body: impl Read, url: &str, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; BUFFER_LEN];
    loop {
        let count = body.read(&mut buffer).map_err(|error| {
            failure(url, format!("{error}; what has arrived is kept, and the next try continues from there"))
        })?;
        if count == 0 {
            return Ok(());
        }
        take(&buffer[..count])?;
    }
}

fn failure(url: &str, cause: String) -> DataError {
    DataError::Download { url: url.to_owned(), cause }
}

fn request(agent: &Agent, url: &str, have: u64) -> Result<Response<Body>> {
    let request = agent.get(url);
    let request = if have > 0 { request.header("Range", format!("bytes={have}-")) } else { request };
    request.call().map_err(|error| failure(url, error.to_string()))
}

/// Where the part of the file that the server sends begins.
fn range_start(response: &Response<Body>) -> Option<u64> {
    let range = response.headers().get("content-range")?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        io::{BufRead, BufReader},
        net::TcpListener,
        sync::mpsc,
        thread,
    };

    use md5::{Digest, Md5};

    use super::*;
    use crate::read::hex;

    /// How the test server treats one request.
    #[derive(Clone, Copy)]
    pub enum Serve {
        Whole,
        /// Announces the whole and closes the connection after this many bytes.
        BreakAfter(usize),
        /// Answers with the range asked for.
        Range,
        Status(u16),
    }

    /// A client that no proxy of the environment gets between.
    pub fn direct_agent() -> Agent {
        agent_with(None)
    }

    /// Serves `content` on the loopback interface, one behaviour for each request in turn. Returns the address and the
    /// `Range` headers as they come in.
    pub fn serve(content: Vec<u8>, plan: Vec<Serve>) -> (String, mpsc::Receiver<Option<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (sender, ranges) = mpsc::channel();
        thread::spawn(move || {
            for serve in plan {
                let (stream, _) = listener.accept().unwrap();
                let lines: Vec<String> = BufReader::new(&stream)
                    .lines()
                    .map_while(Result::ok)
                    .take_while(|line| !line.is_empty())
                    .collect();
                let range = lines
                    .iter()
                    .find_map(|line| line.to_lowercase().strip_prefix("range: ").map(str::to_owned));
                let _ = (&stream).write_all(&reply(&content, serve, range.as_deref()));
                let _ = sender.send(range);
            }
        });
        (base, ranges)
    }

    fn reply(content: &[u8], serve: Serve, range: Option<&str>) -> Vec<u8> {
        let start = range
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
            .unwrap_or(0);
        let (status, start, end) = match serve {
            Serve::Whole => (200, 0, content.len()),
            Serve::BreakAfter(count) => (200, 0, count),
            Serve::Range if range.is_some() && start >= content.len() => (416, 0, 0),
            Serve::Range if range.is_some() => (206, start, content.len()),
            Serve::Range => (200, 0, content.len()),
            Serve::Status(status) => (status, 0, 0),
        };
        let announced = if status < 300 { content.len() - start } else { 0 };
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Length: {announced}\r\nContent-Range: bytes {start}-{}/{}\r\n\
             Connection: close\r\n\r\n",
            content.len().max(1) - 1,
            content.len()
        );
        [head.as_bytes(), &content[start..end]].concat()
    }

    fn content() -> Vec<u8> {
        (0..200_000).map(|i| (i * 7 % 253) as u8).collect()
    }

    fn md5_of(bytes: &[u8]) -> String {
        hex(&Md5::digest(bytes))
    }

    fn fetch(base: &str, target: &Path, md5: &str) -> Result<()> {
        fetch_file(&direct_agent(), &format!("{base}/file"), target, md5, &mut |_| ())
    }

    #[test]
    fn a_broken_download_continues_where_it_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let (target, part) = (folder.path().join("file"), folder.path().join("file.part"));
        let (base, ranges) = serve(content(), vec![Serve::BreakAfter(50_000), Serve::Range]);
        let error = fetch(&base, &target, &md5_of(&content())).unwrap_err().to_string();
        assert!(error.contains("the next try continues"), "{error}");
        assert_eq!(fs::read(&part).unwrap(), content()[..50_000]);
        assert!(!target.exists());
        let mut seen = Vec::new();
        fetch_file(&direct_agent(), &format!("{base}/file"), &target, &md5_of(&content()), &mut |progress| {
            if let Progress::Downloading { done, total, .. } = progress {
                seen.push((done, total));
            }
        })
        .unwrap();
        assert_eq!((seen[0], seen[seen.len() - 1]), ((50_000, Some(200_000)), (200_000, Some(200_000))));
        assert_eq!(fs::read(&target).unwrap(), content());
        assert!(!part.exists());
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [None, Some("bytes=50000-".into())]);
    }

    #[test]
    fn a_server_without_ranges_starts_over() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("file");
        fs::write(folder.path().join("file.part"), "stale").unwrap();
        let (base, _ranges) = serve(content(), vec![Serve::Whole]);
        fetch(&base, &target, &md5_of(&content())).unwrap();
        assert_eq!(fs::read(&target).unwrap(), content());
    }

    #[test]
    fn a_stale_part_costs_one_more_try() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("file");
        for (stale, requests) in [(vec![1; 10], 2), (vec![1; 300_000], 2)] {
            fs::write(folder.path().join("file.part"), stale).unwrap();
            let (base, ranges) = serve(content(), vec![Serve::Range; requests]);
            fetch(&base, &target, &md5_of(&content())).unwrap();
            assert_eq!(fs::read(&target).unwrap(), content());
            assert_eq!(ranges.iter().count(), requests);
        }
    }

    #[test]
    fn a_complete_part_needs_no_request() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("file");
        fs::write(folder.path().join("file.part"), content()).unwrap();
        fetch("http://127.0.0.1:1", &target, &md5_of(&content())).unwrap();
        assert_eq!(fs::read(&target).unwrap(), content());
    }

    #[test]
    fn a_wrong_checksum_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("file");
        let (base, _ranges) = serve(content(), vec![Serve::Whole]);
        let error = fetch(&base, &target, &md5_of(b"other")).unwrap_err();
        assert!(matches!(error, DataError::Checksum { .. }), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn refusals_name_the_address() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("file");
        let (base, _ranges) = serve(content(), vec![Serve::Status(404)]);
        let error = fetch(&base, &target, &md5_of(&content())).unwrap_err().to_string();
        assert!(error.contains(&base) && error.contains("status 404"), "{error}");
        let error = fetch("http://127.0.0.1:1", &target, &md5_of(&content())).unwrap_err().to_string();
        assert!(error.contains("127.0.0.1:1"), "{error}");
    }
}
