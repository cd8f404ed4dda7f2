//! Figures in words, the same in every output.

use crate::{Finding, Proportion};

/// What stands where a contender was not measured.
pub(super) const NOTHING: &str = "–";

/// `93.8 (91.2-95.6)`.
pub(super) fn proportion(value: Proportion) -> String {
    if value.total == 0 { "no samples".into() } else { value.to_string() }
}

/// `+1.4`, with a true minus sign where it is negative.
pub(super) fn points(difference: f64) -> String {
    let text = format!("{difference:+.1}");
    // a difference that rounds to nothing has no sign
    if text == "-0.0" { "0.0".into() } else { text.replace("+0.0", "0.0").replace('-', "\u{2212}") }
}

/// `p = 0.031`, `p = 3e-8`.
pub(super) fn p_value(p: f64) -> String {
    match p {
        p if p >= 0.001 => format!("p = {p:.3}"),
        p if p > 0.0 => format!("p = {p:.0e}"),
        _ => "p < 1e-300".into(),
    }
}

/// How a contender did compared with the first one: `+65.3, p = 3e-8`.
pub(super) fn versus(difference: Option<f64>, mcnemar: Option<f64>) -> Option<String> {
    match (difference, mcnemar) {
        (Some(difference), Some(p)) => Some(format!("{}, {}", points(difference), p_value(p))),
        (Some(difference), None) => Some(points(difference)),
        (None, p) => p.map(p_value),
    }
}

/// A number with about three significant digits, without zeros at its end.
pub(super) fn number(value: f64) -> String {
    if !value.is_finite() {
        return NOTHING.into();
    }
    let size = if value == 0.0 { 0.0 } else { value.abs().log10().floor() };
    let decimals = (2.0 - size).clamp(0.0, 9.0) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
}

/// Forward and backward passes a sample: `200 + 200`.
pub(super) fn passes(forward: f64, backward: f64) -> String {
    format!("{} + {}", number(forward), number(backward))
}

/// `12.3 s`, `4.5 min`, `2.1 h`.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// `2025-11-23 01:05 UTC`, from seconds since 1970.
pub(super) fn moment(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // the calendar repeats itself every 400 years, which are 146,097 days
    let (mut year, mut day) = (1970 + 400 * (days / 146_097), days % 146_097);
    while day >= days_of_year(year) {
        day -= days_of_year(year);
        year += 1;
    }
    let mut month = 1;
    while day >= days_of_month(year, month) {
        day -= days_of_month(year, month);
        month += 1;
    }
    format!("{year}-{month:02}-{:02} {:02}:{:02} UTC", day + 1, rest / 3600, rest / 60 % 60)
}

fn days_of_year(year: u64) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    if leap { 366 } else { 365 }
}

fn days_of_month(year: u64, month: u64) -> u64 {
    match month {
        2 => days_of_year(year) - 337,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// A command line that a shell reads as these words.
pub(super) fn command(words: &[String]) -> String {
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A verdict's sign and word.
pub(super) fn finding(finding: Finding) -> (&'static str, &'static str) {
    match finding {
        Finding::Pass => ("✓", "pass"),
        Finding::Fail => ("✗", "fail"),
        Finding::NotRun => ("–", "not run"),
    }
}

/// The same for the class that a classifier sees.
pub(super) fn rightness(right: bool) -> (&'static str, &'static str) {
    if right { ("✓", "right") } else { ("✗", "WRONG") }
}

/// What the column of all adaptive attacks means; threat models explain themselves.
pub(super) const ADAPTIVE: &str = "all attackers who know the whole contender, taken together: a sample counts where it \
    survives every one of them";

/// What the column of all attacks means.
pub(super) fn worst(adaptive: bool) -> &'static str {
    if adaptive {
        "everything that was run at the headline budget, taken together; the number to believe"
    } else {
        "everything that was run at the headline budget, taken together; not the worst that can happen, because nobody who \
         knows every defence attacked"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_match_the_calendar() {
        assert_eq!(moment(0), "1970-01-01 00:00 UTC");
        assert_eq!(moment(951_825_599), "2000-02-29 11:59 UTC");
        assert_eq!(moment(1_763_859_900), "2025-11-23 01:05 UTC");
        assert_eq!(moment(4_107_542_400), "2100-03-01 00:00 UTC");
        assert!(moment(u64::MAX).ends_with("UTC"));
    }

    #[test]
    fn numbers_have_three_digits_at_most() {
        let cases =
            [(0.0, "0"), (0.5, "0.5"), (0.03137, "0.0314"), (20.0, "20"), (20.04, "20"), (1234.4, "1234")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
        assert_eq!(number(f64::NAN), NOTHING);
    }

    #[test]
    fn differences_have_a_sign_where_they_are_one() {
        assert_eq!((points(65.31), points(-1.44)), ("+65.3".into(), "\u{2212}1.4".into()));
        assert_eq!((points(-0.01), points(0.0)), ("0.0".into(), "0.0".into()));
        assert_eq!(
            (p_value(3.4e-8), p_value(0.0312), p_value(0.0)),
            ("p = 3e-8".into(), "p = 0.031".into(), "p < 1e-300".into())
        );
    }

    #[test]
    fn a_shell_reads_commands_back() {
        let words = ["talion", "report", "it's here", "", "a=b", "$HOME"].map(String::from);
        assert_eq!(command(&words), r"talion report 'it'\''s here' '' a=b '$HOME'");
    }
}
