//! Files of the keys: reading, their modes, and what `create` finds in its place.

use std::path::{Path, PathBuf};
use std::{fs, io};

use data_encoding::HEXLOWER;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use syncd_runtime::key_file::{self, FileError};
use syncd_shared::TreeId;
use syncd_shared::ed25519::SigningKey;
use syncd_shared::identity::authority::certificate_from_pem;

use super::{
    CA_KEY, FORMAT, FORMAT_VERSION, KEYS, KeysError, LEFTOVERS, ORIGIN_KEY, ROOT_KEY, SIGNING_KEY, rotation,
};

/// Removes remains of an interrupted `create`, or anything planted in their place.
pub(super) fn remove_leftover(path: &Path) -> Result<(), KeysError> {
    let removed = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(KeysError::Directory { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Sets the modes of secrets that others can read, with a warning. Missing ones are reported where they are
/// needed.
pub(super) fn keep_secrets_private(data: &Path) -> Result<(), KeysError> {
    let keys = data.join(KEYS);
    let secrets = [CA_KEY, ORIGIN_KEY, SIGNING_KEY].map(|name| keys.join(name));
    let waiting = rotation::REPLACED.map(|name| keys.join(rotation::NEXT).join(name));
    for path in secrets.into_iter().chain(waiting).chain([data.join(ROOT_KEY)]) {
        match key_file::keep_private(&path) {
            Err(FileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            kept => kept?,
        }
    }
    Ok(())
}

/// Rejects a directory with keys or foreign files; a missing one passes.
pub(super) fn refuse_used(data: &Path) -> Result<(), KeysError> {
    let failed = |source| KeysError::Directory { path: data.to_owned(), source };
    let listed = match fs::read_dir(data) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        listed => listed.map_err(failed)?,
    };
    let mut stranger = None;
    for entry in listed {
        let name = entry.map_err(failed)?.file_name();
        if name == KEYS {
            return Err(KeysError::Initialised { data: data.to_owned() });
        }
        if !LEFTOVERS.iter().any(|known| name == *known) {
            stranger = Some(PathBuf::from(name));
        }
    }
    match stranger {
        Some(name) => Err(KeysError::NotEmpty { data: data.to_owned(), name }),
        None => Ok(()),
    }
}

pub(super) fn open_format(data: &Path) -> Result<TreeId, KeysError> {
    let path = data.join(FORMAT);
    let text = match key_file::read(&path) {
        Err(FileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(if data.join(KEYS).is_dir() {
                KeysError::Damaged { path }
            } else {
                KeysError::NotInitialised { data: data.to_owned() }
            });
        }
        text => text?,
    };
    parse_format(&text, data)
}

pub(super) fn parse_format(text: &str, data: &Path) -> Result<TreeId, KeysError> {
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    if first != format!("syncd-origin {FORMAT_VERSION}") {
        let found = first.chars().take(100).collect();
        return Err(KeysError::Format { data: data.to_owned(), found });
    }
    lines
        .next()
        .and_then(|line| line.strip_prefix("tree_id "))
        .and_then(|id| id.parse().ok())
        .ok_or_else(|| KeysError::Damaged { path: data.join(FORMAT) })
}

pub(super) fn signing_key_text(key: &SigningKey) -> String {
    format!("{}\n", HEXLOWER.encode(key.as_bytes()))
}

pub(super) fn read_signing_key(path: &Path) -> Result<SigningKey, KeysError> {
    parse_signing_key(&key_file::read(path)?).ok_or_else(|| KeysError::Damaged { path: path.to_owned() })
}

pub(super) fn parse_signing_key(text: &str) -> Option<SigningKey> {
    let seed = HEXLOWER.decode(text.trim().as_bytes()).ok()?;
    Some(SigningKey::from_bytes(&seed.try_into().ok()?))
}

pub(super) fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, KeysError> {
    certificate_from_pem(&key_file::read(path)?).ok_or_else(|| KeysError::Damaged { path: path.to_owned() })
}

pub(super) fn read_key(path: &Path) -> Result<KeyPair, KeysError> {
    KeyPair::from_pem(&key_file::read(path)?).map_err(|_| KeysError::Damaged { path: path.to_owned() })
}
