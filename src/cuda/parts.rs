//! Splits long groups into parts, for devices on which one thread sums a group.

use crate::grouping::Groups;

/// Sums in two rounds, so that no GPU thread sums more than `longest` gradients sequentially. Groups with more positions are summed
/// in parts first. Smaller groups are summed in one round, in the order of positions.
pub(crate) struct Parts {
    /// Part j sums the gradients at `part_positions[part_starts[j]..part_starts[j + 1]]`.
    pub(crate) part_starts: Vec<u32>,
    pub(crate) part_positions: Vec<u32>,
    /// As in [`Groups`]. Position `split` + j stands for part j.
    pub(crate) starts: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    pub(crate) split: u32,
}

impl Groups {
    pub(crate) fn parts(&self, longest: usize) -> Parts {
        let split = self.places.len() as u32;
        let (mut part_starts, mut part_positions) = (vec![0], Vec::new());
        let (mut starts, mut positions) = (vec![0], Vec::with_capacity(self.positions.len()));
        for bounds in self.starts.windows(2) {
            let group = &self.positions[bounds[0] as usize..bounds[1] as usize];
            if group.len() <= longest {
                positions.extend_from_slice(group);
            } else {
                for part in group.chunks(longest) {
                    positions.push(split + part_starts.len() as u32 - 1);
                    part_positions.extend_from_slice(part);
                    part_starts.push(part_positions.len() as u32);
                }
            }
            starts.push(positions.len() as u32);
        }
        Parts { part_starts, part_positions, starts, positions, split }
    }
}

#[cfg(test)]
mod tests {
    use crate::NO_TOKEN;
    use crate::grouping::Grouping;
    use proptest::prelude::*;

    proptest! {
        /// Every position is summed once, under its own row, ascending; no run is longer than allowed.
        #[test]
        fn every_position_is_in_the_group_of_its_row(
            ids in prop::collection::vec(prop_oneof![0u32..6, Just(NO_TOKEN), Just(9)], 0..300),
            longest in 1usize..20,
        ) {
            let mut grouping = Grouping::default();
            grouping.group(&[1, 2, 3], 6, &[]);
            let frozen = [false, false, true, false, false, false];
            let groups = grouping.group(&ids, 6, &frozen);
            let parts = groups.parts(longest);
            let run = |starts: &[u32], positions: &[u32], i: usize| positions[starts[i] as usize..starts[i + 1] as usize].to_vec();
            for (i, row) in groups.rows.iter().enumerate() {
                let expected: Vec<u32> = (0..ids.len() as u32).filter(|p| ids[*p as usize] == *row).collect();
                prop_assert_eq!(&run(&groups.starts, &groups.positions, i), &expected);
                let first_round = run(&parts.starts, &parts.positions, i);
                let summed: Vec<u32> = first_round
                    .iter()
                    .flat_map(|p| match p.checked_sub(parts.split) {
                        None => vec![*p],
                        Some(part) => run(&parts.part_starts, &parts.part_positions, part as usize),
                    })
                    .collect();
                prop_assert_eq!(&summed, &expected);
                prop_assert_eq!(first_round.iter().all(|p| *p < parts.split), expected.len() <= longest);
            }
            prop_assert!(parts.part_starts.windows(2).all(|b| (b[1] - b[0]) as usize <= longest));
            let mut all: Vec<u32> = ids.iter().copied().filter(|id| *id < 6 && *id != 2).collect();
            all.sort_unstable();
            all.dedup();
            let mut rows = groups.rows.clone();
            rows.sort_unstable();
            prop_assert_eq!(rows, all);
        }
    }
}
