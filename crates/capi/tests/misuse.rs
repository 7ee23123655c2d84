//! Every entry with null, wrong sizes, wrong values, and from two threads: an error with words, never a crash.

use std::ffi::{CStr, CString};
use std::ptr::{null, null_mut};

use eplb::*;

/// What the last failed call said.
fn said() -> String {
    // SAFETY: the library's own text, valid until the next failure on this thread.
    unsafe { CStr::from_ptr(eplb_last_error()) }.to_str().unwrap().to_owned()
}

fn is(status: Status, expected: Status, words: &str) {
    assert_eq!(status, expected, "{}", said());
    assert!(said().contains(words), "{:?} does not say {words:?}", said());
}

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

/// A store for threads, and a corner of it.
fn stores() -> (*mut Store, *mut Store) {
    let (mut store, mut corner) = (null_mut(), null_mut());
    // SAFETY: room for pointers; a live handle.
    unsafe {
        assert_eq!(eplb_store_in_process(&mut store), Status::Ok);
        assert_eq!(eplb_store_prefix(store, c"a".as_ptr(), &mut corner), Status::Ok);
    }
    (store, corner)
}

#[test]
fn stores_take_and_give_values_and_name_what_is_wrong() {
    let (store, corner) = stores();
    let (mut bytes, mut len, mut swapped) = ([7u8; 4], 0, 7u8);
    // SAFETY: live handles, arrays with the room stated, or null.
    unsafe {
        assert_eq!(eplb_store_set(corner, c"k".as_ptr(), b"value".as_ptr(), 5, 1000), Status::Ok);
        // Seen through the whole store under its full name; longer than the room: only its length is told.
        assert_eq!(
            eplb_store_wait(store, c"a/k".as_ptr(), bytes.as_mut_ptr(), 4, &mut len, 1000),
            Status::Ok
        );
        assert_eq!((bytes, len), ([7; 4], 5));
        let swap = |expected: &[u8], new: &[u8], swapped: *mut u8| {
            let (base, wanted) = (expected.as_ptr(), expected.len());
            eplb_store_compare_and_set(
                corner,
                c"k".as_ptr(),
                base,
                wanted,
                new.as_ptr(),
                new.len(),
                1000,
                swapped,
            )
        };
        assert_eq!((swap(b"other", b"new", &mut swapped), swapped), (Status::Ok, 0));
        assert_eq!((swap(b"value", b"new", &mut swapped), swapped), (Status::Ok, 1));
        assert_eq!(eplb_store_wait(corner, c"k".as_ptr(), bytes.as_mut_ptr(), 4, &mut len, 1000), Status::Ok);
        assert_eq!((&bytes[..3], len), (&b"new"[..], 3));
        // Freed before its corner.
        eplb_store_free(store);
        is(eplb_store_wait(corner, c"none".as_ptr(), null_mut(), 0, &mut len, 20), Status::Timeout, "none");
        is(
            eplb_store_wait(corner, c"k".as_ptr(), null_mut(), 3, &mut len, 1000),
            Status::InvalidArgument,
            "bytes",
        );
        is(swap(b"new", b"", null_mut()), Status::InvalidArgument, "swapped is null");
        is(eplb_store_set(null(), c"k".as_ptr(), null(), 0, 1), Status::InvalidArgument, "store is null");
        is(eplb_store_set(corner, null(), null(), 0, 1), Status::InvalidArgument, "key is null");
        is(eplb_store_set(corner, c"k".as_ptr(), null(), 3, 1), Status::InvalidArgument, "bytes is null");
        is(eplb_store_set(corner, c"".as_ptr(), null(), 0, 1), Status::Store, "key");
        is(eplb_store_in_process(null_mut()), Status::InvalidArgument, "store is null");
        let (mut other, mut server) = (null_mut(), null_mut());
        is(eplb_store_open(c"nowhere".as_ptr(), 1, &mut other), Status::InvalidArgument, "tcp://host:port");
        is(eplb_store_open(null(), 1, &mut other), Status::InvalidArgument, "address is null");
        is(eplb_store_serve(c"127.0.0.1".as_ptr(), &mut server), Status::InvalidArgument, "host:port");
        is(eplb_store_server_port(null(), null_mut()), Status::InvalidArgument, "server is null");
        is(eplb_value_set(null_mut(), null(), 0), Status::InvalidArgument, "value is null");
        assert!(other.is_null() && server.is_null());
        eplb_store_free(corner);
        eplb_store_free(null_mut());
        eplb_store_server_free(null_mut());
    }
}

/// A host's store whose functions fail in every way: each is an error with the host's words.
#[test]
fn what_a_hosts_store_says_is_told() {
    use std::ffi::{c_char, c_void};
    unsafe extern "C" fn set(
        state: *mut c_void,
        _: *const c_char,
        _: *const u8,
        _: usize,
        _: u64,
        out: *mut Value,
    ) -> i32 {
        // SAFETY: the state is a number, the value the library's.
        unsafe {
            eplb_value_set(out, b"no disk".as_ptr(), 7);
            *state.cast::<i32>()
        }
    }
    unsafe extern "C" fn get(_: *mut c_void, _: *const c_char, _: u64, _: *mut Value) -> i32 {
        EPLB_STORE_NOT
    }
    unsafe extern "C" fn swap(
        _: *mut c_void,
        _: *const c_char,
        _: *const u8,
        _: usize,
        _: *const u8,
        _: usize,
        _: u64,
        _: *mut Value,
    ) -> i32 {
        EPLB_STORE_ABSENT
    }
    let mut code = EPLB_STORE_DONE;
    let mut given = StoreCallbacks {
        struct_size: size_of::<StoreCallbacks>(),
        name: c"etcd".as_ptr(),
        state: (&raw mut code).cast(),
        set: Some(set),
        get: Some(get),
        compare_and_set: Some(swap),
        remove: Some(get),
        max_value: 16,
    };
    let mut store = null_mut();
    // SAFETY: functions as documented, live handles.
    unsafe {
        assert_eq!(eplb_store_from_callbacks(&given, &mut store), Status::Ok);
        let put = |len| eplb_store_set(store, c"k".as_ptr(), [0u8; 17].as_ptr(), len, 1000);
        assert_eq!(put(3), Status::Ok);
        is(put(17), Status::Store, "16");
        for (told, status, words) in [
            (EPLB_STORE_TIMEOUT, Status::Timeout, "timed out"),
            (EPLB_STORE_LOST, Status::Store, "no disk"),
            (EPLB_STORE_FAILED, Status::Store, "no disk"),
            (77, Status::Store, "returned 77"),
        ] {
            given.state.cast::<i32>().write(told);
            is(put(3), status, words);
        }
        let mut swapped = 7;
        let swap = eplb_store_compare_and_set(store, c"k".as_ptr(), null(), 0, null(), 0, 1000, &mut swapped);
        assert_eq!((swap, swapped), (Status::Ok, 0));
        eplb_store_free(store);
        given.get = None;
        is(eplb_store_from_callbacks(&given, &mut store), Status::InvalidArgument, "must not be null");
        given.struct_size = 8;
        is(eplb_store_from_callbacks(&given, &mut store), Status::InvalidArgument, "struct_size");
        is(eplb_store_from_callbacks(null(), &mut store), Status::InvalidArgument, "callbacks is null");
    }
}

#[test]
fn pairs_name_what_is_wrong() {
    let (store, corner) = stores();
    let mut pairs = null_mut();
    let mut connect = |backend: &CStr, rank, world| {
        // SAFETY: texts, a live handle, room for a pointer.
        unsafe { eplb_pairs_connect(backend.as_ptr(), rank, world, corner, null(), 50, &mut pairs) }
    };
    is(connect(c"smoke", 0, 2), Status::InvalidArgument, "gloo");
    is(connect(c"gloo", 2, 2), Status::InvalidArgument, "world_size");
    is(connect(c"gloo", 0, 1), Status::InvalidArgument, "world_size");
    // Without its library it says so, with it that nobody came.
    assert!(matches!(connect(c"gloo", 0, 2), Status::Timeout | Status::Transfer), "{}", said());
    assert!(pairs.is_null());
    // SAFETY: null is allowed to be passed; live handles.
    unsafe {
        is(
            eplb_pairs_connect(c"gloo".as_ptr(), 0, 2, null(), null(), 1, &mut pairs),
            Status::InvalidArgument,
            "store is null",
        );
        is(
            eplb_pairs_connect(c"gloo".as_ptr(), 0, 2, corner, null(), 1, null_mut()),
            Status::InvalidArgument,
            "pairs is null",
        );
        is(eplb_pairs_exchange(null(), null(), 0, null(), 0, 1), Status::InvalidArgument, "pairs is null");
        is(eplb_pairs_received_bytes(null(), null_mut()), Status::InvalidArgument, "pairs is null");
        eplb_pairs_free(null_mut());
        eplb_store_free(corner);
        eplb_store_free(store);
    }
}

/// A builder of a rank that is alone, with one layer of three experts in four slots of eight bytes.
fn builder(weights: &mut [u8; 32]) -> *mut Builder {
    let (mut builder, mut set) = (null_mut(), 9);
    let tensor = Tensor {
        name: c"w".as_ptr(),
        data: weights.as_mut_ptr().cast(),
        rows: 1,
        row_bytes: 8,
        pitch: 0,
        slot_stride: 0,
    };
    // SAFETY: live handles, texts, room for results; the weights outlive the engine in every test.
    unsafe {
        assert_eq!(eplb_builder_new(null(), 0, 1, null(), null(), &mut builder), Status::Ok, "{}", said());
        let named = eplb_builder_layer_set(builder, c"main".as_ptr(), 1, 3, 4, null(), 1, &mut set);
        assert_eq!((named, set), (Status::Ok, 0), "{}", said());
        assert_eq!(eplb_builder_register_layer(builder, set, 0, &tensor, 1), Status::Ok, "{}", said());
    }
    builder
}

fn engine(weights: &mut [u8; 32]) -> *mut Engine {
    let (builder, mut engine) = (builder(weights), null_mut());
    // SAFETY: live handles, room for a pointer.
    unsafe {
        assert_eq!(eplb_builder_start(builder, &mut engine), Status::Ok, "{}", said());
        is(eplb_builder_start(builder, &mut engine), Status::State, "new builder");
        eplb_builder_free(builder);
    }
    engine
}

#[test]
fn builders_name_what_is_wrong() {
    let mut weights = [0u8; 32];
    let builder = builder(&mut weights);
    let (mut none, mut started, mut set) = (null_mut(), null_mut(), 0);
    let (store, corner) = stores();
    let tensor = |name: &CStr, data: *mut u8| Tensor {
        name: name.as_ptr(),
        data: data.cast(),
        rows: 1,
        row_bytes: 8,
        pitch: 0,
        slot_stride: 0,
    };
    // SAFETY: live handles or null, texts, arrays as long as said.
    unsafe {
        let mut made =
            |config: *const _, rank, world| eplb_builder_new(config, rank, world, null(), null(), &mut none);
        is(made(c"taget = 1".as_ptr(), 0, 1), Status::InvalidArgument, "taget");
        is(made(c"target = 7.0".as_ptr(), 0, 1), Status::InvalidArgument, "target");
        is(made(null(), 1, 1), Status::InvalidArgument, "ranks count from 0");
        is(made(null(), 0, 0), Status::InvalidArgument, "world_size 0");
        is(made(null(), 0, 2), Status::InvalidArgument, "store is null");
        is(
            eplb_builder_new(null(), 0, 2, corner, null(), &mut none),
            Status::InvalidArgument,
            "transport is null",
        );
        is(
            eplb_builder_new(null(), 0, 1, null(), null(), null_mut()),
            Status::InvalidArgument,
            "builder is null",
        );
        assert!(none.is_null());
        let name = c"draft".as_ptr();
        is(
            eplb_builder_layer_set(builder, name, 1, 5, 4, null(), 1, &mut set),
            Status::InvalidArgument,
            "a slot per expert",
        );
        is(
            eplb_builder_layer_set(builder, c"main".as_ptr(), 1, 3, 4, null(), 1, &mut set),
            Status::InvalidArgument,
            "different names",
        );
        is(
            eplb_builder_layer_set(null(), name, 1, 3, 4, null(), 1, &mut set),
            Status::InvalidArgument,
            "builder is null",
        );
        let register = |layer, tensor: &Tensor| eplb_builder_register_layer(builder, 0, layer, tensor, 1);
        is(register(0, &tensor(c"w", weights.as_mut_ptr())), Status::InvalidArgument, "registered twice");
        is(register(7, &tensor(c"w", weights.as_mut_ptr())), Status::InvalidArgument, "layer 7");
        is(eplb_builder_register_layer(builder, 0, 0, null(), 1), Status::InvalidArgument, "tensors is null");
        is(
            eplb_builder_register_layer(builder, 0, 0, &tensor(c"w", null_mut()), 0),
            Status::InvalidArgument,
            "count is 0",
        );
        is(
            eplb_builder_lend_layer(builder, 5, 0, &tensor(c"w", null_mut()), 1),
            Status::InvalidArgument,
            "no layer set 5",
        );
        is(eplb_builder_placement(builder, 0, [0; 3].as_ptr(), 3), Status::InvalidArgument, "need 4");
        is(eplb_builder_placement(builder, 0, [0, 1, 9, 2].as_ptr(), 4), Status::InvalidArgument, "9");
        is(eplb_builder_placement(builder, 4, [0].as_ptr(), 1), Status::InvalidArgument, "no layer set 4");
        is(eplb_builder_after_commit(builder, None, null_mut()), Status::InvalidArgument, "hook is null");
        is(eplb_builder_source(builder, None, null_mut()), Status::InvalidArgument, "source is null");
        is(eplb_builder_start(builder, null_mut()), Status::InvalidArgument, "engine is null");
        is(eplb_builder_start(null(), &mut started), Status::InvalidArgument, "builder is null");
        let mut transport = null_mut();
        is(eplb_transport_local(0, &mut transport), Status::InvalidArgument, "copy_threads");
        is(eplb_transport_local(1, null_mut()), Status::InvalidArgument, "transport is null");
        is(
            eplb_transport_gloo(null(), c"here".as_ptr(), &mut transport),
            Status::InvalidArgument,
            "names no store",
        );
        eplb_transport_free(null_mut());
        eplb_builder_free(null_mut());
        eplb_builder_free(builder);
        eplb_store_free(corner);
        eplb_store_free(store);
    }
}

#[test]
fn engines_name_what_is_wrong() {
    let mut weights = [0u8; 32];
    let engine = engine(&mut weights);
    let (counts, pass) = ([1u64; 4], PassOf { step: 0, tag: 0, dummy: 0 });
    let choices = ChoicesOf {
        layer: 0,
        ids: [0i64, 1].as_ptr().cast(),
        id_bytes: 8,
        of_slots: 0,
        tokens: 1,
        k: 2,
        row_stride: 0,
        mask: null(),
    };
    let (mut maps, mut number, mut len, mut data) = (null_mut(), 0, 0, null_mut());
    // SAFETY: live handles or null, arrays as long as said.
    unsafe {
        let null_engine = null::<Engine>();
        is(eplb_engine_step(null_engine, 0), Status::InvalidArgument, "engine is null");
        is(eplb_engine_tick(null_engine), Status::InvalidArgument, "engine is null");
        is(eplb_engine_maps(null_engine, 0, &mut maps), Status::InvalidArgument, "engine is null");
        is(eplb_engine_maps(engine, 1, &mut maps), Status::InvalidArgument, "layer sets 0 to 0");
        is(eplb_engine_maps(engine, 0, null_mut()), Status::InvalidArgument, "maps is null");
        is(eplb_engine_maps_version(engine, 0, null_mut()), Status::InvalidArgument, "version is null");
        is(eplb_maps_view(null(), null_mut()), Status::InvalidArgument, "maps is null");
        assert_eq!(eplb_engine_step(engine, 5), Status::Ok);
        is(eplb_engine_step(engine, 5), Status::InvalidArgument, "step 5 after step 5");
        let slots = |len| eplb_engine_record_slots(engine, 0, pass, counts.as_ptr(), len, null_mut());
        is(slots(3), Status::InvalidArgument, "need 4");
        assert_eq!(slots(4), Status::Ok);
        let experts = |pass| eplb_engine_record_experts(engine, 0, pass, counts.as_ptr(), 3, null_mut());
        assert_eq!(experts(pass), Status::Ok);
        is(experts(PassOf { tag: 9, ..pass }), Status::InvalidArgument, "tag 9");
        is(
            eplb_engine_record_slots(engine, 0, pass, null(), 4, null_mut()),
            Status::InvalidArgument,
            "counts is null",
        );
        let chosen = |choices: &ChoicesOf| eplb_engine_record_choices(engine, 0, pass, choices, null_mut());
        assert_eq!(chosen(&choices), Status::Ok);
        is(chosen(&ChoicesOf { id_bytes: 2, ..choices }), Status::InvalidArgument, "4 or 8");
        is(chosen(&ChoicesOf { ids: null(), ..choices }), Status::InvalidArgument, "ids is null");
        is(chosen(&ChoicesOf { layer: 1, ..choices }), Status::InvalidArgument, "layer 1");
        is(chosen(&ChoicesOf { tokens: usize::MAX, ..choices }), Status::InvalidArgument, "to");
        is(
            eplb_engine_record_choices(engine, 0, pass, null(), null_mut()),
            Status::InvalidArgument,
            "choices is null",
        );
        is(eplb_engine_lent(engine, 0, 3, 0, &mut data), Status::InvalidArgument, "no tensor 0 of layer 3");
        is(eplb_engine_rebalance_now(engine, null_mut()), Status::InvalidArgument, "rounds is null");
        is(eplb_engine_wait_round(engine, 0, 1), Status::Timeout, "wait_round");
        is(eplb_engine_last_report(engine, 0, null_mut()), Status::InvalidArgument, "report is null");
        is(eplb_engine_metrics(engine, 0, null_mut(), 0, null_mut()), Status::InvalidArgument, "len is null");
        assert_eq!(eplb_engine_metrics(engine, 0, null_mut(), 0, &mut len), Status::Ok);
        let mut text = vec![7; len];
        // One byte too few for the zero behind it: nothing is copied.
        assert_eq!(eplb_engine_metrics(engine, 0, text.as_mut_ptr(), 1, &mut len), Status::Ok);
        assert_eq!(text[0], 7);
        is(eplb_engine_save(engine, 0, null()), Status::InvalidArgument, "path is null");
        is(
            eplb_engine_save(engine, 0, c"/no/such/folder/plan.npz".as_ptr()),
            Status::InvalidArgument,
            "/no/such/folder",
        );
        is(eplb_engine_reopen(engine, 10), Status::State, "reopen");
        assert_eq!(eplb_engine_pause(engine), Status::Ok);
        assert_eq!(eplb_engine_resume(engine), Status::Ok);
        assert_eq!(eplb_engine_quiesce(engine, 1000), Status::Ok, "{}", said());
        is(eplb_engine_rebalance_now(engine, &mut number), Status::State, "rebalance_now");
        assert_eq!(eplb_engine_reopen(engine, 1000), Status::Ok, "{}", said());
        assert_eq!(eplb_engine_shutdown(engine, 1000), Status::Ok);
        assert_eq!(eplb_engine_shutdown(engine, 1000), Status::Ok);
        is(eplb_engine_pause(engine), Status::State, "pause");
        eplb_engine_free(engine);
        eplb_engine_free(null_mut());
        eplb_maps_free(null_mut());
    }
}

/// Everything but `step` and `tick` may be called from any thread, while steps run.
#[test]
fn an_engine_is_used_by_several_threads() {
    struct Shared(*mut Engine);
    // SAFETY: an engine may be used by several threads at a time.
    unsafe impl Sync for Shared {}
    let mut weights = [0u8; 32];
    let shared = Shared(engine(&mut weights));
    let shared = &shared;
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            scope.spawn(move || {
                for round in 0..300 {
                    let (mut maps, mut len) = (null_mut(), 0);
                    let pass = PassOf { step: round, tag: 1, dummy: 0 };
                    // SAFETY: a live handle; arrays as long as said.
                    unsafe {
                        if thread == 0 {
                            assert_eq!(eplb_engine_step(shared.0, round), Status::Ok, "{}", said());
                        }
                        let counts = [1u64; 3];
                        let counted =
                            eplb_engine_record_experts(shared.0, 0, pass, counts.as_ptr(), 3, null_mut());
                        assert_eq!(counted, Status::Ok, "{}", said());
                        assert_eq!(eplb_engine_maps(shared.0, 0, &mut maps), Status::Ok);
                        eplb_maps_free(maps);
                        assert_eq!(eplb_engine_state(shared.0, null_mut(), 0, &mut len), Status::Ok);
                    }
                }
            });
        }
    });
    // SAFETY: nobody uses it any more.
    unsafe { eplb_engine_free(shared.0) };
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
        let mut summary = std::mem::MaybeUninit::uninit();
        assert_eq!(eplb_replay_summarize(replay, summary.as_mut_ptr()), Status::Ok);
        let summary = summary.assume_init();
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
