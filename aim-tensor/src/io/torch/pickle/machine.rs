//! The stack machine: operations that push, group and store. Calls are in [`super::call`].

use std::ops::Range;

use super::value::{Global, Id, Pickle, Storage, Tensor, Value};
use super::{MAX_DEPTH, MAX_LINE, MAX_VALUES};
use crate::io::torch::Fault;

/// Stack, marks and memo while a pickle is read.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    pub(super) values: Vec<Value>,
    /// Containers inside each value, itself included.
    depths: Vec<u16>,
    pub(super) storages: Vec<Storage>,
    pub(super) tensors: Vec<Tensor>,
    stack: Vec<Id>,
    /// Heights of the stack at the marks that are open.
    marks: Vec<usize>,
    memo: Vec<Id>,
    /// Pairs that were copied into dicts.
    pub(super) pairs: usize,
}

/// Reads the pickle that `bytes` starts with.
pub(in crate::io::torch) fn parse(bytes: &[u8]) -> Result<Pickle<'_>, Fault> {
    let mut machine = Machine {
        bytes,
        at: 0,
        values: Vec::new(),
        depths: Vec::new(),
        storages: Vec::new(),
        tensors: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        pairs: 0,
    };
    loop {
        let at = machine.at;
        let op = machine.byte()?;
        if op == b'.' {
            break;
        }
        let done = machine.step(op);
        done.map_err(|fault| fault.at(format!("at byte {at} of its pickle")))?;
    }
    let root = machine.pop()?;
    Ok(Pickle {
        bytes,
        values: machine.values,
        storages: machine.storages,
        tensors: machine.tensors,
        root,
        length: machine.at,
    })
}

impl<'a> Machine<'a> {
    /// One operation; its arguments follow in the bytes.
    fn step(&mut self, op: u8) -> Result<(), Fault> {
        match op {
            b'N' => self.push(Value::None),
            0x88 | 0x89 => self.push(Value::Bool),
            b'J' | b'K' | b'M' | 0x8a | 0x8b | b'G' | b'I' | b'L' | b'F' => self.number(op),
            b'X' | 0x8c | 0x8d | b'T' | b'U' | b'B' | b'C' | 0x8e => self.string(op),
            b'q' | b'r' | b'p' | 0x94 | b'h' | b'j' | b'g' => self.remember(op),
            b'(' => {
                if self.marks.len() >= usize::from(MAX_DEPTH) {
                    return Err(too_deep());
                }
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop().map(drop),
            b'1' => self.pop_to_mark().map(drop),
            b'2' => {
                let top = *self.stack.last().ok_or("its stack is empty")?;
                self.push_id(top)
            }
            b')' | b't' | 0x85..=0x87 => self.tuple(op),
            b']' | b'l' | 0x8f | 0x91 | b'a' | b'e' | 0x90 => self.list(op),
            b'}' | b'd' | b's' | b'u' => self.dict(op),
            b'c' | 0x93 => self.global(op),
            b'R' => self.reduce(),
            b'b' => self.build(),
            b'Q' => self.persistent(),
            0x80 => match self.byte()? {
                0..=5 => Ok(()),
                version => Err(format!("pickle protocol {version}, expected 0 to 5").into()),
            },
            // A frame only says how much may be read at once.
            0x95 => self.length(8).and_then(|length| {
                let left = self.bytes.len() - self.at;
                if length > left {
                    return Err(format!("a frame of {length} bytes, {left} are left").into());
                }
                Ok(())
            }),
            _ => Err(self.refused_op(op)),
        }
    }

    fn refused_op(&mut self, op: u8) -> Fault {
        let name = match op {
            b'i' => {
                let (module, name) = (self.line().unwrap_or(""), self.line().unwrap_or(""));
                return Fault::refused(format!("it builds an object of `{module}.{name}` (INST)"));
            }
            b'o' => "it builds an object (OBJ)",
            0x81 => "it builds an object (NEWOBJ)",
            0x92 => "it builds an object (NEWOBJ_EX)",
            0x82..=0x84 => "it names a registered extension (EXT)",
            b'P' => "it refers to something by a text (PERSID)",
            0x96..=0x98 => "it holds a buffer (BYTEARRAY8, NEXT_BUFFER)",
            b'S' | b'V' => "it holds text of pickle protocol 0: save it with the default protocol",
            _ => return Fault::from(format!("unknown pickle operation 0x{op:02x}")),
        };
        Fault::refused(name)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        self.take(1).map(|bytes| bytes.first().copied().unwrap_or_default())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..count));
        let left = self.bytes.len() - self.at;
        let taken = taken.ok_or_else(|| {
            Fault::from(format!(
                "its pickle wants {count} bytes where {left} are left (truncated?)"
            ))
        })?;
        self.at += count;
        Ok(taken)
    }

    /// A little-endian length of `width` bytes.
    fn length(&mut self, width: usize) -> Result<usize, Fault> {
        let mut wide = [0; 8];
        for (to, from) in wide.iter_mut().zip(self.take(width)?) {
            *to = *from;
        }
        let length = u64::from_le_bytes(wide);
        usize::try_from(length).map_err(|_| format!("a length of {length} bytes").into())
    }

    /// Text up to a line break.
    fn line(&mut self) -> Result<&'a str, Fault> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let end = rest.iter().take(MAX_LINE).position(|&byte| byte == b'\n');
        let end = end.ok_or_else(|| format!("a name or number of over {MAX_LINE} bytes"))?;
        let line = self.take(end + 1)?;
        let line = std::str::from_utf8(line.get(..end).unwrap_or_default());
        line.map_err(|_| "a name that is not UTF-8".into())
    }

    pub(super) fn push_id(&mut self, id: Id) -> Result<(), Fault> {
        if self.stack.len() >= MAX_VALUES {
            return Err(Fault::refused(format!("its stack grows over {MAX_VALUES} values")));
        }
        self.stack.push(id);
        Ok(())
    }

    /// Adds a value and puts it on the stack.
    pub(super) fn push(&mut self, value: Value) -> Result<(), Fault> {
        let items: &[Id] = match &value {
            Value::Tuple(items) | Value::List(items) => items,
            _ => &[],
        };
        let inner = items.iter().map(|&item| self.depth(item)).max().unwrap_or(0);
        if inner >= MAX_DEPTH {
            return Err(too_deep());
        }
        if self.values.len() >= MAX_VALUES {
            return Err(too_many());
        }
        let id = self.values.len() as Id;
        self.values.push(value);
        self.depths.push(inner + 1);
        self.push_id(id)
    }

    fn depth(&self, id: Id) -> u16 {
        self.depths.get(id as usize).copied().unwrap_or(0)
    }

    pub(super) fn value(&self, id: Id) -> &Value {
        self.values.get(id as usize).unwrap_or(&Value::None)
    }

    /// Bytes of a text; none for anything else.
    pub(super) fn text(&self, id: Id) -> Option<Range<usize>> {
        match self.value(id) {
            Value::Text(range) => Some(range.clone()),
            _ => None,
        }
    }

    pub(super) fn text_is(&self, id: Id, expected: &str) -> bool {
        self.text(id).is_some_and(|range| self.bytes.get(range) == Some(expected.as_bytes()))
    }

    /// The top of the stack, not below a mark.
    pub(super) fn pop(&mut self) -> Result<Id, Fault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("its stack is empty".into());
        }
        self.stack.pop().ok_or_else(|| "its stack is empty".into())
    }

    /// Everything above the last mark.
    fn pop_to_mark(&mut self) -> Result<Vec<Id>, Fault> {
        let mark = self.marks.pop().ok_or("it closes a group that was not opened")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn number(&mut self, op: u8) -> Result<(), Fault> {
        let value = match op {
            b'K' => Value::Int(self.byte()?.into()),
            b'M' => Value::Int(self.length(2)? as i64),
            b'J' => Value::Int((self.length(4)? as u32 as i32).into()),
            b'G' => self.take(8).map(|_| Value::Float)?,
            b'F' => self.line().map(|_| Value::Float)?,
            b'I' | b'L' => {
                let line = self.line()?;
                let digits = line.strip_suffix('L').unwrap_or(line);
                // `01` and `00` are how protocol 0 writes booleans.
                if matches!(line, "01" | "00") {
                    Value::Bool
                } else {
                    let number = digits.parse();
                    Value::Int(number.map_err(|_| format!("{line:?} where a number should be"))?)
                }
            }
            _ => {
                let length = if op == 0x8a { self.byte()?.into() } else { self.length(4)? };
                small_int(self.take(length)?).map_or(Value::Long, Value::Int)
            }
        };
        self.push(value)
    }

    fn string(&mut self, op: u8) -> Result<(), Fault> {
        let length = match op {
            0x8c | b'U' | b'C' => self.byte()?.into(),
            b'X' | b'T' | b'B' => self.length(4)?,
            _ => self.length(8)?,
        };
        let start = self.at;
        self.take(length)?;
        let text = !matches!(op, b'B' | b'C' | 0x8e);
        self.push(if text { Value::Text(start..start + length) } else { Value::Bytes })
    }

    /// Picklers number what they remember 0, 1, 2, ...; a larger number would ask for memory for nothing.
    fn remember(&mut self, op: u8) -> Result<(), Fault> {
        let index = match op {
            b'q' | b'h' => self.byte()?.into(),
            b'r' | b'j' => self.length(4)?,
            0x94 => self.memo.len(),
            _ => {
                let line = self.line()?;
                line.parse().map_err(|_| format!("{line:?} where a number should be"))?
            }
        };
        if matches!(op, b'h' | b'j' | b'g') {
            let id = self.memo.get(index).copied();
            let missing = || format!("it recalls entry {index} of a memo of {}", self.memo.len());
            return self.push_id(id.ok_or_else(missing)?);
        }
        let top = *self.stack.last().ok_or("its stack is empty")?;
        let count = self.memo.len();
        match self.memo.get_mut(index) {
            Some(entry) => *entry = top,
            None if index == count && index < MAX_VALUES => self.memo.push(top),
            None => {
                let reason = format!("it stores entry {index} of a memo of {count}");
                return Err(Fault::refused(reason));
            }
        }
        Ok(())
    }

    fn tuple(&mut self, op: u8) -> Result<(), Fault> {
        let items = match op {
            b')' => Vec::new(),
            b't' => self.pop_to_mark()?,
            _ => {
                let count = usize::from(op - 0x84);
                let mut items = Vec::with_capacity(count);
                for _ in 0..count {
                    items.push(self.pop()?);
                }
                items.reverse();
                items
            }
        };
        self.push(Value::Tuple(items))
    }

    fn list(&mut self, op: u8) -> Result<(), Fault> {
        let new = match op {
            b']' | 0x8f => return self.push(Value::List(Vec::new())),
            b'l' | 0x91 => {
                let items = self.pop_to_mark()?;
                return self.push(Value::List(items));
            }
            b'a' => vec![self.pop()?],
            _ => self.pop_to_mark()?,
        };
        self.deepen(&new)?;
        match self.top_mut()? {
            Value::List(items) => items.extend(new),
            other => return Err(format!("it appends to {}", other.kind()).into()),
        }
        Ok(())
    }

    fn dict(&mut self, op: u8) -> Result<(), Fault> {
        let new = match op {
            b'}' => Vec::new(),
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_to_mark()?,
        };
        let (pairs, odd) = new.as_chunks::<2>();
        if !odd.is_empty() {
            return Err("a key of a dict without a value".into());
        }
        let pairs = pairs.iter().map(|&[key, value]| (key, value));
        if matches!(op, b'}' | b'd') {
            let items = pairs.collect();
            self.push(Value::Dict { items, ordered: false })?;
            return self.deepen(&new);
        }
        self.deepen(&new)?;
        match self.top_mut()? {
            Value::Dict { items, .. } => items.extend(pairs),
            other => return Err(format!("it sets an item of {}", other.kind()).into()),
        }
        Ok(())
    }

    /// The container on top of the stack gets items: its depth grows with theirs.
    fn deepen(&mut self, items: &[Id]) -> Result<(), Fault> {
        let Some(&top) = self.stack.last() else { return Ok(()) };
        let inner = items.iter().filter(|&&item| item != top).map(|&item| self.depth(item)).max();
        let inner = inner.unwrap_or(0);
        if inner >= MAX_DEPTH {
            return Err(too_deep());
        }
        if let Some(depth) = self.depths.get_mut(top as usize) {
            *depth = (*depth).max(inner + 1);
        }
        Ok(())
    }

    fn top_mut(&mut self) -> Result<&mut Value, Fault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let top = self.stack.get(floor..).and_then(<[Id]>::last).copied();
        let value = top.and_then(|top| self.values.get_mut(top as usize));
        value.ok_or_else(|| "its stack is empty".into())
    }

    fn global(&mut self, op: u8) -> Result<(), Fault> {
        let (module, name) = if op == b'c' {
            (self.line()?, self.line()?)
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            (self.name(module)?, self.name(name)?)
        };
        match Global::find(module, name) {
            Some(global) => self.push(Value::Global(global)),
            None => Err(Fault::refused(format!(
                "it names `{}.{}`, and only tensors and plain containers are read: in Python, \
                 save the state dict alone with torch.save(model.state_dict(), ...), or as safetensors",
                module.escape_default(),
                name.escape_default()
            ))),
        }
    }

    fn name(&self, id: Id) -> Result<&'a str, Fault> {
        let range = self.text(id).filter(|range| range.len() <= MAX_LINE);
        let bytes = range.and_then(|range| self.bytes.get(range));
        let name = bytes.and_then(|bytes| std::str::from_utf8(bytes).ok());
        name.ok_or_else(|| "it names something by what is not a name".into())
    }
}

pub(super) fn too_many() -> Fault {
    Fault::refused(format!("it holds more than {MAX_VALUES} values"))
}

fn too_deep() -> Fault {
    Fault::refused(format!("its containers are nested over {MAX_DEPTH} deep"))
}

/// Little-endian two's complement of at most 8 bytes.
fn small_int(bytes: &[u8]) -> Option<i64> {
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    if bytes.len() > wide.len() {
        return None;
    }
    for (to, from) in wide.iter_mut().zip(bytes) {
        *to = *from;
    }
    Some(i64::from_le_bytes(wide))
}
