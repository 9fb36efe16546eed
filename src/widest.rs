//! One body of arithmetic, compiled for several widths of registers.

/// Compiles a function for AVX-512, for AVX2 and for the baseline, and takes the best one that the processor has.
/// Wider registers change no bit: there are no fused multiply-adds and no sums across elements.
macro_rules! widest {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$doc])*
        $vis fn $name($($arg: $type),*) {
            #[inline(always)]
            fn body($($arg: $type),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn avx512($($arg: $type),*) { body($($arg),*) }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $type),*) { body($($arg),*) }
                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: the processor has AVX-512F, as just asked.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2, as just asked.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use widest;
