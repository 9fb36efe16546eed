//! First values of a table from a seed: the same bits on every machine.

use std::str::FromStr;

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Tensor};
use candle_nn::VarBuilder;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;

use super::elementary::{self, sines_and_cosines};
use crate::collective::Stride;
use crate::{Error, Result};

/// Rows are drawn in blocks of about this many values, so that little memory is needed beside the table.
const BLOCK_VALUES: usize = 1 << 21;

/// The distribution of a new table's values.
///
/// The value at (row, column) is a function of the seed, the row and the column alone, by a counter-based
/// generator (ChaCha8; the row is its stream, the column its position). It does not depend on the device,
/// the platform, the number of threads or the size of the table. A table with more rows starts with the same
/// rows, one with more columns with the same columns (except `FanIn`, whose scale depends on them). bf16 and f16 tables hold the f32
/// values, rounded.
///
/// # Example
/// ```
/// use tallow::Init;
/// let rows = Init::GPT2.rows(1337, 0, 2, 4); // rows 0 and 1 of a table with 4 columns
/// assert_eq!(Init::GPT2.rows(1337, 1, 1, 4)[..], rows[4..]);
/// assert_eq!("uniform:-1:1".parse::<Init>()?, Init::Uniform { low: -1.0, high: 1.0 });
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// N(0, `std`²), by the Box-Muller transform in f64.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform between `low` and `high`.
    Uniform {
        /// Lower bound.
        low: f64,
        /// Upper bound.
        high: f64,
    },
    /// N(0, 1/d_model): the look-up has unit length on average (Flax's default).
    FanIn,
    /// All values equal.
    Constant(f64),
}

impl Init {
    /// N(0, 0.02²): GPT-2's, and the default here. Its small values suit a tied head.
    pub const GPT2: Init = Init::Normal { std: 0.02 };
    /// N(0, 1): the default of `candle_nn::embedding` and `torch.nn.Embedding`.
    pub const CANDLE: Init = Init::Normal { std: 1.0 };
    /// Uniform ±0.05: Keras's `Embedding`.
    pub const KERAS: Init = Init::Uniform { low: -0.05, high: 0.05 };

    /// Draws rows `first_row..first_row + rows` of a table with `d_model` columns, in row-major order.
    ///
    /// # Cost
    /// About 15 ns per normal value, divided by the number of rayon's threads.
    ///
    /// # Example
    /// ```
    /// use tallow::Init;
    /// let row = Init::GPT2.rows(1337, 31809, 1, 64);
    /// assert_eq!(row, Init::GPT2.rows(1337, 31800, 10, 64)[9 * 64..]);
    /// ```
    pub fn rows(&self, seed: u64, first_row: usize, rows: usize, d_model: usize) -> Vec<f32> {
        let mut values = vec![0f32; rows * d_model];
        self.draw(seed, Stride { first: first_row, step: 1 }, d_model, &mut values);
        values
    }

    /// Draws the rows of `stride`, on all threads.
    fn draw(&self, seed: u64, stride: Stride, d_model: usize, values: &mut [f32]) {
        values
            .par_chunks_mut(d_model.max(1))
            .with_min_len(64)
            .enumerate()
            .for_each_init(|| generator(seed), |rng, (row, out)| self.row(rng, stride.row(row) as u64, out));
    }

    /// Gets the weight `name` of shape (rows, columns) from `vb`, or creates it there with the values of [`rows`](Self::rows): a
    /// seeded `VarBuilder::get_with_hints`. [`TokenEmbedding`](crate::TokenEmbedding) gets its table this way. Give each weight of a
    /// model its own seed: weights with equal seeds start with equal values.
    ///
    /// # Errors
    /// - [`Error::Config`]: the weight is new and does not fit into memory, the init is not finite, or the dtype cannot be drawn.
    /// - [`Error::Candle`]: the VarBuilder has a weight of another shape, or lacks it and cannot make it.
    ///
    /// # Cost
    /// As [`rows`](Self::rows), and a few MiB of memory beside the weight.
    ///
    /// # Example
    /// ```
    /// use candle_core::{DType, Device};
    /// use candle_nn::{Linear, VarBuilder, VarMap};
    /// let varmap = VarMap::new();
    /// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    /// let up = Linear::new(tallow::Init::GPT2.get((256, 64), "weight", 1, &vb.pp("up"))?, None);
    /// let down = Linear::new(tallow::Init::GPT2.get((64, 256), "weight", 2, &vb.pp("down"))?, None);
    /// # assert!(up.weight().get(0)?.to_vec1::<f32>()? != down.weight().get(0)?.narrow(0, 0, 64)?.to_vec1::<f32>()?);
    /// # Ok::<(), tallow::Error>(())
    /// ```
    pub fn get(&self, shape: (usize, usize), name: &str, seed: u64, vb: &VarBuilder) -> Result<Tensor> {
        self.get_rows(shape, name, seed, Stride::ALL, vb)
    }

    /// The same for some rows of a larger weight: `shape` is that of these rows.
    pub(crate) fn get_rows(
        &self,
        shape: (usize, usize),
        name: &str,
        seed: u64,
        stride: Stride,
        vb: &VarBuilder,
    ) -> Result<Tensor> {
        let missing = !vb.contains_tensor(name);
        if missing {
            self.check(vb.dtype())?;
            if vb.device().is_cpu() {
                fits_in_memory(shape, vb.dtype())?;
            }
        }
        // Zeros first (untouched pages), then rows are drawn in place: there are never two tables in memory.
        let weight = vb.get_with_hints(shape, name, candle_nn::Init::Const(0.0))?;
        if missing && weight.is_variable() {
            fill(&weight, *self, seed, stride)?;
        }
        Ok(weight)
    }

    fn row(&self, rng: &mut ChaCha8Rng, row: u64, out: &mut [f32]) {
        rng.set_stream(row);
        rng.set_word_pos(0);
        match *self {
            Init::Constant(value) => out.fill(value as f32),
            Init::Uniform { low, high } => {
                out.iter_mut().for_each(|v| *v = (low + (high - low) * unit(rng.next_u32())) as f32);
            }
            Init::FanIn => normal(rng, 1.0 / (out.len() as f64).sqrt(), out),
            Init::Normal { std } => normal(rng, std, out),
        }
    }

    /// An error if a table of this dtype cannot hold the values.
    fn check(&self, dtype: DType) -> Result<()> {
        if !matches!(dtype, DType::F32 | DType::F64 | DType::BF16 | DType::F16) {
            let reason = format!("a table of {} cannot be trained: use f32, f64, bf16 or f16", dtype.as_str());
            return Err(Error::Config(reason));
        }
        // The largest magnitude that can be drawn; NaN for invalid parameters.
        let largest = match *self {
            Init::Normal { std } if std >= 0.0 => 6.8 * std,
            Init::Normal { .. } => f64::NAN,
            Init::Uniform { low, high } if low <= high => low.abs().max(high.abs()),
            Init::Uniform { .. } => f64::NAN,
            Init::FanIn => 6.8,
            Init::Constant(value) => value.abs(),
        };
        let limit = match dtype {
            DType::F16 => f64::from(half::f16::MAX),
            DType::BF16 => f64::from(half::bf16::MAX),
            _ => f64::from(f32::MAX),
        };
        if largest <= limit {
            return Ok(());
        }
        Err(Error::Config(format!("init {self} is not a distribution of finite {} numbers", dtype.as_str())))
    }
}

/// Fills `table` (V, C) with the drawn rows of `stride`, in place.
fn fill(table: &Tensor, init: Init, seed: u64, stride: Stride) -> candle_core::Result<()> {
    let (rows, d_model) = table.dims2()?;
    if table.device().is_cpu() && table.dtype() == DType::F32 {
        return table.inplace_op1(&Draw { init, seed, stride, d_model });
    }
    let block = (BLOCK_VALUES / d_model.max(1)).max(1);
    for first in (0..rows).step_by(block) {
        let count = block.min(rows - first);
        let mut values = vec![0f32; count * d_model];
        init.draw(seed, Stride { first: stride.row(first), ..stride }, d_model, &mut values);
        let values = Tensor::from_vec(values, (count, d_model), &Device::Cpu)?;
        let values = values.to_dtype(table.dtype())?.to_device(table.device())?;
        table.slice_set(&values, 0, first)?;
    }
    Ok(())
}

/// Draws an f32 table on the CPU in place.
struct Draw {
    init: Init,
    seed: u64,
    stride: Stride,
    d_model: usize,
}

impl InplaceOp1 for Draw {
    fn name(&self) -> &'static str {
        "init"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        match (storage, layout.contiguous_offsets()) {
            (CpuStorage::F32(values), Some((start, end))) => {
                self.init.draw(self.seed, self.stride, self.d_model, &mut values[start..end]);
                Ok(())
            }
            _ => candle_core::bail!("a new table must be contiguous, and have the dtype that it was made with"),
        }
    }
}

/// An error if the system cannot allocate the table. candle would abort the process instead.
fn fits_in_memory((rows, d_model): (usize, usize), dtype: DType) -> Result<()> {
    let bytes = rows.checked_mul(d_model).and_then(|values| values.checked_mul(dtype.size_in_bytes()));
    match bytes.map(|bytes| Vec::<u8>::new().try_reserve_exact(bytes)) {
        Some(Ok(())) => Ok(()),
        _ => Err(Error::Config(format!(
            "a {} table of {rows} x {d_model} does not fit into this machine's memory",
            dtype.as_str()
        ))),
    }
}

fn generator(seed: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..23].copy_from_slice(b"tallow init v1 ");
    ChaCha8Rng::from_seed(key)
}

/// A number in [0, 1), a multiple of 2⁻³².
fn unit(word: u32) -> f64 {
    f64::from(word) / 4_294_967_296.0
}

/// Two random words give two adjacent columns. The functions are plain Rust: the same bits on every machine.
fn normal(rng: &mut ChaCha8Rng, std: f64, out: &mut [f32]) {
    const PAIRS: usize = 64;
    for columns in out.chunks_mut(2 * PAIRS) {
        let (mut radii, mut angles) = ([0.5; PAIRS], [0.0; PAIRS]);
        let pairs = columns.len().div_ceil(2);
        for (radius, angle) in radii.iter_mut().zip(&mut angles).take(pairs) {
            *radius = unit(rng.next_u32()) + 0.5 / 4_294_967_296.0;
            *angle = std::f64::consts::TAU * unit(rng.next_u32());
        }
        elementary::radii(&mut radii[..pairs]);
        let (sines, mut cosines) = (&mut angles, [0.0; PAIRS]);
        sines_and_cosines(&mut sines[..pairs], &mut cosines[..pairs]);
        for (pair, ((radius, sin), cos)) in columns.chunks_mut(2).zip(radii.iter().zip(sines).zip(cosines)) {
            pair[0] = (std * radius * cos) as f32;
            if let Some(second) = pair.get_mut(1) {
                *second = (std * radius * *sin) as f32;
            }
        }
    }
}

impl std::fmt::Display for Init {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Init::Normal { std } => write!(f, "N(0, {std})"),
            Init::Uniform { low, high } => write!(f, "uniform({low}, {high})"),
            Init::FanIn => write!(f, "N(0, 1/sqrt(d_model))"),
            Init::Constant(value) => write!(f, "constant {value}"),
        }
    }
}

impl FromStr for Init {
    type Err = Error;

    /// `gpt2`, `candle` (or `torch`), `keras`, `fan-in`, `normal:STD`, `uniform:LOW:HIGH`, `constant:VALUE`.
    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let numbers: Option<Vec<f64>> = parts.map(|part| part.parse().ok()).collect();
        let init = match (name, numbers.as_deref()) {
            ("gpt2", Some([])) => Init::GPT2,
            ("candle" | "torch", Some([])) => Init::CANDLE,
            ("keras", Some([])) => Init::KERAS,
            ("fan-in", Some([])) => Init::FanIn,
            ("normal", Some(&[std])) => Init::Normal { std },
            ("uniform", Some(&[low, high])) => Init::Uniform { low, high },
            ("constant", Some(&[value])) => Init::Constant(value),
            _ => {
                return Err(Error::Config(format!(
                    "init {text:?} is none of gpt2, candle, torch, keras, fan-in, normal:STD, uniform:LOW:HIGH, constant:VALUE"
                )));
            }
        };
        init.check(DType::F32)?;
        Ok(init)
    }
}
