//! The page: one HTML file without scripts, that loads nothing.

use talion_core::Result;

use super::{
    html::Html,
    runs::Runs,
    sections::{
        attacks::attacks,
        checks::{alarms, checks},
        classes::classes,
        cost::cost,
        curves::{Drawing, curves, drawings},
        gallery::gallery,
        headline::headline,
        origin::{configurations, origin},
    },
    withheld, words,
};
use crate::{Headline, Summary};

const STYLE: &str = include_str!("style.css");

/// What a browser may do for this page: show its own style and pictures. Should anything from outside ever get past the
/// escaping, it can neither run nor call home.
const POLICY: &str =
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// Sections that the page has, in order: where links go, and what they say.
const CONTENTS: [(&str, &str); 9] = [
    ("#headline", "Headline"),
    ("#attacks", "Attacks"),
    ("#curves", "Curves"),
    ("#classes", "Classes"),
    ("#gallery", "Gallery"),
    ("#checks", "Checklist"),
    ("#alarms", "Alarms"),
    ("#cost", "Cost"),
    ("#origin", "Origin"),
];

/// The whole page.
pub(super) fn page(runs: &Runs<'_>) -> Result<String> {
    let (drawings, configurations) = (drawings(runs)?, configurations(runs)?);
    let mut html = Html::default();
    html.trusted("<!DOCTYPE html>\n");
    html.element("html", &[("lang", "en")], |html| {
        html.element("head", &[], |html| head(html, runs));
        html.element("body", &[], |html| body(html, runs, &drawings, &configurations));
    });
    Ok(html.finished())
}

/// What the report is called: `Attacks on one-stream and TRN`.
pub(super) fn title(runs: &Runs<'_>) -> String {
    let headlines = || runs.all().iter().flat_map(|summary| &summary.headlines);
    let any_defended = headlines().any(|line| line.defended);
    let mut names: Vec<&str> = Vec::new();
    for line in headlines().filter(|line| line.defended == any_defended) {
        if !names.contains(&line.contender.as_str()) {
            names.push(&line.contender);
        }
    }
    match runs.all().len() {
        0 | 1 => format!("Attacks on {}", listed(&names)),
        count => format!("Attacks on {}: {count} runs compared", listed(&names)),
    }
}

/// What a run is, in a line.
pub(super) fn byline(summary: &Summary) -> String {
    let config = &summary.header.config;
    let (samples, seed, begun) =
        (config.samples, config.seed, words::moment(summary.header.environment.begun));
    format!(
        "{}, first {samples} test samples; protocol {}, seed {seed}; begun {begun}",
        config.data, config.protocol
    )
}

/// What has to be said before any figure of a run.
pub(super) fn warnings(summary: &Summary) -> Vec<(&'static str, String)> {
    let mut warnings = Vec::new();
    if !summary.adaptive() {
        let unmet = |line: &&Headline| line.defended && line.adaptive.is_none();
        let names: Vec<&str> =
            summary.headlines.iter().filter(unmet).map(|line| line.contender.as_str()).collect();
        warnings.push((
            "Nobody who knows the defence attacked it with exact gradients.",
            format!(
                "The figures below say nothing about an attacker who knows {} and differentiates through all of it. Such an \
                 attacker can be expected to do more harm than any that is listed here. {}",
                listed(&names),
                withheld::NOTE
            ),
        ));
    }
    if !summary.complete {
        warnings.push((
            "This run is not finished.",
            "The figures count what has been finished so far; the worst of them may still fall.".into(),
        ));
    }
    warnings
}

/// `a`, `a and b`, `a, b and c`.
fn listed(names: &[&str]) -> String {
    match names {
        [] => "nobody".into(),
        [one] => (*one).into(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

fn head(html: &mut Html, runs: &Runs<'_>) {
    html.void("meta", &[("charset", "utf-8")]);
    html.void("meta", &[("http-equiv", "Content-Security-Policy"), ("content", POLICY)]);
    html.void("meta", &[("name", "viewport"), ("content", "width=device-width, initial-scale=1")]);
    html.void("meta", &[("name", "color-scheme"), ("content", "light dark")]);
    html.leaf("title", &[], title(runs));
    html.element("style", &[], |html| html.trusted(STYLE));
}

fn body(html: &mut Html, runs: &Runs<'_>, drawings: &[Drawing<'_>], configurations: &[String]) {
    html.element("header", &[], |html| opening(html, runs));
    html.element("nav", &[("aria-label", "Contents")], |html| {
        html.element("ul", &[], |html| {
            for (target, name) in CONTENTS {
                html.element("li", &[], |html| html.leaf("a", &[("href", target)], name));
            }
        });
    });
    html.element("main", &[], |html| {
        headline(html, runs);
        attacks(html, runs);
        curves(html, drawings);
        classes(html, runs);
        gallery(html, runs);
        checks(html, runs);
        alarms(html, runs);
        cost(html, runs);
        origin(html, runs, configurations);
    });
    html.element("footer", &[], |html| {
        let version = runs.all().first().map_or("", |summary| summary.header.environment.talion.as_str());
        html.paragraph(format_args!(
            "Measured by talion {version}. The same figures lie beside this page as Markdown, CSV and JSON."
        ));
    });
}

/// Title, runs, and what has to be said before any figure.
fn opening(html: &mut Html, runs: &Runs<'_>) {
    html.leaf("p", &[("class", "kicker")], "talion evaluation report");
    html.leaf("h1", &[], title(runs));
    for (run, summary) in runs.named() {
        html.element("p", &[("class", "byline")], |html| {
            if let Some(run) = run {
                html.leaf("b", &[], format_args!("{run}: "));
            }
            html.text(byline(summary));
        });
    }
    for (run, summary) in runs.named() {
        for (warning, meaning) in warnings(summary) {
            html.element("div", &[("class", "banner"), ("role", "note")], |html| {
                html.element("p", &[], |html| {
                    html.leaf("span", &[("aria-hidden", "true")], "▲ ");
                    let prefix = run.as_ref().map_or_else(String::new, |run| format!("{run}: "));
                    html.leaf("strong", &[], format_args!("{prefix}{warning}"));
                });
                html.paragraph(meaning);
            });
        }
    }
}
