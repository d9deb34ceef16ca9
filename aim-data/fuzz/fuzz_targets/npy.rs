#![no_main]

use std::io::{Seek, Write};

// The reader takes a path: the input is written to one file again and again.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    thread_local! {
        static FILE: std::cell::RefCell<tempfile::NamedTempFile> =
            std::cell::RefCell::new(tempfile::NamedTempFile::new().expect("a temporary file"));
    }
    FILE.with_borrow_mut(|file| {
        file.as_file().set_len(0).expect("cut");
        file.rewind().expect("rewound");
        file.write_all(bytes).expect("written");
        let _ = aim_tensor::io::npy::read(file.path());
    });
});
