//! Libraries of CUDA that are missing, broken, stubs or too old: one clear message each, and no panic.
//!
//! The libraries are made here with a C compiler. What a process has loaded stays loaded, so each case runs in a child,
//! which is this program again.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::process::Command;

use aim_kernels::cuda::{Gpu, compile, libraries};

/// What the child is asked to do.
const ASK: &str = "AIM_TEST_ASK";
/// What its answer starts with.
const ANSWER: &str = "answer: ";

/// Not a test by itself: what a child does.
#[test]
fn child() {
    let Ok(ask) = std::env::var(ASK) else { return };
    let answer = match ask.as_str() {
        "open" => Gpu::open(0).map(|gpu| format!("opened {}", gpu.name())),
        "driver" => libraries::load().map(|found| format!("{found:?}")),
        "list" => Gpu::list().map(|list| format!("{list:?}")),
        "blas" => libraries::blas().map(|found| format!("{found:?}")),
        "nvrtc" => libraries::nvrtc().map(|found| format!("{found:?}")),
        "nccl" => libraries::nccl().map(|found| format!("{found:?}")),
        arch => compile::build(arch).map(|_| "built".to_owned()),
    };
    println!("\n{ANSWER}{}", answer.unwrap_or_else(|error| format!("error: {error}")));
}

/// A folder that goes away.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("aim-libraries-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Compiles `code` to a library; false without a compiler, which only CI does not forgive.
    fn library(&self, name: &str, soname: Option<&str>, code: &str) -> bool {
        let source = self.write("stub.c", code);
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let mut command = Command::new(&compiler);
        command.args(["-shared", "-fPIC", "-w", "-o"]).arg(self.0.join(name)).arg(source);
        command.args(soname.map(|soname| format!("-Wl,-soname,{soname}")));
        match command.status() {
            Ok(status) => {
                assert!(status.success(), "{code}");
                true
            }
            Err(error) if std::env::var_os("CI").is_none() => {
                println!("skipped: no C compiler {}: {error}", compiler.display());
                false
            }
            Err(error) => panic!("no C compiler {}: {error}", compiler.display()),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The one line that a child answers with libraries from `folder`.
fn answer_with(ask: &str, variable: &str, folder: &Path, more: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).env(ASK, ask);
    for name in ["AIM_CUDA_LIB", "AIM_CUBIN", "CUDA_VISIBLE_DEVICES"] {
        command.env_remove(name);
    }
    let output = command.env(variable, folder).envs(more.iter().copied()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !errors.contains("panicked"), "{ask}: {text}{errors}");
    let lines: Vec<_> = text.lines().skip_while(|line| !line.starts_with(ANSWER)).collect();
    let end = lines.iter().position(|line| line.starts_with("test ")).unwrap_or(lines.len());
    let answer = lines[..end].iter().filter(|line| !line.is_empty()).copied();
    let answer: Vec<_> = answer.collect();
    assert_eq!(answer.len(), 1, "{ask}: one line: {text}");
    println!("{ask}: {}", answer[0]);
    answer[0][ANSWER.len()..].to_owned()
}

fn answer(ask: &str, folder: &Path) -> String {
    answer_with(ask, "AIM_CUDA_LIB", folder, &[])
}

fn expect(answer: &str, parts: &[&str]) {
    for part in parts {
        assert!(answer.contains(part), "expected '{part}' in: {answer}");
    }
}

/// A driver whose start answers `init`, with `devices` devices of compute capability `major`.5.
fn driver(init: i32, devices: i32, major: i32) -> String {
    format!(
        "#include <stddef.h>
        #include <string.h>
        typedef int R;
        R cuInit(unsigned f) {{ return {init}; }}
        R cuDriverGetVersion(int* v) {{ *v = 12090; return 0; }}
        R cuGetErrorName(int e, const char** s) {{ *s = \"CUDA_ERROR_STUB\"; return e == 12345; }}
        R cuGetErrorString(int e, const char** s) {{ *s = \"words of the stub\"; return e == 12345; }}
        R cuDeviceGetCount(int* n) {{ *n = {devices}; return 0; }}
        R cuDeviceGet(int* d, int i) {{ *d = i; return 0; }}
        R cuDeviceGetName(char* s, int n, int d) {{ strncpy(s, \"Stub card\", n); return 0; }}
        R cuDeviceGetAttribute(int* v, int a, int d) {{ *v = a == 75 ? {major} : a == 76 ? 5 : 0; return 0; }}
        R cuDeviceTotalMem_v2(size_t* n, int d) {{ *n = 1 << 30; return 0; }}
        R cuDevicePrimaryCtxRetain(void** c, int d) {{ *c = (void*)1; return 0; }}
        R cuCtxGetCurrent(void** c) {{ *c = (void*)1; return 0; }}
        R cuStreamCreate(void** s, unsigned f) {{ *s = (void*)3; return 0; }}
        R cuModuleLoadData(void** m, const void* p) {{ return 209; }}
        #define REST(name) R name() {{ return 0; }}
        REST(cuDevicePrimaryCtxRelease_v2) REST(cuCtxSetCurrent) REST(cuStreamDestroy_v2)
        REST(cuStreamSynchronize) REST(cuEventCreate) REST(cuEventRecord) REST(cuEventSynchronize)
        REST(cuEventElapsedTime_v2) REST(cuEventDestroy_v2) REST(cuModuleGetFunction)
        REST(cuFuncSetAttribute) REST(cuLaunchKernel) REST(cuMemAlloc_v2) REST(cuMemFree_v2)
        REST(cuMemGetInfo_v2) REST(cuMemsetD8Async) REST(cuMemcpyHtoDAsync_v2)
        REST(cuMemcpyDtoHAsync_v2) REST(cuMemcpyDtoDAsync_v2)"
    )
}

/// The first name that cudarc asks for: a stub called so comes before a driver of this machine.
const FIRST: Option<&str> = Some("libcuda.so");

#[test]
fn a_driver_that_does_not_start() {
    for (init, parts) in [
        (34, &["CUDA_ERROR_STUB, words of the stub", "stub for linking"][..]),
        (803, &["different versions"]),
        (999, &["nvidia_uvm"]),
        (12345, &["error 12345", "nvidia-smi"]),
    ] {
        let folder = Folder::new(&format!("init{init}"));
        if !folder.library("libcuda.so.1", FIRST, &driver(init, 1, 9)) {
            return;
        }
        for ask in ["open", "list"] {
            let answer = answer(ask, &folder.0);
            expect(&answer, &["error: no CUDA: the driver (", "libcuda.so.1) does not start: "]);
            expect(&answer, parts);
        }
    }
}

#[test]
fn a_driver_without_devices() {
    for (name, init) in [("none", 0), ("refuses", 100)] {
        let folder = Folder::new(name);
        if !folder.library("libcuda.so.1", FIRST, &driver(init, 0, 9)) {
            return;
        }
        let text = answer("open", &folder.0);
        assert_eq!(text, "error: no CUDA device 0: the driver knows none");
        assert_eq!(answer("list", &folder.0), "[]");
        let hidden = [("CUDA_VISIBLE_DEVICES", "")];
        let text = answer_with("open", "AIM_CUDA_LIB", &folder.0, &hidden);
        expect(&text, &["knows none (CUDA_VISIBLE_DEVICES is '')"]);
    }
}

#[test]
fn a_card_that_is_too_old() {
    let folder = Folder::new("old");
    if !folder.library("libcuda.so.1", FIRST, &driver(0, 1, 7)) {
        return;
    }
    expect(&answer("open", &folder.0), &["8.0 or newer", "7.5 (Stub card)"]);
    expect(&answer("list", &folder.0), &["Stub card", "memory: 1073741824", "compute: (7, 5)"]);
}

#[test]
fn compiled_kernels_that_the_driver_refuses() {
    let folder = Folder::new("refused");
    if !folder.library("libcuda.so.1", FIRST, &driver(0, 1, 8)) {
        return;
    }
    let with = |cubin: &Path| {
        let more = [("AIM_CUBIN", cubin.to_str().unwrap())];
        answer_with("open", "AIM_CUDA_LIB", &folder.0, &more)
    };
    let cubin = folder.write("kernels.cubin", "aim emulator\n");
    expect(
        &with(&cubin),
        &["loading the kernels for sm_85 from", "CUDA_ERROR_NO_BINARY_FOR_GPU", "($AIM_CUBIN)"],
    );
    expect(&with(&folder.0.join("gone")), &["compiled kernels", "gone: No such file"]);
    let program = std::env::current_exe().unwrap();
    expect(&with(&program), &["compiled kernels", "expected an ELF for CUDA (machine 190)"]);
    expect(&with(&folder.write("empty", "")), &["the file is empty"]);
}

#[test]
fn a_driver_that_lacks_functions() {
    let folder = Folder::new("lacks");
    let code = "int cuInit(unsigned f) { return 0; }";
    if !folder.library("libcuda.so.1", FIRST, code) {
        return;
    }
    for ask in ["open", "list"] {
        let answer = answer(ask, &folder.0);
        expect(&answer, &["error: no CUDA: /", "lacks cuDriverGetVersion", " more; "]);
    }
}

#[test]
fn a_file_that_is_no_library() {
    let folder = Folder::new("text");
    for name in ["libcuda.so.1", "libcublasLt.so.13", "libnvrtc.so.12", "libnccl.so.2"] {
        folder
            .write(name, "This is no library, and it is longer than the header of one would be.\n");
    }
    for ask in ["open", "blas", "nvrtc", "nccl"] {
        expect(
            &answer(ask, &folder.0),
            &["cannot be used: ", "invalid ELF header ($AIM_CUDA_LIB)"],
        );
    }
    // A file instead of a folder.
    let file = folder.0.join("libcuda.so.1");
    expect(&answer("open", &file), &["cannot be used: ", "invalid ELF header"]);
    // The loader's own search passes it over; what comes then depends on the machine.
    answer_with("open", "LD_LIBRARY_PATH", &folder.0, &[]);
}

#[test]
fn a_library_under_another_name() {
    let folder = Folder::new("soname");
    if !folder.library("libcuda.so.1", None, &driver(0, 0, 9)) {
        return;
    }
    let answer = answer("list", &folder.0);
    // A machine with a driver has another one to take.
    if answer.starts_with("error") {
        expect(&answer, &["its SONAME is not libcuda.so.1"]);
    }
}

#[test]
fn a_library_that_another_one_hides() {
    let (given, loader) = (Folder::new("given"), Folder::new("loader"));
    if !given.library("libcuda.so.1", Some("libcuda.so.1"), &driver(0, 0, 9)) {
        return;
    }
    assert!(loader.library("libcuda.so", FIRST, &driver(0, 0, 9)));
    let more = [("LD_LIBRARY_PATH", loader.0.to_str().unwrap())];
    let answer = answer_with("driver", "AIM_CUDA_LIB", &given.0, &more);
    // cudarc asks for libcuda.so first; what is used is what is told.
    let used = format!("path: \"{}\"", loader.0.join("libcuda.so").display());
    expect(&answer, &[&used, "the system's loader prefers this one", "major: 12, minor: 9"]);
}

#[test]
fn nothing_anywhere() {
    let folder = Folder::new("nothing");
    let more =
        [("PATH", ""), ("HOME", ""), ("CUDA_HOME", "/nonexistent/cuda"), ("LD_LIBRARY_PATH", "")];
    for (ask, install) in [
        ("open", "NVIDIA's driver"),
        ("blas", "pip install 'nvidia-cublas"),
        ("nvrtc", "pip install 'nvidia-cuda-nvrtc"),
        ("nccl", "apt install libnccl2"),
    ] {
        let answer = answer_with(ask, "AIM_CUDA_LIB", &folder.0, &more);
        // Unless this machine has it.
        if answer.starts_with("error: no CUDA: lib") {
            let given = format!("$AIM_CUDA_LIB ({})", folder.0.display());
            let places =
                ["the system's loader", "$CUDA_HOME (/nonexistent/cuda)", "/usr/lib/wsl/lib"];
            expect(&answer, &["was not found; looked in ", &given, install]);
            expect(&answer, &places);
        }
    }
}

#[test]
fn old_and_incomplete_libraries() {
    let folder = Folder::new("incomplete");
    let blas = "size_t cublasLtGetVersion(void) { return 11605; }
        #define REST(name) int name() { return 0; }
        REST(cublasLtCreate) REST(cublasLtDestroy) REST(cublasLtMatmul)
        REST(cublasLtMatmulAlgoGetHeuristic) REST(cublasLtMatmulDescCreate)
        REST(cublasLtMatmulDescDestroy) REST(cublasLtMatmulDescSetAttribute)
        REST(cublasLtMatmulPreferenceCreate) REST(cublasLtMatmulPreferenceDestroy)
        REST(cublasLtMatmulPreferenceSetAttribute) REST(cublasLtMatrixLayoutCreate)
        REST(cublasLtMatrixLayoutDestroy) REST(cublasLtMatrixLayoutSetAttribute)";
    let blas = format!("#include <stddef.h>\n{blas}");
    if !folder.library("libcublasLt.so.12", Some("libcublasLt.so"), &blas) {
        return;
    }
    expect(&answer("blas", &folder.0), &["its version is 11.6.5, 12.0 or newer is needed"]);
    let nccl = "int ncclGetVersion(int* v) { *v = 22703; return 0; }";
    assert!(folder.library("libnccl.so.2", Some("libnccl.so"), nccl));
    expect(&answer("nccl", &folder.0), &["libnccl.so.2", "it lacks ncclGetUniqueId, "]);
}

#[test]
fn a_compiler_without_its_other_half() {
    let folder = Folder::new("nvrtc");
    let nvrtc = "int nvrtcVersion(int* a, int* b) { *a = 13; *b = 98; return 0; }
        int nvrtcGetNumSupportedArchs(int* n) { *n = 2; return 0; }
        int nvrtcGetSupportedArchs(int* a) { a[0] = 75; a[1] = 80; return 0; }
        int nvrtcCreateProgram(void** p) { *p = (void*)1; return 0; }
        int nvrtcCompileProgram() { return 6; }
        int nvrtcGetProgramLogSize(void* p, unsigned long* n) { *n = 5; return 0; }
        int nvrtcGetProgramLog(void* p, char* s) { __builtin_memcpy(s, \"oops\", 5); return 0; }
        int nvrtcGetCUBINSize() { return 1; } int nvrtcGetCUBIN() { return 1; }
        int nvrtcDestroyProgram() { return 0; }
        const char* nvrtcGetErrorString(int e) { return \"NVRTC_ERROR_STUB\"; }";
    // Where pip puts it, seen from the folder that pip was given.
    let wheel = Folder(folder.0.join("nvidia/cu13/lib"));
    std::fs::create_dir_all(&wheel.0).unwrap();
    if !wheel.library("libnvrtc.so.13", Some("libnvrtc.so.13"), nvrtc) {
        return;
    }
    let needs = "it needs libnvrtc-builtins.so.13.98, which is not beside it ($AIM_CUDA_LIB)";
    expect(&answer("nvrtc", &folder.0), &["cannot be used: ", needs]);
    let builtins = "libnvrtc-builtins.so.13.98";
    assert!(wheel.library(builtins, Some(builtins), "int builtin;"));
    expect(&answer("nvrtc", &folder.0), &["cu13/lib/libnvrtc.so.13", "major: 13, minor: 98"]);

    let cache = [("AIM_CACHE", folder.0.to_str().unwrap())];
    let ask = |arch| answer_with(arch, "AIM_CUDA_LIB", &folder.0, &cache);
    expect(&ask("sm_90a"), &["NVRTC 13.98 (", "compiles nothing that runs on sm_90a; install"]);
    expect(&ask("fast"), &["kernels on CUDA: expected an architecture such as", "found fast"]);
}
