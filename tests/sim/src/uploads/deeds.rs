//! Deeds of visitors and people, and accidents.

use std::collections::BTreeSet;
use std::fs;

use syncd_agent::collected::Event as Heard;
use syncd_origin::collected::{AT_ORIGIN, NodeChange};
use syncd_shared::collected::Change;

use super::visit::{Visit, contents_below};
use super::{Event, World};
use crate::origin::copy_directory;

impl World {
    /// Does one deed, and sets the time of the next.
    pub(super) async fn deed(&mut self) -> anyhow::Result<()> {
        self.deeds_left -= 1;
        if self.deeds_left > 0 {
            let longest = if self.random.one_in(4) { 8_000 } else { 150 };
            let pause = self.random.below(longest);
            self.after(pause, Event::Deed);
        }
        let n = self.random.below(self.nodes.len() as u64) as usize;
        match self.random.below(100) {
            0..=58 => self.visit(n)?,
            59..=66 => self.crash_node(n),
            67..=72 => self.crash_origin().await,
            73..=81 => self.partition(n),
            82..=85 => self.cut(n),
            86..=88 => self.lose_journal(n)?,
            89 => self.lose_node(n)?,
            90..=92 => return self.step(n, vec![Heard::Everything]).await,
            93..=94 => self.back_up()?,
            95 => self.restore_backup().await?,
            _ => self.restore_version().await?,
        }
        self.settle().await
    }

    fn visit(&mut self, n: usize) -> anyhow::Result<()> {
        for _ in 0..1 + self.random.below(3) {
            let visit = Visit::random(&mut self.random, &mut self.newest_content);
            if let Some(visited) = visit.perform(&self.nodes[n].files()) {
                self.report(n, &visited);
            }
        }
        self.report_directories(n)
    }

    fn crash_node(&mut self, n: usize) {
        self.note(format!("node {n} is killed"));
        self.count("nodes killed");
        self.kill_node(n);
        let longest = if self.random.one_in(3) { 20_000 } else { 500 };
        let pause = self.random.below(longest);
        self.after(pause, Event::StartNode { node: n });
    }

    async fn crash_origin(&mut self) {
        self.note("the origin is killed");
        self.count("origins killed");
        self.end_origin().await;
        let longest = if self.random.one_in(3) { 20_000 } else { 500 };
        let pause = self.random.below(longest);
        self.after(pause, Event::StartOrigin);
    }

    fn partition(&mut self, n: usize) {
        let longest = if self.random.one_in(3) { 30_000 } else { 1_000 };
        let until = self.now_ms + self.random.below(longest);
        self.nodes[n].partitioned_until = self.nodes[n].partitioned_until.max(until);
        self.note(format!("node {n} is cut off until {until}"));
        self.count("partitions");
        if self.random.one_in(2) {
            self.cut(n);
        }
    }

    /// Breaks the node's connection.
    pub(super) fn cut(&mut self, n: usize) {
        let Some(id) = self.nodes[n].session.as_ref().map(|session| session.id) else { return };
        self.count("connections broken");
        self.after(0, Event::Lost { node: n, session: id });
    }

    fn lose_journal(&mut self, n: usize) -> anyhow::Result<()> {
        self.crash_node(n);
        self.note(format!("node {n} loses its journal"));
        self.count("journals lost");
        self.promises.forgot(n);
        remove_if_there(&self.nodes[n].root.join("state/collected.redb"))
    }

    /// A node is made anew from nothing.
    fn lose_node(&mut self, n: usize) -> anyhow::Result<()> {
        self.lose_journal(n)?;
        self.note(format!("node {n} loses its files"));
        self.count("nodes lost");
        self.promises.lost(n);
        fs::remove_dir_all(self.nodes[n].root.join("collected"))?;
        Ok(fs::create_dir_all(self.nodes[n].files())?)
    }

    fn back_up(&mut self) -> anyhow::Result<()> {
        let Some(origin) = &self.origin else { return Ok(()) };
        if self.backup.exists() {
            fs::remove_dir_all(&self.backup)?;
        }
        fs::create_dir_all(&self.backup)?;
        origin.collection.backup(&self.backup, &mut |_| {})?;
        self.note("a backup");
        self.count("backups");
        Ok(())
    }

    async fn restore_backup(&mut self) -> anyhow::Result<()> {
        if !self.backup.exists() {
            return Ok(());
        }
        self.note("the backup is restored");
        self.count("backups restored");
        self.end_origin().await;
        // Answers of the origin that is gone arrive nowhere.
        self.queue.retain(|_, event| !matches!(event, Event::Down { .. }));
        copy_directory(&self.backup, &self.data)?;
        self.start_origin()?;
        let files = self.nodes.iter().map(|node| contents_below(&node.files(), "").into_iter().collect());
        let disks: Vec<BTreeSet<_>> = files.collect();
        let Some(origin) = &self.origin else { return Ok(()) };
        self.promises.restored(&disks, &origin.collection, &self.name)
    }

    /// A person restores an earlier version of a path.
    async fn restore_version(&mut self) -> anyhow::Result<()> {
        let Some(origin) = &self.origin else { return Ok(()) };
        let chains = origin.collection.chains(&self.name, &syncd_shared::TreePath::root())?;
        let past = chains.iter().flat_map(|(path, chain, _)| {
            chain.past().iter().map(move |past| (path, chain.current().number, past.version.state))
        });
        let past: Vec<_> = past.collect();
        let Some((path, base, state)) = self.random.pick(&past) else { return Ok(()) };
        let change = NodeChange {
            directory: self.name.clone(),
            node: AT_ORIGIN.to_owned(),
            path: (*path).clone(),
            change: Change { base: *base, state: *state },
        };
        if let Some(content) = self.promises.content_of(state) {
            self.promises.wrote(&(path.to_string(), content));
        }
        origin.collection.submit(change).await?;
        self.note("a person restores a version");
        self.count("versions restored");
        Ok(())
    }
}

fn remove_if_there(path: &std::path::Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}
