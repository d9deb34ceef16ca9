//! `data stats`: sizes, formats, labels, and the mean and deviation of the pixels.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::image::Image;
use crate::scan::{OnProgress, ScanOptions, Scanned, scan};
use crate::source::Source;

/// A description of a source.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Stats {
    /// Samples in the source.
    pub samples: u64,
    /// Samples that cannot be used.
    pub bad: u64,
    /// Stored bytes of the good ones.
    pub bytes: u64,
    /// Good samples by file format.
    pub formats: BTreeMap<&'static str, u64>,
    /// Good samples by label.
    pub labels: BTreeMap<u32, u64>,
    /// Good samples without a label.
    pub unlabelled: u64,
    /// Widths, in pixels.
    pub width: Option<Range>,
    /// Heights, in pixels.
    pub height: Option<Range>,
    /// Mean of each RGB channel over all pixels, on a scale of 0 to 1.
    pub mean: Option<[f64; 3]>,
    /// Standard deviation of each RGB channel over all pixels, on a scale of 0 to 1.
    pub std: Option<[f64; 3]>,
}

/// Smallest, largest and mean of a number.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Range {
    /// Smallest.
    pub min: u32,
    /// Largest.
    pub max: u32,
    /// Arithmetic mean over images.
    pub mean: f64,
}

/// Describes a source by reading and decoding all of it.
///
/// Sums are integers, so the result is the same for any number of threads.
///
/// # Errors
/// [`Error::Cancelled`](crate::Error::Cancelled) when `progress` says so. Bad samples are counted.
pub fn stats(
    source: &dyn Source,
    options: &ScanOptions,
    progress: OnProgress<'_>,
) -> Result<Stats> {
    let parts = scan(source, options, progress, |sums: &mut Sums, _, sample| match sample {
        Ok(sample) => sums.add(&sample),
        Err(_) => sums.bad += 1,
    })?;
    let mut all = Sums::default();
    parts.into_iter().for_each(|part| all.merge(part));
    Ok(all.finish())
}

#[derive(Default)]
struct Sums {
    good: u64,
    bad: u64,
    bytes: u64,
    formats: BTreeMap<&'static str, u64>,
    labels: BTreeMap<u32, u64>,
    unlabelled: u64,
    width: Extent,
    height: Extent,
    pixels: u64,
    /// Sum and sum of squares of each channel.
    sums: [(u128, u128); 3],
}

#[derive(Default)]
struct Extent {
    count: u64,
    sum: u64,
    min: u32,
    max: u32,
}

impl Extent {
    fn merge(&mut self, other: &Extent) {
        if other.count == 0 {
            return;
        }
        self.min = if self.count == 0 { other.min } else { self.min.min(other.min) };
        self.max = self.max.max(other.max);
        self.sum += other.sum;
        self.count += other.count;
    }

    fn add(&mut self, value: u32) {
        self.merge(&Extent { count: 1, sum: u64::from(value), min: value, max: value });
    }

    fn finish(&self) -> Option<Range> {
        let mean = self.sum as f64 / self.count as f64;
        (self.count > 0).then_some(Range { min: self.min, max: self.max, mean })
    }
}

impl Sums {
    fn add(&mut self, sample: &Scanned) {
        self.good += 1;
        self.bytes += sample.bytes;
        *self.formats.entry(sample.format).or_default() += 1;
        match sample.label {
            Some(label) => *self.labels.entry(label).or_default() += 1,
            None => self.unlabelled += 1,
        }
        let Some(image) = &sample.image else {
            return;
        };
        self.width.add(image.width());
        self.height.add(image.height());
        self.pixels += u64::from(image.width()) * u64::from(image.height());
        for (channel, (sum, squares)) in channel_sums(image).into_iter().enumerate() {
            self.sums[channel].0 += u128::from(sum);
            self.sums[channel].1 += u128::from(squares);
        }
    }

    fn merge(&mut self, other: Sums) {
        self.good += other.good;
        self.bad += other.bad;
        self.bytes += other.bytes;
        for (format, count) in other.formats {
            *self.formats.entry(format).or_default() += count;
        }
        for (label, count) in other.labels {
            *self.labels.entry(label).or_default() += count;
        }
        self.unlabelled += other.unlabelled;
        self.width.merge(&other.width);
        self.height.merge(&other.height);
        self.pixels += other.pixels;
        for (sums, more) in self.sums.iter_mut().zip(other.sums) {
            sums.0 += more.0;
            sums.1 += more.1;
        }
    }

    fn finish(self) -> Stats {
        let count = self.pixels as f64;
        let mean = self.sums.map(|(sum, _)| sum as f64 / count / 255.0);
        let mut std = [0.0; 3];
        for (std, ((_, squares), mean)) in std.iter_mut().zip(self.sums.iter().zip(mean)) {
            let variance = *squares as f64 / count / (255.0 * 255.0) - mean * mean;
            *std = variance.max(0.0).sqrt();
        }
        let any = self.pixels > 0;
        Stats {
            samples: self.good + self.bad,
            bad: self.bad,
            bytes: self.bytes,
            formats: self.formats,
            labels: self.labels,
            unlabelled: self.unlabelled,
            width: self.width.finish(),
            height: self.height.finish(),
            mean: any.then_some(mean),
            std: any.then_some(std),
        }
    }
}

/// Sum and sum of squares of each RGB channel; a gray image counts as three equal ones.
fn channel_sums(image: &Image) -> [(u64, u64); 3] {
    let mut sums = [(0, 0); 3];
    let channels = usize::from(image.channels());
    for pixel in image.pixels().chunks_exact(channels) {
        for (sums, &value) in sums.iter_mut().zip(pixel) {
            sums.0 += u64::from(value);
            sums.1 += u64::from(value) * u64::from(value);
        }
    }
    if channels == 1 { [sums[0]; 3] } else { sums }
}
