//! One network of an ablation: what it is called, how it is trained, how it is measured.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use talion_attacks::{Batch, RunOptions, run};
use talion_core::{Error, Objective, Result, write_atomically};
use talion_defenses::{Fusion, Normalization, Trn, training::TrnTraining};
use talion_eval::{Contender, Plan, Proportion, Row, Setting, fingerprint};
use tch::Device;

use crate::{
    commands::train::{Ground, trn_stage},
    monitor::{bar, go_on},
    samples::Samples,
    show::measured,
};

/// The column of images that nobody attacked.
const CLEAN: &str = "clean";
/// Attacks on the bare classifier; MIM is in no default mixture. Their images are the same for all networks.
const OBLIVIOUS: [&str; 4] = ["noise@8/255", "fgsm@8/255", "pgd-20@8/255", "mim-20@8/255"];
/// The attack through classifier, restoration and maps, made for each network.
const EXACT: &str = "exact:pgd-20@8/255";
/// The attacks' seed: the same for all networks, so that they face the same images.
const ATTACK_SEED: u64 = 1;

/// A network, given by all that decides its training.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    training: TrnTraining,
}

impl Cell {
    /// The network of this training with this seed.
    pub fn new(training: &TrnTraining, seed: u64) -> Self {
        Self { training: TrnTraining { seed, ..training.clone() } }
    }

    /// How it is trained.
    pub fn training(&self) -> &TrnTraining {
        &self.training
    }

    /// Its seed.
    pub fn seed(&self) -> u64 {
        self.training.seed
    }

    /// The one-stream network that it needs for its first pass: trained like itself, with the same seed.
    pub fn first(&self) -> Option<Self> {
        let spec = self.training.spec.first.as_deref()?.clone();
        Some(Self { training: TrnTraining { spec, ..self.training.clone() } })
    }

    /// What people can tell it by, and the first 8 hexadecimal digits of the SHA-256 of its training as JSON. The seed is in
    /// neither.
    pub fn name(&self) -> String {
        let (spec, losses) = (&self.training.spec, self.training.losses);
        let fused = spec.fused.to_string();
        let mut name = format!("{}-w{}", spec.estimator, spec.width);
        let remarks = [
            (spec.normalization != Normalization::default()).then(|| spec.normalization.to_string()),
            (spec.fusion != Fusion::default()).then(|| spec.fusion.to_string()),
            (fused != "all").then(|| format!("fused-{fused}")),
            (!spec.gate).then(|| "no-gate".to_owned()),
            (losses.pixel == 0.0).then(|| "no-pixel".to_owned()),
            (losses.logit == 0.0).then(|| "no-divergence".to_owned()),
            (losses.classification == 0.0).then(|| "no-classification".to_owned()),
        ];
        for remark in remarks.into_iter().flatten() {
            name = format!("{name}-{remark}");
        }
        let mut described = self.recorded();
        if let Some(fields) = described.as_object_mut() {
            fields.remove("seed");
        }
        format!("{name}-{}", short_hash(&described.to_string()))
    }

    /// The name of its files, less their endings.
    pub fn stem(&self) -> String {
        format!("{}-s{}", self.name(), self.seed())
    }

    /// Its training as a network's card has it.
    fn recorded(&self) -> Value {
        serde_json::to_value(&self.training).unwrap_or_default()
    }
}

/// The first 8 hexadecimal digits of the SHA-256 of a text.
fn short_hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// What networks are measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// SHA-256 of the classifier's weights.
    pub classifier: String,
    /// SHA-256 of the data set's training split.
    pub data: String,
    /// Validation images that are passed over: training has chosen its best round by them.
    pub skipped: usize,
    /// Images measured on: the first validation images after these.
    pub images: usize,
    /// How many of them, the first ones, are attacked through the defence.
    pub adaptive_images: usize,
    /// Seed of the attacks.
    pub seed: u64,
    /// The columns, in their order: `clean`, and attacks with their budgets.
    pub columns: Vec<String>,
}

/// How a network did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// How it was trained.
    pub training: TrnTraining,
    /// SHA-256 of its weights.
    pub network: String,
    /// On what it was measured.
    pub conditions: Conditions,
    /// Number of weights, the first pass included.
    pub weights: usize,
    /// Samples classified right, by column.
    pub accuracy: BTreeMap<String, Proportion>,
}

/// Where networks are trained and measured, for one classifier.
pub struct Workshop<'a> {
    ground: &'a Ground,
    folder: PathBuf,
    samples: Samples,
    few: Option<Samples>,
    conditions: Conditions,
    /// The samples under each attack on the bare classifier, once they are wanted.
    attacked: Option<Vec<(&'static str, Samples)>>,
}

impl<'a> Workshop<'a> {
    /// A workshop in `folder` for networks trained like `base`. Measures on `images` of the validation images, and attacks
    /// `adaptive_images` of these through the defence; on fewer where there are not so many.
    ///
    /// # Errors
    /// If there are no such images, or not as many training images as a round takes.
    pub fn new(
        ground: &'a Ground,
        folder: &Path,
        base: &TrnTraining,
        (images, adaptive_images): (usize, usize),
    ) -> Result<Self> {
        let (train, validation) =
            ground.data.split_validation(base.validation, base.split_seed).map_err(Error::other)?;
        if train.len() < base.pool {
            let expected = format!("at most {}, the training images", train.len());
            return Err(Error::range("pool", expected, base.pool));
        }
        let skipped = base.validation_sample;
        let unused: Vec<usize> = (skipped..validation.len()).collect();
        let unused = validation.subset(&unused).map_err(Error::other)?;
        let device = Device::cuda_if_available();
        let samples = Samples::first(&unused, images, device)?;
        let few = match adaptive_images.min(images) {
            0 => None,
            count => Some(Samples::first(&unused, count, device)?),
        };
        let exact = few.as_ref().map(|_| EXACT);
        let columns = std::iter::once(CLEAN).chain(OBLIVIOUS).chain(exact);
        let conditions = Conditions {
            classifier: fingerprint(&[&ground.classifier.identity()])?,
            data: ground.data.sha256(),
            skipped,
            images: samples.ids.len(),
            adaptive_images: few.as_ref().map_or(0, |few| few.ids.len()),
            seed: ATTACK_SEED,
            columns: columns.map(str::to_owned).collect(),
        };
        Ok(Self { ground, folder: folder.to_owned(), samples, few, conditions, attacked: None })
    }

    /// What is measured on.
    pub fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    /// Makes the folder this classifier's and these data's.
    ///
    /// # Errors
    /// If it is another's: networks do not say which classifier they were trained for.
    pub fn claim(&self) -> Result<()> {
        let path = self.folder.join("ground.json");
        let claim = json!({ "classifier": self.conditions.classifier, "data": self.conditions.data });
        if !path.exists() {
            return write_atomically(&path, claim.to_string().as_bytes());
        }
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        if serde_json::from_slice::<Value>(&bytes).is_ok_and(|found| found == claim) {
            return Ok(());
        }
        let problem =
            "this folder holds networks for another classifier or other data; name another one with -o";
        Err(Error::file(path, problem))
    }

    /// Whether its weights are there.
    pub fn is_trained(&self, cell: &Cell) -> bool {
        self.path(cell, "safetensors").exists()
    }

    /// The trained network, from its file or from training, which goes on from a snapshot.
    ///
    /// # Errors
    /// If training fails or is interrupted, or its file is of another network.
    pub fn train(&self, cell: &Cell) -> Result<Trn> {
        let path = self.path(cell, "safetensors");
        if path.exists() {
            let trn = Trn::load(&path, Device::cuda_if_available())?;
            if trn.card().training == cell.recorded() {
                return Ok(trn);
            }
            return Err(Error::file(path, "was made with other settings; remove it"));
        }
        let first = cell.first().map(|first| self.train(&first)).transpose()?;
        let Ground { classifier, data, .. } = self.ground;
        // a cache keeps the images of one mixture
        let mixture = short_hash(&cell.training().mixture.to_string());
        let cache = self.attacked_folder(cell.seed()).join(mixture);
        trn_stage(cell.training(), (classifier, &[]), data, first.as_ref(), Some(&cache), &path)
    }

    /// Removes the attacked images that trainings with this seed share.
    ///
    /// # Errors
    /// If they are there and cannot be removed.
    pub fn tidy(&self, seed: u64) -> Result<()> {
        let folder = self.attacked_folder(seed);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(Error::io(&folder))?;
        }
        Ok(())
    }

    /// How the network does, which is trained first where it has to be. Results that are there for the same network under
    /// the same conditions are taken as they are.
    ///
    /// # Errors
    /// As [`Workshop::train`]; if an attack fails or is interrupted.
    pub fn measure(&mut self, cell: &Cell) -> Result<Results> {
        let trn = self.train(cell)?;
        let path = self.path(cell, "json");
        let network = fingerprint(&[&trn.tensors()])?;
        let same = |found: &Results| {
            found.training == *cell.training()
                && found.network == network
                && found.conditions == self.conditions
        };
        if let Some(found) = kept(&path).filter(same) {
            return Ok(found);
        }
        let results = Results {
            training: cell.training().clone(),
            conditions: self.conditions.clone(),
            weights: trn.parameters(),
            accuracy: self.accuracy(&trn)?,
            network,
        };
        write_atomically(&path, &serde_json::to_vec_pretty(&results).map_err(Error::other)?)?;
        Ok(results)
    }

    fn accuracy(&mut self, trn: &Trn) -> Result<BTreeMap<String, Proportion>> {
        if self.attacked.is_none() {
            self.attacked = Some(self.attack()?);
        }
        let mut found = BTreeMap::from([(CLEAN.to_owned(), self.judge(trn, &self.samples, None)?)]);
        for (attack, samples) in self.attacked.iter().flatten() {
            found.insert((*attack).to_owned(), self.judge(trn, samples, None)?);
        }
        if let Some(few) = &self.few {
            found.insert(EXACT.to_owned(), self.judge(trn, few, Some(EXACT.parse()?))?);
        }
        Ok(found)
    }

    /// The samples under each attack on the bare classifier.
    fn attack(&self) -> Result<Vec<(&'static str, Samples)>> {
        let mut all = Vec::new();
        for attack in OBLIVIOUS {
            let setting: Setting = attack.parse()?;
            let Samples { images, labels, ids } = &self.samples;
            let batch = Batch {
                images,
                labels,
                ids,
                budget: setting.budget,
                objective: Objective::CrossEntropy,
                seed: ATTACK_SEED,
                restart: 0,
            };
            let progress = bar(ids.len() as u64, attack);
            let classifier = &self.ground.classifier;
            let outcome = run(&setting.attack, classifier, &batch, &RunOptions::default(), &mut |state| {
                progress.set_position(state.done as u64);
                go_on()
            });
            progress.finish_and_clear();
            let images = outcome?.adversarial;
            all.push((attack, Samples { images, labels: labels.shallow_clone(), ids: ids.clone() }));
        }
        Ok(all)
    }

    /// How many of the samples the defended classifier gets right: as they are, or after an attack.
    fn judge(&self, trn: &Trn, samples: &Samples, attack: Option<Setting>) -> Result<Proportion> {
        let contenders = [Contender { name: "TRN".into(), front: trn.into() }];
        let plan = Plan { settings: attack.into_iter().collect(), seed: ATTACK_SEED };
        let rows: Vec<Row> = measured(&self.ground.classifier, &contenders, samples, &plan)?;
        // the first row is that of the samples as they are
        let last = rows.last().and_then(|row| row.measured.first());
        last.map(|measured| measured.accuracy).ok_or_else(|| Error::Refused("nothing was measured".into()))
    }

    fn path(&self, cell: &Cell, ending: &str) -> PathBuf {
        self.folder.join("cells").join(format!("{}.{ending}", cell.stem()))
    }

    fn attacked_folder(&self, seed: u64) -> PathBuf {
        self.folder.join("attacked").join(format!("s{seed}"))
    }
}

/// Results in a file, if there are any that can be read.
fn kept(path: &Path) -> Option<Results> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use talion_defenses::TrnSpec;

    use super::*;
    use crate::ablation::tests::base;

    #[test]
    fn names_say_what_is_unusual() {
        let base = base();
        let start = |training: &TrnTraining| {
            let name = Cell::new(training, 1).name();
            let (start, hash) = name.rsplit_once('-').unwrap();
            assert!(hash.len() == 8 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()), "{name}");
            start.to_owned()
        };
        assert_eq!(start(&base), "walk-back-w16");
        let mut odd = base.clone();
        odd.losses.pixel = 0.0;
        odd.spec = TrnSpec { normalization: Normalization::Max, gate: false, ..odd.spec };
        assert_eq!(start(&odd), "walk-back-w16-max-no-gate-no-pixel");
        let longer = TrnTraining { rounds: base.rounds + 1, ..base.clone() };
        assert_eq!(start(&longer), start(&base));
        assert_ne!(Cell::new(&longer, 1).name(), Cell::new(&base, 1).name());
    }

    #[test]
    fn hashes_are_those_of_the_standard() {
        // FIPS 180-2, appendix B.1
        assert_eq!(short_hash("abc"), "ba7816bf");
    }

    #[test]
    fn a_first_pass_is_trained_like_the_network_that_needs_it() {
        let cell = Cell::new(&base(), 7);
        let first = cell.first().unwrap();
        assert_eq!(Some(&first.training.spec), cell.training.spec.first.as_deref());
        let undone = TrnTraining { spec: cell.training.spec.clone(), ..first.training.clone() };
        assert_eq!(undone, cell.training);
        assert_eq!((first.seed(), first.first()), (7, None));
    }

    #[test]
    fn results_come_back_from_their_file_and_damaged_ones_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        let results = Results {
            training: base(),
            network: "n".into(),
            conditions: Conditions {
                classifier: "c".into(),
                data: "d".into(),
                skipped: 1,
                images: 2,
                adaptive_images: 0,
                seed: ATTACK_SEED,
                columns: vec![CLEAN.into()],
            },
            weights: 3,
            accuracy: BTreeMap::from([(CLEAN.into(), Proportion { count: 1, total: 2 })]),
        };
        let bytes = serde_json::to_vec_pretty(&results).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(kept(&path), Some(results));
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert_eq!(kept(&path), None);
        assert_eq!(kept(&folder.path().join("none")), None);
    }

    #[test]
    fn the_attacks_are_attacks() {
        for attack in OBLIVIOUS.into_iter().chain([EXACT]) {
            let setting: Setting = attack.parse().unwrap();
            let exact = setting.threat == talion_defenses::GradientMode::Exact;
            assert_eq!(exact, attack == EXACT);
        }
    }
}
