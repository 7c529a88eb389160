//! Contents that were current once: which are kept, their bytes, and their bound.

use redb::ReadableTable;
use syncd_shared::collected::{Chain, CollectedName, Past, VersionNumber};
use syncd_shared::{ContentHash, TreePath};

use super::{PAST_BYTES, Tables, contents_of, failed, size};
use crate::collected::CollectError;

impl Tables<'_> {
    /// Keeps the list and the bytes of past contents, when a chain takes the place of another.
    pub(super) fn count_past(
        &mut self,
        (name, path): (&CollectedName, &TreePath),
        old: &Chain,
        new: &Chain,
    ) -> Result<(), CollectError> {
        let (before, after) = (kept_past(old), kept_past(new));
        let mut bytes = self.value(name, PAST_BYTES)?;
        for past in before.iter().filter(|past| !after.contains(past)) {
            self.past.remove((name.as_str(), past.until.get())).map_err(failed)?;
            bytes = bytes.saturating_sub(size(&past.version.state));
        }
        for past in after.iter().filter(|past| !before.contains(past)) {
            self.past.insert((name.as_str(), past.until.get()), path.as_bytes()).map_err(failed)?;
            bytes = bytes.saturating_add(size(&past.version.state));
        }
        self.set(name, PAST_BYTES, bytes)
    }

    /// Gives up past contents beyond `bytes_max`, those first that ended first. Returns contents that nothing
    /// uses any more.
    pub fn give_up_past(
        &mut self,
        name: &CollectedName,
        bytes_max: u64,
    ) -> Result<Vec<ContentHash>, CollectError> {
        let mut unused = Vec::new();
        while self.value(name, PAST_BYTES)? > bytes_max {
            let Some((until, path)) = self.oldest_past(name)? else { break };
            let old = self.chain(name, &path)?;
            let mut chain = old.clone();
            chain.give_up(until);
            contents_of(&chain).iter().try_for_each(|content| self.use_content(content))?;
            unused.extend(self.replace((name, &path), &old, &chain)?);
        }
        Ok(unused)
    }

    fn oldest_past(&self, name: &CollectedName) -> Result<Option<(VersionNumber, TreePath)>, CollectError> {
        let mut rows = self.past.range((name.as_str(), 0)..=(name.as_str(), u64::MAX)).map_err(failed)?;
        let Some(row) = rows.next() else { return Ok(None) };
        let (key, path) = row.map_err(failed)?;
        let path = TreePath::from_bytes(path.value()).map_err(|e| CollectError::Damaged(e.into()))?;
        Ok(Some((VersionNumber::new(key.value().1), path)))
    }
}

/// Past versions of a chain whose contents are kept.
fn kept_past(chain: &Chain) -> Vec<Past> {
    chain.past().iter().filter(|past| past.is_kept).copied().collect()
}
