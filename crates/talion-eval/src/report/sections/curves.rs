//! Accuracy as one thing changes.

use talion_core::Result;

use super::accuracy_cell;
use crate::{
    Curve, Proportion, Summary,
    report::{
        chart::{self, Svg},
        html::Html,
        runs::Runs,
        words::number,
    },
};

/// A curve and its picture.
pub(in crate::report) struct Drawing<'a> {
    caption: String,
    /// Drawings of the same row are the same curve of several runs.
    row: usize,
    curve: &'a Curve,
    summary: &'a Summary,
    picture: Option<Svg>,
}

/// Draws all curves; those with the same title stand side by side, a run each.
///
/// # Errors
/// If plotters cannot draw one.
pub(in crate::report) fn drawings<'a>(runs: &Runs<'a>) -> Result<Vec<Drawing<'a>>> {
    let contenders = runs.contenders();
    let mut drawings = Vec::new();
    for (row, joined) in runs.curves().into_iter().enumerate() {
        let row = if runs.several() { row } else { 0 };
        for ((run, summary), curve) in runs.named().zip(joined) {
            let Some(curve) = curve else { continue };
            let prefix = run.map_or_else(String::new, |run| format!("{run}: "));
            let id = format!("curve-{}", drawings.len() + 1);
            let picture = chart::drawn(curve, &contenders, &id)?;
            let caption = format!("{prefix}{}.", curve.title);
            drawings.push(Drawing { caption, row, curve, summary, picture });
        }
    }
    Ok(drawings)
}

pub(in crate::report) fn curves(html: &mut Html, drawings: &[Drawing<'_>]) {
    html.section("curves", "Curves", |html| {
        if drawings.is_empty() {
            html.paragraph("No curves were measured.");
            return;
        }
        html.paragraph(
            "Whiskers are 95\u{a0}% Wilson intervals. Contenders stand slightly apart sideways, so that whiskers do not hide \
             each other.",
        );
        for row in drawings.chunk_by(|one, next| one.row == next.row) {
            html.element("div", &[("class", "charts")], |html| {
                row.iter().for_each(|drawing| figure(html, drawing));
            });
        }
    });
}

fn figure(html: &mut Html, drawing: &Drawing<'_>) {
    html.figure(&drawing.caption, |html| {
        match &drawing.picture {
            Some(picture) => html.svg(picture),
            None => html.paragraph("It has no points."),
        }
        let region = [
            ("class", "scroll"),
            ("role", "region"),
            ("aria-label", "The same figures as a table"),
            ("tabindex", "0"),
        ];
        html.element("details", &[], |html| {
            html.leaf("summary", &[], "As a table");
            html.element("div", &region, |html| {
                html.element("table", &[("class", "numbers")], |html| points(html, drawing));
            });
        });
    });
}

/// The same points as a table.
fn points(html: &mut Html, drawing: &Drawing<'_>) {
    let series = &drawing.curve.series;
    html.head(|html| {
        html.row(|html| {
            html.column(&drawing.curve.axis);
            series.iter().for_each(|series| html.column(&series.contender));
        });
    });
    let mut places: Vec<f64> =
        series.iter().flat_map(|series| series.points.iter().map(|(x, _)| *x)).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    html.body(|html| {
        for place in places {
            html.row(|html| {
                html.row_name(number(place));
                for series in series {
                    accuracy_cell(html, at(&series.points, place), drawing.summary.header.config.samples);
                }
            });
        }
    });
}

fn at(points: &[(f64, Proportion)], place: f64) -> Option<Proportion> {
    points.iter().find(|(x, _)| *x == place).map(|(_, value)| *value)
}
