//! Special tokens in text: which of them become tokens, and where they are.

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
    /// Tokens of [`Tokenizer::add_tokens`](crate::Tokenizer::add_tokens) become tokens. The tokenizer's own special tokens stay text
    /// (the default).
    #[default]
    Added,
    /// All special tokens stay text, added ones too. Untrusted text then never becomes a control token.
    Text,
    /// Every special token is an error that names the token and its byte, for added ones too.
    Forbid,
    /// All special tokens become tokens.
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
    /// Finds all special tokens in text, and only the added ones. `None` if there are none.
    all: Option<Arc<Finder>>,
    added: Option<Arc<Finder>>,
}

impl SpecialTokens {
    /// `all` and `added`: text and id of all special tokens, and of the added ones.
    pub(super) fn new(rule: Specials, all: &[(String, u32)], added: Vec<(String, u32)>) -> Self {
        SpecialTokens { rule, all: Finder::new(all.to_vec()), added: Finder::new(added) }
    }

    /// Text and id of the added tokens.
    pub(super) fn added(&self) -> &[(String, u32)] {
        self.added.as_ref().map_or(&[], |added| &added.tokens)
    }

    /// The special tokens in the text that become tokens, in order: their byte ranges and ids.
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

    /// Bytes of the longest special token that the rule looks for. Text this close to the end of a chunk is not settled.
    pub(super) fn longest(&self) -> usize {
        let finder = if self.rule == Specials::Forbid { self.all.as_deref() } else { self.finder() };
        finder.map_or(0, |finder| finder.longest)
    }

    /// Name of the rule, as stored in files.
    pub(super) fn name(&self) -> &'static str {
        match self.rule {
            Specials::Added if self.added.is_some() => "added",
            Specials::Added | Specials::Text => "text",
            Specials::Forbid => "forbid",
            Specials::Allow => "allow",
        }
    }

    /// Finds the special tokens that become tokens under the rule.
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
    /// Text and id of each, indexed by its pattern number.
    tokens: Vec<(String, u32)>,
    /// Bytes of the longest token.
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
