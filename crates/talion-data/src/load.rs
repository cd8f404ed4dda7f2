//! Finding a data set on disk and loading it.

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::{
    cifar,
    dataset::{Dataset, Split},
    error::{DataError, Result},
    folder, idx,
    names::{DatasetName, DatasetSpec},
    sample, svhn,
};

/// Variable that names the data folder.
const ROOT_VARIABLE: &str = "TALION_DATA";

/// The folder that holds a sub-folder for each data set: `$TALION_DATA`, or else `talion/data` in the user's cache
/// folder (`$XDG_CACHE_HOME` or `~/.cache`).
///
/// # Errors
/// [`DataError::Request`] if none of the variables is set.
pub fn data_root() -> Result<PathBuf> {
    root_from(|name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
}

fn root_from(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf> {
    if let Some(root) = variable(ROOT_VARIABLE) {
        return Ok(root);
    }
    let cache = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    let cache = cache.or_else(|| variable("HOME").map(|home| home.join(".cache")));
    let message = "no data folder: set TALION_DATA to a folder for data sets, since HOME is not set either";
    cache.map(|cache| cache.join("talion/data")).ok_or_else(|| DataError::Request(message.into()))
}

/// Loads a split of a data set, whole, and checks all of it.
///
/// A name without a folder is looked for in `root`/NAME; `None` means [`data_root`]. An image folder may have the
/// sub-folders `train` and `test`, of which `split` picks one; without them, it is read whole whatever the split.
///
/// # Errors
/// [`DataError::Missing`] if files are missing (the message says how to get them), [`DataError::Format`] if a file is
/// truncated, too long or damaged, [`DataError::Request`] for [`Split::Validation`] and for the training split of the
/// bundled sample, [`DataError::Io`] if a file cannot be read.
pub fn load(spec: &DatasetSpec, split: Split, root: Option<&Path>) -> Result<Dataset> {
    if split == Split::Validation {
        let message = "no data set ships a validation split: load `train` and set images aside from it";
        return Err(DataError::Request(message.into()));
    }
    match spec {
        DatasetSpec::Sample => sample::load(split),
        DatasetSpec::Folder(dir) => folder::load(dir, split),
        DatasetSpec::Named { name, dir: Some(dir) } => load_named(*name, split, dir),
        DatasetSpec::Named { name, dir: None } => load_named(*name, split, &named_folder(*name, root)?),
    }
}

/// The folder of a named data set below the root.
pub(crate) fn named_folder(name: DatasetName, root: Option<&Path>) -> Result<PathBuf> {
    Ok(root.map_or_else(data_root, |root| Ok(root.to_owned()))?.join(name.as_str()))
}

pub(crate) fn load_named(name: DatasetName, split: Split, dir: &Path) -> Result<Dataset> {
    match name {
        DatasetName::Cifar10 | DatasetName::Cifar100 => cifar::load(name, split, dir),
        DatasetName::Svhn => svhn::load(split, dir),
        DatasetName::Mnist | DatasetName::FashionMnist => idx::load(name, split, dir),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root_with(set: &[(&str, &str)]) -> Result<PathBuf> {
        root_from(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value)))
    }

    #[test]
    fn the_data_folder_follows_the_environment() {
        let all = [("TALION_DATA", "/d"), ("XDG_CACHE_HOME", "/c"), ("HOME", "/h")];
        assert_eq!(root_with(&all).unwrap(), Path::new("/d"));
        assert_eq!(root_with(&all[1..]).unwrap(), Path::new("/c/talion/data"));
        assert_eq!(root_with(&all[2..]).unwrap(), Path::new("/h/.cache/talion/data"));
        assert_eq!(
            root_with(&[("XDG_CACHE_HOME", "relative"), ("HOME", "/h")]).unwrap(),
            Path::new("/h/.cache/talion/data")
        );
        assert!(root_with(&[]).unwrap_err().to_string().contains("TALION_DATA"));
    }

    #[test]
    fn missing_files_name_the_command_that_gets_them() {
        let root = tempfile::tempdir().unwrap();
        for name in DatasetName::ALL {
            for split in [Split::Train, Split::Test] {
                let error = load(&name.into(), split, Some(root.path())).unwrap_err();
                assert!(matches!(error, DataError::Missing { .. }));
                assert!(error.to_string().contains(&format!("`talion data fetch {name}`")), "{error}");
            }
            assert!(load(&name.into(), Split::Validation, Some(root.path())).is_err());
        }
    }
}
