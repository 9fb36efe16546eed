//! `tallow plot`: a table, before and after training, or a folder of shards, as pictures.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Error, Result, anyhow, bail, ensure};
use clap::Args;
use serde_json::json;
use tallow::shard::{Manifest, Statistics};
use tallow::{Tokenizer, weight_files};
use tallow_view::{DatasetPlot, TablePlot};

use crate::args::{MODEL_OR_SHARDS, TokenizerArgs, tokenizer_help};
use crate::model;
use crate::pictures::{Pictures, projector};
use crate::plain::plain;
use crate::progress::{bar, grouped, hear, plural};
use crate::rows::token;
use crate::shards::{matching, not_a_part, split_of};

#[derive(Args)]
#[command(mut_arg("tokenizer", |arg| arg.help(tokenizer_help(MODEL_OR_SHARDS))))]
pub struct Plot {
    #[arg(value_name = "PATH", help = format!("{}; or a folder of shards", model::MODEL))]
    what: PathBuf,
    /// The table before training: the picture also shows which rows moved, how far, and which were never trained
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,
    /// The name of the table's tensor [default: found by the names that tables have]
    #[arg(long)]
    tensor: Option<String>,
    /// Text whose tokens are on the map [default: the tokens that moved farthest, or the first rows]
    #[arg(long, value_name = "TEXT")]
    tokens: Option<String>,
    /// How many rows are on the map, without --tokens
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    top: u16,
    /// The split of a folder of shards
    #[arg(long, default_value = "train")]
    split: String,
    #[command(flatten)]
    pictures: Pictures,
    /// Write the map's rows as tensors.tsv and metadata.tsv for the TensorBoard embedding projector into this folder
    #[arg(long, value_name = "DIR")]
    tsv: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tokenizer: TokenizerArgs,
}

impl Plot {
    pub fn run(mut self) -> Result<()> {
        self.pictures.reads(self.tokenizer.files());
        let folder = self.what.clone();
        if folder.join("manifest.json").is_file() { self.dataset(&folder) } else { self.table() }
    }

    fn table(mut self) -> Result<()> {
        let open = |name: &Path| model::open(name, self.tensor.as_deref());
        let table = open(&self.what).map_err(|error| explained(&self.what, error))?;
        self.pictures.reads(model::files(&self.what, &table));
        let before = self.before.as_deref().map(open).transpose()?;
        if let (Some(path), Some(table)) = (&self.before, &before) {
            self.pictures.reads(model::files(path, table));
        }
        let tokenizer = self.tokenizer.of_model(&self.what, &table)?;
        let name = |id: u32| tokenizer.as_ref().and_then(|tokenizer| token(tokenizer, id as usize));
        let mut chosen = Vec::new();
        if let Some(text) = &self.tokens {
            let Some(tokenizer) = &tokenizer else {
                bail!("--tokens needs the model's tokenizer: none is beside it, so give one (--tokenizer cl100k)")
            };
            for id in tokenizer.encode(text)? {
                if !chosen.contains(&id) {
                    chosen.push(id);
                }
            }
            ensure!(!chosen.is_empty() && chosen.len() <= 1000, "--tokens takes a text of 1 to 1000 different tokens");
        }
        let plot = TablePlot::new(&table, before.as_ref(), &chosen, self.top.into(), name)?;
        let lang = self.pictures.language(self.tokens.as_deref().unwrap_or_default());
        let title = self.what.file_name().unwrap_or(self.what.as_os_str()).display().to_string();
        let written = self.pictures.write(|| plot.page(&title, lang), || plot.figure(lang))?;
        let mut written: Vec<String> = written.into_iter().map(|path| path.display().to_string()).collect();
        if let Some(folder) = &self.tsv {
            written.extend(projector(&self.pictures.outputs, folder, &plot.projector())?);
        }
        let mut out = anstream::AutoStream::auto(std::io::stdout()).lock();
        let (rows, columns) = plot.shape;
        if self.json {
            let line = json!({
                "table": table.name(), "rows": rows, "d_model": columns,
                "moved": plot.counts().map(|counts| counts[0]),
                "shrunk": plot.counts().map(|counts| counts[1]),
                "equal": plot.counts().map(|counts| counts[2]),
                "farthest": plot.farthest.iter().map(|(id, token, distance)| json!({"id": id, "token": token, "distance": distance})).collect::<Vec<_>>(),
                "mapped": plot.chosen.iter().map(|token| token.id).collect::<Vec<_>>(),
                "written": written,
            });
            return Ok(writeln!(out, "{line}")?);
        }
        writeln!(out, "table      {}: {} rows x {columns} columns", plain(table.name()), grouped(rows as u64))?;
        if let Some([moved, shrunk, equal]) = plot.counts() {
            let [moved, shrunk, equal] = [moved, shrunk, equal].map(|rows| grouped(rows as u64));
            let rows = if moved == "1" { "row" } else { "rows" };
            writeln!(
                out,
                "trained    {moved} {rows}; {shrunk} only shrank by weight decay, {equal} are equal to the bit"
            )?;
            let far = plot.farthest.iter().take(8).map(|(_, token, distance)| format!("{token} {distance:.3}"));
            if !plot.farthest.is_empty() {
                writeln!(out, "farthest   {}", plain(far.collect::<Vec<_>>().join(", ")))?;
            }
        }
        if tokenizer.is_none() {
            writeln!(out, "tokens     rows have numbers only: name the model's tokenizer (--tokenizer cl100k)")?;
        }
        self.finish(&mut out, &written)
    }

    fn dataset(mut self, folder: &Path) -> Result<()> {
        ensure!(
            self.before.is_none() && self.tokens.is_none() && self.tsv.is_none() && self.tensor.is_none(),
            "{} is a folder of shards: --before, --tokens, --tensor and --tsv are for tables",
            folder.display()
        );
        self.pictures.reads([folder.to_path_buf()]);
        let manifest = Manifest::read(folder)?;
        let split = split_of(&manifest, &self.split, folder)?;
        let progress = bar(0);
        let statistics = Statistics::read(folder, &self.split, 0, &hear(&progress))?;
        progress.finish_and_clear();
        let tokenizer: Tokenizer = self.tokenizer.open()?;
        let known = matching(&manifest, &tokenizer, folder);
        let special = |id: u32| tokenizer.special_ids().iter().any(|(_, special)| *special == id);
        let bytes =
            |id: u32| tokenizer.token_bytes(id).filter(|_| known.is_ok() && !special(id)).map(|bytes| bytes.len());
        let plot = DatasetPlot::new(&statistics, bytes);
        let lang = self.pictures.language("");
        let title = format!("{}: {}", folder.file_name().unwrap_or(folder.as_os_str()).display(), self.split);
        let written = self.pictures.write(|| plot.page(&title, lang), || plot.figure(lang))?;
        let written: Vec<String> = written.into_iter().map(|path| path.display().to_string()).collect();
        let mut out = anstream::AutoStream::auto(std::io::stdout()).lock();
        if self.json {
            let line = json!({
                "tokens": split.tokens, "documents": plot.lengths.iter().sum::<u64>(), "table_rows": plot.table_rows,
                "touched_rows": plot.frequencies.len(), "growth": plot.growth, "lengths": plot.lengths,
                "token_bytes": plot.token_bytes, "written": written,
            });
            return Ok(writeln!(out, "{line}")?);
        }
        writeln!(
            out,
            "{:<10} {} tokens in {}; {} of {} table rows occur",
            self.split,
            grouped(split.tokens),
            plural(plot.lengths.iter().sum(), "document"),
            grouped(plot.frequencies.len() as u64),
            grouped(plot.table_rows as u64)
        )?;
        if let Err(error) = known {
            writeln!(out, "no bytes   {error}")?;
        }
        self.finish(&mut out, &written)
    }

    fn finish(&self, out: &mut impl Write, written: &[String]) -> Result<()> {
        for file in written {
            writeln!(out, "written    {}", plain(file))?;
        }
        if written.is_empty() {
            writeln!(out, "next       --html FILE, --svg FILE or --png FILE draws it")?;
        }
        Ok(())
    }
}

/// Adds what this command takes to the error about a file or folder that does not look like weights.
fn explained(what: &Path, error: Error) -> Error {
    const ENDINGS: [&str; 5] = ["safetensors", "gguf", "bin", "pth", "pt"];
    let weights = match what.is_dir() {
        true => !weight_files(what).is_ok_and(|files| files.is_empty()),
        false => !what.exists() || what.extension().is_some_and(|end| ENDINGS.iter().any(|known| end == *known)),
    };
    match not_a_part(what) {
        Err(part) if !weights || what.is_file() => part,
        _ if weights => error,
        _ => anyhow!(
            "{error:#}; plot takes a safetensors, GGUF or PyTorch file, a folder with one, or a folder of shards that \
             `tallow prepare` made"
        ),
    }
}
