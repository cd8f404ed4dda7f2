//! The classifiers that a network is trained for, and which of them each image belongs to.

use talion_core::{Classifier, Error, Result, SampleStream};
use tch::{Device, Kind, Tensor};

use super::TrnSources;

/// One classifier or several. Of several, every image has one in every round, drawn at random, that it is attacked on, mapped
/// with and judged by: as much work as with one, and no map says more about one of them than about another.
pub(super) struct Panel<'a> {
    classifiers: Vec<&'a dyn Classifier>,
    seed: u64,
}

/// The rows of a batch that belong to one classifier.
pub(super) struct Group<'a> {
    pub classifier: &'a dyn Classifier,
    /// Their places; none where the whole batch does.
    rows: Option<Tensor>,
}

impl Group<'_> {
    /// These rows of a tensor.
    pub(super) fn of(&self, tensor: &Tensor) -> Tensor {
        match &self.rows {
            Some(rows) => tensor.index_select(0, rows),
            None => tensor.shallow_clone(),
        }
    }

    /// Writes these rows of a tensor.
    pub(super) fn write(&self, tensor: &mut Tensor, values: &Tensor) {
        match &self.rows {
            Some(rows) => {
                let _ = tensor.index_copy_(0, rows, values);
            }
            None => tensor.copy_(values),
        }
    }
}

impl<'a> Panel<'a> {
    /// # Errors
    /// If the classifiers do not answer with the same classes on the same device.
    pub(super) fn new(sources: &TrnSources<'a>, seed: u64) -> Result<Self> {
        let main = sources.classifier;
        for other in sources.others {
            if (other.classes(), other.device()) != (main.classes(), main.device()) {
                return Err(Error::Refused(format!(
                    "all classifiers that a network is trained for have to know the same classes on the same device: \
                     one knows {} ({:?}), another {} ({:?})",
                    main.classes(),
                    main.device(),
                    other.classes(),
                    other.device()
                )));
            }
        }
        let classifiers = std::iter::once(main).chain(sources.others.iter().copied()).collect();
        Ok(Self { classifiers, seed })
    }

    /// Where images have to be.
    pub(super) fn device(&self) -> Device {
        self.classifiers[0].device()
    }

    /// Whether there is more than one.
    pub(super) fn is_several(&self) -> bool {
        self.classifiers.len() > 1
    }

    /// Which classifier each sample belongs to in a round, `[N]`.
    pub(super) fn owners(&self, ids: &[u64], round: u64) -> Tensor {
        let count = u32::try_from(self.classifiers.len()).unwrap_or(u32::MAX);
        let owner = |&id: &u64| {
            let drawn = SampleStream::new(self.seed, "classifier", round, id).below(count);
            if count > 1 { i64::from(drawn) } else { 0 }
        };
        Tensor::from_slice(&ids.iter().map(owner).collect::<Vec<_>>()).to_device(self.device())
    }

    /// The rows of each classifier that has any, with its place among all.
    pub(super) fn groups(&self, owners: &Tensor) -> Vec<(usize, Group<'a>)> {
        if let [classifier] = self.classifiers[..] {
            return vec![(0, Group { classifier, rows: None })];
        }
        let rows = |place: usize| owners.eq(place as i64).nonzero().flatten(0, -1);
        let all = self.classifiers.iter().enumerate();
        all.map(|(place, &classifier)| (place, Group { classifier, rows: Some(rows(place)) }))
            .filter(|(_, group)| group.rows.as_ref().is_some_and(|rows| rows.numel() > 0))
            .collect()
    }

    /// What each image is held for by its own classifier, `[N]`.
    pub(super) fn predict(&self, owners: &Tensor, images: &Tensor) -> Tensor {
        let mut predicted = Tensor::zeros([images.size()[0]], (Kind::Int64, images.device()));
        for (_, group) in self.groups(owners) {
            group.write(&mut predicted, &group.classifier.predict(&group.of(images)));
        }
        predicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says the same class of every image.
    struct Always(i64);

    impl Classifier for Always {
        fn classes(&self) -> i64 {
            3
        }

        fn logits(&self, images: &Tensor) -> Tensor {
            let classes = Tensor::full([images.size()[0]], self.0, (Kind::Int64, Device::Cpu));
            classes.onehot(3)
        }
    }

    #[test]
    fn every_image_has_its_own_classifier_whatever_it_is_batched_with() {
        let classifiers: [&dyn Classifier; 3] = [&Always(0), &Always(1), &Always(2)];
        let panel = Panel { classifiers: classifiers.to_vec(), seed: 1 };
        let ids: Vec<u64> = (0..90).collect();
        let owners = panel.owners(&ids, 4);
        let shares = Vec::<i64>::try_from(owners.bincount::<Tensor>(None, 3)).unwrap();
        assert!(shares.iter().all(|share| (15..=45).contains(share)), "{shares:?}");
        assert_eq!(panel.owners(&ids[30..40], 4), owners.narrow(0, 30, 10));
        assert_ne!(panel.owners(&ids, 5), owners);
        let images = Tensor::zeros([90, 1, 2, 2], (Kind::Float, Device::Cpu));
        assert_eq!(panel.predict(&owners, &images), owners);
        // a classifier without images is asked nothing
        let one = owners.zeros_like();
        assert_eq!(panel.groups(&one).len(), 1);
        assert_eq!(panel.predict(&one, &images), one);
    }

    #[test]
    fn one_classifier_has_every_image_as_it_stands() {
        let panel = Panel { classifiers: vec![&Always(2)], seed: 1 };
        let owners = panel.owners(&[7, 8], 0);
        let groups = panel.groups(&owners);
        let [(0, group)] = &groups[..] else { panic!("one group") };
        let images = Tensor::rand([2, 1, 2, 2], (Kind::Float, Device::Cpu));
        assert_eq!(group.of(&images).data_ptr(), images.data_ptr());
        assert!(!panel.is_several());
    }
}
