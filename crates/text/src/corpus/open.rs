//! Opens a file for reading, with decompression and a count of its bytes.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::{CorpusFile, Packing};

/// The largest accepted zstd window (`zstd --long=27`). The window is held in memory.
const WINDOW_BYTES: u64 = 128 << 20;
const BUFFER_BYTES: usize = 1 << 17;

/// Opens a file. `start` is the first byte to read, 0 for compressed files.
pub(super) fn open<'a>(file: &CorpusFile, start: u64, read: &'a AtomicU64) -> io::Result<Box<dyn BufRead + 'a>> {
    if file.path == "-" {
        return Ok(Box::new(Counted { inner: BufReader::with_capacity(BUFFER_BYTES, io::stdin().lock()), read }));
    }
    let mut inner = File::open(&file.path)?;
    if start > 0 {
        inner.seek(SeekFrom::Start(start))?;
    }
    let plain = Counted { inner: BufReader::with_capacity(BUFFER_BYTES, inner), read };
    Ok(match file.packing {
        Packing::None => Box::new(plain),
        Packing::Gzip => Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(plain))),
        Packing::Zstd => Box::new(BufReader::with_capacity(BUFFER_BYTES, Zstd::new(plain))),
    })
}

/// Counts the bytes that are consumed, not those that are buffered.
pub(crate) struct Counted<'a, R> {
    pub(crate) inner: R,
    pub(crate) read: &'a AtomicU64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(bytes)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Counted<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        self.inner.consume(count);
    }
}

/// Reads all frames of a zstd file one after another and verifies their checksums. (ruzstd reads a single frame.)
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R> Zstd<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(WINDOW_BYTES);
        Zstd { source, decoder, in_frame: false }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("zstd: {what}"));
        loop {
            if self.in_frame && self.decoder.can_collect() > 0 {
                return self.decoder.read(bytes);
            }
            if self.in_frame && !self.decoder.is_finished() {
                let blocks = self.decoder.decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1));
                blocks.map_err(|e| bad(format!("broken or truncated: {e}")))?;
                continue;
            }
            if self.in_frame {
                self.in_frame = false;
                let (said, found) = (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum());
                if said.is_some() && said != found {
                    return Err(bad("the checksum of a frame is wrong".to_string()));
                }
            }
            if self.source.fill_buf()?.is_empty() {
                return Ok(0);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => self.in_frame = true,
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    io::copy(&mut (&mut self.source).take(u64::from(length)), &mut io::sink())?;
                }
                Err(error) => return Err(bad(format!("broken or truncated: {error}"))),
            }
        }
    }
}
