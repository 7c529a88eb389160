//! Input from the machine itself: admin sockets, rules in the content tree, mounts, and small state files.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use arbitrary::{Result, Unstructured};
use serde::Serialize;
use serde::de::DeserializeOwned;
use syncd_agent::fuzzing::{some_due, state_file};
use syncd_agent::hooks::Occasion;
use syncd_origin::commit::fuzzing::{scan_base, some_scan_base};
use syncd_origin::scan::fuzzing::symlink_target;
use syncd_origin::watch::fuzzing::mounts;
use syncd_runtime::local_socket::{REQUEST_MAX_BYTES, RESPONSE_MAX_BYTES, read_line};
use syncd_shared::TreePath;
use syncd_shared::ignore_rules::IgnoreRules;

use crate::mutation::{mutate, number};
use crate::values;

/// One side's lines. A slice is always ready to read.
fn lines<T: DeserializeOwned + Serialize>(mut bytes: &[u8], limit: usize) {
    loop {
        let before = bytes.len();
        let read = pin!(read_line::<T>(&mut bytes, limit)).poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(read) = read else { panic!("waits for a slice") };
        let Ok(Some(value)) = read else { return };
        assert!(bytes.len() < before);
        let text = serde_json::to_string(&value).expect("it came from JSON");
        let again: T = serde_json::from_str(&text).expect("what was written");
        assert_eq!(serde_json::to_string(&again).expect("as before"), text);
    }
}

/// `u8` sender, then its data on an admin socket.
pub(super) fn local_socket(input: &[u8]) {
    let Some((who, bytes)) = input.split_first() else { return };
    match who % 4 {
        0 => lines::<syncd_origin::admin::protocol::Request>(bytes, REQUEST_MAX_BYTES),
        1 => lines::<syncd_origin::admin::protocol::Reply>(bytes, RESPONSE_MAX_BYTES),
        2 => lines::<syncd_agent::admin::Request>(bytes, 64),
        _ => lines::<syncd_agent::admin::Reply>(bytes, RESPONSE_MAX_BYTES),
    }
}

pub(super) fn any_local_socket(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let who = u.int_in_range(0..=3u8)?;
    let n = number(u)?;
    let text = match who {
        0 => match u.int_in_range(0..=6u8)? {
            0 => r#"{"request":"status"}"#.to_owned(),
            1 => format!(
                r#"{{"request":"commit","label":"a","allow_mass_deletion":true,"rescan":false,"wait":{{"timeout_ms":{n},"require_all":false}}}}"#
            ),
            2 => format!(r#"{{"request":"rollback","generation":{n},"wait":null}}"#),
            3 => format!(r#"{{"request":"token","ttl_s":{n},"uses":1}}"#),
            4 => format!(r#"{{"request":"diff","from":{n},"to":null}}"#),
            5 => r#"{"request":"revoke","agent":"web1"}"#.to_owned(),
            _ => r#"{"request":"check"}"#.to_owned(),
        },
        1 => match u.int_in_range(0..=4u8)? {
            0 => format!(r#"{{"reply":"progress","bytes":{n},"total_bytes":1}}"#),
            1 => r#"{"reply":"node","name":"web1","result":"live","error":null}"#.to_owned(),
            2 => r#"{"reply":"diff","change":"added","path":"a"}"#.to_owned(),
            3 => format!(
                r#"{{"reply":"generation","generation":{n},"root":"","label":"","created":"","files":1,"bytes":2,"changed":true}}"#
            ),
            _ => r#"{"reply":"done","code":3}"#.to_owned(),
        },
        2 => (*u.choose(&[r#"{"request":"status"}"#, r#"{"request":"verify"}"#])?).to_owned(),
        _ => format!(
            r#"{{"reply":"status","name":"web1","root_directory":"/","origin":"h:1","connected":true,"generation":{n},"root":null,"live":"/live","state":"live","accepted":1,"generations":[1],"spares":2,"last_contact":null,"error":null}}"#
        ),
    };
    let line = mutate(u, text.into_bytes())?;
    Ok([&[who], &line[..], b"\n"].concat())
}

/// `u8` length of a path, then the path; the rest is a `.syncdignore`.
pub(super) fn ignore_rules(input: &[u8]) {
    let Some((length, rest)) = input.split_first() else { return };
    let (path, text) = rest.split_at(usize::from(*length).min(rest.len()));
    let Ok(path) = TreePath::from_bytes(path) else { return };
    let Ok(rules) = IgnoreRules::default().with_file(&TreePath::root(), text) else { return };
    let own = path.split_last().is_some_and(|(_, name)| syncd_shared::ignore_rules::is_own(&name));
    for is_directory in [false, true] {
        let excluded = rules.excludes(&path, is_directory);
        assert!(excluded || !own);
    }
    assert!(!rules.excludes(&TreePath::root(), true), "the tree itself is never left out");
}

pub(super) fn any_ignore_rules(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let path = [values::name(u)?, values::name(u)?].join(&b'/');
    let mut text = Vec::new();
    for _ in 0..u.int_in_range(0..=3usize)? {
        let patterns: [&[u8]; 12] =
            [b"*", b"**/", b"/a", b"!", b"[a-z]", b"?", b"x/**", b"{a,b}", b"\\", b"#", b"name", b" "];
        for _ in 0..u.int_in_range(1..=3usize)? {
            text.extend(*u.choose(&patterns)?);
        }
        text.push(b'\n');
    }
    let text = mutate(u, text)?;
    Ok([&[path.len().min(255) as u8], &path[..], &text].concat())
}

/// `u8` kind: 0 a mountinfo, 1 the tree of the last scan, 2 a path and, after 0xfe, the target of a symlink.
pub(super) fn origin_state(input: &[u8]) {
    let Some((what, bytes)) = input.split_first() else { return };
    match what % 3 {
        0 => mounts(bytes),
        1 => scan_base(bytes),
        _ => {
            let mut halves = bytes.splitn(2, |byte| *byte == 0xfe);
            let (path, target) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
            if let Ok(path) = TreePath::from_bytes(path) {
                symlink_target(&path, target);
            }
        }
    }
}

pub(super) fn any_origin_state(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let what = u.int_in_range(0..=2u8)?;
    let value = match what {
        0 => {
            let points = ["/", "/srv", "/srv/site", "/srv/site/a\\040b", "/srv/site/../x", "/srv/sites"];
            let mut table = String::new();
            for _ in 0..u.int_in_range(0..=3usize)? {
                let (id, point) = (number(u)?, u.choose(&points)?);
                let kind = u.choose(&["ext4", "nfs4", "fuse.sshfs", "-"])?;
                table.push_str(&format!("{id} 1 8:1 / {point} rw shared:1 - {kind} none rw\n"));
            }
            table.into_bytes()
        }
        1 => some_scan_base(values::root(u)?, u.arbitrary()?),
        _ => {
            let mut names = Vec::new();
            for _ in 0..u.int_in_range(1..=6usize)? {
                names.push(if u.arbitrary()? { b"..".to_vec() } else { values::name(u)? });
            }
            [b"a/b\xfe".to_vec(), names.join(&b'/')].concat()
        }
    };
    let value = mutate(u, value)?;
    Ok([&[what], &value[..]].concat())
}

/// Names in an agent's ROOT, the record of a hook.
pub(super) fn agent_state(input: &[u8]) {
    state_file(input);
}

pub(super) fn any_agent_state(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let which = u.int_in_range(0..=2u8)?;
    let value = match which {
        0 => number(u)?.to_string().into_bytes(),
        1 => format!("spare-{}", number(u)?).into_bytes(),
        _ => {
            let occasion = Occasion {
                generation: number(u)?,
                root: "ab".repeat(32),
                label: String::from_utf8_lossy(&values::bytes(u, 20)?).into_owned(),
                previous: if u.arbitrary()? { Some(number(u)?) } else { None },
                tree: "/root/generations/1".into(),
                live: "/root/live".into(),
            };
            let path = values::bytes(u, 20)?
                .iter()
                .map(|b| if *b == b'\n' { b' ' } else { *b })
                .collect::<Vec<u8>>();
            some_due(&occasion, &[[&path[..], b"\n"].concat()])
        }
    };
    let value = mutate(u, value)?;
    Ok([&[which], &value[..]].concat())
}
