//! Holds this agent's name, key and certificate, and the keys that it trusts.
//!
//! ```text
//! ROOT/state/identity/          0700
//! ROOT/state/identity/identity  0600: the line that marks private files, then JSON, version 2
//! ```
//!
//! Everything is in one file, because key, certificate and trust must change together. The file is replaced
//! in one step, so a crash leaves the old identity or the new one. Only the running agent writes the file, or
//! `join` while none runs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::{BASE64, HEXLOWER};
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
    AuthorityError, certificate_from_pem, certificate_request, certificate_to_pem, generate_key,
    key_of_authority, peer_identity,
};
use syncd_shared::identity::trust::TrustError;
use syncd_shared::identity::{AgentName, Authority, JoinToken, PeerIdentity, RootFingerprint, SignedTrust};
use time::OffsetDateTime;

const VERSION: u32 = 2;
/// Superseded signing keys that are remembered, for records of generations accepted long ago.
const EARLIER_KEYS_MAX: usize = 64;
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
    origin_address: String,
    key: KeyPair,
    certificate: CertificateDer<'static>,
    trust: Trusted,
    own: PeerIdentity,
}

/// The keys that an agent trusts.
#[derive(Debug, Clone)]
pub struct Trusted {
    /// The pinned root key, which must sign newer documents.
    pub root: RootFingerprint,
    /// The newest document. After the loss of a root key, the old one may have signed it.
    pub document: Arc<SignedTrust>,
    /// Signing keys of older documents, oldest first. Generations accepted earlier may be signed with any.
    earlier_keys: Vec<VerifyingKey>,
}

impl Trusted {
    /// Trusts what a token pins.
    pub fn new(root: RootFingerprint, document: SignedTrust) -> Self {
        Self { root, document: Arc::new(document), earlier_keys: Vec::new() }
    }

    /// Reads a document that the origin shows. `None`: it is the one that is known.
    pub fn newer(&self, document: &[u8]) -> Result<Option<SignedTrust>, TrustError> {
        let known = self.document.document();
        if document == self.document.bytes() {
            return Ok(None);
        }
        let offered = SignedTrust::verify(document, known.tree_id, self.root)?;
        // Numbers of another root key say nothing: a thief of the lost one may have signed the highest.
        if offered.number() > known.number || known.root_fingerprint() != self.root {
            return Ok(Some(offered));
        }
        Err(TrustError::Older { known: known.number, offered: offered.number() })
    }

    /// Trusts a newer document.
    pub fn follow(&mut self, document: SignedTrust) {
        let superseded = self.document.document().signing_key;
        if document.document().signing_key != superseded {
            self.earlier_keys.push(superseded);
            let excess = self.earlier_keys.len().saturating_sub(EARLIER_KEYS_MAX);
            self.earlier_keys.drain(..excess);
        }
        self.document = Arc::new(document);
    }
}

/// Contents of the file, version 2.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    tree_id: String,
    name: String,
    origin: String,
    key: String,
    certificate: String,
    /// Fingerprint of the pinned root key.
    root: String,
    /// The newest trust document, base64.
    trust: String,
    /// Oldest first.
    earlier_signing_keys: Vec<String>,
}

#[derive(Deserialize)]
struct StoredVersion {
    version: u32,
}

impl AgentIdentity {
    /// Builds an identity from the certificate in the origin's answer to `Join`, and the trust document that
    /// the token has accepted ([`JoinToken::check`]). Does not store it.
    pub fn joined(
        token: &JoinToken,
        origin_address: &str,
        pending: PendingKey,
        certificate: &[u8],
        document: SignedTrust,
    ) -> Result<Self, IdentityError> {
        let certificate = CertificateDer::from(certificate.to_vec());
        Self::assemble(origin_address, pending.key, certificate, Trusted::new(token.root, document))
    }

    /// Builds the identity of a node that never reaches an origin. Its certificate is of an authority of its
    /// own, which no origin admits, until the node joins. Does not store it.
    pub fn following(name: &AgentName, url: &str, trust: Trusted) -> Result<Self, IdentityError> {
        let now = OffsetDateTime::now_utc();
        let pending = PendingKey::generate()?;
        let authority = Authority::create(trust.document.document().tree_id, now)?;
        let (certificate, _) = authority.issue_agent(name, pending.request(), now)?;
        Self::assemble(url, pending.key, certificate, trust)
    }

    /// Builds an identity with the certificate from the answer to `Renew`. Does not store it.
    pub fn renewed(&self, pending: PendingKey, certificate: &[u8]) -> Result<Self, IdentityError> {
        let certificate = CertificateDer::from(certificate.to_vec());
        let new = Self::assemble(&self.origin_address, pending.key, certificate, self.trust.clone())?;
        if new.own.name != self.own.name {
            return Err(IdentityError::Answer(AnswerFault::Name));
        }
        Ok(new)
    }

    fn assemble(
        origin_address: &str,
        key: KeyPair,
        certificate: CertificateDer<'static>,
        trust: Trusted,
    ) -> Result<Self, IdentityError> {
        let own = peer_identity(&certificate)?;
        let origin_address = origin_address.to_owned();
        let identity = Self { origin_address, key, certificate, trust, own };
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
        let trust = stored.trusted().ok_or_else(damaged)?;
        Self::assemble(
            &stored.origin,
            KeyPair::from_pem(&stored.key).map_err(|_| damaged())?,
            certificate_from_pem(&stored.certificate).ok_or_else(damaged)?,
            trust,
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
            tree_id: self.tree_id().to_string(),
            name: self.own.name.to_string(),
            origin: self.origin_address.clone(),
            key: self.key.serialize_pem(),
            certificate: certificate_to_pem(&self.certificate),
            root: self.trust.root.to_string(),
            trust: BASE64.encode(self.trust.document.bytes()),
            earlier_signing_keys: self
                .trust
                .earlier_keys
                .iter()
                .map(|k| HEXLOWER.encode(k.as_bytes()))
                .collect(),
        };
        let mut text = serde_json::to_string_pretty(&stored).expect("strings and numbers have a JSON form");
        text.push('\n');
        text
    }

    pub fn tree_id(&self) -> TreeId {
        self.trust.document.document().tree_id
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

    /// Root key and newest trust document.
    pub fn trust(&self) -> &Trusted {
        &self.trust
    }

    /// All signing keys ever trusted, oldest first. Generations accepted earlier may be signed with any of
    /// them.
    pub fn signing_keys(&self) -> impl Iterator<Item = &VerifyingKey> {
        self.trust.earlier_keys.iter().chain([&self.trust.document.document().signing_key])
    }

    /// Trusts a newer document ([`Trusted::newer`]). Takes effect on disk with the next
    /// [`AgentIdentity::store`].
    pub fn follow(&mut self, document: SignedTrust) {
        self.trust.follow(document);
    }

    /// Takes back [`AgentIdentity::follow`] after a failed [`AgentIdentity::store`].
    pub fn restore_trust(&mut self, before: Trusted) {
        self.trust = before;
    }

    /// Pins another root key, after the loss of the old one. The known document stays in force until the new
    /// root key signs one. Takes effect on disk with the next [`AgentIdentity::store`].
    pub fn pin_root(&mut self, root: RootFingerprint) {
        self.trust.root = root;
    }

    /// Whether another authority has replaced the one that issued the certificate. It can still be renewed.
    pub fn is_superseded(&self) -> bool {
        key_of_authority(self.authority()).is_ok_and(|authority| authority != self.own.issuer)
    }

    fn authority(&self) -> &CertificateDer<'static> {
        &self.trust.document.document().authority
    }

    /// TLS configuration for connections to the origin.
    pub fn tls(&self) -> Result<ClientTls, TlsError> {
        ClientTls::enrolled(self.tree_id(), self.authority(), &self.certificate, &self.key)
    }

    /// Whether two thirds of the certificate's life have passed, or its authority was replaced.
    pub fn needs_renewal(&self, now: OffsetDateTime) -> bool {
        now >= self.renewal_time() || self.is_superseded()
    }

    /// Time at which two thirds of the certificate's life have passed.
    pub fn renewal_time(&self) -> OffsetDateTime {
        self.own.not_before + (self.own.not_after - self.own.not_before) * 2 / 3
    }

    /// End of the certificate's life.
    pub fn certificate_end(&self) -> OffsetDateTime {
        self.own.not_after
    }

    /// Whether the certificate has expired, by this machine's clock. It can still be renewed.
    pub fn expired(&self, now: OffsetDateTime) -> bool {
        now > self.own.not_after
    }
}

impl Stored {
    fn trusted(&self) -> Option<Trusted> {
        let tree_id = self.tree_id.parse().ok()?;
        let document = SignedTrust::of_tree(&BASE64.decode(self.trust.as_bytes()).ok()?, tree_id).ok()?;
        let key = |text: &String| verifying_key(&HEXLOWER.decode(text.as_bytes()).ok()?);
        let earlier_keys: Vec<_> = self.earlier_signing_keys.iter().map(key).collect::<Option<_>>()?;
        let root = self.root.parse().ok()?;
        let is_bounded = earlier_keys.len() <= EARLIER_KEYS_MAX;
        is_bounded.then(|| Trusted { root, document: Arc::new(document), earlier_keys })
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
    use syncd_shared::identity::{Authority, RootKey, TrustDocument, signing};
    use time::Duration;

    const TREE: TreeId = TreeId::from_bytes([9; 16]);

    struct Origin {
        authority: Authority,
        root: RootKey,
        trust: SignedTrust,
        token: JoinToken,
    }

    fn origin() -> Origin {
        let authority = Authority::create(TREE, OffsetDateTime::now_utc()).unwrap();
        let root = RootKey::generate(TREE).unwrap();
        let key = signing::generate().unwrap().verifying_key();
        let trust = TrustDocument::first(&root, key, authority.certificate(), 0, 0);
        let token = JoinToken::generate(TREE, root.fingerprint(), trust.number()).unwrap();
        Origin { authority, root, trust, token }
    }

    impl Origin {
        /// The next trust document, changed.
        fn next(&self, change: impl FnOnce(&mut TrustDocument)) -> SignedTrust {
            let mut document = self.trust.document().clone();
            document.number += 1;
            change(&mut document);
            document.sign(&self.root.key).unwrap()
        }
    }

    fn issue(origin: &Origin, pending: &PendingKey, name: &str) -> CertificateDer<'static> {
        let now = OffsetDateTime::now_utc();
        origin.authority.issue_agent(&name.parse().unwrap(), pending.request(), now).unwrap().0
    }

    fn join(origin: &Origin) -> AgentIdentity {
        let pending = PendingKey::generate().unwrap();
        let certificate = issue(origin, &pending, "web1");
        AgentIdentity::joined(&origin.token, "[::1]:8873", pending, &certificate, origin.trust.clone())
            .unwrap()
    }

    #[test]
    fn a_stored_identity_comes_back_and_is_private() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(AgentIdentity::load(root.path()), Err(IdentityError::NotJoined { .. })));
        let origin = origin();
        let mut identity = join(&origin);
        let first = *identity.signing_keys().next().unwrap();
        let second = signing::generate().unwrap().verifying_key();
        identity.follow(origin.next(|document| document.signing_key = second));
        identity.store(root.path()).unwrap();
        let again = AgentIdentity::load(root.path()).unwrap();
        assert_eq!(again.certificate(), identity.certificate());
        assert_eq!(again.trust().document, identity.trust().document);
        assert_eq!(again.trust().root, origin.root.fingerprint());
        assert_eq!(again.signing_keys().collect::<Vec<_>>(), [&first, &second]);
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
        std::fs::write(&path, text.replace("\"version\": 2", "\"version\": 3")).unwrap();
        let version = AgentIdentity::load(root.path());
        assert!(matches!(version, Err(IdentityError::Version { actual: 3, .. })));
    }

    #[test]
    fn a_certificate_for_another_key_is_refused() {
        let origin = origin();
        let foreign = issue(&origin, &PendingKey::generate().unwrap(), "web1");
        let pending = PendingKey::generate().unwrap();
        let refused = AgentIdentity::joined(&origin.token, "a:1", pending, &foreign, origin.trust.clone());
        assert!(matches!(refused, Err(IdentityError::Answer(AnswerFault::Key))));
    }

    #[test]
    fn only_a_newer_document_of_the_pinned_root_is_followed() {
        let (origin, other) = (origin(), super::tests::origin());
        let mut identity = join(&origin);
        let newer =
            |identity: &AgentIdentity, document: &SignedTrust| identity.trust().newer(document.bytes());
        assert_eq!(newer(&identity, &origin.trust), Ok(None));
        let second = origin.next(|_| {});
        assert_eq!(newer(&identity, &second), Ok(Some(second.clone())));
        identity.follow(second);
        assert!(matches!(newer(&identity, &origin.trust), Err(TrustError::Older { known: 2, offered: 1 })));
        let elsewhere = other.next(|document| document.number = 9);
        assert!(matches!(newer(&identity, &elsewhere), Err(TrustError::OtherRoot { .. })));
        // The root key is lost, and the operator pins another one.
        identity.pin_root(other.root.fingerprint());
        assert_eq!(newer(&identity, &elsewhere), Ok(Some(elsewhere.clone())));
        let older = origin.next(|document| document.number = 10);
        assert!(matches!(newer(&identity, &older), Err(TrustError::OtherRoot { .. })));
        // A thief has signed with the lost one: the number does not shut the new one out.
        let mut identity = join(&origin);
        identity.follow(origin.next(|document| document.number = u32::MAX));
        identity.pin_root(other.root.fingerprint());
        assert_eq!(newer(&identity, &elsewhere), Ok(Some(elsewhere.clone())));
    }

    #[test]
    fn a_certificate_of_a_replaced_authority_is_due_for_renewal() {
        let origin = origin();
        let mut identity = join(&origin);
        assert!(!identity.is_superseded());
        let extended = origin.authority.extended(OffsetDateTime::now_utc()).unwrap();
        identity.follow(origin.next(|document| document.authority = extended.certificate().clone()));
        assert!(!identity.is_superseded(), "the same key for longer");
        let new = Authority::create(TREE, OffsetDateTime::now_utc()).unwrap();
        identity.follow(origin.next(|document| document.authority = new.certificate().clone()));
        assert!(identity.is_superseded() && identity.needs_renewal(OffsetDateTime::now_utc()));
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
