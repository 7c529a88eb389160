//! Fetches bulk bytes, checks their form, counts them and discards them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use prost::Message as _;
use syncd_proto::v1;
use syncd_proto::v1::fetch_request::Request;
use syncd_proto::v1::replication_client::ReplicationClient;
use syncd_runtime::bucket::BucketUrl;
use syncd_runtime::channel::connect;
use syncd_runtime::published::{ReadError, Reader};
use syncd_runtime::tls::ClientTls;
use syncd_shared::directory::Page;
use syncd_shared::limits::{CONTROL_MESSAGE_MAX_BYTES, FETCH_MESSAGE_MAX_BYTES, OBJECTS_BATCH_MAX};
use syncd_shared::wire::{FEATURE_DELTAS, Frame, ObjectsBatch};
use syncd_shared::{ContentHash, Kind, RootHash, SignedGeneration};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Amount received.
#[derive(Debug, Default, Clone, Copy)]
pub struct Fetched {
    /// Bytes of the encoded messages.
    pub bytes: u64,
}

/// Fetches the update from `live` to `target` over a separate connection. Without `live`, takes the general
/// path.
pub async fn fetch(
    address: &str,
    tls: ClientTls,
    live: Option<RootHash>,
    target: &SignedGeneration,
) -> Result<Fetched, Status> {
    let channel = connect(address, tls).await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut client = ReplicationClient::new(channel)
        .max_decoding_message_size(FETCH_MESSAGE_MAX_BYTES)
        .max_encoding_message_size(CONTROL_MESSAGE_MAX_BYTES);
    let (requests, receiver) = mpsc::channel(2);
    let mut fetched = Fetched::default();
    let ask = async |request| {
        requests.send(v1::FetchRequest { request: Some(request) }).await.map_err(|_| broken())
    };
    let root = target.root_hash();
    let Some(live) = live else {
        let top = target.generation().root.object;
        let batch = ObjectsBatch { directories: vec![top], recursive: true, ..ObjectsBatch::default() };
        ask(Request::Objects(batch.to_message(root))).await?;
        let mut answer = client.fetch(ReceiverStream::new(receiver)).await?.into_inner();
        let mut files = Vec::new();
        receive(&mut answer, &mut fetched, |frame| files_of(frame, &mut files)).await?;
        files.sort_unstable();
        files.dedup();
        for files in files.chunks(OBJECTS_BATCH_MAX) {
            let batch = ObjectsBatch { files: files.to_vec(), ..ObjectsBatch::default() };
            ask(Request::Objects(batch.to_message(root))).await?;
            receive(&mut answer, &mut fetched, |_| Ok(())).await?;
        }
        return Ok(fetched);
    };
    let update = v1::UpdateRequest {
        from_root: Bytes::copy_from_slice(live.as_bytes()),
        to_root: Bytes::copy_from_slice(root.as_bytes()),
        first_item: 0,
        features: vec![FEATURE_DELTAS.to_owned()],
    };
    ask(Request::Update(update)).await?;
    let mut answer = client.fetch(ReceiverStream::new(receiver)).await?.into_inner();
    receive(&mut answer, &mut fetched, |_| Ok(())).await?;
    Ok(fetched)
}

/// Receives one answer to its end.
async fn receive(
    answer: &mut Streaming<v1::FetchFrame>,
    fetched: &mut Fetched,
    mut each: impl FnMut(&Frame) -> Result<(), Status>,
) -> Result<(), Status> {
    loop {
        let message = answer.message().await?.ok_or_else(broken)?;
        fetched.bytes += message.encoded_len() as u64;
        let frame = Frame::from_message(message).map_err(|error| Status::data_loss(error.to_string()))?;
        if let Frame::End { missing, .. } = &frame {
            return if missing.is_empty() { Ok(()) } else { Err(Status::data_loss("content is missing")) };
        }
        each(&frame)?;
    }
}

fn files_of(frame: &Frame, files: &mut Vec<ContentHash>) -> Result<(), Status> {
    let Frame::Directories(objects) = frame else { return Ok(()) };
    for object in objects {
        let page = Page::decode(object).map_err(|error| Status::data_loss(error.to_string()))?;
        files.extend(page.entries().iter().filter_map(|entry| match entry.kind {
            // An empty file needs no content.
            Kind::File { content, size } if size > 0 => Some(content),
            _ => None,
        }));
    }
    Ok(())
}

fn broken() -> Status {
    Status::unavailable("the answer broke off")
}

/// Reads the update from `live` where the announcement says. `None`: the origin has to be asked.
pub async fn fetch_located(url: String, live: RootHash, target: SignedGeneration) -> Option<Fetched> {
    let reader = reader(&url)?;
    let read = tokio::task::spawn_blocking(move || read_update(&reader, live, &target));
    match read.await {
        Ok(Ok(fetched)) => fetched,
        Ok(Err(error)) => {
            eprintln!("{url}: {error}: {:?}", std::error::Error::source(&error));
            None
        }
        Err(_) => None,
    }
}

fn read_update(
    reader: &Reader,
    live: RootHash,
    target: &SignedGeneration,
) -> Result<Option<Fetched>, ReadError> {
    let release = reader.release_of(target)?;
    let Some(update) = release.updates.iter().find(|update| update.from == live) else { return Ok(None) };
    let index = reader.update(update)?;
    let (mut places, mut fetched) = (index.frames(), Fetched::default());
    while !places.is_empty() {
        let frames = reader.update_frames(&update.name, places)?;
        places = &places[frames.len()..];
        for frame in frames {
            fetched.bytes += frame.len() as u64;
            let Ok(message) = v1::FetchFrame::decode(frame) else { return Ok(None) };
            Frame::from_message(message)?;
        }
    }
    Ok(Some(fetched))
}

/// One client for each place, whose connections all agents share.
fn reader(url: &str) -> Option<Reader> {
    static READERS: Mutex<Option<HashMap<String, Reader>>> = Mutex::new(None);
    let mut readers = READERS.lock().unwrap_or_else(PoisonError::into_inner);
    let readers = readers.get_or_insert_with(HashMap::new);
    if let Some(reader) = readers.get(url) {
        return Some(reader.clone());
    }
    let bucket = url.parse::<BucketUrl>().ok()?.open().ok()?;
    readers.insert(url.to_owned(), Reader::new(bucket));
    readers.get(url).cloned()
}
