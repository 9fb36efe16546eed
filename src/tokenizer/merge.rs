//! Byte-pair merging of one piece, for vocabularies that are not bundled.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::vocab::Vocab;

const GONE: usize = usize::MAX;

/// Appends the tokens of `piece`: again and again, of all neighbours that together are a token, the pair with
/// the lowest rank is joined (the leftmost where ranks are equal).
///
/// Every single byte must be in the vocabulary. Cost: O(n log n) for n bytes, by a heap of candidate pairs
/// in which outdated entries are skipped.
///
/// Source: the merge rule of tiktoken's `byte_pair_merge`.
pub(super) fn merge(vocab: &Vocab, piece: &[u8], out: &mut Vec<u32>) {
    // Part i covers bytes i..end[i] while it lives; previous[i] is the part before it.
    let n = piece.len();
    let mut end: Vec<usize> = (1..=n).collect();
    let mut previous: Vec<usize> = (0..n).map(|i| i.wrapping_sub(1)).collect();
    let mut heap = BinaryHeap::with_capacity(n);
    let candidate = |heap: &mut BinaryHeap<_>, left: usize, pair_end: usize| {
        if let Some(rank) = vocab.id(&piece[left..pair_end]) {
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
        out.extend(vocab.id(&piece[start..end[start]]));
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

    #[test]
    fn equals_the_rule_word_by_word() {
        let bundled = &bpe_openai::cl100k_base().bpe;
        let vocab = Vocab::new((0..bundled.num_tokens() as u32).map(|id| (id, bundled.token_bytes(id)))).unwrap();
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
