//! Runs jobs on several threads and returns results in order, with a bounded number of them in progress.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvError, SyncSender, sync_channel};

use syncd_runtime::queue::{Waiting, queue};

/// Maximum number of threads. The memory of each is bounded, and therefore the total.
const WORKERS_MAX: usize = 4;
/// Results per worker that may wait for an earlier one.
const AHEAD: usize = 3;

/// Does every job with `work` and passes the results to `sink` in the order of the jobs. Each thread calls
/// `tools` once. A single job runs on the calling thread. Ends with the first error of any part.
pub(super) fn in_order<J, R, T, E>(
    mut jobs: impl Iterator<Item = Result<J, E>>,
    tools: impl Fn() -> Result<T, E> + Sync,
    work: impl Fn(&mut T, J) -> Result<R, E> + Sync,
    sink: &mut dyn FnMut(R) -> Result<(), E>,
) -> Result<(), E>
where
    J: Send,
    R: Send,
    E: Send,
{
    let Some(first) = jobs.next().transpose()? else { return Ok(()) };
    let second = jobs.next().transpose()?;
    let workers = syncd_runtime::threads::at_most(WORKERS_MAX);
    if second.is_none() || workers == 1 {
        let mut tools = tools()?;
        for job in [Ok(first)].into_iter().chain(second.map(Ok)).chain(jobs) {
            sink(work(&mut tools, job?)?)?;
        }
        return Ok(());
    }
    let jobs = [Ok(first)].into_iter().chain(second.map(Ok)).chain(jobs);
    let (sender, waiting) = queue::<(J, SyncSender<Result<R, E>>)>(workers);
    std::thread::scope(|scope| {
        for waiting in std::iter::repeat_n(waiting, workers) {
            let (tools, work) = (&tools, &work);
            scope.spawn(move || do_all(waiting, tools, work));
        }
        // Dropped on every return, which ends the workers.
        let sender = sender;
        let mut waiting: VecDeque<Receiver<Result<R, E>>> = VecDeque::new();
        let mut take = |waiting: &mut VecDeque<Receiver<Result<R, E>>>| match waiting.pop_front() {
            Some(front) => match front.recv() {
                Ok(result) => sink(result?).map(|()| true),
                // A worker panicked. Later results must not reach the sink; leaving the scope propagates the
                // panic.
                Err(RecvError) => Ok(false),
            },
            None => Ok(true),
        };
        for job in jobs {
            if waiting.len() >= workers * AHEAD && !take(&mut waiting)? {
                return Ok(());
            }
            let (answer, result) = sync_channel(1);
            if sender.send((job?, answer)).is_err() {
                break;
            }
            waiting.push_back(result);
        }
        while !waiting.is_empty() && take(&mut waiting)? {}
        Ok(())
    })
}

/// Does jobs until no more come. `tools` is called before the first.
fn do_all<J, R, T, E>(
    jobs: Waiting<(J, SyncSender<Result<R, E>>)>,
    tools: &(impl Fn() -> Result<T, E> + Sync),
    work: &(impl Fn(&mut T, J) -> Result<R, E> + Sync),
) {
    let mut own = None;
    for (job, answer) in jobs {
        let result = match &mut own {
            Some(tools) => work(tools, job),
            None => tools().and_then(|tools| work(own.insert(tools), job)),
        };
        // After an error nobody receives the result.
        let _ = answer.send(result);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_jobs() {
        for count in [0, 1, 2, 500] {
            let mut results = Vec::new();
            let made = AtomicUsize::new(0);
            in_order(
                (0..count).map(Ok::<u64, Infallible>),
                || {
                    made.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                },
                |(), job| {
                    std::thread::sleep(std::time::Duration::from_micros(job * 7919 % 300));
                    Ok(job * 2)
                },
                &mut |result| {
                    results.push(result);
                    Ok(())
                },
            )
            .unwrap();
            assert_eq!(results, (0..count).map(|job| job * 2).collect::<Vec<_>>());
            assert!(made.into_inner() <= WORKERS_MAX);
        }
    }

    #[test]
    fn an_error_of_any_part_ends_it() {
        let run = |jobs: &[Result<u8, char>], sink: Result<(), char>| {
            let work = |(): &mut (), job| if job == 9 { Err('w') } else { Ok(job) };
            in_order(jobs.iter().copied(), || Ok(()), work, &mut |_| sink)
        };
        assert_eq!(run(&[Ok(1), Ok(2), Err('j')], Ok(())), Err('j'));
        assert_eq!(run(&[Ok(1), Ok(9), Ok(3)], Ok(())), Err('w'));
        assert_eq!(run(&[Ok(1), Ok(2), Ok(3)], Err('s')), Err('s'));
        assert_eq!(run(&[Ok(1)], Err('s')), Err('s'));
    }

    #[test]
    fn nothing_comes_after_a_job_whose_worker_panicked() {
        for panics in [|job: u64| job == 40, |job: u64| job >= 40] {
            let mut results = Vec::new();
            let work = |(): &mut (), job| if panics(job) { panic!("as the test wants") } else { Ok(job) };
            let run = std::panic::AssertUnwindSafe(|| {
                in_order((0..500).map(Ok::<u64, Infallible>), || Ok(()), work, &mut |job| {
                    results.push(job);
                    Ok(())
                })
            });
            std::panic::catch_unwind(run).unwrap_err();
            assert!(
                results.len() <= 40 && results.iter().copied().eq(0..results.len() as u64),
                "{results:?}"
            );
        }
    }
}
