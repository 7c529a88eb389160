//! Answers to `publish status`, `publish check` and `publish gc`.

use std::sync::Arc;
use std::time::Duration;

use indicatif::HumanBytes;
use serde::{Deserialize, Serialize};
use syncd_shared::text::{counted, rfc3339};
use tokio::sync::{mpsc, watch};

use super::error::PublishError;
use super::keeper::{Checked, Collected, GcOptions, Keeper};
use super::{Locations, Order, PublishView};
use crate::admin::protocol::Reply;
use crate::admin::status::PublishStatus;

/// Bytes of progress between two reports.
const PROGRESS_BYTES: u64 = 64 << 20;

/// `publish` and what it is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PublishAction {
    Status,
    Check,
    /// `publish gc`.
    Gc {
        /// `--grace`.
        grace_ms: u64,
        /// `--keep`.
        keep: usize,
    },
}

/// Answers requests about the object store while the origin publishes.
#[derive(Clone)]
pub struct PublishRequests {
    pub(super) keeper: Arc<Keeper>,
    pub(super) view: watch::Receiver<PublishView>,
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) locations: Option<Locations>,
}

impl PublishRequests {
    /// The place that agents are told; `None` without `--publish-read`.
    pub fn locations(&self) -> Option<Locations> {
        self.locations.clone()
    }

    /// State of publishing.
    pub fn view(&self) -> PublishView {
        self.view.borrow().clone()
    }

    /// Answers one request. Blocks.
    pub fn answer(
        &self,
        action: PublishAction,
        lines: &mut dyn FnMut(Reply) -> bool,
    ) -> Result<u8, PublishError> {
        match action {
            PublishAction::Status => {
                lines(Reply::Publish(PublishStatus::from(self.view())));
                Ok(0)
            }
            PublishAction::Check => self.check(lines),
            PublishAction::Gc { grace_ms, keep } => {
                let options = GcOptions { grace: Duration::from_millis(grace_ms), keep };
                self.collect(options, lines)
            }
        }
    }

    fn check(&self, lines: &mut dyn FnMut(Reply) -> bool) -> Result<u8, PublishError> {
        let (mut damaged, mut told) = (Vec::new(), 0);
        let mut report = |bytes, total_bytes| {
            if bytes - told >= PROGRESS_BYTES {
                told = bytes;
                lines(Reply::Progress { bytes, total_bytes });
            }
        };
        let Checked { packs, updates, bytes, lost, lost_release } =
            self.keeper.check(&mut |damage| damaged.push(damage), &mut report)?;
        let damages = damaged.len();
        let result = if damages == 0 { "all intact".to_owned() } else { format!("{damages} damaged") };
        let text = format!(
            "checked {} and {}, {}: {result}",
            counted(packs as u64, "pack", "packs"),
            counted(updates as u64, "update", "updates"),
            HumanBytes(bytes)
        );
        for damage in damaged {
            lines(Reply::Damage { damage });
        }
        lines(Reply::Remark { text });
        if lost.is_empty() && !lost_release {
            return Ok(0);
        }
        self.order(Order::Lose(lost))?;
        let text =
            "what is damaged is put again now: check again when `syncd-origin publish status` shows no error";
        lines(Reply::Remark { text: text.into() });
        Ok(1)
    }

    fn collect(&self, options: GcOptions, lines: &mut dyn FnMut(Reply) -> bool) -> Result<u8, PublishError> {
        let Collected { deleted, deleted_bytes, waiting, waiting_bytes, due_ms, wasteful } =
            self.keeper.collect(options)?;
        let objects = |count| counted(count as u64, "object", "objects");
        let text = format!("deleted {}, {}", objects(deleted), HumanBytes(deleted_bytes));
        lines(Reply::Remark { text });
        if let Some(due_ms) = due_ms.filter(|_| waiting > 0) {
            let text = format!(
                "{}, {}, may be deleted from {} on: run `syncd-origin publish gc` again then",
                objects(waiting),
                HumanBytes(waiting_bytes),
                rfc3339(due_ms)
            );
            lines(Reply::Remark { text });
        }
        if !wasteful.is_empty() {
            let packs = counted(wasteful.len() as u64, "pack", "packs");
            let text = format!("{packs} will not be listed by the next generation: little of them is in use");
            lines(Reply::Remark { text });
            self.order(Order::Drop(wasteful))?;
        }
        Ok(0)
    }

    fn order(&self, order: Order) -> Result<(), PublishError> {
        self.orders.blocking_send(order).map_err(|_| PublishError::Stopped)
    }
}
