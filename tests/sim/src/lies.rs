//! Falsifies messages as networks and peers do: flipped bits, replays, mixtures, and messages that nobody
//! sent.

use bytes::Bytes;
use prost::Message;
use syncd_proto::v1;
use syncd_proto::v1::agent_message::Message as ToOrigin;
use syncd_proto::v1::origin_message::Message as ToAgent;
use syncd_shared::update_file::{read_whole, write_whole};
use syncd_tests::Seeded;

/// Flips one bit of a message; `None`: the result does not decode.
fn flipped<M: Message + Default>(message: &M, random: &mut Seeded) -> Option<M> {
    let mut bytes = message.encode_to_vec();
    if !bytes.is_empty() {
        let at = random.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << random.below(8);
    }
    M::decode(bytes.as_slice()).ok()
}

fn flip_bytes(bytes: &Bytes, random: &mut Seeded) -> Bytes {
    let mut bytes = bytes.to_vec();
    if !bytes.is_empty() {
        let at = random.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << random.below(8);
    }
    bytes.into()
}

/// Falsifies an origin's message. `heard` contains what the origin said to anyone before.
pub fn to_agent(
    message: &v1::OriginMessage,
    heard: &[v1::OriginMessage],
    random: &mut Seeded,
) -> Vec<v1::OriginMessage> {
    let mut lie = message.clone();
    match (random.below(9), &mut lie.message) {
        (0, _) => random.pick(heard).cloned().into_iter().collect(),
        (1, _) => vec![message.clone(), message.clone()],
        (2, _) => flipped(message, random).into_iter().collect(),
        (3, _) => vec![v1::OriginMessage { message: None }],
        (4, Some(ToAgent::Announce(announce))) => {
            if let Some(generation) = &mut announce.generation {
                generation.record = flip_bytes(&generation.record, random);
            }
            vec![lie]
        }
        (5, Some(ToAgent::Announce(announce))) => {
            // Takes the signature, or the update, from another announcement.
            if let Some(ToAgent::Announce(other)) = random.pick(heard).and_then(|m| m.message.clone()) {
                if let (Some(a), Some(b), true) =
                    (&mut announce.generation, other.generation, random.one_in(2))
                {
                    a.signature = b.signature;
                } else {
                    announce.update_file = other.update_file;
                }
            }
            vec![lie]
        }
        (6, Some(ToAgent::Announce(announce))) => {
            if let Ok((index, mut frames)) = read_whole(&announce.update_file)
                && !frames.is_empty()
            {
                let at = random.below(frames.len() as u64) as usize;
                if random.one_in(2) {
                    frames[at] = flip_bytes(&frames[at], random);
                } else {
                    frames.remove(at);
                }
                announce.update_file = write_whole(&index.from(), &index.to(), &frames).expect("fits");
            }
            vec![lie]
        }
        (7, _) => {
            let root = Bytes::from(random.bytes(32));
            let activate = v1::Activate { generation: random.below(9), root, flipped: false };
            vec![message.clone(), v1::OriginMessage { message: Some(ToAgent::Activate(activate)) }]
        }
        (_, _) => Vec::new(),
    }
}

/// Falsifies an agent's message. It may claim to have `newest`, or a generation that nobody sealed.
pub fn to_origin(
    message: &v1::AgentMessage,
    said: &[v1::AgentMessage],
    newest: u64,
    random: &mut Seeded,
) -> Vec<v1::AgentMessage> {
    match random.below(6) {
        0 => random.pick(said).cloned().into_iter().collect(),
        1 => vec![message.clone(), message.clone()],
        2 => flipped(message, random).into_iter().collect(),
        3 => vec![v1::AgentMessage { message: None }],
        4 => {
            let root = Bytes::from(random.bytes(32));
            let activated = v1::Activated {
                generation: 1 + random.below(newest + 3),
                root,
                spare_misses: 0,
                hook_due: false,
            };
            vec![v1::AgentMessage { message: Some(ToOrigin::Activated(activated)) }]
        }
        _ => Vec::new(),
    }
}

/// Replacement of a frame.
pub enum FrameLie {
    Instead(v1::FetchFrame),
    /// Nothing: the next frame takes its place.
    Missing,
    /// The stream breaks.
    Broken,
}

/// Falsifies a frame. `other` is a frame that some agent was sent before.
pub fn frame(frame: &v1::FetchFrame, other: Option<&v1::FetchFrame>, random: &mut Seeded) -> FrameLie {
    match (random.below(5), other) {
        (0..=1, _) => flipped(frame, random).map_or(FrameLie::Broken, FrameLie::Instead),
        (2, Some(other)) => {
            FrameLie::Instead(v1::FetchFrame { item: frame.item, frame: other.frame.clone() })
        }
        // After the end, nothing more arrives unless it is asked for.
        (3, _) if !crate::transfer::is_end(frame) => FrameLie::Missing,
        _ => FrameLie::Broken,
    }
}

/// Names an origin's message in the trace.
pub fn name_of_origins(message: &v1::OriginMessage) -> String {
    match &message.message {
        None => "nothing".into(),
        Some(ToAgent::Welcome(_)) => "welcome".into(),
        Some(ToAgent::TrustDocument(_)) => "trust document".into(),
        Some(ToAgent::Announce(a)) => {
            let inline = read_whole(&a.update_file).map_or(0, |(_, frames)| frames.len());
            let number = a.generation.as_ref().and_then(|g| syncd_shared::Generation::decode(&g.record).ok());
            format!(
                "announce {:?} with {inline} frames",
                number.map(|g| (g.number.get(), g.root_hash().to_string()))
            )
        }
        Some(ToAgent::Activate(a)) => format!("activate {}", a.generation),
        Some(ToAgent::Standing(s)) => format!("drained {} pinned {}", s.drained, s.pinned),
        Some(ToAgent::Heartbeat(h)) => format!("heartbeat {}", h.sequence),
    }
}

/// Names an agent's message in the trace.
pub fn name_of_agents(message: &ToOrigin) -> String {
    match message {
        ToOrigin::Hello(h) => format!("hello, {} held", h.held.len()),
        ToOrigin::Heartbeat(h) => format!("heartbeat {}", h.sequence),
        ToOrigin::Progress(p) => format!("progress {}", p.generation),
        ToOrigin::Staged(s) => format!("staged {}", s.generation),
        ToOrigin::Activated(a) => format!("activated {} misses {}", a.generation, a.spare_misses),
        ToOrigin::Failed(f) => format!("failed {} class {}", f.generation, f.retry),
        ToOrigin::Hook(h) => format!("hook {} outcome {}", h.generation, h.outcome),
        ToOrigin::Drift(d) => format!("drift {} paths {}", d.generation, d.paths),
        ToOrigin::Check(c) => format!("check {} outcome {}", c.generation, c.outcome),
        ToOrigin::Standing(s) => format!("drained {} pinned {}", s.drained, s.pinned),
    }
}
