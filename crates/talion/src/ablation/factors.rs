//! What can be varied of a restoration network, one thing at a time.

use std::{fmt, str::FromStr};

use serde::Serialize;
use talion_attacks::Sees;
use talion_core::{Error, Norm, Result};
use talion_defenses::{
    EstimatorSpec, Fusion, Normalization, TrnSpec,
    training::{Ingredient, LossWeights, Mixture, TrnTraining},
};

/// One thing that is varied while all else stays as in the base.
///
/// What is varied of the losses, of the mixture and of the size is varied of the whole defence, its first pass included, as
/// one would train it; the first pass has nothing of the other factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Factor {
    /// Where gradient maps come from.
    Estimator,
    /// How many of the most likely labels get a map.
    Maps,
    /// How often an image is restored before the label of its map is read.
    Refinement,
    /// How maps are brought to a common scale.
    Normalization,
    /// How the streams are joined.
    Fusion,
    /// At which scales the streams are joined.
    Scales,
    /// What a restored image is punished for.
    Losses,
    /// What the network is shown.
    Mixture,
    /// How wide the network is.
    Size,
}

/// One value of a factor.
#[derive(Clone, Debug)]
pub struct Level {
    /// Its name in the factor's table.
    pub name: String,
    /// The training that it stands for; the seed is the base's.
    pub training: TrnTraining,
}

/// The name of the base where it is none of a factor's own levels.
pub const BASE: &str = "base";

/// Budgets up to this are weak: images attacked with them look clean.
const WEAK: f64 = 4.0 / 255.0;

impl Factor {
    /// All factors, in the order of the tables.
    pub const ALL: [Self; 9] = [
        Self::Estimator,
        Self::Maps,
        Self::Refinement,
        Self::Normalization,
        Self::Fusion,
        Self::Scales,
        Self::Losses,
        Self::Mixture,
        Self::Size,
    ];

    /// The levels of this factor around `base`. A level that is the same as one before it is left out (a mixture without
    /// noise has no level without noise); the base itself comes first where it is none of the levels.
    ///
    /// # Errors
    /// If a level cannot be built from the base.
    pub fn levels(self, base: &TrnTraining) -> Result<Vec<Level>> {
        let all = match self {
            Self::Estimator => {
                let names = ["none", "restoration", "predicted", "top3", "coarse1", "walk-back", "learned"];
                estimators(base, &names)?
            }
            Self::Maps => estimators(base, &["top1", "top3", "top10"])?,
            Self::Refinement => estimators(base, &["coarse1", "coarse2", "coarse3"])?,
            Self::Normalization => normalizations(base),
            Self::Fusion => fusions(base),
            Self::Scales => scales(base)?,
            Self::Losses => losses(base),
            Self::Mixture => mixtures(base)?,
            Self::Size => sizes(base)?,
        };
        let mut levels: Vec<Level> = Vec::new();
        for level in all {
            if levels.iter().all(|other| other.training != level.training) {
                levels.push(level);
            }
        }
        if levels.iter().all(|level| level.training != *base) {
            levels.insert(0, Level { name: BASE.to_owned(), training: base.clone() });
        }
        Ok(levels)
    }
}

impl fmt::Display for Factor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Estimator => "estimator",
            Self::Maps => "maps",
            Self::Refinement => "refinement",
            Self::Normalization => "normalization",
            Self::Fusion => "fusion",
            Self::Scales => "scales",
            Self::Losses => "losses",
            Self::Mixture => "mixture",
            Self::Size => "size",
        })
    }
}

impl FromStr for Factor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|factor| factor.to_string() == text).ok_or_else(|| {
            let known: Vec<String> = Self::ALL.iter().map(ToString::to_string).collect();
            let known = format!("{}, or all", known.join(", "));
            Error::Unknown { what: "factor", found: text.into(), known }
        })
    }
}

/// Factors as they are asked for: `estimator,fusion`, or `all`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Factors(pub Vec<Factor>);

impl FromStr for Factors {
    type Err = Error;

    /// Each is taken once, in the order of its first mention.
    fn from_str(text: &str) -> Result<Self> {
        if text.trim() == "all" {
            return Ok(Self(Factor::ALL.to_vec()));
        }
        let mut factors = Vec::new();
        for name in text.split(',') {
            let factor = name.trim().parse()?;
            if !factors.contains(&factor) {
                factors.push(factor);
            }
        }
        Ok(Self(factors))
    }
}

fn with_spec(name: impl Into<String>, spec: TrnSpec, base: &TrnTraining) -> Level {
    Level { name: name.into(), training: TrnTraining { spec, ..base.clone() } }
}

fn estimators(base: &TrnTraining, names: &[&str]) -> Result<Vec<Level>> {
    let mut levels = Vec::new();
    for &name in names {
        let estimator: EstimatorSpec = name.parse()?;
        let one_stream = TrnSpec { estimator: EstimatorSpec::None, first: None, ..base.spec.clone() };
        levels.push(with_spec(name, one_stream.with_estimator(estimator), base));
    }
    Ok(levels)
}

fn normalizations(base: &TrnTraining) -> Vec<Level> {
    let level = |normalization: Normalization| {
        let spec = TrnSpec { normalization, ..base.spec.clone() };
        with_spec(normalization.to_string(), spec, base)
    };
    Normalization::ALL.into_iter().map(level).collect()
}

fn fusions(base: &TrnTraining) -> Vec<Level> {
    let level = |fusion: Fusion| {
        let spec = TrnSpec { fusion, ..base.spec.clone() };
        with_spec(fusion.to_string(), spec, base)
    };
    Fusion::ALL.into_iter().map(level).collect()
}

fn scales(base: &TrnTraining) -> Result<Vec<Level>> {
    let mut levels = Vec::new();
    for name in ["all", "coarsest", "finest"] {
        let spec = TrnSpec { fused: name.parse()?, ..base.spec.clone() };
        levels.push(with_spec(name, spec, base));
    }
    Ok(levels)
}

/// All losses, and all but one. What teaches the gate goes together with the gate, which would stay untaught.
fn losses(base: &TrnTraining) -> Vec<Level> {
    let all = base.losses;
    let level = |name: &str, losses: LossWeights| Level {
        name: name.to_owned(),
        training: TrnTraining { losses, ..base.clone() },
    };
    let mut levels = vec![
        level("all", all),
        level("no pixel", LossWeights { pixel: 0.0, ..all }),
        level("no divergence", LossWeights { logit: 0.0, ..all }),
        level("no classification", LossWeights { classification: 0.0, ..all }),
    ];
    let mut ungated = level("no detection, no gate", LossWeights { detection: 0.0, ..all });
    let spec = &mut ungated.training.spec;
    spec.gate = false;
    spec.first.iter_mut().for_each(|first| first.gate = false);
    levels.push(ungated);
    levels
}

/// The base's mixture, and the same without some of its parts. Clean images stay in all of them.
fn mixtures(base: &TrnTraining) -> Result<Vec<Level>> {
    let noise = |part: &Ingredient| {
        let entry = part.attack.as_ref().and_then(|(attack, _)| attack.entry());
        entry.is_some_and(|entry| entry.sees == Sees::Nothing)
    };
    let one_step =
        |part: &Ingredient| part.attack.as_ref().is_some_and(|(attack, _)| attack.steps() == Some(1));
    let weak = |part: &Ingredient| {
        let budget = part.attack.as_ref().map(|(_, budget)| budget);
        budget.is_some_and(|budget| budget.norm() == Norm::Linf && budget.epsilon() <= WEAK + 1e-9)
    };
    type Keeps<'a> = &'a dyn Fn(&Ingredient) -> bool;
    let without: [(&str, Keeps<'_>); 3] =
        [("without noise", &noise), ("without one-step", &one_step), ("without budgets to 4/255", &weak)];
    let level = |name: &str, mixture: Mixture| Level {
        name: name.to_owned(),
        training: TrnTraining { mixture, ..base.clone() },
    };
    let mut levels = vec![level("default", base.mixture.clone())];
    for (name, dropped) in without {
        if let Some(mixture) = less(&base.mixture, dropped)? {
            levels.push(level(name, mixture));
        }
    }
    Ok(levels)
}

/// The mixture without the parts that are `dropped`; `None` if nothing is left.
fn less(mixture: &Mixture, dropped: &dyn Fn(&Ingredient) -> bool) -> Result<Option<Mixture>> {
    let text = mixture.to_string();
    // the text has one part for each ingredient, in their order
    let parts = text.split(',').zip(mixture.ingredients());
    let kept: Vec<&str> = parts.filter(|(_, part)| !dropped(part)).map(|(text, _)| text).collect();
    if kept.is_empty() {
        return Ok(None);
    }
    kept.join(",").parse().map(Some)
}

fn sizes(base: &TrnTraining) -> Result<Vec<Level>> {
    let mut levels = Vec::new();
    for size in ["tiny", "small", "base"] {
        let width = TrnSpec::one_stream(size, base.spec.channels)?.width;
        let mut spec = TrnSpec { width, ..base.spec.clone() };
        spec.first.iter_mut().for_each(|first| first.width = width);
        levels.push(with_spec(format!("{size}, {width} channels"), spec, base));
    }
    Ok(levels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ablation::tests::base;

    fn level(factor: Factor, name: &str) -> TrnTraining {
        let levels = factor.levels(&base()).unwrap();
        let found = levels.iter().find(|level| level.name == name);
        found.unwrap_or_else(|| panic!("{factor} has no level {name}")).training.clone()
    }

    #[test]
    fn factors_are_read_and_unknown_ones_are_told_the_known() {
        for factor in Factor::ALL {
            assert_eq!(factor.to_string().parse::<Factor>().unwrap(), factor);
        }
        assert_eq!("all".parse::<Factors>().unwrap().0, Factor::ALL);
        let twice: Factors = "size, fusion,size".parse().unwrap();
        assert_eq!(twice.0, [Factor::Size, Factor::Fusion]);
        for wrong in ["", "fusion,", "widths", "fusion,all"] {
            let error = wrong.parse::<Factors>().unwrap_err().to_string();
            assert!(error.contains("estimator, maps, refinement"), "{wrong}: {error}");
        }
    }

    #[test]
    fn every_factor_has_the_base_once_and_only_networks_that_can_be_trained() {
        let base = base();
        for factor in Factor::ALL {
            let levels = factor.levels(&base).unwrap();
            let same = levels.iter().filter(|level| level.training == base).count();
            assert_eq!(same, 1, "{factor}");
            assert!(levels.len() > 2, "{factor}");
            for level in levels {
                level.training.validate().unwrap_or_else(|error| panic!("{factor}, {}: {error}", level.name));
            }
        }
        let maps = Factor::Maps.levels(&base).unwrap();
        assert_eq!(maps[0].name, BASE);
    }

    #[test]
    fn a_level_changes_one_thing() {
        let base = base();
        let sign = level(Factor::Normalization, "sign");
        assert_eq!(sign.spec.normalization, Normalization::Sign);
        let undone = TrnSpec { normalization: base.spec.normalization, ..sign.spec.clone() };
        assert_eq!(TrnTraining { spec: undone, ..sign }, base);

        let plain = level(Factor::Losses, "no divergence");
        assert_eq!(plain.losses, LossWeights { logit: 0.0, ..base.losses });
        assert_eq!(TrnTraining { losses: base.losses, ..plain }, base);
    }

    #[test]
    fn the_first_pass_goes_with_gate_and_size_and_not_with_the_estimator() {
        let first = |training: &TrnTraining| training.spec.first.as_deref().cloned();
        let ungated = level(Factor::Losses, "no detection, no gate");
        assert!(!ungated.spec.gate && !first(&ungated).unwrap().gate);
        let wide = level(Factor::Size, "base, 32 channels");
        assert_eq!((wide.spec.width, first(&wide).unwrap().width), (32, 32));
        assert_eq!(first(&level(Factor::Estimator, "coarse1")), first(&base()));
        assert_eq!(first(&level(Factor::Estimator, "predicted")), None);
        assert_eq!(level(Factor::Estimator, "none").spec, first(&base()).unwrap());
    }

    #[test]
    fn mixtures_lose_what_they_are_said_to_lose() {
        let default = base().mixture;
        let left = |name: &str| level(Factor::Mixture, name).mixture.to_string();
        assert!(!left("without noise").contains("noise") && left("without noise").contains("fgsm"));
        assert!(!left("without one-step").contains("fgsm") && left("without one-step").contains("noise"));
        let strong = level(Factor::Mixture, "without budgets to 4/255").mixture;
        let mut attacks = strong.ingredients().iter().filter_map(|part| part.attack.as_ref());
        assert!(attacks.all(|(_, budget)| budget.epsilon() > 0.02));
        // of the default's 13 parts, noise and PGD-7 at 4/255 and PGD-7 at 2/255 are weak
        assert_eq!((default.ingredients().len(), strong.ingredients().len()), (13, 10));
    }

    #[test]
    fn what_changes_nothing_or_leaves_nothing_is_no_level() {
        let names = |mixture: &str| {
            let base = TrnTraining { mixture: mixture.parse().unwrap(), ..base() };
            let levels = Factor::Mixture.levels(&base).unwrap();
            levels.into_iter().map(|level| level.name).collect::<Vec<_>>()
        };
        assert_eq!(names("clean,pgd-7@8/255"), ["default"]);
        assert_eq!(names("noise@8/255"), ["default"]);
        assert_eq!(names("clean,fgsm@8/255"), ["default", "without one-step"]);
    }
}
