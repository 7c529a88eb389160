//! The index of collected directories: one redb database. Every commit is durable.

mod past;

use std::path::Path;
use std::time::{Duration, Instant};

use redb::{
    Database, Key, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table,
    TableDefinition, Value, WriteTransaction,
};
use syncd_shared::collected::stored::{StoredError, with_checksum, without_checksum};
use syncd_shared::collected::{
    Around, Chain, Change, CollectedName, FileState, Loser, State, Verdict, Version, VersionNumber,
};
use syncd_shared::{ContentHash, TreePath};

use super::{CollectError, HistoryVersion};

const FORMAT: u64 = 4;
const CACHE_BYTES: usize = 16 * 1024 * 1024;
const OPEN_PATIENCE: Duration = Duration::from_secs(5);
const OPEN_RETRY: Duration = Duration::from_millis(20);

/// Directory and path -> chain.
const CHAINS: TableDefinition<'_, (&str, &[u8]), &[u8]> = TableDefinition::new("chains");
/// Directory and number of a current version -> path.
const NUMBERS: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("numbers");
/// Directory and counter -> loser.
const LOSERS: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("losers");
/// Directory, path and counter -> content of a loser.
const LOSERS_AT: TableDefinition<'_, (&str, &[u8], u64), &[u8; 32]> = TableDefinition::new("losers_at");
/// Directory and number of a version in a chain -> the node that made it.
const NODES: TableDefinition<'_, (&str, u64), &str> = TableDefinition::new("nodes");
/// Directory and number of the version that ended it -> path of a past content that is kept.
const PAST: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("past");
/// Content -> number of versions and losers that have it.
const USES: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("uses");
/// Directory and name -> value.
const META: TableDefinition<'_, (&str, &str), u64> = TableDefinition::new("meta");

/// Key in [`META`], without a directory.
const META_FORMAT: (&str, &str) = ("", "format");
/// Names in [`META`]: the newest version, number and bytes of current files, bytes of past contents, the
/// newest loser, number and bytes of losers.
const NEWEST: &str = "newest";
const FILES: &str = "files";
const BYTES: &str = "bytes";
const PAST_BYTES: &str = "past_bytes";
const NEWEST_LOSER: &str = "newest_loser";
const LOSER_COUNT: &str = "loser_count";
const LOSER_BYTES: &str = "loser_bytes";
/// Bytes of the current files that a node made.
fn node_bytes(node: &str) -> String {
    format!("node_bytes/{node}")
}

fn failed(error: impl Into<redb::Error>) -> CollectError {
    CollectError::Index(Box::new(error.into()))
}

/// An origin that ran in this process before may be about to close the file.
fn open_patiently(path: &Path) -> Result<Database, CollectError> {
    let deadline = Instant::now() + OPEN_PATIENCE;
    loop {
        match redb::Builder::new().set_cache_size(CACHE_BYTES).create(path) {
            Err(redb::DatabaseError::DatabaseAlreadyOpen) if Instant::now() < deadline => {
                std::thread::sleep(OPEN_RETRY);
            }
            opened => return opened.map_err(failed),
        }
    }
}

pub(super) struct Index {
    database: Database,
}

/// Figures of a directory.
pub(super) struct Figures {
    /// Current files.
    pub files: u64,
    /// Bytes of all current files.
    pub bytes: u64,
    pub losers: u64,
}

impl Index {
    pub fn open(path: &Path) -> Result<Self, CollectError> {
        let database = open_patiently(path)?;
        let index = Self { database };
        let transaction = index.begin()?;
        Tables::open(&transaction)?.check_format()?;
        transaction.commit().map_err(failed)?;
        Ok(index)
    }

    /// Begins a durable transaction.
    pub fn begin(&self) -> Result<WriteTransaction, CollectError> {
        let mut transaction = self.database.begin_write().map_err(failed)?;
        transaction.set_quick_repair(true);
        Ok(transaction)
    }

    pub fn commit(transaction: WriteTransaction) -> Result<(), CollectError> {
        transaction.commit().map_err(failed)
    }

    /// Undoes a transaction that has changed nothing, without a wait for the disk.
    pub fn abort(transaction: WriteTransaction) -> Result<(), CollectError> {
        transaction.abort().map_err(failed)
    }

    pub fn is_used(&self, content: &ContentHash) -> Result<bool, CollectError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let uses = transaction.open_table(USES).map_err(failed)?;
        Ok(uses.get(content.as_bytes()).map_err(failed)?.is_some())
    }

    pub fn newest(&self, name: &CollectedName) -> Result<u64, CollectError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let meta = transaction.open_table(META).map_err(failed)?;
        Ok(meta.get((name.as_str(), NEWEST)).map_err(failed)?.map_or(0, |number| number.value()))
    }

    pub fn versions(
        &self,
        name: &CollectedName,
        after: u64,
        limit: usize,
    ) -> Result<Vec<(TreePath, Version)>, CollectError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let numbers = transaction.open_table(NUMBERS).map_err(failed)?;
        let chains = transaction.open_table(CHAINS).map_err(failed)?;
        let range = (name.as_str(), after.saturating_add(1))..=(name.as_str(), u64::MAX);
        let mut found = Vec::new();
        for row in numbers.range(range).map_err(failed)?.take(limit) {
            let (_, path) = row.map_err(failed)?;
            let path = TreePath::from_bytes(path.value()).map_err(|e| CollectError::Damaged(e.into()))?;
            let current = chain_in(&chains, name, &path)?.current();
            found.push((path, current));
        }
        Ok(found)
    }

    /// Directories that have or had versions.
    pub fn names(&self) -> Result<Vec<CollectedName>, CollectError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let meta = transaction.open_table(META).map_err(failed)?;
        let mut names = Vec::new();
        for row in meta.iter().map_err(failed)? {
            let (key, _) = row.map_err(failed)?;
            let (directory, of) = key.value();
            if of == NEWEST {
                names.extend(CollectedName::new(directory.as_bytes()));
            }
        }
        Ok(names)
    }

    pub fn figures(&self, name: &CollectedName) -> Result<Figures, CollectError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let meta = transaction.open_table(META).map_err(failed)?;
        let value = |of: &str| -> Result<u64, CollectError> {
            Ok(meta.get((name.as_str(), of)).map_err(failed)?.map_or(0, |value| value.value()))
        };
        Ok(Figures { files: value(FILES)?, bytes: value(BYTES)?, losers: value(LOSER_COUNT)? })
    }

    pub fn history(
        &self,
        name: &CollectedName,
        path: &TreePath,
    ) -> Result<Vec<HistoryVersion>, CollectError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let chain = chain_in(&transaction.open_table(CHAINS).map_err(failed)?, name, path)?;
        let nodes = transaction.open_table(NODES).map_err(failed)?;
        let past = chain.past().iter();
        let past = past.map(|past| (past.version, past.since_ms, Some(past.until_ms), past.is_kept));
        let all = past.chain([(chain.current(), chain.since_ms(), None, true)]);
        let all = all.filter(|(version, ..)| version.number != VersionNumber::NONE);
        let described = all.map(|(version, since_ms, until_ms, is_kept)| {
            let node = node_in(&nodes, name, version.number)?;
            Ok(HistoryVersion { version, node, since_ms, until_ms, is_kept })
        });
        described.collect()
    }

    pub fn chains(
        &self,
        name: &CollectedName,
        below: &TreePath,
    ) -> Result<Vec<(TreePath, Chain, String)>, CollectError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let chains = transaction.open_table(CHAINS).map_err(failed)?;
        let nodes = transaction.open_table(NODES).map_err(failed)?;
        let mut found = Vec::new();
        for row in chains.range((name.as_str(), below.as_bytes())..).map_err(failed)? {
            let (key, value) = row.map_err(failed)?;
            let (directory, path) = key.value();
            // Names such as `a.b` sort between `a` and `a/b`.
            if directory != name.as_str() || !path.starts_with(below.as_bytes()) {
                break;
            }
            let path = TreePath::from_bytes(path).map_err(|e| CollectError::Damaged(e.into()))?;
            if !path.starts_with(below) {
                continue;
            }
            let chain = Chain::decode(without_checksum(&chain_key(name, &path), value.value())?)?;
            let node = node_in(&nodes, name, chain.current().number)?;
            found.push((path, chain, node));
        }
        Ok(found)
    }

    /// Writes a copy of one moment, and returns the contents that it uses. Blocks.
    pub fn copy_to(&self, path: &Path) -> Result<Vec<ContentHash>, CollectError> {
        let from = self.database.begin_read().map_err(failed)?;
        let copy = redb::Builder::new().set_cache_size(CACHE_BYTES).create(path).map_err(failed)?;
        let to = copy.begin_write().map_err(failed)?;
        copy_table(&from, &to, CHAINS)?;
        copy_table(&from, &to, NUMBERS)?;
        copy_table(&from, &to, NODES)?;
        copy_table(&from, &to, PAST)?;
        copy_table(&from, &to, LOSERS)?;
        copy_table(&from, &to, LOSERS_AT)?;
        copy_table(&from, &to, USES)?;
        copy_table(&from, &to, META)?;
        to.commit().map_err(failed)?;
        let uses = from.open_table(USES).map_err(failed)?;
        let mut contents = Vec::with_capacity(usize::try_from(uses.len().map_err(failed)?).unwrap_or(0));
        for row in uses.iter().map_err(failed)? {
            contents.push(ContentHash::from_bytes(*row.map_err(failed)?.0.value()));
        }
        Ok(contents)
    }

    /// The loser with a number.
    pub fn loser(&self, name: &CollectedName, number: u64) -> Result<Loser, CollectError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        loser_in(&transaction.open_table(LOSERS).map_err(failed)?, name, number)
    }

    /// The losers of a directory with their numbers, oldest first.
    pub fn losers(&self, name: &CollectedName) -> Result<Vec<(u64, Loser)>, CollectError> {
        let mut losers = self.newest_losers(name, usize::MAX)?;
        losers.reverse();
        Ok(losers)
    }

    /// At most `limit` losers of a directory with their numbers, newest first.
    pub fn newest_losers(
        &self,
        name: &CollectedName,
        limit: usize,
    ) -> Result<Vec<(u64, Loser)>, CollectError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let losers = transaction.open_table(LOSERS).map_err(failed)?;
        let range = (name.as_str(), 0)..=(name.as_str(), u64::MAX);
        let rows = losers.range(range).map_err(failed)?.rev().take(limit);
        let numbered = rows.map(|row| {
            let row = row.map_err(failed)?;
            Ok((row.0.value().1, loser_of(name, row)?))
        });
        numbered.collect()
    }
}

fn copy_table<K: Key + 'static, V: Value + 'static>(
    from: &ReadTransaction,
    to: &WriteTransaction,
    table: TableDefinition<'_, K, V>,
) -> Result<(), CollectError> {
    let (from, mut to) = (from.open_table(table).map_err(failed)?, to.open_table(table).map_err(failed)?);
    for row in from.iter().map_err(failed)? {
        let (key, value) = row.map_err(failed)?;
        to.insert(key.value(), value.value()).map_err(failed)?;
    }
    Ok(())
}

fn node_in(
    nodes: &impl ReadableTable<(&'static str, u64), &'static str>,
    name: &CollectedName,
    number: VersionNumber,
) -> Result<String, CollectError> {
    let found = nodes.get((name.as_str(), number.get())).map_err(failed)?;
    Ok(found.map_or_else(String::new, |node| node.value().to_owned()))
}

type LoserRow<'a> = (redb::AccessGuard<'a, (&'static str, u64)>, redb::AccessGuard<'a, &'static [u8]>);

fn loser_of(name: &CollectedName, (key, value): LoserRow<'_>) -> Result<Loser, CollectError> {
    let (_, number) = key.value();
    Ok(Loser::decode(without_checksum(&loser_key(name, number), value.value())?)?)
}

fn loser_in(
    losers: &impl ReadableTable<(&'static str, u64), &'static [u8]>,
    name: &CollectedName,
    number: u64,
) -> Result<Loser, CollectError> {
    let stored = losers.get((name.as_str(), number)).map_err(failed)?;
    let stored = stored.ok_or(CollectError::NoConflict { number })?;
    Ok(Loser::decode(without_checksum(&loser_key(name, number), stored.value())?)?)
}

fn chain_key(name: &CollectedName, path: &TreePath) -> Vec<u8> {
    [name.as_bytes(), b"\0", path.as_bytes()].concat()
}

fn loser_key(name: &CollectedName, number: u64) -> Vec<u8> {
    [name.as_bytes(), b"\0", &number.to_le_bytes()].concat()
}

fn chain_in(
    chains: &impl ReadableTable<(&'static str, &'static [u8]), &'static [u8]>,
    name: &CollectedName,
    path: &TreePath,
) -> Result<Chain, CollectError> {
    let Some(stored) = chains.get((name.as_str(), path.as_bytes())).map_err(failed)? else {
        return Ok(Chain::default());
    };
    Ok(Chain::decode(without_checksum(&chain_key(name, path), stored.value())?)?)
}

/// The tables in one transaction.
pub(super) struct Tables<'t> {
    chains: Table<'t, (&'static str, &'static [u8]), &'static [u8]>,
    numbers: Table<'t, (&'static str, u64), &'static [u8]>,
    nodes: Table<'t, (&'static str, u64), &'static str>,
    past: Table<'t, (&'static str, u64), &'static [u8]>,
    losers: Table<'t, (&'static str, u64), &'static [u8]>,
    losers_at: Table<'t, (&'static str, &'static [u8], u64), &'static [u8; 32]>,
    uses: Table<'t, &'static [u8; 32], u64>,
    meta: Table<'t, (&'static str, &'static str), u64>,
}

impl<'t> Tables<'t> {
    pub fn open(transaction: &'t WriteTransaction) -> Result<Self, CollectError> {
        Ok(Self {
            chains: transaction.open_table(CHAINS).map_err(failed)?,
            numbers: transaction.open_table(NUMBERS).map_err(failed)?,
            nodes: transaction.open_table(NODES).map_err(failed)?,
            past: transaction.open_table(PAST).map_err(failed)?,
            losers: transaction.open_table(LOSERS).map_err(failed)?,
            losers_at: transaction.open_table(LOSERS_AT).map_err(failed)?,
            uses: transaction.open_table(USES).map_err(failed)?,
            meta: transaction.open_table(META).map_err(failed)?,
        })
    }

    fn check_format(&mut self) -> Result<(), CollectError> {
        let found = self.meta.get(META_FORMAT).map_err(failed)?.map(|format| format.value());
        match found {
            None => self.meta.insert(META_FORMAT, FORMAT).map(drop).map_err(failed),
            Some(FORMAT) => Ok(()),
            Some(actual) => Err(CollectError::Format { actual, expected: FORMAT }),
        }
    }

    pub fn chain(&self, name: &CollectedName, path: &TreePath) -> Result<Chain, CollectError> {
        chain_in(&self.chains, name, path)
    }

    pub fn judge(
        &self,
        name: &CollectedName,
        path: &TreePath,
        chain: &Chain,
        change: &Change,
    ) -> Result<Verdict, CollectError> {
        let around = if change.state == State::Absent { Around::Clear } else { self.around(name, path)? };
        Ok(chain.judge(change, around))
    }

    fn around(&self, name: &CollectedName, path: &TreePath) -> Result<Around, CollectError> {
        let mut above = path.split_last().map(|(parent, _)| parent);
        while let Some(parent) = above.filter(|parent| !parent.is_root()) {
            if self.chain(name, &parent)?.current().state.content().is_some() {
                return Ok(Around::FileAbove);
            }
            above = parent.split_last().map(|(parent, _)| parent);
        }
        let (first, end) = ([path.as_bytes(), b"/"].concat(), [path.as_bytes(), b"0"].concat());
        let range = (name.as_str(), first.as_slice())..(name.as_str(), end.as_slice());
        for row in self.chains.range(range).map_err(failed)? {
            let (key, value) = row.map_err(failed)?;
            let below = TreePath::from_bytes(key.value().1).map_err(|e| CollectError::Damaged(e.into()))?;
            let chain = Chain::decode(without_checksum(&chain_key(name, &below), value.value())?)?;
            if chain.current().state != State::Absent {
                return Ok(Around::EntriesBelow);
            }
        }
        Ok(Around::Clear)
    }

    fn value(&self, name: &CollectedName, of: &str) -> Result<u64, CollectError> {
        Ok(self.meta.get((name.as_str(), of)).map_err(failed)?.map_or(0, |value| value.value()))
    }

    fn set(&mut self, name: &CollectedName, of: &str, value: u64) -> Result<(), CollectError> {
        self.meta.insert((name.as_str(), of), value).map_err(failed)?;
        Ok(())
    }

    /// Bytes of all current files if `after` took the place of `before`.
    pub fn bytes_with(
        &self,
        name: &CollectedName,
        before: &State,
        after: &State,
    ) -> Result<u64, CollectError> {
        Ok(self.value(name, BYTES)?.saturating_sub(size(before)).saturating_add(size(after)))
    }

    /// Bytes of the current files that a node made, if `after` took the place of `before`.
    pub fn node_bytes_with(
        &self,
        name: &CollectedName,
        node: &str,
        before: &Version,
        after: &State,
    ) -> Result<u64, CollectError> {
        let own = node_in(&self.nodes, name, before.number)? == node;
        let bytes = self.value(name, &node_bytes(node))?;
        let bytes = if own { bytes.saturating_sub(size(&before.state)) } else { bytes };
        Ok(bytes.saturating_add(size(after)))
    }

    /// Counts the bytes of a current version for its new node, and no longer for its old one.
    fn count_node(
        &mut self,
        name: &CollectedName,
        node: &str,
        before: &Version,
        after: &State,
    ) -> Result<(), CollectError> {
        let bytes = self.node_bytes_with(name, node, before, after)?;
        let old = node_in(&self.nodes, name, before.number)?;
        if old != node && !old.is_empty() {
            let left = self.value(name, &node_bytes(&old))?.saturating_sub(size(&before.state));
            self.set(name, &node_bytes(&old), left)?;
        }
        self.set(name, &node_bytes(node), bytes)
    }

    /// Makes a state the current version of a path. A conflict that its content lost there is settled by
    /// that. Returns contents that nothing uses any more.
    pub fn take(
        &mut self,
        (name, path): (&CollectedName, &TreePath),
        mut chain: Chain,
        state: State,
        node: &str,
        now_ms: u64,
    ) -> Result<(Version, Vec<ContentHash>), CollectError> {
        let before = chain.current();
        let bytes = self.bytes_with(name, &before.state, &state)?;
        self.set(name, BYTES, bytes)?;
        let other_files = self.value(name, FILES)?.saturating_sub(files(&before.state));
        self.set(name, FILES, other_files.saturating_add(files(&state)))?;
        self.count_node(name, node, &before, &state)?;
        let number = self.value(name, NEWEST)?.saturating_add(1);
        self.set(name, NEWEST, number)?;
        if before.number != VersionNumber::NONE {
            self.numbers.remove((name.as_str(), before.number.get())).map_err(failed)?;
        }
        self.numbers.insert((name.as_str(), number), path.as_bytes()).map_err(failed)?;
        self.nodes.insert((name.as_str(), number), node).map_err(failed)?;
        let version = Version { number: VersionNumber::new(number), state };
        let old = chain.clone();
        chain.take(version, now_ms);
        contents_of(&chain).iter().try_for_each(|content| self.use_content(content))?;
        let mut unused = self.replace((name, path), &old, &chain)?;
        if let Some(content) = state.content()
            && let Some(settled) = self.loser_at(name, path, &content)?
        {
            unused.extend(self.give_up_loser(name, settled)?);
        }
        Ok((version, unused))
    }

    /// Stores a chain whose contents are counted, and gives up what only the old one had.
    fn replace(
        &mut self,
        (name, path): (&CollectedName, &TreePath),
        old: &Chain,
        new: &Chain,
    ) -> Result<Vec<ContentHash>, CollectError> {
        let stored = with_checksum(&chain_key(name, path), new.encode());
        self.chains.insert((name.as_str(), path.as_bytes()), stored.as_slice()).map_err(failed)?;
        let kept = numbers_of(new);
        for number in numbers_of(old).into_iter().filter(|number| !kept.contains(number)) {
            self.nodes.remove((name.as_str(), number)).map_err(failed)?;
        }
        self.count_past((name, path), old, new)?;
        let mut unused = Vec::new();
        for content in contents_of(old) {
            unused.extend(self.release(content)?);
        }
        Ok(unused)
    }

    /// Forgets what ended more than a year ago, among at most `limit` paths from `from` on. Returns contents
    /// that nothing uses any more, and where to go on.
    pub fn expire(
        &mut self,
        from: &[u8],
        limit: usize,
        now_ms: u64,
    ) -> Result<(Vec<ContentHash>, Option<Vec<u8>>), CollectError> {
        let (name, path) = from.split_at(from.iter().position(|byte| *byte == 0).unwrap_or(from.len()));
        let name = std::str::from_utf8(name).unwrap_or_default();
        let mut looked = Vec::new();
        for row in self.chains.range((name, path.get(1..).unwrap_or_default())..).map_err(failed)?.take(limit)
        {
            let (key, value) = row.map_err(failed)?;
            let (name, path) = key.value();
            let damaged = |_| CollectError::Damaged(StoredError::Name);
            let name = CollectedName::new(name.as_bytes()).map_err(damaged)?;
            let path = TreePath::from_bytes(path).map_err(|e| CollectError::Damaged(e.into()))?;
            let chain = Chain::decode(without_checksum(&chain_key(&name, &path), value.value())?)?;
            looked.push((name, path, chain));
        }
        let next = looked.last().filter(|_| looked.len() == limit);
        // Behind the last one.
        let next = next.map(|(name, path, _)| [chain_key(name, path), vec![0]].concat());
        let mut unused = Vec::new();
        for (name, path, old) in looked {
            let mut chain = old.clone();
            let is_forgotten = chain.expire(now_ms);
            if chain != old {
                contents_of(&chain).iter().try_for_each(|content| self.use_content(content))?;
                unused.extend(self.replace((&name, &path), &old, &chain)?);
            }
            if is_forgotten {
                let number = chain.current().number.get();
                self.chains.remove((name.as_str(), path.as_bytes())).map_err(failed)?;
                self.numbers.remove((name.as_str(), number)).map_err(failed)?;
                self.nodes.remove((name.as_str(), number)).map_err(failed)?;
            }
        }
        Ok((unused, next))
    }

    /// Keeps the content of a change that came second. Returns contents that nothing uses any more; `None`:
    /// it was kept already.
    pub fn keep_loser(
        &mut self,
        name: &CollectedName,
        loser: &Loser,
        bytes_max: u64,
    ) -> Result<Option<Vec<ContentHash>>, CollectError> {
        let Loser { path, file, .. } = loser;
        if self.loser_at(name, path, &file.content)?.is_some() {
            return Ok(None);
        }
        let mut unused = Vec::new();
        while self.value(name, LOSER_BYTES)?.saturating_add(file.size) > bytes_max {
            // The newest stays, however large.
            let Some(oldest) = self.oldest_loser(name)? else { break };
            tracing::warn!(directory = %name, conflict = oldest,
                "gave up the oldest content that lost a conflict, for lack of room");
            unused.extend(self.give_up_loser(name, oldest)?);
        }
        let number = self.value(name, NEWEST_LOSER)?.saturating_add(1);
        let stored = with_checksum(&loser_key(name, number), loser.encode());
        self.losers.insert((name.as_str(), number), stored.as_slice()).map_err(failed)?;
        let at = (name.as_str(), path.as_bytes(), number);
        self.losers_at.insert(at, file.content.as_bytes()).map_err(failed)?;
        self.set(name, NEWEST_LOSER, number)?;
        self.set(name, LOSER_COUNT, self.value(name, LOSER_COUNT)?.saturating_add(1))?;
        self.set(name, LOSER_BYTES, self.value(name, LOSER_BYTES)?.saturating_add(file.size))?;
        self.use_content(&file.content)?;
        unused.retain(|content| *content != file.content);
        Ok(Some(unused))
    }

    /// Forgets a loser. Returns its content if nothing uses it any more.
    pub fn give_up_loser(
        &mut self,
        name: &CollectedName,
        number: u64,
    ) -> Result<Option<ContentHash>, CollectError> {
        let Loser { path, file, .. } = loser_in(&self.losers, name, number)?;
        self.losers.remove((name.as_str(), number)).map_err(failed)?;
        self.losers_at.remove((name.as_str(), path.as_bytes(), number)).map_err(failed)?;
        self.set(name, LOSER_COUNT, self.value(name, LOSER_COUNT)?.saturating_sub(1))?;
        self.set(name, LOSER_BYTES, self.value(name, LOSER_BYTES)?.saturating_sub(file.size))?;
        self.release(file.content)
    }

    /// Number of the loser that has a content at a path.
    fn loser_at(
        &self,
        name: &CollectedName,
        path: &TreePath,
        content: &ContentHash,
    ) -> Result<Option<u64>, CollectError> {
        let (name, path) = (name.as_str(), path.as_bytes());
        for row in self.losers_at.range((name, path, 0)..=(name, path, u64::MAX)).map_err(failed)? {
            let (key, value) = row.map_err(failed)?;
            if value.value() == content.as_bytes() {
                return Ok(Some(key.value().2));
            }
        }
        Ok(None)
    }

    fn oldest_loser(&self, name: &CollectedName) -> Result<Option<u64>, CollectError> {
        let mut rows = self.losers.range((name.as_str(), 0)..=(name.as_str(), u64::MAX)).map_err(failed)?;
        rows.next().map(|row| Ok(row.map_err(failed)?.0.value().1)).transpose()
    }

    fn use_content(&mut self, content: &ContentHash) -> Result<(), CollectError> {
        let count = self.uses(content)?.saturating_add(1);
        self.uses.insert(content.as_bytes(), count).map_err(failed)?;
        Ok(())
    }

    fn uses(&self, content: &ContentHash) -> Result<u64, CollectError> {
        Ok(self.uses.get(content.as_bytes()).map_err(failed)?.map_or(0, |count| count.value()))
    }

    /// Returns the content if nothing uses it any more.
    fn release(&mut self, content: ContentHash) -> Result<Option<ContentHash>, CollectError> {
        match self.uses(&content)?.saturating_sub(1) {
            0 => {
                self.uses.remove(content.as_bytes()).map_err(failed)?;
                Ok(Some(content))
            }
            count => {
                self.uses.insert(content.as_bytes(), count).map_err(failed)?;
                Ok(None)
            }
        }
    }

    /// Whether a content is used, within this transaction.
    pub fn is_used(&self, content: &ContentHash) -> Result<bool, CollectError> {
        Ok(self.uses(content)? > 0)
    }
}

/// 1 for a file.
fn files(state: &State) -> u64 {
    u64::from(matches!(state, State::File(_)))
}

fn size(state: &State) -> u64 {
    match state {
        State::File(FileState { size, .. }) => *size,
        State::Absent | State::Directory { .. } => 0,
    }
}

/// Numbers of the versions that a chain keeps.
fn numbers_of(chain: &Chain) -> Vec<u64> {
    let past = chain.past().iter().map(|past| past.version.number.get());
    past.chain([chain.current().number.get()]).collect()
}

/// Contents of the versions that a chain keeps.
fn contents_of(chain: &Chain) -> Vec<ContentHash> {
    let current = chain.current();
    let past = chain.past().iter().filter(|past| past.is_kept);
    let states = past.map(|past| past.version.state).chain([current.state]);
    states.filter_map(|state| state.content()).collect()
}
