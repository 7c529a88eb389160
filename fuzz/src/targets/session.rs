//! Messages of peers on the control stream, in both directions, and configuration files.

use std::path::Path;
use std::sync::OnceLock;

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use clap::{ArgMatches, Command, CommandFactory};
use prost::Message;
use syncd_agent::identity::Trusted;
use syncd_proto::v1;
use syncd_proto::v1::origin_message::Message as FromOrigin;
use syncd_runtime::config_file::from_text;
use syncd_shared::ed25519::SigningKey;
use syncd_shared::{RootEntry, SignedGeneration, update_file};

use super::wire::hash;
use crate::identities::{Identities, identities, later_trust};
use crate::mutation::{mutate, number};
use crate::values::{self, TREE, sampled, signing_key};

/// A whole session of an agent: see [`syncd_agent::fuzzing::session`].
pub(super) fn session(input: &[u8]) {
    let Identities { root, trust, .. } = identities();
    syncd_agent::fuzzing::session(Trusted::new(root.fingerprint(), trust.clone()), input);
}

pub(super) fn any_session(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let welcome = v1::Welcome { protocol: 1, heartbeat_interval_ms: 1000, ..Default::default() };
    put(&mut out, 2, &[200; 10]);
    put_message(u, &mut out, FromOrigin::Welcome(welcome))?;
    for _ in 0..u.int_in_range(0..=8usize)? {
        match u.int_in_range(0..=9u8)? {
            kind @ 1..=5 => {
                let body = values::bytes(u, 30)?;
                put(&mut out, kind, &body);
            }
            6 => {
                let sequence = number(u)?;
                put_message(u, &mut out, FromOrigin::Heartbeat(v1::Heartbeat { sequence }))?;
            }
            7 => {
                let (generation, root, flipped) = (u.int_in_range(0..=3)?, hash(u)?, u.arbitrary()?);
                let activate = v1::Activate { generation, root, flipped };
                put_message(u, &mut out, FromOrigin::Activate(activate))?;
            }
            8 => {
                let key = if u.arbitrary()? { None } else { Some(SigningKey::from_bytes(&[8; 32])) };
                let trust = later_trust(u.int_in_range(0..=4)?, key.as_ref());
                let trust_document = Bytes::copy_from_slice(trust.bytes());
                if u.arbitrary()? {
                    put_message(u, &mut out, FromOrigin::TrustDocument(trust_document))?;
                } else {
                    let protocol = number(u)? as u32;
                    let welcome = v1::Welcome { protocol, trust_document, ..Default::default() };
                    put_message(u, &mut out, FromOrigin::Welcome(welcome))?;
                }
            }
            _ => {
                let announce = announce(u)?;
                put_message(u, &mut out, FromOrigin::Announce(announce))?;
            }
        }
    }
    Ok(out)
}

fn announce(u: &mut Unstructured<'_>) -> Result<v1::Announce> {
    let signed = values::signed(u)?;
    let generation = v1::SignedGeneration {
        record: Bytes::copy_from_slice(signed.record()),
        signature: Bytes::copy_from_slice(signed.signature()),
    };
    let update_file = if u.arbitrary()? {
        let end = v1::fetch_frame::Frame::End(v1::BatchEnd::default());
        let frame = v1::FetchFrame { item: 0, frame: Some(end) }.encode_to_vec();
        let root = signed.generation().root.hash();
        update_file::write_whole(&RootEntry::empty().hash(), &root, &[frame]).expect("fits")
    } else {
        Bytes::new()
    };
    let activate_when_staged = u.arbitrary()?;
    let locations = vec!["https://example.org/updates".to_owned(); u.int_in_range(0..=9)?];
    Ok(v1::Announce {
        generation: Some(generation),
        activate_when_staged,
        update_file,
        locations,
        flipped: false,
    })
}

fn put(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    out.push(kind);
    out.extend((body.len() as u16).to_le_bytes());
    out.extend(body);
}

fn put_message(u: &mut Unstructured<'_>, out: &mut Vec<u8>, message: FromOrigin) -> Result<()> {
    let body = mutate(u, v1::OriginMessage { message: Some(message) }.encode_to_vec())?;
    put(out, 0, &body);
    Ok(())
}

/// Messages of an agent on the control stream and in a join.
pub(super) fn agent_message(input: &[u8]) {
    use v1::agent_message::Message as M;
    let _ = v1::JoinRequest::decode(input);
    let Ok(v1::AgentMessage { message: Some(message) }) = v1::AgentMessage::decode(input) else { return };
    let M::Hello(hello) = message else { return };
    // A signature takes as long as fifty messages.
    let is_checked = sampled(input, 16);
    let verify = |record: &[u8], signature: &[u8]| match signature.try_into() {
        Ok(signature) if !is_checked => SignedGeneration::from_store(record, signature),
        _ => SignedGeneration::verify(record, signature, TREE, &signing_key().verifying_key()),
    };
    syncd_origin::serve::fuzzing::hello(verify, hello.clone());
    for shown in hello.live.iter().chain(&hello.accepted).chain(&hello.held) {
        let generation = [&shown.signature[..], &shown.record[..]].concat();
        super::trees::generation(&generation);
    }
}

pub(super) fn any_agent_message(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let signed = values::signed(u)?;
    let shown = v1::SignedGeneration {
        record: Bytes::copy_from_slice(signed.record()),
        signature: Bytes::copy_from_slice(signed.signature()),
    };
    let hello = v1::Hello {
        protocol_min: number(u)? as u32,
        protocol_max: number(u)? as u32,
        live: Some(shown.clone()),
        held: vec![shown],
        refused: vec![
            v1::RefusedGeneration { epoch: 1, number: number(u)?, root: hash(u)? };
            u.int_in_range(0..=2)?
        ],
        hook: Some(v1::HookReport {
            generation: number(u)?,
            outcome: number(u)? as i32,
            ..Default::default()
        }),
        ..Default::default()
    };
    let message = Some(v1::agent_message::Message::Hello(hello));
    mutate(u, v1::AgentMessage { message }.encode_to_vec())
}

/// A configuration file of `serve`, passed through clap.
pub(super) fn config(input: &[u8]) {
    static COMMAND: OnceLock<(Command, ArgMatches)> = OnceLock::new();
    let (command, given) = COMMAND.get_or_init(|| {
        let command = syncd_origin::cli::Cli::command();
        let given = command.clone().ignore_errors(true).get_matches_from(["syncd-origin", "serve"]);
        let given = given.subcommand().map(|(_, given)| given.clone()).unwrap_or_default();
        (command, given)
    });
    let text = String::from_utf8_lossy(input);
    if let Ok(arguments) = from_text(&text, Path::new("syncd.toml"), command, "serve", given) {
        assert!(arguments.iter().all(|argument| argument.to_string_lossy().starts_with("--")));
    }
}

pub(super) fn any_config(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut text = String::new();
    for _ in 0..u.int_in_range(0..=4usize)? {
        let key =
            u.choose(&["tree", "data", "settle", "settle-max", "poll", "bwlimit", "config", "none", "x.y"])?;
        let value = match u.int_in_range(0..=5u8)? {
            0 => number(u)?.to_string(),
            1 => u
                .choose(&["true", "false", "1e9", "nan", "[]", "[[1]]", "{ a = 1 }", "1979-05-27"])?
                .to_string(),
            2 => format!("{:?}", String::from_utf8_lossy(&values::bytes(u, 10)?)),
            _ => (*u.choose(&["'2s'", "'4M'", "['a', 'b']", "'/srv'"])?).to_string(),
        };
        text.push_str(&format!("{key} = {value}\n"));
    }
    mutate(u, text.into_bytes())
}
