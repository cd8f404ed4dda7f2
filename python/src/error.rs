//! The library's errors as Python exceptions.

use pyo3::{exceptions::PyKeyboardInterrupt, prelude::*, types::PyTuple};
use talion_core::Error;

/// The exception for an error. The classes are in `talion.errors`, where each also has the built-in class that Python
/// programs expect.
pub(crate) fn raise(py: Python<'_>, error: &Error) -> PyErr {
    let words = error.to_string();
    let class = match error {
        Error::Shape { .. } => "ShapeError",
        Error::Range { .. } => "RangeError",
        Error::Unknown { .. } => "UnknownNameError",
        Error::Refused(_) => "RefusedError",
        Error::Torch(_) => "TorchError",
        Error::File { .. } => "FileError",
        Error::Io { path, source } => {
            return match source.raw_os_error() {
                // as the system's own errors, with `errno` and `filename`
                Some(number) => made(
                    py,
                    "FileError",
                    (number, reason(source), path.display().to_string()).into_pyobject(py),
                ),
                None => of_class(py, "FileError", &words),
            };
        }
        Error::Interrupted => return PyKeyboardInterrupt::new_err(words),
        _ => "TalionError",
    };
    of_class(py, class, &words)
}

/// An exception of a class of `talion.errors`.
pub(crate) fn of_class(py: Python<'_>, class: &str, words: &str) -> PyErr {
    made(py, class, (words,).into_pyobject(py))
}

fn made<'py>(py: Python<'py>, class: &str, arguments: PyResult<Bound<'py, PyTuple>>) -> PyErr {
    let exception =
        arguments.and_then(|arguments| py.import("talion.errors")?.getattr(class)?.call1(&arguments));
    match exception {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

/// The system's words without the number that Rust adds to them.
fn reason(source: &std::io::Error) -> String {
    let words = source.to_string();
    match words.rsplit_once(" (os error ") {
        Some((words, _)) => words.to_owned(),
        None => words,
    }
}
