//! A thread that prefetches the next batches from the disk.

use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use super::documents::Segment;
use super::{Row, Shards};

/// Asks the system to read ids ahead (`madvise`, `posix_fadvise`), on one thread. The calling thread copies the ids itself: that
/// takes about 25 µs, less than waking a thread.
pub(super) struct Prefetcher {
    sender: Option<SyncSender<Vec<(usize, Segment)>>>,
    thread: Option<JoinHandle<()>>,
}

impl Prefetcher {
    pub(super) fn new(sources: Vec<Shards>, depth: usize) -> Self {
        let (sender, receiver) = sync_channel::<Vec<(usize, Segment)>>(depth + 1);
        let work = move || {
            while let Ok(wanted) = receiver.recv() {
                for (source, Segment { shard, len, start }) in &wanted {
                    sources[*source][*shard as usize].advise(*start, *len as usize + 1);
                }
            }
        };
        // If the thread cannot be started, batches are only slower.
        let thread = std::thread::Builder::new().name("tallow-prefetch".to_string()).spawn(work).ok();
        Prefetcher { sender: Some(sender), thread }
    }

    /// Requests rows. Requests are hints: they are dropped while the thread is busy.
    pub(super) fn ask(&mut self, rows: &[Row]) {
        let wanted = rows.iter().flat_map(|(source, segments)| segments.iter().map(|segment| (*source, *segment)));
        if let Some(sender) = &self.sender
            && let Err(TrySendError::Disconnected(_)) = sender.try_send(wanted.collect())
        {
            self.sender = None;
        }
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.sender = None; // the thread ends
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}
