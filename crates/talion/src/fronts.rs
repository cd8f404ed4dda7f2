//! Defences from the command line: by name, or from the file of a trained one.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use talion_core::{Archive, Error, Result};
use talion_defenses::{Defence, Trn, TrnCard, baselines};
use talion_eval::{Contender, Front};
use talion_models::{Model, ModelCard};
use tch::Device;

/// A defence as it is asked for: `[NAME=]DEFENCE`.
#[derive(Clone, Debug)]
pub struct FrontSpec {
    name: String,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Filter(baselines::FilterSpec),
    File(PathBuf, baselines::Purifying),
}

/// A defence with its name in tables.
pub struct Named {
    /// The name.
    pub name: String,
    /// The defence.
    pub what: Loaded,
    /// What it was trained on; empty where it was not trained.
    pub origin: String,
}

/// A defence that is ready.
pub enum Loaded {
    /// Something in front of the classifier.
    Defence(Box<dyn Defence>),
    /// A classifier in its place.
    Classifier(Box<Model>),
}

impl Named {
    /// As a column of a table.
    pub fn contender(&self) -> Contender<'_> {
        let front = match &self.what {
            Loaded::Defence(defence) => Front::Defence(&**defence),
            Loaded::Classifier(model) => Front::Instead(&**model),
        };
        Contender { name: self.name.clone(), front }
    }
}

impl FromStr for FrontSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, what) = match text.split_once('=') {
            // an equals sign further on belongs to a setting
            Some((name, what)) if !name.contains([':', '/']) => (Some(name), what),
            _ => (None, text),
        };
        let (file, settings) = what.split_once(':').unwrap_or((what, ""));
        if Path::new(file).extension().is_some_and(|ending| ending == "safetensors") {
            let stem = Path::new(file).file_stem().map(|stem| stem.to_string_lossy().into_owned());
            let name = name.map(str::to_owned).or(stem).unwrap_or_default();
            return Ok(Self { name, what: What::File(file.into(), settings.parse()?) });
        }
        let filter: baselines::FilterSpec = what.parse()?;
        Ok(Self { name: name.map_or_else(|| filter.to_string(), str::to_owned), what: What::Filter(filter) })
    }
}

impl FrontSpec {
    /// Loads or builds it, for this classifier.
    ///
    /// # Errors
    /// If the file cannot be used, or does not fit the classifier.
    pub fn load(&self, classifier: &Model, device: Device) -> Result<Named> {
        let (what, origin) = match &self.what {
            What::Filter(filter) => (Loaded::Defence(filter.build()?), String::new()),
            What::File(path, settings) => load(path, *settings, device)?,
        };
        match &what {
            Loaded::Defence(defence) => defence.check(classifier)?,
            Loaded::Classifier(model) if model.card().spec.classes != classifier.card().spec.classes => {
                let (found, wanted) = (model.card().spec.classes, classifier.card().spec.classes);
                return Err(Error::Refused(format!(
                    "{} has {found} classes, and the classifier {wanted}",
                    self.name
                )));
            }
            Loaded::Classifier(_) => {}
        }
        Ok(Named { name: self.name.clone(), what, origin })
    }
}

/// What an archive says that it is, whatever else it says.
#[derive(serde::Deserialize, serde::Serialize)]
struct Kind {
    kind: String,
}

fn load(path: &Path, settings: baselines::Purifying, device: Device) -> Result<(Loaded, String)> {
    let kind = Archive::<Kind>::load(path)?.header.kind;
    match kind.as_str() {
        TrnCard::KIND => {
            let trn = Trn::load(path, device)?;
            let origin = format!("trained on {}", trn.card().dataset);
            Ok((Loaded::Defence(Box::new(trn)), origin))
        }
        ModelCard::KIND => Ok((Loaded::Classifier(Box::new(Model::load(path, device)?)), String::new())),
        _ => {
            let (defence, dataset) = baselines::load(path, settings, device)?;
            Ok((Loaded::Defence(defence), format!("trained on {dataset}")))
        }
    }
}
