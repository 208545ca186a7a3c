//! `verify`: checks that every snapshot can be restored, by what the store lists or by reading every stored byte.

use std::collections::HashSet;
use std::sync::Arc;

use super::list::{Summaries, summaries};
use super::workplace::cache_for_reading;
use super::{Meter, Operation, VerifyOptions, VerifyReport};
use crate::config::Target;
use crate::error::{Code, Error, Result};
use crate::repository::id::ChunkId;
use crate::repository::index::{Index, PackEntry};
use crate::repository::open::{IfMissing, Repository};
use crate::repository::pack::{MAX_PACK, pack_key};
use crate::task::{blocking, in_parallel};

/// Packs read at once; each is held in memory whole.
const PARALLEL_PACKS: usize = 3;

/// Checks the repository.
///
/// # Errors
/// Those of [`Repository::open`] and of the store, `CANCELLED`. What is wrong with the repository itself is in the
/// report, not an error.
pub async fn verify(target: &Target, options: VerifyOptions, operation: &Operation) -> Result<VerifyReport> {
    // Nothing is taken from the cache: what counts is what the store has.
    let cache = if options.read_data { None } else { cache_for_reading(target).await };
    let mut repository = Repository::open(target, cache, IfMissing::ReadAsEmpty, operation).await?;
    let mut report = VerifyReport::default();
    let index = Arc::new(repository.load_index().await?);
    report.problems.extend(index.unreadable.iter().cloned());
    report.packs = index.packs.len() as u64;

    let Summaries { readable, unreadable } = summaries(&repository, operation).await?;
    report.problems.extend(unreadable.into_iter().map(|(id, error)| format!("snapshot {id} cannot be read: {error}")));
    let mut needed: HashSet<ChunkId> = HashSet::new();
    let mut is_whole = true;
    for (id, summary) in &readable {
        operation.check()?;
        report.snapshots += 1;
        match repository.read_tree(&index, &summary.tree, operation).await {
            Ok((entries, own)) => {
                let mut lost = Vec::new();
                for entry in &entries {
                    if entry.chunks().any(|chunk| index.find(chunk).is_none()) {
                        lost.push(entry.path.as_str());
                    }
                    needed.extend(entry.chunks());
                }
                needed.extend(own);
                if let Some(first) = lost.first() {
                    is_whole = false;
                    let count = lost.len();
                    report.problems.push(format!("snapshot {id} lacks content of {count} files, for example {first}"));
                }
            }
            Err(error) if is_damage(&error) => {
                is_whole = false;
                report.problems.push(format!("the file tree of snapshot {id} cannot be read: {error}"));
            }
            Err(error) => return Err(error),
        }
    }
    report.chunks = needed.len() as u64;
    if !is_whole {
        // Where nothing is missing, they are what another machine has deleted meanwhile.
        let absent = index.absent.iter().map(|id| format!("{} is not there, or was cut", pack_key(*id)));
        report.problems.extend(absent);
    }
    if options.read_data {
        read_packs(&repository, &index, &needed, operation, &mut report).await?;
    }
    Ok(report)
}

fn is_damage(error: &Error) -> bool {
    matches!(error.code(), Code::Corrupt | Code::WrongKey | Code::UnsafePath | Code::NotFound)
}

/// Downloads every pack and checks every frame and chunk of it.
async fn read_packs(
    repository: &Repository,
    index: &Arc<Index>,
    needed: &HashSet<ChunkId>,
    operation: &Operation,
    report: &mut VerifyReport,
) -> Result<()> {
    let is_needed = |number: usize| {
        let is_read_here = |chunk| index.find(chunk).is_some_and(|at| at.pack as usize == number);
        index.packs[number].entry.chunk_ids().any(|chunk| needed.contains(&chunk) && is_read_here(chunk))
    };
    let bytes = index.packs.iter().map(|pack| pack.entry.size).sum();
    let meter = Meter::new(operation, "verify", index.packs.len() as u64, bytes);
    let read = |number| {
        let (repository, index) = (repository.clone(), Arc::clone(index));
        async move { (number, read_pack(&repository, &index, number).await) }
    };
    let packs = (0..index.packs.len()).map(read);
    in_parallel(PARALLEL_PACKS, packs, operation, |(number, result)| {
        let pack = &index.packs[number].entry;
        match result {
            Ok(()) => report.read_bytes += pack.size,
            // Another machine has deleted it meanwhile.
            Err(error) if error.code() == Code::NotFound && !is_needed(number) => {}
            Err(error) if is_damage(&error) => report.problems.push(error.to_string()),
            Err(error) => return Err(error),
        }
        meter.files(1);
        meter.bytes(pack.size);
        meter.transferred(repository.stats().received_bytes);
        Ok(())
    })
    .await
}

async fn read_pack(repository: &Repository, index: &Arc<Index>, number: usize) -> Result<()> {
    let pack = &index.packs[number].entry;
    let key = pack_key(pack.id);
    if pack.size > MAX_PACK {
        return Err(Error::corrupt(&key, "it is larger than a pack may be"));
    }
    let bytes = repository.store.get(&key).await?;
    let (keyring, index) = (repository.keyring.clone(), Arc::clone(index));
    let check = move || {
        let expected = &index.packs[number].entry;
        let found = PackEntry::of_pack(expected.id, &bytes, |header, name| keyring.find_for_pack(header, name))?;
        if found == *expected { Ok(()) } else { Err(Error::corrupt(&key, "it does not hold what the index says")) }
    };
    blocking(check).await
}
