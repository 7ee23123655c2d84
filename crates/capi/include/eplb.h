/* eplb: expert-parallel load balancing. Generated from crates/capi; do not edit.
 *
 * Every function that returns eplb_status writes its results through pointers, and only if the status is
 * EPLB_STATUS_OK; eplb_last_error then says what was wrong, for the calling thread. Handles are made by one function and
 * freed by another, once; freeing NULL does nothing. Several threads may use a handle at a time; none may while it is
 * freed. Memory that a caller passes in is read or written during the call only, unless a function says otherwise.
 * Structures start with struct_size: set them up with their _init function, or set it to sizeof.
 */

#ifndef EPLB_H
#define EPLB_H

#include <stddef.h>
#include <stdint.h>

// Version of this interface: it changes when a program built against an older header may no longer run.
#define EPLB_ABI_VERSION 0

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
} eplb_status;

// A plan.
typedef struct eplb_plan eplb_plan;

// Plans, on threads of its own. Keep one: its memory is used again from plan to plan.
typedef struct eplb_planner eplb_planner;

// A trace of loads on disk.
typedef struct eplb_trace eplb_trace;

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
} eplb_plan_request;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The interface version of the library, to be compared with `EPLB_ABI_VERSION` of the header.
uint32_t eplb_abi_version(void);

// The version of the library as text, for ever valid.
const char *eplb_version(void);

// Why the last call of this thread failed; empty if none did. Valid until the thread's next call that fails.
const char *eplb_last_error(void);

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

// Sets every field to its default. `struct_size` is `sizeof(struct eplb_plan_request)` of the caller's header.
//
// # Safety
// `request` is null or points to `struct_size` bytes that can be written.
enum eplb_status eplb_plan_request_init(struct eplb_plan_request *request,
                                        size_t struct_size);

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

// Why the last call of this thread failed; empty if none did. Valid until the thread's next call that fails.
const char *eplb_last_error(void);

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

// Sets every field to its default. `struct_size` is `sizeof(struct eplb_plan_request)` of the caller's header.
//
// # Safety
// `request` is null or points to `struct_size` bytes that can be written.
enum eplb_status eplb_plan_request_init(struct eplb_plan_request *request,
                                        size_t struct_size);

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

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* EPLB_H */
