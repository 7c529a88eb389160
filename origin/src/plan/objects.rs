//! Answers objects requests: the general path, by which an agent can fetch anything that it is missing.

mod last_tree;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use syncd_proto::v1;
use syncd_proto::v1::fetch_frame::Frame as Message;
use syncd_shared::directory::{Kind, Page};
use syncd_shared::limits::{DIRECTORY_FRAME_BYTES, OBJECTS_BATCH_MAX};
use syncd_shared::wire::{DirectoryFiles, ObjectsBatch, directories_message};
use syncd_shared::{ContentHash, ObjectHash, RootHash};

use crate::plan::contents::{Contents, DirectoryError};
use crate::plan::error::PlanError;
use crate::plan::reached::Reached;
use crate::plan::stored::{ContentFrames, end};

pub(super) use self::last_tree::LastTree;
use self::last_tree::{LAST_TREE_BYTES, WholeTree};

/// Iterates over the answer to one objects request in bounded memory. Blocks while it reads the store.
pub struct ObjectsAnswer {
    contents: Arc<dyn Contents>,
    last: Arc<LastTree>,
    reached: Arc<Reached>,
    request: u64,
    recursive: bool,
    /// The request, until its objects have been admitted.
    asked: Option<(RootHash, ObjectsBatch)>,
    /// Whether the whole tree of a retained generation is being sent.
    sends_tree: bool,
    /// Messages collected for [`LastTree`].
    whole: Option<WholeTree>,
    /// Whether contents may be sent in the preceding answer.
    early: bool,
    /// The answer to the next request.
    next: Option<Box<ObjectsAnswer>>,
    /// Directories still to be sent, the next one last.
    directories: Vec<ObjectHash>,
    sent: HashSet<ObjectHash>,
    /// Directories whose files are still to be sent, the next one last.
    files_of: Vec<DirectoryFiles>,
    /// Contents of the files looked up in those directories.
    listed: Vec<ContentHash>,
    /// All requested contents.
    seen: HashSet<ContentHash>,
    files: ContentFrames,
    missing: Vec<[u8; 32]>,
    ready: VecDeque<Message>,
    item: u64,
    ended: bool,
}

impl ObjectsAnswer {
    pub(super) fn new(
        contents: Arc<dyn Contents>,
        last: Arc<LastTree>,
        reached: Arc<Reached>,
        request: u64,
        root: RootHash,
        batch: ObjectsBatch,
    ) -> Self {
        Self {
            contents,
            last,
            reached,
            request,
            recursive: batch.recursive,
            whole: None,
            sends_tree: false,
            early: batch.early,
            next: None,
            directories: Vec::new(),
            sent: HashSet::new(),
            files_of: Vec::new(),
            listed: Vec::new(),
            seen: HashSet::new(),
            files: ContentFrames::new(Vec::new()),
            missing: Vec::new(),
            ready: VecDeque::new(),
            item: 0,
            ended: false,
            asked: Some((root, batch)),
        }
    }

    /// Removes objects that may not be requested, and reports them as missing. Runs once, before anything is
    /// answered.
    fn admit(&mut self) -> Result<(), PlanError> {
        let Some((root, batch)) = self.asked.take() else { return Ok(()) };
        let ObjectsBatch { mut directories, mut files, mut files_of, recursive, .. } = batch;
        let root = self.contents.root(&root)?.map(|root| root.object);
        let is_whole_tree = root.is_some_and(|root| directories[..] == [root]);
        match root {
            None => {
                self.refuse(directories.drain(..).map(|hash| *hash.as_bytes()));
                self.refuse(files.drain(..).map(|hash| *hash.as_bytes()));
                self.refuse(files_of.drain(..).take(1).map(|of| *of.directory.as_bytes()));
            }
            // The root's own directory needs no walk, and nearly all requests for directories name it.
            Some(_) if is_whole_tree && files.is_empty() && files_of.is_empty() => {}
            Some(root) => {
                let reached = self.reached.clone();
                let sets = reached.with_tree(&*self.contents, root, !files.is_empty())?;
                let no_directories: Vec<_> = directories.extract_if(.., |d| !sets.has_directory(d)).collect();
                self.refuse(no_directories.iter().map(|hash| *hash.as_bytes()));
                let no_files: Vec<_> = files.extract_if(.., |file| !sets.has_content(file)).collect();
                self.refuse(no_files.iter().map(|hash| *hash.as_bytes()));
                // One refused directory stands for its files and for all other `files_of`.
                if let Some(of) = files_of.iter().find(|of| !sets.has_directory(&of.directory)) {
                    self.refuse([*of.directory.as_bytes()]);
                    files_of.clear();
                }
            }
        }
        self.begin(directories, files, files_of, recursive, is_whole_tree);
        Ok(())
    }

    fn refuse(&mut self, hashes: impl IntoIterator<Item = [u8; 32]>) {
        self.missing.extend(hashes);
    }

    fn begin(
        &mut self,
        mut directories: Vec<ObjectHash>,
        files: Vec<ContentHash>,
        mut files_of: Vec<DirectoryFiles>,
        recursive: bool,
        is_whole_tree: bool,
    ) {
        directories.reverse();
        if let ([root], true) = (&*directories, recursive) {
            match self.last.get(root) {
                Some(messages) => {
                    self.ready.extend(messages.iter().cloned());
                    directories.clear();
                }
                None => {
                    self.whole = self.last.collect(*root);
                    self.sends_tree = is_whole_tree;
                }
            }
        }
        self.directories = directories;
        let files = files.into_iter().filter(|file| self.seen.insert(*file)).collect();
        files_of.reverse();
        let files = ContentFrames::new(files);
        // A client that walks a tree will continue where this request ends.
        self.files = if files_of.is_empty() { files } else { files.expect_next() };
        self.files_of = files_of;
    }

    /// Whether the next request, if available, could be used now.
    pub fn wants_next(&self) -> bool {
        self.next.is_none() && !self.ended
    }

    /// Sets the answer to the next request, which follows this one.
    pub fn set_next(&mut self, next: Box<Self>) {
        self.next = Some(next);
    }

    /// Returns the next answer, without the contents already sent in this one.
    pub fn into_next(self) -> Option<Box<Self>> {
        self.next
    }

    fn advance(&mut self) -> Result<(), PlanError> {
        if self.asked.is_some() {
            return self.admit();
        }
        if !self.directories.is_empty() {
            return self.advance_directories();
        }
        if let Some(of) = self.files_of.pop() {
            return self.look_up(&of);
        }
        if self.files.is_at_border()
            && let Some(next) = &mut self.next
            && std::mem::take(&mut next.early)
            && next.may_come_early()?
        {
            while let Some(of) = next.files_of.pop() {
                next.look_up(&of)?;
            }
            self.files.share_border(&mut next.files, &*self.contents)?;
        }
        let mut out = Vec::new();
        let more = self.files.advance(&*self.contents, &mut out)?;
        self.ready.extend(out);
        if !more {
            let files = self.files.take_missing();
            self.missing.extend(files.iter().map(|file| *file.as_bytes()));
            self.missing.truncate(OBJECTS_BATCH_MAX);
            self.ready.push_back(end(self.request, std::mem::take(&mut self.missing)));
            self.ended = true;
        }
        Ok(())
    }

    /// Whether only contents were requested.
    fn may_come_early(&mut self) -> Result<bool, PlanError> {
        self.admit()?;
        Ok(self.directories.is_empty() && self.ready.is_empty())
    }

    /// Sends one frame of directory objects. With `recursive`, in the order of a walk, each object once.
    fn advance_directories(&mut self) -> Result<(), PlanError> {
        let mut batch: Vec<Bytes> = Vec::new();
        let mut batch_bytes = 0;
        while let Some(hash) = self.directories.pop() {
            if self.sent.contains(&hash) {
                continue;
            }
            let Some(bytes) = self.contents.page_bytes(&hash)? else {
                self.sent.insert(hash);
                self.missing.push(*hash.as_bytes());
                continue;
            };
            if batch_bytes + bytes.len() + 4 > DIRECTORY_FRAME_BYTES && !batch.is_empty() {
                self.directories.push(hash);
                break;
            }
            self.sent.insert(hash);
            if self.recursive {
                let damaged = |source| DirectoryError::Damaged { object: hash, source: Box::new(source) };
                let page = Page::decode(&bytes).map_err(damaged)?;
                self.directories.extend(page.children().rev());
            }
            batch_bytes += bytes.len() + 4;
            batch.push(bytes);
        }
        if !batch.is_empty() {
            let message = directories_message(batch.iter().map(|bytes| &bytes[..]));
            self.keep(&message);
            self.ready.push_back(Message::Directories(message));
        }
        let has_all = self.directories.is_empty() && self.missing.is_empty();
        if has_all && self.sends_tree {
            self.reached.add_directories(&*self.contents, &self.sent);
        }
        if has_all && let Some(whole) = self.whole.take() {
            self.last.set(whole.root, whole.messages);
        }
        Ok(())
    }

    fn keep(&mut self, message: &v1::DirectoryObjects) {
        let Some(whole) = &mut self.whole else { return };
        whole.bytes += message.compressed.len();
        if whole.bytes > LAST_TREE_BYTES {
            self.whole = None;
        } else {
            whole.messages.push(Message::Directories(message.clone()));
        }
    }

    /// Looks up files requested by directory. Their number is known and limited by then.
    fn look_up(&mut self, of: &DirectoryFiles) -> Result<(), PlanError> {
        let Some(page) = self.contents.page(&of.directory)? else {
            // The directory stands for its files.
            self.missing.push(*of.directory.as_bytes());
            self.files_of.clear();
            return Ok(());
        };
        for entry in of.of(page.entries()) {
            if let Kind::File { content, size: 1.. } = entry.kind
                && self.seen.insert(content)
            {
                self.listed.push(content);
            }
        }
        if self.files_of.is_empty() {
            self.files.append(std::mem::take(&mut self.listed));
        }
        Ok(())
    }
}

impl Iterator for ObjectsAnswer {
    type Item = Result<v1::FetchFrame, PlanError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() {
            if self.ended {
                return None;
            }
            if let Err(error) = self.advance() {
                self.ended = true;
                return Some(Err(error));
            }
        }
        let frame = v1::FetchFrame { item: self.item, frame: self.ready.pop_front() };
        self.item += 1;
        Some(Ok(frame))
    }
}
