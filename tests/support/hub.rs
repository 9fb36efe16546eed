//! The Hub's protocol, spoken by a server on the loopback.
#![allow(dead_code)] // each package takes what it needs

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::Digest;
use tallow::PretrainedTable;
use tallow::hub::Hub;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One request as it came in.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub range: Option<(u64, u64)>,
    pub token: Option<String>,
    pub sent: u64,
}

/// What is wrong with the server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
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

pub struct Server {
    pub hub: Hub,
    pub asked: Arc<Mutex<Vec<Asked>>>,
    _cache: tempfile::TempDir,
}

impl Server {
    /// `files` of one repository, owner/name. Large ones (over 1000 bytes) are redirected to another host, as the Hub does.
    pub fn new(files: &[(&str, Vec<u8>)], fault: Fault) -> Self {
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

    pub fn pull(&self) -> tallow::Result<PretrainedTable> {
        PretrainedTable::pull(&self.hub, "owner/name", None, None, &|_, _| ())
    }

    pub fn asked(&self) -> Vec<Asked> {
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

pub fn small() -> Vec<u8> {
    std::fs::read(crate::support::golden("pretrained/gpt2/model.safetensors")).unwrap()
}
