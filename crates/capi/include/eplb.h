/* eplb: expert-parallel load balancing. Generated from crates/capi; do not edit.
 *
 * Results. Every function that returns eplb_status writes its results through pointers, and only if the status is
 * EPLB_STATUS_OK; eplb_last_error then says what was wrong, for the calling thread. Null where something is needed, and
 * lengths that do not fit, are errors that name the argument. No panic and no C++ exception crosses this interface.
 *
 * Ownership. Handles are made by one function and freed by another (eplb_NAME_free), once; freeing NULL does nothing.
 * What is made with a handle keeps what it needs of it: a store, a transport or a builder may be freed as soon as the call
 * that took it has returned. Memory that a caller passes in is read or written during the call only, but for
 *   - tensors of eplb_builder_register_layer, which are the engine's to write until eplb_engine_shutdown is OK;
 *   - functions and states of callbacks, which stay valid until what they were given to is freed (a store and everything made
 *     with it; an engine), or, for the log, until another eplb_log_set has returned.
 * Pointers that the library hands out belong to it: eplb_last_error's text until the thread's next failure, arrays of maps
 * until eplb_maps_free, lent memory until eplb_engine_free.
 *
 * Threads. Several threads may use a handle at a time; none may while it is freed. Of an engine, eplb_engine_step and
 * eplb_engine_tick (and the functions that name streams) are for one thread at a time, all else is for any. A second thread
 * that uses a builder or pairs waits for the first. Calls with a timeout block, no others do but where they say so. Callbacks of a
 * store and of the log come from any thread, several at once; that of a commit comes inside eplb_engine_step or
 * eplb_engine_tick; that of missing experts from the thread that starts the engine, or the
 * engine's own. An engine in a group has one thread, alone it has none.
 * After fork, a child uses nothing of its parent's.
 *
 * Versions. Every structure starts with struct_size: set them up with their _init function, or set it to sizeof, in arrays in
 * every element. A program is served by every later library of the same EPLB_ABI_VERSION, which is part of the soname.
 */

#ifndef EPLB_H
#define EPLB_H

#include <stddef.h>
#include <stdint.h>

// Version of this interface: it changes when a program built against an older header may no longer run.
#define EPLB_ABI_VERSION 1

// The operation was done; for `get`, the value was there; for `compare_and_set`, it swapped; for `remove`, the key was there.
#define EPLB_STORE_DONE 0

// It was done too: the value was not there, another value was (handed over with `eplb_value_set`, unless the key was absent), or there was
// nothing to remove.
#define EPLB_STORE_NOT 1

// For `compare_and_set`: it did not swap, and the key was absent.
#define EPLB_STORE_ABSENT 2

// The time was over.
#define EPLB_STORE_TIMEOUT 3

// The store is gone for good; why is handed over with `eplb_value_set`.
#define EPLB_STORE_LOST 4

// Anything else went wrong; why is handed over with `eplb_value_set`.
#define EPLB_STORE_FAILED 5

// Log nothing.
#define EPLB_LOG_OFF 0

// What went wrong.
#define EPLB_LOG_ERROR 1

// What may go wrong.
#define EPLB_LOG_WARN 2

// A line for each round.
#define EPLB_LOG_INFO 3

// Changes of state.
#define EPLB_LOG_DEBUG 4

// Everything.
#define EPLB_LOG_TRACE 5

// How a call ended.
typedef enum eplb_status {
  // It did what it says.
  EPLB_STATUS_OK = 0,
  // An argument is null, has another size than expected, or a value that means nothing.
  EPLB_STATUS_INVALID_ARGUMENT = 1,
  // The request contradicts itself or cannot be answered: bad loads, too few slots, ..
  EPLB_STATUS_PLAN = 2,
  // A file could not be read, or does not hold what it should.
  EPLB_STATUS_TRACE = 3,
  // A fault in the library itself; the handle that was used should be freed.
  EPLB_STATUS_INTERNAL = 4,
  // A store failed, is lost, or refuses.
  EPLB_STATUS_STORE = 5,
  // The time limit of the call was over first.
  EPLB_STATUS_TIMEOUT = 6,
  // Bytes between ranks could not be carried; the message names rank and cause.
  EPLB_STATUS_TRANSFER = 7,
  // The engine cannot do this; the message says why.
  EPLB_STATUS_ENGINE = 8,
  // The call does not fit the engine's state.
  EPLB_STATUS_STATE = 9,
  // The forward pass must not run, and none until the ranks have formed a new epoch.
  EPLB_STATUS_MUST_NOT_RUN = 10,
} eplb_status;

// An engine that is being put together. A second thread that uses one waits for the first.
typedef struct eplb_builder eplb_builder;

// The engine of one rank.
typedef struct eplb_engine eplb_engine;

// The maps that were in force at some step. They never change; newer ones are another snapshot.
typedef struct eplb_maps eplb_maps;

// Connections between all ranks, for messages in batches. A second thread that uses one waits for the first.
typedef struct eplb_pairs eplb_pairs;

// A plan.
typedef struct eplb_plan eplb_plan;

// Plans, on threads of its own. Keep one: its memory is used again from plan to plan.
typedef struct eplb_planner eplb_planner;

// What a replay found.
typedef struct eplb_replay eplb_replay;

// A small map through which ranks meet.
typedef struct eplb_store eplb_store;

// A server of a TCP store in this process.
typedef struct eplb_store_server eplb_store_server;

// A trace of loads on disk.
typedef struct eplb_trace eplb_trace;

// A way between ranks.
typedef struct eplb_transport eplb_transport;

// A value that the library takes from a host's callback, or hands to a host. See `eplb_value_set`.
typedef struct eplb_value eplb_value;

// One tensor of a layer, from this rank's first slot on. Set `struct_size` to the size of this structure, in every one of an array.
typedef struct eplb_tensor {
  // Size of this structure.
  size_t struct_size;
  // Name, for messages and for the comparison over ranks.
  const char *name;
  // Address of the first local slot; not read where the engine lends the memory.
  void *data;
  // Rows of a slot.
  size_t rows;
  // Bytes of a row that belong to the expert.
  size_t row_bytes;
  // Bytes from one row to the next; 0: `row_bytes`.
  size_t pitch;
  // Bytes from one slot to the next; 0: `rows * pitch`.
  size_t slot_stride;
} eplb_tensor;

// Which forward pass counts are of. Set `struct_size` to the size of this structure.
typedef struct eplb_pass {
  // Size of this structure.
  size_t struct_size;
  // Its step: counts of slots are folded with the maps of that step.
  uint64_t step;
  // Kind of pass: a position in the configuration's `tags` (0 = prefill, 1 = decode by default).
  uint32_t tag;
  // Not 0: a dummy or warm-up pass; nothing is counted.
  uint32_t dummy;
} eplb_pass;

// Choices that could not be counted. Set `struct_size` to the size of this structure.
typedef struct eplb_count_faults {
  // Size of this structure.
  size_t struct_size;
  // Tokens counted at slots that the maps leave empty.
  uint64_t missing;
  // Ids that name no expert or slot.
  uint64_t out_of_range;
} eplb_count_faults;

// The router's choices of one layer. Set `struct_size` to the size of this structure.
typedef struct eplb_choices {
  // Size of this structure.
  size_t struct_size;
  // The layer.
  size_t layer;
  // Ids `[tokens, k]`, in host memory; a negative id is no choice.
  const void *ids;
  // Bytes of an id: 4 or 8, signed.
  uint32_t id_bytes;
  // Not 0: ids are slots, else experts.
  uint32_t of_slots;
  // Tokens.
  size_t tokens;
  // Choices of each token.
  size_t k;
  // Ids from one token to the next; 0: `k`.
  size_t row_stride;
  // 0 where a token is padding, `[tokens]`, or null: all count.
  const uint8_t *mask;
} eplb_choices;

// Where the device copies of a layer set's maps lie: contiguous, at these addresses and in these shapes as long as the engine lives, so
// that captured graphs may name them. Set `struct_size` to the size of this structure.
typedef struct eplb_device_maps {
  // Size of this structure.
  size_t struct_size;
  // MoE layers.
  size_t layers;
  // Slots per layer, over all ranks.
  size_t slots;
  // Logical experts per layer.
  size_t experts;
  // Columns of `log2phy`.
  size_t columns;
  // Address of expert in each slot, -1 = empty or drained; int32 `[layers, slots]`.
  uint64_t phy2log;
  // Address of slots of each expert, ascending, -1 = no more; int32 `[layers, experts, columns]`.
  uint64_t log2phy;
  // Address of number of slots of each expert; int32 `[layers, experts]`.
  uint64_t logcnt;
  // Address of part of its expert's tokens that a slot gets; float32 `[layers, slots]`.
  uint64_t share;
} eplb_device_maps;

// The router's choices of one layer, in memory of the engine's device. Set `struct_size` to the size of this structure.
typedef struct eplb_device_choices {
  // Size of this structure.
  size_t struct_size;
  // The layer.
  size_t layer;
  // Address of ids `[tokens, k]`; a negative id is no choice.
  uint64_t ids;
  // Bytes of an id: 4 or 8, signed.
  uint32_t id_bytes;
  // Not 0: ids are slots, counted under the experts that the maps of the device name; else experts.
  uint32_t of_slots;
  // Tokens, padding included; `tokens * k` is below 2^31.
  size_t tokens;
  // Choices of each token.
  size_t k;
  // Ids from one token to the next; 0: `k`.
  size_t row_stride;
  // Address of bytes `[tokens]`, 0 where a token is padding; 0: all count.
  uint64_t mask;
  // Address of an int32: the tokens that count, from the first on; 0: all do.
  uint64_t valid;
} eplb_device_choices;

// Where the slots of choices go, in memory of the engine's device. Set `struct_size` to the size of this structure.
typedef struct eplb_device_slots {
  // Size of this structure.
  size_t struct_size;
  // Address of slots `[tokens, k]`, of the size of the ids; may be the ids themselves, at an equal stride.
  uint64_t slots;
  // Slots from one token to the next; 0: `k`.
  size_t row_stride;
  // Address of a uint64 that is mixed into the choice among replicas; 0: none. A server that counts it up with every step spreads small batches evenly.
  uint64_t salt;
} eplb_device_slots;

// Numbers of tokens of one pass, in memory of the engine's device. Set `struct_size` to the size of this structure.
typedef struct eplb_device_counts {
  // Size of this structure.
  size_t struct_size;
  // Address of `[layers, slots]` or `[layers, experts]` numbers, contiguous, none negative.
  uint64_t counts;
  // Bytes of a number: 4 or 8.
  uint32_t count_bytes;
  // Not 0: they are of slots, else of experts.
  uint32_t of_slots;
} eplb_device_counts;

// Where the sums of a layer set lie on the engine's device, for servers that launch the counting kernels themselves, in graphs for instance.
// Set `struct_size` to the size of this structure.
typedef struct eplb_device_counters {
  // Size of this structure.
  size_t struct_size;
  // Kinds of passes.
  size_t tags;
  // MoE layers.
  size_t layers;
  // Logical experts per layer.
  size_t experts;
  // Address of uint64 `[tags, layers, experts]`, which only grow.
  uint64_t loads;
  // Address of uint64 `[2]`: ids out of range, choices of a slot that holds nothing.
  uint64_t faults;
  // Address of an int32: the tag of passes that name none, 0 at first; the server may write it in the order of its stream.
  uint64_t tag;
} eplb_device_counters;

// Where the arrays of maps are; valid until the maps are freed. Shapes stay the same while the engine lives. Set `struct_size` to the size of
// this structure: an older program gets the fields that it knows.
typedef struct eplb_map_arrays {
  // Size of this structure.
  size_t struct_size;
  // Number of these maps on this rank, rising by one with every change.
  uint64_t version;
  // First step that runs with them on this rank.
  uint64_t first_step;
  // MoE layers.
  size_t layers;
  // Slots per layer, over all ranks.
  size_t slots;
  // Logical experts per layer.
  size_t experts;
  // Columns of `log2phy`.
  size_t columns;
  // Expert in each slot, -1 = empty or drained; `[layers, slots]`.
  const int32_t *phy2log;
  // Slots of each expert, ascending, -1 = no more; `[layers, experts, columns]`.
  const int32_t *log2phy;
  // Number of slots of each expert; `[layers, experts]`.
  const int32_t *logcnt;
  // Part of its expert's tokens that a slot gets; `[layers, slots]`.
  const float *share;
} eplb_map_arrays;

// Called inside `eplb_engine_step` and `eplb_engine_tick` after a commit, for each layer, with the slots that it filled (numbers over all
// ranks). It must not call the engine. On a device it may enqueue work on the first of the streams given. It is not called for slots that
// `eplb_engine_reform` fills from the source: what is derived from those, the source or who called `eplb_engine_reform` puts there.
typedef void (*eplb_after_commit_fn)(void *state,
                                     uint32_t set,
                                     uint32_t layer,
                                     const uint32_t *slots,
                                     size_t count);

// Puts the bytes of an expert that no rank holds any more into a slot: for each row of each tensor of the layer one call, with the place
// in host memory to fill (on a device it is copied from there). Returns 0, or something else if it cannot.
typedef int32_t (*eplb_source_fn)(void *state,
                                  uint32_t layer,
                                  uint32_t expert,
                                  uint32_t tensor,
                                  size_t row,
                                  uint8_t *bytes,
                                  size_t len);

// What the last round of a layer set did on this rank. Balancedness is 0 to 1, on the loads planned for. Set `struct_size` to the size of this
// structure: an older program gets the fields that it knows.
typedef struct eplb_round_report {
  // Size of this structure.
  size_t struct_size;
  // Number of the round in its epoch, from 1; 0: there was none.
  uint64_t round;
  // Balancedness of the placement before.
  double before;
  // What the plan promised.
  double predicted;
  // The best that any placement could reach.
  double bound;
  // Of what is in force now.
  double reached;
  // Experts that crossed links, over all ranks.
  uint64_t moves;
  // Copies inside ranks.
  uint64_t local_copies;
  // Bytes over links, over all ranks.
  uint64_t link_bytes;
  // Waves planned.
  uint64_t waves;
  // Waves committed.
  uint64_t committed;
  // Seconds of planning on the leading rank.
  double plan_seconds;
  // Seconds from the round's beginning on this rank to its end.
  double seconds;
  // Longest time that a step of this rank took to launch waves of the round, in microseconds; 0 where steps do not.
  double launch_us;
} eplb_round_report;

// The operations of a host's store, such as a server's own. Keys are texts, values bytes. Every function returns one of the
// `EPLB_STORE_..` numbers within `timeout_ms`, may be called from several threads at once, and must not call back into this
// library but for `eplb_value_set`. Compare-and-set is atomic. Set `struct_size` to the size of this structure.
typedef struct eplb_store_callbacks {
  // Size of this structure.
  size_t struct_size;
  // Name for messages, or null.
  const char *name;
  // Given to every function.
  void *state;
  // Writes a value.
  int32_t (*set)(void *state,
                 const char *key,
                 const uint8_t *bytes,
                 size_t len,
                 uint64_t timeout_ms,
                 struct eplb_value *out);
  // Reads a value into `out`; does not wait for the key to appear.
  int32_t (*get)(void *state, const char *key, uint64_t timeout_ms, struct eplb_value *out);
  // Writes the new value if the key holds the expected one (`expected` null: if it is absent).
  int32_t (*compare_and_set)(void *state,
                             const char *key,
                             const uint8_t *expected,
                             size_t expected_len,
                             const uint8_t *bytes,
                             size_t len,
                             uint64_t timeout_ms,
                             struct eplb_value *out);
  // Removes a key.
  int32_t (*remove)(void *state, const char *key, uint64_t timeout_ms, struct eplb_value *out);
  // Largest value that it takes, bytes; 0: 1 MiB.
  size_t max_value;
} eplb_store_callbacks;

// Gets a line of the log: one of the `EPLB_LOG_..` numbers, the part of the library that says it, and what it says, as texts that are valid
// during the call. It is called from any thread of the library or of the host, perhaps from several at once, within a forward pass
// too: it should be quick. It must not call `eplb_log_set`, nor end or free what the library is busy with.
typedef void (*eplb_log_fn)(void *state, uint32_t level, const char *target, const char *message);

// Bytes to or from another rank. Set `struct_size` to the size of this structure, in every one of an array.
typedef struct eplb_message {
  // Size of this structure.
  size_t struct_size;
  // The other rank.
  uint32_t peer;
  // Where the bytes lie, or go.
  void *base;
  // How many.
  size_t bytes;
} eplb_message;

// What a plan is worth. Balancedness is per layer the mean over ranks of rank load / the largest, 0 to 1, then the mean
// over layers with any load. NaN: there is no current placement.
typedef struct eplb_plan_summary {
  // Size of this structure; set it to `sizeof(struct eplb_plan_summary)`.
  size_t struct_size;
  // MoE layers.
  size_t layers;
  // Slots per layer.
  size_t slots;
  // Logical experts per layer.
  size_t experts;
  // Most replicas of one expert: least number of columns of `log2phy`.
  size_t max_replicas;
  // Slots whose expert was not on their rank before; 0 without a current placement.
  size_t moves;
  // Copies inside ranks; 0 without a current placement.
  size_t local_copies;
  // Slots whose expert another slot of the rank holds too.
  size_t duplicates;
  // Empty slots on live ranks.
  size_t shortages;
  // Experts without a slot.
  size_t left_out;
  // Experts that only dead ranks held.
  size_t lost;
  // Balancedness of the current placement, even split.
  double balancedness_before;
  // Balancedness of the plan, even split.
  double balancedness;
  // The same of the worst layer.
  double balancedness_min;
  // Balancedness of the plan with its `share`.
  double balancedness_share;
  // Mean over the steps of the window of each step's balancedness, even split.
  double balancedness_steps;
  // No placement with any split can be better balanced than this.
  double bound;
  // Balance of the times that ranks are predicted to take, under the request's cost model and dispatch, 0 to 1.
  double predicted_balance;
  // Part of all tokens that is predicted to cross nodes beyond what whole groups would, 0 to 1.
  double predicted_crossing;
  // Whether the wanted balancedness was reached: 1 or 0, or -1: none was asked for.
  int32_t target_reached;
} eplb_plan_summary;

// Loads, ranks, the placement in force and the options of a plan. Fill it with `eplb_plan_request_init` first.
typedef struct eplb_plan_request {
  // Size of this structure; set by `eplb_plan_request_init`.
  size_t struct_size;
  // Tokens per logical expert, `[steps, layers, experts]` in C order.
  const double *loads;
  // Steps of the window; 1 for summed loads.
  size_t steps;
  // MoE layers.
  size_t layers;
  // Logical experts per layer.
  size_t experts;
  // Ranks.
  size_t ranks;
  // Slots per layer over all ranks; where they do not divide, the first ranks have one more. Not read if
  // `slots_of_rank` is given.
  size_t slots;
  // Slots of each rank, `[ranks]`, or null: equally many.
  const uint32_t *slots_of_rank;
  // Nodes: ranks are divided over them in order.
  size_t nodes;
  // Speed of each rank, `[ranks]`, or null: all are equal.
  const double *speed_of_rank;
  // Not 0 where a rank is dead, `[ranks]`, or null: all live.
  const uint8_t *dead;
  // The placement in force, `phy2log [layers, slots]` with -1 for empty slots, or null.
  const int32_t *current;
  // Name of the policy, or null: `incremental` if `current` is given, else `balanced`.
  const char *policy;
  // Expert groups of the router, for `deepseek`.
  size_t groups;
  // Wanted balancedness, 0 to 1, or NaN: none.
  double target;
  // Most moves of `incremental`, or -1: no limit.
  int64_t max_moves;
  // Most moves to any one rank, or -1: no limit.
  int64_t max_moves_per_rank;
  // Most bytes moved, or -1: no limit. Needs `expert_bytes`.
  int64_t max_bytes;
  // Most bytes moved to any one rank, or -1: no limit. Needs `expert_bytes`.
  int64_t max_bytes_per_rank;
  // Bytes of one expert with all that moves with it, or 0: not known.
  uint64_t expert_bytes;
  // Seed of policy `random`.
  uint64_t seed;
  // Most replicas of one expert, or 0: no limit.
  size_t max_replicas;
  // Bytes of one expert of each layer, `[layers]`, or null: `expert_bytes` for all.
  const uint64_t *expert_bytes_of_layer;
  // Steps that the plan is expected to serve, or NaN: every gain is worth its moves. With the two below and the bytes of
  // an expert, `incremental` leaves layers alone whose gain does not pay for their bytes.
  double worth_steps;
  // Seconds that the experts of one layer take in a step if perfectly balanced.
  double worth_layer_seconds;
  // What a rank's link carries, in 10^9 bytes per second.
  double worth_link_gbps;
  // What `forecast` asks a move for: mean balancedness of a layer over the steps to come; NaN: its default.
  double move_price;
  // Steps after which a step of the window weighs half, for `forecast`; NaN: its default, infinite: no decay.
  double half_life;
  // Steps at which half of a measured gain is taken for noise, for `forecast`; NaN: its default.
  double shrinkage;
  // Most scenarios that a window is cut into, for `forecast`; 0: its default.
  size_t scenarios;
  // Not 0: expert groups stay whole on nodes, equally many on each.
  uint8_t strict_nodes;
  // Price of tokens that cross nodes, or NaN: nodes do not matter.
  double node_price;
  // Time of a rank for each of its slots that got tokens.
  double expert_cost;
  // Time of a rank for each token.
  double token_cost;
  // What the server does with replicas: `even`, `share` or `nearest`; null: `even`.
  const char *dispatch;
  // So many experts of each layer, the hottest, get a replica on every live rank.
  size_t replicate_top;
  // Part of the drift over the window that is expected to go on, for `forecast`, 0 to 1.
  double drift;
} eplb_plan_request;

// What a replay found, in numbers. Balancedness is of steps that no plan had seen: mean over layers, 0 to 1, even split. Set `struct_size` to the
// size of this structure: an older program gets the fields that it knows.
typedef struct eplb_replay_summary {
  // Size of this structure.
  size_t struct_size;
  // First step that was scored.
  size_t first_step;
  // Steps scored.
  size_t steps;
  // Plans made, the first included.
  size_t plans;
  // Mean balancedness.
  double mean;
  // Balancedness that all but the worst hundredth of the steps reach.
  double p01;
  // Moves of all plans but the first, which starts from nothing.
  size_t moves;
  // Part of all slots that moved, mean over the steps scored.
  double moves_fraction;
  // Part of the time of the mixture layers that ranks wait for the slowest, 0 to 1.
  double waiting;
  // Seconds of link time of all moves.
  double link_seconds;
  // Median time of a plan, milliseconds.
  double plan_ms_median;
} eplb_replay_summary;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The interface version of the library, to be compared with `EPLB_ABI_VERSION` of the header.
uint32_t eplb_abi_version(void);

// The version of the library as text, for ever valid.
const char *eplb_version(void);

// Why the last call of this thread failed; empty if none did. Valid until the thread's next call that fails.
const char *eplb_last_error(void);

// Begins an engine. `config` is a TOML text, or null: the defaults; variables of the environment (`EPLB_..`) then say what they say
// instead. Keys and variables: `docs/configuration.md`.
//
// A rank that is alone passes `world_size` 1, and null for `store` and `transport`: it gets no thread, store or communicator. Else all
// ranks pass the same `world_size`, a store that all reach, and a transport of the same kind; null is that of `eplb_transport_auto`, with Gloo at the
// loopback address.
//
// # Safety
// `config` is null or a text; `store` and `transport` are live handles or null; `builder` is null or points to room for a pointer.
enum eplb_status eplb_builder_new(const char *config,
                                  uint32_t rank,
                                  size_t world_size,
                                  const struct eplb_store *store,
                                  const struct eplb_transport *transport,
                                  struct eplb_builder **builder);

// Frees a builder. Null does nothing. An engine that was started from it goes on.
//
// # Safety
// `builder` is null or a live handle that is not in use, and is not used afterwards.
void eplb_builder_free(struct eplb_builder *builder);

// Names a layer set: `layers` layers of `experts` experts, and `slots` slots per layer over all ranks, or `slots_of_rank` of each rank
// (`[world_size]`, may be null). Ranks are divided over `nodes` in order. `set` gets its number: 0, 1, ..
//
// # Safety
// `builder` is a live handle or null; `name` is null or a text; `slots_of_rank` is null or points to as many values as there are
// ranks; `set` is null or points to room for a number.
enum eplb_status eplb_builder_layer_set(const struct eplb_builder *builder,
                                        const char *name,
                                        size_t layers,
                                        size_t experts,
                                        size_t slots,
                                        const uint32_t *slots_of_rank,
                                        size_t nodes,
                                        uint32_t *set);

// Registers the tensors of a layer in the caller's memory. Their slots hold what `eplb_builder_placement` says.
//
// # Safety
// `builder` is a live handle or null; `tensors` is null or points to `count` tensors. Until `eplb_engine_shutdown` has returned
// `EPLB_STATUS_OK`, every tensor's memory is valid for the bytes of all local slots, nobody writes it, and a slot is read only
// while the maps of the step that runs name it. Freeing an engine shuts it down too, but gives up after 5 s and cannot say so.
enum eplb_status eplb_builder_register_layer(const struct eplb_builder *builder,
                                             uint32_t set,
                                             size_t layer,
                                             const struct eplb_tensor *tensors,
                                             size_t count);

// Has the engine allocate the tensors of a layer, zeroed; `eplb_engine_lent` tells where they are.
//
// # Safety
// `builder` is a live handle or null; `tensors` is null or points to `count` tensors.
enum eplb_status eplb_builder_lend_layer(const struct eplb_builder *builder,
                                         uint32_t set,
                                         size_t layer,
                                         const struct eplb_tensor *tensors,
                                         size_t count);

// What the slots of a set hold at the start: `phy2log [layers, slots]`, -1 = empty, `len` values. Without it slot `p` holds expert
// `p % experts`, or what the configuration's `start_plan` says.
//
// # Safety
// `builder` is a live handle or null; `phy2log` is null or points to `len` values.
enum eplb_status eplb_builder_placement(const struct eplb_builder *builder,
                                        uint32_t set,
                                        const int32_t *phy2log,
                                        size_t len);

// Starts the engine; the builder is spent, and to be freed. In a group it returns when all ranks have come, hold the same layouts and
// options, and are connected.
//
// # Safety
// `builder` is a live handle or null; `engine` is null or points to room for a pointer.
enum eplb_status eplb_builder_start(const struct eplb_builder *builder,
                                    struct eplb_engine **engine);

// Asks for a round whatever the triggers say. `rounds` gets how many have ended so far, for `eplb_engine_wait_round`.
//
// # Safety
// `engine` is a live handle or null; `rounds` is null or points to room for a number.
enum eplb_status eplb_engine_rebalance_now(const struct eplb_engine *engine,
                                           uint64_t *rounds);

// Waits until more than `after` rounds have ended on this rank.
//
// # Safety
// `engine` is a live handle or null.
enum eplb_status eplb_engine_wait_round(const struct eplb_engine *engine,
                                        uint64_t after,
                                        uint64_t timeout_ms);

// No new round begins until `eplb_engine_resume`; one that is under way goes on.
//
// # Safety
// `engine` is a live handle or null.
enum eplb_status eplb_engine_pause(const struct eplb_engine *engine);

// Rounds may begin again.
//
// # Safety
// `engine` is a live handle or null.
enum eplb_status eplb_engine_resume(const struct eplb_engine *engine);

// Finishes or cancels what is under way and closes all handles on other ranks, for sleep, reload and refit. All ranks call it, each
// with no pass under way.
//
// # Safety
// `engine` is a live handle or null.
enum eplb_status eplb_engine_quiesce(const struct eplb_engine *engine,
                                     uint64_t timeout_ms);

// Goes on after `eplb_engine_quiesce`.
//
// # Safety
// `engine` is a live handle or null.
enum eplb_status eplb_engine_reopen(const struct eplb_engine *engine, uint64_t timeout_ms);

// Forms the next epoch with the same ranks, after a failure. All ranks call it.
//
// # Safety
// `engine` is a live handle or null.
enum eplb_status eplb_engine_reform(const struct eplb_engine *engine, uint64_t timeout_ms);

// Ends the engine from any state. After `EPLB_STATUS_OK` nothing of it touches registered memory any more.
//
// # Safety
// `engine` is a live handle or null.
enum eplb_status eplb_engine_shutdown(const struct eplb_engine *engine, uint64_t timeout_ms);

// Shuts an engine down, if that was not done, and frees it. Null does nothing.
//
// # Safety
// `engine` is null or a live handle that is not in use, and is not used afterwards.
void eplb_engine_free(struct eplb_engine *engine);

// Counts the tokens that each slot got in a pass on this rank: `counts [layers, slots]`. `faults` may be null.
//
// # Safety
// `engine` is a live handle or null; `counts` is null or points to `len` values; `pass` and `faults` are null or point to structures whose
// `struct_size` is set.
enum eplb_status eplb_engine_record_slots(const struct eplb_engine *engine,
                                          uint32_t set,
                                          const struct eplb_pass *pass,
                                          const uint64_t *counts,
                                          size_t len,
                                          struct eplb_count_faults *faults);

// Counts the tokens that chose each expert in a pass on this rank: `counts [layers, experts]`. `faults` may be null.
//
// # Safety
// As `eplb_engine_record_slots`.
enum eplb_status eplb_engine_record_experts(const struct eplb_engine *engine,
                                            uint32_t set,
                                            const struct eplb_pass *pass,
                                            const uint64_t *counts,
                                            size_t len,
                                            struct eplb_count_faults *faults);

// Counts the choices of one layer in a pass on this rank. `faults` may be null.
//
// # Safety
// `engine` is a live handle or null; `pass`, `choices` and `faults` are null or point to structures whose `struct_size` is set; the pointers of
// `choices` are null or as long as it says.
enum eplb_status eplb_engine_record_choices(const struct eplb_engine *engine,
                                            uint32_t set,
                                            const struct eplb_pass *pass,
                                            const struct eplb_choices *choices,
                                            struct eplb_count_faults *faults);

// All slots of this rank lie on the CUDA device whose number is `device`, in its primary context, which PyTorch and NCCL use too. To be said
// before the first layer is registered or lent; addresses of tensors are then of that device, and so are those that
// `eplb_engine_lent` tells. Kernels of commits and counting are loaded from the folder that `EPLB_KERNELS` names, or compiled where
// NVRTC is; without them commits are copies, and `eplb_engine_record_topk` says that it cannot count.
//
// # Safety
// `builder` is a live handle or null.
enum eplb_status eplb_builder_device(const struct eplb_builder *builder,
                                     uint32_t device);

// As `eplb_engine_step`, on a device: with all `count` streams (`CUstream`, as numbers) on which this pass reads slots or maps, at most 16.
// Later calls of `eplb_engine_step` and `eplb_engine_tick` mean the same ones. Commits and changes of maps run on the first, behind
// all that was enqueued on any of them, and before all that will be. The default stream is 1 (or 2, one per thread), not 0.
//
// While a stream is captured into a graph nothing is committed and no map changes: a pass that is captured does not run. A replay is a
// pass like any other, with a call before it.
//
// # Safety
// `engine` is a live handle or null; `streams` is null or points to `count` streams of the engine's device, each of which lives until a
// later call without it has returned, or `eplb_engine_shutdown` has returned `EPLB_STATUS_OK`.
enum eplb_status eplb_engine_step_on(const struct eplb_engine *engine,
                                     uint64_t id,
                                     const uint64_t *streams,
                                     size_t count);

// Tells where the maps of a layer set lie on the engine's device. What stands there are the maps of `eplb_engine_maps`, for all that is
// enqueued on the streams of a pass after `eplb_engine_step_on` has returned.
//
// # Safety
// `engine` is a live handle or null; `maps` is null or points to a structure whose `struct_size` is set.
enum eplb_status eplb_engine_device_maps(const struct eplb_engine *engine,
                                         uint32_t set,
                                         struct eplb_device_maps *maps);

// Enqueues, on a stream of the pass, the counting of the choices of one layer: one launch, which may be captured into a graph (then `pass`
// says the tag of all replays). A dummy pass enqueues nothing.
//
// # Safety
// `engine` is a live handle or null; `pass` and `choices` are null or point to structures whose `struct_size` is set. `stream` is one of those given to
// `eplb_engine_step_on` for this pass. Every address is of the engine's device, aligned to its type, as large as said, and stays valid and
// unchanged until the launch, or the last replay of a graph that holds it, has run.
enum eplb_status eplb_engine_record_topk(const struct eplb_engine *engine,
                                         uint32_t set,
                                         const struct eplb_pass *pass,
                                         const struct eplb_device_choices *choices,
                                         uint64_t stream);

// Enqueues, on a stream of the pass, what turns the experts that were chosen in a layer into slots, by the maps of the device for the pass, and counts
// them: one launch, which may be captured into a graph. Where an expert has several slots, tokens take them by their shares. -1 is written for a token
// that does not count, and for an id that names no expert. A dummy pass gets its slots, and counts nothing.
//
// # Safety
// As for `eplb_engine_record_topk`; `slots` is null or points to a structure whose `struct_size` is set, and its addresses are as those of `choices`.
enum eplb_status eplb_engine_dispatch_topk(const struct eplb_engine *engine,
                                           uint32_t set,
                                           const struct eplb_pass *pass,
                                           const struct eplb_device_choices *choices,
                                           const struct eplb_device_slots *slots,
                                           uint64_t stream);

// Enqueues, on a stream of the pass, a copy of its numbers of tokens to the host, where they are folded with the maps of `pass.step`. It never
// waits: with too many passes on their way this one is not counted, and `counted` (which may be null) gets 0, else 1. Not for graphs.
//
// # Safety
// `engine` is a live handle or null; `pass` and `counts` are null or point to structures whose `struct_size` is set; `counted` is null or points to room
// for a number. `stream` is one of those given to `eplb_engine_step_on` for this pass; the numbers stay valid and unchanged until the copy has run.
enum eplb_status eplb_engine_record_counts(const struct eplb_engine *engine,
                                           uint32_t set,
                                           const struct eplb_pass *pass,
                                           const struct eplb_device_counts *counts,
                                           uint64_t stream,
                                           uint8_t *counted);

// Tells where the sums of a layer set lie on the engine's device.
//
// # Safety
// `engine` is a live handle or null; `counters` is null or points to a structure whose `struct_size` is set.
enum eplb_status eplb_engine_device_counters(const struct eplb_engine *engine,
                                             uint32_t set,
                                             struct eplb_device_counters *counters);

// Takes the maps by which the pass of the last `eplb_engine_step` routes its tokens.
//
// # Safety
// `engine` is a live handle or null; `maps` is null or points to room for a pointer.
enum eplb_status eplb_engine_maps(const struct eplb_engine *engine, uint32_t set, struct eplb_maps **maps);

// The number of the maps in force: whether they changed, without taking them.
//
// # Safety
// `engine` is a live handle or null; `version` is null or points to room for a number.
enum eplb_status eplb_engine_maps_version(const struct eplb_engine *engine, uint32_t set, uint64_t *version);

// Tells where the arrays are.
//
// # Safety
// `maps` is a live handle or null; `view` is null or points to a structure whose `struct_size` is set.
enum eplb_status eplb_maps_view(const struct eplb_maps *maps, struct eplb_map_arrays *view);

// Frees maps. Null does nothing.
//
// # Safety
// `maps` is null or a live handle that is not in use, and neither it nor its arrays are used afterwards.
void eplb_maps_free(struct eplb_maps *maps);

// Before each forward pass, by one thread at a time, with ids that rise strictly and are the same on all ranks. Any status but
// `EPLB_STATUS_OK` means that the pass must not run.
//
// # Safety
// `engine` is a live handle or null.
enum eplb_status eplb_engine_step(const struct eplb_engine *engine,
                                  uint64_t id);

// Now and then while no pass is under way and none is due, by the thread that calls `eplb_engine_step`.
//
// # Safety
// `engine` is a live handle or null.
enum eplb_status eplb_engine_tick(const struct eplb_engine *engine);

// Address of the first local slot of a tensor that the engine lends. Valid until the engine is freed.
//
// # Safety
// `engine` is a live handle or null; `data` is null or points to room for a pointer.
enum eplb_status eplb_engine_lent(const struct eplb_engine *engine,
                                  uint32_t set,
                                  size_t layer,
                                  size_t tensor,
                                  void **data);

// Sets the function that is called after commits.
//
// # Safety
// `builder` is a live handle or null; `hook` and its state are valid until the engine is freed.
enum eplb_status eplb_builder_after_commit(const struct eplb_builder *builder,
                                           eplb_after_commit_fn hook,
                                           void *state);

// Sets where experts come from that no rank holds any more.
//
// # Safety
// `builder` is a live handle or null; `source` and its state are valid until the engine is freed.
enum eplb_status eplb_builder_source(const struct eplb_builder *builder, eplb_source_fn source, void *state);

// Tells what the last round of a layer set did; how it ended, and why it began, is a text: `eplb_engine_round_outcome`.
//
// # Safety
// `engine` is a live handle or null; `report` is null or points to a structure whose `struct_size` is set.
enum eplb_status eplb_engine_last_report(const struct eplb_engine *engine,
                                         uint32_t set,
                                         struct eplb_round_report *report);

// The engine's state in words, such as `idle`, `moving wave 3`, `failed: ..`; `text` and `len` as of `eplb_engine_metrics`.
//
// # Safety
// As `eplb_engine_metrics`.
enum eplb_status eplb_engine_state(const struct eplb_engine *engine,
                                   char *text,
                                   size_t room,
                                   size_t *len);

// How the last round of a layer set ended: `moved`, `nothing`, `dry_run`, `too_late` or `aborted: ` and why; empty if there was
// none. `text` and `len` as of `eplb_engine_metrics`.
//
// # Safety
// As `eplb_engine_metrics`.
enum eplb_status eplb_engine_round_outcome(const struct eplb_engine *engine,
                                           uint32_t set,
                                           char *text,
                                           size_t room,
                                           size_t *len);

// Metrics in Prometheus' text format. The text and a zero behind it are copied to `text` if it has room for them; `len` gets the
// length, without the zero, in any case. `per_layer` not 0: balancedness of each layer too.
//
// # Safety
// `engine` is a live handle or null; `text` is null with `room` 0, or points to `room` bytes; `len` is null or points to room for a
// number.
enum eplb_status eplb_engine_metrics(const struct eplb_engine *engine,
                                     uint8_t per_layer,
                                     char *text,
                                     size_t room,
                                     size_t *len);

// Writes plan and window of a layer set as an `.npz` file, which the configuration's `start_plan` and `load_window` name.
//
// # Safety
// `engine` is a live handle or null; `path` is null or a text.
enum eplb_status eplb_engine_save(const struct eplb_engine *engine,
                                  uint32_t set,
                                  const char *path);

// A store on the host's functions. They and their state must stay valid until the store and everything made with it is freed.
//
// # Safety
// `callbacks` is null or points to a structure whose functions do what their documentation says; `store` is null or points to room for
// a pointer.
enum eplb_status eplb_store_from_callbacks(const struct eplb_store_callbacks *callbacks,
                                           struct eplb_store **store);

// Has the library's log handed to a function, up to a level; null, or `EPLB_LOG_OFF`: to nobody any more. When it returns, the function
// given before is not called any more. One function serves the whole process, whichever engine speaks.
//
// # Safety
// `log` is null or a function that does what its documentation says, valid with its state until another call of this returns.
enum eplb_status eplb_log_set(eplb_log_fn log,
                              void *state,
                              uint32_t level);

// Connects this rank with the others; every rank calls it with the same store, a corner of its own that nothing else uses, and the
// same `world_size`, at least 2. Blocks until all are there.
//
// `backend` is `gloo`: host memory, over TCP through `libeplb_gloo.so`, which must be to be found. `interface_name` is the name
// of a network interface or an address of this host that the others can reach; null is the loopback address.
//
// # Safety
// Texts are null or texts; `store` is a live handle or null; `pairs` is null or points to room for a pointer.
enum eplb_status eplb_pairs_connect(const char *backend,
                                    uint32_t rank,
                                    size_t world_size,
                                    const struct eplb_store *store,
                                    const char *interface_name,
                                    uint64_t timeout_ms,
                                    struct eplb_pairs **pairs);

// As `eplb_pairs_connect`, for memory of the CUDA device whose number is `device` (its primary context, which PyTorch and NCCL use too).
//
// `backend` is `nccl`, over the library that is found (`EPLB_NCCL_SO`, then the copy that the process has loaded, then where the
// system and Python keep it), or `pynccl`, over the copy that the process has loaded and no other. What is sent must be complete on
// the device when `eplb_pairs_exchange` is called; the call waits on the host for its own stream alone.
//
// # Safety
// `backend` is null or a text; `store` is a live handle or null; `pairs` is null or points to room for a pointer.
enum eplb_status eplb_pairs_connect_device(const char *backend,
                                           uint32_t device,
                                           uint32_t rank,
                                           size_t world_size,
                                           const struct eplb_store *store,
                                           uint64_t timeout_ms,
                                           struct eplb_pairs **pairs);

// Sends and receives a batch: returns when what is received is in and what is sent may be written again. Messages from one rank to
// another match in the order in which both sides give them, batch by batch, and must have equal sizes. After an error the connections
// are spent: make new ones.
//
// # Safety
// `pairs` is a live handle or null; `sends` and `receives` point to as many messages as said, or are null with none. The memory that
// they name stays valid during the call; nobody writes what is sent, nobody else touches what is received into, and none of
// that overlaps.
enum eplb_status eplb_pairs_exchange(const struct eplb_pairs *pairs,
                                     const struct eplb_message *sends,
                                     size_t send_count,
                                     const struct eplb_message *receives,
                                     size_t receive_count,
                                     uint64_t timeout_ms);

// Bytes received from other ranks so far.
//
// # Safety
// `pairs` is a live handle or null; `bytes` is null or points to room for a number.
enum eplb_status eplb_pairs_received_bytes(const struct eplb_pairs *pairs, uint64_t *bytes);

// Closes the connections; ranks that still use theirs get an error. Null does nothing.
//
// # Safety
// `pairs` is null or a live handle that is not in use, and is not used afterwards.
void eplb_pairs_free(struct eplb_pairs *pairs);

// Frees a plan. Null does nothing.
//
// # Safety
// `plan` is null or was made by `eplb_planner_plan`, is not in use, and is not used afterwards.
void eplb_plan_free(struct eplb_plan *plan);

// Tells what a plan is worth. `summary->struct_size` must be set.
//
// # Safety
// `plan` is a live handle or null; `summary` is null or points to `summary->struct_size` bytes.
enum eplb_status eplb_plan_summarize(const struct eplb_plan *plan, struct eplb_plan_summary *summary);

// Which expert is in which slot, `[layers, slots]`, -1 = empty. `len` is the number of values that `phy2log` has room for.
//
// # Safety
// `plan` is a live handle or null; `phy2log` is null or points to `len` values.
enum eplb_status eplb_plan_phy2log(const struct eplb_plan *plan,
                                   int32_t *phy2log,
                                   size_t len);

// The slots of each expert, `[layers, experts, columns]`, ascending, -1 = no more.
//
// # Safety
// `plan` is a live handle or null; `log2phy` is null or points to `len` values.
enum eplb_status eplb_plan_log2phy(const struct eplb_plan *plan,
                                   size_t columns,
                                   int32_t *log2phy,
                                   size_t len);

// The number of slots of each expert, `[layers, experts]`.
//
// # Safety
// `plan` is a live handle or null; `logcnt` is null or points to `len` values.
enum eplb_status eplb_plan_logcnt(const struct eplb_plan *plan, uint32_t *logcnt, size_t len);

// The part of its expert's tokens that each slot gets, `[layers, slots]`.
//
// # Safety
// `plan` is a live handle or null; `share` is null or points to `len` values.
enum eplb_status eplb_plan_share(const struct eplb_plan *plan, double *share, size_t len);

// Makes a planner with `threads` threads; 1 plans on the calling thread. Plans do not depend on it.
//
// # Safety
// `planner` is null or points to room for a pointer.
enum eplb_status eplb_planner_new(size_t threads, struct eplb_planner **planner);

// Frees a planner. Null does nothing.
//
// # Safety
// `planner` is null or was made by `eplb_planner_new`, is not in use, and is not used afterwards.
void eplb_planner_free(struct eplb_planner *planner);

// Makes a plan: places the experts, splits their tokens over the replicas, and scores the result.
//
// # Safety
// `planner` is a live handle or null; `request` points to a request whose pointers are null or as long as it says; `plan`
// points to room for a pointer.
enum eplb_status eplb_planner_plan(const struct eplb_planner *planner,
                                   const struct eplb_plan_request *request,
                                   struct eplb_plan **plan);

// Replays a trace: a plan after every `interval` steps, made from the `window` steps before it, scored on the steps that follow. The
// request tells ranks, slots, policy (null: `forecast`) and options; its loads, layers, experts and current placement are not read.
// `link_gbps` is what a rank's link carries, 10^9 bytes per second.
//
// # Safety
// `trace` is a live handle or null; `request` is null or points to a request whose other pointers are null or as long as it says;
// `replay` is null or points to room for a pointer.
enum eplb_status eplb_replay_run(const struct eplb_trace *trace,
                                 const struct eplb_plan_request *request,
                                 size_t window,
                                 size_t interval,
                                 double link_gbps,
                                 size_t threads,
                                 struct eplb_replay **replay);

// Tells what a replay found.
//
// # Safety
// `replay` is a live handle or null; `summary` is null or points to a structure whose `struct_size` is set.
enum eplb_status eplb_replay_summarize(const struct eplb_replay *replay, struct eplb_replay_summary *summary);

// Balancedness of each step that was scored, `[steps]`.
//
// # Safety
// `replay` is a live handle or null; `values` is null or points to `len` values.
enum eplb_status eplb_replay_balancedness(const struct eplb_replay *replay, double *values, size_t len);

// Moves of each step that was scored, `[steps]`: those of the plan that came into force with it; 0 where none did.
//
// # Safety
// `replay` is a live handle or null; `values` is null or points to `len` values.
enum eplb_status eplb_replay_moves(const struct eplb_replay *replay,
                                   uint64_t *values,
                                   size_t len);

// Frees a replay. Null does nothing.
//
// # Safety
// `replay` is null or a live handle that is not in use, and is not used afterwards.
void eplb_replay_free(struct eplb_replay *replay);

// Sets every field to its default. `struct_size` is `sizeof(struct eplb_plan_request)` of the caller's header.
//
// # Safety
// `request` is null or points to `struct_size` bytes that can be written.
enum eplb_status eplb_plan_request_init(struct eplb_plan_request *request,
                                        size_t struct_size);

// Makes a store for ranks that are threads of this process.
//
// # Safety
// `store` is null or points to room for a pointer.
enum eplb_status eplb_store_in_process(struct eplb_store **store);

// Opens the store at an address: `tcp://host:port` of a server, or `file:///folder` that all ranks share. A server that does not
// listen yet is tried again until the time is over. A token, where the server wants one, is taken from `EPLB_STORE_TOKEN` or
// `EPLB_STORE_TOKEN_FILE`.
//
// # Safety
// `address` is null or a text; `store` is null or points to room for a pointer.
enum eplb_status eplb_store_open(const char *address,
                                 uint64_t timeout_ms,
                                 struct eplb_store **store);

// A corner of a store of its own: keys of `store` that begin with `prefix` and a slash. The store may be freed before it.
//
// # Safety
// `store` is a live handle or null; `prefix` is null or a text; `corner` is null or points to room for a pointer.
enum eplb_status eplb_store_prefix(const struct eplb_store *store,
                                   const char *prefix,
                                   struct eplb_store **corner);

// Frees a store. Null does nothing. What was made with it keeps what it needs of it.
//
// # Safety
// `store` is null or a live handle that is not in use, and is not used afterwards.
void eplb_store_free(struct eplb_store *store);

// Serves a TCP store in this process at `host:port`; port 0 takes a free one. Anywhere but on the loopback address a token is needed,
// from `EPLB_STORE_TOKEN` or `EPLB_STORE_TOKEN_FILE`.
//
// # Safety
// `address` is null or a text; `server` is null or points to room for a pointer.
enum eplb_status eplb_store_serve(const char *address,
                                  struct eplb_store_server **server);

// The port that a server listens at.
//
// # Safety
// `server` is a live handle or null; `port` is null or points to room for a number.
enum eplb_status eplb_store_server_port(const struct eplb_store_server *server, uint16_t *port);

// Ends a server; its clients then report that the store is lost. Null does nothing.
//
// # Safety
// `server` is null or a live handle that is not in use, and is not used afterwards.
void eplb_store_server_free(struct eplb_store_server *server);

// Copies bytes into a value: how a callback hands over what it found, or, when it fails, why.
//
// # Safety
// `value` is what the library gave to the callback; `bytes` is null with `len` 0, or points to `len` bytes.
enum eplb_status eplb_value_set(struct eplb_value *value, const uint8_t *bytes, size_t len);

// Writes a value, whatever the key held.
//
// # Safety
// `store` is a live handle or null; `key` is null or a text; `bytes` is null with `len` 0, or points to `len` bytes.
enum eplb_status eplb_store_set(const struct eplb_store *store,
                                const char *key,
                                const uint8_t *bytes,
                                size_t len,
                                uint64_t timeout_ms);

// Waits until a key is there, and copies its value to `bytes`, which has room for `room` bytes. `len` gets the value's length; if that
// is more than `room` nothing is copied.
//
// # Safety
// `store` is a live handle or null; `key` is null or a text; `bytes` is null with `room` 0, or points to `room` bytes; `len` is null
// or points to room for a number.
enum eplb_status eplb_store_wait(const struct eplb_store *store,
                                 const char *key,
                                 uint8_t *bytes,
                                 size_t room,
                                 size_t *len,
                                 uint64_t timeout_ms);

// Writes `new` if the key holds `expected` (null: if it is absent). `swapped` gets 1 if it did, else 0.
//
// # Safety
// `store` is a live handle or null; `key` is null or a text; `expected` is null or points to `expected_len` bytes, `new_value` to
// `new_len` bytes; `swapped` is null or points to room for a number.
enum eplb_status eplb_store_compare_and_set(const struct eplb_store *store,
                                            const char *key,
                                            const uint8_t *expected,
                                            size_t expected_len,
                                            const uint8_t *new_value,
                                            size_t new_len,
                                            uint64_t timeout_ms,
                                            uint8_t *swapped);

// Opens a trace: `.npy`, `.npz` or `.csv`, of any of the systems that `eplb trace` reads.
//
// # Safety
// `path` is null or ends with a zero byte; `trace` is null or points to room for a pointer.
enum eplb_status eplb_trace_open(const char *path, struct eplb_trace **trace);

// Frees a trace. Null does nothing.
//
// # Safety
// `trace` is null or was made by `eplb_trace_open`, is not in use, and is not used afterwards.
void eplb_trace_free(struct eplb_trace *trace);

// Steps, layers and experts of a trace.
//
// # Safety
// `trace` is a live handle or null; `shape` is null or points to 3 values.
enum eplb_status eplb_trace_shape(const struct eplb_trace *trace, size_t *shape);

// Loads of `steps` steps from `first` on, `[steps, layers, experts]`.
//
// # Safety
// `trace` is a live handle or null; `loads` is null or points to `len` values.
enum eplb_status eplb_trace_loads(const struct eplb_trace *trace,
                                  size_t first,
                                  size_t steps,
                                  double *loads,
                                  size_t len);

// For ranks that are threads of this process: all of them are given this one handle. `copy_threads` threads copy bytes, at least 1.
//
// # Safety
// `transport` is null or points to room for a pointer.
enum eplb_status eplb_transport_local(size_t copy_threads,
                                      struct eplb_transport **transport);

// For ranks that are processes, on host memory, and on devices by way of pinned host memory: TCP through `libeplb_gloo.so`. `interface_name` is the name of a network interface or an
// address of this host that the others can reach; null: the one by which this host reaches `store_address`, where the ranks' store
// is (`tcp://host:port`), and without that the loopback address.
//
// # Safety
// Texts are null or texts; `transport` is null or points to room for a pointer.
enum eplb_status eplb_transport_gloo(const char *interface_name,
                                     const char *store_address,
                                     struct eplb_transport **transport);

// For slots on CUDA devices of one host, a device per rank: copy engines pull from the memory of the other ranks. `processes` not 0: ranks
// are processes; 0: they are threads of this one, and all of them are given this one handle.
//
// # Safety
// `transport` is null or points to room for a pointer.
enum eplb_status eplb_transport_peer(uint8_t processes,
                                     struct eplb_transport **transport);

// What fits best between ranks that are processes, found out when they meet: they pull from each other's memory where they can open it (slots on
// devices by copy engines, those that the engine lends in host memory by threads); between others NCCL carries slots on devices, Gloo those in host memory and, where a rank lacks NCCL, on devices;
// both in one wave where some can and some cannot. `eplb_transport_reasons` tells what was taken and why, the log too. `interface_name` and `store_address`
// are for Gloo, as with `eplb_transport_gloo`. `in_steps` not 0: waves of NCCL are launched as with `eplb_transport_nccl_in_steps`. NCCL is the copy that
// `EPLB_NCCL_SO` names, else the one that the process has loaded, else the one that system or Python keep.
//
// # Safety
// Texts are null or texts; `transport` is null or points to room for a pointer.
enum eplb_status eplb_transport_auto(const char *interface_name,
                                     const char *store_address,
                                     uint8_t in_steps,
                                     struct eplb_transport **transport);

// What `eplb_transport_auto` looked at when ranks last met, and why: a line for each backend, the one that was taken last; empty before, and for other
// transports. `text` and `len` as of `eplb_engine_metrics`.
//
// # Safety
// `transport` is a live handle or null; `text` and `len` as of `eplb_engine_metrics`.
enum eplb_status eplb_transport_reasons(const struct eplb_transport *transport,
                                        char *text,
                                        size_t room,
                                        size_t *len);

// For slots on CUDA devices: NCCL over a communicator of its own. `loaded` 0: the library that is found (`EPLB_NCCL_SO`, then the copy
// that the process has loaded, then where the system and Python keep it); not 0: the copy that the process has loaded, and no other.
//
// # Safety
// `transport` is null or points to room for a pointer.
enum eplb_status eplb_transport_nccl(uint8_t loaded,
                                     struct eplb_transport **transport);

// As `eplb_transport_nccl`, with waves launched by `eplb_engine_step` of one agreed id on every rank, on the server's thread: so in one order with
// the collectives that the server launches itself. For servers that have such in flight. Ranks then run steps in step, at most one apart; while they run
// none, a wave waits, and its round is broken off. `launch_us` of the report tells what it cost.
//
// # Safety
// `transport` is null or points to room for a pointer.
enum eplb_status eplb_transport_nccl_in_steps(uint8_t loaded,
                                              struct eplb_transport **transport);

// For ranks that are processes of one Linux host, on host memory that the engine lends (`eplb_builder_lend_layer`): they pull from each other's, which
// all of them map.
//
// # Safety
// `transport` is null or points to room for a pointer.
enum eplb_status eplb_transport_shared_memory(struct eplb_transport **transport);

// Frees a transport. Null does nothing. Engines that were started with it keep what they need of it.
//
// # Safety
// `transport` is null or a live handle that is not in use, and is not used afterwards.
void eplb_transport_free(struct eplb_transport *transport);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* EPLB_H */
