//! An authority, an agent and a token that are the same in every process, so that findings are reproducible
//! and corpora stay meaningful.

use std::sync::OnceLock;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use syncd_shared::ed25519::SigningKey;
use syncd_shared::identity::{Authority, JoinToken, RootKey, SignedTrust, TrustDocument};
use time::OffsetDateTime;

use crate::values::{TREE, signing_key};

const AGENT_SEED: [u8; 32] = [5; 32];

/// Matching identities.
pub(crate) struct Identities {
    pub(crate) authority: Authority,
    /// Issued for [`agent_key`].
    pub(crate) certificate: CertificateDer<'static>,
    /// PKCS#10 of the same key.
    pub(crate) request: Vec<u8>,
    pub(crate) root: RootKey,
    /// Names the authority and the signing key.
    pub(crate) trust: SignedTrust,
    /// Pins the root key.
    pub(crate) token: JoinToken,
}

/// RFC 8410: an ed25519 key, whose signatures are deterministic.
fn key(seed: &[u8; 32]) -> KeyPair {
    const HEAD: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    let der = PrivatePkcs8KeyDer::from([&HEAD[..], seed].concat());
    KeyPair::try_from(&der).expect("a key")
}

pub(crate) fn agent_key() -> KeyPair {
    key(&AGENT_SEED)
}

fn parameters(name: &str, serial: u8) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.not_before = OffsetDateTime::UNIX_EPOCH;
    parameters.not_after = OffsetDateTime::UNIX_EPOCH + time::Duration::days(30);
    parameters.serial_number = Some(SerialNumber::from_slice(&[serial; 16]));
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters
}

/// A later document of the same root key, with another signing key if there is one.
pub(crate) fn later_trust(number: u32, signing_key: Option<&SigningKey>) -> SignedTrust {
    let Identities { root, trust, .. } = identities();
    let mut document = trust.document().clone();
    document.number = number.max(1);
    if let Some(key) = signing_key {
        document.replace_signing_key(key.verifying_key()).expect("ranges are left");
    }
    document.sign(&root.key).expect("its own root key")
}

pub(crate) fn identities() -> &'static Identities {
    static IDENTITIES: OnceLock<Identities> = OnceLock::new();
    IDENTITIES.get_or_init(|| make().expect("certificates"))
}

fn make() -> Result<Identities, rcgen::Error> {
    let authority_key = key(&[4; 32]);
    let mut own = parameters("syncd authority", 0x41);
    own.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    own.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority_certificate = own.self_signed(&authority_key)?.der().clone();
    let issuer = Issuer::from_ca_cert_der(&authority_certificate, authority_key)?;
    let mut agent = parameters("web2", 0x42);
    agent.use_authority_key_identifier_extension = true;
    agent.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = agent.signed_by(&agent_key(), &issuer)?.der().clone();
    let mut asked = CertificateParams::default();
    asked.distinguished_name = DistinguishedName::new();
    let request = asked.serialize_request(&agent_key())?.der().to_vec();
    let root = RootKey { tree_id: TREE, key: SigningKey::from_bytes(&[7; 32]) };
    let signing_key = signing_key().verifying_key();
    let trust = TrustDocument::first(&root, signing_key, &authority_certificate, 0, i64::MAX);
    let token = JoinToken { tree_id: TREE, root: root.fingerprint(), trust: 1, secret: [6; 16] };
    let authority = Authority::open(TREE, authority_certificate, key(&[4; 32])).expect("it was just made");
    Ok(Identities { authority, certificate, request, root, trust, token })
}
