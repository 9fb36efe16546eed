//! Exchanges the row gradients of a table.

use candle_core::{DType, Device, Tensor};

use crate::collective::{Collective, ReduceOp};
use crate::rows::{RowGradients, RowTable};
use crate::{NO_TOKEN, Result};

/// How the gradients of row-sparse tables are exchanged.
///
/// # Example
/// ```
/// use tallow::distributed::{DataParallel, Local, RowExchange};
/// let ranks = DataParallel::new(Local).with_rows(RowExchange::Ordered);
/// # _ = ranks;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowExchange {
    /// The ranks agree on the union of their rows (one flag a row), then sum the gradients of those rows. It moves fewer bytes than
    /// the dense gradient as long as the union is smaller than the table. The sum is over sums: its last bits depend on the number
    /// of ranks.
    ///
    /// The union is exchanged by row also if it is most of the table: it never moves more than the dense gradient and the flags, and a
    /// dense gradient would be another optimizer with [`Replay::Lazy`](crate::optim::Replay::Lazy).
    #[default]
    Union,
    /// Each row has an owner, rank (row mod N). Every rank sends the gradients of its rows to their owners, the owners sum them, and
    /// send the sums to all. It moves fewer bytes than the union, in more messages: for slow networks and many ranks. The sum is in
    /// the order of ranks.
    Owners,
    /// Every rank gets the gradient of every position, in the order of the joined batch, and sums them as one process does. If the
    /// gradients that reach the look-up have the same bits, then so has the table, for any number of ranks. (The layers above the
    /// table are summed over ranks, and their last bits depend on the number of ranks.) It moves the gradient of each token of all
    /// ranks to each rank.
    ///
    /// With a batch in parts (gradient accumulation) the order is part by part, if every rank has tokens in every part.
    Ordered,
}

impl RowExchange {
    /// Replaces the pending row gradients of this rank by those of all ranks.
    pub(super) fn exchange(self, ranks: &dyn Collective, table: &RowTable) -> Result<()> {
        match self {
            RowExchange::Union => union(ranks, table)?,
            RowExchange::Owners => owners(ranks, table)?,
            RowExchange::Ordered => ordered(ranks, table)?,
        }
        match table.has_pending() {
            true => Ok(()),
            // No row is left, because all are frozen or padding: the step counts for the rows without a gradient.
            false => table.push_rows(no_rows(table.weight())?),
        }
    }
}

/// The maximum of each flag over all ranks.
pub(super) fn max(ranks: &dyn Collective, flags: Vec<u8>) -> Result<Vec<u8>> {
    Ok(ranks.all_reduce(&Tensor::new(flags, &Device::Cpu)?, ReduceOp::Max)?.to_vec1()?)
}

/// Sums the pending row gradients over the union of all ranks' rows.
fn union(ranks: &dyn Collective, table: &RowTable) -> Result<()> {
    let (rows, columns) = table.weight().dims2()?;
    let device = table.weight().device();
    let own = table.take_grouped()?;
    let mut flags = vec![0u8; rows];
    own.iter().flat_map(|own| &own.groups.rows).for_each(|row| flags[*row as usize] = 1);
    let flags = max(ranks, flags)?;
    let union: Vec<u32> = (0..rows as u32).filter(|row| flags[*row as usize] == 1).collect();
    if union.is_empty() {
        return Ok(());
    }
    let compact = match own {
        None => Tensor::zeros((union.len(), columns), DType::F32, device)?,
        Some(own) => own.sum_over(&union)?,
    };
    let values = ranks.all_reduce(&compact, ReduceOp::Sum)?;
    table.push_rows(RowGradients { rows: union, values })
}

/// Sums each row's gradients on the rank that owns the row, and gives the sums to all ranks.
fn owners(ranks: &dyn Collective, table: &RowTable) -> Result<()> {
    let world_size = ranks.world_size();
    let weight = table.weight();
    let own = table.take()?.map_or_else(|| no_rows(weight), Ok)?;
    // By owner, as `all_to_all` sends them.
    let mut order: Vec<u32> = (0..own.rows.len() as u32).collect();
    order.sort_by_key(|at| own.rows[*at as usize] as usize % world_size);
    let rows: Vec<u32> = order.iter().map(|at| own.rows[*at as usize]).collect();
    let values = select(&own.values, order)?;
    let mut counts = vec![0; world_size];
    rows.iter().for_each(|row| counts[*row as usize % world_size] += 1);
    let (rows, _) = ranks.all_to_all(&Tensor::new(rows, &Device::Cpu)?, &counts)?;
    let (values, _) = ranks.all_to_all(&values, &counts)?;
    // The sums of the rows that are owned here.
    let received = rows.to_vec1::<u32>()?;
    let mut owned = received.clone();
    owned.sort_unstable();
    owned.dedup();
    let places: Vec<u32> = received.iter().map(|row| owned.partition_point(|other| other < row) as u32).collect();
    let sums = match owned.len() {
        0 => no_rows(weight)?.values,
        rows => Tensor::zeros((rows, weight.dim(1)?), DType::F32, weight.device())?.index_add(
            &Tensor::new(places, weight.device())?,
            &values,
            0,
        )?,
    };
    for (rows, values) in gather_rows(ranks, owned, sums)? {
        table.push_rows(RowGradients { rows, values })?;
    }
    Ok(())
}

/// Gives every rank the pending gradients of all positions: look-up by look-up, and in each look-up rank by rank.
fn ordered(ranks: &dyn Collective, table: &RowTable) -> Result<()> {
    let own = table.take_lookups()?;
    let lookups = gather_numbers(ranks, own.len())?;
    let mut own = own.into_iter();
    for _ in 0..lookups.into_iter().max().unwrap_or(0) {
        let (ids, grad) = match own.next().map(without_padding).transpose()? {
            Some((ids, grad)) if !ids.is_empty() => (ids, grad.to_dtype(DType::F32)?),
            _ => (Vec::new(), no_rows(table.weight())?.values),
        };
        for (rows, values) in gather_rows(ranks, ids, grad)? {
            table.push_rows(RowGradients { rows, values })?;
        }
    }
    Ok(())
}

/// Rows and values (n, C) of each rank that has any, in the order of ranks. Ranks may have different numbers.
fn gather_rows(ranks: &dyn Collective, mut rows: Vec<u32>, values: Tensor) -> Result<Vec<(Vec<u32>, Tensor)>> {
    let counts = gather_numbers(ranks, rows.len())?;
    let longest = counts.iter().copied().max().unwrap_or(0);
    if longest == 0 {
        return Ok(Vec::new());
    }
    let short = longest - rows.len();
    let values = match (short, rows.len()) {
        (0, _) => values,
        (_, 0) => Tensor::zeros((longest, values.dim(1)?), DType::F32, values.device())?,
        _ => values.pad_with_zeros(0, 0, short)?,
    };
    rows.resize(longest, 0);
    let all_rows = ranks.all_gather(&Tensor::new(rows, &Device::Cpu)?)?.to_vec1::<u32>()?;
    let all_values = ranks.all_gather(&values)?;
    let of_rank = |(rank, count): (usize, usize)| {
        let first = rank * longest;
        Ok((all_rows[first..][..count].to_vec(), all_values.narrow(0, first, count)?))
    };
    counts.into_iter().enumerate().filter(|(_, count)| *count > 0).map(of_rank).collect()
}

/// The number of each rank.
fn gather_numbers(ranks: &dyn Collective, number: usize) -> Result<Vec<usize>> {
    let all = ranks.all_gather(&Tensor::new(&[number as i64], &Device::Cpu)?)?;
    Ok(all.to_vec1::<i64>()?.into_iter().map(|number| number as usize).collect())
}

/// Gradients of no rows of a table. (A view, because GPUs allocate no tensor of size 0.)
fn no_rows(weight: &Tensor) -> Result<RowGradients> {
    let row = Tensor::zeros((1, weight.dim(1)?), DType::F32, weight.device())?;
    Ok(RowGradients { rows: Vec::new(), values: row.narrow(0, 0, 0)? })
}

/// A look-up without its positions of [`NO_TOKEN`].
fn without_padding((ids, grad): (Vec<u32>, Tensor)) -> Result<(Vec<u32>, Tensor)> {
    if !ids.contains(&NO_TOKEN) {
        return Ok((ids, grad));
    }
    let tokens: Vec<u32> = (0..).zip(&ids).filter(|(_, id)| **id != NO_TOKEN).map(|(at, _)| at).collect();
    let ids = ids.into_iter().filter(|id| *id != NO_TOKEN).collect();
    Ok((ids, select(&grad, tokens)?))
}

/// The rows of `values` in another order.
fn select(values: &Tensor, order: Vec<u32>) -> Result<Tensor> {
    match order.is_empty() {
        true => Ok(values.clone()),
        false => Ok(values.index_select(&Tensor::new(order, values.device())?, 0)?),
    }
}
