//! A strict reader of MATLAB v5 files that hold dense numeric arrays of small whole numbers and nothing else, which is
//! what the SVHN files are. Anything else is refused by name rather than skipped.

use std::path::Path;

use crate::{
    error::{DataError, Result},
    read::Inflater,
};

const HEADER_LEN: usize = 128;
const TAG_LEN: usize = 8;
/// Version 1.0 and the byte order mark, both little-endian.
const VERSION_AND_ORDER: [u8; 4] = [0x00, 0x01, b'I', b'M'];

// Types of data elements.
const INT8: u32 = 1;
const UINT8: u32 = 2;
const INT32: u32 = 5;
const UINT32: u32 = 6;
const DOUBLE: u32 = 9;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;

// Classes of arrays.
const CLASS_DOUBLE: u8 = 6;
const CLASS_UINT8: u8 = 9;
/// Flag of complex arrays, in the byte after the class.
const FLAG_COMPLEX: u8 = 0x08;

/// More dimensions than any image array has.
const MAX_DIMENSIONS: usize = 8;

/// A named array of whole numbers from 0 to 255, in MATLAB's order: the first dimension varies fastest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variable {
    pub name: String,
    pub dimensions: Vec<usize>,
    pub values: Vec<u8>,
}

/// Reads every variable of a file; `path` is for messages.
pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<Vec<Variable>> {
    let Some((header, mut rest)) = bytes.split_at_checked(HEADER_LEN) else {
        let found = format!("{} bytes; the file is truncated", bytes.len());
        return Err(DataError::format(path, "a MATLAB v5 header of 128 bytes", found));
    };
    if header[HEADER_LEN - 4..] != VERSION_AND_ORDER {
        let found = format!("version and byte order {:02x?}", &header[HEADER_LEN - 4..]);
        return Err(DataError::format(path, "a little-endian MATLAB v5 file (00 01 `IM`)", found));
    }
    let mut variables = Vec::new();
    while !rest.is_empty() {
        let (kind, body, after) = top_element(rest, path)?;
        variables.push(match kind {
            COMPRESSED => matrix(&inflate(body, path)?, path)?,
            MATRIX => matrix(body, path)?,
            _ => return Err(DataError::format(path, "arrays only", format!("an element of type {kind}"))),
        });
        rest = after;
    }
    Ok(variables)
}

/// Type and body of the element at the start of `bytes`, and what follows. At the top level nothing is padded.
fn top_element<'a>(bytes: &'a [u8], path: &Path) -> Result<(u32, &'a [u8], &'a [u8])> {
    let (kind, len) = tag(bytes, path)?;
    let body = &bytes[TAG_LEN..];
    let (body, after) = body.split_at_checked(len).ok_or_else(|| short(path, len, body.len()))?;
    Ok((kind, body, after))
}

/// The matrix body inside a compressed element.
fn inflate(packed: &[u8], path: &Path) -> Result<Vec<u8>> {
    let mut inflater = Inflater::zlib(packed, path);
    let (kind, len) = tag(&inflater.take(TAG_LEN as u64)?, path)?;
    if kind != MATRIX {
        return Err(DataError::format(path, "an array", format!("a packed element of type {kind}")));
    }
    let body = inflater.take(len as u64)?;
    inflater.finish()?;
    Ok(body)
}

/// Reads the parts of an array: flags, dimensions, name, values.
fn matrix(body: &[u8], path: &Path) -> Result<Variable> {
    let mut parts = Parts { rest: body, path };
    let flags = parts.next(&[UINT32], "array flags")?.1;
    let [class, flags, ..] = *flags else { return Err(short(path, TAG_LEN, flags.len())) };
    if ![CLASS_DOUBLE, CLASS_UINT8].contains(&class) || flags & FLAG_COMPLEX != 0 {
        let found = format!("an array of class {class} with flags {flags:#04x}");
        return Err(DataError::format(path, "real arrays of class uint8 (9) or double (6)", found));
    }
    let dimensions = dimensions(parts.next(&[INT32], "dimensions")?.1, path)?;
    let name = String::from_utf8_lossy(parts.next(&[INT8], "a name")?.1).into_owned();
    let (kind, values) = parts.next(&[UINT8, DOUBLE], "values")?;
    if !parts.rest.is_empty() {
        let found = format!("{} bytes more", parts.rest.len());
        return Err(DataError::format(path, format!("the end of array `{name}`"), found));
    }
    let values = if kind == UINT8 { values.to_vec() } else { whole_numbers(values, &name, path)? };
    let count = dimensions.iter().try_fold(1usize, |product, &dimension| product.checked_mul(dimension));
    if count != Some(values.len()) {
        let expected = format!("array `{name}` to hold {dimensions:?} values");
        return Err(DataError::format(path, expected, values.len().to_string()));
    }
    Ok(Variable { name, dimensions, values })
}

/// The elements inside an array, each padded to eight bytes.
struct Parts<'a> {
    rest: &'a [u8],
    path: &'a Path,
}

impl<'a> Parts<'a> {
    /// The next element's type, which has to be one of `kinds`, and its body.
    fn next(&mut self, kinds: &[u32], what: &str) -> Result<(u32, &'a [u8])> {
        let (kind, body, used) = match small(self.rest) {
            Some((kind, body)) => (kind, body, TAG_LEN),
            None => {
                let (kind, body, _) = top_element(self.rest, self.path)?;
                (kind, body, TAG_LEN + body.len().next_multiple_of(8))
            }
        };
        if !kinds.contains(&kind) {
            let expected = format!("{what} as an element of type {kinds:?}");
            return Err(DataError::format(self.path, expected, format!("type {kind}")));
        }
        self.rest = self.rest.get(used..).ok_or_else(|| short(self.path, used, self.rest.len()))?;
        Ok((kind, body))
    }
}

/// An element of at most four bytes, packed into the eight of its tag: its length is in the upper half of the type.
fn small(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let [a, b, len, 0, body @ ..] = bytes.get(..TAG_LEN)? else { return None };
    let kind = u32::from(u16::from_le_bytes([*a, *b]));
    (1..=4).contains(len).then(|| (kind, &body[..usize::from(*len)]))
}

/// An element's type and length.
fn tag(bytes: &[u8], path: &Path) -> Result<(u32, usize)> {
    let Some(&[a, b, c, d, e, f, g, h]) = bytes.first_chunk() else {
        return Err(short(path, TAG_LEN, bytes.len()));
    };
    Ok((u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]) as usize))
}

fn dimensions(bytes: &[u8], path: &Path) -> Result<Vec<usize>> {
    let (words, odd) = bytes.as_chunks::<4>();
    let sizes: Option<Vec<usize>> =
        words.iter().map(|&word| usize::try_from(i32::from_le_bytes(word)).ok()).collect();
    match sizes {
        Some(sizes) if odd.is_empty() && (2..=MAX_DIMENSIONS).contains(&sizes.len()) => Ok(sizes),
        _ => Err(DataError::format(path, "two to eight dimensions, none negative", format!("{bytes:02x?}"))),
    }
}

/// Doubles that are whole numbers from 0 to 255, as bytes.
fn whole_numbers(bytes: &[u8], name: &str, path: &Path) -> Result<Vec<u8>> {
    let (words, odd) = bytes.as_chunks::<8>();
    if !odd.is_empty() {
        return Err(short(path, bytes.len().next_multiple_of(8), bytes.len()));
    }
    let mut values = Vec::with_capacity(words.len());
    for &word in words {
        let value = f64::from_le_bytes(word);
        if value.fract() != 0.0 || !(0.0..=255.0).contains(&value) {
            let expected = format!("whole numbers from 0 to 255 in array `{name}`");
            return Err(DataError::format(path, expected, value.to_string()));
        }
        values.push(value as u8);
    }
    Ok(values)
}

fn short(path: &Path, expected: usize, found: usize) -> DataError {
    DataError::format(path, format!("{expected} bytes more"), format!("{found}; the file is truncated"))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use flate2::{Compression, write::ZlibEncoder};
    use proptest::prelude::*;

    use super::*;

    pub fn header() -> Vec<u8> {
        let mut header = vec![b' '; HEADER_LEN - 4];
        header.extend(VERSION_AND_ORDER);
        header
    }

    fn element(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = [kind.to_le_bytes(), (body.len() as u32).to_le_bytes()].concat();
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    /// A name; a short one in the form that puts it into its tag.
    fn name_element(name: &str) -> Vec<u8> {
        if name.len() > 4 {
            return element(INT8, name.as_bytes());
        }
        let mut bytes = vec![INT8 as u8, 0, name.len() as u8, 0];
        bytes.extend(name.as_bytes());
        bytes.resize(8, 0);
        bytes
    }

    fn array_of(class: u8, name: &str, dimensions: &[i32], kind: u32, values: &[u8]) -> Vec<u8> {
        let dimensions: Vec<u8> = dimensions.iter().flat_map(|size| size.to_le_bytes()).collect();
        let parts = [
            element(UINT32, &[class, 0, 0, 0, 0, 0, 0, 0]),
            element(INT32, &dimensions),
            name_element(name),
            element(kind, values),
        ];
        element(MATRIX, &parts.concat())
    }

    pub fn array(name: &str, dimensions: &[i32], values: &[u8]) -> Vec<u8> {
        array_of(CLASS_UINT8, name, dimensions, UINT8, values)
    }

    pub fn compressed(array: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(array).unwrap();
        let packed = encoder.finish().unwrap();
        [&COMPRESSED.to_le_bytes()[..], &(packed.len() as u32).to_le_bytes(), &packed].concat()
    }

    fn parse_file(elements: &[u8]) -> Result<Vec<Variable>> {
        parse(&[&header(), elements].concat(), Path::new("file.mat"))
    }

    fn message(elements: &[u8]) -> String {
        parse_file(elements).unwrap_err().to_string()
    }

    #[test]
    fn arrays_are_read_packed_or_not() {
        let values: Vec<u8> = (0..30).collect();
        for name in ["x", "pixels"] {
            let plain = array(name, &[5, 6], &values);
            let packed = compressed(&plain);
            let variable = Variable { name: name.into(), dimensions: vec![5, 6], values: values.clone() };
            assert_eq!(parse_file(&[plain, packed].concat()).unwrap(), [variable.clone(), variable]);
        }
    }

    #[test]
    fn doubles_have_to_be_small_whole_numbers() {
        let doubles = |values: &[f64]| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            array_of(CLASS_DOUBLE, "y", &[values.len() as i32, 1], DOUBLE, &bytes)
        };
        assert_eq!(parse_file(&doubles(&[1.0, 10.0, 255.0])).unwrap()[0].values, [1, 10, 255]);
        for bad in [0.5, -1.0, 256.0, f64::NAN, f64::INFINITY] {
            assert!(message(&doubles(&[1.0, bad])).contains("whole numbers"), "{bad}");
        }
        assert_eq!(
            parse_file(&array_of(CLASS_DOUBLE, "y", &[2, 1], UINT8, &[7, 8])).unwrap()[0].values,
            [7, 8]
        );
    }

    #[test]
    fn what_is_not_a_plain_array_is_refused() {
        assert!(message(&element(UINT8, &[1])).contains("element of type 2"));
        assert!(message(&array_of(1, "c", &[1, 1], UINT8, &[1])).contains("class 1"));
        assert!(message(&array("x", &[2, 3], &[0; 5])).contains("[2, 3] values"));
        assert!(message(&array("x", &[-1, 3], &[0; 5])).contains("none negative"));
        assert!(message(&array("x", &[5], &[0; 5])).contains("two to eight dimensions"));
        assert!(message(&array("x", &[i32::MAX; 8], &[0; 5])).contains("values, found 5"));
        let mut other = header();
        other[HEADER_LEN - 2..].copy_from_slice(b"MI");
        assert!(parse(&other, Path::new("f")).unwrap_err().to_string().contains("little-endian"));
    }

    #[test]
    fn a_tag_that_promises_too_much_allocates_nothing() {
        let bomb = compressed(&[&MATRIX.to_le_bytes()[..], &[255; 4]].concat());
        assert!(message(&bomb).contains("announces 4294967295"));
        assert!(message(&[&MATRIX.to_le_bytes()[..], &[255; 4]].concat()).contains("truncated"));
    }

    #[test]
    fn damage_and_wrong_lengths_are_found() {
        let values: Vec<u8> = (0..200).map(|i| i * 31 % 200).map(|i| i as u8).collect();
        let whole = [header(), compressed(&array("x", &[20, 10], &values))].concat();
        let is_broken = |bytes: &[u8]| parse(bytes, Path::new("f")).is_err();
        for cut in (0..whole.len()).filter(|&cut| cut != HEADER_LEN) {
            assert!(is_broken(&whole[..cut]), "cut at {cut}");
        }
        assert!(is_broken(&[&whole[..], &[0]].concat()));
        let variables = parse(&whole, Path::new("f")).unwrap();
        for at in (HEADER_LEN - 4) * 8..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[at / 8] ^= 1 << (at % 8);
            // Deflate leaves a few bits unused.
            let same = |found| found == variables;
            assert!(parse(&bytes, Path::new("f")).map_or(true, same), "bit {at} flipped");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(kind in 0u32..16, bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = parse(&bytes, Path::new("f"));
            let _ = parse_file(&bytes);
            let _ = parse_file(&element(kind, &bytes));
            let _ = parse_file(&compressed(&element(MATRIX, &bytes)));
            let _ = parse_file(&element(MATRIX, &[element(UINT32, &[9, 0, 0, 0, 0, 0, 0, 0]), bytes].concat()));
        }
    }
}
