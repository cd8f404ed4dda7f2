/*!
talion defends image classifiers against adversarial examples, and tells the truth about how well.

This is the facade: one name for everything a program needs.

- [`core`]: budgets, objectives, the [`core::Classifier`] trait, random streams that belong to samples;
- [`data`]: data sets, how to fetch and augment them;
- [`models`]: classifiers, their training and checkpoints;
- [`attacks`]: attacks, and the driver that runs them;
- [`defenses`]: gradient maps, the Two-stream Restoration Network, the defended classifier;
- [`eval`]: evaluation and its statistics;
- [`onnx`]: ONNX files as differentiable graphs, and graphs as ONNX files.
*/

pub use talion_attacks as attacks;
pub use talion_core as core;
pub use talion_data as data;
pub use talion_defenses as defenses;
pub use talion_eval as eval;
pub use talion_models as models;
pub use talion_onnx as onnx;
