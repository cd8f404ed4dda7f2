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
    let fail = |cause: String| DataError::Download { url: url.to_owned(), cause };
    let mut have = length(part);
    let mut response = request(agent, url, have)?;
    if have > 0 && response.status() == 416 {
        // Nothing of the file lies beyond what is there, yet its sum is wrong.
        have = 0;
        response = request(agent, url, have)?;
    }
    match response.status().as_u16() {
        200 => have = 0,
        206 if have > 0 && range_start(&response) == Some(have) => {}
        status => return Err(fail(format!("the server answered with status {status}"))),
    }
    let total = response.body().content_length().map(|rest| have.saturating_add(rest));
    if total.is_some_and(|total| total > MAX_BYTES) {
        return Err(fail(format!(
            "the server announces {} bytes, more than {MAX_BYTES}",
            total.unwrap_or(0)
        )));
    }
    let file = File::options().create(true).write(true).append(have > 0).truncate(have == 0).open(part);
    let mut file = file.map_err(DataError::io("write", part))?;
    let name = url.rsplit('/').next().unwrap_or(url);
    let mut body = response.into_body().into_with_config().limit(MAX_BYTES).reader();
    let mut buffer = vec![0; BUFFER_LEN];
    report(Progress::Downloading { file: name, done: have, total });
    loop {
        let count = body.read(&mut buffer).map_err(|error| {
            fail(format!("{error} after {have} bytes; they are kept, and the next try continues from there"))
        })?;
        if count == 0 {
            break;
        }
        file.write_all(&buffer[..count]).map_err(DataError::io("write", part))?;
        have += count as u64;
        report(Progress::Downloading { file: name, done: have, total });
    }
    file.sync_all().map_err(DataError::io("write", part))?;
    match total {
        Some(total) if total != have => {
            Err(fail(format!("the connection ended after {have} of {total} bytes")))
        }
        _ => Ok(()),
    }
}

fn request(agent: &Agent, url: &str, have: u64) -> Result<Response<Body>> {
    let request = agent.get(url);
    let request = if have > 0 { request.header("Range", format!("bytes={have}-")) } else { request };
    request.call().map_err(|error| DataError::Download { url: url.to_owned(), cause: error.to_string() })
}

/// Where the part of the file that the server sends begins.
fn range_start(response: &Response<Body>) -> Option<u64> {
    let range = response.headers().get("content-range")?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}
