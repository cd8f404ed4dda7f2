//! Adversarial training beyond cross-entropy on attacked images: what is minimised (TRADES, MART), how TRADES makes its
//! images, and adversarial weight perturbation, which goes with all of them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use talion_core::{Budget, Classifier, Error, Result, gaussian_noise, parse_fraction};
use tch::{Reduction, Tensor};

use super::{Parameters, Perturb, Shown};
use crate::Model;

/// What adversarial training minimises. As text: `madry`, `trades:6`, `mart:5`; as JSON the same text.
///
/// TRADES and MART look at every image twice, as it is and attacked, in two forward passes, the clean one first. Each
/// normalises by its own batch statistics, and both enter the running ones, as in the authors' programs. Gradients flow
/// through both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RobustLoss {
    /// Cross-entropy on the attacked images (Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks",
    /// ICLR 2018, section 2.1).
    #[default]
    Madry,
    /// Cross-entropy on the images as they are, plus so many times the mean divergence `KL(p(x) || p(x'))` of the answers to
    /// attacked ones, which [`DivergenceAscent`] has made (Zhang et al., "Theoretically Principled Trade-off between
    /// Robustness and Accuracy", ICML 2019, equation 5, there with weights of 1 and 6).
    Trades(f64),
    /// Boosted cross-entropy on the attacked images, `-log p_y(x') - log(1 - max_{k != y} p_k(x'))`, plus so many times
    /// the mean of `KL(p(x) || p(x')) (1 - p_y(x))` (Wang et al., "Improving Adversarial Robustness Requires Revisiting
    /// Misclassified Examples", ICLR 2020, equation 11).
    ///
    /// The logarithms are exact; the authors' program adds 0.0001 inside the second one, which bounds it by 9.2.
    Mart(f64),
}

impl RobustLoss {
    const KNOWN: &'static str = "madry, trades:WEIGHT such as trades:6, mart:WEIGHT such as mart:5";

    /// Whether it is the default, which files do not mention.
    pub fn is_madry(&self) -> bool {
        *self == Self::Madry
    }

    /// Whether its weight is a finite number above 0.
    pub fn is_usable(&self) -> bool {
        match self {
            Self::Madry => true,
            Self::Trades(weight) | Self::Mart(weight) => weight.is_finite() && *weight > 0.0,
        }
    }

    /// The loss of a batch, a scalar. `forward` gives the logits `[N, K]` of images; labels are smoothed by `smoothing` in
    /// the cross-entropies with the label.
    pub(super) fn of(self, forward: &dyn Fn(&Tensor) -> Tensor, pair: &Pair<'_>, smoothing: f64) -> Tensor {
        let cross_entropy = |logits: &Tensor| {
            logits.cross_entropy_loss::<Tensor>(pair.labels, None, Reduction::Mean, -100, smoothing)
        };
        match self {
            Self::Madry => cross_entropy(&forward(pair.attacked)),
            Self::Trades(weight) => {
                let (clean, attacked) = (forward(pair.clean), forward(pair.attacked));
                cross_entropy(&clean) + divergence(&clean, &attacked).mean(clean.kind()) * weight
            }
            Self::Mart(weight) => {
                let (clean, attacked) = (forward(pair.clean), forward(pair.attacked));
                let own = clean.softmax(1, None).gather(1, &pair.labels.unsqueeze(1), false).squeeze_dim(1);
                let doubted = (divergence(&clean, &attacked) * (own.ones_like() - own)).mean(clean.kind());
                let rivals = rival_penalty(&attacked, pair.labels).mean(attacked.kind());
                cross_entropy(&attacked) + rivals + doubted * weight
            }
        }
    }
}

impl fmt::Display for RobustLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Madry => f.write_str("madry"),
            Self::Trades(weight) => write!(f, "trades:{weight}"),
            Self::Mart(weight) => write!(f, "mart:{weight}"),
        }
    }
}

impl FromStr for RobustLoss {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, weight) = text.split_once(':').map_or((text, None), |(name, weight)| (name, Some(weight)));
        let (build, example) = match name {
            "madry" if weight.is_none() => return Ok(Self::Madry),
            "trades" => (Self::Trades as fn(f64) -> Self, "trades:6"),
            "mart" => (Self::Mart as fn(f64) -> Self, "mart:5"),
            _ => return Err(Error::Unknown { what: "loss", found: text.into(), known: Self::KNOWN.into() }),
        };
        weight.and_then(|weight| parse_fraction(weight).ok()).map(build).filter(Self::is_usable).ok_or_else(
            || {
                let expected = format!("{name} with the weight of its divergence above 0, such as {example}");
                Error::range("the loss", expected, text)
            },
        )
    }
}

impl TryFrom<String> for RobustLoss {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<RobustLoss> for String {
    fn from(loss: RobustLoss) -> Self {
        loss.to_string()
    }
}

/// The images of a training step before and after the attack.
pub(super) struct Pair<'a> {
    /// `[N, C, H, W]` in `[0, 1]`.
    pub(super) clean: &'a Tensor,
    /// The same images attacked; without an attack the same tensor.
    pub(super) attacked: &'a Tensor,
    /// `[N]`, `i64`.
    pub(super) labels: &'a Tensor,
}

/// `KL(p || q)` of each row, `[N]`, where `p` and `q` are what these logits say, `[N, K]` each.
fn divergence(p: &Tensor, q: &Tensor) -> Tensor {
    let (p, q) = (p.log_softmax(1, None), q.log_softmax(1, None));
    (p.exp() * (p - q)).sum_dim_intlist([1].as_slice(), false, None)
}

/// `-log(1 - max_{k != y} p_k)` of each row, `[N]`, for logits `[N, K]`: the second part of the boosted cross-entropy.
///
/// `1 - p_k` is the sum of all other probabilities. As the sum that it is, its logarithm stays finite where the rival's
/// probability rounds to 1.
fn rival_penalty(logits: &Tensor, labels: &Tensor) -> Tensor {
    let others = logits.detach().scatter_value(1, &labels.unsqueeze(1), f64::NEG_INFINITY);
    let rival = others.argmax(1, true);
    let without_rival = logits.scatter_value(1, &rival, f64::NEG_INFINITY);
    logits.logsumexp([1].as_slice(), false) - without_rival.logsumexp([1].as_slice(), false)
}

/// What carries adversarial training out.
#[derive(Clone, Copy)]
pub struct Adversary<'a> {
    /// Attacks training images, and always the validation images that figures come from, so that figures of different losses
    /// can be compared.
    pub perturb: &'a Perturb<'a>,
    /// What attacks training images instead; with [`RobustLoss::Trades`] and only then.
    pub ascent: Option<DivergenceAscent>,
}

impl Adversary<'_> {
    /// Checks that it can train with this loss.
    ///
    /// # Errors
    /// If the ascent is missing or superfluous.
    pub(super) fn check(&self, loss: RobustLoss) -> Result<()> {
        match (loss, self.ascent) {
            (RobustLoss::Trades(_), None) => {
                Err(Error::Refused("TRADES needs the ascent that makes its training images".into()))
            }
            (RobustLoss::Madry | RobustLoss::Mart(_), Some(_)) => Err(Error::Refused(format!(
                "the ascent of a divergence is for TRADES; the loss {loss} trains on its attack's images"
            ))),
            _ => Ok(()),
        }
    }

    /// Attacked training images on the model as it is now, with its running statistics.
    pub(super) fn training_images(&self, model: &Model, shown: &Shown<'_>) -> Result<Tensor> {
        match &self.ascent {
            Some(ascent) => Ok(ascent.perturb(model, shown)),
            None => (self.perturb)(model, shown),
        }
    }
}

/// How TRADES makes its training images: projected steps that climb the divergence of the answers, from a point close to the
/// image, where alone that divergence has no slope.
///
/// # Source
/// Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019, algorithm 1, there with 10
/// steps of 2/255 in `Linf` 8/255 (0.007 and 0.031). For other norms than `Linf` the sign becomes
/// [`Budget::steepest`]. As in the authors' program the network answers with its running statistics meanwhile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DivergenceAscent {
    budget: Budget,
    steps: u32,
    step: f64,
}

/// Standard deviation of the noise that the ascent starts with.
const START: f64 = 0.001;

impl DivergenceAscent {
    /// So many steps of size `step` in units of the `[0, 1]` image scale; `None` is `2.5 * epsilon / steps`, as for PGD.
    ///
    /// # Errors
    /// If there are no steps, or their size is negative or not finite.
    pub fn new(budget: Budget, steps: u32, step: Option<f64>) -> Result<Self> {
        if steps == 0 {
            return Err(Error::range("the number of steps", "at least 1", steps));
        }
        let step = step.unwrap_or(2.5 * budget.epsilon() / f64::from(steps));
        if !step.is_finite() || step < 0.0 {
            return Err(Error::range("the step size", "a finite number, at least 0", step));
        }
        Ok(Self { budget, steps, step })
    }

    /// Images inside the budget on which the classifier answers otherwise than on those that are shown, whatever their labels.
    ///
    /// # Shapes
    /// As [`Shown::images`]; without gradient history. Each row's noise comes from its sample's own stream.
    pub fn perturb(&self, classifier: &dyn Classifier, shown: &Shown<'_>) -> Tensor {
        let original = shown.images.detach();
        let clean = tch::no_grad(|| classifier.logits(&original)).detach();
        let mut iterate = self.budget.project(&original, &(&original + start_noise(&original, shown)));
        for _ in 0..self.steps {
            let found = classifier.loss_gradient(&iterate, &|logits| divergence(&clean, logits));
            // NaN would spread over the whole image
            let gradient = found.gradient.to_kind(original.kind()).nan_to_num(0.0, None, None);
            let moved = &iterate + self.budget.steepest(&gradient) * self.step;
            iterate = self.budget.project(&original, &moved);
        }
        iterate
    }
}

/// Normal draws like `images`, other ones each epoch.
fn start_noise(images: &Tensor, shown: &Shown<'_>) -> Tensor {
    let noise = gaussian_noise(&images.size()[1..], shown.ids, shown.seed, "trades", shown.epoch) * START;
    noise.to_device(images.device()).to_kind(images.kind())
}

/// The gradient of `loss` where the weights have been moved against the training: along `gradient`, the one at the weights as
/// they are, `gamma` times as far as each weight tensor is long ([`Parameters::relative`]). Weights and running statistics
/// are afterwards what they were before.
///
/// # Source
/// Wu et al., "Adversarial Weight Perturbation Helps Robust Generalization", NeurIPS 2020, algorithm 1 with one step from the
/// current weights and the same images. Two things differ from the authors' program, which steps from the moved weights and
/// takes the move back afterwards: weight decay sees the weights as they are here, and so do the running statistics,
/// which belong to the weights that are kept.
pub(super) fn gradient_at_perturbed(
    parameters: &mut Parameters,
    gradient: &Tensor,
    gamma: f64,
    loss: impl FnOnce() -> Tensor,
) -> Tensor {
    let weights = parameters.flat().copy();
    let statistics: Vec<(Tensor, Tensor)> =
        parameters.buffers().values().map(|buffer| (buffer.shallow_clone(), buffer.copy())).collect();
    let moved = tch::no_grad(|| &weights + parameters.relative(gradient) * gamma);
    parameters.assign(&moved);
    let gradient = parameters.gradient(&loss());
    parameters.assign(&weights);
    tch::no_grad(|| {
        for (mut buffer, before) in statistics {
            buffer.copy_(&before);
        }
    });
    gradient
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use talion_data::{Augmentation, Dataset, fashion_mnist_sample};
    use tch::{Device, Kind, nn};

    use super::*;
    use crate::training::{
        ClassifierTraining, Optimizer, Precision, train_classifier_against, train_robust_classifier,
    };

    /// Logits of these probabilities, `[N, K]`.
    fn logits<const N: usize, const K: usize>(rows: [[f64; K]; N]) -> Tensor {
        Tensor::from_slice(rows.as_flattened()).reshape([N as i64, K as i64]).log()
    }

    /// The loss of logits that are given instead of images.
    fn loss_of(loss: RobustLoss, clean: &Tensor, attacked: &Tensor, labels: &[i64]) -> f64 {
        let labels = Tensor::from_slice(labels);
        let pair = Pair { clean, attacked, labels: &labels };
        loss.of(&Tensor::shallow_clone, &pair, 0.0).double_value(&[])
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found}, expected {expected}");
    }

    #[test]
    fn losses_have_the_values_found_by_hand() {
        let (clean, attacked) = (logits([[0.5, 0.5]]), logits([[0.75, 0.25]]));
        // -ln 0.75 on the attacked image alone
        close(loss_of(RobustLoss::Madry, &clean, &attacked, &[0]), 0.287_682_072_452);
        // ln 2, plus 6 times half of ln(4/3)
        close(loss_of(RobustLoss::Trades(6.0), &clean, &attacked, &[0]), 1.556_193_397_916);
        let (clean, attacked) = (logits([[0.6, 0.3, 0.1]]), logits([[0.5, 0.3, 0.2]]));
        let divergence = 0.6 * 1.2_f64.ln() + 0.1 * 0.5_f64.ln();
        // a rival in front, and none: the label's own logarithm, and that of all but the rival
        let behind = 5.0 * divergence * 0.7 - 0.3_f64.ln() - 0.5_f64.ln();
        close(loss_of(RobustLoss::Mart(5.0), &clean, &attacked, &[1]), behind);
        let ahead = 5.0 * divergence * 0.4 - 0.5_f64.ln() - 0.7_f64.ln();
        close(loss_of(RobustLoss::Mart(5.0), &clean, &attacked, &[0]), ahead);
        let twice = |rows: &Tensor| Tensor::cat(&[rows, rows], 0);
        let both = loss_of(RobustLoss::Mart(5.0), &twice(&clean), &twice(&attacked), &[1, 0]);
        close(both, (behind + ahead) / 2.0);
    }

    #[test]
    fn equal_answers_do_not_diverge_and_others_do() {
        let (one, other) = (logits([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]), logits([[0.2, 0.7, 0.1]]));
        assert_eq!(Vec::<f64>::try_from(divergence(&one, &one)).unwrap(), [0.0, 0.0]);
        // only differences of logits count
        assert!(divergence(&one, &(&one + 3.0)).abs().max().double_value(&[]) < 1e-12);
        assert!(divergence(&one, &other).min().double_value(&[]) > 0.1);
    }

    #[test]
    fn a_certain_rival_costs_a_finite_loss_with_a_slope() {
        let logits = Tensor::from_slice(&[200.0_f32, 0.0, -5.0]).reshape([1, 3]).set_requires_grad(true);
        let penalty = rival_penalty(&logits, &Tensor::from_slice(&[1_i64]));
        let expected = 200.0 - (1.0 + (-5.0_f64).exp()).ln();
        assert!((penalty.double_value(&[0]) - expected).abs() < 1e-3);
        let slope = Tensor::run_backward(&[penalty.sum(Kind::Float)], &[&logits], false, false).remove(0);
        let slope = Vec::<f32>::try_from(slope.flatten(0, -1)).unwrap();
        assert!((slope[0] - 1.0).abs() < 1e-5 && (slope[1] + 1.0).abs() < 0.01, "{slope:?}");
    }

    /// Two classes whose logits are 0 and a weighted sum of the pixels.
    struct Linear(Vec<f32>);

    impl Classifier for Linear {
        fn classes(&self) -> i64 {
            2
        }

        fn logits(&self, images: &Tensor) -> Tensor {
            let sum = images.flatten(1, -1).matmul(&Tensor::from_slice(&self.0).unsqueeze(1));
            Tensor::cat(&[&sum.zeros_like(), &sum], 1)
        }
    }

    #[test]
    fn the_ascent_ends_in_a_corner_of_the_ball_whatever_the_batch() {
        let weights = (0..16).map(|at| if at % 3 == 0 { -1.5 } else { 0.5 + 0.1 * at as f32 });
        let classifier = Linear(weights.collect());
        let ids: Vec<u64> = (10..18).collect();
        let images = talion_core::uniform_noise(&[1, 4, 4], &ids, 1, "images", 0) * 0.2 + 0.5;
        let labels = Tensor::zeros([8], (Kind::Int64, Device::Cpu));
        let shown = Shown { images: &images, labels: &labels, ids: &ids, seed: 3, epoch: 2 };
        let budget = Budget::linf_levels(20.0).unwrap();
        let attacked = DivergenceAscent::new(budget, 10, None).unwrap().perturb(&classifier, &shown);
        assert!(bool::try_from(budget.contains(&images, &attacked).all()).unwrap());
        // along the weights or against them, depending on where the noise has begun
        let signs = Tensor::from_slice(&classifier.0).sign().reshape([1, 1, 4, 4]);
        let way = (&attacked - &images) * signs / budget.epsilon();
        let first = way.flatten(1, -1).narrow(1, 0, 1).sign().reshape([8, 1, 1, 1]);
        assert!((way - first).abs().max().double_value(&[]) < 1e-4);
        let clean = classifier.logits(&images);
        let near = divergence(&clean, &classifier.logits(&(&images + start_noise(&images, &shown))));
        let far = divergence(&clean, &classifier.logits(&attacked));
        assert!(far.min().double_value(&[]) > 100.0 * near.max().double_value(&[]));
        let shown = Shown { images: &images.narrow(0, 5, 1), ids: &ids[5..6], ..shown };
        let alone = DivergenceAscent::new(budget, 10, None).unwrap().perturb(&classifier, &shown);
        assert_eq!(alone, attacked.narrow(0, 5, 1));
    }

    #[test]
    fn an_ascent_without_steps_or_size_is_refused() {
        let budget = Budget::linf_levels(8.0).unwrap();
        assert!(DivergenceAscent::new(budget, 0, None).is_err());
        assert!(DivergenceAscent::new(budget, 5, Some(-0.1)).is_err());
        assert!(DivergenceAscent::new(budget, 5, Some(f64::NAN)).is_err());
        let usual = DivergenceAscent::new(budget, 5, None).unwrap();
        assert!((usual.step - 4.0 / 255.0).abs() < 1e-12);
    }

    #[test]
    fn weights_are_moved_by_their_share_and_come_back() {
        let store = nn::VarStore::new(Device::Cpu);
        let path = store.root();
        let first = path.var("first", &[3, 2], nn::Init::Const(2.0));
        let bias = path.var("bias", &[3], nn::Init::Const(1.0));
        let second = path.var("second", &[2, 2, 1, 1], nn::Init::Const(-0.5));
        let running = path.zeros_no_train("running", &[3]);
        let mut parameters = Parameters::new(&store);
        // each tensor has another slope, and none is at its minimum
        let loss = || {
            let _ = tch::no_grad(|| running.shallow_clone().fill_(7.0));
            let sum = |tensor: &Tensor| tensor.square().sum(Kind::Float);
            sum(&first) + sum(&bias) * 3.0 + sum(&second) * 5.0
        };
        let gradient = parameters.gradient(&loss());
        let _ = tch::no_grad(|| running.shallow_clone().fill_(4.0));
        let before = parameters.flat().copy();
        let mut seen = Vec::new();
        let moved = gradient_at_perturbed(&mut parameters, &gradient, 0.01, || {
            seen.extend([&first, &bias, &second].map(|tensor| tensor.detach().copy()));
            loss()
        });
        assert_eq!(*parameters.flat(), before, "weights are restored");
        assert_eq!(running.double_value(&[0]), 4.0, "running statistics are restored");
        // along a gradient that points away from zero: each weight is 1 % larger
        let ratio = |now: &Tensor, was: f64| (now / was - 1.01).abs().max().double_value(&[]);
        assert!(ratio(&seen[0], 2.0) < 1e-6 && ratio(&seen[2], -0.5) < 1e-6);
        assert_eq!(seen[1], bias.detach(), "vectors stay");
        // in the order of names, with the slopes of the moved weights
        let slopes = [&seen[1] * 6.0, seen[0].flatten(0, -1) * 2.0, seen[2].flatten(0, -1) * 10.0];
        let expected = Tensor::cat(&slopes, 0);
        assert!((moved - expected).abs().max().double_value(&[]) < 1e-5);
        let mut optimizer = Optimizer::sgd(&parameters, 0.0, 0.0);
        optimizer.step(&mut parameters, &gradient, 0.1, 0);
        let stepped = before - &gradient * 0.1;
        assert!((parameters.flat() - stepped).abs().max().double_value(&[]) < 1e-6);
    }

    #[test]
    fn a_zero_gradient_moves_nothing() {
        let store = nn::VarStore::new(Device::Cpu);
        let weight = store.root().var("weight", &[3, 2], nn::Init::Const(2.0));
        let mut parameters = Parameters::new(&store);
        let zero = parameters.flat().zeros_like();
        let loss = || weight.square().sum(Kind::Float);
        let gradient = gradient_at_perturbed(&mut parameters, &zero, 0.01, loss);
        assert_eq!(gradient, Tensor::full([6], 4.0, (Kind::Float, Device::Cpu)));
    }

    #[test]
    fn texts_round_trip_and_say_what_is_missing() {
        for text in ["madry", "trades:6", "mart:5", "trades:0.25"] {
            assert_eq!(text.parse::<RobustLoss>().unwrap().to_string(), text);
        }
        assert_eq!("trades:1/3".parse::<RobustLoss>().unwrap(), RobustLoss::Trades(1.0 / 3.0));
        let third = RobustLoss::Mart(1.0 / 3.0);
        assert_eq!(third.to_string().parse::<RobustLoss>().unwrap(), third);
        for wrong in ["trades", "trades:", "trades:0", "trades:-1", "trades:nan", "trades:6:1"] {
            let error = wrong.parse::<RobustLoss>().unwrap_err().to_string();
            assert!(error.contains("such as trades:6"), "{error}");
        }
        for wrong in ["", "TRADES:6", "madry:1", "kl"] {
            let error = wrong.parse::<RobustLoss>().unwrap_err().to_string();
            assert!(error.contains("mart:WEIGHT"), "{error}");
        }
    }

    const OLD: &str = r#"{"adversarial":"pgd-5:step=0.03 at Linf 0.1","architecture":"cnn-small-w16",
        "augmentation":{"cutout":0,"flip":false,"pad":1},"average":null,"batch_size":128,"epochs":4,"label_smoothing":0.0,
        "momentum":0.9,"peak_rate":0.1,"precision":"auto","seed":1,"smallest":1.0,"validation":2000,"warmup":0.25,
        "weight_decay":0.0005}"#;

    #[test]
    fn old_files_are_read_and_new_ones_say_no_more_than_they_need() {
        let old: ClassifierTraining = serde_json::from_str(OLD).unwrap();
        assert_eq!((old.loss, old.awp), (RobustLoss::Madry, None));
        let value: serde_json::Value = serde_json::from_str(OLD).unwrap();
        assert_eq!(serde_json::to_value(&old).unwrap(), value);
        let new = ClassifierTraining { loss: RobustLoss::Trades(6.0), awp: Some(0.005), ..old };
        let value = serde_json::to_value(&new).unwrap();
        assert_eq!(value["loss"], "trades:6");
        assert_eq!(value["awp"], 0.005_f64);
        assert_eq!(serde_json::from_value::<ClassifierTraining>(value).unwrap(), new);
    }

    #[test]
    fn what_cannot_be_trained_is_refused() {
        let against = ClassifierTraining { adversarial: Some("pgd".into()), ..ClassifierTraining::default() };
        let plain = ClassifierTraining::default();
        assert!(plain.validate().is_ok() && against.validate().is_ok());
        let mart = RobustLoss::Mart(5.0);
        assert!(ClassifierTraining { loss: mart, awp: Some(0.01), ..against.clone() }.validate().is_ok());
        for wrong in [
            ClassifierTraining { loss: mart, ..plain.clone() },
            ClassifierTraining { awp: Some(0.005), ..plain.clone() },
            ClassifierTraining { loss: RobustLoss::Trades(-1.0), ..against.clone() },
            ClassifierTraining { loss: RobustLoss::Mart(f64::NAN), ..against.clone() },
            ClassifierTraining { awp: Some(0.0), ..against.clone() },
            ClassifierTraining { awp: Some(1.0), ..against.clone() },
            ClassifierTraining { awp: Some(f64::NAN), ..against.clone() },
        ] {
            assert!(wrong.validate().is_err(), "{wrong:?}");
        }
    }

    fn few_images() -> Dataset {
        fashion_mnist_sample().unwrap().subset(&(0..96).collect::<Vec<_>>()).unwrap()
    }

    /// The weights after two steps of a small network with batch norm; the attack adds a constant.
    fn trained(loss: RobustLoss, awp: Option<f64>) -> talion_core::Tensors {
        let config = ClassifierTraining {
            architecture: "resnet18-w4".parse().unwrap(),
            epochs: 1,
            batch_size: 32,
            augmentation: Augmentation { pad: 1, flip: false, cutout: 0 },
            adversarial: Some("a constant".into()),
            loss,
            awp,
            precision: Precision::F32,
            validation: 32,
            ..ClassifierTraining::default()
        };
        let perturb =
            |_: &Model, shown: &Shown<'_>| -> Result<Tensor> { Ok((shown.images + 0.05).clamp(0.0, 1.0)) };
        let ascent = DivergenceAscent::new(Budget::linf_levels(8.0).unwrap(), 1, None).unwrap();
        let ascent = matches!(loss, RobustLoss::Trades(_)).then_some(ascent);
        let adversary = Adversary { perturb: &perturb, ascent };
        let model =
            train_robust_classifier(Some(&adversary), &config, &few_images(), Device::Cpu, None, &mut |_| {
                ControlFlow::Continue(())
            });
        model.unwrap().tensors()
    }

    #[test]
    fn every_loss_trains_a_network_of_its_own() {
        let all = [
            trained(RobustLoss::Madry, None),
            trained(RobustLoss::Madry, Some(0.01)),
            trained(RobustLoss::Trades(6.0), None),
            trained(RobustLoss::Mart(5.0), None),
        ];
        for (at, tensors) in all.iter().enumerate() {
            assert!(tensors.values().all(|tensor| bool::try_from(tensor.isfinite().all()).unwrap()));
            assert!(all[..at].iter().all(|other| other != tensors), "number {at}");
        }
    }

    #[test]
    fn the_ascent_comes_with_trades_alone() {
        let perturb = |_: &Model, shown: &Shown<'_>| -> Result<Tensor> { Ok(shown.images.shallow_clone()) };
        let config = ClassifierTraining {
            adversarial: Some("nothing".into()),
            loss: RobustLoss::Trades(6.0),
            ..ClassifierTraining::default()
        };
        let result =
            train_classifier_against(Some(&perturb), &config, &few_images(), Device::Cpu, None, &mut |_| {
                panic!("work was done")
            });
        assert!(result.err().unwrap().to_string().contains("TRADES needs the ascent"));
        let ascent = Some(DivergenceAscent::new(Budget::linf_levels(8.0).unwrap(), 1, None).unwrap());
        let adversary = Adversary { perturb: &perturb, ascent };
        assert!(adversary.check(RobustLoss::Trades(6.0)).is_ok());
        assert!(adversary.check(RobustLoss::Mart(5.0)).is_err());
    }
}
