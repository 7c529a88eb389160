//! Runs a target under libFuzzer, selected by `SYNCD_FUZZ_TARGET`. Started by `fuzz/run`.

#![no_main]
#![allow(unsafe_code)]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use syncd_fuzz::Target;

fn target() -> &'static Target {
    static TARGET: OnceLock<&'static Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = std::env::var("SYNCD_FUZZ_TARGET").expect("SYNCD_FUZZ_TARGET names a target");
        syncd_fuzz::target(&name).unwrap_or_else(|| panic!("no target {name}"))
    })
}

fuzz_target!(|input: &[u8]| target().execute(input));
