//! [`Fused`]: which GELUs of a tape a GPU's library computes inside the products before and after them.

use crate::shape::DType;
use crate::tape::{Op, Source, Tape, Var};

/// GELUs between two products, each value of which only the next one reads.
pub(crate) struct Fused {
    /// Of each node that is such a GELU: the node of the product before it.
    products: Vec<Option<u32>>,
    /// Of each node that is the product behind such a GELU: the GELU's node.
    gelus: Vec<Option<u32>>,
    /// Whether a node is the product before such a GELU.
    is_product: Vec<bool>,
}

impl Fused {
    /// Those of a tape; none unless `on`.
    pub(crate) fn new(tape: &Tape, dtypes: &[DType], on: bool) -> Self {
        let nodes = tape.nodes.len();
        let mut fused = Self {
            products: vec![None; nodes],
            gelus: vec![None; nodes],
            is_product: vec![false; nodes],
        };
        if !on {
            return fused;
        }
        let mut readers = vec![0; tape.values.len()];
        for node in &tape.nodes {
            node.op.inputs().iter().for_each(|var| readers[var.index()] += 1);
        }
        let private = |var: Var| {
            let value = &tape.values[var.index()];
            readers[var.index()] == 1 && !value.output && !value.checkpoint
        };
        let node_of = |var: Var| match tape.values[var.index()].source {
            Source::Node(node) => Some(node),
            _ => None,
        };
        for (behind, node) in tape.nodes.iter().enumerate() {
            let Op::Linear { x: after, low_rank: None, .. } = node.op else { continue };
            let Some(gelu) = node_of(after).filter(|_| private(after)) else { continue };
            let Op::Gelu { x: before } = tape.nodes[gelu as usize].op else { continue };
            let Some(product) = node_of(before).filter(|_| private(before)) else { continue };
            // An operand that is f32 would need room for its copy.
            let plain = match tape.nodes[product as usize].op {
                Op::Linear { x, bias: None, residual: None, low_rank: None, .. } => {
                    dtypes[x.index()] == DType::Bf16
                }
                _ => false,
            };
            if plain {
                fused.products[gelu as usize] = Some(product);
                fused.gelus[behind] = Some(gelu);
                fused.is_product[product as usize] = true;
            }
        }
        fused
    }

    /// The product that is computed with the GELU `node`.
    pub(crate) fn product_of(&self, node: usize) -> Option<usize> {
        self.products[node].map(|product| product as usize)
    }

    /// Whether a GELU computes `node` along with itself.
    pub(crate) fn is_product(&self, node: usize) -> bool {
        self.is_product[node]
    }

    /// For the product behind a GELU: the value before the GELU.
    pub(crate) fn gelu_before(&self, tape: &Tape, node: usize) -> Option<Var> {
        self.gelus[node].map(|gelu| tape.nodes[gelu as usize].op.inputs()[0])
    }

    /// The value before the GELU that made `after`.
    pub(crate) fn before(&self, tape: &Tape, after: Var) -> Var {
        match tape.values[after.index()].source {
            Source::Node(node) if self.products[node as usize].is_some() => {
                tape.nodes[node as usize].op.inputs()[0]
            }
            _ => after,
        }
    }
}
