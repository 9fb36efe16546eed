//! The Hub's protocol, spoken by a server on the loopback: the real client against redirects, ranges, refusals, cuts and lies.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use sha2::Digest;
use tallow::hub::Hub;
use tallow::{Error, PretrainedTable, pull};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One request as it came in.
#[derive(Clone, Debug)]
struct Asked {
    path: String,
    range: Option<(u64, u64)>,
    token: Option<String>,
    sent: u64,
}

/// What is wrong with the server.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// Every answer of the content host has this status until so many were given.
    Status(u16, usize),
    /// The Hub itself refuses, with this X-Error-Code.
    Refuse(u16, &'static str),
    /// The connection breaks in the middle of the first so many answers with content.
    Cut(usize),
    /// It says more bytes than it sends.
    LongLength,
    /// It sends the whole file, whatever was asked.
    NoRanges,
    /// Part of another file.
    WrongRange,
    /// Redirects to itself for ever.
    Loop,
}

struct Server {
    hub: Hub,
    asked: Arc<Mutex<Vec<Asked>>>,
    _cache: tempfile::TempDir,
}

impl Server {
    /// `files` of one repository, owner/name. Large ones (over 1000 bytes) are redirected to another host, as the Hub does.
    fn new(files: &[(&str, Vec<u8>)], fault: Fault) -> Self {
        let files: Arc<HashMap<String, Vec<u8>>> =
            Arc::new(files.iter().map(|(name, bytes)| (name.to_string(), bytes.clone())).collect());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let content = listen(files.clone(), asked.clone(), fault, None);
        let hub = listen(files, asked.clone(), fault, Some(content));
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub {
            endpoint: hub,
            token: Some("hf_secret".to_string()),
            cache: cache.path().to_path_buf(),
            offline: false,
            refresh: false,
            retry_delay: Duration::from_millis(2),
        };
        Server { hub, asked, _cache: cache }
    }

    fn pull(&self) -> tallow::Result<PretrainedTable> {
        pull(&self.hub, "owner/name", None, None, &|_, _| ())
    }

    fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

/// Starts a host; with `content` it is the Hub, which sends large files there.
fn listen(
    files: Arc<HashMap<String, Vec<u8>>>,
    log: Arc<Mutex<Vec<Asked>>>,
    fault: Fault,
    content: Option<String>,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (own, faults) = (address.clone(), Arc::new(Mutex::new(0)));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (files, log, content, own, faults) =
                (files.clone(), log.clone(), content.clone(), own.clone(), faults.clone());
            std::thread::spawn(move || _ = answer(stream, &files, &log, fault, content.as_deref(), &own, &faults));
        }
    });
    address
}

fn answer(
    stream: TcpStream,
    files: &HashMap<String, Vec<u8>>,
    log: &Mutex<Vec<Asked>>,
    fault: Fault,
    content: Option<&str>,
    own: &str,
    faults: &Mutex<usize>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let (method, path) =
        (line.split(' ').next().unwrap_or("").to_string(), line.split(' ').nth(1).unwrap_or("").to_string());
    let (mut range, mut token) = (None, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(": ") else { break };
        match name.to_lowercase().as_str() {
            "range" => {
                let (from, to) = value.trim_start_matches("bytes=").split_once('-').unwrap();
                range = Some((from.parse().unwrap(), to.parse::<u64>().unwrap() + 1));
            }
            "authorization" => token = Some(value.to_string()),
            _ => (),
        }
    }
    let mut stream = stream;
    let mut put = |status: &str, headers: &str, body: &[u8]| -> std::io::Result<()> {
        let entry = Asked { path: path.clone(), range, token: token.clone(), sent: body.len() as u64 };
        log.lock().unwrap().push(entry);
        let length = if headers.contains("Content-Length") {
            String::new()
        } else {
            format!("Content-Length: {}\r\n", body.len())
        };
        write!(stream, "HTTP/1.1 {status}\r\n{headers}{length}Connection: close\r\n\r\n")?;
        if method != "HEAD" {
            stream.write_all(body)?;
        }
        stream.flush()
    };
    if let (Fault::Refuse(status, code), Some(_)) = (fault, content) {
        return put(&format!("{status} No"), &format!("X-Error-Code: {code}\r\n"), b"<html>no</html>");
    }
    if path.starts_with("/api/models/") {
        let names: Vec<_> = files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let info = serde_json::json!({"id": "owner/name", "sha": COMMIT, "siblings": names});
        return put("200 OK", "Content-Type: application/json\r\n", info.to_string().as_bytes());
    }
    let name = path
        .rsplit_once("/resolve/")
        .and_then(|(_, rest)| rest.split_once('/'))
        .map_or(path.trim_start_matches('/'), |r| r.1);
    let Some(bytes) = files.get(name) else {
        return put(
            "404 Not Found",
            &format!("X-Error-Code: EntryNotFound\r\nX-Repo-Commit: {COMMIT}\r\n"),
            b"Entry not found",
        );
    };
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    if let Some(content) = content {
        let facts = format!("X-Repo-Commit: {COMMIT}\r\n");
        if bytes.len() > 1000 {
            let etag = hex(&sha2::Sha256::digest(bytes));
            let to = if fault == Fault::Loop { format!("{own}{path}") } else { format!("{content}/{name}") };
            let facts =
                format!("{facts}X-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {}\r\nLocation: {to}\r\n", bytes.len());
            return put("302 Found", &facts, b"");
        }
        // Small files lie in git, and are named as git names them.
        let etag = hex(&sha1_of(bytes));
        if range.is_none() {
            return put("200 OK", &format!("{facts}ETag: \"{etag}\"\r\nContent-Length: {}\r\n", bytes.len()), bytes);
        }
    }
    if let Fault::Status(status, times) = fault {
        let mut given = faults.lock().unwrap();
        *given += 1;
        if *given <= times {
            return put(&format!("{status} Trouble"), "", b"trouble");
        }
    }
    let total = bytes.len() as u64;
    let (Some((from, to)), true) = (range, fault != Fault::NoRanges) else { return put("200 OK", "", bytes) };
    if from >= total {
        return put("416 Range Not Satisfiable", &format!("Content-Range: bytes */{total}\r\n"), b"");
    }
    let to = to.min(total);
    let part = &bytes[from as usize..to as usize];
    let shift = u64::from(fault == Fault::WrongRange);
    let facts = format!("Content-Range: bytes {}-{}/{total}\r\n", from + shift, to - 1 + shift);
    if let Fault::Cut(times) = fault
        && part.len() > 100_000
    {
        let mut given = faults.lock().unwrap();
        *given += 1;
        if *given <= times {
            return put("206 Partial", &format!("{facts}Content-Length: {}\r\n", part.len()), &part[..part.len() / 2]);
        }
    }
    if fault == Fault::LongLength {
        return put("206 Partial", &format!("{facts}Content-Length: {}\r\n", u64::MAX / 2), part);
    }
    put("206 Partial", &facts, part)
}

fn sha1_of(bytes: &[u8]) -> Vec<u8> {
    use sha1::Digest;
    let mut hash = sha1::Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hash.finalize().to_vec()
}

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

fn small() -> Vec<u8> {
    std::fs::read(crate::golden("pretrained/gpt2/model.safetensors")).unwrap()
}

fn bytes_of(table: &PretrainedTable) -> Vec<f32> {
    table.block(0..table.vocab_size()).unwrap().to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn refusal(result: tallow::Result<impl std::fmt::Debug>) -> String {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Hub { .. } | Error::Checkpoint { .. } | Error::Config(_)), "{error:?}");
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
    let table =
        pull(&server.hub, "owner/name", None, None, &|here, all| heard.lock().unwrap().push((here, all))).unwrap();
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
            let again = pull(hub, "owner/name", revision, None, &|_, _| ()).unwrap();
            assert_eq!(again.vocab_size(), 5000);
        }
    }
    assert!(server.asked().is_empty());
    let refused = refusal(pull(&offline, "owner/name", Some("v2"), None, &|_, _| ()));
    assert!(refused.contains("HF_HUB_OFFLINE"), "{refused}");
    // Asked to look, it looks.
    let fresh = Hub { refresh: true, ..server.hub.clone() };
    pull(&fresh, "owner/name", None, None, &|_, _| ()).unwrap();
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
            let text = refusal(pull(&nobody, "owner/name", None, None, &|_, _| ()));
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
    let text = refusal(pull(&hub, "owner/name", None, None, &|_, _| ()));
    assert!(text.contains("no connection") && text.contains("HTTPS_PROXY"), "{text}");
    // Names that would lead out of the cache, or are none.
    for name in ["../x", "a/b/c", "", "a//b", "a\\b", "x/..", ".git/x", "own er/x"] {
        assert!(matches!(pull(&server.hub, name, None, None, &|_, _| ()), Err(Error::Config(_))), "{name}");
    }
    assert!(matches!(server.hub.fetch("a/b", None, "../../x"), Err(Error::Config(_))));
    assert!(matches!(server.hub.fetch("a/b", Some("../x"), "y"), Err(Error::Config(_))));
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
            .contains("no safetensors file")
    );
}

#[test]
fn shards_and_whole_files_come_through_the_python_client_s_cache() {
    let read = |name: &str| std::fs::read(crate::golden("pretrained/llama").join(name)).unwrap();
    let names =
        ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"];
    let mut files: Vec<(&str, Vec<u8>)> = names.iter().map(|name| (*name, read(name))).collect();
    files.push(("model.safetensors.index.json", read("model.safetensors.index.json")));
    let tokenizer = std::fs::read(crate::golden("byte_level.json")).unwrap();
    files.push(("tokenizer.json", tokenizer.clone()));
    files.push(("config.json", b"{\"model_type\": \"llama\"}".to_vec()));
    let server = Server::new(&files, Fault::None);
    let table = server.pull().unwrap();
    assert_eq!((table.name(), table.tied(), table.dtype()), ("model.embed_tokens.weight", false, DType::BF16));
    let local = PretrainedTable::open(crate::golden("pretrained/llama"), None).unwrap();
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
    let table = pull(&server.hub, "other/whole", Some(COMMIT), None, &|_, _| ()).unwrap();
    assert_eq!(table.vocab_size(), 50);
    assert!(server.asked().is_empty());
    let listed = server.hub.files("owner/name", None).unwrap();
    assert_eq!(listed.len(), files.len());
}

/// What Python's client finds in our cache, and we in its.
#[test]
#[ignore = "needs Python with huggingface_hub"]
fn needs_python_the_cache_is_the_client_s() {
    let python = crate::interop::python("huggingface_hub");
    let tokenizer = std::fs::read(crate::golden("byte_level.json")).unwrap();
    let config = b"{\"model_type\": \"llama\"}".to_vec();
    let files =
        [("model.safetensors", small()), ("tokenizer.json", tokenizer.clone()), ("config.json", config.clone())];
    let server = Server::new(&files, Fault::None);
    server.pull().unwrap();
    server.hub.fetch("owner/name", None, "tokenizer.json").unwrap();
    let found = crate::interop::run(
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
    let tokenizer = std::fs::read(crate::golden("byte_level.json")).unwrap();
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

/// The environment, as a user sets it, through the binary.
#[cfg(feature = "cli")]
#[test]
fn the_environment_is_honoured() {
    let tokenizer = std::fs::read(crate::golden("byte_level.json")).unwrap();
    let server = Server::new(&[("model.safetensors", small()), ("tokenizer.json", tokenizer)], Fault::None);
    let home = tempfile::tempdir().unwrap();
    let (out, secret) = (home.path().join("rows.safetensors"), home.path().join("secret"));
    std::fs::write(&secret, "hf_from_file\n").unwrap();
    let tallow = |args: &[&str], env: &[(&str, &str)]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tallow"));
        for name in
            ["HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_IMPLICIT_TOKEN"]
        {
            command.env_remove(name);
        }
        command
            .env("HF_ENDPOINT", format!("{}/", server.hub.endpoint))
            .env("HF_HOME", home.path())
            .env("HF_TOKEN_PATH", &secret);
        let output = command.envs(env.iter().copied()).args(args).output().unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap(),
        )
    };
    let pull = ["pull", "owner/name", "-o", out.to_str().unwrap()];
    let token = || server.asked().iter().find_map(|asked| asked.token.clone());
    let (ok, said) = tallow(&pull, &[]);
    assert!(ok && said.contains("50 rows x 8 columns of transformer.wte.weight, f32"), "{said}");
    assert_eq!(token().unwrap(), "Bearer hf_from_file");
    assert!(home.path().join("hub/models--owner--name/tallow").is_dir());
    // The second call asks nobody, online or not.
    for env in [&[][..], &[("HF_HUB_OFFLINE", "1")]] {
        let (ok, said) = tallow(&pull, env);
        assert!(ok && server.asked().is_empty(), "{said}");
    }
    let (ok, said) = tallow(&["pull", "owner/other", "-o", "x"], &[("HF_HUB_OFFLINE", "1")]);
    assert!(!ok && said.contains("HF_HUB_OFFLINE") && said.lines().count() == 1, "{said}");
    // A token in the environment goes first; none at all where it says so.
    let other = home.path().join("other").display().to_string();
    assert!(tallow(&pull, &[("HF_TOKEN", "hf_from_env"), ("HF_HUB_CACHE", &other)]).0);
    assert_eq!(token().unwrap(), "Bearer hf_from_env");
    let third = home.path().join("third").display().to_string();
    assert!(tallow(&pull, &[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"), ("HF_HUB_CACHE", &third)]).0);
    assert_eq!(token(), None);
    // A tokenizer by the repository's name.
    let (ok, said) = tallow(&["encode", "-", "--tokenizer", "owner/name"], &[]);
    assert!(ok, "{said}");
    let (ok, said) = tallow(&["neighbors", "owner/name", "7", "--ids", "-k", "2"], &[]);
    assert!(ok && said.lines().count() == 4, "{said}");
    let (ok, said) = tallow(&["encode", "-", "--tokenizer", "owner/nothing"], &[("HF_ENDPOINT", "http://127.0.0.1:9")]);
    assert!(!ok && said.contains("no connection") && !said.contains("hf_from"), "{said}");
}

/// A repository without a tokenizer.json: what it has is taken, or listed.
#[cfg(feature = "cli")]
#[test]
fn other_tokenizers_of_a_repository() {
    let ranks = (0..=255u8).map(|byte| {
        use base64::Engine;
        format!("{} {byte}\n", base64::prelude::BASE64_STANDARD.encode([byte]))
    });
    let server = Server::new(&[("small.tiktoken", ranks.collect::<String>().into_bytes())], Fault::None);
    let run = |server: &Server, cache: &Path| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tallow"));
        command.env("HF_ENDPOINT", &server.hub.endpoint).env("HF_HUB_CACHE", cache).env_remove("HF_HUB_OFFLINE");
        let output = command.args(["show", "ab", "--json", "--tokenizer", "owner/name"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    };
    let cache = tempfile::tempdir().unwrap();
    assert!(run(&server, cache.path()).contains("\"ids\":[97,98]"));
    let server =
        Server::new(&[("tokenizer.model", vec![1]), ("a.tiktoken", vec![1]), ("b.tiktoken", vec![1])], Fault::None);
    let cache = tempfile::tempdir().unwrap();
    let said = run(&server, cache.path());
    assert!(said.contains("no tokenizer.json") && said.contains("tokenizer.model"), "{said}");
}
