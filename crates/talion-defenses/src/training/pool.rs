//! A round's images: clean, attacked, and everything about them that no training step changes.

use std::{ops::ControlFlow, path::Path};

use serde::{Deserialize, Serialize};
use talion_attacks::{Attack, Batch, Sees};
use talion_core::{Archive, Classifier, Error, Objective, Result, Tensors};
use tch::{Kind, Tensor};

use super::{Mixture, panel::Group};
use crate::{
    gradient_map::MapGraph,
    trn::{Change, Prepared, Trn},
};

/// Clean images with labels and ids, on the classifier's device.
pub(super) struct Clean {
    pub images: Tensor,
    pub labels: Tensor,
    pub ids: Vec<u64>,
}

impl Clean {
    /// Those that belong to one classifier, which `owners` says of every image.
    pub(super) fn of(&self, group: &Group<'_>, place: usize, owners: &Tensor) -> Result<Self> {
        let owners = Vec::<i64>::try_from(owners)?;
        let ids = self.ids.iter().zip(owners).filter(|(_, owner)| *owner == place as i64);
        Ok(Self {
            images: group.of(&self.images),
            labels: group.of(&self.labels),
            ids: ids.map(|(id, _)| *id).collect(),
        })
    }
}

/// Images attacked, restored once and mapped where the network wants it.
pub(super) struct Pool {
    /// What restoration should give back: the clean images, and noisy ones as they are.
    pub clean: Tensor,
    pub labels: Tensor,
    /// Which classifier each image belongs to, `[N]`.
    pub owners: Tensor,
    pub attacked: Tensor,
    /// Their classifiers' probabilities for the clean images.
    pub answers: Tensor,
    /// First pass and maps; empty where these are trained and have to be made in every step.
    pub prepared: Prepared,
}

/// Rows attacked or prepared at once.
const CHUNK: i64 = 128;

/// Tells how many rows are done; `Break` asks to stop.
pub(super) type Watch<'a> = dyn FnMut(u64, u64) -> ControlFlow<()> + 'a;

#[derive(Serialize, Deserialize)]
struct CacheHeader {
    kind: String,
    key: serde_json::Value,
}

const CACHE_KIND: &str = "attacked-images";

/// Attacks each image with the part of the mixture that falls to it, or reads the result from `cache` where `key` says
/// that it is the same.
pub(super) fn attack(
    classifier: &dyn Classifier,
    clean: &Clean,
    mixture: &Mixture,
    seed: u64,
    round: u64,
    cache: Option<(&Path, serde_json::Value)>,
    watch: &mut Watch<'_>,
) -> Result<Tensor> {
    if let Some((path, key)) = &cache
        && let Ok(mut archive) = Archive::<CacheHeader>::load(path)
        && archive.header.kind == CACHE_KIND
        && archive.header.key == *key
        && let Some(attacked) = archive.tensors.remove("attacked")
    {
        return Ok(attacked.to_device(clean.images.device()));
    }
    let attacked = attack_all(classifier, clean, mixture, seed, round, watch)?;
    if let Some((path, key)) = cache {
        let header = CacheHeader { kind: CACHE_KIND.into(), key };
        Archive { header, tensors: Tensors::from([("attacked".into(), attacked.shallow_clone())]) }
            .save(path)?;
    }
    Ok(attacked)
}

fn attack_all(
    classifier: &dyn Classifier,
    clean: &Clean,
    mixture: &Mixture,
    seed: u64,
    round: u64,
    watch: &mut Watch<'_>,
) -> Result<Tensor> {
    let parts = mixture.ingredients();
    let mut rows = vec![Vec::new(); parts.len()];
    for (row, &id) in clean.ids.iter().enumerate() {
        rows[mixture.draw(seed, round, id)].push(row as i64);
    }
    let mut attacked = clean.images.copy();
    let (mut done, total) = (0, clean.ids.len() as u64);
    for (part, rows) in parts.iter().zip(&rows) {
        let Some((spec, budget)) = &part.attack else { continue };
        for chunk in rows.chunks(CHUNK as usize) {
            let index = Tensor::from_slice(chunk).to_device(clean.images.device());
            let ids: Vec<u64> = chunk.iter().map(|&row| clean.ids[row as usize]).collect();
            let batch = Batch {
                images: &clean.images.index_select(0, &index),
                labels: &clean.labels.index_select(0, &index),
                ids: &ids,
                budget: *budget,
                objective: Objective::CrossEntropy,
                seed,
                restart: round,
            };
            let images = spec.perturb(classifier, &batch)?;
            let _ = attacked.index_copy_(0, &index, &images);
            done += chunk.len() as u64;
            if watch(done, total).is_break() {
                return Err(Error::Interrupted);
            }
        }
    }
    Ok(attacked)
}

/// Which samples fell to a part of the mixture that changes images without looking at the classifier: `[N]`, boolean.
pub(super) fn merely_noisy(mixture: &Mixture, seed: u64, round: u64, ids: &[u64]) -> Tensor {
    let blind = |index: usize| {
        let attack = mixture.ingredients()[index].attack.as_ref();
        attack.and_then(|(spec, _)| spec.entry()).is_some_and(|entry| entry.sees == Sees::Nothing)
    };
    let rows: Vec<bool> = ids.iter().map(|&id| blind(mixture.draw(seed, round, id))).collect();
    Tensor::from_slice(&rows)
}

impl Pool {
    /// Computes what does not change during training, for images that all belong to one classifier, the one in this `place`.
    ///
    /// Noise is no attack: nothing in it can be undone, and a network that tries puts something into the image that was
    /// never there. Images that are `noisy` (`[N]`, boolean) are their own targets, and clean for the gate.
    pub(super) fn new(
        (place, classifier): (usize, &dyn Classifier),
        trn: &Trn,
        clean: Clean,
        attacked: Tensor,
        noisy: &Tensor,
        watch: &mut Watch<'_>,
    ) -> Result<Self> {
        let rows = attacked.size()[0];
        let (mut answers, mut prepared) = (Vec::new(), Vec::new());
        let mut start = 0;
        while start < rows {
            let length = CHUNK.min(rows - start);
            tch::no_grad(|| {
                answers
                    .push(classifier.logits(&clean.images.narrow(0, start, length)).softmax(1, Kind::Float));
                if !trn.card().spec.estimator.trainable() {
                    let images = attacked.narrow(0, start, length);
                    prepared.push(trn.prepare(classifier, &images, MapGraph::Constant, None));
                }
            });
            start += length;
            if watch(start as u64, rows as u64).is_break() {
                return Err(Error::Interrupted);
            }
        }
        let noisy = noisy.to_device(attacked.device()).view([-1, 1, 1, 1]);
        Ok(Self {
            clean: attacked.where_self(&noisy, &clean.images),
            owners: clean.labels.full_like(place as i64),
            labels: clean.labels,
            attacked,
            answers: Tensor::cat(&answers, 0),
            prepared: joined(&prepared.iter().collect::<Vec<_>>()),
        })
    }

    /// The images of every classifier, back in the order in which `owners` names them.
    pub(super) fn gathered(mut parts: Vec<Self>, owners: &Tensor) -> Self {
        if parts.len() == 1 {
            return parts.remove(0);
        }
        let join = |field: fn(&Self) -> &Tensor| Tensor::cat(&parts.iter().map(field).collect::<Vec<_>>(), 0);
        let joined = Self {
            clean: join(|part| &part.clean),
            labels: join(|part| &part.labels),
            owners: join(|part| &part.owners),
            attacked: join(|part| &part.attacked),
            answers: join(|part| &part.answers),
            prepared: joined(&parts.iter().map(|part| &part.prepared).collect::<Vec<_>>()),
        };
        let order = owners.argsort_stable(true, 0, false);
        joined.select(&order.argsort(0, false))
    }

    /// Number of images.
    pub(super) fn len(&self) -> usize {
        self.attacked.size()[0] as usize
    }

    /// The rows at `index`.
    pub(super) fn select(&self, index: &Tensor) -> Self {
        let rows = |tensor: &Tensor| tensor.index_select(0, index);
        Self {
            clean: rows(&self.clean),
            labels: rows(&self.labels),
            owners: rows(&self.owners),
            attacked: rows(&self.attacked),
            answers: rows(&self.answers),
            prepared: Prepared {
                first: self.prepared.first.as_ref().map(|change| change.select(index)),
                maps: self.prepared.maps.as_ref().map(rows),
                evidence: self.prepared.evidence.as_ref().map(rows),
            },
        }
    }
}

fn joined(parts: &[&Prepared]) -> Prepared {
    let join = |field: fn(&Prepared) -> Option<&Tensor>| {
        let tensors: Vec<&Tensor> = parts.iter().copied().filter_map(field).collect();
        (!tensors.is_empty()).then(|| Tensor::cat(&tensors, 0))
    };
    Prepared {
        first: Change::join(&parts.iter().filter_map(|part| part.first.as_ref()).collect::<Vec<_>>()),
        maps: join(|part| part.maps.as_ref()),
        evidence: join(|part| part.evidence.as_ref()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use talion_core::uniform_noise;
    use tch::Device;

    use super::*;
    use crate::trn::{TrnCard, TrnSpec};

    /// Three classes, linear in the pixels.
    struct Linear(Tensor);

    impl Classifier for Linear {
        fn classes(&self) -> i64 {
            3
        }

        fn logits(&self, images: &Tensor) -> Tensor {
            images.flatten(1, -1).matmul(&self.0)
        }
    }

    #[test]
    fn noisy_images_are_their_own_targets_and_attacked_ones_are_not() {
        let classifier = Linear(uniform_noise(&[64, 3], &[1], 1, "weights", 0).squeeze_dim(0));
        let card = TrnCard {
            kind: TrnCard::KIND.into(),
            spec: TrnSpec { width: 8, scales: 2, ..TrnSpec::one_stream("tiny", 1).unwrap() },
            classes: 3,
            classifier: "linear".into(),
            dataset: "noise".into(),
            seed: 3,
            training: serde_json::Value::Null,
            metrics: BTreeMap::new(),
        };
        let trn = Trn::new(card, Device::Cpu).unwrap().freeze();
        let mixture: Mixture = "clean,noise@0.1,fgsm@0.1".parse().unwrap();
        let ids: Vec<u64> = (0..60).collect();
        let images = (uniform_noise(&[1, 8, 8], &ids, 1, "images", 0) + 1.0) / 2.0;
        let clean = Clean { labels: classifier.predict(&images), images: images.copy(), ids: ids.clone() };
        let go_on = &mut |_, _| ControlFlow::Continue(());
        let attacked = attack(&classifier, &clean, &mixture, 1, 0, None, go_on).unwrap();
        let noisy = merely_noisy(&mixture, 1, 0, &ids);
        let pool = Pool::new((0, &classifier), &trn, clean, attacked, &noisy, go_on).unwrap();
        let differ = |first: &Tensor, second: &Tensor| {
            let moved = (first - second).abs().amax([1_i64, 2, 3].as_slice(), false).gt(0.0);
            Vec::<bool>::try_from(moved).unwrap()
        };
        let (changed, to_undo) = (differ(&pool.attacked, &images), differ(&pool.attacked, &pool.clean));
        for (row, &id) in ids.iter().enumerate() {
            let part = mixture.draw(1, 0, id);
            assert_eq!((changed[row], to_undo[row]), (part > 0, part == 2), "sample {id}");
        }
        assert!(changed.contains(&false) && to_undo.contains(&true));
    }
}
