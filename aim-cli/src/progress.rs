//! Progress on standard error: a bar on a terminal, plain lines elsewhere, nothing with `--quiet`.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a plain line is printed when there is no bar.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// Every so many positions, which makes the lines the same from run to run.
    Steps(u64),
    /// At most one in this time.
    Every(Duration),
}

/// The progress of one task.
pub(crate) struct Progress {
    quiet: bool,
    label: String,
    total: u64,
    pace: Pace,
    bar: Option<ProgressBar>,
    start: Instant,
    first: Option<u64>,
    printed: Instant,
}

impl Progress {
    /// Starts a task of `total` positions named `label`; 0 when the total is not known.
    pub(crate) fn new(quiet: bool, label: &str, total: u64, pace: Pace) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(
                (total > 0).then_some(total),
                ProgressDrawTarget::stderr_with_hz(10),
            );
            bar.set_style(style(total > 0));
            bar.set_prefix(label.to_owned());
            bar
        });
        let now = Instant::now();
        let label = label.to_owned();
        Self { quiet, label, total, pace, bar, start: now, first: None, printed: now }
    }

    /// Reports a position; `message` is only built when it will be shown.
    pub(crate) fn update(&mut self, position: u64, message: impl FnOnce() -> String) {
        if self.quiet {
            return;
        }
        // A resumed run does not start at 0; the time left counts from where this process began.
        let first = *self.first.get_or_insert_with(|| {
            if let Some(bar) = &self.bar {
                bar.set_position(position.saturating_sub(1));
                bar.reset_eta();
            }
            position.saturating_sub(1)
        });
        if let Some(bar) = &self.bar {
            bar.set_position(position);
            bar.set_message(message());
            return;
        }
        let due = match self.pace {
            Pace::Steps(steps) => position.is_multiple_of(steps.max(1)) || position == self.total,
            Pace::Every(time) => self.printed.elapsed() >= time,
        };
        if due {
            self.printed = Instant::now();
            let mut line = format!("{} {position}", self.label);
            if self.total > 0 {
                line.push_str(&format!("/{}", self.total));
            }
            let message = message();
            if !message.is_empty() {
                line.push_str(&format!("  {message}"));
            }
            let done = position.saturating_sub(first);
            if self.total > position && done > 0 {
                let left =
                    self.start.elapsed().mul_f64((self.total - position) as f64 / done as f64);
                line.push_str(&format!("  eta {}", clock(left)));
            }
            eprint_line(&line);
        }
    }

    /// Prints a line above the bar, or a plain one.
    pub(crate) fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprint_line(line)),
            None if self.quiet => {}
            None => eprint_line(line),
        }
    }

    /// Prints a warning, `--quiet` or not.
    pub(crate) fn warn(&self, line: &str) {
        let line = format!("warning: {line}");
        match &self.bar {
            Some(bar) => bar.suspend(|| eprint_line(&line)),
            None => eprint_line(&line),
        }
    }

    /// Removes the bar.
    pub(crate) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Prints a line on standard error unless `quiet`.
pub(crate) fn note(quiet: bool, line: &str) {
    if !quiet {
        eprint_line(line);
    }
}

/// Prints a warning on standard error, `--quiet` or not.
pub(crate) fn warn(line: &str) {
    eprint_line(&format!("warning: {line}"));
}

/// A closed standard error is nobody's failure, and `eprintln` would panic.
fn eprint_line(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn style(known: bool) -> ProgressStyle {
    let template = if known {
        "{prefix} {wide_bar:.cyan/dim} {pos}/{len}  {msg}  {elapsed} < {eta}"
    } else {
        "{prefix} {spinner} {pos}  {msg}  {elapsed}"
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// `75 s` as `1:15`, with hours when there are any.
pub(crate) fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks() {
        assert_eq!(clock(Duration::from_secs(75)), "1:15");
        assert_eq!(clock(Duration::from_secs(36_000 + 61)), "10:01:01");
    }
}
