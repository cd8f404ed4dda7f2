//! What a network is trained on: clean images and attacks, each with a budget and a weight.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use talion_attacks::AttackSpec;
use talion_core::{Budget, Error, Norm, Result, SampleStream, parse_fraction};

/// One part of a mixture.
#[derive(Clone, Debug, PartialEq)]
pub struct Ingredient {
    /// The attack and its budget; `None` leaves images clean.
    pub attack: Option<(AttackSpec, Budget)>,
    /// Its share of the images, relative to the other weights. Above 0.
    pub weight: f64,
}

/// Parts of a training set, written `clean*2,fgsm@8/255,pgd-7@8/255*3,pgd-10@l2:0.5`: an attack, its budget after `@`
/// (`Linf` unless another norm is named), its weight after `*` (1 unless given).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mixture(Vec<Ingredient>);

impl Mixture {
    /// The parts, at least one.
    pub fn ingredients(&self) -> &[Ingredient] {
        &self.0
    }

    /// Which part falls to sample `id` in `round`: a draw from the sample's own stream.
    pub fn draw(&self, seed: u64, round: u64, id: u64) -> usize {
        let total: f64 = self.0.iter().map(|part| part.weight).sum();
        let mut left = f64::from(SampleStream::new(seed, "mixture", round, id).uniform()) * total;
        for (index, part) in self.0.iter().enumerate() {
            left -= part.weight;
            if left < 0.0 {
                return index;
            }
        }
        self.0.len() - 1
    }
}

impl Default for Mixture {
    /// FGSM and PGD at several budgets, clean images, and noise, which the network has to leave alone. BIM, MIM and long
    /// PGD stay unseen, so that evaluation tells what generalises.
    fn default() -> Self {
        let linf = |name: &str, epsilon: f64, weight: f64| Ingredient {
            attack: name.parse().ok().zip(Budget::new(Norm::Linf, epsilon).ok()),
            weight,
        };
        let clean = Ingredient { attack: None, weight: 4.0 };
        Self(vec![
            clean,
            linf("fgsm", 8.0 / 255.0, 1.5),
            linf("fgsm", 16.0 / 255.0, 1.0),
            linf("fgsm", 0.1, 1.0),
            linf("pgd-7", 2.0 / 255.0, 1.0),
            linf("pgd-7", 4.0 / 255.0, 1.5),
            linf("pgd-7", 8.0 / 255.0, 4.0),
            linf("pgd-7", 16.0 / 255.0, 2.0),
            linf("pgd-7", 0.1, 2.0),
            linf("noise", 4.0 / 255.0, 0.5),
            linf("noise", 8.0 / 255.0, 1.5),
            linf("noise", 16.0 / 255.0, 0.5),
            linf("noise", 0.1, 0.5),
        ])
    }
}

impl fmt::Display for Mixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            match &part.attack {
                None => write!(f, "{comma}clean*{}", part.weight)?,
                Some((attack, budget)) => {
                    let norm = budget.norm().to_string().to_lowercase();
                    write!(f, "{comma}{attack}@{norm}:{}*{}", budget.epsilon(), part.weight)?;
                }
            }
        }
        Ok(())
    }
}

impl FromStr for Mixture {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split(',').map(|part| ingredient(part.trim())).collect::<Result<Vec<_>>>()?;
        Ok(Self(parts))
    }
}

fn ingredient(text: &str) -> Result<Ingredient> {
    let (what, weight) = text.rsplit_once('*').unwrap_or((text, "1"));
    let weight = parse_fraction(weight)?;
    if weight <= 0.0 {
        return Err(Error::range(format!("the weight of `{what}`"), "above 0", weight));
    }
    if what == "clean" {
        return Ok(Ingredient { attack: None, weight });
    }
    let (name, budget) = what.split_once('@').ok_or_else(|| {
        Error::range(
            "a part of the mixture",
            "`clean` or an attack with its budget, such as pgd-7@8/255",
            what,
        )
    })?;
    Ok(Ingredient { attack: Some((name.parse()?, budget.parse()?)), weight })
}

impl TryFrom<String> for Mixture {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Mixture> for String {
    fn from(mixture: Mixture) -> Self {
        mixture.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_round_trip() {
        let default = Mixture::default();
        assert!(default.0.iter().skip(1).all(|part| part.attack.is_some()));
        assert_eq!(default.to_string().parse::<Mixture>().unwrap(), default);
        let short: Mixture = "clean*2, fgsm@8/255, pgd-10@l2:0.5*0.5".parse().unwrap();
        assert_eq!(short.0.len(), 3);
        assert_eq!(short.0[2].attack.as_ref().unwrap().1.norm(), Norm::L2);
        for wrong in ["", "pgd-7", "pgd-7@x", "clean*0", "nothing@8/255", "clean*-1", "fgsm@-1"] {
            assert!(wrong.parse::<Mixture>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares_follow_weights() {
        let mixture: Mixture = "clean*1,fgsm@8/255*3".parse().unwrap();
        let attacked = (0..4000).filter(|&id| mixture.draw(1, 0, id) == 1).count();
        assert!((2900..3100).contains(&attacked), "{attacked}");
    }
}
