//! Training a restoration network: what it is shown, what it is punished for, and the loop.

mod config;
mod mixture;
mod pool;
mod trainer;

pub use config::{LossWeights, TrnTraining};
pub use mixture::{Ingredient, Mixture};
pub use trainer::{TrnSources, train_trn};
