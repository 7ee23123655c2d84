//! What a plan is made from, as C sees it.

use std::ffi::c_char;

use eplb_core::{LoadMatrix, Placement, RankId, Topology};
use eplb_plan::{Options, PlanError, Policy};
use ndarray::{Array2, Array3};

use crate::call::{self, Failure};
use crate::status::Status;
use crate::structs::{self, Growing};

/// Loads, ranks, the placement in force and the options of a plan. Fill it with `eplb_plan_request_init` first.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PlanRequest {
    /// Size of this structure; set by `eplb_plan_request_init`.
    pub struct_size: usize,
    /// Tokens per logical expert, `[steps, layers, experts]` in C order.
    pub loads: *const f64,
    /// Steps of the window; 1 for summed loads.
    pub steps: usize,
    /// MoE layers.
    pub layers: usize,
    /// Logical experts per layer.
    pub experts: usize,
    /// Ranks.
    pub ranks: usize,
    /// Slots per layer over all ranks; where they do not divide, the first ranks have one more. Not read if
    /// `slots_of_rank` is given.
    pub slots: usize,
    /// Slots of each rank, `[ranks]`, or null: equally many.
    pub slots_of_rank: *const u32,
    /// Nodes: ranks are divided over them in order.
    pub nodes: usize,
    /// Speed of each rank, `[ranks]`, or null: all are equal.
    pub speed_of_rank: *const f64,
    /// Not 0 where a rank is dead, `[ranks]`, or null: all live.
    pub dead: *const u8,
    /// The placement in force, `phy2log [layers, slots]` with -1 for empty slots, or null.
    pub current: *const i32,
    /// Name of the policy, or null: `incremental` if `current` is given, else `balanced`.
    pub policy: *const c_char,
    /// Expert groups of the router, for `deepseek`.
    pub groups: usize,
    /// Wanted balancedness, 0 to 1, or NaN: none.
    pub target: f64,
    /// Most moves of `incremental`, or -1: no limit.
    pub max_moves: i64,
    /// Most moves to any one rank, or -1: no limit.
    pub max_moves_per_rank: i64,
    /// Most bytes moved, or -1: no limit. Needs `expert_bytes`.
    pub max_bytes: i64,
    /// Most bytes moved to any one rank, or -1: no limit. Needs `expert_bytes`.
    pub max_bytes_per_rank: i64,
    /// Bytes of one expert with all that moves with it, or 0: not known.
    pub expert_bytes: u64,
    /// Seed of policy `random`.
    pub seed: u64,
    /// Most replicas of one expert, or 0: no limit.
    pub max_replicas: usize,
    /// Bytes of one expert of each layer, `[layers]`, or null: `expert_bytes` for all.
    pub expert_bytes_of_layer: *const u64,
    /// Steps that the plan is expected to serve, or NaN: every gain is worth its moves. With the two below and the bytes of
    /// an expert, `incremental` leaves layers alone whose gain does not pay for their bytes.
    pub worth_steps: f64,
    /// Seconds that the experts of one layer take in a step if perfectly balanced.
    pub worth_layer_seconds: f64,
    /// What a rank's link carries, in 10^9 bytes per second.
    pub worth_link_gbps: f64,
    /// What `forecast` asks a move for: mean balancedness of a layer over the steps to come; NaN: its default.
    pub move_price: f64,
    /// Steps after which a step of the window weighs half, for `forecast`; NaN: its default, infinite: no decay.
    pub half_life: f64,
    /// Steps at which half of a measured gain is taken for noise, for `forecast`; NaN: its default.
    pub shrinkage: f64,
    /// Most scenarios that a window is cut into, for `forecast`; 0: its default.
    pub scenarios: usize,
    /// Not 0: expert groups stay whole on nodes, equally many on each.
    pub strict_nodes: u8,
    /// Price of tokens that cross nodes, or NaN: nodes do not matter.
    pub node_price: f64,
    /// Time of a rank for each of its slots that got tokens.
    pub expert_cost: f64,
    /// Time of a rank for each token.
    pub token_cost: f64,
    /// What the server does with replicas: `even`, `share` or `nearest`; null: `even`.
    pub dispatch: *const c_char,
    /// So many experts of each layer, the hottest, get a replica on every live rank.
    pub replicate_top: usize,
    /// Part of the drift over the window that is expected to go on, for `forecast`, 0 to 1.
    pub drift: f64,
}

// SAFETY: repr(C), `struct_size` is first; integers, floats and raw pointers take any bits.
unsafe impl Growing for PlanRequest {
    const LEAST: usize = std::mem::offset_of!(PlanRequest, expert_bytes_of_layer);

    fn defaults() -> Self {
        Self {
            struct_size: size_of::<Self>(),
            loads: std::ptr::null(),
            steps: 1,
            layers: 0,
            experts: 0,
            ranks: 0,
            slots: 0,
            slots_of_rank: std::ptr::null(),
            nodes: 1,
            speed_of_rank: std::ptr::null(),
            dead: std::ptr::null(),
            current: std::ptr::null(),
            policy: std::ptr::null(),
            groups: 1,
            target: f64::NAN,
            max_moves: -1,
            max_moves_per_rank: -1,
            max_bytes: -1,
            max_bytes_per_rank: -1,
            expert_bytes: 0,
            seed: 0,
            max_replicas: 0,
            expert_bytes_of_layer: std::ptr::null(),
            worth_steps: f64::NAN,
            worth_layer_seconds: f64::NAN,
            worth_link_gbps: f64::NAN,
            move_price: f64::NAN,
            half_life: f64::NAN,
            shrinkage: f64::NAN,
            scenarios: 0,
            strict_nodes: 0,
            node_price: f64::NAN,
            expert_cost: 0.0,
            token_cost: 1.0,
            dispatch: std::ptr::null(),
            replicate_top: 0,
            drift: 0.0,
        }
    }
}

/// Sets every field to its default. `struct_size` is `sizeof(struct eplb_plan_request)` of the caller's header.
///
/// # Safety
/// `request` is null or points to `struct_size` bytes that can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_plan_request_init(request: *mut PlanRequest, struct_size: usize) -> Status {
    call::run(|| {
        if request.is_null() || !request.is_aligned() || struct_size < size_of::<usize>() {
            return Err(Failure::argument("request is null, not aligned, or struct_size is too small"));
        }
        // SAFETY: it has at least the bytes of its first field.
        unsafe { request.cast::<usize>().write(struct_size) };
        // SAFETY: `struct_size` is set, and as many bytes can be written.
        unsafe { structs::write(PlanRequest::defaults(), request, "request") }
    })
}

/// A request in the planner's own types.
#[derive(Debug)]
pub(crate) struct Owned {
    pub(crate) loads: LoadMatrix,
    pub(crate) topology: Topology,
    pub(crate) current: Option<Placement>,
    pub(crate) options: Options,
}

pub(crate) fn plan_failure(error: impl Into<PlanError>) -> Failure {
    Failure::new(Status::Plan, error.into())
}

impl PlanRequest {
    /// # Safety
    /// Pointers are null or point to as much as the fields say.
    pub(crate) unsafe fn take(&self) -> Result<Owned, Failure> {
        let count = |sizes: &[usize]| {
            let product = sizes.iter().try_fold(1usize, |all, &size| all.checked_mul(size));
            product.ok_or_else(|| Failure::argument(format!("sizes {sizes:?} multiply to too much")))
        };
        if self.ranks == 0 || self.nodes == 0 {
            return Err(Failure::argument("ranks and nodes must be at least 1"));
        }
        // SAFETY: as the caller promises.
        let loads =
            unsafe { call::array(self.loads, count(&[self.steps, self.layers, self.experts])?, "loads") }?;
        let loads = Array3::from_shape_vec((self.steps, self.layers, self.experts), loads.to_vec())
            .map_err(Failure::argument)?;
        let loads = LoadMatrix::from_window(loads).map_err(plan_failure)?;
        // SAFETY: as the caller promises.
        let topology = unsafe { self.topology() }?;
        let current = if self.current.is_null() {
            None
        } else {
            let len = count(&[self.layers, topology.slots()])?;
            // SAFETY: as the caller promises.
            let current = unsafe { call::array(self.current, len, "current") }?;
            let current = Array2::from_shape_vec((self.layers, topology.slots()), current.to_vec())
                .map_err(Failure::argument)?;
            Some(Placement::with_missing(self.experts, current).map_err(plan_failure)?)
        };
        let policy = if !self.policy.is_null() {
            // SAFETY: as the caller promises.
            unsafe { self.policy() }?
        } else if current.is_some() {
            Policy::Incremental
        } else {
            Policy::Balanced
        };
        // SAFETY: as the caller promises.
        let options = unsafe { self.options(policy) }?;
        Ok(Owned { loads, topology, current, options })
    }

    /// # Safety
    /// As [`PlanRequest::take`].
    pub(crate) unsafe fn policy(&self) -> Result<Policy, Failure> {
        // SAFETY: as the caller promises.
        unsafe { call::text(self.policy, "policy") }?.parse().map_err(plan_failure)
    }

    /// # Safety
    /// As [`PlanRequest::take`].
    pub(crate) unsafe fn topology(&self) -> Result<Topology, Failure> {
        let mut topology = if self.slots_of_rank.is_null() {
            Topology::uniform(self.ranks, self.slots)
        } else {
            // SAFETY: as the caller promises.
            let slots = unsafe { call::array(self.slots_of_rank, self.ranks, "slots_of_rank") }?;
            Topology::new(&slots.iter().map(|&slots| slots as usize).collect::<Vec<_>>())
        }
        .map_err(plan_failure)?
        .with_nodes(self.nodes)
        .map_err(plan_failure)?;
        if !self.speed_of_rank.is_null() {
            // SAFETY: as the caller promises.
            let speed = unsafe { call::array(self.speed_of_rank, self.ranks, "speed_of_rank") }?;
            topology = topology.with_speed(speed).map_err(plan_failure)?;
        }
        if !self.dead.is_null() {
            // SAFETY: as the caller promises.
            let dead = unsafe { call::array(self.dead, self.ranks, "dead") }?;
            let dead: Vec<RankId> = dead
                .iter()
                .enumerate()
                .filter(|(_, dead)| **dead != 0)
                .map(|(rank, _)| RankId::at(rank))
                .collect();
            topology = topology.with_dead(&dead).map_err(plan_failure)?;
        }
        Ok(topology)
    }
}
