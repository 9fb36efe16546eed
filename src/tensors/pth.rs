//! PyTorch's files: a pickle that describes tensors, and the storages that contain them. Since PyTorch 1.6
//! they are uncompressed entries of a zip file. Before, they were concatenated.
//!
//! Source: `torch/serialization.py`, `torch/_utils.py`, `caffe2/serialize/inline_container.cc` of PyTorch 2.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Seek};
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::DType;
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{Id, MAX_BYTES, Pickle, Sound, Value};
use super::{read_at, wrong};
use crate::{Error, Result};
use tallow_text::support::files::{self, open_regular};

/// Limits of tensors in a file, dimensions of a tensor, and the length of a storage's name (a number). They bound memory also if many
/// tensors share a long shape or name.
const MAX_TENSORS: usize = 1 << 18;
const MAX_DIMENSIONS: usize = 16;
const MAX_KEY: usize = 64;

/// The magic number of files before PyTorch 1.6, as in their first pickle.
const OLD: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Whether the first bytes of a file are those of `torch.save`.
pub(crate) fn is_pth(first: &[u8]) -> bool {
    is_zip(first) || (first.first() == Some(&0x80) && first.windows(OLD.len()).take(16).any(|bytes| bytes == OLD))
}

fn is_zip(first: &[u8]) -> bool {
    first.starts_with(b"PK\x03\x04") || first.starts_with(b"PK\x05\x06")
}

/// A PyTorch file whose pickle was read.
pub(crate) struct Pth {
    path: PathBuf,
    file: File,
    bytes: u64,
    pub(crate) tensors: BTreeMap<String, Info>,
    storages: Storages,
}

/// A tensor, as the pickle describes it: a view of a storage. Two equal ones are the same tensor under two names.
#[derive(PartialEq)]
pub(crate) struct Info {
    pub(crate) shape: Vec<usize>,
    /// candle's dtype, or PyTorch's name of a dtype that candle does not have.
    pub(crate) dtype: std::result::Result<DType, String>,
    strides: Vec<usize>,
    /// In elements.
    offset: u64,
    storage: String,
}

/// Positions of the storages in the file.
enum Storages {
    /// Entries of a zip file, in this folder.
    Zip(Box<ZipArchive<BufReader<File>>>, String),
    Old(BTreeMap<String, Range<u64>>),
}

impl Pth {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let file = open_regular(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let first = read_at(&file, 0..bytes.min(4)).map_err(io)?;
        let read = if is_zip(&first) { zipped(&file, bytes) } else { old(&file, bytes) };
        let found = read.and_then(|(pickle, storages)| Ok((tensors(&pickle)?, storages)));
        let (tensors, storages) =
            found.map_err(|reason| wrong(path, format!("this PyTorch file cannot be read: {reason}")))?;
        Ok(Pth { path: path.to_path_buf(), file, bytes, tensors, storages })
    }

    /// The file, the position of a table's first row in it, and the dtype of the rows, which are contiguous.
    pub(crate) fn rows(self, name: &str) -> Result<(File, u64, DType)> {
        let Pth { path, file, bytes, tensors, storages } = self;
        let wrong = |reason| wrong(&path, reason);
        let Some(Info { shape, dtype, strides, offset, storage }) = tensors.get(name) else {
            return Err(wrong(format!("there is no tensor {name:?}")));
        };
        let dtype = match dtype {
            Ok(dtype) => *dtype,
            Err(word) => {
                return Err(wrong(format!("{name:?} has the dtype {word}, which candle does not support")));
            }
        };
        let width = dtype.size_in_bytes() as u64;
        if !contiguous(shape, strides) {
            return Err(wrong(format!(
                "{name:?} of shape {shape:?} is a view whose rows are not contiguous (strides {strides:?}): \
                 save it again in PyTorch after `.contiguous()`"
            )));
        }
        let range = match storages {
            Storages::Old(places) => {
                places.get(storage).cloned().ok_or_else(|| format!("there is no storage {storage:?}"))
            }
            Storages::Zip(mut zip, folder) => entry(&mut zip, &format!("{folder}data/{storage}"), bytes),
        };
        let range = range.map_err(|reason| wrong(format!("the storage of {name:?} cannot be read: {reason}")))?;
        let count = shape.iter().try_fold(1u64, |count, size| count.checked_mul(*size as u64));
        let start = offset.checked_mul(width).and_then(|from| range.start.checked_add(from));
        let end = count.and_then(|count| start?.checked_add(count.checked_mul(width)?));
        match (start, end) {
            (Some(start), Some(end)) if end <= range.end => Ok((file, start, dtype)),
            _ => Err(wrong(format!(
                "{name:?} of shape {shape:?} exceeds its storage of {} bytes",
                range.end - range.start
            ))),
        }
    }
}

/// Whether a tensor is contiguous. The stride of a dimension of size 1 does not matter.
fn contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut next = 1usize;
    shape.iter().zip(strides).rev().all(|(size, stride)| {
        let fits = *size == 1 || *stride == next;
        next = next.saturating_mul(*size);
        fits
    })
}

/// Reads the pickle of a zip file.
fn zipped(file: &File, bytes: u64) -> Sound<(Pickle, Storages)> {
    let text = |e: std::io::Error| e.to_string();
    // The crate bounds the number of entries by the size of the file before it allocates memory.
    let mut zip = ZipArchive::new(BufReader::new(file.try_clone().map_err(text)?))
        .map_err(|e| format!("it is torn, or not a zip file: {e}"))?;
    // PyTorch writes one folder, with any name.
    let folders = zip.file_names().flatten().filter_map(|name| {
        let folder = name.strip_suffix("data.pkl")?;
        (folder.is_empty() || folder.find('/') == Some(folder.len() - 1)).then(|| folder.to_string())
    });
    let folders: Vec<String> = folders.take(2).collect();
    let [folder] = &folders[..] else {
        let found = if folders.is_empty() { "none" } else { "several" };
        return Err(format!("a zip file of PyTorch has one data.pkl in a folder of its own, this one has {found}"));
    };
    let order = format!("{folder}byteorder");
    if zip.index_for_name(&order).is_some() {
        let Range { start, end } = entry(&mut zip, &order, bytes)?;
        little_endian(read_at(file, start..end.min(start + 8)).map_err(text)? == b"little")?;
    }
    let range = entry(&mut zip, &format!("{folder}data.pkl"), bytes)?;
    if range.end - range.start > MAX_BYTES {
        return Err(format!("its pickle is longer than {} MiB", MAX_BYTES >> 20));
    }
    let pickle = read_at(file, range).map_err(text)?;
    Ok((Pickle::read(&mut &pickle[..], pickle.len() as u64)?, Storages::Zip(Box::new(zip), folder.clone())))
}

fn little_endian(yes: bool) -> Sound<()> {
    match yes {
        true => Ok(()),
        false => Err("its numbers are big-endian: save it again on a little-endian machine".into()),
    }
}

/// The range of an entry's bytes in the file.
fn entry(zip: &mut ZipArchive<BufReader<File>>, name: &str, bytes: u64) -> Sound<Range<u64>> {
    let index = zip.index_for_name(name).ok_or_else(|| format!("it has no entry {name:?}"))?;
    let entry = zip.by_index_raw(index).map_err(|e| format!("its entry {name:?} is not sound: {e}"))?;
    if entry.compression() != CompressionMethod::Stored || entry.encrypted() || entry.size() != entry.compressed_size()
    {
        return Err(format!(
            "its entry {name:?} is compressed, which PyTorch never does: unpack the file and zip it again without \
             compression (zip -0 -r)"
        ));
    }
    let start = entry.data_start();
    match start.and_then(|start| Some(start..start.checked_add(entry.size())?)) {
        Some(range) if range.end <= bytes => Ok(range),
        _ => Err(format!("its entry {name:?} goes beyond the {bytes} bytes of the file")),
    }
}

/// Reads the pickles of a file before PyTorch 1.6: magic number, version, machine, object, keys of the storages. The storages follow,
/// each with its number of elements first.
fn old(file: &File, bytes: u64) -> Sound<(Pickle, Storages)> {
    let mut reader = BufReader::new(file);
    reader.rewind().map_err(|e| e.to_string())?;
    let mut at = 0;
    let mut next = || -> Sound<Pickle> {
        let pickle = Pickle::read(&mut reader, bytes - at)?;
        at = reader.stream_position().map_err(|e| e.to_string())?.min(bytes);
        Ok(pickle)
    };
    let (_, version, machine, pickle, keys) = (next()?, next()?, next()?, next()?, next()?);
    if version.int(version.root) != Some(1001) {
        return Err("its version is not 1001".to_string());
    }
    little_endian(machine.item(machine.root, "little_endian").and_then(|yes| machine.int(yes)) != Some(0))?;
    // A storage does not have the width of its elements. The references to it do.
    let mut widths = BTreeMap::new();
    for value in pickle.values() {
        let Value::Persistent(id) = value else { continue };
        if let Some((key, class, rest)) = storage(&pickle, *id) {
            // Views of storages, as PyTorch wrote them before 0.4.
            if rest.get(2).is_some_and(|view| *pickle.get(*view) != Value::None) {
                return Err(format!("its storage {key:?} is a view of another one: {AGAIN}"));
            }
            widths.insert(key, class);
        }
    }
    let mut places = BTreeMap::new();
    for key in keys.sequence(keys.root).unwrap_or_default() {
        let key = keys.text(*key).ok_or("the name of a storage is not text")?;
        let class = widths.get(key).copied().unwrap_or("no tensor");
        let width = width(class).ok_or_else(|| format!("its storage {key:?} is of {class}: {AGAIN}"))?;
        let torn = || format!("it is torn: storage {key:?} is not whole");
        let start = at.checked_add(8).filter(|start| *start <= bytes).ok_or_else(torn)?;
        let mut count = [0; 8];
        files::read_at(file, &mut count, at).map_err(|e| e.to_string())?;
        let end = u64::from_le_bytes(count).checked_mul(width).and_then(|length| start.checked_add(length));
        at = end.filter(|end| *end <= bytes).ok_or_else(torn)?;
        places.insert(key.to_string(), start..at);
    }
    Ok((pickle, Storages::Old(places)))
}

/// Advice for files that this reader does not support.
const AGAIN: &str = "save it again with PyTorch 1.6 or newer, torch.save(torch.load(...), ...)";

/// The tensors of a state dict, also if it is one level deeper, as training frameworks save it.
fn tensors(pickle: &Pickle) -> Sound<BTreeMap<String, Info>> {
    let deeper = ["state_dict", "model", "model_state_dict"].iter().filter_map(|key| pickle.item(pickle.root, key));
    let mut found = BTreeMap::new();
    for dict in std::iter::once(pickle.root).chain(deeper) {
        let level = named(pickle, dict)?;
        // Beside the state dict there may be other tensors of the run, such as its best loss.
        if level.values().any(|info| info.shape.len() == 2) {
            return Ok(level);
        }
        if found.is_empty() {
            found = level;
        }
    }
    if found.is_empty() {
        let holds = match pickle.get(pickle.root) {
            Value::Call { function, .. } => match pickle.global(*function) {
                Some(("torch._utils", name)) if name.starts_with("_rebuild_") => "one tensor".to_string(),
                Some((module, name)) => format!("{module}.{name}"),
                None => "an object".to_string(),
            },
            Value::Dict(_) => "a dict without tensors".to_string(),
            _ => "a list or a value".to_string(),
        };
        return Err(format!(
            "it holds no tensors by name, but {holds}: save a dict of tensors, such as model.state_dict()"
        ));
    }
    Ok(found)
}

fn named(pickle: &Pickle, dict: Id) -> Sound<BTreeMap<String, Info>> {
    let mut tensors = BTreeMap::new();
    for (name, value) in pickle.dict(dict).unwrap_or_default() {
        let (Some(name), Some((typed, view))) = (pickle.text(*name), view(pickle, *value)) else { continue };
        let info = Info::of(pickle, typed, view).ok_or_else(|| format!("the tensor {name:?} is not sound"))?;
        tensors.insert(name.to_string(), info);
        if tensors.len() > MAX_TENSORS {
            return Err(format!("it has more than {MAX_TENSORS} tensors"));
        }
    }
    Ok(tensors)
}

/// The arguments of the call that builds a tensor, inside the wrappers of parameters, and whether they include its
/// dtype.
fn view(pickle: &Pickle, value: Id) -> Option<(bool, &[Id])> {
    let (mut function, mut args) = pickle.call(value)?;
    for _ in 0..3 {
        (function, args) = match function {
            ("torch._utils", "_rebuild_tensor_v2") => return Some((false, args)),
            ("torch._utils", "_rebuild_tensor_v3") => return Some((true, args)),
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => pickle.call(*args.first()?)?,
            ("torch._tensor", "_rebuild_from_type_v2") => {
                (pickle.global(*args.first()?)?, pickle.sequence(*args.get(2)?)?)
            }
            _ => return None,
        };
    }
    None
}

/// The key of a storage, the class that gives its dtype, and the other arguments: device and length.
fn storage(pickle: &Pickle, id: Id) -> Option<(&str, &str, &[Id])> {
    let [kind, class, key, rest @ ..] = pickle.sequence(id)? else { return None };
    (pickle.text(*kind) == Some("storage")).then_some((pickle.text(*key)?, pickle.global(*class)?.1, rest))
}

impl Info {
    fn of(pickle: &Pickle, typed: bool, args: &[Id]) -> Option<Self> {
        let [stored, offset, shape, strides, _, _, rest @ ..] = args else { return None };
        let Value::Persistent(id) = pickle.get(*stored) else { return None };
        let (key, class, _) = storage(pickle, *id).filter(|(key, ..)| key.len() <= MAX_KEY)?;
        let class = if typed { pickle.global(*rest.first()?)?.1 } else { class };
        let sizes = |id: Id| -> Option<Vec<usize>> {
            let sizes = pickle.sequence(id).filter(|sizes| sizes.len() <= MAX_DIMENSIONS)?;
            sizes.iter().map(|size| usize::try_from(pickle.int(*size)?).ok()).collect()
        };
        let (shape, strides) = (sizes(*shape)?, sizes(*strides)?);
        let offset = u64::try_from(pickle.int(*offset)?).ok()?;
        let info = Info { shape, dtype: dtype_of(class), strides, offset, storage: key.to_string() };
        (info.shape.len() == info.strides.len()).then_some(info)
    }
}

/// candle's dtype for the class of a storage, or for a dtype of PyTorch.
fn dtype_of(class: &str) -> std::result::Result<DType, String> {
    Ok(match class {
        "FloatStorage" | "float32" => DType::F32,
        "DoubleStorage" | "float64" => DType::F64,
        "HalfStorage" | "float16" => DType::F16,
        "BFloat16Storage" | "bfloat16" => DType::BF16,
        "LongStorage" | "int64" => DType::I64,
        "IntStorage" | "int32" => DType::I32,
        "ShortStorage" | "int16" => DType::I16,
        "ByteStorage" | "uint8" => DType::U8,
        "uint32" => DType::U32,
        "float8_e4m3fn" => DType::F8E4M3,
        _ => return Err(class.chars().take(MAX_KEY).collect()),
    })
}

/// Bytes of an element.
fn width(class: &str) -> Option<u64> {
    match dtype_of(class).as_ref().map_err(String::as_str) {
        Ok(dtype) => Some(dtype.size_in_bytes() as u64),
        Err("CharStorage" | "BoolStorage" | "QInt8Storage" | "QUInt8Storage") => Some(1),
        Err("QInt32Storage") => Some(4),
        Err("ComplexFloatStorage") => Some(8),
        Err("ComplexDoubleStorage") => Some(16),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{contiguous, dtype_of};

    #[test]
    fn strides_along_one_element_do_not_matter() {
        for (shape, strides, yes) in [
            (&[3, 4][..], &[4, 1][..], true),
            (&[3, 4], &[1, 3], false),
            (&[3, 4], &[8, 1], false),
            (&[3, 4], &[0, 1], false),
            (&[1, 4], &[99, 1], true),
            (&[3, 1], &[1, 99], true),
            (&[3, 1], &[4, 1], false),
            (&[usize::MAX, usize::MAX, 2], &[1, 2, 1], false),
        ] {
            assert_eq!(contiguous(shape, strides), yes, "{shape:?} {strides:?}");
        }
    }

    #[test]
    fn dtypes_that_candle_lacks_keep_their_name() {
        assert_eq!(dtype_of("FloatStorage"), Ok(candle_core::DType::F32));
        assert_eq!(dtype_of("BoolStorage"), Err("BoolStorage".to_string()));
        assert_eq!(dtype_of("float8_e5m2"), Err("float8_e5m2".to_string()));
    }
}
