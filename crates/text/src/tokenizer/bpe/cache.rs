//! A cache for the ids of merged pieces, one per thread.
//!
//! Most pieces that are not tokens are repeated in a text: names, endings, lines of dashes. The size of the cache is fixed, and newer
//! entries replace older ones.

use std::cell::RefCell;
use std::ops::Range;

use super::tables::{hash_long, mix};
use crate::support::{advise_huge_pages, prefetch};

/// Short pieces have up to 31 bytes and 7 tokens. A set of two takes two cache lines. All sets: 4 MiB per thread, two huge pages.
const SETS: usize = 1 << 15;
const WORDS: usize = 8;
const HUGE_PAGE: usize = 2 << 20;
const MOST: usize = 7;
pub const SHORT: usize = 31;
/// Entries for longer pieces, at most 1 MiB per thread.
const PLACES: usize = 512;
const LONG: usize = 512;
const MOST_OF_LONG: usize = 128;

/// The largest number of tables that fits into an entry. Tables with a larger number use no cache.
const LAST_OWNER: u32 = u32::MAX >> 3;

/// The bytes of a short piece. The last byte is their number.
pub type Key = [u128; 2];

/// A key, seven ids, and in the last 32 bits the number of the tables and the number of ids.
type Short = [u128; 4];

#[derive(Clone, Default)]
struct Long {
    owner: u32,
    text: Vec<u8>,
    ids: Vec<u32>,
}

/// The cache of one thread.
#[derive(Default)]
pub struct Cache {
    /// The sets, from index `first` on, where a huge page can begin. Both vectors are empty until their first use. The memory before
    /// `first` is reserved but never touched.
    short: Vec<u128>,
    first: usize,
    long: Vec<Long>,
}

thread_local! {
    static CACHE: RefCell<Cache> = RefCell::default();
}

impl Cache {
    /// Calls `f` with this thread's cache.
    pub fn with<T>(f: impl FnOnce(&mut Cache) -> T) -> T {
        CACHE.with_borrow_mut(f)
    }

    /// The key of a piece of up to 31 bytes.
    #[inline]
    pub fn key(text: &[u8], piece: Range<usize>) -> Key {
        let len = piece.len();
        let word = |bytes: &[u8; 16]| u128::from_le_bytes(*bytes);
        let keep = |len: usize| if len < 16 { (1u128 << (8 * len)) - 1 } else { u128::MAX };
        let [low, high] = match text[piece.start..].as_chunks::<16>().0 {
            [low, high, ..] => [word(low) & keep(len), word(high) & keep(len.saturating_sub(16))],
            _ => {
                let mut bytes = [[0; 16]; 2];
                bytes.as_flattened_mut()[..len].copy_from_slice(&text[piece]);
                [word(&bytes[0]), word(&bytes[1])]
            }
        };
        [low, high | (len as u128) << 120]
    }

    #[inline]
    pub fn set([low, high]: &Key) -> usize {
        let hash = mix(mix(*low as u64, (low >> 64) as u64) ^ *high as u64, (high >> 64) as u64);
        hash as usize & (SETS - 1)
    }

    /// The entries of a set.
    #[inline]
    fn at(&self, set: usize) -> Option<&[Short; 2]> {
        let words = self.short.get(self.first + set * WORDS..)?.first_chunk::<WORDS>()?;
        Some(bytemuck::cast_ref(words))
    }

    /// Prefetches a set.
    #[inline]
    pub fn prefetch(&self, set: usize) {
        if let Some(set) = self.at(set) {
            prefetch(set, 128);
        }
    }

    /// The ids of a short piece.
    #[inline]
    pub fn get(&self, owner: u32, key: Key, set: usize) -> Option<&[u32]> {
        let mut found = self.at(set)?.iter().filter(|short| short[..2] == key).map(|[_, _, ids @ ..]| {
            let ids: &[u32; MOST + 1] = bytemuck::cast_ref(ids);
            ids
        });
        let ids = found.find(|ids| ids[MOST] >> 3 == owner)?;
        ids.get(..ids[MOST] as usize & 7)
    }

    pub fn put(&mut self, owner: u32, key: Key, set: usize, ids: &[u32]) {
        if ids.len() > MOST || owner > LAST_OWNER {
            return;
        }
        if self.short.is_empty() {
            self.short = vec![0; SETS * WORDS + HUGE_PAGE / size_of::<u128>()];
            self.first = self.short.as_ptr().cast::<u8>().align_offset(HUGE_PAGE) / size_of::<u128>();
            advise_huge_pages(&mut self.short[self.first..][..SETS * WORDS]);
        }
        let mut kept = [0; MOST + 1];
        kept[..ids.len()].copy_from_slice(ids);
        kept[MOST] = owner << 3 | ids.len() as u32;
        let kept: [u128; 2] = bytemuck::cast(kept);
        let words = &mut self.short[self.first + set * WORDS..][..WORDS];
        words.copy_within(..WORDS / 2, WORDS / 2); // the newer entry becomes the older one
        words[..WORDS / 2].copy_from_slice(&[key[0], key[1], kept[0], kept[1]]);
    }

    /// The ids of a longer piece.
    pub fn get_long(&self, owner: u32, piece: &[u8]) -> Option<&[u32]> {
        if piece.len() > LONG {
            return None;
        }
        let long = self.long.get(hash_long(piece) as usize & (PLACES - 1))?;
        (long.owner == owner && long.text == piece).then_some(&long.ids)
    }

    pub fn put_long(&mut self, owner: u32, piece: &[u8], ids: &[u32]) {
        if piece.len() > LONG || ids.len() > MOST_OF_LONG || owner > LAST_OWNER {
            return;
        }
        if self.long.is_empty() {
            self.long.resize(PLACES, Long::default());
        }
        let long = &mut self.long[hash_long(piece) as usize & (PLACES - 1)];
        long.owner = owner;
        long.text.clear();
        long.text.extend_from_slice(piece);
        long.ids.clear();
        long.ids.extend_from_slice(ids);
    }
}
