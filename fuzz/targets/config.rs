#![no_main]

#[allow(dead_code)]
#[path = "../checks/models.rs"]
mod models;
#[allow(dead_code)]
#[path = "../checks/texts.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| models::with_folder(|folder| checks::config(folder, data)));
