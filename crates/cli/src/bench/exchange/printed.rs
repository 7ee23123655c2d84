//! What is printed of an exchange bench.

use std::time::Duration;

use eplb_comm_nccl::Served;
use eplb_engine::bench::{Crowded, ExchangeBench, ExchangeReport};
use eplb_engine::machine::Reason;
use serde_json::{Value, json};

use super::{BackendArg, Exchange};
use crate::output::{Failure, number, optional};

/// Wrong bytes, or bytes that something else carried, are failures.
pub(in crate::bench) fn check(report: &ExchangeReport) -> Result<(), Failure> {
    let carried: u64 = report.carried_bytes.iter().map(|(_, bytes)| bytes).sum();
    if !report.verified {
        return Err(Failure::Run(format!("{} bytes are wrong after the exchange", report.bytes_wrong)));
    }
    if carried != report.planned_bytes {
        return Err(Failure::Run(format!(
            "{carried} bytes were carried, {} were planned",
            report.planned_bytes
        )));
    }
    Ok(())
}

/// Microseconds of the rank where a time was longest.
fn worst(report: &ExchangeReport, of: impl Fn(&Served) -> Duration) -> Option<f64> {
    report.served.iter().map(of).max().map(|time| time.as_secs_f64() * 1e6)
}

pub(in crate::bench) fn backend(args: &Exchange) -> &'static str {
    match args.backend {
        BackendArg::Local => "local",
        BackendArg::Gloo => "gloo",
        BackendArg::Nccl => "nccl",
        BackendArg::Pynccl => "pynccl",
        BackendArg::Peer => "peer",
        BackendArg::Auto => "auto",
    }
}

/// Of `peer` and `auto`, what the communicators call themselves, so that host memory is never taken for devices.
fn carried_by(report: &ExchangeReport, args: &Exchange) -> &'static str {
    match args.backend {
        BackendArg::Peer | BackendArg::Auto => report.backend,
        _ => backend(args),
    }
}

pub(in crate::bench) fn object(bench: &ExchangeBench, report: &ExchangeReport, args: &Exchange) -> Value {
    let carried: serde_json::Map<String, Value> =
        report.carried_bytes.iter().map(|&(name, bytes)| (name.to_owned(), json!(bytes))).collect();
    let mut object = json!({
        "backend": carried_by(report, args),
        "carried_bytes": carried,
        "auto": report.reasons.iter().map(|reason| json!({ "backend": reason.backend, "why": reason.why }))
            .collect::<Vec<_>>(),
        "placement": bench.moves.to_string(),
        "ranks": bench.ranks,
        "processes": args.processes || args.backend == BackendArg::Auto,
        "ms_median": number(report.ms_median),
        "ms_min": number(report.ms_min),
        "ms_first": number(report.ms_first),
        "ms": report.ms.iter().take(32).copied().map(number).collect::<Vec<_>>(),
        "bytes_worst_rank": report.bytes_worst_rank,
        "gbps_worst_rank": number(report.gbps_worst_rank),
        "staging_bytes": report.staging_bytes,
        "pool_bytes": report.pool_bytes,
        "pinned_bytes": report.pinned_bytes,
        "device_bytes": report.device_bytes,
        "waves": report.waves,
        "moves": report.moves,
        "staged": report.staged,
        "verified": report.verified,
        "checksums": bench.checksums,
        "nodes": bench.nodes,
        "max_gbps": optional(bench.max_gbps),
        "pull_cpu_moving": optional(report.pull_cpu.map(|(moving, _)| moving)),
        "pull_cpu_idle": optional(report.pull_cpu.map(|(_, idle)| idle)),
        "min_ctas": bench.config.min_ctas,
        "max_ctas": bench.config.max_ctas,
        "iters": report.ms.len(),
        "checks": report.checks,
    });
    for more in [against_links(report), steps(report), beside(bench, report, args)] {
        if let (Value::Object(all), Value::Object(more)) = (&mut object, more) {
            all.extend(more);
        }
    }
    object
}

/// What plain copies did, and how near to it and to what ports carry the exchange came.
fn against_links(report: &ExchangeReport) -> Value {
    json!({
        "link_gbps": optional(report.link_gbps),
        "link_share": optional(report.link_gbps.map(|link| report.gbps_worst_rank / link)),
        "batched_gbps": optional(report.batched_gbps),
        "batched_share": optional(report.batched_gbps.map(|batched| report.gbps_worst_rank / batched)),
        "link_manners": report.link_manners.iter().map(|&(name, gbps)| (name.to_owned(), number(gbps)))
            .collect::<serde_json::Map<String, Value>>(),
        "bytes_busiest_port": report.bytes_busiest_port,
        "port_gbps": optional(report.port_gbps),
        "ms_bound": optional(report.ms_bound()),
        "bound_share": optional(report.ms_bound().map(|bound| bound / report.ms_median)),
        "sends_gbps": optional(report.sends_gbps),
        "sends_share": optional(report.sends_gbps.map(|sends| report.gbps_worst_rank / sends)),
    })
}

/// What steps saw of commits.
fn steps(report: &ExchangeReport) -> Value {
    json!({
        "steps": report.steps,
        "margin": report.margin,
        "again": report.again,
        "stall_us_max": number(report.stall_us_max),
        "commit_bytes_worst": report.commit_bytes_worst,
        "copy_gbps": optional(report.copy_gbps),
        "commit_us_least": optional(report.commit_us_least()),
    })
}

/// What ran beside.
fn beside(bench: &ExchangeBench, report: &ExchangeReport, args: &Exchange) -> Value {
    let crowded = |of: fn(&Crowded) -> f64| optional(report.crowded.iter().map(of).reduce(f64::max));
    json!({
        "launch": if args.launch_in_steps { "steps" } else { "thread" },
        "lent": args.lent,
        "beside_bytes": bench.beside_bytes,
        "beside_steps": report.served.iter().map(|served| served.steps).max(),
        "beside_ms_worst": optional(worst(report, |served| served.worst).map(|us| us / 1e3)),
        "launch_us": optional(worst(report, |served| served.launch_worst)),
        "crowd_launches": report.crowded.iter().map(|crowded| crowded.launches).min(),
        "crowd_blocks": report.crowded.iter().map(|crowded| crowded.blocks).max(),
        "crowd_ms_worst": crowded(|crowded| crowded.worst.as_secs_f64() * 1e3),
    })
}

pub(super) fn text(report: &ExchangeReport, args: &Exchange) -> String {
    let link = report.link_gbps.map_or(String::new(), |link| {
        let share = |of: f64| 100.0 * report.gbps_worst_rank / of;
        let batched =
            report.batched_gbps.map(|batched| format!(", {:.0}% of {batched:.1} in batches", share(batched)));
        format!(", {:.0}% of the {link:.1} GB/s of plain copies{}", share(link), batched.unwrap_or_default())
    });
    let bound = report.ms_bound().map_or(String::new(), |bound| {
        format!(
            "busiest port: {:.2} GB, at least {bound:.2} ms at the {:.1} GB/s that it gives alone, {:.0}% of the time taken\n",
            report.bytes_busiest_port as f64 / 1e9,
            report.port_gbps.unwrap_or(0.0),
            100.0 * bound / report.ms_median
        )
    });
    let commits = report.commit_us_least().zip(report.copy_gbps).map_or(String::new(), |(least, copy)| {
        format!(
            "longest call of step: {:.0} us; the largest commit copies {:.0} MB on a rank, {least:.0} us at the {copy:.0} GB/s that are read and written there; \
             {} steps\n",
            report.stall_us_max,
            report.commit_bytes_worst as f64 / 1e6,
            report.steps
        )
    });
    let again = match report.again {
        0 => String::new(),
        again => format!(
            "a commit was proposed too late: measured again, {again} times, now {} steps ahead\n",
            report.margin
        ),
    };
    let reasons: String = Reason::lines(&report.reasons).iter().map(|line| format!("{line}\n")).collect();
    format!(
        "{reasons}{} {} on {} ranks: {:.2} ms (median; least {:.2}, first {:.2}), {:.1} GB/s into the worst rank{link}\n\
         {again}{bound}{commits}\
         {} moves, {} staged, {} waves, staging {} MiB; {}\n",
        carried_by(report, args),
        args.placement,
        args.ranks,
        report.ms_median,
        report.ms_min,
        report.ms_first,
        report.gbps_worst_rank,
        report.moves,
        report.staged,
        report.waves,
        report.staging_bytes >> 20,
        if report.verified {
            "every byte right".into()
        } else {
            format!("{} BYTES WRONG", report.bytes_wrong)
        },
    )
}
