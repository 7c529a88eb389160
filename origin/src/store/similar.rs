//! Orders small contents by similarity, because a frame finds repetitions only within itself.
//!
//! Two contents count as similar if they have the same minimum hash over all their windows of 64 bytes. The
//! probability of that is the share of windows that they have in common (min-wise hashing with the rolling
//! Gear hash).

use std::collections::HashMap;

/// Equal for similar contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Likeness(u64);

/// A random number for each byte value.
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
    /// Reads every byte once, at about 1 GB/s.
    pub(super) fn of(content: &[u8]) -> Self {
        let mut hash = 0u64;
        let least = content.iter().map(|byte| {
            // A byte is shifted out after 64 further ones.
            hash = (hash << 1).wrapping_add(GEAR[usize::from(*byte)]);
            // Mixes all bits, so that the minimum is not biased towards particular windows.
            hash.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        });
        Self(least.min().unwrap_or_default())
    }
}

/// Indices of the contents in a new order: each follows the earlier ones that it resembles, otherwise order
/// is kept.
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
