//! What everything in talion attacks, defends and measures.

use std::cell::Cell;

use tch::{Device, Kind, Tensor};

use crate::{Error, Objective, Result};

/// Loss and gradient of a batch with respect to its images.
pub struct InputGradient {
    /// The objective of each row, `[N]`.
    pub loss: Tensor,
    /// Its derivative with respect to the images, `[N, C, H, W]`.
    pub gradient: Tensor,
    /// The logits the loss was computed from, `[N, K]`, detached.
    pub logits: Tensor,
}

/// An image classifier: images in `[0, 1]` in, logits out.
///
/// A defended classifier is a `Classifier` too, so every attack, evaluation and server works on it unchanged.
pub trait Classifier {
    /// The number of classes, K.
    fn classes(&self) -> i64;

    /// Where images have to be.
    fn device(&self) -> Device {
        Device::Cpu
    }

    /// Logits, differentiable with respect to the images when these require gradients.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]` in `[0, 1]`; the result is `[N, K]`.
    fn logits(&self, images: &Tensor) -> Tensor;

    /// The loss of each row and its gradient with respect to the images: the inner step of every attack.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]`, `labels` `[N]` in `0..K`.
    fn input_gradient(&self, images: &Tensor, labels: &Tensor, objective: Objective) -> InputGradient {
        self.loss_gradient(images, &|logits| objective.per_sample(logits, labels))
    }

    /// The same for any loss of the logits, `[N, K]` in and `[N]` out, differentiable.
    ///
    /// The default differentiates [`Classifier::logits`] by autograd. Rows do not influence each other, so the
    /// gradient of the sum is the gradient of each.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]`.
    fn loss_gradient(&self, images: &Tensor, loss: &dyn Fn(&Tensor) -> Tensor) -> InputGradient {
        autograd_loss_gradient(self, images, loss)
    }

    /// Logits, and the gradient of every logit with respect to the images: one forward pass and K backward passes.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]`; the logits `[N, K]`, their gradients `[N, K, C, H, W]`, both detached.
    fn logit_gradients(&self, images: &Tensor) -> (Tensor, Tensor) {
        autograd_logit_gradients(self, images)
    }

    /// Logits to search with: those of [`Classifier::logits`], or nearly those if that is faster; never differentiable.
    /// What counts in the end has to be asked of [`Classifier::logits`].
    ///
    /// # Shapes
    /// As [`Classifier::logits`].
    fn search_logits(&self, images: &Tensor) -> Tensor {
        tch::no_grad(|| self.logits(images)).detach()
    }

    /// Whether [`Classifier::search_logits`] or the gradients of images like these are only nearly those of
    /// [`Classifier::logits`], so that an attack may be wrong about what it has found. Such fast ways give a row the same bits
    /// in every batch, so that few rows can be searched without filling a batch up.
    fn is_approximate(&self, images: &Tensor) -> bool {
        let _ = images;
        false
    }

    /// This classifier with ways that are slower and nearer to [`Classifier::logits`]. What an attack with these ways was wrong about
    /// is attacked again with those; where there are none, with [`Reference`].
    fn closer(&self) -> Option<&dyn Classifier> {
        None
    }

    /// The predicted class of each row, `[N]`, computed without gradients.
    fn predict(&self, images: &Tensor) -> Tensor {
        tch::no_grad(|| self.logits(images).argmax(1, false))
    }
}

thread_local! {
    static GRADIENTS: Cell<u64> = const { Cell::new(0) };
}

/// How many times this thread has differentiated a classifier by any of the ways here or by [`note_gradient`].
///
/// A classifier during whose inference this number grows takes gradients itself, and an attacker has to differentiate
/// through those.
pub fn gradients_taken() -> u64 {
    GRADIENTS.get()
}

/// Counts a gradient for [`gradients_taken`]: whoever computes one without autograd has to say so.
pub fn note_gradient() {
    GRADIENTS.set(GRADIENTS.get().wrapping_add(1));
}

/// [`Classifier::loss_gradient`] by autograd through [`Classifier::logits`], for implementations that override it for
/// some of their cases.
///
/// # Shapes
/// As [`Classifier::loss_gradient`].
pub fn autograd_loss_gradient<T: Classifier + ?Sized>(
    classifier: &T,
    images: &Tensor,
    loss: &dyn Fn(&Tensor) -> Tensor,
) -> InputGradient {
    note_gradient();
    tch::with_grad(|| {
        let images = images.detach().set_requires_grad(true);
        let logits = classifier.logits(&images);
        let loss = loss(&logits);
        let gradient = Tensor::run_backward(&[loss.sum(loss.kind())], &[&images], false, false).remove(0);
        InputGradient { loss: loss.detach(), gradient: gradient.detach(), logits: logits.detach() }
    })
}

/// [`Classifier::logit_gradients`] by autograd through [`Classifier::logits`].
///
/// # Shapes
/// As [`Classifier::logit_gradients`].
pub fn autograd_logit_gradients<T: Classifier + ?Sized>(classifier: &T, images: &Tensor) -> (Tensor, Tensor) {
    note_gradient();
    tch::with_grad(|| {
        let images = images.detach().set_requires_grad(true);
        let logits = classifier.logits(&images);
        let classes = logits.size()[1];
        let gradients: Vec<Tensor> = (0..classes)
            .map(|class| {
                let sum = logits.select(1, class).sum(logits.kind());
                Tensor::run_backward(&[sum], &[&images], class + 1 < classes, false).remove(0)
            })
            .collect();
        (logits.detach(), Tensor::stack(&gradients, 1).detach())
    })
}

impl<T: Classifier + ?Sized> Classifier for &T {
    fn classes(&self) -> i64 {
        (**self).classes()
    }

    fn device(&self) -> Device {
        (**self).device()
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        (**self).logits(images)
    }

    fn input_gradient(&self, images: &Tensor, labels: &Tensor, objective: Objective) -> InputGradient {
        (**self).input_gradient(images, labels, objective)
    }

    fn loss_gradient(&self, images: &Tensor, loss: &dyn Fn(&Tensor) -> Tensor) -> InputGradient {
        (**self).loss_gradient(images, loss)
    }

    fn logit_gradients(&self, images: &Tensor) -> (Tensor, Tensor) {
        (**self).logit_gradients(images)
    }

    fn search_logits(&self, images: &Tensor) -> Tensor {
        (**self).search_logits(images)
    }

    fn is_approximate(&self, images: &Tensor) -> bool {
        (**self).is_approximate(images)
    }

    fn closer(&self) -> Option<&dyn Classifier> {
        (**self).closer()
    }
}

/// A classifier without its fast ways: every gradient comes from autograd through [`Classifier::logits`], and every search
/// asks for exactly those. What an attack with the fast ways was wrong about is attacked again like this.
pub struct Reference<'a>(pub &'a dyn Classifier);

impl Classifier for Reference<'_> {
    fn classes(&self) -> i64 {
        self.0.classes()
    }

    fn device(&self) -> Device {
        self.0.device()
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        self.0.logits(images)
    }
}

/// Checks that `images` are `[N, C, H, W]`, `f32` or `f64`, finite and in `[0, 1]`.
///
/// # Errors
/// Says which of these does not hold.
pub fn check_images(images: &Tensor) -> Result<()> {
    if images.dim() != 4 {
        return Err(Error::Shape { what: "images", expected: "[N, C, H, W]".into(), found: images.size() });
    }
    if !matches!(images.kind(), Kind::Float | Kind::Double) {
        return Err(Error::range("the type of images", "f32 or f64", format!("{:?}", images.kind())));
    }
    if images.numel() == 0 {
        return Ok(());
    }
    let (low, high) = (images.min().double_value(&[]), images.max().double_value(&[]));
    // NaN fails both comparisons
    if !(low >= 0.0 && high <= 1.0) {
        return Err(Error::range(
            "the range of image values",
            "inside [0, 1] and without NaN (divide bytes by 255; standardisation happens inside the model)",
            format!("[{low}, {high}]"),
        ));
    }
    Ok(())
}

/// Checks that `labels` are `[rows]`, `i64`, in `0..classes`.
///
/// # Errors
/// Says which of these does not hold.
pub fn check_labels(labels: &Tensor, rows: i64, classes: i64) -> Result<()> {
    if labels.size() != [rows] {
        return Err(Error::Shape { what: "labels", expected: format!("[{rows}]"), found: labels.size() });
    }
    if labels.kind() != Kind::Int64 {
        return Err(Error::range("the type of labels", "i64", format!("{:?}", labels.kind())));
    }
    if rows == 0 {
        return Ok(());
    }
    let (low, high) = (labels.min().int64_value(&[]), labels.max().int64_value(&[]));
    if low < 0 || high >= classes {
        return Err(Error::range("labels", format!("0 to {}", classes - 1), format!("{low} to {high}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_images_and_labels_are_named() {
        let float = (Kind::Float, Device::Cpu);
        assert!(check_images(&Tensor::zeros([2, 1, 4, 4], float)).is_ok());
        assert!(check_images(&Tensor::zeros([1, 4, 4], float)).is_err());
        assert!(check_images(&Tensor::full([2, 1, 4, 4], 255.0, float)).is_err());
        assert!(check_images(&Tensor::full([2, 1, 4, 4], f64::NAN, float)).is_err());
        assert!(check_images(&Tensor::zeros([2, 1, 4, 4], (Kind::Uint8, Device::Cpu))).is_err());
        assert!(check_labels(&Tensor::from_slice(&[0_i64, 9]), 2, 10).is_ok());
        assert!(check_labels(&Tensor::from_slice(&[0_i64, 10]), 2, 10).is_err());
        assert!(check_labels(&Tensor::from_slice(&[0_i64]), 2, 10).is_err());
        assert!(check_labels(&Tensor::from_slice(&[-1_i64, 0]), 2, 10).is_err());
    }
}
