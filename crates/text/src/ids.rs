//! The padding id, which no tokenizer uses.

/// The padding id. Decoding skips it. An embedding table returns a row of zeros for it, without a gradient, on every device.
///
/// It is candle's own marker, the largest value of the ids' type, which `index_select` and `index_add` skip.
pub const NO_TOKEN: u32 = u32::MAX;
