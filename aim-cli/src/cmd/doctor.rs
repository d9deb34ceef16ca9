//! `aim-cli doctor`: this machine as far as it matters here.

use std::path::PathBuf;

use aim_kernels::cuda::libraries::{self, Found, Version};
use aim_kernels::cuda::{CudaError, DeviceInfo, Gpu, compile};
use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::args::Json;
use crate::stdout;
use crate::table::bytes;

/// One line of the answer: what was looked at, what was found, and what follows from it.
struct Finding {
    name: String,
    found: String,
    /// What is wrong or worth knowing; empty when all is well.
    advice: String,
    /// More for programs, by name.
    facts: Map<String, Value>,
}

impl Finding {
    fn new(name: impl Into<String>, found: impl Into<String>) -> Self {
        let (advice, facts) = (String::new(), Map::new());
        Self { name: name.into(), found: found.into(), advice, facts }
    }

    fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = advice.into();
        self
    }

    fn fact(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(name.to_owned(), value.into());
        self
    }

    fn json(&self) -> Value {
        let mut all = Map::new();
        for (name, text) in [("name", &self.name), ("found", &self.found), ("advice", &self.advice)]
        {
            all.insert(name.to_owned(), json!(text));
        }
        all.extend(self.facts.clone());
        Value::Object(all)
    }
}

pub(crate) fn run(args: &Json) -> Result<()> {
    let mut findings = vec![program(), processor(), instructions(), threads(), memory(), disk()];
    findings.extend(cuda());
    if args.json {
        let list: Vec<_> = findings.iter().map(Finding::json).collect();
        return stdout::print_json(&list);
    }
    let mut text = String::new();
    for Finding { name, found, advice, .. } in &findings {
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

/// The driver, the devices, the libraries, and where compiled kernels are kept.
fn cuda() -> Vec<Finding> {
    let driver = libraries::load();
    let mut findings = vec![library("driver", driver.clone(), None)];
    if let Ok(found) = &driver {
        let version = found.version.map(|version| format!("CUDA {version}"));
        let release = libraries::driver_release().map(|release| format!("release {release}"));
        let parts = [version, release, Some(found.path.display().to_string())];
        findings[0].found = parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
        findings.extend(devices());
    } else {
        findings[0].found.push_str(": everything computes on the CPU");
    }
    let version = driver.ok().and_then(|found| found.version);
    findings.extend([
        library("cuBLASLt", libraries::blas(), version),
        library("NVRTC", libraries::nvrtc(), version),
        library("NCCL", libraries::nccl(), None),
        kernels(),
    ]);
    findings
}

fn devices() -> Vec<Finding> {
    match Gpu::list() {
        Ok(devices) if devices.is_empty() => {
            let error = CudaError::NoDevice { ordinal: 0, found: 0 };
            vec![Finding::new("devices", "none").advice(error.to_string())]
        }
        Ok(devices) => devices.iter().map(device).collect(),
        Err(error) => vec![Finding::new("devices", "unknown").advice(error.to_string())],
    }
}

fn device(info: &DeviceInfo) -> Finding {
    let DeviceInfo { ordinal, name, memory, compute: (major, minor) } = info;
    let compute = format!("{major}.{minor}");
    let found = format!("{name}, {}, compute capability {compute}", bytes(*memory));
    let finding = Finding::new(format!("cuda:{ordinal}"), found)
        .fact("memory_bytes", *memory)
        .fact("compute_capability", compute);
    if *major < 8 {
        return finding.advice("too old: compute capability 8.0 or newer is needed");
    }
    finding
}

/// A library, found or not. `driver` is the driver's version, which must not be older.
fn library(
    name: &'static str,
    result: Result<&Found, CudaError>,
    driver: Option<Version>,
) -> Finding {
    let found = match result {
        Ok(found) => found,
        Err(CudaError::MissingLibrary { library, looked_in, advice }) => {
            return Finding::new(name, format!("no {library}"))
                .advice(advice)
                .fact("looked_in", looked_in);
        }
        Err(error) => return Finding::new(name, "cannot be used").advice(error.to_string()),
    };
    let path = found.path.display().to_string();
    let version = found.version.map(|version| version.to_string());
    let text = version.iter().chain([&path]).cloned().collect::<Vec<_>>().join(", ");
    let finding = Finding::new(name, text).fact("path", path).fact("version", version);
    match (found.version, driver) {
        (Some(version), Some(driver)) if version.major > driver.major => finding.advice(format!(
            "newer than the driver's CUDA {driver}: update the driver, or install version {}",
            driver.major
        )),
        _ => match &found.note {
            Some(note) => finding.advice(note),
            None => finding,
        },
    }
}

/// Where kernels come from and go to.
fn kernels() -> Finding {
    if let Some(file) = std::env::var_os("AIM_CUBIN").filter(|file| !file.is_empty()) {
        return Finding::new("kernels", format!("{} ($AIM_CUBIN)", file.display()));
    }
    match compile::cache_folder() {
        Some(folder) => Finding::new("kernels", format!("kept in {}", folder.display())),
        None => Finding::new("kernels", "compiled in every run")
            .advice("set AIM_CACHE to a folder in which to keep them"),
    }
}
