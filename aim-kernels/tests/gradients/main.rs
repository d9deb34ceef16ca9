//! Every differentiable op: the f32 forward pass against a plain f64 one, and the f32 backward pass against central
//! differences of it. See [`check`] for what is close enough and why.

mod attention;
mod check;
mod grid;
mod images;
mod losses;
mod low_rank;
mod norms;
mod optimizer;
mod pointwise;
mod reference;
