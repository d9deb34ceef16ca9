//! Builds the emulator and the fake CUDA libraries, and points child processes at them.
//!
//! Tests of several crates share this file by `#[path]`. Nothing is built before a test asks: the compiler is `$CXX`,
//! or the first of `c++`, `g++`, `clang++` that is there. What is built lies under `target/tmp`, in a folder named by a
//! hash of all sources and flags, and is used again until one of them changes.
//!
//! ```text
//! let Some(_) = harness::libraries() else { return };          // no compiler: the reason was printed
//! let mut command = Command::new(std::env::current_exe()?);    // this test binary again
//! command.args(["--exact", "child", "--nocapture"]).env("MY_TEST_CHILD", "1");
//! harness::child_env(&mut command, 0);
//! ```
//! In the child `Gpu::open(0)` then opens the emulator. See `fake_cuda.cpp` for the environment that it reads.

// Each crate uses a part.
#![allow(dead_code, clippy::print_stderr)]

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Once, OnceLock};
use std::time::SystemTime;

use aim_kernels::cuda::sources;

/// What is compiled, besides kernels.
const FILES: [(&str, &str); 7] = [
    ("emu.h", include_str!("emu.h")),
    ("host.h", include_str!("host.h")),
    ("emu.cpp", include_str!("emu.cpp")),
    ("memory.cpp", include_str!("memory.cpp")),
    ("fake_cuda.cpp", include_str!("fake_cuda.cpp")),
    ("fake_cublaslt.cpp", include_str!("fake_cublaslt.cpp")),
    ("watch.cpp", include_str!("watch.cpp")),
];

/// For everything. Kernels read memory as other types than it was written as, as the GPU lets them.
const FLAGS: [&str; 6] =
    ["-std=c++17", "-fPIC", "-fno-strict-aliasing", "-fno-math-errno", "-pthread", "-w"];
/// For kernels. An access that is not aligned as its type asks ends the process, as it would on a GPU.
const CHECKED: [&str; 3] = ["-O2", "-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"];
/// For kernels of the watching build: the compiler calls a function at each access. Accesses stay as they are written,
/// neither joined nor taken apart: an access of 16 bytes meets other banks than four of 4.
const WATCHED: [&str; 5] =
    ["-O1", "-fsanitize=thread", "-fno-tree-vectorize", "-fno-tree-slp-vectorize", "-fno-tree-sra"];

/// The folder of the libraries with every kernel. `None` where there is no compiler; the reason was printed.
///
/// # Panics
/// Without a compiler when `CI` is set; when something does not compile.
pub(crate) fn libraries() -> Option<PathBuf> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOLDER.get_or_init(|| Build::all().make()).clone()
}

/// Lets a child process find the fake libraries instead of a driver, and run threads in one of the orders 0 to 5.
///
/// # Panics
/// If [`libraries`] gives none.
pub(crate) fn child_env(command: &mut Command, schedule: u32) {
    let folder = libraries().expect("a C++ compiler was found");
    child_env_in(command, &folder, schedule);
}

/// As [`child_env`], with the libraries of a [`Build`].
pub(crate) fn child_env_in(command: &mut Command, folder: &Path, schedule: u32) {
    command
        .env("AIM_CUDA_LIB", folder)
        .env("LD_LIBRARY_PATH", folder)
        .env("AIM_CUBIN", folder.join("kernels.cubin"))
        .env("AIM_EMULATOR_SCHEDULE", schedule.to_string());
}

/// A set of kernels to compile.
#[derive(Clone)]
pub(crate) struct Build {
    /// Name and text, headers first.
    kernels: Vec<(String, String)>,
    flags: Vec<&'static str>,
    watches: bool,
}

impl Build {
    /// Every kernel as it ships.
    pub(crate) fn all() -> Self {
        let own = |&(name, text): &(&str, &str)| (name.to_owned(), text.to_owned());
        Self {
            kernels: sources::FILES.iter().map(own).collect(),
            flags: CHECKED.to_vec(),
            watches: false,
        }
    }

    /// `prim.cuh` and one file of a test.
    pub(crate) fn with(name: &str, text: &str) -> Self {
        let mut this = Self::all();
        this.kernels.truncate(1);
        this.kernels.push((name.to_owned(), text.to_owned()));
        this
    }

    /// The kernels of some `.cu` only, which compiles faster.
    ///
    /// # Panics
    /// If one of them is not there.
    pub(crate) fn only(names: &[&str]) -> Self {
        let mut this = Self::all();
        this.kernels.retain(|(file, _)| file.ends_with(".cuh") || names.contains(&file.as_str()));
        for name in names {
            assert!(this.kernels.iter().any(|(file, _)| file == name), "no kernel source {name}");
        }
        this
    }

    /// The build that looks at every access: slower, and finds races and accesses outside memory whether or not they
    /// change a result. See `watch.cpp`.
    pub(crate) fn watching(mut self) -> Self {
        self.flags.extend(WATCHED);
        self.watches = true;
        self
    }

    /// Compiles faster and runs slower: for kernels that run once.
    pub(crate) fn quickly(mut self) -> Self {
        self.flags.push("-O1");
        self
    }

    /// Changes the text of a file.
    ///
    /// # Panics
    /// If there is no such file, or nothing changes.
    pub(crate) fn edit(mut self, name: &str, change: impl FnOnce(&str) -> String) -> Self {
        let Some((_, text)) = self.kernels.iter_mut().find(|(file, _)| file == name) else {
            panic!("no kernel source {name}");
        };
        let changed = change(text);
        assert_ne!(*text, changed, "nothing was changed in {name}");
        *text = changed;
        self
    }

    /// Compiles what is not there yet and gives the folder.
    pub(crate) fn make(&self) -> Option<PathBuf> {
        let compiler = Compiler::find()?;
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("aim-emulator");
        let mut hasher = DefaultHasher::new();
        (&self.kernels, &self.flags, self.watches, FILES, FLAGS, &compiler).hash(&mut hasher);
        let folder = root.join(format!("{:016x}", hasher.finish()));
        if in_use(&folder) {
            return Some(folder);
        }
        fs::create_dir_all(&root).expect("target/tmp can be written");
        // Tests run as several processes: one of them compiles, the others wait.
        let lock = File::create(folder.with_extension("lock")).expect("target/tmp can be written");
        lock.lock().expect("a lock on a file of our own");
        if !in_use(&folder) {
            forget_old(&root);
            self.compile(&compiler, &root, &folder);
        }
        Some(folder)
    }

    fn compile(&self, compiler: &Compiler, root: &Path, folder: &Path) {
        let work = folder.with_extension(format!("{}.tmp", std::process::id()));
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work).expect("target/tmp can be written");
        let write = |name: &str, text: &str| {
            fs::write(work.join(name), text).expect("target/tmp can be written");
        };
        for (name, text) in FILES {
            write(name, text);
        }
        write("prim.cuh", sources::FILES[0].1);
        let mut unit = String::new();
        for (name, text) in &self.kernels {
            unit += &format!("#line 1 \"{name}\"\n{text}\n");
        }
        write("kernels.cpp", &unit);
        let listed = compiler.run(&work, &["-E", "-P", "-DEMULATOR_LIST", "kernels.cpp"]);
        write("kernels.cpp", &(unit + &registrations(&listed)));

        let watch = if self.watches { "-DEMULATOR_WATCH" } else { "-UEMULATOR_WATCH" };
        let flags: Vec<_> =
            self.flags.iter().chain(["-c", "kernels.cpp"].iter()).copied().collect();
        let soname = "-Wl,-soname,libcublasLt.so.13";
        let blas = ["-O3", "-shared", soname, "-o", "libcublasLt.so.13", "fake_cublaslt.cpp"];
        std::thread::scope(|scope| {
            scope.spawn(|| compiler.run(&work, &flags));
            scope.spawn(|| {
                for name in ["emu", "memory", "fake_cuda", "watch"] {
                    let (source, object) = (format!("{name}.cpp"), format!("{name}.o"));
                    compiler.cached(root, &work, &object, &["-O2", watch, "-c", &source]);
                }
                compiler.cached(root, &work, "libcublasLt.so.13", &blas);
            });
        });
        let soname = "-Wl,-soname,libcuda.so.1";
        let mut link = vec!["-shared", soname, "-o", "libcuda.so.1"];
        link.extend(["kernels.o", "emu.o", "memory.o", "fake_cuda.o"]);
        link.extend(self.watches.then_some("watch.o"));
        compiler.run(&work, &link);
        // cudarc asks for the names without a version first.
        for (name, target) in
            [("libcuda.so", "libcuda.so.1"), ("libcublasLt.so", "libcublasLt.so.13")]
        {
            std::os::unix::fs::symlink(target, work.join(name)).expect("target/tmp can be written");
        }
        // The fake driver has its kernels already.
        write("kernels.cubin", "aim emulator\n");
        if fs::rename(&work, folder).is_err() {
            // Somebody else was first, with the same.
            assert!(folder.exists(), "{} can be renamed", work.display());
            let _ = fs::remove_dir_all(&work);
        }
    }
}

/// Whether a folder is there; marks it as used now.
fn in_use(folder: &Path) -> bool {
    // A mark that cannot be set costs a compilation later.
    File::open(folder).map(|file| file.set_modified(SystemTime::now())).is_ok()
}

/// Removes what no test has used for some days: every change of a kernel leaves its builds behind.
fn forget_old(root: &Path) {
    const DAYS: u64 = 3;
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|data| data.modified()).map(|time| time.elapsed());
        if age.is_ok_and(|age| age.is_ok_and(|age| age.as_secs() > DAYS * 24 * 60 * 60)) {
            let path = entry.path();
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}

/// Registers each kernel of a preprocessed unit under its name, with its bound of threads.
fn registrations(unit: &str) -> String {
    let mut lines = String::new();
    let words = unit.match_indices("KERNEL").filter(|(at, word)| {
        let part = |c: char| c.is_alphanumeric() || c == '_';
        !unit[..*at].ends_with(part) && !unit[at + word.len()..].starts_with(part)
    });
    for (at, word) in words {
        let mut head = unit[at + word.len()..].to_owned();
        let mut bounds = String::from("()");
        const BOUNDS: &str = "__launch_bounds__";
        if let Some(start) = head.find(BOUNDS).filter(|&at| !head[..at].contains(['{', ';'])) {
            let open = start + head[start..].find('(').expect("an argument of __launch_bounds__");
            let end = open + matching(&head[open..]);
            bounds = head[open..end].to_owned();
            head.replace_range(start..end, "");
        }
        let open = head.find('(').expect("a kernel's arguments");
        let name = head[..open].split_whitespace().next_back().expect("a kernel's name");
        lines += &format!("EMULATED_KERNEL({name}, {bounds})\n");
    }
    lines
}

/// Where the parenthesis that opens the text closes.
fn matching(text: &str) -> usize {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    panic!("a parenthesis stays open: {text}");
}

/// A C++ compiler and what it is always given.
#[derive(Hash)]
struct Compiler {
    command: Vec<String>,
    version: String,
    machine: Vec<&'static str>,
}

impl Compiler {
    fn find() -> Option<Self> {
        let asked = std::env::var("CXX").ok().filter(|name| !name.trim().is_empty());
        let candidates = match &asked {
            Some(name) => vec![name.as_str()],
            None => vec!["c++", "g++", "clang++"],
        };
        for candidate in &candidates {
            let command: Vec<_> = candidate.split_whitespace().map(str::to_owned).collect();
            let answer = Command::new(&command[0]).args(&command[1..]).arg("--version").output();
            if let Ok(answer) = answer
                && answer.status.success()
            {
                let version = String::from_utf8_lossy(&answer.stdout).into_owned();
                return Some(Self { command, version, machine: machine_flags() });
            }
        }
        let reason =
            format!("the CUDA emulator needs a C++ compiler, and none of {candidates:?} runs");
        assert!(std::env::var_os("CI").is_none(), "{reason}");
        static SAY: Once = Once::new();
        SAY.call_once(|| eprintln!("skipped: {reason}"));
        None
    }

    fn run(&self, folder: &Path, arguments: &[&str]) -> String {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).args(FLAGS).args(&self.machine).args(arguments);
        let output = command.current_dir(folder).output().expect("the compiler ran before");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}\n{errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The output `name` of a command that does not depend on kernels other than `prim.cuh`.
    fn cached(&self, root: &Path, folder: &Path, name: &str, arguments: &[&str]) {
        let mut hasher = DefaultHasher::new();
        (FILES, FLAGS, self, arguments, sources::FILES[0].1).hash(&mut hasher);
        let kept = root.join(format!("{name}.{:016x}", hasher.finish()));
        if fs::hard_link(&kept, folder.join(name)).is_ok() {
            return;
        }
        self.run(folder, arguments);
        // Whoever comes second finds the first one's, which is the same.
        let _ = fs::hard_link(folder.join(name), &kept);
    }
}

/// Instructions of this machine that make the emulator faster.
fn machine_flags() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        return vec!["-mavx2", "-mfma"];
    }
    Vec::new()
}
