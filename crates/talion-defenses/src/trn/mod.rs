//! The Two-stream Restoration Network: what it is made of, and how an image goes through it.

mod change;
mod fast;
mod fusion;
mod journey;
pub(crate) mod layers;
mod lesson;
mod network;
mod patterns;
mod spec;
mod texture;

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};
use talion_core::{Archive, Classifier, Error, Result, Tensors};
use talion_models::training::{initialise, load_variables, variables};
use talion_onnx::{Builder, Shapes, Var};
use tch::{Device, Tensor, nn};

pub use change::Change;
pub use fusion::Fusion;
pub(crate) use lesson::Lesson;
pub use spec::{FusedScales, TrnSpec};

use crate::gradient_map::{
    self, Emission, EstimatorSpec, GradientMapEstimator, MapContext, MapGraph, Oracle,
};
use journey::Journey;
use network::{EmittedPrepared, Network, Streams};

/// What a TRN file says of itself, kept in the file's header.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrnCard {
    /// What kind of file this is: always `trn`.
    pub kind: String,
    /// How to build the network.
    pub spec: TrnSpec,
    /// Classes of the classifier it was trained with.
    pub classes: i64,
    /// Architecture of the classifier it was trained with.
    pub classifier: String,
    /// The data set trained on.
    pub dataset: String,
    /// Seed of the training run.
    pub seed: u64,
    /// The full training configuration.
    pub training: serde_json::Value,
    /// Measured figures by name.
    pub metrics: BTreeMap<String, f64>,
}

impl TrnCard {
    /// The `kind` of a TRN's card.
    pub const KIND: &'static str = "trn";
}

/// What is computed of an image before the second stream runs: the same whether the network is being trained or used,
/// so training can keep it.
#[derive(Debug)]
pub struct Prepared {
    /// What the first pass would do; none without a first pass.
    pub first: Option<Change>,
    /// Gradient maps, `[N, maps * C, H, W]`; none in a one-stream network.
    pub maps: Option<Tensor>,
    /// Evidence, `[N, E]`; none in a one-stream network.
    pub evidence: Option<Tensor>,
}

/// A restoration network with its gradient map estimator.
///
/// With an estimator of [`gradient_map::EstimatorSpec::None`] it is the one-stream twin. An estimator that needs a
/// first restoration brings a frozen one-stream network with it, whose residual the second pass corrects: at
/// initialisation the whole is the first pass alone, and a one-stream network at initialisation is the identity.
pub struct Trn {
    card: TrnCard,
    store: nn::VarStore,
    first: Option<Network>,
    main: Network,
    estimator: Option<Box<dyn GradientMapEstimator>>,
}

impl Trn {
    /// A freshly initialised network; the weights depend on `card.seed` alone.
    ///
    /// # Errors
    /// If the specification is invalid.
    pub fn new(card: TrnCard, device: Device) -> Result<Self> {
        let trn = Self::unfilled(card, device)?;
        initialise(&trn.store, trn.card.seed);
        tch::no_grad(|| {
            trn.main.start_as_identity();
            trn.first.iter().for_each(Network::start_as_identity);
        });
        trn.freeze_first();
        Ok(trn)
    }

    /// A network with all weights zero, which somebody will overwrite.
    fn unfilled(card: TrnCard, device: Device) -> Result<Self> {
        card.spec.validate()?;
        let store = nn::VarStore::new(device);
        let root = store.root();
        let estimator = gradient_map::build(&card.spec.estimator, &(&root / "estimator"), card.classes);
        let streams = Streams {
            channels: card.spec.channels,
            classes: card.classes,
            first_pass: card.spec.first.is_some(),
            gradient: estimator
                .as_ref()
                .map(|estimator| (estimator.names().len() as i64, estimator.evidence())),
        };
        let main = Network::new(&(&root / "main"), &card.spec, streams);
        let first = card.spec.first.as_deref().map(|spec| {
            Network::new(&(&root / "first"), spec, Streams::one(card.spec.channels, card.classes))
        });
        Ok(Self { card, store, first, main, estimator })
    }

    /// Copies a trained one-stream network into the first pass.
    ///
    /// # Errors
    /// If this network has no first pass, or one of another shape.
    pub fn set_first(&mut self, one_stream: &Trn) -> Result<()> {
        if self.card.spec.first.as_deref() != Some(&one_stream.card.spec) {
            return Err(Error::Refused(format!(
                "the first pass is {:?}, but the network given for it is {:?}",
                self.card.spec.first, one_stream.card.spec
            )));
        }
        let mut all = variables(&self.store);
        for (name, tensor) in variables(&one_stream.store) {
            if let Some(rest) = name.strip_prefix("main.") {
                all.insert(format!("first.{rest}"), tensor);
            }
        }
        load_variables(&self.store, &all)?;
        // nothing changes it from here on
        self.first.iter_mut().for_each(|first| first.set_frozen(true));
        Ok(())
    }

    /// The first pass is not trained again.
    fn freeze_first(&self) {
        for (name, tensor) in self.store.variables() {
            if name.starts_with("first.") {
                let _ = tensor.set_requires_grad(false);
            }
        }
    }

    /// Reads a TRN file; its weights take no gradients.
    ///
    /// # Errors
    /// If the file is missing, damaged, of another kind, or its tensors do not fit its own specification.
    pub fn load(path: &Path, device: Device) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        Self::from_bytes(&bytes, path, device)
    }

    /// As [`Trn::load`], from memory; `origin` is named in errors.
    ///
    /// # Errors
    /// As [`Trn::load`].
    pub fn from_bytes(bytes: &[u8], origin: &Path, device: Device) -> Result<Self> {
        let archive = Archive::<TrnCard>::from_bytes(bytes, origin)?;
        if archive.header.kind != TrnCard::KIND {
            return Err(Error::file(origin, format!("holds a {}, not a TRN", archive.header.kind)));
        }
        let trn = Self::unfilled(archive.header, device)?;
        load_variables(&trn.store, &archive.tensors)
            .map_err(|error| Error::file(origin, format!("does not fit its own header: {error}")))?;
        Ok(trn.freeze())
    }

    /// Writes weights and card, whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        Archive { header: self.card.clone(), tensors: self.tensors() }.save(path)
    }

    /// Turns off gradients for the weights.
    #[must_use]
    pub fn freeze(mut self) -> Self {
        self.store.freeze();
        self.main.set_frozen(true);
        self.first.iter_mut().for_each(|first| first.set_frozen(true));
        self
    }

    /// The same network in double precision, for checking gradients.
    #[must_use]
    pub fn to_double(mut self) -> Self {
        self.store.double();
        self.freeze()
    }

    /// The weights by name.
    pub fn tensors(&self) -> Tensors {
        variables(&self.store)
    }

    /// The card.
    pub fn card(&self) -> &TrnCard {
        &self.card
    }

    /// The card, to add figures to.
    pub fn card_mut(&mut self) -> &mut TrnCard {
        &mut self.card
    }

    /// Its variables, for a training loop.
    pub fn store(&self) -> &nn::VarStore {
        &self.store
    }

    /// This network with its one map taken at the true label, which no defender has: for diagnosis only. The card's
    /// estimator becomes `oracle`, so that everything computed from it says so.
    ///
    /// # Errors
    /// If the network was not trained on one map at one label (`predicted`, `coarse1` to `coarse4`).
    pub fn with_oracle(mut self) -> Result<Self> {
        if !matches!(self.card.spec.estimator, EstimatorSpec::Predicted | EstimatorSpec::Coarse { .. }) {
            return Err(Error::Refused(format!(
                "the oracle can only take the place of one map at one label (estimators predicted and coarse1 to \
                 coarse4), and this network was trained with {}",
                self.card.spec.estimator
            )));
        }
        self.card.spec.estimator = EstimatorSpec::Oracle;
        self.estimator = Some(Box::new(Oracle));
        Ok(self)
    }

    /// Number of weights, the first pass included.
    pub fn parameters(&self) -> usize {
        self.store.variables().values().map(Tensor::numel).sum()
    }

    /// What each of its gradient maps is of, in words; none in a one-stream network.
    pub fn map_names(&self) -> Vec<String> {
        self.estimator.as_ref().map(|estimator| estimator.names()).unwrap_or_default()
    }

    /// Runs the first pass and the estimator.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]` in `[0, 1]`; `true_labels` `[N]`, for the oracle only.
    pub fn prepare(
        &self,
        classifier: &dyn Classifier,
        images: &Tensor,
        graph: MapGraph,
        true_labels: Option<&Tensor>,
    ) -> Prepared {
        self.prepare_noting(classifier, images, (graph, true_labels), None)
    }

    fn prepare_noting<'a>(
        &'a self,
        classifier: &dyn Classifier,
        images: &Tensor,
        (graph, true_labels): (MapGraph, Option<&Tensor>),
        journey: Option<&Journey<'a>>,
    ) -> Prepared {
        let first = self.first.as_ref().map(|network| network.change(images, &Prepared::nothing(), journey));
        let Some(estimator) = &self.estimator else {
            return Prepared { first, maps: None, evidence: None };
        };
        let bound = self.card.spec.bound;
        let coarse = first.as_ref().map(|change| change.apply(images, bound));
        let again = |images: &Tensor| match &self.first {
            Some(network) => network.change(images, &Prepared::nothing(), journey).apply(images, bound),
            None => images.shallow_clone(),
        };
        let context = MapContext {
            classifier,
            normalization: self.card.spec.normalization,
            graph,
            coarse: coarse.as_ref(),
            true_labels,
            restore: Some(&again),
        };
        let maps = estimator.estimate(&context, images);
        Prepared { first, maps: Some(maps.maps), evidence: Some(maps.evidence) }
    }

    /// What all passes together do to images of which everything else has been prepared.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]` in `[0, 1]`.
    pub fn change(&self, images: &Tensor, prepared: &Prepared) -> Change {
        self.change_noting(images, prepared, None)
    }

    fn change_noting<'a>(
        &'a self,
        images: &Tensor,
        prepared: &Prepared,
        journey: Option<&Journey<'a>>,
    ) -> Change {
        let last = self.main.change(images, prepared, journey);
        match &prepared.first {
            Some(first) => first.then(last),
            None => last,
        }
    }

    /// The images after a change: bounded by the specification, inside the box.
    pub fn apply(&self, images: &Tensor, change: &Change) -> Tensor {
        change.apply(images, self.card.spec.bound)
    }

    /// Restores images of which everything else has been prepared.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]` in `[0, 1]`; the result too.
    pub fn restore_prepared(&self, images: &Tensor, prepared: &Prepared) -> Tensor {
        self.apply(images, &self.change(images, prepared))
    }

    /// Restores images for `classifier`, differentiable with respect to them; whether through the maps, `graph` says.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]` in `[0, 1]`; the result too.
    pub fn restore(&self, classifier: &dyn Classifier, images: &Tensor, graph: MapGraph) -> Tensor {
        self.restore_prepared(images, &self.prepare(classifier, images, graph, None))
    }

    /// The gradient with respect to the images of a loss of the restored images, of which `back` gives the gradient with
    /// respect to these: what an attacker asks for who differentiates through the restoration. Networks whose weights are
    /// final have derivatives of their own, several times as fast as libtorch's.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]` in `[0, 1]`; so are what `back` is given and gives, and the result.
    pub fn pull_back(
        &self,
        classifier: &dyn Classifier,
        images: &Tensor,
        graph: MapGraph,
        back: &mut dyn FnMut(&Tensor) -> Tensor,
    ) -> Tensor {
        tch::with_grad(|| {
            let images = images.detach().set_requires_grad(true);
            let journey = Journey::default();
            let prepared = self.prepare_noting(classifier, &images, (graph, None), Some(&journey));
            let restored = self.apply(&images, &self.change_noting(&images, &prepared, Some(&journey)));
            let gradient = back(&restored.detach());
            let along = (&restored * gradient).sum(restored.kind());
            journey.pull_back(along, &images).detach()
        })
    }

    /// Overwrites the patterns of the classes, `[K, C, H, W]`, where the network has any.
    pub(crate) fn set_patterns(&self, patterns: &Tensor) {
        self.main.set_patterns(patterns);
    }

    /// A copy of the network as it is now, its weights final.
    ///
    /// # Errors
    /// If the copy cannot be made.
    pub fn still(&self) -> Result<Self> {
        let copy = Self::unfilled(self.card.clone(), self.store.device())?;
        load_variables(&copy.store, &self.tensors())?;
        Ok(copy.freeze())
    }

    /// Writes what [`Trn::restore`] computes for images of this height and width; gives the restored images and the
    /// bare classifier's logits of the images.
    ///
    /// # Errors
    /// If the estimator or the classifier's derivative cannot be written as a graph.
    pub(crate) fn emit(
        &self,
        b: &mut Builder,
        classifier: &Shapes,
        images: &Var,
        size: [i64; 2],
    ) -> Result<(Var, Var)> {
        let spec = &self.card.spec;
        let pass = |network: &Network, b: &mut Builder, images: &Var| {
            b.scope("first", |b| network.emit(b, images, &EmittedPrepared::nothing(), size))
        };
        let first = self.first.as_ref().map(|network| pass(network, b, images));
        let coarse = first.as_ref().map(|change| change.apply(b, images, spec.bound));
        let again = |b: &mut Builder, images: &Var| match &self.first {
            Some(network) => pass(network, b, images).apply(b, images, spec.bound),
            None => images.clone(),
        };
        let mut emission = Emission {
            builder: &mut *b,
            classifier,
            images,
            sides: [spec.channels, size[0], size[1]],
            classes: self.card.classes,
            normalization: spec.normalization,
            coarse: coarse.as_ref(),
            restore: &again,
            logits: None,
        };
        let maps = self.estimator.as_ref().map(|estimator| estimator.emit(&mut emission)).transpose()?;
        let undefended = emission.logits()?;
        let (maps, evidence) = maps.map(|maps| (maps.maps, maps.evidence)).unzip();
        let evidence = evidence.filter(|parts| !parts.is_empty());
        let evidence = evidence.map(|parts| b.concat(&parts.iter().collect::<Vec<_>>(), 1));
        let prepared = EmittedPrepared { first, maps, evidence };
        let last = b.scope("main", |b| self.main.emit(b, images, &prepared, size));
        let change = match &prepared.first {
            Some(first) => first.then(b, last),
            None => last,
        };
        Ok((change.apply(b, images, spec.bound), undefended))
    }
}

impl Prepared {
    /// What a one-stream network is given beside the image.
    pub fn nothing() -> Self {
        Self { first: None, maps: None, evidence: None }
    }
}
