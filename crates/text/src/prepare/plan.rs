//! `plan.json`: the settings, files and units of a folder. Every rank makes the same plan by itself and compares it with the stored one.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{OnError, PrepareConfig, SeparatorChoice};
use crate::corpus::{CorpusFile, Cut, Format, Piece, Rules, find, units};
use crate::shard::{IdType, Separator, TokenizerInfo};
use crate::support::files::{TEMPORARY, read_regular, write_new};
use crate::{Error, Result, Tokenizer};

const NAME: &str = "plan.json";

#[derive(PartialEq, Serialize, Deserialize)]
pub(super) struct Plan {
    format: String,
    version: u32,
    pub(super) tokenizer: TokenizerInfo,
    specials: String,
    pub(super) table_rows: usize,
    pub(super) separator: Option<Separator>,
    #[serde(rename = "dtype")]
    pub(super) id_type: IdType,
    pub(super) val: f64,
    pub(super) seed: u64,
    pub(super) on_error: OnError,
    field: String,
    input_format: Option<Format>,
    split_at: Option<String>,
    unit_bytes: u64,
    pub(super) files: Vec<CorpusFile>,
    pub(super) units: Vec<Vec<Piece>>,
}

/// Whether a run into `out` would overwrite or remove this file.
fn is_written(file: &Path, out: &Path) -> bool {
    let (Ok(file), Ok(out)) = (std::fs::canonicalize(file), std::fs::canonicalize(out)) else { return false };
    let inside = file.strip_prefix(out).ok().and_then(|inside| inside.components().next());
    inside.is_some_and(|first| {
        let name = first.as_os_str().to_string_lossy();
        ["train", "val", "units", "manifest.json", NAME].contains(&&*name) || name.starts_with(TEMPORARY)
    })
}

impl Plan {
    /// Returns the plan and the number of files that were left out.
    pub(super) fn new(tokenizer: &Tokenizer, cfg: &PrepareConfig) -> Result<(Self, u64)> {
        let bad = |reason: String| Err(Error::Config(reason));
        if !(0.0..=1.0).contains(&cfg.val) {
            return bad(format!("the share of validation documents is {}, not a number from 0 to 1", cfg.val));
        }
        if cfg.rank.rank >= cfg.rank.world_size {
            return bad(format!("rank {} of {}: ranks count from 0", cfg.rank.rank, cfg.rank.world_size));
        }
        if cfg.unit_bytes == Some(0) {
            return bad("units of 0 bytes: a unit has at least one".to_string());
        }
        if cfg.split_at.as_ref().is_some_and(|line| line.contains('\n')) {
            return bad("the separator between documents of a text must be a single line".to_string());
        }
        let found = find(&cfg.inputs, cfg.format, &cfg.out)?;
        if cfg.rank.world_size > 1 && found.files.iter().any(|file| file.path == "-") {
            return bad("standard input cannot be shared by several ranks".to_string());
        }
        if let Some(file) = found.files.iter().find(|file| is_written(Path::new(&file.path), &cfg.out)) {
            return bad(format!(
                "{} lies where this run writes its own files: give another output folder",
                Path::new(&file.path).display()
            ));
        }
        let total: u64 = found.files.iter().map(|file| file.bytes).sum();
        let mut plan = Plan {
            format: "tallow-plan".to_string(),
            version: 1,
            tokenizer: TokenizerInfo::new(tokenizer.name(), tokenizer.fingerprint()),
            specials: tokenizer.rule().to_string(),
            table_rows: tokenizer.vocab_size(),
            separator: separator(tokenizer, &cfg.separator)?,
            id_type: IdType::for_rows(tokenizer.vocab_size()),
            val: cfg.val,
            seed: cfg.seed,
            on_error: cfg.on_error,
            field: cfg.field.clone(),
            input_format: cfg.format,
            split_at: cfg.split_at.clone(),
            unit_bytes: cfg.unit_bytes.unwrap_or((total / 256).clamp(1 << 20, 64 << 20)),
            files: found.files,
            units: Vec::new(),
        };
        let cuts = tokenizer.cuts();
        plan.units = units(&plan.files, &plan.rules(cuts.as_ref().map(|cuts| cuts as _)), plan.unit_bytes)?;
        Ok((plan, found.ignored))
    }

    pub(super) fn rules<'a>(&'a self, cuts: Option<&'a Cut<'a>>) -> Rules<'a> {
        Rules {
            field: &self.field,
            split_at: self.split_at.as_deref(),
            lossy: self.on_error == OnError::Replace,
            // Whether a document is skipped depends on the whole document, so it must not be cut.
            cuts: cuts.filter(|_| self.on_error != OnError::Skip),
        }
    }

    /// Approximate size of a unit in bytes.
    pub(super) fn unit_bytes(&self, unit: usize) -> u64 {
        self.units[unit].iter().map(|piece| piece.bytes).sum()
    }

    pub(super) fn read(out: &Path) -> Result<Option<Self>> {
        let path = out.join(NAME);
        match read_regular(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(&path, e)),
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| Error::Shard { path, reason: format!("not a plan of this version of tallow: {e}") }),
        }
    }

    /// Compares this plan with the one in `out`. The error lists the differences.
    pub(super) fn compare_with(&self, out: &Path) -> Result<()> {
        let Some(there) = Plan::read(out)? else {
            let reason = "it holds shards that `prepare` did not make: give another folder".to_string();
            return Err(Error::Folder { path: out.to_path_buf(), reason });
        };
        if there == *self {
            return Ok(());
        }
        let (old, new) = (serde_json::to_value(&there), serde_json::to_value(self));
        let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
        let differs: Vec<String> = new
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, value)| old.get(name) != Some(value))
            .map(|(name, value)| match (old.get(name), value) {
                (Some(old), new) if !new.is_array() => format!("{name} (there {old}, now {new})"),
                _ => name.clone(),
            })
            .collect();
        Err(Error::Folder {
            path: out.to_path_buf(),
            reason: format!(
                "this folder was begun with other settings or input: {}. Run the command that began it on the \
                 unchanged files, or give another folder",
                differs.join(", ")
            ),
        })
    }

    /// Creates the folder with this plan in it, or compares with the plan that is already there.
    pub(super) fn store(&self, out: &Path) -> Result<()> {
        if out.exists() && !out.is_dir() {
            let reason = "this is not a folder: give another one to write to".to_string();
            return Err(Error::Folder { path: out.to_path_buf(), reason });
        }
        for folder in ["units", "train", "val"] {
            let folder = out.join(folder);
            std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        }
        // Of ranks that start together, the first writes the file and the others compare with it.
        write_new(&out.join(NAME), &serde_json::to_vec(self).expect("a plan is JSON"))?;
        self.compare_with(out)
    }
}

fn separator(tokenizer: &Tokenizer, choice: &SeparatorChoice) -> Result<Option<Separator>> {
    let token = match choice {
        SeparatorChoice::None => return Ok(None),
        SeparatorChoice::EndOfText => "<|endoftext|>",
        SeparatorChoice::Token(token) => token,
    };
    match tokenizer.token_to_id(token) {
        Some(id) => Ok(Some(Separator { token: Some(token.to_string()), id, before: false })),
        None => {
            let names: Vec<&str> = tokenizer.special_ids().iter().map(|(text, _)| text.as_str()).take(16).collect();
            Err(Error::Config(format!(
                "{} has no token {token:?} to put after documents: take one of {} (`SeparatorChoice::Token`), or `SeparatorChoice::None`",
                tokenizer.name(),
                names.join(" ")
            )))
        }
    }
}
