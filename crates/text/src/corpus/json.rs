//! A pull parser for JSON. It reads bytes as a stream, so a line may have any length, and it does not recurse.
//!
//! It accepts what Python's `json.loads` accepts: RFC 8259 and the words `NaN`, `Infinity` and `-Infinity`. A surrogate may stand
//! alone, and numbers have any size. Unlike in Python, an integer may have more than 4300 digits.
//!
//! Source: CPython, `Modules/_json.c`.

use std::io::{self, BufRead};

use super::utf8::NotUtf8;
use super::{End, Flaw, Stop};

/// Deepest nesting of objects and arrays, the line's own object included. Python's limit is its stack.
const DEEPEST: usize = 1000;

/// Why the text of a line cannot be read.
pub(super) enum Fault {
    /// The line is not valid.
    Line(Flaw),
    /// Nothing more can be read, or the receiver stopped the reading.
    Stop(Stop),
}

impl From<End> for Fault {
    fn from(end: End) -> Self {
        Fault::Stop(end.into())
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.get_ref().is_some_and(|inner| inner.is::<NotUtf8>()) {
            true => Fault::Line(Flaw::not_utf8(error.to_string())),
            false => Fault::Stop(error.into()),
        }
    }
}

/// Reads JSON from bytes that are UTF-8.
pub(super) struct Json<R> {
    source: R,
    /// Number of bytes read.
    at: u64,
    /// Whether the latest string has half of a surrogate pair alone, which UTF-8 cannot encode.
    pub(super) lone: bool,
    /// The closing byte of each open object or array of the value that is being skipped.
    open: Vec<u8>,
}

impl<R: BufRead> Json<R> {
    pub(super) fn new(source: R) -> Self {
        Json { source, at: 0, lone: false, open: Vec::new() }
    }

    /// The next byte that is not white space, without consuming it.
    pub(super) fn token(&mut self) -> Result<Option<u8>, Fault> {
        loop {
            match self.peek()? {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.take(1),
                other => return Ok(other),
            }
        }
    }

    /// Consumes the next token if it is `byte`, and returns whether it was.
    pub(super) fn takes(&mut self, byte: u8) -> Result<bool, Fault> {
        let there = self.token()? == Some(byte);
        self.take(usize::from(there));
        Ok(there)
    }

    /// Consumes the opening quote of a string, and returns whether there was one.
    pub(super) fn string(&mut self) -> Result<bool, Fault> {
        self.lone = false;
        self.takes(b'"')
    }

    /// Passes the next part of the open string to `sink`. At the end of the string it consumes the quote and returns false.
    pub(super) fn piece(&mut self, sink: &mut impl FnMut(&[u8])) -> Result<bool, Fault> {
        let bytes = self.source.fill_buf()?;
        let plain = plain(bytes);
        sink(&bytes[..plain]);
        match (bytes.get(plain), bytes.get(plain + 1).and_then(|byte| simple(*byte))) {
            (Some(b'"'), _) => {
                self.take(plain + 1);
                return Ok(false);
            }
            (Some(b'\\'), Some(byte)) => {
                sink(&[byte]);
                self.take(plain + 2);
            }
            (Some(b'\\'), None) => {
                self.take(plain);
                self.escape(sink)?;
            }
            (Some(_), _) => {
                self.take(plain);
                return Err(self.wrong("a control character in a string"));
            }
            (None, _) if plain == 0 => return Err(self.wrong("a string has no end")),
            (None, _) => self.take(plain),
        }
        Ok(true)
    }

    /// Consumes a name and the colon after it. `name` gets at most the first `most` bytes of the name.
    pub(super) fn name(&mut self, name: &mut Vec<u8>, most: usize) -> Result<(), Fault> {
        name.clear();
        if !self.string()? {
            return Err(self.wrong("a name is missing"));
        }
        while self.piece(&mut |bytes| name.extend_from_slice(&bytes[..bytes.len().min(most - name.len())]))? {}
        match self.takes(b':')? {
            true => Ok(()),
            false => Err(self.wrong("no colon after a name")),
        }
    }

    /// Consumes a value of any kind.
    pub(super) fn skip(&mut self) -> Result<(), Fault> {
        self.open.clear();
        loop {
            if self.begins_value()? {
                continue;
            }
            // After a value, the surrounding object or array continues or ends.
            loop {
                let Some(&close) = self.open.last() else { return Ok(()) };
                if self.takes(b',')? {
                    if close == b'}' {
                        self.name(&mut Vec::new(), 0)?;
                    }
                    break;
                }
                if !self.takes(close)? {
                    return Err(self.wrong("no comma or end after a value"));
                }
                self.open.pop();
            }
        }
    }

    /// Consumes a scalar, a string or an empty container and returns false. Of another object or array it consumes the beginning, up
    /// to its first value, and returns true.
    fn begins_value(&mut self) -> Result<bool, Fault> {
        let close = match self.token()? {
            Some(b'{') => b'}',
            Some(b'[') => b']',
            Some(b'"') => {
                self.string()?;
                while self.piece(&mut |_| ())? {}
                return Ok(false);
            }
            Some(b'-' | b'0'..=b'9') => return self.number().map(|()| false),
            first => {
                let words: [&[u8]; 5] = [b"true", b"false", b"null", b"NaN", b"Infinity"];
                return match words.iter().find(|word| first == Some(word[0])) {
                    Some(word) => self.word(word).map(|()| false),
                    None => Err(self.wrong("a value is missing")),
                };
            }
        };
        // Two more: this one, and the line's own object.
        if self.open.len() + 2 > DEEPEST {
            return Err(self.wrong("more than 1000 nested objects or arrays"));
        }
        self.take(1);
        if self.takes(close)? {
            return Ok(false);
        }
        self.open.push(close);
        if close == b'}' {
            self.name(&mut Vec::new(), 0)?;
        }
        Ok(true)
    }

    fn number(&mut self) -> Result<(), Fault> {
        if self.peek()? == Some(b'-') {
            self.take(1);
        }
        match self.peek()? {
            Some(b'I') => return self.word(b"Infinity"),
            Some(b'0') => self.take(1),
            _ => self.digits()?,
        }
        if self.peek()? == Some(b'.') {
            self.take(1);
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek()? {
            self.take(1);
            if let Some(b'+' | b'-') = self.peek()? {
                self.take(1);
            }
            self.digits()?;
        }
        Ok(())
    }

    /// Consumes one or more digits.
    fn digits(&mut self) -> Result<(), Fault> {
        let start = self.at;
        loop {
            let count = self.source.fill_buf()?.iter().take_while(|byte| byte.is_ascii_digit()).count();
            self.take(count);
            if count == 0 {
                break;
            }
        }
        if self.at == start { Err(self.wrong("a digit is missing")) } else { Ok(()) }
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Fault> {
        for byte in word {
            if self.peek()? != Some(*byte) {
                return Err(self.wrong("a value is missing"));
            }
            self.take(1);
        }
        Ok(())
    }

    /// Consumes an escape (two, if they are a surrogate pair) and passes the character to `sink`.
    fn escape(&mut self, sink: &mut impl FnMut(&[u8])) -> Result<(), Fault> {
        let mut unit = self.unit()?;
        while let 0xD800..0xDC00 = unit
            && self.peek()? == Some(b'\\')
        {
            let next = self.unit()?;
            if let 0xDC00..0xE000 = next {
                unit = 0x10000 + ((unit - 0xD800) << 10) + (next - 0xDC00);
            } else {
                self.put(unit, sink);
                unit = next;
            }
        }
        self.put(unit, sink);
        Ok(())
    }

    fn put(&mut self, unit: u32, sink: &mut impl FnMut(&[u8])) {
        self.lone |= (0xD800..0xE000).contains(&unit);
        sink(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER).encode_utf8(&mut [0; 4]).as_bytes());
    }

    /// Consumes one escape, from its backslash on. Returns its UTF-16 code unit.
    fn unit(&mut self) -> Result<u32, Fault> {
        self.take(1);
        match self.peek()? {
            Some(b'u') => self.take(1),
            other => {
                let byte = other.and_then(simple).ok_or_else(|| self.wrong("an unknown escape"))?;
                self.take(1);
                return Ok(byte.into());
            }
        }
        let mut unit = 0;
        for _ in 0..4 {
            let digit = self.peek()?.and_then(|byte| char::from(byte).to_digit(16));
            unit = unit * 16 + digit.ok_or_else(|| self.wrong("not four hexadecimal digits after \\u"))?;
            self.take(1);
        }
        Ok(unit)
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        Ok(self.source.fill_buf()?.first().copied())
    }

    fn take(&mut self, count: usize) {
        self.source.consume(count);
        self.at += count as u64;
    }

    pub(super) fn wrong(&self, what: &str) -> Fault {
        Fault::Line(Flaw::new(format!("broken JSON at byte {} of the line: {what}", self.at)))
    }
}

/// The byte that a backslash and `byte` stand for.
fn simple(byte: u8) -> Option<u8> {
    Some(match byte {
        b'"' | b'\\' | b'/' => byte,
        b'b' => 8,
        b'f' => 12,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        _ => return None,
    })
}

/// Number of bytes before the first quote, backslash or control character.
///
/// Source: Mycroft's test of a word for a zero byte (1987), eight bytes at a time. The first byte that it marks is exact.
fn plain(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    let (chunks, _) = bytes.as_chunks::<8>();
    for (i, chunk) in chunks.iter().enumerate() {
        let eight = u64::from_le_bytes(*chunk);
        let below = |bound: u64, x: u64| x.wrapping_sub(ONES * bound) & !x;
        let quote = below(1, eight ^ (ONES * u64::from(b'"')));
        let backslash = below(1, eight ^ (ONES * u64::from(b'\\')));
        let stops = (below(32, eight) | quote | backslash) & (ONES << 7);
        if stops != 0 {
            return i * 8 + stops.trailing_zeros() as usize / 8;
        }
    }
    let whole = chunks.len() * 8;
    let stop = bytes[whole..].iter().position(|byte| matches!(byte, b'"' | b'\\' | ..b' '));
    stop.map_or(bytes.len(), |at| whole + at)
}
