/*!
Gradient attacks on image classifiers, one a file, and the driver that runs them.

An [`Attack`] is a pure function: a classifier, images, labels, sample ids, a budget and a seed in; adversarial images
out. It never sees a data set or a disk. [`run`](fn@run) checks the inputs, keeps the batches full, spends restarts only on
samples that still resist, and makes the result of a sample independent of its neighbours. Whoever attacks a few
images, or trains on attacks, may call [`Attack::perturb`] directly.

[`CATALOGUE`] lists all attacks with their norms and papers; [`AttackSpec`] reads their names. [`autoattack`](fn@autoattack)
runs several, each on the samples that resisted those before. [`Bpda`] and [`Eot`] are no attacks but ways to look at a
classifier, for any attack. [`alarms`](fn@alarms) tells when a classifier cannot be evaluated as it is.
*/

mod alarms;
mod apgd;
mod ascent;
mod attack;
mod attempt;
mod autoattack;
mod bim;
mod catalogue;
mod closest;
mod compare;
mod cw;
mod ddn;
mod deepfool;
mod diverse_input;
mod ead;
mod eot_pgd;
mod fab;
mod fgsm;
mod fmn;
mod hop_skip_jump;
mod jsma;
mod mim;
mod nesterov;
mod noise;
mod pgd;
mod run;
mod scale_invariant;
mod spec;
mod spsa;
mod square;
mod translation_invariant;
mod variance_tuned;
mod wrap;

pub use alarms::{Alarm, alarms};
pub use apgd::{Apgd, ApgdLoss};
pub use attack::{Attack, Batch};
pub use attempt::{Attempt, Conditions, Passes, Rows, choose};
pub use autoattack::{AutoAttack, Cascade, Fooled, Stage, autoattack};
pub use bim::Bim;
pub use catalogue::{CATALOGUE, Entry, Seeks, Sees};
pub use compare::{Tried, compared, comparisons};
pub use cw::Cw;
pub use ddn::Ddn;
pub use deepfool::DeepFool;
pub use diverse_input::DiFgsm;
pub use ead::Ead;
pub use eot_pgd::EotPgd;
pub use fab::Fab;
pub use fgsm::Fgsm;
pub use fmn::Fmn;
pub use hop_skip_jump::HopSkipJump;
pub use jsma::Jsma;
pub use mim::Mim;
pub use nesterov::NiFgsm;
pub use noise::Noise;
pub use pgd::Pgd;
pub use run::{Outcome, Predictions, Progress, RunOptions, in_micro_batches, micro_batch, predict_all, run};
pub use scale_invariant::SiNiFgsm;
pub use spec::AttackSpec;
pub use spsa::Spsa;
pub use square::Square;
pub use translation_invariant::TiFgsm;
pub use variance_tuned::VmiFgsm;
pub use wrap::{Bpda, Eot};
