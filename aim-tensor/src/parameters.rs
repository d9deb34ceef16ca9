//! [`Parameters`]: every weight of a model in one flat arena, with the gradients of those that train.
//!
//! The order is fixed by what trains, what decays and the name, so that "all weights with decay" and "all that train"
//! are ranges: the optimizer and a gradient norm are one pass over memory. Each tensor starts on a cache line; the
//! padding between tensors is zero and stays zero.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::cuda::DeviceParameters;
use crate::device::Device;
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
///
/// They are made on the CPU. [`Parameters::to`] moves them to a GPU; then values and gradients are there and the
/// slices here are empty, until [`Parameters::download`] copies the values back.
pub struct Parameters {
    layout: Arc<ParamLayout>,
    values: Vec<f32>,
    grads: Vec<f32>,
    device: Option<DeviceParameters>,
}

impl Parameters {
    /// All zero.
    ///
    /// # Errors
    /// [`TensorError::OutOfMemory`].
    pub fn new(layout: Arc<ParamLayout>) -> Result<Self, TensorError> {
        let values = zeros("parameters", layout.total_len())?;
        let grads = zeros("gradients", layout.trainable_len())?;
        Ok(Self { layout, values, grads, device: None })
    }

    /// As [`Parameters::new`] for inference: nothing has a gradient, whatever the specs say.
    ///
    /// # Errors
    /// [`TensorError::OutOfMemory`].
    pub fn without_gradients(layout: Arc<ParamLayout>) -> Result<Self, TensorError> {
        let values = zeros("parameters", layout.total_len())?;
        Ok(Self { layout, values, grads: Vec::new(), device: None })
    }

    /// Moves the parameters from the CPU to a device; gradients start at zero.
    ///
    /// # Errors
    /// When the device has not enough memory, or they are on a GPU already.
    pub fn to(self, device: &Device) -> Result<Self, TensorError> {
        let Device::Cuda(gpu) = device else { return Ok(self) };
        if let Some(there) = &self.device {
            return Err(TensorError::BadArgument {
                op: "to",
                expected: "parameters on the CPU",
                found: format!("parameters on {}", there.gpu().name()),
            });
        }
        let with_gradients = self.has_gradients();
        let there = DeviceParameters::new(gpu, &self.layout, &self.values, with_gradients)?;
        Ok(Self { values: Vec::new(), grads: Vec::new(), device: Some(there), ..self })
    }

    /// Where they are.
    pub fn device(&self) -> Device {
        self.device.as_ref().map_or(Device::Cpu, |there| Device::Cuda(there.gpu().clone()))
    }

    /// Values and gradients in device memory, if they are there.
    pub fn on_device(&self) -> Option<&DeviceParameters> {
        self.device.as_ref()
    }

    /// All values in the arena's order, copied from wherever they are.
    ///
    /// # Errors
    /// When a device fails.
    pub fn download(&self) -> Result<Cow<'_, [f32]>, TensorError> {
        Ok(match &self.device {
            Some(there) => there.download(&self.layout)?.into(),
            None => self.values.as_slice().into(),
        })
    }

    /// All gradients in the arena's order, copied from wherever they are.
    ///
    /// # Errors
    /// When a device fails.
    pub fn download_grads(&self) -> Result<Cow<'_, [f32]>, TensorError> {
        Ok(match &self.device {
            Some(there) => there.download_like(&self.layout, there.grads())?.into(),
            None => self.grads.as_slice().into(),
        })
    }

    /// Bytes of values and gradients, wherever they are.
    pub fn bytes(&self) -> u64 {
        match &self.device {
            Some(there) => there.bytes() as u64,
            None => 4 * (self.values.len() + self.grads.len()) as u64,
        }
    }

    /// Whether what trains has gradients.
    pub fn has_gradients(&self) -> bool {
        let len = match &self.device {
            Some(there) => there.grads().len().min(self.layout.trainable_len()),
            None => self.grads.len(),
        };
        len == self.layout.trainable_len()
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

    /// Values of one parameter, copied from wherever they are.
    ///
    /// # Errors
    /// When a device fails.
    pub fn read(&self, id: ParamId) -> Result<Cow<'_, [f32]>, TensorError> {
        let Some(there) = &self.device else { return Ok(self.value(id).into()) };
        let mut values = vec![0.0; self.layout.get(id).range.len()];
        there.read(id, &mut values)?;
        Ok(values.into())
    }

    /// Overwrites the values of one parameter, wherever they are.
    ///
    /// # Errors
    /// When a device fails.
    ///
    /// # Panics
    /// If the number of values is another one.
    pub fn write(&mut self, id: ParamId, values: &[f32]) -> Result<(), TensorError> {
        assert_eq!(values.len(), self.layout.get(id).range.len(), "a parameter's values");
        match &self.device {
            Some(there) => there.write(id, values)?,
            None => self.value_mut(id).copy_from_slice(values),
        }
        Ok(())
    }

    /// A copy on the CPU of parameters on a device, for files: those that are not wanted are zero, and take no memory
    /// until they are written. `None` on the CPU.
    ///
    /// # Errors
    /// When memory is short or a device fails.
    pub fn fetch(&self, wanted: impl Fn(&str) -> bool) -> Result<Option<Self>, TensorError> {
        let Some(there) = &self.device else { return Ok(None) };
        let mut copy = Self::without_gradients(self.layout.clone())?;
        for (index, param) in self.layout.iter().enumerate() {
            if wanted(&param.spec.name) {
                there.read(ParamId(index as u32), &mut copy.values[param.range.clone()])?;
            }
        }
        Ok(Some(copy))
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
    ///
    /// # Errors
    /// When a device fails.
    pub fn zero_grads(&mut self) -> Result<(), TensorError> {
        if let Some(there) = &self.device {
            return Ok(there.zero_grads()?);
        }
        aim_kernels::cpu::pool::for_each_chunk(&mut self.grads, 1 << 16, |_, chunk| {
            chunk.fill(0.0)
        });
        Ok(())
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
