//! Carrying out a run: chunk by chunk, each kept before the next is begun.

use std::{
    ops::{ControlFlow, Range},
    time::Instant,
};

use talion_attacks::{Batch, Outcome as Attacked, Passes, RunOptions, alarms, run};
use talion_core::{Budget, Error, Objective, Result};
use talion_defenses::GradientMode;
use tch::{Device, Kind, Tensor};

use crate::{
    CLEAN, Entrant, Experiment, Outcome, RunConfig,
    quality::{psnr, ssim},
    store::{NewChunk, RunFolder},
};

/// Samples that are attacked and kept together. What a kill can cost is the work on as many.
const CHUNK: usize = 64;

/// How far a run has come.
pub struct Advance<'a> {
    /// The experiment's place among all, from 0; clean images come first, as number 0.
    pub number: usize,
    /// Experiments in all, clean images included.
    pub experiments: usize,
    /// What is being done, in words.
    pub what: &'a str,
    /// Samples of it that are finished.
    pub done: usize,
    /// Samples of it.
    pub total: usize,
}

/// Hears of every advance; `Break` asks to stop. What is finished is kept.
pub type Follow<'a> = dyn FnMut(&Advance<'_>) -> ControlFlow<()> + 'a;

/// The samples of a run.
#[derive(Clone, Copy)]
pub struct Subjects<'a> {
    /// `[N, C, H, W]` in `[0, 1]`.
    pub images: &'a Tensor,
    /// `[N]`.
    pub labels: &'a Tensor,
    /// N sample ids.
    pub ids: &'a [u64],
}

/// Makes every experiment of the run in `folder` that is not there yet, chunk by chunk. A run that was stopped, or killed
/// at any moment, goes on from its last whole chunk; its results are those of a run that was not.
///
/// # Errors
/// If the entrants or subjects are not those of the run's configuration, an attack fails, the folder cannot be written, or
/// the follower asked to stop ([`Error::Interrupted`]).
pub fn carry_out(
    folder: &mut RunFolder,
    entrants: &[Entrant<'_>],
    subjects: Subjects<'_>,
    follow: &mut Follow<'_>,
) -> Result<()> {
    let config = folder.header().config.clone();
    check(&config, entrants, subjects)?;
    let mut runner = Runner { folder, entrants, subjects, config: &config };
    let experiments = config.experiments.len() + 1;
    runner.clean(&mut |done| {
        let total = config.samples;
        follow(&Advance { number: 0, experiments, what: "clean images", done, total })
    })?;
    runner.look_for_alarms()?;
    for (place, experiment) in config.experiments.iter().enumerate() {
        let what = experiment.to_string();
        runner.experiment(experiment, &mut |done| {
            follow(&Advance { number: place + 1, experiments, what: &what, done, total: experiment.samples })
        })?;
    }
    Ok(())
}

/// The players named in a configuration have to be at hand, with the very weights, and the samples too.
fn check(config: &RunConfig, entrants: &[Entrant<'_>], subjects: Subjects<'_>) -> Result<()> {
    for player in config.contenders.iter().chain(&config.surrogates) {
        if !entrants.iter().any(|entrant| entrant.player == *player) {
            return Err(Error::Refused(format!(
                "the run needs {} ({}, SHA-256 {}), which is not what was given; name the files it was begun with",
                player.name, player.description, player.sha256
            )));
        }
    }
    if subjects.ids.len() != config.samples {
        return Err(Error::range("the number of images", config.samples.to_string(), subjects.ids.len()));
    }
    Ok(())
}

/// Told how many samples are done.
type Step<'a> = dyn FnMut(usize) -> ControlFlow<()> + 'a;

struct Runner<'a> {
    folder: &'a mut RunFolder,
    entrants: &'a [Entrant<'a>],
    subjects: Subjects<'a>,
    config: &'a RunConfig,
}

impl Runner<'_> {
    fn named(&self, name: &str) -> Result<&Entrant<'_>> {
        self.entrants.iter().find(|entrant| entrant.player.name == name).ok_or_else(|| {
            Error::Refused(format!("an experiment attacks {name}, which takes no part in the run"))
        })
    }

    /// The chunks of an experiment that are not there yet, as first samples and lengths.
    fn missing(&self, key: &str) -> Result<Vec<(usize, usize)>> {
        let gaps = self.folder.missing(key)?.into_iter();
        let cut = |gap: Range<usize>| {
            gap.clone().step_by(CHUNK).map(move |first| (first, CHUNK.min(gap.end - first)))
        };
        Ok(gaps.flat_map(cut).collect())
    }

    fn part(&self, first: usize, rows: usize) -> (Tensor, Tensor, &[u64]) {
        let narrow = |tensor: &Tensor| tensor.narrow(0, first as i64, rows as i64);
        (narrow(self.subjects.images), narrow(self.subjects.labels), &self.subjects.ids[first..first + rows])
    }

    fn clean(&mut self, step: &mut Step<'_>) -> Result<()> {
        for (first, rows) in self.missing(CLEAN)? {
            let started = Instant::now();
            let images = self.part(first, rows).0;
            let outcomes = self.judged(&images, first, &vec![false; rows], self.config.budget)?;
            let chunk = NewChunk {
                experiment: CLEAN.into(),
                first,
                rows,
                passes: Passes::default(),
                seconds: started.elapsed().as_secs_f64(),
                adjustments: Vec::new(),
            };
            self.folder.add(&chunk, &images, &outcomes)?;
            go_on(step, first + rows)?;
        }
        Ok(())
    }

    /// Looks at every contender once for signs that attacks on it fail for the wrong reasons.
    fn look_for_alarms(&mut self) -> Result<()> {
        if !self.folder.alarms()?.is_empty() {
            return Ok(());
        }
        let (images, labels, ids) = self.part(0, CHUNK.min(self.config.samples));
        let batch = self.batch((&images, &labels, ids), self.config.budget);
        let mut said = vec![LOOKED.to_owned()];
        for player in &self.config.contenders {
            let seen = self.named(&player.name)?.seen(GradientMode::Exact)?;
            let found = alarms(seen.as_ref(), &batch)?;
            said.extend(found.iter().map(|alarm| format!("{}: {alarm}", player.name)));
        }
        self.folder.add_alarms(&said)
    }

    fn batch<'b>(
        &self,
        (images, labels, ids): (&'b Tensor, &'b Tensor, &'b [u64]),
        budget: Budget,
    ) -> Batch<'b> {
        let seed = self.config.seed;
        Batch { images, labels, ids, budget, objective: Objective::CrossEntropy, seed, restart: 0 }
    }

    fn experiment(&mut self, experiment: &Experiment, step: &mut Step<'_>) -> Result<()> {
        let key = experiment.key();
        let missing = self.missing(&key)?;
        let left = if missing.is_empty() { Vec::new() } else { self.left(experiment)? };
        for (first, rows) in missing {
            let started = Instant::now();
            let attacked = &left[first..first + rows];
            let (images, passes, adjustments) = self.attack(experiment, first, attacked, step)?;
            let outcomes = self.judged(&images, first, attacked, experiment.budget)?;
            let seconds = started.elapsed().as_secs_f64();
            let chunk = NewChunk { experiment: key.clone(), first, rows, passes, seconds, adjustments };
            self.folder.add(&chunk, &images, &outcomes)?;
            go_on(step, first + rows)?;
        }
        Ok(())
    }

    /// Which samples an experiment has to attack: those that its victim still got right in all it comes after.
    fn left(&self, experiment: &Experiment) -> Result<Vec<bool>> {
        let mut left = vec![true; experiment.samples];
        for key in &experiment.after {
            for outcome in self.folder.outcomes(key)? {
                if outcome.contender == experiment.victim
                    && !outcome.right()
                    && let Some(left) = left.get_mut(outcome.row)
                {
                    *left = false;
                }
            }
        }
        Ok(left)
    }

    /// The images of a chunk after the attack, on the CPU.
    fn attack(
        &self,
        experiment: &Experiment,
        first: usize,
        attacked: &[bool],
        step: &mut Step<'_>,
    ) -> Result<(Tensor, Passes, Vec<String>)> {
        let (images, labels, ids) = self.part(first, attacked.len());
        let images = images.to_device(Device::Cpu).copy();
        let rows: Vec<i64> =
            (0..).zip(attacked).filter(|(_, attacked)| **attacked).map(|(row, _)| row).collect();
        if rows.is_empty() {
            return Ok((images, Passes::default(), Vec::new()));
        }
        let index = Tensor::from_slice(&rows);
        let ids: Vec<u64> = rows.iter().map(|&row| ids[row as usize]).collect();
        let (chosen, labels) =
            (images.index_select(0, &index), labels.to_device(Device::Cpu).index_select(0, &index));
        let batch = self.batch((&chosen, &labels, &ids), experiment.budget);
        let victim = self.named(&experiment.victim)?.seen(experiment.view)?;
        let options = RunOptions { until_fooled: experiment.until_fooled };
        let skipped = attacked.len() - rows.len();
        let attacked: Attacked =
            run(&experiment.attack, victim.as_ref(), &batch, &options, &mut |progress| {
                step(first + skipped + progress.done)
            })?;
        let _ = images.shallow_clone().index_copy_(0, &index, &attacked.adversarial.to_device(Device::Cpu));
        Ok((images, attacked.passes, attacked.adjustments))
    }

    /// What every contender makes of the images of a chunk.
    fn judged(
        &self,
        images: &Tensor,
        first: usize,
        attacked: &[bool],
        budget: Budget,
    ) -> Result<Vec<Outcome>> {
        let (clean, labels, ids) = self.part(first, attacked.len());
        let clean = clean.to_device(Device::Cpu);
        let distance = Vec::<f64>::try_from(budget.distance(&clean, &images.to_device(Device::Cpu)))?;
        let truth = Vec::<i64>::try_from(labels.to_device(Device::Cpu))?;
        let mut outcomes = Vec::new();
        for player in &self.config.contenders {
            let seen = Judged::new(self.named(&player.name)?, images, &clean, &truth)?;
            outcomes.extend((0..attacked.len()).map(|place| Outcome {
                contender: player.name.clone(),
                row: first + place,
                id: ids[place],
                label: truth[place],
                predicted: seen.predicted[place],
                confidence: seen.confidence[place],
                margin: seen.margin[place],
                distance: distance[place],
                attacked: attacked[place],
                psnr: seen.psnr.get(place).copied(),
                ssim: seen.ssim.get(place).copied(),
            }));
        }
        Ok(outcomes)
    }
}

/// The first of a run's alarms: says that there was a look, so that a resumed run does not look twice.
pub(crate) const LOOKED: &str = "looked for signs of flattering figures";

fn go_on(step: &mut Step<'_>, done: usize) -> Result<()> {
    if step(done).is_break() { Err(Error::Interrupted) } else { Ok(()) }
}

/// What one entrant makes of images, a number a row each.
pub(crate) struct Judged {
    pub predicted: Vec<i64>,
    pub confidence: Vec<f64>,
    pub margin: Vec<f64>,
    /// Empty without a defence, as is `ssim`.
    pub psnr: Vec<f64>,
    pub ssim: Vec<f64>,
}

impl Judged {
    pub(crate) fn new(entrant: &Entrant<'_>, images: &Tensor, clean: &Tensor, truth: &[i64]) -> Result<Self> {
        let answer = entrant.answer(images)?;
        let logits = answer.logits.to_kind(Kind::Double);
        let (confidence, predicted) = logits.softmax(1, None).max_dim(1, false);
        // the objective is what an attacker raises: the largest other logit less the true one
        let margin = -Objective::Margin.per_sample(&logits, &Tensor::from_slice(truth));
        let (psnr, ssim) = match &answer.restored {
            Some(restored) => (psnr(restored, clean)?, ssim(restored, clean)?),
            None => (Vec::new(), Vec::new()),
        };
        Ok(Self {
            predicted: Vec::try_from(predicted)?,
            confidence: Vec::try_from(confidence)?,
            margin: Vec::try_from(margin)?,
            psnr,
            ssim,
        })
    }
}

/// Checks kept images against the networks: each has to lie inside budget and box, and every contender has to say of it what
/// was kept. Returns what does not hold, in words; empty if all does.
///
/// # Errors
/// If the entrants or subjects are not those of the run, or a chunk cannot be read.
pub fn verify(
    folder: &RunFolder,
    entrants: &[Entrant<'_>],
    subjects: Subjects<'_>,
    follow: &mut Follow<'_>,
) -> Result<Vec<String>> {
    let config = folder.header().config.clone();
    check(&config, entrants, subjects)?;
    let mut wrong = Vec::new();
    let keys = std::iter::once((CLEAN.to_owned(), Budget::new(config.budget.norm(), 0.0)?))
        .chain(config.experiments.iter().map(|experiment| (experiment.key(), experiment.budget)));
    let experiments = config.experiments.len() + 1;
    for (number, (key, budget)) in keys.enumerate() {
        let outcomes = folder.outcomes(&key)?;
        for chunk in folder.chunks(&key)? {
            let images = folder.images(&chunk)?;
            let (first, rows) = (chunk.first as i64, chunk.rows as i64);
            let clean = subjects.images.narrow(0, first, rows).to_device(Device::Cpu);
            let inside = Vec::<bool>::try_from(budget.contains(&clean, &images))?;
            for place in (0..chunk.rows).filter(|&place| !inside[place]) {
                wrong.push(format!("{key}: sample {} lies outside {budget} or the box", chunk.first + place));
            }
            let truth = Vec::<i64>::try_from(subjects.labels.narrow(0, first, rows).to_device(Device::Cpu))?;
            for entrant in entrants {
                let name = &entrant.player.name;
                let seen = Judged::new(entrant, &images, &clean, &truth)?;
                for outcome in outcomes.iter().filter(|outcome| outcome.contender == *name) {
                    let Some(place) =
                        outcome.row.checked_sub(chunk.first).filter(|&place| place < chunk.rows)
                    else {
                        continue;
                    };
                    if seen.predicted[place] != outcome.predicted || truth[place] != outcome.label {
                        wrong.push(format!(
                            "{key}: {name} says class {} of sample {} (class {}), but {} (class {}) was kept",
                            seen.predicted[place],
                            outcome.row,
                            truth[place],
                            outcome.predicted,
                            outcome.label
                        ));
                    }
                }
            }
            let (done, total) = (chunk.first + chunk.rows, config.samples);
            if follow(&Advance { number, experiments, what: &key, done, total }).is_break() {
                return Err(Error::Interrupted);
            }
        }
    }
    Ok(wrong)
}
