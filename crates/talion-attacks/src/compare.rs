//! Signs that attacks did not do what they should have done, seen when their results on the same samples are compared.

use std::collections::BTreeSet;

use talion_core::Budget;

use crate::{Alarm, AttackSpec, Sees};

/// What one attack achieved on a set of samples. To be compared, results have to be on the same samples in the same order,
/// and against the same view of the same classifier.
#[derive(Clone, Debug)]
pub struct Tried {
    /// The attack.
    pub attack: AttackSpec,
    /// How far it went.
    pub budget: Budget,
    /// Whether each sample was classified wrong in the end.
    pub fooled: Vec<bool>,
}

impl Tried {
    fn count(&self) -> usize {
        self.fooled.iter().filter(|&&fooled| fooled).count()
    }

    fn sees(&self) -> Option<Sees> {
        self.attack.entry().map(|entry| entry.sees)
    }

    /// Whether it takes one step along the gradient.
    fn is_single_step(&self) -> bool {
        self.sees() == Some(Sees::Gradients) && self.attack.steps() == Some(1)
    }

    fn is_iterative(&self) -> bool {
        self.sees() == Some(Sees::Gradients) && self.attack.steps().is_some_and(|steps| steps > 1)
    }

    fn said(&self) -> String {
        format!("{} at {}", self.attack, self.budget)
    }

    /// Of how many samples a difference has to be to count: AutoAttack's 0.2 %, and never a single one by chance alone.
    fn notable(&self) -> usize {
        (self.fooled.len() / 500).max(1) + 1
    }
}

/// Compares results with each other, as the papers on evaluation ask (see [`Alarm`]): better without gradients than with
/// them, better in one step than in several, no better with a larger budget, better still with twice the steps.
pub fn comparisons(tried: &[Tried]) -> Vec<Alarm> {
    let mut found = Vec::new();
    found.extend(tried.iter().filter_map(|black_box| without_gradients(black_box, tried)));
    for first in tried {
        for second in tried.iter().filter(|second| second.fooled.len() == first.fooled.len()) {
            found.extend(single_step(first, second));
            found.extend(budgets(first, second));
            found.extend(steps(first, second));
        }
    }
    found
}

/// Samples that only attacks without gradients fooled.
fn without_gradients(black_box: &Tried, tried: &[Tried]) -> Option<Alarm> {
    if !matches!(black_box.sees(), Some(Sees::Scores | Sees::Classes)) {
        return None;
    }
    let mut rivals: Vec<&Tried> = tried.iter().filter(|other| other.budget == black_box.budget).collect();
    rivals.retain(|other| other.is_iterative() && other.fooled.len() == black_box.fooled.len());
    let missed = |row: usize| rivals.iter().all(|rival| !rival.fooled[row]);
    let samples =
        black_box.fooled.iter().enumerate().filter(|(row, fooled)| **fooled && missed(*row)).count();
    (!rivals.is_empty() && samples >= black_box.notable()).then(|| Alarm::BlackBoxBetter {
        black_box: black_box.said(),
        with_gradients: rivals.iter().map(|rival| rival.attack.to_string()).collect(),
        samples,
        of: black_box.fooled.len(),
    })
}

fn single_step(one: &Tried, many: &Tried) -> Option<Alarm> {
    let comparable = one.is_single_step() && many.is_iterative() && one.budget == many.budget;
    (comparable && one.count() >= many.count() + one.notable()).then(|| Alarm::SingleStepBetter {
        single_step: one.said(),
        fooled: one.count(),
        iterative: many.said(),
        iterative_fooled: many.count(),
        of: one.fooled.len(),
    })
}

fn budgets(small: &Tried, large: &Tried) -> Option<Alarm> {
    let grows = small.budget.norm() == large.budget.norm() && large.budget.epsilon() > small.budget.epsilon();
    let noise = small.sees() == Some(Sees::Nothing);
    let open = small.count() < small.fooled.len();
    (grows && open && !noise && small.attack == large.attack && large.count() <= small.count()).then(|| {
        Alarm::LargerBudgetNotBetter {
            attack: small.attack.to_string(),
            budget: small.budget.to_string(),
            fooled: small.count(),
            larger: large.budget.to_string(),
            larger_fooled: large.count(),
            of: small.fooled.len(),
        }
    })
}

fn steps(few: &Tried, many: &Tried) -> Option<Alarm> {
    let (Some(first), Some(second)) = (few.attack.steps(), many.attack.steps()) else { return None };
    let same = few.budget == many.budget && few.attack.without_steps() == many.attack.without_steps();
    let doubled = first > 1 && second >= 2 * first;
    (same && doubled && many.count() >= few.count() + few.notable()).then(|| Alarm::NotConverged {
        attack: few.said(),
        fooled: few.count(),
        longer: many.attack.to_string(),
        longer_fooled: many.count(),
        of: few.fooled.len(),
    })
}

/// The kinds of alarm that [`comparisons`] could have raised on these results: those for which something was compared.
pub fn compared(tried: &[Tried]) -> BTreeSet<&'static str> {
    let mut kinds = BTreeSet::new();
    for first in tried {
        for second in tried {
            let same_budget = first.budget == second.budget;
            let grows = first.budget.norm() == second.budget.norm()
                && second.budget.epsilon() > first.budget.epsilon();
            if same_budget && second.is_iterative() {
                if matches!(first.sees(), Some(Sees::Scores | Sees::Classes)) {
                    kinds.insert("black-box-better");
                }
                if first.is_single_step() {
                    kinds.insert("single-step-better");
                }
            }
            if grows && first.attack == second.attack {
                kinds.insert("larger-budget-not-better");
            }
            let longer = first.attack.steps().zip(second.attack.steps());
            if same_budget
                && first.attack.without_steps() == second.attack.without_steps()
                && longer.is_some_and(|(few, many)| few > 1 && many >= 2 * few)
            {
                kinds.insert("not-converged");
            }
        }
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;
    use talion_core::Norm;

    fn tried(attack: &str, epsilon: f64, fooled: &[usize]) -> Tried {
        let budget = Budget::new(Norm::Linf, epsilon).unwrap();
        let fooled = (0..100).map(|row| fooled.iter().any(|&first| row < first)).collect();
        Tried { attack: attack.parse().unwrap(), budget, fooled }
    }

    #[test]
    fn a_sound_evaluation_raises_none() {
        let sound = [
            tried("fgsm", 0.1, &[40]),
            tried("pgd-20", 0.1, &[80]),
            tried("pgd-40", 0.1, &[81]),
            tried("square-500", 0.1, &[70]),
            tried("pgd-20", 0.2, &[95]),
            tried("noise", 0.1, &[5]),
            tried("noise", 0.2, &[5]),
        ];
        assert_eq!(comparisons(&sound), []);
        assert_eq!(compared(&sound).len(), 4);
        assert!(compared(&sound[1..2]).is_empty());
    }

    #[test]
    fn each_flaw_raises_its_own() {
        let masked = comparisons(&[tried("pgd-20", 0.1, &[10]), tried("square-500", 0.1, &[60])]);
        assert!(matches!(&masked[..], [Alarm::BlackBoxBetter { samples: 50, of: 100, .. }]), "{masked:?}");
        let stuck = comparisons(&[tried("fgsm", 0.1, &[30]), tried("pgd-20", 0.1, &[10])]);
        assert!(matches!(&stuck[..], [Alarm::SingleStepBetter { fooled: 30, .. }]), "{stuck:?}");
        let flat = comparisons(&[tried("pgd-20", 0.1, &[30]), tried("pgd-20", 0.2, &[30])]);
        assert!(matches!(&flat[..], [Alarm::LargerBudgetNotBetter { .. }]), "{flat:?}");
        let short = comparisons(&[tried("pgd-20", 0.1, &[30]), tried("pgd-40", 0.1, &[50])]);
        assert!(matches!(&short[..], [Alarm::NotConverged { longer_fooled: 50, .. }]), "{short:?}");
        for alarm in [masked, stuck, flat, short].concat() {
            assert!(alarm.to_string().len() > 40);
        }
        let fallen = comparisons(&[tried("pgd-20", 0.1, &[100]), tried("pgd-20", 0.2, &[100])]);
        assert_eq!(fallen, [], "nothing is left to fool");
    }
}
