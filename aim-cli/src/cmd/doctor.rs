//! `aim-cli doctor`: this machine as far as it matters here.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;

use crate::args::Json;
use crate::stdout;
use crate::table::bytes;

/// One line of the answer: what was looked at, what was found, and what follows from it.
struct Finding {
    name: &'static str,
    found: String,
    /// What is wrong or worth knowing; empty when all is well.
    advice: String,
}

impl Finding {
    fn new(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, found: found.into(), advice: String::new() }
    }

    fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = advice.into();
        self
    }
}

pub(crate) fn run(args: &Json) -> Result<()> {
    let findings = [program(), processor(), instructions(), threads(), memory(), disk(), cuda()];
    if args.json {
        let list: Vec<_> = findings
            .iter()
            .map(|f| json!({ "name": f.name, "found": f.found, "advice": f.advice }))
            .collect();
        return stdout::print_json(&list);
    }
    let mut text = String::new();
    for Finding { name, found, advice } in &findings {
        text.push_str(&format!("{name:<13} {found}\n"));
        if !advice.is_empty() {
            text.push_str(&format!("{:<13} -> {advice}\n", ""));
        }
    }
    stdout::print(&text)
}

fn program() -> Finding {
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    let found = format!(
        "aim-cli {} ({build} build, {}-{})",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        std::env::consts::OS
    );
    let finding = Finding::new("program", found);
    if cfg!(debug_assertions) {
        return finding.advice("build with `cargo build --release` for full speed");
    }
    finding
}

/// The value after `key` and a colon in a file such as /proc/cpuinfo.
fn field(path: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn processor() -> Finding {
    let model = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned());
    Finding::new("processor", model)
}

#[cfg(target_arch = "x86_64")]
fn instructions() -> Finding {
    let features = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512dq", is_x86_feature_detected!("avx512dq")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    let found: Vec<_> = features.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
    let finding = Finding::new(
        "instructions",
        if found.is_empty() { "baseline".to_owned() } else { found.join(" ") },
    );
    if found.contains(&"avx2") && found.contains(&"fma") {
        return finding;
    }
    finding.advice("without avx2 and fma the kernels take a path several times slower")
}

#[cfg(not(target_arch = "x86_64"))]
fn instructions() -> Finding {
    Finding::new("instructions", std::env::consts::ARCH)
        .advice("the vectorised kernels are for x86-64; here the compiler's own code runs")
}

fn threads() -> Finding {
    match std::thread::available_parallelism() {
        Ok(count) => Finding::new("threads", format!("{count} available to this process")),
        Err(error) => Finding::new("threads", format!("unknown ({error}), 1 is used")),
    }
}

fn memory() -> Finding {
    let kib = |key| -> Option<u64> {
        field("/proc/meminfo", key)?.split_whitespace().next()?.parse::<u64>().ok()
    };
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    match (kib("MemTotal"), kib("MemAvailable")) {
        (Some(total), Some(free)) => {
            let mut found = format!("{} free of {}", bytes(free << 10), bytes(total << 10));
            if let Some(limit) = limit {
                found.push_str(&format!(", this process may use {}", bytes(limit)));
            }
            Finding::new("memory", found)
        }
        _ => Finding::new("memory", "unknown: /proc/meminfo cannot be read"),
    }
}

fn disk() -> Finding {
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
    match rustix::fs::statvfs(&here) {
        Ok(space) => {
            let free = space.f_bavail.saturating_mul(space.f_frsize);
            let finding =
                Finding::new("disk", format!("{} free at {}", bytes(free), here.display()));
            if free < 1 << 30 {
                return finding
                    .advice("a checkpoint takes 12 bytes a parameter: 102 MiB for aim-nano, 12.2 GiB for aim-600M");
            }
            finding
        }
        Err(error) => Finding::new("disk", format!("unknown at {}: {error}", here.display())),
    }
}

fn cuda() -> Finding {
    let places = [
        "/usr/lib/x86_64-linux-gnu/libcuda.so.1",
        "/usr/lib/aarch64-linux-gnu/libcuda.so.1",
        "/usr/lib64/libcuda.so.1",
        "/usr/lib/wsl/lib/libcuda.so.1",
        "/usr/local/cuda/compat/libcuda.so.1",
    ];
    let driver = places.iter().find(|place| Path::new(place).exists());
    let finding = Finding::new("cuda", "not in this build: everything computes on the CPU");
    match driver {
        Some(place) => finding.advice(format!("a driver is installed ({place}) but not used")),
        None => finding,
    }
}
