//! The origin's keys, which make it the origin of its tree.
//!
//! ```text
//! DATA/format              version and tree_id, text; written by `init` before the keys
//! DATA/keys/ca.pem         the authority's certificate (10 years)
//! DATA/keys/ca.key         its key, PEM
//! DATA/keys/origin.pem     the origin's certificate (3 years, reissued in its last year)
//! DATA/keys/origin.key     its key, PEM
//! DATA/keys/signing.key    ed25519 seed, 64 hexadecimal digits
//! DATA/keys/revoked        every revocation, one line per name; holds even with an older or new index
//! DATA/keys/successions    public part of the first signing key, then one line per change, oldest first:
//!                          new key, signature
//! DATA/host                the name of `init --host`, for join commands
//! ```
//!
//! Directories have mode 0700 (0750 if a group was given access) and files 0600, which is checked and
//! corrected at each start. Files begin with the line that marks private files, so that no origin publishes
//! them ([`syncd_shared::marks`]).
//!
//! `create` builds the keys in `keys.new` and renames them into place. Existing `keys` are therefore
//! complete, and `create` rejects them. Later on, `origin.pem` is replaced when it is reissued, and `revoked`
//! with each revocation ([`revocations`]). [`Keys::rotate_signing_key`] writes `signing.key.next`, then the
//! succession (the decisive step), then `signing.key`. [`Keys::open`] completes the rotation after a crash in
//! between.

#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub(crate) mod revocations;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, fs, io};

use data_encoding::HEXLOWER;
use rcgen::KeyPair;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use syncd_runtime::key_file::{self, FileError};
use syncd_runtime::own_directory::{self, Access, DirectoryError};
use syncd_runtime::tls::{Admit, OriginCertificate, TlsError, server_config};
use syncd_shared::ed25519::{SigningKey, VerifyingKey};
use syncd_shared::generation::GenerationError;
use syncd_shared::identity::JoinToken;
use syncd_shared::identity::authority::{
    Authority, AuthorityError, ORIGIN_CERTIFICATE_LIFE, certificate_from_pem, certificate_to_pem,
    fingerprint, generate_key, validity,
};
use syncd_shared::identity::signing::{self, KeySuccession, SuccessionError};
use syncd_shared::{SignedGeneration, TreeId};
use time::OffsetDateTime;

const FORMAT_VERSION: u32 = 1;
const FORMAT: &str = "format";
const KEYS: &str = "keys";
const KEYS_NEW: &str = "keys.new";
const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const ORIGIN_CERTIFICATE: &str = "origin.pem";
const ORIGIN_KEY: &str = "origin.key";
const SIGNING_KEY: &str = "signing.key";
const SIGNING_KEY_NEXT: &str = "signing.key.next";
const SUCCESSIONS: &str = "successions";
const REVOKED: &str = "revoked";
const HOST: &str = "host";
/// All files in DATA/keys.
const KEY_FILES: [&str; 7] =
    [CA_CERTIFICATE, CA_KEY, ORIGIN_CERTIFICATE, ORIGIN_KEY, SIGNING_KEY, SUCCESSIONS, REVOKED];
/// Names allowed in DATA before `init`: remains of an interrupted one, the lock, the configuration, and the
/// content of a new file system.
const LEFTOVERS: [&str; 8] =
    [FORMAT, "format.new", HOST, "host.new", KEYS_NEW, "lock", "lost+found", "config.toml"];
/// Time before the authority's expiry from which operators are warned.
const WARNING: time::Duration = time::Duration::days(365);

/// Errors of creating or opening the keys.
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
    /// A file does not parse.
    #[error("{path} is damaged: restore it from the backup", path = path.display())]
    Damaged { path: PathBuf },
    /// The successions of the signing key are invalid or too many.
    #[error("the changes of the signing key in {path} do not hold", path = path.display())]
    Successions { path: PathBuf, source: SuccessionError },
    /// Listing or renaming failed.
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
    /// The kernel's random number generator failed.
    #[error("reading random numbers failed")]
    Random(#[from] getrandom::Error),
}

/// The origin's keys, in memory.
pub struct Keys {
    data: PathBuf,
    tree_id: TreeId,
    authority: Authority,
    origin: Arc<OriginCertificate>,
    origin_key: KeyPair,
    signing_key: SigningKey,
    history: KeyHistory,
}

/// The public parts of all signing keys.
#[derive(Clone)]
struct KeyHistory {
    first: VerifyingKey,
    successions: Vec<KeySuccession>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.tree_id)
    }
}

impl Keys {
    /// Creates a new tree's keys in `data`, an empty or missing directory. Durable on return; before that,
    /// `data` counts as not initialised.
    pub fn create(data: &Path) -> Result<Self, KeysError> {
        Self::create_at(data, OffsetDateTime::now_utc())
    }

    /// Like [`Keys::create`], at a given time.
    pub(crate) fn create_at(data: &Path, now: OffsetDateTime) -> Result<Self, KeysError> {
        refuse_used(data)?;
        own_directory::claim(data, Access::Private)?;
        // Others may have written to it before its mode was corrected.
        refuse_used(data)?;
        let mut tree_id = [0; 16];
        getrandom::fill(&mut tree_id)?;
        let tree_id = TreeId::from_bytes(tree_id);
        let authority = Authority::create(tree_id, now)?;
        let origin_key = generate_key()?;
        let origin_certificate = authority.issue_origin(&origin_key, now)?;
        let signing_key = signing::generate()?;

        key_file::write(&data.join(FORMAT), &format!("syncd-origin {FORMAT_VERSION}\ntree_id {tree_id}\n"))?;
        let new = data.join(KEYS_NEW);
        remove_leftover(&new)?;
        own_directory::claim_inside(&new, Access::Private)?;
        key_file::write(&new.join(CA_CERTIFICATE), &certificate_to_pem(authority.certificate()))?;
        key_file::write(&new.join(CA_KEY), &authority.key().serialize_pem())?;
        key_file::write(&new.join(ORIGIN_CERTIFICATE), &certificate_to_pem(&origin_certificate))?;
        key_file::write(&new.join(ORIGIN_KEY), &origin_key.serialize_pem())?;
        key_file::write(&new.join(SIGNING_KEY), &signing_key_text(&signing_key))?;
        let history = KeyHistory { first: signing_key.verifying_key(), successions: Vec::new() };
        key_file::write(&new.join(SUCCESSIONS), &history.to_text())?;
        key_file::write(&new.join(REVOKED), "")?;
        let keys = data.join(KEYS);
        fs::rename(&new, &keys).map_err(|source| KeysError::Directory { path: keys, source })?;
        key_file::sync_directory(data)?;
        key_file::sync_directory(&data.join(".."))?;
        let data = data.to_owned();
        let origin =
            Arc::new(OriginCertificate::new(authority.certificate(), &origin_certificate, &origin_key)?);
        Ok(Self { data, tree_id, authority, origin, origin_key, signing_key, history })
    }

    /// Reads the keys in `data`. Completes an interrupted rotation of the signing key.
    pub fn open(data: &Path) -> Result<Self, KeysError> {
        let tree_id = open_format(data)?;
        let keys = data.join(KEYS);
        if !keys.is_dir() {
            return Err(KeysError::NotInitialised { data: data.to_owned() });
        }
        own_directory::check(data, Access::Private)?;
        own_directory::check(&keys, Access::Private)?;
        for secret in [CA_KEY, ORIGIN_KEY, SIGNING_KEY] {
            key_file::keep_private(&keys.join(secret))?;
        }
        let authority = Authority::open(
            tree_id,
            read_certificate(&keys.join(CA_CERTIFICATE))?,
            read_key(&keys.join(CA_KEY))?,
        )?;
        let history = KeyHistory::read(&keys.join(SUCCESSIONS))?;
        let signing_key = open_signing_key(&keys, tree_id, &history)?;
        revocations::read(data)?;
        let origin_key = read_key(&keys.join(ORIGIN_KEY))?;
        let certificate = read_certificate(&keys.join(ORIGIN_CERTIFICATE))?;
        let origin = Arc::new(OriginCertificate::new(authority.certificate(), &certificate, &origin_key)?);
        Ok(Self { data: data.to_owned(), tree_id, authority, origin, origin_key, signing_key, history })
    }

    pub fn tree_id(&self) -> TreeId {
        self.tree_id
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    pub fn signing_key(&self) -> &SigningKey {
        &self.signing_key
    }

    pub fn verifying_key(&self) -> VerifyingKey {
        self.signing_key.verifying_key()
    }

    /// All changes of the signing key, oldest first, as sent in a `Welcome`.
    pub fn successions(&self) -> &[KeySuccession] {
        &self.history.successions
    }

    /// Verifies a generation's record from the store or an agent: it must be of this tree and signed by the
    /// current signing key or an earlier one.
    pub fn verify(&self, record: &[u8], signature: &[u8]) -> Result<SignedGeneration, GenerationError> {
        let newest_first = self.history.successions.iter().rev().map(|s| &s.new_key);
        let mut result = Err(GenerationError::Signature);
        for key in newest_first.chain([&self.history.first]) {
            result = SignedGeneration::verify(record, signature, self.tree_id, key);
            if !matches!(result, Err(GenerationError::Signature)) {
                break;
            }
        }
        result
    }

    /// Generates a join token for this tree with a new secret. The caller must store
    /// [`JoinToken::secret_hash`].
    pub fn token(&self) -> Result<JoinToken, KeysError> {
        let ca = fingerprint(self.authority.certificate());
        Ok(JoinToken::generate(self.tree_id, ca, signing::fingerprint(&self.verifying_key()))?)
    }

    /// TLS configuration of the listener.
    pub fn server_tls(&self, admit: Admit) -> Result<Arc<ServerConfig>, TlsError> {
        server_config(self.origin.clone(), admit)
    }

    /// Reissues the origin's certificate if less than a third of its lifetime is left or if it is not valid
    /// by this machine's clock. The next handshake uses the new one. Durable; returns whether it was
    /// reissued.
    pub fn reissue_origin_certificate(&self, now: OffsetDateTime) -> Result<bool, KeysError> {
        let (current, authority) = (validity(&self.origin.certificate())?, self.authority.validity());
        let ends_soon = current.not_after - now < ORIGIN_CERTIFICATE_LIFE / 3;
        let can_last_longer = current.not_after < authority.not_after || !current.holds(now);
        if !(authority.holds(now) && ends_soon && can_last_longer) {
            return Ok(false);
        }
        let certificate = self.authority.issue_origin(&self.origin_key, now)?;
        key_file::write(&self.data.join(KEYS).join(ORIGIN_CERTIFICATE), &certificate_to_pem(&certificate))?;
        self.origin.replace(&certificate, &self.origin_key)?;
        Ok(true)
    }

    /// Warnings about the keys: the authority, and with it every certificate of the tree, expires within a
    /// year.
    pub fn warnings(&self, now: OffsetDateTime) -> Vec<String> {
        let ends = self.authority.validity().not_after;
        if ends - now >= WARNING {
            return Vec::new();
        }
        vec![format!(
            "the authority of this tree ends on {}: nodes can't connect after that day. Before it, make a new origin with \
             `syncd-origin init` in another data directory, and have each node join that",
            ends.date()
        )]
    }

    /// Stores the name that agents dial, for join commands.
    pub fn set_host(&self, host: &str) -> Result<(), KeysError> {
        Ok(key_file::write(&self.data.join(HOST), &format!("{host}\n"))?)
    }

    /// The name last given to [`Keys::set_host`].
    pub fn host(&self) -> Option<String> {
        let host = key_file::read(&self.data.join(HOST)).ok()?;
        Some(host.trim().to_owned()).filter(|host| !host.is_empty())
    }

    /// Copies everything about these keys into `to`, an existing directory without keys. Until this is
    /// complete, `to` counts as not initialised. Durable except for the name of `to` itself.
    pub fn copy_to(&self, to: &Path) -> Result<(), KeysError> {
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

    /// Files to back up after `init`, after each revocation and after a change of the signing key. Anybody
    /// who has these files can act as the origin.
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

    /// Replaces the signing key with a new one that the old one signs. Agents follow at their next
    /// connection. Durable on return; after a crash either the old key or the new one is in force.
    pub fn rotate_signing_key(&mut self) -> Result<(), KeysError> {
        let keys = self.data.join(KEYS);
        let wanted = self.history.successions.len() + 1;
        if wanted > signing::SUCCESSIONS_MAX {
            let source = SuccessionError::Length { wanted };
            return Err(KeysError::Successions { path: keys.join(SUCCESSIONS), source });
        }
        let new = signing::generate()?;
        let succession = KeySuccession::sign(self.tree_id, &self.signing_key, new.verifying_key());
        let mut history = self.history.clone();
        history.successions.push(succession);
        key_file::write(&keys.join(SIGNING_KEY_NEXT), &signing_key_text(&new))?;
        key_file::write(&keys.join(SUCCESSIONS), &history.to_text())?;
        finish_rotation(&keys)?;
        (self.signing_key, self.history) = (new, history);
        Ok(())
    }
}

/// Removes remains of an interrupted `create`, or anything planted in their place.
fn remove_leftover(path: &Path) -> Result<(), KeysError> {
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

/// Rejects a directory with keys or foreign files; a missing one passes.
fn refuse_used(data: &Path) -> Result<(), KeysError> {
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

fn open_format(data: &Path) -> Result<TreeId, KeysError> {
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

fn parse_format(text: &str, data: &Path) -> Result<TreeId, KeysError> {
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

/// The key that the successions lead to: the current one, or the next one after an interrupted change.
fn open_signing_key(keys: &Path, tree_id: TreeId, history: &KeyHistory) -> Result<SigningKey, KeysError> {
    let newest = signing::verify_successions(tree_id, history.first, &history.successions)
        .map_err(|source| KeysError::Successions { path: keys.join(SUCCESSIONS), source })?;
    let current = read_signing_key(&keys.join(SIGNING_KEY))?;
    if newest == current.verifying_key() {
        return Ok(current);
    }
    let damaged = || KeysError::Damaged { path: keys.join(SIGNING_KEY) };
    let next = read_signing_key(&keys.join(SIGNING_KEY_NEXT)).map_err(|_| damaged())?;
    if newest != next.verifying_key() {
        return Err(damaged());
    }
    finish_rotation(keys)?;
    Ok(next)
}

fn finish_rotation(keys: &Path) -> Result<(), KeysError> {
    fs::rename(keys.join(SIGNING_KEY_NEXT), keys.join(SIGNING_KEY))
        .map_err(|source| KeysError::Directory { path: keys.to_owned(), source })?;
    Ok(key_file::sync_directory(keys)?)
}

fn signing_key_text(key: &SigningKey) -> String {
    format!("{}\n", HEXLOWER.encode(key.as_bytes()))
}

fn read_signing_key(path: &Path) -> Result<SigningKey, KeysError> {
    parse_signing_key(&key_file::read(path)?).ok_or_else(|| KeysError::Damaged { path: path.to_owned() })
}

fn parse_signing_key(text: &str) -> Option<SigningKey> {
    let seed = HEXLOWER.decode(text.trim().as_bytes()).ok()?;
    Some(SigningKey::from_bytes(&seed.try_into().ok()?))
}

impl KeyHistory {
    fn to_text(&self) -> String {
        let line = |s: &KeySuccession| {
            format!("{} {}\n", HEXLOWER.encode(s.new_key.as_bytes()), HEXLOWER.encode(s.signature.as_bytes()))
        };
        let first = format!("{}\n", HEXLOWER.encode(self.first.as_bytes()));
        std::iter::once(first).chain(self.successions.iter().map(line)).collect()
    }

    fn read(path: &Path) -> Result<Self, KeysError> {
        Self::parse(&key_file::read(path)?).ok_or_else(|| KeysError::Damaged { path: path.to_owned() })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let first = HEXLOWER.decode(lines.next()?.as_bytes()).ok()?;
        let first = VerifyingKey::from_bytes(&first.try_into().ok()?).ok()?;
        let succession = |(index, line): (usize, &str)| {
            let (key, signature) = line.split_once(' ')?;
            let key = HEXLOWER.decode(key.as_bytes()).ok()?;
            let signature = HEXLOWER.decode(signature.as_bytes()).ok()?;
            KeySuccession::from_parts(&key, &signature, index).ok()
        };
        let successions = lines.enumerate().map(succession).collect::<Option<_>>()?;
        Some(Self { first, successions })
    }
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, KeysError> {
    certificate_from_pem(&key_file::read(path)?).ok_or_else(|| KeysError::Damaged { path: path.to_owned() })
}

fn read_key(path: &Path) -> Result<KeyPair, KeysError> {
    KeyPair::from_pem(&key_file::read(path)?).map_err(|_| KeysError::Damaged { path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_reopen_as_they_were_made_and_are_private() {
        let base = tempfile::tempdir().unwrap();
        let data = base.path().join("var/origin");
        let made = Keys::create(&data).unwrap();
        let opened = Keys::open(&data).unwrap();
        assert_eq!(opened.tree_id(), made.tree_id());
        assert_eq!(opened.verifying_key(), made.verifying_key());
        assert_eq!(opened.authority().certificate(), made.authority().certificate());
        assert!(opened.server_tls(Arc::new(|_: &_| true)).is_ok());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&data), mode(&data.join(KEYS))), (0o700, 0o700));
        let files = opened.backup_files();
        assert_eq!(files.len() - 1, fs::read_dir(data.join(KEYS)).unwrap().count());
        for file in files {
            assert_eq!(mode(&file), 0o600, "{}", file.display());
        }
    }

    #[test]
    fn create_refuses_what_is_initialised_or_someone_elses() {
        let data = tempfile::tempdir().unwrap();
        assert!(matches!(Keys::open(data.path()), Err(KeysError::NotInitialised { .. })));
        let first = Keys::create(data.path()).unwrap();
        assert!(matches!(Keys::create(data.path()), Err(KeysError::Initialised { .. })));
        assert_eq!(Keys::open(data.path()).unwrap().tree_id(), first.tree_id());

        let foreign = tempfile::tempdir().unwrap();
        fs::write(foreign.path().join("index.html"), "").unwrap();
        fs::set_permissions(foreign.path(), PermissionsExt::from_mode(0o755)).unwrap();
        assert!(matches!(Keys::create(foreign.path()), Err(KeysError::NotEmpty { .. })));
        assert_eq!(fs::read_dir(foreign.path()).unwrap().count(), 1);
        assert_eq!(fs::metadata(foreign.path()).unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn an_interrupted_create_is_not_initialised_and_is_made_anew() {
        let data = tempfile::tempdir().unwrap();
        Keys::create(data.path()).unwrap();
        fs::rename(data.path().join(KEYS), data.path().join(KEYS_NEW)).unwrap();
        assert!(matches!(Keys::open(data.path()), Err(KeysError::NotInitialised { .. })));
        let again = Keys::create(data.path()).unwrap();
        assert_eq!(Keys::open(data.path()).unwrap().tree_id(), again.tree_id());
        assert!(!data.path().join(KEYS_NEW).exists());
    }

    #[test]
    fn another_format_and_damage_are_told_apart() {
        let data = tempfile::tempdir().unwrap();
        let keys = Keys::create(data.path()).unwrap();
        let format = data.path().join(FORMAT);
        let text = fs::read_to_string(&format).unwrap();
        fs::write(&format, text.replace("origin 1", "origin 2")).unwrap();
        let found = Keys::open(data.path());
        assert!(matches!(found, Err(KeysError::Format { found, .. }) if found == "syncd-origin 2"));
        fs::write(&format, &text).unwrap();
        for file in keys.backup_files() {
            let good = fs::read(&file).unwrap();
            fs::write(&file, "x").unwrap();
            assert!(Keys::open(data.path()).is_err(), "{}", file.display());
            fs::remove_file(&file).unwrap();
            assert!(Keys::open(data.path()).is_err(), "{}", file.display());
            fs::write(&file, good).unwrap();
        }
        assert!(Keys::open(data.path()).is_ok());
    }

    #[test]
    fn the_origins_certificate_is_reissued_in_the_last_third_of_its_life() {
        let data = tempfile::tempdir().unwrap();
        let made = OffsetDateTime::now_utc() - time::Duration::days(700);
        let keys = Keys::create_at(data.path(), made).unwrap();
        let ends = |keys: &Keys| validity(&keys.origin.certificate()).unwrap().not_after;
        let first = ends(&keys);
        assert!(!keys.reissue_origin_certificate(made + time::Duration::days(700)).unwrap());
        assert!(keys.reissue_origin_certificate(made + time::Duration::days(740)).unwrap());
        assert!(!keys.reissue_origin_certificate(made + time::Duration::days(741)).unwrap());
        let second = ends(&Keys::open(data.path()).unwrap());
        assert_eq!((second, (second - first).whole_days()), (ends(&keys), 740));
        // Down for years, and in the end no longer than the authority.
        assert!(keys.reissue_origin_certificate(made + time::Duration::days(3_000)).unwrap());
        assert_eq!(ends(&keys), keys.authority.validity().not_after);
        assert!(!keys.reissue_origin_certificate(made + time::Duration::days(3_500)).unwrap());
        assert!(!keys.reissue_origin_certificate(made + time::Duration::days(3_700)).unwrap());
    }

    #[test]
    fn the_end_of_the_authority_is_warned_of_for_a_year() {
        let data = tempfile::tempdir().unwrap();
        let made = OffsetDateTime::now_utc();
        let keys = Keys::create_at(data.path(), made).unwrap();
        assert!(keys.warnings(made + time::Duration::days(3_280)).is_empty());
        let warnings = keys.warnings(made + time::Duration::days(3_290));
        assert!(
            warnings[0].contains(&keys.authority.validity().not_after.date().to_string()),
            "{warnings:?}"
        );
    }

    #[test]
    fn a_new_signing_key_is_led_to_from_every_one_before() {
        let data = tempfile::tempdir().unwrap();
        let mut keys = Keys::create(data.path()).unwrap();
        let first = keys.verifying_key();
        keys.rotate_signing_key().unwrap();
        keys.rotate_signing_key().unwrap();
        let opened = Keys::open(data.path()).unwrap();
        assert_ne!(opened.verifying_key(), first);
        let led = signing::verify_successions(opened.tree_id(), first, opened.successions());
        assert_eq!(led, Ok(opened.verifying_key()));
    }

    #[test]
    fn generations_of_earlier_keys_still_verify_and_strange_ones_do_not() {
        let (data, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut keys = Keys::create(data.path()).unwrap();
        let other = Keys::create(other.path()).unwrap();
        let sign = |tree_id, key: &SigningKey| {
            let root = syncd_shared::RootEntry::empty();
            let number = syncd_shared::GenerationNumber::FIRST;
            let label = String::new();
            let generation =
                syncd_shared::Generation { tree_id, number, root, parent: None, created_ms: 0, label };
            generation.sign(key)
        };
        let mut signed = vec![sign(keys.tree_id(), keys.signing_key())];
        for _ in 0..2 {
            keys.rotate_signing_key().unwrap();
            signed.push(sign(keys.tree_id(), keys.signing_key()));
        }
        let keys = Keys::open(data.path()).unwrap();
        for generation in &signed {
            assert_eq!(keys.verify(generation.record(), generation.signature()).as_ref(), Ok(generation));
        }
        let strange = sign(keys.tree_id(), other.signing_key());
        let refused = keys.verify(strange.record(), strange.signature());
        assert_eq!(refused, Err(GenerationError::Signature));
        let elsewhere = sign(other.tree_id(), keys.signing_key());
        let refused = keys.verify(elsewhere.record(), elsewhere.signature());
        assert!(matches!(refused, Err(GenerationError::OtherTree { .. })));
    }

    #[test]
    fn an_interrupted_rotation_is_finished_or_void() {
        let data = tempfile::tempdir().unwrap();
        let mut keys = Keys::create(data.path()).unwrap();
        let (old, directory) = (keys.verifying_key(), data.path().join(KEYS));
        let successions = fs::read(directory.join(SUCCESSIONS)).unwrap();
        let old_text = fs::read(directory.join(SIGNING_KEY)).unwrap();
        keys.rotate_signing_key().unwrap();
        let new = keys.verifying_key();

        // Stopped before the last rename.
        fs::rename(directory.join(SIGNING_KEY), directory.join(SIGNING_KEY_NEXT)).unwrap();
        fs::write(directory.join(SIGNING_KEY), &old_text).unwrap();
        assert_eq!(Keys::open(data.path()).unwrap().verifying_key(), new);
        assert!(!directory.join(SIGNING_KEY_NEXT).exists());

        // Stopped before the succession was written.
        fs::rename(directory.join(SIGNING_KEY), directory.join(SIGNING_KEY_NEXT)).unwrap();
        fs::write(directory.join(SIGNING_KEY), &old_text).unwrap();
        fs::write(directory.join(SUCCESSIONS), successions).unwrap();
        assert_eq!(Keys::open(data.path()).unwrap().verifying_key(), old);
    }
}
