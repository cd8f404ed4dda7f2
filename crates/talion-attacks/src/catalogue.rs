//! All kinds of attack that have a name: what they see, what they can be measured in, where they come from.

use std::sync::Arc;

use serde::Serialize;
use talion_core::Norm;

use crate::{
    Apgd, ApgdLoss, Attack, Bim, Cw, Ddn, DeepFool, DiFgsm, Ead, EotPgd, Fab, Fgsm, Fmn, HopSkipJump, Jsma,
    Mim, NiFgsm, Noise, Pgd, SiNiFgsm, Spsa, Square, TiFgsm, VmiFgsm, spec::Settings,
};

/// What an attack sees of the classifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sees {
    /// Nothing: a control.
    Nothing,
    /// Gradients.
    Gradients,
    /// Logits, no gradients.
    Scores,
    /// The predicted class alone.
    Classes,
}

/// What an attack is after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seeks {
    /// An error within the budget.
    Error,
    /// An error within the budget that other classifiers make, too.
    Transfer,
    /// The smallest change that makes an error; it counts if it lies within the budget.
    SmallestChange,
}

type Build = fn(&mut Settings<'_>) -> Option<Arc<dyn Attack + Send + Sync>>;

/// One kind of attack.
#[derive(Serialize)]
pub struct Entry {
    /// What its names begin with.
    pub kind: &'static str,
    /// What it is called.
    pub title: &'static str,
    /// The norms it is defined for.
    pub norms: &'static [Norm],
    /// What it sees.
    pub sees: Sees,
    /// What it is after.
    pub seeks: Seeks,
    /// Whether it can aim at a class that the attacker chose ([`talion_core::Objective::TargetedCrossEntropy`]).
    pub targeted: bool,
    /// The paper.
    pub paper: &'static str,
    #[serde(skip)]
    pub(crate) build: Build,
}

const ALL: &[Norm] = &Norm::ALL;
const BALLS: &[Norm] = &[Norm::Linf, Norm::L2, Norm::L1];
const COMMON: &[Norm] = &[Norm::Linf, Norm::L2];

/// Every kind of attack, in the order of `talion attacks`.
pub const CATALOGUE: &[Entry] = &[
    Entry {
        kind: "fgsm",
        title: "Fast Gradient Sign Method (Fast Gradient Method in L2)",
        norms: ALL,
        sees: Sees::Gradients,
        seeks: Seeks::Error,
        targeted: true,
        paper: "Goodfellow et al., ICLR 2015",
        build: |_| Some(Arc::new(Fgsm {})),
    },
    Entry {
        kind: "bim",
        title: "Basic Iterative Method",
        norms: ALL,
        sees: Sees::Gradients,
        seeks: Seeks::Error,
        targeted: true,
        paper: "Kurakin et al., ICLR workshop 2017",
        build: |name| {
            Some(Arc::new(Bim { steps: name.steps(Bim::default().steps), step: name.number("step") }))
        },
    },
    Entry {
        kind: "pgd",
        title: "Projected Gradient Descent",
        norms: ALL,
        sees: Sees::Gradients,
        seeks: Seeks::Error,
        targeted: true,
        paper: "Madry et al., ICLR 2018",
        build: |name| {
            let usual = Pgd::default();
            Some(Arc::new(Pgd {
                steps: name.steps(usual.steps),
                restarts: name.restarts(usual.restarts),
                step: name.number("step"),
            }))
        },
    },
    Entry {
        kind: "eot-pgd",
        title: "PGD on the mean of several gradients, for randomised classifiers",
        norms: ALL,
        sees: Sees::Gradients,
        seeks: Seeks::Error,
        targeted: true,
        paper: "Athalye et al., ICML 2018; Lee and Kim, ICCV 2023",
        build: |name| {
            let usual = EotPgd::default();
            Some(Arc::new(EotPgd {
                steps: name.steps(usual.steps),
                restarts: name.restarts(usual.restarts),
                draws: name.count("draws", usual.draws),
                step: name.number("step"),
            }))
        },
    },
    Entry {
        kind: "mim",
        title: "Momentum Iterative Method (MI-FGSM)",
        norms: ALL,
        sees: Sees::Gradients,
        seeks: Seeks::Transfer,
        targeted: true,
        paper: "Dong et al., CVPR 2018",
        build: |name| {
            let usual = Mim::default();
            Some(Arc::new(Mim {
                steps: name.steps(usual.steps),
                decay: name.number("decay").unwrap_or(usual.decay),
                step: name.number("step"),
            }))
        },
    },
    Entry {
        kind: "ni-fgsm",
        title: "Nesterov Iterative FGSM",
        norms: ALL,
        sees: Sees::Gradients,
        seeks: Seeks::Transfer,
        targeted: true,
        paper: "Lin et al., ICLR 2020",
        build: |name| {
            let usual = NiFgsm::default();
            Some(Arc::new(NiFgsm {
                steps: name.steps(usual.steps),
                decay: name.number("decay").unwrap_or(usual.decay),
                step: name.number("step"),
            }))
        },
    },
    Entry {
        kind: "si-ni-fgsm",
        title: "Scale-Invariant Nesterov Iterative FGSM",
        norms: ALL,
        sees: Sees::Gradients,
        seeks: Seeks::Transfer,
        targeted: true,
        paper: "Lin et al., ICLR 2020",
        build: |name| {
            let usual = SiNiFgsm::default();
            Some(Arc::new(SiNiFgsm {
                steps: name.steps(usual.steps),
                copies: name.count("copies", usual.copies),
                decay: name.number("decay").unwrap_or(usual.decay),
                step: name.number("step"),
            }))
        },
    },
    Entry {
        kind: "di-fgsm",
        title: "Diverse Inputs Iterative FGSM",
        norms: ALL,
        sees: Sees::Gradients,
        seeks: Seeks::Transfer,
        targeted: true,
        paper: "Xie et al., CVPR 2019",
        build: |name| {
            let usual = DiFgsm::default();
            Some(Arc::new(DiFgsm {
                steps: name.steps(usual.steps),
                probability: name.number("probability").unwrap_or(usual.probability),
                smallest: name.number("smallest").unwrap_or(usual.smallest),
                decay: name.number("decay").unwrap_or(usual.decay),
                step: name.number("step"),
            }))
        },
    },
    Entry {
        kind: "ti-fgsm",
        title: "Translation-Invariant Iterative FGSM",
        norms: ALL,
        sees: Sees::Gradients,
        seeks: Seeks::Transfer,
        targeted: true,
        paper: "Dong et al., CVPR 2019",
        build: |name| {
            let usual = TiFgsm::default();
            Some(Arc::new(TiFgsm {
                steps: name.steps(usual.steps),
                kernel: name.count("kernel", usual.kernel),
                decay: name.number("decay").unwrap_or(usual.decay),
                step: name.number("step"),
            }))
        },
    },
    Entry {
        kind: "vmi-fgsm",
        title: "Variance-tuned Momentum Iterative FGSM",
        norms: ALL,
        sees: Sees::Gradients,
        seeks: Seeks::Transfer,
        targeted: true,
        paper: "Wang and He, CVPR 2021",
        build: |name| {
            let usual = VmiFgsm::default();
            Some(Arc::new(VmiFgsm {
                steps: name.steps(usual.steps),
                neighbours: name.count("neighbours", usual.neighbours),
                radius: name.number("radius").unwrap_or(usual.radius),
                decay: name.number("decay").unwrap_or(usual.decay),
                step: name.number("step"),
            }))
        },
    },
    Entry {
        kind: "apgd-ce",
        title: "Auto-PGD on cross-entropy",
        norms: BALLS,
        sees: Sees::Gradients,
        seeks: Seeks::Error,
        targeted: true,
        paper: "Croce and Hein, ICML 2020; ICML 2021 for L1",
        build: |name| apgd(name, ApgdLoss::CrossEntropy),
    },
    Entry {
        kind: "apgd-dlr",
        title: "Auto-PGD on the difference of logits ratio",
        norms: BALLS,
        sees: Sees::Gradients,
        seeks: Seeks::Error,
        targeted: false,
        paper: "Croce and Hein, ICML 2020; ICML 2021 for L1",
        build: |name| apgd(name, ApgdLoss::Dlr),
    },
    Entry {
        kind: "apgd-t",
        title: "Auto-PGD on the targeted difference of logits ratio, one class after the other",
        norms: BALLS,
        sees: Sees::Gradients,
        seeks: Seeks::Error,
        targeted: false,
        paper: "Croce and Hein, ICML 2020; ICML 2021 for L1",
        build: |name| apgd(name, ApgdLoss::Targeted),
    },
    Entry {
        kind: "fab",
        title: "Fast Adaptive Boundary",
        norms: BALLS,
        sees: Sees::Gradients,
        seeks: Seeks::SmallestChange,
        targeted: false,
        paper: "Croce and Hein, ICML 2020",
        build: |name| fab(name, false),
    },
    Entry {
        kind: "fab-t",
        title: "Fast Adaptive Boundary towards one class after the other",
        norms: BALLS,
        sees: Sees::Gradients,
        seeks: Seeks::SmallestChange,
        targeted: false,
        paper: "Croce and Hein, ICML 2020",
        build: |name| fab(name, true),
    },
    Entry {
        kind: "square",
        title: "Square Attack",
        norms: COMMON,
        sees: Sees::Scores,
        seeks: Seeks::Error,
        targeted: true,
        paper: "Andriushchenko et al., ECCV 2020",
        build: |name| {
            let usual = Square::default();
            Some(Arc::new(Square {
                queries: name.steps(usual.queries),
                p: name.number("p").unwrap_or(usual.p),
                restarts: name.restarts(usual.restarts),
            }))
        },
    },
    Entry {
        kind: "spsa",
        title: "Simultaneous Perturbation Stochastic Approximation",
        norms: ALL,
        sees: Sees::Scores,
        seeks: Seeks::Error,
        targeted: true,
        paper: "Uesato et al., ICML 2018",
        build: |name| {
            let usual = Spsa::default();
            Some(Arc::new(Spsa {
                steps: name.steps(usual.steps),
                pairs: name.count("pairs", usual.pairs),
                delta: name.number("delta").unwrap_or(usual.delta),
                step: name.number("step"),
            }))
        },
    },
    Entry {
        kind: "hsj",
        title: "HopSkipJump",
        norms: COMMON,
        sees: Sees::Classes,
        seeks: Seeks::SmallestChange,
        targeted: true,
        paper: "Chen et al., S&P 2020",
        build: |name| {
            let usual = HopSkipJump::default();
            Some(Arc::new(HopSkipJump {
                queries: name.steps(usual.queries),
                around: name.count("around", usual.around),
            }))
        },
    },
    Entry {
        kind: "cw",
        title: "Carlini and Wagner's attack",
        norms: &[Norm::L2],
        sees: Sees::Gradients,
        seeks: Seeks::SmallestChange,
        targeted: true,
        paper: "Carlini and Wagner, S&P 2017",
        build: |name| {
            let usual = Cw::default();
            Some(Arc::new(Cw {
                steps: name.steps(usual.steps),
                search: name.count("search", usual.search),
                confidence: name.number("confidence").unwrap_or(usual.confidence),
                rate: name.number("rate").unwrap_or(usual.rate),
            }))
        },
    },
    Entry {
        kind: "ead",
        title: "Elastic-net attack",
        norms: &[Norm::L1, Norm::L2],
        sees: Sees::Gradients,
        seeks: Seeks::SmallestChange,
        targeted: true,
        paper: "Chen et al., AAAI 2018",
        build: |name| {
            let usual = Ead::default();
            Some(Arc::new(Ead {
                steps: name.steps(usual.steps),
                search: name.count("search", usual.search),
                confidence: name.number("confidence").unwrap_or(usual.confidence),
                rate: name.number("rate").unwrap_or(usual.rate),
                beta: name.number("beta").unwrap_or(usual.beta),
            }))
        },
    },
    Entry {
        kind: "ddn",
        title: "Decoupling Direction and Norm",
        norms: &[Norm::L2],
        sees: Sees::Gradients,
        seeks: Seeks::SmallestChange,
        targeted: true,
        paper: "Rony et al., CVPR 2019",
        build: |name| {
            let usual = Ddn::default();
            Some(Arc::new(Ddn {
                steps: name.steps(usual.steps),
                radius: name.number("radius").unwrap_or(usual.radius),
                gamma: name.number("gamma").unwrap_or(usual.gamma),
            }))
        },
    },
    Entry {
        kind: "fmn",
        title: "Fast Minimum-Norm attack",
        norms: ALL,
        sees: Sees::Gradients,
        seeks: Seeks::SmallestChange,
        targeted: true,
        paper: "Pintor et al., NeurIPS 2021",
        build: |name| {
            let usual = Fmn::default();
            Some(Arc::new(Fmn {
                steps: name.steps(usual.steps),
                step: name.number("step").unwrap_or(usual.step),
                gamma: name.number("gamma").unwrap_or(usual.gamma),
            }))
        },
    },
    Entry {
        kind: "deepfool",
        title: "DeepFool",
        norms: COMMON,
        sees: Sees::Gradients,
        seeks: Seeks::SmallestChange,
        targeted: true,
        paper: "Moosavi-Dezfooli et al., CVPR 2016",
        build: |name| {
            let usual = DeepFool::default();
            Some(Arc::new(DeepFool {
                steps: name.steps(usual.steps),
                overshoot: name.number("overshoot").unwrap_or(usual.overshoot),
                candidates: name.count("candidates", usual.candidates),
            }))
        },
    },
    Entry {
        kind: "jsma",
        title: "Jacobian-based Saliency Map Attack",
        norms: &[Norm::L0],
        sees: Sees::Gradients,
        seeks: Seeks::SmallestChange,
        targeted: true,
        paper: "Papernot et al., EuroS&P 2016",
        build: |name| {
            let usual = Jsma::default();
            Some(Arc::new(Jsma {
                theta: name.number("theta").unwrap_or(usual.theta),
                gamma: name.number("gamma").unwrap_or(usual.gamma),
            }))
        },
    },
    Entry {
        kind: "noise",
        title: "Random change of the full budget: the control",
        norms: ALL,
        sees: Sees::Nothing,
        seeks: Seeks::Error,
        targeted: true,
        paper: "",
        build: |_| Some(Arc::new(Noise {})),
    },
];

fn apgd(name: &mut Settings<'_>, loss: ApgdLoss) -> Option<Arc<dyn Attack + Send + Sync>> {
    let usual = Apgd::default();
    let targets =
        if loss == ApgdLoss::Targeted { name.count("targets", usual.targets) } else { usual.targets };
    Some(Arc::new(Apgd {
        loss,
        steps: name.steps(usual.steps),
        restarts: name.restarts(usual.restarts),
        rho: name.number("rho").unwrap_or(usual.rho),
        faithful: name.flag("faithful"),
        targets,
    }))
}

fn fab(name: &mut Settings<'_>, targeted: bool) -> Option<Arc<dyn Attack + Send + Sync>> {
    let usual = Fab::default();
    let targets = if targeted { name.count("targets", usual.targets) } else { usual.targets };
    Some(Arc::new(Fab {
        targeted,
        steps: name.steps(usual.steps),
        restarts: name.restarts(usual.restarts),
        targets,
        alpha_max: name.number("alpha").unwrap_or(usual.alpha_max),
        eta: name.number("eta").unwrap_or(usual.eta),
        beta: name.number("beta").unwrap_or(usual.beta),
    }))
}
