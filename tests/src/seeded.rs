//! Repeatable randomness.

/// SplitMix64 (Steele, Lea, Flood 2014): one word of state, sufficient to choose operations and times.
pub struct Seeded {
    state: u64,
    /// Command that repeats the run; printed last if the test fails.
    repeat: Option<String>,
}

/// Variables that select a run, in addition to the seed.
const CHOICES: [&str; 3] = ["SYNCD_SWEEP", "SYNCD_KINDS", "SYNCD_CASES"];

/// Seed of a run without `SYNCD_SEED`.
const USUAL: u64 = 2_026;

impl Seeded {
    /// Takes the seed from `SYNCD_SEED`, or from the clock if that is `random`. Without it each run has the
    /// same seed, so that a failure comes from a change. The seed is printed, and if this is the first local
    /// variable of a test, again as the last line of a failure, where a truncated log still shows it.
    pub fn announced(what: &str) -> Self {
        let seed = match std::env::var("SYNCD_SEED") {
            Ok(text) if text == "random" => {
                std::time::UNIX_EPOCH.elapsed().map_or(1, |d| d.as_nanos() as u64)
            }
            Ok(text) => text.parse().expect("SYNCD_SEED is a number or random"),
            Err(_) => USUAL,
        };
        println!("{what}: SYNCD_SEED={seed}");
        let choices =
            CHOICES.iter().filter_map(|name| Some(format!(" {name}='{}'", std::env::var(name).ok()?)));
        let repeat = Some(format!("{what}: repeat with SYNCD_SEED={seed}{}", choices.collect::<String>()));
        Self { state: seed, repeat }
    }

    /// Starts from this seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed, repeat: None }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which must not be 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_u64() % limit
    }

    /// A random item; `None` if there are none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() { None } else { items.get(self.below(items.len() as u64) as usize) }
    }

    /// Shuffles the items.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }

    /// True once in `n` times on average.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// `length` bytes: text of few words, which compresses, or noise.
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

impl Drop for Seeded {
    fn drop(&mut self) {
        if let Some(repeat) = self.repeat.as_ref().filter(|_| std::thread::panicking()) {
            println!("{repeat}");
        }
    }
}

/// Fails with all complaints. Their first lines, which name the cases, are repeated at the end.
#[track_caller]
pub fn assert_none(complaints: &[String]) {
    let cases: Vec<&str> = complaints.iter().filter_map(|complaint| complaint.lines().next()).collect();
    assert!(
        complaints.is_empty(),
        "complaints:\n{}\n{} complaints:\n{}",
        complaints.join("\n"),
        complaints.len(),
        cases.join("\n")
    );
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

    #[test]
    fn a_failure_ends_with_the_cases() {
        assert_none(&[]);
        let complaints =
            ["first, case 1: wrong\nits log".to_owned(), "second, case 2: gone\nits log".to_owned()];
        let failure = std::panic::catch_unwind(|| assert_none(&complaints)).expect_err("complaints");
        let text = failure.downcast::<String>().expect("a text");
        assert!(text.ends_with("2 complaints:\nfirst, case 1: wrong\nsecond, case 2: gone"), "{text}");
    }
}
