//! The origin's keys, which make it the origin of its tree.
//!
//! ```text
//! DATA/format                    version and tree_id, text; written by `init` before the keys
//! DATA/root.key                  the root key, until the operator moves it off this machine
//! DATA/keys/trust                all signed trust documents, oldest first, base64, one a line
//! DATA/keys/ca.pem               the authority's certificate (10 years, extended in its last third)
//! DATA/keys/ca.key               its key, PEM
//! DATA/keys/origin.pem           the origin's certificate (3 years, reissued in its last year)
//! DATA/keys/origin.key           its key, PEM
//! DATA/keys/signing.key          ed25519 seed, 64 hexadecimal digits
//! DATA/keys/earlier-authorities  replaced authorities whose certificates may still be renewed, base64
//! DATA/keys/revoked              every revocation, one line per name; holds even with an older or new index
//! DATA/keys/next/                keys that wait for their trust document to be signed ([`rotation`])
//! DATA/host                      the name of `init --host`, for join commands
//! ```
//!
//! Directories have mode 0700 (0750 if a group was given access) and files 0600, which is checked and
//! corrected at each start. Files begin with the line that marks private files, so that no origin publishes
//! them ([`syncd_shared::marks`]).
//!
//! `create` builds the keys in `keys.new` and renames them into place. Existing `keys` are therefore
//! complete, and `create` rejects them. Later on, `origin.pem` and `ca.pem` are replaced when their life is
//! extended, `revoked` with each revocation ([`revocations`]), and all others when a signed trust document is
//! taken.

mod files;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod in_force;
pub(crate) mod revocations;
pub mod rotation;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::{fmt, fs, io};

use files::{
    keep_secrets_private, open_format, read_certificate, read_key, read_signing_key, refuse_used,
    remove_leftover, signing_key_text,
};
use in_force::KeysInForce;
use rustls::ServerConfig;
use syncd_runtime::key_file::{self, FileError};
use syncd_runtime::own_directory::{self, Access, DirectoryError};
use syncd_runtime::tls::{Admit, OriginTls, TlsError, page_config, server_config};
use syncd_shared::ed25519::{SigningKey, VerifyingKey};
use syncd_shared::generation::GenerationError;
use syncd_shared::identity::authority::{
    AUTHORITY_LIFE, Authority, AuthorityError, AuthorityKey, ORIGIN_CERTIFICATE_LIFE, certificate_to_pem,
    validity,
};
use syncd_shared::identity::root_key::RootKeyError;
use syncd_shared::identity::trust::TrustError;
use syncd_shared::identity::{JoinToken, RootFingerprint, RootKey, SignedTrust};
use syncd_shared::{Generation, SignedGeneration, TreeId};
use time::OffsetDateTime;
use tokio::sync::watch;

const FORMAT_VERSION: u32 = 1;
const FORMAT: &str = "format";
const KEYS: &str = "keys";
const KEYS_NEW: &str = "keys.new";
const ROOT_KEY: &str = "root.key";
const TRUST: &str = "trust";
const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const ORIGIN_CERTIFICATE: &str = "origin.pem";
const ORIGIN_KEY: &str = "origin.key";
const SIGNING_KEY: &str = "signing.key";
const EARLIER_AUTHORITIES: &str = "earlier-authorities";
const REVOKED: &str = "revoked";
const HOST: &str = "host";
/// All files in DATA/keys.
const KEY_FILES: [&str; 8] = [
    TRUST,
    CA_CERTIFICATE,
    CA_KEY,
    ORIGIN_CERTIFICATE,
    ORIGIN_KEY,
    SIGNING_KEY,
    EARLIER_AUTHORITIES,
    REVOKED,
];
/// Names allowed in DATA before `init`: remains of an interrupted one, the lock, the configuration, and the
/// content of a new file system.
const LEFTOVERS: [&str; 10] = [
    FORMAT,
    "format.new",
    HOST,
    "host.new",
    ROOT_KEY,
    "root.key.new",
    KEYS_NEW,
    "lock",
    "lost+found",
    "config.toml",
];
/// Trust documents that may be missing between the newest one here and the next. Bounds what an enrolled node
/// can claim to know.
const SKIPPED_MAX: u32 = 1_000;
/// Time before the authority's expiry from which operators are warned.
const WARNING: time::Duration = time::Duration::days(365);

/// Errors of creating, opening or replacing the keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The data directory was initialised before.
    #[error("{data} is initialised already: `syncd-origin serve` uses it as it is", data = data.display())]
    Initialised { data: PathBuf },
    /// The data directory has other content.
    #[error("{data} is not empty (it holds {name:?}): name a new or empty directory", data = data.display())]
    NotEmpty {
        data: PathBuf,
        /// One of the names found.
        name: PathBuf,
    },
    /// The data directory is not initialised yet.
    #[error("{data} is not initialised: run `syncd-origin init --data {data}` first", data = data.display())]
    NotInitialised { data: PathBuf },
    /// A new root key would replace one that may be the only copy.
    #[error(
        "{path} is still here: sign with it, or move it to a safe place before another root key is made",
        path = path.display()
    )]
    RootKeyHere { path: PathBuf },
    /// A file was removed under the running origin.
    #[error(
        "{path} is gone: agents are served, but the origin can't be started again; restore the file from the backup",
        path = path.display()
    )]
    Gone { path: PathBuf },
    /// Another format version, or not a data directory of an origin.
    #[error("{data} has data format {found:?}, expected {FORMAT_VERSION}: use the syncd-origin that made it", data = data.display())]
    Format {
        data: PathBuf,
        /// First line of its format file.
        found: String,
    },
    /// A file does not parse, or does not belong to the others.
    #[error("{path} is damaged: restore it from the backup", path = path.display())]
    Damaged { path: PathBuf },
    /// The document that waits for its signature cannot be read.
    #[error("{path} is damaged, and is not used: `syncd-origin key rotate` makes another document", path = path.display())]
    DamagedDocument { path: PathBuf, source: TrustError },
    /// A signed trust document is invalid.
    #[error("the trust document is refused")]
    Trust(#[from] TrustError),
    /// Another document than the one that waits for its signature, or none waits.
    #[error(
        "trust document {number} is not the one that waits for its signature: `syncd-origin key show` shows which does"
    )]
    NotPending { number: u32 },
    /// `key rotate --after` with a number that no lost document can have.
    #[error(
        "--after {after} is more than {SKIPPED_MAX} past trust document {known}, the newest here: look for a typing error"
    )]
    TooFar { after: u32, known: u32 },
    /// Every number of trust documents, or of epochs or generations, is used.
    #[error("no trust document can follow: its number, epochs or generation numbers are used up")]
    NoNumberLeft,
    /// Listing, renaming or removing failed.
    #[error("preparing {path} failed", path = path.display())]
    Directory { path: PathBuf, source: io::Error },
    /// A directory belongs to another user or could not be prepared.
    #[error(transparent)]
    Own(#[from] DirectoryError),
    /// Reading or writing failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A key does not match its certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Creating keys or certificates failed.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Making the root key failed.
    #[error(transparent)]
    RootKey(#[from] RootKeyError),
    /// The kernel's random number generator failed.
    #[error("reading random numbers failed")]
    Random(#[from] getrandom::Error),
}

/// The rights of certificates of one authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthorityStanding {
    /// Everything: the newest trust document names the authority.
    Current,
    /// Be renewed, and nothing else.
    Replaced,
    /// Nothing.
    Retired,
}

/// The origin's keys, in memory. Replaced as a whole when a trust document is taken, also while it serves.
pub struct Keys {
    data: PathBuf,
    tree_id: TreeId,
    tls: Arc<OriginTls>,
    in_force: RwLock<Arc<KeysInForce>>,
    /// The newest trust document, for agents that are connected.
    newest: watch::Sender<Arc<SignedTrust>>,
    /// Highest number of a trust document that a node has shown, since the start.
    shown: AtomicU32,
    /// Held while files are replaced.
    changing: Mutex<()>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.tree_id)
    }
}

impl Keys {
    /// Whether keys can be created in `data`. Changes nothing.
    pub fn check_unused(data: &Path) -> Result<(), KeysError> {
        refuse_used(data)
    }

    /// Creates a new tree's keys in `data`, an empty or missing directory, with an open root key.
    pub fn create(data: &Path) -> Result<Self, KeysError> {
        Self::create_sealed(data, None)
    }

    /// Creates a new tree's keys in `data`, an empty or missing directory. The passphrase seals the root key.
    /// Durable on return; before that, `data` counts as not initialised.
    pub fn create_sealed(data: &Path, passphrase: Option<&str>) -> Result<Self, KeysError> {
        Self::create_at(data, passphrase, OffsetDateTime::now_utc())
    }

    /// Like [`Keys::create_sealed`], at a given time.
    pub(crate) fn create_at(
        data: &Path,
        passphrase: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<Self, KeysError> {
        refuse_used(data)?;
        own_directory::claim(data, Access::Private)?;
        // Others may have written to it before its mode was corrected.
        refuse_used(data)?;
        let mut tree_id = [0; 16];
        getrandom::fill(&mut tree_id)?;
        let tree_id = TreeId::from_bytes(tree_id);
        let root = RootKey::generate(tree_id)?;

        key_file::write(&data.join(FORMAT), &format!("syncd-origin {FORMAT_VERSION}\ntree_id {tree_id}\n"))?;
        key_file::write(&data.join(ROOT_KEY), &root.to_text(passphrase)?)?;
        let new = data.join(KEYS_NEW);
        remove_leftover(&new)?;
        own_directory::claim_inside(&new, Access::Private)?;
        KeysInForce::create(&root, now)?.write(&new)?;
        key_file::write(&new.join(REVOKED), "")?;
        let keys = data.join(KEYS);
        fs::rename(&new, &keys).map_err(|source| KeysError::Directory { path: keys, source })?;
        key_file::sync_directory(data)?;
        key_file::sync_directory(&data.join(".."))?;
        Self::open(data)
    }

    /// Reads the keys in `data`. Completes the taking of a trust document that was interrupted.
    pub fn open(data: &Path) -> Result<Self, KeysError> {
        let tree_id = open_format(data)?;
        let keys = data.join(KEYS);
        if !keys.is_dir() {
            return Err(KeysError::NotInitialised { data: data.to_owned() });
        }
        own_directory::check(data, Access::Private)?;
        own_directory::check(&keys, Access::Private)?;
        let trust = in_force::read_trust(&keys, tree_id)?;
        rotation::finish_interrupted(&keys, in_force::newest(&trust))?;
        keep_secrets_private(data)?;
        revocations::read(data)?;
        let in_force = KeysInForce::open(&keys, tree_id, trust)?;
        let tls = Arc::new(in_force.tls()?);
        let newest = watch::Sender::new(in_force.trust().clone());
        let in_force = RwLock::new(Arc::new(in_force));
        let (shown, changing) = (AtomicU32::new(0), Mutex::default());
        Ok(Self { data: data.to_owned(), tree_id, tls, in_force, newest, shown, changing })
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn tree_id(&self) -> TreeId {
        self.tree_id
    }

    fn in_force(&self) -> Arc<KeysInForce> {
        self.in_force.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Uses the keys that are on the disk now, from the next handshake and signature on.
    fn reload(&self) -> Result<(), KeysError> {
        let keys = self.data.join(KEYS);
        let trust = in_force::read_trust(&keys, self.tree_id)?;
        let new = KeysInForce::open(&keys, self.tree_id, trust)?;
        new.show_in(&self.tls)?;
        let trust = new.trust().clone();
        *self.in_force.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        self.newest.send_if_modified(|newest| {
            let is_newer = *newest != trust;
            *newest = trust;
            is_newer
        });
        Ok(())
    }

    pub fn authority(&self) -> Arc<Authority> {
        self.in_force().authority.clone()
    }

    /// The rights of certificates of this authority.
    pub fn standing(&self, authority: AuthorityKey) -> AuthorityStanding {
        self.in_force().standing(authority)
    }

    pub fn signing_key(&self) -> SigningKey {
        self.in_force().signing_key.clone()
    }

    pub fn verifying_key(&self) -> VerifyingKey {
        self.in_force().signing_key.verifying_key()
    }

    /// Signs a generation under the newest trust document, whose number it gets.
    pub fn sign(&self, generation: Generation) -> SignedGeneration {
        let in_force = self.in_force();
        Generation { trust: in_force.trust().number(), ..generation }.sign(&in_force.signing_key)
    }

    /// The newest trust document.
    pub fn trust(&self) -> Arc<SignedTrust> {
        self.in_force().trust().clone()
    }

    /// The newest trust document, also when another one is taken.
    pub fn trust_changes(&self) -> watch::Receiver<Arc<SignedTrust>> {
        self.newest.subscribe()
    }

    /// Verifies a generation's record from the store: it must be of this tree and signed by the current
    /// signing key or an earlier one.
    pub fn verify(&self, record: &[u8], signature: &[u8]) -> Result<SignedGeneration, GenerationError> {
        self.in_force().verify(record, signature)
    }

    /// Verifies a generation's record as agents do: signed as the newest trust document says.
    pub fn verify_newest(
        &self,
        record: &[u8],
        signature: &[u8],
    ) -> Result<SignedGeneration, GenerationError> {
        self.in_force().trust().document().verify_generation(record, signature)
    }

    /// Generates a join token for this tree with a new secret. The caller must store
    /// [`JoinToken::secret_hash`].
    pub fn token(&self) -> Result<JoinToken, KeysError> {
        let trust = self.trust();
        Ok(JoinToken::generate(self.tree_id, trust.document().root_fingerprint(), trust.number())?)
    }

    /// TLS configuration of the listener.
    pub fn server_tls(&self, admit: Admit) -> Result<Arc<ServerConfig>, TlsError> {
        server_config(self.tls.clone(), admit)
    }

    /// TLS configuration of the page for browsers. It shows the same certificate.
    pub fn page_tls(&self) -> Result<Arc<ServerConfig>, TlsError> {
        page_config(self.tls.clone())
    }

    /// SHA-256 of the certificate that is shown now.
    pub fn certificate_sha256(&self) -> String {
        self.tls.sha256()
    }

    /// Extends the life of the authority if less than a third of it is left. One that does not hold today is
    /// left alone, because a wrong clock is the likelier reason. Durable; returns whether it was extended.
    pub fn extend_authority(&self, now: OffsetDateTime) -> Result<bool, KeysError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let authority = self.authority();
        let valid = authority.validity();
        if !valid.holds(now) || valid.not_after - now >= AUTHORITY_LIFE / 3 {
            return Ok(false);
        }
        let extended = authority.extended(now)?;
        let path = self.data.join(KEYS).join(CA_CERTIFICATE);
        key_file::write(&path, &certificate_to_pem(extended.certificate()))?;
        self.reload()?;
        Ok(true)
    }

    /// Reissues the origin's certificate if less than a third of its lifetime is left or if it is not valid
    /// by this machine's clock. The next handshake uses the new one. Durable; returns whether it was
    /// reissued.
    pub fn reissue_origin_certificate(&self, now: OffsetDateTime) -> Result<bool, KeysError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let in_force = self.in_force();
        let (current, authority) = (validity(&in_force.certificate)?, in_force.authority.validity());
        let ends_soon = current.not_after - now < ORIGIN_CERTIFICATE_LIFE / 3;
        let can_last_longer = current.not_after < authority.not_after || !current.holds(now);
        if !(authority.holds(now) && ends_soon && can_last_longer) {
            return Ok(false);
        }
        let certificate = in_force.authority.issue_origin(&in_force.origin_key, now)?;
        key_file::write(&self.data.join(KEYS).join(ORIGIN_CERTIFICATE), &certificate_to_pem(&certificate))?;
        self.reload()?;
        Ok(true)
    }

    /// Warnings about the keys: dates that have come close.
    pub fn warnings(&self, now: OffsetDateTime) -> Vec<String> {
        let mut warnings = Vec::new();
        let in_force = self.in_force();
        let ends = in_force.authority.validity().not_after;
        if ends - now < WARNING {
            warnings.push(format!(
                "the authority of this tree ends on {}, and could not be extended: nodes get no certificates after \
                 that day. Check this machine's clock, or run `syncd-origin key rotate --authority`",
                ends.date()
            ));
        }
        let document = in_force.trust().document();
        if in_force::is_past(document.warn_ms, now) {
            warnings.push(format!(
                "trust document {} should have been replaced by now: `syncd-origin key rotate` makes the next one. \
                 Nothing stops without it",
                document.number
            ));
        }
        warnings
    }

    /// Last seconds of the authority and of the origin's certificate.
    pub fn ends(&self) -> Result<(OffsetDateTime, OffsetDateTime), KeysError> {
        let in_force = self.in_force();
        Ok((in_force.authority.validity().not_after, validity(&in_force.certificate)?.not_after))
    }

    /// Replaced authorities whose certificates may be renewed.
    pub fn earlier_authorities(&self) -> usize {
        self.in_force().earlier.len()
    }

    /// The root key's file, as long as it is in DATA.
    pub fn root_key_here(&self) -> Option<PathBuf> {
        Some(self.data.join(ROOT_KEY)).filter(|path| path.exists())
    }

    /// Fingerprint of the root key.
    pub fn root_fingerprint(&self) -> RootFingerprint {
        self.trust().document().root_fingerprint()
    }

    /// Stores the name that agents dial, for join commands.
    pub fn set_host(&self, host: &str) -> Result<(), KeysError> {
        Self::set_host_of(&self.data, host)
    }

    /// Like [`Keys::set_host`], also while an origin has `data` open.
    pub fn set_host_of(data: &Path, host: &str) -> Result<(), KeysError> {
        Ok(key_file::write(&data.join(HOST), &format!("{host}\n"))?)
    }

    /// The name last given to [`Keys::set_host`].
    pub fn host(&self) -> Option<String> {
        let host = key_file::read(&self.data.join(HOST)).ok()?;
        Some(host.trim().to_owned()).filter(|host| !host.is_empty())
    }

    /// Copies everything about these keys into `to`, an existing directory without keys, except for the root
    /// key. Until this is complete, `to` counts as not initialised. Durable except for the name of `to`
    /// itself.
    pub fn copy_to(&self, to: &Path) -> Result<(), KeysError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (keys, new) = (self.data.join(KEYS), to.join(KEYS_NEW));
        key_file::write(&to.join(FORMAT), &key_file::read(&self.data.join(FORMAT))?)?;
        if let Some(host) = self.host() {
            key_file::write(&to.join(HOST), &format!("{host}\n"))?;
        }
        own_directory::claim_inside(&new, Access::Private)?;
        for name in KEY_FILES {
            key_file::write(&new.join(name), &key_file::read(&keys.join(name))?)?;
        }
        let target = to.join(KEYS);
        fs::rename(&new, &target).map_err(|source| KeysError::Directory { path: target, source })?;
        Ok(key_file::sync_directory(to)?)
    }

    /// Files to back up after `init`, after each revocation and after each change of the keys. Anybody who
    /// has these files can act as the origin.
    pub fn backup_files(&self) -> Vec<PathBuf> {
        let keys = self.data.join(KEYS);
        std::iter::once(self.data.join(FORMAT)).chain(KEY_FILES.map(|name| keys.join(name))).collect()
    }

    /// Checks that every file that the next start needs is there. Blocks for a few system calls.
    pub fn in_place(&self) -> Result<(), KeysError> {
        match self.backup_files().into_iter().find(|path| !path.is_file()) {
            Some(path) => Err(KeysError::Gone { path }),
            None => Ok(()),
        }
    }
}
