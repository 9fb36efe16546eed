//! The format to the byte, and other trainers' files.

use proptest::prelude::*;
use tallow_text::shard::{
    Foreign, ForeignFile, IdType, Io, Manifest, Shard, ShardWriter, TokenizerInfo, export, import, verify,
};

/// Every byte of a small shard, by hand from docs/format.md.
#[test]
fn the_bytes_are_those_of_the_document() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(folder.path().join("x"), IdType::U16).unwrap();
    writer.push(&[1, 2, 3]).unwrap();
    writer.end_document().unwrap();
    writer.push(&[9, 9, 9]).unwrap();
    writer.undo_document().unwrap();
    writer.end_document().unwrap(); // nothing: leaves no trace
    writer.push(&[0x1234]).unwrap();
    let info = writer.finish().unwrap();
    assert_eq!((info.tokens, info.documents, info.largest_id), (4, 2, Some(0x1234)));
    let bin = std::fs::read(folder.path().join("x.bin")).unwrap();
    assert_eq!(bin, [1, 0, 2, 0, 3, 0, 0x34, 0x12]);
    let idx = std::fs::read(folder.path().join("x.idx")).unwrap();
    let mut expected = b"MMIDIDX\0\0".to_vec();
    expected.extend(1u64.to_le_bytes()); // version
    expected.push(8); // u16
    expected.extend(2u64.to_le_bytes()); // sequences
    expected.extend(3u64.to_le_bytes()); // documents + 1
    [3i32, 1].iter().for_each(|length| expected.extend(length.to_le_bytes()));
    [0i64, 6].iter().for_each(|pointer| expected.extend(pointer.to_le_bytes()));
    [0i64, 1, 2].iter().for_each(|end| expected.extend(end.to_le_bytes()));
    assert_eq!(idx, expected);
    // zlib's crc32 of both, from Python: binascii.crc32(bytes).
    assert_eq!((info.crc32, info.index_crc32), (0xBE66_53AD, 0x466D_201F));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file is left");
    let shard = Shard::open(folder.path().join("x"), &info, IdType::U16, Io::Map).unwrap();
    let mut ids = [0; 4];
    shard.read(0, &mut ids).unwrap();
    assert_eq!(ids, [1, 2, 3, 0x1234]);
    // A name with a dot keeps it.
    let mut writer = ShardWriter::create(folder.path().join("z.01"), IdType::U16).unwrap();
    writer.push(&[1]).unwrap();
    let info = writer.finish().unwrap();
    assert!(folder.path().join("z.01.bin").exists());
    Shard::open(folder.path().join("z.01"), &info, IdType::U16, Io::Map).unwrap();
    std::fs::remove_file(folder.path().join("z.01.bin")).unwrap();
    std::fs::remove_file(folder.path().join("z.01.idx")).unwrap();
    // A writer that is dropped leaves nothing.
    let mut writer = ShardWriter::create(folder.path().join("y"), IdType::U32).unwrap();
    writer.push(&[1]).unwrap();
    drop(writer);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

fn about(format: Foreign, id_type: IdType, separator: Option<u32>) -> ForeignFile {
    let tokenizer = Some(TokenizerInfo { name: "x".into(), fingerprint: "0".into() });
    ForeignFile { format, id_type, separator, table_rows: 50_257, tokenizer }
}

#[test]
fn foreign_files_come_back_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let raw = |ids: &[u16]| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
    let after = [5, 6, 50_256, 7, 50_256, 50_256, 8];
    let before = [50_256, 5, 6, 50_256, 7, 50_256, 50_256, 8];
    let mut header = vec![0u8; 1024];
    header[..12].copy_from_slice(&[20_240_520i32, 1, 8].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>());
    let llmc = [header, raw(&before)].concat();
    for (name, format, bytes, documents) in [
        ("nanogpt.bin", Foreign::NanoGpt, raw(&after), vec![3, 2, 1, 1]),
        ("llama2c.bin", Foreign::Llama2C, raw(&before), vec![3, 2, 1, 2]),
        ("llmc.bin", Foreign::LlmC, llmc, vec![3, 2, 1, 2]),
        ("olmo.npy", Foreign::Olmo, raw(&after), vec![3, 2, 1, 1]),
    ] {
        std::fs::write(path(name), &bytes).unwrap();
        let out = path(&format!("{name}.folder"));
        let manifest = import(&[path(name)], &about(format, IdType::U16, Some(50_256)), "train", &out).unwrap();
        let train = &manifest.splits["train"];
        assert_eq!((train.documents, manifest.largest_id), (documents.len() as u64, Some(50_256)), "{name}");
        for (number, length) in documents.iter().enumerate() {
            let ids = tallow_text::shard::document(&out, "train", 0, number as u64, 99).unwrap();
            assert_eq!(ids.len(), *length, "{name}");
        }
        assert_eq!(verify(&out, &|_, _| ()).unwrap(), [""; 0], "{name}");
        let back = path(&format!("back-{name}"));
        assert_eq!(export(&out, "train", format, IdType::U16, &back).unwrap(), std::slice::from_ref(&back));
        assert!(std::fs::read(&back).unwrap() == bytes, "{name}");
        // A second split joins the folder; the same one does not.
        import(&[path(name)], &about(format, IdType::U16, Some(50_256)), "val", &out).unwrap();
        assert_eq!(Manifest::read(&out).unwrap().splits.len(), 2);
        let again = import(&[path(name)], &about(format, IdType::U16, Some(50_256)), "val", &out).unwrap_err();
        assert!(again.to_string().contains("has a split val already"), "{again}");
        let other = import(&[path(name)], &about(format, IdType::U16, None), "test", &out).unwrap_err();
        assert!(other.to_string().contains("another tokenizer or separator"), "{other}");
    }
    // datatrove through its own index, also with empty documents in it.
    std::fs::write(path("x.ds"), raw(&after)).unwrap();
    let ends = |ends: &[u64]| ends.iter().flat_map(|end| end.to_le_bytes()).collect::<Vec<u8>>();
    std::fs::write(path("x.ds.index"), [ends(&[3]), ends(&[3; 300_000]), ends(&[5, 7, 7])].concat()).unwrap();
    let out = path("ds.folder");
    let datatrove = about(Foreign::Datatrove, IdType::U16, None);
    assert_eq!(import(&[path("x.ds")], &datatrove, "train", &out).unwrap().splits["train"].documents, 3);
    let files = export(&out, "train", Foreign::Datatrove, IdType::U16, &path("y.ds")).unwrap();
    assert_eq!(files, [path("y.ds"), path("y.ds.index"), path("y.ds.metadata")]);
    assert_eq!(std::fs::read(path("y.ds.index")).unwrap(), ends(&[3, 5, 7]));
    assert_eq!(std::fs::read_to_string(path("y.ds.metadata")).unwrap(), "x|2\n7\n7 T");
    // What cannot be exported.
    let no = export(&out, "val", Foreign::NanoGpt, IdType::U32, &path("z")).unwrap_err();
    assert!(no.to_string().contains("no split \"val\"; there are train"), "{no}");
    assert!(export(&out, "train", Foreign::Llama2C, IdType::U32, &path("z")).is_err());
}

#[test]
fn foreign_files_that_lie_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let refused = |bytes: &[u8], index: Option<&[u64]>, format, id_type, expected: &str| {
        std::fs::write(path("x.ds"), bytes).unwrap();
        if let Some(ends) = index {
            std::fs::write(path("x.ds.index"), ends.iter().flat_map(|end| end.to_le_bytes()).collect::<Vec<u8>>())
                .unwrap();
        }
        let error = import(&[path("x.ds")], &about(format, id_type, Some(0)), "train", &path("out")).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!path("out/manifest.json").exists());
        assert_eq!(std::fs::read_dir(path("out/train")).unwrap().count(), 0, "nothing half-written is left");
    };
    let header = |magic: i32, version: i32, count: i32| {
        let mut header = vec![0u8; 1024];
        header[..12]
            .copy_from_slice(&[magic, version, count].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>());
        header
    };
    refused(b"abc", None, Foreign::NanoGpt, IdType::U16, "3 bytes are no whole number of 2-byte ids");
    refused(b"", None, Foreign::NanoGpt, IdType::U16, "0 bytes");
    refused(
        b"\xff\xff",
        None,
        Foreign::NanoGpt,
        IdType::U16,
        "id 65535 at position 0 is outside a table of 50257 rows",
    );
    refused(b"\x93NUMPY\x01\x00", None, Foreign::Olmo, IdType::U16, "a real .npy with a header");
    refused(b"short", None, Foreign::LlmC, IdType::U16, "too short for llm.c's header");
    refused(&header(1, 1, 0), None, Foreign::LlmC, IdType::U16, "magic 1, version 1");
    refused(
        &header(20_240_520, 1, 5),
        None,
        Foreign::LlmC,
        IdType::U16,
        "the header promises 5 ids, but 0 bytes follow",
    );
    refused(&header(20_240_520, 1, -1), None, Foreign::LlmC, IdType::U16, "the header promises -1 ids");
    refused(&header(20_240_801, 7, i32::MAX), None, Foreign::LlmC, IdType::U16, "the file is torn");
    refused(&[1, 0, 2, 0], Some(&[1]), Foreign::Datatrove, IdType::U16, "it ends at id 1 of 2: the file is torn");
    refused(&[1, 0, 2, 0], Some(&[1, 3]), Foreign::Datatrove, IdType::U16, "a document runs from 1 to 3, of 2 ids");
    refused(&[1, 0, 2, 0], Some(&[2, 1]), Foreign::NanoGpt, IdType::U32, "outside a table");
}

/// The documents of a split, those that are cut put together, without the separator where it belongs.
fn documents_of(folder: &std::path::Path) -> Vec<Vec<u32>> {
    let manifest = Manifest::read(folder).unwrap();
    let mut all: Vec<Vec<u32>> = Vec::new();
    for (number, shard) in manifest.splits["train"].shards.iter().enumerate() {
        for at in 0..shard.documents {
            let ids = tallow_text::shard::document(folder, "train", number, at, usize::MAX).unwrap();
            match all.last_mut() {
                Some(last) if at == 0 && shard.continues => last.extend(ids),
                _ => all.push(ids),
            }
        }
    }
    assert_eq!(manifest.splits["train"].documents as usize, all.len(), "as many as the manifest says");
    if let Some(separator) = &manifest.separator {
        for document in &mut all {
            let at = if separator.before { 0 } else { document.len() - 1 };
            assert_eq!(document.remove(at), separator.id);
        }
    }
    all
}

/// A folder as `prepare` makes it, with a new shard wherever `cuts` says so.
fn folder_of(documents: &[Vec<u32>], cuts: &[usize], separator: Option<u32>, folder: &std::path::Path) {
    std::fs::create_dir_all(folder.join("train")).unwrap();
    let mut shards: Vec<tallow_text::shard::ShardInfo> = Vec::new();
    let create = |number: usize| ShardWriter::create(folder.join(format!("train/{number:06}")), IdType::U16).unwrap();
    let (mut writer, mut continues, mut at) = (create(0), false, 0);
    for document in documents {
        for (place, id) in document.iter().chain(&separator).enumerate() {
            if cuts.contains(&at) && at > 0 {
                let number = shards.len() + 1;
                let info = std::mem::replace(&mut writer, create(number)).finish().unwrap();
                shards.push(tallow_text::shard::ShardInfo { continues, text_bytes: 1, ..info });
                continues = place > 0;
            }
            writer.push(&[*id]).unwrap();
            at += 1;
        }
        writer.end_document().unwrap();
    }
    let info = writer.finish().unwrap();
    shards.push(tallow_text::shard::ShardInfo { continues, text_bytes: 1, ..info });
    let split = serde_json::json!({"tokens": at, "documents": documents.len(), "text_bytes": 1, "shards": shards});
    let manifest = serde_json::json!({
        "format": "tallow-shards", "version": 1, "tokenizer": null, "table_rows": 60_000,
        "largest_id": shards.iter().map(|shard| shard.largest_id).max(), "dtype": "u16", "val": 0.0, "seed": 0,
        "separator": separator.map(|id| serde_json::json!({"token": null, "id": id})),
        "skipped": {"count": 0, "reasons": []}, "splits": {"train": split},
    });
    std::fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    /// Out and back through every format, documents and their number stay, wherever the separator stands on the way.
    #[test]
    fn documents_come_back_from_every_format(
        documents in prop::collection::vec(prop::collection::vec(2u32..60_000, 0..6), 1..9),
        cuts in prop::collection::vec(0usize..40, 0..4),
        separator in prop::option::of(Just(1u32)),
        format in 0usize..5,
        second in 0usize..5,
    ) {
        let formats = [Foreign::NanoGpt, Foreign::Llama2C, Foreign::LlmC, Foreign::Olmo, Foreign::Datatrove];
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut documents = documents;
        if separator.is_none() {
            documents.retain(|document| !document.is_empty());
            prop_assume!(!documents.is_empty());
        }
        folder_of(&documents, &cuts, separator, &path("0"));
        prop_assert_eq!(&documents_of(&path("0")), &documents);
        prop_assert_eq!(verify(path("0"), &|_, _| ()).unwrap(), [""; 0]);
        // Twice, so that folders of both kinds are exported: with the separator after and before documents.
        for (round, format) in [formats[format], formats[second], Foreign::Datatrove].into_iter().enumerate() {
            let (from, to, file) = (path(&round.to_string()), path(&(round + 1).to_string()), path(&format!("{round}.x")));
            export(&from, "train", format, IdType::U16, &file).unwrap();
            let bytes = std::fs::read(&file).unwrap();
            let header = if format == Foreign::LlmC { 1024 } else { 0 };
            let ids: Vec<u32> = bytes[header..].as_chunks().0.iter().map(|id| u16::from_le_bytes(*id).into()).collect();
            if header > 0 {
                prop_assert_eq!(&bytes[8..12], (ids.len() as i32).to_le_bytes());
            }
            // What the trainer's own writer writes.
            let before = matches!(format, Foreign::Llama2C | Foreign::LlmC);
            let parts = documents.iter().flat_map(|document| match before {
                true => [separator.as_slice(), document].concat(),
                false => [document, separator.as_slice()].concat(),
            });
            prop_assert_eq!(&ids, &parts.collect::<Vec<_>>(), "{:?}", format);
            let about = ForeignFile { format, id_type: IdType::U16, separator, table_rows: 60_000, tokenizer: None };
            import(&[file], &about, "train", &to).unwrap();
            if separator.is_none() && format != Foreign::Datatrove {
                documents = vec![documents.concat()]; // nothing tells them apart there
            }
            prop_assert_eq!(&documents_of(&to), &documents, "{:?}", format);
            prop_assert_eq!(verify(&to, &|_, _| ()).unwrap(), [""; 0]);
        }
    }
}

/// A pipe that bears the name of a file is refused; who opened it would wait for ever.
#[cfg(unix)]
#[test]
fn a_pipe_in_the_place_of_a_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    folder_of(&[vec![5, 6], vec![7]], &[], Some(1), &path("tokens"));
    let pipe = |name: &str| {
        _ = std::fs::remove_file(path(name));
        assert!(std::process::Command::new("mkfifo").arg(path(name)).status().unwrap().success());
    };
    let refused = |result: Result<(), tallow_text::Error>, name: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(&format!("{name}: ")) && error.contains("not a regular file"), "{error}");
    };
    let whole = std::fs::read(path("tokens/train/000000.idx")).unwrap();
    pipe("tokens/train/000000.idx");
    let manifest = Manifest::read(path("tokens")).unwrap();
    let open = || manifest.open(&path("tokens"), "train", &manifest.splits["train"].shards[0], Io::Map);
    refused(open().map(|_| ()), "000000.idx");
    assert!(verify(path("tokens"), &|_, _| ()).unwrap()[0].contains("000000.idx: it is not a regular file"));
    std::fs::remove_file(path("tokens/train/000000.idx")).unwrap();
    std::fs::write(path("tokens/train/000000.idx"), whole).unwrap();
    pipe("tokens/train/000000.bin");
    assert!(verify(path("tokens"), &|_, _| ()).unwrap()[0].contains("000000.bin: it is not a regular file"));
    refused(export(&path("tokens"), "train", Foreign::NanoGpt, IdType::U16, &path("x")).map(|_| ()), "000000.bin");
    pipe("tokens/manifest.json");
    refused(Manifest::read(path("tokens")).map(|_| ()), "manifest.json");
    // Other trainers' files.
    let nanogpt = about(Foreign::NanoGpt, IdType::U16, None);
    pipe("x.bin");
    refused(import(&[path("x.bin")], &nanogpt, "train", &path("out")).map(|_| ()), "x.bin");
    std::fs::write(path("x.ds"), [1, 0]).unwrap();
    pipe("x.ds.index");
    let datatrove = about(Foreign::Datatrove, IdType::U16, None);
    refused(import(&[path("x.ds")], &datatrove, "train", &path("out")).map(|_| ()), "x.ds.index");
}

/// The names that a command line has for values; an error lists them.
#[test]
fn values_have_names() {
    use tallow_text::Specials;
    use tallow_text::prepare::{Format, OnError};
    assert_eq!("llama2c".parse::<Foreign>().unwrap(), Foreign::Llama2C);
    assert_eq!("jsonl".parse::<Format>().unwrap(), Format::Jsonl);
    assert_eq!("replace".parse::<OnError>().unwrap(), OnError::Replace);
    assert_eq!("forbid".parse::<Specials>().unwrap(), Specials::Forbid);
    for id_type in [IdType::U16, IdType::U32] {
        assert_eq!(id_type.to_string().parse::<IdType>().unwrap(), id_type);
    }
    assert_eq!("U16".parse::<IdType>().unwrap_err().to_string(), "id type \"U16\" is none of u16, u32");
}
