//! Bytes that come in parts → text in whole characters.

/// Moves what is certain from `bytes` to `text`: valid text and, if `lossy`, U+FFFD for what can no longer become a character, as
/// `String::from_utf8_lossy` gives it. The beginning of a character stays, unless this is the `end`.
///
/// Gives how many bytes it took. Not `lossy`, bytes that are no text are an error: they stay, and how many were taken before them.
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
