//! HopSkipJump: an attack that sees nothing but the predicted class.

use serde::{Deserialize, Serialize};
use talion_core::{Budget, Classifier, Norm, Result, gaussian_noise, uniform_noise};
use tch::{Kind, Tensor};

use crate::{
    Attack, Attempt, Batch, Conditions, Passes,
    attempt::choose,
    closest::{Hunt, Pursuit, chase, check_count, check_norm, filled, scaled, setting},
};

/// From a random image of a wrong class it goes back to the boundary by bisection, estimates which way the boundary faces
/// from the classes of images around it, jumps that way, and begins again. It sees no logits: where it does better than an
/// attack that sees gradients, gradients are masked.
///
/// # Budget
/// `L2` and `Linf`. The nearest image found counts if it lies inside, and else the benign image is the answer.
///
/// # Source
/// Chen, Jordan and Wainwright, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack", S&P 2020, algorithm 2; 100
/// images around the boundary at first, times the root of the iteration later. Bisection takes a fixed number of queries here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HopSkipJump {
    /// Images whose class is asked for, at least 1. Default 5000.
    pub queries: u32,
    /// Images around the boundary in the first iteration, at least 1. Default 100.
    pub around: u32,
}

impl Default for HopSkipJump {
    fn default() -> Self {
        Self { queries: 5000, around: 100 }
    }
}

impl Attack for HopSkipJump {
    fn name(&self) -> String {
        let around = setting("around", self.around.into(), Self::default().around.into());
        format!("hsj-{}{around}", self.queries)
    }

    fn cost(&self) -> Passes {
        Passes::LOGITS.times(self.queries.into())
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        check_norm("HopSkipJump", &batch.budget, &[Norm::L2, Norm::Linf])?;
        check_count("the number of queries", self.queries)?;
        check_count("the number of images around the boundary", self.around)?;
        let images = batch.images.detach();
        let walk = Walk {
            attack: self.clone(),
            phase: filled(batch, START),
            asked: filled(batch, 0.0),
            round: filled(batch, 0.0),
            low: filled(batch, 0.0),
            high: filled(batch, 1.0),
            jump: filled(batch, 0.0),
            wrong: images.copy(),
            boundary: images.copy(),
            facing: images.zeros_like(),
            drawn: images.zeros_like(),
            agreed: filled(batch, 0.0),
        };
        Ok(chase(batch, conditions, walk))
    }
}

/// What a row is doing: looking for any wrong image, going back to the boundary, looking around there, jumping.
const START: f64 = 0.0;
const BACK: f64 = 1.0;
const AROUND: f64 = 2.0;
const JUMP: f64 = 3.0;

/// Halvings on the way back: to a 130,000th of the distance.
const BISECTIONS: f64 = 17.0;
/// Halvings of a jump before it is given up.
const SHORTER_JUMPS: f64 = 20.0;
/// In the first iteration images around the boundary are so far away in each value, on average.
const FIRST_REACH: f64 = 0.1;

/// Where each row is. All numbers are `[N]`, `f64`; all images `[N, C, H, W]`.
struct Walk {
    attack: HopSkipJump,
    phase: Tensor,
    /// Queries in this phase.
    asked: Tensor,
    /// Iterations done.
    round: Tensor,
    /// The share of the way to the wrong image that is known to be right, and that known to be wrong.
    low: Tensor,
    high: Tensor,
    /// Length of the jump.
    jump: Tensor,
    /// An image of a wrong class.
    wrong: Tensor,
    /// The last image on the boundary, of a wrong class.
    boundary: Tensor,
    /// Sum of directions, each with the sign of what was found there; later where the boundary faces.
    facing: Tensor,
    /// Sum of directions.
    drawn: Tensor,
    /// Sum of the signs.
    agreed: Tensor,
}

impl Pursuit for Walk {
    fn step(&mut self, hunt: &mut Hunt, classifier: &dyn Classifier) -> Result<Tensor> {
        let direction = self.draw(hunt)?;
        let query = self.query(hunt, &direction)?;
        let logits = classifier.search_logits(&query);
        let fooled = hunt.fools(&logits);
        let _ = hunt.offer(&query, &fooled);
        self.asked = &self.asked + 1.0;
        // every phase reads what was, so the order of these does not matter but for the last image written
        let phase = self.phase.shallow_clone();
        self.after_start(&phase.eq(START), &query, &fooled);
        self.after_bisection(&phase.eq(BACK), hunt, &fooled);
        self.after_look(&phase.eq(AROUND), hunt, &direction, &fooled);
        self.after_jump(&phase.eq(JUMP), &query, &fooled);
        Ok(hunt.is_last_of(self.attack.queries))
    }

    fn state(&mut self) -> Vec<&mut Tensor> {
        vec![
            &mut self.phase,
            &mut self.asked,
            &mut self.round,
            &mut self.low,
            &mut self.high,
            &mut self.jump,
            &mut self.wrong,
            &mut self.boundary,
            &mut self.facing,
            &mut self.drawn,
            &mut self.agreed,
        ]
    }

    fn passes(&self) -> Passes {
        Passes::LOGITS
    }
}

impl Walk {
    /// A random direction of unit length for each row, in rows that begin a random image instead.
    fn draw(&self, hunt: &Hunt) -> Result<Tensor> {
        let row = &self.wrong.size()[1..];
        let (mut normal, mut uniform) = (Vec::new(), Vec::new());
        for (id, key) in hunt.rows.keys()? {
            normal.push(gaussian_noise(row, &[id], hunt.seed, "hsj", key));
            uniform.push((uniform_noise(row, &[id], hunt.seed, "hsj", key) + 1.0) / 2.0);
        }
        let like = |draws: &[Tensor]| {
            Tensor::cat(draws, 0).to_device(self.wrong.device()).to_kind(self.wrong.kind())
        };
        let direction = Budget::new(Norm::L2, 0.0)?.steepest(&like(&normal));
        Ok(choose(&self.phase.eq(START), &like(&uniform), &direction))
    }

    /// The image that each row asks about.
    fn query(&self, hunt: &Hunt, direction: &Tensor) -> Result<Tensor> {
        let middle = self.between(hunt, &((&self.low + &self.high) * 0.5));
        let around = &self.boundary + scaled(direction, &self.reach(hunt));
        let steepest = Budget::new(hunt.budget.norm(), 0.0)?.steepest(&self.facing);
        let jumped = &self.boundary + scaled(&steepest, &self.jump);
        let moved = choose(&self.phase.eq(AROUND), &around, &jumped);
        let query = choose(&self.phase.eq(BACK), &middle, &moved.clamp(0.0, 1.0));
        Ok(choose(&self.phase.eq(START), direction, &query))
    }

    /// The image at this share of the way from the benign image to the wrong one: on the line for `L2`, the wrong image
    /// clamped to a ball for `Linf`.
    fn between(&self, hunt: &Hunt, share: &Tensor) -> Tensor {
        let original = &hunt.rows.original;
        let change = &self.wrong - original;
        if hunt.budget.norm() == Norm::L2 {
            return original + scaled(&change, share);
        }
        let radius = hunt.budget.distance(original, &self.wrong) * share;
        let limit = scaled(&change.ones_like(), &radius);
        original + change.minimum(&limit).maximum(&-limit)
    }

    /// How far away images around the boundary lie: far at first, then in step with the distance from the benign image.
    fn reach(&self, hunt: &Hunt) -> Tensor {
        let values = (self.wrong.size().iter().skip(1).product::<i64>() as f64).max(1.0);
        let distance = hunt.budget.distance(&hunt.rows.original, &self.boundary);
        let share = if hunt.budget.norm() == Norm::L2 { values.recip() } else { values.sqrt().recip() };
        let later = (distance * share).clamp_min(1e-6);
        let first = later.full_like(FIRST_REACH * values.sqrt());
        choose(&self.round.eq(0.0), &first, &later)
    }

    /// Sends rows into a phase.
    fn enter(&mut self, rows: &Tensor, phase: f64) {
        self.phase = self.phase.masked_fill(rows, phase);
        self.asked = self.asked.masked_fill(rows, 0.0);
    }

    fn after_start(&mut self, here: &Tensor, query: &Tensor, fooled: &Tensor) {
        let found = here.logical_and(fooled);
        self.go_back_from(&found, query);
    }

    /// Begins the way back from images of a wrong class.
    fn go_back_from(&mut self, rows: &Tensor, images: &Tensor) {
        self.wrong = choose(rows, images, &self.wrong);
        self.low = self.low.masked_fill(rows, 0.0);
        self.high = self.high.masked_fill(rows, 1.0);
        self.enter(rows, BACK);
    }

    fn after_bisection(&mut self, here: &Tensor, hunt: &Hunt, fooled: &Tensor) {
        let middle = (&self.low + &self.high) * 0.5;
        self.high = choose(&here.logical_and(fooled), &middle, &self.high);
        self.low = choose(&here.logical_and(&fooled.logical_not()), &middle, &self.low);
        let done = here.logical_and(&self.asked.ge(BISECTIONS));
        self.boundary = choose(&done, &self.between(hunt, &self.high), &self.boundary);
        for sum in [&mut self.facing, &mut self.drawn] {
            *sum = choose(&done, &sum.zeros_like(), sum);
        }
        self.agreed = self.agreed.masked_fill(&done, 0.0);
        self.enter(&done, AROUND);
    }

    fn after_look(&mut self, here: &Tensor, hunt: &Hunt, direction: &Tensor, fooled: &Tensor) {
        let sign = fooled.to_kind(Kind::Double) * 2.0 - 1.0;
        self.facing = choose(here, &(&self.facing + scaled(direction, &sign)), &self.facing);
        self.drawn = choose(here, &(&self.drawn + direction), &self.drawn);
        self.agreed = choose(here, &(&self.agreed + sign), &self.agreed);
        let wanted = ((&self.round + 1.0).sqrt() * f64::from(self.attack.around)).floor();
        let done = here.logical_and(&self.asked.ge_tensor(&wanted));
        // the mean sign is taken off, unless all agree (the paper's equation 16)
        let mean = &self.agreed / self.asked.clamp_min(1.0);
        let unanimous = mean.abs().ge(1.0);
        let centred = choose(&unanimous, &self.facing, &(&self.facing - scaled(&self.drawn, &mean)));
        self.facing = choose(&done, &centred, &self.facing);
        let distance = hunt.budget.distance(&hunt.rows.original, &self.boundary);
        self.jump = choose(&done, &(distance / (&self.round + 1.0).sqrt()), &self.jump);
        self.round = choose(&done, &(&self.round + 1.0), &self.round);
        self.enter(&done, JUMP);
    }

    fn after_jump(&mut self, here: &Tensor, query: &Tensor, fooled: &Tensor) {
        let landed = here.logical_and(fooled);
        let given_up = here.logical_and(&fooled.logical_not()).logical_and(&self.asked.ge(SHORTER_JUMPS));
        self.jump = choose(here, &(&self.jump * 0.5), &self.jump);
        self.go_back_from(&landed, query);
        let boundary = self.boundary.shallow_clone();
        self.go_back_from(&given_up, &boundary);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::closest::testing::ratios;

    #[test]
    fn it_comes_near_the_nearest_image_of_a_plane() {
        let attack = HopSkipJump { queries: 3000, around: 60 };
        for ratio in ratios(&attack, Norm::L2) {
            assert!((0.999..1.25).contains(&ratio), "{ratio}");
        }
        for ratio in ratios(&attack, Norm::Linf) {
            assert!((0.999..1.6).contains(&ratio), "{ratio}");
        }
    }
}
