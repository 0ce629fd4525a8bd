//! How much CPU time each worker of a running tunnel has used.
//!
//! The socket says which process answers, /proc what its threads used. Where either is hidden (another PID namespace, a
//! kernel without scheduler statistics) nothing is known, which is no error.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// Nanoseconds by worker.
pub type CpuTimes = BTreeMap<usize, u64>;

/// CPU times of the process that listens at `socket`.
pub fn of_listener(socket: &Path) -> CpuTimes {
    let pid = UnixStream::connect(socket).ok().and_then(|stream| {
        let credentials = getsockopt(&stream, PeerCredentials).ok()?;
        // 0: it lives in a namespace that we cannot see into.
        Some(credentials.pid()).filter(|pid| *pid > 0)
    });
    pid.map(|pid| in_tasks(&Path::new("/proc").join(pid.to_string()).join("task"))).unwrap_or_default()
}

/// CPU times of the threads in a directory as /proc/PID/task.
fn in_tasks(directory: &Path) -> CpuTimes {
    let tasks = fs::read_dir(directory).into_iter().flatten().flatten();
    tasks.filter_map(|task| worker_time(&task.path())).collect()
}

/// Number and time of the worker whose thread this is.
fn worker_time(task: &Path) -> Option<(usize, u64)> {
    let name = fs::read_to_string(task.join("comm")).ok()?;
    let worker = name.trim_end().strip_prefix("worker-")?.parse().ok()?;
    // Time on a CPU, time waiting for one, number of slices. Documentation/scheduler/sched-stats.rst.
    let times = fs::read_to_string(task.join("schedstat")).ok()?;
    Some((worker, times.split_whitespace().next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_told_by_the_names_of_their_threads() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let threads = [
            ("worker-0", "100 5 2\n"),
            ("worker-11", "2345 0 1\n"),
            ("stats", "7 0 1\n"),
            ("worker-x", "8 0 1\n"),
        ];
        for (number, (name, times)) in threads.iter().enumerate() {
            let task = directory.path().join(number.to_string());
            fs::create_dir(&task).expect("it can be made");
            fs::write(task.join("comm"), format!("{name}\n")).expect("it can be written");
            fs::write(task.join("schedstat"), times).expect("it can be written");
        }
        fs::create_dir(directory.path().join("ended")).expect("it can be made");
        assert_eq!(in_tasks(directory.path()), CpuTimes::from([(0, 100), (11, 2345)]));
        assert!(of_listener(Path::new("/nowhere")).is_empty());
    }
}
