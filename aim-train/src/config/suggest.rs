//! "Did you mean": the nearest name that exists.

/// Names people know from elsewhere, and ours.
const ALIASES: [(&str, &str); 21] = [
    ("batch", "train.batch_size"),
    ("beta1", "train.betas"),
    ("beta2", "train.betas"),
    ("crop_scale", "data.scale"),
    ("depth", "model.num_blocks"),
    ("dim", "model.embed_dim"),
    ("epochs", "train.steps"),
    ("grad_accum", "train.accumulate"),
    ("grad_clip", "train.clip"),
    ("gradient_accumulation", "train.accumulate"),
    ("heads", "model.num_heads"),
    ("hflip", "data.flip"),
    ("image_size", "model.img_size"),
    ("iterations", "train.steps"),
    ("learning_rate", "train.lr"),
    ("max_steps", "train.steps"),
    ("num_workers", "data.workers"),
    ("save_every", "checkpoint.every_steps"),
    ("warmup", "train.warmup_fraction"),
    ("wd", "train.weight_decay"),
    ("width", "model.embed_dim"),
];

/// The candidate most like `name`, if any is alike enough to be a slip of the finger.
pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let flat = |s: &str| s.to_lowercase().replace(['-', '_'], "");
    let name = flat(name);
    candidates
        .into_iter()
        .map(|c| (strsim::normalized_damerau_levenshtein(&name, &flat(c)), c))
        .filter(|(likeness, _)| *likeness >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}

/// The `section.key` most likely meant by `section.key`: the nearest key of the section, else the
/// same key of another section, else a name known from other programs.
pub(super) fn nearest_key(section: &str, key: &str, known: &[(String, String)]) -> Option<String> {
    let here = known.iter().filter(|(s, _)| s == section).map(|(_, k)| k.as_str());
    if let Some(found) = nearest(key, here) {
        return Some(format!("{section}.{found}"));
    }
    if let Some((s, k)) = known.iter().find(|(_, k)| k == key) {
        return Some(format!("{s}.{k}"));
    }
    if let Some((_, ours)) = ALIASES.iter().find(|(theirs, _)| *theirs == key) {
        return Some((*ours).to_owned());
    }
    let anywhere = nearest(key, known.iter().map(|(_, k)| k.as_str()))?;
    known.iter().find(|(_, k)| k == anywhere).map(|(s, k)| format!("{s}.{k}"))
}

/// `; did you mean X?`, or nothing.
pub(super) fn did_you_mean(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map(|s| format!("; did you mean {s}?")).unwrap_or_default()
}
