//! [`Checkpoint`]: weights under our names, from whatever holds them.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aim_tensor::TensorError;
use aim_tensor::io::safetensors::{Dtype, SafeTensors};
use aim_tensor::io::{IoError, TensorSource, Tensors};

use super::config::{MlAimConfig, read_config, read_ml_aim_config};
use super::l3m::{self, Place};
use super::{infer, released};
use crate::config::AimConfig;
use crate::error::ModelError;
use crate::position::sin_cos_2d;

/// What wrappers of PyTorch put into names, wherever they wrapped.
const WRAPPERS: [&str; 3] = ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."];
/// What `DataParallel` puts before all names.
const MODULE: &str = "module.";
const BIN: &str = "pytorch_model.bin";

/// Weights under ml-aim's names (and `pixel_head.*`), read from one file or several that complete each other:
/// safetensors, PyTorch's `.pth`, `.pt` and `.bin`, both also in shards with an index, a backbone and its head.
///
/// Prefixes that wrappers leave (`module.` before all names; `_orig_mod.`, `_fsdp_wrapped_module.` and
/// `_checkpoint_wrapped_module.` anywhere) are taken off. Checkpoints of ml-l3m are known by their names and read under
/// ours. Nothing is copied before it is asked for.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    dir: PathBuf,
    paths: Vec<PathBuf>,
    files: Vec<Tensors>,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
    config: AimConfig,
    ml_aim: Option<MlAimConfig>,
    notes: Vec<String>,
    l3m: bool,
    /// Patches on a side of the images that stored positions are for.
    grid_side: Option<usize>,
}

/// A tensor: one of a file, or several below each other.
#[derive(Debug)]
struct Entry {
    shape: Vec<usize>,
    dtype: Dtype,
    /// The number of a file, and the name there.
    parts: Vec<(usize, String)>,
}

/// Names that may end a path given to a program: `backbone.pth,head.pth` is two files, unless one file is called so.
pub(crate) fn split(path: &Path) -> Vec<PathBuf> {
    match path.to_str() {
        Some(text) if text.contains(',') && !path.exists() => {
            text.split(',').filter(|part| !part.is_empty()).map(PathBuf::from).collect()
        }
        _ => vec![path.to_owned()],
    }
}

impl Checkpoint {
    /// Opens a file, a directory with `model.safetensors` or `pytorch_model.bin` (or their indices and shards), or
    /// several of these with commas between, whose tensors are merged.
    ///
    /// # Errors
    /// When one of them cannot be read, a tensor comes twice, or the model's sizes are neither in a `config.json` or
    /// `aim.json` beside the first of them nor to be had from the shapes.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let parts = split(path);
        let first = parts.first().map_or(path, PathBuf::as_path);
        let dir = if first.is_dir() {
            first.to_owned()
        } else {
            first.parent().map_or_else(PathBuf::new, Path::to_owned)
        };
        let mut opened = Self {
            path: path.to_owned(),
            dir,
            paths: Vec::new(),
            files: Vec::new(),
            entries: BTreeMap::new(),
            metadata: BTreeMap::new(),
            config: AimConfig::default(),
            ml_aim: None,
            notes: Vec::new(),
            l3m: false,
            grid_side: None,
        };
        for part in &parts {
            opened.add(part)?;
        }
        opened.configure()?;
        Ok(opened)
    }

    /// Opens the files of one path and takes their tensors.
    fn add(&mut self, path: &Path) -> Result<(), ModelError> {
        let opened = open_files(path)?;
        // All names of the path: a prefix before all of them says nothing.
        let names: Vec<&str> = opened.iter().flat_map(|(_, file)| file.names()).collect();
        let wrapped = !names.is_empty() && names.iter().all(|name| name.starts_with(MODULE));
        let clean = |name: &str| {
            let name = if wrapped { name.strip_prefix(MODULE).unwrap_or(name) } else { name };
            WRAPPERS.iter().fold(name.to_owned(), |name, wrapper| name.replace(wrapper, ""))
        };
        if names.iter().any(|name| clean(name) != **name) {
            self.notes.push(format!("{}: prefixes of wrappers are left out", path.display()));
        }
        let cleaned: Vec<String> = names.iter().map(|name| clean(name)).collect();
        let l3m = l3m::detects(cleaned.iter().map(String::as_str));
        self.l3m |= l3m;
        let mut positions = Vec::new();
        let mut rows: BTreeMap<String, [Option<(usize, String)>; 3]> = BTreeMap::new();
        for (number, (_, file)) in opened.iter().enumerate() {
            let number = self.files.len() + number;
            for name in file.names() {
                let source = (number, name.to_owned());
                let place = if l3m { l3m::place(&clean(name)) } else { Place::Name(clean(name)) };
                match place {
                    Place::Name(ours) => self.insert(ours, path, file, vec![source])?,
                    Place::Rows(ours, part) => {
                        let taken = rows
                            .entry(ours)
                            .or_default()
                            .get_mut(part)
                            .and_then(|slot| slot.replace(source));
                        if let Some((_, name)) = taken {
                            return Err(self.bad(path, format!("tensor `{name}` comes twice")));
                        }
                    }
                    Place::Positions => positions.push(source),
                }
            }
        }
        for (path, file) in opened {
            match &file {
                Tensors::Safe(safe) => self.metadata.extend(safe.metadata().clone()),
                Tensors::Torch(torch) => {
                    if let Some(section) = torch.section() {
                        self.notes
                            .push(format!("{}: the tensors under `{section}`", path.display()));
                    }
                }
            }
            self.paths.push(path);
            self.files.push(file);
        }
        for (ours, parts) in rows {
            self.stack(path, ours, parts)?;
        }
        for (file, name) in positions {
            let side = self.check_positions(file, &name)?;
            self.grid_side = self.grid_side.or(side);
        }
        Ok(())
    }

    fn bad(&self, path: &Path, reason: String) -> ModelError {
        ModelError::BadFile { path: path.to_owned(), reason }
    }

    fn insert(
        &mut self,
        ours: String,
        path: &Path,
        file: &Tensors,
        parts: Vec<(usize, String)>,
    ) -> Result<(), ModelError> {
        let Some((_, name)) = parts.first() else { return Ok(()) };
        let view = file.tensor(name).map_err(TensorError::from)?;
        let entry = Entry { shape: view.shape.to_vec(), dtype: view.dtype, parts: Vec::new() };
        if self.entries.contains_key(&ours) {
            return Err(self.bad(
                path,
                format!("tensor `{ours}` is there twice, or is also in a file before"),
            ));
        }
        self.entries.insert(ours, Entry { parts, ..entry });
        Ok(())
    }

    /// Queries, keys and values become one tensor.
    fn stack(
        &mut self,
        path: &Path,
        ours: String,
        parts: [Option<(usize, String)>; 3],
    ) -> Result<(), ModelError> {
        let [Some(q), Some(k), Some(v)] = parts else {
            return Err(self.bad(path, format!("`{ours}` would need q_proj, k_proj and v_proj")));
        };
        let parts = vec![q, k, v];
        let mut shape: Option<(Vec<usize>, Dtype)> = None;
        for (file, name) in &parts {
            let Some(file) = self.files.get(*file) else { continue };
            let view = file.tensor(name).map_err(TensorError::from)?;
            let found = (view.shape.to_vec(), view.dtype);
            if view.shape.len() != 2 || shape.get_or_insert_with(|| found.clone()) != &found {
                let reason = format!(
                    "tensor `{name}`: {:?} {} beside another shape or type in its block",
                    view.shape, view.dtype
                );
                return Err(self.bad(path, reason));
            }
        }
        let Some((mut shape, dtype)) = shape else { return Ok(()) };
        if let Some(rows) = shape.first_mut() {
            *rows *= parts.len();
        }
        if self.entries.insert(ours.clone(), Entry { shape, dtype, parts }).is_some() {
            return Err(self.bad(path, format!("tensor `{ours}` is there twice")));
        }
        Ok(())
    }

    /// Stored positions must be the ones that are computed here, since they are not kept. Returns the patches on a side.
    fn check_positions(&self, file: usize, name: &str) -> Result<Option<usize>, ModelError> {
        let Some(file) = self.files.get(file) else { return Ok(None) };
        let view = file.tensor(name).map_err(TensorError::from)?;
        let square = match *view.shape {
            [1, tokens, dim] if dim.is_multiple_of(4) && dim > 0 => {
                Some((tokens.isqrt(), dim)).filter(|(side, _)| side * side == tokens)
            }
            _ => None,
        };
        let Some((side, dim)) = square else {
            let expected = "expected [1, tokens, dim], the positions of a square grid";
            let reason = format!("tensor `{name}`: {expected}, found {:?}", view.shape);
            return Err(self.bad(file.path(), reason));
        };
        let found = view.to_f32().map_err(TensorError::from)?;
        let pairs = found.iter().zip(sin_cos_2d(side, side, dim));
        // Half-precision types have 8 or 11 bits. A comparison with NaN is false.
        let allowed = if view.dtype.bitsize() < 32 { 1e-2 } else { 1e-3 };
        let mut off = pairs.map(|(found, expected)| (found - expected).abs());
        match off.find(|&off| !matches!(off.partial_cmp(&allowed), Some(Ordering::Less))) {
            None => Ok(Some(side)),
            Some(off) => Err(self.bad(
                file.path(),
                format!(
                    "tensor `{name}` is not the table of sin-cos positions (one is off by {off:.3}); \
                     learned positions are not supported"
                ),
            )),
        }
    }

    /// Finds the model's sizes.
    fn configure(&mut self) -> Result<(), ModelError> {
        if self.dir.join("config.json").is_file() && !self.l3m {
            self.ml_aim = Some(read_ml_aim_config(&self.dir)?);
        }
        if self.ml_aim.is_some() || self.dir.join("aim.json").is_file() {
            self.config = read_config(&self.dir)?;
            return Ok(());
        }
        let (config, note) = infer::infer(self)?;
        self.config = config;
        self.notes.push(note);
        Ok(())
    }

    /// Patches on a side of the images that stored positions are for, where positions are stored (ml-l3m).
    pub(super) fn grid_side(&self) -> Option<usize> {
        self.grid_side
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of the first file, where configurations are looked for.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The files that were opened, shards included.
    pub fn files(&self) -> &[PathBuf] {
        &self.paths
    }

    /// The model's sizes: from `aim.json`, else `config.json`, else the shapes.
    pub fn config(&self) -> &AimConfig {
        &self.config
    }

    /// What a user should know about how this was read, a line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether these are weights of ml-l3m.
    pub fn is_l3m(&self) -> bool {
        self.l3m
    }

    /// The strings in the headers of safetensors.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Whether a tensor of this name is there.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Classes of the probe's head, if there is one.
    pub fn num_classes(&self) -> Option<usize> {
        self.shape("head.linear.weight")?.first().copied()
    }

    /// The blocks whose mean the probe's head was trained on: from `config.json`, else from the metadata that `probe`
    /// writes (`layers`), else from a released head's file name, else none.
    pub fn probe_layers(&self) -> Option<Vec<usize>> {
        let stated = self.ml_aim.as_ref().and_then(|config| config.probe_layers.clone());
        let written = || {
            let layers = self.metadata.get("layers")?.trim_matches(['[', ']']);
            let layers = layers.split(',').map(|layer| layer.trim().parse().ok());
            layers.collect::<Option<Vec<usize>>>()
        };
        let by_name =
            || self.paths.iter().find_map(|path| released::probe_layers(path, &self.config));
        let layers = stated.or_else(written).or_else(by_name)?;
        let fits = !layers.is_empty() && layers.iter().all(|&layer| layer < self.config.num_blocks);
        fits.then_some(layers)
    }

    fn entry(&self, name: &str) -> Result<&Entry, IoError> {
        self.entries.get(name).ok_or_else(|| IoError::MissingTensor {
            path: self.path.clone(),
            name: name.to_owned(),
            count: self.entries.len(),
            closest: None,
        })
    }
}

impl TensorSource for Checkpoint {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.names())
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    fn dtype(&self, name: &str) -> Option<Dtype> {
        self.entries.get(name).map(|entry| entry.dtype)
    }

    fn metadata_value(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    fn to_i64(&self, name: &str) -> Result<Vec<i64>, IoError> {
        let mut values = Vec::new();
        for (file, part) in &self.entry(name)?.parts {
            if let Some(file) = self.files.get(*file) {
                values.extend(file.tensor(part)?.to_i64()?);
            }
        }
        Ok(values)
    }

    fn copy_to_f32(&self, name: &str, destination: &mut [f32]) -> Result<(), IoError> {
        let entry = self.entry(name)?;
        // Parts are of one shape, each below the other. A destination of another length is refused by the view.
        let piece = destination.len() / entry.parts.len().max(1);
        let (mut rest, mut left) = (destination, entry.parts.len());
        for (file, part) in &entry.parts {
            left -= 1;
            let (here, after) = rest.split_at_mut(if left == 0 { rest.len() } else { piece });
            rest = after;
            if let Some(file) = self.files.get(*file) {
                file.tensor(part)?.copy_to_f32(here)?;
            }
        }
        Ok(())
    }
}

/// The files behind one path.
fn open_files(path: &Path) -> Result<Vec<(PathBuf, Tensors)>, ModelError> {
    let open = |path: PathBuf| {
        let file = Tensors::open(&path).map_err(TensorError::from)?;
        Ok::<_, ModelError>((path, file))
    };
    if !path.is_dir() {
        return Ok(vec![open(path.to_owned())?]);
    }
    for single in ["model.safetensors", BIN] {
        // An index beside a single file is not looked at, as everywhere.
        if path.join(single).exists() {
            return Ok(vec![open(path.join(single))?]);
        }
    }
    if path.join("model.safetensors.index.json").exists() {
        let files = SafeTensors::open(path).map_err(TensorError::from)?;
        let paths = files.files().next().map_or_else(|| path.to_owned(), Path::to_owned);
        return Ok(vec![(paths, Tensors::Safe(files))]);
    }
    if path.join(format!("{BIN}.index.json")).exists() {
        return Ok(aim_tensor::io::torch::open_sharded(path, "pytorch_model")
            .map_err(TensorError::from)?
            .into_iter()
            .map(|file| (file.path().to_owned(), Tensors::Torch(file)))
            .collect());
    }
    Err(ModelError::BadFile {
        path: path.to_owned(),
        reason: format!(
            "expected model.safetensors or {BIN} in it, or the index of either, found none"
        ),
    })
}
