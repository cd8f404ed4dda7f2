//! A network with its weights, its card, and both of its lives.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use serde::{Deserialize, Serialize};
use talion_core::{Archive, Classifier, Error, InputGradient, Result, Tensors};
use talion_kernels::Factors;
use tch::{Device, Kind, Tensor, nn};

use talion_onnx::{Builder, Graph, Program, Side, Var};

use crate::{
    design::Design,
    fast::{self, Engine, Engines},
    import::{self, ChannelOrder, Origin, Script},
    layers::{Mode, channels_last},
    networks::{self, Network},
    precision::{SearchPrecision, Searcher},
    training::{initialise, load_variables, variables},
};

/// Everything needed to build a network before its weights are read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// What the network is: built in, or a file of somebody else's.
    pub architecture: Design,
    /// Image channels, 1 or 3.
    pub channels: i64,
    /// Number of classes, at least 2.
    pub classes: i64,
    /// Mean of each channel over the training images, on the `[0, 1]` scale.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel, above 0.
    pub std: Vec<f64>,
    /// The order in which the network wants the channels of a colour image; images themselves are always RGB.
    #[serde(default, skip_serializing_if = "ChannelOrder::is_rgb")]
    pub order: ChannelOrder,
}

impl ModelSpec {
    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// Names the first part that does not.
    pub fn validate(&self) -> Result<()> {
        if !(1..=16).contains(&self.channels) {
            return Err(Error::range("channels", "1 to 16", self.channels));
        }
        if !(2..=100_000).contains(&self.classes) {
            return Err(Error::range("classes", "2 to 100000", self.classes));
        }
        for (name, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() as i64 != self.channels || values.iter().any(|value| !value.is_finite()) {
                let expected = format!("{} finite numbers, one a channel", self.channels);
                return Err(Error::range(name, expected, format!("{values:?}")));
            }
        }
        if self.std.iter().any(|&value| value <= 0.0) {
            return Err(Error::range("std", "above 0", format!("{:?}", self.std)));
        }
        if self.order == ChannelOrder::Bgr && self.channels != 3 {
            return Err(Error::range("channels of a network that wants BGR", "3", self.channels));
        }
        Ok(())
    }
}

/// What a checkpoint says of itself, kept in the file's header.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// What kind of file this is: always `classifier`.
    pub kind: String,
    /// How to build the network.
    pub spec: ModelSpec,
    /// The data set trained on, for instance `fashion-mnist`.
    pub dataset: String,
    /// Height and width of the training images.
    pub image_size: [i64; 2],
    /// Names of the classes in label order.
    pub class_names: Vec<String>,
    /// Seed of the training run.
    pub seed: u64,
    /// The full training configuration.
    pub training: serde_json::Value,
    /// Measured figures by name, for instance `validation_accuracy`.
    pub metrics: BTreeMap<String, f64>,
}

impl ModelCard {
    /// The `kind` of a classifier's card.
    pub const KIND: &'static str = "classifier";
}

/// A classifier with its card: a built-in network, or an imported one.
///
/// While a built-in network trains, [`Model::forward`] uses batch statistics. [`Model::freeze`] folds batch norm and turns
/// off weight gradients; attacks, defences and evaluation always see a frozen model. Imported networks are always frozen.
pub struct Model {
    card: ModelCard,
    store: nn::VarStore,
    body: Body,
    mean: Tensor,
    inverse_std: Tensor,
    origin: Option<Origin>,
    /// Whether the weights are final.
    frozen: bool,
    engines: Engines,
    /// The same with factors in bf16.
    short_engines: Engines,
}

/// What answers.
enum Body {
    BuiltIn(Box<dyn Network>),
    Graph(Box<Program>),
    Script(Script),
}

impl Model {
    /// A freshly initialised built-in network; the weights depend on `card.seed` alone.
    ///
    /// # Errors
    /// If the specification is invalid or names an imported network.
    pub fn new(card: ModelCard, device: Device) -> Result<Self> {
        card.spec.validate()?;
        let spec = &card.spec;
        let Design::BuiltIn(architecture) = spec.architecture else {
            return Err(Error::Refused(format!("{} is not a built-in architecture", spec.architecture)));
        };
        let store = nn::VarStore::new(device);
        let network = networks::build(&store.root(), architecture, spec.channels, spec.classes);
        initialise(&store, card.seed);
        Ok(Self::assemble(card, store, Body::BuiltIn(network)))
    }

    /// Around an ONNX graph.
    pub(crate) fn around_graph(card: ModelCard, program: Program, device: Device) -> Result<Self> {
        card.spec.validate()?;
        Ok(Self::assemble(card, nn::VarStore::new(device), Body::Graph(Box::new(program))))
    }

    /// Around a TorchScript program.
    pub(crate) fn around_script(card: ModelCard, script: Script, device: Device) -> Result<Self> {
        card.spec.validate()?;
        Ok(Self::assemble(card, nn::VarStore::new(device), Body::Script(script)))
    }

    fn assemble(card: ModelCard, store: nn::VarStore, body: Body) -> Self {
        let row = |values: &[f64]| {
            Tensor::from_slice(values).to_kind(Kind::Float).view([1, -1, 1, 1]).to_device(store.device())
        };
        let (mean, inverse_std) = (row(&card.spec.mean), row(&card.spec.std).reciprocal());
        let frozen = !matches!(body, Body::BuiltIn(_));
        let [engines, short_engines] = [Engines::default(), Engines::default()];
        Self { card, store, body, mean, inverse_std, origin: None, frozen, engines, short_engines }
    }

    /// Says where an imported model came from.
    pub(crate) fn with_origin(mut self, origin: Origin) -> Self {
        self.origin = Some(origin);
        self
    }

    /// Where an imported model came from; `None` for talion's own files.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// Reads a classifier and freezes it: a file that talion wrote, an ONNX or TorchScript file, or PyTorch weights of an
    /// architecture that talion knows. See [`import`] for what the latter need beside them.
    ///
    /// # Errors
    /// If the file is missing, damaged, of another kind, or does not fit its own description.
    pub fn load(path: &Path, device: Device) -> Result<Self> {
        import::open(path, device)
    }

    /// As [`Model::load`], from memory, for talion's own files only; `origin` is named in errors.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_bytes(bytes: &[u8], origin: &Path, device: Device) -> Result<Self> {
        let archive = Archive::<ModelCard>::from_bytes(bytes, origin)?;
        if archive.header.kind != ModelCard::KIND {
            return Err(Error::file(origin, format!("holds a {}, not a classifier", archive.header.kind)));
        }
        Self::with_weights(archive.header, &archive.tensors, device)
            .map_err(|error| Error::file(origin, format!("does not fit its own header: {error}")))
    }

    /// A built-in network with these weights, frozen.
    ///
    /// # Errors
    /// If the specification is invalid, or a tensor is missing, left over or of another shape.
    pub fn with_weights(card: ModelCard, tensors: &Tensors, device: Device) -> Result<Self> {
        let model = Self::new(card, device)?;
        load_variables(&model.store, tensors)?;
        Ok(model.freeze())
    }

    /// Writes weights and card, whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written, or the network was imported as a program, whose own file is the one to keep.
    pub fn save(&self, path: &Path) -> Result<()> {
        if !matches!(self.body, Body::BuiltIn(_)) {
            return Err(Error::Refused(format!(
                "{} is an imported network; keep its own file",
                self.card.spec.architecture
            )));
        }
        Archive { header: self.card.clone(), tensors: self.tensors() }.save(path)
    }

    /// The weights and running statistics by name.
    pub fn tensors(&self) -> Tensors {
        match &self.body {
            Body::BuiltIn(_) => variables(&self.store),
            Body::Graph(program) => {
                let constants = &program.graph().constants;
                constants.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
            }
            Body::Script(script) => script.tensors(),
        }
    }

    /// What tells this classifier from every other, as tensors: the weights, and of an imported one also the file's
    /// SHA-256 and how images are prepared for it, which its weights say nothing of.
    pub fn identity(&self) -> Tensors {
        let mut identity = self.tensors();
        if let Some(origin) = &self.origin {
            let spec = &self.card.spec;
            let order = i64::from(spec.order == ChannelOrder::Bgr);
            identity.insert("talion.file".into(), Tensor::from_slice(&origin.sha256));
            identity.insert("talion.mean".into(), Tensor::from_slice(&spec.mean));
            identity.insert("talion.std".into(), Tensor::from_slice(&spec.std));
            identity.insert("talion.order".into(), Tensor::from_slice(&[order]));
        }
        identity
    }

    /// The card.
    pub fn card(&self) -> &ModelCard {
        &self.card
    }

    /// The card, to add figures to.
    pub fn card_mut(&mut self) -> &mut ModelCard {
        &mut self.card
    }

    /// What kind of program an imported network is; `None` for built-in ones.
    pub fn imported(&self) -> Option<import::Format> {
        match self.card.spec.architecture {
            Design::BuiltIn(_) => None,
            Design::Imported { format, .. } => Some(format),
        }
    }

    /// Its variables, for a training loop; an imported network has none.
    pub fn store(&self) -> &nn::VarStore {
        &self.store
    }

    /// Number of trained weights.
    pub fn parameters(&self) -> usize {
        match &self.body {
            Body::BuiltIn(_) => self.store.trainable_variables().iter().map(Tensor::numel).sum(),
            Body::Graph(program) => program.parameters(),
            Body::Script(script) => script.parameters(),
        }
    }

    /// The graph of an imported ONNX file, as talion runs it.
    pub fn program(&self) -> Option<&Program> {
        match &self.body {
            Body::Graph(program) => Some(program),
            _ => None,
        }
    }

    /// Folds batch norm into the convolutions and turns off gradients for the weights.
    #[must_use]
    pub fn freeze(mut self) -> Self {
        self.store.freeze();
        if let Body::BuiltIn(network) = &mut self.body {
            tch::no_grad(|| network.fold());
        }
        self.frozen = true;
        (self.engines, self.short_engines) = (Engines::default(), Engines::default());
        self
    }

    /// This classifier as an attack sees it that searches in another precision.
    pub fn searching_in(&self, precision: SearchPrecision) -> Searcher<'_> {
        Searcher { model: self, precision }
    }

    /// The fast engine for these images: on the CPU, in f32, for a network whose weights are final and whose every
    /// operation the engine knows.
    pub(crate) fn engine_in(&self, precision: SearchPrecision, images: &Tensor) -> Option<Arc<Engine<f32>>> {
        let size = images.size();
        let fits = images.device() == Device::Cpu
            && images.kind() == Kind::Float
            && size.len() == 4
            && size[1] == self.card.spec.channels;
        if fits { self.find_engine(precision, [size[2], size[3]]).ok() } else { None }
    }

    fn find_engine(
        &self,
        precision: SearchPrecision,
        size: [i64; 2],
    ) -> std::result::Result<Arc<Engine<f32>>, String> {
        if !self.frozen {
            return Err("its weights may still change".into());
        }
        if self.device() != Device::Cpu || self.mean.kind() != Kind::Float {
            return Err("it is for f32 on the CPU".into());
        }
        match precision.factors() {
            Factors::Full => self.engines.get(size, || self.make_engine(Factors::Full, size)),
            Factors::Bf16 => self.short_engines.get(size, || self.make_engine(Factors::Bf16, size)),
        }
    }

    fn make_engine(&self, factors: Factors, size: [i64; 2]) -> std::result::Result<Engine<f32>, String> {
        let graph = tch::no_grad(|| self.graph(size).and_then(talion_onnx::fold));
        let engine = Engine::new(fast::plan(&graph.map_err(|error| error.to_string())?, factors)?);
        let (classes, stated) = (engine.classes() as i64, self.card.spec.classes);
        if classes == stated { Ok(engine) } else { Err(format!("{classes} logits for {stated} classes")) }
    }

    /// Whether gradients for images of this height and width come from the fast engine.
    pub fn is_fast(&self, size: [i64; 2]) -> bool {
        self.find_engine(SearchPrecision::F32, size).is_ok()
    }

    /// The same, with the reason where they do not: then they come from autograd.
    ///
    /// # Errors
    /// The reason: what the engine does not know, for instance an operator.
    pub fn fast_engine(&self, size: [i64; 2]) -> std::result::Result<(), String> {
        self.find_engine(SearchPrecision::F32, size).map(drop)
    }

    /// Logits in the given mode, the convolutions of a built-in network computed in `kind`.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]` in `[0, 1]`; the result is `[N, K]`, `f32`.
    ///
    /// # Panics
    /// Like every function of tch that is not fallible: if libtorch refuses, which an imported network does for images of
    /// another size than it was made for. [`Model::try_logits`] is the one that does not.
    pub fn forward(&self, images: &Tensor, mode: Mode, kind: Kind) -> Tensor {
        match &self.body {
            Body::BuiltIn(network) => {
                let logits = network.forward(&channels_last(&self.standardised(images)).to_kind(kind), mode);
                logits.to_kind(images.kind())
            }
            _ => self.try_logits(images).unwrap_or_else(|error| panic!("{error}")),
        }
    }

    fn standardised(&self, images: &Tensor) -> Tensor {
        let images = match self.card.spec.order {
            ChannelOrder::Rgb => images.shallow_clone(),
            ChannelOrder::Bgr => images.flip([1]),
        };
        (images - &self.mean) * &self.inverse_std
    }

    /// Logits, or why there are none.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]` in `[0, 1]`; the result is `[N, K]`.
    ///
    /// # Errors
    /// If the images' shape does not fit, or an operation of an imported network fails on them.
    pub fn try_logits(&self, images: &Tensor) -> Result<Tensor> {
        let spec = &self.card.spec;
        let size = images.size();
        if size.len() != 4 || size[1] != spec.channels {
            let expected = format!("[N, {}, H, W]", spec.channels);
            return Err(Error::Shape { what: "images", expected, found: size });
        }
        let logits = self.answer(&self.standardised(images))?;
        if logits.size() != [size[0], spec.classes] {
            let expected = format!("[{}, {}]", size[0], spec.classes);
            return Err(Error::Shape { what: "the network's answer", expected, found: logits.size() });
        }
        Ok(logits.to_kind(images.kind()))
    }

    /// The network's answer to a tensor as it is, without the card's standardisation: to find out which preparation a
    /// network was trained with.
    ///
    /// # Errors
    /// If an operation of an imported network fails on it.
    pub fn answer(&self, prepared: &Tensor) -> Result<Tensor> {
        match &self.body {
            Body::BuiltIn(network) => Ok(network.forward(&channels_last(prepared), Mode::Eval)),
            Body::Graph(program) => Ok(program.run(&[prepared.shallow_clone()])?.swap_remove(0)),
            Body::Script(script) => script.forward(prepared),
        }
    }

    /// Checks that the model takes images of these channels and of this height and width, by asking an imported one.
    ///
    /// # Errors
    /// Says which images it takes.
    pub fn accepts(&self, channels: i64, size: [i64; 2]) -> Result<()> {
        let (spec, usual) = (&self.card.spec, self.card.image_size);
        let refused = |why: String| {
            Error::Refused(format!(
                "the classifier {} takes images of {}x{}x{}, and these are {channels}x{}x{}{why}",
                spec.architecture, spec.channels, usual[0], usual[1], size[0], size[1]
            ))
        };
        if channels != spec.channels {
            return Err(refused(String::new()));
        }
        if size == usual || matches!(self.body, Body::BuiltIn(_)) {
            return Ok(());
        }
        let grey = Tensor::full([1, channels, size[0], size[1]], 0.5, (Kind::Float, self.device()));
        tch::no_grad(|| self.try_logits(&grey)).map(drop).map_err(|error| refused(format!(": {error}")))
    }

    /// The model as an ONNX graph: input `images` `[N, C, H, W]` in `[0, 1]`, output `logits` `[N, K]`, the
    /// standardisation inside.
    ///
    /// # Errors
    /// If `size` (height and width) is not positive, or the model is a TorchScript program, which cannot be written out.
    pub fn graph(&self, size: [i64; 2]) -> Result<Graph> {
        if size.iter().any(|side| !(1..=65_536).contains(side)) {
            return Err(Error::range("the image size", "1 to 65536 a side", format!("{size:?}")));
        }
        let spec = &self.card.spec;
        let mut builder = Builder::new(&spec.architecture.to_string());
        let batch = Side::Named("N".into());
        let shape =
            vec![batch.clone(), Side::Fixed(spec.channels), Side::Fixed(size[0]), Side::Fixed(size[1])];
        let images = builder.input("images", Kind::Float, shape);
        let ready = self.emit_standardised(&mut builder, &images);
        let logits = match &self.body {
            Body::BuiltIn(network) => network.emit(&mut builder, &ready, size),
            Body::Graph(program) => builder.splice(program.graph(), &[&ready])?.swap_remove(0),
            Body::Script(_) => {
                return Err(Error::Refused(
                    "a TorchScript program cannot be written as ONNX; export the model to ONNX from PyTorch and load \
                     that file"
                        .into(),
                ));
            }
        };
        builder.finish(&[("logits", &logits, vec![batch, Side::Fixed(spec.classes)])])
    }

    fn emit_standardised(&self, builder: &mut Builder, images: &Var) -> Var {
        let spec = &self.card.spec;
        let mut ready = images.clone();
        if spec.order == ChannelOrder::Bgr {
            let planes: Vec<Var> = (0..spec.channels).rev().map(|c| builder.slice(&ready, 1, c, 1)).collect();
            ready = builder.concat(&planes.iter().collect::<Vec<_>>(), 1);
        }
        if spec.mean.iter().all(|&mean| mean == 0.0) && spec.std.iter().all(|&std| std == 1.0) {
            return ready;
        }
        let (mean, inverse_std) = (builder.constant(&self.mean), builder.constant(&self.inverse_std));
        let centred = builder.sub(&ready, &mean);
        builder.mul(&centred, &inverse_std)
    }

    /// The same model in double precision, for checking gradients. A TorchScript program stays as it is.
    #[must_use]
    pub fn to_double(mut self) -> Self {
        self.store.double();
        self.mean = self.mean.to_kind(Kind::Double);
        self.inverse_std = self.inverse_std.to_kind(Kind::Double);
        self.body = match self.body {
            Body::Graph(program) => Body::Graph(Box::new(program.to_double())),
            body => body,
        };
        self.freeze()
    }
}

impl Classifier for Model {
    fn classes(&self) -> i64 {
        self.card.spec.classes
    }

    fn device(&self) -> Device {
        self.store.device()
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        self.forward(images, Mode::Eval, images.kind())
    }

    fn search_logits(&self, images: &Tensor) -> Tensor {
        self.searching_in(SearchPrecision::F32).search_logits(images)
    }

    fn is_approximate(&self, images: &Tensor) -> bool {
        self.searching_in(SearchPrecision::F32).is_approximate(images)
    }

    fn loss_gradient(&self, images: &Tensor, loss: &dyn Fn(&Tensor) -> Tensor) -> InputGradient {
        self.searching_in(SearchPrecision::F32).loss_gradient(images, loss)
    }

    fn logit_gradients(&self, images: &Tensor) -> (Tensor, Tensor) {
        self.searching_in(SearchPrecision::F32).logit_gradients(images)
    }
}
