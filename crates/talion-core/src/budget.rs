//! What an attacker may change: a norm and a radius, always together with the box `[0, 1]`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{Error, Result};

/// How the size of a perturbation is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Norm {
    /// Largest absolute change of any value.
    Linf,
    /// Euclidean length of the change.
    L2,
    /// Sum of the absolute changes of all values.
    L1,
    /// Number of values that change, channels counted one by one.
    L0,
}

impl Norm {
    /// All norms.
    pub const ALL: [Self; 4] = [Self::Linf, Self::L2, Self::L1, Self::L0];
}

impl fmt::Display for Norm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linf => "Linf",
            Self::L2 => "L2",
            Self::L1 => "L1",
            Self::L0 => "L0",
        })
    }
}

impl FromStr for Norm {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "linf" | "inf" => Ok(Self::Linf),
            "l2" | "2" => Ok(Self::L2),
            "l1" | "1" => Ok(Self::L1),
            "l0" | "0" => Ok(Self::L0),
            _ => Err(Error::Unknown { what: "norm", found: text.into(), known: "linf, l2, l1, l0".into() }),
        }
    }
}

/// The ball an adversarial image must stay in: `norm(adversarial - original) <= epsilon`, and the box `[0, 1]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawBudget")]
pub struct Budget {
    norm: Norm,
    epsilon: f64,
}

#[derive(Deserialize)]
struct RawBudget {
    norm: Norm,
    epsilon: f64,
}

impl TryFrom<RawBudget> for Budget {
    type Error = Error;

    fn try_from(raw: RawBudget) -> Result<Self> {
        Self::new(raw.norm, raw.epsilon)
    }
}

impl Budget {
    /// A budget of radius `epsilon` in units of the `[0, 1]` image scale.
    ///
    /// # Errors
    /// If `epsilon` is negative or not finite.
    pub fn new(norm: Norm, epsilon: f64) -> Result<Self> {
        if !epsilon.is_finite() || epsilon < 0.0 {
            return Err(Error::range("epsilon", "a finite number, at least 0", epsilon));
        }
        Ok(Self { norm, epsilon })
    }

    /// `Linf`, with `epsilon` in 1/255 of the value range, as the literature writes it.
    ///
    /// # Errors
    /// If `levels` is negative or not finite.
    pub fn linf_levels(levels: f64) -> Result<Self> {
        Self::new(Norm::Linf, levels / 255.0)
    }

    /// The norm.
    #[must_use]
    pub fn norm(&self) -> Norm {
        self.norm
    }

    /// The radius, in units of the `[0, 1]` image scale.
    #[must_use]
    pub fn epsilon(&self) -> f64 {
        self.epsilon
    }

    /// A point of ball and box near `candidate`. For `Linf` and `L1` it is the nearest; for `L2` it is projected on the
    /// ball, then clamped to the box, as attack libraries do, which is not quite the nearest; for `L0` the largest changes
    /// are kept.
    ///
    /// Clamping after projecting cannot leave the ball, because the box is convex, axis-aligned and holds `original`.
    ///
    /// # Shapes
    /// Both `[N, ..]`; the result has the same shape.
    pub fn project(&self, original: &Tensor, candidate: &Tensor) -> Tensor {
        let delta = candidate - original;
        let inside = match self.norm {
            Norm::Linf => delta.clamp(-self.epsilon, self.epsilon),
            Norm::L2 => {
                let length = row_norm(&delta, Norm::L2);
                // never above 1, and 1 for a zero change
                let factor = (length.clamp_min(1e-12).reciprocal() * self.epsilon).clamp_max(1.0);
                delta * per_row(&factor, candidate)
            }
            Norm::L1 => shrunk_to_l1(original, &delta, self.epsilon),
            Norm::L0 => largest_values(&delta, self.epsilon.floor() as i64),
        };
        (original + inside).clamp(0.0, 1.0)
    }

    /// Whether each row of `candidate` lies inside ball and box, up to the rounding of `f32` addition.
    ///
    /// # Shapes
    /// Both `[N, ..]`; the result is `[N]`, boolean.
    pub fn contains(&self, original: &Tensor, candidate: &Tensor) -> Tensor {
        let dimensions = original.size()[1..].iter().product::<i64>() as f64;
        let slack = match self.norm {
            // one rounding of a number near 1 each for the addition and the subtraction
            Norm::Linf => 2.0 * f64::from(f32::EPSILON),
            Norm::L2 => 2.0 * f64::from(f32::EPSILON) * dimensions.sqrt() + 1e-6 * self.epsilon,
            Norm::L1 => 2.0 * f64::from(f32::EPSILON) * dimensions + 1e-5 * self.epsilon,
            // a value is changed or it is not
            Norm::L0 => 0.0,
        };
        let flat = candidate.flatten(1, -1);
        let lowest = flat.amin([1].as_slice(), false).ge(0.0);
        let highest = flat.amax([1].as_slice(), false).le(1.0);
        let near = self.distance(original, candidate).le(self.epsilon + slack);
        near.logical_and(&lowest).logical_and(&highest)
    }

    /// The size of each row's change in this budget's norm.
    ///
    /// # Shapes
    /// Both `[N, ..]`; the result is `[N]`.
    pub fn distance(&self, original: &Tensor, candidate: &Tensor) -> Tensor {
        row_norm(&(candidate.to_kind(Kind::Double) - original.to_kind(Kind::Double)), self.norm)
    }

    /// A direction of ascent of unit size in this norm: the sign for `Linf`, the normalised gradient for `L2`, both the
    /// steepest; for `L1` the signs of the hundredth part of the values with the largest gradients, for the steepest
    /// would change one value at a time (Tramer and Boneh 2019, section 3.2); for `L0`, where no direction has a size, the
    /// gradient divided by its largest value. A zero gradient gives a zero direction.
    ///
    /// # Shapes
    /// `gradient` is `[N, ..]`; the result has the same shape.
    pub fn steepest(&self, gradient: &Tensor) -> Tensor {
        match self.norm {
            Norm::Linf => gradient.sign(),
            Norm::L2 => {
                // Scaled by the largest value first, so that squaring tiny gradients does not underflow to zero.
                let largest = row_norm(gradient, Norm::Linf);
                let largest = largest.where_self(&largest.gt(0.0), &largest.ones_like());
                let scaled = gradient / per_row(&largest, gradient);
                let length = row_norm(&scaled, Norm::L2).clamp_min(1e-12);
                &scaled / per_row(&length, gradient)
            }
            Norm::L1 => {
                let values = gradient.size()[1..].iter().product::<i64>();
                let sparse = largest_values(gradient, (values / 100).max(1)).sign();
                let size = row_norm(&sparse, Norm::L1).clamp_min(1.0);
                &sparse / per_row(&size, gradient)
            }
            Norm::L0 => {
                let largest = row_norm(gradient, Norm::Linf);
                gradient / per_row(&largest.where_self(&largest.gt(0.0), &largest.ones_like()), gradient)
            }
        }
    }

    /// A random point of the ball around each row of `original` (then clamped to the box), from each sample's stream:
    /// uniform in the `Linf`, `L2` and `L1` balls; for `L0` random values at random places.
    ///
    /// # Shapes
    /// `original` is `[N, ..]` with `ids.len() == N`; the result has the same shape and device.
    pub fn random_start(
        &self,
        original: &Tensor,
        ids: &[u64],
        seed: u64,
        purpose: &str,
        restart: u64,
    ) -> Tensor {
        let row = &original.size()[1..];
        let delta = match self.norm {
            Norm::Linf => crate::uniform_noise(row, ids, seed, purpose, restart) * self.epsilon,
            Norm::L2 => {
                let direction = self.steepest(&crate::gaussian_noise(row, ids, seed, purpose, restart));
                let dimensions = row.iter().product::<i64>().max(1) as f64;
                let radius = crate::uniform_noise(&[1], ids, seed, &format!("{purpose}/radius"), restart);
                let root = |share: f64| share.powf(1.0 / dimensions);
                let radius = crate::elementwise(&((radius + 1.0) / 2.0), root, |share| {
                    share.pow_tensor_scalar(1.0 / dimensions)
                }) * self.epsilon;
                direction * per_row(&radius.flatten(0, -1), original)
            }
            Norm::L1 => {
                // Signed exponential draws, divided by their sum, are uniform on the sphere; one more draw in the sum
                // makes them uniform in the ball (Barthe et al. 2005).
                let signed = crate::uniform_noise(row, ids, seed, purpose, restart);
                let exponential = |uniform: Tensor| {
                    let rest = Tensor::from(1.0_f32).g_sub(&uniform).clamp_min(1e-7);
                    -crate::elementwise(&rest, f64::ln, Tensor::log)
                };
                let size = exponential(signed.abs());
                let inner = crate::uniform_noise(&[1], ids, seed, &format!("{purpose}/radius"), restart);
                let inner = exponential((inner + 1.0) / 2.0);
                let sum =
                    size.flatten(1, -1).sum_dim_intlist([1].as_slice(), false, None) + inner.flatten(0, -1);
                signed.sign() * &size / per_row(&sum.clamp_min(1e-12), &size) * self.epsilon
            }
            // the largest of independent draws lie at random places
            Norm::L0 => crate::uniform_noise(row, ids, seed, purpose, restart),
        };
        self.project(original, &(original + delta.to_device(original.device())))
    }
}

impl FromStr for Budget {
    type Err = Error;

    /// Reads `8/255` or `0.03`, which are `Linf`, or a norm and a radius, `l2:0.5`.
    fn from_str(text: &str) -> Result<Self> {
        let (norm, epsilon) = match text.split_once(':') {
            Some((norm, epsilon)) => (norm.parse()?, epsilon),
            None => (Norm::Linf, text),
        };
        Self::new(norm, parse_fraction(epsilon)?)
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let levels = self.epsilon * 255.0;
        if self.norm == Norm::Linf && levels >= 0.5 && (levels - levels.round()).abs() < 1e-6 {
            write!(f, "{} {}/255", self.norm, levels.round())
        } else {
            write!(f, "{} {}", self.norm, self.epsilon)
        }
    }
}

/// Reads `8/255` or `0.03`.
///
/// # Errors
/// If the text is neither a number nor a fraction of two numbers.
pub fn parse_fraction(text: &str) -> Result<f64> {
    let number = |part: &str| part.trim().parse::<f64>().ok().filter(|value| value.is_finite());
    let value = match text.split_once('/') {
        Some((top, bottom)) => number(top)
            .zip(number(bottom))
            .filter(|(_, bottom)| *bottom != 0.0)
            .map(|(top, bottom)| top / bottom),
        None => number(text),
    };
    value.ok_or_else(|| Error::range("number", "a number such as 0.03 or a fraction such as 8/255", text))
}

fn row_norm(delta: &Tensor, norm: Norm) -> Tensor {
    let flat = delta.flatten(1, -1);
    match norm {
        Norm::Linf => flat.abs().amax([1].as_slice(), false),
        Norm::L2 => flat.square().sum_dim_intlist([1].as_slice(), false, None).sqrt(),
        Norm::L1 => flat.abs().sum_dim_intlist([1].as_slice(), false, None),
        Norm::L0 => flat.ne(0.0).sum_dim_intlist([1].as_slice(), false, None).to_kind(flat.kind()),
    }
}

/// `delta` with all but each row's `count` largest values zero; of equal values any may stay.
fn largest_values(delta: &Tensor, count: i64) -> Tensor {
    let flat = delta.flatten(1, -1);
    let count = count.clamp(0, flat.size()[1]);
    let (_, places) = flat.abs().topk(count, 1, true, false);
    flat.zeros_like().scatter(1, &places, &flat.gather(1, &places, false)).view_as(delta)
}

/// The change nearest to `delta` whose values sum to at most `epsilon` and stay in the box around `original`.
///
/// All values are shrunk by the same amount, then clamped to the box; the amount is found by bisection, since the sum
/// falls with it.
fn shrunk_to_l1(original: &Tensor, delta: &Tensor, epsilon: f64) -> Tensor {
    let (low, high) = (-original, 1.0 - original);
    let shrunk = |by: &Tensor| {
        let kept = (delta.abs() - per_row(by, delta)).clamp_min(0.0) * delta.sign();
        kept.maximum(&low).minimum(&high)
    };
    let mut least = Tensor::zeros([delta.size()[0]], (delta.kind(), delta.device()));
    let mut most = row_norm(delta, Norm::Linf);
    let fits = row_norm(&shrunk(&least), Norm::L1).le(epsilon);
    for _ in 0..BISECTIONS {
        let middle = (&least + &most) * 0.5;
        let inside = row_norm(&shrunk(&middle), Norm::L1).le(epsilon);
        most = middle.where_self(&inside, &most);
        least = least.where_self(&inside, &middle);
    }
    // what fits already is not touched
    shrunk(&most.masked_fill(&fits, 0.0))
}

/// Halvings of the amount in [`shrunk_to_l1`]: as many as an `f32` has bits to tell apart.
const BISECTIONS: usize = 26;

/// `[N]` reshaped to broadcast over the rows of `like`.
fn per_row(values: &Tensor, like: &Tensor) -> Tensor {
    let mut shape = vec![1; like.dim()];
    shape[0] = -1;
    values.reshape(shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn projections_and_starts_stay_inside(
            epsilon in prop_oneof![0.0..1.5_f64, 0.0..60.0_f64], norm in 0..4_usize, seed in any::<u64>(),
            scale in 0.0..10.0_f64
        ) {
            let budget = Budget::new(Norm::ALL[norm], epsilon).unwrap();
            let ids: Vec<u64> = (0..5).collect();
            let original = (crate::uniform_noise(&[3, 6, 5], &ids, seed, "x", 0) + 1.0) / 2.0;
            let far = &original + crate::gaussian_noise(&[3, 6, 5], &ids, seed, "d", 0) * scale;
            let projected = budget.project(&original, &far);
            prop_assert!(bool::try_from(budget.contains(&original, &projected).all()).unwrap());
            let start = budget.random_start(&original, &ids, seed, "s", 0);
            prop_assert!(bool::try_from(budget.contains(&original, &start).all()).unwrap());
        }
    }

    #[test]
    fn a_point_inside_is_its_own_projection() {
        let original = Tensor::full([1, 4], 0.5, (Kind::Float, tch::Device::Cpu));
        let near = &original + 0.01;
        for norm in [Norm::Linf, Norm::L2, Norm::L1] {
            assert_eq!(Budget::new(norm, 0.1).unwrap().project(&original, &near), near);
        }
        assert_eq!(Budget::new(Norm::L0, 4.0).unwrap().project(&original, &near), near);
    }

    #[test]
    fn the_l1_projection_is_the_nearest_point() {
        // found by hand: all values shrink by 0.2, the third no further than its box allows
        let original = Tensor::from_slice(&[0.5_f64, 0.5, 0.9, 0.5]).unsqueeze(0);
        let delta = Tensor::from_slice(&[0.5_f64, -0.4, 0.5, 0.1]).unsqueeze(0);
        let budget = Budget::new(Norm::L1, 0.6).unwrap();
        let found = budget.project(&original, &(&original + delta)) - &original;
        let expected = Tensor::from_slice(&[0.3_f64, -0.2, 0.1, 0.0]).unsqueeze(0);
        assert!((found - expected).abs().max().double_value(&[]) < 1e-6);
    }

    #[test]
    fn sparse_norms_count_and_keep_the_largest() {
        let original = Tensor::full([1, 4], 0.5, (Kind::Float, tch::Device::Cpu));
        let moved = &original + Tensor::from_slice(&[0.1_f32, -0.3, 0.0, 0.2]).unsqueeze(0);
        let l0 = Budget::new(Norm::L0, 2.0).unwrap();
        assert_eq!(l0.distance(&original, &moved).double_value(&[0]), 3.0);
        let kept = l0.project(&original, &moved);
        assert_eq!(l0.distance(&original, &kept).double_value(&[0]), 2.0);
        assert_eq!(kept.get(0).get(1), moved.get(0).get(1));
        let l1 = Budget::new(Norm::L1, 1.0).unwrap();
        assert!((l1.distance(&original, &moved).double_value(&[0]) - 0.6).abs() < 1e-6);
    }

    #[test]
    fn steepest_ascent_has_unit_size_and_survives_zero_and_tiny_gradients() {
        let gradient = Tensor::from_slice(&[3e-30_f32, 4e-30, 0.0, 0.0]).reshape([2, 2]);
        let l2 = Budget::new(Norm::L2, 1.0).unwrap().steepest(&gradient);
        assert!((l2.get(0) - Tensor::from_slice(&[0.6_f32, 0.8])).abs().max().double_value(&[]) < 1e-6);
        assert_eq!(l2.get(1).abs().sum(Kind::Float).double_value(&[]), 0.0);
        let linf = Budget::new(Norm::Linf, 1.0).unwrap().steepest(&gradient);
        assert_eq!(linf, Tensor::from_slice(&[1.0_f32, 1.0, 0.0, 0.0]).reshape([2, 2]));
    }

    #[test]
    fn texts_round_trip() {
        assert_eq!(parse_fraction("8/255").unwrap(), 8.0 / 255.0);
        assert_eq!("8/255".parse::<Budget>().unwrap(), Budget::linf_levels(8.0).unwrap());
        assert_eq!("l2:0.5".parse::<Budget>().unwrap(), Budget::new(Norm::L2, 0.5).unwrap());
        assert!("l3:0.5".parse::<Budget>().is_err() && "l2:".parse::<Budget>().is_err());
        assert_eq!(parse_fraction("0.1").unwrap(), 0.1);
        assert!(
            parse_fraction("8/0").is_err() && parse_fraction("x").is_err() && parse_fraction("nan").is_err()
        );
        assert_eq!(Budget::linf_levels(8.0).unwrap().to_string(), "Linf 8/255");
        assert_eq!(Budget::new(Norm::Linf, 0.1).unwrap().to_string(), "Linf 0.1");
        assert!(Budget::new(Norm::L2, -1.0).is_err() && Budget::new(Norm::L2, f64::NAN).is_err());
        assert!(serde_json::from_str::<Budget>(r#"{"norm":"l2","epsilon":-1}"#).is_err());
    }
}
