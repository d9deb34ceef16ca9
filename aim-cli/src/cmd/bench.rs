//! `aim-cli bench`: how fast this machine does parts of the work.

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aim_data::augment::{AugmentKey, Preprocessor, Transform};
use aim_data::decode::DecodeLimits;
use aim_data::source::{Payload, SampleFormat, Source};
use aim_model::config::AimConfig;
use aim_model::pretrain::{PretrainModel, Target};
use anyhow::{Result, bail};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::args::{Bench, BenchData};
use crate::card::Card;
use crate::stdout;
use crate::table::{Table, bytes, thousands};

/// Share of a card's peak that training reaches, for the rate at which it takes images.
const USUAL_SHARE: f64 = 0.4;
/// What ImageNet's pixels are normalised with.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];

const MAX_WORKERS: usize = 1024;
const STAGES: [&str; 4] = ["read", "decode", "crop and resize", "normalise"];

pub(crate) fn run(args: &Bench) -> Result<()> {
    match args {
        Bench::Data(args) => run_data(args),
    }
}

/// CPU time of the calling thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// What one thread, or all together, did.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    images: u64,
    bad: u64,
    bytes: u64,
    stages: [Duration; 4],
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.images += other.images;
        self.bad += other.bad;
        self.bytes += other.bytes;
        for (sum, more) in self.stages.iter_mut().zip(other.stages) {
            *sum += more;
        }
    }

    fn cpu_s(&self) -> f64 {
        self.stages.iter().map(Duration::as_secs_f64).sum()
    }

    fn per_core(&self) -> f64 {
        self.images as f64 / self.cpu_s().max(1e-9)
    }
}

/// What every thread shares.
struct Work<'a> {
    source: &'a dyn Source,
    next: AtomicU64,
    deadline: Instant,
    size: u32,
    normalise: bool,
}

impl Work<'_> {
    fn run(&self) -> aim_data::Result<Tally> {
        let mut preprocessor = Preprocessor::new(Transform::train(), self.size, self.size)?;
        let mut pixels = vec![0; preprocessor.output_len()];
        let mut values = vec![0.0; if self.normalise { pixels.len() } else { 0 }];
        let mut tally = Tally::default();
        while Instant::now() < self.deadline {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let (epoch, index) = (number / self.source.len(), number % self.source.len());
            let key = AugmentKey { epoch, index, ..AugmentKey::default() };
            self.one(key, &mut preprocessor, &mut pixels, &mut values, &mut tally)?;
        }
        Ok(tally)
    }

    fn one(
        &self,
        key: AugmentKey,
        preprocessor: &mut Preprocessor,
        pixels: &mut [u8],
        values: &mut [f32],
        tally: &mut Tally,
    ) -> aim_data::Result<()> {
        let mut last = cpu_time();
        let mut lap = |stage: usize, tally: &mut Tally| {
            let now = cpu_time();
            tally.stages[stage] += now.saturating_sub(last);
            last = now;
        };
        let read = self.source.read(key.index, key.epoch);
        lap(0, tally);
        match read.map(|sample| sample.payload) {
            Ok(Payload::Encoded(bytes)) => {
                tally.bytes += bytes.len() as u64;
                let decoded = preprocessor.decode(&bytes, &DecodeLimits::default(), key);
                lap(1, tally);
                if decoded.is_err() {
                    tally.bad += 1;
                    return Ok(());
                }
                preprocessor.render(pixels)?;
            }
            Ok(Payload::Pixels(image)) => {
                tally.bytes += image.pixels().len() as u64;
                preprocessor.apply(&image, key, pixels)?;
            }
            _ => {
                tally.bad += 1;
                return Ok(());
            }
        }
        lap(2, tally);
        if self.normalise {
            normalise(pixels, values);
            lap(3, tally);
        }
        tally.images += 1;
        Ok(())
    }
}

/// `[height, width, 3]` bytes to `[3, height, width]` values.
fn normalise(pixels: &[u8], values: &mut [f32]) {
    let (pixels, _) = pixels.as_chunks::<3>();
    for (channel, plane) in values.chunks_exact_mut(pixels.len()).enumerate() {
        let scale = 1.0 / (255.0 * STD[channel]);
        let shift = -MEAN[channel] / STD[channel];
        for (value, pixel) in plane.iter_mut().zip(pixels) {
            *value = f32::from(pixel[channel]) * scale + shift;
        }
    }
    std::hint::black_box(values);
}

/// Images a second that training of a preset takes from its loader.
struct Demand<'a> {
    preset: &'a str,
    card: &'a Card,
    images_per_s: f64,
}

impl<'a> Demand<'a> {
    fn of(preset: &'a str, card: &'a Card) -> Result<Self> {
        let Some(peak) = card.peak else {
            bail!("the peak of `{}` is not known: name a card, such as --card H200", card.name);
        };
        let model = PretrainModel::new(&AimConfig::preset(preset)?, Target::NormalizedPixels)?;
        // Two images, half of whose patches are scored.
        let (tape, _) = model.record(model.image_batch(2), model.config().num_patches())?;
        let flops = aim_tensor::count::flops(&tape);
        let per_image = (flops.forward + flops.backward) as f64 / 2.0;
        Ok(Self { preset, card, images_per_s: USUAL_SHARE * peak / per_image })
    }

    /// Share of its time that a step would wait.
    fn waits(&self, rate: f64) -> f64 {
        (1.0 - rate / self.images_per_s).max(0.0)
    }
}

fn run_data(args: &BenchData) -> Result<()> {
    if !(args.seconds > 0.0 && args.seconds <= 3600.0) {
        let text = format!("--seconds {}: expected more than 0, at most 3600", args.seconds);
        return Err(super::Usage(text).into());
    }
    if args.workers > MAX_WORKERS {
        let text = format!("--workers {}: expected at most {MAX_WORKERS}", args.workers);
        return Err(super::Usage(text).into());
    }
    let demand = args.preset.as_deref().map(|preset| Demand::of(preset, &args.card)).transpose()?;
    let source = aim_data::spec::open(&args.data)?;
    if source.format() != SampleFormat::Image {
        bail!("`{}` holds final pixels or values: there is nothing to decode or crop", args.data);
    }
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let workers = if args.workers == 0 { cores } else { args.workers };
    let start = Instant::now();
    let work = Work {
        source: &*source,
        next: AtomicU64::new(0),
        deadline: start + Duration::from_secs_f64(args.seconds),
        size: args.size,
        normalise: args.normalise,
    };
    let mut total = Tally::default();
    std::thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(|| work.run())).collect();
        for thread in threads {
            match thread.join() {
                Ok(tally) => total.add(&tally?),
                Err(_) => bail!("a worker panicked"),
            }
        }
        Ok(())
    })?;
    let elapsed_s = start.elapsed().as_secs_f64();
    if total.images == 0 {
        bail!("none of {} samples could be used: run `aim-cli data check`", thousands(total.bad));
    }
    if args.json {
        return print_json(&total, workers, elapsed_s, demand.as_ref());
    }
    stdout::print(&text(&total, workers, elapsed_s, demand.as_ref()))
}

fn print_json(
    total: &Tally,
    workers: usize,
    elapsed_s: f64,
    demand: Option<&Demand<'_>>,
) -> Result<()> {
    let images = total.images as f64;
    let stages: serde_json::Map<_, _> = STAGES
        .iter()
        .zip(total.stages)
        .map(|(name, time)| (name.replace(' ', "_"), (time.as_secs_f64() * 1e3 / images).into()))
        .collect();
    let rate = images / elapsed_s;
    stdout::print_json(&json!({
        "images": total.images,
        "bad": total.bad,
        "workers": workers,
        "elapsed_s": elapsed_s,
        "images_per_s": rate,
        "images_per_s_per_core": total.per_core(),
        "mb_per_s": total.bytes as f64 * 1e-6 / elapsed_s,
        "cpu_ms_per_image": stages,
        "step": demand.map(|demand| json!({
            "preset": demand.preset,
            "card": demand.card.name,
            "share_of_peak": USUAL_SHARE,
            "images_per_s": demand.images_per_s,
            "data_wait_share": demand.waits(rate),
        })),
    }))
}

fn text(total: &Tally, workers: usize, elapsed_s: f64, demand: Option<&Demand<'_>>) -> String {
    let images = total.images as f64;
    let rate = images / elapsed_s;
    let mut table = Table::new(&["stage", ">CPU ms/image", ">share"]);
    for (name, time) in STAGES.iter().zip(total.stages).filter(|(_, time)| !time.is_zero()) {
        let time_s = time.as_secs_f64();
        table.row([
            (*name).to_owned(),
            format!("{:.3}", time_s * 1e3 / images),
            format!("{:.0} %", 100.0 * time_s / total.cpu_s()),
        ]);
    }
    let mut text = format!(
        "{rate:.0} images/s and {}/s of files with {workers} threads, {:.0} images/s per core (CPU time)\n\
         {} images in {elapsed_s:.1} s, {} could not be used\n\n{table}",
        bytes((total.bytes as f64 / elapsed_s) as u64),
        total.per_core(),
        thousands(total.images),
        thousands(total.bad),
    );
    if let Some(demand) = demand {
        let Demand { preset, card, images_per_s } = demand;
        let share = 100.0 * USUAL_SHARE;
        text.push_str(&format!(
            "\n{preset} on one {} at {share:.0} % of its peak takes {images_per_s:.0} images/s: ",
            card.name
        ));
        let cores = images_per_s / total.per_core();
        let waits = demand.waits(rate);
        text.push_str(&if waits > 0.0 {
            format!(
                "the loader is the bottleneck, a step waits {:.0} % of its time ({cores:.1} cores \
                 would be enough)\n",
                100.0 * waits
            )
        } else {
            format!("the step is the bottleneck ({cores:.1} cores are enough)\n")
        });
    }
    text
}
