//! `serve --publish-read`: announcements name the place outside the origin that has the bytes.
//!
//! A generation is put there before its rollout, while `head` still names the one before, and agents are told
//! once it is there. No cache learns that an object is missing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use syncd_runtime::bucket::BucketUrl;
use syncd_shared::GenerationNumber;
use tokio::sync::watch;

/// Longest time that an announcement waits for its generation. Agents then get the bytes from the origin.
const WAIT: Duration = Duration::from_secs(30);
/// Generations that are remembered.
const REMEMBERED: usize = 64;

/// The generations that are in the object store, as far as this process knows.
#[derive(Debug, Default)]
pub(super) struct Placed {
    there: BTreeSet<u64>,
    /// The highest number that was tried, with or without success.
    tried: u64,
}

impl Placed {
    pub(super) fn has(&self, number: u64) -> bool {
        self.there.contains(&number)
    }

    pub(super) fn note(&mut self, number: u64, is_there: bool) {
        self.tried = self.tried.max(number);
        if is_there {
            self.there.insert(number);
        }
        while self.there.len() > REMEMBERED {
            self.there.pop_first();
        }
    }
}

/// The place that agents are told.
#[derive(Debug, Clone)]
pub struct Locations {
    url: Arc<str>,
    placed: watch::Receiver<Placed>,
}

impl Locations {
    pub(super) fn new(url: &BucketUrl, placed: watch::Receiver<Placed>) -> Self {
        Self { url: url.as_str().into(), placed }
    }

    /// URLs for the announcement of a generation. Waits until it is there, for at most 30 s. Empty if it did
    /// not get there. Cancel safe.
    pub async fn of(mut self, generation: GenerationNumber) -> Vec<String> {
        let number = generation.get();
        let is_settled = |placed: &Placed| placed.tried >= number || placed.there.contains(&number);
        let there = match tokio::time::timeout(WAIT, self.placed.wait_for(is_settled)).await {
            Ok(Ok(placed)) => placed.there.contains(&number),
            _ => false,
        };
        if there { vec![self.url.to_string()] } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(number: u64) -> GenerationNumber {
        GenerationNumber::new(number).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn agents_are_told_of_what_is_there_and_wait_for_what_is_on_its_way() {
        let (sender, placed) = watch::channel(Placed::default());
        let url: BucketUrl = "https://cdn.example.org/site".parse().unwrap();
        let locations = Locations::new(&url, placed);
        let waiting = tokio::spawn(locations.clone().of(number(2)));
        sender.send_modify(|placed| placed.note(1, false));
        assert!(!waiting.is_finished());
        sender.send_modify(|placed| placed.note(2, true));
        assert_eq!(waiting.await.unwrap(), ["https://cdn.example.org/site"]);
        assert!(locations.clone().of(number(1)).await.is_empty(), "it failed");
        assert!(locations.of(number(3)).await.is_empty(), "it takes too long");
    }
}
