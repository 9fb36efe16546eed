//! llm.c's header: 256 int32. The first three are a magic number, a version and the number of ids.

use std::io::Read;

use crate::shard::IdType;

const BYTES: usize = 256 * 4;
const U16: (i32, i32) = (20_240_520, 1);
const U32: (i32, i32) = (20_240_801, 7);

/// Reads the header of a file of `bytes` bytes. Returns the id type, and the number of bytes after the header.
pub(super) fn read(reader: &mut impl Read, bytes: u64) -> Result<(IdType, u64), String> {
    let mut header = [0; BYTES];
    reader.read_exact(&mut header).map_err(|_| "too short for llm.c's header of 1024 bytes".to_string())?;
    let number = |i: usize| i32::from_le_bytes(*header[i * 4..].first_chunk().expect("256 numbers"));
    let id_type = match (number(0), number(1)) {
        U16 => IdType::U16,
        U32 => IdType::U32,
        (magic, version) => {
            return Err(format!(
                "not an llm.c file: magic {magic}, version {version} (20240520 v1 and 20240801 v7 are known)"
            ));
        }
    };
    let (bytes, count) = (bytes - BYTES as u64, number(2));
    if u64::try_from(count).ok().and_then(|count| count.checked_mul(id_type.bytes() as u64)) != Some(bytes) {
        return Err(format!("the header promises {count} ids, but {bytes} bytes follow: the file is torn"));
    }
    Ok((id_type, bytes))
}

/// The header for `count` ids.
pub(super) fn of(id_type: IdType, count: u64) -> [u8; BYTES] {
    let (magic, version) = if id_type == IdType::U16 { U16 } else { U32 };
    let mut header = [0; BYTES];
    for (i, number) in [magic, version, count as i32].into_iter().enumerate() {
        header[i * 4..][..4].copy_from_slice(&number.to_le_bytes());
    }
    header
}
