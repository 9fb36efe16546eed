//! Characters as the tokens of their bytes, so that merging can begin with these tokens instead of bytes.
//!
//! The build script compiles this file, too, so it uses only the standard library.

use std::collections::{HashMap, HashSet};

/// The tokens of a character's bytes alone, and whether merging may begin with them.
///
/// # When merging may begin with a character's tokens
/// Merging joins bytes within characters and across their bounds. Take two neighbors c, d with no join across their common bound yet.
/// The first join across it takes a part L that ends there and a part R that begins there. If all joins within c alone and within d
/// alone come before it, the result is the same when they are done beforehand. If one of them comes later, because its rank is
/// higher than that of L R, then c and d must begin as bytes. There are few such pairs L R, and each forbids some c before some d.
/// Four bits of c and four bits of d encode this: if they have a bit in common, both begin as bytes. (They do so more often than
/// necessary, but never less often.)
///
/// Conditions: the text is UTF-8 or a part of it, and ids are larger than those of their parts, so that no join with a whole character
/// comes before one within it.
///
/// Layout, from the lowest bit: three ids of 18 bits, 2 bits for their number, 4 bits as the left neighbor, 4 as the right one.
#[derive(Clone, Copy)]
pub struct Folded(pub u64);

/// Begins as bytes. It makes neighbors begin as bytes, too, if they have any of their bits set.
pub const NOT_FOLDED: u64 = 0xFF << 56;

impl Folded {
    /// Number of tokens, from 1 to 3; 0 if the character always begins as bytes.
    #[inline]
    pub fn len(self) -> usize {
        (self.0 >> 54) as usize & 3
    }

    /// Its tokens. Only the first [`len`](Self::len) are valid.
    #[inline]
    pub fn ids(self) -> [u32; 3] {
        [0, 18, 36].map(|shift| (self.0 >> shift) as u32 & 0x3FFFF)
    }

    /// Whether this character and the one after it must begin as bytes.
    #[inline]
    pub fn interferes(self, after: Folded) -> bool {
        (self.0 >> 56 & 15) & (after.0 >> 60) != 0
    }
}

/// A part of a character while its bytes alone are merged. The join with rank `until` replaces it. For a part that remains at the end,
/// `until` is the rank of the character's last join.
struct Part<'c> {
    bytes: &'c [u8],
    until: u32,
}

/// Ranks by the bytes of a part.
type Ranks<'c> = HashMap<&'c [u8], u32>;

/// The merges of one character.
struct Char {
    bytes: ([u8; 3], usize),
    ids: Vec<u32>,
    /// Parts at its beginning and at its end: their lengths, and `until`.
    first: Vec<(usize, u32)>,
    last: Vec<(usize, u32)>,
}

impl Char {
    fn bytes(&self) -> &[u8] {
        &self.bytes.0[..self.bytes.1]
    }

    fn first(&self) -> impl Iterator<Item = Part<'_>> {
        self.first.iter().map(|&(len, until)| Part { bytes: &self.bytes()[..len], until })
    }

    fn last(&self) -> impl Iterator<Item = Part<'_>> {
        self.last.iter().map(|&(len, until)| Part { bytes: &self.bytes()[self.bytes.1 - len..], until })
    }
}

fn is_inner(byte: u8) -> bool {
    (0x80..0xC0).contains(&byte)
}

/// Number of bytes of a character with this first byte.
fn char_len(first: u8) -> usize {
    match first {
        0..=0xBF => 1,
        0xC0..=0xDF => 2,
        0xE0..=0xEF => 3,
        _ => 4,
    }
}

/// Merges the bytes of one character step by step.
fn alone(byte_ids: &[u32], joined: &impl Fn(u32, u32) -> Option<u32>, c: char) -> Char {
    let mut buffer = [0; 3];
    let len = c.encode_utf8(&mut buffer).len();
    // Length and id of each part.
    let mut parts: Vec<(usize, u32)> = buffer[..len].iter().map(|byte| (1, byte_ids[usize::from(*byte)])).collect();
    let (mut first, mut last, mut until) = (Vec::new(), Vec::new(), None);
    loop {
        let pairs = parts.windows(2).enumerate().filter_map(|(i, w)| Some((joined(w[0].1, w[1].1)?, i)));
        let Some((id, i)) = pairs.min() else { break };
        until = Some(id);
        if i == 0 {
            first.push((parts[0].0, id));
        }
        if i + 2 == parts.len() {
            last.push((parts[i + 1].0, id));
        }
        parts[i] = (parts[i].0 + parts[i + 1].0, id);
        parts.remove(i + 1);
    }
    if let (Some(until), [one, .., other]) = (until, &parts[..]) {
        first.push((one.0, until));
        last.push((other.0, until));
    }
    Char { bytes: (buffer, len), ids: parts.iter().map(|(_, id)| *id).collect(), first, last }
}

/// Makes [`Folded`] for all characters of up to three bytes. `joined` returns the id that two ids are joined to. `pairs` has the bytes
/// of both parts and the id of every pair.
pub fn fold<'t>(
    byte_ids: &[u32],
    joined: impl Fn(u32, u32) -> Option<u32>,
    pairs: impl Iterator<Item = (&'t [u8], &'t [u8], u32)>,
) -> Vec<u64> {
    let char = |code| char::from_u32(code).map(|c| alone(byte_ids, &joined, c));
    let chars: Vec<Option<Char>> = (0..0x10000).map(char).collect();

    // For the bytes of a part: the highest `until` in any character.
    let (mut first, mut last) = (Ranks::new(), Ranks::new());
    for c in chars.iter().flatten() {
        for part in c.first() {
            let highest = first.entry(part.bytes).or_default();
            *highest = part.until.max(*highest);
        }
        for part in c.last() {
            let highest = last.entry(part.bytes).or_default();
            *highest = part.until.max(*highest);
        }
    }

    // The pairs L R whose join can come too early, and for each L or R that is a part the lowest rank of its pairs.
    // 1: a character before a part R. 2: a character after a part L. 3 and 4: parts on both sides, too early for the right one (3) or
    // for the left one (4).
    let (mut before_1, mut first_1) = (HashSet::<u32>::new(), Ranks::new());
    let (mut last_2, mut after_2) = (Ranks::new(), HashSet::<u32>::new());
    let (mut before_3, mut first_3) = (HashSet::<&[u8]>::new(), Ranks::new());
    let (mut last_4, mut after_4) = (Ranks::new(), HashSet::<&[u8]>::new());
    for (left, right, id) in pairs {
        if right.is_empty() || is_inner(right[0]) {
            continue; // the join is within a character
        }
        let right_is_whole = right.len() >= char_len(right[0]);
        let last_char = left.iter().rposition(|byte| !is_inner(*byte)).map(|start| &left[start..]);
        let is_early = |highest: Option<&u32>| highest.is_some_and(|highest| id < *highest);
        let add = |lowest: &mut Ranks<'t>, bytes| {
            let lowest = lowest.entry(bytes).or_insert(u32::MAX);
            *lowest = id.min(*lowest);
        };
        match last_char {
            Some(last_char) if !right_is_whole && is_early(first.get(right)) => {
                add(&mut first_1, right);
                before_1.extend(code(last_char));
            }
            None if right_is_whole && is_early(last.get(left)) => {
                add(&mut last_2, left);
                after_2.extend(code(&right[..char_len(right[0])]));
            }
            None if !right_is_whole => {
                if is_early(first.get(right)) {
                    add(&mut first_3, right);
                    before_3.insert(left);
                }
                if is_early(last.get(left)) {
                    add(&mut last_4, left);
                    after_4.insert(right);
                }
            }
            _ => {} // both characters are complete by then
        }
    }

    let entry = |(code, c): (usize, &Option<Char>)| {
        let Some(c) = c else { return NOT_FOLDED };
        let bytes = c.bytes();
        let too_early = |part: Part, pairs: &Ranks| pairs.get(part.bytes).is_some_and(|id| *id < part.until);
        let left = [
            before_1.contains(&(code as u32)),
            c.last().any(|part| too_early(part, &last_2)),
            (1..bytes.len()).any(|at| before_3.contains(&bytes[at..])),
            c.last().any(|part| too_early(part, &last_4)),
        ];
        let right = [
            c.first().any(|part| too_early(part, &first_1)),
            after_2.contains(&(code as u32)),
            c.first().any(|part| too_early(part, &first_3)),
            (1..bytes.len()).any(|at| after_4.contains(&bytes[..at])),
        ];
        let bits = |set: [bool; 4]| (0..4).map(|bit| u64::from(set[bit]) << bit).sum::<u64>();
        let neighbors = bits(left) << 56 | bits(right) << 60;
        match c.ids.iter().all(|id| *id < 1 << 18) {
            true => {
                let ids = c.ids.iter().enumerate().map(|(i, id)| u64::from(*id) << (18 * i)).sum::<u64>();
                neighbors | (c.ids.len() as u64) << 54 | ids
            }
            false => neighbors,
        }
    };
    chars.iter().enumerate().map(entry).collect()
}

/// The code point of the character with these bytes.
fn code(bytes: &[u8]) -> Option<u32> {
    std::str::from_utf8(bytes).ok()?.chars().next().map(u32::from)
}
