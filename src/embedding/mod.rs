//! Ids → rows of a trainable table: the layer, its init, its guard.
//!
//! This module knows nothing about files or text.

mod grow;
mod init;
mod lookup;
mod neighbors;

use std::sync::Arc;

use candle_core::{DType, Device, Module, Tensor, Var};
use candle_nn::VarBuilder;

use crate::rows::{RowGradients, RowTable, Rows};
use crate::{Error, NO_TOKEN, Result, ids};
pub use grow::Fill;
pub use init::Init;
use lookup::Lookup;
pub use neighbors::Neighbor;
pub(crate) use neighbors::{nearest, queries_fit};

/// What backward gives for the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gradient {
    /// A dense gradient (V, C) in candle's `GradStore`: for any optimizer, at the cost of the whole table.
    #[default]
    Dense,
    /// Only the rows that were looked up, for an optimizer of [`optim`](crate::optim).
    ///
    /// **Reading the raw variable between steps gives old values** for rows that the last batches did not touch: their
    /// updates are deferred. Call [`AdamW::flush`](crate::optim::AdamW::flush) before `VarMap::save`, `Var::set`, a
    /// `candle_nn::Embedding` over the same variable, or any operation of candle's on it. Everything of tallow replays what it
    /// reads first: this layer, layers over [`no_grad`](crate::no_grad) or another detached tensor of the variable,
    /// [`head`](crate::head), [`Checkpoint`](crate::Checkpoint).
    ///
    /// Nothing of the table's size is allocated. candle's `GradStore` holds no gradient of the table then, unless the table is
    /// used densely, too ([`attend`](TokenEmbedding::attend)); it holds a mark for each look-up, so that the row gradients of a
    /// backward belong to its `GradStore` as the dense ones do: to accumulate, add stores together (`total.extend(grads)?`);
    /// a step with a store that lacks some of them is an error. Make the layer before the optimizer; backward without such an
    /// optimizer is an error. For f32, bf16 and f16 tables that are variables; others get no gradient at all.
    RowSparse,
}

/// A constant that every look-up is multiplied with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Scale {
    /// Rows as they are (GPT-2, Llama).
    #[default]
    None,
    /// Times sqrt(d_model), rounded to the table's dtype (the first Transformer, Gemma).
    SqrtDModel,
    /// Times this.
    Constant(f64),
}

/// What a [`TokenEmbedding`] is made of. The default holds every id of cl100k, the separator that
/// `prepare` writes included: 100277 x 64, N(0, 0.02), seed 1337. (The lesson's table is its first 100256 rows: `vocab_size: 100256`.)
///
/// ```
/// use tallow::{TokenEmbeddingConfig, Tokenizer};
/// let cfg = TokenEmbeddingConfig { vocab_size: Tokenizer::cl100k().vocab_size(), d_model: 768, ..Default::default() };
/// assert_eq!((cfg.vocab_size, cfg.seed), (100277, 1337));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEmbeddingConfig {
    /// Rows of the table, V. `Tokenizer::vocab_size()` holds every id.
    pub vocab_size: usize,
    /// Columns of the table, C.
    pub d_model: usize,
    /// How new rows are drawn.
    pub init: Init,
    /// What they are drawn from.
    pub seed: u64,
    /// An id that counts as [`NO_TOKEN`]: it gives zeros and gets no gradient, whatever its row holds. (PyTorch's
    /// `padding_idx` gives what the row holds, which is zeros too unless weights were loaded over it.)
    pub padding_id: Option<u32>,
    /// What look-ups are multiplied with.
    pub scale: Scale,
    /// What backward gives.
    pub gradient: Gradient,
}

impl Default for TokenEmbeddingConfig {
    fn default() -> Self {
        TokenEmbeddingConfig {
            vocab_size: 100_277,
            d_model: 64,
            init: Init::GPT2,
            seed: 1337,
            padding_id: None,
            scale: Scale::None,
            gradient: Gradient::Dense,
        }
    }
}

/// A table of V rows and C columns, out of which ids pick rows: `candle_nn::Embedding` with a guard, a seed
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
/// [`forward`](Module::forward) gives candle's error with the message of [`lookup`](Self::lookup)'s.
///
/// # Cost
/// Forward moves 2·N·C elements for N ids, and allocates N·C; on the CPU it runs on rayon's threads from
/// 2 MiB of output. The guard is part of the copy there and costs nothing (i64 ids are read once more). Backward
/// gives the dense gradient: V·C elements, several passes, whatever N is; [`Gradient::RowSparse`] moves N·C.
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
    /// Shared with the optimizer, for a row-sparse gradient.
    rows: Option<Arc<RowTable>>,
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

impl TokenEmbedding {
    /// Takes the table named `weight` from `vb`, or makes it there.
    ///
    /// A weight that the VarBuilder already has (a VarMap that was loaded, another layer of the same name, a
    /// safetensors file) is used as it is, in the dtype it has there. Only a variable that this call creates is
    /// drawn from `init` and `seed` (the row of `padding_id` is zeros, as in PyTorch); `VarMap::all_vars` then
    /// lists it, and saving and loading are candle's.
    ///
    /// # Errors
    /// - [`Error::Config`]: `vocab_size` or `d_model` is 0, the table has more rows than ids can name or does not
    ///   fit into memory, the init is not finite, or the dtype cannot be drawn.
    /// - [`Error::Candle`]: the VarBuilder has a weight of another shape, or lacks it and cannot make it.
    ///
    /// # Cost
    /// About 15 ns a value that is drawn, divided by the threads; a few MiB beside the table.
    pub fn new(cfg: &TokenEmbeddingConfig, vb: VarBuilder) -> Result<Self> {
        let shape = (cfg.vocab_size, cfg.d_model);
        if shape.0 == 0 || shape.1 == 0 {
            return Err(Error::Config(format!(
                "a table of {} x {} holds nothing: both must be at least 1",
                shape.0, shape.1
            )));
        }
        if shape.0 > NO_TOKEN as usize {
            return Err(Error::Config(format!("a table of {} rows has more than u32 ids can name", shape.0)));
        }
        let missing = !vb.contains_tensor("weight");
        let weight = cfg.init.get(shape, "weight", cfg.seed, &vb)?;
        if missing
            && weight.is_variable()
            && let Some(padding_id) = cfg.padding_id.filter(|id| (*id as usize) < cfg.vocab_size)
        {
            weight.slice_set(&weight.narrow(0, 0, 1)?.zeros_like()?, 0, padding_id as usize)?;
        }
        let mut layer = Self::from_weight(weight)?;
        layer.padding_id = cfg.padding_id;
        layer.scale = match cfg.scale {
            Scale::None => None,
            Scale::SqrtDModel => Some((cfg.d_model as f64).sqrt()),
            Scale::Constant(factor) => Some(factor),
        };
        // Rounded to the table's dtype once, so that forward and backward multiply with the same number.
        layer.scale = match (layer.scale, layer.dtype()) {
            (Some(scale), DType::BF16) => Some(half::bf16::from_f64(scale).to_f64()),
            (Some(scale), DType::F16) => Some(half::f16::from_f64(scale).to_f64()),
            (scale, _) => scale,
        };
        if cfg.gradient == Gradient::RowSparse && layer.weight.is_variable() {
            if layer.dtype() == DType::F64 {
                return Err(Error::Config("a row-sparse table is f32, bf16 or f16, not f64".to_string()));
            }
            layer.rows = Some(RowTable::of(&layer.weight));
        }
        Ok(layer)
    }

    /// A layer over an existing table (V, C): a variable trains, any other tensor stays as it is.
    ///
    /// # Errors
    /// [`Error::Config`] if the tensor does not have two dimensions, or has more rows than u32 ids can name.
    pub fn from_weight(weight: Tensor) -> Result<Self> {
        match weight.dims() {
            [rows, _] if *rows > NO_TOKEN as usize => {
                Err(Error::Config(format!("a table of {rows} rows has more than u32 ids can name")))
            }
            [_, _] => Ok(Self::plain(weight.contiguous()?)),
            dims => Err(Error::Config(format!("a table has two dimensions (V, C), this tensor has shape {dims:?}"))),
        }
    }

    fn plain(weight: Tensor) -> Self {
        TokenEmbedding { weight, padding_id: None, scale: None, names: None, rows: None }
    }

    /// Lets error messages name tokens: `wte.with_token_names(tokenizer.names())`.
    pub fn with_token_names(mut self, names: impl Fn(u32) -> Option<String> + Send + Sync + 'static) -> Self {
        self.names = Some(Arc::new(names));
        self
    }

    /// Rows of `ids` (…) as (…, C): [`forward`](Module::forward) with tallow's typed errors.
    ///
    /// # Errors
    /// - [`Error::IdOutOfRange`]: an id without a row; the same on every device, before the device is asked. Keep ids on
    ///   the host, whatever the table's device: those on a GPU are copied back for the check, which waits for it. Where they
    ///   are known to be good, [`lookup_unchecked`](Self::lookup_unchecked) does not.
    /// - [`Error::IdDType`]: ids of another type than u8, u32 or i64.
    pub fn lookup(&self, ids: &Tensor) -> Result<Tensor> {
        let ids = &ids::on_host(ids)?;
        let check = || {
            let name = |id| self.names.as_ref().and_then(|names| names(id));
            ids::check(ids, self.vocab_size(), self.padding_id, name)
        };
        // On the CPU the look-up notices an id without a row itself; the guard then says which. A GPU must never see a bad
        // one, and putting padding in place casts i64 ids to u32, which could hide one: there the guard goes first.
        if !self.device().is_cpu() || (self.padding_id.is_some() && ids.dtype() == DType::I64) {
            check()?;
        }
        self.lookup_unchecked(ids).or_else(|error| check().and(Err(error)))
    }

    /// [`lookup`](Self::lookup) for ids that the caller has checked already.
    ///
    /// # Errors
    /// A wrong id is still an error on the CPU (without its position). On CUDA it gives a row of zeros, on Metal a wrong row:
    /// that is what the guard is for. Both take the lower 32 bits of i64 ids.
    pub fn lookup_unchecked(&self, ids: &Tensor) -> Result<Tensor> {
        if !matches!(ids.dtype(), DType::U8 | DType::U32 | DType::I64) {
            return Err(Error::IdDType { dtype: ids.dtype() });
        }
        let (device, table) = (self.device(), self.table());
        if ids.elem_count() == 0 && !device.is_cpu() {
            // Backends reject allocations of size zero: an empty view of the table, in the right shape.
            let shape = [ids.dims(), &[self.d_model()]].concat();
            return Ok(self.weight.detach().narrow(0, 0, 0)?.reshape(shape)?);
        }
        let mut ids = ids::normalise(ids, self.padding_id)?;
        let mut host_ids = None;
        if !device.is_cpu() {
            ids = ids.to_dtype(DType::U32)?;
        }
        // On the host, unless they are on the table's device and nobody asks for them yet.
        if device.is_cpu() || table.is_some() || !ids.device().same_device(device) {
            ids = ids::on_host(&ids)?;
            if let Some(table) = table {
                let looked_up: Vec<u32> = ids.flatten_all()?.to_dtype(DType::U32)?.to_vec1()?;
                // The rows of a view are not the table's rows of the same numbers.
                let same = self.weight.layout() == table.weight().layout();
                table.replay(if same { Rows::These(&looked_up) } else { Rows::All })?;
            }
            if !device.is_cpu() {
                host_ids = Some(ids.clone());
                ids = ids::to_device(&ids, device)?;
            }
        }
        if self.rows.is_some() {
            ids = ids.reshape(ids.shape())?; // a tensor of its own: it marks this look-up in the `GradStore`
        }
        Ok(self.weight.apply_op2(&ids, Lookup { scale: self.scale, rows: self.rows.clone(), host_ids })?)
    }

    /// [`lookup`](Self::lookup) for ids that are known to be below `bound`, as a [`Batch`](crate::Batch) knows it of its own
    /// ([`id_bound`](crate::Batch::id_bound)): nothing is checked again where the table has as many rows.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup).
    pub fn lookup_below(&self, ids: &Tensor, bound: usize) -> Result<Tensor> {
        if bound <= self.vocab_size() { self.lookup_unchecked(ids) } else { self.lookup(ids) }
    }

    /// The table (V, C), with every row up to date until the next step. For a table out of a VarMap this is the variable itself.
    ///
    /// # Errors
    /// Those of bringing rows up to date; none for a dense gradient.
    ///
    /// # Cost
    /// As [`flush`](Self::flush): nothing for a dense gradient.
    pub fn weight(&self) -> Result<&Tensor> {
        self.flush()?;
        Ok(&self.weight)
    }

    /// The table as a variable, if it is one, with every row up to date.
    ///
    /// # Errors
    /// As [`weight`](Self::weight).
    pub fn var(&self) -> Result<Option<Var>> {
        self.flush()?;
        Ok(self.weight.is_variable().then(|| Var::from_tensor(&self.weight)).transpose()?)
    }

    /// Brings every row up to date, as [`AdamW::flush`](crate::optim::AdamW::flush) does for all tables. Call it before
    /// something else than this layer reads the variable (`VarMap::save`, say).
    ///
    /// # Errors
    /// Those of candle's operations.
    ///
    /// # Cost
    /// Nothing for a dense gradient or when no step was taken since; else up to one pass over table and moments, and the
    /// updates that were deferred.
    pub fn flush(&self) -> Result<()> {
        self.table().map_or(Ok(()), |table| table.replay(Rows::All))
    }

    /// The tied output head: logits (…, V) = hidden (…, C) · weightᵀ.
    ///
    /// The gradient of the table through it is dense, whatever [`Gradient`] says: every row takes part in every logit. With a
    /// row-sparse table the rows that were looked up are added into that dense gradient, and the optimizer takes one dense
    /// step: tying costs what the vocabulary costs. It is candle's bit for bit where backward meets the head before the
    /// look-ups, as in a GPT; rows are added last, and candle adds in the graph's order. `scale` and `padding_id` do not apply.
    /// For a loss give the table to [`head::cross_entropy`](crate::head::cross_entropy) instead, which builds no logits.
    ///
    /// # Errors
    /// [`Error::Candle`] if `hidden` does not end in C columns, or has another dtype or device than the table.
    pub fn attend(&self, hidden: &Tensor) -> Result<Tensor> {
        let mut dims = hidden.dims().to_vec();
        let columns = dims.pop().unwrap_or(0);
        let logits = hidden.reshape(((), columns))?.matmul(&self.weight()?.t()?)?;
        dims.push(self.vocab_size());
        Ok(logits.reshape(dims)?)
    }

    /// Takes the row gradients that wait for the optimizer, summed by row: to log them, to change them, to exchange them
    /// between machines. What is not given back by [`add_row_gradients`](Self::add_row_gradients) is lost to the step, which is that
    /// of the same `GradStore`.
    /// `None` if no look-up went backward since the last step.
    ///
    /// # Errors
    /// [`Error::Config`] for a dense gradient.
    pub fn take_row_gradients(&self) -> Result<Option<RowGradients>> {
        self.row_sparse()?.take()
    }

    /// Adds row gradients to those that wait for the optimizer.
    ///
    /// # Errors
    /// [`Error::Config`] for a dense gradient, for values of another shape than (rows, C), or a row outside the table.
    pub fn add_row_gradients(&self, gradients: RowGradients) -> Result<()> {
        self.row_sparse()?.push_rows(gradients)
    }

    /// Freezes these rows: no optimizer of [`optim`](crate::optim) changes them, by gradient or by decay. Replaces the
    /// rows frozen before; an empty list frees all.
    ///
    /// # Errors
    /// [`Error::Config`] for a dense gradient (candle's optimizers know no rows), or a row outside the table.
    pub fn freeze_rows(&self, rows: &[u32]) -> Result<()> {
        self.row_sparse()?.freeze(rows)
    }

    /// The row-sparse table behind this layer, also where another layer over the same memory made it one.
    fn table(&self) -> Option<Arc<RowTable>> {
        self.rows.clone().or_else(|| RowTable::find(&self.weight))
    }

    fn row_sparse(&self) -> Result<&RowTable> {
        self.rows.as_deref().ok_or_else(|| {
            Error::Config("this layer's gradient is dense: make it with Gradient::RowSparse".to_string())
        })
    }

    /// Rows of the table, V.
    pub fn vocab_size(&self) -> usize {
        self.weight.dims().first().copied().unwrap_or(0)
    }

    /// Columns of the table, C.
    pub fn d_model(&self) -> usize {
        self.weight.dims().get(1).copied().unwrap_or(0)
    }

    /// The table's dtype.
    pub fn dtype(&self) -> DType {
        self.weight.dtype()
    }

    /// The table's device.
    pub fn device(&self) -> &Device {
        self.weight.device()
    }
}

impl Module for TokenEmbedding {
    fn forward(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        Ok(self.lookup(ids)?)
    }
}

/// The same table with this layer's guard and forward.
impl From<candle_nn::Embedding> for TokenEmbedding {
    fn from(layer: candle_nn::Embedding) -> Self {
        Self::plain(layer.embeddings().clone())
    }
}

/// The same table as a candle layer, which has no padding id, no scale and no row-sparse gradient: those stay behind. Rows are up
/// to date at this moment; a layer of candle's does not see to it later.
impl From<TokenEmbedding> for candle_nn::Embedding {
    fn from(layer: TokenEmbedding) -> Self {
        let d_model = layer.d_model();
        // Should that fail, the next use of the device does, too.
        _ = layer.flush();
        candle_nn::Embedding::new(layer.weight, d_model)
    }
}
