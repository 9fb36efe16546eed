//! Answers of the Hub → errors with advice, each in one line.

use hf_hub::HFError;
use reqwest::StatusCode;

use super::Hub;
use crate::Error;

/// Value of the header `x-error-code` for a file that is not in the repository.
const NO_FILE: &str = "EntryNotFound";

pub(super) fn said(asked: String, answer: impl Into<String>, advice: impl Into<String>) -> Error {
    Error::Hub { asked, answer: answer.into(), advice: advice.into(), absent: false }
}

/// The error for a repository without a suitable file. It lists the files.
#[doc(hidden)]
pub fn nothing(repo: &str, why: &str, files: &[String]) -> Error {
    let shown = files.iter().take(20).cloned().collect::<Vec<_>>().join(", ");
    let more = if files.len() > 20 { ", …" } else { "" };
    said(repo.to_string(), why, format!("it has {shown}{more}: fetch one (`Hub::fetch`) and open it"))
}

/// The error for an HTTP status other than success.
pub(super) fn refused(status: StatusCode, code: Option<&str>, asked: String, hub: &Hub) -> Error {
    let login = match hub.token {
        Some(_) => {
            "the token has no access: check that it is valid, and whether the repository's page asks for consent"
        }
        None => {
            "set HF_TOKEN (a token of https://huggingface.co/settings/tokens), and accept the terms on the repository's page"
        }
    };
    let answer = match code {
        Some(code) => format!("{status}, {code}"),
        None => status.to_string(),
    };
    let advice = match (status.as_u16(), code) {
        (401 | 403, _) => login,
        (404, Some("RevisionNotFound")) => "there is no such branch, tag or commit",
        (404, Some(NO_FILE)) => "there is no such file in the repository",
        (404, _) => "look at the names of repository, revision and file; private repositories need HF_TOKEN",
        (416, _) => "the file has become shorter: try again",
        (429, _) => "too many requests: wait a while, or set HF_TOKEN",
        (500.., _) => "the server failed: try again later, or use another mirror (HF_ENDPOINT)",
        (200..300, _) => "the server ignores range requests: use another mirror (HF_ENDPOINT)",
        _ => "check HF_ENDPOINT and the names of repository and file",
    };
    let absent = status == StatusCode::NOT_FOUND && matches!(code, None | Some(NO_FILE));
    Error::Hub { asked, answer, advice: advice.to_string(), absent }
}

/// The error for a request without an answer.
pub(super) fn unreachable(error: &reqwest::Error, asked: String, hub: &Hub) -> Error {
    // Only the innermost cause: outer ones may show URLs with signatures.
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let what = match error {
        e if e.is_timeout() => "no answer in time",
        e if e.is_connect() => "no connection",
        _ => "the connection broke",
    };
    let endpoint = &hub.endpoint;
    let advice = format!(
        "is there a network? HF_ENDPOINT is {endpoint}; HTTPS_PROXY names a proxy, HF_HUB_OFFLINE=1 uses the cache only"
    );
    said(asked, format!("{what} ({cause})"), advice)
}

/// The same error for one of hf-hub's.
pub(super) fn of_client(error: HFError, asked: String, hub: &Hub) -> Error {
    match &error {
        HFError::Http { context }
        | HFError::AuthRequired { context }
        | HFError::Forbidden { context }
        | HFError::RateLimited { context, .. } => refused(context.status, context.error_code.as_deref(), asked, hub),
        HFError::RepoNotFound { context, .. }
        | HFError::RevisionNotFound { context, .. }
        | HFError::EntryNotFound { context, .. } => {
            // The server's own code, not hf-hub's guess from the request.
            let code = context.as_ref().and_then(|context| context.error_code.as_deref());
            refused(StatusCode::NOT_FOUND, code.or(Some(NO_FILE)), asked, hub)
        }
        HFError::Request { source, .. } => unreachable(source, asked, hub),
        HFError::Io(cause) => said(asked, cause.to_string(), format!("check the cache in {}", hub.cache.display())),
        other => said(asked, other.to_string().lines().next().unwrap_or_default(), "check HF_ENDPOINT"),
    }
}
