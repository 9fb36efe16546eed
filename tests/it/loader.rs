//! The loader: orders, ranks, resuming, documents, torn files.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device};
use tallow::loader::{LoaderState, Split};
use tallow::shard::{IdType, Io, Manifest, ShardWriter};
use tallow::{Batch, DataLoader, DataLoaderConfig, Dataset, Error, NO_TOKEN, Order};

const ORDERS: [Order; 5] = [Order::Permuted, Order::Random, Order::Sequential, Order::Packed, Order::BosAligned];

fn config(order: Order, batch_size: usize, context_length: usize) -> DataLoaderConfig {
    DataLoaderConfig { order, batch_size, context_length, ..Default::default() }
}

/// Writes a folder whose shards hold these documents; each ends with id 0.
fn folder(out: &Path, shards: &[Vec<Vec<u32>>]) -> Manifest {
    std::fs::create_dir_all(out.join("train")).unwrap();
    let mut split = serde_json::json!({"tokens": 0, "documents": 0, "text_bytes": 0, "shards": []});
    let mut largest = 0;
    for (number, documents) in shards.iter().enumerate() {
        let mut writer = ShardWriter::create(out.join(format!("train/{number:06}")), IdType::U32).unwrap();
        for document in documents {
            writer.push(document).unwrap();
            writer.push(&[0]).unwrap();
            writer.end_document().unwrap();
        }
        let info = writer.finish().unwrap();
        split["tokens"] = (split["tokens"].as_u64().unwrap() + info.tokens).into();
        split["documents"] = (split["documents"].as_u64().unwrap() + info.documents).into();
        largest = largest.max(info.largest_id.unwrap());
        split["shards"].as_array_mut().unwrap().push(serde_json::to_value(info).unwrap());
    }
    let manifest = serde_json::json!({"format": "tallow-shards", "version": 1, "tokenizer": null,
        "table_rows": largest + 1, "largest_id": largest, "separator": {"token": null, "id": 0}, "dtype": "u32",
        "val": 0.0, "seed": 0, "skipped": {"count": 0, "reasons": []}, "splits": {"train": split}});
    std::fs::write(out.join("manifest.json"), manifest.to_string()).unwrap();
    Manifest::read(out).unwrap()
}

/// Documents whose ids name their place: every id but the separator occurs once.
fn numbered(lengths: &[&[u32]]) -> Vec<Vec<Vec<u32>>> {
    let mut next = 1;
    let mut document = |length: u32| {
        let ids = (next..next + length).collect();
        next += length;
        ids
    };
    lengths.iter().map(|shard| shard.iter().map(|length| document(*length)).collect()).collect()
}

fn uneven() -> (tempfile::TempDir, Split) {
    let out = tempfile::tempdir().unwrap();
    folder(out.path(), &numbered(&[&[50, 3, 1, 70, 20], &[9], &[200, 31, 5, 5, 5, 64, 2]]));
    let split = Dataset::open(out.path()).unwrap().split("train").unwrap();
    (out, split)
}

fn rows(batch: &Batch) -> Vec<(Vec<u32>, Vec<u32>)> {
    batch.inputs.to_vec2().unwrap().into_iter().zip(batch.targets.to_vec2().unwrap()).collect()
}

fn all(loader: DataLoader) -> Vec<(Vec<u32>, Vec<u32>)> {
    loader.flat_map(|batch| rows(&batch.unwrap())).collect()
}

type Bits = (Vec<Vec<u32>>, Vec<Vec<u32>>, Option<(Vec<Vec<u32>>, Vec<u32>)>);

/// What a resumed run must repeat to the bit.
fn bits(batch: &Batch) -> Bits {
    let documents = batch.documents.as_ref();
    let documents = documents.map(|d| (d.positions.to_vec2().unwrap(), d.cumulative_lengths.to_vec1().unwrap()));
    (batch.inputs.to_vec2().unwrap(), batch.targets.to_vec2().unwrap(), documents)
}

#[test]
fn every_window_comes_once_an_epoch() {
    let (_out, split) = uneven();
    let context = 7;
    // Windows by hand: (n - 1) / T of each shard.
    let windows: u64 = split.shards().iter().map(|shard| (shard.tokens() - 1) / context as u64).sum();
    for (order, epochs) in [(Order::Permuted, 6), (Order::Sequential, 2)] {
        let cfg = DataLoaderConfig { epochs: Some(epochs), drop_last: false, ..config(order, 5, context) };
        let loader = DataLoader::new(&split, cfg).unwrap();
        assert_eq!(loader.samples_per_epoch(), windows);
        let rows = all(loader);
        assert_eq!(rows.len() as u64, windows * epochs);
        let mut orders = Vec::new();
        for epoch in rows.chunks(windows as usize) {
            // In the corpus ids ascend, but for separators (0): ids of an epoch are all different.
            let ids: Vec<u32> = epoch.iter().flat_map(|(inputs, _)| inputs.clone()).filter(|id| *id != 0).collect();
            let mut sorted = ids.clone();
            sorted.sort();
            sorted.dedup();
            assert_eq!(sorted.len(), ids.len(), "{order:?}: an id came twice");
            for (inputs, targets) in epoch {
                assert_eq!(inputs[1..], targets[..context - 1]);
            }
            orders.push(epoch.iter().map(|(inputs, _)| inputs.clone()).collect::<Vec<_>>());
        }
        if order == Order::Permuted {
            assert!(orders[0] != orders[1] && orders[1] != orders[2], "every epoch has its own order");
            // Windows move, so that ids at the edges are trained in other epochs.
            let seen: std::collections::BTreeSet<u32> = orders.iter().flatten().flatten().copied().collect();
            let first: std::collections::BTreeSet<u32> = orders[0].iter().flatten().copied().collect();
            assert!(seen.len() > first.len());
        } else {
            assert_eq!(orders[0], orders[1]);
            assert!(orders[0].windows(2).all(|pair| pair[0].iter().max() < pair[1].iter().max()), "in order");
        }
    }
}

#[test]
fn ranks_cut_the_same_global_batches() {
    let (_out, split) = uneven();
    for order in ORDERS {
        for drop_last in [true, false] {
            let batches = |world_size: usize| -> Vec<Vec<(Vec<u32>, Vec<u32>)>> {
                let loader = |rank| {
                    let cfg = config(order, 8 / world_size, 9);
                    DataLoader::new(&split, DataLoaderConfig { rank, world_size, drop_last, epochs: Some(3), ..cfg })
                        .unwrap()
                };
                let mut loaders: Vec<DataLoader> = (0..world_size).map(loader).collect();
                let mut batches = Vec::new();
                loop {
                    let parts: Vec<_> = loaders
                        .iter_mut()
                        .map(|l| l.next().map(|batch| rows(&batch.unwrap())).unwrap_or_default())
                        .collect();
                    if parts.iter().all(Vec::is_empty) {
                        return batches;
                    }
                    assert!(!drop_last || parts.iter().all(|part| part.len() == 8 / world_size), "{order:?}");
                    batches.push(parts.concat());
                }
            };
            let one = batches(1);
            assert!(one.len() > 2, "{order:?}");
            for world_size in [2, 4, 8] {
                assert!(batches(world_size) == one, "{order:?}, {world_size} ranks, drop_last {drop_last}");
            }
        }
    }
}

#[test]
fn resuming_anywhere_changes_nothing() {
    let (out, split) = uneven();
    let other = Dataset::from_ids(&(0..90).collect::<Vec<u32>>(), 0.0).unwrap().split("train").unwrap();
    for order in ORDERS {
        for mixed in [false, true] {
            let splits: Vec<(&Split, f64)> =
                if mixed { vec![(&split, 0.3), (&other, 0.7)] } else { vec![(&split, 1.0)] };
            if mixed && order == Order::BosAligned {
                continue; // `other` is one document: one row
            }
            let cfg = |world_size: usize, rank, prefetch| DataLoaderConfig {
                epochs: Some(2),
                documents: true,
                world_size,
                rank,
                prefetch,
                ..config(order, 4 / world_size, 8)
            };
            let mut whole = DataLoader::mixed(&splits, cfg(1, 0, 2)).unwrap();
            let (mut states, mut batches) = (vec![whole.state()], Vec::new());
            while let Some(batch) = whole.next() {
                batches.push(bits(&batch.unwrap()));
                states.push(whole.state());
            }
            assert!(batches.len() > 3, "{order:?}");
            for (at, state) in states.iter().enumerate() {
                let json = serde_json::to_string(state).unwrap();
                assert!(json.len() < 256, "{json}");
                let state: LoaderState = serde_json::from_str(&json).unwrap();
                for prefetch in [0, 3] {
                    let mut resumed = DataLoader::mixed(&splits, cfg(1, 0, prefetch)).unwrap();
                    resumed.load_state(&state).unwrap();
                    let rest: Vec<_> = resumed.map(|batch| bits(&batch.unwrap())).collect();
                    assert!(rest == batches[at..], "{order:?} from batch {at}");
                }
                // The same global batch with two ranks.
                let rank = |rank| {
                    let mut loader = DataLoader::mixed(&splits, cfg(2, rank, 1)).unwrap();
                    loader.load_state(&state).unwrap();
                    loader.map(|batch| rows(&batch.unwrap())).collect::<Vec<_>>()
                };
                let together: Vec<_> = rank(0).into_iter().zip(rank(1)).map(|(a, b)| [a, b].concat()).collect();
                let alone: Vec<Vec<(Vec<u32>, Vec<u32>)>> =
                    batches[at..].iter().map(|(x, y, _)| x.iter().cloned().zip(y.iter().cloned()).collect()).collect();
                assert!(together == alone, "{order:?} from batch {at} with two ranks");
            }
        }
    }
    // A state of something else is refused, and says what differs.
    let mut loader = DataLoader::new(&split, config(Order::Permuted, 4, 8)).unwrap();
    let state = loader.state();
    let mut refused = |state: LoaderState, expected: &str| {
        let before = loader.state();
        let error = loader.load_state(&state).unwrap_err();
        assert!(matches!(error, Error::LoaderState { .. }) && error.to_string().contains(expected), "{error}");
        assert_eq!(loader.state(), before);
    };
    refused(DataLoader::new(&other, config(Order::Permuted, 4, 8)).unwrap().state(), "the dataset is");
    refused(LoaderState { seed: 1, ..state.clone() }, "the seed is 1 in the state and 1337 here");
    refused(LoaderState { context_length: 9, ..state.clone() }, "the context length");
    refused(LoaderState { order: Order::Random, ..state.clone() }, "the order is Random");
    refused(LoaderState { samples: u64::MAX, ..state.clone() }, "more than any run has");
    refused(LoaderState { version: 2, ..state.clone() }, "the version");
    refused(
        LoaderState { epoch: 3, ..state.clone() },
        "0 samples are in epoch 0 of this data, and the state says epoch 3",
    );
    // One id of the data changed: another dataset.
    folder(out.path(), &numbered(&[&[50, 3, 1, 70, 20], &[9], &[200, 31, 5, 5, 5, 64, 3]]));
    let changed = Dataset::open(out.path()).unwrap().split("train").unwrap();
    let mut loader = DataLoader::new(&changed, config(Order::Permuted, 4, 8)).unwrap();
    assert!(loader.load_state(&state).is_err());
}

/// Documents as a plain program finds them: the ids between separators.
#[test]
fn packed_rows_hold_every_document_and_nothing_crosses() {
    let (_out, split) = uneven();
    let context = 40;
    let cfg = DataLoaderConfig { drop_last: false, documents: true, ..config(Order::Packed, 3, context) };
    let loader = DataLoader::new(&split, cfg).unwrap();
    let (mut pairs, mut slots, mut used) = (BTreeMap::new(), 0, 0);
    for batch in loader {
        let batch = batch.unwrap();
        let documents = batch.documents.as_ref().unwrap();
        let ids: Vec<Vec<u32>> = documents.ids.to_vec2().unwrap();
        let positions: Vec<Vec<u32>> = documents.positions.to_vec2().unwrap();
        let mask: Vec<Vec<u8>> = documents.loss_mask.to_vec2().unwrap();
        let lengths: Vec<u32> = documents.cumulative_lengths.to_vec1().unwrap();
        assert_eq!((lengths[0], *lengths.last().unwrap() as usize), (0, ids.len() * context));
        let longest = lengths.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert_eq!(longest as usize, documents.longest);
        for (row, (inputs, targets)) in rows(&batch).into_iter().enumerate() {
            for t in 0..context {
                slots += 1;
                let flat = (row * context + t) as u32;
                let starts = lengths.contains(&flat);
                assert_eq!(starts, positions[row][t] == 0, "row {row}, {t}");
                assert_eq!(starts, t == 0 || ids[row][t] != ids[row][t - 1]);
                if inputs[t] == NO_TOKEN {
                    assert_eq!((targets[t], mask[row][t]), (NO_TOKEN, 0));
                    continue;
                }
                used += 1;
                assert_eq!(mask[row][t], 1, "no target of another document");
                // In one document ids follow one another; the last target is the separator.
                assert!(targets[t] == inputs[t] + 1 || targets[t] == 0);
                assert!(pairs.insert(inputs[t], targets[t]).is_none(), "id {} came twice", inputs[t]);
                if t > 0 && ids[row][t] == ids[row][t - 1] {
                    assert_eq!(inputs[t], inputs[t - 1] + 1);
                    assert_eq!(positions[row][t], positions[row][t - 1] + 1);
                }
            }
        }
    }
    // Every id of the corpus was an input once, and each has the right target.
    let lengths = [50, 3, 1, 70, 20, 9, 200, 31, 5, 5, 5, 64, 2];
    assert_eq!(pairs.len() as u32, lengths.iter().sum::<u32>());
    let mut end = 0;
    for length in lengths {
        end += length;
        assert_eq!(pairs[&end], 0, "the last id of a document");
    }
    assert_eq!(used, pairs.len());
    assert!(slots - used < context, "best fit leaves less than a row: {} of {slots}", slots - used);
}

#[test]
fn aligned_rows_begin_with_documents() {
    let (_out, split) = uneven();
    let cfg = DataLoaderConfig { drop_last: false, ..config(Order::BosAligned, 1, 40) };
    let mut starts: Vec<u32> = all(DataLoader::new(&split, cfg).unwrap()).iter().map(|(x, _)| x[0]).collect();
    starts.sort();
    // By hand. Shard 0: documents of 51, 4, 2, 71, 21 ids begin at 0, 51, 55, 57, 128 (ids 1, 51, 54, 55, 125): rows of 40 + 1 at
    // 0, 51, 128 does not fit (149 ids). Shard 2: documents of 201, 32, 6, 6, 6, 65, 3 ids begin at 0, 201, 233, 239, 245, 251, 316
    // (first ids 154, 354, 385, ...): rows at 0, 201, 245 (the first after 241).
    assert_eq!(starts, [1, 51, 154, 354, 395]);
}

#[test]
fn windows_know_their_documents() {
    let (_out, split) = uneven();
    for order in [Order::Sequential, Order::Permuted, Order::Random, Order::BosAligned] {
        let cfg = DataLoaderConfig { documents: true, ..config(order, 2, 30) };
        let mut crossings = 0;
        for batch in DataLoader::new(&split, cfg).unwrap() {
            let batch = batch.unwrap();
            let documents = batch.documents.as_ref().unwrap();
            let ids: Vec<Vec<u32>> = documents.ids.to_vec2().unwrap();
            let positions: Vec<Vec<u32>> = documents.positions.to_vec2().unwrap();
            let mask: Vec<Vec<u8>> = documents.loss_mask.to_vec2().unwrap();
            let lengths: Vec<u32> = documents.cumulative_lengths.to_vec1().unwrap();
            let mut expected_lengths = vec![];
            for (row, (inputs, _)) in rows(&batch).into_iter().enumerate() {
                // A separator (0) ends its document.
                let (mut document, mut position) = (0, 0);
                for t in 0..30 {
                    if position == 0 {
                        expected_lengths.push((row * 30 + t) as u32);
                    }
                    assert_eq!((ids[row][t], positions[row][t]), (document, position), "{order:?}");
                    assert_eq!(mask[row][t], u8::from(inputs[t] != 0), "{order:?}");
                    position += 1;
                    if inputs[t] == 0 {
                        (document, position) = (document + 1, 0);
                        crossings += 1;
                    }
                }
            }
            expected_lengths.push(60);
            assert_eq!(lengths, expected_lengths, "{order:?}");
        }
        assert!(crossings > 2, "{order:?}");
    }
}

/// nanoGPT's order is without bias, and so are pairs of windows in a permuted one; seeds are fixed.
#[test]
fn orders_have_no_favourites() {
    let dataset = Dataset::from_ids(&(0..521).collect::<Vec<u32>>(), 0.0).unwrap();
    let split = dataset.split("train").unwrap();
    let chi_square = |counts: &[f64]| {
        let expected = counts.iter().sum::<f64>() / counts.len() as f64;
        counts.iter().map(|count| (count - expected).powi(2) / expected).sum::<f64>()
    };
    let cfg = DataLoaderConfig { epochs: Some(400), ..config(Order::Random, 13, 8) };
    let mut counts = vec![0.0; 513];
    all(DataLoader::new(&split, cfg).unwrap()).iter().for_each(|(inputs, _)| counts[inputs[0] as usize] += 1.0);
    let found = chi_square(&counts); // 512 degrees of freedom: 32 is one standard deviation
    assert!((352.0..672.0).contains(&found), "chi-square {found}");
    // Where a window comes in an epoch: 65 windows in 5 fifths, 800 epochs.
    let cfg = DataLoaderConfig { epochs: Some(800), ..config(Order::Permuted, 13, 8) };
    let mut counts = vec![0.0; 65 * 5];
    for epoch in all(DataLoader::new(&split, cfg).unwrap()).chunks(65) {
        for (place, (inputs, _)) in epoch.iter().enumerate() {
            counts[(inputs[0] / 8).min(64) as usize * 5 + place / 13] += 1.0;
        }
    }
    let found = chi_square(&counts); // 256 degrees of freedom: 23 is one standard deviation
    assert!((140.0..380.0).contains(&found), "chi-square {found}");
}

#[test]
fn mixtures_hold_their_weights() {
    let split = |from: u32| {
        let ids: Vec<u32> = (from..from + 4001).collect();
        Dataset::from_ids(&ids, 0.0).unwrap().split("train").unwrap()
    };
    let (a, b, c) = (split(0), split(10_000), split(20_000));
    let cfg = DataLoaderConfig { epochs: None, ..config(Order::Permuted, 16, 4) };
    let loader = DataLoader::mixed(&[(&a, 5.0), (&b, 3.0), (&c, 2.0)], cfg.clone()).unwrap();
    let rows: Vec<u32> = loader.take(4096).flat_map(|batch| rows(&batch.unwrap())).map(|(x, _)| x[0]).collect();
    for (from, weight) in [(0, 0.5), (10_000, 0.3), (20_000, 0.2)] {
        let of = |rows: &[u32]| rows.iter().filter(|id| (from..from + 10_000).contains(*id)).count() as f64;
        assert!((of(&rows) - weight * 65536.0).abs() <= 1.0, "65536 samples are exact: {}", of(&rows));
        let early = of(&rows[..6000]);
        assert!((early - weight * 6000.0).abs() < 150.0, "{early} of the first 6000"); // four standard deviations
        // Each source goes through its own epochs: its first 1000 samples are all its windows.
        let mut mine: Vec<u32> =
            rows.iter().copied().filter(|id| (from..from + 10_000).contains(id)).take(1000).collect();
        mine.sort();
        mine.dedup();
        assert_eq!(mine.len(), 1000);
    }
    for weights in [[1.0, 0.0], [1.0, -1.0], [1.0, f64::NAN], [f64::INFINITY, 1.0]] {
        assert!(DataLoader::mixed(&[(&a, weights[0]), (&b, weights[1])], cfg.clone()).is_err());
    }
    let tiny = DataLoader::mixed(&[(&a, 1.0), (&b, 1e-12)], cfg).unwrap();
    let ids =
        tiny.take(4096).flat_map(|batch| super::loader::rows(&batch.unwrap())).filter(|(x, _)| x[0] >= 10_000).count();
    assert_eq!(ids, 1, "even the smallest weight has one of 65536 samples");
}

#[test]
fn both_ways_to_read_and_both_widths_agree() {
    let out = tempfile::tempdir().unwrap();
    folder(out.path(), &numbered(&[&[500, 3, 100], &[70]]));
    let map = Dataset::open(out.path()).unwrap().split("train").unwrap();
    let pread = Dataset::open_with(out.path(), Io::Pread).unwrap().split("train").unwrap();
    for order in ORDERS {
        let cfg = DataLoaderConfig { documents: true, ..config(order, 2, 16) };
        let read = |split| DataLoader::new(split, cfg.clone()).unwrap().map(|b| bits(&b.unwrap())).collect::<Vec<_>>();
        assert!(!read(&map).is_empty() && read(&map) == read(&pread), "{order:?}");
    }
    // The same ids as u16.
    let ids: Vec<u32> = (0..2)
        .flat_map(|shard| {
            let mut ids = vec![0; map.shards()[shard].tokens() as usize];
            map.shards()[shard].read(0, &mut ids).unwrap();
            ids
        })
        .collect();
    let small = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(small.path().join("x"), IdType::U16).unwrap();
    writer.push(&ids).unwrap();
    assert!(writer.push(&[65_536]).unwrap_err().to_string().contains("id 65536 does not fit into 16 bits"));
    let info = writer.finish().unwrap();
    for io in [Io::Map, Io::Pread] {
        let shard = tallow::shard::Shard::open(small.path().join("x"), &info, IdType::U16, io).unwrap();
        for (start, len) in [(0, ids.len()), (1, 7), (ids.len() - 1, 1), (5, 0)] {
            let mut found = vec![0; len];
            shard.read(start as u64, &mut found).unwrap();
            assert_eq!(found, ids[start..start + len]);
        }
        assert!(matches!(shard.read(ids.len() as u64, &mut [0]), Err(tallow::TextError::Config(_))));
        assert!(matches!(shard.read(u64::MAX, &mut [0]), Err(tallow::TextError::Config(_))));
    }
}

#[test]
fn torn_swapped_and_foreign_files_are_named() {
    let out = tempfile::tempdir().unwrap();
    let path = |name: &str| out.path().join(name);
    let fresh = || folder(out.path(), &numbered(&[&[50, 3], &[40]]));
    let open = || Dataset::open(out.path()).map(|_| ());
    let refused = |file: &str, expected: &str| {
        let error = open().unwrap_err().to_string();
        assert!(error.contains(file) && error.contains(expected), "{error}");
        fresh();
        open().unwrap();
    };
    fresh();
    let bin = std::fs::read(path("train/000000.bin")).unwrap();
    let idx = std::fs::read(path("train/000000.idx")).unwrap();
    std::fs::write(path("train/000000.bin"), &bin[..bin.len() - 4]).unwrap();
    refused("000000.bin", "it is torn or another file");
    std::fs::remove_file(path("train/000001.bin")).unwrap();
    refused("000001.bin", "No such file");
    std::fs::write(path("train/000000.idx"), &idx[..idx.len() - 1]).unwrap();
    refused("000000.idx", "the header promises");
    std::fs::write(path("train/000000.idx"), &idx[..20]).unwrap();
    refused("000000.idx", "does not begin with MMIDIDX");
    std::fs::write(path("train/000000.idx"), b"hello").unwrap();
    refused("000000.idx", "does not begin with MMIDIDX");
    for (at, byte, expected) in [
        (9, 2, "version 2"),
        (17, 5, "type code 5"),
        (25, 0xFF, "the header promises"),
        (33, 0xFF, "the header promises"),
    ] {
        let mut changed = idx.clone();
        changed[at] = byte;
        std::fs::write(path("train/000000.idx"), changed).unwrap();
        refused("000000.idx", expected);
    }
    std::fs::copy(path("train/000001.idx"), path("train/000000.idx")).unwrap();
    refused("000000.idx", "it describes 1 documents");
    let manifest = std::fs::read_to_string(path("manifest.json")).unwrap();
    for (from, to, expected) in [
        ("tallow-shards", "other", "format \"other\""),
        ("\"version\":1", "\"version\":9", "version 9"),
        ("\"000000\"", "\"../000000\"", "not the name of a split or shard"),
        ("\"train\":{", "\"..\":{", "not the name of a split or shard"),
        ("\"table_rows\":", "\"table_rows\":99999999", "are accepted"),
        ("\"tokens\":55", "\"tokens\":5555555555555555555", "000000.bin"),
        ("{", "[", "not a manifest"),
    ] {
        assert!(manifest.contains(from), "{from}");
        std::fs::write(path("manifest.json"), manifest.replacen(from, to, 1)).unwrap();
        refused("", expected);
    }
    std::fs::remove_file(path("manifest.json")).unwrap();
    refused("manifest.json", "No such file");

    // Changed content of the right length: `verify` finds it; the loader finds ids beyond the manifest's.
    let (same_length, mut other) = (bin.clone(), bin.clone());
    other[8..12].copy_from_slice(&5u32.to_le_bytes());
    std::fs::write(path("train/000000.bin"), &other).unwrap();
    let findings = tallow::shard::verify(out.path(), &|_, _| ()).unwrap();
    assert!(findings.len() == 1 && findings[0].contains("000000.bin: CRC-32"), "{findings:?}");
    other[8..12].copy_from_slice(&1_000_000u32.to_le_bytes());
    std::fs::write(path("train/000000.bin"), &other).unwrap();
    for io in [Io::Map, Io::Pread] {
        let split = Dataset::open_with(out.path(), io).unwrap().split("train").unwrap();
        let error = DataLoader::new(&split, config(Order::Sequential, 1, 8)).unwrap().next().unwrap().unwrap_err();
        assert!(error.to_string().contains("id 1000000 at position 2 is larger"), "{error}");
    }
    std::fs::write(path("train/000000.bin"), same_length).unwrap();
    // An index that lies about its documents leads to no panic, and `verify` finds it.
    for at in 34..idx.len() {
        let mut changed = idx.clone();
        changed[at] ^= 0xFF;
        std::fs::write(path("train/000000.idx"), changed).unwrap();
        let split = Dataset::open(out.path()).unwrap().split("train").unwrap();
        for order in ORDERS {
            let cfg = DataLoaderConfig { documents: true, ..config(order, 2, 8) };
            if let Ok(loader) = DataLoader::new(&split, cfg) {
                loader.for_each(drop);
            }
        }
        assert_eq!(tallow::shard::verify(out.path(), &|_, _| ()).unwrap().len(), 1);
    }
    fresh();
    // A file that shrinks while it is open is an error where it is read with pread.
    let split = Dataset::open_with(out.path(), Io::Pread).unwrap().split("train").unwrap();
    let mut loader = DataLoader::new(&split, config(Order::Sequential, 1, 8)).unwrap();
    loader.next().unwrap().unwrap();
    std::fs::write(path("train/000000.bin"), &bin[..16]).unwrap();
    let error = loader.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("000000.bin: it became shorter"), "{error}");
    assert!(loader.next().is_none(), "nothing follows an error");
    assert_eq!(loader.state().samples, 1, "the batch that failed was not given out");
    std::fs::write(path("train/000000.bin"), &bin).unwrap();
    loader.load_state(&loader.state()).unwrap();
    assert!(loader.next().unwrap().is_ok(), "and it can be tried again");
}

#[test]
fn the_lesson_in_memory() {
    let ids: Vec<u32> = (0..1000).collect();
    let dataset = Dataset::from_ids(&ids, 0.1).unwrap();
    let (train, val) = (dataset.split("train").unwrap(), dataset.split("val").unwrap());
    assert_eq!((train.tokens(), val.tokens(), train.id_bound(), val.id_bound()), (900, 100, 900, 1000));
    assert!(dataset.split("test").err().unwrap().to_string().contains("only train, val"));
    let mut loader = DataLoader::new(&train, DataLoaderConfig { epochs: None, ..Default::default() }).unwrap();
    let batch = loader.nth(1000).unwrap().unwrap();
    assert_eq!((batch.inputs.dims(), batch.inputs.dtype()), (&[4, 16][..], DType::U32));
    assert_eq!(
        (batch.id_bound, batch.epoch),
        (900, loader.state().samples.saturating_sub(4) / loader.samples_per_epoch())
    );
    assert!(batch.inputs.is_contiguous() && batch.targets.is_contiguous());
    // Nothing to make a sample of.
    for (cfg, expected) in [
        (config(Order::Permuted, 1, 900), "has no sample of 900 + 1 ids"),
        (config(Order::Permuted, 0, 8), "a batch of 0 x 8"),
        (config(Order::Permuted, 8, 0), "a batch of 8 x 0"),
        (config(Order::Permuted, usize::MAX, 2), "is too large"),
        (config(Order::Permuted, 1 << 20, 1 << 20), "is too large"),
        (DataLoaderConfig { rank: 3, world_size: 3, ..config(Order::Permuted, 1, 8) }, "rank 3 of 3"),
        // No batch at all: 3 windows of 250, or 12 over 4 epochs, for batches of 8 or 16.
        (config(Order::Permuted, 8, 250), "no batch: 1 epochs of 3 samples are fewer than the 8"),
        (DataLoaderConfig { epochs: Some(4), ..config(Order::Permuted, 16, 250) }, "4 epochs of 3 samples"),
        (DataLoaderConfig { world_size: 4, ..config(Order::Permuted, 1, 250) }, "fewer than the 4 of a global batch"),
        (DataLoaderConfig { epochs: Some(0), drop_last: false, ..config(Order::Permuted, 1, 8) }, "0 epochs"),
    ] {
        let error = DataLoader::new(&train, cfg).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
    for cfg in [
        DataLoaderConfig { drop_last: false, ..config(Order::Permuted, 8, 250) },
        DataLoaderConfig { epochs: Some(3), ..config(Order::Permuted, 8, 250) },
        DataLoaderConfig { epochs: None, ..config(Order::Permuted, 8, 250) },
    ] {
        assert!(DataLoader::new(&train, cfg).unwrap().next().is_some());
    }
    assert_eq!(all(DataLoader::new(&train, config(Order::Permuted, 1, 899)).unwrap()).len(), 1);
    let empty = Dataset::from_ids(&[], 0.1).unwrap().split("train").unwrap();
    for order in ORDERS {
        assert!(DataLoader::new(&empty, config(order, 1, 8)).is_err(), "{order:?}");
    }
    assert!(Dataset::from_ids(&ids, 1.5).is_err());
}

#[test]
fn an_id_bound_frees_the_guard_and_guards_without_it() {
    use candle_nn::{VarBuilder, VarMap};
    use tallow::{TokenEmbedding, TokenEmbeddingConfig};
    let dataset = Dataset::from_ids(&(0..100).collect::<Vec<u32>>(), 0.0).unwrap();
    let mut loader = DataLoader::new(&dataset.split("train").unwrap(), Default::default()).unwrap();
    let batch = loader.next().unwrap().unwrap();
    let table = |rows| {
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
        let cfg = TokenEmbeddingConfig { vocab_size: rows, d_model: 8, ..Default::default() };
        TokenEmbedding::new(&cfg, vb).unwrap()
    };
    let x = table(100).lookup_below(&batch.inputs, batch.id_bound).unwrap();
    assert_eq!(x.dims(), [4, 16, 8]);
    // An id that breaks the promise: with the promise nothing says where it is, because nobody looked; without it, the guard does.
    let broken = candle_core::Tensor::new(&[[5u32, 100]], &Device::Cpu).unwrap();
    let unguarded = table(100).lookup_below(&broken, 100).unwrap_err();
    assert!(matches!(unguarded, Error::Candle(_)), "the guard ran where it was promised to be free: {unguarded}");
    let guarded = table(100).lookup_below(&broken, 101).unwrap_err();
    assert!(matches!(guarded, Error::IdOutOfRange { id: 100, ref position, .. } if position == &[0, 1]), "{guarded}");
    let error = table(3).lookup_below(&batch.inputs, batch.id_bound).unwrap_err();
    assert!(matches!(error, Error::IdOutOfRange { .. }), "the table is too small: {error}");
}

/// More shards than a process may have open files: they are opened when they are read, and each of their ids comes.
#[test]
fn a_thousand_shards_open() {
    let out = tempfile::tempdir().unwrap();
    let shards: Vec<Vec<Vec<u32>>> = (0..1000).map(|i| vec![vec![3 * i + 1, 3 * i + 2, 3 * i + 3]]).collect();
    folder(out.path(), &shards);
    let split = Dataset::open(out.path()).unwrap().split("train").unwrap();
    let loader = DataLoader::new(&split, config(Order::Permuted, 10, 3)).unwrap();
    let mut ids: Vec<u32> = all(loader).into_iter().flat_map(|(inputs, _)| inputs).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=3000).collect::<Vec<u32>>());
}

/// A document that units cut into several shards is one row, and begins it.
#[test]
fn a_document_that_was_cut_between_shards_begins_one_row() {
    use tallow::prepare::{PrepareConfig, prepare};
    let folder = tempfile::tempdir().unwrap();
    let (input, out) = (folder.path().join("long.txt"), folder.path().join("tokens"));
    std::fs::write(&input, "one two three four five\n\n".repeat(4000)).unwrap();
    let cfg = PrepareConfig { inputs: vec![input], out: out.clone(), unit_bytes: Some(20_000), ..Default::default() };
    let manifest = prepare(&tallow::Tokenizer::cl100k(), &cfg, &|_| ()).unwrap().unwrap();
    assert!(manifest.splits["train"].shards.len() > 1);
    let split = Dataset::open(&out).unwrap().split("train").unwrap();
    let cfg = DataLoaderConfig { order: Order::BosAligned, batch_size: 1, ..Default::default() };
    assert_eq!(DataLoader::new(&split, cfg).unwrap().samples_per_epoch(), 1);
}
