/* Plans where the experts of a small model should live, then plans again after the load has drifted, from where they are.
 *
 *   cc -std=c11 -I crates/capi/include bindings/c/plan.c -L target/release -leplb -lm -o plan && ./plan
 */
#include <eplb.h>

#include <stdio.h>
#include <stdlib.h>

enum { LAYERS = 4, EXPERTS = 32, RANKS = 8, SLOTS = 40 };

static void check(eplb_status status, const char *what) {
  if (status != EPLB_STATUS_OK) {
    fprintf(stderr, "%s: %s\n", what, eplb_last_error());
    exit(1);
  }
}

/* Tokens per expert: a few experts take most of them, other ones in every layer and at every time. */
static void draw_loads(double *loads, unsigned when) {
  for (unsigned layer = 0; layer < LAYERS; layer++) {
    for (unsigned expert = 0; expert < EXPERTS; expert++) {
      unsigned place = (expert * 13 + layer * 7 + when * 3) % EXPERTS;
      loads[layer * EXPERTS + expert] = 10000.0 / (1 + place);
    }
  }
}

static void report(const eplb_plan *plan, const char *name) {
  eplb_plan_summary summary;
  summary.struct_size = sizeof summary;
  check(eplb_plan_summarize(plan, &summary), "eplb_plan_summarize");
  printf("%s: balancedness %.3f (bound %.3f), %zu of %zu slots move\n", name, summary.balancedness, summary.bound,
         summary.moves, summary.layers * summary.slots);
}

int main(void) {
  if (eplb_abi_version() != EPLB_ABI_VERSION) {
    fprintf(stderr, "libeplb %s has another ABI version than this program\n", eplb_version());
    return 1;
  }
  eplb_planner *planner = NULL;
  check(eplb_planner_new(1, &planner), "eplb_planner_new");

  static double loads[LAYERS * EXPERTS];
  draw_loads(loads, 0);
  eplb_plan_request request;
  check(eplb_plan_request_init(&request, sizeof request), "eplb_plan_request_init");
  request.loads = loads;
  request.layers = LAYERS;
  request.experts = EXPERTS;
  request.ranks = RANKS;
  request.slots = SLOTS;
  eplb_plan *first = NULL;
  check(eplb_planner_plan(planner, &request, &first), "first plan");
  report(first, "first plan");

  static int32_t phy2log[LAYERS * SLOTS];
  check(eplb_plan_phy2log(first, phy2log, LAYERS * SLOTS), "eplb_plan_phy2log");
  printf("rank 0 of layer 0 holds experts");
  for (int slot = 0; slot < SLOTS / RANKS; slot++) {
    printf(" %d", phy2log[slot]);
  }
  printf("\n");

  draw_loads(loads, 1);
  request.current = phy2log;
  request.target = 0.9;
  eplb_plan *second = NULL;
  check(eplb_planner_plan(planner, &request, &second), "second plan");
  report(second, "second plan");

  /* Errors say what is wrong. */
  eplb_plan *none = NULL;
  request.current = NULL;
  request.slots = 16;
  if (eplb_planner_plan(planner, &request, &none) == EPLB_STATUS_OK) {
    return 1;
  }
  printf("as expected: %s\n", eplb_last_error());

  eplb_plan_free(second);
  eplb_plan_free(first);
  eplb_planner_free(planner);
  return 0;
}
