//! `aim-cli plan`: what a configuration will cost.

use aim_model::pretrain::{PretrainModel, Target};
use aim_tensor::count::Flops;
use aim_tensor::{
    Category, GeluForm, Memory, Plan as MemoryPlan, PlanOptions, Recompute, Storage, Tape,
};
use aim_train::config::{self, RunConfig};
use anyhow::Result;
use serde_json::json;

use crate::args::Plan;
use crate::card::Card;
use crate::table::{bytes, thousands};
use crate::{cost, stdout};

/// Memory of a card that a plan leaves to the driver, the libraries' workspace and fragments.
const RESERVE: u64 = 3 << 29;
/// Share of a card's peak for the rate beside the bound; published trainers reach 0.4 to 0.6.
const USUAL_SHARE: f64 = 0.5;

/// Bytes of masters, gradients and two moments for each parameter, the same on the CPU and a GPU.
const STATE_BYTES: u64 = 16;

struct Costs {
    config: RunConfig,
    parameters: (u64, u64),
    flops: Flops,
    recompute: Recompute,
    memory: Memory,
    state: u64,
}

impl Costs {
    fn of(config: RunConfig, card: Option<&Card>) -> Result<Self> {
        let model = PretrainModel::new(&config.model, Target::NormalizedPixels)?;
        let batch = config.train.batch_size;
        // Uniform prefixes score half of the patches of an even micro-batch.
        let rows = batch * config.model.num_patches() / 2;
        let (tape, _) = model.record(model.image_batch(batch), rows)?;
        let state = STATE_BYTES * model.layout().total_len() as u64;
        let room = card.map(|card| card.memory.saturating_sub(state + RESERVE));
        let (recompute, memory) = fit(&tape, &config, room)?;
        let (parameters, flops) = (cost::parameters(&model), aim_tensor::count::flops(&tape));
        Ok(Self { config, parameters, flops, recompute, memory, state })
    }

    fn gflop(&self, flops: u64) -> f64 {
        flops as f64 / self.config.train.batch_size as f64 * 1e-9
    }

    /// Images of the whole run.
    fn images(&self) -> f64 {
        self.config.train.steps as f64 * self.config.train.images_per_step() as f64
    }

    /// FLOPs that a card executes for an image: what is made again counts too.
    fn executed_per_image(&self) -> f64 {
        let again = if self.recompute == Recompute::Block { self.flops.forward } else { 0 };
        (self.flops.forward + self.flops.backward + again) as f64
            / self.config.train.batch_size as f64
    }

    fn total(&self) -> u64 {
        self.state + self.memory.arena_bytes as u64
    }
}

/// The recomputation level that the configuration names, or the least with which a step fits into `room` bytes.
fn fit(tape: &Tape, config: &RunConfig, room: Option<u64>) -> Result<(Recompute, Memory)> {
    let storage = if room.is_some() { Storage::Bf16 } else { Storage::Fp32 };
    let plan = |recompute| -> Result<Memory> {
        let gelu = GeluForm::Erf;
        let options = PlanOptions { backward: true, recompute, storage, gelu };
        Ok(MemoryPlan::new(tape, options)?.memory())
    };
    let levels = [Recompute::None, Recompute::Norms, Recompute::NormsGelu, Recompute::Block];
    let fixed = match config.train.recompute {
        config::Recompute::Auto => None,
        config::Recompute::None => Some(levels[0]),
        config::Recompute::Norms => Some(levels[1]),
        config::Recompute::NormsGelu => Some(levels[2]),
        config::Recompute::Block => Some(levels[3]),
    };
    if let Some(level) = fixed.or(room.is_none().then_some(Recompute::None)) {
        return Ok((level, plan(level)?));
    }
    for level in levels {
        let memory = plan(level)?;
        if level == Recompute::Block || memory.arena_bytes as u64 <= room.unwrap_or(0) {
            return Ok((level, memory));
        }
    }
    Ok((Recompute::Block, plan(Recompute::Block)?))
}

pub(crate) fn run(args: &Plan) -> Result<()> {
    let costs = Costs::of(args.config.resolve()?.config, args.card.as_ref())?;
    if args.json {
        print_json(&costs, args.card.as_ref())
    } else {
        print(&costs, args.card.as_ref())
    }
}

fn print_json(costs: &Costs, card: Option<&Card>) -> Result<()> {
    let categories = Category::ALL.iter().zip(costs.memory.by_category);
    let activations: serde_json::Map<_, _> =
        categories.map(|(c, n)| (c.to_string(), n.into())).collect();
    let (trunk, head) = costs.parameters;
    let Flops { forward, backward } = costs.flops;
    let per_s = |share: f64| {
        card.and_then(|card| card.peak).map(|peak| share * peak / costs.executed_per_image())
    };
    stdout::print_json(&json!({
        "parameters": { "trunk": trunk, "pixel_head": head },
        "gflop_per_image": { "forward": costs.gflop(forward), "backward": costs.gflop(backward) },
        "bytes": {
            "parameters_and_optimizer": costs.state,
            "step": costs.memory.arena_bytes,
            "by_category": activations,
        },
        "images": costs.images(),
        "flop": costs.images() * costs.gflop(forward + backward) * 1e9,
        "recompute": costs.recompute.to_string(),
        "card": card.map(|card| json!({
            "name": card.name,
            "fits": costs.total() + RESERVE <= card.memory,
            "images_per_s_at_peak": per_s(1.0),
            "images_per_s_at_half_of_peak": per_s(USUAL_SHARE),
        })),
    }))
}

fn print(costs: &Costs, card: Option<&Card>) -> Result<()> {
    let (trunk, head) = costs.parameters;
    let Flops { forward, backward } = costs.flops;
    let batch = costs.config.train.batch_size;
    let mut text = format!(
        "parameters   trunk {}, pixel head {}\n\
         arithmetic   {:.2} GFLOP forward and {:.2} backward an image; {:.3e} FLOP for {} images\n\
         memory       {} in all\n  parameters, gradients, moments  {}\n  one step of {batch} images  {}\n",
        thousands(trunk),
        thousands(head),
        costs.gflop(forward),
        costs.gflop(backward),
        costs.images() * costs.gflop(forward + backward) * 1e9,
        thousands(costs.images() as u64),
        bytes(costs.total()),
        bytes(costs.state),
        bytes(costs.memory.arena_bytes as u64),
    );
    text.push_str("  of which, at the fullest moment:\n");
    for (category, size) in Category::ALL.iter().zip(costs.memory.by_category) {
        text.push_str(&format!("    {category}  {}\n", bytes(size as u64)));
    }
    text.push_str(&format!("recomputation  {}\n", costs.recompute));
    if let Some(card) = card {
        text.push_str(&fits(costs, card));
    }
    stdout::print(&text)
}

fn fits(costs: &Costs, card: &Card) -> String {
    let fits = if costs.total() + RESERVE <= card.memory {
        "fits"
    } else if costs.state + RESERVE <= card.memory {
        "does not fit: try a smaller train.batch_size with more train.accumulate"
    } else {
        "does not fit: parameters, gradients and moments alone are too large for it"
    };
    let mut text = format!("card         {} with {}: {fits}\n", card.name, bytes(card.memory));
    if let Some(peak) = card.peak {
        let bound = peak / costs.executed_per_image();
        text.push_str(&format!(
            "  {bound:.0} images/s at the data sheet's peak, {:.0} at {:.0} % of it (estimates, not measured)\n",
            USUAL_SHARE * bound,
            100.0 * USUAL_SHARE,
        ));
    }
    text
}
