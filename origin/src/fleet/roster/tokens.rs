//! Join tokens in the roster: added by an operator, used up by joins, revoked, and forgotten after they
//! expired.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::agent_records::VERSION;
use super::{Roster, RosterError, TOKENS};
use crate::fleet::records::RecordChange;

/// Time for which expired tokens are remembered, so that their use can be explained.
const EXPIRED_TOKENS_MS: i64 = 7 * 24 * 60 * 60 * 1000;

/// Digits of a secret's hash that identify its token.
const TOKEN_ID_DIGITS: usize = 8;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct TokenRecord {
    pub(super) version: u32,
    pub(super) created_ms: i64,
    pub(super) expires_ms: i64,
    pub(super) uses_left: u32,
    /// Set by `token revoke`.
    #[serde(default)]
    pub(super) is_revoked: bool,
}

/// A usable join token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenView {
    /// First digits of the hash of its secret, as accepted by `token revoke`.
    pub id: String,
    /// Time of creation, in milliseconds since 1970.
    pub created_ms: i64,
    /// Time of expiry, in milliseconds since 1970.
    pub expires_ms: i64,
    /// Number of agents that may still join with it.
    pub uses_left: u32,
}

/// Identifies a token where its secret must not be shown.
pub(crate) fn token_id(secret_hash: &[u8; 32]) -> String {
    let mut id = HEXLOWER.encode(secret_hash);
    id.truncate(TOKEN_ID_DIGITS);
    id
}

impl Roster {
    pub(in crate::fleet) fn add_token(
        &mut self,
        secret_hash: [u8; 32],
        uses: u32,
        expires_ms: i64,
        now_ms: i64,
    ) {
        let old: Vec<_> = self
            .tokens
            .iter()
            .filter(|(_, t)| t.expires_ms.saturating_add(EXPIRED_TOKENS_MS) < now_ms)
            .map(|(hash, _)| *hash)
            .collect();
        for hash in old {
            self.remove_token(&hash);
        }
        let (version, created_ms, uses_left) = (VERSION, now_ms, uses);
        let token = TokenRecord { version, created_ms, expires_ms, uses_left, is_revoked: false };
        self.put_token(secret_hash, token);
    }

    /// Usable tokens, those that expire first at the front.
    pub(in crate::fleet) fn tokens(&self, now_ms: i64) -> Vec<TokenView> {
        let good = self.tokens.iter().filter(|(_, token)| token.uses_left > 0 && token.expires_ms > now_ms);
        let mut views: Vec<_> = good
            .map(|(hash, token)| TokenView {
                id: token_id(hash),
                created_ms: token.created_ms,
                expires_ms: token.expires_ms,
                uses_left: token.uses_left,
            })
            .collect();
        views.sort_by(|a, b| (a.expires_ms, &a.id).cmp(&(b.expires_ms, &b.id)));
        views
    }

    /// Revokes the only token whose ID begins with `id`. It is remembered as long as an expired one, so that
    /// a join with it can be told the reason.
    pub(in crate::fleet) fn revoke_token(&mut self, id: &str) -> Result<(), RosterError> {
        let wanted = id.to_ascii_lowercase();
        let is_it = |hash: &[u8; 32]| !wanted.is_empty() && token_id(hash).starts_with(&wanted);
        let mut found = self.tokens.iter().filter(|(hash, token)| !token.is_revoked && is_it(hash));
        let (Some((hash, token)), None) = (found.next(), found.next()) else {
            return Err(RosterError::UnknownTokenId { id: id.chars().take(100).collect() });
        };
        let (hash, token) = (*hash, TokenRecord { is_revoked: true, uses_left: 0, ..token.clone() });
        self.put_token(hash, token);
        Ok(())
    }

    pub(super) fn put_token(&mut self, secret_hash: [u8; 32], token: TokenRecord) {
        self.note(TOKENS, &secret_hash, &token);
        self.tokens.insert(secret_hash, token);
    }

    pub(super) fn remove_token(&mut self, secret_hash: &[u8; 32]) {
        self.tokens.remove(secret_hash);
        self.changes.push(RecordChange { namespace: TOKENS, name: secret_hash.to_vec(), value: None });
    }
}
