//! [`RemoteShard`]: the bytes of a remote shard, anywhere in it, on any thread.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::client::Client;
use super::location::Location;
use super::store::{self, Object};
use super::{RemoteError, RemoteErrorKind, RemoteOptions, index};
use crate::error::{Error, Result};
use crate::source::glob;
use crate::source::img2dataset::{self, Found};
use crate::source::read_exact_at;
use crate::source::tar_index::TarIndex;

/// Most shards indexed side by side.
const PARALLEL_INDEX: u64 = 4;

/// A shard in an object store or on a web server.
#[derive(Debug, Clone)]
pub(crate) struct RemoteShard {
    client: Arc<Client>,
    object: Arc<Object>,
    /// Its URL, for messages.
    path: PathBuf,
}

/// The shards that a pattern of URLs names, in order: braces are expanded without asking the
/// store, `*`, `?` and `[...]` and a `/` at the end (all `*.tar` under it) by listing.
pub(crate) fn open_pattern(pattern: &str, options: &RemoteOptions) -> Result<Vec<RemoteShard>> {
    let refuse = |reason| Error::Spec { spec: super::redacted(pattern), reason };
    let client = Client::shared(options)?;
    let mut shards = Vec::new();
    let mut exact: Option<(Location, Vec<String>)> = None;
    for url in glob::expand_braces(pattern).map_err(refuse)? {
        let mut location = Location::parse(&url).map_err(refuse)?;
        if location.key.ends_with('/') {
            location.key.push_str("*.tar");
        }
        let same = |other: &Location| {
            (other.scheme, &other.authority) == (location.scheme, &location.authority)
        };
        let wildcard = glob::has_wildcard(&location.key);
        if wildcard || exact.as_ref().is_some_and(|(other, _)| !same(other)) {
            look(&client, exact.take(), &mut shards)?;
        }
        if wildcard {
            let found = list(&client, location)?;
            if found.is_empty() {
                return Err(refuse(format!("no object matches {}", super::redacted(&url))));
            }
            shards.extend(found);
        } else {
            let key = location.key.clone();
            exact.get_or_insert_with(|| (location, Vec::new())).1.push(key);
        }
    }
    look(&client, exact, &mut shards)?;
    Ok(shards.into_iter().map(|object| RemoteShard::new(&client, object)).collect())
}

fn look(
    client: &Arc<Client>,
    keys: Option<(Location, Vec<String>)>,
    shards: &mut Vec<Object>,
) -> Result<(), RemoteError> {
    let Some((location, keys)) = keys else {
        return Ok(());
    };
    let store = client.store(&location)?;
    let url = location.with_key(&location.key);
    let found = store::look(store, location, keys, Arc::clone(&client.options));
    shards.extend(Client::wait(&url, found)?);
    Ok(())
}

fn list(client: &Arc<Client>, location: Location) -> Result<Vec<Object>, RemoteError> {
    let store = client.store(&location)?;
    let url = location.with_key(&location.key);
    let pattern = location.key.clone();
    let keep = move |key: &str| glob::matches_path(&pattern, key);
    Client::wait(&url, store::list(store, location, keep, Arc::clone(&client.options)))
}

impl RemoteShard {
    fn new(client: &Arc<Client>, object: Object) -> Self {
        let path = PathBuf::from(&object.url);
        Self { client: Arc::clone(client), object: Arc::new(object), path }
    }

    /// Its URL in the form of a path, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in the shard when it was opened.
    pub(crate) fn len(&self) -> u64 {
        self.object.size
    }

    /// Fills a buffer from `offset`.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let length = buffer.len() as u64;
        if offset.checked_add(length).is_none_or(|end| end > self.len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Client { windows, cache, options, .. } = &*self.client;
        if let Some(cache) = cache
            && let Some(file) = cache.file(&self.object, windows, length)?
        {
            return read_exact_at(&file, buffer, offset);
        }
        if !windows.suit(&self.object, offset, length) {
            let (object, options) = (Arc::clone(&self.object), Arc::clone(options));
            let range = offset..offset + length;
            let work = async move { object.read(range, &options).await };
            buffer.copy_from_slice(&Client::wait(&self.object.url, work)?);
            return Ok(());
        }
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let in_window = (windows.window() - at % windows.window()).min(rest.len() as u64);
            let (window, start) = windows.get(&self.object, at, in_window)?;
            let (now, later) = rest.split_at_mut(in_window as usize);
            let from = (at - start) as usize;
            let part = window.get(from..from + now.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            now.copy_from_slice(part);
            at += in_window;
            rest = later;
        }
        Ok(())
    }

    /// What `img2dataset` wrote about the shard into the object beside it. A failure is for people
    /// to read and stops nothing.
    fn statistics(&self) -> Found {
        let url = &self.object.url;
        let fail = |why: String| format!("the statistics of {url} cannot be read: {why}");
        let Some(stem) = url.strip_suffix(".tar") else { return Ok(None) };
        let location = Location::parse(&format!("{stem}_stats.json")).map_err(fail)?;
        let keys = Some((location.clone(), vec![location.key]));
        let mut objects = Vec::new();
        if let Err(error) = look(&self.client, keys, &mut objects) {
            return match error.kind {
                // S3 denies access to what is missing where listing is not allowed.
                RemoteErrorKind::Missing | RemoteErrorKind::Denied => Ok(None),
                _ => Err(fail(error.to_string())),
            };
        }
        let Some(object) = objects.pop() else { return Ok(None) };
        if object.size == 0 {
            return Err(fail("it is empty".into()));
        }
        if object.size > img2dataset::MAX_STATS {
            let most = img2dataset::MAX_STATS;
            return Err(fail(format!("{} bytes, at most {most} are accepted", object.size)));
        }
        let options = Arc::clone(&self.client.options);
        let work = async move { object.read(0..object.size, &options).await };
        let text = Client::wait(url, work).map_err(|error| fail(error.to_string()))?;
        img2dataset::parse_stats(&text).map(Some).map_err(fail)
    }

    /// The shard from its beginning, for going through it once.
    fn cursor(&self, cached: bool) -> Cursor<'_> {
        Cursor { shard: self, cached, position: 0, window: None }
    }
}

/// An index, and what `img2dataset` says about the shard.
type Described = (TarIndex, Found);

/// Indices of shards, from the folder of indices where they are, else by going through each shard.
/// Beside them a remark for people where they could not be kept.
pub(crate) fn index_all(
    shards: &[RemoteShard],
    choice: &str,
    build: impl Fn(&Path, Cursor<'_>, u64) -> Result<TarIndex> + Sync,
) -> Result<(Vec<Described>, Option<String>)> {
    let total = shards.iter().map(RemoteShard::len).fold(0, u64::saturating_add);
    let one = |shard: &RemoteShard| -> Result<(Described, Option<String>)> {
        let Client { options, cache, .. } = &*shard.client;
        let dir = options.index_dir.as_deref();
        if let Some((index, rows)) = dir.and_then(|dir| index::load(dir, &shard.object, choice)) {
            return Ok(((index, Ok(rows)), None));
        }
        // Fetched into the cache at once, unless it would be evicted before it is used.
        let cached = cache.as_ref().is_some_and(|cache| cache.fits(total));
        let index = build(shard.path(), shard.cursor(cached), shard.len())?;
        let found = shard.statistics();
        // A failure to get the statistics may be over next time, but is not worth another pass.
        let rows = found.as_ref().ok().and_then(Option::as_ref);
        let kept = dir.map(|dir| index::store(dir, &shard.object, choice, (&index, rows)));
        let remark = kept
            .and_then(Result::err)
            .map(|error| format!("the index of {} could not be kept: {error}", shard.object.url));
        Ok(((index, found), remark))
    };
    let side_by_side = shards.first().map_or(1, |shard| {
        // Each holds the window it is in and those ahead of it.
        let Client { options, windows, .. } = &*shard.client;
        (options.memory_bytes / windows.window() / 4).clamp(1, PARALLEL_INDEX)
    });
    let mut indices = Vec::with_capacity(shards.len());
    let mut remark = None;
    for group in shards.chunks(side_by_side as usize) {
        let done: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> = group.iter().map(|shard| scope.spawn(|| one(shard))).collect();
            running.into_iter().map(|thread| thread.join()).collect()
        });
        for outcome in done {
            let panicked = |_| Error::WorkerPanic { message: "while a shard was indexed".into() };
            let (index, note) = outcome.map_err(panicked)??;
            indices.push(index);
            remark = remark.or(note);
        }
    }
    Ok((indices, remark))
}

/// A place in a shard that moves forward.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    shard: &'a RemoteShard,
    cached: bool,
    position: u64,
    /// The window that the position is in, and where it starts.
    window: Option<(Arc<Vec<u8>>, u64)>,
}

impl Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let RemoteShard { client, object, .. } = self.shard;
        let left = object.size.saturating_sub(self.position);
        let count = (buffer.len() as u64).min(left) as usize;
        if count == 0 {
            return Ok(0);
        }
        if self.cached
            && let Some(cache) = &client.cache
            && let Some(file) = cache.file(object, &client.windows, 0)?
        {
            read_exact_at(&file, &mut buffer[..count], self.position)?;
            self.position += count as u64;
            return Ok(count);
        }
        let inside = |(window, start): &(Arc<Vec<u8>>, u64)| {
            (*start..*start + window.len() as u64).contains(&self.position)
        };
        // Held until it has been gone through: others may evict it meanwhile.
        if !self.window.as_ref().is_some_and(inside) {
            // Going through a shard uses all of a window, whatever is passed over in it.
            let windows = &client.windows;
            self.window = Some(windows.get(object, self.position, windows.window())?);
        }
        let held = self.window.as_ref();
        let part = held.and_then(|(window, start)| window.get((self.position - start) as usize..));
        let part = part.unwrap_or_default();
        let count = count.min(part.len());
        buffer[..count].copy_from_slice(&part[..count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Cursor<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, by) = match to {
            SeekFrom::Start(at) => (at, 0),
            SeekFrom::Current(by) => (self.position, by),
            SeekFrom::End(by) => (self.shard.len(), by),
        };
        let to = base.checked_add_signed(by).ok_or(io::ErrorKind::InvalidInput)?;
        self.position = to;
        Ok(to)
    }
}
