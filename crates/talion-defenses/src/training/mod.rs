//! Training a restoration network: what it is shown, what it is punished for, and the loops: against attackers who do not
//! see it ([`train_trn`]), and against attackers who do ([`train_adaptive`]).

mod adaptive;
mod config;
mod course;
mod mixture;
mod panel;
mod patterns;
mod pool;
mod sources;
mod trainer;

pub use adaptive::{AdaptiveLosses, AdaptiveTraining, train_adaptive};
pub use config::{LossWeights, TrnTraining};
pub use mixture::{Ingredient, Mixture};
pub use sources::TrnSources;
pub use trainer::train_trn;
