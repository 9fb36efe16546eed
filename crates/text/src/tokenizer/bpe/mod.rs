//! Byte-level byte-pair encoding with a known split pattern.
//!
//! Text → pieces (`split`, from the bits of `blocks`) → look-up of each piece (`tables`) → merges for pieces that are not tokens (`merge`).

mod blocks;
pub mod bundled;
mod cache;
pub mod cuts;
mod fold;
mod merge;
mod pilots;
mod rule;
pub mod split;
pub mod tables;
#[cfg(test)]
mod tests;
mod unicode;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use blocks::Body;
use cache::Cache;
use split::{Pattern, Pieces};
use tables::{SHORT, Tables, View, key_of};

use crate::support::prefetch;

/// The fastest instructions of this processor for blocks.
static BODY: LazyLock<Body> = LazyLock::new(|| Body::all().next().unwrap_or(Body::Plain));

/// Bytes of text that are split before the first piece is looked up, so that the look-ups wait for memory together.
const BATCH: usize = 256;
const MISSING: u32 = u32::MAX;

/// A piece of text between splitting and output. It takes half a cache line.
#[derive(Clone, Copy, Default)]
struct Piece {
    key: u128,
    /// Where it ends. It begins where the previous piece ends.
    end: usize,
    /// Place of its key in the tables, later in the cache.
    place: u32,
    id: u32,
}

/// A receiver of ids.
pub trait Ids {
    fn push(&mut self, id: u32);

    fn push_all(&mut self, ids: &[u32]) {
        ids.iter().for_each(|id| self.push(*id));
    }

    /// At least this many more ids will follow.
    fn reserve(&mut self, _ids: usize) {}

    /// Whether no more ids are needed.
    fn is_full(&self) -> bool {
        false
    }
}

impl Ids for Vec<u32> {
    #[inline]
    fn push(&mut self, id: u32) {
        Vec::push(self, id);
    }

    fn push_all(&mut self, ids: &[u32]) {
        self.extend_from_slice(ids);
    }

    fn reserve(&mut self, ids: usize) {
        Vec::reserve(self, ids);
    }
}

/// For vocabularies of at most 65536 ids.
impl Ids for Vec<u16> {
    #[inline]
    fn push(&mut self, id: u32) {
        Vec::push(self, id as u16);
    }

    fn reserve(&mut self, ids: usize) {
        Vec::reserve(self, ids);
    }
}

/// Counts ids up to a limit. The count may exceed it a little.
pub struct Count {
    pub ids: usize,
    pub limit: usize,
}

impl Ids for Count {
    #[inline]
    fn push(&mut self, _id: u32) {
        self.ids += 1;
    }

    fn push_all(&mut self, ids: &[u32]) {
        self.ids += ids.len();
    }

    fn is_full(&self) -> bool {
        self.ids >= self.limit
    }
}

/// An encoder: tables and a split pattern.
#[derive(Clone)]
pub struct Bpe {
    pub tables: Arc<Tables>,
    pub pattern: Pattern,
    body: Body,
    /// Number of the tables, for the cache.
    number: u32,
}

impl Bpe {
    pub fn new(tables: Tables, pattern: Pattern) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = u32::try_from(NEXT.fetch_add(1, Ordering::Relaxed)).unwrap_or(u32::MAX);
        Bpe { tables: Arc::new(tables), pattern, body: *BODY, number }
    }

    /// A copy that uses other instructions for blocks.
    #[cfg(test)]
    fn with_body(&self, body: Body) -> Self {
        Bpe { body, ..self.clone() }
    }

    /// Appends the ids of `text`.
    pub fn encode(&self, text: &str, out: &mut impl Ids) {
        self.encode_until(text, text.len(), out);
    }

    /// Appends the ids of the pieces that end at `limit` or before, until `out` is full. Returns where these pieces end.
    pub fn encode_until(&self, text: &str, limit: usize, out: &mut impl Ids) -> usize {
        Cache::with(|cache| match self.pattern {
            Pattern::Cl100k => self.encode_by(text, limit, Pattern::Cl100k, cache, out),
            Pattern::Qwen => self.encode_by(text, limit, Pattern::Qwen, cache, out),
            Pattern::O200k => self.encode_by(text, limit, Pattern::O200k, cache, out),
            Pattern::Gpt2 => self.encode_by(text, limit, Pattern::Gpt2, cache, out),
        })
    }

    /// The same. It is inlined once per pattern.
    #[inline(always)]
    fn encode_by(&self, text: &str, limit: usize, pattern: Pattern, cache: &mut Cache, out: &mut impl Ids) -> usize {
        let tables = self.tables.view();
        let mut pieces = Pieces::new(text, self.body);
        let text = text.as_bytes();
        let mut batch = [Piece::default(); BATCH + 64];
        let mut merged = Vec::new();
        let (mut at, mut more) = (0, true);
        while more && at < text.len() && !out.is_full() {
            // Split, and prefetch the table entries of the pieces.
            let first = at;
            let mut count = 0;
            while at < text.len() && at - first < BATCH {
                let (window, mut ends) = match pieces.starts(pattern, at) & !1 {
                    0 => (pieces.end(pattern, at), 1),
                    starts => (at, starts),
                };
                while ends != 0 {
                    let end = window + ends.trailing_zeros() as usize;
                    let key = key_in(text, at, end);
                    let place = tables.place(key);
                    prefetch(tables.entry(place), 16);
                    batch[count] = Piece { key, end, place: place as u32, id: MISSING };
                    count += 1;
                    at = end;
                    ends &= ends - 1;
                }
            }
            if at > limit {
                more = false;
                count = batch[..count].partition_point(|piece| piece.end <= limit);
                at = batch[..count].last().map_or(first, |piece| piece.end);
            }
            let batch = &mut batch[..count];
            // Look up, and prefetch the cache for pieces that are not tokens.
            let mut start = first;
            for piece in batch.iter_mut() {
                let range = start..piece.end;
                start = piece.end;
                let found = match piece.key {
                    0 => tables.id(&text[range.clone()]),
                    key => tables.short_at(piece.place as usize, key),
                };
                match found {
                    Some(id) => piece.id = id,
                    None if range.len() <= cache::SHORT => {
                        let set = Cache::set(&Cache::key(text, range));
                        cache.prefetch(set);
                        piece.place = set as u32;
                    }
                    None => {}
                }
            }
            // Output the ids, and merge the pieces that are not in the cache.
            out.reserve(count);
            start = first;
            for piece in batch.iter() {
                let range = start..piece.end;
                start = piece.end;
                if piece.id != MISSING {
                    out.push(piece.id);
                    continue;
                }
                let bytes = &text[range.clone()];
                let place = (bytes.len() <= cache::SHORT).then(|| (Cache::key(text, range), piece.place as usize));
                let kept = match place {
                    Some((key, set)) => cache.get(self.number, key, set),
                    None => cache.get_long(self.number, bytes),
                };
                if let Some(kept) = kept {
                    out.push_all(kept);
                    continue;
                }
                merged.clear();
                merge::merge(&tables, bytes, &mut merged);
                out.push_all(&merged);
                match place {
                    Some((key, set)) => cache.put(self.number, key, set, &merged),
                    None => cache.put_long(self.number, bytes, &merged),
                }
            }
        }
        at
    }

    /// Calls `each(end, ids)` with the end and the ids of every piece of `text`, until `each` breaks.
    pub fn pieces(&self, text: &str, mut each: impl FnMut(usize, &[u32]) -> ControlFlow<()>) {
        let tables = self.tables.view();
        let mut pieces = Pieces::new(text, self.body);
        let (mut at, mut ids) = (0, Vec::new());
        while at < text.len() {
            let stop = pieces.end(self.pattern, at);
            ids.clear();
            piece(&tables, &text.as_bytes()[at..stop], &mut ids);
            at = stop;
            if each(at, &ids).is_break() {
                return;
            }
        }
    }
}

/// The ids of one piece.
pub fn piece(tables: &View, piece: &[u8], out: &mut Vec<u32>) {
    match tables.id(piece) {
        Some(id) => out.push(id),
        None => merge::merge(tables, piece, out),
    }
}

/// The key of a piece, 0 for a long one.
#[inline]
fn key_in(text: &[u8], start: usize, end: usize) -> u128 {
    let len = end - start;
    if len > SHORT {
        return 0;
    }
    match text[start..].first_chunk() {
        Some(bytes) => key_of(*bytes, len),
        None => tables::key(&text[start..end]),
    }
}
