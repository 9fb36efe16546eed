//! The rows nearest to others by cosine: one pass over a table, in blocks.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::TokenEmbedding;
use crate::{Error, Result};

/// A row, and how near it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbor {
    /// The row.
    pub id: u32,
    /// cos of the angle between the rows: 1 in the same direction, 0 with nothing in common; 0 for rows of zeros.
    pub cosine: f32,
}

/// Worst first, so that a heap gives up the worst: the least cosine, and among equals the largest id.
struct Worst(Neighbor);

impl Ord for Worst {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.cosine.total_cmp(&self.0.cosine).then(self.0.id.cmp(&other.0.id))
    }
}
impl PartialOrd for Worst {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Worst {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Worst {}

/// The `k` nearest rows for each of `queries` (N, C), the nearest first, out of a table that `blocks` gives in order. Rows of
/// `without`, one a query, are left out, and rows that are not finite.
pub(crate) fn nearest(
    queries: &Tensor,
    without: &[u32],
    k: usize,
    blocks: impl Iterator<Item = Result<(usize, Tensor)>>,
) -> Result<Vec<Vec<Neighbor>>> {
    let queries = queries.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    let unit = |norm: f32| if norm > 0.0 { norm.recip() } else { 0.0 };
    let lengths: Vec<f32> = queries.sqr()?.sum(1)?.sqrt()?.to_vec1()?;
    let turned = queries.t()?.contiguous()?;
    let mut best: Vec<BinaryHeap<Worst>> = lengths.iter().map(|_| BinaryHeap::new()).collect();
    for block in blocks {
        let (first, rows) = block?;
        let rows = rows.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
        let (count, columns) = rows.dims2()?;
        let dots: Vec<f32> = rows.matmul(&turned)?.flatten_all()?.to_vec1()?;
        let values: Vec<f32> = rows.flatten_all()?.to_vec1()?;
        let units: Vec<f32> = values
            .par_chunks_exact(columns)
            .with_min_len(64)
            .map(|row| unit(row.iter().map(|value| value * value).sum::<f32>().sqrt()))
            .collect();
        best.par_iter_mut().enumerate().for_each(|(query, best)| {
            let length = unit(lengths[query]);
            for row in 0..count {
                let neighbor = Neighbor {
                    id: (first + row) as u32,
                    cosine: dots[row * lengths.len() + query] * units[row] * length,
                };
                if neighbor.cosine.is_nan() || without.get(query) == Some(&neighbor.id) {
                    continue;
                }
                if best.len() < k {
                    best.push(Worst(neighbor));
                } else if best.peek().is_some_and(|worst| Worst(neighbor) < *worst) {
                    best.pop();
                    best.push(Worst(neighbor));
                }
            }
        });
    }
    Ok(best.into_iter().map(|best| best.into_sorted_vec().into_iter().map(|worst| worst.0).collect()).collect())
}

impl TokenEmbedding {
    /// The `k` rows nearest to each of `ids` by cosine, itself left out, the nearest first; among equals the smallest id.
    ///
    /// # Errors
    /// [`Error::IdOutOfRange`].
    ///
    /// # Cost
    /// One pass over the table for all ids together, 2·V·C operations an id, and some 16 MiB.
    ///
    /// # Example
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use tallow::TokenEmbedding;
    /// let rows = Tensor::new(&[[1f32, 0.], [0., 2.], [3., 0.1], [-1., 0.]], &Device::Cpu)?;
    /// let wte = TokenEmbedding::from_weight(rows)?;
    /// assert_eq!(wte.neighbors(&[0], 2)?[0].iter().map(|n| n.id).collect::<Vec<_>>(), [2, 1]);
    /// # Ok::<(), tallow::Error>(())
    /// ```
    pub fn neighbors(&self, ids: &[u32], k: usize) -> Result<Vec<Vec<Neighbor>>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        if let Some((position, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= self.vocab_size()) {
            let (id, position) = (i64::from(*id), vec![position]);
            return Err(Error::IdOutOfRange { id, position, rows: self.vocab_size(), token: None });
        }
        let queries = self.weight()?.index_select(&Tensor::new(ids, self.device())?, 0)?;
        nearest(&queries, ids, k, self.blocks())
    }

    /// The `k` rows nearest to each of `queries` (N, C), whatever they are: the mean of some rows, a hidden state.
    ///
    /// # Errors
    /// [`Error::Config`] for another shape.
    ///
    /// # Cost
    /// As [`neighbors`](Self::neighbors).
    pub fn neighbors_of(&self, queries: &Tensor, k: usize) -> Result<Vec<Vec<Neighbor>>> {
        self.flush()?;
        queries_fit(queries, self.d_model())?;
        nearest(queries, &[], k, self.blocks())
    }
}

pub(crate) fn queries_fit(queries: &Tensor, columns: usize) -> Result<()> {
    match queries.dims() {
        [_, given] if *given == columns => Ok(()),
        dims => Err(Error::Config(format!("queries have shape {dims:?}, not (N, {columns})"))),
    }
}
