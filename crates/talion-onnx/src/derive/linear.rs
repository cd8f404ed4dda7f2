//! Derivative rules of what is linear in its data: convolutions and matrix products.

use talion_core::Result;

use super::{
    Rule,
    shapes::Extent,
    step::{Gradients, Step},
};
use crate::{attributes::Attribute, build::Var};

pub(super) const RULES: &[(&str, Rule)] =
    &[("Conv", conv), ("ConvTranspose", conv_transpose), ("Gemm", gemm), ("MatMul", matmul)];

/// The largest number in a window's description; products of two cannot overflow.
const LARGEST: i64 = 1 << 20;

/// How a kernel slides over an image, an entry for each side behind batch and channels.
pub(super) struct Window {
    pub(super) kernel: Vec<i64>,
    pub(super) strides: Vec<i64>,
    pub(super) dilations: Vec<i64>,
    /// Padding before and behind the image.
    pub(super) before: Vec<i64>,
    pub(super) behind: Vec<i64>,
}

impl Window {
    /// From a node's attributes, for an image of the given sides.
    pub(super) fn of(s: &Step<'_>, kernel: Vec<i64>, image: &[i64]) -> Result<Self> {
        let rank = image.len();
        let steps = |name: &str| -> Result<Vec<i64>> {
            let values = s.ints(name)?.unwrap_or_else(|| vec![1; rank]);
            checked(s, name, values, 1, rank)
        };
        let kernel = checked(s, "kernel_shape", kernel, 1, rank)?;
        let (strides, dilations) = (steps("strides")?, steps("dilations")?);
        let zeros = vec![0; rank];
        let mut window = Self { kernel, strides, dilations, before: zeros.clone(), behind: zeros };
        match s.text("auto_pad", "NOTSET")? {
            "NOTSET" | "" => {
                let pads = s.ints("pads")?.unwrap_or_else(|| vec![0; 2 * rank]);
                let pads = checked(s, "pads", pads, 0, 2 * rank)?;
                let (before, behind) = pads.split_at(rank);
                (window.before, window.behind) = (before.to_vec(), behind.to_vec());
            }
            "VALID" => {}
            "SAME_UPPER" => window.pad_to_same(image, false),
            "SAME_LOWER" => window.pad_to_same(image, true),
            other => return Err(s.refuse(format!("has a padding `{other}` without derivative rule"))),
        }
        Ok(window)
    }

    /// How far the kernel reaches along a side.
    fn reach(&self, axis: usize) -> i64 {
        self.dilations[axis] * (self.kernel[axis] - 1) + 1
    }

    /// Pads so that a stride of 1 keeps the size, with the odd pixel `first` or last.
    fn pad_to_same(&mut self, image: &[i64], first: bool) {
        for (axis, &side) in image.iter().enumerate() {
            let windows = (side - 1) / self.strides[axis];
            let total = (windows * self.strides[axis] + self.reach(axis) - side).max(0);
            let (smaller, larger) = (total / 2, total - total / 2);
            (self.before[axis], self.behind[axis]) =
                if first { (larger, smaller) } else { (smaller, larger) };
        }
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![
            ("kernel_shape", Attribute::Ints(self.kernel.clone())),
            ("strides", Attribute::Ints(self.strides.clone())),
            ("dilations", Attribute::Ints(self.dilations.clone())),
        ]
    }

    fn pads(&self) -> Attribute {
        Attribute::Ints([self.before.as_slice(), self.behind.as_slice()].concat())
    }
}

fn checked(s: &Step<'_>, name: &str, values: Vec<i64>, least: i64, count: usize) -> Result<Vec<i64>> {
    if values.len() == count && values.iter().all(|value| (least..=LARGEST).contains(value)) {
        return Ok(values);
    }
    Err(s.refuse(format!("has {name} {values:?} without derivative rule")))
}

/// Spreads each element of `g` by the kernel: the adjoint of sliding a window over an image of sides `image`, which
/// made `slid`.
pub(super) fn slide_back(
    s: &mut Step<'_>,
    g: &Var,
    weight: &Var,
    window: &Window,
    image: &[i64],
    slid: &[i64],
    groups: i64,
) -> Result<Var> {
    // Pixels behind the last window, which it does not reach: the transposed convolution adds them at the end.
    let (mut unreached, mut exact) = (Vec::new(), window.before == window.behind);
    for (axis, (&side, &windows)) in image.iter().zip(slid).enumerate() {
        let (before, behind, stride) = (window.before[axis], window.behind[axis], window.strides[axis]);
        let reached = stride * (windows - 1) + window.reach(axis);
        let rest = side + before + behind - reached;
        exact &= (0..stride).contains(&rest);
        unreached.push(rest.clamp(0, stride - 1));
        if reached + rest.clamp(0, stride - 1) < before + side {
            return Err(s.refuse("leaves out pixels, which its derivative rule does not know"));
        }
    }
    let mut attributes = window.attributes();
    attributes.push(("group", Attribute::Int(groups)));
    attributes.push(("output_padding", Attribute::Ints(unreached)));
    if exact {
        attributes.push(("pads", window.pads()));
        return Ok(s.b.node("ConvTranspose", &[g, weight], attributes));
    }
    // Its padding is cut off afterwards: not every runtime takes different padding before and behind.
    let padded = s.b.node("ConvTranspose", &[g, weight], attributes);
    let axes: Vec<i64> = (2..).take(image.len()).collect();
    let ends: Vec<i64> = window.before.iter().zip(image).map(|(before, side)| before + side).collect();
    Ok(s.b.slices(&padded, &axes, &window.before, &ends))
}

fn conv(s: &mut Step<'_>) -> Result<Gradients> {
    s.only(&[0])?;
    let (image, slid) = (s.spatial(s.extents(0)?)?, s.spatial(s.output_extents(0)?)?);
    let window = Window::of(s, s.spatial(s.extents(1)?)?, &image)?;
    let groups = s.int("group", 1)?;
    let (g, weight) = (s.cotangent()?, s.input(1)?);
    Ok(vec![Some(slide_back(s, &g, &weight, &window, &image, &slid, groups)?)])
}

fn conv_transpose(s: &mut Step<'_>) -> Result<Gradients> {
    s.only(&[0])?;
    if s.ints("output_shape")?.is_some() || s.text("auto_pad", "NOTSET")?.starts_with("SAME") {
        return Err(s.refuse("has a derivative rule for explicit padding only"));
    }
    let (image, grown) = (s.spatial(s.extents(0)?)?, s.spatial(s.output_extents(0)?)?);
    let window = Window::of(s, s.spatial(s.extents(1)?)?, &image)?;
    let mut attributes = window.attributes();
    attributes.push(("pads", window.pads()));
    attributes.push(("group", Attribute::Int(s.int("group", 1)?)));
    let (g, weight) = (s.cotangent()?, s.input(1)?);
    let mut gradient = s.b.node("Conv", &[&g, &weight], attributes);
    for (axis, (&side, &grown)) in image.iter().zip(&grown).enumerate() {
        let rest = grown + window.before[axis] + window.behind[axis] - window.reach(axis);
        let windows = rest.div_euclid(window.strides[axis]) + 1;
        if windows < side {
            return Err(s.refuse("leaves out pixels, which its derivative rule does not know"));
        }
        if windows > side {
            gradient = s.b.slice(&gradient, axis as i64 + 2, 0, side);
        }
    }
    Ok(vec![Some(gradient)])
}

fn gemm(s: &mut Step<'_>) -> Result<Gradients> {
    s.only(&[0, 2])?;
    let g = s.cotangent()?;
    let mut found = vec![None, None, None];
    if s.wants(0) {
        if s.int("transA", 0)? != 0 {
            return Err(s.refuse("has no derivative rule for transposed data"));
        }
        let turned = Attribute::Int(i64::from(s.int("transB", 0)? == 0));
        let alpha = Attribute::Float(s.float("alpha", 1.0)? as f32);
        let weight = s.input(1)?;
        found[0] = Some(s.b.node("Gemm", &[&g, &weight], vec![("transB", turned), ("alpha", alpha)]));
    }
    if s.wants(2) {
        let beta = s.float("beta", 1.0)?;
        let beta = s.b.scalar(beta);
        let scaled = s.b.mul(&g, &beta);
        found[2] = s.like_input(&scaled, 2)?;
    }
    Ok(found)
}

/// A vector counts as a matrix of one row on the left, of one column on the right.
fn matmul(s: &mut Step<'_>) -> Result<Gradients> {
    let (mut g, mut a, mut b) = (s.cotangent()?, s.input(0)?, s.input(1)?);
    let (mut left, mut right) = (s.extents(0)?.to_vec(), s.extents(1)?.to_vec());
    let mut product = s.output_extents(0)?.to_vec();
    let (row, column) = (left.len() == 1, right.len() == 1);
    if column {
        b = s.b.unsqueeze(&b, &[1]);
        g = s.b.unsqueeze(&g, &[-1]);
        right.push(Extent::Fixed(1));
        product.push(Extent::Fixed(1));
    }
    if row {
        a = s.b.unsqueeze(&a, &[0]);
        g = s.b.unsqueeze(&g, &[-2]);
        left.insert(0, Extent::Fixed(1));
        product.insert(product.len().saturating_sub(1), Extent::Fixed(1));
    }
    let mut found = vec![None, None];
    if s.wants(0) {
        let turned = turned(s, &b, right.len());
        let full = s.b.matmul(&g, &turned);
        let whole = s.unbroadcast(&full, &batched(&product, &left), &left)?;
        found[0] = Some(if row { s.b.squeeze(&whole, &[0]) } else { whole });
    }
    if s.wants(1) {
        let turned = turned(s, &a, left.len());
        let full = s.b.matmul(&turned, &g);
        let whole = s.unbroadcast(&full, &batched(&product, &right), &right)?;
        found[1] = Some(if column { s.b.squeeze(&whole, &[1]) } else { whole });
    }
    Ok(found)
}

/// The matrices of `x` transposed.
fn turned(s: &mut Step<'_>, x: &Var, rank: usize) -> Var {
    let mut order: Vec<i64> = (0..rank as i64).collect();
    if let [.., row, column] = order.as_mut_slice() {
        std::mem::swap(row, column);
    }
    s.b.transpose(x, &order)
}

/// The shape of matrices as in `matrices`, as many as there are in `product`.
fn batched(product: &[Extent], matrices: &[Extent]) -> Vec<Extent> {
    let batch = &product[..product.len().saturating_sub(2)];
    let matrix = &matrices[matrices.len().saturating_sub(2)..];
    [batch, matrix].concat()
}

#[cfg(test)]
mod tests {
    use crate::{
        attributes::Attribute,
        build::{Builder, Var},
        derive::check::{agrees, network, numbers},
    };

    fn ints(name: &'static str, values: &[i64]) -> (&'static str, Attribute) {
        (name, Attribute::Ints(values.to_vec()))
    }

    fn text(value: &str) -> (&'static str, Attribute) {
        ("auto_pad", Attribute::Text(value.into()))
    }

    /// A convolution whose output is bent, so that its cotangent differs from place to place.
    fn bent(b: &mut Builder, x: &Var, op: &str, weight: &[i64], attributes: Vec<(&str, Attribute)>) -> Var {
        let weight = b.constant(&numbers(weight, 0.1));
        let y = b.node(op, &[x, &weight], attributes);
        b.tanh(&y)
    }

    type Settings = Vec<(&'static str, Attribute)>;

    #[test]
    fn convolutions_of_all_strides_and_paddings() {
        let image = [4, 11, 8];
        let cases: Vec<(&[i64], Settings)> = vec![
            (&[6, 4, 3, 3], vec![]),
            (&[6, 4, 3, 2], vec![ints("strides", &[2, 3]), ints("pads", &[1, 0, 1, 0])]),
            (&[6, 4, 1, 1], vec![ints("strides", &[3, 2])]),
            (&[6, 2, 3, 3], vec![ints("dilations", &[2, 1]), ("group", Attribute::Int(2))]),
            (&[4, 1, 3, 3], vec![ints("strides", &[2, 2]), ("group", Attribute::Int(4))]),
            (&[5, 4, 3, 3], vec![ints("strides", &[2, 2]), ints("pads", &[2, 0, 1, 1])]),
            (&[5, 4, 4, 3], vec![ints("strides", &[3, 2]), text("SAME_UPPER")]),
            (&[5, 4, 4, 3], vec![ints("strides", &[2, 2]), text("SAME_LOWER")]),
            (&[5, 4, 4, 3], vec![ints("strides", &[2, 2]), text("VALID")]),
        ];
        for (weight, attributes) in cases {
            agrees(&network(image, |b, x| bent(b, x, "Conv", weight, attributes)), image);
        }
    }

    #[test]
    fn convolutions_along_one_side() {
        let image = [4, 3, 5];
        let network = network(image, |b, x| {
            let row = b.reshape(x, &[0, 4, -1]);
            bent(b, &row, "Conv", &[3, 4, 4], vec![ints("strides", &[2]), ints("pads", &[1, 2])])
        });
        agrees(&network, image);
    }

    #[test]
    fn transposed_convolutions() {
        let image = [4, 5, 4];
        let cases: Vec<(&[i64], Settings)> = vec![
            (&[4, 3, 3, 3], vec![]),
            (
                &[4, 3, 3, 3],
                vec![ints("strides", &[2, 3]), ints("pads", &[1, 0, 1, 0]), ints("output_padding", &[1, 2])],
            ),
            (&[4, 2, 3, 2], vec![("group", Attribute::Int(2)), ints("dilations", &[2, 1])]),
        ];
        for (weight, attributes) in cases {
            agrees(&network(image, |b, x| bent(b, x, "ConvTranspose", weight, attributes)), image);
        }
    }

    #[test]
    fn general_matrix_products() {
        let image = [2, 3, 2];
        for turned in [0, 1] {
            let network = network(image, |b, x| {
                let rows = b.flatten(x);
                let weight = b.constant(&numbers(&[12, 12], 0.1));
                let attributes = vec![
                    ("transB", Attribute::Int(turned)),
                    ("alpha", Attribute::Float(0.5)),
                    ("beta", Attribute::Float(2.0)),
                ];
                let y = b.node("Gemm", &[&rows, &weight, &rows], attributes);
                b.tanh(&y)
            });
            agrees(&network, image);
        }
    }

    #[test]
    fn matrix_products_of_data_with_data_constants_and_vectors() {
        let image = [3, 4, 4];
        let with = |sides: &[i64], right: bool| {
            network(image, |b, x| {
                let other = b.constant(&numbers(sides, 0.3));
                let y = if right { b.matmul(x, &other) } else { b.matmul(&other, x) };
                b.tanh(&y)
            })
        };
        let cases: [(&[i64], bool); 6] = [
            (&[4, 5], true),
            (&[5, 4], false),
            (&[3, 4, 2], true),
            (&[1, 3, 2, 4], false),
            (&[4], true),
            (&[4], false),
        ];
        for (sides, right) in cases {
            agrees(&with(sides, right), image);
        }
        let squared = network(image, |b, x| b.matmul(x, x));
        agrees(&squared, image);
        let shared = network(image, |b, x| {
            let first = b.slice(x, 1, 0, 1);
            let turned = b.transpose(&first, &[0, 1, 3, 2]);
            b.matmul(x, &turned)
        });
        agrees(&shared, image);
    }
}
