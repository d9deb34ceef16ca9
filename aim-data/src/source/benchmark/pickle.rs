//! Python pickles, as far as CIFAR's files need them: dictionaries, lists, numbers, texts and one kind
//! of NumPy array.
//!
//! A pickle is a program for a machine with a stack. This one has no imports and no calls: the names of
//! functions are read, the only one with a meaning is the one that makes a NumPy array of what follows
//! it, and everything else becomes [`Value::Other`].

use std::collections::HashMap;
use std::rc::Rc;

/// Most instructions of a pickle; CIFAR-100's training images take 400,000.
const MAX_STEPS: usize = 4 << 20;
/// Containers nested deeper than this are refused.
const MAX_DEPTH: u8 = 16;

/// A value on the stack.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Int(i64),
    /// A text or bytes, which Python 2 did not tell apart.
    Text(Rc<[u8]>),
    /// The name of a function or class.
    Global(Rc<str>),
    /// A NumPy array: the bytes of its elements, once they are there.
    Array(Option<Rc<[u8]>>),
    /// A list, a tuple, or the keys and values of a dictionary in turn, and how deep it is nested.
    Sequence(Vec<Value>, u8),
    Other,
}

impl Value {
    /// The value under a key of a dictionary.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        let mut pairs = self.items()?.chunks_exact(2);
        let found =
            |pair: &&[Value]| matches!(&pair[0], Self::Text(text) if **text == *key.as_bytes());
        pairs.find(found).map(|pair| &pair[1])
    }

    pub(super) fn items(&self) -> Option<&[Value]> {
        match self {
            Self::Sequence(items, _) => Some(items),
            _ => None,
        }
    }

    pub(super) fn int(&self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<String> {
        match self {
            Self::Text(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            _ => None,
        }
    }

    pub(super) fn array(&self) -> Option<&[u8]> {
        match self {
            Self::Array(Some(bytes)) => Some(bytes),
            _ => None,
        }
    }

    fn depth(&self) -> u8 {
        if let Self::Sequence(_, depth) = self { *depth } else { 0 }
    }
}

/// What a pickle holds.
///
/// # Errors
/// A text with the place of an instruction that is not understood.
pub(super) fn load(bytes: &[u8]) -> Result<Value, String> {
    let mut machine =
        Machine { bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    for _ in 0..MAX_STEPS {
        let at = machine.at;
        let step = machine.step().map_err(|why| format!("byte {at} of the pickle: {why}"))?;
        if let Some(value) = step {
            return Ok(value);
        }
    }
    Err(format!("a pickle of more than {MAX_STEPS} instructions"))
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<usize, Value>,
}

impl<'a> Machine<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or("the pickle is cut short")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn number(&mut self, width: usize) -> Result<usize, String> {
        let bytes = self.take(width)?;
        let value = bytes.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
        usize::try_from(value).map_err(|_| "a length beyond this machine".into())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n').ok_or("a line without end")?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|error| error.to_string())
    }

    fn text(&mut self, width: usize) -> Result<(), String> {
        let count = self.number(width)?;
        let bytes = self.take(count)?;
        self.stack.push(Value::Text(bytes.into()));
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, String> {
        // What is under a mark belongs to somebody else.
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("nothing on the stack".into());
        }
        self.stack.pop().ok_or_else(|| "nothing on the stack".into())
    }

    fn since_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.marks.pop().ok_or("no mark on the stack")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn sequence(&mut self, items: Vec<Value>) -> Result<(), String> {
        self.stack.push(Value::Sequence(Vec::new(), 1));
        self.append(items)
    }

    /// Adds to the list or dictionary on top.
    fn append(&mut self, items: Vec<Value>) -> Result<(), String> {
        let deepest = items.iter().map(Value::depth).max().unwrap_or(0);
        let Some(Value::Sequence(list, depth)) = self.stack.last_mut() else {
            return Err("expected a list or a dictionary".into());
        };
        *depth = (*depth).max(deepest + 1);
        if *depth > MAX_DEPTH {
            return Err(format!("containers nested deeper than {MAX_DEPTH}"));
        }
        list.extend(items);
        Ok(())
    }

    fn remember(&mut self, slot: usize) -> Result<(), String> {
        // Containers are not shared here: copies of copies could grow without bound.
        let value = match self.stack.last() {
            None => return Err("nothing on the stack".into()),
            Some(Value::Sequence(..)) => Value::Other,
            Some(value) => value.clone(),
        };
        self.memo.insert(slot, value);
        Ok(())
    }

    fn recall(&mut self, slot: usize) -> Result<(), String> {
        let value = self.memo.get(&slot).ok_or_else(|| format!("memory slot {slot} is empty"))?;
        self.stack.push(value.clone());
        Ok(())
    }

    /// A function called with the tuple on top.
    fn call(&mut self) -> Result<(), String> {
        let (_, function) = (self.pop()?, self.pop()?);
        let reconstruct =
            ["numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"];
        self.stack.push(match function {
            Value::Global(name) if reconstruct.contains(&&*name) => Value::Array(None),
            _ => Value::Other,
        });
        Ok(())
    }

    /// Gives the object under the top its state: for an array (version, shape, type, order, bytes).
    fn build(&mut self) -> Result<(), String> {
        let state = self.pop()?;
        if let Some(Value::Array(data)) = self.stack.last_mut() {
            let bytes = match state.items() {
                Some([_, _, _, _, Value::Text(bytes)]) => Rc::clone(bytes),
                _ => return Err("an array without its bytes".into()),
            };
            *data = Some(bytes);
        }
        Ok(())
    }

    /// Carries out one instruction; a value at the last one.
    fn step(&mut self) -> Result<Option<Value>, String> {
        match self.take(1)?[0] {
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            // None, True, False.
            b'N' | 0x88 | 0x89 => self.stack.push(Value::Other),
            b'K' => self.int(1)?,
            b'M' => self.int(2)?,
            b'J' => {
                let value = self.number(4)? as u32 as i32;
                self.stack.push(Value::Int(i64::from(value)));
            }
            b'I' => {
                let line = self.line()?;
                self.stack.push(line.parse().map_or(Value::Other, Value::Int));
            }
            // Short and long texts and bytes of all versions.
            b'U' | b'C' | 0x8c => self.text(1)?,
            b'T' | b'X' | b'B' => self.text(4)?,
            0x8d | 0x8e => self.text(8)?,
            b']' | b'}' | b')' => self.sequence(Vec::new())?,
            b'l' | b'd' | b't' => {
                let items = self.since_mark()?;
                self.sequence(items)?;
            }
            count @ 0x85..=0x87 => {
                let mut items = Vec::new();
                for _ in 0x84..count {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.sequence(items)?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.append(vec![key, value])?;
            }
            b'e' | b'u' => {
                let items = self.since_mark()?;
                self.append(items)?;
            }
            b'c' => {
                let name = format!("{} {}", self.line()?, self.line()?);
                self.stack.push(Value::Global(name.into()));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let part = |value: Value| value.text().unwrap_or_default();
                self.stack.push(Value::Global(format!("{} {}", part(module), part(name)).into()));
            }
            b'R' => self.call()?,
            b'b' => self.build()?,
            b'q' => {
                let slot = self.number(1)?;
                self.remember(slot)?;
            }
            b'r' => {
                let slot = self.number(4)?;
                self.remember(slot)?;
            }
            0x94 => self.remember(self.memo.len())?,
            b'h' => {
                let slot = self.number(1)?;
                self.recall(slot)?;
            }
            b'j' => {
                let slot = self.number(4)?;
                self.recall(slot)?;
            }
            other => return Err(format!("instruction {other:#04x} is not known here")),
        }
        Ok(None)
    }

    fn int(&mut self, width: usize) -> Result<(), String> {
        let value = self.number(width)?;
        self.stack.push(Value::Int(value as i64));
        Ok(())
    }
}
