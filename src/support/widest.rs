//! Compiles a function for several register widths.

/// Compiles a function for AVX-512, for AVX2 and for the baseline, and calls the widest one that the processor supports.
/// The width changes no bit, because there are no fused multiply-adds and no sums across elements.
macro_rules! widest {
    ($(#[$doc:meta])* $vis:vis fn $name:ident$(<$of:ident: $bound:ident>)?($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$doc])*
        $vis fn $name$(<$of: $bound>)?($($arg: $type),*) {
            #[inline(always)]
            fn body$(<$of: $bound>)?($($arg: $type),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn avx512$(<$of: $bound>)?($($arg: $type),*) { body$(::<$of>)?($($arg),*) }
                #[target_feature(enable = "avx2")]
                fn avx2$(<$of: $bound>)?($($arg: $type),*) { body$(::<$of>)?($($arg),*) }
                if is_x86_feature_detected!("avx512f") && $crate::support::widest::allows(512) {
                    // SAFETY: the processor has AVX-512F, as checked above.
                    return unsafe { avx512$(::<$of>)?($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && $crate::support::widest::allows(256) {
                    // SAFETY: the processor has AVX2, as checked above.
                    return unsafe { avx2$(::<$of>)?($($arg),*) };
                }
            }
            body$(::<$of>)?($($arg),*)
        }
    };
}
pub(crate) use widest;

/// Whether registers of this many bits may be used. Always true outside tests. Tests of the narrower versions limit it for one thread
/// (`same_with_every_body`) or for the process (`TALLOW_WIDEST_BITS=256`).
#[inline(always)]
#[cfg(target_arch = "x86_64")]
pub(crate) fn allows(bits: usize) -> bool {
    #[cfg(debug_assertions)]
    {
        use std::sync::LazyLock;
        static MOST: LazyLock<usize> = LazyLock::new(|| {
            let bits = std::env::var("TALLOW_WIDEST_BITS").ok().and_then(|bits| bits.parse().ok());
            bits.unwrap_or(usize::MAX)
        });
        if bits > *MOST {
            return false;
        }
    }
    #[cfg(test)]
    if bits > WIDEST_BITS.get() {
        return false;
    }
    _ = bits;
    true
}

#[cfg(test)]
thread_local! {
    static WIDEST_BITS: std::cell::Cell<usize> = const { std::cell::Cell::new(usize::MAX) };
}

/// Runs `work` (on this thread) with the versions for AVX-512, AVX2 and the baseline that the processor supports, and asserts equal
/// results.
#[cfg(test)]
pub(crate) fn same_with_every_body<T: PartialEq + std::fmt::Debug>(work: impl Fn() -> T) -> T {
    let run = |bits| {
        WIDEST_BITS.set(bits);
        let result = work();
        WIDEST_BITS.set(usize::MAX);
        result
    };
    let baseline = run(128);
    for bits in [256, 512] {
        eprintln!(
            "registers of {bits} bits: {}",
            if available(bits) { "compared with the baseline" } else { "this processor has none" }
        );
        assert!(run(bits) == baseline, "registers of {bits} bits give something else");
    }
    baseline
}

#[cfg(test)]
fn available(bits: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    return if bits == 512 { is_x86_feature_detected!("avx512f") } else { is_x86_feature_detected!("avx2") };
    #[cfg(not(target_arch = "x86_64"))]
    return bits == 0;
}
