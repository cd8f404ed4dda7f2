//! `talion ablate`: what each part of the restoration network is worth.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    str::FromStr,
};

use clap::Args;
use serde_json::json;
use talion_core::{Error, write_atomically};
use talion_data::DatasetSpec;
use talion_defenses::{
    EstimatorSpec, TrnSpec,
    training::{LossWeights, Mixture, TrnTraining},
};
use tch::Device;

use super::train::Ground;
use crate::{
    ablation::{About, Cell, Design, Factors, Report, Results, Workshop},
    failure::CommandResult,
    machine,
    monitor::{catch_interrupts, go_on},
};

/// What each part of the restoration network is worth: change one at a time, train, measure.
///
/// Around a base (walk-back maps, gated fusion at all scales, all losses) one factor at a time is varied. Every network is
/// trained once a seed, with its first pass, and measured on validation images of the classifier's own split by which no
/// training chose anything; test images are not looked at. Networks, figures and tables are kept in the output folder: stopped
/// or killed, the same command goes on where it was, and another one takes what it can use from there.
#[derive(Args)]
pub struct AblateArgs {
    /// The classifier to defend, a checkpoint of `talion train classifier`.
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Data set; by default the one that the classifier was trained on.
    #[arg(long)]
    data: Option<DatasetSpec>,
    /// Where networks, figures (result.json) and tables (table.md) go.
    #[arg(short, long, value_name = "FOLDER")]
    output: PathBuf,
    /// What to vary: estimator, maps, refinement, normalization, fusion, scales, losses, mixture, size, with commas between
    /// them, or all.
    #[arg(long, value_name = "FACTORS")]
    factors: Factors,
    /// How many seeds (from 1 on), or a list such as 1,2,3 (a list of one ends with a comma: `7,`). Intervals and comparisons
    /// over seeds take at least two.
    #[arg(long, value_name = "SEEDS", default_value = "3")]
    seeds: Seeds,
    /// Training images attacked in a round.
    #[arg(long, value_name = "N", default_value_t = 8192)]
    pool: usize,
    /// Rounds.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    rounds: u64,
    /// How often a round's images are shown.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    replays: u64,
    /// Width of the base: tiny, small, base or large (16, 24, 32, 64 channels at full resolution).
    #[arg(long, default_value = "tiny")]
    size: String,
    /// Validation images to measure on.
    #[arg(long, value_name = "N", default_value_t = 500)]
    images: usize,
    /// How many of these are attacked through the defence; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 64)]
    adaptive_images: usize,
    /// Weight of the base's pixel loss. Colour images want 100.
    #[arg(long, value_name = "WEIGHT", default_value_t = 10.0)]
    pixel: f64,
    /// What the base is trained on: attacks with budgets (after @) and weights (after *), for instance
    /// `clean*2,fgsm@8/255,pgd-7@8/255*3`.
    #[arg(long)]
    mixture: Option<Mixture>,
    /// Only list the networks, and how many have still to be trained.
    #[arg(long)]
    list: bool,
}

/// Seeds, each once, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seeds(Vec<u64>);

/// More seeds than this are a mistake.
const MOST_SEEDS: u64 = 100;

impl FromStr for Seeds {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || {
            let expected =
                "how many (1 to 100), or different numbers with commas such as 1,2,3 (a single one: `7,`)";
            Error::range("the seeds", expected, text)
        };
        let number = |text: &str| text.trim().parse::<u64>().map_err(|_| wrong());
        let seeds: Vec<u64> = if text.contains(',') {
            let listed = text.strip_suffix(',').unwrap_or(text);
            listed.split(',').map(number).collect::<Result<_, _>>()?
        } else {
            // one too many is enough to be refused
            (1..=number(text)?.min(MOST_SEEDS + 1)).collect()
        };
        let distinct: BTreeSet<u64> = seeds.iter().copied().collect();
        if seeds.is_empty() || seeds.len() as u64 > MOST_SEEDS || distinct.len() < seeds.len() {
            return Err(wrong());
        }
        Ok(Self(seeds))
    }
}

/// Validation images by which a training chooses its best round, where there are enough; else half of them.
const CHOOSING: usize = 500;

impl AblateArgs {
    /// The training of the network that all others are compared with.
    fn base(&self, ground: &Ground) -> Result<TrnTraining, Error> {
        let trained = &ground.training;
        let one_stream = TrnSpec::one_stream(&self.size, ground.classifier.card().spec.channels)?;
        let spec = one_stream.with_estimator(EstimatorSpec::WalkBack);
        Ok(TrnTraining {
            mixture: self.mixture.clone().unwrap_or_default(),
            losses: LossWeights { pixel: self.pixel, ..LossWeights::default() },
            pool: self.pool,
            replays: self.replays,
            rounds: self.rounds,
            augmentation: trained.augmentation,
            validation_sample: CHOOSING.min(trained.validation / 2),
            ..TrnTraining::new(spec, trained.validation, trained.seed)
        })
    }
}

/// Runs the command.
pub fn run(args: &AblateArgs, json: bool) -> CommandResult {
    catch_interrupts();
    let ground = Ground::load(&args.model, args.data.as_ref())?;
    let design = Design::new(args.base(&ground)?, &args.factors.0, &args.seeds.0)?;
    let counts = (args.images, args.adaptive_images);
    let mut workshop = Workshop::new(&ground, &args.output, design.base(), counts)?;
    if args.list {
        list(&design, &workshop, json);
        return Ok(());
    }
    workshop.claim()?;
    let results = carried_out(&design, &mut workshop)?;
    let report = Report::new(about(&ground, &workshop)?, &design, &results)?;
    let (table, result) = (report.markdown(), serde_json::to_string(&report)?);
    write_atomically(&args.output.join("table.md"), table.as_bytes())?;
    write_atomically(&args.output.join("result.json"), result.as_bytes())?;
    if json {
        println!("{result}");
    } else {
        println!("{table}\nAll results are in {}.", args.output.display());
    }
    Ok(())
}

/// Trains and measures what is not there yet; the results by the networks' stems.
fn carried_out(design: &Design, workshop: &mut Workshop<'_>) -> Result<BTreeMap<String, Results>, Error> {
    let mut results = BTreeMap::new();
    let total = design.seeds().len() * design.measured(1).len();
    for &seed in design.seeds() {
        for cell in design.measured(seed) {
            if go_on().is_break() {
                return Err(Error::Interrupted);
            }
            let stem = cell.stem();
            eprintln!(
                "network {} of {total}: {stem} ({})",
                results.len() + 1,
                design.roles(&cell).join("; ")
            );
            results.insert(stem, workshop.measure(&cell)?);
        }
        // the attacked images have served all trainings with this seed
        workshop.tidy(seed)?;
    }
    Ok(results)
}

fn about(ground: &Ground, workshop: &Workshop<'_>) -> Result<About, Error> {
    let environment = machine::environment(Device::cuda_if_available());
    let mut environment = serde_json::to_value(environment).map_err(Error::other)?;
    if let Some(fields) = environment.as_object_mut() {
        fields.remove("begun");
    }
    Ok(About {
        environment,
        classifier: ground.classifier.card().spec.architecture.to_string(),
        data: ground.data.name().to_owned(),
        conditions: workshop.conditions().clone(),
    })
}

/// Says which networks there are to be, and how many of them are there.
fn list(design: &Design, workshop: &Workshop<'_>, json: bool) {
    let cells: Vec<Cell> = design.seeds().iter().flat_map(|&seed| design.trained(seed)).collect();
    let missing = cells.iter().filter(|cell| !workshop.is_trained(cell)).count();
    if json {
        let listed = cells.iter().map(|cell| {
            let (trained, roles) = (workshop.is_trained(cell), design.roles(cell));
            json!({ "network": cell.stem(), "seed": cell.seed(), "trained": trained, "for": roles })
        });
        let listed: Vec<_> = listed.collect();
        println!("{}", json!({ "networks": listed, "to_train": missing }));
        return;
    }
    for cell in &cells {
        let mark = if workshop.is_trained(cell) { "trained" } else { "-" };
        println!("{mark:<8} {:<48} {}", cell.stem(), design.roles(cell).join("; "));
    }
    println!(
        "\n{} networks with {} seeds, first passes included; {missing} have still to be trained",
        cells.len(),
        design.seeds().len()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_counted_or_named() {
        let read = |text: &str| text.parse::<Seeds>().map(|seeds| seeds.0).map_err(|error| error.to_string());
        assert_eq!(read("3").unwrap(), [1, 2, 3]);
        assert_eq!(read("7,").unwrap(), [7]);
        assert_eq!(read("5, 2,18446744073709551615").unwrap(), [5, 2, u64::MAX]);
        for wrong in ["", "0", "-1", "101", "18446744073709551615", "1,1", ",", ",,", "1,,2", "one", "1,x"] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains("such as 1,2,3"), "{wrong}: {error}");
        }
    }
}
