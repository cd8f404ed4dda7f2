//! Those who take part in an evaluation, from the command line's files.

use std::path::PathBuf;

use clap::Args;
use talion_core::{Error, Result};
use talion_data::{Dataset, DatasetSpec};
use talion_defenses::{Defence, EstimatorSpec, Trn};
use talion_eval::{Entrant, Player, fingerprint};
use talion_models::Model;
use tch::Device;

use crate::{
    bundled::Networks,
    fronts::{FrontSpec, Loaded, Named},
    samples::test_split,
};

/// Which networks, and which images.
#[derive(Args, Clone)]
pub struct CastArgs {
    /// The classifier; by default the bundled one.
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// The restoration network in front of it.
    #[arg(long, value_name = "FILE")]
    pub trn: Option<PathBuf>,
    /// The one-stream twin, for comparison.
    #[arg(long, value_name = "FILE")]
    pub one_stream: Option<PathBuf>,
    /// Another defence for the same tables, [NAME=]DEFENCE: a method without training (jpeg-75, bits-4, median-3, gaussian-0.7,
    /// tv-0.05, resize-pad-0.85), the file of a trained one (a restoration network, a compressor, a denoiser), or the file of a
    /// classifier that was trained to withstand attacks and takes the classifier's place; may be given several times.
    #[arg(long, value_name = "DEFENCE")]
    pub defence: Vec<FrontSpec>,
    /// Another classifier of the same classes, attacked to see whether its images fool the defence (transfer); may be
    /// given several times. The bundled pair brings one.
    #[arg(long, value_name = "FILE")]
    pub surrogate: Vec<PathBuf>,
    /// Data set to take test images from; by default the bundled sample.
    #[arg(long)]
    pub data: Option<DatasetSpec>,
}

impl CastArgs {
    /// The test images.
    ///
    /// # Errors
    /// If the data set cannot be read.
    pub fn dataset(&self) -> talion_data::Result<Dataset> {
        test_split(self.data.as_ref())
    }
}

/// The networks of an evaluation.
pub struct Cast {
    /// Classifier and networks in front of it.
    pub networks: Networks,
    /// The other defences.
    pub fronts: Vec<Named>,
    surrogates: Vec<(String, Model)>,
}

/// The bare classifier's name in every table.
pub const BASE: &str = "undefended";

impl Cast {
    /// Loads what the arguments name.
    ///
    /// # Errors
    /// If a file cannot be used, or the classifiers do not have the same classes.
    pub fn load(args: &CastArgs, device: Device) -> Result<Self> {
        let (model, one_stream, trn) = (&args.model, &args.one_stream, &args.trn);
        let networks = Networks::load(model.as_deref(), one_stream.as_deref(), trn.as_deref(), device)?;
        let mut surrogates = Vec::new();
        for (number, path) in args.surrogate.iter().enumerate() {
            let model = Model::load(path, device)?;
            let (found, wanted) = (model.card().spec.classes, networks.classifier.card().spec.classes);
            if found != wanted {
                return Err(Error::file(path, format!("has {found} classes, and the classifier {wanted}")));
            }
            surrogates.push((format!("surrogate-{}", number + 1), model));
        }
        if model.is_none() && surrogates.is_empty() {
            surrogates.push(("surrogate".into(), Networks::bundled_surrogate(device)?));
        }
        let fronts = args.defence.iter().map(|spec| spec.load(&networks.classifier, device));
        let fronts = fronts.collect::<Result<Vec<_>>>()?;
        distinct(&fronts)?;
        Ok(Self { networks, fronts, surrogates })
    }

    /// The names of the surrogates.
    pub fn surrogates(&self) -> Vec<String> {
        self.surrogates.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Everybody who takes part: the bare classifier, its defended forms, the surrogates.
    ///
    /// # Errors
    /// If weights cannot be read, or a network was told the true labels.
    pub fn entrants(&self) -> Result<Vec<Entrant<'_>>> {
        let classifier = &self.networks.classifier;
        let mut entrants = vec![bare(BASE, classifier)?];
        if let Some(trn) = &self.networks.one_stream {
            entrants.push(restoring("one-stream", classifier, trn)?);
        }
        entrants.push(restoring("TRN", classifier, &self.networks.trn)?);
        for front in &self.fronts {
            entrants.push(match &front.what {
                Loaded::Defence(defence) => defended(&front.name, classifier, &**defence, &front.origin)?,
                Loaded::Classifier(model) => {
                    let bare = bare(&front.name, model)?;
                    Entrant { player: Player { defended: true, ..bare.player }, ..bare }
                }
            });
        }
        for (name, model) in &self.surrogates {
            entrants.push(bare(name, model)?);
        }
        Ok(entrants)
    }
}

fn bare<'a>(name: &str, model: &'a Model) -> Result<Entrant<'a>> {
    let card = model.card();
    let player = Player {
        name: name.into(),
        description: format!("{} trained on {}{}", card.spec.architecture, card.dataset, prepared(model)),
        sha256: fingerprint(&[&model.identity()])?,
        defended: false,
    };
    Ok(Entrant { player, classifier: model, defence: None })
}

/// How images are prepared for an imported model: a result that does not say so cannot be made again.
fn prepared(model: &Model) -> String {
    let spec = &model.card().spec;
    let [height, width] = model.card().image_size;
    match model.origin() {
        None => String::new(),
        Some(_) => format!(
            "; imported, fed {height}x{width} {} minus {:?} over {:?}",
            spec.order, spec.mean, spec.std
        ),
    }
}

fn restoring<'a>(name: &str, model: &'a Model, trn: &'a Trn) -> Result<Entrant<'a>> {
    if trn.card().spec.estimator == EstimatorSpec::Oracle {
        return Err(Error::Refused(
            "a network that is told the true labels is no defence to evaluate".into(),
        ));
    }
    defended(name, model, trn, &format!("trained on {}", trn.card().dataset))
}

fn defended<'a>(name: &str, model: &'a Model, defence: &'a dyn Defence, origin: &str) -> Result<Entrant<'a>> {
    let comma = if origin.is_empty() { "" } else { ", " };
    let what = format!("{}{comma}{origin}", defence.description());
    let player = Player {
        name: name.into(),
        description: format!("{what}, in front of {}", model.card().spec.architecture),
        sha256: fingerprint(&[&model.identity(), &defence.tensors()])?,
        defended: true,
    };
    Ok(Entrant { player, classifier: model, defence: Some(defence) })
}

/// Two columns of the same name cannot be told apart.
fn distinct(fronts: &[Named]) -> Result<()> {
    let mut taken = vec![BASE, "one-stream", "TRN"];
    for front in fronts {
        if taken.contains(&front.name.as_str()) {
            return Err(Error::Refused(format!(
                "two defences are called {}; name them apart with --defence NAME=DEFENCE",
                front.name
            )));
        }
        taken.push(&front.name);
    }
    Ok(())
}
