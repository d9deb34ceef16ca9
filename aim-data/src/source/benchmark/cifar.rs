//! [`Cifar`]: CIFAR-10 and CIFAR-100, in their binary and their Python version.
//!
//! Binary: `data_batch_{1..5}.bin`, `test_batch.bin`, `batches.meta.txt`; for 100 classes `train.bin`,
//! `test.bin`, `fine_label_names.txt`. A record is one byte for the class (two for CIFAR-100: the coarse
//! class, then the fine one) and 3 × 32 × 32 bytes: all red, then all green, then all blue values, row
//! by row. Python: the same names without `.bin`, each a pickled dictionary.
//! <https://www.cs.toronto.edu/~kriz/cifar.html>.

use std::path::{Path, PathBuf};

use super::Benchmark;
use super::lists::{bad, bytes, file, lines, root, text};
use super::pickle::{self, Value};
use crate::error::{Defect, DefectKind, Error, Result};
use crate::image::Image;
use crate::source::{Fingerprint, Payload, Sample, SampleFormat, Source};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
const PIXELS: usize = 3 * PLANE;

/// The images of CIFAR-10 or CIFAR-100, held in memory (150 MB for the training images).
#[derive(Debug)]
pub struct Cifar {
    batches: Vec<(PathBuf, Batch)>,
    /// First image of each batch.
    starts: Vec<u64>,
    class_names: Vec<String>,
    fingerprint: String,
}

/// The contents of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) labels: Vec<u8>,
    /// Planes of red, green and blue of each image.
    pub(crate) pixels: Vec<u8>,
}

impl Cifar {
    /// Reads splits.
    ///
    /// # Errors
    /// As [`open_benchmark`](super::open_benchmark).
    pub(super) fn open(path: &Path, which: Benchmark, splits: &[&str]) -> Result<Self> {
        let hundred = which == Benchmark::Cifar100;
        let (inner, train, test, meta): (_, &[&str], _, _) = if hundred {
            (
                ["cifar-100-binary", "cifar-100-python"],
                &["train"],
                "test",
                ["fine_label_names.txt", "meta"],
            )
        } else {
            let train =
                &["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"];
            (
                ["cifar-10-batches-bin", "cifar-10-batches-py"],
                train,
                "test_batch",
                ["batches.meta.txt", "batches.meta"],
            )
        };
        let root = root(path, &inner, &meta)?;
        let test = &[test][..];
        let (labels, classes) = if hundred { (2, 100) } else { (1, 10) };
        let mut this = Self {
            batches: Vec::new(),
            starts: Vec::new(),
            class_names: class_names(&file(&root, &meta)?, hundred)?,
            fingerprint: String::new(),
        };
        if this.class_names.len() != classes {
            let found = format!("{} class names, expected {classes}", this.class_names.len());
            return Err(bad(&file(&root, &meta)?)(found));
        }
        let (mut fingerprint, mut total) = (Fingerprint::new(which.name()), 0);
        for split in splits {
            for name in if *split == "train" { train } else { test } {
                let path = file(&root, &[&format!("{name}.bin"), *name])?;
                let whole = bytes(&path)?;
                let batch = if path.extension().is_some_and(|extension| extension == "bin") {
                    records(&whole, labels, classes as u8)
                } else {
                    decode_pickle(&whole, hundred)
                };
                let batch = batch.map_err(bad(&path))?;
                if let Some(label) =
                    batch.labels.iter().find(|label| usize::from(**label) >= classes)
                {
                    return Err(bad(&path)(format!("class {label} of {classes}")));
                }
                fingerprint.add(name.as_bytes(), batch.labels.len() as u64);
                fingerprint.add(&batch.labels, 0);
                this.starts.push(total);
                total += batch.labels.len() as u64;
                this.batches.push((path, batch));
            }
        }
        if total == 0 {
            let reason = "the files hold no image".into();
            return Err(Error::Empty { location: root.display().to_string(), reason });
        }
        this.fingerprint = fingerprint.finish();
        Ok(this)
    }

    /// The batch of an image, and the image's number in it.
    fn place(&self, index: u64) -> Option<(&Path, &Batch, usize)> {
        let at = self.starts.partition_point(|&start| start <= index).checked_sub(1)?;
        let (path, batch) = self.batches.get(at)?;
        let number = usize::try_from(index - self.starts[at]).ok()?;
        (number < batch.labels.len()).then_some((path, batch, number))
    }
}

fn class_names(path: &Path, hundred: bool) -> Result<Vec<String>> {
    if path.extension().is_some_and(|extension| extension == "txt") {
        return Ok(lines(&text(path)?).map(|(_, name)| name.to_owned()).collect());
    }
    let dict = pickle::load(&bytes(path)?).map_err(bad(path))?;
    let key = if hundred { "fine_label_names" } else { "label_names" };
    let names =
        dict.get(key).and_then(Value::items).ok_or_else(|| format!("expected a list `{key}`"));
    let names = names.map_err(bad(path))?.iter().map(|name| name.text().unwrap_or_default());
    Ok(names.collect())
}

/// The records of a binary file.
pub(crate) fn records(bytes: &[u8], labels: usize, classes: u8) -> Result<Batch, String> {
    let size = labels + PIXELS;
    if !bytes.len().is_multiple_of(size) {
        return Err(format!("{} bytes, expected a multiple of {size}", bytes.len()));
    }
    let mut batch = Batch { labels: Vec::new(), pixels: Vec::new() };
    batch.pixels.reserve_exact(bytes.len() / size * PIXELS);
    for (number, record) in bytes.chunks_exact(size).enumerate() {
        let label = record[labels - 1];
        if label >= classes {
            return Err(format!("record {number}: class {label} of {classes}"));
        }
        batch.labels.push(label);
        batch.pixels.extend_from_slice(&record[labels..]);
    }
    Ok(batch)
}

/// A pickled batch.
pub(crate) fn decode_pickle(bytes: &[u8], hundred: bool) -> Result<Batch, String> {
    let dict = pickle::load(bytes)?;
    let key = if hundred { "fine_labels" } else { "labels" };
    let labels = dict.get(key).and_then(Value::items);
    let labels = labels.ok_or_else(|| format!("expected a list `{key}` in the dictionary"))?;
    let labels: Option<Vec<u8>> =
        labels.iter().map(|label| u8::try_from(label.int()?).ok()).collect();
    let labels =
        labels.ok_or_else(|| format!("`{key}` holds something else than class numbers"))?;
    let pixels = dict.get("data").and_then(Value::array).ok_or("expected an array `data`")?;
    if Some(pixels.len()) != labels.len().checked_mul(PIXELS) {
        let (images, found) = (labels.len(), pixels.len());
        return Err(format!(
            "{images} labels need {} bytes of pixels, found {found}",
            images * PIXELS
        ));
    }
    Ok(Batch { labels, pixels: pixels.to_vec() })
}

impl Source for Cifar {
    fn len(&self) -> u64 {
        self.batches.iter().map(|(_, batch)| batch.labels.len() as u64).sum()
    }

    fn format(&self) -> SampleFormat {
        SampleFormat::Image
    }

    fn read(&self, index: u64, _epoch: u64) -> Result<Sample, Defect> {
        let Some((_, batch, number)) = self.place(index) else {
            return Err(self.out_of_range(index));
        };
        let planes = &batch.pixels[number * PIXELS..(number + 1) * PIXELS];
        let mut pixels = Vec::with_capacity(PIXELS);
        for at in 0..PLANE {
            pixels.extend([planes[at], planes[PLANE + at], planes[2 * PLANE + at]]);
        }
        let image = Image::new(SIDE as u32, SIDE as u32, 3, pixels);
        let image = image.ok_or_else(|| {
            self.defect(index, DefectKind::Corrupt, "an image without pixels".into())
        })?;
        Ok(Sample { payload: Payload::Pixels(image), label: self.label(index) })
    }

    /// `data_batch_1-00042`
    fn key(&self, index: u64) -> String {
        self.place(index).map_or_else(String::new, |(path, _, number)| {
            format!("{}-{number:05}", path.file_stem().unwrap_or_default().to_string_lossy())
        })
    }

    fn location(&self, index: u64) -> String {
        self.place(index).map_or_else(
            || format!("image {index}"),
            |(path, _, number)| format!("{}, image {number}", path.display()),
        )
    }

    fn label(&self, index: u64) -> Option<u32> {
        let (_, batch, number) = self.place(index)?;
        Some(u32::from(batch.labels[number]))
    }

    fn num_classes(&self) -> Option<u32> {
        Some(self.class_names.len() as u32)
    }

    fn class_names(&self) -> Option<&[String]> {
        Some(&self.class_names)
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}
