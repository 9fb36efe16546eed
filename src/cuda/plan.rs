//! The launch configuration of kernels, and the width of their loads.

/// Threads of a block.
const THREADS: usize = 256;

/// No GPU thread sums more than this many gradients sequentially. A row with more is summed in two rounds.
pub(crate) const LONGEST_RUN: usize = 128;

/// Blocks, and the threads of one along x and y.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Threads {
    pub(crate) blocks: u32,
    pub(crate) x: u32,
    pub(crate) y: u32,
}

impl Threads {
    /// `count` rows of `packs` loads each. Threads per row are chosen so that each thread has about four loads in flight.
    pub(crate) fn over_rows(count: usize, packs: usize) -> Threads {
        let x = packs.div_ceil(4).next_power_of_two().clamp(packs.next_power_of_two().min(32), THREADS);
        let y = THREADS / x;
        Threads { blocks: count.div_ceil(y) as u32, x: x as u32, y: y as u32 }
    }

    pub(crate) fn over_elements(packs: usize) -> Threads {
        Threads { blocks: packs.div_ceil(THREADS) as u32, x: THREADS as u32, y: 1 }
    }
}

/// The largest of 16, 8, 4 and 2 bytes that divides a row's bytes and its offset.
pub(crate) fn unit_bytes(row: usize, offset: usize) -> usize {
    [16, 8, 4].into_iter().find(|unit| row.is_multiple_of(*unit) && offset.is_multiple_of(*unit)).unwrap_or(2)
}

/// How many adjacent elements a thread loads at once: all of these (columns, offsets) are multiples of it.
pub(crate) fn pack(multiples: &[usize]) -> usize {
    if multiples.iter().all(|n| n.is_multiple_of(4)) { 4 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_cover_every_row_and_element() {
        for (count, packs) in [(1, 1), (7, 3), (32768, 256), (5, 16), (9, 4096), (100_000, 63)] {
            let threads = Threads::over_rows(count, packs);
            assert_eq!(threads.x * threads.y, 256, "{count} {packs}");
            assert!(threads.blocks as usize * threads.y as usize >= count);
        }
        assert_eq!(Threads::over_rows(32768, 256), Threads { blocks: 8192, x: 64, y: 4 });
        assert_eq!(Threads::over_rows(10, 16), Threads { blocks: 1, x: 16, y: 16 });
        assert_eq!(Threads::over_elements(257).blocks, 2);
        assert_eq!(
            [(4096, 0), (12, 0), (256, 8), (6, 0), (4096, 4)].map(|(row, offset)| unit_bytes(row, offset)),
            [16, 4, 8, 2, 4]
        );
        assert_eq!((pack(&[64, 0, 128]), pack(&[64, 2]), pack(&[63])), (4, 1, 1));
    }
}
