//! Threads to share work with.
//!
//! libtorch computes with OpenMP, whose threads keep a core busy for some milliseconds after their work in the hope of more. Other
//! threads beside these would have to share the cores with threads that do nothing; with 2 cores that took a third of the time. So
//! where an OpenMP runtime is loaded, its threads are used, and find what they hope for.

use std::{
    any::Any,
    cell::Cell,
    ffi::{c_int, c_uint, c_void},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use rayon::prelude::*;

/// `GOMP_parallel` of libgomp, which the runtimes of LLVM and Intel have too: calls a function on so many threads at once, the
/// caller's among them, and returns when all are done.
type Parallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

/// `omp_get_thread_num`: which of a call's threads this one is. A runtime gives the same thread the same number in call after call.
type Number = unsafe extern "C" fn() -> c_int;

/// What is used of an OpenMP runtime.
#[derive(Clone, Copy, Debug)]
struct OpenMp {
    parallel: Parallel,
    number: Number,
}

thread_local! {
    static WORKER: Cell<usize> = const { Cell::new(0) };
}

/// Which of a call's threads this one is; 0 outside of calls.
pub(crate) fn worker() -> usize {
    WORKER.get()
}

/// A number of threads.
#[derive(Clone, Debug)]
pub(crate) struct Threads {
    count: usize,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// The caller's only.
    Own,
    OpenMp(OpenMp),
    Pool(Arc<rayon::ThreadPool>),
}

impl Threads {
    /// So many threads; where the system gives none, the caller's does all the work.
    pub(crate) fn new(count: usize) -> Self {
        let kind = match (count, openmp()) {
            (1, _) => Kind::Own,
            (_, Some(runtime)) => Kind::OpenMp(runtime),
            (_, None) => pool(count).map_or(Kind::Own, Kind::Pool),
        };
        Self { count, kind }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Calls `work` with every number below `tasks`, in any order and at the same time. With OpenMP each thread begins with a share
    /// of its own, the same share of equally many tasks in every call: what it has written it finds in its own cache.
    ///
    /// # Panics
    /// If `work` does.
    pub(crate) fn run(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        match &self.kind {
            Kind::Own => (0..tasks).for_each(work),
            Kind::OpenMp(runtime) => in_parallel(*runtime, self.count.min(tasks), tasks, work),
            Kind::Pool(pool) => pool.install(|| {
                (0..tasks).into_par_iter().with_max_len(1).for_each(|task| {
                    as_worker(rayon::current_thread_index().unwrap_or(0), || work(task));
                });
            }),
        }
    }
}

/// Does something under a thread's number.
fn as_worker(number: usize, work: impl FnOnce()) {
    let before = WORKER.replace(number);
    work();
    WORKER.set(before);
}

/// What all threads of a call see.
struct Shared<'a> {
    work: &'a (dyn Fn(usize) + Sync),
    number: Number,
    /// For every thread's share, the next task that nobody has begun and where the share ends.
    shares: Vec<(AtomicUsize, usize)>,
    /// What the first panic said.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Takes the tasks of the thread's own share, and then what is left of the others'.
extern "C" fn labour(shared: *mut c_void) {
    // SAFETY: `in_parallel` hands over a `Shared` that lives until all threads have returned; threads only read it, and what
    // they change in it is made for that.
    let shared = unsafe { &*shared.cast::<Shared<'_>>() };
    // SAFETY: the function takes nothing, and may be called anywhere.
    let number = usize::try_from(unsafe { (shared.number)() }).unwrap_or(0) % shared.shares.len().max(1);
    as_worker(number, || {
        let (before, from) = shared.shares.split_at(number);
        for (next, end) in from.iter().chain(before) {
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= *end {
                    break;
                }
                // a panic must not leave this function: its caller is not Rust
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (shared.work)(task))) {
                    shared.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
                }
            }
        }
    });
}

fn in_parallel(runtime: OpenMp, threads: usize, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
    let start = |thread: usize| thread * tasks / threads.max(1);
    let shares = (0..threads).map(|thread| (AtomicUsize::new(start(thread)), start(thread + 1)));
    let shares = shares.collect();
    let shared = Shared { work, number: runtime.number, shares, panic: Mutex::new(None) };
    let threads = c_uint::try_from(threads).unwrap_or(1);
    // SAFETY: the function is the runtime's `GOMP_parallel` (see `openmp`), which calls `labour` on its threads and returns when
    // all calls have; `shared` lives until then, and may be read from any thread. No flags are set.
    unsafe { (runtime.parallel)(labour, (&raw const shared).cast_mut().cast(), threads, 0) };
    if let Some(panic) = shared.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(panic);
    }
}

/// The OpenMP runtime that this process has loaded already, if any.
fn openmp() -> Option<OpenMp> {
    #[cfg(unix)]
    {
        let find = |name: &std::ffi::CStr| {
            // SAFETY: both arguments are valid: a handle that means every loaded library, and a name that ends with a zero.
            let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
            (!found.is_null()).then_some(found)
        };
        let (parallel, number) = (find(c"GOMP_parallel")?, find(c"omp_get_thread_num")?);
        // SAFETY: every runtime that has functions of these names gives them these signatures: GCC's compiled code relies on the
        // first, and OpenMP's standard has the second.
        Some(unsafe {
            OpenMp {
                parallel: std::mem::transmute::<*mut c_void, Parallel>(parallel),
                number: std::mem::transmute::<*mut c_void, Number>(number),
            }
        })
    }
    #[cfg(not(unix))]
    None
}

/// Pools of threads by their number: one of each is enough for a process.
static POOLS: OnceLock<Mutex<Vec<Pool>>> = OnceLock::new();

/// A pool with the number of its threads.
type Pool = (usize, Arc<rayon::ThreadPool>);

fn pool(count: usize) -> Option<Arc<rayon::ThreadPool>> {
    let mut pools = POOLS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, pool)) = pools.iter().find(|(number, _)| *number == count) {
        return Some(pool.clone());
    }
    let name = |index| format!("talion-{index}");
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(name).build().ok().map(Arc::new)?;
    pools.push((count, pool.clone()));
    Some(pool)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not libgomp, but as it calls back: from several threads, the caller's among them.
    unsafe extern "C" fn parallel(
        labour: extern "C" fn(*mut c_void),
        data: *mut c_void,
        threads: c_uint,
        flags: c_uint,
    ) {
        assert_eq!(flags, 0);
        let data = data as usize;
        std::thread::scope(|scope| {
            for number in 1..threads {
                scope.spawn(move || {
                    NUMBER.set(number as c_int);
                    labour(data as *mut c_void);
                });
            }
            labour(data as *mut c_void);
        });
    }

    thread_local! {
        static NUMBER: Cell<c_int> = const { Cell::new(0) };
    }

    unsafe extern "C" fn number() -> c_int {
        NUMBER.get()
    }

    fn kinds() -> Vec<Threads> {
        let pool = pool(3).map(Kind::Pool).unwrap();
        [Kind::Own, Kind::OpenMp(OpenMp { parallel, number }), pool]
            .into_iter()
            .map(|kind| Threads { count: 3, kind })
            .collect()
    }

    #[test]
    fn every_task_is_done_once() {
        for threads in kinds() {
            for tasks in [0, 1, 2, 3, 100] {
                let done: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                threads.run(tasks, &|task| {
                    done[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{threads:?}");
            }
        }
    }

    #[test]
    fn a_thread_begins_with_its_own_share() {
        let threads = Threads { count: 3, kind: Kind::OpenMp(OpenMp { parallel, number }) };
        let barrier = std::sync::Barrier::new(3);
        let first: Vec<Mutex<Option<usize>>> = (0..3).map(|_| Mutex::default()).collect();
        threads.run(12, &|task| {
            let mut first = first[worker()].lock().unwrap();
            if first.is_none() {
                *first = Some(task);
                drop(first);
                // nobody helps before everybody has begun
                barrier.wait();
            }
        });
        let first: Vec<usize> = first.iter().map(|first| first.lock().unwrap().unwrap()).collect();
        assert_eq!((first, worker()), (vec![0, 4, 8], 0));
    }

    #[test]
    fn a_panic_arrives_where_the_work_was_asked_for() {
        for threads in kinds() {
            let run = || threads.run(20, &|task| assert!(task != 7, "seven"));
            let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap();
            assert!(text.contains("seven"), "{text}");
        }
    }
}
