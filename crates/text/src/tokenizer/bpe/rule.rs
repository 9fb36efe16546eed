//! The merge rule.
//!
//! Repeat: of all neighbors that can be joined, join the pair with the lowest resulting id, of equal ones the leftmost. (Source:
//! tiktoken's `byte_pair_merge`.)

use std::cmp::Reverse;
use std::collections::BinaryHeap;

const GONE: usize = usize::MAX;

/// Merges all parts at once: O(n log n).
pub fn merge_all(joined: impl Fn(u32, u32) -> Option<u32>, parts: &mut Vec<u32>) {
    match parts.len() {
        0..=16 => merge_a_few(joined, parts),
        _ => merge_many(joined, parts),
    }
}

fn merge_a_few(joined: impl Fn(u32, u32) -> Option<u32>, parts: &mut Vec<u32>) {
    loop {
        let pairs = parts.windows(2).enumerate().filter_map(|(at, pair)| Some((joined(pair[0], pair[1])?, at)));
        let Some((id, at)) = pairs.min() else { return };
        parts[at] = id;
        parts.remove(at + 1);
    }
}

/// Uses a heap of candidate pairs. Outdated entries are skipped.
fn merge_many(joined: impl Fn(u32, u32) -> Option<u32>, parts: &mut Vec<u32>) {
    // The part after part i is next[i], the one before it previous[i]. next[i] is GONE if part i was joined to another.
    let n = parts.len();
    let mut next: Vec<usize> = (1..=n).collect();
    let mut previous: Vec<usize> = (0..n).map(|i| i.wrapping_sub(1)).collect();
    let mut heap = BinaryHeap::with_capacity(n);
    for left in 1..n {
        if let Some(id) = joined(parts[left - 1], parts[left]) {
            heap.push(Reverse((id, left - 1, left)));
        }
    }
    while let Some(Reverse((id, left, right))) = heap.pop() {
        // Outdated: one of the parts is gone or has changed.
        if next[left] != right || joined(parts[left], parts[right]) != Some(id) {
            continue;
        }
        parts[left] = id;
        next[left] = next[right];
        next[right] = GONE;
        if next[left] < n {
            previous[next[left]] = left;
            if let Some(id) = joined(id, parts[next[left]]) {
                heap.push(Reverse((id, left, next[left])));
            }
        }
        if left > 0
            && let Some(joined) = joined(parts[previous[left]], id)
        {
            heap.push(Reverse((joined, previous[left], left)));
        }
    }
    let mut at = 0;
    parts.retain(|_| {
        at += 1;
        next[at - 1] != GONE
    });
}
