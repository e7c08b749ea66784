#![no_main]

#[path = "../checks/tensors.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::tensors(data));
