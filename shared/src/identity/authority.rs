//! The tree's certificate authority: the certificates that it issues, and how a peer's certificate is read.
//!
//! | certificate | purpose | names | lifetime |
//! | --- | --- | --- | --- |
//! | authority | signing the two below, path length 0 | `syncd <tree_id>` | 10 years |
//! | origin | serverAuth only | DNS `origin.<tree_id>.syncd` | 3 years, at most as long as the authority |
//! | agent | clientAuth only | common name: the agent's | 30 days |
//!
//! An agent's certificate outside its validity period can still be renewed, unless it was revoked. An origin
//! that was down for longer than the lifetime of certificates therefore recovers its fleet.
//!
//! Certificates of the authority and of agents become valid an hour before they are issued, to allow for slow
//! clocks. An origin's certificate becomes valid together with the authority's, so that an agent with a slow
//! clock accepts a reissued one. In the last third of the authority's life a new certificate for the same key
//! extends it. Those who trust the authority compare name and key, and notice nothing.
//!
//! Keys are ECDSA P-256; an agent's request may also use Ed25519. Serials are 128 random bits, the first two
//! fixed to 0 and 1, so that every serial has 16 bytes in DER.

use std::fmt;
use std::str::FromStr;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData,
    SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::generation::TreeId;
use crate::limits::{AGENT_NAME_MAX_BYTES, CERTIFICATE_REQUEST_MAX_BYTES};

/// Lifetime of an agent's certificate.
pub const AGENT_CERTIFICATE_LIFE: Duration = Duration::days(30);
/// Lifetime of the authority's certificate.
pub const AUTHORITY_LIFE: Duration = Duration::days(3_652);
/// Lifetime of the origin's certificate, which also ends with the authority's.
pub const ORIGIN_CERTIFICATE_LIFE: Duration = Duration::days(1_096);
/// Certificates become valid this long before they are issued.
pub const CLOCK_ALLOWANCE: Duration = Duration::hours(1);

/// The name of an agent: 1 to 63 bytes of `[a-zA-Z0-9._-]`, starting with a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentName(String);

/// The string is not a valid agent name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is not a name for an agent: use 1 to {AGENT_NAME_MAX_BYTES} of a-z A-Z 0-9 . _ -, beginning with \
     a letter or digit, as in web1"
)]
pub struct AgentNameError {
    /// The string, truncated to 100 characters.
    pub name: String,
}

impl AgentName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AgentName {
    type Err = AgentNameError;

    fn from_str(name: &str) -> Result<Self, AgentNameError> {
        let valid = (1..=AGENT_NAME_MAX_BYTES).contains(&name.len())
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if valid {
            Ok(Self(name.to_owned()))
        } else {
            Err(AgentNameError { name: name.chars().take(100).collect() })
        }
    }
}

impl fmt::Display for AgentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for AgentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentName({})", self.0)
    }
}

/// The serial number of a certificate, by which it is revoked. Shown as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial([u8; 16]);

/// The string is not 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a serial number has 32 hexadecimal digits")]
pub struct ParseSerialError;

impl Serial {
    /// Wraps the 16 bytes of an existing serial.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    fn random() -> Result<Self, AuthorityError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(AuthorityError::Random)?;
        bytes[0] = bytes[0] & 0x3f | 0x40;
        Ok(Self(bytes))
    }
}

impl FromStr for Serial {
    type Err = ParseSerialError;

    fn from_str(text: &str) -> Result<Self, ParseSerialError> {
        let bytes =
            data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| ParseSerialError)?;
        bytes.try_into().map(Self).map_err(|_| ParseSerialError)
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}

/// The identity that a certificate claims. Trusted only after TLS has verified the certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    pub name: AgentName,
    pub serial: Serial,
    /// [`fingerprint`] of the certificate, which nobody can give to another key.
    pub fingerprint: [u8; 32],
    /// Start of the certificate's validity.
    pub not_before: OffsetDateTime,
    /// End of the certificate's validity.
    pub not_after: OffsetDateTime,
    /// The authority that issued the certificate.
    pub issuer: AuthorityKey,
}

/// The key identifier of an authority, which its certificates name as their issuer (RFC 5280, 4.2.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuthorityKey(pub [u8; 20]);

/// The key of an authority, from its own certificate.
pub fn key_of_authority(certificate: &CertificateDer<'_>) -> Result<AuthorityKey, AuthorityError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|e| AuthorityError::Certificate(x509_error(e)))?;
    let key = parsed.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(key) => Some(key.0),
        _ => None,
    });
    key_identifier(key.filter(|_| parsed.is_ca())).ok_or(AuthorityError::NotAnAuthority)
}

/// The key of the authority that issued a certificate, as the certificate claims.
fn key_of_issuer(certificate: &X509Certificate<'_>) -> Option<AuthorityKey> {
    let key = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(key) => key.key_identifier.as_ref().map(|key| key.0),
        _ => None,
    });
    key_identifier(key)
}

fn key_identifier(bytes: Option<&[u8]>) -> Option<AuthorityKey> {
    bytes?.try_into().ok().map(AuthorityKey)
}

impl PeerIdentity {
    /// Whether the certificate is valid at this time. If not, it can be renewed but not used for anything
    /// else.
    pub fn holds(&self, now: OffsetDateTime) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    /// Time until the certificate expires; zero afterwards.
    pub fn remaining_life(&self, now: OffsetDateTime) -> std::time::Duration {
        (self.not_after - now).try_into().unwrap_or_default()
    }
}

/// The validity period of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub not_before: OffsetDateTime,
    /// Last second.
    pub not_after: OffsetDateTime,
}

impl Validity {
    /// Whether the period includes this time.
    pub fn holds(&self, now: OffsetDateTime) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }
}

/// Reads the validity period of a certificate. Checks nothing else.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<Validity, AuthorityError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|e| AuthorityError::Certificate(x509_error(e)))?;
    let validity = parsed.validity();
    Ok(Validity {
        not_before: validity.not_before.to_datetime(),
        not_after: validity.not_after.to_datetime(),
    })
}

/// Errors of issuing or reading a certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The kernel's random number generator failed.
    #[error("reading random numbers failed")]
    Random(#[source] getrandom::Error),
    /// Creating or reading a key, or signing, failed.
    #[error("making or reading a key or certificate failed")]
    Crypto(#[from] rcgen::Error),
    /// Longer than [`CERTIFICATE_REQUEST_MAX_BYTES`].
    #[error("certificate request has {wanted} bytes, the limit is {CERTIFICATE_REQUEST_MAX_BYTES}")]
    RequestLength { wanted: usize },
    /// The request is not PKCS#10 in DER, or not signed by its own key.
    #[error("certificate request is malformed or not signed by its own key")]
    Request(#[source] x509_parser::error::X509Error),
    /// The key is neither ECDSA P-256 nor Ed25519.
    #[error("certificate request has a key of a kind that is not accepted: use ECDSA P-256 or Ed25519")]
    RequestKey,
    /// The certificate is not valid DER.
    #[error("certificate is malformed")]
    Certificate(#[source] x509_parser::error::X509Error),
    /// The current time lies outside the authority's own validity, so a certificate issued now would never
    /// verify.
    #[error(
        "the tree's authority issues certificates from {} to {} alone: check the clock of the origin's machine",
        validity.not_before.date(), validity.not_after.date()
    )]
    Clock {
        /// Validity of the authority.
        validity: Validity,
    },
    /// The certificate is not an agent's: its name, serial or issuer has another form.
    #[error("certificate is not one of an agent")]
    NotAnAgent,
    #[error("certificate is not one of an authority")]
    NotAnAuthority,
}

/// Generates a key for an agent or origin.
pub fn generate_key() -> Result<KeyPair, AuthorityError> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}

/// A PKCS#10 request (DER) for `key`. The authority uses only its public key.
pub fn certificate_request(key: &KeyPair) -> Result<Vec<u8>, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(key)?.der().to_vec())
}

/// BLAKE3-256 of a certificate's DER bytes.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    *blake3::hash(certificate).as_bytes()
}

/// PEM text of a certificate.
pub fn certificate_to_pem(certificate: &CertificateDer<'_>) -> String {
    let body = data_encoding::BASE64.encode(certificate);
    let lines: Vec<&str> = (0..body.len()).step_by(64).map(|at| &body[at..body.len().min(at + 64)]).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// The first certificate in PEM text.
pub fn certificate_from_pem(text: &str) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(text.as_bytes()).ok()
}

/// The authority of a tree, with its signing key.
pub struct Authority {
    tree_id: TreeId,
    certificate: CertificateDer<'static>,
    key_id: AuthorityKey,
    validity: Validity,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", self.tree_id)
    }
}

impl Authority {
    /// Creates the authority of a tree: a key, and a certificate for [`AUTHORITY_LIFE`].
    pub fn create(tree_id: TreeId, now: OffsetDateTime) -> Result<Self, AuthorityError> {
        let key = generate_key()?;
        let params = authority_params(tree_id, now)?;
        let certificate = params.self_signed(&key)?.der().clone();
        Self::open(tree_id, certificate, key)
    }

    /// Extends the life of the authority: another certificate of the same name and key, for
    /// [`AUTHORITY_LIFE`] from now on. Certificates that were issued before stay valid.
    pub fn extended(&self, now: OffsetDateTime) -> Result<Self, AuthorityError> {
        let mut params = authority_params(self.tree_id, now)?;
        params.not_before = self.validity.not_before;
        let key = KeyPair::from_pem(&self.key().serialize_pem())?;
        let certificate = params.self_signed(&key)?.der().clone();
        Self::open(self.tree_id, certificate, key)
    }

    pub fn open(
        tree_id: TreeId,
        certificate: CertificateDer<'static>,
        key: KeyPair,
    ) -> Result<Self, AuthorityError> {
        let (validity, key_id) = (validity(&certificate)?, key_of_authority(&certificate)?);
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { tree_id, certificate, key_id, validity, issuer })
    }

    /// Validity of its certificate.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Certificates that it issues name this key as their issuer.
    pub fn key_id(&self) -> AuthorityKey {
        self.key_id
    }

    pub fn key(&self) -> &KeyPair {
        self.issuer.key()
    }

    /// Issues the origin's certificate to `key`, for [`ORIGIN_CERTIFICATE_LIFE`].
    pub fn issue_origin(
        &self,
        key: &KeyPair,
        now: OffsetDateTime,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let name = self.tree_id.origin_name();
        self.check_clock(now)?;
        let mut params = new_params("syncd-origin", now, ORIGIN_CERTIFICATE_LIFE)?;
        params.not_before = self.validity.not_before;
        params.not_after = params.not_after.min(self.validity.not_after);
        params.subject_alt_names = vec![rcgen::SanType::DnsName(name.as_str().try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, key)
    }

    /// Issues an agent's certificate, for [`AGENT_CERTIFICATE_LIFE`]. `request` is PKCS#10 in DER. Its
    /// signature is verified, and only its public key is used.
    pub fn issue_agent(
        &self,
        name: &AgentName,
        request: &[u8],
        now: OffsetDateTime,
    ) -> Result<(CertificateDer<'static>, PeerIdentity), AuthorityError> {
        let key = public_key(request)?;
        self.check_clock(now)?;
        let params = new_params(name.as_str(), now, AGENT_CERTIFICATE_LIFE)?;
        let certificate = self.sign_agent(params, &key)?;
        let identity = peer_identity(&certificate)?;
        Ok((certificate, identity))
    }

    fn check_clock(&self, now: OffsetDateTime) -> Result<(), AuthorityError> {
        if self.validity.holds(now) { Ok(()) } else { Err(AuthorityError::Clock { validity: self.validity }) }
    }

    fn sign_agent(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        // An expired certificate is verified as of its first second, so its issuer must be valid then.
        params.not_before = params.not_before.max(self.validity.not_before);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, key)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }
}

fn authority_params(tree_id: TreeId, now: OffsetDateTime) -> Result<CertificateParams, AuthorityError> {
    let mut params = new_params(&format!("syncd {tree_id}"), now, AUTHORITY_LIFE)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// Fresh parameters, so that nothing remains of rcgen's defaults (validity from 1975 to 4096) or of a
/// request.
fn new_params(
    common_name: &str,
    now: OffsetDateTime,
    life: Duration,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = now - CLOCK_ALLOWANCE;
    params.not_after = now + life;
    params.serial_number = Some(SerialNumber::from_slice(Serial::random()?.as_bytes()));
    params.custom_extensions = Vec::<CustomExtension>::new();
    Ok(params)
}

fn public_key(request: &[u8]) -> Result<SubjectPublicKeyInfo, AuthorityError> {
    if request.len() > CERTIFICATE_REQUEST_MAX_BYTES {
        return Err(AuthorityError::RequestLength { wanted: request.len() });
    }
    let (_, parsed) =
        X509CertificationRequest::from_der(request).map_err(|e| AuthorityError::Request(x509_error(e)))?;
    parsed.verify_signature().map_err(AuthorityError::Request)?;
    let key = SubjectPublicKeyInfo::from_der(parsed.certification_request_info.subject_pki.raw)?;
    let accepted = [&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519].contains(&key.algorithm());
    if accepted { Ok(key) } else { Err(AuthorityError::RequestKey) }
}

/// Reads the identity in a certificate. Checks its form, not its issuer, which TLS has verified.
pub fn peer_identity(certificate: &CertificateDer<'_>) -> Result<PeerIdentity, AuthorityError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|e| AuthorityError::Certificate(x509_error(e)))?;
    let mut names = parsed.subject().iter_common_name();
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(AuthorityError::NotAnAgent);
    };
    let name = name.as_str().map_err(AuthorityError::Certificate)?;
    let name = name.parse().map_err(|_| AuthorityError::NotAnAgent)?;
    let serial = parsed.raw_serial().try_into().map_err(|_| AuthorityError::NotAnAgent)?;
    let validity = parsed.validity();
    Ok(PeerIdentity {
        name,
        serial: Serial(serial),
        fingerprint: fingerprint(certificate),
        not_before: validity.not_before.to_datetime(),
        not_after: validity.not_after.to_datetime(),
        issuer: key_of_issuer(&parsed).ok_or(AuthorityError::NotAnAgent)?,
    })
}

fn x509_error(error: x509_parser::nom::Err<x509_parser::error::X509Error>) -> x509_parser::error::X509Error {
    use x509_parser::nom::Err;
    match error {
        Err::Incomplete(_) => x509_parser::error::X509Error::Generic,
        Err::Error(e) | Err::Failure(e) => e,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: TreeId = TreeId::from_bytes([7; 16]);

    #[test]
    fn agent_names_are_checked() {
        for good in ["a", "web1", "0-x_y.example", &"a".repeat(63)] {
            assert_eq!(good.parse::<AgentName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", ".a", "_a", "a b", "a/b", "ä", "a\n", &"a".repeat(64)] {
            assert!(bad.parse::<AgentName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_hostile_request_yields_a_plain_agent_certificate() {
        let now = OffsetDateTime::now_utc();
        let authority = Authority::create(TREE, now).unwrap();
        let key = generate_key().unwrap();
        let mut params = CertificateParams::new(vec![TREE.origin_name()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::CodeSigning];
        params.custom_extensions =
            vec![CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], b"\x05\x00".to_vec())];
        let request = params.serialize_request(&key).unwrap();

        let name = "web1".parse().unwrap();
        let (certificate, identity) = authority.issue_agent(&name, request.der(), now).unwrap();
        assert_eq!(identity.name, name);
        assert_eq!((identity.not_after - now - AGENT_CERTIFICATE_LIFE).abs().whole_seconds(), 0);
        assert!(identity.not_before < now && identity.not_before >= now - Duration::hours(2));
        let (_, parsed) = X509Certificate::from_der(&certificate).unwrap();
        assert!(!parsed.is_ca());
        assert_eq!(parsed.subject().to_string(), "CN=web1");
        assert_eq!(parsed.public_key().raw, key.subject_public_key_info());
        assert!(parsed.subject_alternative_name().unwrap().is_none());
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth && !usage.any && !usage.code_signing);
        assert!(!parsed.key_usage().unwrap().unwrap().value.key_cert_sign());
        for extension in parsed.extensions() {
            assert!(
                !matches!(extension.parsed_extension(), ParsedExtension::UnsupportedExtension { .. }),
                "{extension:?}"
            );
        }
    }

    #[test]
    fn a_request_must_be_signed_by_its_own_key() {
        let now = OffsetDateTime::now_utc();
        let authority = Authority::create(TREE, now).unwrap();
        let name = "web1".parse().unwrap();
        let key = generate_key().unwrap();
        let request = certificate_request(&key).unwrap();
        for at in 0..request.len() {
            assert!(authority.issue_agent(&name, &request[..at], now).is_err(), "cut at {at}");
            let mut broken = request.clone();
            broken[at] ^= 1;
            // The signature covers neither itself nor its algorithm's encoding.
            if let Ok((certificate, _)) = authority.issue_agent(&name, &broken, now) {
                let (_, parsed) = X509Certificate::from_der(&certificate).unwrap();
                assert_eq!(parsed.public_key().raw, key.subject_public_key_info(), "byte {at}");
            }
        }
        let at = request.windows(8).position(|w| w == &key.public_key_raw()[1..9]).unwrap();
        let mut stolen = request.clone();
        stolen[at] ^= 1;
        assert!(matches!(authority.issue_agent(&name, &stolen, now), Err(AuthorityError::Request(_))));
        assert!(authority.issue_agent(&name, &request, now).is_ok());
        let long = vec![0x30; CERTIFICATE_REQUEST_MAX_BYTES + 1];
        assert!(matches!(
            authority.issue_agent(&name, &long, now),
            Err(AuthorityError::RequestLength { wanted }) if wanted == long.len()
        ));
    }

    #[test]
    fn only_p256_and_ed25519_keys_are_accepted() {
        let now = OffsetDateTime::now_utc();
        let authority = Authority::create(TREE, now).unwrap();
        let name = "web1".parse().unwrap();
        let issue = |alg| {
            let key = KeyPair::generate_for(alg).unwrap();
            authority.issue_agent(&name, &certificate_request(&key).unwrap(), now)
        };
        assert!(issue(&PKCS_ED25519).is_ok());
        assert!(matches!(issue(&rcgen::PKCS_ECDSA_P384_SHA384), Err(AuthorityError::RequestKey)));
    }

    #[test]
    fn serials_are_random_and_come_back_from_the_certificate() {
        let now = OffsetDateTime::now_utc();
        let authority = Authority::create(TREE, now).unwrap();
        let name = "web1".parse().unwrap();
        let request = certificate_request(&generate_key().unwrap()).unwrap();
        let (certificate, first) = authority.issue_agent(&name, &request, now).unwrap();
        let (_, second) = authority.issue_agent(&name, &request, now).unwrap();
        assert_ne!(first.serial, second.serial);
        assert_eq!(peer_identity(&certificate).unwrap(), first);
        assert_eq!(first.serial.to_string().parse(), Ok(first.serial));
    }

    #[test]
    fn an_extended_authority_is_the_same_one_for_longer() {
        let now = OffsetDateTime::now_utc();
        let first = Authority::create(TREE, now).unwrap();
        let later = first.extended(now + Duration::days(2_600)).unwrap();
        assert_eq!(later.key_id(), first.key_id());
        assert_eq!(later.validity().not_before, first.validity().not_before);
        assert_eq!((later.validity().not_after - first.validity().not_after).whole_days(), 2_600);
        let request = certificate_request(&generate_key().unwrap()).unwrap();
        let (_, peer) = later.issue_agent(&"web1".parse().unwrap(), &request, now).unwrap();
        assert_eq!(peer.issuer, first.key_id());
        assert_ne!(Authority::create(TREE, now).unwrap().key_id(), first.key_id());
    }

    #[test]
    fn the_authority_reopens_from_its_certificate_and_key() {
        let now = OffsetDateTime::now_utc();
        let first = Authority::create(TREE, now).unwrap();
        let key = KeyPair::from_pem(&first.key().serialize_pem()).unwrap();
        let again = Authority::open(TREE, first.certificate().clone(), key).unwrap();
        assert_eq!(fingerprint(again.certificate()), fingerprint(first.certificate()));
        let origin = again.issue_origin(&generate_key().unwrap(), now).unwrap();
        assert!(matches!(peer_identity(&origin), Ok(p) if p.name.as_str() == "syncd-origin"));
    }
}
