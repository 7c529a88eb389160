//! What a person reads of an error: [`syncd_shared::text`], under the names that the agent uses.

use syncd_shared::limits::REASON_MAX_BYTES;
pub use syncd_shared::text::error_chain as of;
use syncd_shared::text::one_line;

/// One line of at most [`REASON_MAX_BYTES`].
pub fn bounded(text: &str) -> String {
    one_line(text, REASON_MAX_BYTES)
}
