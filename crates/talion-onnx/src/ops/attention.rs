//! Attention, as products and a softmax that can be differentiated twice.

use talion_core::Result;
use tch::{Kind, Tensor};

use super::{
    Call, Kernel,
    arithmetic::{broadcast, floating, grown, same_kind},
};

pub(super) const OPS: &[(&str, Kernel)] = &[("Attention", attention)];

/// Queries, keys and values, `[N, heads, length, size]`, the latter two with as many heads as the queries.
struct Heads {
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    /// The keys and values before their heads were repeated.
    originals: (Tensor, Tensor),
    /// Whether the result is a list of vectors, as the inputs were.
    are_joined: bool,
}

fn attention(call: &Call<'_>) -> Result<Vec<Tensor>> {
    refuse_caches(call)?;
    let heads = Heads::read(call)?;
    let (scores, raw) = scores(call, &heads)?;
    let mut y = heads.attended(&weights(call, &scores)?)?;
    if heads.are_joined {
        y = y.f_permute([0, 2, 1, 3])?.f_flatten(2, 3)?;
    }
    let (keys, values) = heads.originals;
    Ok(vec![y, keys, values, raw])
}

/// Refuses what belongs to the generation of texts: keys and values of the past, and results for the future.
fn refuse_caches(call: &Call<'_>) -> Result<()> {
    if (4..7).any(|place| call.optional(place).is_some()) || call.wants(1) || call.wants(2) {
        return Err(call.refuse("keys and values of the past or for the future are not supported"));
    }
    let attributes = call.attributes();
    let is_special =
        attributes.int("qk_matmul_output_mode", 0)? != 0 || attributes.float("softcap", 0.0)? != 0.0;
    if call.wants(3) && is_special {
        return Err(call.refuse("of the products only the raw ones can be had, without softcap"));
    }
    Ok(())
}

impl Heads {
    fn read(call: &Call<'_>) -> Result<Self> {
        let inputs = [floating(call)?, call.input(1)?, call.input(2)?];
        same_kind(call, &inputs)?;
        let rank = inputs[0].dim();
        if inputs.iter().any(|input| input.dim() != rank) || !(3..=4).contains(&rank) {
            let shapes = inputs.map(Tensor::size);
            return Err(call.refuse(format!("queries, keys and values of shapes {shapes:?}")));
        }
        let are_joined = rank == 3;
        let split = |input: &Tensor, attribute: &str| {
            if are_joined { split_heads(call, input, attribute) } else { Ok(input.shallow_clone()) }
        };
        let queries = split(inputs[0], "q_num_heads")?;
        let keys = split(inputs[1], "kv_num_heads")?;
        let values = split(inputs[2], "kv_num_heads")?;
        check(call, &queries.size(), &keys.size(), &values.size())?;
        let heads = queries.size()[1];
        let repeated = |tensor: &Tensor| repeat_heads(tensor, heads);
        Ok(Self {
            keys: repeated(&keys)?,
            values: repeated(&values)?,
            queries,
            originals: (keys, values),
            are_joined,
        })
    }

    /// The weighted sums of the values.
    fn attended(&self, weights: &Tensor) -> Result<Tensor> {
        Ok(weights.f_matmul(&self.values)?)
    }
}

/// `[N, length, heads * size]` as `[N, heads, length, size]`.
fn split_heads(call: &Call<'_>, x: &Tensor, attribute: &str) -> Result<Tensor> {
    let heads = call.attributes().required_int(attribute)?;
    let (batch, length, size) = x.size3()?;
    if heads < 1 || size % heads != 0 {
        return Err(call.refuse(format!("vectors of size {size} for {heads} heads")));
    }
    Ok(x.f_reshape([batch, length, heads, size / heads])?.f_permute([0, 2, 1, 3])?)
}

/// Refuses shapes that are not those of one attention.
fn check(call: &Call<'_>, queries: &[i64], keys: &[i64], values: &[i64]) -> Result<()> {
    let fits = match (queries, keys, values) {
        (&[n, heads, _, size], &[m, some, length, same], &[k, others, lengths, _]) => {
            let is_batch = n == m && n == k;
            let is_group = some >= 1 && some == others && heads % some == 0;
            is_batch && is_group && size == same && size >= 1 && length == lengths && length >= 1
        }
        _ => false,
    };
    if fits {
        Ok(())
    } else {
        Err(call.refuse(format!("queries {queries:?} with keys {keys:?} and values {values:?}")))
    }
}

/// Each head as often as there are queries' heads for it.
fn repeat_heads(x: &Tensor, heads: i64) -> Result<Tensor> {
    let (batch, some, length, size) = x.size4()?;
    if some == heads {
        return Ok(x.shallow_clone());
    }
    let spread = x.f_unsqueeze(2)?.f_expand([batch, some, heads / some, length, size], false)?;
    Ok(spread.f_reshape([batch, heads, length, size])?)
}

/// The scaled and capped products of queries and keys, and the products as they are handed out.
fn scores(call: &Call<'_>, heads: &Heads) -> Result<(Tensor, Tensor)> {
    let (batch, count, length, size) = heads.queries.size4()?;
    let (_, _, seen, _) = heads.keys.size4()?;
    grown(call, &[batch, count, length, seen], &[&heads.queries, &heads.keys])?;
    let attributes = call.attributes();
    let scale = attributes.maybe_float("scale")?.unwrap_or(1.0 / (size as f64).sqrt());
    let raw = heads.queries.f_mul_scalar(scale)?.f_matmul(&heads.keys.f_transpose(2, 3)?)?;
    let cap = attributes.float("softcap", 0.0)?;
    let capped =
        if cap == 0.0 { raw.shallow_clone() } else { raw.f_div_scalar(cap)?.f_tanh()?.f_mul_scalar(cap)? };
    Ok((capped, raw))
}

/// The softmax of the scores, 0 where a mask hides a key. A query that sees no key at all has weights 0.
fn weights(call: &Call<'_>, scores: &Tensor) -> Result<Tensor> {
    let kind = match call.attributes().maybe_int("softmax_precision")? {
        None => scores.kind(),
        Some(1) => call.float,
        Some(10) => Kind::Half,
        Some(11) => Kind::Double,
        Some(16) => Kind::BFloat16,
        Some(number) => return Err(call.refuse(format!("a softmax of data type {number}"))),
    };
    let Some(bias) = bias(call, scores)? else {
        return Ok(scores.f_to_kind(kind)?.f_softmax(-1, None)?.f_to_kind(scores.kind())?);
    };
    let is_blind = bias.f_eq(f64::NEG_INFINITY)?.f_all_dim(-1, true)?;
    // such a query's softmax would be NaN, and its gradient too
    let masked = scores.f_add(&bias.f_masked_fill(&is_blind, 0.0)?)?;
    let weights = masked.f_to_kind(kind)?.f_softmax(-1, None)?.f_to_kind(scores.kind())?;
    Ok(weights.f_masked_fill(&is_blind, 0.0)?)
}

/// What is added to the scores: the mask, and minus infinity for keys that are hidden. `None` if all are seen.
fn bias(call: &Call<'_>, scores: &Tensor) -> Result<Option<Tensor>> {
    let mask = mask(call, scores)?;
    let Some(hidden) = hidden(call, scores)? else { return Ok(mask) };
    let mask = match mask {
        Some(mask) => mask,
        None => Tensor::f_zeros([1], (scores.kind(), scores.device()))?,
    };
    let hidden =
        hidden.f_zeros_like()?.f_to_kind(scores.kind())?.f_masked_fill(&hidden, f64::NEG_INFINITY)?;
    Ok(Some(mask.f_add(&hidden)?))
}

/// The input `attn_mask` as numbers to add; a shorter one hides the keys behind its end.
fn mask(call: &Call<'_>, scores: &Tensor) -> Result<Option<Tensor>> {
    let Some(mask) = call.optional(3) else { return Ok(None) };
    let mask = mask.f_to_device(scores.device())?;
    let numbers = if mask.kind() == Kind::Bool {
        let zeros = mask.f_zeros_like()?.f_to_kind(scores.kind())?;
        zeros.f_masked_fill(&mask.f_logical_not()?, f64::NEG_INFINITY)?
    } else if mask.kind() == scores.kind() {
        mask
    } else {
        return Err(call.refuse(format!("a mask of type {:?}", mask.kind())));
    };
    let (sides, shape) = (scores.size(), numbers.size());
    let (Some(&seen), Some(&length)) = (sides.last(), shape.last()) else {
        return Err(call.refuse("a mask that is a single number"));
    };
    if length == 1 && seen > 1 {
        return Err(
            call.refuse("a mask of length 1, which could be for the first key or for all, is ambiguous")
        );
    }
    let numbers = if length < seen {
        numbers.f_pad([0, seen - length], "constant", f64::NEG_INFINITY)?
    } else {
        numbers
    };
    if broadcast(call, &sides, &numbers.size())? != sides {
        return Err(call.refuse(format!("a mask of shape {shape:?} for scores of shape {sides:?}")));
    }
    Ok(Some(numbers))
}

/// Which keys each query may not see because of their places, as booleans. `None` if it may see all.
fn hidden(call: &Call<'_>, scores: &Tensor) -> Result<Option<Tensor>> {
    let attributes = call.attributes();
    let window = |name: &str| match attributes.int(name, -1)? {
        -1 => Ok(None),
        distance @ 0.. => Ok(Some(distance)),
        distance => Err(call.refuse(format!("{name} is {distance}"))),
    };
    let (left, mut right) = (window("left_window_size")?, window("right_window_size")?);
    if attributes.int("is_causal", 0)? != 0 {
        right = Some(0);
    }
    if left.is_none() && right.is_none() {
        return Ok(None);
    }
    let (_, _, length, seen) = scores.size4()?;
    let mut visible = Tensor::f_ones([length, seen], (Kind::Float, scores.device()))?;
    if let Some(distance) = left {
        visible = visible.f_triu(-distance.min(length))?;
    }
    if let Some(distance) = right {
        visible = visible.f_tril(distance.min(seen))?;
    }
    Ok(Some(visible.f_eq(0.0)?))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            arithmetic::twice::{assert_gradients, wave},
            testing::{Case, assert_same, case, ints, ramp},
        },
        *,
    };
    use crate::Attribute;

    fn on(q: &Tensor, k: &Tensor, v: &Tensor) -> Case {
        case("Attention").opset(24).input(q).input(k).input(v)
    }

    /// libtorch's own, of `[N, heads, length, size]`.
    fn theirs(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, is_causal: bool) -> Tensor {
        Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal, None, false)
    }

    fn example() -> [Tensor; 3] {
        [wave(&[2, 2, 3, 4]), wave(&[2, 2, 5, 4]) + 0.1, wave(&[2, 2, 5, 3]) - 0.2]
    }

    #[test]
    fn attention_is_that_of_libtorch() {
        let [q, k, v] = example();
        assert_same(&on(&q, &k, &v).first(), &theirs(&q, &k, &v, None, false));
        assert_same(&on(&q, &k, &v).int("is_causal", 1).first(), &theirs(&q, &k, &v, None, true));
        let scaled = on(&q, &k, &v).with("scale", Attribute::Float(0.25)).first();
        assert_same(&scaled, &theirs(&(&q * 0.5), &k, &v, None, false));
        let numbers = wave(&[2, 1, 3, 5]);
        let masked = on(&q, &k, &v).input(&numbers).first();
        assert_same(&masked, &theirs(&q, &k, &v, Some(&numbers), false));
        let seen = wave(&[3, 5]).gt(-0.3);
        assert_same(&on(&q, &k, &v).input(&seen).first(), &theirs(&q, &k, &v, Some(&seen), false));
    }

    #[test]
    fn vectors_are_split_into_heads_and_joined_again() {
        let [q, k, v] = example();
        let join = |x: &Tensor| x.permute([0, 2, 1, 3]).flatten(2, 3);
        let call = on(&join(&q), &join(&k), &join(&v)).int("q_num_heads", 2).int("kv_num_heads", 2);
        assert_same(&call.first(), &join(&theirs(&q, &k, &v, None, false)));
        assert!(call.int("q_num_heads", 3).run().is_err());
        assert!(on(&join(&q), &join(&k), &join(&v)).run().is_err());
    }

    #[test]
    fn queries_share_keys_in_groups() {
        let (q, k, v) = (wave(&[1, 4, 3, 2]), wave(&[1, 2, 3, 2]), wave(&[1, 2, 3, 2]) + 0.5);
        let spread = |x: &Tensor| x.repeat_interleave_self_int(2, 1_i64, None);
        assert_same(&on(&q, &k, &v).first(), &theirs(&q, &spread(&k), &spread(&v), None, false));
        assert!(on(&wave(&[1, 3, 3, 2]), &k, &v).run().is_err());
    }

    #[test]
    fn masks_are_combined_and_short_ones_filled_up() {
        let [q, k, v] = example();
        let short = Tensor::from_slice(&[true, false, true]);
        let long = Tensor::from_slice(&[true, false, true, false, false]).reshape([1, 5]);
        assert_same(&on(&q, &k, &v).input(&short).first(), &theirs(&q, &k, &v, Some(&long), false));
        let both = on(&q, &k, &v).input(&short).int("is_causal", 1).first();
        let lower = Tensor::ones([3, 5], (Kind::Float, tch::Device::Cpu)).tril(0).gt(0.0);
        assert_same(&both, &theirs(&q, &k, &v, Some(&lower.logical_and(&long)), false));
        let window = on(&q, &k, &v).int("left_window_size", 1).int("right_window_size", 2).first();
        let seen = Tensor::from_slice(
            &[
                [true, true, true, false, false],
                [true, true, true, true, false],
                [false, true, true, true, true],
            ]
            .concat(),
        );
        assert_same(&window, &theirs(&q, &k, &v, Some(&seen.reshape([3, 5])), false));
        let wrong =
            [ramp(&[3, 5]), ints(&[1]), wave(&[3, 6]), wave(&[7, 1, 1, 1, 5]), wave(&[]), wave(&[3, 1])];
        for mask in wrong {
            assert!(on(&q, &k, &v).input(&mask).run().is_err(), "{:?}", mask.size());
        }
    }

    #[test]
    fn a_query_that_sees_nothing_gets_zeros() {
        let [q, k, v] = example();
        let seen = Tensor::from_slice(&[true, false, true]).unsqueeze(1).expand([3, 5], false);
        for mask in [seen.shallow_clone(), seen.to_kind(Kind::Double).log()] {
            let masked = |q: &Tensor| on(q, &k, &v).input(&mask).first();
            let y = masked(&q);
            assert_same(&y.select(2, 1), &y.select(2, 1).zeros_like());
            assert_same(&y.select(2, 0), &theirs(&q, &k, &v, None, false).select(2, 0));
            assert_gradients(masked, &q);
        }
    }

    #[test]
    fn scores_are_capped_and_their_softmax_may_be_more_precise() {
        let [q, k, v] = example();
        let scores = q.matmul(&k.transpose(2, 3)) * 0.5;
        let capped = on(&q, &k, &v).with("softcap", Attribute::Float(0.5)).first();
        assert_same(&capped, &((scores * 2.0).tanh() * 0.5).softmax(-1, None).matmul(&v));
        let short = [&q, &k, &v].map(|x| x.to_kind(Kind::Float));
        let precise = on(&short[0], &short[1], &short[2]).int("softmax_precision", 11).first();
        assert_eq!(precise.kind(), Kind::Float);
        let call = on(&q, &k, &v).int("softmax_precision", 1).float(Kind::Double);
        assert_same(&call.first(), &theirs(&q, &k, &v, None, false));
        assert!(on(&q, &k, &v).int("softmax_precision", 7).run().is_err());
    }

    #[test]
    fn the_products_can_be_had() {
        let [q, k, v] = example();
        let results = on(&q, &k, &v).outputs(4);
        assert!(results.problem().contains("past"));
        let node = super::super::testing::node("Attention", "q k v", "y - - products", vec![]);
        let inputs = [Some(q.shallow_clone()), Some(k.shallow_clone()), Some(v)];
        let call = Call { node: &node, opset: 23, inputs: &inputs, float: Kind::Float };
        assert_same(&attention(&call).unwrap()[3], &(q.matmul(&k.transpose(2, 3)) * 0.5));
    }

    #[test]
    fn what_belongs_to_generation_is_refused() {
        let [q, k, v] = example();
        let past = on(&q, &k, &v).absent().input(&k).input(&v);
        assert!(past.problem().contains("past"));
        let counted = on(&q, &k, &v).absent().absent().absent().input(&ints(&[5, 5]));
        assert!(counted.problem().contains("past"));
        assert!(on(&q, &k, &v).int("left_window_size", -2).run().is_err());
        assert!(on(&q, &q, &v).problem().contains("values"));
    }

    #[test]
    fn attention_has_two_derivatives() {
        let (q, k, v) = (wave(&[1, 2, 2, 2]), wave(&[1, 1, 3, 2]) + 0.1, wave(&[1, 1, 3, 2]) - 0.2);
        let mask = wave(&[2, 3]);
        let of = |q: &Tensor, k: &Tensor, v: &Tensor| {
            let call = on(q, k, v).input(&mask).int("is_causal", 1);
            call.with("softcap", Attribute::Float(2.0)).first().square()
        };
        assert_gradients(|q| of(q, &k, &v), &q);
        assert_gradients(|k| of(&q, k, &v), &k);
        assert_gradients(|v| of(&q, &k, v), &v);
    }
}
