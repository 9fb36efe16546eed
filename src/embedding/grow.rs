//! Resizes a trained table, and fills its new rows.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarMap;
use rayon::prelude::*;

use super::{Init, TokenEmbedding};
use crate::rows::RowTable;
use crate::support::variables::{insert, name_of};
use crate::{Error, NO_TOKEN, Result};

/// Tables are read in blocks of about this many values.
const BLOCK_VALUES: usize = 1 << 21;

/// New rows that get their noise in one pass over the table. Memory: 4 bytes for each of them and each row of the table.
const NOISE_ROWS: usize = 64;

/// First values of new rows of a trained table.
///
/// # Example
/// ```
/// use candle_core::{DType, Device};
/// use candle_nn::{VarBuilder, VarMap};
/// use tallow::{Fill, TokenEmbedding, TokenEmbeddingConfig};
/// let varmap = VarMap::new();
/// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
/// let cfg = TokenEmbeddingConfig { vocab_size: 10, d_model: 4, ..Default::default() };
/// let mut wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
/// wte.resize(&varmap, 12, Fill::CopyOf(3))?;
/// let rows = wte.flushed_weight()?.to_vec2::<f32>()?;
/// assert_eq!((&rows[10], &rows[11]), (&rows[3], &rows[3]));
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// The mean of all rows (Hewitt, 2021). transformers uses it if the covariance below is not positive definite.
    Mean,
    /// The mean plus noise with 10⁻⁹ times the covariance of the rows, so that new tokens differ: transformers'
    /// `resize_token_embeddings(mean_resizing=True)`. The noise is Σ zᵢ (rowᵢ − mean) √(10⁻⁹/V) with seeded normal zᵢ, different for
    /// each id. It has that covariance, and needs no square root of a matrix. Cost: V · C multiplications a new row, and a pass over
    /// the table for every 64 new rows.
    MultivariateNormal {
        /// Seed of the noise.
        seed: u64,
    },
    /// Drawn like the rows of a new table.
    Init {
        /// Distribution.
        init: Init,
        /// Seed.
        seed: u64,
    },
    /// Zeros. A tied head gives the token the logit 0 until it is trained.
    Zero,
    /// A copy of this row.
    CopyOf(u32),
}

impl Fill {
    /// Values of the new rows `ids`, (ids, C) f32 on the CPU. `blocks` returns the table in order, as blocks (rows, C) of any dtype
    /// and device. Each new row depends on its id and the table, not on other new rows.
    pub(crate) fn rows<B>(&self, ids: &[u32], columns: usize, blocks: impl Fn() -> B) -> Result<Tensor>
    where
        B: Iterator<Item = Result<(usize, Tensor)>>,
    {
        let mut out = vec![0f32; ids.len() * columns];
        match *self {
            _ if ids.is_empty() => (),
            Fill::Zero => (),
            Fill::Init { init, seed } => {
                let rows = ids.iter().flat_map(|id| init.rows(seed, *id as usize, 1, columns));
                out.iter_mut().zip(rows).for_each(|(out, value)| *out = value);
            }
            Fill::Mean => {
                let (_, mean) = mean(columns, blocks())?;
                out.chunks_exact_mut(columns).for_each(|row| round(&mean, row));
            }
            Fill::CopyOf(id) => {
                let row = row(id as usize, columns, blocks())?;
                out.chunks_exact_mut(columns).for_each(|new| new.copy_from_slice(&row));
            }
            Fill::MultivariateNormal { seed } => {
                let (rows, mean) = mean(columns, blocks())?;
                let scale = (1e-9 / rows.max(1) as f64).sqrt();
                for (ids, out) in ids.chunks(NOISE_ROWS).zip(out.chunks_mut(NOISE_ROWS * columns)) {
                    // One normal number for each row of the table, drawn for this id: ids differ, within a call and across calls.
                    let draw = |id: &u32| (Init::CANDLE.rows(seed, *id as usize, 1, rows), mean.clone());
                    let mut new: Vec<(Vec<f32>, Vec<f64>)> = ids.par_iter().map(draw).collect();
                    for block in blocks() {
                        let (from, values) = on_host(block?)?;
                        new.par_iter_mut().for_each(|(noise, sum)| {
                            for (row, noise) in values.chunks_exact(columns).zip(&noise[from..]) {
                                let z = f64::from(*noise) * scale;
                                sum.iter_mut()
                                    .zip(row.iter().zip(&mean))
                                    .for_each(|(sum, (value, mean))| *sum += z * (f64::from(*value) - mean));
                            }
                        });
                    }
                    out.chunks_exact_mut(columns).zip(&new).for_each(|(row, (_, sum))| round(sum, row));
                }
            }
        }
        Ok(Tensor::from_vec(out, (ids.len(), columns), &Device::Cpu)?)
    }
}

/// A resized table that has not yet replaced the old one.
pub(crate) struct Growth {
    /// The variable's name.
    name: String,
    /// The larger table. `None`: the number of rows stays the same.
    table: Option<Var>,
    /// Existing rows, and their new values.
    anew: Vec<(u32, Tensor)>,
}

fn on_host((from, rows): (usize, Tensor)) -> Result<(usize, Vec<f32>)> {
    Ok((from, rows.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?))
}

/// The number of rows of a table, and their mean.
fn mean(columns: usize, blocks: impl Iterator<Item = Result<(usize, Tensor)>>) -> Result<(usize, Vec<f64>)> {
    let (mut sum, mut rows) = (vec![0f64; columns], 0);
    for block in blocks {
        for row in on_host(block?)?.1.chunks_exact(columns) {
            sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
            rows += 1;
        }
    }
    sum.iter_mut().for_each(|sum| *sum /= rows.max(1) as f64);
    Ok((rows, sum))
}

/// One row of a table.
fn row(id: usize, columns: usize, blocks: impl Iterator<Item = Result<(usize, Tensor)>>) -> Result<Vec<f32>> {
    let mut count = 0;
    for block in blocks {
        let (from, rows) = block?;
        count = from + rows.dims()[0];
        if let Some(at) = id.checked_sub(from).filter(|at| *at < rows.dims()[0]) {
            return Ok(on_host((id, rows.narrow(0, at, 1)?))?.1[..columns].to_vec());
        }
    }
    Err(Error::RowOutOfRange { what: "new rows as copies", row: id as u32, rows: count })
}

fn round(values: &[f64], out: &mut [f32]) {
    out.iter_mut().zip(values).for_each(|(out, value)| *out = *value as f32);
}

impl TokenEmbedding {
    /// Resizes the table to `rows` rows. A new variable with the same first rows replaces the old one in `varmap`. For tensor cores
    /// take `rows.next_multiple_of(128)`.
    ///
    /// Afterwards update everything that holds the old variable. [`AdamW::follow`](crate::optim::AdamW::follow) carries the moments
    /// over. Make tied heads ([`Head::tied`](crate::Head::tied)) and other layers over the table anew. Until then a step of a tallow
    /// optimizer is an error, and so is a call of such a head or layer. An optimizer of candle's keeps updating the old table, which
    /// nothing reads. Frozen rows stay frozen, new rows are not frozen. Pending row gradients are discarded.
    ///
    /// # Errors
    /// - [`Error::Config`]: fewer rows than now ([`shrink`](Self::shrink) drops rows), more rows than u32 ids can name, or a table
    ///   that is not a variable of `varmap`.
    /// - [`Error::RowOutOfRange`]: [`Fill::CopyOf`] a row that does not exist.
    ///
    /// Nothing is changed after an error.
    ///
    /// # Cost
    /// One copy of the table, and the cost of [`Fill`]. Both tables are in memory for a moment.
    ///
    /// # Example
    /// ```
    /// use candle_core::{DType, Device};
    /// use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
    /// use tallow::{Fill, TokenEmbedding, TokenEmbeddingConfig, optim::AdamW};
    /// let varmap = VarMap::new();
    /// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    /// let cfg = TokenEmbeddingConfig { vocab_size: 100, d_model: 8, ..Default::default() };
    /// let mut wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
    /// let mut opt = AdamW::from_varmap(&varmap, ParamsAdamW::default())?;
    /// wte.resize(&varmap, 102, Fill::Mean)?;
    /// opt.follow(&varmap)?;
    /// assert_eq!((wte.vocab_size(), varmap.all_vars()[0].dims()), (102, &[102, 8][..]));
    /// # Ok::<(), tallow::Error>(())
    /// ```
    ///
    /// Source: `transformers.PreTrainedModel.resize_token_embeddings`.
    pub fn resize(&mut self, varmap: &VarMap, rows: usize, fill: Fill) -> Result<()> {
        let growth = self.growth(varmap, rows, &[], fill)?;
        self.apply(varmap, growth)
    }

    /// Prepares a [`resize`](Self::resize) that also fills the existing rows `anew`. Nothing is changed yet.
    pub(crate) fn growth(&self, varmap: &VarMap, rows: usize, anew: &[u32], fill: Fill) -> Result<Growth> {
        let old = self.vocab_size();
        if rows < old {
            let reason =
                format!("the table has {old} rows: `shrink` drops those from {rows} on, and their ids become invalid");
            return Err(Error::Config(reason));
        }
        if rows > NO_TOKEN as usize {
            return Err(Error::Config(format!("a table of {rows} rows has more than u32 ids can name")));
        }
        self.flushed_weight()?;
        let name = self.name_in(varmap)?;
        let ids: Vec<u32> = anew.iter().copied().chain(old as u32..rows as u32).collect();
        if ids.is_empty() {
            return Ok(Growth { name, table: None, anew: Vec::new() });
        }
        let new = fill.rows(&ids, self.d_model(), || self.blocks())?;
        let new = new.to_dtype(self.weight.dtype())?.to_device(self.weight.device())?;
        let beyond = || Tensor::cat(&[&self.weight, &new.narrow(0, anew.len(), rows - old)?], 0);
        let table = (rows > old).then(|| Var::from_tensor(&beyond()?)).transpose()?;
        let row = |(i, row): (usize, &u32)| Ok((*row, new.narrow(0, i, 1)?.contiguous()?));
        Ok(Growth { name, table, anew: anew.iter().enumerate().map(row).collect::<Result<_>>()? })
    }

    pub(crate) fn apply(&mut self, varmap: &VarMap, growth: Growth) -> Result<()> {
        if let Some(table) = growth.table {
            self.replace(varmap, growth.name, table)?;
        }
        growth.anew.iter().try_for_each(|(id, row)| Ok(self.weight.slice_set(row, 0, *id as usize)?))
    }

    /// Drops the rows from `rows` on. Their ids are then out of range. Everything else is as in [`resize`](Self::resize).
    ///
    /// # Errors
    /// [`Error::Config`]: 0 rows, more rows than now, or a table that is not a variable of `varmap`.
    pub fn shrink(&mut self, varmap: &VarMap, rows: usize) -> Result<()> {
        if rows == 0 || rows > self.vocab_size() {
            let reason = format!("a table of {} rows cannot shrink to {rows}", self.vocab_size());
            return Err(Error::Config(reason));
        }
        self.flushed_weight()?;
        let table = Var::from_tensor(&self.weight.narrow(0, 0, rows)?.force_contiguous()?)?;
        self.replace(varmap, self.name_in(varmap)?, table)
    }

    /// The table in blocks of rows, each with the number of its first row. The caller replays deferred updates first.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = Result<(usize, Tensor)>> {
        let rows = self.vocab_size();
        let step = (BLOCK_VALUES / self.d_model().max(1)).max(1);
        (0..rows).step_by(step).map(move |from| Ok((from, self.weight.narrow(0, from, step.min(rows - from))?)))
    }

    fn name_in(&self, varmap: &VarMap) -> Result<String> {
        name_of(varmap, &self.weight).ok_or_else(|| {
            Error::Config("this layer's table is not a variable of the VarMap, so it cannot be resized".to_string())
        })
    }

    /// Replaces the table.
    fn replace(&mut self, varmap: &VarMap, name: String, var: Var) -> Result<()> {
        let table = RowTable::of(&var);
        if self.table.is_row_sparse() {
            table.make_row_sparse(&var)?;
            let mut frozen = self.table.frozen().to_vec();
            frozen.resize(var.dim(0)?, false);
            table.set_frozen(frozen)?;
        }
        insert(varmap, [(name, var.clone())]);
        self.table.replace();
        (self.weight, self.table) = (var.as_tensor().clone(), table);
        Ok(())
    }
}
