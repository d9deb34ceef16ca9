//! The kernels' source, as one translation unit.

/// The header and every `.cu`, in order, each with the name that a compiler's message shows.
pub const FILES: &[(&str, &str)] = &[
    ("prim.cuh", include_str!("prim.cuh")),
    ("columns.cuh", include_str!("columns.cuh")),
    ("vector.cuh", include_str!("vector.cuh")),
    ("prefix_attention.cuh", include_str!("../prefix_attention/prefix_attention.cuh")),
    ("adamw.cu", include_str!("../adamw/adamw.cu")),
    ("attention_pool.cu", include_str!("../attention_pool/attention_pool.cu")),
    ("batch_norm.cu", include_str!("../batch_norm/batch_norm.cu")),
    ("cast.cu", include_str!("../cast/cast.cu")),
    ("elementwise.cu", include_str!("../elementwise/elementwise.cu")),
    ("gather_rows.cu", include_str!("../gather_rows/gather_rows.cu")),
    ("gelu.cu", include_str!("../gelu/gelu.cu")),
    ("global_norm.cu", include_str!("../global_norm/global_norm.cu")),
    ("layer_norm.cu", include_str!("../layer_norm/layer_norm.cu")),
    ("bias.cu", include_str!("../linear/bias.cu")),
    ("mean_pool.cu", include_str!("../mean_pool/mean_pool.cu")),
    ("patch_embed.cu", include_str!("../patch_embed/patch_embed.cu")),
    ("patch_loss.cu", include_str!("../patch_loss/patch_loss.cu")),
    ("positions.cu", include_str!("../positions/positions.cu")),
    ("prefix_attention.cu", include_str!("../prefix_attention/prefix_attention.cu")),
    (
        "prefix_attention_backward.cu",
        include_str!("../prefix_attention/prefix_attention_backward.cu"),
    ),
    ("seam.cu", include_str!("seam.cu")),
    ("softmax_cross_entropy.cu", include_str!("../softmax_cross_entropy/softmax_cross_entropy.cu")),
];
