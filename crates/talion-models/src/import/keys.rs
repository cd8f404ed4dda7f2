//! Finds the built-in network that foreign weights are of, by their names and shapes, and renames them for it.
//!
//! Weights do not say everything about a network: strides, poolings, activations and the epsilon of the norms (1e-5)
//! are taken to be those of the network that the names belong to. Whoever imports weights should measure their
//! accuracy.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Bound,
    path::Path,
};

use talion_core::{Error, Result, Tensors};
use tch::{Kind, Tensor};

use super::pickle::Step;
use crate::{Architecture, Family};

/// Weights of one of the built-in networks, from another program.
#[derive(Debug)]
pub struct Mapped {
    /// Family and width.
    pub architecture: Architecture,
    /// Number of classes.
    pub classes: i64,
    /// Image channels.
    pub channels: i64,
    /// The weights under talion's names, `f32`.
    pub tensors: Tensors,
    /// How the names were understood.
    pub report: KeyReport,
    /// Mean and standard deviation of each channel on the `[0, 1]` scale, if the weights came with them.
    pub mean_std: Option<(Vec<f64>, Vec<f64>)>,
}

/// Which names were understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyReport {
    /// Tensors of the network that were found.
    pub mapped: usize,
    /// Names that the network needs and the weights lack.
    pub missing: Vec<String>,
    /// Names that the network has no use for.
    pub unexpected: Vec<String>,
    /// Whose naming it is, in words.
    pub scheme: String,
}

impl fmt::Display for KeyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tensors named as in {}", self.mapped, self.scheme)?;
        for (what, names) in [("missing", &self.missing), ("unexpected", &self.unexpected)] {
            if !names.is_empty() {
                write!(f, "; {what}: {}", shortened(names))?;
            }
        }
        Ok(())
    }
}

/// The first names, and how many there are beside them.
fn shortened(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let first = names.get(..SHOWN).unwrap_or(names).join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// Beginnings that say nothing where all names have them: what wrappers add. `1.` is a network behind a normalisation.
const WRAPPERS: [&str; 7] = ["module.", "model.", "_orig_mod.", "backbone.", "encoder.", "net.", "1."];

/// Names of a normalisation's mean and standard deviation.
const STATISTICS: [(&str, &str); 4] =
    [("mean", "std"), ("normalize.mean", "normalize.std"), ("mu", "sigma"), ("0.mean", "0.std")];

const ADVICE: &str =
    "export the model to ONNX or TorchScript instead, which carry the network as well as its weights";

/// Finds the network that `tensors` are the weights of, and gives them talion's names. `origin` is named in errors.
///
/// Understood are talion's own names; those of the usual CIFAR ResNet-18 and of torchvision's with a 3x3 stem; of
/// WideResNet-28 in TRADES and RobustBench; of PreActResNet-18 with a final norm; and of VGG-16 with batch norm and one
/// linear layer. What wrappers put before all names (`module.`, `model.`, ...) is dropped, as are counts of batches.
/// Biases of convolutions before a norm become part of the norm.
///
/// # Errors
/// If the network is none of these, or not the `wanted` one; if names are missing or left over, or shapes do not fit.
pub fn map(tensors: &Tensors, wanted: Option<Architecture>, origin: &Path) -> Result<Mapped> {
    let problem = |problem: String| Error::file(origin, problem);
    let (weights, statistics) = unwrapped(tensors);
    let plan = recognise(&weights).map_err(|found| problem(format!("{found}; {ADVICE}")))?;
    let architecture = plan.architecture;
    if let Some(wanted) = wanted.filter(|&wanted| wanted != architecture) {
        return Err(problem(format!("holds the weights of a {architecture}, not of the {wanted} asked for")));
    }
    let fitted = plan.fit(&weights)?;
    if !fitted.fits() {
        return Err(problem(format!("does not fit {architecture}: {fitted}; {ADVICE}")));
    }
    let mean_std = statistics.map(|pair| mean_and_std(pair, plan.channels)).transpose().map_err(problem)?;
    Ok(Mapped {
        architecture,
        classes: plan.classes,
        channels: plan.channels,
        tensors: fitted.tensors,
        report: fitted.report,
        mean_std,
    })
}

/// Tensors by the names that are left without wrappers.
struct Weights<'a>(BTreeMap<&'a str, &'a Tensor>);

impl<'a> Weights<'a> {
    fn get(&self, name: &str) -> Option<&'a Tensor> {
        self.0.get(name).copied()
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether a name begins so.
    fn has_below(&self, beginning: &str) -> bool {
        let mut names = self.0.range::<str, _>((Bound::Included(beginning), Bound::Unbounded));
        names.next().is_some_and(|(name, _)| name.starts_with(beginning))
    }

    /// How many of `stage.0.`, `stage.1.`, ... there are.
    fn depth(&self, stage: &str) -> usize {
        (0..1000).take_while(|index| self.has_below(&format!("{stage}.{index}."))).count()
    }

    /// Outputs, inputs and the sides of the kernel of a convolution.
    fn convolution(&self, name: &str) -> Step<[i64; 4]> {
        let weight = self.get(name).ok_or_else(|| format!("lacks {name}"))?;
        <[i64; 4]>::try_from(weight.size())
            .map_err(|shape| format!("has a {name} of shape {shape:?}, which is no convolution"))
    }
}

/// The weights, and a normalisation's mean and standard deviation if they are among them.
fn unwrapped(tensors: &Tensors) -> (Weights<'_>, Option<(&Tensor, &Tensor)>) {
    // counters of batch norm and of averaged weights, which no network computes with
    let counter = |name: &str| name.ends_with("num_batches_tracked") || name == "n_averaged";
    let mut weights: BTreeMap<&str, &Tensor> = tensors
        .iter()
        .filter(|(name, _)| !counter(name))
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    let statistics = STATISTICS.iter().find_map(|(mean, std)| {
        let find = |wanted: &str| weights.keys().copied().find(|name| unwrapped_name(name) == wanted);
        let (mean, std) = (find(mean)?, find(std)?);
        Some((weights.remove(mean)?, weights.remove(std)?))
    });
    while let Some(wrapper) = common(&weights) {
        weights = weights
            .into_iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix(wrapper)?, tensor)))
            .collect();
    }
    (Weights(weights), statistics)
}

/// A wrapper that all names begin with.
fn common(weights: &BTreeMap<&str, &Tensor>) -> Option<&'static str> {
    let all = |wrapper: &&&'static str| weights.keys().all(|name| name.starts_with(**wrapper));
    WRAPPERS.iter().find(all).copied().filter(|_| !weights.is_empty())
}

/// A name without any wrappers.
fn unwrapped_name(mut name: &str) -> &str {
    while let Some(rest) = WRAPPERS.iter().find_map(|wrapper| name.strip_prefix(wrapper)) {
        name = rest;
    }
    name
}

/// One layer: whose tensors go where.
struct Part {
    ours: String,
    theirs: String,
    layer: Layer,
}

enum Layer {
    Convolution {
        outputs: i64,
        inputs: i64,
        size: i64,
    },
    /// `after`: their name of the convolution before it, whose bias it takes in.
    Norm {
        channels: i64,
        after: Option<String>,
    },
    Linear {
        outputs: i64,
        inputs: i64,
    },
}

impl Layer {
    /// Names and shapes of its tensors.
    fn tensors(&self) -> Vec<(&'static str, Vec<i64>)> {
        match *self {
            Self::Convolution { outputs, inputs, size } => {
                vec![("weight", vec![outputs, inputs, size, size])]
            }
            Self::Norm { channels, .. } => {
                ["weight", "bias", "running_mean", "running_var"].map(|name| (name, vec![channels])).into()
            }
            Self::Linear { outputs, inputs } => {
                vec![("weight", vec![outputs, inputs]), ("bias", vec![outputs])]
            }
        }
    }
}

/// What a network is made of, in its own names and in those of the weights.
struct Plan {
    architecture: Architecture,
    channels: i64,
    classes: i64,
    scheme: &'static str,
    parts: Vec<Part>,
    /// What the names begin with that the network has but does not compute with.
    unused: Option<&'static str>,
}

impl Plan {
    fn new(
        weights: &Weights<'_>,
        family: Family,
        scheme: &'static str,
        stem: &str,
        head: &str,
    ) -> Step<Self> {
        let [outputs, channels, height, width] = weights.convolution(&format!("{stem}.weight"))?;
        let size = if family == Family::CnnSmall { 5 } else { 3 };
        if (height, width) != (size, size) {
            return Err(format!(
                "begins with a {height}x{width} convolution (ResNets for ImageNet have a 7x7 one), where the network \
                 built in has {size}x{size}"
            ));
        }
        let head = weights.get(&format!("{head}.weight")).ok_or_else(|| format!("lacks {head}.weight"))?;
        let &[classes, _] = head.size().as_slice() else {
            return Err(format!("ends with a weight of shape {:?}, which is no linear layer", head.size()));
        };
        let architecture = Architecture { family, width: outputs };
        Self { architecture, channels, classes, scheme, parts: Vec::new(), unused: None }.checked()
    }

    /// Refuses sizes that no network has, before anything is computed with them.
    fn checked(self) -> Step<Self> {
        let Self { architecture: Architecture { width, .. }, channels, classes, .. } = self;
        if !(1..=1024).contains(&width) || !(1..=16).contains(&channels) || !(2..=100_000).contains(&classes)
        {
            return Err(format!("has a width of {width}, {channels} channels and {classes} classes"));
        }
        Ok(self)
    }

    fn convolution(&mut self, ours: &str, theirs: &str, [outputs, inputs, size]: [i64; 3]) {
        let layer = Layer::Convolution { outputs, inputs, size };
        self.parts.push(Part { ours: ours.into(), theirs: theirs.into(), layer });
    }

    fn norm(&mut self, ours: &str, theirs: &str, channels: i64) {
        let layer = Layer::Norm { channels, after: None };
        self.parts.push(Part { ours: ours.into(), theirs: theirs.into(), layer });
    }

    /// A convolution and the norm behind it; `theirs` are the names of both.
    fn normed(&mut self, ours: &str, theirs: [&str; 2], sides: [i64; 3]) {
        let [convolution, norm] = theirs;
        self.convolution(&format!("{ours}.conv"), convolution, sides);
        let layer = Layer::Norm { channels: sides[0], after: Some(convolution.into()) };
        self.parts.push(Part { ours: format!("{ours}.norm"), theirs: norm.into(), layer });
    }

    fn linear(&mut self, ours: &str, theirs: &str, outputs: i64, inputs: i64) {
        let layer = Layer::Linear { outputs, inputs };
        self.parts.push(Part { ours: ours.into(), theirs: theirs.into(), layer });
    }

    /// Finds the tensors of every part.
    fn fit(&self, weights: &Weights<'_>) -> Result<Fitted> {
        let mut fitted = Fitted::default();
        let mut used = BTreeSet::new();
        for part in &self.parts {
            for (name, shape) in part.layer.tensors() {
                let (ours, theirs) = (format!("{}.{name}", part.ours), format!("{}.{name}", part.theirs));
                match weights.get(&theirs) {
                    None => fitted.report.missing.push(theirs),
                    Some(tensor) => {
                        fitted.add(ours, &theirs, tensor, &shape)?;
                        used.insert(theirs);
                    }
                }
            }
            if let Layer::Norm { channels, after: Some(convolution) } = &part.layer {
                let bias = format!("{convolution}.bias");
                if let Some(tensor) = weights.get(&bias) {
                    fitted.absorb(&part.ours, &bias, tensor, *channels)?;
                    used.insert(bias);
                }
            }
        }
        let unused = |name: &str| self.unused.is_some_and(|beginning| name.starts_with(beginning));
        let left = weights.0.keys().filter(|name| !used.contains(**name) && !unused(name));
        fitted.report.unexpected = left.map(|name| (*name).to_owned()).collect();
        fitted.report.mapped = fitted.tensors.len();
        fitted.report.scheme = self.scheme.to_owned();
        Ok(fitted)
    }
}

/// What was found of a plan.
#[derive(Default)]
struct Fitted {
    tensors: Tensors,
    report: KeyReport,
    /// Tensors of another shape than the network's.
    misshapen: Vec<String>,
}

impl Fitted {
    fn fits(&self) -> bool {
        self.report.missing.is_empty() && self.report.unexpected.is_empty() && self.misshapen.is_empty()
    }

    fn add(&mut self, ours: String, theirs: &str, tensor: &Tensor, shape: &[i64]) -> Result<()> {
        if tensor.size() == shape {
            self.tensors.insert(ours, tensor.f_detach()?.f_to_kind(Kind::Float)?);
        } else {
            self.misshapen.push(format!("{theirs} is {:?}, expected {shape:?}", tensor.size()));
        }
        Ok(())
    }

    /// `norm(x + bias)` with its running mean `m` is `norm(x)` with `m - bias`.
    fn absorb(&mut self, norm: &str, name: &str, bias: &Tensor, channels: i64) -> Result<()> {
        if bias.size() != [channels] {
            self.misshapen.push(format!("{name} is {:?}, expected [{channels}]", bias.size()));
        } else if let Some(mean) = self.tensors.get_mut(&format!("{norm}.running_mean")) {
            *mean = mean.f_sub(&bias.f_detach()?.f_to_kind(Kind::Float)?)?;
        }
        Ok(())
    }
}

impl fmt::Display for Fitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.report)?;
        if !self.misshapen.is_empty() {
            write!(f, "; of other shapes: {}", shortened(&self.misshapen))?;
        }
        Ok(())
    }
}

/// Which network and which naming the weights show.
fn recognise(weights: &Weights<'_>) -> Step<Plan> {
    if weights.0.is_empty() {
        return Err("holds no weights".into());
    }
    if weights.has("head.weight") && (weights.has_below("stem.") || weights.has_below("stage0_conv0.")) {
        return own(weights);
    }
    if weights.has("hidden.weight") && weights.has("head.weight") {
        return own(weights);
    }
    if weights.has("block1.layer.0.conv1.weight") {
        return wide_resnet(weights);
    }
    if weights.has("layer1.0.conv1.weight") {
        // with normalisation first there is nothing to normalise behind the first convolution
        return if weights.has_below("bn1.") { resnet(weights) } else { preact_resnet(weights) };
    }
    if weights.has("features.0.weight") {
        return vgg(weights);
    }
    let names: Vec<_> = weights.0.keys().map(|name| (*name).to_owned()).collect();
    Err(format!("has weights named as in no network that is built in: {}", shortened(&names)))
}

/// Talion's own names.
fn own(weights: &Weights<'_>) -> Step<Plan> {
    const OWN: &str = "talion";
    let plan = |family, stem| Plan::new(weights, family, OWN, stem, "head");
    let mut plan = if weights.has("stem.conv.weight") {
        residual(plan(Family::ResNet18, "stem.conv")?, &RESNET)
    } else if weights.has("stage0_conv0.conv.weight") {
        pooled(plan(Family::Vgg16Bn, "stage0_conv0.conv")?, "")
    } else if weights.has("hidden.weight") {
        small(plan(Family::CnnSmall, "first")?)
    } else if weights.has_below("stage3_block0.") {
        preact(plan(Family::PreActResNet18, "stem")?, &PREACT)
    } else {
        let plan = wide(plan(Family::WideResNet28, "stem")?, weights, "stage0_block0.first.conv")?;
        preact(plan, &WIDE)
    };
    for part in &mut plan.parts {
        part.theirs.clone_from(&part.ours);
        if let Layer::Norm { after, .. } = &mut part.layer {
            *after = None;
        }
    }
    Ok(plan)
}

/// What a residual network calls its layers.
struct Names {
    stem: [&'static str; 2],
    /// Before and after the number of the stage.
    stage: [&'static str; 2],
    /// The convolution of a shortcut, and its norm where it has one.
    shortcut: [&'static str; 2],
    /// The last norm, where there is one.
    norm: &'static str,
    head: &'static str,
}

impl Names {
    fn block(&self, stage: usize, index: usize) -> String {
        let [before, after] = self.stage;
        format!("{before}{}{after}.{index}", stage + 1)
    }
}

const RESNET: Names = Names {
    stem: ["conv1", "bn1"],
    stage: ["layer", ""],
    shortcut: ["shortcut.0", "shortcut.1"],
    norm: "",
    head: "linear",
};
const PREACT: Names = Names { stem: ["conv1", ""], norm: "bn", ..RESNET };
const WIDE: Names = Names {
    stem: ["conv1", ""],
    stage: ["block", ".layer"],
    shortcut: ["convShortcut", ""],
    norm: "bn1",
    head: "fc",
};

/// Names of the last layer: the first that is there.
fn head(weights: &Weights<'_>, names: &[&'static str]) -> Step<&'static str> {
    let present = |name: &&&'static str| weights.has(&format!("{name}.weight"));
    names
        .iter()
        .find(present)
        .copied()
        .ok_or_else(|| format!("has no last layer named {}", names.join(" or ")))
}

fn resnet(weights: &Weights<'_>) -> Step<Plan> {
    if weights.has("layer1.0.conv3.weight") {
        return Err("is a ResNet with bottleneck blocks (ResNet-50 or deeper)".into());
    }
    stages(weights, "ResNet", &["layer1", "layer2", "layer3", "layer4", "layer5"], &[2, 2, 2, 2, 0])?;
    let mut names = Names { head: head(weights, &["linear", "fc"])?, ..RESNET };
    if weights.has_below("layer2.0.downsample.") {
        names.shortcut = ["downsample.0", "downsample.1"];
    }
    let plan = Plan::new(weights, Family::ResNet18, "ResNet-18", names.stem[0], names.head)?;
    Ok(residual(plan, &names))
}

fn preact_resnet(weights: &Weights<'_>) -> Step<Plan> {
    if weights.has("layer1.0.conv3.weight") {
        return Err("is a PreActResNet with bottleneck blocks".into());
    }
    stages(weights, "PreActResNet", &["layer1", "layer2", "layer3", "layer4", "layer5"], &[2, 2, 2, 2, 0])?;
    if !weights.has_below("bn.") {
        return Err(
            "is a PreActResNet without a norm behind its last block, where the network built in has one"
                .into(),
        );
    }
    let names = Names { head: head(weights, &["linear", "fc"])?, ..PREACT };
    let plan = Plan::new(weights, Family::PreActResNet18, "PreActResNet-18", names.stem[0], names.head)?;
    Ok(preact(plan, &names))
}

fn wide_resnet(weights: &Weights<'_>) -> Step<Plan> {
    let blocks = ["block1.layer", "block2.layer", "block3.layer", "block4.layer"];
    stages(weights, "WideResNet", &blocks, &[4, 4, 4, 0])?;
    let names = Names { head: head(weights, &["fc", "linear"])?, ..WIDE };
    let plan = Plan::new(weights, Family::WideResNet28, "WideResNet-28", names.stem[0], names.head)?;
    let mut plan = preact(wide(plan, weights, "block1.layer.0.conv1")?, &names);
    // TRADES builds its first block twice, and computes with one
    plan.unused = Some("sub_block1.");
    Ok(plan)
}

/// Refuses other depths than `expected`.
fn stages(weights: &Weights<'_>, what: &str, names: &[&str], expected: &[usize]) -> Step<()> {
    let found: Vec<_> = names.iter().map(|name| weights.depth(name)).collect();
    if found == expected {
        return Ok(());
    }
    let list = |depths: &[usize]| {
        let depths: Vec<_> = depths.iter().filter(|&&depth| depth > 0).map(ToString::to_string).collect();
        depths.join(", ")
    };
    Err(format!(
        "is a {what} with {} blocks in its stages, where the network built in has {}",
        list(&found),
        list(expected)
    ))
}

/// The width of a WideResNet is a multiplier, which its first block shows.
fn wide(mut plan: Plan, weights: &Weights<'_>, first: &str) -> Step<Plan> {
    let stem = plan.architecture.width;
    let [outputs, ..] = weights.convolution(&format!("{first}.weight"))?;
    if stem != 16 || outputs % 16 != 0 {
        return Err(format!(
            "is a WideResNet of {stem} and {outputs} channels, which are no 16 and multiple of 16"
        ));
    }
    plan.architecture.width = outputs / 16;
    plan.checked()
}

/// Stage and index of a block, and whether it halves the sides of its input.
fn blocks(stages: usize, depth: usize) -> impl Iterator<Item = (usize, usize, bool)> {
    (0..stages).flat_map(move |stage| (0..depth).map(move |index| (stage, index, stage > 0 && index == 0)))
}

fn residual(mut plan: Plan, names: &Names) -> Plan {
    let width = plan.architecture.width;
    plan.normed("stem", names.stem, [width, plan.channels, 3]);
    let mut inputs = width;
    for (stage, index, halves) in blocks(4, 2) {
        let outputs = width << stage;
        let (ours, theirs) = (format!("stage{stage}_block{index}"), names.block(stage, index));
        let name = |layer: &str| format!("{theirs}.{layer}");
        plan.normed(&format!("{ours}.first"), [&name("conv1"), &name("bn1")], [outputs, inputs, 3]);
        plan.normed(&format!("{ours}.second"), [&name("conv2"), &name("bn2")], [outputs, outputs, 3]);
        if halves || inputs != outputs {
            let [conv, norm] = names.shortcut.map(name);
            plan.normed(&format!("{ours}.shortcut"), [&conv, &norm], [outputs, inputs, 1]);
        }
        inputs = outputs;
    }
    plan.linear("head", names.head, plan.classes, inputs);
    plan
}

fn preact(mut plan: Plan, names: &Names) -> Plan {
    let width = plan.architecture.width;
    let (stem, first, stages, depth) = match plan.architecture.family {
        Family::WideResNet28 => (16, 16 * width, 3, 4),
        _ => (width, width, 4, 2),
    };
    plan.convolution("stem", names.stem[0], [stem, plan.channels, 3]);
    let mut inputs = stem;
    for (stage, index, halves) in blocks(stages, depth) {
        let outputs = first << stage;
        let (ours, theirs) = (format!("stage{stage}_block{index}"), names.block(stage, index));
        let name = |layer: &str| format!("{theirs}.{layer}");
        plan.norm(&format!("{ours}.norm"), &name("bn1"), inputs);
        plan.normed(&format!("{ours}.first"), [&name("conv1"), &name("bn2")], [outputs, inputs, 3]);
        plan.convolution(&format!("{ours}.second"), &name("conv2"), [outputs, outputs, 3]);
        if halves || inputs != outputs {
            let theirs = name(names.shortcut[0]);
            plan.convolution(&format!("{ours}.shortcut"), &theirs, [outputs, inputs, 1]);
        }
        inputs = outputs;
    }
    plan.norm("norm", names.norm, inputs);
    plan.linear("head", names.head, plan.classes, inputs);
    plan
}

fn vgg(weights: &Weights<'_>) -> Step<Plan> {
    let rank = |name: &str| weights.get(name).map_or(0, Tensor::dim);
    if rank("features.1.weight") != 1 || !weights.has("features.1.running_mean") {
        return Err("is a VGG without batch norm".into());
    }
    let found: Vec<usize> =
        (0..1000).filter(|place| rank(&format!("features.{place}.weight")) == 4).collect();
    let expected: Vec<usize> = vgg_places().into_iter().flatten().collect();
    if found != expected {
        return Err(format!(
            "is a VGG with {} convolutions, or poolings in other places than VGG-16",
            found.len()
        ));
    }
    if weights.has("classifier.3.weight") || weights.has("classifier.6.weight") {
        return Err("is a VGG with several linear layers, where the network built in has one".into());
    }
    let head = head(weights, &["classifier", "classifier.0"])?;
    let plan = Plan::new(weights, Family::Vgg16Bn, "VGG-16 with batch norm", "features.0", head)?;
    Ok(pooled(plan, head))
}

/// Outputs of a stage in units of the width, and its convolutions.
const VGG: [(i64, usize); 5] = [(1, 2), (2, 2), (4, 3), (8, 3), (8, 3)];

/// Places of the convolutions of each stage: each has a norm and a ReLU behind it, and each stage a pooling.
fn vgg_places() -> Vec<Vec<usize>> {
    let mut next = 0;
    let stage = |(_, depth): (i64, usize)| {
        let places: Vec<_> = (0..depth).map(|layer| next + 3 * layer).collect();
        next += 3 * depth + 1;
        places
    };
    VGG.into_iter().map(stage).collect()
}

fn pooled(mut plan: Plan, head: &str) -> Plan {
    let mut inputs = plan.channels;
    for (stage, (places, (factor, _))) in vgg_places().into_iter().zip(VGG).enumerate() {
        let outputs = factor * plan.architecture.width;
        for (layer, place) in places.into_iter().enumerate() {
            let theirs = [place, place + 1].map(|place| format!("features.{place}"));
            let sides = [outputs, inputs, 3];
            plan.normed(&format!("stage{stage}_conv{layer}"), [&theirs[0], &theirs[1]], sides);
            inputs = outputs;
        }
    }
    plan.linear("head", head, plan.classes, inputs);
    plan
}

/// The small network has no name but talion's own.
fn small(mut plan: Plan) -> Plan {
    let (width, channels) = (plan.architecture.width, plan.channels);
    plan.convolution("first", "", [width, channels, 5]);
    plan.convolution("second", "", [2 * width, width, 5]);
    plan.linear("hidden", "", 4 * width, 2 * width * 16);
    plan.linear("head", "", plan.classes, 4 * width);
    plan
}

/// Mean and standard deviation as numbers on the `[0, 1]` scale.
fn mean_and_std((mean, std): (&Tensor, &Tensor), channels: i64) -> Step<(Vec<f64>, Vec<f64>)> {
    let numbers = |tensor: &Tensor| -> Step<Vec<f64>> {
        let flat = tensor.f_detach().and_then(|tensor| tensor.f_flatten(0, -1));
        flat.and_then(|flat| Vec::<f64>::try_from(&flat)).map_err(|error| error.to_string())
    };
    let (mut mean, mut std) = (numbers(mean)?, numbers(std)?);
    let fits = |values: &[f64]| {
        i64::try_from(values.len()) == Ok(channels) && values.iter().all(|value| value.is_finite())
    };
    if !fits(&mean) || !fits(&std) || std.iter().any(|&value| value <= 0.0) {
        return Err(format!(
            "normalises its input with mean {mean:?} and deviation {std:?}, expected {channels} numbers each, the \
             deviations above 0"
        ));
    }
    // No mean of values up to 1 is above 1, so these are of pixels up to 255.
    if mean.iter().any(|&value| value > 1.0) {
        mean.iter_mut().chain(&mut std).for_each(|value| *value /= 255.0);
    }
    Ok((mean, std))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::{Model, ModelCard, ModelSpec, import::ChannelOrder, training::load_variables};

    fn model(architecture: &str, seed: u64) -> Model {
        let card = ModelCard {
            kind: ModelCard::KIND.into(),
            spec: ModelSpec {
                architecture: architecture.parse().unwrap(),
                channels: 3,
                classes: 5,
                mean: vec![0.5; 3],
                std: vec![0.25; 3],
                order: ChannelOrder::Rgb,
            },
            dataset: "none".into(),
            image_size: [32, 32],
            class_names: ["a", "b", "c", "d", "e"].map(String::from).to_vec(),
            seed,
            training: serde_json::Value::Null,
            metrics: BTreeMap::new(),
        };
        Model::new(card, Device::Cpu).unwrap()
    }

    fn mapped(tensors: &Tensors) -> Result<Mapped> {
        map(tensors, None, Path::new("net.pt"))
    }

    #[track_caller]
    fn refused(tensors: &Tensors, words: &str) {
        let error = mapped(tensors).unwrap_err().to_string();
        assert!(error.starts_with("net.pt: ") && error.contains(words), "{error}");
    }

    fn renamed(tensors: &Tensors, rename: impl Fn(&str) -> String) -> Tensors {
        tensors.iter().map(|(name, tensor)| (rename(name), tensor.shallow_clone())).collect()
    }

    /// Replaces the first match of each pair in turn.
    fn replaced(name: &str, pairs: &[(&str, &str)]) -> String {
        pairs.iter().fold(name.to_owned(), |name, (from, to)| name.replacen(from, to, 1))
    }

    fn stage_names(name: &str, stage: &str) -> String {
        let mut name = name.to_owned();
        for number in 0..4 {
            for index in 0..4 {
                let theirs = stage.replace('#', &(number + 1).to_string());
                name = name.replace(&format!("stage{number}_block{index}."), &format!("{theirs}.{index}."));
            }
        }
        name
    }

    fn resnet_name(name: &str) -> String {
        let pairs = [
            ("stem.conv", "conv1"),
            ("stem.norm", "bn1"),
            ("first.conv", "conv1"),
            ("first.norm", "bn1"),
            ("second.conv", "conv2"),
            ("second.norm", "bn2"),
            ("shortcut.conv", "shortcut.0"),
            ("shortcut.norm", "shortcut.1"),
            ("head", "linear"),
        ];
        replaced(&stage_names(name, "layer#"), &pairs)
    }

    fn torchvision_name(name: &str) -> String {
        replaced(&resnet_name(name), &[("shortcut", "downsample"), ("linear", "fc")])
    }

    fn preact_name(name: &str) -> String {
        if let Some(rest) = name.strip_prefix("norm.") {
            return format!("bn.{rest}");
        }
        let pairs = [
            ("stem", "conv1"),
            (".norm.", ".bn1."),
            (".first.conv", ".conv1"),
            (".first.bn1", ".bn2"),
            (".second", ".conv2"),
            (".shortcut", ".shortcut.0"),
            ("head", "linear"),
        ];
        replaced(&stage_names(name, "layer#"), &pairs)
    }

    fn wide_name(name: &str) -> String {
        if let Some(rest) = name.strip_prefix("norm.") {
            return format!("bn1.{rest}");
        }
        let pairs = [
            ("stem", "conv1"),
            (".norm.", ".bn1."),
            (".first.conv", ".conv1"),
            (".first.bn1", ".bn2"),
            (".second", ".conv2"),
            (".shortcut", ".convShortcut"),
            ("head", "fc"),
        ];
        replaced(&stage_names(name, "block#.layer"), &pairs)
    }

    fn vgg_name(name: &str) -> String {
        // counted by hand from the layers of VGG-16 with batch norm
        let places = [
            ("stage0_conv0", 0),
            ("stage0_conv1", 3),
            ("stage1_conv0", 7),
            ("stage1_conv1", 10),
            ("stage2_conv0", 14),
            ("stage2_conv1", 17),
            ("stage2_conv2", 20),
            ("stage3_conv0", 24),
            ("stage3_conv1", 27),
            ("stage3_conv2", 30),
            ("stage4_conv0", 34),
            ("stage4_conv1", 37),
            ("stage4_conv2", 40),
        ];
        for (ours, place) in places {
            if let Some(rest) = name.strip_prefix(&format!("{ours}.conv.")) {
                return format!("features.{place}.{rest}");
            }
            if let Some(rest) = name.strip_prefix(&format!("{ours}.norm.")) {
                return format!("features.{}.{rest}", place + 1);
            }
        }
        name.replace("head", "classifier")
    }

    type Rename = fn(&str) -> String;
    const SCHEMES: [(&str, Rename); 5] = [
        ("resnet18-w4", resnet_name),
        ("resnet18-w4", torchvision_name),
        ("preactresnet18-w4", preact_name),
        ("wrn-28-2", wide_name),
        ("vgg16bn-w4", vgg_name),
    ];

    #[test]
    fn our_own_names_are_known_for_every_family() {
        for name in ["resnet18-w4", "preactresnet18-w4", "vgg16bn-w4", "wrn-28-1", "wrn-28-2", "cnn-small-w4"]
        {
            let tensors = model(name, 1).tensors();
            let found = mapped(&tensors).unwrap();
            assert_eq!(found.architecture.to_string(), name);
            assert_eq!((found.classes, found.channels), (5, 3));
            assert_eq!(found.tensors, tensors, "{name}");
            assert_eq!((found.report.mapped, &found.report.scheme[..]), (tensors.len(), "talion"));
            assert!(found.mean_std.is_none());
        }
    }

    #[test]
    fn foreign_names_give_the_same_network() {
        for (name, rename) in SCHEMES {
            let original = model(name, 1);
            let mut foreign = renamed(&original.tensors(), rename);
            assert_eq!(foreign.len(), original.tensors().len(), "{name}");
            assert!(foreign.keys().all(|key| !key.contains("stage") && !key.contains("norm")), "{foreign:?}");
            for key in foreign.keys().filter(|key| key.ends_with("running_var")).cloned().collect::<Vec<_>>()
            {
                foreign.insert(key.replace("running_var", "num_batches_tracked"), Tensor::from(9_i64));
            }
            let found = map(&foreign, Some(name.parse().unwrap()), Path::new("net.pt")).unwrap();
            assert_eq!(found.tensors, original.tensors(), "{name}");
            let other = model(name, 2);
            load_variables(other.store(), &found.tensors).unwrap();
            let images = Tensor::full([2, 3, 32, 32], 0.3, (Kind::Float, Device::Cpu));
            let logits = |model: Model| talion_core::Classifier::logits(&model.freeze(), &images);
            assert_eq!(logits(other), logits(original), "{name}");
        }
    }

    #[test]
    fn wrappers_are_dropped_and_normalisations_are_kept() {
        let tensors = model("resnet18-w4", 1).tensors();
        let row = |values: [f64; 3]| Tensor::from_slice(&values).to_kind(Kind::Float).view([1, 3, 1, 1]);
        for (wrapper, mean, std) in [
            ("module.", "module.mean", "module.std"),
            ("model._orig_mod.module.", "model.normalize.mean", "model.normalize.std"),
            ("backbone.net.encoder.", "mu", "sigma"),
            ("1.", "0.mean", "0.std"),
        ] {
            let mut foreign = renamed(&tensors, |name| format!("{wrapper}{}", resnet_name(name)));
            foreign.insert("n_averaged".into(), Tensor::from(3_i64));
            assert!(mapped(&foreign).unwrap().mean_std.is_none(), "{wrapper}");
            foreign.insert(mean.into(), row([0.5, 0.25, 0.125]));
            refused(&foreign, "");
            foreign.insert(std.into(), row([0.5, 1.0, 2.0]).view([3]));
            let found = mapped(&foreign).unwrap();
            assert_eq!(found.tensors, tensors, "{wrapper}");
            assert_eq!(found.mean_std, Some((vec![0.5, 0.25, 0.125], vec![0.5, 1.0, 2.0])));
            // of pixels up to 255
            foreign.insert(mean.into(), row([127.5, 0.0, 255.0]));
            foreign.insert(std.into(), row([51.0, 25.5, 255.0]));
            let (means, stds) = mapped(&foreign).unwrap().mean_std.unwrap();
            assert_eq!(means, [0.5, 0.0, 1.0]);
            assert!((stds[0] - 0.2).abs() < 1e-12 && (stds[1] - 0.1).abs() < 1e-12 && stds[2] == 1.0);
            foreign.insert(std.into(), row([0.5, 0.0, 1.0]));
            refused(&foreign, "above 0");
            foreign.insert(std.into(), Tensor::ones([4], (Kind::Float, Device::Cpu)));
            refused(&foreign, "3 numbers");
        }
    }

    #[test]
    fn biases_before_a_norm_become_part_of_it() {
        let original = model("vgg16bn-w4", 1).tensors();
        let mut foreign = renamed(&original, vgg_name);
        let bias = Tensor::from_slice(&[0.5_f32, -1.0, 2.0, 0.25]);
        foreign.insert("features.0.bias".into(), bias.shallow_clone());
        foreign.insert("features.1.running_mean".into(), Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0]));
        let found = mapped(&foreign).unwrap();
        let norm = |tensors: &Tensors, part: &str, x: &Tensor| {
            let get = |name: &str| tensors.get(&format!("{part}.{name}"));
            let (mean, var) = (get("running_mean"), get("running_var"));
            x.batch_norm(get("weight"), get("bias"), mean, var, false, 0.1, 1e-5, false)
        };
        let x = Tensor::arange(108_i64, (Kind::Float, Device::Cpu)).view([1, 3, 6, 6]) / 50.0;
        let convolve =
            |weight: &Tensor, bias: Option<&Tensor>| x.conv2d(weight, bias, [1, 1], [1, 1], [1, 1], 1);
        let theirs = norm(&foreign, "features.1", &convolve(&foreign["features.0.weight"], Some(&bias)));
        let weight = &found.tensors["stage0_conv0.conv.weight"];
        let ours = norm(&found.tensors, "stage0_conv0.norm", &convolve(weight, None));
        assert!((ours - theirs).abs().max().double_value(&[]) < 1e-4);
        // every other tensor is as it was
        let changed: Vec<_> =
            found.tensors.iter().filter(|(name, tensor)| original[*name] != **tensor).collect();
        assert_eq!(changed.len(), 1);
        // a bias of another length; a bias with no norm behind it
        foreign.insert("features.0.bias".into(), Tensor::ones([3], (Kind::Float, Device::Cpu)));
        refused(&foreign, "features.0.bias is [3], expected [4]");
        let mut foreign = renamed(&model("wrn-28-1", 1).tensors(), wide_name);
        foreign.insert("conv1.bias".into(), Tensor::ones([16], (Kind::Float, Device::Cpu)));
        refused(&foreign, "unexpected: conv1.bias");
    }

    #[test]
    fn the_second_copy_of_a_block_is_ignored_and_half_precision_is_widened() {
        let original = model("wrn-28-1", 1).tensors();
        let mut foreign = renamed(&original, wide_name);
        for key in foreign.keys().filter(|key| key.starts_with("block1.")).cloned().collect::<Vec<_>>() {
            let copy = foreign[&key].shallow_clone();
            foreign.insert(format!("sub_{key}"), copy);
        }
        assert_eq!(mapped(&foreign).unwrap().tensors, original);
        let half: Tensors =
            foreign.iter().map(|(name, tensor)| (name.clone(), tensor.to_kind(Kind::Half))).collect();
        assert!(mapped(&half).unwrap().tensors.values().all(|tensor| tensor.kind() == Kind::Float));
    }

    fn zeros(shape: &[i64]) -> Tensor {
        Tensor::zeros(shape, (Kind::Float, Device::Cpu))
    }

    #[test]
    fn other_networks_are_refused_with_advice() {
        let resnet = renamed(&model("resnet18-w4", 1).tensors(), torchvision_name);
        let preact = renamed(&model("preactresnet18-w4", 1).tensors(), preact_name);
        let wide = renamed(&model("wrn-28-1", 1).tensors(), wide_name);
        let vgg = renamed(&model("vgg16bn-w4", 1).tensors(), vgg_name);
        let with = |tensors: &Tensors, name: &str, shape: &[i64]| {
            let mut tensors = renamed(tensors, str::to_owned);
            tensors.insert(name.into(), zeros(shape));
            tensors
        };
        refused(&with(&resnet, "conv1.weight", &[64, 3, 7, 7]), "7x7");
        refused(&with(&resnet, "layer1.0.conv3.weight", &[4, 4, 1, 1]), "bottleneck");
        refused(&with(&resnet, "layer2.2.conv1.weight", &[8, 8, 3, 3]), "2, 3, 2, 2 blocks");
        refused(&with(&wide, "block3.layer.4.bn1.weight", &[64]), "4, 4, 5 blocks");
        refused(&with(&wide, "conv1.weight", &[8, 3, 3, 3]), "8 and 16 channels");
        let ends = |tensors: &Tensors, dropped: &str| {
            let mut tensors = renamed(tensors, str::to_owned);
            tensors.retain(|name, _| !name.starts_with(dropped));
            tensors
        };
        refused(&ends(&preact, "bn."), "without a norm behind its last block");
        refused(&ends(&resnet, "fc."), "no last layer named linear or fc");
        refused(&ends(&vgg, "features.1."), "without batch norm");
        refused(&ends(&vgg, "features.40."), "12 convolutions");
        refused(&with(&vgg, "classifier.3.weight", &[5, 5]), "several linear layers");
        refused(
            &with(&vgg, "classifier.weight", &[5, 512]),
            "classifier.weight is [5, 512], expected [5, 32]",
        );
        refused(&Tensors::new(), "no weights");
        let unknown = Tensors::from([("tokens.weight".to_owned(), zeros(&[2]))]);
        refused(&unknown, "tokens.weight; export the model to ONNX or TorchScript");
        let asked = map(&resnet, Some("resnet18-w8".parse().unwrap()), Path::new("net.pt")).unwrap_err();
        assert!(asked.to_string().contains("resnet18-w4, not of the resnet18-w8"), "{asked}");
    }

    #[test]
    fn missing_and_unexpected_names_are_listed_up_to_a_dozen() {
        let mut foreign = renamed(&model("resnet18-w4", 1).tensors(), resnet_name);
        foreign.retain(|name, _| !name.ends_with("running_mean"));
        foreign.insert("extra.a".into(), zeros(&[1]));
        foreign.insert("extra.b".into(), zeros(&[1]));
        foreign.insert("linear.bias".into(), zeros(&[6]));
        let error = mapped(&foreign).unwrap_err().to_string();
        // ResNet-18 has 20 norms
        assert!(error.contains("missing: bn1.running_mean, ") && error.contains(" and 8 more; "), "{error}");
        assert!(error.contains("unexpected: extra.a, extra.b; "), "{error}");
        assert!(error.contains("linear.bias is [6], expected [5]"), "{error}");
        let report = KeyReport { mapped: 2, scheme: "x".into(), ..KeyReport::default() };
        assert_eq!(report.to_string(), "2 tensors named as in x");
    }

    #[test]
    fn shapes_that_no_network_has_are_refused_before_they_are_used() {
        let original = renamed(&model("resnet18-w4", 1).tensors(), resnet_name);
        let cases: [(&[i64], &[i64]); 5] = [
            (&[4096, 3, 3, 3], &[5, 5]),
            (&[4, 0, 3, 3], &[5, 5]),
            (&[4, 3, 3, 3], &[1, 5]),
            (&[4, 3, 3], &[5, 5]),
            (&[4, 3, 3, 3], &[5]),
        ];
        for (stem, head) in cases {
            let mut foreign = renamed(&original, str::to_owned);
            foreign.insert("conv1.weight".into(), zeros(stem));
            foreign.insert("linear.weight".into(), zeros(head));
            refused(&foreign, "");
        }
    }
}
