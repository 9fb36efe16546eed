//! Matrix products through the gemm crate, with sizes checked.

use std::mem::MaybeUninit;

use crate::support::advise_huge_pages;

/// A matrix in row-major order, or its transpose.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// # Panics
    /// If `values` does not hold rows x columns elements.
    pub(super) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "{rows} x {columns}");
        Matrix { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    pub(super) fn t(self) -> Self {
        Matrix {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// Uninitialised space for `len` elements.
pub(super) fn space(len: usize) -> Vec<MaybeUninit<f32>> {
    let mut space = Vec::with_capacity(len);
    // SAFETY: `MaybeUninit` elements need no initialisation, and the capacity was reserved.
    unsafe { space.set_len(len) };
    advise_huge_pages(&mut space);
    space
}

/// The elements of a completely written space.
///
/// # Safety
/// Every element must have been written.
pub(super) unsafe fn written(space: Vec<MaybeUninit<f32>>) -> Vec<f32> {
    let mut space = std::mem::ManuallyDrop::new(space);
    // SAFETY: the same allocation with the same length, capacity and layout. The caller promises that it was written.
    unsafe { Vec::from_raw_parts(space.as_mut_ptr().cast(), space.len(), space.capacity()) }
}

/// Writes a · b into `out`, row-major, on this thread. Returns the written elements.
pub(super) fn fill<'o>(out: &'o mut [MaybeUninit<f32>], a: Matrix, b: Matrix) -> &'o mut [f32] {
    // SAFETY: without `add` the old elements are not read, and all elements are written.
    unsafe {
        multiply(out, false, a, b);
        out.assume_init_mut()
    }
}

/// Adds a · b to `out`, row-major, on this thread.
pub(super) fn add(out: &mut [f32], a: Matrix, b: Matrix) {
    let len = out.len();
    // SAFETY: the elements are initialised, and gemm stores floats only.
    unsafe { multiply(std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), len), true, a, b) }
}

/// # Safety
/// With `add`, every element of `out` must be initialised.
unsafe fn multiply(out: &mut [MaybeUninit<f32>], add: bool, a: Matrix, b: Matrix) {
    assert!(a.columns == b.rows && out.len() == a.rows * b.columns, "shapes of a product");
    let stride = |stride: usize| stride as isize;
    // SAFETY: the three slices have the sizes of their shapes and strides (checked above and in `Matrix::new`). `out` is
    // borrowed mutably, so it overlaps with neither operand.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr().cast::<f32>(),
            1,
            stride(b.columns),
            add,
            a.values.as_ptr(),
            stride(a.column_stride),
            stride(a.row_stride),
            b.values.as_ptr(),
            stride(b.column_stride),
            stride(b.row_stride),
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        )
    }
}
