//! Axes with round numbers, and numbers for people.

/// One axis of a chart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    /// Value at the near end.
    pub(super) low: f64,
    /// Value at the far end, above `low`.
    pub(super) high: f64,
    /// Whether equal distances are equal ratios.
    pub(super) log: bool,
}

impl Axis {
    /// An axis over `low..=high`, widened when they are equal.
    pub(super) fn new(low: f64, high: f64, log: bool) -> Self {
        if log {
            let low = low.max(f64::MIN_POSITIVE);
            return Self { low, high: if high > low { high } else { low * 10.0 }, log };
        }
        let high = if high > low { high } else { low + low.abs().max(1e-6) };
        Self { low, high, log }
    }

    /// Where a value is, 0 at `low` and 1 at `high`.
    pub(super) fn place(&self, value: f64) -> f64 {
        if self.log {
            return (value.max(f64::MIN_POSITIVE) / self.low).ln() / (self.high / self.low).ln();
        }
        (value - self.low) / (self.high - self.low)
    }

    /// Round values on the axis, about `count` of them, with labels that tell them apart.
    pub(super) fn ticks(&self, count: usize) -> Vec<(f64, String)> {
        if self.log { self.log_ticks() } else { self.linear_ticks(count) }
    }

    fn linear_ticks(&self, count: usize) -> Vec<(f64, String)> {
        let step = round_step((self.high - self.low) / count.max(1) as f64);
        let first = (self.low / step - 1e-9).ceil();
        let last = (self.high / step + 1e-9).floor();
        if !step.is_finite() || step <= 0.0 || last - first > 100.0 || !first.is_finite() {
            return Vec::new();
        }
        let whole = |decimals: &i32| (step * 10_f64.powi(*decimals)).fract().abs() < 1e-6;
        let decimals = (0..9).find(whole).unwrap_or(9) as usize;
        (0..=(last - first) as usize)
            .map(|i| (first + i as f64) * step)
            .map(|value| (value, tick_label(value, decimals)))
            .collect()
    }

    fn log_ticks(&self) -> Vec<(f64, String)> {
        let decades = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let wide = decades.1 - decades.0 > 3;
        let every = ((decades.1 - decades.0) / 8 + 1).max(1) as usize;
        let factors: &[f64] = if wide { &[1.0] } else { &[1.0, 2.0, 5.0] };
        (decades.0..=decades.1)
            .step_by(every)
            .flat_map(|decade| factors.iter().map(move |factor| factor * 10_f64.powi(decade)))
            .filter(|value| (-1e-9..=1.0 + 1e-9).contains(&self.place(*value)))
            .map(|value| (value, number(value)))
            .collect()
    }
}

/// The first of 1, 2, 2.5 and 5 times a power of ten that is not below `step`.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|f| f * power >= step * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

fn tick_label(value: f64, decimals: usize) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        large if large >= 1e6 => format!("{}M", short(value / 1e6)),
        large if large >= 1e4 => format!("{}k", short(value / 1e3)),
        _ if decimals > 5 => format!("{value:e}"),
        _ => format!("{value:.decimals$}"),
    }
}

/// At most two decimals and no zeros at the end.
fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A number in about four digits.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 {
        "0".to_owned()
    } else if !(1e-3..1e6).contains(&size) {
        let text = format!("{value:.2e}");
        text.replace(".00e", "e").replace("0e", "e")
    } else if size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else {
        let text = format!("{value:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64, log: bool) -> Vec<String> {
        Axis::new(low, high, log).ticks(5).into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(labels(0.0, 1.0, false), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(0.0, 2000.0, false), ["0", "500", "1000", "1500", "2000"]);
        assert_eq!(labels(0.0, 500_000.0, false), ["0", "100k", "200k", "300k", "400k", "500k"]);
        assert_eq!(
            labels(0.0, 1e-3, false),
            ["0", "0.0002", "0.0004", "0.0006", "0.0008", "0.0010"]
        );
        assert_eq!(labels(0.05, 3.0, true), ["0.05", "0.1", "0.2", "0.5", "1", "2"]);
    }

    #[test]
    fn odd_ranges_do_not_break() {
        for (low, high) in [(0.0, 0.0), (5.0, 5.0), (-1e300, 1e300), (1e-300, 1e-299), (3.0, 1.0)] {
            for log in [false, true] {
                let axis = Axis::new(low, high, log);
                assert!(axis.high > axis.low);
                assert!(axis.ticks(5).len() <= 101);
            }
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(number(0.3124), "0.3124");
        assert_eq!(number(1.0), "1");
        assert_eq!(number(842.3), "842");
        assert_eq!(number(1e-6), "1e-6");
        assert_eq!(number(2.5e7), "2.5e7");
    }
}
