//! Reads the fields of a message one by one.
//!
//! A decoded message can take a hundred times its encoded size: two bytes are an empty message of five
//! fields. If a peer determines the size of a message, repeated fields are therefore counted, or decoded and
//! checked one by one.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::WireError;

/// Tags and bytes of all length-delimited fields; others are skipped. Ends after the first error.
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    /// Counts the fields with one of these tags.
    pub(crate) fn count_of(message: &'a [u8], tags: &[u32]) -> Result<usize, WireError> {
        Self::of(message).try_fold(0usize, |count, field| {
            let (tag, _) = field?;
            Ok(count.saturating_add(usize::from(tags.contains(&tag))))
        })
    }

    fn advance(&mut self) -> Result<Option<(u32, &'a [u8])>, WireError> {
        while !self.0.is_empty() {
            let (tag, wire_type) = decode_key(&mut self.0)?;
            if wire_type != WireType::LengthDelimited {
                skip_field(wire_type, tag, &mut self.0, DecodeContext::default())?;
                continue;
            }
            let length = usize::try_from(decode_varint(&mut self.0)?).unwrap_or(usize::MAX);
            let cut = || WireError::Length { expected: length, actual: self.0.len() };
            let (field, rest) = self.0.split_at_checked(length).ok_or_else(cut)?;
            self.0 = rest;
            return Ok(Some((tag, field)));
        }
        Ok(None)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, &'a [u8]), WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        let field = self.advance().transpose();
        if matches!(field, Some(Err(_))) {
            self.0 = &[];
        }
        field
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use syncd_proto::v1;

    #[test]
    fn fields_with_a_length_come_in_their_order_and_others_do_not() {
        let piece = v1::DeltaPiece { file: b"abc"[..].into(), file_offset: 7, length_bytes: 9 };
        let copy = v1::DeltaCopy { file: b"d"[..].into(), length_bytes: 300, ..Default::default() };
        let fields = |bytes: &[u8]| {
            Fields::of(bytes)
                .map(|f| f.map(|(tag, bytes)| (tag, bytes.to_vec())))
                .collect::<Result<Vec<_>, _>>()
        };
        assert_eq!(fields(&piece.encode_to_vec()).expect("whole"), [(1, b"abc".to_vec())]);
        let places = v1::DeltaPlaces {
            pieces: vec![piece.clone(), piece.clone()],
            copies: vec![copy],
            ..Default::default()
        };
        let bytes = places.encode_to_vec();
        let whole = fields(&bytes).expect("whole");
        assert_eq!(whole[1], (2, piece.encode_to_vec()));
        assert_eq!(Fields::count_of(&bytes, &[2]).expect("whole"), 2);
        assert_eq!(Fields::count_of(&bytes, &[2, 3]).expect("whole"), 3);
        assert!(fields(&bytes[..bytes.len() - 1]).is_err());
        assert_eq!(Fields::of(&bytes[..bytes.len() - 1]).filter(Result::is_err).count(), 1, "it ends");
    }
}
