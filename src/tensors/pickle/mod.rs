//! A pickle reader that finds tensors. No code is run: a function call becomes a value with the function's name and its
//! arguments.
//!
//! Values are in one list and refer to each other by index. So shared values are not copied, nested values are dropped in one pass,
//! and there is no recursion.
//!
//! Source: PEP 307, PEP 3154, PEP 574, CPython's `pickletools`.

mod machine;

use std::io::BufRead;

/// Every instruction has at least one byte and adds at most one value (a function's name three), one entry of the stack and one of
/// the memo, so the length of a pickle bounds all of them. These limits bound that length and each of the three. A tensor has about
/// 200 bytes and 10 values, so hundreds of thousands of tensors are possible. No file needs more than about 1 GiB of memory.
pub(super) const MAX_BYTES: u64 = 64 << 20;
const MAX_VALUES: usize = 8 << 20;

/// Longest string that is stored. Names of tensors and functions are shorter; longer strings are opaque.
const MAX_TEXT: u64 = 1024;

/// The index of a value.
pub(super) type Id = u32;

#[derive(Debug, PartialEq)]
pub(super) enum Value {
    /// A value that tensors do not need: a float, bytes, a set.
    Opaque,
    None,
    Int(i64),
    Text(Box<str>),
    /// A function or class, by the indices of two texts.
    Global {
        module: Id,
        name: Id,
    },
    /// A tuple or a list.
    Sequence(Vec<Id>),
    /// The items of a dict in the order of insertion. The last value of a key is valid.
    Dict(Vec<(Id, Id)>),
    /// A function call, or the creation of an object.
    Call {
        function: Id,
        args: Id,
    },
    /// A persistent id: a reference to data outside the pickle.
    Persistent(Id),
}

const OPAQUE: Id = 0;
const NONE: Id = 1;

pub(super) type Sound<T> = std::result::Result<T, String>;

/// A pickle that was read completely.
pub(super) struct Pickle {
    values: Vec<Value>,
    pub(super) root: Id,
}

impl Pickle {
    /// Reads one pickle of at most `bytes` bytes, and nothing after it.
    pub(super) fn read(from: &mut impl BufRead, bytes: u64) -> Sound<Self> {
        machine::run(from, bytes)
    }

    pub(super) fn get(&self, id: Id) -> &Value {
        self.values.get(id as usize).unwrap_or(&Value::Opaque)
    }

    pub(super) fn values(&self) -> &[Value] {
        &self.values
    }

    pub(super) fn int(&self, id: Id) -> Option<i64> {
        if let Value::Int(int) = self.get(id) { Some(*int) } else { None }
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        if let Value::Text(text) = self.get(id) { Some(text) } else { None }
    }

    /// The module and name of a function or class.
    pub(super) fn global(&self, id: Id) -> Option<(&str, &str)> {
        let Value::Global { module, name } = self.get(id) else { return None };
        Some((self.text(*module)?, self.text(*name)?))
    }

    pub(super) fn sequence(&self, id: Id) -> Option<&[Id]> {
        if let Value::Sequence(ids) = self.get(id) { Some(ids) } else { None }
    }

    pub(super) fn dict(&self, id: Id) -> Option<&[(Id, Id)]> {
        if let Value::Dict(pairs) = self.get(id) { Some(pairs) } else { None }
    }

    /// The value of a dict under a key.
    pub(super) fn item(&self, dict: Id, key: &str) -> Option<Id> {
        let mut pairs = self.dict(dict)?.iter().rev();
        pairs.find(|(name, _)| self.text(*name) == Some(key)).map(|(_, value)| *value)
    }

    /// The function of a call and its arguments.
    pub(super) fn call(&self, id: Id) -> Option<((&str, &str), &[Id])> {
        let Value::Call { function, args } = self.get(id) else { return None };
        Some((self.global(*function)?, self.sequence(*args)?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{OPAQUE, Pickle, Value};

    fn read(bytes: &[u8]) -> Result<Pickle, String> {
        Pickle::read(&mut &bytes[..], bytes.len() as u64)
    }

    fn root(bytes: &[u8]) -> Value {
        let mut pickle = read(bytes).unwrap();
        std::mem::replace(&mut pickle.values[pickle.root as usize], Value::Opaque)
    }

    #[test]
    fn numbers_and_strings_are_python_s() {
        for (bytes, int) in [
            (&b"K\xff."[..], 255),
            (b"M\xff\xff.", 65535),
            (b"J\xff\xff\xff\xff.", -1),
            (b"\x8a\x00.", 0),
            (b"\x8a\x01\xff.", -1),
            (b"\x8a\x02\xff\x00.", 255),
            (b"\x8a\x08\0\0\0\0\0\0\0\x80.", i64::MIN),
            (b"\x8b\x02\0\0\0\x00\x80.", -32768),
            (b"\x88.", 1),
        ] {
            assert_eq!(root(bytes), Value::Int(int), "{bytes:?}");
        }
        for bytes in [
            &b"X\x02\0\0\0\xc3\xa9."[..],
            b"\x8c\x02\xc3\xa9.",
            b"\x8d\x02\0\0\0\0\0\0\0\xc3\xa9.",
            b"U\x02\xc3\xa9.",
            b"T\x02\0\0\0\xc3\xa9.",
            b"\x80\x04\x95\x05\0\0\0\0\0\0\0\x8c\x02\xc3\xa9\x94.",
        ] {
            assert_eq!(root(bytes), Value::Text("é".into()), "{bytes:?}");
        }
        for bytes in [
            &b"\x8a\x09\0\0\0\0\0\0\0\0\x01."[..],
            b"G\x3f\xf0\0\0\0\0\0\0.",
            b"C\x01a.",
            b"B\x01\0\0\0a.",
            b"\x8e\x01\0\0\0\0\0\0\0a.",
            b"\x8f.",
            b"(N\x91.",
        ] {
            assert_eq!(read(bytes).unwrap().root, OPAQUE, "{bytes:?}");
        }
        assert_eq!(root(b"N."), Value::None);
    }

    #[test]
    fn containers_are_filled_and_shared() {
        // {'a': [1, 2], 'b': (1, 1)} with the 1 in the memo.
        let pickle = read(b"}(X\x01\0\0\0a](K\x01q\x00K\x02eX\x01\0\0\0bh\x00h\x00\x86u.").unwrap();
        let ids = |key| pickle.sequence(pickle.item(pickle.root, key).unwrap()).unwrap();
        assert_eq!(ids("a").iter().map(|id| pickle.int(*id)).collect::<Vec<_>>(), [Some(1), Some(2)]);
        assert_eq!(ids("b"), [ids("a")[0]; 2]);
        assert_eq!(pickle.item(pickle.root, "c"), None);
        // The call of an unknown function is a value; its state and items are skipped.
        let pickle = read(b"cargparse\nNamespace\n)\x81}X\x02\0\0\0lrK\x01sb(K\x01K\x02u.").unwrap();
        assert_eq!(pickle.call(pickle.root), Some((("argparse", "Namespace"), &[][..])));
        assert_eq!(read(b"\x8c\x01m\x8c\x01n\x93)R.").map(|p| p.call(p.root).is_some()), Ok(true));
        // An ordered dict is a dict; a key's last value is valid; attributes are not items.
        let pickle =
            read(b"ccollections\nOrderedDict\n)R(X\x01\0\0\0aK\x01X\x01\0\0\0aK\x02u}X\x01\0\0\0bK\x03sb.").unwrap();
        assert_eq!(pickle.item(pickle.root, "a").and_then(|id| pickle.int(id)), Some(2));
        assert_eq!(pickle.item(pickle.root, "b"), None);
    }

    #[test]
    fn what_is_not_sound_is_an_error() {
        for (bytes, reason) in [
            (&b""[..], "torn"),
            (b"K", "torn"),
            (b"X\xff\xff\xff\x7fa", "torn"),
            (b"X\x05\0\0\0a", "torn"),
            (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa", "torn"),
            (b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffa", "torn"),
            (b"cmodule\nname", "torn"),
            (b".", "not there"),
            (b"K\x01(.", "not there"),
            (b"K\x01(\x85.", "not there"),
            (b"t.", "not there"),
            (b"h\x05.", "never kept"),
            (b"}(K\x01u.", "without a value"),
            (b"\x80\x06.", "protocol 6"),
            (b"I1\n.", "0x49"),
        ] {
            let found = read(bytes).map(|_| ()).unwrap_err();
            assert!(found.contains(reason), "{bytes:?}: {found}");
        }
        // A list that contains itself is valid, because there is no recursion.
        assert!(read(b"]q\x00h\x00a.").is_ok());
    }

    #[test]
    fn more_values_than_any_model_has_are_refused() {
        for bytes in [&b")"[..], b"N", b"(", b"N\x940"] {
            let many: Vec<u8> = bytes.iter().copied().cycle().take((super::MAX_VALUES + 9) * bytes.len()).collect();
            let found = read(&many).map(|_| ()).unwrap_err();
            assert!(found.contains("more than 8388608 values"), "{found}");
        }
    }

    proptest! {
        /// Any instructions give a pickle or an error, and all indices in values are valid.
        #[test]
        fn any_instructions_are_read(
            choices in prop::collection::vec((0usize..40, any::<u8>()), 0..200),
            cut in 0usize..400,
        ) {
            let known = b"((((NNKKMJq\x94hhht)]}laesudbR\x81Q012\x85\x86\x87\x88\x8c\x8f\x90\x91\x93";
            let mut bytes: Vec<u8> = choices.iter().flat_map(|(at, byte)| [known[*at], *byte % 4]).collect();
            bytes.truncate(cut);
            bytes.push(b'.');
            if let Ok(pickle) = read(&bytes) {
                for value in pickle.values() {
                    let named = match value {
                        Value::Sequence(ids) => ids.clone(),
                        Value::Dict(pairs) => pairs.iter().flat_map(|(key, value)| [*key, *value]).collect(),
                        Value::Call { function: a, args: b } | Value::Global { module: a, name: b } => vec![*a, *b],
                        Value::Persistent(id) => vec![*id],
                        _ => Vec::new(),
                    };
                    prop_assert!(named.iter().all(|id| (*id as usize) < pickle.values().len()));
                }
            }
        }
    }
}
