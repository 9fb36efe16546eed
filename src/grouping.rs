//! Groups positions by row, by stamps and counting: O(N), without hashing or sorting.

use crate::NO_TOKEN;

/// Buffers that are reused between calls, so that a call costs O(N), not O(V).
#[derive(Default)]
pub(crate) struct Grouping {
    /// For each row: the round in which it was last seen, and its place in the rows of that round.
    stamp: Vec<(u32, u32)>,
    round: u32,
}

/// Rows, and the positions of each.
pub(crate) struct Groups {
    /// The rows, each once, in the order of their first position.
    pub(crate) rows: Vec<u32>,
    /// `positions[starts[i]..starts[i + 1]]` hold row `rows[i]`, ascending.
    pub(crate) starts: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    /// For each position: the place of its row in `rows`, or [`NO_TOKEN`] without one.
    pub(crate) places: Vec<u32>,
}

impl Grouping {
    /// Groups the positions of `ids`. Padding, ids of `vocab_size` or more, and `frozen` rows are left out.
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
        // Counts become ends. Positions are filled in from the back, which turns ends into starts.
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
    /// All rows that are not frozen, each with itself as its only position: for a dense gradient.
    pub(crate) fn of_all_but(frozen: &[bool]) -> Groups {
        let rows: Vec<u32> = (0..frozen.len() as u32).filter(|row| !frozen[*row as usize]).collect();
        let mut places = vec![NO_TOKEN; frozen.len()];
        rows.iter().enumerate().for_each(|(place, row)| places[*row as usize] = place as u32);
        Groups { starts: (0..=rows.len() as u32).collect(), positions: rows.clone(), places, rows }
    }
}
