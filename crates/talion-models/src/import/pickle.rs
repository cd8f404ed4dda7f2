//! A reader of the pickles inside PyTorch's archives that builds plain values and runs nothing.
//!
//! A pickle is a program for a small stack machine, and Python's own machine lets it call any function. This one knows
//! the few calls that make tensors and dictionaries of tensors; the result of any other call is an [`Object::Opaque`],
//! which keeps the name of what would have been called. Compound values lie side by side in one [`Heap`] and refer to
//! each other by place, so that neither reading nor dropping deeply nested values recurses.

use std::collections::HashMap;

use tch::Kind;

/// More instructions than a state dict of 40 000 tensors needs. They bound the memory too: one instruction makes at
/// most one value.
const MAX_INSTRUCTIONS: usize = 1 << 21;

/// More dimensions than any weight has.
const MAX_DIMENSIONS: usize = 16;

/// The most arguments that a known function is called with.
const MAX_ARGUMENTS: usize = 8;

/// What went wrong, as the end of a sentence that begins with the name of the file.
pub(super) type Step<T> = std::result::Result<T, String>;

/// A value without parts, or the place of one with parts in the [`Heap`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Text(&'a str),
    /// Something that no tensor is made of, in words.
    Plain(&'static str),
    Part(usize),
}

/// A function or a class, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Global<'a> {
    module: &'a str,
    name: &'a str,
}

impl std::fmt::Display for Global<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let clip = |text: &str| text.chars().take(80).filter(|sign| !sign.is_control()).collect::<String>();
        write!(f, "{}.{}", clip(self.module), clip(self.name))
    }
}

/// The entry of an archive that holds the elements of tensors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage<'a> {
    /// Its name under `data/`.
    pub key: &'a str,
    /// The type of its elements; `None` counts bytes.
    kind: Option<Kind>,
    /// How many elements it is said to have.
    elements: i64,
}

impl Storage<'_> {
    /// How many bytes it is said to have; `None` if that is no number of bytes.
    pub(super) fn bytes(&self) -> Option<u64> {
        let size = self.kind.map_or(1, Kind::elt_size_in_bytes);
        u64::try_from(self.elements).ok()?.checked_mul(u64::try_from(size).ok()?)
    }
}

/// A tensor: some elements of a storage. Nothing has been checked against the storage.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub storage: Storage<'a>,
    pub kind: Kind,
    /// Place of the first element.
    pub offset: i64,
    pub shape: Vec<i64>,
    pub strides: Vec<i64>,
}

/// A value with parts, or one that a call made.
#[derive(Debug)]
pub(super) enum Object<'a> {
    /// `tensors`: something in it is a tensor or a storage.
    Tuple {
        items: Vec<Value<'a>>,
        tensors: bool,
    },
    List(Vec<Value<'a>>),
    Dict(Vec<(Value<'a>, Value<'a>)>),
    Global(Global<'a>),
    Storage(Storage<'a>),
    Tensor(Box<View<'a>>),
    /// What a call of `class`, which is not known here, would have made; `tensors`: it was to be made of tensors.
    Opaque {
        class: Global<'a>,
        tensors: bool,
    },
}

/// The compound values of a pickle.
#[derive(Debug, Default)]
pub(super) struct Heap<'a>(Vec<Object<'a>>);

impl<'a> Heap<'a> {
    pub(super) fn get(&self, value: Value<'a>) -> Option<&Object<'a>> {
        match value {
            Value::Part(place) => self.0.get(place),
            _ => None,
        }
    }

    fn get_mut(&mut self, value: Value<'a>) -> Option<&mut Object<'a>> {
        match value {
            Value::Part(place) => self.0.get_mut(place),
            _ => None,
        }
    }

    fn add(&mut self, object: Object<'a>) -> Value<'a> {
        self.0.push(object);
        Value::Part(self.0.len() - 1)
    }

    fn global(&self, value: Value<'a>) -> Option<Global<'a>> {
        match self.get(value) {
            Some(Object::Global(global)) => Some(*global),
            _ => None,
        }
    }

    fn holds_tensors(&self, value: Value<'a>) -> bool {
        match self.get(value) {
            Some(Object::Tuple { tensors, .. } | Object::Opaque { tensors, .. }) => *tensors,
            Some(Object::Tensor(_) | Object::Storage(_)) => true,
            _ => false,
        }
    }

    /// The entries of a dict.
    pub(super) fn dict(&self, value: Value<'a>) -> Option<&[(Value<'a>, Value<'a>)]> {
        match self.get(value) {
            Some(Object::Dict(entries)) => Some(entries),
            _ => None,
        }
    }

    /// The value in a few words, for messages.
    pub(super) fn describe(&self, value: Value<'a>) -> String {
        match value {
            Value::None => "None".into(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Text(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
            Value::Plain(what) => what.into(),
            Value::Part(_) => match self.get(value) {
                Some(Object::Tuple { items, .. }) => format!("a tuple of {}", items.len()),
                Some(Object::List(items)) => format!("a list of {}", items.len()),
                Some(Object::Dict(entries)) => {
                    let tensor = |value| matches!(self.get(value), Some(Object::Tensor(_)));
                    let tensors = entries.iter().filter(|(_, value)| tensor(*value)).count();
                    format!("a dict of {}, {tensors} of them tensors", entries.len())
                }
                Some(Object::Global(global)) => format!("the class or function {global}"),
                Some(Object::Storage(_)) => "a storage".into(),
                Some(Object::Tensor(view)) => format!("a tensor of shape {:?}", view.shape),
                Some(Object::Opaque { class, .. }) => format!("a Python object, {class}"),
                None => "nothing".into(),
            },
        }
    }
}

/// Reads a pickle; the value that it makes lies in the heap, or is plain.
pub(super) fn read(bytes: &[u8]) -> Step<(Heap<'_>, Value<'_>)> {
    let mut machine = Machine { rest: bytes, ..Machine::default() };
    for _ in 0..MAX_INSTRUCTIONS {
        match machine.byte()? {
            b'.' => {
                let root = machine.pop()?;
                return Ok((machine.heap, root));
            }
            instruction => machine.step(instruction)?,
        }
    }
    Err(format!("has more than {MAX_INSTRUCTIONS} instructions"))
}

#[derive(Default)]
struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<Value<'a>>,
    /// Heights of the stack at which groups of values begin.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    heap: Heap<'a>,
}

/// Reading the bytes.
impl<'a> Machine<'a> {
    fn take(&mut self, length: usize) -> Step<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or("is cut short")?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or("is cut short")?;
        self.rest = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Step<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn number(&mut self) -> Step<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// Bytes behind their own length, which has `width` bytes.
    fn counted(&mut self, width: usize) -> Step<&'a [u8]> {
        let mut length = [0; 8];
        for (place, &byte) in length.iter_mut().zip(self.take(width)?) {
            *place = byte;
        }
        let length = usize::try_from(u64::from_le_bytes(length)).map_err(|_| "is cut short")?;
        self.take(length)
    }

    fn text(&mut self, width: usize) -> Step<Value<'a>> {
        let bytes = self.counted(width)?;
        std::str::from_utf8(bytes).map(Value::Text).map_err(|_| "holds text that is not UTF-8".into())
    }

    fn line(&mut self) -> Step<&'a str> {
        let length = self.rest.iter().position(|&byte| byte == b'\n').ok_or("is cut short")?;
        let line = self.take(length)?;
        self.byte()?;
        std::str::from_utf8(line).map_err(|_| "holds a name that is not UTF-8".into())
    }

    /// A whole number of any length; one beyond 64 bits is nothing that a tensor is made of.
    fn long(&mut self, width: usize) -> Step<Value<'a>> {
        let bytes = self.counted(width)?;
        if bytes.len() > 8 {
            return Ok(Value::Plain("a large number"));
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut whole = [if negative { 0xff } else { 0 }; 8];
        for (place, &byte) in whole.iter_mut().zip(bytes) {
            *place = byte;
        }
        Ok(Value::Int(i64::from_le_bytes(whole)))
    }
}

/// The stack.
impl<'a> Machine<'a> {
    /// Where the innermost group of values begins; what lies below cannot be taken from the stack.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Step<Value<'a>> {
        self.stack.get(self.floor()..).and_then(<[_]>::last).copied().ok_or_else(unbalanced)
    }

    fn pop(&mut self) -> Step<Value<'a>> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, count: usize) -> Step<Vec<Value<'a>>> {
        match self.stack.len().checked_sub(count) {
            Some(start) if start >= self.floor() => Ok(self.stack.split_off(start)),
            _ => Err(unbalanced()),
        }
    }

    fn pop_group(&mut self) -> Step<Vec<Value<'a>>> {
        let start = self.marks.pop().filter(|&start| start <= self.stack.len()).ok_or_else(unbalanced)?;
        Ok(self.stack.split_off(start))
    }

    fn push(&mut self, object: Object<'a>) {
        let value = self.heap.add(object);
        self.stack.push(value);
    }

    fn push_tuple(&mut self, items: Vec<Value<'a>>) {
        let tensors = items.iter().any(|&item| self.heap.holds_tensors(item));
        self.push(Object::Tuple { items, tensors });
    }
}

fn unbalanced() -> String {
    "takes more values than it made".into()
}

/// The instructions.
impl<'a> Machine<'a> {
    fn step(&mut self, instruction: u8) -> Step<()> {
        if self.plain(instruction)?
            || self.collection(instruction)?
            || self.memory(instruction)?
            || self.call(instruction)?
        {
            return Ok(());
        }
        Err(format!("has the instruction 0x{instruction:02x}, which torch.save does not write"))
    }

    /// Instructions that make values without parts.
    fn plain(&mut self, instruction: u8) -> Step<bool> {
        let value = match instruction {
            // the protocol's version: instructions have the same meaning in all of them
            0x80 => {
                self.byte()?;
                return Ok(true);
            }
            // a frame's length, of use only to readers of streams
            0x95 => {
                self.array::<8>()?;
                return Ok(true);
            }
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'K' => Value::Int(self.byte()?.into()),
            b'M' => Value::Int(u16::from_le_bytes(self.array()?).into()),
            b'J' => Value::Int(i32::from_le_bytes(self.array()?).into()),
            0x8a => self.long(1)?,
            0x8b => self.long(4)?,
            b'G' => {
                self.array::<8>()?;
                Value::Plain("a number")
            }
            0x8c => self.text(1)?,
            b'X' => self.text(4)?,
            0x8d => self.text(8)?,
            b'C' | b'U' => bytes(self.counted(1)?),
            b'B' | b'T' => bytes(self.counted(4)?),
            0x8e | 0x96 => bytes(self.counted(8)?),
            0x8f => Value::Plain("a set"),
            _ => return Ok(false),
        };
        self.stack.push(value);
        Ok(true)
    }

    /// Instructions that make values with parts, or fill them.
    fn collection(&mut self, instruction: u8) -> Step<bool> {
        match instruction {
            b'(' => self.marks.push(self.stack.len()),
            b')' => self.push_tuple(Vec::new()),
            b'}' => self.push(Object::Dict(Vec::new())),
            b']' => self.push(Object::List(Vec::new())),
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(instruction - 0x84))?;
                self.push_tuple(items);
            }
            b't' => {
                let items = self.pop_group()?;
                self.push_tuple(items);
            }
            0x91 => {
                self.pop_group()?;
                self.stack.push(Value::Plain("a set"));
            }
            b'a' => {
                let items = self.pop_many(1)?;
                self.append(items)?;
            }
            b'e' => {
                let items = self.pop_group()?;
                self.append(items)?;
            }
            b's' => {
                let items = self.pop_many(2)?;
                self.insert(&items)?;
            }
            b'u' => {
                let items = self.pop_group()?;
                self.insert(&items)?;
            }
            0x90 => {
                self.pop_group()?;
                self.top()?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn append(&mut self, items: Vec<Value<'a>>) -> Step<()> {
        let top = self.top()?;
        match self.heap.get_mut(top) {
            Some(Object::List(list)) => list.extend(items),
            Some(Object::Opaque { .. }) => {}
            _ => return Err("appends to something that is not a list".into()),
        }
        Ok(())
    }

    /// `items`: keys and values in turns.
    fn insert(&mut self, items: &[Value<'a>]) -> Step<()> {
        let (pairs, []) = items.as_chunks::<2>() else { return Err("has a key without a value".into()) };
        let top = self.top()?;
        match self.heap.get_mut(top) {
            Some(Object::Dict(entries)) => entries.extend(pairs.iter().map(|&[key, value]| (key, value))),
            Some(Object::Opaque { .. }) => {}
            _ => return Err("sets an entry of something that is not a dict".into()),
        }
        Ok(())
    }

    /// Instructions that keep values for later, repeat them or throw them away.
    fn memory(&mut self, instruction: u8) -> Step<bool> {
        match instruction {
            b'q' => {
                let key = self.byte()?.into();
                self.remember(key)?;
            }
            b'r' => {
                let key = self.number()?;
                self.remember(key)?;
            }
            0x94 => {
                let key = u32::try_from(self.memo.len()).map_err(|_| "remembers too much")?;
                self.remember(key)?;
            }
            b'h' => {
                let key = self.byte()?.into();
                self.recall(key)?;
            }
            b'j' => {
                let key = self.number()?;
                self.recall(key)?;
            }
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.pop_group()?;
            }
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn remember(&mut self, key: u32) -> Step<()> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Step<()> {
        let value = self.memo.get(&key).ok_or("recalls a value that it never kept")?;
        self.stack.push(*value);
        Ok(())
    }

    /// Instructions that name, make or change objects.
    fn call(&mut self, instruction: u8) -> Step<bool> {
        match instruction {
            b'c' => {
                let global = Global { module: self.line()?, name: self.line()? };
                self.push(Object::Global(global));
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => {
                    self.push(Object::Global(Global { module, name }))
                }
                _ => return Err("has a name that is not text".into()),
            },
            b'R' | 0x81 => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                let made = self.apply(callee, arguments)?;
                self.stack.push(made);
            }
            0x92 => {
                let (_named, arguments, callee) = (self.pop()?, self.pop()?, self.pop()?);
                let made = self.apply(callee, arguments)?;
                self.stack.push(made);
            }
            b'b' => {
                self.pop()?;
                // The state of a state dict is its `_metadata`, and no other known object has any.
                match self.heap.get(self.top()?) {
                    Some(Object::Dict(_) | Object::Opaque { .. } | Object::Tensor(_)) => {}
                    _ => return Err("sets the state of something that has none".into()),
                }
            }
            b'Q' => {
                let place = self.pop()?;
                let storage = self.storage(place)?;
                self.push(storage);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn bytes(bytes: &[u8]) -> Value<'_> {
    std::str::from_utf8(bytes).map_or(Value::Plain("bytes"), Value::Text)
}

/// The known calls.
impl<'a> Machine<'a> {
    /// What `callee` makes of a tuple of arguments.
    fn apply(&mut self, callee: Value<'a>, arguments: Value<'a>) -> Step<Value<'a>> {
        let Some(Object::Tuple { items, tensors }) = self.heap.get(arguments) else {
            return Err("calls with arguments that are not a tuple".into());
        };
        let tensors = *tensors;
        // only the first few: a long tuple may be called with again and again
        let items: Vec<_> = items.iter().take(MAX_ARGUMENTS).copied().collect();
        let class = match self.heap.get(callee) {
            Some(Object::Global(global)) => *global,
            Some(Object::Opaque { class, .. }) => {
                let class = *class;
                return Ok(self.opaque(class, tensors));
            }
            _ => return Err("calls something that is neither a function nor a class".into()),
        };
        match (class.module, class.name, items.as_slice()) {
            ("collections", "OrderedDict", []) => Ok(self.heap.add(Object::Dict(Vec::new()))),
            ("torch", "Size", [sides]) => Ok(*sides),
            ("torch._utils", "_rebuild_parameter", [tensor, ..]) => Ok(*tensor),
            ("torch._utils", "_rebuild_tensor_v2", [storage, offset, shape, strides, ..]) => {
                self.tensor(*storage, None, [*offset, *shape, *strides])
            }
            ("torch._utils", "_rebuild_tensor_v3", [storage, offset, shape, strides, _, _, kind, ..]) => {
                self.tensor(*storage, Some(*kind), [*offset, *shape, *strides])
            }
            _ => Ok(self.opaque(class, tensors)),
        }
    }

    fn opaque(&mut self, class: Global<'a>, tensors: bool) -> Value<'a> {
        self.heap.add(Object::Opaque { class, tensors })
    }

    /// `layout`: offset, shape and strides.
    fn tensor(
        &mut self,
        storage: Value<'a>,
        kind: Option<Value<'a>>,
        layout: [Value<'a>; 3],
    ) -> Step<Value<'a>> {
        let storage = match self.heap.get(storage) {
            Some(Object::Storage(storage)) => *storage,
            Some(Object::Opaque { class, .. }) => {
                let class = *class;
                return Ok(self.opaque(class, true));
            }
            _ => return Err("has a tensor without a storage".into()),
        };
        let kind = match kind {
            None => storage.kind.ok_or("has a tensor of an unknown type")?,
            Some(kind) => {
                let class = self.heap.global(kind).ok_or("has a tensor of an unknown type")?;
                match dtype(class) {
                    Some(kind) => kind,
                    None => return Ok(self.opaque(class, true)),
                }
            }
        };
        if storage.kind.is_some_and(|stored| stored != kind) {
            return Err("has a tensor of another type than its storage".into());
        }
        let [offset, shape, strides] = layout;
        let Value::Int(offset) = offset else { return Err("has a tensor without a place".into()) };
        let (shape, strides) = (self.sides(shape)?, self.sides(strides)?);
        let view = View { storage, kind, offset, shape, strides };
        Ok(self.heap.add(Object::Tensor(Box::new(view))))
    }

    fn sides(&self, value: Value<'a>) -> Step<Vec<i64>> {
        let Some(Object::Tuple { items, .. }) = self.heap.get(value) else {
            return Err("has a tensor without a shape".into());
        };
        if items.len() > MAX_DIMENSIONS {
            return Err(format!("has a tensor of {} dimensions", items.len()));
        }
        let side = |item: &Value<'a>| match item {
            Value::Int(side) => Ok(*side),
            _ => Err("has a shape that is not made of numbers".to_owned()),
        };
        items.iter().map(side).collect()
    }

    /// What a persistent id stands for: `("storage", class, key, device, elements)`.
    fn storage(&self, id: Value<'a>) -> Step<Object<'a>> {
        let Some(Object::Tuple { items, .. }) = self.heap.get(id) else {
            return Err("refers to something outside that is not a storage".into());
        };
        let [Value::Text("storage"), class, Value::Text(key), _, Value::Int(elements), ..] = items.as_slice()
        else {
            return Err("refers to something outside that is not a storage".into());
        };
        let class = self.heap.global(*class).ok_or("has a storage without a type")?;
        Ok(match stored_kind(class) {
            Some(kind) => Object::Storage(Storage { key, kind, elements: *elements }),
            None => Object::Opaque { class, tensors: true },
        })
    }
}

/// The type of a storage's elements; `Some(None)` for bytes whose type the tensor says.
fn stored_kind(class: Global<'_>) -> Option<Option<Kind>> {
    let kind = match (class.module, class.name) {
        ("torch.storage", "UntypedStorage") => return Some(None),
        ("torch" | "torch.cuda", name) => match name.strip_suffix("Storage")? {
            "Float" => Kind::Float,
            "Double" => Kind::Double,
            "Half" => Kind::Half,
            "BFloat16" => Kind::BFloat16,
            "Long" => Kind::Int64,
            "Int" => Kind::Int,
            "Short" => Kind::Int16,
            "Char" => Kind::Int8,
            "Byte" => Kind::Uint8,
            "Bool" => Kind::Bool,
            _ => return None,
        },
        _ => return None,
    };
    Some(Some(kind))
}

fn dtype(class: Global<'_>) -> Option<Kind> {
    if class.module != "torch" {
        return None;
    }
    Some(match class.name {
        "float32" | "float" => Kind::Float,
        "float64" | "double" => Kind::Double,
        "float16" | "half" => Kind::Half,
        "bfloat16" => Kind::BFloat16,
        "int64" | "long" => Kind::Int64,
        "int32" | "int" => Kind::Int,
        "int16" | "short" => Kind::Int16,
        "int8" => Kind::Int8,
        "uint8" => Kind::Uint8,
        "bool" => Kind::Bool,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::import::testing::*;

    #[track_caller]
    fn refused(bytes: &[u8], words: &str) {
        let problem = read(bytes).unwrap_err();
        assert!(problem.contains(words), "{problem}");
    }

    fn described(value: &[u8]) -> String {
        let bytes = pickle(value);
        let (heap, root) = read(&bytes).unwrap();
        heap.describe(root)
    }

    #[test]
    fn plain_values_are_read_in_every_spelling() {
        let cases: &[(&[u8], &str)] = &[
            (b"N", "None"),
            (b"\x88", "true"),
            (b"K\xff", "255"),
            (b"M\x00\x01", "256"),
            (b"J\xfe\xff\xff\xff", "-2"),
            (b"\x8a\x02\x00\x80", "-32768"),
            (b"\x8a\x00", "0"),
            (b"\x8b\x01\x00\x00\x00\x07", "7"),
            (b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01", "a large number"),
            (b"G\x3f\xf0\x00\x00\x00\x00\x00\x00", "a number"),
            (b"X\x02\x00\x00\x00ab", "\"ab\""),
            (b"\x8c\x02ab", "\"ab\""),
            (b"C\x02ab", "\"ab\""),
            (b"C\x01\xff", "bytes"),
            (b"K\x01K\x02\x86", "a tuple of 2"),
            (b"](K\x01K\x02K\x03e", "a list of 3"),
            (b"]K\x01a", "a list of 1"),
            (b"\x8f(K\x01\x90", "a set"),
            (b"K\x01K\x020", "1"),
            (b"K\x01(K\x021", "1"),
            (b"K\x012\x86", "a tuple of 2"),
        ];
        for (bytes, words) in cases {
            assert_eq!(described(bytes), *words, "{bytes:?}");
        }
    }

    #[test]
    fn dictionaries_filled_after_they_were_kept_are_the_same_dictionaries() {
        // {} is kept as 0, filled, and recalled: both places show the entry
        let bytes = pickle(b"}q\x00X\x01\x00\x00\x00aK\x05sh\x00\x86");
        let (heap, root) = read(&bytes).unwrap();
        let Some(Object::Tuple { items, .. }) = heap.get(root) else { panic!() };
        for &item in items {
            let entries = heap.dict(item).unwrap();
            assert!(matches!(entries, [(Value::Text("a"), Value::Int(5))]), "{entries:?}");
        }
    }

    #[test]
    fn both_protocols_say_the_same_tensor() {
        let old = pickle(&view(storage("HalfStorage", "7", 12), 2, &[2, 3], &[1, 2]));
        // protocol 4: a frame, memorising without numbers, names from the stack
        let mut new = b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00".to_vec();
        new.extend(b"\x8c\x0ctorch._utils\x94\x8c\x12_rebuild_tensor_v2\x94\x93\x94(");
        new.extend(b"(\x8c\x07storage\x8c\x05torch\x8c\x0bHalfStorage\x93\x8c\x017\x8c\x03cpuK\x0ctQ");
        new.extend(b"K\x02K\x02K\x03\x86K\x01K\x02\x86\x89}tR.");
        for bytes in [old, new] {
            let (heap, root) = read(&bytes).unwrap();
            let Some(Object::Tensor(view)) = heap.get(root) else { panic!("{}", heap.describe(root)) };
            assert_eq!((view.storage.key, view.storage.bytes(), view.kind), ("7", Some(24), Kind::Half));
            assert_eq!((view.offset, &view.shape[..], &view.strides[..]), (2, &[2, 3][..], &[1, 2][..]));
        }
    }

    #[test]
    fn calls_of_unknown_functions_are_kept_by_name_and_made_by_nobody() {
        let call = reduce(&global("os", "system"), &[text("true")]);
        assert_eq!(described(&call), "a Python object, os.system");
        // what is called on the result is just as opaque, and so is a class with a state
        let again = reduce(&call, &[int(1)]);
        assert_eq!(described(&again), "a Python object, os.system");
        let object =
            [&global("argparse", "Namespace")[..], b")\x81", &dict(&[("lr", int(1))]), b"b"].concat();
        assert_eq!(described(&object), "a Python object, argparse.Namespace");
        let filled = [&reduce(&global("collections", "defaultdict"), &[])[..], b"(K\x01K\x02u"].concat();
        assert_eq!(described(&filled), "a Python object, collections.defaultdict");
    }

    #[test]
    fn an_unknown_call_on_tensors_is_marked() {
        for (arguments, expected) in [(int(1), false), (floats("0", &[2]), true), (tuple(&[int(1)]), false)] {
            let bytes = pickle(&reduce(&global("a", "b"), &[tuple(&[arguments])]));
            let (heap, root) = read(&bytes).unwrap();
            let Some(Object::Opaque { tensors, .. }) = heap.get(root) else { panic!() };
            assert_eq!(*tensors, expected);
        }
        // a storage of a type that is not read makes an opaque tensor
        let bytes = pickle(&view(storage("QInt8Storage", "0", 4), 0, &[4], &[1]));
        let (heap, root) = read(&bytes).unwrap();
        assert!(heap.holds_tensors(root));
        assert_eq!(heap.describe(root), "a Python object, torch.QInt8Storage");
    }

    #[test]
    fn damaged_pickles_are_refused_in_words() {
        refused(b"", "cut short");
        refused(b"\x80\x02K", "cut short");
        refused(b"\x80\x02X\xff\xff\xff\xffab.", "cut short");
        refused(b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xffab.", "cut short");
        refused(b"\x80\x02X\x01\x00\x00\x00\xff.", "UTF-8");
        refused(b"\x80\x02.", "more values than it made");
        refused(b"K\x01(.", "more values than it made");
        refused(b"K\x01(\x85.", "more values than it made");
        refused(b"t.", "more values than it made");
        refused(b"h\x00.", "never kept");
        refused(b"}(K\x01u.", "key without a value");
        refused(b"K\x01(K\x01K\x02u.", "not a dict");
        refused(b"K\x01K\x02a.", "not a list");
        refused(b"K\x01)R.", "neither a function nor a class");
        refused(b"ca\nb\nK\x01R.", "not a tuple");
        refused(b"K\x01Q.", "not a storage");
        refused(b"K\x01K\x01b.", "has none");
        // INST of protocol 0, which would name and call in one instruction
        refused(b"(ios\nsystem\n.", "0x69");
        let shape = vec![1; MAX_DIMENSIONS + 1];
        refused(&pickle(&view(storage("FloatStorage", "0", 1), 0, &shape, &shape)), "17 dimensions");
        let mixed = [storage("FloatStorage", "0", 4), int(0), tuple(&[]), tuple(&[]), int(0), int(0)];
        let mixed = [&mixed[..], &[global("torch", "int8")]].concat();
        refused(&pickle(&reduce(&global("torch._utils", "_rebuild_tensor_v3"), &mixed)), "another type");
    }

    #[test]
    fn endless_and_deep_pickles_end() {
        let nested = [vec![b']'; 200_000], vec![b'a'; 199_999], vec![b'.']].concat();
        let (heap, root) = read(&nested).unwrap();
        assert_eq!(heap.describe(root), "a list of 1");
        drop(heap);
        let nested = [vec![b')'], vec![0x85; 300_000], vec![b'.']].concat();
        assert!(read(&nested).is_ok());
        refused(&vec![b'N'; MAX_INSTRUCTIONS + 1], "instructions");
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }

        #[test]
        fn random_instructions_never_panic(
            parts in proptest::collection::vec(proptest::sample::select(vec![
                &b"K\x01"[..], b"N", b"(", b"t", b"]", b"}", b")", b"\x85", b"\x86", b"\x87", b"R", b"\x81", b"b",
                b"s", b"u", b"a", b"e", b"Q", b"q\x00", b"h\x00", b"0", b"1", b"2", b"\x90", b"\x91", b"\x92",
                b"\x93", b"\x94", b"X\x07\x00\x00\x00storage", b"ctorch\nFloatStorage\n", b"ctorch\nSize\n",
                b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n",
            ]), 0..60)
        ) {
            let bytes = pickle(&parts.concat());
            if let Ok((heap, root)) = read(&bytes) {
                prop_assert!(!heap.describe(root).is_empty());
            }
        }
    }
}
