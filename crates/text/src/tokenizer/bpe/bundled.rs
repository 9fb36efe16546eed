//! The bundled encodings. The build script makes their tables; opening them copies nothing.

use std::borrow::Cow;

use bytemuck::Pod;

use super::tables::Tables;

/// Bytes with an alignment that fits all types of the tables.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

macro_rules! open {
    ($name:literal) => {{
        static BYTES: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".tables")));
        open(&BYTES.0)
    }};
}

pub fn cl100k() -> Tables {
    open!("cl100k_base")
}

#[cfg(feature = "o200k")]
pub fn o200k() -> Tables {
    open!("o200k_base")
}

#[cfg(feature = "gpt2")]
pub fn gpt2() -> Tables {
    open!("r50k_base")
}

/// Opens tables. The build script wrote their numbers in the byte order of the target.
fn open(bytes: &'static [u8]) -> Tables {
    let mut rest = bytes;
    let header: Cow<'static, [u64]> = take(&mut rest, 11);
    let len = |number: usize| header[number] as usize;
    Tables {
        short: take(&mut rest, len(2)),
        pairs: take(&mut rest, len(3)),
        chars: take(&mut rest, len(4)),
        starts: take(&mut rest, len(5)),
        byte_ids: take(&mut rest, len(6)),
        long: take(&mut rest, len(7)),
        short_pilots: take(&mut rest, len(8)),
        pair_pilots: take(&mut rest, len(9)),
        bytes: take(&mut rest, len(10)),
        len: len(0),
        longest: len(1),
    }
}

/// The next table, of `len` entries.
fn take<T: Pod>(rest: &mut &'static [u8], len: usize) -> Cow<'static, [T]> {
    let bytes = len * size_of::<T>();
    let (table, others) = rest.split_at(bytes.next_multiple_of(16));
    *rest = others;
    Cow::Borrowed(bytemuck::cast_slice(&table[..bytes]))
}
