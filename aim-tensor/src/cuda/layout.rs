//! [`DeviceLayout`]: where parameters lie on a device.

use std::ops::Range;

use crate::parameters::{Param, ParamLayout};
use crate::precision::ROW;

/// Values that a parameter starts at a multiple of: 256 bytes of bf16.
const ALIGN: usize = 128;

/// A parameter's place: `rows` rows of `cols` values, `stride` apart. Rows of matrices are padded so that each starts
/// on 16 bytes; the padding is zero, its gradient is zero, and so it stays zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// First value.
    pub start: usize,
    /// Rows: the first dimension.
    pub rows: usize,
    /// Values in a row: all other dimensions.
    pub cols: usize,
    /// Values from one row to the next.
    pub stride: usize,
}

impl Place {
    fn of(param: &Param, start: usize) -> Self {
        let len = param.range.len();
        let (rows, cols) = match param.spec.shape.dims() {
            [rows, _, ..] => (*rows, len / (*rows).max(1)),
            _ => (1, len),
        };
        let stride = if rows > 1 { cols.next_multiple_of(ROW) } else { cols };
        Self { start, rows, cols, stride }
    }

    /// All values, padding between rows included.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.rows * self.stride
    }
}

/// Places of all parameters of a [`ParamLayout`], in its order.
#[derive(Clone, Debug)]
pub struct DeviceLayout {
    places: Vec<Place>,
    decayed: usize,
    trainable: usize,
    total: usize,
}

impl DeviceLayout {
    /// Places for the parameters of a layout.
    pub fn new(layout: &ParamLayout) -> Self {
        let mut device = Self { places: Vec::new(), decayed: 0, trainable: 0, total: 0 };
        for param in layout.iter() {
            let place = Place::of(param, device.total);
            device.total = place.range().end.next_multiple_of(ALIGN);
            if param.spec.trainable {
                device.trainable = device.total;
                if param.spec.decay {
                    device.decayed = device.total;
                }
            }
            device.places.push(place);
        }
        device
    }

    /// Place of the parameter at `index` of the layout's order.
    pub fn place(&self, index: usize) -> &Place {
        &self.places[index]
    }

    /// Trainable parameters with weight decay.
    pub fn decayed(&self) -> Range<usize> {
        0..self.decayed
    }

    /// Trainable parameters without weight decay.
    pub fn undecayed(&self) -> Range<usize> {
        self.decayed..self.trainable
    }

    /// Values that train, padding included: a range from 0.
    pub fn trainable_len(&self) -> usize {
        self.trainable
    }

    /// All values, padding included.
    pub fn total_len(&self) -> usize {
        self.total
    }

    /// Copies one parameter's values from host order to device order: `to` covers [`Place::range`].
    pub(crate) fn pad(place: &Place, from: &[f32], to: &mut [f32]) {
        if place.cols == 0 {
            return;
        }
        for (from, to) in from.chunks_exact(place.cols).zip(to.chunks_mut(place.stride)) {
            to[..place.cols].copy_from_slice(from);
            to[place.cols..].fill(0.0);
        }
    }

    /// The way back.
    pub(crate) fn unpad(place: &Place, from: &[f32], to: &mut [f32]) {
        if place.cols == 0 {
            return;
        }
        for (from, to) in from.chunks(place.stride).zip(to.chunks_exact_mut(place.cols)) {
            to.copy_from_slice(&from[..place.cols]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::ParamSpec;
    use crate::shape::Shape;

    #[test]
    fn rows_are_padded_and_come_back() {
        let spec = |name: &str, shape: Shape, decay| ParamSpec {
            name: name.into(),
            shape,
            decay,
            trainable: true,
        };
        let layout = ParamLayout::new(vec![
            spec("w", [3, 2, 5, 1].into(), true),
            spec("v", [4, 8].into(), true),
            spec("bias", [5].into(), false),
        ])
        .unwrap();
        let device = DeviceLayout::new(&layout);
        let place = device.place(1);
        assert_eq!((place.rows, place.cols, place.stride), (3, 10, 16));
        assert_eq!((device.decayed(), device.undecayed()), (0..256, 256..384));
        let values: Vec<f32> = (1..31).map(|v| v as f32).collect();
        let (mut padded, mut back) = (vec![-1.0; 48], vec![0.0; 30]);
        DeviceLayout::pad(place, &values, &mut padded);
        assert_eq!(padded[9..17], [10.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 11.0]);
        DeviceLayout::unpad(place, &padded, &mut back);
        assert_eq!(back, values);
    }
}
