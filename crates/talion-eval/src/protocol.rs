//! Which attacks a protocol consists of.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use talion_attacks::AttackSpec;
use talion_core::{Budget, Error, Norm, Result};
use talion_defenses::GradientMode;

use crate::{Experiment, Part};

/// How thoroughly to evaluate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Minutes: a few attacks of every threat model on few images.
    Quick,
    /// The setting of the TRN paper: attacks on the bare classifier only. Says nothing about attackers who know the
    /// defence.
    Paper,
    /// AutoAttack on the bare and on the defended classifier in every view, transfer, black box.
    Standard,
    /// `standard`, and curves over budgets and iterations, restarts, step sizes, minimum-norm and decision-based attacks.
    Full,
}

/// What the attacks of a protocol are aimed at.
#[derive(Clone, Debug)]
pub struct Scope<'a> {
    /// The name of the bare classifier.
    pub base: &'a str,
    /// Names of the defended contenders.
    pub defended: &'a [String],
    /// Names of the surrogates.
    pub surrogates: &'a [String],
    /// The budget of the headline, `Linf` or `L2`.
    pub budget: Budget,
    /// Samples that attacks on bare classifiers are run on.
    pub samples: usize,
    /// Samples that attacks through a defence are run on: the first of them.
    pub adaptive: usize,
}

impl Protocol {
    /// All protocols.
    pub const ALL: [Self; 4] = [Self::Quick, Self::Paper, Self::Standard, Self::Full];

    /// Samples for attacks on bare classifiers, and for attacks through a defence, unless the user says otherwise.
    pub fn samples(self) -> (usize, usize) {
        match self {
            Self::Quick => (192, 32),
            Self::Paper => (1000, 0),
            Self::Standard => (1000, 128),
            Self::Full => (1000, 256),
        }
    }

    /// The experiments, in the order in which they have to be made.
    ///
    /// # Errors
    /// If the budget's norm is neither `Linf` nor `L2`, for which every attack of the protocols is defined.
    pub fn experiments(self, scope: &Scope<'_>) -> Result<Vec<Experiment>> {
        if !matches!(scope.budget.norm(), Norm::Linf | Norm::L2) {
            return Err(Error::range("the norm of a protocol's budget", "Linf or L2", scope.budget.norm()));
        }
        let mut list = List { scope, experiments: Vec::new() };
        match self {
            Self::Quick => list.quick()?,
            Self::Paper => list.paper()?,
            Self::Standard => list.standard()?,
            Self::Full => {
                list.standard()?;
                list.further()?;
            }
        }
        Ok(list.experiments)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quick => "quick",
            Self::Paper => "paper",
            Self::Standard => "standard",
            Self::Full => "full",
        })
    }
}

impl FromStr for Protocol {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.to_string() == text).ok_or_else(|| Error::Unknown {
            what: "protocol",
            found: text.into(),
            known: "quick, paper, standard, full".into(),
        })
    }
}

/// The stages of AutoAttack's `standard` (Croce and Hein 2020).
const AUTOATTACK: [&str; 4] = ["apgd-ce-100", "apgd-t-100", "fab-t-100", "square-5000"];

struct List<'a> {
    scope: &'a Scope<'a>,
    experiments: Vec<Experiment>,
}

impl List<'_> {
    fn quick(&mut self) -> Result<()> {
        let budget = self.scope.budget;
        self.open(&["noise", "fgsm", "pgd-20", "apgd-ce-20"], budget)?;
        self.transfer(&["apgd-ce-20"], budget)?;
        for victim in self.scope.defended {
            let exact = GradientMode::Exact;
            self.through(victim, GradientMode::Bpda, &["pgd-20"], budget, Part::Main)?;
            self.through(victim, GradientMode::Detached, &["pgd-20"], budget, Part::Main)?;
            self.through(victim, exact, &["fgsm", "pgd-10", "pgd-20", "apgd-ce-20"], budget, Part::Main)?;
            self.through(victim, exact, &["square-100"], budget, Part::Main)?;
            self.through(victim, exact, &["pgd-10"], scaled(budget, 2.0)?, Part::Budgets)?;
            // the largest change there is: whatever does not fall to it hides its gradients
            self.through(victim, exact, &["pgd-20"], everything(budget)?, Part::Control)?;
        }
        Ok(())
    }

    fn paper(&mut self) -> Result<()> {
        let budget = self.scope.budget;
        let attacks = ["noise", "fgsm", "bim-20", "pgd-20", "pgd-100", "mim-20", "apgd-ce-100"];
        self.open(&attacks, budget)?;
        if budget.norm() == Norm::Linf {
            // what the published tables have beside 8/255
            self.open(&attacks, Budget::new(Norm::Linf, 0.1)?)?;
        }
        Ok(())
    }

    fn standard(&mut self) -> Result<()> {
        let budget = self.scope.budget;
        self.open(&["noise", "fgsm", "pgd-20", "pgd-100", "mim-20"], budget)?;
        self.open(&AUTOATTACK, budget)?;
        self.transfer(&["mim-20", "apgd-ce-100", "apgd-t-100"], budget)?;
        for victim in self.scope.defended {
            for view in [GradientMode::Bpda, GradientMode::Detached, GradientMode::Exact] {
                self.through(victim, view, &["fgsm", "pgd-20", "pgd-40"], budget, Part::Main)?;
                // Square asks for answers only: once is enough
                let stages = if view == GradientMode::Exact { 4 } else { 3 };
                self.chain(victim, view, &AUTOATTACK[..stages], budget)?;
            }
            let exact = GradientMode::Exact;
            self.through(victim, exact, &["square-1000"], budget, Part::Main)?;
            self.through(victim, exact, &["pgd-20"], scaled(budget, 2.0)?, Part::Budgets)?;
            self.through(victim, exact, &["pgd-20"], everything(budget)?, Part::Control)?;
        }
        Ok(())
    }

    /// What `full` has beside `standard`.
    fn further(&mut self) -> Result<()> {
        let budget = self.scope.budget;
        let others = match budget.norm() {
            Norm::Linf => ["fmn-100", "deepfool-50", "hsj-1000"],
            _ => ["ddn-100", "cw-1000", "hsj-1000"],
        };
        self.open(&others[..2], budget)?;
        for victim in self.scope.defended {
            let exact = GradientMode::Exact;
            self.through(victim, exact, &["pgd-40x5", "apgd-dlr-100"], budget, Part::Main)?;
            self.through(victim, exact, &others, budget, Part::Main)?;
            for factor in [0.25, 0.5, 1.0, 2.0, 4.0] {
                self.through(victim, exact, &["pgd-20"], scaled(budget, factor)?, Part::Budgets)?;
            }
            let longer = ["pgd-5", "pgd-10", "pgd-20", "pgd-40", "pgd-80", "pgd-160"];
            self.through(victim, exact, &longer, budget, Part::Iterations)?;
            for share in [1.0 / 16.0, 0.125, 0.25, 0.5, 1.0] {
                let attack = format!("pgd-40:step={}", budget.epsilon() * share);
                self.through(victim, exact, &[&attack], budget, Part::Steps)?;
            }
        }
        for factor in [0.25, 0.5, 2.0, 4.0] {
            self.add(
                self.scope.base,
                GradientMode::Oblivious,
                "pgd-20",
                scaled(budget, factor)?,
                Part::Budgets,
            )?;
        }
        Ok(())
    }

    /// Attacks on the bare classifier, whose images everybody faces.
    fn open(&mut self, attacks: &[&str], budget: Budget) -> Result<()> {
        for attack in attacks {
            self.add(self.scope.base, GradientMode::Oblivious, attack, budget, Part::Main)?;
        }
        Ok(())
    }

    /// Attacks on the surrogates.
    fn transfer(&mut self, attacks: &[&str], budget: Budget) -> Result<()> {
        for surrogate in self.scope.surrogates {
            for attack in attacks {
                self.add(surrogate, GradientMode::Oblivious, attack, budget, Part::Main)?;
            }
        }
        Ok(())
    }

    fn add(
        &mut self,
        victim: &str,
        view: GradientMode,
        attack: &str,
        budget: Budget,
        part: Part,
    ) -> Result<()> {
        self.push(Experiment {
            victim: victim.into(),
            view,
            attack: attack.parse()?,
            budget,
            samples: self.scope.samples,
            until_fooled: false,
            after: Vec::new(),
            part,
        });
        Ok(())
    }

    /// Attacks on a defended contender itself.
    fn through(
        &mut self,
        victim: &str,
        view: GradientMode,
        attacks: &[&str],
        budget: Budget,
        part: Part,
    ) -> Result<()> {
        for attack in attacks {
            let attack = attack.parse()?;
            self.push(self.adaptive(victim, view, attack, budget, part));
        }
        Ok(())
    }

    /// Attacks on a defended contender, each on what those before have left.
    fn chain(&mut self, victim: &str, view: GradientMode, attacks: &[&str], budget: Budget) -> Result<()> {
        let mut after = Vec::new();
        for attack in attacks {
            let attack: AttackSpec = attack.parse()?;
            let experiment = Experiment {
                after: after.clone(),
                ..self.adaptive(victim, view, attack, budget, Part::Main)
            };
            after.push(experiment.key());
            self.push(experiment);
        }
        Ok(())
    }

    fn adaptive(
        &self,
        victim: &str,
        view: GradientMode,
        attack: AttackSpec,
        budget: Budget,
        part: Part,
    ) -> Experiment {
        let samples = self.scope.adaptive;
        Experiment {
            victim: victim.into(),
            view,
            attack,
            budget,
            samples,
            until_fooled: true,
            after: Vec::new(),
            part,
        }
    }

    /// Two parts may want the same experiment; it is made once.
    fn push(&mut self, experiment: Experiment) {
        let key = experiment.key();
        if self.experiments.iter().all(|other| other.key() != key) && experiment.samples > 0 {
            self.experiments.push(experiment);
        }
    }
}

fn scaled(budget: Budget, factor: f64) -> Result<Budget> {
    Budget::new(budget.norm(), budget.epsilon() * factor)
}

/// A budget within which every image can be made grey, so that nothing can tell them apart.
fn everything(budget: Budget) -> Result<Budget> {
    match budget.norm() {
        Norm::Linf => Budget::new(Norm::Linf, 0.5),
        // half the value range in 3,072 values; images with fewer need less
        norm => Budget::new(norm, 0.5 * 3072_f64.sqrt()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn scope<'a>(defended: &'a [String], surrogates: &'a [String]) -> Scope<'a> {
        let budget = Budget::linf_levels(8.0).unwrap();
        Scope { base: "undefended", defended, surrogates, budget, samples: 100, adaptive: 10 }
    }

    #[test]
    fn keys_are_unique_and_experiments_follow_those_they_build_on() {
        let (defended, surrogates) = (["TRN".to_owned(), "twin".to_owned()], ["other".to_owned()]);
        for protocol in Protocol::ALL {
            let experiments = protocol.experiments(&scope(&defended, &surrogates)).unwrap();
            let mut seen = BTreeSet::new();
            for experiment in &experiments {
                assert!(experiment.after.iter().all(|key| seen.contains(key)), "{experiment}");
                assert!(seen.insert(experiment.key()), "{experiment} twice in {protocol}");
            }
            assert_eq!(protocol.to_string().parse::<Protocol>().unwrap(), protocol);
        }
        let narrow = Scope { budget: Budget::new(Norm::L0, 5.0).unwrap(), ..scope(&defended, &surrogates) };
        assert!(Protocol::Quick.experiments(&narrow).is_err());
        let l2 = Scope { budget: Budget::new(Norm::L2, 0.5).unwrap(), ..scope(&defended, &surrogates) };
        for protocol in Protocol::ALL {
            assert!(!protocol.experiments(&l2).unwrap().is_empty());
        }
    }

    #[test]
    fn every_defence_is_attacked_in_every_view_except_in_the_papers_setting() {
        let defended = ["TRN".to_owned(), "twin".to_owned()];
        for protocol in [Protocol::Quick, Protocol::Standard, Protocol::Full] {
            let experiments = protocol.experiments(&scope(&defended, &[])).unwrap();
            for victim in &defended {
                for view in [GradientMode::Bpda, GradientMode::Detached, GradientMode::Exact] {
                    let hit =
                        |experiment: &&Experiment| experiment.victim == *victim && experiment.view == view;
                    assert!(experiments.iter().any(|experiment| hit(&experiment)), "{victim} {view}");
                }
            }
        }
        let paper = Protocol::Paper.experiments(&scope(&defended, &[])).unwrap();
        assert!(paper.iter().all(|experiment| experiment.victim == "undefended"));
    }
}
