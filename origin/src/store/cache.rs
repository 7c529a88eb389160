//! A least-recently-used cache of decoded directory objects, bounded by bytes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use syncd_shared::directory::Page;
use syncd_shared::hash::ObjectHash;

/// Estimated ratio of decoded to canonical bytes.
const DECODED_FACTOR: usize = 2;

/// Cache of decoded directory objects. See the module documentation.
#[derive(Debug)]
pub(super) struct DirectoryCache {
    entries: HashMap<ObjectHash, Cached>,
    by_use: BTreeMap<u64, ObjectHash>,
    uses: u64,
    bytes: usize,
    limit_bytes: usize,
}

#[derive(Debug)]
struct Cached {
    page: Arc<Page>,
    bytes: usize,
    used: u64,
}

impl DirectoryCache {
    pub(super) fn new(limit_bytes: usize) -> Self {
        Self { entries: HashMap::new(), by_use: BTreeMap::new(), uses: 0, bytes: 0, limit_bytes }
    }

    pub(super) fn get(&mut self, hash: &ObjectHash) -> Option<Arc<Page>> {
        let cached = self.entries.get_mut(hash)?;
        self.by_use.remove(&cached.used);
        self.uses += 1;
        cached.used = self.uses;
        self.by_use.insert(cached.used, *hash);
        Some(cached.page.clone())
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new(self.limit_bytes);
    }

    /// Adds an object, unless it would take more than a quarter of the cache.
    pub(super) fn put(&mut self, hash: ObjectHash, page: &Arc<Page>, canonical_bytes: usize) {
        let bytes = canonical_bytes * DECODED_FACTOR + 256;
        if bytes > self.limit_bytes / 4 || self.entries.contains_key(&hash) {
            return;
        }
        while self.bytes + bytes > self.limit_bytes {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            if let Some(cached) = self.entries.remove(&oldest) {
                self.bytes -= cached.bytes;
            }
        }
        self.uses += 1;
        self.by_use.insert(self.uses, hash);
        self.entries.insert(hash, Cached { page: page.clone(), bytes, used: self.uses });
        self.bytes += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_its_bytes_and_keeps_what_is_used() {
        let mut cache = DirectoryCache::new(10_000);
        let page = Arc::new(Page::default());
        let hash = |i: u8| ObjectHash::from_bytes([i; 32]);
        for i in 0..100 {
            cache.put(hash(i), &page, 100);
            assert!(cache.get(&hash(0)).is_some());
            assert!(cache.bytes <= 10_000);
            assert_eq!(cache.entries.len(), cache.by_use.len());
        }
        assert!(cache.get(&hash(1)).is_none());
        cache.put(hash(200), &page, 9_000);
        assert!(cache.get(&hash(200)).is_none());
    }
}
