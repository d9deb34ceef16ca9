//! [`Concat`]: several sources of one kind as one, for patterns that name more than one folder.

use crate::error::{Defect, Error, Result};
use crate::source::{Fingerprint, Sample, SampleFormat, Source};

/// Sources one after the other. Their classes must be the same, so that labels mean the same.
pub struct Concat {
    parts: Vec<(String, Box<dyn Source>)>,
    /// First sample of each part.
    starts: Vec<u64>,
    /// First sample of each shard of each part.
    shard_starts: Option<Vec<u64>>,
    len: u64,
    num_classes: Option<u32>,
    fingerprint: String,
    notes: Vec<String>,
}

impl Concat {
    /// Joins named sources; a sample's key is `NAME/KEY`. Their shards follow each other, a source
    /// without shards among others with them counts as one, and the narrowest of their shuffle
    /// windows holds for all.
    ///
    /// # Errors
    /// [`Error::Config`] for sources with other classes or another format than the first.
    pub fn new(parts: Vec<(String, Box<dyn Source>)>) -> Result<Self> {
        let Some((first_name, first)) = parts.first() else {
            return Err(Error::Config("no sources to join".into()));
        };
        let mut fingerprint = Fingerprint::new("concat");
        let (mut starts, mut len, mut notes) = (Vec::new(), 0, Vec::new());
        for (name, part) in &parts {
            if part.class_names() != first.class_names() {
                return Err(Error::Config(format!(
                    "{name} has other classes than {first_name}, so that labels would not mean the \
                     same; give them as sources of a mixture, each with its own --data"
                )));
            }
            if part.format() != first.format() {
                let text = format!("{name} and {first_name} hold images of different formats");
                return Err(Error::Config(text));
            }
            starts.push(len);
            len += part.len();
            fingerprint.add(name.as_bytes(), part.len());
            fingerprint.add(part.fingerprint().as_bytes(), 0);
            notes.extend(part.notes().iter().map(|note| format!("{name}: {note}")));
        }
        let num_classes = parts.iter().filter_map(|(_, part)| part.num_classes()).max();
        let fingerprint = fingerprint.finish();
        let shard_starts = shard_starts(&parts, &starts);
        Ok(Self { parts, starts, shard_starts, len, num_classes, fingerprint, notes })
    }

    /// Name and source of a sample, and its index there; past the end, an index past its end.
    fn part(&self, index: u64) -> (&str, &dyn Source, u64) {
        let at = self.starts.partition_point(|&start| start <= index).saturating_sub(1);
        let (name, part) = &self.parts[at];
        (name, &**part, index - self.starts[at])
    }

    /// A defect's index counts in the whole.
    fn whole<T>(&self, index: u64, result: Result<T, Defect>) -> Result<T, Defect> {
        result.map_err(|defect| Defect { index, key: self.key(index), ..defect })
    }
}

/// Where the shards of all parts begin; `None` where no part has any.
fn shard_starts(parts: &[(String, Box<dyn Source>)], starts: &[u64]) -> Option<Vec<u64>> {
    parts.iter().any(|(_, part)| part.shard_starts().is_some()).then(|| {
        let of_part = |((_, part), &first): (&(String, Box<dyn Source>), &u64)| {
            let within = part.shard_starts().unwrap_or(&[0]);
            within.iter().map(|start| first + start).collect::<Vec<_>>()
        };
        parts.iter().zip(starts).flat_map(of_part).collect()
    })
}

impl Source for Concat {
    fn len(&self) -> u64 {
        self.len
    }

    fn format(&self) -> SampleFormat {
        self.parts[0].1.format()
    }

    fn read(&self, index: u64, epoch: u64) -> Result<Sample, Defect> {
        let (_, part, at) = self.part(index);
        self.whole(index, part.read(at, epoch))
    }

    fn key(&self, index: u64) -> String {
        let (name, part, at) = self.part(index);
        format!("{name}/{}", part.key(at))
    }

    fn text(&self, index: u64) -> Result<Option<String>, Defect> {
        let (_, part, at) = self.part(index);
        self.whole(index, part.text(at))
    }

    fn metadata(&self, index: u64) -> Result<Option<String>, Defect> {
        let (_, part, at) = self.part(index);
        self.whole(index, part.metadata(at))
    }

    fn location(&self, index: u64) -> String {
        let (_, part, at) = self.part(index);
        part.location(at)
    }

    fn label(&self, index: u64) -> Option<u32> {
        let (_, part, at) = self.part(index);
        part.label(at)
    }

    fn num_classes(&self) -> Option<u32> {
        self.num_classes
    }

    fn class_names(&self) -> Option<&[String]> {
        self.parts[0].1.class_names()
    }

    fn shard_starts(&self) -> Option<&[u64]> {
        self.shard_starts.as_deref()
    }

    /// The narrowest, since all shards of a window may belong to the part that asks for it.
    fn shuffle_window(&self) -> Option<usize> {
        self.parts.iter().filter_map(|(_, part)| part.shuffle_window()).min()
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Payload, SyntheticSource};

    /// Empty samples in shards, to be read in windows of them.
    struct Sharded(Vec<u64>, u64, Option<usize>);

    impl Source for Sharded {
        fn len(&self) -> u64 {
            self.1
        }
        fn format(&self) -> SampleFormat {
            SampleFormat::Image
        }
        fn read(&self, _: u64, _: u64) -> Result<Sample, Defect> {
            Ok(Sample { payload: Payload::Encoded(Vec::new()), label: None })
        }
        fn key(&self, index: u64) -> String {
            index.to_string()
        }
        fn location(&self, index: u64) -> String {
            index.to_string()
        }
        fn label(&self, _: u64) -> Option<u32> {
            None
        }
        fn num_classes(&self) -> Option<u32> {
            None
        }
        fn shard_starts(&self) -> Option<&[u64]> {
            Some(&self.0)
        }
        fn shuffle_window(&self) -> Option<usize> {
            self.2
        }
        fn fingerprint(&self) -> &str {
            "sharded"
        }
    }

    fn join(parts: Vec<Box<dyn Source>>) -> Concat {
        let name = |(at, part)| (format!("part{at}"), part);
        Concat::new(parts.into_iter().enumerate().map(name).collect()).unwrap()
    }

    #[test]
    fn shards_of_all_parts_follow_each_other_and_the_narrowest_window_holds() {
        let plain = || -> Box<dyn Source> {
            Box::new(SyntheticSource::parse("stripes,n=5", (4, 4)).unwrap())
        };
        let joined = join(vec![
            Box::new(Sharded(vec![0, 3, 3], 7, Some(9))),
            plain(),
            Box::new(Sharded(vec![0, 2], 4, Some(2))),
            Box::new(Sharded(vec![0], 1, None)),
        ]);
        assert_eq!(joined.shard_starts(), Some(&[0, 3, 3, 7, 12, 14, 16][..]));
        assert_eq!((joined.len(), joined.shuffle_window()), (17, Some(2)));
        let joined = join(vec![plain(), plain()]);
        assert_eq!((joined.shard_starts(), joined.shuffle_window()), (None, None));
    }

    /// An epoch over joined sources uses a window of shards up before it turns to the next.
    #[test]
    fn the_order_keeps_to_windows_across_parts() {
        let part = || -> Box<dyn Source> {
            Box::new(Sharded((0..6).map(|shard| shard * 10).collect(), 60, Some(2)))
        };
        let joined: std::sync::Arc<dyn Source> = std::sync::Arc::new(join(vec![part(), part()]));
        let mixture = crate::sampler::Mixture::single(joined).unwrap();
        let order: Vec<u64> = (0..120).map(|i| mixture.draw(3, i).index).collect();
        let mut seen = Vec::new();
        for window in order.chunks(20) {
            let mut shards: Vec<u64> = window.iter().map(|index| index / 10).collect();
            assert!(!shards.is_sorted(), "shuffled");
            shards.sort_unstable();
            shards.dedup();
            assert_eq!(shards.len(), 2);
            seen.extend(shards);
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..12).collect::<Vec<_>>());
    }
}
