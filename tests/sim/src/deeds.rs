//! Deeds of people and machines, and accidents.

use std::fs;

use syncd_agent::session::event::Event as Heard;
use syncd_origin::commit::Outcome;
use syncd_origin::fleet::rollout::RolloutOrder;
use syncd_shared::{GenerationNumber, RootHash};

use crate::origin::{Origin, copy_directory};
use crate::world::{Event, Violation, World};

impl World {
    /// Does one deed, and sets the time of the next.
    pub async fn deed(&mut self) -> Result<(), Violation> {
        self.deeds_left = self.deeds_left.saturating_sub(1);
        if self.deeds_left > 0 {
            let longest = if self.random.one_in(3) { 12_000 } else { 700 };
            let pause = 1 + self.random.below(longest);
            self.after(pause, Event::Deed);
        }
        let n = self.random.below(self.nodes.len() as u64) as usize;
        match self.random.below(100) {
            0..=29 => {
                self.edit()?;
                self.commit(false)
            }
            30..=36 => self.edit(),
            37..=41 => self.commit(false),
            42..=46 => self.roll_back(),
            47..=56 => self.crash_node(n),
            57..=62 => self.crash_origin().await,
            63..=72 => {
                self.partition(n);
                Ok(())
            }
            73..=78 => {
                self.reset_connection(n);
                Ok(())
            }
            79..=83 => {
                self.count("agents stopped");
                self.note(format!("node {n} is stopped"));
                let longest = if self.random.one_in(3) { 90_000 } else { 3_000 };
                // Events noted during a stop keep their order, so no stop ends before another.
                let until = self.now_ms() + self.random.below(longest);
                self.nodes[n].stalled_until = self.nodes[n].stalled_until.max(until);
                Ok(())
            }
            84..=88 => {
                self.note(format!("node {n} is to verify"));
                self.apply(n, Heard::Verify).await
            }
            89..=91 => self.damage(n),
            92..=94 => self.back_up().await,
            95..=96 => self.restore().await,
            97..=98 if self.rolls => {
                let orders =
                    [RolloutOrder::Abort, RolloutOrder::Advance, RolloutOrder::Pause, RolloutOrder::Resume];
                let order = self.random.pick(&orders).copied().unwrap_or(RolloutOrder::Abort);
                self.order(order).await;
                Ok(())
            }
            _ => self.reboot_all(),
        }
    }

    pub fn edit(&mut self) -> Result<(), Violation> {
        self.note("edit");
        self.site.round().map_err(|error| self.violation(format!("the simulation can't edit: {error}")))
    }

    /// Runs `syncd-origin commit` if the origin runs.
    pub fn commit(&mut self, must: bool) -> Result<(), Violation> {
        let options = self.commit_options();
        let Some(origin) = &mut self.origin else {
            return if must { Err(self.violation("no origin to commit with")) } else { Ok(()) };
        };
        let result = origin.sealer.commit(options);
        self.count("commits");
        if let Ok(Outcome::Sealed(generation)) = &result
            && !self.fingerprints.contains_key(&generation.root_hash())
        {
            self.judge(generation.root_hash(), !must);
        }
        self.sealed("commit", result.map_err(|e| format!("{e}: {e:?}")), true)
    }

    pub fn sealed(
        &mut self,
        what: &str,
        result: Result<Outcome, String>,
        of_tree: bool,
    ) -> Result<(), Violation> {
        match result {
            Ok(Outcome::Sealed(generation)) => {
                self.note(format!("{what} seals {} {}", generation.number(), generation.root_hash()));
                self.remember(&generation, of_tree)
            }
            Ok(Outcome::Unchanged(generation)) => {
                self.note(format!("{what}: still {}", generation.number()));
                self.remember(&generation, of_tree)
            }
            Ok(Outcome::Scanned | Outcome::Found(_)) => {
                self.note(format!("{what}: nothing"));
                Ok(())
            }
            Err(error) => Err(self.violation(format!("{what} failed: {error}"))),
        }
    }

    fn roll_back(&mut self) -> Result<(), Violation> {
        let Some(origin) = &mut self.origin else { return Ok(()) };
        let newest = origin.sealer.current().map_or(0, |g| g.number().get());
        let Some(number) = GenerationNumber::new(newest.saturating_sub(self.random.below(4))) else {
            return Ok(());
        };
        // After a restore, generations may be missing.
        let Ok(Some(_)) = origin.store.generation(number) else { return Ok(()) };
        let result = origin.sealer.rollback(Some(number));
        self.count("rollbacks");
        self.sealed("rollback", result.map_err(|e| e.to_string()), false)
    }

    fn crash_node(&mut self, n: usize) -> Result<(), Violation> {
        self.count("agents killed");
        self.note(format!("node {n} is killed"));
        self.kill_node(n);
        self.nodes[n].boots += u64::from(self.random.one_in(2));
        let pause = if self.random.one_in(3) { self.random.below(20_000) } else { self.random.below(50) };
        self.after(pause, Event::Start { node: n });
        Ok(())
    }

    fn reboot_all(&mut self) -> Result<(), Violation> {
        (0..self.nodes.len()).try_for_each(|n| self.crash_node(n))
    }

    /// Cuts all connections to the origin, and ends it.
    pub async fn stop_origin(&mut self, orderly: bool) -> Result<(), Violation> {
        let Some(origin) = self.origin.take() else { return Ok(()) };
        self.note(format!("the origin ends, orderly: {orderly}"));
        for control in self.abandoned.drain(..) {
            control.session.abort();
        }
        for n in 0..self.nodes.len() {
            if let Some(control) = &self.nodes[n].control {
                control.session.abort();
            }
            if let Some(running) = &mut self.nodes[n].running {
                running.transfers.values_mut().for_each(|transfer| transfer.answer.abort());
            }
        }
        let ended = origin.end(orderly).await;
        ended.map_err(|error| self.violation(error.to_string()))
    }

    async fn crash_origin(&mut self) -> Result<(), Violation> {
        self.count("origins killed");
        let orderly = self.random.one_in(4);
        self.stop_origin(orderly).await?;
        let pause = if self.random.one_in(3) { self.random.below(40_000) } else { self.random.below(500) };
        self.after(pause, Event::OriginUp);
        Ok(())
    }

    pub fn start_origin(&mut self) -> Result<(), Violation> {
        if self.origin.is_some() {
            return Ok(());
        }
        let origin = Origin::start(&self.tree, &self.data, self.part);
        let origin =
            origin.map_err(|error| self.violation(format!("the origin does not start: {error:#}")))?;
        let current = origin.sealer.current().map(|g| g.number());
        self.origin = Some(origin);
        self.note(format!("the origin starts with {current:?}"));
        Ok(())
    }

    fn partition(&mut self, n: usize) {
        self.count("partitions");
        let longest = if self.random.one_in(3) { 120_000 } else { 4_000 };
        let until = self.now_ms() + self.random.below(longest);
        self.note(format!("node {n} is cut off until {until}"));
        self.nodes[n].partitioned_until = until;
    }

    /// Resets both directions of a connection.
    fn reset_connection(&mut self, n: usize) {
        self.count("resets");
        self.note(format!("node {n}'s connections are reset"));
        if let Some(control) = self.nodes[n].control.take() {
            control.session.abort();
            self.after(1, Event::Lost { node: n, connection: control.connection });
        }
        if let Some(running) = &mut self.nodes[n].running {
            running.transfers.values_mut().for_each(|transfer| transfer.answer.abort());
        }
    }

    /// Changes files of a tree that is no longer live. Each change makes a new inode, because the live tree
    /// shares the old ones.
    fn damage(&mut self, n: usize) -> Result<(), Violation> {
        let Some(running) = &self.nodes[n].running else { return Ok(()) };
        let live = self.nodes[n].live.map(|(number, _)| number);
        let numbers: Vec<u64> = running.machine.replica().generations.iter().map(|g| g.get()).collect();
        let Some(number) = numbers.into_iter().find(|number| Some(*number) != live) else { return Ok(()) };
        let tree = self.nodes[n].root.join("generations").join(number.to_string());
        self.count("trees damaged");
        self.note(format!("node {n}: generation {number} is damaged"));
        self.nodes[n].damaged.insert(number);
        let file = tree.join("round.txt");
        let planted = self.random.one_in(2);
        let done = if planted { fs::write(tree.join("planted.php"), "evil") } else { Ok(()) };
        let removed =
            done.and_then(|()| fs::remove_file(&file)).and_then(|()| fs::write(&file, "not what was signed"));
        // The tree may have gone to the trash meanwhile.
        if let Err(error) = removed
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(self.violation(format!("the simulation can't damage a tree: {error}")));
        }
        Ok(())
    }

    async fn back_up(&mut self) -> Result<(), Violation> {
        let was_up = self.origin.is_some();
        self.stop_origin(true).await?;
        self.count("backups");
        self.note("the origin is backed up");
        copy_directory(&self.data, &self.backup).map_err(|error| self.violation(error.to_string()))?;
        if was_up { self.start_origin() } else { Ok(()) }
    }

    /// Loses the origin's data, and restores the backup.
    async fn restore(&mut self) -> Result<(), Violation> {
        if !self.backup.exists() {
            return Ok(());
        }
        let was_up = self.origin.is_some();
        self.stop_origin(false).await?;
        self.count("restores");
        self.note("the origin is restored from its backup");
        self.restored = true;
        copy_directory(&self.backup, &self.data).map_err(|error| self.violation(error.to_string()))?;
        if was_up { self.start_origin() } else { Ok(()) }
    }

    /// Tells the origin about generations that agents have and it does not know.
    pub async fn observe(&mut self) -> Result<(), Violation> {
        while let Some(origin) = &mut self.origin
            && let Ok(generation) = origin.observed.try_recv()
        {
            let number = generation.number();
            let result = origin.sealer.observe(generation);
            self.count("observed generations");
            self.sealed(&format!("observing {number}"), result.map_err(|e| e.to_string()), false)?;
        }
        Ok(())
    }

    /// Another root than this one, if there is one.
    pub fn another_root(&self, root: RootHash) -> RootHash {
        self.sealed.iter().map(|(_, other)| *other).find(|other| *other != root).unwrap_or(root)
    }
}
