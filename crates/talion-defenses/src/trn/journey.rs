//! How a gradient comes back through the passes of a restoration, each by its own explicit derivative.

use std::cell::RefCell;

use tch::Tensor;

/// Passes of networks on the way of images, in their order. What lies between them is in libtorch's graph, of which a pass is
/// a cut: its results are variables of their own there.
#[derive(Default)]
pub(super) struct Journey<'a> {
    passes: RefCell<Vec<Passed<'a>>>,
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
    /// Notes a pass; `results` become variables.
    pub(super) fn note(&self, inputs: Vec<Tensor>, results: &[Tensor], back: Back<'a>) {
        let results = results.iter().map(|result| result.set_requires_grad(true)).collect();
        self.passes.borrow_mut().push(Passed { inputs, results, back });
    }

    /// The gradient with respect to `start` of `objective`, a number that the graph ends in.
    pub(super) fn pull_back(self, mut objective: Tensor, start: &Tensor) -> Tensor {
        for passed in self.passes.into_inner().into_iter().rev() {
            let results: Vec<&Tensor> = passed.results.iter().collect();
            let gradients = Tensor::run_backward(&[&objective], &results, true, false);
            let gradients = (passed.back)(&gradients);
            for (input, gradient) in passed.inputs.iter().zip(&gradients) {
                if input.requires_grad() {
                    objective = objective.g_add(&(input * gradient).sum(input.kind()));
                }
            }
        }
        Tensor::run_backward(&[objective], &[start], false, false).remove(0)
    }
}
