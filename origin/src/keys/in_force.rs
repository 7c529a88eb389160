//! The keys that an origin uses at one moment, as their files in one directory.

use std::path::Path;
use std::sync::Arc;

use data_encoding::BASE64;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use syncd_runtime::key_file;
use syncd_runtime::tls::{OriginTls, TlsError};
use syncd_shared::ed25519::SigningKey;
use syncd_shared::generation::GenerationError;
use syncd_shared::identity::authority::{
    Authority, AuthorityKey, certificate_to_pem, generate_key, key_of_authority, validity,
};
use syncd_shared::identity::{RootKey, SignedTrust, TrustDocument, signing};
use syncd_shared::{SignedGeneration, TreeId};
use time::OffsetDateTime;

use super::{
    AuthorityStanding, CA_CERTIFICATE, CA_KEY, EARLIER_AUTHORITIES, KeysError, ORIGIN_CERTIFICATE,
    ORIGIN_KEY, SIGNING_KEY, TRUST, read_certificate, read_key, read_signing_key, signing_key_text,
};

/// Trust documents that are kept, more than one a month for fifty years.
pub(super) const TRUST_DOCUMENTS_MAX: usize = 1024;
/// Replaced authorities whose certificates may be renewed; the oldest is forgotten first.
pub(super) const EARLIER_AUTHORITIES_MAX: usize = 8;
/// Time after which origin and agents warn of an old trust document. It reminds of a root key that is needed
/// once in years and must not be lost unnoticed.
const WARN_AFTER: time::Duration = time::Duration::days(2 * 365);

/// See the module.
pub(super) struct KeysInForce {
    pub(super) authority: Arc<Authority>,
    /// Oldest first.
    pub(super) earlier: Vec<CertificateDer<'static>>,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) origin_key: KeyPair,
    pub(super) signing_key: SigningKey,
    /// Oldest first, at least one.
    trust: Vec<Arc<SignedTrust>>,
}

impl KeysInForce {
    /// The first keys of a tree.
    pub(super) fn create(root: &RootKey, now: OffsetDateTime) -> Result<Self, KeysError> {
        let authority = Authority::create(root.tree_id, now)?;
        let origin_key = generate_key()?;
        let certificate = authority.issue_origin(&origin_key, now)?;
        let signing_key = signing::generate()?;
        let (issued_ms, warn_ms) = (unix_ms(now), unix_ms(now + WARN_AFTER));
        let key = signing_key.verifying_key();
        let first = TrustDocument::first(root, key, authority.certificate(), issued_ms, warn_ms);
        let trust = vec![Arc::new(first)];
        Ok(Self {
            authority: authority.into(),
            earlier: Vec::new(),
            certificate,
            origin_key,
            signing_key,
            trust,
        })
    }

    /// Writes every file into a new directory.
    pub(super) fn write(&self, directory: &Path) -> Result<(), KeysError> {
        let put = |name: &str, text: &str| key_file::write(&directory.join(name), text);
        put(TRUST, &trust_text(&self.trust))?;
        put(CA_CERTIFICATE, &certificate_to_pem(self.authority.certificate()))?;
        put(CA_KEY, &self.authority.key().serialize_pem())?;
        put(ORIGIN_CERTIFICATE, &certificate_to_pem(&self.certificate))?;
        put(ORIGIN_KEY, &self.origin_key.serialize_pem())?;
        put(SIGNING_KEY, &signing_key_text(&self.signing_key))?;
        Ok(put(EARLIER_AUTHORITIES, &earlier_text(&self.earlier))?)
    }

    /// Reads every file. Signing key and authority must be those of the newest trust document.
    pub(super) fn open(
        keys: &Path,
        tree_id: TreeId,
        trust: Vec<Arc<SignedTrust>>,
    ) -> Result<Self, KeysError> {
        let damaged = |name: &str| KeysError::Damaged { path: keys.join(name) };
        let document = newest(&trust).document();
        let signing_key = read_signing_key(&keys.join(SIGNING_KEY))?;
        if signing_key.verifying_key() != document.signing_key {
            return Err(damaged(SIGNING_KEY));
        }
        let certificate = read_certificate(&keys.join(CA_CERTIFICATE))?;
        let authority = Authority::open(tree_id, certificate, read_key(&keys.join(CA_KEY))?)?;
        if authority.key_id() != key_of_authority(&document.authority)? {
            return Err(damaged(CA_CERTIFICATE));
        }
        let earlier = key_file::read(&keys.join(EARLIER_AUTHORITIES))?;
        let earlier = parse_earlier(&earlier).ok_or_else(|| damaged(EARLIER_AUTHORITIES))?;
        Ok(Self {
            authority: authority.into(),
            earlier,
            certificate: read_certificate(&keys.join(ORIGIN_CERTIFICATE))?,
            origin_key: read_key(&keys.join(ORIGIN_KEY))?,
            signing_key,
            trust,
        })
    }

    /// The newest trust document.
    pub(super) fn trust(&self) -> &Arc<SignedTrust> {
        newest(&self.trust)
    }

    pub(super) fn all_trust(&self) -> &[Arc<SignedTrust>] {
        &self.trust
    }

    pub(super) fn standing(&self, authority: AuthorityKey) -> AuthorityStanding {
        let is_it =
            |earlier: &CertificateDer<'_>| key_of_authority(earlier).is_ok_and(|key| key == authority);
        match authority {
            _ if authority == self.authority.key_id() => AuthorityStanding::Current,
            _ if self.earlier.iter().any(is_it) => AuthorityStanding::Replaced,
            _ => AuthorityStanding::Retired,
        }
    }

    /// Verifies a record by any of the trust documents, newest first.
    pub(super) fn verify(
        &self,
        record: &[u8],
        signature: &[u8],
    ) -> Result<SignedGeneration, GenerationError> {
        let mut result = Err(GenerationError::Signature);
        let mut tried = Vec::new();
        for document in self.trust.iter().rev().map(|trust| trust.document()) {
            if tried.contains(&document.signing_key.as_bytes()) {
                continue;
            }
            tried.push(document.signing_key.as_bytes());
            result = document.verify_generation(record, signature);
            if !matches!(result, Err(GenerationError::Signature)) {
                break;
            }
        }
        result
    }

    pub(super) fn tls(&self) -> Result<OriginTls, TlsError> {
        OriginTls::new(self.authority.certificate(), &self.certificate, &self.origin_key, &self.earlier)
    }

    /// Uses these keys in handshakes from now on.
    pub(super) fn show_in(&self, tls: &OriginTls) -> Result<(), TlsError> {
        tls.replace(self.authority.certificate(), &self.certificate, &self.origin_key, &self.earlier)
    }

    /// The next trust document after `skipped` ones that are not here, with an other root where given. Not
    /// signed yet.
    pub(super) fn next_document(
        &self,
        root: Option<&RootKey>,
        skipped: u32,
        now: OffsetDateTime,
    ) -> Result<TrustDocument, KeysError> {
        let before = self.trust().document();
        let number = before.number.checked_add(skipped).and_then(|number| number.checked_add(1));
        let mut document = TrustDocument {
            root_key: root.map_or(before.root_key, |root| root.key.verifying_key()),
            number: number.ok_or(KeysError::NoNumberLeft)?,
            issued_ms: unix_ms(now),
            warn_ms: unix_ms(now + WARN_AFTER),
            ..before.clone()
        };
        document.skip_signing_keys(skipped).ok_or(KeysError::NoNumberLeft)?;
        Ok(document)
    }

    /// Earlier authorities once this one is replaced: those that still hold.
    pub(super) fn earlier_with_this(&self, now: OffsetDateTime) -> Vec<CertificateDer<'static>> {
        let all = self.earlier.iter().chain([self.authority.certificate()]);
        let mut kept: Vec<_> =
            all.filter(|one| validity(one).is_ok_and(|v| v.not_after > now)).cloned().collect();
        let excess = kept.len().saturating_sub(EARLIER_AUTHORITIES_MAX);
        kept.drain(..excess);
        kept
    }
}

pub(super) fn newest(trust: &[Arc<SignedTrust>]) -> &Arc<SignedTrust> {
    trust.last().expect("there is at least one")
}

fn unix_ms(time: OffsetDateTime) -> i64 {
    time.unix_timestamp().saturating_mul(1000)
}

/// Whether a date that warns has passed.
pub(super) fn is_past(warn_ms: i64, now: OffsetDateTime) -> bool {
    unix_ms(now) > warn_ms
}

/// Reads the trust documents, oldest first. At least one.
pub(super) fn read_trust(keys: &Path, tree_id: TreeId) -> Result<Vec<Arc<SignedTrust>>, KeysError> {
    let path = keys.join(TRUST);
    parse_trust(&key_file::read(&path)?, tree_id).ok_or(KeysError::Damaged { path })
}

pub(super) fn parse_trust(text: &str, tree_id: TreeId) -> Option<Vec<Arc<SignedTrust>>> {
    let read = |line: &str| {
        let bytes = BASE64.decode(line.as_bytes()).ok()?;
        SignedTrust::of_tree(&bytes, tree_id).ok().map(Arc::new)
    };
    let trust: Vec<_> = text.lines().map(read).take(TRUST_DOCUMENTS_MAX + 1).collect::<Option<_>>()?;
    let rises = trust.is_sorted_by(|a, b| a.number() < b.number());
    (rises && (1..=TRUST_DOCUMENTS_MAX).contains(&trust.len())).then_some(trust)
}

pub(super) fn trust_text(trust: &[Arc<SignedTrust>]) -> String {
    trust.iter().map(|trust| format!("{}\n", BASE64.encode(trust.bytes()))).collect()
}

pub(super) fn earlier_text(earlier: &[CertificateDer<'_>]) -> String {
    earlier.iter().map(|certificate| format!("{}\n", BASE64.encode(certificate))).collect()
}

pub(super) fn parse_earlier(text: &str) -> Option<Vec<CertificateDer<'static>>> {
    let read = |line: &str| {
        let certificate = CertificateDer::from(BASE64.decode(line.as_bytes()).ok()?);
        key_of_authority(&certificate).ok().map(|_| certificate)
    };
    let earlier: Vec<_> = text.lines().map(read).take(EARLIER_AUTHORITIES_MAX + 1).collect::<Option<_>>()?;
    (earlier.len() <= EARLIER_AUTHORITIES_MAX).then_some(earlier)
}
