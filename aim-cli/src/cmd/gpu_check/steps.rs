//! Whole training steps, timed: images to the device, forward, backward, clipping, AdamW. Decoding runs beside a step and
//! is left out.

use std::sync::Arc;

use aim_kernels::cuda::gemm;
use aim_kernels::cuda::timing::{Timer, measure, median, share};
use aim_model::AimConfig;
use aim_model::init::initialize;
use aim_model::objective::{PrefixRule, PrefixSampler, Selection};
use aim_model::pretrain::{Pixels, PretrainModel, PretrainStep, Target};
use aim_tensor::count::{Flops, flops};
use aim_tensor::{Category, Parameters, Plan, PlanOptions, Storage};
use aim_train::optimizer::{AdamW, Update, clip_scale, grad_norm};
use anyhow::{Context as _, Result};

use super::Context;
use super::record::{Check, Record, Step};

/// Steps before the first that counts: the first chooses algorithms.
const WARMUP: usize = 3;
/// Time for the steps that count, seconds, and how many there are at least.
const TIME_S: f64 = 20.0;
const LEAST: usize = 10;
/// Memory that a step leaves for choosing algorithms and for fragments.
const RESERVE: usize = 1 << 30;
const MOST_BATCH: usize = 2048;

/// A model with all that a step needs but its activations.
struct Training {
    model: PretrainModel,
    params: Parameters,
    optimizer: AdamW,
    updates: u64,
}

pub(super) fn run(context: &Context, preset: &str) -> Result<()> {
    let model = PretrainModel::new(&AimConfig::preset(preset)?, Target::NormalizedPixels)?;
    gemm::prepare(&context.gpu)?;
    gemm::tune(&context.gpu, true);
    let mut params = Parameters::new(Arc::clone(model.layout()))?;
    initialize(&mut params, context.seed);
    let params = params.to(&context.device)?;
    let optimizer = AdamW::new(model.layout())?.to(&params)?;
    let free = context.gpu.free_memory()?.saturating_sub(RESERVE);
    let largest = largest_batch(&model, free)?;
    let mut training = Training { model, params, optimizer, updates: 0 };
    let mut batches = vec![context.batch.min(largest)];
    if !context.quick && largest > context.batch {
        batches.push(largest);
    }
    for batch in batches {
        training.time(context, preset, batch, batch == largest)?;
    }
    for text in gemm::notes(&context.gpu) {
        context.emit(Record::Note { text })?;
    }
    Ok(())
}

fn options() -> PlanOptions {
    PlanOptions { backward: true, storage: Storage::Bf16, ..PlanOptions::default() }
}

/// The largest even batch whose values fit in `free` bytes without recomputation; 2 if none does.
fn largest_batch(model: &PretrainModel, free: usize) -> Result<usize> {
    let tokens = model.config().num_patches();
    let fits = |pairs: usize| -> Result<bool> {
        let (tape, _) = model.record(model.image_batch(2 * pairs), pairs * tokens)?;
        Ok(Plan::new(&tape, options())?.memory().arena_bytes <= free)
    };
    let (mut low, mut high) = (1, MOST_BATCH / 2 + 1);
    while high - low > 1 {
        let middle = low.midpoint(high);
        if fits(middle)? { low = middle } else { high = middle }
    }
    Ok(2 * low)
}

impl Training {
    fn time(&mut self, context: &Context, preset: &str, batch: usize, largest: bool) -> Result<()> {
        let tokens = self.model.config().num_patches();
        let prefixes = PrefixSampler::new(PrefixRule::Uniform, tokens, context.seed);
        let selection = |step: u64| {
            let mut prefix = Vec::with_capacity(batch);
            prefixes.draw(step, 0..batch, &mut prefix);
            Selection::next_patch(&prefix, tokens)
        };
        let (images, rows) = (self.model.image_batch(batch), selection(0).rows.len());
        let mut ready = PretrainStep::on(&context.device, &self.model, images, rows, options())?;
        let pixels = noise(context.seed, batch * images.height * images.width * 3);
        let mut loss = f64::NAN;
        let mut step = |number: usize| -> Result<()> {
            let mut chosen = selection(number as u64);
            if chosen.rows.len() != rows {
                // The last image of an odd batch draws by itself.
                chosen = selection(0);
            }
            loss = self.step(&mut ready, &pixels, &chosen)?;
            Ok(())
        };
        (0..WARMUP).try_for_each(&mut step)?;
        let timer = Timer::new(&context.gpu)?;
        timer.start()?;
        step(WARMUP)?;
        let most = context.runs;
        let samples = ((TIME_S / timer.stop()?) as usize).clamp(LEAST.min(most), most);
        let times = measure(&context.gpu, 0, samples, &mut step)?;
        self.report(context, preset, &ready, (batch, largest, loss), &times)
    }

    fn step(
        &mut self,
        ready: &mut PretrainStep,
        pixels: &[u8],
        selection: &Selection,
    ) -> Result<f64> {
        let scored = selection.rows.len() as f64;
        self.params.zero_grads()?;
        let loss = ready.forward(&self.params, Pixels::U8(pixels), selection)?;
        ready.backward(&mut self.params, (1.0 / scored) as f32)?;
        let norm = grad_norm(&self.params)?;
        self.updates += 1;
        let update = Update {
            lr: 1e-4,
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.05,
            step: self.updates,
            grad_scale: clip_scale(norm, 1.0),
        };
        self.optimizer.step(&mut self.params, update)?;
        Ok(loss / scored)
    }

    fn report(
        &self,
        context: &Context,
        preset: &str,
        ready: &PretrainStep,
        (batch, largest, loss): (usize, bool, f64),
        times: &[f64],
    ) -> Result<()> {
        let all = |Flops { forward, backward }| (forward + backward) as f64;
        let tokens = self.model.config().num_patches();
        let (whole, _) = self.model.record(self.model.image_batch(batch), batch * tokens)?;
        let memory = ready.session().memory();
        let categories = Category::ALL.iter().zip(memory.by_category);
        let there = self.params.on_device().context("the parameters are on the device")?;
        // A loss that is no number makes every time worthless.
        let name = format!("{preset}, batch {batch}: the loss is a number");
        let holds = loss.is_finite();
        context.emit(Record::Check(Check::holds("whole steps", name, holds)))?;
        context.emit(Record::Step(Step {
            preset: preset.to_owned(),
            batch,
            largest,
            median_s: median(times),
            p10_s: share(times, 0.1),
            p90_s: share(times, 0.9),
            samples: times.len(),
            flops: all(flops(ready.session().tape())),
            all_rows_flops: all(flops(&whole)),
            parameter_bytes: there.bytes(),
            moment_bytes: 8 * there.layout().trainable_len(),
            step_bytes: memory.arena_bytes,
            by_category: categories.map(|(name, bytes)| (name.to_string(), bytes)).collect(),
            loss: if holds { loss } else { -1.0 },
        }))
    }
}

/// Random bytes (splitmix64).
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut words = std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    });
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(words.next().unwrap_or_default().to_ne_bytes());
    }
    bytes.truncate(len);
    bytes
}
