//! A connection to the origin: messages, and contents on their way. Calls block.

use std::cell::Cell;
use std::io::Write;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use syncd_proto::v1;
use syncd_proto::v1::collected_client::CollectedClient;
use syncd_proto::v1::collected_up::Message as Up;
use syncd_proto::v1::collected_upload::Message;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::engine::{Link, Transfer};
use super::error::CollectedError;
use super::files::next_piece;

const PIECE_BYTES: usize = 64 * 1024;
/// Small contents on their way at once: each takes a round trip. Larger ones go one by one, because uploads
/// that wait at the origin for their turn fill the window of the connection.
const AT_ONCE: usize = 8;
const SMALL_BYTES: u64 = 64 * 1024;
/// Pieces that wait for the connection.
const PIECES: usize = 4;

/// An open stream.
pub(super) struct Stream {
    pub runtime: Handle,
    pub messages: mpsc::Sender<v1::CollectedUp>,
    pub client: CollectedClient<Channel>,
}

impl Link for Stream {
    fn send(&mut self, message: Up) -> Result<(), CollectedError> {
        let message = v1::CollectedUp { message: Some(message) };
        self.runtime.block_on(self.messages.send(message)).map_err(|_| CollectedError::Disconnected)
    }

    fn upload(&mut self, contents: &mut [Transfer]) -> Vec<Result<(), CollectedError>> {
        self.runtime.block_on(all(contents, |transfer| send(self.client.clone(), transfer)))
    }

    fn download(&mut self, contents: &mut [Transfer]) -> Vec<Result<(), CollectedError>> {
        self.runtime.block_on(all(contents, |transfer| receive(self.client.clone(), transfer)))
    }
}

/// Makes all transfers. Once the connection is cut, no other is begun.
async fn all<'a, F: Future<Output = Result<(), CollectedError>>>(
    contents: &'a mut [Transfer],
    begin: impl Fn(&'a mut Transfer) -> F,
) -> Vec<Result<(), CollectedError>> {
    let is_cut = Cell::new(false);
    let transfer = |(index, transfer): (usize, &'a mut Transfer)| {
        let (is_cut, transfer) = (&is_cut, begin(transfer));
        async move {
            if is_cut.get() {
                return (index, Err(CollectedError::Disconnected));
            }
            let outcome = transfer.await;
            if outcome.as_ref().is_err_and(CollectedError::is_cut) {
                is_cut.set(true);
            }
            (index, outcome)
        }
    };
    let numbered = contents.iter_mut().enumerate();
    let (small, large): (Vec<_>, Vec<_>) = numbered.partition(|(_, one)| one.file.size <= SMALL_BYTES);
    let small = stream::iter(small).map(&transfer).buffer_unordered(AT_ONCE);
    let large = stream::iter(large).map(&transfer).buffer_unordered(1);
    let mut outcomes: Vec<_> = small.chain(large).collect().await;
    outcomes.sort_unstable_by_key(|(index, _)| *index);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

async fn send(mut client: CollectedClient<Channel>, transfer: &mut Transfer) -> Result<(), CollectedError> {
    let (messages, queue) = mpsc::channel(PIECES);
    // The call ends if the file can't be read, because then the content is incomplete.
    let (read, answer) =
        tokio::join!(send_pieces(transfer, messages), client.upload(ReceiverStream::new(queue)));
    read?;
    answer?;
    Ok(())
}

/// Ends early once nobody receives: the answer says why.
async fn send_pieces(
    transfer: &mut Transfer,
    messages: mpsc::Sender<v1::CollectedUpload>,
) -> Result<(), CollectedError> {
    let send = async |message| {
        let message = v1::CollectedUpload { message: Some(message) };
        messages.send(message).await.is_ok()
    };
    let mut goes_on = send(Message::Content(wanted(transfer))).await;
    let mut buffer = vec![0; PIECE_BYTES];
    while goes_on {
        let read = next_piece(&mut transfer.open, &mut buffer)?;
        let Some(piece) = buffer.get(..read).filter(|piece| !piece.is_empty()) else { break };
        goes_on = send(Message::Piece(Bytes::copy_from_slice(piece))).await;
    }
    Ok(())
}

async fn receive(
    mut client: CollectedClient<Channel>,
    transfer: &mut Transfer,
) -> Result<(), CollectedError> {
    let mut pieces = client.download(wanted(transfer)).await?.into_inner();
    let mut left = transfer.file.size;
    while let Some(v1::CollectedPiece { piece }) = pieces.message().await? {
        left = left.checked_sub(piece.len() as u64).ok_or(CollectedError::Content)?;
        transfer.open.write_all(&piece).map_err(CollectedError::Read)?;
    }
    if left == 0 { Ok(()) } else { Err(CollectedError::Content) }
}

fn wanted(Transfer { name, file, .. }: &Transfer) -> v1::CollectedContent {
    let content = Bytes::copy_from_slice(file.content.as_bytes());
    v1::CollectedContent { directory: name.to_string(), content, size: file.size }
}
