//! Files and parts of files from repositories on the Hugging Face Hub.
//!
//! Whole files are downloaded by hf-hub, into the cache that the Python client uses. Parts of files are downloaded by `remote.rs`,
//! because hf-hub 1.0 neither checks that the server answered with the requested part nor limits the read to it. This module does
//! not know what is in the files.

mod answer;
mod remote;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::{HFClient, split_id};
use sha2::{Digest, Sha256};

use crate::{Error, Result};
pub use answer::nothing;
use answer::{of_client, said};
pub use remote::RemoteFile;

/// Settings for the Hub. [`from_env`](Self::from_env) reads the environment variables of the Python client.
///
/// # Example
/// ```no_run
/// use tallow_text::hub::Hub;
/// let mirror = Hub { endpoint: "https://hub.example.com".to_string(), ..Hub::from_env() };
/// let config = mirror.fetch("openai-community/gpt2", None, "config.json")?;
/// # Ok::<(), tallow_text::Error>(())
/// ```
#[derive(Clone)]
pub struct Hub {
    /// Base URL. From HF_ENDPOINT, else <https://huggingface.co>.
    pub endpoint: String,
    /// Access token. From HF_TOKEN, the file HF_TOKEN_PATH, or the file `token` in HF_HOME. It is sent only to the endpoint's host,
    /// and never printed or written.
    pub token: Option<String>,
    /// Cache folder. From HF_HUB_CACHE, else `hub` in HF_HOME, else `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// Use only the cache. From HF_HUB_OFFLINE.
    pub offline: bool,
    /// Ask the Hub whether a branch has moved. If false, cached files are used without a request, so tokenizer and table stay those
    /// of one commit.
    pub refresh: bool,
    /// Wait before the second of five attempts. It doubles with each attempt. Broken connections and the status codes 408, 429 and
    /// 5xx are retried.
    pub retry_delay: Duration,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .field("refresh", &self.refresh)
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// Reads the settings from the environment: HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE,
    /// HF_HUB_DISABLE_IMPLICIT_TOKEN. Requests use HTTPS_PROXY, HTTP_PROXY and NO_PROXY.
    pub fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let yes = |name: &str| set(name).is_some_and(|v| ["1", "on", "yes", "true"].contains(&v.to_lowercase().trim()));
        let home = hf_hub::hf_home();
        let read = |path: &Path| std::fs::read_to_string(path).ok();
        let token = set("HF_TOKEN")
            .or_else(|| read(Path::new(&set("HF_TOKEN_PATH")?)))
            .or_else(|| read(&home.join("token")))
            .map(|token| token.trim().to_string())
            .filter(|token| !token.is_empty() && !yes("HF_HUB_DISABLE_IMPLICIT_TOKEN"));
        Hub {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_string()),
            token,
            cache: hf_hub::resolve_cache_dir(),
            offline: yes("HF_HUB_OFFLINE"),
            refresh: false,
            retry_delay: Duration::from_millis(250),
        }
    }

    /// Returns the path of a file in the cache, and downloads the file first if it is missing. `repo` is a model's repository
    /// (`owner/name`), `revision` a branch, tag or commit (`None`: main). A download is verified against the Hub's checksum.
    ///
    /// # Errors
    /// [`Error::Hub`]: the request failed. [`Error::Config`]: an invalid name of a repository, revision or file.
    pub fn fetch(&self, repo: &str, revision: Option<&str>, file: &str) -> Result<PathBuf> {
        check_names(repo, revision, file)?;
        let asked = || format!("{repo}/{file}{}", at(revision));
        if !self.refresh
            && let Some(path) = self.cached(repo, revision, file)
        {
            return Ok(path);
        }
        if self.offline {
            return Err(said(
                asked(),
                "not in the cache, and HF_HUB_OFFLINE is set",
                "unset it, or fetch it elsewhere",
            ));
        }
        let failed = |error| of_client(error, asked(), self);
        let (owner, name) = split_id(repo);
        let model = self.client().map_err(failed)?.model(owner, name);
        let request = model.download_file().filename(file).maybe_revision(revision);
        let path = match request.send() {
            // Find out what is missing: the file, the repository or the revision.
            Err(error @ hf_hub::HFError::EntryNotFound { .. }) => {
                self.files(repo, revision)?;
                return Err(failed(error));
            }
            path => path.map_err(failed)?,
        };
        verify(&path, &asked())?;
        Ok(path)
    }

    /// Lists the names of the files in a model's repository.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub fn files(&self, repo: &str, revision: Option<&str>) -> Result<Vec<String>> {
        check_names(repo, revision, "-")?;
        let asked = || format!("the files of {repo}{}", at(revision));
        if self.offline {
            return Err(said(asked(), "HF_HUB_OFFLINE is set", "unset it"));
        }
        let failed = |error| of_client(error, asked(), self);
        let (owner, name) = split_id(repo);
        let model = self.client().map_err(failed)?.model(owner, name);
        let info = model.info().maybe_revision(revision).send().map_err(failed)?;
        Ok(info.siblings.unwrap_or_default().into_iter().map(|file| file.rfilename).collect())
    }

    /// Opens a file for reading parts of it.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub fn open(&self, repo: &str, revision: Option<&str>, file: &str) -> Result<RemoteFile> {
        check_names(repo, revision, file)?;
        if self.offline {
            let asked = format!("{repo}/{file}{}", at(revision));
            return Err(said(asked, "not in the cache, and HF_HUB_OFFLINE is set", "unset it, or fetch it elsewhere"));
        }
        RemoteFile::open(self, repo, revision.unwrap_or("main"), file)
    }

    /// Path of a file in the cache, if it is there. Sends no request.
    pub fn cached(&self, repo: &str, revision: Option<&str>, file: &str) -> Option<PathBuf> {
        let commit = self.commit(repo, revision)?;
        Some(self.folder(repo).join("snapshots").join(commit).join(file)).filter(|path| path.is_file())
    }

    /// The commit of a revision, if the cache knows it. Sends no request.
    pub fn commit(&self, repo: &str, revision: Option<&str>) -> Option<String> {
        let revision = revision.unwrap_or("main");
        if is_commit(revision) {
            return Some(revision.to_string());
        }
        let text = std::fs::read_to_string(self.folder(repo).join("refs").join(revision)).ok()?;
        Some(text.trim().to_string()).filter(|commit| is_commit(commit))
    }

    /// Records the commit of a branch or tag in the cache, in the file that the Python client uses.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remember(&self, repo: &str, revision: Option<&str>, commit: &str) -> Result<()> {
        let revision = revision.unwrap_or("main");
        if is_commit(revision) || !is_commit(commit) {
            return Ok(());
        }
        let path = self.folder(repo).join("refs").join(revision);
        std::fs::create_dir_all(crate::support::files::folder_of(&path)).map_err(|e| Error::io(&path, e))?;
        crate::support::files::write_whole(&path, commit.as_bytes())
    }

    /// Folder of a repository in the cache.
    pub fn folder(&self, repo: &str) -> PathBuf {
        self.cache.join(format!("models--{}", repo.replace('/', "--")))
    }

    fn client(&self) -> hf_hub::HFResult<hf_hub::HFClientSync> {
        let builder = HFClient::builder()
            .endpoint(self.endpoint.as_str())
            .cache_dir(&self.cache)
            .retry_base_delay(self.retry_delay / 2) // hf-hub doubles it before the first wait
            .retry_max_attempts(4)
            .user_agent(USER_AGENT);
        match &self.token {
            Some(token) => builder.token(token.as_str()).build_sync(),
            None => builder.build_sync(),
        }
    }
}

const USER_AGENT: &str = concat!("tallow/", env!("CARGO_PKG_VERSION"));

fn at(revision: Option<&str>) -> String {
    revision.map_or(String::new(), |revision| format!(" at {revision}"))
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Checks names, which become paths in the cache: none may lead out of it.
fn check_names(repo: &str, revision: Option<&str>, file: &str) -> Result<()> {
    let word = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let path = |path: &str| {
        !path.is_empty() && !path.contains(['\\', ':', '\0']) && path.split('/').all(|p| !["", ".", ".."].contains(&p))
    };
    let parts: Vec<&str> = repo.split('/').collect();
    if parts.len() > 2 || !parts.into_iter().all(word) || repo.contains("--") || repo.contains("..") {
        return Err(Error::Config(format!("{repo:?} is not the name of a repository: give owner/name")));
    }
    if let Some(revision) = revision.filter(|revision| !path(revision)) {
        return Err(Error::Config(format!("{revision:?} is not the name of a branch, tag or commit")));
    }
    if !path(file) {
        return Err(Error::Config(format!("{file:?} is not the name of a file in a repository")));
    }
    Ok(())
}

/// Verifies a file against its checksum, which is its name in the cache: SHA-256 for large files, git's SHA-1 for others. hf-hub
/// 1.0 stores any response body, even an error page.
fn verify(path: &Path, asked: &str) -> Result<()> {
    let io = |e| Error::io(path, e);
    let Some(blob) = std::fs::read_link(path).ok().and_then(|link| path.parent().map(|folder| folder.join(link)))
    else {
        return Ok(()); // on systems without links the cache holds a copy
    };
    let name = blob.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut file = std::fs::File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let (mut sha256, mut sha1) = (Sha256::new(), sha1::Sha1::new());
    sha1.update(format!("blob {length}\0"));
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => break,
            read => {
                sha256.update(&buffer[..read]);
                sha1.update(&buffer[..read]);
            }
        }
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let found = match name.len() {
        64 => hex(&sha256.finalize()),
        40 => hex(&sha1.finalize()),
        _ => return Ok(()), // not a checksum
    };
    if found == name {
        return Ok(());
    }
    // Removed, so that the cache has no wrong file.
    std::fs::remove_file(path).map_err(io)?;
    std::fs::remove_file(&blob).map_err(|e| Error::io(&blob, e))?;
    Err(said(asked.to_string(), format!("{length} bytes that are not the file's"), "try again; they were deleted"))
}
