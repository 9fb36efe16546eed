//! JSON lines: one object a line, one of whose fields is the text.

use std::borrow::Cow;
use std::io::{self, BufRead, Read};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use struson::reader::{JsonReader, JsonStreamReader, ReaderError, ValueType};

use super::open::open;
use super::{At, Bad, Each, Place, Rules, Source, Stop, WHOLE_BYTES, deliver, first_line};

/// Longer lines are parsed as a stream.
const LINE_BYTES: u64 = WHOLE_BYTES;

pub(super) fn documents(source: Source, each: &mut Each) -> Result<(), Stop> {
    let Source { file, piece, rules, read } = source;
    let mut at = piece.start;
    let mut number = 0;
    let mut reader = open(file, at.saturating_sub(1), read)?;
    if at > 0 {
        at = first_line(&mut reader, piece)?; // a line belongs to the piece in which it begins
    }
    let mut line = Vec::new();
    while at < piece.end {
        line.clear();
        let taken = (&mut reader).take(LINE_BYTES).read_until(b'\n', &mut line)? as u64;
        if taken == 0 {
            break;
        }
        number += 1;
        // Lines can be counted only from the beginning of a file.
        let place = source.place(if piece.start == 0 { At::Line(number) } else { At::Byte(at) });
        at += taken;
        if taken == LINE_BYTES && !line.ends_with(b"\n") {
            let mut rest = Rest { reader: &mut reader, read: 0, done: false };
            let whole = line.as_slice().chain(&mut rest);
            let outcome = match rules.lossy {
                true => long_line(Lossy::new(whole), &place, rules, each),
                false => long_line(whole, &place, rules, each),
            };
            match outcome {
                Err(Stop::File(reason)) => each(Err(Bad { place, reason, retracts: false }))?,
                Ok(Some(reason)) => each(Err(Bad { place, reason, retracts: true }))?,
                Ok(None) => (),
                Err(stop) => return Err(stop),
            }
            io::copy(&mut rest, &mut io::sink())?;
            at += rest.read;
            continue;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let text = match std::str::from_utf8(&line) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) if rules.lossy => String::from_utf8_lossy(&line),
            Err(error) => {
                let reason = format!("invalid UTF-8 at byte {} of the line", error.valid_up_to());
                each(Err(Bad { place, reason, retracts: false }))?;
                continue;
            }
        };
        match field(&text, rules.field) {
            Ok(text) => deliver(&mut text.as_bytes(), place, None, rules, each)?,
            Err(reason) => each(Err(Bad { place, reason, retracts: false }))?,
        }
    }
    Ok(())
}

/// The text in one line.
fn field<'a>(line: &'a str, field: &str) -> Result<Cow<'a, str>, String> {
    let mut json = serde_json::Deserializer::from_str(line);
    let text = Field(field).deserialize(&mut json).map_err(|e| broken(&e))?;
    json.end().map_err(|e| broken(&e))?;
    text
}

fn broken(error: &serde_json::Error) -> String {
    // serde_json counts lines of what it was given, which is one line.
    format!("broken JSON at column {}: {}", error.column(), without_place(&error.to_string()))
}

/// Takes one field out of an object without building the rest.
struct Field<'f>(&'f str);

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> DeserializeSeed<'de> for Field<'_> {
    type Value = Result<Cow<'de, str>, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Field<'_> {
    type Value = Result<Cow<'de, str>, String>;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut found = None;
        let mut others = Vec::new();
        while let Some(Text(name)) = map.next_key()? {
            if name == self.0 {
                let text: Text = map
                    .next_value()
                    .map_err(|e| M::Error::custom(format!("field {:?}: {}", self.0, without_place(&e.to_string()))))?;
                found = Some(text.0);
            } else {
                map.next_value::<IgnoredAny>()?;
                if others.len() < 8 {
                    others.push(name.into_owned());
                }
            }
        }
        Ok(found.ok_or_else(|| missing(self.0, &others)))
    }
}

fn without_place(text: &str) -> &str {
    text.split(" at line ").next().unwrap_or(text)
}

fn missing(field: &str, others: &[String]) -> String {
    format!("no field {field:?}, only {}: name it with --field", others.join(", "))
}

/// A line too long to hold: its text is given as a stream. Returns what is wrong after the text, if anything is.
fn long_line(line: impl Read, place: &Place, rules: &Rules, each: &mut Each) -> Result<Option<String>, Stop> {
    let bad = |e: ReaderError| Stop::File(format!("broken JSON: {e}"));
    let mut json = JsonStreamReader::new(line);
    json.begin_object().map_err(bad)?;
    let mut others = Vec::new();
    while json.has_next().map_err(bad)? {
        let name = json.next_name().map_err(bad)?;
        if name == rules.field {
            if json.peek().map_err(bad)? != ValueType::String {
                return Err(Stop::File(format!("field {:?} is not a string", rules.field)));
            }
            {
                let mut text = json.next_string_reader().map_err(bad)?;
                deliver(&mut text, place.clone(), None, rules, each)?;
                // To the end of the string, whatever was wanted of it. What is broken in there its reader has said.
                if io::copy(&mut text, &mut io::sink()).is_err() {
                    return Ok(None);
                }
            }
            return Ok(rest_of_object(json).err().map(|error| format!("broken JSON: {error}")));
        } else {
            if others.len() < 8 {
                others.push(name.to_string());
            }
            json.skip_value().map_err(bad)?;
        }
    }
    Err(Stop::File(missing(rules.field, &others)))
}

fn rest_of_object<R: Read>(mut json: JsonStreamReader<R>) -> Result<(), ReaderError> {
    while json.has_next()? {
        json.next_name()?;
        json.skip_value()?;
    }
    json.end_object()?;
    json.consume_trailing_whitespace()
}

/// The rest of a line.
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
        let count = buffer[..count].iter().position(|byte| *byte == b'\n').map_or(count, |end| end + 1);
        bytes[..count].copy_from_slice(&buffer[..count]);
        self.done = count == 0 || bytes[count - 1] == b'\n';
        self.reader.consume(count);
        self.read += count as u64;
        Ok(count)
    }
}

/// Bytes that are not UTF-8 become U+FFFD on the way.
struct Lossy<R> {
    inner: R,
    /// Bytes read that may be the beginning of a character.
    raw: Vec<u8>,
    text: Vec<u8>,
    given: usize,
    end: bool,
}

impl<R: Read> Lossy<R> {
    fn new(inner: R) -> Self {
        Lossy { inner, raw: Vec::new(), text: Vec::new(), given: 0, end: false }
    }
}

impl<R: Read> Read for Lossy<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        while self.given == self.text.len() && !self.end {
            self.end = (&mut self.inner).take(1 << 16).read_to_end(&mut self.raw)? == 0;
            self.text.clear();
            self.given = 0;
            let mut taken = 0;
            for chunk in self.raw.utf8_chunks() {
                let unfinished = taken + chunk.valid().len() + chunk.invalid().len() == self.raw.len() && !self.end;
                self.text.extend_from_slice(chunk.valid().as_bytes());
                taken += chunk.valid().len();
                let waits = unfinished && chunk.invalid().len() < 4;
                if !chunk.invalid().is_empty() && !waits {
                    self.text.extend_from_slice("\u{FFFD}".as_bytes());
                    taken += chunk.invalid().len();
                }
            }
            self.raw.drain(..taken);
        }
        let count = bytes.len().min(self.text.len() - self.given);
        bytes[..count].copy_from_slice(&self.text[self.given..self.given + count]);
        self.given += count;
        Ok(count)
    }
}
