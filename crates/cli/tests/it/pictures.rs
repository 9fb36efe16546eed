//! Pictures, as the commands write them.

use candle_core::Tensor;
use serde_json::{Value, json};
use tallow::{PretrainedTable, RowChange};
use tallow_view::{Lang, TablePlot};

use crate::cli::{LESSON, refusal, stdout, tallow};
use crate::support::{golden, root};
use crate::tables::{before_and_after, table};

#[test]
fn what_moved_is_what_was_moved() {
    let folder = tempfile::tempdir().unwrap();
    let (before, after) = before_and_after(folder.path());
    let [old, new] = [&before, &after].map(|path| PretrainedTable::open(path, None).unwrap());
    let changes = new.changes_since(&old).unwrap();
    assert_eq!(changes.moved(), [3, 700, 41]);
    let counts = [RowChange::Moved, RowChange::Shrunk, RowChange::Equal].map(|what| changes.count(what));
    assert_eq!(counts, [3, 1, 996]);
    assert!((changes.distances[3] - 3.0).abs() < 1e-6 && changes.distances[0] == 0.0);
    let said: Value = serde_json::from_str(&stdout(&["plot", &after, "--before", &before, "--json"], b"")).unwrap();
    assert_eq!((&said["moved"], &said["shrunk"], &said["equal"]), (&json!(3), &json!(1), &json!(996)));
    assert_eq!(said["mapped"], json!([3, 700, 41]));
    assert_eq!(said["farthest"][1]["id"], 700);
    // A sentence's look-up in the trained table. (The tokenizer must be one that such a table can have.)
    let small = golden("byte_level.json").display().to_string();
    let said: Value =
        serde_json::from_str(&stdout(&["show", "# J", "--table", &after, "--tokenizer", &small, "--json"], b""))
            .unwrap();
    let row: Vec<f32> = serde_json::from_value(said["values"][0].clone()).unwrap();
    assert_eq!(new.rows(&[3]).unwrap().to_vec2::<f32>().unwrap()[0], row);
    assert_eq!((&said["seed"], &said["rows"], &said["exact"]), (&Value::Null, &json!(1000), &json!(true)));
    assert!(said["origin"].as_str().unwrap().contains("after.safetensors"), "{said}");
    let other = tallow(&["show", "Conveyor", "--table", &after], b"");
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(
        said.contains("note: no tokenizer.json is beside") && said.contains("a table of 1000 rows is not cl100k"),
        "{said}"
    );
    assert!(refusal(&["show", "$", "--table", &after, "--seed", "3"], b"").contains("cannot be used with"));
    let page = folder.path().join("plot.html");
    let printed = stdout(
        &["plot", &after, "--before", &before, "--tokenizer", &small, "--html", page.to_str().unwrap(), "--lang", "en"],
        b"",
    );
    assert!(printed.contains("trained    3 rows; 1 only shrank by weight decay, 996 are equal"), "{printed}");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<td class=\"token\">#</td>"), "row 3 is the token #");
    // Nothing moved.
    let printed = stdout(&["plot", &after, "--before", &after, "--svg", &format!("{after}.svg")], b"");
    assert!(printed.contains("trained    0 rows; 0 only shrank by weight decay, 1 000 are equal"), "{printed}");
    assert!(!printed.contains("farthest"), "{printed}");
    // A table that grew: the rows that are in both.
    let grown = folder.path().join("grown.safetensors");
    candle_core::safetensors::save(
        &[("wte.weight", table(1200, 16).flushed_weight().unwrap().copy().unwrap())].into(),
        &grown,
    )
    .unwrap();
    let grown = PretrainedTable::open(&grown, None).unwrap();
    assert_eq!(grown.changes_since(&old).unwrap().count(RowChange::Equal), 1000, "the same seed");
    let plot = TablePlot::new(&grown, Some(&old), &[1100, 3], 0, |_| None).unwrap();
    assert!(plot.chosen[0].before.is_none() && plot.chosen[1].before.is_some());
    plot.figure(Lang::En).unwrap();
}

#[test]
fn projector_and_numpy_files_hold_the_matrix() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let text = "tab\tnew\nline tab 沈";
    let args = ["show", text, "--json", "--tsv", &path("tsv"), "--npy", &path("m.npy")];
    let said: Value = serde_json::from_str(&stdout(&args, b"")).unwrap();
    let values: Vec<Vec<f32>> = serde_json::from_value(said["values"].clone()).unwrap();
    assert_eq!(Tensor::read_npy(path("m.npy")).unwrap().to_vec2::<f32>().unwrap(), values);
    let read = |name: &str| std::fs::read_to_string(folder.path().join("tsv").join(name)).unwrap();
    let (tensors, metadata) = (read("tensors.tsv"), read("metadata.tsv"));
    let metadata: Vec<Vec<&str>> = metadata.lines().map(|line| line.split('\t').collect()).collect();
    let tensors: Vec<Vec<f32>> =
        tensors.lines().map(|line| line.split('\t').map(|value| value.parse().unwrap()).collect()).collect();
    assert_eq!(metadata[0], ["token", "id"]);
    assert_eq!(metadata.len(), tensors.len() + 1);
    let ids: Vec<u64> = said["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    for (row, line) in tensors.iter().zip(&metadata[1..]) {
        let at = ids.iter().position(|id| id.to_string() == line[1]).unwrap();
        assert_eq!((row, line.len()), (&values[at], 2));
    }
    assert!(metadata.iter().any(|line| line[0].contains("\\t")), "{metadata:?}");
    // The first rows of a table.
    let (_, after) = before_and_after(folder.path());
    stdout(&["plot", &after, "--top", "7", "--tsv", &path("top")], b"");
    assert_eq!(std::fs::read_to_string(folder.path().join("top/tensors.tsv")).unwrap().lines().count(), 7);
}

#[test]
fn labels_speak_the_language_of_the_environment_or_of_the_text() {
    let folder = tempfile::tempdir().unwrap();
    let language = |text: &str, lang: &str, environment: &[(&str, &str)]| {
        let page = folder.path().join("page.html");
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tallow"));
        command.env_remove("LC_ALL").env_remove("LC_MESSAGES").env_remove("LANG").envs(environment.iter().copied());
        command.args(["show", text, "--lang", lang, "--html"]).arg(&page);
        assert!(command.output().unwrap().status.success());
        let page = std::fs::read_to_string(page).unwrap();
        if page.contains("<html lang=\"zh-CN\">") { "zh" } else { "en" }
    };
    assert_eq!(language("Hello", "auto", &[]), "en");
    assert_eq!(language("数字", "auto", &[]), "zh");
    assert_eq!(language("数字", "auto", &[("LANG", "C.UTF-8")]), "zh");
    assert_eq!(language("数字", "auto", &[("LANG", "en_US.UTF-8")]), "en");
    assert_eq!(language("Hello", "auto", &[("LANG", "zh_CN.UTF-8")]), "zh");
    assert_eq!(language("Hello", "auto", &[("LANG", "zh_CN.UTF-8"), ("LC_ALL", "de_DE.UTF-8")]), "en");
    assert_eq!(language("数字", "en", &[("LANG", "zh_CN.UTF-8")]), "en");
    assert_eq!(language("Hello", "zh", &[]), "zh");
}

#[test]
fn what_cannot_be_drawn_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let (before, after) = before_and_after(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let refused = |args: &[&str], says: &str| {
        let error = refusal(args, b"");
        assert!(error.contains(says), "{args:?}: {error}");
    };
    refused(&["show", "a", "--html", &path("no/folder/page.html")], "no/folder: make it first");
    refused(&["show", "a", "--svg", &path("")], "is a folder");
    refused(&["show", "a", "--svg", &path("a.svg"), "--font", golden("head.json").to_str().unwrap()], "no TTF");
    refused(&["show", "a", "--png", &path("a.png"), "--scale", "1e9"], "pixels");
    refused(&["show", "a", "--png", &path("a.png"), "--scale", "0"], "pixels");
    refused(&["show", "a", "--lang", "fr"], "zh, en, auto");
    refused(&["plot", &path("missing")], "missing");
    refused(&["plot", &after, "--tokens", "a"], "--tokenizer cl100k");
    refused(
        &["plot", &after, "--tokenizer", "cl100k", "--tokens", "Conveyor"],
        "a table of 1000 rows is not cl100k_base's",
    );
    refused(&["plot", &after, "--tokenizer", golden("byte_level.json").to_str().unwrap(), "--tokens", ""], "1 to 1000");
    refused(&["plot", &after, "--top", "5000"], "1..=1000");
    let narrow = path("narrow.safetensors");
    candle_core::safetensors::save(
        &[("wte.weight", table(10, 3).flushed_weight().unwrap().copy().unwrap())].into(),
        &narrow,
    )
    .unwrap();
    refused(&["plot", &after, "--before", &narrow], "has 16 columns and");
    let torn = path("torn.safetensors");
    std::fs::write(&torn, &std::fs::read(&after).unwrap()[..1000]).unwrap();
    refused(&["plot", &torn], "torn.safetensors");
    refused(&["plot", &before, "--before", &torn], "torn.safetensors");
    let tokens = path("tokens");
    stdout(&["prepare", golden("corpus.jsonl").to_str().unwrap(), "--out", &tokens], b"");
    refused(&["plot", &tokens, "--before", &before], "for tables");
    refused(&["plot", &tokens, "--split", "val"], "has no ids");
    std::fs::remove_file(path("tokens/manifest.json")).unwrap();
    for command in ["plot", "inspect"] {
        refused(&[command, &path("tokens/train/000000.bin")], "this is a shard: give its folder");
        refused(&[command, &tokens], "its shards are not finished: run the same `tallow prepare` again");
    }
    assert!(!std::path::Path::new(&path("a.png")).exists() && !std::path::Path::new(&path("a.svg")).exists());
}

/// The pages in a real browser; screenshots lie in target/tmp/screenshots.
#[test]
#[ignore = "needs Chromium, and Python with playwright"]
fn needs_chromium_pages_work() {
    let python = crate::support::python("playwright.sync_api");
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).flat_map(|folder| names.map(|name| folder.join(name))).find(|path| path.is_file());
    let chromium = found.expect("no Chromium on the path");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    for lang in ["zh", "en"] {
        stdout(&["show", LESSON, "--lang", lang, "--html", &path(&format!("sentence-{lang}.html"))], b"");
    }
    std::fs::write(path("sentence.json"), stdout(&["show", LESSON, "--json"], b"")).unwrap();
    stdout(&["show", "一 一 一 two", "--lang", "en", "--html", &path("repeated.html")], b"");
    let long: String = (0..440).map(|i| format!(" {} 阳{}", ["the", "row", "id"][i % 3], i % 97)).collect();
    stdout(&["show", "-", "--lang", "en", "--html", &path("long.html")], long.as_bytes());
    let hostile = format!(
        "<script>alert(1)</script></script><b>\"q'</b>&amp;\0nul\u{202e}rtl\u{200f}\u{301}\u{302}e\u{301}{}\u{feff}<!--{{{{x}}}}]]>👨\u{200d}👩\u{200d}👧\u{1b}[31m\r\n\t沈",
        "x".repeat(10_000)
    );
    stdout(&["show", "-", "--lang", "en", "--html", &path("hostile.html")], hostile.as_bytes());
    std::fs::write(path("hostile.txt"), tallow_view::one_line(&hostile)).unwrap();
    let (before, after) = before_and_after(folder.path());
    let small = golden("byte_level.json");
    let small = small.to_str().unwrap();
    stdout(
        &["plot", &after, "--before", &before, "--tokenizer", small, "--lang", "en", "--html", &path("plot.html")],
        b"",
    );
    let shots = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("screenshots");
    let script = root().join("tests/interop/browser.py");
    let output =
        std::process::Command::new(python).arg(script).args([folder.path(), &shots, &chromium]).output().unwrap();
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{error}");
    println!("{out}");
}
