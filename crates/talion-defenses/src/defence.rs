//! What all defences have in common that change images before a classifier sees them.

use talion_core::{Classifier, Error, Result, SampleStream, Tensors};
use tch::{Device, Kind, Tensor};

use crate::{gradient_map::MapGraph, trn::Trn};

/// Which restoration of an image is wanted, where a defence draws at random.
///
/// All draws follow from the image's bits: the same image has the same draws wherever it sits and whenever it is asked for,
/// and an image that differs in one bit has others. An attacker who changes an image therefore meets new ones in every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Draw {
    /// Number so much of those that the defence makes in use; most make one, number 0.
    Vote(u64),
    /// Number so much of an attacker's own.
    Attackers(u64),
}

impl Draw {
    /// The first that the defence makes in use.
    pub const OWN: Self = Self::Vote(0);
}

/// How to restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Whether gradient maps stay in the graph; only defences with gradient maps care.
    pub graph: MapGraph,
    /// Which draw; only defences that draw care.
    pub draw: Draw,
}

/// A defence that changes images before an unchanged classifier sees them.
pub trait Defence {
    /// What it is, in words, for tables: `JPEG compression at quality 75`.
    fn description(&self) -> String;

    /// Its weights by name; empty where it has none.
    fn tensors(&self) -> Tensors {
        Tensors::new()
    }

    /// Checks that it can stand before this classifier.
    ///
    /// # Errors
    /// Says what does not fit.
    fn check(&self, classifier: &dyn Classifier) -> Result<()> {
        let _ = classifier;
        Ok(())
    }

    /// Restored images, differentiable with respect to `images`. Steps whose derivative is zero almost everywhere, such as
    /// rounding, are differentiated as the identity, so that no defence hides behind them (Athalye et al. 2018, section 4.1).
    /// A row depends on no other.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]` in `[0, 1]`; the result too.
    fn restore(&self, classifier: &dyn Classifier, images: &Tensor, pass: Pass) -> Tensor;

    /// The gradient with respect to `images` of a loss of the restored images, of which `back` gives the gradient with
    /// respect to these.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]` in `[0, 1]`; so are what `back` is given and gives, and the result.
    fn pull_back(
        &self,
        classifier: &dyn Classifier,
        images: &Tensor,
        pass: Pass,
        back: &mut dyn FnMut(&Tensor) -> Tensor,
    ) -> Tensor {
        tch::with_grad(|| {
            let images = images.detach().set_requires_grad(true);
            let restored = self.restore(classifier, &images, pass);
            let gradient = back(&restored.detach());
            let along = (&restored * gradient).sum(restored.kind());
            Tensor::run_backward(&[along], &[&images], false, false).remove(0).detach()
        })
    }

    /// Whether it draws at random: an attacker then averages over draws (expectation over transformation, Athalye et al.
    /// 2018, section 4.2).
    fn is_random(&self) -> bool {
        false
    }

    /// Over how many draws the classifier's probabilities are averaged. 1 but for smoothing.
    fn votes(&self) -> u64 {
        1
    }

    /// The gradient map that it saw beside each image, `[N, C, H, W]` in `[-1, 1]`, for pictures; `None` where it saw none.
    fn gradient_map(&self, classifier: &dyn Classifier, images: &Tensor) -> Option<Tensor> {
        let _ = (classifier, images);
        None
    }
}

impl Defence for Trn {
    fn description(&self) -> String {
        let spec = &self.card().spec;
        match spec.estimator.to_string().as_str() {
            "none" => format!("one-stream restoration network of {} weights", self.parameters()),
            estimator => format!("TRN with {estimator} maps of {} weights", self.parameters()),
        }
    }

    fn tensors(&self) -> Tensors {
        Self::tensors(self)
    }

    fn check(&self, classifier: &dyn Classifier) -> Result<()> {
        if classifier.classes() != self.card().classes {
            let expected = format!("{}, as the TRN was trained with", self.card().classes);
            return Err(Error::range("the classifier's number of classes", expected, classifier.classes()));
        }
        Ok(())
    }

    fn restore(&self, classifier: &dyn Classifier, images: &Tensor, pass: Pass) -> Tensor {
        Self::restore(self, classifier, images, pass.graph)
    }

    fn pull_back(
        &self,
        classifier: &dyn Classifier,
        images: &Tensor,
        pass: Pass,
        back: &mut dyn FnMut(&Tensor) -> Tensor,
    ) -> Tensor {
        Self::pull_back(self, classifier, images, pass.graph, back)
    }

    fn gradient_map(&self, classifier: &dyn Classifier, images: &Tensor) -> Option<Tensor> {
        let prepared = tch::no_grad(|| self.prepare(classifier, images, MapGraph::Constant, None));
        let channels = images.size()[1];
        let maps = prepared.maps.filter(|maps| maps.size()[1] >= channels)?;
        Some(maps.narrow(1, 0, channels))
    }
}

/// The random stream of each row for a draw.
///
/// # Shapes
/// `images` `[N, C, H, W]`; the result has N streams.
pub(crate) fn row_streams(images: &Tensor, purpose: &str, draw: Draw) -> Vec<SampleStream> {
    let (who, number) = match draw {
        Draw::Vote(number) => (0, number),
        Draw::Attackers(number) => (1, number),
    };
    row_keys(images).into_iter().map(|key| SampleStream::new(who, purpose, number, key)).collect()
}

/// A number for each row that follows from its bits (FNV-1a, a word at a time).
fn row_keys(images: &Tensor) -> Vec<u64> {
    let rows = images.size().first().copied().unwrap_or(0).max(0) as usize;
    let flat = images.detach().to_device(Device::Cpu).to_kind(Kind::Double).contiguous();
    let mut values = vec![0_f64; flat.numel()];
    flat.copy_data(&mut values, flat.numel());
    let length = values.len().checked_div(rows).unwrap_or(0).max(1);
    let mix =
        |hash: u64, value: &f64| (hash ^ value.to_bits()).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
    values.chunks(length).map(|row| row.iter().fold(0xcbf2_9ce4_8422_2325, mix)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_from_the_image_alone() {
        let images = talion_core::uniform_noise(&[1, 4, 4], &[0, 1, 2], 1, "images", 0);
        let first = |images: &Tensor, draw| {
            row_streams(images, "test", draw).iter_mut().map(SampleStream::uniform).collect::<Vec<_>>()
        };
        let all = first(&images, Draw::OWN);
        assert_eq!(all[1], first(&images.narrow(0, 1, 1), Draw::OWN)[0]);
        assert!(all[0] != all[1] && all[1] != all[2]);
        assert_ne!(all, first(&images, Draw::Vote(1)));
        assert_ne!(all, first(&images, Draw::Attackers(0)));
        let moved = &images + 1e-6;
        assert_ne!(all, first(&moved, Draw::OWN));
        assert!(row_streams(&images.narrow(0, 0, 0), "test", Draw::OWN).is_empty());
    }
}
