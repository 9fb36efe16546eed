//! Pictures: the same bytes for a seed, true numbers, and what no font or file can do.

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tallow::shard::Statistics;
use tallow::view::{DatasetPlot, Figure, Fonts, Lang, LookUp, TablePlot, loss_curve};
use tallow::{PretrainedTable, RowChange, TokenEmbedding, TokenEmbeddingConfig, Tokenizer};

use crate::cli::{refusal, stdout, tallow};
use crate::{golden, golden_json};

pub const LESSON: &str = "小沈阳江西演唱会邀请了,";

fn table(rows: usize, d_model: usize) -> TokenEmbedding {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let cfg = TokenEmbeddingConfig { vocab_size: rows, d_model, ..Default::default() };
    TokenEmbedding::new(&cfg, vb.pp("wte")).unwrap()
}

fn lesson() -> LookUp {
    LookUp::new(&Tokenizer::cl100k(), &table(100256, 64), LESSON).unwrap()
}

/// Two tables in a folder: rows 3, 700 and 41 of the second were moved by 3, 2 and 1, row 5 was halved; the others are equal.
fn before_and_after(folder: &std::path::Path) -> (String, String) {
    let before = table(1000, 16).weight().unwrap().copy().unwrap();
    let mut rows = before.to_vec2::<f32>().unwrap();
    for (row, distance) in [(3, 3.0f32), (700, 2.0), (41, 1.0)] {
        rows[row][row % 16] += distance;
    }
    rows[5].iter_mut().for_each(|value| *value *= 0.5);
    let after = Tensor::new(rows, &Device::Cpu).unwrap();
    let path = |name: &str| folder.join(name).to_str().unwrap().to_string();
    for (name, tensor) in [("before.safetensors", before), ("after.safetensors", after)] {
        candle_core::safetensors::save(&[("wte.weight", tensor)].into(), path(name)).unwrap();
    }
    (path("before.safetensors"), path("after.safetensors"))
}

fn statistics(folder: &std::path::Path) -> Statistics {
    let out = folder.join("tokens");
    stdout(&["prepare", golden("corpus.jsonl").to_str().unwrap(), "--out", out.to_str().unwrap()], b"");
    Statistics::read(&out, "train", 3, |_| ()).unwrap()
}

#[test]
fn figures_are_the_same_bytes_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let (before, after) = before_and_after(folder.path());
    let [before, after] = [before, after].map(|path| PretrainedTable::open(path, None).unwrap());
    let name = |id: u32| Some(format!("词{id}"));
    let moved = TablePlot::new(&after, Some(&before), &[], 50, name).unwrap();
    let alone = TablePlot::new(&after, None, &[5, 1, 999], 50, name).unwrap();
    let data = DatasetPlot::new(&statistics(folder.path()), |id| Tokenizer::cl100k().token_bytes(id).map(|b| b.len()));
    let curve: Vec<(u64, f32, f32)> = (1..40).map(|i| (250 * i, 8.0 / i as f32 + 2.9, 8.0 + 0.03 * i as f32)).collect();
    let figures: [(&str, Figure); 8] = [
        ("look-up-zh", lesson().figure(Lang::Zh).unwrap()),
        ("look-up-en", lesson().figure(Lang::En).unwrap()),
        ("table-before-and-after-zh", moved.figure(Lang::Zh).unwrap()),
        ("table-before-and-after-en", moved.figure(Lang::En).unwrap()),
        ("table-en", alone.figure(Lang::En).unwrap()),
        ("dataset-en", data.figure(Lang::En).unwrap()),
        ("dataset-zh", data.figure(Lang::Zh).unwrap()),
        ("loss-en", loss_curve(&curve, Lang::En).unwrap()),
    ];
    let hash = |bytes: &[u8]| tallow::view::hex(&Sha256::digest(bytes)).replace(' ', "").to_lowercase();
    let svg = |figure: &Figure| figure.svg(&Fonts::bundled()).unwrap();
    let found: Value =
        figures.iter().map(|(name, figure)| (name.to_string(), json!(hash(svg(figure).as_bytes())))).collect();
    // Where a figure changes on purpose: look at it (target/tmp/figures), then put these hashes into the golden file.
    let seen = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("figures");
    std::fs::create_dir_all(&seen).unwrap();
    for (name, figure) in &figures {
        std::fs::write(seen.join(format!("{name}.svg")), svg(figure)).unwrap();
    }
    assert_eq!(found, golden_json("figures.json"), "{found:#}");
    assert_eq!(svg(&figures[0].1), svg(&lesson().figure(Lang::Zh).unwrap()), "twice the same");
}

#[test]
fn the_figure_has_every_cell_in_its_colour() {
    // A PNG of one pixel a pixel; the middle of each cell must tell the sign of its value.
    let look_up = lesson();
    let png = look_up.figure(Lang::En).unwrap().png(&Fonts::bundled(), 1.0).unwrap();
    let image = resvg::tiny_skia::Pixmap::decode_png(&png).unwrap();
    assert_eq!((image.width(), image.height()), look_up.figure(Lang::En).unwrap().size());
    let mut seen = 0;
    for (row, values) in look_up.values.iter().enumerate() {
        for (column, value) in values.iter().enumerate().filter(|(_, value)| value.abs() > 0.01) {
            let (x, y) = (550 + (624 * (2 * column + 1)) / 128, 112 + 24 * row + 12);
            let pixel = image.pixel(x as u32, y as u32).unwrap();
            assert_eq!(pixel.red() > pixel.blue(), *value > 0.0, "row {row}, column {column}: {value}, {pixel:?}");
            seen += 1;
        }
    }
    assert!(seen > 300, "{seen}");
}

#[test]
fn text_is_outlined_in_the_font_that_comes_along() {
    let fonts = Fonts::bundled();
    let figure =
        |text: &str| LookUp::new(&Tokenizer::cl100k(), &table(100256, 8), text).unwrap().figure(Lang::En).unwrap();
    let svg = figure("数字 ½ Ωж ア，你好").svg(&fonts).unwrap();
    assert!(!svg.contains("<text"), "text needs a font wherever the figure is opened");
    assert!(svg.contains("<title>"), "a screen reader has something to say");
    // A character without a glyph is its number; one with a glyph is not.
    let same = |a: &str, b: &str| figure(a).svg(&fonts).unwrap() == figure(b).svg(&fonts).unwrap();
    assert!(!same("한", "龘"));
    let outlines = |text: &str| figure(text).svg(&fonts).unwrap().len();
    assert!(outlines("한") > outlines("数") + 2000, "the number has many more outlines than a character");
    let error = Fonts::bundled().with_file(golden("corpus.json")).unwrap_err().to_string();
    assert!(error.contains("corpus.json") && error.contains("no TTF"), "{error}");
    assert!(figure("a").png(&fonts, f32::NAN).is_err() && figure("a").png(&fonts, 1e6).is_err());
}

#[test]
fn hostile_text_draws_and_is_escaped() {
    let texts =
        ["", "\0\u{202e}\u{301}", "<script>alert(1)</script>", "]]>&amp;\"'", "\u{fffe}\u{ffff}\u{1f}", "👨‍👩‍👧\r\n"];
    for text in texts.map(String::from).into_iter().chain(["x".repeat(10_000)]) {
        let look_up = LookUp::new(&Tokenizer::cl100k(), &table(100256, 4), &text).unwrap();
        let svg = look_up.figure(Lang::Zh).unwrap().svg(&Fonts::bundled()).unwrap();
        assert!(svg.starts_with("<svg") && svg.len() < 3_000_000, "{} bytes for {text:?}", svg.len());
        let page = look_up.page(Lang::En).unwrap();
        assert_eq!(page.matches("<script").count(), 2, "its data and its program");
        assert!(!page.contains("alert(1)</script>"));
    }
}

#[test]
fn tables_of_every_size_draw() {
    for (rows, d_model, text) in [(100256, 1, "a"), (100256, 1000, "a b c"), (100300, 3, LESSON)] {
        let look_up = LookUp::new(&Tokenizer::cl100k(), &table(rows, d_model), text).unwrap();
        look_up.figure(Lang::En).unwrap().svg(&Fonts::bundled()).unwrap();
        look_up.page(Lang::Zh).unwrap();
    }
    // Values that are no numbers have words in the page and a colour of their own.
    let mut look_up = LookUp::new(&Tokenizer::cl100k(), &table(100256, 3), "!").unwrap();
    look_up.values = vec![vec![f32::NAN, f32::NEG_INFINITY, 1.0]];
    assert!(look_up.page(Lang::En).unwrap().contains(r#""0":["NaN","-inf",1.0]"#));
    look_up.figure(Lang::En).unwrap().png(&Fonts::bundled(), 1.0).unwrap();
}

#[test]
fn a_page_of_many_values_says_what_it_leaves_out() {
    let text: String = (0..20_000).map(|i| format!(" {}", i * 7919 % 1000)).collect();
    let look_up = LookUp::new(&Tokenizer::cl100k(), &table(100256, 512), &text).unwrap();
    let page = look_up.page(Lang::En).unwrap();
    assert!(page.len() < 5_000_000, "{}", page.len());
    assert!(page.contains("The first 4000 tokens are shown.") && page.contains("columns are shown."));
}

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
    // A table that grew: the rows that are in both.
    let grown = folder.path().join("grown.safetensors");
    candle_core::safetensors::save(&[("wte.weight", table(1200, 16).weight().unwrap().copy().unwrap())].into(), &grown)
        .unwrap();
    let grown = PretrainedTable::open(&grown, None).unwrap();
    assert_eq!(grown.changes_since(&old).unwrap().count(RowChange::Equal), 1000, "the same seed");
    let plot = TablePlot::new(&grown, Some(&old), &[1100, 3], 0, |_| None).unwrap();
    assert!(plot.chosen[0].before.is_none() && plot.chosen[1].before.is_some());
    plot.figure(Lang::En).unwrap();
}

#[test]
fn tables_of_every_kind_draw() {
    let folder = tempfile::tempdir().unwrap();
    let normal = |scale: f32| (table(300, 8).weight().unwrap().copy().unwrap() * f64::from(scale)).unwrap();
    let mut odd = normal(1.0).to_vec2::<f32>().unwrap();
    (odd[5][3], odd[7][0], odd[9]) = (f32::NAN, f32::INFINITY, vec![0.0; 8]);
    let tables = [
        Tensor::zeros((1, 4), DType::F32, &Device::Cpu).unwrap(),
        Tensor::ones((500, 4), DType::F32, &Device::Cpu).unwrap(),
        normal(1.0).narrow(1, 0, 1).unwrap().contiguous().unwrap(),
        normal(1e-30),
        normal(1e30),
        Tensor::full(f32::MAX, (100, 64), &Device::Cpu).unwrap(),
        Tensor::new(odd, &Device::Cpu).unwrap(),
    ];
    for (i, tensor) in tables.into_iter().enumerate() {
        let path = folder.path().join(format!("{i}.safetensors"));
        candle_core::safetensors::save(&[("wte.weight", tensor)].into(), &path).unwrap();
        let table = PretrainedTable::open(&path, None).unwrap();
        for before in [None, Some(&table)] {
            let plot = TablePlot::new(&table, before, &[], 100, |_| None).unwrap();
            plot.figure(Lang::Zh).unwrap().svg(&Fonts::bundled()).unwrap();
            plot.page("a table", Lang::En).unwrap();
            assert_eq!(plot.counts(), before.map(|_| [0, 0, table.vocab_size()]));
        }
    }
}

#[test]
fn counts_of_a_dataset_are_those_of_its_ids() {
    let folder = tempfile::tempdir().unwrap();
    let statistics = statistics(folder.path());
    let plot = DatasetPlot::new(&statistics, |id| Tokenizer::cl100k().token_bytes(id).map(|bytes| bytes.len()));
    let documents: Vec<String> = std::fs::read_to_string(golden("corpus.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().to_string())
        .collect();
    let tokenizer = Tokenizer::cl100k();
    let (mut seen, mut tokens, mut bytes) = (std::collections::HashSet::new(), 0u64, vec![0u64; 16]);
    let mut all_bytes = 0;
    let (mut growth, mut lengths) = (vec![0usize], std::collections::BTreeMap::new());
    for document in documents.iter().filter(|document| !document.is_empty()) {
        let ids = tokenizer.encode(document).unwrap();
        *lengths.entry((2.0 * ((ids.len() + 1) as f64).log2() + 1e-12).floor() as usize).or_insert(0u64) += 1;
        for id in ids.into_iter().chain([100257]) {
            seen.insert(id);
            tokens += 1;
            growth.push(seen.len());
            let length = tokenizer.token_bytes(id).unwrap().len();
            bytes[length.min(16) - 1] += 1;
            all_bytes += length;
        }
    }
    assert_eq!(plot.frequencies.iter().sum::<u64>(), tokens);
    assert_eq!(plot.frequencies.len(), seen.len());
    assert!(plot.frequencies.is_sorted_by(|a, b| a >= b));
    assert_eq!(plot.token_bytes, bytes);
    assert!((plot.bytes_per_token - all_bytes as f64 / tokens as f64).abs() < 1e-12);
    assert_eq!(plot.growth.last(), Some(&(tokens, seen.len())));
    assert!(plot.growth.len() > 20 && plot.growth.iter().all(|(at, rows)| growth[*at as usize] == *rows));
    let found: std::collections::BTreeMap<usize, u64> =
        plot.lengths.iter().copied().enumerate().filter(|(_, count)| *count > 0).collect();
    assert_eq!(found, lengths);
}

#[test]
fn a_document_that_was_cut_between_shards_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("long.txt");
    std::fs::write(&text, "one two three four five\n\n".repeat(400_000)).unwrap();
    let out = folder.path().join("tokens");
    let [text, out] = [&text, &out].map(|path| path.to_str().unwrap());
    stdout(&["prepare", text, "--out", out, "--unit-bytes", "2000000"], b"");
    let manifest = tallow::shard::Manifest::read(out).unwrap();
    let split = &manifest.splits["train"];
    assert!(split.shards.len() > 1 && split.documents == 1, "{} shards", split.shards.len());
    let statistics = Statistics::read(out.as_ref(), "train", 2, |_| ()).unwrap();
    assert_eq!(statistics.lengths.iter().sum::<u64>(), 1);
    assert_eq!((statistics.longest.len(), statistics.longest[0].tokens), (1, split.tokens));
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
    refused(&["show", "a", "--html", &path("no/folder/page.html")], "no/folder");
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
    candle_core::safetensors::save(&[("wte.weight", table(10, 3).weight().unwrap().copy().unwrap())].into(), &narrow)
        .unwrap();
    refused(&["plot", &after, "--before", &narrow], "has 16 columns and");
    let torn = path("torn.safetensors");
    std::fs::write(&torn, &std::fs::read(&after).unwrap()[..1000]).unwrap();
    refused(&["plot", &torn], "torn.safetensors");
    refused(&["plot", &before, "--before", &torn], "torn.safetensors");
    let tokens = path("tokens");
    stdout(&["prepare", golden("corpus.jsonl").to_str().unwrap(), "--out", &tokens], b"");
    refused(&["plot", &tokens, "--before", &before], "for tables");
    refused(&["plot", &tokens, "--split", "val"], "only in: train");
    assert!(!std::path::Path::new(&path("a.png")).exists() && !std::path::Path::new(&path("a.svg")).exists());
}

/// The pages in a real browser; screenshots lie in target/tmp/screenshots.
#[test]
#[ignore = "needs Chromium, and Python with playwright"]
fn needs_chromium_pages_work() {
    let python = crate::interop::python("playwright.sync_api");
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
    std::fs::write(path("hostile.txt"), tallow::view::one_line(&hostile)).unwrap();
    let (before, after) = before_and_after(folder.path());
    let small = golden("byte_level.json");
    let small = small.to_str().unwrap();
    stdout(
        &["plot", &after, "--before", &before, "--tokenizer", small, "--lang", "en", "--html", &path("plot.html")],
        b"",
    );
    let shots = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("screenshots");
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/browser.py");
    let output =
        std::process::Command::new(python).arg(script).args([folder.path(), &shots, &chromium]).output().unwrap();
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{error}");
    println!("{out}");
}
