//! The error type of the package. Every variant holds the facts, every message says what to do next.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::DType;

/// `Result` with this package's [`enum@Error`].
///
/// # Example
/// ```
/// fn rows(path: &str) -> tallow::Result<usize> {
///     Ok(tallow::PretrainedTable::open(path, None)?.vocab_size())
/// }
/// assert!(rows("no/such/model.safetensors").is_err());
/// ```
pub type Result<T> = std::result::Result<T, Error>;

/// Every error of tallow.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tallow::{Error, TokenEmbedding};
/// let wte = TokenEmbedding::from_weight(Tensor::zeros((10, 4), DType::F32, &Device::Cpu)?)?;
/// let error = wte.lookup(&Tensor::new(&[3u32, 12], &Device::Cpu)?).unwrap_err();
/// assert!(matches!(error, Error::IdOutOfRange { id: 12, rows: 10, .. }));
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An id without a row in the table.
    #[error(
        "id {id}{} at position {position:?} of the ids is outside the table of {rows} rows: {}",
        .token.as_deref().map(|t| format!(" ({t})")).unwrap_or_default(),
        out_of_range_advice(*.id, *.rows)
    )]
    IdOutOfRange {
        /// The id.
        id: i64,
        /// Its index in the ids tensor, one number per dimension (`[row, column]` for a batch).
        position: Vec<usize>,
        /// Rows of the table.
        rows: usize,
        /// The token of the id, if the layer has token names.
        token: Option<String>,
    },

    /// A target that is not a row of the head's weight.
    #[error(
        "target {target} at position {position:?} of the targets is outside the {rows} rows of the head: targets run from 0 to {}; \
         mark padding with u32::MAX",
        .rows.saturating_sub(1)
    )]
    TargetOutOfRange {
        /// The target.
        target: i64,
        /// Its index in the targets tensor, one number per dimension.
        position: Vec<usize>,
        /// Rows of the weight.
        rows: usize,
    },

    /// Ids of a dtype other than u8, u32 and i64.
    #[error("ids have dtype {dtype:?}: use u8, u32 or i64 (`ids.to_dtype(DType::U32)?`)")]
    IdDType {
        /// The dtype found.
        dtype: DType,
    },

    /// A checkpoint or a weight file that cannot be used.
    #[error("{}: {reason}", .path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it. If several things do not fit: all of them, one per line.
        reason: String,
    },

    /// A loader state of other data or another order.
    #[error("this loader state does not fit: {reason}")]
    LoaderState {
        /// What differs.
        reason: String,
    },

    /// A row out of range.
    #[error("{what}: row {row} is not in the table of {rows} rows")]
    RowOutOfRange {
        /// What the row was given for.
        what: &'static str,
        /// The row.
        row: u32,
        /// Rows of the table.
        rows: usize,
    },

    /// A second optimizer for a row-sparse table. Deferred updates belong to one optimizer.
    #[error("this row-sparse table has an optimizer already: drop that one first")]
    SecondOptimizer,

    /// Backward of a row-sparse table, or of a head with frozen rows, whose variable is in no optimizer of [`optim`](crate::optim).
    #[error(
        "this backward needs an optimizer of tallow::optim, for a row-sparse gradient or for frozen rows: make one from the table's \
         variable before backward. With other optimizers use Gradient::Dense and no frozen rows. If the table was resized or got \
         tokens, call `optimizer.follow(&varmap)` before backward"
    )]
    NoOptimizer,

    /// Two backwards through the same look-up of a row-sparse table without a step in between. A step with either `GradStore` would
    /// apply the row gradients of both.
    #[error(
        "backward ran through this look-up a second time without a step in between: add the losses and call backward once, or \
         discard the first gradients (`optimizer.zero_grad()`)"
    )]
    BackwardTwice,

    /// A `GradStore` that was stepped or discarded before. Its row gradients are gone, so only the dense weights would be trained.
    #[error(
        "these gradients were stepped or discarded already, and their row gradients are gone: call backward again, and accumulate \
         into a new `GradStore` after each step"
    )]
    SteppedBefore,

    /// Row gradients of an earlier backward are pending, and the `GradStore` of this step does not contain that backward. Only the
    /// table would be trained on them.
    #[error(
        "row gradients of {lookups} look-ups are pending that are not part of these gradients: there was no step after an earlier \
         backward. To accumulate, add its gradients (`total.extend(grads)?`, then one step). To discard them, call \
         `optimizer.zero_grad()`"
    )]
    MissingGradients {
        /// Number of look-ups.
        lookups: usize,
    },

    /// The optimizer holds a variable that was replaced by one of another size.
    #[error(
        "the table {name:?} of shape {shape:?} was replaced by one of another size (add_tokens, resize, shrink), which this optimizer \
         does not hold: call `optimizer.follow(&varmap)`, or make the optimizer after the change"
    )]
    ReplacedVariable {
        /// The variable's name in the optimizer.
        name: String,
        /// The shape before the change.
        shape: Vec<usize>,
    },

    /// An operation between several processes failed.
    #[error(
        "{operation} between the ranks failed: {reason} (all ranks must call the same operations in the same order; look for a rank that \
         failed first)"
    )]
    Collective {
        /// The operation of [`Collective`](crate::distributed::Collective).
        operation: &'static str,
        /// What the engine says.
        reason: String,
    },

    /// The ranks do not hold the same model.
    #[error(
        "{what} are not the same on all ranks: build the same model everywhere, call `DataParallel::broadcast` before the first step, load \
         a checkpoint on every rank, and step with the same settings everywhere"
    )]
    ReplicasDiffer {
        /// What differs.
        what: String,
    },

    /// The ranks of a vocabulary-parallel layer were given different things.
    #[error(
        "{what} are not the same on all ranks: a vocabulary-parallel layer needs the same settings and the whole batch on every rank"
    )]
    RanksDiffer {
        /// What differs.
        what: &'static str,
    },

    /// An invalid argument or setting.
    #[error("{0}")]
    Config(String),

    /// A device that cannot be opened.
    #[error("device {device:?}: {reason}")]
    Device {
        /// The name that was given.
        device: String,
        /// The reason.
        reason: String,
    },

    /// Reading or writing failed.
    #[error("{}: {cause}", .path.display())]
    Io {
        /// The file, or a name for it.
        path: PathBuf,
        /// The error of the system.
        cause: io::Error,
    },

    /// An error of [`tallow_text`] (tokenizer, corpus, shards, Hub). Its `Io` and `Config` become the variants of this type.
    #[error("{0}")]
    Text(tallow_text::Error),

    /// An error of candle.
    #[error("{}", one_line(.0))]
    Candle(candle_core::Error),
}

impl Error {
    pub(crate) fn io(path: impl AsRef<Path>, cause: io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        Error::Io { path, cause }
    }
}

// Messages include the cause, so `source()` is `None`.
impl From<tallow_text::Error> for Error {
    fn from(error: tallow_text::Error) -> Self {
        match error {
            tallow_text::Error::Io { path, cause } => Error::Io { path, cause },
            tallow_text::Error::Config(what) => Error::Config(what),
            other => Error::Text(other),
        }
    }
}

/// Restores an error of tallow that was wrapped in candle's error (`Module::forward`, `Optimizer::step`). While a result of
/// [`Error::of`] is still alive, only the message is restored, as [`Error::Config`].
impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        let plain = |error: &candle_core::Error| matches!(error, candle_core::Error::Wrapped(_));
        let ours = match &error {
            candle_core::Error::WithBacktrace { inner, .. } if plain(inner) => Error::of(&error),
            error if plain(error) => Error::of(error),
            _ => None, // with a context of other code, which is kept
        };
        match ours {
            Some(ours) => {
                drop(error);
                Arc::try_unwrap(ours).unwrap_or_else(|shared| Error::Config(shared.to_string()))
            }
            None => Error::Candle(error),
        }
    }
}

/// For candle's interfaces (`Module::forward`), which must return candle's error. [`Error::of`] gets the original error back.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(inner) => inner,
            ours => candle_core::Error::Wrapped(Box::new(Crossing(Arc::new(ours)))),
        }
    }
}

impl Error {
    /// The error of tallow inside an error of candle, as `Module::forward` or an optimizer's step returns it, also with context added.
    /// In a function that returns [`Result`], `?` converts it without this call.
    ///
    /// # Example
    /// ```
    /// # use candle_core::{DType, Device, Module, Tensor};
    /// # use candle_nn::{VarBuilder, VarMap};
    /// # use tallow::{Error, TokenEmbedding, TokenEmbeddingConfig};
    /// # let varmap = VarMap::new();
    /// # let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    /// # let wte = TokenEmbedding::new(&TokenEmbeddingConfig { vocab_size: 10, ..Default::default() }, vb.pp("wte"))?;
    /// let error: candle_core::Error = wte.forward(&Tensor::new(&[3u32, 12], &Device::Cpu)?).unwrap_err();
    /// assert!(matches!(Error::of(&error).as_deref(), Some(Error::IdOutOfRange { id: 12, rows: 10, .. })));
    /// # Ok::<(), tallow::Error>(())
    /// ```
    pub fn of(error: &candle_core::Error) -> Option<Arc<Error>> {
        // candle stores a wrapped error only as `Display`. So it is printed, and `Crossing::fmt` stores the original in `ASKED`.
        let outer = ASKED.replace(Some(None));
        _ = error.to_string();
        ASKED.replace(outer).flatten()
    }
}

thread_local! {
    /// `Some` while [`Error::of`] runs: the error of tallow that was printed, if any.
    static ASKED: RefCell<Option<Option<Arc<Error>>>> = const { RefCell::new(None) };
}

/// An error of tallow inside one of candle.
struct Crossing(Arc<Error>);

impl std::fmt::Display for Crossing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        ASKED.with_borrow_mut(|asked| {
            if let Some(found) = asked {
                found.get_or_insert_with(|| self.0.clone());
            }
        });
        self.0.fmt(f)
    }
}

fn out_of_range_advice(id: i64, rows: usize) -> String {
    match u32::try_from(id) {
        Err(_) if id < 0 => "ids are never negative; mark padding with u32::MAX".to_string(),
        Err(_) => "ids are 32-bit; mark padding with u32::MAX".to_string(),
        Ok(_) => format!(
            "its ids run from 0 to {}; give the table at least {} rows (`TokenEmbeddingConfig::vocab_size`; \
             `Tokenizer::vocab_size` says how many its ids need)",
            rows.saturating_sub(1),
            id + 1
        ),
    }
}

/// The message without the backtrace that candle appends, as one line.
fn one_line(error: &candle_core::Error) -> String {
    let text = error.to_string();
    let message = text.lines().take_while(|line| !line.trim_start().starts_with("0: "));
    message.collect::<Vec<_>>().join("; ")
}
