//! Long work that must not take the CPU from requests: each on a thread of its own, which yields to the workers.

use std::io;
use std::thread;

use rustix::process::setpriority_process;
use tokio::sync::oneshot;

/// A CPU on which workers are never idle gives so much less to the thread: a tenth (nice 10, kernel/sched/core.c).
const NICE: i32 = 10;

/// Begins `work`; the receiver has what came of it, or an error if it panicked.
pub(super) fn begin<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Of this thread alone; without it the work is done all the same.
        setpriority_process(None, NICE).ok();
        // Whoever waited may have given up.
        sender.send(work()).ok();
    })?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::getpriority_process;

    #[test]
    fn only_the_thread_of_the_work_is_nicer_and_a_panic_is_an_error() {
        let before = getpriority_process(None).unwrap();
        let nice = begin("nice", || getpriority_process(None).unwrap()).unwrap();
        assert_eq!(nice.blocking_recv(), Ok(before.max(NICE)));
        assert_eq!(getpriority_process(None).unwrap(), before);
        assert!(begin("panics", || panic!("as it must")).unwrap().blocking_recv().is_err());
    }
}
