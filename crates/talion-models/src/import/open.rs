//! Opening a classifier, whatever file it is in.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use talion_core::{Error, Result, Tensors, read_safetensors};
use talion_onnx::{Graph, Program, Side};
use tch::{Device, Kind, Tensor};

use super::{Format, KeyReport, Mapped, Script, Sidecar, StateDict, detect, map};
use crate::{Design, Model, ModelCard, ModelSpec};

/// Where an imported model came from, and what was made of it.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The file.
    pub path: PathBuf,
    /// What kind of file it is.
    pub format: Format,
    /// Of the file's bytes.
    pub sha256: [u8; 32],
    /// What the file beside it says; empty if there is none.
    pub sidecar: Sidecar,
    /// Which keys of PyTorch weights became which, for files of weights.
    pub keys: Option<KeyReport>,
    /// What had to be assumed, a sentence each.
    pub assumed: Vec<String>,
}

/// The largest file of weights that is read.
const LARGEST: u64 = 16 << 30;

/// Reads a classifier from any file that talion knows; see the [module](super).
pub(crate) fn open(path: &Path, device: Device) -> Result<Model> {
    match detect(path)? {
        Format::Talion => {
            let bytes = std::fs::read(path).map_err(Error::io(path))?;
            Model::from_bytes(&bytes, path, device)
        }
        _ => {
            let sidecar = Sidecar::read(path)?;
            let missing = sidecar.is_none().then(|| {
                format!("nothing is stated beside the file: there is no {}", Sidecar::path(path).display())
            });
            open_as(path, sidecar.unwrap_or_default(), missing, device)
        }
    }
}

/// Reads somebody else's file as `sidecar` describes it, whatever lies beside it.
///
/// # Errors
/// If the file is missing, damaged, unsupported, or the description does not fit it.
pub fn open_with(path: &Path, sidecar: Sidecar, device: Device) -> Result<Model> {
    sidecar.validate()?;
    open_as(path, sidecar, None, device)
}

fn open_as(path: &Path, sidecar: Sidecar, missing: Option<String>, device: Device) -> Result<Model> {
    let format = detect(path)?;
    let assumed = Vec::from_iter(missing);
    Opening { path, format, sidecar, keys: None, assumed, device }.open()
}

/// A file that is being opened.
struct Opening<'a> {
    path: &'a Path,
    format: Format,
    sidecar: Sidecar,
    keys: Option<KeyReport>,
    assumed: Vec<String>,
    device: Device,
}

impl Opening<'_> {
    fn open(mut self) -> Result<Model> {
        let model = match self.format {
            Format::Onnx => self.graph()?,
            Format::TorchScript => self.script()?,
            Format::StateDict => {
                let read = StateDict::read(self.path)?;
                self.weights(&read.tensors)?
            }
            Format::Safetensors => self.weights(&read_safetensors(self.path)?)?,
            Format::Talion => return Err(self.fault("was written by talion and describes itself")),
        };
        let origin = Origin {
            path: self.path.into(),
            format: self.format,
            sha256: sha256(self.path)?,
            sidecar: self.sidecar,
            keys: self.keys,
            assumed: self.assumed,
        };
        Ok(model.with_origin(origin))
    }

    fn fault(&self, problem: impl Into<String>) -> Error {
        Error::file(self.path, problem)
    }

    fn assume(&mut self, what: impl Into<String>) {
        self.assumed.push(what.into());
    }

    /// Weights of a built-in architecture.
    fn weights(&mut self, tensors: &Tensors) -> Result<Model> {
        let Mapped { architecture, classes, channels, tensors, report, mean_std } =
            map(tensors, self.sidecar.architecture, self.path)?;
        self.keys = Some(report);
        if let (Some((mean, std)), None, None) =
            (&mean_std, &self.sidecar.input.mean, &self.sidecar.input.std)
        {
            self.sidecar.input.mean = Some(mean.clone());
            self.sidecar.input.std = Some(std.clone());
            // they are on the scale from 0 to 1
            self.sidecar.input.scale = None;
            self.assume(format!("mean {mean:?} and standard deviation {std:?} are the weights' own buffers"));
        }
        let size = self.size(None, Some([32, 32]))?;
        self.agree("channels", self.sidecar.input.channels, channels)?;
        let card = self.card(architecture.into(), channels, classes, size)?;
        Model::with_weights(card, &tensors, self.device)
            .map_err(|error| self.fault(format!("does not fit {architecture}: {error}")))
    }

    fn graph(&mut self) -> Result<Model> {
        let graph = talion_onnx::read(self.path)?;
        let (channels, size) = self.image_port(&graph)?;
        let program = Program::new(graph, self.device).map_err(|error| self.fault(error.to_string()))?;
        let answer =
            |images: &Tensor| program.run(&[images.shallow_clone()]).map(|mut all| all.swap_remove(0));
        let classes = self.probe(channels, size, &answer)?;
        let card = self.card(self.imported(), channels, classes, size)?;
        Model::around_graph(card, program, self.device)
    }

    /// Channels and size of the images that a graph takes.
    fn image_port(&mut self, graph: &Graph) -> Result<(i64, [i64; 2])> {
        let [port] = graph.inputs.as_slice() else {
            let names: Vec<&str> = graph.inputs.iter().map(|port| port.name.as_str()).collect();
            return Err(self.fault(format!(
                "has {} inputs ({}), and a classifier of images has one",
                names.len(),
                names.join(", ")
            )));
        };
        if graph.outputs.is_empty() {
            return Err(self.fault("has no output"));
        }
        if port.kind != Kind::Float {
            return Err(self.fault(format!(
                "takes {:?} images; only f32 is supported (export the model in single precision)",
                port.kind
            )));
        }
        if graph.outputs.len() > 1 {
            let first = graph.outputs[0].name.clone();
            self.assume(format!("of {} outputs the first, {first}, is the logits", graph.outputs.len()));
        }
        let fixed = |side: &Side| match side {
            Side::Fixed(side) => Some(*side),
            _ => None,
        };
        let sides = match port.shape.as_deref() {
            None => [None; 4],
            Some([batch, channels, height, width]) => {
                [fixed(batch), fixed(channels), fixed(height), fixed(width)]
            }
            Some(other) => {
                let rank = other.len();
                return Err(self.fault(format!("takes tensors of rank {rank}, and images are [N, C, H, W]")));
            }
        };
        if let Some(batch) = sides[0] {
            return Err(self.fault(format!(
                "was exported for batches of exactly {batch}; export it with a dynamic batch size \
                 (torch.onnx.export: dynamic_axes={{\"{}\": {{0: \"N\"}}}}, or dynamic_shapes)",
                port.name
            )));
        }
        if let (Some(3), Some(channels), Some(height)) = (sides[3], sides[1], sides[2])
            && channels > 16
        {
            return Err(self.fault(format!(
                "takes [N, {channels}, {height}, 3], which looks like channels last; export it as NCHW"
            )));
        }
        if let (Some(found), Some(stated)) = (sides[1], self.sidecar.input.channels) {
            self.agree("channels", Some(stated), found)?;
        }
        let channels = sides[1].or(self.sidecar.input.channels).unwrap_or(3);
        let size = sides[2].zip(sides[3]).map(|(height, width)| [height, width]);
        Ok((channels, self.size(size, None)?))
    }

    fn script(&mut self) -> Result<Model> {
        let script = Script::load(self.path, self.device)?;
        let channels = self.sidecar.input.channels.unwrap_or(3);
        let size = self.size(None, None)?;
        let classes = self.probe(channels, size, &|images| script.forward(images))?;
        let card = self.card(self.imported(), channels, classes, size)?;
        Model::around_script(card, script, self.device)
    }

    /// The image size: of the file, of the sidecar, or usual for the kind of network.
    fn size(&mut self, own: Option<[i64; 2]>, usual: Option<[i64; 2]>) -> Result<[i64; 2]> {
        if let (Some(own), Some(stated)) = (own, self.sidecar.input.size)
            && own != stated
        {
            return Err(self.fault(format!("takes images of {own:?}, and its sidecar states {stated:?}")));
        }
        if let Some(size) = own.or(self.sidecar.input.size) {
            return Ok(size);
        }
        let Some(usual) = usual else {
            return Err(self.fault(format!(
                "does not say which image size it takes; state it in {} (talion model describe --size HxW)",
                Sidecar::path(self.path).display()
            )));
        };
        self.assume(format!("images are {}x{}", usual[0], usual[1]));
        Ok(usual)
    }

    fn agree(&self, what: &str, stated: Option<i64>, found: i64) -> Result<()> {
        match stated {
            Some(stated) if stated != found => {
                Err(self.fault(format!("has {found} {what}, and its sidecar states {stated}")))
            }
            _ => Ok(()),
        }
    }

    fn imported(&self) -> Design {
        let name = self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Design::Imported { format: self.format, name }
    }

    /// Asks the network for the logits of grey images, and learns the number of classes from the answer.
    fn probe(
        &self,
        channels: i64,
        size: [i64; 2],
        answer: &dyn Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<i64> {
        for (what, side) in [("channels", channels), ("image height", size[0]), ("image width", size[1])] {
            if !(1..=16_384).contains(&side) {
                return Err(self.fault(format!("takes images of {side} {what}; 1 to 16384 are supported")));
            }
        }
        let mut classes = None;
        for rows in [1, 2] {
            let images = Tensor::full([rows, channels, size[0], size[1]], 0.5, (Kind::Float, self.device));
            let logits = tch::no_grad(|| answer(&images)).map_err(|error| {
                self.fault(format!(
                    "cannot answer {rows} grey image(s) of {channels}x{}x{}: {error}",
                    size[0], size[1]
                ))
            })?;
            match logits.size().as_slice() {
                [found, many] if *found == rows && *many >= 2 => classes = Some(*many),
                other => {
                    return Err(self.fault(format!(
                        "answers {rows} image(s) with {other:?}, and logits are [N, K] with at least two classes"
                    )));
                }
            }
        }
        classes.ok_or_else(|| self.fault("answers nothing"))
    }

    fn card(&mut self, design: Design, channels: i64, classes: i64, size: [i64; 2]) -> Result<ModelCard> {
        let input = &self.sidecar.input;
        if input.mean.is_none() && input.std.is_none() && input.scale.is_none() {
            self.assume("the network standardises inside itself: it is given values in [0, 1] as they are");
        }
        let (mean, std) = self.sidecar.standardisation(channels).map_err(|error| {
            Error::file(Sidecar::path(self.path), format!("does not fit the network: {error}"))
        })?;
        let class_names = match &self.sidecar.classes {
            Some(names) if names.len() as i64 == classes => names.clone(),
            Some(names) => {
                return Err(
                    self.fault(format!("has {classes} classes, and its sidecar names {}", names.len()))
                );
            }
            None => (0..classes).map(|class| class.to_string()).collect(),
        };
        let dataset = self.sidecar.dataset.clone().unwrap_or_else(|| UNKNOWN_DATA.into());
        let mut metrics = BTreeMap::new();
        if let Some(accuracy) = self.sidecar.accuracy {
            metrics.insert(STATED_ACCURACY.into(), accuracy);
        }
        let order = self.sidecar.input.order;
        Ok(ModelCard {
            kind: ModelCard::KIND.into(),
            spec: ModelSpec { architecture: design, channels, classes, mean, std, order },
            dataset,
            image_size: size,
            class_names,
            seed: 0,
            training: serde_json::Value::Null,
            metrics,
        })
    }
}

/// The data set on the card of a model whose data nobody has named.
pub const UNKNOWN_DATA: &str = "data that nobody named";

/// The figure on a card that holds the accuracy which the sidecar states.
pub const STATED_ACCURACY: &str = "stated_accuracy";

fn sha256(path: &Path) -> Result<[u8; 32]> {
    let mut file = std::fs::File::open(path).map_err(Error::io(path))?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    if length > LARGEST {
        return Err(Error::file(path, format!("has {length} bytes; {LARGEST} are the most that is read")));
    }
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).map_err(Error::io(path))?;
        if read == 0 {
            return Ok(hasher.finalize().into());
        }
        hasher.update(&buffer[..read]);
    }
}
