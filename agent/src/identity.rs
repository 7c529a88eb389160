//! Holds this agent's name, key and certificate, and the keys that it trusts.
//!
//! ```text
//! ROOT/state/identity/          0700
//! ROOT/state/identity/identity  0600: the line that marks private files, then JSON, version 1
//! ```
//!
//! Everything is in one file, because key, certificate and trust must change together. The file is replaced
//! in one step, so a crash leaves the old identity or the new one. Only the running agent writes the file, or
//! `join` while none runs.

use std::io;
use std::path::{Path, PathBuf};

use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use syncd_runtime::key_file::{self, FileError};
use syncd_runtime::own_directory::{self, Access, DirectoryError};
use syncd_runtime::tls::ClientTls;
use syncd_runtime::tls::TlsError;
use syncd_shared::TreeId;
use syncd_shared::ed25519::VerifyingKey;
use syncd_shared::identity::authority::{
    self, AuthorityError, certificate_from_pem, certificate_request, certificate_to_pem, generate_key,
    peer_identity,
};
use syncd_shared::identity::signing;
use syncd_shared::identity::{AgentName, JoinToken, PeerIdentity};
use time::OffsetDateTime;

const VERSION: u32 = 1;
const DIRECTORY: &str = "state/identity";
const FILE: &str = "identity";

/// Reason why an identity could not be loaded or made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No origin was joined from this root.
    #[error("no origin was joined yet: run `syncd-agent join HOST:PORT --root {root}` with a token from `syncd-origin token`", root = root.display())]
    NotJoined {
        /// The agent's root directory.
        root: PathBuf,
    },
    /// The file cannot be parsed.
    #[error("{path} is damaged: join again with a new token", path = path.display())]
    Damaged {
        /// Path of the file.
        path: PathBuf,
    },
    /// The file has an unsupported version.
    #[error("{path} is of version {actual}, expected {VERSION}: use the syncd-agent that wrote it", path = path.display())]
    Version {
        /// Path of the file.
        path: PathBuf,
        /// Version found.
        actual: u32,
    },
    /// The origin answered a join or renewal with something that does not match the request.
    #[error("the origin's answer is invalid: {0}")]
    Answer(AnswerFault),
    /// The directory belongs to another user.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A key could not be made, or a certificate could not be read.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The parts of the identity do not match.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Mismatch in an origin's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnswerFault {
    /// The token pins another certificate of the authority.
    #[error("its authority is not the one that the token names")]
    Authority,
    /// The token pins another signing key.
    #[error("its signing key is not the one that the token names")]
    SigningKey,
    /// The certificate is for another key.
    #[error("the certificate is not for this agent's key")]
    Key,
    /// The certificate has another name than before.
    #[error("the certificate has another name")]
    Name,
}

/// A key whose certificate has not been issued yet.
#[derive(Debug)]
pub struct PendingKey {
    key: KeyPair,
    request: Vec<u8>,
}

impl PendingKey {
    /// Generates a random key.
    pub fn generate() -> Result<Self, IdentityError> {
        let key = generate_key()?;
        let request = certificate_request(&key)?;
        Ok(Self { key, request })
    }

    /// Wraps a key that needs no request.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn of(key: KeyPair) -> Self {
        Self { key, request: Vec::new() }
    }

    /// PKCS#10 request in DER.
    pub fn request(&self) -> &[u8] {
        &self.request
    }
}

/// A complete, usable identity.
#[derive(Debug)]
pub struct AgentIdentity {
    tree_id: TreeId,
    origin_address: String,
    key: KeyPair,
    certificate: CertificateDer<'static>,
    authority: CertificateDer<'static>,
    signing_keys: SigningKeys,
    own: PeerIdentity,
}

/// Trusted keys, oldest first; the last one is current.
#[derive(Debug, Clone)]
struct SigningKeys {
    earlier: Vec<VerifyingKey>,
    current: VerifyingKey,
}

/// Contents of the file, version 1.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    tree_id: String,
    name: String,
    origin: String,
    key: String,
    certificate: String,
    authority: String,
    /// Oldest first.
    signing_keys: Vec<String>,
}

#[derive(Deserialize)]
struct StoredVersion {
    version: u32,
}

impl AgentIdentity {
    /// Builds an identity from the origin's answer to `Join`: `certificate`, `ca_certificate` and
    /// `signing_key` as in the message. Checks it against the token and the key that was sent. Does not store
    /// it.
    pub fn joined(
        token: &JoinToken,
        origin_address: &str,
        pending: PendingKey,
        certificate: &[u8],
        ca_certificate: &[u8],
        signing_key: &[u8],
    ) -> Result<Self, IdentityError> {
        let authority = CertificateDer::from(ca_certificate.to_vec());
        if authority::fingerprint(&authority) != token.ca_fingerprint {
            return Err(IdentityError::Answer(AnswerFault::Authority));
        }
        let signing_key = verifying_key(signing_key)
            .filter(|key| signing::fingerprint(key) == token.signing_key_fingerprint)
            .ok_or(IdentityError::Answer(AnswerFault::SigningKey))?;
        let certificate = CertificateDer::from(certificate.to_vec());
        let signing_keys = SigningKeys { earlier: Vec::new(), current: signing_key };
        Self::assemble(token.tree_id, origin_address, pending.key, certificate, authority, signing_keys)
    }

    /// Builds an identity with the certificate from the answer to `Renew`. Does not store it.
    pub fn renewed(&self, pending: PendingKey, certificate: &[u8]) -> Result<Self, IdentityError> {
        let certificate = CertificateDer::from(certificate.to_vec());
        let authority = self.authority.clone();
        let new = Self::assemble(
            self.tree_id,
            &self.origin_address,
            pending.key,
            certificate,
            authority,
            self.signing_keys.clone(),
        )?;
        if new.own.name != self.own.name {
            return Err(IdentityError::Answer(AnswerFault::Name));
        }
        Ok(new)
    }

    fn assemble(
        tree_id: TreeId,
        origin_address: &str,
        key: KeyPair,
        certificate: CertificateDer<'static>,
        authority: CertificateDer<'static>,
        signing_keys: SigningKeys,
    ) -> Result<Self, IdentityError> {
        let own = peer_identity(&certificate)?;
        let origin_address = origin_address.to_owned();
        let identity = Self { tree_id, origin_address, key, certificate, authority, signing_keys, own };
        // Fails if the certificate is not for this key.
        identity.tls().map_err(|_| IdentityError::Answer(AnswerFault::Key))?;
        Ok(identity)
    }

    /// Reads the identity under `root`.
    pub fn load(root: &Path) -> Result<Self, IdentityError> {
        let path = path(root);
        let text = match key_file::keep_private(&path).and_then(|()| key_file::read(&path)) {
            Err(FileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(IdentityError::NotJoined { root: root.to_owned() });
            }
            text => text?,
        };
        Self::from_text(&text, &path)
    }

    /// Parses the output of [`AgentIdentity::to_text`]. Errors name `path`.
    pub(crate) fn from_text(text: &str, path: &Path) -> Result<Self, IdentityError> {
        let damaged = || IdentityError::Damaged { path: path.to_owned() };
        let found: StoredVersion = serde_json::from_str(text).map_err(|_| damaged())?;
        if found.version != VERSION {
            return Err(IdentityError::Version { path: path.to_owned(), actual: found.version });
        }
        let stored: Stored = serde_json::from_str(text).map_err(|_| damaged())?;
        let key = |text: &String| verifying_key(&data_encoding::HEXLOWER.decode(text.as_bytes()).ok()?);
        let mut earlier: Vec<_> =
            stored.signing_keys.iter().map(key).collect::<Option<_>>().ok_or_else(damaged)?;
        let current = earlier.pop().ok_or_else(damaged)?;
        Self::assemble(
            stored.tree_id.parse().map_err(|_| damaged())?,
            &stored.origin,
            KeyPair::from_pem(&stored.key).map_err(|_| damaged())?,
            certificate_from_pem(&stored.certificate).ok_or_else(damaged)?,
            certificate_from_pem(&stored.authority).ok_or_else(damaged)?,
            SigningKeys { earlier, current },
        )
        .map_err(|_| damaged())
    }

    /// Replaces the identity under `root`, durably and atomically.
    pub fn store(&self, root: &Path) -> Result<(), IdentityError> {
        let directory = root.join(DIRECTORY);
        for private in [&root.join("state"), &directory] {
            own_directory::claim_inside(private, Access::Private)?;
        }
        key_file::write(&path(root), &self.to_text())?;
        for above in [root.join("state"), root.to_owned()] {
            key_file::sync_directory(&above)?;
        }
        Ok(())
    }

    /// The file's contents.
    pub(crate) fn to_text(&self) -> String {
        let stored = Stored {
            version: VERSION,
            tree_id: self.tree_id.to_string(),
            name: self.own.name.to_string(),
            origin: self.origin_address.clone(),
            key: self.key.serialize_pem(),
            certificate: certificate_to_pem(&self.certificate),
            authority: certificate_to_pem(&self.authority),
            signing_keys: self.signing_keys().map(|k| data_encoding::HEXLOWER.encode(k.as_bytes())).collect(),
        };
        let mut text = serde_json::to_string_pretty(&stored).expect("strings and numbers have a JSON form");
        text.push('\n');
        text
    }

    pub fn tree_id(&self) -> TreeId {
        self.tree_id
    }

    /// The agent's name, as in its certificate.
    pub fn name(&self) -> &AgentName {
        &self.own.name
    }

    /// Name, serial number and validity of the certificate.
    pub fn certificate(&self) -> &PeerIdentity {
        &self.own
    }

    /// Address of the origin that was joined, HOST:PORT.
    pub fn origin_address(&self) -> &str {
        &self.origin_address
    }

    /// Changes the origin's address. Takes effect on disk with the next [`AgentIdentity::store`].
    pub fn set_origin_address(&mut self, address: &str) {
        address.clone_into(&mut self.origin_address);
    }

    /// Key that new generations must be signed with.
    pub fn signing_key(&self) -> &VerifyingKey {
        &self.signing_keys.current
    }

    /// All keys ever trusted, oldest first. Generations accepted earlier may be signed with any of them.
    pub fn signing_keys(&self) -> impl Iterator<Item = &VerifyingKey> {
        self.signing_keys.earlier.iter().chain([&self.signing_keys.current])
    }

    /// Trusts a successor found by `verify_successions`. Takes effect on disk with the next
    /// [`AgentIdentity::store`].
    pub fn set_signing_key(&mut self, key: VerifyingKey) {
        if key != self.signing_keys.current {
            self.signing_keys.earlier.push(self.signing_keys.current);
            self.signing_keys.current = key;
        }
    }

    /// TLS configuration for connections to the origin.
    pub fn tls(&self) -> Result<ClientTls, TlsError> {
        ClientTls::enrolled(self.tree_id, &self.authority, &self.certificate, &self.key)
    }

    /// Whether two thirds of the certificate's life have passed.
    pub fn needs_renewal(&self, now: OffsetDateTime) -> bool {
        now >= self.renewal_time()
    }

    /// Time at which two thirds of the certificate's life have passed.
    pub fn renewal_time(&self) -> OffsetDateTime {
        self.own.not_before + (self.own.not_after - self.own.not_before) * 2 / 3
    }

    /// Whether the certificate has expired, by this machine's clock. It can still be renewed.
    pub fn expired(&self, now: OffsetDateTime) -> bool {
        now > self.own.not_after
    }
}

fn path(root: &Path) -> PathBuf {
    root.join(DIRECTORY).join(FILE)
}

fn verifying_key(bytes: &[u8]) -> Option<VerifyingKey> {
    VerifyingKey::from_bytes(bytes.try_into().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use syncd_shared::identity::Authority;
    use time::Duration;

    const TREE: TreeId = TreeId::from_bytes([9; 16]);

    struct Origin {
        authority: Authority,
        signing_key: VerifyingKey,
        token: JoinToken,
    }

    fn origin() -> Origin {
        let authority = Authority::create(TREE, OffsetDateTime::now_utc()).unwrap();
        let signing_key = signing::generate().unwrap().verifying_key();
        let ca = authority::fingerprint(authority.certificate());
        let token = JoinToken::generate(TREE, ca, signing::fingerprint(&signing_key)).unwrap();
        Origin { authority, signing_key, token }
    }

    fn issue(origin: &Origin, pending: &PendingKey, name: &str) -> CertificateDer<'static> {
        let now = OffsetDateTime::now_utc();
        origin.authority.issue_agent(&name.parse().unwrap(), pending.request(), now).unwrap().0
    }

    fn join(origin: &Origin) -> AgentIdentity {
        let pending = PendingKey::generate().unwrap();
        let certificate = issue(origin, &pending, "web1");
        let ca = origin.authority.certificate();
        let key = origin.signing_key.as_bytes();
        AgentIdentity::joined(&origin.token, "[::1]:8873", pending, &certificate, ca, key).unwrap()
    }

    #[test]
    fn a_stored_identity_comes_back_and_is_private() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(AgentIdentity::load(root.path()), Err(IdentityError::NotJoined { .. })));
        let mut identity = join(&origin());
        let first = *identity.signing_key();
        identity.set_signing_key(signing::generate().unwrap().verifying_key());
        identity.store(root.path()).unwrap();
        let again = AgentIdentity::load(root.path()).unwrap();
        assert_eq!(again.certificate(), identity.certificate());
        assert_eq!(again.signing_key(), identity.signing_key());
        assert_eq!(again.signing_keys().collect::<Vec<_>>(), [&first, identity.signing_key()]);
        assert_eq!((again.tree_id(), again.origin_address()), (TREE, "[::1]:8873"));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path(root.path())), 0o600);
        assert_eq!(mode(&root.path().join(DIRECTORY)), 0o700);
    }

    #[test]
    fn a_damaged_or_foreign_file_is_refused() {
        let root = tempfile::tempdir().unwrap();
        join(&origin()).store(root.path()).unwrap();
        let path = path(root.path());
        let text = std::fs::read_to_string(&path).unwrap();
        for cut in [0, 1, text.len() / 2, text.len() - 3] {
            std::fs::write(&path, &text[..cut]).unwrap();
            assert!(matches!(AgentIdentity::load(root.path()), Err(IdentityError::Damaged { .. })));
        }
        std::fs::write(&path, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
        let version = AgentIdentity::load(root.path());
        assert!(matches!(version, Err(IdentityError::Version { actual: 2, .. })));
    }

    #[test]
    fn an_answer_that_does_not_match_the_token_or_key_is_refused() {
        let origin = origin();
        let other = super::tests::origin();
        let ca = origin.authority.certificate();
        let key = origin.signing_key.as_bytes();
        let fault = |ca: &[u8], key: &[u8], certificate: Option<CertificateDer<'static>>| {
            let pending = PendingKey::generate().unwrap();
            let certificate = certificate.unwrap_or_else(|| issue(&origin, &pending, "web1"));
            match AgentIdentity::joined(&origin.token, "a:1", pending, &certificate, ca, key) {
                Err(IdentityError::Answer(fault)) => Some(fault),
                _ => None,
            }
        };
        assert_eq!(fault(ca, key, None), None);
        assert_eq!(fault(other.authority.certificate(), key, None), Some(AnswerFault::Authority));
        assert_eq!(fault(ca, other.signing_key.as_bytes(), None), Some(AnswerFault::SigningKey));
        let foreign = issue(&origin, &PendingKey::generate().unwrap(), "web1");
        assert_eq!(fault(ca, key, Some(foreign)), Some(AnswerFault::Key));
    }

    #[test]
    fn renewal_is_due_at_two_thirds_of_the_life() {
        let origin = origin();
        let identity = join(&origin);
        let now = OffsetDateTime::now_utc();
        assert!(!identity.needs_renewal(now + Duration::days(19)));
        assert!(identity.needs_renewal(now + Duration::days(21)));
        assert!(!identity.expired(now + Duration::days(29)) && identity.expired(now + Duration::days(31)));

        let pending = PendingKey::generate().unwrap();
        let certificate = issue(&origin, &pending, "web2");
        let renamed = identity.renewed(pending, &certificate);
        assert!(matches!(renamed, Err(IdentityError::Answer(AnswerFault::Name))));
        let pending = PendingKey::generate().unwrap();
        let certificate = issue(&origin, &pending, "web1");
        let renewed = identity.renewed(pending, &certificate).unwrap();
        assert_ne!(renewed.certificate().serial, identity.certificate().serial);
    }
}
