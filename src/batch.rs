//! Ragged ids → one rectangular tensor, with lengths and a mask.

use candle_core::{Device, Tensor};

use crate::{Error, NO_TOKEN, Result, Tokenizer};

/// On which side short rows are padded.
///
/// # Example
/// ```
/// use candle_core::Device;
/// use tallow::{NO_TOKEN, PaddedBatch, Padding, Side};
/// let padding = Padding { side: Side::Left, ..Default::default() };
/// let batch = PaddedBatch::from_ids(&[vec![5u32, 6], vec![7]], padding, &Device::Cpu)?;
/// assert_eq!(batch.ids.to_vec2::<u32>()?, [[5, 6], [NO_TOKEN, 7]]);
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Side {
    /// Padding follows the text (training).
    #[default]
    Right,
    /// Padding precedes the text (generation: the last column is always the last token).
    Left,
}

/// How texts of different lengths become one tensor. The default pads on the right to the longest text.
///
/// # Example
/// ```
/// use candle_core::Device;
/// use tallow::{PaddedBatch, Padding};
/// let padding = Padding { context_length: Some(4), max_length: Some(2), ..Default::default() };
/// let batch = PaddedBatch::from_ids(&[[5u32, 6, 7]], padding, &Device::Cpu)?;
/// assert_eq!(batch.ids.dims(), [1, 4]);
/// assert_eq!(batch.lengths, [2]);
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Side of the padding.
    pub side: Side,
    /// Columns, T. Shorter rows are padded to it. `None`: the length of the longest row.
    pub context_length: Option<usize>,
    /// Longer rows are truncated to their first `max_length` ids. `None`: to `context_length`, if that is set.
    pub max_length: Option<usize>,
}

/// Rows of ids as a tensor, with lengths and a mask.
///
/// # Example
/// ```
/// use candle_core::Device;
/// use tallow::{PaddedBatch, Padding};
/// let batch = PaddedBatch::from_ids(&[vec![5u32, 6], vec![7]], Padding::default(), &Device::Cpu)?;
/// assert_eq!(batch.mask.to_vec2::<u8>()?, [[1, 1], [1, 0]]);
/// assert_eq!(batch.lengths, [2, 1]);
/// # Ok::<(), tallow::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PaddedBatch {
    /// Ids (B, T) u32. Padding is [`NO_TOKEN`]: a [`TokenEmbedding`](crate::TokenEmbedding) returns zeros for it, without a
    /// gradient.
    pub ids: Tensor,
    /// 1 where there is a token, 0 where there is padding: (B, T) u8.
    pub mask: Tensor,
    /// Number of ids in each row without padding, after truncation: B numbers.
    pub lengths: Vec<usize>,
}

impl PaddedBatch {
    /// Encodes `texts` (in parallel) and pads them.
    ///
    /// # Shapes
    /// ids and mask: (B, T) for B texts. Without texts (0, 0), or (0, `context_length`). An empty text is a row of padding.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`] and [`from_ids`](Self::from_ids).
    ///
    /// # Example
    /// ```
    /// use candle_core::Device;
    /// use tallow::{NO_TOKEN, PaddedBatch, Padding, Tokenizer};
    /// let batch = PaddedBatch::from_texts(&Tokenizer::cl100k(), &["Hello world", "", "!"], Padding::default(), &Device::Cpu)?;
    /// assert_eq!(batch.ids.to_vec2::<u32>()?, [[9906, 1917], [NO_TOKEN, NO_TOKEN], [0, NO_TOKEN]]);
    /// assert_eq!(batch.lengths, [2, 0, 1]);
    /// # Ok::<(), tallow::Error>(())
    /// ```
    pub fn from_texts<S: AsRef<str> + Sync>(
        tokenizer: &Tokenizer,
        texts: &[S],
        padding: Padding,
        device: &Device,
    ) -> Result<Self> {
        Self::from_ids(&tokenizer.encode_batch(texts)?, padding, device)
    }

    /// Pads rows of ids.
    ///
    /// # Errors
    /// - [`Error::Config`] if B x T ids do not fit into memory.
    /// - [`Error::Candle`] if the device has no memory for the tensors.
    pub fn from_ids<R: AsRef<[u32]>>(rows: &[R], padding: Padding, device: &Device) -> Result<Self> {
        let limit = padding.max_length.unwrap_or(usize::MAX).min(padding.context_length.unwrap_or(usize::MAX));
        let rows: Vec<&[u32]> = rows.iter().map(|row| &row.as_ref()[..row.as_ref().len().min(limit)]).collect();
        let lengths: Vec<usize> = rows.iter().map(|row| row.len()).collect();
        let columns = padding.context_length.unwrap_or(lengths.iter().copied().max().unwrap_or(0));
        let size = rows.len().checked_mul(columns).filter(|size| Vec::<u32>::new().try_reserve_exact(*size).is_ok());
        let Some(size) = size else {
            return Err(Error::Config(format!("a batch of {} x {columns} ids does not fit into memory", rows.len())));
        };
        let (mut ids, mut mask) = (vec![NO_TOKEN; size], vec![0u8; size]);
        for (i, row) in rows.iter().enumerate() {
            let start = i * columns + if padding.side == Side::Left { columns - row.len() } else { 0 };
            ids[start..start + row.len()].copy_from_slice(row);
            mask[start..start + row.len()].fill(1);
        }
        let shape = (rows.len(), columns);
        Ok(PaddedBatch {
            ids: Tensor::from_vec(ids, shape, device)?,
            mask: Tensor::from_vec(mask, shape, device)?,
            lengths,
        })
    }
}
