//! `aim-cli plan`: what a configuration will cost.

use aim_model::pretrain::{PretrainModel, Target};
use aim_tensor::{Category, Plan as MemoryPlan, PlanOptions};
use anyhow::Result;
use serde_json::json;

use crate::args::Plan;
use crate::table::{bytes, thousands};
use crate::{cost, stdout};

pub(crate) fn run(args: &Plan) -> Result<()> {
    let config = args.config.resolve()?.config;
    let model = PretrainModel::new(&config.model, Target::NormalizedPixels)?;
    let batch = config.train.batch_size;
    // Uniform prefixes score half of the patches of an even micro-batch.
    let rows = batch * config.model.num_patches() / 2;
    let (tape, _) = model.record(model.image_batch(batch), rows)?;
    let options = PlanOptions { backward: true, recompute: config.train.recompute.into() };
    let memory = MemoryPlan::new(&tape, options)?.memory();
    let flops = aim_tensor::count::flops(&tape);
    let (trunk, head) = cost::parameters(&model);
    // fp32 masters, gradients and two moments.
    let state = 16 * model.layout().total_len() as u64;
    let per_image = |flops: u64| flops as f64 / batch as f64 * 1e-9;
    let images = config.train.steps as f64 * config.train.images_per_step() as f64;
    let all = images * per_image(flops.forward + flops.backward) * 1e9;
    if args.json {
        let categories = Category::ALL.iter().zip(memory.by_category);
        let activations: serde_json::Map<_, _> =
            categories.map(|(c, n)| (c.to_string(), n.into())).collect();
        return stdout::print_json(&json!({
            "parameters": { "trunk": trunk, "pixel_head": head },
            "gflop_per_image": { "forward": per_image(flops.forward), "backward": per_image(flops.backward) },
            "bytes": { "parameters_and_optimizer": state, "step": memory.arena_bytes, "by_category": activations },
            "images": images,
            "flop": all,
        }));
    }
    let mut text = format!(
        "parameters   trunk {}, pixel head {}\n\
         arithmetic   {:.2} GFLOP forward and {:.2} backward an image; {all:.3e} FLOP for {} images\n\
         memory       {} in all\n  parameters, gradients, moments  {}\n  one step of {batch} images  {}\n",
        thousands(trunk),
        thousands(head),
        per_image(flops.forward),
        per_image(flops.backward),
        thousands(images as u64),
        bytes(state + memory.arena_bytes as u64),
        bytes(state),
        bytes(memory.arena_bytes as u64),
    );
    text.push_str("  of which, at the fullest moment:\n");
    for (category, size) in Category::ALL.iter().zip(memory.by_category) {
        text.push_str(&format!("    {category}  {}\n", bytes(size as u64)));
    }
    stdout::print(&text)
}
