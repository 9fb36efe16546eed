//! Gradients of look-ups, grouped by row → one sum per row.

use candle_core::{CpuStorage, DType, Device, Storage, Tensor, WithDType};

use super::RowGradients;
use crate::grouping::Groups;
use crate::support::{advise_huge_pages, parallel};
use crate::{Error, NO_TOKEN, Result};

/// Gradients of look-ups, one tensor (N, C) for each, and their positions grouped by row.
pub(crate) struct Grouped {
    pub(crate) groups: Groups,
    pub(crate) sources: Vec<Tensor>,
}

impl Grouped {
    /// All gradients as one tensor (N, C), in their common dtype, or in f32 if dtypes differ.
    pub(crate) fn joined(&self) -> Result<Tensor> {
        match &self.sources[..] {
            [source] => Ok(source.clone()),
            sources => in_f32(sources),
        }
    }

    pub(crate) fn sum(self) -> Result<RowGradients> {
        let Grouped { groups, sources } = &self;
        let values = match sources[0].device() {
            Device::Cpu => sum_on_host(groups, sources)?,
            // Backends reject zero-size allocations, but a view may be empty.
            device if groups.rows.is_empty() => {
                Tensor::zeros((1, sources[0].dim(1)?), DType::F32, device)?.narrow(0, 0, 0)?
            }
            Device::Cuda(device) => crate::cuda::sum_rows(device, groups, &self.joined()?)?,
            device => sum_on_device(groups, sources, device)?,
        };
        Ok(RowGradients { rows: self.groups.rows, values })
    }
}

impl Grouped {
    /// The sums in the order of `rows`, which are ascending and have every row of `self`. Zeros for rows without a gradient.
    pub(crate) fn sum_over(self, rows: &[u32]) -> Result<Tensor> {
        let Grouped { groups, sources } = &self;
        let device = sources[0].device().clone();
        let Some(last) = rows.last().filter(|_| !groups.rows.is_empty()) else {
            return Ok(Tensor::zeros((rows.len(), sources[0].dim(1)?), DType::F32, &device)?);
        };
        let mut place = vec![NO_TOKEN; *last as usize + 1];
        groups.rows.iter().zip(0..).for_each(|(row, at)| place[*row as usize] = at);
        let places = rows.iter().map(|row| place[*row as usize]);
        if !device.is_cpu() {
            let places = Tensor::new(places.collect::<Vec<u32>>(), &device)?;
            return Ok(self.sum()?.values.index_select(&places, 0)?); // candle selects zeros for NO_TOKEN
        }
        // The same groups in another order, with empty ones between them.
        let (mut starts, mut positions) = (vec![0], Vec::with_capacity(groups.positions.len()));
        for at in places {
            if at != NO_TOKEN {
                let group = groups.starts[at as usize] as usize..groups.starts[at as usize + 1] as usize;
                positions.extend_from_slice(&groups.positions[group]);
            }
            starts.push(positions.len() as u32);
        }
        let groups = Groups { rows: rows.to_vec(), starts, positions, places: Vec::new() }; // places are for devices
        sum_on_host(&groups, sources)
    }
}

/// All gradients, concatenated, in f32.
fn in_f32(sources: &[Tensor]) -> Result<Tensor> {
    let some = sources.iter().filter(|grad| grad.elem_count() > 0);
    let grads = some.map(|grad| grad.to_dtype(DType::F32)).collect::<candle_core::Result<Vec<_>>>()?;
    Ok(Tensor::cat(&grads, 0)?)
}

/// Sums in f32, in the order of positions: the order of candle's `index_add`, for any number of threads.
fn sum_on_host(groups: &Groups, sources: &[Tensor]) -> Result<Tensor> {
    let columns = sources[0].dim(1)?;
    let guards: Vec<_> = sources.iter().map(|grad| grad.storage_and_layout()).collect();
    let mut first = 0;
    let mut slices = Vec::new();
    for (source, (storage, layout)) in sources.iter().zip(&guards) {
        slices.push((first, Floats::of(storage, layout.start_offset())?));
        first += source.dim(0)?;
    }
    let count = groups.rows.len();
    let mut values = vec![0f32; count * columns];
    advise_huge_pages(&mut values);
    let sum = |(first, out): (usize, &mut [f32])| {
        for (place, out) in (first..).zip(out.chunks_exact_mut(columns)) {
            let positions = groups.starts[place] as usize..groups.starts[place + 1] as usize;
            for position in &groups.positions[positions] {
                let position = *position as usize;
                let source = slices.partition_point(|(first, _)| *first <= position) - 1;
                // An empty source has the same first position as the next one, which is later in the list.
                let (first, floats) = &slices[source];
                floats.add_to(out, (position - first) * columns);
            }
        }
    };
    let rows_a_task = (1 << 14) / columns.max(1) + 1;
    let tasks = values.chunks_mut(rows_a_task * columns.max(1)).enumerate().map(|(i, out)| (i * rows_a_task, out));
    if groups.positions.len() * columns < 1 << 15 {
        tasks.for_each(sum);
    } else {
        parallel::for_each(tasks, sum);
    }
    Ok(Tensor::from_vec(values, (count, columns), &Device::Cpu)?)
}

enum Floats<'a> {
    F32(&'a [f32]),
    BF16(&'a [half::bf16]),
    F16(&'a [half::f16]),
}

impl<'a> Floats<'a> {
    fn of(storage: &'a Storage, offset: usize) -> Result<Self> {
        match storage {
            Storage::Cpu(CpuStorage::F32(values)) => Ok(Floats::F32(&values[offset..])),
            Storage::Cpu(CpuStorage::BF16(values)) => Ok(Floats::BF16(&values[offset..])),
            Storage::Cpu(CpuStorage::F16(values)) => Ok(Floats::F16(&values[offset..])),
            _ => Err(Error::Config("row-sparse gradients are f32, bf16 or f16".to_string())),
        }
    }

    fn add_to(&self, out: &mut [f32], at: usize) {
        fn add<T: WithDType>(out: &mut [f32], values: &[T], to_f32: impl Fn(T) -> f32) {
            out.iter_mut().zip(values).for_each(|(sum, value)| *sum += to_f32(*value));
        }
        match self {
            Floats::F32(values) => add(out, &values[at..at + out.len()], |v| v),
            Floats::BF16(values) => add(out, &values[at..at + out.len()], half::bf16::to_f32),
            Floats::F16(values) => add(out, &values[at..at + out.len()], half::f16::to_f32),
        }
    }
}

/// The same sums by candle's operations, for gradients on a device.
fn sum_on_device(groups: &Groups, sources: &[Tensor], device: &Device) -> Result<Tensor> {
    let grads = in_f32(sources)?;
    let places = Tensor::from_slice(&groups.places, groups.places.len(), device)?;
    Ok(Tensor::zeros((groups.rows.len(), grads.dim(1)?), DType::F32, device)?.index_add(&places, &grads, 0)?)
}
