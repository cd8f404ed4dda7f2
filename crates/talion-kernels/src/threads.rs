//! Threads to share work with.
//!
//! libtorch computes with OpenMP, whose threads keep a core busy for some milliseconds after their work in the hope of more. Other
//! threads beside these would have to share the cores with threads that do nothing; with 2 cores that took a third of the time. So
//! where an OpenMP runtime is loaded, its threads are used, and find what they hope for.

use std::{
    any::Any,
    ffi::{c_uint, c_void},
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
    OpenMp(Parallel),
    Pool(Arc<rayon::ThreadPool>),
}

impl Threads {
    /// So many threads; where the system gives none, the caller's does all the work.
    pub(crate) fn new(count: usize) -> Self {
        let kind = match (count, openmp()) {
            (1, _) => Kind::Own,
            (_, Some(parallel)) => Kind::OpenMp(parallel),
            (_, None) => pool(count).map_or(Kind::Own, Kind::Pool),
        };
        Self { count, kind }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Calls `work` with every number below `tasks`, in any order and at the same time.
    ///
    /// # Panics
    /// If `work` does.
    pub(crate) fn run(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        match &self.kind {
            Kind::Own => (0..tasks).for_each(work),
            Kind::OpenMp(parallel) => in_parallel(*parallel, self.count.min(tasks), tasks, work),
            Kind::Pool(pool) => pool.install(|| (0..tasks).into_par_iter().with_max_len(1).for_each(work)),
        }
    }
}

/// What all threads of a call see.
struct Shared<'a> {
    work: &'a (dyn Fn(usize) + Sync),
    tasks: usize,
    /// The next task that nobody has begun.
    next: AtomicUsize,
    /// What the first panic said.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Takes tasks until there are none left.
extern "C" fn labour(shared: *mut c_void) {
    // SAFETY: `in_parallel` hands over a `Shared` that lives until all threads have returned; threads only read it, and what
    // they change in it is made for that.
    let shared = unsafe { &*shared.cast::<Shared<'_>>() };
    loop {
        let task = shared.next.fetch_add(1, Ordering::Relaxed);
        if task >= shared.tasks {
            return;
        }
        // a panic must not leave this function: its caller is not Rust
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (shared.work)(task))) {
            shared.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }
}

fn in_parallel(parallel: Parallel, threads: usize, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
    let shared = Shared { work, tasks, next: AtomicUsize::new(0), panic: Mutex::new(None) };
    let threads = c_uint::try_from(threads).unwrap_or(1);
    // SAFETY: the function is the runtime's `GOMP_parallel` (see `openmp`), which calls `labour` on its threads and returns when
    // all calls have; `shared` lives until then, and may be read from any thread. No flags are set.
    unsafe { parallel(labour, (&raw const shared).cast_mut().cast(), threads, 0) };
    if let Some(panic) = shared.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(panic);
    }
}

/// The OpenMP runtime that this process has loaded already, if any.
fn openmp() -> Option<Parallel> {
    #[cfg(unix)]
    {
        // SAFETY: both arguments are valid: a handle that means every loaded library, and a name that ends with a zero.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"GOMP_parallel".as_ptr()) };
        if found.is_null() {
            return None;
        }
        // SAFETY: every runtime that has a function of this name gives it this signature, which GCC's compiled code relies on.
        Some(unsafe { std::mem::transmute::<*mut c_void, Parallel>(found) })
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
            (1..threads).for_each(|_| drop(scope.spawn(move || labour(data as *mut c_void))));
            labour(data as *mut c_void);
        });
    }

    fn kinds() -> Vec<Threads> {
        let pool = pool(3).map(Kind::Pool).unwrap();
        [Kind::Own, Kind::OpenMp(parallel), pool].into_iter().map(|kind| Threads { count: 3, kind }).collect()
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
