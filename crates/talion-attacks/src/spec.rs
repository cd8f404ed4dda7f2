//! Attacks by name.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use talion_core::{Error, Result, parse_fraction};

use crate::{
    Attack, Attempt, Batch, Conditions, Passes,
    catalogue::{CATALOGUE, Entry},
};

/// An attack with all its settings, as a value that has a name.
///
/// The name is `KIND[-STEPS[xRESTARTS]][:SETTING[=VALUE]]...`, such as `fgsm`, `bim-20`, `pgd-100x5`,
/// `mim-20:decay=0.9`, `pgd-7:step=2/255`, `apgd-ce-100:faithful`. It holds every setting, so two attacks of the same name
/// are the same attack; settings left out have their defaults. As JSON the value is its name. [`CATALOGUE`] has all kinds.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AttackSpec(Arc<dyn Attack + Send + Sync>);

impl AttackSpec {
    /// Examples of names, a line of help.
    pub const EXAMPLES: &'static str = "fgsm, bim-20, pgd-20, pgd-100x5 (5 restarts), pgd-7:step=2/255, mim-20, apgd-ce-100, \
        apgd-t-100, fab-t-100, square-5000, cw-1000, noise (`talion attacks` lists all)";

    /// An attack as a value; its name has to parse back to the same attack.
    pub fn new(attack: impl Attack + Send + Sync + 'static) -> Self {
        Self(Arc::new(attack))
    }

    /// Steps of one start; `fgsm`, which has no number in its name, has one. `None` where steps are not what is counted.
    pub fn steps(&self) -> Option<u32> {
        let name = self.name();
        let settings = Settings::split(&name)?;
        settings.steps.or_else(|| (settings.kind == "fgsm").then_some(1))
    }

    /// The name less the number of steps: two attacks that agree here differ in that number at most.
    pub fn without_steps(&self) -> String {
        let name = self.name();
        let head = name.split(':').next().unwrap_or_default();
        let kind = Settings::split(&name).map_or("", |settings| settings.kind);
        let restarts =
            head.strip_prefix(kind).and_then(|counts| counts.split_once('x')).map_or("", |(_, x)| x);
        format!("{kind}x{restarts}{}", name.strip_prefix(head).unwrap_or_default())
    }

    /// What the catalogue says of this kind of attack.
    pub fn entry(&self) -> Option<&'static Entry> {
        entry_of(&self.name())
    }
}

/// What the catalogue says of an attack with this name.
pub(crate) fn entry_of(name: &str) -> Option<&'static Entry> {
    let kind = Settings::split(name)?.kind;
    CATALOGUE.iter().find(|entry| entry.kind == kind)
}

impl PartialEq for AttackSpec {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Attack for AttackSpec {
    fn name(&self) -> String {
        self.0.name()
    }

    fn cost(&self) -> Passes {
        self.0.cost()
    }

    fn restarts(&self, classes: i64) -> u64 {
        self.0.restarts(classes)
    }

    fn adjustment(&self, classes: i64) -> Option<String> {
        self.0.adjustment(classes)
    }

    fn wants_logits(&self) -> bool {
        self.0.wants_logits()
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        self.0.begin(batch, conditions)
    }
}

impl fmt::Display for AttackSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl fmt::Debug for AttackSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AttackSpec({self})")
    }
}

impl From<AttackSpec> for String {
    fn from(spec: AttackSpec) -> Self {
        spec.name()
    }
}

impl TryFrom<String> for AttackSpec {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl FromStr for AttackSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || Error::Unknown { what: "attack", found: text.into(), known: Self::EXAMPLES.into() };
        let mut settings = Settings::split(text).ok_or_else(unknown)?;
        let entry = CATALOGUE.iter().find(|entry| entry.kind == settings.kind).ok_or_else(unknown)?;
        let attack = (entry.build)(&mut settings).ok_or_else(unknown)?;
        // what no attack has taken means nothing
        if settings.is_used_up() { Ok(Self(attack)) } else { Err(unknown()) }
    }
}

/// The parts of a name; a part is taken out when it is used, so that what is left over is an error.
#[derive(Default)]
pub(crate) struct Settings<'a> {
    kind: &'a str,
    steps: Option<u32>,
    restarts: Option<u32>,
    others: Vec<(&'a str, Option<&'a str>)>,
    /// Whether a setting that was asked for had a value that it cannot have.
    wrong: bool,
}

impl<'a> Settings<'a> {
    fn split(text: &'a str) -> Option<Self> {
        let mut parts = text.split(':');
        let head = parts.next()?;
        let mut settings = Self { kind: head, ..Self::default() };
        // the counts are what follows the last dash, unless that is a part of the kind, such as `apgd-ce`
        if let Some((kind, counts)) = head.rsplit_once('-')
            && counts.starts_with(|first: char| first.is_ascii_digit() || first == '+')
        {
            settings.kind = kind;
            let (steps, restarts) = counts.split_once('x').map_or((counts, None), |(s, r)| (s, Some(r)));
            settings.steps = Some(count(steps)?);
            settings.restarts = restarts.map(count).map_or(Some(None), |count| count.map(Some))?;
        }
        for part in parts {
            let (key, value) = part.split_once('=').map_or((part, None), |(key, value)| (key, Some(value)));
            if settings.others.iter().any(|(other, _)| *other == key) {
                return None;
            }
            settings.others.push((key, value));
        }
        Some(settings)
    }

    /// Takes the number of steps.
    pub(crate) fn steps(&mut self, default: u32) -> u32 {
        self.steps.take().unwrap_or(default)
    }

    /// Takes the number of restarts.
    pub(crate) fn restarts(&mut self, default: u32) -> u32 {
        self.restarts.take().unwrap_or(default)
    }

    /// Takes a number, at least 0.
    pub(crate) fn number(&mut self, key: &str) -> Option<f64> {
        let value = self.take(key)?;
        let number = value.and_then(|value| parse_fraction(value).ok()).filter(|&value| value >= 0.0);
        self.wrong |= number.is_none();
        number
    }

    /// Takes a whole number.
    pub(crate) fn count(&mut self, key: &str, default: u32) -> u32 {
        let Some(value) = self.take(key) else { return default };
        let found = value.and_then(count);
        self.wrong |= found.is_none();
        found.unwrap_or(default)
    }

    /// Takes a setting that is there or not.
    pub(crate) fn flag(&mut self, key: &str) -> bool {
        let found = self.take(key);
        self.wrong |= found.is_some_and(|value| value.is_some());
        found.is_some()
    }

    fn take(&mut self, key: &str) -> Option<Option<&'a str>> {
        let place = self.others.iter().position(|(other, _)| *other == key)?;
        Some(self.others.swap_remove(place).1)
    }

    fn is_used_up(&self) -> bool {
        !self.wrong && self.steps.or(self.restarts).is_none() && self.others.is_empty()
    }
}

fn count(text: &str) -> Option<u32> {
    // `parse` alone would take a plus sign, which no name has
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?.filter(|&count| count > 0)
}

/// The part of a name that holds a setting, empty where it has its default.
pub(crate) fn suffix(key: &str, value: Option<f64>) -> String {
    value.map(|value| format!(":{key}={value}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Mim, Pgd};
    use proptest::prelude::*;

    #[test]
    fn names_give_the_settings_they_say() {
        let parse = |text: &str| text.parse::<AttackSpec>().unwrap();
        assert_eq!(parse("pgd"), AttackSpec::new(Pgd::default()));
        assert_eq!(parse("pgd-100x5"), AttackSpec::new(Pgd { steps: 100, restarts: 5, step: None }));
        let step = Some(2.0 / 255.0);
        assert_eq!(parse("pgd-7:step=2/255"), AttackSpec::new(Pgd { steps: 7, restarts: 1, step }));
        let mim = Mim { steps: 20, decay: 0.9, step: None };
        assert_eq!(parse("mim-20:decay=0.9"), AttackSpec::new(mim));
        assert_ne!(parse("mim-20:decay=0.9"), parse("mim-20"));
    }

    #[test]
    fn every_kind_has_a_default_whose_name_parses_back() {
        for entry in CATALOGUE {
            let attack: AttackSpec = entry.kind.parse().unwrap();
            assert!(attack.to_string().starts_with(entry.kind), "{attack}");
            assert_eq!(attack.to_string().parse::<AttackSpec>().unwrap(), attack);
            let json = serde_json::to_string(&attack).unwrap();
            assert_eq!(serde_json::from_str::<AttackSpec>(&json).unwrap(), attack);
            assert_eq!(CATALOGUE.iter().filter(|other| other.kind == entry.kind).count(), 1);
        }
    }

    #[test]
    fn names_keep_what_was_set() {
        let names = [
            "fgsm",
            "noise",
            "bim-20",
            "pgd-20",
            "pgd-100x5",
            "mim-20",
            "mim-20:decay=0.9:step=0.5",
            "ni-fgsm-5",
            "si-ni-fgsm-5:copies=3",
            "vmi-fgsm-5:neighbours=2:radius=1",
            "di-fgsm-5:probability=1:smallest=0.8",
            "ti-fgsm-5:kernel=5",
            "eot-pgd-10x2:draws=3",
            "spsa-5:pairs=8:delta=0.02:step=0.1",
        ];
        for name in names {
            assert_eq!(name.parse::<AttackSpec>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn names_with_parts_that_mean_nothing_are_errors() {
        let wrong = [
            "",
            "clean",
            "pgd-",
            "pgd-0",
            "pgd-20x0",
            "pgd-20x",
            "pgd--3",
            "pgd-+3",
            "PGD",
            "fgsm-2",
            "noise-1",
            "bim-20x2",
            "mim-3x2",
            "bim:decay=1",
            "fgsm:step=1",
            "pgd:step=-1",
            "pgd:step=nan",
            "pgd:step",
            "pgd:size=1",
            "pgd:step=1:step=2",
            "pgd-20 ",
            "pgd-99999999999",
            "apgd-100",
            "apgd-ce:faithful=1",
            "apgd-ce:targets=5",
            "square:p",
            "-5",
            "apgd-ce-",
        ];
        for name in wrong {
            let error = name.parse::<AttackSpec>().expect_err(name).to_string();
            assert!(error.contains("pgd-20"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn counts_and_settings_round_trip(
            steps in 1..5000_u32, restarts in 1..50_u32, step in proptest::option::of(0.0..1.0_f64),
        ) {
            let spec = AttackSpec::new(Pgd { steps, restarts, step });
            prop_assert_eq!(spec.to_string().parse::<AttackSpec>().unwrap(), spec);
        }

        #[test]
        fn no_text_panics(text in ".{0,30}") {
            let _ = text.parse::<AttackSpec>();
        }

        #[test]
        fn no_text_like_a_name_panics(text in "(pgd|apgd-t|cw|square|x)?-?[0-9]{0,11}x?[0-9]{0,3}(:[a-z]{1,8}(=[0-9./-]{0,5})?){0,3}") {
            if let Ok(attack) = text.parse::<AttackSpec>() {
                prop_assert_eq!(attack.to_string().parse::<AttackSpec>().unwrap(), attack);
            }
        }
    }
}
