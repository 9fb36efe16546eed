//! Principal component analysis to two dimensions.

use nalgebra::{DMatrix, SymmetricEigen};

use super::figure::failed;
use crate::Result;

/// The first two principal components of some points.
pub(crate) struct Pca {
    mean: Vec<f64>,
    axes: [Vec<f64>; 2],
    /// Fraction of the variance along each axis.
    pub shares: [f64; 2],
}

impl Pca {
    /// Computes them for points of equal width with finite values. The coordinate of each axis with the largest magnitude is positive, so
    /// the signs are determined.
    pub fn of(points: &[Vec<f32>]) -> Result<Self> {
        let (count, width) = (points.len(), points.first().map_or(0, Vec::len));
        let mean: Vec<f64> = (0..width)
            .map(|column| points.iter().map(|point| f64::from(point[column])).sum::<f64>() / count as f64)
            .collect();
        if count == 0 || width == 0 {
            return Ok(Pca { mean, axes: [Vec::new(), Vec::new()], shares: [0.0; 2] });
        }
        let centred = DMatrix::from_fn(count, width, |row, column| f64::from(points[row][column]) - mean[column]);
        // Both products have the same nonzero eigenvalues, so the smaller one is used.
        let by_points = count <= width;
        let product = if by_points { &centred * centred.transpose() } else { centred.transpose() * &centred };
        let total = product.trace();
        let eigen = SymmetricEigen::try_new(product, f64::EPSILON, 10_000)
            .ok_or_else(|| failed("the principal components do not converge"))?;
        let mut order: Vec<usize> = (0..eigen.eigenvalues.len()).collect();
        order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
        let mut pca = Pca { mean, axes: [vec![0.0; width], vec![0.0; width]], shares: [0.0; 2] };
        for (place, index) in order.into_iter().take(2).enumerate() {
            let value = eigen.eigenvalues[index];
            if value <= total * 1e-12 {
                continue; // all points are equal, or on one line
            }
            let vector = eigen.eigenvectors.column(index).into_owned();
            let axis = if by_points { centred.transpose() * vector / value.sqrt() } else { vector };
            let largest = axis.iter().copied().fold(0.0f64, |most, x| if x.abs() > most.abs() { x } else { most });
            pca.axes[place] = axis.iter().map(|x| x * largest.signum()).collect();
            pca.shares[place] = value / total;
        }
        Ok(pca)
    }

    /// Projects a point on both axes.
    pub fn project(&self, point: &[f32]) -> (f64, f64) {
        let on = |axis: &[f64]| point.iter().zip(&self.mean).zip(axis).map(|((x, m), a)| (f64::from(*x) - m) * a).sum();
        (on(&self.axes[0]), on(&self.axes[1]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// numpy 2.4.6: `x -= x.mean(0); u, s, v = numpy.linalg.svd(x); s**2 / (s**2).sum(); v[:2]` for the points below.
    #[test]
    fn as_numpy() {
        let points = [[1.0f32, 2.0, 0.5], [2.0, 1.0, -0.5], [4.0, 5.0, 1.5], [-3.0, 0.0, 2.0], [0.5, -1.0, 1.0]];
        for points in [points.to_vec(), points[..3].to_vec()] {
            let pca = Pca::of(&points.iter().map(|point| point.to_vec()).collect::<Vec<_>>()).unwrap();
            let (shares, axes): ([f64; 2], [[f64; 3]; 2]) = if points.len() == 5 { FIVE } else { THREE };
            for i in 0..2 {
                assert!((pca.shares[i] - shares[i]).abs() < 1e-9, "{:?}", pca.shares);
                let far = |(a, b): (&f64, &f64)| (a - b).abs() > 1e-9;
                assert!(!pca.axes[i].iter().zip(&axes[i]).any(far), "{:?}", pca.axes[i]);
            }
        }
    }
    const FIVE: ([f64; 2], [[f64; 3]; 2]) = (
        [0.807490661845159, 0.16409198191537025],
        [
            [0.7585477413597537, 0.6478776561198055, -0.06971274473669406],
            [-0.5153138016059133, 0.6619129870329451, 0.5443554752839229],
        ],
    );
    const THREE: ([f64; 2], [[f64; 3]; 2]) = (
        [0.9130434782608696, 0.08695652173913042],
        [
            [0.5202659817144719, 0.7803989725717078, 0.34684398780964804],
            [0.8111071056538128, -0.3244428422615251, -0.48666426339228763],
        ],
    );

    #[test]
    fn points_in_one_place_have_no_axes() {
        assert_eq!(Pca::of(&[]).unwrap().shares, [0.0; 2]);
        let pca = Pca::of(&[vec![1.0, 2.0], vec![1.0, 2.0]]).unwrap();
        assert_eq!((pca.shares, pca.project(&[1.0, 2.0])), ([0.0; 2], (0.0, 0.0)));
    }
}
