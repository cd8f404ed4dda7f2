/*!
Classifiers that were trained elsewhere: which kind of file one is, its weights, and what is known of it.

Weight files (safetensors, PyTorch state dicts) hold no network, so their tensors are mapped to one of the built-in
[architectures](crate::Architecture) by their names ([`map`]). ONNX and TorchScript files carry the network with them.
What no file says (names of the classes, the order of the channels, the standardisation) stands in a [`Sidecar`] beside
the model. All of it is optional, but for the size of the images where the file does not say it: TorchScript never does,
and of ONNX files those that leave it open do not.

All files are taken to be hostile, with one exception: TorchScript is a program, and libtorch runs it.
*/

mod archive;
mod format;
mod keys;
mod open;
mod pickle;
mod script;
mod sidecar;
mod state_dict;
#[cfg(test)]
mod testing;

pub use format::{Format, detect};
pub use keys::{KeyReport, Mapped, map};
pub(crate) use open::open;
pub use open::{Origin, STATED_ACCURACY, UNKNOWN_DATA, open_with};
pub(crate) use script::Script;
pub use sidecar::{ChannelOrder, InputFacts, Sidecar};
pub use state_dict::StateDict;
