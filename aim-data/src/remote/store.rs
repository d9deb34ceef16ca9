//! Requests to a store: building its client, looking at objects, listing, reading ranges.

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    ClientConfigKey, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig,
};

use super::location::{Location, Scheme};
use super::retry::{Backoff, Failure, classify};
use super::{RemoteError, RemoteErrorKind, RemoteOptions};

/// Most objects looked at for one pattern.
const MAX_LISTED: usize = 2_000_000;
/// Objects looked at side by side.
const PARALLEL_HEADS: usize = 16;

/// An `ETag` as a header has it: Azure's listings leave out the quotes that its answers have.
fn quoted(tag: String) -> String {
    if tag.ends_with('"') { tag } else { format!("\"{tag}\"") }
}

/// An object as it was when it was first looked at.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) url: String,
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) path: Path,
    pub(super) size: u64,
    /// Its `ETag`, else when it was last changed; one of the two is compared with every answer.
    etag: Option<String>,
    modified: i64,
    /// 32 hexadecimal digits of a hash over URL, size and version: names its files.
    pub(super) name: Arc<str>,
}

impl Object {
    fn new(url: String, store: Arc<dyn ObjectStore>, meta: ObjectMeta) -> Self {
        let mut hash = blake3::Hasher::new();
        let (etag, modified) = (meta.e_tag.map(quoted), meta.last_modified.timestamp());
        for part in [&url, etag.as_ref().unwrap_or(&modified.to_string())] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        hash.update(&meta.size.to_le_bytes());
        let name = hash.finalize().to_hex()[..32].into();
        Self { url, store, path: meta.location, size: meta.size, etag, modified, name }
    }

    /// A number for the generator of pauses.
    fn seed(&self) -> u64 {
        crate::source::key_hash(&self.name)
    }

    fn error(&self, range: &Range<u64>, tries: u32, failure: Failure) -> RemoteError {
        let Failure { kind, reason } = failure;
        RemoteError { url: self.url.clone(), range: Some(range.clone()), tries, kind, reason }
    }

    /// Refuses an answer about another version of the object.
    fn same_version(&self, meta: &ObjectMeta) -> Result<(), Failure> {
        let found = match (&self.etag, meta.e_tag.clone().map(quoted)) {
            (Some(then), Some(now)) if *then != now => format!("its ETag was {then} and is {now}"),
            _ if meta.size != self.size => {
                format!("it had {} bytes and has {}", self.size, meta.size)
            }
            (None, _) if meta.last_modified.timestamp() != self.modified => {
                "it has been written since".to_owned()
            }
            _ => return Ok(()),
        };
        let reason = format!("the object has changed since it was indexed: {found}");
        Err(Failure::new(RemoteErrorKind::Changed, reason))
    }

    /// Reads a range that lies within the object, trying again as the options allow. What had
    /// arrived before a failure is kept.
    pub(super) async fn read(
        &self,
        range: Range<u64>,
        options: &RemoteOptions,
    ) -> Result<Vec<u8>, RemoteError> {
        let mut backoff = Backoff::new(options, self.seed(), range.start);
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        loop {
            // Some answers that no server should give make the client panic.
            let attempt = self.attempt(&range, options.stall_timeout, &mut bytes);
            let attempt = AssertUnwindSafe(attempt).catch_unwind().map(|outcome| {
                outcome.unwrap_or_else(|_| Err(Failure::temporary("an absurd answer")))
            });
            let failure = match tokio::time::timeout(backoff.left(), attempt).await {
                Ok(Ok(())) => return Ok(bytes),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::temporary(format!(
                    "{} of {} bytes had arrived after {:?} in all",
                    bytes.len(),
                    range.end - range.start,
                    options.total_timeout
                )),
            };
            // Whatever went wrong after the last byte, such as a length that promised more.
            if bytes.len() as u64 == range.end - range.start {
                return Ok(bytes);
            }
            match backoff.next_pause() {
                Some(pause) if failure.kind.is_temporary() => tokio::time::sleep(pause).await,
                _ => return Err(self.error(&range, backoff.tries, failure)),
            }
        }
    }

    /// One request for the part of `range` that is not in `bytes` yet.
    async fn attempt(
        &self,
        range: &Range<u64>,
        stall: Duration,
        bytes: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let length = (range.end - range.start) as usize;
        let wanted = range.start + bytes.len() as u64..range.end;
        // A weak tag may not be sent as a condition; the answer's is compared in any case.
        let strong = self.etag.clone().filter(|tag| !tag.starts_with("W/"));
        let request = GetOptions {
            range: Some(GetRange::Bounded(wanted.clone())),
            if_match: strong,
            ..GetOptions::default()
        };
        let silent = |_| Failure::temporary(format!("no answer for {stall:?}"));
        let answer = tokio::time::timeout(stall, self.store.get_opts(&self.path, request)).await;
        let answer = answer.map_err(silent)?.map_err(|error| classify(&error))?;
        self.same_version(&answer.meta)?;
        if answer.range != wanted {
            let reason = format!("bytes {wanted:?} were asked for, {:?} came", answer.range);
            return Err(Failure::temporary(reason));
        }
        let mut body = answer.into_stream();
        while let Some(part) = tokio::time::timeout(stall, body.next()).await.map_err(silent)? {
            let part = part.map_err(|error| classify(&error))?;
            if part.len() > length - bytes.len() {
                bytes.clear();
                return Err(Failure::temporary("more bytes came than were asked for"));
            }
            bytes.extend_from_slice(&part);
        }
        if bytes.len() < length {
            let reason = format!("the answer ended after {} of {length} bytes", bytes.len());
            return Err(Failure::temporary(reason));
        }
        Ok(())
    }
}

/// The client of a store, from the environment with the options' settings over it.
pub(super) fn connect(
    location: &Location,
    options: &RemoteOptions,
) -> Result<Arc<dyn ObjectStore>, RemoteError> {
    let fail = |error: object_store::Error| {
        let Failure { reason, .. } = classify(&error);
        let kind = RemoteErrorKind::Misconfigured;
        RemoteError { url: location.with_key(""), range: None, tries: 0, kind, reason }
    };
    // Tries are counted here, so that messages can name them.
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let limits = [
        (ClientConfigKey::ConnectTimeout, options.connect_timeout),
        // Longer than our own, which says more.
        (ClientConfigKey::Timeout, options.total_timeout.saturating_add(Duration::from_secs(5))),
    ]
    .map(|(key, time)| (key, format!("{}ms", time.as_millis().max(1))));
    // The same steps for each of the builders, which share no trait.
    macro_rules! build {
        ($builder:expr, $client_key:path) => {{
            let mut builder = $builder;
            for (key, value) in limits {
                builder = builder.with_config($client_key(key), value);
            }
            for (name, value) in &options.settings {
                // Settings for other kinds of store are none for this one.
                if let Ok(key) = name.parse() {
                    builder = builder.with_config(key, value);
                }
            }
            Ok(Arc::new(builder.with_retry(retry).build().map_err(fail)?))
        }};
    }
    use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
    use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
    use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
    use object_store::http::HttpBuilder;
    let bucket = location.authority.as_str();
    match location.scheme {
        Scheme::S3 => {
            build!(AmazonS3Builder::from_env().with_bucket_name(bucket), AmazonS3ConfigKey::Client)
        }
        Scheme::Gs => build!(
            GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket),
            GoogleConfigKey::Client
        ),
        Scheme::Az => build!(
            MicrosoftAzureBuilder::from_env().with_container_name(bucket),
            AzureConfigKey::Client
        ),
        Scheme::Https | Scheme::Http => {
            let url = location.with_key("");
            let http = if location.scheme == Scheme::Http { "true" } else { "false" };
            let builder = HttpBuilder::new().with_url(url);
            build!(builder.with_config(ClientConfigKey::AllowHttp, http), std::convert::identity)
        }
    }
}

/// The path of a key in a store.
fn path(location: &Location, key: &str) -> Result<Path, RemoteError> {
    let path = match location.scheme {
        Scheme::Https | Scheme::Http => Path::from_url_path(key),
        _ => Path::parse(key),
    };
    path.map_err(|error| RemoteError {
        url: location.with_key(key),
        range: None,
        tries: 0,
        kind: RemoteErrorKind::Misconfigured,
        reason: error.to_string(),
    })
}

/// Does something about an object as a whole, trying again as the options allow.
async fn with_tries<T, F>(
    url: &str,
    options: &RemoteOptions,
    mut attempt: impl FnMut() -> F,
) -> Result<T, RemoteError>
where
    F: Future<Output = Result<T, Failure>>,
{
    let mut backoff = Backoff::new(options, crate::source::key_hash(url), u64::MAX);
    loop {
        let failure = match tokio::time::timeout(backoff.left(), attempt()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(failure)) => failure,
            Err(_) => Failure::temporary(format!("no end after {:?}", options.total_timeout)),
        };
        match backoff.next_pause() {
            Some(pause) if failure.kind.is_temporary() => tokio::time::sleep(pause).await,
            _ => {
                let (url, tries) = (url.to_owned(), backoff.tries);
                let Failure { kind, reason } = failure;
                return Err(RemoteError { url, range: None, tries, kind, reason });
            }
        }
    }
}

/// Looks at objects by key, several side by side, and returns them in the order given.
pub(super) async fn look(
    store: Arc<dyn ObjectStore>,
    location: Location,
    keys: Vec<String>,
    options: Arc<RemoteOptions>,
) -> Result<Vec<Object>, RemoteError> {
    let location = Arc::new(location);
    let one = move |key: String| {
        let (store, location, options) =
            (Arc::clone(&store), Arc::clone(&location), Arc::clone(&options));
        async move {
            let (url, path) = (location.with_key(&key), path(&location, &key)?);
            let meta = with_tries(&url, &options, || head(&store, &path, options.stall_timeout));
            let meta = meta.await?;
            Ok(Object::new(url, store, meta))
        }
    };
    futures_util::stream::iter(keys).map(one).buffered(PARALLEL_HEADS).try_collect().await
}

async fn head(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    stall: Duration,
) -> Result<ObjectMeta, Failure> {
    let silent = |_| Failure::temporary(format!("no answer for {stall:?}"));
    let answer = tokio::time::timeout(stall, store.head(path)).await.map_err(silent)?;
    let failure = match answer {
        Ok(meta) => return Ok(meta),
        Err(error) => classify(&error),
    };
    if failure.kind.is_temporary() {
        return Err(failure);
    }
    // The answer to HEAD has no body, and the body is what tells a missing bucket from a missing
    // object and names the right region.
    match tokio::time::timeout(stall, store.get_range(path, 0..1)).await {
        Ok(Err(error)) if classify(&error).kind == failure.kind => Err(classify(&error)),
        _ => Err(failure),
    }
}

/// The objects under a prefix whose keys `keep` likes, sorted by key.
pub(super) async fn list(
    store: Arc<dyn ObjectStore>,
    location: Location,
    keep: impl Fn(&str) -> bool + Send + Sync,
    options: Arc<RemoteOptions>,
) -> Result<Vec<Object>, RemoteError> {
    // A store's client lists by whole folders; what comes before the first wildcard's component.
    let literal = location.key.find(['*', '?', '[']).unwrap_or(location.key.len());
    let folder = location.key[..literal].rfind('/').map_or("", |slash| &location.key[..slash]);
    let prefix = if folder.is_empty() { None } else { Some(path(&location, folder)?) };
    let stall = options.stall_timeout;
    let url = location.with_key(&location.key);
    let mut metas: Vec<ObjectMeta> = with_tries(&url, &options, || async {
        let mut found = Vec::new();
        let mut seen = 0;
        let mut objects = store.list(prefix.as_ref());
        loop {
            let next = tokio::time::timeout(stall, objects.next()).await;
            let next = next.map_err(|_| Failure::temporary(format!("no answer for {stall:?}")))?;
            let Some(meta) = next.transpose().map_err(|error| classify(&error))? else {
                return Ok(found);
            };
            seen += 1;
            if seen > MAX_LISTED {
                let reason = format!("more than {MAX_LISTED} objects there: give a longer prefix");
                return Err(Failure::new(RemoteErrorKind::Misconfigured, reason));
            }
            if keep(meta.location.as_ref()) {
                found.push(meta);
            }
        }
    })
    .await?;
    metas.sort_by(|a, b| a.location.cmp(&b.location));
    metas.dedup_by(|a, b| a.location == b.location);
    let object = |meta: ObjectMeta| {
        Object::new(location.with_key(meta.location.as_ref()), Arc::clone(&store), meta)
    };
    Ok(metas.into_iter().map(object).collect())
}
