//! Networks as TorchScript.
//!
//! A TorchScript file is a program that libtorch runs, with what that entails: a hostile one can read and write files
//! or take over the process. Load only files from people you trust, unlike the other formats, which are data.

use std::path::Path;

use talion_core::{Error, Result, Tensors};
use tch::{CModule, Device, IValue, Tensor};

/// A TorchScript module in evaluation mode, its parameters frozen.
#[derive(Debug)]
pub(crate) struct Script {
    module: CModule,
    parameters: Tensors,
}

impl Script {
    /// Loads the program in `path`, to be run on `device`.
    ///
    /// # Errors
    /// If the file cannot be read, or libtorch does not take it.
    pub(crate) fn load(path: &Path, device: Device) -> Result<Self> {
        // libtorch's own message for a missing file is a page long
        std::fs::File::open(path).map_err(Error::io(path))?;
        let problem = |error: tch::TchError| {
            Error::file(path, format!("is not TorchScript that libtorch can load: {}", reason(&error)))
        };
        let mut module = CModule::load_on_device(path, device).map_err(problem)?;
        module.f_set_eval().map_err(problem)?;
        let mut parameters = Tensors::new();
        for (name, tensor) in module.named_parameters().map_err(problem)? {
            // the same tensor as the module's, so this freezes the module
            let _ = tensor.f_set_requires_grad(false).map_err(problem)?;
            parameters.insert(name, tensor);
        }
        Ok(Self { module, parameters })
    }

    /// The logits of images, which autograd can go back through.
    ///
    /// # Errors
    /// If the program fails, or gives something other than one tensor with a row of logits for each image.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]`, as the program expects them; the result is `[N, K]`.
    pub(crate) fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let output = self.module.forward_is(&[IValue::Tensor(images.shallow_clone())]).map_err(|error| {
            let shape = images.size();
            Error::Refused(format!("the TorchScript model fails on images {shape:?}: {}", reason(&error)))
        })?;
        let what = match output {
            IValue::Tensor(logits) => {
                if logits.dim() == 2 && logits.size().first() == images.size().first() {
                    return Ok(logits);
                }
                format!("a tensor of shape {:?}", logits.size())
            }
            IValue::Tuple(values) => format!("a tuple of {}", values.len()),
            IValue::TensorList(values) => format!("a list of {} tensors", values.len()),
            IValue::GenericDict(entries) => format!("a dict of {}", entries.len()),
            _ => "something that is not a tensor".to_owned(),
        };
        Err(Error::Refused(format!(
            "the TorchScript model gives {what}, expected logits [{}, K]; wrap it in a module that returns the logits \
             alone, and save that",
            images.size().first().copied().unwrap_or(0)
        )))
    }

    /// Number of trained weights. A module that was saved after `torch.jit.freeze` has none: they are constants then.
    pub(crate) fn parameters(&self) -> usize {
        self.parameters.values().map(Tensor::numel).sum()
    }

    /// The parameters by name. Buffers, as running statistics, are not among them.
    pub(crate) fn tensors(&self) -> Tensors {
        self.parameters.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    }
}

/// The line of libtorch's message that says what is wrong: around it are pages of code and of its own stack.
fn reason(error: &tch::TchError) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("Internal torch error:").unwrap_or(&text);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.clone().next().unwrap_or_default();
    lines.find(|line| line.starts_with("RuntimeError:")).unwrap_or(first).to_owned()
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::import::testing::*;

    fn loaded(bytes: &[u8]) -> Result<Script> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net.pt");
        std::fs::write(&path, bytes).unwrap();
        Script::load(&path, Device::Cpu)
    }

    const LINEAR: &str = "return torch.mm(torch.flatten(x, 1), torch.t(self.w))";

    #[test]
    fn a_script_gives_logits_and_gradients_of_the_images_alone() {
        let script = loaded(&script("Tensor", LINEAR)).unwrap();
        assert_eq!(script.parameters(), 6);
        let tensors = script.tensors();
        let weight = &tensors["w"];
        assert!(!weight.requires_grad());
        assert_eq!(Vec::<f32>::try_from(weight.flatten(0, -1)).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let images = Tensor::from_slice(&[1.0_f32, 0.5, 2.0, 0.0, 1.0, 0.0]).view([2, 1, 1, 3]);
        let images = images.set_requires_grad(true);
        let logits = script.forward(&images).unwrap();
        assert_eq!(Vec::<f32>::try_from(logits.flatten(0, -1)).unwrap(), [4.5, 15.0, 1.0, 4.0]);
        logits.sum(Kind::Float).backward();
        let gradient = Vec::<f32>::try_from(images.grad().flatten(0, -1)).unwrap();
        assert_eq!(gradient, [3.0, 5.0, 7.0, 3.0, 5.0, 7.0]);
    }

    #[test]
    fn other_outputs_are_refused_with_advice() {
        let images = Tensor::ones([2, 1, 1, 3], (Kind::Float, Device::Cpu));
        let cases = [
            ("Tuple[Tensor, Tensor]", "return (x, x)", "a tuple of 2"),
            ("Dict[str, Tensor]", "return {\"out\": x}", "a dict of 1"),
            ("Tensor", "return x", "shape [2, 1, 1, 3]"),
            ("Tensor", "return torch.flatten(x)", "shape [6]"),
            ("Tensor", "return torch.t(torch.flatten(x, 1))", "shape [3, 2]"),
            ("int", "return 3", "not a tensor"),
        ];
        for (result, body, words) in cases {
            let error = loaded(&script(result, body)).unwrap().forward(&images).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("returns the logits alone"), "{error}");
        }
    }

    #[test]
    fn failures_are_errors_of_a_line() {
        let network = loaded(&script("Tensor", LINEAR)).unwrap();
        let error = network.forward(&Tensor::ones([2, 1, 1, 4], (Kind::Float, Device::Cpu))).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("[2, 1, 1, 4]: RuntimeError") && error.lines().count() == 1, "{error}");
        for bytes in [&b"PK\x03\x04"[..], b"", &script("Tensor", "return torch.no_such_thing(x)")] {
            let error = loaded(bytes).unwrap_err().to_string();
            assert!(error.contains("net.pt") && error.lines().count() == 1, "{error}");
        }
        assert!(Script::load(Path::new("/no/such/file"), Device::Cpu).is_err());
    }
}
