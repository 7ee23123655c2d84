//! Plans, traces and replays.

use std::ffi::CString;
use std::ptr::{null, null_mut};

use eplb::*;

use super::{is, said};

const LOADS: [f64; 4] = [4.0, 3.0, 2.0, 1.0];

/// One layer, four experts, two ranks of three slots.
fn request() -> PlanRequest {
    let mut request = std::mem::MaybeUninit::<PlanRequest>::uninit();
    // SAFETY: it has room for the structure, which is set whole.
    let mut request = unsafe {
        assert_eq!(eplb_plan_request_init(request.as_mut_ptr(), size_of::<PlanRequest>()), Status::Ok);
        request.assume_init()
    };
    (request.loads, request.layers, request.experts, request.ranks, request.slots) =
        (LOADS.as_ptr(), 1, 4, 2, 6);
    request
}

fn planner() -> *mut Planner {
    let mut planner = null_mut();
    // SAFETY: room for a pointer.
    assert_eq!(unsafe { eplb_planner_new(1, &mut planner) }, Status::Ok);
    planner
}

fn plan(request: &PlanRequest) -> Result<*mut Plan, Status> {
    let (planner, mut plan) = (planner(), null_mut());
    // SAFETY: live handle, whole request, room for a pointer; freed once.
    let status = unsafe {
        let status = eplb_planner_plan(planner, request, &mut plan);
        eplb_planner_free(planner);
        status
    };
    assert_eq!(status == Status::Ok, !plan.is_null(), "a failed call writes nothing");
    if status == Status::Ok { Ok(plan) } else { Err(status) }
}

fn refused(request: &PlanRequest, status: Status, words: &str) {
    is(plan(request).unwrap_err(), status, words);
}

#[test]
fn null_is_an_error_everywhere_and_nothing_to_free() {
    let (request, mut handle) = (request(), null_mut());
    let planner = planner();
    // SAFETY: null is allowed to be passed; the rest is live.
    unsafe {
        eplb_planner_free(null_mut());
        eplb_plan_free(null_mut());
        eplb_trace_free(null_mut());
        is(eplb_planner_new(1, null_mut()), Status::InvalidArgument, "planner is null");
        is(eplb_planner_plan(null(), &request, &mut handle), Status::InvalidArgument, "planner is null");
        is(eplb_planner_plan(planner, null(), &mut handle), Status::InvalidArgument, "request is null");
        is(eplb_planner_plan(planner, &request, null_mut()), Status::InvalidArgument, "plan is null");
        is(eplb_plan_request_init(null_mut(), 8), Status::InvalidArgument, "request is null");
        is(eplb_plan_summarize(null(), null_mut()), Status::InvalidArgument, "plan is null");
        is(eplb_plan_phy2log(null(), null_mut(), 0), Status::InvalidArgument, "plan is null");
        is(eplb_plan_log2phy(null(), 1, null_mut(), 0), Status::InvalidArgument, "plan is null");
        is(eplb_plan_logcnt(null(), null_mut(), 0), Status::InvalidArgument, "plan is null");
        is(eplb_plan_share(null(), null_mut(), 0), Status::InvalidArgument, "plan is null");
        is(eplb_trace_open(null(), null_mut()), Status::InvalidArgument, "path is null");
        is(eplb_trace_open(c"a.npy".as_ptr(), null_mut()), Status::InvalidArgument, "trace is null");
        is(eplb_trace_shape(null(), null_mut()), Status::InvalidArgument, "trace is null");
        is(eplb_trace_loads(null(), 0, 1, null_mut(), 0), Status::InvalidArgument, "trace is null");
        let plan = plan(&request).unwrap();
        is(eplb_plan_summarize(plan, null_mut()), Status::InvalidArgument, "summary is null");
        is(eplb_plan_phy2log(plan, null_mut(), 6), Status::InvalidArgument, "phy2log is null");
        is(eplb_plan_log2phy(plan, 2, null_mut(), 8), Status::InvalidArgument, "log2phy is null");
        is(eplb_plan_logcnt(plan, null_mut(), 4), Status::InvalidArgument, "logcnt is null");
        is(eplb_plan_share(plan, null_mut(), 6), Status::InvalidArgument, "share is null");
        eplb_plan_free(plan);
        eplb_planner_free(planner);
    }
}

/// A program built against the first header knows fewer fields: the library takes the defaults for the rest, and writes no
/// byte beyond what the program has.
#[test]
fn callers_of_the_first_version_are_served() {
    let mut old = request();
    old.struct_size = std::mem::offset_of!(PlanRequest, expert_bytes_of_layer);
    // What lies behind the old structure in the caller's memory is none of the library's business.
    old.node_price = -1.0;
    old.replicate_top = usize::MAX;
    let plan = plan(&old).unwrap();
    // SAFETY: any bits are a summary; a live handle, and as much room as the size says.
    let summary = unsafe {
        let mut summary: PlanSummary = std::mem::zeroed();
        summary.struct_size = std::mem::offset_of!(PlanSummary, predicted_balance);
        summary.predicted_balance = 7.0;
        assert_eq!(eplb_plan_summarize(plan, &mut summary), Status::Ok, "{}", said());
        eplb_plan_free(plan);
        summary
    };
    assert!(summary.balancedness > 0.9 && summary.predicted_balance == 7.0, "{summary:?}");
    old.struct_size = size_of::<PlanRequest>();
    refused(&old, Status::Plan, "-1");
}

#[test]
fn sizes_that_do_not_fit_are_named() {
    let plan = plan(&request()).unwrap();
    let (mut ints, mut counts, mut shares) = ([7; 6], [7u32; 6], [7.0; 6]);
    // SAFETY: live handle, arrays with at least the room stated.
    unsafe {
        is(
            eplb_plan_phy2log(plan, ints.as_mut_ptr(), 5),
            Status::InvalidArgument,
            "room for 5 values; 6 are needed",
        );
        is(eplb_plan_logcnt(plan, counts.as_mut_ptr(), 6), Status::InvalidArgument, "6 values; 4 are needed");
        is(eplb_plan_share(plan, shares.as_mut_ptr(), 0), Status::InvalidArgument, "0 values; 6 are needed");
        is(eplb_plan_log2phy(plan, 0, ints.as_mut_ptr(), 0), Status::InvalidArgument, "columns is 0");
        is(eplb_plan_log2phy(plan, usize::MAX, ints.as_mut_ptr(), 0), Status::InvalidArgument, "columns is");
        assert_eq!((ints, counts, shares), ([7; 6], [7; 6], [7.0; 6]), "a failed call writes nothing");
        for size in [0, 8, size_of::<PlanSummary>() - 1, size_of::<PlanSummary>() + 1] {
            let mut summary: PlanSummary = std::mem::zeroed();
            summary.struct_size = size;
            is(eplb_plan_summarize(plan, &mut summary), Status::InvalidArgument, "struct_size");
        }
        eplb_plan_free(plan);
    }
    let mut wrong = request();
    wrong.struct_size += 8;
    refused(&wrong, Status::InvalidArgument, "use the header of the library");
    let mut huge = request();
    (huge.layers, huge.experts) = (usize::MAX, 3);
    refused(&huge, Status::InvalidArgument, "multiply to too much");
    huge.layers = usize::MAX / 3;
    refused(&huge, Status::InvalidArgument, "too many");
}

#[test]
fn values_that_mean_nothing_are_named() {
    let refuse = |change: fn(&mut PlanRequest), status, words| {
        let mut request = request();
        change(&mut request);
        refused(&request, status, words);
    };
    refuse(|r| r.loads = null(), Status::InvalidArgument, "loads is null");
    refuse(|r| r.ranks = 0, Status::InvalidArgument, "ranks");
    refuse(|r| r.nodes = 0, Status::InvalidArgument, "nodes");
    refuse(|r| r.slots = 2, Status::Plan, "2 slots for 4 experts");
    refuse(|r| r.target = 1.5, Status::Plan, "target is 1.5");
    refuse(|r| r.max_moves = -2, Status::InvalidArgument, "max_moves is -2");
    refuse(|r| r.max_bytes = 10, Status::Plan, "expert_bytes");
    refuse(|r| r.policy = c"best".as_ptr(), Status::Plan, "unknown policy \"best\"");
    refuse(|r| r.policy = c"\xff".as_ptr(), Status::InvalidArgument, "UTF-8");
    refuse(|r| r.policy = c"incremental".as_ptr(), Status::Plan, "current");
    refuse(|r| r.groups = 0, Status::Plan, "groups");
    refuse(|r| r.current = [0, 1, 2, 3, 9, -1].as_ptr(), Status::Plan, "9");
    refuse(|r| r.speed_of_rank = [1.0, -1.0].as_ptr(), Status::Plan, "-1");
    refuse(|r| r.dead = [1, 1].as_ptr(), Status::Plan, "dead");
    refuse(|r| r.dispatch = c"random".as_ptr(), Status::Plan, "dispatch is random");
    refuse(|r| (r.strict_nodes, r.node_price) = (1, 0.5), Status::InvalidArgument, "exclude each other");
    refuse(|r| r.node_price = -1.0, Status::Plan, "nodes is -1");
    refuse(|r| r.worth_steps = 10.0, Status::InvalidArgument, "go together");
    refuse(|r| (r.expert_cost, r.token_cost) = (0.0, 0.0), Status::Plan, "cost is 0, 0");
    refuse(|r| r.half_life = 0.0, Status::Plan, "half_life is 0");
    refuse(|r| r.drift = 2.0, Status::Plan, "drift is 2");
    static NAN: [f64; 4] = [1.0, f64::NAN, 1.0, 1.0];
    refuse(|r| r.loads = NAN.as_ptr(), Status::Plan, "expert 1");
    let mut planner = null_mut();
    // SAFETY: room for a pointer.
    assert_eq!(unsafe { eplb_planner_new(0, &mut planner) }, Status::Plan);
    assert!(planner.is_null());
}

#[test]
fn traces_that_are_not_there_or_not_traces_are_named() {
    let mut trace = null_mut();
    let root = env!("CARGO_MANIFEST_DIR");
    let path = |name: &str| CString::new(format!("{root}/{name}")).unwrap();
    // SAFETY: texts end with zero, room for a pointer, arrays with the room stated; freed once.
    unsafe {
        is(eplb_trace_open(path("none.npz").as_ptr(), &mut trace), Status::Trace, "none.npz");
        is(eplb_trace_open(path("Cargo.toml").as_ptr(), &mut trace), Status::Trace, "Cargo.toml");
        assert!(trace.is_null());
        let day = path("../../tests/data/day_26x64.npz");
        assert_eq!(eplb_trace_open(day.as_ptr(), &mut trace), Status::Ok, "{}", said());
        let mut shape = [0; 3];
        assert_eq!(eplb_trace_shape(trace, shape.as_mut_ptr()), Status::Ok);
        assert_eq!(shape[1..], [26, 64]);
        let mut loads = vec![0.0; 2 * 26 * 64];
        let len = loads.len();
        assert_eq!(eplb_trace_loads(trace, 1, 2, loads.as_mut_ptr(), len), Status::Ok, "{}", said());
        assert!(loads.iter().sum::<f64>() > 0.0);
        for (first, steps) in [(shape[0], 1), (0, shape[0] + 1), (0, 0), (usize::MAX, 2)] {
            is(
                eplb_trace_loads(trace, first, steps, loads.as_mut_ptr(), len),
                Status::InvalidArgument,
                "of a trace of",
            );
        }
        is(
            eplb_trace_loads(trace, 0, 1, loads.as_mut_ptr(), len),
            Status::InvalidArgument,
            "1664 are needed",
        );
        eplb_trace_free(trace);
    }
}

#[test]
fn errors_are_told_to_the_thread_that_made_them() {
    is(plan(&PlanRequest { ranks: 0, ..request() }).unwrap_err(), Status::InvalidArgument, "ranks");
    std::thread::spawn(|| assert_eq!(said(), "")).join().unwrap();
    assert!(said().contains("ranks"));
}

#[test]
fn one_planner_serves_two_threads() {
    struct Shared(*mut Planner);
    // SAFETY: handles may be used by several threads at a time, which is what is tested.
    unsafe impl Sync for Shared {}
    let shared = Shared(planner());
    let alone = summary(plan(&request()).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let Shared(planner) = &shared;
                for _ in 0..50 {
                    let mut made = null_mut();
                    // SAFETY: live handle, whole request, room for a pointer.
                    assert_eq!(unsafe { eplb_planner_plan(*planner, &request(), &mut made) }, Status::Ok);
                    assert_eq!(summary(made), alone);
                }
            });
        }
    });
    // SAFETY: no thread uses it any more.
    unsafe { eplb_planner_free(shared.0) };
}

/// What a plan is worth; frees it.
fn summary(plan: *mut Plan) -> (f64, f64, usize) {
    // SAFETY: zero is a value of every field; the plan is live, and freed once.
    unsafe {
        let mut summary: PlanSummary = std::mem::zeroed();
        summary.struct_size = size_of::<PlanSummary>();
        assert_eq!(eplb_plan_summarize(plan, &mut summary), Status::Ok);
        eplb_plan_free(plan);
        (summary.balancedness, summary.bound, summary.slots)
    }
}

#[test]
fn replays_name_what_is_wrong() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/day_26x64.npz\0");
    let (mut trace, mut replay) = (null_mut(), null_mut());
    let request = PlanRequest { ranks: 16, slots: 80, policy: c"static".as_ptr(), ..request() };
    // SAFETY: live handles or null, texts, arrays as long as said.
    unsafe {
        assert_eq!(eplb_trace_open(path.as_ptr().cast(), &mut trace), Status::Ok, "{}", said());
        let mut run = |request: *const PlanRequest, window, interval, gbps, threads| {
            eplb_replay_run(trace, request, window, interval, gbps, threads, &mut replay)
        };
        is(run(null(), 5, 5, 1.0, 1), Status::InvalidArgument, "request is null");
        is(run(&request, 0, 5, 1.0, 1), Status::InvalidArgument, "at least 1");
        is(run(&request, 5, 5, 0.0, 1), Status::InvalidArgument, "link_gbps is 0");
        is(run(&request, 5, 5, 1.0, 0), Status::Plan, "0");
        is(run(&request, 1_000_000, 5, 1.0, 1), Status::InvalidArgument, "smaller window");
        let wrong = PlanRequest { slots: 20, ..request };
        is(run(&wrong, 5, 5, 1.0, 1), Status::Plan, "20 slots for 64 experts");
        is(
            eplb_replay_run(null(), &request, 5, 5, 1.0, 1, &mut replay),
            Status::InvalidArgument,
            "trace is null",
        );
        assert!(replay.is_null());
        assert_eq!(eplb_replay_run(trace, &request, 5, 5, 1.0, 1, &mut replay), Status::Ok, "{}", said());
        let mut summary: ReplaySummary = std::mem::zeroed();
        is(eplb_replay_summarize(replay, &mut summary), Status::InvalidArgument, "struct_size is 0");
        summary.struct_size = size_of::<ReplaySummary>();
        assert_eq!(eplb_replay_summarize(replay, &mut summary), Status::Ok);
        assert!(
            summary.first_step == 5 && summary.moves == 0 && (0.2..0.9).contains(&summary.mean),
            "{summary:?}"
        );
        let (mut values, mut moves) = (vec![0.0; summary.steps], vec![7; summary.steps]);
        assert_eq!(eplb_replay_balancedness(replay, values.as_mut_ptr(), summary.steps), Status::Ok);
        assert!((values.iter().sum::<f64>() / summary.steps as f64 - summary.mean).abs() < 1e-12);
        assert_eq!(eplb_replay_moves(replay, moves.as_mut_ptr(), summary.steps), Status::Ok);
        assert!(moves.iter().all(|&moves| moves == 0));
        is(eplb_replay_balancedness(replay, values.as_mut_ptr(), 1), Status::InvalidArgument, "room for 1");
        is(eplb_replay_summarize(null(), null_mut()), Status::InvalidArgument, "replay is null");
        eplb_replay_free(replay);
        eplb_replay_free(null_mut());
        eplb_trace_free(trace);
    }
}
