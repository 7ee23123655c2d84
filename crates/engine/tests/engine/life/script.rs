//! What the hosts of a group do, drawn from a seed: moments are counted in steps.

use fastrand::Rng;

/// What a host does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Runs so many steps.
    Serve(u32),
    /// Runs steps until a round has ended, as the example of the README does.
    ServeRound,
    Demand,
    Pause,
    Resume,
    Quiesce,
    Reopen,
    /// With all other ranks.
    Reform,
    /// With next to no time; others may not come.
    ReformBriefly,
    Shutdown,
    /// Anew, in place of an engine that was shut down, while the other ranks reform.
    Start,
}

/// What the hosts of all ranks do, and between what.
#[derive(Debug, Clone)]
pub(super) struct Script {
    pub(super) seed: u64,
    pub(super) layers: usize,
    pub(super) experts: usize,
    pub(super) slots: usize,
    /// Steps from the last begun to the one proposed for a commit.
    pub(super) margin: u64,
    /// Whether a second thread of each host asks for things meanwhile.
    pub(super) asked_aside: bool,
    /// By rank. Each ends with a shutdown.
    pub(super) acts: Vec<Vec<Act>>,
}

/// Steps from one thing that a host does to the next.
const STEPS: u32 = 40;

impl Script {
    pub(super) fn draw(seed: u64) -> Self {
        let mut draw = Rng::with_seed(seed);
        let ranks = draw.usize(2..=4);
        let experts = 12;
        // With no slot to spare everything is staged, and committed at agreed steps.
        let slots = if draw.bool() { experts } else { 16 };
        let mut script = Self {
            seed,
            layers: draw.usize(1..=2),
            experts,
            slots,
            margin: [2, 8, 32][draw.usize(..3)],
            asked_aside: draw.bool(),
            acts: vec![Vec::new(); ranks],
        };
        for _ in 0..draw.usize(..=3) {
            script.draw_chapter(&mut draw);
        }
        script.draw_end(&mut draw);
        script
    }

    /// Something that all ranks go on from.
    fn draw_chapter(&mut self, draw: &mut Rng) {
        let kind = draw.u32(..7);
        let one = draw.usize(..self.acts.len());
        for (rank, acts) in self.acts.iter_mut().enumerate() {
            acts.push(Act::Serve(draw.u32(..STEPS)));
            match kind {
                0 => acts.push(Act::ServeRound),
                1 if draw.bool() => acts.extend([Act::Pause, Act::Serve(draw.u32(..STEPS)), Act::Resume]),
                2 if rank == one => acts.extend([Act::Demand, Act::ServeRound]),
                3 => acts.extend([Act::Quiesce, Act::Reopen]),
                4 if rank == one => acts.extend([Act::Quiesce, Act::Reopen]),
                5 => acts.push(Act::Reform),
                6 if rank == one => acts.extend([Act::Shutdown, Act::Start]),
                6 => acts.push(Act::Reform),
                _ => {}
            }
        }
    }

    /// All ranks end, each at its own moment; some of them amid something else.
    fn draw_end(&mut self, draw: &mut Rng) {
        let (kind, one) = (draw.u32(..4), draw.usize(..self.acts.len()));
        for (rank, acts) in self.acts.iter_mut().enumerate() {
            let longer = if kind == 1 && rank != one { 5 } else { 1 };
            match kind {
                0 => acts.push(Act::ServeRound),
                _ => acts.push(Act::Serve(draw.u32(..STEPS * longer))),
            }
            if kind == 2 {
                match draw.u32(..4) {
                    0 => acts.push(Act::Pause),
                    1 => acts.push(Act::Quiesce),
                    2 => acts.extend([Act::Quiesce, Act::Reopen]),
                    _ => {}
                }
            }
            if kind == 3 && draw.bool() {
                acts.push(Act::ReformBriefly);
            }
            acts.push(Act::Shutdown);
        }
    }
}
