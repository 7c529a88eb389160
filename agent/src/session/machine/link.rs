//! The connection as the machine sees it: greeting, heartbeats, silence, loss and redialling.

use std::time::{Duration, Instant};

use syncd_proto::v1;
use syncd_proto::v1::agent_message::Message as ToOrigin;
use syncd_proto::v1::origin_message::Message as FromOrigin;
use syncd_shared::CheckStatus;
use syncd_shared::text::one_line;
use syncd_shared::wire::FEATURE_COLLECTED;

use super::{GREETING_TIMEOUT, Machine};
use crate::session::event::{Action, Violation};
use crate::session::messages::{self, PROTOCOL_MAX, PROTOCOL_MIN};

/// Unanswered heartbeats after which the connection counts as broken.
pub(super) const MISSED_HEARTBEATS: u32 = 3;

/// Bounds of the heartbeat interval that a `Welcome` may ask for, and the interval if it asks for none.
const HEARTBEAT_SHORTEST: Duration = Duration::from_millis(100);

const HEARTBEAT_LONGEST: Duration = Duration::from_secs(60);

const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(10);

/// A connection that lasted this long was a success, so the next pause is short.
const SETTLED: Duration = Duration::from_secs(5);

/// Bytes kept of the origin's version.
const VERSION_MAX_BYTES: usize = 64;

/// The connection to the origin.
#[derive(Debug, Clone)]
pub(super) enum Link {
    Down { redial_at: Instant },
    Greeting { since: Instant },
    Up(Up),
}

#[derive(Debug, Clone)]
pub(super) struct Up {
    pub(super) since: Instant,
    pub(super) interval: Duration,
    pub(super) next_heartbeat: Instant,
    pub(super) sequence: u64,
    pub(super) heard: Instant,
}

impl Machine {
    pub(super) fn hear(
        &mut self,
        message: v1::OriginMessage,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> Result<(), Violation> {
        let message = message.message.ok_or(Violation::Empty)?;
        if let Link::Up(up) = &mut self.link {
            up.heard = now;
        }
        match (message, self.is_connected()) {
            (FromOrigin::Welcome(welcome), false) => self.welcomed(&welcome, now, out),
            (FromOrigin::Announce(announce), true) => self.announced(announce, out),
            (FromOrigin::Activate(activate), true) => self.told_to_activate(&activate),
            (FromOrigin::TrustDocument(document), true) => self.follow(&document, out),
            (FromOrigin::Standing(standing), true) => {
                self.ordered_there(Some(&standing));
                Ok(())
            }
            (FromOrigin::Heartbeat(_), true) => Ok(()),
            _ => Err(Violation::Order),
        }
    }

    fn welcomed(
        &mut self,
        welcome: &v1::Welcome,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> Result<(), Violation> {
        if !(PROTOCOL_MIN..=PROTOCOL_MAX).contains(&welcome.protocol) {
            return Err(Violation::Protocol { actual: welcome.protocol });
        }
        self.follow(&welcome.trust_document, out)?;
        let interval = match welcome.heartbeat_interval_ms {
            0 => HEARTBEAT_DEFAULT,
            ms => Duration::from_millis(ms.into()).clamp(HEARTBEAT_SHORTEST, HEARTBEAT_LONGEST),
        };
        let next_heartbeat = now + interval;
        self.link = Link::Up(Up { since: now, interval, next_heartbeat, sequence: 0, heard: now });
        self.link_error = None;
        self.is_revoked = false;
        self.ordered_there(welcome.standing.as_ref());
        // Damage that was found while the origin could not be reached.
        self.verify_wanted |= self.drift_error.is_some();
        let version = one_line(&welcome.origin_version, VERSION_MAX_BYTES);
        self.origin_version = Some(version).filter(|version| !version.is_empty());
        self.origin_collects = welcome.features.iter().any(|feature| feature == FEATURE_COLLECTED);
        let generation = self.replica.live.as_ref().map_or(0, |live| live.number().get());
        tracing::info!(generation, "connected to the origin");
        self.tell_at = self.tell_at.map(|_| now);
        if self.replica.live.as_ref().map(|l| (l.number(), l.root_hash())) != self.shown {
            // It was activated after the hello was sent. A failed check or a pin explains a lower number.
            self.tell_check(out);
            self.tell_standing(out);
            self.say_activated(out);
        }
        if self.replica.drift != self.shown_drift {
            self.send(messages::drift(self.replica.drift.as_ref()), out);
        }
        Ok(())
    }

    pub(super) fn lost(&mut self, reason: String, now: Instant) {
        match &self.link {
            Link::Down { .. } => return,
            Link::Up(up) if now >= up.since + SETTLED => self.redial.reset(),
            _ => {}
        }
        let was_up = self.is_connected();
        if was_up && !self.stopping {
            tracing::info!(
                reason,
                "disconnected from the origin: the live generation stays, and the agent reconnects"
            );
        } else if !self.stopping && self.link_error.as_ref() != Some(&reason) {
            tracing::warn!(error = reason, "not connected to the origin");
        }
        self.link_error = Some(reason);
        self.link = Link::Down { redial_at: now + self.redial.pause() };
    }

    pub(super) fn hang(&mut self, reason: String, now: Instant, out: &mut Vec<Action>) {
        out.push(Action::Hang);
        self.lost(reason, now);
    }

    pub(super) fn renewed(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.is_revoked = false;
        if !matches!(self.link, Link::Down { .. }) {
            tracing::info!("reconnecting to the origin with a new certificate");
        }
        self.redial(now, out);
    }

    /// Connects anew, at once.
    pub(super) fn redial(&mut self, now: Instant, out: &mut Vec<Action>) {
        if !matches!(self.link, Link::Down { .. }) {
            out.push(Action::Hang);
        }
        self.link = Link::Down { redial_at: now };
    }

    pub(super) fn keep_link(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.stopping {
            return;
        }
        let mut heartbeat = None;
        let mut silence = None;
        match &mut self.link {
            Link::Down { redial_at } if now >= *redial_at => {
                self.hook_told = self.hook_report();
                self.checks.told = self.checks.status.as_ref().map(CheckStatus::to_report);
                self.standing_told = self.replica.decisions.node;
                self.said_staged = None;
                let (hook, check) = (self.hook_told.clone(), (self.has_check(), self.checks.told.clone()));
                let (boot_id, trust) = (&self.trust.boot_id, &self.trust.keys);
                let hello = messages::hello(boot_id, trust, &self.replica, hook, check);
                out.push(Action::Dial(Box::new(hello)));
                self.shown = self.replica.live.as_ref().map(|l| (l.number(), l.root_hash()));
                self.shown_drift = self.replica.drift.clone();
                self.link = Link::Greeting { since: now };
            }
            Link::Greeting { since } if now >= *since + GREETING_TIMEOUT => {
                silence = Some("the origin does not answer");
            }
            Link::Up(up) if now >= up.heard + up.interval * MISSED_HEARTBEATS => {
                silence = Some("the origin has fallen silent");
            }
            Link::Up(up) if now >= up.next_heartbeat => {
                up.next_heartbeat = now + up.interval;
                up.sequence += 1;
                heartbeat = Some(up.sequence);
            }
            _ => {}
        }
        if let Some(reason) = silence {
            self.hang(reason.to_owned(), now, out);
        }
        if let Some(sequence) = heartbeat {
            self.send(ToOrigin::Heartbeat(v1::Heartbeat { sequence }), out);
        }
    }

    pub(super) fn send(&self, message: ToOrigin, out: &mut Vec<Action>) {
        // A message lost here is covered by the next `Hello` and the answer to its announcement.
        if self.is_connected() {
            out.push(Action::Send(message));
        }
    }
}
