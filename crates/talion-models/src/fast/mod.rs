//! The fast engine: a frozen network forwards and back to its images, without autograd.
//!
//! A network's graph is read once ([`Plan`]): batch norm is part of the convolutions by then, sums and ReLUs are done while a
//! convolution's result is written. [`Engine`] runs the plan on the kernels of `talion_kernels`. Of the way forwards it keeps one
//! bit for each activation and which value each pooling window chose, and its buffers stay allocated.
//!
//! A graph with anything in it that the plan does not know has no engine, and its gradients come from autograd.

mod engine;
mod plan;
mod read;
mod tensors;
#[cfg(test)]
mod tests;

pub(crate) use engine::Engine;
pub(crate) use read::plan;
pub(crate) use tensors::Engines;
