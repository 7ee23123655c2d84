//! Processor time of threads of this process, by their names.

use std::time::Duration;

/// What the threads whose names begin with `prefix` have taken since they were made. `None` where the system does not tell.
pub(super) fn taken(prefix: &str) -> Option<Duration> {
    let mut sum: Option<Duration> = None;
    for task in std::fs::read_dir("/proc/self/task").ok()?.flatten() {
        let file = |name: &str| std::fs::read_to_string(task.path().join(name));
        // One that ends meanwhile has no files.
        let (Ok(name), Ok(times)) = (file("comm"), file("schedstat")) else { continue };
        let on_cpu = times.split_whitespace().next().and_then(|first| first.parse().ok());
        if let (true, Some(nanoseconds)) = (name.starts_with(prefix), on_cpu) {
            sum = Some(sum.unwrap_or_default() + Duration::from_nanos(nanoseconds));
        }
    }
    sum
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn the_time_of_a_thread_is_found_by_its_name() {
        let (stop, stopped) = mpsc::channel::<()>();
        let (busy, has_been_busy) = mpsc::channel();
        let thread = std::thread::Builder::new().name("busy-bench-7".into()).spawn(move || {
            // Until the system says so itself: it counts in ticks on some machines.
            while taken("busy-bench-7").is_none_or(|time| time < Duration::from_millis(2)) {
                std::hint::black_box((0..10_000u64).sum::<u64>());
            }
            busy.send(()).unwrap();
            let _ = stopped.recv();
        });
        let thread = thread.unwrap();
        has_been_busy.recv().unwrap();
        assert!(taken("busy-bench").unwrap() >= Duration::from_millis(2));
        assert_eq!(taken("no-such-thread"), None);
        drop(stop);
        thread.join().unwrap();
    }
}
