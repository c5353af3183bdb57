//! The fuzzer: libFuzzer writes inputs, guided by the code that they reach.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Err(difference) = natmig_fuzz::run(input) {
        panic!("{difference}");
    }
});
