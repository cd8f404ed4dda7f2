//! A classifier that is shown few rows at once, because a whole micro-batch does not fit into memory.

use talion_core::{Classifier, Error, InputGradient, Result};
use tch::{Device, Tensor};

/// The classifier `inner`, asked about at most `rows` images at once.
///
/// A gradient is then taken in two passes: the loss is differentiated with respect to the logits of all rows, which are
/// small, and that derivative is pulled back through the classifier part by part. It costs one more forward pass, and its
/// memory is that of one part.
pub(crate) struct Chunked<'a> {
    inner: &'a dyn Classifier,
    rows: Option<i64>,
}

impl<'a> Chunked<'a> {
    /// # Errors
    /// If `rows` is not positive.
    pub(crate) fn new(inner: &'a dyn Classifier, rows: Option<i64>) -> Result<Self> {
        match rows {
            Some(rows) if rows < 1 => Err(Error::range(
                "batch, the number of images shown to the model at once",
                "at least 1",
                rows,
            )),
            rows => Ok(Self { inner, rows }),
        }
    }

    /// The first row and the length of each part; none if one part holds all.
    fn parts(&self, images: &Tensor) -> Vec<(i64, i64)> {
        let total = images.size().first().copied().unwrap_or(0);
        match self.rows {
            Some(rows) if rows < total => {
                let mut parts = Vec::new();
                let mut first = 0;
                while first < total {
                    let length = rows.min(total - first);
                    parts.push((first, length));
                    first += length;
                }
                parts
            }
            _ => Vec::new(),
        }
    }
}

impl Classifier for Chunked<'_> {
    fn classes(&self) -> i64 {
        self.inner.classes()
    }

    fn device(&self) -> Device {
        self.inner.device()
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        let parts = self.parts(images);
        if parts.is_empty() {
            return self.inner.logits(images);
        }
        let answers: Vec<Tensor> = parts
            .into_iter()
            .map(|(first, rows)| self.inner.logits(&images.narrow(0, first, rows)))
            .collect();
        Tensor::cat(&answers, 0)
    }

    fn loss_gradient(&self, images: &Tensor, loss: &dyn Fn(&Tensor) -> Tensor) -> InputGradient {
        let parts = self.parts(images);
        if parts.is_empty() {
            return self.inner.loss_gradient(images, loss);
        }
        let logits = tch::no_grad(|| self.logits(images)).detach();
        let (found, pull) = tch::with_grad(|| {
            let leaf = logits.copy().set_requires_grad(true);
            let found = loss(&leaf);
            let pull = Tensor::run_backward(&[found.sum(found.kind())], &[&leaf], false, false).remove(0);
            (found.detach(), pull.detach())
        });
        let gradients: Vec<Tensor> = parts
            .into_iter()
            .map(|(first, rows)| {
                let pull = pull.narrow(0, first, rows);
                let along = |logits: &Tensor| (logits * &pull).sum_dim_intlist(1_i64, false, logits.kind());
                self.inner.loss_gradient(&images.narrow(0, first, rows), &along).gradient
            })
            .collect();
        InputGradient { loss: found, gradient: Tensor::cat(&gradients, 0), logits }
    }
}
