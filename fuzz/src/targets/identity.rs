//! Identities: certificates, an origin's answer to a join, and the files that both sides keep.

use std::sync::OnceLock;

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use prost::Message;
use rustls_pki_types::CertificateDer;
use syncd_origin::fleet::fuzzing::roster;
use syncd_origin::keys::fuzzing::{key_file as decode_key_file, some_key_files};
use syncd_proto::v1;
use syncd_shared::identity::authority::{AuthorityKey, certificate_to_pem, peer_identity};
use syncd_shared::identity::{PeerIdentity, Serial};
use time::OffsetDateTime;

use crate::identities::{Identities, agent_key, identities, later_trust};
use crate::mutation::{mutate, number};
use crate::values::{TREE, sampled, signing_key};

/// A certificate request and a certificate, both in DER.
pub(super) fn certificate(input: &[u8]) {
    let _ = peer_identity(&CertificateDer::from(input));
    let name = "web1".parse().expect("a name");
    let now = OffsetDateTime::UNIX_EPOCH;
    if let Ok((certificate, identity)) = identities().authority.issue_agent(&name, input, now) {
        assert_eq!(identity.name, name);
        assert_eq!(peer_identity(&certificate).expect("it was issued").name, name);
    }
}

pub(super) fn any_certificate(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let made = [&identities().request[..], &identities().certificate];
    let bytes = u.choose(&made)?.to_vec();
    mutate(u, bytes)
}

/// Splits off what follows its `u16` length.
fn split(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = input.split_first_chunk::<2>()?;
    Some(rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len())))
}

/// A renewal's certificate and a trust document, each after its `u16` length; the rest is a `JoinResponse`.
pub(super) fn join_answer(input: &[u8]) {
    let Some((renewal, rest)) = split(input) else { return };
    let Some((document, answer)) = split(rest) else { return };
    let Ok(answer) = v1::JoinResponse::decode(answer) else { return };
    let _ = syncd_agent::fuzzing::join_answer(&identities().token, agent_key, &answer, renewal, document);
}

fn answer() -> v1::JoinResponse {
    v1::JoinResponse { certificate: Bytes::copy_from_slice(&identities().certificate) }
}

pub(super) fn any_join_answer(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut answer = answer();
    let mut renewal = identities().certificate.to_vec();
    let mut document = identities().trust.bytes().to_vec();
    match u.int_in_range(0..=4u8)? {
        0 => renewal = mutate(u, renewal)?,
        1 => document = mutate(u, document)?,
        2 => document = later_trust(u.int_in_range(0..=3)?, None).bytes().to_vec(),
        _ => answer.certificate = mutate(u, answer.certificate.to_vec())?.into(),
    }
    let length = |bytes: &[u8]| (bytes.len() as u16).to_le_bytes();
    let (renewal_length, document_length) = (length(&renewal), length(&document));
    Ok([&renewal_length[..], &renewal, &document_length, &document, &answer.encode_to_vec()].concat())
}

/// The agent's identity file.
pub(super) fn agent_identity(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        syncd_agent::fuzzing::identity(text);
    }
}

pub(super) fn any_agent_identity(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut answer = answer();
    if u.ratio(1, 2)? {
        // A damaged certificate yields no identity, so one field of the file is replaced instead.
        answer.certificate = mutate(u, answer.certificate.to_vec())?.into();
    }
    static RIGHT: OnceLock<String> = OnceLock::new();
    let text = RIGHT.get_or_init(|| {
        let Identities { token, trust, .. } = identities();
        let right = syncd_agent::fuzzing::some_identity(token, agent_key(), &self::answer(), trust);
        right.unwrap_or_default()
    });
    let own = certificate_to_pem(&identities().certificate).replace('\n', "\\n");
    let other = certificate_to_pem(&CertificateDer::from(answer.certificate.to_vec())).replace('\n', "\\n");
    mutate(u, text.replace(&own, &other).into_bytes())
}

/// A text file of the origin's keys.
pub(super) fn key_file(input: &[u8]) {
    decode_key_file(input, TREE);
}

pub(super) fn any_key_file(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    static FILES: OnceLock<[String; 8]> = OnceLock::new();
    let files = FILES.get_or_init(|| {
        let Identities { authority, root, trust, .. } = identities();
        let [format, signing, documents, earlier, root] = some_key_files(signing_key(), root, trust);
        let certificate = certificate_to_pem(authority.certificate());
        let key = authority.key().serialize_pem();
        [format, signing, documents, certificate, key, earlier, trust.to_text(), root]
    });
    let which = u.choose_index(files.len())?;
    let text = mutate(u, files[which].clone().into_bytes())?;
    Ok([&[which as u8], &text[..]].concat())
}

/// `i64` time in milliseconds, then the fleet's records.
pub(super) fn fleet_records(input: &[u8]) {
    let Some((now, records)) = input.split_first_chunk::<8>() else { return };
    let now_ms = i64::from_le_bytes(*now);
    let peer = PeerIdentity {
        name: "web1".parse().expect("a name"),
        serial: Serial::from_bytes([1; 16]),
        not_before: OffsetDateTime::UNIX_EPOCH,
        not_after: OffsetDateTime::UNIX_EPOCH + time::Duration::days(30),
        issuer: AuthorityKey([0; 20]),
        fingerprint: [0; 32],
    };
    roster(records, &peer, now_ms, sampled(input, 8));
}

pub(super) fn any_fleet_records(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut out =
        if u.arbitrary()? { number(u)? } else { u.int_in_range(0..=5_000_000_000)? }.to_le_bytes().to_vec();
    for _ in 0..u.int_in_range(0..=4usize)? {
        let namespace = u.int_in_range(0..=2u8)?;
        let (time, other) = (number(u)? as i64, number(u)? as i64);
        let serial = Serial::from_bytes([u.int_in_range(0..=3)?; 16]);
        let certificates = format!(r#"[{{"serial":"{serial}","not_after_ms":{time}}}]"#);
        let value = match namespace {
            0 => format!(
                r#"{{"version":1,"certificates":{certificates},"fingerprint":null,"enrolled_ms":{other},"last_seen_ms":0,"generation":null,"root":null}}"#
            ),
            1 => format!(r#"{{"version":1,"expires_ms":{time},"uses_left":{}}}"#, u.int_in_range(0..=2u8)?),
            _ => format!(r#"{{"version":1,"serials":{certificates},"until_ms":{other}}}"#),
        };
        let name = match namespace {
            1 => u.arbitrary::<[u8; 32]>()?.to_vec(),
            _ => format!("web{}", u.int_in_range(1..=2u8)?).into_bytes(),
        };
        let value = mutate(u, value.into_bytes())?;
        out.extend([namespace, name.len() as u8]);
        out.extend(name);
        out.extend((value.len() as u16).to_le_bytes());
        out.extend(value);
    }
    Ok(out)
}
