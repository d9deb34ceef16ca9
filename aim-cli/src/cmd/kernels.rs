//! `aim-cli kernels`: the CUDA kernels compiled ahead of a run, and what they need of the chip.

use std::path::{Path, PathBuf};
use std::time::Instant;

use aim_kernels::cuda::compile::{self, ARCHS, Built, KernelResources};
use aim_kernels::cuda::{CudaError, Gpu};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::args::{Kernels, KernelsBuild, KernelsList};
use crate::progress::{note, warn};
use crate::stdout;
use crate::table::{Table, bytes};

pub(crate) fn run(args: &Kernels, quiet: bool) -> Result<()> {
    match args {
        Kernels::Build(args) => build(args, quiet),
        Kernels::List(args) => list(args, quiet),
    }
}

fn build(args: &KernelsBuild, quiet: bool) -> Result<()> {
    let all = args.arch == "all";
    let files: Vec<(&str, PathBuf)> = if all {
        ARCHS.iter().map(|arch| (*arch, args.out.join(format!("{arch}.cubin")))).collect()
    } else {
        vec![(&args.arch, args.out.clone())]
    };
    if all {
        std::fs::create_dir_all(&args.out)
            .with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    }
    let (mut text, mut objects) = (String::new(), Vec::new());
    for (arch, file) in files {
        let built = compiled(arch, quiet)?;
        write(&file, &built.cubin)?;
        text.push_str(&format!("{}{}\n\n", table(&built), summary(arch, &built, Some(&file))));
        objects.push(object(arch, &built, Some(&file)));
    }
    if args.json {
        return stdout::print_json(&if all { Value::Array(objects) } else { objects.remove(0) });
    }
    stdout::print(&format!("{}\n", text.trim_end()))
}

fn list(args: &KernelsList, quiet: bool) -> Result<()> {
    let arch = match &args.arch {
        Some(arch) => arch.clone(),
        None => default_arch()?,
    };
    let built = compiled(&arch, quiet)?;
    if args.json {
        return stdout::print_json(&object(&arch, &built, None));
    }
    stdout::print(&format!("{}{}\n", table(&built), summary(&arch, &built, None)))
}

/// That of the first GPU; without one, of the chip that most pre-training runs on.
fn default_arch() -> Result<String, CudaError> {
    let (major, minor) = match Gpu::list().as_deref() {
        Ok([first, ..]) => first.compute,
        _ => (9, 0),
    };
    compile::arch(major.unsigned_abs(), minor.unsigned_abs())
}

fn compiled(arch: &str, quiet: bool) -> Result<Built> {
    let start = Instant::now();
    let built = compile::build(arch)?;
    built.notes.iter().for_each(|text| warn(text));
    if built.cached.is_none() {
        note(quiet, &format!("compiled for {arch} in {:.1} s", start.elapsed().as_secs_f64()));
    }
    Ok(built)
}

/// Written beside and renamed, so that a run never loads half a file.
fn write(file: &Path, cubin: &[u8]) -> Result<()> {
    let new = file.with_extension(format!("{}.new", std::process::id()));
    std::fs::write(&new, cubin)
        .and_then(|()| std::fs::rename(&new, file))
        .inspect_err(|_| drop(std::fs::remove_file(&new)))
        .with_context(|| format!("cannot write {}", file.display()))
}

fn table(built: &Built) -> Table {
    let mut table =
        Table::new(&["kernel", ">registers", ">shared", ">stack", ">spilled", ">reloaded"]);
    for kernel in compile::resources(&built.log) {
        let KernelResources { name, registers, shared_bytes, spill_stores, spill_loads, stack } =
            kernel;
        let numbers = [registers, shared_bytes, stack, spill_stores, spill_loads];
        table.row(std::iter::once(name).chain(numbers.map(|number| number.to_string())));
    }
    table
}

fn summary(arch: &str, built: &Built, file: Option<&Path>) -> String {
    let count = compile::resources(&built.log).len();
    let size = bytes(built.cubin.len() as u64);
    let place = file.map_or_else(String::new, |file| format!(", in {}", file.display()));
    format!(
        "\n{count} kernels for {arch} by NVRTC {}, {size}{place}\nmemory in bytes: shared is static, \
         of a block; stack and spills are of a thread",
        built.nvrtc
    )
}

fn object(arch: &str, built: &Built, file: Option<&Path>) -> Value {
    let kernels: Vec<_> = compile::resources(&built.log)
        .into_iter()
        .map(|kernel| {
            json!({
                "name": kernel.name, "registers": kernel.registers,
                "shared_bytes": kernel.shared_bytes, "stack_bytes": kernel.stack,
                "spill_store_bytes": kernel.spill_stores, "spill_load_bytes": kernel.spill_loads,
            })
        })
        .collect();
    json!({
        "arch": arch, "nvrtc": built.nvrtc.to_string(), "bytes": built.cubin.len(),
        "file": file.map(|file| file.display().to_string()),
        "cache": built.cached.as_ref().map(|path| path.display().to_string()), "kernels": kernels,
    })
}
