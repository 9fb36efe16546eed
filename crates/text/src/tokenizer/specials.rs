//! Special tokens in text: which of them count as tokens, and where they stand.

use std::ops::Range;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};

use crate::{Error, Result};

/// What to do with text that spells a special token such as `<|endoftext|>`.
///
/// # Example
/// ```
/// use tallow_text::{Specials, Tokenizer};
/// let tokenizer = Tokenizer::cl100k().with_specials(Specials::Allow);
/// assert_eq!(tokenizer.encode("<|endoftext|>")?, [100_257]);
/// let tokenizer = tokenizer.with_specials(Specials::Text);
/// assert!(tokenizer.encode("<|endoftext|>")?.len() > 1);
/// # Ok::<(), tallow_text::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Specials {
    /// Tokens that [`Tokenizer::add_tokens`](crate::Tokenizer::add_tokens) added become tokens; the tokenizer's own special tokens are
    /// text (the default).
    #[default]
    Added,
    /// It is text like any other, added tokens too: nothing that a stranger wrote becomes a control token.
    Text,
    /// It is an error that names the token and its byte, for added tokens too.
    Forbid,
    /// It becomes the special token.
    Allow,
}

impl std::str::FromStr for Specials {
    type Err = Error;

    /// `added`, `text`, `forbid` or `allow`.
    fn from_str(name: &str) -> Result<Self> {
        Error::named(
            "specials",
            name,
            &[
                ("added", Specials::Added),
                ("text", Specials::Text),
                ("forbid", Specials::Forbid),
                ("allow", Specials::Allow),
            ],
        )
    }
}

/// A tokenizer's special tokens, and the rule for text that spells one.
#[derive(Clone)]
pub(super) struct SpecialTokens {
    pub(super) rule: Specials,
    /// Finds all special tokens in text, and those that were added; none where there are none.
    all: Option<Arc<Finder>>,
    added: Option<Arc<Finder>>,
}

impl SpecialTokens {
    /// Text and id of all special tokens, and of those that were added.
    pub(super) fn new(rule: Specials, all: &[(String, u32)], added: Vec<(String, u32)>) -> Self {
        SpecialTokens { rule, all: Finder::new(all.to_vec()), added: Finder::new(added) }
    }

    /// Text and id of those that were added.
    pub(super) fn added(&self) -> &[(String, u32)] {
        self.added.as_ref().map_or(&[], |added| &added.tokens)
    }

    /// Special tokens that the text spells and that count as tokens, in order: where they stand, and their id.
    pub(super) fn find<'t>(&'t self, text: &'t str) -> impl Iterator<Item = (Range<usize>, u32)> + 't {
        self.finder().into_iter().flat_map(move |finder| {
            let found = finder.automaton.find_iter(text);
            found.map(|found| (found.range(), finder.tokens[found.pattern().as_usize()].1))
        })
    }

    /// Under [`Specials::Forbid`], the error for the first special token that the text spells.
    pub(super) fn refuse(&self, text: &str, first_byte: u64) -> Result<()> {
        let Some(finder) = self.all.as_ref().filter(|_| self.rule == Specials::Forbid) else { return Ok(()) };
        match finder.automaton.find(text) {
            None => Ok(()),
            Some(found) => Err(Error::SpecialForbidden {
                token: finder.tokens[found.pattern().as_usize()].0.clone(),
                byte: first_byte + found.start() as u64,
            }),
        }
    }

    /// How far a special token that matters can reach: nothing so near to the end of the text in sight is settled.
    pub(super) fn longest(&self) -> usize {
        let finder = if self.rule == Specials::Forbid { self.all.as_deref() } else { self.finder() };
        finder.map_or(0, |finder| finder.longest)
    }

    /// The rule as files name it.
    pub(super) fn name(&self) -> &'static str {
        match self.rule {
            Specials::Added if self.added.is_some() => "added",
            Specials::Added | Specials::Text => "text",
            Specials::Forbid => "forbid",
            Specials::Allow => "allow",
        }
    }

    /// What finds the special tokens that count as tokens in text.
    fn finder(&self) -> Option<&Finder> {
        match self.rule {
            Specials::Added => self.added.as_deref(),
            Specials::Allow => self.all.as_deref(),
            Specials::Text | Specials::Forbid => None,
        }
    }
}

/// Finds some special tokens in text.
struct Finder {
    automaton: AhoCorasick,
    /// Text and id of each, by the number of its pattern.
    tokens: Vec<(String, u32)>,
    /// Bytes of the longest.
    longest: usize,
}

impl Finder {
    fn new(tokens: Vec<(String, u32)>) -> Option<Arc<Self>> {
        let longest = tokens.iter().map(|(text, _)| text.len()).max()?;
        let texts = tokens.iter().map(|(text, _)| text);
        let mut builder = AhoCorasick::builder();
        let automaton = builder.match_kind(MatchKind::LeftmostLongest).build(texts).expect("a few short strings");
        Some(Arc::new(Finder { automaton, tokens, longest }))
    }
}
