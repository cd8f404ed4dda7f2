//! A map for each of the k most likely labels: if the true label is among them, so is its gradient.

use talion_core::Result;
use tch::Tensor;

use super::{Emission, EmittedMaps, GradientMapEstimator, MapContext, Maps, logits, raw_gradient};

/// `k` maps, the most likely label's first.
pub struct TopK {
    /// Number of labels.
    pub k: i64,
}

impl GradientMapEstimator for TopK {
    fn names(&self) -> Vec<String> {
        (1..=self.k).map(|place| format!("label no. {place}, at the input")).collect()
    }

    fn evidence(&self) -> i64 {
        self.k
    }

    fn estimate(&self, context: &MapContext<'_>, images: &Tensor) -> Maps {
        let logits = logits(context, images);
        let (_, ranked) = logits.topk(self.k, 1, true, true);
        let maps: Vec<Tensor> = (0..self.k)
            .map(|rank| {
                let labels = ranked.select(1, rank);
                let raw = raw_gradient(context.classifier, images, &labels, context.graph);
                context.normalization.apply(&raw.gradient)
            })
            .collect();
        let evidence = logits.softmax(1, None).gather(1, &ranked, false);
        Maps { maps: Tensor::cat(&maps, 1), evidence }
    }

    fn emit(&self, emission: &mut Emission<'_>) -> Result<EmittedMaps> {
        let (images, logits) = (emission.images(), emission.logits()?);
        let b = &mut *emission.builder;
        let (_, ranked) = b.top_k(&logits, self.k, 1);
        let probabilities = b.softmax(&logits, 1);
        let evidence = vec![b.gather_elements(&probabilities, &ranked, 1)];
        // One batch of all ranks: the classifier and its derivative are in the graph once, not once a rank.
        let copies = usize::try_from(self.k).unwrap_or(1);
        let points = b.concat(&vec![images; copies], 0);
        let labels = b.transpose(&ranked, &[1, 0]);
        let labels = b.reshape(&labels, &[-1]);
        let raw = emission.label_gradient(&points, &labels)?;
        let maps = emission.normalise(&raw.gradient);
        Ok(EmittedMaps { maps: emission.parts(&maps, copies), evidence })
    }
}
