//! Samples to look at.

use super::mark;
use crate::{
    Exhibit, Tile,
    report::{html::Html, runs::Runs, words},
};

pub(in crate::report) fn gallery(html: &mut Html, runs: &Runs<'_>) {
    html.section("gallery", "Gallery", |html| {
        if runs.all().iter().all(|summary| summary.gallery.is_empty()) {
            html.paragraph("No samples were kept to look at.");
            return;
        }
        html.paragraph(
            "Failures first. Under each picture: what the bare classifier takes it for, and how surely. In gradient maps \
             and differences mid-grey is zero.",
        );
        for (run, summary) in runs.named() {
            if let Some(run) = run {
                html.leaf("h3", &[], run);
            }
            let mut exhibits: Vec<&Exhibit> = summary.gallery.iter().collect();
            exhibits.sort_by_key(|exhibit| exhibit.right);
            html.element("div", &[("class", "gallery")], |html| {
                exhibits.into_iter().for_each(|exhibit| show(html, exhibit));
            });
        }
    });
}

fn show(html: &mut Html, exhibit: &Exhibit) {
    html.element("figure", &[("class", "exhibit")], |html| {
        html.element("figcaption", &[], |html| {
            html.element("strong", &[], |html| {
                html.text(format_args!("{} (sample {})", exhibit.label, exhibit.id));
            });
            html.text(format_args!(", {} in the end: ", exhibit.contender));
            mark(html, if exhibit.right { "pass" } else { "fail" }, words::rightness(exhibit.right));
            html.leaf("span", &[("class", "note")], &exhibit.experiment);
        });
        html.element("div", &[("class", "tiles")], |html| {
            exhibit.tiles.iter().for_each(|tile| picture(html, exhibit, tile));
        });
    });
}

fn picture(html: &mut Html, exhibit: &Exhibit, tile: &Tile) {
    html.element("div", &[("class", "tile")], |html| {
        if tile.png.is_empty() {
            html.leaf("p", &[("class", "note")], "not kept");
        } else {
            html.png(&tile.png, &format!("Sample {}, {}: {}", exhibit.id, exhibit.label, tile.title));
        }
        html.leaf("span", &[("class", "title")], &tile.title);
        if let Some((label, confidence)) = &tile.verdict {
            html.leaf("span", &[], label);
            html.leaf("span", &[], format_args!("{:.1} %", 100.0 * confidence));
        }
        if let Some(right) = tile.right {
            mark(html, if right { "pass" } else { "fail" }, words::rightness(right));
        }
    });
}
