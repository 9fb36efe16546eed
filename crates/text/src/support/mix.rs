//! A number → a number that looks random: the source of all orders and choices.

/// Mixes 64 bits: a bijection in which every bit of the input decides about every bit of the output.
///
/// Source: one step of SplitMix64 (Steele, Lea and Flood, 2014): the constant added, then the finaliser.
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// A number below `bound` (which must not be 0), from 64 mixed bits.
pub fn below(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}
