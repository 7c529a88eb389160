//! Keeps garbage collection from running while the whole store is read, because moved chunks would look like
//! damage. Commits only add data and are not affected.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// Excludes collection. See the module documentation. Clones share one gate.
#[derive(Debug, Clone, Default)]
pub struct CollectionGate(Arc<Mutex<()>>);

impl CollectionGate {
    /// Blocks until a running collection ends, and prevents further ones until the guard is dropped.
    pub fn close(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the collection: passes if nobody holds the gate.
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
