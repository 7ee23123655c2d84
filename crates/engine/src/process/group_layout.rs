//! From the parallelism of a server to its expert-parallel groups.

use eplb_comm::store::{PrefixStore, Store, StoreError};
use eplb_core::{CoreError, RankId, Topology};
use std::sync::Arc;

use super::hosts::{HostId, nodes};

/// How the ranks of a job are numbered: which of its axes varies faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RankOrder {
    /// `[data, pipeline, tensor]`, tensor ranks next to each other: vLLM.
    #[default]
    DataPipelineTensor,
    /// `[pipeline, data, tensor]`: Megatron's usual order, and SGLang's.
    PipelineDataTensor,
}

/// Sizes of a job's axes. Context parallelism counts as tensor parallelism here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parallelism {
    /// Ranks in all.
    pub world_size: usize,
    /// Tensor-parallel ranks.
    pub tensor: usize,
    /// Pipeline stages. Each holds layers of its own, so its ranks form groups of their own.
    pub pipeline: usize,
    /// Data-parallel replicas.
    pub data: usize,
    /// Ranks of an expert-parallel group; `None`: all data- and tensor-parallel ranks of a stage.
    pub expert: Option<usize>,
    /// How ranks are numbered.
    pub order: RankOrder,
}

/// Sizes that do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// An axis of no ranks.
    #[error("{what} is 0: every size is at least 1")]
    Zero {
        /// The size.
        what: &'static str,
    },
    /// The axes do not multiply to the number of ranks.
    #[error(
        "{world_size} ranks are not {data} data x {pipeline} pipeline x {tensor} tensor ranks; correct one of the four"
    )]
    Product {
        /// Ranks in all.
        world_size: usize,
        /// Data-parallel replicas.
        data: usize,
        /// Pipeline stages.
        pipeline: usize,
        /// Tensor-parallel ranks.
        tensor: usize,
    },
    /// The expert-parallel size does not divide a stage.
    #[error(
        "groups of {expert} ranks do not divide the {stage} data- and tensor-parallel ranks of a pipeline stage"
    )]
    Expert {
        /// Ranks of a group.
        expert: usize,
        /// Ranks of a stage.
        stage: usize,
    },
}

/// The expert-parallel groups of a job. They are independent: each has its own corner of the store, its own epochs and its own
/// exchanges, so none ever waits for another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupLayout {
    groups: Vec<Vec<RankId>>,
    /// Of each rank of the job: its group and its rank in it.
    places: Vec<(usize, RankId)>,
    groups_per_stage: usize,
}

impl GroupLayout {
    /// Works out the groups. Within a pipeline stage ranks are taken in the order `[data, tensor]`, and each run of
    /// [`Parallelism::expert`] of them is a group.
    ///
    /// # Errors
    /// Sizes that do not fit together.
    pub fn new(sizes: &Parallelism) -> Result<Self, LayoutError> {
        let Parallelism { world_size, tensor, pipeline, data, expert, order } = *sizes;
        let named = [
            ("the world size", world_size),
            ("the tensor-parallel size", tensor),
            ("the pipeline-parallel size", pipeline),
            ("the data-parallel size", data),
            ("the expert-parallel size", expert.unwrap_or(1)),
        ];
        if let Some(&(what, _)) = named.iter().find(|(_, size)| *size == 0) {
            return Err(LayoutError::Zero { what });
        }
        let product = data.checked_mul(pipeline).and_then(|n| n.checked_mul(tensor));
        if product != Some(world_size) {
            return Err(LayoutError::Product { world_size, data, pipeline, tensor });
        }
        let stage = data * tensor;
        let expert = expert.unwrap_or(stage);
        if stage % expert != 0 {
            return Err(LayoutError::Expert { expert, stage });
        }
        let mut groups = Vec::new();
        let mut places = vec![(0, RankId(0)); world_size];
        for p in 0..pipeline {
            let ranks: Vec<usize> = (0..data)
                .flat_map(|d| (0..tensor).map(move |t| (d, t)))
                .map(|(d, t)| match order {
                    RankOrder::DataPipelineTensor => (d * pipeline + p) * tensor + t,
                    RankOrder::PipelineDataTensor => (p * data + d) * tensor + t,
                })
                .collect();
            for group in ranks.chunks_exact(expert) {
                for (at, &rank) in group.iter().enumerate() {
                    places[rank] = (groups.len(), RankId::at(at));
                }
                groups.push(group.iter().copied().map(RankId::at).collect());
            }
        }
        Ok(Self { groups, places, groups_per_stage: stage / expert })
    }

    /// The groups: ranks of the job in the order of their ranks in the group.
    pub fn groups(&self) -> &[Vec<RankId>] {
        &self.groups
    }

    /// Group of a rank of the job and its rank in it; `None` for a rank that there is not.
    pub fn place(&self, rank: RankId) -> Option<(usize, RankId)> {
        self.places.get(rank.index()).copied()
    }

    /// The pipeline stage of a group: groups of different stages hold different layers.
    pub fn stage(&self, group: usize) -> usize {
        group / self.groups_per_stage
    }

    /// The corner of the job's store that belongs to a group.
    ///
    /// # Errors
    /// Those of [`PrefixStore::new`].
    pub fn corner(&self, store: Arc<dyn Store>, group: usize) -> Result<PrefixStore, StoreError> {
        PrefixStore::new(store, &format!("ep{group}"))
    }

    /// The topology of a group: `slots` slots over its ranks, on the hosts that they said they are on (in the order of their
    /// ranks in the group).
    ///
    /// # Errors
    /// Fewer slots than ranks, or a number of hosts that is not that of the ranks.
    pub fn topology(ranks: usize, slots: usize, hosts: &[HostId]) -> Result<Topology, CoreError> {
        Topology::uniform(ranks, slots)?.with_node_of_rank(nodes(hosts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(data: usize, pipeline: usize, tensor: usize, expert: Option<usize>) -> Parallelism {
        let world_size = data * pipeline * tensor;
        Parallelism { world_size, tensor, pipeline, data, expert, order: RankOrder::default() }
    }

    fn groups(sizes: &Parallelism) -> Vec<Vec<u32>> {
        let layout = GroupLayout::new(sizes).unwrap();
        layout.groups().iter().map(|group| group.iter().map(|rank| rank.0).collect()).collect()
    }

    #[test]
    fn small_jobs_by_hand() {
        assert_eq!(groups(&sizes(1, 1, 4, None)), [[0, 1, 2, 3]]);
        // vLLM: two replicas of two stages of two ranks; the stages' groups interleave.
        assert_eq!(groups(&sizes(2, 2, 2, None)), [[0, 1, 4, 5], [2, 3, 6, 7]]);
        let megatron = Parallelism { order: RankOrder::PipelineDataTensor, ..sizes(2, 2, 2, None) };
        assert_eq!(groups(&megatron), [[0, 1, 2, 3], [4, 5, 6, 7]]);
        assert_eq!(groups(&sizes(4, 1, 1, Some(2))), [[0, 1], [2, 3]]);
        let layout = GroupLayout::new(&sizes(4, 2, 1, Some(2))).unwrap();
        assert_eq!((0..4).map(|group| layout.stage(group)).collect::<Vec<_>>(), [0, 0, 1, 1]);
    }

    #[test]
    fn every_rank_is_in_one_group_with_its_own_number() {
        for order in [RankOrder::DataPipelineTensor, RankOrder::PipelineDataTensor] {
            for (data, pipeline, tensor) in
                (1..5).flat_map(|d| (1..5).flat_map(move |p| (1..5).map(move |t| (d, p, t))))
            {
                let stage = data * tensor;
                for expert in (1..=stage).filter(|expert| stage % expert == 0) {
                    let sizes = Parallelism { order, ..sizes(data, pipeline, tensor, Some(expert)) };
                    let layout = GroupLayout::new(&sizes).unwrap();
                    assert_eq!(layout.groups().len() * expert, sizes.world_size);
                    for rank in (0..sizes.world_size).map(RankId::at) {
                        let (group, own) = layout.place(rank).unwrap();
                        assert_eq!(layout.groups()[group][own.index()], rank);
                        assert_eq!(layout.groups()[group].iter().filter(|&&r| r == rank).count(), 1);
                    }
                    // Ranks of a group hold the same stage, and ascend.
                    for (number, group) in layout.groups().iter().enumerate() {
                        assert!(group.is_sorted());
                        let stage_of = |rank: RankId| match order {
                            RankOrder::DataPipelineTensor => rank.index() / tensor % pipeline,
                            RankOrder::PipelineDataTensor => rank.index() / (tensor * data),
                        };
                        assert!(group.iter().all(|&rank| stage_of(rank) == layout.stage(number)));
                    }
                    assert_eq!(layout.place(RankId::at(sizes.world_size)), None);
                }
            }
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused_by_name() {
        let refused = |sizes: Parallelism| GroupLayout::new(&sizes).unwrap_err().to_string();
        assert!(refused(Parallelism { world_size: 7, ..sizes(2, 2, 2, None) }).contains("7 ranks"));
        assert!(refused(Parallelism { pipeline: 0, ..sizes(2, 1, 2, None) }).contains("pipeline"));
        assert!(refused(Parallelism { data: usize::MAX, ..sizes(2, 2, 2, None) }).contains("8 ranks"));
        assert!(refused(sizes(2, 2, 2, Some(3))).contains("groups of 3"));
        assert!(refused(sizes(2, 2, 2, Some(0))).contains("expert-parallel"));
    }

    #[test]
    fn nodes_follow_from_hosts() {
        let host = HostId::here();
        let topology = GroupLayout::topology(2, 6, &[host.clone(), host.clone()]).unwrap();
        assert_eq!(topology.node_of(RankId(1)), topology.node_of(RankId(0)));
        assert!(GroupLayout::topology(2, 6, &[host]).is_err());
    }
}
