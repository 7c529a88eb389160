//! Answers to `key show`, `key rotate` and `key take` that need only DATA.

use syncd_shared::identity::SignedTrust;
use syncd_shared::text::rfc3339;
use time::OffsetDateTime;

use crate::admin::protocol::{KeysLine, Reply, RotateKeys, TrustLine};
use crate::keys::rotation::{NewRoot, Rotation};
use crate::keys::{Keys, KeysError};

/// Describes the keys.
pub(super) fn show(keys: &Keys) -> Result<Reply, KeysError> {
    let pending = keys.pending()?;
    let (authority_ends, certificate_ends) = keys.ends()?;
    let ends = |time: OffsetDateTime| rfc3339(time.unix_timestamp().saturating_mul(1000));
    Ok(Reply::Keys(Box::new(KeysLine {
        tree_id: keys.tree_id().to_string(),
        root_key: keys.root_fingerprint().to_string(),
        root_key_file: keys.root_key_here().map(|path| path.display().to_string()),
        trust: TrustLine::from(keys.trust().document()),
        authority_ends: ends(authority_ends),
        certificate_ends: ends(certificate_ends),
        earlier_authorities: keys.earlier_authorities(),
        pending: pending.as_ref().map(TrustLine::from),
        pending_document: pending.as_ref().map(|document| document.to_text_after(&keys.trust())),
    })))
}

/// Makes new keys. Lines: the document to be signed, and what to do with it. An origin that `serves` knows
/// from its nodes which documents they follow.
pub(super) fn rotate(
    keys: &Keys,
    request: &RotateKeys,
    serves: bool,
    lines: &mut dyn FnMut(Reply) -> bool,
) -> Result<(), KeysError> {
    let RotateKeys { signing, authority, retire, root, passphrase, after } = request;
    // Without a choice, both.
    let both = !(*signing || *authority || *retire || *root);
    let rotation = Rotation {
        signing: *signing || both,
        authority: *authority || both,
        retire: *retire,
        root: root.then_some(NewRoot { passphrase: passphrase.as_deref() }),
        after: *after,
    };
    let document = keys.prepare(&rotation, OffsetDateTime::now_utc())?;
    let number = document.number;
    let before = keys.trust();
    let hint = if serves || after.is_some() { None } else { Some(if_restored(before.number())) };
    for text in skipped(before.number(), number).into_iter().chain(hint) {
        lines(Reply::Remark { text });
    }
    let text = format!(
        "trust document {number} waits for the root key's signature; nothing has changed yet. Where the root key is on \
         this machine:\n  syncd-origin key sign --root-key FILE\nElsewhere, with the document that is printed:\n  \
         syncd-origin key sign --root-key FILE DOCUMENT > SIGNED\nand here:\n  syncd-origin key take SIGNED"
    );
    lines(Reply::Remark { text });
    if let Some(path) = keys.root_key_here().filter(|_| *root) {
        let (path, print) = (path.display(), document.root_fingerprint());
        let text = format!(
            "The new root key is in {path}: move it off this machine. On every node, once:\n  syncd-agent trust {print}"
        );
        lines(Reply::Remark { text });
    }
    lines(Reply::Document { text: document.to_text_after(&before) });
    Ok(())
}

/// Asks an operator who works on a stopped origin for what its nodes would tell it.
fn if_restored(number: u32) -> String {
    format!(
        "no origin serves this DATA. If it was restored from a copy, nodes may follow later trust documents than {number}, \
         and refuse this one: rotate once the origin serves and they are connected, or give --after with the number \
         that `syncd-agent status` shows"
    )
}

/// Explains a gap between two trust documents.
fn skipped(before: u32, number: u32) -> Option<String> {
    let (first, last) = (before.checked_add(1)?, number.checked_sub(1)?);
    let text = format!(
        "{what} not in this copy of DATA, and nodes may follow {them}: both keys are replaced, whatever you chose. Sign \
         with --skip-numbers",
        what = if first == last {
            format!("trust document {first} is")
        } else {
            format!("trust documents {first} to {last} are")
        },
        them = if first == last { "it" } else { "them" },
    );
    (first <= last).then_some(text)
}

/// Reads a signed document of this tree.
pub(super) fn read(keys: &Keys, text: &str) -> Result<SignedTrust, KeysError> {
    Ok(SignedTrust::from_text(text, keys.tree_id())?)
}

/// Tells the operator that the document is in force.
pub(super) fn taken(document: &SignedTrust) -> Reply {
    let number = document.number();
    let text = format!(
        "trust document {number} is in force: agents follow it when they connect, and need no new token. Back up the \
         keys now"
    );
    Reply::Remark { text }
}
