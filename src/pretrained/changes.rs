//! How far rows moved between two tables: what training touched.

use candle_core::{DType, Tensor};

use super::PretrainedTable;
use crate::{Error, Result};

/// Weight decay alone shrinks every value and leaves the direction, up to rounding. A row whose every value shrank, and which has
/// turned by less than this, was not trained: a gradient makes some values larger.
const TURNED: f64 = 0.05;

/// What happened to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowChange {
    /// Nothing: its values are equal.
    Equal,
    /// Every value came nearer to zero, and the row points where it pointed: weight decay alone.
    Shrunk,
    /// It was trained.
    Moved,
}

/// The rows that two tables have both, one by one.
#[derive(Clone, Debug, PartialEq)]
pub struct RowChanges {
    /// L2 norms of the rows before.
    pub norms_before: Vec<f32>,
    /// L2 distances that they moved.
    pub distances: Vec<f32>,
    /// What happened to each.
    pub changes: Vec<RowChange>,
}

impl RowChanges {
    /// How many rows this happened to.
    pub fn count(&self, what: RowChange) -> usize {
        self.changes.iter().filter(|change| **change == what).count()
    }

    /// The rows that were trained, those that moved farthest first.
    pub fn moved(&self) -> Vec<u32> {
        let moved = |id: &u32| self.changes[*id as usize] == RowChange::Moved;
        let mut ids: Vec<u32> = (0..self.changes.len() as u32).filter(moved).collect();
        ids.sort_by(|a, b| self.distances[*b as usize].total_cmp(&self.distances[*a as usize]).then(a.cmp(b)));
        ids
    }
}

impl PretrainedTable {
    /// The L2 norm of every row.
    ///
    /// # Errors
    /// Those of reading.
    ///
    /// # Cost
    /// One pass, some 16 MiB.
    pub fn norms(&self) -> Result<Vec<f32>> {
        let mut norms = Vec::with_capacity(self.vocab_size());
        for block in self.blocks() {
            norms.extend(values(&block?.1)?.chunks_exact(self.d_model()).map(|row| norm(row) as f32));
        }
        Ok(norms)
    }

    /// Compares with the table that this one was before. Where one has more rows, those are left out.
    ///
    /// # Errors
    /// - [`Error::Config`]: the tables have different widths.
    /// - those of reading.
    ///
    /// # Cost
    /// One pass over both, some 32 MiB; 9 bytes a row.
    pub fn changes_since(&self, before: &PretrainedTable) -> Result<RowChanges> {
        if self.d_model() != before.d_model() {
            return Err(Error::Config(format!(
                "{} has {} columns and {} has {}: these are not one table before and after",
                self.path().display(),
                self.d_model(),
                before.path().display(),
                before.d_model()
            )));
        }
        let rows = self.vocab_size().min(before.vocab_size());
        let mut all = RowChanges { norms_before: Vec::new(), distances: Vec::new(), changes: Vec::new() };
        let step = (super::BLOCK_VALUES / self.d_model()).max(1);
        for from in (0..rows).step_by(step) {
            let range = from..rows.min(from + step);
            let (new, old) = (values(&self.block(range.clone())?)?, values(&before.block(range)?)?);
            for (new, old) in new.chunks_exact(self.d_model()).zip(old.chunks_exact(self.d_model())) {
                let (change, distance) = change(new, old);
                all.norms_before.push(norm(old) as f32);
                all.distances.push(distance as f32);
                all.changes.push(change);
            }
        }
        Ok(all)
    }
}

fn values(block: &Tensor) -> Result<Vec<f32>> {
    Ok(block.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

fn norm(row: &[f32]) -> f64 {
    row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

fn change(new: &[f32], old: &[f32]) -> (RowChange, f64) {
    // The same NaN is no movement.
    if new.iter().zip(old).all(|(new, old)| new == old || new.to_bits() == old.to_bits()) {
        return (RowChange::Equal, 0.0);
    }
    let pairs = || new.iter().zip(old).map(|(new, old)| (f64::from(*new), f64::from(*old)));
    let distance = pairs().map(|(new, old)| (new - old).powi(2)).sum::<f64>().sqrt();
    let along = pairs().map(|(new, old)| new * old).sum::<f64>() / norm(old).powi(2);
    let beside = pairs().map(|(new, old)| (new - along * old).powi(2)).sum::<f64>().sqrt();
    // A row that was zero, or is no number, has no direction: it moved.
    let nearer = pairs().all(|(new, old)| new.abs() <= old.abs() && new * old >= 0.0);
    let shrunk = nearer && along > 0.0 && beside < TURNED * norm(new);
    (if shrunk { RowChange::Shrunk } else { RowChange::Moved }, distance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decay_is_told_from_training() {
        let old = [0.1f32, -0.2, 0.2];
        assert_eq!(change(&old, &old), (RowChange::Equal, 0.0));
        for (decay, steps) in [(1e-5, 5000), (1e-6, 50_000), (1e-3, 1)] {
            let decayed = old.map(|value| (0..steps).fold(value, |value, _| value * (1.0 - decay)));
            let (what, distance) = change(&decayed, &old);
            assert_eq!(what, RowChange::Shrunk);
            let expected = 0.3 * (1.0 - (-f64::from(decay) * f64::from(steps)).exp());
            assert!((distance - expected).abs() < 1e-2 * expected.max(0.003), "{distance} {expected}");
        }
        assert_eq!(change(&[0.1, -0.2, 0.2001], &old).0, RowChange::Moved);
        assert_eq!(change(&[0.05, -0.19, 0.05], &old).0, RowChange::Moved, "smaller, and turned");
        assert_eq!(change(&[0.0, 0.0, 1.0], &[0.0; 3]), (RowChange::Moved, 1.0));
        assert_eq!(change(&[-0.1, 0.2, -0.2], &old).0, RowChange::Moved, "it turned round");
        assert_eq!(change(&[f32::NAN, 0.0, 0.0], &old).0, RowChange::Moved);
        assert_eq!(change(&[f32::NAN, 0.0, 0.0], &[f32::NAN, -0.0, 0.0]).0, RowChange::Equal);
    }
}
