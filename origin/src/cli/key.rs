//! `syncd-origin key`: shows, replaces and signs the keys.

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use syncd_runtime::key_file;
use syncd_runtime::output::{self, note};
use syncd_shared::identity::{RootKey, SignedTrust, TrustDocument};

use super::arguments::Json;
use super::printer::Print;
use super::{answers, ask, help, passphrase};
use crate::admin::protocol::{KeysLine, Reply, Request, RotateKeys, TrustLine};

#[derive(Debug, Subcommand)]
pub(super) enum KeyAction {
    /// Show the fingerprints of the keys, their dates, and a document that waits for its signature.
    #[command(after_help = help::KEY_SHOW)]
    Show {
        #[command(flatten)]
        json: Json,
    },
    /// Make new keys, and print the trust document that the root key must sign before they are used.
    #[command(after_help = help::KEY_ROTATE)]
    Rotate(Rotate),
    /// Sign a trust document with the root key, and use its keys at once.
    #[command(after_help = help::KEY_SIGN)]
    Sign(Sign),
    /// Use the keys of a trust document that was signed on another machine.
    #[command(after_help = help::KEY_TAKE)]
    Take {
        /// File with the signed document; `-` is standard input.
        #[arg(value_name = "FILE")]
        document: PathBuf,
    },
}

impl KeyAction {
    /// Whether the command needs no data directory, because it signs a document of another machine.
    pub(super) fn is_elsewhere(&self) -> bool {
        matches!(self, Self::Sign(Sign { document: Some(_), .. }))
    }
}

#[derive(Debug, Args)]
pub(super) struct Rotate {
    /// Replace the key that signs generations [default: this and --authority].
    #[arg(long)]
    signing: bool,
    /// Replace the TLS authority. Nodes get new certificates when they connect.
    #[arg(long)]
    authority: bool,
    /// Refuse certificates of replaced authorities at once. Nodes that have no newer one must join again.
    #[arg(long)]
    retire: bool,
    /// Replace a lost root key. Every node must be told its fingerprint: syncd-agent trust FINGERPRINT.
    #[arg(long)]
    root: bool,
    /// File with a passphrase for the new root key.
    #[arg(long, value_name = "FILE", requires = "root")]
    root_passphrase_file: Option<PathBuf>,
    /// Number of a trust document that nodes follow and this DATA, restored from a copy, does not have. A
    /// serving origin learns it from its nodes. Both keys are replaced.
    #[arg(long, value_name = "NUMBER")]
    after: Option<u32>,
}

#[derive(Debug, Args)]
pub(super) struct Sign {
    /// File of the root key.
    #[arg(long, value_name = "FILE")]
    root_key: PathBuf,
    /// File with the passphrase of the root key. On a terminal it is asked for.
    #[arg(long, value_name = "FILE")]
    root_passphrase_file: Option<PathBuf>,
    /// Do not ask whether to sign.
    #[arg(long)]
    yes: bool,
    /// Sign a document whose number is not the next one, after a copy of DATA was restored.
    #[arg(long)]
    skip_numbers: bool,
    /// Document to sign, as printed by `key rotate`; `-` is standard input. The signed one is printed.
    /// Without it, the origin's own document is signed and taken.
    #[arg(value_name = "DOCUMENT")]
    document: Option<PathBuf>,
}

pub(super) async fn run(data: &Path, action: KeyAction) -> anyhow::Result<ExitCode> {
    match action {
        KeyAction::Show { json } => ask(data, Request::Keys, Print::of(&json)).await,
        KeyAction::Rotate(rotate) => {
            let Rotate { signing, authority, retire, root, root_passphrase_file, after } = rotate;
            let file = root_passphrase_file.as_deref();
            let passphrase = if root { passphrase::for_new_key(file)? } else { None };
            let request = RotateKeys { signing, authority, retire, root, passphrase, after };
            ask(data, Request::RotateKeys(request), Print::default()).await
        }
        KeyAction::Sign(options) => sign(data, &options).await,
        KeyAction::Take { document } => {
            let document = read(&document)?;
            ask(data, Request::TakeTrust { document }, Print::default()).await
        }
    }
}

async fn sign(data: &Path, options: &Sign) -> anyhow::Result<ExitCode> {
    let Some(path) = &options.document else {
        let keys = answers(data, Request::Keys).await?.into_iter().find_map(|reply| match reply {
            Reply::Keys(keys) => Some(keys),
            _ => None,
        });
        let Some(pending) = keys.and_then(|keys| keys.pending_document) else {
            bail!("no trust document waits for its signature: `syncd-origin key rotate` makes one");
        };
        let document = signed(&pending, options)?.to_text();
        return ask(data, Request::TakeTrust { document }, Print::default()).await;
    };
    output::line(signed(&read(path)?, options)?.to_text().trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// Signs a document, after showing what it says and what it changes.
fn signed(text: &str, options: &Sign) -> anyhow::Result<SignedTrust> {
    let document = TrustDocument::from_text(text)?;
    let before = TrustDocument::before_in_text(text, document.tree_id)
        .context("the document that this one replaces, as it comes with it")?;
    let before = before.as_ref().map(SignedTrust::document);
    let root = root_key(options)?;
    ensure!(
        root.tree_id == document.tree_id,
        "the root key is of tree {}, the document of tree {}",
        root.tree_id,
        document.tree_id
    );
    check_number(&document, before, options.skip_numbers)?;
    note(format_args!("signing for tree {}:", document.tree_id));
    for line in compared(&document, before) {
        note(format_args!("  {line}"));
    }
    if !options.yes && std::io::stdin().is_terminal() {
        ensure!(passphrase::confirms("Sign it? [y/N] ")?, "nothing was signed");
    }
    Ok(document.sign(&root.key)?)
}

/// Refuses a document that no other can follow, and one that does not follow the document before it.
fn check_number(
    document: &TrustDocument,
    before: Option<&TrustDocument>,
    skip_numbers: bool,
) -> anyhow::Result<()> {
    let number = document.number;
    ensure!(
        document.can_be_followed(),
        "no other document could follow trust document {number}, because its numbers or epochs are the last ones: do \
         not sign it, and look for who made it"
    );
    let Some(before) = before.map(|before| before.number) else { return Ok(()) };
    ensure!(number > before, "trust document {number} does not follow {before}, which is in force");
    ensure!(
        skip_numbers || number - 1 == before,
        "trust document {number} follows {before} with a gap: after a copy of DATA was restored, that is right, and \
         --skip-numbers signs it"
    );
    Ok(())
}

/// Describes a document, with the former value of each line that changes.
fn compared(document: &TrustDocument, before: Option<&TrustDocument>) -> Vec<String> {
    let mut lines = described(&TrustLine::from(document));
    let Some(before) = before else {
        lines.push("the document before it is not known: compare this with `syncd-origin key show`".into());
        return lines;
    };
    let (first, former) = (1, described(&TrustLine::from(before)));
    for (line, former) in lines.iter_mut().zip(&former).skip(first) {
        let value = former.split_once("  ").map_or(former.as_str(), |(_, value)| value.trim());
        match line == former {
            true => line.push_str(" (as before)"),
            false => line.push_str(&format!(" (new; before: {value})")),
        }
    }
    lines
}

fn root_key(options: &Sign) -> anyhow::Result<RootKey> {
    let path = &options.root_key;
    let text = key_file::read(path).context("the root key")?;
    let is_sealed = RootKey::is_sealed(&text);
    let file = options.root_passphrase_file.as_deref();
    let passphrase = if is_sealed { passphrase::for_sealed_key(file)? } else { None };
    RootKey::from_text(&text, passphrase.as_deref()).with_context(|| path.display().to_string())
}

fn read(path: &Path) -> anyhow::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("read the document on standard input")?;
        return Ok(text);
    }
    Ok(key_file::read(path)?)
}

fn described(trust: &TrustLine) -> Vec<String> {
    vec![
        format!("document     {}, made {}, warns from {}", trust.number, trust.issued, trust.warns),
        format!("root key     {}", trust.root_key),
        format!("signing key  {}", trust.signing_key),
        format!("authority    {}", trust.authority),
        format!("epochs       {} to {}", trust.first_epoch, trust.last_epoch),
        format!("generations  {} to {}", trust.first_number, trust.last_number),
    ]
}

/// Text of `key show`.
pub(super) fn shown(keys: &KeysLine) -> String {
    let mut lines = vec![format!("tree_id      {}", keys.tree_id)];
    lines.extend(described(&keys.trust));
    lines.push(format!("authority ends {}, extended by itself", keys.authority_ends));
    lines.push(format!("certificate of the origin ends {}, reissued by itself", keys.certificate_ends));
    if keys.earlier_authorities > 0 {
        lines.push(format!(
            "certificates of {} replaced authorities may be renewed, until `key rotate --retire`",
            keys.earlier_authorities
        ));
    }
    if let Some(path) = &keys.root_key_file {
        lines.push(format!("the root key is still on this machine, in {path}: move it to a safe place"));
    }
    if let Some(pending) = &keys.pending {
        lines.push(format!("trust document {} waits for its signature (`key sign`):", pending.number));
        lines.extend(described(pending).into_iter().map(|line| format!("  {line}")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use syncd_shared::TreeId;
    use syncd_shared::identity::{Authority, signing};
    use time::OffsetDateTime;

    fn document() -> TrustDocument {
        let tree = TreeId::from_bytes([7; 16]);
        let authority = Authority::create(tree, OffsetDateTime::now_utc()).unwrap();
        let (root, key) = (RootKey::generate(tree).unwrap(), signing::generate().unwrap());
        let first = TrustDocument::first(&root, key.verifying_key(), authority.certificate(), 0, 0);
        TrustDocument { number: 5, ..first.document().clone() }
    }

    #[test]
    fn only_the_next_document_is_signed_unless_numbers_may_be_skipped() {
        let before = document();
        let check = |number, before, skip_numbers| {
            let next = TrustDocument { number, ..document() };
            check_number(&next, before, skip_numbers).map_err(|error| error.to_string())
        };
        assert_eq!(check(6, Some(&before), false), Ok(()));
        assert!(check(8, Some(&before), false).is_err_and(|error| error.contains("--skip-numbers")));
        assert_eq!(check(8, Some(&before), true), Ok(()));
        for (number, skip_numbers) in [(5, false), (5, true), (1, true), (u32::MAX, true)] {
            assert!(check(number, Some(&before), skip_numbers).is_err(), "{number}");
        }
        assert_eq!(check(8, None, false), Ok(()), "nothing to compare with");
        assert!(check(u32::MAX, None, true).is_err_and(|error| error.contains("do not sign it")));
    }

    #[test]
    fn each_line_says_whether_it_is_new() {
        let before = document();
        let mut next = TrustDocument { number: 6, ..before.clone() };
        next.replace_signing_key(signing::generate().unwrap().verifying_key()).unwrap();
        let lines = compared(&next, Some(&before));
        let is_new: Vec<bool> = lines.iter().skip(1).map(|line| line.contains("(new; before: ")).collect();
        assert_eq!(is_new, [false, true, false, true, true], "{lines:#?}");
        assert!(lines.last().unwrap().ends_with("(new; before: 1 to 1000000000)"), "{lines:#?}");
        assert!(compared(&next, None).last().unwrap().contains("not known"));
    }
}
