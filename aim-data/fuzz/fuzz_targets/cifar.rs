#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| aim_data_fuzz::run("cifar", bytes));
