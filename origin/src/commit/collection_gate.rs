//! Keeps garbage collection and whoever reads the whole store out of each other's way: what is moved meanwhile would be
//! taken for damage. Commits only add, and pass freely.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// See the module. Clones are of one gate.
#[derive(Debug, Clone, Default)]
pub struct CollectionGate(Arc<Mutex<()>>);

impl CollectionGate {
    /// Keeps collection away until the guard is dropped; waits for one that is under way. Blocks.
    pub fn close(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For collection: passes if nobody holds the gate.
    pub(super) fn pass(&self) -> Option<MutexGuard<'_, ()>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collection_does_not_pass_a_gate_that_is_held() {
        let gate = CollectionGate::default();
        let held = gate.close();
        assert!(gate.clone().pass().is_none());
        drop(held);
        assert!(gate.pass().is_some());
    }
}
