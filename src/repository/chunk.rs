//! Content-defined chunks: FastCDC (Xia et al., "FastCDC", USENIX ATC 2016; the 2020 variant with two bytes a step).
//!
//! Chunks are the unit of deduplication. Their ends depend on the content around them, so that an insertion changes the
//! chunks it touches and no other. A copy of a SQLite database only ever moves and changes by pages: its pages are its chunks.

use std::io::{self, Read};

use fastcdc::v2020::{Normalization, cut_gear, select_masks};

use super::pages;

/// Smallest, average and largest chunk, in bytes. All even, as the algorithm demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSizes {
    min: usize,
    average: usize,
    max: usize,
}

/// The largest chunk that any class makes; readers refuse more.
pub const MAX_CHUNK: usize = 2 << 20;

impl ChunkSizes {
    /// For file trees. They consist of ids of 16 bytes, which do not compress, and a push changes some of them all over: with 8 KiB
    /// on average, 20 turns of a gateway whose database has 14,000 pages made 216 of 231 KB of its tree new, with these 45.
    pub const TREE: Self = Self { min: 128, average: 512, max: 4 << 10 };
    const SMALL: Self = Self { min: 2 << 10, average: 8 << 10, max: 64 << 10 };
    const MEDIUM: Self = Self { min: 16 << 10, average: 64 << 10, max: 256 << 10 };
    const LARGE: Self = Self { min: 128 << 10, average: 512 << 10, max: MAX_CHUNK };

    /// The class for content of about `size` bytes: 8 KiB on average finds an appended line or a changed database page
    /// cheaply; beyond some hundred megabytes the index and the tree, which grow with the number of chunks, weigh more.
    #[must_use]
    pub const fn for_size(size: u64) -> Self {
        match size {
            0..0x1000_0000 => Self::SMALL,            // below 256 MiB
            0x1000_0000..0x8000_0000 => Self::MEDIUM, // below 2 GiB
            _ => Self::LARGE,
        }
    }

    /// The class for a SQLite database of about `size` bytes with pages of `page` bytes: one chunk for each, where pages are
    /// neither so small nor the database so large that the index would weigh more than what is saved. See `pages.rs` for what
    /// keeps a page that has moved the same chunk.
    ///
    /// Changes of a database are scattered over it, so that chunks with ends of their own take several pages along with each
    /// that changed: after 20 turns in a real gateway 39 of 412 pages of the shared database were new, and 1,152,807 of its
    /// 1,687,552 bytes lay in new chunks of 8 KiB on average.
    #[must_use]
    pub fn for_database(size: u64, page: u32) -> Self {
        let sizes = Self::for_size(size);
        if sizes != Self::SMALL || !pages::is_size(page) {
            return sizes;
        }
        let page = page as usize;
        Self { min: page, average: page, max: page }
    }

    /// Whether each chunk, but the last, has so many bytes.
    #[must_use]
    pub const fn are_pages(self, page: u32) -> bool {
        self.min == self.max && self.max == page as usize
    }
}

/// Splits content into chunks with one repository's own boundaries.
#[derive(Debug, Clone)]
pub struct Chunker {
    gear: Box<[u64; 256]>,
    gear_shifted: Box<[u64; 256]>,
}

impl Chunker {
    /// A chunker that cuts by `gear`, see [`MasterKey::gear`](super::seal::MasterKey::gear).
    #[must_use]
    pub fn new(gear: Box<[u64; 256]>) -> Self {
        let gear_shifted = Box::new(gear.map(|value| value << 1));
        Self { gear, gear_shifted }
    }

    /// The length of the first chunk of `window`, which holds the rest of the content or at least `sizes.max` bytes of it.
    fn first(&self, window: &[u8], sizes: ChunkSizes) -> usize {
        if sizes.min == sizes.max {
            return sizes.max.min(window.len());
        }
        let (mask_small, mask_large) = select_masks(sizes.average, Normalization::Level1);
        let (_, length) = cut_gear(
            window,
            sizes.min,
            sizes.average,
            sizes.max,
            mask_small,
            mask_large,
            mask_small << 1,
            mask_large << 1,
            self.gear.as_slice(),
            self.gear_shifted.as_slice(),
        );
        length
    }

    /// Reads `source` to its end and hands each chunk to `sink`, in order. `buffer` is reused between calls; it holds
    /// at most twice the largest chunk.
    ///
    /// # Errors
    /// The first error of the source or the sink.
    pub fn split<E: From<io::Error>>(
        &self,
        source: &mut dyn Read,
        sizes: ChunkSizes,
        buffer: &mut Vec<u8>,
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let capacity = (sizes.max * 2).max(256 << 10);
        if buffer.len() < capacity {
            buffer.resize(capacity, 0);
        }
        let (mut start, mut end, mut finished) = (0, 0, false);
        loop {
            if !finished && end - start < sizes.max {
                buffer.copy_within(start..end, 0);
                (start, end) = (0, end - start);
                while end < capacity && !finished {
                    match source.read(&mut buffer[end..capacity]) {
                        Ok(0) => finished = true,
                        Ok(count) => end += count,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            if start == end {
                return Ok(());
            }
            let length = self.first(&buffer[start..end], sizes);
            sink(&buffer[start..start + length])?;
            start += length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::id::MasterKeyId;
    use super::super::seal::MasterKey;
    use super::*;
    use proptest::prelude::*;

    fn chunks(content: &[u8]) -> Vec<Vec<u8>> {
        let mut chunks = Vec::new();
        Chunker::new(MasterKey::plain().gear())
            .split(&mut &*content, ChunkSizes::SMALL, &mut Vec::new(), |chunk| {
                chunks.push(chunk.to_vec());
                Ok::<_, io::Error>(())
            })
            .unwrap();
        chunks
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    /// Computed by the second implementation in Python that `docs/format.md` describes. Other answers would still be read
    /// by everybody, but would share no chunk with what is stored.
    #[test]
    fn boundaries_are_the_known_answers() {
        let lengths = |key: &MasterKey, content: &[u8], sizes| {
            let mut lengths = Vec::new();
            Chunker::new(key.gear())
                .split(&mut &*content, sizes, &mut Vec::new(), |chunk| {
                    lengths.push(chunk.len());
                    Ok::<_, io::Error>(())
                })
                .unwrap();
            lengths
        };
        let key = MasterKey::from_parts(MasterKeyId([0x11; 16]), [0x22; 32]);
        let known = [6407, 16457, 8333, 3941, 15796, 11369, 3595, 9749, 9434, 10292, 4628];
        assert_eq!(lengths(&MasterKey::plain(), &noise(100_001), ChunkSizes::SMALL), known);
        let known = [9158, 14422, 16024, 9476, 10232, 2457, 10241, 8967, 5174, 8194, 4955, 701];
        assert_eq!(lengths(&key, &noise(100_001), ChunkSizes::SMALL), known);
        assert_eq!(lengths(&key, &vec![0; 150_001], ChunkSizes::SMALL), [65536, 65536, 18929]);
        let known = [
            382, 694, 1075, 929, 224, 333, 1077, 309, 702, 524, 1454, 778, 519, 368, 983, 825, 1135, 1269, 826, 614,
            633, 1045, 877, 1006, 546, 235, 639,
        ];
        assert_eq!(lengths(&key, &noise(20_001), ChunkSizes::TREE), known);
        let known = [86151, 50742, 111_224, 49428, 34600, 74592];
        assert_eq!(lengths(&key, &noise(4_000_001), ChunkSizes::MEDIUM)[..6], known);
        let known = [136_893, 526_269, 609_285, 300_884, 787_130, 327_375, 276_716, 788_199, 247_250];
        assert_eq!(lengths(&key, &noise(4_000_001), ChunkSizes::LARGE), known);
    }

    #[test]
    fn an_insertion_changes_only_the_chunks_around_it() {
        let before = noise(1 << 20);
        let mut after = before.clone();
        after.splice(500_000..500_000, b"a few new words".iter().copied());
        let known: std::collections::HashSet<_> = chunks(&before).into_iter().collect();
        let new = chunks(&after).into_iter().filter(|chunk| !known.contains(chunk)).count();
        assert!((1..=3).contains(&new), "{new} new chunks");
    }

    #[test]
    fn chunks_are_eight_kilobytes_on_average() {
        let count = chunks(&noise(4 << 20)).len();
        assert!((350..=700).contains(&count), "{count} chunks of 4 MiB");
    }

    proptest! {
        #[test]
        fn chunks_put_together_are_the_content(length in 0usize..400_000, reads in 1usize..70_000) {
            struct Dribble<'a>(&'a [u8], usize);
            impl Read for Dribble<'_> {
                fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                    let limit = buffer.len().min(self.1);
                    self.0.read(&mut buffer[..limit])
                }
            }
            let content = noise(length);
            let mut joined = Vec::new();
            let mut lengths = Vec::new();
            Chunker::new(MasterKey::plain().gear())
                .split(&mut Dribble(&content, reads), ChunkSizes::SMALL, &mut Vec::new(), |chunk| {
                    joined.extend_from_slice(chunk);
                    lengths.push(chunk.len());
                    Ok::<_, io::Error>(())
                })
                .unwrap();
            prop_assert_eq!(&joined, &content);
            prop_assert_eq!(lengths, chunks(&content).iter().map(Vec::len).collect::<Vec<_>>());
            prop_assert!(chunks(&content).iter().all(|chunk| !chunk.is_empty() && chunk.len() <= ChunkSizes::SMALL.max));
        }
    }
}
