//! Products of matrices and of tensors.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use talion_core::Result;
use tch::Tensor;

use super::{
    Call, Kernel,
    arithmetic::{broadcast, grown, same_kind},
};

pub(super) const OPS: &[(&str, Kernel)] = &[("Einsum", einsum), ("Gemm", gemm), ("MatMul", matmul)];

/// The most characters of an equation, and the most tensors in it.
const LONGEST: usize = 256;
const MOST_TERMS: usize = 8;

fn matmul(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    same_kind(call, &[a, b])?;
    grown(call, &product_shape(call, &a.size(), &b.size())?, &[a, b])?;
    Ok(vec![a.f_matmul(b)?])
}

/// The shape of a product of stacks of matrices; a list is a row on the left and a column on the right.
fn product_shape(call: &Call<'_>, left: &[i64], right: &[i64]) -> Result<Vec<i64>> {
    let misfit = || call.refuse(format!("tensors of shapes {left:?} and {right:?} cannot be multiplied"));
    let (left_stack, rows, inner) = match left {
        [inner] => (&[][..], None, inner),
        [stack @ .., rows, inner] => (stack, Some(rows), inner),
        [] => return Err(misfit()),
    };
    let (right_stack, same, columns) = match right {
        [same] => (&[][..], same, None),
        [stack @ .., same, columns] => (stack, same, Some(columns)),
        [] => return Err(misfit()),
    };
    if inner != same {
        return Err(misfit());
    }
    let mut shape = broadcast(call, left_stack, right_stack)?;
    shape.extend(rows.into_iter().chain(columns));
    Ok(shape)
}

fn gemm(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let attributes = call.attributes();
    let alpha = attributes.float("alpha", 1.0)?;
    let beta = attributes.float("beta", 1.0)?;
    let a = factor(call, 0, "transA")?;
    let b = factor(call, 1, "transB")?;
    let added = call.optional(2).filter(|_| beta != 0.0);
    same_kind(call, &[Some(&a), Some(&b), added].into_iter().flatten().collect::<Vec<_>>())?;
    let shape = product_shape(call, &a.size(), &b.size())?;
    grown(call, &shape, &[&a, &b])?;
    let Some(added) = added else { return Ok(vec![scaled(&a.f_matmul(&b)?, alpha)?]) };
    if broadcast(call, &shape, &added.size())? != shape {
        let added = added.size();
        return Err(
            call.refuse(format!("a sum with a tensor of shape {added:?} would be larger than {shape:?}"))
        );
    }
    Ok(vec![if alpha == 1.0 && beta == 1.0 {
        added.f_addmm(&a, &b)?
    } else {
        scaled(&a.f_matmul(&b)?, alpha)?.f_add(&scaled(added, beta)?)?
    }])
}

/// The matrix at `place`, transposed if the attribute says so.
fn factor(call: &Call<'_>, place: usize, attribute: &str) -> Result<Tensor> {
    let matrix = call.input(place)?;
    if matrix.dim() != 2 {
        return Err(call.refuse(format!("input {place} has shape {:?}, expected a matrix", matrix.size())));
    }
    let is_transposed = call.attributes().int(attribute, 0)? != 0;
    Ok(if is_transposed { matrix.f_transpose(0, 1)? } else { matrix.shallow_clone() })
}

/// The multiple of a tensor, of the same kind.
fn scaled(x: &Tensor, number: f64) -> Result<Tensor> {
    if number == 1.0 {
        return Ok(x.shallow_clone());
    }
    Ok(x.f_mul_scalar(number)?.f_to_kind(x.kind())?)
}

fn einsum(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let equation = call.attributes().text("equation", "")?;
    if equation.len() > LONGEST || call.inputs.len() > MOST_TERMS {
        return Err(call.refuse(format!("at most {LONGEST} characters and {MOST_TERMS} tensors are allowed")));
    }
    let equation: String = equation.chars().filter(|character| !character.is_ascii_whitespace()).collect();
    let is_known = |character: char| character.is_ascii_alphabetic() || ",.->".contains(character);
    if !equation.chars().all(is_known) {
        return Err(call.refuse("its equation has characters other than letters, commas, dots and an arrow"));
    }
    let inputs = (0..call.inputs.len()).map(|place| call.input(place)).collect::<Result<Vec<_>>>()?;
    same_kind(call, &inputs)?;
    Labels::read(call, &equation, &inputs)?.check(call, &inputs)?;
    Ok(vec![Tensor::f_einsum(&equation, &inputs, None::<Vec<i64>>)?])
}

/// What the letters of an equation stand for.
struct Labels {
    /// The letters of each input.
    terms: VecDeque<BTreeSet<char>>,
    /// The letters of the result.
    result: BTreeSet<char>,
    sides: BTreeMap<char, i64>,
    /// The sides that `...` stands for.
    others: Vec<i64>,
}

impl Labels {
    fn read(call: &Call<'_>, equation: &str, inputs: &[&Tensor]) -> Result<Self> {
        let (left, right) = match equation.split_once("->") {
            Some((left, right)) => (left, Some(right)),
            None => (equation, None),
        };
        let texts: Vec<&str> = left.split(',').collect();
        if texts.len() != inputs.len() {
            return Err(call.refuse(format!("its equation has {} terms, not {}", texts.len(), inputs.len())));
        }
        let mut labels =
            Self { terms: VecDeque::new(), result: BTreeSet::new(), sides: BTreeMap::new(), others: vec![] };
        for (text, input) in texts.iter().zip(inputs) {
            labels.read_term(call, text, &input.size())?;
        }
        // without an arrow, the result has the letters that occur once
        let occurs_once = |letter: &char| left.matches(*letter).count() == 1;
        labels.result = match right {
            Some(right) => right.chars().filter(char::is_ascii_alphabetic).collect(),
            None => labels.sides.keys().copied().filter(occurs_once).collect(),
        };
        Ok(labels)
    }

    fn read_term(&mut self, call: &Call<'_>, text: &str, sides: &[i64]) -> Result<()> {
        let misfit = || call.refuse(format!("a tensor of shape {sides:?} is no {text:?}"));
        let (first, last) = text.split_once("...").unwrap_or((text, ""));
        let others = sides.len().checked_sub(first.len() + last.len()).ok_or_else(misfit)?;
        let is_spelt_out = others == 0 || text.contains("...");
        if !is_spelt_out || first.contains('.') || last.contains('.') {
            return Err(misfit());
        }
        let (leading, rest) = sides.split_at(first.len());
        let (middle, trailing) = rest.split_at(others);
        for (letter, &side) in first.chars().chain(last.chars()).zip(leading.iter().chain(trailing)) {
            let known = self.sides.entry(letter).or_insert(side);
            *known = side.max(*known);
        }
        self.others = broadcast(call, &self.others, middle)?;
        self.terms.push_back(first.chars().chain(last.chars()).collect());
        Ok(())
    }

    /// Refuses an equation with a value that is too large on the way. libtorch multiplies two tensors at a time, from
    /// the first to the last, and sums over the letters that are not needed any more.
    fn check(mut self, call: &Call<'_>, inputs: &[&Tensor]) -> Result<()> {
        while let (Some(one), Some(other)) = (self.terms.pop_front(), self.terms.pop_front()) {
            let is_needed = |letter: &char| {
                self.result.contains(letter) || self.terms.iter().any(|term| term.contains(letter))
            };
            let kept: BTreeSet<char> = one.union(&other).copied().filter(is_needed).collect();
            let sides = kept.iter().filter_map(|letter| self.sides.get(letter));
            let shape: Vec<i64> = sides.chain(&self.others).copied().collect();
            grown(call, &shape, inputs)?;
            self.terms.push_back(kept);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::{
        super::{
            arithmetic::twice::{assert_gradients, wave},
            testing::{Case, assert_same, case, floats, ints, ramp},
        },
        *,
    };
    use crate::Attribute;

    fn both(op: &str, a: &Tensor, b: &Tensor) -> Case {
        case(op).input(a).input(b)
    }

    #[test]
    fn matrices_are_multiplied_as_numpy_does() {
        let (a, b) = (ramp(&[2, 3]), ramp(&[3, 2]));
        assert_same(&both("MatMul", &a, &b).first(), &floats(&[10., 13., 28., 40.], &[2, 2]));
        let list = floats(&[1., 0., 2.], &[3]);
        assert_same(&both("MatMul", &a, &list).first(), &floats(&[4., 13.], &[2]));
        assert_same(&both("MatMul", &list, &b).first(), &floats(&[8., 11.], &[2]));
        assert_same(&both("MatMul", &list, &list).first(), &Tensor::from(5.0_f32));
        let stacks = both("MatMul", &wave(&[2, 1, 3, 4]), &wave(&[5, 4, 2])).first();
        assert_eq!(stacks.size(), [2, 5, 3, 2]);
        let whole = both("MatMul", &ints(&[1, 2]).reshape([1, 2]), &ints(&[3, 4]).reshape([2, 1]));
        assert_same(&whole.first(), &ints(&[11]).reshape([1, 1]));
        let (a, b) = (wave(&[2, 2, 3]), wave(&[3, 2]));
        assert_gradients(|a| both("MatMul", a, &b).first().square(), &a);
        assert_gradients(|b| both("MatMul", &a, b).first().square(), &b);
    }

    #[test]
    fn products_that_do_not_fit_are_refused() {
        let a = ramp(&[2, 3]);
        for b in [ramp(&[2, 3]), ramp(&[]), ramp(&[4]), ints(&[1, 2, 3]), ramp(&[2, 3, 3]).unsqueeze(0)] {
            let fits = b.size() == [1, 2, 3, 3];
            assert_eq!(both("MatMul", &a, &b).run().is_ok(), fits, "{:?}", b.size());
        }
        assert!(both("MatMul", &ramp(&[2, 2, 3]), &ramp(&[3, 3, 2])).run().is_err());
        let long = Tensor::zeros([1 << 20, 1], (Kind::Float, tch::Device::Cpu));
        let row = long.reshape([1, 1 << 20]);
        assert!(both("MatMul", &long, &row).problem().contains("2^28"));
        assert!(both("Gemm", &long, &row).problem().contains("2^28"));
        assert!(both("Einsum", &long, &row).text("equation", "ab,bc->ac").problem().contains("2^28"));
    }

    #[test]
    fn gemm_scales_transposes_and_adds() {
        let (a, b) = (wave(&[2, 3]), wave(&[4, 3]));
        let plain = a.matmul(&b.transpose(0, 1));
        let gemm = |a: &Tensor, b: &Tensor| both("Gemm", a, b).int("transB", 1);
        assert_same(&gemm(&a, &b).first(), &plain);
        let turned = gemm(&a.transpose(0, 1), &b).int("transA", 1);
        assert_same(&turned.with("alpha", Attribute::Float(0.5)).first(), &(&plain * 0.5));
        for shape in [&[4][..], &[2, 4], &[2, 1], &[1], &[]] {
            let added = wave(shape);
            assert_same(&gemm(&a, &b).input(&added).first(), &(&plain + &added));
            let half = gemm(&a, &b).input(&added).with("beta", Attribute::Float(0.5));
            assert_same(&half.first(), &(&plain + &added * 0.5));
            assert_gradients(|x| gemm(x, &b).input(&added).first().square(), &a);
            assert_gradients(|added| gemm(&a, &b).input(added).first().square(), &added);
        }
        let none = gemm(&a, &b).input(&(wave(&[4]) / 0.0)).with("beta", Attribute::Float(0.0));
        assert_same(&none.first(), &plain);
        assert!(gemm(&a, &b).input(&wave(&[3, 1, 4])).run().is_err());
        assert!(gemm(&a, &b).input(&wave(&[3])).run().is_err());
        assert!(gemm(&a, &wave(&[2, 4, 3])).problem().contains("matrix"));
        let whole = both("Gemm", &ints(&[1, 2]).reshape([1, 2]), &ints(&[3, 4]).reshape([2, 1]));
        assert_same(&whole.with("alpha", Attribute::Float(2.0)).first(), &ints(&[22]).reshape([1, 1]));
    }

    #[test]
    fn equations_mean_what_they_say() {
        let (a, b) = (wave(&[2, 3, 4]), wave(&[2, 4, 5]));
        let of = |equation: &str, inputs: &[&Tensor]| {
            inputs.iter().fold(case("Einsum"), |call, input| call.input(input)).text("equation", equation)
        };
        assert_same(&of("bij, bjk -> bik", &[&a, &b]).first(), &a.matmul(&b));
        assert_same(&of("...ij,...jk->...ik", &[&a, &b]).first(), &a.matmul(&b));
        assert_same(&of("bij,bjk", &[&a, &b]).first(), &a.matmul(&b).sum_dim_intlist(0_i64, false, None));
        assert_same(&of("bij->jb", &[&a]).first(), &a.sum_dim_intlist(1_i64, false, None).transpose(0, 1));
        let square = wave(&[3, 3]);
        assert_same(&of("ii", &[&square]).first(), &square.trace());
        let three = of("ij,jk,kl->il", &[&square, &square, &square]);
        assert_same(&three.first(), &square.matmul(&square).matmul(&square));
        assert_gradients(|a| of("bij,bjk->bik", &[a, &b]).first().square(), &a);
    }

    #[test]
    fn equations_that_do_not_fit_are_refused() {
        let a = ramp(&[2, 3]);
        let table = [
            "",
            "ij,jk->ik",
            "i->i",
            "ijk->i",
            "ij->ijk",
            "i1->i",
            "i.j->i",
            "......->",
            "ij->->",
            "i\u{e9}->i",
        ];
        for equation in table {
            assert!(case("Einsum").input(&a).text("equation", equation).run().is_err(), "{equation}");
        }
        let long = "i".repeat(257);
        assert!(case("Einsum").input(&a).text("equation", &long).problem().contains("256"));
        assert!(case("Einsum").input(&a).input(&ints(&[1])).text("equation", "ij,k").run().is_err());
        assert!(case("Einsum").text("equation", "->").run().is_err());
    }
}
