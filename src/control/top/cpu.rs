//! How much CPU time each worker of a running tunnel has used, or all threads of another program of ours.
//!
//! It says which process it is, /proc what its threads used. Where that is hidden (another PID namespace, a
//! kernel without scheduler statistics) nothing is known, which is no error.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::stats::snapshot::SettingsSnapshot;

/// Nanoseconds by worker.
pub type CpuTimes = BTreeMap<usize, u64>;

/// CPU times of the tunnel that says this of itself.
pub fn of_tunnel(settings: &SettingsSnapshot) -> CpuTimes {
    tasks_of(settings.pid, &settings.pid_namespace).map_or_else(CpuTimes::new, |tasks| in_tasks(&tasks))
}

/// CPU time of all threads of a process that says this of itself, those that have ended left out.
pub fn of_process(pid: u32, pid_namespace: &str) -> Option<u64> {
    let tasks = fs::read_dir(tasks_of(pid, pid_namespace)?).ok()?.flatten();
    Some(tasks.filter_map(|task| time(&task.path())).sum())
}

/// Where its threads are, if that is here: in another namespace its number is another process's, or nobody's.
fn tasks_of(pid: u32, pid_namespace: &str) -> Option<PathBuf> {
    let here = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let is_here = here.to_str() == Some(pid_namespace);
    is_here.then(|| Path::new("/proc").join(pid.to_string()).join("task"))
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
    Some((worker, time(task)?))
}

/// Nanoseconds of one thread.
fn time(task: &Path) -> Option<u64> {
    // Time on a CPU, time waiting for one, number of slices. Documentation/scheduler/sched-stats.rst.
    let times = fs::read_to_string(task.join("schedstat")).ok()?;
    times.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier};
    use std::thread;

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
    }

    #[test]
    fn in_another_namespace_the_number_of_a_process_says_nothing() {
        let done = Arc::new(Barrier::new(2));
        let waits = done.clone();
        let worker = thread::Builder::new().name("worker-7".to_owned()).spawn(move || waits.wait());
        let settings = |namespace: PathBuf| SettingsSnapshot {
            pid: std::process::id(),
            pid_namespace: namespace.to_str().expect("it is text").to_owned(),
            ..SettingsSnapshot::default()
        };
        let here = fs::read_link("/proc/self/ns/pid").expect("/proc is mounted");
        // The thread names itself when it runs.
        while !of_tunnel(&settings(here.clone())).contains_key(&7) {
            thread::yield_now();
        }
        assert!(of_tunnel(&settings("pid:[1]".into())).is_empty());
        let own = |namespace| of_process(std::process::id(), namespace);
        assert!(own(here.to_str().expect("it is text")).is_some_and(|nanos| nanos > 0));
        assert_eq!(own("pid:[1]"), None);
        done.wait();
        worker.expect("a thread").join().expect("it waits and ends");
    }
}
