//! The look-up tables of a byte-pair encoding.
//!
//! The build script uses this file for the bundled encodings, and the library for vocabularies from files. So it uses only the
//! standard library.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::fold::{Folded, NOT_FOLDED, fold};
use super::pilots::{Pilots, place};
use super::rule::merge_all;

/// Bits of an id. The tables pack several ids into a word.
const ID_BITS: u32 = 20;
/// The most bytes of a short token. It is one word, together with its length and its id.
pub const SHORT: usize = 13;
/// The most probes for a long token. Ordinary tables need a tenth of it.
const LONGEST_PROBE: usize = 512;
const EMPTY: u32 = u32::MAX;
/// Mask of the bytes and the length in the entry of a short token.
const KEY: u128 = (1 << 108) - 1;

/// Tokens by id and by bytes, and the joins of pairs of tokens.
#[derive(Clone)]
pub struct Tables {
    /// The bytes of all tokens, by id.
    pub bytes: Cow<'static, [u8]>,
    /// Start of each token in `bytes`, and the end of the last one. An id without a token has no bytes.
    pub starts: Cow<'static, [u32]>,
    /// The ids of the 256 single bytes.
    pub byte_ids: Cow<'static, [u32]>,
    /// Tokens of up to 13 bytes: the bytes, 4 bits of length, 20 bits of id. Empty entries are 0. [`Pilots`] give the places.
    pub short: Cow<'static, [u128]>,
    pub short_pilots: Cow<'static, [u8]>,
    /// Ids of longer tokens, by linear probing: each is at its hash, or after it and before the first empty entry.
    pub long: Cow<'static, [u32]>,
    /// Pairs: two ids and the id of their join, 20 bits each. Empty entries are 0.
    pub pairs: Cow<'static, [u64]>,
    pub pair_pilots: Cow<'static, [u8]>,
    /// [`Folded`] characters of up to three bytes, indexed by code point.
    pub chars: Cow<'static, [u64]>,
    /// Number of tokens, and bytes of the longest one.
    pub len: usize,
    pub longest: usize,
}

impl Tables {
    /// Builds the tables from `(id, bytes)` in any order. Ids may have gaps, but their bound is proportional to the number of tokens, so
    /// that a hostile rank file cannot reserve much memory.
    ///
    /// Ids are ranks: of two pairs that can be joined, the one with the smaller id is joined first.
    pub fn build(tokens: &[(u32, &[u8])]) -> Result<Tables, String> {
        let mut sorted: Vec<(u32, &[u8])> = tokens.to_vec();
        sorted.sort_by_key(|(id, _)| *id);
        let largest = (tokens.len() * 2 + 1024).min((1 << ID_BITS) - 1);
        let (mut bytes, mut starts) = (Vec::new(), vec![0]);
        let mut byte_ids = vec![EMPTY; 256];
        let mut by_bytes: HashMap<&[u8], u32> = HashMap::with_capacity(tokens.len());
        for (index, &(id, token)) in sorted.iter().enumerate() {
            if id as usize > largest {
                return Err(format!("rank {id} is above {largest}, the largest accepted for so few tokens"));
            }
            if token.is_empty() {
                return Err(format!("rank {id} is an empty token"));
            }
            if index > 0 && sorted[index - 1].0 == id {
                return Err(format!("rank {id} stands twice"));
            }
            if let Some(other) = by_bytes.insert(token, id) {
                return Err(format!("the token {token:?} stands twice, as rank {other} and as rank {id}"));
            }
            if let [byte] = token {
                byte_ids[usize::from(*byte)] = id;
            }
            starts.resize(id as usize + 1, bytes.len() as u32);
            bytes.extend_from_slice(token);
            starts.push(u32::try_from(bytes.len()).map_err(|_| "more than 4 GiB of tokens".to_string())?);
        }

        let short: Vec<u128> =
            sorted.iter().filter(|(_, t)| t.len() <= SHORT).map(|(id, t)| key(t) | u128::from(*id) << 108).collect();
        let (short_pilots, short) = place(&short, |entry| hash(entry & KEY))?;
        let pairs = pairs(&sorted, &byte_ids);
        let (pair_pilots, pairs) = place(&pairs, |entry| hash_pair(entry >> ID_BITS))?;
        let mut tables = Tables {
            bytes: bytes.into(),
            starts: starts.into(),
            byte_ids: byte_ids.into(),
            short: short.into(),
            short_pilots: short_pilots.into(),
            long: long(&sorted)?.into(),
            pairs: pairs.into(),
            pair_pilots: pair_pilots.into(),
            chars: Vec::new().into(),
            len: tokens.len(),
            longest: sorted.iter().map(|(_, token)| token.len()).max().unwrap_or(0),
        };
        // Folding requires that ids are larger than those of their parts. In other vocabularies all characters begin as bytes.
        if tables.joins().all(|([left, right], id)| left < id && right < id) {
            let view = tables.view();
            let pairs = tables.joins().map(|([left, right], id)| {
                let bytes = |id| view.bytes(id).unwrap_or_default();
                (bytes(left), bytes(right), id)
            });
            tables.chars = fold(&tables.byte_ids, |left, right| view.joined(left, right), pairs).into();
        }
        Ok(tables)
    }

    /// Largest id + 1.
    pub fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    /// The bytes of a token.
    pub fn bytes(&self, id: u32) -> Option<&[u8]> {
        self.view().bytes(id)
    }

    /// The id of exactly these bytes.
    pub fn id(&self, bytes: &[u8]) -> Option<u32> {
        self.view().id(bytes)
    }

    /// All pairs that can be joined, and the id of each join.
    pub fn joins(&self) -> impl Iterator<Item = ([u32; 2], u32)> {
        let part = |entry: u64, number: u32| (entry >> (number * ID_BITS)) as u32 & ((1 << ID_BITS) - 1);
        let pairs = self.pairs.iter().filter(|entry| **entry != 0);
        pairs.map(move |entry| ([part(*entry, 2), part(*entry, 1)], part(*entry, 0)))
    }

    /// A view for searching.
    pub fn view(&self) -> View<'_> {
        View {
            bytes: &self.bytes,
            starts: &self.starts,
            byte_ids: &self.byte_ids,
            short: Pilots::new(&self.short_pilots, &self.short),
            long: &self.long,
            pairs: Pilots::new(&self.pair_pilots, &self.pairs),
            chars: &self.chars,
            longest: self.longest,
        }
    }
}

/// A view of [`Tables`] for searching.
#[derive(Clone, Copy)]
pub struct View<'t> {
    bytes: &'t [u8],
    starts: &'t [u32],
    byte_ids: &'t [u32],
    short: Pilots<'t, u128>,
    long: &'t [u32],
    pairs: Pilots<'t, u64>,
    chars: &'t [u64],
    longest: usize,
}

impl<'t> View<'t> {
    /// The token's bytes.
    pub fn bytes(&self, id: u32) -> Option<&'t [u8]> {
        let (start, end) = (*self.starts.get(id as usize)?, *self.starts.get(id as usize + 1)?);
        (start != end).then(|| &self.bytes[start as usize..end as usize])
    }

    /// The id of exactly these bytes.
    #[inline]
    pub fn id(&self, bytes: &[u8]) -> Option<u32> {
        match bytes.len() {
            0 => None,
            1..=SHORT => self.short(key(bytes)),
            _ => self.long(bytes),
        }
    }

    /// The id of the token with this [`key`].
    #[inline]
    pub fn short(&self, key: u128) -> Option<u32> {
        self.short_at(self.place(key), key)
    }

    /// The place at which [`short`](Self::short) looks for a key.
    #[inline]
    pub fn place(&self, key: u128) -> usize {
        self.short.place(hash(key))
    }

    /// The entry at a place, for a prefetch.
    #[inline]
    pub fn entry(&self, place: usize) -> &[u128] {
        &self.short.entries[place..]
    }

    /// [`short`](Self::short) with the [`place`](Self::place) of the key.
    #[inline]
    pub fn short_at(&self, place: usize, key: u128) -> Option<u32> {
        let entry = self.short.entries[place];
        ((entry ^ key) & KEY == 0).then_some((entry >> 108) as u32)
    }

    fn long(&self, bytes: &[u8]) -> Option<u32> {
        if bytes.len() > self.longest {
            return None;
        }
        let mut slot = hash_long(bytes) as usize;
        loop {
            let id = self.long[slot & (self.long.len() - 1)];
            if id == EMPTY {
                return None;
            }
            if self.bytes(id) == Some(bytes) {
                return Some(id);
            }
            slot = slot.wrapping_add(1);
        }
    }

    /// The token of one byte. It must exist.
    #[inline]
    pub fn byte(&self, byte: u8) -> u32 {
        self.byte_ids[usize::from(byte)]
    }

    /// The id of the join of two tokens.
    #[inline]
    pub fn joined(&self, left: u32, right: u32) -> Option<u32> {
        let pair = pair(left, right);
        let entry = self.pairs.entries[self.pairs.place(hash_pair(pair))];
        (entry >> ID_BITS == pair && entry != 0).then_some(entry as u32 & ((1 << ID_BITS) - 1))
    }

    /// A character of up to three bytes. Larger code points have no entry.
    #[inline]
    pub fn folded(&self, code: u32) -> Folded {
        Folded(self.chars.get(code as usize).copied().unwrap_or(NOT_FOLDED))
    }
}

/// Ids of long tokens, found by their bytes.
fn long(sorted: &[(u32, &[u8])]) -> Result<Vec<u32>, String> {
    let long = || sorted.iter().filter(|(_, token)| token.len() > SHORT);
    let mut table = vec![EMPTY; (2 * long().count()).next_power_of_two().max(2)];
    for (id, token) in long() {
        let places = (0..LONGEST_PROBE).map(|step| (hash_long(token) as usize).wrapping_add(step) & (table.len() - 1));
        let free = places.into_iter().find(|place| table[*place] == EMPTY);
        table[free.ok_or("too many of its tokens have the same hash")?] = *id;
    }
    Ok(table)
}

/// The two tokens that each token is joined from.
///
/// # Why there is one pair per token
/// The last join of a token puts two parts together to all of its bytes. No earlier join crosses a bound of these bytes, because then
/// they would not become a token. So all earlier joins within them are those of the bytes alone, in the same order: the pairs inside
/// are the same, and the lowest pair of the text is also the lowest there. Therefore merging the bytes alone, without the last join,
/// ends in these two parts, or no text ever makes the token by merging.
///
/// These pairs, with the token's id as rank, are a list of merges with tiktoken's result. Each step of tiktoken joins the leftmost pair
/// of the lowest rank, which is in the list by the argument above. The list has no pair that tiktoken would not join. As in tiktoken, a
/// piece that is a token is not merged at all.
fn pairs(sorted: &[(u32, &[u8])], byte_ids: &[u32]) -> Vec<u64> {
    let mut pairs: HashMap<u64, u32, BuildHasherDefault<PairHasher>> = Default::default();
    pairs.reserve(sorted.len());
    let mut parts: Vec<u32> = Vec::new();
    // Parts are shorter than their token. (In published encodings their ids are also lower.)
    let mut by_length: Vec<&(u32, &[u8])> = sorted.iter().filter(|(_, token)| token.len() > 1).collect();
    by_length.sort_by_key(|(_, token)| token.len());
    for &&(id, token) in &by_length {
        parts.clear();
        parts.extend(token.iter().map(|byte| byte_ids[usize::from(*byte)]));
        // A token with a byte that is not a token is never made by merging.
        if parts.contains(&EMPTY) {
            continue;
        }
        merge_all(|left, right| pairs.get(&pair(left, right)).copied(), &mut parts);
        if let [left, right] = parts[..] {
            pairs.insert(pair(left, right), id);
        }
    }
    let mut pairs: Vec<u64> = pairs.into_iter().map(|(pair, id)| pair << ID_BITS | u64::from(id)).collect();
    pairs.sort_unstable(); // for deterministic tables
    pairs
}

/// A fast hash for pairs. With the standard hash, most of the time for finding pairs would be hashing.
#[derive(Default)]
struct PairHasher(u64);

impl Hasher for PairHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 ^= hash_long(bytes);
    }

    fn write_u64(&mut self, pair: u64) {
        self.0 = mix(pair, 0);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The table entry of a short token, without its id.
#[inline]
pub fn key(token: &[u8]) -> u128 {
    let mut bytes = [0; 16];
    bytes[..token.len()].copy_from_slice(token);
    u128::from_le_bytes(bytes) | (token.len() as u128) << 104
}

/// The key of the first `len` of 16 bytes.
#[inline]
pub fn key_of(bytes: [u8; 16], len: usize) -> u128 {
    const KEEP: [u128; SHORT + 1] = {
        let mut keep = [0; SHORT + 1];
        let mut len = 1;
        while len <= SHORT {
            keep[len] = keep[len - 1] << 8 | 0xFF;
            len += 1;
        }
        keep
    };
    (u128::from_le_bytes(bytes) & KEEP[len]) | (len as u128) << 104
}

#[inline]
fn hash(key: u128) -> u64 {
    mix(key as u64, (key >> 64) as u64)
}

pub fn hash_long(token: &[u8]) -> u64 {
    let mut state = token.len() as u64;
    for chunk in token.chunks(8) {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        state = mix(state, u64::from_le_bytes(bytes));
    }
    state
}

#[inline]
fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << ID_BITS | u64::from(right)
}

#[inline]
fn hash_pair(pair: u64) -> u64 {
    pair.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Mixes two words: the XOR of both halves of their product.
#[inline]
pub fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x9E37_79B9_7F4A_7C15) * u128::from(b ^ 0xD6E8_FEB8_6659_FD93);
    product as u64 ^ (product >> 64) as u64
}
