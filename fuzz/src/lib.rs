//! Every decoder of what arrives from outside (the wire, a disk, a person), as a function over any bytes.
//!
//! One function for each decoder, shared by `fuzz/run` (libFuzzer, guided by coverage) and by the smoke test (stable
//! Rust, fixed inputs). A target must return: a panic, an overflow, a hang or an allocation beyond its limits is a
//! finding. Where bytes are accepted it also asserts what the type promises, mostly that encoding gives the same bytes.
//!
//! The first byte of an input chooses: even, and the rest is what the decoder gets; odd, and the rest steers a generator
//! that makes a valid value, mostly with one thing wrong. So coverage guides both.

mod identities;
mod mutation;
mod targets;
mod values;

use arbitrary::Unstructured;

pub use targets::{TARGETS, target};

/// One decoder.
pub struct Target {
    /// Also the name of its directories of inputs.
    pub name: &'static str,
    /// Decodes bytes and asserts what must hold of them.
    pub decode: fn(&[u8]),
    /// Makes bytes that are nearly right.
    pub generate: fn(&mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>>,
}

impl Target {
    /// Runs one input.
    pub fn execute(&self, input: &[u8]) {
        let Some((mode, rest)) = input.split_first() else { return };
        if mode % 2 == 0 {
            (self.decode)(rest);
        } else if let Ok(bytes) = (self.generate)(&mut Unstructured::new(rest)) {
            (self.decode)(&bytes);
        }
    }
}
