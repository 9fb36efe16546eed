//! Bytes in chunks → text in whole characters.

/// Moves valid UTF-8 from `bytes` to `text`. If `lossy`, invalid bytes become U+FFFD, as in `String::from_utf8_lossy`. An unfinished
/// character stays in `bytes`, unless this is the `end`.
///
/// Returns the number of bytes that were consumed. Without `lossy`, invalid bytes are an error. They stay in `bytes`, and the error is
/// the number of bytes that were consumed before them.
pub(crate) fn take_text(bytes: &mut Vec<u8>, text: &mut String, lossy: bool, end: bool) -> Result<usize, usize> {
    let (mut taken, mut sound) = (0, true);
    while sound && taken < bytes.len() {
        let rest = &bytes[taken..];
        let Err(error) = std::str::from_utf8(rest).map(|valid| text.push_str(valid)) else {
            taken = bytes.len();
            break;
        };
        let valid = error.valid_up_to();
        text.push_str(std::str::from_utf8(&rest[..valid]).unwrap_or_default());
        taken += valid;
        let bad = match error.error_len() {
            Some(len) => len,
            None if end => rest.len() - valid,
            None => break,
        };
        sound = lossy;
        if lossy {
            text.push(char::REPLACEMENT_CHARACTER);
            taken += bad;
        }
    }
    bytes.drain(..taken);
    if sound { Ok(taken) } else { Err(taken) }
}
