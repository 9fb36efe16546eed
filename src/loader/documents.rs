//! The orders that use document boundaries: rows of whole documents, and rows that start with a document.

use super::Split;
use crate::Result;

/// `len` inputs of a row: the ids from `start` on. One more id is read for the targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) shard: u32,
    pub(super) len: u32,
    pub(super) start: u64,
}

/// Rows made of pieces of documents.
#[derive(Default)]
pub(super) struct Packed {
    segments: Vec<Segment>,
    /// The start of each row in `segments`, and the end of the last row.
    rows: Vec<u64>,
}

impl Packed {
    pub(super) fn rows(&self) -> u64 {
        self.rows.len().saturating_sub(1) as u64
    }

    pub(super) fn row(&self, row: u64) -> &[Segment] {
        &self.segments[self.rows[row as usize] as usize..self.rows[row as usize + 1] as usize]
    }
}

/// Packs documents into rows of `context` inputs by best-fit decreasing: the longest document first, each into the row in which the
/// least space remains. A document of n ids has n - 1 inputs (the last id is only a target). Longer documents are cut into pieces.
///
/// Source: Ding et al., "Fewer Truncations Improve Language Modeling", 2024.
///
/// # Cost
/// O(n log T) for n documents. Memory: 40 bytes per document and 1 to 30 bytes per column during the call, 16 bytes per document
/// afterwards.
pub(super) fn pack(split: &Split, context: u64) -> Result<Packed> {
    let mut pieces: Vec<Segment> = Vec::new();
    for (number, shard) in split.shards().iter().enumerate() {
        let index = shard.index()?;
        let mut after = 0;
        for document in 0..index.documents() {
            let (mut start, end) = (index.start(document), index.start(document + 1));
            if start < after || end < start {
                let reason = format!("document {document} runs from {start} to {end}: the index is corrupt");
                return Err(tallow_text::Error::Shard { path: shard.path(), reason }.into());
            }
            after = end;
            while start + 1 < end {
                let len = (end - 1 - start).min(context);
                pieces.push(Segment { shard: number as u32, len: len as u32, start });
                start += len;
            }
        }
    }
    // The sort is stable: pieces of equal length stay in the order of the corpus.
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.len));
    let mut free = FreeSpace::new(pieces.first().map_or(0, |_| context as usize));
    let mut row_of = vec![0u32; pieces.len()];
    let mut rows = 0u32;
    for (piece, row) in pieces.iter().zip(&mut row_of) {
        let left = match free.take(piece.len as usize) {
            Some((found, left)) => {
                *row = found;
                left
            }
            None => {
                *row = rows;
                rows += 1;
                context as usize
            }
        };
        free.put(left - piece.len as usize, *row);
    }
    // Pieces by row, in the order in which they were added.
    let mut starts = vec![0u64; rows as usize + 1];
    row_of.iter().for_each(|row| starts[*row as usize + 1] += 1);
    (0..rows as usize).for_each(|row| starts[row + 1] += starts[row]);
    let mut next = starts.clone();
    let mut segments = vec![Segment { shard: 0, len: 0, start: 0 }; pieces.len()];
    for (piece, row) in pieces.into_iter().zip(row_of) {
        let at = &mut next[row as usize];
        segments[*at as usize] = piece;
        *at += 1;
    }
    Ok(Packed { segments, rows: starts })
}

/// Rows by their free space, with a tree that finds the least free space of at least a given size.
struct FreeSpace {
    by_space: Vec<Vec<u32>>,
    /// A binary tree over `by_space`: whether the subtree of a node has any row. Leaves start at `leaves`.
    tree: Vec<bool>,
    leaves: usize,
}

impl FreeSpace {
    fn new(context: usize) -> Self {
        let leaves = (context + 1).next_power_of_two();
        FreeSpace { by_space: vec![Vec::new(); context + 1], tree: vec![false; 2 * leaves], leaves }
    }

    fn put(&mut self, space: usize, row: u32) {
        if space == 0 {
            return; // full
        }
        self.by_space[space].push(row);
        let mut node = self.leaves + space;
        while node > 0 && !self.tree[node] {
            self.tree[node] = true;
            node /= 2;
        }
    }

    /// Removes a row with at least `needed` free space, the one with the least.
    fn take(&mut self, needed: usize) -> Option<(u32, usize)> {
        // Up until a right sibling has a row, then down to its leftmost leaf.
        let mut node = self.leaves + needed;
        if !self.tree[node] {
            loop {
                if node <= 1 {
                    return None;
                }
                if node.is_multiple_of(2) && self.tree[node + 1] {
                    node += 1;
                    break;
                }
                node /= 2;
            }
            while node < self.leaves {
                node = if self.tree[2 * node] { 2 * node } else { 2 * node + 1 };
            }
        }
        let space = node - self.leaves;
        let row = self.by_space[space].pop()?;
        if self.by_space[space].is_empty() {
            self.tree[node] = false;
            while node > 1 {
                node /= 2;
                self.tree[node] = self.tree[2 * node] || self.tree[2 * node + 1];
            }
        }
        Some((row, space))
    }
}

/// The starts of rows of `context` + 1 ids that start with a document: the first document of a shard, then the first document
/// that starts after the previous row.
pub(super) fn bos_aligned(split: &Split, context: u64) -> Result<Vec<(u32, u64)>> {
    let mut rows = Vec::new();
    for (number, shard) in split.shards().iter().enumerate() {
        let index = shard.index()?;
        let mut free = 0;
        for document in 0..index.documents() {
            let start = index.start(document);
            if document == 0 && shard.continues() {
                continue; // it began in an earlier shard
            }
            if start >= free && start + context < shard.tokens() {
                rows.push((number as u32, start));
                free = start + context;
            }
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::FreeSpace;

    /// Compares the tree with a linear search.
    #[test]
    fn least_space_is_found() {
        let (context, mut naive) = (37, Vec::<(usize, u32)>::new());
        let mut free = FreeSpace::new(context);
        let mut x = 1u64;
        for row in 0..5000u32 {
            x = tallow_text::support::mix(x);
            let size = 1 + (x % context as u64) as usize;
            if x >> 63 == 0 {
                free.put(size, row);
                naive.push((size, row));
            } else {
                let best = naive.iter().filter(|(space, _)| *space >= size).map(|(space, _)| *space).min();
                let taken = free.take(size);
                assert_eq!(taken.map(|(_, space)| space), best);
                if let Some((row, space)) = taken {
                    let at = naive.iter().position(|other| *other == (space, row)).expect("a row that was put there");
                    naive.swap_remove(at);
                }
            }
        }
    }
}
