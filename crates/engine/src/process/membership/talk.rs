//! Connects who decides with the store.

use std::time::{Duration, Instant};

use eplb_comm::store::deadlines::after;
use eplb_comm::store::identity::EPOCH_KEY;
use eplb_comm::store::{CasOutcome, EpochRecord, Nonce, Store, StoreError};

use super::agreement::{Act, Agreement, Seen};
use super::error::MembershipError;
use super::presence::{BELL_KEY, Presence, joiner_key, member_key, refusal_key};
use super::waiting::Waiting;

/// How the store is asked.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Longest time of one operation.
    pub operation: Duration,
    /// Longest time between two looks.
    pub renew: Duration,
}

/// Runs a member's agreement until the next epoch is formed. What it has shown of itself is gone from the store then.
///
/// # Errors
/// Those of [`Agreement::look`], and those of the store, but for operations that time out: they are tried again.
pub fn agree(
    store: &dyn Store,
    agreement: &mut Agreement,
    call: Call,
) -> Result<EpochRecord, MembershipError> {
    let old = agreement.old();
    let keys: Vec<String> = std::iter::once(EPOCH_KEY.to_owned())
        .chain(agreement.seats().map(|seat| match seat.member {
            Some((rank, _)) => member_key(old, rank),
            None => joiner_key(seat.planned),
        }))
        .collect();
    let own = member_key(old, agreement.rank());
    let formed = Talk { store, call, own: &own }.run(&keys, |values, now| {
        let (record, presences) =
            values.split_first().map_or((None, &[][..]), |(record, rest)| (record.as_deref(), rest));
        let presences = presences.iter().map(|value| Presence::decode(value.as_deref()?)).collect();
        agreement.look(&Seen { record: record_of(record)?, presences }, now)
    });
    // Who is told that it does not belong goes, too.
    drop(store.delete(&own, after(call.operation)));
    formed
}

/// Runs the part of a process that joins, until the epoch that lists it is formed.
///
/// # Errors
/// Those of [`Waiting::look`], and those of the store, but for operations that time out.
pub fn join(store: &dyn Store, waiting: &mut Waiting, call: Call) -> Result<EpochRecord, MembershipError> {
    let planned = waiting.planned();
    let (own, refusal) = (joiner_key(planned), refusal_key(planned));
    let keys = [EPOCH_KEY.to_owned(), own.clone(), refusal.clone()];
    let formed = Talk { store, call, own: &own }.run(&keys, |values, now| {
        let value = |at: usize| values.get(at).and_then(Option::as_deref);
        let shown = value(1).and_then(Presence::decode);
        let nonce = waiting.own().nonce;
        let refused = value(2).and_then(|bytes| refusal_of(bytes, nonce));
        waiting.look(record_of(value(0))?.as_ref(), shown.as_ref(), refused.as_deref(), now)
    });
    if !matches!(formed, Err(MembershipError::Superseded { .. })) {
        // A later start shows itself again within an interval.
        for key in [&own, &refusal] {
            drop(store.delete(key, after(call.operation)));
        }
    }
    formed
}

/// What a key holds.
type Value = Option<Vec<u8>>;

struct Talk<'a> {
    store: &'a dyn Store,
    call: Call,
    /// Where this process shows itself.
    own: &'a str,
}

impl Talk<'_> {
    fn run(
        &self,
        keys: &[String],
        mut look: impl FnMut(&[Option<Vec<u8>>], Duration) -> Result<Vec<Act>, MembershipError>,
    ) -> Result<EpochRecord, MembershipError> {
        let start = Instant::now();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let mut last: Option<(Value, Vec<Value>)> = None;
        loop {
            // The bell is read first: whatever rings it later ends the wait below.
            match self.read(&keys) {
                Ok(read) => last = Some(read),
                Err(error) if error.is_timeout() => {}
                Err(error) => return Err(error.into()),
            }
            let (bell, values) = match &last {
                Some((bell, values)) => (bell.as_deref(), values.clone()),
                None => (None, vec![None; keys.len()]),
            };
            let mut news = false;
            for act in look(&values, start.elapsed())? {
                match self.carry_out(act) {
                    Ok(Done::Formed(record)) => return Ok(record),
                    Ok(Done::News) => news = true,
                    Ok(Done::Quiet) => {}
                    // It may have been done or not: the next look shows.
                    Err(error) if error.is_timeout() => news = true,
                    Err(error) => return Err(error.into()),
                }
            }
            if !news {
                match self.store.wait_change(BELL_KEY, bell, after(self.call.renew)) {
                    Err(error) if !error.is_timeout() => return Err(error.into()),
                    _ => {}
                }
            }
        }
    }

    fn read(&self, keys: &[&str]) -> Result<(Value, Vec<Value>), StoreError> {
        let deadline = after(self.call.operation);
        let bell = self.store.get(BELL_KEY, deadline)?;
        Ok((bell, self.store.get_many(keys, deadline)?))
    }

    fn carry_out(&self, act: Act) -> Result<Done, StoreError> {
        let deadline = after(self.call.operation);
        match act {
            Act::Formed(record) => return Ok(Done::Formed(record)),
            Act::Say(presence) => {
                self.store.set(self.own, &presence.encode(), deadline)?;
                // Signs of life are looked at in any case; what is new is told.
                if presence.count > 1 && presence.accepted == 0 {
                    return Ok(Done::Quiet);
                }
            }
            Act::Propose { from, to } => {
                let from = from.map(|record| record.encode());
                match self.store.compare_and_set(EPOCH_KEY, from.as_deref(), &to.encode(), deadline)? {
                    // The next look shows it, as it shows what another wrote.
                    CasOutcome::Swapped | CasOutcome::Current(_) => {}
                }
            }
            Act::Refuse { planned, nonce, reason } => {
                let text = [&nonce.to_bytes()[..], reason.as_bytes()].concat();
                self.store.set(&refusal_key(planned), &text, deadline)?;
            }
        }
        self.store.add(BELL_KEY, 1, deadline)?;
        Ok(Done::News)
    }
}

enum Done {
    Formed(EpochRecord),
    /// Others are told; there may be more to do at once.
    News,
    Quiet,
}

fn record_of(bytes: Option<&[u8]>) -> Result<Option<EpochRecord>, MembershipError> {
    bytes.map(EpochRecord::decode).transpose().map_err(|detail| {
        let detail = format!("the epoch record is malformed: {detail}");
        StoreError::Protocol { store: EPOCH_KEY.to_owned(), detail }.into()
    })
}

/// The reason in a refusal of this start.
fn refusal_of(bytes: &[u8], nonce: Nonce) -> Option<String> {
    let reason = bytes.strip_prefix(&nonce.to_bytes())?;
    Some(String::from_utf8_lossy(reason).into_owned())
}
