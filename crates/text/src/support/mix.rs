//! Mixes a number to one that looks random. All random orders and choices use it.

/// Mixes 64 bits. It is a bijection, and every bit of the output depends on every bit of the input.
///
/// Source: one step of SplitMix64 (Steele, Lea and Flood, 2014): adds the constant, then applies the finalizer.
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Maps 64 mixed bits to a number below `bound`, which must not be 0.
pub fn below(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}
