//! `tallow prepare`, killed, in ranks, and on a full disk.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tallow::Dataset;
use tallow::prepare::finish;

use crate::support::{Lcg, PIECES, contents, text};

/// A corpus of many small units: 6 MB of JSON lines, some of them for validation.
fn corpus(folder: &Path) -> PathBuf {
    let mut rng = Lcg(17);
    let mut lines = String::new();
    for _ in 0..9000 {
        let words: String = (0..rng.below(120)).map(|_| PIECES[rng.below(26) as usize]).collect();
        lines += &format!("{}\n", serde_json::json!({"text": words + &text(rng.below(1 << 20), 10)}));
    }
    let input = folder.join("corpus.jsonl");
    std::fs::write(&input, lines).unwrap();
    input
}

fn command(input: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tallow"));
    command.arg("prepare").arg(input).arg("--out").arg(out).args(["--val", "0.1", "--unit-bytes", "60000"]).args(more);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

#[test]
fn killed_at_any_moment_it_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let input = corpus(folder.path());
    let undisturbed = folder.path().join("undisturbed");
    let started = std::time::Instant::now();
    assert!(command(&input, &undisturbed, &["--jobs", "1"]).status().unwrap().success());
    let whole = started.elapsed();
    let expected = contents(&undisturbed);
    assert!(expected.len() > 200, "{} files", expected.len());

    let mut rng = Lcg(99);
    let (mut kills, mut finished, mut round) = (0, 0, 0);
    while kills < 50 {
        let out = folder.path().join(format!("killed-{round}"));
        round += 1;
        loop {
            let mut child = command(&input, &out, &["--jobs", "2"]).spawn().unwrap();
            std::thread::sleep(whole.mul_f64(rng.below(1000) as f64 / 4000.0));
            child.kill().unwrap(); // SIGKILL
            let status = child.wait().unwrap();
            if status.success() || out.join("manifest.json").exists() {
                finished += 1;
                break;
            }
            kills += 1;
            if kills == 50 {
                assert!(command(&input, &out, &[]).status().unwrap().success());
                break;
            }
        }
        if let Err(error) = finish(&out) {
            panic!("{error}");
        }
        let found = contents(&out);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        assert!(found == expected, "round {round}: other bytes");
        std::fs::remove_dir_all(&out).unwrap();
    }
    println!("{kills} kills, {finished} runs that ended before");
}

#[test]
fn any_number_of_ranks_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let input = corpus(folder.path());
    let mut expected = None;
    for ranks in 1..=4 {
        let out = folder.path().join(format!("ranks-{ranks}"));
        let children: Vec<_> = (0..ranks)
            .map(|rank| {
                // Even ranks get flags, odd ranks the variables of a scheduler.
                let mut command = match rank % 2 {
                    0 => command(
                        &input,
                        &out,
                        &["--jobs", "1", "--rank", &rank.to_string(), "--world-size", &ranks.to_string()],
                    ),
                    _ => command(&input, &out, &["--jobs", "1"]),
                };
                command.env("SLURM_PROCID", rank.to_string()).env("SLURM_STEP_NUM_TASKS", ranks.to_string());
                command.spawn().unwrap()
            })
            .collect();
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        let found = contents(&out);
        assert!(found.contains_key(Path::new("manifest.json")), "the last rank writes the manifest");
        let expected = expected.get_or_insert_with(|| found.clone());
        assert!(found == *expected, "{ranks} ranks: other bytes");
    }
    // Two commands that disagree cannot both begin.
    for round in 0..10 {
        let out = folder.path().join(format!("race-{round}"));
        let start = |rank: &str, separator: &str| {
            let flags = ["--rank", rank, "--world-size", "2", "--separator", separator];
            command(&input, &out, &flags).spawn().unwrap()
        };
        let children = [start("0", "none"), start("1", "<|endoftext|>")];
        let ended = children.map(|child| child.wait_with_output().unwrap());
        assert_eq!(ended.iter().filter(|output| output.status.success()).count(), 1, "round {round}");
        let refused = ended.iter().find(|output| !output.status.success()).unwrap();
        let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(stderr.contains("begun with other settings or input: separator"), "{stderr}");
    }
    // A rank that is missing is named.
    let out = folder.path().join("half");
    assert!(command(&input, &out, &["--rank", "1", "--world-size", "2"]).status().unwrap().success());
    let error = finish(&out).unwrap_err().to_string();
    assert!(error.contains("units are not done (0, 2, 4"), "{error}");
    assert!(Dataset::open(&out).err().unwrap().to_string().contains("has not finished"));
    let flags = ["--rank", "0", "--world-size", "2"];
    assert!(command(&input, &out, &flags).status().unwrap().success());
    assert!(contents(&out) == expected.unwrap());
}

/// Needs a small file system of its own: a tmpfs, which only root may mount.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs root: it mounts a tmpfs"]
fn needs_root_a_full_disk_keeps_what_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let mount = |options: &str| {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&disk).output();
        mounted.is_ok_and(|output| output.status.success())
    };
    assert!(mount("size=2m"), "no tmpfs can be mounted here");
    let input = corpus(folder.path());
    let out = disk.join("out");
    let output = command(&input, &out, &[]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let done = std::fs::read_dir(out.join("units")).map_or(0, |units| units.count());
    let more_room = Command::new("mount").args(["-o", "remount,size=200m"]).arg(&disk).status();
    let again = command(&input, &out, &[]).output().unwrap();
    let reference = folder.path().join("reference");
    assert!(command(&input, &reference, &[]).status().unwrap().success());
    let (found, expected) = (contents(&out), contents(&reference));
    Command::new("umount").arg(&disk).status().unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("the disk is full (") && stderr.lines().count() == 1, "{stderr}");
    assert!(done > 0, "nothing was kept");
    assert!(more_room.unwrap().success() && again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert!(found == expected);
}

/// A file of half a megabyte that unpacks to one run of 100 MiB: an error, in little memory, for both kinds of vocabulary.
#[cfg(target_os = "linux")]
#[test]
fn a_bomb_of_one_run_is_an_error_in_little_memory() {
    use std::io::Read;

    use flate2::{Compression, write::GzEncoder};
    let folder = tempfile::tempdir().unwrap();
    for (number, byte) in [0, b'a'].into_iter().enumerate() {
        let bomb = folder.path().join(format!("{number}.txt.gz"));
        let mut packed = GzEncoder::new(std::fs::File::create(&bomb).unwrap(), Compression::fast());
        std::io::copy(&mut std::io::repeat(byte).take(100 << 20), &mut packed).unwrap();
        packed.finish().unwrap();
        for tokenizer in ["cl100k", "o200k"] {
            let out = folder.path().join("out");
            let mut shell = std::process::Command::new("sh");
            // Address space: the program, its threads' and 300 MB of data. (Without the bound it took 1.05 and 2.2 GiB of memory.)
            shell.args(["-c", "ulimit -v 900000; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_tallow"), "prepare"]);
            shell.arg(&bomb).arg("--out").arg(&out).args(["--jobs", "1", "--tokenizer", tokenizer]);
            let said = shell.output().unwrap();
            let stderr = String::from_utf8_lossy(&said.stderr).into_owned();
            assert_eq!(said.status.code(), Some(2), "{tokenizer}: {stderr}");
            assert!(stderr.contains("txt.gz: from byte 0 of the text on more than 67108864 bytes"), "{stderr}");
            std::fs::remove_dir_all(&out).unwrap();
        }
    }
    // A run within the bound: what took a minute and gigabytes for the letter a.
    let tokenizer = tallow::Tokenizer::o200k();
    let run = "a".repeat(8 << 20);
    let streamed: Vec<u32> = tokenizer.encode_reader(run.as_bytes(), false).flat_map(|part| part.unwrap()).collect();
    assert!(streamed == bpe_openai::o200k_base().encode(&run));
}
