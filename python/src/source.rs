//! Classifiers, wherever they live, as the library wants them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3_tch::PyTensor;
use talion_core::{
    Classifier, Error, InputGradient, Result, Tensors, autograd_logit_gradients, autograd_loss_gradient,
};
use talion_defenses::{Defended, GradientMode};
use talion_models::{Model, ModelCard};
use tch::{Device, Kind, Tensor};

use crate::{
    error::raise,
    job::Trouble,
    restorer::{Lent, Restorer},
};

/// Where a classifier's answers come from. Shared between threads; a job looks at it through a [`View`].
pub(crate) enum Source {
    /// Python code.
    Live(Live),
    /// A file.
    File(Box<File>),
    /// Another one behind a restoration network.
    Defended(Arc<Source>, Arc<Restorer>, GradientMode),
}

/// A function in Python from images to logits.
pub(crate) struct Live {
    forward: PyObject,
    classes: i64,
    device: Device,
    /// Of each channel; empty where the function takes images in `[0, 1]` as they are.
    mean: Vec<f64>,
    std: Vec<f64>,
}

impl Live {
    /// # Errors
    /// If there are no two classes, or means and standard deviations do not fit each other.
    pub(crate) fn new(
        forward: PyObject,
        classes: i64,
        device: Device,
        mean: Vec<f64>,
        std: Vec<f64>,
    ) -> Result<Self> {
        if classes < 2 {
            return Err(Error::range("the number of classes", "at least 2", classes));
        }
        if mean.len() != std.len() {
            let expected = format!("as many as means, {}", mean.len());
            return Err(Error::range("the number of standard deviations", expected, std.len()));
        }
        if mean.iter().any(|value| !value.is_finite()) {
            return Err(Error::range("mean", "finite numbers", format!("{mean:?}")));
        }
        if std.iter().any(|value| !value.is_finite() || *value <= 0.0) {
            return Err(Error::range("std", "finite numbers above 0", format!("{std:?}")));
        }
        Ok(Self { forward, classes, device, mean, std })
    }

    /// Checks that there is a mean for each channel of the images, or one for all.
    pub(crate) fn check_channels(&self, images: &Tensor) -> Result<()> {
        let (found, means) = (images.size(), self.mean.len() as i64);
        match found.get(1) {
            Some(channels) if means > 1 && *channels != means => Err(Error::Shape {
                what: "images",
                expected: format!("[N, {means}, H, W], a mean each"),
                found,
            }),
            _ => Ok(()),
        }
    }

    /// Mean and inverse standard deviation, `[1, C, 1, 1]` each, as a `Model` has them.
    fn standard(&self) -> Option<(Tensor, Tensor)> {
        let row = |values: &[f64]| {
            Tensor::from_slice(values).to_kind(Kind::Float).view([1, -1, 1, 1]).to_device(self.device)
        };
        (!self.mean.is_empty()).then(|| (row(&self.mean), row(&self.std).reciprocal()))
    }

    /// Calls the function.
    ///
    /// # Errors
    /// The function's own exception; or if its answer is not a tensor `[N, K]`, or cannot be differentiated although that
    /// is wanted.
    fn ask(&self, py: Python<'_>, input: Tensor) -> PyResult<Tensor> {
        let (rows, wanted) = (input.size().first().copied().unwrap_or(0), input.requires_grad());
        let PyTensor(logits) = self.forward.bind(py).call1((PyTensor(input),))?.extract()?;
        if logits.size() != [rows, self.classes] {
            let expected = format!("[{rows}, {}]", self.classes);
            let error = Error::Shape { what: "the model's answer", expected, found: logits.size() };
            return Err(raise(py, &error));
        }
        if wanted && !logits.requires_grad() {
            let words = "the model's logits do not depend on its images as far as autograd can tell: it computes them \
                         under torch.no_grad(), on detached tensors or outside PyTorch. Attacks that need no gradients \
                         (square, spsa, hsj) can be used on it";
            return Err(raise(py, &Error::Refused(words.into())));
        }
        Ok(logits.to_device(self.device))
    }
}

/// A classifier from a file. Only its forward pass holds the lock, and that asks nobody else, so nobody can wait for it in a
/// circle.
pub(crate) struct File {
    /// What the file says of itself; kept apart, so that nobody waits for it while the network is at work.
    pub(crate) card: ModelCard,
    /// What had to be assumed about the file, a sentence each.
    pub(crate) assumed: Vec<String>,
    device: Device,
    model: Mutex<Model>,
}

impl File {
    pub(crate) fn new(model: Model) -> Self {
        let assumed = model.origin().map(|origin| origin.assumed.clone()).unwrap_or_default();
        Self { card: model.card().clone(), assumed, device: model.device(), model: Mutex::new(model) }
    }

    /// A panic elsewhere leaves a frozen model as it was.
    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source {
    /// The number of classes.
    pub(crate) fn classes(&self) -> i64 {
        match self {
            Self::Live(live) => live.classes,
            Self::File(file) => file.card.spec.classes,
            Self::Defended(base, ..) => base.classes(),
        }
    }

    /// Where its networks are.
    pub(crate) fn device(&self) -> Device {
        match self {
            Self::Live(live) => live.device,
            Self::File(file) => file.device,
            Self::Defended(base, ..) => base.device(),
        }
    }

    /// The classifier as a job sees it.
    ///
    /// # Errors
    /// If defence and classifier do not fit each other.
    pub(crate) fn view<'a>(&'a self, trouble: &'a Trouble) -> Result<View<'a>> {
        let seen = match self {
            Self::Live(live) => Seen::Live(live, live.standard()),
            Self::File(file) => Seen::File(file),
            Self::Defended(base, restorer, mode) => {
                let base = Box::new(base.view(trouble)?);
                let trn = restorer.lend(base.device())?;
                Defended::new(&*base, &*trn, *mode)?;
                Seen::Defended(base, trn, *mode)
            }
        };
        Ok(View { seen, trouble })
    }

    /// What tells this classifier from every other, for the record of a run. Of Python code only `given` is known.
    ///
    /// # Errors
    /// If weights cannot be read.
    pub(crate) fn identity(&self, given: &Tensors) -> Result<Tensors> {
        let mut all = Tensors::new();
        match self {
            Self::Live(live) => {
                all.extend(given.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())));
                if let Some((mean, inverse_std)) = live.standard() {
                    all.insert("talion.mean".into(), mean);
                    all.insert("talion.inverse-std".into(), inverse_std);
                }
            }
            Self::File(file) => all.extend(file.model().identity()),
            Self::Defended(base, restorer, _) => {
                all.extend(base.identity(given)?);
                let weights = restorer.tensors()?.into_iter();
                all.extend(weights.map(|(name, tensor)| (format!("talion.trn.{name}"), tensor)));
            }
        }
        Ok(all)
    }
}

/// A classifier in a job. If Python raises, the job ends; signals are looked for at every answer.
pub(crate) struct View<'a> {
    seen: Seen<'a>,
    trouble: &'a Trouble,
}

enum Seen<'a> {
    Live(&'a Live, Option<(Tensor, Tensor)>),
    File(&'a File),
    Defended(Box<View<'a>>, Lent<'a>, GradientMode),
}

impl View<'_> {
    fn defended<'b>(&self, base: &'b View<'_>, trn: &'b Lent<'_>, mode: GradientMode) -> Defended<'b> {
        self.trouble.sure(Defended::new(base, &**trn, mode))
    }
}

impl Classifier for View<'_> {
    fn classes(&self) -> i64 {
        match &self.seen {
            Seen::Live(live, _) => live.classes,
            Seen::File(file) => file.card.spec.classes,
            Seen::Defended(base, ..) => base.classes(),
        }
    }

    fn device(&self) -> Device {
        match &self.seen {
            Seen::Live(live, _) => live.device,
            Seen::File(file) => file.device,
            Seen::Defended(base, ..) => base.device(),
        }
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        self.trouble.look();
        match &self.seen {
            Seen::Live(live, standard) => {
                let input = match standard {
                    Some((mean, inverse_std)) => (images - mean) * inverse_std,
                    // a copy, because a module may begin with an operation in place
                    None => images.copy(),
                };
                // whatever precision the module computes in
                self.trouble.python(|py| live.ask(py, input)).to_kind(images.kind())
            }
            Seen::File(file) => {
                let answer = file.model().try_logits(images);
                self.trouble.sure(answer)
            }
            Seen::Defended(base, trn, mode) => self.defended(base, trn, *mode).logits(images),
        }
    }

    fn loss_gradient(&self, images: &Tensor, loss: &dyn Fn(&Tensor) -> Tensor) -> InputGradient {
        self.trouble.look();
        match &self.seen {
            Seen::Defended(base, trn, mode) => self.defended(base, trn, *mode).loss_gradient(images, loss),
            Seen::File(file) if self.is_approximate(images) => file.model().loss_gradient(images, loss),
            _ => autograd_loss_gradient(self, images, loss),
        }
    }

    fn logit_gradients(&self, images: &Tensor) -> (Tensor, Tensor) {
        self.trouble.look();
        match &self.seen {
            Seen::Defended(base, trn, mode) => self.defended(base, trn, *mode).logit_gradients(images),
            Seen::File(file) if self.is_approximate(images) => file.model().logit_gradients(images),
            _ => autograd_logit_gradients(self, images),
        }
    }

    fn search_logits(&self, images: &Tensor) -> Tensor {
        // what answers without asking Python would not hear of an interrupt
        self.trouble.look();
        match &self.seen {
            Seen::Defended(base, trn, mode) => self.defended(base, trn, *mode).search_logits(images),
            Seen::File(file) if self.is_approximate(images) => file.model().search_logits(images),
            _ => tch::no_grad(|| self.logits(images)).detach(),
        }
    }

    /// Whether a file's network has the fast engine for these images.
    fn is_approximate(&self, images: &Tensor) -> bool {
        match &self.seen {
            Seen::Live(..) => false,
            Seen::File(file) => file.model().is_approximate(images),
            Seen::Defended(base, trn, mode) => self.defended(base, trn, *mode).is_approximate(images),
        }
    }
}
