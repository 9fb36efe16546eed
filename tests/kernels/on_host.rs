//! kernels.cu on the host: compiled as C++ and called thread by thread, against the Rust that it has to equal. No GPU is needed to find a wrong
//! index or a wrong rounding. Tests of this module are left out, with a message, where there is no C++ compiler.

use std::ffi::{CString, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use super::plan::Threads;

/// The compiled kernels; `None` without a compiler.
pub(crate) fn kernels() -> Option<&'static Kernels> {
    static KERNELS: OnceLock<Option<Kernels>> = OnceLock::new();
    KERNELS.get_or_init(Kernels::compile).as_ref()
}

pub(crate) struct Kernels(*mut c_void);

// SAFETY: a handle of the dynamic linker, which any thread may use.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

impl Kernels {
    fn compile() -> Option<Kernels> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels/host.cpp");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let library = folder.path().join("kernels.so");
        let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
        let output = Command::new(compiler)
            .args(["-std=c++17", "-O2", "-ffp-contract=off", "-Wno-unknown-pragmas", "-shared", "-fPIC"])
            // A load that a GPU would refuse ends the test.
            .args(["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error", "-o"])
            .args([&library, &source])
            .output();
        let without = |why: &str| {
            let required = std::env::var("TALLOW_REQUIRE").is_ok_and(|all| all.split(',').any(|one| one == "c++"));
            assert!(!required, "TALLOW_REQUIRE asks for a C++ compiler: {why}");
            eprintln!("SKIPPED: no C++ compiler ({why}): the CUDA kernels are not checked on the host");
            None
        };
        match output {
            Err(error) => return without(&error.to_string()),
            Ok(output) if output.status.success() => (),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                if said.contains("needs a compiler with _Float16") {
                    return without("this one has no _Float16");
                }
                panic!("kernels.cu does not compile as C++: {said}");
            }
        }
        let path = CString::new(library.as_os_str().as_encoded_bytes()).expect("a path without NUL");
        // SAFETY: the library runs nothing when it is loaded.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null(), "the compiled kernels cannot be loaded");
        Some(Kernels(handle))
    }

    /// The function of this name.
    ///
    /// # Safety
    /// `F` is the type of a pointer to it.
    pub(crate) unsafe fn function<F: Copy>(&self, name: &str) -> F {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        let symbol = CString::new(name).expect("a name without NUL");
        // SAFETY: the handle is open as long as the process lives.
        let address = unsafe { libc::dlsym(self.0, symbol.as_ptr()) };
        assert!(!address.is_null(), "kernels.cu has no {name}");
        // SAFETY: as promised by the caller.
        unsafe { std::mem::transmute_copy(&address) }
    }

    /// Calls `thread` once for every thread of a launch, the last ones first: nothing may depend on their order. Launches of
    /// tests in parallel wait for each other.
    pub(crate) fn launch(&self, threads: Threads, thread: impl Fn()) {
        static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // SAFETY: this_thread of host.cpp has this type.
        let this_thread: extern "C" fn(u32, u32, u32, u32, u32) = unsafe { self.function("this_thread") };
        for block in (0..threads.blocks).rev() {
            for y in (0..threads.y).rev() {
                for x in (0..threads.x).rev() {
                    this_thread(block, x, y, threads.x, threads.y);
                    thread();
                }
            }
        }
    }
}

/// What a kernel's name says of a type.
pub(crate) trait Named: candle_core::WithDType {
    const NAME: &'static str;
}
impl Named for f32 {
    const NAME: &'static str = "f32";
}
impl Named for f64 {
    const NAME: &'static str = "f64";
}
impl Named for half::bf16 {
    const NAME: &'static str = "bf16";
}
impl Named for half::f16 {
    const NAME: &'static str = "f16";
}

/// (rows, columns, positions, distinct ids): what is easily wrong, and twenty of no particular kind.
pub(crate) fn shapes(known: &[(usize, usize, usize, u32)]) -> Vec<(usize, usize, usize, u32)> {
    let draw =
        |i: u64, below: u64| 1 + (tallow_text::support::mix(i.wrapping_mul(0x9e37_79b9_7f4a_7c15)) % below) as usize;
    let any = (0..20).map(|i| {
        let rows = draw(4 * i, 70);
        (rows, draw(4 * i + 1, 150), 2 + draw(4 * i + 2, 400), draw(4 * i + 3, rows as u64) as u32)
    });
    known.iter().copied().chain(any).collect()
}

/// Numbers without a pattern, small and large, of both signs.
pub(crate) fn numbers<T: Named>(count: usize, seed: u64) -> Vec<T> {
    let draw = |i: usize| {
        let bits = tallow_text::support::mix(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i as u64);
        (bits as f64 / u64::MAX as f64 - 0.5) * if bits.is_multiple_of(7) { 1e-3 } else { 2.0 }
    };
    (0..count).map(|i| T::from_f64(draw(i))).collect()
}

/// One launch of sum_rows.
#[allow(clippy::too_many_arguments)]
pub(crate) fn sum<G: Named, O: Named, A: Named>(
    kernels: &Kernels,
    grads: &[G],
    partials: &[A],
    (starts, positions, split): (&[u32], &[u32], u32),
    targets: Option<&[u32]>,
    taken: Option<&u64>,
    out: &mut [O],
    columns: usize,
    scale: f64,
) {
    let pack = super::plan::pack(&[columns]);
    let name = format!("sum_rows_{}_{}_{pack}", G::NAME, O::NAME);
    let targets = targets.map_or(std::ptr::null(), |targets| targets.as_ptr());
    let taken = taken.map_or(std::ptr::null(), std::ptr::from_ref);
    let (grads, partials, starts_at, positions) =
        (grads.as_ptr(), partials.as_ptr(), starts.as_ptr(), positions.as_ptr());
    let (out, count) = (out.as_mut_ptr(), starts.len() - 1);
    let threads = Threads::over_rows(count, columns / pack);
    macro_rules! run {
        ($scale:ty) => {{
            type Sum<G, A, O> = extern "C" fn(
                *const G,
                *const A,
                *const u32,
                *const u32,
                *const u32,
                *const u64,
                *mut O,
                u32,
                u64,
                u64,
                $scale,
            );
            // SAFETY: the kernel's type.
            let sum: Sum<G, A, O> = unsafe { kernels.function(&name) };
            kernels.launch(threads, || {
                sum(
                    grads,
                    partials,
                    starts_at,
                    positions,
                    targets,
                    taken,
                    out,
                    split,
                    count as u64,
                    columns as u64,
                    scale as $scale,
                )
            });
        }};
    }
    if A::NAME == "f64" { run!(f64) } else { run!(f32) }
}

#[test]
fn every_committed_entry_point_is_one_of_the_source() {
    let Some(kernels) = kernels() else { return };
    let ptx = include_str!("../../src/cuda/kernels.ptx");
    let names: Vec<&str> =
        ptx.lines().filter_map(|line| line.strip_prefix(".visible .entry ")?.strip_suffix('(')).collect();
    assert_eq!(names.len(), 59, "{names:?}");
    for name in names {
        // SAFETY: the address is only looked at.
        unsafe { kernels.function::<*const c_void>(name) };
    }
    let target = ptx.lines().find(|line| line.starts_with(".target"));
    assert_eq!(target, Some(".target sm_80"));
}

mod look_ups {
    use super::*;
    use crate::cuda::plan::{LONGEST_RUN, unit_bytes};
    use crate::grouping::Grouping;
    use crate::{NO_TOKEN, Scale, TokenEmbedding, TokenEmbeddingConfig};
    use candle_core::{Device, Tensor, Var};
    use candle_nn::{VarBuilder, VarMap};
    use half::{bf16, f16};

    fn bits<T: Named>(values: &[T]) -> Vec<u64> {
        values.iter().map(|value| value.to_f64().to_bits()).collect()
    }

    /// The layer on the CPU.
    fn layer<T: Named>(table: &[T], columns: usize, scale: Option<f64>) -> (Var, TokenEmbedding) {
        let table = Tensor::from_slice(table, (table.len() / columns, columns), &Device::Cpu).unwrap();
        let var = Var::from_tensor(&table).unwrap();
        let varmap = VarMap::new();
        varmap.data().lock().unwrap().insert("weight".to_string(), var.clone());
        let cfg = TokenEmbeddingConfig {
            vocab_size: table.dim(0).unwrap(),
            d_model: columns,
            scale: scale.map_or(Scale::None, Scale::Constant),
            ..Default::default()
        };
        (var, TokenEmbedding::new(&cfg, VarBuilder::from_varmap(&varmap, T::DTYPE, &Device::Cpu)).unwrap())
    }

    fn gathers<T: Named>() {
        let Some(kernels) = kernels() else { return };
        let known = [(5, 64, 9, 5), (300, 7, 40, 9), (3, 1, 1, 1), (17, 96, 33, 5), (4, 1030, 6, 4), (9, 12, 700, 3)];
        for (rows, columns, count, _) in shapes(&known) {
            let table: Vec<T> = numbers(rows * columns, 1);
            let mut ids: Vec<u32> = (0..count as u32).map(|i| i * 7919 % rows as u32).collect();
            (ids[0], ids[count / 2]) = (rows as u32 - 1, NO_TOKEN);
            let ids_on_host = Tensor::from_slice(&ids, count, &Device::Cpu).unwrap();
            for scale in [None, Some(0.37)] {
                let expected = layer(&table, columns, scale).1.lookup(&ids_on_host).unwrap();
                let expected: Vec<T> = expected.flatten_all().unwrap().to_vec1().unwrap();
                let mut out = vec![T::from_f64(9.0); count * columns];
                let unit = unit_bytes(columns * size_of::<T>(), 0);
                let units = if scale.is_some() { columns } else { columns * size_of::<T>() / unit };
                let sizes = [rows, count, units].map(|n| n as u64);
                let (table, ids, out_at) = (table.as_ptr(), ids.as_ptr(), out.as_mut_ptr());
                let threads = Threads::over_rows(count, units);
                // SAFETY: the types and sizes are those of the kernels.
                unsafe {
                    match scale {
                        None => {
                            type Gather<T> = extern "C" fn(*const T, *const u32, *mut T, u64, u64, u64);
                            let gather: Gather<T> = kernels.function(&format!("gather_{unit}"));
                            kernels.launch(threads, || gather(table, ids, out_at, sizes[0], sizes[1], sizes[2]));
                        }
                        Some(scale) if T::NAME == "f64" => {
                            type Gather<T> = extern "C" fn(*const T, *const u32, *mut T, u64, u64, u64, f64);
                            let gather: Gather<T> = kernels.function("gather_scaled_f64");
                            kernels.launch(threads, || gather(table, ids, out_at, sizes[0], sizes[1], sizes[2], scale));
                        }
                        Some(scale) => {
                            type Gather<T> = extern "C" fn(*const T, *const u32, *mut T, u64, u64, u64, f32);
                            let gather: Gather<T> = kernels.function(&format!("gather_scaled_{}", T::NAME));
                            let scale = T::from_f64(scale).to_f64() as f32;
                            kernels.launch(threads, || gather(table, ids, out_at, sizes[0], sizes[1], sizes[2], scale));
                        }
                    }
                }
                assert_eq!(bits(&out), bits(&expected), "{} {rows} {columns} {count} {scale:?}", T::NAME);
            }
        }
    }

    #[test]
    fn gathered_rows_are_the_cpus() {
        gathers::<f32>();
        gathers::<bf16>();
        gathers::<f16>();
        gathers::<f64>();
    }

    struct OnDevice {
        slots: Vec<u32>,
        starts: Vec<u32>,
        positions: Vec<u32>,
        taken: u64,
    }

    fn group_on_device(kernels: &Kernels, ids: &[u32], rows: usize) -> OnDevice {
        let most = ids.len().min(rows);
        // What a GPU does not fill holds anything.
        let anything = |len: usize| vec![9_999_999u32; len];
        let (mut counts, mut filled, mut begins) = (vec![0u32; rows], vec![0u32; rows], anything(rows));
        let (mut unordered, mut positions) = (anything(ids.len()), anything(ids.len()));
        let (mut slots, mut starts, mut taken) = (anything(most), anything(most + 1), 0u64);
        let (n, v) = (ids.len() as u64, rows as u64);
        let (by_position, by_row) = (Threads::over_elements(ids.len()), Threads::over_elements(rows));
        let (ids, counts_at, filled_at, begins_at) =
            (ids.as_ptr(), counts.as_mut_ptr(), filled.as_mut_ptr(), begins.as_mut_ptr());
        let (unordered_at, positions_at, slots_at, starts_at) =
            (unordered.as_mut_ptr(), positions.as_mut_ptr(), slots.as_mut_ptr(), starts.as_mut_ptr());
        let taken_at = &raw mut taken;
        type In = *const u32;
        type Out = *mut u32;
        // SAFETY: the kernels' types and lengths.
        unsafe {
            let count: extern "C" fn(In, Out, u64, u64) = kernels.function("group_count_ids");
            kernels.launch(by_position, || count(ids, counts_at, n, v));
            let place: extern "C" fn(In, Out, Out, Out, *mut u64, u64) = kernels.function("group_place_rows");
            kernels.launch(by_row, || place(counts_at, begins_at, slots_at, starts_at, taken_at, v));
            let fill: extern "C" fn(In, In, Out, Out, u64, u64) = kernels.function("group_fill_spans");
            kernels.launch(by_position, || fill(ids, begins_at, filled_at, unordered_at, n, v));
            let order: extern "C" fn(In, In, In, In, Out, u64, u64) = kernels.function("group_order_spans");
            kernels.launch(by_position, || order(ids, begins_at, counts_at, unordered_at, positions_at, n, v));
        }
        OnDevice { slots, starts, positions, taken }
    }

    /// A pack of four is loaded at once, so buffers begin at its alignment; vectors of this length do.
    fn sums<T: Named, A: Named>(exact: bool) {
        let Some(kernels) = kernels() else { return };
        let known = [(40, 64, 50, 40), (7, 3, 600, 2), (5, 8, 400, 1), (50, 33, 20, 9), (2, 132, 130, 1)];
        for (rows, columns, count, few) in shapes(&known) {
            let grads: Vec<T> = numbers(count * columns, 2);
            let mut ids: Vec<u32> = (0..count as u32).map(|i| i * i % 31 % few).collect();
            ids[count - 1] = rows as u32 - 1;
            ids[1] = NO_TOKEN;
            let groups = Grouping::default().group(&ids, rows, &[]);
            let parts = groups.parts(LONGEST_RUN);
            let mut partials = vec![A::zero(); (parts.part_starts.len() - 1) * columns];
            let first = (&parts.part_starts[..], &parts.part_positions[..], u32::MAX);
            let scale = 1.5;
            sum::<T, A, A>(kernels, &grads, &[], first, None, None, &mut partials, columns, scale);
            let mut out = vec![T::zero(); rows * columns];
            let second = (&parts.starts[..], &parts.positions[..], parts.split);
            sum::<T, T, A>(kernels, &grads, &partials, second, Some(&groups.rows), None, &mut out, columns, scale);
            // Grouped by the device, which alone knows how many rows there are.
            let OnDevice { slots, starts, positions, taken } = group_on_device(kernels, &ids, rows);
            assert_eq!(taken >> 32, groups.rows.len() as u64);
            let mut again = vec![T::zero(); rows * columns];
            let groups_there = (&starts[..], &positions[..], u32::MAX);
            sum::<T, T, A>(kernels, &grads, &[], groups_there, Some(&slots), Some(&taken), &mut again, columns, scale);
            assert_eq!(bits(&again), bits(&out), "{} {rows} {columns} {count}: grouped on the device", T::NAME);

            let (var, layer) = layer(&vec![T::zero(); rows * columns], columns, Some(scale));
            let ids_tensor = Tensor::from_slice(&ids, count, &Device::Cpu).unwrap();
            let upstream = Tensor::from_slice(&grads, (count, columns), &Device::Cpu).unwrap();
            let loss = (layer.lookup(&ids_tensor).unwrap() * upstream).unwrap().sum_all().unwrap();
            let expected: Vec<T> =
                loss.backward().unwrap().get(&var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let long = groups.starts.windows(2).any(|b| (b[1] - b[0]) as usize > LONGEST_RUN);
            if !long {
                assert_eq!(bits(&out), bits(&expected), "{} {rows} {columns} {count}", T::NAME);
            }
            // Long runs are summed in another order, so they are compared with sums in f64. (f16 has steps of 6e-8 near zero.)
            let mut exact_sums = vec![(0f64, 0f64); rows * columns];
            for (id, row) in ids.iter().zip(grads.chunks(columns)).filter(|(id, _)| **id != NO_TOKEN) {
                for (sum, value) in exact_sums[*id as usize * columns..].iter_mut().zip(row) {
                    (sum.0, sum.1) = (sum.0 + value.to_f64() * scale, sum.1 + (value.to_f64() * scale).abs());
                }
            }
            let precision = if exact { 1e-6 } else { 1e-2 };
            for (got, (sum, size)) in out.iter().zip(exact_sums) {
                assert!((got.to_f64() - sum).abs() <= precision * size + 1e-7, "{} {got} {sum}", T::NAME);
            }
        }
    }

    #[test]
    fn summed_gradients_are_the_cpus() {
        sums::<f32, f32>(true);
        sums::<bf16, f32>(false);
        sums::<f16, f32>(false);
        sums::<f64, f64>(true);
    }
}
