//! One path: whether the rules take it, what stands there, and the next step.

use syncd_shared::collected::{Action, Change, Ruling, State, Version};

use super::{Engine, Key, Refusal, message};
use crate::collected::error::{AGAIN, CollectedError};
use crate::collected::files::{Found, Placed};
use crate::collected::journal::Known;

const DENIED: &str = "the rule deny of this directory";

impl Engine {
    /// Looks at one path, and does the next step there.
    pub(super) fn look(&mut self, key: &Key) -> Result<(), CollectedError> {
        let Some(files) = self.directories.get(&key.0) else { return Ok(()) };
        let is_directory = files.is_directory(&key.1)?;
        let is_closed = self.settled.remove(key);
        if !self.is_taken(key, is_directory) {
            return Ok(());
        }
        let before = self.known(key)?;
        let Some(files) = self.directories.get(&key.0) else { return Ok(()) };
        let (local, mark) = match files.state(&key.1, before.seen.as_ref(), is_closed)? {
            (Found::State(local), mark) => (local, mark),
            (Found::Moving, _) => {
                self.again.insert(key.clone(), self.parts.clock.now() + AGAIN);
                return Ok(());
            }
            (Found::Untaken, _) => return Ok(()),
        };
        if self.refused.get(key).is_some_and(|refusal| refusal.state == Some(local)) {
            return Ok(());
        }
        self.refused.remove(key);
        // A directory that was moved away reports nothing of what is in it.
        let was_directory =
            before.row.base().is_some_and(|base| matches!(base.state, State::Directory { .. }));
        if was_directory && !matches!(local, State::Directory { .. }) {
            let below = self.parts.journal.paths_below(&key.0, &key.1)?;
            self.waiting.extend(below.into_iter().map(|path| (key.0.clone(), path)));
        }
        let mut known = Known { seen: mark.map(|mark| (mark, local)), ..before.clone() };
        match known.row.next(&local) {
            Action::Nothing => {}
            Action::Record(version) => known.row.stands_at(version),
            Action::Send(change) if self.caught_up.contains(&key.0) => {
                known.row.sends(change.state);
                self.next_id = self.next_id.wrapping_add(1);
                self.unanswered.insert(self.next_id, (key.clone(), change));
                self.busy.insert(key.clone());
                self.outgoing.push(message(self.next_id, key, &change));
            }
            Action::Send(_) => {}
            Action::Place(version) => self.place(key, &local, version, &mut known)?,
        }
        if known != before {
            self.rows.insert(key.clone(), known);
        }
        Ok(())
    }

    fn place(
        &mut self,
        key: &Key,
        local: &State,
        version: Version,
        known: &mut Known,
    ) -> Result<(), CollectedError> {
        // Looked at again once there is a connection.
        let Some(link) = &mut self.link else { return Ok(()) };
        let fetch = |file: &_, to: &mut _| link.download(&key.0, file, to);
        let Some(files) = self.directories.get_mut(&key.0) else { return Ok(()) };
        if let State::File(file) = &version.state {
            files.check_room(file.size)?;
        }
        match files.place(&key.1, local, &version.state, fetch)? {
            Placed::Done => {
                known.row.stands_at(version);
                known.seen = None;
                // A directory may be removed once it is empty.
                if version.state == State::Absent
                    && let Some((parent, _)) = key.1.split_last()
                    && !parent.is_root()
                {
                    self.waiting.insert((key.0.clone(), parent));
                }
            }
            Placed::Changed => {
                self.kept_aside = files.kept_aside()?;
                self.again.insert(key.clone(), self.parts.clock.now() + AGAIN);
            }
            Placed::Obstructed => {}
        }
        Ok(())
    }

    /// Sends the content of a change. Blocks until the origin has it durably.
    pub(super) fn upload(&mut self, key: &Key, change: &Change) -> Result<(), CollectedError> {
        let (Some(link), Some(files), State::File(file)) =
            (&mut self.link, self.directories.get(&key.0), &change.state)
        else {
            return Err(CollectedError::Disconnected);
        };
        let mut opened = files.open_file(&key.1)?.ok_or(CollectedError::Content)?;
        link.upload(&key.0, file, &mut opened)
    }

    /// Whether the rules take a path. Reports a file that they deny.
    fn is_taken(&mut self, key: &Key, files_is_directory: Option<bool>) -> bool {
        // Every path is looked at again once the rules are known.
        let Some(rules) = self.rules.get(&key.0) else { return false };
        match (rules.ruling(&key.1, files_is_directory == Some(true)), files_is_directory) {
            (Ruling::Taken, _) => return true,
            (Ruling::Ignored, _) => {}
            (Ruling::Denied, None) => drop(self.refused.remove(key)),
            (Ruling::Denied, Some(_)) => {
                let refusal = Refusal { state: None, reason: DENIED.to_owned() };
                if self.refused.insert(key.clone(), refusal).is_none() {
                    tracing::error!(directory = %key.0, path = %key.1, "denied by the rules: it stays on this node");
                }
            }
        }
        false
    }
}
