//! What `eplb doctor` tells of the machine beside its accelerators.

use eplb_engine::doctor::Facts;
use eplb_engine::machine::{Choice, Found, Limit, Pair};
use serde_json::{Value, json};

use crate::output::bytes;

const PAIRS: [(Pair, &str, &str); 4] = [
    (Pair::Same, "same_rank", "inside a rank"),
    (Pair::Threads, "same_process", "ranks of one process"),
    (Pair::Host, "same_host", "processes of one host"),
    (Pair::Hosts, "other_host", "different hosts"),
];

/// For the JSON object.
pub(crate) fn object(found: &Found, facts: &Facts) -> Value {
    let limit = |limit: Option<Limit>| match limit {
        Some(Limit::At(at)) => json!(at),
        Some(Limit::Unlimited) => json!("unlimited"),
        None => Value::Null,
    };
    let libraries: Vec<Value> = found
        .libraries
        .iter()
        .map(|library| {
            json!({
                "name": library.name,
                "for": library.purpose,
                "path": library.path.as_ref().map(|path| path.display().to_string()),
                "version": library.version,
            })
        })
        .collect();
    let interfaces: Vec<Value> = found
        .interfaces
        .iter()
        .map(|i| json!({ "name": i.name, "state": i.state, "megabits": i.megabits }))
        .collect();
    let choices = |of: &dyn Fn(Pair) -> Choice| -> serde_json::Map<String, Value> {
        let choice = |&(pair, key, _): &(Pair, &str, &str)| {
            let Choice { backend, reasons } = of(pair);
            let reasons: Vec<Value> =
                reasons.iter().map(|r| json!({ "backend": r.backend, "why": r.why })).collect();
            (key.to_owned(), json!({ "backend": backend, "reasons": reasons }))
        };
        PAIRS.iter().map(choice).collect()
    };
    let backends = choices(&|pair| found.backends(pair));
    let backends_of_devices = choices(&|pair| found.backends_of_devices(facts, pair));
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "host": found.host,
        "gpus": found.gpus,
        "driver": found.driver,
        "libraries": libraries,
        "gloo": match &found.gloo {
            Ok(version) => json!({ "version": version }),
            Err(why) => json!({ "version": null, "why": why }),
        },
        "sharing": match &found.sharing {
            Ok(()) => json!({ "usable": true }),
            Err(why) => json!({ "usable": false, "why": why }),
        },
        "interfaces": interfaces,
        "shared_memory": found.shared_memory.map(|(all, free)| json!({ "bytes": all, "free": free })),
        "free_memory": found.free_memory,
        "limits": {
            "open_files": limit(found.open_files),
            "locked_memory": limit(found.locked_memory),
            "processes": limit(found.processes),
        },
        "backends": backends,
        "backends_of_devices": backends_of_devices,
        "advice": found.advice(),
    })
}

/// For people.
pub(crate) fn text(found: &Found, facts: &Facts) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| out += &format!("{name:<14} {value}\n");
    line("eplb", env!("CARGO_PKG_VERSION"));
    line("host", &found.host);
    match (&found.gpus[..], &found.driver) {
        ([], _) => line("GPUs", "none"),
        (gpus, driver) => {
            let driver = driver.as_deref().unwrap_or("unknown");
            line("GPUs", &format!("{} ({}), driver {driver}", gpus.len(), gpus.join(", ")));
        }
    }
    for library in &found.libraries {
        let version =
            library.version.as_deref().map(|version| format!(", version {version}")).unwrap_or_default();
        let place = library.path.as_ref().map(|path| format!("{}{version}", path.display()));
        line(library.name, &place.unwrap_or_else(|| format!("not found (for {})", library.purpose)));
    }
    line(
        "gloo",
        &match &found.gloo {
            Ok(version) => format!("usable, version {version}"),
            Err(why) => format!("not usable: {why}"),
        },
    );
    let shared = found
        .sharing
        .as_ref()
        .map_or_else(|why| format!("not usable: {why}"), |()| "usable, a copy was tried out".to_owned());
    line("shared memory", &shared);
    for interface in &found.interfaces {
        let speed = interface.megabits.map(|megabits| format!(", {megabits} Mb/s")).unwrap_or_default();
        line("interface", &format!("{} {}{speed}", interface.name, interface.state));
    }
    line(
        "/dev/shm",
        &match found.shared_memory {
            Some((all, free)) => format!("{} ({} free)", bytes(all), bytes(free)),
            None => "none".to_owned(),
        },
    );
    line("free memory", &found.free_memory.map_or_else(|| "unknown".to_owned(), bytes));
    let limit = |limit: Option<Limit>, show: fn(u64) -> String| match limit {
        Some(Limit::At(at)) => show(at),
        Some(Limit::Unlimited) => "unlimited".to_owned(),
        None => "unknown".to_owned(),
    };
    line("open files", &limit(found.open_files, |count| count.to_string()));
    line("pinned memory", &limit(found.locked_memory, bytes));
    line("processes", &limit(found.processes, |count| count.to_string()));
    out += "\nWhat carries experts (--backend auto; where both are met in one wave, both):\n";
    let mut tell = |words: &str, choice: Choice| {
        out += &format!("  {words}: {}\n", choice.backend.unwrap_or("nothing"));
        for reason in &choice.reasons {
            out += &format!("    {}: {}\n", reason.backend, reason.why);
        }
    };
    for (pair, _, words) in PAIRS {
        tell(words, found.backends(pair));
        if facts.cuda.is_ok() {
            tell(&format!("{words}, on GPUs"), found.backends_of_devices(facts, pair));
        }
    }
    let advice = found.advice();
    out += if advice.is_empty() { "\nNothing is missing.\n" } else { "\nTo install or set:\n" };
    for advice in advice {
        out += &format!("  - {advice}\n");
    }
    out
}
