//! Asks an origin for its trust document, before the origin is trusted, and compares it with a fingerprint.
//!
//! The connection proves nothing about the origin. Nothing secret is sent on it, and only a document that the
//! pinned root key has signed is believed.

use std::time::Duration;

use bytes::Bytes;
use syncd_proto::v1;
use syncd_proto::v1::enrolment_client::EnrolmentClient;
use syncd_runtime::channel::{ConnectError, connect};
use syncd_runtime::tls::{ClientTls, TlsError};
use syncd_shared::TreeId;
use syncd_shared::identity::trust::TrustError;
use syncd_shared::identity::{RootFingerprint, SignedTrust};
use syncd_shared::limits::TRUST_DOCUMENT_MAX_BYTES;
use tonic::transport::Channel;

/// An answer larger than this is refused: the document, its field, and its frame.
const ANSWER_MAX_BYTES: usize = TRUST_DOCUMENT_MAX_BYTES + 64;

/// Time limit of an answer. A server that keeps the connection alive and never answers must not hold up
/// renewals.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Reason why there is no trust document.
#[derive(Debug, thiserror::Error)]
pub enum AskTrustError {
    /// The connection failed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The TLS configuration is invalid.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The origin has another tree, or is none.
    #[error("the origin shows no trust document")]
    Refused(#[from] tonic::Status),
    /// The answer is no document of this tree.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// The root key of the document that an origin shows, compared with a fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Document with this number, of that root key.
    Same(u32),
    /// Document with this number, of another root key.
    Other(u32),
}

impl Shown {
    pub(crate) fn of(document: &SignedTrust, root: RootFingerprint) -> Self {
        let is_same = document.document().root_fingerprint() == root;
        if is_same { Self::Same(document.number()) } else { Self::Other(document.number()) }
    }
}

/// Compares the document that the origin at `address` shows with a fingerprint. The origin proves nothing, so
/// the result is a hint for a person. Cancel safe.
pub(crate) async fn shown(
    address: &str,
    tree_id: TreeId,
    root: RootFingerprint,
) -> Result<Shown, AskTrustError> {
    let document = ask_trust(address, tree_id).await?;
    Ok(Shown::of(&SignedTrust::of_tree(&document, tree_id)?, root))
}

/// Asks the origin at `address` for its document. Cancel safe.
pub(crate) async fn ask_trust(address: &str, tree_id: TreeId) -> Result<Bytes, AskTrustError> {
    let channel = connect(address, ClientTls::untrusting(tree_id)?).await?;
    Ok(ask_trust_on(channel, tree_id).await?)
}

/// Like [`ask_trust`], on an open connection.
pub(crate) async fn ask_trust_on(channel: Channel, tree_id: TreeId) -> Result<Bytes, tonic::Status> {
    let request = v1::TrustRequest { tree_id: Bytes::copy_from_slice(tree_id.as_bytes()) };
    let mut client = EnrolmentClient::new(channel).max_decoding_message_size(ANSWER_MAX_BYTES);
    Ok(answer_within(client.trust(request)).await?.into_inner().document)
}

/// Waits for an answer, within [`ANSWER_TIMEOUT`].
pub(crate) async fn answer_within<T>(
    call: impl Future<Output = Result<T, tonic::Status>>,
) -> Result<T, tonic::Status> {
    let late = |_| Err(tonic::Status::deadline_exceeded("the origin does not answer"));
    tokio::time::timeout(ANSWER_TIMEOUT, call).await.unwrap_or_else(late)
}
