//! All snapshots of 0.1.x in a repository: their manifests, and where the content of each file lies.
//!
//! A snapshot has objects only for the files that had changed since the one before. What the others held is found by its
//! hash in any folder whose manifest names it and whose object is there.

use super::LegacyId;
use super::manifest::{File, MAX_MANIFEST, Manifest};
use super::source::{Place, Places};
use crate::commands::Operation;
use crate::error::{Code, Error, Result};
use crate::repository::open::Repository;
use crate::task::{blocking, in_parallel};

/// Manifests asked for at once.
const PARALLEL_MANIFESTS: usize = 4;
/// The most that all manifests together may take, in stored bytes: they are in memory at once.
const MAX_MANIFESTS: u64 = 256 << 20;

/// What the manifests say, and where the objects are.
#[derive(Debug, Default)]
pub struct Catalog {
    /// Snapshots, oldest first.
    pub snapshots: Vec<(LegacyId, Manifest)>,
    /// Those whose manifest cannot be read, or not be trusted with paths.
    pub unreadable: Vec<(LegacyId, Error)>,
    places: Places,
}

impl Catalog {
    /// Reads every manifest. A snapshot that vanishes meanwhile is not in it.
    ///
    /// # Errors
    /// Those of the store, `CANCELLED`.
    pub(crate) async fn read(repository: &Repository, operation: &Operation) -> Result<Self> {
        let folders = &repository.contents.legacy;
        let mut catalog = Self::default();
        let mut bytes = 0;
        let mut readable = Vec::new();
        for (id, folder) in folders.iter().rev() {
            bytes += folder.manifest.size;
            if bytes <= MAX_MANIFESTS {
                readable.push((id.clone(), folder.manifest.size));
            } else {
                let problem = format!("with it, the manifests of 0.1.x take more than {MAX_MANIFESTS} bytes");
                catalog.unreadable.push((id.clone(), Error::corrupt(&id.manifest_key(), problem)));
            }
        }
        let read = |(id, size): (LegacyId, u64)| {
            let repository = repository.clone();
            async move {
                let manifest = repository.legacy_manifest(&id, size).await;
                (id, manifest)
            }
        };
        in_parallel(PARALLEL_MANIFESTS, readable.into_iter().map(read), operation, |(id, manifest)| {
            match manifest {
                Ok(manifest) => catalog.snapshots.push((id, manifest)),
                Err(error) if error.code() == Code::NotFound => {}
                Err(error) if matches!(error.code(), Code::Corrupt | Code::UnsafePath) => {
                    catalog.unreadable.push((id, error));
                }
                Err(error) => return Err(error),
            }
            Ok(())
        })
        .await?;
        catalog.snapshots.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        catalog.unreadable.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (id, folder) in folders.iter() {
            let Ok(at) = catalog.snapshots.binary_search_by(|(known, _)| known.cmp(id)) else { continue };
            for file in &catalog.snapshots[at].1.files {
                if let Some(size) = folder.files.get(&file.path) {
                    let place = Place { folder: id.clone(), path: file.path.clone(), size: *size };
                    catalog.places.entry(file.sha256).or_default().push(place);
                }
            }
        }
        Ok(catalog)
    }

    /// Whether something with the content of `file` is stored.
    #[must_use]
    pub fn has(&self, file: &File) -> bool {
        file.is_empty() || self.places.contains_key(&file.sha256)
    }

    /// Takes out the manifest of snapshot `id`, and says where the content of its files may lie: what is most likely comes
    /// first.
    ///
    /// # Errors
    /// Why it cannot be read; `NOT_FOUND` when it is not there.
    pub fn take(&mut self, id: &LegacyId) -> Result<(Manifest, Places)> {
        if let Some(at) = self.unreadable.iter().position(|(unreadable, _)| unreadable == id) {
            return Err(self.unreadable.remove(at).1);
        }
        let at = self.snapshots.binary_search_by(|(known, _)| known.cmp(id)).map_err(|_| {
            Error::new(Code::NotFound, format!("the snapshot {id} is not there any more")).in_snapshot(id.as_str())
        })?;
        let (_, manifest) = self.snapshots.remove(at);
        let places = manifest.files.iter().filter_map(|file| Some((file.sha256, self.places_of(file, id)?)));
        let places = places.collect();
        Ok((manifest, places))
    }

    /// First the snapshot's own folder, then the older ones, from the newest to the oldest, then the newer ones.
    fn places_of(&self, file: &File, id: &LegacyId) -> Option<Vec<Place>> {
        let mut places = self.places.get(&file.sha256)?.clone();
        places.sort_by_key(|place| {
            let is_newer = place.folder > *id;
            let distance = place.folder.time().as_millisecond().abs_diff(id.time().as_millisecond());
            (is_newer, distance, place.folder != *id, place.path != file.path)
        });
        Some(places)
    }
}

impl Repository {
    /// The manifest of a listed snapshot of 0.1.x. It never changes, so that it is remembered.
    async fn legacy_manifest(&self, id: &LegacyId, size: u64) -> Result<Manifest> {
        let key = id.manifest_key();
        let remembered = self.remembered(&key);
        let is_known = remembered.is_some();
        let bytes = match remembered {
            Some(bytes) => bytes.into(),
            None => self.get_bounded(&key, size, MAX_MANIFEST).await.map_err(|error| error.in_snapshot(id.as_str()))?,
        };
        let (id, repository) = (id.clone(), self.clone());
        blocking(move || {
            let manifest = Manifest::parse(&id, &bytes)?;
            if !is_known {
                repository.remember(key, &bytes);
            }
            Ok(manifest)
        })
        .await
    }
}
