//! What each attack did to each contender, and what the defences made of its images.

use super::accuracy;
use crate::{
    Cell, Line, Summary,
    report::{
        html::Html,
        runs::{Joined, Runs, contenders, first},
        words::{self, number},
    },
};

pub(in crate::report) fn attacks(html: &mut Html, runs: &Runs<'_>) {
    html.section("attacks", "Attacks", |html| {
        html.paragraph(
            "Under each accuracy: the threat model under which the contender met these images; the difference from the \
             first contender on the same images, in points, and the p-value of McNemar's exact test of it.",
        );
        let lines = runs.lines();
        accuracies(html, runs, &lines);
        restorations(html, runs, &lines);
        adjustments(html, runs);
    });
}

/// Runs side by side need paper that is turned.
fn class(runs: &Runs<'_>) -> &'static str {
    if runs.several() { "numbers wide" } else { "numbers" }
}

fn accuracies(html: &mut Html, runs: &Runs<'_>, lines: &[Joined<'_, Line>]) {
    let caption = "Accuracy under each attack, in percent. Passes: forward + backward passes a sample.";
    html.table(class(runs), caption, |html| {
        html.head(|html| {
            if runs.several() {
                html.row(|html| {
                    html.words("");
                    for (index, summary) in runs.all().iter().enumerate() {
                        html.columns(contenders(summary).count() + 2, Runs::name(index));
                    }
                });
            }
            html.row(|html| {
                html.column_of_words("Attack");
                for summary in runs.all() {
                    contenders(summary).for_each(|name| html.column(name));
                    html.column("passes");
                    html.column("time");
                }
            });
        });
        html.body(|html| lines.iter().for_each(|line| row(html, runs, line)));
    });
}

fn row(html: &mut Html, runs: &Runs<'_>, line: &[Option<&Line>]) {
    html.row(|html| {
        html.element("th", &[("scope", "row")], |html| {
            if let Some(line) = first(line) {
                attack(html, line);
            }
        });
        for (summary, line) in runs.all().iter().zip(line.iter().copied()) {
            let cells = line.map(|line| line.cells.as_slice()).unwrap_or_default();
            for place in 0..contenders(summary).count() {
                html.element("td", &[], |html| match cells.get(place) {
                    Some(measured) => cell(html, measured, summary),
                    None => html.text(words::NOTHING),
                });
            }
            let dash = || words::NOTHING.to_owned();
            html.cell(line.map_or_else(dash, |line| words::passes(line.forward, line.backward)));
            html.cell(line.map_or_else(dash, |line| words::duration(line.seconds)));
        }
    });
}

/// The name of a row: which attack, how far, on whom.
fn attack(html: &mut Html, line: &Line) {
    html.text(&line.attack);
    let mut details = Vec::new();
    if !line.budget.is_empty() {
        details.push(line.budget.clone());
    }
    if !line.victim.is_empty() {
        details.push(format!("on {}", line.victim));
    }
    if line.continued {
        details.push("after the attacks above, whose successes count".into());
    }
    if line.budget.is_empty() && line.victim.is_empty() {
        details.push("clean images".into());
    }
    html.leaf("span", &[("class", "note")], details.join(", "));
}

fn cell(html: &mut Html, cell: &Cell, summary: &Summary) {
    accuracy(html, cell.accuracy, summary.header.config.samples);
    html.leaf("span", &[("class", "threat")], cell.threat);
    if let Some(versus) = words::versus(cell.difference, cell.mcnemar) {
        html.leaf("span", &[("class", "note")], versus);
    }
}

/// What a cell of the second table may hold.
#[derive(Clone, Copy, PartialEq)]
enum Quality {
    Psnr,
    Ssim,
    Distance,
}

impl Quality {
    const ALL: [Self; 3] = [Self::Psnr, Self::Ssim, Self::Distance];

    fn name(self) -> &'static str {
        match self {
            Self::Psnr => "PSNR, dB",
            Self::Ssim => "SSIM",
            Self::Distance => "distance",
        }
    }

    fn of(self, cell: &Cell) -> Option<f64> {
        match self {
            Self::Psnr => cell.psnr,
            Self::Ssim => cell.ssim,
            Self::Distance => cell.median_distance,
        }
    }
}

/// A column of the second table: which run, which contender, what.
struct Column<'a> {
    run: usize,
    contender: (usize, &'a str),
    quality: Quality,
}

impl Column<'_> {
    fn value(&self, line: &[Option<&Line>]) -> Option<f64> {
        let cell = line.get(self.run).copied().flatten()?.cells.get(self.contender.0)?;
        self.quality.of(cell)
    }
}

/// Columns that hold anything at all.
fn columns<'a>(runs: &Runs<'a>, lines: &[Joined<'_, Line>]) -> Vec<Column<'a>> {
    let mut columns = Vec::new();
    for (run, summary) in runs.all().iter().enumerate() {
        for contender in contenders(summary).enumerate() {
            for quality in Quality::ALL {
                let column = Column { run, contender, quality };
                if lines.iter().any(|line| column.value(line).is_some()) {
                    columns.push(column);
                }
            }
        }
    }
    columns
}

fn restorations(html: &mut Html, runs: &Runs<'_>, lines: &[Joined<'_, Line>]) {
    let columns = columns(runs, lines);
    if columns.is_empty() {
        return;
    }
    let caption = "What the defences made of the images. PSNR and SSIM: restored against clean image, means over samples. \
                   Distance: median distance from the clean image, in the budget's norm, of the attacked images that the \
                   contender got wrong.";
    html.table(class(runs), caption, |html| {
        html.head(|html| {
            html.row(|html| {
                html.words("");
                for group in columns.chunk_by(|a, b| (a.run, a.contender) == (b.run, b.contender)) {
                    html.columns(group.len(), owner(runs, &group[0]));
                }
            });
            html.row(|html| {
                html.column_of_words("Attack");
                columns.iter().for_each(|column| html.column(column.quality.name()));
            });
        });
        html.body(|html| {
            for line in lines {
                html.row(|html| {
                    html.element("th", &[("scope", "row")], |html| {
                        if let Some(line) = first(line) {
                            attack(html, line);
                        }
                    });
                    columns.iter().for_each(|column| html.cell(value(column, line)));
                });
            }
        });
    });
}

fn owner(runs: &Runs<'_>, column: &Column<'_>) -> String {
    let name = column.contender.1;
    if runs.several() { format!("{}: {name}", Runs::name(column.run)) } else { name.to_owned() }
}

fn value(column: &Column<'_>, line: &[Option<&Line>]) -> String {
    match (column.value(line), column.quality) {
        (None, _) => words::NOTHING.into(),
        (Some(value), Quality::Psnr) => format!("{value:.1}"),
        (Some(value), Quality::Ssim) => format!("{value:.3}"),
        (Some(value), Quality::Distance) => number(value),
    }
}

/// What had to be different from an attack's definition.
fn adjustments(html: &mut Html, runs: &Runs<'_>) {
    let adjusted: Vec<String> = runs
        .named()
        .flat_map(|(run, summary)| {
            let prefix = run.map_or_else(String::new, |run| format!("{run}, "));
            let lines = summary.lines.iter().filter(|line| !line.adjustments.is_empty());
            lines.map(move |line| {
                format!("{prefix}{} on {}: {}", line.attack, line.victim, line.adjustments.join("; "))
            })
        })
        .collect();
    if adjusted.is_empty() {
        return;
    }
    html.leaf("h3", &[], "What differs from the attacks' definitions");
    html.element("ul", &[], |html| adjusted.iter().for_each(|text| html.leaf("li", &[], text)));
}
