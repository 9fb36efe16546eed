//! The one id that no tokenizer has.

/// The id that stands for "no token": decoding skips it; a table gives a row of zeros for it, and no gradient, on every device.
///
/// It is candle's own mark (the largest value of the ids' type), which `index_select` and `index_add` honour.
pub const NO_TOKEN: u32 = u32::MAX;
