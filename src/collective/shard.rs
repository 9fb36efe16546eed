//! The rows of a weight that one rank holds.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::{Collective, ReduceOp, differences};
use crate::{Error, NO_TOKEN, Result};

/// Every `step`th row from row `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stride {
    pub(crate) first: usize,
    pub(crate) step: usize,
}

impl Stride {
    pub(crate) const ALL: Stride = Stride { first: 0, step: 1 };

    /// How many of the rows 0 to `rows` - 1 these are.
    pub(crate) fn count(self, rows: usize) -> usize {
        rows.saturating_sub(self.first).div_ceil(self.step)
    }

    /// The place of a row among these. `None`: it is not one of them.
    pub(crate) fn place(self, row: usize) -> Option<usize> {
        let from_first = row.checked_sub(self.first)?;
        (from_first % self.step == 0).then_some(from_first / self.step)
    }

    /// The row at a place.
    pub(crate) fn row(self, place: usize) -> usize {
        self.first + place * self.step
    }
}

/// A weight (V, …) that is split by rows: rank r of N holds the rows with id mod N = r, in the order of ids.
///
/// BPE ids are sorted by frequency, so contiguous parts would give the first rank most of the tokens.
pub(crate) struct Shard {
    ranks: Arc<dyn Collective>,
    vocab_size: usize,
}

impl Shard {
    pub(crate) fn new(ranks: Arc<dyn Collective>, vocab_size: usize) -> Self {
        Shard { ranks, vocab_size }
    }

    /// Rows of the whole weight, V.
    pub(crate) fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The ids of this rank's rows.
    pub(crate) fn stride(&self) -> Stride {
        self.stride_of(self.ranks.rank())
    }

    fn stride_of(&self, rank: usize) -> Stride {
        Stride { first: rank, step: self.ranks.world_size() }
    }

    /// The row of an id here. [`NO_TOKEN`]: another rank has it, or it is no token.
    pub(crate) fn row(&self, id: u32) -> u32 {
        match id {
            NO_TOKEN => NO_TOKEN,
            id => self.stride().place(id as usize).map_or(NO_TOKEN, |row| row as u32),
        }
    }

    /// The sum over all ranks.
    pub(crate) fn sum(&self, tensor: &Tensor) -> Result<Tensor> {
        self.reduce(tensor, ReduceOp::Sum)
    }

    /// The maximum over all ranks.
    pub(crate) fn max(&self, tensor: &Tensor) -> Result<Tensor> {
        self.reduce(tensor, ReduceOp::Max)
    }

    /// Replaces a contiguous tensor by the sum over all ranks, without a new node in its graph.
    pub(crate) fn sum_in_place(&self, tensor: &Tensor) -> Result<()> {
        if self.ranks.world_size() > 1 && tensor.elem_count() > 0 {
            tensor.slice_set(&self.sum(tensor)?, 0, 0)?;
        }
        Ok(())
    }

    fn reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<Tensor> {
        match self.ranks.world_size() == 1 || tensor.elem_count() == 0 {
            true => Ok(tensor.detach()),
            false => self.ranks.all_reduce(&tensor.detach(), op),
        }
    }

    /// The sum over all ranks of one number.
    pub(crate) fn sum_number(&self, number: f64) -> Result<f64> {
        Ok(self.sum(&Tensor::new(&[number], &Device::Cpu)?)?.to_vec1::<f64>()?[0])
    }

    /// The tensors (…, k) of all ranks, concatenated along the last dimension in the order of ranks.
    pub(crate) fn concatenate(&self, tensor: &Tensor) -> Result<Tensor> {
        let all = self.ranks.all_gather(&tensor.detach().unsqueeze(0)?)?;
        let parts: candle_core::Result<Vec<Tensor>> = (0..self.ranks.world_size()).map(|rank| all.get(rank)).collect();
        Ok(Tensor::cat(&parts?, tensor.rank() - 1)?)
    }

    /// An error on every rank if the bytes differ between ranks. It compares checksums.
    pub(crate) fn check_same(&self, what: &'static str, bytes: &[u8]) -> Result<()> {
        if self.ranks.world_size() == 1 {
            return Ok(());
        }
        let own = [crc32fast::hash(bytes), bytes.len() as u32];
        match differences(&self.ranks, &own)?.contains(&true) {
            false => Ok(()),
            true => Err(Error::RanksDiffer { what }),
        }
    }

    /// The shape of this rank's part of a weight. `None`: the weight does not have V rows.
    pub(crate) fn part_shape(&self, whole: &[usize]) -> Option<Vec<usize>> {
        let rows = self.stride().count(self.vocab_size);
        (whole.first() == Some(&self.vocab_size)).then(|| [&[rows], &whole[1..]].concat())
    }

    /// This rank's rows of a whole weight (V, …).
    pub(crate) fn part(&self, whole: &Tensor) -> Result<Tensor> {
        let stride = self.stride();
        let ids: Vec<u32> = (0..stride.count(self.vocab_size)).map(|row| stride.row(row) as u32).collect();
        match ids.is_empty() {
            true => Ok(whole.narrow(0, 0, 0)?.contiguous()?),
            false => Ok(whole.index_select(&Tensor::new(ids, whole.device())?, 0)?),
        }
    }

    /// The whole weight (V, …) on the CPU of rank 0, from the rows of all ranks. `None` on the other ranks.
    pub(crate) fn gather(&self, own: &Tensor) -> Result<Option<Tensor>> {
        let mut counts = vec![0; self.ranks.world_size()];
        counts[0] = own.dim(0)?;
        let own = own.detach().to_device(&Device::Cpu)?.contiguous()?;
        let (rows, _) = self.ranks.all_to_all(&own, &counts)?;
        if self.ranks.rank() != 0 {
            return Ok(None);
        }
        // Rows arrive rank by rank.
        let mut places = vec![0u32; self.vocab_size];
        let mut next = 0..;
        for stride in (0..self.ranks.world_size()).map(|rank| self.stride_of(rank)) {
            (0..stride.count(self.vocab_size)).zip(&mut next).for_each(|(row, at)| places[stride.row(row)] = at);
        }
        Ok(Some(rows.index_select(&Tensor::new(places, &Device::Cpu)?, 0)?))
    }

    /// Whether this rank writes what [`gather`](Self::gather) collects.
    pub(crate) fn writes(&self) -> bool {
        self.ranks.rank() == 0
    }

    /// Which of these any rank says.
    pub(crate) fn any<const N: usize>(&self, own: [bool; N]) -> Result<[bool; N]> {
        let any = self.max(&Tensor::new(&own.map(u8::from), &Device::Cpu)?)?.to_vec1::<u8>()?;
        Ok(std::array::from_fn(|at| any[at] == 1))
    }
}
