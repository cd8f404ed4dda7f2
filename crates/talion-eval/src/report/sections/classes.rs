//! Accuracy class by class: a mean can hide a class that is lost.

use super::accuracy_cell;
use crate::report::{
    html::Html,
    runs::{Runs, contenders, first},
};

pub(in crate::report) fn classes(html: &mut Html, runs: &Runs<'_>) {
    html.section("classes", "Classes", |html| {
        let rows = runs.classes();
        if rows.is_empty() {
            html.paragraph("Accuracy by class was not computed.");
            return;
        }
        let caption =
            "Accuracy by true class, in percent: on clean images, and under everything that was run.";
        html.table(if runs.several() { "numbers summary wide" } else { "numbers" }, caption, |html| {
            html.head(|html| head(html, runs));
            html.body(|html| {
                for row in &rows {
                    html.row(|html| {
                        html.row_name(first(row).map_or("", |line| line.class.as_str()));
                        for (summary, line) in runs.all().iter().zip(row) {
                            for place in 0..contenders(summary).count() {
                                let pair = line.and_then(|line| line.contenders.get(place));
                                // every class has its own number of samples: the table is not the place to repeat it
                                for value in [pair.map(|pair| pair.0), pair.map(|pair| pair.1)] {
                                    accuracy_cell(html, value, value.map_or(0, |value| value.total as usize));
                                }
                            }
                        }
                    });
                }
            });
        });
    });
}

fn head(html: &mut Html, runs: &Runs<'_>) {
    let names = runs.named().flat_map(|(run, summary)| {
        let prefix = run.map_or_else(String::new, |run| format!("{run}: "));
        contenders(summary).map(move |name| format!("{prefix}{name}"))
    });
    let names: Vec<String> = names.collect();
    html.row(|html| {
        html.words("");
        names.iter().for_each(|name| html.columns(2, name));
    });
    html.row(|html| {
        html.column_of_words("Class");
        for _ in &names {
            html.column("clean");
            html.column("worst");
        }
    });
}
