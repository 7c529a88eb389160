//! Ed25519 keys and signatures, made and verified by ring.
//!
//! Verification is strict. ring requires S below the group order and compares R byte for byte, so a signature
//! has one form. [`VerifyingKey`] also refuses keys in two encodings and keys of small order, with which one
//! signature holds for several messages. A key that is no point of the curve is accepted here, and verifies
//! nothing.

use std::fmt;

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

/// The secret half of a key pair.
pub struct SigningKey {
    seed: [u8; 32],
    pair: Ed25519KeyPair,
}

impl SigningKey {
    /// The key of a seed of 32 random bytes.
    pub fn from_bytes(seed: &[u8; 32]) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).expect("every seed of 32 bytes is one of a key");
        Self { seed: *seed, pair }
    }

    /// The seed.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.seed
    }

    pub fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey(self.pair.public_key().as_ref().try_into().expect("a public key has 32 bytes"))
    }

    /// Signs a message. The same message gets the same signature.
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.pair.sign(message).as_ref().try_into().expect("a signature has 64 bytes"))
    }
}

impl Clone for SigningKey {
    fn clone(&self) -> Self {
        Self::from_bytes(&self.seed)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({:?})", self.verifying_key())
    }
}

/// The public half of a key pair.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VerifyingKey([u8; 32]);

/// The bytes are no canonical encoding of a key, or the key has small order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a public key for signatures")]
pub struct KeyError;

/// The signature is not one of this message by this key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not hold")]
pub struct SignatureError;

impl VerifyingKey {
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let y = without_sign(*bytes);
        if is_canonical(&y) && !SMALL_ORDER.contains(&y) { Ok(Self(*bytes)) } else { Err(KeyError) }
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), SignatureError> {
        UnparsedPublicKey::new(&ED25519, self.0).verify(message, &signature.0).map_err(|_| SignatureError)
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({})", data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// A signature, not verified yet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; 64]);

impl Signature {
    pub fn from_bytes(bytes: &[u8; 64]) -> Self {
        Self(*bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({})", data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// The y coordinates, little endian, of the eight points whose order divides 8: 1, 0, -1, and two of order 8.
const SMALL_ORDER: [[u8; 32]; 5] = [
    single(1),
    single(0),
    y_below_p(0xec),
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5,
        0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a,
        0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ],
];

const fn single(low: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[0] = low;
    bytes
}

/// A number close to p = 2^255 - 19, whose lowest byte is 0xed.
const fn y_below_p(low: u8) -> [u8; 32] {
    let mut bytes = [0xff; 32];
    bytes[0] = low;
    bytes[31] = 0x7f;
    bytes
}

fn without_sign(mut bytes: [u8; 32]) -> [u8; 32] {
    bytes[31] &= 0x7f;
    bytes
}

/// Whether y is below p.
fn is_canonical(y: &[u8; 32]) -> bool {
    let is_high = y[31] == 0x7f && y[1..31].iter().all(|byte| *byte == 0xff);
    !is_high || y[0] < 0xed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap().try_into().unwrap()
    }

    #[test]
    fn the_second_vector_of_rfc_8032_holds() {
        let seed = bytes("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb");
        let key = SigningKey::from_bytes(&seed);
        assert_eq!(key.as_bytes(), &seed);
        let public = key.verifying_key();
        assert_eq!(
            public.as_bytes(),
            &bytes("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
        );
        let signature = Signature::from_bytes(&bytes(
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
             085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ));
        assert_eq!(key.clone().sign(&[0x72]), signature);
        assert_eq!(public.verify(&[0x72], &signature), Ok(()));
        assert_eq!(public.verify(&[0x73], &signature), Err(SignatureError));
        assert_eq!(VerifyingKey::from_bytes(public.as_bytes()), Ok(public));
    }

    /// S + L instead of S, with L the group order, is the same number to those who don't look.
    #[test]
    fn a_signature_has_one_form() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let mut malleated = *key.sign(b"message").as_bytes();
        let order: [u8; 32] = bytes("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
        let mut carry = 0;
        for (byte, order) in malleated[32..].iter_mut().zip(order) {
            let sum = u16::from(*byte) + u16::from(order) + carry;
            (*byte, carry) = (sum as u8, sum >> 8);
        }
        assert_eq!(
            key.verifying_key().verify(b"message", &Signature::from_bytes(&malleated)),
            Err(SignatureError)
        );
    }

    /// With A of small order, S = 0 and R the identity verify if the message's hash is a multiple of it.
    /// ring accepts that, so [`VerifyingKey::from_bytes`] must not.
    #[test]
    fn keys_of_small_order_are_refused() {
        let mut forged = [0; 64];
        forged[0] = 1;
        for y in SMALL_ORDER {
            for sign in [0, 0x80] {
                let mut key = y;
                key[31] |= sign;
                // No point has x = 0 and a sign. ring takes it for the one without.
                let accepted =
                    (0..200u8).any(|n| UnparsedPublicKey::new(&ED25519, key).verify(&[n], &forged).is_ok());
                assert!(accepted, "not of small order: {key:x?}");
                assert_eq!(VerifyingKey::from_bytes(&key), Err(KeyError));
            }
        }
    }

    #[test]
    fn only_canonical_encodings_are_keys() {
        for low in 0xed..=0xff {
            assert_eq!(VerifyingKey::from_bytes(&y_below_p(low)), Err(KeyError));
        }
        assert!(VerifyingKey::from_bytes(&y_below_p(0xeb)).is_ok());
    }

    #[test]
    fn a_key_shows_no_secret() {
        let key = SigningKey::from_bytes(&[3; 32]);
        assert_eq!(format!("{key:?}"), format!("SigningKey({:?})", key.verifying_key()));
    }
}
