//! Those who take part in a run: classifiers, with or without a defence in front.

use sha2::{Digest, Sha256};
use talion_attacks::in_micro_batches;
use talion_core::{Classifier, Result, Tensors};
use talion_defenses::{Defence, Defended, GradientMode};
use tch::{Kind, Tensor};

use crate::Player;

/// A player of a run with its networks.
pub struct Entrant<'a> {
    /// How it is called, and what it is.
    pub player: Player,
    /// The classifier.
    pub classifier: &'a dyn Classifier,
    /// The defence in front, if there is one.
    pub defence: Option<&'a dyn Defence>,
}

/// What an entrant says of images.
pub struct Answer {
    /// `[N, K]`, on the CPU.
    pub logits: Tensor,
    /// What its defence made of the images, `[N, C, H, W]`, on the CPU; `None` without a defence.
    pub restored: Option<Tensor>,
}

impl<'a> Entrant<'a> {
    /// The classifier that an attacker with this view differentiates.
    ///
    /// # Errors
    /// If defence and classifier do not fit each other.
    pub fn seen(&self, view: GradientMode) -> Result<Box<dyn Classifier + 'a>> {
        Ok(match self.defence {
            Some(defence) => Box::new(Defended::new(self.classifier, defence, view)?),
            None => Box::new(self.classifier),
        })
    }

    /// What the whole entrant, defence included, says of images; bit for bit the same wherever an image sits.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]` in `[0, 1]`, on any device.
    ///
    /// # Errors
    /// If the images do not pass the checks of [`talion_core::check_images`].
    pub fn answer(&self, images: &Tensor) -> Result<Answer> {
        let device = self.classifier.device();
        let in_use = |defence| Defended::new(self.classifier, defence, GradientMode::Exact);
        let defended = self.defence.map(in_use).transpose()?;
        let mut parts = in_micro_batches(images, device, &mut |part| {
            Ok(tch::no_grad(|| match &defended {
                Some(defended) => <[Tensor; 2]>::from(defended.answer(part)).into(),
                None => vec![self.classifier.logits(part)],
            }))
        })?
        .into_iter();
        let empty = || Tensor::zeros([0, self.classifier.classes()], (Kind::Float, tch::Device::Cpu));
        Ok(Answer { logits: parts.next().unwrap_or_else(empty), restored: parts.next() })
    }
}

/// SHA-256 of weights, in hexadecimal: names, shapes and values of all tensors, in the order of their names.
///
/// # Errors
/// If a tensor cannot be read.
pub fn fingerprint(weights: &[&Tensors]) -> Result<String> {
    let mut hash = Sha256::new();
    for (name, tensor) in weights.iter().flat_map(|tensors| tensors.iter()) {
        hash.update(format!("{name} {:?}\n", tensor.size()));
        let values = tensor.detach().to_device(tch::Device::Cpu).to_kind(Kind::Double).flatten(0, -1);
        for value in Vec::<f64>::try_from(values)? {
            hash.update(value.to_le_bytes());
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
