//! Small contents that resemble each other, put next to each other: a frame finds repeats only within itself.
//!
//! Two contents resemble each other where they have the same least hash over all of their windows of 64 bytes, which
//! happens as often as they have windows in common (min-wise hashing; the rolling hash is that of Gear).

use std::collections::HashMap;

/// What contents that resemble each other have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Likeness(u64);

/// A random number for each byte.
const GEAR: [u64; 256] = {
    let mut gear = [0; 256];
    let mut index = 0;
    while index < gear.len() {
        gear[index] = scramble(index as u64 + 1);
        index += 1;
    }
    gear
};

/// The finalizer of SplitMix64.
const fn scramble(state: u64) -> u64 {
    let mut z = state.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Likeness {
    /// Reads every byte once, a gigabyte a second.
    pub(super) fn of(content: &[u8]) -> Self {
        let mut hash = 0u64;
        let least = content.iter().map(|byte| {
            // A byte is shifted out after 64 others.
            hash = (hash << 1).wrapping_add(GEAR[usize::from(*byte)]);
            // Neighbouring windows differ in all bits, so that the least is any of them.
            hash.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        });
        Self(least.min().unwrap_or_default())
    }
}

/// Indices of the contents in a new order: each goes behind those before it that it resembles, the others keep theirs.
pub(super) fn order(contents: Vec<Likeness>) -> impl Iterator<Item = usize> + Send {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut by_likeness = HashMap::new();
    for (index, likeness) in contents.into_iter().enumerate() {
        let group = *by_likeness.entry(likeness).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[group].push(index);
    }
    groups.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fixture::noise;

    #[test]
    fn what_differs_in_a_line_comes_together_and_the_rest_keeps_its_order() {
        let pages: Vec<Vec<u8>> = (0..40)
            .map(|number| [noise(number % 10, 2_000), format!("\npage {number}\n").into_bytes()].concat())
            .collect();
        let order: Vec<usize> = order(pages.iter().map(|page| Likeness::of(page)).collect()).collect();
        let expected: Vec<usize> =
            (0..10).flat_map(|seed| (0..4).map(move |copy| seed + 10 * copy)).collect();
        assert_eq!(order, expected);
    }

    #[test]
    fn nothing_and_little_have_a_likeness() {
        assert_eq!(Likeness::of(b""), Likeness::of(b""));
        assert_ne!(Likeness::of(b"a"), Likeness::of(b"b"));
    }
}
