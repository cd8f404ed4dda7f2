//! How a gradient comes back through the passes of a restoration, each by its own explicit derivative.

use std::cell::RefCell;

use tch::Tensor;

/// Passes of networks on the way of images, in their order. What lies between them is in libtorch's graph, of which a pass is
/// a cut: its results are variables of their own there.
#[derive(Default)]
pub(super) struct Journey<'a> {
    passes: RefCell<Vec<Passed<'a>>>,
    learns: bool,
}

/// The derivative of a pass: what it kept, gradients with respect to its results in, gradients with respect to its inputs out.
pub(super) type Back<'a> = Box<dyn FnOnce(&[Tensor]) -> Vec<Tensor> + 'a>;

/// A pass of a network.
struct Passed<'a> {
    /// What went in, as the graph has it.
    inputs: Vec<Tensor>,
    /// What came out, as the graph goes on with it.
    results: Vec<Tensor>,
    back: Back<'a>,
}

impl<'a> Journey<'a> {
    /// One on which weights learn: passes have these among their inputs.
    pub(super) fn learning() -> Self {
        Self { learns: true, ..Self::default() }
    }

    /// Whether weights learn on it.
    pub(super) fn learns(&self) -> bool {
        self.learns
    }

    /// Notes a pass; `results` become variables.
    pub(super) fn note(&self, inputs: Vec<Tensor>, results: &[Tensor], back: Back<'a>) {
        let results = results.iter().map(|result| result.set_requires_grad(true)).collect();
        self.passes.borrow_mut().push(Passed { inputs, results, back });
    }

    /// The gradient with respect to `start` of `objective`, a number that the graph ends in.
    pub(super) fn pull_back(self, objective: Tensor, start: &Tensor) -> Tensor {
        Tensor::run_backward(&[self.fold(objective)], &[start], false, false).remove(0)
    }

    /// A number with the derivative of `objective`, in whose graph no pass is missing: each is there as the product of what went
    /// in and its gradient.
    pub(super) fn fold(self, mut objective: Tensor) -> Tensor {
        for passed in self.passes.into_inner().into_iter().rev() {
            let results: Vec<&Tensor> = passed.results.iter().collect();
            let gradients: Vec<Tensor> = Tensor::run_backward(&[&objective], &results, true, false)
                .into_iter()
                .zip(&results)
                // what nobody has used has no gradient
                .map(|(gradient, result)| if gradient.defined() { gradient } else { result.zeros_like() })
                .collect();
            let gradients = (passed.back)(&gradients);
            for (input, gradient) in passed.inputs.iter().zip(&gradients) {
                if input.requires_grad() {
                    objective = objective.g_add(&(input * gradient).sum(input.kind()));
                }
            }
        }
        objective
    }
}
