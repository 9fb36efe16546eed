//! A stack machine for the pickle instructions of protocols 2 to 5.

use std::collections::HashMap;
use std::io::{BufRead, Read};

use super::{Id, MAX_BYTES, MAX_TEXT, MAX_VALUES, NONE, OPAQUE, Pickle, Sound, Value};

pub(super) fn run(from: &mut impl BufRead, bytes: u64) -> Sound<Pickle> {
    let machine = Machine {
        from,
        left: bytes.min(MAX_BYTES),
        cut: bytes > MAX_BYTES,
        values: vec![Value::Opaque, Value::None],
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    machine.run()
}

struct Machine<'r, R> {
    from: &'r mut R,
    /// Bytes that may still be read, and whether the limit cut the pickle.
    left: u64,
    cut: bool,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Height of the stack at each MARK.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<R: BufRead> Machine<'_, R> {
    fn run(mut self) -> Sound<Pickle> {
        loop {
            let instruction = self.number(1)? as u8;
            match instruction {
                // PROTO, FRAME
                0x80 => match self.number(1)? {
                    0..=5 => (),
                    protocol => return Err(format!("its pickle has the protocol {protocol}")),
                },
                0x95 => self.skip(8)?,
                // STOP
                b'.' => {
                    let root = self.pop()?;
                    return Ok(Pickle { values: self.values, root });
                }
                // MARK, POP, POP_MARK, DUP
                b'(' => self.mark()?,
                b'0' => match self.marks.last() == Some(&self.stack.len()) {
                    true => _ = self.marks.pop(),
                    false => _ = self.pop()?,
                },
                b'1' => _ = self.since_mark()?,
                b'2' => self.top().and_then(|top| self.push_id(top))?,
                // BINPUT, LONG_BINPUT, MEMOIZE; BINGET, LONG_BINGET
                b'q' => self.number(1).and_then(|index| self.remember(index))?,
                b'r' => self.number(4).and_then(|index| self.remember(index))?,
                0x94 => self.remember(self.memo.len() as u64)?,
                b'h' => self.number(1).and_then(|index| self.recall(index))?,
                b'j' => self.number(4).and_then(|index| self.recall(index))?,
                // NONE, NEWTRUE, NEWFALSE, BINFLOAT
                b'N' => self.push_id(NONE)?,
                0x88 => self.push(Value::Int(1))?,
                0x89 => self.push(Value::Int(0))?,
                b'G' => self.opaque(8)?,
                // BININT, BININT1, BININT2, LONG1, LONG4
                b'J' => self.long(4)?,
                b'K' => self.number(1).and_then(|int| self.push(Value::Int(int as i64)))?,
                b'M' => self.number(2).and_then(|int| self.push(Value::Int(int as i64)))?,
                0x8a => self.number(1).and_then(|length| self.long(length))?,
                0x8b => self.number(4).and_then(|length| self.long(length))?,
                // SHORT_BINUNICODE and SHORT_BINSTRING, BINUNICODE and BINSTRING, BINUNICODE8
                0x8c | b'U' => self.number(1).and_then(|length| self.text(length))?,
                b'X' | b'T' => self.number(4).and_then(|length| self.text(length))?,
                0x8d => self.number(8).and_then(|length| self.text(length))?,
                // SHORT_BINBYTES, BINBYTES, BINBYTES8 and BYTEARRAY8
                b'C' => self.number(1).and_then(|length| self.opaque(length))?,
                b'B' => self.number(4).and_then(|length| self.opaque(length))?,
                0x8e | 0x96 => self.number(8).and_then(|length| self.opaque(length))?,
                // EMPTY_TUPLE and EMPTY_LIST, TUPLE and LIST, TUPLE1 to TUPLE3
                b')' | b']' => self.push(Value::Sequence(Vec::new()))?,
                b't' | b'l' => self.since_mark().and_then(|ids| self.push(Value::Sequence(ids)))?,
                0x85..=0x87 => {
                    let mut ids = vec![OPAQUE; usize::from(instruction - 0x84)];
                    for id in ids.iter_mut().rev() {
                        *id = self.pop()?;
                    }
                    self.push(Value::Sequence(ids))?;
                }
                // APPEND, APPENDS
                b'a' => self.pop().and_then(|id| self.append(vec![id]))?,
                b'e' => self.since_mark().and_then(|ids| self.append(ids))?,
                // EMPTY_DICT, DICT, SETITEM, SETITEMS
                b'}' => self.push(Value::Dict(Vec::new()))?,
                b'd' => {
                    let ids = self.since_mark()?;
                    self.push(Value::Dict(Vec::new()))?;
                    self.set(ids)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set(vec![key, value])?;
                }
                b'u' => self.since_mark().and_then(|ids| self.set(ids))?,
                // EMPTY_SET, FROZENSET, ADDITEMS
                0x8f => self.push_id(OPAQUE)?,
                0x91 => self.since_mark().and_then(|_| self.push_id(OPAQUE))?,
                0x90 => _ = self.since_mark()?,
                // GLOBAL, STACK_GLOBAL
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push(Value::Global { module, name })?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    self.push(Value::Global { module, name })?;
                }
                // REDUCE and NEWOBJ, NEWOBJ_EX, BUILD, BINPERSID
                b'R' | 0x81 => self.call()?,
                0x92 => self.pop().and_then(|_| self.call())?,
                // The state of an object: its attributes, which are not items.
                b'b' => self.pop().and_then(|_| self.top()).map(|_| ())?,
                b'Q' => self.pop().and_then(|id| self.push(Value::Persistent(id)))?,
                other => {
                    return Err(format!(
                        "its pickle has the instruction {other:#04x}, which is not of protocols 2 to 5: save it again \
                         without a pickle_protocol"
                    ));
                }
            }
        }
    }

    fn call(&mut self) -> Sound<()> {
        let (args, function) = (self.pop()?, self.pop()?);
        let is =
            |id: Id, text: &str| matches!(self.values.get(id as usize), Some(Value::Text(found)) if **found == *text);
        match self.values.get(function as usize) {
            // It starts empty. Its items are set afterwards, as for a dict.
            Some(Value::Global { module, name })
                if is(*module, "collections") && (is(*name, "OrderedDict") || is(*name, "defaultdict")) =>
            {
                self.push(Value::Dict(Vec::new()))
            }
            _ => self.push(Value::Call { function, args }),
        }
    }

    /// Appends items to the list on top of the stack. Other objects may have an append, too, and stay opaque.
    fn append(&mut self, mut ids: Vec<Id>) -> Sound<()> {
        let top = self.top()?;
        if let Some(Value::Sequence(list)) = self.values.get_mut(top as usize) {
            list.append(&mut ids);
        }
        Ok(())
    }

    /// Sets keys and values of the dict on top of the stack.
    fn set(&mut self, ids: Vec<Id>) -> Sound<()> {
        let top = self.top()?;
        let pairs = ids.as_chunks::<2>();
        if !pairs.1.is_empty() {
            return Err("its pickle has a key without a value".to_string());
        }
        if let Some(Value::Dict(dict)) = self.values.get_mut(top as usize) {
            dict.extend(pairs.0.iter().map(|[key, value]| (*key, *value)));
        }
        Ok(())
    }

    fn bounded(&self, count: usize) -> Sound<()> {
        match count < MAX_VALUES {
            true => Ok(()),
            false => Err(format!("its pickle has more than {MAX_VALUES} values")),
        }
    }

    fn keep(&mut self, value: Value) -> Sound<Id> {
        self.bounded(self.values.len())?;
        self.values.push(value);
        Ok(self.values.len() as Id - 1)
    }

    fn push(&mut self, value: Value) -> Sound<()> {
        let id = self.keep(value)?;
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Sound<()> {
        self.bounded(self.stack.len())?;
        self.stack.push(id);
        Ok(())
    }

    fn top(&self) -> Sound<Id> {
        match self.stack.last() {
            Some(id) if self.marks.last().is_none_or(|mark| *mark < self.stack.len()) => Ok(*id),
            _ => Err("its pickle takes a value that is not there".to_string()),
        }
    }

    fn pop(&mut self) -> Sound<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn mark(&mut self) -> Sound<()> {
        self.bounded(self.marks.len())?;
        self.marks.push(self.stack.len());
        Ok(())
    }

    fn since_mark(&mut self) -> Sound<Vec<Id>> {
        let mark = self.marks.pop().ok_or("its pickle takes a value that is not there")?;
        Ok(self.stack.split_off(mark))
    }

    fn remember(&mut self, index: u64) -> Sound<()> {
        self.bounded(self.memo.len())?;
        self.memo.insert(index, self.top()?);
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Sound<()> {
        match self.memo.get(&index) {
            Some(id) => self.push_id(*id),
            None => Err(format!("its pickle asks for value {index}, which it never kept")),
        }
    }

    fn ends(&self) -> String {
        match self.cut {
            true => format!("its pickle is longer than {} MiB", MAX_BYTES >> 20),
            false => "it is torn: it ends within a pickle".to_string(),
        }
    }

    fn count(&mut self, bytes: u64) -> Sound<()> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| self.ends())?;
        Ok(())
    }

    /// An unsigned little-endian integer of this many bytes.
    fn number(&mut self, bytes: usize) -> Sound<u64> {
        self.count(bytes as u64)?;
        let mut number = [0; 8];
        self.from.read_exact(&mut number[..bytes]).map_err(|_| self.ends())?;
        Ok(u64::from_le_bytes(number))
    }

    fn skip(&mut self, bytes: u64) -> Sound<()> {
        self.count(bytes)?;
        match std::io::copy(&mut self.from.by_ref().take(bytes), &mut std::io::sink()) {
            Ok(passed) if passed == bytes => Ok(()),
            _ => Err(self.ends()),
        }
    }

    fn opaque(&mut self, bytes: u64) -> Sound<()> {
        self.skip(bytes)?;
        self.push_id(OPAQUE)
    }

    fn text(&mut self, bytes: u64) -> Sound<()> {
        if bytes > MAX_TEXT {
            return self.opaque(bytes);
        }
        self.count(bytes)?;
        let mut text = vec![0; bytes as usize];
        self.from.read_exact(&mut text).map_err(|_| self.ends())?;
        self.push(Value::Text(String::from_utf8_lossy(&text).into()))
    }

    /// A signed little-endian integer. Longer ones than i64 are opaque: they cannot be a shape or an offset.
    fn long(&mut self, bytes: u64) -> Sound<()> {
        if bytes > 8 {
            return self.opaque(bytes);
        }
        let unused = 64 - 8 * bytes.max(1) as u32;
        let int = self.number(bytes as usize)? as i64;
        self.push(Value::Int(int << unused >> unused))
    }

    /// The module or name of a GLOBAL.
    fn line(&mut self) -> Sound<Id> {
        let mut line = Vec::new();
        let most = self.left.min(MAX_TEXT);
        self.from.by_ref().take(most).read_until(b'\n', &mut line).map_err(|_| self.ends())?;
        self.count(line.len() as u64)?;
        match line.pop() {
            Some(b'\n') => self.keep(Value::Text(String::from_utf8_lossy(&line).into())),
            _ => Err(self.ends()),
        }
    }
}
