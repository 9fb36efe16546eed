//! JSON lines: one object per line, with the text in one of its fields. The text of a line of any length equals that of Python's
//! `json.loads(line)[field]`: of fields with the same name, the last one counts.

use std::io::{self, BufRead, Read};

use super::json::{Fault, Json};
use super::open::open;
use super::utf8::Utf8;
use super::{At, Bad, Body, Document, Each, Flaw, HEAD_BYTES, Place, Source, Stop, WHOLE_BYTES, first_line};

/// Longer lines are not held in memory.
const LINE_BYTES: u64 = WHOLE_BYTES;
/// The byte order mark that some programs write at the beginning of a file. It is not part of the first line.
const MARK: &[u8] = "\u{FEFF}".as_bytes();

pub(super) fn documents(source: Source, each: &mut Each) -> Result<(), Stop> {
    let Source { file, piece, rules, read } = source;
    let mut at = piece.start;
    let mut number = 0;
    let mut reader = open(file, at.saturating_sub(1), read)?;
    if at > 0 {
        at = first_line(&mut reader, piece)?; // a line belongs to the piece that it begins in
    }
    let (mut bytes, mut held) = (Vec::new(), Held::default());
    while at < piece.end {
        bytes.clear();
        let taken = (&mut reader).take(LINE_BYTES).read_until(b'\n', &mut bytes)? as u64;
        if taken == 0 {
            break;
        }
        number += 1;
        // Line numbers are known only if the piece begins where the file does.
        let place = source.place(if piece.start == 0 { At::Line(number) } else { At::Byte(at) });
        let ended = bytes.pop_if(|byte| *byte == b'\n').is_some() || taken < LINE_BYTES;
        let line = bytes.strip_prefix(MARK).filter(|_| at == 0).unwrap_or(&bytes);
        at += taken;
        let mut rest = Rest { reader: &mut reader, read: 0, done: ended };
        let outcome = match std::str::from_utf8(line) {
            Ok(_) if ended => document(line, &place, rules.field, &mut held, each)?,
            _ => {
                let whole = Utf8::new(line.chain(&mut rest), rules.lossy);
                document(whole, &place, rules.field, &mut held, each)?
            }
        };
        if let Err(flaw) = outcome {
            each(Err(Bad::New { place, flaw }))?;
        }
        io::copy(&mut rest, &mut io::sink())?; // the unread rest of the line
        at += rest.read;
    }
    Ok(())
}

/// Buffers for a line. They are reused for every line.
#[derive(Default)]
struct Held {
    name: Vec<u8>,
    /// Names of other fields, for messages.
    others: Vec<u8>,
    text: Vec<u8>,
}

/// The value of the field, as far as the line was read.
#[derive(Clone, Copy, PartialEq)]
enum Field {
    /// The line has only white space.
    Blank,
    Missing,
    NoString,
    /// The text is in `Held::text`. `whole` is false if it has half of a surrogate pair alone.
    Text {
        whole: bool,
    },
    /// The text was too long to hold, and was passed on as a stream.
    Given {
        whole: bool,
    },
}

/// Passes the text of a line to `each`, or returns the line's flaw.
fn document<R: BufRead>(
    line: R,
    place: &Place,
    name: &str,
    held: &mut Held,
    each: &mut Each,
) -> Result<Result<(), Flaw>, Stop> {
    let mut field = Field::Blank;
    let outcome = object(&mut Json::new(line), place, name, held, &mut field, each);
    let flaw = match (outcome, field) {
        (Err(Fault::Stop(stop @ Stop::End(_))), _) => return Err(stop),
        (Err(fault), _) => {
            if let Field::Given { .. } = field {
                each(Err(Bad::Last))?;
            }
            match fault {
                Fault::Line(flaw) => flaw,
                Fault::Stop(stop) => return Err(stop),
            }
        }
        (Ok(()), Field::Blank | Field::Given { whole: true }) => return Ok(Ok(())),
        (Ok(()), Field::Text { whole: true }) => {
            let text = String::from_utf8_lossy(&held.text);
            if !text.is_empty() {
                let head = &held.text[..held.text.len().min(HEAD_BYTES)];
                let body = Body::Text(&text);
                each(Ok(Document { place: place.clone(), head, begins: true, ends: true, body }))?;
            }
            return Ok(Ok(()));
        }
        (Ok(()), Field::Missing) => Flaw::no_field(match String::from_utf8_lossy(&held.others) {
            none if none.is_empty() => format!("no field {name:?}: the object is empty"),
            others => format!("no field {name:?}, only {others}"),
        }),
        (Ok(()), Field::NoString) => Flaw::new(format!("field {name:?} is not a string")),
        (Ok(()), Field::Text { whole: false }) => lone(name),
        (Ok(()), Field::Given { whole: false }) => {
            each(Err(Bad::Last))?;
            lone(name)
        }
    };
    Ok(Err(flaw))
}

fn lone(name: &str) -> Flaw {
    Flaw::new(format!("field {name:?} has half of a surrogate pair (\\uD800 to \\uDFFF), which is no character"))
}

/// Reads a line that is an object.
fn object<R: BufRead>(
    json: &mut Json<R>,
    place: &Place,
    field: &str,
    held: &mut Held,
    found: &mut Field,
    each: &mut Each,
) -> Result<(), Fault> {
    if json.token()?.is_none() {
        return Ok(());
    }
    *found = Field::Missing;
    held.others.clear();
    if !json.takes(b'{')? {
        return Err(json.wrong("not an object"));
    }
    let mut ended = json.takes(b'}')?;
    let mut others = 0;
    while !ended {
        // Long enough to tell it from the field's name.
        json.name(&mut held.name, field.len() + 64)?;
        if held.name == field.as_bytes() && !json.lone {
            if let Field::Given { .. } = std::mem::replace(found, Field::Missing) {
                each(Err(Bad::Last))?;
            }
            value(json, place, held, found, each)?;
        } else {
            if others < 8 {
                held.others.extend_from_slice(if others == 0 { b"" } else { b", " });
                held.others.extend_from_slice(&held.name);
                others += 1;
            }
            json.skip()?;
        }
        ended = json.takes(b'}')?;
        if !ended && !json.takes(b',')? {
            return Err(json.wrong("no comma or end after a value"));
        }
    }
    match json.token()? {
        None => Ok(()),
        Some(_) => Err(json.wrong("something after the object")),
    }
}

/// Reads the value of the field. Holds a short text, and passes a long one on as a stream.
fn value<R: BufRead>(
    json: &mut Json<R>,
    place: &Place,
    held: &mut Held,
    found: &mut Field,
    each: &mut Each,
) -> Result<(), Fault> {
    if !json.string()? {
        json.skip()?;
        *found = Field::NoString;
        return Ok(());
    }
    let text = &mut held.text;
    text.clear();
    let mut more = true;
    while more && (text.len() as u64) < WHOLE_BYTES {
        more = json.piece(&mut |bytes| text.extend_from_slice(bytes))?;
    }
    if !more {
        *found = Field::Text { whole: !json.lone };
        return Ok(());
    }
    let head = text[..HEAD_BYTES].to_vec();
    let mut stream = Text { json, text, given: 0, more, fault: None };
    *found = Field::Given { whole: true };
    let body = Body::Stream(&mut stream);
    each(Ok(Document { place: place.clone(), head: &head, begins: true, ends: true, body }))?;
    io::copy(&mut stream, &mut io::sink())?; // the unread rest of the text
    if let Some(fault) = stream.fault {
        return Err(fault);
    }
    *found = Field::Given { whole: !json.lone };
    Ok(())
}

/// The rest of a string. It ends early if the line is not valid; then `fault` has the reason.
struct Text<'a, R> {
    json: &'a mut Json<R>,
    text: &'a mut Vec<u8>,
    given: usize,
    more: bool,
    fault: Option<Fault>,
}

impl<R: BufRead> Read for Text<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        while self.given == self.text.len() && self.more {
            self.text.clear();
            self.given = 0;
            self.more = self.json.piece(&mut |bytes| self.text.extend_from_slice(bytes)).unwrap_or_else(|fault| {
                self.fault = Some(fault);
                false
            });
        }
        let count = bytes.len().min(self.text.len() - self.given);
        bytes[..count].copy_from_slice(&self.text[self.given..self.given + count]);
        self.given += count;
        Ok(count)
    }
}

/// The rest of a line, without the line feed.
struct Rest<'a, R> {
    reader: &'a mut R,
    read: u64,
    done: bool,
}

impl<R: BufRead> Read for Rest<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.done {
            return Ok(0);
        }
        let buffer = self.reader.fill_buf()?;
        let count = buffer.len().min(bytes.len());
        let end = buffer[..count].iter().position(|byte| *byte == b'\n');
        let count = end.unwrap_or(count);
        bytes[..count].copy_from_slice(&buffer[..count]);
        self.done = end.is_some() || count == 0;
        let taken = count + usize::from(end.is_some());
        self.reader.consume(taken);
        self.read += taken as u64;
        Ok(count)
    }
}
