//! [`Parameters`]: every weight of a model in one flat arena, with the gradients of those that train.
//!
//! The order is fixed by what trains, what decays and the name, so that "all weights with decay" and "all that train"
//! are ranges: the optimizer and a gradient norm are one pass over memory. Each tensor starts on a cache line; the
//! padding between tensors is zero and stays zero.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::error::TensorError;
use crate::shape::Shape;

/// Values that a tensor's start is aligned to: one cache line.
const ALIGN: usize = 16;

/// Handle of a parameter in [`Parameters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParamId(pub(crate) u32);

/// What a parameter is, before it has values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamSpec {
    /// Unique name, such as `trunk.blocks.0.attn.qkv.weight`.
    pub name: String,
    /// Shape as stored in files.
    pub shape: Shape,
    /// Whether weight decay applies.
    pub decay: bool,
    /// Whether it has a gradient and is updated.
    pub trainable: bool,
}

/// A parameter's place in the arena.
#[derive(Clone, Debug)]
pub struct Param {
    /// What it is.
    pub spec: ParamSpec,
    /// Its values in the arena.
    pub range: Range<usize>,
}

/// Names, shapes and places of all parameters, without their values.
#[derive(Clone, Debug, Default)]
pub struct ParamLayout {
    params: Vec<Param>,
    by_name: HashMap<String, ParamId>,
    decayed: usize,
    trainable: usize,
    total: usize,
}

impl ParamLayout {
    /// Lays out parameters.
    ///
    /// # Errors
    /// [`TensorError::DuplicateParameter`].
    pub fn new(mut specs: Vec<ParamSpec>) -> Result<Self, TensorError> {
        specs.sort_by(|a, b| {
            (!a.trainable, !a.decay, &a.name).cmp(&(!b.trainable, !b.decay, &b.name))
        });
        let mut layout = Self::default();
        for spec in specs {
            let start = layout.total;
            let range = start..start + spec.shape.len();
            layout.total = range.end.next_multiple_of(ALIGN);
            if spec.trainable {
                layout.trainable = layout.total;
                if spec.decay {
                    layout.decayed = layout.total;
                }
            }
            let id = ParamId(layout.params.len() as u32);
            if layout.by_name.insert(spec.name.clone(), id).is_some() {
                return Err(TensorError::DuplicateParameter { name: spec.name });
            }
            layout.params.push(Param { spec, range });
        }
        Ok(layout)
    }

    /// The parameter of that name.
    pub fn id(&self, name: &str) -> Option<ParamId> {
        self.by_name.get(name).copied()
    }

    /// The parameter behind a handle.
    pub fn get(&self, id: ParamId) -> &Param {
        &self.params[id.0 as usize]
    }

    /// All parameters in the arena's order.
    pub fn iter(&self) -> impl Iterator<Item = &Param> {
        self.params.iter()
    }

    /// Values of all parameters, padding left out.
    pub fn count(&self) -> usize {
        self.params.iter().map(|p| p.range.len()).sum()
    }

    /// Trainable parameters with weight decay: a range from 0.
    pub fn decayed(&self) -> Range<usize> {
        0..self.decayed
    }

    /// Trainable parameters without weight decay: the range after [`ParamLayout::decayed`].
    pub fn undecayed(&self) -> Range<usize> {
        self.decayed..self.trainable
    }

    /// Length of the part of the arena that trains.
    pub fn trainable_len(&self) -> usize {
        self.trainable
    }

    /// Length of the arena.
    pub fn total_len(&self) -> usize {
        self.total
    }
}

/// Parameters with their values (fp32 masters) and gradients.
pub struct Parameters {
    layout: Arc<ParamLayout>,
    values: Vec<f32>,
    grads: Vec<f32>,
}

impl Parameters {
    /// All zero.
    ///
    /// # Errors
    /// [`TensorError::OutOfMemory`].
    pub fn new(layout: Arc<ParamLayout>) -> Result<Self, TensorError> {
        let values = zeros("parameters", layout.total_len())?;
        let grads = zeros("gradients", layout.trainable_len())?;
        Ok(Self { layout, values, grads })
    }

    /// As [`Parameters::new`] for inference: nothing has a gradient, whatever the specs say.
    ///
    /// # Errors
    /// [`TensorError::OutOfMemory`].
    pub fn without_gradients(layout: Arc<ParamLayout>) -> Result<Self, TensorError> {
        let values = zeros("parameters", layout.total_len())?;
        Ok(Self { layout, values, grads: Vec::new() })
    }

    /// Names, shapes and places.
    pub fn layout(&self) -> &Arc<ParamLayout> {
        &self.layout
    }

    /// All values, flat, in the arena's order.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Values of one parameter.
    pub fn value(&self, id: ParamId) -> &[f32] {
        &self.values[self.layout.get(id).range.clone()]
    }

    /// Values of one parameter, to write.
    pub fn value_mut(&mut self, id: ParamId) -> &mut [f32] {
        &mut self.values[self.layout.get(id).range.clone()]
    }

    /// Gradient of one parameter; `None` if it does not train.
    pub fn grad(&self, id: ParamId) -> Option<&[f32]> {
        self.grads.get(self.layout.get(id).range.clone())
    }

    /// Values and gradient of different parameters at once: values to read, gradients to write.
    pub(crate) fn split(&mut self) -> (&ParamLayout, &[f32], &mut [f32]) {
        (&self.layout, &self.values, &mut self.grads)
    }

    /// Values and gradients of all that trains, for an optimizer.
    pub fn trainable_mut(&mut self) -> (&ParamLayout, &mut [f32], &mut [f32]) {
        let len = self.layout.trainable_len();
        (&self.layout, &mut self.values[..len], &mut self.grads)
    }

    /// All gradients, flat.
    pub fn grads(&self) -> &[f32] {
        &self.grads
    }

    /// Sets all gradients to zero.
    pub fn zero_grads(&mut self) {
        aim_kernels::cpu::pool::for_each_chunk(&mut self.grads, 1 << 16, |_, chunk| {
            chunk.fill(0.0)
        });
    }

    /// Every parameter with its values, in the arena's order.
    pub fn iter(&self) -> impl Iterator<Item = (&Param, &[f32])> {
        self.layout.iter().map(|p| (p, &self.values[p.range.clone()]))
    }
}

/// A zeroed vector, or an error where `vec!` would abort. Pages stay untouched until they are written.
pub fn zeros(what: &'static str, len: usize) -> Result<Vec<f32>, TensorError> {
    let error = TensorError::OutOfMemory { what, bytes: len.saturating_mul(4) };
    let mut probe = Vec::<f32>::new();
    if probe.try_reserve_exact(len).is_err() {
        return Err(error);
    }
    drop(probe);
    Ok(vec![0.0; len])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, len: usize, decay: bool, trainable: bool) -> ParamSpec {
        ParamSpec { name: name.into(), shape: [len].into(), decay, trainable }
    }

    #[test]
    fn groups_are_ranges_and_names_are_unique() {
        let specs = vec![
            spec("norm", 5, false, true),
            spec("frozen", 7, true, false),
            spec("b", 20, true, true),
            spec("a", 3, true, true),
        ];
        let layout = ParamLayout::new(specs).unwrap();
        assert_eq!(layout.decayed(), 0..48);
        assert_eq!(layout.undecayed(), 48..64);
        assert_eq!((layout.trainable_len(), layout.total_len(), layout.count()), (64, 80, 35));
        let params = Parameters::new(Arc::new(layout)).unwrap();
        let id = |name| params.layout().id(name).unwrap();
        assert_eq!(params.grad(id("a")).map(<[f32]>::len), Some(3));
        assert_eq!(params.grad(id("frozen")), None);
        assert!(
            ParamLayout::new(vec![spec("a", 1, true, true), spec("a", 1, true, true)]).is_err()
        );
    }
}
