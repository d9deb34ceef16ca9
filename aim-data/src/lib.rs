//! Images in: from files to batches for pre-training, knowing no tensor and no model.
//!
//! What comes out is a pure function of data, options and seed. The order of samples and every
//! pixel are the same for any number of workers and ranks and wherever a run was interrupted,
//! because nothing is drawn from a running generator: each draw is looked up under
//! (seed, epoch, sample).
//!
//! - [`spec`]: the strings that name data (`wds:train-{000..127}.tar@0.8`), and opening them
//! - [`source`]: random access to images in folders, tar shards, the downloads of ImageNet and of the
//!   paper's other benchmarks, MDS, parquet, IDX and safetensors files, or made on the spot
//! - [`decode`]: JPEG, PNG, WebP, GIF, BMP and TIFF to pixels, with limits
//! - [`image`]: decoded pixels
//! - [`augment`]: random resized crop, flip, colour jitter, RandAugment, random erasing, resize and
//!   centre crop, as PIL, torchvision and timm compute them
//! - [`sampler`]: the order of samples, and mixtures of sources
//! - [`loader`]: batches in the background, for training and for evaluation
//! - [`remote`]: tar shards in object stores and on web servers
//! - [`pack`]: writing tar shards; [`check`]: finding every defect; [`stats`]: describing a source
//!
//! ```
//! use aim_data::augment::Transform;
//! use aim_data::loader::{Loader, LoaderOptions, LoaderState};
//! use aim_data::spec::{OpenOptions, open_mixture};
//!
//! # fn main() -> aim_data::Result<()> {
//! let mixture = open_mixture(&["synthetic:stripes,n=100,size=32"], &OpenOptions::default())?;
//! let options = LoaderOptions { workers: 2, ..LoaderOptions::new(8, 28, Transform::train()) };
//! let mut loader = Loader::new(mixture, options, LoaderState::new(42))?;
//! let batch = loader.next_batch()?;
//! assert_eq!(batch.images.as_u8().map(<[u8]>::len), Some(8 * 28 * 28 * 3));
//! assert_eq!(loader.state().next_sample, 8);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod augment;
pub mod check;
pub mod decode;
pub mod error;
pub mod image;
pub mod loader;
pub mod pack;
mod random;
pub mod remote;
pub mod sampler;
mod scan;
pub mod source;
pub mod spec;
pub mod stats;

#[doc(hidden)]
pub use source::fuzzing::{TARGETS as FUZZ_TARGETS, Target as FuzzTarget};

pub use error::{Defect, DefectKind, Error, Result};
pub use scan::{OnProgress, Progress, ScanOptions};
