//! Lines for a spreadsheet or a script: one for each run, experiment and contender.

use super::runs::{Runs, contenders};
use crate::{Cell, Line, Summary};

/// The columns. Percentages and passes are numbers without units; what was not measured is empty.
const COLUMNS: [&str; 25] = [
    "run",
    "protocol",
    "data",
    "seed",
    "samples",
    "experiment",
    "attack",
    "budget",
    "victim",
    "continued",
    "contender",
    "threat",
    "correct",
    "total",
    "accuracy_percent",
    "low_percent",
    "high_percent",
    "difference_points",
    "mcnemar_p",
    "psnr_db",
    "ssim",
    "median_distance",
    "forward_passes",
    "backward_passes",
    "seconds",
];

/// The whole file, with the line ends that RFC 4180 asks for.
pub(super) fn text(runs: &Runs<'_>) -> String {
    let mut text = record(COLUMNS.map(String::from));
    for (index, summary) in runs.all().iter().enumerate() {
        for line in &summary.lines {
            for (contender, cell) in contenders(summary).zip(&line.cells) {
                text += &record(fields(&Runs::name(index), summary, line, (contender, cell)));
            }
        }
    }
    text
}

fn fields(run: &str, summary: &Summary, line: &Line, (contender, cell): (&str, &Cell)) -> [String; 25] {
    let config = &summary.header.config;
    let (low, high) = cell.accuracy.interval();
    let percent = |share: f64| figure(Some(100.0 * share));
    [
        run.into(),
        config.protocol.clone(),
        config.data.clone(),
        config.seed.to_string(),
        config.samples.to_string(),
        line.key.clone(),
        line.attack.clone(),
        line.budget.clone(),
        line.victim.clone(),
        line.continued.to_string(),
        contender.into(),
        cell.threat.to_string(),
        cell.accuracy.count.to_string(),
        cell.accuracy.total.to_string(),
        percent(cell.accuracy.share()),
        percent(low),
        percent(high),
        figure(cell.difference),
        figure(cell.mcnemar),
        figure(cell.psnr),
        figure(cell.ssim),
        figure(cell.median_distance),
        figure(Some(line.forward)),
        figure(Some(line.backward)),
        figure(Some(line.seconds)),
    ]
}

/// A number with all its digits; empty if there is none.
fn figure(value: Option<f64>) -> String {
    value.filter(|value| value.is_finite()).map_or_else(String::new, |value| value.to_string())
}

fn record<const N: usize>(fields: [String; N]) -> String {
    fields.map(|field| quoted(&field)).join(",") + "\r\n"
}

/// A field in quotes where it needs them; quotes inside are doubled.
fn quoted(field: &str) -> String {
    if field.contains(['"', ',', '\r', '\n']) || field.trim() != field {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.into()
    }
}
