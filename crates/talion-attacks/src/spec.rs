//! Attacks by name.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use talion_core::{Error, Result, parse_fraction};

use crate::{Attack, Attempt, Batch, Bim, Conditions, Fgsm, Mim, Noise, Passes, Pgd};

/// An attack with all its settings, as a value that has a name.
///
/// The name is `KIND[-STEPS[xRESTARTS]][:SETTING=VALUE]...`, such as `fgsm`, `bim-20`, `pgd-100x5`, `mim-20:decay=0.9`,
/// `pgd-7:step=2/255`. It holds every setting, so two attacks of the same name are the same attack; settings left out
/// have their defaults. As JSON the value is its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AttackSpec {
    /// See [`Fgsm`].
    Fgsm(Fgsm),
    /// See [`Bim`].
    Bim(Bim),
    /// See [`Pgd`].
    Pgd(Pgd),
    /// See [`Mim`].
    Mim(Mim),
    /// See [`Noise`].
    Noise(Noise),
}

impl AttackSpec {
    /// Examples of names, a line of help.
    pub const EXAMPLES: &'static str =
        "fgsm, bim-20, pgd-20, pgd-100x5 (5 restarts), pgd-7:step=2/255, mim-20, mim-20:decay=0.9, noise";

    fn attack(&self) -> &dyn Attack {
        match self {
            Self::Fgsm(attack) => attack,
            Self::Bim(attack) => attack,
            Self::Pgd(attack) => attack,
            Self::Mim(attack) => attack,
            Self::Noise(attack) => attack,
        }
    }
}

impl Attack for AttackSpec {
    fn name(&self) -> String {
        self.attack().name()
    }

    fn cost(&self) -> Passes {
        self.attack().cost()
    }

    fn restarts(&self, classes: i64) -> u64 {
        self.attack().restarts(classes)
    }

    fn adjustment(&self, classes: i64) -> Option<String> {
        self.attack().adjustment(classes)
    }

    fn wants_logits(&self) -> bool {
        self.attack().wants_logits()
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        self.attack().begin(batch, conditions)
    }
}

impl fmt::Display for AttackSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
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
        Parts::split(text).and_then(Parts::build).ok_or_else(|| Error::Unknown {
            what: "attack",
            found: text.into(),
            known: Self::EXAMPLES.into(),
        })
    }
}

/// The parts of a name; a part is taken out when it is used, so that what is left over is an error.
#[derive(Default)]
struct Parts<'a> {
    kind: &'a str,
    steps: Option<u32>,
    restarts: Option<u32>,
    step: Option<f64>,
    decay: Option<f64>,
}

impl<'a> Parts<'a> {
    fn split(text: &'a str) -> Option<Self> {
        let mut settings = text.split(':');
        let head = settings.next()?;
        let mut parts = Self { kind: head, ..Self::default() };
        if let Some((kind, counts)) = head.split_once('-') {
            parts.kind = kind;
            let (steps, restarts) = counts.split_once('x').map_or((counts, None), |(s, r)| (s, Some(r)));
            parts.steps = Some(count(steps)?);
            parts.restarts = restarts.map(count).map_or(Some(None), |count| count.map(Some))?;
        }
        for setting in settings {
            let (key, value) = setting.split_once('=')?;
            let slot = match key {
                "step" => &mut parts.step,
                "decay" => &mut parts.decay,
                _ => return None,
            };
            let value = parse_fraction(value).ok().filter(|&value| value >= 0.0)?;
            if slot.replace(value).is_some() {
                return None;
            }
        }
        Some(parts)
    }

    fn build(mut self) -> Option<AttackSpec> {
        let spec = match self.kind {
            "fgsm" => AttackSpec::Fgsm(Fgsm {}),
            "noise" => AttackSpec::Noise(Noise {}),
            "bim" => AttackSpec::Bim(Bim {
                steps: self.steps.take().unwrap_or(Bim::default().steps),
                step: self.step.take(),
            }),
            "pgd" => AttackSpec::Pgd(Pgd {
                steps: self.steps.take().unwrap_or(Pgd::default().steps),
                restarts: self.restarts.take().unwrap_or(Pgd::default().restarts),
                step: self.step.take(),
            }),
            "mim" => AttackSpec::Mim(Mim {
                steps: self.steps.take().unwrap_or(Mim::default().steps),
                decay: self.decay.take().unwrap_or(Mim::default().decay),
                step: self.step.take(),
            }),
            _ => return None,
        };
        let nothing_left = self.steps.or(self.restarts).is_none() && self.step.or(self.decay).is_none();
        nothing_left.then_some(spec)
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
    use proptest::prelude::*;

    #[test]
    fn names_give_the_settings_they_say() {
        let parse = |text: &str| text.parse::<AttackSpec>().unwrap();
        assert_eq!(parse("fgsm"), AttackSpec::Fgsm(Fgsm {}));
        assert_eq!(parse("bim-20"), AttackSpec::Bim(Bim { steps: 20, step: None }));
        assert_eq!(parse("pgd"), AttackSpec::Pgd(Pgd::default()));
        assert_eq!(parse("pgd-100x5"), AttackSpec::Pgd(Pgd { steps: 100, restarts: 5, step: None }));
        let step = Some(2.0 / 255.0);
        assert_eq!(parse("pgd-7:step=2/255"), AttackSpec::Pgd(Pgd { steps: 7, restarts: 1, step }));
        assert_eq!(parse("mim-20:decay=0.9"), AttackSpec::Mim(Mim { steps: 20, decay: 0.9, step: None }));
        for name in ["fgsm", "noise", "bim-20", "pgd-20", "pgd-100x5", "mim-20", "mim-20:decay=0.9:step=0.5"]
        {
            assert_eq!(parse(name).to_string(), name);
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
        ];
        for name in wrong {
            let error = name.parse::<AttackSpec>().expect_err(name).to_string();
            assert!(error.contains("pgd-20"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn every_value_round_trips_through_its_name_and_json(
            kind in 0..5, steps in 1..5000_u32, restarts in 1..50_u32,
            step in proptest::option::of(0.0..1.0_f64), decay in 0.0..2.0_f64
        ) {
            let spec = match kind {
                0 => AttackSpec::Fgsm(Fgsm {}),
                1 => AttackSpec::Bim(Bim { steps, step }),
                2 => AttackSpec::Pgd(Pgd { steps, restarts, step }),
                3 => AttackSpec::Mim(Mim { steps, decay, step }),
                _ => AttackSpec::Noise(Noise {}),
            };
            prop_assert_eq!(&spec.to_string().parse::<AttackSpec>().unwrap(), &spec);
            let json = serde_json::to_string(&spec).unwrap();
            prop_assert_eq!(serde_json::from_str::<AttackSpec>(&json).unwrap(), spec);
        }

        #[test]
        fn no_text_panics(text in ".{0,30}") {
            let _ = text.parse::<AttackSpec>();
        }
    }
}
