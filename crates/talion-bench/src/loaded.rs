//! What a worker has in memory: networks and images, checked against one another.

use talion_core::{Classifier, check_images, check_labels, read_safetensors};
use talion_data::{Dataset, DatasetParts, Split};
use talion_defenses::{Defended, GradientMode, Trn};
use talion_models::{Model, SearchPrecision};
use tch::{Device, Kind, Tensor};

use crate::{
    error::{Error, Result},
    protocol::{Load, Setting},
};

/// Networks and images.
pub struct Loaded {
    model: Option<Model>,
    trn: Option<Trn>,
    images: Tensor,
    labels: Tensor,
    ids: Vec<u64>,
}

/// Images with labels and ids, one a row.
pub struct Samples<'a> {
    /// `[N, C, H, W]` in `[0, 1]`.
    pub images: Tensor,
    /// `[N]`.
    pub labels: Tensor,
    /// Places in the file: the keys of the random draws.
    pub ids: &'a [u64],
}

impl Loaded {
    /// Reads the files.
    ///
    /// # Errors
    /// If one is missing or damaged, or they do not fit one another.
    pub fn read(files: &Load) -> Result<Self> {
        let device = Device::Cpu;
        let model = files.model.as_deref().map(|path| Model::load(path, device)).transpose()?;
        let trn = files.trn.as_deref().map(|path| Trn::load(path, device)).transpose()?;
        let mut tensors = read_safetensors(&files.data)?;
        let mut take = |name: &str| {
            let lacks = || talion_core::Error::file(&files.data, format!("lacks the tensor {name}"));
            tensors.remove(name).ok_or_else(lacks)
        };
        let (images, labels) = (take("images")?, take("labels")?);
        check_images(&images)?;
        let rows = images.size()[0];
        if images.kind() != Kind::Float || images.numel() == 0 {
            let found = format!("{:?} {:?}", images.kind(), images.size());
            return Err(Error::range("the images", "f32, at least one", found));
        }
        let known = model.as_ref().map_or(i64::MAX, Classifier::classes);
        check_labels(&labels, rows, known)?;
        let loaded = Self { model, trn, images, labels, ids: (0..rows.cast_unsigned()).collect() };
        loaded.check_fit()?;
        Ok(loaded)
    }

    /// Checks that the networks take these images and belong together.
    fn check_fit(&self) -> Result<()> {
        let [channels, height, width] = self.size();
        if let Some(model) = &self.model {
            model.accepts(channels, [height, width])?;
        }
        if let Some(trn) = &self.trn {
            Defended::new(self.model()?, trn, GradientMode::Exact)?;
            let wanted = trn.card().spec.channels;
            if wanted != channels {
                return Err(Error::range(
                    "the channels of the images",
                    format!("{wanted}, as the TRN"),
                    channels,
                ));
            }
        }
        Ok(())
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Channels, height and width of an image.
    pub fn size(&self) -> [i64; 3] {
        let size = self.images.size();
        [size[1], size[2], size[3]]
    }

    /// Number of classes: the classifier's, or without one as many as the labels need, at least 2.
    pub fn classes(&self) -> usize {
        let classes = match &self.model {
            Some(model) => model.classes(),
            None => self.labels.max().int64_value(&[]).saturating_add(1),
        };
        usize::try_from(classes).unwrap_or_default().max(2)
    }

    /// The classifier.
    ///
    /// # Errors
    /// If none is loaded.
    pub fn model(&self) -> Result<&Model> {
        self.model.as_ref().ok_or(Error::NotLoaded("a classifier"))
    }

    /// The restoration network.
    ///
    /// # Errors
    /// If none is loaded.
    pub fn trn(&self) -> Result<&Trn> {
        self.trn.as_ref().ok_or(Error::NotLoaded("a TRN"))
    }

    /// The restoration network, if there is one.
    pub fn trn_if_any(&self) -> Option<&Trn> {
        self.trn.as_ref()
    }

    /// The first `count` images.
    ///
    /// # Errors
    /// If there are not so many, or none are asked for.
    pub fn first(&self, count: usize) -> Result<Samples<'_>> {
        match self.ids.get(..count) {
            Some(ids) if count > 0 => Ok(Samples {
                images: self.images.narrow(0, 0, count as i64),
                labels: self.labels.narrow(0, 0, count as i64),
                ids,
            }),
            _ => {
                Err(Error::range("the number of images", format!("1 to {}, those loaded", self.len()), count))
            }
        }
    }

    /// Shows `work` the classifier, or what an attacker sees of it behind the restoration network.
    ///
    /// # Errors
    /// If a network is not loaded, one behind another is to be attacked in bf16, or the work fails.
    pub fn with_victim<T>(
        &self,
        defended: Option<GradientMode>,
        setting: Setting,
        work: impl FnOnce(&dyn Classifier) -> Result<T>,
    ) -> Result<T> {
        let model = self.model()?;
        match (defended, setting) {
            (None, Setting::Default) => work(model),
            (None, Setting::Bf16) if SearchPrecision::Bf16.is_at_hand() => {
                work(&model.searching_in(SearchPrecision::Bf16))
            }
            (None, Setting::Bf16) => Err(Error::range("the setting", "default: no bf16 here", "bf16")),
            (Some(_), Setting::Bf16) => {
                Err(Error::range("the setting", "default, as the classifier is defended", "bf16"))
            }
            (Some(mode), Setting::Default) => work(&Defended::new(model, self.trn()?, mode)?),
        }
    }

    /// The first `count` images as a data set to train on, with the first of them once more.
    ///
    /// talion's trainings set validation images aside and refuse to do without, so there is one image more than is
    /// trained on.
    ///
    /// # Errors
    /// If there are not so many images, or `classes` are too few for the labels.
    pub fn training_set(&self, count: usize, classes: usize) -> Result<Dataset> {
        let samples = self.first(count)?;
        let [channels, height, width] = self.size().map(|side| side as usize);
        let bytes = (samples.images * 255.0).round().to_kind(Kind::Uint8);
        let mut images = Vec::<u8>::try_from(bytes.flatten(0, -1))?;
        let mut labels = Vec::<i64>::try_from(samples.labels)?;
        images.extend_from_within(..channels * height * width);
        labels.extend_from_within(..1);
        let class_names = (0..classes).map(|class| class.to_string()).collect();
        let (name, split) = ("benchmark".to_owned(), Split::Train);
        let parts = DatasetParts { name, split, images, labels, channels, height, width, class_names };
        Ok(Dataset::new(parts)?)
    }
}
