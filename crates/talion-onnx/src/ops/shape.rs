//! Operators about the shape and type of a tensor, and those that make tensors of a given shape.

use talion_core::Result;
use tch::{Device, Kind, Tensor};

use super::{Call, Kernel, arithmetic::broadcast, axes, axis, bounded, distinct, in_precision, product};

pub(super) const OPS: &[(&str, Kernel)] = &[
    ("Cast", cast),
    ("CastLike", cast_like),
    ("Constant", constant),
    ("ConstantOfShape", constant_of_shape),
    ("Dropout", dropout),
    ("Expand", expand),
    ("EyeLike", eye_like),
    ("Flatten", flatten),
    ("Identity", identity),
    ("Reshape", reshape),
    ("Shape", shape),
    ("Size", size),
    ("Squeeze", squeeze),
    ("Transpose", transpose),
    ("Unsqueeze", unsqueeze),
];

/// The shape of a scalar.
const SCALAR: [i64; 0] = [];

fn shape(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let sides = call.input(0)?.size();
    let rank = sides.len() as i64;
    let place = |value: i64| {
        let value = if value < 0 { value.saturating_add(rank) } else { value };
        value.clamp(0, rank) as usize
    };
    let start = place(call.attributes().int("start", 0)?);
    let end = call.attributes().maybe_int("end")?.map_or(sides.len(), place);
    Ok(vec![Tensor::f_from_slice(sides.get(start..end).unwrap_or_default())?])
}

fn size(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let elements = product(call, &call.input(0)?.size())?;
    Ok(vec![Tensor::f_scalar_tensor(elements, (Kind::Int64, Device::Cpu))?])
}

fn reshape(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    let zeros_are_kept = call.attributes().int("allowzero", 0)? != 0;
    let shape = resolve(call, &data.size(), &call.list(1)?, zeros_are_kept)?;
    Ok(vec![data.f_reshape(shape)?])
}

/// The shape that `target` means for a tensor of shape `from`: 0 copies a side, -1 is what is left.
fn resolve(call: &Call<'_>, from: &[i64], target: &[i64], zeros_are_kept: bool) -> Result<Vec<i64>> {
    let misfit = || call.refuse(format!("a tensor of shape {from:?} cannot get the shape {target:?}"));
    let mut shape = Vec::with_capacity(target.len());
    let mut open = None;
    for (place, &side) in target.iter().enumerate() {
        match side {
            0 if !zeros_are_kept => shape.push(*from.get(place).ok_or_else(misfit)?),
            -1 if open.is_none() => {
                open = Some(place);
                shape.push(1);
            }
            0.. => shape.push(side),
            _ => return Err(misfit()),
        }
    }
    let (elements, known) = (product(call, from)?, product(call, &shape)?);
    if let Some(place) = open {
        // in an empty batch the other sides say what is left
        let (all, part) =
            if known == 0 { (without_zeros(from), without_zeros(&shape)) } else { (elements, known) };
        if elements % known.max(1) != 0 || all % part != 0 {
            return Err(misfit());
        }
        shape[place] = all / part;
    }
    if product(call, &shape)? != elements {
        return Err(misfit());
    }
    if elements == 0 {
        bounded(call, &shape)?;
    }
    Ok(shape)
}

/// The product of the sides that are not zero.
fn without_zeros(sides: &[i64]) -> i64 {
    sides.iter().fold(1, |product: i64, &side| product.saturating_mul(side.max(1)))
}

fn flatten(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    let sides = data.size();
    let (rows, columns) = split(call, &sides, 1)?;
    Ok(vec![data.f_reshape([product(call, rows)?, product(call, columns)?])?])
}

/// The sides before and from the attribute `axis`, which may also stand behind the last one.
fn split<'a>(call: &Call<'_>, sides: &'a [i64], default: i64) -> Result<(&'a [i64], &'a [i64])> {
    let at = call.attributes().int("axis", default)?;
    let at = if at == sides.len() as i64 { at } else { axis(call, at, sides.len())? };
    Ok(sides.split_at(at as usize))
}

fn squeeze(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    let Some(list) = axes(call, 1, "axes")? else { return Ok(vec![data.f_squeeze()?]) };
    let sides = data.size();
    let places = distinct(call, &list, sides.len())?;
    if places.iter().any(|&place| sides[place as usize] != 1) {
        return Err(call.refuse(format!("axes {list:?} of a tensor of shape {sides:?} are not all 1")));
    }
    Ok(vec![data.f_squeeze_dims(places)?])
}

fn unsqueeze(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    let list = axes(call, 1, "axes")?.ok_or_else(|| call.refuse("axes are missing"))?;
    let mut places = distinct(call, &list, data.dim() + list.len())?;
    // from the first to the last, each stands where it will be in the result
    places.sort_unstable();
    let mut result = data.shallow_clone();
    for place in places {
        result = result.f_unsqueeze(place)?;
    }
    Ok(vec![result])
}

fn expand(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    let shape = broadcast(call, &data.size(), &call.list(1)?)?;
    bounded(call, &shape)?;
    Ok(vec![data.f_expand(shape, false)?])
}

fn transpose(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    let order = match call.attributes().ints("perm")? {
        Some(order) => order.to_vec(),
        None => (0..data.dim() as i64).rev().collect(),
    };
    if order.len() != data.dim() {
        return Err(call.refuse(format!("perm {order:?} of a tensor with {} axes", data.dim())));
    }
    Ok(vec![data.f_permute(distinct(call, &order, data.dim())?)?])
}

fn identity(call: &Call<'_>) -> Result<Vec<Tensor>> {
    Ok(vec![call.input(0)?.shallow_clone()])
}

fn dropout(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let data = call.input(0)?;
    if let Some(training) = call.optional(2)
        && bool::try_from(training)?
    {
        return Err(call.refuse("training_mode is on; export the model for inference"));
    }
    let mut results = vec![data.shallow_clone()];
    if call.wants(1) {
        let kind = if call.opset < 10 { data.kind() } else { Kind::Bool };
        results.push(Tensor::f_ones(data.size(), (kind, data.device()))?);
    }
    Ok(results)
}

/// The kind that an ONNX data type number stands for.
fn kind_of(call: &Call<'_>, number: i64) -> Result<Kind> {
    Ok(match number {
        1 => call.float,
        2 => Kind::Uint8,
        3 => Kind::Int8,
        5 => Kind::Int16,
        6 => Kind::Int,
        7 => Kind::Int64,
        9 => Kind::Bool,
        10 => Kind::Half,
        11 => Kind::Double,
        16 => Kind::BFloat16,
        _ => return Err(call.refuse(format!("data type {number} of ONNX has no counterpart here"))),
    })
}

// libtorch's conversion of floats to integers truncates, as ONNX asks, and everything but zero is true
fn cast(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let kind = kind_of(call, call.attributes().required_int("to")?)?;
    Ok(vec![call.input(0)?.f_to_kind(kind)?])
}

fn cast_like(call: &Call<'_>) -> Result<Vec<Tensor>> {
    Ok(vec![call.input(0)?.f_to_kind(call.input(1)?.kind())?])
}

fn constant(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let attributes = call.attributes();
    let value = if let Some(value) = attributes.tensor("value")? {
        value.shallow_clone()
    } else if let Some(value) = attributes.maybe_float("value_float")? {
        Tensor::f_scalar_tensor(value, (Kind::Float, Device::Cpu))?
    } else if let Some(values) = attributes.floats("value_floats")? {
        Tensor::f_from_slice(values)?
    } else if let Some(value) = attributes.maybe_int("value_int")? {
        Tensor::f_scalar_tensor(value, (Kind::Int64, Device::Cpu))?
    } else if let Some(values) = attributes.ints("value_ints")? {
        Tensor::f_from_slice(values)?
    } else {
        return Err(call.refuse("holds neither a tensor nor numbers"));
    };
    Ok(vec![in_precision(call, &value)?])
}

fn constant_of_shape(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let shape = call.list(0)?;
    bounded(call, &shape)?;
    let value = match call.attributes().tensor("value")? {
        Some(value) if value.numel() == 1 => in_precision(call, &value.f_reshape(SCALAR)?)?,
        Some(value) => return Err(call.refuse(format!("the value has {} elements, not one", value.numel()))),
        None => Tensor::f_zeros(SCALAR, (call.float, Device::Cpu))?,
    };
    Ok(vec![value.f_expand(shape, false)?])
}

fn eye_like(call: &Call<'_>) -> Result<Vec<Tensor>> {
    let like = call.input(0)?;
    let [rows, columns] = like.size()[..] else {
        return Err(call.refuse(format!("the shape {:?} is not that of a matrix", like.size())));
    };
    let kind = match call.attributes().maybe_int("dtype")? {
        Some(number) => kind_of(call, number)?,
        None => like.kind(),
    };
    let numbers = |count: i64| Tensor::f_arange(count, (Kind::Int64, like.device()));
    let diagonal = numbers(columns)?.f_unsqueeze(0)?.f_sub(&numbers(rows)?.f_unsqueeze(1)?)?;
    Ok(vec![diagonal.f_eq(call.attributes().int("k", 0)?)?.f_to_kind(kind)?])
}

#[cfg(test)]
mod tests {
    use super::{super::testing::*, *};
    use crate::Attribute;

    #[test]
    fn shapes_are_read_whole_and_in_part() {
        let x = ramp(&[2, 3, 4]);
        assert_same(&case("Shape").input(&x).first(), &ints(&[2, 3, 4]));
        let table: [(i64, Option<i64>, &[i64]); 6] = [
            (1, None, &[3, 4]),
            (-1, None, &[4]),
            (0, Some(-1), &[2, 3]),
            (-99, Some(99), &[2, 3, 4]),
            (2, Some(1), &[]),
            (i64::MIN, Some(i64::MAX), &[2, 3, 4]),
        ];
        for (start, end, expected) in table {
            let part = case("Shape").input(&x).int("start", start);
            let part = if let Some(end) = end { part.int("end", end) } else { part };
            assert_same(&part.first(), &ints(expected));
        }
        assert_same(&case("Size").input(&x).first(), &Tensor::from(24_i64));
    }

    #[test]
    fn reshape_copies_infers_and_refuses() {
        let x = ramp(&[2, 3, 4]);
        let table: [(&[i64], &[i64]); 5] = [
            (&[4, 6], &[4, 6]),
            (&[0, -1], &[2, 12]),
            (&[-1], &[24]),
            (&[0, 0, 2, -1], &[2, 3, 2, 2]),
            (&[1, 24], &[1, 24]),
        ];
        for (target, expected) in table {
            assert_same(&case("Reshape").input(&x).input(&ints(target)).first(), &ramp(expected));
        }
        let bad: [&[i64]; 8] =
            [&[5, -1], &[-1, -1], &[-2, 12], &[25], &[2, 3, 4, 0], &[i64::MAX, i64::MAX], &[i64::MIN], &[]];
        for target in bad {
            let message = case("Reshape").input(&x).input(&ints(target)).problem();
            assert!(message.contains("Reshape"), "{message}");
        }
        let one = case("Reshape").input(&ramp(&[1])).input(&ints(&[])).first();
        assert_eq!(one.dim(), 0);
    }

    #[test]
    fn empty_batches_reshape() {
        let empty = ramp(&[0, 3, 4]);
        let of = |target: &[i64], allow: i64| {
            case("Reshape")
                .input(&empty)
                .input(&ints(target))
                .int("allowzero", allow)
                .run()
                .map(|y| y[0].size())
        };
        assert_eq!(of(&[0, -1], 0).unwrap(), [0, 12]);
        assert_eq!(of(&[-1, 12], 0).unwrap(), [0, 12]);
        assert_eq!(of(&[7, 0], 1).unwrap(), [7, 0]);
        assert!(of(&[i64::MAX, i64::MAX, 0], 1).is_err());
        assert!(case("Reshape").input(&ramp(&[6])).input(&ints(&[0, 6])).int("allowzero", 1).run().is_err());
    }

    #[test]
    fn flatten_splits_anywhere() {
        let x = ramp(&[2, 3, 4]);
        for (axis, shape) in
            [(0, [1, 24]), (1, [2, 12]), (2, [6, 4]), (3, [24, 1]), (-1, [6, 4]), (-3, [1, 24])]
        {
            assert_same(&case("Flatten").input(&x).int("axis", axis).first(), &ramp(&shape));
        }
        assert_same(&case("Flatten").input(&x).first(), &ramp(&[2, 12]));
        for axis in [4, -4, i64::MAX, i64::MIN] {
            assert!(case("Flatten").input(&x).int("axis", axis).run().is_err(), "{axis}");
        }
    }

    #[test]
    fn axes_are_read_from_attribute_and_input() {
        let x = ramp(&[1, 3, 1, 2]);
        let squeeze = || case("Squeeze").input(&x);
        assert_same(&squeeze().first(), &ramp(&[3, 2]));
        assert_same(&squeeze().opset(11).ints("axes", &[0]).first(), &ramp(&[3, 1, 2]));
        assert_same(&squeeze().input(&ints(&[-2, 0])).first(), &ramp(&[3, 2]));
        assert!(squeeze().input(&ints(&[1])).run().is_err());
        assert!(squeeze().input(&ints(&[0, -4])).run().is_err());
        let x = ramp(&[3, 2]);
        let unsqueeze = || case("Unsqueeze").input(&x);
        assert_same(&unsqueeze().opset(11).ints("axes", &[0, 3]).first(), &ramp(&[1, 3, 2, 1]));
        assert_same(&unsqueeze().input(&ints(&[-1, 1])).first(), &ramp(&[3, 1, 2, 1]));
        assert!(unsqueeze().run().is_err());
        assert!(unsqueeze().input(&ints(&[3])).run().is_err());
    }

    #[test]
    fn expand_broadcasts_both_ways() {
        let x = ramp(&[3, 1]);
        let expand =
            |shape: &[i64]| case("Expand").input(&x).input(&ints(shape)).run().map(|mut y| y.remove(0));
        assert_same(&expand(&[2, 1, 4]).unwrap(), &x.expand([2, 3, 4], false));
        assert_same(&expand(&[1]).unwrap(), &x);
        assert_same(&expand(&[5]).unwrap(), &x.expand([3, 5], false));
        assert!(expand(&[2, 4]).is_err());
        assert!(expand(&[1 << 20, 1 << 20, 1, 1]).is_err());
        assert!(expand(&[3, -1]).is_err());
    }

    #[test]
    fn transpose_permutes() {
        let x = ramp(&[2, 3, 4]);
        assert_same(&case("Transpose").input(&x).first(), &x.permute([2, 1, 0]));
        assert_same(&case("Transpose").input(&x).ints("perm", &[1, 2, 0]).first(), &x.permute([1, 2, 0]));
        assert!(case("Transpose").input(&x).ints("perm", &[0, 1]).run().is_err());
        assert!(case("Transpose").input(&x).ints("perm", &[0, 1, 1]).run().is_err());
    }

    #[test]
    fn dropout_passes_on() {
        let x = ramp(&[2, 2]);
        let dropout = || case("Dropout").input(&x);
        assert_same(&dropout().first(), &x);
        let both = dropout().outputs(2).run().unwrap();
        assert_same(&both[1], &Tensor::ones([2, 2], (Kind::Bool, Device::Cpu)));
        assert_eq!(dropout().opset(7).outputs(2).run().unwrap()[1].kind(), Kind::Float);
        assert_same(&dropout().absent().input(&Tensor::from(false)).first(), &x);
        assert!(dropout().absent().input(&Tensor::from(true)).problem().contains("training_mode"));
        assert_same(&case("Identity").input(&x).first(), &x);
    }

    #[test]
    fn casts_truncate_and_know_their_precision() {
        let x = floats(&[-1.9, -0.5, 0.0, 2.7], &[4]);
        let cast = |to: i64| case("Cast").input(&x).int("to", to);
        assert_same(&cast(7).first(), &ints(&[-1, 0, 0, 2]));
        assert_same(&cast(9).first(), &Tensor::from_slice(&[true, true, false, true]));
        let kinds = [
            (1, Kind::Float),
            (2, Kind::Uint8),
            (3, Kind::Int8),
            (5, Kind::Int16),
            (6, Kind::Int),
            (10, Kind::Half),
            (11, Kind::Double),
            (16, Kind::BFloat16),
        ];
        for (to, kind) in kinds {
            assert_eq!(case("Cast").input(&x.abs()).int("to", to).first().kind(), kind);
        }
        assert_eq!(cast(1).float(Kind::Double).first().kind(), Kind::Double);
        assert!(cast(8).run().is_err() && cast(12).run().is_err() && case("Cast").input(&x).run().is_err());
        assert_same(&case("CastLike").input(&x).input(&ints(&[0])).first(), &ints(&[-1, 0, 0, 2]));
        assert_same(
            &case("Cast").input(&Tensor::from_slice(&[true, false])).int("to", 1).first(),
            &floats(&[1.0, 0.0], &[2]),
        );
    }

    #[test]
    fn constants_come_in_five_forms() {
        let constant = |name: &str, value: Attribute| case("Constant").with(name, value);
        let half = floats(&[0.5], &[1]);
        assert_same(&constant("value", Attribute::Tensor(half.shallow_clone())).first(), &half);
        assert_same(&constant("value_float", Attribute::Float(0.5)).first(), &Tensor::from(0.5_f32));
        assert_same(&constant("value_floats", Attribute::Floats(vec![0.5])).first(), &half);
        assert_same(&constant("value_int", Attribute::Int(3)).first(), &Tensor::from(3_i64));
        assert_same(&constant("value_ints", Attribute::Ints(vec![3, 4])).first(), &ints(&[3, 4]));
        let double = constant("value_float", Attribute::Float(0.5)).float(Kind::Double);
        assert_eq!(double.first().kind(), Kind::Double);
        assert!(constant("value_string", Attribute::Text("a".into())).run().is_err());
    }

    #[test]
    fn tensors_of_one_value_have_its_type() {
        let of = |shape: &[i64]| case("ConstantOfShape").input(&ints(shape));
        assert_same(&of(&[2, 3]).first(), &Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)));
        let seven = of(&[2]).with("value", Attribute::Tensor(ints(&[7])));
        assert_same(&seven.first(), &ints(&[7, 7]));
        assert_eq!(of(&[]).first().dim(), 0);
        assert_eq!(of(&[1]).float(Kind::Double).first().kind(), Kind::Double);
        assert!(of(&[1 << 30]).run().is_err() && of(&[-1]).run().is_err());
        assert!(of(&[2]).with("value", Attribute::Tensor(ints(&[7, 8]))).run().is_err());
    }

    #[test]
    fn eyes_have_diagonals() {
        let x = ramp(&[3, 4]);
        let eye = |k: i64| case("EyeLike").input(&x).int("k", k).first();
        assert_same(&eye(0), &Tensor::eye_m(3, 4, (Kind::Float, Device::Cpu)));
        assert_same(&eye(1), &Tensor::ones([3, 4], (Kind::Float, Device::Cpu)).triu(1).tril(1));
        assert_same(&eye(i64::MIN), &x.zeros_like());
        assert_eq!(case("EyeLike").input(&x).int("dtype", 7).first().kind(), Kind::Int64);
        assert!(case("EyeLike").input(&ramp(&[3])).run().is_err());
    }
}
