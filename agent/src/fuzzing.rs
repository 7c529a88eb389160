//! Entry points for the fuzz targets: everything that the agent reads from its record or receives from an
//! origin, as functions of arbitrary bytes.

use std::path::Path;
use std::time::{Duration, Instant};

use prost::Message;
use rcgen::KeyPair;
use syncd_proto::v1;
use syncd_shared::identity::{JoinToken, SignedTrust};
use syncd_shared::{Progress, RootEntry};
use time::OffsetDateTime;

use crate::hooks::{Occasion, Pending, decode_pending, encode_pending, write_lines};
use crate::identity::{AgentIdentity, IdentityError, PendingKey, Trusted};
use crate::session::event::{Action, Event};
use crate::session::machine::{Machine, Trust};
use crate::session::worker::{Command, Decision, Failure, Outcome, ReplicaState, Report};
use crate::state::number;
use crate::state::record::decode_inodes;
use crate::state::slot::Slot;
use crate::state::slot::{decode_generation, encode_generation};

/// Decodes a value of the record. The first byte selects the table.
pub fn record_value(bytes: &[u8]) {
    let Some((table, value)) = bytes.split_first() else { return };
    match table % 3 {
        0 => {
            if let Ok(generation) = decode_generation(value) {
                assert_eq!(encode_generation(&generation), value);
            }
        }
        1 => assert_eq!(decode_inodes(value).len(), value.len() / 8),
        _ => {
            if let Ok(root) = RootEntry::decode(value) {
                assert_eq!(root.encode(), value);
            }
        }
    }
}

/// Parses an identity file.
pub fn identity(text: &str) {
    let path = Path::new("identity");
    let Ok(identity) = AgentIdentity::from_text(text, path) else { return };
    let written = identity.to_text();
    if written != text {
        let again = AgentIdentity::from_text(&written, path).expect("what is written is read");
        assert_eq!(again.to_text(), written);
    }
    let own = identity.certificate();
    let due = identity.renewal_time();
    assert!(due >= own.not_before.min(own.not_after) && due <= own.not_before.max(own.not_after));
    let _ = (identity.needs_renewal(own.not_before), identity.expired(OffsetDateTime::UNIX_EPOCH));
}

/// Makes the text of an identity from the answers to a join.
pub fn some_identity(
    token: &JoinToken,
    key: KeyPair,
    answer: &v1::JoinResponse,
    document: &SignedTrust,
) -> Result<String, IdentityError> {
    let pending = PendingKey::of(key);
    let joined = AgentIdentity::joined(token, "[::1]:8873", pending, &answer.certificate, document.clone())?;
    Ok(joined.to_text())
}

/// Checks the answers to a join and to a renewal. Accepted ones must match the token and this key. A document
/// that comes later must be newer, and signed by the same root key.
pub fn join_answer(
    token: &JoinToken,
    key: impl Fn() -> KeyPair,
    answer: &v1::JoinResponse,
    renewal: &[u8],
    document: &[u8],
) -> Option<()> {
    let document = token.check(document).ok()?;
    assert!(document.number() >= token.trust && document.document().root_fingerprint() == token.root);
    let pending = PendingKey::of(key());
    let joined = AgentIdentity::joined(token, "[::1]:8873", pending, &answer.certificate, document.clone());
    let identity = joined.ok()?;
    assert_eq!(identity.tree_id(), token.tree_id);
    assert_eq!(identity.trust().newer(document.bytes()), Ok(None));
    let renewed = identity.renewed(PendingKey::of(key()), renewal).ok()?;
    assert_eq!(renewed.name(), identity.name());
    Some(())
}

/// Parses names in ROOT, states of slots, and the record of a due hook. The first byte selects which.
pub fn state_file(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 3 {
        0 => {
            if let Some(number) = number(bytes) {
                assert_eq!(number.to_string().as_bytes(), bytes);
            }
        }
        1 => {
            if let Ok(slot) = Slot::decode(bytes) {
                assert_eq!(slot.row().as_deref(), Some(bytes));
            }
        }
        _ => {
            let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
            let (first, lines) = bytes.split_at(end);
            let Ok(pending) = decode_pending(first) else { return };
            let encoded = encode_pending(&pending).expect("it came from text");
            assert_eq!(decode_pending(&encoded).expect("what was written"), pending);
            // The lines of a record survive, whatever they contain.
            let mut out = Vec::new();
            let mut earlier = lines;
            write_lines(&mut out, &|_| Ok(()), Some(&mut earlier)).expect("it fits memory");
            assert_eq!(out, lines);
        }
    }
}

/// Makes the record of a due hook.
pub fn some_due(occasion: &Occasion, lines: &[Vec<u8>]) -> Vec<u8> {
    let pending = Pending { occasion: occasion.clone(), succeeded: occasion.previous };
    let mut due = encode_pending(&pending).unwrap_or_default();
    due.extend(lines.concat());
    due
}

/// Runs a whole session. Each event is a `u8` kind, a `u16` length, and bytes. Kinds: 0, a message of the
/// origin; 1, the connection is lost; 2, a number of milliseconds passes; 3 and 4, the worker's command
/// succeeds, fails; 5, the worker reports progress.
///
/// The replica must never be told to build a generation that the newest trust document does not cover, or an
/// older one.
pub fn session(mut keys: Trusted, mut bytes: &[u8]) {
    let trust = Trust { keys: keys.clone(), boot_id: "boot".into() };
    let mut now = Instant::now();
    let mut replica = ReplicaState::default();
    let mut machine = Machine::new(trust, replica.clone(), now);
    let mut command = None;
    while let Some((&[kind, low, high], rest)) = bytes.split_first_chunk::<3>() {
        let (body, after) = rest.split_at(usize::from(u16::from_le_bytes([low, high])).min(rest.len()));
        bytes = after;
        let event = match kind % 6 {
            0 => match v1::OriginMessage::decode(body) {
                Ok(message) => Event::Message(message),
                Err(_) => continue,
            },
            1 => Event::Lost("cut".into()),
            2 => {
                now += Duration::from_millis(body.iter().map(|byte| u64::from(*byte)).sum());
                Event::Tick
            }
            3 => match command.take() {
                Some(done) => Event::Report(succeeded(done, &mut replica)),
                None => continue,
            },
            4 if command.take().is_some() => {
                let failure = Failure { retry: Some(v1::RetryClass::Retry), reason: "failed".into() };
                Event::Report(Report::Done(Outcome::Failed(failure), Box::new(replica.clone())))
            }
            5 if command.is_some() => Event::Report(Report::Progress(Progress::default())),
            _ => continue,
        };
        for action in machine.apply(event, now) {
            if let Action::Follow(document) = &action {
                assert!(document.number() > keys.document.number());
                keys.follow((**document).clone());
            }
            if let Action::Start(started) = action {
                assert!(command.is_none(), "one command at a time");
                if let Command::Update { generation, .. } = started.as_ref() {
                    let document = keys.document.document();
                    assert!(document.verify_generation(generation.record(), generation.signature()).is_ok());
                    assert!(generation.may_follow(replica.accepted.as_ref()).is_ok());
                }
                command = Some(*started);
            }
        }
        let _ = (machine.deadline(), machine.state(), machine.error());
    }
}

fn succeeded(done: Command, replica: &mut ReplicaState) -> Report {
    let outcome = match done {
        Command::Update { generation, activate, .. } => {
            if activate {
                replica.accepted = Some((*generation).clone());
                replica.live = Some(*generation);
                Outcome::Activated
            } else {
                Outcome::Staged
            }
        }
        Command::Activate => Outcome::Activated,
        Command::Return(generation) => {
            replica.live = Some(*generation);
            Outcome::Activated
        }
        Command::Decide(decision) => {
            if let Decision::Ordered(ordered) = decision {
                replica.decisions.ordered = ordered;
            }
            Outcome::Decided
        }
        Command::Maintain => Outcome::Maintained(Default::default()),
        Command::Verify => Outcome::Verified(Default::default()),
    };
    Report::Done(outcome, Box::new(replica.clone()))
}
