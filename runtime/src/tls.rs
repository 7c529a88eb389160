//! Every TLS configuration: TLS 1.3 with the ring provider, ALPN `h2` (pages: `http/1.1`), no resumption.
//!
//! Resumption is disabled at both ends: a resumed session does not show its certificate again, so a revoked
//! one would stay in use. Agents know the authority's certificate from the trust document.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rcgen::KeyPair;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};

use syncd_shared::generation::TreeId;
use syncd_shared::identity::authority::{AuthorityKey, PeerIdentity, key_of_authority, peer_identity};

const ALPN: &[u8] = b"h2";
const ALPN_OF_PAGES: &[u8] = b"http/1.1";

/// Called in every handshake with a certificate issued by the authority, valid now or not. `false` (revoked)
/// refuses it. Runs on the runtime's threads and must not block.
pub type Admit = Arc<dyn Fn(&PeerIdentity) -> bool + Send + Sync>;

/// Errors of building a TLS configuration from keys, certificates and names.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The key does not match the certificate, or one of them is malformed.
    #[error("the key and the certificates are malformed or don't belong together")]
    Certificate(#[from] Error),
    #[error("the authority's certificate can't be used as a root")]
    Root(#[from] rustls::server::VerifierBuilderError),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots<'a>(
    authorities: impl IntoIterator<Item = &'a CertificateDer<'static>>,
) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone())?;
    }
    Ok(Arc::new(roots))
}

fn private_key(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

/// The certificate that an origin shows in handshakes, and those that it accepts. Replaceable while it
/// serves.
#[derive(Debug)]
pub struct OriginTls {
    current: RwLock<Arc<Handshake>>,
}

/// See [`OriginTls`].
#[derive(Debug)]
struct Handshake {
    served: Arc<CertifiedKey>,
    /// The key of the authority in force, and a verifier that trusts it alone.
    authority: Option<AuthorityKey>,
    own_clients: Arc<dyn ClientCertVerifier>,
    /// Trusts the earlier authorities as well.
    clients: Arc<dyn ClientCertVerifier>,
}

impl Handshake {
    /// The verifier for a certificate, which names its issuer itself: one that claims the authority in force
    /// must be of it, because one of an earlier authority can do less.
    fn verifier(&self, certificate: &CertificateDer<'_>) -> &Arc<dyn ClientCertVerifier> {
        let claims = peer_identity(certificate).map(|identity| identity.issuer).ok();
        if claims.is_some() && claims == self.authority { &self.own_clients } else { &self.clients }
    }
}

impl OriginTls {
    /// Shows this certificate of this authority, and accepts client certificates of it and of the `earlier`
    /// ones. Rejects a key that does not match.
    pub fn new(
        authority: &CertificateDer<'static>,
        certificate: &CertificateDer<'static>,
        key: &KeyPair,
        earlier: &[CertificateDer<'static>],
    ) -> Result<Self, TlsError> {
        Ok(Self { current: RwLock::new(handshake(authority, certificate, key, earlier)?) })
    }

    /// Like [`OriginTls::new`], from the next handshake on.
    pub fn replace(
        &self,
        authority: &CertificateDer<'static>,
        certificate: &CertificateDer<'static>,
        key: &KeyPair,
        earlier: &[CertificateDer<'static>],
    ) -> Result<(), TlsError> {
        let new = handshake(authority, certificate, key, earlier)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// SHA-256 of the certificate that is shown now, as browsers print it: `AB:CD:...`.
    pub fn sha256(&self) -> String {
        let current = self.current();
        let certificate = current.served.cert.first().map(|certificate| certificate.as_ref());
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate.unwrap_or_default());
        digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
    }

    fn current(&self) -> Arc<Handshake> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for OriginTls {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current().served.clone())
    }
}

fn handshake(
    authority: &CertificateDer<'static>,
    certificate: &CertificateDer<'static>,
    key: &KeyPair,
    earlier: &[CertificateDer<'static>],
) -> Result<Arc<Handshake>, TlsError> {
    let chain = vec![certificate.clone()];
    let served = Arc::new(CertifiedKey::from_der(chain, private_key(key), &provider())?);
    let clients = verifier_of(roots(std::iter::once(authority).chain(earlier))?)?;
    let own_clients = verifier_of(roots([authority])?)?;
    let authority = key_of_authority(authority).ok();
    Ok(Arc::new(Handshake { served, authority, own_clients, clients }))
}

fn verifier_of(trusted: Arc<RootCertStore>) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    Ok(WebPkiClientVerifier::builder_with_provider(trusted, provider())
        .allow_unauthenticated()
        // All authorities of a tree have one name, so hints would tell a client nothing.
        .clear_root_hint_subjects()
        .build()?)
}

/// Configuration of the origin. A client certificate is optional (`Join` has none). A client that shows one
/// must have it from an accepted authority and be admitted; otherwise the handshake fails with a specific
/// alert. A certificate outside its validity, or of an earlier authority, passes: the caller must check
/// [`PeerIdentity`] before it serves anything but a renewal.
pub fn server_config(own: Arc<OriginTls>, admit: Admit) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(AdmittedAgents { own: own.clone(), admit }))
        .with_cert_resolver(own);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Configuration for browsers: the origin's certificate, and none of the client.
pub fn page_config(own: Arc<OriginTls>) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(own);
    config.alpn_protocols = vec![ALPN_OF_PAGES.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Configuration of an agent: trusted authority, expected name, and own certificate.
#[derive(Clone)]
pub struct ClientTls {
    pub(super) config: Arc<ClientConfig>,
    pub(super) name: ServerName<'static>,
    pub(super) origin_name: String,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientTls({})", self.origin_name)
    }
}

impl ClientTls {
    /// For an enrolled agent: trusts `authority` for the tree's origin name and shows `certificate`.
    pub fn enrolled(
        tree_id: TreeId,
        authority: &CertificateDer<'static>,
        certificate: &CertificateDer<'static>,
        key: &KeyPair,
    ) -> Result<Self, TlsError> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots([authority])?)
            .with_client_auth_cert(vec![certificate.clone()], private_key(key))?;
        Self::new(tree_id, config)
    }

    /// For `Join`: trusts `authority` for the tree's origin name. Shows no certificate.
    pub fn joining(tree_id: TreeId, authority: &CertificateDer<'static>) -> Result<Self, TlsError> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots([authority])?)
            .with_no_client_auth();
        Self::new(tree_id, config)
    }

    /// For the trust document alone: accepts any server and shows no certificate. The caller must send
    /// nothing secret, and believe nothing that the root key has not signed.
    pub fn untrusting(tree_id: TreeId) -> Result<Self, TlsError> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer { provider: provider() }))
            .with_no_client_auth();
        Self::new(tree_id, config)
    }

    fn new(tree_id: TreeId, mut config: ClientConfig) -> Result<Self, TlsError> {
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        let origin_name = tree_id.origin_name();
        let name = ServerName::try_from(origin_name.clone())
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        Ok(Self { config: Arc::new(config), name, origin_name })
    }
}

/// Verifies like webpki, as of a time when the certificate was valid, and then calls [`Admit`].
struct AdmittedAgents {
    own: Arc<OriginTls>,
    admit: Admit,
}

impl fmt::Debug for AdmittedAgents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdmittedAgents")
    }
}

impl ClientCertVerifier for AdmittedAgents {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let handshake = self.own.current();
        let clients = handshake.verifier(end_entity);
        let verified = clients.verify_client_cert(end_entity, intermediates, now);
        let identity = || {
            let identity = peer_identity(end_entity);
            identity.map_err(|_| Error::from(CertificateError::ApplicationVerificationFailure))
        };
        let (verified, identity) = match verified {
            Err(Error::InvalidCertificate(reason)) if is_about_time(&reason) => {
                let identity = identity()?;
                // The authority issues nothing outside its own validity, so both certificates are valid in
                // this first second.
                let began = u64::try_from(identity.not_before.unix_timestamp()).unwrap_or_default();
                let began = UnixTime::since_unix_epoch(Duration::from_secs(began));
                (clients.verify_client_cert(end_entity, intermediates, began)?, identity)
            }
            verified => (verified?, identity()?),
        };
        if (self.admit)(&identity) { Ok(verified) } else { Err(CertificateError::Revoked.into()) }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.own.current().clients.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.own.current().clients.supported_verify_schemes()
    }
}

pub(super) fn is_about_time(error: &CertificateError) -> bool {
    matches!(
        error,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
    )
}

/// Accepts every certificate whose key the server has.
#[derive(Debug)]
struct AnyServer {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use syncd_shared::identity::authority::{Authority, certificate_request, generate_key};
    use time::OffsetDateTime;

    #[test]
    fn a_certificate_that_claims_the_authority_in_force_must_be_of_it() {
        let (now, tree) = (OffsetDateTime::now_utc(), TreeId::from_bytes([9; 16]));
        let [old, current] = [(), ()].map(|()| Authority::create(tree, now).unwrap());
        let key = generate_key().unwrap();
        let certificate = current.issue_origin(&key, now).unwrap();
        let earlier = [old.certificate().clone()];
        let own = OriginTls::new(current.certificate(), &certificate, &key, &earlier).unwrap();
        let agents = AdmittedAgents { own: Arc::new(own), admit: Arc::new(|_: &_| true) };
        let request = certificate_request(&generate_key().unwrap()).unwrap();
        let accepted = |authority: &Authority| {
            let (certificate, peer) = authority.issue_agent(&"web1".parse().unwrap(), &request, now).unwrap();
            (peer.issuer, agents.verify_client_cert(&certificate, &[], UnixTime::now()).is_ok())
        };
        assert_eq!(accepted(&current), (current.key_id(), true));
        assert_eq!(accepted(&old), (old.key_id(), true), "it may be renewed");
        let stolen = KeyPair::from_pem(&old.key().serialize_pem()).unwrap();
        let thief = Authority::open(tree, current.certificate().clone(), stolen).unwrap();
        assert_eq!(accepted(&thief), (current.key_id(), false));
    }
}
