//! The one thread that talks to the network, hidden behind blocking calls.

use std::future::Future;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Runtime};

/// Starts work on the network thread.
pub(super) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Result<(), String> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        // Not tokio's current-thread kind, whose tasks rest while nobody blocks on them: what is
        // fetched ahead has to arrive while the readers decode.
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(1).max_blocking_threads(8).thread_name("aim-data-net");
        builder.enable_all().build().map_err(|error| error.to_string())
    });
    runtime.as_ref().map_err(Clone::clone)?.spawn(work);
    Ok(())
}

/// Does work on the network thread and waits for it; works inside another tokio runtime too.
pub(super) fn wait<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, String> {
    let (send, receive) = std::sync::mpsc::sync_channel(1);
    spawn(async move {
        // Nobody listening any more is no failure.
        let _ = send.send(work.await);
    })?;
    receive.recv().map_err(|_| "a panic in the client, on an answer it did not expect".to_owned())
}
