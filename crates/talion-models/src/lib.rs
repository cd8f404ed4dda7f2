/*!
Image classifiers: the architectures, how they are trained, stored and made fast for attacks.

A [`Model`] is a network with its weights and its [`ModelSpec`]; it implements [`talion_core::Classifier`], standardises
inside itself, and folds batch norm into the convolutions once its weights are final. [`Model::load`] also reads what
others wrote: ONNX, TorchScript, PyTorch weights ([`import`]).
*/

mod architecture;
mod design;
mod fast;
pub mod import;
mod layers;
mod model;
mod networks;
mod precision;
pub mod training;

pub use architecture::{Architecture, Family};
pub use design::Design;
pub use layers::{Mode, channels_last};
pub use model::{Model, ModelCard, ModelSpec};
pub use precision::{SearchPrecision, Searcher};
