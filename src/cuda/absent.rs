//! The functions of this module in a build without the feature `cuda`. They are never called, because no CUDA device can be opened.

use candle_core::{CudaDevice, CudaStorage, Layout, Result, Shape, Tensor, bail};

use crate::grouping::Groups;

fn no_cuda<T>() -> Result<T> {
    bail!("this build has no CUDA: it needs the feature `cuda`")
}

pub(crate) fn check(_: &CudaDevice) -> Result<()> {
    no_cuda()
}

pub(crate) fn keep_memory(_: &CudaDevice, _: bool) -> Result<()> {
    no_cuda()
}

pub(crate) fn gather(_: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout, _: Option<f64>) -> Result<CudaStorage> {
    no_cuda()
}

pub(crate) fn dense_gradient(_: &CudaDevice, _: &Tensor, _: &Tensor, _: &Shape, _: f64) -> Result<Tensor> {
    no_cuda()
}

pub(crate) fn sum_rows(_: &CudaDevice, _: &Groups, _: &Tensor) -> Result<Tensor> {
    no_cuda()
}
