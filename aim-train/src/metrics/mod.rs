//! What a run tells while it trains.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`jsonl`] | `metrics.jsonl`, one object a line, cut back to the checkpoint on resume |
//! | [`tensorboard`] | the same scalars as TensorBoard event files |

pub mod jsonl;
pub mod tensorboard;
