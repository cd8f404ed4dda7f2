//! What defences cost.

use crate::{
    Latency,
    report::{
        html::Html,
        runs::Runs,
        words::{self, number},
    },
};

pub(in crate::report) fn cost(html: &mut Html, runs: &Runs<'_>) {
    html.section("cost", "Cost", |html| {
        if runs.all().iter().all(|summary| summary.latencies.is_empty()) {
            html.paragraph("The time that contenders take to answer was not measured.");
            return;
        }
        let caption = "Time to answer a batch, in milliseconds. Times: how many times the first contender's median for \
                       batches of the same size.";
        html.table("numbers", caption, |html| {
            html.head(|html| {
                html.row(|html| {
                    if runs.several() {
                        html.column_of_words("Run");
                    }
                    html.column_of_words("Contender");
                    ["batch", "median", "slowest", "an image", "times"].iter().for_each(|name| html.column(name));
                });
            });
            html.body(|html| {
                for (run, summary) in runs.named() {
                    summary.latencies.iter().for_each(|line| row(html, run.as_deref(), line, &summary.latencies));
                }
            });
        });
    });
}

fn row(html: &mut Html, run: Option<&str>, line: &Latency, all: &[Latency]) {
    let first = all.iter().find(|other| other.batch == line.batch).filter(|first| first.median > 0.0);
    html.row(|html| {
        if let Some(run) = run {
            html.words(run);
        }
        html.row_name(&line.contender);
        html.cell(line.batch);
        html.cell(number(1000.0 * line.median));
        html.cell(number(1000.0 * line.slowest));
        html.cell(number(1000.0 * line.median / line.batch as f64));
        html.cell(
            first.map_or_else(|| words::NOTHING.to_owned(), |first| number(line.median / first.median)),
        );
    });
}
