//! The decoder of the fleet's records, as a function over any bytes. Only for fuzz targets.

use syncd_shared::identity::{PeerIdentity, Serial};

use super::records::NamedRecord;
use super::roster::Roster;

/// Decodes records, each `u8` namespace, `u8` length of its name, name, `u16` length of its value, value.
/// With `let_in` then admits, revokes and readmits `peer` at the given time.
pub fn roster(mut bytes: &[u8], peer: &PeerIdentity, now_ms: i64, let_in: bool) {
    let mut tables: [Vec<NamedRecord>; 3] = Default::default();
    while let Some((&[namespace, name_bytes], rest)) = bytes.split_first_chunk::<2>() {
        let (name, rest) = rest.split_at(usize::from(name_bytes).min(rest.len()));
        let Some((length, rest)) = rest.split_first_chunk::<2>() else { break };
        let (value, rest) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
        tables[usize::from(namespace % 3)].push((name.to_vec(), value.to_vec()));
        bytes = rest;
    }
    let [agents, tokens, revoked] = tables;
    let secret_hash = tokens.first().and_then(|(name, _)| name.as_slice().try_into().ok()).unwrap_or([0; 32]);
    let Ok(mut roster) = Roster::decode(agents, tokens, revoked) else { return };
    assert!(roster.take_changes().is_empty(), "reading changes nothing");
    assert_eq!(roster.admission().admits(peer), roster.admits(peer), "one rule");
    if !let_in {
        return;
    }
    roster.add_token([9; 32], 1, now_ms, now_ms);
    let _ = roster.join(&secret_hash, peer, None, now_ms);
    let admitted = roster.admit(peer, now_ms).is_ok();
    if roster.revoke(peer.name.as_str(), now_ms).is_ok() {
        if admitted {
            assert!(!roster.admission().admits(peer) && roster.admit(peer, now_ms).is_err());
        }
        let later = PeerIdentity { serial: Serial::from_bytes([0xee; 16]), ..peer.clone() };
        let _ = roster.renew(&later, peer, now_ms);
    }
    // Written records must decode again.
    let mut written: [Vec<NamedRecord>; 3] = Default::default();
    for change in roster.take_changes() {
        let table = [super::roster::AGENTS, super::roster::TOKENS, super::roster::REVOKED];
        let Some(at) = table.iter().position(|table| *table == change.namespace) else { continue };
        if let Some(value) = change.value {
            written[at].push((change.name, value));
        }
    }
    let [agents, tokens, revoked] = written;
    assert!(Roster::decode(agents, tokens, revoked).is_ok());
}
