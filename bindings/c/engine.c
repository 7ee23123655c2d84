/* Two ranks in one process: counts go in, experts move while steps run, and every byte is checked.
 *
 *     cc -std=c11 -I crates/capi/include bindings/c/engine.c -L target/release -leplb -lpthread -o engine
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eplb.h"

enum { RANKS = 2, LAYERS = 3, EXPERTS = 8, LOCAL = 6, SLOTS = RANKS * LOCAL, ROW = 40, ROWS = 3, ROUNDS = 3 };

static void check(enum eplb_status status, const char *call)
{
    if (status == EPLB_STATUS_OK)
        return;
    fprintf(stderr, "%s: %s\n", call, eplb_last_error());
    exit(1);
}
#define CHECK(call) check(call, #call)

/* The byte that an expert must have, from who it is. */
static unsigned char byte_of(uint32_t layer, int32_t expert, size_t at)
{
    return (unsigned char)(layer * 31 + (uint32_t)expert * 7 + at * 3 + 1);
}

struct rank {
    uint32_t number;
    eplb_store *store;
    eplb_transport *transport;
    uint64_t moved, checked, filled;
};

static atomic_int left = RANKS;
/* How far each rank is: they are in step, as ranks that exchange tokens are. */
static atomic_ullong begun[RANKS];

static void filled(void *state, uint32_t set, uint32_t layer, const uint32_t *slots, size_t count)
{
    struct rank *rank = state;
    (void)set, (void)layer, (void)slots;
    rank->filled += count;
}

/* What a pass does: every local slot that the maps name must hold its expert. */
static void serve(struct rank *rank, const eplb_engine *engine, unsigned char *const *weights)
{
    eplb_maps *maps;
    struct eplb_map_arrays view = { .struct_size = sizeof view };
    CHECK(eplb_engine_maps(engine, 0, &maps));
    CHECK(eplb_maps_view(maps, &view));
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        for (size_t slot = 0; slot < LOCAL; slot++) {
            int32_t expert = view.phy2log[layer * view.slots + rank->number * LOCAL + slot];
            if (expert < 0)
                continue;
            for (size_t at = 0; at < ROW * ROWS; at++)
                if (weights[layer][slot * ROW * ROWS + at] != byte_of(layer, expert, at)) {
                    fprintf(stderr, "rank %" PRIu32 ", layer %" PRIu32 ", slot %zu: not expert %" PRId32 "\n", rank->number,
                            layer, slot, expert);
                    exit(2);
                }
            rank->checked++;
        }
    eplb_maps_free(maps);
}

static void *run(void *given)
{
    struct rank *rank = given;
    eplb_builder *builder;
    eplb_engine *engine;
    uint32_t set;
    unsigned char *weights[LAYERS];
    const char *config = "trigger = { interval_s = 1e6 }\nsample_ms = 5\npoll_ms = 1\nmargin = 4\n";

    CHECK(eplb_builder_new(config, rank->number, RANKS, rank->store, rank->transport, &builder));
    CHECK(eplb_builder_layer_set(builder, "main", LAYERS, EXPERTS, SLOTS, NULL, 1, &set));
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        weights[layer] = malloc(LOCAL * ROW * ROWS);
        struct eplb_tensor tensor = {
            .struct_size = sizeof tensor, .name = "w13", .data = weights[layer], .rows = ROWS, .row_bytes = ROW
        };
        for (size_t slot = 0; slot < LOCAL; slot++)
            for (size_t at = 0; at < ROW * ROWS; at++)
                weights[layer][slot * ROW * ROWS + at] =
                    byte_of(layer, (int32_t)((rank->number * LOCAL + slot) % EXPERTS), at);
        CHECK(eplb_builder_register_layer(builder, set, layer, &tensor, 1));
    }
    CHECK(eplb_builder_after_commit(builder, filled, rank));
    CHECK(eplb_builder_start(builder, &engine));
    eplb_builder_free(builder);

#ifdef PLANTED
    /* A fault that the check must see. */
    weights[LAYERS - 1][0] ^= 1;
#endif
    uint64_t step = 0, ended = 0;
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t counts[LAYERS * EXPERTS];
        for (size_t i = 0; i < LAYERS * EXPERTS; i++)
            counts[i] = (i * 5 + (size_t)round * 3) % EXPERTS == 0 ? 900 : 40 + i % 7;
        struct eplb_pass pass = { .struct_size = sizeof pass, .step = step, .tag = 1 };
        CHECK(eplb_engine_record_experts(engine, set, &pass, counts, LAYERS * EXPERTS, NULL));
        if (rank->number == 0)
            CHECK(eplb_engine_rebalance_now(engine, &ended));
        struct eplb_round_report report = { .struct_size = sizeof report };
        char outcome[200];
        size_t len;
        enum eplb_status waited;
        do {
            CHECK(eplb_engine_step(engine, step));
            atomic_store(&begun[rank->number], step + 1);
            serve(rank, engine, weights);
            while (atomic_load(&begun[1 - rank->number]) < step + 1 && atomic_load(&left) == RANKS)
                ;
            step++;
            waited = eplb_engine_wait_round(engine, ended, 1);
            if (waited == EPLB_STATUS_TIMEOUT)
                continue;
            check(waited, "eplb_engine_wait_round");
            CHECK(eplb_engine_last_report(engine, set, &report));
            CHECK(eplb_engine_round_outcome(engine, set, outcome, sizeof outcome, &len));
            ended++;
            /* A round that comes too late for its step is tried again by itself. */
        } while (waited != EPLB_STATUS_OK || strcmp(outcome, "too_late") == 0);
        rank->moved += report.moves;
        if (rank->number == 0)
            printf("round %" PRIu64 ": %s, %" PRIu64 " moves, balancedness %.3f to %.3f of at most %.3f\n", report.round, outcome,
                   report.moves, report.before, report.reached, report.bound);
    }
    atomic_fetch_sub(&left, 1);
    /* Until all ranks are done, an idle one lets their exchanges go on. */
    while (atomic_load(&left) > 0)
        CHECK(eplb_engine_tick(engine));
    serve(rank, engine, weights);
    CHECK(eplb_engine_shutdown(engine, 10000));
    if (eplb_engine_rebalance_now(engine, &ended) != EPLB_STATUS_STATE) {
        fprintf(stderr, "a stopped engine takes orders\n");
        exit(3);
    }
    eplb_engine_free(engine);
    for (int layer = 0; layer < LAYERS; layer++)
        free(weights[layer]);
    return NULL;
}

int main(void)
{
    struct rank ranks[RANKS] = { { 0 }, { 0 } };
    pthread_t threads[RANKS];
    eplb_store *store;
    eplb_transport *transport;
    CHECK(eplb_store_in_process(&store));
    CHECK(eplb_transport_local(1, &transport));
    for (uint32_t number = 0; number < RANKS; number++) {
        ranks[number].number = number;
        ranks[number].store = store;
        ranks[number].transport = transport;
        if (pthread_create(&threads[number], NULL, run, &ranks[number]) != 0)
            return 4;
    }
    for (uint32_t number = 0; number < RANKS; number++)
        pthread_join(threads[number], NULL);
    eplb_transport_free(transport);
    eplb_store_free(store);
    printf("%" PRIu64 " moves; %" PRIu64 " slots checked, %" PRIu64 " filled\n", ranks[0].moved,
           ranks[0].checked + ranks[1].checked, ranks[0].filled + ranks[1].filled);
    return ranks[0].moved > 0 && ranks[0].filled + ranks[1].filled > 0 ? 0 : 5;
}
