//! Randomness that can be repeated.

/// SplitMix64 (Steele, Lea, Flood 2014): one word of state, good enough to pick operations and moments.
pub struct Seeded(u64);

impl Seeded {
    /// Takes the seed from `SYNCD_SEED`, else from the clock, and prints it, so that a failure can be repeated.
    pub fn announced(what: &str) -> Self {
        let seed = match std::env::var("SYNCD_SEED") {
            Ok(text) => text.parse().expect("SYNCD_SEED is a number"),
            Err(_) => std::time::UNIX_EPOCH.elapsed().map_or(1, |d| d.as_nanos() as u64),
        };
        println!("{what}: SYNCD_SEED={seed}");
        Self(seed)
    }

    /// Starts from this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which must not be 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_u64() % limit
    }

    /// One of the items; `None` where there is none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() { None } else { items.get(self.below(items.len() as u64) as usize) }
    }

    /// Puts the items into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// `length` bytes, text of few words (compressible) or noise.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        const WORDS: [&str; 8] =
            ["lorem ", "ipsum ", "dolor ", "sit ", "amet ", "<p>", "</p>\n", "consectetur "];
        let mut bytes = Vec::with_capacity(length + 16);
        let noise = self.one_in(3);
        while bytes.len() < length {
            let word = self.next_u64();
            if noise {
                bytes.extend_from_slice(&word.to_le_bytes());
            } else {
                bytes.extend_from_slice(WORDS[(word % 8) as usize].as_bytes());
            }
        }
        bytes.truncate(length);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_sequence() {
        let (mut a, mut b) = (Seeded::new(7), Seeded::new(7));
        assert_eq!(a.bytes(1000), b.bytes(1000));
        assert_ne!(Seeded::new(8).next_u64(), a.next_u64());
    }
}
