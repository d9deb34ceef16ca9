//! Data specifications: the strings that name data on a command line.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::decode::DecodeLimits;
use crate::error::{Error, Result};
use crate::remote::{RemoteOptions, is_remote, redacted};
use crate::sampler::Mixture;
use crate::source::{
    Benchmark, IdxSource, MdsSource, Source, SyntheticSource, TensorSource, WebDataset,
    is_idx_folder, open_benchmark, open_folders, open_ilsvrc,
};

/// The accepted forms, for messages and help texts.
pub const SPEC_FORMS: &str = "accepted forms:
  imagefolder:DIR                   images in one folder per class, or in one folder
  wds:PATTERN                       tar shards: a file, a folder, *.tar, train-{000000..000127}.tar,
                                    also at s3://BUCKET/, gs://BUCKET/, az://CONTAINER/, https://HOST/
  parquet:PATTERN                   images in a column, as Hugging Face stores them (needs a build
                                    with the feature `parquet`)
  mds:DIR                           shards of MosaicML streaming: a folder with index.json
  ilsvrc:DIR[#train|#val]           ImageNet as downloaded: ILSVRC2012_img_{train,val}.tar with the
                                    devkit, or as Kaggle ships it; nothing is unpacked
  SET:DIR[#SPLIT[+SPLIT]]           a data set of the paper's benchmarks as published; SET is inat18,
                                    cifar10, cifar100, food101, dtd (#train+val:N, split number N),
                                    pets, cars, iwildcam, camelyon17, pcam, rxrx1, eurosat, fmow,
                                    domainnet (#train:DOMAIN; infograph unless named)
  idx:IMAGES[,LABELS]               IDX files, gzipped or not
  idx:DIR[#train|#t10k]             a folder with the four files of MNIST or Fashion-MNIST
  tensors:FILE.safetensors[#NAME]   normalised images, f32 [images, 3, height, width]
  synthetic[:noise|stripes,n=N,size=PIXELS,classes=N,seed=N]
  PATH                              any of these, recognised by what is there
  Names may be lists (a,b), braces ({0..9}, {a,b}) and wildcards (*, ?, [a-z]) in imagefolder, wds,
  parquet and mds. After a PATTERN of wds, parquet or mds, ?image=jpg,png&label=cls chooses the
  extensions or columns (also text= and metadata=; none leaves one out); label=json:KEY takes the
  label from a key of the .json in a tar shard.
  and @WEIGHT after any of them for its share in a mixture";

/// A parsed data specification with its weight in a mixture.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSpec {
    /// Where the data are.
    pub kind: SpecKind,
    /// Share in a mixture, relative to the others; 1 unless given.
    pub weight: f64,
}

/// What a [`DataSpec`] names.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpecKind {
    /// `imagefolder:DIR`
    ImageFolder(PathBuf),
    /// `wds:PATTERN`
    WebDataset(String),
    /// `parquet:PATTERN`
    Parquet(String),
    /// `mds:PATTERN`
    Mds(String),
    /// `ilsvrc:PATH[#SPLIT]`
    Ilsvrc {
        /// Folder with the downloads, or one of the tar files.
        path: PathBuf,
        /// `train` or `val`.
        split: Option<String>,
    },
    /// `SET:DIR[#SPLITS]`, with a data set's [name](Benchmark::name) as scheme.
    Benchmark {
        /// The data set.
        set: Benchmark,
        /// Folder with its files.
        folder: PathBuf,
        /// Splits, as in `train+val`.
        split: Option<String>,
    },
    /// `idx:IMAGES[,LABELS]`
    Idx {
        /// Images.
        images: PathBuf,
        /// Labels; looked for beside the images when not given.
        labels: Option<PathBuf>,
    },
    /// `idx:DIR[#SPLIT]`
    IdxFolder {
        /// Folder.
        folder: PathBuf,
        /// Start of the file names: `train` or `t10k`.
        split: String,
    },
    /// `synthetic[:OPTIONS]`
    Synthetic(String),
    /// `tensors:FILE[#NAME]`
    Tensors {
        /// The safetensors file.
        file: PathBuf,
        /// Tensor name.
        name: Option<String>,
    },
}

/// What opening needs to know beside the specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenOptions {
    /// Limits on files and images.
    pub limits: DecodeLimits,
    /// Size (height, width) in pixels of generated images that state none.
    pub synthetic_size: (u32, u32),
    /// How shards in object stores and on web servers are read; without it, as the
    /// [environment](RemoteOptions::from_env) says.
    pub remote: Option<RemoteOptions>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { limits: DecodeLimits::default(), synthetic_size: (32, 32), remote: None }
    }
}

/// Opens what a specification names, with default options; a weight is ignored.
///
/// # Errors
/// [`Error::Spec`] for a specification that names nothing usable, else the source's own errors.
pub fn open(spec: &str) -> Result<Arc<dyn Source>> {
    spec.parse::<DataSpec>()?.open(&OpenOptions::default())
}

/// Opens several specifications as one [`Mixture`].
///
/// # Errors
/// As [`open`], and an empty list.
pub fn open_mixture<S: AsRef<str>>(specs: &[S], options: &OpenOptions) -> Result<Mixture> {
    let mut parts = Vec::with_capacity(specs.len());
    for spec in specs {
        let spec: DataSpec = spec.as_ref().parse()?;
        parts.push((spec.open(options)?, spec.weight));
    }
    Mixture::new(parts)
}

impl FromStr for DataSpec {
    type Err = Error;

    fn from_str(spec: &str) -> Result<Self> {
        let (text, weight) = split_weight(spec)?;
        let fail = |reason: String| Error::Spec { spec: redacted(spec), reason };
        let (scheme, rest) = match text.split_once(':') {
            // A URL alone names tar shards.
            _ if is_remote(text) => ("wds", text),
            // A single letter is a drive, anything with a separator a path.
            Some((scheme, rest)) if scheme.len() > 1 && !scheme.contains(['/', '\\', '.']) => {
                (scheme, rest)
            }
            _ if text == "synthetic" => (text, ""),
            _ => ("", text),
        };
        if rest.is_empty() && scheme != "synthetic" {
            return Err(fail("nothing is named".into()));
        }
        let kind = match scheme {
            "imagefolder" => SpecKind::ImageFolder(rest.into()),
            "wds" => SpecKind::WebDataset(rest.to_owned()),
            "parquet" => SpecKind::Parquet(rest.to_owned()),
            "mds" => SpecKind::Mds(rest.to_owned()),
            "ilsvrc" => ilsvrc_spec(rest),
            "idx" => idx_spec(rest),
            "synthetic" => {
                SyntheticSource::parse(rest, (1, 1))?;
                SpecKind::Synthetic(rest.to_owned())
            }
            "tensors" => {
                let (file, name) = split_fragment(rest);
                SpecKind::Tensors { file: file.into(), name: name.map(str::to_owned) }
            }
            "" => recognise(rest).map_err(fail)?,
            _ => match Benchmark::from_name(scheme) {
                Some(set) => benchmark_spec(set, rest),
                None if Path::new(text).exists() => recognise(text).map_err(fail)?,
                None => return Err(fail(format!("unknown kind of data `{scheme}`"))),
            },
        };
        Ok(Self { kind, weight })
    }
}

/// Splits `SPEC@WEIGHT`. An `@` that is no weight belongs to a path.
fn split_weight(spec: &str) -> Result<(&str, f64)> {
    let Some((text, weight)) = spec.rsplit_once('@') else {
        return Ok((spec, 1.0));
    };
    match weight.parse::<f64>() {
        Err(_) => Ok((spec, 1.0)),
        Ok(_) if Path::new(spec).exists() => Ok((spec, 1.0)),
        Ok(weight) if weight.is_finite() && weight > 0.0 => Ok((text, weight)),
        Ok(_) => {
            let reason = format!("weight `{weight}`: expected a number above 0");
            Err(Error::Spec { spec: redacted(spec), reason })
        }
    }
}

/// Splits `PATH#NAME`; a path that exists as it stands has no fragment.
fn split_fragment(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once('#') {
        Some((path, name)) if !Path::new(text).exists() => (path, Some(name)),
        _ => (text, None),
    }
}

fn ilsvrc_spec(text: &str) -> SpecKind {
    let (path, split) = split_fragment(text);
    SpecKind::Ilsvrc { path: path.into(), split: split.map(str::to_owned) }
}

fn benchmark_spec(set: Benchmark, text: &str) -> SpecKind {
    let (folder, split) = split_fragment(text);
    SpecKind::Benchmark { set, folder: folder.into(), split: split.map(str::to_owned) }
}

fn idx_spec(text: &str) -> SpecKind {
    let (path, split) = split_fragment(text);
    if split.is_some() || Path::new(path).is_dir() {
        let split = split.unwrap_or("train").to_owned();
        return SpecKind::IdxFolder { folder: path.into(), split };
    }
    match text.split_once(',') {
        Some((images, labels)) if !Path::new(text).exists() => {
            SpecKind::Idx { images: images.into(), labels: Some(labels.into()) }
        }
        _ => SpecKind::Idx { images: text.into(), labels: None },
    }
}

#[cfg(feature = "parquet")]
fn open_parquet(pattern: &str, limits: DecodeLimits) -> Result<Arc<dyn Source>> {
    Ok(Arc::new(crate::source::ParquetSource::open(pattern, limits)?))
}

#[cfg(not(feature = "parquet"))]
fn open_parquet(pattern: &str, _: DecodeLimits) -> Result<Arc<dyn Source>> {
    let reason =
        "this build reads no parquet: build with `--features parquet`, or write the images \
                  as tar shards"
            .into();
    Err(Error::Spec { spec: format!("parquet:{pattern}"), reason })
}

fn is_ilsvrc_tar(name: &std::ffi::OsStr) -> bool {
    ["train", "val"].iter().any(|split| name == format!("ILSVRC2012_img_{split}.tar").as_str())
}

fn is_ilsvrc_folder(path: &Path) -> bool {
    ["train", "val"].iter().any(|split| path.join(format!("ILSVRC2012_img_{split}.tar")).is_file())
        || path.join("LOC_synset_mapping.txt").is_file()
}

/// Whether a folder directly holds a file of this extension.
fn glob_has(folder: &Path, extension: &str) -> bool {
    let files = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    files.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|e| e == extension))
}

/// Tells what a bare path is by what lies there.
fn recognise(text: &str) -> Result<SpecKind, String> {
    let (fragmentless, fragment) = split_fragment(text);
    let path = Path::new(fragmentless);
    let lower = fragmentless.to_lowercase();
    if path.is_dir() {
        if is_idx_folder(path) {
            return Ok(idx_spec(text));
        }
        if path.join("index.json").is_file() {
            return Ok(SpecKind::Mds(text.to_owned()));
        }
        if is_ilsvrc_folder(path) {
            return Ok(ilsvrc_spec(text));
        }
        if let Some(set) = Benchmark::recognise(path) {
            return Ok(benchmark_spec(set, text));
        }
        let has_parquet = glob_has(path, "parquet");
        let has_shard = std::fs::read_dir(path)
            .map_err(|error| format!("cannot list {text}: {error}"))?
            .filter_map(Result::ok)
            .any(|entry| entry.path().extension().is_some_and(|extension| extension == "tar"));
        return Ok(if has_shard {
            SpecKind::WebDataset(text.to_owned())
        } else if has_parquet {
            SpecKind::Parquet(text.to_owned())
        } else {
            SpecKind::ImageFolder(text.into())
        });
    }
    let lower_path = lower.split('?').next().unwrap_or_default();
    if lower_path.ends_with(".parquet") {
        return Ok(SpecKind::Parquet(text.to_owned()));
    }
    if path.file_name().is_some_and(is_ilsvrc_tar) {
        return Ok(ilsvrc_spec(text));
    }
    if lower_path.ends_with(".tar") {
        return Ok(SpecKind::WebDataset(text.to_owned()));
    }
    if lower.ends_with(".safetensors") {
        let name = fragment.map(str::to_owned);
        return Ok(SpecKind::Tensors { file: path.to_owned(), name });
    }
    if lower.contains("idx3-ubyte") {
        return Ok(idx_spec(text));
    }
    if path.exists() {
        return Err("it is neither a folder nor a .tar, .safetensors or IDX file".into());
    }
    Err("there is no such file or folder".into())
}

impl DataSpec {
    /// Opens the source.
    ///
    /// # Errors
    /// Those of the source.
    pub fn open(&self, options: &OpenOptions) -> Result<Arc<dyn Source>> {
        let limits = options.limits;
        Ok(match &self.kind {
            SpecKind::ImageFolder(dir) => Arc::from(open_folders(dir, limits)?),
            SpecKind::Parquet(pattern) => open_parquet(pattern, limits)?,
            SpecKind::Mds(pattern) => Arc::new(MdsSource::open(pattern, limits)?),
            SpecKind::Ilsvrc { path, split } => {
                Arc::from(open_ilsvrc(path, split.as_deref(), limits)?)
            }
            SpecKind::WebDataset(pattern) => {
                Arc::new(WebDataset::open_with(pattern, limits, options.remote.as_ref())?)
            }
            SpecKind::Benchmark { set, folder, split } => {
                Arc::from(open_benchmark(*set, folder, split.as_deref(), limits)?)
            }
            SpecKind::Idx { images, labels } => {
                Arc::new(IdxSource::open(images, labels.as_deref())?)
            }
            SpecKind::IdxFolder { folder, split } => {
                Arc::new(IdxSource::open_split(folder, split)?)
            }
            SpecKind::Synthetic(text) => {
                Arc::new(SyntheticSource::parse(text, options.synthetic_size)?)
            }
            SpecKind::Tensors { file, name } => {
                Arc::new(TensorSource::open(file, name.as_deref())?)
            }
        })
    }
}

impl fmt::Display for DataSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            SpecKind::ImageFolder(dir) => write!(f, "imagefolder:{}", dir.display())?,
            SpecKind::WebDataset(pattern) => write!(f, "wds:{pattern}")?,
            SpecKind::Parquet(pattern) => write!(f, "parquet:{pattern}")?,
            SpecKind::Mds(pattern) => write!(f, "mds:{pattern}")?,
            SpecKind::Ilsvrc { path, split } => {
                write!(f, "ilsvrc:{}", path.display())?;
                if let Some(split) = split {
                    write!(f, "#{split}")?;
                }
            }
            SpecKind::Benchmark { set, folder, split } => {
                write!(f, "{}:{}", set.name(), folder.display())?;
                if let Some(split) = split {
                    write!(f, "#{split}")?;
                }
            }
            SpecKind::Idx { images, labels } => {
                write!(f, "idx:{}", images.display())?;
                if let Some(labels) = labels {
                    write!(f, ",{}", labels.display())?;
                }
            }
            SpecKind::IdxFolder { folder, split } => write!(f, "idx:{}#{split}", folder.display())?,
            SpecKind::Synthetic(options) if options.is_empty() => f.write_str("synthetic")?,
            SpecKind::Synthetic(options) => write!(f, "synthetic:{options}")?,
            SpecKind::Tensors { file, name } => {
                write!(f, "tensors:{}", file.display())?;
                if let Some(name) = name {
                    write!(f, "#{name}")?;
                }
            }
        }
        if self.weight != 1.0 { write!(f, "@{}", self.weight) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_round_trip_through_their_text() {
        for text in [
            "imagefolder:/data/a",
            "wds:/data/{000..009}.tar@0.25",
            "idx:a,b",
            "idx:/data/mnist#t10k",
            "synthetic",
            "synthetic:noise,n=8@2",
            "parquet:/data/train-*.parquet?image=img&label=none@3",
            "mds:/data/{a,b}",
            "ilsvrc:/data/imagenet#val",
            "ilsvrc:/data/imagenet",
            "cars:/data/cars#test@2",
            "dtd:/data/dtd#train+val:3",
            "pcam:/data/pcam",
            "wds:/data/a.tar?image=seg.png",
            "tensors:x.safetensors#pixels",
            "tensors:x.safetensors",
        ] {
            let spec: DataSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
        }
    }

    #[test]
    fn errors_list_the_accepted_forms() {
        for bad in ["", "wds:", "parquett:x", "/no/such/place", "wds:a@0", "synthetic:foo=1"] {
            let message = bad.parse::<DataSpec>().unwrap_err().to_string();
            assert!(message.contains("imagefolder:DIR"), "{message}");
            assert!(message.contains(bad), "{message}");
        }
    }

    #[cfg(not(feature = "object-store"))]
    #[test]
    fn without_object_stores_urls_name_the_feature_to_build() {
        for url in ["s3://bucket/train/*.tar", "wds:https://host/{00..09}.tar"] {
            let message = open(url).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(message.contains("--features object-store"), "{message}");
        }
    }

    #[test]
    fn an_at_sign_in_a_path_is_no_weight() {
        let spec: DataSpec = "imagefolder:/mail/me@home".parse().unwrap();
        assert_eq!(spec.kind, SpecKind::ImageFolder("/mail/me@home".into()));
        assert_eq!(spec.weight, 1.0);
    }
}
