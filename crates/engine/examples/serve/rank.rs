//! One rank of the server: it routes its tokens by the maps of the step, serves the tokens of all ranks from its slots, and
//! compares what came out with what must come out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use eplb_comm::Place;
use eplb_comm::kernels::LayerMaps;
use eplb_core::{LayerId, SlotId, Topology};
use eplb_engine::engine::{Counts, Engine, Maps, Pass, SetId};
use ndarray::Array2;

use super::mail::{Letter, Mail};
use super::model::{Model, State, combine};

/// What all ranks share.
#[derive(Debug)]
pub(crate) struct Server {
    /// The model.
    pub(crate) model: Model,
    /// Ranks and slots.
    pub(crate) topology: Topology,
    /// Their mail.
    pub(crate) mail: Mail,
    /// Tokens of each rank in a step.
    pub(crate) tokens: usize,
    /// Steps from one moment of the trace to the next.
    pub(crate) steps_per_moment: u64,
    /// Time on the device for each token and choice: a rank that serves more takes longer.
    pub(crate) token_time: Duration,
    /// Whether this was the last step.
    pub(crate) over: AtomicBool,
}

/// What a rank saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Steps.
    pub(crate) steps: u64,
    /// Time of each.
    pub(crate) times: Vec<Duration>,
    /// Tokens whose output was not what it must be.
    pub(crate) wrong: u64,
    /// The first thing that went wrong.
    pub(crate) first_wrong: Option<String>,
    /// Steps that ran while the maps were being changed: their version was not that of the step before.
    pub(crate) switches: u64,
}

impl Server {
    /// Moment of the trace in a step.
    pub(crate) fn moment(&self, step: u64) -> usize {
        (step / self.steps_per_moment) as usize
    }

    /// Serves steps until one is the last. `between` is called after each, with its id.
    pub(crate) fn serve(
        &self,
        engine: &Engine,
        set: SetId,
        mut between: impl FnMut(u64),
    ) -> Result<Seen, Box<dyn std::error::Error>> {
        let result = self.steps(engine, set, &mut between);
        if result.is_err() {
            self.mail.leave();
        }
        result
    }

    fn steps(
        &self,
        engine: &Engine,
        set: SetId,
        between: &mut dyn FnMut(u64),
    ) -> Result<Seen, Box<dyn std::error::Error>> {
        let mut seen = Seen::default();
        let mut version = 0;
        loop {
            let (step, start) = (seen.steps, Instant::now());
            engine.step(step)?;
            let maps = engine.maps(set);
            seen.switches += u64::from(maps.version != version);
            version = maps.version;
            self.pass(engine, set, step, &maps, &mut seen)?;
            seen.times.push(start.elapsed());
            between(step);
            self.mail.meet()?;
            let over = self.over.load(Ordering::SeqCst);
            // Nobody decides on the next step before all have read of this.
            self.mail.meet()?;
            seen.steps += 1;
            if over {
                return Ok(seen);
            }
        }
    }

    /// One forward pass.
    fn pass(
        &self,
        engine: &Engine,
        set: SetId,
        step: u64,
        maps: &Maps,
        seen: &mut Seen,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let rank = engine.rank().index();
        let token = |at: usize| ((rank * self.tokens + at) as u64) << 20 | (step % (1 << 20));
        let moment = self.moment(step);
        let mut states: Vec<State> = (0..self.tokens).map(|at| Model::embed(token(at))).collect();
        let mut served = Array2::<u64>::zeros(maps.phy2log.dim());
        for layer in 0..self.model.layers() {
            let routes: Vec<_> =
                (0..self.tokens).map(|at| self.model.route(moment, token(at), layer)).collect();
            let mut out = vec![Vec::new(); self.topology.ranks()];
            for (at, route) in routes.iter().enumerate() {
                for (choice, &(expert, _)) in route.iter().enumerate() {
                    let slot = replica(maps, layer, token(at) as u32, expert)
                        .ok_or_else(|| format!("layer {layer}: expert {expert} has no slot"))?;
                    let owner = self.topology.rank_of(SlotId::at(slot)).index();
                    out[owner].push(Letter { from: rank, place: (at, choice), slot, state: states[at] });
                }
            }
            for (owner, letters) in out.iter().enumerate() {
                self.mail.ask(owner, letters);
            }
            self.mail.meet()?;
            self.answer(engine, set, layer, &mut served, seen)?;
            let mut made = vec![vec![[0.0; super::model::WIDTH]; self.model.top_k]; self.tokens];
            for letter in self.mail.answers(rank) {
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
                seen.wrong += 1;
                seen.first_wrong.get_or_insert_with(|| format!("step {step}, token {at} of rank {rank}"));
            }
        }
        // Slots of this rank, as its own maps name them: what other ranks still send to one that this rank has drained is not
        // known under these maps and is left out.
        for ((layer, slot), count) in served.indexed_iter_mut() {
            if maps.phy2log[(layer, slot)] < 0 {
                *count = 0;
            }
        }
        engine.record(set, &Pass { step, tag: 1, dummy: false }, Counts::Slots(served.view()))?;
        Ok(())
    }

    /// Serves what came for this rank's slots in a layer.
    fn answer(
        &self,
        engine: &Engine,
        set: SetId,
        layer: usize,
        served: &mut Array2<u64>,
        seen: &mut Seen,
    ) -> Result<(), String> {
        let letters = self.mail.questions(engine.rank().index());
        if !self.token_time.is_zero() {
            std::thread::sleep(self.token_time * letters.len() as u32);
        }
        for mut letter in letters {
            served[(layer, letter.slot)] += 1;
            match engine.memory(set).read(Place::slot(LayerId::at(layer), SlotId::at(letter.slot))) {
                Ok(slot) => letter.state = Model::by_slot(&slot, &letter.state),
                Err(error) => {
                    seen.wrong += 1;
                    seen.first_wrong.get_or_insert_with(|| error.to_string());
                }
            }
            self.mail.answer(letter);
        }
        self.mail.meet()
    }
}

/// The slot that serves a token, by the maps of its rank.
fn replica(maps: &Maps, layer: usize, token: u32, expert: usize) -> Option<usize> {
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
