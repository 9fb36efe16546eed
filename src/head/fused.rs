//! Losses and gradients on the CPU in one pass: one chunk of tokens at a time, and in each chunk one block of the vocabulary at a time.
//!
//! For n tokens, C columns, V rows, with Z = W Hᵀ (V, tokens):
//! 1. by block: Z, and its softmax statistics. 2. Statistics of all blocks → losses. 3. by block: Z becomes dZ in place,
//!    dW += dZ H, dH += dZᵀ W. These are three products. Z of one chunk is kept from step 1 to step 3. (Computing it twice
//!    takes longer, also at 64 columns: benches/LOG.md.)
//!
//! Blocks, chunks and the order of sums depend only on sizes, so the bits do not depend on the number of threads.

use std::mem::MaybeUninit;

use candle_core::{Device, Tensor};

use super::kernel::{self, Statistics};
use super::product::{self, Matrix};
use super::{CrossEntropyConfig, Wanted};
use crate::Result;
use crate::collective::Shard;
use crate::support::parallel;

/// Vocabulary rows of a block. Its logits fit in the second-level cache.
const BLOCK: usize = 512;
/// Maximum and minimum number of tokens in a chunk.
const CHUNK: (usize, usize) = (256, 64);
/// Number of chunks between these limits, so that the logits of a chunk are a small part of all logits.
const CHUNKS: usize = 16;
/// Products with fewer multiplications run on one thread.
const PARALLEL: usize = 1 << 21;

/// The inputs, with at least one token and column. All slices are row-major.
pub(super) struct Problem<'a> {
    pub(super) hidden: &'a [f32],
    pub(super) weight: &'a [f32],
    pub(super) bias: Option<&'a [f32]>,
    /// Rows of the weight here. [`NO_TOKEN`](crate::NO_TOKEN): another rank has the row.
    pub(super) targets: &'a [u32],
    /// Rows of the weight here, V. Without other ranks at least one.
    pub(super) vocab_size: usize,
    pub(super) columns: usize,
    /// The whole weight, if other ranks have the rest of it. They call the same functions with their rows.
    pub(super) shard: Option<&'a Shard>,
    pub(super) cfg: &'a CrossEntropyConfig,
    pub(super) soft_cap: Option<f64>,
}

/// Gradients. Those that were not wanted are empty.
pub(super) struct Gradients {
    pub(super) hidden: Vec<f32>,
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

impl Problem<'_> {
    /// The loss of every token. With an upstream gradient also the gradients of Σ upstream · loss. If the weight is split between
    /// ranks, the gradient of the hidden states is this rank's part of the sum.
    pub(super) fn run(&self, upstream: Option<&[f64]>, wanted: Wanted) -> Result<(Vec<f64>, Gradients)> {
        let (vocab_size, columns, tokens) = (self.vocab_size, self.columns, self.targets.len());
        let wanted = if upstream.is_some() { wanted } else { Wanted::default() };
        let sized = |wanted: bool, len: usize| if wanted { len } else { 0 };
        let mut losses = Vec::with_capacity(tokens);
        let mut hidden = Vec::with_capacity(sized(wanted.hidden, self.hidden.len()));
        let mut bias = vec![0f32; sized(wanted.bias, vocab_size)];
        let mut weight = product::space(sized(wanted.weight, self.weight.len()));
        let (blocks, span_rows) = (vocab_size.div_ceil(BLOCK), self.span_rows());
        let chunk = (tokens / CHUNKS / CHUNK.1 * CHUNK.1).clamp(CHUNK.1, CHUNK.0).min(tokens);
        let mut logits = product::space(sized(upstream.is_some(), vocab_size * chunk));
        let mut statistics = vec![0f32; blocks * 4 * chunk];
        let mut partial = vec![0f32; sized(wanted.hidden, vocab_size.div_ceil(span_rows) * chunk * columns)];

        for first in (0..tokens).step_by(chunk) {
            let n = chunk.min(tokens - first);
            let targets = &self.targets[first..first + n];
            let h = Matrix::new(&self.hidden[first * columns..(first + n) * columns], n, columns);
            let small = n * vocab_size * columns < PARALLEL;
            // 1. Logits and their statistics.
            // Buffers that are not wanted are empty, and give no chunks.
            let mut spaces = logits[..sized(upstream.is_some(), vocab_size * n)].chunks_mut(span_rows * n);
            let statistics_of_spans = statistics[..blocks * 4 * n].chunks_mut(span_rows / BLOCK * 4 * n);
            let spans = statistics_of_spans.enumerate().map(|(i, statistics)| Described {
                first_row: i * span_rows,
                statistics,
                logits: spaces.next(),
            });
            each(small, spans, |span| self.describe(h, targets, span));
            // 2. Losses.
            let tokens = self.combine(n, &statistics[..blocks * 4 * n], upstream.map(|u| &u[first..first + n]))?;
            losses.extend_from_slice(&tokens.losses);
            if upstream.is_none() {
                continue;
            }
            // 3. Gradients.
            // SAFETY: step 1 has written the logits of all V rows.
            let logits = unsafe { logits[..vocab_size * n].assume_init_mut() };
            let mut weights = weight.chunks_mut(span_rows * columns);
            let mut biases = bias.chunks_mut(span_rows);
            let mut partials = partial.chunks_mut(chunk * columns);
            let spans = logits.chunks_mut(span_rows * n).enumerate().map(|(i, logits)| Differentiated {
                first_row: i * span_rows,
                logits,
                weight: weights.next(),
                bias: biases.next(),
                hidden: partials.next().map(|partial| &mut partial[..n * columns]),
            });
            each(small, spans, |span| self.differentiate(h, targets, &tokens, first == 0, span));
            // Add partial sums in the order of the vocabulary.
            let mut sums = partial.chunks_exact(chunk * columns).map(|partial| &partial[..n * columns]);
            let at = hidden.len();
            match sums.next() {
                Some(start) => hidden.extend_from_slice(start),
                None => hidden.resize(at + sized(wanted.hidden, n * columns), 0.0), // not wanted, or no rows here
            }
            for partial in sums {
                hidden[at..].iter_mut().zip(partial).for_each(|(sum, value)| *sum += *value);
            }
        }
        // SAFETY: the first chunk has written every row.
        let weight = unsafe { product::written(weight) };
        Ok((losses, Gradients { hidden, weight, bias }))
    }

    /// Computes the logits of the blocks of one span, and four rows of statistics per block: maximum, Σ exp, Σ z, the target's z.
    fn describe(&self, h: Matrix, targets: &[u32], mut span: Described) {
        let n = targets.len();
        let mut own = product::space(if span.logits.is_none() { BLOCK * n } else { 0 });
        for (i, of) in span.statistics.chunks_exact_mut(4 * n).enumerate() {
            let row = span.first_row + i * BLOCK;
            let rows = BLOCK.min(self.vocab_size - row);
            let z = match &mut span.logits {
                Some(space) => &mut space[i * BLOCK * n..][..rows * n],
                None => &mut own[..rows * n],
            };
            let z = product::fill(z, self.rows(row, rows), h.t());
            kernel::finish(z, self.bias.map(|bias| &bias[row..row + rows]), rows, self.cap());
            let (max, rest) = of.split_at_mut(n);
            let (exp_sum, rest) = rest.split_at_mut(n);
            let (sum, target) = rest.split_at_mut(n);
            kernel::describe(z, &mut Statistics { max, exp_sum, sum });
            target.fill(0.0);
            for (token, y) in in_block(targets, row, rows) {
                target[token] = z[y * n + token];
            }
        }
    }

    /// Combines the statistics of the blocks in f64: losses, and the factors of the gradients.
    fn combine(&self, n: usize, statistics: &[f32], upstream: Option<&[f64]>) -> Result<Tokens> {
        let cfg = self.cfg;
        let rows = self.shard.map_or(self.vocab_size, |shard| shard.vocab_size()) as f64;
        let (smoothing, z_loss) = (cfg.label_smoothing, cfg.z_loss);
        let mut all: Vec<Sums> = (0..n).map(|token| Sums::of(token, n, statistics)).collect();
        if let Some(shard) = self.shard {
            Sums::over_ranks(&mut all, shard)?;
        }
        let mut tokens = Tokens::default();
        for (token, Sums { max, exp_sum, sum, target }) in all.into_iter().enumerate() {
            let lse = f64::from(max) + libm::log(exp_sum);
            // Without smoothing the sum may be infinite: a bias of -∞ excludes a row.
            let even = if smoothing == 0.0 { 0.0 } else { smoothing / rows * sum };
            tokens.losses.push(lse - (1.0 - smoothing) * target - even + z_loss * lse * lse);
            let scale = upstream.map_or(0.0, |upstream| upstream[token]);
            let bent = if self.cap() > 0.0 { target / f64::from(self.cap()) } else { 0.0 };
            tokens.max.push(max);
            tokens.factor.push((scale * (1.0 + 2.0 * z_loss * lse) / exp_sum) as f32);
            tokens.even.push((scale * smoothing / rows) as f32);
            tokens.target.push((scale * (1.0 - smoothing) * (1.0 - bent * bent)) as f32);
        }
        Ok(tokens)
    }

    /// Blocks of one span: logits → gradients.
    fn differentiate(&self, h: Matrix, targets: &[u32], tokens: &Tokens, first_chunk: bool, mut span: Differentiated) {
        let (n, first_row) = (targets.len(), span.first_row);
        for (i, z) in span.logits.chunks_mut(BLOCK * n).enumerate() {
            let (at, rows) = (i * BLOCK, z.len() / n);
            kernel::differentiate(z, self.cap(), &tokens.max, &tokens.factor, &tokens.even);
            for (token, y) in in_block(targets, first_row + at, rows) {
                z[y * n + token] -= tokens.target[token];
            }
            let dz = Matrix::new(z, rows, n);
            if let Some(weight) = &mut span.weight {
                let out = &mut weight[at * self.columns..(at + rows) * self.columns];
                if first_chunk {
                    product::fill(out, dz, h);
                } else {
                    // SAFETY: the first chunk has written every row.
                    product::add(unsafe { out.assume_init_mut() }, dz, h);
                }
            }
            if let Some(hidden) = &mut span.hidden {
                if at == 0 {
                    hidden.fill(0.0);
                }
                product::add(hidden, dz.t(), self.rows(first_row + at, rows));
            }
            if let Some(bias) = &mut span.bias {
                kernel::add_row_sums(z, &mut bias[at..at + rows]);
            }
        }
    }

    /// Rows of a span. A span of blocks is one task with its own partial sum of dH, so there are fewer spans if C is large.
    fn span_rows(&self) -> usize {
        let blocks = self.vocab_size.div_ceil(BLOCK).max(1);
        blocks.div_ceil((self.vocab_size / (8 * self.columns)).clamp(16, 64).min(blocks)) * BLOCK
    }

    /// Rows of the weight.
    fn rows(&self, first: usize, rows: usize) -> Matrix<'_> {
        Matrix::new(&self.weight[first * self.columns..(first + rows) * self.columns], rows, self.columns)
    }

    fn cap(&self) -> f32 {
        self.soft_cap.unwrap_or(0.0) as f32
    }
}

/// Output of step 1 for a span: statistics by block, and the logits (rows, n) if step 3 needs them.
struct Described<'a> {
    first_row: usize,
    statistics: &'a mut [f32],
    logits: Option<&'a mut [MaybeUninit<f32>]>,
}

/// Input and output of step 3 for a span: logits, the wanted gradients of its rows, and its partial sum of the hidden states' gradient.
struct Differentiated<'a> {
    first_row: usize,
    logits: &'a mut [f32],
    weight: Option<&'a mut [MaybeUninit<f32>]>,
    bias: Option<&'a mut [f32]>,
    hidden: Option<&'a mut [f32]>,
}

/// A token's logits over the vocabulary: maximum, Σ exp(z - maximum), Σ z, and the target's z.
struct Sums {
    max: f32,
    exp_sum: f64,
    sum: f64,
    target: f64,
}

impl Sums {
    /// One of `n` tokens, from the statistics of all blocks.
    fn of(token: usize, n: usize, statistics: &[f32]) -> Self {
        let of = |row: usize| statistics.chunks_exact(4 * n).map(move |block| block[row * n + token]);
        let max = of(0).fold(f32::MIN, f32::max);
        let exp_sum = of(0).zip(of(1)).map(|(m, sum)| f64::from(sum) * libm::exp(f64::from(m) - f64::from(max))).sum();
        let [sum, target] = [2, 3].map(|row| of(row).map(f64::from).sum::<f64>());
        Sums { max, exp_sum, sum, target }
    }

    /// Two reductions over the ranks that have the rest of the vocabulary: the maxima, then the sums. Only one rank has the target.
    fn over_ranks(all: &mut [Sums], shard: &Shard) -> Result<()> {
        let own: Vec<f32> = all.iter().map(|sums| sums.max).collect();
        let max = shard.max(&Tensor::new(own, &Device::Cpu)?)?.to_vec1::<f32>()?;
        let mut sums = Vec::with_capacity(3 * all.len());
        for (own, max) in all.iter().zip(&max) {
            let exp_sum = own.exp_sum * libm::exp(f64::from(own.max) - f64::from(*max));
            sums.extend([exp_sum, own.sum, own.target]);
        }
        let sums = shard.sum(&Tensor::new(sums, &Device::Cpu)?)?.to_vec1::<f64>()?;
        for ((own, max), sums) in all.iter_mut().zip(max).zip(sums.chunks_exact(3)) {
            *own = Sums { max, exp_sum: sums[0], sum: sums[1], target: sums[2] };
        }
        Ok(())
    }
}

/// Results of step 2 for the tokens of a chunk.
#[derive(Default)]
struct Tokens {
    losses: Vec<f64>,
    max: Vec<f32>,
    /// p = exp(z - max) · factor, times upstream and what z-loss adds.
    factor: Vec<f32>,
    /// Subtracted from every row's gradient, for label smoothing.
    even: Vec<f32>,
    /// Subtracted from the target row's gradient.
    target: Vec<f32>,
}

/// (token, row in the block) of the targets in `first..first + rows`.
fn in_block(targets: &[u32], first: usize, rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let place = move |(token, y): (usize, &u32)| Some((token, (*y as usize).checked_sub(first)?));
    targets.iter().enumerate().filter_map(place).filter(move |(_, row)| *row < rows)
}

fn each<I: Iterator + Send>(small: bool, tasks: I, work: impl Fn(I::Item) + Sync) {
    if small { tasks.for_each(work) } else { parallel::for_each(tasks, work) }
}
