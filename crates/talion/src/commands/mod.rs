//! The commands, one a file.

pub mod ablate;
pub mod attack;
pub mod calibrate;
pub mod data;
pub mod demo;
pub mod evaluate;
pub mod export;
pub mod maps;
pub mod model;
pub mod reproduce;
pub mod restore;
pub mod runs;
pub mod serve;
pub mod train;
mod train_adaptive;
mod train_restorer;
