#![no_main]

#[allow(dead_code)]
#[path = "../checks/store.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::with_yard(|yard| checks::manifest(yard, data)));
