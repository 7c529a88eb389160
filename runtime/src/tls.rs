//! Every TLS configuration: TLS 1.3 with the ring provider, ALPN `h2`, no resumption.
//!
//! Resumption is disabled at both ends: a resumed session does not show its certificate again, so a revoked
//! one would stay in use. The origin also sends its authority's certificate, so that an agent that knows only
//! the fingerprint (from a token) can verify the chain.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rcgen::KeyPair;
use rustls::client::WebPkiServerVerifier;
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
use syncd_shared::identity::authority::{PeerIdentity, fingerprint, peer_identity};
use syncd_shared::identity::token::JoinToken;

const ALPN: &[u8] = b"h2";

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

fn roots(authority: &CertificateDer<'_>) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone().into_owned())?;
    Ok(Arc::new(roots))
}

fn private_key(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

/// The origin's certificate chain and key, replaceable while it serves.
#[derive(Debug)]
pub struct OriginCertificate {
    authority: CertificateDer<'static>,
    served: RwLock<Arc<CertifiedKey>>,
}

impl OriginCertificate {
    /// Uses this certificate of this authority. Rejects a key that does not match.
    pub fn new(
        authority: &CertificateDer<'static>,
        certificate: &CertificateDer<'static>,
        key: &KeyPair,
    ) -> Result<Self, TlsError> {
        let served = RwLock::new(certified(authority, certificate, key)?);
        Ok(Self { authority: authority.clone(), served })
    }

    /// Uses another certificate from the next handshake on.
    pub fn replace(&self, certificate: &CertificateDer<'static>, key: &KeyPair) -> Result<(), TlsError> {
        let served = certified(&self.authority, certificate, key)?;
        *self.served.write().unwrap_or_else(PoisonError::into_inner) = served;
        Ok(())
    }

    /// The certificate in use.
    pub fn certificate(&self) -> CertificateDer<'static> {
        let served = self.served.read().unwrap_or_else(PoisonError::into_inner);
        served.cert.first().expect("its chain begins with it").clone()
    }
}

impl ResolvesServerCert for OriginCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.served.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn certified(
    authority: &CertificateDer<'static>,
    certificate: &CertificateDer<'static>,
    key: &KeyPair,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = vec![certificate.clone(), authority.clone()];
    Ok(Arc::new(CertifiedKey::from_der(chain, private_key(key), &provider())?))
}

/// Configuration of the origin. A client certificate is optional (`Join` has none). A client that shows one
/// must have it from this authority and be admitted; otherwise the handshake fails with a specific alert. A
/// certificate outside its validity passes: the caller must check [`PeerIdentity::holds`] before it serves
/// anything but a renewal.
pub fn server_config(own: Arc<OriginCertificate>, admit: Admit) -> Result<Arc<ServerConfig>, TlsError> {
    let inner = WebPkiClientVerifier::builder_with_provider(roots(&own.authority)?, provider())
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(AdmittedAgents { inner, admit }))
        .with_cert_resolver(own);
    config.alpn_protocols = vec![ALPN.to_vec()];
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
            .with_root_certificates(roots(authority)?)
            .with_client_auth_cert(vec![certificate.clone()], private_key(key))?;
        Self::new(tree_id, config)
    }

    /// For `Join`: trusts the authority pinned by the token, for the tree's origin name. Shows no
    /// certificate.
    pub fn join(token: &JoinToken) -> Result<Self, TlsError> {
        let verifier = PinnedAuthority { pin: token.ca_fingerprint, provider: provider() };
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Self::new(token.tree_id, config)
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
    inner: Arc<dyn ClientCertVerifier>,
    admit: Admit,
}

impl fmt::Debug for AdmittedAgents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdmittedAgents")
    }
}

impl ClientCertVerifier for AdmittedAgents {
    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now);
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
                (self.inner.verify_client_cert(end_entity, intermediates, began)?, identity)
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
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
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

/// Finds the authority by fingerprint among the certificates sent by the origin, and verifies with it as the
/// only root.
#[derive(Debug)]
struct PinnedAuthority {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| fingerprint(certificate) == self.pin)
            .ok_or(CertificateError::UnknownIssuer)?;
        WebPkiServerVerifier::builder_with_provider(roots(authority)?, self.provider.clone())
            .build()
            .map_err(|_| CertificateError::UnknownIssuer)?
            .verify_server_cert(end_entity, &[], name, ocsp_response, now)
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
