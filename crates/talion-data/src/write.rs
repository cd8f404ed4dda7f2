//! Writing files so that a reader sees the old one or the whole new one, never a part.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use tempfile::NamedTempFile;

use crate::error::{DataError, Result};

/// Has `fill` write a temporary file beside `path` and then renames it to `path`.
pub(crate) fn replace_file(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = NamedTempFile::new_in(folder).map_err(DataError::io("create a file in", folder))?;
    fill(temporary.as_file_mut()).map_err(DataError::io("write", path))?;
    readable_by_all(temporary.as_file()).map_err(DataError::io("write", path))?;
    temporary.as_file().sync_all().map_err(DataError::io("write", path))?;
    temporary.persist(path).map_err(|error| DataError::io("write", path)(error.error))?;
    Ok(())
}

/// Temporary files are private to the user; data sets and pictures need not be.
fn readable_by_all(file: &File) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

/// Creates a folder and those above it.
pub(crate) fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(DataError::io("create the folder", path))
}
