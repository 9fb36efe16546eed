//! Parts of a file on the Hub, by range requests.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use reqwest::blocking::{Client, Response};
use reqwest::header::{AUTHORIZATION, CONTENT_RANGE, HeaderMap, LOCATION, RANGE, RETRY_AFTER};
use reqwest::{StatusCode, Url};
use serde::{Deserialize, Serialize};

use super::answer::{refused, said, unreachable};
use super::{Hub, USER_AGENT, at, is_commit};
use crate::{Error, Result};

/// Bytes per request. A request that breaks off is repeated from its first byte.
const CHUNK_BYTES: u64 = 8 << 20;
/// Number of simultaneous requests.
const THREADS: usize = 4;
const ATTEMPTS: u32 = 5;
const REDIRECTS: usize = 10;
/// Bytes of the first request. Most headers of weight files are shorter.
const FIRST_BYTES: u64 = 64 << 10;

/// A file on the Hub, open for reading parts of it. Made by [`Hub::open`].
///
/// # Example
/// ```no_run
/// use tallow_text::hub::Hub;
/// let file = Hub::from_env().open("openai-community/gpt2", None, "model.safetensors")?;
/// assert!(file.is_pinned()); // the Hub named the commit
/// assert_eq!(file.read(0..8)?.len(), 8);
/// # Ok::<(), tallow_text::Error>(())
/// ```
pub struct RemoteFile {
    hub: Hub,
    client: Client,
    repo: String,
    file: String,
    /// Commit of the file. The requested revision, if a mirror does not tell the commit.
    pub commit: String,
    /// ETag of this content.
    etag: String,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// The first bytes of the file, from the first answer.
    first: Vec<u8>,
}

/// An answer, with the commit and the ETag that the Hub sent before it redirected the request.
struct Answer {
    response: Response,
    commit: Option<String>,
    etag: Option<String>,
}

/// Which parts of an unfinished file are there.
#[derive(Serialize, Deserialize)]
struct Progress {
    etag: String,
    from: u64,
    to: u64,
    chunk_bytes: u64,
    done: Vec<u64>,
}

impl RemoteFile {
    pub(super) fn open(hub: &Hub, repo: &str, revision: &str, file: &str) -> Result<Self> {
        let asked = format!("{repo}/{file}{}", at(Some(revision)));
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10))
            .timeout(Duration::from_secs(120))
            .user_agent(USER_AGENT)
            .build()
            .map_err(|e| unreachable(&e, asked.clone(), hub))?;
        let mut remote = RemoteFile {
            hub: hub.clone(),
            client,
            repo: repo.to_string(),
            file: file.to_string(),
            commit: revision.to_string(),
            etag: String::new(),
            bytes: 0,
            first: Vec::new(),
        };
        let mut length = None;
        let (answer, first) = remote.ask(0..FIRST_BYTES, &asked, |answer| {
            length = total(&answer.response);
            length.map_or(FIRST_BYTES, |length| length.min(FIRST_BYTES))
        })?;
        remote.bytes = length.ok_or_else(|| {
            said(asked.clone(), "an answer that does not say how long the file is", "try another mirror (HF_ENDPOINT)")
        })?;
        remote.first = first;
        // A mirror may not tell the commit. Then parts could come from two versions, so `read` compares the length and the ETag
        // of each answer.
        remote.commit = answer.commit.filter(|commit| is_commit(commit)).unwrap_or_else(|| revision.to_string());
        remote.etag = answer.etag.unwrap_or_default();
        Ok(remote)
    }

    /// Whether the commit is known, so that all parts come from one version.
    pub fn is_pinned(&self) -> bool {
        is_commit(&self.commit)
    }

    fn check(&self, range: &Range<u64>) -> Result<()> {
        match range.start < range.end && range.end <= self.bytes {
            true => Ok(()),
            false => Err(Error::Config(format!(
                "bytes {}..{} are not in {}/{}, which has {} bytes",
                range.start, range.end, self.repo, self.file, self.bytes
            ))),
        }
    }

    fn asked(&self, range: &Range<u64>) -> String {
        format!("bytes {}-{} of {}/{} at {}", range.start, range.end, self.repo, self.file, self.commit)
    }

    /// Reads a part of the file.
    ///
    /// # Errors
    /// [`Error::Config`]: the part is empty or not within the file. [`Error::Hub`]: the request failed.
    pub fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        self.check(&range)?;
        if range.end <= self.first.len() as u64 {
            return Ok(self.first[range.start as usize..range.end as usize].to_vec());
        }
        let (asked, length) = (self.asked(&range), range.end - range.start);
        let mut same = true;
        let (_, bytes) = self.ask(range, &asked, |answer| {
            same = total(&answer.response) == Some(self.bytes)
                && answer.etag.as_ref().is_none_or(|etag| *etag == self.etag);
            length
        })?;
        match same {
            true => Ok(bytes),
            false => Err(said(asked, "the file changed in the meantime", "try again")),
        }
    }

    /// Downloads a part of the file into `out`, from byte `offset` of `out` on, with four requests of 8 MiB at a time. The file
    /// `notes` records the finished pieces: a call with the same `out` and `notes` continues an interrupted one. `progress` gets the
    /// number of bytes that are there, and of all bytes.
    ///
    /// # Errors
    /// [`Error::Config`]: the part is empty or not within the file. [`Error::Hub`]: a request failed. [`Error::Io`].
    pub fn fetch(
        &self,
        range: Range<u64>,
        out: &File,
        offset: u64,
        notes: &Path,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<()> {
        self.check(&range)?;
        let fresh = Progress {
            etag: self.etag.clone(),
            from: range.start,
            to: range.end,
            chunk_bytes: CHUNK_BYTES,
            done: Vec::new(),
        };
        // Bytes of another version, or from a server without ETags, are downloaded again.
        let before = std::fs::read(notes).ok().and_then(|json| serde_json::from_slice::<Progress>(&json).ok());
        let before = before.filter(|p| {
            !p.etag.is_empty()
                && (&p.etag, p.from, p.to, p.chunk_bytes) == (&fresh.etag, fresh.from, fresh.to, CHUNK_BYTES)
        });
        let state = before.unwrap_or(fresh);
        let chunks = (range.end - range.start).div_ceil(CHUNK_BYTES);
        let part = |chunk: u64| {
            let from = range.start + chunk * CHUNK_BYTES;
            from..(from + CHUNK_BYTES).min(range.end)
        };
        let left: Vec<u64> = (0..chunks).filter(|chunk| !state.done.contains(chunk)).collect();
        let here = (0..chunks).filter(|chunk| !left.contains(chunk)).map(|chunk| part(chunk).end - part(chunk).start);
        let (done, total) = (AtomicU64::new(0), range.end - range.start);
        let arrived = |bytes: u64| progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
        here.for_each(arrived);
        let (left, state) = (Mutex::new(left.into_iter()), Mutex::new(state));
        let (stop, failure) = (AtomicBool::new(false), Mutex::new(None));
        let one = |chunk: u64| -> Result<()> {
            let range_of_chunk = part(chunk);
            let bytes = self.read(range_of_chunk.clone())?;
            let io = |e| Error::io(notes, e);
            crate::support::files::write_at(out, &bytes, offset + (range_of_chunk.start - range.start)).map_err(io)?;
            // Synced to disk before the notes record it.
            out.sync_data().map_err(io)?;
            let mut state = state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            state.done.push(chunk);
            crate::support::files::write_whole(notes, serde_json::to_string(&*state).unwrap_or_default().as_bytes())?;
            arrived(bytes.len() as u64);
            Ok(())
        };
        std::thread::scope(|scope| {
            for _ in 0..THREADS.min(chunks as usize) {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let next = left.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
                        let Some(chunk) = next else { break };
                        if let Err(error) = one(chunk) {
                            stop.store(true, Ordering::Relaxed);
                            failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                        }
                    }
                });
            }
        });
        failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Requests a part until it arrives whole, an error is final, or the attempts are used up. `expect` returns how many bytes an
    /// answer must have.
    fn ask(&self, range: Range<u64>, asked: &str, mut expect: impl FnMut(&Answer) -> u64) -> Result<(Answer, Vec<u8>)> {
        let mut wait = self.hub.retry_delay;
        for attempt in 1.. {
            let last = attempt == ATTEMPTS;
            let error = match self.once(&range, asked) {
                Ok(mut answer) => {
                    let status = answer.response.status();
                    let code = header(answer.response.headers(), "x-error-code");
                    if status == StatusCode::PARTIAL_CONTENT && starts_at(&answer.response, range.start) {
                        let expected = expect(&answer);
                        let mut bytes = Vec::new();
                        // Never more than the requested bytes, whatever length the answer declares.
                        match (&mut answer.response).take(expected).read_to_end(&mut bytes) {
                            Ok(_) if bytes.len() as u64 == expected => return Ok((answer, bytes)),
                            Ok(count) => said(
                                asked.to_string(),
                                format!("the answer ended after {count} of {expected} bytes"),
                                "try again: what arrived is kept",
                            ),
                            Err(e) => said(
                                asked.to_string(),
                                format!(
                                    "the connection broke after {} of {expected} bytes ({})",
                                    bytes.len(),
                                    e.kind()
                                ),
                                "try again: what arrived is kept",
                            ),
                        }
                    } else {
                        let again = status.is_server_error()
                            || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status);
                        let error = refused(status, code.as_deref(), asked.to_string(), &self.hub);
                        if !again {
                            return Err(error);
                        }
                        let seconds =
                            header(answer.response.headers(), RETRY_AFTER.as_str()).and_then(|s| s.parse().ok());
                        wait = wait.max(Duration::from_secs(seconds.unwrap_or(0).min(60)));
                        error
                    }
                }
                Err(error) => error,
            };
            if last {
                return Err(error);
            }
            std::thread::sleep(wait);
            wait *= 2;
        }
        unreachable!("the last attempt returns")
    }

    /// Sends one request and follows redirects. The token is sent only to the endpoint's host.
    fn once(&self, range: &Range<u64>, asked: &str) -> Result<Answer> {
        let bad = |what: String| said(asked.to_string(), what, "check HF_ENDPOINT");
        let mut url = self.url().map_err(bad)?;
        let home = (url.scheme().to_string(), url.host_str().map(str::to_string), url.port_or_known_default());
        let (mut commit, mut etag) = (None, None);
        for _ in 0..REDIRECTS {
            let mut request =
                self.client.get(url.clone()).header(RANGE, format!("bytes={}-{}", range.start, range.end - 1));
            let here = (url.scheme().to_string(), url.host_str().map(str::to_string), url.port_or_known_default());
            if let Some(token) = self.hub.token.as_ref().filter(|_| here == home) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            let response = request.send().map_err(|e| unreachable(&e, asked.to_string(), &self.hub))?;
            let headers = response.headers();
            commit = commit.or_else(|| header(headers, "x-repo-commit"));
            etag = etag.or_else(|| header(headers, "x-linked-etag"));
            if !response.status().is_redirection() {
                etag = etag.or_else(|| header(headers, "etag"));
                return Ok(Answer { response, commit, etag });
            }
            let to = header(headers, LOCATION.as_str()).ok_or_else(|| bad("a redirect without URL".to_string()))?;
            url = url.join(&to).map_err(|_| bad("a redirect to an invalid URL".to_string()))?;
            if !["http", "https"].contains(&url.scheme()) {
                return Err(bad(format!("a redirect to {}:", url.scheme())));
            }
        }
        Err(bad(format!("more than {REDIRECTS} redirects")))
    }

    fn url(&self) -> std::result::Result<Url, String> {
        let mut url =
            Url::parse(&self.hub.endpoint).map_err(|e| format!("{:?} is not a URL: {e}", self.hub.endpoint))?;
        match url.path_segments_mut() {
            // Each part is one path segment, so that special characters in names are escaped.
            Ok(mut path) => {
                path.pop_if_empty().extend(self.repo.split('/')).push("resolve").push(&self.commit);
                path.extend(self.file.split('/'));
            }
            Err(()) => return Err(format!("{:?} is not a URL for requests", self.hub.endpoint)),
        }
        Ok(url)
    }
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_string)
}

/// First byte of the part and length of the whole file, from a header like "bytes 0-99/1000".
fn content_range(response: &Response) -> Option<(u64, Option<u64>)> {
    let text = header(response.headers(), CONTENT_RANGE.as_str())?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

fn total(response: &Response) -> Option<u64> {
    content_range(response)?.1
}

fn starts_at(response: &Response, start: u64) -> bool {
    content_range(response).is_some_and(|(found, _)| found == start)
}
