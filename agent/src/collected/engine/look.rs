//! One path: whether the rules take it, what stands there, and the next step.

use syncd_shared::collected::{Action, Change, Ruling, State, Version, VersionNumber};

use super::transfers::Arrival;
use super::{Engine, Key, Offer, Refusal, message};
use crate::collected::error::{AGAIN, CollectedError};
use crate::collected::files::{Found, Placed};
use crate::collected::journal::Known;

const DENIED: &str = "the rule deny of this directory";

impl Engine {
    /// Looks at one path, and does the next step there. Returns the version of a file that is to be placed.
    pub(super) fn look(&mut self, key: &Key) -> Result<Option<Arrival>, CollectedError> {
        let Some(files) = self.directories.get(&key.0) else { return Ok(None) };
        let is_directory = files.is_directory(&key.1)?;
        let is_closed = self.settled.remove(key);
        match self.ruling(key, is_directory) {
            Ruling::Taken => {}
            Ruling::Ignored => return Ok(None),
            Ruling::Denied => return self.deny(key, is_directory, is_closed).map(|()| None),
        }
        let before = self.known(key)?;
        let Some(files) = self.directories.get(&key.0) else { return Ok(None) };
        let (local, mark) = match files.state(&key.1, before.seen.as_ref(), is_closed)? {
            (Found::State(local), mark) => (local, mark),
            (Found::Moving, _) => {
                self.again.insert(key.clone(), self.parts.clock.now() + AGAIN);
                return Ok(None);
            }
            (Found::Untaken, _) => return Ok(None),
        };
        let newest = before.row.newest();
        let is_refused = |refusal: &Refusal| refusal.state == Some(local) && refusal.newest == newest;
        if self.refused.get(key).is_some_and(is_refused) {
            return Ok(None);
        }
        match local {
            State::Absent => self.withdraw(key),
            _ => drop(self.refused.remove(key)),
        }
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
            Action::Record(version) => {
                known.row.stands_at(version);
                self.unsynced.insert(key.clone());
            }
            Action::Send(change) if self.caught_up.contains(&key.0) => {
                known.row.sends(change.state);
                self.unsynced.insert(key.clone());
                self.offer(key, change, newest);
            }
            // The row will count the file as read: a power cut must not change it afterwards.
            Action::Send(_) if known != before => drop(self.unsynced.insert(key.clone())),
            Action::Send(_) => {}
            Action::Place(version) => match version.state {
                // Looked at again once there is a connection.
                _ if self.link.is_none() => {}
                State::File(file) => {
                    return Ok(Some(Arrival { key: key.clone(), local, version, file, known }));
                }
                _ => self.place_name(key, &local, version, &mut known)?,
            },
        }
        if known != before {
            self.rows.insert(key.clone(), known);
        }
        Ok(None)
    }

    /// Places a directory, or removes what is absent in this version.
    fn place_name(
        &mut self,
        key: &Key,
        local: &State,
        version: Version,
        known: &mut Known,
    ) -> Result<(), CollectedError> {
        let Some(files) = self.directories.get(&key.0) else { return Ok(()) };
        let placed = match version.state {
            State::Directory { mode } => files.put_directory(&key.1, local, mode)?,
            _ => files.take_away(&key.1, local)?,
        };
        self.placed(key, placed, version, known);
        Ok(())
    }

    /// Notes the outcome of placing a version.
    pub(super) fn placed(&mut self, key: &Key, placed: Placed, version: Version, known: &mut Known) {
        match placed {
            Placed::Done => {
                known.row.stands_at(version);
                known.seen = None;
                self.unsynced.insert(key.clone());
                // A directory may be removed once it is empty.
                if version.state == State::Absent
                    && let Some((parent, _)) = key.1.split_last()
                    && !parent.is_root()
                {
                    self.waiting.insert((key.0.clone(), parent));
                }
            }
            Placed::Changed => {
                self.count_kept_aside();
                self.again.insert(key.clone(), self.parts.clock.now() + AGAIN);
            }
            Placed::Obstructed => {}
        }
    }

    /// Every path is looked at again once the rules are known.
    fn ruling(&self, key: &Key, is_directory: Option<bool>) -> Ruling {
        let rules = self.rules.get(&key.0);
        rules.map_or(Ruling::Ignored, |rules| rules.ruling(&key.1, is_directory == Some(true)))
    }

    /// Leaves a file where it is, and offers it once, so that the origin knows of it too.
    fn deny(&mut self, key: &Key, is_directory: Option<bool>, is_closed: bool) -> Result<(), CollectedError> {
        if is_directory.is_none() {
            self.withdraw(key);
            return Ok(());
        }
        let is_offered = self.refused.get(key).is_some_and(|refusal| refusal.state.is_some());
        if !self.refused.contains_key(key) {
            tracing::error!(directory = %key.0, path = %key.1, "denied by the rules: it stays on this node");
            let refusal = Refusal { state: None, newest: None, reason: DENIED.to_owned() };
            self.refused.insert(key.clone(), refusal);
        }
        let Some(files) = self.directories.get(&key.0).filter(|_| !is_offered) else { return Ok(()) };
        if !self.caught_up.contains(&key.0) {
            return Ok(());
        }
        match files.state(&key.1, None, is_closed)?.0 {
            Found::State(state @ State::File(_)) => {
                self.offer(key, Change { base: VersionNumber::NONE, state }, None);
            }
            Found::Moving => drop(self.again.insert(key.clone(), self.parts.clock.now() + AGAIN)),
            Found::State(_) | Found::Untaken => {}
        }
        Ok(())
    }

    /// Tells the origin that a refused file is gone. Removes nothing there: no version is a change's base.
    fn withdraw(&mut self, key: &Key) {
        let refusal = self.refused.remove(key);
        let is_offered = refusal.is_some_and(|refusal| refusal.state.is_some());
        if is_offered && self.caught_up.contains(&key.0) {
            self.offer(key, Change { base: VersionNumber::NONE, state: State::Absent }, None);
        }
    }

    /// Sends a change, and leaves the path alone until the answer.
    fn offer(&mut self, key: &Key, change: Change, newest: Option<Version>) {
        self.next_id = self.next_id.wrapping_add(1);
        self.unanswered.insert(self.next_id, Offer { key: key.clone(), change, newest });
        self.busy.insert(key.clone());
        self.outgoing.push(message(self.next_id, key, &change));
    }
}
