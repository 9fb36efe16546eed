//! One unit of work: the documents of some pieces of files → one shard per split, and the file that marks the unit as done.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::plan::Plan;
use super::{Event, OnError, UnitReport};
use crate::corpus::{Bad, Body, Counted, Document, End, Flaw, Source, documents, of_the_machine, reason};
use crate::shard::{IdType, ShardWriter, Skipped};
use crate::support::files::{read_regular, write_whole};
use crate::{Error, Result, Tokenizer};

/// The most skipped documents that are listed per unit.
const LISTED: u64 = 100;
/// Bytes between two progress events.
const PROGRESS_BYTES: u64 = 1 << 20;

fn marker(out: &Path, unit: usize) -> PathBuf {
    out.join("units").join(format!("{unit:06}.json"))
}

/// The report of a unit, if the unit is done: its file exists, and its shards exist in full length.
pub(super) fn done(out: &Path, unit: usize, id_type: IdType) -> Option<UnitReport> {
    let report: UnitReport = serde_json::from_slice(&read_regular(&marker(out, unit)).ok()?).ok()?;
    let there = |split: &str, tokens: u64, stem: &str| {
        let bytes =
            |ending| std::fs::metadata(out.join(split).join(format!("{stem}.{ending}"))).map(|about| about.len());
        let full = bytes("bin").is_ok_and(|bytes| Some(bytes) == tokens.checked_mul(id_type.bytes() as u64));
        tokens == 0 || (full && bytes("idx").is_ok())
    };
    let whole =
        there("train", report.train.tokens, &report.train.name) && there("val", report.val.tokens, &report.val.name);
    whole.then_some(report)
}

/// Encodes a unit. `None`: the work was abandoned because another thread failed and set `stop`.
pub(super) fn encode(
    tokenizer: &Tokenizer,
    plan: &Plan,
    unit: usize,
    out: &Path,
    progress: &(dyn Fn(Event) + Sync),
    stop: &AtomicBool,
) -> Result<Option<UnitReport>> {
    let create = |split: &str| ShardWriter::create(out.join(split).join(format!("{unit:06}")), plan.id_type);
    let mut encoder = Encoder {
        tokenizer,
        plan,
        shards: [Split::new(create("train")?), Split::new(create("val")?)],
        skipped: Skipped::default(),
        ids: Vec::new(),
        last: None,
    };
    let read = AtomicU64::new(0);
    let mut said = (0, 0);
    let cuts = tokenizer.cuts();
    let rules = plan.rules(cuts.as_ref().map(|cuts| cuts as _));
    for piece in &plan.units[unit] {
        let source = Source { file: &plan.files[piece.file], piece, rules: &rules, read: &read };
        let read_to = documents(source, &mut |document| {
            match document {
                Ok(document) => encoder.document(document)?,
                Err(Bad::Last) => encoder.retract()?,
                Err(Bad::New { place, flaw }) => {
                    encoder.settle()?;
                    encoder.skip(place.to_string(), flaw)?;
                }
            }
            let bytes = read.load(Ordering::Relaxed);
            if bytes - said.0 >= PROGRESS_BYTES {
                let tokens = encoder.tokens();
                progress(Event::Progress { bytes: bytes - said.0, tokens: tokens.saturating_sub(said.1) });
                said = (bytes, tokens);
            }
            if stop.load(Ordering::Relaxed) { Err(End::Enough) } else { Ok(()) }
        })?;
        if read_to.is_break() {
            return Ok(None);
        }
    }
    encoder.settle()?;
    progress(Event::Progress {
        bytes: read.load(Ordering::Relaxed) - said.0,
        tokens: encoder.tokens().saturating_sub(said.1),
    });
    let Encoder { shards: [train, val], skipped, .. } = encoder;
    let report = UnitReport { unit, train: train.finish()?, val: val.finish()?, skipped };
    write_whole(&marker(out, unit), &serde_json::to_vec(&report).expect("a report is JSON"))?;
    Ok(Some(report))
}

/// Estimated number of ids of a document, or of about `bytes` bytes of a large one.
pub(super) fn count(tokenizer: &Tokenizer, document: Document, bytes: u64) -> Result<u64> {
    match document.body {
        Body::Text(text) => Ok(crate::count_tokens(tokenizer, text)? as u64 + 1),
        Body::Stream(reader) => {
            let mut tokens = 0;
            for ids in tokenizer.encode_reader(std::io::Read::take(reader, bytes.max(1 << 20)), true) {
                tokens += ids?.len() as u64;
            }
            Ok(tokens)
        }
    }
}

struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    plan: &'a Plan,
    /// train and val
    shards: [Split; 2],
    skipped: Skipped,
    ids: Vec<u32>,
    /// The latest document. It can still be retracted.
    last: Option<Last>,
}

enum Last {
    /// It was written to split `split`, with `bytes` bytes of text.
    Written { split: usize, bytes: u64 },
    /// It cannot be used.
    Bad { place: String, flaw: Flaw },
}

struct Split {
    writer: ShardWriter,
    text_bytes: u64,
    continues: bool,
}

impl Split {
    fn new(writer: ShardWriter) -> Self {
        Split { writer, text_bytes: 0, continues: false }
    }

    fn finish(self) -> Result<crate::shard::ShardInfo> {
        let info = self.writer.finish()?;
        Ok(crate::shard::ShardInfo { text_bytes: self.text_bytes, continues: self.continues, ..info })
    }
}

impl Encoder<'_> {
    fn tokens(&self) -> u64 {
        self.shards.iter().map(|split| split.writer.tokens()).sum()
    }

    fn document(&mut self, document: Document) -> Result<()> {
        self.settle()?;
        let split = usize::from(is_validation(self.plan.seed, self.plan.val, document.head));
        let place = document.place.to_string();
        let Split { writer, text_bytes, continues } = &mut self.shards[split];
        let bytes = match document.body {
            Body::Text(text) => {
                self.ids.clear();
                if let Err(error) = self.tokenizer.encode_into(text, &mut self.ids) {
                    self.last = Some(Last::Bad { place, flaw: Flaw::new(error.to_string()) });
                    return Ok(());
                }
                writer.push(&self.ids)?;
                text.len() as u64
            }
            Body::Stream(reader) => {
                let read = AtomicU64::new(0);
                let counted = Counted { inner: reader, read: &read };
                let lossy = self.plan.on_error == OnError::Replace;
                let mut bad = None;
                for ids in self.tokenizer.encode_reader(counted, lossy) {
                    match ids {
                        Ok(ids) => writer.push(&ids)?,
                        Err(error) => bad = Some(error),
                    }
                }
                if let Some(error) = bad {
                    writer.undo_document()?;
                    let flaw = match error {
                        Error::Io { cause, .. } if of_the_machine(&cause) => return Err(Error::io(&place, cause)),
                        Error::Io { cause, .. } => Flaw::new(reason(&cause)),
                        Error::InvalidUtf8 { byte } => {
                            Flaw::not_utf8(format!("invalid UTF-8 at byte {byte} of the document"))
                        }
                        other => Flaw::new(other.to_string()),
                    };
                    self.last = Some(Last::Bad { place, flaw });
                    return Ok(());
                }
                read.into_inner()
            }
        };
        *text_bytes += bytes;
        if writer.document_tokens() == 0 {
            return Ok(());
        }
        *continues |= !document.begins;
        if let (true, Some(separator)) = (document.ends, &self.plan.separator) {
            writer.push(&[separator.id])?;
        }
        self.last = Some(Last::Written { split, bytes });
        Ok(())
    }

    /// Ends the latest document.
    fn settle(&mut self) -> Result<()> {
        match self.last.take() {
            Some(Last::Written { split, .. }) => self.shards[split].writer.end_document(),
            Some(Last::Bad { place, flaw }) => self.skip(place, flaw),
            None => Ok(()),
        }
    }

    /// Removes the latest document again.
    fn retract(&mut self) -> Result<()> {
        let Some(Last::Written { split, bytes }) = self.last.take() else { return Ok(()) };
        self.shards[split].text_bytes -= bytes;
        self.shards[split].writer.undo_document()
    }

    /// Skips a document that cannot be used, or returns the error for it.
    fn skip(&mut self, place: String, flaw: Flaw) -> Result<()> {
        let Flaw { reason, advice } = flaw;
        if self.plan.on_error != OnError::Skip {
            return Err(Error::Document { place, reason, advice });
        }
        self.skipped.count += 1;
        if self.skipped.count <= LISTED {
            self.skipped.reasons.push(format!("{place}: {reason}"));
        }
        Ok(())
    }
}

/// Whether a document that begins with `head` belongs to the validation split.
fn is_validation(seed: u64, share: f64, head: &[u8]) -> bool {
    if share <= 0.0 {
        return false;
    }
    let mixed = crate::support::mix(seed ^ u64::from(crc32fast::hash(head)));
    // The upper 53 bits as a number from 0 to 1.
    ((mixed >> 11) as f64 / (1u64 << 53) as f64) < share
}
