//! How many channels of NCCL a message is given.

use nccl_rs::Config;

/// Channels that a message between two ranks of a host is to have.
const FOR_A_MESSAGE: usize = 16;

/// Most channels of a communicator: `MAXCHANNELS` of NCCL.
const MOST: usize = 64;

/// Ranks up to which NCCL's own choice gives a message as many: it has 32 channels where links are fast.
const ENOUGH: usize = 2;

/// The options that a communicator of so many ranks is made with.
///
/// NCCL divides the channels of a communicator by its ranks, and sends each message over as many, rounded down to a power of two; all
/// messages of a pair over the same ones (`scheduleP2pTasksToPlan` of its `enqueue.cc`). Only a message of more than 16 MiB for each of
/// them is given more. So three or four ranks have 8 channels for a message of some 40 MB, which is less than half of what a link
/// carries (docs/benchmarks/nccl.md); with as many thread blocks as NCCL takes they have 16. More ranks have fewer whatever is asked for, and
/// pay for the buffers of as many peers, so that they are left as NCCL has them; and so is whoever says a number, and a device of which that
/// many blocks would take more than half of the multiprocessors: a server's own kernels must find room beside.
pub(crate) fn with_channels(config: &Config, ranks: usize, multiprocessors: u32) -> Config {
    let wanted = FOR_A_MESSAGE * ranks.next_power_of_two();
    let unsaid = config.min_ctas.is_none() && config.max_ctas.is_none();
    let fits = 2 * wanted <= multiprocessors as usize;
    let raised = unsaid && ranks > ENOUGH && wanted <= MOST && fits;
    Config { min_ctas: if raised { u32::try_from(wanted).ok() } else { config.min_ctas }, ..config.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_ranks_have_sixteen_channels_for_a_message() {
        let unsaid = Config::default();
        assert_eq!(with_channels(&unsaid, 4, 108), unsaid, "a device of 108 multiprocessors");
        let asked: Vec<_> = (1..=9).map(|ranks| with_channels(&unsaid, ranks, 132).min_ctas).collect();
        assert_eq!(asked, [None, None, Some(64), Some(64), None, None, None, None, None]);
        for said in [Config { min_ctas: Some(1), ..unsaid.clone() }, Config { max_ctas: Some(8), ..unsaid }] {
            assert_eq!(with_channels(&said, 4, 132), said);
        }
    }
}
