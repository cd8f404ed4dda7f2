//! Reading files whole and unpacking them within bounds that the size of the file sets.

use std::{
    fs,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
};

use flate2::bufread::{GzDecoder, ZlibDecoder};

use crate::{
    error::{DataError, Result},
    names::DatasetName,
};

/// Deflate cannot expand a byte to more than this, so a header that claims more than the file's size times this lies.
const MAX_DEFLATE_RATIO: u64 = 1032;
/// More than any file of the known data sets holds: the end of what a file made to explode can take.
const MAX_UNPACKED: u64 = 4 << 30;
const BUFFER_LEN: usize = 1 << 16;

/// Reads a regular file whole.
pub(crate) fn file(path: &Path) -> Result<Vec<u8>> {
    let metadata = fs::metadata(path).map_err(DataError::io("read", path))?;
    if !metadata.is_file() {
        let found = if metadata.is_dir() { "a folder" } else { "something else" };
        return Err(DataError::format(path, "a regular file", found));
    }
    fs::read(path).map_err(DataError::io("read", path))
}

/// The first of `candidates` that exists.
pub(crate) fn first_existing(candidates: &[PathBuf]) -> Option<&PathBuf> {
    candidates.iter().find(|path| path.exists())
}

/// Unpacks deflated data of an announced length, and refuses data that is longer or shorter.
pub(crate) struct Inflater<'a> {
    decoder: Decoder<'a>,
    packed: u64,
    path: &'a Path,
}

enum Decoder<'a> {
    Gzip(GzDecoder<&'a [u8]>),
    Zlib(ZlibDecoder<&'a [u8]>),
}

impl<'a> Inflater<'a> {
    pub fn gzip(bytes: &'a [u8], path: &'a Path) -> Self {
        Self { decoder: Decoder::Gzip(GzDecoder::new(bytes)), packed: bytes.len() as u64, path }
    }

    pub fn zlib(bytes: &'a [u8], path: &'a Path) -> Self {
        Self { decoder: Decoder::Zlib(ZlibDecoder::new(bytes)), packed: bytes.len() as u64, path }
    }

    /// The next `len` bytes. Memory grows with what the file really holds, not with what it announces.
    pub fn take(&mut self, len: u64) -> Result<Vec<u8>> {
        let most = self.packed.saturating_mul(MAX_DEFLATE_RATIO).min(MAX_UNPACKED);
        let len = usize::try_from(len).ok().filter(|_| len <= most).ok_or_else(|| {
            let expected = format!("at most {most} bytes, all that {} packed bytes can hold", self.packed);
            DataError::format(self.path, expected, format!("a header that announces {len}"))
        })?;
        let mut bytes = Vec::new();
        let mut buffer = vec![0; BUFFER_LEN.min(len)];
        while bytes.len() < len {
            let wanted = buffer.len().min(len - bytes.len());
            let count = self.read(&mut buffer[..wanted])?;
            if count == 0 {
                let found = format!("{}; the file is truncated", bytes.len());
                return Err(DataError::format(self.path, format!("{len} bytes after unpacking"), found));
            }
            bytes.extend_from_slice(&buffer[..count]);
        }
        Ok(bytes)
    }

    /// Makes sure that nothing follows, packed or not. This also has the checksum at the end of the stream checked.
    pub fn finish(mut self) -> Result<()> {
        if self.read(&mut [0])? != 0 {
            let found = "more; the file is damaged or in another format";
            return Err(DataError::format(self.path, "the end of the packed data", found));
        }
        let left = match &self.decoder {
            Decoder::Gzip(decoder) => decoder.get_ref().len(),
            Decoder::Zlib(decoder) => decoder.get_ref().len(),
        };
        if left != 0 {
            return Err(DataError::format(
                self.path,
                "nothing after the packed data",
                format!("{left} bytes"),
            ));
        }
        Ok(())
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        loop {
            let read = match &mut self.decoder {
                Decoder::Gzip(decoder) => decoder.read(into),
                Decoder::Zlib(decoder) => decoder.read(into),
            };
            match read {
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    let found = "the end of the file; it is truncated";
                    return Err(DataError::format(self.path, "more packed data", found));
                }
                Err(error) => {
                    let found = format!("damaged data ({error})");
                    return Err(DataError::format(self.path, "intact packed data", found));
                }
            }
        }
    }
}

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The error for a named data set whose files are not there.
pub(crate) fn missing(name: DatasetName, path: &Path) -> DataError {
    let advice = format!(
        "run `talion data fetch {name}` to get the data set, or give `{name}:DIR` if its official files are in a \
         folder of yours"
    );
    DataError::Missing { path: path.to_owned(), advice }
}
