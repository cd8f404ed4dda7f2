//! Square Attack: random search with squares, by answers alone.

use serde::{Deserialize, Serialize};
use talion_core::{Budget, Classifier, Error, Norm, Objective, Result, SampleStream};
use tch::{Kind, Tensor};

use crate::{
    Attack, Attempt, Batch, Conditions, Passes,
    apgd::{at_least_one, times, unless_default},
    attempt::{Rows, choose},
    spec::suffix,
};

/// Random search: a square of the image gets a random change of the full budget, which is kept if the classifier comes closer
/// to an error. It sees logits, never a gradient, so that masked gradients cannot mislead it.
///
/// In `Linf` a square of one colour is added, each channel brighter or darker by up to `2 * epsilon`, inside the budget. In
/// `L2` the change in one window is taken away, and all that the budget has left goes into another, in the shape of a bump
/// beside a dent. `L1` and `L0` are refused.
///
/// A row is finished as soon as it fools, whatever [`Conditions::until_fooled`] says. The closeness to an error is the margin,
/// [`Objective::Margin`], or, with [`Objective::TargetedCrossEntropy`], that objective.
///
/// In AutoAttack all images of a batch share their squares. Here each sample draws its own, and a window may lie at every
/// place where it fits, as in the paper; AutoAttack never draws the last one.
///
/// # Source
/// Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random search", ECCV 2020:
/// algorithms 1, 2 (`Linf`) and 3 (`L2`), equation 2; 5000 queries, `p` of 0.8 and its schedule as in AutoAttack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Square {
    /// Number of squares tried, at least 1; the answer at the start is one query more. Default 5000.
    pub queries: u32,
    /// The share of the image that the first squares cover, above 0, at most 1. It is halved after 10, 50, 200, 500, 1000,
    /// 2000, 4000, 6000 and 8000 queries, however many there are in all. Default 0.8.
    pub p: f64,
    /// Number of random starts, at least 1. Default 1.
    pub restarts: u32,
}

const P: f64 = 0.8;

impl Default for Square {
    fn default() -> Self {
        Self { queries: 5000, p: P, restarts: 1 }
    }
}

impl Square {
    fn check(&self, batch: &Batch<'_>) -> Result<()> {
        at_least_one("the number of queries", self.queries)?;
        at_least_one("the number of restarts", self.restarts)?;
        if !(self.p > 0.0 && self.p <= 1.0) {
            return Err(Error::range("p", "above 0, at most 1", self.p));
        }
        match batch.budget.norm() {
            Norm::Linf | Norm::L2 => Ok(()),
            norm @ (Norm::L1 | Norm::L0) => {
                Err(Error::Refused(format!("Square Attack is defined for Linf and L2, not for {norm}")))
            }
        }
    }
}

impl Attack for Square {
    fn name(&self) -> String {
        let p = suffix("p", unless_default(self.p, P));
        format!("square-{}{}{p}", self.queries, times(self.restarts))
    }

    fn cost(&self) -> Passes {
        Passes::LOGITS.times(u64::from(self.queries) + 1)
    }

    fn restarts(&self, _classes: i64) -> u64 {
        self.restarts.into()
    }

    fn begin(&self, batch: &Batch<'_>, _conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        self.check(batch)?;
        let rows = Rows::new(batch);
        let (device, count) = (batch.images.device(), batch.ids.len() as i64);
        Ok(Box::new(Search {
            best: start(batch, &rows.keys()?)?,
            best_loss: Tensor::full([count], f64::NEG_INFINITY, (Kind::Double, device)),
            rows,
            budget: batch.budget,
            goal: batch.objective,
            loss: match batch.objective {
                Objective::TargetedCrossEntropy => Objective::TargetedCrossEntropy,
                Objective::CrossEntropy | Objective::Margin | Objective::Dlr => Objective::Margin,
            },
            queries: self.queries,
            p: self.p,
            seed: batch.seed,
        }))
    }
}

/// What the draws are keyed by, beside sample, restart and step.
const PURPOSE: &str = "square";

/// One start in progress.
struct Search {
    rows: Rows,
    /// The best images so far; before the first query, those to begin with.
    best: Tensor,
    /// `[N]`, `f64`.
    best_loss: Tensor,
    budget: Budget,
    /// Says what fools.
    goal: Objective,
    loss: Objective,
    queries: u32,
    p: f64,
    seed: u64,
}

impl Attempt for Search {
    fn step(&mut self, classifier: &dyn Classifier) -> Result<()> {
        let first = self.rows.iteration.eq(0_i64);
        let candidate = choose(&first, &self.best, &self.propose()?);
        let logits = classifier.search_logits(&candidate);
        let loss = self.loss.per_sample(&logits, &self.rows.labels).to_kind(Kind::Double);
        let fooled = self.goal.reached(&logits.argmax(1, false), &self.rows.labels);
        let better = loss.gt_tensor(&self.best_loss).logical_or(&fooled);
        let accepted = better.logical_and(&self.rows.finished.logical_not());
        self.best = choose(&accepted, &candidate, &self.best);
        self.best_loss = choose(&accepted, &loss, &self.best_loss);
        self.rows.count(i64::from(self.queries) + 1, Some(&fooled));
        Ok(())
    }

    fn state(&mut self) -> Vec<&mut Tensor> {
        let mut state = self.rows.state();
        state.extend([&mut self.best, &mut self.best_loss]);
        state
    }

    fn finished(&self) -> Tensor {
        self.rows.finished.shallow_clone()
    }

    fn adversarial(&self) -> Tensor {
        self.best.shallow_clone()
    }

    fn passes(&self) -> Passes {
        Passes::LOGITS
    }
}

impl Search {
    /// A new image for each row.
    fn propose(&self) -> Result<Tensor> {
        let draws = self.draw()?;
        let (original, epsilon) = (&self.rows.original, self.budget.epsilon());
        let candidate = match self.budget.norm() {
            Norm::L2 => original + self.budget.steepest(&self.moved(&draws)?) * epsilon,
            Norm::Linf | Norm::L1 | Norm::L0 => {
                let inside = mask(&draws.windows, &self.best)?;
                &self.best + inside * draws.signs(&self.best) * (2.0 * epsilon)
            }
        };
        Ok(self.budget.project(original, &candidate))
    }

    /// The draws of all rows, each from its sample's stream for this step.
    fn draw(&self) -> Result<Draws> {
        let (_, channels, height, width) = shape(&self.best)?;
        let steps = Vec::<i64>::try_from(&self.rows.iteration)?;
        let mut draws = Draws::default();
        for ((id, key), step) in self.rows.keys()?.into_iter().zip(steps) {
            let mut stream = SampleStream::new(self.seed, PURPOSE, key, id);
            // the first query was spent at the start
            let share = share(self.p, step - 1);
            let side = side(share, height, width, self.budget.norm());
            draws.windows.push(Window::draw(&mut stream, height, width, side));
            draws.signs.extend((0..channels).map(|_| sign(&mut stream)));
            if self.budget.norm() == Norm::L2 {
                draws.turned.push(stream.below(2) == 1);
                draws.sources.push(Window::draw(&mut stream, height, width, side));
            }
        }
        Ok(draws)
    }

    /// The change in `L2`, up to its length: the source window is emptied; the other gets, in each channel, its own old
    /// change and a new pattern, in equal parts, as long as both windows were, with what the budget has left.
    fn moved(&self, draws: &Draws) -> Result<Tensor> {
        let change = &self.best - &self.rows.original;
        let (_, channels, ..) = shape(&change)?;
        let window = mask(&draws.windows, &change)?;
        let either = window.maximum(&mask(&draws.sources, &change)?);
        let kept = &change * (1.0 - &either);
        let old = &change * &window;
        let new = draws.patterns(&change)? * draws.signs(&change) + &old / (length(&old) + 1e-12);
        let squared = |values: &Tensor| values.square().sum_dim_intlist([2_i64, 3].as_slice(), true, None);
        let total = squared(&change).sum_dim_intlist([1_i64].as_slice(), true, None);
        let left = (self.budget.epsilon().powi(2) - total).clamp_min(0.0) / channels.max(1) as f64;
        let available = (squared(&(&change * &either)) + left).sqrt();
        Ok(kept + &new / (length(&new) + 1e-12) * available)
    }
}

/// What one step draws, for all rows.
#[derive(Default)]
struct Draws {
    /// The windows that get a new change.
    windows: Vec<Window>,
    /// In `L2`, the windows whose change is taken away.
    sources: Vec<Window>,
    /// In `L2`, whether the pattern lies on its side.
    turned: Vec<bool>,
    /// 1 or -1 for each channel of each row.
    signs: Vec<f32>,
}

impl Draws {
    /// `[N, C, 1, 1]`, of the type of `like`, where it lies.
    fn signs(&self, like: &Tensor) -> Tensor {
        let rows = self.windows.len() as i64;
        let channels = (self.signs.len() / self.windows.len().max(1)) as i64;
        matching(&self.signs, like).reshape([rows, channels, 1, 1])
    }

    /// The pattern of each row in its window, zero elsewhere: `[N, 1, H, W]`.
    fn patterns(&self, like: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = shape(like)?;
        let mut values = vec![0.0; self.windows.len() * height * width];
        let images = values.chunks_exact_mut((height * width).max(1));
        for ((image, &window), &turned) in images.zip(&self.windows).zip(&self.turned) {
            paste(image, width, window, &pattern(window.side, turned), 1.0);
        }
        let rows = self.windows.len() as i64;
        Ok(matching(&values, like).reshape([rows, 1, height as i64, width as i64]))
    }
}

/// A square part of an image, in pixels.
#[derive(Clone, Copy, Debug)]
struct Window {
    top: usize,
    left: usize,
    side: usize,
}

impl Window {
    /// Uniform over the places where it fits; a side longer than the image is cut.
    fn draw(stream: &mut SampleStream, height: usize, width: usize, side: usize) -> Self {
        let side = side.min(height).min(width);
        let mut place = |length: usize| stream.below((length - side + 1) as u32) as usize;
        Self { top: place(height), left: place(width), side }
    }
}

/// 1 inside each row's window, 0 outside: `[N, 1, H, W]`, of the type of `like`, where it lies.
fn mask(windows: &[Window], like: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = shape(like)?;
    let column = |of: fn(&Window) -> usize| {
        let values: Vec<i64> = windows.iter().map(|window| of(window) as i64).collect();
        Tensor::from_slice(&values).to_device(like.device()).unsqueeze(1)
    };
    let side = column(|window| window.side);
    let within = |length: usize, first: Tensor| {
        let places = Tensor::arange(length as i64, (Kind::Int64, like.device()));
        places.ge_tensor(&first).logical_and(&places.lt_tensor(&(&first + &side)))
    };
    let rows = within(height, column(|window| window.top)).unsqueeze(2);
    let columns = within(width, column(|window| window.left)).unsqueeze(1);
    Ok(rows.logical_and(&columns).unsqueeze(1).to_kind(like.kind()))
}

/// The share of the image that a square covers, in the `query`-th query after the start, from 0.
fn share(first: f64, query: i64) -> f64 {
    let halvings =
        [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000].iter().filter(|&&last| query > last).count();
    first * 0.5_f64.powi(halvings as i32)
}

/// The side of a square that covers `share` of an image, in pixels: at least 1; in `L2` at least 3, and odd.
fn side(share: f64, height: usize, width: usize, norm: Norm) -> usize {
    let side = (share * (height * width) as f64).sqrt().round() as usize;
    if norm == Norm::L2 { side.max(3) | 1 } else { side.max(1) }
}

/// Where to begin: in `Linf` stripes one pixel wide, from top to bottom; in `L2` a grid of patterns.
fn start(batch: &Batch<'_>, keys: &[(u64, u64)]) -> Result<Tensor> {
    let (original, budget) = (batch.images.detach(), batch.budget);
    let change = match budget.norm() {
        Norm::L2 => budget.steepest(&tiles(batch, keys)?),
        Norm::Linf | Norm::L1 | Norm::L0 => stripes(batch, keys)?,
    };
    Ok(budget.project(&original, &(&original + change * budget.epsilon())))
}

/// 1 or -1 for each column of each channel, `[N, C, 1, W]`.
fn stripes(batch: &Batch<'_>, keys: &[(u64, u64)]) -> Result<Tensor> {
    let (rows, channels, _, width) = shape(batch.images)?;
    let mut signs = Vec::with_capacity(rows * channels * width);
    for &(id, key) in keys {
        let mut stream = SampleStream::new(batch.seed, PURPOSE, key, id);
        signs.extend((0..channels * width).map(|_| sign(&mut stream)));
    }
    Ok(matching(&signs, batch.images).reshape([rows as i64, channels as i64, 1, width as i64]))
}

/// Patterns side by side, five of them along the shorter side of the image, each with its own direction, and its own sign
/// in each channel.
fn tiles(batch: &Batch<'_>, keys: &[(u64, u64)]) -> Result<Tensor> {
    let (rows, channels, height, width) = shape(batch.images)?;
    let side = (height.min(width) / 5).max(1);
    let mut values = vec![0.0; rows * channels * height * width];
    for (image, &(id, key)) in values.chunks_exact_mut((channels * height * width).max(1)).zip(keys) {
        let mut stream = SampleStream::new(batch.seed, PURPOSE, key, id);
        for window in grid(height, width, side) {
            let pattern = pattern(side, stream.below(2) == 1);
            for channel in image.chunks_exact_mut((height * width).max(1)) {
                paste(channel, width, window, &pattern, sign(&mut stream));
            }
        }
    }
    Ok(matching(&values, batch.images).view_as(batch.images))
}

/// As many windows as fit, side by side, in the middle of the image.
fn grid(height: usize, width: usize, side: usize) -> Vec<Window> {
    let starts = |length: usize| {
        let (count, margin) = (length / side, length % side / 2);
        (0..count).map(|tile| margin + tile * side).collect::<Vec<_>>()
    };
    let columns = starts(width);
    let rows = starts(height).into_iter();
    rows.flat_map(|top| columns.iter().map(move |&left| Window { top, left, side })).collect()
}

/// Writes `pattern`, row by row of the window's side, times `sign` into the window of one channel.
fn paste(channel: &mut [f32], width: usize, window: Window, pattern: &[f32], sign: f32) {
    let lines = channel.chunks_exact_mut(width.max(1)).skip(window.top);
    for (line, values) in lines.zip(pattern.chunks_exact(window.side.max(1))) {
        for (pixel, value) in line.iter_mut().skip(window.left).zip(values) {
            *pixel = sign * value;
        }
    }
}

/// A bump in the upper half of a square and a dent in the lower, or, turned, in the left and the right one: `side * side`
/// values with squares that sum to 1.
fn pattern(side: usize, turned: bool) -> Vec<f32> {
    let upper = side / 2;
    let mut values = bump(upper, side);
    values.extend(bump(side - upper, side).iter().map(|value| -value));
    let values = unit(&values);
    (0..side * side)
        .map(|place| if turned { place % side * side + place / side } else { place })
        .map(|place| values.get(place).copied().unwrap_or_default() as f32)
        .collect()
}

/// Rectangles laid on each other, a ring smaller each time: the value of a pixel is the sum of `1 / k^2` over the rings from
/// its own to the outermost, the k-th from the middle.
fn bump(rows: usize, columns: usize) -> Vec<f64> {
    let (row, column) = (rows / 2, columns / 2);
    let outermost = row.max(column) + 1;
    let mut heights: Vec<f64> = (1..=outermost)
        .rev()
        .scan(0.0, |sum, ring| {
            *sum += 1.0 / (ring as f64).powi(2);
            Some(*sum)
        })
        .collect();
    heights.reverse();
    let pixels = (0..rows * columns).map(|place| (place / columns, place % columns));
    let rings = pixels.map(|(y, x)| y.abs_diff(row).max(x.abs_diff(column)));
    unit(&rings.map(|ring| heights.get(ring).copied().unwrap_or_default()).collect::<Vec<_>>())
}

/// Divided by the root of the sum of squares, where that is not zero.
fn unit(values: &[f64]) -> Vec<f64> {
    let length = values.iter().map(|value| value * value).sum::<f64>().sqrt();
    values.iter().map(|value| if length > 0.0 { value / length } else { *value }).collect()
}

/// The Euclidean length of each channel, `[N, C, 1, 1]`.
fn length(values: &Tensor) -> Tensor {
    values.square().sum_dim_intlist([2_i64, 3].as_slice(), true, None).sqrt()
}

/// 1 or -1 with equal chances.
fn sign(stream: &mut SampleStream) -> f32 {
    if stream.below(2) == 0 { -1.0 } else { 1.0 }
}

/// A vector of the type of `like`, where it lies.
fn matching(values: &[f32], like: &Tensor) -> Tensor {
    Tensor::from_slice(values).to_device(like.device()).to_kind(like.kind())
}

/// Images, channels, height and width.
fn shape(images: &Tensor) -> Result<(usize, usize, usize, usize)> {
    let (rows, channels, height, width) = images.size4()?;
    Ok((rows as usize, channels as usize, height as usize, width as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Logits linear in the image, without offset.
    struct Linear(Tensor);

    impl Classifier for Linear {
        fn classes(&self) -> i64 {
            self.0.size()[0]
        }

        fn logits(&self, images: &Tensor) -> Tensor {
            images.flatten(1, -1).matmul(&self.0.tr())
        }
    }

    fn linear(classes: u64, values: i64) -> Linear {
        let ids: Vec<u64> = (0..classes).collect();
        Linear(talion_core::gaussian_noise(&[values], &ids, 5, "linear", 0))
    }

    fn batch<'a>(images: &'a Tensor, labels: &'a Tensor, ids: &'a [u64], norm: Norm) -> Batch<'a> {
        let budget = Budget::new(norm, 0.2).unwrap();
        Batch { images, labels, ids, budget, objective: Objective::CrossEntropy, seed: 1, restart: 0 }
    }

    #[test]
    fn squares_shrink_as_in_the_reference() {
        let expected = [
            (0, 1.0),
            (10, 1.0),
            (11, 2.0),
            (50, 2.0),
            (51, 4.0),
            (200, 4.0),
            (500, 8.0),
            (1000, 16.0),
            (2000, 32.0),
            (4000, 64.0),
            (6000, 128.0),
            (8000, 256.0),
            (8001, 512.0),
        ];
        for (query, divisor) in expected {
            assert_eq!(share(0.8, query), 0.8 / divisor, "{query}");
        }
        assert_eq!((side(0.8, 32, 32, Norm::Linf), side(0.8, 32, 32, Norm::L2)), (29, 29));
        assert_eq!((side(1e-5, 32, 32, Norm::Linf), side(1e-5, 32, 32, Norm::L2)), (1, 3));
    }

    #[test]
    fn windows_stay_in_the_image_and_reach_its_edges() {
        let mut stream = SampleStream::new(1, "test", 0, 0);
        for (height, width, side) in [(5, 7, 3), (4, 4, 4), (3, 8, 9), (1, 1, 1)] {
            let (mut lowest, mut rightmost) = (0, 0);
            for _ in 0..300 {
                let window = Window::draw(&mut stream, height, width, side);
                lowest = lowest.max(window.top + window.side);
                rightmost = rightmost.max(window.left + window.side);
            }
            assert_eq!((lowest, rightmost), (height, width));
        }
        let windows = [Window { top: 1, left: 0, side: 2 }, Window { top: 0, left: 3, side: 1 }];
        let like = Tensor::zeros([2, 3, 3, 4], (Kind::Float, Device::Cpu));
        let found = Vec::<f32>::try_from(mask(&windows, &like).unwrap().flatten(0, -1)).unwrap();
        let first = [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0];
        let second = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        assert_eq!(found, [first, second].concat());
    }

    #[test]
    fn patterns_are_a_bump_beside_a_dent() {
        for side in 1..8 {
            let upright = pattern(side, false);
            let length: f32 = upright.iter().map(|value| value * value).sum();
            assert!((length - 1.0).abs() < 1e-5, "{side}");
            for (place, value) in upright.iter().enumerate() {
                assert_eq!(*value > 0.0, place / side < side / 2, "{side} {place}");
            }
            let turned = pattern(side, true);
            for place in 0..side * side {
                assert_eq!(turned[place], upright[place % side * side + place / side]);
            }
        }
        assert!(pattern(0, false).is_empty());
        // rings of 1/4 and of 1 + 1/4
        let heights = bump(3, 3);
        assert!((heights[4] / heights[0] - 5.0).abs() < 1e-12);
    }

    #[test]
    fn candidates_use_the_whole_budget() {
        let images = Tensor::full([2, 3, 11, 9], 0.5, (Kind::Float, Device::Cpu));
        let labels = Tensor::from_slice(&[0_i64, 1]);
        for norm in [Norm::Linf, Norm::L2] {
            let batch = batch(&images, &labels, &[3, 4], norm);
            let begun = start(&batch, &[(3, 0), (4, 0)]).unwrap();
            let far = batch.budget.distance(&images, &begun);
            assert!((far - 0.2).abs().max().double_value(&[]) < 1e-5, "{norm}");
            let mut search = Search {
                best: begun,
                best_loss: Tensor::zeros([2], (Kind::Double, Device::Cpu)),
                rows: Rows::new(&batch),
                budget: batch.budget,
                goal: batch.objective,
                loss: Objective::Margin,
                queries: 100,
                p: 0.3,
                seed: 1,
            };
            for step in 1..20_i64 {
                search.rows.iteration = search.rows.iteration.full_like(step);
                search.best = search.propose().unwrap();
                let far = batch.budget.distance(&images, &search.best);
                assert!((far - 0.2).abs().max().double_value(&[]) < 1e-5, "{norm} {step}");
            }
        }
    }

    #[test]
    fn the_loss_never_falls_and_neighbours_do_not_matter() {
        let classifier = linear(2, 108);
        let images = Tensor::full([2, 3, 6, 6], 0.5, (Kind::Float, Device::Cpu));
        // labels that are right, so that there is something to do
        let labels = classifier.predict(&images);
        for norm in [Norm::Linf, Norm::L2] {
            let both = batch(&images, &labels, &[3, 4], norm);
            let attack = Square { queries: 40, ..Square::default() };
            let mut search = attack.begin(&both, &Conditions::default()).unwrap();
            let mut before = f64::NEG_INFINITY;
            while !bool::try_from(search.finished().all()).unwrap() {
                search.step(&classifier).unwrap();
                let logits = classifier.logits(&search.adversarial());
                let after = Objective::Margin.per_sample(&logits, &labels).double_value(&[0]);
                assert!(after >= before - 1e-5, "{norm}");
                before = after;
            }
            let (image, label) = (images.narrow(0, 0, 1), labels.narrow(0, 0, 1));
            let alone = attack.perturb(&classifier, &batch(&image, &label, &[4], norm)).unwrap();
            let change = (search.adversarial().narrow(0, 1, 1) - alone).abs().max();
            assert!(change.double_value(&[]) < 1e-5, "{norm}");
        }
    }

    #[test]
    fn names_hold_every_setting_and_bad_ones_are_errors() {
        assert_eq!(Square::default().name(), "square-5000");
        assert_eq!(Square { queries: 10, p: 0.5, restarts: 2 }.name(), "square-10x2:p=0.5");
        let images = Tensor::full([1, 1, 2, 2], 0.5, (Kind::Float, Device::Cpu));
        let labels = Tensor::from_slice(&[0_i64]);
        let refused = |attack: Square, norm| {
            attack.begin(&batch(&images, &labels, &[0], norm), &Conditions::default()).is_err()
        };
        assert!(!refused(Square::default(), Norm::L2));
        assert!(refused(Square::default(), Norm::L1) && refused(Square::default(), Norm::L0));
        assert!(refused(Square { p: f64::NAN, ..Square::default() }, Norm::Linf));
        assert!(refused(Square { queries: 0, ..Square::default() }, Norm::Linf));
    }
}
