//! What kernels need of the chip, read from the compiler's log.

/// Registers and memory of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelResources {
    /// Name of the kernel.
    pub name: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block, bytes; what a launch asks for comes on top.
    pub shared_bytes: u32,
    /// Bytes written to local memory for want of registers, in the code of a thread.
    pub spill_stores: u32,
    /// Bytes read back.
    pub spill_loads: u32,
    /// Stack of a thread, bytes.
    pub stack: u32,
}

/// The kernels of a log of `ptxas -v`, by name. Functions that are not inlined count towards the kernel that they are
/// listed under.
pub fn resources(log: &str) -> Vec<KernelResources> {
    let mut kernels: Vec<KernelResources> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default().to_owned();
            kernels.push(KernelResources { name, ..KernelResources::default() });
            continue;
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        if line.contains("bytes stack frame") {
            kernel.stack = kernel.stack.max(before(line, " bytes stack frame"));
            kernel.spill_stores += before(line, " bytes spill stores");
            kernel.spill_loads += before(line, " bytes spill loads");
        } else if line.contains(" registers") && line.contains("Used ") {
            kernel.registers = before(line, " registers");
            kernel.shared_bytes = before(line, " bytes smem");
        }
    }
    kernels.sort_by(|a, b| a.name.cmp(&b.name));
    kernels
}

/// The number right before `unit`, 0 if there is none.
fn before(line: &str, unit: &str) -> u32 {
    let number = line.split_once(unit).and_then(|(text, _)| text.rsplit([' ', ',']).next());
    number.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'foo' for 'sm_80'
ptxas info    : Function properties for foo
ptxas         .     8 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 256 bytes smem, 364 bytes cmem[0]
ptxas info    : Compile time = 1.142 ms
ptxas info    : Function properties for _Z1qf
ptxas         .     24 bytes stack frame, 4 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function 'bar' for 'sm_80'
ptxas info    : Function properties for bar
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, 364 bytes cmem[0]
";

    #[test]
    fn logs_are_read() {
        let [bar, foo] = &resources(LOG)[..] else { panic!("{:?}", resources(LOG)) };
        let expected = KernelResources { name: "bar".into(), registers: 8, ..Default::default() };
        assert_eq!(*bar, expected);
        assert_eq!((foo.registers, foo.shared_bytes, foo.stack), (168, 256, 24));
        assert_eq!((foo.spill_stores, foo.spill_loads), (20, 20));
        assert!(resources("").is_empty());
    }
}
