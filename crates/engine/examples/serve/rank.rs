//! One rank of the server: it routes its tokens by the maps of the step, serves the tokens of all ranks from its slots, and
//! compares what came out with what must come out. Where the slots lie is the affair of its [`Hands`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use eplb_comm::Place;
use eplb_comm::kernels::LayerMaps;
use eplb_core::{LayerId, SlotId, Topology};
use eplb_engine::engine::{Counts, Engine, Maps, Pass, SetId};
use ndarray::Array2;

use super::mail::{Letter, Post};
use super::model::{Model, State, TOP_K, apply, combine};

/// What all ranks share.
#[derive(Debug)]
pub(crate) struct Server {
    /// The model.
    pub(crate) model: Model,
    /// Ranks and slots.
    pub(crate) topology: Topology,
    /// Their mail.
    pub(crate) mail: Box<dyn Post>,
    /// Tokens of each rank in a step.
    pub(crate) tokens: usize,
    /// Steps from one moment of the trace to the next.
    pub(crate) steps_per_moment: u64,
    /// Time on the device for each token and choice: a rank that serves more takes longer.
    pub(crate) token_time: Duration,
    /// Whether this was the last step.
    pub(crate) over: AtomicBool,
}

/// Any error.
pub(crate) type Failure = Box<dyn std::error::Error>;

/// What the tokens of a rank chose in a pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chosen<'a> {
    /// The pass.
    pub(crate) pass: Pass,
    /// How many went to each slot, by the maps of the pass; `[L, P]`.
    pub(crate) slots: &'a Array2<u64>,
    /// The experts, layer by layer, `[L][tokens * k]`.
    pub(crate) experts: &'a [Vec<i32>],
}

/// How a rank computes: on the calling thread, or on a device.
pub(crate) trait Hands {
    /// Tells the engine that a step begins. The maps by which the rank routes.
    fn begin(
        &mut self,
        engine: &Engine,
        set: SetId,
        step: u64,
        seen: &mut Seen,
    ) -> Result<Arc<Maps>, Failure>;

    /// Sums over the bytes of slots of this rank in a layer, one for each letter. What cannot be read is noted as wrong.
    fn sums(
        &mut self,
        engine: &Engine,
        set: SetId,
        layer: usize,
        letters: &[Letter],
        seen: &mut Seen,
    ) -> Result<Vec<u64>, Failure>;

    /// Counts what this rank's tokens chose.
    fn count(
        &mut self,
        engine: &Engine,
        set: SetId,
        chosen: &Chosen<'_>,
        seen: &mut Seen,
    ) -> Result<(), Failure>;

    /// The pass is enqueued.
    fn end(&mut self, server: &Server, maps: &Arc<Maps>, seen: &mut Seen) -> Result<(), Failure>;

    /// There are no more passes.
    fn finish(
        &mut self,
        server: &Server,
        engine: &Engine,
        set: SetId,
        seen: &mut Seen,
    ) -> Result<(), Failure>;
}

/// On the calling thread, in host memory.
#[derive(Debug)]
pub(crate) struct Plain;

impl Hands for Plain {
    fn begin(
        &mut self,
        engine: &Engine,
        set: SetId,
        step: u64,
        seen: &mut Seen,
    ) -> Result<Arc<Maps>, Failure> {
        let start = Instant::now();
        engine.step(step)?;
        seen.calls.push((start.elapsed(), false));
        Ok(engine.maps(set))
    }

    fn sums(
        &mut self,
        engine: &Engine,
        set: SetId,
        layer: usize,
        letters: &[Letter],
        seen: &mut Seen,
    ) -> Result<Vec<u64>, Failure> {
        let memory = engine.memory(set);
        let sum =
            |letter: &Letter| match memory.read(Place::slot(LayerId::at(layer), SlotId::at(letter.slot))) {
                Ok(slot) => Model::sum_of_slot(&slot),
                Err(error) => {
                    seen.note_wrong(|| error.to_string());
                    0
                }
            };
        Ok(letters.iter().map(sum).collect())
    }

    fn count(
        &mut self,
        engine: &Engine,
        set: SetId,
        chosen: &Chosen<'_>,
        _: &mut Seen,
    ) -> Result<(), Failure> {
        engine.record(set, &chosen.pass, Counts::Slots(chosen.slots.view()))?;
        Ok(())
    }

    fn end(&mut self, _: &Server, _: &Arc<Maps>, _: &mut Seen) -> Result<(), Failure> {
        Ok(())
    }

    fn finish(&mut self, _: &Server, _: &Engine, _: SetId, _: &mut Seen) -> Result<(), Failure> {
        Ok(())
    }
}

/// What a rank saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Steps.
    pub(crate) steps: u64,
    /// Time of each.
    pub(crate) times: Vec<Duration>,
    /// Time that each step took in the engine, and whether it changed the maps.
    pub(crate) calls: Vec<(Duration, bool)>,
    /// Tokens whose output was not what it must be.
    pub(crate) wrong: u64,
    /// The first thing that went wrong.
    pub(crate) first_wrong: Option<String>,
    /// Steps that ran while the maps were being changed: their version was not that of the step before.
    pub(crate) switches: u64,
}

impl Seen {
    /// Something is not what it must be.
    pub(crate) fn note_wrong(&mut self, what: impl FnOnce() -> String) {
        self.wrong += 1;
        self.first_wrong.get_or_insert_with(what);
    }
}

impl Server {
    /// Moment of the trace in a step.
    pub(crate) fn moment(&self, step: u64) -> usize {
        (step / self.steps_per_moment) as usize
    }

    /// Serves steps until one is the last. `between` is called after each, with its id, while no pass is under way.
    pub(crate) fn serve(
        &self,
        engine: &Engine,
        set: SetId,
        hands: &mut dyn Hands,
        mut between: impl FnMut(u64) -> Result<(), Failure>,
    ) -> Result<Seen, Failure> {
        let result = self.steps(engine, set, hands, &mut between);
        if result.is_err() {
            self.mail.leave();
        }
        result
    }

    fn steps(
        &self,
        engine: &Engine,
        set: SetId,
        hands: &mut dyn Hands,
        between: &mut dyn FnMut(u64) -> Result<(), Failure>,
    ) -> Result<Seen, Failure> {
        let mut seen = Seen::default();
        let mut version = 0;
        loop {
            let (step, start) = (seen.steps, Instant::now());
            let maps = hands.begin(engine, set, step, &mut seen)?;
            let switched = maps.version != version;
            seen.switches += u64::from(switched);
            if let Some((_, switches)) = seen.calls.last_mut() {
                *switches = switched;
            }
            version = maps.version;
            self.pass(engine, set, hands, step, &maps, &mut seen)?;
            hands.end(self, &maps, &mut seen)?;
            seen.times.push(start.elapsed());
            between(step)?;
            let rank = engine.rank().index();
            self.mail.meet(rank)?;
            let over = self.over.load(Ordering::SeqCst);
            // Nobody decides on the next step before all have read of this.
            self.mail.meet(rank)?;
            seen.steps += 1;
            if over {
                hands.finish(self, engine, set, &mut seen)?;
                return Ok(seen);
            }
        }
    }

    /// One forward pass.
    fn pass(
        &self,
        engine: &Engine,
        set: SetId,
        hands: &mut dyn Hands,
        step: u64,
        maps: &Maps,
        seen: &mut Seen,
    ) -> Result<(), Failure> {
        let rank = engine.rank().index();
        let token = |at: usize| ((rank * self.tokens + at) as u64) << 20 | (step % (1 << 20));
        let moment = self.moment(step);
        let mut states: Vec<State> = (0..self.tokens).map(|at| Model::embed(token(at))).collect();
        let mut routed = Array2::<u64>::zeros(maps.phy2log.dim());
        let mut chosen = Vec::with_capacity(self.model.layers());
        for layer in 0..self.model.layers() {
            let routes: Vec<_> =
                (0..self.tokens).map(|at| self.model.route(moment, token(at), layer)).collect();
            chosen.push(routes.iter().flatten().map(|&(expert, _)| expert as i32).collect());
            let mut out = vec![Vec::new(); self.topology.ranks()];
            for (at, route) in routes.iter().enumerate() {
                for (choice, &(expert, _)) in route.iter().enumerate() {
                    let slot = replica(maps, layer, token(at) as u32, expert)
                        .ok_or_else(|| format!("layer {layer}: expert {expert} has no slot"))?;
                    routed[(layer, slot)] += 1;
                    let owner = self.topology.rank_of(SlotId::at(slot)).index();
                    out[owner].push(Letter { from: rank, place: (at, choice), slot, state: states[at] });
                }
            }
            let asked = self.mail.turn(rank, out)?;
            let answers = self.answer(engine, set, hands, layer, asked, seen)?;
            let mut made = vec![vec![[0.0; super::model::WIDTH]; TOP_K]; self.tokens];
            for letter in self.mail.turn(rank, answers)? {
                made[letter.place.0][letter.place.1] = letter.state;
            }
            for ((state, made), route) in states.iter_mut().zip(&made).zip(&routes) {
                let parts: Vec<_> =
                    route.iter().zip(made).map(|(&(_, weight), &part)| (weight, part)).collect();
                combine(state, &parts);
            }
        }
        for (at, state) in states.iter().enumerate() {
            if *state != self.model.expected(moment, token(at)) {
                seen.note_wrong(|| format!("step {step}, token {at} of rank {rank}"));
            }
        }
        let pass = Pass { step, tag: 1, dummy: false };
        hands.count(engine, set, &Chosen { pass, slots: &routed, experts: &chosen }, seen)
    }

    /// Serves what came for this rank's slots in a layer; the answers, one pile for each rank.
    fn answer(
        &self,
        engine: &Engine,
        set: SetId,
        hands: &mut dyn Hands,
        layer: usize,
        letters: Vec<Letter>,
        seen: &mut Seen,
    ) -> Result<Vec<Vec<Letter>>, Failure> {
        if !self.token_time.is_zero() {
            std::thread::sleep(self.token_time * letters.len() as u32);
        }
        let sums = hands.sums(engine, set, layer, &letters, seen)?;
        let mut answers = vec![Vec::new(); self.topology.ranks()];
        for (mut letter, sum) in letters.into_iter().zip(sums) {
            letter.state = apply(sum, &letter.state);
            answers[letter.from].push(letter);
        }
        Ok(answers)
    }
}

/// The slot that serves a token, by the maps of its rank.
pub(super) fn replica(maps: &Maps, layer: usize, token: u32, expert: usize) -> Option<usize> {
    let (log2phy, logcnt, share) =
        (maps.log2phy.index_axis(ndarray::Axis(0), layer), maps.logcnt.row(layer), maps.share.row(layer));
    let layer_maps = LayerMaps {
        log2phy: log2phy.to_slice()?,
        logcnt: logcnt.to_slice()?,
        share: share.to_slice()?,
        columns: log2phy.ncols(),
        layer: layer as u32,
        salt: 0,
    };
    layer_maps.replica(token, expert)
}
