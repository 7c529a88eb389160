//! A few threads that read files in blocks in path order, so that files adjacent in the tree are adjacent in
//! the store.
//!
//! Threads are started when there is more than one block; a small scan reads on its own thread. The number of
//! blocks in flight is bounded, and with it the number of directories waiting for them.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::thread::{Scope, ScopedJoinHandle};

use syncd_runtime::queue::{Waiting, queue};
use syncd_shared::{Component, TreePath};

use super::content::{Content, ContentReader};
use super::error::ScanError;

/// Number of files that fill a block.
const BLOCK_FILES: usize = 64;
const BLOCK_BYTES: u64 = 1024 * 1024;
/// Blocks that may wait, per thread.
const BLOCKS_WAITING: usize = 4;
const THREADS_MAX: usize = 8;

/// A file to read.
#[derive(Debug)]
pub(super) struct Job {
    /// ID of the waiting directory.
    pub directory: u64,
    pub name: Component,
    pub path: TreePath,
}

/// Result of a job.
#[derive(Debug)]
pub(super) struct Done {
    pub job: Job,
    pub content: Content,
}

type Outcome = Result<Vec<Done>, ScanError>;

/// Reads files on several threads. See the module documentation.
pub(super) struct Pool<'scope, 'env, F> {
    scope: &'scope Scope<'scope, 'env>,
    reader: F,
    block: Vec<Job>,
    block_bytes: u64,
    running: Option<Running<'scope>>,
}

struct Running<'scope> {
    threads: Vec<ScopedJoinHandle<'scope, Result<(), ScanError>>>,
    blocks: SyncSender<Vec<Job>>,
    results: Receiver<Outcome>,
    in_flight: usize,
    limit: usize,
}

impl<'scope, 'env, F> Pool<'scope, 'env, F>
where
    F: Fn() -> ContentReader<'env> + Clone + Send + 'scope,
{
    pub(super) fn new(scope: &'scope Scope<'scope, 'env>, reader: F) -> Self {
        Self { scope, reader, block: Vec::new(), block_bytes: 0, running: None }
    }

    /// Adds a file. Returns results that became available.
    pub(super) fn submit(&mut self, job: Job, size: u64) -> Outcome {
        self.block.push(job);
        self.block_bytes = self.block_bytes.saturating_add(size);
        if self.block.len() < BLOCK_FILES && self.block_bytes < BLOCK_BYTES {
            return Ok(Vec::new());
        }
        self.send()
    }

    /// Finishes reading: writes all frames and returns the remaining results.
    pub(super) fn finish(mut self) -> Outcome {
        if self.running.is_none() {
            let mut reader = (self.reader)();
            let done = read_block(&mut reader, std::mem::take(&mut self.block))?;
            reader.finish()?;
            return Ok(done);
        }
        let mut all = self.send()?;
        let Some(Running { threads, blocks, results, .. }) = self.running.take() else { return Ok(all) };
        drop(blocks);
        for done in results {
            all.extend(done?);
        }
        for thread in threads {
            // Propagates a panic of a reader.
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(all)
    }

    fn send(&mut self) -> Outcome {
        let block = std::mem::take(&mut self.block);
        self.block_bytes = 0;
        if self.running.is_none() {
            self.running = Some(self.start()?);
        }
        let Some(running) = self.running.as_mut() else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        while running.in_flight >= running.limit {
            match running.results.recv() {
                Ok(done) => {
                    running.in_flight -= 1;
                    all.extend(done?);
                }
                // All threads have ended; joining them returns the error.
                Err(_) => break,
            }
        }
        if !block.is_empty() && running.blocks.send(block).is_ok() {
            running.in_flight += 1;
        }
        while let Ok(done) = running.results.try_recv() {
            running.in_flight -= 1;
            all.extend(done?);
        }
        Ok(all)
    }

    fn start(&self) -> Result<Running<'scope>, ScanError> {
        let count = syncd_runtime::threads::at_most(THREADS_MAX);
        let limit = count * BLOCKS_WAITING;
        let (blocks, to_read) = queue::<Vec<Job>>(limit);
        let (read, results) = channel();
        let threads = (0..count)
            .map(|_| {
                let (make, to_read, read) = (self.reader.clone(), to_read.clone(), read.clone());
                std::thread::Builder::new()
                    .name("scan-reader".into())
                    .spawn_scoped(self.scope, move || run(make(), to_read, &read))
                    .map_err(|source| ScanError::Thread { source })
            })
            .collect::<Result<_, _>>()?;
        Ok(Running { threads, blocks, results, in_flight: 0, limit })
    }
}

fn run(
    mut reader: ContentReader<'_>,
    blocks: Waiting<Vec<Job>>,
    results: &Sender<Outcome>,
) -> Result<(), ScanError> {
    for block in blocks {
        let done = read_block(&mut reader, block);
        let failed = done.is_err();
        if results.send(done).is_err() || failed {
            // The receiver already has the error, or is gone.
            return Ok(());
        }
    }
    reader.finish()
}

fn read_block(reader: &mut ContentReader<'_>, block: Vec<Job>) -> Outcome {
    block.into_iter().map(|job| reader.read(&job.path).map(|content| Done { job, content })).collect()
}
