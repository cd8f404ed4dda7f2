//! Showing an evaluation while it runs, and a picture of it afterwards.

use std::path::Path;

use talion_attacks::{Attack, AttackSpec, Batch};
use talion_core::{Budget, Classifier, Error, Objective, Result, write_atomically};
use talion_defenses::{EstimatorSpec, gradient_map::MapGraph};
use talion_eval::{Contender, Front, Plan, Row, Scene, evaluate, gallery};
use talion_models::Model;
use tch::Tensor;

use crate::{bundled::Networks, monitor::Bars, samples::Samples};

/// Bare classifier, one-stream twin where there is one, TRN.
pub fn contenders(networks: &Networks) -> Vec<Contender<'_>> {
    let mut contenders = vec![Contender { name: "undefended".into(), front: Front::Nothing }];
    if let Some(trn) = &networks.one_stream {
        contenders.push(Contender { name: "one-stream".into(), front: trn.into() });
    }
    let oracle = networks.trn.card().spec.estimator == EstimatorSpec::Oracle;
    let name = if oracle { "TRN told the truth (ORACLE)" } else { "TRN" };
    contenders.push(Contender { name: name.into(), front: (&networks.trn).into() });
    contenders
}

/// Runs `plan` with a progress bar a setting.
pub fn measured(
    classifier: &Model,
    contenders: &[Contender<'_>],
    samples: &Samples,
    plan: &Plan,
) -> Result<Vec<Row>> {
    let mut bars = Bars::default();
    evaluate(
        classifier,
        contenders,
        (&samples.images, &samples.labels, &samples.ids),
        plan,
        &mut |setting, done, total| bars.show(setting, done, total),
    )
}

/// What has to be said beside every figure against attackers that do not see the defence.
pub const OBLIVIOUS_WARNING: &str = "\
Read this before quoting a figure: the OBLIVIOUS attacks above do not see the defence. They are crafted on the bare
classifier, as in the TRN paper. An attacker who knows the defence differentiates through it (the KNOWS rows), and
against that attacker the defence is as good as the lowest of those rows, not better.";

/// What has to be said beside every figure of a network that is told the true labels.
pub const ORACLE_WARNING: &str = "\
ORACLE: the last column was told the true label of every image. No defender has it. These figures diagnose the gradient
map estimator; they are not the accuracy of a defence.";

/// Draws `count` of the samples under `attack`, failures of the defence first, and writes the picture.
pub fn draw(
    networks: &Networks,
    samples: &Samples,
    (attack, budget): (&AttackSpec, Budget),
    count: usize,
    seed: u64,
    path: &Path,
) -> Result<()> {
    let (images, labels) = (&samples.images, &samples.labels);
    let batch = Batch {
        images,
        labels,
        ids: &samples.ids,
        budget,
        objective: Objective::CrossEntropy,
        seed,
        restart: 0,
    };
    let adversarial = attack.perturb(&networks.classifier, &batch)?;
    let title = format!("{} at {budget}, crafted on the bare classifier", attack.name());
    let mut scenes = tch::no_grad(|| scenes(networks, samples, &adversarial, &title))?;
    // failures first, then what the attack achieved and the defence undid
    scenes.sort_by_key(|scene| (scene.right[2], scene.right[1]));
    let failures = scenes.iter().filter(|scene| !scene.right[2]).count().min(count.div_ceil(4));
    let successes = scenes.iter().position(|scene| scene.right[2]).unwrap_or(scenes.len());
    let mut chosen: Vec<Scene> = Vec::new();
    for (index, scene) in scenes.into_iter().enumerate() {
        if index < failures || (index >= successes && chosen.len() < count) {
            chosen.push(scene);
        }
    }
    let picture = gallery(&chosen)?;
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture
        .write_to(&mut bytes, image::ImageFormat::Png)
        .map_err(|error| Error::file(path, format!("the picture cannot be encoded: {error}")))?;
    write_atomically(path, bytes.get_ref())
}

fn scenes(networks: &Networks, samples: &Samples, adversarial: &Tensor, title: &str) -> Result<Vec<Scene>> {
    let classifier = &networks.classifier;
    let prepared = networks.trn.prepare(classifier, adversarial, MapGraph::Constant, None);
    let restored = networks.trn.restore_prepared(adversarial, &prepared);
    let channels = samples.images.size()[1];
    let shown = [&samples.images, adversarial, &restored];
    let answers = shown.map(|images| classifier.logits(images).softmax(1, None).max_dim(1, false));
    let names = &classifier.card().class_names;
    (0..samples.ids.len() as i64)
        .map(|row| {
            let truth = samples.labels.int64_value(&[row]);
            let said = |index: usize| {
                let (confidence, label): &(Tensor, Tensor) = &answers[index];
                let label = label.int64_value(&[row]);
                let name = names.get(label as usize).cloned().unwrap_or_else(|| label.to_string());
                ((name, confidence.double_value(&[row])), label == truth)
            };
            let all = [said(0), said(1), said(2)];
            Ok(Scene {
                clean: samples.images.get(row),
                adversarial: adversarial.get(row),
                map: prepared
                    .maps
                    .as_ref()
                    .filter(|maps| maps.size()[1] >= channels)
                    .map(|maps| maps.get(row).narrow(0, 0, channels)),
                restored: restored.get(row),
                right: [all[0].1, all[1].1, all[2].1],
                verdicts: all.map(|(verdict, _)| verdict),
                title: title.to_owned(),
            })
        })
        .collect()
}
