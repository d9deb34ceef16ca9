//! AdamW over the flat arena of parameters, and clipping by the global norm.

use std::borrow::Cow;

use aim_kernels::adamw;
use aim_kernels::cuda::DeviceArena;
use aim_tensor::cuda::DeviceParameters;
use aim_tensor::parameters::zeros;
use aim_tensor::{ParamLayout, Parameters, TensorError};

/// What one update is made with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Learning rate.
    pub lr: f64,
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay of the parameters that decay applies to.
    pub weight_decay: f64,
    /// Number of the update; the first is 1.
    pub step: u64,
    /// Multiplies every gradient.
    pub grad_scale: f32,
}

/// First and second moments of every trainable parameter, in the parameters' own layout.
///
/// They are made on the CPU; [`AdamW::to`] moves them to where the parameters are.
pub struct AdamW {
    m: Vec<f32>,
    v: Vec<f32>,
    device: Option<DeviceArena>,
}

impl AdamW {
    /// Zero moments.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(layout: &ParamLayout) -> Result<Self, TensorError> {
        let len = layout.trainable_len();
        let (m, v) = (zeros("first moments", len)?, zeros("second moments", len)?);
        Ok(Self { m, v, device: None })
    }

    /// Moves the moments to the device of the parameters that they belong to.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn to(self, params: &Parameters) -> Result<Self, TensorError> {
        let Some(there) = params.on_device() else { return Ok(self) };
        let len = there.layout().trainable_len();
        let arena = DeviceArena::new(there.gpu(), 8 * len, "AdamW's moments")?;
        for (i, moments) in [&self.m, &self.v].into_iter().enumerate() {
            // Fresh memory is zero, and so are fresh moments.
            if moments.iter().any(|&moment| moment != 0.0) {
                there.upload_like(params.layout(), moments, arena.slice(4 * i * len, len))?;
            }
        }
        Ok(Self { m: Vec::new(), v: Vec::new(), device: Some(arena) })
    }

    /// Updates every trainable parameter from its gradient (Loshchilov and Hutter, "Decoupled weight decay
    /// regularization"): one pass over memory.
    ///
    /// # Errors
    /// When a device fails.
    pub fn step(&mut self, params: &mut Parameters, update: Update) -> Result<(), TensorError> {
        if let (Some(there), Some(arena)) = (params.on_device(), &self.device) {
            return step_on_device(there, arena, update);
        }
        let (layout, values, grads) = params.trainable_mut();
        for (range, weight_decay) in
            [(layout.decayed(), update.weight_decay), (layout.undecayed(), 0.0)]
        {
            let settings = update.kernel(weight_decay);
            let (m, v) = (&mut self.m[range.clone()], &mut self.v[range.clone()]);
            adamw::cpu::step(settings, &mut values[range.clone()], &grads[range], m, v);
        }
        Ok(())
    }

    /// One of the moments, 0 or 1, laid out like the parameters on the CPU, copied from wherever it is.
    ///
    /// # Errors
    /// When a device fails.
    pub fn moment(&self, params: &Parameters, which: usize) -> Result<Cow<'_, [f32]>, TensorError> {
        if let (Some(there), Some(arena)) = (params.on_device(), &self.device) {
            let len = there.layout().trainable_len();
            let from = arena.slice(4 * which * len, len);
            return Ok(there.download_like(params.layout(), from)?.into());
        }
        Ok(if which == 0 { self.m.as_slice() } else { self.v.as_slice() }.into())
    }

    /// Bytes of both moments, wherever they are.
    pub fn bytes(&self) -> u64 {
        match &self.device {
            Some(arena) => arena.bytes() as u64,
            None => 4 * (self.m.len() + self.v.len()) as u64,
        }
    }

    /// First and second moments on the CPU, to fill from a checkpoint.
    pub fn moments_mut(&mut self) -> (&mut [f32], &mut [f32]) {
        (&mut self.m, &mut self.v)
    }
}

impl Update {
    /// The kernel's settings for parameters of that decay.
    fn kernel(self, weight_decay: f64) -> adamw::AdamW {
        adamw::AdamW {
            lr: self.lr,
            beta1: self.betas[0],
            beta2: self.betas[1],
            eps: self.eps,
            weight_decay,
            step: self.step,
            grad_scale: self.grad_scale,
        }
    }
}

fn step_on_device(
    params: &DeviceParameters,
    moments: &DeviceArena,
    update: Update,
) -> Result<(), TensorError> {
    let layout = params.layout();
    let len = layout.trainable_len();
    let (m, v) = (moments.slice::<f32>(0, len), moments.slice::<f32>(4 * len, len));
    for (range, decay) in [(layout.decayed(), update.weight_decay), (layout.undecayed(), 0.0)] {
        adamw::cuda::step(
            params.gpu(),
            update.kernel(decay),
            params.values().range(range.clone()),
            params.grads().range(range.clone()),
            m.range(range.clone()),
            v.range(range),
        )?;
    }
    Ok(())
}

/// L2 norm of all gradients together.
///
/// # Errors
/// When a device fails.
pub fn grad_norm(params: &Parameters) -> Result<f64, TensorError> {
    match params.on_device() {
        Some(there) => Ok(there.grad_norm()?),
        None => Ok(aim_kernels::global_norm::cpu::global_norm(params.grads())),
    }
}

/// Factor that brings gradients of norm `norm` to at most `clip` (PyTorch's `clip_grad_norm_`).
pub fn clip_scale(norm: f64, clip: f64) -> f32 {
    (clip / (norm + 1e-6)).min(1.0) as f32
}
