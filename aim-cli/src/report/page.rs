//! The HTML of a report.

use std::fmt::Write as _;

use base64::Engine as _;

use super::chart::{Chart, Series, Style, smooth};
use super::run::{Probe, Run};
use super::scale::number;
use crate::table::thousands;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("hover.js");

/// Text that is safe between tags and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

/// The whole page.
pub(super) fn render(run: &Run) -> String {
    let name = escape(&run.name);
    // The policy makes the browser refuse whatever would leave the file.
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{name} - AIM pre-training</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
    );
    header(&mut html, run);
    section(&mut html, "Loss", &loss_charts(run));
    section(&mut html, "Reconstructions", &reconstructions(run));
    section(&mut html, "Probes on frozen features", &probes(run));
    section(&mut html, "Training", &training_charts(run));
    section(&mut html, "Configuration", &configuration(run));
    let _ = write!(
        html,
        "<footer>Written by aim-cli {}. One file, nothing is loaded from elsewhere.</footer>\n\
         </main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    );
    html
}

fn section(html: &mut String, title: &str, body: &str) {
    if !body.is_empty() {
        let _ = write!(html, "<section>\n<h2>{title}</h2>\n{body}</section>\n");
    }
}

/// A configuration value without the quotes of a TOML string.
fn plain(value: &str) -> &str {
    value.trim_matches(['"', '\''])
}

fn header(html: &mut String, run: &Run) {
    let facts: Vec<_> = [
        run.value("model.img_size")
            .zip(run.value("model.patch_size"))
            .map(|(image, patch)| format!("{image} px images, {patch} px patches")),
        run.value("model.embed_dim")
            .zip(run.value("model.num_blocks"))
            .map(|(width, depth)| format!("trunk {width} wide, {depth} deep")),
        run.value("model.head_width")
            .zip(run.value("model.head_depth"))
            .map(|(width, depth)| format!("head {width} wide, {depth} deep")),
        run.value("objective.attention").zip(run.value("objective.target")).map(
            |(attention, target)| format!("{} attention, {}", plain(attention), plain(target)),
        ),
    ]
    .into_iter()
    .flatten()
    .map(|fact| escape(&fact.replace('_', " ")))
    .collect();
    let _ = write!(
        html,
        "<header>\n<p class=\"kicker\">AIM pre-training</p>\n<h1>{} {}</h1>\n<p class=\"facts\">{}</p>\n",
        escape(&run.name),
        status(run),
        facts.join(" &middot; ")
    );
    let tiles = tiles(run);
    if !tiles.is_empty() {
        let _ = writeln!(html, "<div class=\"tiles\">\n{tiles}</div>");
    }
    for warning in &run.warnings {
        let _ = writeln!(html, "<p class=\"warning\">{}</p>", escape(warning));
    }
    html.push_str("</header>\n");
}

fn last_step(run: &Run) -> Option<f64> {
    run.points("loss").last().or_else(|| run.points("val_loss").last()).map(|(step, _)| *step)
}

fn status(run: &Run) -> &'static str {
    let total = run.value("train.steps").and_then(|steps| steps.parse::<f64>().ok());
    match (last_step(run), total) {
        (Some(step), Some(total)) if step >= total => "<span class=\"chip good\">finished</span>",
        (Some(_), _) => "<span class=\"chip\">not finished</span>",
        (None, _) => "<span class=\"chip\">no steps yet</span>",
    }
}

fn tile(html: &mut String, label: &str, value: &str, detail: &str) {
    let _ = writeln!(
        html,
        "<div class=\"tile\"><span>{label}</span><strong>{}</strong><small>{}</small></div>",
        escape(value),
        escape(detail)
    );
}

fn tiles(run: &Run) -> String {
    let mut html = String::new();
    if let Some(loss) = run.last("val_loss") {
        let detail = run.last("val_baseline").map_or(String::new(), |baseline| {
            let side = if loss <= baseline { "below" } else { "above" };
            format!("{:.3} {side} the baseline of {baseline:.3}", (baseline - loss).abs())
        });
        tile(&mut html, "Validation loss", &format!("{loss:.4}"), &detail);
    }
    let losses = run.points("loss");
    if !losses.is_empty() {
        let tail = &losses[losses.len().saturating_sub(20)..];
        let mean = tail.iter().map(|p| p.1).sum::<f64>() / tail.len() as f64;
        tile(
            &mut html,
            "Training loss",
            &format!("{mean:.4}"),
            &format!("mean of the last {} steps", tail.len()),
        );
    }
    if let Some(best) = best_probe(run) {
        tile(&mut html, "Best probe", &best.0, &best.1);
    }
    if let Some(step) = last_step(run) {
        let total = run.value("train.steps").and_then(|steps| steps.parse::<u64>().ok());
        let total = total.map(|total| format!("of {}", thousands(total)));
        let seen = run.last("images_seen");
        let seen = seen.map(|images| format!("{} images seen", thousands(images as u64)));
        let detail: Vec<_> = total.into_iter().chain(seen).collect();
        tile(&mut html, "Steps", &thousands(step as u64), &detail.join("; "));
    }
    if let Some(rate) = median(run.points("images_per_s")) {
        let wait = median(run.points("data_wait_share")).map_or(String::new(), |share| {
            format!("{:.1} % of the time waiting for data", 100.0 * share)
        });
        tile(&mut html, "Speed", &format!("{} images/s", number(rate)), &wait);
    }
    html
}

fn median(points: &[(f64, f64)]) -> Option<f64> {
    let mut values: Vec<_> = points.iter().map(|p| p.1).filter(|v| v.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn series(run: &Run, key: &str, name: &'static str, color: &'static str, style: Style) -> Series {
    Series { name, color, style, points: run.points(key).to_vec() }
}

/// The metric itself, pale, and its running mean.
fn smoothed(run: &Run, key: &str, name: &'static str, color: &'static str) -> [Series; 2] {
    let points = smooth(run.points(key), run.points(key).len() / 60);
    [
        series(run, key, name, color, Style::Faint),
        Series { name, color, style: Style::Line, points },
    ]
}

fn loss_charts(run: &Run) -> String {
    let mut all: Vec<_> = smoothed(run, "loss", "training", "c1").into();
    all.extend([
        series(run, "val_baseline_causal", "baseline, S = 1", "c5", Style::Dashed),
        series(run, "val_baseline", "baseline per position", "c4", Style::Dashed),
        series(run, "val_loss_causal", "validation, S = 1", "c3", Style::Dots),
        series(run, "val_loss", "validation", "c2", Style::Dots),
    ]);
    Chart {
        title: "Loss per step",
        series: all,
        size: (1000.0, 380.0),
        log: false,
        from_zero: false,
    }
    .html()
}

fn training_charts(run: &Run) -> String {
    let half = |title, series, log, from_zero| {
        Chart { title, series, size: (490.0, 220.0), log, from_zero }.html()
    };
    let norm = smoothed(run, "grad_norm", "before clipping", "c1");
    let values: Vec<_> = norm[1].points.iter().map(|p| p.1).filter(|v| *v > 0.0).collect();
    let low = values.iter().copied().fold(f64::MAX, f64::min);
    let wide = values.iter().any(|v| *v > 30.0 * low);
    let charts = [
        half("Learning rate", vec![series(run, "lr", "", "c1", Style::Line)], false, true),
        half("Gradient norm", norm.into(), wide, false),
        half("Images per second", smoothed(run, "images_per_s", "", "c1").into(), false, true),
        half(
            "Share of time waiting for data",
            smoothed(run, "data_wait_share", "", "c1").into(),
            false,
            true,
        ),
    ]
    .concat();
    if charts.is_empty() { charts } else { format!("<div class=\"pair\">\n{charts}</div>\n") }
}

fn reconstructions(run: &Run) -> String {
    let mut html = String::new();
    if run.pictures.is_empty() {
        return html;
    }
    html.push_str(
        "<p class=\"note\">Left to right: the image, the patches that the model was shown, and its \
         predictions of the rest, each from the true patches before it. Brightness and contrast of a \
         predicted patch are the image's own when targets are normalised per patch.</p>\n\
         <div class=\"pictures\">\n",
    );
    for picture in &run.pictures {
        let data = base64::engine::general_purpose::STANDARD.encode(&picture.png);
        let name = escape(&picture.name.replace(['_', '-'], " "));
        let _ = writeln!(
            html,
            "<figure><img alt=\"{name}\" src=\"data:image/png;base64,{data}\"><figcaption>{name}</figcaption></figure>"
        );
    }
    html.push_str("</div>\n");
    html
}

/// Mean and, over more than one value, the standard deviation.
fn mean_std(values: &[f64]) -> Option<(f64, Option<f64>)> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    mean.is_finite().then_some((mean, (n > 1.0).then(|| (squares / (n - 1.0)).sqrt())))
}

fn percent(values: &[f64]) -> String {
    match mean_std(values) {
        Some((mean, Some(std))) => format!("{:.1} \u{b1} {:.1} %", 100.0 * mean, 100.0 * std),
        Some((mean, None)) => format!("{:.1} %", 100.0 * mean),
        None => "-".to_owned(),
    }
}

fn best_probe(run: &Run) -> Option<(String, String)> {
    let rows = run.probes.iter().flat_map(|probe| &probe.rows);
    rows.filter(|row| row.features == "pre-trained")
        .filter_map(|row| mean_std(&row.accuracy).map(|(mean, _)| (mean, row)))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(mean, row)| {
            (format!("{:.1} %", 100.0 * mean), format!("{}, {} features", row.probe, row.features))
        })
}

fn probes(run: &Run) -> String {
    run.probes.iter().filter(|probe| !probe.rows.is_empty()).map(probe_table).collect()
}

fn probe_table(probe: &Probe) -> String {
    let mut html = format!(
        "<div class=\"scroll\"><table class=\"probes\">\n<caption>{}{}</caption>\n\
         <thead><tr><th>classifier</th><th>on</th><th>blocks</th><th class=\"n\">accuracy</th>\
         <th class=\"n\">seeds</th><th></th></tr></thead>\n<tbody>\n",
        escape(&probe.name),
        if probe.about.is_empty() { String::new() } else { format!(": {}", escape(&probe.about)) },
    );
    for row in &probe.rows {
        let mean = mean_std(&row.accuracy).map_or(0.0, |(mean, _)| mean.clamp(0.0, 1.0));
        let class = if row.features == "pre-trained" { "c1" } else { "c4" };
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"bar\"><i class=\"{class}\" style=\"width:{:.1}%\"></i></td></tr>",
            escape(&row.probe),
            escape(&row.features),
            escape(&row.layers),
            percent(&row.accuracy),
            row.accuracy.len(),
            100.0 * mean,
        );
    }
    html.push_str("</tbody>\n</table></div>\n");
    html
}

fn configuration(run: &Run) -> String {
    let mut html = String::new();
    let mut current = "";
    for entry in &run.config {
        let (section, key) = entry.key.split_once('.').unwrap_or(("", &entry.key));
        if section != current {
            if !current.is_empty() {
                html.push_str("</table>\n");
            }
            let _ =
                write!(html, "<table class=\"config\">\n<caption>{}</caption>\n", escape(section));
            current = section;
        }
        let class = if entry.origin == "default" { "default" } else { "set" };
        let _ = writeln!(
            html,
            "<tr class=\"{class}\"><th>{}</th><td>{}</td><td class=\"origin\">{}</td></tr>",
            escape(key),
            escape(&entry.value),
            escape(&entry.origin)
        );
    }
    if html.is_empty() {
        return html;
    }
    let checkpoints = match run.checkpoints.as_slice() {
        [] => "<p class=\"note\">No checkpoints.</p>\n".to_owned(),
        list => format!("<p class=\"note\">Checkpoints: {}</p>\n", escape(&list.join(", "))),
    };
    format!(
        "<p class=\"note\">Each value with where it came from; values that were not left at their \
         default stand out.</p>\n<div class=\"columns\">\n{html}</table>\n</div>\n{checkpoints}"
    )
}
