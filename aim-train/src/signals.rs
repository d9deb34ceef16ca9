//! Stopping on request: finish the step, save, exit with 75.
//!
//! SIGINT (Ctrl-C), SIGTERM (schedulers) and SIGUSR1 (Slurm's `--signal=USR1@120`) set a flag that
//! the loop reads between steps. A second SIGINT or SIGTERM ends the process at once with 130 or
//! 143; after SIGUSR1 the first one of those still waits for the save. When no [`Stop`] is left (the
//! loop is over, other work follows), the first SIGINT or SIGTERM ends the process.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

use crate::TrainError;

/// Why the run is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGUSR1.
    User1,
}

impl Signal {
    const ALL: [Self; 3] = [Self::Interrupt, Self::Terminate, Self::User1];

    fn number(self) -> i32 {
        match self {
            Self::Interrupt => SIGINT,
            Self::Terminate => SIGTERM,
            Self::User1 => SIGUSR1,
        }
    }

    /// The name, as in `kill -l` with its prefix.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::User1 => "SIGUSR1",
        }
    }

    /// What is kept in the flag: 0 is none.
    fn code(self) -> usize {
        self as usize + 1
    }
}

/// A request to stop, shared by its clones.
#[derive(Debug, Clone)]
pub struct Stop {
    requested: Arc<AtomicUsize>,
    /// Only of a `Stop` that handles the process's signals; the last one to go rearms them.
    _handling: Option<Arc<Handling>>,
}

/// The process's handlers are registered once and for all: signal-hook cannot give signals back
/// their default action. What changes is whether SIGINT and SIGTERM end the process.
struct Handlers {
    requested: Arc<AtomicUsize>,
    exit_at_once: Arc<AtomicBool>,
    users: Mutex<usize>,
}

static HANDLERS: OnceLock<Result<Handlers, String>> = OnceLock::new();

#[derive(Debug)]
struct Handling;

impl Stop {
    /// Handles SIGINT, SIGTERM and SIGUSR1 as long as this value or a clone of it lives.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the system refuses a handler.
    pub fn install() -> Result<Self, TrainError> {
        let registered = HANDLERS.get_or_init(|| Handlers::register().map_err(|e| e.to_string()));
        let handlers = registered.as_ref().map_err(|error| {
            let path = std::path::Path::new("(signal handlers)");
            TrainError::io("install", path, std::io::Error::other(error.clone()))
        })?;
        let mut users = handlers.users.lock().unwrap_or_else(PoisonError::into_inner);
        if *users == 0 {
            handlers.requested.store(0, Ordering::SeqCst);
            handlers.exit_at_once.store(false, Ordering::SeqCst);
        }
        *users += 1;
        let requested = handlers.requested.clone();
        Ok(Self { requested, _handling: Some(Arc::new(Handling)) })
    }

    /// A request that only [`Stop::request`] makes: for tests, and programs with handlers of their
    /// own.
    pub fn detached() -> Self {
        Self { requested: Arc::new(AtomicUsize::new(0)), _handling: None }
    }

    /// The latest request, if there was one.
    pub fn requested(&self) -> Option<Signal> {
        let code = self.requested.load(Ordering::SeqCst);
        Signal::ALL.into_iter().find(|signal| signal.code() == code)
    }

    /// An error as soon as there was a request, for work that has nothing to save.
    ///
    /// # Errors
    /// [`TrainError::Stopped`].
    pub fn check(&self) -> Result<(), TrainError> {
        match self.requested() {
            Some(signal) => Err(TrainError::Stopped { signal: signal.name() }),
            None => Ok(()),
        }
    }

    /// Asks to stop, as the signal would.
    pub fn request(&self, signal: Signal) {
        self.requested.store(signal.code(), Ordering::SeqCst);
    }
}

impl Handlers {
    fn register() -> std::io::Result<Self> {
        let handlers = Self {
            requested: Arc::new(AtomicUsize::new(0)),
            exit_at_once: Arc::new(AtomicBool::new(false)),
            users: Mutex::new(0),
        };
        for signal in Signal::ALL {
            let number = signal.number();
            if signal != Signal::User1 {
                // Actions run in the order of their registration: the exit looks at the flag
                // before this signal sets it.
                let exit_at_once = &handlers.exit_at_once;
                flag::register_conditional_shutdown(number, 128 + number, exit_at_once.clone())?;
                flag::register(number, exit_at_once.clone())?;
            }
            flag::register_usize(number, handlers.requested.clone(), signal.code())?;
        }
        Ok(handlers)
    }
}

impl Drop for Handling {
    fn drop(&mut self) {
        if let Some(Ok(handlers)) = HANDLERS.get() {
            let mut users = handlers.users.lock().unwrap_or_else(PoisonError::into_inner);
            *users = users.saturating_sub(1);
            if *users == 0 {
                handlers.exit_at_once.store(true, Ordering::SeqCst);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detached_stop_is_shared_by_its_clones_only() {
        let stop = Stop::detached();
        let clone = stop.clone();
        assert_eq!(stop.requested(), None);
        clone.request(Signal::Terminate);
        assert_eq!(stop.requested(), Some(Signal::Terminate));
        assert_eq!(Stop::detached().requested(), None);
        assert_eq!(Signal::User1.name(), "SIGUSR1");
    }
}
