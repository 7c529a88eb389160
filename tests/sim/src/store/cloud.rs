//! An object store in memory, with the semantic and the faults of S3.
//!
//! A request is answered, is lost, takes effect without an answer, or takes effect later, after requests that
//! were sent after it. An object is created for one writer only, whenever the requests take effect.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use syncd_runtime::bucket::{Bucket, BucketError, Listed};
use syncd_tests::Seeded;

/// A change of the store.
#[derive(Debug, Clone)]
enum Write {
    Put(String, Bytes),
    Create(String, Bytes),
    Delete(String),
}

/// The store.
pub struct Cloud {
    state: Mutex<State>,
}

struct State {
    objects: BTreeMap<String, Bytes>,
    /// Given up by their writers. They may still take effect.
    late: Vec<Write>,
    random: Seeded,
    is_down: bool,
    /// One request in this number fails; 0: none.
    fault: u64,
    faults: u64,
}

impl State {
    /// Whether an object was created, replaced or deleted as wanted.
    fn apply(&mut self, write: Write) -> bool {
        match write {
            Write::Create(name, _) if self.objects.contains_key(&name) => return false,
            Write::Create(name, bytes) | Write::Put(name, bytes) => drop(self.objects.insert(name, bytes)),
            Write::Delete(name) => drop(self.objects.remove(&name)),
        }
        true
    }

    fn fails(&mut self) -> bool {
        let fails = self.is_down || self.fault > 0 && self.random.one_in(self.fault);
        self.faults += u64::from(fails);
        fails
    }

    /// `None`: there is no answer.
    fn write(&mut self, write: Write) -> Option<bool> {
        if !self.fails() {
            return Some(self.apply(write));
        }
        if self.is_down {
            return None;
        }
        match self.random.below(3) {
            0 => {}
            1 => drop(self.apply(write)),
            _ => self.late.push(write),
        }
        None
    }
}

impl Cloud {
    pub fn new(seed: u64) -> Self {
        let state = State {
            objects: BTreeMap::new(),
            late: Vec::new(),
            random: Seeded::new(seed),
            is_down: false,
            fault: 0,
            faults: 0,
        };
        Self { state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request in `fault` fails from now on; 0: none.
    pub fn set_fault(&self, fault: u64) {
        self.state().fault = fault;
    }

    pub fn set_down(&self, is_down: bool) {
        self.state().is_down = is_down;
    }

    /// Has a write take effect that its writer gave up. Returns whether there was one.
    pub fn land(&self) -> bool {
        let mut state = self.state();
        let count = state.late.len() as u64;
        if count == 0 {
            return false;
        }
        let at = state.random.below(count) as usize;
        let write = state.late.swap_remove(at);
        state.apply(write);
        true
    }

    /// An object as it is.
    pub fn object(&self, name: &str) -> Option<Bytes> {
        self.state().objects.get(name).cloned()
    }

    /// Requests that failed.
    pub fn faults(&self) -> u64 {
        self.state().faults
    }
}

/// The way of one process to the store.
pub struct Reach {
    cloud: Arc<Cloud>,
    is_cut: AtomicBool,
    /// Writes until the process dies; 0: it does not.
    left: AtomicU64,
    /// The last write is done.
    after: AtomicBool,
    is_dead: AtomicBool,
}

impl fmt::Debug for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reach")
    }
}

impl Reach {
    pub fn new(cloud: &Arc<Cloud>) -> Arc<Self> {
        let (is_cut, left, after, is_dead) = Default::default();
        Arc::new(Self { cloud: cloud.clone(), is_cut, left, after, is_dead })
    }

    /// A partition between the process and the store begins or ends.
    pub fn cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, Ordering::Relaxed);
    }

    /// Has the process die at the given write from now on, before or after it takes effect.
    pub fn dies_at(&self, write: u64, after: bool) {
        self.after.store(after, Ordering::Relaxed);
        self.left.store(write, Ordering::Relaxed);
    }

    /// Whether the process is dead, and has to be ended.
    pub fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Relaxed)
    }

    /// The state of the store that a read sees. `None`: there is no answer.
    fn reading(&self, name: &str) -> Option<MutexGuard<'_, State>> {
        let mut state = self.cloud.state();
        let is_away = self.is_dead() || self.is_cut.load(Ordering::Relaxed);
        let is_lost = is_away || !is_probe(name) && state.fails();
        (!is_lost).then_some(state)
    }

    fn write(&self, doing: &'static str, name: &str, write: Write) -> Result<bool, BucketError> {
        let mut state = self.cloud.state();
        let unanswered = || BucketError::unanswered(doing, name);
        if self.is_dead() || self.is_cut.load(Ordering::Relaxed) {
            return Err(unanswered());
        }
        if is_probe(name) {
            // Its writers run at once, so none of them may draw a number.
            return Ok(state.apply(write));
        }
        let left = self.left.load(Ordering::Relaxed);
        self.left.store(left.saturating_sub(1), Ordering::Relaxed);
        if left == 1 {
            self.is_dead.store(true, Ordering::Relaxed);
            if self.after.load(Ordering::Relaxed) {
                state.apply(write);
            }
            return Err(unanswered());
        }
        state.write(write).ok_or_else(unanswered)
    }
}

fn is_probe(name: &str) -> bool {
    name.starts_with("probe/")
}

impl Bucket for Reach {
    fn get(&self, name: &str, _: usize) -> Result<Option<Bytes>, BucketError> {
        let state = self.reading(name).ok_or_else(|| BucketError::unanswered("read", name))?;
        Ok(state.objects.get(name).cloned())
    }

    fn read(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>, BucketError> {
        let Some(bytes) = self.get(name, usize::MAX)? else { return Ok(None) };
        match bytes.get(range.start as usize..range.end as usize) {
            Some(part) => Ok(Some(bytes.slice_ref(part))),
            None => Err(BucketError::unanswered("read", name)),
        }
    }

    fn put(&self, name: &str, bytes: Bytes) -> Result<(), BucketError> {
        self.write("write", name, Write::Put(name.to_owned(), bytes)).map(drop)
    }

    fn create(&self, name: &str, bytes: Bytes) -> Result<bool, BucketError> {
        self.write("create", name, Write::Create(name.to_owned(), bytes))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, BucketError> {
        let state = self.reading(prefix).ok_or_else(|| BucketError::unanswered("list", prefix))?;
        let found = state.objects.iter().filter(|(name, _)| name.starts_with(prefix));
        let listed = found.map(|(name, bytes)| Listed {
            name: name.clone(),
            bytes: bytes.len() as u64,
            modified: SystemTime::UNIX_EPOCH,
        });
        Ok(listed.collect())
    }

    fn delete(&self, name: &str) -> Result<(), BucketError> {
        self.write("delete", name, Write::Delete(name.to_owned())).map(drop)
    }
}
