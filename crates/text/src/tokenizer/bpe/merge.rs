//! Merges one piece of text to tokens by the rule of `rule`, in linear time.

use super::fold::Folded;
use super::rule::merge_all;
use super::tables::View;

/// Bytes of a window of a long piece, and the approximate overlap of two windows.
const WINDOW_BYTES: usize = 256;
const OVERLAP_BYTES: usize = 32;

/// The most parts that are merged without an allocation: for most pieces, and for a window.
const FEW: usize = 32;
const MANY: usize = 512;
/// Ranks are compared in blocks of this size.
const BLOCK: usize = 8;
/// Bits of a part's index, below its rank.
const AT_BITS: u32 = MANY.trailing_zeros();

/// Rank of a part that cannot be joined.
const NONE: i32 = i32::MAX;

/// Appends the tokens of `piece`, a piece of UTF-8 text. Every single byte must be a token.
///
/// Cost: O(n) for n bytes if windows meet, with memory for one window. O(n log n) for pieces and vocabularies that are constructed so
/// that windows never meet.
///
/// # Why windows give the tokens of the whole
/// Call neighbors (s, t) settled if merging the bytes of s·t alone gives s, t. Claim: t₁ … tₙ are the tokens of a text if and only if
/// all neighbors are settled. Proof: merge the whole text and look at the joins within tᵢ·tᵢ₊₁. Until a join crosses the bound of a
/// token, they are the joins of tᵢ·tᵢ₊₁ alone, in the same order, because the lowest pair of the text is also the lowest there. So the
/// first join that crosses the end of tᵢ also happens in tᵢ·tᵢ₊₁ alone. If the two are settled, there is no such join; if they are
/// not, there is one. Therefore two windows with a common token at the same place can be put together at it: all neighbors of the
/// result are neighbors in one of the windows, and these are settled. (Source of the claim: GitHub's crate `bpe`.)
pub fn merge(tables: &View, piece: &[u8], out: &mut Vec<u32>) {
    if piece.len() <= MANY {
        return merge_window(tables, piece, out);
    }
    let len = |id: u32| tables.bytes(id).map_or(0, <[u8]>::len);
    let (mut start, mut window) = (0, WINDOW_BYTES);
    let (mut tokens, mut next) = (Vec::new(), Vec::new());
    let mut end = window.min(piece.len());
    merge_window(tables, &piece[..end], &mut tokens);
    // `tokens` are the tokens of `piece[start..end]`. All but the last ones are final.
    while end < piece.len() {
        let (mut number, mut at) = (0, start);
        while number + 1 < tokens.len() && at + len(tokens[number]) + OVERLAP_BYTES <= end {
            at += len(tokens[number]);
            number += 1;
        }
        let next_end = (at + window).max(end + window / 2).min(piece.len());
        next.clear();
        merge_window(tables, &piece[at..next_end], &mut next);
        // Find the first token that both windows have at the same place.
        let (mut there, mut other) = (at, 0);
        while number < tokens.len() && other < next.len() && (at, tokens[number]) != (there, next[other]) {
            if at <= there {
                at += len(tokens[number]);
                number += 1;
            } else {
                there += len(next[other]);
                other += 1;
            }
        }
        if number < tokens.len() && other < next.len() {
            out.extend_from_slice(&tokens[..number]);
            tokens.clear();
            tokens.extend_from_slice(&next[other..]);
            (start, end, window) = (at, next_end, (window / 2).max(WINDOW_BYTES));
        } else {
            // They do not meet: repeat with a longer window from the same start, up to the whole piece.
            window *= 2;
            end = (end + window).min(piece.len());
            tokens.clear();
            merge_window(tables, &piece[start..end], &mut tokens);
        }
    }
    out.append(&mut tokens);
}

/// Merges all of `piece` at once.
fn merge_window(tables: &View, piece: &[u8], out: &mut Vec<u32>) {
    match piece.len() {
        len if len <= FEW => merge_few::<FEW>(tables, piece, out),
        len if len <= MANY => merge_few::<MANY>(tables, piece, out),
        _ => {
            let mut parts = Vec::with_capacity(piece.len());
            begin(tables, piece, |id| parts.push(id));
            merge_all(|left, right| tables.joined(left, right), &mut parts);
            out.append(&mut parts);
        }
    }
}

/// Calls `push` for the parts with which merging begins: the tokens of each character, or its bytes.
fn begin(tables: &View, piece: &[u8], mut push: impl FnMut(u32)) {
    let mut at = 0;
    // The previous character. Its successor decides whether it begins as bytes.
    let (mut before, mut before_len, mut as_bytes) = (tables.folded(0), 0, false);
    loop {
        let (len, code) = match piece[at..] {
            [] => break,
            [a @ 0..=0x7F, ..] => (1, u32::from(a)),
            [a @ 0xC2..=0xDF, b @ 0x80..=0xBF, ..] => (2, (u32::from(a) & 0x1F) << 6 | u32::from(b) & 0x3F),
            [a @ 0xE0..=0xEF, b @ 0x80..=0xBF, c @ 0x80..=0xBF, ..] => {
                (3, (u32::from(a) & 0xF) << 12 | (u32::from(b) & 0x3F) << 6 | u32::from(c) & 0x3F)
            }
            _ => (1, u32::MAX), // a byte of a 4-byte character, or of one that the window cuts
        };
        let folded = tables.folded(code);
        let interferes = before_len > 0 && before.interferes(folded);
        give(tables, before, &piece[at - before_len..at], as_bytes || interferes, &mut push);
        (before, before_len, as_bytes) = (folded, len, interferes);
        at += len;
    }
    give(tables, before, &piece[at - before_len..], as_bytes, &mut push);
}

#[inline]
fn give(tables: &View, folded: Folded, bytes: &[u8], as_bytes: bool, push: &mut impl FnMut(u32)) {
    if bytes.is_empty() {
    } else if as_bytes || folded.len() == 0 {
        bytes.iter().for_each(|byte| push(tables.byte(*byte)));
    } else {
        folded.ids()[..folded.len()].iter().for_each(|id| push(*id));
    }
}

/// Merges a piece of up to `N` bytes.
#[inline]
fn merge_few<const N: usize>(tables: &View, piece: &[u8], out: &mut Vec<u32>) {
    let mut parts = [0; N];
    let mut len = 0;
    if piece.is_ascii() {
        len = piece.len().min(N);
        for (part, byte) in parts.iter_mut().zip(piece) {
            *part = tables.byte(*byte);
        }
    } else {
        begin(tables, piece, |id| {
            parts[len & (N - 1)] = id;
            len += 1;
        });
    }
    // For each part, the id of its join with the next part, and below it the part's index, so that of equal ids the leftmost is lowest.
    let mut ranks = [NONE; N];
    let rank = |left: u32, right: u32, at: usize| match tables.joined(left, right) {
        Some(id) => (id << AT_BITS | at as u32) as i32,
        None => NONE,
    };
    // The previous and the next remaining part of each part.
    let (mut before, mut after) = ([0u16; N], [0u16; N]);
    for at in 0..len.min(N) {
        (before[at], after[at]) = (at.wrapping_sub(1) as u16, at as u16 + 1);
    }
    for at in 0..len.min(N).saturating_sub(1) {
        ranks[at] = rank(parts[at], parts[at + 1], at);
    }
    let lowest = |ranks: &[i32]| ranks.iter().fold(NONE, |lowest, rank| lowest.min(*rank));
    // The lowest of each block, if there are many parts.
    let mut minima = [NONE; MANY / BLOCK];
    let blocks = if N > FEW { len.div_ceil(BLOCK).min(MANY / BLOCK) } else { 0 };
    for (minimum, block) in minima.iter_mut().zip(ranks.as_chunks::<BLOCK>().0).take(blocks) {
        *minimum = lowest(block);
    }
    let whole = len.next_multiple_of(8).min(N);
    loop {
        let first = if N > FEW { lowest(&minima[..blocks]) } else { lowest(&ranks[..whole]) };
        if first == NONE {
            break;
        }
        let at = first as usize & (N - 1);
        let id = first as u32 >> AT_BITS;
        parts[at] = id;
        let gone = usize::from(after[at]) & (N - 1);
        let next = usize::from(after[gone]);
        after[at] = next as u16;
        ranks[gone] = NONE;
        ranks[at] = NONE;
        if next < len {
            before[next & (N - 1)] = at as u16;
            ranks[at] = rank(id, parts[next & (N - 1)], at);
        }
        let previous = usize::from(before[at]);
        if previous < len {
            ranks[previous & (N - 1)] = rank(parts[previous & (N - 1)], id, previous);
        }
        if N > FEW {
            for block in [previous.min(at), at, gone] {
                minima[block / BLOCK] = lowest(&ranks.as_chunks::<BLOCK>().0[block / BLOCK]);
            }
        }
    }
    let mut at = 0;
    while at < len {
        out.push(parts[at & (N - 1)]);
        at = usize::from(after[at & (N - 1)]);
    }
}
