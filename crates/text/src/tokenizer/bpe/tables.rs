//! The tables of a byte-pair encoding: what is looked up, and where it lies.
//!
//! The build script makes those of the bundled encodings with this file, the library those of a vocabulary from a file. So it
//! uses nothing but the standard library.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::fold::{Folded, NOT_FOLDED, fold};
use super::pilots::{Pilots, place};
use super::rule::merge_all;

/// Ids have so many bits: the tables hold several of them in a word.
const ID_BITS: u32 = 20;
/// A token of at most so many bytes is one word, with its length and its id.
pub const SHORT: usize = 13;
/// So many ids of long tokens are looked at before one is found to be missing. Ordinary tables need a tenth of it.
const LONGEST_PROBE: usize = 512;
const EMPTY: u32 = u32::MAX;
/// The bytes and the length in an entry for a short token.
const KEY: u128 = (1 << 108) - 1;

/// Tokens by id and by bytes, and pairs of tokens by what they are joined to.
#[derive(Clone)]
pub struct Tables {
    /// The bytes of all tokens, by id.
    pub bytes: Cow<'static, [u8]>,
    /// Where each token begins, and one number more. A token without bytes is an id without a token.
    pub starts: Cow<'static, [u32]>,
    /// The ids of the 256 single bytes.
    pub byte_ids: Cow<'static, [u32]>,
    /// Tokens of up to 13 bytes: these, 4 bits of length, 20 of id; 0 where there is none. Where each lies its [`Pilots`] say.
    pub short: Cow<'static, [u128]>,
    pub short_pilots: Cow<'static, [u8]>,
    /// Ids of longer tokens: each lies at its hash or in one of the entries after it, before the first empty one.
    pub long: Cow<'static, [u32]>,
    /// Two ids that are joined, and the id that they become, 20 bits each; 0 where there is none.
    pub pairs: Cow<'static, [u64]>,
    pub pair_pilots: Cow<'static, [u8]>,
    /// [`Folded`] characters of up to three bytes, by their code.
    pub chars: Cow<'static, [u64]>,
    /// Number of tokens, and bytes of the longest.
    pub len: usize,
    pub longest: usize,
}

impl Tables {
    /// Builds from `(id, bytes)` in any order. Ids may have gaps, but not many times as many as there are tokens: a rank
    /// file from a stranger must not decide how much memory is reserved.
    ///
    /// Every id is a rank: of two pairs that could be joined, the one that becomes the smaller id is.
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
        // Folding is for tokens that come after what they are made of. Any others begin as bytes.
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

    /// The token's bytes.
    pub fn bytes(&self, id: u32) -> Option<&[u8]> {
        self.view().bytes(id)
    }

    /// The id of exactly these bytes.
    pub fn id(&self, bytes: &[u8]) -> Option<u32> {
        self.view().id(bytes)
    }

    /// All pairs that are joined, and the id that each becomes.
    pub fn joins(&self) -> impl Iterator<Item = ([u32; 2], u32)> {
        let part = |entry: u64, number: u32| (entry >> (number * ID_BITS)) as u32 & ((1 << ID_BITS) - 1);
        let pairs = self.pairs.iter().filter(|entry| **entry != 0);
        pairs.map(move |entry| ([part(*entry, 2), part(*entry, 1)], part(*entry, 0)))
    }

    /// What searches them.
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

/// [`Tables`] to be searched.
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

    /// Where [`short`](Self::short) looks for a key.
    #[inline]
    pub fn place(&self, key: u128) -> usize {
        self.short.place(hash(key))
    }

    /// What is there, to be fetched beforehand.
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

    /// The token of one byte, which there must be.
    #[inline]
    pub fn byte(&self, byte: u8) -> u32 {
        self.byte_ids[usize::from(byte)]
    }

    /// The id that two tokens are joined to.
    #[inline]
    pub fn joined(&self, left: u32, right: u32) -> Option<u32> {
        let pair = pair(left, right);
        let entry = self.pairs.entries[self.pairs.place(hash_pair(pair))];
        (entry >> ID_BITS == pair && entry != 0).then_some(entry as u32 & ((1 << ID_BITS) - 1))
    }

    /// A character of up to three bytes; larger codes have no entry.
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
        table[free.ok_or("too many of its tokens fall together in a table")?] = *id;
    }
    Ok(table)
}

/// The two tokens of which each is made.
///
/// # Why there is one pair a token
/// A token comes to be when a last join puts two parts together to all of its bytes. Until then no join has crossed an end
/// of these bytes, or they would not be a part. So all earlier joins in them are those of the bytes alone, in the same order:
/// the pairs inside are the same, and the lowest of all pairs is also the lowest there. Merging the bytes alone, the last join
/// left out, therefore ends in the two parts, or nowhere makes the token.
///
/// These pairs, the token's id being their rank, are a list of merges with tiktoken's result: a step of tiktoken's joins the
/// leftmost pair of the lowest rank, which is in the list by the argument above; and the list has no pair that tiktoken
/// would not join. A piece that is a token must be taken whole, as tiktoken does, whether merging makes it or not.
fn pairs(sorted: &[(u32, &[u8])], byte_ids: &[u32]) -> Vec<u64> {
    let mut pairs: HashMap<u64, u32, BuildHasherDefault<PairHasher>> = Default::default();
    pairs.reserve(sorted.len());
    let mut parts: Vec<u32> = Vec::new();
    // What a token is made of is shorter. (In published encodings its id is also lower.)
    let mut by_length: Vec<&(u32, &[u8])> = sorted.iter().filter(|(_, token)| token.len() > 1).collect();
    by_length.sort_by_key(|(_, token)| token.len());
    for &&(id, token) in &by_length {
        parts.clear();
        parts.extend(token.iter().map(|byte| byte_ids[usize::from(*byte)]));
        // A token whose bytes are not all tokens is made by nothing.
        if parts.contains(&EMPTY) {
            continue;
        }
        merge_all(|left, right| pairs.get(&pair(left, right)).copied(), &mut parts);
        if let [left, right] = parts[..] {
            pairs.insert(pair(left, right), id);
        }
    }
    let mut pairs: Vec<u64> = pairs.into_iter().map(|(pair, id)| pair << ID_BITS | u64::from(id)).collect();
    pairs.sort_unstable(); // the same tables every time
    pairs
}

/// The standard hash takes most of the time that finding pairs takes.
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

/// A short token as its table holds it, without its id.
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

/// Two words as one: the halves of a product, added without carry.
#[inline]
pub fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x9E37_79B9_7F4A_7C15) * u128::from(b ^ 0xD6E8_FEB8_6659_FD93);
    product as u64 ^ (product >> 64) as u64
}
