/*!
The compiled part of the Python package `talion`: jobs that run without the interpreter's lock, on tensors that are
PyTorch's own.

- `job`: how a job is run, how it asks Python, and how it ends when Python raises;
- `source`: classifiers, those that live in Python and those from files, as the library wants them;
- `network`, `restorer`: the classes that Python holds; `attack`, `evaluate`: the functions it calls.

What users see is written in Python, in `python/talion`; this module is private to it.
*/

mod attack;
mod blind;
mod bundled;
mod chunked;
mod error;
mod evaluate;
mod job;
mod network;
mod restorer;
mod source;
mod values;

use pyo3::prelude::*;

#[pymodule]
fn _talion(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<network::Network>()?;
    module.add_class::<restorer::PyTrn>()?;
    module.add_class::<evaluate::Results>()?;
    module.add_function(wrap_pyfunction!(attack::attack, module)?)?;
    module.add_function(wrap_pyfunction!(attack::attack_name, module)?)?;
    module.add_function(wrap_pyfunction!(attack::catalogue, module)?)?;
    module.add_function(wrap_pyfunction!(evaluate::evaluate, module)?)?;
    module.add_function(wrap_pyfunction!(evaluate::read_run, module)?)?;
    module.add_function(wrap_pyfunction!(values::check_images, module)?)?;
    module.add_function(wrap_pyfunction!(values::fraction, module)?)?;
    module.add_function(wrap_pyfunction!(bundled::sample, module)?)?;
    Ok(())
}
