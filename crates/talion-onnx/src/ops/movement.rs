//! Operators that move values without computing with them: joining, cutting, picking, placing, padding, rearranging.

use talion_core::Result;
use tch::{Device, Kind, Tensor};

use super::{Call, Kernel, axes, axis, bounded, common_device, distinct, indices, product};

pub(super) const OPS: &[(&str, Kernel)] = &[
    ("Concat", concat),
    ("DepthToSpace", depth_to_space),
    ("Gather", gather),
    ("GatherElements", gather_elements),
    ("GatherND", gather_nd),
    ("Pad", pad),
    ("ReverseSequence", reverse_sequence),
    // the name that ScatterElements had before operator set 11
    ("Scatter", scatter_elements),
    ("ScatterElements", scatter_elements),
    ("ScatterND", scatter_nd),
    ("Slice", slice),
    ("SpaceToDepth", space_to_depth),
    ("Split", split),
    ("Tile", tile),
    ("Trilu", trilu),
];

/// The attribute `name` as an axis of `data`.
fn axis_attribute(call: &Call<'_>, data: &Tensor, name: &str, default: i64) -> Result<i64> {
    axis(call, call.attributes().int(name, default)?, data.dim())
}

fn concat(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let parts = (0..call.inputs.len()).map(|place| call.input(place)).collect::<Result<Vec<_>>>()?;
    let first = call.input(0)?;
    let axis = axis(call, call.attributes().required_int("axis")?, first.dim())?;
    let mut shape = first.size();
    shape[axis as usize] = 0;
    for part in &parts {
        let side = part.size().get(axis as usize).copied();
        let side = side.ok_or_else(|| call.refuse("the inputs differ in their number of axes"))?;
        shape[axis as usize] = shape[axis as usize].saturating_add(side);
    }
    bounded(call, &shape)?;
    let device = common_device(&parts);
    let parts = parts.iter().map(|part| Ok(part.f_to_device(device)?)).collect::<Result<Vec<_>>>()?;
    Ok(vec![Tensor::f_cat(&parts, axis)?])
}

fn split(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    let axis = axis_attribute(call, data, "axis", 0)?;
    let side = data.size()[axis as usize];
    let sizes = match axes(call, 1, "split")? {
        Some(sizes) => sizes,
        None => even(call, side)?,
    };
    let total = sizes.iter().fold(0_i64, |total, &size| total.saturating_add(size));
    if sizes.len() != call.outputs() || sizes.iter().any(|&size| size < 0) || total != side {
        let outputs = call.outputs();
        return Err(
            call.refuse(format!("a side of length {side} into {outputs} outputs of lengths {sizes:?}"))
        );
    }
    Ok(data.f_split_with_sizes(sizes, axis)?)
}

/// As many equal parts of `side` as there are outputs; with `num_outputs` the last one may be smaller.
fn even(call: &Call<'_>, side: i64) -> Result<Vec<i64>> {
    let parts = call.outputs() as i64;
    let asked = call.attributes().maybe_int("num_outputs")?;
    if parts == 0 || asked.is_some_and(|asked| asked != parts) || (asked.is_none() && side % parts != 0) {
        return Err(call.refuse(format!("a side of length {side} into {parts} equal parts")));
    }
    let size = side / parts + i64::from(side % parts != 0);
    let mut sizes = vec![size; call.outputs()];
    if let Some(last) = sizes.last_mut() {
        *last = side - size * (parts - 1);
    }
    Ok(sizes)
}

fn slice(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    let missing = || call.refuse("starts or ends are missing");
    let starts = axes(call, 1, "starts")?.ok_or_else(missing)?;
    let ends = axes(call, 2, "ends")?.ok_or_else(missing)?;
    let places = match axes(call, 3, "axes")? {
        Some(places) => places,
        None => (0..starts.len() as i64).collect(),
    };
    let places = distinct(call, &places, data.dim())?;
    let steps = call.ints(4)?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), places.len(), steps.len()] != [starts.len(); 3] || steps.contains(&0) {
        return Err(call.refuse("starts, ends, axes and steps differ in length, or a step is 0"));
    }
    let mut result = data.shallow_clone();
    for (((axis, start), end), step) in places.into_iter().zip(starts).zip(ends).zip(steps) {
        result = cut(&result, axis, start, end, step)?;
    }
    Ok(vec![result])
}

/// Every `step`-th element of an axis from `start` to before `end`; both are clamped to the axis.
fn cut(data: &Tensor, axis: i64, start: i64, end: i64, step: i64) -> Result<Tensor> {
    let side = data.size()[axis as usize];
    if side == 0 {
        return Ok(data.shallow_clone());
    }
    let from_front = |place: i64| if place < 0 { place.saturating_add(side) } else { place };
    let (start, end) = (from_front(start), from_front(end));
    // no step is longer than the side, so that libtorch's arithmetic cannot overflow
    if step > 0 {
        let (start, end) = (start.clamp(0, side), end.clamp(0, side));
        return Ok(data.f_slice(axis, start, end.max(start), step.min(side))?);
    }
    let (start, end) = (side - 1 - start.clamp(0, side - 1), side - 1 - end.clamp(-1, side - 1));
    Ok(data.f_flip([axis])?.f_slice(axis, start, end.max(start), step.saturating_neg().min(side))?)
}

fn gather(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    let axis = axis_attribute(call, data, "axis", 0)?;
    let sides = data.size();
    let (before, after) = (&sides[..axis as usize], &sides[axis as usize + 1..]);
    let index = indices(call, call.input(1)?, sides[axis as usize], data.device())?;
    let shape = [before, index.size().as_slice(), after].concat();
    bounded(call, &shape)?;
    Ok(vec![data.f_index_select(axis, &index.f_reshape([-1])?)?.f_reshape(shape)?])
}

fn gather_elements(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    let axis = axis_attribute(call, data, "axis", 0)?;
    let index = indices(call, call.input(1)?, data.size()[axis as usize], data.device())?;
    Ok(vec![data.f_gather(axis, &index, false)?])
}

/// Where the rows of an index tensor of shape `[..., k]` point in the `k` leading sides of `sides`: one number a row,
/// `[rows]`, into those sides laid out flat.
fn flat_rows(call: &Call<'_>, index: &Tensor, sides: &[i64], device: Device) -> Result<Tensor> {
    let mut flat: Option<Tensor> = None;
    for (place, &side) in sides.iter().enumerate() {
        let column = indices(call, &index.f_select(-1, place as i64)?, side, device)?;
        flat = Some(match flat {
            Some(flat) => flat.f_mul_scalar(side)?.f_add(&column)?,
            None => column,
        });
    }
    Ok(flat.ok_or_else(|| call.refuse("the indices are empty"))?.f_reshape([-1])?)
}

/// The length of the index rows, which is the last side of `index`; at most `most`, at least 1.
fn row_length(call: &Call<'_>, index: &Tensor, most: usize) -> Result<usize> {
    let sides = index.size();
    let length = sides.last().and_then(|&side| usize::try_from(side).ok()).filter(|&side| side >= 1);
    length.filter(|&length| length <= most).ok_or_else(|| {
        call.refuse(format!("indices of shape {sides:?}; the last side has to be between 1 and {most}"))
    })
}

fn gather_nd(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let (data, index) = (call.input(0)?, call.input(1)?);
    let (sides, rows) = (data.size(), index.size());
    let shared = call.attributes().int("batch_dims", 0)?;
    let shared = usize::try_from(shared).ok().filter(|&shared| shared < sides.len().min(rows.len()));
    let shared = shared.ok_or_else(|| call.refuse("batch_dims is not below the number of axes"))?;
    if sides[..shared] != rows[..shared] {
        return Err(call.refuse(format!("{shared} batch axes of {sides:?} and {rows:?} differ")));
    }
    let length = row_length(call, index, sides.len() - shared)?;
    let (leading, rest) = sides.split_at(shared + length);
    let shape = [&rows[..rows.len() - 1], rest].concat();
    bounded(call, &shape)?;
    let flat = flat_rows(call, index, &leading[shared..], data.device())?;
    // each batch entry has its own stretch of the flattened data
    let (batch, stretch) = (product(call, &leading[..shared])?, product(call, &leading[shared..])?);
    let offset = Tensor::f_arange(batch, (Kind::Int64, data.device()))?.f_mul_scalar(stretch)?;
    let each = product(call, &rows[shared..rows.len() - 1])?;
    let flat = flat.f_reshape([batch, each])?.f_add(&offset.f_unsqueeze(1)?)?.f_reshape([-1])?;
    let picked = data.f_reshape([product(call, leading)?, product(call, rest)?])?.f_index_select(0, &flat)?;
    Ok(vec![picked.f_reshape(shape)?])
}

/// `data` with the rows of `updates` placed at, or joined with, its rows `at`.
fn placed(call: &Call<'_>, data: &Tensor, at: &Tensor, updates: &Tensor) -> Result<Tensor> {
    let reduce = |how| data.f_index_reduce(0, at, updates, how, true);
    Ok(match call.attributes().text("reduction", "none")? {
        "none" => data.f_index_copy(0, at, updates)?,
        "add" => data.f_index_add(0, at, updates)?,
        "mul" => reduce("prod")?,
        "max" => reduce("amax")?,
        "min" => reduce("amin")?,
        other => return Err(call.refuse(format!("reduction `{other}`"))),
    })
}

fn scatter_elements(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let (data, index) = (call.input(0)?, call.input(1)?);
    let updates = call.input(2)?.f_to_device(data.device())?;
    let axis = axis_attribute(call, data, "axis", 0)?;
    let (sides, places) = (data.size(), index.size());
    let fits = |at: usize| at == axis as usize || places[at] <= sides[at];
    if places.len() != sides.len() || updates.size() != places || !(0..sides.len()).all(fits) {
        let found = updates.size();
        return Err(call.refuse(format!("updates {found:?} at indices {places:?} of a tensor {sides:?}")));
    }
    let along = indices(call, index, sides[axis as usize], data.device())?;
    let mut flat = along.f_zeros_like()?;
    for (at, &side) in sides.iter().enumerate() {
        let mut column = vec![1; sides.len()];
        column[at] = places[at];
        let place = if at == axis as usize {
            along.shallow_clone()
        } else {
            Tensor::f_arange(places[at], (Kind::Int64, data.device()))?.f_reshape(column)?
        };
        flat = flat.f_mul_scalar(side)?.f_add(&place)?;
    }
    let (flat, values) = (flat.f_reshape([-1])?, updates.f_reshape([-1])?);
    Ok(vec![placed(call, &data.f_reshape([-1])?, &flat, &values)?.f_reshape(sides)?])
}

fn scatter_nd(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let (data, index) = (call.input(0)?, call.input(1)?);
    let updates = call.input(2)?.f_to_device(data.device())?;
    let (sides, rows) = (data.size(), index.size());
    let length = row_length(call, index, sides.len())?;
    let (leading, rest) = sides.split_at(length);
    let rows = &rows[..rows.len() - 1];
    if updates.size() != [rows, rest].concat() {
        let found = updates.size();
        return Err(call.refuse(format!("updates {found:?}, expected {rows:?} followed by {rest:?}")));
    }
    let flat = flat_rows(call, index, leading, data.device())?;
    let width = product(call, rest)?;
    let values = updates.f_reshape([product(call, rows)?, width])?;
    let result = placed(call, &data.f_reshape([product(call, leading)?, width])?, &flat, &values)?;
    Ok(vec![result.f_reshape(&sides)?])
}

/// What is added before and after each axis; negative numbers cut off.
fn amounts(call: &Call<'_>, rank: usize) -> Result<Vec<[i64; 2]>> {
    let pads = axes(call, 1, "pads")?.ok_or_else(|| call.refuse("pads are missing"))?;
    let places = match call.ints(3)? {
        Some(places) => distinct(call, &places, rank)?,
        None => (0..rank as i64).collect(),
    };
    if pads.len() != 2 * places.len() {
        return Err(call.refuse(format!("{} pads for {} axes", pads.len(), places.len())));
    }
    let (before, after) = pads.split_at(places.len());
    let mut amounts = vec![[0, 0]; rank];
    for ((place, &before), &after) in places.into_iter().zip(before).zip(after) {
        amounts[place as usize] = [before, after];
    }
    Ok(amounts)
}

fn pad(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let amounts = amounts(call, call.input(0)?.dim())?;
    let data = cropped(call, call.input(0)?, &amounts)?;
    let amounts: Vec<_> = amounts.iter().map(|pair| pair.map(|amount| amount.max(0))).collect();
    let sides = data.size();
    let padded = sides.iter().zip(&amounts).map(|(side, [b, a])| side.saturating_add(*b).saturating_add(*a));
    bounded(call, &padded.collect::<Vec<_>>())?;
    let source: fn(i64, i64) -> i64 = match call.attributes().text("mode", "constant")? {
        "constant" => return Ok(vec![with_constant(call, &data, &amounts)?]),
        "edge" => |place: i64, side: i64| place.clamp(0, side - 1),
        "wrap" => |place: i64, side: i64| place.rem_euclid(side),
        "reflect" => mirrored,
        other => return Err(call.refuse(format!("mode `{other}`"))),
    };
    let mut result = data;
    for (axis, (&[before, after], &side)) in amounts.iter().zip(&sides).enumerate() {
        if before + after == 0 {
            continue;
        }
        if side == 0 {
            return Err(call.refuse("nothing to repeat along an empty axis"));
        }
        let places: Vec<i64> = (-before..side + after).map(|place| source(place, side)).collect();
        let places = Tensor::f_from_slice(&places)?.f_to_device(result.device())?;
        result = result.f_index_select(axis as i64, &places)?;
    }
    Ok(vec![result])
}

/// A place outside of `0..side`, mirrored into it at the first and last element.
fn mirrored(place: i64, side: i64) -> i64 {
    let period = (2 * (side - 1)).max(1);
    let place = place.rem_euclid(period);
    place.min(period - place)
}

fn cropped(call: &Call<'_>, data: &Tensor, amounts: &[[i64; 2]]) -> Result<Tensor> {
    let mut result = data.shallow_clone();
    for (axis, pair) in amounts.iter().enumerate().filter(|(_, pair)| pair.iter().any(|&amount| amount < 0)) {
        let [before, after] = pair.map(|amount| amount.min(0));
        let side = result.size()[axis];
        let left = side.saturating_add(before).saturating_add(after);
        if left < 0 {
            return Err(call.refuse(format!("pads {pair:?} cut off more than a side of length {side}")));
        }
        result = result.f_narrow(axis as i64, -before, left)?;
    }
    Ok(result)
}

fn with_constant(call: &Call<'_>, data: &Tensor, amounts: &[[i64; 2]]) -> Result<Tensor> {
    let value = match call.optional(2) {
        Some(value) => f64::try_from(value)?,
        None => call.attributes().float("value", 0.0)?,
    };
    // libtorch counts from the last axis
    let pads: Vec<i64> = amounts.iter().rev().flatten().copied().collect();
    Ok(data.f_pad(pads, "constant", value)?)
}

fn tile(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    let repeats = call.list(1)?;
    let sides = data.size();
    if repeats.len() != sides.len() || repeats.iter().any(|&times| times < 0) {
        return Err(call.refuse(format!("repeats {repeats:?} of a tensor of shape {sides:?}")));
    }
    let shape: Vec<i64> =
        sides.iter().zip(&repeats).map(|(side, times)| side.saturating_mul(*times)).collect();
    bounded(call, &shape)?;
    Ok(vec![data.f_repeat(repeats)?])
}

/// Batch, channels, height and width of an image, and the attribute `blocksize`.
fn image_and_block(call: &Call<'_>, data: &Tensor) -> Result<([i64; 4], i64)> {
    let sides = data.size();
    let image = <[i64; 4]>::try_from(sides.as_slice());
    let image = image.map_err(|_| call.refuse(format!("shape {sides:?}, expected [N, C, H, W]")))?;
    let block = call.attributes().required_int("blocksize")?;
    if !(1..=1 << 15).contains(&block) {
        return Err(call.refuse(format!("blocksize {block}")));
    }
    Ok((image, block))
}

fn depth_to_space(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    let ([batch, channels, height, width], block) = image_and_block(call, data)?;
    let deep = channels / (block * block);
    if deep * block * block != channels {
        return Err(call.refuse(format!("{channels} channels do not make blocks of {block} x {block}")));
    }
    let rows = match call.attributes().text("mode", "DCR")? {
        "DCR" => data.f_reshape([batch, block, block, deep, height, width])?.f_permute([0, 3, 4, 1, 5, 2])?,
        "CRD" => data.f_reshape([batch, deep, block, block, height, width])?.f_permute([0, 1, 4, 2, 5, 3])?,
        other => return Err(call.refuse(format!("mode `{other}`"))),
    };
    Ok(vec![rows.f_reshape([batch, deep, height.saturating_mul(block), width.saturating_mul(block)])?])
}

fn space_to_depth(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    let ([batch, channels, height, width], block) = image_and_block(call, data)?;
    if height % block != 0 || width % block != 0 {
        return Err(
            call.refuse(format!("{height} x {width} does not divide into blocks of {block} x {block}"))
        );
    }
    let (rows, columns) = (height / block, width / block);
    let blocks = data.f_reshape([batch, channels, rows, block, columns, block])?;
    let deep = channels.saturating_mul(block * block);
    Ok(vec![blocks.f_permute([0, 3, 5, 1, 2, 4])?.f_reshape([batch, deep, rows, columns])?])
}

fn reverse_sequence(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    let device = data.device();
    let (batch, time) =
        (axis_attribute(call, data, "batch_axis", 1)?, axis_attribute(call, data, "time_axis", 0)?);
    if batch == time {
        return Err(call.refuse("batch_axis and time_axis are the same"));
    }
    let rows = data.f_movedim([batch, time], [0, 1])?;
    let sides = rows.size();
    let lengths = call.input(1)?.f_to_kind(Kind::Int64)?.f_to_device(device)?;
    if lengths.size() != sides[..1] {
        return Err(call.refuse(format!("{:?} lengths for {} sequences", lengths.size(), sides[0])));
    }
    let lengths = lengths.f_unsqueeze(1)?;
    let steps = Tensor::f_arange(sides[1], (Kind::Int64, device))?.f_unsqueeze(0)?;
    let backwards = lengths.f_sub(&steps)?.f_sub_scalar(1_i64)?;
    let index = backwards.f_where_self(&steps.f_lt_tensor(&lengths)?, &steps)?;
    let index = indices(call, &index, sides[1], device)?;
    let mut column = vec![1; sides.len()];
    column[..2].copy_from_slice(&sides[..2]);
    let index = index.f_reshape(column)?.f_expand(&sides, false)?;
    Ok(vec![rows.f_gather(1, &index, false)?.f_movedim([0, 1], [batch, time])?])
}

fn trilu(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    let longest = data.size().into_iter().max().unwrap_or(0);
    let diagonal = call.ints(1)?.and_then(|list| list.first().copied()).unwrap_or(0).clamp(-longest, longest);
    let upper = call.attributes().int("upper", 1)? != 0;
    Ok(vec![if upper { data.f_triu(diagonal)? } else { data.f_tril(diagonal)? }])
}

#[cfg(test)]
mod tests {
    use super::{super::testing::*, *};

    const EXTREME: [i64; 9] = [i64::MIN, i64::MIN + 1, -4, -1, 0, 1, 4, i64::MAX - 1, i64::MAX];

    fn double(shape: &[i64]) -> Tensor {
        // no two values alike, none zero
        (ramp(shape).to_kind(Kind::Double) * 0.7 + 0.3).sin()
    }

    #[test]
    fn parts_are_joined_and_split() {
        let (a, b) = (ramp(&[2, 1]), ramp(&[2, 3]));
        let joined = case("Concat").input(&a).input(&b).int("axis", -1).first();
        assert_same(&joined, &Tensor::cat(&[&a, &b], 1));
        assert!(case("Concat").input(&a).input(&b).int("axis", 0).run().is_err());
        assert!(case("Concat").input(&a).input(&ramp(&[])).int("axis", 1).run().is_err());
        assert!(case("Concat").input(&a).run().is_err());
        let large = Tensor::zeros([1], (Kind::Float, Device::Cpu)).expand([1 << 28], false);
        assert!(case("Concat").input(&large).input(&large).int("axis", 0).run().is_err());

        let sizes = |case: Case| -> Result<Vec<i64>> {
            Ok(case.int("axis", 1).run()?.iter().map(|part| part.size()[1]).collect())
        };
        let x = ramp(&[2, 7]);
        let split = |outputs: usize| case("Split").input(&x).outputs(outputs);
        assert_eq!(sizes(split(2).opset(11).ints("split", &[3, 4])).unwrap(), [3, 4]);
        assert_eq!(sizes(split(3).opset(13).input(&ints(&[0, 2, 5]))).unwrap(), [0, 2, 5]);
        assert_eq!(sizes(split(7).opset(13)).unwrap(), [1; 7]);
        assert_eq!(sizes(split(3).int("num_outputs", 3)).unwrap(), [3, 3, 1]);
        assert_same(&split(1).int("axis", -1).first(), &x);
        let bad: [(usize, &[i64]); 4] =
            [(2, &[3, 3]), (2, &[8, -1]), (3, &[3, 4]), (2, &[i64::MAX, i64::MAX])];
        for (outputs, lengths) in bad {
            assert!(sizes(split(outputs).input(&ints(lengths))).is_err(), "{lengths:?}");
        }
        assert!(sizes(split(2)).is_err());
        assert!(sizes(split(5).int("num_outputs", 5)).is_err());
        assert!(sizes(split(2).int("num_outputs", i64::MAX)).is_err());
    }

    #[test]
    fn slices_follow_the_rules_of_the_standard() {
        let x = ramp(&[2, 5]);
        let cut = |start: i64, end: i64, step: i64| {
            let case = case("Slice").input(&x).input(&ints(&[start])).input(&ints(&[end]));
            let y = case.input(&ints(&[-1])).input(&ints(&[step])).first();
            Vec::<i64>::try_from(y.select(0, 0)).unwrap()
        };
        let table: [(i64, i64, i64, &[i64]); 12] = [
            (1, 4, 1, &[1, 2, 3]),
            (1, 4, 2, &[1, 3]),
            (-2, i64::MAX, 1, &[3, 4]),
            (0, -1, 3, &[0, 3]),
            (3, 1, 1, &[]),
            (i64::MIN, i64::MAX, i64::MAX, &[0]),
            (9, 1, -1, &[4, 3, 2]),
            (-1, i64::MIN, -1, &[4, 3, 2, 1, 0]),
            (3, -9, -2, &[3, 1]),
            (1, 3, -1, &[]),
            (4, 0, -3, &[4, 1]),
            (i64::MAX, i64::MIN, i64::MIN, &[4]),
        ];
        for (start, end, step, expected) in table {
            assert_eq!(cut(start, end, step), expected, "{start}:{end}:{step}");
        }
    }

    #[test]
    fn slices_take_attributes_or_inputs_and_survive_any_number() {
        let x = ramp(&[3, 4, 5]);
        let expected = x.narrow(0, 1, 2).narrow(2, 0, 4);
        let old = case("Slice").opset(9).input(&x).ints("starts", &[1, 0]).ints("ends", &[3, -1]);
        assert_same(&old.ints("axes", &[0, 2]).first(), &expected);
        let new = case("Slice").input(&x).input(&ints(&[1, 0])).input(&ints(&[3, -1]));
        assert_same(&new.input(&ints(&[0, -1])).first(), &expected);
        let plain = case("Slice").input(&x).input(&ints(&[1])).input(&ints(&[3]));
        assert_same(&plain.first(), &x.narrow(0, 1, 2));
        let bad = |starts: &[i64], places: &[i64], steps: &[i64]| {
            let case = case("Slice").input(&x).input(&ints(starts)).input(&ints(&[2]));
            case.input(&ints(places)).input(&ints(steps)).run().is_err()
        };
        assert!(bad(&[0], &[0], &[0]) && bad(&[0, 0], &[0], &[1]) && bad(&[0], &[3], &[1]));
        assert!(bad(&[0], &[0], &[1, 1]) && case("Slice").input(&x).run().is_err());
        for side in [0, 1, 3] {
            for start in EXTREME {
                for end in EXTREME {
                    for step in EXTREME.into_iter().filter(|&step| step != 0) {
                        assert!(super::cut(&ramp(&[side]), 0, start, end, step).unwrap().size()[0] <= side);
                    }
                }
            }
        }
    }

    #[test]
    fn gather_picks_along_an_axis() {
        let x = ramp(&[3, 4]);
        let gather = |index: &Tensor, axis: i64| case("Gather").input(&x).input(index).int("axis", axis);
        let index = ints(&[2, -3, 1, 1]).reshape([2, 2]);
        let rows = gather(&index, 0).first();
        assert_same(&rows, &x.index_select(0, &ints(&[2, 0, 1, 1])).reshape([2, 2, 4]));
        assert_same(&gather(&Tensor::from(-1_i64), 1).first(), &x.select(1, 3));
        assert_same(&gather(&Tensor::from(1_i32), 0).first(), &x.select(0, 1));
        assert_eq!(gather(&ints(&[]), 1).first().size(), [3, 0]);
        for index in EXTREME.into_iter().filter(|index| !(-3..3).contains(index)) {
            assert!(gather(&ints(&[index]), 0).run().is_err(), "{index}");
        }
        assert!(gather(&ints(&[0]), 2).run().is_err() && gather(&x, 0).run().is_err());
        assert_gradient(|x| case("Gather").input(x).input(&ints(&[1, 1, 0])).first(), &double(&[3, 2]));
    }

    #[test]
    fn gather_elements_picks_one_by_one() {
        let x = ramp(&[2, 3]);
        let index = ints(&[0, -1, 1, 2]).reshape([2, 2]);
        let y = case("GatherElements").input(&x).input(&index).int("axis", 1).first();
        assert_same(&y, &floats(&[0.0, 2.0, 4.0, 5.0], &[2, 2]));
        let wrong = ints(&[3]).reshape([1, 1]);
        assert!(case("GatherElements").input(&x).input(&wrong).int("axis", 1).run().is_err());
        assert!(case("GatherElements").input(&x).input(&ints(&[0])).int("axis", 1).run().is_err());
    }

    #[test]
    fn gather_nd_picks_rows_and_elements() {
        // the examples of the standard
        let gather = |data: &[i64], index: &[i64], rows: &[i64], shared: i64| {
            let (data, index) = (ramp(data), ints(index).reshape(rows));
            case("GatherND").input(&data).input(&index).int("batch_dims", shared).first()
        };
        assert_same(&gather(&[2, 2], &[0, 0, 1, 1], &[2, 2], 0), &floats(&[0.0, 3.0], &[2]));
        assert_same(&gather(&[2, 2], &[1, 0], &[2, 1], 0), &floats(&[2.0, 3.0, 0.0, 1.0], &[2, 2]));
        let expected = floats(&[2.0, 3.0, 4.0, 5.0], &[2, 2]);
        assert_same(&gather(&[2, 2, 2], &[0, 1, 1, 0], &[2, 2], 0), &expected);
        assert_same(&gather(&[2, 2, 2], &[0, 1, 1, 0], &[2, 1, 2], 0), &expected.reshape([2, 1, 2]));
        assert_same(&gather(&[2, 2, 2], &[1, 0], &[2, 1], 1), &expected);
        assert_same(&gather(&[2, 3], &[-1, 0], &[2, 1], 1), &floats(&[2.0, 3.0], &[2]));
    }

    #[test]
    fn gather_nd_refuses_what_does_not_fit() {
        let gather = |index: &[i64], rows: &[i64], shared: i64| {
            let index = ints(index).reshape(rows);
            case("GatherND").input(&ramp(&[2, 3])).input(&index).int("batch_dims", shared).run().is_err()
        };
        assert!(gather(&[0, 0, 0], &[1, 3], 0) && gather(&[0, 3], &[1, 2], 0) && gather(&[2], &[1, 1], 0));
        assert!(gather(&[0], &[1, 1], 1) && gather(&[0, 0], &[2, 1], 2) && gather(&[0, 0], &[2, 1], -1));
        assert!(gather(&[], &[2, 0], 0));
    }

    #[test]
    fn scatter_elements_places_and_joins() {
        let x = floats(&[1.0, 2.0, 3.0, 4.0, 5.0], &[1, 5]);
        let index = ints(&[1, 1, -2]).reshape([1, 3]);
        let updates = floats(&[10.0, 0.5, 7.0], &[1, 3]);
        let scatter = |how: &str| {
            let case = case("ScatterElements").input(&x).input(&index).input(&updates);
            case.int("axis", 1).text("reduction", how)
        };
        assert_same(&scatter("add").first(), &floats(&[1.0, 12.5, 3.0, 11.0, 5.0], &[1, 5]));
        assert_same(&scatter("mul").first(), &floats(&[1.0, 10.0, 3.0, 28.0, 5.0], &[1, 5]));
        assert_same(&scatter("max").first(), &floats(&[1.0, 10.0, 3.0, 7.0, 5.0], &[1, 5]));
        assert_same(&scatter("min").first(), &floats(&[1.0, 0.5, 3.0, 4.0, 5.0], &[1, 5]));
        assert!(scatter("mean").run().is_err());
        let rows = ints(&[2, 0, 1, 1, 2, 0]).reshape([2, 3]);
        for op in ["Scatter", "ScatterElements"] {
            let y = case(op).input(&Tensor::zeros([4, 3], (Kind::Float, Device::Cpu))).input(&rows);
            let expected =
                Tensor::zeros([4, 3], (Kind::Float, Device::Cpu)).scatter(0, &rows, &ramp(&[2, 3]));
            assert_same(&y.input(&ramp(&[2, 3])).first(), &expected);
        }
        let wide = ints(&[0; 4]).reshape([1, 4]);
        let wrong = case("ScatterElements").input(&ramp(&[2, 3])).input(&wide).input(&ramp(&[1, 4]));
        assert!(wrong.run().is_err());
    }

    #[test]
    fn scatter_nd_places_rows_and_elements() {
        let x = ramp(&[3, 2]);
        let scatter = |index: &Tensor, updates: &Tensor, how: &str| {
            let case = case("ScatterND").input(&x).input(index).input(updates);
            case.text("reduction", how).run().map(|mut y| y.remove(0))
        };
        let (rows, updates) = (ints(&[2, -3]).reshape([2, 1]), floats(&[9.0, 8.0, 7.0, 6.0], &[2, 2]));
        let expected = floats(&[7.0, 6.0, 2.0, 3.0, 9.0, 8.0], &[3, 2]);
        assert_same(&scatter(&rows, &updates, "none").unwrap(), &expected);
        let (places, updates) = (ints(&[1, 1, 1, 1]).reshape([2, 2]), floats(&[5.0, 2.0], &[2]));
        for (how, value) in [("add", 10.0), ("mul", 30.0), ("max", 5.0), ("min", 2.0)] {
            let y = scatter(&places, &updates, how).unwrap();
            assert_same(&y, &floats(&[0.0, 1.0, 2.0, value, 4.0, 5.0], &[3, 2]));
        }
        assert!(scatter(&places, &floats(&[5.0], &[1]), "none").is_err());
        assert!(scatter(&ints(&[3]).reshape([1, 1]), &ramp(&[1, 2]), "none").is_err());
    }

    #[test]
    fn scatters_are_differentiable_in_data_and_updates() {
        let index = ints(&[0, 2, 2]);
        for how in ["add", "mul", "max", "min"] {
            let scatter = |data: &Tensor, updates: &Tensor| {
                let case = case("ScatterElements").input(data).input(&index).input(updates);
                case.text("reduction", how).first()
            };
            assert_gradient(|data| scatter(data, &(double(&[3]) * 0.9)), &double(&[4]));
            assert_gradient(|updates| scatter(&(double(&[4]) * 0.9), updates), &double(&[3]));
        }
        let rows = ints(&[3, 0]).reshape([2, 1]);
        assert_gradient(
            |updates| case("ScatterND").input(&double(&[4, 2])).input(&rows).input(updates).first(),
            &double(&[2, 2]),
        );
    }

    #[test]
    fn padding_repeats_as_libtorch_does() {
        let x = ramp(&[2, 2, 3, 4]);
        let pads = [0, 0, 1, 2, 0, 0, 2, 3];
        let pad = |mode: &str| case("Pad").input(&x).input(&ints(&pads)).text("mode", mode).first();
        assert_same(&pad("edge"), &x.replication_pad2d([2, 3, 1, 2]));
        assert_same(&pad("reflect"), &x.reflection_pad2d([2, 3, 1, 2]));
        assert_same(&pad("wrap"), &x.pad([2, 3, 1, 2], "circular", None::<f64>));
        assert_same(&pad("constant"), &x.constant_pad_nd([2, 3, 1, 2]));
    }

    #[test]
    fn padding_takes_every_form_of_its_arguments() {
        let x = floats(&[1.0, 2.0, 3.0], &[3]);
        let old = case("Pad").opset(10).input(&x).ints("pads", &[1, 2]);
        let old = old.with("value", crate::Attribute::Float(9.0));
        let expected = floats(&[9.0, 1.0, 2.0, 3.0, 9.0, 9.0], &[6]);
        assert_same(&old.first(), &expected);
        let new = case("Pad").input(&x).input(&ints(&[1, 2])).input(&Tensor::from(9_f32));
        assert_same(&new.first(), &expected);
        let crop = case("Pad").input(&x).input(&ints(&[-1, 2])).text("mode", "edge").first();
        assert_same(&crop, &floats(&[2.0, 3.0, 3.0, 3.0], &[4]));
        let matrix = case("Pad").input(&ramp(&[2, 2])).input(&ints(&[1, 0])).absent().input(&ints(&[-1]));
        assert_same(&matrix.first(), &floats(&[0.0, 0.0, 1.0, 0.0, 2.0, 3.0], &[2, 3]));
        let twice = case("Pad").input(&x).input(&ints(&[5, 0])).text("mode", "reflect").first();
        assert_same(&twice, &floats(&[2.0, 1.0, 2.0, 3.0, 2.0, 1.0, 2.0, 3.0], &[8]));
        let whole = case("Pad").input(&ints(&[4])).input(&ints(&[1, 0])).input(&Tensor::from(7_i64));
        assert_same(&whole.first(), &ints(&[7, 4]));
        let mirror = case("Pad").input(&floats(&[4.0], &[1])).input(&ints(&[2, 1])).text("mode", "reflect");
        assert_same(&mirror.first(), &floats(&[4.0; 4], &[4]));
    }

    #[test]
    fn padding_refuses_and_never_panics() {
        let pad = |shape: &[i64], pads: &[i64], mode: &str| {
            case("Pad").input(&ramp(shape)).input(&ints(pads)).text("mode", mode).run()
        };
        assert!(pad(&[3], &[1], "edge").is_err() && pad(&[3], &[1, 1], "mirror").is_err());
        assert!(pad(&[0], &[1, 1], "edge").is_err() && pad(&[3], &[-2, -2], "constant").is_err());
        for mode in ["constant", "edge", "reflect", "wrap"] {
            for before in EXTREME {
                for after in EXTREME {
                    let _ = pad(&[2], &[before, after], mode);
                }
            }
            let padded =
                |x: &Tensor| case("Pad").input(x).input(&ints(&[1, 0, 0, 2])).text("mode", mode).first();
            assert_gradient(padded, &double(&[3, 3]));
        }
    }

    #[test]
    fn tiles_repeat() {
        let x = ramp(&[2, 3]);
        let tile =
            |repeats: &[i64]| case("Tile").input(&x).input(&ints(repeats)).run().map(|mut y| y.remove(0));
        assert_same(&tile(&[2, 2]).unwrap(), &x.repeat([2, 2]));
        assert_eq!(tile(&[0, 1]).unwrap().size(), [0, 3]);
        for repeats in [&[2][..], &[1, -1], &[1 << 40, 1 << 40], &[i64::MAX, 0], &[1, 2, 3]] {
            assert!(tile(repeats).is_err(), "{repeats:?}");
        }
    }

    #[test]
    fn depth_and_space_are_exchanged() {
        let x = ramp(&[1, 8, 2, 3]);
        let crd = case("DepthToSpace").input(&x).int("blocksize", 2).text("mode", "CRD").first();
        assert_same(&crd, &x.pixel_shuffle(2));
        let dcr = case("DepthToSpace").input(&x).int("blocksize", 2).first();
        // channels 0 and 2 alternate
        assert_same(
            &dcr.select(0, 0).select(0, 0).select(0, 0),
            &floats(&[0.0, 12.0, 1.0, 13.0, 2.0, 14.0], &[6]),
        );
        assert_same(&case("SpaceToDepth").input(&dcr).int("blocksize", 2).first(), &x);
        for block in [0, -1, 3, i64::MAX, i64::MIN] {
            assert!(case("DepthToSpace").input(&x).int("blocksize", block).run().is_err(), "{block}");
            assert!(case("SpaceToDepth").input(&x).int("blocksize", block).run().is_err(), "{block}");
        }
        assert!(case("DepthToSpace").input(&ramp(&[4])).int("blocksize", 2).run().is_err());
    }

    #[test]
    fn sequences_are_reversed_up_to_their_lengths() {
        let x = ramp(&[4, 4]);
        let reverse = |lengths: &[i64], batch: i64, time: i64| {
            let case = case("ReverseSequence").input(&x).input(&ints(lengths));
            case.int("batch_axis", batch).int("time_axis", time).run().map(|mut y| y.remove(0))
        };
        // the example of the standard, and its transpose
        let expected = floats(
            &[0.0, 1.0, 2.0, 3.0, 5.0, 4.0, 6.0, 7.0, 10.0, 9.0, 8.0, 11.0, 15.0, 14.0, 13.0, 12.0],
            &[4, 4],
        );
        assert_same(&reverse(&[1, 2, 3, 4], 0, 1).unwrap(), &expected);
        let other = case("ReverseSequence").input(&x.transpose(0, 1)).input(&ints(&[1, 2, 3, 4])).first();
        assert_same(&other, &expected.transpose(0, 1));
        assert!(reverse(&[1, 2, 3, 5], 0, 1).is_err() && reverse(&[1, 2, 3], 0, 1).is_err());
        assert!(reverse(&[1, 2, 3, 4], 1, 1).is_err());
    }

    #[test]
    fn triangles_are_cut_out() {
        let x = ramp(&[2, 3, 3]);
        assert_same(&case("Trilu").input(&x).first(), &x.triu(0));
        let lower = case("Trilu").input(&x).input(&Tensor::from(-1_i64)).int("upper", 0);
        assert_same(&lower.first(), &x.tril(-1));
        for k in EXTREME {
            assert_same(&case("Trilu").input(&x).input(&Tensor::from(k)).first(), &x.triu(k.clamp(-3, 3)));
        }
    }
}
