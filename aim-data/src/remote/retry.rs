//! When to ask again, and what a failure means.

use std::error::Error as StdError;
use std::time::{Duration, Instant};

use object_store::Error as StoreError;

use super::location::redacted;
use super::{RemoteErrorKind, RemoteOptions};
use crate::random::mix;

/// Longest part of a server's answer that is repeated in a message, in letters.
const MAX_REASON: usize = 400;

/// Why one request failed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) kind: RemoteErrorKind,
    pub(super) reason: String,
}

impl Failure {
    pub(super) fn new(kind: RemoteErrorKind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into() }
    }

    pub(super) fn temporary(reason: impl Into<String>) -> Self {
        Self::new(RemoteErrorKind::Unavailable, reason)
    }
}

/// The pauses between the tries for one request.
pub(super) struct Backoff {
    max_tries: u32,
    deadline: Instant,
    first: Duration,
    longest: Duration,
    key: u64,
    pub(super) tries: u32,
}

impl Backoff {
    /// `name` and `offset` say which request it is. The process takes part too: ranks that fail
    /// together must not come back together.
    pub(super) fn new(options: &RemoteOptions, name: u64, offset: u64) -> Self {
        Self {
            max_tries: options.max_tries.max(1),
            deadline: Instant::now() + options.total_timeout,
            first: options.first_pause,
            longest: options.max_pause,
            key: mix(name ^ mix(offset ^ mix(u64::from(std::process::id())))),
            tries: 0,
        }
    }

    /// Time left for the request.
    pub(super) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// How long to pause after one more failed try; `None` when there is no further one.
    pub(super) fn next_pause(&mut self) -> Option<Duration> {
        self.tries += 1;
        if self.tries >= self.max_tries {
            return None;
        }
        let doubled = self.first.saturating_mul(1 << (self.tries - 1).min(20)).min(self.longest);
        let unit = (mix(self.key ^ u64::from(self.tries)) >> 11) as f64 / (1u64 << 53) as f64;
        let pause = doubled.mul_f64(1.0 - unit / 2.0);
        (pause < self.left()).then_some(pause)
    }
}

/// What an error of the store means. The store's client was told not to retry by itself.
pub(super) fn classify(error: &StoreError) -> Failure {
    use RemoteErrorKind::{Changed, Denied, Misconfigured, Missing, Unavailable};
    let text = full_text(error);
    let status = status(&text);
    let code = tag(&text, "Code").unwrap_or_default();
    let kind = match (error, status, code) {
        (_, _, "PermanentRedirect" | "AuthorizationHeaderMalformed") => Misconfigured,
        (_, _, "IllegalLocationConstraintException" | "InvalidBucketName") => Misconfigured,
        (_, _, "ExpiredToken" | "InvalidToken" | "InvalidAccessKeyId") => Denied,
        (StoreError::NotFound { .. }, ..) => Missing,
        (StoreError::Precondition { .. } | StoreError::NotModified { .. }, ..) => Changed,
        (StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. }, ..) => Denied,
        (StoreError::InvalidPath { .. } | StoreError::UnknownConfigurationKey { .. }, ..)
        | (StoreError::NotSupported { .. } | StoreError::NotImplemented { .. }, ..) => {
            Misconfigured
        }
        (_, Some(404), _) => Missing,
        (_, Some(401 | 403), _) => Denied,
        (_, Some(412 | 416), _) => Changed,
        (_, Some(408 | 409 | 429), _) => Unavailable,
        (_, Some(300..=499 | 501 | 505), _) => Misconfigured,
        // Without a place to go the client reports no status: another region's bucket.
        _ if text.contains("redirect without LOCATION") => Misconfigured,
        _ if text.contains("URL scheme is not allowed") => Misconfigured,
        _ => Unavailable,
    };
    Failure { kind, reason: explain(&text, status, code) }
}

/// The reason in one line: what the server says where it says something, else the whole chain.
fn explain(text: &str, status: Option<u16>, code: &str) -> String {
    let mut reason = match (status, code) {
        (Some(status), code) => {
            let message = tag(text, "Message").unwrap_or_default();
            let named = match (code.is_empty(), message.is_empty()) {
                (true, _) => String::new(),
                (false, true) => format!(" {code}"),
                (false, false) => format!(" {code}: {message}"),
            };
            format!("HTTP status {status}{named}")
        }
        (None, _) if text.contains("169.254.169.254") || text.contains("metadata.google") => {
            format!("no credentials in the environment, and none from the machine: {text}")
        }
        (None, _) => text.to_owned(),
    };
    reason = redacted(&reason).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if let Some((end, _)) = reason.char_indices().nth(MAX_REASON) {
        reason.truncate(end);
        reason.push_str(" ...");
    }
    reason.trim_end_matches(['.', ' ']).to_owned()
}

/// An error with its causes, each once.
fn full_text(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}

/// The HTTP status in the client's message, whose own type is not public.
fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// The text of an element in S3's and Azure's XML answers.
fn tag<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once('<').map(|(inside, _)| inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_end() {
        let options = RemoteOptions { max_tries: 12, ..RemoteOptions::default() };
        let mut backoff = Backoff::new(&options, 1, 2);
        let pauses: Vec<f64> =
            std::iter::from_fn(|| backoff.next_pause()).map(|pause| pause.as_secs_f64()).collect();
        assert_eq!(pauses.len(), 11);
        for (number, pause) in pauses.iter().enumerate() {
            let full = (0.2 * f64::from(1 << number)).min(10.0);
            assert!((full / 2.0..=full).contains(pause), "{number}: {pause}");
        }
        assert_eq!(backoff.tries, 12);
        let other = Backoff::new(&options, 1, 3).next_pause().unwrap().as_secs_f64();
        assert_ne!(other, pauses[0]);
        let hurried = RemoteOptions { total_timeout: Duration::ZERO, ..options };
        assert_eq!(Backoff::new(&hurried, 1, 2).next_pause(), None);
    }

    #[test]
    fn what_the_server_says_is_kept_short_and_clean() {
        let generic = |text: String| StoreError::Generic { store: "S3", source: text.into() };
        let body = "Server returned non-2xx status code: 400 Bad Request: <Error><Code>\
                    AuthorizationHeaderMalformed</Code><Message>expecting 'eu-west-1'\n</Message>";
        let failure = classify(&generic(body.to_owned()));
        assert_eq!(failure.kind, RemoteErrorKind::Misconfigured);
        assert_eq!(
            failure.reason,
            "HTTP status 400 AuthorizationHeaderMalformed: expecting 'eu-west-1'"
        );
        let failure = classify(&generic(format!("status code: 503 x: {}", "é".repeat(9999))));
        assert_eq!((failure.kind, failure.reason.len()), (RemoteErrorKind::Unavailable, 15));
        let long = classify(&generic("é".repeat(9999)));
        assert!(long.reason.len() < 2 * MAX_REASON + 10);
    }
}
