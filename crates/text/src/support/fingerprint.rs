//! Stable fingerprints of tokenizers and datasets.

use serde_json::Value;

/// FNV-1a with 64 bits over length-prefixed parts. It is the same on every platform and in every version of tallow. It detects
/// mistakes, and not deliberate collisions.
///
/// Source: Fowler, Noll and Vo's published 64-bit constants.
pub struct Fingerprint(u64);

impl Fingerprint {
    pub fn new(kind: &str) -> Self {
        let mut fingerprint = Fingerprint(0xcbf2_9ce4_8422_2325);
        fingerprint.add(kind.as_bytes());
        fingerprint
    }

    /// Adds one part with its length.
    pub fn add(&mut self, part: &[u8]) {
        self.write(&(part.len() as u64).to_le_bytes());
        self.write(part);
    }

    /// Adds a JSON value. The order of its keys and its white space in the file do not matter.
    pub fn add_json(&mut self, value: &Value) {
        match value {
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_by_key(|(key, _)| key.as_str());
                self.add(b"{");
                for (key, value) in entries {
                    self.add(key.as_bytes());
                    self.add_json(value);
                }
                self.add(b"}");
            }
            Value::Array(items) => {
                self.add(b"[");
                items.iter().for_each(|item| self.add_json(item));
                self.add(b"]");
            }
            scalar => self.add(scalar.to_string().as_bytes()),
        }
    }

    pub fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
