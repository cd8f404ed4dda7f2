//! JSON bodies: `{"tensor": ...}` or `{"images": [...]}`.
//!
//! They are read in one pass, straight into values, because a tree of JSON values takes many times the memory of its
//! text.

use std::fmt;

use serde::{
    Deserialize,
    de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor},
};

use super::{
    Limits, Picture, Problem, brief,
    file::Batch,
    tensor::{MAX_CHANNELS, MAX_RANK, Order, Shape, name, outside, unit},
};

pub(super) fn pictures(bytes: &[u8], limits: &Limits) -> Result<Vec<Picture>, Problem> {
    let mut problem = None;
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let body = Body { limits, problem: &mut problem }.deserialize(&mut json);
    let pictures = body.and_then(|pictures| json.end().map(|()| pictures));
    pictures.map_err(|error| problem.unwrap_or_else(|| Problem::Malformed(brief(error))))
}

/// Stops the parser. Its errors are only text, so the problem is kept beside it.
fn stop<E: de::Error>(kept: &mut Option<Problem>, problem: Problem) -> E {
    let error = E::custom(&problem);
    *kept = Some(problem);
    error
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Field {
    Tensor,
    Images,
}

struct Body<'a> {
    limits: &'a Limits,
    problem: &'a mut Option<Problem>,
}

impl<'de> DeserializeSeed<'de> for Body<'_> {
    type Value = Vec<Picture>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Body<'_> {
    type Value = Vec<Picture>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object with one field, `tensor` or `images`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Self { limits, problem } = self;
        let pictures = match map.next_key::<Field>()? {
            Some(Field::Tensor) => tensor(&mut map, limits, problem)?,
            Some(Field::Images) => map.next_value_seed(Images { limits, problem })?,
            None => return Err(de::Error::custom("expected a field, `tensor` or `images`")),
        };
        match map.next_key::<Field>()? {
            None => Ok(pictures),
            Some(_) => Err(de::Error::custom("expected one field, `tensor` or `images`, found a second")),
        }
    }
}

struct Images<'a> {
    limits: &'a Limits,
    problem: &'a mut Option<Problem>,
}

impl<'de> DeserializeSeed<'de> for Images<'_> {
    type Value = Vec<Picture>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Images<'_> {
    type Value = Vec<Picture>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array of image files in base64")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
        let Self { limits, problem } = self;
        let mut batch = Batch::new(limits);
        while let Some(text) = array.next_element::<String>()? {
            batch.add_base64(&text).map_err(|found| stop::<A::Error>(problem, found))?;
        }
        batch.finish().map_err(|found| stop(problem, found))
    }
}

fn tensor<'de, A: MapAccess<'de>>(
    map: &mut A,
    limits: &Limits,
    problem: &mut Option<Problem>,
) -> Result<Vec<Picture>, A::Error> {
    let mut filling = Filling::new(limits);
    let read = map.next_value_seed(Level { filling: &mut filling, depth: 0 });
    if read.is_err() {
        *problem = filling.problem.take();
    }
    read?;
    filling.pictures(limits).map_err(|found| stop(problem, found))
}

/// A tensor while it is read.
struct Filling {
    values: Vec<f32>,
    max_values: usize,
    /// Arrays around each number, known from the first number on.
    rank: Option<usize>,
    /// Entries of the arrays at each depth, known once the first of them has ended.
    sizes: [Option<usize>; MAX_RANK],
    /// Where the parser is: the index in the array at each depth.
    place: [usize; MAX_RANK],
    problem: Option<Problem>,
}

impl Filling {
    fn new(limits: &Limits) -> Self {
        let max_values = limits.max_total_pixels.saturating_mul(MAX_CHANNELS.into());
        Self {
            values: Vec::new(),
            max_values: usize::try_from(max_values).unwrap_or(usize::MAX),
            rank: None,
            sizes: [None; MAX_RANK],
            place: [0; MAX_RANK],
            problem: None,
        }
    }

    fn enter(&self, depth: usize) -> Result<(), Problem> {
        if depth == MAX_RANK {
            let message = format!("a tensor of more than {MAX_RANK} axes, [N,C,H,W]");
            return Err(Problem::Unprocessable(message));
        }
        match self.rank {
            Some(rank) if depth >= rank => Err(self.ragged(depth, "an array")),
            _ => Ok(()),
        }
    }

    fn number(&mut self, depth: usize, value: f64) -> Result<(), Problem> {
        if *self.rank.get_or_insert(depth) != depth {
            return Err(self.ragged(depth, "a number"));
        }
        let value = unit(value).map_err(|refused| outside(&self.place[..depth], refused))?;
        if self.values.len() >= self.max_values {
            return Err(Problem::TooLarge(format!("a tensor of more than {} values", self.max_values)));
        }
        self.values.push(value);
        Ok(())
    }

    fn leave(&mut self, depth: usize, entries: usize) -> Result<(), Problem> {
        if entries == 0 {
            let message = format!("{} is an empty array", name(&self.place[..depth]));
            return Err(Problem::Unprocessable(message));
        }
        if *self.sizes[depth].get_or_insert(entries) != entries {
            return Err(self.ragged(depth, &format!("an array of {entries}")));
        }
        Ok(())
    }

    fn ragged(&self, depth: usize, found: &str) -> Problem {
        let place = name(&self.place[..depth]);
        Problem::Malformed(format!("a ragged tensor: {place} is {found}, unlike those before it"))
    }

    fn pictures(&self, limits: &Limits) -> Result<Vec<Picture>, Problem> {
        let axes: Vec<u64> = self.sizes.iter().flatten().map(|&size| size as u64).collect();
        Shape::new(&axes, limits)?.pictures(Order::C, |at| Ok(self.values[at]))
    }
}

/// What stands in `depth` arrays of a tensor: a number, or another array.
struct Level<'a> {
    filling: &'a mut Filling,
    depth: usize,
}

impl Level<'_> {
    fn number<E: de::Error>(self, value: f64) -> Result<(), E> {
        let Self { filling, depth } = self;
        filling.number(depth, value).map_err(|found| stop(&mut filling.problem, found))
    }
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a number or an array")
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        self.number(value)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        self.number(value as f64)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        self.number(value as f64)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        let Self { filling, depth } = self;
        filling.enter(depth).map_err(|found| stop::<A::Error>(&mut filling.problem, found))?;
        let mut entries = 0;
        loop {
            filling.place[depth] = entries;
            if array.next_element_seed(Level { filling: &mut *filling, depth: depth + 1 })?.is_none() {
                break;
            }
            entries += 1;
        }
        filling.leave(depth, entries).map_err(|found| stop(&mut filling.problem, found))
    }
}
