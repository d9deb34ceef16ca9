//! Most physical memory that the process has held, as Linux counts it.

/// Starts the count again from what is held now. Does nothing where the system has no such count.
pub fn reset() {
    // 5 resets the high-water mark (proc_pid_clear_refs(5)); without it the mark covers the whole process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Peak resident set in MiB since the process started or [`reset`]; `None` where the system does not say.
pub fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    #[test]
    fn memory_that_was_touched_is_counted() {
        super::reset();
        let before = super::peak_rss_mib().unwrap();
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        assert!(super::peak_rss_mib().unwrap() - before > 48.0);
        drop(block);
    }
}
