//! Trust documents that the origin shows, in its welcome and while the stream is open.

use syncd_shared::identity::trust::TrustError;

use super::Machine;
use super::target::Target;
use crate::session::event::{Action, Violation};

impl Machine {
    /// Trusts a newer document of the pinned root key. One of another root key, or an older one, does not end
    /// the connection: the known document stays in force. An origin of tests shows none.
    pub(super) fn follow(&mut self, document: &[u8], out: &mut Vec<Action>) -> Result<(), Violation> {
        if document.is_empty() {
            return Ok(());
        }
        self.trust_error = match self.trust.keys.newer(document) {
            Ok(None) => None,
            Ok(Some(newer)) => {
                self.trust.keys.follow(newer.clone());
                self.drop_superseded_target();
                out.push(Action::Follow(Box::new(newer)));
                None
            }
            Err(error @ TrustError::Older { .. }) => Some(format!(
                "{error}: the origin was restored from an older copy, restore its newest keys, or replace them with \
                     `syncd-origin key rotate`"
            )),
            Err(error @ TrustError::OtherRoot { .. }) => {
                let advice = "if the operator of the origin replaced the root key, run `syncd-agent trust FINGERPRINT`";
                Some(format!("{error}: {advice}"))
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(error) = &self.trust_error {
            tracing::warn!(error, "the origin's trust document is not followed");
        }
        Ok(())
    }

    /// Drops a target that a superseded key has signed. One that is being activated is not new any more.
    pub(super) fn drop_superseded_target(&mut self) {
        let document = self.trust.keys.document.document();
        let is_superseded = |target: &Target| {
            let generation = &target.generation;
            document.verify_generation(generation.record(), generation.signature()).is_err()
        };
        if self.target.as_ref().is_some_and(is_superseded) && !self.activating {
            self.target = None;
        }
    }
}
