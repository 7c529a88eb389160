//! Decompresses frames before they are needed. A small update is encoded against the content that it
//! replaces, and decompressing that content's frame takes a millisecond, about as long as the disk takes to
//! make the new content durable.

use std::sync::{Arc, Mutex, PoisonError};

use syncd_shared::hash::ContentHash;

use super::Store;
use super::pack::PackId;

/// Number of frames kept, each of at most 1 MiB.
const FRAMES_MAX: usize = 4;

type Ahead = (PackId, u64, Arc<Vec<u8>>);

/// Frames decompressed ahead. See the module documentation.
#[derive(Default)]
pub(super) struct FramesAhead(Mutex<Vec<Ahead>>);

impl Store {
    /// Decompresses the frames of these single-chunk contents and forgets all earlier ones. Errors are
    /// ignored: a later reader that needs the frame meets them itself.
    pub(super) fn read_ahead(&self, contents: &[ContentHash]) {
        self.frames_ahead().clear();
        for content in contents {
            let Ok(Some((location, frame))) = self.frame_of(content) else { continue };
            let (pack, offset) = (location.pack, location.frame_offset);
            if self.frames_ahead().iter().any(|(p, o, _)| (*p, *o) == (pack, offset)) {
                continue;
            }
            let Ok(bytes) = frame.decompress() else { continue };
            let mut ahead = self.frames_ahead();
            ahead.truncate(FRAMES_MAX.saturating_sub(1));
            ahead.push((pack, offset, Arc::new(bytes)));
        }
    }

    /// Removes and returns the content of a frame that was read ahead.
    pub fn take_ahead(&self, pack: PackId, frame_offset: u64) -> Option<Arc<Vec<u8>>> {
        let mut ahead = self.frames_ahead();
        let place = ahead.iter().position(|(p, o, _)| (*p, *o) == (pack, frame_offset))?;
        Some(ahead.swap_remove(place).2)
    }

    fn frames_ahead(&self) -> std::sync::MutexGuard<'_, Vec<Ahead>> {
        // A panic cannot leave a partial entry, so a poisoned lock is safe to use.
        self.ahead.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, Tree, noise, put_content, tree};
    use super::*;

    fn seal_after_losing(fixture: &Fixture, lost: &[Vec<u8>]) {
        let writer = fixture.store().writer().unwrap();
        for content in lost {
            let path = syncd_shared::TreePath::from_bytes(b"a/lost").unwrap();
            writer.lose_path(&ContentHash::of(content), content.len() as u64, &path).unwrap();
        }
        put_content(&writer, b"what replaces it").unwrap();
        writer.save().unwrap();
    }

    #[test]
    fn what_a_small_commit_replaces_is_read_ahead_and_given_away_once() {
        let fixture = Fixture::new();
        fixture.seal(1, &tree(1));
        let old = noise(1, 10);
        seal_after_losing(&fixture, &[old.clone(), b"never stored".to_vec()]);
        let store = fixture.store();
        let (location, frame) = store.frame_of(&ContentHash::of(&old)).unwrap().unwrap();
        let take = || store.take_ahead(location.pack, location.frame_offset);
        assert_eq!(*take().unwrap(), frame.decompress().unwrap());
        assert!(take().is_none());
    }

    #[test]
    fn of_a_commit_that_replaces_much_nothing_is_kept() {
        let fixture = Fixture::new();
        let many: Vec<Vec<u8>> = (0..20).map(|seed| noise(seed + 50, 900)).collect();
        let names = many.iter().enumerate();
        fixture.seal(1, &names.map(|(i, content)| (format!("a/{i}"), content.clone())).collect::<Tree>());
        seal_after_losing(&fixture, &many[..1]);
        assert_eq!(fixture.store().frames_ahead().len(), 1);
        seal_after_losing(&fixture, &many);
        assert_eq!(fixture.store().frames_ahead().len(), 0);
    }
}
