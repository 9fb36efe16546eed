//! Ids → rows of a trainable table: the layer, its init, and the check of the ids.
//!
//! This module does not depend on files or text.

mod config;
mod elementary;
mod grow;
mod init;
mod lookup;
mod rows;

use std::sync::Arc;

use candle_core::{DType, Module, Tensor};
use candle_nn::VarBuilder;

use crate::collective::Stride;
use crate::rows::{RowTable, Rows};
use crate::{Error, NO_TOKEN, Result, ids};
pub use config::{Gradient, Scale, TokenEmbeddingConfig};
pub use grow::Fill;
pub(crate) use grow::Growth;
pub use init::Init;
use lookup::Lookup;

/// A trainable table of V rows and C columns; ids select rows: `candle_nn::Embedding` with a check of the ids, a seed
/// and a faster forward.
///
/// y[…, :] = scale · weight[ids[…], :]
///
/// # Shapes
/// - ids: (…), any shape, contiguous or not, u8, u32 or i64
/// - weight: (V, C), f32, f64, bf16 or f16
/// - output of [`forward`](Module::forward): (…, C), the weight's dtype and device
///
/// # Errors
/// [`forward`](Module::forward) returns candle's error type with the message of [`lookup`](Self::lookup)'s error.
///
/// # Cost
/// Forward moves 2·N·C elements for N ids, and allocates N·C. On the CPU it runs on rayon's threads from
/// 2 MiB of output, and the check of the ids costs nothing (i64 ids are read once more). Backward computes the dense gradient:
/// V·C elements in several passes, whatever N is. [`Gradient::RowSparse`] moves N·C elements.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use tallow::{TokenEmbedding, TokenEmbeddingConfig};
///
/// let varmap = VarMap::new();
/// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
/// let cfg = TokenEmbeddingConfig { vocab_size: 1000, d_model: 8, ..Default::default() };
/// let wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
/// let x = wte.forward(&Tensor::new(&[[7u32, 999], [0, 7]], &Device::Cpu)?)?;
/// assert_eq!(x.dims(), [2, 2, 8]);
/// let bad = wte.forward(&Tensor::new(&[[7u32, 1000]], &Device::Cpu)?).unwrap_err();
/// assert!(bad.to_string().starts_with("id 1000 at position [0, 1] of the ids is outside the table of 1000 rows"));
/// # Ok::<(), tallow::Error>(())
/// ```
///
/// Source: `torch.nn.functional.embedding`, `candle_nn::Embedding`.
#[derive(Clone)]
pub struct TokenEmbedding {
    weight: Tensor,
    padding_id: Option<u32>,
    scale: Option<f64>,
    names: Option<Names>,
    gradient: Gradient,
    /// Shared with all users of the same memory: other layers, heads, the optimizer.
    table: Arc<RowTable>,
}

type Names = Arc<dyn Fn(u32) -> Option<String> + Send + Sync>;

impl std::fmt::Debug for TokenEmbedding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenEmbedding")
            .field("weight", &self.weight.shape())
            .field("dtype", &self.weight.dtype())
            .field("padding_id", &self.padding_id)
            .field("scale", &self.scale)
            .finish_non_exhaustive()
    }
}

impl Module for TokenEmbedding {
    fn forward(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        Ok(self.lookup(ids)?)
    }
}

impl TokenEmbedding {
    /// Gets the table named `weight` from `vb`, or creates it there.
    ///
    /// A weight that the VarBuilder already has (a loaded VarMap, another layer of the same name, a
    /// safetensors file) is used unchanged, in its own dtype. Only a variable that this call creates is
    /// drawn from `init` and `seed` (the row of `padding_id` is zeros, as in PyTorch). `VarMap::all_vars` then
    /// lists it, and candle's saving and loading apply.
    ///
    /// # Errors
    /// - [`Error::Config`]: `vocab_size` or `d_model` is 0, the table has more rows than ids can name or does not
    ///   fit into memory, the init is not finite, or the dtype cannot be drawn.
    /// - [`Error::Candle`]: the VarBuilder has a weight of another shape, or lacks it and cannot make it.
    ///
    /// # Cost
    /// About 15 ns per value that is drawn, divided by the number of threads, and a few MiB of memory beside the table.
    pub fn new(cfg: &TokenEmbeddingConfig, vb: VarBuilder) -> Result<Self> {
        Ok(TokenEmbedding { padding_id: cfg.padding_id, ..Self::of_rows(cfg, Stride::ALL, vb)? })
    }

    /// A layer over some rows of the table, without a padding id. Its ids are places in `stride`.
    pub(crate) fn of_rows(cfg: &TokenEmbeddingConfig, stride: Stride, vb: VarBuilder) -> Result<Self> {
        if cfg.vocab_size == 0 || cfg.d_model == 0 {
            return Err(Error::Config(format!(
                "a table of {} x {} holds nothing: both sizes must be at least 1",
                cfg.vocab_size, cfg.d_model
            )));
        }
        if cfg.vocab_size > NO_TOKEN as usize {
            return Err(Error::Config(format!("a table of {} rows has more than u32 ids can name", cfg.vocab_size)));
        }
        let missing = !vb.contains_tensor("weight");
        let shape = (stride.count(cfg.vocab_size), cfg.d_model);
        let weight = cfg.init.get_rows(shape, "weight", cfg.seed, stride, &vb)?;
        if missing
            && weight.is_variable()
            && let Some(padding_id) = cfg.padding_id.filter(|id| (*id as usize) < cfg.vocab_size)
            && let Some(row) = stride.place(padding_id as usize)
        {
            weight.slice_set(&weight.narrow(0, 0, 1)?.zeros_like()?, 0, row)?;
        }
        let mut layer = Self::from_weight(weight)?;
        layer.scale = match cfg.scale {
            Scale::None => None,
            Scale::SqrtDModel => Some((cfg.d_model as f64).sqrt()),
            Scale::Constant(factor) => Some(factor),
        };
        // Rounded to the table's dtype once, so that forward and backward multiply by the same number.
        layer.scale = match (layer.scale, layer.weight.dtype()) {
            (Some(scale), DType::BF16) => Some(half::bf16::from_f64(scale).to_f64()),
            (Some(scale), DType::F16) => Some(half::f16::from_f64(scale).to_f64()),
            (scale, _) => scale,
        };
        if cfg.gradient == Gradient::RowSparse && layer.weight.is_variable() {
            if layer.weight.dtype() == DType::F64 {
                return Err(Error::Config("a row-sparse table is f32, bf16 or f16, not f64".to_string()));
            }
            layer.table.make_row_sparse(&layer.weight)?;
            layer.gradient = Gradient::RowSparse;
        }
        Ok(layer)
    }

    /// A layer over an existing table (V, C). A variable is trained; any other tensor is constant.
    ///
    /// # Errors
    /// [`Error::Config`]: the tensor does not have two dimensions, has no columns, or has more rows than u32 ids can name.
    pub fn from_weight(weight: Tensor) -> Result<Self> {
        match weight.dims() {
            [rows, _] if *rows > NO_TOKEN as usize => {
                Err(Error::Config(format!("a table of {rows} rows has more than u32 ids can name")))
            }
            [_, 0] => Err(Error::Config("a table must have at least one column".to_string())),
            [_, _] => {
                let weight = weight.contiguous()?;
                let table = RowTable::of(&weight);
                Ok(TokenEmbedding {
                    weight,
                    padding_id: None,
                    scale: None,
                    names: None,
                    gradient: Gradient::Dense,
                    table,
                })
            }
            dims => Err(Error::Config(format!("a table must have shape (V, C), this tensor has shape {dims:?}"))),
        }
    }

    /// Error messages then show the token of an id: `wte.with_token_names(tokenizer.names())`.
    pub fn with_token_names(mut self, names: impl Fn(u32) -> Option<String> + Send + Sync + 'static) -> Self {
        self.names = Some(Arc::new(names));
        self
    }

    /// Looks up the rows of `ids` (…), as (…, C): [`forward`](Module::forward) with tallow's typed errors.
    ///
    /// # Errors
    /// - [`Error::IdOutOfRange`]: an id without a row. The check is the same for every device and runs on the host. Keep ids on
    ///   the host, whatever the table's device: ids on a GPU are copied back for the check, which is a sync. For ids that are known
    ///   to be valid, [`lookup_unchecked`](Self::lookup_unchecked) omits the check.
    /// - [`Error::IdDType`]: ids are not u8, u32 or i64.
    pub fn lookup(&self, ids: &Tensor) -> Result<Tensor> {
        let ids = &ids::on_host(ids)?;
        let check = || ids::check(ids, self.vocab_size(), self.padding_id, |id| self.token_name(id));
        // On the CPU the look-up detects an id out of range itself, and `check` then finds its position. In two cases `check` runs
        // first: a GPU must never get such an id, and replacing padding casts i64 ids to u32, which could hide one.
        if !self.weight.device().is_cpu() || (self.padding_id.is_some() && ids.dtype() == DType::I64) {
            check()?;
        }
        self.lookup_unchecked(ids).or_else(|error| check().and(Err(error)))
    }

    /// [`lookup`](Self::lookup) for ids that the caller has checked already.
    ///
    /// # Errors
    /// On the CPU an id out of range is still an error (without its position). On CUDA it gives a row of zeros, on Metal a wrong row.
    /// Both use the lower 32 bits of i64 ids.
    pub fn lookup_unchecked(&self, ids: &Tensor) -> Result<Tensor> {
        if !matches!(ids.dtype(), DType::U8 | DType::U32 | DType::I64) {
            return Err(Error::IdDType { dtype: ids.dtype() });
        }
        self.table.check_current("layer", "the layer anew")?;
        let (device, is_row_sparse) = (self.weight.device(), self.table.is_row_sparse());
        if ids.elem_count() == 0 && !device.is_cpu() {
            // Backends reject zero-size allocations, so this is an empty view of the table in the right shape.
            let shape = [ids.dims(), &[self.d_model()]].concat();
            return Ok(self.weight.detach().narrow(0, 0, 0)?.reshape(shape)?);
        }
        let mut ids = ids::normalise(ids, self.padding_id)?;
        let mut host_ids = None;
        if !device.is_cpu() {
            ids = ids.to_dtype(DType::U32)?;
        }
        // Host ids, unless they are on the table's device and are not needed on the host.
        if device.is_cpu() || is_row_sparse || !ids.device().same_device(device) {
            ids = ids::on_host(&ids)?;
            if is_row_sparse {
                let looked_up: Vec<u32> = ids.flatten_all()?.to_dtype(DType::U32)?.to_vec1()?;
                // In a view of the table, rows can have other numbers.
                let same = self.weight.layout() == self.table.weight().layout();
                self.table.replay(if same { Rows::These(&looked_up) } else { Rows::All })?;
            }
            if !device.is_cpu() {
                host_ids = Some(ids.clone());
                ids = ids::to_device(&ids, device)?;
            }
        }
        let mut rows = None;
        if self.gradient == Gradient::RowSparse {
            ids = ids.reshape(ids.shape())?; // a new tensor, which is the mark of this look-up in the `GradStore`
            rows = Some(self.table.clone());
        }
        Ok(self.weight.apply_op2(&ids, Lookup { scale: self.scale, rows, host_ids })?)
    }

    /// [`lookup`](Self::lookup) for ids that are known to be below `bound`, such as [`Batch::id_bound`](crate::Batch::id_bound). If the
    /// table has at least `bound` rows, ids are not checked again.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup).
    pub fn lookup_below(&self, ids: &Tensor, bound: usize) -> Result<Tensor> {
        if bound <= self.vocab_size() { self.lookup_unchecked(ids) } else { self.lookup(ids) }
    }

    /// The token of an id, for error messages.
    pub(crate) fn token_name(&self, id: u32) -> Option<String> {
        self.names.as_ref().and_then(|names| names(id))
    }

    /// The parts that a tied head shares with this layer.
    pub(crate) fn weight_and_table(&self) -> (&Tensor, &Arc<RowTable>) {
        (&self.weight, &self.table)
    }

    /// Rows of the table, V.
    pub fn vocab_size(&self) -> usize {
        self.weight.dims().first().copied().unwrap_or(0)
    }

    /// Columns of the table, C.
    pub fn d_model(&self) -> usize {
        self.weight.dims().get(1).copied().unwrap_or(0)
    }
}

/// A layer over the same table.
impl TryFrom<candle_nn::Embedding> for TokenEmbedding {
    type Error = Error;

    fn try_from(layer: candle_nn::Embedding) -> Result<Self> {
        Self::from_weight(layer.embeddings().clone())
    }
}

/// A candle layer over the same table. It has no padding id, no scale and no row-sparse gradient. The table is flushed now; candle's
/// layer does not replay updates that are deferred later.
impl From<TokenEmbedding> for candle_nn::Embedding {
    fn from(layer: TokenEmbedding) -> Self {
        let d_model = layer.d_model();
        // If this fails, the next use of the device fails, too.
        _ = layer.table.replay(Rows::All);
        candle_nn::Embedding::new(layer.weight, d_model)
    }
}
