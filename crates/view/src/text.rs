//! Untrusted text and bytes in one line, and the two languages of the pictures.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::error::{Error, Result};

/// The language of a picture's labels.
///
/// # Example
/// ```
/// use tallow_view::Lang;
/// assert_eq!(Lang::of_text("数字变矩阵"), Lang::Zh);
/// assert_eq!("en".parse::<Lang>()?, Lang::En);
/// # Ok::<(), tallow_view::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lang {
    /// English.
    #[default]
    En,
    /// 简体中文。
    Zh,
}

impl Lang {
    /// Language code, as in HTML.
    pub fn code(self) -> &'static str {
        self.of("en", "zh-CN")
    }

    /// Chinese if the text has a Chinese character, else English.
    pub fn of_text(text: &str) -> Self {
        let han = |c: char| matches!(c, '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}');
        if text.chars().any(han) { Lang::Zh } else { Lang::En }
    }

    /// Selects the text in this language.
    pub(crate) fn of<T>(self, english: T, chinese: T) -> T {
        match self {
            Lang::En => english,
            Lang::Zh => chinese,
        }
    }
}

impl std::str::FromStr for Lang {
    type Err = Error;

    /// `en` or `zh`.
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "en" => Ok(Lang::En),
            "zh" => Ok(Lang::Zh),
            _ => Err(Error::Language { name: name.to_string() }),
        }
    }
}

/// As [`one_line`], with spaces shown as `␣`.
pub fn visible(text: &str) -> String {
    text.split(' ').map(one_line).collect::<Vec<_>>().join("␣")
}

/// Escapes control and invisible characters, so that untrusted text can be shown in one line.
pub fn one_line(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        match c {
            '"' | '\'' | '\\' => shown.push(c),
            c => shown.extend(c.escape_debug()),
        }
    }
    shown
}

/// `1 token`, `2 tokens`.
pub(crate) fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Bytes as `E6 B2`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(" ")
}

/// A token's bytes as [`visible`] text, or as [`hex`] if they are not UTF-8.
pub fn token_text(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| hex(bytes), visible)
}

/// Shortens a text to `width` terminal columns, with an ellipsis at the end.
pub(crate) fn shorten(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_string();
    }
    let mut left = width.saturating_sub(1);
    let fits = |c: &char| {
        let place = c.width().unwrap_or(0);
        let fits = place <= left;
        left = left.saturating_sub(place);
        fits
    };
    text.chars().take_while(fits).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_invisible_reaches_the_terminal() {
        assert_eq!(visible(" a\n\x1b[31m\u{202e}\"é小"), "␣a\\n\\u{1b}[31m\\u{202e}\"é小");
        assert_eq!(visible("\u{301}"), "\\u{301}");
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        assert_eq!(shorten("abc", 3), "abc");
        assert_eq!(shorten("数字变矩阵", 6), "数字…");
        assert_eq!(shorten("abcdef", 4), "abc…");
    }
}
