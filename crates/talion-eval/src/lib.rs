/*!
Measuring classifiers and defences: who attacks what, how many survive, and how sure that figure is.

Every figure is a count of samples with a 95 % interval. Attacks that do not see the defence (`oblivious`, the setting
of the TRN paper) and attacks that do are never mixed: a row says which it is.

[`Calibration`] tells which images are suspicious, and [`measure_detection`] what of attacks that finds.
*/

mod alignment;
mod checklist;
mod entrant;
mod exhibits;
mod experiment;
mod facts;
mod interval;
mod latency;
mod measure;
mod picture;
mod plan;
mod protocol;
mod quality;
mod record;
mod report;
mod runner;
mod statistics;
mod store;
mod summarise;
mod summary;
mod suspicion;
mod table;
mod threat;

pub use alignment::{Aligned, Direction, alignments, markdown as alignment_markdown};
pub use entrant::{Answer, Entrant, fingerprint};
pub use exhibits::{exhibits, keep_exhibits, kept_exhibits};
pub use experiment::{Experiment, Part};
pub use interval::{Mean, half_width, mean};
pub use latency::{keep_latencies, kept_latencies, latencies};
pub use measure::{Contender, Front, Measured, Row, evaluate};
pub use picture::{Scene, gallery};
pub use plan::{Plan, Setting};
pub use protocol::{Protocol, Scope};
pub use quality::{psnr, ssim};
pub use record::{CLEAN, Chunk, Environment, Outcome, Player, RunConfig, RunHeader};
pub use report::{csv, html, markdown as report_markdown, write_report};
pub use runner::{Advance, Follow, Subjects, carry_out, verify};
pub use statistics::{Proportion, mcnemar};
pub use store::{
    ChangedField, Compared, Difference, NewChunk, Progress, RunEntry, RunFolder, RunState, Wait, diff,
    list_runs,
};
pub use summarise::summarise;
pub use summary::{
    Cell, ClassLine, Curve, Exhibit, Finding, Headline, Latency, Line, Series, Summary, Tile, Verdict,
};
pub use suspicion::{
    Adaptive, Calibration, DetectionCurve, Examined, MeasuredDetection, Pair, Roc, Suspicion, conformal_rank,
    measure_detection, roc, suspicion,
};
pub use table::markdown;
pub use threat::Threat;
