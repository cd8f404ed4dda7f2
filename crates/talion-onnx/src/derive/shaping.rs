//! Derivative rules of what moves elements about.

use talion_core::Result;
use tch::Tensor;

use super::{
    Rule,
    shapes::Extent,
    step::{Gradients, Step},
};
use crate::{attributes::Attribute, build::Var};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("Concat", concat),
    ("DepthToSpace", depth_to_space),
    ("Expand", expand),
    ("Flatten", reshape),
    ("Gather", gather),
    ("Pad", pad),
    ("Reshape", reshape),
    ("Resize", resize),
    ("Slice", slice),
    ("SpaceToDepth", space_to_depth),
    ("Split", split),
    ("Squeeze", reshape),
    ("Transpose", transpose),
    ("Unsqueeze", reshape),
];

fn reshape(s: &mut Step<'_>) -> Result<Gradients> {
    let g = s.cotangent()?;
    Ok(vec![Some(s.reshaped(&g, 0)?)])
}

fn expand(s: &mut Step<'_>) -> Result<Gradients> {
    let g = s.cotangent()?;
    Ok(vec![s.like_input(&g, 0)?])
}

fn transpose(s: &mut Step<'_>) -> Result<Gradients> {
    let rank = s.extents(0)?.len();
    let order = s.ints("perm")?.unwrap_or_else(|| (0..rank as i64).rev().collect());
    let mut inverse = vec![0; rank];
    for (place, &axis) in order.iter().enumerate() {
        inverse[s.axis(axis, rank)?] = place as i64;
    }
    let g = s.cotangent()?;
    Ok(vec![Some(s.b.transpose(&g, &inverse))])
}

fn concat(s: &mut Step<'_>) -> Result<Gradients> {
    let axis = s.axis(s.int("axis", 0)?, s.output_extents(0)?.len())?;
    let g = s.cotangent()?;
    let (mut start, mut found) = (0, Vec::new());
    for place in 0..s.node.inputs.len() {
        let Some(&Extent::Fixed(len)) = s.extents(place)?.get(axis) else {
            return Err(s.refuse("joins along a side that follows the batch"));
        };
        let part = s.wants(place).then(|| s.b.slice(&g, axis as i64, start, len));
        found.push(part);
        start += len;
    }
    Ok(found)
}

fn split(s: &mut Step<'_>) -> Result<Gradients> {
    let axis = s.int("axis", 0)?;
    let mut parts = Vec::new();
    for place in 0..s.node.outputs.len() {
        parts.push(match s.cotangent_of(place) {
            Some(g) => g,
            None => {
                let part = s.output(place)?;
                s.b.zeros_like(&part)
            }
        });
    }
    let parts: Vec<&Var> = parts.iter().collect();
    Ok(vec![Some(s.b.concat(&parts, axis))])
}

/// Zeros come back where elements were cut away.
fn slice(s: &mut Step<'_>) -> Result<Gradients> {
    s.only(&[0])?;
    let (sides, rank) = (s.extents(0)?, s.extents(0)?.len());
    let starts = s.required_integers(1)?;
    let axes = s.integers(3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = s.integers(4)?.unwrap_or_else(|| vec![1; starts.len()]);
    let mut g = s.cotangent()?;
    let mut taken = s.output_extents(0)?.to_vec();
    for ((&start, &axis), &step) in starts.iter().zip(&axes).zip(&steps) {
        let axis = s.axis(axis, rank)?;
        if step < 1 {
            return Err(s.refuse("has no derivative rule for running backwards"));
        }
        if sides[axis] == taken[axis] {
            continue;
        }
        let (Extent::Fixed(side), Extent::Fixed(count)) = (sides[axis], taken[axis]) else {
            return Err(s.refuse("cuts a side that follows the batch"));
        };
        let start = if start < 0 { start.saturating_add(side) } else { start }.clamp(0, side);
        let mut covered = count;
        if step > 1 && count > 1 {
            g = spread(s, &g, &mut taken, axis, step)?;
            covered = (count * step).min(side - start);
            if covered < count * step {
                g = s.b.slice(&g, axis as i64, 0, covered);
            }
        }
        g = s.surround(&g, rank, axis, start, side - start - covered);
        taken[axis] = Extent::Fixed(side);
    }
    Ok(vec![Some(g)])
}

/// Puts `step - 1` zeros behind each element along one axis of `x`, whose shape is `sides`.
fn spread(s: &mut Step<'_>, x: &Var, sides: &mut [Extent], axis: usize, step: i64) -> Result<Var> {
    let rank = sides.len();
    let raised = s.b.unsqueeze(x, &[axis as i64 + 1]);
    let padded = s.surround(&raised, rank + 1, axis + 1, 0, step - 1);
    if let Extent::Fixed(count) = &mut sides[axis] {
        *count *= step;
    }
    s.reshape(&padded, sides)
}

/// Elements that are read several times add up.
fn gather(s: &mut Step<'_>) -> Result<Gradients> {
    s.only(&[0])?;
    let sides = s.extents(0)?;
    let axis = s.axis(s.int("axis", 0)?, sides.len())?;
    let Extent::Fixed(side) = sides[axis] else {
        return Err(s.refuse("reads along a side that follows the batch"));
    };
    let mut index = s.required_integers(1)?;
    for place in &mut index {
        *place = s.axis(*place, usize::try_from(side).unwrap_or(0))? as i64;
    }
    let mut g = s.cotangent()?;
    if s.extents(1)?.len() != 1 {
        let mut rows = sides.to_vec();
        rows[axis] = Extent::Fixed(index.len() as i64);
        g = s.reshape(&g, &rows)?;
    }
    let first = index.first().copied().unwrap_or(0);
    if !index.is_empty() && index.iter().copied().eq(first..first + index.len() as i64) {
        let behind = side - first - index.len() as i64;
        return Ok(vec![Some(s.surround(&g, sides.len(), axis, first, behind))]);
    }
    let mut shape = vec![1; sides.len()];
    shape[axis] = index.len() as i64;
    let places = s.b.constant(&Tensor::f_from_slice(&index)?.f_reshape(&shape)?);
    let places = s.b.expand_like(&places, &g);
    let x = s.input(0)?;
    let nothing = s.b.zeros_like(&x);
    let attributes =
        vec![("axis", Attribute::Int(axis as i64)), ("reduction", Attribute::Text("add".into()))];
    Ok(vec![Some(s.b.node("ScatterElements", &[&nothing, &places, &g], attributes))])
}

fn pad(s: &mut Step<'_>) -> Result<Gradients> {
    s.only(&[0])?;
    let mode = s.text("mode", "constant")?;
    if mode != "constant" {
        return Err(s.refuse(format!("has no derivative rule for the mode `{mode}`")));
    }
    let sides = s.extents(0)?;
    let pads = s.required_integers(1)?;
    if pads.len() != 2 * sides.len() || pads.iter().any(|&pad| pad < 0) {
        return Err(s.refuse(format!("has no derivative rule for the pads {pads:?}")));
    }
    let (before, behind) = pads.split_at(sides.len());
    let (mut axes, mut starts, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for (axis, (&before, &behind)) in before.iter().zip(behind).enumerate() {
        if before == 0 && behind == 0 {
            continue;
        }
        let Extent::Fixed(side) = sides[axis] else {
            return Err(s.refuse("pads a side that follows the batch"));
        };
        axes.push(axis as i64);
        starts.push(before);
        ends.push(before + side);
    }
    let g = s.cotangent()?;
    Ok(vec![Some(if axes.is_empty() { g } else { s.b.slices(&g, &axes, &starts, &ends) })])
}

/// Each pixel gets the sum over those that it was repeated as.
fn resize(s: &mut Step<'_>) -> Result<Gradients> {
    s.only(&[0])?;
    let (sides, grown) = (s.extents(0)?, s.output_extents(0)?);
    let (mut apart, mut repeats, mut largest) = (Vec::new(), Vec::new(), 1);
    for (side, grown) in sides.iter().zip(grown) {
        apart.push(*side);
        match (side, grown) {
            (side, grown) if side == grown => {}
            (Extent::Fixed(side), Extent::Fixed(grown)) if *side > 0 && grown % side == 0 => {
                repeats.push(apart.len() as i64);
                apart.push(Extent::Fixed(grown / side));
                largest = largest.max(grown / side);
            }
            _ => return Err(s.refuse("has a derivative rule for whole factors only")),
        }
    }
    let g = s.cotangent()?;
    if repeats.is_empty() {
        return Ok(vec![Some(g)]);
    }
    let mode = s.text("mode", "nearest")?;
    let coordinates = s.text("coordinate_transformation_mode", "half_pixel")?;
    let nearest = s.text("nearest_mode", "round_prefer_floor")?;
    // The ways of counting that repeat each pixel as often as the next.
    let even = match coordinates {
        "asymmetric" => nearest == "floor" || (nearest == "round_prefer_floor" && largest == 2),
        "half_pixel" | "pytorch_half_pixel" => nearest.starts_with("round"),
        _ => false,
    };
    if mode != "nearest" || !even {
        return Err(s.refuse(format!("has no derivative rule for `{mode}`, `{coordinates}`, `{nearest}`")));
    }
    let apart = s.reshape(&g, &apart)?;
    Ok(vec![Some(s.b.reduce_sum(&apart, &repeats, false))])
}

fn space_to_depth(s: &mut Step<'_>) -> Result<Gradients> {
    let (g, size) = (s.cotangent()?, s.int("blocksize", 1)?);
    Ok(vec![Some(s.b.node("DepthToSpace", &[&g], vec![("blocksize", Attribute::Int(size))]))])
}

/// In the mode `CRD` the block is inside each channel, otherwise outside of all.
fn depth_to_space(s: &mut Step<'_>) -> Result<Gradients> {
    let (g, size) = (s.cotangent()?, s.int("blocksize", 1)?);
    if s.text("mode", "DCR")? == "DCR" {
        return Ok(vec![Some(s.b.node("SpaceToDepth", &[&g], vec![("blocksize", Attribute::Int(size))]))]);
    }
    let &[batch, Extent::Fixed(channels), Extent::Fixed(height), Extent::Fixed(width)] = s.extents(0)? else {
        return Err(s.refuse("has channels or sides that follow the batch"));
    };
    let sides = [channels / (size * size), height, size, width, size].map(Extent::Fixed);
    let apart = s.reshape(&g, &[vec![batch], sides.to_vec()].concat())?;
    let moved = s.b.transpose(&apart, &[0, 1, 3, 5, 2, 4]);
    Ok(vec![Some(s.reshaped(&moved, 0)?)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build::Builder,
        derive::check::{agrees, network, numbers, refusal},
    };

    const IMAGE: [i64; 3] = [4, 6, 5];

    /// Checks a network whose cotangents differ from place to place.
    #[track_caller]
    fn check(build: impl FnOnce(&mut Builder, &Var) -> Var) {
        let network = network(IMAGE, |b, x| {
            let y = build(b, x);
            let square = b.mul(&y, &y);
            b.add(&square, &y)
        });
        agrees(&network, IMAGE);
    }

    fn int(name: &'static str, value: i64) -> (&'static str, Attribute) {
        (name, Attribute::Int(value))
    }

    fn text(name: &'static str, value: &str) -> (&'static str, Attribute) {
        (name, Attribute::Text(value.into()))
    }

    #[test]
    fn the_same_elements_in_other_shapes() {
        check(|b, x| b.reshape(x, &[0, 3, -1]));
        check(|b, x| {
            let raised = b.unsqueeze(x, &[1, -1]);
            let mixed = b.transpose(&raised, &[0, 5, 4, 2, 3, 1]);
            b.squeeze(&mixed, &[1, 5])
        });
        check(|b, x| b.node("Flatten", &[x], vec![int("axis", 3)]));
        check(|b, x| {
            let turned = b.node("Transpose", &[x], vec![]);
            b.transpose(&turned, &[3, 1, 0, 2])
        });
    }

    #[test]
    fn parts_and_wholes() {
        check(|b, x| {
            let parts = b.split(x, -2, &[1, 3, 2]);
            let mean = b.reduce_mean(&parts[1], &[2], true);
            b.concat(&[&parts[0], &mean, &parts[0]], 2)
        });
        check(|b, x| {
            let fixed = b.constant(&numbers(&[1, 1, 6, 5], 0.1));
            let mean = b.reduce_mean(x, &[1], true);
            let fixed = b.expand_like(&fixed, &mean);
            b.concat(&[x, &fixed, x], 1)
        });
    }

    fn slices(starts: &[i64], ends: &[i64], axes: &[i64], steps: &[i64]) {
        check(|b, x| {
            let [starts, ends, axes, steps] = [starts, ends, axes, steps].map(|list| b.ints(list));
            b.node("Slice", &[x, &starts, &ends, &axes, &steps], vec![])
        });
    }

    #[test]
    fn slices_forwards() {
        check(|b, x| b.slice(x, 2, 1, 3));
        slices(&[1, -3], &[3, i64::MAX], &[1, -1], &[1, 1]);
        slices(&[0, 1], &[6, 5], &[2, 3], &[2, 2]);
        slices(&[1, 0], &[6, 5], &[2, 3], &[2, 3]);
        slices(&[2], &[i64::MAX], &[2], &[7]);
        slices(&[0, 0], &[i64::MAX, 2], &[0, 1], &[1, 1]);
        let backwards = network(IMAGE, |b, x| {
            let [start, end, axis, step] = [-1, i64::MIN, 2, -1].map(|number| b.ints(&[number]));
            b.node("Slice", &[x, &start, &end, &axis, &step], vec![])
        });
        assert!(refusal(&backwards, IMAGE).contains("backwards"));
    }

    #[test]
    fn gathered_elements() {
        let gathers = |index: Tensor, axis: i64| {
            check(|b, x| {
                let index = b.constant(&index);
                b.node("Gather", &[x, &index], vec![int("axis", axis)])
            });
        };
        gathers(Tensor::from(0_i64), 2);
        gathers(Tensor::from(-1_i64), 3);
        gathers(Tensor::from_slice(&[1_i64, 2, 3]), 1);
        gathers(Tensor::from_slice(&[3_i64, 0, 0, -1]), 2);
        gathers(Tensor::from_slice(&[0_i64, 4, 2, 1, 1, 0]).reshape([2, 3]), -1);
    }

    #[test]
    fn padding_with_a_constant() {
        check(|b, x| {
            let pads = b.ints(&[0, 1, 0, 2, 0, 0, 3, 1]);
            let value = b.scalar(0.5);
            b.node("Pad", &[x, &pads, &value], vec![])
        });
    }

    #[test]
    fn repeated_pixels() {
        check(|b, x| b.upsample_nearest(x, 12, 15));
        check(|b, x| b.upsample_nearest(x, 6, 10));
        check(|b, x| {
            let scales = b.constant(&Tensor::from_slice(&[1_f32, 1.0, 3.0, 2.0]));
            b.node("Resize", &[x, &Var::absent(), &scales], vec![text("mode", "nearest")])
        });
        let smooth = network(IMAGE, |b, x| {
            let scales = b.constant(&Tensor::from_slice(&[1_f32, 1.0, 2.0, 2.0]));
            b.node("Resize", &[x, &Var::absent(), &scales], vec![text("mode", "linear")])
        });
        assert!(refusal(&smooth, IMAGE).contains("linear"));
        let uneven = network(IMAGE, |b, x| b.upsample_nearest(x, 7, 5));
        assert!(refusal(&uneven, IMAGE).contains("whole factors"));
    }

    #[test]
    fn depth_and_space() {
        for mode in ["DCR", "CRD"] {
            check(|b, x| b.node("DepthToSpace", &[x], vec![int("blocksize", 2), text("mode", mode)]));
        }
        check(|b, x| {
            let even = b.slice(x, 3, 0, 4);
            b.node("SpaceToDepth", &[&even], vec![int("blocksize", 2)])
        });
    }
}
