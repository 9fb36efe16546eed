//! PyTorch's files: what PyTorch wrote, and what a stranger may write.

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use candle_core::DType;
use tallow::{Error, PretrainedTable, Result, list_tensors};
use zip::write::{SimpleFileOptions, ZipWriter};

fn fixture(name: &str) -> PathBuf {
    crate::support::golden("pretrained").join(name)
}

/// A zip file of entries that are not compressed.
fn zipped(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in entries {
        zip.start_file(*name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn int(int: i64) -> Vec<u8> {
    [&[0x8a, 8], &int.to_le_bytes()[..]].concat()
}

fn sizes(sizes: &[i64]) -> Vec<u8> {
    [b"(", &sizes.iter().flat_map(|size| int(*size)).collect::<Vec<_>>()[..], b"t"].concat()
}

/// The pickle of a tensor: a view of storage `key`.
fn tensor(key: &str, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let storage = [b"(", &text("storage")[..], b"ctorch\nFloatStorage\n", &text(key), &text("cpu"), &int(12), b"tQ"];
    let view = [&storage.concat()[..], &int(offset), &sizes(shape), &sizes(strides), b"\x89N"].concat();
    [b"ctorch._utils\n_rebuild_tensor_v2\n(", &view[..], b"tR"].concat()
}

/// The pickle of a dict, its values pickled.
fn dict(items: &[(&str, &[u8])]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|(name, value)| [&text(name)[..], value].concat()).collect();
    [b"\x80\x02}(", &items[..], b"u."].concat()
}

/// A file of this pickle, whose storage 0 has the numbers 0 to 11.
fn file(pickle: &[u8]) -> Vec<u8> {
    let storage: Vec<u8> = (0..12u8).flat_map(|value| f32::from(value).to_le_bytes()).collect();
    zipped(&[("x/data.pkl", pickle), ("x/byteorder", b"little"), ("x/data/0", &storage)])
}

fn open(bytes: &[u8], tensor: Option<&str>) -> Result<PretrainedTable> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    PretrainedTable::open(file.path(), tensor)
}

fn reason(result: Result<PretrainedTable>) -> String {
    match result {
        Err(Error::Checkpoint { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

fn values(table: &PretrainedTable) -> Vec<Vec<f32>> {
    table.block(0..table.vocab_size()).unwrap().to_dtype(DType::F32).unwrap().to_vec2().unwrap()
}

#[test]
fn every_dtype_of_pytorch_is_read_or_named() {
    let path = fixture("dtypes.pth");
    let expected: Vec<Vec<f32>> = (0..4).map(|row| (0..3).map(|column| (row * 3 + column) as f32).collect()).collect();
    for (name, dtype) in [
        ("float32", DType::F32),
        ("float64", DType::F64),
        ("float16", DType::F16),
        ("bfloat16", DType::BF16),
        ("int64", DType::I64),
        ("int32", DType::I32),
        ("int16", DType::I16),
        ("uint8", DType::U8),
        ("uint32", DType::U32),
        ("float8_e4m3fn", DType::F8E4M3),
    ] {
        let table = PretrainedTable::open(&path, Some(name)).unwrap();
        assert_eq!((table.dtype(), table.vocab_size(), table.d_model()), (dtype, 4, 3), "{name}");
        assert_eq!(values(&table), expected, "{name}");
    }
    for (name, class) in
        [("bool", "BoolStorage"), ("int8", "CharStorage"), ("complex64", "ComplexFloatStorage"), ("uint16", "uint16")]
    {
        let found = reason(PretrainedTable::open(&path, Some(name)));
        assert!(found.contains(&format!("{name:?} has the dtype {class}, which candle does not support")), "{found}");
    }
    let listed = list_tensors(&path).unwrap();
    let dtype = |name: &str| listed.iter().find(|tensor| tensor.name == name).unwrap().dtype.clone();
    assert_eq!((listed.len(), dtype("bfloat16"), dtype("bool")), (14, "BF16".to_string(), "BoolStorage".to_string()));
    assert!(listed.iter().all(|tensor| tensor.shape == [4, 3]));
    let old = list_tensors(fixture("old4.pth")).unwrap();
    let found: Vec<_> = old.iter().map(|tensor| (&tensor.name[..], &tensor.dtype[..])).collect();
    assert_eq!(found, [("ids", "I64"), ("lm_head.weight", "F32"), ("mask", "BoolStorage"), ("wte.weight", "F32")]);
}

#[test]
fn only_the_rows_that_are_asked_for_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pth");
    let pickle = dict(&[("wte.weight", &tensor("0", 2, &[3, 3], &[3, 1])), ("b", &tensor("0", 0, &[2], &[1]))]);
    std::fs::write(&path, file(&pickle)).unwrap();
    let table = PretrainedTable::open(&path, None).unwrap();
    assert_eq!(values(&table), [[2., 3., 4.], [5., 6., 7.], [8., 9., 10.]]);
    // Without its last row, and all that stands behind it, the file still gives the others.
    let whole = std::fs::read(&path).unwrap();
    let last = whole.windows(4).rposition(|bytes| bytes == 8f32.to_le_bytes()).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(last as u64).unwrap();
    assert_eq!(table.rows(&[1, 0]).unwrap().to_vec2::<f32>().unwrap(), [[5., 6., 7.], [2., 3., 4.]]);
    assert!(matches!(table.rows(&[2]), Err(Error::Io { .. })));
}

#[test]
fn what_is_no_table_in_a_sound_file_says_why() {
    let transposed = reason(PretrainedTable::open(fixture("transposed.pth"), None));
    assert!(transposed.contains("strides [1, 40]") && transposed.contains("`.contiguous()`"), "{transposed}");
    let module = reason(PretrainedTable::open(fixture("module.pth"), None));
    assert!(module.contains("but torch.nn.modules.sparse.Embedding: save a dict of tensors"), "{module}");
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    let tar = reason(open(&tar, None));
    assert!(tar.contains("before 0.4") && tar.contains("torch.save(torch.load(...), ...)"), "{tar}");

    for (offset, shape, strides, expected) in [
        (4, &[3, 3][..], &[3, 1][..], "exceeds its storage of 48 bytes"),
        (i64::MAX, &[3, 3], &[3, 1], "exceeds its storage"),
        (0, &[i64::MAX, 3], &[3, 1], "exceeds its storage"),
        (0, &[1 << 40, 1 << 40], &[1 << 40, 1], "exceeds its storage"),
        (0, &[1 << 20, 3], &[0, 1], "are not contiguous (strides [0, 1])"),
        (0, &[3, 3], &[4, 1], "are not contiguous"),
        (0, &[0, 3], &[3, 1], "not a table: its shape is [0, 3]"),
        (0, &[3, 3], &[3], "\"wte.weight\" is not sound"),
        (0, &[-3, 3], &[3, 1], "is not sound"),
        (-1, &[3, 3], &[3, 1], "is not sound"),
        (0, &[1; 65], &[1; 65], "is not sound"),
    ] {
        let found = reason(open(&file(&dict(&[("wte.weight", &tensor("0", offset, shape, strides))])), None));
        assert!(found.contains(expected), "{found}");
    }
    // A row's stride does not matter where there is one row; nor does a name that leads elsewhere.
    let one = open(&file(&dict(&[("wte.weight", &tensor("0", 0, &[1, 12], &[99, 1]))])), None).unwrap();
    assert_eq!(values(&one)[0], (0..12u8).map(f32::from).collect::<Vec<_>>());
    let away = reason(open(&file(&dict(&[("wte.weight", &tensor("../../secret", 0, &[3, 3], &[3, 1]))])), None));
    assert!(away.contains("it has no entry \"x/data/../../secret\""), "{away}");
}

#[test]
fn zip_files_that_pytorch_does_not_write_are_refused() {
    let pickle = dict(&[("wte.weight", &tensor("0", 0, &[3, 3], &[3, 1]))]);
    let sound = file(&pickle);
    assert_eq!(open(&sound, None).unwrap().vocab_size(), 3);
    let mut packed = sound.clone();
    for at in 0..packed.len() - 4 {
        match packed[at..at + 4] {
            [b'P', b'K', 3, 4] => packed[at + 8] = 8,
            [b'P', b'K', 1, 2] => packed[at + 10] = 8,
            _ => (),
        }
    }
    // The directory says that a storage is longer than the file.
    let mut long = sound.clone();
    let at = long.windows(4).rposition(|bytes| bytes == b"PK\x01\x02").unwrap();
    long[at + 20..at + 28].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1]);
    for (bytes, expected) in [
        (packed, "is compressed"),
        (long, "goes beyond the"),
        (sound[..sound.len() - 1].to_vec(), "it is torn"),
        (zipped(&[("x/data/0", b"")]), "this one has none"),
        (zipped(&[]), "this one has none"),
        (zipped(&[("x/y/data.pkl", &pickle)]), "this one has none"),
        (zipped(&[("x/data.pkl", &pickle), ("y/data.pkl", &pickle)]), "this one has several"),
        (zipped(&[("x/data.pkl", &pickle)]), "it has no entry \"x/data/0\""),
        (zipped(&[("x/data.pkl", &pickle), ("x/byteorder", b"big")]), "are big-endian"),
        (zipped(&[("x/data.pkl", &pickle[..pickle.len() - 1])]), "torn: it ends within a pickle"),
        (zipped(&[("x/data.pkl", b"cos\nsystem\n(X\x02\0\0\0lstR.")]), "but os.system: save a dict of tensors"),
    ] {
        let found = reason(open(&bytes, None));
        assert!(found.contains(expected), "{found}");
    }
}

/// Values that double, and values a million deep, on a stack that no recursion fits.
#[test]
fn bombs_are_errors_or_tables_in_little_memory() {
    let table = tensor("0", 0, &[3, 3], &[3, 1]);
    let deep = 1_000_000;
    let doubled = [b")q\x00", &b"0h\x00h\x00\x86q\x00".repeat(40)[..]].concat();
    let bombs: [Vec<u8>; 6] = [
        doubled.clone(),
        [b")", &b"\x85".repeat(deep)[..]].concat(),
        [&b"]".repeat(deep)[..], &b"a".repeat(deep - 1)].concat(),
        [b"ctorch._utils\n_rebuild_parameter\nq\x010", &b"h\x01".repeat(deep)[..], b"N", &b"\x85R".repeat(deep)]
            .concat(),
        [&b"}K\x01".repeat(deep)[..], b"N", &b"s".repeat(deep)].concat(),
        [b"cm\nf\n", &b")R".repeat(deep)[..]].concat(),
    ];
    let run = move || {
        for (at, bomb) in bombs.iter().enumerate() {
            // Alone, and beside a table.
            let alone = [b"\x80\x02", &bomb[..], b"."].concat();
            let found = reason(open(&file(&alone), None));
            assert!(found.contains("no tensors by name"), "{at}: {found}");
            let beside = open(&file(&dict(&[("bomb", bomb), ("wte.weight", &table)])), None);
            assert_eq!(values(&beside.unwrap())[1], [3., 4., 5.], "{at}");
        }
        // 335 bytes that were enough for candle's reader.
        let small = zipped(&[("x/data.pkl", &[b"\x80\x02", &doubled[..], b"."].concat())]);
        assert!(small.len() < 500 && reason(open(&small, None)).contains("no tensors"), "{}", small.len());
    };
    std::thread::Builder::new().stack_size(256 << 10).spawn(run).unwrap().join().unwrap();
}

/// A storage that begins behind 4 GiB: a sparse file, and a directory whose places have 8 bytes.
#[cfg(unix)]
#[test]
fn files_beyond_four_gib_are_read() {
    use std::os::unix::fs::FileExt;
    let pickle = dict(&[("wte.weight", &tensor("0", 1, &[3, 3], &[3, 1]))]);
    let storage: Vec<u8> = (0..12u8).flat_map(|value| f32::from(value).to_le_bytes()).collect();
    let far = (4u64 << 30) + 64;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pth");
    let file = std::fs::File::create(&path).unwrap();
    let mut directory = Vec::new();
    for (name, bytes, at) in [("x/data.pkl", &pickle, 0), ("x/data/0", &storage, far)] {
        let (length, name_length) = ((bytes.len() as u32).to_le_bytes(), (name.len() as u16).to_le_bytes());
        let common = [&[45, 0, 0, 0, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0][..], &length, &length, &name_length].concat();
        let local = [b"PK\x03\x04", &common[..], &[0, 0], name.as_bytes(), bytes].concat();
        file.write_all_at(&local, at).unwrap();
        let extra = [&[1, 0, 8, 0][..], &at.to_le_bytes()].concat();
        let rest = [&[12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &[0xff; 4], name.as_bytes(), &extra];
        directory.extend([b"PK\x01\x02\x2d\0", &common[..], &rest.concat()].concat());
    }
    let (at, length) = (far + 200, directory.len() as u64);
    let end = [
        &b"PK\x06\x06"[..],
        &44u64.to_le_bytes(),
        &[45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &2u64.to_le_bytes(),
        &2u64.to_le_bytes(),
        &length.to_le_bytes(),
        &at.to_le_bytes(),
        b"PK\x06\x07\0\0\0\0",
        &(at + length).to_le_bytes(),
        &[1, 0, 0, 0],
        b"PK\x05\x06\0\0\0\0\x02\0\x02\0",
        &(length as u32).to_le_bytes(),
        &[0xff; 4],
        &[0, 0],
    ];
    file.write_all_at(&[&directory[..], &end.concat()].concat(), at).unwrap();
    let table = PretrainedTable::open(&path, None).unwrap();
    assert_eq!(values(&table), [[1., 2., 3.], [4., 5., 6.], [7., 8., 9.]]);
}

/// A header of 19280 bytes begins with the letters PK; the file is no zip file for that.
#[test]
fn a_safetensors_file_may_begin_as_a_zip_file_does() {
    let path = tempfile::NamedTempFile::new().unwrap();
    let mut header = br#"{"wte.weight":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}"#.to_vec();
    header.resize(19280, b' ');
    let bytes = [&19280u64.to_le_bytes()[..], &header, &[0; 8]].concat();
    assert!(bytes.starts_with(b"PK"));
    std::fs::write(path.path(), bytes).unwrap();
    assert_eq!(PretrainedTable::open(path.path(), None).unwrap().vocab_size(), 2);
}

#[test]
fn a_folder_with_pytorch_s_file_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("old2.pth"), folder.path().join("pytorch_model.bin")).unwrap();
    let table = PretrainedTable::open(folder.path(), None).unwrap();
    assert_eq!((table.path().file_name(), table.tied()), (Some(Path::new("pytorch_model.bin").as_os_str()), true));
}
