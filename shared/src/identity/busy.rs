//! What an origin says to a verified connection that it has no room for: HTTP/2's GOAWAY, in place of a conversation.
//!
//! It comes as the origin's very first bytes, in one TLS record, after empty SETTINGS as HTTP/2 wants it. Who does not
//! look for it sees a connection that ends with `ENHANCE_YOUR_CALM`.

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// For one more connection without a certificate.
    #[error("too many nodes join from this address at once, or in all")]
    Joins,
    /// For one more connection of this agent.
    #[error("too many connections with this certificate: is it in use elsewhere?")]
    Connections,
}

/// An empty SETTINGS frame.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
/// GOAWAY's type.
const GOAWAY: u8 = 7;
/// HTTP/2's error code for a peer that asks too much.
const ENHANCE_YOUR_CALM: u32 = 0xb;

impl Busy {
    const ALL: [Self; 2] = [Self::Joins, Self::Connections];
    /// Holds the longest of them.
    pub const MAX_BYTES: usize = 64;

    fn debug_data(self) -> &'static [u8] {
        match self {
            Self::Joins => b"too many joins",
            Self::Connections => b"too many connections",
        }
    }

    /// The frames: at most [`Self::MAX_BYTES`].
    pub fn encode(self) -> Vec<u8> {
        let data = self.debug_data();
        // Last stream and error code come before the data.
        let length = u8::try_from(8 + data.len()).expect("the texts are short");
        let mut frames = SETTINGS.to_vec();
        frames.extend([0, 0, length, GOAWAY, 0, 0, 0, 0, 0]);
        frames.extend(0u32.to_be_bytes());
        frames.extend(ENHANCE_YOUR_CALM.to_be_bytes());
        frames.extend(data);
        frames
    }

    /// From the first bytes of a connection; `None` where they begin a conversation.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|busy| bytes.starts_with(&busy.encode()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood_and_fits() {
        for busy in Busy::ALL {
            let bytes = busy.encode();
            assert!(bytes.len() <= Busy::MAX_BYTES);
            assert_eq!(Busy::decode(&bytes), Some(busy));
            assert_eq!(Busy::decode(&bytes[..bytes.len() - 1]), None);
        }
        assert_eq!(
            Busy::decode(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 64]),
            None,
            "settings of a server"
        );
        assert_eq!(Busy::decode(b""), None);
    }

    #[test]
    fn it_is_a_goaway_frame() {
        let expected = b"\0\0\0\x04\0\0\0\0\0\0\0\x16\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0btoo many joins";
        assert_eq!(Busy::Joins.encode(), expected);
    }
}
