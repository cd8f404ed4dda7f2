//! The whole defence as one plain graph, which runs where there is no autograd.

use talion_core::{Error, Result};
use talion_onnx::{Builder, Graph, Port, Program, Shapes, Side};
use tch::{Device, Kind, Tensor};

use crate::{gradient_map::classify, trn::Trn};

/// The largest height and width.
const LARGEST: i64 = 8192;

/// `classifier` behind `trn` as one graph for images of one height and width and batches of any size: input `images`
/// `[N, C, H, W]`, `f32` in `[0, 1]`; outputs `logits` `[N, K]` of the restored images, `restored` `[N, C, H, W]`, and
/// `undefended` `[N, K]`, the bare classifier's logits of the images as they came.
///
/// The gradient maps are in it as ordinary operators: what runs the graph needs no derivatives.
///
/// # Errors
/// If the classifier does not take such images in batches of any size, or has not the classes that the TRN was trained
/// for; if its derivative cannot be written out; or if the TRN's estimator needs what no defence has.
pub fn export(classifier: &Graph, trn: &Trn, size: [i64; 2]) -> Result<Graph> {
    let card = trn.card();
    let channels = card.spec.channels;
    if size.iter().any(|side| !(1..=LARGEST).contains(side)) {
        return Err(Error::range("the image size", format!("1 to {LARGEST} a side"), format!("{size:?}")));
    }
    let images = [channels, size[0], size[1]];
    check_input(classifier, images)?;
    check_classes(classifier, images, card.classes)?;
    let classifier = Shapes::record(classifier, images)?;

    let mut b = Builder::new("talion");
    let batch = || Side::Named("N".into());
    let image_shape = || std::iter::once(batch()).chain(images.map(Side::Fixed)).collect::<Vec<_>>();
    let logits_shape = || vec![batch(), Side::Fixed(card.classes)];
    let images = b.input("images", Kind::Float, image_shape());
    let (restored, undefended) = trn.emit(&mut b, &classifier, &images, size)?;
    let logits = classify(&mut b, &classifier, &restored)?;
    b.finish(&[
        ("logits", &logits, logits_shape()),
        ("restored", &restored, image_shape()),
        ("undefended", &undefended, logits_shape()),
    ])
}

/// Checks that the classifier takes any number of `images`: channels, height, width.
fn check_input(classifier: &Graph, images: [i64; 3]) -> Result<()> {
    let input = only(&classifier.inputs, "inputs")?;
    let Some(shape) = &input.shape else { return Ok(()) };
    let [batch, sides @ ..] = shape.as_slice() else {
        return Err(Error::range("the classifier's input", "[N, C, H, W]", "a single number"));
    };
    if let Side::Fixed(rows) = batch {
        return Err(Error::range("the classifier's batch", "any, not a fixed one", rows));
    }
    if sides.len() != images.len() {
        return Err(Error::range("the rank of the classifier's input", "4, [N, C, H, W]", shape.len()));
    }
    let names = ["channels", "height", "width"];
    for ((name, side), wanted) in names.iter().zip(sides).zip(images) {
        if let Side::Fixed(found) = side
            && *found != wanted
        {
            let source = if *name == "channels" { ", as the TRN was trained with" } else { ", as asked for" };
            let expected = format!("{wanted}{source}");
            return Err(Error::range(format!("the classifier's image {name}"), expected, found));
        }
    }
    Ok(())
}

/// Checks that the classifier knows as many classes as the TRN, by asking it where the graph does not say.
fn check_classes(classifier: &Graph, images: [i64; 3], expected: i64) -> Result<()> {
    let output = only(&classifier.outputs, "outputs")?;
    let found = match output.shape.as_deref() {
        Some([_, Side::Fixed(classes)]) => *classes,
        _ => {
            let shape = [1, images[0], images[1], images[2]];
            let grey = Tensor::f_full(shape, 0.5, (Kind::Float, Device::Cpu))?;
            let program = Program::new(classifier.clone_shallow(), Device::Cpu)?;
            let answer = tch::no_grad(|| program.run(&[grey]))?;
            match answer.first().map(Tensor::size).as_deref() {
                Some([1, classes]) => *classes,
                found => {
                    let found = format!("{found:?}");
                    return Err(Error::range("the shape of the classifier's logits", "[N, K]", found));
                }
            }
        }
    };
    if found != expected {
        let expected = format!("{expected}, as the TRN was trained with");
        return Err(Error::range("the classifier's number of classes", expected, found));
    }
    Ok(())
}

/// The one port of a classifier, of `f32`.
fn only<'a>(ports: &'a [Port], what: &str) -> Result<&'a Port> {
    let [port] = ports else {
        return Err(Error::range(format!("the classifier's number of {what}"), "1", ports.len()));
    };
    if port.kind != Kind::Float {
        return Err(Error::range(format!("the type of {}", port.name), "f32", format!("{:?}", port.kind)));
    }
    Ok(port)
}
