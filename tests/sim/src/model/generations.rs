//! Signed generations by small numbers, and the keys that all agents trust.

use std::collections::HashMap;

use anyhow::Context;
use bytes::Bytes;
use syncd_agent::identity::Trusted;
use syncd_agent::session::machine::Trust;
use syncd_proto::v1;
use syncd_shared::ed25519::SigningKey;
use syncd_shared::identity::{Authority, RootKey, TrustDocument};
use syncd_shared::{Generation, GenerationNumber, RootEntry, RootHash, SignedGeneration, TreeId};
use time::OffsetDateTime;

const TREE: TreeId = TreeId::from_bytes([7; 16]);
/// Trees that a model may have.
pub const ROOTS: u8 = 8;

/// A generation, by its number and that of its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gen {
    pub number: u8,
    pub root: u8,
}

/// The generation that is live on every node in the beginning.
pub const BASE: Gen = Gen { number: 1, root: 1 };

pub struct Generations {
    key: SigningKey,
    pub trust: Trust,
    hashes: HashMap<RootHash, u8>,
    roots: Vec<RootHash>,
    signed: HashMap<Gen, SignedGeneration>,
}

fn entry(root: u8) -> RootEntry {
    let mut entry = RootEntry::empty();
    entry.metadata.mode = 0o700 + u16::from(root);
    entry
}

impl Generations {
    pub fn new() -> anyhow::Result<Self> {
        let key = SigningKey::from_bytes(&[3; 32]);
        let root = RootKey { tree_id: TREE, key: SigningKey::from_bytes(&[4; 32]) };
        let authority = Authority::create(TREE, OffsetDateTime::now_utc()).context("make an authority")?;
        let document = TrustDocument::first(&root, key.verifying_key(), authority.certificate(), 0, 0);
        let trust = Trust { keys: Trusted::new(root.fingerprint(), document), boot_id: "boot".into() };
        let mut generations =
            Self { key, trust, hashes: HashMap::new(), roots: Vec::new(), signed: HashMap::new() };
        for root in 0..ROOTS {
            let hash = generations.sign(Gen { number: 1, root }).root_hash();
            generations.roots.push(hash);
            generations.hashes.insert(hash, root);
        }
        Ok(generations)
    }

    fn sign(&self, of: Gen) -> SignedGeneration {
        let number = GenerationNumber::new(of.number.into()).expect("numbers begin with 1");
        let (epoch, trust, created_ms) = (1, 1, 0);
        let (root, parent, label) = (entry(of.root), None, String::new());
        Generation { tree_id: TREE, epoch, number, trust, root, parent, created_ms, label }.sign(&self.key)
    }

    pub fn signed(&mut self, of: Gen) -> SignedGeneration {
        if let Some(known) = self.signed.get(&of) {
            return known.clone();
        }
        let signed = self.sign(of);
        self.signed.insert(of, signed.clone());
        signed
    }

    pub fn message(&mut self, of: Gen) -> v1::SignedGeneration {
        let signed = self.signed(of);
        v1::SignedGeneration {
            record: Bytes::copy_from_slice(signed.record()),
            signature: Bytes::copy_from_slice(signed.signature()),
        }
    }

    pub fn hash(&self, root: u8) -> RootHash {
        self.roots[usize::from(root)]
    }

    pub fn root(&self, hash: &RootHash) -> u8 {
        self.hashes[hash]
    }

    pub fn of(&self, (number, root): (u64, RootHash)) -> Gen {
        Gen { number: u8::try_from(number).expect("small numbers"), root: self.root(&root) }
    }
}
