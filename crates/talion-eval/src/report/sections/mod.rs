//! The sections of the page, in the order in which they stand on it.

pub(super) mod attacks;
pub(super) mod checks;
pub(super) mod classes;
pub(super) mod cost;
pub(super) mod curves;
pub(super) mod gallery;
pub(super) mod headline;
pub(super) mod origin;

use super::{html::Html, words};
use crate::Proportion;

/// An accuracy with its interval, and of how many where that is not what the run says.
fn accuracy(html: &mut Html, value: Proportion, samples: usize) {
    let text = words::proportion(value);
    match text.split_once(" (") {
        Some((share, interval)) => {
            html.leaf("b", &[], share);
            html.text(" ");
            html.leaf("span", &[("class", "interval")], format_args!("({interval}"));
        }
        None => html.text(&text),
    }
    if value.total > 0 && value.total != samples as u64 {
        html.leaf("span", &[("class", "note")], format_args!("of {}", value.total));
    }
}

/// The same as a cell of a table; what was not measured has a dash.
fn accuracy_cell(html: &mut Html, value: Option<Proportion>, samples: usize) {
    html.element("td", &[], |html| match value {
        Some(value) => accuracy(html, value, samples),
        None => html.text(words::NOTHING),
    });
}

/// A sign for the eye and a word for everybody.
fn mark(html: &mut Html, class: &str, (sign, word): (&str, &str)) {
    html.element("span", &[("class", class)], |html| {
        html.leaf("span", &[("aria-hidden", "true")], sign);
        html.text(format_args!(" {word}"));
    });
}
