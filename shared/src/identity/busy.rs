//! An origin's refusal of a verified connection for lack of room: an HTTP/2 GOAWAY in place of the
//! connection.
//!
//! The origin sends it as its very first bytes, in one TLS record, after the empty SETTINGS that HTTP/2
//! requires. A peer that does not decode it sees a connection that ends with `ENHANCE_YOUR_CALM`.

/// The resource that has run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// Connections without a certificate.
    #[error("too many nodes join from this address at once, or in all")]
    Joins,
    /// Connections of this agent.
    #[error("too many connections with this certificate: is it in use elsewhere?")]
    Connections,
}

const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
/// Frame type of GOAWAY.
const GOAWAY: u8 = 7;
/// HTTP/2 error code for a peer that generates excessive load.
const ENHANCE_YOUR_CALM: u32 = 0xb;

impl Busy {
    const ALL: [Self; 2] = [Self::Joins, Self::Connections];
    /// Bound of the encoded frames.
    pub const MAX_BYTES: usize = 64;

    fn debug_data(self) -> &'static [u8] {
        match self {
            Self::Joins => b"too many joins",
            Self::Connections => b"too many connections",
        }
    }

    /// Encodes the frames: at most [`Self::MAX_BYTES`].
    pub fn encode(self) -> Vec<u8> {
        let data = self.debug_data();
        // The last stream and the error code, 8 bytes, precede the data.
        let length = u8::try_from(8 + data.len()).expect("the texts are short");
        let mut frames = SETTINGS.to_vec();
        frames.extend([0, 0, length, GOAWAY, 0, 0, 0, 0, 0]);
        frames.extend(0u32.to_be_bytes());
        frames.extend(ENHANCE_YOUR_CALM.to_be_bytes());
        frames.extend(data);
        frames
    }

    /// Decodes the first bytes of a connection. `None` if they begin a regular HTTP/2 connection.
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
