//! A queue of work for a few threads: a free thread takes the oldest item.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// Receiving end, which each thread clones. Ends when the sender is dropped and the queue is empty.
#[derive(Debug)]
pub struct Waiting<T>(Arc<Mutex<Receiver<T>>>);

/// Creates a queue that holds at most `most` items. Sending blocks while it is full, and fails when no
/// receiver is left.
pub fn queue<T>(most: usize) -> (SyncSender<T>, Waiting<T>) {
    let (sender, receiver) = sync_channel(most);
    (sender, Waiting(Arc::new(Mutex::new(receiver))))
}

impl<T> Clone for Waiting<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Iterator for Waiting<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        // The lock is held while waiting: other threads wait for the lock instead of the queue.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_slow_job_holds_up_nobody_else() {
        let (sender, waiting) = queue(1);
        let (done, results) = std::sync::mpsc::channel();
        let (go, held) = sync_channel::<()>(0);
        let mut slow = waiting.clone();
        let first = std::thread::spawn(move || {
            let job: u32 = slow.next().expect("a job");
            held.recv().expect("to be let go");
            job
        });
        sender.send(0).expect("somebody takes it");
        while first.is_finished() || sender.try_send(1).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let others = std::thread::spawn(move || waiting.for_each(|job| done.send(job).expect("a listener")));
        (2..50).for_each(|job| sender.send(job).expect("somebody takes it"));
        drop(sender);
        others.join().expect("no panic");
        assert_eq!(results.iter().collect::<Vec<_>>(), (1..50).collect::<Vec<_>>());
        drop(go);
        assert!(first.join().is_err(), "it was not let go");
    }

    #[test]
    fn sending_fails_when_nobody_takes() {
        let (sender, waiting) = queue(2);
        let other = waiting.clone();
        drop(waiting);
        sender.send(1).expect("there is room");
        drop(other);
        assert!(sender.send(2).is_err());
    }
}
