//! What the functions return.

use std::io::Write;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, DictionaryArray, FixedSizeListArray, Int64Array, LargeListArray, LargeStringArray,
    ListArray, StringArray, StringViewArray,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Float64Type, Int32Type, Int64Type};
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::prelude::{JsonReadOptions, ParquetReadOptions};
use sha2::{Digest, Sha256};
use tallow_text::{Specials, Tokenizer};

use crate::{column, file, golden_json, id_lists, ids_of, rows, session, session_with, story};

/// What a text may hold: nothing, no text, special tokens, both languages.
fn texts() -> Vec<Option<String>> {
    let mut texts = vec![None, Some(String::new()), Some("a<|endoftext|>b".to_string())];
    texts.extend(story().into_iter().take(40).map(Some));
    texts.extend([None, Some("😀 naïve\r\n".to_string()), None]);
    texts
}

fn string_arrays(texts: &[Option<String>]) -> Vec<ArrayRef> {
    let texts: Vec<Option<&str>> = texts.iter().map(Option::as_deref).collect();
    vec![
        Arc::new(StringArray::from(texts.clone())),
        Arc::new(LargeStringArray::from(texts.clone())),
        Arc::new(StringViewArray::from(texts.clone())),
        Arc::new(texts.into_iter().collect::<DictionaryArray<Int32Type>>()),
    ]
}

#[tokio::test]
async fn the_ids_are_tiktokens() {
    let (ctx, golden) = (session(), golden_json("cl100k.json"));
    for (case, ids) in [("lesson", "ids"), ("special", "as_text")] {
        let text = golden[case]["text"].as_str().unwrap();
        let ids = ids_of(&golden[case][ids]);
        assert_eq!(id_lists(&column(&ctx, &format!("SELECT encode('{text}')")).await), [Some(ids)]);
    }
    // A corpus that Python has written: as Parquet, and as JSON Lines.
    let golden = golden_json("corpus.json");
    let path = |name: &str| file("tests/golden").join(name).to_str().unwrap().to_string();
    ctx.register_parquet("parquet", path("corpus.parquet"), ParquetReadOptions::default()).await.unwrap();
    let jsonl = JsonReadOptions::default().file_extension(".jsonl");
    ctx.register_json("jsonl", path("corpus.jsonl"), jsonl).await.unwrap();
    for table in ["parquet", "jsonl"] {
        let lists =
            column(&ctx, &format!("SELECT encode(text) FROM {table} WHERE token_count(text) > 0 ORDER BY id")).await;
        let ids: Vec<u32> =
            id_lists(&lists).into_iter().flat_map(|ids| [ids.unwrap(), vec![100_257]].concat()).collect();
        assert_eq!(lists.len() as u64, golden["documents"].as_u64().unwrap());
        assert_eq!(ids.len() as u64, golden["tokens"].as_u64().unwrap());
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, golden["sha256"].as_str().unwrap(), "{table}");
        let sum = column(&ctx, &format!("SELECT sum(token_count(text)) + count(nullif(text, '')) FROM {table}")).await;
        assert_eq!(sum.as_primitive::<Int64Type>().values(), &[ids.len() as i64]);
    }
}

#[tokio::test]
async fn a_file_is_a_tokenizer_and_its_ids_are_pythons() {
    let ctx = session();
    for (name, case) in golden_json("tokenizer_json.json")["cases"].as_object().unwrap() {
        let path = file(&format!("tests/golden/{name}.json"));
        let path = path.to_str().unwrap();
        for case in case["texts"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let encoded = column(&ctx, &format!("SELECT encode('{text}', '{path}')")).await;
            assert_eq!(id_lists(&encoded), [Some(ids_of(&case["as_text"]))], "{name}: {text:?}");
            let decoded = column(&ctx, &format!("SELECT decode(encode('{text}', '{path}'), '{path}')")).await;
            assert_eq!(decoded.as_string::<i32>().value(0), case["decoded"].as_str().unwrap(), "{name}: {text:?}");
        }
    }
    // A folder; and as what the session uses without a second argument.
    let folder = file("assets/tiny-llama");
    let expected = Tokenizer::from_file(folder.join("tokenizer.json")).unwrap().encode("the great table").unwrap();
    let folder = folder.to_str().unwrap();
    let encoded = column(&ctx, &format!("SELECT encode('the great table', '{folder}')")).await;
    assert_eq!(id_lists(&encoded), [Some(expected.clone())]);
    tallow_datafusion::register(&ctx, folder).unwrap();
    assert_eq!(id_lists(&column(&ctx, "SELECT encode('the great table')").await), [Some(expected)]);
}

#[tokio::test]
async fn a_file_is_loaded_once() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("once.json");
    std::fs::copy(file("tests/golden/byte_level.json"), &copy).unwrap();
    let (ctx, query) = (session(), format!("SELECT encode('the fox', '{}')", copy.to_str().unwrap()));
    let first = id_lists(&column(&ctx, &query).await);
    std::fs::remove_file(&copy).unwrap();
    assert_eq!(id_lists(&column(&session(), &query).await), first);
}

#[tokio::test]
async fn every_type_of_text_gives_the_tokenizers_ids() {
    let texts = texts();
    for name in ["cl100k", "gpt2", "o200k"] {
        let tokenizer = Tokenizer::bundled(name).unwrap().with_specials(Specials::Text);
        let ids: Vec<Option<Vec<u32>>> =
            texts.iter().map(|text| text.as_ref().map(|text| tokenizer.encode(text).unwrap())).collect();
        for array in string_arrays(&texts) {
            // Whole, and from the middle of an array.
            for (from, rows) in [(0, texts.len()), (2, 17), (texts.len() - 3, 3), (5, 0)] {
                let what = format!("{name}, {}, {rows} rows from {from}", array.data_type());
                let expected = &ids[from..from + rows];
                let ctx = session_with(vec![array.slice(from, rows)]);
                let encoded = column(&ctx, &format!("SELECT encode(x, '{name}') FROM t")).await;
                assert_eq!(id_lists(&encoded), expected, "{what}");
                let counts = column(&ctx, &format!("SELECT token_count(x, '{name}') FROM t")).await;
                let counts: Vec<Option<i64>> = counts.as_primitive::<Int64Type>().iter().collect();
                let tokens = |ids: &Option<Vec<u32>>| ids.as_ref().map(|ids| ids.len() as i64);
                assert_eq!(counts, expected.iter().map(tokens).collect::<Vec<_>>(), "{what}");
                let ratios = column(&ctx, &format!("SELECT bytes_per_token(x, '{name}') FROM t")).await;
                let ratios: Vec<Option<f64>> = ratios.as_primitive::<Float64Type>().iter().collect();
                let ratio = |(text, ids): (&Option<String>, &Option<Vec<u32>>)| {
                    let (bytes, tokens) = (text.as_ref()?.len() as f64, ids.as_ref()?.len() as f64);
                    (tokens > 0.0).then_some(bytes / tokens)
                };
                let own = &texts[from..from + rows];
                assert_eq!(ratios, own.iter().zip(expected).map(ratio).collect::<Vec<_>>(), "{what}");
                let decoded = column(&ctx, &format!("SELECT decode(encode(x, '{name}'), '{name}') FROM t")).await;
                let decoded: Vec<Option<&str>> = decoded.as_string::<i32>().iter().collect();
                assert_eq!(decoded, own.iter().map(Option::as_deref).collect::<Vec<_>>(), "{what}");
            }
        }
    }
}

#[tokio::test]
async fn every_type_of_list_is_decoded() {
    let lists =
        [Some(vec![Some(83i64), Some(1609), Some(5963)]), None, Some(vec![]), Some(vec![Some(31809), Some(31106)])];
    let text = |ids: &[i64]| {
        let ids: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
        Tokenizer::cl100k().decode(&ids).unwrap()
    };
    let expected = [Some(text(&[83, 1609, 5963])), None, Some(String::new()), Some(text(&[31809, 31106]))];
    assert_eq!((expected[0].as_deref(), expected[3].as_deref()), (Some("tiktoken"), Some("小\u{fffd}"))); // half a character
    let small: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists.clone()));
    let large: ArrayRef = Arc::new(LargeListArray::from_iter_primitive::<Int64Type, _, _>(lists));
    let mut arrays = vec![small.clone(), large.clone()];
    for id in [DataType::UInt32, DataType::Int32, DataType::UInt64] {
        arrays.push(cast(&small, &DataType::new_list(id.clone(), true)).unwrap());
        arrays.push(cast(&large, &DataType::new_large_list(id, false)).unwrap());
    }
    for array in arrays {
        for (from, rows) in [(0, 4), (1, 3), (3, 1), (2, 0)] {
            let decoded = column(&session_with(vec![array.slice(from, rows)]), "SELECT decode(x) FROM t").await;
            let decoded: Vec<Option<&str>> = decoded.as_string::<i32>().iter().collect();
            let expected: Vec<Option<&str>> = expected[from..from + rows].iter().map(Option::as_deref).collect();
            assert_eq!(decoded, expected, "{}, {rows} rows from {from}", array.data_type());
        }
    }
    let pairs = [Some(vec![Some(9906i64), Some(1917)]), None];
    let fixed: ArrayRef = Arc::new(FixedSizeListArray::from_iter_primitive::<Int64Type, _, _>(pairs, 2));
    let decoded = column(&session_with(vec![fixed]), "SELECT decode(x) FROM t").await;
    assert_eq!(decoded.as_string::<i32>().iter().collect::<Vec<_>>(), [Some("Hello world"), None]);
    // What a row does not hold is not read: values beside a slice, and below a null.
    let beside = [Some(vec![Some(-1i64)]), Some(vec![Some(9906)])];
    let beside: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(beside));
    let decoded = column(&session_with(vec![beside.slice(1, 1)]), "SELECT decode(x) FROM t").await;
    assert_eq!(decoded.as_string::<i32>().value(0), "Hello");
}

#[tokio::test]
async fn constants_are_one_row_for_all() {
    let ctx = session_with(vec![Arc::new(Int64Array::from(vec![1, 2, 3]))]);
    let counts = column(&ctx, "SELECT token_count('tiktoken is great!') + x FROM t").await;
    assert_eq!(counts.as_primitive::<Int64Type>().values(), &[7, 8, 9]);
    for null in ["token_count(NULL)", "encode(NULL)", "decode(NULL)", "bytes_per_token(NULL)", "bytes_per_token('')"] {
        assert!(column(&ctx, &format!("SELECT {null}")).await.is_null(0), "{null}");
    }
    assert_eq!(id_lists(&column(&ctx, "SELECT encode('')").await), [Some(vec![])]);
    assert_eq!(column(&ctx, "SELECT decode([])").await.as_string::<i32>().value(0), "");
    assert_eq!(column(&ctx, "SELECT decode([9906, 1917])").await.as_string::<i32>().value(0), "Hello world");
    // DataFusion simplifies what does not depend on a row, before anything is read.
    let plan = rows(&ctx, "EXPLAIN SELECT x FROM t WHERE token_count('tiktoken is great!') < x").await.unwrap();
    let plan = datafusion::arrow::util::pretty::pretty_format_batches(&plan).unwrap().to_string();
    assert!(plan.contains("x > 6") || plan.contains("x > Int64(6)"), "{plan}");
}

#[tokio::test]
async fn filters_and_groups_over_files_and_partitions() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let story = story();
    // The story in three partitions; then as Parquet, one file per partition; then as JSON Lines.
    let part = |texts: &[String]| Arc::new(StringArray::from_iter_values(texts)) as ArrayRef;
    let ctx = session_with(story.chunks(story.len().div_ceil(3)).map(part).collect());
    let frame = ctx.sql("SELECT x FROM t").await.unwrap();
    frame.write_parquet(&path("parquet/"), DataFrameWriteOptions::new(), None).await.unwrap();
    let mut lines = std::fs::File::create(path("story.jsonl")).unwrap();
    for text in &story {
        writeln!(lines, "{}", serde_json::json!({ "x": text })).unwrap();
    }
    ctx.register_parquet("parquet", path("parquet/"), ParquetReadOptions::default()).await.unwrap();
    let jsonl = JsonReadOptions::default().file_extension(".jsonl");
    ctx.register_json("jsonl", path("story.jsonl"), jsonl).await.unwrap();

    let tokenizer = Tokenizer::cl100k();
    let mut counts: Vec<i64> = story.iter().map(|text| tokenizer.encode(text).unwrap().len() as i64).collect();
    counts.sort();
    let long: Vec<i64> = counts.iter().copied().filter(|count| *count > 100).collect();
    let mut tens: Vec<(i64, i64)> = Vec::new();
    for ten in counts.iter().map(|count| count / 10) {
        match tens.last_mut().filter(|(last, _)| *last == ten) {
            Some((_, documents)) => *documents += 1,
            None => tens.push((ten, 1)),
        }
    }
    assert!(long.len() > 10 && long.len() < counts.len() && tens.len() > 5);
    for table in ["t", "parquet", "jsonl"] {
        let query = format!("SELECT token_count(x) AS n FROM {table} WHERE token_count(x) > 100 ORDER BY n");
        assert_eq!(column(&ctx, &query).await.as_primitive::<Int64Type>().values(), &long[..], "{table}");
        let query = format!(
            "SELECT token_count(x) / 10 AS ten, count(*) AS documents FROM {table} GROUP BY token_count(x) / 10 ORDER BY ten"
        );
        let groups = rows(&ctx, &query).await.unwrap();
        let groups = groups.iter().flat_map(|batch| {
            let [ten, documents] = [0, 1].map(|at| batch.column(at).as_primitive::<Int64Type>().values().to_vec());
            ten.into_iter().zip(documents)
        });
        assert_eq!(groups.collect::<Vec<_>>(), tens, "{table}");
        // Ids that another query has written are read back as they were.
        let query = format!("SELECT encode(x) AS ids FROM {table}");
        let out = path(&format!("{table}-ids.parquet"));
        ctx.sql(&query).await.unwrap().write_parquet(&out, DataFrameWriteOptions::new(), None).await.unwrap();
        let back = ctx.read_parquet(&out, ParquetReadOptions::default()).await.unwrap();
        ctx.register_table(format!("{table}_ids"), back.into_view()).unwrap();
        let decoded = column(&ctx, &format!("SELECT decode(ids) AS x FROM {table}_ids ORDER BY x")).await;
        let mut sorted: Vec<&str> = story.iter().map(String::as_str).collect();
        sorted.sort();
        assert_eq!(decoded.as_string::<i32>().iter().flatten().collect::<Vec<_>>(), sorted, "{table}");
    }
}
