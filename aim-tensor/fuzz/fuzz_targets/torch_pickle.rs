#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| aim_tensor_fuzz::run("torch_pickle", bytes));
