//! What all remote shards with the same options share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use object_store::ObjectStore;

use super::cache::Cache;
use super::location::{Location, Scheme};
use super::windows::{Windows, lock};
use super::{RemoteError, RemoteErrorKind, RemoteOptions, runtime, store};
use crate::error::{Error, Result};

/// Connections, windows in memory and the cache folder.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) options: Arc<RemoteOptions>,
    pub(super) windows: Arc<Windows>,
    pub(super) cache: Option<Cache>,
    stores: Mutex<HashMap<(Scheme, String), Arc<dyn ObjectStore>>>,
}

impl Client {
    /// The client with these options; there is one for all sources of the process, so that the
    /// bound on memory holds for all of them together.
    pub(super) fn shared(options: &RemoteOptions) -> Result<Arc<Self>> {
        static CLIENTS: Mutex<Vec<Weak<Client>>> = Mutex::new(Vec::new());
        let mut clients = lock(&CLIENTS);
        clients.retain(|client| client.strong_count() > 0);
        let mut alive = clients.iter().filter_map(Weak::upgrade);
        if let Some(client) = alive.find(|client| *client.options == *options) {
            return Ok(client);
        }
        runtime::spawn(async {}).map_err(|reason| {
            Error::Config(format!("cannot start the thread for remote shards: {reason}"))
        })?;
        let options = Arc::new(options.clone());
        let client = Arc::new(Self {
            windows: Arc::new(Windows::new(Arc::clone(&options))),
            cache: Cache::new(&options)?,
            options,
            stores: Mutex::default(),
        });
        clients.push(Arc::downgrade(&client));
        Ok(client)
    }

    /// The store of a location.
    pub(super) fn store(&self, location: &Location) -> Result<Arc<dyn ObjectStore>, RemoteError> {
        let mut stores = lock(&self.stores);
        let name = (location.scheme, location.authority.clone());
        if let Some(store) = stores.get(&name) {
            return Ok(Arc::clone(store));
        }
        let store = store::connect(location, &self.options)?;
        stores.insert(name, Arc::clone(&store));
        Ok(store)
    }

    /// Does work on the network thread; what ends without a result is the client's fault.
    pub(super) fn wait<T: Send + 'static>(
        url: &str,
        work: impl Future<Output = Result<T, RemoteError>> + Send + 'static,
    ) -> Result<T, RemoteError> {
        runtime::wait(work).unwrap_or_else(|reason| {
            let (url, kind) = (url.to_owned(), RemoteErrorKind::Unavailable);
            Err(RemoteError { url, range: None, tries: 1, kind, reason })
        })
    }
}
