//! What an agent says first, as a function over any message: for the fuzz targets alone.

#![allow(
    clippy::arithmetic_side_effects,
    reason = "asserts of the fuzz targets: nothing of it is in a program"
)]

use syncd_proto::v1;
use syncd_shared::SignedGeneration;
use syncd_shared::generation::GenerationError;

use super::session::greet;
use super::takes_updates;

/// A hello; `verify` stands for the origin's keys. What is not verified must not be taken for the agent's state.
pub fn hello(verify: impl Fn(&[u8], &[u8]) -> Result<SignedGeneration, GenerationError>, hello: v1::Hello) {
    let _ = takes_updates(&hello.features);
    let shown = usize::from(hello.live.is_some()) + usize::from(hello.accepted.is_some());
    let Ok(greeting) = greet(verify, hello) else { return };
    let taken = usize::from(greeting.live.is_some()) + usize::from(greeting.accepted.is_some());
    assert_eq!(taken + greeting.notes.len(), shown, "taken, or a person is told");
}
