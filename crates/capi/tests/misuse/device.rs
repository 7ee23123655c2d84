//! Engines on devices, as far as they can be misused where there is no device. What needs one is tried on fakes by the Python package's tests.

use std::ptr::{null, null_mut};

use eplb::*;

use super::engine::{builder, engine};
use super::{is, said};

fn empty() -> DeviceMaps {
    // SAFETY: any bits are a value of it.
    let maps: DeviceMaps = unsafe { std::mem::zeroed() };
    DeviceMaps { struct_size: size_of::<DeviceMaps>(), ..maps }
}

#[test]
fn builders_and_transports_of_devices_name_what_is_wrong() {
    let mut weights = [0u8; 32];
    let builder = builder(&mut weights);
    let mut transport = null_mut();
    // SAFETY: live handles or null, room for a pointer.
    unsafe {
        is(eplb_builder_device(null(), 0), Status::InvalidArgument, "builder is null");
        // Its layers lie in host memory; where there is no driver, or no such device, that is said first.
        assert!(
            matches!(eplb_builder_device(builder, 4000), Status::Engine | Status::InvalidArgument),
            "{}",
            said()
        );
        is(eplb_transport_peer(0, null_mut()), Status::InvalidArgument, "transport is null");
        is(eplb_transport_nccl(0, null_mut()), Status::InvalidArgument, "transport is null");
        for processes in [0, 1] {
            assert_eq!(eplb_transport_peer(processes, &mut transport), Status::Ok);
            eplb_transport_free(transport);
            assert_eq!(eplb_transport_nccl(processes, &mut transport), Status::Ok);
            eplb_transport_free(transport);
            assert_eq!(eplb_transport_nccl_in_steps(processes, &mut transport), Status::Ok);
            eplb_transport_free(transport);
        }
        is(eplb_transport_nccl_in_steps(0, null_mut()), Status::InvalidArgument, "transport is null");
        is(eplb_transport_auto(null(), null(), 0, null_mut()), Status::InvalidArgument, "transport is null");
        let nowhere = eplb_transport_auto(null(), c"here".as_ptr(), 0, &mut transport);
        is(nowhere, Status::InvalidArgument, "names no store");
        let (mut text, mut len) = ([1; 8], 9);
        is(
            eplb_transport_reasons(null(), text.as_mut_ptr(), 8, &mut len),
            Status::InvalidArgument,
            "transport is null",
        );
        for in_steps in [0, 1] {
            assert_eq!(eplb_transport_auto(null(), null(), in_steps, &mut transport), Status::Ok);
            // No ranks have met.
            assert_eq!(eplb_transport_reasons(transport, text.as_mut_ptr(), 8, &mut len), Status::Ok);
            assert_eq!((text[0], len), (0, 0));
            is(
                eplb_transport_reasons(transport, text.as_mut_ptr(), 8, null_mut()),
                Status::InvalidArgument,
                "len is null",
            );
            eplb_transport_free(transport);
        }
        is(eplb_transport_shared_memory(null_mut()), Status::InvalidArgument, "transport is null");
        assert_eq!(eplb_transport_shared_memory(&mut transport), Status::Ok);
        eplb_transport_free(transport);
        eplb_builder_free(builder);
    }
}

#[test]
fn engines_in_host_memory_have_no_streams_and_no_maps_on_a_device() {
    let mut weights = [0u8; 32];
    let engine = engine(&mut weights);
    let (streams, mut maps) = ([1u64; 2], empty());
    // SAFETY: live handles or null, arrays as long as said.
    unsafe {
        let step = |engine, streams, count| eplb_engine_step_on(engine, 0, streams, count);
        is(step(null(), streams.as_ptr(), 1), Status::InvalidArgument, "engine is null");
        is(step(engine, null(), 1), Status::InvalidArgument, "streams is null");
        is(step(engine, streams.as_ptr(), usize::MAX), Status::InvalidArgument, "too many");
        is(step(engine, streams.as_ptr(), 2), Status::InvalidArgument, "host memory");
        is(eplb_engine_device_maps(null(), 0, &mut maps), Status::InvalidArgument, "engine is null");
        is(eplb_engine_device_maps(engine, 7, &mut maps), Status::InvalidArgument, "layer sets 0 to 0");
        is(eplb_engine_device_maps(engine, 0, &mut maps), Status::State, "eplb_engine_maps");
        assert_eq!((maps.layers, maps.phy2log), (0, 0));
        eplb_engine_free(engine);
    }
}

#[test]
fn counting_on_a_device_names_what_is_wrong() {
    let mut weights = [0u8; 32];
    let engine = engine(&mut weights);
    let pass = PassOf { struct_size: size_of::<PassOf>(), step: 0, tag: 0, dummy: 0 };
    let choices = DeviceChoicesOf {
        struct_size: size_of::<DeviceChoicesOf>(),
        layer: 0,
        ids: 64,
        id_bytes: 8,
        of_slots: 0,
        tokens: 1,
        k: 2,
        row_stride: 0,
        mask: 0,
        valid: 0,
    };
    let counts =
        DeviceCountsOf { struct_size: size_of::<DeviceCountsOf>(), counts: 64, count_bytes: 8, of_slots: 0 };
    let mut counted = 7;
    // SAFETY: live handles or null, structures with their sizes; the addresses are never read, because the engine lies in host memory.
    unsafe {
        let topk = |choices: &DeviceChoicesOf| eplb_engine_record_topk(engine, 0, &pass, choices, 1);
        is(topk(&choices), Status::InvalidArgument, "host memory");
        is(topk(&DeviceChoicesOf { id_bytes: 2, ..choices }), Status::InvalidArgument, "4 or 8");
        is(topk(&DeviceChoicesOf { ids: 0, ..choices }), Status::InvalidArgument, "ids is null");
        is(topk(&DeviceChoicesOf { row_stride: 1, ..choices }), Status::InvalidArgument, "row_stride");
        is(topk(&DeviceChoicesOf { tokens: 1 << 40, ..choices }), Status::InvalidArgument, "below 2^31");
        is(topk(&DeviceChoicesOf { tokens: 1 << 30, ..choices }), Status::InvalidArgument, "below 2^31");
        is(topk(&DeviceChoicesOf { struct_size: 8, ..choices }), Status::InvalidArgument, "struct_size");
        is(eplb_engine_record_topk(engine, 0, &pass, null(), 1), Status::InvalidArgument, "choices is null");
        is(
            eplb_engine_record_topk(engine, 5, &pass, &choices, 1),
            Status::InvalidArgument,
            "layer sets 0 to 0",
        );
        is(eplb_engine_record_topk(null(), 0, &pass, &choices, 1), Status::InvalidArgument, "engine is null");
        let slots =
            DeviceSlotsOf { struct_size: size_of::<DeviceSlotsOf>(), slots: 64, row_stride: 0, salt: 0 };
        let dispatch = |choices: &DeviceChoicesOf, slots: &DeviceSlotsOf| {
            eplb_engine_dispatch_topk(engine, 0, &pass, choices, slots, 1)
        };
        is(dispatch(&choices, &slots), Status::InvalidArgument, "host memory");
        is(dispatch(&DeviceChoicesOf { of_slots: 1, ..choices }, &slots), Status::InvalidArgument, "experts");
        is(dispatch(&DeviceChoicesOf { k: 0, ..choices }, &slots), Status::InvalidArgument, "k is 0");
        is(dispatch(&choices, &DeviceSlotsOf { slots: 0, ..slots }), Status::InvalidArgument, "null");
        is(
            dispatch(&choices, &DeviceSlotsOf { row_stride: 1, ..slots }),
            Status::InvalidArgument,
            "row_stride",
        );
        is(
            dispatch(&choices, &DeviceSlotsOf { struct_size: 4, ..slots }),
            Status::InvalidArgument,
            "struct_size",
        );
        for (engine, set, choices, slots, word) in [
            (null(), 0, &raw const choices, &raw const slots, "engine is null"),
            (engine.cast_const(), 5, &raw const choices, &raw const slots, "layer sets 0 to 0"),
            (engine.cast_const(), 0, null(), &raw const slots, "choices is null"),
            (engine.cast_const(), 0, &raw const choices, null(), "slots is null"),
        ] {
            is(
                eplb_engine_dispatch_topk(engine, set, &pass, choices, slots, 1),
                Status::InvalidArgument,
                word,
            );
        }
        let mut copied = |counts: &DeviceCountsOf| {
            eplb_engine_record_counts(engine, 0, &pass, counts, 1, &raw mut counted)
        };
        is(copied(&counts), Status::InvalidArgument, "host memory");
        is(copied(&DeviceCountsOf { count_bytes: 1, ..counts }), Status::InvalidArgument, "4 or 8");
        is(copied(&DeviceCountsOf { counts: 0, ..counts }), Status::InvalidArgument, "null");
        is(
            eplb_engine_record_counts(engine, 0, &pass, null(), 1, null_mut()),
            Status::InvalidArgument,
            "counts is null",
        );
        is(
            eplb_engine_record_counts(null(), 0, &pass, &counts, 1, null_mut()),
            Status::InvalidArgument,
            "engine is null",
        );
        assert_eq!(counted, 7);
        let mut counters: DeviceCounters = std::mem::zeroed();
        counters.struct_size = size_of::<DeviceCounters>();
        is(eplb_engine_device_counters(engine, 0, &mut counters), Status::State, "host memory");
        is(eplb_engine_device_counters(null(), 0, &mut counters), Status::InvalidArgument, "engine is null");
        eplb_engine_free(engine);
    }
}
