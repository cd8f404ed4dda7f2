//! The report: nothing from outside becomes markup, nothing is called what it has not earned, and a page that a browser
//! shows on a phone and on a desk, in light and in dark.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use talion_core::Budget;
use talion_defenses::GradientMode;
use talion_eval::{
    Cell, ClassLine, Curve, Environment, Exhibit, Experiment, Finding, Headline, Latency, Line, Part, Player,
    Proportion, RunConfig, RunHeader, Series, Summary, Threat, Tile, Verdict, csv, html, report_markdown,
    write_report,
};

const SECTIONS: [&str; 9] =
    ["headline", "attacks", "curves", "classes", "gallery", "checks", "alarms", "cost", "origin"];

// ---- A made-up run ------------------------------------------------------------------------------------------------

fn of(count: u64, total: u64) -> Proportion {
    Proportion { count, total }
}

fn player(name: &str, defended: bool) -> Player {
    Player {
        name: name.into(),
        description: format!("resnet18-w16, files of {name}"),
        sha256: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".into(),
        defended,
    }
}

fn header() -> RunHeader {
    let budget = Budget::linf_levels(8.0).unwrap();
    let experiment = Experiment {
        victim: "TRN".into(),
        view: GradientMode::Exact,
        attack: "apgd-ce-50".parse().unwrap(),
        budget,
        samples: 64,
        until_fooled: true,
        after: Vec::new(),
        part: Part::Main,
    };
    let config = RunConfig {
        protocol: "standard".into(),
        data: "fashion-mnist".into(),
        data_sha256: "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752".into(),
        class_names: ["Trouser", "Ankle boot"].map(String::from).to_vec(),
        budget,
        samples: 320,
        seed: 1,
        contenders: vec![player("undefended", false), player("one-stream", true), player("TRN", true)],
        surrogates: vec![player("small-cnn", false)],
        experiments: vec![experiment],
    };
    let command = ["talion", "evaluate", "--protocol", "standard", "--trn", "my trn.safetensors"];
    let environment = Environment {
        talion: "0.1.0".into(),
        libtorch: "2.11.0".into(),
        device: "cpu".into(),
        processor: "made-up processor".into(),
        processors: 2,
        threads: 2,
        system: "linux x86_64".into(),
        command: command.map(String::from).to_vec(),
        begun: 1_763_859_900,
    };
    RunHeader { config, environment }
}

fn cell(threat: Threat, accuracy: Proportion, compared: bool) -> Cell {
    Cell {
        threat,
        accuracy,
        mcnemar: compared.then_some(3.4e-8),
        difference: compared.then_some(65.3),
        psnr: compared.then_some(28.43),
        ssim: compared.then_some(0.913),
        median_distance: (threat != Threat::Clean).then_some(8.0 / 255.0),
    }
}

fn line(key: &str, threats: [Threat; 3], counts: [u64; 3], total: u64) -> Line {
    let clean = key == "clean";
    let cells = threats.into_iter().zip(counts).enumerate();
    Line {
        key: key.into(),
        attack: if clean { "none".into() } else { "apgd-ce-50".into() },
        budget: if clean { String::new() } else { "Linf 8/255".into() },
        victim: if clean { String::new() } else { key.split(' ').next().unwrap().into() },
        continued: false,
        cells: cells.map(|(place, (threat, count))| cell(threat, of(count, total), place > 0)).collect(),
        forward: 51.0,
        backward: 50.0,
        seconds: 312.5,
        adjustments: Vec::new(),
    }
}

fn curve(part: Part, title: &str, axis: &str, places: [f64; 4]) -> Curve {
    let series =
        [("undefended", [320, 90, 3, 0]), ("one-stream", [300, 270, 140, 9]), ("TRN", [301, 260, 90, 2])];
    let series = series.map(|(name, counts)| Series {
        contender: name.into(),
        points: places.into_iter().zip(counts.map(|count| of(count, 320))).collect(),
    });
    Curve { part, title: title.into(), axis: axis.into(), series: series.to_vec() }
}

fn headlines(adaptive: bool) -> Vec<Headline> {
    let threats = |exact: u64| {
        let known = [(Threat::Noise, of(298, 320)), (Threat::Oblivious, of(268, 320))];
        let knows = adaptive.then_some((Threat::Exact, of(exact, 64)));
        known.into_iter().chain(knows).collect::<Vec<_>>()
    };
    let defended = |name: &str, exact: u64| Headline {
        contender: name.into(),
        defended: true,
        clean: of(300, 320),
        threats: threats(exact),
        adaptive: adaptive.then_some(of(exact, 64)),
        worst: if adaptive { of(exact, 64) } else { of(260, 320) },
    };
    let bare = Headline {
        contender: "undefended".into(),
        defended: false,
        clean: of(305, 320),
        threats: vec![(Threat::Noise, of(299, 320)), (Threat::Exact, of(0, 320))],
        adaptive: Some(of(0, 320)),
        worst: of(0, 320),
    };
    vec![bare, defended("one-stream", 22), defended("TRN", 16)]
}

/// A PNG of 4 x 4 pixels.
fn png(shade: u8) -> Vec<u8> {
    let mut file = std::io::Cursor::new(Vec::new());
    let picture =
        image::GrayImage::from_fn(4, 4, |x, y| image::Luma([shade.wrapping_mul(1 + x as u8 + y as u8)]));
    picture.write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

fn exhibit(id: u64, right: bool) -> Exhibit {
    let tile = |title: &str, shade: u8, verdict: Option<(&str, f64, bool)>| Tile {
        title: title.into(),
        png: png(shade),
        verdict: verdict.map(|(label, confidence, _)| (label.into(), confidence)),
        right: verdict.map(|(_, _, right)| right),
    };
    Exhibit {
        id,
        experiment: "apgd-ce-50 on TRN (exact) at Linf 8/255".into(),
        contender: "TRN".into(),
        label: "Ankle boot".into(),
        right,
        tiles: vec![
            tile("clean", 9, Some(("Ankle boot", 0.998, true))),
            tile("adversarial", 11, Some(("Trouser", 1.0, false))),
            tile("gradient map", 13, None),
            tile("restored", 17, Some(("Trouser", 0.73, right))),
            tile("difference", 19, None),
        ],
    }
}

fn verdict(name: &str, finding: Finding) -> Verdict {
    Verdict {
        name: name.into(),
        question: format!("Does {name} hold?"),
        source: "Carlini et al. 2019".into(),
        finding,
        evidence: "51.2 % against 40.0 %".into(),
    }
}

/// A finished run, with or without an attacker who knows the defence.
fn summary(adaptive: bool) -> Summary {
    use Threat::{Clean, Exact, Oblivious, Transfer};
    let mut lines = vec![
        line("clean", [Clean; 3], [305, 300, 300], 320),
        line("undefended exact apgd-ce-50", [Exact, Oblivious, Oblivious], [0, 268, 297], 320),
    ];
    if adaptive {
        lines.push(line("TRN exact apgd-ce-50", [Transfer, Transfer, Exact], [20, 30, 16], 64));
    }
    let class = |name: &str| ClassLine { class: name.into(), contenders: vec![(of(30, 32), of(4, 32)); 3] };
    let latency = |name: &str, median: f64| Latency {
        contender: name.into(),
        batch: 32,
        median,
        slowest: 1.1 * median,
    };
    Summary {
        header: header(),
        complete: true,
        headlines: headlines(adaptive),
        lines,
        curves: vec![
            curve(
                Part::Budgets,
                "accuracy against budget",
                "budget (Linf)",
                [0.0, 2.0, 8.0, 32.0].map(|x| x / 255.0),
            ),
            curve(Part::Iterations, "accuracy against iterations", "iterations", [5.0, 20.0, 100.0, 400.0]),
        ],
        classes: vec![class("Trouser"), class("Ankle boot")],
        verdicts: vec![
            verdict("larger-budget", Finding::Pass),
            verdict("iterations", Finding::Fail),
            verdict("decisions", Finding::NotRun),
        ],
        alarms: vec!["square-5000 fooled what no attack with gradients fooled".into()],
        latencies: vec![latency("undefended", 0.061), latency("TRN", 0.59)],
        gallery: vec![exhibit(17, true), exhibit(57, false)],
    }
}

/// The run with `text` at the end of every text that it holds.
fn spiked(text: &str) -> Summary {
    let mut run = summary(true);
    let add = |field: &mut String| field.push_str(text);
    let RunHeader { config, environment } = &mut run.header;
    let own = [&mut config.protocol, &mut config.data, &mut config.data_sha256];
    own.into_iter().chain(&mut config.class_names).chain(&mut environment.command).for_each(add);
    for player in config.contenders.iter_mut().chain(&mut config.surrogates) {
        [&mut player.name, &mut player.description, &mut player.sha256].into_iter().for_each(add);
    }
    for experiment in &mut config.experiments {
        add(&mut experiment.victim);
        experiment.after.push(text.into());
    }
    [&mut environment.talion, &mut environment.libtorch, &mut environment.device].into_iter().for_each(add);
    [&mut environment.processor, &mut environment.system].into_iter().for_each(add);
    run.headlines.iter_mut().for_each(|line| add(&mut line.contender));
    for line in &mut run.lines {
        [&mut line.key, &mut line.attack, &mut line.budget, &mut line.victim].into_iter().for_each(add);
        line.adjustments.push(text.into());
    }
    for curve in &mut run.curves {
        [&mut curve.title, &mut curve.axis].into_iter().for_each(add);
        curve.series.iter_mut().for_each(|series| add(&mut series.contender));
    }
    run.classes.iter_mut().for_each(|line| add(&mut line.class));
    for verdict in &mut run.verdicts {
        [&mut verdict.name, &mut verdict.question, &mut verdict.source, &mut verdict.evidence]
            .into_iter()
            .for_each(add);
    }
    run.alarms.iter_mut().for_each(add);
    run.latencies.iter_mut().for_each(|latency| add(&mut latency.contender));
    for exhibit in &mut run.gallery {
        [&mut exhibit.experiment, &mut exhibit.contender, &mut exhibit.label].into_iter().for_each(add);
        for tile in &mut exhibit.tiles {
            add(&mut tile.title);
            tile.verdict.iter_mut().for_each(|(label, _)| add(label));
        }
    }
    run
}

// ---- A small, strict reader of HTML -------------------------------------------------------------------------------

/// A start tag with its attributes, as they are written.
struct Tag {
    name: String,
    attributes: Vec<(String, String)>,
}

impl Tag {
    fn get(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

/// Reads a page, which has to be stricter than HTML: all tags balanced, all attributes in quotes, and every `<` and `&` of
/// the text escaped. Returns its start tags.
fn tags(page: &str) -> Vec<Tag> {
    const VOID: [&str; 2] = ["meta", "img"];
    let (mut open, mut found) = (Vec::<String>::new(), Vec::new());
    let mut rest = page.strip_prefix("<!DOCTYPE html>").expect("a page begins with its type");
    while let Some(at) = rest.find('<') {
        check_text(&rest[..at], open.last().map_or("", String::as_str));
        let end = rest[at..].find('>').expect("every tag ends") + at;
        let inside = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = inside.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "an end tag closes the last start tag");
            continue;
        }
        let (inside, closed) = inside.strip_suffix('/').map_or((inside, false), |inside| (inside, true));
        let tag = start_tag(inside);
        if !closed && !VOID.contains(&tag.name.as_str()) {
            open.push(tag.name.clone());
        }
        found.push(tag);
    }
    assert!(open.is_empty(), "not closed: {open:?}");
    found
}

fn start_tag(inside: &str) -> Tag {
    let (name, mut rest) = inside.split_once([' ', '\n']).unwrap_or((inside, ""));
    assert!(!name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric()), "a tag called {name:?}");
    let mut attributes = Vec::new();
    while !rest.trim().is_empty() {
        let (name, after) =
            rest.trim_start().split_once("=\"").unwrap_or_else(|| panic!("attributes {rest:?}"));
        let (value, after) = after.split_once('"').expect("a value in quotes");
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "an attribute called {name:?}");
        check_text(value, "");
        attributes.push((name.to_owned(), value.to_owned()));
        rest = after;
    }
    Tag { name: name.to_owned(), attributes }
}

fn check_text(text: &str, inside: &str) {
    if inside == "style" {
        return;
    }
    for (at, _) in text.match_indices('&') {
        let known = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;", "&apos;"];
        assert!(known.iter().any(|known| text[at..].starts_with(known)), "{:?}", &text[at..]);
    }
    assert!(!text.chars().any(|c| c.is_control() && !"\n\t".contains(c)), "{text:?}");
}

/// A page without the data of its pictures, in small letters.
fn words(page: &str) -> String {
    let parts = page.split('"').filter(|part| !part.starts_with("data:image/png"));
    parts.collect::<Vec<_>>().join("\"").to_lowercase()
}

// ---- Tests --------------------------------------------------------------------------------------------------------

#[test]
fn nothing_from_outside_becomes_markup() {
    let text = "</td></svg><script>alert(\"1\")</script><img src=x onerror='alert(2)'>&amp;\"'>|`\u{0}\r\n=1";
    let runs = [spiked(text), spiked(text)];
    for runs in [&runs[..1], &runs[..]] {
        let page = html(runs).unwrap();
        let tags = tags(&page);
        assert!(tags.iter().all(|tag| tag.name != "script"));
        assert!(
            tags.iter()
                .filter(|tag| tag.name == "img")
                .all(|tag| tag.get("src").unwrap().starts_with("data:"))
        );
        assert!(!tags.iter().any(|tag| tag.attributes.iter().any(|(name, _)| name.starts_with("on"))));
        assert!(page.contains("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;"));
        let markdown = report_markdown(runs);
        let outside_fences = markdown.split("```").step_by(2).collect::<String>();
        assert!(!outside_fences.contains('\u{0}') && !outside_fences.contains("<script"));
    }
}

#[test]
fn the_page_has_every_section_and_loads_nothing() {
    let page = html(&[summary(true)]).unwrap();
    let tags = tags(&page);
    let count = |name: &str| tags.iter().filter(|tag| tag.name == name).count();
    let sections: Vec<_> =
        tags.iter().filter(|tag| tag.name == "section").filter_map(|tag| tag.get("id")).collect();
    assert_eq!(sections, SECTIONS);
    for landmark in ["h1", "header", "nav", "main", "footer", "style"] {
        assert_eq!(count(landmark), 1, "{landmark}");
    }
    // drawings have titles, too, but with ids
    assert_eq!(tags.iter().filter(|tag| tag.name == "title" && tag.get("id").is_none()).count(), 1);
    for name in ["script", "link", "iframe", "object", "base", "form"] {
        assert_eq!(count(name), 0, "{name}");
    }
    assert!(!page.contains("://") && !page.contains("url(") && !page.contains("@import"));
    assert!(tags.iter().filter(|tag| tag.name == "th").all(|tag| tag.get("scope").is_some()));
    assert!(
        tags.iter()
            .filter(|tag| tag.name == "img")
            .all(|tag| tag.get("alt").is_some_and(|alt| !alt.is_empty()))
    );
    let scrolling = tags.iter().filter(|tag| tag.get("role") == Some("region"));
    assert!(scrolling.clone().count() >= 5 && scrolling.clone().all(|tag| tag.get("tabindex") == Some("0")));
    let ids: Vec<_> = tags.iter().filter_map(|tag| tag.get("id")).collect();
    assert!(ids.iter().enumerate().all(|(place, id)| !ids[..place].contains(id)), "an id twice");
    for tag in tags.iter().filter(|tag| tag.name == "a") {
        assert!(ids.contains(&tag.get("href").unwrap().strip_prefix('#').unwrap()));
    }
    for text in [
        "93.8</b> <span class=\"interval\">(90.5-95.9)",
        "+65.3, p = 3e-8",
        "51 + 50",
        "5.2 min",
        "28.4",
        "0.913",
    ] {
        assert!(page.contains(text), "{text}");
    }
    assert!(page.contains("&#39;my trn.safetensors&#39;") && page.contains("2025-11-23 01:05 UTC"));
}

#[test]
fn a_defence_that_nobody_attacked_who_knows_it_is_not_praised() {
    let mut run = summary(false);
    run.header.config.contenders[2].name = "Robust-TRN".into();
    run.headlines[2].contender = "Robust-TRN".into();
    run.header.environment.command.push("--trn=ROBUST.safetensors".into());
    run.verdicts[0].source = "On Evaluating Adversarial Robustness".into();
    run.curves[0].series[2].contender = "robust".into();
    let banner = "Nobody who knows the defence attacked it with exact gradients.";
    // one such run among several is enough
    for runs in [vec![run.clone()], vec![summary(true), run]] {
        let (page, markdown) = (html(&runs).unwrap(), report_markdown(&runs));
        for text in [words(&page), markdown.to_lowercase(), csv(&runs).to_lowercase()] {
            assert!(!text.contains("robust"), "{text}");
        }
        assert!(page.contains(banner) && markdown.contains(banner));
        assert!(page.find(banner) < page.find("id=\"headline\""), "it stands before every figure");
        assert!(page.contains("(...)-TRN") && !page.contains("the number to believe"));
        assert_eq!(
            page.contains("<em>not run</em>"),
            runs.len() == 1,
            "large figures are those of the first run"
        );
        tags(&page);
    }
    let (page, markdown) = (html(&[summary(true)]).unwrap(), report_markdown(&[summary(true)]));
    assert!(!page.contains(banner) && !markdown.contains(banner));
    let mut known = summary(true);
    known.header.environment.command.push("robust.safetensors".into());
    assert!(html(&[known]).unwrap().contains("robust.safetensors"));
}

#[test]
fn an_unfinished_run_says_so() {
    let mut run = summary(true);
    let banner = "This run is not finished.";
    assert!(!html(std::slice::from_ref(&run)).unwrap().contains(banner));
    run.complete = false;
    assert!(html(std::slice::from_ref(&run)).unwrap().contains(banner));
    assert!(report_markdown(&[run]).contains(banner));
}

#[test]
fn failures_come_first() {
    let page = html(&[summary(true)]).unwrap();
    assert!(page.find("(sample 57)") < page.find("(sample 17)"));
    assert!(page.find("Does iterations hold?") < page.find("Does decisions hold?"));
    assert!(page.find("Does decisions hold?") < page.find("Does larger-budget hold?"));
    assert!(page.contains("WRONG") && page.contains("1 pass, 1 fail, 1 not run."));
}

#[test]
fn runs_stand_side_by_side() {
    let mut other = summary(true);
    other.header.config.seed = 2;
    other.lines.remove(2);
    other.lines.push(line("one-stream exact apgd-ce-50", [Threat::Transfer; 3], [1, 2, 3], 64));
    other.verdicts.remove(0);
    let runs = [summary(true), other];
    let page = html(&runs).unwrap();
    let tags = tags(&page);
    assert!(page.contains("2 runs compared") && page.contains("<b>Run B: </b>") && page.contains("seed 2"));
    let groups = tags.iter().filter(|tag| tag.get("scope") == Some("colgroup"));
    let of_runs = groups.filter(|tag| tag.get("colspan") == Some("5"));
    assert_eq!(of_runs.count(), 2, "three contenders, passes and time, for each run");
    assert_eq!(tags.iter().filter(|tag| tag.name == "svg").count(), 4);
    let attacks = &page[page.find("id=\"attacks\"").unwrap()..page.find("id=\"curves\"").unwrap()];
    let first = &attacks[..attacks.find("</table>").unwrap()];
    // a header of two lines, and what only one run has stands alone
    assert_eq!(first.matches("<tr>").count(), 2 + 4);
    assert_eq!(first.matches("<td>–</td>").count(), 2 * 5);
    let markdown = report_markdown(&runs);
    assert!(markdown.contains("### Run A") && markdown.contains("### Run B"));
    assert!(csv(&runs).contains("\r\nRun B,"));
}

#[test]
fn curves_are_pictures_that_follow_the_page() {
    let page = html(&[summary(true)]).unwrap();
    let pictures: Vec<_> =
        page.split("<svg ").skip(1).map(|rest| &rest[..rest.find("</svg>").unwrap()]).collect();
    assert_eq!(pictures.len(), 2);
    for picture in &pictures {
        assert!(
            picture.starts_with("role=\"img\" aria-labelledby=\"curve-")
                && picture.contains("viewBox=\"0 0 ")
        );
        assert!(picture.contains("<title id=") && picture.contains("<desc id="));
        for class in ["ink", "axis", "grid", "line-0", "line-1", "line-2", "fill-0", "fill-1", "fill-2"] {
            assert!(picture.contains(&format!("class=\"{class}\"")), "{class}");
        }
        // no colour is left that the style sheet does not know
        for (at, _) in picture.match_indices("=\"#") {
            let before = &picture[..at];
            let tag = &before[before.rfind('<').unwrap()..];
            assert!(tag.contains("class=\""), "{}", &picture[at..at + 12]);
        }
        assert!(
            picture.contains("stroke-dasharray")
                && picture.contains("accuracy, %")
                && picture.contains("TRN")
        );
    }
    assert!(pictures[0].contains("budget (Linf) × 255") && pictures[0].contains("\n32\n"));
    assert!(pictures[1].contains("iterations") && pictures[1].contains("\n400\n"));
}

#[test]
fn the_csv_reads_back() {
    let runs = [spiked("a \"b\", c\r\nd")];
    let records = records(&csv(&runs));
    assert_eq!(records[0][..2], ["run", "protocol"]);
    assert_eq!(records.len(), 1 + 3 * 3);
    assert!(records.iter().all(|record| record.len() == records[0].len()));
    let column = |name: &str| records[0].iter().position(|own| own == name).unwrap();
    assert_eq!(records[1][column("contender")], "undefendeda \"b\", c\r\nd");
    assert_eq!(records[1][column("experiment")], runs[0].lines[0].key);
    assert_eq!(records[5][column("correct")], "268");
    assert_eq!(records[5][column("difference_points")], "65.3");
    assert_eq!(records[1][column("mcnemar_p")], "");
}

/// Reads CSV as RFC 4180 describes it.
fn records(text: &str) -> Vec<Vec<String>> {
    let (mut records, mut record, mut field) = (Vec::new(), Vec::new(), String::new());
    let mut quoted = false;
    let mut letters = text.chars().peekable();
    while let Some(c) = letters.next() {
        match c {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => record.push(std::mem::take(&mut field)),
            '\r' if !quoted => assert_eq!(letters.peek(), Some(&'\n')),
            '\n' if !quoted => {
                record.push(std::mem::take(&mut field));
                records.push(std::mem::take(&mut record));
            }
            c => field.push(c),
        }
    }
    assert!(!quoted && record.is_empty() && field.is_empty(), "the last line ends");
    records
}

#[test]
fn a_run_that_says_nothing_still_has_a_page() {
    let mut run = summary(true);
    run.lines.clear();
    run.curves =
        vec![Curve { part: Part::Steps, title: "empty".into(), axis: "x".into(), series: Vec::new() }];
    run.curves.push(curve(Part::Iterations, "one place", "iterations", [f64::NAN, 7.0, f64::INFINITY, 7.0]));
    run.curves[1].series[0].points[1].1 = of(0, 0);
    run.headlines[1].clean = of(0, 0);
    run.classes.clear();
    run.verdicts.clear();
    run.alarms.clear();
    run.latencies.clear();
    run.gallery.clear();
    let page = html(std::slice::from_ref(&run)).unwrap();
    let sections = tags(&page).into_iter().filter(|tag| tag.name == "section").count();
    assert_eq!(sections, SECTIONS.len());
    assert!(!page.contains("NaN") && page.contains("no samples"));
    assert!(!report_markdown(&[run]).contains("NaN"));
    assert!(html(&[]).is_err());
    assert!(records(&csv(&[])).len() == 1);
}

#[test]
fn four_files_are_written_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let runs = [summary(true), summary(false)];
    let written = write_report(&runs, &folder.path().join("my report.html")).unwrap();
    let names = ["html", "md", "csv", "json"].map(|ending| folder.path().join(format!("my report.{ending}")));
    assert_eq!(written, names);
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    assert_eq!(read(&names[0]), html(&runs).unwrap());
    assert_eq!(read(&names[1]), report_markdown(&runs));
    assert_eq!(read(&names[2]), csv(&runs));
    let json: serde_json::Value = serde_json::from_str(&read(&names[3])).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 2);
    assert_eq!(json[0]["headlines"][2]["worst"]["count"], 16);
    assert_eq!(json[0]["header"]["config"]["contenders"][2]["name"], "TRN");
    assert!(write_report(&runs, &folder.path().join("report.csv")).is_err());
    assert!(write_report(&[], &folder.path().join("none.html")).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4);
}

// ---- In a browser -------------------------------------------------------------------------------------------------

/// Widths of a phone and of a desk, in CSS pixels.
const WIDTHS: [u32; 2] = [390, 1280];

/// Chromium's numbers of colour schemes.
const SCHEMES: [(&str, u8); 2] = [("dark", 0), ("light", 1)];

#[test]
fn a_browser_shows_it_on_a_phone_and_on_a_desk_in_light_and_in_dark() {
    let Some(browser) = browser() else {
        eprintln!("skipped: no Chromium on PATH");
        return;
    };
    // what is left can be looked at: target/tmp/report
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report");
    std::fs::create_dir_all(&folder).unwrap();
    let (long, unbroken) = ("a-name-with-few-places-to-break-".repeat(5), "unbroken".repeat(20));
    let pages = [
        ("one.html", vec![summary(true)]),
        ("two.html", vec![summary(true), summary(false)]),
        ("long.html", vec![spiked(&long)]),
        ("unbroken.html", vec![spiked(&unbroken), summary(false)]),
    ];
    for (name, runs) in &pages {
        std::fs::write(folder.join(name), html(runs).unwrap()).unwrap();
    }
    let names = pages.each_ref().map(|(name, _)| *name);
    for (seen, (name, runs)) in measured(&browser, &folder, &names).chunks(WIDTHS.len()).zip(&pages) {
        for (seen, width) in seen.iter().zip(WIDTHS) {
            assert_eq!(seen.window, f64::from(width), "{name}");
            assert!(seen.page <= seen.window, "{name} is {} wide in {width}", seen.page);
            assert_eq!(seen.pictures, 10.0 * runs.len() as f64, "{name}: a picture could not be read");
        }
    }
    for scheme in SCHEMES {
        for width in WIDTHS {
            look(&browser, &folder, names[0], scheme, width);
        }
    }
}

fn browser() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    let folders: Vec<_> = std::env::split_paths(&folders).collect();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    // a file of that name may be no more than the advice to install one
    let works = |path: &PathBuf| {
        let mut command = Command::new(path);
        path.is_file() && command.arg("--version").output().is_ok_and(|output| output.status.success())
    };
    names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(works)
}

/// What a browser says of a page in a window.
struct Seen {
    /// The width of the window.
    window: f64,
    /// The width of everything that is on the page.
    page: f64,
    /// How many pictures were read.
    pictures: f64,
}

/// Measures copies of pages at each of the widths, page by page. They are shown in frames: windows of Chromium have a
/// smallest width, frames have not.
fn measured(browser: &Path, folder: &Path, pages: &[&str]) -> Vec<Seen> {
    let script = "<script>addEventListener('load', () => parent.postMessage([name, innerWidth, \
        document.documentElement.scrollWidth, \
        [...document.images].filter(image => image.naturalWidth > 0).length].join(' ') + ';', '*'))</script></body>";
    let mut frames = Vec::new();
    for page in pages {
        let copy = std::fs::read_to_string(folder.join(page)).unwrap().replace("</body>", script);
        // the page itself forbids scripts
        let policy = copy.find("<meta http-equiv=").expect("a policy");
        let end = policy + copy[policy..].find('>').unwrap() + 1;
        let copied = format!("measured-{page}");
        std::fs::write(folder.join(&copied), format!("{}{}", &copy[..policy], &copy[end..])).unwrap();
        frames.extend(WIDTHS.map(|width| (copied.clone(), width)));
    }
    let listen = "<script>addEventListener('message', event => document.title += event.data)</script>";
    let show = show(folder, "measure.html", &frames, 800, listen);
    let mut command = chromium(browser, 1, (1400, 1000));
    command.args(["--virtual-time-budget=10000", "--dump-dom"]).arg(show);
    let text = output(command);
    let title =
        text.split("<title>").nth(1).and_then(|rest| rest.split("</title>").next()).unwrap_or_default();
    let mut seen: Vec<(usize, Seen)> = title.split_terminator(';').map(read_seen).collect();
    seen.sort_by_key(|(frame, _)| *frame);
    assert_eq!(seen.len(), frames.len(), "the browser said {title:?}");
    seen.into_iter().map(|(_, seen)| seen).collect()
}

/// Reads `FRAME WINDOW PAGE PICTURES`.
fn read_seen(text: &str) -> (usize, Seen) {
    let numbers: Vec<f64> = text.split(' ').map(|number| number.parse().unwrap()).collect();
    let [frame, window, page, pictures] = numbers[..] else { panic!("the browser said {text:?}") };
    (frame as usize, Seen { window, page, pictures })
}

/// Takes a picture of the page and checks its size and that its paper is as light or dark as was asked for.
fn look(browser: &Path, folder: &Path, page: &str, (scheme, number): (&str, u8), width: u32) {
    let height = 2400;
    let show = show(folder, "look.html", &[(page.to_owned(), width)], height, "");
    let file = folder.join(format!("{scheme}-{width}.png"));
    let mut command = chromium(browser, number, (width.max(500), height));
    command.arg(format!("--screenshot={}", file.display())).arg(show);
    output(command);
    let picture = image::open(&file).unwrap().to_rgb8();
    assert_eq!(picture.dimensions(), (width.max(500), height));
    let paper = picture.get_pixel(2, height / 2).0.map(u32::from).iter().sum::<u32>();
    assert!(if scheme == "dark" { paper < 150 } else { paper > 700 }, "{scheme}: {paper}");
    let written =
        picture.pixels().filter(|pixel| pixel.0.map(u32::from).iter().sum::<u32>().abs_diff(paper) > 300);
    assert!(written.count() > 2000, "there is something to read");
}

/// A page that shows others in frames of these widths; each frame's name is its number.
fn show(folder: &Path, name: &str, frames: &[(String, u32)], height: u32, head: &str) -> String {
    let frames = frames.iter().enumerate().map(|(number, (page, width))| {
        let style = format!("display: block; width: {width}px; height: {height}px; border: 0");
        format!("<iframe name=\"{number}\" src=\"{page}\" style=\"{style}\"></iframe>")
    });
    let frames: String = frames.collect();
    let text = format!(
        "<!DOCTYPE html><title></title><meta name=\"color-scheme\" content=\"light dark\">{head}\
         <body style=\"margin: 0; overflow: hidden\">{frames}</body>"
    );
    let file = folder.join(name);
    std::fs::write(&file, text).unwrap();
    format!("file://{}", file.display())
}

fn chromium(browser: &Path, scheme: u8, (width, height): (u32, u32)) -> Command {
    let mut command = Command::new(browser);
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]);
    command.arg(format!("--window-size={width},{height}"));
    command.arg(format!("--blink-settings=preferredColorScheme={scheme}"));
    command
}

/// What `command` writes; a browser that does not come to an end is ended.
fn output(mut command: Command) -> String {
    let profile = tempfile::tempdir().unwrap();
    command.arg(format!("--user-data-dir={}", profile.path().display()));
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut pipe = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).map(|_| String::from_utf8_lossy(&bytes).into_owned())
    });
    wait(&mut child);
    reader.join().unwrap().unwrap()
}

fn wait(child: &mut Child) {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "the browser ended with {status}");
            return;
        }
        if begun.elapsed() > Duration::from_secs(120) {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the browser took more than two minutes");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
