/*!
Work without the interpreter's lock.

# How a job ends early
[`talion_core::Classifier::logits`] cannot fail, but a classifier that is Python code can: it raises an exception, or the
user presses Ctrl-C while it runs. Whatever were answered in place of logits would be taken for an answer, and an
evaluation would keep it. So the exception is remembered in the job's [`Trouble`] and the job's stack is unwound, up to
[`outside`], which raises the exception in Python as it was. Unwinding by [`std::panic::resume_unwind`] calls no panic
hook and prints nothing.
*/

use std::{
    any::Any,
    cell::{Cell, RefCell},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::{Duration, Instant},
};

use pyo3::prelude::*;
use talion_core::Result;

use crate::error::{of_class, raise};

/// How often a job looks whether a signal has come. It needs the lock for that, which others may hold.
const INTERVAL: Duration = Duration::from_millis(50);

/// How often progress is told while nothing is finished.
const NEWS: Duration = Duration::from_millis(100);

/// What a job's stack is unwound with.
struct Stopped;

/// What ended a job early.
pub(crate) struct Trouble {
    exception: RefCell<Option<PyErr>>,
    looked: Cell<Instant>,
}

impl Trouble {
    fn new() -> Self {
        Self { exception: RefCell::new(None), looked: Cell::new(Instant::now()) }
    }

    /// Runs Python code. If that raises an exception, the job ends here.
    pub(crate) fn python<T>(&self, code: impl for<'py> FnOnce(Python<'py>) -> PyResult<T>) -> T {
        match Python::with_gil(code) {
            Ok(value) => value,
            Err(exception) => {
                *self.exception.borrow_mut() = Some(exception);
                resume_unwind(Box::new(Stopped))
            }
        }
    }

    /// The value. If there is an error in its place, the job ends here.
    pub(crate) fn sure<T>(&self, value: Result<T>) -> T {
        match value {
            Ok(value) => value,
            Err(error) => self.python(|py| Err(raise(py, &error))),
        }
    }

    /// Looks, if it has not done so for a while, whether a signal has come, Ctrl-C above all; its handler runs here.
    pub(crate) fn look(&self) {
        if self.looked.get().elapsed() >= INTERVAL {
            self.python(|py| py.check_signals());
            self.looked.set(Instant::now());
        }
    }
}

/// Tells Python how far a job has come.
pub(crate) struct Teller<'a> {
    report: Option<PyObject>,
    trouble: &'a Trouble,
    /// When something was told, and what was done then.
    last: Option<(Instant, usize)>,
}

impl<'a> Teller<'a> {
    /// `report` is called with what is done, how much there is, and what is being done in words.
    pub(crate) fn new(report: Option<PyObject>, trouble: &'a Trouble) -> Self {
        Self { report, trouble, last: None }
    }

    /// Says so, unless the same was said a moment ago; also looks for signals.
    pub(crate) fn tell(&mut self, done: usize, total: usize, what: &str) {
        self.trouble.look();
        let Some(report) = &self.report else { return };
        let due = match self.last {
            None => true,
            Some((when, before)) => before != done || when.elapsed() >= NEWS,
        };
        if due {
            self.trouble.python(|py| report.call1(py, (done, total, what)).map(drop));
            self.last = Some((Instant::now(), done));
        }
    }
}

/// Runs a job without the interpreter's lock, and turns what comes of it into a value or an exception.
///
/// libtorch's grad mode belongs to the thread, so a job begins without gradients and gives the caller's mode back however
/// it ends; work that is to be differentiated asks for gradients itself.
pub(crate) fn outside<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&Trouble) -> Result<T> + Send,
) -> PyResult<T> {
    let (result, exception) = py.allow_threads(move || {
        let _mode = tch::no_grad_guard();
        let trouble = Trouble::new();
        let result = catch_unwind(AssertUnwindSafe(|| work(&trouble)));
        (result, trouble.exception.into_inner())
    });
    // autograd leaves the exception of a backward pass written in Python as the thread's current one
    if let Some(exception) = exception.or(PyErr::take(py)) {
        return Err(exception);
    }
    match result {
        Ok(done) => done.map_err(|error| raise(py, &error)),
        Err(panic) => Err(of_class(py, "TorchError", &spoken(panic.as_ref()))),
    }
}

/// Runs `work` with gradients if that is wanted.
pub(crate) fn graph<T>(wanted: bool, work: impl FnOnce() -> T) -> T {
    if wanted { tch::with_grad(work) } else { work() }
}

/// What a panic says. Functions of tch panic with what libtorch said, and a trace of C++ calls behind it.
fn spoken(panic: &(dyn Any + Send)) -> String {
    const PREFIX: &str = "called `Result::unwrap()` on an `Err` value: Torch(\"";
    let words: &str = match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(words), _) => words.as_str(),
        (None, Some(words)) => *words,
        (None, None) => "the work was given up without a reason",
    };
    match words.strip_prefix(PREFIX) {
        // the text is quoted, so its lines end in a backslash and an n
        Some(quoted) => quoted.split("\\n").next().unwrap_or(quoted).to_owned(),
        None => words.to_owned(),
    }
}
