//! Decides who may write the next generation of a published tree, from what the object store answers.
//!
//! In fenced mode a commit is the creation of `gen/NUMBER`, which the store grants to one writer. An answer
//! may be lost although the object was created, and a request may take effect long after its writer gave it
//! up. Hence each running origin draws a nonce. After every answer but success it reads the object back, and
//! compares it with the bytes that it offers, because earlier bytes of its own may have come late:
//!
//! | found | means | then |
//! | --- | --- | --- |
//! | nothing | the request was lost, or comes late | write again, the same bytes or others |
//! | own nonce, the bytes that are offered | the request has taken effect | committed |
//! | own nonce, other bytes | a late request that was given up | skip the number |
//! | a nonce of this origin before its last start | a late request of before a crash | skip the number |
//! | lower epoch | a late request of a deposed origin | skip the number |
//! | higher epoch | another origin was promoted | deposed: hold |
//! | own epoch, foreign nonce | two origins run from one backup | copied: hold |
//!
//! A promoted origin creates the first number that is free, which deposes the origin before it at its next
//! commit. From then on it numbers [`PROMOTION_JUMP`] higher, out of reach of whatever the other one sealed
//! without publishing it.
//!
//! This module does no IO. Its tests walk through every order of events of two origins, one store and two
//! agents.

#[cfg(test)]
mod tests;

use super::Nonce;

/// Distance between the last number of an origin and the numbers of the one that replaced it.
pub const PROMOTION_JUMP: u64 = 1 << 20;

/// The writer of the object of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Author {
    pub epoch: u32,
    pub nonce: Nonce,
}

/// The fate of the generation that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Committed,
    /// Its fate is open: the number must be written again, with the same bytes or with others.
    Retry,
    /// The number is taken by a deposed origin, or by an earlier request of this one. The offered generation
    /// gets the next number.
    Skipped,
    Held(Reason),
}

/// Why an origin may write nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Reason {
    #[error("another origin was promoted and writes epoch {epoch}: this one is deposed")]
    Deposed { epoch: u32 },
    #[error("another origin writes the same epoch: two origins run from one backup")]
    Copied,
}

/// The right of one origin to write generations.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence {
    own: Author,
    /// Nonces of this origin before its last start.
    earlier: Vec<Nonce>,
    /// The number to write next, or being written.
    next: u64,
    /// Added to the number after the next commit: not 1 only for the first commit after a promotion.
    step: u64,
    held: Option<Reason>,
}

impl Fence {
    /// The right of an origin that starts. `last` is the last generation that it has.
    pub fn started(own: Author, earlier: Vec<Nonce>, last: u64) -> Self {
        Self { own, earlier, next: last.saturating_add(1), step: 1, held: None }
    }

    /// The right of an origin that is promoted: its epoch is higher than any before. `last` is the last
    /// generation that it has seen; later ones are found on the way.
    pub fn promoted(own: Author, earlier: Vec<Nonce>, last: u64, jump: u64) -> Self {
        Self { step: jump, ..Self::started(own, earlier, last) }
    }

    pub fn author(&self) -> Author {
        self.own
    }

    pub fn held(&self) -> Option<Reason> {
        self.held
    }

    /// The number under which the next generation is to be created.
    pub fn offer(&self) -> Result<u64, Reason> {
        match self.held {
            Some(reason) => Err(reason),
            None => Ok(self.next),
        }
    }

    /// Leaves out numbers below this one, unless the next one has to depose another origin.
    pub fn at_least(&mut self, number: u64) {
        if self.step == 1 {
            self.next = self.next.max(number);
        }
    }

    /// The store answers that the object was created.
    pub fn created(&mut self) -> Verdict {
        self.decide(Verdict::Committed)
    }

    /// After any other answer, or none: the author of the object that was read back, and whether it has the
    /// bytes that were offered.
    pub fn found(&mut self, author: Option<Author>, is_same: bool) -> Verdict {
        let verdict = match author {
            None => Verdict::Retry,
            Some(author) if author == self.own && is_same => Verdict::Committed,
            Some(author) if author == self.own => Verdict::Skipped,
            Some(Author { epoch, .. }) if epoch > self.own.epoch => Verdict::Held(Reason::Deposed { epoch }),
            Some(Author { epoch, .. }) if epoch < self.own.epoch => Verdict::Skipped,
            Some(Author { nonce, .. }) if self.earlier.contains(&nonce) => Verdict::Skipped,
            Some(_) => Verdict::Held(Reason::Copied),
        };
        self.decide(verdict)
    }

    fn decide(&mut self, verdict: Verdict) -> Verdict {
        match verdict {
            Verdict::Retry => {}
            Verdict::Committed => {
                self.next = self.next.saturating_add(self.step);
                self.step = 1;
            }
            Verdict::Skipped => self.next = self.next.saturating_add(1),
            Verdict::Held(reason) => self.held = Some(reason),
        }
        verdict
    }
}
