//! The nearest rows by cosine similarity: one pass over a table, in blocks.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::{Error, PretrainedTable, Result, TokenEmbedding};

/// A row, and its cosine similarity to the query.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use tallow::{TokenEmbedding, neighbors};
/// let rows = Tensor::new(&[[1f32, 0.], [0., 3.], [2., 0.]], &Device::Cpu)?;
/// let nearest = neighbors(&TokenEmbedding::from_weight(rows)?, &[[0]], 1)?[0][0];
/// assert_eq!((nearest.id, nearest.cosine), (2, 1.0)); // row 2 has the direction of row 0
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbor {
    /// The row.
    pub id: u32,
    /// Cosine of the angle between row and query: 1 for the same direction, 0 for orthogonal rows and for rows of zeros.
    pub cosine: f32,
}

/// Reversed order, so that the heap's first element is the worst: the least cosine, and among equals the largest id.
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

/// The `k` nearest rows for each of `queries` (N, C), the nearest first. `blocks` returns the table in order. Rows with values that
/// are not finite are left out.
fn nearest(
    queries: &Tensor,
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
                if neighbor.cosine.is_nan() {
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

/// A table for [`neighbors`]: a [`TokenEmbedding`], or a [`PretrainedTable`], which is read from its file.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use tallow::{Neighbor, Table, TokenEmbedding, neighbors};
/// // For a layer and for a file.
/// fn nearest(table: &impl Table, id: u32) -> tallow::Result<Vec<Neighbor>> {
///     Ok(neighbors(table, &[[id]], 1)?.remove(0))
/// }
/// let rows = Tensor::new(&[[1f32, 0.], [0., 3.], [2., 0.]], &Device::Cpu)?;
/// assert_eq!(nearest(&TokenEmbedding::from_weight(rows)?, 0)?[0].id, 2);
/// # Ok::<(), tallow::Error>(())
/// ```
#[allow(private_bounds)] // no other implementations
pub trait Table: Blocks {}

impl Table for TokenEmbedding {}
impl Table for PretrainedTable {}

trait Blocks {
    fn sizes(&self) -> (usize, usize);
    /// Some rows, in this order. All ids are below V.
    fn some(&self, ids: &[u32]) -> Result<Tensor>;
    /// All rows in order, each block with the number of its first row.
    fn all(&self) -> Result<impl Iterator<Item = Result<(usize, Tensor)>>>;
}

impl Blocks for TokenEmbedding {
    fn sizes(&self) -> (usize, usize) {
        (self.vocab_size(), self.d_model())
    }

    fn some(&self, ids: &[u32]) -> Result<Tensor> {
        let weight = self.flushed_weight()?;
        Ok(weight.index_select(&Tensor::new(ids, weight.device())?, 0)?)
    }

    fn all(&self) -> Result<impl Iterator<Item = Result<(usize, Tensor)>>> {
        self.flushed_weight()?;
        Ok(self.blocks())
    }
}

impl Blocks for PretrainedTable {
    fn sizes(&self) -> (usize, usize) {
        (self.vocab_size(), self.d_model())
    }

    fn some(&self, ids: &[u32]) -> Result<Tensor> {
        self.rows(ids)
    }

    fn all(&self) -> Result<impl Iterator<Item = Result<(usize, Tensor)>>> {
        Ok(self.blocks())
    }
}

/// The `k` nearest rows by cosine similarity for each of `words`, the nearest first. Among equals the smallest id is first.
///
/// A word is the ids of its tokens, `[id]` for one token. The query is the mean of their rows, which are left out of the result.
///
/// # Errors
/// [`Error::IdOutOfRange`]; [`Error::Config`] for a word without tokens; those of reading the table.
///
/// # Cost
/// One pass over the table for all words together, 2·V·C operations per word, and about 16 MiB of memory.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use tallow::{TokenEmbedding, neighbors};
/// let rows = Tensor::new(&[[1f32, 0.], [0., 2.], [3., 0.1], [-1., 0.]], &Device::Cpu)?;
/// let wte = TokenEmbedding::from_weight(rows)?;
/// assert_eq!(neighbors(&wte, &[[0]], 2)?[0].iter().map(|n| n.id).collect::<Vec<_>>(), [2, 1]);
/// # Ok::<(), tallow::Error>(())
/// ```
pub fn neighbors<W: AsRef<[u32]>>(table: &impl Table, words: &[W], k: usize) -> Result<Vec<Vec<Neighbor>>> {
    let (rows, _) = table.sizes();
    let ids: Vec<u32> = words.iter().flat_map(|word| word.as_ref()).copied().collect();
    if let Some((position, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= rows) {
        let (id, position) = (i64::from(*id), vec![position]);
        return Err(Error::IdOutOfRange { id, position, rows, token: None });
    }
    if words.iter().any(|word| word.as_ref().is_empty()) {
        return Err(Error::Config("an empty word has no neighbors".to_string()));
    }
    if words.is_empty() {
        return Ok(Vec::new());
    }
    let (all, mut first) = (table.some(&ids)?.to_dtype(DType::F32)?, 0);
    let mut means = Vec::new();
    for word in words {
        means.push(all.narrow(0, first, word.as_ref().len())?.mean_keepdim(0)?);
        first += word.as_ref().len();
    }
    let most = words.iter().map(|word| word.as_ref().len()).max().unwrap_or(0);
    let found = nearest(&Tensor::cat(&means, 0)?, k.saturating_add(most), table.all()?)?;
    let others = |(near, word): (Vec<Neighbor>, &W)| {
        near.into_iter().filter(|near| !word.as_ref().contains(&near.id)).take(k).collect()
    };
    Ok(found.into_iter().zip(words).map(others).collect())
}

/// The `k` nearest rows for each of `queries` (N, C), such as sums of rows or hidden states.
///
/// # Errors
/// [`Error::Config`] for another shape; those of reading the table.
///
/// # Cost
/// As [`neighbors`].
pub fn neighbors_of(table: &impl Table, queries: &Tensor, k: usize) -> Result<Vec<Vec<Neighbor>>> {
    let (_, columns) = table.sizes();
    match queries.dims() {
        [_, given] if *given == columns => nearest(queries, k, table.all()?),
        dims => Err(Error::Config(format!("queries have shape {dims:?}, not (N, {columns})"))),
    }
}
