//! Compares the rows of a table before and after training.

use candle_core::{DType, Tensor};

use super::PretrainedTable;
use crate::{Error, Result};

/// Weight decay alone shrinks every value and keeps the direction, up to rounding. A gradient makes some values larger. So a row was
/// not trained if every value shrank and the direction changed by less than this.
const TURNED: f64 = 0.05;

/// How a row differs between two tables.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use tallow::{PretrainedTable, RowChange};
/// let folder = tempfile::tempdir()?;
/// let table = |file: &str, row: [f32; 2]| -> tallow::Result<PretrainedTable> {
///     let path = folder.path().join(file);
///     Tensor::new(&[row], &Device::Cpu)?.save_safetensors("wte.weight", &path)?;
///     PretrainedTable::open(&path, None)
/// };
/// let (before, after) = (table("before.safetensors", [1., 2.])?, table("after.safetensors", [0.5, 1.])?);
/// assert_eq!(after.changes_since(&before)?.changes, [RowChange::Shrunk]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowChange {
    /// The values are equal.
    Equal,
    /// Every value is closer to zero, and the direction is the same: only weight decay.
    Shrunk,
    /// The row was trained.
    Moved,
}

/// The differences of the rows that two tables have in common.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use tallow::{PretrainedTable, RowChange};
/// let folder = tempfile::tempdir()?;
/// let table = |file: &str, rows: [[f32; 2]; 2]| -> tallow::Result<PretrainedTable> {
///     let path = folder.path().join(file);
///     Tensor::new(&rows, &Device::Cpu)?.save_safetensors("wte.weight", &path)?;
///     PretrainedTable::open(&path, None)
/// };
/// let before = table("before.safetensors", [[1., 2.], [3., 4.]])?;
/// let changes = table("after.safetensors", [[1., 2.], [4., 3.]])?.changes_since(&before)?;
/// assert_eq!(changes.moved(), [1]);
/// assert_eq!(changes.count(RowChange::Equal), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct RowChanges {
    /// L2 norms of the rows before.
    pub norms_before: Vec<f32>,
    /// L2 distances between the rows before and after.
    pub distances: Vec<f32>,
    /// Kind of change of each row.
    pub changes: Vec<RowChange>,
}

impl RowChanges {
    /// Number of rows with this kind of change.
    pub fn count(&self, what: RowChange) -> usize {
        self.changes.iter().filter(|change| **change == what).count()
    }

    /// The rows that were trained, by decreasing distance.
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
    /// One pass over the table, and about 16 MiB of memory.
    pub fn norms(&self) -> Result<Vec<f32>> {
        let mut norms = Vec::with_capacity(self.vocab_size());
        for block in self.blocks() {
            norms.extend(values(&block?.1)?.chunks_exact(self.d_model()).map(|row| norm(row) as f32));
        }
        Ok(norms)
    }

    /// Compares with the table before training. Rows that only one table has are left out.
    ///
    /// # Errors
    /// - [`Error::Config`]: the tables have different widths.
    /// - those of reading.
    ///
    /// # Cost
    /// One pass over both tables, and about 32 MiB of memory plus 9 bytes per row.
    pub fn changes_since(&self, before: &PretrainedTable) -> Result<RowChanges> {
        if self.d_model() != before.d_model() {
            return Err(Error::Config(format!(
                "{} has {} columns and {} has {}: they are not the same table before and after training",
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
    // Equal NaNs count as equal.
    if new.iter().zip(old).all(|(new, old)| new == old || new.to_bits() == old.to_bits()) {
        return (RowChange::Equal, 0.0);
    }
    let pairs = || new.iter().zip(old).map(|(new, old)| (f64::from(*new), f64::from(*old)));
    let distance = pairs().map(|(new, old)| (new - old).powi(2)).sum::<f64>().sqrt();
    let along = pairs().map(|(new, old)| new * old).sum::<f64>() / norm(old).powi(2);
    let beside = pairs().map(|(new, old)| (new - along * old).powi(2)).sum::<f64>().sqrt();
    // A row that was zero, or is not finite, has no direction: it counts as moved.
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
