//! Times of fresh plans, one thread, against the yardstick: `cargo bench -p eplb-benches --bench plan`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use eplb_benches::shapes::{KINDS, SHAPES};
use eplb_benches::yardstick;
use eplb_core::Topology;
use eplb_plan::{Options, Planner, Policy, Request};

fn plans(criterion: &mut Criterion) {
    let planner = Planner::new(1).expect("one thread is the caller's own");
    for shape in SHAPES {
        let mut group = criterion.benchmark_group(shape.name());
        group.sample_size(10);
        for kind in KINDS {
            let [loads, _] = shape.loads(kind, 0).expect("shapes and kinds are presets");
            let topology = Topology::uniform(shape.ranks, shape.slots).expect("every rank has slots");
            group.throughput(Throughput::Elements(loads.layers() as u64));
            let rows = loads.sum().as_slice().unwrap_or_default();
            let mut phy2log = vec![-1; loads.layers() * shape.slots];
            group.bench_function(BenchmarkId::new("yardstick", kind), |bench| {
                bench
                    .iter(|| yardstick::place(rows, loads.experts(), shape.ranks, shape.slots, &mut phy2log));
            });
            for policy in [Policy::Deepseek, Policy::Balanced] {
                let options = Options { policy, ..Options::default() };
                group.bench_function(BenchmarkId::new(policy.name(), kind), |bench| {
                    bench.iter(|| planner.place(&Request::new(&loads, &topology, &options)));
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, plans);
criterion_main!(benches);
