//! Replacing keys: new ones wait in DATA/keys/next until the root key has signed their trust document.
//!
//! ```text
//! DATA/keys/next/document   the trust document, without its signature
//! DATA/keys/next/...        files that replace those of the same name in DATA/keys
//! ```
//!
//! [`Keys::prepare`] builds the directory beside its place and renames it. [`Keys::take`] adds the signed
//! document to DATA/keys/trust, which is the decisive step, and then moves the files. [`Keys::open`] repeats
//! the moves after a crash in between. `document` goes last.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::{fs, io};

use rustix::fs::{CWD, RenameFlags};
use syncd_runtime::key_file::{self, FileError};
use syncd_runtime::own_directory::{self, Access};
use syncd_shared::identity::authority::{Authority, certificate_to_pem, generate_key};
use syncd_shared::identity::{RootKey, SignedTrust, TrustDocument, signing};
use time::OffsetDateTime;

use super::in_force::{TRUST_DOCUMENTS_MAX, earlier_text, trust_text};
use super::{
    CA_CERTIFICATE, CA_KEY, EARLIER_AUTHORITIES, KEYS, Keys, KeysError, ORIGIN_CERTIFICATE, ORIGIN_KEY,
    ROOT_KEY, SIGNING_KEY, SKIPPED_MAX, TRUST, remove_leftover, signing_key_text,
};

pub(super) const NEXT: &str = "next";
const NEXT_NEW: &str = "next.new";
const DOCUMENT: &str = "document";
/// Files that may wait in `next`.
pub(super) const REPLACED: [&str; 6] =
    [SIGNING_KEY, CA_CERTIFICATE, CA_KEY, ORIGIN_CERTIFICATE, ORIGIN_KEY, EARLIER_AUTHORITIES];

/// The keys to replace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rotation<'a> {
    pub signing: bool,
    pub authority: bool,
    /// Refuse certificates of replaced authorities at once. Their nodes must join again.
    pub retire: bool,
    /// Also replace the root key, sealed by the passphrase if there is one.
    pub root: Option<NewRoot<'a>>,
    /// The document gets a number past this one, which nodes are known to follow.
    pub after: Option<u32>,
}

/// A root key to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewRoot<'a> {
    pub passphrase: Option<&'a str>,
}

impl Keys {
    /// Makes new keys and their trust document, which waits for the signature of the root key. Replaces what
    /// waited before. Durable on return.
    ///
    /// If nodes know later documents than this DATA has, it is an older copy, and its keys may be replaced
    /// ones. The document then gets the next number and both keys are new, past all that lost ones may sign.
    pub fn prepare(&self, rotation: &Rotation<'_>, now: OffsetDateTime) -> Result<TrustDocument, KeysError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = self.data.join(KEYS);
        let (next, new) = (keys.join(NEXT), keys.join(NEXT_NEW));
        remove_leftover(&new)?;
        own_directory::claim_inside(&new, Access::Private)?;
        let in_force = self.in_force();
        let skipped = self.skipped(rotation.after)?;
        let root = rotation.root.map(|root| self.new_root(root)).transpose()?;
        let mut document = in_force.next_document(root.as_ref(), skipped, now)?;
        let put = |name: &str, text: &str| key_file::write(&new.join(name), text);
        if rotation.signing || skipped > 0 {
            let key = signing::generate()?;
            document.replace_signing_key(key.verifying_key()).ok_or(KeysError::NoNumberLeft)?;
            put(SIGNING_KEY, &signing_key_text(&key))?;
        }
        if rotation.authority || skipped > 0 {
            let authority = Authority::create(self.tree_id, now)?;
            document.authority = authority.certificate().clone();
            let key = generate_key()?;
            put(CA_CERTIFICATE, &certificate_to_pem(authority.certificate()))?;
            put(CA_KEY, &authority.key().serialize_pem())?;
            put(ORIGIN_CERTIFICATE, &certificate_to_pem(&authority.issue_origin(&key, now)?))?;
            put(ORIGIN_KEY, &key.serialize_pem())?;
        }
        if rotation.retire {
            put(EARLIER_AUTHORITIES, "")?;
        } else if rotation.authority || skipped > 0 {
            put(EARLIER_AUTHORITIES, &earlier_text(&in_force.earlier_with_this(now)))?;
        }
        put(DOCUMENT, &document.to_text())?;
        // A crash must not leave a part of what waited before: its document would still be taken.
        let flags = if next.is_dir() { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
        rustix::fs::renameat_with(CWD, &new, CWD, &next, flags)
            .map_err(|errno| KeysError::Directory { path: next, source: errno.into() })?;
        key_file::sync_directory(&keys)?;
        remove_leftover(&new)?;
        Ok(document)
    }

    /// Notes the number of the trust document that an enrolled node follows. If it is higher than the newest
    /// one here, this DATA is an older copy, and the next document gets a number past it. Numbers too far
    /// above are ignored, because a node may lie.
    pub fn note_number(&self, number: u32) {
        if number <= self.trust().number().saturating_add(SKIPPED_MAX) {
            self.shown.fetch_max(number, Ordering::Relaxed);
        }
    }

    /// Number of documents that nodes know and this DATA does not have.
    fn skipped(&self, after: Option<u32>) -> Result<u32, KeysError> {
        let known = self.trust().number();
        let after = after.unwrap_or_default();
        let skipped = after.max(self.shown.load(Ordering::Relaxed)).saturating_sub(known);
        if skipped > SKIPPED_MAX { Err(KeysError::TooFar { after, known }) } else { Ok(skipped) }
    }

    fn new_root(&self, root: NewRoot<'_>) -> Result<RootKey, KeysError> {
        let path = self.data.join(ROOT_KEY);
        if path.symlink_metadata().is_ok() {
            return Err(KeysError::RootKeyHere { path });
        }
        let made = RootKey::generate(self.tree_id)?;
        key_file::write(&path, &made.to_text(root.passphrase)?)?;
        Ok(made)
    }

    /// The trust document that waits for its signature.
    pub fn pending(&self) -> Result<Option<TrustDocument>, KeysError> {
        read_pending(&self.data.join(KEYS))
    }

    /// Takes the signed document, and uses its keys from now on. Durable on return; after a crash either all
    /// old keys or all new ones are in force. Taking the newest document again changes nothing.
    pub fn take(&self, signed: &SignedTrust) -> Result<(), KeysError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = self.data.join(KEYS);
        if *signed == **self.in_force().trust() {
            return Ok(());
        }
        if read_pending(&keys)?.as_ref() != Some(signed.document()) {
            return Err(KeysError::NotPending { number: signed.number() });
        }
        let mut trust = self.in_force().all_trust().to_vec();
        trust.push(Arc::new(signed.clone()));
        // Generations of a forgotten one no longer verify; none is retained for so long.
        let excess = trust.len().saturating_sub(TRUST_DOCUMENTS_MAX);
        trust.drain(..excess);
        key_file::write(&keys.join(TRUST), &trust_text(&trust))?;
        finish_taking(&keys, signed)?;
        self.reload()
    }
}

/// Finishes a taking that was interrupted. A waiting document that cannot be read is named and stays: it does
/// not keep the origin from starting with the keys that it has.
pub(super) fn finish_interrupted(keys: &Path, newest: &SignedTrust) -> Result<(), KeysError> {
    match read_pending(keys) {
        Ok(_) => finish_taking(keys, newest),
        Err(error) => {
            tracing::warn!("{}", crate::error_chain(&error));
            Ok(())
        }
    }
}

fn read_pending(keys: &Path) -> Result<Option<TrustDocument>, KeysError> {
    let path = keys.join(NEXT).join(DOCUMENT);
    match key_file::read(&path) {
        Ok(text) => match TrustDocument::from_text(&text) {
            Ok(document) => Ok(Some(document)),
            Err(source) => Err(KeysError::DamagedDocument { path, source }),
        },
        Err(FileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Moves the files of the taken document to their places, if they are not there yet.
pub(super) fn finish_taking(keys: &Path, newest: &SignedTrust) -> Result<(), KeysError> {
    if read_pending(keys)?.as_ref() != Some(newest.document()) {
        return Ok(());
    }
    let next = keys.join(NEXT);
    let failed = |path: PathBuf| |source| KeysError::Directory { path, source };
    for name in REPLACED {
        match fs::rename(next.join(name), keys.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            moved => moved.map_err(failed(keys.join(name)))?,
        }
    }
    key_file::sync_directory(keys)?;
    fs::remove_dir_all(&next).map_err(failed(next))?;
    Ok(key_file::sync_directory(keys)?)
}
