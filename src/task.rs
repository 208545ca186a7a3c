//! Work beside the event loop, and several pieces of it at once.

use std::future::Future;
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use tokio::task::{JoinError, JoinSet};
use tokio_util::task::TaskTracker;

use crate::commands::Operation;
use crate::error::{Code, Error, Result};

/// Starts `work`, which may block, on a thread of its own; the future gives its result.
pub(crate) fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> impl Future<Output = Result<T>> + Send {
    Threads::default().blocking(work)
}

/// [`blocking`] that [`Threads::ended`] waits for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Threads(TaskTracker);

impl Threads {
    pub(crate) fn blocking<T, W>(&self, work: W) -> impl Future<Output = Result<T>> + Send + use<T, W>
    where
        T: Send + 'static,
        W: FnOnce() -> Result<T> + Send + 'static,
    {
        let task = self.0.spawn_blocking(work);
        async move { task.await.map_err(failed).flatten() }
    }

    /// Waits until nothing is at work any more, also where nobody waits for its result: who asked for it may have been stopped.
    pub(crate) async fn ended(&self) {
        self.0.close();
        self.0.wait().await;
    }
}

/// How many threads this machine can run at once.
pub(crate) fn cores() -> NonZeroUsize {
    available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// A task of our own that panicked or was stopped: a bug, reported as an error instead of a crash.
pub(crate) fn failed(error: JoinError) -> Error {
    let what = if error.is_panic() { "the operation failed unexpectedly" } else { "the operation was shut down" };
    Error::new(Code::Io, what).because(error).advise("this is a defect; please report it with the log")
}

/// Runs `jobs`, at most `limit` at once, and hands each result to `done` as it comes. The first error of `done` ends it.
///
/// # Errors
/// That one, and `CANCELLED`.
pub(crate) async fn in_parallel<T, J>(
    limit: usize,
    jobs: impl IntoIterator<Item = J>,
    operation: &Operation,
    mut done: impl FnMut(T) -> Result<()>,
) -> Result<()>
where
    T: Send + 'static,
    J: Future<Output = T> + Send + 'static,
{
    let mut jobs = jobs.into_iter();
    let mut under_way = JoinSet::new();
    loop {
        operation.check()?;
        while under_way.len() < limit
            && let Some(job) = jobs.next()
        {
            under_way.spawn(job);
        }
        match under_way.join_next().await {
            Some(result) => done(result.map_err(failed)?)?,
            None => return Ok(()),
        }
    }
}

/// What `jobs` give, in their order; at most `limit` of them run at once.
///
/// # Errors
/// `CANCELLED`.
pub(crate) async fn all_in_parallel<T, J>(
    limit: usize,
    jobs: impl IntoIterator<Item = J>,
    operation: &Operation,
) -> Result<Vec<T>>
where
    T: Send + 'static,
    J: Future<Output = T> + Send + 'static,
{
    let numbered = jobs.into_iter().enumerate().map(|(number, job)| async move { (number, job.await) });
    let mut results = Vec::new();
    let collect = |result| {
        results.push(result);
        Ok(())
    };
    in_parallel(limit, numbered, operation, collect).await?;
    results.sort_unstable_by_key(|(number, _)| *number);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn threads_are_waited_for_where_nobody_waits_for_their_result() {
        let (threads, (begun, beginning), (end, ending)) = (Threads::default(), mpsc::channel(), mpsc::channel());
        let work = move || {
            begun.send(()).unwrap();
            ending.recv().map_err(|_| Error::cancelled())
        };
        let asking = tokio::spawn(threads.blocking(work));
        blocking(move || beginning.recv().map_err(|_| Error::cancelled())).await.unwrap();
        asking.abort();
        assert!(asking.await.unwrap_err().is_cancelled());
        let ended = threads.ended();
        tokio::pin!(ended);
        tokio::select! {
            biased;
            () = &mut ended => panic!("the work goes on"),
            () = std::future::ready(()) => {}
        }
        end.send(()).unwrap();
        ended.await;
    }
}
