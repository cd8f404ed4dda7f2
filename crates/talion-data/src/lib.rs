//! Image data sets for talion: loading, fetching, describing and augmenting them.
//!
//! Every loader checks what it reads — magic numbers, exact lengths, label ranges — and never allocates more than the
//! size of the file warrants, so a damaged or hostile file gives a [`DataError`] that names the file, not a panic and
//! not half a data set.
//!
//! ```
//! let sample = talion_data::fashion_mnist_sample()?;
//! let (images, labels) = sample.tensor(&[0, 1, 2])?;
//! assert_eq!(images.size(), [3, 1, 28, 28]);
//! assert_eq!(labels.size(), [3]);
//! # Ok::<(), talion_data::DataError>(())
//! ```

mod augment;
mod cifar;
mod dataset;
mod error;
mod fetch;
mod folder;
mod idx;
mod info;
pub mod label;
mod load;
mod mat5;
mod names;
mod read;
mod rng;
mod sample;
mod sheet;
mod svhn;
mod write;
mod write_folder;

pub use augment::Augmentation;
pub use dataset::{Dataset, DatasetParts, Split};
pub use error::{Attempt, DataError, Result};
pub use fetch::{FetchReport, FetchedFile, Progress, fetch};
pub use info::{ClassCount, DatasetInfo};
pub use load::{data_root, load};
pub use names::{DatasetName, DatasetSpec};
pub use sample::fashion_mnist_sample;
pub use sheet::{SheetOptions, contact_sheet, write_contact_sheet};
pub use write_folder::write_folder;
