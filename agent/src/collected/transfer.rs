//! A connection to the origin: messages, and contents on their way. Calls block.

use std::fs::File;
use std::io::Write;

use bytes::Bytes;
use syncd_proto::v1;
use syncd_proto::v1::collected_client::CollectedClient;
use syncd_proto::v1::collected_up::Message as Up;
use syncd_proto::v1::collected_upload::Message;
use syncd_shared::collected::{CollectedName, FileState};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::engine::Link;
use super::error::CollectedError;
use super::files::next_piece;

const PIECE_BYTES: usize = 64 * 1024;
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

    fn upload(
        &mut self,
        name: &CollectedName,
        file: &FileState,
        from: &mut File,
    ) -> Result<(), CollectedError> {
        let (pieces, queue) = mpsc::channel(PIECES);
        let mut client = self.client.clone();
        let answer = self.runtime.spawn(async move { client.upload(ReceiverStream::new(queue)).await });
        let send = |message| {
            let message = v1::CollectedUpload { message: Some(message) };
            self.runtime.block_on(pieces.send(message)).is_ok()
        };
        let mut goes_on = send(Message::Content(wanted(name, file)));
        let mut buffer = vec![0; PIECE_BYTES];
        while goes_on {
            let read = next_piece(from, &mut buffer)?;
            let Some(piece) = buffer.get(..read).filter(|piece| !piece.is_empty()) else { break };
            goes_on = send(Message::Piece(Bytes::copy_from_slice(piece)));
        }
        drop(pieces);
        self.runtime.block_on(answer).map_err(|_| CollectedError::Disconnected)??;
        Ok(())
    }

    fn download(
        &mut self,
        name: &CollectedName,
        file: &FileState,
        to: &mut File,
    ) -> Result<(), CollectedError> {
        let client = &mut self.client;
        self.runtime.block_on(async {
            let mut pieces = client.download(wanted(name, file)).await?.into_inner();
            let mut left = file.size;
            while let Some(v1::CollectedPiece { piece }) = pieces.message().await? {
                left = left.checked_sub(piece.len() as u64).ok_or(CollectedError::Content)?;
                to.write_all(&piece).map_err(CollectedError::Read)?;
            }
            if left == 0 { Ok(()) } else { Err(CollectedError::Content) }
        })
    }
}

fn wanted(name: &CollectedName, file: &FileState) -> v1::CollectedContent {
    let content = Bytes::copy_from_slice(file.content.as_bytes());
    v1::CollectedContent { directory: name.to_string(), content, size: file.size }
}
