//! The ids of sample `k` of epoch `e`.

use super::documents::{Packed, Segment, bos_aligned, pack};
use super::{Order, Split};
use crate::Result;
use tallow_text::support::{below, mix};

/// The samples of a split in some order. Only orders that use document boundaries store more than a few numbers per shard.
pub(super) struct Plan {
    order: Order,
    context: u64,
    samples: u64,
    /// Samples before each shard.
    before: Vec<u64>,
    /// Ids in each shard.
    tokens: Vec<u64>,
    /// Rows of whole documents.
    packed: Packed,
    /// Rows that start with a document.
    aligned: Vec<(u32, u64)>,
}

impl Plan {
    pub(super) fn new(order: Order, split: &Split, context: usize) -> Result<Self> {
        let context = context as u64;
        let tokens: Vec<u64> = split.shards().iter().map(|shard| shard.tokens()).collect();
        let mut plan = Plan {
            order,
            context,
            samples: 0,
            before: Vec::new(),
            tokens,
            packed: Packed::default(),
            aligned: Vec::new(),
        };
        match order {
            Order::Packed => plan.packed = pack(split, context)?,
            Order::BosAligned => plan.aligned = bos_aligned(split, context)?,
            _ => (),
        }
        for tokens in &plan.tokens {
            plan.before.push(plan.samples);
            plan.samples += tokens.saturating_sub(1) / context;
        }
        match order {
            Order::Packed => plan.samples = plan.packed.rows(),
            Order::BosAligned => plan.samples = plan.aligned.len() as u64,
            _ => (),
        }
        Ok(plan)
    }

    /// Samples in an epoch.
    pub(super) fn samples(&self) -> u64 {
        self.samples
    }

    /// Sample `index` of an epoch.
    pub(super) fn segments(&self, seed: u64, epoch: u64, index: u64) -> Vec<Segment> {
        let key = mix(seed ^ mix(epoch));
        let permuted = || permute(index, self.samples, key);
        let segment = |shard: usize, start| vec![Segment { shard: shard as u32, len: self.context as u32, start }];
        match self.order {
            Order::Sequential => {
                let (shard, window) = self.shard_of(index);
                segment(shard, window * self.context)
            }
            Order::Permuted => {
                let (shard, window) = self.shard_of(permuted());
                // Ids that do not fill a window are skipped: a random number of them at the start, the rest at the end.
                let slack = (self.tokens[shard] - 1) % self.context;
                segment(shard, window * self.context + below(mix(key ^ mix(!(shard as u64))), slack + 1))
            }
            Order::Random => {
                // Uniform over all positions where a window can start.
                let places = |tokens: &u64| tokens.saturating_sub(self.context);
                let all: u64 = self.tokens.iter().map(places).sum();
                let mut place = below(mix(key ^ mix(index)), all);
                let mut shard = 0;
                while place >= places(&self.tokens[shard]) {
                    place -= places(&self.tokens[shard]);
                    shard += 1;
                }
                segment(shard, place)
            }
            Order::Packed => self.packed.row(permuted()).to_vec(),
            Order::BosAligned => {
                let (shard, start) = self.aligned[permuted() as usize];
                segment(shard as usize, start)
            }
        }
    }

    /// The shard of a window, and the window's number in that shard.
    fn shard_of(&self, window: u64) -> (usize, u64) {
        let shard = self.before.partition_point(|before| *before <= window) - 1;
        (shard, window - self.before[shard])
    }
}

/// The image of `index` in a permutation of `0..size` that depends on `key`: a Feistel network over the next power of two (at
/// least 256), iterated until the result is in range. It needs no memory and takes about 20 ns.
///
/// Sources: Luby and Rackoff, 1988 (the network); Black and Rogaway, 2002 (cycle walking).
pub(super) fn permute(index: u64, size: u64, key: u64) -> u64 {
    const ROUNDS: u64 = 6;
    let bits = (u64::BITS - size.saturating_sub(1).leading_zeros()).max(8);
    // For an odd number of bits the halves differ in size. So the walk takes at most two steps on average.
    let (left_bits, right_bits) = (bits / 2, bits - bits / 2);
    let (left_mask, right_mask) = ((1u64 << left_bits) - 1, (1u64 << right_bits) - 1);
    let mut x = index;
    loop {
        let (mut left, mut right) = (x >> right_bits, x & right_mask);
        for round in 0..ROUNDS {
            let key = key.wrapping_add(round.wrapping_mul(0xD1B5_4A32_D192_ED03));
            if round % 2 == 0 {
                left ^= mix(right ^ key) & left_mask;
            } else {
                right ^= mix(left ^ key) & right_mask;
            }
        }
        x = left << right_bits | right;
        if x < size {
            return x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::permute;

    #[test]
    fn it_is_a_permutation_of_any_size() {
        for size in [1, 2, 3, 7, 255, 256, 257, 1000, 4097, 70_000] {
            for key in [0, 1, 1337, u64::MAX] {
                let mut seen = vec![false; size as usize];
                for index in 0..size {
                    let at = permute(index, size, key) as usize;
                    assert!(!std::mem::replace(&mut seen[at], true), "{at} twice, size {size}, key {key}");
                }
            }
        }
        for index in [0, 1, (1 << 40) - 1] {
            assert!(permute(index, (1 << 40) + 1, 5) <= 1 << 40);
        }
    }

    /// Chi-square tests for many keys: the image of some indices, and the distance between the images of adjacent indices.
    #[test]
    fn it_has_no_favourites() {
        for size in [5u64, 16, 100, 1000] {
            let draws = 200 * size;
            let chi = |count: Vec<u64>| {
                let expected = draws as f64 / count.len() as f64;
                count.iter().map(|c| (*c as f64 - expected).powi(2) / expected).sum::<f64>()
            };
            let limit = |cells: f64| cells + 5.0 * (2.0 * cells).sqrt(); // five standard deviations
            for index in [0, 1, size - 1] {
                let mut count = vec![0u64; size as usize];
                (0..draws).for_each(|key| count[permute(index, size, tallow_text::support::mix(key)) as usize] += 1);
                let found = chi(count);
                assert!(found < limit(size as f64), "index {index} of {size}: chi-square {found}");
            }
            // The distance between the images of adjacent indices is uniform.
            let mut count = vec![0u64; size as usize - 1];
            for key in 0..draws {
                let key = tallow_text::support::mix(key);
                let (a, b) = (permute(0, size, key), permute(1, size, key));
                count[((b + size - a) % size - 1) as usize] += 1;
            }
            let found = chi(count);
            assert!(found < limit(size as f64), "distances of {size}: chi-square {found}");
        }
    }
}
