/*!
The defence: gradient maps, the Two-stream Restoration Network that reads them, its training, and the classifier that
the two make together, in use and as one plain ONNX graph ([`export`]).

The idea is that of Hong, Hong and Kong, "An Eye for an Eye: Defending against Gradient-based Attacks with Gradients"
(arXiv 2202.01117): restore an attacked image from the image *and* an estimate of the gradient that attacked it. Its
abstract fixes the parts; the layers, losses and estimators here are our own.
*/

pub mod baselines;
mod defence;
mod defended;
mod export;
pub mod gradient_map;
pub mod training;
pub mod trn;

pub use defence::{Defence, Draw, Pass};
pub use defended::{Defended, GradientMode};
pub use export::export;
pub use gradient_map::{EstimatorSpec, GradientMapEstimator, Normalization};
pub use trn::{Change, FusedScales, Fusion, Prepared, Trn, TrnCard, TrnSpec};
