//! Checkpoints: nothing is lost, nothing half-written is taken for whole, everything that does not fit is said.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use candle_core::{DType, Device, Module, Tensor, Var};
use candle_nn::{Init, Optimizer, ParamsAdamW, VarBuilder, VarMap};
use tallow::optim::AdamW;
use tallow::{
    Checkpoint, DataLoader, DataLoaderConfig, Dataset, Error, Gradient, LoadOptions, TokenEmbedding,
    TokenEmbeddingConfig, load_weights,
};

const CPU: Device = Device::Cpu;
const V: usize = 200;

/// A row-sparse table and a dense weight, trained on ids in memory.
struct Run {
    varmap: VarMap,
    wte: TokenEmbedding,
    mix: Tensor,
    opt: AdamW,
    loader: DataLoader,
    losses: Vec<f32>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &CPU);
        let cfg = TokenEmbeddingConfig {
            vocab_size: V,
            d_model: 16,
            seed,
            gradient: Gradient::RowSparse,
            ..Default::default()
        };
        let wte = TokenEmbedding::new(&cfg, vb.pp("wte")).unwrap();
        let mix = vb.get_with_hints((16, 16), "mix", Init::Const(0.1)).unwrap();
        let opt = AdamW::from_varmap(&varmap, ParamsAdamW { lr: 1e-2, ..Default::default() }).unwrap();
        let ids: Vec<u32> = (0..4000u32).map(|i| i * i % 97 + i % 90).collect();
        let split = Dataset::from_ids(&ids, 0.0).unwrap().split("train").unwrap();
        let cfg = DataLoaderConfig { batch_size: 2, context_length: 8, epochs: None, ..Default::default() };
        let loader = DataLoader::new(&split, cfg).unwrap();
        Run { varmap, wte, mix, opt, loader, losses: Vec::new() }
    }

    fn train(&mut self, steps: usize) {
        for _ in 0..steps {
            let batch = self.loader.next().unwrap().unwrap();
            let x = self.wte.forward(&batch.inputs).unwrap().broadcast_matmul(&self.mix).unwrap();
            let y = self.wte.forward(&batch.targets).unwrap();
            let loss = (x - y).unwrap().affine(1.0, -0.01).unwrap().sqr().unwrap().sum_all().unwrap();
            self.opt.backward_step(&loss).unwrap();
            self.losses.push(loss.to_scalar().unwrap());
        }
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            step: self.losses.len() as u64,
            seed: 1337,
            tokenizer: Some(0xfeed_face_dead_beef),
            loader: Some(self.loader.state()),
            extra: serde_json::json!({"losses": self.losses}),
        }
    }

    fn save(&self, folder: &Path, keep: usize) -> PathBuf {
        self.checkpoint().save(folder, &self.varmap, Some(&self.opt), keep).unwrap()
    }

    fn load(&mut self, folder: &Path) -> tallow::Result<Checkpoint> {
        let (found, skipped) = Checkpoint::load(folder, &self.varmap, Some(&mut self.opt), &LoadOptions::default())?;
        assert_eq!(skipped, Default::default());
        self.loader.load_state(found.loader.as_ref().unwrap())?;
        self.losses = serde_json::from_value(found.extra["losses"].clone()).unwrap();
        Ok(found)
    }

    /// Every bit of weights, moments, losses and the loader's place.
    fn bits(&self) -> (HashMap<String, Vec<u32>>, Vec<u32>, String) {
        let bits = |t: &Tensor| -> Vec<u32> {
            let values = t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.into_iter().map(f32::to_bits).collect()
        };
        let mut all: HashMap<String, Vec<u32>> =
            self.opt.state().unwrap().iter().map(|(name, t)| (name.clone(), bits(t))).collect();
        all.extend(self.varmap.data().lock().unwrap().iter().map(|(name, var)| (name.clone(), bits(var))));
        let losses = self.losses.iter().map(|loss| loss.to_bits()).collect();
        (all, losses, serde_json::to_string(&self.loader.state()).unwrap())
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn message<T>(result: tallow::Result<T>) -> String {
    match result {
        Ok(_) => panic!("this must be an error"),
        Err(error @ (Error::Checkpoint { .. } | Error::Io { .. })) => error.to_string(),
        Err(other) => panic!("another error than of a checkpoint: {other}"),
    }
}

#[test]
fn a_resumed_run_gives_the_bits_of_one_that_never_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let mut whole = Run::new(7);
    whole.train(100);
    let mut first = Run::new(7);
    first.train(50);
    first.save(folder.path(), 2);
    drop(first);
    let mut resumed = Run::new(999); // other weights, so that only loading makes them equal
    let found = resumed.load(folder.path()).unwrap();
    assert_eq!((found.step, found.seed, found.tokenizer), (50, 1337, Some(0xfeed_face_dead_beef)));
    resumed.train(50);
    assert_eq!(resumed.bits(), whole.bits());
    // Saving changes nothing for the run that goes on.
    let mut saving = Run::new(7);
    let other = tempfile::tempdir().unwrap();
    for _ in 0..10 {
        saving.train(10);
        saving.save(other.path(), 1);
    }
    assert_eq!(saving.bits(), whole.bits());
}

#[test]
fn loading_over_a_run_forgets_what_its_rows_owed() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::new(7);
    run.train(20);
    run.save(folder.path(), 1);
    let then = run.bits();
    run.train(30);
    run.load(folder.path()).unwrap();
    assert_eq!(run.bits(), then);
    run.train(10);
    let mut whole = Run::new(7);
    whole.train(30);
    assert_eq!(run.bits(), whole.bits());
}

#[test]
fn the_newest_are_kept_and_a_step_is_replaced_whole() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::new(7);
    assert!(Checkpoint::newest(folder.path().join("none")).unwrap().is_none());
    for _ in 0..4 {
        run.train(5);
        run.save(folder.path(), 2);
    }
    assert_eq!(names(folder.path()), ["step-00000015", "step-00000020"]);
    let path = folder.path().join("step-00000020");
    assert_eq!(names(&path), ["complete.json", "model.safetensors", "optimizer.safetensors", "state.json"]);
    assert_eq!(Checkpoint::newest(folder.path()).unwrap().unwrap(), run.checkpoint());
    // The same state gives the same files, byte for byte.
    let before: Vec<Vec<u8>> = names(&path).iter().map(|name| std::fs::read(path.join(name)).unwrap()).collect();
    run.save(folder.path(), 2);
    let after: Vec<Vec<u8>> = names(&path).iter().map(|name| std::fs::read(path.join(name)).unwrap()).collect();
    assert!(before == after);
    assert_eq!(names(folder.path()), ["step-00000015", "step-00000020"]);
    // One checkpoint may be named itself, for both; killed between two renames, the replaced one still counts.
    run.train(1);
    assert_eq!(Checkpoint::newest(&path).unwrap().unwrap().step, 20);
    run.load(&path).unwrap();
    std::fs::rename(&path, folder.path().join("step-00000020.replaced")).unwrap();
    assert_eq!(Checkpoint::newest(folder.path()).unwrap().unwrap().step, 20);
    run.save(folder.path(), 0);
    assert_eq!(names(folder.path()), ["step-00000015", "step-00000020"]);
    // What is not finished is not taken, and goes with the next save.
    std::fs::create_dir(folder.path().join(".tmp-killed")).unwrap();
    std::fs::write(folder.path().join(".tmp-killed/model.safetensors"), b"half").unwrap();
    std::fs::remove_file(path.join("complete.json")).unwrap();
    assert_eq!(run.load(folder.path()).unwrap().step, 15);
    run.train(1);
    run.save(folder.path(), 1);
    // (A folder without its marker is somebody's: it is left alone.)
    assert_eq!(names(folder.path()), ["step-00000016", "step-00000020"]);
}

#[test]
fn everything_that_does_not_fit_is_said_at_once_and_nothing_is_changed() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::new(7);
    run.train(3);
    run.save(folder.path(), 1);
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::BF16, &CPU);
    vb.pp("wte").get_with_hints((V, 8), "weight", Init::Const(0.5)).unwrap();
    vb.get_with_hints(3, "extra", Init::Const(0.5)).unwrap();
    let mut opt = AdamW::from_varmap(&varmap, ParamsAdamW::default()).unwrap();
    let options = LoadOptions { tokenizer: Some(1), ..Default::default() };
    let said = message(Checkpoint::load(folder.path(), &varmap, Some(&mut opt), &options));
    for part in [
        r#""wte.weight" has shape [200, 16] in the file and [200, 8] in the VarMap"#,
        r#""wte.weight" is f32 in the file and bf16 in the VarMap"#,
        r#""extra" is not in the file"#,
        r#""mix" is not in the VarMap"#,
        r#""extra.m" is missing"#,
        r#""wte.weight.v" has shape [200, 16], not [200, 8]"#,
        r#"the optimizer here has no "mix.v""#,
        "trained with the ids of tokenizer feedfacedeadbeef, and the tokenizer here is 0000000000000001",
    ] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    let untouched = |var: &Var| {
        let values = var.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.into_iter().all(|v| v == 0.5)
    };
    assert!(varmap.all_vars().iter().all(untouched));

    // On request: what is on both sides, in this dtype.
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::BF16, &CPU);
    vb.get_with_hints((16, 16), "mix", Init::Const(0.5)).unwrap();
    vb.get_with_hints(3, "extra", Init::Const(0.5)).unwrap();
    let options = LoadOptions { partial: true, convert_dtype: true, ..Default::default() };
    let (_, skipped) = Checkpoint::load(folder.path(), &varmap, None, &options).unwrap();
    assert_eq!((skipped.missing, skipped.unexpected), (vec!["extra".to_string()], vec!["wte.weight".to_string()]));
    let data = varmap.data().lock().unwrap();
    assert_eq!((data["mix"].dtype(), untouched(&data["extra"])), (DType::BF16, true));
    let expected = run.mix.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(data["mix"].to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap(), expected);

    // Saved without an optimizer, it cannot be loaded with one.
    let folder = tempfile::tempdir().unwrap();
    run.checkpoint().save(folder.path(), &run.varmap, None, 1).unwrap();
    assert!(message(run.load(folder.path())).contains("saved without an optimizer"));
}

#[test]
fn an_empty_varmap_is_filled_and_one_is_not_saved() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::new(7);
    run.train(30); // updates of rows are deferred now
    run.save(folder.path(), 1);
    let varmap = VarMap::new();
    Checkpoint::load(folder.path(), &varmap, None, &LoadOptions::default()).unwrap();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &CPU);
    let cfg = TokenEmbeddingConfig { vocab_size: V, d_model: 16, ..Default::default() };
    let wte = TokenEmbedding::new(&cfg, vb.pp("wte")).unwrap();
    assert_eq!(
        wte.flushed_weight().unwrap().to_vec2::<f32>().unwrap(),
        run.wte.flushed_weight().unwrap().to_vec2::<f32>().unwrap()
    );
    assert_eq!(varmap.all_vars().len(), 2);
    let nothing = Checkpoint::default().save(folder.path(), &VarMap::new(), None, 1).unwrap_err();
    assert!(nothing.to_string().contains("VarMap is empty"));
    assert_eq!(names(folder.path()), ["step-00000030"]);
}

#[cfg(unix)]
#[test]
fn a_pipe_in_the_place_of_a_file_is_refused() {
    for name in ["complete.json", "state.json", "model.safetensors"] {
        let folder = tempfile::tempdir().unwrap();
        let mut run = Run::new(7);
        run.train(2);
        let file = run.save(folder.path(), 1).join(name);
        std::fs::remove_file(&file).unwrap();
        assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
        let refused = message(run.load(folder.path()));
        assert!(refused.contains(name) && refused.contains("not a"), "{refused}");
    }
}

#[test]
fn pytorch_s_files_are_read() {
    let varmap = VarMap::new();
    let path = crate::support::golden("optim.safetensors"); // written by safetensors.torch, see gen_optim.py
    load_weights(&path, &varmap, &LoadOptions::default()).unwrap();
    let expected = candle_core::safetensors::load(&path, &CPU).unwrap();
    let data = varmap.data().lock().unwrap();
    assert_eq!(data.len(), 5);
    for (name, tensor) in &expected {
        assert_eq!((data[name].dims(), data[name].dtype()), (tensor.dims(), tensor.dtype()));
        let values = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(values(&data[name]), values(tensor));
    }
}

#[test]
#[ignore = "needs Python with safetensors and numpy"]
fn needs_python_the_safetensors_package_reads_ours() {
    let python = crate::support::python("safetensors.numpy");
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::new(7);
    run.train(5);
    let path = run.save(folder.path(), 1);
    for name in ["model.safetensors", "optimizer.safetensors"] {
        let found = crate::support::run(&python, "safetensors_read.py", &[&path.join(name)]);
        assert_eq!(found["metadata"]["format"], "pt");
        assert_eq!(found["metadata"]["tokenizer"], "feedfacedeadbeef");
        let expected = candle_core::safetensors::load(path.join(name), &CPU).unwrap();
        assert_eq!(found["tensors"].as_object().unwrap().len(), expected.len());
        for (name, tensor) in expected {
            assert_eq!(found["tensors"][&name]["shape"], serde_json::json!(tensor.dims()));
            let sum = tensor.to_dtype(DType::F64).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
            let theirs = found["tensors"][&name]["sum"].as_f64().unwrap();
            assert!((sum - theirs).abs() <= 1e-9 * sum.abs().max(1e-9), "{name}: {sum} and {theirs}");
        }
    }
}

#[test]
fn torn_and_hostile_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::new(7);
    run.train(3);
    let path = run.save(folder.path(), 1);
    let before = run.bits();
    // Every file cut short, and with one bit turned.
    for name in ["model.safetensors", "optimizer.safetensors", "state.json"] {
        let file = path.join(name);
        let whole = std::fs::read(&file).unwrap();
        for cut in [0, 1, 7, 8, 9, 100, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&file, &whole[..cut.min(whole.len() - 1)]).unwrap();
            assert!(message(run.load(folder.path())).contains(name), "{name} cut to {cut}");
        }
        for at in [3, 20, whole.len() / 2, whole.len() - 1] {
            let mut turned = whole.clone();
            turned[at] ^= 4;
            std::fs::write(&file, turned).unwrap();
            assert!(message(run.load(folder.path())).contains("not those that were written"), "{name} at {at}");
        }
        std::fs::remove_file(&file).unwrap();
        assert!(message(run.load(folder.path())).contains(name));
        std::fs::create_dir(&file).unwrap();
        assert!(message(run.load(folder.path())).contains("not a plain file"));
        std::fs::remove_dir(&file).unwrap();
        std::fs::write(&file, &whole).unwrap();
    }
    let marker = path.join("complete.json");
    let whole = std::fs::read_to_string(&marker).unwrap();
    for (from, to) in [
        ("\"version\":1", "\"version\":2"),
        ("state.json", "../state.json"),
        ("{", "["),
        ("4", "999999999999999999999"),
    ] {
        std::fs::write(&marker, whole.replacen(from, to, 1)).unwrap();
        message(run.load(folder.path()));
    }
    std::fs::write(&marker, whole).unwrap();
    assert_eq!(run.bits(), before);
    run.load(folder.path()).unwrap();
}

#[test]
fn hostile_safetensors_are_errors_and_allocate_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let file = |header: &str, data: &[u8]| [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
    let one = |dtype: &str, shape: &str, offsets: &str| {
        file(&format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#), &[0; 16])
    };
    let huge = u64::MAX.to_le_bytes();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("a header of 2^64 - 1 bytes", huge.to_vec()),
        ("a header of 2^63 bytes", (1u64 << 63).to_le_bytes().to_vec()),
        ("a header of 99 MB in a small file", 99_000_000u64.to_le_bytes().to_vec()),
        ("no JSON", file("not JSON", &[])),
        ("a list", file("[]", &[])),
        ("deep JSON", file(&"[".repeat(100_000), &[])),
        ("not UTF-8", [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat()),
        ("more data than the file has", one("F32", "[1099511627776]", "[0,4398046511104]")),
        ("a shape that overflows", one("F32", "[4294967296,4294967296,4294967296]", "[0,16]")),
        ("a shape that overflows to the right size", one("F32", "[4611686018427387905,4]", "[0,16]")),
        ("offsets beyond 2^64", one("F32", "[4]", "[0,18446744073709551616]")),
        ("offsets backwards", one("F32", "[4]", "[16,0]")),
        ("a gap before", one("F32", "[3]", "[4,16]")),
        ("bytes left over", one("F32", "[3]", "[0,12]")),
        ("negative", one("F32", "[-4]", "[0,16]")),
        ("an unknown dtype", one("F33", "[4]", "[0,16]")),
        ("a dtype that candle lacks", one("BOOL", "[16]", "[0,16]")),
        ("a dtype that candle only carries", one("F8_E8M0", "[16]", "[0,16]")),
    ];
    for (what, bytes) in cases {
        std::fs::write(&path, bytes).unwrap();
        let varmap = VarMap::new();
        message(load_weights(&path, &varmap, &LoadOptions::default()));
        assert!(varmap.all_vars().is_empty(), "{what}");
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &CPU);
        vb.get_with_hints(4, "w", Init::Const(1.0)).unwrap();
        let options = LoadOptions { partial: true, convert_dtype: true, ..Default::default() };
        message(load_weights(&path, &varmap, &options));
    }
    // A file of a terabyte that is not there.
    std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    message(load_weights(&path, &VarMap::new(), &LoadOptions::default()));
    message(load_weights(folder.path(), &VarMap::new(), &LoadOptions::default()));
    message(load_weights(folder.path().join("none"), &VarMap::new(), &LoadOptions::default()));
    message(Checkpoint::load(folder.path(), &VarMap::new(), None, &LoadOptions::default()));
    message(Checkpoint::load(folder.path().join("none"), &VarMap::new(), None, &LoadOptions::default()));
}

/// The folder that a test gave to the process that it started.
fn given_folder() -> PathBuf {
    std::env::var_os("TALLOW_TEST_FOLDER").expect("another test starts this one").into()
}

/// Trains and saves after every step, until it is killed: the process of the next test.
#[test]
#[ignore = "started by another test"]
fn endless_run() {
    let folder = given_folder();
    let mut run = Run::new(7);
    run.load(&folder).ok();
    loop {
        run.train(1);
        run.save(&folder, 2);
    }
}

/// Starts an ignored test of this binary as a process of its own.
fn start(test: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--ignored", "--nocapture"]).env("TALLOW_TEST_FOLDER", folder);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[test]
fn killed_at_any_moment_it_goes_on_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let mut whole = Run::new(7);
    let (mut last, mut while_saving) = (0, 0);
    for round in 0..25u64 {
        let mut child = start("checkpoint::endless_run", folder.path()).spawn().unwrap();
        // Until it has saved something new; then some microseconds more, so that it dies at different places of a save.
        let newest = || Checkpoint::newest(folder.path()).ok().flatten().map_or(0, |found| found.step);
        let until = std::time::Instant::now() + Duration::from_secs(60);
        while newest() <= last {
            assert!(std::time::Instant::now() < until && child.try_wait().unwrap().is_none(), "it does not save");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(round * 397 % 5000));
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        while_saving += usize::from(names(folder.path()).iter().any(|name| name.starts_with(".tmp-")));
        let mut run = Run::new(999);
        let found = run.load(folder.path()).unwrap();
        assert!(found.step > last);
        whole.train((found.step - last) as usize);
        last = found.step;
        assert_eq!(run.bits(), whole.bits(), "at step {last}");
    }
    println!("{last} steps; {while_saving} of 25 kills fell into a save");
}

/// What a kill in the middle of a save leaves, whatever the luck of the test above: a draft of any length, and nothing else.
#[test]
fn a_save_that_was_cut_short_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::new(7);
    run.train(3);
    let path = run.save(folder.path(), 2);
    let before = run.bits();
    run.train(1);
    let next = run.save(folder.path(), 2);
    let files = ["model.safetensors", "optimizer.safetensors", "state.json", "complete.json"];
    let written: Vec<Vec<u8>> = files.iter().map(|name| std::fs::read(next.join(name)).unwrap()).collect();
    std::fs::remove_dir_all(&next).unwrap();
    let draft = folder.path().join(".tmp-killed");
    for whole in 0..=files.len() {
        for part in [0, 1, 40] {
            std::fs::create_dir(&draft).unwrap();
            for (name, bytes) in files.iter().zip(&written).take(whole) {
                std::fs::write(draft.join(name), bytes).unwrap();
            }
            if let (Some(name), Some(bytes)) = (files.get(whole), written.get(whole)) {
                std::fs::write(draft.join(name), &bytes[..part]).unwrap();
            }
            assert_eq!(run.load(folder.path()).unwrap().step, 3);
            assert_eq!(run.bits(), before);
            assert_eq!(run.save(folder.path(), 2), path);
            assert_eq!(names(folder.path()), ["step-00000003"], "the draft is gone");
        }
    }
}

/// Saves with files limited to 16 KiB, as on a full disk.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "started by another test"]
fn save_on_a_full_disk() {
    let folder = given_folder();
    let mut run = Run::new(7);
    run.load(&folder).unwrap();
    run.train(1);
    let limit = libc::rlimit { rlim_cur: 16 << 10, rlim_max: 16 << 10 };
    // SAFETY: both calls change limits and signals of this process alone.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
    let error = run.checkpoint().save(&folder, &run.varmap, Some(&run.opt), 1).unwrap_err().to_string();
    assert!(error.contains("step-00000003/optimizer.safetensors: File too large"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::new(7);
    run.train(2);
    run.save(folder.path(), 1);
    assert!(start("checkpoint::save_on_a_full_disk", folder.path()).status().unwrap().success());
    assert_eq!(names(folder.path()), ["step-00000002"]);
    run.load(folder.path()).unwrap();
}

/// Trains with an optimizer of a bare list of variables, as candle's own is made, up to the step that the variable TALLOW_TEST_STEP
/// says, and saves there; goes on where a process before it ended.
#[test]
#[ignore = "started by another test"]
fn run_without_names() {
    let folder = given_folder();
    let until: u64 = std::env::var("TALLOW_TEST_STEP").unwrap().parse().unwrap();
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &CPU);
    let cfg = TokenEmbeddingConfig { vocab_size: V, d_model: 16, gradient: Gradient::RowSparse, ..Default::default() };
    let wte = TokenEmbedding::new(&cfg, vb.pp("wte")).unwrap();
    // Eight weights of one shape, each with moments of its own size.
    let mixes: Vec<Tensor> =
        (0..8).map(|i| vb.get_with_hints((16, 16), &format!("mix{i}"), Init::Const(0.1)).unwrap()).collect();
    let mut opt = AdamW::new(varmap.all_vars(), ParamsAdamW { lr: 1e-2, ..Default::default() }).unwrap();
    let found = match Checkpoint::newest(&folder).unwrap() {
        None => 0,
        Some(_) => Checkpoint::load(&folder, &varmap, Some(&mut opt), &LoadOptions::default()).unwrap().0.step,
    };
    for step in found..until {
        let ids = Tensor::new(&[(step * step % 97) as u32, (step % 50) as u32], &CPU).unwrap();
        let x = wte.forward(&ids).unwrap();
        let losses = (1..).zip(&mixes).map(|(size, mix)| {
            x.matmul(mix).unwrap().affine(f64::from(size), -0.3).unwrap().sqr().unwrap().sum_all().unwrap()
        });
        let loss = losses.reduce(|a, b| (a + b).unwrap()).unwrap();
        opt.backward_step(&loss).unwrap();
    }
    Checkpoint { step: until, ..Default::default() }.save(&folder, &varmap, Some(&opt), 1).unwrap();
}

#[test]
fn an_optimizer_without_names_resumes_in_another_process() {
    let train = |folder: &Path, until: u64| {
        let mut child = start("checkpoint::run_without_names", folder);
        assert!(child.env("TALLOW_TEST_STEP", until.to_string()).status().unwrap().success());
    };
    let whole = tempfile::tempdir().unwrap();
    train(whole.path(), 12);
    // Every process has another order of variables: six times, so that chance helps nobody.
    for round in 0..6 {
        let resumed = tempfile::tempdir().unwrap();
        train(resumed.path(), 5);
        train(resumed.path(), 12);
        for name in ["model.safetensors", "optimizer.safetensors"] {
            let read = |folder: &Path| std::fs::read(folder.join("step-00000012").join(name)).unwrap();
            assert!(read(resumed.path()) == read(whole.path()), "round {round}: {name} has other bytes");
        }
    }
}

/// Saves step 8, or the step that the variable TALLOW_TEST_STEP says, with `keep` 2, and prints what came of it.
#[test]
#[ignore = "started by another test"]
fn save_one_step() {
    let step = std::env::var("TALLOW_TEST_STEP").unwrap().parse().unwrap();
    let run = Run::new(7);
    match (Checkpoint { step, ..run.checkpoint() }).save(given_folder(), &run.varmap, Some(&run.opt), 2) {
        Ok(path) => println!("saved: {}", path.display()),
        Err(error) => println!("refused: {error}"),
    }
}

/// Says which step is newest, and which is loaded.
#[test]
#[ignore = "started by another test"]
fn say_newest_and_loaded() {
    let newest = Checkpoint::newest(given_folder()).map(|found| found.map(|found| found.step));
    let loaded = Run::new(7).load(&given_folder()).map(|found| found.step);
    println!("found: {newest:?} {loaded:?}");
}

#[test]
fn no_checkpoint_is_lost_or_taken_for_another() {
    let folder = tempfile::tempdir().unwrap();
    let say = |test: &str, folder: &Path, step: u64| {
        let output =
            start(test, folder).env("TALLOW_TEST_STEP", step.to_string()).stdout(Stdio::piped()).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let words = ["saved: ", "refused: ", "found: "];
        let line =
            said.lines().find_map(|line| words.iter().find_map(|word| Some(line[line.find(word)?..].to_string())));
        line.unwrap_or_else(|| panic!("{test} said {said}"))
    };
    let save = |folder: &Path, step| say("checkpoint::save_one_step", folder, step);
    let found = |folder: &Path| say("checkpoint::say_newest_and_loaded", folder, 0);
    assert!(save(folder.path(), 8).starts_with("saved"));
    // A folder that is a checkpoint: both find it, and nothing is saved inside it.
    let eight = folder.path().join("step-00000008");
    assert_eq!(found(&eight), "found: Ok(Some(8)) Ok(8)");
    assert_eq!(found(folder.path()), "found: Ok(Some(8)) Ok(8)");
    let before = names(&eight);
    assert!(save(&eight, 9).contains("is a checkpoint itself"));
    assert_eq!(names(&eight), before);
    // An earlier step beside later ones is refused, and nothing is touched; the next step is saved.
    for step in [100, 200, 300, 400] {
        save(folder.path(), step);
    }
    assert_eq!(names(folder.path()), ["step-00000300", "step-00000400"]);
    let refused = save(folder.path(), 150);
    assert!(
        refused.contains("step-00000400: it is later than step 150") && refused.contains("another folder"),
        "{refused}"
    );
    assert_eq!(names(folder.path()), ["step-00000300", "step-00000400"]);
    assert_eq!(found(folder.path()), "found: Ok(Some(400)) Ok(400)");
    assert!(save(folder.path(), 400).starts_with("saved"), "the same step is replaced");
    assert!(save(folder.path(), 401).contains("step-00000401"));
    // A name that is not its step.
    std::fs::rename(folder.path().join("step-00000400"), folder.path().join("step-00000500")).unwrap();
    let wrong = found(folder.path());
    assert_eq!(wrong.matches("its name says step 500, and it holds step 400").count(), 2, "{wrong}");
    // Under a name that says no step it may be kept.
    std::fs::rename(folder.path().join("step-00000500"), folder.path().join("best")).unwrap();
    assert_eq!(found(&folder.path().join("best")), "found: Ok(Some(400)) Ok(400)");
    assert_eq!(found(folder.path()), "found: Ok(Some(401)) Ok(401)");
}
