//! Every function of the header, found in its text, called with what makes no sense: an error, never a crash.
//!
//! A C program is written for it, which runs under sanitizers: with nothing (null and 0), with live handles and nothing else, with structures of
//! every wrong size, on an engine that was shut down and a builder that is spent; then all of that on two threads at a time.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use super::compile::{SANITIZERS, compile, output, root, run, succeed};
use super::prototypes::{Parameter, Prototype, functions, structures};

/// What is passed where a handle is wanted.
const HANDLES: &[(&str, &str)] = &[
    ("eplb_builder", "builder"),
    ("eplb_engine", "engine"),
    ("eplb_maps", "maps"),
    ("eplb_plan", "plan"),
    ("eplb_planner", "planner"),
    ("eplb_replay", "replay"),
    ("eplb_store", "store"),
    ("eplb_store_server", "server"),
    ("eplb_trace", "trace"),
    ("eplb_transport", "transport"),
];

/// Sizes that no version of a structure had.
const SIZES: &[&str] = &["0", "3", "4", "1 << 20"];

/// What is set up once, with names as above.
const SETUP: &str = r#"
static eplb_builder *builder, *spent;
static eplb_engine *engine;
static eplb_maps *maps;
static eplb_plan *plan;
static eplb_planner *planner;
static eplb_replay *replay;
static eplb_store *store;
static eplb_store_server *server;
static eplb_trace *trace;
static eplb_transport *transport;
static unsigned char weights[4 * 8];

static void must(enum eplb_status status, const char *call)
{
    if (status != EPLB_STATUS_OK) {
        fprintf(stderr, "%s: %s\n", call, eplb_last_error());
        exit(1);
    }
}
#define MUST(call) must(call, #call)

static eplb_builder *build(void)
{
    eplb_builder *made;
    uint32_t set;
    struct eplb_tensor tensor = { .struct_size = sizeof tensor, .name = "w", .data = weights, .rows = 1, .row_bytes = 8 };
    MUST(eplb_builder_new(NULL, 0, 1, NULL, NULL, &made));
    MUST(eplb_builder_layer_set(made, "main", 1, 3, 4, NULL, 1, &set));
    MUST(eplb_builder_register_layer(made, set, 0, &tensor, 1));
    return made;
}

static void set_up(const char *file)
{
    struct eplb_plan_request request;
    double loads[4] = { 4, 3, 2, 1 };
    MUST(eplb_plan_request_init(&request, sizeof request));
    request.loads = loads, request.layers = 1, request.experts = 4, request.ranks = 2, request.slots = 6;
    MUST(eplb_planner_new(1, &planner));
    MUST(eplb_planner_plan(planner, &request, &plan));
    MUST(eplb_trace_open(file, &trace));
    request.ranks = 16, request.slots = 80, request.policy = "static";
    MUST(eplb_replay_run(trace, &request, 5, 5, 1, 1, &replay));
    MUST(eplb_store_in_process(&store));
    MUST(eplb_store_serve("127.0.0.1:0", &server));
    MUST(eplb_transport_local(1, &transport));
    spent = build();
    MUST(eplb_builder_start(spent, &engine));
    MUST(eplb_engine_maps(engine, 0, &maps));
    builder = build();
}

static void tear_down(void)
{
    eplb_maps_free(maps), eplb_engine_free(engine), eplb_builder_free(builder), eplb_builder_free(spent);
    eplb_plan_free(plan), eplb_planner_free(planner), eplb_replay_free(replay), eplb_trace_free(trace);
    eplb_transport_free(transport), eplb_store_server_free(server), eplb_store_free(store);
}

/* Of each thread: what pointers that no handle is asked for point to. */
static _Thread_local struct { _Alignas(16) unsigned char bytes[4096]; } room;
static void *sized(size_t size)
{
    memset(room.bytes, 0, sizeof room.bytes);
    memcpy(room.bytes, &size, sizeof size);
    return room.bytes;
}
static int quiet;
static void tell(const char *name, const char *how, enum eplb_status status)
{
    if (!quiet)
        printf("%s|%s|%d|%s\n", name, how, (int)status, eplb_last_error());
}
"#;

const MAIN: &str = r#"
static void *again(void *unused)
{
    (void)unused;
    for (int turn = 0; turn < 20; turn++)
        with_nothing(), with_handles(), with_wrong_sizes();
    return NULL;
}

int main(int count, char **arguments)
{
    pthread_t threads[2];
    if (count != 2)
        return 9;
    set_up(arguments[1]);
    with_nothing(), with_handles(), with_wrong_sizes();
    quiet = 1;
    for (int at = 0; at < 2; at++)
        if (pthread_create(&threads[at], NULL, again, NULL) != 0)
            return 8;
    for (int at = 0; at < 2; at++)
        pthread_join(threads[at], NULL);
    quiet = 0;
    MUST(eplb_engine_shutdown(engine, 60000));
    when_stopped();
    tear_down();
    return 0;
}
"#;

/// The functions that may be called at any time: handles are freed once, at the end.
fn callable(header: &str) -> Vec<Prototype> {
    let all = functions(header);
    assert!(all.len() > 75, "{} functions", all.len());
    all.into_iter().filter(|function| function.returns == "enum eplb_status").collect()
}

/// A value for a number: one for lengths of arrays, so that they are looked at.
fn number(parameter: &Parameter) -> &'static str {
    match parameter.name.as_str() {
        "count" | "len" | "steps" | "send_count" | "receive_count" => "1",
        _ => "0",
    }
}

fn handle_of(parameter: &Parameter) -> Option<&'static str> {
    let structure = parameter.structure().filter(|_| parameter.depth() == 1)?;
    HANDLES.iter().find(|(name, _)| *name == structure).map(|(_, handle)| *handle)
}

/// A call, and what becomes of a handle that it makes all the same.
fn call(out: &mut String, function: &Prototype, how: &str, value: impl Fn(&Parameter) -> String) {
    let made = function
        .parameters
        .iter()
        .find(|parameter| parameter.depth() == 2 && parameter.structure().is_some());
    let values: Vec<String> = function
        .parameters
        .iter()
        .map(|parameter| match made {
            Some(made) if made.name == parameter.name && how != "nothing" => "&made".to_owned(),
            _ => value(parameter),
        })
        .collect();
    let name = &function.name;
    let call = format!("{name}({})", values.join(", "));
    match made.and_then(Parameter::structure).filter(|_| how != "nothing") {
        Some(kind) => writeln!(
            out,
            "    {{ struct {kind} *made = NULL; enum eplb_status status = {call}; tell(\"{name}\", \"{how}\", status); if (made) {kind}_free(made); }}"
        ),
        None => writeln!(out, "    tell(\"{name}\", \"{how}\", {call});"),
    }
    .unwrap();
}

/// The program, from the header's text.
fn program(header: &str) -> String {
    let callable = callable(header);
    let sized: Vec<String> = structures(header).into_iter().map(|(name, _)| name).collect();
    let is_sized = |parameter: &Parameter| {
        parameter.depth() == 1
            && parameter.structure().is_some_and(|name| sized.iter().any(|known| known == name))
    };
    let mut out = String::from(
        "#include <pthread.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include \"eplb.h\"\n",
    );
    out.push_str(SETUP);
    out.push_str("static void with_nothing(void)\n{\n");
    for function in &callable {
        call(&mut out, function, "nothing", |_| "0".to_owned());
    }
    out.push_str("}\nstatic void with_handles(void)\n{\n");
    for function in callable.iter().filter(|function| function.name != "eplb_engine_shutdown") {
        if function.parameters.iter().any(|parameter| handle_of(parameter).is_some()) {
            // A builder that is started is spent, for all calls behind it.
            let own = |parameter: &Parameter| match handle_of(parameter) {
                Some("builder") if function.name == "eplb_builder_start" => "spent".to_owned(),
                Some(handle) => handle.to_owned(),
                None => number(parameter).to_owned(),
            };
            let nulls = |parameter: &Parameter| {
                if parameter.depth() > 0 && handle_of(parameter).is_none() {
                    "0".to_owned()
                } else {
                    own(parameter)
                }
            };
            call(&mut out, function, "handles", nulls);
        }
    }
    out.push_str("}\nstatic void with_wrong_sizes(void)\n{\n");
    for function in &callable {
        for wrong in function.parameters.iter().filter(|parameter| is_sized(parameter)) {
            for size in SIZES {
                let value = |parameter: &Parameter| match handle_of(parameter) {
                    _ if parameter.name == wrong.name => format!("sized({size})"),
                    Some(handle) => handle.to_owned(),
                    None if is_sized(parameter) => {
                        format!(
                            "&(struct {}){{ .struct_size = sizeof(struct {0}) }}",
                            parameter.structure().unwrap_or_default()
                        )
                    }
                    None if parameter.kind == "const uint64_t *" => "(const uint64_t[4]){ 0 }".to_owned(),
                    None if parameter.name == "struct_size" => (*size).to_owned(),
                    // Counts of the one layer: three experts, four slots.
                    None if parameter.name == "len" => {
                        if function.name.ends_with("slots") { "4" } else { "3" }.to_owned()
                    }
                    None => number(parameter).to_owned(),
                };
                call(&mut out, function, &format!("size of {}", wrong.name), value);
            }
        }
    }
    out.push_str("}\nstatic void when_stopped(void)\n{\n");
    for function in &callable {
        let of = |kind: &str| function.parameters.iter().any(|parameter| handle_of(parameter) == Some(kind));
        if of("engine") || of("builder") {
            let value = |parameter: &Parameter| match handle_of(parameter) {
                Some("builder") => "spent".to_owned(),
                Some(handle) => handle.to_owned(),
                None if is_sized(parameter) => {
                    format!("sized(sizeof(struct {}))", parameter.structure().unwrap_or_default())
                }
                None if parameter.kind == "const char *" => "\"x\"".to_owned(),
                None if parameter.kind.contains("fn") => "0".to_owned(),
                None if parameter.depth() > 0 => "(void *)sized(0)".to_owned(),
                None => number(parameter).to_owned(),
            };
            call(&mut out, function, "stopped", value);
        }
    }
    out.push_str("}\n");
    out.push_str(MAIN);
    out
}

/// What a program told: of each function and way to call it, statuses and words.
type Told = BTreeMap<(String, String), Vec<(i32, String)>>;

/// Writes, compiles and runs the program; `planted` stands before it. The error: what it said when it ended badly.
fn run_program(name: &str, header: &str, planted: &str) -> Result<Told, String> {
    let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.c"));
    let text = program(header).replace("#include \"eplb.h\"\n", &format!("#include \"eplb.h\"\n{planted}\n"));
    std::fs::write(&source, text).unwrap();
    let program = source.with_extension("");
    succeed(&mut compile(&[&source], &program, SANITIZERS));
    // What a stopped engine saves, it saves there.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let trace = std::fs::canonicalize(root().join("tests/data/day_26x64.npz")).unwrap();
    let done = output(run(&program).current_dir(folder).arg(trace));
    if !done.status.success() {
        return Err(format!("{}: {}", done.status, String::from_utf8_lossy(&done.stderr)));
    }
    let mut told = Told::new();
    for line in String::from_utf8_lossy(&done.stdout).lines() {
        let mut parts = line.splitn(4, '|').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        let (name, how, status, words) = (next(), next(), next(), next());
        told.entry((name, how)).or_default().push((status.parse().unwrap(), words));
    }
    Ok(told)
}

/// What is wrong in what was told.
fn problems(header: &str, told: &Told) -> Vec<String> {
    let mut wrong = Vec::new();
    let (ok, invalid) = (eplb::Status::Ok as i32, eplb::Status::InvalidArgument as i32);
    let of =
        |name: &str, how: &str| told.get(&(name.to_owned(), how.to_owned())).cloned().unwrap_or_default();
    // No log, and the end of the one before, is what null means there.
    for function in callable(header).iter().filter(|function| function.name != "eplb_log_set") {
        let found = of(&function.name, "nothing");
        if !matches!(&found[..], [(status, words)] if *status == invalid && !words.is_empty()) {
            wrong.push(format!("{} with nothing: {found:?}", function.name));
        }
    }
    for ((name, how), found) in told {
        let sizes = how.starts_with("size of ");
        // Engines on the host have no arrays on a device, and say that first; and there are no connections between ranks here.
        let otherwise = ["eplb_engine_device_maps", "eplb_engine_device_counters", "eplb_pairs_exchange"];
        let words = if sizes && !otherwise.contains(&name.as_str()) { "struct_size" } else { "" };
        let refused = sizes || (how == "stopped" && name.starts_with("eplb_builder_"));
        if refused && !found.iter().all(|(status, told)| *status != ok && told.contains(words)) {
            wrong.push(format!("{name}, {how}: {found:?}"));
        }
    }
    let state = eplb::Status::State as i32;
    for call in ["pause", "resume", "quiesce", "reopen", "reform", "rebalance_now"] {
        let found = of(&format!("eplb_engine_{call}"), "stopped");
        if !matches!(found[..], [(status, _)] if status == state) {
            wrong.push(format!("{call} when stopped: {found:?}"));
        }
    }
    wrong
}

fn header() -> String {
    std::fs::read_to_string(root().join("crates/capi/include/eplb.h")).unwrap()
}

#[test]
fn every_function_answers_nonsense_with_an_error() {
    let header = header();
    let structures = structures(&header);
    assert!(structures.len() > 12 && structures.iter().all(|(_, sized)| *sized), "{structures:?}");
    let told = run_program("sweep", &header, "").unwrap();
    assert_eq!(problems(&header, &told), [""; 0]);
    let sizes =
        told.iter().filter(|((_, how), found)| how.starts_with("size of ") && found.len() == SIZES.len());
    assert!(sizes.count() > 20, "{:?}", told.keys());
}

/// A function that takes everything for good, and one that follows a null pointer.
#[test]
fn a_function_that_believes_its_caller_is_noticed() {
    let header = header();
    let believes =
        "#define eplb_plan_summarize(plan, summary) ((void)(plan), (void)(summary), EPLB_STATUS_OK)";
    let told = run_program("sweep-believes", &header, believes).unwrap();
    let wrong = problems(&header, &told);
    assert!(wrong.len() == 2 && wrong.iter().all(|text| text.contains("eplb_plan_summarize")), "{wrong:?}");
    let follows = "static enum eplb_status follow(volatile size_t *shape) { *shape = 7; return EPLB_STATUS_TRACE; }\n\
                   #define eplb_trace_shape(trace, shape) ((void)(trace), follow(shape))";
    let crashed = run_program("sweep-follows", &header, follows).unwrap_err();
    assert!(crashed.contains("null pointer") || crashed.contains("SEGV"), "{crashed}");
}
