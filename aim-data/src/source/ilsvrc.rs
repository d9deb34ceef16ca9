//! [`Ilsvrc`]: ImageNet (ILSVRC 2012) as it is downloaded.
//!
//! `ILSVRC2012_img_train.tar` holds one tar per class, `ILSVRC2012_img_val.tar` the validation
//! images side by side, `ILSVRC2012_devkit_t12.tar.gz` what they show. All are read where they lie;
//! nothing is unpacked.

mod labels;

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::decode::DecodeLimits;
use crate::error::{Defect, Error, Result, ShardProblem};
use crate::source::tar_index::{Member, Scanner, split_name};
use crate::source::{
    Fingerprint, ImageFolder, Payload, Sample, SampleFormat, Source, check_encoded_size,
    is_image_extension, open_regular, read_exact_at, unreadable,
};

pub(crate) use labels::Classes;
use labels::{Devkit, Truth, is_wnid};

const TRAIN: &str = "ILSVRC2012_img_train.tar";
const VAL: &str = "ILSVRC2012_img_val.tar";

/// Images of one split of ImageNet, out of its tar files or a folder.
#[derive(Debug)]
pub struct Ilsvrc {
    place: Place,
    entries: Vec<Entry>,
    /// The keys of all samples, one after the other.
    keys: String,
    class_names: Vec<String>,
    fingerprint: String,
    notes: Vec<String>,
    limits: DecodeLimits,
}

/// Where the images are.
#[derive(Debug)]
enum Place {
    Tar { path: PathBuf, file: File },
    Folder(PathBuf),
}

#[derive(Debug)]
struct Entry {
    /// In the tar file; 0 in a folder.
    offset: u64,
    size: u64,
    label: u32,
    /// Where its key ends in `keys`.
    key_end: u64,
    extension: Box<str>,
}

/// Opens a split of ImageNet: `train` or `val` of a folder that holds its downloads, or one of the
/// two tar files with the devkit beside it.
///
/// In the folder are looked for, in this order: `ILSVRC2012_img_{train,val}.tar`; `train/`, `val/`
/// (also `ILSVRC/Data/CLS-LOC/…`, as Kaggle ships them) with one folder per class; `val/` with the
/// images side by side. Validation labels come from the devkit (`ILSVRC2012_devkit_t12.tar.gz`, or
/// unpacked, or its `meta.mat` and ground truth alone) or from Kaggle's `LOC_synset_mapping.txt`
/// and `LOC_val_solution.csv`.
///
/// # Errors
/// [`Error::Empty`] naming what was looked for, or when nothing says what the images show;
/// [`Error::Format`] and [`Error::Shard`] for files that do not follow their format. Single images
/// without a label are passed over and counted in the notes.
pub fn open_ilsvrc(
    path: &Path,
    split: Option<&str>,
    limits: DecodeLimits,
) -> Result<Box<dyn Source>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let split = match split {
        Some(split @ ("train" | "val")) => split,
        None if name.contains("val") && path.is_file() => "val",
        None => "train",
        Some(other) => {
            let reason = format!("split `{other}`: expected train or val");
            return Err(Error::Spec { spec: format!("ilsvrc:{}", path.display()), reason });
        }
    };
    let folder = if path.is_file() { path.parent().unwrap_or(Path::new("")) } else { path };
    let devkit = Devkit::find(folder)?;
    let tar = if path.is_file() {
        Some(path.to_owned())
    } else {
        Some(folder.join(if split == "train" { TRAIN } else { VAL })).filter(|tar| tar.is_file())
    };
    if let Some(tar) = tar {
        let source = match split {
            "train" => Ilsvrc::train(&tar, devkit.classes, limits)?,
            _ => Ilsvrc::val(Found::Tar(tar), folder, devkit, limits)?,
        };
        return Ok(Box::new(source));
    }
    let images = [folder.join(split), folder.join("ILSVRC/Data/CLS-LOC").join(split)];
    match images.into_iter().find(|images| images.is_dir()) {
        Some(images) if has_class_folders(&images)? => {
            Ok(Box::new(ImageFolder::open(images, limits)?))
        }
        Some(images) if split == "val" => {
            Ok(Box::new(Ilsvrc::val(Found::Folder(images), folder, devkit, limits)?))
        }
        _ => Err(Error::Empty {
            location: folder.display().to_string(),
            reason: format!(
                "looked for {}, {split}/ and ILSVRC/Data/CLS-LOC/{split}/",
                if split == "train" { TRAIN } else { VAL }
            ),
        }),
    }
}

fn has_class_folders(images: &Path) -> Result<bool> {
    let entries = std::fs::read_dir(images).map_err(Error::io("list", images))?;
    let mut entries = entries.filter_map(Result::ok);
    Ok(entries.any(|entry| is_wnid(&entry.file_name().to_string_lossy()) && entry.path().is_dir()))
}

/// Where validation images were found.
enum Found {
    Tar(PathBuf),
    Folder(PathBuf),
}

impl Ilsvrc {
    fn new(place: Place, class_names: Vec<String>, limits: DecodeLimits) -> Self {
        let (entries, keys, fingerprint, notes) = Default::default();
        Self { place, entries, keys, class_names, fingerprint, notes, limits }
    }

    /// The training images: a tar of tars named after their class.
    fn train(path: &Path, classes: Option<Classes>, limits: DecodeLimits) -> Result<Self> {
        let inner = class_archives(path)?;
        let mut notes = Vec::new();
        let classes = match classes {
            Some(classes) => classes,
            None => {
                notes.push(format!(
                    "no devkit beside {}: the {} classes in it are numbered by their sorted ids",
                    path.display(),
                    inner.len()
                ));
                let pairs = inner.iter().map(|(id, _)| (id.clone(), id.clone(), None)).collect();
                let offset = 0;
                Classes::new(pairs).map_err(|reason| Error::Format {
                    path: path.to_owned(),
                    offset,
                    reason,
                })?
            }
        };
        let (file, _) = open_regular(path)?;
        let place = Place::Tar { path: path.to_owned(), file };
        let mut this = Self::new(place, classes.names(), limits);
        this.notes = notes;
        let (mut others, mut filled) = (0, 0);
        for (id, member) in &inner {
            let label = classes.index(id).ok_or_else(|| Error::Format {
                path: path.to_owned(),
                offset: member.header,
                reason: format!("{id} is no class of the devkit beside it"),
            })?;
            let (file, _) = open_regular(path)?;
            let before = this.entries.len();
            let mut images = Scanner::within(path, file, member.data, member.size)?;
            while let Some(image) = images.next_member()? {
                others += u64::from(!this.add(&image, member.data, Some(label), id));
            }
            filled += usize::from(this.entries.len() > before);
        }
        if filled < classes.ids.len() {
            let all = classes.ids.len();
            this.notes.push(format!("{} of {all} classes have no image", all - filled));
        }
        this.finish("ilsvrc train", others)
    }

    /// The validation images, in a tar or a folder, sorted by name.
    fn val(found: Found, folder: &Path, devkit: Devkit, limits: DecodeLimits) -> Result<Self> {
        let (Some(classes), Some(truth)) = (devkit.classes, devkit.truth) else {
            return Err(Error::Empty {
                location: folder.display().to_string(),
                reason: "there are validation images, but nothing says what they show: put \
                         ILSVRC2012_devkit_t12.tar.gz beside them, or LOC_synset_mapping.txt and \
                         LOC_val_solution.csv"
                    .into(),
            });
        };
        let (place, members) = match found {
            Found::Tar(path) => {
                let (file, length) = open_regular(&path)?;
                let mut members = Vec::new();
                let mut scanner = Scanner::within(&path, open_regular(&path)?.0, 0, length)?;
                while let Some(member) = scanner.next_member()? {
                    members.push(member);
                }
                (Place::Tar { path, file }, members)
            }
            Found::Folder(path) => {
                let members = list_folder(&path)?;
                (Place::Folder(path), members)
            }
        };
        let mut this = Self::new(place, classes.names(), limits);
        let mut members = members;
        members.sort_by(|a, b| a.name.cmp(&b.name));
        let mut others = 0;
        for member in &members {
            let label = split_name(&member.name).and_then(|(key, _)| label_of(&truth, key));
            others += u64::from(!this.add(member, 0, label, ""));
        }
        this.finish("ilsvrc val", others)
    }

    /// Adds a member of an archive that starts at `base`; answers whether it is a labelled image.
    fn add(&mut self, member: &Member, base: u64, label: Option<u32>, class: &str) -> bool {
        let (Some((key, extension)), Some(label)) = (split_name(&member.name), label) else {
            return false;
        };
        if !is_image_extension(&extension) {
            return false;
        }
        if !class.is_empty() {
            self.keys.push_str(class);
            self.keys.push('/');
        }
        self.keys.push_str(key);
        let (key_end, offset) = (self.keys.len() as u64, base + member.data);
        let extension = member.name[key.len() + 1..].into();
        self.entries.push(Entry { offset, size: member.size, label, key_end, extension });
        true
    }

    fn finish(mut self, kind: &str, others: u64) -> Result<Self> {
        if others > 0 {
            self.notes.push(format!("{others} members are no images with a label, passed over"));
        }
        if self.entries.is_empty() {
            let reason = format!("{others} members, none an image with a label");
            return Err(Error::Empty { location: self.where_is(), reason });
        }
        let mut fingerprint = Fingerprint::new(kind);
        for (index, entry) in (0..).zip(&self.entries) {
            fingerprint.add(self.key_of(index).as_bytes(), entry.size);
        }
        self.fingerprint = fingerprint.finish();
        Ok(self)
    }

    fn where_is(&self) -> String {
        match &self.place {
            Place::Tar { path, .. } | Place::Folder(path) => path.display().to_string(),
        }
    }

    fn entry(&self, index: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(index).ok()?)
    }

    fn key_of(&self, index: u64) -> &str {
        let end = |index: u64| self.entry(index).map_or(0, |entry| entry.key_end as usize);
        let start = if index == 0 { 0 } else { end(index - 1) };
        self.keys.get(start..end(index)).unwrap_or_default()
    }
}

fn label_of(truth: &Truth, key: &str) -> Option<u32> {
    truth.label(key.rsplit('/').next().unwrap_or(key))
}

/// The tars in the training tar, by class.
fn class_archives(path: &Path) -> Result<Vec<(String, Member)>> {
    let (file, length) = open_regular(path)?;
    let mut scanner = Scanner::within(path, file, 0, length)?;
    let mut inner = Vec::new();
    while let Some(member) = scanner.next_member()? {
        let base = member.name.rsplit('/').next().unwrap_or_default();
        match base.strip_suffix(".tar").filter(|id| is_wnid(id)) {
            Some(id) => inner.push((id.to_owned(), member)),
            None => {
                let text = "expected a tar named after a WordNet id, such as n01440764.tar; use \
                            `wds:` for other tar files";
                let problem = ShardProblem::BadHeader(text.into());
                return Err(scanner.problem(member.header, &member.name, problem));
            }
        }
    }
    inner.sort_by(|a, b| a.0.cmp(&b.0));
    if let Some(pair) = inner.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let problem = ShardProblem::Duplicate(format!("a second tar of {}", pair[1].0));
        return Err(scanner.problem(pair[1].1.header, &pair[1].1.name, problem));
    }
    if inner.is_empty() {
        let reason = "the tar holds no class".to_owned();
        return Err(Error::Empty { location: path.display().to_string(), reason });
    }
    Ok(inner)
}

/// The regular files of a folder, as members of no archive.
fn list_folder(folder: &Path) -> Result<Vec<Member>> {
    let mut members = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        let kind = entry.file_type().map_err(Error::io("inspect", entry.path()))?;
        if let (true, Ok(name)) = (kind.is_file(), entry.file_name().into_string()) {
            let size = entry.metadata().map_err(Error::io("inspect", entry.path()))?.len();
            members.push(Member { name, header: 0, data: 0, size });
        }
    }
    Ok(members)
}

impl Source for Ilsvrc {
    fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    fn format(&self) -> SampleFormat {
        SampleFormat::Image
    }

    fn read(&self, index: u64, _epoch: u64) -> Result<Sample, Defect> {
        let fail = |(kind, reason)| self.defect(index, kind, reason);
        let Some(entry) = self.entry(index) else {
            return Err(self.out_of_range(index));
        };
        check_encoded_size(entry.size, &self.limits).map_err(fail)?;
        let mut bytes = vec![0; entry.size as usize];
        let read = match &self.place {
            Place::Tar { file, .. } => read_exact_at(file, &mut bytes, entry.offset),
            Place::Folder(folder) => {
                let name = format!("{}.{}", self.key_of(index), entry.extension);
                File::open(folder.join(name)).and_then(|file| read_exact_at(&file, &mut bytes, 0))
            }
        };
        read.map_err(|error| fail(unreadable(&error)))?;
        Ok(Sample { payload: Payload::Encoded(bytes), label: Some(entry.label) })
    }

    /// `n01440764/n01440764_10026`, or `ILSVRC2012_val_00000293`.
    fn key(&self, index: u64) -> String {
        self.key_of(index).to_owned()
    }

    fn location(&self, index: u64) -> String {
        match (self.entry(index), &self.place) {
            (None, _) => format!("{}, sample {index}", self.where_is()),
            (Some(entry), Place::Tar { path, .. }) => {
                let (key, Entry { extension, offset, .. }) = (self.key_of(index), entry);
                format!("{}, {key}.{extension} (data at byte {offset})", path.display())
            }
            (Some(entry), Place::Folder(folder)) => {
                let name = format!("{}.{}", self.key_of(index), entry.extension);
                folder.join(name).display().to_string()
            }
        }
    }

    fn label(&self, index: u64) -> Option<u32> {
        Some(self.entry(index)?.label)
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

    fn notes(&self) -> &[String] {
        &self.notes
    }
}

impl Classes {
    /// `n01440764 tench, Tinca tinca`, in the order of the class indices.
    fn names(&self) -> Vec<String> {
        let pairs = self.ids.iter().zip(&self.words);
        pairs
            .map(|(id, words)| if id == words { id.clone() } else { format!("{id} {words}") })
            .collect()
    }
}
