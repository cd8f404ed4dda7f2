//! Running the programs of package managers.

use std::{
    ffi::OsStr,
    io::ErrorKind,
    path::Path,
    process::{Command, Stdio},
};

use crate::error::{DataError, Result};

/// The last lines of a program's complaint are enough to tell what is wrong.
const MAX_COMPLAINT_LINES: usize = 5;

/// Runs a program in `folder` without input and without showing its output.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S], folder: &Path) -> Result<()> {
    let words = arguments.iter().map(|argument| argument.as_ref().to_string_lossy().into_owned());
    let command = std::iter::once(program.to_owned()).chain(words).collect::<Vec<_>>().join(" ");
    let fail = |cause: String| DataError::Command { command: command.clone(), cause };
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => fail(format!("`{program}` is not installed")),
            _ => fail(error.to_string()),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let complaint = lines[lines.len().saturating_sub(MAX_COMPLAINT_LINES)..].join("; ");
    Err(fail(format!("{}: {complaint}", output.status)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_carry_the_complaint() {
        let here = Path::new(".");
        assert!(run("true", &[] as &[&str], here).is_ok());
        let error = run("sh", &["-c", "echo no luck >&2; exit 3"], here).unwrap_err().to_string();
        assert!(error.contains("no luck") && error.contains('3'), "{error}");
        let error = run("no-such-program", &["x"], here).unwrap_err().to_string();
        assert!(error.contains("`no-such-program x` failed: `no-such-program` is not installed"), "{error}");
    }
}
