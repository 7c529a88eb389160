//! `syncd-origin key`: shows, replaces and signs the keys.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use syncd_runtime::key_file;
use syncd_runtime::output::{self, note};
use syncd_shared::identity::{RootKey, SignedTrust, TrustDocument};

use super::arguments::Json;
use super::printer::Print;
use super::{answers, ask, passphrase};
use crate::admin::protocol::{KeysLine, Reply, Request, RotateKeys, TrustLine};

#[derive(Debug, Subcommand)]
pub(super) enum KeyAction {
    /// Show the fingerprints of the keys, their dates, and a document that waits for its signature.
    Show {
        #[command(flatten)]
        json: Json,
    },
    /// Make new keys, and print the trust document that the root key must sign before they are used.
    Rotate(Rotate),
    /// Sign a trust document with the root key, and use its keys at once.
    Sign(Sign),
    /// Use the keys of a trust document that was signed on another machine.
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
}

#[derive(Debug, Args)]
pub(super) struct Sign {
    /// File of the root key.
    #[arg(long, value_name = "FILE")]
    root_key: PathBuf,
    /// File with the passphrase of the root key. On a terminal it is asked for.
    #[arg(long, value_name = "FILE")]
    root_passphrase_file: Option<PathBuf>,
    /// Document to sign, as printed by `key rotate`; `-` is standard input. The signed one is printed.
    /// Without it, the origin's own document is signed and taken.
    #[arg(value_name = "DOCUMENT")]
    document: Option<PathBuf>,
}

pub(super) async fn run(data: &Path, action: KeyAction) -> anyhow::Result<ExitCode> {
    match action {
        KeyAction::Show { json } => ask(data, Request::Keys, Print::of(&json)).await,
        KeyAction::Rotate(rotate) => {
            let Rotate { signing, authority, retire, root, root_passphrase_file } = rotate;
            let file = root_passphrase_file.as_deref();
            let passphrase = if root { passphrase::for_new_key(file)? } else { None };
            let request = RotateKeys { signing, authority, retire, root, passphrase };
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

/// Signs a document, after showing what it says.
fn signed(text: &str, options: &Sign) -> anyhow::Result<SignedTrust> {
    let document = TrustDocument::from_text(text)?;
    let root = root_key(options)?;
    ensure!(
        root.tree_id == document.tree_id,
        "the root key is of tree {}, the document of tree {}",
        root.tree_id,
        document.tree_id
    );
    note(format_args!("signing for tree {}:", document.tree_id));
    for line in described(&TrustLine::from(&document)) {
        note(format_args!("  {line}"));
    }
    Ok(document.sign(&root.key)?)
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
