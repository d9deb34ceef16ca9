//! Patches, positions and gathered rows.

use aim_kernels::gather_rows::{self, GatherRows};
use aim_kernels::patch_embed::{self, PatchEmbed};
use aim_kernels::positions::{self, Positions};
use proptest::prelude::*;
use proptest::sample::select;

use crate::check::{Random, assert_close, assert_gradient, cases, dot, wide, written};
use crate::reference;

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn patchify_forward_and_gradient(
        batch in 1usize..4,
        (grid_rows, grid_columns) in (1usize..5, 1usize..5),
        patch in select(vec![1usize, 2, 3, 7]),
        seed in any::<u64>(),
    ) {
        let shape = PatchEmbed { batch, height: grid_rows * patch, width: grid_columns * patch, patch };
        let random = &mut Random::new(seed);
        let (images, dy) = (random.normal(shape.image_len()), random.normal(shape.image_len()));
        let mut patches = vec![f32::NAN; images.len()];
        patch_embed::cpu::patchify(shape, &images, &mut patches);
        prop_assert_eq!(wide(&patches), reference::patchify(shape, &wide(&images)));
        let dx = written(random, images.len(), |dx, accumulate| {
            patch_embed::cpu::unpatchify(shape, &dy, dx, accumulate);
        });
        assert_gradient("dimages", random, &images, &dx, 0.0, |x| dot(&dy, &reference::patchify(shape, x)));
    }

    #[test]
    fn gather_rows_forward_and_gradient(
        sources in select(vec![1usize, 2, 40, 700]),
        rows in select(vec![1usize, 3, 65, 130]),
        dim in select(vec![1usize, 3, 17]),
        seed in any::<u64>(),
    ) {
        let shape = GatherRows { sources, rows, dim };
        let random = &mut Random::new(seed);
        let (x, dy) = (random.normal(sources * dim), random.normal(rows * dim));
        // Drawn with repeats.
        let index = random.indices(rows, sources, None);
        let mut y = vec![f32::NAN; dy.len()];
        gather_rows::cpu::forward(shape, &x, &index, &mut y);
        prop_assert_eq!(wide(&y), reference::gather_rows(&wide(&x), &index, dim));
        let dx = written(random, x.len(), |dx, accumulate| {
            gather_rows::cpu::backward(shape, &dy, &index, dx, accumulate);
        });
        assert_gradient("dx", random, &x, &dx, 0.0, |x| dot(&dy, &reference::gather_rows(x, &index, dim)));
    }

    #[test]
    fn positions_forward_and_gradient(
        rows in select(vec![1usize, 5, 130]),
        table_rows in 1usize..20,
        dim in select(vec![1usize, 3, 17, 64]),
        seed in any::<u64>(),
    ) {
        let random = &mut Random::new(seed);
        let (x, dy) = (random.normal(rows * dim), random.normal(rows * dim));
        let table = random.normal(table_rows * dim);
        let index = random.indices(rows, table_rows, None);
        let forward = |x: &[f64]| -> Vec<f64> {
            let picked = reference::gather_rows(&wide(&table), &index, dim);
            x.iter().zip(picked).map(|(x, t)| x + t).collect()
        };
        let mut y = vec![f32::NAN; x.len()];
        positions::cpu::forward(Positions { rows, dim }, &x, &table, &index, &mut y);
        assert_close("positions", &y, &forward(&wide(&x)));
        // The gradient of x is dy itself.
        assert_gradient("dx", random, &x, &dy, 0.0, |x| dot(&dy, &forward(x)));
    }
}

#[test]
#[should_panic(expected = "index -1 into 4 rows")]
fn gathering_a_row_that_is_not_there_panics() {
    let shape = GatherRows { sources: 4, rows: 1, dim: 2 };
    gather_rows::cpu::forward(shape, &[0.0; 8], &[-1], &mut [0.0; 2]);
}
