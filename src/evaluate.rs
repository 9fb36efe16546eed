//! Log-probabilities of a split's targets → loss, perplexity, bits per byte.
//!
//! This module does not depend on a model.

use candle_core::{DType, Device, Tensor};

use crate::{Batch, Error, NO_TOKEN, Result, Tokenizer, ids};

/// The result of [`evaluate`]: how well a model predicts a text.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use tallow::{DataLoader, DataLoaderConfig, Dataset, Error, Tokenizer, evaluate};
/// let split = Dataset::from_ids(&[9906u32, 1917].repeat(9), 0.0)?.split("train")?;
/// let cfg = DataLoaderConfig { batch_size: 1, context_length: 4, ..Default::default() };
/// let batches = DataLoader::new(&split, cfg.once())?;
/// // A model that gives every target the probability 1/2.
/// let result = evaluate(batches, &Tokenizer::cl100k(), |batch| {
///     Ok::<_, Error>(Tensor::full(0.5f64.ln(), batch.targets.shape(), &Device::Cpu)?)
/// })?;
/// assert_eq!(result.tokens, 16);
/// assert!((result.perplexity - 2.0).abs() < 1e-9);
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy of the targets, in nats (natural logarithm): the training loss.
    pub loss: f64,
    /// exp(loss): a uniform choice among this many tokens has the same loss.
    pub perplexity: f64,
    /// Bits per byte of text. It can be compared between tokenizers; loss and perplexity cannot. `None` if the tokenizer is not
    /// byte-level ([`Tokenizer::is_byte_level`]), or if the targets have no bytes of text.
    pub bits_per_byte: Option<f64>,
    /// Number of targets.
    pub tokens: u64,
    /// Bytes of text of the targets.
    pub bytes: u64,
}

/// Evaluates a model on batches. `log_probs` returns the log-probability of every target of a batch, as
/// [`Head::log_probs`](crate::Head::log_probs) does.
///
/// For a whole split use [`DataLoaderConfig::once`](crate::DataLoaderConfig::once). Build the model over
/// [`no_grad`](crate::no_grad), so that no operation stores its input.
///
/// Special tokens (such as `<|endoftext|>` between documents) have no bytes of text. They count in the loss. Bits per byte counts
/// neither their bits nor the bytes of their names.
///
/// # Shapes
/// - log-probabilities: the shape of the batch's targets, (B, T), any float dtype. Values at positions without a target
///   ([`NO_TOKEN`]) are ignored.
///
/// # Errors
/// - those of the batches and of `log_probs`.
/// - [`Error::Config`]: another shape; a log-probability that is NaN or above 0; no target at all; a target that is not a token of
///   `tokenizer`.
///
/// # Cost
/// That of `log_probs`, and 4 bytes of memory for each token of the tokenizer.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Module};
/// use candle_nn::{VarBuilder, VarMap};
/// use tallow::{DataLoader, DataLoaderConfig, Dataset, Head, TokenEmbedding, TokenEmbeddingConfig, Tokenizer, evaluate};
///
/// let (tokenizer, varmap) = (Tokenizer::cl100k(), VarMap::new());
/// let cfg = TokenEmbeddingConfig { vocab_size: tokenizer.vocab_size(), d_model: 8, ..Default::default() };
/// let wte = TokenEmbedding::new(&cfg, VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu).pp("wte"))?;
/// let head = Head::tied(&wte);
///
/// let val = Dataset::from_text(&tokenizer, "Rain fell on the harbour; nobody had brought a coat.", 0.0)?.split("train")?;
/// let loading = DataLoaderConfig { batch_size: 2, context_length: 4, ..Default::default() };
/// let batches = DataLoader::new(&val, loading.once())?;
/// let result = evaluate(batches, &tokenizer, |batch| head.log_probs(&wte.forward(&batch.inputs)?, &batch.targets))?;
/// assert!((result.perplexity / 100277.0 - 1.0).abs() < 0.01); // it knows nothing yet: all tokens are alike
/// # Ok::<(), tallow::Error>(())
/// ```
///
/// Source: bits per byte as nanochat's `evaluate_bpb`.
pub fn evaluate<E: From<Error>>(
    batches: impl IntoIterator<Item = Result<Batch>>,
    tokenizer: &Tokenizer,
    mut log_probs: impl FnMut(&Batch) -> std::result::Result<Tensor, E>,
) -> std::result::Result<Evaluation, E> {
    let bytes_of = text_bytes(tokenizer);
    let (mut nats, mut tokens, mut nats_of_text, mut bytes) = (0.0, 0, 0.0, 0);
    for batch in batches {
        let batch = batch?;
        let log_probs = log_probs(&batch)?;
        for (target, log_prob) in pairs(&batch.targets, &log_probs)? {
            let Some(len) = bytes_of.get(target as usize) else {
                let (name, rows) = (tokenizer.name(), bytes_of.len());
                return Err(config(format!("target {target} is not a token of {name}, which has {rows} ids")).into());
            };
            nats -= log_prob;
            tokens += 1;
            if *len > 0 {
                nats_of_text -= log_prob;
                bytes += u64::from(*len);
            }
        }
    }
    if tokens == 0 {
        return Err(config(
            "no target to evaluate on: the split, or this rank's share of it, is shorter than a window".to_string(),
        )
        .into());
    }
    let loss = nats / tokens as f64;
    let bits_per_byte = nats_of_text / std::f64::consts::LN_2 / bytes as f64;
    let bits_per_byte = Some(bits_per_byte).filter(|_| bytes > 0 && tokenizer.is_byte_level());
    Ok(Evaluation { loss, perplexity: loss.exp(), bits_per_byte, tokens, bytes })
}

/// Bytes of text of each token; 0 for special tokens.
fn text_bytes(tokenizer: &Tokenizer) -> Vec<u32> {
    let bytes = |id| tokenizer.token_bytes(id).map_or(0, |bytes| bytes.len() as u32);
    let mut lengths: Vec<u32> = (0..tokenizer.vocab_size() as u32).map(bytes).collect();
    for (_, id) in tokenizer.special_ids() {
        lengths[*id as usize] = 0;
    }
    lengths
}

/// Each target and its log-probability.
fn pairs(targets: &Tensor, log_probs: &Tensor) -> Result<Vec<(u32, f64)>> {
    if targets.dims() != log_probs.dims() {
        let (given, asked) = (log_probs.dims(), targets.dims());
        return Err(config(format!("log-probabilities {given:?} for targets {asked:?}: the shapes must be equal")));
    }
    let targets: Vec<u32> = ids::on_host(targets)?.flatten_all()?.to_vec1()?;
    let log_probs: Vec<f64> = log_probs.flatten_all()?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1()?;
    let pairs: Vec<_> = targets.into_iter().zip(log_probs).filter(|(target, _)| *target != NO_TOKEN).collect();
    match pairs.iter().find(|(_, log_prob)| log_prob.is_nan() || *log_prob > 0.0) {
        Some((target, log_prob)) => {
            let reason = "use `Head::log_probs`; a loss has the opposite sign";
            Err(config(format!("{log_prob} is not a log-probability (of target {target}): {reason}")))
        }
        None => Ok(pairs),
    }
}

fn config(what: String) -> Error {
    Error::Config(what)
}
