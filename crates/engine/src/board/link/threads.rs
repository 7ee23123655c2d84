//! The two threads of a store's board: one writes, one reads.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use eplb_comm::store::StoreError;
use eplb_comm::store::deadlines::{after, left};
use eplb_comm::store::eager::Eager;
use eplb_comm::store::liveness::counter_key;

use super::{Link, State, Trouble};
use crate::board::wire::{Decision, decode_notes, encode_notes};

/// In the place of a sign of life: there will be none any more.
const LEFT: &[u8] = b"left";
/// Longest time to write that.
const LAST_WORD: Duration = Duration::from_secs(1);

impl Link {
    fn is_over(&self) -> bool {
        let state = self.lock();
        state.closing || state.lost.is_some()
    }

    /// The writing thread.
    pub(in crate::board) fn write(&self) {
        let mut due = Instant::now();
        let mut signs = 0u64;
        let mut eager = Eager::new();
        loop {
            let mut state = self.lock();
            let busy = |state: &State| state.unwritten || state.attempt.is_some() || state.ring;
            while !busy(&state) && !state.closing && state.lost.is_none() && !left(due).is_zero() {
                if eager.looks(Instant::now()) {
                    drop(state);
                    // Who decides one wave soon decides the next.
                    while eager.looks(Instant::now()) && !self.told.swap(false, Ordering::Acquire) {
                        std::thread::yield_now();
                    }
                    state = self.lock();
                } else {
                    state =
                        self.work.wait_timeout(state, left(due)).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
            // What was said before the board closed is still written: others may wait for it.
            if state.lost.is_some() {
                return;
            }
            if state.closing && !busy(&state) {
                drop(state);
                return self.say_left();
            }
            let notes = std::mem::take(&mut state.unwritten)
                .then(|| encode_notes(state.first, state.log.make_contiguous().iter()));
            let attempt = state.attempt.take();
            if attempt.is_some() {
                eager.hear(Instant::now());
            }
            let told = state.bulletin.is_some();
            let ring = std::mem::take(&mut state.ring);
            let mut sign = None;
            if left(due).is_zero() {
                due = after(self.renew);
                // A rank that makes no progress shows no life, whatever this thread does.
                if std::mem::take(&mut state.renewed) {
                    signs += 1;
                    sign = Some(signs.to_string().into_bytes());
                }
            }
            drop(state);
            if let Err(trouble) = self.write_once(notes, attempt, told, ring, sign) {
                self.lose(&trouble);
                return;
            }
        }
    }

    /// The last that the others hear of this rank. Where it cannot be told, they see that it is silent.
    fn say_left(&self) {
        let deadline = after(self.operation.min(LAST_WORD));
        let told = self.store.set(&counter_key(self.epoch, self.me), LEFT, deadline);
        drop(told.and_then(|()| self.store.add(&self.bell_key(), 1, deadline)));
    }

    fn write_once(
        &self,
        notes: Option<Vec<u8>>,
        attempt: Option<(Decision, Decision)>,
        told: bool,
        ring: bool,
        sign: Option<Vec<u8>>,
    ) -> Result<(), Trouble> {
        if let Some(notes) = &notes {
            self.again(|deadline| self.store.set(&self.notes_key(self.me), notes, deadline))?;
        }
        if let Some((from, to)) = &attempt {
            // A second attempt after one that may have taken effect finds its own record.
            let seen = self.again(|deadline| self.try_decide(from, to, deadline))?;
            self.lock().ring &= seen.closed && told;
        }
        if ring || notes.is_some() || (attempt.is_some() && !told) {
            self.again(|deadline| self.store.add(&self.bell_key(), 1, deadline))?;
        }
        if let Some(sign) = sign {
            self.again(|deadline| self.store.set(&counter_key(self.epoch, self.me), &sign, deadline))?;
        }
        Ok(())
    }

    /// An operation, and once more if it timed out: this process may have been stopped meanwhile.
    fn again<T>(&self, operation: impl Fn(Instant) -> Result<T, StoreError>) -> Result<T, StoreError> {
        match operation(after(self.operation)) {
            Err(error) if error.is_timeout() => operation(after(self.operation)),
            other => other,
        }
    }

    /// The reading thread.
    pub(in crate::board) fn listen(&self) {
        let mut bell: Option<Vec<u8>> = None;
        // Signs first: who was seen to have left has closed the epoch before, if it did, and has said all that is read then.
        let mut keys: Vec<_> = self.members.iter().map(|&rank| counter_key(self.epoch, rank)).collect();
        keys.push(self.decision_key());
        keys.extend(self.members.iter().map(|&rank| self.notes_key(rank)));
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        while !self.is_over() {
            match self.store.wait_change(&self.bell_key(), bell.as_deref(), after(self.renew)) {
                Ok(value) => bell = value,
                Err(error) if error.is_timeout() => {}
                Err(error) => return self.lose(&error.into()),
            }
            let read = self.again(|deadline| self.store.get_many(&keys, deadline));
            if let Err(trouble) = read.map_err(Trouble::from).and_then(|values| self.take_in(values)) {
                return self.lose(&trouble);
            }
        }
    }

    /// Takes in the signs of life of all members, the decision, and their notes, in this order.
    fn take_in(&self, values: Vec<Option<Vec<u8>>>) -> Result<(), Trouble> {
        let mut values = values.into_iter();
        let signs: Vec<_> = values.by_ref().take(self.members.len()).collect();
        let decision = self.parse_decision(values.next().flatten().as_deref())?;
        let notes: Vec<_> = values.collect();
        let mut state = self.lock();
        if decision.is_after(&state.seen) {
            state.seen = decision;
        }
        for ((&rank, peer), (notes, sign)) in
            self.members.iter().zip(&mut state.peers).zip(notes.into_iter().zip(signs))
        {
            let left = sign.as_deref() == Some(LEFT);
            if let Some(sign) = sign
                && sign != peer.sign
                && !left
            {
                peer.sign = sign;
                peer.signs += 1;
            }
            if rank == self.me {
                continue;
            }
            peer.left |= left;
            let Some(bytes) = notes else { continue };
            let (first, notes) =
                decode_notes(&bytes).map_err(|what| Trouble::Malformed(self.notes_key(rank), what))?;
            if first > peer.next {
                return Err(Trouble::Missed { rank, first, next: peer.next });
            }
            let known = usize::try_from(peer.next - first).unwrap_or(usize::MAX);
            for note in notes.into_iter().skip(known) {
                peer.inbox.push_back(note);
                peer.next += 1;
            }
        }
        state.looks += 1;
        Ok(())
    }
}
