//! Tables for people.

use talion_defenses::GradientMode;

use crate::Row;

/// A Markdown table of `rows`: accuracy in percent with its 95 % interval.
pub fn markdown(rows: &[Row]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let mut cells = vec![vec!["attack".to_owned(), "budget".to_owned(), "attacker".to_owned()]];
    cells[0].extend(first.measured.iter().map(|measured| measured.name.clone()));
    for row in rows {
        let mut line = match &row.setting {
            None => vec!["none (clean)".to_owned(), "-".to_owned(), "-".to_owned()],
            Some(setting) => {
                vec![
                    setting.attack.to_string(),
                    setting.budget.to_string(),
                    attacker(setting.threat).to_owned(),
                ]
            }
        };
        line.extend(row.measured.iter().map(|measured| measured.accuracy.to_string()));
        // contenders that nobody attacked in this row come last
        line.resize(cells[0].len().max(line.len()), "-".to_owned());
        cells.push(line);
    }
    aligned(&cells)
}

fn attacker(threat: GradientMode) -> &'static str {
    match threat {
        GradientMode::Oblivious => "oblivious",
        GradientMode::Bpda => "KNOWS (bpda)",
        GradientMode::Detached => "KNOWS (detached)",
        GradientMode::Exact => "KNOWS (exact)",
    }
}

/// Pads the columns, so that the Markdown source reads as a table too.
pub(crate) fn aligned(cells: &[Vec<String>]) -> String {
    let columns = cells.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| cells.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for (index, line) in cells.iter().enumerate() {
        for (cell, width) in line.iter().zip(&widths) {
            text.push_str(&format!("| {cell:<width$} "));
        }
        text.push_str("|\n");
        if index == 0 {
            widths.iter().for_each(|width| text.push_str(&format!("|{}", "-".repeat(width + 2))));
            text.push_str("|\n");
        }
    }
    text
}
