//! A warm training step allocates nothing.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may fail and may talk")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aim_model::AimConfig;
use aim_model::config::ImageSize;
use aim_model::init::initialize;
use aim_model::objective::Selection;
use aim_model::pretrain::{Pixels, PretrainModel, PretrainStep, Target};
use aim_tensor::{Parameters, PlanOptions, Recompute};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_warm_step_allocates_nothing() {
    let config = AimConfig {
        img_size: ImageSize::square(32),
        patch_size: 4,
        embed_dim: 96,
        num_blocks: 2,
        num_heads: 3,
        head_width: 96,
        head_depth: 2,
        ..AimConfig::default()
    };
    let model = PretrainModel::new(&config, Target::NormalizedPixels).unwrap();
    let mut params = Parameters::new(Arc::clone(model.layout())).unwrap();
    initialize(&mut params, 0);
    let images = model.image_batch(8);
    let pixels = vec![100_u8; 8 * 32 * 32 * 3];
    let selection = Selection::next_patch(&[1, 63, 10, 54, 32, 32, 5, 59], 64);
    for recompute in [Recompute::None, Recompute::Block] {
        let options = PlanOptions { backward: true, recompute, ..PlanOptions::default() };
        let mut step = PretrainStep::new(&model, images, selection.rows.len(), options).unwrap();
        let mut run = || {
            params.zero_grads().unwrap();
            step.forward(&params, Pixels::U8(&pixels), &selection).unwrap();
            step.backward(&mut params, 1e-3).unwrap();
        };
        // Threads start and set up their packing buffers; which thread meets which product first is up to the system.
        (0..3).for_each(|_| run());
        let before = ALLOCATIONS.load(Ordering::SeqCst);
        (0..5).for_each(|_| run());
        let allocations = ALLOCATIONS.load(Ordering::SeqCst) - before;
        assert_eq!(allocations, 0, "{recompute:?}: {allocations} allocations in five warm steps");
    }
}
