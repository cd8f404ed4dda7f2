//! The arguments of `talion train adaptive`.

use std::path::PathBuf;

use clap::Args;
use talion_core::Result;
use talion_data::DatasetSpec;
use talion_defenses::{
    EstimatorSpec, Trn, TrnSpec,
    training::{AdaptiveLosses, AdaptiveTraining, Mixture},
};
use talion_models::{Model, training::ClassifierTraining};

/// Train a restoration network against attackers who differentiate through it.
///
/// Every step attacks its images through the network as it is then, and the classifier behind it never changes. Costs many
/// times what `talion train trn` costs; what comes out can be attacked by those who know it and keeps some of its accuracy.
#[derive(Args)]
pub struct AdaptiveArgs {
    /// The classifier to defend.
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// Data set; by default the one that the classifier was trained on.
    #[arg(long)]
    pub data: Option<DatasetSpec>,
    /// Where to write the network.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// A trained network to start from, whose shape the new one has. Without it the network starts as the identity (or as its
    /// first pass alone).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["estimator", "size", "gate", "bound", "patterns"])]
    pub warm: Option<PathBuf>,
    /// Where the second stream's gradient maps come from (see `talion train trn --help`); `none` for one stream.
    #[arg(long, default_value = "none")]
    estimator: EstimatorSpec,
    /// A trained one-stream network, for estimators that restore twice.
    #[arg(long, value_name = "FILE")]
    pub first: Option<PathBuf>,
    /// Width: tiny, small, base or large.
    #[arg(long, default_value = "tiny")]
    size: String,
    /// Build the network with a gate, which leaves images alone that it takes for clean.
    #[arg(long)]
    gate: bool,
    /// Largest change that the network makes to a value of the image, on the scale from 0 to 1; with a first pass, that one's.
    #[arg(long, default_value_t = 0.2)]
    bound: f64,
    /// Give the network patterns, one for each class, that it may add to an image it has made up its mind about. Wants a larger
    /// --bound, such as 0.4.
    #[arg(long)]
    patterns: bool,
    /// Steps that patterns are trained for before everything else.
    #[arg(long, default_value_t = 200)]
    prime: u64,
    /// Weight of the cross-entropy of the class that patterns are mixed for.
    #[arg(long, default_value_t = 0.5)]
    naming: f64,
    /// The attacks to train against, with budgets (after @) and weights (after *): each step draws one. `pgd-1:step=0.125@0.1`
    /// is the cheapest (one step from a random start).
    #[arg(long, default_value = "pgd-3@0.1")]
    attacks: Mixture,
    /// Share of the steps whose attacker differentiates through the gradient maps, too (second derivatives: dear).
    #[arg(long, default_value_t = 0.5)]
    exact: f64,
    /// Weight of the cross-entropy behind restored attacked images.
    #[arg(long, default_value_t = 1.0)]
    attacked: f64,
    /// Weight of the cross-entropy behind restored clean images.
    #[arg(long, default_value_t = 0.5)]
    clean: f64,
    /// Weight of the divergence between the two answers, as in TRADES.
    #[arg(long, default_value_t = 0.0)]
    divergence: f64,
    /// Weight of the difference of restored images to clean ones.
    #[arg(long, default_value_t = 0.5)]
    pixel: f64,
    /// Share of the steps during which budgets grow from nothing to their size.
    #[arg(long, default_value_t = 0.3)]
    curriculum: f64,
    /// Perturb the weights adversarially in each step, by this share of their length, for instance 0.005.
    #[arg(long, value_name = "SHARE")]
    weight_perturbation: Option<f64>,
    /// Steps.
    #[arg(long, default_value_t = 4000)]
    steps: u64,
    /// How often to measure on validation images.
    #[arg(long, default_value_t = 8)]
    rounds: u64,
    /// Images a step.
    #[arg(long, default_value_t = 64)]
    batch_size: usize,
    /// Highest learning rate of the one-cycle schedule.
    #[arg(long, default_value_t = 1e-3)]
    rate: f64,
    /// Seed of initial weights, order and attacks.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl AdaptiveArgs {
    /// The configuration for this classifier, which was trained like this.
    ///
    /// # Errors
    /// If there is no network of this size.
    pub fn config(
        &self,
        classifier: &Model,
        (warm, first): (Option<&Trn>, Option<&Trn>),
        trained: &ClassifierTraining,
    ) -> Result<AdaptiveTraining> {
        let spec = match warm {
            Some(warm) => warm.card().spec.clone(),
            None => self.spec(classifier, first)?,
        };
        Ok(AdaptiveTraining {
            exact: self.exact,
            losses: AdaptiveLosses {
                attacked: self.attacked,
                clean: self.clean,
                divergence: self.divergence,
                pixel: self.pixel,
                naming: self.naming,
            },
            prime: self.prime,
            curriculum: self.curriculum,
            weight_perturbation: self.weight_perturbation,
            steps: self.steps,
            rounds: self.rounds,
            batch_size: self.batch_size,
            peak_rate: self.rate,
            augmentation: trained.augmentation,
            seed: self.seed,
            ..AdaptiveTraining::new(spec, self.attacks.clone(), trained.validation, trained.seed)
        })
    }

    fn spec(&self, classifier: &Model, first: Option<&Trn>) -> Result<TrnSpec> {
        let card = classifier.card();
        let one_stream = TrnSpec::one_stream(&self.size, card.spec.channels)?;
        let patterns = self.patterns.then_some(card.image_size);
        let one_stream = TrnSpec { gate: self.gate, bound: self.bound, ..one_stream };
        let mut spec = TrnSpec { patterns, ..one_stream.with_estimator(self.estimator) };
        if let (Some(slot), Some(first)) = (&mut spec.first, first) {
            **slot = first.card().spec.clone();
            spec.bound = slot.bound;
        }
        Ok(spec)
    }
}
