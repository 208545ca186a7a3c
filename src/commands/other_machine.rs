//! Another machine's snapshots in a repository that this one has just come to: its owner may be moving, and would wait in vain.
//! A machine on which agents have something is never restored unasked.

use super::OtherMachine;
use super::workplace::Workplace;
use crate::error::{Code, Result};
use crate::repository::open::Repository;
use crate::state::blank::is_blank;
use crate::task::blocking;

/// Under which name the cache remembers that a snapshot was chosen here: whoever did so knows what there is.
const CHOSEN: &str = "chosen";

/// Takes note that a snapshot was chosen, to be restored.
pub(super) fn note_choice(workplace: &Workplace, id: &str) {
    workplace.cache.attempt(|cache| cache.put_objects([(CHOSEN.to_owned(), id.as_bytes())]));
}

/// The newest snapshot of another machine that has something of agents, if this machine has neither taken one yet nor chosen
/// one to be restored.
///
/// # Errors
/// Those of the store.
pub(super) async fn find(repository: &Repository, workplace: &Workplace) -> Result<Option<OtherMachine>> {
    if workplace.cache.object(CHOSEN).is_some() {
        return Ok(None);
    }
    let regular = repository.contents.snapshots.iter().rev().map(|(id, _)| id).filter(|id| !id.is_safety());
    for id in regular {
        let summary = match repository.summary(id).await {
            Err(error) if matches!(error.code(), Code::Corrupt | Code::WrongKey | Code::NotFound) => continue,
            summary => summary?,
        };
        // One of this machine's own: it has been here, and has lost its cache.
        if summary.machine == workplace.machine {
            return Ok(None);
        }
        if !summary.blank {
            let places = workplace.places.clone();
            let restores_itself = blocking(move || Ok(is_blank(&places))).await?;
            return Ok(Some(OtherMachine { snapshot: id.to_string(), host: summary.host, restores_itself }));
        }
    }
    Ok(None)
}
