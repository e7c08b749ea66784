#![no_main]

#[path = "../checks/signatures.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::signatures(data));
