//! Pictures: the same bytes for a seed, true numbers, and what no font or file can do.

use candle_core::{DType, Device, Tensor};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tallow::prepare::{PrepareConfig, prepare};
use tallow::shard::Statistics;
use tallow::{PretrainedTable, Tokenizer};
use tallow_view::{DatasetPlot, Figure, Fonts, Lang, Lookup, TablePlot, loss_curve};

use crate::support::{golden, golden_json};
use crate::tables::{before_and_after, table};

const LESSON: &str = "小沈阳江西演唱会邀请了,";

fn lesson() -> Lookup {
    Lookup::new(&Tokenizer::cl100k(), &table(100256, 64), LESSON).unwrap()
}

fn statistics(folder: &std::path::Path) -> Statistics {
    let out = folder.join("tokens");
    let cfg = PrepareConfig { inputs: vec![golden("corpus.jsonl")], out: out.clone(), ..Default::default() };
    prepare(&Tokenizer::cl100k(), &cfg, &|_| ()).unwrap();
    Statistics::read(&out, "train", 3, &|_, _| ()).unwrap()
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
    let hash = |bytes: &[u8]| tallow_view::hex(&Sha256::digest(bytes)).replace(' ', "").to_lowercase();
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
    let lookup = lesson();
    let png = lookup.figure(Lang::En).unwrap().png(&Fonts::bundled(), 1.0).unwrap();
    let image = resvg::tiny_skia::Pixmap::decode_png(&png).unwrap();
    assert_eq!((image.width(), image.height()), lookup.figure(Lang::En).unwrap().size());
    let mut seen = 0;
    for (row, values) in lookup.values.iter().enumerate() {
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
        |text: &str| Lookup::new(&Tokenizer::cl100k(), &table(100256, 8), text).unwrap().figure(Lang::En).unwrap();
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
        let lookup = Lookup::new(&Tokenizer::cl100k(), &table(100256, 4), &text).unwrap();
        let svg = lookup.figure(Lang::Zh).unwrap().svg(&Fonts::bundled()).unwrap();
        assert!(svg.starts_with("<svg") && svg.len() < 3_000_000, "{} bytes for {text:?}", svg.len());
        let page = lookup.page(Lang::En).unwrap();
        assert_eq!(page.matches("<script").count(), 2, "its data and its program");
        assert!(!page.contains("alert(1)</script>"));
    }
}

#[test]
fn tables_of_every_size_draw() {
    for (rows, d_model, text) in [(100256, 1, "a"), (100256, 1000, "a b c"), (100300, 3, LESSON)] {
        let lookup = Lookup::new(&Tokenizer::cl100k(), &table(rows, d_model), text).unwrap();
        lookup.figure(Lang::En).unwrap().svg(&Fonts::bundled()).unwrap();
        lookup.page(Lang::Zh).unwrap();
    }
    // Values that are no numbers have words in the page and a colour of their own.
    let mut lookup = Lookup::new(&Tokenizer::cl100k(), &table(100256, 3), "!").unwrap();
    lookup.values = vec![vec![f32::NAN, f32::NEG_INFINITY, 1.0]];
    assert!(lookup.page(Lang::En).unwrap().contains(r#""0":["NaN","-inf",1.0]"#));
    lookup.figure(Lang::En).unwrap().png(&Fonts::bundled(), 1.0).unwrap();
}

#[test]
fn a_page_of_many_values_says_what_it_leaves_out() {
    let text: String = (0..20_000).map(|i| format!(" {}", i * 7919 % 1000)).collect();
    let lookup = Lookup::new(&Tokenizer::cl100k(), &table(100256, 512), &text).unwrap();
    let page = lookup.page(Lang::En).unwrap();
    assert!(page.len() < 5_000_000, "{}", page.len());
    assert!(page.contains("The first 4000 tokens are shown.") && page.contains("columns are shown."));
}

#[test]
fn tables_of_every_kind_draw() {
    let folder = tempfile::tempdir().unwrap();
    let normal = |scale: f32| (table(300, 8).flushed_weight().unwrap().copy().unwrap() * f64::from(scale)).unwrap();
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
    let cfg = PrepareConfig { inputs: vec![text], out: out.clone(), unit_bytes: Some(2_000_000), ..Default::default() };
    let manifest = prepare(&Tokenizer::cl100k(), &cfg, &|_| ()).unwrap().unwrap();
    let split = &manifest.splits["train"];
    assert!(split.shards.len() > 1 && split.documents == 1, "{} shards", split.shards.len());
    let statistics = Statistics::read(&out, "train", 2, &|_, _| ()).unwrap();
    assert_eq!(statistics.lengths.iter().sum::<u64>(), 1);
    assert_eq!((statistics.longest.len(), statistics.longest[0].tokens), (1, split.tokens));
}
