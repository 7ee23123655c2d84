//! Runs the server and looks at what became of it.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use eplb_engine::process::GlooTransport;

use crate::audit::audit;
use crate::build::libraries;
use crate::inner::{CASE, RANKS};
use crate::log::Log;

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) wrong: u64,
    pub(crate) switches: Vec<u64>,
    pub(crate) moved: u64,
    pub(crate) aborted: u64,
    pub(crate) late: u64,
    pub(crate) said: String,
    pub(crate) log: Log,
}

/// The number behind a word in all lines that begin with `head`.
fn numbers(text: &str, head: &str, word: &str) -> Vec<u64> {
    let lines = text.lines().filter(|line| line.starts_with(head));
    let found =
        lines.flat_map(|line| line.split(' ')).filter_map(|part| part.strip_prefix(word)?.strip_prefix('='));
    found.map(|number| number.parse().unwrap()).collect()
}

/// Serves on the fakes. Streams take up to `delay_us` before each operation.
pub(crate) fn serve(case: &str, delay_us: u32, fault: Option<&str>) -> Run {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let number = RUNS.fetch_add(1, Ordering::Relaxed);
    let log = temporary.join(format!("device-{}-{number}", std::process::id()));
    let images = temporary.join("device-images");
    std::fs::create_dir_all(&images).unwrap();
    for name in ["dispatch", "rows", "checksum"] {
        std::fs::write(images.join(format!("{name}.fatbin")), b"any").unwrap();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", "inner::serving_on_the_fakes", "--nocapture"])
        .env(CASE, case)
        .env("LD_LIBRARY_PATH", libraries())
        .env("EPLB_FAKE_LOG", &log)
        .env("EPLB_FAKE_KERNELS", "1")
        .env("EPLB_FAKE_DELAY_US", delay_us.to_string())
        .env("EPLB_KERNELS", &images)
        .env("EPLB_SERVE_IMAGE", images.join("rows.fatbin"));
    if let Some(fault) = fault {
        command.env("EPLB_FAKE_FAULT", fault);
    }
    let output = command.output().unwrap();
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    drop(std::fs::remove_file(&log));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let all = format!("{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("ROUNDS"), "{case}: {}: {all}", output.status);
    let sum = |word| numbers(&said, "SEEN", word).iter().sum();
    Run {
        wrong: sum("wrong"),
        switches: numbers(&said, "SEEN", "switches"),
        moved: numbers(&said, "ROUNDS", "moved")[0],
        aborted: numbers(&said, "ROUNDS", "aborted")[0],
        late: numbers(&said, "ROUNDS", "late")[0],
        said: all,
        log: Log::parse(&text),
    }
}

fn assert_serves(run: &Run) {
    assert!(run.wrong == 0 && !run.said.contains("FAILED"), "{}", run.said);
    assert!(run.switches.len() == RANKS && run.switches.iter().all(|&switches| switches > 0), "{}", run.said);
}

fn assert_right(run: &Run) {
    assert_serves(run);
    assert_eq!(audit(&run.log, run.aborted + run.late > 0), Vec::<String>::new());
}

/// Ten rounds, or three hundred where all faults are wanted.
fn rounds() -> u64 {
    if std::env::var("EPLB_FAULTS").is_ok_and(|which| which == "all") { 300 } else { 10 }
}

#[test]
fn slots_that_are_drained_are_filled_while_passes_run() {
    let run = serve(&format!("slots=72 rounds={}", rounds()), 200, None);
    assert_right(&run);
    assert!(run.moved > rounds() / 2, "{}", run.said);
}

#[test]
fn staged_commits_go_between_passes_and_waves_that_fail_leave_no_trace() {
    let run = serve(&format!("slots=64 rounds={} storm=0.1", rounds()), 200, None);
    assert_right(&run);
    assert!(run.moved > 0 && run.aborted > 0, "{}", run.said);
    assert!(run.log.0.iter().any(|call| call.text("kernel") == "eplb_commit"));
}

#[test]
fn commits_are_copies_where_there_are_no_kernels() {
    let run = serve("slots=64 rounds=4 kernels=no", 100, None);
    assert_right(&run);
    assert!(
        run.moved > 0 && !run.log.0.iter().any(|call| call.text("kernel") == "eplb_commit"),
        "{}",
        run.said
    );
}

#[test]
fn nothing_is_committed_on_streams_that_are_captured() {
    let run = serve("slots=72 rounds=4 captures=1", 100, None);
    assert_right(&run);
    assert!(asking(&run) >= RANKS * 2, "the thread of the communicator, and that of the engine");
    assert!(run.moved > 0 && run.log.count("cuStreamBeginCapture") > 0, "{}", run.said);
}

/// Threads that may ask for events while the server captures.
fn asking(run: &Run) -> usize {
    let calls = run.log.0.iter().filter(|call| call.name == "cuThreadExchangeStreamCaptureMode");
    calls.map(|call| call.text("thread")).collect::<std::collections::BTreeSet<_>>().len()
}

#[test]
fn waves_travel_over_nccl() {
    let run = serve("slots=72 rounds=4 backend=nccl", 100, None);
    assert_right(&run);
    assert!(run.moved > 0 && run.log.count("ncclSend") > 0, "{}", run.said);
    assert!(asking(&run) >= RANKS * 2, "the thread of the communicator, and that of the engine");
}

#[test]
fn waves_travel_over_gloo_through_pinned_memory() {
    if let Err(error) = GlooTransport::find_library() {
        let allowed = std::env::var_os("EPLB_TESTS_WITHOUT_GLOO").is_some();
        assert!(allowed, "{error}; EPLB_TESTS_WITHOUT_GLOO=1 leaves out what needs it");
        eprintln!("not run: {error}");
        return;
    }
    for case in ["slots=72 rounds=4 backend=gloo", "slots=64 rounds=4 backend=gloo captures=1"] {
        let run = serve(case, 100, None);
        assert_right(&run);
        assert!(run.moved > 0 && run.log.count("ncclSend") == 0, "{case}: {}", run.said);
        let fetched = run.log.0.iter().filter(|call| call.name == "cuMemcpyDtoHAsync");
        assert!(fetched.count() as u64 >= run.moved, "{case}");
        // Threads of its own.
        assert!(asking(&run) >= RANKS * 4, "{case}");
    }
}

/// Sends of NCCL by the threads that serve passes, and by others.
fn sends(run: &Run) -> (usize, usize) {
    let servers: Vec<&str> =
        run.log.0.iter().filter(|call| call.name == "rank").map(|call| call.text("thread")).collect();
    let of = |call: &&crate::log::Call| call.name == "ncclSend";
    let serving = run.log.first("serving").unwrap_or(0);
    let (by, others): (Vec<_>, Vec<_>) =
        run.log.0[serving..].iter().filter(of).partition(|call| servers.contains(&call.text("thread")));
    (by.len(), others.len())
}

#[test]
fn waves_are_launched_by_steps_where_that_is_asked_for() {
    let run = serve("slots=72 rounds=4 backend=nccl-steps", 100, None);
    // Not by the audit of commits: the server's thread gathers small tensors for NCCL on another stream, as it is to.
    assert_serves(&run);
    let (by_steps, others) = sends(&run);
    assert!(run.moved > 0 && by_steps > 0 && others == 0, "{by_steps} and {others}: {}", run.said);
    // And by a thread where it is not: the check tells them apart.
    let (by_steps, others) = sends(&serve("slots=72 rounds=2 backend=nccl", 100, None));
    assert!(by_steps == 0 && others > 0, "{by_steps} and {others}");
}

#[test]
fn staged_waves_are_launched_by_steps_and_fail_without_a_trace() {
    let run = serve(&format!("slots=64 rounds={} backend=nccl-steps storm=0.1", rounds()), 100, None);
    assert_serves(&run);
    assert!(run.moved > 0 && run.aborted > 0, "{}", run.said);
}

#[test]
fn ranks_that_close_and_open_again_go_on_where_they_were() {
    let run = serve("slots=64 rounds=8 quiesce=40", 100, None);
    assert_serves(&run);
    assert!(run.moved > 0 && run.log.count("serving") == RANKS, "{}", run.said);
}

#[test]
fn ranks_that_form_new_epochs_go_on_where_they_were() {
    let run = serve("slots=72 rounds=4 reform=60 storm=0.05", 100, None);
    assert_serves(&run);
    assert!(run.moved > 0, "{}", run.said);
}

#[test]
fn passes_are_counted_while_no_rounds_can_be_run() {
    let run = serve("slots=72 rounds=1000 fails=10 steps=40", 0, None);
    assert!(run.wrong == 0 && !run.said.contains("FAILED"), "{}", run.said);
    assert_eq!(run.said.matches("failed: ").count(), RANKS, "{}", run.said);
}

#[test]
fn what_is_derived_from_weights_follows_them() {
    for slots in [64, 72] {
        let run = serve(&format!("slots={slots} rounds=6 hook=1"), 300, None);
        assert_right(&run);
        assert!(run.moved > 0, "{}", run.said);
    }
    // Planted: one of the launches that derive, or look, is forgotten.
    let run = serve("slots=64 rounds=4 hook=1", 100, Some("serve_sums:150"));
    assert!(run.wrong > 0, "{}", run.said);
}

/// What the serving threads asked the driver for in steps that made a commit, by name; the kernel where there is one.
fn commits(log: &Log) -> Vec<Vec<String>> {
    let mut open: std::collections::BTreeMap<&str, Vec<String>> = std::collections::BTreeMap::new();
    let mut steps = Vec::new();
    for call in &log.0 {
        let thread = call.text("thread");
        match &*call.name {
            "step" => drop(open.insert(thread, Vec::new())),
            "stepped" => steps.extend(open.remove(thread)),
            // Marks for profilers, which the driver sees nothing of.
            name if name.starts_with("nvtx") => {}
            name => {
                if let Some(calls) = open.get_mut(thread) {
                    let kernel = call.text("kernel");
                    calls.push(if kernel.is_empty() { name } else { kernel }.to_owned());
                }
            }
        }
    }
    steps.retain(|calls| calls.iter().any(|call| call == "eplb_commit"));
    steps
}

/// On two streams: the second is recorded and the first waits for it, one launch makes the commit and changes the maps, and the second waits for it.
const COMMIT: [&str; 5] =
    ["cuEventRecord", "cuStreamWaitEvent", "eplb_commit", "cuEventRecord", "cuStreamWaitEvent"];

/// Whether most commits ask the driver for no more than [`COMMIT`]. A step that is quicker than what was sent ahead waits for that in its stream,
/// with a call or two more.
fn are_brief(steps: &[Vec<String>]) -> bool {
    let brief = steps.iter().filter(|calls| **calls == COMMIT).count();
    let waits = |calls: &&Vec<String>| {
        calls.len() <= COMMIT.len() + 2 && !calls.iter().any(|call| call.contains("Memcpy"))
    };
    brief > 0 && 2 * steps.iter().filter(waits).count() > steps.len()
}

#[test]
fn a_step_with_a_commit_makes_one_launch() {
    let mut run = serve("slots=64 rounds=8 marks=1", 0, None);
    assert_right(&run);
    let steps = commits(&run.log);
    assert!(are_brief(&steps), "{:?}", steps.iter().take(12).collect::<Vec<_>>());
    // Planted: every commit sends its list when it is due, as it once did.
    let mut planted = Vec::new();
    for call in std::mem::take(&mut run.log.0) {
        if call.text("kernel") == "eplb_commit" {
            planted.push(crate::log::Call { name: "cuMemcpyHtoDAsync".into(), ..call.clone() });
            planted.last_mut().unwrap().fields.remove("kernel");
        }
        planted.push(call);
    }
    assert!(!are_brief(&commits(&Log(planted))));
}

#[test]
fn faults_on_the_device_are_noticed() {
    let planted = [
        // No stream waits for another: passes that are under way read slots that a commit writes.
        ("cuStreamWaitEvent:0", 64),
        // Commits are enqueued and do nothing.
        ("eplb_commit:0", 64),
        // Neither are experts pulled nor maps switched.
        ("cuMemcpyAsync:0", 72),
        // One change of maps, or one pull, is lost.
        ("cuMemcpyAsync:1", 72),
    ];
    // At once: streams that take their time are most of it.
    std::thread::scope(|scope| {
        for (fault, slots) in planted {
            scope.spawn(move || {
                let run = serve(&format!("slots={slots} rounds=6"), 1000, Some(fault));
                assert!(run.wrong > 0, "{fault}: {}", run.said);
            });
        }
    });
}

#[test]
fn counts_that_are_folded_with_the_maps_of_another_step_are_noticed() {
    // Of the first step, by whose maps no later pass routes once experts have moved.
    let run = serve("slots=72 rounds=3 folded_as=0", 0, None);
    assert!(run.said.contains("other experts were counted than chosen"), "{}", run.said);
}

#[test]
fn slots_that_the_device_does_not_choose_are_noticed() {
    // Every launch, since experts that have not moved yet lie in the slots of their own numbers.
    let run = serve("slots=72 rounds=4 patience=2", 0, Some("eplb_dispatch_i32:0"));
    assert!(run.said.contains(" went to "), "{}", run.said);
}

#[test]
fn launches_that_count_and_are_forgotten_are_noticed() {
    let run = serve("slots=72 rounds=2 patience=2", 0, Some("eplb_record_i32:3"));
    assert!(run.said.contains("other experts were counted than chosen"), "{}", run.said);
}
