//! Ranges, and values that must fit each other.

use aim_data::remote::ByteSize;
use aim_model::ModelError;

use super::error::ConfigError;
use super::sections::{Attention, Prefix, RunConfig};

fn ensure(
    holds: bool,
    key: &str,
    found: impl std::fmt::Debug,
    expected: impl Into<String>,
) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(ConfigError::Range {
        key: key.to_owned(),
        found: format!("{found:?}"),
        expected: expected.into(),
        origin: None,
    })
}

/// Both ends finite, above 0, and in order.
fn ordered([low, high]: [f64; 2]) -> bool {
    low > 0.0 && low <= high && high.is_finite()
}

impl RunConfig {
    /// Checks every range and that the values fit each other.
    ///
    /// # Errors
    /// [`ConfigError::Range`] names the key, its value and what would work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.model.validate().map_err(|error| match error {
            ModelError::BadConfig { key, value, expected } => ConfigError::Range {
                key: format!("model.{key}"),
                found: value,
                expected,
                origin: None,
            },
            other => ConfigError::Internal { message: other.to_string() },
        })?;
        self.validate_objective()?;
        self.validate_data()?;
        self.validate_train()?;
        ensure(
            (1..=1_000_000).contains(&self.checkpoint.keep),
            "checkpoint.keep",
            self.checkpoint.keep,
            "between 1 and 1000000: the newest checkpoint is what a run resumes from",
        )?;
        ensure(self.log.every_steps >= 1, "log.every_steps", self.log.every_steps, "at least 1")?;
        ensure(
            self.validation.num_images <= 10_000_000,
            "validation.num_images",
            self.validation.num_images,
            "at most 10000000",
        )
    }

    fn validate_objective(&self) -> Result<(), ConfigError> {
        let last = self.model.num_patches() - 1;
        match (self.objective.prefix, self.objective.attention) {
            (Prefix::Fixed(patches), Attention::Prefix) => ensure(
                (1..=last).contains(&patches),
                "objective.prefix",
                patches,
                format!("between 1 and {last}, one less than the patches of an image"),
            ),
            (Prefix::Fixed(patches), Attention::Causal) => ensure(
                patches == 1,
                "objective.prefix",
                patches,
                "\"uniform\" or 1 with objective.attention = \"causal\", which has no prefix",
            ),
            (Prefix::Uniform, _) => Ok(()),
        }
    }

    fn validate_data(&self) -> Result<(), ConfigError> {
        let data = &self.data;
        let [_, most] = data.scale;
        ensure(
            ordered(data.scale) && most <= 1.0,
            "data.scale",
            data.scale,
            "[least, greatest] with 0 < least <= greatest <= 1, such as [0.4, 1.0]",
        )?;
        ensure(
            ordered(data.ratio),
            "data.ratio",
            data.ratio,
            "[least, greatest] with 0 < least <= greatest, such as [0.75, 1.3333]",
        )?;
        ensure((0.0..=1.0).contains(&data.flip), "data.flip", data.flip, "a probability, 0 to 1")?;
        let [factors @ .., hue] = data.color_jitter;
        ensure(
            factors.iter().all(|factor| (0.0..=100.0).contains(factor))
                && (0.0..=0.5).contains(&hue),
            "data.color_jitter",
            data.color_jitter,
            "[brightness, contrast, saturation, hue], 0 or more and the last at most 0.5, such as \
             [0.4, 0.4, 0.4, 0.1]",
        )?;
        ensure(
            data.mean.iter().all(|mean| (0.0..=1.0).contains(mean)),
            "data.mean",
            data.mean,
            "three numbers on a scale of 0 to 1 (divide by 255 if yours are not)",
        )?;
        ensure(
            data.std.iter().all(|std| *std > 0.0 && *std <= 1.0),
            "data.std",
            data.std,
            "three numbers above 0 and up to 1 (divide by 255 if yours are not)",
        )?;
        ensure(
            (0.0..=1.0).contains(&data.max_bad_fraction),
            "data.max_bad_fraction",
            data.max_bad_fraction,
            "a share of the images, 0 to 1",
        )?;
        ensure(
            data.window_shards <= 1_000_000,
            "data.window_shards",
            data.window_shards,
            "at most 1000000; 0 for what suits each source",
        )?;
        ensure(
            data.cache_dir.as_os_str().is_empty() || aim_data::remote::AVAILABLE,
            "data.cache_dir",
            &data.cache_dir,
            "nothing in a program built without `--features object-store`, which keeps no remote \
             shards",
        )?;
        ensure(
            data.cache_bytes == ByteSize(0) || aim_data::remote::AVAILABLE,
            "data.cache_bytes",
            data.cache_bytes,
            "0 in a program built without `--features object-store`, which keeps no remote shards",
        )?;
        ensure(data.workers <= 1024, "data.workers", data.workers, "at most 1024; 0 for all cores")
    }

    fn validate_train(&self) -> Result<(), ConfigError> {
        let train = &self.train;
        let positive = |number: f64| number > 0.0 && number.is_finite();
        let fraction = |number: f64| (0.0..1.0).contains(&number);
        ensure(train.steps >= 1, "train.steps", train.steps, "at least 1")?;
        ensure(train.steps <= 1 << 40, "train.steps", train.steps, "at most 2^40")?;
        let batch = 1..=1 << 20;
        ensure(
            batch.contains(&train.batch_size),
            "train.batch_size",
            train.batch_size,
            "between 1 and 1048576",
        )?;
        ensure(
            batch.contains(&train.accumulate),
            "train.accumulate",
            train.accumulate,
            "between 1 and 1048576",
        )?;
        ensure(positive(train.lr), "train.lr", train.lr, "above 0, such as 1e-3")?;
        ensure(
            train.betas.iter().all(|beta| fraction(*beta)),
            "train.betas",
            train.betas,
            "two numbers from 0 to below 1, such as [0.9, 0.95]",
        )?;
        ensure(positive(train.eps), "train.eps", train.eps, "above 0, such as 1e-8")?;
        ensure(
            train.weight_decay >= 0.0 && train.weight_decay.is_finite(),
            "train.weight_decay",
            train.weight_decay,
            "0 or more, such as 0.05",
        )?;
        ensure(
            (0.0..=1.0).contains(&train.warmup_fraction),
            "train.warmup_fraction",
            train.warmup_fraction,
            "a share of the steps, 0 to 1, such as 0.025",
        )?;
        ensure(positive(train.clip), "train.clip", train.clip, "above 0, such as 1.0")?;
        ensure(
            train.seed <= i64::MAX as u64,
            "train.seed",
            train.seed,
            "below 2^63, which TOML can hold",
        )?;
        ensure(
            train.threads <= 1024,
            "train.threads",
            train.threads,
            "at most 1024; 0 for all cores",
        )
    }
}
