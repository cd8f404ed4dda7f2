//! A map for each of the k most likely labels: if the true label is among them, so is its gradient.

use tch::Tensor;

use super::{GradientMapEstimator, MapContext, Maps, logits, raw_gradient};

/// `k` maps, the most likely label's first.
pub struct TopK {
    /// Number of labels.
    pub k: i64,
}

impl GradientMapEstimator for TopK {
    fn maps(&self) -> i64 {
        self.k
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
}
