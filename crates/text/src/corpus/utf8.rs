//! Bytes → UTF-8 text, as a stream.

use std::fmt;
use std::io::{self, BufRead, Read};

use crate::support::take_text;

/// Bytes of a line as UTF-8, in whole characters. Invalid bytes become U+FFFD if `lossy`, else an error.
pub(super) struct Utf8<R> {
    inner: R,
    lossy: bool,
    /// Bytes read that may be the beginning of a character, and their position in the line.
    raw: Vec<u8>,
    at: usize,
    text: String,
    given: usize,
    end: bool,
    bad: Option<NotUtf8>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct NotUtf8(usize);

impl fmt::Display for NotUtf8 {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "invalid UTF-8 at byte {} of the line", self.0)
    }
}

impl std::error::Error for NotUtf8 {}

impl<R: Read> Utf8<R> {
    pub(super) fn new(inner: R, lossy: bool) -> Self {
        let (raw, text) = Default::default();
        Utf8 { inner, lossy, raw, at: 0, text, given: 0, end: false, bad: None }
    }

    /// Reads the next bytes.
    fn refill(&mut self) -> io::Result<()> {
        self.end = (&mut self.inner).take(1 << 16).read_to_end(&mut self.raw)? == 0;
        self.text.clear();
        self.given = 0;
        match take_text(&mut self.raw, &mut self.text, self.lossy, self.end) {
            Ok(taken) => self.at += taken,
            Err(valid) => self.bad = Some(NotUtf8(self.at + valid)),
        }
        Ok(())
    }
}

impl<R: Read> Read for Utf8<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(bytes)?;
        self.consume(count);
        Ok(count)
    }
}

impl<R: Read> BufRead for Utf8<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.given == self.text.len() {
            if let Some(bad) = self.bad {
                return Err(io::Error::new(io::ErrorKind::InvalidData, bad));
            }
            if self.end {
                break;
            }
            self.refill()?;
        }
        Ok(&self.text.as_bytes()[self.given..])
    }

    fn consume(&mut self, count: usize) {
        self.given = (self.given + count).min(self.text.len());
    }
}
