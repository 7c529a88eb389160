//! The parsers of the text files in DATA, as functions over any bytes. Only for fuzz targets.

use std::path::Path;
use std::sync::Arc;

use rcgen::KeyPair;
use syncd_shared::TreeId;
use syncd_shared::ed25519::SigningKey;
use syncd_shared::identity::authority::{certificate_from_pem, certificate_to_pem};
use syncd_shared::identity::{RootKey, SignedTrust, TrustDocument};

use super::FORMAT_VERSION;
use super::files::{parse_format, parse_signing_key, signing_key_text};
use super::in_force::{earlier_text, parse_earlier, parse_trust, trust_text};

/// Parses `u8` kind of file (format, signing key, trust documents, a certificate, its key, earlier
/// authorities, a trust document that travels, a root key), then its text.
pub fn key_file(bytes: &[u8], tree_id: TreeId) {
    let Some((which, text)) = bytes.split_first() else { return };
    // Files that are not UTF-8 are rejected before parsing.
    let Ok(text) = std::str::from_utf8(text) else { return };
    match which % 8 {
        0 => drop(parse_format(text, Path::new("data"))),
        1 => {
            if let Some(key) = parse_signing_key(text) {
                assert_eq!(signing_key_text(&key).trim(), text.trim());
            }
        }
        2 => {
            if let Some(trust) = parse_trust(text, tree_id) {
                assert_eq!(parse_trust(&trust_text(&trust), tree_id), Some(trust));
            }
        }
        3 => {
            if let Some(certificate) = certificate_from_pem(text) {
                let pem = certificate_to_pem(&certificate);
                assert_eq!(certificate_from_pem(&pem), Some(certificate));
            }
        }
        4 => drop(KeyPair::from_pem(text)),
        5 => {
            if let Some(earlier) = parse_earlier(text) {
                assert_eq!(parse_earlier(&earlier_text(&earlier)), Some(earlier));
            }
        }
        6 => {
            if let Ok(document) = TrustDocument::from_text(text) {
                assert_eq!(TrustDocument::from_text(&document.to_text()), Ok(document));
            }
        }
        // Without a passphrase, because deriving a key takes long on purpose.
        _ => {
            if let Ok(root) = RootKey::from_text(text, None) {
                let written = root.to_text(None).expect("no passphrase");
                let again = RootKey::from_text(&written, None).expect("what is written is read");
                assert_eq!((again.tree_id, again.fingerprint()), (root.tree_id, root.fingerprint()));
            }
        }
    }
}

/// Format, signing key, trust documents, earlier authorities and root key as written.
pub fn some_key_files(signing: &SigningKey, root: &RootKey, trust: &SignedTrust) -> [String; 5] {
    let format = format!("syncd-origin {FORMAT_VERSION}\ntree_id {}\n", root.tree_id);
    let root = root.to_text(None).expect("no passphrase");
    let earlier = earlier_text(&[trust.document().authority.clone()]);
    [format, signing_key_text(signing), trust_text(&[Arc::new(trust.clone())]), earlier, root]
}
