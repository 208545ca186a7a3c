//! The inner loops of a push and a restore, without files, server or threads: `cargo bench --bench core`.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use openclaw_b2_backup::repository::chunk::{ChunkSizes, Chunker};
use openclaw_b2_backup::repository::index::PackEntry;
use openclaw_b2_backup::repository::pack::{Compressor, FrameBuilder, PackBuilder, PackOpener};
use openclaw_b2_backup::repository::seal::MasterKey;
use openclaw_b2_backup::repository::tree::{Content, Entries, Entry, Kind};

/// Bytes of each input.
const SIZE: usize = 8 << 20;

/// Lines of JSON as transcripts have them: they compress to about a third, and none is like another.
fn transcript() -> Vec<u8> {
    let words = ["the", "agent", "remembers", "what", "its", "owner", "said", "yesterday", "about", "a", "journey"];
    let (mut text, mut state) = (Vec::with_capacity(SIZE + 1024), 1_u64);
    let mut random = || {
        // A linear congruential generator with Knuth's constants (MMIX).
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    while text.len() < SIZE {
        text.extend_from_slice(format!("{{\"id\":\"{:08x}\",\"role\":\"user\",\"text\":\"", random()).as_bytes());
        for _ in 0..20 + random() % 60 {
            text.extend_from_slice(words[random() % words.len()].as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(b"\"}\n");
    }
    text.truncate(SIZE);
    text
}

fn pack_of(key: &MasterKey, content: &[u8]) -> (PackEntry, Vec<u8>) {
    let (hasher, mut compressor) = (key.chunk_hasher(), Compressor::new().unwrap());
    let (mut frame, mut pack) = (FrameBuilder::default(), PackBuilder::new(key).unwrap());
    for chunk in content.chunks(8 << 10) {
        frame.add(hasher.id(chunk), chunk);
        if frame.is_full() {
            pack.append(frame.finish(&mut compressor).unwrap());
        }
    }
    if !frame.is_empty() {
        pack.append(frame.finish(&mut compressor).unwrap());
    }
    pack.finish()
}

fn bytes(criterion: &mut Criterion) {
    let (content, key) = (transcript(), MasterKey::generate().unwrap());
    let mut group = criterion.benchmark_group("bytes");
    group.throughput(Throughput::Bytes(SIZE as u64));
    let chunker = Chunker::new(key.gear());
    let mut buffer = Vec::new();
    for (name, sizes) in [
        ("cut by content", ChunkSizes::for_size(SIZE as u64)),
        ("cut at pages", ChunkSizes::for_database(SIZE as u64, 4096)),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut chunks = 0;
                chunker
                    .split(&mut &*content, sizes, &mut buffer, |chunk| {
                        chunks += usize::from(!black_box(chunk).is_empty());
                        Ok::<_, std::io::Error>(())
                    })
                    .unwrap();
                chunks
            });
        });
    }
    let hasher = key.chunk_hasher();
    group.bench_function("name chunks", |bencher| {
        bencher.iter(|| content.chunks(8 << 10).map(|chunk| hasher.id(chunk).0[0]).fold(0, u8::wrapping_add));
    });
    group.bench_function("compress, seal and pack", |bencher| bencher.iter(|| pack_of(&key, &content).1.len()));
    let (entry, pack) = pack_of(&key, &content);
    group.bench_function("open, decompress and check", |bencher| {
        bencher.iter(|| {
            let mut opener = PackOpener::new(entry.id, &entry.header, |_, _| Ok(&key)).unwrap();
            let mut sound = 0;
            for (number, place) in entry.frames.iter().enumerate() {
                let start = place.offset as usize;
                let mut sealed = pack[start..start + place.length as usize].to_vec();
                let frame = opener.frame(number as u64, &mut sealed).unwrap();
                for (chunk, id) in place.chunk_ids().enumerate() {
                    sound += frame.chunk(chunk, id).unwrap().len();
                }
            }
            assert_eq!(sound, SIZE);
        });
    });
    group.finish();
}

fn tree(criterion: &mut Criterion) {
    const FILES: usize = 20_000;
    let hasher = MasterKey::PLAIN.chunk_hasher();
    let entries: Vec<Entry> = (0..FILES)
        .map(|number| {
            let chunks = (0..12_u8).map(|chunk| hasher.id(&[number as u8, (number >> 8) as u8, chunk])).collect();
            let content = Content { size: 90_000, sha256: [number as u8; 32], chunks };
            Entry::new(format!("agents/main/sessions/{number:08}.jsonl"), Kind::File, 0o600, 1 << 60)
                .with_content(&content)
        })
        .collect();
    let write = || {
        let mut stream = Vec::new();
        for entry in &entries {
            entry.write(&mut stream);
        }
        stream
    };
    let stream = write();
    let mut group = criterion.benchmark_group("tree of 20,000 files");
    group.throughput(Throughput::Elements(FILES as u64));
    group.bench_function("write", |bencher| bencher.iter(write));
    group.bench_function("read", |bencher| {
        bencher.iter(|| assert_eq!(Entries::new(&stream).map(Result::unwrap).count(), FILES));
    });
    group.finish();
}

criterion_group!(benches, bytes, tree);
criterion_main!(benches);
