//! Images that wait for the networks: so many and no more, taken in batches.

use std::{
    collections::VecDeque,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::guard::{Verdict, Wants};

/// Why a request was not answered by the networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its deadline passed while it waited.
    Deadline,
    /// The networks failed on its batch.
    Failed,
}

/// What a job's sender is told.
pub type Answer = std::result::Result<Vec<Verdict>, Refusal>;

/// The images of one request.
#[derive(Debug)]
pub struct Job {
    /// `count` images of the classifier's size, `[C, H, W]` each.
    pub values: Vec<f32>,
    /// How many.
    pub count: usize,
    /// What is wanted beside the answers.
    pub wants: Wants,
    /// When nobody waits for the answer any more.
    pub deadline: Instant,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Answer>,
}

/// Why a job was not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// So many images wait that it would be more than allowed.
    Full,
    /// The server is stopping.
    Closed,
}

/// A bounded queue of jobs. What it bounds is images.
pub struct Queue {
    capacity: usize,
    state: Mutex<State>,
    changed: Condvar,
    /// Microseconds that an image lately took.
    pace: AtomicU64,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    images: usize,
    closed: bool,
}

impl Queue {
    /// A queue for `capacity` images.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, state: Mutex::default(), changed: Condvar::new(), pace: AtomicU64::new(0) }
    }

    /// Takes a job in. A request of more images than the queue has room for at all is taken when nothing else waits, so that
    /// it is not refused for ever.
    ///
    /// # Errors
    /// If there is no room, or the queue is closed; the job is given up, and with it the way to answer it.
    pub fn push(&self, job: Job) -> std::result::Result<(), Refused> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        if state.images > 0 && state.images + job.count > self.capacity {
            return Err(Refused::Full);
        }
        state.images += job.count;
        state.jobs.push_back(job);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Waits for a job, then for others until there are `most` images or the first has waited for `patience`, and takes them in
    /// the order in which they came. `None` when the queue is closed and empty.
    pub fn take(&self, most: usize, patience: Duration) -> Option<Vec<Job>> {
        let mut state = self.lock();
        while state.jobs.is_empty() {
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let until = Instant::now() + patience;
        while state.images < most && !state.closed {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            // another worker may have taken everything meanwhile
            if state.jobs.is_empty() {
                drop(state);
                return self.take(most, patience);
            }
        }
        Some(state.pop(most))
    }

    /// Lets no job in any more; those inside can still be taken.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Images that wait.
    pub fn images(&self) -> usize {
        self.lock().images
    }

    /// `images` of them took so long.
    pub fn note_pace(&self, images: usize, took: Duration) {
        let now = took.as_micros() as u64 / images.max(1) as u64;
        // a running mean; an update lost among workers does not matter
        let mean = (7 * self.pace.load(Ordering::Relaxed) + now) / 8;
        self.pace.store(mean, Ordering::Relaxed);
    }

    /// Seconds after which there may be room, at the pace lately seen: what a refused client is told. 1 to 60.
    pub fn retry_after(&self) -> u64 {
        let waiting = self.images() as u64 * self.pace.load(Ordering::Relaxed);
        Duration::from_micros(waiting).as_secs().clamp(1, 60)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // nothing panics while it holds the lock, and the state is whole between any two statements
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whole jobs up to `most` images, at least one job.
    fn pop(&mut self, most: usize) -> Vec<Job> {
        let mut taken = Vec::new();
        let mut images = 0;
        while let Some(job) = self.jobs.front() {
            if images > 0 && images + job.count > most {
                break;
            }
            images += job.count;
            taken.extend(self.jobs.pop_front());
        }
        self.images -= images;
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn job(count: usize) -> (Job, oneshot::Receiver<Answer>) {
        let (answer, receiver) = oneshot::channel();
        let deadline = Instant::now() + Duration::from_secs(60);
        (Job { values: Vec::new(), count, wants: Wants::default(), deadline, answer }, receiver)
    }

    fn counts(jobs: Option<Vec<Job>>) -> Vec<usize> {
        jobs.unwrap().iter().map(|job| job.count).collect()
    }

    #[test]
    fn batches_keep_order_and_size() {
        let queue = Queue::new(100);
        for count in [1, 2, 3, 9, 1] {
            queue.push(job(count).0).unwrap();
        }
        assert_eq!(queue.images(), 16);
        assert_eq!(counts(queue.take(4, Duration::ZERO)), [1, 2]);
        assert_eq!(counts(queue.take(4, Duration::ZERO)), [3]);
        // larger than a batch: alone
        assert_eq!(counts(queue.take(4, Duration::ZERO)), [9]);
        assert_eq!(counts(queue.take(4, Duration::ZERO)), [1]);
        assert_eq!(queue.images(), 0);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_a_large_request_is_not_refused_for_ever() {
        let queue = Queue::new(4);
        queue.push(job(3).0).unwrap();
        assert_eq!(queue.push(job(2).0), Err(Refused::Full));
        queue.push(job(1).0).unwrap();
        assert_eq!(queue.push(job(1).0), Err(Refused::Full));
        assert_eq!(counts(queue.take(8, Duration::ZERO)), [3, 1]);
        queue.push(job(50).0).unwrap();
        assert_eq!(queue.push(job(1).0), Err(Refused::Full));
    }

    #[test]
    fn a_closed_queue_gives_out_what_it_has_and_then_ends() {
        let queue = Queue::new(4);
        queue.push(job(1).0).unwrap();
        queue.close();
        assert_eq!(queue.push(job(1).0), Err(Refused::Closed));
        // closed: no waiting for others
        assert_eq!(counts(queue.take(4, Duration::from_secs(60))), [1]);
        assert!(queue.take(4, Duration::ZERO).is_none());
    }

    #[test]
    fn somebody_who_waits_is_woken_and_the_batch_fills_while_it_waits() {
        let queue = Arc::new(Queue::new(100));
        let taker = Arc::clone(&queue);
        let thread = std::thread::spawn(move || counts(taker.take(3, Duration::from_secs(60))));
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(5));
            queue.push(job(1).0).unwrap();
        }
        // a full batch does not wait for the minute to pass
        assert_eq!(thread.join().unwrap(), [1, 1, 1]);
    }

    #[test]
    fn nothing_is_lost_between_many_senders_and_takers() {
        let queue = Arc::new(Queue::new(64));
        let takers: Vec<_> = (0..3)
            .map(|_| {
                let queue = Arc::clone(&queue);
                std::thread::spawn(move || {
                    let mut images = 0;
                    while let Some(jobs) = queue.take(8, Duration::from_micros(50)) {
                        images += jobs.iter().map(|job| job.count).sum::<usize>();
                    }
                    images
                })
            })
            .collect();
        let senders: Vec<_> = (0..4)
            .map(|_| {
                let queue = Arc::clone(&queue);
                std::thread::spawn(move || (0..500).filter(|_| queue.push(job(2).0).is_ok()).count() * 2)
            })
            .collect();
        let sent: usize = senders.into_iter().map(|thread| thread.join().unwrap()).sum();
        queue.close();
        let taken: usize = takers.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert_eq!((sent > 0, taken), (true, sent));
    }
}
