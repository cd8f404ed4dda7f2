//! The official addresses, with the MD5 sums that the publishers give.

use std::{fs, fs::File, io::Write, path::Path};

use ureq::Agent;

use super::{Progress, Report, Source, archive, checksum, http};
use crate::{
    cifar,
    dataset::Split,
    error::{DataError, Result},
    names::DatasetName,
    write::{create_folder, replace_file},
};

/// A file at the address, and its MD5 sum.
type Remote = (&'static str, &'static str);

/// The names of the MNIST family's files; Fashion-MNIST took them over.
pub(crate) const FASHION_MNIST: [Remote; 4] = [
    ("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
    ("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
    ("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
    ("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
];

const MNIST: [Remote; 4] = [
    ("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    ("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
    ("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
    ("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
];

const SVHN: [Remote; 2] = [
    ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
    ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
];

const CIFAR10: [Remote; 1] = [("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d13530")];
const CIFAR100: [Remote; 1] = [("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8")];

/// An address with a data set's official files.
pub(crate) struct Official {
    name: DatasetName,
    base: String,
    files: &'static [Remote],
    agent: Agent,
}

impl Official {
    /// The address of a data set. That of MNIST is a mirror: the author's own page refuses downloads.
    pub fn of(name: DatasetName, agent: Agent) -> Self {
        let (base, files): (&str, &'static [Remote]) = match name {
            DatasetName::Cifar10 => ("https://www.cs.toronto.edu/~kriz", &CIFAR10),
            DatasetName::Cifar100 => ("https://www.cs.toronto.edu/~kriz", &CIFAR100),
            DatasetName::Svhn => ("http://ufldl.stanford.edu/housenumbers", &SVHN),
            DatasetName::Mnist => ("https://ossci-datasets.s3.amazonaws.com/mnist", &MNIST),
            DatasetName::FashionMnist => {
                ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com", &FASHION_MNIST)
            }
        };
        Self { name, base: base.to_owned(), files, agent }
    }
}

impl Source for Official {
    fn describe(&self) -> String {
        self.base.clone()
    }

    fn fetch(&self, folder: &Path, report: Report<'_>) -> Result<()> {
        for (file, md5) in self.files {
            let target = folder.join(file);
            // A file that an earlier run completed is not fetched again.
            if !target.is_file() || checksum::check_file_md5(&target, md5).is_err() {
                http::fetch_file(&self.agent, &format!("{}/{file}", self.base), &target, md5, report)?;
            }
            if file.ends_with(".tar.gz") {
                unpack(self.name, &target, folder, report)?;
            }
        }
        Ok(())
    }
}

/// Puts the data files of a CIFAR archive into `folder` and removes the archive.
fn unpack(name: DatasetName, packed: &Path, folder: &Path, report: Report<'_>) -> Result<()> {
    let inner = cifar::archive_folder(name);
    create_folder(&folder.join(inner))?;
    let wanted: Vec<String> = [Split::Train, Split::Test]
        .iter()
        .flat_map(|&split| cifar::file_names(name, split))
        .map(|file| format!("{inner}/{file}"))
        .collect();
    let file = File::open(packed).map_err(DataError::io("read", packed))?;
    archive::for_each(file, packed, &wanted, |file, bytes| {
        report(Progress::Unpacking { file });
        replace_file(&folder.join(file), |out| out.write_all(&bytes))
    })?;
    fs::remove_file(packed).map_err(DataError::io("remove", packed))
}

#[cfg(test)]
mod tests {
    use md5::{Digest, Md5};

    use super::*;
    use crate::{
        fetch::{
            archive::tests::pack,
            fetch_from,
            http::tests::{Serve, direct_agent, serve},
        },
        read::hex,
    };

    /// An archive like that of CIFAR-100, with its two files filled with one image.
    fn archive() -> Vec<u8> {
        let record = [&[3, 42][..], &[7; 3072]].concat();
        let (train, test) = (record.repeat(50_000), record.repeat(10_000));
        pack(&[("cifar-100-binary/train.bin", &train), ("cifar-100-binary/test.bin", &test)])
    }

    fn source(base: String, content: &[u8]) -> Box<dyn Source> {
        let md5 = hex(&Md5::digest(content)).leak();
        let files = vec![("cifar-100-binary.tar.gz", &*md5)].leak();
        Box::new(Official { name: DatasetName::Cifar100, base, files, agent: direct_agent() })
    }

    fn fetch(sources: &[Box<dyn Source>], root: &Path) -> Result<crate::FetchReport> {
        fetch_from(sources, DatasetName::Cifar100, root, &mut |_| ())
    }

    #[test]
    fn an_archive_is_fetched_unpacked_checked_and_not_fetched_again() {
        let root = tempfile::tempdir().unwrap();
        let (base, requests) = serve(archive(), vec![Serve::Whole]);
        let sources = [source("http://127.0.0.1:1".into(), b""), source(base.clone(), &archive())];
        let report = fetch(&sources, root.path()).unwrap();
        assert_eq!(report.source, Some(base));
        let names: Vec<_> = report.files.iter().map(|file| file.path.file_name().unwrap()).collect();
        assert_eq!(names, ["test.bin", "train.bin"]);
        assert_eq!(requests.iter().count(), 1);
        let again = fetch(&sources, root.path()).unwrap();
        assert_eq!((again.source, again.files), (None, report.files));
        let data = crate::load(&DatasetName::Cifar100.into(), Split::Test, Some(root.path())).unwrap();
        assert_eq!((data.len(), data.labels()[0]), (10_000, 42));
    }

    #[test]
    fn failure_lists_every_source_and_its_cause() {
        let root = tempfile::tempdir().unwrap();
        let (base, _requests) = serve(b"not an archive".to_vec(), vec![Serve::Whole]);
        let sources = [source("http://127.0.0.1:1".into(), b""), source(base.clone(), b"not an archive")];
        let error = fetch(&sources, root.path()).unwrap_err();
        let DataError::NoSource { attempts, .. } = &error else { panic!("{error}") };
        assert_eq!(attempts.len(), 2);
        assert!(attempts[1].source == base && attempts[1].cause.contains("an intact .tar.gz"), "{error}");
        assert!(error.to_string().contains("put the official files into"), "{error}");
    }

    #[test]
    fn two_fetches_at_once_make_one_download() {
        let root = tempfile::tempdir().unwrap();
        let packed = archive();
        let (base, requests) = serve(packed.clone(), vec![Serve::Whole]);
        let sources = std::thread::scope(|scope| {
            let run = || fetch(&[source(base.clone(), &packed)], root.path()).unwrap().source;
            let (one, two) = (scope.spawn(run), scope.spawn(run));
            [one.join().unwrap(), two.join().unwrap()]
        });
        assert_eq!(sources.iter().flatten().count(), 1);
        assert_eq!(requests.iter().count(), 1);
    }
}
