//! A curve as a picture that fits the page: drawn by plotters, then dressed in the page's colours.
//!
//! plotters knows fixed colours only, and a page has to be readable in light, in dark and on paper. So everything is drawn
//! in code colours, one a role, and each then becomes a class that the style sheet paints; the attribute keeps a
//! real colour for readers without style sheets.

use std::ops::Range;

use plotters::{
    coord::{
        Shift,
        ranged1d::{DefaultFormatting, KeyPointHint, Ranged},
    },
    drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea},
    element::{PathElement, Polygon},
    prelude::{ChartBuilder, SVGBackend},
    style::{
        Color, IntoTextStyle, RGBColor, TextStyle,
        text_anchor::{HPos, Pos, VPos},
    },
};
use talion_core::{Error, Result};

use super::{
    html::{escaped, printable},
    words::{self, number},
};
use crate::{Curve, Part, Proportion};

/// An SVG element for a page.
pub(super) struct Svg(String);

impl Svg {
    pub(super) fn markup(&self) -> &str {
        &self.0
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Place = (i32, i32);
type Drawn = std::result::Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// Sizes are about twice those on the screen: plotters rounds places to whole units.
const WIDTH: u32 = 840;
const PLOT: u32 = 600;
/// Room above the legend, and a line of it.
const GAP: u32 = 16;
const ENTRY: u32 = 42;
/// Room for numbers and names of the axes.
const BELOW: u32 = 96;
const BESIDE: u32 = 108;
/// About the width of a digit.
const DIGIT: f64 = 17.0;
/// plotters writes a font's size divided by 1.24.
const FONT: f64 = 34.0;
/// Half a marker, and half the cap of a whisker.
const MARKER: f64 = 10.0;
const CAP: i32 = 8;
/// How far the contenders stand apart sideways, so that their whiskers do not hide each other.
const APART: i32 = 7;
/// What a legend has room for.
const LONGEST: usize = 44;

/// Code colours.
const INK: RGBColor = RGBColor(0, 0, 1);
const AXIS: RGBColor = RGBColor(0, 0, 2);
const GRID: RGBColor = RGBColor(0, 0, 3);

/// What is drawn of a contender, each in a code colour of its own.
#[derive(Clone, Copy)]
enum Role {
    Line = 1,
    Whisker = 2,
    Marker = 3,
}

fn code(look: usize, role: Role) -> RGBColor {
    RGBColor(100 + look as u8, role as u8, 0)
}

/// How many looks there are: colours, dashes and markers together. The style sheet has a colour for each.
const LOOKS: usize = 6;

/// Okabe and Ito's colours, which everybody tells apart, as dark as white paper wants them; the first is the grey of what
/// everything is compared with.
const COLOURS: [&str; LOOKS] = ["#595959", "#0068a8", "#c04a00", "#00785a", "#9c4a80", "#8a6a00"];

/// Dashes, so that lines differ without colours.
const DASHES: [&str; LOOKS] = ["3 9", "", "20 9", "20 8 3 8", "10 6", "30 8 3 8 3 8"];

/// Corners of markers whose half size is 1: square, octagon, triangles, diamond, cross.
const MARKERS: [&[(f64, f64)]; LOOKS] = [
    &[(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    &[
        (1.0, 0.41),
        (0.41, 1.0),
        (-0.41, 1.0),
        (-1.0, 0.41),
        (-1.0, -0.41),
        (-0.41, -1.0),
        (0.41, -1.0),
        (1.0, -0.41),
    ],
    &[(0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
    &[(0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)],
    &[(0.0, 1.2), (1.1, -0.8), (-1.1, -0.8)],
    &[
        (-0.4, -1.2),
        (0.4, -1.2),
        (0.4, -0.4),
        (1.2, -0.4),
        (1.2, 0.4),
        (0.4, 0.4),
        (0.4, 1.2),
        (-0.4, 1.2),
        (-0.4, 0.4),
        (-1.2, 0.4),
        (-1.2, -0.4),
        (-0.4, -0.4),
    ],
];

/// One contender's curve.
struct Trace<'a> {
    name: &'a str,
    look: usize,
    points: Vec<(f64, Proportion)>,
}

/// Draws `curve`, or nothing if it has no points. `contenders` are the names of all contenders of the report: one that is
/// in several pictures looks the same in all. `id` is unique on the page.
pub(super) fn drawn(curve: &Curve, contenders: &[&str], id: &str) -> Result<Option<Svg>> {
    let series = curve.series.iter().enumerate();
    let traces: Vec<Trace<'_>> = series
        .map(|(index, series)| Trace {
            name: &series.contender,
            look: contenders.iter().position(|name| *name == series.contender).unwrap_or(index) % LOOKS,
            points: series.points.iter().copied().filter(|(x, y)| x.is_finite() && y.total > 0).collect(),
        })
        .filter(|trace| !trace.points.is_empty())
        .collect();
    let Some(x) = Axis::across(curve, &traces) else { return Ok(None) };
    let mut drawing = String::new();
    plot(&mut drawing, x, &traces).map_err(Error::other)?;
    Ok(Some(Svg(dressed(&drawing, curve, &traces, id))))
}

fn plot(drawing: &mut String, x: Axis, traces: &[Trace<'_>]) -> Drawn {
    let root = SVGBackend::with_string(drawing, (WIDTH, height(traces))).into_drawing_area();
    let (upper, _) = root.split_vertically(PLOT);
    let (title, ticks) = (x.title.clone(), x.ticks.clone());
    let mut chart = ChartBuilder::on(&upper)
        .margin_top(18)
        .margin_right(14)
        .x_label_area_size(BELOW)
        .y_label_area_size(BESIDE)
        .build_cartesian_2d(x, Axis::percent())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(GRID.stroke_width(2))
        .axis_style(AXIS.stroke_width(2))
        .label_style(("sans-serif", FONT, &INK))
        .x_desc(title)
        .y_desc("accuracy, %")
        .x_label_formatter(&|value| label(&ticks, *value))
        .y_label_formatter(&|value| number(*value))
        .set_all_tick_mark_size(8)
        .draw()?;
    for (row, trace) in traces.iter().enumerate() {
        let aside = APART * (2 * row as i32 - (traces.len() as i32 - 1)) / 2;
        let place = |x: f64, share: f64| {
            let (x, y) = chart.plotting_area().map_coordinate(&(x, 100.0 * share));
            (x + aside, y)
        };
        let whiskers = |(x, value): &(f64, Proportion)| {
            let (low, high) = value.interval();
            [place(*x, low), place(*x, value.share()), place(*x, high)]
        };
        let points: Vec<[Place; 3]> = trace.points.iter().map(whiskers).collect();
        draw_trace(&root, trace.look, &points)?;
        draw_entry(&root, trace, (PLOT + GAP + ENTRY * row as u32 + ENTRY / 2) as i32)?;
    }
    root.present()
}

fn height(traces: &[Trace<'_>]) -> u32 {
    PLOT + GAP + ENTRY * traces.len() as u32
}

/// A line through the middle of `points`, a whisker from low to high, a marker at each.
fn draw_trace(area: &Area<'_>, look: usize, points: &[[Place; 3]]) -> Drawn {
    let middles: Vec<Place> = points.iter().map(|[_, middle, _]| *middle).collect();
    area.draw(&PathElement::<Place>::new(middles.clone(), code(look, Role::Line).stroke_width(4)))?;
    let whisker = code(look, Role::Whisker).stroke_width(2);
    for [low, _, high] in points {
        area.draw(&PathElement::<Place>::new(vec![*low, *high], whisker))?;
        for (x, y) in [*low, *high] {
            area.draw(&PathElement::<Place>::new(vec![(x - CAP, y), (x + CAP, y)], whisker))?;
        }
    }
    middles.into_iter().try_for_each(|at| draw_marker(area, look, at))
}

fn draw_marker(area: &Area<'_>, look: usize, (x, y): Place) -> Drawn {
    let corner = |(dx, dy): &(f64, f64)| (x + (MARKER * dx).round() as i32, y + (MARKER * dy).round() as i32);
    let corners: Vec<Place> = MARKERS[look].iter().map(corner).collect();
    area.draw(&Polygon::<Place>::new(corners, code(look, Role::Marker).filled()))
}

/// A line of the legend.
fn draw_entry(area: &Area<'_>, trace: &Trace<'_>, y: i32) -> Drawn {
    let (left, right) = (BESIDE as i32, BESIDE as i32 + 90);
    let line = vec![(left, y), (right, y)];
    area.draw(&PathElement::<Place>::new(line, code(trace.look, Role::Line).stroke_width(4)))?;
    draw_marker(area, trace.look, ((left + right) / 2, y))?;
    let style: TextStyle<'_> = ("sans-serif", FONT, &INK).into_text_style(area);
    area.draw_text(&shortened(trace.name), &style.pos(Pos::new(HPos::Left, VPos::Center)), (right + 18, y))
}

/// Names are as long as users like them; the table under the picture has them whole.
fn shortened(name: &str) -> String {
    let name: String = name.chars().map(printable).collect();
    let end = name.char_indices().nth(LONGEST).map(|(end, _)| end);
    end.map_or_else(|| name.clone(), |end| format!("{}…", &name[..end]))
}

/// The drawing with the page's classes instead of code colours, a size that follows the page, a title and a description.
fn dressed(drawing: &str, curve: &Curve, traces: &[Trace<'_>], id: &str) -> String {
    // plotters' own first tag has a fixed size
    let mut body = drawing.split_once('>').map_or("", |(_, body)| body).to_owned();
    let mut paint = |attribute: &str, colour: RGBColor, class: &str, real: &str, more: &str| {
        let coded = format!("{attribute}=\"#{:02X}{:02X}{:02X}\"", colour.0, colour.1, colour.2);
        body = body.replace(&coded, &format!("class=\"{class}\" {attribute}=\"{real}\"{more}"));
    };
    paint("fill", INK, "ink", "#1b1b1b", "");
    paint("stroke", AXIS, "axis", "#595959", "");
    paint("stroke", GRID, "grid", "#d5d5d0", "");
    for (look, colour) in COLOURS.into_iter().enumerate() {
        let (line, fill) = (format!("line-{look}"), format!("fill-{look}"));
        let dashes = format!(" stroke-dasharray=\"{}\"", DASHES[look]);
        let dashes = if DASHES[look].is_empty() { "" } else { dashes.as_str() };
        paint("stroke", code(look, Role::Line), &line, colour, dashes);
        paint("stroke", code(look, Role::Whisker), &line, colour, "");
        paint("fill", code(look, Role::Marker), &fill, colour, "");
    }
    let (title, text) = (escaped(&curve.title), escaped(description(traces)));
    format!(
        "<svg role=\"img\" aria-labelledby=\"{id}-title {id}-text\" viewBox=\"0 0 {WIDTH} {}\">\
         <title id=\"{id}-title\">{title}</title><desc id=\"{id}-text\">{text}</desc>{body}",
        height(traces)
    )
}

/// What the picture shows, for those who do not see it.
fn description(traces: &[Trace<'_>]) -> String {
    let lines = traces.iter().map(|trace| {
        let points =
            trace.points.iter().map(|(x, value)| format!("{} at {}", words::proportion(*value), number(*x)));
        format!("{}: {}.", trace.name, points.collect::<Vec<_>>().join("; "))
    });
    lines.collect::<Vec<_>>().join(" ")
}

/// An axis that has its ticks where the figures are.
struct Axis {
    title: String,
    low: f64,
    high: f64,
    ticks: Vec<(f64, String)>,
    logarithmic: bool,
}

impl Axis {
    /// From 0 to 100, for percent.
    fn percent() -> Self {
        let ticks = (0..=5).map(|step| (f64::from(20 * step), String::new())).collect();
        Self { title: String::new(), low: 0.0, high: 100.0, ticks, logarithmic: false }
    }

    /// The axis for the points of `traces`; none if there are none.
    fn across(curve: &Curve, traces: &[Trace<'_>]) -> Option<Self> {
        let mut values: Vec<f64> =
            traces.iter().flat_map(|trace| trace.points.iter().map(|(x, _)| *x)).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        let (&low, &high) = (values.first()?, values.last()?);
        // doublings of iterations or step sizes are equally far from each other
        let logarithmic = curve.part != Part::Budgets && low > 0.0 && high > 8.0 * low;
        let levels = values.iter().all(|value| (255.0 * value - (255.0 * value).round()).abs() < 1e-6);
        let levels = levels && curve.axis.contains("Linf");
        let title = if levels { format!("{} × 255", curve.axis) } else { curve.axis.clone() };
        let mut axis =
            Self { title: title.chars().map(printable).collect(), low, high, ticks: Vec::new(), logarithmic };
        axis.widen();
        let labelled = |value: f64| (value, number(if levels { 255.0 * value } else { value }));
        axis.ticks = axis.spread(values.into_iter().map(labelled));
        Some(axis)
    }

    /// Leaves room for markers at both ends, and for a single point.
    fn widen(&mut self) {
        if self.logarithmic {
            let step = (self.high / self.low).powf(0.05);
            (self.low, self.high) = (self.low / step, self.high * step);
        } else {
            let step = if self.high > self.low {
                0.05 * (self.high - self.low)
            } else {
                0.5 * self.high.abs() + 1e-3
            };
            (self.low, self.high) = (self.low - step, self.high + step);
        }
    }

    /// Those of the sorted ticks whose labels have room beside each other; the largest is always among them.
    fn spread(&self, ticks: impl DoubleEndedIterator<Item = (f64, String)>) -> Vec<(f64, String)> {
        let mut kept: Vec<(f64, String)> = Vec::new();
        for (value, label) in ticks.rev() {
            let fits = kept.last().is_none_or(|(right, other)| {
                let room = f64::from(WIDTH - BESIDE) * (self.share(*right) - self.share(value));
                room > DIGIT * (1.0 + 0.5 * (label.len() + other.len()) as f64)
            });
            if fits {
                kept.push((value, label));
            }
        }
        kept
    }

    /// Where `value` is, from 0 at the lower to 1 at the upper end.
    fn share(&self, value: f64) -> f64 {
        let scaled = |value: f64| if self.logarithmic { value.ln() } else { value };
        (scaled(value) - scaled(self.low)) / (scaled(self.high) - scaled(self.low))
    }
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        start + (self.share(*value).clamp(0.0, 1.0) * f64::from(end - start)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // light points are finer lines between the ticks
        if hint.weight().allow_light_points() {
            return Vec::new();
        }
        self.ticks.iter().map(|(value, _)| *value).collect()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

fn label(ticks: &[(f64, String)], value: f64) -> String {
    ticks.iter().find(|(tick, _)| *tick == value).map_or_else(String::new, |(_, label)| label.clone())
}
