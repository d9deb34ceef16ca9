//! [`Writer`]: fills a store, in memory or in a file that appears when it is complete.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;

use half::bf16;
use half::slice::HalfFloatSliceExt as _;
use serde::{Deserialize, Serialize};

use super::{Data, FeatureDtype, FeatureStore, Place, Shape, read_at};
use crate::error::{TrainError, free_bytes};
use crate::{checkpoint, durable};

/// Left free on the disk.
const DISK_MARGIN: u64 = 1 << 30;

/// The JSON file beside a file of features.
#[derive(Serialize, Deserialize)]
struct Description {
    version: u32,
    key: String,
    shape: Shape,
    images: usize,
}

const VERSION: u32 = 1;

/// A store that is there, or one to fill.
pub(super) enum Opened {
    Found(FeatureStore),
    New(Writer),
}

/// Where the values of a new store go.
enum Sink {
    Fp32(Vec<f32>),
    Bf16(Vec<bf16>),
    File(BufWriter<File>, PathBuf),
}

/// A store that is being filled.
pub(super) struct Writer {
    shape: Shape,
    sink: Sink,
    narrow: Vec<bf16>,
}

impl Place {
    fn file(&self, extension: &str) -> PathBuf {
        self.dir.join(format!("{}.{extension}", self.name))
    }
}

impl Writer {
    pub(super) fn open(shape: Shape, images: u64, place: &Place) -> Result<Opened, TrainError> {
        let values = images.saturating_mul((shape.blocks * shape.stride()) as u64);
        let bytes = values.saturating_mul(shape.dtype.bytes());
        let new = |sink| Ok(Opened::New(Self { shape, sink, narrow: Vec::new() }));
        if bytes <= place.memory_bytes
            && let Ok(len) = usize::try_from(values)
        {
            let (mut wide, mut narrow) = (Vec::new(), Vec::new());
            let reserved = match shape.dtype {
                FeatureDtype::Fp32 => wide.try_reserve_exact(len),
                FeatureDtype::Bf16 => narrow.try_reserve_exact(len),
            };
            if reserved.is_ok() {
                return new(match shape.dtype {
                    FeatureDtype::Fp32 => Sink::Fp32(wide),
                    FeatureDtype::Bf16 => Sink::Bf16(narrow),
                });
            }
        }
        if let Some(store) = find(shape, place) {
            return Ok(Opened::Found(store));
        }
        durable::create_dir(&place.dir)?;
        let unfinished = place.file("unfinished");
        // What an interrupted run or one on other data left would take the room of this one.
        for old in [&unfinished, &place.file("features"), &place.file("json")] {
            match fs::remove_file(old) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(TrainError::io("remove", old, error));
                }
                _ => {}
            }
        }
        let free = free_bytes(&place.dir).map(|free| free.saturating_sub(DISK_MARGIN));
        let available = free.unwrap_or(u64::MAX).min(place.disk_bytes);
        if bytes > available {
            return Err(TrainError::NoRoom {
                what: "features that are computed once",
                path: place.dir.clone(),
                needed_bytes: bytes,
                available_bytes: available,
                instead: "take bf16 features, fewer images or layers, a larger --cache-bytes or --cache-disk-bytes, \
                          or another --out",
            });
        }
        let file = File::options().write(true).read(true).create_new(true).open(&unfinished);
        let file = file.map_err(|source| TrainError::io("create", &unfinished, source))?;
        new(Sink::File(BufWriter::with_capacity(1 << 20, file), unfinished))
    }

    pub(super) fn push(&mut self, values: &[f32]) -> Result<(), TrainError> {
        match &mut self.sink {
            Sink::Fp32(all) => all.extend_from_slice(values),
            Sink::Bf16(all) => {
                let start = all.len();
                all.resize(start + values.len(), bf16::ZERO);
                all[start..].convert_from_f32_slice(values);
            }
            Sink::File(file, path) => {
                let bytes: &[u8] = match self.shape.dtype {
                    FeatureDtype::Fp32 => bytemuck::cast_slice(values),
                    FeatureDtype::Bf16 => {
                        self.narrow.resize(values.len(), bf16::ZERO);
                        self.narrow.convert_from_f32_slice(values);
                        bytemuck::cast_slice(&self.narrow)
                    }
                };
                file.write_all(bytes).map_err(|source| TrainError::io("write", path, source))?;
            }
        }
        Ok(())
    }

    pub(super) fn finish(
        self,
        labels: Vec<i32>,
        indices: Vec<u32>,
        place: &Place,
    ) -> Result<FeatureStore, TrainError> {
        let Self { shape, sink, .. } = self;
        let data = match sink {
            Sink::Fp32(values) => Data::Fp32(values),
            Sink::Bf16(values) => Data::Bf16(values),
            Sink::File(mut file, unfinished) => {
                let io = |op: &'static str| {
                    let unfinished = unfinished.clone();
                    move |source| TrainError::io(op, &unfinished, source)
                };
                let ends = file
                    .write_all(bytemuck::cast_slice(&labels))
                    .and_then(|()| file.write_all(bytemuck::cast_slice(&indices)));
                ends.map_err(io("write"))?;
                let file = file.into_inner().map_err(|error| io("write")(error.into_error()))?;
                file.sync_all().map_err(io("sync"))?;
                let path = place.file("features");
                durable::rename(&unfinished, &path)?;
                let description = Description {
                    version: VERSION,
                    key: place.key.clone(),
                    shape,
                    images: labels.len(),
                };
                let text = serde_json::to_vec(&description).map_err(|error| TrainError::Json {
                    path: place.file("json"),
                    reason: error.to_string(),
                })?;
                durable::replace(&place.file("json"), &text)?;
                Data::File(file, path)
            }
        };
        Ok(FeatureStore { shape, labels, indices, data })
    }

    pub(super) fn abandon(self) {
        if let Sink::File(_, path) = self.sink {
            // Best effort: the error that led here is the one to report, and the next run removes it too.
            let _ = fs::remove_file(path);
        }
    }
}

/// A finished file of exactly these features.
fn find(shape: Shape, place: &Place) -> Option<FeatureStore> {
    let name = format!("{}.json", place.name);
    let found: Description = checkpoint::read_json(&place.dir, &name).ok()?;
    let same = found.version == VERSION && found.key == place.key && found.shape == shape;
    let path = place.file("features");
    let file = File::open(&path).ok()?;
    let bytes = (found.images as u64)
        .checked_mul((shape.blocks * shape.stride()) as u64)?
        .checked_mul(shape.dtype.bytes())?;
    if !same || Some(file.metadata().ok()?.len()) != bytes.checked_add(8 * found.images as u64) {
        return None;
    }
    let mut ends = vec![0; 2 * found.images];
    read_at(&file, &path, bytemuck::cast_slice_mut(&mut ends), bytes).ok()?;
    let (labels, indices) = ends.split_at(found.images);
    let indices = indices.iter().map(|&index: &i32| index as u32).collect();
    Some(FeatureStore { shape, labels: labels.to_vec(), indices, data: Data::File(file, path) })
}
