//! Several runs in one report: what they are called, and which of their rows belong together.

use crate::{ClassLine, Curve, Headline, Line, Proportion, Summary, Threat, Verdict};

/// The runs of a report; the first is the main one.
pub(super) struct Runs<'a>(&'a [Summary]);

/// What each run has for one row of a table, in the order of the runs.
pub(super) type Joined<'a, T> = Vec<Option<&'a T>>;

impl<'a> Runs<'a> {
    pub(super) fn new(summaries: &'a [Summary]) -> Self {
        Self(summaries)
    }

    pub(super) fn all(&self) -> &'a [Summary] {
        self.0
    }

    pub(super) fn several(&self) -> bool {
        self.0.len() > 1
    }

    /// Whether every defence of every run was attacked by those who know it.
    pub(super) fn adaptive(&self) -> bool {
        self.0.iter().all(Summary::adaptive)
    }

    /// `Run A`, `Run B`, ...
    pub(super) fn name(index: usize) -> String {
        match u8::try_from(index) {
            Ok(letter @ 0..26) => format!("Run {}", char::from(b'A' + letter)),
            _ => format!("Run {}", index + 1),
        }
    }

    /// The runs with the names that tell them apart; a single one needs none.
    pub(super) fn named(&self) -> impl Iterator<Item = (Option<String>, &'a Summary)> + use<'a> {
        let several = self.several();
        self.0.iter().enumerate().map(move |(index, summary)| (several.then(|| Self::name(index)), summary))
    }

    /// Threat models under which anybody was attacked, from the attacker who knows least.
    pub(super) fn threats(&self) -> Vec<Threat> {
        let run = |threat: &Threat| {
            self.0.iter().flat_map(|summary| &summary.headlines).any(|line| under(line, *threat).is_some())
        };
        Threat::ALL.into_iter().filter(|threat| *threat != Threat::Clean && run(threat)).collect()
    }

    /// Names of all contenders, each once. Their order decides how curves look.
    pub(super) fn contenders(&self) -> Vec<&'a str> {
        let mut names: Vec<&str> = Vec::new();
        for player in self.0.iter().flat_map(|summary| &summary.header.config.contenders) {
            if !names.contains(&player.name.as_str()) {
                names.push(&player.name);
            }
        }
        names
    }

    /// The headlines of all runs; those of the same contender stand together.
    pub(super) fn headlines(&self) -> Vec<(Option<String>, &'a Headline, &'a Summary)> {
        let all = self.named().flat_map(|(run, summary)| {
            summary.headlines.iter().map(move |line| (run.clone(), line, summary))
        });
        let mut all: Vec<_> = all.collect();
        let order = self.contenders();
        all.sort_by_key(|(_, line, _)| order.iter().position(|name| *name == line.contender));
        all
    }

    pub(super) fn lines(&self) -> Vec<Joined<'a, Line>> {
        self.joined(|summary| summary.lines.as_slice(), |line| line.key.as_str())
    }

    pub(super) fn curves(&self) -> Vec<Joined<'a, Curve>> {
        self.joined(|summary| summary.curves.as_slice(), |curve| (curve.title.as_str(), curve.axis.as_str()))
    }

    pub(super) fn classes(&self) -> Vec<Joined<'a, ClassLine>> {
        self.joined(|summary| summary.classes.as_slice(), |line| line.class.as_str())
    }

    pub(super) fn verdicts(&self) -> Vec<Joined<'a, Verdict>> {
        self.joined(|summary| summary.verdicts.as_slice(), |verdict| verdict.name.as_str())
    }

    /// One row for each key, in the order in which they first appear. What a run has twice gets two rows.
    fn joined<T: 'a, K: PartialEq>(
        &self,
        items: impl Fn(&'a Summary) -> &'a [T],
        key: impl Fn(&'a T) -> K,
    ) -> Vec<Joined<'a, T>> {
        let mut rows: Vec<(K, Joined<'a, T>)> = Vec::new();
        for (run, summary) in self.0.iter().enumerate() {
            for item in items(summary) {
                let own = key(item);
                let place = rows.iter().position(|(other, cells)| *other == own && cells[run].is_none());
                if let Some(place) = place {
                    rows[place].1[run] = Some(item);
                } else {
                    let mut cells: Joined<'a, T> = vec![None; self.0.len()];
                    cells[run] = Some(item);
                    rows.push((own, cells));
                }
            }
        }
        rows.into_iter().map(|(_, cells)| cells).collect()
    }
}

/// How a contender did under a threat model.
pub(super) fn under(headline: &Headline, threat: Threat) -> Option<Proportion> {
    headline.threats.iter().find(|(other, _)| *other == threat).map(|(_, value)| *value)
}

/// The first thing that any run has for a row: what a row is called does not depend on the run.
pub(super) fn first<'a, T>(row: &[Option<&'a T>]) -> Option<&'a T> {
    row.iter().copied().flatten().next()
}

/// Names of a run's contenders, in the order of all cells.
pub(super) fn contenders(summary: &Summary) -> impl Iterator<Item = &str> {
    summary.header.config.contenders.iter().map(|player| player.name.as_str())
}
