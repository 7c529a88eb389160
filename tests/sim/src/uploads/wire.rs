//! The connection of a node to the origin, as its engine sees it. In each call the node may be killed, the
//! line may be cut, and visitors may write.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use syncd_agent::collected::{CollectedError, Link, Transfer};
use syncd_origin::collected::{CollectError, Collection};
use syncd_proto::v1::collected_up::Message as Up;
use tonic::Status;

use super::visit::{Visit, Visited};

/// Payload that unwinds the engine of a killed node.
pub struct Killed;

/// State of a node's line during one step of its engine.
#[derive(Default)]
pub struct Wire {
    /// The origin, if it can be reached.
    pub collection: Option<Collection>,
    pub sent: Vec<Up>,
    /// Calls until the node is killed; 0: it is not.
    pub dies_in: u64,
    /// Calls until the line is cut; 0: it is not.
    pub cut_in: u64,
    pub is_cut: bool,
    /// Visits during the calls.
    pub visits: Vec<Visit>,
    pub visited: Vec<Visited>,
    /// The engine has given up its line.
    pub hung_up: bool,
}

/// One connection.
pub struct Line {
    pub wire: Arc<Mutex<Wire>>,
    /// The node's collected directory.
    pub files: PathBuf,
}

pub fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Line {
    /// A moment in which anything may happen.
    fn moment(&self) -> Result<(), CollectedError> {
        let mut wire = lock(&self.wire);
        if let Some(visit) = wire.visits.pop() {
            let visited = visit.perform(&self.files);
            wire.visited.extend(visited);
        }
        if wire.dies_in > 0 {
            wire.dies_in -= 1;
            if wire.dies_in == 0 {
                drop(wire);
                std::panic::resume_unwind(Box::new(Killed));
            }
        }
        if wire.cut_in > 0 {
            wire.cut_in -= 1;
            if wire.cut_in == 0 {
                wire.is_cut = true;
            }
        }
        if wire.is_cut { Err(CollectedError::Disconnected) } else { Ok(()) }
    }

    /// The origin, unless nothing passes.
    fn origin(&self) -> Result<Collection, CollectedError> {
        self.moment()?;
        lock(&self.wire).collection.clone().ok_or(CollectedError::Disconnected)
    }

    fn upload_one(&self, Transfer { file, open, .. }: &mut Transfer) -> Result<(), CollectedError> {
        let collection = self.origin()?;
        let mut upload = collection.contents().upload(file.content, file.size).map_err(refused)?;
        let mut bytes = Vec::new();
        open.read_to_end(&mut bytes).map_err(CollectedError::Read)?;
        for piece in bytes.chunks(bytes.len() / 2 + 1) {
            upload.write(piece).map_err(refused)?;
            self.moment()?;
        }
        upload.finish().map_err(refused)?;
        // The answer may be lost.
        self.moment()
    }

    fn download_one(&self, Transfer { file, open, .. }: &mut Transfer) -> Result<(), CollectedError> {
        let collection = self.origin()?;
        let mut content = collection.contents().open_content(&file.content).map_err(refused)?;
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes).map_err(CollectedError::Read)?;
        for piece in bytes.chunks(bytes.len() / 2 + 1) {
            open.write_all(piece).map_err(CollectedError::Read)?;
            self.moment()?;
        }
        Ok(())
    }
}

fn refused(error: CollectError) -> CollectedError {
    Status::invalid_argument(error.to_string()).into()
}

impl Link for Line {
    fn send(&mut self, message: Up) -> Result<(), CollectedError> {
        self.moment()?;
        lock(&self.wire).sent.push(message);
        Ok(())
    }

    fn upload(&mut self, contents: &mut [Transfer]) -> Vec<Result<(), CollectedError>> {
        contents.iter_mut().map(|transfer| self.upload_one(transfer)).collect()
    }

    fn download(&mut self, contents: &mut [Transfer]) -> Vec<Result<(), CollectedError>> {
        contents.iter_mut().map(|transfer| self.download_one(transfer)).collect()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        lock(&self.wire).hung_up = true;
    }
}
