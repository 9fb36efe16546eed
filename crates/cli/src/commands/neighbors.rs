//! `tallow neighbors`: the tokens whose rows have the largest cosine with a row.

use std::io::Write;
use std::path::PathBuf;

use crate::grid::{Align, Cell, Column, write_grid};
use anyhow::{Result, bail, ensure};
use clap::Args;
use serde_json::json;
use tallow::{Neighbor, Tokenizer};

use crate::args::{TokenizerArgs, tokenizer_help};
use crate::model;
use crate::plain::plain;
use crate::rows::token;

#[derive(Args)]
#[command(mut_arg("tokenizer", |arg| arg.help(tokenizer_help("[default: the model's own]"))))]
pub struct Neighbors {
    #[arg(help = crate::model::MODEL)]
    model: PathBuf,
    /// Words or ids; a word of several tokens is the mean of their rows
    #[arg(required = true)]
    words: Vec<String>,
    /// How many neighbors to print
    #[arg(short, long, default_value_t = 10)]
    k: usize,
    /// The name of the table's tensor [default: found by the names that tables have]
    #[arg(long)]
    tensor: Option<String>,
    /// Read every word as an id
    #[arg(long)]
    ids: bool,
    /// Print one JSON object per word
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tokenizer: TokenizerArgs,
}

impl Neighbors {
    pub fn run(self) -> Result<()> {
        let table = model::open(&self.model, self.tensor.as_deref())?;
        // Ids need no tokenizer. One beside the model that fits its table adds the text of tokens.
        let tokenizer = match self.ids && self.tokenizer.tokenizer.is_none() {
            true if model::is_repository(&self.model) => None,
            true => self.tokenizer.of_model(&self.model, &table).unwrap_or(None),
            false => self.tokenizer.of_model(&self.model, &table)?,
        };
        let words: Vec<Vec<u32>> =
            self.words.iter().map(|word| self.ids_of(word, tokenizer.as_ref())).collect::<Result<_>>()?;
        let rows = table.vocab_size();
        if let Some(id) = words.iter().flatten().find(|id| **id as usize >= rows) {
            bail!("id {id} is not in this table: its ids run from 0 to {}", rows.saturating_sub(1));
        }
        let found = tallow::neighbors(&table, &words, self.k)?;
        let name = |id: u32| tokenizer.as_ref().and_then(|tokenizer| token(tokenizer, id as usize));
        let mut out = anstream::AutoStream::auto(std::io::stdout()).lock();
        for (i, ((word, ids), near)) in self.words.iter().zip(&words).zip(found).enumerate() {
            if self.json {
                let near = near.iter().map(|n| json!({"id": n.id, "token": name(n.id), "cosine": n.cosine}));
                writeln!(out, "{}", json!({"word": word, "ids": ids, "neighbors": near.collect::<Vec<_>>()}))?;
                continue;
            }
            let numbers: Vec<String> = ids.iter().map(u32::to_string).collect();
            writeln!(out, "{}{}  ({})", if i == 0 { "" } else { "\n" }, plain(word), numbers.join(" "))?;
            let columns = [("token", Align::Left), ("id", Align::Right), ("cosine", Align::Right)]
                .map(|(name, align)| Column::new(name, align));
            let row = |n: &Neighbor| {
                [name(n.id).unwrap_or_default(), n.id.to_string(), format!("{:.4}", n.cosine)].map(Cell::plain).to_vec()
            };
            write_grid(&mut out, &columns, &near.iter().map(row).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    fn ids_of(&self, word: &str, tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>> {
        let Some(tokenizer) = tokenizer.filter(|_| !self.ids) else {
            return match (word.parse(), self.ids) {
                (Ok(id), _) => Ok(vec![id]),
                (_, true) => bail!("{word:?} is not an id"),
                (_, false) => {
                    bail!("{word:?}: no tokenizer.json is beside the file; give one (--tokenizer), or give ids")
                }
            };
        };
        let ids = tokenizer.encode(word)?;
        ensure!(!ids.is_empty(), "an empty word has no neighbors");
        Ok(ids)
    }
}
