//! `tallow show`: a text as pieces, ids and a matrix.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::grid::{Align, Cell, Column, write_grid};
use anstyle::{AnsiColor, Style};
use anyhow::{Result, anyhow};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use clap::Args;
use serde::Serialize;
use tallow::{Error, TokenEmbedding, Tokenizer};
use tallow_view::{Lookup, Piece, hex, one_line, shown_columns, visible};

use crate::args::{SpecialsArgs, TableArgs, TokenizerArgs, describe, tokenizer_help};
use crate::io::{Kind, Output};
use crate::model;
use crate::pictures::{Pictures, projector};
use crate::plain::{plain, say};
use crate::rows::save;

/// How many tokens are printed at each end of a long text.
const ENDS: usize = 32;

const TRAINED: &str = match cfg!(feature = "hub") {
    true => "Use the rows of a trained table: a file or folder with a model, or a repository on the Hub (owner/name)",
    false => {
        "Use the rows of a trained table: a file or folder with a model (a repository on the Hub needs a build with --features hub)"
    }
};

#[derive(Args)]
#[command(mut_arg("tokenizer", |arg| arg.help(tokenizer_help("[default: the tokenizer.json beside --table, or else cl100k]"))))]
pub struct Show {
    /// The text, or - for standard input
    text: OsString,
    /// How many rows the table has [default: the tokenizer's ordinary tokens, with --specials allow also the special ones]
    #[arg(long)]
    vocab_size: Option<usize>,
    #[arg(long = "table", value_name = "FILE", help = TRAINED, conflicts_with_all = ["vocab_size", "d_model", "seed", "init", "dtype"])]
    trained: Option<PathBuf>,
    #[command(flatten)]
    table: TableArgs,
    #[command(flatten)]
    tokenizer: TokenizerArgs,
    #[command(flatten)]
    specials: SpecialsArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Also write the matrix and the ids to this safetensors file
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    pictures: Pictures,
    /// Write tensors.tsv and metadata.tsv for the TensorBoard embedding projector into this folder
    #[arg(long, value_name = "DIR")]
    tsv: Option<PathBuf>,
    /// Write the matrix as a NumPy file
    #[arg(long, value_name = "FILE")]
    npy: Option<PathBuf>,
    /// Read bytes that are not UTF-8 as U+FFFD
    #[arg(long)]
    lossy: bool,
    /// Print every token of a long text
    #[arg(long)]
    all: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    text: &'a str,
    tokenizer: &'a str,
    ids: Vec<u32>,
    pieces: Vec<PieceReport<'a>>,
    /// (batch, context, d_model)
    shape: [usize; 3],
    /// Rows of the table.
    rows: usize,
    d_model: usize,
    /// `None` for a trained table.
    seed: Option<u64>,
    init: Option<String>,
    /// What the values were drawn from, or the file that they come from.
    origin: &'a str,
    dtype: &'static str,
    device: String,
    mean: Option<f64>,
    std: Option<f64>,
    /// One list per token.
    values: &'a [Vec<f32>],
    /// Whether the ids decode to the bytes of the text, and every row of the matrix equals the table's row of its id.
    exact: bool,
}

#[derive(Serialize)]
struct PieceReport<'a> {
    id: u32,
    /// The token's text; null if the token is a part of a character.
    text: Option<&'a str>,
    bytes: String,
    /// The whole characters that this token and its neighbors encode.
    characters: &'a str,
    part: usize,
    of: usize,
}

impl Show {
    pub fn run(mut self) -> Result<()> {
        if Path::new(&self.text).is_file() {
            let name = self.text.display();
            say(format!("note: {name} is a file here: its name is shown, not its text (tallow show - < {name})"));
        }
        self.pictures.reads(self.tokenizer.files());
        let text = crate::io::text(std::mem::take(&mut self.text), self.lossy)?;
        let (table, origin, tokenizer) = self.open()?;
        let lookup = Lookup::new(&tokenizer, &table, &text).map_err(|error| self.advise(error))?;
        let Lookup { pieces, values, .. } = &lookup;
        let ids: Vec<u32> = pieces.iter().map(|piece| piece.id).collect();
        let written = self.write(&lookup, &ids, &table, &tokenizer)?;
        let exact = tokenizer.decode_bytes(&ids)? == text.as_bytes() && is_rows(&table, &ids, values)?;
        let (mean, std) = mean_and_std(values).unzip();
        let report = Report {
            text: &text,
            tokenizer: tokenizer.name(),
            ids,
            pieces: pieces.iter().map(piece_report).collect(),
            shape: [1, values.len(), table.d_model()],
            rows: table.vocab_size(),
            d_model: table.d_model(),
            seed: self.fresh().map(|args| args.seed),
            init: self.fresh().map(|args| args.init.to_string()),
            origin: &origin,
            dtype: table.flushed_weight()?.dtype().as_str(),
            device: crate::args::device_name(table.flushed_weight()?.device()),
            mean,
            std,
            values,
            exact,
        };
        if self.json {
            let mut out = Output::stdout();
            serde_json::to_writer(&mut out, &report)?;
            writeln!(out)?;
            return out.finish();
        }
        self.print(&report, pieces, &tokenizer, &table, &written)
    }

    /// The flags of a new table; `None` for a trained one.
    fn fresh(&self) -> Option<&TableArgs> {
        self.trained.is_none().then_some(&self.table)
    }

    /// The table, where its values come from, and the tokenizer.
    fn open(&mut self) -> Result<(TokenEmbedding, String, Tokenizer)> {
        let Some(path) = &self.trained else {
            let tokenizer = self.specials.apply(self.tokenizer.open()?);
            let rows = self.vocab_size.unwrap_or_else(|| self.specials.rows(&tokenizer));
            return Ok((self.table.open(rows, &tokenizer)?, self.table.origin(), tokenizer));
        };
        let device = self.table.device()?;
        let rows = model::open(path, None)?;
        self.pictures.reads(model::files(path, &rows));
        let tokenizer = match self.tokenizer.of_model(path, &rows)? {
            Some(tokenizer) => tokenizer,
            None => {
                say(format!("note: no tokenizer.json is beside {}: cl100k is taken (--tokenizer)", path.display()));
                let bundled = Tokenizer::cl100k();
                rows.check_tokenizer(&bundled)?;
                bundled
            }
        };
        let tokenizer = self.specials.apply(tokenizer);
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, rows.dtype(), &device);
        let table = rows.embedding(&rows.config(), vb)?;
        let origin = format!("{} of {}", rows.name(), path.display());
        Ok((table.with_token_names(tokenizer.names()), origin, tokenizer))
    }

    /// Gives an error about an id outside a trained table other advice: a trained table cannot get more rows.
    fn advise(&self, error: tallow_view::Error) -> anyhow::Error {
        match error {
            tallow_view::Error::Tallow(Error::IdOutOfRange { id, rows, token, .. }) if self.trained.is_some() => {
                anyhow!(
                    "id {id} ({}) is outside the trained table of {rows} rows: read special tokens as text (--specials text), or \
                 give the tokenizer of this table (--tokenizer)",
                    token.unwrap_or_default()
                )
            }
            error => error.into(),
        }
    }

    /// Writes the files of the flags. Returns one line about each.
    fn write(
        &self,
        lookup: &Lookup,
        ids: &[u32],
        table: &TokenEmbedding,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<String>> {
        let mut written = Vec::new();
        if let Some(path) = &self.out {
            let ids = Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu)?;
            save(
                &self.pictures.outputs,
                path,
                &[("matrix", &table.lookup(&ids)?), ("ids", &ids)],
                tokenizer,
                self.fresh(),
            )?;
            written.push(format!("{} (tensors \"matrix\" and \"ids\")", path.display()));
        }
        let lang = self.pictures.language(&lookup.text);
        let pictures = self.pictures.write(|| lookup.page(lang), || lookup.figure(lang))?;
        written.extend(pictures.into_iter().map(|path| path.display().to_string()));
        if let Some(folder) = &self.tsv {
            written.extend(projector(&self.pictures.outputs, folder, &lookup.projector())?);
        }
        if let Some(path) = &self.npy {
            let values: Vec<f32> = lookup.values.concat();
            let matrix = Tensor::from_vec(values, (lookup.values.len(), lookup.d_model), &Device::Cpu)?;
            // candle's writer needs a path.
            self.pictures.outputs.write_by_name(path, Kind::Npy, |path| {
                matrix.write_npy(path)?;
                Ok(vec![path.to_path_buf()])
            })?;
            written.push(format!("{} ({} x {}, f32)", path.display(), lookup.values.len(), lookup.d_model));
        }
        Ok(written)
    }

    fn print(
        &self,
        report: &Report,
        pieces: &[Piece],
        tokenizer: &Tokenizer,
        table: &TokenEmbedding,
        written: &[String],
    ) -> Result<()> {
        let mut out = anstream::AutoStream::auto(std::io::stdout()).lock();
        let (bold, text) = (Style::new().bold(), report.text);
        let [batch, context, d_model] = report.shape;
        let start: String = text.chars().take(200).collect();
        let cut = if start.len() < text.len() { "…" } else { "" };
        writeln!(
            out,
            "text       {}{cut}  ({} characters, {} bytes)",
            one_line(&start),
            text.chars().count(),
            text.len()
        )?;
        let (rows, specials) = (tokenizer.ordinary_vocab_size(), tokenizer.special_ids());
        let tokens = rows - specials.iter().filter(|(_, id)| (*id as usize) < rows).count();
        let ones = if specials.len() == 1 { "one" } else { "ones" };
        let name = plain(tokenizer.name());
        writeln!(out, "tokenizer  {name}: {tokens} tokens, and {} special {ones}", specials.len())?;
        writeln!(out, "table      {}\n", plain(describe(table, report.origin)?))?;
        self.print_matrix(&mut out, report, pieces)?;
        writeln!(out, "\nshape      {bold}batch {batch} x context {context} x d_model {d_model}{bold:#}")?;
        let split: Vec<&Piece> = pieces.iter().filter(|piece| piece.of > 1 && piece.part == 1).collect();
        if !split.is_empty() {
            let listed: Vec<String> = split.iter().take(8).map(|piece| visible(&piece.characters)).collect();
            let more = if split.len() > listed.len() { " …" } else { "" };
            writeln!(
                out,
                "split      {}{more}: no single token, so its bytes are shared by several",
                listed.join(" ")
            )?;
        }
        if let (Some(mean), Some(std)) = (report.mean, report.std) {
            writeln!(out, "values     mean {mean:.4}, standard deviation {std:.4}")?;
        }
        match report.exact {
            true => writeln!(
                out,
                "exact      the ids give back the text byte for byte; every row is the table's row of its id"
            )?,
            false => writeln!(out, "not exact  this tokenizer changes the text: its ids give back other bytes")?,
        }
        for file in written {
            writeln!(out, "written    {}", plain(file))?;
        }
        writeln!(out, "next       add the position of each token to its row, then the transformer blocks")?;
        Ok(())
    }

    fn print_matrix(&self, out: &mut impl Write, report: &Report, pieces: &[Piece]) -> Result<()> {
        let (id_style, split_style) = (AnsiColor::Cyan.on_default(), AnsiColor::Yellow.on_default());
        let shown = shown_columns(report.d_model, 3);
        let any_split = pieces.iter().any(|piece| piece.of > 1);
        let mut columns = vec![Column::new("#", Align::Right), Column::new("piece", Align::Left)];
        columns.extend(any_split.then(|| Column::new("bytes", Align::Left)));
        columns.push(Column::new("id = row", Align::Right));
        columns.extend(shown.iter().map(|c| Column::new(c.map_or("…".to_string(), |c| c.to_string()), Align::Right)));
        let ends = if self.all { usize::MAX / 4 } else { ENDS };
        let rows = shown_columns(pieces.len(), ends).into_iter().map(|index| {
            let Some(i) = index else { return columns.iter().map(|_| Cell::plain("…")).collect() };
            let piece = &pieces[i];
            let (label, bytes) = match (&piece.text, piece.part) {
                (Some(text), _) => (Cell::plain(visible(text)), Cell::default()),
                (None, _) if piece.of == 1 => (Cell::plain(hex(&piece.bytes)), Cell::default()),
                (None, part) => {
                    let mark = if part == 1 {
                        "┌"
                    } else if part == piece.of {
                        "└"
                    } else {
                        "│"
                    };
                    let label = format!("{mark} {} {part}/{}", visible(&piece.characters), piece.of);
                    (Cell::styled(label, split_style), Cell::styled(hex(&piece.bytes), split_style))
                }
            };
            let mut row = vec![Cell::plain(i.to_string()), label];
            row.extend(any_split.then_some(bytes));
            row.push(Cell::styled(piece.id.to_string(), id_style));
            row.extend(shown.iter().map(|c| c.map_or(Cell::plain("…"), |c| Cell::number(report.values[i][c]))));
            row
        });
        Ok(write_grid(out, &columns, &rows.collect::<Vec<_>>())?)
    }
}

fn piece_report(piece: &Piece) -> PieceReport<'_> {
    PieceReport {
        id: piece.id,
        text: piece.text.as_deref(),
        bytes: hex(&piece.bytes),
        characters: &piece.characters,
        part: piece.part,
        of: piece.of,
    }
}

/// Whether each of `values` is, bit for bit, the row of the table that its id names.
fn is_rows(table: &TokenEmbedding, ids: &[u32], values: &[Vec<f32>]) -> Result<bool> {
    for (id, values) in ids.iter().zip(values) {
        let row = table.flushed_weight()?.get(*id as usize)?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        if !row.iter().zip(values).all(|(a, b)| a.to_bits() == b.to_bits()) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn mean_and_std(values: &[Vec<f32>]) -> Option<(f64, f64)> {
    let all = || values.iter().flatten().map(|value| f64::from(*value));
    let count = all().count() as f64;
    let mean = all().sum::<f64>() / count;
    let variance = all().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    (count > 0.0).then(|| (mean, variance.sqrt()))
}
