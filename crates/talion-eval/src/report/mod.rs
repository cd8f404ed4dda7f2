/*!
The report: what one run says, or what several say side by side.

[`write_report`] makes four files with the same figures: a page for people (HTML, complete in itself), tables for a README
(Markdown), lines for a spreadsheet (CSV), and everything (JSON). All are made from [`Summary`]; nothing is computed here
that the summary does not say.

Names of files, classes and contenders, and command lines, come from outside. All text goes to the page through one
builder that escapes it (`html.rs`); Markdown and CSV each have a helper of the same kind.

A report of a run whose defences nobody attacked who knows them says so at its top, and no text of it calls a defence by
the word that such an attack alone could earn: see `withheld.rs`.
*/

mod chart;
mod csv;
mod html;
mod markdown;
mod page;
mod runs;
mod sections;
mod withheld;
mod words;

use std::path::{Path, PathBuf};

use talion_core::{Error, Result, write_atomically};

use crate::Summary;
use runs::Runs;

/// Writes the report to `html`, and beside it, under the same name, `.md`, `.csv` and `.json`. Returns what was written.
///
/// # Errors
/// If there is no summary, if `html` ends like one of the other files, or if a file cannot be written; each file is
/// whole or as it was.
pub fn write_report(summaries: &[Summary], html: &Path) -> Result<Vec<PathBuf>> {
    let others = ["md", "csv", "json"].map(|ending| html.with_extension(ending));
    if html.file_name().is_none() || others.iter().any(|other| other == html) {
        return Err(Error::file(html, "a report's page needs a name of its own, such as report.html"));
    }
    let page = self::html(summaries)?;
    // a list even of one, so that whoever reads it finds the same thing every time
    let json = serde_json::to_string_pretty(summaries).map_err(Error::other)?;
    let texts = [markdown(summaries), csv(summaries), json];
    write_atomically(html, page.as_bytes())?;
    let mut written = vec![html.to_path_buf()];
    for (path, text) in others.into_iter().zip(texts) {
        write_atomically(&path, text.as_bytes())?;
        written.push(path);
    }
    Ok(written)
}

/// The page: one HTML file that needs no other and no network. The first summary is the main one.
///
/// # Errors
/// If there is no summary, or if a picture cannot be drawn.
pub fn html(summaries: &[Summary]) -> Result<String> {
    if summaries.is_empty() {
        return Err(Error::Refused("a report needs at least one run".into()));
    }
    let runs = Runs::new(summaries);
    let page = page::page(&runs)?;
    Ok(if runs.adaptive() { page } else { withheld::from_page(&page) })
}

/// The tables of the page as Markdown.
pub fn markdown(summaries: &[Summary]) -> String {
    let runs = Runs::new(summaries);
    let text = markdown::text(&runs);
    if runs.adaptive() { text } else { withheld::from_text(&text) }
}

/// One line for each run, experiment and contender, quoted as RFC 4180 says. The first line names the columns.
pub fn csv(summaries: &[Summary]) -> String {
    let runs = Runs::new(summaries);
    let text = csv::text(&runs);
    if runs.adaptive() { text } else { withheld::from_text(&text) }
}
