//! The outcome of an ablation as tables: for people, and as JSON.

use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;
use serde_json::Value;
use talion_core::{Error, Result};
use talion_defenses::training::TrnTraining;
use talion_eval::{Proportion, half_width, mean};

use super::{
    Design, Factor, Results,
    cell::{Cell, Conditions},
    factors::{BASE, Level},
};

/// What a mean and its interval are, in words, for every table that shows them.
const FORMULA: &str = "mean of n seeds and 95 % interval mean +- t s / sqrt(n), with s the standard deviation over the \
     seeds (divisor n - 1) and t the 97.5 % quantile of Student's distribution with n - 1 degrees of freedom";

/// What has to be known of an ablation beside its figures.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    /// Machine and command line, without the time: the same command gives the same report.
    pub environment: Value,
    /// The classifier's architecture.
    pub classifier: String,
    /// The data set.
    pub data: String,
    /// On what was measured.
    pub conditions: Conditions,
}

/// A whole ablation.
#[derive(Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    about: About,
    /// What all networks are compared with.
    base: TrnTraining,
    seeds: Vec<u64>,
    /// What the intervals are.
    intervals: String,
    tables: Vec<Table>,
}

/// One factor.
#[derive(Debug, Serialize)]
struct Table {
    factor: Factor,
    levels: Vec<Line>,
}

/// One level of a factor.
#[derive(Debug, Serialize)]
struct Line {
    level: String,
    /// Whether this is the base.
    base: bool,
    /// The networks' names, in the order of the seeds.
    networks: Vec<String>,
    weights: usize,
    figures: Vec<Figure>,
}

/// One level under one attack. Shares lie in `[0, 1]`.
#[derive(Debug, Serialize)]
struct Figure {
    /// The column.
    attack: String,
    /// Accuracy with each seed.
    seeds: Vec<Proportion>,
    mean: f64,
    low: f64,
    high: f64,
    /// How it compares with the base; none for the base itself.
    difference: Option<Difference>,
}

/// The mean difference between networks of the same seed.
#[derive(Debug, Serialize)]
struct Difference {
    mean: f64,
    /// None with a single seed.
    interval: Option<(f64, f64)>,
    /// Whether the interval leaves 0 out.
    differs: bool,
}

impl Report {
    /// The report of a design, from the results of its networks by their stems.
    ///
    /// # Errors
    /// If a network of the design has no results.
    pub fn new(about: About, design: &Design, results: &BTreeMap<String, Results>) -> Result<Self> {
        let of = |training: &TrnTraining| -> Result<Vec<&Results>> {
            let cells = design.seeds.iter().map(|&seed| Cell::new(training, seed));
            cells.map(|cell| results.get(&cell.stem()).ok_or_else(|| missing(&cell.stem()))).collect()
        };
        let base = of(&design.base)?;
        let mut tables = Vec::new();
        for (factor, levels) in &design.factors {
            let mut lines = Vec::new();
            for level in levels {
                let compared = (level.training != design.base).then_some(&base[..]);
                lines.push(line(level, &design.seeds, &of(&level.training)?, compared, &about.conditions)?);
            }
            tables.push(Table { factor: *factor, levels: lines });
        }
        let (base, seeds) = (design.base.clone(), design.seeds.clone());
        Ok(Self { about, base, intervals: intervals(seeds.len()), seeds, tables })
    }

    /// The tables as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = self.head();
        for table in &self.tables {
            let base = table.levels.iter().find(|line| line.base);
            let base = base.map_or(BASE, |line| line.level.as_str());
            // writing into a string cannot fail
            let _ = write!(text, "\n## {}\n\n{}", table.factor, aligned(&accuracies(table)));
            let _ = write!(text, "\nDifference to `{base}`, in points:\n\n{}", aligned(&differences(table)));
        }
        text
    }

    fn head(&self) -> String {
        let About { environment, classifier, data, conditions } = &self.about;
        let seeds: Vec<String> = self.seeds.iter().map(ToString::to_string).collect();
        let base = &self.base;
        let adaptive = match conditions.adaptive_images {
            0 => "none is attacked through the defence".to_owned(),
            count => format!("the first {count} are attacked through the defence (exact)"),
        };
        format!(
            "# Ablation: restoration networks for {classifier} on {data}\n\n\
             - command: `{}`\n\
             - base: {}, {} channels, {} rounds of {} images shown {} times, pixel loss {}, mixture `{}`\n\
             - seeds: {}\n\
             - images: {} validation images, after the {} by which training chose its best round; {adaptive}\n\
             - classifier: SHA-256 of its weights {}; data: SHA-256 {}\n\
             - machine: {}\n\n\
             Accuracy in %. Intervals: {}. The exact attacker knows the defence; the others attack the bare classifier.\n",
            command(environment),
            base.spec.estimator,
            base.spec.width,
            base.rounds,
            base.pool,
            base.replays,
            base.losses.pixel,
            base.mixture,
            seeds.join(", "),
            conditions.images,
            conditions.skipped,
            conditions.classifier,
            conditions.data,
            machine(environment),
            self.intervals,
        )
    }
}

fn missing(stem: &str) -> Error {
    Error::Refused(format!("{stem} has not been measured"))
}

/// What the intervals of a table are, in words.
fn intervals(seeds: usize) -> String {
    if seeds < 2 {
        return "one seed only, so 95 % intervals are Wilson's of the images; differences have none, and nothing here says \
                how other seeds would do"
            .to_owned();
    }
    format!(
        "{FORMULA}; here n = {seeds}, and accuracies are cut at 0 and 100 %. A difference is taken between networks of the same \
         seed, its interval likewise; (*) marks those that leave 0 out. Seeds change weights, order and training images; the \
         measured images are the same, and what other images would give is not in the intervals"
    )
}

fn line(
    level: &Level,
    seeds: &[u64],
    found: &[&Results],
    base: Option<&[&Results]>,
    conditions: &Conditions,
) -> Result<Line> {
    let mut figures = Vec::new();
    for attack in &conditions.columns {
        let seeds = proportions(found, attack)?;
        let base = base.map(|base| proportions(base, attack)).transpose()?;
        figures.push(figure(attack, seeds, base.as_deref()));
    }
    Ok(Line {
        level: level.name.clone(),
        base: base.is_none(),
        networks: seeds.iter().map(|&seed| Cell::new(&level.training, seed).stem()).collect(),
        weights: found.first().map_or(0, |results| results.weights),
        figures,
    })
}

fn proportions(found: &[&Results], attack: &str) -> Result<Vec<Proportion>> {
    let of = |results: &&Results| results.accuracy.get(attack).copied().ok_or_else(|| missing(attack));
    found.iter().map(of).collect()
}

fn figure(attack: &str, seeds: Vec<Proportion>, base: Option<&[Proportion]>) -> Figure {
    let shares: Vec<f64> = seeds.iter().map(|proportion| proportion.share()).collect();
    let centre = mean(&shares);
    let (low, high) = match (half_width(&shares), seeds.first()) {
        (Some(half), _) => ((centre - half).max(0.0), (centre + half).min(1.0)),
        (None, Some(only)) => only.interval(),
        (None, None) => (0.0, 1.0),
    };
    let difference = base.map(|base| {
        let pairs = seeds.iter().zip(base);
        compared(&pairs.map(|(own, base)| own.share() - base.share()).collect::<Vec<_>>())
    });
    Figure { attack: attack.to_owned(), seeds, mean: centre, low, high, difference }
}

/// The mean of paired differences, and whether it is told from 0.
fn compared(differences: &[f64]) -> Difference {
    let centre = mean(differences);
    let half = half_width(differences);
    Difference {
        mean: centre,
        interval: half.map(|half| (centre - half, centre + half)),
        differs: half.is_some_and(|half| centre.abs() > half),
    }
}

fn accuracies(table: &Table) -> Vec<Vec<String>> {
    rows(
        table,
        "weights",
        |line| line.weights.to_string(),
        |figure| format!("{:.1} ({:.1}-{:.1})", 100.0 * figure.mean, 100.0 * figure.low, 100.0 * figure.high),
    )
}

fn differences(table: &Table) -> Vec<Vec<String>> {
    let weights = table.levels.iter().find(|line| line.base).map_or(0, |line| line.weights);
    let more = |line: &Line| format!("{:+}", line.weights as i64 - weights as i64);
    let mut rows = rows(table, "weights", more, |figure| {
        let Some(Difference { mean, interval, differs }) = &figure.difference else { return String::new() };
        let interval = interval.map(|(low, high)| format!(" ({:+.1} to {:+.1})", 100.0 * low, 100.0 * high));
        let mark = if *differs { " (*)" } else { "" };
        format!("{:+.1}{}{mark}", 100.0 * mean, interval.unwrap_or_default())
    });
    // the base differs from itself by nothing
    let mut bases = std::iter::once(false).chain(table.levels.iter().map(|line| line.base));
    rows.retain(|_| !bases.next().unwrap_or(false));
    rows
}

/// A table's head and its lines, a cell for each attack.
fn rows(
    table: &Table,
    second: &str,
    about: impl Fn(&Line) -> String,
    cell: impl Fn(&Figure) -> String,
) -> Vec<Vec<String>> {
    let mut head = vec!["level".to_owned(), second.to_owned()];
    let first = table.levels.iter().take(1).flat_map(|line| &line.figures);
    head.extend(first.map(|figure| figure.attack.clone()));
    let mut rows = vec![head];
    for line in &table.levels {
        let name = if line.base && line.level != BASE {
            format!("{} ({BASE})", line.level)
        } else {
            line.level.clone()
        };
        let mut row = vec![name, about(line)];
        row.extend(line.figures.iter().map(&cell));
        rows.push(row);
    }
    rows
}

/// Pads the columns, so that the Markdown source reads as a table too.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(text, "| {cell:<width$} ");
        }
        text.push_str("|\n");
        if index == 0 {
            widths.iter().for_each(|width| text.push_str(&format!("|{}", "-".repeat(width + 2))));
            text.push_str("|\n");
        }
    }
    text
}

/// The command line as one would type it, wherever the program is.
fn command(environment: &Value) -> String {
    let arguments = environment["command"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let plain = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "-_./:,@=+%".contains(c))
    };
    let typed = arguments.skip(1).map(|text| if plain(text) { text.to_owned() } else { format!("'{text}'") });
    std::iter::once("talion".to_owned()).chain(typed).collect::<Vec<_>>().join(" ")
}

fn machine(environment: &Value) -> String {
    let field = |name: &str| match &environment[name] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    format!(
        "{}, {} threads, {}, {}; talion {}, libtorch {}",
        field("processor"),
        field("threads"),
        field("device"),
        field("system"),
        field("talion"),
        field("libtorch")
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ablation::tests::base;

    const COLUMNS: [&str; 2] = ["clean", "fgsm@8/255"];

    fn conditions() -> Conditions {
        Conditions {
            classifier: "c".into(),
            data: "d".into(),
            skipped: 500,
            images: 100,
            adaptive_images: 0,
            seed: 1,
            columns: COLUMNS.map(str::to_owned).to_vec(),
        }
    }

    fn about() -> About {
        let environment = json!({
            "talion": "1", "libtorch": "2", "device": "cpu", "processor": "p", "threads": 3, "system": "s",
            "command": ["/somewhere/talion", "ablate", "--mixture", "clean*2,noise@0.1"],
        });
        About { environment, classifier: "c".into(), data: "d".into(), conditions: conditions() }
    }

    /// Results of every network: `clean` right on 90 of 100 images, FGSM on what `fgsm` says of the network.
    fn results(design: &Design, fgsm: impl Fn(&Cell) -> u64) -> BTreeMap<String, Results> {
        let cells = design.seeds.iter().flat_map(|&seed| design.measured(seed));
        let made = cells.map(|cell| {
            let of = |count| Proportion { count, total: 100 };
            let accuracy = [(COLUMNS[0], of(90)), (COLUMNS[1], of(fgsm(&cell)))];
            let results = Results {
                training: cell.training().clone(),
                network: "n".into(),
                conditions: conditions(),
                weights: 7,
                accuracy: accuracy.map(|(name, proportion)| (name.to_owned(), proportion)).into(),
            };
            (cell.stem(), results)
        });
        made.collect()
    }

    /// Sign is worse than the base by 20, 30 and 40 points; largest values by -10, 0 and 10.
    fn three_seeds() -> Report {
        let design = Design::new(base(), &[Factor::Normalization], &[1, 2, 3]).unwrap();
        let results =
            results(&design, |cell| match cell.training().spec.normalization.to_string().as_str() {
                "sign" => 70 - 10 * cell.seed(),
                "max" => 60 + 10 * cell.seed(),
                _ => 80,
            });
        Report::new(about(), &design, &results).unwrap()
    }

    #[test]
    fn differences_are_marked_where_their_interval_leaves_zero_out() {
        let report = three_seeds();
        let line = |name: &str| report.tables[0].levels.iter().find(|line| line.level == name).unwrap();
        assert!(line("rms").base && line("rms").figures[1].difference.is_none());
        let sign = line("sign").figures[1].difference.as_ref().unwrap();
        // standard deviation 10 points; t of two degrees is 4.3027
        let half = 4.302_653 * 0.1 / 3.0_f64.sqrt();
        let (low, high) = sign.interval.unwrap();
        assert!((sign.mean + 0.3).abs() < 1e-9 && sign.differs);
        assert!((low + 0.3 + half).abs() < 1e-6 && (high + 0.3 - half).abs() < 1e-6, "{low} {high}");
        let max = line("max").figures[1].difference.as_ref().unwrap();
        assert!(max.mean.abs() < 1e-9 && !max.differs);
        // the same share with every seed
        let clean = &line("sign").figures[0];
        assert!((clean.low - 0.9).abs() < 1e-9 && (clean.high - 0.9).abs() < 1e-9);
        assert!(!clean.difference.as_ref().unwrap().differs);
    }

    #[test]
    fn the_page_has_what_makes_it_repeatable() {
        let page = three_seeds().markdown();
        for said in [
            "`talion ablate --mixture 'clean*2,noise@0.1'`",
            "seeds: 1, 2, 3",
            "100 validation images, after the 500",
            "p, 3 threads, cpu, s; talion 1, libtorch 2",
            "Student",
            "## normalization",
            "| rms (base) | 7 ",
            "Difference to `rms`",
            "-30.0 (-54.8 to -5.2) (*)",
        ] {
            assert!(page.contains(said), "{said} is missing:\n{page}");
        }
        assert!(!page.contains("somewhere"), "{page}");
        // head, rule and two levels under the differences
        let below = page.split("in points:").nth(1).unwrap();
        assert_eq!(below.lines().filter(|line| line.starts_with('|')).count(), 4, "{below}");
    }

    #[test]
    fn one_seed_gets_the_images_interval_and_no_marks() {
        let design = Design::new(base(), &[Factor::Normalization], &[5]).unwrap();
        let results =
            results(&design, |cell| match cell.training().spec.normalization.to_string().as_str() {
                "sign" => 10,
                _ => 80,
            });
        let report = Report::new(about(), &design, &results).unwrap();
        let figure = &report.tables[0].levels[0].figures[0];
        assert_eq!((figure.low, figure.high), Proportion { count: 90, total: 100 }.interval());
        let page = report.markdown();
        assert!(page.contains("Wilson") && !page.contains("(*)"), "{page}");
    }

    #[test]
    fn the_base_has_a_line_where_it_is_no_level_and_gaps_are_errors() {
        let design = Design::new(base(), &[Factor::Maps], &[1, 2]).unwrap();
        let mut results = results(&design, |_| 50);
        let page = Report::new(about(), &design, &results).unwrap().markdown();
        assert!(page.contains("| base ") && page.contains("| top10 "), "{page}");
        results.pop_last();
        assert!(Report::new(about(), &design, &results).is_err());
    }
}
