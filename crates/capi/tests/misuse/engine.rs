//! The engine.

use std::ffi::CStr;
use std::ptr::{null, null_mut};

use eplb::*;

use super::store::stores;
use super::{is, said};

/// A builder of a rank that is alone, with one layer of three experts in four slots of eight bytes.
pub(crate) fn builder(weights: &mut [u8; 32]) -> *mut Builder {
    let (mut builder, mut set) = (null_mut(), 9);
    let tensor = Tensor {
        struct_size: size_of::<Tensor>(),
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

pub(crate) fn engine(weights: &mut [u8; 32]) -> *mut Engine {
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
        struct_size: size_of::<Tensor>(),
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
        // No transport is the one that finds out what fits.
        let mut pair = null_mut();
        assert_eq!(eplb_builder_new(null(), 0, 2, corner, null(), &mut pair), Status::Ok);
        eplb_builder_free(pair);
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
        let first = tensor(c"w", weights.as_mut_ptr());
        for (sizes, words) in [
            ([0, size_of::<Tensor>()], "tensors: struct_size is 0"),
            ([size_of::<Tensor>(), 0], "struct_size is 0"),
            ([size_of::<Tensor>() - 8, size_of::<Tensor>()], "struct_size is 48"),
        ] {
            let pair = sizes.map(|struct_size| Tensor { struct_size, ..first });
            is(eplb_builder_register_layer(builder, 0, 0, pair.as_ptr(), 2), Status::InvalidArgument, words);
        }
        is(
            eplb_builder_register_layer(builder, 0, 0, &first, usize::MAX / 8),
            Status::InvalidArgument,
            "are too many",
        );
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

/// Tokens that an engine has counted.
fn counted(engine: *const Engine) -> u64 {
    let (mut text, mut len) = (vec![0u8; 1 << 16], 0);
    // SAFETY: a live handle, room as said.
    let told = unsafe { eplb_engine_metrics(engine, 0, text.as_mut_ptr().cast(), text.len(), &mut len) };
    assert_eq!(told, Status::Ok, "{}", said());
    let lines = String::from_utf8_lossy(&text[..len]).into_owned();
    let counts = lines.lines().filter(|line| line.starts_with("eplb_tokens_total{"));
    counts.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn engines_name_what_is_wrong() {
    let mut weights = [0u8; 32];
    let engine = engine(&mut weights);
    let (counts, pass) = ([1u64; 4], PassOf { struct_size: size_of::<PassOf>(), step: 0, tag: 0, dummy: 0 });
    let choices = ChoicesOf {
        struct_size: size_of::<ChoicesOf>(),
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
        assert_eq!(eplb_engine_maps(engine, 0, &mut maps), Status::Ok);
        let mut view: MapsView = std::mem::zeroed();
        view.struct_size = size_of::<MapsView>() + 8;
        is(eplb_maps_view(maps, &mut view), Status::InvalidArgument, "struct_size");
        assert!(view.phy2log.is_null());
        eplb_maps_free(maps);
        assert_eq!(eplb_engine_step(engine, 5), Status::Ok);
        is(eplb_engine_step(engine, 5), Status::InvalidArgument, "step 5 after step 5");
        let slots = |len| eplb_engine_record_slots(engine, 0, &pass, counts.as_ptr(), len, null_mut());
        is(slots(3), Status::InvalidArgument, "need 4");
        assert_eq!(slots(4), Status::Ok);
        let experts =
            |pass: &PassOf| eplb_engine_record_experts(engine, 0, pass, counts.as_ptr(), 3, null_mut());
        assert_eq!(experts(&pass), Status::Ok);
        is(experts(&PassOf { tag: 9, ..pass }), Status::InvalidArgument, "tag 9");
        is(experts(&PassOf { struct_size: 8, ..pass }), Status::InvalidArgument, "pass: struct_size is 8");
        // Where it cannot be told what was left out, nothing is counted.
        let mut faults = CountFaults { struct_size: 7, missing: 3, out_of_range: 3 };
        is(
            eplb_engine_record_experts(engine, 0, &pass, counts.as_ptr(), 3, &mut faults),
            Status::InvalidArgument,
            "faults: struct_size is 7",
        );
        assert_eq!(counted(engine), 4 + 3);
        faults.struct_size = size_of::<CountFaults>();
        assert_eq!(eplb_engine_record_experts(engine, 0, &pass, counts.as_ptr(), 3, &mut faults), Status::Ok);
        assert_eq!((faults.missing, faults.out_of_range, counted(engine)), (0, 0, 4 + 3 + 3));
        is(
            eplb_engine_record_slots(engine, 0, &pass, null(), 4, null_mut()),
            Status::InvalidArgument,
            "counts is null",
        );
        let chosen = |choices: &ChoicesOf| eplb_engine_record_choices(engine, 0, &pass, choices, null_mut());
        assert_eq!(chosen(&choices), Status::Ok);
        is(
            chosen(&ChoicesOf { struct_size: 0, ..choices }),
            Status::InvalidArgument,
            "choices: struct_size is 0",
        );
        is(chosen(&ChoicesOf { id_bytes: 2, ..choices }), Status::InvalidArgument, "4 or 8");
        is(chosen(&ChoicesOf { ids: null(), ..choices }), Status::InvalidArgument, "ids is null");
        is(chosen(&ChoicesOf { layer: 1, ..choices }), Status::InvalidArgument, "layer 1");
        is(chosen(&ChoicesOf { tokens: usize::MAX, ..choices }), Status::InvalidArgument, "to");
        is(
            eplb_engine_record_choices(engine, 0, &pass, null(), null_mut()),
            Status::InvalidArgument,
            "choices is null",
        );
        is(eplb_engine_lent(engine, 0, 3, 0, &mut data), Status::InvalidArgument, "no tensor 0 of layer 3");
        is(eplb_engine_rebalance_now(engine, null_mut()), Status::InvalidArgument, "rounds is null");
        is(eplb_engine_wait_round(engine, 0, 1), Status::Timeout, "wait_round");
        is(eplb_engine_last_report(engine, 0, null_mut()), Status::InvalidArgument, "report is null");
        reports_of_programs_that_know_fewer_fields(engine);
        is(eplb_engine_metrics(engine, 0, null_mut(), 0, null_mut()), Status::InvalidArgument, "len is null");
        assert_eq!(eplb_engine_metrics(engine, 0, null_mut(), 0, &mut len), Status::Ok);
        let mut text = vec![7; len];
        // One byte too few for the zero behind it: nothing is copied.
        assert_eq!(eplb_engine_metrics(engine, 0, text.as_mut_ptr(), 1, &mut len), Status::Ok);
        assert_eq!(text[0], 7);
        is(
            eplb_engine_round_outcome(engine, 3, null_mut(), 0, &mut len),
            Status::InvalidArgument,
            "layer sets 0 to 0",
        );
        is(
            eplb_engine_round_outcome(engine, 0, null_mut(), 0, null_mut()),
            Status::InvalidArgument,
            "len is null",
        );
        is(eplb_engine_reform(null(), 10), Status::InvalidArgument, "engine is null");
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
                    let pass = PassOf { struct_size: size_of::<PassOf>(), step: round, tag: 1, dummy: 0 };
                    // SAFETY: a live handle; arrays as long as said.
                    unsafe {
                        if thread == 0 {
                            assert_eq!(eplb_engine_step(shared.0, round), Status::Ok, "{}", said());
                        }
                        let counts = [1u64; 3];
                        let counted =
                            eplb_engine_record_experts(shared.0, 0, &pass, counts.as_ptr(), 3, null_mut());
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

/// A program whose header has no `launch_us` gets what it knows, and nothing behind it is written.
///
/// # Safety
/// A live handle, of an engine that had no round.
unsafe fn reports_of_programs_that_know_fewer_fields(engine: *const Engine) {
    let known = std::mem::offset_of!(RoundReport, launch_us);
    // SAFETY: any bits are a value of it.
    let mut report: RoundReport = unsafe { std::mem::zeroed() };
    (report.struct_size, report.launch_us) = (known, 7.0);
    // SAFETY: as the caller promises; the structure is longer than it says.
    unsafe {
        assert_eq!(eplb_engine_last_report(engine, 0, &mut report), Status::Ok, "{}", said());
        assert!(
            report.struct_size == known && report.before.is_nan() && report.launch_us == 7.0,
            "{report:?}"
        );
        for wrong in [0, known - 8, known + 4, size_of::<RoundReport>() + 8] {
            report.struct_size = wrong;
            is(eplb_engine_last_report(engine, 0, &mut report), Status::InvalidArgument, "struct_size");
        }
        report.struct_size = size_of::<RoundReport>();
        assert_eq!(eplb_engine_last_report(engine, 0, &mut report), Status::Ok);
        assert!(report.launch_us.abs() < 1e-9, "{report:?}");
    }
}
