//! The deferred steps, and the bound that shows when a deferred update can no longer change a weight.

/// The constants of one step, rounded to the arithmetic's type as in candle's AdamW. kernels.cu declares the same struct.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Step<T = f32> {
    pub(super) beta1: T,
    pub(super) beta2: T,
    pub(super) one_minus_beta1: T,
    pub(super) one_minus_beta2: T,
    pub(super) scale_m: T,
    pub(super) scale_v: T,
    /// 1 - lr · weight decay.
    pub(super) decay: T,
    pub(super) eps: T,
    pub(super) lr: T,
    /// Smaller moments are stored as zero, because subnormal numbers slow some processors down by a factor of ten. 0 (no moment is
    /// stored as zero) if ε is so small that it would change a weight.
    pub(super) floor: T,
}

impl Step<f64> {
    pub(super) fn new(params: &candle_nn::ParamsAdamW, step: usize) -> Self {
        let candle_nn::ParamsAdamW { lr, beta1, beta2, eps, weight_decay } = *params;
        let power = i32::try_from(step).unwrap_or(i32::MAX);
        Step {
            beta1,
            beta2,
            one_minus_beta1: 1.0 - beta1,
            one_minus_beta2: 1.0 - beta2,
            scale_m: 1.0 / (1.0 - beta1.powi(power)),
            scale_v: 1.0 / (1.0 - beta2.powi(power)),
            decay: 1.0 - lr * weight_decay,
            eps,
            lr,
            floor: 0.0,
        }
        .with_floor(f64::MIN_POSITIVE)
    }

    fn with_floor(mut self, smallest: f64) -> Self {
        self.floor = if self.eps >= (self.scale_v * smallest).sqrt() { smallest } else { 0.0 };
        self
    }

    pub(super) fn to_f32(self) -> Step {
        self.with_floor(f32::MIN_POSITIVE.into()).map(|x| x as f32)
    }
}

impl Step {
    pub(super) fn to_f64(self) -> Step<f64> {
        self.map(f64::from)
    }
}

impl<T> Step<T> {
    fn map<U>(self, f: impl Fn(T) -> U) -> Step<U> {
        Step {
            beta1: f(self.beta1),
            beta2: f(self.beta2),
            one_minus_beta1: f(self.one_minus_beta1),
            one_minus_beta2: f(self.one_minus_beta2),
            scale_m: f(self.scale_m),
            scale_v: f(self.scale_v),
            decay: f(self.decay),
            eps: f(self.eps),
            lr: f(self.lr),
            floor: f(self.floor),
        }
    }
}

/// A step, with the sums over all steps up to it that the bound needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) step: Step,
    /// Logarithms of the products of β1, β2 and decay over all entries up to this one.
    pub(super) log_beta1: f64,
    pub(super) log_beta2: f64,
    pub(super) log_decay: f64,
    /// The largest `log R` of all later entries (see [`History`]).
    later: f64,
    /// 2²⁷ · the largest R of all later entries, relative to the moments and the weight after this one. Infinite
    /// if the bound does not hold.
    pub(super) factor: f32,
}

/// The steps since the last flush: entry 0 is the flush, entry k the k-th step after it.
///
/// # When a skipped update can no longer change a weight
/// After entry k let a row's element have the weight θ and the moments m and v. A skipped step j > k has no
/// gradient, so (up to rounding) m and v are multiplied by β1ⱼ and β2ⱼ, and θ becomes θ·dⱼ - uⱼ, where
///
/// uⱼ = lrⱼ · sⱼ·mⱼ / (√(rⱼ·vⱼ) + εⱼ), with the bias corrections sⱼ = 1/(1 - β1ʲ), rⱼ = 1/(1 - β2ʲ).
///
/// Subtracting uⱼ from x = θⱼ₋₁·dⱼ gives x again if |uⱼ| is below a quarter of the spacing of floats at x, and
/// |x|·2⁻²⁶ never exceeds that quarter for a normal x. Dropping ε > 0 from the denominator only enlarges the bound:
///
/// |uⱼ| / |θⱼ| ≤ (|m| / (√v · |θ|)) · Rⱼ / Rᵏ, where Rⱼ = lrⱼ·sⱼ·B1ⱼ / (√(rⱼ·B2ⱼ) · Dⱼ), Rᵏ = B1ₖ / (√B2ₖ · Dₖ)
///
/// and B1, B2 and D are the products of β1, β2 and d from entry 1 on. All deferred steps of a row are in the past when it
/// is replayed, so the largest Rⱼ after k is known for any schedule, also one that rises. `factor` is that maximum, divided by
/// Rᵏ, times 2²⁷. Thus |m| · factor ≤ √v · |θ| proves |uⱼ| ≤ 2⁻²⁷·|θⱼ| for all j > k: half of the allowed difference.
/// The other half is for rounding. Every product has a relative error of at most 2⁻²⁴, and a step has four products, so over
/// [`MAX_ENTRIES`] steps the error factor is less than e^(4 · 65536 · 2⁻²⁴) = 1.016, as long as the numbers are normal. They are:
/// - θ: |θ| ≥ 2⁻⁶⁰ is required, and the decay of all deferred steps is required to be larger than e⁻²⁰.
/// - m: it is stored as zero once it is below 2⁻¹²⁶, and m = 0 gives u = 0 exactly.
/// - v: it is stored as zero once it is below 2⁻¹²⁶. There ε, which must be at least √(rⱼ·2⁻¹²⁶), keeps the denominator above
///   its value in the bound.
///
/// If this does not hold (a tiny ε, β outside (0, 1), a decay factor that is not positive, a value that is not finite), the
/// factor is infinite, no element satisfies the bound, and every step is replayed in full.
#[derive(Debug)]
pub(super) struct History {
    pub(super) entries: Vec<Entry>,
    /// Entries up to this one must be replayed in full, even if m = 0.
    pub(super) unsafe_until: usize,
    /// From this entry on, betas and decay equal those of the newest entry.
    pub(super) uniform_from: usize,
    /// From this entry on, the copy on the GPU is out of date.
    pub(super) unsent: usize,
}

/// All rows are flushed when there are this many entries. This bounds memory, and the rounding error above.
pub(super) const MAX_ENTRIES: usize = 1 << 16;

const LOG_MARGIN: f64 = 27.0 * std::f64::consts::LN_2;

impl History {
    pub(super) fn new() -> Self {
        let none = f64::NEG_INFINITY;
        let step = Step::default(); // entry 0 is not a step, and is never read
        let entry = Entry { step, log_beta1: 0.0, log_beta2: 0.0, log_decay: 0.0, later: none, factor: 0.0 };
        History { entries: vec![entry], unsafe_until: 0, uniform_from: 0, unsent: 0 }
    }

    /// The index of the newest entry, and the value of `last` for a row without deferred updates.
    pub(super) fn now(&self) -> usize {
        self.entries.len() - 1
    }

    pub(super) fn push(&mut self, step: Step) {
        let before = self.entries[self.now()];
        // Values without a finite logarithm (see `unsafe_until`) are left out of the sums, so that later entries stay finite.
        let ln = |x: f32| Some(f64::from(x).ln()).filter(|ln| ln.is_finite()).unwrap_or(0.0);
        let log_beta1 = before.log_beta1 + ln(step.beta1);
        let log_beta2 = before.log_beta2 + ln(step.beta2);
        let log_decay = before.log_decay + ln(step.decay);
        let log_r = f64::from(step.lr.abs()).ln() + ln(step.scale_m) - 0.5 * ln(step.scale_v) + log_beta1
            - 0.5 * log_beta2
            - log_decay;
        let sound = step.floor > 0.0
            && step.eps.is_finite()
            && [step.beta1, step.beta2].iter().all(|beta| *beta > 0.0 && *beta < 1.0)
            && step.lr.is_finite()
            && step.decay > 0.0
            && step.decay.is_finite()
            && log_r < f64::INFINITY;
        let log_r = if sound { log_r } else { f64::INFINITY };
        let (later, factor) = (f64::NEG_INFINITY, 0.0);
        self.entries.push(Entry { step, log_beta1, log_beta2, log_decay, later, factor });
        let now = self.now();
        let products = |step: Step| [step.beta1, step.beta2, step.decay];
        if products(before.step) != products(step) {
            self.uniform_from = now;
        }
        if !sound {
            self.unsafe_until = now;
        }
        // R usually falls, so this ends after one iteration. After a rise it updates all entries whose maximum changes.
        for (index, entry) in self.entries[..now].iter_mut().enumerate().rev() {
            if entry.later >= log_r {
                break;
            }
            self.unsent = self.unsent.min(index);
            entry.later = log_r;
            let relative = log_r - (entry.log_beta1 - 0.5 * entry.log_beta2 - entry.log_decay) + LOG_MARGIN;
            entry.factor = if relative.is_nan() { f32::INFINITY } else { relative.exp() as f32 };
        }
    }

    /// Whether the steps after `from` can be replaced by their products: none of them is invalid.
    pub(super) fn can_jump(&self, from: usize, to: usize) -> bool {
        from < to && from >= self.unsafe_until
    }

    /// The products of decay, β1 and β2 over the entries after `from` up to `to`.
    pub(super) fn products(&self, from: usize, to: usize) -> [f32; 3] {
        let (a, b) = (&self.entries[from], &self.entries[to]);
        [b.log_decay - a.log_decay, b.log_beta1 - a.log_beta1, b.log_beta2 - a.log_beta2].map(|log| log.exp() as f32)
    }

    /// Whether the decay between two entries is weak enough for the bound.
    pub(super) fn mild(&self, from: usize, to: usize) -> bool {
        self.entries[to].log_decay - self.entries[from].log_decay > -20.0
    }
}
