//! [`DeviceParameters`]: masters and gradients in device memory.

use std::sync::Arc;

use aim_kernels::cast::{join, split};
use aim_kernels::cuda::{CudaError, DeviceArena, DeviceSlice, Gpu, SplitSlice};
use aim_kernels::global_norm;
use aim_kernels::linear::cuda::Operand;
use half::bf16;

use super::layout::DeviceLayout;
use crate::parameters::{ParamId, ParamLayout};

/// fp32 masters, each as the nearest bf16 and a remainder of 16 bits, and fp32 gradients: 8 bytes a parameter.
pub struct DeviceParameters {
    layout: DeviceLayout,
    arena: DeviceArena,
    with_gradients: bool,
}

/// Host memory that copies of parameters go through.
#[derive(Default)]
struct Room {
    padded: Vec<f32>,
    hi: Vec<bf16>,
    lo: Vec<i16>,
}

impl DeviceParameters {
    /// Copies masters to the device; gradients are zero.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn new(
        gpu: &Arc<Gpu>,
        layout: &ParamLayout,
        values: &[f32],
        with_gradients: bool,
    ) -> Result<Self, CudaError> {
        let device = DeviceLayout::new(layout);
        let grads = if with_gradients { device.trainable_len() } else { 0 };
        // Masters, gradients, and room for the partial sums of their norm.
        let bytes = 4 * (device.total_len() + grads) + 8 * global_norm::cuda::scratch_len(grads);
        let arena = DeviceArena::new(gpu, bytes, "parameters and their gradients")?;
        let this = Self { layout: device, arena, with_gradients };
        this.upload(layout, values)?;
        Ok(this)
    }

    fn upload(&self, layout: &ParamLayout, values: &[f32]) -> Result<(), CudaError> {
        let mut room = Room::default();
        for (index, param) in layout.iter().enumerate() {
            self.write_at(index, &values[param.range.clone()], &mut room)?;
        }
        Ok(())
    }

    fn write_at(&self, index: usize, values: &[f32], room: &mut Room) -> Result<(), CudaError> {
        let Room { padded, hi, lo } = room;
        let place = self.layout.place(index);
        padded.clear();
        padded.resize(place.range().len(), 0.0);
        DeviceLayout::pad(place, values, padded);
        hi.clear();
        lo.clear();
        hi.extend(padded.iter().map(|&value| split(value).0));
        lo.extend(padded.iter().map(|&value| split(value).1));
        let to = self.values().range(place.range());
        to.hi.upload(self.gpu(), hi)?;
        to.lo.upload(self.gpu(), lo)
    }

    fn read_at(&self, index: usize, values: &mut [f32], room: &mut Room) -> Result<(), CudaError> {
        let Room { padded, hi, lo } = room;
        let place = self.layout.place(index);
        let from = self.values().range(place.range());
        hi.resize(from.len(), bf16::ZERO);
        lo.resize(from.len(), 0);
        from.hi.download(self.gpu(), hi)?;
        from.lo.download(self.gpu(), lo)?;
        padded.clear();
        padded.extend(hi.iter().zip(&*lo).map(|(&hi, &lo)| join(hi, lo)));
        DeviceLayout::unpad(place, padded, values);
        Ok(())
    }

    /// Copies one parameter's values to the device.
    pub(crate) fn write(&self, id: ParamId, values: &[f32]) -> Result<(), CudaError> {
        self.write_at(id.0 as usize, values, &mut Room::default())
    }

    /// Copies one parameter's values from the device.
    pub(crate) fn read(&self, id: ParamId, values: &mut [f32]) -> Result<(), CudaError> {
        self.read_at(id.0 as usize, values, &mut Room::default())
    }

    /// All masters in the host's order.
    ///
    /// # Errors
    /// When the device fails.
    pub fn download(&self, layout: &ParamLayout) -> Result<Vec<f32>, CudaError> {
        let mut values = vec![0.0; layout.total_len()];
        let mut room = Room::default();
        for (index, param) in layout.iter().enumerate() {
            self.read_at(index, &mut values[param.range.clone()], &mut room)?;
        }
        Ok(values)
    }

    /// Values laid out as the trainable parameters are on the device, such as moments, in the host's order.
    ///
    /// # Errors
    /// When the device fails.
    pub fn download_like(
        &self,
        layout: &ParamLayout,
        from: DeviceSlice<'_, f32>,
    ) -> Result<Vec<f32>, CudaError> {
        let mut values = vec![0.0; layout.trainable_len()];
        let mut padded = Vec::new();
        for (index, param) in layout.iter().enumerate().filter(|(_, p)| p.spec.trainable) {
            let place = self.layout.place(index);
            padded.resize(place.range().len(), 0.0);
            from.range(place.range()).download(self.gpu(), &mut padded)?;
            DeviceLayout::unpad(place, &padded, &mut values[param.range.clone()]);
        }
        Ok(values)
    }

    /// The way back.
    ///
    /// # Errors
    /// When the device fails.
    pub fn upload_like(
        &self,
        layout: &ParamLayout,
        values: &[f32],
        to: DeviceSlice<'_, f32>,
    ) -> Result<(), CudaError> {
        let mut padded = Vec::new();
        for (index, param) in layout.iter().enumerate().filter(|(_, p)| p.spec.trainable) {
            let place = self.layout.place(index);
            padded.clear();
            padded.resize(place.range().len(), 0.0);
            DeviceLayout::pad(place, &values[param.range.clone()], &mut padded);
            to.range(place.range()).upload(self.gpu(), &padded)?;
        }
        Ok(())
    }

    /// The device.
    pub fn gpu(&self) -> &Arc<Gpu> {
        self.arena.gpu()
    }

    /// Where each parameter lies.
    pub fn layout(&self) -> &DeviceLayout {
        &self.layout
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        self.arena.bytes()
    }

    /// All masters, padding included.
    pub fn values(&self) -> SplitSlice<'_> {
        let len = self.layout.total_len();
        SplitSlice { hi: self.arena.slice(0, len), lo: self.arena.slice(2 * len, len) }
    }

    /// All gradients, padding included; empty without gradients.
    pub fn grads(&self) -> DeviceSlice<'_, f32> {
        let len = if self.with_gradients { self.layout.trainable_len() } else { 0 };
        self.arena.slice(4 * self.layout.total_len(), len)
    }

    /// Sets all gradients to zero.
    ///
    /// # Errors
    /// When the device fails.
    pub fn zero_grads(&self) -> Result<(), CudaError> {
        self.grads().fill_bytes(self.gpu(), 0)
    }

    /// L2 norm of all gradients together.
    ///
    /// # Errors
    /// When the device fails.
    pub fn grad_norm(&self) -> Result<f64, CudaError> {
        let grads = self.grads();
        let start = 4 * (self.layout.total_len() + grads.len());
        let scratch = self.arena.slice(start, global_norm::cuda::scratch_len(grads.len()));
        Ok(global_norm::cuda::sum_of_squares(self.gpu(), grads, scratch)?.sqrt())
    }

    /// A vector: the weight of a norm, a bias.
    pub(crate) fn vector(&self, id: ParamId) -> SplitSlice<'_> {
        self.values().range(self.layout.place(id.0 as usize).range())
    }

    /// A matrix as an operand of products: its bf16 half.
    pub(crate) fn matrix(&self, id: ParamId) -> Operand<'_> {
        let place = self.layout.place(id.0 as usize);
        Operand { data: self.values().hi.range(place.range()), stride: place.stride }
    }

    /// A gradient and its row stride, if the parameter trains.
    pub(crate) fn grad(
        &self,
        layout: &ParamLayout,
        id: ParamId,
    ) -> Option<(DeviceSlice<'_, f32>, usize)> {
        let place = self.layout.place(id.0 as usize);
        layout.get(id).spec.trainable.then(|| (self.grads().range(place.range()), place.stride))
    }
}
