//! Ranks that mpirun starts. Needs `mpirun` and `timeout`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn program() -> PathBuf {
    example("ranks")
}

fn example(name: &str) -> PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples").join(name)
}

/// Open MPI's settings for a machine with fewer cores than ranks, where tests may run as root. Others do not know them.
fn ranks(number: usize, args: &[&str]) -> Command {
    ranks_of(&program(), number, args)
}

fn ranks_of(program: &Path, number: usize, args: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["120", "mpirun", "-n", &number.to_string()]).arg(program).args(args);
    for (name, value) in [
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
        ("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"),
        ("OMPI_MCA_mpi_yield_when_idle", "1"),
    ] {
        command.env(name, value);
    }
    command
}

fn succeeds(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said));
    output
}

#[test]
fn every_operation_on_every_dtype_whole_and_cut() {
    for number in 1..=4 {
        succeeds(&mut ranks(number, &["collectives"]));
        // Calls of three elements at most, in place of 2^28.
        succeeds(ranks(number, &["collectives"]).env("TALLOW_MPI_MOST", "3"));
    }
}

#[test]
fn a_program_alone_is_one_rank() {
    succeeds(Command::new(program()).arg("collectives"));
}

#[test]
fn what_every_engine_must_give() {
    for number in [1, 2, 3, 4, 7] {
        succeeds(&mut ranks(number, &["acceptance"]));
    }
}

#[test]
fn saved_by_two_ranks_and_loaded_by_one_three_and_four() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    succeeds(&mut ranks(2, &["save", &path("2")]));
    for number in [1, 3, 4] {
        let again = path(&format!("2-{number}"));
        succeeds(&mut ranks(number, &["load", &path("2"), &again]));
        for file in ["0", "1", "2"]
            .iter()
            .flat_map(|at| ["model", "optimizer"].map(|name| format!("{at}/step-00000010/{name}.safetensors")))
        {
            let read = |folder: &str| std::fs::read(Path::new(folder).join(&file)).unwrap();
            assert!(read(&again) == read(&path("2")), "{file}, {number} ranks");
        }
    }
}

/// Losses and final table of a small GPT: each rank with a part of the batch, or with a part of the vocabulary.
#[test]
fn a_gpt_trains_on_several_ranks_as_on_one() {
    let folder = tempfile::tempdir().unwrap();
    let small = ["--d-model", "16", "--blocks", "1", "--heads", "2", "--dropout", "0", "--steps", "6", "--json"];
    let trained = |number: usize, args: &[&str]| {
        let checkpoint = folder.path().join(format!("{number}{}", args.join("")));
        let args = [&small[..], &["--checkpoint", checkpoint.to_str().unwrap()], args].concat();
        let output = succeeds(&mut ranks_of(&example("train_gpt_ranks"), number, &args));
        let losses: Vec<f64> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap())
            .collect();
        (losses, table(&checkpoint.join("step-00000006/model.safetensors")))
    };
    for tied in [&[][..], &["--tied"]] {
        let (losses, one) = trained(1, tied);
        assert_eq!((losses.len(), one.len()), (6, 100_277 * 16));
        assert!(losses[5] < losses[0]);
        for how in [&["--rows", "union"][..], &["--rows", "owners"], &["--rows", "ordered"], &["--vocab-parallel"]] {
            let (other_losses, other) = trained(2, &[tied, how].concat());
            let far = |a: f64, b: f64| (a - b).abs();
            let losses_far = losses.iter().zip(&other_losses).map(|(a, b)| far(*a, *b)).fold(0.0, f64::max);
            let table_far = one.iter().zip(&other).map(|(a, b)| far(f64::from(*a), f64::from(*b))).fold(0.0, f64::max);
            assert!(losses_far < 1e-5 && table_far < 1e-5, "{tied:?} {how:?}: {losses_far} {table_far}");
        }
    }
}

fn table(file: &Path) -> Vec<f32> {
    let bytes = std::fs::read(file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let table = tensors.tensor("wte.weight").unwrap();
    table.data().chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()
}

#[test]
fn a_rank_that_fails_ends_all_with_its_message() {
    for (case, says) in [("error", "rank 2 of 3: error: no such luck"), ("panic", "rank 2 of 3: panicked")] {
        let started = Instant::now();
        let output = ranks(3, &[case]).output().unwrap();
        assert!(!output.status.success() && started.elapsed() < Duration::from_secs(10), "{case}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(says) && said.contains("no such luck"), "{case}: {said}");
    }
}
