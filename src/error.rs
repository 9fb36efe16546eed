//! One error type for the package: every variant holds the facts, every message says what to do next.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::DType;

/// `Result` with this package's [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong in tallow.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An id that has no row in the table.
    #[error(
        "id {id}{} at position {position:?} of the ids is outside the table of {rows} rows: {}",
        .token.as_deref().map(|t| format!(" ({t})")).unwrap_or_default(),
        out_of_range_advice(*.id, *.rows)
    )]
    IdOutOfRange {
        /// The id as it was given.
        id: i64,
        /// Its index in the ids tensor, one number a dimension (`[row, column]` for a batch).
        position: Vec<usize>,
        /// Rows of the table.
        rows: usize,
        /// What the token is, where the layer was given names.
        token: Option<String>,
    },

    /// A target that is not a row of the head's weight.
    #[error(
        "target {target} at position {position:?} of the targets is outside the {rows} rows of the head: targets run from 0 to {}; \
         mark padding with u32::MAX",
        .rows.saturating_sub(1)
    )]
    TargetOutOfRange {
        /// The target as it was given.
        target: i64,
        /// Its index in the targets tensor, one number a dimension.
        position: Vec<usize>,
        /// Rows of the weight.
        rows: usize,
    },

    /// Ids of a dtype that cannot name a row.
    #[error("ids have dtype {dtype:?}: use u8, u32 or i64 (`ids.to_dtype(DType::U32)?`)")]
    IdDType {
        /// The dtype found.
        dtype: DType,
    },

    /// A checkpoint or a file of weights that cannot be taken.
    #[error("{}: {reason}", .path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it; where things do not fit, all of them, one a line.
        reason: String,
    },

    /// A loader state that belongs to other data or another order.
    #[error("this loader state does not fit: {reason}")]
    LoaderState {
        /// What differs.
        reason: String,
    },

    /// A row that the table does not have.
    #[error("{what}: row {row} is not in the table of {rows} rows")]
    RowOutOfRange {
        /// What was asked for.
        what: &'static str,
        /// The row.
        row: u32,
        /// Rows of the table.
        rows: usize,
    },

    /// A second optimizer for a row-sparse table. Its deferred updates belong to one.
    #[error("this row-sparse table has an optimizer already: drop that one first")]
    SecondOptimizer,

    /// A row-sparse table, or a head with frozen rows, went backward, and no optimizer of [`optim`](crate::optim) has its variable.
    #[error(
        "no optimizer takes this row-sparse gradient, or keeps these rows frozen: make a tallow::optim optimizer from the table's \
         variable before going backward, or use Gradient::Dense and no frozen rows with other optimizers. Where the table was \
         resized or got tokens: `optimizer.follow(&varmap)` before that"
    )]
    NoOptimizer,

    /// A look-up of a row-sparse table that went backward twice before a step: its rows would count twice in one `GradStore` alone.
    #[error(
        "this look-up went backward a second time without a step between: add the losses and go backward once, or forget the first \
         gradients (`optimizer.zero_grad()`)"
    )]
    BackwardTwice,

    /// A `GradStore` that was stepped or forgotten before: everything else would train on it again, and the row-sparse table would not.
    #[error(
        "these gradients were stepped or forgotten already, and the table has nothing left of them: make them anew, and accumulate \
         into a new `GradStore` after each step"
    )]
    SteppedBefore,

    /// Row gradients of an earlier backward that the `GradStore` of this step lacks: the table would train on them, and nothing else.
    #[error(
        "the row gradients of {lookups} look-ups wait that these gradients do not hold: an earlier backward was not followed by a step. \
         Add its gradients to accumulate (`total.extend(grads)?`, then one step), or forget them (`optimizer.zero_grad()`)"
    )]
    MissingGradients {
        /// How many look-ups.
        lookups: usize,
    },

    /// A variable of an optimizer in whose place another one is: it would move, and nothing would read it.
    #[error(
        "the table {name:?} of shape {shape:?} was replaced by one of another size (add_tokens, resize, shrink), which this optimizer \
         does not know: call `follow(&varmap)` of it, or make the optimizer after the change"
    )]
    ReplacedVariable {
        /// The variable's name in the optimizer.
        name: String,
        /// Its shape before.
        shape: Vec<usize>,
    },

    /// A value that makes no sense.
    #[error("{0}")]
    Config(String),

    /// A device that cannot be opened.
    #[error("device {device:?}: {reason}")]
    Device {
        /// The name that was asked for.
        device: String,
        /// Why not.
        reason: String,
    },

    /// Reading or writing failed.
    #[error("{}: {cause}", .path.display())]
    Io {
        /// The file, or what stands for it.
        path: PathBuf,
        /// The system's word.
        cause: io::Error,
    },

    /// A tokenizer, a corpus, a shard or the Hub: [`tallow_text`]'s error. Its `Io` and `Config` become those of this type.
    #[error("{0}")]
    Text(tallow_text::Error),

    /// candle refused.
    #[error("{}", one_line(.0))]
    Candle(candle_core::Error),
}

impl Error {
    pub(crate) fn io(path: impl AsRef<Path>, cause: io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        Error::Io { path, cause }
    }
}

// Causes stand in the message already: no variant has a `source` that would print them again.
impl From<tallow_text::Error> for Error {
    fn from(error: tallow_text::Error) -> Self {
        match error {
            tallow_text::Error::Io { path, cause } => Error::Io { path, cause },
            tallow_text::Error::Config(what) => Error::Config(what),
            other => Error::Text(other),
        }
    }
}

/// An error of tallow that went through candle (`Module::forward`, `Optimizer::step`) is itself again. (Only its message, as
/// [`Error::Config`], while somebody still holds what [`Error::of`] gave.)
impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        let plain = |error: &candle_core::Error| matches!(error, candle_core::Error::Wrapped(_));
        let ours = match &error {
            candle_core::Error::WithBacktrace { inner, .. } if plain(inner) => Error::of(&error),
            error if plain(error) => Error::of(error),
            _ => None, // with words of somebody else, which are kept
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

/// The edge to candle's interfaces (`Module::forward`), which must return candle's error: message and type stay, see [`Error::of`].
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(inner) => inner,
            ours => candle_core::Error::Wrapped(Box::new(Crossing(Arc::new(ours)))),
        }
    }
}

impl Error {
    /// The error of tallow in an error of candle: what `Module::forward` or an optimizer's step returned, also with words around it. In
    /// a function that returns [`Result`], `?` gives it back by itself.
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
        // candle keeps a foreign error as something that can be printed and no more. So it is printed, and hands itself over.
        let outer = ASKED.replace(Some(None));
        _ = error.to_string();
        ASKED.replace(outer).flatten()
    }
}

thread_local! {
    /// While somebody asks for it: the error of tallow that was printed.
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

/// candle appends a captured backtrace to its messages; what comes before it, as one line, is the message.
fn one_line(error: &candle_core::Error) -> String {
    let text = error.to_string();
    let message = text.lines().take_while(|line| !line.trim_start().starts_with("0: "));
    message.collect::<Vec<_>>().join("; ")
}
