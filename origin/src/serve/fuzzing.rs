//! An agent's hello, as a function over any message. Only for fuzz targets.

#![allow(
    clippy::arithmetic_side_effects,
    reason = "asserts of the fuzz targets: nothing of it is in a program"
)]

use syncd_proto::v1;
use syncd_shared::SignedGeneration;
use syncd_shared::generation::GenerationError;

use super::session::greet;
use super::takes_updates;

/// Checks a hello, with `verify` in place of the origin's keys. Unverified generations must not become part
/// of the agent's state.
pub fn hello(verify: impl Fn(&[u8], &[u8]) -> Result<SignedGeneration, GenerationError>, hello: v1::Hello) {
    let _ = takes_updates(&hello.features);
    let shown = usize::from(hello.live.is_some()) + usize::from(hello.accepted.is_some());
    let Ok(greeting) = greet(verify, hello) else { return };
    let taken = usize::from(greeting.live.is_some()) + usize::from(greeting.accepted.is_some());
    assert_eq!(taken + greeting.notes.len(), shown, "taken, or a person is told");
}
