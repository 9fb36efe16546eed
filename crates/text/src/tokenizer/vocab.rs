//! A vocabulary of byte strings: id → bytes and bytes → id, without storing any string twice.

use std::hash::{BuildHasher, Hasher};

use hashbrown::HashTable;

/// Token bytes by id, and ids by token bytes.
#[derive(Clone)]
pub(super) struct Vocab {
    bytes: Vec<u8>,
    /// Start and end in `bytes`, by id; an empty span is an id without a token.
    spans: Vec<(u32, u32)>,
    index: HashTable<u32>,
    hasher: foldhash::fast::FixedState,
    len: usize,
}

impl Vocab {
    /// Builds from `(id, bytes)` in any order. Ids may have gaps, but not many times as many as there are tokens: a rank
    /// file from a stranger must not decide how much memory is reserved.
    pub(super) fn new<'a>(tokens: impl ExactSizeIterator<Item = (u32, &'a [u8])>) -> Result<Self, String> {
        let largest = u32::try_from(tokens.len() * 2 + 1024).unwrap_or(u32::MAX - 1);
        let mut vocab = Vocab {
            bytes: Vec::new(),
            spans: Vec::new(),
            index: HashTable::new(),
            hasher: foldhash::fast::FixedState::default(),
            len: 0,
        };
        for (id, bytes) in tokens {
            if id > largest {
                return Err(format!("rank {id} is above {largest}, the largest accepted for so few tokens"));
            }
            vocab.insert(id, bytes)?;
        }
        Ok(vocab)
    }

    fn insert(&mut self, id: u32, bytes: &[u8]) -> Result<(), String> {
        if bytes.is_empty() {
            return Err(format!("rank {id} is an empty token"));
        }
        if let Some(other) = self.id(bytes) {
            return Err(format!("the token {bytes:?} stands twice, as rank {other} and as rank {id}"));
        }
        let slot = id as usize;
        if self.spans.len() <= slot {
            self.spans.resize(slot + 1, (0, 0));
        }
        if self.spans[slot] != (0, 0) {
            return Err(format!("rank {id} stands twice"));
        }
        let start = u32::try_from(self.bytes.len()).map_err(|_| "more than 4 GiB of tokens".to_string())?;
        self.bytes.extend_from_slice(bytes);
        let end = u32::try_from(self.bytes.len()).map_err(|_| "more than 4 GiB of tokens".to_string())?;
        self.spans[slot] = (start, end);
        let Vocab { bytes: all, spans, index, hasher, .. } = self;
        index.insert_unique(hash(hasher, bytes), id, |&id| hash(hasher, span(all, spans, id)));
        self.len += 1;
        Ok(())
    }

    /// Number of tokens.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Largest id + 1.
    pub(super) fn rows(&self) -> usize {
        self.spans.len()
    }

    /// The token's bytes.
    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        let &(start, end) = self.spans.get(id as usize)?;
        (start != end).then(|| &self.bytes[start as usize..end as usize])
    }

    /// The id of exactly these bytes.
    pub(super) fn id(&self, bytes: &[u8]) -> Option<u32> {
        let found = self.index.find(hash(&self.hasher, bytes), |&id| span(&self.bytes, &self.spans, id) == bytes);
        found.copied()
    }
}

fn span<'a>(bytes: &'a [u8], spans: &[(u32, u32)], id: u32) -> &'a [u8] {
    let (start, end) = spans[id as usize];
    &bytes[start as usize..end as usize]
}

fn hash(state: &foldhash::fast::FixedState, bytes: &[u8]) -> u64 {
    let mut hasher = state.build_hasher();
    hasher.write(bytes);
    hasher.finish()
}
