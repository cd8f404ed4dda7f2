//! What gradient maps show of an attack, and how much of it a network takes away again.

use serde::Serialize;
use talion_attacks::{Batch, RunOptions, micro_batch, predict_all, run};
use talion_core::{Classifier, Error, Objective, Result};
use talion_defenses::{Defended, EstimatorSpec, GradientMode, Trn, gradient_map::MapGraph};
use tch::{Kind, Tensor};

use crate::{Plan, Proportion, Setting, interval::Mean, measure::Watch, table::aligned};

/// Directions in the space of images beside what one attack added to them.
#[derive(Clone, Debug, Serialize)]
pub struct Aligned {
    /// The attack.
    pub setting: Setting,
    /// Images that the attack fooled the bare classifier with, of those that it was right about.
    pub fooled: Proportion,
    /// The directions, the same ones for every attack.
    pub directions: Vec<Direction>,
}

/// How well a direction agrees with what an attack added.
#[derive(Clone, Debug, Serialize)]
pub struct Direction {
    /// What it is.
    pub name: String,
    /// Cosine with what the attack added: 1 is the same direction, -1 the opposite one. Of gradient maps the sign is taken,
    /// which `Linf` attackers follow. Images without a direction (or without a change) do not count.
    pub cosine: Mean,
    /// Of what a network takes away: which part of the attack that undoes, its projection onto it; 1 is all.
    pub undone: Option<Mean>,
    /// Of the change that the last pass made by itself: its cosine with the way down the classifier's loss for the true label,
    /// where the pass began (the sign of the gradient, negative). How well the pass knows what the classifier would answer to.
    pub downhill: Option<Mean>,
}

/// Beside everything that each setting of `plan` adds to images that the bare classifier is right about: gradients at the
/// attacked image for the true label, which no defender has, and for the label that the classifier gives it; the network's
/// own maps; and what its passes take away from the image.
///
/// # Shapes
/// `images` `[N, C, H, W]` in `[0, 1]`, `labels` `[N]`, `ids` N sample ids.
///
/// # Errors
/// If images and labels do not fit the classifier, it is right about none of them, the network was told the true labels, an
/// attack fails, or the watcher asked to stop.
pub fn alignments(
    classifier: &dyn Classifier,
    trn: &Trn,
    samples: (&Tensor, &Tensor, &[u64]),
    plan: &Plan,
    watch: &mut Watch<'_>,
) -> Result<Vec<Aligned>> {
    if trn.card().spec.estimator == EstimatorSpec::Oracle {
        return Err(Error::Refused("the maps of a network that is told the true labels say nothing".into()));
    }
    let (images, labels, ids) = right(classifier, samples)?;
    let mut rows = Vec::new();
    for setting in &plan.settings {
        let batch = Batch {
            images: &images,
            labels: &labels,
            ids: &ids,
            budget: setting.budget,
            objective: Objective::CrossEntropy,
            seed: plan.seed,
            restart: 0,
        };
        // the attack's strongest, not the first image that fooled
        let options = RunOptions { until_fooled: false };
        let mut watched =
            |progress: talion_attacks::Progress| watch(Some(setting), progress.done, progress.total);
        let adversarial = match setting.threat {
            GradientMode::Oblivious => run(&setting.attack, classifier, &batch, &options, &mut watched)?,
            threat => {
                let defended = Defended::new(classifier, trn, threat)?;
                run(&setting.attack, &defended, &batch, &options, &mut watched)?
            }
        }
        .adversarial;
        let answers = predict_all(classifier, &adversarial)?.labels;
        let fooled =
            answers.not_equal_tensor(&labels.to_device(answers.device())).sum(Kind::Int64).int64_value(&[]);
        rows.push(Aligned {
            setting: setting.clone(),
            fooled: Proportion { count: fooled as u64, total: ids.len() as u64 },
            directions: beside(classifier, trn, (&images, &adversarial, &labels))?,
        });
    }
    Ok(rows)
}

/// The samples that the classifier is right about.
fn right(
    classifier: &dyn Classifier,
    (images, labels, ids): (&Tensor, &Tensor, &[u64]),
) -> Result<(Tensor, Tensor, Vec<u64>)> {
    let answers = predict_all(classifier, images)?.labels;
    let labels = labels.to_device(answers.device());
    let right = answers.eq_tensor(&labels).nonzero().flatten(0, -1);
    let places = Vec::<i64>::try_from(&right)?;
    if places.is_empty() {
        return Err(Error::Refused("the classifier is right about none of these images".into()));
    }
    let ids = places.iter().map(|&place| ids[place as usize]).collect();
    let images = images.index_select(0, &right.to_device(images.device()));
    Ok((images, labels.index_select(0, &right), ids))
}

/// The directions at attacked images, in the micro-batches of every other evaluation.
fn beside(
    classifier: &dyn Classifier,
    trn: &Trn,
    (clean, attacked, labels): (&Tensor, &Tensor, &Tensor),
) -> Result<Vec<Direction>> {
    let device = classifier.device();
    let (rows, size) = (clean.size()[0], micro_batch(device) as i64);
    let mut found: Vec<Found> = Vec::new();
    for start in (0..rows).step_by(size as usize) {
        let part = |tensor: &Tensor| tensor.narrow(0, start, size.min(rows - start)).to_device(device);
        let (clean, attacked) = (part(clean), part(attacked));
        let added = &attacked - clean;
        let here = tch::no_grad(|| directions(classifier, trn, &attacked, &part(labels)));
        if found.is_empty() {
            found = here.iter().map(|seen| Found::new(&seen.name)).collect();
        }
        for (found, seen) in found.iter_mut().zip(&here) {
            found.add(seen, &added)?;
        }
    }
    Ok(found.into_iter().map(Found::direction).collect())
}

/// A direction at every image of a batch.
struct Seen {
    name: String,
    along: Tensor,
    /// Of what a network takes away: what its last pass added to the image, and the way down the loss from there.
    pass: Option<(Tensor, Tensor)>,
}

impl Seen {
    fn map(name: impl Into<String>, along: Tensor) -> Self {
        Self { name: name.into(), along, pass: None }
    }
}

fn directions(classifier: &dyn Classifier, trn: &Trn, images: &Tensor, labels: &Tensor) -> Vec<Seen> {
    let uphill = |images: &Tensor, labels: &Tensor| {
        classifier.input_gradient(images, labels, Objective::CrossEntropy).gradient.sign()
    };
    let removal = |name: &str, before: &Tensor, after: &Tensor| Seen {
        name: name.into(),
        along: images - after,
        pass: Some((after - before, -uphill(before, labels))),
    };
    let given = classifier.logits(images).argmax(1, false);
    let mut all = vec![
        Seen::map("the true label, at the input", uphill(images, labels)),
        Seen::map("the given label, at the input", uphill(images, &given)),
    ];
    let prepared = trn.prepare(classifier, images, MapGraph::Constant, None);
    let names = trn.map_names();
    if let Some(maps) = prepared.maps.as_ref().filter(|_| !names.is_empty()) {
        let own = names.iter().zip(maps.chunk(names.len() as i64, 1));
        all.extend(own.map(|(name, map)| Seen::map(format!("own map: {name}"), map.sign())));
    }
    let first = prepared.first.as_ref().map(|first| trn.apply(images, first));
    all.extend(first.as_ref().map(|first| removal("what the first pass takes away", images, first)));
    let restored = trn.restore_prepared(images, &prepared);
    all.push(removal("what the network takes away", first.as_ref().unwrap_or(images), &restored));
    all
}

/// A direction as it is being measured: numbers by image.
struct Found {
    name: String,
    cosines: Vec<f64>,
    /// Of a removal: what is undone, and how far downhill.
    pass: Option<(Vec<f64>, Vec<f64>)>,
}

impl Found {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), cosines: Vec::new(), pass: None }
    }

    fn add(&mut self, seen: &Seen, added: &Tensor) -> Result<()> {
        self.cosines.extend(cosines(&seen.along, added)?);
        if let Some((change, downhill)) = &seen.pass {
            let (undone, down) = self.pass.get_or_insert_default();
            undone.extend(projections(&seen.along, added)?);
            down.extend(cosines(change, downhill)?);
        }
        Ok(())
    }

    fn direction(self) -> Direction {
        let (undone, downhill) = self.pass.map(|(undone, down)| (Mean::of(&undone), Mean::of(&down))).unzip();
        Direction { name: self.name, cosine: Mean::of(&self.cosines), undone, downhill }
    }
}

/// Each row's inner product, in double precision.
fn dot(a: &Tensor, b: &Tensor) -> Result<Vec<f64>> {
    let flat = |tensor: &Tensor| tensor.flatten(1, -1).to_kind(Kind::Double);
    Ok(Vec::try_from((flat(a) * flat(b)).sum_dim_intlist([1_i64].as_slice(), false, None))?)
}

/// Each row's cosine; none of rows in which either is zero.
fn cosines(a: &Tensor, b: &Tensor) -> Result<Vec<f64>> {
    let lengths = dot(a, a)?.into_iter().zip(dot(b, b)?).map(|(a, b)| (a * b).sqrt());
    let both = dot(a, b)?.into_iter().zip(lengths).filter(|(_, length)| *length > 0.0);
    Ok(both.map(|(both, length)| both / length).collect())
}

/// Each row of `a`, projected onto `b` and in units of it; none of rows in which `b` is zero.
fn projections(a: &Tensor, b: &Tensor) -> Result<Vec<f64>> {
    let both = dot(a, b)?.into_iter().zip(dot(b, b)?).filter(|(_, length)| *length > 0.0);
    Ok(both.map(|(both, length)| both / length).collect())
}

/// A Markdown table: a line a direction, a column an attack.
pub fn markdown(rows: &[Aligned]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let mut cells = vec![vec![String::new()]];
    cells[0].extend(rows.iter().map(|row| row.setting.to_string()));
    let mut fooled = vec!["fooled, %".to_owned()];
    fooled.extend(rows.iter().map(|row| row.fooled.to_string()));
    cells.push(fooled);
    for place in 0..first.directions.len() {
        let each = || rows.iter().map(|row| &row.directions[place]);
        let mut line = vec![format!("{}: cosine", first.directions[place].name)];
        line.extend(each().map(|direction| direction.cosine.to_string()));
        cells.push(line);
        let mut more = |what: &str, figure: &dyn Fn(&Direction) -> Option<Mean>| {
            if figure(&first.directions[place]).is_some() {
                let mut line = vec![format!("{}: {what}", first.directions[place].name)];
                line.extend(
                    each()
                        .map(|direction| figure(direction).map_or_else(String::new, |mean| mean.to_string())),
                );
                cells.push(line);
            }
        };
        more("share undone", &|direction| direction.undone);
        more("its last pass downhill", &|direction| direction.downhill);
    }
    aligned(&cells)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, ops::ControlFlow};

    use talion_core::{gaussian_noise, uniform_noise};
    use talion_defenses::{TrnCard, TrnSpec};
    use tch::Device;

    use super::*;

    /// Two classes, one against the other: gradients for the two labels have one direction with opposite signs.
    struct Line(Tensor);

    impl Classifier for Line {
        fn classes(&self) -> i64 {
            2
        }

        fn logits(&self, images: &Tensor) -> Tensor {
            let along = (images - 0.5).flatten(1, -1).matmul(&self.0);
            Tensor::cat(&[&along, &-&along], 1)
        }
    }

    /// A network that changes nothing, or with drawn last layers.
    fn trn(estimator: EstimatorSpec, drawn: bool) -> Trn {
        let spec = TrnSpec { width: 8, scales: 2, ..TrnSpec::one_stream("tiny", 1).unwrap() };
        let card = TrnCard {
            kind: TrnCard::KIND.into(),
            spec: spec.with_estimator(estimator),
            classes: 2,
            classifier: "line".into(),
            dataset: "noise".into(),
            seed: 1,
            training: serde_json::Value::Null,
            metrics: BTreeMap::new(),
        };
        let trn = Trn::new(card, Device::Cpu).unwrap();
        tch::no_grad(|| {
            for (name, mut tensor) in trn.store().variables() {
                if drawn && name.contains("output") {
                    tensor.copy_(&gaussian_noise(&tensor.size(), &[3], 1, &name, 0).squeeze_dim(0));
                }
            }
        });
        trn.freeze()
    }

    fn measured(trn: &Trn, setting: &str, wrong: bool) -> Result<Aligned> {
        let classifier = Line(gaussian_noise(&[64, 1], &[1], 1, "weights", 0).squeeze_dim(0));
        let ids: Vec<u64> = (0..40).collect();
        let images = (uniform_noise(&[1, 8, 8], &ids, 2, "images", 0) * 0.1 + 0.5).to_kind(Kind::Float);
        let right = classifier.logits(&images).argmax(1, false);
        // two labels of three are right
        let truth = Tensor::arange(40, (Kind::Int64, Device::Cpu)).remainder(3).eq(0).to_kind(Kind::Int64);
        let labels = if wrong { 1 - &right } else { (&right + truth).remainder(2) };
        let plan = Plan { settings: vec![setting.parse()?], seed: 1 };
        let samples = (&images, &labels, &ids[..]);
        let mut rows =
            alignments(&classifier, trn, samples, &plan, &mut |_, _, _| ControlFlow::Continue(()))?;
        Ok(rows.remove(0))
    }

    #[test]
    fn directions_of_a_line_are_known() {
        let row = measured(&trn(EstimatorSpec::Predicted, false), "fgsm@0.2", false).unwrap();
        // images that were wrong from the beginning do not count, and all others cross the line
        assert_eq!(row.fooled, Proportion { count: 26, total: 26 });
        let names: Vec<&str> = row.directions.iter().map(|direction| &*direction.name).collect();
        let own = "own map: the given label, at the input";
        assert_eq!(
            names,
            [
                "the true label, at the input",
                "the given label, at the input",
                own,
                "what the network takes away"
            ]
        );
        for (direction, cosine) in row.directions.iter().zip([1.0, -1.0, -1.0]) {
            assert_eq!(direction.cosine.count, 26);
            assert!((direction.cosine.mean - cosine).abs() < 1e-6, "{direction:?}");
            assert!(direction.undone.is_none());
        }
        // a network that does nothing has no direction, and undoes nothing
        let removal = &row.directions[3];
        assert_eq!((removal.cosine.count, removal.undone.unwrap().mean), (0, 0.0));
        assert_eq!(removal.downhill.unwrap().count, 0);
        let table = markdown(&[row]);
        assert!(table.contains("fooled, %") && table.contains("1.00 ± 0.00"), "{table}");
    }

    #[test]
    fn what_is_undone_is_the_projection() {
        let row = measured(&trn(EstimatorSpec::None, true), "fgsm@0.2", false).unwrap();
        assert_eq!(row.directions.len(), 3);
        let removal = &row.directions[2];
        let (cosine, undone) = (removal.cosine, removal.undone.unwrap());
        assert_eq!((cosine.count, undone.count), (26, 26));
        assert!(undone.mean != 0.0 && cosine.mean.abs() < 1.0, "{removal:?}");
        assert_eq!(undone.mean.signum(), cosine.mean.signum());
        // FGSM goes up the loss of a line, so what undoes it goes down, by the same angle
        let downhill = removal.downhill.unwrap();
        assert!((downhill.mean - cosine.mean).abs() < 1e-6, "{downhill:?} {cosine:?}");
    }

    #[test]
    fn attackers_who_know_the_network_are_measured_too() {
        let network = trn(EstimatorSpec::Predicted, false);
        let through = measured(&network, "exact:fgsm@0.2", false).unwrap();
        // through a network that changes nothing the attack is the same
        let blind = measured(&network, "fgsm@0.2", false).unwrap();
        assert_eq!(through.directions[0].cosine, blind.directions[0].cosine);
    }

    #[test]
    fn nothing_to_measure_is_an_error() {
        let error = measured(&trn(EstimatorSpec::Predicted, false), "fgsm@0.2", true).unwrap_err();
        assert!(error.to_string().contains("right about none"), "{error}");
    }
}
