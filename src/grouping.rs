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
