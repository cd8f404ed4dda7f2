//! Ablations: a network with one thing of it changed at a time, trained with several seeds and measured.

mod cell;
mod factors;
mod table;

use talion_core::Result;
use talion_defenses::training::TrnTraining;

pub use cell::{Cell, Results, Workshop};
pub use factors::{Factor, Factors};
pub use table::{About, Report};

use factors::Level;

/// Which networks are compared.
pub struct Design {
    base: TrnTraining,
    factors: Vec<(Factor, Vec<Level>)>,
    seeds: Vec<u64>,
}

impl Design {
    /// `factors` varied one at a time around `base`, whose own seed does not count.
    ///
    /// # Errors
    /// If a network or its training cannot be as it would have to be.
    pub fn new(base: TrnTraining, factors: &[Factor], seeds: &[u64]) -> Result<Self> {
        base.validate()?;
        let mut varied = Vec::new();
        for &factor in factors {
            let levels = factor.levels(&base)?;
            levels.iter().try_for_each(|level| level.training.validate())?;
            varied.push((factor, levels));
        }
        Ok(Self { base, factors: varied, seeds: seeds.to_vec() })
    }

    /// The seeds, in the order in which they are trained.
    pub fn seeds(&self) -> &[u64] {
        &self.seeds
    }

    /// What all are compared with.
    pub fn base(&self) -> &TrnTraining {
        &self.base
    }

    /// The networks to measure with a seed, each once, the base first.
    pub fn measured(&self, seed: u64) -> Vec<Cell> {
        let levels = self.factors.iter().flat_map(|(_, levels)| levels);
        let trainings = std::iter::once(&self.base).chain(levels.map(|level| &level.training));
        distinct(trainings.map(|training| Cell::new(training, seed)))
    }

    /// The networks to train with a seed, each once: those to measure, and before them their first passes.
    pub fn trained(&self, seed: u64) -> Vec<Cell> {
        distinct(self.measured(seed).into_iter().flat_map(|cell| cell.first().into_iter().chain([cell])))
    }

    /// What a network is here for: `fusion: gated`, one for each table that it is in.
    pub fn roles(&self, cell: &Cell) -> Vec<String> {
        let mut roles = Vec::new();
        for (factor, levels) in &self.factors {
            let same = levels.iter().filter(|level| Cell::new(&level.training, cell.seed()) == *cell);
            roles.extend(same.map(|level| format!("{factor}: {}", level.name)));
        }
        if self.measured(cell.seed()).iter().any(|other| other.first().as_ref() == Some(cell)) {
            roles.push("first pass".to_owned());
        }
        roles
    }
}

/// Each once, in the order of their first appearance.
fn distinct(all: impl Iterator<Item = Cell>) -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::new();
    for cell in all {
        if !cells.contains(&cell) {
            cells.push(cell);
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use talion_defenses::{EstimatorSpec, TrnSpec};

    use super::*;

    pub(super) fn base() -> TrnTraining {
        let spec = TrnSpec::one_stream("tiny", 1).unwrap().with_estimator(EstimatorSpec::WalkBack);
        TrnTraining::new(spec, 2000, 1)
    }

    #[test]
    fn equal_networks_are_trained_once() {
        let design = Design::new(base(), &Factor::ALL, &[1, 2]).unwrap();
        // 7 estimators; of the others' levels those that differ from the base and from an estimator's:
        // top1, top10; coarse2, coarse3; 2 normalisations; 3 fusions; 2 scales; 4 losses; 3 mixtures; 2 sizes
        assert_eq!(design.measured(1).len(), 7 + 2 + 2 + 2 + 3 + 2 + 4 + 3 + 2);
        // first passes: the base's is an estimator's level; losses, mixtures and sizes have their own
        assert_eq!(design.trained(1).len(), 27 + 4 + 3 + 2);
        let cells = design.trained(1);
        for (place, cell) in cells.iter().enumerate() {
            if let Some(first) = cell.first() {
                assert!(cells[..place].contains(&first), "{} comes before its first pass", cell.stem());
            }
        }
    }

    #[test]
    fn names_tell_networks_apart_and_are_the_same_for_all_seeds() {
        let design = Design::new(base(), &Factor::ALL, &[1, 2]).unwrap();
        let names = |seed| design.trained(seed).iter().map(Cell::name).collect::<Vec<_>>();
        assert_eq!(names(1), names(2));
        let mut sorted = names(1);
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), design.trained(1).len());
        assert!(design.trained(2).iter().all(|cell| cell.stem().ends_with("-s2")));
    }

    #[test]
    fn a_network_knows_every_table_it_is_in() {
        let design = Design::new(base(), &[Factor::Estimator, Factor::Fusion], &[3]).unwrap();
        let cells = design.trained(3);
        let roles = |wanted: EstimatorSpec| {
            let cell = cells.iter().find(|cell| cell.training().spec.estimator == wanted).unwrap();
            design.roles(cell)
        };
        assert_eq!(roles(EstimatorSpec::None), ["estimator: none", "first pass"]);
        assert_eq!(roles(EstimatorSpec::WalkBack), ["estimator: walk-back", "fusion: gated"]);
    }

    #[test]
    fn what_cannot_be_trained_is_refused_before_any_training() {
        let base = TrnTraining { pool: 1, ..base() };
        let error = Design::new(base, &[Factor::Fusion], &[1]).err().unwrap().to_string();
        assert!(error.contains("pool"), "{error}");
    }
}
