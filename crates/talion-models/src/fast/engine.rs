//! Runs a plan.

use std::{
    rc::Rc,
    sync::{Arc, Mutex},
};

use talion_kernels::{
    After, Buffer, Real, Rectify, Sum, Team, affine, affine_back, from_planes, join, mask_bytes, padded,
    to_planes,
};

use super::plan::{Plan, Step, Work};

/// A network that is ready to run on the CPU.
///
/// A row's results have the same bits in every batch and with every number of threads.
#[derive(Debug)]
pub(crate) struct Engine<T> {
    plan: Plan<T>,
    team: Mutex<Arc<Team<T>>>,
    tapes: Mutex<Vec<Tape>>,
}

/// What is kept of a way forwards: for every value the signs of its activations, for every pooling what it chose.
#[derive(Debug, Default)]
pub(crate) struct Tape {
    rows: usize,
    masks: Vec<Vec<u8>>,
    chosen: Vec<Vec<u16>>,
}

fn locked<G>(mutex: &Mutex<G>) -> std::sync::MutexGuard<'_, G> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl<T: Real> Engine<T> {
    pub(crate) fn new(plan: Plan<T>) -> Self {
        Self { plan, team: Mutex::new(Arc::new(Team::new(1))), tapes: Mutex::default() }
    }

    /// Number of classes.
    pub(crate) fn classes(&self) -> usize {
        self.plan.classes()
    }

    /// Numbers of one image.
    pub(crate) fn image(&self) -> usize {
        let [height, width] = self.plan.shapes[0].sides;
        self.plan.channels * height * width
    }

    /// The team, of as many threads as libtorch uses.
    fn team(&self, threads: usize) -> Arc<Team<T>> {
        let mut team = locked(&self.team);
        if team.threads() != threads.max(1) {
            *team = Arc::new(Team::new(threads));
        }
        team.clone()
    }

    /// Logits, `[rows, K]`, of images `[rows, C, H, W]`.
    pub(crate) fn logits(&self, threads: usize, images: &[T]) -> Vec<T> {
        self.forward(&self.team(threads), images, None)
    }

    /// The same, and what the way back needs.
    pub(crate) fn logits_and_tape(&self, threads: usize, images: &[T]) -> (Vec<T>, Tape) {
        let mut tape = locked(&self.tapes).pop().unwrap_or_default();
        let logits = self.forward(&self.team(threads), images, Some(&mut tape));
        (logits, tape)
    }

    /// The tape's memory is used again.
    pub(crate) fn recycle(&self, tape: Tape) {
        locked(&self.tapes).push(tape);
    }

    fn forward(&self, team: &Team<T>, images: &[T], mut tape: Option<&mut Tape>) -> Vec<T> {
        let plan = &self.plan;
        let rows = images.len() / self.image().max(1);
        if let Some(tape) = tape.as_deref_mut() {
            tape.rows = rows;
            tape.masks.resize_with(plan.shapes.len(), Vec::new);
            tape.chosen.resize_with(plan.shapes.len(), Vec::new);
        }
        let mut values: Vec<Option<Buffer<T>>> = plan.shapes.iter().map(|_| None).collect();
        let [height, width] = plan.shapes[0].sides;
        let mut first = team.take(rows * plan.shapes[0].elements());
        from_planes(images, [rows, plan.channels, height * width], &plan.shift, &plan.scale, &mut first);
        values[0] = Some(first);
        for (index, step) in plan.steps.iter().enumerate() {
            let value = self.step(team, rows, index, step, &mut values, tape.as_deref_mut());
            values[index + 1] = Some(value);
            for read in step.reads() {
                if plan.last_reader[read] == Some(index)
                    && let Some(buffer) = values[read].take()
                {
                    team.give(buffer);
                }
            }
        }
        let Some(last) = values.pop().flatten() else { return Vec::new() };
        let (classes, width) = (plan.classes(), padded(plan.classes()));
        let logits = last.chunks_exact(width).take(rows).flat_map(|row| &row[..classes]).copied().collect();
        team.give(last);
        logits
    }

    /// Computes one value.
    fn step(
        &self,
        team: &Team<T>,
        rows: usize,
        index: usize,
        step: &Step<T>,
        values: &mut [Option<Buffer<T>>],
        tape: Option<&mut Tape>,
    ) -> Buffer<T> {
        let (from, to) = (self.plan.shapes[step.source], self.plan.shapes[index + 1]);
        let mut output = team.take(rows * to.elements());
        let Some(input) = &values[step.source] else { return output };
        let (mut no_mask, mut no_choice) = (Vec::new(), Vec::new());
        let (mask, chosen, recording) = match tape {
            Some(tape) => (&mut tape.masks[index + 1], &mut tape.chosen[index + 1], true),
            None => (&mut no_mask, &mut no_choice, false),
        };
        let rectify = match (step.relu, recording) {
            (false, _) => Rectify::No,
            (true, false) => Rectify::Yes,
            (true, true) => {
                mask.resize(mask_bytes(output.len()), 0);
                Rectify::Record(mask)
            }
        };
        let sum = match step.add {
            Some(value) => values[value].as_ref().map_or(Sum::Nothing, |value| Sum::Other(value)),
            None => Sum::Nothing,
        };
        let after = After { sum, rectify };
        match &step.work {
            Work::Convolve(convolution) => {
                let shape = [rows, from.sides[0], from.sides[1]];
                convolution.forward(team, input, shape, &mut output, after);
            }
            Work::Affine { scale, shift } => affine(team, input, scale, shift, &mut output, after),
            Work::Pass => join(team, input, &mut output, after),
            Work::Pool(pooling) => {
                if recording && pooling.records() {
                    chosen.resize(output.len(), 0);
                }
                pooling.forward(team, input, [rows, padded(from.channels)], &mut output, chosen);
            }
        }
        output
    }

    /// The gradient with respect to the images, `[rows, C, H, W]`, of a loss whose gradient with respect to the logits is
    /// given, `[rows, K]`. A tape serves any number of times.
    pub(crate) fn backward(&self, threads: usize, tape: &Tape, gradient: &[T]) -> Vec<T> {
        let (plan, team) = (&self.plan, &*self.team(threads));
        let rows = tape.rows;
        let (classes, width) = (plan.classes(), padded(plan.classes()));
        let mut last = team.take(rows * width);
        for (to, from) in last.chunks_exact_mut(width).zip(gradient.chunks_exact(classes)) {
            to[..classes].copy_from_slice(from);
            to[classes..].fill(T::default());
        }
        let mut gradients = Gradients { team, buffers: plan.shapes.iter().map(|_| None).collect() };
        let top = plan.shapes.len() - 1;
        gradients.buffers[top] = Some(Rc::new(last));
        if plan.rectified(top) {
            gradients.mask(top, &tape.masks[top]);
        }
        for (index, step) in plan.steps.iter().enumerate().rev() {
            // a value that leads nowhere has no gradient
            if let Some(gradient) = gradients.buffers[index + 1].take() {
                self.step_back(&mut gradients, tape, index, step, gradient);
            }
        }
        let [height, width] = plan.shapes[0].sides;
        let mut planes = vec![T::default(); rows * self.image()];
        if let Some(first) = gradients.buffers[0].take() {
            to_planes(&first, [rows, plan.channels, height * width], &plan.scale, &mut planes);
            gradients.release(first);
        }
        planes
    }

    /// Takes the gradient of a step's result to what it read. The step that reads a value first comes last: it completes the
    /// value's gradient, and takes it through the value's ReLU.
    fn step_back(
        &self,
        gradients: &mut Gradients<'_, T>,
        tape: &Tape,
        index: usize,
        step: &Step<T>,
        gradient: Rc<Buffer<T>>,
    ) {
        let (plan, source) = (&self.plan, step.source);
        let closes = |value: usize| plan.first_reader[value] == Some(index) && plan.rectified(value);
        if let Some(add) = step.add {
            gradients.add(add, &gradient);
            if closes(add) && add != source {
                gradients.mask(add, &tape.masks[add]);
            }
        }
        let rectify = || if closes(source) { Rectify::Masked(&tape.masks[source]) } else { Rectify::No };
        let (rows, from) = (tape.rows, plan.shapes[source]);
        let output = gradients.extend(source, rows * from.elements(), |team, output, sum| {
            let after = After { sum, rectify: rectify() };
            match &step.work {
                Work::Convolve(convolution) => {
                    convolution.backward(
                        team,
                        &gradient,
                        [rows, from.sides[0], from.sides[1]],
                        output,
                        after,
                    );
                }
                Work::Affine { scale, .. } => affine_back(team, &gradient, scale, output, after),
                Work::Pass => join(team, &gradient, output, after),
                Work::Pool(pooling) => {
                    let mut spread = team.take(output.len());
                    let chosen = &tape.chosen[index + 1];
                    pooling.backward(team, &gradient, [rows, padded(from.channels)], &mut spread, chosen);
                    join(team, &spread, output, after);
                    team.give(spread);
                }
            }
        });
        gradients.buffers[source] = Some(Rc::new(output));
        gradients.release(gradient);
    }
}

/// The gradients of values on the way back, as far as they are known. A sum hands the same one to both of its parts.
struct Gradients<'a, T> {
    team: &'a Team<T>,
    buffers: Vec<Option<Rc<Buffer<T>>>>,
}

impl<T: Real> Gradients<'_, T> {
    /// What `work` computes for a value, which is told where, and to what it has to be added.
    fn extend(
        &mut self,
        value: usize,
        length: usize,
        work: impl FnOnce(&Team<T>, &mut [T], Sum<'_, T>),
    ) -> Buffer<T> {
        match self.buffers[value].take().map(Rc::try_unwrap) {
            None => {
                let mut output = self.team.take(length);
                work(self.team, &mut output, Sum::Nothing);
                output
            }
            Some(Ok(mut own)) => {
                work(self.team, &mut own, Sum::Own);
                own
            }
            Some(Err(shared)) => {
                let mut output = self.team.take(length);
                work(self.team, &mut output, Sum::Other(&shared));
                self.release(shared);
                output
            }
        }
    }

    /// Adds a gradient as it is to a value's.
    fn add(&mut self, value: usize, gradient: &Rc<Buffer<T>>) {
        let sum = if self.buffers[value].is_none() {
            gradient.clone()
        } else {
            Rc::new(self.extend(value, gradient.len(), |team, output, sum| {
                join(team, gradient, output, After { sum, rectify: Rectify::No });
            }))
        };
        self.buffers[value] = Some(sum);
    }

    /// Takes a value's gradient through its ReLU.
    fn mask(&mut self, value: usize, mask: &[u8]) {
        let Some(gradient) = self.buffers[value].take() else { return };
        let mut output = self.team.take(gradient.len());
        join(self.team, &gradient, &mut output, After { sum: Sum::Nothing, rectify: Rectify::Masked(mask) });
        self.buffers[value] = Some(Rc::new(output));
        self.release(gradient);
    }

    /// Gives memory back, if nobody else looks at it.
    fn release(&self, gradient: Rc<Buffer<T>>) {
        if let Ok(buffer) = Rc::try_unwrap(gradient) {
            self.team.give(buffer);
        }
    }
}
