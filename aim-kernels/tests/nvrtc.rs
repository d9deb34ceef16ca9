//! All kernels through NVRTC, for every architecture: they compile, and none spills registers. And the cache.
//!
//! No GPU and no driver is needed, only NVRTC: `pip install --target DIR 'nvidia-cuda-nvrtc==13.0.*'`, and
//! `AIM_CUDA_LIB=DIR`. Without it the tests say so and pass, except in CI. Each compilation is a child process, this
//! program again, so that it has an environment of its own.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use aim_kernels::cuda::compile::{self, ARCHS, KernelResources};
use aim_kernels::cuda::libraries;

/// The architecture that the child is asked to compile for.
const ASK: &str = "AIM_TEST_ARCH";

/// Not a test by itself: what a child does.
#[test]
fn child() {
    let Ok(arch) = std::env::var(ASK) else { return };
    println!();
    match compile::build(&arch) {
        Ok(built) => {
            for note in &built.notes {
                println!("note: {note}");
            }
            for kernel in compile::resources(&built.log) {
                let KernelResources { name, registers, shared_bytes, .. } = &kernel;
                let KernelResources { spill_stores, spill_loads, stack, .. } = &kernel;
                println!(
                    "kernel: {name} {registers} {shared_bytes} {spill_stores} {spill_loads} {stack}"
                );
            }
            println!("cubin: {}", blake3::hash(&built.cubin));
            println!("cached: {}", built.cached.is_some());
        }
        Err(error) => println!("error: {error}"),
    }
}

/// What a child said.
#[derive(Debug, Default)]
struct Answer {
    error: String,
    notes: Vec<String>,
    kernels: Vec<KernelResources>,
    cubin: String,
    cached: bool,
}

impl Answer {
    fn read(text: &str) -> Self {
        let mut answer = Self::default();
        // An error is the last line, and a compiler's goes on over several.
        if let Some((_, error)) = text.split_once("\nerror: ") {
            answer.error = error.split("\ntest ").next().unwrap_or_default().trim().to_owned();
            return answer;
        }
        for (key, value) in text.lines().filter_map(|line| line.split_once(": ")) {
            match key {
                "note" => answer.notes.push(value.to_owned()),
                "cubin" => answer.cubin = value.to_owned(),
                "cached" => answer.cached = value == "true",
                "kernel" => {
                    let mut words = value.split(' ');
                    let name = words.next().unwrap().to_owned();
                    let numbers: Vec<u32> = words.map(|word| word.parse().unwrap()).collect();
                    let [registers, shared_bytes, spill_stores, spill_loads, stack] = numbers[..]
                    else {
                        panic!("{value}");
                    };
                    answer.kernels.push(KernelResources {
                        name,
                        registers,
                        shared_bytes,
                        spill_stores,
                        spill_loads,
                        stack,
                    });
                }
                _ => {}
            }
        }
        answer
    }

    fn built(self) -> Self {
        assert!(self.error.is_empty() && !self.cubin.is_empty(), "{}", self.error);
        self
    }
}

fn start(arch: &str, cache: &Path, more: &[(&str, &Path)]) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).env(ASK, arch).env("AIM_CACHE", cache);
    command.envs(more.iter().copied()).stdout(Stdio::piped()).spawn().unwrap()
}

fn finish(child: Child) -> Answer {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    Answer::read(&text)
}

fn build(arch: &str, cache: &Path) -> Answer {
    finish(start(arch, cache, &[]))
}

/// Whether NVRTC is here. It has to be in CI.
fn ready() -> bool {
    match libraries::nvrtc() {
        Ok(_) => true,
        Err(missing) if std::env::var_os("CI").is_none() => {
            println!("skipped: {missing}");
            false
        }
        Err(missing) => panic!("{missing}"),
    }
}

/// A folder in the target folder: compiled kernels are kept from one run of the tests to the next.
fn kept() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("kernels")
}

/// A folder that goes away.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let id = std::process::id();
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("nvrtc-{name}-{id}"));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            self.0.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Compiles for all architectures, as many at a time as there are cores.
fn build_all() -> BTreeMap<&'static str, Answer> {
    let (next, answers) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores.min(ARCHS.len()) {
            scope.spawn(|| {
                while let Some(arch) = ARCHS.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let answer = build(arch, &kept());
                    answers.lock().unwrap().insert(*arch, answer);
                }
            });
        }
    });
    answers.into_inner().unwrap()
}

#[test]
fn every_kernel_compiles_for_every_architecture_without_spills() {
    if !ready() {
        return;
    }
    let mut table: BTreeMap<String, BTreeMap<&str, KernelResources>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (arch, answer) in build_all() {
        if !answer.error.is_empty() {
            wrong.push(answer.error);
            continue;
        }
        for kernel in answer.kernels {
            if kernel.spill_stores + kernel.spill_loads > 0 {
                wrong.push(format!(
                    "{} on {arch} spills: {} bytes stored, {} loaded, {} registers",
                    kernel.name, kernel.spill_stores, kernel.spill_loads, kernel.registers
                ));
            }
            table.entry(kernel.name.clone()).or_default().insert(arch, kernel);
        }
    }
    // Not through the captured streams: the table is wanted from a run that passes.
    let mut printed = std::io::stderr();
    let _ = writeln!(printed, "registers / static shared memory (+ bytes spilled)");
    let _ = writeln!(printed, "{:<44}{}", "", cells(str::to_owned));
    for (name, row) in &table {
        let cell = |arch: &str| match row.get(arch) {
            Some(kernel) => {
                let spilled = kernel.spill_stores + kernel.spill_loads;
                let spilled = if spilled > 0 { format!(" +{spilled}") } else { String::new() };
                format!("{}/{}{spilled}", kernel.registers, kernel.shared_bytes)
            }
            None => "missing".to_owned(),
        };
        let _ = writeln!(printed, "{name:<44}{}", cells(cell));
        if row.len() < ARCHS.len() {
            wrong.push(format!("{name} is not there for every architecture"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(!table.is_empty(), "no kernels");
}

/// A row of the table.
fn cells(cell: impl Fn(&str) -> String) -> String {
    ARCHS.iter().map(|arch| format!("{:>12}", cell(arch))).collect()
}

#[test]
fn two_processes_at_once() {
    if !ready() {
        return;
    }
    let folder = Folder::new("two");
    let cache = folder.0.join("made/when/needed");
    let children = [start("sm_80", &cache, &[]), start("sm_80", &cache, &[])];
    let [first, second] = children.map(|child| finish(child).built());
    // Each compiled, or one came so late that the other's entry was there; nothing is half written.
    assert!(first.notes.is_empty() && second.notes.is_empty(), "{first:?} {second:?}");
    assert_eq!(first.kernels, second.kernels);
    let again = build("sm_80", &cache).built();
    assert!(again.cached && (again.cubin == first.cubin || again.cubin == second.cubin));
    assert_eq!(again.kernels, first.kernels, "the log is kept");
    assert_eq!(Folder(cache.clone()).files().len(), 1, "nothing else is left");
}

#[test]
fn the_cache() {
    if !ready() {
        return;
    }
    let folder = Folder::new("cache");
    // The first time this compiles, then it is read.
    let first = build("sm_90a", &folder.0).built();
    assert!(!first.cached && first.notes.is_empty(), "{first:?}");
    let second = build("sm_90a", &folder.0).built();
    assert!(second.cached && second.cubin == first.cubin && second.kernels == first.kernels);

    // A file of the right name that is no library stands for a machine without NVRTC.
    let without = Folder::new("without");
    std::fs::write(without.0.join("libnvrtc.so.13"), "no library").unwrap();
    let missing = ("AIM_CUDA_LIB", without.0.as_path());
    let third = finish(start("sm_90a", &folder.0, &[missing])).built();
    assert!(third.cached && third.cubin == first.cubin);
    let never = finish(start("sm_80", &folder.0, &[missing]));
    assert!(never.error.contains("libnvrtc.so.13") && !never.error.contains('\n'), "{never:?}");

    // Damage is seen and mended.
    let [entry] = &folder.files()[..] else { panic!("{:?}", folder.files()) };
    assert!(std::fs::read(entry).unwrap().starts_with(b"\x7fELF"), "tools can read an entry");
    let mut bytes = std::fs::read(entry).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(entry, &bytes).unwrap();
    let never = finish(start("sm_90a", &folder.0, &[missing]));
    assert!(!never.error.is_empty(), "a damaged entry is never used");
    let mended = build("sm_90a", &folder.0).built();
    assert!(!mended.cached && mended.kernels == first.kernels);
    assert!(mended.notes.len() == 1 && mended.notes[0].contains("is damaged"), "{mended:?}");
    assert!(build("sm_90a", &folder.0).built().cached);
}

#[test]
fn a_cache_that_cannot_be_written_costs_a_note() {
    if !ready() {
        return;
    }
    let folder = Folder::new("unwritable");
    let file = folder.0.join("file");
    std::fs::write(&file, "in the way of a folder").unwrap();
    let built = build("sm_89", &file.join("below")).built();
    assert!(!built.cached);
    let [.., note] = &built.notes[..] else { panic!("{built:?}") };
    assert!(note.contains("could not be kept") && note.contains("AIM_CACHE"), "{note}");
}
