//! One writer at a time: a lock that the system releases when its holder ends, however it ends.

use std::{
    fs::{File, TryLockError},
    ops::ControlFlow,
    path::Path,
    time::Duration,
};

use talion_core::{Error, Result};

use super::fault;

/// The lock's file inside the run's folder. It is never removed: whoever waits for it would wait for a file that is
/// gone.
const NAME: &str = "lock";

/// How long to sleep between two looks at a lock that is held.
const PAUSE: Duration = Duration::from_millis(50);

/// What to do while another process writes to a run.
pub enum Wait<'a> {
    /// Do not wait: an error that names the run.
    No,
    /// Wait. The function is called before each look at the lock but the first, several times a second, so that a
    /// program can say what it waits for; `Break` gives up with [`Error::Interrupted`].
    For(&'a mut dyn FnMut() -> ControlFlow<()>),
}

/// Held while a run is written to.
pub(super) struct Lock {
    /// Closing it releases the lock.
    _file: File,
}

impl Lock {
    /// Locks the run in the folder `run`.
    pub(super) fn acquire(run: &Path, mut wait: Wait<'_>) -> Result<Self> {
        let path = run.join(NAME);
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(fault::io(&path))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::Error(source)) => return Err(fault::io(&path)(source)),
                Err(TryLockError::WouldBlock) => pause(run, &mut wait)?,
            }
        }
    }
}

fn pause(run: &Path, wait: &mut Wait<'_>) -> Result<()> {
    match wait {
        Wait::No => Err(Error::Refused(format!(
            "another process is writing to the run {}; wait until it is finished, or end it",
            run.display()
        ))),
        Wait::For(ask) => {
            if ask().is_break() {
                return Err(Error::Interrupted);
            }
            std::thread::sleep(PAUSE);
            Ok(())
        }
    }
}
