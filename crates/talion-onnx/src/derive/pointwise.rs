//! Derivative rules of what works element by element.

use std::f64::consts::FRAC_2_SQRT_PI;

use talion_core::Result;
use tch::Kind;

use super::{
    Rule,
    step::{Gradients, Step},
};
use crate::build::{Builder, Var};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("Abs", abs),
    ("Add", add),
    ("Cast", cast),
    ("Ceil", flat),
    ("Celu", celu),
    ("Clip", clip),
    ("Cos", cos),
    ("Div", div),
    ("Elu", elu),
    ("Erf", erf),
    ("Exp", exp),
    ("Floor", flat),
    ("HardSigmoid", hard_sigmoid),
    ("HardSwish", hard_swish),
    ("Identity", identity),
    ("LeakyRelu", leaky_relu),
    ("Log", log),
    ("Max", maximum),
    ("Mean", mean),
    ("Min", minimum),
    ("Mul", mul),
    ("Neg", neg),
    ("PRelu", prelu),
    ("Pow", pow),
    ("Reciprocal", reciprocal),
    ("Relu", relu),
    ("Round", flat),
    ("Selu", selu),
    ("Sigmoid", sigmoid),
    ("Sign", flat),
    ("Sin", sin),
    ("Softplus", softplus),
    ("Softsign", softsign),
    ("Sqrt", sqrt),
    ("Sub", sub),
    ("Sum", sum),
    ("Tanh", tanh),
    ("ThresholdedRelu", thresholded_relu),
    ("Where", choice),
];

/// A rule that makes the gradient of cotangent, input and output.
fn unary(s: &mut Step<'_>, rule: impl FnOnce(&mut Builder, &Var, &Var, &Var) -> Var) -> Result<Gradients> {
    s.only(&[0])?;
    let (g, x, y) = (s.cotangent()?, s.input(0)?, s.output(0)?);
    Ok(vec![Some(rule(s.b, &g, &x, &y))])
}

/// `g` where `x > bound`, `otherwise` elsewhere.
fn above(b: &mut Builder, x: &Var, bound: f64, g: &Var, otherwise: &Var) -> Var {
    let bound = b.scalar(bound);
    let condition = b.greater(x, &bound);
    b.where_(&condition, g, otherwise)
}

/// `g` times a number.
fn scaled(b: &mut Builder, g: &Var, factor: f64) -> Var {
    let factor = b.scalar(factor);
    b.mul(g, &factor)
}

/// `x` plus a number.
fn raised(b: &mut Builder, x: &Var, number: f64) -> Var {
    let number = b.scalar(number);
    b.add(x, &number)
}

/// A number minus `x`.
fn below(b: &mut Builder, number: f64, x: &Var) -> Var {
    let number = b.scalar(number);
    b.sub(&number, x)
}

/// No gradient passes.
fn flat(_: &mut Step<'_>) -> Result<Gradients> {
    Ok(vec![])
}

fn identity(s: &mut Step<'_>) -> Result<Gradients> {
    Ok(vec![Some(s.cotangent()?)])
}

fn cast(s: &mut Step<'_>) -> Result<Gradients> {
    let (g, kind) = (s.cotangent()?, s.kind(0)?);
    Ok(vec![Some(s.b.cast(&g, kind))])
}

fn abs(s: &mut Step<'_>) -> Result<Gradients> {
    unary(s, |b, g, x, _| {
        let sign = b.sign(x);
        b.mul(g, &sign)
    })
}

fn neg(s: &mut Step<'_>) -> Result<Gradients> {
    unary(s, |b, g, _, _| b.neg(g))
}

fn exp(s: &mut Step<'_>) -> Result<Gradients> {
    unary(s, |b, g, _, y| b.mul(g, y))
}

fn log(s: &mut Step<'_>) -> Result<Gradients> {
    unary(s, |b, g, x, _| b.div(g, x))
}

fn sqrt(s: &mut Step<'_>) -> Result<Gradients> {
    unary(s, |b, g, _, y| {
        let double = scaled(b, y, 2.0);
        b.div(g, &double)
    })
}

fn reciprocal(s: &mut Step<'_>) -> Result<Gradients> {
    unary(s, |b, g, _, y| {
        let square = b.mul(y, y);
        let slope = b.neg(&square);
        b.mul(g, &slope)
    })
}

fn sin(s: &mut Step<'_>) -> Result<Gradients> {
    unary(s, |b, g, x, _| {
        let slope = b.node("Cos", &[x], vec![]);
        b.mul(g, &slope)
    })
}

fn cos(s: &mut Step<'_>) -> Result<Gradients> {
    unary(s, |b, g, x, _| {
        let slope = b.node("Sin", &[x], vec![]);
        let slope = b.neg(&slope);
        b.mul(g, &slope)
    })
}

fn erf(s: &mut Step<'_>) -> Result<Gradients> {
    unary(s, |b, g, x, _| {
        let square = b.mul(x, x);
        let square = b.neg(&square);
        let bell = b.exp(&square);
        let slope = scaled(b, &bell, FRAC_2_SQRT_PI);
        b.mul(g, &slope)
    })
}

fn sigmoid(s: &mut Step<'_>) -> Result<Gradients> {
    unary(s, |b, g, _, y| {
        let rest = below(b, 1.0, y);
        let slope = b.mul(y, &rest);
        b.mul(g, &slope)
    })
}

fn tanh(s: &mut Step<'_>) -> Result<Gradients> {
    unary(s, |b, g, _, y| {
        let square = b.mul(y, y);
        let slope = below(b, 1.0, &square);
        b.mul(g, &slope)
    })
}

fn softplus(s: &mut Step<'_>) -> Result<Gradients> {
    unary(s, |b, g, x, _| {
        let slope = b.sigmoid(x);
        b.mul(g, &slope)
    })
}

fn softsign(s: &mut Step<'_>) -> Result<Gradients> {
    unary(s, |b, g, x, _| {
        let size = b.abs(x);
        let size = raised(b, &size, 1.0);
        let square = b.mul(&size, &size);
        b.div(g, &square)
    })
}

/// The slope is 0 at 0.
fn relu(s: &mut Step<'_>) -> Result<Gradients> {
    unary(s, |b, g, _, y| {
        let zero = b.scalar(0.0);
        above(b, y, 0.0, g, &zero)
    })
}

fn thresholded_relu(s: &mut Step<'_>) -> Result<Gradients> {
    let alpha = s.float("alpha", 1.0)?;
    unary(s, |b, g, x, _| {
        let zero = b.scalar(0.0);
        above(b, x, alpha, g, &zero)
    })
}

fn leaky_relu(s: &mut Step<'_>) -> Result<Gradients> {
    let alpha = s.float("alpha", 0.01)?;
    unary(s, |b, g, x, _| {
        let sloped = scaled(b, g, alpha);
        above(b, x, 0.0, g, &sloped)
    })
}

fn prelu(s: &mut Step<'_>) -> Result<Gradients> {
    let slope = s.input(1)?;
    unary(s, |b, g, x, _| {
        let sloped = b.mul(g, &slope);
        above(b, x, 0.0, g, &sloped)
    })
}

/// For `x < 0` the derivative is the output plus `alpha`.
fn elu(s: &mut Step<'_>) -> Result<Gradients> {
    let alpha = s.float("alpha", 1.0)?;
    unary(s, |b, g, x, y| {
        let slope = raised(b, y, alpha);
        let sloped = b.mul(g, &slope);
        above(b, x, 0.0, g, &sloped)
    })
}

/// For `x < 0` the derivative is the output divided by `alpha`, plus 1.
fn celu(s: &mut Step<'_>) -> Result<Gradients> {
    let alpha = s.float("alpha", 1.0)?;
    unary(s, |b, g, x, y| {
        let slope = scaled(b, y, 1.0 / alpha);
        let slope = raised(b, &slope, 1.0);
        let sloped = b.mul(g, &slope);
        above(b, x, 0.0, g, &sloped)
    })
}

fn selu(s: &mut Step<'_>) -> Result<Gradients> {
    let alpha = s.float("alpha", 1.673_263_192_176_818_8)?;
    let gamma = s.float("gamma", 1.050_701_022_148_132_3)?;
    unary(s, |b, g, x, y| {
        let slope = raised(b, y, gamma * alpha);
        let (linear, sloped) = (scaled(b, g, gamma), b.mul(g, &slope));
        above(b, x, 0.0, &linear, &sloped)
    })
}

fn hard_sigmoid(s: &mut Step<'_>) -> Result<Gradients> {
    let alpha = s.float("alpha", 0.2)?;
    unary(s, |b, g, _, y| {
        let (zero, sloped) = (b.scalar(0.0), scaled(b, g, alpha));
        let risen = above(b, y, 0.0, &sloped, &zero);
        let rest = below(b, 1.0, y);
        above(b, &rest, 0.0, &risen, &zero)
    })
}

/// `x / 3 + 1 / 2` between -3 and 3.
fn hard_swish(s: &mut Step<'_>) -> Result<Gradients> {
    unary(s, |b, g, x, _| {
        let slope = scaled(b, x, 1.0 / 3.0);
        let slope = raised(b, &slope, 0.5);
        let (zero, sloped) = (b.scalar(0.0), b.mul(g, &slope));
        let risen = above(b, x, -3.0, &sloped, &zero);
        above(b, x, 3.0, g, &risen)
    })
}

/// The slope is 1 at the bounds, as in libtorch: there input and output are the same.
fn clip(s: &mut Step<'_>) -> Result<Gradients> {
    unary(s, |b, g, x, y| {
        let (inside, zero) = (b.equal(x, y), b.scalar(0.0));
        b.where_(&inside, g, &zero)
    })
}

fn add(s: &mut Step<'_>) -> Result<Gradients> {
    sum(s)
}

fn sum(s: &mut Step<'_>) -> Result<Gradients> {
    let g = s.cotangent()?;
    (0..s.node.inputs.len()).map(|place| s.like_input(&g, place)).collect()
}

fn mean(s: &mut Step<'_>) -> Result<Gradients> {
    let (g, count) = (s.cotangent()?, s.node.inputs.len());
    let share = scaled(s.b, &g, 1.0 / count as f64);
    (0..count).map(|place| s.like_input(&share, place)).collect()
}

fn sub(s: &mut Step<'_>) -> Result<Gradients> {
    let g = s.cotangent()?;
    let turned = s.b.neg(&g);
    Ok(vec![s.like_input(&g, 0)?, s.like_input(&turned, 1)?])
}

fn mul(s: &mut Step<'_>) -> Result<Gradients> {
    let (g, x, y) = (s.cotangent()?, s.input(0)?, s.input(1)?);
    let (left, right) = (s.b.mul(&g, &y), s.b.mul(&g, &x));
    Ok(vec![s.like_input(&left, 0)?, s.like_input(&right, 1)?])
}

fn div(s: &mut Step<'_>) -> Result<Gradients> {
    let (g, divisor, quotient) = (s.cotangent()?, s.input(1)?, s.output(0)?);
    let left = s.b.div(&g, &divisor);
    let right = s.b.mul(&left, &quotient);
    let right = s.b.neg(&right);
    Ok(vec![s.like_input(&left, 0)?, s.like_input(&right, 1)?])
}

/// Of a constant power. Where that is 0 the slope is 0, also at 0.
fn pow(s: &mut Step<'_>) -> Result<Gradients> {
    s.only(&[0])?;
    let power = s.tensor(1)?.f_to_kind(Kind::Double)?;
    let less = power.f_sub_scalar(1.0)?.f_mul(&power.f_ne(0.0)?.f_to_kind(Kind::Double)?)?;
    let (g, x) = (s.cotangent()?, s.input(0)?);
    let less = s.b.constant(&less.f_to_kind(Kind::Float)?);
    let factor = s.b.constant(&power.f_to_kind(Kind::Float)?);
    let slope = s.b.node("Pow", &[&x, &less], vec![]);
    let slope = s.b.mul(&factor, &slope);
    let gradient = s.b.mul(&g, &slope);
    Ok(vec![s.like_input(&gradient, 0)?])
}

fn maximum(s: &mut Step<'_>) -> Result<Gradients> {
    extreme(s, |b, x, y| b.greater(x, y))
}

fn minimum(s: &mut Step<'_>) -> Result<Gradients> {
    extreme(s, |b, x, y| b.greater(y, x))
}

/// The one that wins takes the cotangent; two that are equal share it.
fn extreme(s: &mut Step<'_>, wins: impl FnOnce(&mut Builder, &Var, &Var) -> Var) -> Result<Gradients> {
    match s.node.inputs.len() {
        1 => return identity(s),
        2 => {}
        more => return Err(s.refuse(format!("has a derivative rule for two inputs, not for {more}"))),
    }
    let (g, x, y) = (s.cotangent()?, s.input(0)?, s.input(1)?);
    let zero = s.b.scalar(0.0);
    let half = scaled(s.b, &g, 0.5);
    let (first, tie) = (wins(s.b, &x, &y), s.b.equal(&x, &y));
    let left = s.b.where_(&first, &g, &zero);
    let left = s.b.where_(&tie, &half, &left);
    let right = s.b.where_(&first, &zero, &g);
    let right = s.b.where_(&tie, &half, &right);
    Ok(vec![s.like_input(&left, 0)?, s.like_input(&right, 1)?])
}

fn choice(s: &mut Step<'_>) -> Result<Gradients> {
    let (g, condition) = (s.cotangent()?, s.input(0)?);
    let zero = s.b.scalar(0.0);
    let chosen = s.b.where_(&condition, &g, &zero);
    let other = s.b.where_(&condition, &zero, &g);
    Ok(vec![None, s.like_input(&chosen, 1)?, s.like_input(&other, 2)?])
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use crate::{
        attributes::Attribute,
        build::{Builder, Var},
        derive::check::{agrees, network, numbers, refusal},
    };

    const IMAGE: [i64; 3] = [3, 4, 5];

    /// `x` stretched to the range where activations bend.
    fn wide(b: &mut Builder, x: &Var) -> Var {
        let factor = b.scalar(4.0);
        b.mul(x, &factor)
    }

    #[test]
    fn activations() {
        let number = |name: &'static str, value: f32| vec![(name, Attribute::Float(value))];
        let cases: Vec<(&str, Vec<(&str, Attribute)>)> = vec![
            ("Abs", vec![]),
            ("Celu", number("alpha", 1.5)),
            ("Cos", vec![]),
            ("Elu", number("alpha", 0.7)),
            ("Erf", vec![]),
            ("Exp", vec![]),
            ("HardSigmoid", vec![]),
            ("HardSigmoid", number("alpha", 0.4)),
            ("HardSwish", vec![]),
            ("Identity", vec![]),
            ("LeakyRelu", vec![]),
            ("LeakyRelu", number("alpha", 0.3)),
            ("Neg", vec![]),
            ("Relu", vec![]),
            ("Selu", vec![]),
            ("Sigmoid", vec![]),
            ("Sin", vec![]),
            ("Softplus", vec![]),
            ("Softsign", vec![]),
            ("Tanh", vec![]),
            ("ThresholdedRelu", number("alpha", 0.5)),
        ];
        for (op, attributes) in cases {
            let network = network(IMAGE, |b, x| {
                let x = wide(b, x);
                b.node(op, &[&x], attributes)
            });
            agrees(&network, IMAGE);
        }
    }

    #[test]
    fn functions_of_positive_numbers() {
        for op in ["Log", "Sqrt", "Reciprocal"] {
            let network = network(IMAGE, |b, x| {
                let size = b.abs(x);
                let offset = b.scalar(0.5);
                let positive = b.add(&size, &offset);
                b.node(op, &[&positive], vec![])
            });
            agrees(&network, IMAGE);
        }
    }

    #[test]
    fn powers() {
        let powers = [
            Tensor::from(2_f32),
            Tensor::from(0.5_f32),
            Tensor::from(3_i64),
            Tensor::from_slice(&[0_f32, 1.0, 1.5, -2.0, 4.0]),
        ];
        for power in powers {
            let network = network(IMAGE, |b, x| {
                let size = b.abs(x);
                let offset = b.scalar(0.5);
                let positive = b.add(&size, &offset);
                let power = b.constant(&power);
                b.node("Pow", &[&positive, &power], vec![])
            });
            agrees(&network, IMAGE);
        }
    }

    #[test]
    fn slopes_by_channel() {
        let network = network(IMAGE, |b, x| {
            let slope = b.constant(&numbers(&[3, 1, 1], 0.2));
            b.node("PRelu", &[x, &slope], vec![])
        });
        agrees(&network, IMAGE);
    }

    #[test]
    fn bounds_let_through_what_is_at_them() {
        let network = network(IMAGE, |b, x| {
            let inside = b.clip(x, -0.5, 0.25);
            let again = b.clip(&inside, -0.5, 0.25);
            let open = b.scalar(-0.25);
            b.node("Clip", &[&again, &open], vec![])
        });
        agrees(&network, IMAGE);
    }

    #[test]
    fn two_operands_are_broadcast() {
        type Build = fn(&mut Builder, &Var, &Var) -> Var;
        let sides: [&[i64]; 5] = [&[3, 4, 5], &[1, 5], &[3, 1, 1], &[], &[1, 3, 4, 1]];
        let operators: [Build; 6] =
            [Builder::add, Builder::sub, Builder::mul, Builder::div, Builder::maximum, Builder::minimum];
        for (sides, build) in sides.into_iter().flat_map(|sides| operators.map(|build| (sides, build))) {
            let network = network(IMAGE, |b, x| {
                // Each side of the operator depends on the images, and one of them is the smaller.
                let rank = sides.len() as i64;
                let small = b.reduce_mean(x, &[1, 2, 3], true);
                let small = if rank == 4 { small } else { b.reduce_mean(x, &[1, 2], true) };
                let other = b.constant(&(numbers(sides, 0.3).abs() + 1.5));
                let other = b.mul(&small, &other);
                let offset = b.scalar(4.0);
                let other = b.add(&other, &offset);
                let (left, right) = (build(b, x, &other), build(b, &small, &other));
                let fixed = b.constant(&(numbers(sides, 0.4).abs() + 0.5));
                let third = build(b, x, &fixed);
                let sum = b.add(&left, &right);
                b.mul(&sum, &third)
            });
            agrees(&network, IMAGE);
        }
    }

    #[test]
    fn equal_operands_share() {
        let network = network(IMAGE, |b, x| {
            let larger = b.maximum(x, x);
            let positive = b.relu(x);
            let smaller = b.minimum(&positive, x);
            b.mul(&larger, &smaller)
        });
        agrees(&network, IMAGE);
    }

    #[test]
    fn sums_and_means_of_several() {
        for op in ["Sum", "Mean"] {
            let network = network(IMAGE, |b, x| {
                let row = b.reduce_mean(x, &[2], true);
                let fixed = b.constant(&numbers(&[4, 1], 0.1));
                let square = b.mul(x, x);
                b.node(op, &[x, &row, &fixed, &square], vec![])
            });
            agrees(&network, IMAGE);
        }
    }

    #[test]
    fn choices_by_data_and_by_constants() {
        let network = network(IMAGE, |b, x| {
            let zero = b.scalar(0.0);
            let positive = b.greater(x, &zero);
            let (square, row) = (b.mul(x, x), b.reduce_mean(x, &[2, 3], true));
            let y = b.where_(&positive, &square, &row);
            let mask = b.constant(&numbers(&[4, 5], 0.6).gt(0.0));
            b.where_(&mask, &y, x)
        });
        agrees(&network, IMAGE);
    }

    #[test]
    fn casts_between_floats() {
        let network = network(IMAGE, |b, x| {
            let wide = b.cast(x, Kind::Double);
            let narrow = b.cast(&wide, Kind::Float);
            b.mul(&narrow, x)
        });
        agrees(&network, IMAGE);
    }

    #[test]
    fn other_precisions_are_refused() {
        let network = network(IMAGE, |b, x| {
            let wide = b.cast(x, Kind::Double);
            let wide = b.tanh(&wide);
            b.cast(&wide, Kind::Float)
        });
        let message = refusal(&network, IMAGE);
        assert!(message.contains("f32 only"), "{message}");
    }

    #[test]
    fn steps_stop_the_gradient() {
        for op in ["Ceil", "Floor", "Round", "Sign"] {
            let network = network(IMAGE, |b, x| {
                let step = b.node(op, &[x], vec![]);
                b.add(&step, x)
            });
            agrees(&network, IMAGE);
        }
    }
}
