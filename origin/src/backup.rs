//! `syncd-origin backup DIR`: copies DATA, while the origin serves or not, so that `serve --data DIR` accepts
//! it.
//!
//! The store is copied in one consistent state, then the collected directories, the logs `events` and
//! `audit`, and the keys with all revocations. `DIR/keys` gets its name last. An interrupted copy is
//! therefore not a data directory, and a complete one has every revocation, including those made during the
//! copy.

use std::io;
use std::path::{Path, PathBuf};

use syncd_runtime::key_file::{self, FileError};
use syncd_runtime::own_directory::{self, Access, DirectoryError};
use syncd_shared::marks::{self, Mark};

use crate::collected::{CollectError, Collection};
use crate::commit::CollectionGate;
use crate::keys::{Keys, KeysError};
use crate::line_log::{self, LineLogError};
use crate::overlap::OverlapError;
use crate::store::{BackupStoreError, Store};
use crate::{audit, events};

/// Present in every new ext file system.
const LOST_AND_FOUND: &str = "lost+found";

/// Reasons that no backup was made.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The path is relative, but the serving origin has another working directory.
    #[error("{} is no absolute path", path.display())]
    Relative { path: PathBuf },
    /// A backup in DATA would be lost with it; in a replica it would be served.
    #[error("{} lies inside {}, {mark}: give a directory outside of it", path.display(), above.display())]
    Inside {
        path: PathBuf,
        /// The enclosing directory.
        above: PathBuf,
        /// Kind of the enclosing directory.
        mark: Mark,
    },
    /// The directory lies inside the content tree or contains it.
    #[error(transparent)]
    Overlap(#[from] OverlapError),
    /// Older backups are never changed.
    #[error("{} is not empty: name a new or empty directory for each backup", path.display())]
    NotEmpty { path: PathBuf },
    #[error("reading {} failed", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The directory belongs to another user or could not be prepared.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Copying the store failed.
    #[error(transparent)]
    Store(#[from] BackupStoreError),
    /// Copying the events or the audit failed.
    #[error(transparent)]
    Logs(#[from] LineLogError),
    /// Copying the collected directories failed.
    #[error(transparent)]
    Collect(#[from] CollectError),
    /// Copying the keys failed.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The copy could not be made durable.
    #[error(transparent)]
    Sync(#[from] FileError),
}

/// Copies an open data directory to `to`, which must be empty, or missing and is then created with mode 0700.
/// The copy is durable on return; after an error it is removed. `progress` receives bytes copied and in
/// total. Commits continue meanwhile, garbage collection waits. Blocks.
pub fn backup(
    store: &Store,
    keys: &Keys,
    collected: Option<&Collection>,
    gate: &CollectionGate,
    to: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), BackupError> {
    if !to.is_absolute() {
        return Err(BackupError::Relative { path: to.to_owned() });
    }
    let failed = |source| BackupError::Read { path: to.to_owned(), source };
    if let Some((above, mark)) = marks::above(to).map_err(failed)? {
        return Err(BackupError::Inside { path: to.to_owned(), above, mark });
    }
    refuse_used(to)?;
    own_directory::claim(to, Access::Private)?;
    // Others may have written to it before its mode was corrected.
    refuse_used(to)?;
    let _closed = gate.close();
    let copied = copy(store, keys, collected, to, progress);
    if copied.is_err() {
        clear(to);
    }
    copied
}

/// Rejects a directory that is not empty; a missing one passes.
fn refuse_used(to: &Path) -> Result<(), BackupError> {
    let failed = |source| BackupError::Read { path: to.to_owned(), source };
    let listed = match std::fs::read_dir(to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        listed => listed.map_err(failed)?,
    };
    for entry in listed {
        if entry.map_err(failed)?.file_name() != LOST_AND_FOUND {
            return Err(BackupError::NotEmpty { path: to.to_owned() });
        }
    }
    Ok(())
}

fn copy(
    store: &Store,
    keys: &Keys,
    collected: Option<&Collection>,
    to: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), BackupError> {
    let (mut done, mut total) = (0, 0);
    store.backup(to, &mut |bytes, total_bytes| {
        (done, total) = (bytes, total_bytes);
        progress(bytes, total_bytes);
    })?;
    if let Some(collected) = collected {
        collected.backup(to, &mut |bytes| {
            done += bytes;
            progress(done, total.max(done));
        })?;
    }
    for log in [events::path, audit::path] {
        line_log::copy(&log(keys.data()), &log(to))?;
    }
    keys.copy_to(to)?;
    Ok(key_file::sync_directory(&to.join(".."))?)
}

/// Removes an incomplete copy as far as possible. Without keys it is not a data directory in any case.
fn clear(to: &Path) {
    for entry in std::fs::read_dir(to).into_iter().flatten().flatten() {
        if entry.file_name() != LOST_AND_FOUND {
            let path = entry.path();
            let removed =
                if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            if let Err(error) = removed {
                tracing::warn!(path = %path.display(), %error, "half a backup is left");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;
    use std::time::Duration;

    use syncd_runtime::local_socket::Peer;
    use syncd_shared::identity::authority::AuthorityKey;
    use syncd_shared::identity::{AgentName, PeerIdentity, Serial};
    use time::OffsetDateTime;

    use super::*;
    use crate::admin::protocol::Request;
    use crate::audit::Audit;
    use crate::events::{Event, StandbyEvents};
    use crate::fleet::registry::Registry;

    fn data() -> (tempfile::TempDir, Arc<Store>, Keys) {
        let data = tempfile::tempdir().unwrap();
        let keys = Keys::create(data.path()).unwrap();
        let store = Arc::new(Store::create(data.path()).unwrap());
        (data, store, keys)
    }

    #[test]
    fn a_backup_opens_as_a_data_directory_and_is_never_half_one() {
        let (data, store, keys) = data();
        keys.set_host("www.example.org").unwrap();
        let token = Registry::new(store.clone()).create_token(&keys, Duration::from_secs(60), 3).unwrap();
        let base = tempfile::tempdir().unwrap();
        let to = base.path().join("backups/monday");
        let gate = CollectionGate::default();
        let deed = Request::Promote;
        Audit::open(data.path()).unwrap().record(Peer::this_process(), &deed).unwrap();
        StandbyEvents::open(data.path()).unwrap().record(Event::Promoted { epoch: 2, first: 7 });
        backup(&store, &keys, None, &gate, &to, &mut |_, _| {}).unwrap();
        assert_eq!(audit::read(&to).unwrap(), audit::read(data.path()).unwrap());
        assert_eq!(events::read(&to).unwrap()[0].what, Event::Promoted { epoch: 2, first: 7 });
        let (again, copied) = (Keys::open(&to).unwrap(), Arc::new(Store::open(&to).unwrap()));
        assert_eq!(
            (again.verifying_key(), again.host()),
            (keys.verifying_key(), Some("www.example.org".into()))
        );
        let tokens = Registry::new(copied).tokens().unwrap();
        let token_id = data_encoding::HEXLOWER.encode(&token.secret_hash()[..4]);
        assert_eq!(
            tokens.iter().map(|t| (t.id.as_str(), t.uses_left)).collect::<Vec<_>>(),
            [(token_id.as_str(), 3)]
        );

        let refused = |to: &Path| backup(&store, &keys, None, &gate, to, &mut |_, _| {});
        std::fs::set_permissions(&to, PermissionsExt::from_mode(0o755)).unwrap();
        assert!(matches!(refused(&to), Err(BackupError::NotEmpty { .. })), "an older backup stays");
        assert_eq!(std::fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o755);
        assert!(matches!(refused(&data.path().join("copy")), Err(BackupError::Inside { .. })));
        assert!(matches!(refused(Path::new("here")), Err(BackupError::Relative { .. })));
        // The keys can't be copied: what the store has copied goes.
        std::fs::remove_file(data.path().join("keys/ca.key")).unwrap();
        let tuesday = base.path().join("backups/tuesday");
        assert!(matches!(refused(&tuesday), Err(BackupError::Keys(_))));
        assert_eq!(std::fs::read_dir(&tuesday).unwrap().count(), 0);
    }

    #[test]
    fn the_keys_alone_keep_revoked_nodes_out() {
        let (data, store, keys) = data();
        let now = OffsetDateTime::now_utc();
        let name: AgentName = "web1".parse().unwrap();
        let serial = Serial::from_bytes([7; 16]);
        let (not_after, issuer) = (now + time::Duration::days(30), AuthorityKey([0; 20]));
        let peer = PeerIdentity { name, serial, fingerprint: [7; 32], not_before: now, not_after, issuer };
        let registry = Registry::new(store.clone());
        registry.enrol_for_test(&peer);
        registry.revoke("web1").unwrap();
        assert!(keys.backup_files().contains(&data.path().join("keys/revoked")));
        // The files that `init` names, and a new store.
        let restored = tempfile::tempdir().unwrap();
        for file in keys.backup_files() {
            let target = restored.path().join(file.strip_prefix(data.path()).unwrap());
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            std::fs::copy(&file, target).unwrap();
        }
        Keys::open(restored.path()).unwrap();
        let store = Arc::new(Store::create(restored.path()).unwrap());
        assert!(!Registry::new(store).admits_for_test(&peer));
    }
}
