//! Byte-pair merging of one piece, for vocabularies that are not bundled.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::vocab::Vocab;

const GONE: usize = usize::MAX;

/// Bytes that are merged at a time, of a longer piece.
const WINDOW_BYTES: usize = 1 << 14;
/// How far before the end of one window the next one begins, about.
const OVERLAP_BYTES: usize = 1 << 11;

/// Appends the tokens of `piece`: again and again, of all neighbors that together are a token, the pair with
/// the lowest rank is joined (the leftmost where ranks are equal).
///
/// Every single byte must be in the vocabulary. Cost: O(n) for n bytes in practice, in memory for a window; O(n log n) for a
/// piece that was made to have windows that never meet.
///
/// # Why windows give the tokens of the whole
/// Call neighbors (s, t) settled if the bytes of s·t alone give s, t. Tokens t₁ … tₙ are those of a text if and only if all
/// neighbors are settled. For look at the joins within tᵢ·tᵢ₊₁ while the whole text is merged: as long as none has crossed an
/// end of a token, they are those of tᵢ·tᵢ₊₁ alone, in the same order, since the lowest of all pairs is also the lowest there.
/// So the first join that crosses the end of tᵢ would also happen in tᵢ·tᵢ₊₁ alone: it cannot where the two are settled, and
/// it does where they are not. Two windows that have one token in common, at the same place, are therefore put together at
/// it: every pair of neighbors of the result is one of the first window or of the second, and all those are settled.
///
/// Source: the merge rule of tiktoken's `byte_pair_merge`; GitHub's crate `bpe` for pairs that decide everything.
pub(super) fn merge(vocab: &Vocab, piece: &[u8], out: &mut Vec<u32>) {
    let len = |id: u32| vocab.bytes(id).map_or(0, <[u8]>::len);
    let rank = |bytes: &[u8]| vocab.id(bytes);
    let (mut start, mut window) = (0, WINDOW_BYTES);
    let (mut tokens, mut next) = (Vec::new(), Vec::new());
    let mut end = window.min(piece.len());
    merge_window(rank, &piece[..end], &mut tokens);
    // `tokens` are those of `piece[start..end]`, and settled but for the last ones.
    while end < piece.len() {
        let (mut number, mut at) = (0, start);
        while number + 1 < tokens.len() && at + len(tokens[number]) + OVERLAP_BYTES <= end {
            at += len(tokens[number]);
            number += 1;
        }
        let next_end = (end + window).min(piece.len());
        next.clear();
        merge_window(rank, &piece[at..next_end], &mut next);
        // The first token that both windows have, at the same place.
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
            (start, end, window) = (at, next_end, WINDOW_BYTES);
        } else {
            // They do not meet: a longer window from the same place, up to the whole piece.
            window *= 2;
            end = (end + window).min(piece.len());
            tokens.clear();
            merge_window(rank, &piece[start..end], &mut tokens);
        }
    }
    out.append(&mut tokens);
}

/// The two tokens out of which merging makes `token`, whatever text it stands in; `None` where merging never makes it.
///
/// # Why there is one pair a token
/// A token comes to be when a last join puts two parts together to all of its bytes. Until then no join has crossed an end
/// of these bytes, or they would not be a part. So all earlier joins in them are those of the bytes alone, in the same order:
/// the pairs inside are the same, and the lowest of all pairs is also the lowest there. Merging the bytes alone, the last join
/// left out, therefore ends in the two parts, or nowhere makes the token.
///
/// These pairs, the token's rank being theirs, are a list of merges with tiktoken's result: a step of tiktoken's joins the
/// leftmost pair of the lowest rank, which is in the list by the argument above; and the list has no pair that tiktoken
/// would not join. A piece that is a token must be taken whole, as tiktoken does, whether merging makes it or not.
pub(super) fn halves(vocab: &Vocab, token: &[u8]) -> Option<[u32; 2]> {
    let mut parts = Vec::new();
    merge_window(|bytes| vocab.id(bytes).filter(|_| bytes.len() < token.len()), token, &mut parts);
    parts.try_into().ok()
}

/// The rule itself, by a heap of candidate pairs in which outdated entries are skipped: O(n log n).
fn merge_window(rank: impl Fn(&[u8]) -> Option<u32>, piece: &[u8], out: &mut Vec<u32>) {
    // Part i covers bytes i..end[i] while it lives; previous[i] is the part before it.
    let n = piece.len();
    let mut end: Vec<usize> = (1..=n).collect();
    let mut previous: Vec<usize> = (0..n).map(|i| i.wrapping_sub(1)).collect();
    let mut heap = BinaryHeap::with_capacity(n);
    let candidate = |heap: &mut BinaryHeap<_>, left: usize, pair_end: usize| {
        if let Some(rank) = rank(&piece[left..pair_end]) {
            heap.push(Reverse((rank, left, pair_end)));
        }
    };
    for left in 0..n.saturating_sub(1) {
        candidate(&mut heap, left, left + 2);
    }
    while let Some(Reverse((_, left, pair_end))) = heap.pop() {
        let right = end[left];
        // Outdated: a part is gone, or has grown since the entry was made.
        if right == GONE || right >= n || end[right] != pair_end {
            continue;
        }
        end[left] = pair_end;
        end[right] = GONE;
        if pair_end < n {
            previous[pair_end] = left;
            candidate(&mut heap, left, end[pair_end]);
        }
        if left > 0 {
            candidate(&mut heap, previous[left], pair_end);
        }
    }
    let mut start = 0;
    while start < n {
        out.extend(rank(&piece[start..end[start]]));
        start = end[start];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule word by word: find the lowest pair, join it, start again.
    fn naive(vocab: &Vocab, piece: &[u8]) -> Vec<u32> {
        let mut parts: Vec<&[u8]> = piece.chunks(1).collect();
        loop {
            let ranks = parts.windows(2).map(|pair| vocab.id(&[pair[0], pair[1]].concat()));
            let best = ranks.enumerate().filter_map(|(i, rank)| Some((rank?, i))).min();
            let Some((_, i)) = best else { break };
            let start = parts[..i].iter().map(|part| part.len()).sum::<usize>();
            let len = parts[i].len() + parts[i + 1].len();
            parts[i] = &piece[start..start + len];
            parts.remove(i + 1);
        }
        parts.iter().filter_map(|part| vocab.id(part)).collect()
    }

    fn cl100k() -> Vocab {
        let bundled = &bpe_openai::cl100k_base().bpe;
        Vocab::new((0..bundled.num_tokens() as u32).map(|id| (id, bundled.token_bytes(id)))).unwrap()
    }

    /// Windows, their meeting and their not meeting, against the whole merged at once.
    #[test]
    fn windows_give_the_tokens_of_the_whole() {
        let vocab = cl100k();
        let mut state = 7u64;
        let mut below = |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        let random: Vec<u8> = (0..300_000).map(|_| b"abenrst \xe6\xb2\x88\0"[below(12) as usize]).collect();
        let any: Vec<u8> = (0..100_000).map(|_| below(256) as u8).collect();
        let mut periodic = Vec::new();
        for period in 1..40 {
            periodic.extend(random[..period].iter().cycle().take(50_000));
        }
        let runs = [b'a', 0, b' ', b'=', 0xE6].map(|byte| vec![byte; 200_001]);
        for piece in [&random, &any, &periodic].into_iter().chain(&runs) {
            for length in [piece.len(), WINDOW_BYTES, WINDOW_BYTES + 1, 2 * WINDOW_BYTES + 3] {
                let (mut whole, mut windows) = (Vec::new(), Vec::new());
                merge_window(|bytes| vocab.id(bytes), &piece[..length], &mut whole);
                merge(&vocab, &piece[..length], &mut windows);
                assert!(whole == windows, "{:?}… of {length} bytes", &piece[..8]);
            }
        }
        // A vocabulary in which one token is far longer than the overlap, so that windows inside of it do not meet at once.
        let mut words: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
        for exponent in 1..=16 {
            words.push(vec![b'x'; 1 << exponent]);
        }
        let long = Vocab::new((0..).zip(words.iter().map(Vec::as_slice)).collect::<Vec<_>>().into_iter()).unwrap();
        for length in [1 << 17, (1 << 17) + 12_345, 3 << 16] {
            let (mut whole, mut windows) = (Vec::new(), Vec::new());
            merge_window(|bytes| long.id(bytes), &vec![b'x'; length], &mut whole);
            merge(&long, &vec![b'x'; length], &mut windows);
            assert_eq!(whole, windows, "{length}");
        }
    }

    #[test]
    fn equals_the_rule_word_by_word() {
        let bundled = &bpe_openai::cl100k_base().bpe;
        let vocab = cl100k();
        let mut state = 1u64;
        for _ in 0..300 {
            let piece: Vec<u8> = (0..state % 40)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    b"abenrst \xe6\xb2\x88"[(state >> 33) as usize % 11]
                })
                .collect();
            state = state.wrapping_add(7);
            let mut fast = Vec::new();
            merge(&vocab, &piece, &mut fast);
            assert_eq!(fast, naive(&vocab, &piece), "{piece:?}");
            assert_eq!(fast, bundled.encode_via_backtracking(&piece), "{piece:?}");
        }
    }
}
