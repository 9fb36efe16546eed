//! The real client of the Hub against redirects, ranges, refusals, cuts and lies.

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Mutex;

use candle_core::{DType, Device, Tensor};
use tallow::hub::Hub;
use tallow::{Error, PretrainedTable, TextError};

use crate::server::{COMMIT, Fault, Server, small};

/// A model of which the table is a tenth: (file, the table's rows). 20 MB of table, in three parts.
fn model(dtype: DType) -> (Vec<u8>, Tensor) {
    let rows = Tensor::from_vec(tallow::Init::GPT2.rows(5, 0, 5000, 1024), (5000, 1024), &Device::Cpu)
        .unwrap()
        .to_dtype(dtype)
        .unwrap();
    let other = Tensor::zeros((45_000, 1024), dtype, &Device::Cpu).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let tensors = HashMap::from([
        ("model.layers.0.weight".to_string(), other),
        ("model.embed_tokens.weight".to_string(), rows.clone()),
    ]);
    candle_core::safetensors::save(&tensors, &path).unwrap();
    (std::fs::read(path).unwrap(), rows)
}

fn bytes_of(table: &PretrainedTable) -> Vec<f32> {
    table.block(0..table.vocab_size()).unwrap().to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn refusal(result: Result<impl std::fmt::Debug, impl Into<Error>>) -> String {
    let error = result.map_err(Into::into).unwrap_err();
    assert!(
        matches!(error, Error::Text(TextError::Hub { .. }) | Error::Checkpoint { .. } | Error::Config(_)),
        "{error:?}"
    );
    let text = error.to_string();
    assert!(!text.contains("hf_secret") && !format!("{error:?}").contains("hf_secret"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn only_the_header_and_the_table_travel_and_only_once() {
    let (file, rows) = model(DType::F32);
    let total = file.len() as u64;
    let server = Server::new(&[("model.safetensors", file)], Fault::None);
    let heard = Mutex::new(Vec::new());
    let table = PretrainedTable::pull(&server.hub, "owner/name", None, None, &|here, all| {
        heard.lock().unwrap().push((here, all))
    })
    .unwrap();
    assert_eq!(bytes_of(&table), rows.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    assert_eq!((table.name(), table.tied()), ("model.embed_tokens.weight", true));
    let asked = server.asked();
    let sent: u64 = asked.iter().map(|a| a.sent).sum();
    let bytes = 5000 * 1024 * 4;
    assert!(total > 9 * bytes && sent <= bytes + (1 << 20), "{sent} of {total}");
    assert!(asked.iter().all(|a| a.range.is_some()));
    let heard = heard.into_inner().unwrap();
    assert!(heard.contains(&(0, bytes)) && heard.iter().map(|h| h.0).max() == Some(bytes));
    // The token went to the Hub, and not to the host with the content.
    for a in &asked {
        assert_eq!(a.token.as_deref(), a.path.contains("/resolve/").then_some("Bearer hf_secret"), "{a:?}");
    }
    // Again, by branch and by commit: nobody is asked. Offline neither.
    let offline = Hub { offline: true, ..server.hub.clone() };
    for hub in [&server.hub, &offline] {
        for revision in [None, Some("main"), Some(COMMIT)] {
            let again = PretrainedTable::pull(hub, "owner/name", revision, None, &|_, _| ()).unwrap();
            assert_eq!(again.vocab_size(), 5000);
        }
    }
    assert!(server.asked().is_empty());
    let refused = refusal(PretrainedTable::pull(&offline, "owner/name", Some("v2"), None, &|_, _| ()));
    assert!(refused.contains("HF_HUB_OFFLINE"), "{refused}");
    // Asked to look, it looks.
    let fresh = Hub { refresh: true, ..server.hub.clone() };
    PretrainedTable::pull(&fresh, "owner/name", None, None, &|_, _| ()).unwrap();
    let looked = server.asked();
    assert!(!looked.is_empty() && looked.iter().map(|a| a.sent).sum::<u64>() <= 64 << 10, "{looked:?}");
    // Nothing is left over.
    let kept = std::fs::read_dir(server.hub.cache.join("models--owner--name/tallow").join(COMMIT)).unwrap().count();
    assert_eq!(kept, 1);
}

#[test]
fn a_pull_that_was_cut_goes_on() {
    let (file, rows) = model(DType::BF16);
    let bytes = 5000 * 1024 * 2;
    // Two cuts are mended within one call.
    let server = Server::new(&[("model.safetensors", file.clone())], Fault::Cut(2));
    assert_eq!(
        bytes_of(&server.pull().unwrap()),
        rows.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    );
    // More than a call's attempts: an error, and the next call asks for what is missing alone.
    let server = Server::new(&[("model.safetensors", file)], Fault::Cut(9));
    let refused = refusal(server.pull());
    assert!(refused.contains("bytes") && refused.contains("try again"), "{refused}");
    server.asked();
    let mut calls = 1;
    let table = loop {
        match server.pull() {
            Ok(table) => break table,
            Err(_) => calls += 1,
        }
        assert!(calls < 5);
    };
    let after: u64 = server.asked().iter().map(|a| a.sent).sum();
    assert_eq!(bytes_of(&table).len(), 5000 * 1024);
    assert!(after < bytes && after <= 9 << 20, "{after}");
    assert_eq!(bytes_of(&table), rows.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap());
}

#[test]
fn trouble_that_passes_is_waited_for() {
    for status in [429, 500, 502, 503, 408] {
        let server = Server::new(&[("model.safetensors", small())], Fault::Status(status, 3));
        assert_eq!(server.pull().unwrap().vocab_size(), 50, "{status}");
        let server = Server::new(&[("model.safetensors", small())], Fault::Status(status, 99));
        assert!(refusal(server.pull()).contains(&status.to_string()));
        assert_eq!(server.asked().iter().filter(|a| !a.path.contains("/resolve/")).count(), 5, "{status}");
    }
}

#[test]
fn every_refusal_is_one_line_that_says_what_to_do() {
    for (status, code, advice) in [
        (401, "RepoNotFound", "the token has no access"),
        (403, "GatedRepo", "asks for consent"),
        (404, "RevisionNotFound", "no such branch"),
        (404, "RepoNotFound", "look at the names"),
    ] {
        let server = Server::new(&[("model.safetensors", small())], Fault::Refuse(status, code));
        let nobody = Hub { token: None, ..server.hub.clone() };
        for text in [refusal(server.pull()), refusal(server.hub.fetch("owner/name", None, "tokenizer.json"))] {
            assert!(text.contains(&status.to_string()) && text.contains(advice), "{text}");
        }
        if status != 404 {
            let text = refusal(PretrainedTable::pull(&nobody, "owner/name", None, None, &|_, _| ()));
            assert!(text.contains("set HF_TOKEN"), "{text}");
        }
    }
    let server = Server::new(&[("pytorch_model.bin", vec![0; 10]), ("config.json", b"{}".to_vec())], Fault::None);
    let text = refusal(server.pull());
    assert!(text.contains("no model.safetensors") && text.contains("pytorch_model.bin"), "{text}");
    for fault in [Fault::NoRanges, Fault::WrongRange] {
        let text = refusal(Server::new(&[("model.safetensors", small())], fault).pull());
        assert!(text.contains("another mirror"), "{text}");
    }
    let text = refusal(Server::new(&[("model.safetensors", small())], Fault::Loop).pull());
    assert!(text.contains("more than 10 redirects"), "{text}");
    // A length that lies costs no memory; what is needed came.
    assert_eq!(Server::new(&[("model.safetensors", small())], Fault::LongLength).pull().unwrap().vocab_size(), 50);
    // Nobody listens.
    let closed = { TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
    let hub = Hub { endpoint: format!("http://{closed}"), ..server.hub.clone() };
    let text = refusal(PretrainedTable::pull(&hub, "owner/name", None, None, &|_, _| ()));
    assert!(text.contains("no connection") && text.contains("HTTPS_PROXY"), "{text}");
    // Names that would lead out of the cache, or are none.
    for name in ["../x", "a/b/c", "", "a//b", "a\\b", "x/..", ".git/x", "own er/x"] {
        assert!(
            matches!(PretrainedTable::pull(&server.hub, name, None, None, &|_, _| ()), Err(Error::Config(_))),
            "{name}"
        );
    }
    assert!(matches!(server.hub.fetch("a/b", None, "../../x"), Err(TextError::Config(_))));
    assert!(matches!(server.hub.fetch("a/b", Some("../x"), "y"), Err(TextError::Config(_))));
}

#[test]
fn hostile_headers_are_errors() {
    let whole = small();
    for change in [
        (0, (u64::MAX / 4).to_le_bytes().to_vec()), // a header longer than the file
        (0, 99u64.to_le_bytes().to_vec()),
        (8, vec![0xff; 40]),
    ] {
        let mut bytes = whole.clone();
        bytes[change.0..change.0 + change.1.len()].copy_from_slice(&change.1);
        let text = refusal(Server::new(&[("model.safetensors", bytes)], Fault::None).pull());
        assert!(text.contains("owner/name/model.safetensors"), "{text}");
    }
    let mut cut = whole.clone();
    cut.truncate(whole.len() - 5);
    assert!(refusal(Server::new(&[("model.safetensors", cut)], Fault::None).pull()).contains("torn"));
    assert!(
        refusal(Server::new(&[("model.safetensors", vec![1, 2, 3])], Fault::None).pull())
            .contains("not a safetensors file")
    );
}

#[test]
fn shards_and_whole_files_come_through_the_python_client_s_cache() {
    let read = |name: &str| std::fs::read(crate::support::golden("pretrained/llama").join(name)).unwrap();
    let names =
        ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"];
    let mut files: Vec<(&str, Vec<u8>)> = names.iter().map(|name| (*name, read(name))).collect();
    files.push(("model.safetensors.index.json", read("model.safetensors.index.json")));
    let tokenizer = std::fs::read(crate::support::golden("byte_level.json")).unwrap();
    files.push(("tokenizer.json", tokenizer.clone()));
    files.push(("config.json", b"{\"model_type\": \"llama\"}".to_vec()));
    let server = Server::new(&files, Fault::None);
    let table = server.pull().unwrap();
    assert_eq!((table.name(), table.tied(), table.dtype()), ("model.embed_tokens.weight", false, DType::BF16));
    let local = PretrainedTable::open(crate::support::golden("pretrained/llama"), None).unwrap();
    assert_eq!(bytes_of(&table), bytes_of(&local));
    assert!(server.asked().iter().all(|a| !a.path.contains("model-00002") && !a.path.contains("model-00003")));
    for name in ["tokenizer.json", "config.json"] {
        let path = server.hub.fetch("owner/name", None, name).unwrap();
        assert_eq!(path, server.hub.cache.join(format!("models--owner--name/snapshots/{COMMIT}/{name}")));
        let expected = files.iter().find(|(other, _)| *other == name).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), expected.1);
        server.asked();
        server.hub.fetch("owner/name", None, name).unwrap();
        assert!(server.asked().is_empty());
    }
    // What is in the cache as a whole model serves as well, with no network.
    let snapshot = server.hub.cache.join("models--other--whole/snapshots").join(COMMIT);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::write(snapshot.join("model.safetensors"), small()).unwrap();
    let table = PretrainedTable::pull(&server.hub, "other/whole", Some(COMMIT), None, &|_, _| ()).unwrap();
    assert_eq!(table.vocab_size(), 50);
    assert!(server.asked().is_empty());
    let listed = server.hub.files("owner/name", None).unwrap();
    assert_eq!(listed.len(), files.len());
}

/// What Python's client finds in our cache, and we in its.
#[test]
#[ignore = "needs Python with huggingface_hub"]
fn needs_python_the_cache_is_the_client_s() {
    let python = crate::support::python("huggingface_hub");
    let tokenizer = std::fs::read(crate::support::golden("byte_level.json")).unwrap();
    let config = b"{\"model_type\": \"llama\"}".to_vec();
    let files =
        [("model.safetensors", small()), ("tokenizer.json", tokenizer.clone()), ("config.json", config.clone())];
    let server = Server::new(&files, Fault::None);
    server.pull().unwrap();
    server.hub.fetch("owner/name", None, "tokenizer.json").unwrap();
    let found = crate::support::run(
        &python,
        "hub_cache.py",
        &[&server.hub.cache, Path::new(&server.hub.endpoint), Path::new("config.json")],
    );
    assert_eq!(found["cached"].as_str().unwrap().as_bytes(), tokenizer);
    assert_eq!(found["commits"], serde_json::json!([COMMIT]));
    assert_eq!(found["warnings"], serde_json::json!([]));
    // config.json came by Python just now.
    server.asked();
    let offline = Hub { offline: true, ..server.hub.clone() };
    assert_eq!(std::fs::read(offline.fetch("owner/name", None, "config.json").unwrap()).unwrap(), config);
    assert!(server.asked().is_empty());
}

#[test]
fn an_error_s_page_is_not_taken_for_the_file() {
    // The Hub says where the file is, the host with the content answers with something else: hf-hub keeps that.
    let tokenizer = std::fs::read(crate::support::golden("byte_level.json")).unwrap();
    let server = Server::new(&[("tokenizer.json", tokenizer)], Fault::Status(403, 1));
    let text = refusal(server.hub.fetch("owner/name", None, "tokenizer.json"));
    assert!(text.contains("403") || text.contains("not the file's"), "{text}");
    assert!(server.hub.fetch("owner/name", None, "tokenizer.json").is_ok());
}

#[test]
fn two_processes_pull_one_file() {
    let (file, _) = model(DType::BF16);
    let server = Server::new(&[("model.safetensors", file)], Fault::None);
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..3).map(|_| scope.spawn(|| server.pull().map(|t| t.vocab_size()))).collect();
        for pulled in pulls {
            assert_eq!(pulled.join().unwrap().unwrap(), 5000);
        }
    });
    let sent: u64 = server.asked().iter().map(|a| a.sent).sum();
    assert!(sent < 2 * 5000 * 1024 * 2, "{sent}");
}

#[test]
fn the_token_is_never_printed() {
    let server = Server::new(&[], Fault::None);
    assert!(!format!("{:?}", server.hub).contains("hf_secret"));
    assert!(Path::new(&server.hub.cache).exists());
}
