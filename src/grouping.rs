//! Positions grouped by the row that they hold, by stamps and counting: O(N), no hashing, no sorting.

use crate::NO_TOKEN;

/// What grouping remembers from one call to the next, so that it costs what the batch costs.
#[derive(Default)]
pub(crate) struct Grouping {
    /// By row: the number of the round in which it was last seen, and its place among the rows then.
    stamp: Vec<(u32, u32)>,
    round: u32,
}

/// Rows, and where each is found.
pub(crate) struct Groups {
    /// The rows, each once, in the order in which they first occur.
    pub(crate) rows: Vec<u32>,
    /// `positions[starts[i]..starts[i + 1]]` hold row `rows[i]`, ascending.
    pub(crate) starts: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    /// By position: the place of its row, or [`NO_TOKEN`] where it has none.
    pub(crate) places: Vec<u32>,
}

impl Grouping {
    /// Groups the positions of `ids`; those of padding, of no row below `vocab_size` and of `frozen` rows are left out.
    pub(crate) fn group(&mut self, ids: &[u32], vocab_size: usize, frozen: &[bool]) -> Groups {
        if self.stamp.len() != vocab_size || self.round == u32::MAX {
            self.stamp = vec![(0, 0); vocab_size];
            self.round = 0;
        }
        self.round += 1;
        let (mut rows, mut starts, mut places) = (Vec::new(), Vec::new(), Vec::with_capacity(ids.len()));
        for id in ids {
            let row = *id as usize;
            if *id == NO_TOKEN || row >= vocab_size || frozen.get(row) == Some(&true) {
                places.push(NO_TOKEN);
                continue;
            }
            if self.stamp[row].0 != self.round {
                self.stamp[row] = (self.round, rows.len() as u32);
                rows.push(*id);
                starts.push(0);
            }
            let place = self.stamp[row].1;
            starts[place as usize] += 1;
            places.push(place);
        }
        // Counts become ends, then starts, while positions are filled in from behind.
        let mut sum = 0;
        for count in &mut starts {
            sum += *count;
            *count = sum;
        }
        starts.push(sum);
        let mut positions = vec![0; sum as usize];
        for (position, place) in places.iter().enumerate().rev().filter(|(_, place)| **place != NO_TOKEN) {
            let start: &mut u32 = &mut starts[*place as usize];
            *start -= 1;
            positions[*start as usize] = position as u32;
        }
        Groups { rows, starts, positions, places }
    }
}

impl Groups {
    /// Every row of a dense gradient that is not frozen, each at its own position.
    pub(crate) fn of_all_but(frozen: &[bool]) -> Groups {
        let rows: Vec<u32> = (0..frozen.len() as u32).filter(|row| !frozen[*row as usize]).collect();
        let mut places = vec![NO_TOKEN; frozen.len()];
        rows.iter().enumerate().for_each(|(place, row)| places[*row as usize] = place as u32);
        Groups { starts: (0..=rows.len() as u32).collect(), positions: rows.clone(), places, rows }
    }
}

/// Sums in two rounds, so that no thread of a GPU adds more than `longest` rows in a row: a common token's positions are summed
/// in parts first. Fewer positions are summed in one round, in their order.
#[cfg(any(feature = "cuda", test))]
pub(crate) struct Parts {
    /// Part j sums the gradients at `part_positions[part_starts[j]..part_starts[j + 1]]`.
    pub(crate) part_starts: Vec<u32>,
    pub(crate) part_positions: Vec<u32>,
    /// As in [`Groups`]; a position from `split` on is the part of that number.
    pub(crate) starts: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    pub(crate) split: u32,
}

#[cfg(any(feature = "cuda", test))]
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
    use super::*;
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
