//! kernels.cu on the host against the arithmetic of the CPU: the same bits.

use candle_core::{DType, Device, Tensor, WithDType};
use candle_nn::ParamsAdamW;
use half::{bf16, f16};

use super::wire::{Due, Entry};
use crate::cuda::on_host::{Kernels, Named, kernels, numbers, shapes, sum};
use crate::cuda::plan::{LONGEST_RUN, Threads, pack, unit_bytes};
use crate::grouping::Grouping;
use crate::optim::history::{History, Step};
use crate::optim::place::Place;
use crate::optim::place::host::{Host, Weight, change_rows, jump};
use crate::optim::rule::Numbers;
use crate::optim::{Replay, kernel};
use crate::rows::Grouped;

type In = *const u32;
type AdamWRows<W, G> = extern "C" fn(*mut W, *mut f32, *mut f32, In, *const G, *const f32, In, In, u32, u64, u64, Step);
type SgdRows<W, G> = extern "C" fn(*mut W, In, *const G, *const f32, In, In, u32, u64, u64, f32);
type Replays<W> = extern "C" fn(*mut W, *mut f32, *mut f32, *const Due, u64, u64, *const Entry, u32);

fn params(t: usize) -> ParamsAdamW {
    // A schedule with jumps, and a decay that is not always the same.
    let lr = if t.is_multiple_of(17) { 3e-2 } else { 1e-3 };
    ParamsAdamW { lr, weight_decay: if t > 60 { 0.1 } else { 0.0 }, ..Default::default() }
}

fn bits<T: WithDType>(values: &[T]) -> Vec<u64> {
    values.iter().map(|value| value.to_f64().to_bits()).collect()
}

/// Weight and moments as they are in the middle of training.
fn state<W: Named>(count: usize) -> (Vec<W>, Vec<f32>, Vec<f32>) {
    let v = numbers::<f32>(count, 7).into_iter().map(|x| x * x * 1e-3).collect();
    (numbers(count, 5), numbers(count, 6), v)
}

fn dense<W: Named + Weight<Wide = f32>>() {
    let Some(kernels) = kernels() else { return };
    for count in [1, 63, 64, 4100] {
        let (w, mut m, mut v) = state::<W>(count);
        let mut grad = numbers::<W>(count, 8);
        // The next moments are below the normal range.
        (m[count / 2], v[count / 2], grad[count / 2]) = (f32::MIN_POSITIVE, f32::MIN_POSITIVE, W::zero());
        let on_host = Tensor::from_slice(&w, count, &Device::Cpu).unwrap();
        let grad_on_host = Tensor::from_slice(&grad, count, &Device::Cpu).unwrap();
        let update = params(70).update(70);
        let step = Step::new(&params(70), 70).to_f32();
        let mut host = Host::<W>::new(&on_host, true);
        (host.m, host.v) = (m.clone(), v.clone());
        host.dense(&on_host, &grad_on_host, &update).unwrap();
        let (expected_m, expected_v) = (host.m, host.v);
        let expected: Vec<W> = on_host.to_vec1().unwrap();

        let (mut w, mut m, mut v) = (w, m, v);
        let pack = pack(&[count]);
        let threads = Threads::over_elements(count / pack);
        type AdamW<W> = extern "C" fn(*mut W, *const W, *mut f32, *mut f32, u64, Step);
        // SAFETY: the kernel's type.
        let adamw: AdamW<W> = unsafe { kernels.function(&format!("adamw_dense_{}_{pack}", W::NAME)) };
        let (w_at, m_at, v_at, grad_at) = (w.as_mut_ptr(), m.as_mut_ptr(), v.as_mut_ptr(), grad.as_ptr());
        kernels.launch(threads, || adamw(w_at, grad_at, m_at, v_at, count as u64, step));
        assert_eq!((bits(&w), bits(&m), bits(&v)), (bits(&expected), bits(&expected_m), bits(&expected_v)));

        Host::<W>::new(&on_host, false).dense(&on_host, &grad_on_host, &0.3.update(1)).unwrap();
        type Sgd<W> = extern "C" fn(*mut W, *const W, u64, f32);
        // SAFETY: the kernel's type.
        let sgd: Sgd<W> = unsafe { kernels.function(&format!("sgd_dense_{}_{pack}", W::NAME)) };
        kernels.launch(threads, || sgd(w_at, grad_at, count as u64, 0.3));
        assert_eq!(bits(&w), bits(&on_host.to_vec1::<W>().unwrap()), "{} {count}", W::NAME);
    }
}

#[test]
fn dense_steps_have_the_cpus_bits() {
    dense::<f32>();
    dense::<bf16>();
    dense::<f16>();
}

/// Sums and updates at once, against sums and then updates.
fn by_rows<W: Named + Weight<Wide = f32>, G: Named>() {
    let Some(kernels) = kernels() else { return };
    let known = [(40, 64, 50, 40), (7, 3, 200, 4), (5, 8, 120, 1), (30, 33, 1, 9), (9, 4, 900, 3), (3, 5, 300, 1)];
    for (rows, columns, count, few) in shapes(&known) {
        let mut ids: Vec<u32> = (0..count as u32).map(|i| i * i % 31 % few).collect();
        ids[count / 2] = crate::NO_TOKEN;
        let grads = numbers::<G>(count * columns, 4);
        let source = Tensor::from_slice(&grads, (count, columns), &Device::Cpu).unwrap();
        let groups = Grouping::default().group(&ids, rows, &[]);
        let parts = groups.parts(LONGEST_RUN);
        let touched = groups.rows.clone();
        // Runs first, then over the runs.
        let mut sums = Vec::new();
        for bounds in groups.starts.windows(2) {
            let positions = &groups.positions[bounds[0] as usize..bounds[1] as usize];
            sums.extend((0..columns).map(|column| {
                let value = |p: &u32| grads[*p as usize * columns + column].to_f64() as f32;
                let run = |run: &[u32]| run.iter().map(value).fold(0.0, |sum, value| sum + value);
                positions.chunks(LONGEST_RUN).map(run).fold(0f32, |sum, run| sum + run)
            }));
        }
        let mut partials = vec![f32::NAN; (parts.part_starts.len() - 1) * columns];
        let part_starts = (&parts.part_starts[..], &parts.part_positions[..], u32::MAX);
        sum::<G, f32, f32>(kernels, &grads, &[], part_starts, None, None, &mut partials, columns, 1.0);
        if partials.is_empty() {
            let values = Grouped { groups, sources: vec![source] }.sum().unwrap().values;
            let values: Vec<f32> = values.flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(bits(&sums), bits(&values), "short runs are summed in the CPU's order");
        }

        let (mut w, mut m, mut v) = state::<W>(rows * columns);
        let (mut expected, mut expected_m, mut expected_v) = (w.clone(), m.clone(), v.clone());
        let step = Step::new(&params(71), 71).to_f32();
        let mut buffer = Vec::new();
        for (row, g) in touched.iter().zip(sums.chunks(columns)) {
            let at = *row as usize * columns..(*row as usize + 1) * columns;
            let (m, v) = (&mut expected_m[at.clone()], &mut expected_v[at.clone()]);
            W::change(&mut expected[at], &mut buffer, |theta| kernel::step(theta, m, v, g, &step));
        }

        let pack = pack(&[columns]);
        let threads = Threads::over_rows(touched.len(), columns / pack);
        let (sizes, split) = ([touched.len() as u64, columns as u64], parts.split);
        let (w_at, m_at, v_at, rows_at, grads_at) =
            (w.as_mut_ptr(), m.as_mut_ptr(), v.as_mut_ptr(), touched.as_ptr(), grads.as_ptr());
        let (starts, positions) = (parts.starts.as_ptr(), parts.positions.as_ptr());
        let partials = partials.as_ptr();
        // SAFETY: the kernel's type.
        let adamw: AdamWRows<W, G> = unsafe { kernels.function(&format!("adamw_rows_{}_{}_{pack}", W::NAME, G::NAME)) };
        kernels.launch(threads, || {
            adamw(w_at, m_at, v_at, rows_at, grads_at, partials, starts, positions, split, sizes[0], sizes[1], step)
        });
        assert_eq!((bits(&w), bits(&m), bits(&v)), (bits(&expected), bits(&expected_m), bits(&expected_v)));

        let on_host = Tensor::from_slice(&expected, (rows, columns), &Device::Cpu).unwrap();
        let sums = Tensor::from_vec(sums, (touched.len(), columns), &Device::Cpu).unwrap();
        change_rows::<W>(&on_host, &touched, &sums, |x, g| x - (g * 0.3 + 0.0)).unwrap();
        // SAFETY: the kernel's type.
        let sgd: SgdRows<W, G> = unsafe { kernels.function(&format!("sgd_rows_{}_{}_{pack}", W::NAME, G::NAME)) };
        kernels.launch(threads, || {
            sgd(w_at, rows_at, grads_at, partials, starts, positions, split, sizes[0], sizes[1], 0.3)
        });
        let expected: Vec<W> = on_host.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(bits(&w), bits(&expected), "{} {} {rows} {columns}", W::NAME, G::NAME);
    }
}

#[test]
fn steps_on_rows_have_the_cpus_bits() {
    by_rows::<f32, f32>();
    by_rows::<bf16, bf16>();
    by_rows::<bf16, f32>();
    by_rows::<f16, f16>();
    by_rows::<f16, f32>();
}

fn replays<W: Named + Weight<Wide = f32>>(kernels: &Kernels, replay: Replay, odd: bool) {
    let (rows, columns) = (23, 70);
    let mut history = History::new();
    for t in 1..=900 {
        let mut params = params(t);
        if odd && t == 300 {
            // A step that the bound says nothing about: 0 / 0 where both moments are zero.
            params.eps = 0.0;
        }
        history.push(Step::new(&params, t).to_f32());
    }
    let now = history.now();
    let due: Vec<(u32, u32)> =
        (0..rows as u32 - 1).map(|i| (i, [0, 5, 250, 299, 300, 640, 880, 899][i as usize % 8])).collect();
    let (mut w, mut m, mut v) = state::<W>(rows * columns);
    // Elements at rest, tiny ones, and one that has only just begun.
    (m[0], v[0], m[1], v[1], m[2], m[columns]) = (0.0, 0.0, 1e-37, 1e-37, -1e-38, 1e-30);
    (w[3], w[4], w[columns + 1]) = (W::zero(), W::from_f64(1e-30), W::from_f64(-0.0));
    let (mut expected, mut expected_m, mut expected_v) = (w.clone(), m.clone(), v.clone());
    let mut buffer = Vec::new();
    for (row, last) in &due {
        let at = *row as usize * columns..(*row as usize + 1) * columns;
        let (m, v, last) = (&mut expected_m[at.clone()], &mut expected_v[at.clone()], *last as usize);
        W::change(&mut expected[at], &mut buffer, |theta| match replay {
            Replay::Truncated { steps } if history.can_jump(last + steps, now) => {
                kernel::replay::<W>([theta, m, v], &history, last, last + steps);
                jump([theta, m, v], &history, last + steps, now);
            }
            _ => kernel::replay::<W>([theta, m, v], &history, last, now),
        });
    }
    let deferred = Due::all(&due, &history, replay, W::DTYPE != DType::F32);
    let entries = Entry::all_from(&history, 0);
    // SAFETY: the kernel's type.
    let function: Replays<W> = unsafe { kernels.function(&format!("replay_{}", W::NAME)) };
    let (w_at, m_at, v_at) = (w.as_mut_ptr(), m.as_mut_ptr(), v.as_mut_ptr());
    let (due_at, entries_at, count) = (deferred.as_ptr(), entries.as_ptr(), deferred.len());
    let unsafe_until = history.unsafe_until as u32;
    kernels.launch(Threads::over_rows(count, columns), || {
        function(w_at, m_at, v_at, due_at, count as u64, columns as u64, entries_at, unsafe_until)
    });
    let differ = |got: &[u64], expected: &[u64]| got.iter().zip(expected).filter(|(a, b)| a != b).count();
    let differing = [
        differ(&bits(&w), &bits(&expected)),
        differ(&bits(&m), &bits(&expected_m)),
        differ(&bits(&v), &bits(&expected_v)),
    ];
    assert_eq!(differing, [0; 3], "{} {replay:?} {odd}", W::NAME);
    assert_ne!(bits(&w[..columns]), bits(&state::<W>(rows * columns).0[..columns]), "rows were moved");
}

#[test]
fn deferred_steps_have_the_cpus_bits() {
    let Some(kernels) = kernels() else { return };
    for replay in [Replay::Exact, Replay::Truncated { steps: 40 }] {
        for odd in [false, true] {
            replays::<f32>(kernels, replay, odd);
            replays::<bf16>(kernels, replay, odd);
            replays::<f16>(kernels, replay, odd);
        }
    }
}

/// Three rows of a table of 2^22 + 5 rows and 1024 or 1025 columns, of whose memory only they exist, and of a table of three.
#[test]
fn rows_beyond_2_to_the_32_elements_are_where_they_are() {
    fn rows_of<W: Named + Weight<Wide = f32>>(
        kernels: &Kernels,
        rows: usize,
        ids: [u32; 3],
        columns: usize,
    ) -> Option<Vec<u64>> {
        fn zeros<T>(len: usize) -> Option<memmap2::MmapMut> {
            let pages = memmap2::MmapOptions::new().len(len * size_of::<T>()).no_reserve_swap().map_anon();
            pages.inspect_err(|error| eprintln!("SKIPPED: no address space for large tables ({error})")).ok()
        }
        let all = rows * columns;
        let (mut w, mut m, mut v) = (zeros::<W>(all)?, zeros::<f32>(all)?, zeros::<f32>(all)?);
        let (w, m, v) = (w.as_mut_ptr().cast::<W>(), m.as_mut_ptr().cast::<f32>(), v.as_mut_ptr().cast::<f32>());
        let (first, first_m, first_v) = state::<W>(3 * columns);
        let grads = numbers::<W>(3 * columns, 8);
        for (i, id) in ids.iter().enumerate() {
            let (from, to) = (i * columns, *id as usize * columns);
            // SAFETY: rows of the table.
            unsafe {
                w.add(to).copy_from_nonoverlapping(first[from..].as_ptr(), columns);
                m.add(to).copy_from_nonoverlapping(first_m[from..].as_ptr(), columns);
                v.add(to).copy_from_nonoverlapping(first_v[from..].as_ptr(), columns);
            }
        }
        let mut history = History::new();
        (1..=9).for_each(|t| history.push(Step::new(&params(t), t).to_f32()));
        let due = Due::all(&ids.map(|id| (id, 2)), &history, Replay::Exact, true);
        let entries = Entry::all_from(&history, 0);
        let pack = pack(&[columns]);
        let unit = unit_bytes(columns * size_of::<W>(), 0);
        let (starts, positions, split, none) = ([0u32, 1, 2, 3], [0u32, 1, 2], 3, std::ptr::null::<f32>());
        let mut out = vec![W::zero(); 3 * columns];
        let (due, entries, grads_at, ids_at) = (due.as_ptr(), entries.as_ptr(), grads.as_ptr(), ids.as_ptr());
        let (starts, positions, out_at) = (starts.as_ptr(), positions.as_ptr(), out.as_mut_ptr());
        let (by_row, c) = (Threads::over_rows(3, columns / pack), columns as u64);
        let units = columns * size_of::<W>() / unit;
        // SAFETY: the kernels' types; all rows are rows of the table.
        unsafe {
            let replay: Replays<W> = kernels.function(&format!("replay_{}", W::NAME));
            kernels.launch(by_row, || replay(w, m, v, due, 3, c, entries, 0));
            let adamw: AdamWRows<W, W> = kernels.function(&format!("adamw_rows_{0}_{0}_{pack}", W::NAME));
            let step = Step::new(&params(9), 9).to_f32();
            let run = || adamw(w, m, v, ids_at, grads_at, none, starts, positions, split, 3, c, step);
            kernels.launch(by_row, run);
            let sgd: SgdRows<W, W> = kernels.function(&format!("sgd_rows_{0}_{0}_{pack}", W::NAME));
            kernels.launch(by_row, || sgd(w, ids_at, grads_at, none, starts, positions, split, 3, c, 0.1));
            type Gather<W> = extern "C" fn(*const W, In, *mut W, u64, u64, u64);
            let gather: Gather<W> = kernels.function(&format!("gather_{unit}"));
            let run = || gather(w, ids_at, out_at, rows as u64, 3, units as u64);
            kernels.launch(Threads::over_rows(3, units), run);
            type Sum<W> = extern "C" fn(*const W, *const f32, In, In, In, *const u64, *mut W, u32, u64, u64, f32);
            let sum: Sum<W> = kernels.function(&format!("sum_rows_{0}_{0}_{pack}", W::NAME));
            let no_count = std::ptr::null();
            let run = || sum(grads_at, none, starts, positions, ids_at, no_count, w, split, 3, c, 1.0);
            kernels.launch(by_row, run);
        }
        let mut found = bits(&out);
        for id in ids {
            // SAFETY: a row of the table.
            found.extend(bits(unsafe { std::slice::from_raw_parts(w.add(id as usize * columns), columns) }));
        }
        Some(found)
    }
    fn compare<W: Named + Weight<Wide = f32>>(columns: usize) {
        let Some(kernels) = kernels() else { return };
        let rows = (1 << 22) + 5;
        let Some(many) = rows_of::<W>(kernels, rows, [0, 1 << 22, rows as u32 - 1], columns) else { return };
        let few = rows_of::<W>(kernels, 3, [0, 1, 2], columns).expect("a small table");
        assert_eq!(many, few, "{} {columns}", W::NAME);
    }
    compare::<f32>(1024);
    compare::<bf16>(1024);
    compare::<bf16>(1025);
}
