//! Statistics of an encoded update for the log: where its bytes go.

use prost::Message as _;
use syncd_proto::v1::DeltaEncoding;
use syncd_proto::v1::fetch_frame::Frame as Message;

/// Number and bytes of messages, by kind.
#[derive(Debug, Default)]
pub(super) struct Tally {
    directories: Sum,
    local: Sum,
    stored: Sum,
    by_zstd: Sum,
    by_rsync: Sum,
    /// Bytes of the positions of bases, pieces and copies in deltas.
    places_bytes: usize,
}

#[derive(Debug, Default)]
#[allow(dead_code, reason = "shown by Debug")]
struct Sum {
    messages: u64,
    bytes: usize,
}

impl Tally {
    pub(super) fn count(&mut self, message: &Message) {
        let (sum, bytes) = match message {
            Message::Directories(m) => (&mut self.directories, m.encoded_len()),
            Message::Patches(m) => (&mut self.directories, m.encoded_len()),
            Message::Local(m) => (&mut self.local, m.encoded_len()),
            Message::Stored(m) => (&mut self.stored, m.encoded_len()),
            Message::Delta(m) => {
                self.places_bytes += m.places.len();
                let sum = match m.encoding() {
                    DeltaEncoding::Rsync => &mut self.by_rsync,
                    _ => &mut self.by_zstd,
                };
                (sum, m.encoded_len())
            }
            Message::End(_) => return,
        };
        sum.messages += 1;
        sum.bytes += bytes;
    }
}
