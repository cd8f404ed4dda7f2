/*!
The vocabulary of talion: what a classifier is, what an attacker may do to an image, what counts as adversarial, and
where randomness comes from. Every other crate speaks these words; this one knows none of the others.

Conventions, everywhere:

- images are NCHW, `f32`, in `[0, 1]`; a model standardises inside itself, so nobody can forget it;
- labels are `i64` class indices, one a row;
- a sample has an id (its index in the official split); every random draw is keyed by that id, never by its place in
  a batch.
*/

mod archive;
mod budget;
mod classifier;
mod elementwise;
mod error;
mod objective;
mod stream;

pub use archive::{Archive, Tensors, read_safetensors, write_atomically};
pub use budget::{Budget, Norm, parse_fraction};
pub use classifier::{
    Classifier, InputGradient, Reference, autograd_logit_gradients, autograd_loss_gradient, check_images,
    check_labels, gradients_taken, note_gradient,
};
pub use elementwise::elementwise;
pub use error::{Error, Result};
pub use objective::Objective;
pub use stream::{SampleStream, gaussian_noise, shuffled, uniform_noise};
