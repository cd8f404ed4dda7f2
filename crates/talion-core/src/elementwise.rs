//! Functions of single values whose results depend on the value alone.

use tch::{Device, Kind, Tensor};

/// `scalar` of every value, in double precision and rounded to the kind of `values`; without gradients. On other devices
/// than the CPU, where the same bits are not promised, `torch` instead.
///
/// On the CPU libtorch computes functions such as the hyperbolic tangent in vectors, and one by one what is left at the
/// end of a tensor (or of a thread's share of it). The two round differently, and how much is left depends on the number of
/// values, the width of the processor's vectors and the threads: so the result of a sample would depend on its neighbours.
pub fn elementwise(
    values: &Tensor,
    scalar: impl Fn(f64) -> f64,
    torch: impl Fn(&Tensor) -> Tensor,
) -> Tensor {
    if values.device() != Device::Cpu {
        return torch(values);
    }
    let flat = values.detach().to_kind(Kind::Double).contiguous().flatten(0, -1);
    let mut numbers = vec![0.0; flat.numel()];
    let count = numbers.len();
    flat.copy_data(&mut numbers, count);
    numbers.iter_mut().for_each(|number| *number = scalar(*number));
    Tensor::from_slice(&numbers).view(&*values.size()).to_kind(values.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_does_not_notice_its_place() {
        let values = crate::gaussian_noise(&[243], &(0..15).collect::<Vec<_>>(), 1, "values", 0);
        let whole = elementwise(&values, f64::tanh, Tensor::tanh);
        for count in 1..15 {
            let some = elementwise(&values.narrow(0, 0, count), f64::tanh, Tensor::tanh);
            assert_eq!(some, whole.narrow(0, 0, count), "{count}");
        }
        assert!((&whole - values.tanh()).abs().max().double_value(&[]) < 1e-6);
        assert_eq!((whole.size(), whole.kind()), (values.size(), Kind::Float));
    }

    #[test]
    fn shapes_and_kinds_stay() {
        for (size, kind) in [(vec![], Kind::Double), (vec![0, 3], Kind::Float), (vec![2, 3, 1], Kind::Double)]
        {
            let ones =
                Tensor::ones(&size, (kind, Device::Cpu)).transpose(0, if size.is_empty() { 0 } else { 1 });
            let doubled = elementwise(&ones, |value| 2.0 * value, |values| values * 2.0);
            assert_eq!((doubled.size(), doubled.kind()), (ones.size(), kind));
            assert_eq!(doubled, &ones * 2.0);
        }
    }
}
