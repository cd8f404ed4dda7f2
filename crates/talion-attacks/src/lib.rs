/*!
Gradient attacks on image classifiers, one a file, and the driver that runs them.

An [`Attack`] is a pure function: a classifier, images, labels, sample ids, a budget and a seed in; adversarial images
out. It never sees a data set or a disk. [`run`](fn@run) checks the inputs, keeps the batches full, spends restarts only on
samples that still resist, and makes the result of a sample independent of its neighbours. Whoever attacks a few
images, or trains on attacks, may call [`Attack::perturb`] directly.

| name | attack | paper |
|---|---|---|
| `fgsm` | [`Fgsm`] | Goodfellow et al. 2015 |
| `bim-20` | [`Bim`] | Kurakin et al. 2017 |
| `pgd-20`, `pgd-100x5` | [`Pgd`] | Madry et al. 2018 |
| `mim-20` | [`Mim`] | Dong et al. 2018 |
| `noise` | [`Noise`], the control that uses no gradient | |

Every attack works with both norms of [`talion_core::Norm`] and every [`talion_core::Objective`].
*/

mod ascent;
mod attack;
mod attempt;
mod bim;
mod fgsm;
mod mim;
mod noise;
mod pgd;
mod run;
mod spec;

pub use attack::{Attack, Batch};
pub use attempt::{Attempt, Conditions, Passes, Rows, choose};
pub use bim::Bim;
pub use fgsm::Fgsm;
pub use mim::Mim;
pub use noise::Noise;
pub use pgd::Pgd;
pub use run::{Outcome, Predictions, Progress, RunOptions, micro_batch, predict_all, run};
pub use spec::AttackSpec;
