//! Contents that travel together: those that the origin asks for, and versions of files on their way here.

use std::fs::File;

use syncd_shared::collected::{CollectedName, FileState, State, Version};

use super::{Engine, Key, Offer, TURN_BYTES, message};
use crate::collected::error::CollectedError;
use crate::collected::files::Files;
use crate::collected::journal::Known;

/// A content, and the open file that has it or receives it.
pub struct Transfer {
    pub name: CollectedName,
    pub file: FileState,
    pub open: File,
}

/// A version of a file that is to stand at a path.
pub(super) struct Arrival {
    pub key: Key,
    /// The state that was found there.
    pub local: State,
    pub version: Version,
    pub file: FileState,
    pub known: Known,
}

/// An arrival with the name of its file in `.incoming`.
type Begun = (Arrival, Vec<u8>);

impl Engine {
    /// Sends some of the contents that the origin asked for, and their changes again.
    pub(super) fn upload_wanted(&mut self) -> Result<(), CollectedError> {
        let (mut offers, mut transfers, mut bytes) = (Vec::new(), Vec::new(), 0_u64);
        while bytes <= TURN_BYTES
            && let Some(id) = self.wanted.pop_front()
        {
            let Some(offer) = self.unanswered.get(&id).cloned() else { continue };
            match self.opened(&offer) {
                Ok(transfer) => {
                    bytes = bytes.saturating_add(transfer.file.size);
                    offers.push((id, offer));
                    transfers.push(transfer);
                }
                Err(error) => self.give_up(id, offer, &error)?,
            }
        }
        let Some(link) = self.link.as_mut().filter(|_| !transfers.is_empty()) else { return Ok(()) };
        let sent = link.upload(&mut transfers);
        for ((id, offer), sent) in offers.into_iter().zip(sent) {
            match sent {
                Ok(()) => self.outgoing.push(message(id, &offer.key, &offer.change)),
                Err(error) => self.give_up(id, offer, &error)?,
            }
        }
        Ok(())
    }

    fn opened(&self, Offer { key, change, .. }: &Offer) -> Result<Transfer, CollectedError> {
        let (Some(files), State::File(file)) = (self.directories.get(&key.0), change.state) else {
            return Err(CollectedError::Content);
        };
        let open = files.open_file(&key.1)?.ok_or(CollectedError::Content)?;
        Ok(Transfer { name: key.0.clone(), file, open })
    }

    /// Forgets a change whose content could not be sent. Its path is looked at again.
    fn give_up(&mut self, id: u64, offer: Offer, error: &CollectedError) -> Result<(), CollectedError> {
        let mut known = self.known(&offer.key)?;
        known.row.caught_up();
        self.rows.insert(offer.key.clone(), known);
        self.unanswered.remove(&id);
        self.busy.remove(&offer.key);
        self.fail(offer.key, error);
        Ok(())
    }

    /// Fetches versions of files, makes all of them durable, and puts each in its place. Those that fail are
    /// tried again.
    pub(super) fn place_files(&mut self, arrivals: Vec<Arrival>) {
        let arrived = self.fetch(arrivals);
        for (arrival, name) in self.synced(arrived) {
            let Arrival { key, local, version, mut known, .. } = arrival;
            let Some(files) = self.directories.get(&key.0) else { continue };
            match files.put(&key.1, &local, &name) {
                Ok(placed) => {
                    let before = known.clone();
                    self.placed(&key, placed, version, &mut known);
                    if known != before {
                        self.rows.insert(key, known);
                    }
                }
                Err(error) => self.fail(key, &error),
            }
        }
    }

    /// Returns the arrivals whose contents are here.
    fn fetch(&mut self, arrivals: Vec<Arrival>) -> Vec<Begun> {
        let (mut begun, mut transfers, mut wanted_bytes) = (Vec::new(), Vec::new(), 0_u64);
        for arrival in arrivals {
            let Some(files) = self.directories.get(&arrival.key.0) else { continue };
            let all_bytes = wanted_bytes.saturating_add(arrival.file.size);
            match files.check_room(all_bytes).and_then(|()| files.begin()) {
                Ok((name, open)) => {
                    wanted_bytes = all_bytes;
                    transfers.push(Transfer { name: arrival.key.0.clone(), file: arrival.file, open });
                    begun.push((arrival, name));
                }
                Err(error) => self.fail(arrival.key, &error),
            }
        }
        let Some(link) = self.link.as_mut().filter(|_| !transfers.is_empty()) else { return Vec::new() };
        let received = link.download(&mut transfers);
        let mut arrived = Vec::new();
        for ((begun, transfer), received) in begun.into_iter().zip(transfers).zip(received) {
            let complete = |files: &Files| files.complete(&begun.1, &transfer.open, &transfer.file);
            let files = self.directories.get(&begun.0.key.0);
            match received.and_then(|()| files.map_or(Ok(()), complete)) {
                Ok(()) => arrived.push(begun),
                Err(error) => self.drop_arrival(begun, &error),
            }
        }
        arrived
    }

    /// Returns the arrivals that are durable.
    fn synced(&mut self, arrived: Vec<Begun>) -> Vec<Begun> {
        let mut synced = Ok(());
        for (name, files) in &self.directories {
            let own = arrived.iter().filter(|(arrival, _)| arrival.key.0 == *name);
            let names: Vec<&[u8]> = own.map(|(_, name)| name.as_slice()).collect();
            synced = synced.and_then(|()| files.sync_arrived(&names));
        }
        match synced {
            Ok(()) => arrived,
            // A repeated sync would say nothing about what this one lost.
            Err(error) => {
                arrived.into_iter().for_each(|begun| self.drop_arrival(begun, &error));
                Vec::new()
            }
        }
    }

    fn drop_arrival(&mut self, (arrival, name): Begun, error: &CollectedError) {
        if let Some(files) = self.directories.get(&arrival.key.0)
            && let Err(error) = files.give_up(&name)
        {
            tracing::warn!(
                error = syncd_shared::text::error_chain(&error),
                "a part of a version stays in .incoming"
            );
        }
        self.fail(arrival.key, error);
    }
}
