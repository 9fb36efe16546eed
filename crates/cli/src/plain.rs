//! Escapes text of other origin (names of files and tensors, words of a file) before it is printed.

use std::fmt::Display;
use std::io::Write;

/// The text with control characters escaped, also those that change the direction of writing.
pub fn plain(text: impl Display) -> String {
    let mut shown = String::new();
    for c in text.to_string().chars() {
        let turns =
            matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        match c.is_control() || turns {
            true => shown.extend(c.escape_debug()),
            false => shown.push(c),
        }
    }
    shown
}

/// Writes lines to standard error.
pub fn say(text: impl Display) {
    let lines: Vec<String> = text.to_string().split('\n').map(plain).collect();
    // If standard error is closed, there is no place for a message.
    let _ = writeln!(std::io::stderr(), "{}", lines.join("\n"));
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn nothing_reaches_the_terminal_but_what_can_be_seen() {
        assert_eq!(
            plain("a\x1b[31m\r\n\t\u{202e}\u{9b}b é e\u{301} 沈"),
            "a\\u{1b}[31m\\r\\n\\t\\u{202e}\\u{9b}b é e\u{301} 沈"
        );
    }
}
