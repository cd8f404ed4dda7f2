//! How failures reach the user: a sentence on standard error, and an exit code.

use std::{error::Error, process::ExitCode};

/// What commands return.
pub type CommandResult<T = ()> = Result<T, Box<dyn Error>>;

/// Prints the error with its causes and chooses the exit code.
pub fn report(error: &(dyn Error + 'static)) -> ExitCode {
    eprintln!("talion: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        // transparent errors repeat their source's words
        eprintln!("  because: {error}");
        cause = error.source();
    }
    match error.downcast_ref::<talion_core::Error>() {
        Some(talion_core::Error::Interrupted) => ExitCode::from(130),
        _ => ExitCode::FAILURE,
    }
}
