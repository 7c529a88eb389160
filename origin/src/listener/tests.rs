//! The handshake, over loopback, with tonic at both ends.

use std::sync::Mutex;

use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use syncd_proto::v1;
use syncd_proto::v1::enrolment_client::EnrolmentClient;
use syncd_proto::v1::enrolment_server::{Enrolment, EnrolmentServer};
use syncd_runtime::channel::RefusedReason;
use syncd_runtime::channel::{ConnectError, connect};
use syncd_runtime::tls::ClientTls;
use syncd_runtime::tls::OriginTls;
use syncd_shared::TreeId;
use syncd_shared::identity::authority::{Authority, certificate_request, generate_key};
use syncd_shared::identity::{PeerIdentity, Serial};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::*;
use crate::keys::Keys;

/// Answers with what the listener says of the caller.
struct WhoAmI;

#[tonic::async_trait]
impl Enrolment for WhoAmI {
    async fn trust(&self, _: Request<v1::TrustRequest>) -> Result<Response<v1::TrustDocument>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let info = request.extensions().get::<ConnectionInfo>().unwrap();
        assert!(info.identity.is_none());
        Ok(Response::new(v1::JoinResponse::default()))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let info = request.extensions().get::<ConnectionInfo>().unwrap();
        let identity = info.identity.as_ref().ok_or_else(|| Status::unauthenticated("no certificate"))?;
        Ok(Response::new(v1::RenewResponse { certificate: identity.name.to_string().into() }))
    }
}

#[tokio::test]
async fn a_handshake_that_panics_gives_its_place_back() {
    let (peers, key) = (Peers::default(), IpAddr::from([192, 0, 2, 1]));
    for _ in 0..WAITING_PER_PEER_MAX + 1 {
        let (waiting, _) = peers.admit(key).expect("a place");
        let handshake = tokio::spawn(async move {
            let _waiting = waiting;
            std::panic::resume_unwind(Box::new("a defect"));
        });
        assert!(handshake.await.unwrap_err().is_panic());
    }
    assert!(peers.0.lock().unwrap().is_empty());
    let waiting: Vec<_> = (0..WAITING_PER_PEER_MAX).map(|_| peers.admit(key).expect("a place")).collect();
    assert!(peers.admit(key).is_none());
    drop(waiting);
    assert!(peers.admit(key).is_some());
}

struct Origin {
    _data: tempfile::TempDir,
    keys: Keys,
    address: String,
    revoked: Arc<Mutex<Vec<Serial>>>,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<()>,
}

impl Origin {
    async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        // Older than any certificate that the tests issue.
        let keys = Keys::create_at(data.path(), None, now() - time::Duration::days(400)).unwrap();
        let revoked = Arc::new(Mutex::new(Vec::new()));
        let list = revoked.clone();
        let admit = Arc::new(move |peer: &PeerIdentity| !list.lock().unwrap().contains(&peer.serial));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stop = CancellationToken::new();
        let incoming = incoming(listener, keys.server_tls(admit).unwrap());
        let serving = server_builder()
            .add_service(EnrolmentServer::new(WhoAmI))
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        let served = tokio::spawn(async move { serving.await.unwrap() });
        Self { _data: data, keys, address, revoked, stop, served }
    }

    fn agent(&self, authority: &Authority, issued: OffsetDateTime) -> (ClientTls, PeerIdentity) {
        self.agent_named("web1", authority, issued)
    }

    fn agent_named(
        &self,
        name: &str,
        authority: &Authority,
        issued: OffsetDateTime,
    ) -> (ClientTls, PeerIdentity) {
        let key = generate_key().unwrap();
        let request = certificate_request(&key).unwrap();
        let (certificate, identity) =
            authority.issue_agent(&name.parse().unwrap(), &request, issued).unwrap();
        let ca = self.keys.authority();
        (ClientTls::enrolled(self.keys.tree_id(), ca.certificate(), &certificate, &key).unwrap(), identity)
    }

    fn joining(&self) -> ClientTls {
        ClientTls::joining(self.keys.tree_id(), self.keys.authority().certificate()).unwrap()
    }

    async fn refused(&self, tls: ClientTls) -> RefusedReason {
        match connect(&self.address, tls).await {
            Err(ConnectError::Refused { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    }
}

async fn whoami(tls: ClientTls, address: &str) -> Result<String, Status> {
    let mut client = EnrolmentClient::new(connect(address, tls).await.unwrap());
    let answer = client.renew(v1::RenewRequest::default()).await?;
    Ok(String::from_utf8(answer.into_inner().certificate.to_vec()).unwrap())
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

#[tokio::test]
async fn an_enrolled_agent_is_known_by_its_certificate() {
    let origin = Origin::start().await;
    let (tls, _) = origin.agent(&origin.keys.authority(), now());
    assert_eq!(whoami(tls, &origin.address).await.unwrap(), "web1");
}

#[tokio::test]
async fn a_join_client_is_served_without_identity_and_pins_the_authority() {
    let origin = Origin::start().await;
    let channel = connect(&origin.address, origin.joining()).await.unwrap();
    let mut client = EnrolmentClient::new(channel);
    client.join(v1::JoinRequest::default()).await.unwrap();
    let renewed = client.renew(v1::RenewRequest::default()).await;
    assert_eq!(renewed.unwrap_err().code(), tonic::Code::Unauthenticated);

    let tree_id = origin.keys.tree_id();
    let other = Authority::create(tree_id, now()).unwrap();
    let wrong_authority = ClientTls::joining(tree_id, other.certificate()).unwrap();
    let other_tree = TreeId::from_bytes([1; 16]);
    let wrong_tree = ClientTls::joining(other_tree, origin.keys.authority().certificate()).unwrap();
    for wrong in [wrong_authority, wrong_tree] {
        let refused = connect(&origin.address, wrong).await;
        assert!(matches!(refused, Err(ConnectError::WrongOrigin { .. })), "{refused:?}");
    }
    // Without any trust, as for the trust document.
    assert!(connect(&origin.address, ClientTls::untrusting(tree_id).unwrap()).await.is_ok());
}

#[tokio::test]
async fn a_foreign_or_revoked_certificate_is_refused_in_the_handshake_whether_it_holds_or_not() {
    let origin = Origin::start().await;
    let foreign = Authority::create(origin.keys.tree_id(), now() - time::Duration::days(400)).unwrap();
    for days in [0, -31, -300, 40] {
        let issued = now() + time::Duration::days(days);
        let (tls, _) = origin.agent(&foreign, issued);
        assert_eq!(origin.refused(tls).await, RefusedReason::OtherAuthority, "{days} days");

        let (tls, identity) = origin.agent(&origin.keys.authority(), issued);
        assert_eq!(whoami(tls.clone(), &origin.address).await.unwrap(), "web1", "{days} days");
        origin.revoked.lock().unwrap().push(identity.serial);
        assert_eq!(origin.refused(tls).await, RefusedReason::Revoked, "{days} days");
    }
}

#[tokio::test]
async fn an_agent_refuses_another_origin_and_an_agent_that_poses_as_one() {
    let (origin, other) = (Origin::start().await, Origin::start().await);
    let (tls, _) = origin.agent(&origin.keys.authority(), now());
    let refused = connect(&other.address, tls.clone()).await;
    assert!(matches!(refused, Err(ConnectError::WrongOrigin { .. })), "{refused:?}");

    // A joined agent's certificate is of the right authority, but for clients and in another name.
    let key = generate_key().unwrap();
    let request = certificate_request(&key).unwrap();
    let authority = origin.keys.authority();
    let name = "web2".parse().unwrap();
    let (certificate, _) = authority.issue_agent(&name, &request, now()).unwrap();
    let own = OriginTls::new(authority.certificate(), &certificate, &key, &[]).unwrap();
    let config = syncd_runtime::tls::server_config(Arc::new(own), Arc::new(|_: &PeerIdentity| true));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let _incoming = incoming(listener, config.unwrap());
    for tls in [tls, origin.joining()] {
        let refused = connect(&address, tls).await;
        assert!(matches!(refused, Err(ConnectError::WrongOrigin { .. })), "{refused:?}");
    }
}

/// Trusts anything: what an attacker's client does.
#[derive(Debug)]
struct Credulous;

impl rustls::client::danger::ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

async fn raw_handshake(
    origin: &Origin,
    version: &'static rustls::SupportedProtocolVersion,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = generate_key().unwrap();
    let request = certificate_request(&key).unwrap();
    let (certificate, _) =
        origin.keys.authority().issue_agent(&"web1".parse().unwrap(), &request, now()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_client_auth_cert(vec![certificate], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .unwrap();
    let name = ServerName::try_from(origin.keys.tree_id().origin_name()).unwrap();
    let tcp = TcpStream::connect(&origin.address).await.unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let origin = Origin::start().await;
    let error = raw_handshake(&origin, &rustls::version::TLS12).await.unwrap_err();
    let tls = error.get_ref().unwrap().downcast_ref::<rustls::Error>();
    let expected = rustls::Error::AlertReceived(rustls::AlertDescription::ProtocolVersion);
    assert_eq!(tls, Some(&expected));
    assert!(raw_handshake(&origin, &rustls::version::TLS13).await.is_ok());
}

#[tokio::test]
async fn plaintext_is_refused_and_the_loop_goes_on() {
    let origin = Origin::start().await;
    for bytes in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"GET / HTTP/1.1\r\n\r\n", &[0; 64], b""] {
        let mut tcp = TcpStream::connect(&origin.address).await.unwrap();
        tcp.write_all(bytes).await.unwrap();
        tcp.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // A reset also counts as an end.
        let _ = tcp.read_to_end(&mut answer).await;
        assert!(answer.len() < 16, "{answer:?}");
    }
    let (tls, _) = origin.agent(&origin.keys.authority(), now());
    assert_eq!(whoami(tls, &origin.address).await.unwrap(), "web1");
}

#[tokio::test]
async fn silent_connections_take_no_slot_and_are_dropped() {
    let origin = Origin::start().await;
    let mut silent = Vec::new();
    for _ in 0..4 * HANDSHAKES_PER_PEER_MAX {
        silent.push(TcpStream::connect(&origin.address).await.unwrap());
    }
    let (tls, _) = origin.agent(&origin.keys.authority(), now());
    assert_eq!(whoami(tls, &origin.address).await.unwrap(), "web1");
    for mut connection in silent {
        let mut said = Vec::new();
        let ended = tokio::time::timeout(HANDSHAKE_TIMEOUT, connection.read_to_end(&mut said));
        assert_eq!(ended.await.expect("it is dropped").unwrap_or_default(), 0);
    }
}

#[tokio::test]
async fn half_a_hello_holds_its_slot_for_a_moment_alone() {
    let origin = Origin::start().await;
    let mut slow = Vec::new();
    for _ in 0..HANDSHAKES_PER_PEER_MAX {
        let mut connection = TcpStream::connect(&origin.address).await.unwrap();
        connection.write_all(&[0x16, 3, 1, 2]).await.unwrap();
        slow.push(connection);
    }
    let (tls, _) = origin.agent(&origin.keys.authority(), now());
    assert_eq!(whoami(tls, &origin.address).await.unwrap(), "web1");
}

#[tokio::test]
async fn a_fleet_behind_one_address_connects_at_once() {
    let origin = Origin::start().await;
    let mut agents = tokio::task::JoinSet::new();
    for number in 0..4 * HANDSHAKES_PER_PEER_MAX {
        let (tls, _) = origin.agent_named(&format!("web{number}"), &origin.keys.authority(), now());
        let address = origin.address.clone();
        agents.spawn(async move { whoami(tls, &address).await });
    }
    while let Some(served) = agents.join_next().await {
        assert!(served.unwrap().unwrap().starts_with("web"));
    }
}

#[tokio::test]
async fn an_unreachable_or_unnamed_origin_is_told_apart() {
    let origin = Origin::start().await;
    let tls = origin.joining();
    origin.stop.cancel();
    origin.served.await.unwrap();
    let refused = connect(&origin.address, tls.clone()).await;
    assert!(matches!(refused, Err(ConnectError::Unreachable { .. })), "{refused:?}");
    let refused = connect("no-port", tls.clone()).await;
    assert!(matches!(refused, Err(ConnectError::Resolve { .. })), "{refused:?}");

    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = plain.local_addr().unwrap().to_string();
    let answer = tokio::spawn(async move {
        let (mut tcp, _) = plain.accept().await.unwrap();
        tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let _ = tcp.read_to_end(&mut Vec::new()).await;
    });
    let refused = connect(&address, tls).await;
    assert!(matches!(refused, Err(ConnectError::NotAnOrigin { .. })), "{refused:?}");
    answer.await.unwrap();
}

#[tokio::test]
async fn any_address_will_do_also_of_ipv6() {
    let origin = Origin::start().await;
    let (tls, _) = origin.agent(&origin.keys.authority(), now());
    let port = origin.address.rsplit_once(':').unwrap().1;
    assert_eq!(whoami(tls.clone(), &format!("localhost:{port}")).await.unwrap(), "web1");

    let admit = Arc::new(|_: &PeerIdentity| true);
    let Ok(listener) = TcpListener::bind("[::1]:0").await else { return };
    let address = listener.local_addr().unwrap().to_string();
    let incoming = incoming(listener, origin.keys.server_tls(admit).unwrap());
    let serving = server_builder().add_service(EnrolmentServer::new(WhoAmI)).serve_with_incoming(incoming);
    let served = tokio::spawn(serving);
    assert_eq!(whoami(tls, &address).await.unwrap(), "web1");
    served.abort();
}

#[tokio::test]
async fn one_connection_too_many_of_an_agent_is_told_so_until_another_ends() {
    let origin = Origin::start().await;
    let (tls, _) = origin.agent(&origin.keys.authority(), now());
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS_PER_AGENT_MAX {
        open.push(connect(&origin.address, tls.clone()).await.unwrap());
    }
    let refused = connect(&origin.address, tls.clone()).await;
    assert!(matches!(refused, Err(ConnectError::Busy { reason: Busy::Connections, .. })), "{refused:?}");
    let (other, _) = origin.agent_named("web2", &origin.keys.authority(), now());
    assert_eq!(whoami(other, &origin.address).await.unwrap(), "web2");
    drop(open.pop());
    let again = async {
        while connect(&origin.address, tls.clone()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), again).await.unwrap();
}

#[tokio::test]
async fn who_joins_beside_too_many_others_is_told_so() {
    let origin = Origin::start().await;
    let tls = origin.joining();
    let mut open = Vec::new();
    for _ in 0..JOINS_PER_PEER_MAX {
        open.push(connect(&origin.address, tls.clone()).await.unwrap());
    }
    let refused = connect(&origin.address, tls).await;
    assert!(matches!(refused, Err(ConnectError::Busy { reason: Busy::Joins, .. })), "{refused:?}");
    let (agent, _) = origin.agent(&origin.keys.authority(), now());
    assert_eq!(whoami(agent, &origin.address).await.unwrap(), "web1", "who has joined is not concerned");
}

#[tokio::test]
async fn a_connection_that_ends_before_it_is_set_up_is_no_unreachable_origin() {
    let origin = Origin::start().await;
    let (tls, _) = origin.agent(&origin.keys.authority(), now());
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = deaf.local_addr().unwrap().to_string();
    let (closed, ()) = tokio::join!(connect(&address, tls.clone()), async {
        drop(deaf.accept().await.unwrap());
    });
    assert!(matches!(closed, Err(ConnectError::Closed { .. })), "{closed:?}");
}
