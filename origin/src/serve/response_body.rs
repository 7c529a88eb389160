//! Bodies of streamed answers: gRPC messages, each in memory of its own that is freed once it is sent.
//!
//! tonic encodes all messages of a stream into one buffer, which keeps the size of its largest message as
//! long as the stream is open: a gigabyte with a thousand agents. Handlers therefore give tonic a stream
//! without messages and attach their own body to the response ([`attach_body`]). It replaces tonic's body on
//! the way out ([`swap_in_body`]).

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes};
use http::HeaderMap;
use http_body::Frame;
use prost::Message;
use syncd_shared::limits::FETCH_MESSAGE_MAX_BYTES;
use tokio_stream::{Empty, Stream};
use tonic::body::Body;
use tonic::{Code, Response, Status};

use super::replication::Outgoing;

/// Length of the prefix of a gRPC message: a compression flag and the length.
const PREFIX_BYTES: usize = 5;

/// A stream without messages; they are in the attached body.
pub(super) type NoMessages<T> = Empty<Result<T, Status>>;

/// A body attached to a response. `Clone`, because extensions of a response must be.
#[derive(Clone)]
struct Handed(Arc<Mutex<Option<Body>>>);

struct Messages<T> {
    outgoing: Outgoing<T>,
    ended: bool,
}

/// Makes a response with an attached body of these messages.
pub(super) fn attach_body<T: Message + 'static>(outgoing: Outgoing<T>) -> Response<NoMessages<T>> {
    let mut response = Response::new(tokio_stream::empty());
    let body = Body::new(Messages { outgoing, ended: false });
    response.extensions_mut().insert(Handed(Arc::new(Mutex::new(Some(body)))));
    response
}

/// Replaces the body of a response with the attached one, if any.
pub(super) fn swap_in_body(mut response: http::Response<Body>) -> http::Response<Body> {
    if let Some(Handed(handed)) = response.extensions_mut().remove::<Handed>()
        && let Some(body) = handed.lock().unwrap_or_else(PoisonError::into_inner).take()
    {
        *response.body_mut() = body;
    }
    response
}

impl<T: Message> http_body::Body for Messages<T> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = ready!(Pin::new(&mut self.outgoing).poll_next(context));
        let status = match next.map(|message| encode(&message?)) {
            Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(message)))),
            Some(Err(status)) => status,
            None => Status::new(Code::Ok, ""),
        };
        self.ended = true;
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

fn encode(message: &impl Message) -> Result<Bytes, Status> {
    let length = message.encoded_len();
    if length > FETCH_MESSAGE_MAX_BYTES {
        return Err(Status::internal(format!(
            "a message of {length} bytes: the limit is {FETCH_MESSAGE_MAX_BYTES}"
        )));
    }
    let mut encoded = Vec::with_capacity(length.saturating_add(PREFIX_BYTES));
    encoded.put_u8(0);
    encoded.put_u32(length as u32);
    message.encode(&mut encoded).map_err(|error| Status::internal(error.to_string()))?;
    Ok(encoded.into())
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http_body::Body as _;
    use syncd_proto::v1;

    use super::*;
    use crate::serve::error::ServeError;

    async fn next(body: &mut Body) -> Option<Frame<Bytes>> {
        poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await.map(Result::unwrap)
    }

    #[tokio::test]
    async fn a_message_has_memory_of_its_own_and_no_more_than_it_needs() {
        let (sender, fail, outgoing) = Outgoing::channel();
        // The response as tonic would send it.
        let (_, _, extensions) = attach_body(outgoing).into_parts();
        let mut response = http::Response::new(Body::empty());
        *response.extensions_mut() = extensions;
        let mut body = swap_in_body(response).into_body();
        for bytes in [1_000_000, 10] {
            let stored = v1::StoredFrame { compressed: vec![7; bytes].into(), ..Default::default() };
            let frame = v1::FetchFrame { item: 3, frame: Some(v1::fetch_frame::Frame::Stored(stored)) };
            sender.send(frame.clone()).await.unwrap();
            let data = next(&mut body).await.unwrap().into_data().unwrap();
            assert_eq!(data[1..5], (frame.encoded_len() as u32).to_be_bytes());
            assert_eq!(v1::FetchFrame::decode(&data[5..]).unwrap(), frame);
            let length = data.len();
            let memory = Vec::from(data.try_into_mut().expect("nobody else has it"));
            assert_eq!(memory.capacity(), length);
        }
        fail.send(ServeError::Stopping).unwrap();
        let trailers = next(&mut body).await.unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], (Code::Unavailable as i32).to_string());
        assert!(next(&mut body).await.is_none());
    }
}
