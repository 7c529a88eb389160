//! Every decoder of outside input (network, disk, people), as a function over any bytes.
//!
//! One function for each decoder, shared by `fuzz/run` (libFuzzer, guided by coverage) and the smoke test
//! (stable Rust, fixed inputs). A target must return: a panic, an overflow, a hang or an allocation beyond
//! its limits is a finding. For accepted bytes it also asserts the guarantees of the type, usually that
//! encoding yields the same bytes.
//!
//! The first byte of an input selects the mode. If it is even, the rest goes to the decoder; if it is odd,
//! the rest steers a generator of a valid value, usually with one mutation. Coverage thus guides both.

mod identities;
mod mutation;
mod targets;
mod values;

use arbitrary::Unstructured;

pub use targets::{TARGETS, target};

/// A fuzz target for one decoder.
pub struct Target {
    /// Also names the directories of its inputs.
    pub name: &'static str,
    /// Decodes bytes and asserts their invariants.
    pub decode: fn(&[u8]),
    /// Generates nearly valid bytes.
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
