//! Line charts as SVG, with a legend in HTML above.

use std::fmt::Write as _;

use super::page::escape;
use super::scale::{Axis, number};

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// A solid line.
    Line,
    /// A thin pale line behind the others, for values before smoothing.
    Faint,
    /// A line with a dot at each value.
    Dots,
    /// A dashed line.
    Dashed,
}

/// One line of a chart.
pub(super) struct Series {
    pub(super) name: &'static str,
    /// Colour class of the style sheet: `c1` to `c5`.
    pub(super) color: &'static str,
    pub(super) style: Style,
    pub(super) points: Vec<(f64, f64)>,
}

/// A chart over training steps.
pub(super) struct Chart {
    pub(super) title: &'static str,
    pub(super) series: Vec<Series>,
    /// Width and height in SVG units, about one pixel each.
    pub(super) size: (f64, f64),
    pub(super) log: bool,
    /// Whether the vertical axis starts at 0.
    pub(super) from_zero: bool,
}

const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 28.0;

impl Chart {
    /// The chart as a figure, or nothing when no series has a value.
    pub(super) fn html(&self) -> String {
        let series: Vec<_> = self.series.iter().filter(|s| !s.points.is_empty()).collect();
        let Some((x, y)) = self.axes(&series) else { return String::new() };
        let mut html = format!(
            "<figure class=\"chart\"><figcaption><b>{}</b><span class=\"legend\">",
            escape(self.title)
        );
        for (index, s) in series.iter().enumerate() {
            if s.style == Style::Faint {
                continue;
            }
            let last = s.points.iter().rev().find(|p| p.1.is_finite());
            let last = last.map(|p| number(p.1)).unwrap_or_default();
            let dashed = if s.style == Style::Dashed { " dashed" } else { "" };
            let _ = write!(
                html,
                "<span class=\"key {}\"><i class=\"{dashed}\"></i>{} <output data-series=\"{index}\">{last}</output></span>",
                s.color,
                escape(s.name),
            );
        }
        html.push_str("</span></figcaption>");
        self.svg(&mut html, &series, x, y);
        html.push_str("</figure>\n");
        html
    }

    fn axes(&self, series: &[&Series]) -> Option<(Axis, Axis)> {
        let finite = |p: &&(f64, f64)| p.0.is_finite() && p.1.is_finite();
        let xs = series.iter().flat_map(|s| &s.points).filter(finite).map(|p| p.0);
        let (first, last) = xs.fold((f64::MAX, f64::MIN), |(a, b), x| (a.min(x), b.max(x)));
        if first > last {
            return None;
        }
        let (low, mut high) = self.range(series, |style| style != Style::Faint, 1.0)?;
        // A few wild values must not flatten the rest: single spikes are cut off, and of the pale
        // values behind a smoothed line so many count as make a band.
        let (_, typical) = self.range(series, |style| style != Style::Faint, 0.99)?;
        if high > 4.0 * typical && typical > 0.0 {
            high = 2.0 * typical;
        }
        let faint = self.range(series, |style| style == Style::Faint, 0.99);
        let high = high.max(faint.map_or(high, |(_, faint)| faint.min(2.0 * high.abs())));
        let room = if self.log { 0.0 } else { 0.06 * (high - low) };
        let low = if self.from_zero { 0.0 } else { low - room };
        Some((Axis::new(first, last, false), Axis::new(low, high + room, self.log)))
    }

    /// The least value and the one that `share` of the values do not exceed.
    fn range(
        &self,
        series: &[&Series],
        counts: impl Fn(Style) -> bool,
        share: f64,
    ) -> Option<(f64, f64)> {
        let mut values: Vec<f64> = series
            .iter()
            .filter(|s| counts(s.style))
            .flat_map(|s| &s.points)
            .map(|p| p.1)
            .filter(|v| v.is_finite() && (!self.log || *v > 0.0))
            .collect();
        values.sort_by(f64::total_cmp);
        let most = values.get(((values.len().saturating_sub(1)) as f64 * share) as usize)?;
        Some((*values.first()?, *most))
    }

    fn svg(&self, html: &mut String, series: &[&Series], x: Axis, y: Axis) {
        let (width, height) = self.size;
        let (right, bottom) = (width - RIGHT, height - BOTTOM);
        let px = |value: f64| LEFT + x.place(value) * (right - LEFT);
        // Cut off far outside the frame, so that no coordinate overflows a renderer.
        let py =
            |value: f64| (bottom - y.place(value) * (bottom - TOP)).clamp(-height, 2.0 * height);
        let _ = write!(
            html,
            "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\" \
             data-frame=\"{LEFT} {right} {TOP} {bottom}\" data-x=\"{} {}\">",
            escape(self.title),
            x.low,
            x.high,
        );
        for (value, label) in y.ticks(if height > 260.0 { 6 } else { 4 }) {
            let at = py(value);
            let _ = write!(
                html,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                LEFT - 8.0,
                at + 4.0,
            );
        }
        let whole = |tick: &(f64, String)| tick.0.fract() == 0.0;
        for (value, label) in x.ticks(if width > 600.0 { 8 } else { 4 }).into_iter().filter(whole) {
            let at = px(value);
            let _ = write!(
                html,
                "<line class=\"tick\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom}\" y2=\"{:.1}\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
                bottom + 4.0,
                bottom + 18.0,
            );
        }
        let _ = write!(
            html,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>\
             <svg x=\"{LEFT}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\" viewBox=\"{LEFT} {TOP} {:.1} {:.1}\">",
            right - LEFT,
            bottom - TOP,
            right - LEFT,
            bottom - TOP,
        );
        for (index, s) in series.iter().enumerate() {
            line(html, index, s, width, &px, &py);
        }
        html.push_str("</svg><line class=\"cursor\"/></svg>");
    }
}

fn line(
    html: &mut String,
    index: usize,
    series: &Series,
    width: f64,
    px: &impl Fn(f64) -> f64,
    py: &impl Fn(f64) -> f64,
) {
    let points = thin(&series.points, width as usize);
    let mut path = String::new();
    let mut data = String::new();
    for (i, (step, value)) in points.iter().enumerate() {
        let (sep, op) = if i == 0 { ("", 'M') } else { (" ", 'L') };
        let _ = write!(path, "{op}{:.1} {:.1}", px(*step), py(*value));
        let _ = write!(data, "{sep}{step},{}", number(*value));
    }
    let class = match series.style {
        Style::Line | Style::Dots => "line",
        Style::Faint => "line faint",
        Style::Dashed => "line dashed",
    };
    let data = if series.style == Style::Faint { String::new() } else { data };
    let _ = write!(
        html,
        "<path class=\"{class} {}\" d=\"{path}\" data-series=\"{index}\" data-points=\"{data}\"/>",
        series.color
    );
    // A single value has no line to be seen by.
    if series.style == Style::Dots && points.len() <= 60 || points.len() == 1 {
        for (step, value) in &points {
            let _ = write!(
                html,
                "<circle class=\"dot {}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/>",
                series.color,
                px(*step),
                py(*value)
            );
        }
    }
}

/// At most about `2 * buckets` finite points that look the same: the least and greatest of each
/// bucket of neighbours.
fn thin(points: &[(f64, f64)], buckets: usize) -> Vec<(f64, f64)> {
    let finite: Vec<_> =
        points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite()).collect();
    if finite.len() <= 2 * buckets {
        return finite;
    }
    let mut kept = Vec::with_capacity(2 * buckets);
    for bucket in finite.chunks(finite.len().div_ceil(buckets)) {
        let low = bucket.iter().min_by(|a, b| a.1.total_cmp(&b.1));
        let high = bucket.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        let mut both: Vec<_> = low.into_iter().chain(high).copied().collect();
        both.sort_by(|a, b| a.0.total_cmp(&b.0));
        both.dedup();
        kept.extend(both);
    }
    kept
}

/// The mean of each value and its neighbours, up to `radius` on either side. At the start as many on
/// both sides, so that a falling curve is not bent; at the end, where curves are flat, whatever is
/// there, so that the last value is no single noisy one.
pub(super) fn smooth(points: &[(f64, f64)], radius: usize) -> Vec<(f64, f64)> {
    let finite: Vec<_> = points.iter().copied().filter(|p| p.1.is_finite()).collect();
    let mut sums = Vec::with_capacity(finite.len() + 1);
    sums.push(0.0);
    for (_, value) in &finite {
        sums.push(sums.last().copied().unwrap_or(0.0) + value);
    }
    let mean = |i: usize| {
        let reach = radius.min(i);
        let end = (i + reach + 1).min(finite.len());
        (sums[end] - sums[i - reach]) / (end - (i - reach)) as f64
    };
    finite.iter().enumerate().map(|(i, (step, _))| (*step, mean(i))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_extremes_and_order() {
        let mut points: Vec<_> = (0..10_000).map(|i| (f64::from(i), 1.0)).collect();
        points[1234].1 = 9.0;
        points[5678].1 = f64::NAN;
        let kept = thin(&points, 100);
        assert!(kept.len() <= 200);
        assert!(kept.contains(&(1234.0, 9.0)));
        assert!(kept.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn smoothing_does_not_bend_a_line() {
        let points: Vec<_> = (0..50).map(|i| (f64::from(i), f64::from(i) * 2.0)).collect();
        for ((_, before), (_, after)) in points.iter().zip(smooth(&points, 7)).take(43) {
            assert!((before - after).abs() < 1e-9);
        }
        assert_eq!(smooth(&points, 7)[49].1, points[42..].iter().map(|p| p.1).sum::<f64>() / 8.0);
        assert!(smooth(&[], 3).is_empty());
    }

    #[test]
    fn empty_and_odd_series_are_drawn_or_left_out() {
        let chart = |points: Vec<(f64, f64)>, log| Chart {
            title: "t",
            series: vec![Series { name: "s", color: "c1", style: Style::Line, points }],
            size: (400.0, 200.0),
            log,
            from_zero: false,
        };
        assert!(chart(vec![], false).html().is_empty());
        assert!(chart(vec![(1.0, f64::NAN)], false).html().is_empty());
        assert!(chart(vec![(1.0, 0.0)], true).html().is_empty());
        let single = chart(vec![(1.0, 0.5)], false).html();
        assert!(single.contains("<circle") && !single.contains("NaN"), "{single}");
        let spike = chart(vec![(0.0, 1.0), (1.0, f64::MAX), (2.0, f64::INFINITY)], false).html();
        assert!(!spike.contains("inf") && !spike.contains("NaN"), "{spike}");
    }
}
