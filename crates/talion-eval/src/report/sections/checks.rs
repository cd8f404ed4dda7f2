//! What was checked of the evaluation itself, and signs that its figures flatter.

use super::mark;
use crate::{
    Finding, Verdict,
    report::{
        html::Html,
        runs::{Runs, first},
        words,
    },
};

pub(in crate::report) fn checks(html: &mut Html, runs: &Runs<'_>) {
    html.section("checks", "Checklist", |html| {
        let mut rows = runs.verdicts();
        if rows.is_empty() {
            html.paragraph("Nothing was checked.");
            return;
        }
        html.paragraph("Checks of the evaluation, not of the defence. Those that failed come first.");
        for (run, summary) in runs.named() {
            let count = |finding: Finding| {
                summary.verdicts.iter().filter(|verdict| verdict.finding == finding).count()
            };
            let prefix = run.map_or_else(String::new, |run| format!("{run}: "));
            html.leaf(
                "p",
                &[("class", "tally")],
                format_args!(
                    "{prefix}{} pass, {} fail, {} not run.",
                    count(Finding::Pass),
                    count(Finding::Fail),
                    count(Finding::NotRun)
                ),
            );
        }
        rows.sort_by_key(|row| urgency(row));
        html.element("ol", &[("class", "checks")], |html| {
            rows.iter().for_each(|row| check(html, runs, row));
        });
    });
}

/// The worst that any run found: failures, then what nobody knows, then what holds.
fn urgency(row: &[Option<&Verdict>]) -> u8 {
    let rank = |finding: Finding| match finding {
        Finding::Fail => 0,
        Finding::NotRun => 1,
        Finding::Pass => 2,
    };
    row.iter().flatten().map(|verdict| rank(verdict.finding)).min().unwrap_or(1)
}

fn check(html: &mut Html, runs: &Runs<'_>, row: &[Option<&Verdict>]) {
    let Some(question) = first(row) else { return };
    html.element("li", &[], |html| {
        html.leaf("h3", &[], &question.question);
        for ((run, _), verdict) in runs.named().zip(row) {
            html.element("p", &[], |html| answer(html, run.as_deref(), *verdict));
        }
        html.element("p", &[("class", "note")], |html| {
            html.leaf("code", &[], &question.name);
            html.text(format_args!(" · {}", question.source));
        });
    });
}

fn answer(html: &mut Html, run: Option<&str>, verdict: Option<&Verdict>) {
    if let Some(run) = run {
        html.text(format_args!("{run}: "));
    }
    let finding = verdict.map_or(Finding::NotRun, |verdict| verdict.finding);
    let class = match finding {
        Finding::Pass => "pass",
        Finding::Fail => "fail",
        Finding::NotRun => "unknown",
    };
    mark(html, class, words::finding(finding));
    if let Some(verdict) = verdict {
        html.text(format_args!(" {}", verdict.evidence));
    }
}

pub(in crate::report) fn alarms(html: &mut Html, runs: &Runs<'_>) {
    html.section("alarms", "Alarms", |html| {
        for (run, summary) in runs.named() {
            if let Some(run) = run {
                html.leaf("h3", &[], run);
            }
            if summary.alarms.is_empty() {
                html.paragraph("None: nothing that was looked at says that these figures flatter.");
                continue;
            }
            html.paragraph("Signs that these figures flatter:");
            html.element("ul", &[("class", "alarms")], |html| {
                summary.alarms.iter().for_each(|alarm| html.leaf("li", &[], alarm));
            });
        }
    });
}
