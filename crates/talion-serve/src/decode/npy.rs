//! NumPy arrays.
//!
//! The header is a literal of a Python dictionary. It is read here and not by the npyz crate, whose reader allocates
//! the four gigabytes that a header may claim to have, follows nested lists without a bound and multiplies the axes
//! without looking for an overflow. Only what an array of numbers needs is understood.

use super::{
    Limits, Picture, Problem, brief, chunk,
    tensor::{Order, Shape, unit},
};

pub(super) const SIGNATURE: &[u8] = b"\x93NUMPY";

/// NumPy does not read longer headers either, unless it is told to trust the file.
const MAX_HEADER: usize = 10_000;

pub(super) fn pictures(bytes: &[u8], limits: &Limits) -> Result<Vec<Picture>, Problem> {
    limits.check_bytes(bytes.len())?;
    let (header, data) = split(bytes)?;
    let Header { element, order, axes } = Header::parse(header)?;
    let shape = Shape::new(&axes, limits)?;
    if shape.count.checked_mul(element.size()) != Some(data.len()) {
        let (count, size, len) = (shape.count, element.size(), data.len());
        let expected = format!("expected {count} values of {size} byte(s)");
        return Err(Problem::Malformed(format!("{expected} behind the NPY header, found {len} bytes")));
    }
    shape.pictures(order, |at| element.value(data, at))
}

/// The text of the header, and what follows it.
fn split(bytes: &[u8]) -> Result<(&[u8], &[u8]), Problem> {
    let truncated = || Problem::Malformed("the NPY file ends within its header".into());
    let [major, minor] = chunk::<2>(bytes, SIGNATURE.len()).ok_or_else(truncated)?;
    let (len, start) = match (major, minor) {
        (1, 0) => (chunk(bytes, 8).map(|len| u32::from(u16::from_le_bytes(len))), 10),
        (2 | 3, 0) => (chunk(bytes, 8).map(u32::from_le_bytes), 12),
        _ => return Err(Problem::Unsupported(format!("NPY of version {major}.{minor}"))),
    };
    let len = len.ok_or_else(truncated)?;
    match usize::try_from(len) {
        Ok(len) if len <= MAX_HEADER => bytes[start..].split_at_checked(len).ok_or_else(truncated),
        _ => Err(Problem::Malformed(format!("an NPY header of {len} bytes"))),
    }
}

#[derive(Debug)]
struct Header {
    element: Element,
    order: Order,
    axes: Vec<u64>,
}

impl Header {
    fn parse(text: &[u8]) -> Result<Self, Problem> {
        let mut text = Literal(text);
        let (mut element, mut order, mut axes) = (None, None, None);
        text.need(b"{")?;
        while !text.eat(b"}") {
            let key = text.string()?;
            text.need(b":")?;
            let first = match key {
                b"descr" => element.replace(text.element()?).is_none(),
                b"fortran_order" => order.replace(text.order()?).is_none(),
                b"shape" => axes.replace(text.axes()?).is_none(),
                _ => false,
            };
            if !first {
                return Err(unreadable());
            }
            if !text.eat(b",") {
                text.need(b"}")?;
                break;
            }
        }
        match (element, order, axes) {
            (Some(element), Some(order), Some(axes)) if text.0.trim_ascii().is_empty() => {
                Ok(Self { element, order, axes })
            }
            _ => Err(unreadable()),
        }
    }
}

/// What is left of a Python literal.
struct Literal<'a>(&'a [u8]);

impl<'a> Literal<'a> {
    /// Whether the token came next; if so, it is gone.
    fn eat(&mut self, token: &[u8]) -> bool {
        let rest = self.0.trim_ascii_start().strip_prefix(token);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn need(&mut self, token: &[u8]) -> Result<(), Problem> {
        if self.eat(token) { Ok(()) } else { Err(unreadable()) }
    }

    /// A string, without escapes, which none of the strings that mean something here has.
    fn string(&mut self) -> Result<&'a [u8], Problem> {
        let (quote, text) = self.0.trim_ascii_start().split_first().ok_or_else(unreadable)?;
        let end = text.iter().position(|byte| byte == quote).ok_or_else(unreadable)?;
        if !b"'\"".contains(quote) {
            return Err(unreadable());
        }
        self.0 = &text[end + 1..];
        Ok(&text[..end])
    }

    fn element(&mut self) -> Result<Element, Problem> {
        if self.0.trim_ascii_start().starts_with(b"[") {
            return Err(Problem::Unsupported("an NPY array of records; expected numbers".into()));
        }
        match self.string()? {
            b"|u1" | b"<u1" | b">u1" => Ok(Element::Byte),
            b"<f4" => Ok(Element::Single { big_endian: false }),
            b">f4" => Ok(Element::Single { big_endian: true }),
            b"<f8" => Ok(Element::Double { big_endian: false }),
            b">f8" => Ok(Element::Double { big_endian: true }),
            other => {
                let name = brief(String::from_utf8_lossy(other));
                Err(Problem::Unsupported(format!("an NPY array of {name}; expected f4, f8 or u1")))
            }
        }
    }

    fn order(&mut self) -> Result<Order, Problem> {
        if self.eat(b"False") {
            return Ok(Order::C);
        }
        self.need(b"True")?;
        Ok(Order::Fortran)
    }

    fn axes(&mut self) -> Result<Vec<u64>, Problem> {
        let mut axes = Vec::new();
        self.need(b"(")?;
        while !self.eat(b")") {
            axes.push(self.integer()?);
            if !self.eat(b",") {
                self.need(b")")?;
                break;
            }
        }
        Ok(axes)
    }

    fn integer(&mut self) -> Result<u64, Problem> {
        let text = self.0.trim_ascii_start();
        let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
        let (digits, rest) = text.split_at(end);
        self.0 = rest;
        std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).ok_or_else(unreadable)
    }
}

fn unreadable() -> Problem {
    Problem::Malformed("the NPY header is no dictionary of descr, fortran_order and shape".into())
}

/// The type of an array's values.
#[derive(Debug, Clone, Copy)]
enum Element {
    Byte,
    Single { big_endian: bool },
    Double { big_endian: bool },
}

impl Element {
    fn size(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::Single { .. } => 4,
            Self::Double { .. } => 8,
        }
    }

    /// The value at an index, which has to be within the data.
    fn value(self, data: &[u8], index: usize) -> Result<f32, f64> {
        match self {
            Self::Byte => Ok(f32::from(data[index]) / f32::from(u8::MAX)),
            Self::Single { big_endian: false } => unit(f32::from_le_bytes(item(data, index)).into()),
            Self::Single { big_endian: true } => unit(f32::from_be_bytes(item(data, index)).into()),
            Self::Double { big_endian: false } => unit(f64::from_le_bytes(item(data, index))),
            Self::Double { big_endian: true } => unit(f64::from_be_bytes(item(data, index))),
        }
    }
}

fn item<const N: usize>(data: &[u8], index: usize) -> [u8; N] {
    std::array::from_fn(|byte| data[index * N + byte])
}
