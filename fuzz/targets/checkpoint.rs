#![no_main]

#[allow(dead_code)]
#[path = "../checks/models.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::with_folder(|folder| checks::checkpoint(folder, data)));
