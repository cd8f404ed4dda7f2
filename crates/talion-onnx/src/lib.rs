/*!
ONNX files as graphs of libtorch operations, so that autograd gives gradients of any order; and the way back: graphs
written as ONNX files, with the derivatives they contain spelt out as ordinary operators.

- [`read`] makes a [`Graph`] of a file that may come from anywhere: sizes are checked before anything is allocated, and
  external data never leaves the model's folder.
- [`Program`] runs a graph. What it cannot run is named, with node and operator set, before anything runs
  ([`unsupported`]).
- [`Builder`] writes graphs, [`differentiate`] appends a network together with its vector-Jacobian product, [`write()`]
  makes a file that ONNX Runtime and others run without autograd.
*/

mod attributes;
mod build;
mod convert;
mod derive;
mod file;
mod fold;
mod functions;
mod graph;
mod ops;
mod program;
mod proto;
mod tensor;

pub use attributes::{Attribute, Attributes};
pub use build::{Builder, Var};
pub use derive::{Derived, Shapes, differentiable, differentiate};
pub use file::{from_bytes, read, write};
pub use fold::fold;
pub use graph::{Graph, Node, Port, Side};
pub use ops::supported;
pub use program::{Program, Unsupported, unsupported};
pub use tensor::tensor_from_bytes;
