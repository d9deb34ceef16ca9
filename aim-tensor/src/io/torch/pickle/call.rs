//! What the few allowed names make of their arguments.

use safetensors::Dtype;

use super::machine::{Machine, too_many};
use super::value::{Global, Id, Storage, Tensor, Value};
use super::{MAX_DIMENSIONS, MAX_TENSORS, MAX_VALUES};
use crate::io::torch::Fault;

impl Machine<'_> {
    /// A function and its arguments become its result.
    pub(super) fn reduce(&mut self) -> Result<(), Fault> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Value::Tuple(arguments) = self.value(arguments) else {
            return Err("it calls something without a tuple of arguments".into());
        };
        let Value::Global(global) = *self.value(function) else {
            let kind = self.value(function).kind();
            return Err(Fault::refused(format!("it calls {kind}")));
        };
        // Bounded by the longest argument list there is: `_rebuild_tensor_v3` has eight.
        let arguments: Vec<Id> = arguments.iter().copied().take(16).collect();
        let value = match (global, arguments.as_slice()) {
            (Global::OrderedDict, []) => Value::Dict { items: Vec::new(), ordered: true },
            (Global::OrderedDict, [pairs]) => {
                Value::Dict { items: self.pairs(*pairs)?, ordered: true }
            }
            (Global::Set, []) => Value::List(Vec::new()),
            // Nothing looks into a set.
            (Global::Set, [items]) if matches!(self.value(*items), Value::List(_)) => {
                Value::List(Vec::new())
            }
            (Global::Size, [sizes]) => {
                self.same(*sizes, |value| matches!(value, Value::Tuple(_)))?
            }
            (Global::Device, [_] | [_, _]) => Value::Device,
            (Global::RebuildTensor, [storage, offset, shape, strides, ..]) => {
                self.tensor([*storage, *offset, *shape, *strides], None)?
            }
            (Global::RebuildTensorV3, [storage, offset, shape, strides, _, _, dtype, ..]) => {
                let Value::Global(Global::Dtype(dtype)) = *self.value(*dtype) else {
                    return Err("a tensor whose type is no type".into());
                };
                self.tensor([*storage, *offset, *shape, *strides], Some(dtype))?
            }
            (Global::RebuildParameter, [tensor, ..]) => {
                self.same(*tensor, |value| matches!(value, Value::Tensor(_)))?
            }
            (global, arguments) => {
                let count = arguments.len();
                return Err(Fault::refused(format!("it calls {global:?} with {count} arguments")));
            }
        };
        self.push(value)
    }

    fn same(&self, id: Id, fits: impl Fn(&Value) -> bool) -> Result<Value, Fault> {
        let value = self.value(id);
        // A copy of a long tuple each time would let a short pickle take much memory.
        let long = matches!(value, Value::Tuple(items) if items.len() > MAX_DIMENSIONS);
        if !fits(value) || long {
            return Err(format!("it calls something with {}", value.kind()).into());
        }
        Ok(value.clone())
    }

    /// `OrderedDict([[key, value], ...])`, as old versions wrote it.
    fn pairs(&mut self, id: Id) -> Result<Vec<(Id, Id)>, Fault> {
        let bad = || Fault::from("an OrderedDict of something else than pairs");
        let (Value::List(items) | Value::Tuple(items)) = self.value(id) else { return Err(bad()) };
        // The same list may be given again and again.
        if self.pairs + items.len() > MAX_VALUES {
            return Err(too_many());
        }
        let pair = |&item: &Id| match self.value(item) {
            Value::List(pair) | Value::Tuple(pair) => match pair.as_slice() {
                &[key, value] => Ok((key, value)),
                _ => Err(bad()),
            },
            _ => Err(bad()),
        };
        let pairs: Vec<(Id, Id)> = items.iter().map(pair).collect::<Result<_, _>>()?;
        self.pairs += pairs.len();
        Ok(pairs)
    }

    /// Attributes: `state_dict()` hangs its `_metadata` on an `OrderedDict`; they are dropped.
    pub(super) fn build(&mut self) -> Result<(), Fault> {
        let (state, object) = (self.pop()?, self.pop()?);
        let ordered = matches!(self.value(object), Value::Dict { ordered: true, .. });
        if !ordered || !matches!(self.value(state), Value::Dict { .. }) {
            let (object, state) = (self.value(object).kind(), self.value(state).kind());
            return Err(Fault::refused(format!(
                "it sets the state of {object} to {state} (BUILD)"
            )));
        }
        self.push_id(object)
    }

    /// `('storage', class, key, location, numel[, view])` becomes a storage.
    pub(super) fn persistent(&mut self) -> Result<(), Fault> {
        let id = self.pop()?;
        let Value::Tuple(parts) = self.value(id) else {
            return Err("it refers to something outside that is no storage".into());
        };
        let (&[kind, class, key, _, numel], rest) =
            parts.split_first_chunk::<5>().ok_or("a storage with fewer than five properties")?;
        if !self.text_is(kind, "storage") {
            return Err(Fault::refused(
                "it refers to the source code of a module: save its state_dict() instead",
            ));
        }
        let Value::Global(Global::Storage(dtype)) = *self.value(class) else {
            return Err("a storage whose class is no storage".into());
        };
        let key = self.text(key).ok_or("a storage whose key is no string")?;
        let numel = self.size(numel)?;
        let view = match rest.first().map(|&view| self.value(view)) {
            None | Some(Value::None) => None,
            Some(Value::Tuple(view)) => match view.as_slice() {
                &[_, offset, length] => Some((self.size(offset)?, self.size(length)?)),
                _ => return Err("a view on a storage without three properties".into()),
            },
            Some(other) => return Err(format!("a storage seen through {}", other.kind()).into()),
        };
        if self.storages.len() >= MAX_TENSORS {
            return Err(Fault::refused(format!("it holds more than {MAX_TENSORS} storages")));
        }
        let number = self.storages.len() as u32;
        self.storages.push(Storage { dtype, key, numel, view });
        self.push(Value::Storage(number))
    }

    fn tensor(&mut self, parts: [Id; 4], dtype: Option<Dtype>) -> Result<Value, Fault> {
        let [storage, offset, shape, strides] = parts;
        let Value::Storage(storage) = *self.value(storage) else {
            return Err(format!("a tensor on {}", self.value(storage).kind()).into());
        };
        let known = self.storages.get(storage as usize).and_then(|storage| storage.dtype);
        let dtype = dtype.or(known).ok_or("a tensor without a type on an untyped storage")?;
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        if shape.len() != strides.len() {
            return Err(format!("a tensor of shape {shape:?} with strides {strides:?}").into());
        }
        if self.tensors.len() >= MAX_TENSORS {
            return Err(Fault::refused(format!("it holds more than {MAX_TENSORS} tensors")));
        }
        let offset = self.size(offset)?;
        let number = self.tensors.len() as u32;
        self.tensors.push(Tensor { storage, dtype, offset, shape, strides });
        Ok(Value::Tensor(number))
    }

    fn size(&self, id: Id) -> Result<usize, Fault> {
        match *self.value(id) {
            Value::Int(size) => {
                usize::try_from(size).map_err(|_| format!("a size or offset of {size}").into())
            }
            _ => Err(format!("{} where a size should be", self.value(id).kind()).into()),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>, Fault> {
        match self.value(id) {
            Value::Tuple(items) | Value::List(items) if items.len() <= MAX_DIMENSIONS => {
                items.iter().map(|&item| self.size(item)).collect()
            }
            other => Err(format!(
                "{} where a shape of at most {MAX_DIMENSIONS} dimensions should be",
                other.kind()
            )
            .into()),
        }
    }
}
