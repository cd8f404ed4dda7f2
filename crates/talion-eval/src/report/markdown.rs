//! The tables of the page as Markdown, for a README.

use super::{
    page,
    runs::{Runs, contenders, first, under},
    words::{self, number},
};
use crate::{Cell, Finding, Line, Proportion, Summary, Threat};

/// What writes a section.
type Section = fn(&Runs<'_>) -> String;

/// The whole report.
pub(super) fn text(runs: &Runs<'_>) -> String {
    let mut text = format!("# {}\n", plain(&page::title(runs)));
    for (run, summary) in runs.named() {
        text += &format!("\n{}{}\n", prefix(run.as_deref()), plain(&page::byline(summary)));
        for (warning, meaning) in page::warnings(summary) {
            text += &format!("\n> **{}{warning}** {}\n", prefix(run.as_deref()), plain(&meaning));
        }
    }
    let sections: [(&str, Section); 8] = [
        ("Headline", headline),
        ("Attacks", attacks),
        ("Curves", curves),
        ("Classes", classes),
        ("Checklist", checks),
        ("Alarms", alarms),
        ("Cost", cost),
        ("Origin", origin),
    ];
    for (title, section) in sections {
        text += &format!("\n## {title}\n\n{}", section(runs));
    }
    text
}

fn headline(runs: &Runs<'_>) -> String {
    let threats = runs.threats();
    let mut table = Table::headed(["contender"]);
    table.head.extend(runs.several().then(|| "run".to_owned()));
    table.head.push(Threat::Clean.to_string());
    table.head.extend(threats.iter().map(Threat::to_string));
    table.head.extend(["adaptive", "worst"].map(String::from));
    for (run, line, summary) in runs.headlines() {
        let mut cells: Vec<String> = std::iter::once(line.contender.clone()).chain(run).collect();
        cells.push(accuracy(Some(line.clean), summary));
        cells.extend(threats.iter().map(|threat| accuracy(under(line, *threat), summary)));
        cells.extend([line.adaptive, Some(line.worst)].map(|value| accuracy(value, summary)));
        table.rows.push(cells);
    }
    let mut text = String::from(
        "Accuracy in percent with 95 % Wilson intervals. Under several attacks a sample counts only where it survives \
         every one of them.\n\n",
    );
    text += &table.text(usize::from(runs.several()) + 1);
    text.push('\n');
    for threat in threats {
        text += &format!("- {threat}: {}\n", threat.description());
    }
    text + &format!("- adaptive: {}\n- worst: {}\n", words::ADAPTIVE, words::worst(runs.adaptive()))
}

/// An accuracy, and of how many where that is not what the run says.
fn accuracy(value: Option<Proportion>, summary: &Summary) -> String {
    match value {
        None => words::NOTHING.into(),
        Some(value) if [0, summary.header.config.samples as u64].contains(&value.total) => {
            words::proportion(value)
        }
        Some(value) => format!("{} of {}", words::proportion(value), value.total),
    }
}

/// A table a run: side by side they would be too wide for a README.
fn attacks(runs: &Runs<'_>) -> String {
    each(runs, |summary| {
        let mut table = Table::headed(["attack", "budget", "on"]);
        table.head.extend(contenders(summary).map(String::from));
        table.head.extend(["passes", "time"].map(String::from));
        for line in &summary.lines {
            let mut cells = vec![name(line), line.budget.clone(), line.victim.clone()];
            cells.extend(line.cells.iter().map(|measured| cell(measured, summary)));
            cells.resize(table.head.len() - 2, words::NOTHING.into());
            cells.extend([words::passes(line.forward, line.backward), words::duration(line.seconds)]);
            table.rows.push(cells);
        }
        let mut text = table.text(3);
        for line in summary.lines.iter().filter(|line| !line.adjustments.is_empty()) {
            let what = format!("{} on {}: {}", line.attack, line.victim, line.adjustments.join("; "));
            text += &format!("\nDiffers from its definition: {}\n", plain(&what));
        }
        text
    })
}

fn name(line: &Line) -> String {
    if line.continued { format!("{} (after those above)", line.attack) } else { line.attack.clone() }
}

fn cell(cell: &Cell, summary: &Summary) -> String {
    let mut parts = vec![accuracy(Some(cell.accuracy), summary), cell.threat.to_string()];
    parts.extend(words::versus(cell.difference, cell.mcnemar));
    parts.extend(cell.psnr.map(|psnr| format!("PSNR {psnr:.1} dB")));
    parts.extend(cell.ssim.map(|ssim| format!("SSIM {ssim:.3}")));
    parts.extend(cell.median_distance.map(|distance| format!("median distance {}", number(distance))));
    parts.join("; ")
}

fn curves(runs: &Runs<'_>) -> String {
    each(runs, |summary| {
        let tables = summary.curves.iter().map(|curve| {
            let mut table = Table::headed([curve.axis.as_str()]);
            table.head.extend(curve.series.iter().map(|series| series.contender.clone()));
            let points = curve.series.iter().flat_map(|series| &series.points);
            let mut places: Vec<f64> = points.map(|(x, _)| *x).collect();
            places.sort_by(f64::total_cmp);
            places.dedup();
            for place in places {
                let at = |points: &[(f64, Proportion)]| {
                    points.iter().find(|(x, _)| *x == place).map(|(_, value)| *value)
                };
                let mut cells = vec![number(place)];
                cells.extend(curve.series.iter().map(|series| accuracy(at(&series.points), summary)));
                table.rows.push(cells);
            }
            format!("{}:\n\n{}", plain(&curve.title), table.text(0))
        });
        let tables: Vec<String> = tables.collect();
        if tables.is_empty() { "No curves were measured.\n".into() } else { tables.join("\n") }
    })
}

fn classes(runs: &Runs<'_>) -> String {
    let rows = runs.classes();
    if rows.is_empty() {
        return "Accuracy by class was not computed.\n".into();
    }
    let mut table = Table::headed(["class"]);
    for (run, summary) in runs.named() {
        let name = |contender: &str| format!("{}{contender}", prefix(run.as_deref()));
        table.head.extend(contenders(summary).flat_map(|contender| {
            [format!("{}, clean", name(contender)), format!("{}, worst", name(contender))]
        }));
    }
    for row in &rows {
        let mut cells = vec![first(row).map_or_else(String::new, |line| line.class.clone())];
        for (summary, line) in runs.all().iter().zip(row) {
            for place in 0..contenders(summary).count() {
                let pair = line.and_then(|line| line.contenders.get(place));
                let both = [pair.map(|pair| pair.0), pair.map(|pair| pair.1)];
                cells.extend(
                    both.map(|value| value.map_or_else(|| words::NOTHING.to_owned(), words::proportion)),
                );
            }
        }
        table.rows.push(cells);
    }
    table.text(1)
}

fn checks(runs: &Runs<'_>) -> String {
    let mut table = Table::new(runs, "check");
    table.head.extend(["verdict", "question", "evidence", "source"].map(String::from));
    for row in runs.verdicts() {
        for ((run, _), verdict) in runs.named().zip(row) {
            let Some(verdict) = verdict else { continue };
            let finding = match verdict.finding {
                Finding::Fail => "FAIL",
                finding => words::finding(finding).1,
            };
            let cells =
                [finding, verdict.question.as_str(), verdict.evidence.as_str(), verdict.source.as_str()];
            table.row(run, &verdict.name, cells.map(String::from));
        }
    }
    if table.rows.is_empty() { "Nothing was checked.\n".into() } else { table.text(table.head.len()) }
}

fn alarms(runs: &Runs<'_>) -> String {
    each(runs, |summary| match summary.alarms.as_slice() {
        [] => "None: nothing that was looked at says that these figures flatter.\n".into(),
        alarms => alarms.iter().map(|alarm| format!("- {}\n", plain(alarm))).collect(),
    })
}

fn cost(runs: &Runs<'_>) -> String {
    let mut table = Table::new(runs, "contender");
    table.head.extend(["batch", "median, ms", "slowest, ms"].map(String::from));
    for (run, summary) in runs.named() {
        for line in &summary.latencies {
            let cells = [line.batch.to_string(), number(1000.0 * line.median), number(1000.0 * line.slowest)];
            table.row(run.clone(), &line.contender, cells);
        }
    }
    if table.rows.is_empty() {
        return "The time that contenders take to answer was not measured.\n".into();
    }
    table.text(usize::from(runs.several()) + 1)
}

fn origin(runs: &Runs<'_>) -> String {
    each(runs, |summary| {
        let (config, place) = (&summary.header.config, &summary.header.environment);
        let machine = format!(
            "talion {}, libtorch {}, {}, {} ({} usable, {} threads), {}; data {} with SHA-256 {}",
            place.talion,
            place.libtorch,
            place.device,
            place.processor,
            place.processors,
            place.threads,
            place.system,
            config.data,
            config.data_sha256
        );
        let mut table = Table::headed(["name", "what it is", "SHA-256 of the weights"]);
        for player in config.contenders.iter().chain(&config.surrogates) {
            table.rows.push(vec![player.name.clone(), player.description.clone(), player.sha256.clone()]);
        }
        format!("{}\n{}\n\n{}", fenced(&words::command(&place.command)), plain(&machine), table.text(3))
    })
}

/// What `part` says of each run, under the run's name where there are several.
fn each(runs: &Runs<'_>, part: impl Fn(&Summary) -> String) -> String {
    let parts = runs.named().map(|(run, summary)| {
        let heading = run.map_or_else(String::new, |run| format!("### {run}\n\n"));
        format!("{heading}{}", part(summary))
    });
    parts.collect::<Vec<_>>().join("\n")
}

fn prefix(run: Option<&str>) -> String {
    run.map_or_else(String::new, |run| format!("{run}: "))
}

/// Text that Markdown takes for nothing else, in a line and in a cell of a table.
fn plain(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => result.push_str("&amp;"),
            '<' => result.push_str("&lt;"),
            '>' => result.push_str("&gt;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' | '!' => result.extend(['\\', c]),
            c if c.is_control() => result.push(' '),
            c => result.push(c),
        }
    }
    result
}

/// Text as it is, in a fence that it cannot leave.
fn fenced(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}sh\n{text}\n{fence}\n")
}

/// A table whose source reads as a table too. Cells are plain text until they are written.
struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table whose first column is the run, where there are several, and the next has `name`.
    fn new(runs: &Runs<'_>, name: &str) -> Self {
        Self::headed(runs.several().then_some("run").into_iter().chain([name]))
    }

    fn headed<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self { head: names.into_iter().map(String::from).collect(), rows: Vec::new() }
    }

    fn row(&mut self, run: Option<String>, name: &str, cells: impl IntoIterator<Item = String>) {
        self.rows.push(run.into_iter().chain([name.to_owned()]).chain(cells).collect());
    }

    /// The Markdown. The first `words` columns stand at the left, figures at the right.
    fn text(&self, words: usize) -> String {
        let written = |cells: &Vec<String>| -> Vec<String> { cells.iter().map(|cell| plain(cell)).collect() };
        let lines: Vec<Vec<String>> = std::iter::once(&self.head).chain(&self.rows).map(written).collect();
        let width = |column: usize| {
            lines
                .iter()
                .filter_map(|line| line.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(|column| width(column).max(2)).collect();
        let mut text = String::new();
        for (index, line) in lines.iter().enumerate() {
            for (column, width) in widths.iter().copied().enumerate() {
                let cell = line.get(column).map_or("", String::as_str);
                text +=
                    &if column < words { format!("| {cell:<width$} ") } else { format!("| {cell:>width$} ") };
            }
            text += "|\n";
            if index == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let dashes = "-".repeat(width + 1);
                    text += &if column < words { format!("|{dashes}-") } else { format!("|{dashes}:") };
                }
                text += "|\n";
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_cannot_leave_their_table() {
        let head = vec!["a".to_owned(), "b".to_owned()];
        let table = Table { head, rows: vec![vec!["x|y\nz".into(), "<b>".into()]] };
        let text = table.text(1);
        assert_eq!(text.lines().count(), 3);
        assert_eq!(text.lines().last(), Some("| x\\|y z | &lt;b&gt; |"));
        assert_eq!(text.lines().nth(1), Some("|--------|----------:|"));
    }

    #[test]
    fn commands_cannot_leave_their_fence() {
        assert_eq!(fenced("echo ```` x"), "`````sh\necho ```` x\n`````\n");
        assert_eq!(fenced("echo"), "```sh\necho\n```\n");
    }
}
