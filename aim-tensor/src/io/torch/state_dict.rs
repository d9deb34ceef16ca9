//! From what a pickle built to a table of tensors.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use safetensors::Dtype;

use super::pickle::{Id, MAX_TENSORS, Pickle, Storage, Tensor, Value};
use super::{Contents, Entry, Fault};

/// Where people put the weights among other things, looked for in this order.
const SECTIONS: [&str; 4] = ["model", "state_dict", "model_state_dict", "module"];
/// Dicts inside each other that are looked through.
const MAX_NESTING: usize = 4;
/// The tensors together over the size of the file: shared storages are fine, a file that claims a thousand times its
/// own size is not.
const MAX_SHARING: usize = 8;

/// Bytes of an element; untyped storages count bytes.
pub(super) fn width(dtype: Option<Dtype>) -> usize {
    dtype.map_or(1, |dtype| dtype.bitsize() / 8)
}

/// The storage's place, if it has the size that the pickle says.
pub(super) fn check_length(
    storage: &Storage,
    range: Range<usize>,
    key: &str,
) -> Result<Range<usize>, Fault> {
    if storage.numel.checked_mul(width(storage.dtype)) == Some(range.len()) {
        return Ok(range);
    }
    Err(format!(
        "storage `{key}`: expected {} elements, found {} bytes",
        storage.numel,
        range.len()
    )
    .into())
}

/// The tensors of the state dict. `storages` are the places of the pickle's storages, `length` is the file's.
pub(super) fn collect(
    pickle: &Pickle<'_>,
    storages: &[Range<usize>],
    length: usize,
) -> Result<Contents, Fault> {
    let (items, section) = choose(pickle)?;
    // The last of two equal keys counts, as in Python; the order is that of the first.
    let mut last: HashMap<&str, u32> = HashMap::new();
    let mut order = Vec::new();
    for &(key, value) in items {
        if let (Some(name), Value::Tensor(tensor)) = (pickle.text(key), pickle.value(value))
            && last.insert(name, *tensor).is_none()
        {
            order.push(name);
        }
    }
    if order.len() > MAX_TENSORS {
        return Err(Fault::refused(format!("it names more than {MAX_TENSORS} tensors")));
    }
    let mut entries = Vec::with_capacity(order.len());
    let mut total = 0usize;
    for name in order {
        let tensor = last.get(name).and_then(|&number| pickle.tensors.get(number as usize));
        let Some(tensor) = tensor else { continue };
        let storage = storages.get(tensor.storage as usize).cloned().unwrap_or_default();
        let entry = window(name, tensor, storage).map_err(|fault| fault.at(shown(name)))?;
        total = total.saturating_add(entry.range.len());
        if total > length.saturating_mul(MAX_SHARING) {
            return Err(Fault::refused(format!(
                "its tensors together are over {MAX_SHARING} times as large as the file"
            )));
        }
        entries.push(entry);
    }
    Ok(Contents { entries, section })
}

fn shown(name: &str) -> String {
    format!("tensor `{}`", name.chars().take(200).collect::<String>())
}

/// A tensor's window on its storage, which must lie inside.
fn window(name: &str, tensor: &Tensor, storage: Range<usize>) -> Result<Entry, Fault> {
    let Tensor { dtype, offset, ref shape, ref strides, .. } = *tensor;
    let width = width(Some(dtype)).max(1);
    let numel = storage.len() / width;
    let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    let last = shape.iter().zip(strides).try_fold(offset, |last, (&size, &stride)| {
        size.saturating_sub(1).checked_mul(stride).and_then(|step| last.checked_add(step))
    });
    let empty = elements == Some(0);
    let inside = if empty { offset <= numel } else { last.is_some_and(|last| last < numel) };
    if !inside {
        return Err(format!(
            "shape {shape:?} with strides {strides:?} from element {offset} does not fit its storage \
             of {numel} elements"
        )
        .into());
    }
    if elements.is_none_or(|elements| elements > numel) {
        return Err(Fault::refused(format!(
            "shape {shape:?} repeats the elements of a storage of {numel}: save a contiguous copy"
        )));
    }
    let start = storage.start + offset * width;
    let end = match last {
        Some(last) if !empty => storage.start + (last + 1) * width,
        _ => start,
    };
    let strides = (!empty && !is_contiguous(shape, strides)).then(|| strides.clone());
    Ok(Entry { name: name.to_owned(), dtype, shape: shape.clone(), strides, range: start..end })
}

/// Whether the elements lie in row-major order without gaps. The stride of a dimension of one does not matter.
fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    for (&size, &stride) in shape.iter().zip(strides).rev() {
        if size != 1 && stride != expected {
            return false;
        }
        expected *= size;
    }
    true
}

type Items = Vec<(Id, Id)>;

/// The dict that holds the weights, and the path to it. See the module's page.
fn choose<'p>(pickle: &'p Pickle<'_>) -> Result<(&'p Items, Option<String>), Fault> {
    let Value::Dict { items, .. } = pickle.value(pickle.root) else {
        let found = pickle.value(pickle.root).kind();
        return Err(format!("expected a dict of tensors, found {found}").into());
    };
    let (mut items, mut path) = (items, Vec::new());
    // A dict that contains itself would be walked through for ever.
    for _ in 0..MAX_NESTING {
        let inner: Vec<(&str, Id, &Items)> = items
            .iter()
            .filter_map(|&(key, value)| match pickle.value(value) {
                Value::Dict { items, .. } => Some((pickle.text(key)?, value, items)),
                _ => None,
            })
            .collect();
        let mut seen = HashSet::new();
        let holding: Vec<_> = inner
            .into_iter()
            .filter(|(_, id, _)| seen.insert(*id) && holds_tensors(pickle, *id))
            .collect();
        let named =
            SECTIONS.iter().find_map(|section| holding.iter().find(|(key, ..)| key == section));
        let next = match (named, holding.as_slice()) {
            (Some(named), _) => named,
            _ if has_tensor(pickle, items) => break,
            (None, [only]) => only,
            (None, []) => return Err("it holds no dict of tensors".into()),
            (None, several) => {
                let names: Vec<String> = several
                    .iter()
                    .take(8)
                    .map(|(key, ..)| format!("`{}`", key.escape_debug()))
                    .collect();
                return Err(format!(
                    "its dicts {} all hold tensors: save the one with the weights alone, or name it `model`",
                    names.join(", ")
                )
                .into());
            }
        };
        path.push(next.0.chars().take(100).collect::<String>());
        items = next.2;
    }
    if !has_tensor(pickle, items) {
        return Err("it holds no dict of tensors".into());
    }
    Ok((items, (!path.is_empty()).then(|| path.join("."))))
}

fn has_tensor(pickle: &Pickle<'_>, items: &Items) -> bool {
    items.iter().any(|&(key, value)| {
        matches!(pickle.value(value), Value::Tensor(_)) && pickle.text(key).is_some()
    })
}

/// Whether tensors are in a dict or in dicts inside it, at most [`MAX_NESTING`] deep; each dict is looked at once.
fn holds_tensors(pickle: &Pickle<'_>, id: Id) -> bool {
    let mut seen = HashSet::from([id]);
    let mut level = vec![id];
    for _ in 0..MAX_NESTING {
        let mut deeper = Vec::new();
        for id in level {
            let Value::Dict { items, .. } = pickle.value(id) else { continue };
            if has_tensor(pickle, items) {
                return true;
            }
            let dicts = items.iter().map(|&(_, value)| value).filter(|&value| {
                matches!(pickle.value(value), Value::Dict { .. }) && seen.insert(value)
            });
            deeper.extend(dicts);
        }
        level = deeper;
    }
    false
}
