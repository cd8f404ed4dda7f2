//! The tables as diesel sees them, and their rows. Nothing here belongs to one database system.

use std::path::Path;

use diesel::prelude::*;
use talion_attacks::Passes;
use talion_core::{Error, Result};

use super::{Kept, fault, header::Cast};
use crate::{Chunk, Outcome};

diesel::table! {
    run (number) {
        number -> BigInt,
        format -> BigInt,
        header -> Text,
        sha256 -> Text,
    }
}

diesel::table! {
    experiments (number) {
        number -> BigInt,
        name -> Text,
    }
}

diesel::table! {
    contenders (number) {
        number -> BigInt,
        name -> Text,
    }
}

diesel::table! {
    chunks (experiment, first) {
        experiment -> BigInt,
        first -> BigInt,
        samples -> BigInt,
        file -> Text,
        file_sha256 -> Text,
        forward -> BigInt,
        backward -> BigInt,
        seconds -> Double,
        adjustments -> Text,
        outcomes_sha256 -> Text,
        sha256 -> Text,
    }
}

diesel::table! {
    outcomes (experiment, contender, sample) {
        experiment -> BigInt,
        contender -> BigInt,
        sample -> BigInt,
        chunk -> BigInt,
        id -> BigInt,
        label -> BigInt,
        predicted -> BigInt,
        confidence -> Double,
        margin -> Double,
        distance -> Double,
        attacked -> Bool,
        psnr -> Nullable<Double>,
        ssim -> Nullable<Double>,
    }
}

diesel::table! {
    alarms (number) {
        number -> BigInt,
        words -> Text,
    }
}

/// A row of `chunks`.
#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = chunks)]
pub(super) struct ChunkRow {
    pub(super) experiment: i64,
    pub(super) first: i64,
    pub(super) samples: i64,
    pub(super) file: String,
    pub(super) file_sha256: String,
    pub(super) forward: i64,
    pub(super) backward: i64,
    pub(super) seconds: f64,
    /// A JSON list of texts.
    pub(super) adjustments: String,
    pub(super) outcomes_sha256: String,
    pub(super) sha256: String,
}

impl ChunkRow {
    /// The row of a chunk of the experiment of this number.
    pub(super) fn of(experiment: usize, kept: &Kept) -> Result<Self> {
        let chunk = &kept.chunk;
        Ok(Self {
            experiment: long("an experiment's number", experiment)?,
            first: long("a chunk's first sample", chunk.first)?,
            samples: long("a chunk's samples", chunk.rows)?,
            file: chunk.file.clone(),
            file_sha256: chunk.sha256.clone(),
            forward: long("forward passes", chunk.passes.forward)?,
            backward: long("backward passes", chunk.passes.backward)?,
            seconds: chunk.seconds,
            adjustments: serde_json::to_string(&chunk.adjustments).map_err(Error::other)?,
            outcomes_sha256: kept.outcomes_sha256.clone(),
            sha256: kept.sha256.clone(),
        })
    }

    /// The chunk of a row read from the database at `path`.
    pub(super) fn kept(self, path: &Path, cast: &Cast) -> Result<Kept> {
        let damaged = || fault::damaged(path, "a chunk's record has a value that was never written");
        let size = |value: i64| usize::try_from(value).map_err(|_| damaged());
        let count = |value: i64| u64::try_from(value).map_err(|_| damaged());
        let (experiment, _) = cast.experiments.get(size(self.experiment)?).ok_or_else(damaged)?;
        let chunk = Chunk {
            experiment: experiment.clone(),
            first: size(self.first)?,
            rows: size(self.samples)?,
            file: self.file,
            sha256: self.file_sha256,
            passes: Passes { forward: count(self.forward)?, backward: count(self.backward)? },
            seconds: self.seconds,
            adjustments: serde_json::from_str(&self.adjustments).map_err(|_| damaged())?,
        };
        Ok(Kept { chunk, outcomes_sha256: self.outcomes_sha256, sha256: self.sha256 })
    }
}

/// A row of `outcomes`.
#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = outcomes)]
#[diesel(treat_none_as_default_value = false)]
pub(super) struct OutcomeRow {
    pub(super) experiment: i64,
    pub(super) contender: i64,
    pub(super) sample: i64,
    /// The first sample of its chunk.
    pub(super) chunk: i64,
    /// The bits of an unsigned number.
    pub(super) id: i64,
    pub(super) label: i64,
    pub(super) predicted: i64,
    pub(super) confidence: f64,
    pub(super) margin: f64,
    pub(super) distance: f64,
    pub(super) attacked: bool,
    pub(super) psnr: Option<f64>,
    pub(super) ssim: Option<f64>,
}

impl OutcomeRow {
    /// The row of an outcome that belongs to `chunk`.
    pub(super) fn of(chunk: &ChunkRow, outcome: &Outcome, cast: &Cast) -> Result<Self> {
        Ok(Self {
            experiment: chunk.experiment,
            contender: long("a contender's number", cast.contender(&outcome.contender)?)?,
            sample: long("a sample's place", outcome.row)?,
            chunk: chunk.first,
            id: outcome.id.cast_signed(),
            label: outcome.label,
            predicted: outcome.predicted,
            confidence: outcome.confidence,
            margin: outcome.margin,
            distance: outcome.distance,
            attacked: outcome.attacked,
            psnr: outcome.psnr,
            ssim: outcome.ssim,
        })
    }

    /// The outcome of a row read from the database at `path`.
    pub(super) fn outcome(self, path: &Path, cast: &Cast) -> Result<Outcome> {
        let damaged = || fault::damaged(path, "an outcome has a value that was never written");
        let size = |value: i64| usize::try_from(value).map_err(|_| damaged());
        let contender = cast.contenders.get(size(self.contender)?).ok_or_else(damaged)?;
        Ok(Outcome {
            contender: contender.clone(),
            row: size(self.sample)?,
            id: self.id.cast_unsigned(),
            label: self.label,
            predicted: self.predicted,
            confidence: self.confidence,
            margin: self.margin,
            distance: self.distance,
            attacked: self.attacked,
            psnr: self.psnr,
            ssim: self.ssim,
        })
    }
}

/// A number as databases keep it.
pub(super) fn long<T: TryInto<i64> + ToString + Copy>(what: &str, value: T) -> Result<i64> {
    value.try_into().map_err(|_| Error::range(what, "at most 2^63 - 1", value))
}
