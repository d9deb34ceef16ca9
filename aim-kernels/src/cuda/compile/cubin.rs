//! A look at a file with compiled kernels before the driver gets it.

/// `EM_CUDA`.
const MACHINE: u16 = 190;
/// The first ABI version, CUDA 13's, that keeps the chip one byte further up.
const ABI_13: u8 = 8;

/// Whether a file can hold kernels for a chip of this compute capability. What is no ELF, such as PTX, is left to the
/// driver to judge.
pub(super) fn check(file: &[u8], major: u32, minor: u32) -> Result<(), String> {
    if file.is_empty() {
        return Err("the file is empty".to_owned());
    }
    if !file.starts_with(b"\x7fELF") {
        return Ok(());
    }
    let half = |at: usize| Some(u16::from_le_bytes(file.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?));
    let (Some(machine), Some(flags), Some(&abi)) = (half(18), word(48), file.get(8)) else {
        return Err(format!("it ends within its header, after {} bytes", file.len()));
    };
    if machine != MACHINE {
        return Err(format!(
            "expected an ELF for CUDA (machine {MACHINE}), found machine {machine}"
        ));
    }
    let chip = if abi >= ABI_13 { flags >> 8 & 0xff } else { flags & 0xff };
    // Code runs on chips of its major version that are not older.
    if chip / 10 != major || chip % 10 > minor {
        return Err(format!(
            "it is for chips of {}.{}, this one is {major}.{minor}",
            chip / 10,
            chip % 10
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(machine: u16, abi: u8, flags: u32) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..4].copy_from_slice(b"\x7fELF");
        file[8] = abi;
        file[18..20].copy_from_slice(&machine.to_le_bytes());
        file[48..52].copy_from_slice(&flags.to_le_bytes());
        file
    }

    #[test]
    fn headers() {
        // As NVRTC 13.0 and 12.9 write them for sm_90a.
        assert_eq!(check(&elf(190, 8, 0x0900_5a04), 9, 0), Ok(()));
        assert_eq!(check(&elf(190, 7, 0x005a_055a), 9, 0), Ok(()));
        assert_eq!(check(&elf(190, 8, 0x0900_5604), 8, 9), Ok(()), "8.6 runs on 8.9");
        assert!(check(&elf(190, 8, 0x0900_5a04), 8, 9).is_err_and(|reason| reason.contains("9.0")));
        assert!(check(&elf(190, 8, 0x0900_5904), 8, 0).is_err());
        assert!(check(&elf(62, 8, 0), 9, 0).is_err_and(|reason| reason.contains("62")));
        assert!(check(&elf(190, 8, 0)[..20], 9, 0).is_err());
        assert!(check(b"", 9, 0).is_err());
        assert_eq!(check(b"aim emulator\n", 9, 0), Ok(()));
    }
}
