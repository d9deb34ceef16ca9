//! [`Batch`]: what a loader delivers.

/// Pixels of a batch.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Images {
    /// Bytes `[batch, height, width, 3]`, not normalised.
    U8(Vec<u8>),
    /// Normalised values `[batch, 3, height, width]`, from `tensors:` sources.
    F32(Vec<f32>),
}

impl Default for Images {
    fn default() -> Self {
        Self::U8(Vec::new())
    }
}

impl Images {
    /// The bytes, if these are bytes.
    #[must_use]
    pub fn as_u8(&self) -> Option<&[u8]> {
        match self {
            Self::U8(values) => Some(values),
            Self::F32(_) => None,
        }
    }

    /// The values, if these are normalised.
    #[must_use]
    pub fn as_f32(&self) -> Option<&[f32]> {
        match self {
            Self::F32(values) => Some(values),
            Self::U8(_) => None,
        }
    }
}

/// Samples in the order of the run; entry `i` of every list belongs to sample `i` of the batch.
///
/// Handing the same `Batch` back to a loader reuses its memory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// The pixels.
    pub images: Images,
    /// Height of every image, in pixels.
    pub height: u32,
    /// Width of every image, in pixels.
    pub width: u32,
    /// Class numbers.
    pub labels: Vec<Option<u32>>,
    /// [`key_hash`](crate::source::key_hash) of each sample: the same wherever the sample is
    /// stored, for choices that must follow an image and not its place.
    pub keys: Vec<u64>,
    /// Index of each sample in its source.
    pub indices: Vec<u64>,
    /// Epoch of its source in which each sample was drawn.
    pub epochs: Vec<u64>,
    /// Which source of the mixture each sample comes from.
    pub sources: Vec<u16>,
    /// Number of the first sample of the batch in the run, over all ranks.
    pub first_sample: u64,
}

impl Batch {
    /// Number of samples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Empties the batch for samples of this kind and size, keeping its memory.
    pub(crate) fn reset(&mut self, layout: Layout) {
        match (&mut self.images, layout.float) {
            (Images::U8(values), false) => values.clear(),
            (Images::F32(values), true) => values.clear(),
            (images, true) => *images = Images::F32(Vec::new()),
            (images, false) => *images = Images::U8(Vec::new()),
        }
        (self.height, self.width) = (layout.height, layout.width);
        self.labels.clear();
        self.keys.clear();
        self.indices.clear();
        self.epochs.clear();
        self.sources.clear();
    }

    /// Adds the samples of another batch of the same layout.
    pub(crate) fn append(&mut self, other: &Batch) {
        match (&mut self.images, &other.images) {
            (Images::U8(values), Images::U8(more)) => values.extend_from_slice(more),
            (Images::F32(values), Images::F32(more)) => values.extend_from_slice(more),
            // Both were reset to the loader's one layout.
            _ => debug_assert!(false, "chunks of different layouts"),
        }
        self.labels.extend_from_slice(&other.labels);
        self.keys.extend_from_slice(&other.keys);
        self.indices.extend_from_slice(&other.indices);
        self.epochs.extend_from_slice(&other.epochs);
        self.sources.extend_from_slice(&other.sources);
    }
}

/// Kind and size of a loader's images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) float: bool,
    pub(crate) height: u32,
    pub(crate) width: u32,
}
