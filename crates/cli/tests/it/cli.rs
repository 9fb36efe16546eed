//! The binary as a user meets it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::{golden, golden_json};

pub const LESSON: &str = "小沈阳江西演唱会邀请了,";

pub fn tallow(args: &[&str], stdin: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tallow"));
    let mut child = command
        .args(args)
        .env("RUST_BACKTRACE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let stdin = stdin.to_vec();
    // The program may end before it has read everything.
    let writer = std::thread::spawn(move || _ = pipe.write_all(&stdin));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// Standard output of a run that must succeed.
pub fn stdout(args: &[&str], stdin: &[u8]) -> String {
    let output = tallow(args, stdin);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The one line on standard error of a run that must be refused.
pub fn refusal(args: &[&str], stdin: &[u8]) -> String {
    let output = tallow(args, stdin);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    stderr
}

#[test]
fn show_draws_the_lesson() {
    let shown = stdout(&["show", LESSON], b"");
    assert!(!shown.contains('\x1b'), "colours without a terminal");
    for line in [
        "  15  ,                  11  -0.0123   0.0097  -0.0188  …  -0.0058  -0.0339  -0.0146",
        "   1  ┌ 沈 1/2  E6 B2     31106   0.0171   0.0013  -0.0015  …  -0.0021  -0.0079  -0.0094",
        "shape      batch 1 x context 16 x d_model 64",
        "table      100256 rows x 64 columns, f32 on cpu, N(0, 0.02), seed 1337, 24.5 MiB",
    ] {
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(shown.lines().any(|l| squeezed(l) == squeezed(line)), "{line}\nnot in\n{shown}");
    }
    assert!(shown.lines().any(|line| line.starts_with("exact ")));
}

#[test]
fn show_json_is_one_object_with_everything() {
    let report: Value = serde_json::from_str(&stdout(&["show", "--json", LESSON], b"")).unwrap();
    assert_eq!(report["text"], LESSON);
    assert_eq!(report["ids"], golden_json("cl100k.json")["lesson"]["ids"]);
    assert_eq!(report["shape"], serde_json::json!([1, 16, 64]));
    assert_eq!(
        (report["rows"].as_u64(), report["d_model"].as_u64(), report["seed"].as_u64()),
        (Some(100_256), Some(64), Some(1337))
    );
    assert_eq!(report["exact"], true);
    assert_eq!(report["pieces"][1]["bytes"], "E6 B2");
    assert_eq!(report["pieces"][1]["text"], Value::Null);
    assert_eq!(report["pieces"][2]["characters"], "沈");
    let row = tallow::Init::GPT2.rows(1337, 31809, 1, 64);
    let values: Vec<f32> = serde_json::from_value(report["values"][0].clone()).unwrap();
    assert_eq!(values, row);
}

#[test]
fn show_takes_other_tables_and_tokenizers() {
    let shown = |args: &[&str]| -> Value { serde_json::from_str(&stdout(args, b"")).unwrap() };
    let byte_level = golden("byte_level.json");
    let report = shown(&[
        "show",
        "--json",
        "--tokenizer",
        byte_level.to_str().unwrap(),
        "fox 沈",
        "--dtype",
        "bf16",
        "--init",
        "keras",
    ]);
    assert_eq!(
        (report["rows"].as_u64(), report["dtype"].as_str(), report["exact"].as_bool()),
        (Some(383), Some("bf16"), Some(true))
    );
    let report = shown(&["show", "--json", "--specials", "allow", "a<|endoftext|>"]);
    assert_eq!((report["rows"].as_u64(), &report["ids"]), (Some(100_277), &serde_json::json!([64, 100_257])));
    let report = shown(&["show", "--json", ""]);
    assert_eq!((&report["shape"], &report["mean"]), (&serde_json::json!([1, 0, 64]), &Value::Null));
    let automatic = tallow(&["show", "x", "--device", "auto"], b"");
    assert!(automatic.status.success());
    if !cfg!(any(feature = "cuda", feature = "metal")) {
        assert_eq!(String::from_utf8(automatic.stderr).unwrap().lines().count(), 1);
    }
}

#[test]
fn show_writes_the_matrix() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    stdout(&["show", LESSON, "--out", path.to_str().unwrap()], b"");
    let tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
    assert_eq!((tensors["matrix"].dims(), tensors["ids"].dims()), (&[1, 16, 64][..], &[1, 16][..]));
    assert_eq!(tensors["ids"].flatten_all().unwrap().to_vec1::<u32>().unwrap()[..2], [31809, 31106]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "something was left beside it");
}

#[test]
fn flags_reach_what_they_name() {
    let json = |args: &[&str]| -> Value { serde_json::from_str(&stdout(args, b"")).unwrap() };
    let seeded = json(&["show", "--json", "x", "--seed", "7", "--d-model", "3"]);
    let values: Vec<f32> = serde_json::from_value(seeded["values"][0].clone()).unwrap();
    assert_eq!(values, tallow::Init::GPT2.rows(7, 87, 1, 3));
    // NFKC makes fi of the ligature: other bytes come back, and the pieces are the tokens' own.
    let unigram = golden("unigram.json");
    let changed = json(&["show", "--json", "the ﬁ", "--tokenizer", unigram.to_str().unwrap()]);
    assert_eq!(changed["exact"], false);
    assert!(changed["pieces"].as_array().unwrap().iter().all(|piece| piece["of"] == 1), "{}", changed["pieces"]);
    assert!(stdout(&["show", "the ﬁ", "--tokenizer", unigram.to_str().unwrap()], b"").contains("not exact"));
    assert_eq!(stdout(&["encode", "--lossy"], b"a\xff"), stdout(&["encode"], "a\u{FFFD}".as_bytes()));
    assert!(stdout(&["show", "a␣b c"], b"").starts_with("text       a␣b c  "));
    let small = stdout(&["table", "--vocab-size", "4", "--d-model", "2"], b"");
    assert_eq!(
        small.lines().filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit())).count(),
        4,
        "{small}"
    );
    let coloured =
        Command::new(env!("CARGO_BIN_EXE_tallow")).args(["show", "沈"]).env("CLICOLOR_FORCE", "1").output().unwrap();
    assert!(String::from_utf8(coloured.stdout).unwrap().contains("\x1b[3"), "no colours where they are forced");
}

#[test]
fn decoding_in_chunks_is_decoding() {
    // More ids than one chunk: positions go on, and a decoder that looks at neighbors sees them all.
    let many = "9906 ".repeat(70_000);
    let line = refusal(&["decode", "-o", "/dev/null"], (many.clone() + "100256").as_bytes());
    assert!(line.contains("position 70000"), "{line}");
    let unigram = golden("unigram.json");
    let unigram = unigram.to_str().unwrap();
    let text = "the fox ".repeat(30_000);
    let ids = stdout(&["encode", "--tokenizer", unigram], text.trim_end().as_bytes());
    assert!(ids.split_whitespace().count() > 1 << 16);
    assert!(stdout(&["decode", "--tokenizer", unigram], ids.as_bytes()) == text.trim_end());
}

#[test]
fn long_and_strange_texts_are_shown_safely() {
    let long = stdout(&["show", "-"], "\x1b[2J word\n".repeat(500).as_bytes());
    assert!(!long.contains('\x1b') && long.lines().count() < 90);
    let all = stdout(&["show", "-", "--all"], "word ".repeat(500).as_bytes());
    assert!(all.lines().count() > 500);
    assert!(stdout(&["show", "-", "--lossy"], b"a\xffb").contains('\u{FFFD}'));
}

#[test]
fn the_table_has_the_lessons_rows() {
    let table = stdout(&["table", "--rows", "0..3,999..1002,100254..100256"], b"");
    for row in ["0  !", "999  quire", "1000  indow", "100255  ␣Conveyor"] {
        assert!(table.lines().any(|line| line.trim_start().starts_with(row)), "{row}\n{table}");
    }
    let json: Value =
        serde_json::from_str(&stdout(&["table", "--json", "--rows", "31106", "--d-model", "3"], b"")).unwrap();
    assert_eq!((&json["rows"][0]["row"], &json["rows"][0]["token"]), (&31106.into(), &"E6 B2".into()));
    assert_eq!(json["rows"][0]["values"].as_array().unwrap().len(), 3);
    for bad in ["5..5", "9..3", "x", "1..x", "", "100256", "0..100257"] {
        refusal(&["table", "--rows", bad], b"");
    }
}

#[test]
fn encode_and_decode_are_inverse_in_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let mut text: Vec<u8> = "naïve 小沈阳\r\n\t😀 <|endoftext|> ".repeat(60_000).into_bytes();
    text.truncate(text.len() - 1);
    std::fs::write(path("input"), &text).unwrap();
    let expected = tallow::Tokenizer::cl100k().encode(std::str::from_utf8(&text).unwrap()).unwrap();
    for format in ["text", "json", "u32"] {
        stdout(&["encode", &path("input"), "--format", format, "-o", &path(format)], b"");
        stdout(&["decode", &path(format), "--format", format, "-o", &path("back"), "--force"], b"");
        assert!(std::fs::read(path("back")).unwrap() == text, "{format}");
    }
    let raw = std::fs::read(path("u32")).unwrap();
    assert!(raw == expected.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>());
    let json: Vec<u32> = serde_json::from_slice(&std::fs::read(path("json")).unwrap()).unwrap();
    assert!(json == expected);
    assert_eq!(stdout(&["encode", "--count"], &text).trim(), expected.len().to_string());
    assert_eq!(stdout(&["encode", "-"], b"Hello world"), "9906 1917\n");
    assert_eq!(stdout(&["encode", "--tokenizer", "gpt2"], b"Hello world"), "15496 995\n");
    assert_eq!(stdout(&["encode", "--tokenizer", "o200k"], b"Hello world"), "13225 2375\n");
    assert_eq!(stdout(&["encode", "-", "--format", "json"], b""), "[]\n");
    assert_eq!(stdout(&["decode", "--format", "json"], b"[9906, 1917]"), "Hello world");
    let unigram = golden("unigram.json");
    let unigram = unigram.to_str().unwrap();
    let ids = stdout(&["encode", "--tokenizer", unigram], "the fox 数字".as_bytes());
    assert_eq!(stdout(&["decode", "--tokenizer", unigram], ids.as_bytes()), "the fox 数字");
}

#[test]
fn bad_input_is_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let out = out.to_str().unwrap();
    let broken = folder.path().join("tokenizer.json");
    std::fs::write(&broken, "{\"version\":").unwrap();
    let broken = broken.to_str().unwrap();
    for (args, stdin, reason) in [
        (&["show", "-"][..], &b"ab\xff"[..], "invalid UTF-8 at byte 2"),
        (
            &["encode", "-o", out],
            b"ab\xff",
            "standard input: invalid UTF-8 at byte 2: fix the text, or read bad bytes as U+FFFD (--lossy)",
        ),
        (&["encode", "/none"], b"", "/none"),
        (&["encode", "/"], b"", "folder"),
        (&["encode", "-o", "/none/x"], b"", "/none/x"),
        (&["encode", "--tokenizer", broken], b"", broken),
        (
            &["encode", "--tokenizer", "gpt3"],
            b"",
            "gpt3: No such file or folder; --tokenizer takes cl100k, o200k, gpt2, a file",
        ),
        (&["encode", "--specials", "forbid"], b"a<|endoftext|>", "\"<|endoftext|>\" at byte 1"),
        (&["decode", "-o", out], b"1 2 x3", "\"x3\" at position 2 is not an id"),
        (&["decode", "-o", out], b"1 100256", "id 100256 at position 1"),
        (&["decode", "-o", out], b"1 +2", "\"+2\" at position 1"),
        (&["decode", "--format", "json", "-o", out], b"[1,2", "not a JSON array"),
        (&["decode", "--format", "json", "-o", out], b"[[1]]", "not a JSON array"),
        (&["show", "x", "--init", "constant:1e39"], b"", "finite"),
        (&["show", "x", "--dtype", "f16", "--init", "constant:1e5"], b"", "finite f16"),
        (&["show", "x", "--init", "nonsense"], b"", "nonsense"),
        (&["show", "x", "--seed", "-1"], b"", "-1"),
        (&["decode", "--format", "u32", "-o", out], b"12345", "inside an id"),
        (&["show", "x", "--d-model", "0"], b"", "holds nothing"),
        (&["show", "x", "--vocab-size", "10"], b"", "id 87 (\"x\" of cl100k_base) at position [0, 0]"),
        (&["show", "x", "--d-model", "99999999999999"], b"", "memory"),
        (&["show", "x", "--device", "tpu"], b"", "tpu"),
        (&["show", "x", "--out", "/none/x"], b"", "/none/x"),
        (
            &["show", "<|endoftext|>", "--specials", "allow", "--vocab-size", "100256"],
            b"",
            "id 100257 (\"<|endoftext|>\"",
        ),
    ] {
        let line = refusal(args, stdin);
        assert!(line.starts_with("error: ") && line.contains(reason), "{args:?}: {line}");
    }
    assert!(!Path::new(out).exists(), "half an output");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "something was left");
    assert!(refusal(&["shwo"], b"").ends_with("; a similar subcommand exists: 'show' (try --help)\n"));
    let renamed = refusal(&["show", "x", "--rows", "5"], b"");
    assert_eq!(renamed, "error: unexpected argument '--rows' found (try --help)\n");
    assert_eq!(tallow(&["show"], b"").status.code(), Some(2));
    assert_eq!(tallow(&["show", "x", "--init", "nonsense"], b"").status.code(), Some(2));
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_ends_quietly() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text");
    std::fs::write(&path, "word ".repeat(1_000_000)).unwrap();
    for args in [
        vec!["encode", path.to_str().unwrap()],
        vec!["table", "--rows", "0..20000"],
        vec!["table", "--json", "--rows", "0..20000"],
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tallow"))
            .args(&args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[cfg(unix)]
#[test]
fn output_goes_through_links_and_into_devices() {
    let folder = tempfile::tempdir().unwrap();
    let (real, link) = (folder.path().join("real"), folder.path().join("link"));
    std::fs::write(&real, "0 1\n").unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    stdout(&["encode", "-o", link.to_str().unwrap()], b"Hello world");
    assert_eq!(std::fs::read_to_string(&real).unwrap(), "9906 1917\n");
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    stdout(&["encode", "-o", "/dev/null"], b"Hello world");
    assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
    // A replaced file keeps its permissions; a link to nothing is not replaced.
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o600)).unwrap();
    stdout(&["encode", "-o", real.to_str().unwrap()], b"Hello");
    assert_eq!(std::fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o600);
    let dangling = folder.path().join("dangling");
    std::os::unix::fs::symlink(folder.path().join("nothing"), &dangling).unwrap();
    refusal(&["encode", "-o", dangling.to_str().unwrap()], b"Hello");
    assert!(std::fs::symlink_metadata(&dangling).unwrap().is_symlink());
}

#[test]
fn a_file_of_weights_is_inspected() {
    let file = |name: &str| golden("pretrained").join(name).display().to_string();
    let shown = stdout(&["inspect", &file("gpt2/model.safetensors")], b"");
    let squeezed: Vec<String> = shown.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in [
        "transformer.wte.weight 50 x 8 F32",
        "transformer.h.0.ln_1.bias 8 F32",
        "table transformer.wte.weight: 50 rows x 8 columns; tied: the model has no head of its own",
        "zeros none",
    ] {
        assert!(squeezed.iter().any(|l| l == line), "{line}\nnot in\n{shown}");
    }
    // Rows that were never trained, and twins.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let rows = [[3f32, 4.], [0., 0.], [0.3, 0.4], [3., 4.], [5., 0.], [f32::NAN, 1.]];
    let rows = candle_core::Tensor::new(&rows, &candle_core::Device::Cpu).unwrap();
    candle_core::safetensors::save(&[("wte.weight".to_string(), rows)].into(), &path).unwrap();
    let found: Value = serde_json::from_str(&stdout(&["inspect", &path.display().to_string(), "--json"], b"")).unwrap();
    let statistics = &found["table"]["statistics"];
    assert_eq!(statistics["norms"], serde_json::json!([0.0, 0.5, 5.0, 5.0, 5.0]));
    assert_eq!(statistics["zero"], serde_json::json!([1]));
    assert_eq!(statistics["short"], serde_json::json!([2]));
    assert_eq!(statistics["duplicates"], serde_json::json!([[0, 3]]));
    assert_eq!(statistics["not_finite"], serde_json::json!([5]));
    let refused = refusal(&["inspect", &file("llama/model-00003-of-00003.safetensors"), "--tensor", "x"], b"");
    assert!(refused.contains("there is no tensor \"x\""), "{refused}");
    assert!(
        stdout(&["inspect", &file("gpt2.bin"), "--tensor", "lm_head.weight"], b"")
            .contains("table      lm_head.weight")
    );
}

#[test]
fn neighbors_are_printed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let rows = [[1f32, 0.], [1., 1.], [2., 0.1], [-1., 0.], [0., 1.]];
    let rows = candle_core::Tensor::new(&rows, &candle_core::Device::Cpu).unwrap();
    candle_core::safetensors::save(&[("wte.weight".to_string(), rows)].into(), &path).unwrap();
    let path = path.display().to_string();
    let found = stdout(&["neighbors", &path, "0", "4", "-k", "2", "--json"], b"");
    let lines: Vec<Value> = found.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids = |line: &Value| {
        line["neighbors"].as_array().unwrap().iter().map(|n| n["id"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!((ids(&lines[0]), ids(&lines[1])), (vec![2, 1], vec![1, 2]));
    assert!(refusal(&["neighbors", &path, "word"], b"").contains("no tokenizer.json is beside the file"));
    assert!(refusal(&["neighbors", &path, "5"], b"").contains("id 5 is not in this table: its ids run from 0 to 4"));
    // With a tokenizer, words; one of several tokens is the mean of its rows, and its tokens are no neighbors.
    assert!(
        refusal(&["neighbors", &path, "!", "--tokenizer", "cl100k"], b"").contains("a table of 5 rows is not cl100k")
    );
    let (path, small) = (folder.path().join("model.safetensors").display().to_string(), golden("byte_level.json"));
    let rows =
        candle_core::Tensor::arange(0f32, 384. * 2., &candle_core::Device::Cpu).unwrap().reshape((384, 2)).unwrap();
    candle_core::safetensors::save(&[("wte.weight".to_string(), rows)].into(), &path).unwrap();
    std::fs::copy(small, folder.path().join("tokenizer.json")).unwrap();
    let found = stdout(&["neighbors", &path, "#", "# $", "-k", "1"], b"");
    assert!(found.starts_with("#  (3)") && found.contains("# $  (3 221 4)") && found.contains("cosine"), "{found}");
    // With a tokenizer of another model ids work, and words do not.
    let narrow = folder.path().join("x.safetensors").display().to_string();
    assert!(stdout(&["neighbors", &narrow, "0", "--ids", "-k", "1"], b"").contains(" 2  0.99"));
    assert!(refusal(&["neighbors", &narrow, "#"], b"").contains("give its own tokenizer (--tokenizer)"));
}

#[test]
fn rows_are_pulled_out_of_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("rows.safetensors").display().to_string();
    let model = golden("pretrained/llama").display().to_string();
    let said = stdout(&["pull", &model, "--rows", "7,60..64", "-o", &out], b"");
    assert_eq!(said, format!("{out}: 5 rows x 8 columns of model.embed_tokens.weight, bf16\n"));
    let (whole, part) =
        (tallow::PretrainedTable::open(&model, None).unwrap(), tallow::PretrainedTable::open(&out, None).unwrap());
    let values = |rows: candle_core::Tensor| rows.to_dtype(candle_core::DType::F32).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(values(part.block(0..5).unwrap()), values(whole.rows(&[7, 60, 61, 62, 63]).unwrap()));
    assert!(!part.tied() && part.name() == "model.embed_tokens.weight");
    stdout(&["pull", &golden("pretrained/q8_0.gguf").display().to_string(), "-o", &out], b"");
    assert!(stdout(&["inspect", &out], b"").contains("token_embd.weight: 40 rows x 256 columns"));
    assert!(refusal(&["pull", &model, "--rows", "60..65", "-o", &out], b"").contains("end beyond the table"));
    assert!(refusal(&["pull", &model, "-o", "/nowhere/x"], b"").contains("/nowhere"));
}

/// A build without the Hub says in its helps, and in the error about a repository, which feature it needs.
#[test]
fn a_build_without_the_hub_says_so() {
    let hub = cfg!(feature = "hub");
    for command in ["pull", "neighbors", "plot", "show", "encode"] {
        let help = stdout(&[command, "--help"], b"");
        assert!(help.contains("Hub") && help.contains("--features hub") != hub, "{command}: {help}");
    }
    let help = stdout(&["prepare", "--help"], b"");
    assert_eq!(help.to_lowercase().contains("parquet"), cfg!(feature = "parquet"), "{help}");
    let gpus = ["cuda", "metal"].map(|name| stdout(&["show", "--help"], b"").contains(name));
    assert_eq!(gpus, [cfg!(feature = "cuda"), cfg!(feature = "metal")]);
    if !hub {
        for args in [
            &["pull", "owner/name", "-o", "/nowhere/x"][..],
            &["encode", "--tokenizer", "owner/name"],
            &["show", "x", "--table", "owner/name"],
            &["plot", "owner/name"],
            &["neighbors", "owner/name", "x"],
        ] {
            assert!(refusal(args, b"").contains("--features hub"), "{args:?}");
        }
    }
    // A name without an owner is not the name of a repository.
    for args in [&["pull", "my-model", "-o", "x"][..], &["neighbors", "my-model", "x"], &["plot", "my-model"]] {
        let missing = refusal(args, b"");
        assert!(missing.contains("my-model: No such file or folder (a repository on the Hub is named"), "{missing}");
    }
    // A file that is missing is no repository.
    let missing = refusal(&["encode", "--tokenizer", "nowhere/tokenizer.json"], b"");
    assert!(missing.contains("nowhere/tokenizer.json: No such file"), "{missing}");
}

#[test]
fn a_trained_table_brings_its_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let save = |rows: usize, name: &str| {
        let rows = candle_core::Tensor::zeros((rows, 2), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        candle_core::safetensors::save(&[("wte.weight".to_string(), rows)].into(), path(name)).unwrap();
    };
    save(100_256, "model.safetensors");
    let shown = |args: &[&str]| {
        let output = tallow(args, b"");
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let model = path("model.safetensors");
    // No tokenizer is beside the table: cl100k, with a note. A token without a row is an error.
    let (code, out, said) = shown(&["show", "#", "--table", &model]);
    assert!(code == Some(0) && out.contains("cl100k_base"), "{said}");
    assert_eq!(said, format!("note: no tokenizer.json is beside {model}: cl100k is taken (--tokenizer)\n"));
    let (code, _, said) = shown(&["show", "<|endoftext|>", "--specials", "allow", "--table", &model]);
    assert!(code == Some(2) && said.contains("id 100257") && said.contains("--specials text"), "{said}");
    assert!(!said.contains("--vocab-size") && !said.contains("vocab_size"), "{said}");
    // A tokenizer is beside the table.
    save(400, "model.safetensors");
    std::fs::copy(golden("byte_level.json"), path("tokenizer.json")).unwrap();
    for table in [&model, &path("")] {
        let (code, out, said) = shown(&["show", "#", "--table", table, "--json"]);
        assert!(code == Some(0) && said.is_empty() && out.contains("\"ids\":[3]"), "{said}");
    }
    assert!(refusal(&["show", "#", "--table", &model, "--tokenizer", "cl100k"], b"").contains("400 rows"));
    assert!(stdout(&["inspect", &model], b"").contains(", 3 #,"));
    assert!(stdout(&["show", "#", "--table", &model], b"").contains("382 tokens, and 1 special one\n"));
    // Rows of padding fit; another vocabulary does not.
    for (rows, fits) in [(382, false), (383, true), (1407, true), (1408, false)] {
        save(rows, "model.safetensors");
        assert_eq!(shown(&["plot", &model]).0 == Some(0), fits, "{rows}");
    }
}

#[test]
fn the_name_of_a_file_is_shown_with_a_note() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("h.txt").display().to_string();
    std::fs::write(&path, "Hello").unwrap();
    let output = tallow(&["show", &path, "--json"], b"");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && said.contains("its name is shown") && said.contains("tallow show - <"),
        "{said}"
    );
    assert!(tallow(&["show", "Hello"], b"").stderr.is_empty());
}

#[test]
fn special_tokens_are_asked_about_where_text_is_read() {
    for command in ["encode", "show", "prepare"] {
        assert!(stdout(&[command, "--help"], b"").contains("--specials"), "{command}");
    }
    for command in ["decode", "table", "inspect", "plot", "neighbors", "convert", "pull", "verify"] {
        assert!(!stdout(&[command, "--help"], b"").contains("--specials"), "{command}");
    }
    // So is --tokenizer's default, by what a command reads.
    for command in ["show", "table", "encode", "decode", "prepare", "inspect", "neighbors", "plot", "convert"] {
        let help = stdout(&[command, "--help"], b"");
        let own = ["show", "inspect", "neighbors", "plot", "convert"].contains(&command);
        assert_eq!(help.contains("gpt2 [default: cl100k]") || help.contains("hub) [default: cl100k]"), !own, "{help}");
    }
    for command in ["show", "table", "encode", "decode", "prepare", "pull", "convert"] {
        assert!(stdout(&[command, "--help"], b"").contains("-o, --out <"), "{command}");
    }
    assert!(stdout(&["prepare", "--help"], b"").contains("Ctrl-C leaves the finished units"));
}

#[test]
fn folders_of_weights_are_inspected() {
    let squeezed = |text: String| text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let shown: Vec<String> = squeezed(stdout(&["inspect", golden("pretrained/llama").to_str().unwrap()], b""));
    for line in [
        "lm_head.weight 64 x 8 BF16",
        "model.norm.weight 8 BF16",
        "table model.embed_tokens.weight: 64 rows x 8 columns; the model has a head of its own",
    ] {
        assert!(shown.iter().any(|l| l == line), "{line}\nnot in\n{}", shown.join("\n"));
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let varmap = candle_nn::VarMap::new();
    let vb = candle_nn::VarBuilder::from_varmap(&varmap, candle_core::DType::F32, &candle_core::Device::Cpu);
    vb.get_with_hints((9, 4), "wte.weight", candle_nn::Init::Const(1.0)).unwrap();
    for step in [100, 200] {
        let loader = tallow::loader::LoaderState {
            version: 1,
            dataset: "0123456789abcdef".to_string(),
            order: tallow::Order::Sequential,
            context_length: 32,
            seed: 1,
            epoch: 2,
            samples: 77,
        };
        let state =
            tallow::Checkpoint { step, seed: 7, tokenizer: Some(255), loader: Some(loader), ..Default::default() };
        state.save(&run, &varmap, None, 0).unwrap();
    }
    // The newest of a run, or the one that is named.
    for (path, step) in [(run.clone(), 200), (run.join("step-00000100"), 100)] {
        let path = path.to_str().unwrap();
        let shown = stdout(&["inspect", path], b"");
        for part in [
            format!("checkpoint step {step}, seed 7: {}", run.join(format!("step-{step:08}")).display()),
            "tokenizer  00000000000000ff".to_string(),
            "loader     77 samples of 32 tokens given out, epoch 2, of dataset 0123456789abcdef".to_string(),
            "table      wte.weight: 9 rows x 4 columns".to_string(),
        ] {
            assert!(shown.lines().any(|line| line.starts_with(&part)), "{part}\nnot in\n{shown}");
        }
        let json: Value = serde_json::from_str(&stdout(&["inspect", path, "--json"], b"")).unwrap();
        assert_eq!((&json["checkpoint"]["state"]["step"], &json["table"]["rows"]), (&step.into(), &9.into()));
    }
    let nothing = refusal(&["inspect", folder.path().to_str().unwrap()], b"");
    for part in ["manifest.json", "step-N", "model.safetensors", ".gguf"] {
        assert!(nothing.contains(part), "{nothing}");
    }
}
