//! Small classifiers built by hand, and the checks that an attack has to pass.

// each test file uses a part of these
#![allow(dead_code)]

use std::ops::ControlFlow;

use talion_attacks::{Attack, Batch, Outcome, RunOptions, run};
use talion_core::{Budget, Classifier, Norm, Objective, Result, gaussian_noise, uniform_noise};
use tch::{Kind, Tensor};

/// Logits that are linear in the image: `weight` is `[K, C*H*W]`.
pub struct Linear {
    pub weight: Tensor,
}

impl Linear {
    pub fn random(classes: i64, row: &[i64], scale: f64, seed: u64) -> Self {
        let values = row.iter().product();
        let ids: Vec<u64> = (0..classes as u64).collect();
        Self { weight: gaussian_noise(&[values], &ids, seed, "linear", 0) * scale }
    }
}

impl Classifier for Linear {
    fn classes(&self) -> i64 {
        self.weight.size()[0]
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        (images - 0.5).flatten(1, -1).matmul(&self.weight.tr())
    }
}

/// Two 3x3 convolutions, an average and a linear layer, less its logits at one image of noise: without that, all images
/// of noise would be of one class.
pub struct ConvNet {
    first: Tensor,
    second: Tensor,
    head: Tensor,
    offset: Tensor,
}

impl ConvNet {
    pub fn random(classes: i64, channels: i64, scale: f64, seed: u64) -> Self {
        // Tensors so small gain nothing from threads, and lose much where the tests themselves take all cores.
        tch::set_num_threads(1);
        let weight = |rows: u64, row: &[i64], name| {
            let fan_in = row.iter().product::<i64>() as f64;
            gaussian_noise(row, &(0..rows).collect::<Vec<_>>(), seed, name, 0) * (2.0 / fan_in).sqrt()
        };
        let mut net = Self {
            first: weight(16, &[channels, 3, 3], "first"),
            second: weight(24, &[16, 3, 3], "second"),
            head: weight(classes as u64, &[24], "head") * scale,
            offset: Tensor::zeros([1, classes], (Kind::Float, tch::Device::Cpu)),
        };
        net.offset = net.logits(&((uniform_noise(&[channels, 9, 9], &[0], seed, "offset", 0) + 1.0) / 2.0));
        net
    }
}

impl Classifier for ConvNet {
    fn classes(&self) -> i64 {
        self.head.size()[0]
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        let convolve = |x: &Tensor, weight: &Tensor, stride: i64| {
            x.conv2d(weight, None::<&Tensor>, [stride, stride], [1, 1], [1, 1], 1).relu()
        };
        let hidden = convolve(&convolve(&((images - 0.5) * 4.0), &self.first, 1), &self.second, 2);
        hidden.mean_dim([2_i64, 3].as_slice(), false, Kind::Float).matmul(&self.head.tr()) - &self.offset
    }
}

/// Samples with what surrounds them.
pub struct Samples {
    pub images: Tensor,
    pub labels: Tensor,
    pub ids: Vec<u64>,
}

impl Samples {
    /// Images with `inset` between every value and the ends of the box; a negative inset puts many values on the ends.
    pub fn random(count: u64, row: &[i64], classes: i64, inset: f64, seed: u64) -> Self {
        let ids: Vec<u64> = (0..count).map(|place| 1000 + 3 * place).collect();
        let noise = uniform_noise(row, &ids, seed, "images", 0);
        let labels: Vec<i64> =
            (0..count as i64).map(|place| (place + seed as i64 % 97).rem_euclid(classes)).collect();
        Self {
            images: (noise * (0.5 - inset) + 0.5).clamp(0.0, 1.0),
            labels: Tensor::from_slice(&labels),
            ids,
        }
    }

    pub fn batch(&self, budget: Budget, objective: Objective) -> Batch<'_> {
        let (images, labels, ids) = (&self.images, &self.labels, self.ids.as_slice());
        Batch { images, labels, ids, budget, objective, seed: 7, restart: 0 }
    }

    /// The samples at `places`, in that order.
    pub fn pick(&self, places: &[usize]) -> Self {
        let rows = Tensor::from_slice(&places.iter().map(|&place| place as i64).collect::<Vec<_>>());
        Self {
            images: self.images.index_select(0, &rows),
            labels: self.labels.index_select(0, &rows),
            ids: places.iter().map(|&place| self.ids[place]).collect(),
        }
    }
}

pub fn budget(norm: Norm, epsilon: f64) -> Budget {
    Budget::new(norm, epsilon).unwrap()
}

pub fn run_all(
    attack: &dyn Attack,
    classifier: &dyn Classifier,
    batch: &Batch<'_>,
    until_fooled: bool,
) -> Result<Outcome> {
    run(attack, classifier, batch, &RunOptions { until_fooled }, &mut |_| ControlFlow::Continue(()))
}

/// A check says what it found wrong.
pub type Check = std::result::Result<(), String>;

fn ensure(holds: bool, problem: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(problem()) }
}

/// The adversarial images lie inside ball and box; NaN lies in neither.
pub fn check_budget(attack: &dyn Attack, classifier: &dyn Classifier, batch: &Batch<'_>) -> Check {
    let adversarial = attack.perturb(classifier, batch).map_err(|error| error.to_string())?;
    ensure(adversarial.size() == batch.images.size(), || format!("shape {:?}", adversarial.size()))?;
    ensure(adversarial.kind() == batch.images.kind(), || format!("type {:?}", adversarial.kind()))?;
    ensure(!adversarial.requires_grad(), || "it carries gradient history".into())?;
    let inside = batch.budget.contains(batch.images, &adversarial);
    ensure(bool::try_from(inside.all()).unwrap(), || {
        format!("distances {} of {}", batch.budget.distance(batch.images, &adversarial), batch.budget)
    })
}

/// On a linear classifier of two classes the worst image is known in closed form, and the attack finds it.
///
/// A random start on the `L2` ball leaves an angle: small steps of total length 2.5 epsilon turn a start at the angle `a`
/// from the gradient to the angle `b` with `tan(b / 2) = exp(-2.5) tan(a / 2)`, so 90 degrees become 9.4 and 120 become 16.
/// `tolerance` is a share of epsilon.
pub fn check_optimum(attack: &dyn Attack, norm: Norm, tolerance: f64) -> Check {
    let row = [2, 3, 4];
    // for Linf the box cuts many of the optima, for L2 it must not
    let inset = if norm == Norm::Linf { -0.1 } else { 0.25 };
    for seed in 0..3 {
        let classifier = Linear::random(2, &row, 0.3, seed);
        let samples = Samples::random(6, &row, 2, inset, seed);
        let batch = samples.batch(budget(norm, 0.2), Objective::CrossEntropy);
        let own = classifier.weight.index_select(0, &samples.labels);
        let ascent =
            (classifier.weight.index_select(0, &(1 - &samples.labels)) - own).reshape_as(batch.images);
        let change = match norm {
            Norm::Linf => ascent.sign(),
            _ => &ascent / ascent.norm_scalaropt_dim(2.0, [1_i64, 2, 3].as_slice(), true),
        };
        let optimum = (batch.images + change * 0.2).clamp(0.0, 1.0);
        let adversarial = attack.perturb(&classifier, &batch).map_err(|error| error.to_string())?;
        let off = batch.budget.distance(&optimum, &adversarial).max().double_value(&[]);
        // written so that NaN fails
        ensure(off <= tolerance * 0.2 + 1e-5, || format!("{off} from the optimum"))?;
    }
    Ok(())
}

/// Order, shards, and the neighbours that come and go change no bit of any sample's result.
pub fn check_independence(attack: &dyn Attack, norm: Norm, epsilon: f64) -> Check {
    let classifier = ConvNet::random(5, 3, 8.0, 3);
    let samples = Samples::random(40, &[3, 9, 9], 5, -0.05, 4);
    // half of the samples are classified right at first, so that some leave early and others stay
    let predicted = classifier.predict(&samples.images);
    let half = Tensor::arange(40, (Kind::Int64, tch::Device::Cpu)).remainder(2).to_kind(Kind::Bool);
    let samples = Samples { labels: predicted.where_self(&half, &samples.labels), ..samples };
    for until_fooled in [false, true] {
        let attacked = |samples: &Samples| {
            let batch = samples.batch(budget(norm, epsilon), Objective::CrossEntropy);
            run_all(attack, &classifier, &batch, until_fooled).map_err(|error| error.to_string())
        };
        let whole = attacked(&samples)?;
        let order = talion_core::shuffled(40, 1, "order", 0);
        for places in [order.as_slice(), &order[..25], &order[25..], &order[5..6]] {
            let outcome = attacked(&samples.pick(places))?;
            let rows = Tensor::from_slice(&places.iter().map(|&place| place as i64).collect::<Vec<_>>());
            let equal = outcome.adversarial == whole.adversarial.index_select(0, &rows)
                && outcome.predicted == whole.predicted.index_select(0, &rows)
                && outcome.success == whole.success.index_select(0, &rows)
                && outcome.loss == whole.loss.index_select(0, &rows);
            ensure(equal, || format!("{} samples differ (until fooled: {until_fooled})", places.len()))?;
        }
    }
    Ok(())
}
