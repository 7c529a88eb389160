//! Tests of the probe and of fenced commits, with object stores that break their promises.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use syncd_runtime::bucket::{Bucket, BucketError, BucketUrl, Listed};
use syncd_shared::{Generation, GenerationNumber, RootEntry, SignedGeneration};

use super::fenced::{FenceError, FencedCommits};
use super::probe::{ProbeError, probe};
use crate::keys::Keys;
use crate::store::Store;

fn bucket(directory: &Path) -> Arc<dyn Bucket> {
    std::fs::create_dir_all(directory.join("bucket")).unwrap();
    let url: BucketUrl = format!("file://{}/bucket", directory.display()).parse().unwrap();
    url.open().unwrap()
}

/// An object store that ignores conditions, as some do.
#[derive(Debug)]
struct Unconditional(Arc<dyn Bucket>);

impl Bucket for Unconditional {
    fn get(&self, name: &str, limit: usize) -> Result<Option<Bytes>, BucketError> {
        self.0.get(name, limit)
    }
    fn read(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>, BucketError> {
        self.0.read(name, range)
    }
    fn put(&self, name: &str, bytes: Bytes) -> Result<(), BucketError> {
        self.0.put(name, bytes)
    }
    fn create(&self, name: &str, bytes: Bytes) -> Result<bool, BucketError> {
        self.0.put(name, bytes).map(|()| true)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Listed>, BucketError> {
        self.0.list(prefix)
    }
    fn delete(&self, name: &str) -> Result<(), BucketError> {
        self.0.delete(name)
    }
}

/// Creates objects, and says that it failed.
#[derive(Debug)]
struct Deceptive {
    inner: Arc<dyn Bucket>,
    lies: AtomicBool,
}

impl Bucket for Deceptive {
    fn get(&self, name: &str, limit: usize) -> Result<Option<Bytes>, BucketError> {
        self.inner.get(name, limit)
    }
    fn read(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>, BucketError> {
        self.inner.read(name, range)
    }
    fn put(&self, name: &str, bytes: Bytes) -> Result<(), BucketError> {
        self.inner.put(name, bytes)
    }
    fn create(&self, name: &str, bytes: Bytes) -> Result<bool, BucketError> {
        let created = self.inner.create(name, bytes)?;
        if self.lies.swap(false, Ordering::Relaxed) {
            return Err(BucketError::unanswered("create", name));
        }
        Ok(created)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Listed>, BucketError> {
        self.inner.list(prefix)
    }
    fn delete(&self, name: &str) -> Result<(), BucketError> {
        self.inner.delete(name)
    }
}

#[test]
fn a_directory_keeps_its_promises_and_a_store_without_conditions_is_found_out() {
    let directory = tempfile::tempdir().unwrap();
    let good = bucket(directory.path());
    probe(&*good).unwrap();
    assert!(good.list("probe/").unwrap().is_empty(), "no litter");
    let error = probe(&Unconditional(good)).unwrap_err();
    assert!(matches!(error, ProbeError::Created { writers: 8 }), "{error}");
}

struct World {
    directory: tempfile::TempDir,
    keys: Arc<Keys>,
    store: Arc<Store>,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        let keys = Arc::new(Keys::create(&data).unwrap());
        let store = Arc::new(Store::create(&data).unwrap());
        Self { directory, keys, store }
    }

    fn origin(&self) -> FencedCommits {
        self.origin_at(bucket(self.directory.path()))
    }

    fn origin_at(&self, bucket: Arc<dyn Bucket>) -> FencedCommits {
        FencedCommits::open(bucket, &self.store, self.keys.clone()).unwrap()
    }

    /// An origin with the same keys, and nonces of its own: a copy, or one that was promoted.
    fn other(&self) -> FencedCommits {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::create(directory.path()).unwrap();
        FencedCommits::open(bucket(self.directory.path()), &store, self.keys.clone()).unwrap()
    }

    fn generation(&self, epoch: u32, number: u64, label: &str) -> SignedGeneration {
        self.keys.sign(Generation {
            tree_id: self.keys.tree_id(),
            epoch,
            number: GenerationNumber::new(number).unwrap(),
            trust: 1,
            root: RootEntry::empty(),
            parent: None,
            created_ms: 0,
            label: label.into(),
        })
    }
}

#[test]
fn one_of_two_origins_from_one_backup_is_held() {
    let world = World::new();
    let (one, two) = (world.origin(), world.other());
    let first = one.commit(world.generation(1, 1, "one"), None, None).unwrap();
    assert_eq!(first.number().get(), 1);
    let error = two.commit(world.generation(1, 1, "two"), None, None).unwrap_err();
    assert!(error.to_string().contains("two origins run from one backup"), "{error}");
    let again = two.commit(world.generation(1, 2, "two"), None, None).unwrap_err();
    assert!(matches!(again, FenceError::Held(_)), "it stays held: {again}");
    assert_eq!(one.commit(world.generation(1, 2, "on"), Some(&first), None).unwrap().number().get(), 2);
}

#[test]
fn a_promoted_origin_deposes_the_one_before_and_skips_what_it_wrote_late() {
    let world = World::new();
    let (old, new) = (world.origin(), world.other());
    let first = old.commit(world.generation(1, 1, "first"), None, None).unwrap();
    old.commit(world.generation(1, 2, "not seen by the other"), Some(&first), None).unwrap();
    let place = crate::commit::Promotion::after(1, first.number(), world.keys.trust().document()).unwrap();
    let wanted = world.generation(place.epoch, place.number.get(), "taken over");
    let claim = new.commit(wanted, Some(&first), Some(place)).unwrap();
    assert_eq!((claim.epoch(), claim.number().get()), (2, 3));
    let error = old.commit(world.generation(1, 3, "late"), Some(&first), None).unwrap_err();
    assert!(error.to_string().contains("deposed"), "{error}");
    let next = new.commit(world.generation(2, 4, "next"), Some(&claim), Some(place)).unwrap();
    assert_eq!(next.number().get(), 3 + (1 << 20));
}

#[test]
fn an_answer_that_got_lost_and_a_crash_cost_at_most_a_number() {
    let world = World::new();
    let store = Arc::new(Deceptive { inner: bucket(world.directory.path()), lies: AtomicBool::new(false) });
    let origin = world.origin_at(store.clone());
    store.lies.store(true, Ordering::Relaxed);
    let first = origin.commit(world.generation(1, 1, "lost answer"), None, None).unwrap();
    assert_eq!(first.number().get(), 1, "it was there when it was read back");
    // A crash before the local seal: the number is used up.
    let again = world.origin().commit(world.generation(1, 1, "after a crash"), None, None).unwrap();
    assert_eq!((again.number().get(), again.generation().label.as_str()), (2, "after a crash"));
}
