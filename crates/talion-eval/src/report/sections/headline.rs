//! The figures that matter.

use super::{accuracy, accuracy_cell};
use crate::{
    Headline, Proportion, Summary, Threat,
    report::{
        html::Html,
        runs::{Runs, under},
        words,
    },
};

pub(in crate::report) fn headline(html: &mut Html, runs: &Runs<'_>) {
    html.section("headline", "Headline", |html| {
        html.paragraph(
            "Percent of samples that are classified correctly, with 95\u{a0}% Wilson intervals. Under several attacks a \
             sample counts only where it survives every one of them.",
        );
        if runs.several() {
            html.paragraph(format_args!("The large figures are those of {}.", Runs::name(0)));
        }
        if let Some(main) = runs.all().first() {
            for line in &main.headlines {
                figures(html, line, main);
            }
        }
        table(html, runs);
        threat_models(html, runs);
    });
}

/// The large figures of one contender of the main run.
fn figures(html: &mut Html, line: &Headline, run: &Summary) {
    let figures = [
        ("clean", "nobody attacks", Some(line.clean)),
        ("oblivious", "attackers do not know the defence", under(line, Threat::Oblivious)),
        ("adaptive", "attackers know all of it", line.adaptive),
        ("worst", "of everything that was run", Some(line.worst)),
    ];
    html.element("div", &[("class", "figures")], |html| {
        html.leaf("h3", &[], &line.contender);
        html.element("dl", &[], |html| {
            for (name, meaning, value) in figures {
                // a bare classifier has no defence that an attacker could be unaware of
                let missing = if line.defended { "not run" } else { words::NOTHING };
                figure(html, (name, meaning), value.ok_or(missing), run);
            }
        });
    });
}

fn figure(html: &mut Html, (name, meaning): (&str, &str), value: Result<Proportion, &str>, run: &Summary) {
    html.element("div", &[], |html| {
        html.element("dt", &[], |html| {
            html.text(name);
            html.leaf("span", &[], meaning);
        });
        html.element("dd", &[], |html| match value {
            Ok(value) => accuracy(html, value, run.header.config.samples),
            Err(missing) => html.leaf("em", &[], missing),
        });
    });
}

fn table(html: &mut Html, runs: &Runs<'_>) {
    let threats = runs.threats();
    let caption = "Accuracy by threat model, in percent. A dash: not run, or there is no such attacker.";
    html.table("numbers summary", caption, |html| {
        html.head(|html| {
            html.row(|html| {
                html.column_of_words("Contender");
                if runs.several() {
                    html.column_of_words("Run");
                }
                html.column(Threat::Clean);
                threats.iter().for_each(|threat| html.column(threat));
                html.column("adaptive");
                html.column("worst");
            });
        });
        html.body(|html| {
            for (run, line, summary) in runs.headlines() {
                row(html, run.as_deref(), line, summary, &threats);
            }
        });
    });
}

fn row(html: &mut Html, run: Option<&str>, line: &Headline, summary: &Summary, threats: &[Threat]) {
    let samples = summary.header.config.samples;
    html.row(|html| {
        html.row_name(&line.contender);
        if let Some(run) = run {
            html.words(run);
        }
        accuracy_cell(html, Some(line.clean), samples);
        threats.iter().for_each(|threat| accuracy_cell(html, under(line, *threat), samples));
        accuracy_cell(html, line.adaptive, samples);
        accuracy_cell(html, Some(line.worst), samples);
    });
}

/// What the columns mean.
fn threat_models(html: &mut Html, runs: &Runs<'_>) {
    html.leaf("h3", &[], "Who attacks");
    html.element("dl", &[("class", "terms")], |html| {
        let mut term = |name: String, meaning: &str| {
            html.element("div", &[], |html| {
                html.leaf("dt", &[], name);
                html.leaf("dd", &[], meaning);
            });
        };
        term(Threat::Clean.to_string(), Threat::Clean.description());
        for threat in runs.threats() {
            term(threat.to_string(), threat.description());
        }
        term("adaptive".into(), words::ADAPTIVE);
        term("worst".into(), words::worst(runs.adaptive()));
    });
}
