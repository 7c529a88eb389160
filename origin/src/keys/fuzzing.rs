//! The parsers of the text files in DATA, as functions over any bytes. Only for fuzz targets.

use std::path::Path;

use rcgen::KeyPair;
use syncd_shared::TreeId;
use syncd_shared::ed25519::SigningKey;
use syncd_shared::identity::authority::{certificate_from_pem, certificate_to_pem};
use syncd_shared::identity::signing::{self, KeySuccession};

use super::{FORMAT_VERSION, KeyHistory, parse_format, parse_signing_key, signing_key_text};

/// Parses `u8` kind of file (format, signing key, successions, a certificate, its key), then its text.
pub fn key_file(bytes: &[u8], tree_id: TreeId) {
    let Some((which, text)) = bytes.split_first() else { return };
    // Files that are not UTF-8 are rejected before parsing.
    let Ok(text) = std::str::from_utf8(text) else { return };
    match which % 5 {
        0 => drop(parse_format(text, Path::new("data"))),
        1 => {
            if let Some(key) = parse_signing_key(text) {
                assert_eq!(signing_key_text(&key).trim(), text.trim());
            }
        }
        2 => {
            let Some(history) = KeyHistory::parse(text) else { return };
            let again = KeyHistory::parse(&history.to_text()).expect("what was written");
            assert_eq!(again.first, history.first);
            assert_eq!(again.successions, history.successions);
            // Each succession costs a signature verification.
            if text.len() % 16 == 0 {
                let _ = signing::verify_successions(tree_id, history.first, &history.successions);
            }
        }
        3 => {
            if let Some(certificate) = certificate_from_pem(text) {
                let pem = certificate_to_pem(&certificate);
                assert_eq!(certificate_from_pem(&pem), Some(certificate));
            }
        }
        _ => drop(KeyPair::from_pem(text)),
    }
}

/// The first three files as written: `signing` is the first key, `next` its successor.
pub fn some_key_files(tree_id: TreeId, signing: &SigningKey, next: &SigningKey) -> [String; 3] {
    let succession = KeySuccession::sign(tree_id, signing, next.verifying_key());
    let history = KeyHistory { first: signing.verifying_key(), successions: vec![succession] };
    let format = format!("syncd-origin {FORMAT_VERSION}\ntree_id {tree_id}\n");
    [format, signing_key_text(signing), history.to_text()]
}
