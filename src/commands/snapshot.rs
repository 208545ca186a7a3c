//! One snapshot, whichever version wrote it: its file tree, and the way to its content.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::list::{Selected, select};
use super::{Exception, Meter, Operation};
use crate::config::Target;
use crate::error::{Code, Error, Result};
use crate::repository::id::MachineId;
use crate::repository::index::Index;
use crate::repository::legacy::catalog::Catalog;
use crate::repository::legacy::scope;
use crate::repository::legacy::source::{Plain, Source};
use crate::repository::open::Repository;
use crate::repository::tree::Entry;
use crate::state::blank::has_files_of_agents;
use crate::state::rules::PathFilter;

/// A snapshot that was found and can be read.
pub(super) struct Snapshot {
    pub(super) id: String,
    /// Its file tree, ordered by path, checked.
    pub(super) entries: Vec<Entry>,
    /// The machine that took it, if it says so.
    pub(super) machine: Option<MachineId>,
    /// Where the state directory was when it was taken, if it says so.
    pub(super) former_state_dir: Option<PathBuf>,
    /// The places outside that it was to hold.
    pub(super) held: Vec<String>,
    /// Whether it says that it was taken of a blank instance.
    blank: bool,
    content: Content,
}

enum Content {
    /// Chunks in packs.
    Packs(Arc<Index>),
    /// The objects of 0.1.x.
    Legacy(Arc<Source>),
}

impl Snapshot {
    /// The snapshot that `text` means.
    ///
    /// # Errors
    /// Those of [`select`], `CORRUPT`, `UNSAFE_PATH`.
    pub(super) async fn find(
        repository: &mut Repository,
        target: &Target,
        text: &str,
        operation: &Operation,
    ) -> Result<Self> {
        // Both at once: each would take the line's latency.
        let index = async { Ok(repository.attempt_index().await) };
        let (selected, index) = tokio::try_join!(select(repository, text, operation), index)?;
        match selected {
            Selected::Current(id, summary) => {
                let read = repository.read_snapshot(index, &summary.tree, operation).await;
                let (index, entries) = read.map_err(|error| error.in_snapshot(id.as_str()))?;
                let (former_state_dir, held) = (summary.state_dir.map(PathBuf::from), summary.places);
                let (id, machine, content) = (id.to_string(), Some(summary.machine), Content::Packs(index));
                Ok(Self { id, entries, machine, former_state_dir, held, blank: summary.blank, content })
            }
            Selected::Legacy(id) => {
                let mut catalog = Catalog::read(repository, operation).await?;
                let (entries, source) = Source::open(&mut catalog, repository, target, &id, Plain::of(target))?;
                let content = Content::Legacy(Arc::new(source));
                let (id, held) = (id.to_string(), Vec::new());
                Ok(Self { id, entries, machine: None, former_state_dir: None, held, blank: false, content })
            }
        }
    }

    /// Whether no agent had made anything by then.
    pub(super) fn is_blank(&self) -> bool {
        self.blank || !has_files_of_agents(&self.entries)
    }

    /// Refuses `paths`, of which `filter` is made, where they choose nothing of it.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub(super) fn check_chosen(&self, filter: &PathFilter, paths: &[String]) -> Result<()> {
        if filter.is_all() || self.entries.iter().any(|entry| filter.matches(&entry.path)) {
            return Ok(());
        }
        Err(Error::new(Code::NotFound, format!("nothing in {} matches {}", self.id, paths.join(", ")))
            .in_snapshot(&self.id)
            .advise("write paths as diff and a rollback's plan show them, or as globs such as \"workspace/**\""))
    }

    /// Its tree, to be compared with another one.
    ///
    /// # Errors
    /// Those of [`scope::complete`].
    pub(super) fn compared_with(&self, other: &[Entry]) -> Result<Cow<'_, [Entry]>> {
        match self.content {
            Content::Packs(_) => Ok(Cow::Borrowed(&self.entries)),
            Content::Legacy(_) => scope::complete(&self.entries, other).map(Cow::Owned),
        }
    }

    /// What the owner should know before its files take the place of others.
    pub(super) fn caution(&self) -> Option<String> {
        let words = "is a snapshot of 0.1.x, which nothing authenticates as a whole: whoever can write to the bucket can have \
                     put it together from your old files";
        matches!(self.content, Content::Legacy(_)).then(|| format!("{} {words}", self.id))
    }

    /// Refuses entries whose content is known not to be there, before anything is done about them.
    ///
    /// # Errors
    /// `NOT_FOUND`, naming them.
    pub(super) fn check_available(&self, entries: &[Entry]) -> Result<()> {
        match &self.content {
            // The index says so when they are read: it is all there unless the repository is damaged.
            Content::Packs(_) => Ok(()),
            Content::Legacy(source) => source.check_available(entries),
        }
    }

    /// The files of which the repository is known to lack a part.
    pub(super) fn lost(&self) -> Vec<Exception> {
        let Content::Packs(index) = &self.content else { return Vec::new() };
        let lost = self.entries.iter().filter(|entry| entry.chunks().any(|chunk| index.find(chunk).is_none()));
        let reason = "the repository lacks a part of its content";
        lost.map(|entry| Exception { path: entry.path.clone(), reason: reason.into() }).collect()
    }

    /// Writes `entries`, ordered by path, into the directory `root`, checked; gives those that cannot be written as they were
    /// stored.
    ///
    /// # Errors
    /// Those of [`Repository::restore`] and [`Source::restore`].
    pub(super) async fn restore(
        &self,
        repository: &Repository,
        entries: Vec<Entry>,
        root: &Path,
        meter: Arc<Meter>,
        operation: &Operation,
    ) -> Result<Vec<Exception>> {
        match &self.content {
            Content::Packs(index) => repository.restore(index, entries, root, meter, operation).await,
            Content::Legacy(source) => source.restore(entries, root, meter, operation).await.map(|()| Vec::new()),
        }
    }
}
