#![no_main]

// What a Hub says of a model, and what the cache keeps of that: what must hold is beside what reads it.
libfuzzer_sys::fuzz_target!(|data: &[u8]| hub_fetch::fuzzing::listing(data));
